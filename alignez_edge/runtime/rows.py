"""Rows of a pass that get a vector of their own, and rows that are read.

The evaluation callback sees `l_out-<l>` of every layer, a row for each token of the pass, and may
change it before the graph goes on. A control vector added there is the same float32 addition that
llama.cpp's own control vector is in the graph, so every row of one batch can have its own steering,
equal to the bit, at any position and in any layer.

Facts of llama.cpp that this stands on: a pass is one micro-batch, whose rows are in the batch's
order (not so for recurrent models: see `scheduler.py`); the last layer holds only the rows whose
logits were asked for, after its attention, whose `kqv_out` still holds all. A layer's MLP output is
the first tensor of its name: while a control vector is in the graph, the second is the residual
stream before the vector.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.gguffile import GGUFFile
from alignez_edge.runtime.llama import ggml, is_on_host, tensor_shape, tensor_type
from alignez_edge.runtime.reference import mlp_output
from alignez_edge.runtime.types import FloatArray, TensorName

_F32 = 0


@dataclass(frozen=True)
class RowPlan:
    """What happens to the rows of one pass.

    `adds` are rows with the vectors `(n_layer, n_embd)` that they get in `l_out`. `reads` are, by
    tensor, the rows that are read and the layers in which; what is read of `l_out` is the state
    after the addition. `ends`: nobody wants the logits of this pass, so the graph ends with the
    last tensor that is read.
    """

    adds: Sequence[tuple[int, FloatArray]] = ()
    reads: Mapping[TensorName, tuple[Sequence[int], Collection[int]]] = field(default_factory=dict)
    ends: bool = False


class RowTap:
    """The tap of a context that does what a `RowPlan` says.

    `states` is what the last pass gave; `on_device`, whether some tensor was not in host memory.
    """

    def __init__(self, gguf: GGUFFile, n_layer: int, n_embd: int) -> None:
        self._gguf, self._n_layer, self._n_embd = gguf, n_layer, n_embd
        self._names: dict[TensorName, list[bytes]] = {}
        self._stack = _Stack()
        self._wanted: dict[bytes, tuple[TensorName, int]] = {}
        self._plan = RowPlan()
        self.states: dict[TensorName, FloatArray] = {}
        self.on_device = False

    @property
    def active(self) -> bool:
        """Whether some tensor of the pass has yet to come by."""
        return bool(self._wanted)

    def start(self, plan: RowPlan, wants_logits: Sequence[bool]) -> None:
        """A pass begins. `wants_logits` says of each of its rows whether it has logits."""
        self._plan, self._n_tokens = plan, len(wants_logits)
        self._outputs = np.cumsum(wants_logits) - 1
        self._n_outputs = int(self._outputs[-1]) + 1 if len(wants_logits) else 0
        self._added: npt.NDArray[np.int64] = np.array([row for row, _ in plan.adds], np.int64)
        self._stack.set([vectors for _, vectors in plan.adds])
        self._read = {
            kind: np.array(rows, np.int64) for kind, (rows, _) in plan.reads.items() if len(rows)
        }
        self._wanted = {self._name("l_out", layer): ("l_out", layer) for layer in self._stack.rows}
        for kind in self._read:
            for layer in plan.reads[kind][1]:
                self._wanted[self._name(kind, layer)] = (kind, layer)
        self.states = {}

    def finish(self) -> None:
        """A pass has ended. Raises `BadInputError` where a tensor did not come by."""
        missing, self._wanted = self._wanted, {}
        if missing:
            name = min(missing).decode()
            raise BadInputError(
                f"this model's architecture has no tensor {name} in llama.cpp",
                "what reads or steers its layers cannot be had with it",
            )

    def wants(self, name: bytes) -> bool:
        return name in self._wanted

    def read(self, name: bytes, tensor: int) -> bool:
        kind, layer = self._wanted.pop(name)
        rows = _TensorRows(tensor, name)
        self.on_device = self.on_device or not rows.on_host
        if kind == "l_out" and layer in self._stack.rows:
            if rows.n_dims != self._n_embd:
                raise rows.odd()
            rows.add(self._at(rows, self._added), self._stack.rows[layer])
        if kind in self._read and layer in self._plan.reads[kind][1]:
            if kind not in self.states:
                shape = len(self._read[kind]), self._n_layer, rows.n_dims
                self.states[kind] = np.zeros(shape, np.float32)
            self.states[kind][:, layer] = rows.take(self._at(rows, self._read[kind]))
        return bool(self._wanted) or not self._plan.ends

    def _name(self, kind: TensorName, layer: int) -> bytes:
        """The name of a layer's tensor in the graph."""
        if kind not in self._names:
            self._names[kind] = [
                (mlp_output(self._gguf, at) if kind == "ffn_out" else f"{kind}-{at}").encode()
                for at in range(self._n_layer)
            ]
        return self._names[kind][layer]

    def _at(self, rows: _TensorRows, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where rows of the pass are in a tensor that may hold only those with logits."""
        if rows.n_rows == self._n_tokens:
            return wanted
        if rows.n_rows == self._n_outputs:
            return self._outputs[wanted]
        raise rows.odd()


class _Stack:
    """The vectors of the added rows by layer, made anew only where they are other ones."""

    def __init__(self) -> None:
        self._vectors: list[FloatArray] = []
        self.rows: dict[int, FloatArray] = {}

    def set(self, vectors: list[FloatArray]) -> None:
        if len(vectors) == len(self._vectors) and all(map(_same, vectors, self._vectors)):
            return
        self._vectors, self.rows = [], {}
        if vectors:
            stacked = np.stack(vectors)
            steered = np.flatnonzero(stacked.any(axis=(0, 2))).tolist()
            self.rows = {layer: stacked[:, layer] for layer in steered}
            self._vectors = vectors


def _same(a: object, b: object) -> bool:
    return a is b


class _TensorRows:
    """The rows of a computed `ggml_tensor *` of floats, in host memory or on a device."""

    def __init__(self, tensor: int, name: bytes) -> None:
        self._tensor, self._name = tensor, name
        self.n_dims, self.n_rows, *others = tensor_shape(tensor)
        if others != [1, 1] or tensor_type(tensor) != _F32:
            raise self.odd()
        self._view: FloatArray | None = None
        self.on_host = is_on_host(tensor)
        if self.on_host:
            kind = ctypes.c_float * (self.n_dims * self.n_rows)
            flat = np.ctypeslib.as_array(kind.from_address(ggml.get_data(tensor)))
            self._view = flat.reshape(self.n_rows, self.n_dims)

    def odd(self) -> RuntimeFailure:
        """The error for a shape that was not expected."""
        return RuntimeFailure(f"{self._name.decode()} has the shape {tensor_shape(self._tensor)}")

    def take(self, at: npt.NDArray[np.int64]) -> FloatArray:
        """Copies of the rows `at`."""
        if self._view is not None:
            return self._view[at]
        rows = np.empty((len(at), self.n_dims), np.float32)
        size = rows[0].nbytes
        for row, place in zip(rows, at, strict=True):
            ggml.tensor_get(self._tensor, row.ctypes.data, int(place) * size, size)
        return rows

    def add(self, at: npt.NDArray[np.int64], vectors: FloatArray) -> None:
        """Add a vector to each of the rows `at`."""
        if self._view is not None:
            if at[-1] - at[0] + 1 == len(at):  # neighbours: no copy
                self._view[at[0] : at[-1] + 1] += vectors
            else:
                self._view[at] += vectors
            return
        rows = self.take(at) + vectors
        size = rows[0].nbytes
        for row, place in zip(rows, at, strict=True):
            ggml.tensor_set(self._tensor, row.ctypes.data, int(place) * size, size)
