"""What the options of `alignez eval` say about arms: profiles, strengths, grids and sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable

from ..options import ModelOptions, load_steering
from ..output import Output

if TYPE_CHECKING:
    from alignez_edge.evaluation.arms import Arm
    from alignez_edge.evaluation.sweep import Sweep
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model
    from alignez_edge.steering.steering import Steering

GRID = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""The strengths of a grid where none are given."""


def parse_strengths(text: str) -> tuple[float, ...]:
    """`-1,0.5,1` as numbers; raises `BadInputError` on anything else."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise BadInputError(
            f"--strengths cannot be '{printable(text, 60)}'", "write them like -1,-0.5,0.5,1"
        )
    return found


def named(text: str, loading: ModelOptions, way: str) -> tuple[str, Steering]:
    """A profile as it was named, without a folder, and its steering."""
    from alignez_edge.profile.library import SUFFIX, parse_profile_option

    name, _ = parse_profile_option(text)
    return Path(name).name.removesuffix(SUFFIX), load_steering([text], loading.find, way)


def unique(given: Sequence[tuple[str, Steering]]) -> list[tuple[str, Steering]]:
    """Names for different profiles that are different; the same profile and strength only once."""
    digests: dict[str, list[str]] = {}
    found: dict[tuple[str, float], tuple[str, Steering]] = {}
    for name, steering in given:
        ((profile, strength),) = steering.terms
        known = digests.setdefault(name, [])
        if profile.order[1] not in known:
            known.append(profile.order[1])
        number = known.index(profile.order[1]) + 1
        own = name if number == 1 else f"{name}#{number}"
        found.setdefault((own, strength), (own, steering))
    return list(found.values())


def arms_of(
    given: Sequence[tuple[str, Steering]],
    scale: Sequence[float] | None,
    is_grid: bool,
) -> list[Arm]:
    """An arm for each profile at each multiple of its strength; in a grid, for each pair of these.

    `given` is what `unique` returns.
    """
    from alignez_edge.evaluation import arms

    if is_grid:
        if len({name for name, _ in given}) < 2:
            raise BadInputError("--grid names one profile twice", "name two")
        (one, first), (other, second) = given
        steps = scale or GRID
        cells = [(s, t) for s in steps for t in steps]
        return [arms.cell((one, other), first * s + second * t) for s, t in cells]
    return [arms.steered(name, steering * s) for name, steering in given for s in scale or (1,)]


def parse_sweeps(
    texts: Sequence[str], ablations: bool, strengths: str | None, grid: tuple[str, str] | None
) -> list[list[Sweep]]:
    """Which sweeps are combined with each other, one list after the other."""
    from alignez_edge.evaluation.sweep import ABLATIONS, parse_sweep

    sweeps = [parse_sweep(text) for text in texts]
    keys = [sweep.key for sweep in sweeps]
    if len(set(keys)) < len(keys):
        raise BadInputError("--sweep names a setting twice", "write all its values in one")
    if (sweeps or ablations) and grid is not None:
        raise BadInputError("sweeps and --grid exclude each other", "use one of them")
    if sweeps and ablations:
        raise BadInputError("--sweep and --ablations exclude each other", "use one of them")
    if strengths is not None and "strength" in keys:
        raise BadInputError("--sweep strength and --strengths exclude each other", "use one")
    more = [parse_sweep(f"strength={strengths}")] if strengths is not None else []
    if ablations:
        return [[sweep, *more] for sweep in ABLATIONS]
    return [[*sweeps, *more]] if sweeps else []


def swept_arms(
    model: Model,
    given: Sequence[tuple[str, Steering]],
    sweeps: Sequence[Sweep],
    source: str | None,
    out: Output,
) -> list[Arm]:
    """The arms of the sweeps, after building what they need."""
    from alignez_edge.evaluation.sweep import bounded, build_with, swept
    from alignez_edge.profile.profile import Profile

    arms: list[Arm] = []
    with out.progress() as progress:

        def build(profile: Profile, settings: Mapping[str, str | float]) -> Profile:
            shown = ", ".join(f"{key} {value}" for key, value in settings.items())
            out.notice(f"building {printable(profile.name)} with {shown}")
            return build_with(model, profile, settings, source=source, on_progress=progress)

        for name, steering in given:
            ((profile, strength),) = steering.terms
            assert isinstance(profile, Profile)
            kept = []
            for sweep in sweeps:
                inside, outside = bounded(sweep, profile)
                kept.append(inside)
                if outside:
                    shown = ", ".join(map(str, outside))
                    out.notice(f"{name}: no arms for {sweep.key} {shown}: there are not so many")
            arms += swept(name, profile, strength, steering.way, kept, build)
    for arm in arms:
        if arm.steering is not None:
            arm.steering.notices(model)
    return arms


def reference_arms(
    model: str | None,
    profile: str | None,
    loading: ModelOptions,
    way: str,
    others: Sequence[Arm],
) -> list[Arm]:
    """The arm that all others are measured by: an aligned model or another profile, if any."""
    from alignez_edge.evaluation import arms

    if model is not None:
        return [arms.reference(Path(model).name, others)]
    if profile is not None:
        name, steering = named(profile, loading, way)
        return [arms.reference(name, others, steering)]
    return []
