from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.profile.mix import mix
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.steering.steering import Steering
from tests.profiles import random_profile

STRENGTHS = st.floats(-3, 3)


def injected(steering: Steering | Profile, model: Model) -> tuple[bytes, bytes] | None:
    injection = steering.injection(model)
    if injection is None:
        return None
    assert isinstance(injection, Injection)
    return injection.deciding.tobytes(), injection.answer.tobytes()


def test_nothing_is_none(llama_model: Model) -> None:
    p, q = random_profile(llama_model), random_profile(llama_model, 1, "terse")
    for steering in (
        Steering(), p * 0, p * 0.0 + q * -0.0, p - p, p * 0.1 + p * 0.2 - p * 0.1 - p * 0.2,
        (p + q) - (q + p), (p * 3 + q) * 0,
    ):  # fmt: skip
        assert steering.injection(llama_model) is None


def test_strength_is_linear(llama_model: Model) -> None:
    p = random_profile(llama_model)
    assert injected(20 * p * 1, llama_model) == injected(p * 20, llama_model)
    assert injected(p * 0.5 + p * 0.25, llama_model) == injected(p * 0.75, llama_model)
    assert injected(-p, llama_model) == injected(p * -1, llama_model)
    assert injected(p, llama_model) == injected(p * 1, llama_model)
    loud = random_profile(llama_model, vector=p.vector * 20)
    np.testing.assert_allclose(
        (loud * 1).injection(llama_model).deciding,  # type: ignore[union-attr]
        (p * 20).injection(llama_model).deciding,  # type: ignore[union-attr]
        rtol=1e-6,
    )


def test_strength_one_is_the_calibrated_unit(llama_model: Model) -> None:
    p = random_profile(llama_model, unit=0.25)
    injection = p.injection(llama_model)
    assert isinstance(injection, Injection)
    np.testing.assert_array_equal(injection.deciding, p.vector.deciding * np.float32(0.25))
    np.testing.assert_array_equal(injection.answer, p.vector.answer * np.float32(0.25))


def test_negative_strengths_have_a_unit_of_their_own(llama_model: Model, tmp_path: Path) -> None:
    profile = random_profile(llama_model, unit=2.0, unit_negative=0.5)

    def rows(steering: Steering | Profile) -> np.ndarray:
        injection = steering.injection(llama_model)
        assert isinstance(injection, Injection)
        return injection.deciding

    vector = profile.vector.deciding
    np.testing.assert_allclose(rows(profile), 2.0 * vector, rtol=1e-6)
    np.testing.assert_allclose(rows(-profile), -0.5 * vector, rtol=1e-6)
    np.testing.assert_allclose(rows(profile * -0.5), -0.25 * vector, rtol=1e-6)
    # The sum of the strengths tells the sign: terms of one profile are one.
    np.testing.assert_allclose(rows(profile * 1.0 + profile * -3.0), -1.0 * vector, rtol=1e-6)
    np.testing.assert_allclose(rows(-(profile * -1.0)), 2.0 * vector, rtol=1e-6)
    other = random_profile(llama_model, 1, "formal")
    mixed = mix([(profile, -1.0), (other, 1.0)], "both")
    np.testing.assert_array_equal(rows(mixed), rows(profile * -1.0 + other))
    alike = replace(profile, unit_negative=None)
    assert alike.order != profile.order
    np.testing.assert_allclose(rows(-alike), -2.0 * vector, rtol=1e-6)
    profile.save(tmp_path / "x.gguf")
    again = Profile.load(tmp_path / "x.gguf")
    assert (again.unit, again.unit_negative, again.order) == (2.0, 0.5, profile.order)
    assert again.natural().scale(-1.5) == -1.5
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive number"):
            replace(profile, unit_negative=wrong)


def test_the_order_of_terms_is_irrelevant_to_the_bit(llama_model: Model) -> None:
    terms = [
        random_profile(llama_model, seed, name, layers) * strength
        for seed, name, layers, strength in (
            (0, "a", (1, 2), 0.3), (1, "b", (2, 4), -1.7), (2, "c", (5,), 1e-3),
            (3, "a", (3,), 9.0),
        )
    ]  # fmt: skip
    sums = {injected(a + b + (c + d), llama_model) for a, b, c, d in itertools.permutations(terms)}
    assert len(sums) == 1


def test_two_axes_commute_and_add_up(llama_model: Model) -> None:
    p = random_profile(llama_model, 0, "a", (1, 2), unit=0.5)
    q = random_profile(llama_model, 1, "b", (2, 4), unit=3.0)
    assert injected(p * 0.8 + q * -0.3, llama_model) == injected(q * -0.3 + p * 0.8, llama_model)
    assert injected(p - q, llama_model) == injected(-q + p, llama_model)
    injection = (p * 0.8 + q * -0.3).injection(llama_model)
    assert injection is not None
    for name in ("deciding", "answer"):
        wanted = 0.4 * getattr(p.vector, name) - 0.9 * getattr(q.vector, name)
        np.testing.assert_allclose(getattr(injection, name), wanted, rtol=1e-5, atol=1e-7)


@settings(max_examples=30)
@given(s=STRENGTHS, t=STRENGTHS, factor=STRENGTHS)
def test_sums_are_linear(llama_model: Model, s: float, t: float, factor: float) -> None:
    p = random_profile(llama_model, 0, "a", (1, 2))
    q = random_profile(llama_model, 1, "b", (2, 4))

    def rows(steering: Steering) -> npt.NDArray[np.float64]:
        found = steering.injection(llama_model)
        shape = (2, llama_model.n_layer, llama_model.n_embd)
        if found is None:
            return np.zeros(shape)
        assert isinstance(found, Injection)
        return np.stack([found.deciding, found.answer]).astype(np.float64)

    scale = max(1.0, abs(factor)) * 100 * 2e-7
    both = p * s + q * t
    np.testing.assert_allclose(rows(both), rows(p * s) + rows(q * t), atol=scale)
    np.testing.assert_allclose(rows(both * factor), factor * rows(both), atol=scale * 10)
    np.testing.assert_allclose(rows(both - q * t), rows(p * s), atol=scale)
    assert injected(both * 0, llama_model) is None
    # A term of strength 0 is as if it were not there, to the bit.
    assert injected(p * s + q * 0, llama_model) == injected(p * s, llama_model)


def test_a_sum_edits_the_layers_of_both(llama_model: Model) -> None:
    p = random_profile(llama_model, 0, "a", (1, 2))
    q = random_profile(llama_model, 1, "b", (2, 4))
    injection = (p * 0.5 - q).injection(llama_model)
    assert isinstance(injection, Injection)
    assert np.flatnonzero(injection.deciding.any(axis=1)).tolist() == [1, 2, 4]


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, "x", None, 10**400])
def test_strengths_are_finite_numbers(llama_model: Model, strength: float) -> None:
    with pytest.raises(BadInputError, match="finite number"):
        random_profile(llama_model) * strength


def test_an_overflow_is_one_line(llama_model: Model) -> None:
    with pytest.raises(BadInputError, match="overflows"):
        (random_profile(llama_model) * 1e300).injection(llama_model)
    with pytest.raises(BadInputError, match="finite"):
        random_profile(llama_model) * 1e300 * 1e300


def test_describe(llama_model: Model) -> None:
    p, q = random_profile(llama_model), random_profile(llama_model, 1, "terse")
    assert (q * 0.8 - p).describe() == [
        {"profile": "terse", "strength": 0.8},
        {"profile": "polite", "strength": -1.0},
    ]


def test_a_profile_for_another_model_is_refused(
    llama_model: Model, tiny_model: Callable[..., Path]
) -> None:
    profile = random_profile(llama_model)
    with Model.load(tiny_model("qwen2", n_layer=6), threads=2) as other:
        for steering in (profile * 1, random_profile(other) * 1 + profile * 0.5):
            with pytest.raises(ProfileFileError, match="architecture") as caught:
                steering.injection(other)
            assert "\n" not in caught.value.message
        assert (profile * 0).injection(other) is None


def test_a_model_of_the_same_shape_is_a_notice(
    llama_model: Model, tiny_model: Callable[..., Path]
) -> None:
    profile = random_profile(llama_model)
    assert (profile * 1).notices(llama_model) == []
    with Model.load(tiny_model("llama", n_layer=6, seed=5), threads=2) as sibling:
        (notice,) = (profile * 1).notices(sibling)
        assert "polite" in notice and "\n" not in notice
        assert (profile * 1).injection(sibling) is not None


def test_a_vector_of_other_sizes_than_its_fingerprint_is_refused(llama_model: Model) -> None:
    wrong = random_profile(llama_model, vector=ControlVector.zeros(9, 3), layers=(1,))
    with pytest.raises(ProfileFileError, match="9 layers of 3"):
        wrong.injection(llama_model)


def test_strengths_whose_sum_overflows(llama_model: Model) -> None:
    p = random_profile(llama_model)
    with pytest.raises(BadInputError, match="sum overflows"):
        (p * 1e308 + p * 1e308).injection(llama_model)
