"""The arms of an evaluation: the ways in which answers come about.

All arms answer the same queries with the same seeds and settings, so that they can be compared
answer by answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from alignez_edge.calibration.free_running import form_for
from alignez_edge.chat.preamble import Preamble
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import SIDES, Side
from alignez_edge.preferences.requests import FORMS, RequestText
from alignez_edge.repeatable import digest
from alignez_edge.steering.steering import Steering

if TYPE_CHECKING:
    from alignez_edge.chat.messages import Message
    from alignez_edge.steering.steerable import Steerable

Kind = Literal["plain", "steered", "asked", "both", "prompted", "reference"]
PLAIN = "plain"
ASKING: tuple[Kind, ...] = ("asked", "both")
"""The kinds that put a wish into the prompt."""


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
    being its own. The kind `asked` puts the wish for the own aim into the prompt, in the form of
    request named `form`; `both` steers as well. `preamble` stands before the query. `sweep` are the
    settings that tell it from its neighbors in a sweep.
    """

    name: str
    kind: Kind
    profile: str = ""
    strength: float = 0.0
    aims: tuple[Aim, ...] = ()
    steering: Steering | None = None
    preamble: Preamble = field(default_factory=Preamble)
    sweep: Mapping[str, str | float] = field(default_factory=dict)
    form: str = ""

    def messages(self, query: str, *, chat: bool) -> list[Message]:
        """The conversation that asks for the answer to `query`; `chat` says whether the model has a
        chat template."""
        request = RequestText(query)
        if self.kind in ASKING:
            own = self.aims[0]
            request = FORMS[self.form].request(query, own.axis, own.side, chat=chat)
        return self.preamble.before(request.messages())

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
            "form": self.form,
            "system": self.preamble.name or None,
            "system_digest": digest(self.preamble.messages) if self.preamble.messages else "",
            "sweep": dict(self.sweep),
        }


def plain() -> Arm:
    """The base model's own answers: what all others are compared with."""
    return Arm(PLAIN, "plain")


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
    aims = [aim_of(profile, strength) for profile, strength in steering.terms]
    shown = [f"{name}:{strength:g}" for name, strength in zip(names, strengths, strict=True)]
    return Arm(
        " + ".join(shown),
        "steered",
        " + ".join(names),
        strengths[0],
        tuple({aim.key: aim for aim in aims}.values()),
        steering,
    )


def aim_of(profile: Steerable, strength: float) -> Aim:
    """The side that a strength steers towards."""
    return Aim(profile.axis, "negative" if strength < 0 else "positive")


def asked(steered_arms: Sequence[Arm]) -> list[Arm]:
    """The yardstick: for every axis of the arms, either side simply asked for in the prompt, in the
    form that the profile's pairs were asked for in."""
    forms = {aim.axis.name: (aim.axis, "list") for arm in steered_arms for aim in arm.aims}
    for arm in steered_arms:
        for profile, _ in arm.steering.terms if arm.steering else ():
            forms[profile.axis.name] = profile.axis, _form_of(profile)
    signs = {"positive": "+", "negative": "-"}
    return [
        Arm(f"asked:{name}{signs[side]}", "asked", aims=(Aim(axis, side),), form=form)
        for name, (axis, form) in forms.items()
        for side in SIDES
    ]


def both(steered_arms: Iterable[Arm]) -> list[Arm]:
    """Each arm of one profile, steered, with the side that it aims at asked for as well."""
    found = []
    for arm in steered_arms:
        terms = arm.steering.terms if arm.steering else ()
        if len(terms) == 1 and arm.strength:
            form = _form_of(terms[0][0])
            found.append(replace(arm, name=f"{arm.name} + asked", kind="both", form=form))
    return found


def _form_of(profile: Steerable) -> str:
    """The form of request that a profile's pairs were asked for in, in one step."""
    request = profile.report.get("request")
    name = request.get("form") if isinstance(request, Mapping) else None
    return form_for(name).name if name in FORMS else "list"


def reference(name: str, steered_arms: Iterable[Arm], steering: Steering | None = None) -> Arm:
    """Answers of an aligned model or under another profile, judged by all that the arms aim at."""
    return Arm(f"reference:{name}", "reference", name, 0.0, _all_aims(steered_arms), steering)


def prompted(preamble: Preamble, steered_arms: Sequence[Arm]) -> list[Arm]:
    """A system prompt alone, and together with each of the arms."""
    name = f"system:{preamble.name}"
    alone = Arm(name, "prompted", aims=_all_aims(steered_arms), preamble=preamble)
    both = [replace(arm, name=f"{arm.name} + {name}", preamble=preamble) for arm in steered_arms]
    return [alone, *both]


def _all_aims(arms: Iterable[Arm]) -> tuple[Aim, ...]:
    return tuple({aim.key: aim for arm in arms for aim in arm.aims}.values())
