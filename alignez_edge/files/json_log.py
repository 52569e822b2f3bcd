"""Logs of JSON lines that survive a kill: a torn last line is cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.records import parse_record
from alignez_edge.files.text import printable
from alignez_edge.files.writing import append_whole, write_atomic

MAX_LINE = 16 << 20


class Log:
    """A file of JSON lines that only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def repair(self) -> None:
        """Cut off a last line that a kill has torn."""
        try:
            with self.path.open("rb+") as file:
                file.truncate(_whole_length(file))
        except FileNotFoundError:
            return
        except OSError as failure:
            raise _cannot_write(self.path, failure) from None

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every whole line as (offset, object), one in memory at a time; `BadInputError` with the
        line number where one is none."""
        shown = printable(str(self.path))
        try:
            with self.path.open("rb") as file:
                offset, number = 0, 0
                while line := file.readline(MAX_LINE):
                    number += 1
                    if not line.endswith(b"\n"):
                        if len(line) < MAX_LINE:
                            return
                        raise BadInputError(f"{shown}, line {number}: longer than a line may be")
                    yield offset, _parsed(line, f"{shown}, line {number}")
                    offset += len(line)
        except FileNotFoundError:
            return
        except OSError as failure:
            raise BadInputError(f"cannot read {shown}: {failure.strerror}") from None

    def at(self, offset: int) -> dict[str, Any]:
        """The record whose line begins at `offset`."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return _parsed(file.readline(MAX_LINE), printable(str(self.path)))

    def append(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Add records, on disk when this returns; their offsets. A failure leaves nothing torn."""
        lines = [
            (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode(
                "utf-8", "replace"
            )
            for record in records
        ]
        try:
            start = append_whole(self.path, b"".join(lines))
        except OSError as failure:
            raise _cannot_write(self.path, failure) from None
        lengths = np.cumsum([0, *map(len, lines)])
        return [start + int(length) for length in lengths[:-1]]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A value as an indented JSON file, whole or not at all."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, text.encode("utf-8", "replace") + b"\n")


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        return dict(parse_record(line.decode("utf-8"), where))
    except UnicodeDecodeError:
        raise BadInputError(f"{where}: not UTF-8 text") from None


def _whole_length(file: BinaryIO) -> int:
    """The length of a file up to the end of its last whole line, read from behind."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = file.seek(max(0, end - (1 << 16)))
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _cannot_write(path: Path, failure: OSError) -> AlignezError:
    return AlignezError(
        f"cannot write {printable(str(path))}: {failure.strerror}",
        "what is finished is kept: start the same evaluation again and it goes on",
    )


def _whole_lines(path: Path) -> list[str]:
    """The finished lines of a log; a line that a kill has torn is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    return whole.decode("utf-8").splitlines()
