"""The exact form of a profile: an edit of MLP outputs itself, not its mean over tokens.

NumPy in, NumPy out; `exact.py` makes the adapter of a model from it, `inject.py` takes it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.hidden_states import POSITIONS, HiddenStates
from alignez_edge.directions.subspace import difference_subspace, first_direction
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit

LayerEditor = Callable[[AnyFloatArray, AnyFloatArray], LayerEdit]
"""(chosen, rejected) of one layer and position, `(n_pairs, n_embd)` each -> the edit there."""


@dataclass(frozen=True, eq=False)
class ExactForm:
    """What is injected in place of the control vector where a model can be edited exactly.

    `deciding` and `answer` are linear edits of the MLP's output in the pass of the last prompt
    token and in those after it; `unit` is the calibrated scale, as a profile's: strength `s` edits
    with `s * unit`. Raises `ValueError` for edits with an activation and a unit out of range.
    """

    deciding: Edit
    answer: Edit
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not (self.deciding.is_linear() and self.answer.is_linear()):
            raise ValueError("an exact form has no activation")
        if not np.isfinite(self.unit) or self.unit <= 0:
            raise ValueError(f"the calibrated scale must be a positive number, not {self.unit}")

    @property
    def edits(self) -> dict[str, Edit]:
        """The two edits by position."""
        return {"deciding": self.deciding, "answer": self.answer}


def exact_form(
    mlp: HiddenStates, rows: Sequence[int], layers: Sequence[int], edit: LayerEditor
) -> ExactForm:
    """What `edit` makes of the two sides in each of `layers`, at either position.

    `mlp` are the MLP outputs of the pairs, of which `rows` are used.
    """

    def at(position: str) -> Edit:
        sides = {layer: mlp.layer(layer, position, rows) for layer in layers}
        return Edit({layer: edit(both.chosen, both.rejected) for layer, both in sides.items()})

    deciding, answer = map(at, POSITIONS)
    return ExactForm(deciding, answer)


def swap(chosen: AnyFloatArray, rejected: AnyFloatArray) -> LayerEdit:
    """Version 1 (AlignEZ, section 2.3): the harm component removed, the help component doubled."""
    return LayerEdit.swap(first_direction(chosen), first_direction(rejected))


def amplify(chosen: AnyFloatArray, rejected: AnyFloatArray) -> LayerEdit:
    """Version 2 without its activation: doubled along the first direction of the differences."""
    return LayerEdit.amplify(difference_subspace(chosen, rejected).directions)


def move(chosen: AnyFloatArray, rejected: AnyFloatArray) -> LayerEdit:
    """Along that direction every state is moved to the mean of the wanted side."""
    directions = difference_subspace(chosen, rejected).directions
    return LayerEdit.move(directions, directions @ np.mean(chosen, axis=0, dtype=np.float64))
