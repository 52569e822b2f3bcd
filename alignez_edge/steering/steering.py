"""A steering is a value: a sum of profiles, each with a strength.

`polite * 0.8 + terse * -0.3` does the same in whatever order it is written: terms of one profile
are joined, and the sum is taken in a canonical order. How it gets into a model is `binding.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.interventions.ways import WAYS, Way

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Conditional, Injection
    from alignez_edge.runtime.weights import Weights
    from alignez_edge.steering.binding import Binding
    from alignez_edge.steering.steerable import Steerable


class Term(TypedDict):
    """One profile of a steering, as JSON says it."""

    profile: str
    strength: float


@dataclass(frozen=True, eq=False)
class Steering:
    """Profiles with strengths. No terms, or strengths of 0, are the base model.

    `way` is how it is injected; a sum takes the way of the first term that is not `auto`. Raises
    `BadInputError` if a strength is not a finite number, and for an unknown way.
    """

    terms: tuple[tuple[Steerable, float], ...] = ()
    way: Way = "auto"

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise BadInputError(
                f"steering cannot be injected by {printable(str(self.way), 40)!r}",
                f"choose from {', '.join(WAYS)}",
            )
        terms = tuple((profile, _finite(strength)) for profile, strength in self.terms)
        object.__setattr__(self, "terms", terms)

    def __add__(self, other: Steering | Steerable) -> Steering:
        added = _steering(other)
        return Steering(self.terms + added.terms, self.way if self.way != "auto" else added.way)

    def __radd__(self, other: Steerable) -> Steering:
        return _steering(other) + self

    def __sub__(self, other: Steering | Steerable) -> Steering:
        return self + -_steering(other)

    def __neg__(self) -> Steering:
        return self * -1.0

    def __mul__(self, factor: float) -> Steering:
        factor = _finite(factor)
        terms = tuple((profile, strength * factor) for profile, strength in self.terms)
        return Steering(terms, self.way)

    __rmul__ = __mul__

    def by(self, way: Way) -> Steering:
        """The same profiles and strengths, injected by `way`."""
        return Steering(self.terms, way)

    def joined(self) -> tuple[tuple[Steerable, float], ...]:
        """The terms in canonical order, one per profile, without those of strength 0.

        Raises `BadInputError` if a sum overflows.
        """
        parts: dict[tuple[str, str], tuple[Steerable, list[float]]] = {}
        for profile, strength in self.terms:
            parts.setdefault(profile.order, (profile, []))[1].append(strength)
        sums = [(parts[key][0], sum_of(parts[key][1])) for key in sorted(parts)]
        return tuple((profile, strength) for profile, strength in sums if strength)

    def bind(self, model: Weights) -> Binding:
        """The sum for `model`: that every profile fits is checked, and its way is decided, once.

        Raises `ProfileFileError` if a profile was made for another model, naming what differs,
        and `BadInputError` if one cannot be injected in the way that was asked for.
        """
        from alignez_edge.steering.binding import bind

        return bind(model, self.joined(), self.way)

    def injection(self, model: Weights) -> Injection | Conditional | None:
        """What is injected into `model`; None for nothing. Raises as `bind`, and `BadInputError`
        if a strength is so large that the sum overflows."""
        return self.bind(model).injection

    def notices(self, model: Weights) -> list[str]:
        """What a user should know about how the profiles fit `model`, one line each. Raises as
        `bind`."""
        return list(self.bind(model).notices)

    def describe(self) -> list[Term]:
        """The terms as plain data: `profile` (the axis' name) and `strength`."""
        return [{"profile": profile.name, "strength": strength} for profile, strength in self.terms]


def _steering(value: Steering | Steerable) -> Steering:
    return value if isinstance(value, Steering) else Steering(((value, 1.0),))


def _finite(strength: float) -> float:
    try:
        number = float(strength)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInputError(
            f"a strength must be a finite number, not {printable(str(strength), 40)}"
        )
    return number


def sum_of(strengths: Iterable[float]) -> float:
    """The exact sum of finite strengths. Raises `BadInputError` if it overflows."""
    try:
        return math.fsum(strengths)
    except OverflowError:
        raise BadInputError("the strengths are so large that their sum overflows") from None
