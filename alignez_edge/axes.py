"""Axes: what is steered, as two opposite wordings.

An axis is a value that is valid from the moment it is made. It comes from Python, from a TOML
file, or from the built-in ones beside the profiles.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from alignez_edge.errors import AxisError
from alignez_edge.files import (
    builtin_folder,
    is_unprintable,
    near_hint,
    parse_toml,
    printable,
    read_text,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_TRAIT = 200
MAX_TEXT = 2000
MAX_QUERIES = 10_000
MAX_FILE = 512 << 10  # bytes; half a second of parsing at the worst
_KEYS = ("name", "description", "positive", "negative", "queries", "prompts")
_PROMPTS = ("positive", "negative")


@dataclass(frozen=True)
class Axis:
    """What is steered: `positive` and `negative` are trait words or wording.

    They stand where "polite" stands in "You are a polite assistant." An author's own sentence in
    place of that one goes into `positive_prompt` and `negative_prompt`, word for word. `queries`
    are the questions that pairs are made from when the caller brings none. Every text is one
    printable line. Raises `AxisError`.
    """

    name: str
    positive: str
    negative: str
    description: str = ""
    queries: tuple[str, ...] = ()
    positive_prompt: str | None = None
    negative_prompt: str | None = None

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
        self._check("negative", self.negative, MAX_TRAIT)
        if self.positive.strip().casefold() == self.negative.strip().casefold():
            raise AxisError(f"axis {self.name}: positive and negative are the same")
        if self.description != "":
            self._check("description", self.description, MAX_TEXT)
        for key, prompt in (
            ("prompts.positive", self.positive_prompt),
            ("prompts.negative", self.negative_prompt),
        ):
            if prompt is not None:
                self._check(key, prompt, MAX_TEXT)
        if len(self.queries) > MAX_QUERIES:
            raise AxisError(f"axis {self.name}: more than {MAX_QUERIES:,} queries")
        for number, query in enumerate(self.queries, 1):
            self._check(f"query {number}", query, MAX_TEXT)

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
        _known(prompts, _PROMPTS, f"{shown}, [prompts]")
        for key in ("name", "positive", "negative"):
            if key not in table:
                raise AxisError(f"{shown}: the key {key} is missing")
        if not isinstance(table.get("queries", []), list):
            raise AxisError(f"{shown}: queries must be a list, not {_kind(table['queries'])}")
        try:
            return cls(
                **table,
                positive_prompt=prompts.get("positive"),
                negative_prompt=prompts.get("negative"),
            )
        except AxisError as failure:
            raise AxisError(f"{shown}: {failure.message}", failure.hint) from None

    @classmethod
    def builtin(cls, name: str) -> Axis:
        """The built-in axis `name`; raises `AxisError` with near matches where there is none."""
        if name not in (known := builtin_names()):
            raise AxisError(
                f"no built-in axis is called '{printable(str(name), 80)}'",
                hint=near_hint(str(name), known, "axes"),
            )
        return cls.load(builtin_folder() / f"{name}.toml")

    def wording(self) -> dict[str, str | None]:
        """What an axis asks of a model: all of it but its queries and its description."""
        return {k: v for k, v in asdict(self).items() if k not in ("queries", "description")}

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
        return "\n".join(lines) + "\n"


def builtin_names() -> list[str]:
    """The names of the built-in axes, in order."""
    return sorted(path.stem for path in builtin_folder().glob("*.toml"))


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
