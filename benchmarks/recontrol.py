"""How far RE-Control moves the demo model: `python -m benchmarks.recontrol`.

For each axis of the demo world a value function is trained on the model's own answers to the build
queries, scored by the rule judge. It is then measured as in `benchmarks.steering`: the judge's
scores on the unseen queries, against plain answers and against prompting, and the cost in nats a
token under the unsteered model. Unlike every other method here it is told the scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES, judge
from alignez_edge.evaluation.measures import Resamples
from alignez_edge.methods.recontrol import DRIFT, Training, sample_answers, train
from alignez_edge.preferences.prompts import SIDES
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer
from benchmarks.steering import (
    PLAIN,
    SAMPLING,
    WIDTH,
    Arm,
    Bench,
    plain_data,
    say,
)

STRENGTHS = (-1.0, -0.5, 0.5, 1.0)
_SEEDS_APART = 1_000_000
"""Training answers are drawn with other seeds than measured ones."""


def recontrol_for(model: Model, axis: str, *, seed: int = 0, drift: float = DRIFT) -> Training:
    """RE-Control trained on plain answers to the build queries, scored by the judge on `axis`."""
    topics = {entry["query"]: entry["topic"] for entry in demo_queries("build")}

    def score(query: str, answer: str) -> float:
        return judge(answer, topics[query]).scores[axis]

    sampling = replace(SAMPLING, seed=(1 + seed) * _SEEDS_APART)
    answers = sample_answers(model, list(topics), score, sampling=sampling, width=WIDTH)
    return train(model, answers, seed=seed, drift=drift)


def measure(
    model: Model, axes: Sequence[str], n_seed: int, limit: int | None, drift: float
) -> dict[str, Any]:
    """All figures by axis and arm; the leaves are `Figure`s and numbers."""

    queries = demo_queries("unseen")[:limit]
    bench = Bench(model, queries, say)
    resamples = Resamples(len(queries))
    table: dict[str, Any] = {}
    with Scorer(model) as scorer:
        plain = bench.answers(PLAIN, None, n_seed, scorer)
        plain_nats = resamples.ratio(plain.nats, plain.tokens)
        for axis in axes:
            column = AXES.index(axis)
            training = recontrol_for(model, axis, drift=drift)
            say(f"{axis}: the value function explains {training.explained:.2f} of the scores")
            arms = {
                f"steered {s:+g}": bench.answers(
                    Arm(axis, strength=s), (training.steering * s).injection(model), n_seed, scorer
                )
                for s in STRENGTHS
            }
            arms |= {
                f"asked {side}": bench.answers(Arm(axis, side), None, n_seed, scorer)
                for side in SIDES
            }
            means = {name: resamples.mean(arm.scores[..., column]) for name, arm in arms.items()}
            span = means["steered +1"] - means["steered -1"]
            asked = means["asked positive"] - means["asked negative"]
            with np.errstate(invalid="ignore", divide="ignore"):
                share = span / asked
            table[axis] = {
                "explained": training.explained,
                "plain": resamples.figure(resamples.mean(plain.scores[..., column])),
                "scores": {name: resamples.figure(mean) for name, mean in means.items()},
                "span": resamples.figure(span),
                "share of asking": resamples.figure(share),
                "nats above plain": {
                    name: resamples.figure(resamples.ratio(arm.nats, arm.tokens) - plain_nats)
                    for name, arm in arms.items()
                },
            }
    return table


def markdown(table: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    head = ["axis", "explained", "plain", "−1", "−½", "+½", "+1", "span", "ratio to prompting",
            "nats −1", "nats +1"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for axis, row in table.items():
        numbers = [row["explained"], row["plain"].mean]
        numbers += [row["scores"][f"steered {s:+g}"].mean for s in STRENGTHS]
        numbers += [row["span"].mean, row["share of asking"].mean]
        numbers += [row["nats above plain"][f"steered {s}1"].mean for s in "-+"]
        lines.append(f"| {axis} | " + " | ".join(f"{x:.2f}" for x in numbers) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="answers to each query")
    parser.add_argument("--limit", type=int, help="use only so many of the unseen queries")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--drift", type=float, default=DRIFT, help="nats a token at strength 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    options = parser.parse_args(arguments)
    with Model.demo(threads=options.threads) as model:
        table = measure(model, options.axes, options.seeds, options.limit, options.drift)
    print(json.dumps(plain_data(table)) if options.json else markdown(table))


if __name__ == "__main__":
    main()
