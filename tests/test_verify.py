"""Replaying what a profile tells of its effect, and measuring its strength anew on a sibling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.build.build import build_profile
from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.methods.table import METHODS
from alignez_edge.modelfiles.fingerprint import Fit
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.kept_pairs import KEY, MAX_CHARS, N_KEPT, kept_pairs
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.verify import (
    SLACK,
    Effect,
    Verification,
    measured_pairs,
    recalibrate,
    verify,
)
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile

AXIS = Axis("bright", positive="bright", negative="dark")
TOPICS = "bread rain trains cats snow tea maps birds salt glue wool milk".split()


@pytest.fixture(scope="module")
def llama_model(tiny_llama: Path) -> Iterator[Model]:
    """`tiny_llama` with one thread: what is measured again must be equal to the bit."""
    with Model.load(tiny_llama, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = [
        {"query": f"And {t}?", "chosen": f"I love {t}!", "rejected": f"{t}: bad."} for t in TOPICS
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    return path


@pytest.fixture(scope="module")
def built(llama_model: Model, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    work = tmp_path_factory.mktemp("work")
    return build_profile(llama_model, AXIS, pairs=labelled, work=work)


@pytest.fixture(scope="module")
def sibling(tiny_model: Callable[..., Path]) -> Iterator[Model]:
    """A finetune of `llama_model`: the same but for its weights."""

    def tuned(name: str, values: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(3).standard_normal(values.shape).astype(np.float32)
        return values if "norm" in name else values + 0.05 * values.std() * noise

    with Model.load(tiny_model("llama", n_layer=6, weights=tuned), threads=1) as model:
        yield model


def with_kept(profile: Profile, value: Any) -> Profile:
    return replace(profile, report={**profile.report, KEY: value})


def effect(margin: tuple[float, float]) -> Effect:
    return Effect(margin, (0.0, 0.0))


def test_on_its_own_model_everything_is_as_it_was(built: Profile, llama_model: Model) -> None:
    seen: list[tuple[int, int]] = []
    found = verify(built, llama_model, lambda *at: seen.append(at))
    kept = kept_pairs(built)
    assert 1 <= len(kept) == found.pairs <= N_KEPT
    assert found.comparison.fit is Fit.SAME
    assert found.now == found.before and found.as_before
    assert seen == [(n, len(kept)) for n in range(len(kept) + 1)]
    assert all(pair.query == f"And {pair.chosen[7:-1]}?" for pair in kept)


def test_the_kept_pairs_are_those_held_back(built: Profile) -> None:
    assert len(kept_pairs(built)) == built.report["held_back"]
    assert len(built.report["questions"]) == built.report["held_back"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_replayed(
    llama_model: Model, labelled: Path, tmp_path: Path, method: str
) -> None:
    profile = build_profile(llama_model, AXIS, pairs=labelled, method=method, work=tmp_path)
    found = verify(profile, llama_model)
    assert found.now == found.before


def test_another_vector_under_the_same_words_is_found_out(
    built: Profile, llama_model: Model
) -> None:
    nothing = ControlVector.zeros(llama_model.n_layer, llama_model.n_embd)
    turned = ControlVector(-built.vector.deciding, -built.vector.answer)
    # With one unit for both signs, the turned one does exactly the opposite.
    alike = replace(built, unit=1.0, unit_negative=None)
    again = measured_pairs(alike, llama_model, kept_pairs(built))
    built = replace(alike, report={**alike.report, **again})
    before = Effect.of(kept_pairs(built))
    assert abs(before.span) > SLACK, "there is an effect to be missed"
    for vector in (nothing, turned):
        found = verify(replace(built, vector=vector), llama_model)
        assert found.as_before is False
    assert found.now is not None
    assert found.now.span == pytest.approx(-before.span)


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ((0.2, -0.2), (0.16, -0.15), True),
        ((0.2, -0.2), (0.1, -0.1), False),
        ((0.2, -0.2), (-0.2, 0.2), False),
        ((0.002, -0.002), (0.005, -0.004), True),
        ((0.002, -0.002), (0.0, 0.0), False),
    ],
)
def test_what_counts_as_the_same_effect(
    built: Profile,
    llama_model: Model,
    before: tuple[float, float],
    now: tuple[float, float],
    same: bool,
) -> None:
    comparison = verify(built, llama_model).comparison
    assert Verification(comparison, 1, effect(before), effect(now)).as_before is same
    assert Verification(comparison).as_before is None


def test_without_texts_only_the_models_are_compared(
    llama_model: Model, labelled: Path, tmp_path: Path
) -> None:
    bare = build_profile(llama_model, AXIS, pairs=labelled, work=tmp_path, texts="none")
    found = verify(bare, llama_model)
    assert (found.pairs, found.before, found.now) == (0, None, None)
    assert "I love" not in json.dumps(bare.report)
    with pytest.raises(BadInputError, match="contains no pairs"):
        recalibrate(bare, llama_model)


def test_long_texts_are_not_kept(llama_model: Model, tmp_path: Path) -> None:
    from alignez_edge.preferences.pairs import PreferencePair

    short = PreferencePair("And tea?", "Yes!", "No.", "", "")
    pairs = [replace(short, chosen="x" * (MAX_CHARS + 1)), short]
    report = measured_pairs(random_profile(llama_model), llama_model, pairs)
    found = kept_pairs(random_profile(llama_model, report=report))
    assert [pair.chosen for pair in found] == ["Yes!"]


def test_a_misfit_is_refused_with_the_facts(
    built: Profile, tiny_model: Callable[..., Path]
) -> None:
    with (
        Model.load(tiny_model("llama", n_layer=5), threads=1) as other,
        pytest.raises(ProfileFileError, match="n_layer is 6 there and 5 here"),
    ):
        verify(built, other)


def test_a_sibling_is_told_and_calibrated(built: Profile, sibling: Model) -> None:
    found = verify(built, sibling)
    assert found.comparison.fit is Fit.SAME_SHAPE
    assert found.now is not None and found.now != found.before
    made = recalibrate(built, sibling)
    assert made.report["recalibrated"] == {
        "from": built.model,
        "unit": built.unit,
        "pairs": found.pairs,
    }
    assert np.array_equal(made.vector.deciding, built.vector.deciding)
    again = verify(made, sibling)
    assert again.comparison.fit is Fit.SAME and again.as_before


@pytest.mark.parametrize("method", ["alignez", "alignez-v1"])
def test_calibrating_on_the_model_of_the_build_changes_nothing(
    llama_model: Model, labelled: Path, tmp_path: Path, method: str
) -> None:
    """All held-back pairs are kept here, so the same is measured once more."""
    profile = build_profile(llama_model, AXIS, pairs=labelled, method=method, work=tmp_path)
    made = recalibrate(profile, llama_model)
    assert made.unit == pytest.approx(profile.unit, rel=1e-4)
    assert (made.exact is None) == (profile.exact is None)
    if made.exact is not None and profile.exact is not None:
        assert made.exact.unit == pytest.approx(profile.exact.unit, rel=1e-4)
    for name, curve in profile.calibration.items():
        np.testing.assert_allclose(made.calibration[name], curve, atol=1e-4)
    for a, b in zip(kept_pairs(made), kept_pairs(profile), strict=True):
        np.testing.assert_allclose(a.margin, b.margin, atol=1e-3)


def good() -> dict[str, Any]:
    return {"query": "q", "chosen": "a", "rejected": "b", "margin": [1, -1.0], "drift": [0, 0]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        {"query": "q"},
        [None],
        [7],
        [{}],
        [good()] * (N_KEPT + 1),
        [good() | {"query": ""}],
        [good() | {"query": 7}],
        [good() | {"chosen": "x" * (MAX_CHARS + 1)}],
        [good() | {"rejected": "half \ud800"}],
        [good() | {"margin": [1]}],
        [good() | {"margin": [1, 2, 3]}],
        [good() | {"margin": "12"}],
        [good() | {"margin": 1}],
        [good() | {"drift": [None, 1]}],
        [good() | {"drift": [10**400, 1]}],
        [good() | {"drift": {"a": 1, "b": 2}}],
        [{key: text for key, text in good().items() if key != "drift"}],
    ],
)
def test_untrusted_kept_pairs_are_sound_or_none(llama_model: Model, value: Any) -> None:
    profile = random_profile(llama_model)
    assert kept_pairs(with_kept(profile, [good()])) and kept_pairs(profile) == ()
    assert kept_pairs(with_kept(profile, value)) == ()


def test_kept_pairs_survive_the_file(built: Profile, tmp_path: Path) -> None:
    built.save(tmp_path / "bright.gguf")
    again = kept_pairs(Profile.load(tmp_path / "bright.gguf"))
    assert [asdict(pair) for pair in again] == [asdict(pair) for pair in kept_pairs(built)]
