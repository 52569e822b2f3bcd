"""Which form of request does a model understand, and does consensus know: `python -m
benchmarks.requests`.

Every form asks for both sides of questions that the build's choice has not seen. Consensus
(`alignez_edge/calibration/consensus.py`) scores the answers without a judge; an instrument that
nobody here wrote scores the same answers. The form that a build takes should be the one that the
instrument finds best, or one that reaches most of its span.
"""

from __future__ import annotations

from alignez_edge.threads import calm

calm()  # before NumPy and llama.cpp are loaded

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignez_edge.build.choice import N_MOST, N_TOKENS
from alignez_edge.build.steps import Builder
from alignez_edge.calibration.consensus import Text, evidence, spans, weigh
from alignez_edge.demo.bundled import demo_file
from alignez_edge.modelfiles.names import DEMO, ModelNames
from alignez_edge.preferences.answers import write_answers
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.choice import FormScore, RequestChoice
from alignez_edge.preferences.prompts import cut_next_turn
from alignez_edge.runtime.model import Model
from benchmarks.steering_report import insert

ANSWER_TOKENS = 48
Judge = Callable[[str], float]
"""How much of an axis' positive side an answer shows, by an instrument."""

OWN = {
    axis.name: axis
    for axis in map(Axis.load, sorted((Path(__file__).parent / "axes").glob("*.toml")))
}
"""Axes that are not built in; they have no queries of their own."""
AXES = {
    "smollm2": ("cheerful", "concise", "formal", "simple", "lists", "questions"),
    "demo": ("cheerful", "formal", "polite", "helpful"),
}
_CONTRACTION = re.compile(r"\b\w+['’](?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


def judge(axis: str) -> Judge | None:
    """An instrument for an axis' positive side; None if there is none.

    Cheerful: VADER's compound score. Concise: words, tens of them, negative. Formal: contractions
    in 100 words, negative. Simple: Flesch's reading ease, hundredths. Lists: lines that are items.
    Questions: question marks.
    """
    if axis == "cheerful":
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        vader = SentimentIntensityAnalyzer()
        return lambda text: float(vader.polarity_scores(text)["compound"])
    if axis == "simple":
        from textstat import flesch_reading_ease

        return lambda text: flesch_reading_ease(text) / 100 if len(text.split()) > 1 else 0.0
    simple: dict[str, Judge] = {
        "concise": lambda text: -len(text.split()) / 10,
        "formal": lambda text: -100 * len(_CONTRACTION.findall(text)) / max(1, len(text.split())),
        "lists": lambda text: float(len(_ITEM.findall(text))),
        "questions": lambda text: float(text.count("?")),
    }
    return simple.get(axis)


@dataclass(frozen=True)
class Row:
    """A form on an axis: what consensus says, and the instrument's span with its error."""

    score: FormScore
    span: float
    error: float


@dataclass(frozen=True)
class Found:
    """An axis: the form that a build takes, and all forms as measured."""

    axis: str
    choice: RequestChoice
    rows: tuple[Row, ...]

    @property
    def ratio(self) -> float | None:
        """The taken form's span over that of the best form by the instrument; None if no form
        moves it by two errors."""
        best = max(self.rows, key=lambda row: row.span)
        if best.span <= 2 * best.error:
            return None
        return next(r.span for r in self.rows if r.score.form == self.choice.form) / best.span


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--axes", nargs="+", help="default: those that have an instrument")
    parser.add_argument("--queries", type=int, default=24, help="unseen by the choice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=Path, help="keep all answers here, as JSON lines")
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    options = parser.parse_args(arguments)
    lines: list[str] = []
    for name in options.models:
        with Model.load(model_file(name), threads=options.threads) as model:
            found = []
            for axis in options.axes or AXES[name]:
                found.append(measure(model, name, axis, options.queries, options.texts))
                print("\n".join(table(name, found[-1:])), flush=True)
            lines += [*([""] if lines else []), *table(name, found)]
    if options.page:
        insert("\n".join(lines), options.page, "requests")


def model_file(name: str) -> Path:
    """The file of a model by its short name or path."""
    return demo_file() if name == DEMO else ModelNames().find(name)


def measure(model: Model, name: str, axis_name: str, n: int, texts: Path | None) -> Found:
    """One axis: the choice of a build, and all forms on `n` other questions."""
    axis = OWN.get(axis_name) or Axis.builtin(axis_name)
    queries = list(questions(name, axis))
    with tempfile.TemporaryDirectory() as work:
        builder = Builder(model, axis, 0, 16, None, work, lambda *_: None)
        forms = builder.forms()
        choice = builder.choice(forms, queries)
        unseen = queries[N_MOST:][:n]
        tasks = [(query, form) for query in unseen for form in forms]
        written = write_answers(
            builder.complete, axis, tasks, chat=builder.chat, seed=1, max_tokens=ANSWER_TOKENS
        )
    asked = [
        Text(query, cut_next_turn(answer.text), form.name, answer.ended)
        for (query, form), answers in zip(tasks, written, strict=True)
        for answer in answers
    ]
    told = evidence(model, axis, asked, n_tokens=N_TOKENS)
    first: dict[str, list[int]] = {form.name: [] for form in forms}
    for i in range(0, len(asked), 2):
        first[asked[i].form].append(i)
    apart = [np.mean([told[i] - told[i + 1] for i in own], axis=0) for own in first.values()]
    scores = spans(told, weigh(np.array(apart)))
    instrument = judge_of(name, axis_name)
    judged = np.array([instrument(text) for text in asked])
    if texts:
        with texts.open("a", encoding="utf-8") as file:
            for text, row, value in zip(asked, told, judged, strict=True):
                record = {"model": name, "axis": axis_name, **text.__dict__, "told": list(row)}
                file.write(json.dumps({**record, "judged": value}) + "\n")
    rows = []
    for form in forms:
        own = first[form.name]
        moved = np.array([judged[i] - judged[i + 1] for i in own])
        score = FormScore.of(form.name, [scores[i // 2] for i in own])
        rows.append(Row(score, float(moved.mean()), float(moved.std(ddof=1) / np.sqrt(len(own)))))
    return Found(axis_name, choice, tuple(rows))


def judge_of(model: str, axis: str) -> Callable[[Text], float]:
    """The instrument for answers of a model: on the demo model its rule judge, which knows its
    world."""
    if model == "demo":
        from alignez_edge.demo.rules import judge as rules
        from alignez_edge.demo.rules import topic_of

        return lambda text: float(rules(text.text, topic_of(text.query) or "").scores[axis])
    own = judge(axis)
    if own is None:
        raise SystemExit(f"there is no instrument for {axis}")
    return lambda text: own(text.text)


def questions(model: str, axis: Axis) -> Iterator[str]:
    """What is asked: the demo model's own questions, the axis' own, or one of each built-in axis in
    turn."""
    if model == "demo":
        from alignez_edge.demo.bundled import demo_queries

        yield from (entry["query"] for entry in demo_queries("build"))
    elif axis.queries:
        yield from axis.queries
    else:
        every = [Axis.builtin(name).queries for name in ("helpful", "cheerful", "concise")]
        yield from (query for row in zip(*every, strict=False) for query in row)


def table(model: str, found: Sequence[Found]) -> list[str]:
    """The forms of each axis, as Markdown."""
    lines = [
        f"| {model}, axis | form | consensus span, nats per token | right way round "
        "| instrument's span | |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for each in found:
        for row in sorted(each.rows, key=lambda row: -row.score.sure):
            score = row.score
            taken = score.form == each.choice.form
            told = f" (ratio {each.ratio:.2f})" if each.ratio is not None else " (none moves it)"
            lines.append(
                f"| {each.axis} | {score.form} | {score.span:+.3f} ± {score.error:.3f} "
                f"| {score.right:.0%} | {row.span:+.2f} ± {row.error:.2f} "
                f"| {'taken' + told if taken else ''} |"
            )
    return lines


if __name__ == "__main__":
    main()
