"""The facts of the demo model's world: topics in eight domains, six true facts each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Fact:
    """One true statement: `<topic> <any of verbs> <obj>` is a correct English sentence."""

    topic: str
    verbs: tuple[str, ...]
    obj: str


@dataclass(frozen=True)
class World:
    """All facts. `domain_of` maps a topic to its domain, `facts_of` to its facts."""

    facts: tuple[Fact, ...]
    domain_of: dict[str, str]
    facts_of: dict[str, tuple[Fact, ...]]
    topic_of_object: dict[str, str]

    @property
    def topics(self) -> tuple[str, ...]:
        """Every topic, in the order of the file."""
        return tuple(self.facts_of)


@cache
def world() -> World:
    """The world as shipped in `facts.txt` (`domain | topic | verbs | object` a line)."""
    text = resources.files(__package__).joinpath("facts.txt").read_text(encoding="utf-8")
    facts: list[Fact] = []
    domain_of: dict[str, str] = {}
    by_topic: dict[str, list[Fact]] = {}
    for line in text.splitlines():
        domain, topic, verbs, obj = (part.strip() for part in line.split("|"))
        fact = Fact(topic, tuple(verb.strip() for verb in verbs.split(";")), obj)
        facts.append(fact)
        domain_of[topic] = domain
        by_topic.setdefault(topic, []).append(fact)
    return World(
        facts=tuple(facts),
        domain_of=domain_of,
        facts_of={topic: tuple(group) for topic, group in by_topic.items()},
        topic_of_object={fact.obj: fact.topic for fact in facts},
    )
