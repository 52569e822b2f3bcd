"""The papers' methods on a real model, from the same pairs: `python -m benchmarks.papers`.

`benchmarks.forms` compares them on the demo model. Here every method is built of the pairs that the
model wrote for `benchmarks.real`, and steers it at several strengths of either sign. Questions that
no build has seen are answered once each; an instrument judges the answers, and what they cost is
what the plain model thinks of them. Methods differ in how far strength 1 goes and in what that
costs, so it is also told how far each has come where it costs as much as prompting for that side.
Everything is kept in the folder of `benchmarks.real`, and its answers are not written again.
"""

from __future__ import annotations

from alignez_edge.arrays import DoubleArray
from alignez_edge.threads import calm

calm()  # before NumPy and llama.cpp are loaded

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.measures import Resamples
from alignez_edge.modelfiles.names import ModelNames
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import SIDES
from alignez_edge.preferences.queries import read_queries
from alignez_edge.preferences.requests import RequestForm
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from benchmarks.instruments import INSTRUMENTS
from benchmarks.real import (
    LONG,
    PLAIN,
    QUESTIONS,
    Judged,
    answers_folder,
    parser_of,
    profile_of,
    prompting,
    strongest,
    tell,
)
from benchmarks.real_answers import Answers, Arm, Task
from benchmarks.real_report import as_table, interval, number
from benchmarks.requests import OWN
from benchmarks.steering import say

MARKER = "papers"
NEIGHBORS = 10
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
SIGNS = "+-"
METHODS: dict[str, tuple[str, int | None]] = {
    "alignez": ("alignez", None),
    "alignez, by query": ("alignez", NEIGHBORS),
    "alignez-v1": ("alignez-v1", None),
    "alignez-v2": ("alignez-v2", None),
    "affine": ("affine", None),
    "recontrol": ("recontrol", None),
    "iti": ("iti", None),
    "caa": ("caa", None),
    "pca": ("pca", None),
}
"""What `alignez build` makes: the method, and how many neighbors it looks at."""


def prompted(form: RequestForm) -> list[Arm]:
    """Plain, and prompted for either side."""
    sides = zip(SIGNS, SIDES, strict=True)
    return [PLAIN, *(Arm(f"prompted {sign}", form, side) for sign, side in sides)]


def steered(strengths: Sequence[float]) -> list[Arm]:
    """A profile at all strengths of either sign."""
    return [
        Arm(f"{sign}{strength:g}", strength=float(f"{sign}{strength}"))
        for strength in strengths
        for sign in SIGNS
    ]


def judged(
    answers: Answers,
    name: str,
    axis: Axis,
    arms: Sequence[Arm],
    queries: Sequence[str],
    n_tokens: int,
    profile: Profile | None = None,
) -> dict[str, Judged]:
    """One answer to each question in each of these arms, by the name of the arm.

    Arm after arm: exact edits hold for a whole pass, so answers under the same one should run side
    by side.
    """
    n = len(queries)
    tasks = [Task(arm, query, row, 0) for arm in arms for row, query in enumerate(queries)]
    made = answers.to(axis, tasks, profile, n_tokens=n_tokens)
    return {arm.name: Judged.of(name, made[i * n :][:n], 1) for i, arm in enumerate(arms)}


def figures(
    yardstick: Mapping[str, Judged],
    methods: Mapping[str, Mapping[str, Judged]],
    strengths: Sequence[float],
) -> dict[str, Any]:
    """Of one axis: prompting, and by method the figures of strength 1 and those at the cost of
    prompting. The leaves are `Figure`s; strengths are numbers, NaN for out of reach."""
    resamples = Resamples(len(yardstick[PLAIN.name].nats))
    plain = yardstick[PLAIN.name]

    def effect(arm: Judged) -> DoubleArray:
        return resamples.mean(arm.scores) - resamples.mean(plain.scores)

    def cost(arm: Judged) -> DoubleArray:
        return resamples.ratio(arm.nats, arm.tokens) - resamples.ratio(plain.nats, plain.tokens)

    asked = {sign: yardstick[f"prompted {sign}"] for sign in SIGNS}
    span = effect(asked["+"]) - effect(asked["-"])
    found: dict[str, Any] = {
        "plain": resamples.figure(resamples.mean(plain.scores)),
        "plain nats": resamples.figure(resamples.ratio(plain.nats, plain.tokens)),
        "prompted": {
            "effect": {sign: resamples.figure(effect(arm)) for sign, arm in asked.items()},
            "cost": {sign: resamples.figure(cost(arm)) for sign, arm in asked.items()},
            "span": resamples.figure(span),
        },
        "methods": {},
    }
    for name, arms in methods.items():
        effects = {s: np.stack([effect(arms[f"{s}{x:g}"]) for x in strengths]) for s in SIGNS}
        costs = {s: np.stack([cost(arms[f"{s}{x:g}"]) for x in strengths]) for s in SIGNS}
        one = list(strengths).index(1.0)
        matched = {s: at_cost(strengths, effects[s], costs[s], cost(asked[s])) for s in SIGNS}
        found["methods"][name] = {
            "effect": {s: resamples.figure(effects[s][one]) for s in SIGNS},
            "cost": {s: resamples.figure(costs[s][one]) for s in SIGNS},
            "share": resamples.share(effects["+"][one] - effects["-"][one], span),
            "at the cost of prompting": {
                s: {"effect": resamples.figure(there), "strength": float(where[0])}
                for s, (there, where) in matched.items()
            },
            "by strength": [
                {
                    "strength": strength,
                    "effect": {s: float(effects[s][i][0]) for s in SIGNS},
                    "cost": {s: float(costs[s][i][0]) for s in SIGNS},
                }
                for i, strength in enumerate(strengths)
            ],
        }
    return found


def at_cost(
    strengths: Sequence[float], effects: DoubleArray, costs: DoubleArray, target: DoubleArray
) -> tuple[DoubleArray, DoubleArray]:
    """The effect, and the strength, at which the cost first reaches `target`, both `(n_sample,)`.

    `effects` and `costs` are `(n_strength, n_sample)`; between strengths, and between 0 and the
    first one, they are taken for straight. NaN where the cost does not get there, or where the
    target is nothing at all.
    """
    nothing = np.zeros((1, effects.shape[1]))
    x = np.array([0.0, *strengths])[:, None]
    effects, costs = np.concatenate([nothing, effects]), np.concatenate([nothing, costs])
    there, where = (np.full(effects.shape[1], np.nan) for _ in range(2))
    for i in range(1, len(x)):
        reached = np.isnan(where) & (target > 0) & (costs[i] >= target)
        rise = costs[i] - costs[i - 1]
        part = np.divide(target - costs[i - 1], rise, out=np.ones_like(rise), where=rise > 0)
        there[reached] = (effects[i - 1] + part * (effects[i] - effects[i - 1]))[reached]
        where[reached] = (x[i - 1] + part * (x[i] - x[i - 1]))[reached]
    return there, where


def markdown(result: Mapping[str, Any]) -> str:
    """A table for each axis, the methods with the largest span first."""
    parts = [
        f"{result['model']}: {result['queries']} questions of just-eval-instruct that no build has "
        f"seen, one answer to each. Effects and costs are above "
        "plain, with 95 % intervals over the questions. Those of methods are at strengths +1 and "
        "−1; the share is their span over that of prompting. The last columns tell the effect at "
        "the strength (in brackets) at which a method costs as much as prompting for that side: "
        f"n/a where it costs less even at {max(result['strengths']):g}, or where prompting is free."
    ]
    for axis, table in result["axes"].items():
        asked = table["prompted"]
        rows = [["prompting", *_both(asked["effect"]), "1", *_both(asked["cost"]), "", ""]]
        methods = table["methods"]
        for name in sorted(methods, key=lambda name: -np.nan_to_num(methods[name]["share"].mean)):
            cell = methods[name]
            matched = [_matched(cell["at the cost of prompting"][sign]) for sign in SIGNS]
            share = interval(cell["share"], signed=False)
            rows.append([name, *_both(cell["effect"]), share, *_both(cell["cost"]), *matched])
        head = ["method", "effect +", "effect −", "share of prompting", "nats +", "nats −"]
        head += ["+ at the cost of prompting", "− at the cost of prompting"]
        parts += [
            f"{axis} ({table['instrument']}), at most {table['tokens']} tokens, prompted in the "
            f"form {table['form']}; plain "
            f"{number(table['plain'].mean)} at {table['plain nats'].mean:.2f} nats:",
            as_table(head, rows),
        ]
        parts += [f"{name} cannot be had: {why}." for name, why in table["refused"].items()]
    return "\n\n".join(parts)


def _both(cells: Mapping[str, Any]) -> list[str]:
    return [interval(cells[sign]) for sign in SIGNS]


def _matched(cell: Mapping[str, Any]) -> str:
    if np.isnan(cell["strength"]):
        return "n/a"
    return f"{number(cell['effect'].mean)} (× {cell['strength']:.2f})"


def measure(model: Model, name: str, answers: Answers, options: argparse.Namespace) -> Any:
    """All figures of an axis."""
    axis = OWN.get(name) or Axis.builtin(name)
    queries = read_queries(QUESTIONS / "report.jsonl", options.queries)
    others = read_queries(QUESTIONS / "choosing.jsonl", options.choosing)
    folder = answers_folder(model, options.folder)
    refused, found = {}, {}
    # The default comes first: the others are built of its pairs.
    profile_of(model, name, axis, folder, options.limit, say)
    n_tokens = LONG.get(name, 1) * options.tokens
    form, _ = strongest(answers, name, axis, prompting(model, axis), others, say, n_tokens)
    yardstick = judged(answers, name, axis, prompted(form), queries, n_tokens)
    for label in options.methods:
        method, neighbors = METHODS[label]
        try:
            profile = profile_of(model, name, axis, folder, options.limit, say, method, neighbors)
        except BadInputError as refusal:
            refused[label] = str(refusal)
            continue
        say(f"{name}: {label}")
        arms = steered(STRENGTHS)
        found[label] = judged(answers, name, axis, arms, queries, n_tokens, profile)
    return figures(yardstick, found, STRENGTHS) | {
        "form": form.name,
        "tokens": n_tokens,
        "instrument": INSTRUMENTS[name].name,
        "refused": refused,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, ["cheerful", "concise"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--queries", type=int, default=40, help="questions to report on")
    parser.add_argument("--choosing", type=int, default=24, help="questions to choose the form on")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer at most")
    options = parser.parse_args(arguments)

    with Model.load(ModelNames().find(options.model), threads=options.threads) as model:
        answers = Answers(model, answers_folder(model, options.folder), options.tokens, say)
        axes = {name: measure(model, name, answers, options) for name in options.axes}
        result = {
            "model": model.path.name,
            "queries": options.queries,
            "strengths": list(STRENGTHS),
            "axes": axes,
        }
    tell(result, markdown(result), MARKER, options)


if __name__ == "__main__":
    main()
