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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.runtime.llama import TensorHead, ggml, is_on_host, tensor_head
from alignez_edge.runtime.reference import mlp_output

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

    `wanted` are the names of the tensors that have yet to come by in a pass, `states` is what the
    last one gave; `on_device`, whether some tensor was not in host memory.
    """

    def __init__(self, gguf: GGUFFile, n_layer: int, n_embd: int) -> None:
        self._gguf, self._n_layer, self._n_embd = gguf, n_layer, n_embd
        self._names: dict[TensorName, list[bytes]] = {}
        self._stack = _Stack()
        self._views = _Views()
        self._rooms: dict[TensorName, FloatArray] = {}
        self.wanted: dict[bytes, tuple[TensorName, int]] = {}
        self._plan = RowPlan()
        self.states: dict[TensorName, FloatArray] = {}
        self.on_device = False

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
        self.wanted = {self._name("l_out", layer): ("l_out", layer) for layer in self._stack.rows}
        for kind in self._read:
            for layer in plan.reads[kind][1]:
                self.wanted[self._name(kind, layer)] = (kind, layer)
        self.states = {}

    def finish(self) -> None:
        """A pass has ended. Raises `BadInputError` if a tensor did not come by."""
        missing, self.wanted = self.wanted, {}
        if missing:
            name = min(missing).decode()
            raise BadInputError(
                f"this model's architecture has no tensor {name} in llama.cpp",
                "what reads or steers its layers cannot be had with it",
            )

    def wants(self, name: bytes) -> bool:
        return name in self.wanted

    def read(self, name: bytes, tensor: int) -> bool:
        kind, layer = self.wanted.pop(name)
        rows = self._views.of(tensor, name)
        self.on_device = self.on_device or rows.view is None
        if kind == "l_out" and layer in self._stack.rows:
            if rows.n_dims != self._n_embd:
                raise _odd(name, rows.head)
            rows.add(self._at(rows, self._added), self._stack.rows[layer])
        if kind in self._read and layer in self._plan.reads[kind][1]:
            if kind not in self.states:
                self.states[kind] = self._room(kind, len(self._read[kind]), rows.n_dims)
            self.states[kind][:, layer] = rows.take(self._at(rows, self._read[kind]))
        return bool(self.wanted) or not self._plan.ends

    def _room(self, kind: TensorName, n_rows: int, n_dims: int) -> FloatArray:
        """An array for the states of a tensor: by layer in memory, where all layers are read the
        one of the last pass."""
        shape = self._n_layer, n_rows, n_dims
        room = self._rooms.get(kind)
        if room is None or room.shape != shape:
            room = self._rooms[kind] = np.zeros(shape, np.float32)
        elif len(self._plan.reads[kind][1]) < self._n_layer:
            room[:] = 0
        return room.swapaxes(0, 1)

    def _name(self, kind: TensorName, layer: int) -> bytes:
        """The name of a layer's tensor in the graph."""
        if not 0 <= layer < self._n_layer:
            raise BadInputError(f"layer {layer} of a model of {self._n_layer} layers")
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
        raise _odd(rows.name, rows.head)


class _Stack:
    """The vectors of the added rows by layer, made anew only where they are other ones."""

    def __init__(self) -> None:
        self._vectors: list[FloatArray] = []
        self.rows: dict[int, FloatArray] = {}

    def set(self, vectors: list[FloatArray]) -> None:
        if len(vectors) == len(self._vectors) and all(map(_same, vectors, self._vectors)):
            return
        rows = {}
        if vectors:
            stacked = np.stack(vectors)
            steered = np.flatnonzero(stacked.any(axis=(0, 2))).tolist()
            rows = {layer: np.ascontiguousarray(stacked[:, layer]) for layer in steered}
        self._vectors, self.rows = vectors, rows  # together, whatever interrupt there is


def _same(a: object, b: object) -> bool:
    return a is b


class _Views:
    """The rows of computed tensors as arrays on llama.cpp's own memory.

    Between two layers llama.cpp reads the weights of one, so whatever Python touches here comes
    from main memory. Arrays are therefore kept by tensor, for as long as its head says the same.
    """

    _MOST = 4096

    def __init__(self) -> None:
        self._known: dict[int, tuple[TensorHead, FloatArray | None]] = {}

    def of(self, tensor: int, name: bytes) -> _TensorRows:
        """The rows of a `ggml_tensor *` of floats, in host memory or on a device."""
        head = tensor_head(tensor)
        known = self._known.get(tensor)
        if known is None or known[0] != head:
            if head.type != _F32 or head.ne[2:] != (1, 1):
                raise _odd(name, head)
            if len(self._known) >= self._MOST:
                self._known.clear()
            known = self._known[tensor] = head, _view(tensor, head)
        return _TensorRows(tensor, name, head, known[1])


def _view(tensor: int, head: TensorHead) -> FloatArray | None:
    if not is_on_host(tensor):
        return None
    n_dims, n_rows = head.ne[:2]
    memory: Any = (ctypes.c_float * (n_dims * n_rows)).from_address(head.data)
    return np.frombuffer(memory, np.float32).reshape(n_rows, n_dims)


class _TensorRows(NamedTuple):
    """The rows of one computed tensor; `view` is None where they are on a device."""

    tensor: int
    name: bytes
    head: TensorHead
    view: FloatArray | None

    @property
    def n_dims(self) -> int:
        return self.head.ne[0]

    @property
    def n_rows(self) -> int:
        return self.head.ne[1]

    def take(self, at: npt.NDArray[np.int64]) -> FloatArray:
        """The rows `at`, to be copied at once."""
        if self.view is not None:
            return self.view[_slice(at)]
        rows = np.empty((len(at), self.n_dims), np.float32)
        size = rows[0].nbytes
        for row, place in zip(rows, at, strict=True):
            ggml.tensor_get(self.tensor, row.ctypes.data, int(place) * size, size)
        return rows

    def add(self, at: npt.NDArray[np.int64], vectors: FloatArray) -> None:
        """Add a vector to each of the rows `at`."""
        if self.view is not None:
            self.view[_slice(at)] += vectors
            return
        rows = self.take(at) + vectors
        size = rows[0].nbytes
        for row, place in zip(rows, at, strict=True):
            ggml.tensor_set(self.tensor, row.ctypes.data, int(place) * size, size)


def _odd(name: bytes, head: TensorHead) -> RuntimeFailure:
    return RuntimeFailure(f"{name.decode()} has the shape {head.ne}")


def _slice(at: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """Rising numbers as what NumPy indexes fastest with."""
    first, last = int(at[0]), int(at[-1])
    return slice(first, last + 1) if last - first + 1 == len(at) else at
