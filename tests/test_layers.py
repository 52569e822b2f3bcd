"""Which layers are chosen: those where the sides lie apart, never the one that cannot be edited."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alignez_edge.directions.layers import choose_layers, interlayer_cosine


def directions(seed: int = 0, n_layer: int = 5, n_embd: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_layer, n_embd))


def test_equal_directions_agree_wholly_and_orthogonal_ones_not_at_all() -> None:
    np.testing.assert_allclose(interlayer_cosine(np.tile(directions()[0], (4, 1))), 1)
    np.testing.assert_allclose(interlayer_cosine(np.eye(4)), 0, atol=1e-12)


def test_agreement_is_the_mean_cosine_with_the_other_layers() -> None:
    found = directions()
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    others = [np.mean([unit[i] @ unit[j] for j in range(5) if j != i]) for i in range(5)]
    np.testing.assert_allclose(interlayer_cosine(found), others)


@given(arrays(np.float64, 5, elements=st.floats(0.01, 100)))
def test_agreement_does_not_depend_on_length(scale: np.ndarray) -> None:
    found = directions()
    np.testing.assert_allclose(
        interlayer_cosine(found * scale[:, None]), interlayer_cosine(found), atol=1e-9
    )


def test_a_layer_without_direction_agrees_with_nothing() -> None:
    found = np.tile(directions()[0], (3, 1))
    found[1] = 0
    np.testing.assert_allclose(interlayer_cosine(found), [0.5, 0, 0.5])


@given(st.integers(2, 40).flatmap(lambda n: arrays(np.float64, (2, n), elements=st.floats(-5, 5))))
def test_any_numbers_give_layers_that_can_be_edited(numbers: np.ndarray) -> None:
    separation, agreement = numbers
    chosen = choose_layers(separation, np.clip(agreement, -1, 1))
    assert chosen and list(chosen) == sorted(set(chosen))
    assert all(isinstance(layer, int) and 1 <= layer < len(separation) for layer in chosen)


@pytest.mark.parametrize("first", [1, 4, 9])
def test_layers_before_the_sides_part_are_left_alone(first: int) -> None:
    separation = np.where(np.arange(10) >= first, 3.0, 0.1)
    agreement = np.where(np.arange(10) >= first, 0.9, 0.0)
    chosen = choose_layers(separation, agreement)
    assert chosen[0] == first


def test_a_layer_0_that_separates_is_not_chosen() -> None:
    separation = np.array([100.0, 1.0, 1.0, 1.0])
    assert 0 not in choose_layers(separation, np.ones(4))
