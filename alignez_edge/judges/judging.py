"""What a judge is asked and what it answers: the small interface that all judges stand behind.

A judge sees two answers to one query and says which shows more of one side of an axis. It is never
told which of them was steered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import Side


@dataclass(frozen=True)
class Comparison:
    """Two answers to `query`, of which the better one shows more of `side` of `axis`.

    `facts` are what the file of queries says beside the query (the demo queries: `topic`).
    """

    query: str
    first: str
    second: str
    axis: Axis
    side: Side = "positive"
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What a judge found.

    `preference` is from −1 (the second answer is better) to 1 (the first is); 0 is a tie. `scores`
    are the two answers' own by aspect, where the judge gives any. `orders` is there where a judge
    was shown the answers in both orders: what it preferred with the first shown first, and with
    the first shown second. A judge without position bias prefers the same in both.
    """

    preference: float
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    orders: tuple[float, float] | None = None

    @property
    def position_bias(self) -> float | None:
        """From −1 (it prefers whatever is shown second) to 1 (first); None if asked once."""
        return None if self.orders is None else (self.orders[0] - self.orders[1]) / 2


class Judge(Protocol):
    """Anything that can tell two answers apart.

    One whose verdicts take no time says so by an attribute `instant`, and is asked about every
    query before an evaluation begins: whether it can judge is known then.
    """

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        """One verdict for each comparison, in their order, as they come.

        Raises `AlignezError` if it cannot go on.
        """
        ...
