"""The exact form of a profile: edits of MLP outputs in place of, or beside, a control vector.

A control vector displaces every token alike, and the MLPs above it answer by pushing back. A *pin*
takes that answer away: along the direction `t` in which a layer is displaced, the MLP's output is
moved to its mean, `x <- x + (m - <x,t>) t` (the affine form of the papers' edit), and the vector's
displacement is added to that. A *swap* is version 1 of the papers as it stands: the harm component
removed, the help component doubled, nothing added.

NumPy in, NumPy out; `exact.py` makes the adapter of a model from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignez_edge.edits import Edit, LayerEdit
from alignez_edge.embeddings import POSITIONS, HiddenStates
from alignez_edge.subspace import first_direction
from alignez_edge.vectors import ControlVector

FloatArray = npt.NDArray[np.floating]

PIN_DISPLACEMENT = (0.67, 0.75)
"""Shares of the vector's two displacements that a pin adds: it loses less of them on the way, so
as much as asking takes less (docs/method.md, section 7)."""


@dataclass(frozen=True, eq=False)
class ExactForm:
    """What is injected in place of the control vector where a model can be edited exactly.

    `deciding` and `answer` are linear edits of the MLP's output in the pass of the last prompt
    token and in those after it. `displacement` says how much of the profile's vector is added
    beside them at either position. The edit of an `even` form acts with the strength's magnitude,
    at most 1 (a pin holds a coordinate whatever the side), else with the strength itself. `unit` is
    the calibrated scale, as a profile's. Raises `ValueError` for edits with an activation and
    numbers out of range.
    """

    deciding: Edit
    answer: Edit
    displacement: tuple[float, float] = (0.0, 0.0)
    even: bool = False
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not (self.deciding.is_linear() and self.answer.is_linear()):
            raise ValueError("an exact form has no activation")
        numbers = tuple(float(x) for x in self.displacement)
        if len(numbers) != 2 or not all(np.isfinite(x) and 0 <= x <= 100 for x in numbers):
            raise ValueError(f"displacements must be two numbers from 0 up, not {numbers}")
        object.__setattr__(self, "displacement", numbers)
        if not np.isfinite(self.unit) or self.unit <= 0:
            raise ValueError(f"the calibrated scale must be a positive number, not {self.unit}")

    @property
    def edits(self) -> dict[str, Edit]:
        """The two edits by position."""
        return {"deciding": self.deciding, "answer": self.answer}

    def scale(self, strength: float) -> float:
        """The scale of the edits at a strength."""
        return min(1.0, abs(strength)) if self.even else strength * self.unit


def pin(vector: ControlVector, mlp: HiddenStates, rows: Sequence[int]) -> ExactForm:
    """Pin each edited layer's MLP output along the direction that the layer is displaced in.

    `vector` holds increments in the residual stream; the displacement of a layer is what has been
    added up to it. `mlp` are the MLP outputs of the pairs, of which `rows` are used: the mean over
    both sides is what the coordinate is moved to.
    """
    edits = []
    for position in POSITIONS:
        displaced = np.cumsum(np.asarray(getattr(vector, position), np.float64), axis=0)
        layers = {}
        for layer in vector.layers:
            length = float(np.linalg.norm(displaced[layer]))
            if not length:
                continue
            direction = displaced[layer] / length
            sides = mlp.layer(layer, position, rows)
            middle = (sides.chosen.mean(axis=0) + sides.rejected.mean(axis=0)) / 2
            layers[layer] = LayerEdit.move(direction, [float(middle @ direction)])
        edits.append(Edit(layers))
    return ExactForm(edits[0], edits[1], displacement=PIN_DISPLACEMENT, even=True)


def swap(mlp: HiddenStates, rows: Sequence[int], layers: Sequence[int]) -> ExactForm:
    """Version 1 of the papers (000, section 2.3) in `layers`, from the MLP outputs of `rows`."""
    edits = []
    for position in POSITIONS:
        found = {}
        for layer in layers:
            sides = mlp.layer(layer, position, rows)
            found[layer] = LayerEdit.swap(
                first_direction(sides.chosen), first_direction(sides.rejected)
            )
        edits.append(Edit(found))
    return ExactForm(edits[0], edits[1])
