"""Pictures as values, and as PNG or SVG.

A picture says what is seen: panels of curves or of cells, with their titles, units and intervals.
`pictures_profile.py` and `pictures_run.py` make pictures of profiles and of evaluations; the bytes
come from matplotlib here, and a terminal's version from the command line.

Whatever is told apart by colour is also told apart by its marker and its dashes, so that a picture
can be printed in grey and read by colour-blind eyes. Equal pictures give equal bytes with the same
matplotlib. Names in a picture are untrusted: they are cut, escaped and never read as
markup.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.text import printable
from alignez_edge.files.writing import write_atomic

Numbers = tuple[float, ...]
Format = Literal["png", "svg"]
FORMATS: tuple[Format, ...] = ("png", "svg")

# Okabe and Ito's palette: told apart by colour-blind eyes, and by its lightness in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_LOOKS: tuple[tuple[str, Any, str], ...] = (
    (BLUE, "-", "o"),
    (ORANGE, "--", "s"),
    (GREEN, "-.", "^"),
    ("#CC79A7", (0, (1, 1)), "D"),
    ("#E69F00", (0, (5, 1)), "v"),
    ("#000000", (0, (3, 1, 1, 1)), "P"),
    ("#56B4E9", (0, (8, 2)), "X"),
)
"""Colour, dashes and marker of the first, second ... name in a picture."""
PLAIN = "plain"
"""The name of a level that is always drawn grey and dotted."""
_HASH_SALT = "alignez-edge"
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "svg.hashsalt": _HASH_SALT,
}
_DPI = 160
_ANNOTATED = 12
"""Cells a side up to which their numbers are written into them."""
_NAME_LENGTH = 40
_BESIDE = ((1, 1), (-1, -1), (1, -1), (-1, 1))
"""On which side of its points the first, second ... curve has its labels."""


@dataclass(frozen=True)
class Curve:
    """Numbers `y` at `x`, of equal lengths, with 95 % intervals where `low` and `high` are given.

    Joined in their order, or as points. What is `nan` is left out. `labels` are written beside the
    points.
    """

    name: str
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    joined: bool = True
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A panel of curves over one axis; `levels` are horizontal lines by name.

    With `x_names` the numbers 0, 1, ... of `x` stand for these names. `y_range` fixes the ends of
    the vertical axis; `square` makes both axes equally long per unit.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, float], ...] = ()
    x_names: tuple[str, ...] = ()
    y_range: tuple[float, float] | None = None
    square: bool = False


@dataclass(frozen=True)
class Heat:
    """A panel of cells: `values[row][column]`, the first row at the bottom if `upwards`.

    Colours reach from `low` to `high`; `unit` says what they measure.
    """

    title: str
    x_label: str
    y_label: str
    x_names: tuple[str, ...]
    y_names: tuple[str, ...]
    values: tuple[Numbers, ...]
    unit: str
    low: float = -1.0
    high: float = 1.0
    upwards: bool = True


Panel = Chart | Heat


@dataclass(frozen=True)
class Picture:
    """Rows of panels under a title that says what is seen.

    `notes` are lines on what could not be drawn, and why. In all panels one name has one look.
    """

    title: str
    rows: tuple[tuple[Panel, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def panels(self) -> Iterator[Panel]:
        """All panels, row by row."""
        return (panel for row in self.rows for panel in row)


def format_of(path: str | Path) -> Format:
    """The format that a file's name asks for; raises `BadInputError` on any but `FORMATS`."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    for known in FORMATS:
        if suffix == known:
            return known
    raise BadInputError(
        f"cannot draw {printable(str(path))}: a picture is a .png or a .svg file",
        hint="name it like picture.png",
    )


def save(picture: Picture, path: str | Path) -> None:
    """Write the picture in the format that the name of the file asks for.

    Raises `BadInputError` for other formats and `AlignezError` if the file cannot be written or
    matplotlib is missing.
    """
    write_atomic(path, rendered(picture, format_of(path)))


def rendered(picture: Picture, kind: Format) -> bytes:
    """The picture as a file's bytes, the same for the same picture."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise AlignezError(
            "drawing needs matplotlib, which is not installed",
            hint="pip install 'alignez-edge[plot]'",
        ) from None
    looks = _looks(picture)
    # The default style first: a user's own settings would change the bytes.
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes: nothing to warn of.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        n_columns = max(map(len, picture.rows))
        sizes = [[_size(panel, n_columns) for panel in row] for row in picture.rows]
        width = max(5.4, *(sum(size[0] for size in row) for row in sizes))
        height = sum(max(size[1] for size in row) for row in sizes) + 0.8
        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        grid = figure.subplots(len(picture.rows), n_columns, squeeze=False)
        for row, places in zip(picture.rows, grid, strict=True):
            for at, panel in enumerate(row):
                _draw(places[at], panel, looks, sizes[0][0][0])
                before, after = row[:at][-1:], row[at + 1 :][:1]
                if any(panel.y_label == other.y_label for other in before):
                    places[at].set_ylabel("")
                if isinstance(panel, Heat) and not any(_same_scale(panel, x) for x in after):
                    _colour_bar(places[at], panel)
            for place in places[len(row) :]:
                place.remove()
        figure.suptitle(textwrap.fill(_name(picture.title, 400), int(width * 10)), fontsize=13)
        _legend(figure, looks, width)
        target = io.BytesIO()
        # The time and the version that made it would differ from run to run.
        metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(target, format=kind, metadata=metadata)
    return target.getvalue()


def _looks(picture: Picture) -> dict[str, tuple[str, Any, str]]:
    """Colour, dashes and marker by name, in the order of first appearance; levels last."""
    charts = [panel for panel in picture.panels if isinstance(panel, Chart)]
    names = [curve.name for chart in charts for curve in chart.curves]
    names += [name for chart in charts for name, _ in chart.levels]
    known = [name for name in dict.fromkeys(names) if name != PLAIN]
    looks = {name: _LOOKS[i % len(_LOOKS)] for i, name in enumerate(known)}
    return looks | ({PLAIN: (GREY, ":", "")} if PLAIN in names else {})


def _size(panel: Panel, n_columns: int) -> tuple[float, float]:
    """Inches to the right and upwards; smaller where many panels must be read on one page."""
    if isinstance(panel, Heat):
        wide, tall = len(panel.x_names), len(panel.y_names)
        names = max(map(len, map(_name, panel.y_names)), default=0)
        cell = (0.55 if n_columns < 3 else 0.46) if max(wide, tall) <= _ANNOTATED else 0.25
        beside = (2 if n_columns < 3 else 1.1) + 0.09 * names
        return beside + min(max(1.2, cell * wide), 12), 1.6 + min(max(1.3, cell * tall), 12)
    if n_columns < 3:
        return (4.6, 4.4) if panel.square else (4.6, 3.0)
    return (3.3, 3.4) if panel.square else (3.3, 2.7)


def _same_scale(heat: Heat, other: Panel) -> bool:
    """Whether one bar of colours says what both cells' colours mean."""
    return isinstance(other, Heat) and (
        (heat.unit, heat.low, heat.high) == (other.unit, other.low, other.high)
    )


def _draw(place: Any, panel: Panel, looks: dict[str, tuple[str, Any, str]], width: float) -> None:
    place.set_title(textwrap.fill(_name(panel.title, 200), int(10 * width)))
    place.set_xlabel(textwrap.fill(_name(panel.x_label, 80), int(11 * width)))
    place.set_ylabel(textwrap.fill(_name(panel.y_label, 80), 36))
    if isinstance(panel, Heat):
        _draw_cells(place, panel)
    else:
        _draw_curves(place, panel, looks)


def _draw_curves(place: Any, chart: Chart, looks: dict[str, tuple[str, Any, str]]) -> None:
    for name, level in chart.levels:
        colour, dashes, _ = looks[name]
        place.axhline(level, color=colour, ls=dashes, lw=1.8, label=name)
    apart = _apart(chart)
    for number, curve in enumerate(chart.curves):
        colour, dashes, marker = looks[curve.name]
        line = {"color": colour, "marker": marker, "ms": 5.5 if curve.joined else 6.5}
        line |= {"ls": dashes if curve.joined else "", "lw": 2.0, "label": curve.name}
        if curve.low:
            # Intervals side by side: on top of each other they cannot be told apart.
            beside = [at + (number - (len(chart.curves) - 1) / 2) * apart for at in curve.x]
            errors = [
                [max(0.0, y - low) for y, low in zip(curve.y, curve.low, strict=True)],
                [max(0.0, high - y) for y, high in zip(curve.y, curve.high, strict=True)],
            ]
            place.errorbar(beside, curve.y, yerr=errors, capsize=3, elinewidth=1.2, **line)
        else:
            place.plot(curve.x, curve.y, **line)
        across, up = _BESIDE[number % len(_BESIDE)]
        for x, y, label in zip(curve.x, curve.y, curve.labels, strict=False):
            place.annotate(
                _name(label), (x, y), (5 * across, 5 * up), textcoords="offset points",
                ha="left" if across > 0 else "right", va="bottom" if up > 0 else "top",
                fontsize=9, color=colour,
            )  # fmt: skip
    if chart.x_names:
        place.set_xticks(range(len(chart.x_names)), [_name(name) for name in chart.x_names])
        place.set_xlim(-0.5, len(chart.x_names) - 0.5)
    if chart.y_range:
        place.set_ylim(*chart.y_range)
    if chart.square:
        place.set_aspect("equal", adjustable="datalim")
    place.grid(color="0.9")
    place.set_axisbelow(True)


def _apart(chart: Chart) -> float:
    """How far the curves' points are drawn apart, in units of the horizontal axis."""
    if chart.x_names:
        return 0.5 / max(1, len(chart.curves))
    places = [x for curve in chart.curves for x in curve.x if math.isfinite(x)]
    return 0.012 * (max(places) - min(places)) if places else 0.0


def _draw_cells(place: Any, heat: Heat) -> None:
    origin = "lower" if heat.upwards else "upper"
    place.imshow(
        heat.values, origin=origin, cmap="cividis", vmin=heat.low, vmax=heat.high, aspect="equal"
    )
    if max(len(heat.x_names), len(heat.y_names)) <= _ANNOTATED:
        for row, numbers in enumerate(heat.values):
            for column, value in enumerate(numbers):
                # Cividis rises in lightness: dark letters on its upper half.
                bright = (value - heat.low) / (heat.high - heat.low) > 0.55
                colour = "black" if bright else "white"
                text = signed(value)
                place.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    long = max(map(len, heat.x_names), default=0) > 5
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}
    place.set_xticks(range(len(heat.x_names)), [_name(x) for x in heat.x_names], **turned)
    place.set_yticks(range(len(heat.y_names)), [_name(y) for y in heat.y_names])


def _colour_bar(place: Any, heat: Heat) -> None:
    image, label = place.images[0], _name(heat.unit, 80)
    place.figure.colorbar(image, ax=place, label=label, fraction=0.046, pad=0.04)


def _legend(figure: Any, looks: dict[str, Any], width: float) -> None:
    """One legend for all panels, in the order of the looks; none where there is one name only."""
    found: dict[str, Any] = {}
    for place in figure.axes:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if len(found) < 2:
        return
    names = [name for name in looks if name in found]
    shown = [_name(name) for name in names]
    columns = max(1, min(len(names), int(width / (0.085 * max(map(len, shown)) + 0.65))))
    figure.legend(
        [found[name] for name in names], shown, loc="outside lower center", ncols=columns,
        frameon=False,
    )  # fmt: skip


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign; `n/a` for what is none."""
    if not math.isfinite(value):
        return "n/a"
    # Rounded first, and 0.0 added, so that nothing reads as −0.00.
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _name(text: str, limit: int = _NAME_LENGTH) -> str:
    return printable(text, limit)
