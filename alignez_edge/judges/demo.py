"""The demo model's rules as a judge of answers about its world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from alignez_edge.demo.rules import AXES, judge, topic_of
from alignez_edge.demo.world import world
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.judges.judging import Comparison, Judgement


@dataclass(frozen=True)
class DemoJudge:
    """Prefers the answer with the higher score on the axis (`alignez_edge/demo/rules.py`).

    `scores` are those of all axes of the demo world, and `knowledge` where both answers claim
    something.
    """

    name: str = "demo"
    instant: ClassVar[bool] = True

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        """See `Judge`. Raises `BadInputError` for an axis or a query that is not of its world."""
        for comparison in comparisons:
            yield _verdict(comparison)


def _verdict(asked: Comparison) -> Judgement:
    if asked.axis.name not in AXES:
        raise BadInputError(
            f"the demo judge knows no axis called {asked.axis.name}",
            f"it knows {', '.join(AXES)}; use another judge",
        )
    topic = asked.facts.get("topic") or topic_of(asked.query)
    if topic not in world().facts_of:
        raise BadInputError(
            f"the demo judge finds no topic of its own in {printable(asked.query, 80)!r}",
            "it judges answers to the demo model's queries; use another judge",
        )
    first, second = judge(asked.first, topic), judge(asked.second, topic)
    scores = {axis: (first.scores[axis], second.scores[axis]) for axis in AXES}
    if first.knowledge is not None and second.knowledge is not None:
        scores["knowledge"] = first.knowledge, second.knowledge
    one, other = scores[asked.axis.name]
    preference = float((one > other) - (one < other))
    return Judgement(preference if asked.side == "positive" else 0.0 - preference, scores)
