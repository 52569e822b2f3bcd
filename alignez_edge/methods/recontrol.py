"""RE-Control (Kong et al. 2024, arXiv 2406.05954): steering by a value function on scored answers.

    scored = from_pairs(model, pairs)                  # chosen +1, rejected -1, or
    scored = sample_answers(model, queries, score)     # the model's own answers, scored
    kind = train(model, scored, seed=0)
    model.generate(prompts, steering=kind * 0.5)

The value function learns from the last hidden states of scored answers what an answer's reward
will be. At every token of a new answer a few steps of gradient ascent on it move the last hidden
state, before the output matrix; the states that later tokens attend to stay as they are.

The paper's step size and number of steps are picked on validation prompts. Here the number is fixed
and the size is such that strength 1 is a given number of nats (KL) from the model's own
distributions: a cost that means the same for every model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.value_function import TOP, ReControl
from alignez_edge.methods.base import Finding, Material
from alignez_edge.methods.value_training import fit_value
from alignez_edge.preferences.pairs import PreferencePair

if TYPE_CHECKING:
    from alignez_edge.runtime.logits import OutputMatrix
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Sampling

N_STATES = 32
"""States of one answer that the value function learns from, at most: evenly spread, the first and
the last always among them. Keeps the memory of 500 answers under 300 MB at n_embd 4096."""

PER_QUERY = 16
"""Answers sampled to each query."""
DRIFT = 0.05
"""KL of strength 1 from the plain model, nats per token. On the demo model its
answers are then 0.02 to 0.1 nats a token less likely than plain ones."""
_PROBED_ANSWERS, _PROBED_TOKENS = 16, 8
"""How many answers, and tokens of each, the KL is measured on."""
_MOST_SIZE = 1e9


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer to a query and its reward; the tokens as the model is given them."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Training:
    """What training found: the steering, and the share of the held-out rewards' variance that the
    value function explains, over all tokens (early ones cannot know much: 0.1 to 0.3 steer well).
    At 0 or below nothing was learned, and the steering is noise."""

    steering: ReControl
    explained: float


class ValueSteering:
    """RE-Control as a method: see `Method`."""

    def reads(self, model: Model) -> None:
        """No layer's states; but the logits must be linear in the last hidden state."""
        from alignez_edge.runtime.logits import output_matrix

        output_matrix(model)

    def find(self, material: Material) -> Finding:
        """A value function of the pairs, and no vector."""
        model = material.model
        material.progress("value function", 0, 1)
        scored = from_pairs(model, [material.pairs[row] for row in material.rows])
        trained = train(model, scored, seed=material.seed, n_ctx=material.n_ctx)
        material.progress("value function", 1, 1)
        nothing = ControlVector.zeros(model.n_layer, model.n_embd)
        return Finding(nothing, intervention=trained.steering)


METHOD = ValueSteering()


def from_pairs(model: Model, pairs: Iterable[PreferencePair]) -> list[ScoredAnswer]:
    """Labelled pairs as scored answers to the plain query: +1 what was chosen, -1 the other."""
    return [
        ScoredAnswer(model.ask_tokens(pair.query), tuple(model.tokenize(text, begin=False)), score)
        for pair in pairs
        for text, score in ((pair.chosen, 1.0), (pair.rejected, -1.0))
    ]


def sample_answers(
    model: Model,
    queries: Sequence[str],
    score: Callable[[str, str], float],
    *,
    sampling: Sampling,
    per_query: int = PER_QUERY,
    width: int = 16,
) -> list[ScoredAnswer]:
    """The model's own answers, `per_query` to each query, each scored by `score(query, answer)`.

    Answer `i` of all is drawn with the seed `sampling.seed + i`; empty ones are left out. Raises
    `BadInputError` if a score is not a finite number.
    """
    from alignez_edge.runtime.batch import generate_batch
    from alignez_edge.runtime.requests import Request

    asked = [query for query in queries for _ in range(per_query)]
    sampling = sampling.with_stops(model.stops)
    requests = (
        Request(model.ask_tokens(query), sampling.with_seed(sampling.seed + i), i)
        for i, query in enumerate(asked)
    )
    found: dict[int, ScoredAnswer] = {}
    for done in generate_batch(model, requests, width=width):
        if done.tokens:
            query = asked[done.index]
            found[done.index] = ScoredAnswer(
                model.ask_tokens(query), done.tokens, _reward(score(query, done.text))
            )
    # Answers finish in any order; training must not depend on it.
    return [found[index] for index in sorted(found)]


def train(
    model: Model,
    answers: Sequence[ScoredAnswer],
    *,
    seed: int,
    drift: float = DRIFT,
    n_ctx: int | None = None,
) -> Training:
    """Train a value function on scored answers of `model`.

    Strength 1 of the result costs `drift` nats a token: KL(plain || steered) of next-token
    distributions, mean of the strengths 1 and -1, on some of the same answers. `n_ctx` is the
    window, by default as for a `Session`. The same arguments give the same steering. Raises
    `BadInputError` for fewer than ten answers or equal scores, and as `ReControl.injection` does.
    """
    from alignez_edge.runtime.logits import last_states, output_matrix

    matrix = output_matrix(model)
    texts = ((answer.prompt, answer.answer) for answer in answers)
    states = [thinned(rows) for rows in last_states(model, texts, n_ctx)]
    fitted = fit_value(states, [answer.score for answer in answers], seed=seed)
    steering = ReControl(fitted.value, size=1.0)
    size = _size(steering, list(_probes(model, matrix, answers, n_ctx)), drift)
    return Training(replace(steering, size=size), fitted.explained)


def thinned(states: FloatArray, most: int = N_STATES) -> FloatArray:
    """At most `most` rows, evenly spread, the first and the last among them; a copy."""
    n = len(states)
    return states[np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))]


@dataclass(frozen=True)
class _Probe:
    """One next-token distribution: its `hidden` state `(1, n_embd)`, the rows of the likeliest
    tokens in the output matrix, scaled, `(top, n_embd)`, and their probabilities `(top,)`."""

    hidden: FloatArray
    rows: FloatArray
    p: FloatArray

    def kl(self, move: FloatArray) -> float:
        """KL(plain || moved), in nats. All other tokens keep their logits, so with the changes
        `c` of these it is `log(1 + sum p (e^c - 1)) - sum p c`."""
        change = (self.rows @ move).astype(np.float64)
        # log-sum-exp around the largest change: a trial step may be absurdly long.
        top = max(0.0, float(change.max()))
        rest = max(0.0, 1.0 - float(self.p.sum()))
        total = rest * math.exp(-top) + float(self.p @ np.exp(change - top))
        return top + math.log(total) - float(self.p @ change)


def _probes(
    model: Model, matrix: OutputMatrix, answers: Sequence[ScoredAnswer], n_ctx: int | None
) -> Iterator[_Probe]:
    """Next-token distributions from some of the answers."""
    from alignez_edge.runtime.logits import last_states
    from alignez_edge.runtime.score import Scorer

    some = answers[:: -(-len(answers) // _PROBED_ANSWERS)]
    with Scorer(model, n_ctx=n_ctx) as scorer:
        texts = ((answer.prompt, answer.answer) for answer in some)
        for answer, states in zip(some, last_states(model, texts, n_ctx), strict=True):
            (rows,) = scorer.log_probs(answer.prompt, answer.answer)
            picked = np.linspace(0, len(rows) - 1, min(len(rows), _PROBED_TOKENS)).astype(int)
            for i in picked:
                tokens = np.argsort(rows[i])[-TOP:]
                weights = np.float32(matrix.scale) * matrix.rows(tokens)
                yield _Probe(states[i : i + 1], weights, np.exp(rows[i, tokens]))


def _size(steering: ReControl, probes: Sequence[_Probe], drift: float) -> float:
    """The step size at which strengths 1 and -1 cost a KL of `drift` on average, by bisection."""
    hidden = np.concatenate([probe.hidden for probe in probes])

    def found(size: float) -> float:
        moves = replace(steering, size=size).moves(hidden)
        pairs = zip(probes, moves, strict=True)
        return float(np.mean([probe.kl(s * move) for probe, move in pairs for s in (1, -1)]))

    low, high = 0.0, 1.0
    while found(high) < drift:
        low, high = high, 4 * high
        if high > _MOST_SIZE:
            raise BadInputError(
                "the value function is flat: no step along it moves the model's distributions",
                "more answers, or scores that differ more, are needed",
            )
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < drift else (low, middle)
    return high


def _reward(score: object) -> float:
    if not isinstance(score, (int, float, np.number)) or not math.isfinite(score):
        raise BadInputError(f"a score must be a finite number, not {printable(str(score), 40)}")
    return float(score)
