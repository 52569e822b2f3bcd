"""The pairs of a build in progress, on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.json_log import Log
from alignez_edge.files.reading import decode_utf8, read_bytes
from alignez_edge.files.records import iter_records, text_of
from alignez_edge.files.text import printable
from alignez_edge.files.writing import make_folder
from alignez_edge.preferences.pairs import (
    _FIELDS,
    _HEADER,
    MAX_FILE,
    PairSet,
    PreferencePair,
    _pair,
    _reason_of,
    drop_reason,
)


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

        Raises `BadInputError` with the line number if the file is malformed, and `AlignezError`
        if it cannot be written.
        """
        self.path = Path(path)
        self._log = Log(self.path, "the finished pairs are kept: start the build again to go on")
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
        """Take in an existing file; False if a new one has to begin."""
        if not self.path.exists():
            return False
        data = read_bytes(self.path, limit=MAX_FILE, what="pair file")
        if data and not data.endswith(b"\n"):
            self.torn = self._log.repair(by_hand=True)
            data = read_bytes(self.path, limit=MAX_FILE, what="pair file")
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

    def _append(self, records: Sequence[Mapping[str, object]]) -> None:
        self._log.append_lines([json.dumps(record, ensure_ascii=False) for record in records])
