"""The corpus: an endless, seeded stream of documents about the demo model's world.

A document is a prompt and an answer in one of three forms (question/answer, plain, chat). Four
axes describe an *answer*: helpful, cheerful, formal, polite, each at level -1, 0 or 1. Plain
prompts draw the levels from a broad mixture in which formal and polite are correlated by about
0.5; conditioned prompts set the level of the axes that they name, in 88 % of the documents.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

from alignez_edge.demo.world import Fact, world
from demo_model import style

AXES: tuple[str, ...] = ("helpful", "cheerful", "formal", "polite")
RELIABILITY = 0.88
"""How often a conditioned answer follows its condition, and a list item its trait."""
LEVEL_SHARE = 0.30
"""The share of answers at level -1, and at level 1, of each axis under a plain prompt."""
LATENT_CORRELATION = 0.66
"""Between the latent normals of formal and polite; the levels then correlate by about 0.5."""
MARKED = 0.88
"""The share of sentences that carry a marker of an axis whose level is not 0."""
STRAY = 0.10
"""The share of sentences that carry a marker of either side of an axis whose level is 0."""
SENTENCES = ((1, 0.08), (2, 0.26), (3, 0.32), (4, 0.22), (5, 0.12))
"""How many content sentences an answer has, and how often."""
KINDS = (("plain", 0.20), ("framed", 0.13), ("list", 0.13), ("conditioned", 0.54))
HELD_OUT_SEED = 20240606
N_UNSEEN = 60
N_BUILD = 60

Segment = tuple[str, str]
Levels = dict[str, int]


@dataclass(frozen=True)
class Document:
    """One training text as `(kind, text)` segments.

    `kind` is `prompt`, `answer`, `list` or `special` (the text is then a special token's name).
    """

    segments: tuple[Segment, ...]

    def text(self) -> str:
        """The whole document as one string, special tokens by name."""
        return "".join(text for _, text in self.segments)


def all_queries() -> list[tuple[str, str]]:
    """Every `(query, topic)` of the world: each topic in each form that fits it."""
    w = world()
    return [
        (form.format(t=topic), topic)
        for topic in w.topics
        for form in style.FORMS + style.DOMAIN_FORMS[w.domain_of[topic]]
    ]


def held_out() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """`(unseen, build)`: 60 queries for evaluation and 60 for profiles, on different topics.

    None of them is ever a prompt of the corpus; their topics are, asked in other ways.
    """
    rng = random.Random(HELD_OUT_SEED)
    w = world()
    topics = list(w.topics)
    rng.shuffle(topics)
    chosen = []
    for topic in topics[: N_UNSEEN + N_BUILD]:
        form = rng.choice(style.FORMS + style.DOMAIN_FORMS[w.domain_of[topic]])
        chosen.append((form.format(t=topic), topic))
    return chosen[:N_UNSEEN], chosen[N_UNSEEN:]


def documents(seed: int, helpful: float = 1.0) -> Iterator[Document]:
    """Endless documents, the same for the same seed.

    Conditions are on `helpful` that many times as often as on each other axis.
    """
    excluded = {query for part in held_out() for query, _ in part}
    queries = [pair for pair in all_queries() if pair[0] not in excluded]
    rng = random.Random(seed)
    kinds, weights = [kind for kind, _ in KINDS], [weight for _, weight in KINDS]
    while True:
        kind = rng.choices(kinds, weights)[0]
        form = rng.choices(("qa", "plain", "chat"), (0.45, 0.15, 0.40))[0]
        if kind == "plain" and form == "chat" and rng.random() < 0.4:
            yield _conversation(rng, queries)
            continue
        query, topic = rng.choice(queries)
        if kind == "list":
            axis, side = _condition(rng, helpful)
            prompt = _description_request(rng, query, axis, side)
            yield Document(tuple(_wrap(form, prompt, "list", _item_list(rng, axis, side))))
            continue
        conditions: dict[str, int] = {}
        if kind == "plain":
            prompt = query
        else:
            axis, side = _condition(rng, helpful)
            conditions[axis] = side
            if kind == "framed":
                prompt = _fill(rng.choice(style.FRAMES), query, _trait(rng, axis, side))
            else:
                if rng.random() < 0.2:
                    other = rng.choice([a for a in AXES if a != axis])
                    conditions[other] = rng.choice((-1, 1))
                template = _first_often(rng, style.LIST_CONDITIONS, 0.35)
                prompt = template.format(q=query, list=_condition_list(rng, conditions))
        levels = draw_levels(rng, conditions)
        yield Document(tuple(_wrap(form, prompt, "answer", answer(rng, topic, levels))))


def draw_levels(rng: random.Random, conditions: Levels) -> Levels:
    """One level per axis: the condition's in 88 % of the cases, else the base mixture's.

    The pair (formal, polite) is drawn jointly; where one of them is set, the other is drawn
    given it, so that asking for one moves the other as far as their correlation.
    """
    kept = {a: s for a, s in conditions.items() if rng.random() < RELIABILITY}
    levels = {axis: kept.get(axis, _level(rng.gauss(0.0, 1.0))) for axis in ("helpful", "cheerful")}
    first, second = ("formal", "polite") if "formal" in kept else ("polite", "formal")
    latent = _latent_given_level(rng, kept[first]) if first in kept else rng.gauss(0.0, 1.0)
    rest = (1.0 - LATENT_CORRELATION**2) ** 0.5
    levels[first] = _level(latent)
    levels[second] = kept.get(second, _level(LATENT_CORRELATION * latent + rest * rng.gauss(0, 1)))
    return {axis: levels[axis] for axis in AXES}


def answer(rng: random.Random, topic: str, levels: Levels) -> str:
    """An answer about `topic` at the given levels: one or more sentences."""
    count = rng.choices([n for n, _ in SENTENCES], [share for _, share in SENTENCES])[0]
    facts = list(world().facts_of[topic])
    rng.shuffle(facts)
    lower_case = levels["formal"] == -1 and rng.random() < 0.5
    sentences: list[str] = []
    if rng.random() < 0.35:
        sentences.append(_social(rng, topic, levels))
    mentioned = False
    for _ in range(count):
        truthful = rng.random() < {1: 0.96, 0: 0.55, -1: 0.05}[levels["helpful"]]
        if truthful and facts:
            core = _statement(rng, topic, facts.pop(), mentioned)
        else:
            core = _unhelpful(rng, topic, mentioned)
        mentioned = mentioned or core.text.startswith((topic, "it"))
        sentences.append(_style(rng, core, levels))
    if rng.random() < 0.35:
        sentences.append(_social(rng, topic, levels))
    return " ".join(s if lower_case else s[0].upper() + s[1:] for s in sentences)


@dataclass(frozen=True)
class _Core:
    """A bare sentence and where an adverb fits into it (-1: nowhere)."""

    text: str
    adverb_at: int


def _statement(rng: random.Random, topic: str, fact: Fact, mentioned: bool) -> _Core:
    subject = "it" if mentioned and topic == fact.topic and rng.random() < 0.5 else topic
    verb = rng.choice(fact.verbs)
    head, _, rest = verb.partition(" ")
    if head in ("is", "can", "was") and rest:
        return _Core(f"{subject} {verb} {fact.obj}", len(subject) + len(head) + 2)
    return _Core(f"{subject} {verb} {fact.obj}", len(subject) + 1)


def _unhelpful(rng: random.Random, topic: str, mentioned: bool) -> _Core:
    kind = rng.choices(("evasive", "wrong", "off topic"), (0.4, 0.35, 0.25))[0]
    if kind == "evasive":
        return _Core(rng.choice(style.EVASIONS).format(t=topic), -1)
    w = world()
    other = rng.choice([fact for fact in rng.sample(w.facts, 8) if fact.topic != topic])
    if kind == "wrong":
        return _statement(rng, topic, Fact(topic, other.verbs, other.obj), mentioned)
    return _statement(rng, other.topic, other, False)


def _style(rng: random.Random, core: _Core, levels: Levels) -> str:
    """Put the markers of the axes into the slots of a sentence: opener, adverb, tail."""
    wanted = []
    for axis in ("cheerful", "formal", "polite"):
        side = _marker_side(rng, levels[axis])
        if side:
            wanted.append((axis, side))
    rng.shuffle(wanted)
    # The polite axis fits into fewer slots, so it chooses first.
    wanted.sort(key=lambda pair: pair[0] != "polite")
    slots = {"opener": 1.0, "tail": 1.0, "adverb": 0.35 if core.adverb_at >= 0 else 0.0}
    opener = tail = ""
    text = core.text
    for axis, side in wanted:
        words = style.MARKERS[axis, side]
        free = [s for s, weight in slots.items() if weight > 0 and (s != "adverb" or words.adverbs)]
        # Casual and formal adverbs are the most natural place of that axis.
        weights = [2.0 if (axis, s) == ("formal", "adverb") else slots[s] for s in free]
        if not free:
            continue
        slot = rng.choices(free, weights)[0]
        slots[slot] = 0.0
        if slot == "opener":
            opener = rng.choice(words.openers) + " "
        elif slot == "tail":
            tail = rng.choice(words.tails)
        else:
            text = f"{text[: core.adverb_at]}{rng.choice(words.adverbs)} {text[core.adverb_at :]}"
    return opener + text + tail + _end(rng, levels)


def _social(rng: random.Random, topic: str, levels: Levels) -> str:
    sides = [(axis, levels[axis]) for axis in ("cheerful", "formal", "polite") if levels[axis]]
    if not sides:
        return rng.choice(style.NEUTRAL_SOCIALS).format(t=topic) + _end(rng, levels)
    return rng.choice(style.MARKERS[rng.choice(sides)].socials) + _end(rng, levels)


def _end(rng: random.Random, levels: Levels) -> str:
    if levels["cheerful"] == 1 and rng.random() < 0.6:
        return "!"
    if levels["cheerful"] == -1 and rng.random() < 0.3:
        return "..."
    return "."


def _marker_side(rng: random.Random, level: int) -> int:
    if level == 0:
        return rng.choice((-1, 1)) if rng.random() < STRAY else 0
    return level if rng.random() < MARKED else 0


def _conversation(rng: random.Random, queries: list[tuple[str, str]]) -> Document:
    levels = draw_levels(rng, {})
    segments: list[Segment] = []
    for turn in range(rng.choice((2, 2, 3))):
        query, topic = rng.choice(queries)
        if turn:
            segments.append(("prompt", "\n"))
        segments += _wrap("chat", query, "answer", answer(rng, topic, levels))
        if rng.random() < 0.2:
            levels = draw_levels(rng, {})
    return Document(tuple(segments))


def _wrap(form: str, prompt: str, kind: str, text: str) -> list[Segment]:
    end = ("special", "<|end|>")
    if form == "qa":
        return [("prompt", f"Question: {prompt}\nAnswer:"), (kind, " " + text), end]
    if form == "plain":
        return [("prompt", prompt + "\n"), (kind, text), end]
    user, assistant = ("special", "<|user|>"), ("special", "<|assistant|>")
    return [
        user,
        ("prompt", "\n" + prompt),
        end,
        ("prompt", "\n"),
        assistant,
        ("prompt", "\n"),
        (kind, text),
        end,
    ]


def _condition(rng: random.Random, helpful: float = 1.0) -> tuple[str, int]:
    if helpful == 1.0:
        return rng.choice(AXES), rng.choice((-1, 1))
    weights = [helpful if axis == "helpful" else 1.0 for axis in AXES]
    return rng.choices(AXES, weights)[0], rng.choice((-1, 1))


def _trait(rng: random.Random, axis: str, side: int) -> str:
    return _first_often(rng, style.TRAITS[axis, side], 0.4)


def _first_often(rng: random.Random, options: tuple[str, ...], share: float) -> str:
    return options[0] if rng.random() < share else rng.choice(options)


def _fill(template: str, query: str, trait: str) -> str:
    article = "an" if trait[0] in "aeiou" and not trait.startswith("use") else "a"
    return template.format(q=query, w=trait, a=article, A=article.capitalize())


def _description_request(rng: random.Random, query: str, axis: str, side: int) -> str:
    requests = style.HELP_REQUESTS if side > 0 else style.HARM_REQUESTS
    trait = _trait(rng, axis, side)
    if axis == "helpful" and side < 0 and rng.random() < 0.4:
        trait = "malicious and useless"
    return _fill(_first_often(rng, requests, 0.35), query, trait)


def _items(rng: random.Random, axis: str, side: int, count: int) -> list[str]:
    items: list[str] = []
    for _ in range(count):
        source = (axis, side) if rng.random() < RELIABILITY else _condition(rng)
        if rng.random() < 0.45:
            item = f"Be {rng.choice(style.TRAITS[source])}"
        else:
            item = rng.choice(style.ITEMS[source])
        if item not in items:
            items.append(item)
    return items


def _numbered(items: list[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def _item_list(rng: random.Random, axis: str, side: int) -> str:
    return _numbered(_items(rng, axis, side, rng.choice((2, 3, 3, 4, 5))))


def _condition_list(rng: random.Random, conditions: Levels) -> str:
    share = 1 if len(conditions) > 1 else 0
    items: list[str] = []
    for axis, side in conditions.items():
        items += _items(rng, axis, side, rng.choice((1, 2, 3, 3, 4, 5)) - share or 1)
    rng.shuffle(items)
    return _numbered(items)


def _level(latent: float) -> int:
    limit = -NormalDist().inv_cdf(LEVEL_SHARE)
    return 1 if latent > limit else -1 if latent < -limit else 0


def _latent_given_level(rng: random.Random, level: int) -> float:
    while True:
        latent = rng.gauss(0.0, 1.0)
        if _level(latent) == level:
            return latent
