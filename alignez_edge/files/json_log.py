"""Logs of JSON lines that survive a kill: a torn last line is cut off.

Whatever a build, an evaluation or a judge has finished goes to such a file. A line is there once it
ends with a newline: what stands after the last one is what a kill has left, readers pass it over,
and whoever appends calls `repair` first, alone in the folder. An append that fails leaves nothing.
"""

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
GO_ON = "finished work is kept: start the same evaluation again to continue"


class Log:
    """A file of JSON lines that only grows. `hint` is what to do where it cannot be written.

    Raises `AlignezError` if it cannot be written and `BadInputError` if it cannot be read.
    """

    def __init__(self, path: Path, hint: str = GO_ON) -> None:
        self.path = path
        self._hint = hint

    def repair(self, *, by_hand: bool = False) -> bool:
        """Cut off a last line that a kill has torn; whether there was one.

        With `by_hand` people edit the file, and an editor may leave out the last newline: a last
        line that is a JSON object then gets one, and stays.
        """
        try:
            with self.path.open("rb+") as file:
                whole = _whole_length(file)
                file.seek(whole)
                rest = file.read()
                if rest and by_hand and _is_record(rest):
                    file.write(b"\n")
                    return False
                file.truncate(whole)
                return bool(rest)
        except FileNotFoundError:
            return False
        except OSError as failure:
            raise self._cannot_write(failure) from None

    def lines(self) -> Iterator[tuple[int, str]]:
        """Every whole line as (offset, text), one in memory at a time; `BadInputError` with the
        line number where one is too long or no UTF-8."""
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
                    yield offset, _text(line[:-1], f"{shown}, line {number}")
                    offset += len(line)
        except FileNotFoundError:
            return
        except OSError as failure:
            raise BadInputError(f"cannot read {shown}: {failure.strerror}") from None

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every whole line as (offset, object), as `lines`."""
        shown = printable(str(self.path))
        for number, (offset, line) in enumerate(self.lines(), 1):
            yield offset, dict(parse_record(line, f"{shown}, line {number}"))

    def at(self, offset: int) -> dict[str, Any]:
        """The record whose line begins at `offset`."""
        shown = printable(str(self.path))
        with self.path.open("rb") as file:
            file.seek(offset)
            return dict(parse_record(_text(file.readline(MAX_LINE), shown), shown))

    def append(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Add records, on disk when this returns; their offsets."""
        return self.append_lines(
            [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
        )

    def append_lines(self, texts: Sequence[str]) -> list[int]:
        """Add JSON objects as they are to stand, a line each; as `append`."""
        lines = [(text + "\n").encode("utf-8", "replace") for text in texts]
        try:
            start = append_whole(self.path, b"".join(lines))
        except OSError as failure:
            raise self._cannot_write(failure) from None
        lengths = np.cumsum([0, *map(len, lines)])
        return [start + int(length) for length in lengths[:-1]]

    def cut(self, offset: int) -> None:
        """Forget the line that begins at `offset`, and all after it."""
        try:
            os.truncate(self.path, offset)
        except OSError as failure:
            raise self._cannot_write(failure) from None

    def _cannot_write(self, failure: OSError) -> AlignezError:
        shown = printable(str(self.path))
        return AlignezError(f"cannot write {shown}: {failure.strerror}", self._hint)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A value as an indented JSON file, whole or not at all."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, text.encode("utf-8", "replace") + b"\n")


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInputError(f"{where}: not UTF-8 text") from None


def _is_record(line: bytes) -> bool:
    try:
        parse_record(_text(line, ""), "")
    except BadInputError:
        return False
    return True


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
