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

    from alignez_edge.prompts import SIDES, is_plain, trait

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
        for side, name in enumerate(SIDES):
            if not is_plain(profile.axis, name):
                what = f"asking for {trait(profile.axis, name)}"
                rows.append([what, *_cells(curve[side] for curve in asked)])
    return table(rows, indent)


def effect_of(profile: Profile) -> tuple[float, float | None] | None:
    """How far strengths +1 and -1 move the held-back pairs apart, in nats per token, and that as
    a share of what asking does; None where it was not measured."""
    import numpy as np

    strengths, margin = (_curve(profile, key) for key in ("strengths", "margin"))
    if not strengths or not margin:
        return None
    high, low = np.interp([profile.unit, -profile.unit], strengths, margin)
    asked = _curve(profile, "asked_margin")
    target = asked[0] - asked[1] if len(asked) == 2 else 0.0
    return float(high - low), float(high - low) / target if target > 0 else None


def effect_line(profile: Profile) -> str:
    """The same in a few words."""
    found = effect_of(profile)
    if found is None:
        return ""
    span, share = found
    return f"{share:.2f} of asking" if share is not None else f"{span:+.3f} nats"


def size_line(path: Path) -> str:
    """The size of a file in a few words."""
    return f"{path.stat().st_size / 1000:,.0f} kB"


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
    return str(profile.axis)


def facts(profile: Profile, path: Path) -> dict[str, Any]:
    from alignez_edge.mix import Mixture

    axis = profile.axis
    span, share = effect_of(profile) or (None, None)
    return {
        "path": str(path),
        "axis": axis.name,
        "positive": axis.positive,
        "negative": axis.negative,
        "description": axis.description,
        "model": profile.model,
        "method": profile.method,
        "layers": list(profile.layers),
        "acts_as": forms(profile),
        "strength": profile.unit,
        "effect": span,
        "share_of_asking": share,
        "pairs": profile.pairs,
        "pairs_dropped": sum(profile.dropped.values()),
        "dropped": dict(profile.dropped),
        "seed": profile.seed,
        "calibration": dict(profile.calibration),
        "author": profile.author,
        "licence": profile.licence,
        "created_at": profile.created_at,
        "versions": dict(profile.versions),
        "size_bytes": path.stat().st_size,
    } | ({"mix": mixture.to_data()} if (mixture := Mixture.of(profile)) else {})


def fits(profile: Profile) -> dict[str, str | int]:
    """The facts of the model that a profile was made for, but for the samples of its weights."""
    names = ("architecture", "n_layer", "n_embd", "n_ff", "n_head", "n_vocab")
    digests = ("tokenizer", "template", "adapter")
    return {name: getattr(profile.fingerprint, name) for name in (*names, *digests)}


def carried(profile: Profile) -> str:
    """What of the texts that it was built from a profile carries, in words."""
    from alignez_edge.provenance import Provenance
    from alignez_edge.verify import kept_pairs

    found, kept = Provenance.of(profile), len(kept_pairs(profile))
    texts = [f"{kept} pairs"] if kept else []
    if found is not None and found.source.queries:
        texts.append(f"{len(found.source.queries)} queries")
    return " and ".join(texts) or "none"


def origin(profile: Profile) -> list[tuple[str, str]]:
    """How it was built, as rows of its card; nothing where it does not say so."""
    from alignez_edge.provenance import Provenance

    found = Provenance.of(profile)
    if found is None:
        return []
    file, source = found.model, found.source
    options = [f"{found.width} at a time", f"{found.threads} thread{'s' * (found.threads > 1)}"]
    options += [f"layers {', '.join(map(str, found.layers))}"] if found.layers else []
    options += [f"a context of {found.ctx}"] if found.ctx else []
    return [
        ("built on", f"{file.name}, {file.quantization}, {file.size / 1e6:,.0f} MB"),
        ("", f"SHA-256 {file.sha256}"),
        ("built from", f"{source.count} {'labelled ' * (source.kind == 'pairs')}{source.kind}"),
        ("", f"SHA-256 {source.sha256}"),
        ("built with", ", ".join(options)),
    ]


def measured_anew(profile: Profile) -> str:
    """That strength 1 is not that of the build, where it is not."""
    found = profile.report.get("recalibrated")
    if not isinstance(found, dict):
        return ""
    return f", measured anew on {found.get('pairs')} pairs (directions of {found.get('from')})"


def forms(profile: Profile) -> str:
    """In what forms it can be injected, in words."""
    if profile.value is not None:
        return "a value function that moves the logits"
    near, what = profile.neighbours, ""
    if near is not None:
        count = min(near.recipe.k, near.bank.n_pairs)
        what = f", made anew for each query from the {count} nearest of {near.bank.n_pairs} pairs"
    has_edit = profile.exact_unit is not None
    return (
        "an exact edit or its mean, a control vector" if has_edit else "a control vector"
    ) + what


def card(profile: Profile, path: Path) -> str:
    from alignez_edge.files import printable
    from alignez_edge.mix import Mixture

    from .layout import table

    dropped = ", ".join(f"{n} {reason}" for reason, n in profile.dropped.items())
    made_for = profile.fingerprint
    shape = f"{made_for.architecture}, {made_for.n_layer} layers of {made_for.n_embd}"
    rows = [
        ("file", str(path)),
        ("about", profile.axis.description),
        ("size", size_line(path)),
        ("model", f"{profile.model} ({shape})"),
        ("method", profile.method),
        ("layers", ", ".join(map(str, profile.layers))),
        ("acts as", forms(profile)),
        ("strength 1", f"{profile.unit:.2f} natural lengths{measured_anew(profile)}"),
        ("pairs", f"{profile.pairs}" + (f" (dropped: {dropped})" if dropped else "")),
        ("seed", str(profile.seed)),
        *origin(profile),
        ("texts", f"{carried(profile)} in the file"),
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
