"""What `benchmarks.steering` found, as tables, as a verdict and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignez_edge.evaluation.measures import Figure
from alignez_edge.files.writing import make_folder
from alignez_edge.pictures.drawing import PLAIN, Chart, Curve, Picture, save
from benchmarks.steering import STRENGTHS

Table = dict[str, Any]
SHARE_WANTED = 0.85
NATS_ALLOWED = 0.1
KNOWLEDGE_ALLOWED = 0.1
SHOWN = {
    "asked negative": "prompted −",
    "asked positive": "prompted +",
    "steered -1": "steered −1",
    "steered +1": "steered +1",
}
"""The arms of the tables, by their names in the figures and in the heads."""


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    what: str
    wanted: str
    found: str
    met: bool


def checks(result: Table) -> Iterator[Check]:
    """What has to be shown, line by line. Costs are judged by the worst axis and side."""
    share: Figure = result["mean share of asking"]
    yield Check(
        "span of steering / span of prompting, mean of the axes",
        f">= {SHARE_WANTED}",
        f"{share.mean:.2f} [{share.low:.2f}, {share.high:.2f}]",
        share.mean >= SHARE_WANTED,
    )
    axes: Table = result["axes"]
    name, least = min(((a, t["difference"]) for a, t in axes.items()), key=lambda x: x[1].low)
    yield Check(
        "+1 over -1, every axis",
        "interval above 0",
        f"least: {name}, {_interval(least)}",
        least.low > 0,
    )
    for key, what, worst, allowed in (
        ("nats above plain", "nats per token above plain, every axis and sign", max, NATS_ALLOWED),
        ("knowledge above plain", "knowledge below plain", min, KNOWLEDGE_ALLOWED),
    ):
        cells = {
            f"{axis} {sign}1": table["price"][f"steered {sign}1"][key].mean
            for axis, table in axes.items()
            for sign in "+-"
        }
        where = worst(cells, key=lambda cell: cells[cell])
        axis, sign = where[:-3], "positive" if where.endswith("+1") else "negative"
        asked = axes[axis]["price"][f"asked {sign}"][key].mean
        mean = sum(cells.values()) / len(cells)
        yield Check(
            what,
            f"<= {allowed}",
            f"worst {cells[where]:+.2f} at {where} (prompting: {asked:+.2f}), mean {mean:+.2f}",
            cells[where] <= allowed if worst is max else cells[where] >= -allowed,
        )
    same = sum(table["strength 0"]["same as plain"] for table in axes.values())
    total = sum(table["strength 0"]["answers"] for table in axes.values())
    yield Check("strength 0 gives the plain answers", "all", f"{same} of {total}", same == total)


def markdown(result: Table, brief: bool = False) -> str:
    """The tables as Markdown; `brief` leaves out cross-effects, side measures and the verdict."""
    parts = [
        f"{result['model']}: {result['queries']} {result['which']} queries, {result['seeds']} "
        "answers to each, temperature 0.8; scores from −1 to +1 by the rule judge, intervals 95 %.",
        _scores(result),
        _costs(result),
    ]
    if not brief:
        verdict = [
            [c["what"], c["wanted"], c["found"], "yes" if c["met"] else "**no**"]
            for c in result["checks"]
        ]
        parts += [_qualities(result), _cross(result)]
        parts.append(_table(["must show", "wanted", "found", "met"], verdict))
    return "\n\n".join(parts)


def insert(text: str, path: Path, name: str = "steering") -> None:
    """Replace what stands between the markers `name` of a Markdown file by `text`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, marker, after = rest.partition(end)
    if not marker:
        raise SystemExit(f"{path} has no lines {start} and {end}")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def _scores(result: Table) -> str:
    head = ["axis", "plain", *SHOWN.values()]
    head += ["+1 over −1", "ratio to prompting", "net win −1", "net win +1"]
    rows = []
    for axis, table in result["axes"].items():
        score = table["scores"]
        rows.append(
            [axis, *(_number(score[name].mean) for name in ("plain", *SHOWN)),
             _interval(table["difference"]),
             f"{table['share of asking'].mean:.2f}",
             *(_interval(table["net win"][s], 100, 0) for s in ("-1", "+1"))]
        )  # fmt: skip
    share = result["mean share of asking"]
    mean = f"**{share.mean:.2f}**"
    return _table(head, [*rows, ["mean", *[""] * 6, mean, "", ""]])


def _costs(result: Table) -> str:
    head = ["axis", *(f"{what}: {arm}" for what in ("nats", "knowledge") for arm in SHOWN.values())]
    rows = [
        [axis, *(
            _number(table["price"][name][key].mean)
            for key in ("nats above plain", "knowledge above plain")
            for name in SHOWN
        )]
        for axis, table in result["axes"].items()
    ]  # fmt: skip
    plain = result["plain"]
    return (
        f"The cost, against plain answers ({plain['nats per token'].mean:.2f} nats per token "
        f"under the unsteered model, {100 * plain['knowledge'].mean:.0f} % of claims true):\n\n"
        + _table(head, rows)
    )


def _qualities(result: Table) -> str:
    rows = [["plain", *_quality(result["plain"])]]
    for axis, table in result["axes"].items():
        rows += [[f"{axis}, {arm}", *_quality(table["price"][n])] for n, arm in SHOWN.items()]
    return _table(["answers", "loops", "coherence", "sentences"], rows)


def _quality(row: Table) -> list[str]:
    return [f"{100 * row['loops']:.1f} %", f"{row['coherence']:.2f}", f"{row['sentences']:.1f}"]


def _cross(result: Table) -> str:
    cross: Table = result["cross"]
    others = list(next(iter(cross.values())))
    rows = [[axis, *(_number(row[other].mean) for other in others)] for axis, row in cross.items()]
    text = "How far each profile, from −1 to +1, moves the mean score of every axis:\n\n"
    return text + _table(["profile", *others], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    )


def _number(value: float, digits: int = 2) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def _interval(figure: Figure, scale: float = 1.0, digits: int = 2) -> str:
    mean, low, high = (_number(scale * x, digits) for x in (figure.mean, figure.low, figure.high))
    return f"{mean} [{low}, {high}]"


def draw(result: Table, path: Path) -> None:
    """Write the picture: per axis the score over strength, and below it the cost."""
    columns = [_column(name, table) for name, table in result["axes"].items()]
    make_folder(path.parent)
    title = f"{result['model']}: score and cost over strength, 95\u00a0% intervals"
    save(Picture(title, tuple(zip(*columns, strict=True))), path)


def _column(name: str, table: Table) -> tuple[Chart, Chart]:
    scores, cost = table["scores"], table["price"]
    asked = {f"prompting for the {side} side": f"asked {side}" for side in ("positive", "negative")}
    zero = Figure(0.0, 0.0, 0.0)
    found = [scores[f"steered {s:+g}"] if s else scores["plain"] for s in STRENGTHS]
    costs = [cost[f"steered {s:+g}"]["nats above plain"] if s else zero for s in STRENGTHS]
    levels = [(label, scores[arm].mean) for label, arm in asked.items()]
    cost_levels = [(label, cost[arm]["nats above plain"].mean) for label, arm in asked.items()]
    return (
        Chart(
            name, "strength", "score", (_steered(found),),
            (*levels, (PLAIN, scores["plain"].mean)), y_range=(-1.05, 1.05),
        ),
        Chart(
            "", "strength", "nats per token above plain", (_steered(costs),),
            (*cost_levels, (PLAIN, 0.0)),
        ),
    )  # fmt: skip


def _steered(figures: Sequence[Figure]) -> Curve:
    means, lows, highs = zip(*((f.mean, f.low, f.high) for f in figures), strict=True)
    return Curve("steered", STRENGTHS, means, lows, highs)
