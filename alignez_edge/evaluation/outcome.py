"""What an evaluation found, read back from its folder as values.

A run folder is untrusted: names are plain text, numbers finite or `nan`, and nothing
that is missing or odd goes further than this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.blind import Blind
from alignez_edge.evaluation.measures import Figure
from alignez_edge.evaluation.runfolder import MAX_RUN, RunFolder
from alignez_edge.files.reading import read_text
from alignez_edge.files.records import parse_record, text_of
from alignez_edge.files.text import printable
from alignez_edge.files.untrusted import LARGEST

MAX_ROWS = 20_000
MAX_BLIND = 100  # axes
NOTHING = Figure(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """One arm against plain answers, judged by one aim: a row of `results.json`.

    `trait` is how its side is worded. `win`, `lose`, `tie` and `delta` are percentages, towards it.
    `scores` are by aspect, and those of the axis' own name mean its positive side. `nats` is the
    cost in nats per token above plain, `costs` all that is said of it. `sweep` are the settings
    that tell the arm from its neighbors. `terms` are the profiles and strengths that were added
    up, `system` the name of what stood before the query. Numbers that are not known are `nan`.
    """

    arm: str
    kind: str
    profile: str
    strength: float
    axis: str
    side: str
    trait: str
    answers: float
    win: float
    lose: float
    tie: float
    delta: Figure
    p_value: float
    nats: Figure
    costs: Mapping[str, float]
    scores: Mapping[str, Figure]
    relative_improvement: Figure
    ratio_to_prompting: Figure
    sweep: Mapping[str, str | float]
    terms: tuple[tuple[str, float], ...]
    system: str

    @property
    def own_score(self) -> Figure:
        """How much the answers show of the positive side of the axis, as the judge scores it."""
        return self.scores.get(self.axis, NOTHING)

    def cost(self, name: str) -> float:
        """A cost by the name that `results.json` has for it; `nan` where it is not known."""
        return self.costs.get(name, math.nan)

    @property
    def net_win(self) -> Figure:
        """The net win towards the positive side, whichever side the arm steers to; percent."""
        if self.side != "negative":
            return self.delta
        return Figure(-self.delta.mean, -self.delta.high, -self.delta.low)


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its rows, and what plain answers are like.

    `plain_scores` are by aspect, `plain_price` by the names that `results.json` has. `blind` are
    the axes of which the judge saw nothing; older runs do not say. `can_tell` and `finding` are
    what the test of the judge found; None and empty where it was not tested.
    """

    run: RunFolder
    rows: tuple[Row, ...]
    plain_scores: Mapping[str, Figure]
    plain_price: Mapping[str, float]
    position_bias: float
    blind: tuple[Blind, ...]
    can_tell: bool | None
    finding: str

    @classmethod
    def load(cls, folder: str | Path) -> Outcome:
        """Read a run folder; raises `BadInputError` with one line on anything wrong in it."""
        run = RunFolder(folder)
        path = run.path / "results.json"
        shown = printable(str(path))
        if not path.exists():
            raise BadInputError(
                f"{printable(str(run.path))} holds a run that is not finished",
                "start the same evaluation again: it goes on where it was",
            )
        text = read_text(path, limit=MAX_RUN, what="results file")
        can_tell, finding = _judge_test(run.path / "judge.json")
        try:
            found = json.loads(text)
            if len(found["rows"]) > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS:,} rows")
            arms = {arm["name"]: arm for arm in run.run["arms"]}
            rows = tuple(_row(row, arms[row["arm"]]) for row in found["rows"])
            plain = _table(found.get("plain"))
            return cls(
                run,
                rows,
                _figures(plain.get("scores")),
                _numbers(plain) | {"nats_per_token": _figure(plain.get("nats_per_token")).mean},
                _number(found.get("position_bias")),
                tuple(Blind.from_data(value) for value in (found.get("blind") or ())[:MAX_BLIND]),
                can_tell,
                finding,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
            # Only what was raised here has words for a user.
            reason = str(failure) if type(failure) is ValueError else "it is damaged"
            raise BadInputError(
                f"{shown} has no usable results: {reason}",
                "start the same evaluation again: it writes it anew from the answers",
            ) from None

    @property
    def steered(self) -> tuple[Row, ...]:
        """The rows of steered arms."""
        return tuple(row for row in self.rows if row.kind == "steered")

    def fact(self, key: str) -> str:
        """What `run.json` says of the run under `key`; empty where it says nothing."""
        value = self.run.run.get(key, "")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _judge_test(path: Path) -> tuple[bool | None, str]:
    """Whether the judge can tell, and what its test found, as the run's folder keeps it."""
    if not path.exists():
        return None, ""
    record = parse_record(read_text(path, limit=1 << 20, what="judge's test"), path.name)
    return record.get("can_tell") is True, text_of(record, "finding", path.name)


def _row(row: Mapping[str, Any], arm: Mapping[str, Any]) -> Row:
    costs = _table(row.get("price"))
    return Row(
        arm=str(row["arm"]),
        kind=str(row["kind"]),
        profile=str(row["profile"]),
        strength=_number(row["strength"]),
        axis=str(row["axis"]),
        side=str(row["side"]),
        trait=str(row.get("trait") or ""),
        answers=_number(row.get("answers")),
        win=_number(row.get("win")),
        lose=_number(row.get("lose")),
        tie=_number(row.get("tie")),
        delta=Figure(*(_number(row.get(key)) for key in ("delta", "low", "high"))),
        p_value=_number(row.get("p_value")),
        nats=Figure(*(_number(costs.get(key)) for key in ("nats_above_plain", "low", "high"))),
        costs=_numbers(costs),
        scores=_figures(row.get("scores")),
        relative_improvement=_with_ends(row, "relative_improvement"),
        ratio_to_prompting=_with_ends(row, "share_of_asking"),
        sweep={str(key): _setting(value) for key, value in _table(row.get("sweep")).items()},
        terms=_terms(arm),
        system=str(arm.get("system") or ""),
    )


def _terms(arm: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    return tuple((str(t["profile"]), _number(t["strength"])) for t in arm.get("steering") or ())


def _with_ends(row: Mapping[str, Any], key: str) -> Figure:
    return Figure(*(_number(row.get(f"{key}{end}")) for end in ("", "_low", "_high")))


def _figures(value: Any) -> dict[str, Figure]:
    return {str(key): _figure(figure) for key, figure in _table(value).items()}


def _figure(value: Any) -> Figure:
    table = _table(value)
    return Figure(*(_number(table.get(key)) for key in ("mean", "low", "high")))


def _numbers(table: Mapping[str, Any]) -> dict[str, float]:
    return {k: _number(v) for k, v in table.items() if v is None or type(v) in (int, float)}


def _setting(value: Any) -> str | float:
    return value if isinstance(value, str) else _number(value)


def _table(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("a list where a table should be")
    return value


def _number(value: Any) -> float:
    """A number, or `nan` for none; raises `ValueError` on anything else."""
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise ValueError(f"{printable(repr(value), 40)} is not a number")
    # What is larger than any figure can be is drawn and printed as not known.
    return float(value) if abs(value) < LARGEST else math.nan
