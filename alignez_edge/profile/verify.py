"""Is a profile what it says it is, and does it do here what it did where it was made?

A build keeps a few of the pairs that it held back in the profile's report under `check`, with what
strength +1 and -1 of the control vector did to each. Replaying them on a model takes seconds: the
same margins come out (`calibration.py`) where model and profile are what they were, on the same
machine nearly to the bit, in another quantization within `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_edge.calibration.free_running import (
    CHUNK,
    N_QUESTIONS,
    FreeReading,
    form_for,
    n_texts,
    probe_for,
    read_questions,
)
from alignez_edge.calibration.teacher_forced import read_strengths
from alignez_edge.calibration.unit import GRID, Reading, calibrate
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.modelfiles.fingerprint import ModelMatch, compare
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.profile.kept_pairs import (
    _TEXTS,
    KEY,
    MAX_CHARS,
    N_KEPT,
    KeptPair,
    _is_text,
    kept_pairs,
)
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.units import ways_of, with_units
from alignez_edge.steering.compatibility import check_fit
from alignez_edge.steering.steerable import Steerable

if TYPE_CHECKING:
    from alignez_edge.interventions.ways import Way
    from alignez_edge.runtime.model import Model

TOLERANCE = 0.25
"""How far, of the effect as it was measured, a replay may be from it and still be the same: twice
what other quantizations of four bits and more were off on the demo model (docs/sharing.md)."""
SLACK = 0.01
"""The same in nats per token, for effects that are next to nothing."""
_SIGNS = (1.0, -1.0)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Effect:
    """Means over pairs of what strength +1 and -1 do: margin and KL (nats per token)."""

    margin: tuple[float, float]
    drift: tuple[float, float]

    @classmethod
    def of(cls, pairs: Sequence[KeptPair]) -> Effect:
        """The means of some pairs."""
        margin, drift = (
            np.mean([getattr(pair, name) for pair in pairs], axis=0) for name in ("margin", "drift")
        )
        return cls((float(margin[0]), float(margin[1])), (float(drift[0]), float(drift[1])))

    @property
    def span(self) -> float:
        """How far +1 and -1 are apart."""
        return self.margin[0] - self.margin[1]


@dataclass(frozen=True)
class Verification:
    """What was found: how the models agree, and the effect then and now (None: no pairs kept)."""

    comparison: ModelMatch
    pairs: int = 0
    before: Effect | None = None
    now: Effect | None = None

    @property
    def as_before(self) -> bool | None:
        """Whether the effect is the one that was measured; None if nothing could be replayed."""
        if self.before is None or self.now is None:
            return None
        then, now = self.before.span, self.now.span
        near = abs(now - then) <= max(TOLERANCE * abs(then), SLACK)
        return near and (now > 0) == (then > 0)


def measured_pairs(
    profile: Steerable,
    model: Model,
    pairs: Sequence[PreferencePair | KeptPair],
    n_ctx: int | None = None,
) -> dict[str, Any]:
    """The first `N_KEPT` of `pairs` that are not too long, measured on `model`, as a profile's
    report keeps them."""
    short = [pair for pair in pairs if all(len(getattr(pair, k)) <= MAX_CHARS for k in _TEXTS)]
    found = [asdict(_measured(profile, model, pair, n_ctx)) for pair in short[:N_KEPT]]
    return {KEY: found}


def verify(profile: Profile, model: Model, on_progress: Progress | None = None) -> Verification:
    """Compare the models, and replay the kept pairs where the profile fits.

    Raises `ProfileFileError` if it does not, naming the facts that differ, and
    `PromptTooLongError` if the model's window is too small for the pairs.
    """
    check_fit(profile, model)
    comparison = compare(profile.fingerprint, model.fingerprint)
    kept = kept_pairs(profile)
    if not kept:
        return Verification(comparison)
    now = []
    for done, pair in enumerate(kept):
        if on_progress:
            on_progress(done, len(kept))
        now.append(_measured(profile, model, pair))
    if on_progress:
        on_progress(len(kept), len(kept))
    return Verification(comparison, len(kept), Effect.of(kept), Effect.of(now))


def recalibrate(profile: Profile, model: Model, on_progress: Progress | None = None) -> Profile:
    """The profile with strength 1 measured anew on `model`, by the kept pairs.

    The directions stay what they were. It is then a profile of this model, and its report says
    where it came from. A profile that knows which questions it was calibrated on answers these
    again; an older one is measured on the answers of its kept pairs. Raises `ProfileFileError`
    if it does not fit, and `BadInputError` if it carries neither.
    """
    check_fit(profile, model)
    kept = kept_pairs(profile)
    if questions := kept_questions(profile):
        return _recalibrated_freely(profile, model, questions, kept, on_progress)
    if not kept:
        raise BadInputError(
            f"the profile {printable(profile.name)} contains no pairs to calibrate with",
            "build one for this model: alignez build --like FILE -m MODEL",
        )
    ways = ways_of(profile, model)
    found = {}
    for step, way in enumerate(ways):
        readings = []
        for done, pair in enumerate(kept, step * len(kept)):
            if on_progress:
                on_progress(done, len(ways) * len(kept))
            readings.append(read_strengths(profile, model, pair, _natural(profile, way), way))
        found[way] = calibrate(Reading.mean(readings))
    vector = found[ways[0]]
    parts = profile.parts()
    if "exact" in found:
        parts = parts.with_exact_unit(found["exact"].unit)
    parts = replace(
        parts,
        unit=vector.unit,
        unit_negative=None,
        calibration=vector.curves(),
        fingerprint=model.fingerprint,
        model=printable(model.facts.name),
        report={
            **profile.report,
            "unit_limit": vector.limit,
            "recalibrated": {"from": profile.model, "unit": profile.unit, "pairs": len(kept)},
        },
    )
    again = measured_pairs(parts, model, kept)
    if on_progress:
        on_progress(len(ways) * len(kept), len(ways) * len(kept))
    return Profile.of(replace(parts, report={**parts.report, **again}))


def kept_questions(profile: Profile) -> tuple[str, ...]:
    """The questions that a profile was calibrated on; none where its report tells of none that are
    sound."""
    found = profile.report.get("questions")
    if not isinstance(found, list) or not 0 < len(found) <= N_QUESTIONS:
        return ()
    sound = all(isinstance(text, str) and 0 < len(text) <= MAX_CHARS for text in found)
    return tuple(found) if sound and all(_is_text(text) for text in found) else ()


def _recalibrated_freely(
    profile: Profile,
    model: Model,
    questions: Sequence[str],
    kept: Sequence[KeptPair],
    on_progress: Progress | None,
) -> Profile:
    """`recalibrate` by free-running answers to the questions of the build."""
    from alignez_edge.preferences.choice import RequestChoice

    try:
        choice = RequestChoice.of(profile.report["request"])
        weights = {str(name): float(weight) for name, weight in choice.weights.items()}
        form = form_for(choice.form)
    except (KeyError, TypeError, ValueError, AttributeError):
        weights, form = {}, form_for("")
    ways = ways_of(profile, model)
    done, total = 0, 2 * n_texts(questions) * len(ways)

    def tick() -> None:
        nonlocal done
        if on_progress:
            on_progress(done, total)
        done += 1

    found = {}
    for way in ways:
        readings: list[FreeReading] = []
        for start in range(0, len(questions), CHUNK):
            readings += read_questions(
                profile,
                model,
                questions[start : start + CHUNK],
                form=form,
                probe=probe_for(form, weights),
                seed=profile.seed,
                way=way,
                tick=tick,
            )
        found[way] = readings
    parts = replace(
        with_units(profile.parts(), found),
        fingerprint=model.fingerprint,
        model=printable(model.facts.name),
    )
    again = measured_pairs(parts, model, kept)
    if on_progress:
        on_progress(total, total)
    told = {"from": profile.model, "unit": profile.unit, "pairs": len(questions)}
    return Profile.of(replace(parts, report={**parts.report, "recalibrated": told, **again}))


def _natural(profile: Steerable, way: Way) -> list[float]:
    """The strengths at which a profile is injected at the lengths of the grid, + and then -."""
    unit = profile.exact_unit if way == "exact" else profile.unit
    return [sign * strength / (unit or 1.0) for sign in _SIGNS for strength in GRID]


def _measured(
    profile: Steerable, model: Model, pair: PreferencePair | KeptPair, n_ctx: int | None = None
) -> KeptPair:
    found = read_strengths(profile, model, pair, _SIGNS, profile.way, n_ctx)
    margin, drift = (
        (round(float(a), 6), round(float(b), 6)) for a, b in (found.margin, found.drift)
    )
    return KeptPair(pair.query, pair.chosen, pair.rejected, margin, drift)
