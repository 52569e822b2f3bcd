"""A shift that was planted in the states comes out as a control vector, at its layers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.interventions.control_vector import ANSWER_GAIN, DECIDING_GAIN
from alignez_edge.methods.base import Finding
from alignez_edge.methods.displacement import Displacement
from alignez_edge.methods.iti import AttentionHeads, shifted
from alignez_edge.methods.table import DEFAULT_METHOD, METHODS, method

N_PAIRS, N_LAYER, N_EMBD = 24, 7, 32
FIRST = 3
"""The first layer at which the sides part."""
TWO_POSITIONS = ["alignez", "mean"]
EDITING = [name for name, entry in METHODS.items() if entry.edits_layers]


def shifts(seed: int = 1) -> np.ndarray:
    """What parts the sides, `(position, n_layer, n_embd)`: it grows and turns with the layers."""
    rng = np.random.default_rng(seed)
    start, turn = rng.normal(size=(2, 2, 1, N_EMBD))
    depth = np.arange(N_LAYER)[None, :, None] - FIRST
    return np.where(depth >= 0, start * (2 + depth) + 0.3 * turn * depth, 0.0)


def fill(states: HiddenStates, n_pairs: int = N_PAIRS, swapped: bool = False) -> None:
    """Pairs around their own topics, `shifts` apart, with a little noise."""
    rng = np.random.default_rng(0)
    n_layer, n_embd = states.shape
    planted = np.zeros((2, n_layer, n_embd))
    if states.shape == (N_LAYER, N_EMBD):
        planted = shifts()
    for _ in range(n_pairs):
        topic = 2 * rng.normal(size=(2, n_layer, n_embd))
        noise = 0.05 * rng.normal(size=(2, 2, n_layer, n_embd))
        sides = [topic + planted / 2 + noise[0], topic - planted / 2 + noise[1]]
        if swapped:
            sides.reverse()
        states.append(
            deciding=[side[0].astype(np.float32) for side in sides],
            answer=[side[1].astype(np.float32) for side in sides],
        )


@pytest.fixture
def states(tmp_path: Path) -> Iterator[HiddenStates]:
    with HiddenStates(tmp_path / "states", (N_LAYER, N_EMBD)) as found:
        fill(found)
        yield found


def displacing(name: str) -> Displacement:
    found = method(name)
    assert isinstance(found, Displacement)
    return found


RESIDUAL = [name for name in EDITING if name != "iti" and displacing(name).tensor == "l_out"]


def fit(states: HiddenStates, rows: Sequence[int], name: str, *args: Any, **more: Any) -> Finding:
    """What a method makes of states; ITI's four heads lie in the residual stream as they are."""
    if name != "iti":
        return displacing(name).fit(states, rows, *args, **more)
    n_dims = states.shape[1]
    heads = AttentionHeads(4, n_dims, n_dims, lambda layer, x: x)
    return shifted(states, rows, heads, *args, **more)


def vectors(found: Finding) -> np.ndarray:
    return np.stack([found.vector.deciding, found.vector.answer]).astype(np.float64)


def test_the_papers_edit_reads_the_mlp_and_the_others_the_residual_stream() -> None:
    assert displacing("alignez-v1").tensor == "ffn_out"
    assert {displacing(name).tensor for name in (DEFAULT_METHOD, *TWO_POSITIONS)} == {"l_out"}


def test_every_method_of_the_table_has_its_file() -> None:
    for name in METHODS:
        assert callable(method(name).reads) and callable(method(name).find)


@pytest.mark.parametrize("method", RESIDUAL)
def test_a_planted_shift_is_found_where_it_is(states: HiddenStates, method: str) -> None:
    found = fit(states, range(N_PAIRS), method)
    assert FIRST <= found.layers[0] < N_LAYER, "where nothing parts the sides nothing is edited"
    assert set(found.vector.layers) <= set(found.layers)
    assert found.separation[FIRST:].min() > 2 * max(found.separation[:FIRST].max(), 0)
    assert found.interlayer[FIRST:].min() > found.interlayer[:FIRST].max()


@pytest.mark.parametrize("method", RESIDUAL)
def test_the_planted_direction_is_found(states: HiddenStates, method: str) -> None:
    """Whatever topics and noise lie around it, at the position that the method reads."""
    for layer in range(FIRST, N_LAYER):
        found = vectors(fit(states, range(N_PAIRS), method, [layer]))[:, layer]
        read = [0, 1] if method in TWO_POSITIONS else [1, 1]
        wanted = shifts()[read, layer]
        cosines = (found * wanted).sum(axis=1) / np.linalg.norm(found, axis=1)
        assert (cosines > 0.99 * np.linalg.norm(wanted, axis=1)).all()


def test_caa_displaces_one_layer_by_the_difference_of_means(states: HiddenStates) -> None:
    found = fit(states, range(N_PAIRS), "caa")
    assert len(found.layers) == 1
    (layer,) = found.layers
    assert found.separation[layer] == found.separation[1:].max()
    sides = states.layer(layer, "answer", range(N_PAIRS))
    difference = (sides.chosen - sides.rejected).mean(axis=0, dtype=np.float64)
    for vector in vectors(found):
        np.testing.assert_allclose(vector[layer], difference, atol=1e-5)


@pytest.mark.parametrize("method", ["caa", "pca", "iti"])
def test_the_other_methods_add_the_same_at_every_token(states: HiddenStates, method: str) -> None:
    deciding, answer = vectors(fit(states, range(N_PAIRS), method))
    assert deciding.any()
    np.testing.assert_array_equal(deciding, answer)


@pytest.mark.parametrize("method", EDITING)
def test_the_sign_of_singular_vectors_does_not_matter(
    states: HiddenStates, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vectors(fit(states, range(N_PAIRS), method))
    decompose = scipy.linalg.svd

    def other_signs(*args: Any, **options: Any) -> Any:
        u, values, rows = decompose(*args, **options)
        return -u, values, -rows

    monkeypatch.setattr(scipy.linalg, "svd", other_signs)
    np.testing.assert_allclose(vectors(fit(states, range(N_PAIRS), method)), before, atol=1e-6)


@pytest.mark.parametrize("method", TWO_POSITIONS)
@pytest.mark.parametrize("layers", [(3, 4, 5, 6), (4, 6), (5,), (1, 6)])
def test_increments_add_up_to_the_displacement_of_each_layer(
    states: HiddenStates, method: str, layers: tuple[int, ...]
) -> None:
    """What was added below is still there: a layer adds only what is missing."""
    found = fit(states, range(N_PAIRS), method, layers)
    assert found.layers == layers
    gains = np.array([DECIDING_GAIN, ANSWER_GAIN])[:, None, None]
    reached = np.cumsum(vectors(found), axis=1) / gains
    for layer in layers:
        np.testing.assert_allclose(reached[:, layer], shifts()[:, layer], atol=0.2)
    assert not np.delete(vectors(found), list(layers), axis=1).any()


@pytest.mark.parametrize("method", ["alignez-v1"])
def test_what_is_no_running_sum_is_displaced_whole(states: HiddenStates, method: str) -> None:
    all_layers = range(1, N_LAYER)
    whole = vectors(fit(states, range(N_PAIRS), method, all_layers))
    for layer in all_layers:
        alone = vectors(fit(states, range(N_PAIRS), method, [layer]))
        np.testing.assert_array_equal(alone[:, layer], whole[:, layer])


@pytest.mark.parametrize("method", RESIDUAL)
def test_the_sides_exchanged_turn_the_vector_round(
    states: HiddenStates, tmp_path: Path, method: str
) -> None:
    with HiddenStates(tmp_path / "swapped", states.shape) as swapped:
        fill(swapped, swapped=True)
        there, back = (fit(found, range(N_PAIRS), method) for found in (states, swapped))
    assert there.layers == back.layers
    np.testing.assert_allclose(vectors(back), -vectors(there), atol=1e-5)


@pytest.mark.parametrize("method", EDITING)
def test_only_the_rows_that_are_named_count(states: HiddenStates, method: str) -> None:
    rows = [row for row in range(N_PAIRS) if row % 4 != 3]
    before = fit(states, rows, method)
    for _ in range(5):  # pairs that would change everything
        states.append(
            [np.full(states.shape, 1e6, np.float32)] * 2,
            [-np.eye(*states.shape, dtype=np.float32)] * 2,
        )
    after = fit(states, rows, method)
    assert before.layers == after.layers
    np.testing.assert_array_equal(vectors(before), vectors(after))


@pytest.mark.parametrize("method", EDITING)
def test_layer_0_is_never_edited(states: HiddenStates, method: str) -> None:
    found = fit(states, range(N_PAIRS), method)
    assert 0 not in found.layers and not vectors(found)[:, 0].any()


@pytest.mark.parametrize("method", EDITING)
def test_pairs_without_any_difference_give_finite_vectors(tmp_path: Path, method: str) -> None:
    with HiddenStates(tmp_path / "same", (4, 8)) as same:
        for _ in range(6):
            same.append([np.ones((4, 8), np.float32)] * 2, [np.ones((4, 8), np.float32)] * 2)
        assert np.isfinite(vectors(fit(same, range(6), method))).all()


@pytest.mark.parametrize("layers", [[0], [N_LAYER], [2, 2], [-1], []])
def test_layers_that_are_not_there_are_refused(states: HiddenStates, layers: list[int]) -> None:
    with pytest.raises(ValueError, match="layer"):
        fit(states, range(N_PAIRS), DEFAULT_METHOD, layers)


def test_progress_counts_the_layers(states: HiddenStates) -> None:
    seen: list[tuple[str, int, int]] = []
    fit(states, range(N_PAIRS), DEFAULT_METHOD, on_progress=lambda *call: seen.append(call))
    assert {step for step, _, _ in seen} == {"subspace"}
    assert [done for _, done, _ in seen] == list(range(N_LAYER + 1))
    assert {total for _, _, total in seen} == {N_LAYER}


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    n_pairs = 300
    with HiddenStates(tmp_path / "many", (32, 32)) as many:
        fill(many, n_pairs)
        size = many.path.stat().st_size
        fit(many, range(8), "mean")  # what is loaded once is no part of the states
        tracemalloc.start()
        fit(many, range(n_pairs), "mean")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < size / 4
