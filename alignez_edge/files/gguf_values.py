"""Values out of the header of a GGUF file, each checked against the size of the file before it is
read: nothing is allocated or looped over that the file does not hold."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from alignez_edge.errors import AlignezError
from alignez_edge.files.text import printable_name

MAX_STRINGS = 1 << 21
"""Of all arrays together: far above what any model has (1 M tokens and merges), and read in a
second or two."""
MAX_TEXT = 1 << 26
"""Bytes of all single strings of a header together; whole tokenizers of 30 MB have been seen."""
INCOMPLETE = "the download may be incomplete: fetch the file again"

_SCALARS: dict[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class StringArray(Sequence[str]):
    """An array of strings as it lies in the file, each string decoded when it is asked for.

    `raw` is the encoded array (a 64-bit length before each string): what a digest is taken of.
    """

    def __init__(self, raw: bytes, starts: npt.NDArray[np.int64]) -> None:
        self.raw = raw
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def encoded(self, index: int) -> bytes:
        """The bytes of one string."""
        start = int(self._starts[index])
        (length,) = struct.unpack_from("<Q", self.raw, start - 8)
        return self.raw[start : start + length]

    def all_encoded(self) -> list[bytes]:
        """The bytes of all strings, much faster than one by one."""
        starts = self._starts.tolist()
        ends = [*(start - 8 for start in starts[1:]), len(self.raw)]
        return [self.raw[a:b] for a, b in zip(starts, ends, strict=False)]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.encoded(index).decode("utf-8", "backslashreplace")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


class HeaderValues:
    """One pass over the values of a header. `at` never leaves the file: every step asks `_take`.

    Raises `error` with `shown`, the file's name, in front.
    """

    def __init__(self, data: mmap.mmap, size: int, shown: str, error: type[AlignezError]) -> None:
        self._data, self.size = data, size
        self._shown, self._error = shown, error
        self.at = 0
        self._texts_left, self._strings_left = MAX_TEXT, MAX_STRINGS

    def fail(self, what: str, hint: str | None = None) -> AlignezError:
        """The error to raise, with the file in front."""
        return self._error(f"{self._shown}: {what}", hint)

    def first(self, n: int) -> bytes:
        """The first `n` bytes, fewer where the file has no more, stepped over."""
        self.at = min(n, self.size)
        return self._data[: self.at]

    def _take(self, length: int, what: str) -> int:
        """Step over `length` bytes and return where they began."""
        start = self.at
        if length > self.size - start:
            raise self.fail(f"the file ends inside {what} (it has {self.size} bytes)", INCOMPLETE)
        self.at = start + length
        return start

    def scalar(self, code: str, what: str) -> Any:
        """One number in the format `code` of the module struct; `what` it is, for errors."""
        start = self._take(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self._data, start)[0]

    def _bytes(self, limit: int, what: str) -> bytes:
        length = self.scalar("Q", what)
        start = self._take(length, what)
        if length > limit:
            raise self.fail(f"{what} has {length} bytes; at most {limit} are allowed")
        return self._data[start : start + length]

    def name(self, limit: int, what: str) -> str:
        """A UTF-8 string of at most `limit` bytes."""
        raw = self._bytes(limit, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8: '{printable_name(raw)}'") from None

    def value(self, what: str) -> Any:
        """A value of a type that stands in front of it."""
        kind = self.scalar("I", what)
        if kind == _STRING:
            text = self._bytes(self._texts_left, what)
            self._texts_left -= len(text)
            return text.decode("utf-8", "backslashreplace")
        if kind == _ARRAY:
            return self._array(what)
        if kind not in _SCALARS:
            raise self.fail(f"{what} has the unknown type {kind}")
        return self.scalar(_SCALARS[kind], what)

    def _array(self, what: str) -> Any:
        kind, length = self.scalar("I", what), self.scalar("Q", what)
        if kind == _STRING:
            return self._strings(length, what)
        if kind not in _SCALARS:
            named = "arrays" if kind == _ARRAY else f"the unknown type {kind}"
            raise self.fail(f"{what} is an array of {named}")
        kind_of = np.dtype("<u1" if _SCALARS[kind] == "?" else "<" + _SCALARS[kind])
        start = self._take(length * kind_of.itemsize, what)
        values = np.frombuffer(self._data[start : self.at], kind_of)
        return values.astype(bool) if _SCALARS[kind] == "?" else values

    def _strings(self, length: int, what: str) -> StringArray:
        if length > (self.size - self.at) // 8:
            raise self.fail(f"{what} announces {length} strings, more than fit", INCOMPLETE)
        if length > self._strings_left:
            raise self.fail(f"{what} has {length} strings; at most {MAX_STRINGS} are allowed")
        self._strings_left -= length
        begin = at = self.at
        starts = np.empty(length, np.int64)
        unpack, data, last = struct.Struct("<Q").unpack_from, self._data, self.size - 8
        for i in range(length):  # the one hot loop: 150,000 tokens take 40 ms
            if at > last:
                break
            starts[i] = at + 8 - begin
            at += 8 + unpack(data, at)[0]
        else:
            if at <= self.size:
                self.at = at
                return StringArray(data[begin:at], starts)
        raise self.fail(f"the file ends inside {what} (it has {self.size} bytes)", INCOMPLETE)
