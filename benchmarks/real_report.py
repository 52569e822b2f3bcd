"""The tables of `benchmarks.real` and its first answers, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alignez_edge.evaluation.measures import Figure

Table = dict[str, Any]
ARMS = ("prompted +", "steered +1", "both +", "prompted -", "steered -1", "both -")
SHOWN = ("plain", "prompted +", "steered +1", "prompted -", "steered -1")
CUT = 160
RATIO_WANTED, RATIO_LEAST, NATS_ALLOWED = 1.0, 0.85, 0.1


def markdown(result: Table) -> str:
    """Effects, costs, what of them was wanted, and the first answers of the first axis."""
    axes: Table = result["axes"]
    counted: list[str] = result["counted"]
    first = next(iter(axes))
    parts = [
        f"{result['model']}: {result['queries']} questions of just-eval-instruct that no build has "
        f"seen, {result['seeds']} answers to each, at most {result['tokens']} tokens. The effect "
        "of each arm against plain, by an instrument, with 95 % intervals over the questions; "
        "+ and − are the sides, 'both' is prompted and steered. The ratio is the span of steering "
        "over that of prompting.",
        _effects(axes, result["mean ratio"], len(counted)),
        "Prompting moves its instrument clear of 0, so the axis counts: "
        + (", ".join(counted) or "none")
        + f". It does not: {', '.join(a for a in axes if a not in counted) or 'none'}.",
        "The cost, in nats per token under the plain model above plain:",
        _costs(axes),
        _wanted(result),
        f"The first {len(axes[first]['first answers'])} questions, the first answer to each, "
        f"{first}, cut at {CUT} characters:",
        _answers(axes[first]["first answers"]),
    ]
    return "\n\n".join(parts)


def _effects(axes: Table, means: Table, n_counted: int) -> str:
    rows = []
    for name, table in axes.items():
        effects = [interval(table["effect"][arm]) for arm in ARMS]
        rows.append(
            [
                f"{name} ({table['instrument']})",
                table["form"],
                number(table["plain"].mean),
                *effects,
                interval(table["ratio"]["steered"], signed=False),
                interval(table["ratio"]["both"], signed=False),
            ]
        )
    total = [f"**{interval(means[way], signed=False)}**" for way in ("steered", "both")]
    rows.append([f"mean of {n_counted}", *[""] * (2 + len(ARMS)), *total])
    return as_table(["axis", "prompt", "plain", *map(_head, ARMS), "ratio", "ratio of both"], rows)


def _costs(axes: Table) -> str:
    rows = [
        [
            name,
            f"{table['plain nats'].mean:.2f}",
            *(interval(table["nats above plain"][arm]) for arm in ARMS),
        ]
        for name, table in axes.items()
    ]
    return as_table(["axis", "plain", *map(_head, ARMS)], rows)


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
