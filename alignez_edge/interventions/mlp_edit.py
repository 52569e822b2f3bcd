"""Edits of the MLP's output as values with arithmetic: NumPy in, NumPy out.

An edit of one layer is a low-rank affine map of its MLP's output `x`, before that is added to the
residual stream: `x <- x + s (U V x + c)`. Strength `s` 0 is the base model, 1 the edit as it
was made. Edits form a vector space: `a * 0.8 + b * -0.3` is an edit again, and the order of the
terms is irrelevant (to rounding). Every direction that is given is normalized, so its length and
the sign of a singular vector change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """`x <- x + s (outward @ inward @ x + constant)` for one layer.

    `outward` is `(n_embd, rank)`, `inward` `(rank, n_embd)`, `constant` `(n_embd,)`; float32,
    read-only copies, in the units of the MLP's output. Rank 0 is allowed. Raises `ValueError` on
    other shapes and on numbers that are not finite.
    """

    outward: FloatArray
    inward: FloatArray
    constant: FloatArray

    def __post_init__(self) -> None:
        for name in ("outward", "inward", "constant"):
            array = np.array(getattr(self, name), dtype=np.float32, order="C")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        shapes = (self.outward.shape, self.inward.shape, self.constant.shape)
        if self.outward.ndim != 2 or shapes[1:] != (shapes[0][::-1], shapes[0][:1]):
            raise ValueError(f"shapes do not fit each other: {shapes}")

    @staticmethod
    def swap(help_direction: npt.ArrayLike, harm_direction: npt.ArrayLike) -> LayerEdit:
        """Version 1 of the method: remove the harm component, then double the help component.

        `x <- x - <x,d> d`, then `x <- x + <x,h> h`, for the unit vectors `h`, `d` of shape
        `(n_embd,)`: the rank-2 map `-d d' + h (h - <h,d> d)'`.
        """
        h, d = _unit_rows(np.stack([_vector(help_direction), _vector(harm_direction)]))
        return _made(np.stack([-d, h], axis=1), np.stack([d, h - (h @ d) * d]), np.zeros(len(h)))

    @staticmethod
    def amplify(directions: npt.ArrayLike) -> LayerEdit:
        """Version 2, without an activation: `x <- x + sum of <x,t> t` over the unit rows `t` of
        `(k, n_embd)`."""
        rows = _unit_rows(directions)
        return _made(rows.T, rows, np.zeros(rows.shape[1]))

    @staticmethod
    def move(directions: npt.ArrayLike, targets: npt.ArrayLike) -> LayerEdit:
        """Affine: `x <- x + (m - <x,t>) t` moves the coordinate along each direction to `m`.

        `directions` is `(k, n_embd)`, `targets` `(k,)`: coordinates along the unit rows, in the
        MLP output's units, with the sign of the direction as given. For rows that are orthogonal,
        strength 1 puts the coordinates exactly there.
        """
        rows = _unit_rows(directions)
        means = np.asarray(targets, np.float64)
        if means.shape != rows.shape[:1]:
            raise ValueError(f"{means.shape} targets for {len(rows)} directions")
        return _made(rows.T, -rows, means @ rows)

    @property
    def rank(self) -> int:
        """Columns of `outward`; sums have the sum of their terms' ranks."""
        return int(self.outward.shape[1])

    @property
    def n_embd(self) -> int:
        """The hidden size."""
        return int(self.outward.shape[0])

    def change(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """What strength 1 adds to the rows of `x`, `(..., n_embd)`, in their precision."""
        return np.asarray(x @ self.inward.T @ self.outward.T + self.constant, x.dtype)

    def is_zero(self) -> bool:
        """Whether it changes nothing."""
        return not self.constant.any() and not (self.outward.any() and self.inward.any())

    def __mul__(self, strength: float) -> LayerEdit:
        scale = np.float32(strength)
        return LayerEdit(self.outward * scale, self.inward, self.constant * scale)

    __rmul__ = __mul__

    def __neg__(self) -> LayerEdit:
        return self * -1.0

    def __add__(self, other: LayerEdit) -> LayerEdit:
        """The edit whose change is the sum of both."""
        return LayerEdit(
            np.concatenate([self.outward, other.outward], axis=1),
            np.concatenate([self.inward, other.inward]),
            self.constant + other.constant,
        )

    def __sub__(self, other: LayerEdit) -> LayerEdit:
        return self + -other


@dataclass(frozen=True, eq=False)
class Edit:
    """Edits of some layers of one model, by layer number (0 is the first).

    Raises `ValueError` if the layers' sizes differ or a number is negative.
    """

    layers: Mapping[int, LayerEdit]

    def __post_init__(self) -> None:
        layers = {layer: self.layers[layer] for layer in sorted(self.layers)}
        if any(layer < 0 for layer in layers):
            raise ValueError(f"layers are counted from 0, not {min(layers)}")
        if len({edit.n_embd for edit in layers.values()}) > 1:
            raise ValueError("the layers' edits have different sizes")
        object.__setattr__(self, "layers", MappingProxyType(layers))

    def change(self, layer: int, x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """What strength 1 adds to the MLP output `x`, `(..., n_embd)`, of `layer`."""
        edit = self.layers.get(layer)
        return edit.change(x) if edit is not None else np.zeros_like(x)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything in it, in hexadecimal: equal edits have equal ones."""
        digest = hashlib.sha256()
        for layer, x in self.layers.items():
            digest.update(f"{layer} linear {x.rank}".encode())
            for part in (x.outward, x.inward, x.constant):
                digest.update(part.tobytes())
        return digest.hexdigest()

    def is_zero(self) -> bool:
        """Whether it changes nothing."""
        return all(edit.is_zero() for edit in self.layers.values())

    def __mul__(self, strength: float) -> Edit:
        return Edit({layer: edit * strength for layer, edit in self.layers.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Edit:
        return self * -1.0

    def __add__(self, other: Edit) -> Edit:
        sums = dict(self.layers)
        for layer, edit in other.layers.items():
            sums[layer] = sums[layer] + edit if layer in sums else edit
        return Edit(sums)

    def __sub__(self, other: Edit) -> Edit:
        return self + -other


def _made(
    outward: npt.NDArray[np.float64],
    inward: npt.NDArray[np.float64],
    constant: npt.NDArray[np.float64],
) -> LayerEdit:
    u, v, c = (np.asarray(part, np.float32) for part in (outward, inward, constant))
    return LayerEdit(u, v, c)


def _vector(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1:
        raise ValueError(f"a direction has one axis, not the shape {vector.shape}")
    return vector


def _unit_rows(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    rows = np.atleast_2d(np.asarray(values, np.float64))
    if rows.ndim != 2:
        raise ValueError(f"directions have the shape (k, n_embd), not {rows.shape}")
    with np.errstate(over="ignore", under="ignore"):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise ValueError("a direction must have a finite length above 0")
    return rows / lengths
