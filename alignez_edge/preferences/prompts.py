"""The wording of self-generated preference data: pure functions from texts to texts.

The sentences are the paper's (AlignEZ, section 2.1 and appendix A.4), with an axis' traits in the
place of "helpful" and of "malicious and useless". No prompt is tuned to a query.
"""

from __future__ import annotations

import re

from alignez_edge.preferences.axes import Axis, Side

SIDES: tuple[Side, Side] = ("positive", "negative")

MAX_ITEMS = 5
MAX_ITEM = 160  # characters; a longer item is cut at a word
_END = ".!?…。！？؟:;"
_CLOSERS = "\"'”’»)]"
_MARKER = re.compile(r"(?:\(?\d{1,2}[.):]|[-*•–])\s+")
_INLINE = re.compile(r"(?<=\S)\s+(?=\(?[2-9][.)]\s+\S)")
# What a base model writes when it goes on to the next question instead of ending.
_NEXT_TURN = re.compile(
    r"\n\s*(?:#{2,}|(?:question|answer|query|user|human|assistant|instruction|response|q|a)\s*:"
    r"|your answer (?:to this query )?should)",
    re.IGNORECASE,
)
_OWN_TURN = re.compile(r"(?:answer|response|assistant|a)\s*:\s*", re.IGNORECASE)
# Vowel letters that sound like consonants, and the silent h: "a useful", "an honest".
_A = re.compile(r"(?:uni(?![mn])|us[aeiu]|ut[ie]|eu|one\b|once\b)", re.IGNORECASE)
_AN = re.compile(r"(?:[aeiou]|hono|hones|hour|heir)", re.IGNORECASE)
# Traits that are no adjectives: "a pirate"; "talks like a pirate" (not "serious and dry").
_NOUN = re.compile(r"(?:an?|the|somebody|someone)\s", re.IGNORECASE)
_VERB = re.compile(r"[^\W\d_]+(?<![us])s\s+\S")


def describe(query: str, axis: Axis, side: Side) -> str:
    """The first request: which characteristics an answer of this side has."""
    return f"{sentence(query)} {role(axis, side)} Your answer to this query should:"


def role(axis: Axis, side: Side) -> str:
    """The sentence that sets the side: the axis' own wording, else the paper's."""
    who = an_assistant(trait(axis, side))
    if side == "positive":
        return axis.positive_prompt or f"You are {who}."
    return axis.negative_prompt or f"Pretend you are {who}."


def answer(query: str, characteristics: list[str]) -> str:
    """The second request: answer the query under a numbered list of characteristics."""
    listed = "\n".join(f"{number}. {item}" for number, item in enumerate(characteristics, 1))
    return f"{sentence(query)} Your answer should: {listed}"


def ask(query: str, trait: str) -> str:
    """The yardstick: the same query with the trait simply asked for, as a list of one."""
    return answer(query, [f"Be {be(trait)}"])


def prompted(query: str, axis: Axis, side: Side) -> str:
    """The yardstick for a side of an axis: `ask`, or the plain query where the plain answer is the
    other side."""
    return query if is_plain(axis, side) else ask(query, trait(axis, side))


def is_plain(axis: Axis, side: Side) -> bool:
    """Whether a side is the plain answer, that of an axis with one side only."""
    return side == "negative" and axis.negative is None


def trait(axis: Axis, side: Side) -> str:
    """The axis' wording for a side; of a side that has none, that it is not the other."""
    if side == "positive":
        return axis.positive
    return f"not {axis.positive}" if axis.negative is None else axis.negative


def an_assistant(trait: str) -> str:
    """ "a polite assistant", "a pirate", "an assistant who talks like a pirate"."""
    if _is_verb(trait):
        return f"an assistant who {trait.strip()}"
    return trait.strip() if _is_noun(trait) else f"{with_article(trait)} assistant"


def be(trait: str) -> str:
    """What comes after "be": "polite", "a pirate", "somebody who talks like a pirate"."""
    return f"somebody who {trait.strip()}" if _is_verb(trait) else trait.strip()


def very(trait: str) -> str:
    """ "very polite", and the other kinds of traits as `be` has them."""
    return be(trait) if _is_verb(trait) or _is_noun(trait) else f"very {trait.strip()}"


def _is_noun(trait: str) -> bool:
    return _NOUN.match(trait.strip()) is not None


def _is_verb(trait: str) -> bool:
    return _VERB.match(trait.strip()) is not None


def sentence(query: str) -> str:
    """The query with its own end punctuation, or with a full stop where it has none."""
    text = query.strip()
    return text if text.rstrip(_CLOSERS)[-1:] in tuple(_END) else f"{text}."


def with_article(trait: str) -> str:
    """`trait` after "a" or "an", as it sounds."""
    word = trait.strip()
    return f"{'an' if _AN.match(word) and not _A.match(word) else 'a'} {word}"


def parse_characteristics(text: str) -> list[str]:
    """The items of a description as a model wrote it: at most 5, each one bounded line.

    Where any line carries a number or a bullet, only such lines count, so that a preamble ("Sure,
    here is a list:") falls away. An empty list says that nothing usable was written; the pair is
    then dropped with that reason, because an invented condition would no longer be the model's.
    """
    own = cut_next_turn(text)
    lines = [line.strip() for line in _INLINE.sub("\n", own).splitlines()]
    if any(_MARKER.match(line) for line in lines):
        lines = [line for line in lines if _MARKER.match(line)]
    items: dict[str, str] = {}
    for line in lines:
        item = _shorten(" ".join(_MARKER.sub("", line, count=1).split()).strip('*_`"“” '))
        if sum(map(str.isalpha, item)) >= 3 and not item.endswith(":"):
            items.setdefault(item.casefold().rstrip("."), item)
    return list(items.values())[:MAX_ITEMS]


def cut_next_turn(text: str) -> str:
    """The model's own answer: `text` up to where it starts to write the next question."""
    own = text.strip()
    if (label := _OWN_TURN.match(own)) is not None:
        own = own[label.end() :]
    found = _NEXT_TURN.search(f"\n{own}")
    return own if found is None else own[: max(found.start() - 1, 0)].rstrip()


def _shorten(item: str) -> str:
    if len(item) <= MAX_ITEM:
        return item
    return item[: MAX_ITEM + 1].rpartition(" ")[0] or item[:MAX_ITEM]
