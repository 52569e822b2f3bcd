"""A profile in other quantizations of its model: `python -m benchmarks.quantizations`.

Profiles built on the demo model's Q8_0 file, used on Q8_0, Q4_K_M and F16: the net win over each
file's own plain answers, by the rule judge, on the unseen queries. Draws are the same in every arm;
intervals are 95 % and resample the queries; differences to Q8_0 are paired by query. With it, what
`verify` says of each file, and of other models, which it must refuse.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES
from alignez_edge.errors import ProfileFileError
from alignez_edge.evaluation.measures import Figure, Resamples
from alignez_edge.methods.table import DEFAULT_METHOD
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.verify import Verification, verify
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer
from benchmarks.steering import CACHE, PLAIN, Arm, Bench, profile_of, say
from benchmarks.steering_report import insert
from tests.tinymodels import ARCHITECTURES, quantize, tiny_model

SOURCE = Path(__file__).parent.parent / "demo_model" / "demo-model-f16.gguf"
BUILT_ON = "Q8_0"
QUANTIZATIONS = (BUILT_ON, "Q4_K_M", "F16")
STRENGTHS = (1.0, -1.0)
LIMIT = 0.10
"""How far the net win may be from that on the file of the build."""


def files() -> dict[str, Path]:
    """The demo model in every quantization, made where it is not there yet."""
    folder = CACHE.parent / "quantizations"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"F16": SOURCE}
    for name in QUANTIZATIONS:
        if name not in found:
            found[name] = folder / f"demo-model-{name}.gguf"
            if not found[name].exists():
                quantize(SOURCE, found[name], name)
    return found


def wins(
    model: Model, profiles: dict[str, Profile], n_seed: int, limit: int | None
) -> dict[tuple[str, float], DoubleArray]:
    """By axis and strength, who is better, steered (+1) or plain (-1): `(n_query, n_seed)`."""
    bench = Bench(model, demo_queries("unseen")[:limit], say)
    found = {}
    with Scorer(model) as scorer:
        plain = bench.answers(PLAIN, None, n_seed, scorer).scores
        for axis, profile in profiles.items():
            for strength in STRENGTHS:
                arm = Arm(axis, strength=strength)
                injection = (profile * strength).injection(model)
                steered = bench.answers(arm, injection, n_seed, scorer).scores
                column = AXES.index(axis)
                found[axis, strength] = np.sign(strength * (steered - plain)[..., column])
                say(f"{model.facts.quantization}: {arm}")
    return found


def refused(profile: Profile) -> list[str]:
    """The architectures of small test models that `verify` does not refuse; there are none."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            with Model.load(tiny_model(Path(folder), architecture), threads=1) as model:
                try:
                    verify(profile, model)
                except ProfileFileError:
                    continue
            wrong.append(architecture)
    return wrong


def interval(figure: Figure) -> str:
    """A share in points, with its interval."""
    points = (round(100 * x) for x in (figure.mean, figure.low, figure.high))
    mean, low, high = (f"{x:+d}".replace("-", "−") for x in points)
    return f"{mean} [{low}, {high}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5, help="answers to each query")
    parser.add_argument("--limit", type=int, help="use only so many of the unseen queries")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    options = parser.parse_args(arguments)

    paths = files()
    found: dict[str, dict[tuple[str, float], DoubleArray]] = {}
    checked: dict[tuple[str, str], Verification] = {}
    profiles: dict[str, Profile] = {}
    for name in QUANTIZATIONS:
        with Model.load(paths[name], threads=options.threads) as model:
            for axis in options.axes:
                if name == BUILT_ON:
                    what = Axis.builtin(axis)
                    profiles[axis] = profile_of(model, what, DEFAULT_METHOD, None, 0, say)
                checked[name, axis] = verify(profiles[axis], model)
            found[name] = wins(model, profiles, options.seeds, options.limit)
    text = report(found, checked, options.axes)
    wrong = [axis for axis, profile in profiles.items() if refused(profile)]
    text += (
        f"\n\nThe {len(ARCHITECTURES)} other models of the test set, of as many architectures: "
        + ("all refused." if not wrong else f"not all refused for {', '.join(wrong)}!")
    )
    print(text)
    if options.page:
        insert(text, options.page, "quantizations")


def report(
    found: dict[str, dict[tuple[str, float], DoubleArray]],
    checked: dict[tuple[str, str], Verification],
    axes: Sequence[str],
) -> str:
    """The figures as Markdown."""
    n_query, n_seed = found[BUILT_ON][axes[0], 1.0].shape
    resamples = Resamples(n_query)
    lines = [
        f"Net win in points against the same file's plain answers; {n_query} unseen queries, "
        f"{n_seed} answers to each, temperature 0.8. Profiles built on {BUILT_ON}.",
        "",
        f"| axis | file | net win +1 | against {BUILT_ON} | net win −1 | against {BUILT_ON} "
        "| verify | replayed effect |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    differences: dict[tuple[str, float], list[DoubleArray]] = {}
    for axis in axes:
        for name in QUANTIZATIONS:
            cells = []
            for strength in STRENGTHS:
                won = found[name][axis, strength]
                base = found[BUILT_ON][axis, strength]
                cells.append(interval(resamples.figure(resamples.mean(won))))
                moved = resamples.mean(won - base)
                differences.setdefault((name, strength), []).append(moved)
                cells.append("" if name == BUILT_ON else interval(resamples.figure(moved)))
            check = checked[name, axis]
            assert check.before is not None and check.now is not None
            share = check.now.span / check.before.span
            lines.append(
                f"| {axis} | {name} | {' | '.join(cells)} | {check.comparison.fit.value} "
                f"| × {share:.2f} |"
            )
    worst = max(abs(float(d[0])) for each in differences.values() for d in each)
    lines += ["", "Mean over the axes of the difference to the file of the build, in points:"]
    parts = [
        f"{name} {strength:+.0f}: {interval(resamples.figure(np.mean(each, axis=0)))}"
        for (name, strength), each in differences.items()
        if name != BUILT_ON
    ]
    verdict = "within" if worst <= LIMIT else "not all within"
    lines += [
        "; ".join(parts).replace(" -1", " −1") + ".",
        f"The largest difference of one axis is {100 * worst:.0f} points: {verdict} "
        f"{100 * LIMIT:.0f}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
