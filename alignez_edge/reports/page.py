"""A run as one page that can be handed on: HTML with its pictures inside, or Markdown.

The page loads nothing and runs nothing. Everything in it that comes out of the run, answers most of
all, is untrusted text: it is escaped, so that it can be read and can do nothing.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.measures import Figure
from alignez_edge.evaluation.outcome import Outcome
from alignez_edge.files.text import printable
from alignez_edge.files.writing import write_atomic
from alignez_edge.pictures.drawing import Picture, rendered, signed
from alignez_edge.pictures.of_run import pictures_of_run
from alignez_edge.pictures.text import drawn
from alignez_edge.reports.moved import Moved, most_moved
from alignez_edge.reports.opening import SHOWN, sentence, six_answers, warnings

Rows = Sequence[Sequence[str]]
MOVED = 20
"""Answers that are shown to either side."""
_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #bbb; padding: .3em .6em; text-align: left; vertical-align: top; }
th { background: #eee; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 16em; }
img { max-width: 100%; }
pre { overflow-x: auto; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class _Page(Protocol):
    """What a page is made of, whatever its format."""

    def heading(self, text: str, level: int = 2) -> None: ...
    def line(self, text: str) -> None: ...
    def table(self, rows: Rows) -> None: ...
    def picture(self, picture: Picture) -> None: ...
    def answers(self, moved: Sequence[Moved]) -> None: ...
    def text(self) -> str: ...


def write_report(run_folder: str | Path, path: str | Path) -> None:
    """Write the page of a finished run; `.html` and `.htm` are HTML, `.md` is Markdown.

    Without matplotlib the pictures are drawn as text, as they always are in Markdown, where nothing
    can be put inside. Raises `BadInputError` for another ending and on anything wrong in the
    folder, and `AlignezError` if the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".html", ".htm", ".md"):
        raise BadInputError(
            f"cannot write {printable(str(path))}: a report is a .html or a .md file",
            "name it like report.html",
        )
    outcome = Outcome.load(run_folder)
    title = f"What steering does to {printable(outcome.fact('model'), 80)}"
    page: _Page = _Markdown(title) if suffix == ".md" else _Html(title)
    _fill(page, outcome)
    write_atomic(path, page.text().encode("utf-8"))


def _fill(page: _Page, outcome: Outcome) -> None:
    page.line(sentence(outcome))
    for warning in warnings(outcome):
        page.line(warning)
    pictures = list(pictures_of_run(outcome).values())
    for picture in pictures[:1]:
        page.picture(picture)
    if answers := six_answers(outcome):
        page.heading("Six of the answers" if len(answers) == SHOWN else "The answers")
        page.answers(answers)
    page.heading("Who won")
    page.line(
        "Percent of comparisons with the plain answer. Net win is win minus lose; p is the sign"
        " test over queries: above 0.05 the difference may be nothing."
    )
    page.table(_wins(outcome))
    if scores := _scores(outcome):
        page.heading("Scores")
        page.line("Means of what the judge scores by aspect.")
        page.table(scores)
    page.heading("The cost")
    page.line(
        "Against plain answers: how much less likely the plain model finds them, the KL from"
        " the plain model on neutral text, the perplexity there, answers that repeat themselves,"
        " and the change of length."
    )
    page.table(_costs(outcome))
    if pictures[1:]:
        page.heading("More pictures")
    for picture in pictures[1:]:
        page.picture(picture)
    for title, moved in zip(
        ("towards what was aimed at", "away from it"), most_moved(outcome.run, MOVED), strict=True
    ):
        page.heading(f"The answers that moved most {title}")
        if moved:
            page.answers(moved)
        else:
            page.line("None moved that way.")
    page.heading("What was compared, and how")
    count, seeds = outcome.run.shape[1:]
    page.line(
        f"{count} queries, {seeds} answers to each from every arm, with the same seeds and settings"
        f" in all of them. The judge compared each with the plain answer. Intervals are 95 %, and"
        " resample the queries."
    )
    page.table(_arms(outcome))
    page.table([("", ""), *_facts(outcome)])


def _facts(outcome: Outcome) -> Rows:
    run = outcome.run.run
    queries = run["queries"]
    rows = [
        ("model", f"{outcome.fact('model')} {outcome.fact('quantization')}"),
        ("its fingerprint", outcome.fact("fingerprint")),
        ("queries", f"{queries['count']}, digest {queries.get('digest', 'unknown')}"),
        ("answers to each", str(run["seeds"])),
        ("sampling", outcome.fact("sampling")),
        ("context", f"{outcome.fact('context')} tokens"),
        ("judge", outcome.fact("judge")),
        ("its test", outcome.finding),
        (
            "its position bias",
            "" if math.isnan(outcome.position_bias) else signed(outcome.position_bias),
        ),
        ("reference", outcome.fact("reference") if run.get("reference") else ""),
        ("neutral texts", outcome.fact("neutral") or "plain answers"),
        ("begun", outcome.fact("created_at")),
    ]
    return [(key, value) for key, value in rows if value]


def _arms(outcome: Outcome) -> Rows:
    rows = [("arm", "kind", "steered by", "how", "system prompt")]
    terms = {row.arm: row.terms for row in outcome.rows}
    for arm in outcome.run.run["arms"]:
        steering = ", ".join(f"{name} × {s:g}" for name, s in terms.get(arm["name"], ()))
        told = (arm.get(key) or "" for key in ("kind", "way", "system"))
        kind, way, system = (printable(str(value), 300) for value in told)
        rows.append((arm["name"], kind, steering, way, system))
    return _used(rows)


def _wins(outcome: Outcome) -> Rows:
    rows: list[tuple[str, ...]] = [
        ("arm", "more", "win %", "lose %", "tie %", "net win %", "p", "ratio to prompting",
         "relative improvement %")
    ]  # fmt: skip
    for row in outcome.rows:
        rows.append(
            (row.arm, row.trait, *(_plain(x, 0) for x in (row.win, row.lose, row.tie)),
             _interval(row.delta, 0), _p_value(row.p_value), _interval(row.ratio_to_prompting, 2),
             _interval(row.relative_improvement, 0))
        )  # fmt: skip
    return _used(rows)


def _scores(outcome: Outcome) -> Rows:
    aspects = list(dict.fromkeys(key for row in outcome.rows for key in row.scores))[:12]
    if not aspects:
        return []
    plain = outcome.plain_scores
    rows = [("arm", *aspects)]
    rows.append(("plain", *(_interval(plain[a], 2) if a in plain else "" for a in aspects)))
    seen = set()
    for row in outcome.rows:
        if row.arm not in seen:
            seen.add(row.arm)
            cells = (_interval(row.scores[a], 2) if a in row.scores else "" for a in aspects)
            rows.append((row.arm, *cells))
    return rows


def _costs(outcome: Outcome) -> Rows:
    rows: list[tuple[str, ...]] = [
        ("arm", "nats per token above plain", "KL from plain, nats per token", "perplexity",
         "repetition %", "tokens", "knowledge %")
    ]  # fmt: skip
    own = outcome.plain_price
    rows.append(
        ("plain", f"({_plain(own.get('nats_per_token', math.nan), 2)} in all)", "",
         _plain(own.get("perplexity", math.nan), 2),
         _plain(100 * own.get("repetition", math.nan), 1), _plain(own.get("tokens", math.nan), 0),
         "")
    )  # fmt: skip
    seen = set()
    for row in outcome.rows:
        if row.arm in seen:
            continue
        seen.add(row.arm)
        rows.append(
            (row.arm, _interval(row.nats, 3), _plain(row.cost("drift"), 3),
             _plain(row.cost("perplexity"), 2), _plain(100 * row.cost("repetition"), 1),
             _plus(row.cost("length_change"), 0), _plus(100 * row.cost("knowledge"), 0))
        )  # fmt: skip
    return _used(rows)


class _Html:
    def __init__(self, title: str) -> None:
        safe = html.escape(title)
        self._parts = [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{safe}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<h1>{safe}</h1>",
        ]

    def heading(self, text: str, level: int = 2) -> None:
        self._parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def line(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, rows: Rows) -> None:
        self._table(rows, "td")

    def picture(self, picture: Picture) -> None:
        words = f"<pre>{html.escape(drawn(picture, 100))}</pre>"
        if importlib.util.find_spec("matplotlib") is None:
            self._parts.append(words)
            return
        data = base64.b64encode(rendered(picture, "svg")).decode("ascii")
        alt = html.escape(printable(picture.title, 400))
        self._parts.append(f'<p><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></p>')
        self._parts += [f"<p>{html.escape(note)}</p>" for note in picture.notes]
        self._parts.append(f"<details><summary>in numbers</summary>{words}</details>")

    def answers(self, moved: Sequence[Moved]) -> None:
        rows = [(_what(one), one.query, one.plain, one.steered) for one in moved]
        self._table([_ANSWERS, *rows], 'td class="text" dir="auto"', whole=True)

    def _table(self, rows: Rows, cell: str, whole: bool = False) -> None:
        head, *body = rows
        lines = [f"<tr>{''.join(f'<th>{html.escape(x)}</th>' for x in head)}</tr>"] * any(head)
        for row in body:
            texts = (html.escape(x if whole else printable(x, 500)) for x in row)
            lines.append(f"<tr>{''.join(f'<{cell}>{x}</td>' for x in texts)}</tr>")
        self._parts.append("\n".join(["<table>", *lines, "</table>"]))

    def text(self) -> str:
        return "\n".join([*self._parts, "</body>\n</html>\n"])


class _Markdown:
    def __init__(self, title: str) -> None:
        self._parts = [f"# {_marked(title)}"]

    def heading(self, text: str, level: int = 2) -> None:
        self._parts.append(f"{'#' * level} {_marked(text)}")

    def line(self, text: str) -> None:
        self._parts.append(_marked(text))

    def table(self, rows: Rows) -> None:
        self._table([[printable(cell, 500) for cell in row] for row in rows])

    def picture(self, picture: Picture) -> None:
        # Indented by four, so that no text in it can end the block.
        lines = drawn(picture, 100).splitlines()
        self._parts.append("\n".join(f"    {line}".rstrip() for line in lines))
        self._parts += map(_marked, picture.notes)

    def answers(self, moved: Sequence[Moved]) -> None:
        rows = [(_what(one), one.query, one.plain, one.steered) for one in moved]
        self._table([_ANSWERS, *rows])

    def _table(self, rows: Rows) -> None:
        head, *body = ([_marked(cell) for cell in row] for row in rows)
        lines = [head, ["---"] * len(head), *body]
        self._parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def text(self) -> str:
        return "\n\n".join(self._parts) + "\n"


_ANSWERS = ("moved", "query", "plain", "steered")
_MARKUP = re.compile(r"[\\`*_\[\]~]")
_REFERENCES = re.compile(r"[&<>|$@]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def _marked(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no links; lines stay lines.

    Where a backslash would leave an address a link, or a cell's end an end, it is a character
    reference.
    """
    safe = _REFERENCES.sub(lambda found: f"&#{ord(found[0])};", _MARKUP.sub(r"\\\g<0>", text))
    return safe.replace("\n", "<br>")


def _what(one: Moved) -> str:
    from_where = f"{printable(one.arm, 80)}, seed {one.seed}"
    if one.amount is None:
        return from_where
    unit = "score" if one.scored else "preference"
    side = {"positive": "+", "negative": "−"}.get(one.side, one.side)
    return (
        f"{unit} {signed(one.amount)} towards {printable(one.axis, 40)} {printable(side, 40)}\n"
        f"{from_where}"
    )


def _used(rows: Rows) -> Rows:
    """The rows without the columns that are empty in all but the head."""
    kept = [any(row[i] for row in rows[1:]) for i in range(len(rows[0]))]
    return [[cell for cell, keep in zip(row, kept, strict=True) if keep] for row in rows]


def _interval(figure: Figure, digits: int) -> str:
    if math.isnan(figure.mean):
        return ""
    mean, low, high = (signed(x, digits) for x in (figure.mean, figure.low, figure.high))
    return f"{mean} [{low}, {high}]" if not math.isnan(figure.low) else mean


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else _plain(value, 3)


def _plus(value: float, digits: int) -> str:
    return "" if math.isnan(value) else signed(value, digits)


def _plain(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")
