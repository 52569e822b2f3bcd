"""The tables of `benchmarks.real` and its first answers, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alignez_edge.evaluation.measures import Figure

Table = dict[str, Any]
SHOWN = ("plain", "prompted +", "steered +1", "prompted -", "steered -1")
CUT = 160
RATIO_WANTED, RATIO_LEAST, NATS_ALLOWED = 1.0, 0.85, 0.1


def opening(result: Table) -> str:
    """What a reader sees first: effects and costs by side, and the first answers of the first
    axis."""
    axes: Table = result["axes"]
    counted: list[str] = result["counted"]
    first = next(iter(axes))
    n_seed = result["seeds"]
    answers = f"{n_seed} answers" if n_seed > 1 else "one answer"
    left_out = [axis for axis in axes if axis not in counted]
    return "\n\n".join(
        [
            f"{result['model']}: {result['queries']} questions of just-eval-instruct that no build "
            f"has seen, {answers} to each, with 95 % intervals over the questions.",
            _sides(axes, result["mean ratio"], len(counted)),
            *(
                [f"Prompting does not move {', '.join(left_out)} clear of 0: not in the mean."]
                if left_out
                else []
            ),
            f"The first {len(axes[first]['first answers'])} questions, {first}, not picked, cut at "
            f"{CUT} characters:",
            _answers(axes[first]["first answers"]),
        ]
    )


def details(result: Table) -> str:
    """What was wanted and what was found, the instruments, and what was built."""
    axes: Table = result["axes"]
    built = [
        [
            name,
            table["instrument"],
            str(table["tokens"]),
            number(table["plain"].mean),
            f"{table['plain nats'].mean:.2f}",
            table["profile"]["verdict"],
            f"{table['profile']['unit']:.2f} / {table['profile']['unit_negative']:.2f}",
            "–".join(str(layer) for layer in sorted({*table["profile"]["layers"][:1],
                                                      *table["profile"]["layers"][-1:]})),
        ]
        for name, table in axes.items()
    ]  # fmt: skip
    head = ["axis", "instrument", "tokens at most", "plain score", "plain nats per token"]
    return "\n\n".join(
        [
            _wanted(result),
            as_table([*head, "verdict of the build", "unit, + / −", "layers"], built),
        ]
    )


def _sides(axes: Table, means: Table, n_counted: int) -> str:
    rows = []
    for name, table in axes.items():
        ratio = interval(table["ratio"]["steered"], signed=False)
        for sign in "+-":
            found = [f"prompted {sign}", f"steered {sign}1", f"both {sign}"]
            costs = [number(table["nats above plain"][arm].mean) for arm in found]
            effects = [interval(table["effect"][arm]) for arm in found]
            rows.append([f"{name} {_head(sign)}", *effects, *costs, ratio if sign == "+" else ""])
    mean = interval(means["steered"], signed=False)
    rows.append([f"mean of {n_counted}", *[""] * 6, f"**{mean}**"])
    head = ["effect on", "prompted", "steered ±1", "both", "nats: prompted", "steered", "both"]
    return as_table([*head, "span, steered / prompted"], rows)


def forms(result: Table) -> str:
    """How far each form of prompting moves each axis, and which one the builds took."""
    axes: Table = result["axes"]
    names = list(dict.fromkeys(form for table in axes.values() for form in table["form spans"]))
    rows = []
    for name, table in axes.items():
        spans: dict[str, Figure] = table["form spans"]
        best, taken = table["form"], table["profile"]["form"]
        cells = []
        for form in names:
            text = interval(spans[form]) if form in spans else ""
            cells.append(f"**{text}**" if form == best else text)
        share = spans[taken].mean / spans[best].mean if taken in spans else math.nan
        rows.append([name, *cells, f"{taken}: {number(share, signed=False)}"])
    table = as_table(["axis", *names, "the build took, over the best"], rows)
    return (
        f"{result['model']}, {result['choosing']} questions, the span between the sides by the"
        f" instrument:\n\n{table}"
    )


def _wanted(result: Table) -> str:
    """What was wanted of steering, and what was found."""
    axes: Table = {name: result["axes"][name] for name in result["counted"]}
    ratio: Figure = result["mean ratio"]["steered"]
    rows = [
        [
            "mean ratio",
            f"≥ {RATIO_WANTED}, interval above {RATIO_LEAST}",
            interval(ratio, signed=False),
            _met(ratio.mean >= RATIO_WANTED and ratio.low > RATIO_LEAST),
        ]
    ]
    if axes:
        spans = {name: table["span"]["steered"] for name, table in axes.items()}
        clear = [name for name, span in spans.items() if span.low > 0]
        rows.append(
            [
                "+1 over −1 clear of 0",
                "every axis that counts",
                f"{len(clear)} of {len(spans)}",
                _met(len(clear) == len(spans)),
            ]
        )
        cells = {
            f"{name} {_head(sign)}1": figure
            for name, table in axes.items()
            for sign, figure in table["nats above prompting"].items()
        }
        worst = max(cells, key=lambda cell: cells[cell].mean)
        rows.append(
            [
                "nats above prompting for that side",
                f"≤ {NATS_ALLOWED}",
                f"worst: {worst}, {interval(cells[worst])}",
                _met(cells[worst].mean <= NATS_ALLOWED),
            ]
        )
    return as_table(["steering", "wanted", "found", "met"], rows)


def _answers(rows: Sequence[dict[str, str]]) -> str:
    return as_table(
        ["question", *map(_head, SHOWN)],
        [[_line(row["query"]), *(_line(row[arm]) for arm in SHOWN)] for row in rows],
    )


def _line(text: str) -> str:
    """A text as one cell of a table."""
    text = " ".join(text.split())
    cut = text if len(text) <= CUT else text[:CUT].rstrip() + " …"
    for char in "\\|<*_`[":
        cut = cut.replace(char, f"\\{char}")
    return cut


def _head(name: str) -> str:
    return name.replace("-", "−")


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def number(value: float, signed: bool = True) -> str:
    """Two digits and a sign; n/a for NaN."""
    if math.isnan(value):
        return "n/a"
    return f"{value:{'+' if signed else ''}.2f}".replace("-", "−")


def interval(figure: Figure, signed: bool = True) -> str:
    """A figure with its interval."""
    if math.isnan(figure.mean):
        return "n/a"
    mean, low, high = (number(x, signed) for x in (figure.mean, figure.low, figure.high))
    return f"{mean} [{low}, {high}]"


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
