"""How polite a text is, by published strategies of politeness and what people made of each.

Danescu-Niculescu-Mizil, Sudhof, Jurafsky, Leskovec and Potts, "A computational approach to
politeness with application to social factors" (ACL 2013), had people rate requests of two sentences
each, looked for twenty strategies in them, and give the mean rating of the requests that use each
(table 3, in standard deviations). Here a text is cut into pieces of two sentences. A piece scores
the sum of the table's means over the strategies in it, however often each is used, and a text the
mean of its pieces.

The words of the strategies are those of the authors. Four things differ:
- No parser. A word that must be the subject or object of another stands next to it here, and any
  hedge counts, with a subject or without.
- A direct question is a sentence that ends in a question mark: the paper's texts are all requests.
- The signs of VADER's lexicon stand in for Liu's lists of positive and negative words.
- The sum over strategies: the paper trains a classifier, whose weights it does not print.

The ratings are of requests among editors and programmers. Answers of a model are something else: a
warm tone without any of these words is not seen, and the "I'm sorry" of a refusal counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

PIECE = 2
"""Sentences of a piece: as many as a request of the paper has."""
HEDGES = frozenset(
    """almost apparent apparently appear appeared appears approximately argue argued argues around
    assume assumed broadly claim claimed claims doubt doubtful essentially estimate estimated fairly
    feel feels felt frequently generally guess indicate indicated indicates largely likely mainly
    may maybe might mostly often ought perhaps plausible plausibly possible possibly postulate
    postulated postulates presumable presumably probable probably quite rather relatively roughly
    seems should sometimes somewhat suggest suggested suggests suppose supposed supposes suspect
    suspects think thinking thought typical typically uncertain uncertainly unclear unclearly
    unlikely usually""".split()
)
_HEDGING = re.compile(
    r"\b(certain (amount|extent|level)|from (our|this|my) perspective|in general|"
    r"in most (cases|instances)|in (our|my|this) view|in (our|my) opinion|on the whole|"
    r"tend(s|ed)? to|to my knowledge)\b"
)
_I, _WE = frozenset("i my mine myself".split()), frozenset("we our us ourselves".split())
_YOU = frozenset("you your yours yourself".split())
_END = re.compile(r"(?<=[.!?…。！？؟])[\"”'’)\]*]*\s+|[\r\n]+|(?<=[。！？])")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Sentence:
    """A sentence in lower case and its words; what follows an apostrophe is a word of its own."""

    text: str
    words: tuple[str, ...]

    def opens(self, *words: str) -> bool:
        """Whether one of `words` comes first."""
        return self.words[0] in words

    def has(self, pattern: str) -> bool:
        """Whether the regular expression matches whole words somewhere."""
        return re.search(rf"\b(?:{pattern})\b", self.text) is not None


@dataclass(frozen=True)
class Strategy:
    """One row of the paper's table 3: the mean rating of the requests that use the strategy."""

    name: str
    rating: float
    is_in: Callable[[Sentence], bool]


@cache
def _valences() -> dict[str, float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return dict(SentimentIntensityAnalyzer().lexicon)


STRATEGIES = (
    Strategy("Gratitude", 0.87, lambda s: s.has(r"thank\w*|i (\w+ )?appreciate")),
    Strategy(
        "Deference",
        0.78,
        lambda s: s.opens("great", "good", "nice", "interesting", "cool", "excellent", "awesome"),
    ),
    Strategy("Greeting", 0.43, lambda s: s.opens("hi", "hello", "hey")),
    Strategy("Positive lexicon", 0.12, lambda s: any(_valences().get(w, 0) > 0 for w in s.words)),
    Strategy("Negative lexicon", -0.13, lambda s: any(_valences().get(w, 0) < 0 for w in s.words)),
    Strategy(
        "Apologizing",
        0.36,
        lambda s: s.has(r"sorry|w?oops|i (\w+ )?apologi[sz]e|(excuse|forgive) me"),
    ),
    Strategy("Please", 0.49, lambda s: "please" in s.words[1:]),
    Strategy("Please start", -0.30, lambda s: s.opens("please")),
    Strategy("Indirect (btw)", 0.63, lambda s: s.words[:3] == ("by", "the", "way")),
    Strategy(
        "Direct question",
        -0.27,
        lambda s: s.text.endswith("?") and bool({"what", "why", "who", "how"} & {*s.words[:2]}),
    ),
    Strategy("Direct start", -0.43, lambda s: s.opens("so", "then", "and", "but", "or")),
    Strategy("Counterfactual modal", 0.47, lambda s: s.has("(could|would) you")),
    Strategy("Indicative modal", 0.09, lambda s: s.has("(can|will) you")),
    Strategy("1st person start", 0.12, lambda s: s.opens(*_I)),
    Strategy("1st person pl.", 0.08, lambda s: not _WE.isdisjoint(s.words)),
    Strategy("1st person", 0.08, lambda s: not _I.isdisjoint(s.words[1:])),
    Strategy("2nd person", 0.05, lambda s: not _YOU.isdisjoint(s.words[1:])),
    Strategy("2nd person start", -0.30, lambda s: s.opens(*_YOU)),
    Strategy(
        "Hedges",
        0.14,
        lambda s: not HEDGES.isdisjoint(s.words) or _HEDGING.search(s.text) is not None,
    ),
    Strategy(
        "Factuality",
        -0.38,
        lambda s: s.has("really|actually|honestly|surely|in fact|the (point|reality|truth)"),
    ),
)


def sentences(text: str) -> list[str]:
    """The sentences of a text that hold a word, without space around; a line's end ends one."""
    return [part.strip() for part in _END.split(text) if _WORD.search(part)]


def strategies(piece: list[str]) -> list[Strategy]:
    """The strategies that any of these sentences uses."""
    read = [Sentence(text.lower(), tuple(_WORD.findall(text.lower()))) for text in piece]
    return [strategy for strategy in STRATEGIES if any(map(strategy.is_in, read))]


def politeness(text: str) -> float:
    """The score of a text with at least one word, in the paper's standard deviations."""
    parts = sentences(text)
    pieces = [parts[start : start + PIECE] for start in range(0, len(parts), PIECE)]
    return sum(s.rating for piece in pieces for s in strategies(piece)) / len(pieces)
