"""How the sides' directions lie to each other: the numbers behind the papers' figures 4c and 5.

They need the pairs' states, which a profile does not keep, so a build puts these few numbers into
its report. NumPy in, NumPy out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.hidden_states import POSITIONS
from alignez_edge.directions.layers import interlayer_cosine
from alignez_edge.directions.subspace import cosine, first_direction
from alignez_edge.files.untrusted import Numbers, numbers

if TYPE_CHECKING:
    from alignez_edge.directions.hidden_states import HiddenStates

_KEY = "geometry"


@dataclass(frozen=True)
class Geometry:
    """The first singular vectors of either side, help and harm, at the last prompt token.

    `help_harm` is the cosine of the two in every layer, `(n_layer,)`. `by_count[i]` is the mean
    cosine between the help directions of the `i + 2` layers that agree best with all others, up to
    all of them. `plane` holds the coordinates of the help and then of the harm directions in their
    first two principal components, `(2, n_layer, 2)`, and `share` which parts of the variance these
    show. Source: AlignEZ, section 2.4 and figures 4c and 5.
    """

    help_harm: Numbers
    by_count: Numbers
    plane: tuple[tuple[Numbers, ...], tuple[Numbers, ...]]
    share: Numbers

    @classmethod
    def measure(cls, states: HiddenStates, rows: Sequence[int]) -> Geometry:
        """Of the pairs `rows`; one layer's states in memory at a time."""
        thetas = np.zeros((2, *states.shape))
        for layer in range(states.shape[0]):
            sides = states.layer(layer, "deciding", rows)
            thetas[:, layer] = first_direction(sides.chosen), first_direction(sides.rejected)
        return cls.of_directions(*thetas)

    @classmethod
    def of_directions(cls, help_: AnyFloatArray, harm: AnyFloatArray) -> Geometry:
        """Of unit directions by layer, each `(n_layer, n_embd)`."""
        between = [float(cosine(h[None], d[None])[0, 0]) for h, d in zip(help_, harm, strict=True)]
        coordinates, share = principal_plane(np.concatenate([help_, harm]))
        helps, harms = np.split(coordinates, 2)
        return cls(
            _rounded(between),
            _rounded(cosine_by_count(help_)),
            (tuple(map(_rounded, helps)), tuple(map(_rounded, harms))),
            _rounded(share),
        )

    def to_report(self) -> dict[str, Any]:
        """What goes into a profile's report."""
        return {_KEY: vars(self)}

    @classmethod
    def of(cls, report: Mapping[str, Any], n_layer: int) -> Geometry | None:
        """What a profile's report tells; None if it tells nothing that is sound.

        A report can come from an untrusted file.
        """
        found: Any = report.get(_KEY)
        try:
            sides = [[numbers(xy, 2) for xy in side] for side in found["plane"]]
            if [len(side) for side in sides] != [n_layer, n_layer]:
                return None
            return cls(
                numbers(found["help_harm"], n_layer),
                numbers(found["by_count"], n_layer - 1),
                (tuple(sides[0]), tuple(sides[1])),
                numbers(found["share"], 2),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


def cosine_by_count(directions: AnyFloatArray) -> AnyFloatArray:
    """The mean cosine between the directions of the 2, 3, ... layers that agree best with all.

    `directions` is `(n_layer, n_embd)`; the result `(n_layer - 1,)`. Layers come in the order in
    which the papers choose them: by their summed cosine with the others.
    """
    order = np.argsort(-interlayer_cosine(directions), kind="stable")
    similar = cosine(directions, directions)[np.ix_(order, order)]
    # Above the diagonal, column n holds the cosines of layer n with those chosen before it.
    sums = np.cumsum(np.triu(similar, 1).sum(axis=0))[1:]
    counts = np.arange(2, len(directions) + 1)
    return np.asarray(sums / (counts * (counts - 1) / 2))


def principal_plane(rows: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    """The rows, `(n, d)`, in their first two principal components, `(n, 2)`, and the shares of the
    variance along these, `(2,)`.

    The sign of a component, which is arbitrary, makes its largest coordinate positive.
    """
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(rows), 2))
    kept = min(2, len(values))
    found[:, :kept] = left[:, :kept] * values[:kept]
    largest = found[np.abs(found).argmax(axis=0), np.arange(2)]
    total = float((values**2).sum())
    share = np.zeros(2)
    if total:
        share[:kept] = values[:kept] ** 2 / total
    return found * np.where(largest < 0, -1.0, 1.0), share


def _rounded(values: Sequence[float] | AnyFloatArray) -> Numbers:
    return tuple(round(float(x), 4) + 0.0 for x in values)


def agreement(states: HiddenStates, layers: Sequence[int], n_pairs: int) -> float:
    """The share of the pairs that point the way of all the others together.

    For each pair the cosines of its difference, chosen less rejected, with those of the other pairs
    are added up over `layers` and both positions; it agrees where the sum is above 0. Near 1 where
    the pairs differ along one axis, near 1/2 where their sides are mixed up.
    """
    total = np.zeros((n_pairs, n_pairs))
    for layer in layers:
        for position in POSITIONS:
            both = states.layer(layer, position, range(n_pairs))
            rows = both.chosen.astype(np.float64) - both.rejected
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
            total += rows @ rows.T
    np.fill_diagonal(total, 0.0)
    return float((total.sum(axis=1) > 0).mean())
