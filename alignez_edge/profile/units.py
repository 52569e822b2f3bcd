"""A profile's units and its verdict, from free-running answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from alignez_edge.calibration.free_running import (
    FreeReading,
    Paid,
    calibrate_freely,
)
from alignez_edge.calibration.verdict import KEY as VERDICT
from alignez_edge.calibration.verdict import judge
from alignez_edge.interventions.ways import Way
from alignez_edge.preferences.prompts import SIDES, is_plain
from alignez_edge.steering.binding import way_into
from alignez_edge.steering.steerable import Own, Steerable

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model


def with_units(
    profile: Own,
    read: Mapping[Way, Sequence[FreeReading]],
    asked: tuple[Paid, Paid] | None = None,
) -> Own:
    """`profile` with its units, curves and verdict from free-running answers, by way of injection,
    and from what other answers cost that were prompted for either side; the verdict is on the last
    way."""
    one_side = is_plain(profile.axis, "negative")
    found = {
        way: calibrate_freely(each, one_side=one_side, asked=asked or (Paid(), Paid()))
        for way, each in read.items()
    }
    vector, *_, best = (*found.values(), *list(found.values())[-1:])
    if "exact" in found:
        profile = profile.with_exact_unit(found["exact"].unit, found["exact"].unit_negative)
    agreeing = profile.report.get("agreement")
    known = agreeing if isinstance(agreeing, float | int) else None
    report = {
        "unit_limit": dict(zip(SIDES, vector.limits, strict=True)),
        VERDICT: judge(profile.axis, best.steered, best.prompted, known).report(),
    }
    return replace(
        profile,
        unit=vector.unit,
        unit_negative=vector.unit_negative,
        calibration=vector.curves(),
        report={**profile.report, **report},
    )


def ways_of(profile: Steerable, model: Model) -> list[Way]:
    """The ways whose units are measured on `model`; the last is the one that `auto` takes."""
    exact = profile.exact_unit is not None and way_into(model, profile, "auto")[0] == "exact"
    return [profile.way, "exact"] if exact else [profile.way]
