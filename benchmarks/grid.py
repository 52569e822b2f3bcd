"""Two axes steered at once on a grid of strengths: `python -m benchmarks.grid`.

For a pair of axes that are independent in the demo world and for the pair that is correlated, the
profiles as they are and orthogonalised: the scores of both axes by the rule judge over five by
five strengths, on the unseen queries. Slopes are least squares over the grid: the own effect is how
far a unit of an axis' strength moves its own score, the cross effect how far it moves the other's.
A query's draws are the same in all cells; intervals are 95 % and resample the queries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES
from alignez_edge.evaluation.measures import Figure, Resamples
from alignez_edge.files.writing import make_folder
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.methods.table import DEFAULT_METHOD
from alignez_edge.pictures.drawing import Picture, save
from alignez_edge.pictures.of_run import grid_panels
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.mix import interference, orthogonalise
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.score import Scorer
from benchmarks.steering import (
    PLAIN,
    Bench,
    open_model,
    plain_data,
    profile_of,
    say,
)
from benchmarks.steering_report import insert

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
PAIRS = (("cheerful", "formal"), ("polite", "formal"))
"""Independent in the demo world, and correlated on purpose (the model's card)."""
AS_THEY_ARE, SECOND, BOTH = "as they are", "second against first", "each against the other"
DRAWN = (AS_THEY_ARE, BOTH)

Pair = tuple[Profile, Profile]
Table = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """The judged answers of all cells.

    `scores` has shape `(5, 5, n_query, n_seed, 2)`: first axis' strength, second axis' strength,
    then the answers, then the score on either axis. `nats` and `tokens` have its first four.
    """

    scores: DoubleArray
    nats: DoubleArray
    tokens: DoubleArray


def ways(first: Profile, second: Profile) -> dict[str, Pair]:
    """The two profiles as they are and orthogonalised, by the name of the way."""
    other = orthogonalise(second, first)
    return {
        AS_THEY_ARE: (first, second),
        SECOND: (first, other),
        BOTH: (orthogonalise(first, second), other),
    }


def predicted(pair: Pair, axes: Pair) -> list[float]:
    """What the profiles alone say of how far each moves the other's axis, in units of what the
    other does itself; `axes` are the two as they were before they were orthogonalised."""
    along = [[interference(profile, axis) for axis in axes] for profile in pair]
    return [along[0][1] / along[1][1], along[1][0] / along[0][0]]


def measure(bench: Bench, pair: Pair, n_seed: int, scorer: Scorer) -> Grid:
    """Steer both axes at once, cell by cell."""
    columns = [AXES.index(profile.name) for profile in pair]
    size = len(STRENGTHS)
    shape = (size, size, len(bench.queries), n_seed)
    scores, nats, tokens = np.zeros((*shape, 2)), np.zeros(shape), np.zeros(shape)
    for cell in np.ndindex(size, size):
        s, t = (STRENGTHS[i] for i in cell)
        # As control vectors in all ways alike: that is what can be orthogonalised.
        vector = sum_of(pair, (s, t))
        injection = Injection(vector.deciding, vector.answer)
        found = bench.answers(PLAIN, injection, n_seed, scorer)
        scores[cell] = found.scores[..., columns]
        nats[cell], tokens[cell] = found.nats, found.tokens
    return Grid(scores, nats, tokens)


def sum_of(pair: Pair, strengths: tuple[float, float]) -> ControlVector:
    """The control vector of both profiles at their strengths."""
    first, second = (p.vector * (p.unit * s) for p, s in zip(pair, strengths, strict=True))
    return first + second


def slopes(scores: DoubleArray) -> DoubleArray:
    """Least-squares slopes per unit of strength, of scores `(5, 5, ...)`: `(2, ...)`.

    First the strength that is raised. The grid is balanced, so that either slope is
    `sum(s * score) / sum(s * s)` over all cells.
    """
    strengths = np.array(STRENGTHS)
    sums = [np.einsum(f"{index},ij...->...", strengths, scores) for index in "ij"]
    return np.stack(sums) / (len(strengths) * (strengths**2).sum())


def figures(grid: Grid, names: Sequence[str], foretold: Sequence[float]) -> Table:
    """The table of one grid: per axis own effect, cross effect and interference; and the cost.

    The interference is the cross effect in units of what the other axis does itself, beside what
    the profiles alone foretold (`predicted`).
    """
    resamples = Resamples(grid.scores.shape[2])
    rising = slopes(grid.scores)
    effect = [[resamples.mean(rising[i, ..., j]) for j in (0, 1)] for i in (0, 1)]
    nats = resamples.ratio(*(x.mean(axis=(0, 1)) for x in (grid.nats, grid.tokens)))
    zero = STRENGTHS.index(0.0)
    plain = resamples.ratio(grid.nats[zero, zero], grid.tokens[zero, zero])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = [effect[i][1 - i] / effect[1 - i][1 - i] for i in (0, 1)]
    return {
        "axes": {
            name: {
                "own effect": resamples.figure(effect[i][i]),
                "cross effect": resamples.figure(effect[i][1 - i]),
                "interference": resamples.figure(share[i]),
                "predicted": foretold[i],
            }
            for i, name in enumerate(names)
        },
        "nats above plain": resamples.figure(nats - plain),
        "scores": grid.scores.mean(axis=(2, 3)).tolist(),
    }


def markdown(result: Table) -> str:
    """The slopes of every pair and way as a table."""
    lines = [
        f"{result['model']}: {result['queries']} unseen queries in each of 25 cells, answers to "
        f"each: {result['seeds']}; 95 % intervals. Effects are per unit of strength. Interference "
        "is the cross effect over what the other axis does itself, predicted is the same from the "
        "profiles alone; nats are per token, the mean of the cells above plain.",
        "",
        "| profiles | axis | own effect | cross effect | interference | predicted | nats |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for pair in result["pairs"]:
        for way, table in pair["ways"].items():
            for name, row in table["axes"].items():
                cells = [f"{' and '.join(pair['axes'])}, {way}", name]
                cells += [_interval(row[k]) for k in ("own effect", "cross effect", "interference")]
                cells += [_number(row["predicted"]), _number(table["nats above plain"].mean, 3)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(found: Figure) -> str:
    return f"{_number(found.mean)} [{_number(found.low)}, {_number(found.high)}]"


def _number(value: float, digits: int = 2) -> str:
    # Rounded first, and 0.0 added, so that nothing reads as −0.00.
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def draw(result: Table, path: Path) -> None:
    """Write the picture: per pair and way the two scores as heat maps over both strengths, and
    below them the same cells in the plane of the two scores, joined along either strength."""
    columns = []
    for pair in result["pairs"]:
        for way in DRAWN:
            scores = np.moveaxis(np.array(pair["ways"][way]["scores"]), -1, 0)
            panels = grid_panels(pair["axes"], (STRENGTHS, STRENGTHS), scores.tolist())
            over = f"{' and '.join(pair['axes'])}, {way}: {panels[0].title}"
            columns.append((replace(panels[0], title=over), *panels[1:]))
    make_folder(path.parent)
    title = f"{result['model']}: two axes at once, over both strengths"
    save(Picture(title, tuple(zip(*columns, strict=True))), path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the demo model)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="answers to each query")
    parser.add_argument("--limit", type=int, help="use only so many of the unseen queries")
    parser.add_argument("--profiles", type=Path, help="folder with <axis>.gguf to use as they are")
    parser.add_argument("--picture", type=Path, help="write scores over both strengths (PNG)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    options = parser.parse_args(arguments)

    model = open_model(options.model, options.threads)
    queries = demo_queries("unseen")[: options.limit]
    result: Table = {"model": model.path.name, "queries": len(queries), "seeds": options.seeds}
    result["pairs"] = []
    with model, Scorer(model) as scorer:
        bench = Bench(model, queries, say)
        profiles = {
            name: profile_of(model, Axis.builtin(name), DEFAULT_METHOD, options.profiles, 0, say)
            for name in {name: None for pair in PAIRS for name in pair}
        }
        for names in PAIRS:
            axes = profiles[names[0]], profiles[names[1]]
            found = {}
            for way, pair in ways(*axes).items():
                say(f"{' and '.join(names)}, {way}")
                grid = measure(bench, pair, options.seeds, scorer)
                found[way] = figures(grid, names, predicted(pair, axes))
            result["pairs"].append({"axes": list(names), "ways": found})
    if options.picture:
        draw(result, options.picture)
    text = markdown(result)
    if options.page:
        insert(text, options.page, "grid")
    print(json.dumps(plain_data(result)) if options.json else text)


if __name__ == "__main__":
    main()
