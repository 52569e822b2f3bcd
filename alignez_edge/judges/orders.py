"""Asking a judge fairly: equal answers are ties without asking, others are shown in both orders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from alignez_edge.judges.judging import Comparison, Judge, Judgement

Ask = Callable[[Iterable[Comparison]], Iterator[Judgement]]


@dataclass(frozen=True)
class Asked:
    """`inner`, asked only about answers that differ, and in both orders unless told otherwise.

    The preference is the mean of what it preferred in the two orders, so that a judge that always
    takes the first one shown takes none. A preference within `tie_band` of 0 is a tie. Scores are
    the means of both orders, of the aspects that were scored in both.
    """

    inner: Judge
    both_orders: bool = True
    tie_band: float = 0.0

    @property
    def name(self) -> str:
        """The inner judge's, and that both orders were asked for."""
        return f"{self.inner.name}, both orders" if self.both_orders else self.inner.name

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        """See `Judge`."""
        return ask_where_different(self._in_orders, comparisons)

    def _in_orders(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        if not self.both_orders:
            for verdict in self.inner.compare(comparisons):
                yield self._settled(verdict)
            return
        twice = (order for asked in comparisons for order in (asked, swapped(asked)))
        verdicts = self.inner.compare(twice)
        for verdict in verdicts:
            yield self._settled(merged(verdict, next(verdicts)))

    def _settled(self, verdict: Judgement) -> Judgement:
        if abs(verdict.preference) > self.tie_band:
            return verdict
        return replace(verdict, preference=0.0)


def swapped(comparison: Comparison) -> Comparison:
    """The same question with the answers in the other order."""
    return replace(comparison, first=comparison.second, second=comparison.first)


def merged(verdict: Judgement, other_way: Judgement) -> Judgement:
    """The verdict on a comparison out of those on it and on it swapped."""
    orders = verdict.preference, 0.0 - other_way.preference
    scores = {
        aspect: (
            (first + other_way.scores[aspect][1]) / 2,
            (second + other_way.scores[aspect][0]) / 2,
        )
        for aspect, (first, second) in verdict.scores.items()
        if aspect in other_way.scores
    }
    return Judgement(sum(orders) / 2, scores, orders)


def ask_where_different(ask: Ask, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
    """Verdicts in order: ties where the answers are the same text, what `ask` says elsewhere."""
    same: deque[bool] = deque()  # of the comparisons that `ask` has looked ahead to

    def different() -> Iterator[Comparison]:
        for comparison in comparisons:
            same.append(comparison.first.strip() == comparison.second.strip())
            if not same[-1]:
                yield comparison

    for verdict in ask(different()):
        while same.popleft():
            yield Judgement(0.0)
        yield verdict
    yield from (Judgement(0.0) for _ in same)
