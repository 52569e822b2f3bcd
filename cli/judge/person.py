"""A person who judges at the terminal: two answers, one key and Enter."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..layout import compared, terminal_width

if TYPE_CHECKING:
    from alignez_edge.judges.judging import Comparison

_KEYS = {"1": 1.0, "2": -1.0, "0": 0.0}


def is_there() -> bool:
    """Whether somebody sits at a terminal who can read and press keys."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(asked: Comparison) -> float:
    """Show the two answers on standard error and read which is better: 1, −1 or 0 for a tie.

    Raises `KeyboardInterrupt` for `q` and at the end of the input: whoever keeps the verdicts goes
    on from there another time.
    """
    from alignez_edge.preferences.prompts import trait, with_article

    role = with_article(trait(asked.axis, asked.side))
    _say(f"\n{_safe(asked.query)}\n")
    _say(compared(("1", "2"), (_safe(asked.first), _safe(asked.second)), terminal_width()))
    _say(f"\nWhich is more like an answer of {_safe(role)} assistant?")
    while True:
        print("1, 2, 0 for a tie, q to stop: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        key = line.strip().lower()
        if key in _KEYS:
            return _KEYS[key]
        if not line or key == "q":
            raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _safe(text: str) -> str:
    """`text` without characters that could move the cursor or reorder what is around them."""
    from alignez_edge.files.text import is_unprintable

    return "".join(ascii(c)[1:-1] if is_unprintable(c) and c not in "\n\t" else c for c in text)
