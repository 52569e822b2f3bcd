"""How a profile looks on a terminal and in JSON: its card, its tables, its facts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_edge.files.text import printable

from ..layout import table

if TYPE_CHECKING:
    from alignez_edge.calibration.unit import Measured
    from alignez_edge.profile.mix import Mixture
    from alignez_edge.profile.profile import Profile

FREE = "effect on {n} answers that the model wrote freely, in nats per token (cost: above plain)"
GIVEN = "effect on pairs that were held back, in nats per token"


def effect_table(profile: Profile, indent: str = "") -> str:
    """What strength 1 of either sign does, beside prompting; '' if not measured."""
    from alignez_edge.calibration.unit import Measured
    from alignez_edge.preferences.prompts import SIDES, is_plain, trait

    measured = Measured.of(profile)
    if measured is None:
        return ""
    rows = [_heads(measured)]
    for sign, word in ((1, "+1"), (-1, "-1")):
        rows.append([f"strength {word}", *_cells(measured.at(sign))])
    if measured.prompted is not None:
        for side, name in enumerate(SIDES):
            if not is_plain(profile.axis, name):
                what = f"prompting for {trait(profile.axis, name)}"
                rows.append([what, *_cells(curve[side] for curve in measured.prompted)])
    return table(rows, indent)


def effect_title(profile: Profile) -> str:
    """What `effect_table` is a table of."""
    from alignez_edge.calibration.unit import Measured

    measured = Measured.of(profile)
    if measured is None or not measured.free:
        return GIVEN
    asked = profile.report.get("questions")
    n = len(asked) if isinstance(asked, list) else asked
    arms = 3 + len(measured.strengths)  # plain, prompted for either side, steered
    return FREE.format(n=f"{n} × {arms}")


def effect_of(profile: Profile) -> tuple[float, float | None] | None:
    """How far strengths +1 and -1 lie apart, in nats per token, and that as a ratio to prompting;
    None if it was not measured."""
    from alignez_edge.calibration.unit import Measured

    measured = Measured.of(profile)
    if measured is None:
        return None
    span = measured.at(1.0)[0] - measured.at(-1.0)[0]
    target = float(measured.prompted[0][0] - measured.prompted[0][1]) if measured.prompted else 0.0
    return span, span / target if target > 0 else None


def effect_line(profile: Profile) -> str:
    """The same in a few words."""
    effect = effect_of(profile)
    if effect is None:
        return ""
    span, ratio = effect
    return f"{ratio:.2f} of prompting" if ratio is not None else f"{span:+.3f} nats"


def verdict_line(profile: Profile, *, long: bool = False) -> str:
    """The verdict on a profile in a word, or with its reason; whether it was not measured."""
    from alignez_edge.calibration.verdict import Verdict

    verdict = Verdict.of(profile)
    if verdict is None:
        return "not measured"
    return str(verdict) if long else verdict.verdict


def verdict_facts(profile: Profile) -> dict[str, str | None]:
    """The same for JSON: `verdict` and `reason`, null if it was not measured."""
    from alignez_edge.calibration.verdict import Verdict

    verdict = Verdict.of(profile)
    return {
        "verdict": verdict.verdict if verdict else None,
        "reason": verdict.reason if verdict else None,
    }


def strength_line(profile: Profile) -> str:
    """What strengths 1 and -1 are."""
    unit, negative = profile.unit, profile.unit_negative
    if negative is None or negative == unit:
        return f"{unit:.2f} raw differences"
    return f"{unit:.2f} raw differences, -1 {negative:.2f}"


def size_line(path: Path) -> str:
    """The size of a file in a few words."""
    return f"{path.stat().st_size / 1000:,.0f} kB"


def curve_table(profile: Profile, indent: str = "") -> str:
    """The measured curve over strengths of the profile; '' if there is none."""
    from alignez_edge.calibration.unit import Measured

    curves = Measured.of(profile)
    if curves is None:
        return ""
    rows = [
        [f"{strength:+.2f}", *_cells(values)]
        for strength, *values in zip(curves.strengths, curves.effect, curves.cost, strict=True)
    ]
    head = _heads(curves)
    return table([["strength", *head[1:]], *rows], indent)


def _heads(measured: Measured) -> list[str]:
    return ["", "effect", "cost"] if measured.free else ["", "preference", "KL"]


def _cells(values: Iterable[float]) -> list[str]:
    effect, cost = values
    return [f"{effect:+.3f}", f"{cost:+.3f}" if cost < 0 else f"{cost:.3f}"]


def facts(profile: Profile, path: Path) -> dict[str, Any]:
    from alignez_edge.profile.mix import Mixture

    axis = profile.axis
    span, ratio = effect_of(profile) or (None, None)
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
        "strength_negative": profile.unit_negative or profile.unit,
        **verdict_facts(profile),
        "effect": span,
        "ratio_to_prompting": ratio,
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


def texts_stored(profile: Profile) -> str:
    """What of the texts that it was built from a profile carries, in words."""
    from alignez_edge.profile.kept_pairs import kept_pairs
    from alignez_edge.profile.provenance import Provenance

    provenance, kept = Provenance.of(profile), len(kept_pairs(profile))
    texts = [f"{kept} pairs"] if kept else []
    if provenance is not None and provenance.source.queries:
        texts.append(f"{len(provenance.source.queries)} queries")
    return " and ".join(texts) or "none"


def origin(profile: Profile) -> list[tuple[str, str]]:
    """How it was built, as rows of its card; nothing where it does not say so."""
    from alignez_edge.profile.provenance import Provenance

    build = Provenance.of(profile)
    if build is None:
        return []
    file, source = build.model, build.source
    options = [f"{build.width} at a time", f"{build.threads} thread{'s' * (build.threads > 1)}"]
    options += [f"layers {', '.join(map(str, build.layers))}"] if build.layers else []
    options += [f"a context of {build.ctx}"] if build.ctx else []
    return [
        ("built on", f"{file.name}, {file.quantization}, {file.size / 1e6:,.0f} MB"),
        ("", f"SHA-256 {file.sha256}"),
        ("built from", f"{source.count} {'labelled ' * (source.kind == 'pairs')}{source.kind}"),
        ("", f"SHA-256 {source.sha256}"),
        ("built with", ", ".join(options)),
    ]


def measured_anew(profile: Profile) -> str:
    """That strength 1 is not that of the build, where it is not."""
    record = profile.report.get("recalibrated")
    if not isinstance(record, dict):
        return ""
    return f", measured anew on {record.get('pairs')} pairs (directions of {record.get('from')})"


def forms(profile: Profile) -> str:
    """In what forms it can be injected, in words."""
    return profile.describe()


def card(profile: Profile, path: Path) -> str:
    from alignez_edge.profile.mix import Mixture

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
        ("verdict", verdict_line(profile, long=True)),
        ("strength 1", strength_line(profile) + measured_anew(profile)),
        ("pairs", f"{profile.pairs}" + (f" (dropped: {dropped})" if dropped else "")),
        ("seed", str(profile.seed)),
        *origin(profile),
        ("texts", f"{texts_stored(profile)} in the file"),
        ("author", profile.author),
        ("licence", profile.licence),
        ("created", profile.created_at),
        ("made with", ", ".join(f"{k} {v}" for k, v in profile.versions.items())),
    ]
    lines = [
        f"{profile.name}: {profile.axis}",
        table([(key, printable(value)) for key, value in rows if value], indent="  "),
    ]
    if effect := effect_table(profile, indent="  "):
        lines += ["", effect_title(profile), effect]
        lines += ["", "the curve", curve_table(profile, indent="  ")]
    if mixture := Mixture.of(profile):
        lines += ["", interference(mixture)]
    return "\n".join(lines)


def interference(mixture: Mixture) -> str:
    """How far each part of a mix moves along each axis, before and after orthogonalising."""
    names = [printable(part.profile, 20) for part in mixture.parts]
    matrices = [("how far strength 1 of each profile moves along each axis", mixture.interference)]
    if mixture.remaining:
        matrices.append(("the same after orthogonalising, the axes as before", mixture.remaining))
    blocks = []
    for title, matrix in matrices:
        rows = [[n, *(f"{x:+.2f}" for x in row)] for n, row in zip(names, matrix, strict=True)]
        blocks.append(f"{title}\n{table([['', *names], *rows], indent='  ')}")
    return "\n\n".join(blocks)
