"""The results of an evaluation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignez_edge.evaluation.blind import Blind
from alignez_edge.files.text import printable

from ..layout import table


def summary(results: Mapping[str, Any]) -> str:
    """The results as tables for a terminal."""
    n = results["queries"]
    lines = [
        f"{printable(results['model'])}: {n} queries, {_answers(results['seeds'])} to each,"
        f" judged by {printable(results['judge'])}; against plain answers, intervals 95 %",
        "",
        table(list(_wins(results["rows"]))),
        "",
        "the cost, against plain answers:",
        table(list(_costs(results["rows"]))),
    ]
    lines += [f"warning: {text}" for text in warnings(results)]
    if results["position_bias"] is not None:
        lines.append(f"position bias of the judge: {results['position_bias']:+.2f}")
    return "\n".join(lines)


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What keeps the verdicts from proving anything, a sentence each."""
    judge = printable(results["judge"], 120)
    return [printable(Blind.from_data(b).finding(judge), 500) for b in results["blind"]]


def _answers(n: int) -> str:
    return f"{n} answer" if n == 1 else f"{n} answers"


def _wins(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    extra = [
        (key, head, digits)
        for key, head, digits in (
            ("relative_improvement", "of reference %", 0),
            ("share_of_asking", "of prompting", 2),
        )
        if any(key in row for row in rows)
    ]
    yield ["arm", "more", "win", "lose", "tie", "net win %", "p", *(head for _, head, _ in extra)]
    for row in rows:
        yield [
            printable(row["arm"], 40),
            printable(row["trait"], 30),
            *(_number(row[key], 0) for key in ("win", "lose", "tie")),
            _interval(row, "delta", "low", "high", 0),
            "<0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}",
            *(
                _interval(row, key, f"{key}_low", f"{key}_high", digits) if key in row else ""
                for key, _, digits in extra
            ),
        ]


def _costs(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    known = any(row["price"]["knowledge"] is not None for row in rows)
    head = ["arm", "nats per token", "KL from plain", "perplexity", "loops %", "tokens"]
    yield [*head, *(["knowledge %"] if known else [])]
    shown = set()
    for row in rows:
        if row["arm"] in shown:
            continue
        shown.add(row["arm"])
        cost = row["price"]
        yield [
            printable(row["arm"], 40),
            _interval(cost, "nats_above_plain", "low", "high", 2),
            _number(cost["drift"], 3),
            _number(cost["perplexity"], 2),
            _number(cost["repetition"], 1, 100),
            _number(cost["length_change"], 0, sign=True),
            *([_number(cost["knowledge"], 0, 100, sign=True)] if known else []),
        ]


def _number(value: float | None, digits: int, scale: float = 1.0, sign: bool = False) -> str:
    if value is None:
        return "-"
    rounded = round(scale * value, digits) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if sign else ''}.{digits}f}"


def _interval(row: Mapping[str, Any], mean: str, low: str, high: str, digits: int) -> str:
    signed = [_number(row[key], digits, sign=True) for key in (mean, low, high)]
    return f"{signed[0]} [{signed[1]}, {signed[2]}]" if row[mean] is not None else "-"
