"""Sweeps: what they parse, which arms they make, and that a profile is built again as asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.build.build import build_profile
from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.arms import plain, steered
from alignez_edge.evaluation.plan import Plan, Query
from alignez_edge.evaluation.run import evaluate
from alignez_edge.evaluation.sweep import (
    KEYS,
    Setting,
    Sweep,
    bounded,
    build_with,
    parse_sweep,
    swept,
    top_layers,
)
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.provenance import Provenance
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from cli.eval.options import SWEPT
from tests.profiles import random_profile
from tests.test_evaluation import Longer

TOPICS = "bread rain trains cats snow tea maps birds".split()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("neighbors=3, 5,3", (3, 5)),
        ("layers=1", (1,)),
        ("strength=-1,0.5", (-1.0, 0.5)),
        ("method=alignez,caa", ("alignez", "caa")),
        ("inject=control-vector,exact", ("control-vector", "exact")),
    ],
)
def test_what_can_be_swept(text: str, values: tuple[Setting, ...]) -> None:
    assert parse_sweep(text) == Sweep(text.partition("=")[0], values)


@pytest.mark.parametrize(
    "text",
    ["", "layers", "layers=", "layers=0", "layers=1.5", "depth=1", "strength=nan", "method=x"],
)
def test_what_cannot_be_swept(text: str) -> None:
    with pytest.raises(BadInputError):
        parse_sweep(text)


def test_the_help_names_every_key() -> None:
    assert set(SWEPT) == set(KEYS)


def test_values_are_bounded_by_the_model_and_the_pairs(llama_model: Model) -> None:
    profile = random_profile(llama_model, pairs=8)
    layers = Sweep("layers", (1, 5, 6, 30))
    assert bounded(layers, profile) == (Sweep("layers", (1, 5)), (6, 30))
    near = Sweep("neighbors", (3, 6, 7))
    assert bounded(near, profile) == (Sweep("neighbors", (3, 6)), (7,))
    with pytest.raises(BadInputError, match="only 5"):
        bounded(Sweep("layers", (6,)), profile)
    strengths = Sweep("strength", (100.0,))
    assert bounded(strengths, profile) == (strengths, ())


def test_all_combinations_and_each_build_once(llama_model: Model) -> None:
    profile = random_profile(llama_model)
    built: list[dict[str, Setting]] = []

    def build(_: Profile, settings: Mapping[str, Setting]) -> Profile:
        built.append(dict(settings))
        return random_profile(llama_model, len(built))

    sweeps = [Sweep("layers", (1, 2)), Sweep("strength", (-1.0, 0.5))]
    arms = swept("polite", profile, 2.0, "auto", sweeps, build)
    assert built == [{"layers": 1}, {"layers": 2}]
    assert [(arm.name, arm.strength, arm.aims[0].side) for arm in arms] == [
        ("polite[layers=1]:-2", -2.0, "negative"),
        ("polite[layers=1]:1", 1.0, "positive"),
        ("polite[layers=2]:-2", -2.0, "negative"),
        ("polite[layers=2]:1", 1.0, "positive"),
    ]
    assert arms[1].sweep == {"layers": 1, "strength": 0.5} and arms[1].profile == "polite"
    ways = swept("polite", profile, 1.0, "auto", [Sweep("inject", ("control-vector",))], build)
    assert ways[0].steering is not None and ways[0].steering.way == "control-vector"
    assert len(built) == 2, "the way it is injected is no setting of the build"


def test_the_best_layers_separate_and_agree() -> None:
    separation = [9.0, 1.0, 3.0, 5.0, 2.0]
    agreement = [0.5, 0.5, 0.5, -0.1, 0.5]
    assert top_layers(1, separation, agreement) == (2,)
    assert top_layers(2, separation, agreement) == (2, 4)
    assert top_layers(4, separation, agreement) == (1, 2, 3, 4), "layer 0 cannot be edited"


@pytest.fixture(scope="module")
def tiny(tiny_chat: Path) -> Iterator[Model]:
    with Model.load(tiny_chat, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = [
        {"query": f"Tell me about {t}.", "chosen": f"I love {t}!", "rejected": f"{t} is bad."}
        for t in TOPICS
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    return path


def test_a_profile_is_built_again_from_the_same_pairs(
    tiny: Model, pairs_file: Path, tmp_path: Path, home: Path
) -> None:
    axis = Axis("bright", "bright", "dark")
    profile = build_profile(tiny, axis, pairs=pairs_file)
    one = build_with(tiny, profile, {"layers": 1}, source=pairs_file)
    assert len(one.layers) == 1 and one.axis == profile.axis
    near = build_with(tiny, profile, {"neighbors": 3}, source=pairs_file)
    assert near.neighbors is not None and near.neighbors.recipe.k == 3
    plan = Plan((plain(), steered("bright", near * 1.0)), (Query("Hi."),), Sampling(max_tokens=3))
    (row,) = evaluate(tiny, plan, Longer(), tmp_path / "run")["rows"]
    assert row["price"]["drift"] > 0, "a steering that looks at the query is measured as well"
    other = build_with(tiny, profile, {"method": "mean"}, source=pairs_file)
    told = [Provenance.of(each) for each in (profile, one, other)]
    assert told[0] is not None and told[1] is not None and told[0].source == told[1].source
    assert other.method == "mean" and other.fingerprint == profile.fingerprint
    same = build_with(tiny, profile, {"method": profile.method}, source=pairs_file)
    np.testing.assert_array_equal(same.vector.answer, profile.vector.answer)
    states = list((home / "cache" / "builds").rglob("states-*"))
    assert len(states) == 1, "the states were read once"
    with pytest.raises(BadInputError, match="does not contain the 8 pairs") as failure:
        build_with(tiny, profile, {"layers": 1})
    assert failure.value.hint == "give them: --built-from FILE"


def test_a_profile_that_says_nothing_of_its_build(tiny: Model) -> None:
    with pytest.raises(BadInputError, match="does not say how it was built"):
        build_with(tiny, random_profile(tiny), {"layers": 1})
