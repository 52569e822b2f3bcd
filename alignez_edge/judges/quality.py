"""Judging the judge: how often it is right about answers of which the better one is known.

Each test pair is shown in both orders. That gives the judge's accuracy when it is asked once and
when both orders are averaged, what it prefers for its place alone, and whether it does better than
guessing. The pairs that ship are the demo model's answers, told apart by the rules of its world.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from alignez_edge.demo.rules import AXES
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.judges.human import HumanJudge
from alignez_edge.judges.judging import Comparison, Judge
from alignez_edge.judges.orders import Asked, merged, swapped
from alignez_edge.judges.rules import RuleJudge
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import read_labelled_pairs

SIGNIFICANCE = 0.01
"""A judge can tell when guessing would be as often right with a probability below this."""
_FILE = "judge_pairs.jsonl"

OnProgress = Callable[[int, int], None]
Orders = tuple[float, float]
"""A judge's preference for the first answer of a pair when shown first, and when shown second."""


@dataclass(frozen=True)
class KnownPair:
    """Two answers of which the first is known to be better, or both to be equally good."""

    comparison: Comparison
    equal: bool = False


@dataclass(frozen=True)
class Tally:
    """How often a judge was right about pairs with a better answer, and about equal ones."""

    right: int
    wrong: int
    tie: int
    equal: int
    equal_tie: int

    @property
    def n(self) -> int:
        """How many pairs have a better answer."""
        return self.right + self.wrong + self.tie

    @property
    def accuracy(self) -> float:
        """The share that it got right, a tie counting half; 0.5 is guessing."""
        return (self.right + self.tie / 2) / self.n if self.n else math.nan

    @property
    def ties(self) -> float:
        """The share of pairs with a better answer that it called ties."""
        return self.tie / self.n if self.n else math.nan

    @property
    def equal_ties(self) -> float:
        """The share of equal pairs that it called ties; NaN where there are none."""
        return self.equal_tie / self.equal if self.equal else math.nan

    def interval(self) -> tuple[float, float]:
        """A 95 % interval of `accuracy` (Wilson's score interval, as if ties were half right).

        Conservative where there are ties, which scatter less than right and wrong.
        """
        n = self.n
        if not n:
            return math.nan, math.nan
        z2 = 1.959964**2
        middle = (self.accuracy + z2 / (2 * n)) / (1 + z2 / n)
        spread = self.accuracy * (1 - self.accuracy) / n + z2 / (4 * n * n)
        half = math.sqrt(z2 * spread) / (1 + z2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class JudgeReport:
    """What a judge is worth on a set of test pairs.

    `once` counts the verdicts of one order, every other pair swapped, `averaged` those of both
    orders averaged, and `both_orders` says which of them the judge goes by in use; `by_axis` are
    the latter for each axis.
    `position_bias` is the share of verdicts for the answer shown first less that for the one shown
    second; a judge that looks at the answers only has 0. `contradicted` is the share of pairs of
    which it preferred the same place in both orders. Both are None for a person, who is asked once
    in a shuffled order. `p_value` is that of the sign test: as many right, of those that it
    decided, by guessing.
    """

    judge: str
    by_axis: Mapping[str, Tally]
    once: Tally
    averaged: Tally
    both_orders: bool
    position_bias: float | None
    contradicted: float | None
    p_value: float

    @property
    def used(self) -> Tally:
        """The tally of the judge as it is used."""
        return self.averaged if self.both_orders else self.once

    @property
    def can_tell(self) -> bool:
        """Whether the judge does better than guessing."""
        return self.p_value < SIGNIFICANCE

    @property
    def finding(self) -> str:
        """One line that says whether the judge can be relied on."""
        n = self.averaged.n
        said = f"the judge {self.judge} {'can' if self.can_tell else 'cannot'} tell"
        if 0.5**n >= SIGNIFICANCE:  # all of them right would be no proof
            said = f"{n} test pairs are too few to say whether the judge {self.judge} can tell"
        return (
            f"{said} better answers from worse ones: right in {self.used.accuracy:.0%} of {n} test"
            " pairs, guessing is 50%"
        )


def shipped_pairs(axis: str) -> tuple[KnownPair, ...]:
    """The test pairs that ship for a built-in axis; none for an axis that the demo world lacks.

    They come in a mixed order, so that any beginning of them is a fair sample.
    """
    return tuple(_shipped(axis))


def axes_for(judge: Judge) -> tuple[str, ...]:
    """The axes with test pairs that `judge` has an opinion on; a rule file knows its aspects."""
    known = judge.aspects if isinstance(judge, RuleJudge) else AXES
    return tuple(axis for axis in AXES if axis in known)


def read_test_pairs(path: str | Path, axis: Axis) -> tuple[KnownPair, ...]:
    """The test pairs of a person's own file of labelled pairs: `query`, `chosen`, `rejected`.

    Raises `BadInputError` with the line number.
    """
    pairs = read_labelled_pairs(path, axis).pairs
    if not pairs:
        raise BadInputError(f"no pair of {printable(str(path))} can be used to test a judge")
    return tuple(KnownPair(Comparison(p.query, p.chosen, p.rejected, axis)) for p in pairs)


def measure(
    judge: Judge,
    pairs: Sequence[KnownPair],
    on_progress: OnProgress | None = None,
    *,
    known: Sequence[Orders] = (),
    keep: Callable[[Orders], None] = lambda _: None,
) -> JudgeReport:
    """Ask `judge` about every pair, in both orders, and count. Raises what the judge raises.

    `on_progress(done, total)` counts pairs. `known` is what it said of the first of them before,
    and `keep` gets what it says of each of the others, one after the other.
    """
    if not pairs:
        raise BadInputError("there are no pairs to test the judge on")
    inner, both_orders, band = judge, True, 0.0
    if isinstance(judge, Asked):
        inner, both_orders, band = judge.inner, judge.both_orders, judge.tie_band
    verdicts = list(known[: len(pairs)])
    for orders in _in_orders(inner, pairs[len(verdicts) :]):
        keep(orders)
        verdicts.append(orders)
        if on_progress is not None:
            on_progress(len(verdicts), len(pairs))

    def sign(preference: float) -> int:
        return (preference > band) - (preference < -band)

    singles = [(sign(first), sign(second)) for first, second in verdicts]
    once = [(p, singles[i][i % 2]) for i, p in enumerate(pairs)]
    averaged = [(p, sign(sum(v) / 2)) for p, v in zip(pairs, verdicts, strict=True)]
    used = averaged if both_orders else once
    axes = dict.fromkeys(pair.comparison.axis.name for pair in pairs)
    tally = _tally(averaged)
    blind = isinstance(inner, HumanJudge)
    return JudgeReport(
        judge=judge.name,
        by_axis={a: _tally([(p, s) for p, s in used if p.comparison.axis.name == a]) for a in axes},
        once=_tally(once),
        averaged=tally,
        both_orders=both_orders,
        position_bias=None if blind else sum(a - b for a, b in singles) / (2 * len(pairs)),
        contradicted=None if blind else sum(a * b < 0 for a, b in singles) / len(pairs),
        p_value=guessing_p_value(tally.right, tally.wrong),
    )


def guessing_p_value(right: int, wrong: int) -> float:
    """The probability that guessing decides at least `right` of `right + wrong` rightly."""
    from scipy.stats import binom

    return float(binom.sf(right - 1, right + wrong, 0.5)) if right + wrong else 1.0


def _in_orders(judge: Judge, pairs: Sequence[KnownPair]) -> Iterator[Orders]:
    """The orders of each pair."""
    asked = [pair.comparison for pair in pairs]
    if isinstance(judge, HumanJudge):
        # Whose order is decided by the texts: a second question would be the same one.
        yield from ((v.preference, v.preference) for v in judge.compare(asked))
        return
    verdicts = judge.compare(order for c in asked for order in (c, swapped(c)))
    for verdict in verdicts:
        orders = merged(verdict, next(verdicts)).orders
        assert orders is not None
        yield orders


def _tally(judged: Sequence[tuple[KnownPair, int]]) -> Tally:
    better = [sign for pair, sign in judged if not pair.equal]
    equal = [sign for pair, sign in judged if pair.equal]
    return Tally(
        right=better.count(1),
        wrong=better.count(-1),
        tie=better.count(0),
        equal=len(equal),
        equal_tie=equal.count(0),
    )


def _shipped(axis: str) -> Iterator[KnownPair]:
    text = resources.files("alignez_edge.demo").joinpath(_FILE).read_text(encoding="utf-8")
    for line in text.splitlines():
        record = json.loads(line)
        if record["axis"] == axis:
            yield KnownPair(
                Comparison(
                    record["query"],
                    record["first"],
                    record["second"],
                    Axis.builtin(axis),
                    facts={"topic": record["topic"]},
                ),
                equal=record["equal"],
            )
