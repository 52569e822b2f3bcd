"""Every form of steering at the same KL from the plain model: `python -m benchmarks.forms`.

For each axis of the demo world, on the unseen queries and by the rule judge: the control vector,
the papers' exact edits, both of them made anew for each query, variants of the exact edit that
might pay, and the methods that they are measured against. All are fitted on the same pairs, which
the model wrote itself (one row, marked, has the judge's scores instead). Each form's strength is
set so that the KL divergence from the plain next-token distributions, mean of both signs, over the
pairs that were held back, is what the control vector at strength 1 costs there: equal KL.

Net wins are against the plain answers of the same draws, mean of the wanted and the unwanted side;
the ratio to prompting is the span of scores between both signs over that of prompting. Intervals
are 95 % and resample the queries.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.build.build import build_profile, split
from alignez_edge.build.steps import Builder
from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES
from alignez_edge.directions.hidden_states import POSITIONS, Tensor
from alignez_edge.directions.subspace import difference_subspace, first_direction
from alignez_edge.interventions.exact import adapter_bytes, adapter_tensors
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.methods.iti import attention_heads
from alignez_edge.methods.mlp_edits import exact_form
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.preferences.requests import AUTO
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer, kl_divergence
from alignez_edge.runtime.weights import Adapter
from benchmarks.recontrol import recontrol_for
from benchmarks.steering import (
    PLAIN,
    Answers,
    Arm,
    Bench,
    Figure,
    Resamples,
    open_model,
    plain_data,
    say,
    tuning_queries,
    work_folder,
)
from benchmarks.steering_report import insert

NEIGHBORS = 10
MOST = 8.0
"""The largest strength that is tried, in the form's own calibrated units."""
SIGNS = (1.0, -1.0)
_STEPS, _NEAR = 6, 0.05

Form = Callable[[float], "Injection | Conditional | None"]
"""What a strength injects."""

METHODS: dict[str, tuple[str, int | None]] = {
    "control vector": ("alignez", None),
    "control vector, by query": ("alignez", NEIGHBORS),
    "exact, version 1": ("alignez-v1", None),
    "exact, version 1, by query": ("alignez-v1", NEIGHBORS),
    "exact, version 2": ("alignez-v2", None),
    "exact, version 2, by query": ("alignez-v2", NEIGHBORS),
    "exact, affine": ("affine", None),
    "CAA": ("caa", None),
    "PCA": ("pca", None),
    "ITI": ("iti", None),
    "RE-Control": ("recontrol", None),
}
"""What `alignez build` makes: the method, and how many neighbors it looks at."""
BRIEF = tuple(n for n in METHODS if n not in ("control vector, by query", "exact, affine", "ITI"))
"""What a run in five minutes compares: the control vector, the papers' edits, three baselines."""


class Fitted:
    """All forms of one axis, from the same pairs."""

    def __init__(self, model: Model, axis: str, width: int = 16) -> None:
        self._model, self._axis = model, Axis.builtin(axis)
        self._work = work_folder(model, self._axis, 0)
        self._queries = [entry["query"] for entry in demo_queries("build")]
        builder = Builder(model, self._axis, 0, width, None, self._work, lambda *_: None)
        self.pairs = builder.generated(self._queries, AUTO, len(self._queries), None)[0].pairs
        self._rows, held_back = split(len(self.pairs))
        self.held_back = [self.pairs[i] for i in held_back]
        self._builder = builder

    def forms(self, wanted: Sequence[str]) -> Iterator[tuple[str, Form]]:
        """The forms called `wanted` (default: all), by name."""
        makers: dict[str, Callable[[], Form]] = {
            name: partial(self._of_method, method, k) for name, (method, k) in METHODS.items()
        }
        makers |= {
            "exact, version 2, rank 4": self._rank_4,
            "exact, version 1, MLP and attention outputs": self._attention,
            "control vector and exact pin": lambda: self._pinned(POSITIONS),
            "control vector and exact pin at the last prompt token": lambda: self._pinned(
                POSITIONS[:1]
            ),
            "RE-Control, trained on the judge's scores": self._judged,
        }
        for name, make in makers.items():
            if not wanted or name in wanted:
                yield name, make()

    def _profile(self, method: str, neighbors: int | None = None) -> Profile:
        return build_profile(
            self._model,
            self._axis,
            queries=self._queries,
            method=method,
            neighbors=neighbors,
            work=self._work,
        )

    def _of_method(self, method: str, neighbors: int | None) -> Form:
        return self._steered(self._profile(method, neighbors))

    def _steered(self, profile: Profile) -> Form:
        return lambda strength: (profile * strength).injection(self._model)

    def _with_exact(self, edit: Callable[..., LayerEdit]) -> Profile:
        """The affine profile with another edit in its layers."""
        profile = self._profile("affine")
        with self._builder.states(self.pairs, Tensor("ffn_out", self._model.n_embd)) as states:
            form = exact_form(states, self._rows, profile.layers, edit)
        return replace(profile, intervention=form)

    def _rank_4(self) -> Form:
        return self._steered(
            self._with_exact(
                lambda chosen, rejected: LayerEdit.amplify(
                    difference_subspace(chosen, rejected, 4).directions
                )
            )
        )

    def _pinned(self, positions: Sequence[str]) -> Form:
        """The control vector, and the MLP's outputs pinned half to the middle of both sides along
        the direction that parts them: what the model itself would do there does not blur it."""

        def middle(chosen: DoubleArray, rejected: DoubleArray) -> LayerEdit:
            directions = difference_subspace(chosen, rejected).directions
            centre = (np.mean(chosen, axis=0) + np.mean(rejected, axis=0)) / 2
            return LayerEdit.move(directions, directions @ centre)

        pin, vector = self._with_exact(middle), self._profile("alignez")
        assert pin.exact is not None
        edits = [e if p in positions else Edit({}) for p, e in pin.exact.edits.items()]
        pin = replace(pin, intervention=ExactForm(edits[0], edits[1], 0.5))
        return lambda s: (vector * s + pin * abs(s)).injection(self._model)

    def _attention(self) -> Form:
        """Version 1 in the MLP's and in the attention's output of each layer."""
        model, profile = self._model, self._profile("alignez-v1")
        assert profile.exact is not None
        heads = attention_heads(model.gguf, model.lora)
        found = {}
        with self._builder.states(self.pairs, Tensor("kqv_out", heads.n_dims)) as states:
            for position, edit in profile.exact.edits.items():
                pairs = list(adapter_tensors(model.gguf, edit, model.lora))
                for layer in profile.layers:
                    name = f"blk.{layer}.attn_output.weight"
                    matrix = model.gguf.tensor(name)
                    sides = states.layer(layer, position, self._rows)
                    swap = LayerEdit.swap(
                        first_direction(sides.chosen @ matrix.T),
                        first_direction(sides.rejected @ matrix.T),
                    )
                    pairs.append((name, swap.inward @ matrix, swap.outward))
                found[position] = Adapter(model, adapter_bytes(model.gguf, pairs))
        zeros = np.zeros((model.n_layer, model.n_embd), np.float32)

        def inject(strength: float) -> Injection:
            deciding, answer = (((found[position], strength),) for position in POSITIONS)
            return Injection(zeros, zeros, deciding, answer)

        return inject

    def _judged(self) -> Form:
        steering = recontrol_for(self._model, self._axis.name).steering
        return lambda strength: (steering * strength).injection(self._model)


class Divergence:
    """The KL from the plain model of an injection, on texts that are given."""

    def __init__(self, model: Model, pairs: Sequence[PreferencePair], scorer: Scorer) -> None:
        self._model, self._scorer = model, scorer
        texts = [
            (
                model.ask_tokens(pair.query),
                model.tokenize(answer, begin=False),
            )
            for pair in pairs
            for answer in (pair.chosen, pair.rejected)
        ]
        self._texts = [(*text, next(scorer.log_probs(*text))) for text in texts]

    def of(self, form: Form, strength: float) -> float:
        """Nats a token, mean of both signs of `strength`."""
        found = []
        steerings = [form(sign * strength) for sign in SIGNS]
        for prompt, answer, plain in self._texts:
            rows = self._scorer.log_probs(prompt, answer, steerings)
            found += [kl_divergence(plain, row) for row in rows]
        return float(np.mean(found))

    def matched(self, form: Form, target: float) -> tuple[float, float]:
        """The strength (at most `MOST`) at which the KL of `form` is `target` to a twentieth, and
        the KL there.

        For small moves the divergence grows with the square of the strength.
        """
        strength, found = 1.0, self.of(form, 1.0)
        for _ in range(_STEPS):
            if abs(found / target - 1) < _NEAR or (found < target and strength == MOST):
                break
            strength = min(MOST, strength * math.sqrt(target / found) if found else MOST)
            found = self.of(form, strength)
        return strength, found


@dataclass(frozen=True)
class Task:
    """One axis to be measured, in a process of its own: many small passes use one core best."""

    axis: str
    model: Path | None
    threads: int
    tuning: bool
    limit: int | None
    seeds: int
    wanted: tuple[str, ...]

    @property
    def queries(self) -> Sequence[Mapping[str, str]]:
        """The queries that are asked."""
        return (tuning_queries() if self.tuning else demo_queries("unseen"))[: self.limit]


def measure_axis(task: Task) -> dict[str, tuple[dict[str, Any], DoubleArray]]:
    """By form, its figures on one axis and the samples of its share."""
    axis, column, found = task.axis, AXES.index(task.axis), {}
    resamples = Resamples(len(task.queries))
    with open_model(task.model, task.threads) as model, Scorer(model) as scorer:
        bench = Bench(model, task.queries, say)
        plain = bench.answers(PLAIN, None, task.seeds, scorer)
        asked = [bench.answers(Arm(axis, s), None, task.seeds, scorer) for s in prompts.SIDES]
        span = _span(resamples, asked, column)
        fitted = Fitted(model, axis)
        divergence, target = Divergence(model, fitted.held_back, scorer), math.nan
        for name, form in fitted.forms(task.wanted):
            if math.isnan(target):  # the control vector comes first
                target = divergence.of(form, 1.0)
            strength, divergence_there = divergence.matched(form, target)
            answers = [
                bench.answers(Arm(axis, strength=sign), form(sign * strength), task.seeds, scorer)
                for sign in SIGNS
            ]
            share = _span(resamples, answers, column) / span
            cell = _figures(resamples, answers, plain, column) | {
                "strength": strength,
                "share of asking": resamples.figure(share),
                "drift": divergence_there,
                "target": target,
            }
            found[name] = cell, share
            say(f"{axis}: {name}: net win {100 * cell['net win'].mean:+.0f}, {share[0]:.2f}")
    return found


def gathered(
    axes: Mapping[str, dict[str, tuple[dict[str, Any], DoubleArray]]], resamples: Resamples
) -> dict[str, Any]:
    """The figures of all axes by form, and their means with the distance from the best form."""
    names = list(next(iter(axes.values())))
    shares = {name: np.mean([found[name][1] for found in axes.values()], axis=0) for name in names}
    best = max(shares, key=lambda name: float(shares[name][0]))
    rows: dict[str, dict[str, Any]] = {}
    for name, share in shares.items():
        rows[name] = {axis: found[name][0] for axis, found in axes.items()}
        rows[name]["mean"] = {
            "share of asking": resamples.figure(share),
            "below the best": resamples.figure(shares[best] - share),
        }
    return {"forms": rows, "best": best}


def _span(resamples: Resamples, answers: Sequence[Answers], column: int) -> DoubleArray:
    first, second = (resamples.mean(each.scores[..., column]) for each in answers)
    return np.asarray(first - second)


def _figures(
    resamples: Resamples, answers: Sequence[Answers], plain: Answers, column: int
) -> dict[str, Any]:
    wins, nats, knowledge = [], [], []
    before = resamples.ratio(plain.nats, plain.tokens)
    for sign, arm in zip(SIGNS, answers, strict=True):
        better = np.sign(sign * (arm.scores - plain.scores))[..., column]
        wins.append(resamples.mean(better))
        nats.append(resamples.ratio(arm.nats, arm.tokens) - before)
        knowledge.append(resamples.mean(arm.knowledge) - resamples.mean(plain.knowledge))
    return {
        "net win": resamples.figure(np.mean(wins, axis=0)),
        "net win by sign": [resamples.figure(win) for win in wins],
        "nats above plain": resamples.figure(np.mean(nats, axis=0)),
        "knowledge above plain": resamples.figure(np.mean(knowledge, axis=0)),
    }


def markdown(result: Mapping[str, Any], axes: Sequence[str]) -> str:
    """The table, and which form wins, in words."""
    rows, best = result["forms"], result["best"]
    order = sorted(rows, key=lambda name: -rows[name]["mean"]["share of asking"].mean)
    head = [*(f"{axis}: net win, %" for axis in axes), "ratio to prompting", "below the best",
            "nats", "claims true", "strength"]  # fmt: skip
    lines = ["| form | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for name in order:
        row = rows[name]
        cells = [_percent(row[axis]["net win"]) for axis in axes]
        cells.append(_number(row["mean"]["share of asking"]))
        cells.append("" if name == best else _number(row["mean"]["below the best"]))
        for key in ("nats above plain", "knowledge above plain"):
            cells.append(f"{np.mean([row[axis][key].mean for axis in axes]):+.2f}")
        strengths = [row[axis]["strength"] for axis in axes]
        cells.append(f"{min(strengths):.2f} to {max(strengths):.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    ties = [n for n in order if n != best and rows[n]["mean"]["below the best"].low <= 0]
    verdict = f"**{best}** moves the scores most at equal KL from the plain model"
    if ties:
        verdict += "; not told apart from it by these samples: " + ", ".join(ties)
    return re.sub(r"-(?=[0-9])", "−", "\n".join([*lines, "", f"{verdict}."]))


def brief(result: Mapping[str, Any], axes: Sequence[str]) -> str:
    """The forms that `alignez build` makes, for a reader in a hurry."""
    rows = result["forms"]
    lines = ["| form | ratio to prompting | net win, mean of the axes, % | nats above plain |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    shown = [name for name in METHODS if name in rows]
    for name in sorted(shown, key=lambda name: -rows[name]["mean"]["share of asking"].mean):
        row = rows[name]
        wins, nats = (
            float(np.mean([row[axis][key].mean for axis in axes]))
            for key in ("net win", "nats above plain")
        )
        share = _number(row["mean"]["share of asking"])
        lines.append(f"| {name} | {share} | {100 * wins:+.0f} | {nats:+.2f} |")
    return re.sub(r"-(?=[0-9])", "−", "\n".join(lines))


def _percent(value: Figure) -> str:
    return f"{100 * value.mean:+.0f} [{100 * value.low:+.0f}, {100 * value.high:+.0f}]"


def _number(value: Figure) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every form and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the demo model)")
    parser.add_argument("--jobs", type=int, default=4, help="axes that are measured at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--seeds", type=int, default=3, help="answers to each query")
    parser.add_argument("--limit", type=int, help="use only so many of the queries")
    parser.add_argument("--tuning", action="store_true", help="queries that are not the unseen")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--forms", nargs="+", default=[], help="only these, by name")
    parser.add_argument("--brief", action="store_true", help=f"only {len(BRIEF)} of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    parser.add_argument("--readme", type=Path, help="the same for a brief table")
    options = parser.parse_args(arguments)
    tasks = [
        Task(
            axis,
            options.model,
            options.threads,
            options.tuning,
            options.limit,
            options.seeds,
            BRIEF if options.brief else tuple(options.forms),
        )
        for axis in options.axes
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        found = dict(zip(options.axes, pool.map(measure_axis, tasks), strict=True))
    result = gathered(found, Resamples(len(tasks[0].queries)))
    table = markdown(result, options.axes)
    if options.page:
        insert(table, options.page, "forms")
    if options.readme:
        insert(brief(result, options.axes), options.readme, "forms")
    print(json.dumps(plain_data(result)) if options.json else table)


if __name__ == "__main__":
    main()
