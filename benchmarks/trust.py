"""Can a verdict be trusted? Builds of pairs that are none: `python -m benchmarks.trust`.

The pairs that a real model wrote of known axes are taken, and in each pair at random its sides are
swapped, request and answer. What is left of an axis then is chance, so the build should not say
that its profile works: of 20 such builds one may. The pairs as they were written are built as well,
for comparison, and each build is also judged without a look at whether its pairs agree: that
verdict rests on the answers under the profile alone.

A swapped pair has the states of the pair, the other way round, so these are read once for all
builds of an axis. Fit, calibration and verdict are those of `alignez build --pairs`.
"""

from __future__ import annotations

from alignez_edge.threads import calm

calm()  # before NumPy and llama.cpp are loaded

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from alignez_edge.build.build import split
from alignez_edge.build.steps import STATES_CHUNK
from alignez_edge.calibration.free_running import (
    CHUNK,
    N_QUESTIONS,
    FreeReading,
    form_for,
    probe_for,
    read_questions,
)
from alignez_edge.calibration.verdict import Verdict, Word
from alignez_edge.directions.geometry import agreement
from alignez_edge.directions.hidden_states import HiddenStates, LayerStates
from alignez_edge.methods.alignez import METHOD
from alignez_edge.methods.table import DEFAULT_METHOD
from alignez_edge.modelfiles.names import ModelNames
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import PreferencePair, read_labelled_pairs
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.provenance import Source
from alignez_edge.profile.units import with_units
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.model import Model
from benchmarks.kept import Estimate, Kept, key_of
from benchmarks.real import answers_folder, parser_of, profile_of, tell, work_of
from benchmarks.real_report import as_table, number
from benchmarks.requests import OWN
from benchmarks.steering import say

MARKER = "trust"
ALLOWED = 1 / 20
"""Of builds of nothing, the share that may be said to work."""
AS_WRITTEN = 0
"""The number of the build whose pairs are as they were written; the swaps count from 1."""
Swaps = npt.NDArray[np.bool_]


class Swapped(HiddenStates):
    """The states of a file with the sides of the pairs `swapped`, `(n_pairs,)`, exchanged."""

    def __init__(self, path: Path, shape: tuple[int, int], swapped: Swaps) -> None:
        super().__init__(path, shape)
        self._swapped = swapped

    def layer(self, layer: int, position: str, rows: Iterable[int] | None = None) -> LayerStates:
        """As `HiddenStates.layer` gives it."""
        picked = list(range(len(self)) if rows is None else rows)
        found = super().layer(layer, position, picked)
        other = self._swapped[picked][:, None]
        return LayerStates(
            np.where(other, found.rejected, found.chosen),
            np.where(other, found.chosen, found.rejected),
        )


@dataclass(frozen=True)
class Pairs:
    """The pairs of an axis and the file of their states."""

    axis: Axis
    pairs: Sequence[PreferencePair]
    path: Path

    @property
    def questions(self) -> list[str]:
        """What a build from these pairs is calibrated on."""
        _, held_back = split(len(self.pairs))
        taken = {pair.query for pair in self.pairs}
        unasked = (query for query in self.axis.queries if query not in taken)
        asked = dict.fromkeys((*(self.pairs[i].query for i in held_back), *unasked))
        return list(asked)[:N_QUESTIONS]

    def read(self, model: Model) -> None:
        """Read the states that are not in the file yet."""
        with HiddenStates(self.path, (model.n_layer, model.n_embd)) as states:
            if len(states) < len(self.pairs):
                states.truncate(len(states) // STATES_CHUNK * STATES_CHUNK)
            while chunk := self.pairs[len(states) :][:STATES_CHUNK]:
                items = [
                    (
                        model.prompt(request.messages()).tokens,
                        model.tokenize(answer, begin=False),
                    )
                    for pair in chunk
                    for request, answer in zip(
                        pair.requests(), (pair.chosen, pair.rejected), strict=True
                    )
                ]
                found = list(capture(model, items))
                for sides in zip(found[::2], found[1::2], strict=True):
                    states.append([s.deciding for s in sides], [s.answer for s in sides])
                say(f"{self.axis.name}: the states of {len(states)} of {len(self.pairs)} pairs")

    def build(self, model: Model, swapped: Swaps) -> tuple[Verdict, Verdict]:
        """The verdict on a profile of these pairs, and the one without a look at their agreement:
        what `build_profile` does with a file of pairs, on states that are there."""
        train, _ = split(len(self.pairs))
        with Swapped(self.path, (model.n_layer, model.n_embd), swapped) as states:
            result = METHOD.fit(states, train)
            agreeing = round(agreement(states, result.layers, len(self.pairs)), 4)
        profile = Profile(
            self.axis,
            result.vector,
            result.layers,
            model.fingerprint,
            method=DEFAULT_METHOD,
            report={"agreement": agreeing},
        )
        read = self._answers(model, profile)
        both = [
            Verdict.of(with_units(each, {profile.way: read}))
            for each in (profile, replace(profile, report={}))
        ]
        assert both[0] is not None and both[1] is not None, "a build has a verdict"
        return both[0], both[1]

    def _answers(self, model: Model, profile: Profile) -> list[FreeReading]:
        form = form_for("")  # nothing is known of how given pairs were asked for
        found: list[FreeReading] = []
        for start in range(0, len(self.questions), CHUNK):
            found += read_questions(
                profile,
                model,
                self.questions[start : start + CHUNK],
                form=form,
                probe=probe_for(form, {}),
                seed=0,
                way=profile.way,
            )
        return found


def swaps(number: int, n_pairs: int, seed: int) -> Swaps:
    """Which pairs a build swaps: none in the first, each with a chance of a half in the others."""
    if number == AS_WRITTEN:
        return np.zeros(n_pairs, np.bool_)
    return np.random.default_rng([seed, number]).random(n_pairs) < 0.5


def pairs_of(model: Model, name: str, folder: Path, limit: int | None) -> Pairs:
    """The pairs of the real build of an axis, which is made where it is not there yet."""
    axis = OWN.get(name) or Axis.builtin(name)
    file = work_of(folder, name, limit) / "pairs.jsonl"
    if not file.exists():
        profile_of(model, name, axis, folder, limit, say)
    found = read_labelled_pairs(file, axis).pairs
    key = key_of(model.fingerprint.digest(), Source.of_pairs(found).sha256)
    return Pairs(axis, found, folder / f"trust-{name}-{key}.f32")


def measure(
    model: Model, names: Sequence[str], folder: Path, n_builds: int, limit: int | None, seed: int
) -> list[dict[str, Any]]:
    """The builds of all axes, those as written first, as rows of plain data; `n_builds` are
    swapped, one axis after the other in turn."""
    kept = Kept(folder / "trust.jsonl")
    sets = {name: pairs_of(model, name, folder, limit) for name in names}
    builds = [(name, AS_WRITTEN) for name in names]
    builds += [(names[i % len(names)], 1 + i // len(names)) for i in range(n_builds)]
    keys = {build: key_of(sets[build[0]].path.name, *build, seed) for build in builds}
    missing = [build for build in builds if keys[build] not in kept.records]
    estimate = Estimate(len(missing))
    for name, number_ in missing:
        found = sets[name]
        found.read(model)
        swapped = swaps(number_, len(found.pairs), seed)
        verdict, alone = found.build(model, swapped)
        row = {
            "axis": name,
            "build": number_,
            "pairs": len(found.pairs),
            "swapped": int(swapped.sum()),
            "verdict": verdict.verdict,
            "reason": verdict.reason,
            "figures": dict(verdict.figures),
            "without agreement": alone.verdict,
        }
        kept.add({keys[name, number_]: row})
        say(f"{name}: {row['swapped']} swapped: {verdict}")
        say(f"builds, {estimate.after(1)}")
    return [kept.records[keys[build]] for build in builds]


def markdown(result: Mapping[str, Any]) -> str:
    """The builds as they were written, then how many of the swapped ones had which verdict."""
    builds = result["builds"]
    written = [row for row in builds if row["build"] == AS_WRITTEN]
    mixed = [row for row in builds if row["build"] != AS_WRITTEN]
    words = get_args(Word)
    rows = []
    for label, group in (
        *((f"{row['axis']}, as written", [row]) for row in written),
        *(
            (f"{row['axis']}, swapped", [m for m in mixed if m["axis"] == row["axis"]])
            for row in written
        ),
        ("**all, swapped**", mixed),
    ):
        counts = Counter(row["verdict"] for row in group)
        alone = sum(row["without agreement"] == "works" for row in group)
        rows.append(
            [
                label,
                f"{len(group)}",
                *(str(counts[word] or "") for word in words),
                _range(row["figures"]["agreement"] for row in group),
                _range(row["figures"]["ratio_to_prompting"] for row in group),
                f"{alone}",
            ]
        )
    n_works = sum(row["verdict"] == "works" for row in mixed)
    allowed = int(ALLOWED * len(mixed))
    head = ["pairs", "builds", *words, "pairs that agree", "span over that of prompting"]
    return "\n\n".join(
        [
            as_table([*head, "'works' by the answers alone"], rows),
            f"{result['model']}: of {len(mixed)} builds of pairs that are none, {n_works} "
            f"{'is' if n_works == 1 else 'are'} said to work; {allowed} may be: "
            f"{'met' if n_works <= allowed else '**not met**'}.",
        ]
    )


def _range(values: Iterable[float | None]) -> str:
    """From the least to the largest of the known ones."""
    known = [value for value in values if value is not None]
    ends = dict.fromkeys(number(f(known), signed=False) for f in (min, max)) if known else ["n/a"]
    return " to ".join(ends)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, ["cheerful", "concise", "formal", "polite"])
    parser.add_argument("--builds", type=int, default=20, help="builds with sides swapped, in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    with Model.load(ModelNames().find(options.model), threads=options.threads) as model:
        folder = answers_folder(model, options.folder)
        names = list(dict.fromkeys(options.axes))
        builds = measure(model, names, folder, options.builds, options.limit, options.seed)
        result = {"model": model.path.name, "seed": options.seed, "builds": builds}
    tell(result, markdown(result), MARKER, options)


if __name__ == "__main__":
    main()
