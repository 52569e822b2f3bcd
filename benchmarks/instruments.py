"""Judges that nobody here wrote.

Each instrument turns a text into a number by a published rule: a lexicon, a formula, or a count of
something that cannot be argued about. They see words and marks and nothing else. They are blind to
truth, sense and fluency, and to irony; whoever measures with them has to measure the cost of an
effect beside it. They are for English, except those that look at marks only.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.politeness import politeness, sentences

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LIST_MARK = re.compile(r"[ \t]*(?:[-*+•‣◦–]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|Step \d+[.:])[ \t]+")
_ASKED = re.compile(r"[?？؟]\W*$")
_DECORATION = re.compile(r"[*_#`]+")

_CONTRACTION = re.compile(
    r"\b(?:\w+n['’]t|i['’]m|y['’]all|\w+['’](?:ll|ve|re|d)"
    r"|(?:it|he|she|that|there|here|what|who|where|how|when|why|let|"
    r"every(?:one|body|thing)|some(?:one|body|thing)|no(?:body|thing))['’]s"
    r"|(?:do|does|did|ca|wo|is|are|was|were|would|could|should|have|has)nt|im|ive|youre|thats)\b",
    re.IGNORECASE,
)
_UNCONTRACTED = re.compile(
    r"\b(?:i am|(?:you|we|they) are|(?:it|he|she|that|there|here|what|who|where|how) is"
    r"|(?:i|you|we|they|he|she|it|that|there|who) (?:will|would)"
    r"|(?:i|you|we|they|he|she|it) (?:have|has|had)(?= (?:not|never|already|just|been|\w+(?:ed|en)|"
    r"done|had|got|made|gone|put|read)\b)"
    r"|(?:do|does|did|is|are|was|were|has|have|had|will|would|can|could|should|must|need) not"
    r"|let us)\b(?= \w)|\bcannot\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Instrument:
    """A judge of one axis: `score` rises from the `negative` to the `positive` side.

    `unit` says what the number is. `measure` gets a text that has a word and gives the number, or
    None where the text has nothing that the instrument measures. `any_script` is for instruments
    that do not read words: the others know Latin letters only.
    """

    axis: str
    name: str
    positive: str
    negative: str
    unit: str
    measure: Callable[[str], float | None]
    any_script: bool = False

    def score(self, text: str) -> float | None:
        """How much of the axis' positive side the text has, in `unit`.

        None: there is nothing to judge. That is a text without a letter or digit, one that is
        mostly in another script than Latin (unless `any_script`), or one without anything that the
        instrument measures (for `formal`: without a place for a contraction). An average leaves
        such a text out; it is neither good nor bad.
        """
        if not _WORD.search(text) or not (self.any_script or _is_latin(text)):
            return None
        return self.measure(text)


def _is_latin(text: str) -> bool:
    """Whether half of the letters, or more, are Latin; true for a text of digits."""
    letters = [char for char in text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters)
    return 2 * latin >= len(letters)


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _cheerful(text: str) -> float:
    """Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social
    media text" (ICWSM 2014). Long texts saturate: it normalizes the sum over the words."""
    return float(_vader().polarity_scores(text)["compound"])


def _concise(text: str) -> float:
    """Minus the logarithm, so that half as long is as much at any length, and so that one answer
    that loops until it is cut off does not carry a mean."""
    return -math.log2(len(_WORD.findall(text)))


def _simple(text: str) -> float:
    """Flesch, "A new readability yardstick" (1948), as textstat computes it, from 0 up.

    Syllables are looked up in the CMU dictionary, which is among the installed packages. Flesch's
    scale begins at 0; below that there is only text without full stops, of which one would carry a
    mean. textstat does not know that a line's end ends a sentence, so a full stop is put there.
    """
    import textstat

    lines = (_DECORATION.sub("", _LIST_MARK.sub("", line)).strip() for line in text.splitlines())
    ended = (line if line.endswith((".", "!", "?")) else f"{line}." for line in lines if line)
    return max(0.0, float(textstat.flesch_reading_ease(" ".join(ended))))


def _formal(text: str) -> float | None:
    """None where there is neither a contraction nor a place for one. A place is two words that are
    commonly drawn together; a noun before 's is none, because that may be a possessive."""
    text = " ".join(text.split())
    contracted = len(_CONTRACTION.findall(text))
    places = contracted + len(_UNCONTRACTED.findall(text))
    return 1 - contracted / places if places else None


def _lists(text: str) -> float:
    """The words of the lines that begin with a list mark, over all words."""
    marked = 0
    for line in text.splitlines():
        if mark := _LIST_MARK.match(line):
            marked += len(_WORD.findall(line[mark.end() :]))
    total = sum(len(_WORD.findall(_LIST_MARK.sub("", line))) for line in text.splitlines())
    return marked / total if total else 0.0


def _questions(text: str) -> float:
    """A question that the answer puts to itself counts as well."""
    found = sentences(text)
    return sum(bool(_ASKED.search(part)) for part in found) / len(found)


INSTRUMENTS = {
    instrument.axis: instrument
    for instrument in (
        Instrument(
            "cheerful", "VADER", "cheerful", "gloomy", "compound score, −1 to +1", _cheerful
        ),
        Instrument("concise", "words", "concise", "wordy", "−log2 of the words", _concise),
        Instrument("simple", "Flesch", "simple", "complicated", "reading ease, 0 to 121", _simple),
        Instrument(
            "formal", "contractions", "formal", "casual", "share of places uncontracted", _formal
        ),
        Instrument(
            "lists", "list marks", "lists", "prose", "share of words in list items", _lists, True
        ),
        Instrument(
            "questions",
            "question marks",
            "asks back",
            "only answers",
            "share of sentences that are questions",
            _questions,
            True,
        ),
        Instrument(
            "polite",
            "politeness strategies",
            "polite",
            "rude",
            "rating in standard deviations",
            politeness,
        ),
    )
}
"""By axis."""
