"""Which layers to edit: where the sides lie apart, and where the directions agree. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alignez_edge.subspace import cosine

FloatArray = npt.NDArray[np.floating]

APART = 0.5
"""A layer counts as separating the sides when it reaches this share of the best layer."""


def interlayer_cosine(directions: FloatArray) -> FloatArray:
    """How well each layer's direction agrees with those of all other layers, `(n_layer,)`.

    The mean cosine with the others; `directions` is `(n_layer, n_embd)`. Source: AlignEZ, section
    2.4 and appendix A.3, where the sum over layers is taken.
    """
    similar = cosine(directions, directions)
    n = len(similar)
    return np.asarray((similar.sum(axis=1) - np.diag(similar)) / max(1, n - 1))


def choose_layers(separation: FloatArray, agreement: FloatArray) -> tuple[int, ...]:
    """The layers to edit, ascending, from 1 on.

    `separation` (d') and `agreement` (mean inter-layer cosine) are `(n_layer,)`.
    """
    usable = np.arange(1, len(separation))
    best = max(float(np.max(separation[usable])), 0.0)
    apart = [int(layer) for layer in usable if separation[layer] >= APART * best]
    first = apart[0] if apart else 1
    return tuple(range(first, len(separation)))
