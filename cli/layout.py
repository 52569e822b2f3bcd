"""Text in columns and numbers as bars, for a terminal of a given width."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

from .output import shown

GAP = 3
WIDE = 72  # columns from which answers stand side by side


def terminal_width() -> int:
    """Columns to write in: the terminal's, within what reads well."""
    return max(40, min(shutil.get_terminal_size((80, 24)).columns, 120))


def cells(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def pad(text: str, width: int) -> str:
    """`text` filled up with spaces to `width` columns."""
    return text + " " * (width - cells(text))


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, its own line breaks kept."""
    lines: list[str] = []
    # Escaped before it is measured: an escape takes more columns than its character.
    for line in shown(text).strip().splitlines() or [""]:
        # Wide characters take two columns each: wrap such a line as if all of it were wide.
        room = width // 2 if cells(line) > len(line) else width
        lines += textwrap.wrap(line, room) or [""]
    return lines


def paragraph(text: str) -> str:
    """`text` in lines that a terminal shows whole and that read well."""
    return "\n".join(wrap(text, min(terminal_width(), 80)))


def compared(titles: Sequence[str], texts: Sequence[str], width: int) -> str:
    """Texts side by side where there is room for them and for their titles, else stacked."""
    each = (width - GAP * (len(texts) - 1)) // len(texts)
    fits = width >= WIDE and all(cells(title) <= each for title in titles)
    return (side_by_side if fits else stacked)(titles, texts, width)


def side_by_side(titles: Sequence[str], texts: Sequence[str], width: int) -> str:
    """Texts as columns under their titles, in `width` columns in all."""
    each = (width - GAP * (len(texts) - 1)) // len(texts)
    columns = [
        [title, "-" * each, *wrap(text, each)] for title, text in zip(titles, texts, strict=True)
    ]
    height = max(map(len, columns))
    rows = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    return "\n".join((" " * GAP).join(pad(cell, each) for cell in row).rstrip() for row in rows)


def stacked(titles: Sequence[str], texts: Sequence[str], width: int) -> str:
    """Texts one below the other under their titles."""
    blocks = [
        "\n".join([title, "-" * cells(title), *wrap(text, width)])
        for title, text in zip(titles, texts, strict=True)
    ]
    return "\n\n".join(blocks)


def table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of texts as columns, each as wide as its widest cell."""
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (indent + "  ".join(pad(c, w) for c, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def signed_bar(value: float, half: int = 16) -> str:
    """A number in [-1, 1] as a bar from the middle of `2 * half + 1` columns."""
    length = round(min(max(value, -1.0), 1.0) * half)
    left = "#" * max(-length, 0)
    right = "#" * max(length, 0)
    return f"{left:.>{half}}|{right:.<{half}}"
