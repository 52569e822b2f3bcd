"""The arms of an evaluation: the ways in which answers come about.

All arms answer the same queries with the same seeds and settings, so that they can be compared
answer by answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from alignez_edge import prompts
from alignez_edge.axes import Axis
from alignez_edge.prompts import SIDES, Side
from alignez_edge.steering import Steering

if TYPE_CHECKING:
    from alignez_edge.profile import Profile

Kind = Literal["plain", "steered", "asked", "reference"]
PLAIN = "plain"


@dataclass(frozen=True)
class Aim:
    """What an arm is judged by: whether its answers show more of `side` of `axis` than others."""

    axis: Axis
    side: Side

    @property
    def key(self) -> tuple[str, str]:
        """The axis' name and the side."""
        return self.axis.name, self.side


@dataclass(frozen=True)
class Arm:
    """One way of answering.

    `profile` and `strength` say what steers, as a person would say it; a sum of several profiles
    has the first one's strength. `aims` are what it is judged by: none for plain answers, the first
    being its own. `asked` puts the wish for the own aim into the prompt. `sweep` are the settings
    that tell it from its neighbours in a sweep.
    """

    name: str
    kind: Kind
    profile: str = ""
    strength: float = 0.0
    aims: tuple[Aim, ...] = ()
    steering: Steering | None = None
    system: str | None = None
    sweep: Mapping[str, str | float] = field(default_factory=dict)

    def messages(self, query: str) -> list[dict[str, str]]:
        """The conversation that asks for the answer to `query`."""
        text = query
        if self.kind == "asked":
            own = self.aims[0]
            text = prompts.ask(query, prompts.trait(own.axis, own.side))
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def describe(self) -> dict[str, Any]:
        """The arm as the run folder keeps it."""
        terms = self.steering.terms if self.steering else ()
        return {
            "name": self.name,
            "profile": self.profile,
            "strength": self.strength,
            "axis": self.aims[0].axis.name if self.aims and self.kind != "reference" else "",
            "side": self.aims[0].side if self.aims and self.kind != "reference" else "",
            "aims": [
                {
                    "axis": aim.axis.name,
                    "side": aim.side,
                    "trait": prompts.trait(aim.axis, aim.side),
                }
                for aim in self.aims
            ],
            "steering": [
                {"profile": p.name, "strength": s, "digest": p.order[1][:16]} for p, s in terms
            ],
            "way": self.steering.way if self.steering else "",
            "kind": self.kind,
            "system": self.system,
            "sweep": dict(self.sweep),
        }


def plain(system: str | None = None) -> Arm:
    """The base model's own answers: what all others are compared with."""
    return Arm(PLAIN, "plain", system=system)


def steered(
    name: str, steering: Steering, *, sweep: Mapping[str, str | float] | None = None
) -> Arm:
    """The arm of one profile at one strength; a negative one aims at the negative side."""
    ((profile, strength),) = steering.terms
    return Arm(
        f"{name}:{strength:g}",
        "steered",
        name,
        strength,
        (aim_of(profile, strength),),
        steering,
        sweep=sweep or {},
    )


def cell(names: Sequence[str], steering: Steering) -> Arm:
    """The arm of several profiles at once, judged by the axis of each."""
    strengths = [strength for _, strength in steering.terms]
    shown = [f"{name}:{strength:g}" for name, strength in zip(names, strengths, strict=True)]
    return Arm(
        " + ".join(shown),
        "steered",
        " + ".join(names),
        strengths[0],
        tuple(aim_of(profile, strength) for profile, strength in steering.terms),
        steering,
        sweep=dict(zip(names, strengths, strict=True)),
    )


def aim_of(profile: Profile, strength: float) -> Aim:
    """The side that a strength steers towards."""
    return Aim(profile.axis, "negative" if strength < 0 else "positive")


def asked(steered_arms: Iterable[Arm]) -> list[Arm]:
    """The yardstick: for every axis of the arms, either side simply asked for in the prompt."""
    axes = {aim.axis.name: aim.axis for arm in steered_arms for aim in arm.aims}
    signs = {"positive": "+", "negative": "-"}
    return [
        Arm(f"asked:{name}{signs[side]}", "asked", aims=(Aim(axis, side),))
        for name, axis in axes.items()
        for side in SIDES
    ]


def reference(name: str, steered_arms: Iterable[Arm], steering: Steering | None = None) -> Arm:
    """Answers of an aligned model or under another profile, judged by all that the arms aim at."""
    aims = {aim.key: aim for arm in steered_arms for aim in arm.aims}
    return Arm(f"reference:{name}", "reference", name, 0.0, tuple(aims.values()), steering)
