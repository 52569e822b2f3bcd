"""The measurements behind the choices in docs/method.md: `python -m benchmarks.choices`.

On 60 queries that are neither the unseen ones nor those of the build, and with the displacements at
their raw differences (no calibration): how far each choice of layers, of position, of length and of
what is read moves the four axes, over what prompting moves them, and at what cost. The
negative side of `helpful`, where the cost is true claims, has a table of its own, beside what the
demo world's own writing loses from one level of the axis to the next.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from alignez_edge.demo.rules import AXES, judge
from alignez_edge.directions.subspace import difference_subspace
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.methods.table import DEFAULT_METHOD
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.runtime.capture import TensorName, capture
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer
from benchmarks.steering import (
    Answers,
    Arm,
    Bench,
    open_model,
    profile_of,
    say,
    tuning_queries,
    work_folder,
)
from benchmarks.steering_report import insert
from demo_model import corpus

UNTRUE = "helpful"
"""The axis whose negative side says what is not so."""
LEVELS = {"helpful": 1, "middling": 0, "unhelpful": -1}
"""Of that axis, as the corpus of the demo world knows them."""
N_WRITTEN = 100
"""Answers of the corpus' generator to each query, at each level."""
Displacements = dict[str, np.ndarray]
"""By name, `(position, n_layer, n_embd)`: the last prompt token, then the answer's."""


def choices(n_layer: int) -> Iterator[tuple[str, str, tuple[int, ...], float, float]]:
    """What is tried: name, displacement, layers, length at the last prompt token, at later ones."""
    last = n_layer - 1
    for first, end in ((1, last - 2), (1, last - 1), (3, last - 1), (last, last), (5, last),
                       (3, last), (1, last)):  # fmt: skip
        name = f"layers {first} to {end}" if first < end else f"layer {end} alone"
        yield name, "residual", tuple(range(first, end + 1)), 1, 1
    whole = tuple(range(1, n_layer))
    for deciding, answer in ((1, 0), (0, 1), (1, 0.5), (0.5, 1), (1.5, 1), (1.5, 0.8), (2, 0.8)):
        name = f"last prompt token × {deciding}, later ones × {answer}"
        yield name, "residual", whole, deciding, answer
    yield "difference of means in place of rank 1", "means", whole, 1, 1
    yield "rank 4", "rank 4", whole, 1, 1
    yield "answers read without the request", "without request", whole, 1, 1
    yield "MLP outputs, their own differences", "mlp", whole, 1, 1


def displacements(model: Model, pairs: list[PreferencePair]) -> Displacements:
    """Every displacement that is tried, from the same pairs."""
    found: Displacements = {}

    def read(tensor: TensorName, with_request: bool) -> np.ndarray:
        items = []
        for pair in pairs:
            for request, answer in ((pair.chosen_request, pair.chosen),
                                    (pair.rejected_request, pair.rejected)):  # fmt: skip
                prompt = request if with_request else pair.query
                tokens = model.ask_tokens(prompt)
                items.append((tokens, model.tokenize(answer, begin=False)))
        states = list(capture(model, items, tensor=tensor))
        both = np.array([(state.deciding, state.answer) for state in states])
        return both.reshape(len(pairs), 2, 2, model.n_layer, model.n_embd)

    def at_rank(states: np.ndarray, rank: int) -> np.ndarray:
        out = np.zeros(states.shape[2:], np.float32)
        for position in range(2):
            for layer in range(model.n_layer):
                sides = states[:, 0, position, layer], states[:, 1, position, layer]
                out[position, layer] = difference_subspace(*sides, rank).displacement()
        return out

    residual = read("l_out", True)
    found["residual"] = at_rank(residual, 1)
    found["rank 4"] = at_rank(residual, 4)
    found["means"] = (residual[:, 0] - residual[:, 1]).mean(axis=0)
    found["without request"] = found["residual"].copy()
    found["without request"][1] = at_rank(read("l_out", False), 1)[1]
    found["mlp"] = at_rank(read("ffn_out", True), 1)
    return found


def vector(
    found: np.ndarray, name: str, layers: tuple[int, ...], lengths: tuple[float, float]
) -> ControlVector:
    """The control vector of one choice: MLP outputs are added whole, the residual in increments."""
    if name == "mlp":
        rows = found.copy()
        rows[:, 0] = 0
        made = ControlVector(*rows).restrict(layers)
    else:
        made = ControlVector.from_displacements(found[0], found[1], layers)
    return ControlVector(*(np.float32(length) * part for length, part in
                           zip(lengths, (made.deciding, made.answer), strict=True)))  # fmt: skip


def span(
    bench: Bench, scorer: Scorer, axis: str, injections: list[Injection]
) -> tuple[float, list[Answers]]:
    """How far apart the scores under two injections lie, and the answers."""
    arm = Arm(axis, strength=1.0)
    answers = [bench.answers(arm, injection, 1, scorer) for injection in injections]
    scores = [float(a.scores[..., AXES.index(axis)].mean()) for a in answers]
    return scores[0] - scores[1], answers


def main() -> None:
    """Measure every choice and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the demo model)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    options = parser.parse_args()

    opened = open_model(options.model, options.threads)
    untrue: dict[str, tuple[float, float]] = {}
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with opened as model, Scorer(model) as scorer:
        bench = Bench(model, tuning_queries(), say)
        plain = bench.answers(Arm(), None, 1, scorer)
        plain_nats = plain.nats.sum() / plain.tokens.sum()
        for axis in AXES:
            what = Axis.builtin(axis)
            profile_of(model, what, DEFAULT_METHOD, None, 0, say)  # its pairs stay in the folder
            found = displacements(model, read_pairs(work_folder(model, what, 0) / "pairs.jsonl"))
            asked = [bench.answers(Arm(axis, side), None, 1, scorer) for side in prompts.SIDES]
            column = AXES.index(axis)
            target = float((asked[0].scores - asked[1].scores)[..., column].mean())
            if axis == UNTRUE:
                untrue = written(bench.queries) | {"prompting": lost(asked[1], plain, column)}
            for name, key, layers, *lengths in choices(model.n_layer):
                made = vector(found[key], key, layers, (lengths[0], lengths[1]))
                moved, answers = span(bench, scorer, axis, [
                    Injection((made * s).deciding, (made * s).answer) for s in (1, -1)
                ])  # fmt: skip
                costs = [float(a.nats.sum() / a.tokens.sum() - plain_nats) for a in answers]
                cell = moved / target, float(np.mean(costs)), max(costs)
                rows.setdefault(name, []).append(cell)
                if axis == UNTRUE:
                    untrue[name] = lost(answers[1], plain, column)
                say(f"{axis}: {name}: {moved / target:.2f}, {np.mean(costs):+.3f} nats")
    lines = ["| choice | ratio to prompting | nats per token above plain | at worst |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for name, cells in rows.items():
        shares, means, worst = zip(*cells, strict=True)
        figures = f"{np.mean(shares):.2f} | {np.mean(means):.3f} | {max(worst):.3f}"
        lines.append(f"| {name} | {figures} |")
    table = ["| choice | score below plain | true claims lost | lost for each 1 of score |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for name, (score, claims) in untrue.items():
        rate = f"{claims / score:.2f}" if score > 0 else "–"  # what moves nothing has no rate
        table.append(f"| {name} | {score:.2f} | {claims:.2f} | {rate} |")
    print("\n".join([*lines, "", *table]))
    if options.page:
        insert("\n".join(lines), options.page, "choices")
        insert("\n".join(table), options.page, "untrue")


def lost(answers: Answers, plain: Answers, column: int) -> tuple[float, float]:
    """How far answers lie below plain ones: the mean score, and the share of true claims."""
    score = float((plain.scores - answers.scores)[..., column].mean())
    return score, float(np.nanmean(plain.knowledge) - np.nanmean(answers.knowledge))


def written(queries: Sequence[Mapping[str, str]]) -> dict[str, tuple[float, float]]:
    """The same of what the corpus' generator writes, from each level to the next lower one."""
    means = []
    for level in LEVELS.values():
        rng = random.Random(0)
        levels = {**dict.fromkeys(AXES, 0), UNTRUE: level}
        verdicts = [
            judge(corpus.answer(rng, query["topic"], levels), query["topic"])
            for query in queries
            for _ in range(N_WRITTEN)
        ]
        known = [v.knowledge for v in verdicts if v.knowledge is not None]
        means.append((float(np.mean([v.scores[UNTRUE] for v in verdicts])), float(np.mean(known))))
    return {
        f"the demo world, from {higher} to {lower}": (above[0] - below[0], above[1] - below[1])
        for (higher, above), (lower, below) in pairwise(zip(LEVELS, means, strict=True))
    }


def read_pairs(path: Path) -> list[PreferencePair]:
    """The usable pairs of a build in progress."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [PreferencePair(**line) for line in lines if "dropped" not in line]


if __name__ == "__main__":
    main()
