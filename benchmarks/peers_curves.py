"""Effect and cost over strengths, and the effect at the cost of prompting. NumPy only.

Samples are those of `Resamples`: the figure on the questions as they are, then on each resample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.evaluation.measures import Figure, Resamples
from benchmarks.real import Judged
from benchmarks.real_report import as_table, interval, number

Sign = Literal[1, -1]
NAMES: dict[Sign, str] = {1: "+", -1: "-"}


@dataclass(frozen=True)
class Reading:
    """Samples, `(n_sample,)`: the effect towards the wanted side, the cost above plain, and the
    strength, without its sign."""

    effect: DoubleArray
    cost: DoubleArray
    strength: DoubleArray


@dataclass(frozen=True)
class Curve:
    """One sign of a contender. `strengths`, `(n,)`, rise from 0; `effects` (towards the side of the
    sign) and `costs` (nats per token), both above plain, are `(n, n_sample)`; `target`,
    `(n_sample,)`, is what prompting for that side costs."""

    strengths: DoubleArray
    effects: DoubleArray
    costs: DoubleArray
    target: DoubleArray

    @classmethod
    def of(
        cls, sign: Sign, plain: Judged, prompted: Judged, found: Mapping[float, Judged]
    ) -> Curve:
        """From judged answers by strength, without the sign."""
        resamples = Resamples(len(plain.nats))
        base = _samples(resamples, plain)
        points = [_samples(resamples, judged) for judged in found.values()]
        nothing = np.zeros_like(base[0])
        return cls(
            np.array([0.0, *found]),
            np.stack([nothing, *(sign * (score - base[0]) for score, _ in points)]),
            np.stack([nothing, *(cost - base[1] for _, cost in points)]),
            _samples(resamples, prompted)[1] - base[1],
        )

    def at_prompting(self) -> Reading:
        """Where the cost first reaches that of prompting, linear between strengths.

        Where it never does, the last strength; where prompting costs nothing, strength 0.
        """
        beyond = self.costs >= self.target
        reached = beyond.any(axis=0)
        above = np.where(reached, beyond.argmax(axis=0), len(self.strengths) - 1)
        below = np.maximum(above - 1, 0)
        column = np.arange(len(self.target))
        low, high = self.costs[below, column], self.costs[above, column]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(reached & (above > 0), (self.target - low) / (high - low), 1.0)

        def between(rows: DoubleArray) -> DoubleArray:
            return np.asarray(rows[below, column] * (1 - part) + rows[above, column] * part)

        strengths = np.broadcast_to(self.strengths[:, None], self.costs.shape)
        return Reading(between(self.effects), between(self.costs), between(strengths))

    def at(self, strength: float) -> Reading | None:
        """A strength that was measured; None for another one."""
        (places,) = np.nonzero(self.strengths == strength)
        if not places.size:
            return None
        at = int(places[0])
        level = np.full_like(self.target, strength)
        return Reading(self.effects[at], self.costs[at], level)


def _samples(resamples: Resamples, judged: Judged) -> tuple[DoubleArray, DoubleArray]:
    """Mean score and nats per token."""
    return resamples.mean(judged.scores), resamples.ratio(judged.nats, judged.tokens)


def figures(
    plain: Judged,
    prompted: Mapping[Sign, Judged],
    curves: Mapping[str, Mapping[Sign, Curve]],
) -> dict[str, Any]:
    """All figures as nested tables; the leaves are `Figure`s and numbers.

    Effects are signed as the instrument has them, so that one of − is below 0 where it is right.
    """
    resamples = Resamples(len(plain.nats))
    score, cost = _samples(resamples, plain)
    asked = {}
    for sign, judged in prompted.items():
        own = _samples(resamples, judged)
        level = np.full_like(score, math.nan)
        asked[sign] = Reading(sign * (own[0] - score), own[1] - cost, level)
    readings = {"prompt": asked}
    for name, by_sign in curves.items():
        readings[name] = {sign: curve.at_prompting() for sign, curve in by_sign.items()}
    if "ours" in curves:
        units = {sign: curve.at(1.0) for sign, curve in curves["ours"].items()}
        if all(units.values()):
            readings["ours, at +1 and −1"] = {s: r for s, r in units.items() if r is not None}
    spans = {name: sum(r.effect for r in by.values()) for name, by in readings.items()}
    rows: dict[str, Any] = {}
    for name, by in readings.items():
        row: dict[str, Any] = {
            NAMES[sign]: {
                "effect": resamples.figure(sign * reading.effect),
                "nats above plain": resamples.figure(reading.cost),
                "strength": float(reading.strength[0]),
            }
            for sign, reading in by.items()
        }
        row["span"] = resamples.figure(np.asarray(spans[name]))
        if "ours" in spans:
            row["share of ours"] = resamples.share(
                np.asarray(spans[name]), np.asarray(spans["ours"])
            )
        if name in curves:
            row["curve"] = {NAMES[s]: _points(resamples, s, c) for s, c in curves[name].items()}
        rows[name] = row
    return {
        "plain": resamples.figure(score),
        "plain nats": resamples.figure(cost),
        "contenders": rows,
    }


def _points(resamples: Resamples, sign: Sign, curve: Curve) -> list[dict[str, Any]]:
    return [
        {
            "strength": sign * float(strength),
            "effect": resamples.figure(sign * effect),
            "nats above plain": resamples.figure(cost),
        }
        for strength, effect, cost in zip(curve.strengths, curve.effects, curve.costs, strict=True)
        if strength
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """One row for each contender."""
    rows = []
    for name, row in result["contenders"].items():
        sides = [row[side] for side in "+-"]
        share: Figure | None = row.get("share of ours")
        rows.append(
            [
                f"{name} ({result['form']})" if name == "prompt" else name,
                *(interval(side["effect"]) for side in sides),
                interval(row["span"]),
                "" if share is None or name == "ours" else interval(share, signed=False),
                " / ".join(number(side["nats above plain"].mean) for side in sides),
                "" if name == "prompt" else " / ".join(_level(side["strength"]) for side in sides),
            ]
        )
    seeds = f"{result['seeds']} answer{'s' if result['seeds'] > 1 else ''} to each"
    head = ["contender", "effect +", "effect −", "span", "share of ours", "nats, + / −"]
    return "\n\n".join(
        [
            f"{result['model']}, {result['axis']} by {result['instrument']}: {result['queries']} "
            f"questions of just-eval-instruct that no build has seen, {seeds}, at most "
            f"{result['tokens']} tokens; plain answers score {number(result['plain'].mean)} at "
            f"{result['plain nats'].mean:.2f} nats per token. Effects are against plain, at the "
            "strength at which a contender costs what prompting for that side costs; 95 % "
            "intervals over the questions.",
            as_table([*head, "strength, + / −"], rows),
        ]
    )


def _level(strength: float) -> str:
    return f"{strength:.2f}"
