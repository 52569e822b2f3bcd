"""A person as a judge: blind, in an order that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from alignez_edge.judges.judging import Comparison, Judgement
from alignez_edge.judges.orders import swapped
from alignez_edge.repeatable import derive_seed

AskPerson = Callable[[Comparison], float]
"""Shows the two answers and returns 1 (the first is better), −1 (the second) or 0."""


@dataclass(frozen=True)
class HumanJudge:
    """A person, asked through `ask`.

    Which answer is shown first depends on the texts and the seed alone, and so neither on which of
    them was steered nor on where an interrupted session went on.
    """

    ask: AskPerson
    seed: int = 0
    name: str = "human"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        """See `Judge`."""
        for asked in comparisons:
            texts = sorted((asked.first, asked.second))
            swap = derive_seed(self.seed, asked.query, *texts) % 2 == (asked.first == texts[0])
            preference = self.ask(swapped(asked) if swap else asked)
            yield Judgement(0.0 - preference if swap else preference)
