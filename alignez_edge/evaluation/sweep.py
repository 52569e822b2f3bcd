"""Sweeps: the same profile built and used under other settings, each as an arm of its own.

`neighbors`, `layers` and `method` are settings of the build: the profile is built again for each
value out of the same pairs, which are not generated twice. `strength` and `inject` are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignez_edge.build.build import split
from alignez_edge.build.rebuild import build_like
from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.arms import Arm, steered
from alignez_edge.files.text import near_hint, printable
from alignez_edge.interventions.ways import WAYS, Way
from alignez_edge.methods.table import METHODS
from alignez_edge.profile.provenance import Provenance

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model

BUILT = ("neighbors", "layers", "method")
KEYS = (*BUILT, "strength", "inject")
Setting = str | float
Builder = Callable[["Profile", Mapping[str, Setting]], "Profile"]
"""Builds a profile again with some of the settings `BUILT`."""


@dataclass(frozen=True)
class Sweep:
    """One setting and the values that it takes, in order."""

    key: str
    values: tuple[Setting, ...]


ABLATIONS = (
    Sweep("neighbors", (3, 5, 10, 15, 20, 25, 30)),
    Sweep("layers", (1, 5, 7, 10, 15, 20, 25, 30)),
)
"""The papers' (AlignEZ, figures 4a and 4b), one after the other."""


def parse_sweep(text: str) -> Sweep:
    """`KEY=V1,V2,...`; raises `BadInputError` on an unknown key and on what cannot be its value."""
    key, equals, listed = text.partition("=")
    if key not in KEYS or not equals:
        raise BadInputError(
            f"--sweep cannot be {printable(text, 80)!r}",
            f"write it like layers=1,3,5; what can be swept: {', '.join(KEYS)}",
        )
    read: dict[str, Callable[[str], Setting]] = {
        "strength": _strength,
        "method": _one_of(METHODS),
        "inject": _one_of(WAYS),
    }
    values = [read.get(key, _count)(part.strip()) for part in listed.split(",")]
    return Sweep(key, tuple(dict.fromkeys(values)))


def bounded(sweep: Sweep, profile: Profile) -> tuple[Sweep, tuple[Setting, ...]]:
    """The sweep without what the model and the pairs do not allow, and what was left out."""
    limits = {
        "layers": profile.vector.n_layer - 1,
        "neighbors": len(split(profile.pairs)[0]),
    }
    limit = limits.get(sweep.key)
    if limit is None:
        return sweep, ()
    kept = tuple(value for value in sweep.values if cast(float, value) <= limit)
    if not kept:
        raise BadInputError(
            f"--sweep {sweep.key}: there are only {limit} for the profile {printable(profile.name)}"
        )
    return Sweep(sweep.key, kept), tuple(value for value in sweep.values if value not in kept)


def swept(
    name: str, profile: Profile, strength: float, way: Way, sweeps: Sequence[Sweep], build: Builder
) -> list[Arm]:
    """An arm for every combination of the sweeps' values.

    `strength` and `way` are those where they are not swept; a swept strength is a multiple of
    `strength`.
    """
    made: dict[tuple[tuple[str, Setting], ...], Profile] = {}
    found = []
    for values in product(*(sweep.values for sweep in sweeps)):
        settings = {sweep.key: value for sweep, value in zip(sweeps, values, strict=True)}
        of_build = {key: value for key, value in settings.items() if key in BUILT}
        which = tuple(of_build.items())
        if which not in made:
            made[which] = build(profile, of_build) if of_build else profile
        factor = cast(float, settings.get("strength", 1.0))
        own_way = cast(Way, settings.get("inject", way))
        shown = [f"{key}={value}" for key, value in settings.items() if key != "strength"]
        own_name = f"{name}[{','.join(shown)}]" if shown else name
        steering = (made[which] * (strength * factor)).by(own_way)
        found.append(replace(steered(own_name, steering, sweep=settings), profile=name))
    return found


def build_with(
    model: Model,
    profile: Profile,
    settings: Mapping[str, Setting],
    *,
    source: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Profile:
    """`profile` built again on `model` with other `settings`, from the same queries or pairs.

    `source` is the file that these are in, where they are not known. Raises `BadInputError` if
    the profile does not say how it was built, and if the file holds others.
    """
    from alignez_edge.preferences.queries import read_queries

    told = Provenance.of(profile)
    if told is None:
        raise BadInputError(
            f"the profile {printable(profile.name)} does not say how it was built",
            "build it again to sweep over how it is built",
        )
    offered: dict[str, Any] = {}
    if source is not None:
        is_pairs = told.source.kind == "pairs"
        offered = {"pairs": source} if is_pairs else {"queries": read_queries(source)}
    try:
        return build_like(
            model,
            profile,
            method=cast("str | None", settings.get("method")),
            layers=_layers(profile, settings) if "layers" in settings else None,
            neighbors=cast("int | None", settings.get("neighbors")),
            on_progress=on_progress,
            **offered,
        )
    except BadInputError as failure:
        hint = failure.hint
        if hint is not None and hint.startswith("give them"):
            hint = "give them: --built-from FILE"
        raise BadInputError(failure.message, hint) from None


def top_layers(n: int, separation: Sequence[float], agreement: Sequence[float]) -> tuple[int, ...]:
    """The `n` best layers, ascending: those that agree with the others, by how well they separate.

    What `layers.choose_layers` looks at, as an order. Layer 0 cannot be edited.
    """
    order = sorted(
        range(1, len(separation)), key=lambda layer: (agreement[layer] <= 0, -separation[layer])
    )
    return tuple(sorted(order[:n]))


def _layers(profile: Profile, settings: Mapping[str, Setting]) -> tuple[int, ...]:
    report = profile.report
    try:
        separation, agreement = (
            [float(value) for value in report[key]] for key in ("separation", "interlayer_cosine")
        )
    except (KeyError, TypeError, ValueError):
        separation = agreement = []
    if not len(separation) == len(agreement) == profile.vector.n_layer:
        raise BadInputError(
            f"the profile {printable(profile.name)} does not say which of its layers are best",
            "build it again to sweep over its layers",
        )
    return top_layers(cast(int, settings["layers"]), separation, agreement)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 6 and int(text) > 0):
        raise BadInputError(f"{printable(text, 40)!r} is not a count to sweep over", "count from 1")
    return int(text)


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInputError(f"{printable(text, 40)!r} is not a strength to sweep over")
    return value


def _one_of(known: Sequence[str] | Mapping[str, object]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise BadInputError(
                f"{printable(text, 40)!r} cannot be swept over", near_hint(text, known, "values")
            )
        return text

    return read
