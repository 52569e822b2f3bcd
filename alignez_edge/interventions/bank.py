"""What a query-conditioned profile remembers of its pairs, small enough to travel in a file.

A bank holds, for the layers that may be edited, the states of the pairs and of their plain queries
as float16 with one scale per layer and kind: the residual streams of real models outgrow float16,
and scales that are powers of two round nothing more. NumPy in, NumPy out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray, HalfArray, IntArray
from alignez_edge.directions.hidden_states import POSITIONS, SIDES, HiddenStates, LayerStates
from alignez_edge.interventions.control_vector import check_layers

TENSORS = ("l_out", "ffn_out")
MOST_PAIRS = 4096
"""Far more than neighbors are worth having; what an untrusted file may cost in memory."""
_KINDS = tuple(f"{position}.{side}" for position in POSITIONS for side in SIDES)
_LARGEST, _SMALLEST = 2.0**20, 2.0**-40
"""Bounds of the scales: squares of what is stored then stay far inside float32."""


@dataclass(frozen=True, eq=False)
class Bank:
    """States of `n_pairs` pairs and of their queries at `tensor` in `layers`.

    `pairs` is float16 of shape `(layers, positions, sides, n_pairs, n_embd)`, in the order of
    `POSITIONS` and `SIDES`; times `pair_scales`, `(layers, positions, sides)` float32, it is in the
    model's units. `queries`, `(layers, n_pairs, n_embd)`, and `query_scales`, `(layers,)`, are the
    same of the state at the last token of the plain query's prompt. Raises `ValueError` on other
    shapes and types, numbers that are not finite, scales out of bounds and layers that are none.
    """

    layers: tuple[int, ...]
    tensor: str
    pairs: HalfArray
    pair_scales: FloatArray
    queries: HalfArray
    query_scales: FloatArray

    def __post_init__(self) -> None:
        if self.tensor not in TENSORS:
            raise ValueError(f"a bank of the tensor {self.tensor!r}, not of {' or '.join(TENSORS)}")
        if list(self.layers) != check_layers(self.layers, max(self.layers, default=0) + 1):
            raise ValueError(f"the layers of a bank must rise: {self.layers}")
        if self.queries.ndim != 3:
            raise ValueError(f"the queries have the shape {self.queries.shape}")
        n_layers, n_pairs, n_embd = self.queries.shape
        if not (n_layers == len(self.layers) and 0 < n_pairs <= MOST_PAIRS and n_embd):
            raise ValueError(f"{self.queries.shape} queries for {len(self.layers)} layers")
        cells = (n_layers, len(POSITIONS), len(SIDES))
        for name, shape, kind in (
            ("pairs", (*cells, n_pairs, n_embd), np.float16),
            ("pair_scales", cells, np.float32),
            ("queries", (n_layers, n_pairs, n_embd), np.float16),
            ("query_scales", (n_layers,), np.float32),
        ):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != kind:
                raise ValueError(f"the {name} of a bank are {array.dtype} {array.shape}")
            if not np.isfinite([array.min(), array.max()]).all():  # no array of truth values
                raise ValueError(f"the {name} of a bank hold numbers that are not finite")
        for scales in (self.pair_scales, self.query_scales):
            if not ((scales >= _SMALLEST) & (scales <= _LARGEST)).all():
                raise ValueError("a scale of a bank is out of bounds")

    @classmethod
    def from_states(
        cls,
        states: HiddenStates,
        rows: Sequence[int],
        queries: npt.NDArray[np.floating],
        layers: Sequence[int],
        tensor: str,
    ) -> Bank:
        """The bank of the pairs `rows` of `states`; one layer in memory at a time.

        `queries` is `(len(rows), n_layer, n_embd)`: the states at the last token of the plain
        prompt of each pair's query, read at `tensor` as the pairs' were. Raises `ValueError` on
        other shapes, on layers out of range and on numbers too large to be states.
        """
        n_layer, n_embd = states.shape
        chosen = tuple(check_layers(layers, n_layer))
        if queries.shape != (len(rows), n_layer, n_embd):
            raise ValueError(f"{queries.shape} is not {(len(rows), n_layer, n_embd)}")
        cells = (len(chosen), len(POSITIONS), len(SIDES))
        pairs = np.zeros((*cells, len(rows), n_embd), np.float16)
        pair_scales = np.zeros(cells, np.float32)
        own = np.zeros((len(chosen), len(rows), n_embd), np.float16)
        own_scales = np.zeros(len(chosen), np.float32)
        for i, layer in enumerate(chosen):
            for p, position in enumerate(POSITIONS):
                read = states.layer(layer, position, rows)
                for s, side in enumerate((read.chosen, read.rejected)):
                    pairs[i, p, s], pair_scales[i, p, s] = packed(side)
            own[i], own_scales[i] = packed(queries[:, layer])
        return cls(chosen, tensor, pairs, pair_scales, own, own_scales)

    @property
    def n_pairs(self) -> int:
        """How many pairs it holds."""
        return int(self.queries.shape[1])

    @property
    def n_embd(self) -> int:
        """The hidden size."""
        return int(self.queries.shape[2])

    def nearest(self, states: npt.NDArray[np.floating], k: int) -> IntArray:
        """The pairs of the `k` nearest queries (all, where there are fewer), the nearest first.

        `states` is the asking query's `(n_layer, n_embd)`, read as the bank's queries were. Near is
        a high cosine, meaned over the bank's layers, after the bank's mean query is subtracted: the
        last tokens of all prompts share a large mean. A query of the bank is its own neighbor.
        Raises `ValueError` for other states.
        """
        if k < 1:
            raise ValueError(f"{k} neighbors")
        query = self.of_layers(states) - self._mean_query
        cosines = np.matmul(self._unit_queries, _unit(query)[:, :, None])[:, :, 0]
        return np.argsort(-cosines.mean(axis=0), kind="stable")[:k]

    def of_layers(self, states: npt.NDArray[np.floating]) -> FloatArray:
        """The rows of `states`, `(n_layer, n_embd)`, that belong to the bank's layers."""
        if states.ndim != 2 or len(states) <= self.layers[-1] or states.shape[1] != self.n_embd:
            raise ValueError(f"states of shape {states.shape} for {self.n_embd} dimensions")
        return np.asarray(states[list(self.layers)], np.float32)

    def take(self, rows: IntArray, layers: Sequence[int] | None = None) -> FloatArray:
        """The states of the pairs `rows`: `(layers, positions, sides, len(rows), n_embd)`.

        `layers` must be among the bank's (default: all of them).
        """
        wanted = self.layers if layers is None else layers
        picked = np.array([self.layers.index(layer) for layer in wanted])
        # All axes at once: layer by layer, whole layers would be copied first.
        places = np.ix_(picked, np.arange(len(POSITIONS)), np.arange(len(SIDES)), rows)
        found = widened(self.pairs[places])
        found *= self.pair_scales[picked][..., None, None]
        return found

    def sides(self, rows: IntArray, position: str, layer: int) -> LayerStates:
        """The states of the pairs `rows` at one position of one layer."""
        chosen, rejected = self.take(rows, [layer])[0, POSITIONS.index(position)]
        return LayerStates(chosen, rejected)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the tensor's name as arrays of at most three axes, by name."""
        cells = self.pair_scales.reshape(len(self.layers), len(_KINDS))
        return {
            "layers": np.array(self.layers, np.int32),
            "scales": np.concatenate([cells, self.query_scales[:, None]], axis=1),
            "query": self.queries,
            **{
                kind: self.pairs[:, i // len(SIDES), i % len(SIDES)]
                for i, kind in enumerate(_KINDS)
            },
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], tensor: str) -> Bank:
        """What `to_arrays` gave; raises `ValueError` on anything else."""
        wanted = ("layers", "scales", "query", *_KINDS)
        missing = [name for name in wanted if name not in arrays]
        if missing:
            raise ValueError(f"a bank without {', '.join(missing)}")
        layers, scales = arrays["layers"], arrays["scales"]
        if layers.ndim != 1 or layers.dtype.kind not in "iu":
            raise ValueError(f"the layers of a bank are {layers.dtype} {layers.shape}")
        if scales.shape != (len(layers), len(_KINDS) + 1):
            raise ValueError(f"the scales of a bank have the shape {scales.shape}")
        kinds = [arrays[kind] for kind in _KINDS]
        if any(x.shape != arrays["query"].shape or x.ndim != 3 for x in kinds):
            raise ValueError("the parts of a bank have different shapes")
        cells = (len(layers), len(POSITIONS), len(SIDES))
        pairs = np.stack(kinds, axis=1).reshape(*cells, *arrays["query"].shape[1:])
        return cls(
            tuple(int(layer) for layer in layers),
            tensor,
            pairs,
            scales[:, :-1].reshape(cells),
            arrays["query"],
            scales[:, -1],
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything in it, in hexadecimal."""
        digest = hashlib.sha256(self.tensor.encode())
        for name, array in self.to_arrays().items():
            digest.update(f"\0{name}{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def _mean_query(self) -> FloatArray:
        """`(layers, n_embd)`, in the model's units."""
        means = self.queries.mean(axis=1, dtype=np.float32)
        return np.asarray(means * self.query_scales[:, None])

    @cached_property
    def _unit_queries(self) -> FloatArray:
        """`(layers, n_pairs, n_embd)`: centred, of unit length; kept, as each turn needs all."""
        rows = self.queries * self.query_scales[:, None, None]
        return _unit(rows - self._mean_query[:, None])


def widened(half: HalfArray) -> FloatArray:
    """`half` as float32, for finite numbers: a third of the time of NumPy's own conversion, which
    would be the largest part of a turn (`benchmarks/turn.py`).

    Shifted into place, a float16 is a float32 whose exponent lacks the difference of both biases.
    """
    bits = half.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= ~(0b111 << 28)  # copies of the sign
    numbers = bits.view(np.float32)
    numbers *= np.float32(2.0 ** (127 - 15))
    return numbers


def packed(rows: npt.NDArray[np.floating]) -> tuple[HalfArray, float]:
    """`rows` as float16 and the power of two that they were divided by."""
    largest = float(np.abs(rows).max(initial=0.0))
    if not largest < _LARGEST * 2**15:
        raise ValueError(f"a state of size {largest:g}")
    scale = 2.0 ** (np.ceil(np.log2(largest)) - 15) if largest else 1.0
    scale = min(max(scale, _SMALLEST), _LARGEST)
    return (rows / scale).astype(np.float16), scale


def _unit(rows: FloatArray) -> FloatArray:
    """Rows of unit length along the last axis; zero rows stay zero."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
