"""The plain values that go into the runtime and come out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Literal, Protocol

from alignez_edge.arrays import TensorName
from alignez_edge.directions.hidden_states import States
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable_name
from alignez_edge.runtime.injection import Conditional, Injection

if TYPE_CHECKING:
    from alignez_edge.runtime.context import Context

FinishReason = Literal["stop", "length", "context", "interrupted"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 is greedy. `top_p` in (0, 1]; 1 switches it off. `top_k` 0 switches it off.
    Generation ends at an end-of-generation token (not before `min_tokens`), before the first of
    the `stop` strings (which is not part of the text), or after `max_tokens`. Raises
    `BadInputError` for values of other kinds.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    seed: int = 0
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # As what llama.cpp's binding takes: NumPy's own numbers are none.
        for name in ("top_k", "seed", "max_tokens", "min_tokens"):
            object.__setattr__(self, name, whole(getattr(self, name), name))
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not isfinite(value):
                raise BadInputError(f"{name} is {shown(value)}; it must be a number")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.stop, tuple | list) or not all(
            isinstance(text, str) for text in self.stop
        ):
            raise BadInputError(f"stop is {shown(self.stop)}; it must be a tuple of texts")
        object.__setattr__(self, "stop", tuple(self.stop))

    def with_seed(self, seed: int) -> Sampling:
        """The same settings with another seed."""
        return replace(self, seed=seed)

    def with_stops(self, stops: tuple[str, ...]) -> Sampling:
        """The same settings, which end at these strings, too: `sampling.with_stops(model.stops)`
        wherever the model's prompt form is used."""
        return replace(self, stop=tuple(dict.fromkeys((*self.stop, *stops))))


def whole(value: object, name: str) -> int:
    """A whole number as an `int`. Raises `BadInputError` if `value` is none."""
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise BadInputError(f"{name} is {shown(value)}; it must be a whole number") from None


def shown(value: object) -> str:
    """A value as a message shows it."""
    return printable_name(repr(value), 40)


class RowReader(Protocol):
    """What takes what a pass says of an answer's token while it can be had: the context's `logits`
    and `hidden` of batch entry `entry`."""

    def __call__(self, context: Context, entry: int, place: int) -> None:
        """`place` counts the answer's tokens: these logits are those that predict it."""
        ...


@dataclass(frozen=True)
class Given:
    """An answer that is given, not drawn: its tokens run as those of a drawn one would.

    `on_row` is called for each of them, and for the one that would come next, in order, with the
    logits already edited; with `hidden`, `Context.hidden` can be read there, too.
    """

    tokens: Sequence[int]
    on_row: RowReader | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Request:
    """One prompt, and how it is to be answered.

    `tokens` is the whole prompt, the begin-of-text token included. `steering` is this answer's own.
    `capture` asks for the `States` of prompt and answer at one tensor (`l_out`, `ffn_out`,
    `kqv_out`), as the passes that make the answer leave them. With `given`, nothing is drawn.
    """

    tokens: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    index: int = 0
    steering: Injection | Conditional | None = None
    capture: TensorName | None = None
    given: Given | None = None


@dataclass(frozen=True)
class Completion:
    """One finished answer. `tokens` are the answer's, without the end token or a stop string.

    `states` are there where the request asked for them.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    seconds: float
    states: States | None = None
