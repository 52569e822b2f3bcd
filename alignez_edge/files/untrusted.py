"""Typed access to the metadata of an untrusted profile file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignez_edge.files.text import MAX_TEXT, is_unprintable, printable


class Keys:
    """Typed access to untrusted metadata; raises `ValueError` that names the key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def __contains__(self, key: str) -> bool:
        return key in self._metadata

    def _get(self, key: str) -> Any:
        if key not in self._metadata:
            raise ValueError(f"the key {key} is missing")
        return self._metadata[key]

    def text(self, key: str, needed: bool = False) -> str:
        value = self._get(key) if needed else self._metadata.get(key, "")
        check_text(key, value)
        return str(value)

    def number(self, key: str) -> int:
        value = self._get(key)
        if type(value) is not int:
            raise ValueError(f"{key} is not a whole number")
        return value

    def flag(self, key: str) -> bool:
        """Yes or no."""
        value = self._get(key)
        if type(value) is not bool:
            raise ValueError(f"{key} is not yes or no")
        return value

    def real(self, key: str) -> float:
        value = self._get(key)
        if type(value) is not float:
            raise ValueError(f"{key} is not a floating-point number")
        return value

    def integers(self, key: str) -> list[int]:
        value = self._get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise ValueError(f"{key} is not a list of whole numbers")
        if len(value) > 10_000:
            raise ValueError(f"{key} has {len(value):,} entries")
        return [int(entry) for entry in value]

    def curve(self, key: str) -> float | tuple[float, ...]:
        value = self._get(key)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and len(value) <= MAX_NUMBERS:
            return tuple(float(entry) for entry in value)
        return self.real(key)

    def table(self, key: str, kind: type) -> dict[str, Any]:
        text = self._metadata.get(key, "{}")
        if not isinstance(text, str) or len(text) > MAX_REPORT:
            raise ValueError(f"{key} is not a text of at most {MAX_REPORT:,} characters")
        try:
            value = json.loads(text, parse_constant=_refuse)
        except ValueError:
            raise ValueError(f"{key} is not JSON") from None
        if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
            raise ValueError(f"{key} is not a table of the expected kind")
        return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


Numbers = tuple[float, ...]
LARGEST = 1e9
"""What is larger is nonsense, and more than a picture can show."""


def numbers(values: Any, size: int) -> Numbers:
    """`size` numbers below `LARGEST`; raises `TypeError` or `ValueError` on anything else."""
    if not isinstance(values, list | tuple) or len(values) != size:
        raise ValueError(f"not a list of {size} numbers")
    if not all(type(x) in (int, float) and abs(x) < LARGEST for x in values):
        raise ValueError("not numbers")
    return tuple(map(float, values))


MAX_REPORT = 1 << 20  # characters of JSON
MAX_NUMBERS = 1000  # points of a calibration curve


def to_json(value: Mapping[str, Any]) -> str:
    """A table as JSON, equal tables as equal texts; raises `ValueError` on numbers like nan."""
    return json.dumps(dict(value), sort_keys=True, allow_nan=False)


def check_text(key: str, value: object) -> None:
    """Raise `ValueError` unless `value` is a printable line of bounded length."""
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a text")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{key} is longer than {MAX_TEXT:,} characters")
    if any(is_unprintable(char) for char in value):
        raise ValueError(f"{key} holds control characters: {printable(value, 60)!r}")
