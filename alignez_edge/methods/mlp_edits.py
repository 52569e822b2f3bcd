"""The papers' edits of an MLP's output, from its states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.hidden_states import POSITIONS, HiddenStates
from alignez_edge.directions.subspace import difference_subspace, first_direction
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit

LayerEditor = Callable[[AnyFloatArray, AnyFloatArray], LayerEdit]
"""(chosen, rejected) of one layer and position, `(n_pairs, n_embd)` each -> the edit there."""


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


def mean_field(
    editor: LayerEditor, chosen: AnyFloatArray, rejected: AnyFloatArray
) -> tuple[AnyFloatArray, AnyFloatArray]:
    """The edit's first direction, and how far it moves the mean state."""
    edit = editor(chosen, rejected)
    middle = (np.mean(chosen, axis=0, dtype=np.float64) + np.mean(rejected, axis=0)) / 2
    return edit.outward[:, 0], edit.change(middle)
