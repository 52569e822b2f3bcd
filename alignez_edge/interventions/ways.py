"""The ways in which a steering gets into a model; `steering/binding.py` says what they do."""

from __future__ import annotations

from typing import Literal, get_args

Way = Literal["auto", "control-vector", "exact", "reference"]
WAYS: tuple[Way, ...] = get_args(Way)
