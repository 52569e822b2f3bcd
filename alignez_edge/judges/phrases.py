"""Phrases that a text is searched for, without regular expressions.

A rule file may be untrusted, and one of Python's regular expressions can take hours over
one line. A phrase is a few words; matching takes time proportional to the text. The language:

- Words are runs of letters, digits and apostrophes; every other character that is not a blank is a
  word of its own, so that `!` is a phrase too. Case does not matter.
- `*` at the end or the beginning of a word stands for any more letters (`apolog*`), alone for
  exactly one word, whatever it is.
- `^` before the phrase wants it at the beginning of a sentence, `$` after it at the end, before
  the end mark or with it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[\w']+|[^\w\s]")
_PHRASE_WORD = re.compile(r"\*?[\w']+\*?|[^\w\s]")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*|[.!?]+")
_INNER_STAR = re.compile(r"[\w']\*[\w']")
_END_MARKS = (".", "!", "?")


@dataclass(frozen=True)
class _Phrase:
    words: tuple[str, ...]
    at_start: bool
    at_end: bool


class Phrases:
    """A set of phrases to look for. Raises `ValueError` that says what a text has or lacks."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Most phrases begin with a whole word, and only those of a word's own list are tried there.
        self._by_word: dict[str, list[_Phrase]] = defaultdict(list)
        self._wild: list[_Phrase] = []
        for text in texts:
            phrase = _parse(text)
            first = phrase.words[0]
            (self._wild if "*" in first else self._by_word[first]).append(phrase)

    def count(self, words: Sequence[str]) -> int:
        """At how many places of a sentence's `words` a phrase begins."""
        last = len(words)
        while last and words[last - 1] in _END_MARKS:
            last -= 1
        return sum(
            any(
                _matches(phrase, words, at, last)
                for group in (self._by_word.get(words[at], ()), self._wild)
                for phrase in group
            )
            for at in range(len(words))
        )


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence, in lower case; end marks are words of their own."""
    found = (_WORD.findall(part.casefold()) for part in _SENTENCE.findall(text))
    return [words for words in found if words]


def is_word(word: str) -> bool:
    """Whether it has a letter or a digit."""
    return any(map(str.isalnum, word))


def _parse(text: str) -> _Phrase:
    bare = text.strip().casefold()
    inner = bare.removeprefix("^").removesuffix("$")
    words = tuple(_PHRASE_WORD.findall(inner))
    if not words:
        raise ValueError("has no word")
    if _INNER_STAR.search(inner):
        raise ValueError("has a * inside a word; it can stand at either end")
    return _Phrase(words, bare.startswith("^"), bare.endswith("$"))


def _matches(phrase: _Phrase, words: Sequence[str], at: int, last: int) -> bool:
    """Whether the phrase stands at `at`; from `last` on there are only end marks."""
    end = at + len(phrase.words)
    if end > len(words) or (phrase.at_start and at) or (phrase.at_end and end < last):
        return False
    return all(map(_is_like, phrase.words, words[at:end]))


def _is_like(pattern: str, word: str) -> bool:
    if pattern == "*":
        return is_word(word)
    if "*" not in pattern:
        return pattern == word
    core = pattern.strip("*")
    if pattern[0] == pattern[-1]:
        return core in word
    return word.endswith(core) if pattern[0] == "*" else word.startswith(core)
