"""The hidden states of the pairs, kept in a file and read back one layer at a time.

Memory stays flat as pairs grow: a pair's states go to the file as soon as they are computed, and a
build that was interrupted goes on after the last whole record.

Record of a pair, float32, little-endian: `(side, position, layer, n_embd)` with the sides chosen,
rejected and the positions deciding, answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.errors import AlignezError
from alignez_edge.files.text import printable
from alignez_edge.files.writing import append_whole, make_folder

SIDES = ("chosen", "rejected")
POSITIONS = ("deciding", "answer")


@dataclass(frozen=True)
class Tensor:
    """A tensor that states are read from, and its width."""

    name: TensorName
    n_dims: int


@dataclass(frozen=True, eq=False)
class LayerStates:
    """One layer's states of `n` pairs at one position, each array `(n, n_embd)` float32."""

    chosen: FloatArray
    rejected: FloatArray


class HiddenStates:
    """The states of pairs in a file: append records, then read layers. A context manager.

    `shape` is `(n_layer, n_embd)`. Raises `AlignezError` if the file cannot be written or read.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int]) -> None:
        self.path = Path(path)
        self.shape = shape
        self._row = shape[1] * 4
        self._record = len(SIDES) * len(POSITIONS) * shape[0] * self._row
        make_folder(self.path.parent)
        try:
            self._file = self.path.open("a+b", buffering=0)
            # A record that a kill has torn is computed again.
            self._count = self._file.seek(0, os.SEEK_END) // max(1, self._record)
            self._file.truncate(self._count * self._record)
        except OSError as failure:
            raise self._failed("open", failure) from None

    def __len__(self) -> int:
        return self._count

    def truncate(self, count: int) -> None:
        """Keep the first `count` records only."""
        self._count = min(count, self._count)
        self._file.truncate(self._count * self._record)

    def append(self, deciding: Iterable[FloatArray], answer: Iterable[FloatArray]) -> None:
        """Add one pair: the states of the chosen and of the rejected side, each `shape`."""
        record = np.stack([np.stack(sides) for sides in zip(deciding, answer, strict=True)])
        if record.shape != (len(SIDES), len(POSITIONS), *self.shape):
            raise ValueError(f"a record of shape {record.shape} does not fit {self.shape}")
        data = memoryview(np.ascontiguousarray(record, "<f4").tobytes())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as failure:
            self._file.truncate(self._count * self._record)
            raise self._failed("write", failure) from None
        self._count += 1

    def record(self, row: int) -> tuple[list[FloatArray], list[FloatArray]]:
        """One pair, as `append` takes it."""
        try:
            self._file.seek(row * self._record)
            data = self._file.read(self._record)
        except OSError as failure:
            raise self._failed("read", failure) from None
        found = np.frombuffer(data, "<f4").reshape(len(SIDES), len(POSITIONS), *self.shape)
        return list(found[:, 0]), list(found[:, 1])

    def layer(self, layer: int, position: str, rows: Iterable[int] | None = None) -> LayerStates:
        """The states of one layer at `position`, of the pairs `rows` (default: all)."""
        picked = range(self._count) if rows is None else list(rows)
        sides = [
            np.stack([self._read(row, side, POSITIONS.index(position), layer) for row in picked])
            for side in range(len(SIDES))
        ]
        return LayerStates(*sides)

    def _read(self, row: int, side: int, position: int, layer: int) -> FloatArray:
        cell = (side * len(POSITIONS) + position) * self.shape[0] + layer
        try:
            self._file.seek(row * self._record + cell * self._row)
            data = self._file.read(self._row)
        except OSError as failure:
            raise self._failed("read", failure) from None
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, verb: str, failure: OSError) -> AlignezError:
        return AlignezError(
            f"cannot {verb} {printable(str(self.path))}: {failure.strerror}",
            hint="finished work is kept: start the build again to go on",
        )


class CapturedStates:
    """States that came with the answers as they were written, found by their pair; a context
    manager.

    Beside the file of records stands one of their keys, a line each. The keys of some pairs are
    written once all of their records are there, so that a kill leaves no key without its record.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int]) -> None:
        """Open or begin both files. Raises as `HiddenStates`."""
        self._keys = Path(path).with_suffix(".keys")
        self._states = HiddenStates(path, shape)
        kept = self._keys.read_text("ascii", "replace") if self._keys.exists() else ""
        known = kept[: kept.rfind("\n") + 1].splitlines()[: len(self._states)]
        self._rows = {key: row for row, key in enumerate(known)}
        self._states.truncate(len(known))
        self._keys.write_text("".join(f"{key}\n" for key in known), "ascii")

    def add(self, found: Mapping[str, Sequence[States]]) -> None:
        """Keep pairs by their keys: the states of the chosen and of the rejected side."""
        first = len(self._states)
        for sides in found.values():
            self._states.append([each.deciding for each in sides], [each.answer for each in sides])
        append_whole(self._keys, "".join(f"{key}\n" for key in found).encode("ascii"))
        self._rows |= {key: first + n for n, key in enumerate(found)}

    def get(self, key: str) -> tuple[Sequence[FloatArray], Sequence[FloatArray]] | None:
        """What was kept of a pair, as `HiddenStates.append` takes it."""
        return self._states.record(self._rows[key]) if key in self._rows else None

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._states.close()

    def __enter__(self) -> CapturedStates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class States:
    """Pooled hidden states of one (prompt, answer) text at one tensor.

    `deciding` is the state at the last prompt token, `answer` the mean over the answer's tokens;
    both `(n_layer, n_dims)` float32. `n_answer` counts the tokens of the mean: of a drawn answer
    those that were computed, which the one at which its length ran out is not.
    """

    deciding: FloatArray
    answer: FloatArray
    n_answer: int
