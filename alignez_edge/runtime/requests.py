"""The plain values that go into the runtime and come out of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from alignez_edge.arrays import FloatArray, IntArray

if TYPE_CHECKING:
    from alignez_edge.runtime.adapter import Adapter
    from alignez_edge.runtime.context import Context
    from alignez_edge.runtime.model import Model

TensorName = Literal["l_out", "ffn_out", "kqv_out"]
"""The residual stream after a layer, its MLP's output, its attention heads' outputs."""
Phase = Literal["deciding", "answer"]
"""The pass of the last prompt token, and those of the answer's tokens."""
FinishReason = Literal["stop", "length", "context", "interrupted"]
Message = dict[str, str]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant", "content": str}`."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 is greedy. `top_p` in (0, 1]; 1 switches it off. `top_k` 0 switches it off.
    Generation ends at an end-of-generation token (not before `min_tokens`), before the first of
    the `stop` strings (which is not part of the text), or after `max_tokens`.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    seed: int = 0
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()

    def with_seed(self, seed: int) -> Sampling:
        """The same settings with another seed."""
        return replace(self, seed=seed)


class Editor(Protocol):
    """Anything that edits the MLP's output, for the reference path: `alignez_edge.interventions.mlp_edit.Edit`."""

    @property
    def layers(self) -> Collection[int]:
        """The layers that it edits."""
        ...

    def change(self, layer: int, x: FloatArray) -> FloatArray:
        """What strength 1 adds to the rows of `x`, `(n, n_embd)`, in a layer; zeros for none."""
        ...


Edits: TypeAlias = "tuple[tuple[Adapter | Editor, float], ...]"
"""Edits of the MLP's outputs, each with its strength; their changes add up. An `Adapter` is a LoRA
that llama.cpp applies; an `Editor` is applied in the evaluation callback, slowly."""


class LogitEditor(Protocol):
    """Anything that moves the logits of the next token: `runtime.logits.LogitSteps`."""

    def change(self, hidden: FloatArray, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        """Which tokens' logits strength 1 moves, each named once, and by how much.

        `hidden`, `(n_embd,)`, is the state after the final norm that gave these `(n_vocab,)`
        logits; neither may be written to. Called from several threads at once.
        """
        ...


LogitEdits: TypeAlias = tuple[tuple[LogitEditor, float], ...]
"""Edits of the logits that an answer's tokens are drawn from, each with its strength. All see the
model's own logits; their changes add up."""


@dataclass(frozen=True)
class Injection:
    """What steers an answer: llama.cpp control vectors, edits of the MLP's outputs and of logits.

    Both arrays have shape `(n_layer, n_embd)`, float32; row `l` is added to `l_out-l` (row 0 only
    where rows are steered one by one: llama.cpp's own control vector has no layer 0). `deciding`
    (and `deciding_edits`) acts in the forward pass of the last prompt token, which yields the first
    answer token; `answer` in the passes of all tokens after it. `logit_edits` act before every
    answer token is drawn. Nobody may write to the arrays any more. Raises `ValueError` on other
    shapes or non-finite values.
    """

    deciding: FloatArray
    answer: FloatArray
    deciding_edits: Edits = ()
    answer_edits: Edits = ()
    logit_edits: LogitEdits = ()

    def __post_init__(self) -> None:
        if self.deciding.shape != self.answer.shape or self.deciding.ndim != 2:
            raise ValueError(f"shapes differ: {self.deciding.shape} and {self.answer.shape}")
        for array in (self.deciding, self.answer):
            if not np.isfinite(array).all():
                raise ValueError("an injection must be finite")
        if not all(np.isfinite(strength) for _, strength in (*self.edits, *self.logit_edits)):
            raise ValueError("the strength of an edit must be finite")

    @property
    def edits(self) -> Edits:
        """The edits of both phases."""
        return self.deciding_edits + self.answer_edits

    def at(self, phase: Phase) -> tuple[FloatArray, Edits]:
        """The vectors and the edits of one phase."""
        if phase == "deciding":
            return self.deciding, self.deciding_edits
        return self.answer, self.answer_edits

    def is_zero(self) -> bool:
        """Whether it changes nothing."""
        edited = any(strength for _, strength in (*self.edits, *self.logit_edits))
        return not (self.deciding.any() or self.answer.any() or edited)


class Conditional(Protocol):
    """An injection that depends on the prompt: it is known once the prompt's last token is read."""

    @property
    def layers(self) -> Collection[int]:
        """The layers whose states it must see."""
        ...

    @property
    def tensor(self) -> Literal["l_out", "ffn_out"]:
        """Where it sees them: the residual stream after a layer, or the MLP's output."""
        ...

    def at(self, states: FloatArray) -> Injection | None:
        """What steers the answer; None for nothing.

        `states`, `(n_layer, n_embd)`, are those of the last prompt token in a plain pass; rows of
        other layers than `layers` are zero.
        """
        ...


class Steers(Protocol):
    """Anything that can say what to inject into a given model: a profile, a sum of profiles."""

    def injection(self, model: Model) -> Injection | Conditional | None:
        """The injection for `model`; None for none. Raises where it does not fit the model."""
        ...


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


@dataclass(frozen=True)
class States:
    """Pooled hidden states of one (prompt, answer) text at one tensor.

    `deciding` is the state at the last prompt token, `answer` the mean over the answer's tokens;
    both `(n_layer, n_dims)` float32. `n_answer` counts the tokens of the mean: of a drawn answer
    those that were computed, which the one at which its length ran out is not.
    """

    deciding: FloatArray
    answer: FloatArray
    n_answer: int
