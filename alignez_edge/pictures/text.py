"""Pictures as text: bars, grids of marks and tables of numbers, for a terminal or a plain page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from alignez_edge.files.text import printable
from alignez_edge.pictures.drawing import Chart, Curve, Heat, Picture, signed

_MARKS = "ox+*#@%"
_BAR, _ROWS = 20, 16
"""Columns of a bar to either side of its zero; rows of a grid of marks."""
MOST_LINES = 200
"""Lines of one panel; what is longer is cut and said so."""


def drawn(picture: Picture, width: int = 80) -> str:
    """The picture in lines of at most about `width` columns."""
    blocks = [printable(picture.title, 400)]
    for panel in picture.panels:
        lines = list(_cells(panel) if isinstance(panel, Heat) else _curves(panel, width))
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [f"  ({len(lines) - MOST_LINES} more lines)"]
        blocks.append("\n".join([*([_name(panel.title)] if panel.title else []), *lines]))
    return "\n\n".join(blocks)


def _curves(chart: Chart, width: int) -> Iterator[str]:
    if chart.square:
        yield from _marks(chart, width)
        return
    yield f"  {_name(chart.y_label)}, by {_name(chart.x_label)}"
    numbers = [abs(y) for c in chart.curves for y in c.y if math.isfinite(y)]
    scale = max([*numbers, *(abs(level) for _, level in chart.levels)], default=0.0) or 1.0
    below = any(y < 0 for c in chart.curves for y in c.y) or any(y < 0 for _, y in chart.levels)
    for curve in chart.curves:
        if len(chart.curves) > 1:
            yield f"  {_name(curve.name)}"
        names = [_position(chart, x) for x in curve.x]
        wide = max(map(len, names), default=0)
        for at, (name, y) in enumerate(zip(names, curve.y, strict=True)):
            ends = f" [{_number(curve.low[at])}, {_number(curve.high[at])}]" if curve.low else ""
            yield f"  {name:>{wide}}  {_bar(y / scale, below)}  {_number(y)}{ends}"
    for name, level in chart.levels:
        yield f"  {_name(name)}: {_number(level)}"


def _marks(chart: Chart, width: int) -> Iterator[str]:
    """Points as marks in a grid, a mark for each name."""
    names = list(dict.fromkeys(curve.name for curve in chart.curves))
    across, up = _ends(chart.curves, 0), _ends(chart.curves, 1)
    columns = max(20, min(width, 100) - 6)
    field = [[" "] * columns for _ in range(_ROWS)]
    for curve in chart.curves:
        mark = _MARKS[names.index(curve.name) % len(_MARKS)]
        for x, y in zip(curve.x, curve.y, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                column = round((x - across[0]) / (across[1] - across[0]) * (columns - 1))
                row = round((up[1] - y) / (up[1] - up[0]) * (_ROWS - 1))
                field[row][column] = mark
    yield f"  {_name(chart.y_label)} upwards, {_number(up[0])} to {_number(up[1])}"
    yield from (f"  |{''.join(row)}".rstrip() for row in field)
    yield f"  +{'-' * columns}"
    yield f"  {_name(chart.x_label)} to the right, {_number(across[0])} to {_number(across[1])}"
    for at, name in enumerate(names):
        yield f"  {_MARKS[at % len(_MARKS)]} {_name(name)}"


def _ends(curves: Sequence[Curve], which: int) -> tuple[float, float]:
    """The least and the largest finite coordinate, some room apart."""
    values = [v for c in curves for v in (c.x, c.y)[which] if math.isfinite(v)] or [0.0]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _cells(heat: Heat) -> Iterator[str]:
    yield f"  {_name(heat.unit)}; down: {_name(heat.y_label)}, across: {_name(heat.x_label)}"
    rows = list(zip(heat.y_names, heat.values, strict=True))
    if heat.upwards:
        rows.reverse()
    heads = [printable(name, 12) for name in heat.x_names]
    sides = [printable(name, 20) for name, _ in rows]
    wide = max(map(len, sides), default=0)
    each = [max(5, len(head)) for head in heads]
    yield f"  {'':{wide}}  " + "  ".join(f"{h:>{w}}" for h, w in zip(heads, each, strict=True))
    for side, (_, numbers) in zip(sides, rows, strict=True):
        cells = (f"{signed(x):>{w}}" for x, w in zip(numbers, each, strict=True))
        yield f"  {side:>{wide}}  " + "  ".join(cells)


def _bar(share: float, both: bool) -> str:
    """A share in [-1, 1] as a bar; with room to the left where anything may be negative."""
    length = 0 if math.isnan(share) else round(min(max(share, -1.0), 1.0) * _BAR)
    right = f"|{'#' * max(length, 0):.<{_BAR}}"
    return f"{'#' * max(-length, 0):.>{_BAR}}{right}" if both else right


def _position(chart: Chart, x: float) -> str:
    if chart.x_names:
        return printable(chart.x_names[int(x)], 20)
    return f"{x:.4g}".replace("-", "−")


def _number(value: float) -> str:
    """A number in as many digits as its size needs."""
    if not math.isfinite(value):
        return "n/a"
    digits = 2 if abs(value) >= 1 or not value else min(4, 2 - math.floor(math.log10(abs(value))))
    return signed(value, digits)


def _name(text: str) -> str:
    return printable(text, 60)
