"""Preference pairs: written by the model itself, kept in a file that a person can read and edit.

Both sides of a query are asked for in one form of request (`requests.py`), and each pair is scored
by how well the model tells its two answers apart (`consensus.py`). Queries go through in chunks,
and a chunk's pairs reach the file together when it is finished. A build that was killed goes on
with the first chunk that is not all there, in the same company: what else is in a batch changes the
rounding, so only the same chunk gives the same texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from alignez_edge.errors import BadInputError
from alignez_edge.files.records import read_records, text_of
from alignez_edge.files.text import printable
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.requests import RequestText

MAX_FILE = 1 << 30
MAX_PAIRS = 50_000
NO_DIFFERENCE = "no difference between the sides"
_HEADER = "alignez_pairs"
_MOST_REASONS = 20
_HUGE = 1e6  # nats per token: no score has more
_FIELDS = ("query", "chosen", "rejected", "chosen_request", "rejected_request")
_SYSTEM = ("chosen_system", "rejected_system")


@dataclass(frozen=True)
class PreferencePair:
    """A query with the wanted and the unwanted answer, and the requests that each answered: the
    user's text, and the system text or ''.

    `score` says how well the model tells the answers apart, in nats per token; None: not scored.
    """

    query: str
    chosen: str
    rejected: str
    chosen_request: str
    rejected_request: str
    chosen_system: str = ""
    rejected_system: str = ""
    score: float | None = None

    def requests(self) -> tuple[RequestText, RequestText]:
        """What was asked for the wanted and for the unwanted answer."""
        return (
            RequestText(self.chosen_request, self.chosen_system),
            RequestText(self.rejected_request, self.rejected_system),
        )

    def record(self) -> dict[str, str | float]:
        """The pair as a file has it: without what is empty or not known."""
        return {
            key: value
            for key, value in asdict(self).items()
            if key in _FIELDS or value not in ("", None)
        }


@dataclass(frozen=True)
class PairSet:
    """The usable pairs, in the order of their queries, and how many fell away for which reason."""

    pairs: tuple[PreferencePair, ...]
    dropped: Mapping[str, int]
    queries: tuple[str, ...] = ()
    """Those that were asked to get the pairs, where the model wrote them."""


def drop_reason(chosen: str, rejected: str) -> str | None:
    """Why two answers make no pair, or None if they do."""
    if not chosen.strip() or not rejected.strip():
        return "empty answer"
    wanted, unwanted = (_words(prompts.cut_next_turn(text)) for text in (chosen, rejected))
    if not wanted or not unwanted:
        return "cut to nothing"
    if wanted == unwanted:
        return "equal answers"
    return None


def read_labelled_pairs(path: str | Path, axis: Axis) -> PairSet:
    """The pairs of a person's own JSON-lines file: `query`, `chosen`, `rejected`.

    Where a line does not say what was asked (`chosen_request`, `rejected_request`), the axis' trait
    is asked for: the state at the last prompt token needs the two sides in its context.
    A file of a build's pairs is read as well. Raises `BadInputError` with the line number.
    """
    pairs: dict[PreferencePair, None] = {}
    dropped = Counter[str]()
    for where, record in read_records(path, limit=MAX_FILE, what="pair file"):
        if _HEADER in record:
            continue
        query, chosen, rejected = (text_of(record, key, where) for key in _FIELDS[:3])
        if not query.strip():
            raise BadInputError(f"{where}: 'query' is empty")
        requests = [
            text_of(record, key, where) if key in record else prompts.prompted(query, axis, side)
            for key, side in zip(_FIELDS[3:], prompts.SIDES, strict=True)
        ]
        reason = _reason_of(record, where)
        if reason is None:
            reason = drop_reason(chosen, rejected)
        elif reason not in dropped and len(dropped) >= _MOST_REASONS:
            reason = "other reasons"
        if reason is not None:
            dropped[reason] += 1
        else:
            texts = (query, chosen.strip(), rejected.strip(), *requests)
            pairs[_pair(record, where, *texts)] = None
            if len(pairs) > MAX_PAIRS:
                raise BadInputError(f"{where}: more than {MAX_PAIRS:,} pairs")
    if not pairs and not dropped:
        raise BadInputError(
            f"the pair file {printable(str(path))} has no pairs",
            hint="write one JSON object a line: query, chosen, rejected",
        )
    return PairSet(tuple(pairs), dict(sorted(dropped.items())))


def _pair(record: dict[str, object], where: str, *texts: str) -> PreferencePair:
    """The pair of a line whose needed texts are known."""
    systems = [text_of(record, key, where) if key in record else "" for key in _SYSTEM]
    score = record.get("score")
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < _HUGE:
            raise BadInputError(f"{where}: 'score' is not a number of nats")
        score = float(score)
    query, chosen, rejected, *requests = texts
    return PreferencePair(
        query, chosen, rejected, requests[0], requests[1], systems[0], systems[1], score
    )


def _reason_of(record: dict[str, object], where: str) -> str | None:
    """Why a line says that its pair is not used, as it may be shown; None if it is used."""
    return printable(text_of(record, "dropped", where), 60) if "dropped" in record else None


def _words(text: str) -> list[str]:
    return [word for word in text.casefold().split() if any(map(str.isalnum, word))]
