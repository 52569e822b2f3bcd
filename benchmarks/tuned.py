"""Steering on top of a tuned model: `python -m benchmarks.tuned`.

The demo model as it is, and with the adapters that `python -m demo_model dpo` trained on 1 % and
on 25 % of the labelled pairs; each plain and under a profile that was built on that very model,
from pairs that it wrote itself. On the unseen queries, by the rule judge, with the same draws in
every arm. It answers AlignEZ's claim (figure 3 of the paper) that DPO on 1 % of the data with
AlignEZ on top matches DPO on 25 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignez_edge.arrays import DoubleArray
from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES
from alignez_edge.evaluation.measures import Figure, Resamples
from alignez_edge.methods.table import DEFAULT_METHOD
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer
from benchmarks.steering import (
    PLAIN,
    Answers,
    Arm,
    Bench,
    Say,
    plain_data,
    profile_of,
    say,
)
from benchmarks.steering_report import insert

ADAPTERS = Path(__file__).parent.parent / "demo_model"
PERCENTS = (1, 25)


@dataclass(frozen=True)
class Kind:
    """One row: tuned on that share of the pairs (None: not at all), and steered or not.

    `asked` is the yardstick: the base model with the wanted side asked for.
    """

    percent: int | None = None
    steered: bool = False
    asked: bool = False

    def __str__(self) -> str:
        name = "base" if self.percent is None else f"DPO on {self.percent} %"
        return name + (" + profile" if self.steered else "") + (", asked for it" * self.asked)


BASE = Kind()
STEERED, TUNED = Kind(PERCENTS[0], steered=True), Kind(PERCENTS[1])
"""What is compared in AlignEZ's claim."""

ProfileOf = Callable[[Model], Profile]


def adapter_path(folder: Path, axis: str, percent: int) -> Path:
    """Where the recipe leaves an adapter."""
    return folder / f"dpo-{axis}-{percent}.gguf"


def measure(
    load: Callable[[Sequence[tuple[Path, float]]], Model],
    folder: Path,
    axis: str,
    queries: Sequence[Mapping[str, str]],
    n_seed: int,
    profile_for: ProfileOf,
    say: Say,
) -> dict[Kind, Answers]:
    """The judged answers of every row; `load` opens the model with the adapters that it is given.

    The cost is what the base model thinks of the answers.
    """
    found: dict[Kind, Answers] = {}
    with ExitStack() as stack:
        base = stack.enter_context(load(()))
        scorer = stack.enter_context(Scorer(base))
        for percent in (None, *PERCENTS):
            with ExitStack() as tuned:
                model = base
                if percent is not None:
                    path = adapter_path(folder, axis, percent)
                    model = tuned.enter_context(load([(path, 1.0)]))
                bench = Bench(model, queries, say)
                profile = profile_for(model)
                found[Kind(percent)] = bench.answers(PLAIN, None, n_seed, scorer)
                if percent is None:
                    asked = Arm(axis, "positive")
                    found[Kind(asked=True)] = bench.answers(asked, None, n_seed, scorer)
                arm = Arm(axis, strength=1.0)
                injection = profile.injection(model)
                found[Kind(percent, True)] = bench.answers(arm, injection, n_seed, scorer)
                say(f"{axis}: {Kind(percent)}, plain and steered")
    return found


def figures(answers: Mapping[Kind, Answers], axis: str) -> dict[str, Any]:
    """The figures of every row by its name, and the claim's: how far `STEERED` is above `TUNED`."""
    base, column = answers[BASE], AXES.index(axis)
    resamples = Resamples(len(base.texts))

    def scores(kind: Kind) -> DoubleArray:
        return answers[kind].scores[..., column]

    def wins(kind: Kind, other: Kind) -> Figure:
        return resamples.net_win(scores(kind) - scores(other)).net

    rows = {}
    for kind, arm in answers.items():
        above = resamples.ratio(arm.nats, arm.tokens) - resamples.ratio(base.nats, base.tokens)
        rows[str(kind)] = {
            "score": resamples.figure(resamples.mean(scores(kind))),
            "net win": wins(kind, BASE),
            "nats above plain": resamples.figure(above),
            "knowledge": resamples.figure(resamples.mean(arm.knowledge)),
        }
    more, other = answers[STEERED], answers[TUNED]
    claim = {
        "score": resamples.figure(resamples.mean(scores(STEERED)) - resamples.mean(scores(TUNED))),
        "net win": wins(STEERED, TUNED),
        "nats": resamples.figure(
            resamples.ratio(more.nats, more.tokens) - resamples.ratio(other.nats, other.tokens)
        ),
        "knowledge": resamples.figure(
            resamples.mean(more.knowledge) - resamples.mean(other.knowledge)
        ),
    }
    return {"rows": rows, "claim": claim}


def verdict(difference: Figure) -> str:
    """The claim's answer, from how far the steered model's score is above that of the one tuned on
    more; they match where the interval holds 0."""
    if difference.low > 0:
        return "more than matches"
    return "falls short of" if difference.high < 0 else "matches"


def markdown(axis: str, found: Mapping[str, Any]) -> str:
    """The table of one axis, and the claim in a sentence."""
    lines = [
        f"| {axis} | score | net win over base, % | nats per token above plain | claims true, % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found["rows"].items():
        cells = [_interval(row["score"]), _interval(row["net win"], 100, 0)]
        cells += [_interval(row["nats above plain"]), _interval(row["knowledge"], 100, 0, sign="")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    claim = found["claim"]
    lines += [
        "",
        f"{axis}: {STEERED} **{verdict(claim['score'])}** {TUNED}. Against it: score "
        f"{_interval(claim['score'])}, net win {_interval(claim['net win'], 100, 0)} %; nats per "
        f"token {_interval(claim['nats'])}, claims true {_interval(claim['knowledge'], 100, 0)} %.",
    ]
    return "\n".join(lines)


def summary(found: Mapping[str, Any]) -> str:
    """The claim in one line, over all axes."""
    answers: dict[str, list[str]] = {}
    for axis, table in found.items():
        answers.setdefault(verdict(table["claim"]["score"]), []).append(axis)
    said = "; ".join(f"{how} it on {', '.join(axes)}" for how, axes in answers.items())
    return f"By the score, {STEERED} against {TUNED}: {said}."


def _interval(found: Figure, scale: float = 1.0, digits: int = 2, sign: str = "+") -> str:
    mean, low, high = (
        f"{scale * x:{sign}.{digits}f}".replace("-", "−")
        for x in (found.mean, found.low, found.high)
    )
    return f"{mean} [{low}, {high}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one table per axis."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="answers to each query")
    parser.add_argument("--limit", type=int, help="use only so many of the unseen queries")
    parser.add_argument("--adapters", type=Path, default=ADAPTERS, help="folder of dpo-*.gguf")
    parser.add_argument("--axes", nargs="+", choices=AXES, help="default: those with adapters")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument("--page", type=Path, help="put the tables between this file's markers")
    options = parser.parse_args(arguments)
    axes = options.axes or [
        axis
        for axis in AXES
        if all(adapter_path(options.adapters, axis, p).exists() for p in PERCENTS)
    ]
    if not axes:
        raise SystemExit(f"no adapters in {options.adapters}: run `python -m demo_model dpo` first")

    def load(lora: Sequence[tuple[Path, float]]) -> Model:
        return Model.demo(threads=options.threads, lora=lora)

    queries = demo_queries("unseen")[: options.limit]
    found = {}
    for axis in axes:
        builtin = Axis.builtin(axis)

        def profile_for(model: Model, axis: Axis = builtin) -> Profile:
            return profile_of(model, axis, DEFAULT_METHOD, None, 0, say)

        answers = measure(load, options.adapters, axis, queries, options.seeds, profile_for, say)
        found[axis] = figures(answers, axis)
    tables = (markdown(axis, table) for axis, table in found.items())
    text = "\n\n".join([summary(found), *tables])
    if options.page:
        insert(text, options.page, "tuned")
    print(json.dumps(plain_data(found)) if options.json else text)


if __name__ == "__main__":
    main()
