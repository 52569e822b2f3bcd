"""The bank: neighbors are found, scales do not matter, and an untrusted file is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.interventions.bank import Bank, widened

N_LAYER, N_EMBD, N_PAIRS = 5, 48, 24
Maker = Callable[..., tuple[Bank, np.ndarray, np.ndarray]]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """A bank with the states `(pair, side, position, layer, n_embd)` and queries it was made of."""

    def made(
        layers: tuple[int, ...] = (1, 3, 4), factor: float = 1.0, tensor: str = "l_out"
    ) -> tuple[Bank, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(3)
        pairs = factor * rng.standard_normal((N_PAIRS, 2, 2, N_LAYER, N_EMBD)).astype(np.float32)
        queries = rng.standard_normal((N_PAIRS, N_LAYER, N_EMBD)).astype(np.float32)
        queries = factor * (queries + 50)  # all share a large mean
        with HiddenStates(tmp_path / f"{factor}.f32", (N_LAYER, N_EMBD)) as states:
            states.truncate(0)
            for pair in pairs:
                states.append(pair[:, 0], pair[:, 1])
            return Bank.from_states(states, range(N_PAIRS), queries, layers, tensor), pairs, queries

    return made


def test_planted_neighbors_are_found(make: Maker) -> None:
    bank, _, queries = make()
    rng = np.random.default_rng(0)
    for row in (0, 7, 23):
        near = queries[row] + 0.2 * rng.standard_normal(queries[row].shape)
        assert bank.nearest(near, 3)[0] == row
    group = [2, 5, 11]
    middle = queries[group].mean(axis=0)
    assert set(bank.nearest(middle, 3)) == set(group)


def test_a_query_of_the_bank_is_its_own_neighbor(make: Maker) -> None:
    bank, _, queries = make()
    for row, query in enumerate(queries):
        assert bank.nearest(query, 1).tolist() == [row]


def test_all_come_where_there_are_fewer(make: Maker) -> None:
    bank, _, queries = make()
    assert sorted(bank.nearest(queries[0], 1000)) == list(range(N_PAIRS))
    with pytest.raises(ValueError, match="0 neighbors"):
        bank.nearest(queries[0], 0)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**12])
def test_scale_does_not_matter(make: Maker, factor: float) -> None:
    bank, _, queries = make()
    scaled, _, _ = make(factor=factor)
    states = queries[4] + queries[9]
    assert np.array_equal(scaled.nearest(factor * states, 9), bank.nearest(states, 9))
    rows = np.arange(N_PAIRS)
    np.testing.assert_allclose(scaled.take(rows), factor * bank.take(rows), rtol=1e-6)


def test_states_come_back_to_eleven_bits(make: Maker) -> None:
    bank, pairs, _ = make(factor=1e6)  # beyond float16
    rows = np.array([3, 0, 20])
    for p, position in enumerate(("deciding", "answer")):
        sides = bank.sides(rows, position, 3)
        for found, side in ((sides.chosen, 0), (sides.rejected, 1)):
            np.testing.assert_allclose(found, pairs[rows, side, p, 3], rtol=2**-10, atol=1e-3)
    np.testing.assert_array_equal(bank.take(rows, [3])[0, 1, 0], sides.chosen)


def test_every_finite_half_is_widened_to_the_bit() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    expected = halves.astype(np.float32)
    assert widened(halves).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(widened(halves[::-3]), expected[::-3])


def test_arrays_and_back(make: Maker) -> None:
    bank, _, _ = make(tensor="ffn_out")
    again = Bank.from_arrays(bank.to_arrays(), "ffn_out")
    assert (again.layers, again.tensor, again.digest) == (bank.layers, "ffn_out", bank.digest)
    rows = np.arange(N_PAIRS)
    np.testing.assert_array_equal(again.take(rows), bank.take(rows))
    assert all(array.ndim <= 3 for array in bank.to_arrays().values())
    assert make(layers=(1, 3))[0].digest != bank.digest


def _no_layers(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        arrays[name] = array[:0]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda a: a.pop("answer.chosen"), "without answer.chosen"),
        (lambda a: a.update(layers=a["layers"][::-1]), "must rise"),
        (lambda a: a.update(layers=a["layers"] - 1), "must lie in"),
        (lambda a: a.update(layers=a["layers"].astype(np.float32)), "float32"),
        (lambda a: a.update(layers=a["layers"][:2]), "scales"),
        (lambda a: a.update(scales=a["scales"] * 0), "out of bounds"),
        (lambda a: a.update(scales=a["scales"] * np.float32(1e30)), "out of bounds"),
        (lambda a: a.update(scales=a["scales"] * np.float32(np.nan)), "not finite"),
        (lambda a: a.update(query=a["query"][:, :5]), "different shapes"),
        (lambda a: a.update(query=a["query"].astype(np.float32)), "float32"),
        (lambda a: a.update({"answer.chosen": a["query"] * np.float16(np.inf)}), "not finite"),
        (_no_layers, "no layers"),
    ],
)
def test_untrusted_arrays_are_checked(
    make: Maker, spoil: Callable[[dict[str, np.ndarray]], object], says: str
) -> None:
    arrays = make()[0].to_arrays()
    spoil(arrays)
    with pytest.raises(ValueError, match=says), np.errstate(invalid="ignore"):
        Bank.from_arrays(arrays, "l_out")


def test_other_tensors_and_states_are_refused(make: Maker) -> None:
    bank, _, queries = make()
    with pytest.raises(ValueError, match="kqv_out"):
        Bank.from_arrays(bank.to_arrays(), "kqv_out")
    for states in (queries[0][:4], queries[0][:, :-1], queries):
        with pytest.raises(ValueError, match="states of shape"):
            bank.nearest(states, 3)
    with pytest.raises(ValueError, match="a state of size"):
        make(factor=1e13)
