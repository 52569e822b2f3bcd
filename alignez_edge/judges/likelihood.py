"""A local language model as a judge that is asked nothing: how likely it finds the answers.

A small model, and a base model above all, cannot answer a question about two answers. It still
knows what an answer looks like when a trait is asked for. By Bayes' rule, given that one of the two
was written when the axis' one side was asked for and the other when the other side was, the odds of
either case are

    log odds = m(first) − m(second),    m(a) = log p(a | one side asked) − log p(a | other asked)

and the preference is the probability of the one case less that of the other. Each answer is read by
itself, so there is no order that could matter. A judge that is the steered model itself judges its
own cause: its profiles were calibrated on this very margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from alignez_edge.errors import PromptTooLongError
from alignez_edge.judges.judging import Comparison, Judgement
from alignez_edge.judges.model import too_long
from alignez_edge.preferences import prompts
from alignez_edge.preferences.prompts import SIDES

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.score import Scorer


class LikelihoodJudge:
    """A GGUF model. `scores` are the answers' margins `m` in nats, for the side that is judged.

    `load` gives the model; it is called at the first comparison.
    """

    def __init__(self, name: str, load: Callable[[], Model]) -> None:
        self.name = name
        self._load = load

    @cached_property
    def model(self) -> Model:
        """The judging model."""
        return self._load()

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        """See `Judge`. Raises `PromptTooLongError` if an answer is too long for the model."""
        from alignez_edge.runtime.score import Scorer

        with Scorer(self.model) as scorer:
            for asked in comparisons:
                try:
                    first, second = (
                        self._margin(scorer, asked, text) for text in (asked.first, asked.second)
                    )
                except PromptTooLongError as failure:
                    raise too_long(self.name, asked, failure) from None
                yield Judgement(math.tanh((first - second) / 2), {"margin": (first, second)})

    def _margin(self, scorer: Scorer, asked: Comparison, text: str) -> float:
        from alignez_edge.runtime.score import answer_log_prob

        # As the model itself would go on: after a blank where its prompt form ends in a word.
        lead = "" if self.model.template else " "
        answer = self.model.tokenize(lead + text.strip(), begin=False)
        if not text.strip():
            return 0.0  # nothing was written that could tell
        margin = 0.0
        for side in SIDES:
            request = prompts.prompted(asked.query, asked.axis, side)
            prompt = self.model.ask_tokens(request)
            (rows,) = scorer.log_probs(prompt, answer)
            margin += answer_log_prob(rows, answer) * (1 if side == asked.side else -1)
        return margin
