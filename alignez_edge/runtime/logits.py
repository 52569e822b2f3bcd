"""Edits of the logits by a move of the last hidden state, and the reading of such states.

The last hidden state is what llama.cpp calls `result_norm`: the residual stream after the final
norm, which the output matrix turns into logits. Logits are linear in it, so a move `δ` of the state
moves them by `scale * (W δ)`, of which only the likeliest tokens' rows are computed.

Facts of llama.cpp that this stands on: with `llama_set_embeddings` on and no pooling the states of
all tokens of a pass lie beside their logits, and all tokens of such a pass give logits. Where a
model's logits are not linear in the state, or a file's rows are not what llama.cpp multiplies by,
`OutputMatrix` finds out by trying and refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alignez_edge.arrays import FloatArray, IntArray
from alignez_edge.errors import BadInputError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.requests import Given, Request
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.score import rows_that_fit
from alignez_edge.runtime.window import check_fits

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

_CAPPED = ("gemma2", "gemma3n", "grok")
"""Architectures whose logits llama.cpp caps even where the file has no key that says so."""
_CACHE_BYTES = 64 << 20
_PROBED = 256
"""Tokens whose logits are compared with the output matrix times the state."""
_AGREEMENT = 0.99
"""The correlation that these must have. Rounding of quantized products leaves 0.999 and more."""


class OutputMatrix:
    """The rows of a model's output matrix, read from its file when they are needed.

    `scale` is what llama.cpp multiplies the product with. Rows in memory take at most 64 MB. Raises
    `BadInputError` if the model's logits are not its output matrix times its last hidden state.
    """

    def __init__(self, model: Weights) -> None:
        gguf = model.gguf
        self._gguf = gguf
        self._name = next(
            (n for n in ("output.weight", "token_embd.weight") if n in gguf.tensors), ""
        )
        shape = gguf.tensors[self._name].shape if self._name else ()
        capped = gguf.hparam("final_logit_softcapping", 0)
        if capped or gguf.architecture in _CAPPED:
            raise _refusal("llama.cpp caps this model's logits")
        if shape != (model.n_embd, model.n_vocab):
            raise _refusal("this model has no plain output matrix")
        if any(scale and f"{self._name}.lora_a" in a.gguf.tensors for a, scale in model.lora):
            raise _refusal("the model carries an adapter that changes its output matrix")
        capacity = int(np.clip(_CACHE_BYTES // (4 * model.n_embd), _PROBED, model.n_vocab))
        self._rows = np.empty((capacity, model.n_embd), np.float32)
        self._place = np.full(model.n_vocab, -1, np.int64)
        self._n_held = 0
        self._lock = Lock()
        said = gguf.hparam("logit_scale")
        measured = self._measured_scale(model)
        # Some architectures multiply by the key's value and some divide.
        known = [1.0, said, 1 / said] if isinstance(said, float) and said > 0 else [1.0]
        nearest = min(known, key=lambda scale: abs(measured / scale - 1))
        # Rounding of quantized products makes up to half a percent.
        self.scale = nearest if abs(measured / nearest - 1) < 0.02 else measured

    def rows(self, tokens: IntArray) -> FloatArray:
        """The rows of `tokens`, `(n, n_embd)` float32, dequantized: a copy."""
        with self._lock:
            missing = tokens[self._place[tokens] < 0]
            if self._n_held + len(missing) > len(self._rows):
                self._place[:], self._n_held = -1, 0
                missing = tokens
            for token in missing:
                row = self._gguf.tensor(self._name, slice(int(token), int(token) + 1))[0]
                self._rows[self._n_held] = row
                self._place[token] = self._n_held
                self._n_held += 1
            return self._rows[self._place[tokens]]

    def _measured_scale(self, model: Weights) -> float:
        """The factor between what the matrix says and the logits, from two tokens' difference
        (in which a bias cancels)."""
        few = np.linspace(0, model.n_vocab - 1, min(_PROBED, model.n_vocab)).astype(np.int64)
        probe = [int(few[len(few) // 3]), int(few[2 * len(few) // 3])]
        with Context(model, n_ctx=min(32, model.n_ctx_train), n_batch=2) as context:
            context.set_embeddings(True)
            context.decode(probe, [0, 1], [0, 0], [True, True])
            hidden = context.hidden(1) - context.hidden(0)
            logits = (context.logits(1) - context.logits(0))[few].astype(np.float64)
        product = (self.rows(few) @ hidden).astype(np.float64)
        with np.errstate(all="ignore"):
            across = product @ logits
            agreement = across / np.sqrt((product @ product) * (logits @ logits))
        if not agreement >= _AGREEMENT:
            raise _refusal("this model's logits are not its output matrix times its last state")
        return float(across / (product @ product))


def output_matrix(model: Weights) -> OutputMatrix:
    """The model's output matrix, made once and kept with it. Raises as `OutputMatrix` does."""
    if "output matrix" not in model.kept:
        model.kept["output matrix"] = OutputMatrix(model)
    found: OutputMatrix = model.kept["output matrix"]
    return found


def _refusal(reason: str) -> BadInputError:
    return BadInputError(
        f"a move of the last hidden state cannot be injected: {reason}",
        "use a method that edits layers",
    )


class Moves(Protocol):
    """What says where the last hidden state should go."""

    def __call__(self, states: FloatArray) -> FloatArray:
        """What strength 1 adds to each of the states `(n, n_embd)`."""
        ...


class LogitSteps:
    """A `LogitEditor`: moves the last hidden state by `moves`, for the `top` likeliest tokens.

    All other tokens keep their logits. Exact for those it moves, up to the rounding of llama.cpp's
    own product.
    """

    def __init__(self, matrix: OutputMatrix, moves: Moves, top: int) -> None:
        self._matrix, self._moves, self._top = matrix, moves, top

    def change(self, hidden: FloatArray, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        n = min(self._top, len(logits))
        tokens = np.argpartition(logits, len(logits) - n)[len(logits) - n :]
        (move,) = self._moves(hidden[None])
        return tokens, np.float32(self._matrix.scale) * (self._matrix.rows(tokens) @ move)


def last_states(
    model: Weights, items: Iterable[tuple[Sequence[int], Sequence[int]]], n_ctx: int | None = None
) -> Iterator[FloatArray]:
    """The last hidden states of each (prompt tokens, answer tokens), `(n_answer + 1, n_embd)`.

    Row 0 is at the last prompt token and gives the first answer token; the last row has read the
    whole answer. Raises `PromptTooLongError` for an item longer than the window (`n_ctx`, default
    as for a `Session`).
    """
    most = rows_that_fit(model.n_vocab)
    with Scheduler(
        model, n_slots=1, n_ctx=n_ctx, n_batch=most, n_outputs=most, keep=1 << 31
    ) as scheduler:
        for index, (prompt, answer) in enumerate(items):
            if not prompt:
                raise BadInputError(f"text {index} has an empty prompt")
            check_fits(len(prompt) + len(answer) - 1, scheduler.n_ctx, f"text {index}")
            rows = np.empty((len(answer) + 1, model.n_embd), np.float32)

            def keep(context: Context, entry: int, place: int, rows: FloatArray = rows) -> None:
                rows[place] = context.hidden(entry)

            given = Given(answer, keep, hidden=True)
            for _ in scheduler.complete([Request(prompt, index=index, given=given)]):
                pass
            yield rows
