"""States come back as they were put in, and a torn record is dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alignez_edge.directions.hidden_states import CapturedStates, HiddenStates, States

SHAPE = (3, 5)


def records(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 2, 2, *SHAPE)).astype(np.float32)


def fill(states: HiddenStates, data: np.ndarray) -> None:
    for record in data:
        states.append(deciding=record[:, 0], answer=record[:, 1])


def test_round_trip_by_layer_and_rows(tmp_path: Path) -> None:
    data = records(4)
    with HiddenStates(tmp_path / "s", SHAPE) as states:
        fill(states, data)
        found = states.layer(2, "answer")
        np.testing.assert_array_equal(found.chosen, data[:, 0, 1, 2])
        np.testing.assert_array_equal(found.rejected, data[:, 1, 1, 2])
        some = states.layer(1, "deciding", [3, 1])
        np.testing.assert_array_equal(some.chosen, data[[3, 1], 0, 0, 1])


def test_goes_on_after_the_last_whole_record(tmp_path: Path) -> None:
    data = records(3)
    path = tmp_path / "s"
    with HiddenStates(path, SHAPE) as states:
        fill(states, data[:2])
    path.write_bytes(path.read_bytes()[:-7])
    with HiddenStates(path, SHAPE) as states:
        assert len(states) == 1
        fill(states, data[1:])
        np.testing.assert_array_equal(states.layer(0, "deciding").chosen, data[:, 0, 0, 0])


def test_a_record_of_another_shape_is_refused(tmp_path: Path) -> None:
    with HiddenStates(tmp_path / "s", SHAPE) as states:
        with pytest.raises(ValueError, match="does not fit"):
            states.append([np.zeros((3, 4), np.float32)] * 2, [np.zeros((3, 4), np.float32)] * 2)
        assert len(states) == 0


def test_captured_states_are_found_by_their_pair(tmp_path: Path) -> None:
    data = records(3)
    sides = [[States(each[side, 0], each[side, 1], 1) for side in (0, 1)] for each in data]
    path = tmp_path / "captured.f32"
    with CapturedStates(path, SHAPE) as captured:
        captured.add({"a": sides[0], "b": sides[1]})
    with path.with_suffix(".keys").open("a") as keys, HiddenStates(path, SHAPE) as torn:
        fill(torn, data[2:])  # a kill came before its key was whole
        keys.write("c")
    with CapturedStates(path, SHAPE) as captured:
        assert captured.get("c") is None
        captured.add({"c": sides[2]})
    with CapturedStates(path, SHAPE) as captured:
        for key, each in zip("abc", data, strict=True):
            found = captured.get(key)
            assert found is not None
            np.testing.assert_array_equal(np.stack(found, axis=1), each)


def test_a_method_that_reads_no_states_keeps_none(tmp_path: Path) -> None:
    """RE-Control's builds from queries divided by the size of a record, 0."""
    with CapturedStates(tmp_path / "none", (3, 0)) as captured:
        captured.add({})
        assert captured.get("a") is None
