"""Control vectors as values with arithmetic: NumPy in, NumPy out.

`v * 0.8 + w`, `-v` and `v - w` are control vectors again; `v - v` is zero to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class ControlVector:
    """What is added to the residual stream after each layer, at two kinds of position.

    Both arrays have shape `(n_layer, n_embd)`, float32, and are read-only copies. Row `l` is added
    to `l_out-l`: `deciding` at the last prompt token, `answer` at every token after it. Row 0 is
    zero, because llama.cpp's control vectors cannot edit layer 0. Raises `ValueError` on other
    shapes, on numbers that are not finite and on a row 0 that is not zero.
    """

    deciding: FloatArray
    answer: FloatArray

    def __post_init__(self) -> None:
        for name in ("deciding", "answer"):
            array = np.array(getattr(self, name), dtype=np.float32)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.deciding.ndim != 2 or self.deciding.shape != self.answer.shape:
            raise ValueError(
                "deciding and answer must both have shape (n_layer, n_embd), "
                f"not {self.deciding.shape} and {self.answer.shape}"
            )
        for name, array in (("deciding", self.deciding), ("answer", self.answer)):
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
            if array[:1].any():
                raise ValueError(f"row 0 of {name} must be zero: layer 0 cannot be edited")

    @classmethod
    def zeros(cls, n_layer: int, n_embd: int) -> ControlVector:
        """The control vector that changes nothing."""
        empty = np.zeros((n_layer, n_embd), np.float32)
        return cls(empty, empty)

    @classmethod
    def from_displacements(
        cls,
        deciding: npt.NDArray[np.floating],
        answer: npt.NDArray[np.floating],
        layers: Iterable[int],
    ) -> ControlVector:
        """Increments that displace every layer of `layers` by its own difference `D_l`.

        `deciding` and `answer` are the differences, `(n_layer, n_embd)`. The residual stream hands
        on what was added below, so the first layer gets `D_first` and each later one only what is
        still missing: `D_l - D_(previous of layers)`. To first order, that is: the layers between
        also answer to the displacement. Raises `ValueError` on a layer outside 1 to n_layer - 1.
        """
        chosen = check_layers(layers, len(deciding))

        def increments(differences: npt.NDArray[np.floating]) -> FloatArray:
            wanted = np.asarray(differences, np.float32)[chosen]
            steps = np.zeros(np.shape(differences), np.float32)
            steps[chosen] = np.diff(wanted, axis=0, prepend=np.zeros_like(wanted[:1]))
            return steps

        return cls(increments(deciding), increments(answer))

    @property
    def n_layer(self) -> int:
        """How many layers the model has."""
        return int(self.deciding.shape[0])

    @property
    def n_embd(self) -> int:
        """The hidden size."""
        return int(self.deciding.shape[1])

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are edited, ascending."""
        edited = self.deciding.any(axis=1) | self.answer.any(axis=1)
        return tuple(int(layer) for layer in np.flatnonzero(edited))

    def restrict(self, layers: Iterable[int]) -> ControlVector:
        """The same vector in these layers, zero in all others."""
        keep = np.zeros((self.n_layer, 1), bool)
        keep[check_layers(layers, self.n_layer)] = True
        return ControlVector(np.where(keep, self.deciding, 0), np.where(keep, self.answer, 0))

    def norms(self) -> tuple[FloatArray, FloatArray]:
        """The length of each row of `deciding` and of `answer`: two arrays of `(n_layer,)`."""
        return np.linalg.norm(self.deciding, axis=1), np.linalg.norm(self.answer, axis=1)

    def is_zero(self) -> bool:
        """Whether it changes nothing."""
        return not self.layers

    def __mul__(self, strength: float) -> ControlVector:
        scale = np.float32(strength)
        return ControlVector(self.deciding * scale, self.answer * scale)

    __rmul__ = __mul__

    def __add__(self, other: ControlVector) -> ControlVector:
        return ControlVector(self.deciding + other.deciding, self.answer + other.answer)

    def __neg__(self) -> ControlVector:
        return ControlVector(-self.deciding, -self.answer)

    def __sub__(self, other: ControlVector) -> ControlVector:
        return ControlVector(self.deciding - other.deciding, self.answer - other.answer)


def check_layers(layers: Iterable[int], n_layer: int) -> list[int]:
    """`layers`, ascending; raises `ValueError` if they are none, repeated or out of range."""
    chosen = sorted(int(layer) for layer in layers)
    if not chosen:
        raise ValueError("no layers were chosen")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"a layer is named twice: {chosen}")
    if chosen[0] < 1 or chosen[-1] >= n_layer:
        raise ValueError(f"layers must lie in 1 to {n_layer - 1}, not {chosen}")
    return chosen


DECIDING_GAIN, ANSWER_GAIN = 1.5, 0.8
"""Raw differences that are added at the last prompt token and at each later one. The first is one
token of the answer's cost and decides most of its style (docs/method.md, section 4)."""
