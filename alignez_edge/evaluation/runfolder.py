"""The folder of an evaluation: what was asked, every answer, every verdict; JSON, append-only.

`run.json` says what is evaluated; `answers.jsonl`, `verdicts.jsonl` and `drift.jsonl` get a line
for each thing that is finished, `results.json` is written from them. A last line that a kill has
torn is cut off, and what it held is made again. Answers stay on disk: in memory there is one number
for each.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.reading import (
    alone_in,
    append_whole,
    make_folder,
    printable,
    read_text,
    write_atomic,
)
from alignez_edge.preferences.queries import parse_record
from alignez_edge.profile.profile import timestamp

VERSION = 1
MAX_RUN = 64 << 20
MAX_LINE = 16 << 20
MAX_ANSWERS = 1 << 24
Key = tuple[str, int, int]
"""(arm, query, seed): which answer."""


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


class RunFolder:
    """One evaluation on disk."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder of a run to read it; raises `BadInputError` where it holds none."""
        self.path = Path(path)
        self.answers = Log(self.path / "answers.jsonl")
        self.verdicts = Log(self.path / "verdicts.jsonl")
        self.drift = Log(self.path / "drift.jsonl")
        self.run = read_run(self.path)
        self.arms = {str(arm["name"]): index for index, arm in enumerate(self.run["arms"])}
        self.shape = (len(self.arms), self.run["queries"]["count"], self.run["seeds"])

    @classmethod
    def begin(cls, path: str | Path, settings: Mapping[str, Any]) -> RunFolder:
        """The folder of the run of these settings: begun, or as an earlier call left it.

        Raises `BadInputError` where the folder holds something else.
        """
        folder = Path(path)
        shown = printable(str(folder))
        wanted = json.loads(json.dumps(settings, allow_nan=False))
        if (folder / "run.json").exists():
            found = {
                k: v for k, v in read_run(folder).items() if k not in ("version", "created_at")
            }
            if found != wanted:
                differing = [k for k in wanted if found.get(k) != wanted[k]] or ["keys"]
                raise BadInputError(
                    f"the folder {shown} holds a run of other settings:"
                    f" {', '.join(differing)} differ",
                    "choose another folder with -o, or none",
                )
        else:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise BadInputError(
                    f"{shown} is not the folder of a run, and not empty",
                    "choose another folder with -o, or none",
                )
            make_folder(folder)
            record = {"version": VERSION, "created_at": timestamp(), **wanted}
            write_json(folder / "run.json", record)
        return cls(folder)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around all appending: no other process is in the folder, and no line in it is torn."""
        with alone_in(self.path):
            for log in (self.answers, self.verdicts, self.drift):
                log.repair()
            yield

    def index(self) -> npt.NDArray[np.int64]:
        """Where each answer's line begins, `(arms, queries, seeds)`; -1 where it is missing."""
        found = np.full(self.shape, -1, np.int64)
        for offset, record in self.answers.records():
            place = self.place(record)
            if found[place] < 0:
                found[place] = offset
        return found

    def place(self, record: Mapping[str, Any]) -> tuple[int, int, int]:
        """The index of a record's answer; `BadInputError` where the run has no such."""
        arm = self.arms.get(str(record.get("arm")), -1)
        place = arm, record.get("query_index"), record.get("seed_index")
        if not all(
            type(at) is int and 0 <= at < size for at, size in zip(place, self.shape, strict=True)
        ):
            raise BadInputError(
                f"{printable(str(self.path))} holds a line about an answer that is not of its run",
                "the folder is damaged: choose another one with -o",
            )
        return place  # type: ignore[return-value]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`, whole or not at all."""
        write_json(self.path / "results.json", results)


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a folder; raises `BadInputError` where it is missing or not one of ours."""
    path = folder / "run.json"
    shown = printable(str(path))
    text = read_text(path, limit=MAX_RUN, what="run")
    try:
        run = json.loads(text)
        arms = [arm["name"] for arm in run["arms"]]
        sizes = run["queries"]["count"], run["seeds"]
        usable = (
            run["version"] == VERSION
            and len(set(arms)) == len(arms)
            and all(isinstance(arm, str) for arm in arms)
            and all(type(size) is int and size > 0 for size in sizes)
            and len(arms) * math.prod(sizes) <= MAX_ANSWERS
        )
    except (ValueError, RecursionError, KeyError, TypeError):
        usable = False
    if not usable:
        raise BadInputError(f"{shown} does not say what a run is", "choose another folder with -o")
    return dict(run)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A value as an indented JSON file, whole or not at all."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, text.encode("utf-8", "replace") + b"\n")


def digest(value: object) -> str:
    """Equal values have equal ones."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


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
