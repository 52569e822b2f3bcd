"""What strength 1 means: as much as prompting.

Everything is teacher-forced on pairs that the directions have not seen; nothing is sampled. For a
held-back pair with its plain query as prompt, the *preference margin* is the log-probability per
token of the wanted answer minus that of the unwanted one, against the same without steering (nats
per token). Prompting is measured the same way: the trait asked for in the prompt, either side. The
*KL from the plain model* is KL(plain || steered) of next-token distributions over both answers:
the two together favour neither side, and the budget is a multiple of what prompting costs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alignez_edge.calibration.unit import Reading
from alignez_edge.preferences import prompts
from alignez_edge.steering.steering import Steering

if TYPE_CHECKING:
    from alignez_edge.interventions.ways import Way
    from alignez_edge.runtime.injection import Conditional, Injection
    from alignez_edge.runtime.model import Model
    from alignez_edge.steering.steerable import Steerable


class Pair(Protocol):
    """A query with the wanted and the unwanted answer."""

    @property
    def query(self) -> str: ...
    @property
    def chosen(self) -> str: ...
    @property
    def rejected(self) -> str: ...


def read_pair(
    model: Model,
    plain: Sequence[int],
    asked: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    steerings: Sequence[Injection | Conditional | None],
    n_ctx: int | None = None,
) -> Reading:
    """Measure one pair.

    `plain` is the prompt; `asked` the prompts that ask for the wanted and for the unwanted side;
    `answers` the wanted and the unwanted answer; `steerings` those of the grid, + and then -.
    All are tokens. `n_ctx` is the window, by default as for a `Session`.
    """
    from alignez_edge.runtime.score import Scorer, answer_log_prob, kl_divergence

    n_steered, n_asked = len(steerings), len(asked)
    gain = np.zeros((2, n_steered + n_asked))
    drift = np.zeros((2, n_steered + n_asked))
    # One context a pair: what a pair's numbers are must not depend on the pairs before it.
    with Scorer(model, n_ctx=n_ctx) as scorer:
        for side, answer in enumerate(answers):
            rows = scorer.log_probs(plain, answer, [None, *steerings])
            base = next(rows)
            before = answer_log_prob(base, answer)
            changed = chain(rows, *(scorer.log_probs(prompt, answer) for prompt in asked))
            for i, row in enumerate(changed):
                gain[side, i] = (answer_log_prob(row, answer) - before) / len(answer)
                drift[side, i] = kl_divergence(base, row)
    margin, mean_drift = gain[0] - gain[1], drift.mean(axis=0)
    return Reading(
        margin[:n_steered], mean_drift[:n_steered], margin[n_steered:], mean_drift[n_steered:]
    )


def read_strengths(
    profile: Steerable,
    model: Model,
    pair: Pair,
    strengths: Sequence[float],
    way: Way,
    n_ctx: int | None = None,
) -> Reading:
    """What `profile` at each of `strengths`, injected by `way`, does to a pair, and what prompting
    does; see `read_pair`. Raises `BadInputError` if this model does not allow `way`."""
    plain = model.ask_tokens(pair.query)
    texts = [prompts.prompted(pair.query, profile.axis, side) for side in prompts.SIDES]
    asked = [model.ask_tokens(text) for text in texts]
    answers = [model.tokenize(text, begin=False) for text in (pair.chosen, pair.rejected)]
    steerings = [Steering(((profile, s),), way).injection(model) for s in strengths]
    return read_pair(model, plain, asked, answers, steerings, n_ctx)
