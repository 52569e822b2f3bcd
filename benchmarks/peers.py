"""Steering against its peers at equal cost: `python -m benchmarks.peers`.

One model, one axis, the same questions and draws, an instrument that nobody here wrote. Compared
are this project's default profile, CAA at its best layer, what repeng and llama.cpp's
`cvector-generator` make, and the strongest prompt. Every vector is measured over strengths of both
signs, and read where it costs what prompting for that side costs. `make peers` makes repeng's
environment; without it repeng is left out, and said. Everything is kept in a folder, and a run goes
on where it was interrupted.
"""

from __future__ import annotations

from alignez_edge.threads import calm

calm()  # before NumPy and llama.cpp are loaded

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignez_edge.build.build import build_profile
from alignez_edge.files.writing import make_folder
from alignez_edge.modelfiles.names import ModelNames
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import SIDES
from alignez_edge.preferences.queries import read_queries
from alignez_edge.preferences.requests import FORMS
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from benchmarks.instruments import INSTRUMENTS
from benchmarks.kept import Estimate
from benchmarks.llamacpp import CACHE, programs
from benchmarks.peers_answers import PeerAnswers
from benchmarks.peers_curves import Curve, Sign, figures, markdown
from benchmarks.peers_vectors import (
    beginnings,
    lines_of,
    run_program,
    with_generator,
    with_repeng,
)
from benchmarks.real import (
    AXES,
    LONG,
    OWN,
    QUESTIONS,
    Judged,
    answers_folder,
    build_queries,
    profile_of,
    stem_of,
    work_of,
)
from benchmarks.real_answers import Arm, Task
from benchmarks.steering import plain_data, say
from benchmarks.steering_report import insert

MARKER = "peers"
REPENG = CACHE / "peers-venv" / "bin" / "python"
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
MOST = 1.5
"""Nats per token above plain at which a curve ends, but not below what prompting costs."""
GROWTH, FARTHEST = 1.5, 64.0
"""A curve that the strengths leave below the cost of prompting goes on by this factor, as far as
that: vectors of other programs have lengths of their own."""
REPENG_STEP = 2.0
"""repeng's directions have length 1, as the generator's, but stand in half as many layers."""
SIGNS: tuple[Sign, ...] = (1, -1)
CONTENDERS = (
    *("ours", "ours, everywhere", "CAA", "CAA, everywhere"),
    *("repeng", "repeng, pca_center", "generator, mean", "generator, pca"),
)
"""Those that this project builds leave the prompt plain, but where they are `everywhere`."""


@dataclass(frozen=True)
class Contender:
    """A profile, put where the library puts it, or `everywhere`: on every token. Its strengths are
    those of all contenders times `step`."""

    name: str
    profile: Profile
    everywhere: bool = False
    step: float = 1.0


class Field:
    """Questions as they are answered plain, prompted, and under any contender."""

    def __init__(
        self,
        answers: PeerAnswers,
        axis: Axis,
        form: str,
        queries: Sequence[str],
        n_seed: int,
        n_tokens: int,
    ) -> None:
        self._answers, self._axis, self._queries = answers, axis, queries
        self._n_seed, self._n_tokens = n_seed, n_tokens
        self.plain = self._judged(Arm("plain"))
        self.prompted = {
            sign: self._judged(Arm("prompted", FORMS[form], side))
            for sign, side in zip(SIGNS, SIDES, strict=True)
        }

    def curve(
        self, contender: Contender, sign: Sign, strengths: Sequence[float], most: float
    ) -> Curve:
        """The contender over strengths of one sign, until it costs `most` above plain, and at
        least what prompting costs, as far as `FARTHEST`."""
        target, cost = self._cost(self.prompted[sign]), 0.0
        found: dict[float, Judged] = {}
        for strength in _grid(strengths):
            if cost >= target and (cost > most or strength > max(strengths)):
                break
            own = strength * contender.step
            found[own] = self._judged(Arm(contender.name, strength=sign * own), contender)
            cost = self._cost(found[own])
            level = f"{contender.name}, {sign * own:+g}"
            say(f"{level}: {cost:+.2f} nats per token above plain (the prompt {target:+.2f})")
        return Curve.of(sign, self.plain, self.prompted[sign], found)

    def _cost(self, judged: Judged) -> float:
        return float(
            judged.nats.sum() / judged.tokens.sum()
            - self.plain.nats.sum() / self.plain.tokens.sum()
        )

    def _judged(self, arm: Arm, contender: Contender | None = None) -> Judged:
        tasks = [
            Task(arm, query, row, seed)
            for row, query in enumerate(self._queries)
            for seed in range(self._n_seed)
        ]
        if contender is not None and contender.everywhere:
            made = self._answers.everywhere(tasks, contender.profile, self._n_tokens)
        else:
            profile = contender.profile if contender else None
            made = self._answers.to(self._axis, tasks, profile, n_tokens=self._n_tokens)
        return Judged.of(self._axis.name, made, self._n_seed)


def _grid(strengths: Sequence[float]) -> Iterator[float]:
    """The strengths in order, then more of them."""
    strength = 0.0
    for strength in sorted(strengths):
        yield strength
    while (strength := strength * GROWTH) <= FARTHEST:
        yield round(strength, 3)


def caa_profile(model: Model, axis: Axis, layer: int, folder: Path, limit: int | None) -> Profile:
    """CAA at one layer, from the pairs of the default profile; the one that `folder` has."""
    path = folder / f"{stem_of(axis.name, limit)}-caa-{layer}.gguf"
    if path.exists():
        return Profile.load(path)
    say(f"{path.stem}: building the profile")
    profile = build_profile(
        model,
        axis,
        queries=build_queries(axis) if not axis.queries else None,
        limit=limit,
        method="caa",
        layers=[layer],
        work=work_of(folder, axis.name, limit),
    )
    profile.save(path)
    return profile


def best_caa(field: Field, profiles: Sequence[Profile], options: argparse.Namespace) -> Profile:
    """The profile whose span at the cost of prompting is the longest, on the field's questions."""
    estimate = Estimate(2 * len(profiles))
    spans = {}
    for i, profile in enumerate(profiles):
        contender = Contender(f"CAA, layer {profile.layers[0]}", profile)
        curves = []
        for sign in SIGNS:
            curves.append(field.curve(contender, sign, options.strengths, options.most))
            say(f"{contender.name}: curves, {estimate.after(1)}")
        spans[i] = sum(float(curve.at_prompting().effect[0]) for curve in curves)
        say(f"{contender.name}: span {spans[i]:+.2f} on the choosing questions")
    return profiles[max(spans, key=lambda i: spans[i])]


def own(
    model: Model,
    axis: Axis,
    folder: Path,
    options: argparse.Namespace,
    choosing: Callable[[], Field],
) -> Iterator[Contender]:
    """What this project builds, of the kinds that are wanted; `choosing` answers the questions that
    CAA's layer is chosen on."""
    if _wants(options, "ours"):
        ours = profile_of(model, axis.name, axis, folder, options.limit, say)
        yield Contender("ours", ours)
        yield Contender("ours, everywhere", ours, everywhere=True)
    if _wants(options, "CAA"):
        layers = options.layers or sorted({model.n_layer * k // 8 for k in (2, 3, 4, 5, 6)} - {0})
        every = [caa_profile(model, axis, layer, folder, options.limit) for layer in layers]
        caa = best_caa(choosing(), every, options)
        yield Contender("CAA", caa)
        yield Contender("CAA, everywhere", caa, everywhere=True)


def of_others(
    model: Model, axis: Axis, folder: Path, options: argparse.Namespace
) -> Iterator[Contender]:
    """What other programs make, of the kinds that are wanted and can be had."""
    if not (_wants(options, "repeng") or _wants(options, "generator")):
        return
    generator = programs(options.jobs)["llama-cvector-generator"]
    lines = lines_of(model, axis, beginnings(), options.lines)
    place = make_folder(folder / f"peers-{axis.name}-{len(lines)}")
    if _wants(options, "repeng") and not options.repeng.exists():
        say("repeng is left out: `make peers` makes its environment")
    elif _wants(options, "repeng"):
        say(f"repeng reads {len(lines)} pairs of lines")
        found = with_repeng(options.repeng, model, lines, place)
        for name, method in (("repeng", "pca_diff"), ("repeng, pca_center", "pca_center")):
            yield Contender(name, found[method], everywhere=True, step=REPENG_STEP)
    if _wants(options, "generator"):
        say(f"cvector-generator reads {len(lines)} pairs of lines")
        made = with_generator(partial(run_program, generator), model, lines, place)
        for method, profile in made.items():
            yield Contender(f"generator, {method}", profile, everywhere=True)


def _wants(options: argparse.Namespace, kind: str) -> bool:
    return any(name.startswith(kind) for name in options.contenders)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="smollm2", help="a short name or a GGUF file")
    parser.add_argument("--axis", choices=AXES, default="cheerful")
    parser.add_argument("--form", choices=FORMS, default="style", help="how the prompt asks")
    parser.add_argument("--queries", type=int, default=60, help="questions to report on")
    parser.add_argument(
        "--choosing", type=int, default=16, help="questions to choose CAA's layer on"
    )
    parser.add_argument("--seeds", type=int, default=1, help="answers to each question")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer at most")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--most", type=float, default=MOST, help="nats at which a curve ends")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--layers", type=int, nargs="+", help="that CAA tries (default: five)")
    parser.add_argument("--lines", type=int, default=600, help="pairs of lines for other programs")
    parser.add_argument("--limit", type=int, help="pairs of a build (default: the library's)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--jobs", type=int, default=2, help="processes that build llama.cpp")
    parser.add_argument("--repeng", type=Path, default=REPENG, help="the Python that has repeng")
    parser.add_argument("--folder", type=Path, help="where everything is kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    options = parser.parse_args(arguments)
    if min(options.strengths) <= 0:
        parser.error("strengths are above 0; both signs are measured")

    axis = OWN.get(options.axis) or Axis.builtin(options.axis)
    n_tokens = LONG.get(axis.name, 1) * options.tokens
    queries = read_queries(QUESTIONS / "report.jsonl", options.queries)
    others = read_queries(QUESTIONS / "choosing.jsonl", options.choosing)
    with Model.load(ModelNames().find(options.model), threads=options.threads) as model:
        folder = answers_folder(model, options.folder)
        answers = PeerAnswers(model, folder, n_tokens, say)
        choosing = partial(Field, answers, axis, options.form, others, 1, n_tokens)
        every = [
            *own(model, axis, folder, options, choosing),
            *of_others(model, axis, folder, options),
        ]
        found = [each for each in every if each.name in options.contenders]
        field = Field(answers, axis, options.form, queries, options.seeds, n_tokens)
        estimate = Estimate(2 * len(found))
        curves: dict[str, dict[Sign, Curve]] = {}
        for contender in found:
            curves[contender.name] = {}
            for sign in SIGNS:
                curve = field.curve(contender, sign, options.strengths, options.most)
                curves[contender.name][sign] = curve
                say(f"{contender.name}: curves, {estimate.after(1)}")
        result: dict[str, Any] = {
            "model": model.path.name,
            "axis": axis.name,
            "instrument": INSTRUMENTS[axis.name].name,
            "form": options.form,
            "queries": len(queries),
            "seeds": options.seeds,
            "tokens": n_tokens,
            "layers": {each.name: list(each.profile.layers) for each in found},
        } | figures(field.plain, field.prompted, curves)
    text = markdown(result)
    if options.page:
        insert(text, options.page, MARKER)
    print(json.dumps(plain_data(result), ensure_ascii=False) if options.json else text)


if __name__ == "__main__":
    main()
