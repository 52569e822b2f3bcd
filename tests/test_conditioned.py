"""A turn's neighbors: their directions, control vectors and edits against the plain forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from alignez_edge.directions.hidden_states import POSITIONS, HiddenStates
from alignez_edge.directions.subspace import (
    difference_subspace,
    first_direction,
    right_singular_vectors,
)
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.by_query import QueryEdit, Recipe, condition
from alignez_edge.interventions.mlp_edit import LayerEdit
from alignez_edge.methods.displacement import Displacement
from alignez_edge.methods.table import method as method_called

N_LAYER, N_EMBD, N_PAIRS = 6, 40, 16
LAYERS = (1, 2, 4)
Method = Literal["alignez", "alignez-v1"]


class Made:
    """Random pairs of two kinds, which differ between their sides along two directions; a bank."""

    def __init__(self, path: Path, tensor: str, noise: float = 0.3) -> None:
        rng = np.random.default_rng(5)
        self.planted = np.linalg.qr(rng.standard_normal((N_EMBD, 4)))[0].T.astype(np.float32)
        self.kind = np.arange(N_PAIRS) % 2
        pairs = noise * rng.standard_normal((N_PAIRS, 2, 2, N_LAYER, N_EMBD))
        pairs += 3 * self.planted[3]  # what both sides share
        pairs[:, 0] += 4 * self.planted[self.kind][:, None, None]
        queries = noise * rng.standard_normal((N_PAIRS, N_LAYER, N_EMBD)) + 10
        queries += 3 * (self.planted[2] * (2 * self.kind - 1)[:, None])[:, None]
        self.queries = queries.astype(np.float32)
        self.states = HiddenStates(path, (N_LAYER, N_EMBD))
        for pair in pairs.astype(np.float32):
            self.states.append(pair[:, 0], pair[:, 1])
        self.bank = Bank.from_states(self.states, range(N_PAIRS), self.queries, LAYERS, tensor)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    with ExitStack() as stack:

        def made(tensor: str = "l_out", **options: float) -> Made:
            found = Made(tmp_path / f"{tensor}.f32", tensor, **options)
            stack.enter_context(found.states)
            return found

        yield made


def assert_parallel(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a * np.sign(a @ b), b, atol=2e-5)


def test_version_2_is_the_svd_of_the_differences(make: Callable[..., Made]) -> None:
    made = make()
    turn = condition(made.bank, made.queries[0], Recipe(k=7, rank=4))
    assert turn.rows[0] == 0
    for i, layer in enumerate(LAYERS):
        for p, position in enumerate(POSITIONS):
            sides = made.bank.sides(turn.rows, position, layer)
            whole = difference_subspace(sides.chosen, sides.rejected, 4)
            for found, expected in zip(turn.directions[i, p], whole.directions, strict=True):
                assert_parallel(found, expected)
            np.testing.assert_allclose(turn.displacement[i, p], whole.displacement(), atol=1e-4)
            shift = (sides.chosen - sides.rejected).mean(axis=0)
            assert (turn.directions[i, p] @ shift >= 0).all()


def test_version_1_is_the_svd_of_each_side(make: Callable[..., Made]) -> None:
    made = make("ffn_out")
    turn = condition(made.bank, made.queries[3], Recipe("alignez-v1", k=5))
    for i, layer in enumerate(LAYERS):
        for p, position in enumerate(POSITIONS):
            sides = made.bank.sides(turn.rows, position, layer)
            pair = [first_direction(side) for side in (sides.chosen, sides.rejected)]
            np.testing.assert_allclose(turn.directions[i, p], pair, atol=2e-5)
            middle = (sides.chosen.mean(axis=0) + sides.rejected.mean(axis=0)) / 2
            own = turn.edit(position).layers[layer]
            expected = LayerEdit.swap(*pair)
            np.testing.assert_allclose(own.change(middle), expected.change(middle), atol=1e-3)
            # The constant is the edit's mean field.
            np.testing.assert_allclose(
                turn.displacement[i, p], expected.change(middle), atol=1e-3, rtol=1e-3
            )


@pytest.mark.parametrize("method", ["alignez", "alignez-v1"])
def test_directions_and_edits_are_made_of_the_banks_rows(
    make: Callable[..., Made], method: Method
) -> None:
    made = make("ffn_out")
    turn = condition(made.bank, made.queries[1], Recipe(method, k=6, rank=3))
    for i, layer in enumerate(LAYERS):
        for p, position in enumerate(POSITIONS):
            sides = made.bank.sides(turn.rows, position, layer)
            rows = np.concatenate([sides.chosen, sides.rejected])
            found = turn.coefficients[i, p] @ rows
            np.testing.assert_allclose(found, turn.directions[i, p], atol=1e-4)
            inward = turn.edit(position).layers[layer].inward
            np.testing.assert_allclose(turn.inward(position)[layer] @ rows, inward, atol=1e-4)


@pytest.mark.parametrize(("method", "tensor"), [("alignez", "l_out"), ("alignez-v1", "ffn_out")])
def test_all_pairs_as_neighbors_are_the_static_profile(
    make: Callable[..., Made], method: Method, tensor: str
) -> None:
    made = make(tensor)
    how = method_called(method)
    assert isinstance(how, Displacement)
    expected = how.fit(made.states, range(N_PAIRS), LAYERS).vector
    found = condition(made.bank, made.queries[0], Recipe(method, k=N_PAIRS)).vector(N_LAYER)
    for position in POSITIONS:
        np.testing.assert_allclose(getattr(found, position), getattr(expected, position), atol=1e-2)
        np.testing.assert_allclose(getattr(found, position)[[0, 3, 5]], 0)


def test_the_direction_of_a_querys_own_kind_is_found(make: Callable[..., Made]) -> None:
    made = make(noise=0.1)
    for row in (0, 1, 6, 9):
        turn = condition(made.bank, made.queries[row], Recipe(k=5))
        kind = made.kind[row]
        assert (made.kind[turn.rows] == kind).all()
        assert (turn.directions[:, :, 0] @ made.planted[kind] > 0.99).all()


def test_opposed_directions_alone_are_kept(make: Callable[..., Made]) -> None:
    made = make()
    everything = condition(made.bank, made.queries[2], Recipe(k=8, rank=6))
    turn = condition(made.bank, made.queries[2], Recipe(k=8, rank=6, opposed=True))
    kept = np.asarray(turn.directions.any(axis=-1))
    assert 0 < kept.sum() < kept.size
    for i, layer in enumerate(LAYERS):
        towards = everything.directions[i] @ made.queries[2][layer]
        np.testing.assert_array_equal(kept[i], towards <= 0)
    np.testing.assert_array_equal(turn.directions[kept], everything.directions[kept])
    shares = np.einsum("lpd,lprd->lpr", turn.displacement, everything.directions)
    np.testing.assert_allclose(shares[~kept], 0, atol=1e-4)


def test_layers_of_which_nothing_is_kept_hand_on(make: Callable[..., Made]) -> None:
    """Layer 2 keeps nothing: layer 4 then gets the increment over layer 1."""
    made = make()
    query = np.zeros((N_LAYER, N_EMBD), np.float32)
    query[2] = made.planted[0] + made.planted[1]
    query[[1, 4]] = -query[2]
    turn = condition(made.bank, query, Recipe(k=N_PAIRS, opposed=True))
    vector = turn.vector(N_LAYER)
    assert vector.layers == (1, 4)
    np.testing.assert_allclose(
        vector.deciding.sum(axis=0), 1.5 * turn.displacement[2, 0], atol=1e-4
    )
    everything = made.planted[0] + made.planted[1]
    query[:] = everything
    assert condition(made.bank, query, Recipe(opposed=True)).vector(N_LAYER).is_zero()


def test_less_rank_than_asked_for_and_no_difference_at_all(make: Callable[..., Made]) -> None:
    made = make("ffn_out", noise=0.0)
    turn = condition(made.bank, made.queries[0], Recipe(k=5, rank=4))
    assert turn.directions.any(axis=-1).sum(axis=-1).tolist() == [[1, 1]] * len(LAYERS)
    arrays = made.bank.to_arrays()
    for position in POSITIONS:
        arrays[f"{position}.rejected"] = arrays[f"{position}.chosen"]
    scales = arrays["scales"].copy()
    scales[:, [1, 3]] = scales[:, [0, 2]]
    same = Bank.from_arrays({**arrays, "scales": scales}, "ffn_out")
    turn = condition(same, made.queries[0], Recipe(rank=2))
    assert turn.vector(N_LAYER).is_zero()
    assert turn.edit("answer").is_zero()
    assert turn.inward("answer") == {}


def test_large_states_do_not_overflow(make: Callable[..., Made]) -> None:
    made = make()
    arrays = made.bank.to_arrays()
    arrays["scales"] = arrays["scales"] * np.float32(2.0**14)
    turn: QueryEdit = condition(Bank.from_arrays(arrays, "l_out"), made.queries[0] * 2.0**14)
    rows = made.bank.sides(turn.rows, "answer", 4)
    vectors, _ = right_singular_vectors(rows.chosen - rows.rejected, 1)
    assert_parallel(turn.directions[2, 1, 0], vectors[0])


def test_bad_recipes(make: Callable[..., Made]) -> None:
    made = make()
    for wrong in ({"k": 0}, {"rank": 0}):
        with pytest.raises(ValueError, match="counts from 1"):
            Recipe(**wrong)  # type: ignore[arg-type]
    for layers in ((), (3,), (1, 9)):
        with pytest.raises(ValueError, match="the bank holds the layers"):
            condition(made.bank, made.queries[0], Recipe(layers=layers))
    with pytest.raises(ValueError, match="cannot edit the MLP"):
        condition(made.bank, made.queries[0]).edit("answer")
