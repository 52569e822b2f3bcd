"""What strength 1 means: as much as asking.

Everything is teacher-forced on pairs that the directions have not seen; nothing is sampled. For a
held-back pair with its plain query as prompt, the *preference margin* is the log-probability per
token of the wanted answer minus that of the unwanted one, against the same without steering (nats
per token). Asking is measured the same way: the trait asked for in the prompt, either side. The
*drift* is KL(plain || steered) of the next-token distributions over both answers, nats per token:
the two together favour neither side, and the budget is a multiple of what asking costs there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.preferences import prompts

if TYPE_CHECKING:
    from alignez_edge.methods.names import Way
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Conditional, Injection


GRID: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Strengths that are measured, in natural lengths, with either sign."""
NATURAL = 1.0
"""The strength at which the displacements have the lengths that were measured."""
DRIFT_BUDGET = 4.0
"""How many times asking's drift strength 1 may cost. More than once, because a given answer hides
asking's price: once the first words are given, asking changes little, steering every token."""

_READINGS = ("margin", "drift", "asked_margin", "asked_drift")


class Pair(Protocol):
    """A query with the wanted and the unwanted answer."""

    @property
    def query(self) -> str: ...
    @property
    def chosen(self) -> str: ...
    @property
    def rejected(self) -> str: ...


@dataclass(frozen=True)
class Reading:
    """Margins and drifts of one held-back pair, or their means over pairs.

    `margin` and `drift` are `(2 * len(GRID),)`: the grid with + and then with -. `asked_margin` and
    `asked_drift` are `(2,)`: asking for the wanted and for the unwanted side.
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
    """The chosen unit (natural lengths per strength 1) and the curves that it was read from.

    `strengths` are in natural lengths, ascending, 0 left out. `limit` says what set the unit:
    `asking` (as much as asking), `drift` (the budget) or `grid` (asking was out of reach).
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
    (None where they are not known).

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
    def of(cls, profile: Profile) -> Measured | None:
        """Those of a profile; None where it keeps none."""

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


def read_pair(
    model: Model,
    plain: Sequence[int],
    asked: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    steerings: Sequence[Injection | Conditional | None],
    n_ctx: int | None = None,
) -> Reading:
    """Measure one pair.

    `plain` is the prompt; `asked` the prompts that ask for the wanted and for the unwanted side;
    `answers` the wanted and the unwanted answer; `steerings` those of the grid, + and then -.
    All are tokens. `n_ctx` is the window, by default as for a `Session`.
    """
    from alignez_edge.runtime.score import Scorer, answer_log_prob, kl_divergence

    n_steered, n_asked = len(steerings), len(asked)
    gain = np.zeros((2, n_steered + n_asked))
    drift = np.zeros((2, n_steered + n_asked))
    # One context a pair: what a pair's numbers are must not depend on the pairs before it.
    with Scorer(model, n_ctx=n_ctx) as scorer:
        for side, answer in enumerate(answers):
            rows = scorer.log_probs(plain, answer, [None, *steerings])
            base = next(rows)
            before = answer_log_prob(base, answer)
            changed = chain(rows, *(scorer.log_probs(prompt, answer) for prompt in asked))
            for i, row in enumerate(changed):
                gain[side, i] = (answer_log_prob(row, answer) - before) / len(answer)
                drift[side, i] = kl_divergence(base, row)
    margin, mean_drift = gain[0] - gain[1], drift.mean(axis=0)
    return Reading(
        margin[:n_steered], mean_drift[:n_steered], margin[n_steered:], mean_drift[n_steered:]
    )


def read_profile(
    profile: Profile,
    model: Model,
    pair: Pair,
    strengths: Sequence[float],
    way: Way,
    n_ctx: int | None = None,
) -> Reading:
    """What `profile` at each of `strengths`, injected by `way`, does to a pair, and what asking
    does; see `read_pair`. Raises `BadInputError` where this model does not allow `way`."""
    plain = model.ask_tokens(pair.query)
    texts = [prompts.prompted(pair.query, profile.axis, side) for side in prompts.SIDES]
    asked = [model.ask_tokens(text) for text in texts]
    answers = [model.tokenize(text, begin=False) for text in (pair.chosen, pair.rejected)]
    steerings = [(profile * strength).by(way).injection(model) for strength in strengths]
    return read_pair(model, plain, asked, answers, steerings, n_ctx)


def calibrate(reading: Reading, budget: float = DRIFT_BUDGET) -> Calibration:
    """Choose the unit from the mean reading.

    The span of a strength is margin(+s) - margin(-s). There are two estimates of 'as much as
    asking': the natural length, 1, and the smallest strength whose span is asking's (by linear
    interpolation from 0), at most the strength at which the mean drift of both signs reaches
    `budget` times asking's; where the span never gets there, that of the largest span within the
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
    # A profile that moves nothing still needs a unit; the natural length is the honest one.
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
