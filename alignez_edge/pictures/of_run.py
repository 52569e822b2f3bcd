"""Pictures of evaluations: out of a run folder alone, without a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence

from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.measures import Figure
from alignez_edge.evaluation.outcome import NOTHING, Outcome, Row
from alignez_edge.files.text import printable
from alignez_edge.pictures.drawing import PLAIN, Chart, Curve, Heat, Panel, Picture

SCORE, NET_WIN = "score of the axis", "net win, positive side (%)"
NATS = "nats per token above plain"
KL = "KL from the plain model (nats per token)"
ASKED = {"positive": "asked, positive side", "negative": "asked, negative side"}
MOST_PANELS = 6
"""Columns of a picture that can still be read."""
MOST_VALUES, MOST_CURVES = 48, 7
_ZERO = Figure(0.0, 0.0, 0.0)


def strength_of_run(outcome: Outcome) -> Picture:
    """Score, cost and KL over strength, a column for each profile.

    Raises `BadInputError` if the run has no profile at several strengths, or with strength 0
    at one and plain answers beside it.
    """
    rows = [row for row in outcome.steered if len(row.terms) == 1 and _is_plain_sweep(row)]
    names = list(dict.fromkeys(row.profile for row in rows))
    if not names:
        raise BadInputError("the run has no profile that is used alone")
    shown = names[:MOST_PANELS]
    columns = [_strength_column(outcome, [r for r in rows if r.profile == n]) for n in shown]
    return Picture(
        f"{_of(outcome)}: score, cost and KL over strength, 95\u00a0% intervals",
        _arranged(columns),
        _left_out(names),
    )


def sweep_of_run(outcome: Outcome) -> Picture:
    """Net win or score, and cost, over every setting that the run swept: the papers' ablations.

    Raises `BadInputError` if it swept none.
    """
    rows = [row for row in outcome.steered if len(row.terms) == 1 and row.sweep]
    settings = list(dict.fromkeys(key for row in rows for key in row.sweep if key != "strength"))
    if not settings:
        raise BadInputError("the run swept no setting")
    columns = [
        _sweep_column(outcome, key, [row for row in rows if key in row.sweep])
        for key in settings[:MOST_PANELS]
    ]
    names = ", ".join(printable(key, 40) for key in settings)
    return Picture(
        f"{_of(outcome)}: over {names}, 95\u00a0% intervals",
        _arranged(columns),
        _left_out(settings),
    )


def grid_of_run(outcome: Outcome) -> Picture:
    """Both scores over both strengths, and where the cells lie in the plane of both scores.

    Raises `BadInputError` if the run has no grid of two profiles.
    """
    rows = [row for row in outcome.steered if len(row.terms) == 2]
    rows = [row for row in rows if row.axis in (name for name, _ in row.terms)]
    pairs = list(dict.fromkeys(tuple(name for name, _ in row.terms) for row in rows))
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    if not pairs:
        raise BadInputError("the run has no grid of two profiles")
    shown = pairs[:MOST_PANELS]
    rows_ = [_grid_row([r for r in rows if tuple(n for n, _ in r.terms) == p]) for p in shown]
    names = "; ".join(" and ".join(printable(name, 40) for name in pair) for pair in shown)
    return Picture(
        f"{_of(outcome)}: {names} at once, over both strengths",
        tuple(rows_),
        _left_out([" and ".join(pair) for pair in pairs]),
    )


def picture_of_run(outcome: Outcome, kind: str) -> Picture:
    """The picture of one of `KINDS`; raises `BadInputError`, saying what there is, if the run
    has nothing for it."""
    try:
        return KINDS[kind](outcome)
    except BadInputError as failure:
        others = ", ".join(pictures_of_run(outcome))
        raise BadInputError(
            failure.message, f"this run has: {others}" if others else None
        ) from None


def pictures_of_run(outcome: Outcome) -> dict[str, Picture]:
    """All pictures that can be drawn of a run, by their kind."""
    found = {}
    for kind, make in KINDS.items():
        with contextlib.suppress(BadInputError):
            found[kind] = make(outcome)
    return found


def _strength_column(outcome: Outcome, rows: Sequence[Row]) -> tuple[Chart, ...]:
    axis, profile = rows[0].axis, rows[0].profile
    rows = sorted((row for row in rows if row.axis == axis), key=lambda row: row.strength)
    asked = {row.side: row for row in outcome.rows if row.kind == "asked" and row.axis == axis}
    measure, label, plain = _measure(rows, outcome)
    prompted = {r.arm: r for r in outcome.rows if r.kind == "prompted" and r.axis == axis}
    levels = [(PLAIN, plain.mean)]
    levels += [(ASKED[side], measure(asked[side]).mean) for side in ASKED if side in asked]
    levels += [(name, measure(row).mean) for name, row in prompted.items()][:MOST_CURVES]
    systems = list(dict.fromkeys(row.system for row in rows))[:MOST_CURVES]
    panels = []
    for title, name, read, at_zero, lines in (
        (f"{printable(profile, 40)}: effect", label, measure, plain, levels),
        ("cost", NATS, lambda row: row.nats, _ZERO, [(PLAIN, 0.0)]),
        ("KL", KL, _kl, _ZERO, [(PLAIN, 0.0)]),
    ):
        curves = []
        for system in systems:
            points = {row.strength: read(row) for row in rows if row.system == system}
            if not system:
                points.setdefault(0.0, at_zero)
            curves.append(_curve(_with_system("steered", system), sorted(points.items())))
        panels.append(
            Chart(
                title, "strength (1: as calibrated)", name,
                tuple(curves), _known(lines),
            )
        )  # fmt: skip
    return tuple(panels)


def _sweep_column(outcome: Outcome, key: str, rows: Sequence[Row]) -> tuple[Chart, ...]:
    values = list(dict.fromkeys(row.sweep[key] for row in rows))
    names = () if all(isinstance(value, float) for value in values) else tuple(map(str, values))
    if len(names) > MOST_VALUES:
        raise BadInputError(f"more than {MOST_VALUES} values of {printable(key, 40)} were swept")
    series = list(dict.fromkeys(_series(row, key) for row in rows))[:MOST_CURVES]
    axes = {row.axis for row in rows}
    measure, label, plain = _measure(rows, outcome)
    levels = [(PLAIN, plain.mean)] if len(axes) == 1 or label == NET_WIN else []
    panels = []
    for title, name, read, lines in (
        ("effect", label, measure, levels),
        ("cost", NATS, lambda row: row.nats, [(PLAIN, 0.0)]),
    ):
        curves = []
        for one in series:
            points = {
                (float(values.index(row.sweep[key])) if names else float(row.sweep[key])): read(row)
                for row in rows
                if _series(row, key) == one
            }
            curves.append(_curve(one, sorted(points.items()), joined=not names))
        what = f"{title} over {printable(key, 40)}"
        panels.append(Chart(what, printable(key, 40), name, tuple(curves), _known(lines), names))
    return tuple(panels)


def _grid_row(rows: Sequence[Row]) -> tuple[Panel, ...]:
    axes = [name for name, _ in rows[0].terms]
    first, second = (sorted({row.terms[i][1] for row in rows}) for i in (0, 1))
    if max(len(first), len(second)) > MOST_VALUES:
        raise BadInputError(f"the grid has more than {MOST_VALUES} strengths a side")
    scored = all(math.isfinite(row.own_score.mean) for row in rows)
    found = {
        (row.axis, row.terms[0][1], row.terms[1][1]): (
            row.own_score if scored else row.net_win
        ).mean
        for row in rows
    }
    values = [[[found.get((axis, s, t), math.nan) for t in second] for s in first] for axis in axes]
    return grid_panels(axes, (first, second), values, "score" if scored else "net win (%)")


def grid_panels(
    axes: Sequence[str],
    strengths: tuple[Sequence[float], Sequence[float]],
    values: Sequence[Sequence[Sequence[float]]],
    unit: str = "score",
) -> tuple[Heat, Heat, Chart]:
    """Two axes over two strengths: what either shows, and where the cells lie in their plane.

    `values[axis][i][j]` belongs to the first axis' strength `i` and the second one's `j`. In the
    plane a square net is full control of both.
    """
    first, second = strengths
    finite = (abs(x) for side in values for row in side for x in row if math.isfinite(x))
    scale = max([1.0 if unit == "score" else 100.0, *finite])
    heats = [
        Heat(
            title=f"{unit} of {printable(axis, 40)}",
            x_label=f"strength of {printable(axes[0], 40)}",
            y_label=f"strength of {printable(axes[1], 40)}",
            x_names=tuple(map(_shown, first)),
            y_names=tuple(map(_shown, second)),
            values=tuple(tuple(row[j] for row in side) for j in range(len(second))),
            unit=unit,
            low=-scale,
            high=scale,
        )
        for axis, side in zip(axes, values, strict=True)
    ]
    over_first = [[(i, j) for i in range(len(first))] for j in range(len(second))]
    over_second = [[(i, j) for j in range(len(second))] for i in range(len(first))]
    lines = [
        *(("raising the first strength", line) for line in over_first),
        *(("raising the second strength", line) for line in over_second),
        ("both strengths highest", [(len(first) - 1, len(second) - 1)]),
    ]
    net = [
        Curve(
            name,
            tuple(values[0][i][j] for i, j in line),
            tuple(values[1][i][j] for i, j in line),
            joined=len(line) > 1,
        )
        for name, line in lines
    ]
    across, up = (f"{unit} of {printable(axis, 40)}" for axis in axes)
    title = "the cells in the plane of both"
    return heats[0], heats[1], Chart(title, across, up, tuple(net), square=True)


def _arranged(columns: Sequence[tuple[Chart, ...]]) -> tuple[tuple[Chart, ...], ...]:
    """Columns as rows of a picture; a single column lies down."""
    return tuple(zip(*columns, strict=True)) if len(columns) > 1 else tuple(columns)


def _measure(rows: Iterable[Row], outcome: Outcome) -> tuple[Callable[[Row], Figure], str, Figure]:
    """What is drawn as the effect, its label, and its value for plain answers.

    The score of the axis where the judge gives one, else the net win over plain answers.
    """
    rows = list(rows)
    if all(math.isfinite(row.own_score.mean) for row in rows):
        return lambda row: row.own_score, SCORE, outcome.plain_scores.get(rows[0].axis, NOTHING)
    return lambda row: row.net_win, NET_WIN, _ZERO


def _curve(name: str, points: Sequence[tuple[float, Figure]], joined: bool = True) -> Curve:
    x, figures = zip(*points, strict=True)
    low, high = tuple(f.low for f in figures), tuple(f.high for f in figures)
    known = any(map(math.isfinite, low))
    return Curve(
        name, x, tuple(f.mean for f in figures), low if known else (), high if known else (), joined
    )


def _kl(row: Row) -> Figure:
    return Figure(row.cost("drift"), math.nan, math.nan)


def _known(levels: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    return tuple((name, level) for name, level in levels if math.isfinite(level))


def _is_plain_sweep(row: Row) -> bool:
    return set(row.sweep) <= {"strength"}


def _series(row: Row, key: str) -> str:
    """What tells a curve from the others of a sweep over `key`."""
    others = [f"{k} {_shown(v)}" for k, v in row.sweep.items() if k not in (key, "strength")]
    name = ", ".join([f"{row.axis} {_shown(row.strength)}", *others])
    return _with_system(name, row.system)


def _with_system(name: str, system: str) -> str:
    return f"{name} + {system}" if system else name


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}".replace("-", "−")


def _left_out(names: Sequence[str]) -> tuple[str, ...]:
    rest = [printable(name, 60) for name in names[MOST_PANELS:]]
    return (f"not drawn for lack of room: {', '.join(rest)}",) if rest else ()


def _of(outcome: Outcome) -> str:
    count, seeds = outcome.run.shape[1:]
    return f"{printable(outcome.fact('model'), 60)}, {count} queries × {seeds} answers"


KINDS: dict[str, Callable[[Outcome], Picture]] = {
    "strength": strength_of_run,
    "sweep": sweep_of_run,
    "grid": grid_of_run,
}
"""The pictures of a run by their kind."""
