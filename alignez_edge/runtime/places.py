"""Where llama.cpp's graph keeps a control vector, so that it can be changed without a new graph.

llama.cpp makes its graph anew when it is told of a control vector (2 to 10 ms). The tensors that
hold the vectors stay the same for the life of a context, so they are found once and then written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.runtime.llama import (
    ggml,
    is_on_host,
    operand,
    tensor_buffer,
    tensor_head,
    tensor_shape,
    tensor_type,
)

_F32 = 0


class VectorPlaces:
    """The tensors of one context that hold the control vector of each layer, once `known`.

    With a control vector set, the node `l_out-<l>` is an addition whose second operand is layer
    `l`'s vector. An operand is taken for that only if it holds what llama.cpp was told, and lies in
    the same buffer as one that is not zero. Where that is not so, nothing is ever known.
    """

    def __init__(self, n_layer: int, n_embd: int) -> None:
        self._shape = n_layer, n_embd
        self._names = {f"l_out-{layer}".encode(): layer for layer in range(1, n_layer)}
        self._told: FloatArray | None = None
        self._seen: dict[int, tuple[int, int | None]] = {}
        self._tensors: dict[int, int] = {}
        self._steered: set[int] = set()
        self._view: FloatArray | None = None
        self._tried = False

    @property
    def known(self) -> bool:
        """Whether `write` can be called."""
        return bool(self._tensors)

    @property
    def sought(self) -> bool:
        """Whether the nodes of the next pass are to be looked at."""
        return self._told is not None

    def look_for(self, told: FloatArray | None) -> None:
        """Look, in the next pass, for what llama.cpp was told; None: for nothing."""
        self._told, self._seen = (None if self._tried else told), {}

    def look_at(self, name: bytes, tensor: int) -> None:
        """See whether a node adds a layer's vector."""
        layer = self._names.get(name)
        if layer is None or self._told is None:
            return
        vector, n_embd = operand(tensor, 1), self._shape[1]
        if not vector or tensor_type(vector) != _F32 or tensor_shape(vector) != (n_embd, 1, 1, 1):
            return
        held = np.empty(n_embd, np.float32)
        ggml.tensor_get(vector, held.ctypes.data, 0, held.nbytes)
        if np.array_equal(held, self._told[layer]):
            self._seen[layer] = vector, tensor_buffer(vector)

    def finish(self) -> None:
        """The pass that was looked at has ended."""
        if self._told is None:
            return
        told, self._told, self._tried = self._told, None, True
        sure = {buffer for layer, (_, buffer) in self._seen.items() if told[layer].any()}
        if len(self._seen) == len(self._names) and all(b in sure for _, b in self._seen.values()):
            tensors = {layer: tensor for layer, (tensor, _) in self._seen.items()}
            self._steered = set(tensors)
            self._view = _view([tensors[layer] for layer in sorted(tensors)])
            self._tensors = tensors  # last: from here on they are known

    def write(self, vectors: FloatArray | None) -> None:
        """Let the graph add `vectors`, `(n_layer, n_embd)`; None: zeros."""
        if self._view is not None:
            self._view[:] = 0 if vectors is None else vectors[1:]
            return
        rows = np.zeros(self._shape, np.float32) if vectors is None else vectors
        rows = np.ascontiguousarray(rows, np.float32)
        begin, size = rows.ctypes.data, rows[0].nbytes
        steered = set(np.flatnonzero(rows.any(axis=1)).tolist())
        # Of an interrupted call nobody knows how far it came.
        before, self._steered = self._steered, set(self._tensors)
        for layer in before | steered:
            ggml.tensor_set(self._tensors[layer], begin + layer * size, 0, size)
        self._steered = steered


def _view(tensors: Sequence[int]) -> FloatArray | None:
    """The float32 vectors of tensors of one size as one array, `(n_tensors, n_embd)`; None where
    they are not in host memory at equal distances, in this order."""
    heads = [tensor_head(tensor) for tensor in tensors]
    distances = {b.data - a.data for a, b in pairwise(heads)} or {4 * heads[0].ne[0]}
    distance, n_embd = min(distances), heads[0].ne[0]
    if len(distances) > 1 or distance < 4 * n_embd or not all(map(is_on_host, tensors)):
        return None
    size = (len(heads) - 1) * distance + 4 * n_embd
    memory = (ctypes.c_char * size).from_address(heads[0].data)
    return np.ndarray(
        (len(heads), n_embd), np.float32, memoryview(memory).cast("B"), strides=(distance, 4)
    )
