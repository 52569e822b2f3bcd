"""Which layers to edit: where the sides lie apart, and where the directions agree. NumPy only."""

from __future__ import annotations

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.subspace import cosine

APART = 2.0
"""d' from which a layer tells the sides apart: at 2, one state in six lies on the wrong side."""


def interlayer_cosine(directions: AnyFloatArray) -> AnyFloatArray:
    """How well each layer's direction agrees with those of all other layers, `(n_layer,)`.

    The mean cosine with the others; `directions` is `(n_layer, n_embd)`. Source: AlignEZ, section
    2.4 and appendix A.3, where the sum over layers is taken.
    """
    similar = cosine(directions, directions)
    n = len(similar)
    return np.asarray((similar.sum(axis=1) - np.diag(similar)) / max(1, n - 1))


def choose_layers(separation: AnyFloatArray, agreement: AnyFloatArray) -> tuple[int, ...]:
    """The layers to edit, ascending, from 1 on: those that separate the sides and agree.

    A layer separates from d' = 2 on, or from half of what the best layer reaches where that is
    less; it agrees when its direction's mean cosine with the others is positive. The last layer is
    always among them where any separates: what it lacks, no later layer can make up for.
    `separation` (d') and `agreement` (mean inter-layer cosine) are `(n_layer,)`.
    """
    usable = range(1, len(separation))
    best = max(usable, key=lambda layer: float(separation[layer]))
    enough = min(APART, float(separation[best]) / 2)
    chosen = {
        layer for layer in usable if separation[layer] >= max(enough, 0.0) and agreement[layer] > 0
    }
    return tuple(sorted(chosen | {best, len(separation) - 1}))


def best_layer(separation: AnyFloatArray, _agreement: AnyFloatArray) -> tuple[int, ...]:
    """The one layer, from 1 on, that separates the sides best, as `choose_layers` would say it."""
    return (1 + int(np.argmax(separation[1:])),)
