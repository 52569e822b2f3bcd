"""Whether a judge saw anything at all in a run: one that ties nearly all answers proves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TIES = 0.9
"""The share of ties in every arm of an axis from which on the judge counts as blind to it."""
LEAST = 8
"""Verdicts on answers that differ, below which nothing is said."""


@dataclass(frozen=True)
class Seen:
    """How many answers of one arm differ from the plain ones, and how many of these were ties."""

    kind: str
    differing: int
    ties: int


@dataclass(frozen=True)
class Blind:
    """An axis of which the judge saw nothing: `ties` of `differing` answers, in every arm.

    `asked` says whether answers that were asked for in the prompt are among them: the yardstick.
    """

    axis: str
    ties: int
    differing: int
    asked: bool

    @classmethod
    def of(cls, axis: str, arms: Sequence[Seen]) -> Blind | None:
        """What the arms of an axis say; None if the judge tells the answers of one apart."""
        told = [arm for arm in arms if arm.differing]
        differing, ties = sum(arm.differing for arm in told), sum(arm.ties for arm in told)
        if differing < LEAST or any(arm.ties < TIES * arm.differing for arm in told):
            return None
        return cls(axis, ties, differing, any(arm.kind == "asked" for arm in told))

    @classmethod
    def from_data(cls, value: Mapping[str, Any]) -> Blind:
        """What `dataclasses.asdict` made of one. Raises `KeyError` or `ValueError`."""
        ties, differing = value["ties"], value["differing"]
        if type(ties) is not int or type(differing) is not int or not 0 <= ties <= differing > 0:
            raise ValueError("the ties of a judge are not counts")
        return cls(str(value["axis"]), ties, differing, value["asked"] is True)

    def finding(self, judge: str) -> str:
        """That in one sentence."""
        fact = (
            f"the judge {judge} called {self.ties / self.differing:.0%} of the {self.differing}"
            f" answers that differ from plain ones ties on {self.axis}"
        )
        if self.asked:
            return (
                f"{fact}, also where the prompt asked for it: it cannot see {self.axis} here, and"
                " its verdicts prove nothing"
            )
        return (
            f"{fact}: its verdicts prove nothing here (--asking shows whether it sees what the"
            " prompt asks for)"
        )
