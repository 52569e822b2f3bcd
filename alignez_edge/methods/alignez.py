"""AlignEZ, version 2: the first direction of the pairs' raw differences, at their norm along it.

The right singular vector of the stacked differences with the largest singular value, uncentred,
displaced by the mean difference along it, at the last prompt token and at the answer's.
"""

from __future__ import annotations

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.subspace import difference_subspace
from alignez_edge.methods.displacement import Displacement


def estimate(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    """The direction, and the mean difference along it."""
    found = difference_subspace(chosen, rejected)
    return found.directions[0], found.displacement()


METHOD = Displacement(estimate)
