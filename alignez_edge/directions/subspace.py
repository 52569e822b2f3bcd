"""From hidden states to directions: NumPy and SciPy in, NumPy out.

States are matrices of shape `(n_pairs, n_embd)`, one row a pair, of one layer at one position;
`chosen` belongs to the wanted answers (`help` in the papers), `rejected` to the unwanted (`harm`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignez_edge.arrays import AnyFloatArray


@dataclass(frozen=True, eq=False)
class Subspace:
    """The directions along which the two sides differ, in one layer.

    `directions` is `(rank, n_embd)`, orthonormal rows ordered by `singular_values` `(rank,)`; each
    is oriented so that the wanted side projects higher on average. `shift` `(rank,)` is the mean
    difference along each: never negative.
    """

    directions: AnyFloatArray
    singular_values: AnyFloatArray
    shift: AnyFloatArray

    def displacement(self) -> AnyFloatArray:
        """The mean difference of the sides as far as it lies in the subspace, `(n_embd,)`."""
        return np.asarray(self.shift @ self.directions)


def right_singular_vectors(rows: AnyFloatArray, rank: int) -> tuple[AnyFloatArray, AnyFloatArray]:
    """The first `rank` right singular vectors `(rank, n_embd)` and values of an uncentred matrix.

    Fewer come back where the matrix has fewer rows or columns, or less rank than asked for.
    """
    import scipy.linalg  # slow to import, and only a build decomposes anything

    matrix = np.asarray(rows, np.float64)
    _, values, vectors = scipy.linalg.svd(matrix, full_matrices=False, check_finite=True)
    tolerance = values[:1].sum() * max(matrix.shape) * np.finfo(np.float32).eps
    kept = max(1, int((values[:rank] > tolerance).sum()))
    return vectors[:kept], values[:kept]


def difference_subspace(chosen: AnyFloatArray, rejected: AnyFloatArray, rank: int = 1) -> Subspace:
    """Version 2 of the method: SVD of the stacked differences `chosen_i - rejected_i`.

    They are not centred: centring would remove the very shift that is looked for. Source: AlignEZ
    (later version), mechanism 2; the orientation is ours, as a singular vector has no sign.
    """
    differences = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    directions, values = right_singular_vectors(differences, rank)
    shift = directions @ differences.mean(axis=0)
    signs = np.where(shift < 0, -1.0, 1.0)
    return Subspace(directions * signs[:, None], values, shift * signs)


def first_direction(states: AnyFloatArray) -> AnyFloatArray:
    """Version 1: the first right singular vector of one side's states, `(n_embd,)`, unit length.

    Oriented along the mean state. Source: AlignEZ, equation 1.
    """
    vectors, _ = right_singular_vectors(states, 1)
    theta = vectors[0]
    return theta if theta @ np.asarray(states, np.float64).mean(axis=0) >= 0 else -theta


def version_1_edit(x: AnyFloatArray, help_: AnyFloatArray, harm: AnyFloatArray) -> AnyFloatArray:
    """`M x` of the papers' edit `x <- x + M x`: `x`'s component along `harm` is removed, then what
    is left is doubled along `help_`.

    `x` is `(..., n_embd)`; the directions `(n_embd,)` need not be unit. Source: AlignEZ, section
    2.3.
    """
    rejected = x - _coefficient(x, harm) * harm
    return np.asarray(rejected + _coefficient(rejected, help_) * help_ - x)


def separation(chosen: AnyFloatArray, rejected: AnyFloatArray) -> float:
    """How far apart the two sides lie, in standard deviations (d').

    The direction is the difference of means of one half of the pairs and is judged on the other
    half, both ways: in many dimensions a direction always separates the pairs that it came from.
    Negative or near 0: the layer does not tell the sides apart. 0 for fewer than 4 pairs.
    """
    a, b = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    if len(a) < 4:
        return 0.0
    scores = []
    halves = (slice(0, None, 2), slice(1, None, 2))
    for fit, judge in (halves, halves[::-1]):
        axis = a[fit].mean(axis=0) - b[fit].mean(axis=0)
        wanted, unwanted = a[judge] @ axis, b[judge] @ axis
        spread = np.sqrt((wanted.var() + unwanted.var()) / 2)
        if spread > 0:
            scores.append((wanted.mean() - unwanted.mean()) / spread)
    return float(np.mean(scores)) if scores else 0.0


def cosine(a: AnyFloatArray, b: AnyFloatArray) -> AnyFloatArray:
    """Cosine similarities between the rows of `a` `(n, d)` and of `b` `(m, d)`: `(n, m)`.

    A zero row is similar to nothing: 0.
    """
    left, right = (np.asarray(x, np.float64) for x in (a, b))
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None, :]
    return np.divide(left @ right.T, norms, out=np.zeros(norms.shape), where=norms > 0)


def _coefficient(x: AnyFloatArray, theta: AnyFloatArray) -> AnyFloatArray:
    length = float(theta @ theta)
    return np.asarray(x @ theta)[..., None] / length if length else np.zeros((*x.shape[:-1], 1))
