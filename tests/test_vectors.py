from __future__ import annotations

import numpy as np
import pytest

from alignez_edge.interventions.control_vector import ControlVector

N_LAYER, N_EMBD = 6, 5


def make(seed: int = 0) -> ControlVector:
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(2, N_LAYER, N_EMBD)).astype(np.float32)
    arrays[:, 0] = 0
    return ControlVector(*arrays)


def same(a: ControlVector, b: ControlVector) -> bool:
    return np.array_equal(a.deciding, b.deciding) and np.array_equal(a.answer, b.answer)


def test_it_is_a_vector_space() -> None:
    v, w = make(1), make(2)
    assert (v - v).is_zero() and (v + -v).is_zero() and (v * 0).is_zero()
    assert same(v * 1, v) and same(0.5 * v, v * 0.5)
    assert same(v + w, w + v)
    assert same(-(v - w), w - v)
    assert same(v * 20 + ControlVector.zeros(N_LAYER, N_EMBD), v * 20)


def test_it_is_a_value() -> None:
    array = np.zeros((N_LAYER, N_EMBD), np.float32)
    v = ControlVector(array, array)
    array[1] = 1
    assert v.is_zero()
    with pytest.raises(ValueError, match="read-only"):
        v.deciding[1] = 1


def test_layers_and_restriction() -> None:
    v = make()
    assert v.layers == (1, 2, 3, 4, 5)
    part = v.restrict([4, 2])
    assert part.layers == (2, 4)
    assert same(part + v.restrict([1, 3, 5]), v)
    deciding, answer = part.norms()
    assert np.flatnonzero(deciding).tolist() == np.flatnonzero(answer).tolist() == [2, 4]
    assert deciding[2] == pytest.approx(np.linalg.norm(v.deciding[2]))


@pytest.mark.parametrize("layers", [[1, 2, 3], [2, 5], [5, 2], [3]])
def test_every_chosen_layer_ends_up_displaced_by_its_own_difference(layers: list[int]) -> None:
    rng = np.random.default_rng(3)
    deciding, answer = rng.normal(size=(2, N_LAYER, N_EMBD)).astype(np.float32)
    v = ControlVector.from_displacements(deciding, answer, layers)
    assert v.layers == tuple(sorted(layers))
    # The residual stream hands on everything that was added below.
    for steps, wanted in ((v.deciding, deciding), (v.answer, answer)):
        displaced = np.cumsum(steps, axis=0)
        np.testing.assert_allclose(displaced[layers], wanted[layers], rtol=1e-5, atol=1e-6)
        assert not steps[: min(layers)].any()


@pytest.mark.parametrize("layers", [[], [0, 1], [6], [-1], [2, 2]])
def test_layers_out_of_range_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="layer"):
        make().restrict(layers)


def test_bad_arrays_are_refused() -> None:
    good = np.zeros((N_LAYER, N_EMBD), np.float32)
    with pytest.raises(ValueError, match="shape"):
        ControlVector(good, good[:, :2])
    with pytest.raises(ValueError, match="shape"):
        ControlVector(good[0], good[0])
    with pytest.raises(ValueError, match="finite"):
        ControlVector(good, np.full_like(good, np.nan))
    with pytest.raises(ValueError, match="row 0"):
        ControlVector(good + 1, good)
    with pytest.raises(ValueError):
        _ = make() + ControlVector.zeros(N_LAYER + 1, N_EMBD)
