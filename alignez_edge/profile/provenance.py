"""Where a profile came from: what is needed to build it again, kept in its report under `build`.

The axis, the method, the seed, the author and the versions are fields of a profile anyway. Here is
the rest: the model's file, the queries, and the options of the build. No path is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignez_edge._version import __version__
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import is_unprintable, printable
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.preferences.queries import MAX_QUERY
from alignez_edge.preferences.requests import AUTO, FORMS, TWO_STEPS

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model

KEY = "build"
MAX_TEXTS = 400_000
"""Characters of queries that a file may carry: as JSON they fill half of a report at most."""
_MAX_COUNT = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20

Texts = Literal["none", "some", "all"]
"""What a profile carries of the texts that it was built from: nothing; the few pairs that `verify`
replays; these and all queries."""
Kind = Literal["queries", "pairs"]


@dataclass(frozen=True)
class ModelFile:
    """The file that a profile was built on: its name, no path. `size` is in bytes; `sha256`, in
    hexadecimal, is of the whole file, as `sha256sum` says it and model hubs show it: reading the
    file once more takes far less than a build.
    """

    name: str
    quantization: str
    size: int
    sha256: str

    @classmethod
    def of(cls, model: Model) -> ModelFile:
        """The file of a loaded model; every byte of it is read."""
        digest = hashlib.sha256()
        try:
            with model.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as failure:
            raise BadInputError(f"cannot read the model again: {failure.strerror}") from None
        facts = model.facts
        return cls(
            printable(model.path.name), facts.quantization, facts.size_bytes, digest.hexdigest()
        )


@dataclass(frozen=True)
class Source:
    """What a build began with: `count` queries or labelled pairs, with the SHA-256 of these.

    `queries` are the texts themselves, where the author has included them.
    """

    kind: Kind
    count: int
    sha256: str
    queries: tuple[str, ...] = ()

    @classmethod
    def of_queries(cls, queries: Sequence[str], *, include: bool) -> Source:
        """Queries, with their texts if `include`; raises `BadInputError` if that is too much."""
        total = sum(map(len, queries))
        if include and total > MAX_TEXTS:
            raise BadInputError(
                f"the queries have {total:,} characters; a profile carries at most {MAX_TEXTS:,}",
                "leave out --include-queries: their digest is kept in any case",
            )
        texts = tuple(queries) if include else ()
        return cls("queries", len(queries), queries_digest(queries), texts)

    @classmethod
    def of_pairs(cls, pairs: Sequence[PreferencePair]) -> Source:
        """Labelled pairs, whatever the form of the file that they came from."""
        records = ({k: v for k, v in pair.record().items() if k != "score"} for pair in pairs)
        lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
        return cls("pairs", len(pairs), hashlib.sha256(lines.encode()).hexdigest())


@dataclass(frozen=True)
class Provenance:
    """How a profile was built, as far as its fields do not say it.

    `layers`, `neighbors` and `ctx` are the options as given, None if they were left open.
    `limit` is the number of pairs that were wanted (None: one for every query), `request` the
    form of request, or `auto`; profiles of before there was a choice were asked for in two steps.
    """

    model: ModelFile
    source: Source
    layers: tuple[int, ...] | None = None
    neighbors: int | None = None
    width: int = 16
    threads: int = 1
    ctx: int | None = None
    limit: int | None = None
    request: str = TWO_STEPS

    def report(self) -> dict[str, Any]:
        """What goes into a profile's report."""
        return {KEY: asdict(self)}

    @classmethod
    def of(cls, profile: Profile) -> Provenance | None:
        """What a profile's report tells; None if it tells nothing that is sound.

        A report can come from an untrusted file.
        """
        try:
            return _checked(profile.report[KEY])
        except (KeyError, TypeError, ValueError):
            return None


def queries_digest(queries: Iterable[str]) -> str:
    """SHA-256 of the queries as a text of one a line: what `sha256sum` says of such a file."""
    text = "".join(f"{query}\n" for query in queries)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def versions() -> dict[str, str]:
    """What a build runs with."""
    found = {"alignez-edge": __version__}
    for name in ("llama-cpp-python", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _checked(value: Any) -> Provenance:
    """A report's entry as a `Provenance`; raises `KeyError`, `TypeError` or `ValueError`."""
    file, source, layers = value["model"], value["source"], value["layers"]
    queries = tuple(_text(query) for query in source["queries"])
    if source["kind"] not in get_args(Kind) or sum(map(len, queries)) > MAX_TEXTS:
        raise ValueError("an unusable source")
    return Provenance(
        ModelFile(
            _line(file["name"]),
            _line(file["quantization"]),
            _count(file["size"], 0, 1 << 63),
            _digest(file["sha256"]),
        ),
        Source(
            source["kind"],
            _count(source["count"], 1, _MAX_COUNT),
            _digest(source["sha256"]),
            queries,
        ),
        layers=None if layers is None else tuple(_count(layer, 0, 10_000) for layer in layers),
        neighbors=_optional(value["neighbors"]),
        width=_count(value["width"], 1, 1024),
        threads=_count(value["threads"], 1, 1024),
        ctx=_optional(value["ctx"]),
        limit=_optional(value.get("limit")),
        request=_request(value.get("request", TWO_STEPS)),
    )


def _count(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError("not a count within its bounds")
    return value


def _request(value: object) -> str:
    if value != AUTO and value not in FORMS:
        raise ValueError("no form of request")
    return str(value)


def _optional(value: object) -> int | None:
    return None if value is None else _count(value, 1, _MAX_COUNT)


def _line(value: object) -> str:
    text = _text(value)
    if len(text) > 200 or any(map(is_unprintable, text)):
        raise ValueError("not a printable line")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_QUERY:
        raise ValueError("not a text of bounded length")
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("a text with characters that are none")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("not a digest")
    return value
