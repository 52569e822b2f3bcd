"""Judged answers to the unseen queries, of a model file or of the corpus itself, and their means.

All arrays are `(n_query, n_seed)`, scores `(n_query, n_seed, n_axis)` in the order of
`judge.AXES`. Answers to one query are no independent observations, so intervals are of the means
by query.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES, judge
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import SIDES, Side
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from demo_model import corpus, style

SAMPLING = Sampling(temperature=0.8, top_p=1.0, max_tokens=160)
FORMS: dict[str, str] = {
    "chat template": "",
    "question/answer": "Question: {}\nAnswer:",
    "plain": "{}\n",
}
"""The text of a prompt in each form; the model file's own template makes the chat form."""
CHAT = "chat template"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Condition:
    """What an answer is asked to be: nothing (a plain query), or one side of an axis.

    A side is asked for in the method's own form, a numbered list of characteristics, or `briefly`
    by the one item `Be {trait}`.
    """

    axis: str = ""
    side: Side | None = None
    briefly: bool = False

    def prompt(self, query: str) -> str:
        """The query, with the side asked for where there is one; the same list for one query."""
        if self.side is None:
            return query
        trait = prompts.trait(_axis(self.axis), self.side)
        if self.briefly:
            return prompts.ask(query, trait)
        known = style.ITEMS[self.axis, 1 if self.side == "positive" else -1]
        drawn = random.Random(f"{query} {self.axis} {self.side}").sample(known, LISTED - 1)
        return prompts.answer(query, [f"Be {trait}", *drawn])


_axis = cache(Axis.builtin)

PLAIN = Condition()
LISTED = 3
"""Characteristics of a condition: what the corpus' lists have most often."""
CONDITIONS = (PLAIN, *(Condition(axis, side) for axis in AXES for side in SIDES))
BRIEF = tuple(Condition(axis, side, briefly=True) for axis in AXES for side in SIDES)


@dataclass(frozen=True)
class Judged:
    """The judge's findings; `knowledge` is NaN where nothing is claimed.

    `stopped` tells the answers that ended by themselves, `on_topic` those that name the topic.
    """

    scores: Floats
    knowledge: Floats
    coherence: Floats
    sentences: Floats
    loop: Floats
    stopped: Floats
    on_topic: Floats


@dataclass(frozen=True)
class Figure:
    """A mean and the half width of its 95 % interval."""

    mean: float
    half: float


def unseen_queries() -> list[tuple[str, str]]:
    """The 60 `(query, topic)` that are no prompt of the corpus."""
    return [(entry["query"], entry["topic"]) for entry in demo_queries("unseen")]


def prompt_tokens(model: Model, form: str, text: str) -> tuple[int, ...]:
    """The whole prompt in one of `FORMS`, begin token included."""
    if form == CHAT:
        return model.ask_tokens(text)
    return tuple(model.tokenize(FORMS[form].format(text), begin=True))


def judged_model(
    path: Path, form: str, condition: Condition, seeds: int, queries: int | None = None
) -> Judged:
    """Answers of a model file, `seeds` to each of the first `queries` (all) unseen queries.

    The draws are the same for every model file, so that files that differ little answer alike.
    """
    chosen = unseen_queries()[:queries]
    first = (*CONDITIONS, *BRIEF).index(condition) * len(chosen) * seeds
    with Model.load(path, threads=1, gpu_layers=0) as model:
        requests = [
            Request(
                prompt_tokens(model, form, condition.prompt(query)),
                SAMPLING.with_seed(first + number * seeds + seed),
                number * seeds + seed,
            )
            for number, (query, _) in enumerate(chosen)
            for seed in range(seeds)
        ]
        answers = {c.index: (c.text, c.finish_reason) for c in generate_batch(model, requests)}

    def answer(number: int, seed: int) -> tuple[str, bool]:
        text, reason = answers[number * seeds + seed]
        return text, reason == "stop"

    return _judged([topic for _, topic in chosen], seeds, answer)


def judged_corpus(condition: Condition, seeds: int) -> Judged:
    """Answers as the corpus would give them: what a model that learned all of it would do.

    The answer follows its condition in 88 % of the documents; a list whose items all name one side
    can hardly mean another.
    """
    rng = random.Random(CONDITIONS.index(condition))
    topics = [topic for _, topic in unseen_queries()]

    def answer(number: int, seed: int) -> tuple[str, bool]:
        wanted = {}
        if condition.side is not None:
            axis, side = condition.axis, 1 if condition.side == "positive" else -1
            wanted = {axis: side}
        levels = corpus.draw_levels(rng, wanted)
        return corpus.answer(rng, topics[number], levels), True

    return _judged(topics, seeds, answer)


def _judged(
    topics: list[str], seeds: int, answer: Callable[[int, int], tuple[str, bool]]
) -> Judged:
    shape = (len(topics), seeds)
    scores = np.empty((*shape, len(AXES)))
    knowledge, coherence, sentences, loop, stopped, on_topic = np.empty((6, *shape))
    for number, topic in enumerate(topics):
        for seed in range(seeds):
            text, ended = answer(number, seed)
            verdict = judge(text, topic)
            at = number, seed
            scores[at] = [verdict.scores[axis] for axis in AXES]
            knowledge[at] = np.nan if verdict.knowledge is None else verdict.knowledge
            coherence[at], sentences[at] = verdict.coherence, verdict.sentences
            loop[at], stopped[at] = verdict.loop, ended
            on_topic[at] = topic in text.lower()
    return Judged(scores, knowledge, coherence, sentences, loop, stopped, on_topic)


def figure(values: Floats) -> Figure:
    """The mean of `(n_query, n_seed)` values, NaN left out, its interval clustered by query."""
    by_query = np.nanmean(values[~np.isnan(values).all(axis=1)], axis=1)
    half = stats.t.ppf(0.975, len(by_query) - 1) * stats.sem(by_query)
    return Figure(float(by_query.mean()), float(half))


def figures(answers: Mapping[Condition, Judged]) -> dict[str, Figure]:
    """Every figure of the table of one model, by name; `answers` has all `CONDITIONS`.

    `knowledge` is of the answers that were asked to be helpful; `loops`, `coherence` and
    `sentences` are of all answers.
    """
    table: dict[str, Figure] = {}
    for index, axis in enumerate(AXES):
        positive, negative, plain = (
            answers[condition].scores[..., index]
            for condition in (Condition(axis, "positive"), Condition(axis, "negative"), PLAIN)
        )
        table[f"{axis} positive"] = figure(positive)
        table[f"{axis} plain"] = figure(plain)
        table[f"{axis} negative"] = figure(negative)
        table[f"{axis} difference"] = figure(positive - negative)
    helpful = answers[Condition("helpful", "positive")]
    table["knowledge"] = figure(helpful.knowledge)
    table["on topic"] = figure(helpful.on_topic)
    for name, field in (("loops", "loop"), ("coherence", "coherence"), ("sentences", "sentences")):
        joined = np.concatenate([getattr(answers[c], field) for c in CONDITIONS], axis=1)
        table[name] = figure(joined)
    return table


def brief_differences(answers: Mapping[Condition, Judged]) -> dict[str, Figure]:
    """By axis, how far the sides lie apart that are asked for by one item; needs all of `BRIEF`."""
    found = {}
    for index, axis in enumerate(AXES):
        sides = [answers[Condition(axis, side, briefly=True)].scores[..., index] for side in SIDES]
        found[axis] = figure(sides[0] - sides[1])
    return found


def end_shares(answers: Judged, longest: int = 7) -> list[tuple[int, float]]:
    """For k = 1 to `longest`: how many answers reached the end of sentence k, and the share of
    those that ended there."""
    rows = []
    complete = answers.sentences - (answers.stopped == 0)
    for k in range(1, longest + 1):
        reached = complete >= k
        ended = (answers.sentences == k) & (answers.stopped == 1)
        rows.append((int(reached.sum()), float(ended.sum() / max(1, reached.sum()))))
    return rows


def correlations(answers: Judged) -> Floats:
    """Correlation of the axes' scores over all answers, `(n_axis, n_axis)`."""
    return np.corrcoef(answers.scores.reshape(-1, len(AXES)).T)
