"""The folder of an evaluation: what was asked, every answer, every verdict; JSON, append-only.

`run.json` says what is evaluated; `answers.jsonl`, `verdicts.jsonl` and `drift.jsonl` get a line
for each thing that is finished, `results.json` is written from them. A last line that a kill has
torn is cut off, and what it held is made again. Answers stay on disk: in memory there is one number
for each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_edge.errors import BadInputError
from alignez_edge.files.json_log import Log, write_json
from alignez_edge.files.reading import read_text
from alignez_edge.files.text import printable
from alignez_edge.files.writing import alone_in, make_folder
from alignez_edge.repeatable import timestamp

VERSION = 1
MAX_RUN = 64 << 20
MAX_ANSWERS = 1 << 24
Key = tuple[str, int, int]
"""(arm, query, seed): which answer."""


class RunFolder:
    """One evaluation on disk."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder of a run to read it; raises `BadInputError` if it holds none."""
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

        Raises `BadInputError` if the folder holds something else.
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
                    f"the folder {shown} holds a run with other settings:"
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
                f"{printable(str(self.path))} holds a line about an answer of another run",
                "the folder is damaged: choose another one with -o",
            )
        return place  # type: ignore[return-value]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`, whole or not at all."""
        write_json(self.path / "results.json", results)


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a folder; raises `BadInputError` if it is missing or not one of ours."""
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
        raise BadInputError(f"{shown} does not describe a run", "choose another folder with -o")
    return dict(run)
