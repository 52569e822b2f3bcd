"""AlignEZ, version 1: the first singular vectors of each side, and the papers' edit along them.

The harm component is removed, then the help component doubled (section 2.3). The control vector is
that edit's mean; the edit itself is the exact form.
"""

from __future__ import annotations

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.subspace import first_direction, version_1_edit
from alignez_edge.methods.displacement import Displacement
from alignez_edge.methods.mlp_edits import swap


def estimate(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    """The help direction, and how far the edit moves the mean state."""
    help_, harm = first_direction(chosen), first_direction(rejected)
    middle = (np.mean(chosen, axis=0, dtype=np.float64) + np.mean(rejected, axis=0)) / 2
    return help_, version_1_edit(middle, help_, harm)


METHOD = Displacement(estimate, tensor="ffn_out", edit=swap)
