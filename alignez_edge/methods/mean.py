"""The difference of the two sides' means, at the last prompt token and at the answer's."""

from __future__ import annotations

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.methods.displacement import Displacement


def estimate(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    """The direction of the mean difference, and that difference."""
    shift = np.mean(np.asarray(chosen, np.float64) - rejected, axis=0)
    length = np.linalg.norm(shift)
    return (shift / length if length else shift), shift


METHOD = Displacement(estimate)
