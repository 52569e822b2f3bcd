"""What an evaluation says in numbers, each with its uncertainty. NumPy and SciPy only.

Answers to one query are not independent, so intervals resample the queries, never the answers.

Which interval. Percentiles of a bootstrap are too narrow with few queries, and say nothing at all
where all queries agree. Two corrections, measured on simulated answers with a known true net win
(`tests/test_measures.py`; 60 queries, 3 answers to each, 2,000 draws):
- the percentiles are those of the expanded interval (Hesterberg 2015, "What teachers should know
  about the bootstrap", section 5.1), which are exact for means of normal values;
- a net win never gets an interval that is narrower than what so many queries can rule out; see
  `Resamples.net_win`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import DoubleArray

N_RESAMPLES = 4000
LEVEL = 0.95
UNSEEN = 0.6
"""How bad the queries that were not seen may be: with this, intervals of net wins up to 0.9 cover
the true one in 93 to 98 % of cases, and more often beyond (without it, in 91 to 75 %)."""
_BLOCK = 1 << 20
"""Counts that are widened at a time."""
_LOOP_GRAM, _LOOP_LEAST = 4, 8


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval; NaN where it could not be told."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Wins:
    """How often one answer was better, as shares of all comparisons, and the net win."""

    win: float
    lose: float
    tie: float
    net: Figure


class Resamples:
    """Figures and their bootstrap distributions, clustered by query.

    A *sample* is an array `(1 + N_RESAMPLES,)`: the figure on the queries as they are, then on each
    resample. All samples resample the same queries, so that arithmetic between them is paired.
    """

    def __init__(self, n_query: int) -> None:
        if n_query < 1:
            raise ValueError("there are no queries to resample")
        self.n_query = n_query
        even = np.full(n_query, 1 / n_query)
        rng = np.random.default_rng(0)
        # In bytes: no query is drawn 256 times, and 10,000 queries then take 40 MB.
        self._counts = np.ones((1 + N_RESAMPLES, n_query), np.uint8)
        for start in range(1, 1 + N_RESAMPLES, self._rows):
            part = self._counts[start : start + self._rows]
            part[:] = rng.multinomial(n_query, even, len(part))

    @property
    def _rows(self) -> int:
        return max(1, _BLOCK // self.n_query)

    def sums(self, columns: npt.NDArray[Any]) -> DoubleArray:
        """Samples `(1 + N_RESAMPLES, n)` of the sums of `(n_query, n)` columns over the queries."""
        blocks = range(0, len(self._counts), self._rows)
        return np.concatenate(
            [self._counts[at : at + self._rows].astype(np.float64) @ columns for at in blocks]
        )

    def ratio(self, numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> DoubleArray:
        """The sum of one `(n_query, n_seed)` array over the sum of another."""
        above, below = self.sums(
            np.stack([numerator.sum(axis=1), denominator.sum(axis=1)], axis=1)
        ).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(above / below)

    def mean(self, values: npt.NDArray[Any]) -> DoubleArray:
        """The mean over `(n_query, n_seed)` values, NaN left out."""
        return self.ratio(np.nan_to_num(values), ~np.isnan(values))

    def figure(self, sample: DoubleArray) -> Figure:
        """The figure of a sample with its interval; NaN where the figure itself is none."""
        usable = sample[np.isfinite(sample)]
        if not np.isfinite(sample[0]):
            return Figure(math.nan, math.nan, math.nan)
        low, high = self.bounds(usable)
        return Figure(float(sample[0]), float(low), float(high))

    def bounds(self, samples: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
        """The interval's ends along the first axis; with one query there is no interval: NaN."""
        from scipy import stats

        n = self.n_query
        if n < 2:
            return np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
        t = stats.t.ppf((1 + LEVEL) / 2, n - 1)
        tail = 100 * float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * t))
        low, high = np.percentile(samples, [tail, 100 - tail], axis=0)
        return low, high

    def net_win(self, preferences: npt.NDArray[Any]) -> Wins:
        """Wins, losses and ties of `(n_query, n_seed)` preferences, NaN left out; by their sign."""
        signs = np.sign(preferences)
        sample = self.mean(signs)
        net = self.figure(sample)
        if not math.isnan(net.low):
            low, high = self.net_win_bounds(sample)
            net = Figure(net.mean, float(low), float(high))
        known = max(1, int(np.isfinite(signs).sum()))
        won, lost = (int((signs == side).sum()) / known for side in (1, -1))
        return Wins(won, lost, int((signs == 0).sum()) / known, net)

    def net_win_bounds(self, samples: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
        """`bounds` of net wins in [-1, 1], never narrower than what the queries can rule out.

        A kind of query that is a share r of all is missed by n queries with probability (1 - r)^n.
        The largest share that is missed in 2.5 % of cases may hide there; each end of the interval
        lies at least where that share, at `UNSEEN` of the way from the mean to the extreme, would
        move it. With 60 queries that all win: 93 to 100 % in place of a bare 100 %.
        """
        mean = samples[0]
        low, high = self.bounds(
            samples[np.isfinite(samples).all(axis=tuple(range(1, samples.ndim)))]
        )
        unseen = UNSEEN * (1 - ((1 - LEVEL) / 2) ** (1 / self.n_query))
        return (
            np.minimum(low, mean - unseen * (1 + mean)),
            np.maximum(high, mean + unseen * (1 - mean)),
        )

    def share(self, part: DoubleArray, whole: DoubleArray) -> Figure:
        """One sample over another, as for relative improvement.

        Where the interval of the whole holds 0, nobody can say what share of it the part is: NaN.
        """
        low, high = self.bounds(whole[np.isfinite(whole)])
        if not (np.isfinite(whole[0]) and (low > 0 or high < 0)):
            return Figure(math.nan, math.nan, math.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.figure(part / whole)


def sign_test(preferences: npt.NDArray[Any]) -> float:
    """The two-sided sign test over queries, of `(n_query, n_seed)` preferences.

    A query counts for the side that won more of its answers; queries where neither did are left
    out. The p-value is the probability of so uneven a split if either side were as good; 1 where
    no query tells them apart.
    """
    from scipy import stats

    by_query = np.nansum(np.sign(preferences), axis=1)
    for_, against = int((by_query > 0).sum()), int((by_query < 0).sum())
    return float(stats.binomtest(for_, for_ + against).pvalue) if for_ + against else 1.0


def loops(text: str) -> bool:
    """Whether an answer repeats itself: fewer than half of its runs of four words are distinct.

    Needs at least eight such runs. Scripts without spaces are read by characters.
    """
    units: Sequence[str] = text.casefold().split()
    if len(units) * 20 < len(text):
        units = text
    n = len(units) - _LOOP_GRAM + 1
    if n < _LOOP_LEAST:
        return False
    return 2 * len({tuple(units[i : i + _LOOP_GRAM]) for i in range(n)}) < n
