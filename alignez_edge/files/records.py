"""Lines of people's files as records: JSON lines with the keys that people use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from alignez_edge.errors import BadInputError
from alignez_edge.files.reading import read_lines
from alignez_edge.files.text import printable


def read_records(
    path: str | Path, *, limit: int, what: str
) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a JSON-lines file as (where, object), one in memory at a time; raises
    `BadInputError`."""
    shown = printable(str(path))
    for number, line in read_lines(path, limit=limit, what=what):
        if line.strip():
            where = f"{shown}, line {number}"
            yield where, parse_record(line, where)


def iter_records(text: str, shown: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a JSON-lines text as (where, object); raises `BadInputError`."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{shown}, line {number}"
            yield where, parse_record(line, where)


def parse_record(line: str, where: str) -> dict[str, object]:
    """One JSON line as an object; raises `BadInputError` that begins with `where`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as failure:
        reason = getattr(failure, "msg", "nested too deeply or out of range")
        raise BadInputError(f"{where}: not JSON: {printable(reason)}") from None
    if not isinstance(record, dict):
        raise BadInputError(f"{where}: not a JSON object")
    return record


def text_of(record: dict[str, object], key: str, where: str) -> str:
    """The text under `key`; raises `BadInputError` if it is missing or not text."""
    value = record.get(key)
    if not isinstance(value, str):
        problem = "is missing" if key not in record else "is not a text"
        raise BadInputError(f"{where}: {key!r} {problem}")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadInputError(f"{where}: {key!r} holds half a character (a lone surrogate)")
    return value
