"""Preference pairs: written by the model itself, kept in a file that a person can read and edit.

Both sides of a query are asked for in one form of request (`requests.py`), and each pair is scored
by how well the model tells its two answers apart (`consensus.py`). Queries go through in chunks,
and a chunk's pairs reach the file together when it is finished. A build that was killed goes on
with the first chunk that is not all there, in the same company: what else is in a batch changes the
rounding, so only the same chunk gives the same texts.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from alignez_edge.arrays import DoubleArray
from alignez_edge.calibration.consensus import Text
from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.reading import append_whole, decode_utf8, make_folder, printable, read_bytes
from alignez_edge.preferences import prompts
from alignez_edge.preferences.answers import Complete, n_completions, write_answers
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.queries import iter_records, parse_record, read_records, text_of
from alignez_edge.preferences.requests import FORMS, TWO_STEPS, RequestForm, RequestText

MAX_FILE = 1 << 30
MAX_PAIRS = 50_000
CHUNK = 16
"""Queries a chunk: 32 requests at once keep 16 sequences busy, and little is lost at a kill."""
_LEAST_CHUNK = 4
_MORE = 1.25
"""Queries that are asked for each pair that is still missing."""
ANSWER_TOKENS = 64
"""Tokens of an answer at most: the style of an answer shows in its first sentences."""
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


Score = Callable[[Sequence[tuple[Text, Text]]], Sequence[float] | DoubleArray]
"""How far apart the two texts of each pair are, in nats per token; above 0: the right way round."""


def drop_reason(chosen: str, rejected: str) -> str | None:
    """Why two answers make no pair, or None where they do."""
    if not chosen.strip() or not rejected.strip():
        return "empty answer"
    wanted, unwanted = (_words(prompts.cut_next_turn(text)) for text in (chosen, rejected))
    if not wanted or not unwanted:
        return "cut to nothing"
    if wanted == unwanted:
        return "equal answers"
    return None


class PairStore:
    """The pairs of a build in a JSON-lines file.

    The first line says which settings the pairs were made under; each other line is one pair, with
    `dropped` and a reason where it is not used. Lines may be edited, reordered or deleted by hand;
    of two lines for one query the later counts. A last line that a kill has torn is cut off. A file
    of other settings is put aside as `<name>.old` and `notice` says so.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, str | int]) -> None:
        """Open or begin the file. `settings` names everything that shapes the pairs: the axis'
        wording, the model's fingerprint, the seed, the sampling.

        Raises `BadInputError` with the line number where the file is malformed, and `AlignezError`
        where it cannot be written.
        """
        self.path = Path(path)
        self.notice: str | None = None
        self.torn = False
        """Whether a kill has torn the last line, so that its chunk has to be made again."""
        self._pairs: dict[str, PreferencePair] = {}
        self._dropped: dict[str, str] = {}
        make_folder(self.path.parent)
        if not self._read(dict(settings)):
            self._append([{_HEADER: 1, "settings": dict(settings)}])

    def __contains__(self, query: str) -> bool:
        return query in self._pairs or query in self._dropped

    def __len__(self) -> int:
        return len(self._pairs) + len(self._dropped)

    def result(self, queries: Sequence[str]) -> PairSet:
        """What the file holds for these queries, in their order."""
        pairs, dropped = [], Counter[str]()
        for query in queries:
            if query in self._dropped:
                dropped[self._dropped[query]] += 1
            elif query in self._pairs:
                pair = self._pairs[query]
                # Asked again, because a person may have edited the answers.
                if (reason := drop_reason(pair.chosen, pair.rejected)) is not None:
                    dropped[reason] += 1
                else:
                    pairs.append(pair)
        return PairSet(tuple(pairs), dict(sorted(dropped.items())))

    def append(self, pairs: Sequence[tuple[PreferencePair, str | None]]) -> None:
        """Add pairs, each with the reason why it is dropped or None; on disk when this returns."""
        records = [
            pair.record() | ({} if reason is None else {"dropped": reason})
            for pair, reason in pairs
        ]
        self._append(records)
        for pair, reason in pairs:
            self._take(pair, reason)

    def _take(self, pair: PreferencePair, reason: str | None) -> None:
        self._pairs.pop(pair.query, None)
        self._dropped.pop(pair.query, None)
        if reason is None:
            self._pairs[pair.query] = pair
        else:
            self._dropped[pair.query] = reason

    def _read(self, settings: dict[str, str | int]) -> bool:
        """Take in an existing file; False where a new one has to begin."""
        if not self.path.exists():
            return False
        data = read_bytes(self.path, limit=MAX_FILE, what="pair file")
        whole, _, rest = data.rpartition(b"\n")
        if rest and not _is_json(rest):
            data = whole + b"\n" if whole else b""
            self._truncate(len(data), newline=False)
            self.torn = True
        elif rest:
            self._truncate(len(data), newline=True)
        shown = printable(str(self.path))
        records = iter_records(decode_utf8(data, self.path, "pair file"), shown)
        where, header = next(records, ("", {}))
        if not header:
            return False
        if _HEADER not in header:
            raise BadInputError(
                f"{where}: this is not a file of pairs in progress",
                hint="to build from pairs of your own, use --pairs",
            )
        if header.get(_HEADER) != 1 or header.get("settings") != settings:
            self._put_aside(shown)
            return False
        for where, record in records:
            texts = [text_of(record, key, where) for key in _FIELDS]
            self._take(_pair(record, where, *texts), _reason_of(record, where))
        return True

    def _put_aside(self, shown: str) -> None:
        old = self.path.with_name(self.path.name + ".old")
        try:
            self.path.replace(old)
        except OSError as failure:
            raise AlignezError(f"cannot put {shown} aside: {failure.strerror}") from None
        self.notice = (
            f"{shown} was made under other settings: starting afresh, "
            f"the old pairs are kept as {printable(old.name)}"
        )

    def _truncate(self, length: int, newline: bool) -> None:
        try:
            with self.path.open("rb+") as file:
                file.truncate(length)
                if newline:
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
        except OSError as failure:
            raise AlignezError(
                f"cannot write {printable(str(self.path))}: {failure.strerror}"
            ) from None

    def _append(self, records: Sequence[Mapping[str, object]]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        try:
            append_whole(self.path, lines.encode("utf-8", "replace"))
        except OSError as failure:
            raise AlignezError(
                f"cannot write {printable(str(self.path))}: {failure.strerror}",
                hint="the finished pairs are kept: start the build again to go on",
            ) from None


def generate_pairs(
    complete: Complete,
    axis: Axis,
    queries: Sequence[str],
    store: PairStore,
    *,
    seed: int,
    form: RequestForm = FORMS[TWO_STEPS],
    chat: bool = True,
    limit: int | None = None,
    fits: Callable[[str], bool] = lambda query: True,
    score: Score | None = None,
    keep: Callable[[Sequence[PreferencePair]], None] = lambda pairs: None,
    on_progress: Callable[[int, int], None] | None = None,
    chunk: int = CHUNK,
) -> PairSet:
    """The model's own pairs, from `store` where they are there, else generated.

    `queries` are asked in `form`, one chunk after another, until `limit` usable pairs are there or
    the queries run out (None: all queries). Those that do not fit the model's window (`fits`) are
    passed over. `score` scores the pairs of a chunk; those that do not score above 0 are dropped.
    `keep` is given those of a chunk that are left, before they reach the file.
    `on_progress(done, total)` counts completions. Every seed is derived from `seed`, the query, its
    side and its step, so neither a kill nor more queries change a pair.
    """
    queries = list(dict.fromkeys(queries))
    wanted = len(queries) if limit is None else min(limit, len(queries))
    each, done, end = n_completions(form, axis), 0, 0
    found = PairSet((), {})

    def report(steps: int) -> None:
        nonlocal done
        done += steps
        if on_progress is not None:
            on_progress(done, each * max(wanted, end))

    while end < len(queries) and len(found.pairs) < wanted:
        # Some more than are missing, as some of them will be dropped.
        size = max(_LEAST_CHUNK, math.ceil(_MORE * (wanted - len(found.pairs))))
        part = queries[end : end + min(size, chunk)]
        if not store.torn:
            # What a build with another limit has finished stays as it is, and is not asked again.
            kept = next((n for n, query in enumerate(part) if query not in store), 0)
            part = part[:kept] or part
        end += len(part)
        missing = [query for query in part if query not in store]
        if missing:
            short = [query for query in part if fits(query)]
            entries = _generate_chunk(complete, axis, short, form, chat, seed, score, report)
            if len(short) < len(part):
                report(each * (len(part) - len(short)))
            keep([pair for pair, reason in entries if reason is None])
            found_of = {entry[0].query: entry for entry in entries}
            # Pairs that are there stay as they are: a person may have edited them.
            store.append([found_of.get(query, _too_long(query)) for query in missing])
        else:
            report(each * len(part))
        found = store.result(queries[:end])
    return PairSet(found.pairs[:wanted], found.dropped, tuple(queries[:end]))


def _generate_chunk(
    complete: Complete,
    axis: Axis,
    queries: Sequence[str],
    form: RequestForm,
    chat: bool,
    seed: int,
    score: Score | None,
    report: Callable[[int], None],
) -> list[tuple[PreferencePair, str | None]]:
    """Both sides of a few queries: pairs with the reason to drop them, or None."""
    written = write_answers(
        complete,
        axis,
        [(query, form) for query in queries],
        chat=chat,
        seed=seed,
        max_tokens=ANSWER_TOKENS,
        tick=lambda: report(1),
    )
    entries: list[tuple[PreferencePair, str | None]] = []
    for query, (wanted, unwanted) in zip(queries, written, strict=True):
        pair = PreferencePair(
            query,
            prompts.cut_next_turn(wanted.text),
            prompts.cut_next_turn(unwanted.text),
            wanted.request.user,
            unwanted.request.user,
            wanted.request.system,
            unwanted.request.system,
        )
        described = wanted.described and unwanted.described
        reason = drop_reason(wanted.text, unwanted.text) if described else "no characteristics"
        entries.append((pair, reason))
    usable = [n for n, (_, reason) in enumerate(entries) if reason is None]
    if score is None or not usable:
        return entries
    texts = [
        (
            Text(queries[n], entries[n][0].chosen, form.name, written[n][0].ended),
            Text(queries[n], entries[n][0].rejected, form.name, written[n][1].ended),
        )
        for n in usable
    ]
    for n, value in zip(usable, score(texts), strict=True):
        reason = None if value > 0 else NO_DIFFERENCE
        entries[n] = replace(entries[n][0], score=round(float(value), 4)), reason
    return entries


def _too_long(query: str) -> tuple[PreferencePair, str]:
    """The entry of a query that was not asked."""
    return PreferencePair(query, "", "", query, query), "too long"


def read_labelled_pairs(path: str | Path, axis: Axis) -> PairSet:
    """The pairs of a person's own JSON-lines file: `query`, `chosen`, `rejected`.

    Where a line does not say what was asked (`chosen_request`, `rejected_request`), the axis' trait
    is simply asked for, because the state at the deciding token needs the two sides in its context.
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
    """Why a line says that its pair is not used, as it may be shown; None where it is used."""
    return printable(text_of(record, "dropped", where), 60) if "dropped" in record else None


def _words(text: str) -> list[str]:
    return [word for word in text.casefold().split() if any(map(str.isalnum, word))]


def _is_json(line: bytes) -> bool:
    try:
        parse_record(line.decode("utf-8"), "")
    except (UnicodeDecodeError, BadInputError):
        return False
    return True
