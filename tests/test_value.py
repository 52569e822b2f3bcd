"""The value function: its gradient, its training, its arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.errors import BadInputError
from alignez_edge.interventions.value_function import ValueFunction
from alignez_edge.methods.value_training import fit_value, td_targets


def random_value(n_embd: int = 12, width: int = 7, seed: int = 0) -> ValueFunction:
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return ValueFunction(
        drawn(n_embd), np.abs(drawn(n_embd)) + 0.5, drawn(width, n_embd), drawn(width),
        drawn(width, width), drawn(width), drawn(width), drawn(),
    )  # fmt: skip


def in_double(value: ValueFunction, h: np.ndarray) -> float:
    """The formula of the docstring, written out once more in float64."""
    a = {name: array.astype(np.float64) for name, array in value.to_arrays().items()}
    first = np.tanh(a["w1"] @ ((h - a["mean"]) / a["scale"]) + a["b1"])
    return float(a["w3"] @ np.tanh(a["w2"] @ first + a["b2"]) + a["b3"])


@given(st.integers(0, 1000))
def test_values_and_gradients_are_those_of_the_formula(seed: int) -> None:
    value = random_value(seed=seed)
    h = np.random.default_rng(seed + 1).standard_normal(value.n_embd)
    states = h[None].astype(np.float32)
    assert value(states)[0] == pytest.approx(in_double(value, h), abs=1e-4)
    step = 1e-5 * np.eye(value.n_embd)
    expected = [(in_double(value, h + e) - in_double(value, h - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(value.gradient(states)[0], expected, atol=1e-3)


def test_one_small_step_climbs_by_the_square_of_the_gradient() -> None:
    value = random_value()
    states = np.random.default_rng(3).standard_normal((40, value.n_embd)).astype(np.float32)
    size = 1e-3
    gained = value(states + value.steps(states, 1, size)) - value(states)
    inner = value.gradient(states) * value.scale
    np.testing.assert_allclose(gained, size * (inner**2).sum(axis=1), rtol=0.1, atol=1e-5)
    assert not value.steps(states, 0, size).any() and not value.steps(states, 3, 0.0).any()


def test_more_steps_climb_further() -> None:
    value = random_value()
    states = np.random.default_rng(3).standard_normal((40, value.n_embd)).astype(np.float32)
    reached = [value(states + value.steps(states, n, 0.02)).mean() for n in (0, 1, 2, 4, 8)]
    assert (np.diff(reached) > 0).all()


def planted(n: int = 400, n_embd: int = 24, seed: int = 0) -> tuple[list[np.ndarray], list[float]]:
    """Answers whose reward lies along one direction of their states, the rest noise."""
    rng = np.random.default_rng(seed)
    direction = np.zeros(n_embd)
    direction[:4] = 0.5
    rewards = rng.uniform(-1, 1, n)
    states = [
        (0.5 * rng.standard_normal((length, n_embd)) + reward * direction).astype(np.float32)
        for reward, length in zip(rewards, rng.integers(3, 12, n), strict=True)
    ]
    return states, rewards.tolist()


@pytest.mark.parametrize(("trace", "cosine"), [(0.0, 0.85), (0.9, 0.95), (1.0, 0.95)])
def test_a_planted_direction_is_found(trace: float, cosine: float) -> None:
    states, rewards = planted()
    fitted = fit_value(states, rewards, seed=1, trace=trace)
    mean = fitted.value.gradient(np.concatenate(states)).mean(axis=0)
    direction = np.zeros(len(mean))
    direction[:4] = 0.5
    assert mean @ direction / np.linalg.norm(mean) > cosine
    assert 0 < fitted.explained <= 1


@pytest.mark.parametrize("trace", [0.0, 0.5, 1.0])
def test_values_of_a_small_chain_become_what_they_are(trace: float) -> None:
    """Three places in a row, then a branch: the value of a place is the mean of what follows."""
    places = np.eye(5, dtype=np.float32) * 3
    up, down = [0, 1, 2, 3], [0, 1, 2, 4]
    walks = [up] * 150 + [down] * 50
    states = [places[walk] for walk in walks]
    rewards = [1.0] * 150 + [-1.0] * 50
    fitted = fit_value(states, rewards, seed=0, trace=trace, width=16)
    found = fitted.value(places)
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, 1, -1], atol=0.2)


def test_targets_run_from_the_next_value_to_the_reward() -> None:
    values = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    np.testing.assert_allclose(td_targets(values, 1.0, 0.0), [0.2, 0.3, 0.4, 1])
    np.testing.assert_allclose(td_targets(values, 1.0, 1.0), [1, 1, 1, 1])
    np.testing.assert_allclose(td_targets(values, 1.0, 0.5), [0.35, 0.5, 0.7, 1])
    np.testing.assert_allclose(td_targets(values[:1], -1.0, 0.5), [-1])


def test_training_depends_on_its_arguments_alone() -> None:
    states, rewards = planted(60)
    first, again, other = (fit_value(states, rewards, seed=seed) for seed in (4, 4, 5))
    for name, array in first.value.to_arrays().items():
        assert np.array_equal(array, again.value.to_arrays()[name])
    assert not np.array_equal(first.value.w1, other.value.w1)
    assert first.errors[first.epoch] == min(first.errors)


def test_a_coordinate_that_never_varies_stays_where_it_is() -> None:
    states, rewards = planted(60)
    for group in states:
        group[:, 7] = 5.0
    value = fit_value(states, rewards, seed=0).value
    moved = value.steps(states[0], 2, 5.0)
    assert np.isfinite(moved).all()
    assert np.abs(moved[:, 7]).max() < 0.01 * np.abs(moved).max()


def test_what_cannot_be_learned_from_is_refused() -> None:
    states, rewards = planted(12)
    with pytest.raises(BadInputError, match="at least 10"):
        fit_value(states[:9], rewards[:9], seed=0)
    with pytest.raises(BadInputError, match="same score"):
        fit_value(states, [1.0] * 12, seed=0)
    with pytest.raises(BadInputError, match="not finite"):
        fit_value(states, [*rewards[:11], float("nan")], seed=0)
    with pytest.raises(ValueError, match="12 answers with 11"):
        fit_value(states, rewards[:11], seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        fit_value([*states[:11], states[11][:0]], rewards, seed=0)


def test_arrays_there_and_back() -> None:
    value = random_value()
    arrays = value.to_arrays()
    again = ValueFunction.from_arrays(arrays)
    states = np.ones((2, value.n_embd), np.float32)
    assert np.array_equal(again(states), value(states))
    with pytest.raises(BadInputError, match="are not a value function: w2"):
        ValueFunction.from_arrays({k: v for k, v in arrays.items() if k != "w2"})
    with pytest.raises(BadInputError, match="are not a value function: extra"):
        ValueFunction.from_arrays({**arrays, "extra": value.b1})
    bad = {
        "w2": value.w2[:, 1:], "b1": value.b1.astype(np.float64), "w1": value.w1[0],
        "b2": np.full_like(value.b2, np.nan), "scale": 0 * value.scale, "b3": value.b3[None],
    }  # fmt: skip
    for name, array in bad.items():
        with pytest.raises(BadInputError, match="value function"):
            ValueFunction.from_arrays({**arrays, name: array})
    with pytest.raises(BadInputError, match="not positive"):
        replace(value, scale=-value.scale)
