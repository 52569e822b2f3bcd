"""The pairs that a profile carries for `verify.py` to measure again, read as untrusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile
KEY = "check"
N_KEPT = 4
MAX_CHARS = 1500
"""Characters of each text of a pair that is kept; pairs with longer ones are passed over."""
_HUGE = 1e6  # nats per token: no reading has more
_TEXTS = ("query", "chosen", "rejected")


@dataclass(frozen=True)
class KeptPair:
    """A pair that was held back from a profile's directions, and what the profile did to it.

    `margin` and `drift` (KL), in nats per token against the plain model, are at strengths ±1.
    """

    query: str
    chosen: str
    rejected: str
    margin: tuple[float, float]
    drift: tuple[float, float]


def kept_pairs(profile: Profile) -> tuple[KeptPair, ...]:
    """The pairs that a profile carries; none where its report tells of none that are sound.

    A report can come from an untrusted file.
    """
    try:
        entries = profile.report.get(KEY, [])
        if not isinstance(entries, list) or len(entries) > N_KEPT:
            return ()
        return tuple(_kept(value) for value in entries)
    except (KeyError, TypeError, ValueError):
        return ()


def _kept(value: Any) -> KeptPair:
    """An entry of a report; raises `KeyError`, `TypeError` or `ValueError`."""
    for key in _TEXTS:
        text = value[key]
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARS:
            raise ValueError(f"{key} is not a text of bounded length")
        if not _is_text(text):
            raise ValueError(f"{key} holds half a character")
    query, chosen, rejected = (value[key] for key in _TEXTS)
    return KeptPair(query, chosen, rejected, _two(value["margin"]), _two(value["drift"]))


def _is_text(text: str) -> bool:
    """Whether it is whole characters."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _two(values: Any) -> tuple[float, float]:
    first, second = (_number(value) for value in values)
    return first, second


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or not abs(value) < _HUGE:
        raise ValueError("not a number that a reading can have")
    return float(value)
