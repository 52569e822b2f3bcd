"""The answers of a run beside the plain ones: those that moved most, and any others."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from alignez_edge.evaluation.arms import PLAIN
from alignez_edge.evaluation.runfolder import Key, RunFolder
from alignez_edge.files.text import printable
from alignez_edge.files.untrusted import LARGEST

MOST_TEXT = 4000
"""Characters of an answer that are shown."""


@dataclass(frozen=True)
class Moved:
    """A steered answer beside the plain one of the same query and seed.

    `amount` is how far it moved towards `side` of `axis`: the difference of the two scores, in
    their units, or the judge's preference (−1 to 1) where it gives no scores; None if that was
    not looked at.
    """

    arm: str
    axis: str
    side: str
    seed: int
    amount: float | None
    scored: bool
    query: str
    plain: str
    steered: str


@dataclass(frozen=True, order=True)
class _Place:
    """One verdict; the first in this order moved most, and the earlier query goes first."""

    rank: float
    query: int
    seed: int
    arm: int
    axis: str
    side: str
    amount: float
    scored: bool


def most_moved(run: RunFolder, count: int = 20) -> tuple[list[Moved], list[Moved]]:
    """The `count` steered answers that moved most towards their aim, and most away from it.

    Reads the verdicts twice and the answers once, and keeps only what is returned. Raises
    `BadInputError` on a damaged folder.
    """
    steered = {number for number, arm in enumerate(run.run["arms"]) if arm.get("kind") == "steered"}
    names = list(run.arms)
    chosen = [
        heapq.nsmallest(count, (p for p in _places(run, steered, sign) if p.rank < 0))
        for sign in (1.0, -1.0)
    ]
    wanted = {
        (name, place.query, place.seed)
        for place in (*chosen[0], *chosen[1])
        for name in (PLAIN, names[place.arm])
    }
    texts = _texts(run, wanted)
    towards, away = (
        [_moved(place, names[place.arm], texts) for place in places] for places in chosen
    )
    return towards, away


def beside_plain(run: RunFolder, arm: str, count: int) -> list[Moved]:
    """The first `count` answers of an arm, query after query, whatever became of them."""
    _, queries, seeds = run.shape
    places = list(islice(product(range(seeds), range(queries)), count))
    texts = _texts(run, {(name, query, seed) for name in (PLAIN, arm) for seed, query in places})
    rows = []
    for seed, query in places:
        if (arm, query, seed) in texts and (PLAIN, query, seed) in texts:
            asked, plain = texts[PLAIN, query, seed]
            _, steered = texts[arm, query, seed]
            rows.append(Moved(arm, "", "", seed, None, False, asked, plain, steered))
    return rows


def _places(run: RunFolder, steered: set[int], sign: float) -> Iterator[_Place]:
    for _, record in run.verdicts.records():
        arm, query, seed = run.place(record)
        if arm in steered and (amount := _amount(record)) is not None:
            axis, side = str(record.get("axis")), str(record.get("side"))
            yield _Place(-sign * amount[0], query, seed, arm, axis, side, *amount)


def _amount(record: Mapping[str, Any]) -> tuple[float, bool] | None:
    """How far the answer moved towards the aim and whether scores say so; None if unknown."""
    scores = record.get("scores")
    pair = scores.get(str(record.get("axis"))) if isinstance(scores, dict) else None
    if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)):
        sign = -1.0 if record.get("side") == "negative" else 1.0
        return sign * (pair[0] - pair[1]), True
    preference = record.get("preference")
    return (float(preference), False) if _is_number(preference) else None  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST  # type: ignore[arg-type]


def _texts(run: RunFolder, wanted: set[Key]) -> dict[Key, tuple[str, str]]:
    """Query and answer of the wanted answers; the first line about one counts."""
    texts: dict[Key, tuple[str, str]] = {}
    for _, record in run.answers.records():
        _, query, seed = run.place(record)
        key = (str(record["arm"]), query, seed)
        if key in wanted and key not in texts:
            texts[key] = _shown(record.get("query")), _shown(record.get("text"))
    return texts


def _moved(place: _Place, arm: str, texts: Mapping[Key, tuple[str, str]]) -> Moved:
    nothing = ("", "(missing)")
    query, plain = texts.get((PLAIN, place.query, place.seed), nothing)
    _, steered = texts.get((arm, place.query, place.seed), nothing)
    return Moved(
        arm, place.axis, place.side, place.seed, place.amount, place.scored, query, plain, steered
    )


def _shown(text: object) -> str:
    """A text as a page may have it: its own lines, no control characters, bounded length."""
    whole = str(text).strip()
    cut = whole if len(whole) <= MOST_TEXT else whole[: MOST_TEXT - 1] + "…"
    return "\n".join(printable(line, MOST_TEXT) for line in cut.split("\n"))
