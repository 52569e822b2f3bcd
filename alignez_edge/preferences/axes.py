"""Axes: what is steered, as two opposite wordings.

An axis is a value that is valid from the moment it is made. It comes from Python, from a TOML
file, or from the built-in ones beside the profiles.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from alignez_edge.errors import AxisError
from alignez_edge.files.folders import builtin_folder
from alignez_edge.files.reading import parse_toml, read_text
from alignez_edge.files.text import MAX_TEXT, is_unprintable, near_hint, printable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_TRAIT = 200
MAX_QUERIES = 10_000
MAX_FILE = 512 << 10  # bytes; half a second of parsing at the worst
_KEYS = ("name", "description", "positive", "negative", "queries", "prompts", "requests")
_SIDES = ("positive", "negative")
QUERY = "{query}"
"""Where the question goes in a request of the author's own."""

Side = Literal["positive", "negative"]


@dataclass(frozen=True)
class Wording:
    """An author's words for one side, for the forms of request (`requests.py`); None: made from the
    trait.

    `role` is a sentence or two about the assistant ("You are an extremely polite assistant."),
    `style` one about the answer ("Answer in a very polite way."), `person` what an interview says
    of the person asked ("somebody who is always very polite"). `own` is a whole request, with
    `{query}` where the question goes.
    """

    role: str | None = None
    style: str | None = None
    person: str | None = None
    own: str | None = None

    def given(self) -> dict[str, str]:
        """What is not None, by name."""
        return {key: text for key, text in asdict(self).items() if text is not None}


WORDINGS = tuple(field.name for field in fields(Wording))


@dataclass(frozen=True)
class Axis:
    """What is steered: `positive` and `negative` are trait words or wording.

    They stand where "polite" stands in "You are a polite assistant."; "a pirate" and "talks like a
    pirate" do as well. An axis without a `negative` has one side only: its other side is the plain
    answer. An author's own sentence in place of the paper's goes into `positive_prompt` and
    `negative_prompt`, word for word; words for other forms of request go into `positive_wording`
    and `negative_wording`. `queries` are the questions of pairs when the caller brings none.
    Every text is one printable line. Raises `AxisError`.
    """

    name: str
    positive: str
    negative: str | None = None
    description: str = ""
    queries: tuple[str, ...] = ()
    positive_prompt: str | None = None
    negative_prompt: str | None = None
    positive_wording: Wording = Wording()
    negative_wording: Wording = Wording()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise AxisError(
                f"an axis cannot be named '{printable(str(self.name), 80)}'",
                hint="use up to 64 letters, digits, hyphens and underscores",
            )
        if isinstance(self.queries, str):
            raise AxisError(f"axis {self.name}: queries must be a list of texts")
        object.__setattr__(self, "queries", tuple(self.queries))
        self._check("positive", self.positive, MAX_TRAIT)
        if self.negative is not None:
            self._check("negative", self.negative, MAX_TRAIT)
            if self.positive.strip().casefold() == self.negative.strip().casefold():
                raise AxisError(f"axis {self.name}: positive and negative are the same")
        elif self.negative_prompt is not None or self.negative_wording.given():
            raise AxisError(
                f"axis {self.name}: there is wording for a negative side, but no negative",
                hint="an axis without a negative has the plain answer as its other side",
            )
        if self.description != "":
            self._check("description", self.description, MAX_TEXT)
        for key, prompt in (
            ("prompts.positive", self.positive_prompt),
            ("prompts.negative", self.negative_prompt),
        ):
            if prompt is not None:
                self._check(key, prompt, MAX_TEXT)
        for side in _SIDES:
            for key, text in self.wording_of(side).given().items():
                self._check(f"requests.{side}.{key}", text, MAX_TEXT)
            own = self.wording_of(side).own
            if own is not None and own.count(QUERY) != 1:
                raise AxisError(
                    f"axis {self.name}: requests.{side}.own must hold {QUERY} once",
                    hint=f"{QUERY} stands where the question goes",
                )
        if len(self.queries) > MAX_QUERIES:
            raise AxisError(f"axis {self.name}: more than {MAX_QUERIES:,} queries")
        for number, query in enumerate(self.queries, 1):
            self._check(f"query {number}", query, MAX_TEXT)

    def wording_of(self, side: str) -> Wording:
        """The author's words for one side."""
        return self.positive_wording if side == "positive" else self.negative_wording

    def __str__(self) -> str:
        """Both sides in a few words."""
        return f"{self.positive} / {self.negative or 'the plain answer'}"

    def _check(self, key: str, text: object, limit: int) -> None:
        if not isinstance(text, str):
            raise AxisError(f"axis {self.name}: {key} must be a text, not {_kind(text)}")
        if not text.strip():
            raise AxisError(f"axis {self.name}: {key} is empty")
        if len(text) > limit:
            raise AxisError(f"axis {self.name}: {key} is longer than {limit:,} characters")
        if any(is_unprintable(c) for c in text):
            raise AxisError(
                f"axis {self.name}: {key} must be one printable line: '{printable(text, 60)}'"
            )

    @classmethod
    def load(cls, path: str | Path) -> Axis:
        """The axis of a TOML file; raises `AxisError` with one line on anything odd in it."""
        text = read_text(path, limit=MAX_FILE, what="axis file", error=AxisError)
        shown = printable(str(path))
        table = parse_toml(text, path, AxisError)
        _known(table, _KEYS, shown)
        prompts = table.pop("prompts", {})
        if not isinstance(prompts, dict):
            raise AxisError(f"{shown}: prompts must be a table, not {_kind(prompts)}")
        _known(prompts, _SIDES, f"{shown}, [prompts]")
        wording = _wording(table.pop("requests", {}), shown)
        for key in ("name", "positive"):
            if key not in table:
                raise AxisError(f"{shown}: the key {key} is missing")
        if not isinstance(table.get("queries", []), list):
            raise AxisError(f"{shown}: queries must be a list, not {_kind(table['queries'])}")
        try:
            return cls(
                **table,
                positive_prompt=prompts.get("positive"),
                negative_prompt=prompts.get("negative"),
                positive_wording=wording.get("positive", Wording()),
                negative_wording=wording.get("negative", Wording()),
            )
        except AxisError as failure:
            raise AxisError(f"{shown}: {failure.message}", failure.hint) from None

    @classmethod
    def builtin(cls, name: str) -> Axis:
        """The built-in axis `name`; raises `AxisError` with near matches if there is none."""
        if name not in (known := builtin_names()):
            raise AxisError(
                f"no built-in axis is called '{printable(str(name), 80)}'",
                hint=near_hint(str(name), known, "axes"),
            )
        return cls.load(builtin_folder() / f"{name}.toml")

    def wording(self) -> dict[str, object]:
        """What an axis asks of a model: all of it but its queries and its description."""
        found = {k: v for k, v in asdict(self).items() if k not in ("queries", "description")}
        for side in _SIDES:
            found[f"{side}_wording"] = self.wording_of(side).given()
        # An axis without words of its own reads as it always did: digests are made of this.
        return {k: v for k, v in found.items() if v != {}}

    def to_toml(self) -> str:
        """The axis as the text of a TOML file that `load` reads back as an equal axis."""
        lines = [
            f"{key} = {_quoted(getattr(self, key))}"
            for key in ("name", "description", "positive", "negative")
            if getattr(self, key)
        ]
        if self.queries:
            lines += ["queries = [", *(f"    {_quoted(q)}," for q in self.queries), "]"]
        prompts = (("positive", self.positive_prompt), ("negative", self.negative_prompt))
        if any(prompt is not None for _, prompt in prompts):
            lines += ["", "[prompts]"]
            lines += [f"{key} = {_quoted(text)}" for key, text in prompts if text is not None]
        for side in _SIDES:
            if given := self.wording_of(side).given():
                lines += ["", f"[requests.{side}]"]
                lines += [f"{key} = {_quoted(text)}" for key, text in given.items()]
        return "\n".join(lines) + "\n"


def builtin_names() -> list[str]:
    """The names of the built-in axes, in order."""
    return sorted(path.stem for path in builtin_folder().glob("*.toml"))


def _wording(requests: object, shown: str) -> dict[str, Wording]:
    """The tables `[requests.positive]` and `[requests.negative]` of a file."""
    if not isinstance(requests, dict):
        raise AxisError(f"{shown}: requests must be a table, not {_kind(requests)}")
    _known(requests, _SIDES, f"{shown}, [requests]")
    for side, words in requests.items():
        if not isinstance(words, dict):
            raise AxisError(f"{shown}: requests.{side} must be a table, not {_kind(words)}")
        _known(words, WORDINGS, f"{shown}, [requests.{side}]")
    return {side: Wording(**words) for side, words in requests.items()}


def _known(table: dict[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise AxisError(
                f"{where}: unknown key '{printable(key, 60)}'", hint=near_hint(key, known, "keys")
            )


def _kind(value: object) -> str:
    return {bool: "a true or false", int: "a number", float: "a number", list: "a list"}.get(
        type(value), f"a {type(value).__name__}"
    )


def _quoted(text: str) -> str:
    # A JSON string of printable characters is a TOML basic string.
    return json.dumps(text, ensure_ascii=False)
