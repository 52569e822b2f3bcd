"""How much steering moves the demo model, against prompting: `python -m benchmarks.steering`.

For each axis of the demo world, on the unseen queries and by the rule judge: the answers to plain
queries, to the same queries with either side of the trait asked for, and to plain queries under
the axis' profile at seven strengths. The yardstick is prompting. The cost is what the unsteered
model thinks of the answers (nats per token with the plain prompt) and the share of true claims.

A query's draws are the same in every arm, so that arms are compared answer by answer; intervals
are 95 % and resample the queries, because answers to one query are not independent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import DoubleArray
from alignez_edge.build.build import build_profile
from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES, judge
from alignez_edge.demo.world import world
from alignez_edge.evaluation.measures import Figure, Resamples
from alignez_edge.methods.table import DEFAULT_METHOD, METHODS
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import SIDES, Side
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.score import Scorer, answer_log_prob

CACHE = Path(__file__).parent.parent / ".cache" / "steering"
SAMPLING = Sampling(temperature=0.8, top_p=1.0, max_tokens=160)
WIDTH = 32
STRENGTHS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
FULL = (-1.0, 1.0)
"""The strengths that get every seed; the others, for the picture, get the first one."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Arm:
    """How answers came about: plain, with one side of `axis` asked for, or under its profile."""

    axis: str = ""
    side: Side | None = None
    strength: float = 0.0

    def __str__(self) -> str:
        if self.side:
            return f"{self.axis}, asked for the {self.side} side"
        return f"{self.axis}, steered at {self.strength:+g}" if self.axis else "plain"


PLAIN = Arm()


@dataclass(frozen=True)
class Answers:
    """The judged answers of one arm, all `(n_query, n_seed)`, scores with one more axis of AXES.

    `knowledge` is NaN where nothing is claimed. `nats` is minus the log-probability of the answer
    under the unsteered model and the plain prompt, summed over its `tokens`.
    """

    texts: npt.NDArray[np.object_]
    scores: DoubleArray
    knowledge: DoubleArray
    loops: DoubleArray
    coherence: DoubleArray
    sentences: DoubleArray
    nats: DoubleArray
    tokens: DoubleArray

    def first(self, n_seed: int) -> Answers:
        """The answers of the first `n_seed` seeds."""
        return Answers(*(getattr(self, name)[:, :n_seed] for name in self.__dataclass_fields__))


class Bench:
    """Generates and judges the answers of one arm after the other."""

    def __init__(self, model: Model, queries: Sequence[Mapping[str, str]], say: Say) -> None:
        self.model = model
        self.queries = queries
        self._say = say

    def run(self, profiles: Mapping[str, Profile], n_seed: int) -> dict[Arm, Answers]:
        """The answers of all arms."""
        plan = {PLAIN: n_seed}
        for axis in profiles:
            plan |= {Arm(axis, side): n_seed for side in SIDES}
            plan |= {Arm(axis, strength=s): n_seed if s in FULL else 1 for s in STRENGTHS}
        total, done, begin = sum(plan.values()), 0, time.monotonic()
        found = {}
        with Scorer(self.model) as scorer:
            for arm, seeds in plan.items():
                injection = None
                if arm.axis and arm.side is None:
                    injection = (profiles[arm.axis] * arm.strength).injection(self.model)
                found[arm] = self.answers(arm, injection, seeds, scorer)
                done += seeds
                left = (time.monotonic() - begin) / done * (total - done)
                self._say(f"{arm}: {seeds * len(self.queries)} answers; about {left:.0f} s left")
        return found

    def answers(
        self,
        arm: Arm,
        injection: Injection | Conditional | None,
        n_seed: int,
        scorer: Scorer,
    ) -> Answers:
        shape = (len(self.queries), n_seed)
        texts = np.empty(shape, object)
        columns = np.zeros((6, *shape))
        knowledge, loops, coherence, sentences, nats, tokens = columns
        scores = np.zeros((*shape, len(AXES)))
        for seed in range(n_seed):
            # One batch a seed, so that equal arms meet in equal batches and agree to the bit.
            requests = [
                Request(
                    self.model.ask_tokens(self._text(arm, entry["query"])),
                    Sampling(
                        **{**asdict(SAMPLING), "stop": self.model.stops, "seed": 1000 * seed + row}
                    ),
                    row,
                )
                for row, entry in enumerate(self.queries)
            ]
            for done in generate_batch(self.model, requests, injection=injection, width=WIDTH):
                at, entry = (done.index, seed), self.queries[done.index]
                verdict = judge(done.text, entry["topic"])
                texts[at] = done.text
                scores[at] = [verdict.scores[axis] for axis in AXES]
                knowledge[at] = math.nan if verdict.knowledge is None else verdict.knowledge
                loops[at], coherence[at] = verdict.loop, verdict.coherence
                sentences[at], tokens[at] = verdict.sentences, len(done.tokens)
                if done.tokens:
                    (rows,) = scorer.log_probs(self.model.ask_tokens(entry["query"]), done.tokens)
                    nats[at] = -answer_log_prob(rows, done.tokens)
        return Answers(texts, scores, knowledge, loops, coherence, sentences, nats, tokens)

    def _text(self, arm: Arm, query: str) -> str:
        if arm.side is None:
            return query
        return prompts.prompted(query, Axis.builtin(arm.axis), arm.side)


def figures(answers: Mapping[Arm, Answers], axes: Sequence[str]) -> dict[str, Any]:
    """All figures, as nested tables by name; the leaves are `Figure`s, numbers and lists."""
    plain = answers[PLAIN]
    resamples = Resamples(len(plain.texts))
    shares = []
    table: dict[str, Any] = {"axes": {}, "cross": {}}
    for axis in axes:
        column = AXES.index(axis)

        def mean(arm: Arm, column: int = column) -> DoubleArray:
            return resamples.mean(answers[arm].scores[..., column])

        arms = {f"asked {side}": Arm(axis, side) for side in SIDES}
        arms |= {f"steered {s:+g}": Arm(axis, strength=s) for s in STRENGTHS if s}
        difference = mean(Arm(axis, strength=1.0)) - mean(Arm(axis, strength=-1.0))
        asked = mean(Arm(axis, "positive")) - mean(Arm(axis, "negative"))
        with np.errstate(invalid="ignore", divide="ignore"):
            shares.append(difference / asked)
        zero = answers[Arm(axis, strength=0.0)].texts
        table["axes"][axis] = {
            "scores": {"plain": resamples.figure(mean(PLAIN))}
            | {name: resamples.figure(mean(arm)) for name, arm in arms.items()},
            "difference": resamples.figure(difference),
            "asked difference": resamples.figure(asked),
            "share of asking": resamples.figure(shares[-1]),
            "net win": {
                f"{s:+g}": resamples.net_win(
                    s * (answers[Arm(axis, strength=s)].scores - plain.scores)[..., column]
                ).net
                for s in FULL
            },
            "price": {name: _cost(resamples, answers[arm], plain) for name, arm in arms.items()},
            "strength 0": {
                "same as plain": int((zero == plain.texts[:, : zero.shape[1]]).sum()),
                "answers": zero.size,
            },
        }
        table["cross"][axis] = {
            other: resamples.figure(
                resamples.mean(answers[Arm(axis, strength=1.0)].scores[..., i])
                - resamples.mean(answers[Arm(axis, strength=-1.0)].scores[..., i])
            )
            for i, other in enumerate(AXES)
        }
    table["mean share of asking"] = resamples.figure(np.mean(shares, axis=0))
    table["plain"] = {
        "nats per token": resamples.figure(resamples.ratio(plain.nats, plain.tokens)),
        "knowledge": resamples.figure(resamples.mean(plain.knowledge)),
    } | _quality(plain)
    return table


def _cost(resamples: Resamples, arm: Answers, plain: Answers) -> dict[str, Figure | float]:
    """What an arm costs beside plain answers of the same seeds."""
    plain = plain.first(arm.nats.shape[1])
    above = resamples.ratio(arm.nats, arm.tokens) - resamples.ratio(plain.nats, plain.tokens)
    gained = resamples.mean(arm.knowledge) - resamples.mean(plain.knowledge)
    return {
        "nats above plain": resamples.figure(above),
        "knowledge above plain": resamples.figure(gained),
    } | _quality(arm)


def _quality(arm: Answers) -> dict[str, float]:
    return {name: float(getattr(arm, name).mean()) for name in ("loops", "coherence", "sentences")}


def profile_of(
    model: Model, axis: Axis, method: str, folder: Path | None, seed: int, say: Say
) -> Profile:
    """The profile `folder/<axis>.gguf` where it is there; else one built from the build queries."""
    if folder is not None and (path := folder / f"{axis.name}.gguf").exists():
        return Profile.load(path)
    last = ""

    def on_progress(step: str, done: int, total: int) -> None:
        nonlocal last
        if step != last:
            last = step
            say(f"{axis.name}: building the profile, {step}")

    return build_profile(
        model,
        axis,
        queries=[entry["query"] for entry in demo_queries("build")],
        method=method,
        seed=seed,
        work=work_folder(model, axis, seed),
        on_progress=on_progress,
    )


def tuning_queries(count: int = 60) -> list[dict[str, str]]:
    """Queries of the demo world that are in neither of its data files."""
    taken = {entry["query"] for name in ("unseen", "build") for entry in demo_queries(name)}
    forms = ("What can you tell me about {t}?", "Describe {t}.", "What should I know about {t}?")
    rng = random.Random(5)
    picked = [(rng.choice(forms).format(t=t), t) for t in rng.sample(world().topics, 2 * count)]
    return [{"query": q, "topic": t} for q, t in picked if q not in taken][:count]


def work_folder(model: Model, axis: Axis, seed: int) -> Path:
    """Where the build of a profile is kept between runs."""
    wording = hashlib.sha256(axis.to_toml().encode()).hexdigest()[:8]
    key = f"{model.path.stem}-{model.fingerprint.digest()[:16]}-{model.threads}"
    return CACHE / key / f"{axis.name}-{wording}-{seed}"


def open_model(path: Path | None, threads: int | None) -> Model:
    """The model at `path`; without one the demo model."""
    return Model.load(path, threads=threads) if path else Model.demo(threads=threads)


def say(line: str) -> None:
    """A line of progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def plain_data(value: Any) -> Any:
    """Figures and tables as JSON can say them; NaN becomes None."""
    if isinstance(value, Figure):
        return plain_data(asdict(value))
    if isinstance(value, dict):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_data(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks import steering_report

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the demo model)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="answers to each query")
    parser.add_argument("--limit", type=int, help="use only so many of the unseen queries")
    parser.add_argument("--tuning", action="store_true", help="queries that are not the unseen")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--method", choices=METHODS, default=DEFAULT_METHOD)
    parser.add_argument("--profiles", type=Path, help="folder with <axis>.gguf to use as they are")
    parser.add_argument("--build-seed", type=int, default=0, help="seed of the profiles")
    parser.add_argument("--picture", type=Path, help="write score and cost over strength (PNG)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument("--readme", type=Path, help="put the tables between this file's markers")
    options = parser.parse_args(arguments)

    model = open_model(options.model, options.threads)
    with model:
        profiles = {
            name: profile_of(
                model, Axis.builtin(name), options.method, options.profiles, options.build_seed, say
            )
            for name in options.axes
        }
        queries = (tuning_queries() if options.tuning else demo_queries("unseen"))[: options.limit]
        answers = Bench(model, queries, say).run(profiles, options.seeds)
        result = {
            "model": model.path.name,
            "queries": len(queries),
            "which": "tuning" if options.tuning else "unseen",
            "seeds": options.seeds,
            "profiles": {
                name: {"method": p.method, "layers": list(p.layers), "unit": p.unit}
                for name, p in profiles.items()
            },
        } | figures(answers, options.axes)
    result["checks"] = [asdict(check) for check in steering_report.checks(result)]
    if options.picture:
        steering_report.draw(result, options.picture)
    if options.readme:
        steering_report.insert(steering_report.markdown(result, brief=True), options.readme)
    if options.json:
        print(json.dumps(plain_data(result)))
    else:
        print(steering_report.markdown(result))


if __name__ == "__main__":
    main()
