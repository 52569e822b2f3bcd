"""The estimators: from the states of both sides in one layer to a direction and a displacement."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.subspace import (
    difference_subspace,
    first_direction,
    version_1_edit,
)
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.mlp_edit import LayerEdit
from alignez_edge.methods.base import RANK
from alignez_edge.methods.mlp_edits import amplify, move


def _whole(deciding: AnyFloatArray, answer: AnyFloatArray, layers: Iterable[int]) -> ControlVector:
    """Each of `layers` gets its own displacement whole: outputs that are no running sums."""
    rows = deciding.astype(np.float32), answer.astype(np.float32)
    for row in rows:
        row[0] = 0  # nothing can be added there
    return ControlVector(*rows).restrict(layers)


def _alignez(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    found = difference_subspace(chosen, rejected, RANK)
    return found.directions[0], found.displacement()


def _alignez_v1(
    chosen: AnyFloatArray, rejected: AnyFloatArray
) -> tuple[AnyFloatArray, AnyFloatArray]:
    help_, harm = first_direction(chosen), first_direction(rejected)
    middle = (np.mean(chosen, axis=0, dtype=np.float64) + np.mean(rejected, axis=0)) / 2
    return help_, version_1_edit(middle, help_, harm)


def _alignez_v2(
    chosen: AnyFloatArray, rejected: AnyFloatArray
) -> tuple[AnyFloatArray, AnyFloatArray]:
    return _mean_field(amplify(chosen, rejected), chosen, rejected)


def _affine(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    return _mean_field(move(chosen, rejected), chosen, rejected)


def _mean_field(
    edit: LayerEdit, chosen: AnyFloatArray, rejected: AnyFloatArray
) -> tuple[AnyFloatArray, AnyFloatArray]:
    middle = (np.mean(chosen, axis=0, dtype=np.float64) + np.mean(rejected, axis=0)) / 2
    return edit.outward[:, 0], edit.change(middle)


def _mean(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    shift = np.mean(np.asarray(chosen, np.float64) - rejected, axis=0)
    length = np.linalg.norm(shift)
    return (shift / length if length else shift), shift
