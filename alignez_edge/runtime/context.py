"""One llama.cpp context: its KV cache, its injection and its reading of hidden states.

Two ways lead to a control vector. `set_control_vector` puts one for all rows into llama.cpp's
graph; the rows of a pass get vectors of their own through the evaluation callback (`rows.py`). Both
are the same addition. The first costs a token nothing, so it is taken where all rows want the same.

Invariants:

- Cells of the cache are computed under whatever injection is set at that moment. `Context` does
  not remember which; whoever injects also removes (see `scheduler.py`).
- `set_control_vector` and `set_adapters` talk to llama.cpp only when something changes, and never
  for a context that has only ever seen nothing: such a context is the base model to the bit.
- llama.cpp makes its graph anew when it is told of a control vector, which takes milliseconds. So
  it is told once; the pass after that shows where its graph keeps the vectors, and from then on
  they are written there. Nothing is zeros.
- The adapters that the model carries are always set, under whatever edits are added: a plain pass
  is one of the tuned model.
- What llama.cpp has set is unknown (`_UNKNOWN`, None) while it is being told: an interrupt that
  falls into the call leaves it so, and whoever sets something next, or nothing, says it anew.
- Adapters are set in the order in which they were loaded, so the order of terms is irrelevant.
- A prompt is read in steps of at most `n_batch` tokens, so Ctrl-C is answered between steps.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.runtime.callback import Tap, evaluation_callback
from alignez_edge.runtime.injection import Editor, Edits, LogitEdits
from alignez_edge.runtime.llama import HeedingInterrupts, clear_log, cpp, last_error
from alignez_edge.runtime.places import VectorPlaces
from alignez_edge.runtime.reference import Reference
from alignez_edge.runtime.rows import RowPlan, RowTap
from alignez_edge.runtime.team import Team
from alignez_edge.runtime.weights import Adapter
from alignez_edge.runtime.window import window

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

_UNKNOWN = np.full((1, 1), np.nan, np.float32)
"""In place of the vectors that are set; equal to nothing."""


class Context:
    """Owns one `llama_context`; a context manager, closed at the latest when it is collected.

    `n_ctx` counts tokens: of the one sequence, or of all `n_seq` sequences together, which then
    share the cells of one cache. At most `n_outputs` of the at most `n_batch` tokens of one
    `decode` may ask for logits (default: all; fewer take less memory). `capture` reads the graph of
    every pass. Raises `BadInputError` for a window beyond what the model was trained on,
    `RuntimeFailure` where llama.cpp refuses.
    """

    def __init__(
        self,
        model: Weights,
        *,
        n_ctx: int | None = None,
        n_seq: int = 1,
        n_batch: int = 512,
        n_outputs: int | None = None,
        capture: Tap | None = None,
    ) -> None:
        self.model = model
        self.n_ctx = window(model, n_ctx) if n_seq == 1 or n_ctx is None else n_ctx
        self.n_batch = max(min(n_batch, self.n_ctx), n_seq)
        self.recurrent = bool(
            cpp.llama_model_is_recurrent(model.handle) or cpp.llama_model_is_hybrid(model.handle)
        )
        self._injected: FloatArray | None = None
        self._adapters: tuple[tuple[Adapter, float], ...] | None = ()
        self._referred: tuple[tuple[Adapter, float], ...] = ()
        self._embeddings: bool | None = False
        self._places = VectorPlaces(model.n_layer, model.n_embd)
        self._reference = Reference(model.gguf, model.n_layer, model.n_embd)
        self._rows = RowTap(model.gguf, model.n_layer, model.n_embd)
        self._errors: list[BaseException] = []
        self.team = Team(model.threads)
        self.busy = self._closing = False
        self._callback = evaluation_callback(
            [capture] if capture is not None else [],
            self._reference,
            self._rows,
            self._places,
            self._errors,
        )

        params = cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        # One micro-batch per batch: a row of a captured tensor is then a token of the batch.
        params.n_batch = params.n_ubatch = self.n_batch
        # llama.cpp aborts where this is less than the number of sequences.
        params.n_outputs_max = max(min(n_outputs or self.n_batch, self.n_batch), n_seq)
        params.n_seq_max = n_seq
        params.kv_unified = n_seq > 1
        # `hidden` gives each token's own state, whatever the file says of pooling.
        params.pooling_type = cpp.LLAMA_POOLING_TYPE_NONE
        # Sliding-window models keep all cells, so that any suffix can be removed again.
        params.swa_full = True
        params.n_threads = params.n_threads_batch = model.threads
        params.no_perf = True
        params.cb_eval = self._callback
        clear_log()
        lease = model.lease()
        with HeedingInterrupts():
            handle = cpp.llama_init_from_model(model.handle, params)
            if not handle:
                model.release(lease)
                raise RuntimeFailure(
                    f"llama.cpp could not make a context of {self.n_ctx} tokens: {last_error()}",
                    "try a smaller context (--ctx)",
                )
            # The model is an argument so that it outlives the context.
            self._free = weakref.finalize(self, _free, handle, model, lease)
        self._handle = handle
        model.contexts.add(self)

        self._tokens = np.zeros(self.n_batch, np.int32)
        self._positions = np.zeros(self.n_batch, np.int32)
        self._sequences = np.zeros(self.n_batch, np.int32)
        self._outputs = np.zeros(self.n_batch, np.int8)
        self._n_sequences = np.ones(self.n_batch, np.int32)
        rows = np.arange(self.n_batch, dtype=np.uintp)
        self._sequence_of = self._sequences.ctypes.data + 4 * rows
        self._batch = cpp.llama_batch(
            token=_pointer(self._tokens, ctypes.c_int32),
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._n_sequences, ctypes.c_int32),
            seq_id=_pointer(self._sequence_of, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )
        self.set_adapters(())

    @property
    def handle(self) -> Any:
        """The `llama_context *`; raises `RuntimeFailure` once it, or its model, is closed."""
        return self._handle if self._free.alive else self.check_open()

    @property
    def closed(self) -> bool:
        """Whether nothing can be computed any more."""
        return not self._free.alive

    def check_open(self) -> None:
        """Raise `RuntimeFailure` where this is closed, or is to be at the end of what is `busy`."""
        if self.closed or self._closing:
            raise RuntimeFailure("the model was closed, or this context of it", "load it again")

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        want_logits: Sequence[bool],
        plan: RowPlan = RowPlan(),
    ) -> None:
        """Compute up to `n_batch` tokens under the present injection, adding them to the cache.

        `plan` says which of these rows get vectors of their own and which are read; all of them
        must ask for logits. Raises `RuntimeFailure` if llama.cpp fails, and `BadInputError`
        where a tensor of the plan does not come by; the cache may then hold a part of them.
        """
        outer = self.busy
        try:
            self.busy = True
            if not outer:
                self.check_open()
            self._decode(tokens, positions, sequences, want_logits, plan)
        finally:
            self.busy = outer
            if not outer:
                self.settle()

    def _decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        want_logits: Sequence[bool],
        plan: RowPlan,
    ) -> None:
        n = len(tokens)
        if n > self.n_batch:
            raise ValueError(f"{n} tokens in a batch of {self.n_batch}")
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._sequences[:n] = sequences
        self._outputs[:n] = want_logits
        self._batch.n_tokens = n
        clear_log()
        self._reference.start()
        self._rows.start(plan, [True] * n if self._embeddings else want_logits)
        with HeedingInterrupts():
            status = cpp.llama_decode(self.handle, self._batch)
        if self._errors:
            raise self._errors.pop()
        if status:
            reason = "no room in the KV cache" if status == 1 else last_error() or "no reason given"
            raise RuntimeFailure(f"llama.cpp could not decode {n} tokens ({status}): {reason}")
        self._places.finish()
        self._reference.finish()
        self._rows.finish()

    @property
    def states(self) -> Mapping[TensorName, FloatArray]:
        """What the last pass gave of the rows that its plan read, `(n_rows, n_layer, n_dims)`,
        zeros in the layers that nobody asked for."""
        return self._rows.states

    @property
    def rows_on_device(self) -> bool:
        """Whether some tensor of a plan was not in host memory, and had to travel."""
        return self._rows.on_device

    def prefill(self, tokens: Sequence[int], start: int = 0, sequence: int = 0) -> None:
        """Compute any number of tokens from position `start` on, without logits."""
        for begin in range(0, len(tokens), self.n_batch):
            step = tokens[begin : begin + self.n_batch]
            first = start + begin
            n = len(step)
            self.decode(step, range(first, first + n), [sequence] * n, [False] * n)

    def logits(self, index: int) -> FloatArray:
        """The `(n_vocab,)` logits of batch entry `index`: a view, valid until the next decode."""
        pointer = cpp.llama_get_logits_ith(self.handle, index)
        if not pointer:
            raise RuntimeFailure(f"llama.cpp has no logits for entry {index} of the batch")
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def set_embeddings(self, on: bool) -> None:
        """Let all passes from now on keep `hidden` states, or no longer; as yet they do not.

        While they do, llama.cpp computes logits for every token of a pass, asked for or not.
        """
        if on != self._embeddings:
            self._embeddings = None
            cpp.llama_set_embeddings(self.handle, on)
            self._embeddings = on

    def hidden(self, index: int) -> FloatArray:
        """The `(n_embd,)` state after the final norm of batch entry `index`: a view, valid until
        the next decode. Only while `set_embeddings` is on."""
        pointer = cpp.llama_get_embeddings_ith(self.handle, index)
        if not pointer:
            raise RuntimeFailure(f"llama.cpp has no hidden state for entry {index} of the batch")
        return np.ctypeslib.as_array(pointer, (self.model.n_embd,))

    def edit_logits(self, index: int, edits: LogitEdits) -> None:
        """Change the logits of batch entry `index` in place: once each. Needs `set_embeddings`."""
        if edits:
            hidden, logits = self.hidden(index), self.logits(index)
            changes = [(editor.change(hidden, logits), s) for editor, s in edits if s]
            for (tokens, amounts), strength in changes:
                logits[tokens] += np.float32(strength) * amounts

    def set_control_vector(self, vectors: FloatArray | None) -> None:
        """Add `vectors[l]` to `l_out-l` in every row of every pass from now on; None or zeros: add
        nothing.

        `vectors` is `(n_layer, n_embd)` with a zero row 0. The first one costs a graph reserve at
        the next decode, later ones the writing of the vectors, and what is set already nothing.
        """
        if vectors is not None:
            if vectors is self._injected:  # a token's usual case
                return
            n_layer, n_embd = self.model.n_layer, self.model.n_embd
            if vectors.shape != (n_layer, n_embd):
                raise ValueError(f"{vectors.shape} is not ({n_layer}, {n_embd})")
            if vectors[0].any():
                raise BadInputError(
                    "llama.cpp's own control vector cannot edit layer 0",
                    "leave layer 0 out on this model or device",
                )
            if not vectors.any():
                vectors = None
        before = self._injected
        if vectors is before:
            return
        self._injected = _UNKNOWN
        if self.handle and self._places.known:  # not into memory that was freed
            self._places.write(vectors)
        elif vectors is None or before is None or not np.array_equal(before, vectors):
            self._tell(vectors)
        self._injected = vectors

    def _tell(self, vectors: FloatArray | None) -> None:
        """Have llama.cpp set a control vector; all layers every time, as a shorter one would leave
        the upper layers' in place."""
        if vectors is None:
            status = cpp.llama_set_adapter_cvec(self.handle, None, 0, 0, 0, 0)
        else:
            data = np.ascontiguousarray(vectors[1:], np.float32)
            status = cpp.llama_set_adapter_cvec(
                self.handle,
                data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                data.size,
                self.model.n_embd,
                1,
                self.model.n_layer - 1,
            )
        if status:
            raise RuntimeFailure(f"llama.cpp refused a control vector ({status}): {last_error()}")
        self._places.look_for(vectors)

    def set_adapters(self, edits: Edits) -> None:
        """Apply `edits` in every pass from now on; none, or strengths of 0: only what the model
        carries.

        Strengths of one adapter add up. Costs a graph reserve at the next decode where something
        changes, nothing where not. An `Editor` edits the MLP's outputs in the callback. Raises
        `ValueError` for an adapter of another model.
        """
        scales: dict[Adapter, float] = dict(self.model.adapters)
        editors: list[tuple[Editor, float]] = []
        for edit, strength in edits:
            if isinstance(edit, Adapter):
                scales[edit] = scales.get(edit, 0.0) + strength
            elif strength:
                editors.append((edit, strength))
        if any(adapter.model is not self.model for adapter in scales):
            raise ValueError("an adapter of another model")
        self._reference.editors = tuple(editors)
        wanted = tuple((a, s) for a, s in sorted(scales.items(), key=lambda x: x[0].serial) if s)
        if wanted == self._adapters:
            return
        # Adapters must outlive llama.cpp's reference to them: until it is sure that those that were
        # set until now are set no longer, both are kept.
        self._adapters, self._referred = None, (*self._referred, *wanted)
        n = len(wanted)
        handles: Any = (cpp.llama_adapter_lora_p_ctypes * n)(*(a.handle for a, _ in wanted))
        status = cpp.llama_set_adapters_lora(
            self.handle,
            handles,
            n,
            (ctypes.c_float * n)(*(strength for _, strength in wanted)),
        )
        if status:
            raise RuntimeFailure(f"llama.cpp refused an adapter ({status}): {last_error()}")
        self._adapters = self._referred = wanted

    def remove(self, sequence: int, p0: int = 0, p1: int = -1) -> bool:
        """Drop the cells of a sequence at positions `[p0, p1)`; -1 is the end.

        False where the model keeps a running state that cannot be cut: clear it and start anew. Of
        a closed context nothing is left anyway.
        """
        return self.closed or bool(
            cpp.llama_memory_seq_rm(cpp.llama_get_memory(self.handle), sequence, p0, p1)
        )

    def share(self, source: int, target: int, p0: int, p1: int) -> None:
        """Let `target` have the cells of `source` at `[p0, p1)` too, without copying them.

        Not for recurrent models, whose one state cannot be shared in part.
        """
        cpp.llama_memory_seq_cp(cpp.llama_get_memory(self.handle), source, target, p0, p1)

    def clear(self, wipe: bool = False) -> None:
        """Forget all sequences; with `wipe`, also what stands in their cells."""
        cpp.llama_memory_clear(cpp.llama_get_memory(self.handle), wipe)

    def close(self) -> None:
        """Free the context; a second call does nothing. While it is `busy`, as seen from a signal
        handler, a callback or another thread, it is freed at the end of that instead."""
        self._closing = True
        if not self.busy:
            self.settle()

    def settle(self) -> None:
        """Nothing is `busy` any more: free the context if that was asked for meanwhile."""
        if self._closing:
            self.team.rest()
            self._free()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pointer(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def _free(handle: Any, model: Weights, lease: object) -> None:
    try:
        with HeedingInterrupts():
            cpp.llama_free(handle)
    finally:
        model.release(lease)
