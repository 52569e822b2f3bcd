"""Reservations of shared cells: nothing is promised twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.runtime.cells import Cells


def test_what_is_shared_counts_once() -> None:
    cells = Cells(100)
    cells.enter(1, 30, 0)
    cells.enter(2, 30, 20)
    cells.enter(3, 30, 25)
    assert cells.free == 100 - 30 - 10 - 5
    cells.leave(2)  # 3 shares with 1 what all three had: 20
    assert cells.free == 100 - 30 - 10
    cells.leave(1)
    assert cells.free == 70
    cells.leave(3)
    assert cells.free == 100


def test_the_first_shares_with_nobody() -> None:
    cells = Cells(10)
    cells.enter(1, 8, 5)
    assert cells.free == 2


def test_a_copy_is_its_own() -> None:
    cells = Cells(10)
    cells.enter(1, 4, 0)
    other = cells.copy()
    other.enter(2, 4, 2)
    other.leave(1)
    assert (cells.free, other.free) == (6, 6)
    cells.leave(1)
    assert cells.free == 10


Steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 40)), max_size=40)


@given(Steps)
def test_free_is_free(steps: list[tuple[int, int, int]]) -> None:
    """Against the cells themselves: each sequence a list of them, shared ones the same."""
    capacity = 10_000
    cells = Cells(capacity)
    held: dict[int, list[object]] = {}
    for serial, (kind, need, shared) in enumerate(steps):
        before = cells.free
        if kind == 0 and held:
            gone = list(held)[need % len(held)]
            del held[gone]
            cells.leave(gone)
            assert cells.free >= before
        elif kind == 1 and held:  # a copy of a whole sequence beside it, as the keeper is
            order = list(held)
            at = need % len(order)
            model = held[order[at]]
            cells.enter(serial, len(model), len(model), after=order[at])
            assert cells.free == before
            order.insert(at + 1, serial)
            held = {one: held.get(one, model) for one in order}
        else:
            last = next(reversed(held.values()), [])
            common = last[: min(shared, need)]
            cells.enter(serial, need, len(common))
            held[serial] = common + [object() for _ in range(need - len(common))]
        assert len({c for mine in held.values() for c in mine}) <= capacity - cells.free
    for one in list(held):
        cells.leave(one)
    assert cells.free == capacity
