"""Query-conditioned steering: what the pairs nearest to a query say about its turn.

Version 1 of the papers (AlignEZ, sections 2.2 and 2.3) takes the first right singular vector of
each side of the `k` nearest pairs, version 2 those of their differences. `k` rows span all of these
vectors, so the decomposition is one of `k x k` products: with `G = H H'` and `G v = s^2 v`,
`theta = (v / s)' H`. The coefficients `c = v / s` are kept beside each direction, because then
`theta W = c' (H W)` for a matrix `W` of the model, whose product with the bank's rows is made only
once (`bank_products.py`). NumPy in, NumPy out; all layers and positions at a time, in single
precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray, IntArray
from alignez_edge.directions.hidden_states import POSITIONS
from alignez_edge.directions.subspace import version_1_edit
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.control_vector import ANSWER_GAIN, DECIDING_GAIN, ControlVector
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit

RecipeMethod = Literal["alignez", "alignez-v1"]

NEIGHBORS = 10
"""Below 5 noise wins, above 20 unrelated pairs do (AlignEZ, figure 4a)."""
_RESOLVED = 1e-3
"""Singular values smaller than this share of the first drown in single precision once squared."""


@dataclass(frozen=True)
class Recipe:
    """How a turn is made of the `k` nearest pairs.

    `layers` are those that are edited (default: all of the bank). Version 2 alone: `rank` singular
    vectors, of which `opposed` keeps only those that the query itself does not have yet: cosine
    with its state at most 0 (the papers' filter). Raises `ValueError` on numbers below 1.
    """

    method: RecipeMethod = "alignez"
    k: int = NEIGHBORS
    layers: tuple[int, ...] | None = None
    rank: int = 1
    opposed: bool = False

    @classmethod
    def of(cls, method: str, k: int) -> Recipe:
        """The recipe of one of `methods.BY_QUERY`: version 2's own edit takes its filter along."""
        if method == "alignez-v1":
            return cls("alignez-v1", k)
        return cls("alignez", k, opposed=method == "alignez-v2")

    def __post_init__(self) -> None:
        if self.method not in get_args(RecipeMethod):
            raise ValueError(f"no recipe has the method {self.method!r}")
        if min(self.k, self.rank) < 1:
            raise ValueError(f"a recipe counts from 1: {self}")


@dataclass(frozen=True, eq=False)
class QueryEdit:
    """What one query's neighbors `rows` (of the bank) say, in `layers`.

    `directions` is `(layers, positions, m, n_embd)`: unit rows, or zero rows for what was not kept;
    help and harm in version 1 (`swaps`), the singular vectors in version 2, oriented so that the
    wanted side projects higher. `coefficients` `(layers, positions, m, 2 k)` makes them from the
    wanted and then the unwanted sides of `rows`. `displacement` `(layers, positions, n_embd)` is
    how far the edit moves a state on average, in the units of `tensor`.
    """

    rows: IntArray
    layers: tuple[int, ...]
    tensor: str
    swaps: bool
    directions: FloatArray
    coefficients: FloatArray
    displacement: FloatArray

    def vector(self, n_layer: int) -> ControlVector:
        """The displacements as a control vector, with `fit`'s gains.

        In the residual stream a layer gets the increment over the edited layer below it; layers of
        which nothing was kept hand on what they were given.
        """
        added = []
        for p, gain in enumerate((DECIDING_GAIN, ANSWER_GAIN)):
            wanted = self.displacement[:, p]
            moved = np.flatnonzero(wanted.any(axis=1))
            steps = wanted[moved]
            if self.tensor == "l_out":
                steps = np.diff(steps, axis=0, prepend=np.zeros_like(steps[:1]))
            rows = np.zeros((n_layer, wanted.shape[1]), np.float32)
            rows[np.array(self.layers)[moved]] = np.float32(gain) * steps
            added.append(rows)
        return ControlVector(*added)

    def edit(self, position: str) -> Edit:
        """The papers' edit of the MLP's output at one position: a swap, or version 2's sum of
        `<x, theta> theta`. Raises `ValueError` if the bank was not read at the MLP's output."""
        if self.tensor != "ffn_out":
            raise ValueError(f"directions of {self.tensor} cannot edit the MLP's output")
        p = POSITIONS.index(position)
        make = (lambda rows: LayerEdit.swap(*rows)) if self.swaps else LayerEdit.amplify
        return Edit({x: make(self._kept(i, p)[0]) for i, x in self._edited(p)})

    def inward(self, position: str) -> dict[int, FloatArray]:
        """By layer, the edit's `inward` rows `(rank, n_embd)` as coefficients `(rank, 2 k)` over
        the wanted and then the unwanted sides of `rows`."""
        p = POSITIONS.index(position)
        by_layer = {}
        for i, layer in self._edited(p):
            directions, coefficients = self._kept(i, p)
            if self.swaps:
                help_, harm = coefficients
                overlap = directions[0] @ directions[1]
                coefficients = np.stack([harm, help_ - overlap * harm])
            by_layer[layer] = coefficients
        return by_layer

    def _edited(self, p: int) -> list[tuple[int, int]]:
        """(index, layer) of the layers in which the edit at a position has all that it needs."""
        enough = np.all if self.swaps else np.any
        kept = enough(self.directions[:, p].any(axis=-1), axis=-1)
        return [(i, layer) for i, layer in enumerate(self.layers) if kept[i]]

    def _kept(self, i: int, p: int) -> tuple[FloatArray, FloatArray]:
        kept = self.directions[i, p].any(axis=-1)
        return self.directions[i, p, kept], self.coefficients[i, p, kept]


def condition(bank: Bank, states: npt.NDArray[np.floating], recipe: Recipe = Recipe()) -> QueryEdit:
    """The turn of a query whose state at the last token of its plain prompt is `states`.

    `states` is `(n_layer, n_embd)`, read at the bank's tensor. Raises `ValueError` if they or
    the recipe's layers do not fit the bank.
    """
    layers = bank.layers if recipe.layers is None else tuple(sorted(recipe.layers))
    if not layers or not set(layers) <= set(bank.layers):
        raise ValueError(f"the bank holds the layers {bank.layers}, not all of {layers}")
    rows = bank.nearest(states, recipe.k)
    sides = bank.take(rows, layers)
    if recipe.method == "alignez-v1":
        directions, coefficients, displacement = _version_1(sides)
    else:
        directions, coefficients, shift = _version_2(sides, recipe.rank)
        if recipe.opposed:
            query = np.asarray(states[list(layers)], np.float32)
            towards = np.einsum("lprd,ld->lpr", directions, query)
            shift = np.where(towards > 0, np.float32(0), shift)
            directions = np.where(towards[..., None] > 0, np.float32(0), directions)
        displacement = np.matmul(shift[..., None, :], directions)[..., 0, :]
    return QueryEdit(
        rows,
        layers,
        bank.tensor,
        recipe.method == "alignez-v1",
        directions,
        coefficients,
        displacement,
    )


def _version_1(sides: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Directions (help, harm), coefficients and the mean field of the swap."""
    directions, own = _right_singular_vectors(sides, 1)
    means = sides.mean(axis=-2)
    lower = np.einsum("lpsrd,lpsd->lpsr", directions, means) < 0
    signs = np.where(lower, np.float32(-1), np.float32(1))[..., None]
    directions, own = (directions * signs)[..., 0, :], (own * signs)[..., 0, :]
    k = sides.shape[-2]
    coefficients = np.zeros((*own.shape[:-1], 2 * k), np.float32)
    coefficients[:, :, 0, :k], coefficients[:, :, 1, k:] = own[:, :, 0], own[:, :, 1]
    displacement = np.zeros_like(means[:, :, 0])
    for at in np.ndindex(*displacement.shape[:2]):
        displacement[at] = version_1_edit(means[at].mean(axis=0), *directions[at])
    return directions, coefficients, displacement


def _version_2(sides: FloatArray, rank: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Directions, coefficients and the mean shift along each, `(layers, positions, rank)`."""
    differences = sides[:, :, 0] - sides[:, :, 1]
    directions, own = _right_singular_vectors(differences, rank)
    shift = np.einsum("lprd,lpd->lpr", directions, differences.mean(axis=-2))
    signs = np.where(shift < 0, np.float32(-1), np.float32(1))
    directions, own = directions * signs[..., None], own * signs[..., None]
    return directions, np.concatenate([own, -own], axis=-1), shift * signs


def _right_singular_vectors(matrices: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """The first `rank` right singular vectors of each `(k, n_embd)` matrix and what makes them of
    its rows: `(..., rank, n_embd)` and `(..., rank, k)`; zeros where a matrix has no more."""
    gram = np.matmul(matrices, np.swapaxes(matrices, -1, -2))
    squares, vectors = np.linalg.eigh(gram.astype(np.float64))
    squares, vectors = squares[..., ::-1][..., :rank], vectors[..., ::-1][..., :rank]
    values = np.sqrt(np.maximum(squares, 0))
    good = values > _RESOLVED * values[..., :1]
    inverse = np.divide(1, values, out=np.zeros_like(values), where=good)
    own = np.swapaxes(vectors * inverse[..., None, :], -1, -2).astype(np.float32)
    return np.matmul(own, matrices), own
