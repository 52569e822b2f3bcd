"""Results of a long run, each kept in a file as soon as it is there, so that the run can go on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Kept:
    """Records by key, one a line in a JSON-lines file. A line that a kill has torn is cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: dict[str, dict[str, Any]] = {}
        for line in self._lines():
            row = json.loads(line)
            self.records[row.pop("key")] = row

    def add(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep these; on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            for key, record in records.items():
                file.write(json.dumps({"key": key, **record}, ensure_ascii=False) + "\n")
                self.records[key] = dict(record)

    def _lines(self) -> Iterator[str]:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._path.write_bytes(whole)
        yield from whole.decode("utf-8").splitlines()


def key_of(*facts: Any) -> str:
    """What a result is known by: all that it depends on."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


class Estimate:
    """How long `total` pieces of work will still take, by those that are done."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._begin = total, 0, time.monotonic()

    def skip(self, pieces: int) -> None:
        """So many were there already."""
        self._total -= pieces

    def after(self, pieces: int) -> str:
        """The same once `pieces` more are done: "12 of 40; about 30 s left"."""
        self._done += pieces
        rest = (time.monotonic() - self._begin) / self._done * (self._total - self._done)
        return f"{self._done} of {self._total}; about {rest:.0f} s left"
