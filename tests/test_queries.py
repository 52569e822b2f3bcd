from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignez_edge.errors import BadInputError
from alignez_edge.preferences.queries import MAX_QUERY, read_queries, read_queries_with_facts


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_text_without_blanks_and_duplicates(tmp_path: Path) -> None:
    path = write(tmp_path, "q.txt", "\ufeffone\r\n\n  two \none\nthree\u2028still three")
    assert read_queries(path) == ["one", "two", "three\u2028still three"]
    assert read_queries(path, limit=2) == ["one", "two"]


def test_json_lines_with_any_of_the_keys(tmp_path: Path) -> None:
    records = [{"query": "a"}, {"instruction": "b", "n": 1}, {"prompt": "c\nd"}, {"query": "a"}]
    text = "\n".join(map(json.dumps, records))
    for name in ("q.jsonl", "q.txt"):
        assert read_queries(write(tmp_path, name, text)) == ["a", "b", "c\nd"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.txt", "", "has no queries"),
        ("q.txt", "\n \n", "has no queries"),
        ("q.txt", b"fine\ncaf\xe9", "not UTF-8 text: line 2"),
        ("q.txt", "x" * (MAX_QUERY + 1), "line 1: a query of 8,001 characters"),
        ("q.txt", "a\0b", "NUL"),
        ("q.jsonl", '{"query": "a"}\n{"query": ', "line 2: not JSON"),
        ("q.jsonl", '{"query": "a"}\n[1]', "line 2: not a JSON object"),
        ("q.jsonl", '{"text": "a"}', "line 1: none of the keys"),
        ("q.jsonl", '{"query": 3}', "line 1: 'query' is not a text"),
        ("q.jsonl", '{"query": " "}', "line 1: 'query' is empty"),
        ("q.jsonl", '{"query": "\\ud800"}', "half a character"),
        ("q.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("q.jsonl", '{"n": ' + "9" * 5000 + "}", "line 1: (not JSON|none of the keys)"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        read_queries(write(tmp_path, name, text))
    assert "\n" not in caught.value.message


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such query file"):
        read_queries(tmp_path / "none.txt")
    with pytest.raises(BadInputError, match="at least 1"):
        read_queries(tmp_path / "none.txt", limit=0)


def test_facts_beside_a_query_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    lines = '{"id": 3, "slice": "mt", "instruction": "Why?", "more": [1]}', '{"query": "No"}'
    path.write_text("\n".join(lines), "utf-8")
    found = read_queries_with_facts(path)
    assert found == {"Why?": {"id": "3", "slice": "mt"}, "No": {}}
    assert read_queries(path) == list(found)
