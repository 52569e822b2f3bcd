"""Several axes in one profile, and how much each of them moves the others.

What a profile does to a layer is its displacement there: the sum of the vector's increments up to
that layer, because the residual stream hands on what was added below. Axes overlap where their
displacements do. NumPy in, NumPy out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignez_edge._version import __version__
from alignez_edge.arrays import DoubleArray
from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.files.text import MAX_TEXT, printable
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.intervention import Intervention
from alignez_edge.modelfiles.fingerprint import Fit, compare
from alignez_edge.preferences.axes import MAX_TRAIT, Axis
from alignez_edge.preferences.prompts import SIDES, trait
from alignez_edge.profile.profile import Profile
from alignez_edge.steering.steerable import Steerable
from alignez_edge.steering.steering import Steering, sum_of

MAX_PARTS = 32
_NOISE = 1e-5
"""What is shorter than this share of a displacement is the rounding of float32 increments."""
_LEAST = 0.01
"""Where less than this of an axis is left, what is left is chance and not worth its strength."""
_HUGE = 1e100
_KEY = "mix"

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Part:
    """One profile of a mix: its name, the digest of what it adds, and its strength."""

    profile: str
    digest: str
    strength: float


@dataclass(frozen=True)
class Mixture:
    """What a mixed profile says of itself in its report.

    `interference[i][j]` is how far part `i` moves along the axis of part `j`, in units of what `j`
    does itself. `remaining` is the same after orthogonalising, along the axes as they were; None
    if nothing was orthogonalised.
    """

    parts: tuple[Part, ...]
    interference: Matrix
    remaining: Matrix | None = None

    def to_data(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            "parts": [vars(part) for part in self.parts],
            "interference": self.interference,
            "remaining": self.remaining,
        }

    @classmethod
    def of(cls, profile: Steerable) -> Mixture | None:
        """The mixture that a profile's report tells of; None if it tells of none that is sound.

        A report can come from an untrusted file.
        """
        record = profile.report.get(_KEY)
        try:
            parts = tuple(
                Part(str(part["profile"]), str(part["digest"]), _number(part["strength"]))
                for part in record["parts"]  # type: ignore[index]
            )
            if not 1 <= (size := len(parts)) <= MAX_PARTS:
                return None
            return cls(
                parts,
                _matrix(record["interference"], size),  # type: ignore[index]
                _matrix(left, size) if (left := record["remaining"]) else None,  # type: ignore[index]
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


def displacements(profile: Steerable) -> DoubleArray:
    """What strength 1 displaces each layer by: `(2, n_layer, n_embd)`, last prompt token first.

    Raises `BadInputError` if its numbers are so large that nothing can be computed with them.
    """
    rows = np.stack([profile.vector.deciding, profile.vector.answer])
    with np.errstate(over="ignore"):
        found = profile.unit * np.cumsum(rows, axis=1, dtype=np.float64)
    if not np.abs(found).max() < _HUGE:
        raise BadInputError(f"the numbers of the profile {printable(profile.name)} are too large")
    return found


def interference(a: Steerable, b: Steerable) -> float:
    """How far strength 1 of `a` moves along `b`, in units of what strength 1 of `b` does; about.

    At either position `sum_l <A_l, B_l> / sum_l <B_l, B_l>` over the layers that one of them edits,
    and the mean of the positions where `b` does anything (0 where there is none). Long
    displacements count more than short ones: the plain mean over layers of the projections follows
    layers in which `b` is next to nothing. Among several such figures this one told best what was
    measured on the demo model (method page, section on several axes). `interference(a, a)` is 1.
    Raises `ProfileFileError` if the two are for different models.
    """
    check_same_model([a, b])
    layers = sorted({*a.layers, *b.layers})
    own, other = displacements(a)[:, layers], displacements(b)[:, layers]
    along = np.einsum("pld,pld->p", own, other)
    lengths = np.einsum("pld,pld->p", other, other)
    return float(np.mean(along[lengths > 0] / lengths[lengths > 0])) if lengths.any() else 0.0


def interferences(profiles: Sequence[Steerable], along: Sequence[Steerable]) -> Matrix:
    """`interference` of each profile (rows) along each of the others (columns)."""
    # Adding 0.0 makes -0.0, which reads oddly, plain 0.
    return tuple(tuple(round(interference(a, b), 4) + 0.0 for b in along) for a in profiles)


def orthogonalise(profile: Steerable, against: Steerable, *more: Steerable) -> Profile:
    """`profile` without what it has along the others, in every layer and at both positions.

    Its displacement `A_l` loses its projection on the span of the others' displacements there. The
    unit grows so that strength 1 is as long as before: of the demo model's polite and formal that
    restores nine tenths of the own effect, at no higher cost. The calibration, which no longer
    holds, goes. Raises `BadInputError` if next to nothing is left, and `ProfileFileError` on
    profiles for different models.
    """
    others = (against, *more)
    check_same_model([profile, *others])
    own = displacements(profile)
    span = np.stack([displacements(other) for other in others], axis=-1)
    # Normalized, because what counts as rounding must not depend on the others' strengths.
    lengths = np.linalg.norm(span, axis=2, keepdims=True)
    span = np.divide(span, lengths, out=np.zeros_like(span), where=lengths > 0)
    left = own - (span @ (np.linalg.pinv(span, rcond=_NOISE) @ own[..., None]))[..., 0]
    rounding = _NOISE * np.linalg.norm(own, axis=2, keepdims=True)
    left = np.where(np.linalg.norm(left, axis=2, keepdims=True) > rounding, left, 0) / profile.unit
    vector = ControlVector.from_displacements(left[0], left[1], _layers([profile, *others]))
    names = ", ".join(printable(other.name) for other in others)
    nothing = BadInputError(f"nothing of {printable(profile.name)} is left: it lies along {names}")
    if vector.is_zero():
        raise nothing
    found = Profile(
        axis=profile.axis,
        vector=vector,
        layers=vector.layers,
        fingerprint=profile.fingerprint,
        unit=profile.unit,
        unit_negative=profile.unit_negative,
        method=printable(f"{profile.method}, orthogonalised", MAX_TEXT),
        seed=profile.seed,
        pairs=profile.pairs,
        dropped=profile.dropped,
        versions=profile.versions,
        author=profile.author,
        licence=profile.licence,
        model=profile.model,
        report={"orthogonal_to": [_named(other) for other in others]},
    )
    # What is left is orthogonal to what went, so this is the square of its length against before.
    if (share := interference(found, profile)) < _LEAST:
        raise nothing
    grown, negative = 1 / math.sqrt(share), found.unit_negative
    return replace(
        found,
        unit=found.unit * grown,
        unit_negative=None if negative is None else negative * grown,
    )


def mix(
    terms: Iterable[tuple[Steerable, float]], name: str, *, orthogonal: bool = False
) -> Profile:
    """One profile, called `name`, whose strength 1 does what the sum of the terms does.

    What is added up are control vectors, and exact forms where every part has one and nothing is
    orthogonalised; what else a part may have is left out (`left_out` names it).

    With `orthogonal` every part first loses what it has along the parts as they were given, the
    same for all of them: of two axes that overlap neither keeps what they share, and the order of
    the terms does not matter. (Removing it from the later ones only, or from both by half, leaves
    an axis that moves the other; measured on the demo model.) A part of strength 0 adds nothing,
    but the others become orthogonal to it. Terms of one profile are joined.

    Raises `BadInputError` if fewer than two profiles, or more than `MAX_PARTS`, are named, if
    a strength is not finite or overflows, and if nothing is left; `ProfileFileError` if they
    are for different models.
    """
    strengths: dict[tuple[str, str], list[float]] = {}
    by_order: dict[tuple[str, str], Steerable] = {}
    for profile, strength in Steering(tuple(terms)).terms:
        by_order.setdefault(profile.order, profile)
        strengths.setdefault(profile.order, []).append(strength)
    profiles = list(by_order.values())
    for profile in profiles:
        if profile.intervention is not None and not profile.intervention.edits_layers:
            raise BadInputError(
                f"{printable(profile.name)} moves logits and not layers: it cannot be mixed",
                "use both at once: -p NAME -p NAME",
            )
    sums = [sum_of(strengths[profile.order]) for profile in profiles]
    if not 2 <= len(profiles) <= MAX_PARTS:
        raise BadInputError(
            f"a mix needs 2 to {MAX_PARTS} different profiles, not {len(profiles)}",
            hint="name them like polite:0.8 formal:-0.3",
        )
    check_same_model(profiles)
    before = interferences(profiles, profiles)
    used, remaining = profiles, None
    if orthogonal:
        used = [orthogonalise(a, *(b for b in profiles if b is not a)) for a in profiles]
        remaining = interferences(used, profiles)
    terms = Steering(tuple(zip(used, sums, strict=True))).joined()
    vector = _sum(terms, profiles[0].vector)
    parts = tuple(Part(**_named(p), strength=s) for p, s in zip(profiles, sums, strict=True))
    dropped: dict[str, int] = {}
    for profile in profiles:
        for reason, count in profile.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return Profile(
        axis=_axis(name, profiles, sums, orthogonal),
        vector=vector,
        layers=vector.layers,
        fingerprint=profiles[0].fingerprint,
        method="mix, orthogonalised" if orthogonal else "mix",
        pairs=sum(profile.pairs for profile in profiles),
        dropped=dropped,
        versions={"alignez-edge": __version__, "numpy": np.__version__},
        author=_joined(profile.author for profile in profiles),
        licence=_joined(profile.licence for profile in profiles),
        model=profiles[0].model,
        report={_KEY: Mixture(parts, before, remaining).to_data()},
        intervention=None if orthogonal else _mixed(terms),
    )


def left_out(terms: Iterable[tuple[Steerable, float]], *, orthogonal: bool = False) -> list[str]:
    """What `mix` cannot keep of its parts, one line each."""
    profiles = [profile for profile, _ in terms]
    kinds = [(p, p.intervention) for p in profiles]
    lost = [
        f"{printable(p.name)} {kind.lost_in_mix}" for p, kind in kinds if kind and kind.lost_in_mix
    ]
    mixing = [kind is not None and kind.can_mix for _, kind in kinds]
    if any(mixing) and (orthogonal or not all(mixing)):
        lost.append("the mix has control vectors only: not every part has an exact edit that fits")
    return lost


def check_same_model(profiles: Sequence[Steerable]) -> None:
    """Raise `ProfileFileError`, naming what differs, unless all are for one model."""
    first = profiles[0]
    for other in profiles[1:]:
        found = compare(first.fingerprint, other.fingerprint)
        differing = list(found.differing)
        if first.vector.deciding.shape != other.vector.deciding.shape:
            differing.append("the vectors' shapes")
        if found.fit is not Fit.SAME or differing:
            raise ProfileFileError(
                f"{printable(first.name)} and {printable(other.name)} are for different models: "
                f"{', '.join(differing)} differ",
                hint="build both for the same model",
            )


def _sum(terms: Sequence[tuple[Steerable, float]], like: ControlVector) -> ControlVector:
    """The sum as `Steering.injection` takes it, to the bit."""
    deciding, answer = np.zeros((2, like.n_layer, like.n_embd))
    with np.errstate(over="ignore", invalid="ignore"):
        for profile, strength in terms:
            scale = profile.scale(strength)
            deciding += scale * profile.vector.deciding.astype(np.float64)
            answer += scale * profile.vector.answer.astype(np.float64)
        rows = deciding.astype(np.float32), answer.astype(np.float32)
    if not all(np.isfinite(row).all() for row in rows):
        raise BadInputError("the strengths are so large that the mix overflows")
    vector = ControlVector(*rows)
    if vector.is_zero():
        raise BadInputError("nothing is left: the parts of the mix cancel, or have no strength")
    return vector


def _mixed(terms: Sequence[tuple[Steerable, float]]) -> Intervention | None:
    """The sum of the terms' interventions; None if not all have one of a kind that adds up."""
    kinds = {type(profile.intervention) for profile, _ in terms}
    first = terms[0][0].intervention
    if len(kinds) > 1 or first is None or not first.can_mix:
        return None
    return first.mixed([(p.intervention, p.scale(strength, "exact")) for p, strength in terms])


def _axis(
    name: str, profiles: Sequence[Steerable], sums: Sequence[float], orthogonal: bool
) -> Axis:
    """The parts' wording: of each the side that its strength leads to."""
    sides = [
        [trait(p.axis, side) for side in (SIDES if s > 0 else SIDES[::-1])]
        for p, s in zip(profiles, sums, strict=True)
        if s
    ]
    wanted, other = (
        printable(" and ".join(words), MAX_TRAIT) for words in zip(*sides, strict=True)
    )
    what = " ".join(f"{p.name}:{s:g}" for p, s in zip(profiles, sums, strict=True))
    about = f"A mix of {what}" + (", each without what it shares with the others." * orthogonal)
    return Axis(name, wanted, other, description=printable(about, MAX_TEXT))


def _layers(profiles: Iterable[Steerable]) -> list[int]:
    return sorted({layer for profile in profiles for layer in profile.layers})


def _named(profile: Steerable) -> dict[str, str]:
    name, digest = profile.order
    return {"profile": name, "digest": digest}


def _joined(texts: Iterable[str]) -> str:
    return printable("; ".join(dict.fromkeys(filter(None, texts))), MAX_TEXT)


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{printable(str(value), 40)} is not a finite number")
    return float(value)  # type: ignore[arg-type]


def _matrix(rows: Any, size: int) -> Matrix:
    matrix = tuple(tuple(map(_number, row)) for row in rows)
    if [len(row) for row in matrix] != [size] * size:
        raise ValueError(f"not a square matrix of {size}")
    return matrix
