"""The mirror of a cache's cells: each is held by any number of sequences, or free."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.runtime.cells import Cells


def test_what_is_shared_counts_once() -> None:
    cells = Cells(100)
    mine = cells.take(30)
    cells.hold(mine[:20])
    assert cells.n_free == 70
    cells.drop(mine)
    assert cells.n_free == 80  # the other still has its 20
    cells.drop(mine[:20])
    assert cells.n_free == 100


def test_nothing_is_taken_twice_nor_in_part() -> None:
    cells = Cells(10)
    first, second = cells.take(4), cells.take(6)
    assert sorted(first + second) == list(range(10))
    with pytest.raises(ValueError, match="1 cells are wanted, 0 are free"):
        cells.take(1)
    cells.drop(second)
    with pytest.raises(ValueError, match="7 cells are wanted, 6 are free"):
        cells.take(7)
    assert cells.n_free == 6
    assert sorted(cells.take(6)) == sorted(second)


def test_none_is_nothing() -> None:
    cells = Cells(3)
    assert cells.take(0) == []
    cells.hold([])
    cells.drop([])
    assert cells.n_free == 3


Steps = st.lists(
    st.tuples(st.sampled_from(["take", "share", "cut"]), *[st.integers(0, 30)] * 3), max_size=60
)


@given(Steps)
def test_free_is_what_nobody_holds(steps: list[tuple[str, int, int, int]]) -> None:
    """Five sequences grow, share beginnings and are cut; a cell is free when no list has it."""
    capacity = 40
    cells = Cells(capacity)
    held: list[list[int]] = [[] for _ in range(5)]
    for kind, one, other, n in steps:
        mine, source = held[one % 5], held[other % 5]
        if kind == "take" and n <= cells.n_free:
            mine += cells.take(n)
        elif kind == "take":
            with pytest.raises(ValueError, match="are free"):
                cells.take(n)
        elif kind == "share" and source is not mine:
            cells.drop(mine)
            mine[:] = source[:n]
            cells.hold(mine)
        elif kind == "cut":
            cells.drop(mine[n:])
            del mine[n:]
        holders = Counter(cell for some in held for cell in some)
        assert cells.n_free == capacity - len(holders)
        assert set(holders) <= set(range(capacity))
        assert all(len(set(some)) == len(some) for some in held)
    for some in held:
        cells.drop(some)
    assert cells.n_free == capacity
