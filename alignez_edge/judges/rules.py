"""A rule file as a judge: words, phrases and lengths that give an answer a score per aspect.

    name = "pirate"

    [aspects.pirate]
    positive = ["arr", "matey", "^ahoy", "me heart*"]    # the language of `phrases.py`
    negative = ["regards", "kindly"]
    share = 0.5              # of the sentences, when marked, make an answer fully so

    [aspects.concise]
    length = { unit = "words", best = 20, worst = 120 }

An aspect is scored from −1 to 1. Phrases: each sentence has a sign, that of its positive less its
negative places; the sum of the signs is divided by `share` times the number of sentences and cut to
[−1, 1]. A length scores 1 at `best` and beyond, −1 at `worst` and beyond, and lies on the line
between. Where an aspect has both, their mean. The aspect called like the axis gives the preference,
or the only one there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alignez_edge.errors import BadInputError
from alignez_edge.files.reading import parse_toml, read_text
from alignez_edge.files.text import near_hint, printable
from alignez_edge.judges.judging import Comparison, Judgement
from alignez_edge.judges.phrases import Phrases, is_word, sentences
from alignez_edge.preferences.axes import NAME

MAX_FILE = 512 << 10  # bytes
MAX_ASPECTS = 100
MAX_PHRASES = 1000
MAX_PHRASE = 200
_SIDES = ("positive", "negative")
_UNITS = ("words", "sentences", "characters")
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class Length:
    """1 at `best` and beyond, −1 at `worst` and beyond, straight between."""

    unit: str
    best: float
    worst: float

    def score(self, text: str, parts: list[list[str]]) -> float:
        """The score of an answer with the sentences `parts`."""
        size = {
            "words": sum(is_word(word) for words in parts for word in words),
            "sentences": len(parts),
            "characters": len(text.strip()),
        }[self.unit]
        way = (size - self.worst) / (self.best - self.worst)
        return 2 * min(max(way, 0.0), 1.0) - 1


@dataclass(frozen=True)
class Aspect:
    """What is looked for; `length` None and no phrases at all are not allowed together."""

    positive: Phrases
    negative: Phrases
    has_phrases: bool
    share: float
    length: Length | None

    def score(self, text: str) -> float:
        """From −1 to 1."""
        parts = sentences(text)
        found = [] if self.length is None else [self.length.score(text, parts)]
        if self.has_phrases:
            counts = [self.positive.count(words) - self.negative.count(words) for words in parts]
            total = sum((count > 0) - (count < 0) for count in counts)
            found.append(max(-1.0, min(1.0, total / max(1.0, self.share * len(parts)))))
        return sum(found) / len(found)


@dataclass(frozen=True)
class RuleJudge:
    """Prefers the answer with the higher score on the aspect of the axis."""

    name: str
    aspects: Mapping[str, Aspect]
    instant: ClassVar[bool] = True

    @classmethod
    def load(cls, path: str | Path) -> RuleJudge:
        """The judge of a rule file; raises `BadInputError` with one line on anything odd in it."""
        text = read_text(path, limit=MAX_FILE, what="rule file")
        shown = printable(str(path))
        table = parse_toml(text, path)
        _check_keys(table, ("name", "aspects"), shown)
        name = table.get("name", "rules")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BadInputError(
                f"{shown}: the judge cannot be named {printable(str(name), 80)!r}",
                "use up to 64 letters, digits, hyphens and underscores",
            )
        # Verdicts that are kept must not be mixed with those of other rules under the same name.
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        aspects = _table(table.get("aspects", {}), f"{shown}: aspects")
        if not 1 <= len(aspects) <= MAX_ASPECTS:
            raise BadInputError(
                f"{shown}: {len(aspects)} aspects; from 1 to {MAX_ASPECTS} are needed",
                "begin one with [aspects.NAME]",
            )
        return cls(f"{name}-{digest}", {a: _aspect(a, v, shown) for a, v in aspects.items()})

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        """See `Judge`. Raises `BadInputError` if no aspect belongs to the axis."""
        for asked in comparisons:
            deciding = self._aspect_of(asked.axis.name)
            scores = {
                name: (aspect.score(asked.first), aspect.score(asked.second))
                for name, aspect in self.aspects.items()
            }
            one, other = scores[deciding]
            preference = float((one > other) - (one < other))
            yield Judgement(preference if asked.side == "positive" else 0.0 - preference, scores)

    def _aspect_of(self, axis: str) -> str:
        if axis in self.aspects:
            return axis
        if len(self.aspects) == 1:
            return next(iter(self.aspects))
        raise BadInputError(
            f"the rule file {self.name} has no aspect called {axis}",
            f"its aspects: {', '.join(sorted(self.aspects))}",
        )


def _aspect(name: str, value: object, shown: str) -> Aspect:
    if not NAME.fullmatch(name):
        raise BadInputError(
            f"{shown}: an aspect cannot be named {printable(name, 80)!r}",
            "use up to 64 letters, digits, hyphens and underscores",
        )
    where = f"{shown}, [aspects.{name}]"
    table = _table(value, where)
    _check_keys(table, ("positive", "negative", "share", "length"), where)
    texts = {side: _phrases(table.get(side, []), f"{where}: {side}") for side in _SIDES}
    share = _number(table.get("share", DEFAULT_SHARE), f"{where}: share")
    if not 0 < share <= 1:
        raise BadInputError(f"{where}: share is {share:g}; it must be above 0 and at most 1")
    length = _length(table["length"], where) if "length" in table else None
    if length is None and not any(texts.values()):
        raise BadInputError(f"{where}: it has neither phrases nor a length", "add positive = […]")
    positive, negative = (Phrases(texts[side]) for side in _SIDES)
    return Aspect(positive, negative, any(texts.values()), share, length)


def _phrases(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadInputError(f"{where} must be a list of texts")
    if len(value) > MAX_PHRASES:
        raise BadInputError(f"{where} has {len(value):,} phrases; at most {MAX_PHRASES:,}")
    for text in value:
        if len(text) > MAX_PHRASE:
            raise BadInputError(f"{where}: a phrase is longer than {MAX_PHRASE} characters")
        try:
            Phrases([text])
        except ValueError as failure:
            raise BadInputError(f"{where}: {printable(text, 60)!r} {failure}") from None
    return value


def _length(value: object, where: str) -> Length:
    table = _table(value, f"{where}: length")
    _check_keys(table, ("unit", "best", "worst"), f"{where}, length")
    unit = table.get("unit", "words")
    if unit not in _UNITS:
        raise BadInputError(
            f"{where}: length is counted in {printable(str(unit), 40)!r}",
            f"choose from {', '.join(_UNITS)}",
        )
    for key in ("best", "worst"):
        if key not in table:
            raise BadInputError(f"{where}: length has no {key}")
    best, worst = (_number(table[key], f"{where}: {key}") for key in ("best", "worst"))
    if best == worst:
        raise BadInputError(f"{where}: best and worst length are the same")
    return Length(unit, best, worst)


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise BadInputError(f"{where} must be a number from 0 to 1,000,000,000")
    return float(value)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInputError(f"{where} must be a table")
    return value


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise BadInputError(
                f"{where}: unknown key {printable(key, 60)!r}", near_hint(key, known, "keys")
            )
