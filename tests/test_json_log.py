"""Logs of JSON lines: what a kill has torn goes, what people and models have written stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.json_log import MAX_LINE, Log


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_torn_line_is_cut_off(tmp_path: Path, by_hand: bool) -> None:
    log = Log(tmp_path / "log.jsonl")
    assert not log.repair(by_hand=by_hand), "there is no file yet"
    offsets = log.append([{"a": "ü" * 40_000}, {"b": 2}])
    assert [log.at(offset) for offset in offsets] == [{"a": "ü" * 40_000}, {"b": 2}]
    assert not log.repair(by_hand=by_hand)
    whole = log.path.read_bytes()
    for torn in (b'{"c', b"\xc3", b"7", b"x" * 100_000):
        log.path.write_bytes(whole + torn)
        assert [record for _, record in log.records()] == [{"a": "ü" * 40_000}, {"b": 2}]
        assert log.repair(by_hand=by_hand)
        assert log.path.read_bytes() == whole
    log.path.write_bytes(b"torn from the first byte on")
    assert log.repair(by_hand=by_hand)
    assert log.path.read_bytes() == b"" and list(log.lines()) == []


def test_an_editor_may_leave_out_the_last_newline(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.path.write_bytes(b'{"a": 1}\n{"b": 2}')
    assert not log.repair(by_hand=True)
    assert log.path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    log.path.write_bytes(b'{"a": 1}\n{"b": 2}')
    assert log.repair()
    assert log.path.read_bytes() == b'{"a": 1}\n'


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    """A model may write any character: U+2028 inside a text stands in the line as it is."""
    log = Log(tmp_path / "log.jsonl")
    log.append([{"text": "a\u2028b\x85c\x0c"}, {"text": "d"}])
    assert [record["text"] for _, record in log.records()] == ["a\u2028b\x85c\x0c", "d"]
    assert len(list(log.lines())) == 2


def test_lines_are_cut_from_one_on(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    offsets = log.append_lines(['{"a": 1}', '{"b": 2}', '{"c": 3}'])
    assert [offset for offset, _ in log.lines()] == offsets
    log.cut(offsets[1])
    assert [line for _, line in log.lines()] == ['{"a": 1}']
    assert log.append([{"d": 4}]) == [offsets[1]]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.path.write_bytes(b'{"a": 1}\n\xff\n')
    with pytest.raises(BadInputError, match="line 2: not UTF-8"):
        list(log.records())
    log.path.write_bytes(b'{"a": 1}\n[]\n')
    with pytest.raises(BadInputError, match="line 2: not a JSON object"):
        list(log.records())
    log.path.write_bytes(b"x" * (MAX_LINE + 1))
    with pytest.raises(BadInputError, match="line 1: longer"):
        list(log.lines())


def test_where_it_cannot_be_written_the_hint_says_what_to_do(tmp_path: Path) -> None:
    log = Log(tmp_path / "nowhere" / "log.jsonl", "do this")
    with pytest.raises(AlignezError, match="cannot write") as raised:
        log.append([{"a": 1}])
    assert raised.value.hint == "do this"
