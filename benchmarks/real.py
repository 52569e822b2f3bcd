"""How far steering moves a real model, against the strongest prompt: `python -m benchmarks.real`.

For each axis a profile is built by the library as it is. Questions of just-eval-instruct that no
build has seen are then answered plain, prompted for either side, steered to either side, and both
together. The prompt is the strongest form of request, by the instrument, on other questions.
Instruments that nobody here wrote judge the answers; what they cost is what the plain model thinks
of them. Everything is kept in a folder, and a run goes on where it was interrupted. The answers
behind the tables of the docs are in `benchmarks/answers/`, to be read, or judged by somebody else's
instrument: where the folder is empty, a run begins with them.
"""

from __future__ import annotations

from alignez_edge.arrays import DoubleArray
from alignez_edge.threads import calm

calm()  # before NumPy and llama.cpp are loaded

import argparse
import gzip
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignez_edge.build.build import build_profile
from alignez_edge.build.steps import takes_system
from alignez_edge.evaluation.measures import Figure, Resamples
from alignez_edge.files.writing import make_folder, write_atomic
from alignez_edge.methods.table import DEFAULT_METHOD
from alignez_edge.modelfiles.names import ModelNames
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import SIDES
from alignez_edge.preferences.queries import read_queries
from alignez_edge.preferences.requests import FORMS, RequestForm
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from benchmarks.instruments import INSTRUMENTS
from benchmarks.real_answers import Answer, Answers, Arm, Say, Task
from benchmarks.real_report import details, forms, opening
from benchmarks.requests import OWN, questions
from benchmarks.steering import plain_data, say
from benchmarks.steering_report import insert

AXES = ("cheerful", "concise", "formal", "simple", "lists", "questions", "polite")
QUESTIONS = Path(__file__).parent / "questions"
CACHE = Path(__file__).parent.parent / ".cache" / "real"
PUBLISHED = Path(__file__).parent / "answers"
MARKER = "real"
N_SHOWN = 5
LONG = {"concise": 2}
"""How many times longer answers may be on an axis whose instrument needs it: a long answer that is
cut is as short as any other."""
N_SHARED = 50
"""Questions of the build of an axis that has none of its own; the built-in axes have as many."""
PLAIN = Arm("plain")


@dataclass(frozen=True)
class Judged:
    """An arm's answers, all `(n_query, n_seed)`; a score is NaN where there is nothing to judge."""

    scores: DoubleArray
    nats: DoubleArray
    tokens: DoubleArray

    @classmethod
    def of(cls, axis: str, answers: Sequence[Answer], n_seed: int) -> Judged:
        """Of answers to one query after the other."""
        scores = [INSTRUMENTS[axis].score(answer.text) for answer in answers]
        columns = scores, [a.nats for a in answers], [a.tokens for a in answers]
        return cls(*(np.array(column, float).reshape(-1, n_seed) for column in columns))


def arms(form: RequestForm) -> dict[str, Arm]:
    """All arms of an axis by name."""
    found = [PLAIN]
    for side, sign in zip(SIDES, "+-", strict=True):
        strength = float(f"{sign}1")
        found += [
            Arm(f"prompted {sign}", form, side),
            Arm(f"steered {sign}1", strength=strength),
            Arm(f"both {sign}", form, side, strength),
        ]
    return {arm.name: arm for arm in found}


def profile_of(
    model: Model,
    name: str,
    axis: Axis,
    folder: Path,
    limit: int | None,
    say: Say,
    method: str = DEFAULT_METHOD,
    neighbors: int | None = None,
) -> Profile:
    """The profile that `folder` has, else one built by the library as it is. Those of other methods
    are built of the same pairs."""
    other = "" if method == DEFAULT_METHOD else f"-{method}"
    other += "" if neighbors is None else f"-by-{neighbors}"
    path = folder / f"{stem_of(name, limit)}{other}.gguf"
    if path.exists():
        return Profile.load(path)
    last = ""

    def on_progress(step: str, done: int, total: int) -> None:
        nonlocal last
        if step != last:
            last = step
            say(f"{path.stem}: building the profile, {step}")

    profile = build_profile(
        model,
        axis,
        queries=build_queries(axis) if not axis.queries else None,
        method=method,
        neighbors=neighbors,
        limit=limit,
        work=work_of(folder, name, limit),
        on_progress=on_progress,
    )
    profile.save(path)
    return profile


def stem_of(name: str, limit: int | None) -> str:
    """What the files of an axis are called."""
    return name if limit is None else f"{name}-{limit}"


def work_of(folder: Path, name: str, limit: int | None) -> Path:
    """Where the build of an axis is kept, and its pairs."""
    return folder / f"build-{stem_of(name, limit)}"


def build_queries(axis: Axis) -> list[str]:
    """What a build asks: the axis' own questions, else some of the built-in axes'."""
    return list(axis.queries) or list(questions("", axis))[:N_SHARED]


def prompting(model: Model, axis: Axis) -> list[RequestForm]:
    """The forms in which this model can be prompted for a side of the axis."""
    return [
        form
        for form in FORMS.values()
        if form.fits(axis) and (form.name != "system" or takes_system(model))
    ]


def answers_folder(model: Model, given: Path | None) -> Path:
    """Where everything about a model is kept: the `given` folder, else one of its own, which begins
    with what is published."""
    if given is not None:
        return make_folder(given)
    key = f"{model.path.stem}-{model.fingerprint.digest()[:16]}"
    folder, published = CACHE / key, PUBLISHED / key
    if published.is_dir() and not folder.exists():
        make_folder(folder)
        for profile in published.glob("*.gguf"):
            shutil.copy(profile, folder)
        answers = gzip.decompress((published / "answers.jsonl.gz").read_bytes())
        write_atomic(folder / "answers.jsonl", answers)
    return make_folder(folder)


def publish(folder: Path, axes: Sequence[str]) -> None:
    """Put the answers of a folder, and the profiles of these axes, where the docs' are."""
    target = make_folder(PUBLISHED / folder.name)
    for name in axes:
        shutil.copy(folder / f"{name}.gguf", target)
    answers = (folder / "answers.jsonl").read_bytes()
    write_atomic(target / "answers.jsonl.gz", gzip.compress(answers, 9, mtime=0))


def strongest(
    answers: Answers,
    name: str,
    axis: Axis,
    forms: Sequence[RequestForm],
    queries: Sequence[str],
    say: Say,
    n_tokens: int | None = None,
) -> tuple[RequestForm, dict[str, Figure]]:
    """The form whose sides the instrument finds farthest apart, and the spans of all."""
    say(f"{name}: which form of prompting is the strongest?")
    spans = {}
    asked = [Arm(f"{form.name} {side}", form, side) for form in forms for side in SIDES]
    tasks = [Task(arm, query, row, 0) for row, query in enumerate(queries) for arm in asked]
    found = answers.to(axis, tasks, n_tokens=n_tokens, cost=False)
    resamples = Resamples(len(queries))
    for i, form in enumerate(forms):
        above, below = (
            resamples.mean(Judged.of(name, found[2 * i + side :: len(asked)], 1).scores)
            for side in (0, 1)
        )
        spans[form.name] = resamples.figure(above - below)
    known = {
        name: -math.inf if math.isnan(span.mean) else span.mean for name, span in spans.items()
    }
    best = max(forms, key=lambda form: known[form.name])
    say(f"{name}: {best.name}, of {', '.join(f'{k} {v:+.2f}' for k, v in known.items())}")
    return best, spans


def figures(judged: dict[str, dict[str, Judged]]) -> dict[str, Any]:
    """All figures of all axes, as nested tables; the leaves are `Figure`s.

    An axis counts where prompting moves its instrument clear of 0 in the wanted direction.
    """
    n_query = len(next(iter(judged.values()))["plain"].nats)
    resamples = Resamples(n_query)
    axes: dict[str, Any] = {}
    ratios: dict[str, list[DoubleArray]] = {"steered": [], "both": []}
    counted = []
    for axis, found in judged.items():
        score = {name: resamples.mean(arm.scores) for name, arm in found.items()}
        cost = {name: resamples.ratio(arm.nats, arm.tokens) for name, arm in found.items()}
        span = {
            "prompted": score["prompted +"] - score["prompted -"],
            "steered": score["steered +1"] - score["steered -1"],
            "both": score["both +"] - score["both -"],
        }
        spans = {way: resamples.figure(sample) for way, sample in span.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            share = {way: span[way] / span["prompted"] for way in ratios}
        counts = spans["prompted"].low > 0
        if counts:
            counted.append(axis)
            for way, samples in ratios.items():
                samples.append(share[way])
        axes[axis] = {
            "counts": bool(counts),
            "plain": resamples.figure(score["plain"]),
            "plain nats": resamples.figure(cost["plain"]),
            "effect": {
                name: resamples.figure(sample - score["plain"])
                for name, sample in score.items()
                if name != "plain"
            },
            "nats above plain": {
                name: resamples.figure(sample - cost["plain"])
                for name, sample in cost.items()
                if name != "plain"
            },
            "nats above prompting": {
                sign: resamples.figure(cost[f"steered {sign}1"] - cost[f"prompted {sign}"])
                for sign in "+-"
            },
            "judged": {name: int((~np.isnan(arm.scores)).sum()) for name, arm in found.items()},
            "span": spans,
            "ratio": {way: resamples.share(span[way], span["prompted"]) for way in ratios},
        }
    nothing = Figure(math.nan, math.nan, math.nan)
    means = {
        way: resamples.figure(np.mean(samples, axis=0)) if samples else nothing
        for way, samples in ratios.items()
    }
    return {"axes": axes, "counted": counted, "mean ratio": means}


def parser_of(doc: str | None, axes: Sequence[str]) -> argparse.ArgumentParser:
    """The options that the benchmarks on a real model share, after the first words of `doc`."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--model", default="smollm2", help="a short name or a GGUF file")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(axes))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=int, help="pairs of a build (default: the library's)")
    parser.add_argument("--folder", type=Path, help="where everything is kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--page", type=Path, help="put the tables between this file's markers")
    return parser


def tell(result: Any, text: str, marker: str, options: argparse.Namespace) -> None:
    """Print a result as its table or as JSON, and put the table into the page, if one is named."""
    if options.page:
        insert(text, options.page, marker)
    print(json.dumps(plain_data(result), ensure_ascii=False) if options.json else text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, AXES)
    parser.add_argument("--queries", type=int, default=60, help="questions to report on")
    parser.add_argument("--choosing", type=int, default=24, help="questions to choose the form on")
    parser.add_argument("--seeds", type=int, default=3, help="answers to each question")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer at most")
    parser.add_argument("--readme", type=Path, help="put the first table between its markers")
    parser.add_argument("--forms", type=Path, help="put the table of forms between its markers")
    parser.add_argument(
        "--publish", action="store_true", help="put the answers into benchmarks/answers"
    )
    options = parser.parse_args(arguments)

    queries = read_queries(QUESTIONS / "report.jsonl", options.queries)
    others = read_queries(QUESTIONS / "choosing.jsonl", options.choosing)
    judged: dict[str, dict[str, Judged]] = {}
    told: dict[str, Any] = {}
    with Model.load(ModelNames().find(options.model), threads=options.threads) as model:
        folder = answers_folder(model, options.folder)
        answers = Answers(model, folder, options.tokens, say)
        for name in options.axes:
            axis = OWN.get(name) or Axis.builtin(name)
            n_tokens = LONG.get(name, 1) * options.tokens
            profile = profile_of(model, name, axis, folder, options.limit, say)
            form, spans = strongest(
                answers, name, axis, prompting(model, axis), others, say, n_tokens
            )
            found = arms(form)
            tasks = [
                Task(arm, query, row, seed)
                for row, query in enumerate(queries)
                for seed in range(options.seeds)
                for arm in found.values()
            ]
            made = answers.to(axis, tasks, profile, n_tokens=n_tokens)
            by_arm = {arm: made[i :: len(found)] for i, arm in enumerate(found)}
            judged[name] = {arm: Judged.of(name, own, options.seeds) for arm, own in by_arm.items()}
            told[name] = {
                "form": form.name,
                "tokens": n_tokens,
                "form spans": spans,
                "instrument": asdict(INSTRUMENTS[name])["name"],
                "profile": {
                    "form": profile.report.get("request", {}).get("form"),
                    "pairs": profile.pairs,
                    "layers": list(profile.layers),
                    "unit": profile.unit,
                    "unit_negative": profile.unit_negative or profile.unit,
                    "verdict": profile.report.get("verdict", {}).get("verdict", ""),
                },
                "first answers": [
                    {"query": query}
                    | {arm: own[row * options.seeds].text for arm, own in by_arm.items()}
                    for row, query in enumerate(queries[:N_SHOWN])
                ],
            }
    if options.publish:
        publish(folder, options.axes)
    result = {
        "model": model.path.name,
        "queries": len(queries),
        "choosing": len(others),
        "seeds": options.seeds,
        "tokens": options.tokens,
    } | figures(judged)
    for name, facts in told.items():
        result["axes"][name] |= facts
    for text, page, marker in (
        (opening(result), options.readme, MARKER),
        (details(result), options.page, MARKER),
        (forms(result), options.forms, f"{MARKER}-forms"),
    ):
        if page:
            insert(text, page, marker)
        if not options.json:
            print(text, end="\n\n")
    if options.json:
        print(json.dumps(plain_data(result), ensure_ascii=False))


if __name__ == "__main__":
    main()
