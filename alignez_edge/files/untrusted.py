"""Typed access to the metadata of a stranger's profile file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignez_edge.profile.profile import MAX_NUMBERS, MAX_REPORT, check_text


class Keys:
    """Typed access to a stranger's metadata; raises `ValueError` that names the key."""

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
