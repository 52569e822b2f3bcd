"""How a profile looks on a terminal and in JSON: its card, its tables, its facts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignez_edge.mix import Mixture
    from alignez_edge.profile import Profile

EFFECT = "effect on pairs that were held back, in nats per token"


def effect_table(profile: Profile, indent: str = "") -> str:
    """What strength 1 does to the pairs that were held back, beside asking; '' if not measured."""
    import numpy as np

    from .layout import table

    strengths, margin, drift = (_curve(profile, key) for key in ("strengths", "margin", "drift"))
    if not strengths or not margin or not drift:
        return ""
    rows = [["", "preference", "drift"]]
    for sign, word in ((1, "+1"), (-1, "-1")):
        at = sign * profile.unit
        rows.append(
            [f"strength {word}", *_cells(np.interp(at, strengths, c) for c in (margin, drift))]
        )
    asked = _curve(profile, "asked_margin"), _curve(profile, "asked_drift")
    if len(asked[0]) == len(asked[1]) == 2:
        for side, trait in enumerate((profile.axis.positive, profile.axis.negative)):
            rows.append([f"asking for {trait}", *_cells(curve[side] for curve in asked)])
    return table(rows, indent)


def curve_table(profile: Profile, indent: str = "") -> str:
    """The measured curve over strengths of the profile; '' where there is none."""
    from .layout import table

    curves = [_curve(profile, key) for key in ("margin", "drift")]
    rows = [
        [f"{strength / profile.unit:+.2f}", *_cells(values)]
        for strength, *values in zip(_curve(profile, "strengths"), *curves, strict=False)
    ]
    return table([["strength", "preference", "drift"], *rows], indent) if rows else ""


def _cells(values: Iterable[float]) -> list[str]:
    preference, drift = values
    return [f"{preference:+.3f}", f"{drift:.3f}"]


def _curve(profile: Profile, key: str) -> tuple[float, ...]:
    value = profile.calibration.get(key, ())
    return value if isinstance(value, tuple) else ()


def sides(profile: Profile) -> str:
    return f"{profile.axis.positive} / {profile.axis.negative}"


def facts(profile: Profile, path: Path) -> dict[str, Any]:
    from alignez_edge.mix import Mixture

    axis = profile.axis
    return {
        "path": str(path),
        "axis": axis.name,
        "positive": axis.positive,
        "negative": axis.negative,
        "description": axis.description,
        "model": profile.model,
        "method": profile.method,
        "layers": list(profile.layers),
        "strength": profile.unit,
        "pairs": profile.pairs,
        "pairs_dropped": sum(profile.dropped.values()),
        "seed": profile.seed,
        "calibration": dict(profile.calibration),
        "author": profile.author,
        "licence": profile.licence,
        "created_at": profile.created_at,
        "versions": dict(profile.versions),
    } | ({"mix": mixture.to_data()} if (mixture := Mixture.of(profile)) else {})


def card(profile: Profile, path: Path) -> str:
    from alignez_edge.files import printable
    from alignez_edge.mix import Mixture

    from .layout import table

    dropped = ", ".join(f"{n} {reason}" for reason, n in profile.dropped.items())
    rows = [
        ("file", str(path)),
        ("about", profile.axis.description),
        ("model", profile.model),
        ("method", profile.method),
        ("layers", ", ".join(map(str, profile.layers))),
        ("strength 1", f"{profile.unit:.2f} natural lengths"),
        ("pairs", f"{profile.pairs}" + (f" (dropped: {dropped})" if dropped else "")),
        ("seed", str(profile.seed)),
        ("author", profile.author),
        ("licence", profile.licence),
        ("created", profile.created_at),
        ("made with", ", ".join(f"{k} {v}" for k, v in profile.versions.items())),
    ]
    lines = [
        f"{profile.name}: {sides(profile)}",
        table([(key, printable(value)) for key, value in rows if value], indent="  "),
    ]
    if effect := effect_table(profile, indent="  "):
        lines += ["", EFFECT, effect, "", "the curve", curve_table(profile, indent="  ")]
    if mixture := Mixture.of(profile):
        lines += ["", interference(mixture)]
    return "\n".join(lines)


def interference(mixture: Mixture) -> str:
    """How far each part of a mix moves along each axis, before and after orthogonalising."""
    from alignez_edge.files import printable

    from .layout import table

    names = [printable(part.profile, 20) for part in mixture.parts]
    matrices = [("how far strength 1 of each profile moves along each axis", mixture.interference)]
    if mixture.remaining:
        matrices.append(("the same after orthogonalising, the axes as before", mixture.remaining))
    blocks = []
    for title, matrix in matrices:
        rows = [[n, *(f"{x:+.2f}" for x in row)] for n, row in zip(names, matrix, strict=True)]
        blocks.append(f"{title}\n{table([['', *names], *rows], indent='  ')}")
    return "\n\n".join(blocks)
