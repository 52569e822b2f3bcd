"""The estimators find what was planted, whatever its sign; the papers' edit does its algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_edge.directions import subspace

N, D = 40, 96


def planted(rng: np.random.Generator, noise: float = 1.0) -> tuple[np.ndarray, ...]:
    """States around a common mean, the wanted side shifted along a unit direction."""
    theta = rng.normal(size=D)
    theta /= np.linalg.norm(theta)
    base = rng.normal(size=D) * 3
    topic = rng.normal(size=(N, D))
    chosen = base + topic + 6 * theta + noise * 0.05 * rng.normal(size=(N, D))
    rejected = base + topic - 6 * theta + noise * 0.05 * rng.normal(size=(N, D))
    return chosen, rejected, theta


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_planted_direction_is_found_and_oriented(seed: int) -> None:
    chosen, rejected, theta = planted(np.random.default_rng(seed))
    found = subspace.difference_subspace(chosen, rejected)
    assert found.directions[0] @ theta > 0.99
    back = subspace.difference_subspace(rejected, chosen)
    assert back.directions[0] @ theta < -0.99
    np.testing.assert_allclose(found.displacement(), 12 * theta, atol=0.5)


@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 6))
@settings(max_examples=25)
def test_subspace_is_orthonormal_and_its_shift_never_negative(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(size=(2, N, D))
    found = subspace.difference_subspace(chosen, rejected, rank)
    np.testing.assert_allclose(
        found.directions @ found.directions.T, np.eye(len(found.directions)), atol=1e-9
    )
    assert (found.shift >= 0).all()
    assert (np.diff(found.singular_values) <= 1e-9).all()


def test_full_rank_displacement_is_the_difference_of_means() -> None:
    chosen, rejected, _ = planted(np.random.default_rng(0))
    found = subspace.difference_subspace(chosen, rejected, rank=N)
    np.testing.assert_allclose(
        found.displacement(), chosen.mean(axis=0) - rejected.mean(axis=0), atol=1e-8
    )


def test_version_1_direction_is_invariant_to_the_sign_of_a_singular_vector() -> None:
    states = np.random.default_rng(1).normal(size=(N, D)) + 2
    theta = subspace.first_direction(states)
    assert theta @ states.mean(axis=0) > 0
    np.testing.assert_allclose(np.linalg.norm(theta), 1)
    np.testing.assert_allclose(subspace.first_direction(-states), -theta, atol=1e-9)


def test_version_1_edit_doubles_help_and_removes_harm() -> None:
    rng = np.random.default_rng(2)
    q, _ = np.linalg.qr(rng.normal(size=(D, 3)))
    help_, harm, other = q.T * np.array([[3.0], [0.2], [1.0]])  # any lengths
    x = 2 * help_ + 5 * harm + 7 * other
    np.testing.assert_allclose(
        x + subspace.version_1_edit(x, help_, harm), 4 * help_ + 7 * other, atol=1e-9
    )
    rows = rng.normal(size=(5, D))
    np.testing.assert_allclose(
        subspace.version_1_edit(rows, -help_, -harm), subspace.version_1_edit(rows, help_, harm)
    )
    assert not subspace.version_1_edit(rows, np.zeros(D), np.zeros(D)).any()


def test_separation_is_cross_checked() -> None:
    rng = np.random.default_rng(3)
    chosen, rejected, _ = planted(rng)
    assert subspace.separation(chosen, rejected) > 5
    # Pure noise in many dimensions: separable in sample, but not by halves.
    noise = [subspace.separation(*rng.normal(size=(2, 24, 4096))) for _ in range(8)]
    assert abs(np.mean(noise)) < 0.5
    assert subspace.separation(chosen[:3], rejected[:3]) == 0
    assert subspace.separation(np.ones((8, 4)), np.ones((8, 4))) == 0


def test_cosine_of_zero_rows_is_zero() -> None:
    rows = np.array([[1.0, 0], [0, 0], [-2, 0]])
    np.testing.assert_allclose(subspace.cosine(rows, rows), [[1, 0, -1], [0, 0, 0], [-1, 0, 1]])


@pytest.mark.parametrize("rank", [1, 3])
def test_equal_sides_give_no_displacement(rank: int) -> None:
    states = np.random.default_rng(4).normal(size=(N, D))
    assert not subspace.difference_subspace(states, states, rank).displacement().any()
