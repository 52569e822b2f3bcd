"""A person who judges at the terminal: two answers, one key and Enter."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..layout import compared, terminal_width
from ..output import escaped, tell

if TYPE_CHECKING:
    from alignez_edge.judges.judging import Comparison

_KEYS = {"1": 1.0, "2": -1.0, "0": 0.0}


def ask(asked: Comparison) -> float:
    """Show the two answers on standard error and read which is better: 1, −1 or 0 for a tie.

    Raises `KeyboardInterrupt` for `q` and at the end of the input: whoever keeps the verdicts goes
    on from there another time.
    """
    from alignez_edge.preferences.prompts import trait, with_article

    role = with_article(trait(asked.axis, asked.side))
    tell(f"\n{escaped(asked.query)}\n")
    tell(compared(("1", "2"), (escaped(asked.first), escaped(asked.second)), terminal_width()))
    tell(f"\nWhich is more like an answer of {escaped(role)} assistant?")
    while True:
        tell("1, 2, 0 for a tie, q to stop: ", end="")
        line = sys.stdin.readline()
        key = line.strip().lower()
        if key in _KEYS:
            return _KEYS[key]
        if not line or key == "q":
            raise KeyboardInterrupt
