"""Untrusted texts, made fit for a terminal."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable

MAX_TEXT = 2000
"""Characters of one text of a person: a wording, a query, a description."""
# Joiners are format characters that ordinary Persian, Hindi and emoji text needs.
_JOINERS = "\u200c\u200d"


def is_unprintable(char: str) -> bool:
    """Whether `char` could move the cursor, hide, or reorder the text around it."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS


def printable(text: str, limit: int = 200) -> str:
    """`text` on one line of at most `limit` characters, control and bidi characters escaped."""
    return _escaped(text, limit, lambda char: not is_unprintable(char))


def printable_name(name: str | bytes, limit: int = 60) -> str:
    """A name or a word out of a model file or of llama.cpp, as `printable`, but stricter: joiners,
    odd spaces and characters of no meaning are escaped as well, which people's texts need and
    names do not. Bytes that are no UTF-8 are escaped."""
    if isinstance(name, bytes):
        name = name[: 4 * limit].decode("utf-8", "backslashreplace")
    return _escaped(name, limit, str.isprintable)


def _escaped(text: str, limit: int, may_stay: Callable[[str], bool]) -> str:
    cut = text[: limit + 1]
    safe = "".join(char if may_stay(char) else ascii(char)[1:-1] for char in cut)
    return safe if len(safe) <= limit else safe[: max(limit - 1, 0)] + "…"


def near_hint(word: str, known: Iterable[str], noun: str) -> str:
    """A hint that names what `word` was probably meant to be, or all that is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known {noun}: {', '.join(names)}"
