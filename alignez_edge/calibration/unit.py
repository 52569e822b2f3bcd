"""The unit of old profiles, from given answers, and the curves that a profile keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import DoubleArray

if TYPE_CHECKING:
    from alignez_edge.steering.steerable import Steerable
GRID: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Strengths that are measured, in raw differences, with either sign."""
NATURAL = 1.0
"""The strength at which the displacements are the raw differences."""
DRIFT_BUDGET = 4.0
"""How many times the KL of prompting strength 1 may cost. More than once, because a given answer
hides what prompting costs: after its first words prompting changes little, steering every token."""
_READINGS = ("margin", "drift", "asked_margin", "asked_drift")


@dataclass(frozen=True)
class Reading:
    """Margins and KL from the plain model of one held-back pair, or their means over pairs.

    `margin` and `drift` are `(2 * len(GRID),)`: the grid with + and then with -. `asked_margin` and
    `asked_drift` are `(2,)`: prompting for the wanted and for the unwanted side.
    """

    margin: DoubleArray
    drift: DoubleArray
    asked_margin: DoubleArray
    asked_drift: DoubleArray

    def to_json(self) -> str:
        """One line that `from_json` reads back to the bit."""
        return json.dumps({name: getattr(self, name).tolist() for name in _READINGS})

    @classmethod
    def from_json(cls, line: str) -> Reading:
        """The reading of a line that `to_json` wrote."""
        values = json.loads(line)
        return cls(*(np.array(values[name], np.float64) for name in _READINGS))

    @classmethod
    def mean(cls, readings: Sequence[Reading]) -> Reading:
        """The mean over pairs."""
        return cls(
            *(
                np.mean([getattr(reading, name) for reading in readings], axis=0)
                for name in _READINGS
            )
        )


@dataclass(frozen=True)
class Calibration:
    """The chosen unit (raw differences per strength 1) and the curves that it was read from.

    `strengths` are in raw differences, ascending, 0 left out. `limit` says what set the unit:
    `asking` (as much as prompting), `drift` (the budget) or `grid` (prompting was out of reach).
    """

    unit: float
    limit: str
    strengths: DoubleArray
    margin: DoubleArray
    drift: DoubleArray
    asked_margin: DoubleArray
    asked_drift: DoubleArray

    def curves(self) -> dict[str, float | tuple[float, ...]]:
        """What a profile keeps of it, by name."""
        names = ("strengths", *_READINGS)
        return {name: tuple(map(float, getattr(self, name))) for name in names}


@dataclass(frozen=True)
class Measured:
    """The curves that a profile keeps, in nats per token, over its own strengths (1: as
    calibrated): `effect` and `cost` of steering, and `(2,)` those of prompting for either side
    (None if they are not known).

    `free` says that they are means of answers written freely (evidence and likelihood under the
    plain model, `free_running.py`); else they are margin and KL on given answers.
    """

    strengths: DoubleArray
    effect: DoubleArray
    cost: DoubleArray
    prompted: tuple[DoubleArray, DoubleArray] | None
    free: bool

    def at(self, strength: float) -> tuple[float, float]:
        """Effect and cost at a strength, by linear interpolation; 0 is the base model."""
        place = int(np.searchsorted(self.strengths, 0.0))
        curves = (np.insert(curve, place, 0.0) for curve in (self.strengths, *self._both))
        x, effect, cost = curves
        return float(np.interp(strength, x, effect)), float(np.interp(strength, x, cost))

    @property
    def _both(self) -> tuple[DoubleArray, DoubleArray]:
        return self.effect, self.cost

    @classmethod
    def of(cls, profile: Steerable) -> Measured | None:
        """Those of a profile; None if it keeps none."""

        def curve(key: str) -> DoubleArray:
            value = profile.calibration.get(key, ())
            return np.array(value if isinstance(value, tuple) else (), np.float64)

        free = "effect" in profile.calibration
        keys = ("effect", "cost") if free else ("margin", "drift")
        strengths, effect, cost = curve("strengths"), *map(curve, keys)
        if not len(strengths) or not len(strengths) == len(effect) == len(cost):
            return None
        prefix = "prompted" if free else "asked"
        asked = tuple(curve(f"{prefix}_{key}") for key in keys)
        with np.errstate(over="ignore"):
            own = strengths / np.array([profile.scale(np.sign(s) or 1.0) for s in strengths])
            own = np.copysign(own, strengths)
        some = strengths != 0
        both = (asked[0], asked[1]) if len(asked[0]) == len(asked[1]) == 2 else None
        return cls(own[some], effect[some], cost[some], both, free)


def calibrate(reading: Reading, budget: float = DRIFT_BUDGET) -> Calibration:
    """Choose the unit from the mean reading.

    The span of a strength is margin(+s) - margin(-s). There are two estimates of 'as much as
    prompting': the raw difference, 1, and the smallest strength whose span is prompting's (linear
    interpolation from 0), at most the strength at which the mean KL of both signs reaches `budget`
    times prompting's; where the span never gets there, that of the largest span within the
    budget. The unit is their geometric mean: the first knows nothing of the model, the second comes
    from a dozen pairs whose answers are given, and together they were closer to what sampled
    answers show than either (docs/method.md, section 6).
    """
    n = len(GRID)
    grid = np.array([0.0, *GRID])
    span = np.concatenate(([0.0], reading.margin[:n] - reading.margin[n:]))
    drift = np.concatenate(([0.0], (reading.drift[:n] + reading.drift[n:]) / 2))
    target = float(reading.asked_margin[0] - reading.asked_margin[1])
    allowed = _reach(grid, drift, budget * float(reading.asked_drift.mean()))
    wanted = _reach(grid, span, target) if target > 0 else None
    inside = grid <= (allowed if allowed is not None else grid[-1])
    if wanted is not None and (allowed is None or wanted <= allowed):
        reached, limit = wanted, "asking"
    else:
        reached, limit = float(grid[inside][np.argmax(span[inside])]), "grid"
        if allowed is not None and np.interp(allowed, grid, span) >= span[inside].max():
            reached, limit = allowed, "drift"
    # A profile that moves nothing still needs a unit; the raw difference is the honest one.
    unit = float(np.sqrt(NATURAL * reached)) if reached > 0 else NATURAL
    order = np.concatenate((-grid[:0:-1], grid[1:]))
    return Calibration(
        unit=unit,
        limit=limit,
        strengths=order,
        margin=np.concatenate((reading.margin[n:][::-1], reading.margin[:n])),
        drift=np.concatenate((reading.drift[n:][::-1], reading.drift[:n])),
        asked_margin=reading.asked_margin,
        asked_drift=reading.asked_drift,
    )


def _reach(x: DoubleArray, y: DoubleArray, level: float) -> float | None:
    """The first x at which the line through the points reaches `level` from below."""
    for i in range(1, len(x)):
        if y[i] >= level > y[i - 1]:
            return float(x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1]))
    return None
