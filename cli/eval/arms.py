"""What the options of `alignez eval` say about arms: profiles, strengths, grids and sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable

from ..options import ModelOptions, SteeringOptions, check_fit, load_steering
from ..output import Output
from .options import BaselineOptions, StrengthOptions, SweepOptions

if TYPE_CHECKING:
    from alignez_edge.chat.preamble import Preamble
    from alignez_edge.evaluation.arms import Arm
    from alignez_edge.evaluation.sweep import Sweep
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model
    from alignez_edge.steering.steering import Steering

GRID = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""The strengths of a grid where none are given."""


@dataclass(frozen=True)
class Treatments:
    """What is tried: profiles as they were named, each at a `scale` of its strength or swept.

    `sweeps` are combined within each list; `built_from` is for those that build a profile again.
    """

    given: Sequence[tuple[str, Steering]]
    scale: Sequence[float] | None
    is_grid: bool
    sweeps: Sequence[Sequence[Sweep]]
    built_from: str | None

    @classmethod
    def parse(
        cls,
        steered: SteeringOptions,
        strengths: StrengthOptions,
        sweeping: SweepOptions,
        loading: ModelOptions,
    ) -> Treatments:
        """Raises `BadInputError` if no profile is named, or options cannot be combined."""
        if strengths.grid is not None and steered.profile:
            raise BadInputError("--grid and -p cannot be combined", "a grid names its two profiles")
        if strengths.grid is None and not steered.profile:
            raise BadInputError("no profile given", "name one: -p polite")
        named = (*steered.profile, *(strengths.grid or ()))
        scale = strengths.strengths
        return cls(
            given=[_named(text, loading, steered.inject) for text in named],
            scale=parse_strengths(scale) if scale is not None else None,
            is_grid=strengths.grid is not None,
            sweeps=parse_sweeps(sweeping, strengths),
            built_from=sweeping.built_from,
        )

    def check_fit(self, model: Model, out: Output) -> None:
        """Raise `ProfileFileError` unless every profile is for `model`."""
        for _, steering in self.given:
            check_fit(steering, model, out)

    def arms(self, model: Model, out: Output) -> list[Arm]:
        """An arm for each profile at each of its strengths or settings; sweeps may build some."""
        given = _unique(self.given)
        if not self.sweeps:
            return _scaled(given, self.scale, self.is_grid)
        return [
            arm
            for sweeps in self.sweeps
            for arm in _swept(model, given, sweeps, self.built_from, out)
        ]


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


def _named(text: str, loading: ModelOptions, way: str) -> tuple[str, Steering]:
    """A profile as it was named, without a folder, and its steering."""
    from alignez_edge.profile.library import SUFFIX, parse_profile_option

    name, _ = parse_profile_option(text)
    return Path(name).name.removesuffix(SUFFIX), load_steering([text], loading.find, way)


def _unique(given: Sequence[tuple[str, Steering]]) -> list[tuple[str, Steering]]:
    """Names for different profiles that are different; the same profile and strength only once."""
    digests: dict[str, list[str]] = {}
    unique: dict[tuple[str, float], tuple[str, Steering]] = {}
    for name, steering in given:
        ((profile, strength),) = steering.terms
        known = digests.setdefault(name, [])
        if profile.order[1] not in known:
            known.append(profile.order[1])
        number = known.index(profile.order[1]) + 1
        own = name if number == 1 else f"{name}#{number}"
        unique.setdefault((own, strength), (own, steering))
    return list(unique.values())


def _scaled(
    given: Sequence[tuple[str, Steering]],
    scale: Sequence[float] | None,
    is_grid: bool,
) -> list[Arm]:
    """An arm for each profile at each multiple of its strength; in a grid, for each pair of these.

    `given` is what `_unique` returns.
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


def parse_sweeps(sweeping: SweepOptions, strengths: StrengthOptions) -> list[list[Sweep]]:
    """Which sweeps are combined with each other, one list after the other."""
    from alignez_edge.evaluation.sweep import ABLATIONS, parse_sweep

    sweeps = [parse_sweep(text) for text in sweeping.sweep]
    keys = [sweep.key for sweep in sweeps]
    if len(set(keys)) < len(keys):
        raise BadInputError("--sweep names a setting twice", "write all its values in one")
    if (sweeps or sweeping.ablations) and strengths.grid is not None:
        raise BadInputError("sweeps and --grid cannot be combined", "use one of them")
    if sweeps and sweeping.ablations:
        raise BadInputError("--sweep and --ablations cannot be combined", "use one of them")
    scale = strengths.strengths
    if scale is not None and "strength" in keys:
        raise BadInputError("--sweep strength and --strengths cannot be combined", "use one")
    more = [parse_sweep(f"strength={scale}")] if scale is not None else []
    if sweeping.ablations:
        return [[sweep, *more] for sweep in ABLATIONS]
    return [[*sweeps, *more]] if sweeps else []


def _swept(
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
                    out.notice(f"{name}: left out {sweep.key} {shown}: there are not so many")
            arms += swept(name, profile, strength, steering.way, kept, build)
    for arm in arms:
        if arm.steering is not None:
            arm.steering.notices(model)
    return arms


def all_arms(
    steered: Sequence[Arm],
    baselines: BaselineOptions,
    preamble: Preamble,
    loading: ModelOptions,
    way: str,
) -> list[Arm]:
    """The steered arms, and those that they are measured against; the plain one comes first."""
    from alignez_edge.evaluation import arms

    reference = []
    if baselines.reference is not None:
        reference = [arms.reference(Path(baselines.reference).name, steered)]
    elif baselines.against is not None:
        name, steering = _named(baselines.against, loading, way)
        reference = [arms.reference(name, steered, steering)]
    return [
        arms.plain(),
        *reference,
        *(arms.asked(steered) if baselines.asking else ()),
        *steered,
        *(arms.both(steered) if baselines.asking else ()),
        *(arms.prompted(preamble, steered) if preamble.messages else ()),
    ]
