"""What a context is told to add, and who may decide it: values and protocols, no llama.cpp."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from alignez_edge.arrays import FloatArray, IntArray
from alignez_edge.errors import BadInputError

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Adapter, Weights
MOST = 65504.0
"""The largest value of float16, in which caches hold keys and values. What overflows there, or in
the square of a norm, is no number any more, and reaches other requests through the cache."""
Phase = Literal["deciding", "answer"]
"""The pass of the last prompt token, and those of the answer's tokens."""


class Editor(Protocol):
    """Anything that edits the MLP's output, for the reference path: `interventions/mlp_edit.py`."""

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
    shapes or non-finite values, `BadInputError` on values beyond `MOST`.
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
            if array.size and np.abs(array).max() > MOST:
                most = float(np.abs(array).max())
                raise BadInputError(
                    f"an injection adds values of {most:.2g}; {MOST:.0f} is the most",
                    "use a smaller strength",
                )
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

    def injection(self, model: Weights) -> Injection | Conditional | None:
        """The injection for `model`; None for none. Raises where it does not fit the model."""
        ...
