"""Rows of a pass with vectors of their own: as llama.cpp's control vector would, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.errors import BadInputError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.llama import ggml, tensor_shape
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.probe import steers_rows
from alignez_edge.runtime.rows import RowPlan
from tests.tinymodels import ARCHITECTURES

N_SEQ = 4
TENSORS: tuple[TensorName, ...] = ("l_out", "ffn_out", "kqv_out")
FILES = [(name, "F16") for name in ARCHITECTURES]
FILES += [(name, "Q4_K_M") for name in ("llama", "qwen2", "gemma2", "phi3")]


class Piece(NamedTuple):
    """Tokens of one sequence in one pass, all under one vector (-1: none).

    Rows that are steered ask for logits; of the others, the last or all but the last do.
    """

    n: int
    vector: int
    goes_on: bool
    last_wants_logits: bool


def piece() -> st.SearchStrategy[Piece]:
    return st.builds(
        Piece, st.integers(0, 4), st.integers(-1, 4), st.integers(0, 4).map(bool), st.booleans()
    )


Schedule = list[list[Piece]]
"""Of each pass, one piece of each sequence."""
schedules = st.lists(st.lists(piece(), min_size=N_SEQ, max_size=N_SEQ), min_size=1, max_size=5)


def vector(model: Model, number: int) -> FloatArray | None:
    """A vector of this number, in some of the layers that llama.cpp can steer; None for -1."""
    if number < 0:
        return None
    rng = np.random.default_rng(number)
    vectors = rng.standard_normal((model.n_layer, model.n_embd), np.float32)
    vectors[rng.random(model.n_layer) < 0.3] = 0
    vectors[0] = 0
    return vectors


def logits(
    context: Context, schedule: Schedule, vectors: list[FloatArray | None], own: int | None = None
) -> list[dict[int, list[FloatArray]]]:
    """Of each pass, each sequence's logits.

    Each piece is steered in its rows; with `own`, all pieces are by llama.cpp's own control vector,
    with the vector that the piece of the sequence `own` has.
    """
    context.clear()
    lengths = [0] * N_SEQ
    found = []
    for pieces in schedule:
        rows: list[tuple[int, int, bool, FloatArray | None]] = []
        for sequence, piece in enumerate(pieces):
            if not piece.goes_on:
                context.remove(sequence)
                lengths[sequence] = 0
            for i in range(piece.n):
                wants = piece.vector >= 0 or piece.last_wants_logits == (i == piece.n - 1)
                rows.append((sequence, lengths[sequence] + i, wants, vectors[piece.vector]))
            lengths[sequence] += piece.n
        if not rows:
            continue
        adds = [(i, row[3]) for i, row in enumerate(rows) if row[3] is not None]
        if own is not None:
            context.set_control_vector(vectors[pieces[own].vector])
        context.decode(
            [1 + (7 * sequence + 13 * at) % 200 for sequence, at, *_ in rows],
            [at for _, at, *_ in rows],
            [sequence for sequence, *_ in rows],
            [wants for *_, wants, _ in rows],
            RowPlan(adds if own is None else ()),
        )
        of_each: dict[int, list[FloatArray]] = {sequence: [] for sequence in range(N_SEQ)}
        for i, (sequence, _, wants, _) in enumerate(rows):
            if wants:
                of_each[sequence].append(context.logits(i).copy())
        found.append(of_each)
    return found


@pytest.fixture(scope="module", params=FILES, ids=lambda of: "-".join(of))
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Iterator[Model]:
    architecture, file_type = request.param
    with Model.load(tiny_model(architecture, file_type=file_type), threads=1) as model:
        yield model


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(schedules)
def test_steered_rows_are_llama_cpps_control_vector_to_the_bit(
    model: Model, schedule: Schedule
) -> None:
    """Sequences that grow, end and begin anew, whole or in pieces, each piece under its own vector,
    against passes of the same shape whose rows are all under that vector."""
    vectors = [vector(model, number) for number in (0, 1, 2, 3, 4, -1)]
    with (
        Context(model, n_ctx=256, n_seq=N_SEQ, n_batch=32) as by_rows,
        Context(model, n_ctx=256, n_seq=N_SEQ, n_batch=32) as own,
    ):
        found = logits(by_rows, schedule, vectors)
        for sequence in range(N_SEQ):
            expected = logits(own, schedule, vectors, own=sequence)
            assert len(found) == len(expected)
            for mine, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(mine[sequence], theirs[sequence])


def test_a_plain_row_does_not_feel_that_its_neighbours_are_steered(model: Model) -> None:
    """To the bit, as the passes have the same shape."""
    vectors = [vector(model, number) for number in (0, 1, 2, 3, 4, -1)]
    plain = [[Piece(1, -1, True, True)] * N_SEQ] * 3
    with Context(model, n_ctx=256, n_seq=N_SEQ, n_batch=32) as context:
        alone = logits(context, plain, vectors)
        for sequence in range(N_SEQ):
            mixed = [[Piece(1, 2, True, True)] * N_SEQ for _ in plain]
            for pieces in mixed:
                pieces[sequence] = plain[0][sequence]
            beside = logits(context, mixed, vectors)
            for a, b in zip(alone, beside, strict=True):
                np.testing.assert_array_equal(a[sequence], b[sequence])
                other = (sequence + 1) % N_SEQ
                assert np.abs(a[other][0] - b[other][0]).max() > 0.01


def test_the_rows_of_every_architecture_can_be_steered(model: Model) -> None:
    assert steers_rows(model)


def test_states_are_read_as_they_are_under_llama_cpps_control_vector(model: Model) -> None:
    """All tensors, in rows with and without logits: those of `l_out` after the addition."""
    vectors = vector(model, 3)
    assert vectors is not None
    rows, layers = [0, 2, 5], range(model.n_layer)
    reads = dict.fromkeys(TENSORS, (rows, layers))
    wants = [True, False, True, False, False, True]
    found = []
    for adds in ([(row, vectors) for row in range(6)], []):
        with Context(model, n_ctx=64, n_seq=2, n_batch=8) as context:
            context.set_control_vector(None if adds else vectors)
            context.decode(
                range(1, 7), [0, 1, 2, 0, 1, 2], [0] * 3 + [1] * 3, wants, RowPlan(adds, reads)
            )
            found.append(dict(context.states))
            for row in (0, 2, 5):
                context.logits(row)
    for name in TENSORS:
        assert found[0][name].any(axis=2).all()
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_tokens_of_one_text_under_vectors_of_their_own(model: Model) -> None:
    """In one pass, against a pass for each vector: equal within the rounding of other shapes."""
    tokens, place = list(range(3, 11)), [-1, -1, -1, 0, 1, 1, 2, -1]
    vectors = [vector(model, number) for number in (0, 1, 2, -1)]

    def run(borders: list[int], steered: bool) -> FloatArray:
        rows = []
        with Context(model, n_ctx=64, n_batch=8) as context:
            for start, stop in itertools.pairwise(borders):
                n = stop - start
                of_rows = [vectors[place[at]] if steered else None for at in range(start, stop)]
                adds = [(row, v) for row, v in enumerate(of_rows) if v is not None]
                context.decode(
                    tokens[start:stop], range(start, stop), [0] * n, [True] * n, RowPlan(adds)
                )
                rows += [context.logits(i).copy() for i in range(n)]
        return np.array(rows)

    whole, parted = run([0, 8], True), run([0, 3, 4, 6, 7, 8], True)
    effect = np.abs(whole - run([0, 8], False)).max()
    assert np.abs(whole - parted).max() < effect / 20


class Adds:
    """A tap that adds a vector to a layer's output in all rows."""

    def __init__(self, layer: int, vector: FloatArray) -> None:
        self._name, self._vector = f"l_out-{layer}".encode(), vector

    def wants(self, name: bytes) -> bool:
        return name == self._name

    def read(self, name: bytes, tensor: int) -> bool:
        n_embd, n_rows, *_ = tensor_shape(tensor)
        data = np.empty((n_rows, n_embd), np.float32)
        ggml.tensor_get(tensor, data.ctypes.data, 0, data.nbytes)
        data += self._vector
        ggml.tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
        return True


def test_layer_0_can_be_steered_in_rows(model: Model) -> None:
    vectors = np.zeros((model.n_layer, model.n_embd), np.float32)
    vectors[0] = np.random.default_rng(5).standard_normal(model.n_embd)
    n = 4
    found = []
    for tap, adds in (
        (None, [(row, vectors) for row in range(n)]),
        (Adds(0, vectors[0]), []),
        (None, []),
    ):
        with Context(model, n_ctx=64, n_batch=n, capture=tap) as context:
            context.decode([1, 2, 3, 4], range(n), [0] * n, [True] * n, RowPlan(adds))
            found.append(np.array([context.logits(i).copy() for i in range(n)]))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.01


def test_a_tensor_that_does_not_come_by_is_named(llama_model: Model) -> None:
    """And the next pass is one as any other."""
    with Context(llama_model, n_ctx=64) as context:
        context._rows._name("l_out", 0)
        names = context._rows._names["l_out"]
        right, names[3] = names[3], b"nothing-3"
        vectors = vector(llama_model, 0)
        assert vectors is not None
        vectors[3] = 1
        with pytest.raises(BadInputError, match="no tensor nothing-3"):
            context.decode([1], [0], [0], [True], RowPlan([(0, vectors)]))
        names[3] = right
        context.clear()
        context.decode([1], [0], [0], [True], RowPlan([(0, vectors)]))
