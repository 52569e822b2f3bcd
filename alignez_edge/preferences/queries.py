"""Reading queries and other records from text and JSON-lines files, with line numbers in errors."""

from __future__ import annotations

from pathlib import Path

from alignez_edge.errors import BadInputError
from alignez_edge.files.reading import read_lines
from alignez_edge.files.records import parse_record, text_of
from alignez_edge.files.text import printable

MAX_FILE = 64 << 20
MAX_QUERIES = 100_000
MAX_QUERY = 8000  # characters
QUERY_KEYS = ("query", "instruction", "prompt")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def read_queries(path: str | Path, limit: int | None = None) -> list[str]:
    """The queries of a file, in order, without blank lines and duplicates; at most `limit`.

    Text has one query a line. JSON lines (by the file's suffix, or a first line that opens with a
    brace) have one of the keys `query`, `instruction`, `prompt`. Raises `BadInputError` with the
    line number.
    """
    return list(read_queries_with_facts(path, limit))


def read_queries_with_facts(
    path: str | Path, limit: int | None = None
) -> dict[str, dict[str, str]]:
    """`read_queries`, and what JSON lines say beside each query: their texts and numbers by key."""
    if limit is not None and limit < 1:
        raise BadInputError(f"the limit of queries must be at least 1, not {limit}")
    shown = printable(str(path))
    is_json = Path(path).suffix.lower() in _JSON_SUFFIXES
    found: dict[str, dict[str, str]] = {}
    for number, line in read_lines(path, limit=MAX_FILE, what="query file"):
        if limit is not None and len(found) >= limit:
            break
        if not line.strip():
            continue
        where = f"{shown}, line {number}"
        if len(found) >= MAX_QUERIES:
            raise BadInputError(
                f"{where}: more than {MAX_QUERIES:,} queries", "take fewer: --limit"
            )
        is_json = is_json or (not found and line.lstrip()[:1] == "{")
        record = parse_record(line, where) if is_json else {}
        query = (_query_of(record, where) if is_json else line).strip()
        if len(query) > MAX_QUERY:
            raise BadInputError(
                f"{where}: a query of {len(query):,} characters; at most {MAX_QUERY:,}"
            )
        if "\0" in query:
            raise BadInputError(f"{where}: a query cannot hold a NUL character")
        found.setdefault(query, _facts_of(record))
    if not found:
        raise BadInputError(f"the query file {shown} has no queries", hint="write one a line")
    return found


def _query_of(record: dict[str, object], where: str) -> str:
    for key in QUERY_KEYS:
        if key in record:
            query = text_of(record, key, where)
            if not query.strip():
                raise BadInputError(f"{where}: {key!r} is empty")
            return query
    raise BadInputError(f"{where}: none of the keys {', '.join(QUERY_KEYS)}")


def _facts_of(record: dict[str, object]) -> dict[str, str]:
    return {
        key: str(value).encode("utf-8", "replace").decode()
        for key, value in record.items()
        if key not in QUERY_KEYS and isinstance(value, str | int | float)
    }
