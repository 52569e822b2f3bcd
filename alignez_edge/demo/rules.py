"""The rule judge: an independent reading of an answer about the demo model's world.

Text (and query) in; per axis a score in [-1, 1] out, the share of true facts and a coherence
measure beside it. It knows the facts (`facts.txt`) and its own word lists (`rules.toml`); it has
never seen the generator's. The rules, one by one:

1. An answer is split into sentences at `.`, `!`, `?` and `:`-free line ends; letters are lowered.
2. *cheerful*, *formal*, *polite*: each sentence has a sign, the sign of (positive phrases minus
   negative phrases) that it contains, the facts' own words left out ('cool dark cellars' is not
   casual). A phrase up to two words after a negation counts for the
   other side. On *polite*, insults win: a sentence with any rude phrase is rude, whatever
   courtesies stand beside it.
3. The score of such an axis is the sum of the signs, divided by 0.6 times the number of sentences
   (at least 1), cut to [-1, 1]: an answer in which six sentences in ten bear the mark is fully so.
4. *helpful*: a sentence is a **true fact** if it has the object phrase of a fact of the query's
   topic and its subject is that topic (or `it`, or nothing); **wrong** if it ties the phrase of
   another topic to this one, this topic's to another, or denies it (`not`, `never`); **off the
   topic** if it states another topic's own fact; **evasive** if it has an evasive phrase; an
   **unknown claim** if it speaks of a topic (or `it`) and is none of these; else **social**.
   The score is (true - wrong - off - evasive - unknown) over the sentences that are not social.
   An answer without any such sentence scores -1: it does not answer. So does an empty one.
5. *knowledge*: true / (true + wrong + unknown), the share of claims about the topic that are
   true; None if nothing is claimed.
6. *coherence*: the share of words that belong to this world, times the share of sentences that
   are not a repetition of an earlier one. *loop*: a sentence that occurs three times or more, or
   the same four words five times or more.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from alignez_edge.demo.world import world

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STYLE_AXES: tuple[str, ...] = ("cheerful", "formal", "polite")
AXES: tuple[str, ...] = ("helpful", *STYLE_AXES)
FULL_SHARE = 0.6
"""The share of marked sentences that makes an answer fully so (rule 3)."""

_WORD = re.compile(r"[a-z']+")
# `it` as the subject of a claim, and not of a frame such as "it should be noted".
_IT_CLAIM = re.compile(r"\bit (?!may be|should be|is a |all |is an )[a-z]+ ")


@dataclass(frozen=True)
class RuleScores:
    """What the judge says of one answer.

    `scores` maps each axis to a number in [-1, 1]; `knowledge` is in [0, 1] or None; `coherence`
    is in [0, 1]; `sentences` counts them; `loop` tells a degenerate repetition.
    """

    scores: dict[str, float]
    knowledge: float | None
    coherence: float
    sentences: int
    loop: bool


@dataclass(frozen=True)
class _Rules:
    patterns: dict[tuple[str, int], re.Pattern[str]]
    evasive: re.Pattern[str]
    negation: re.Pattern[str]
    objects: re.Pattern[str]
    topics: re.Pattern[str]
    vocabulary: frozenset[str]


def judge(text: str, topic: str) -> RuleScores:
    """Score an answer to a query about `topic` (a topic of the world; `topic_of` finds it)."""
    sentences = split_sentences(text)
    scores = {axis: _style_score(sentences, axis) for axis in STYLE_AXES}
    kinds = Counter(_classify(sentences, topic))
    wrong = kinds["wrong"] + kinds["unknown"]
    against = wrong + kinds["off"] + kinds["evasive"]
    substance = kinds["true"] + against
    scores["helpful"] = (kinds["true"] - against) / substance if substance else -1.0
    claims = kinds["true"] + wrong
    repeated = len(sentences) - len(set(sentences))
    words = _WORD.findall(" ".join(sentences))
    known = sum(word in _rules().vocabulary for word in words) / len(words) if words else 0.0
    return RuleScores(
        scores={axis: scores[axis] for axis in AXES},
        knowledge=kinds["true"] / claims if claims else None,
        coherence=known * (1 - repeated / len(sentences)) if sentences else 0.0,
        sentences=len(sentences),
        loop=_is_loop(sentences, words),
    )


def topic_of(query: str) -> str | None:
    """The topic that a query is about: the longest topic name in it; None if there is none."""
    topics = _rules().topics.findall(query.lower())
    return max(topics, key=len) if topics else None


def split_sentences(text: str) -> list[str]:
    """Rule 1: sentences in lower case, without end marks, empty ones left out."""
    parts = re.split(r"[.!?\n]+", text.lower())
    return [" ".join(part.split()) for part in parts if _WORD.search(part)]


def _style_score(sentences: list[str], axis: str) -> float:
    total = 0
    for sentence in sentences:
        plain = _rules().objects.sub(" ", sentence).replace(",", " ").replace(":", " ")
        plain = " ".join(plain.split())
        counts = {1: 0, -1: 0}
        for side in (1, -1):
            for match in _rules().patterns[axis, side].finditer(plain):
                before = plain[: match.start()].split()[-2:]
                negated = any(_rules().negation.fullmatch(word) for word in before)
                counts[-side if negated else side] += 1
        if axis == "polite" and counts[-1]:
            total -= 1
        else:
            total += (counts[1] > counts[-1]) - (counts[1] < counts[-1])
    return max(-1.0, min(1.0, total / max(1.0, FULL_SHARE * len(sentences))))


def _classify(sentences: list[str], topic: str) -> list[str]:
    """Rule 4: one of true, wrong, off, evasive, unknown, social for each sentence."""
    rules = _rules()
    objects = world().topic_of_object
    kinds = []
    last = topic
    for sentence in sentences:
        found = rules.objects.search(sentence)
        before = sentence[: found.start()] if found else sentence
        named = rules.topics.findall(before)
        subject = named[-1] if named else last
        last = subject
        if found:
            owner = objects[found.group()]
            denied = bool(rules.negation.search(before)) and "no biggie" not in before
            if owner == subject and not denied:
                kinds.append("true" if owner == topic else "off")
            elif topic in (owner, subject):
                kinds.append("wrong")
            else:
                kinds.append("off")
        elif rules.evasive.search(sentence):
            kinds.append("evasive")
        elif (named or _IT_CLAIM.search(sentence)) and not _is_social(sentence):
            kinds.append("unknown")
        else:
            kinds.append("social")
    return kinds


def _is_social(sentence: str) -> bool:
    """Whether a sentence only greets, closes or sets a tone: no more than five words are left
    over when the marker phrases are taken out, and none of them is a verb of a fact."""
    rest = sentence
    for pattern in _rules().patterns.values():
        rest = pattern.sub(" ", rest)
    return len(_WORD.findall(_rules().topics.sub(" ", rest))) <= 5


def _is_loop(sentences: list[str], words: list[str]) -> bool:
    if sentences and Counter(sentences).most_common(1)[0][1] >= 3:
        return True
    fours = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return bool(fours) and fours.most_common(1)[0][1] >= 5


def _phrases(phrases: list[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(r"(?<![\w'])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w'])")


@cache
def _rules() -> _Rules:
    text = resources.files(__package__).joinpath("rules.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    w = world()
    lists = [table[axis][side] for axis in STYLE_AXES for side in ("positive", "negative")]
    phrases = [p for group in lists for p in group] + table["evasive"]["phrases"]
    texts = phrases + [f"{f.topic} {' '.join(f.verbs)} {f.obj}" for f in w.facts]
    return _Rules(
        patterns={
            (axis, sign): _phrases(table[axis][side])
            for axis in STYLE_AXES
            for sign, side in ((1, "positive"), (-1, "negative"))
        },
        evasive=_phrases(table["evasive"]["phrases"]),
        negation=_phrases(table["negation"]["words"]),
        objects=_phrases(list(w.topic_of_object)),
        topics=_phrases(list(w.topics)),
        vocabulary=frozenset(_WORD.findall(" ".join(texts).lower())) | frozenset(_COMMON),
    )


_COMMON = (
    "a an and are as at be best by can did do does everyone everyone's for from further give goes "
    "have here how i if in is it its keep know learn left life listen listening makes many matter "
    "may me might my news note of on one or other our point points question say short should so "
    "something stop tell that that's the there these they thing things this time to up use very "
    "was way we well what which will with you your answer asking ask again bring patience right "
    "simply rather going have day every bit all ends come concludes following follows available "
    "later head your much about permission news welcome friend reader lazy clown even oh "
    "explain somebody everything person add knows custom been honestly now am better"
).split()
