"""`alignez profile`: the library of profiles."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import AlignezError

from .options import grouped, load_steering
from .output import Output

if TYPE_CHECKING:
    from alignez_edge.mix import Mixture
    from alignez_edge.profile import Profile

EFFECT = "effect on pairs that were held back, in nats per token"

app = typer.Typer(help="The library of profiles.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
@grouped
def list_(*, out: Output) -> None:
    """List the profiles that can be used by name."""
    from alignez_edge.library import ProfileLibrary
    from alignez_edge.profile import Profile

    from .layout import table

    library = ProfileLibrary()
    rows = [("name", "axis", "model", "method", "origin")]
    for entry in library.list():
        try:
            profile = Profile.load(entry.path)
        except AlignezError as failure:
            rows.append((entry.name, f"cannot be used: {failure.message}", "", "", entry.origin))
            out.record({"name": entry.name, "path": str(entry.path), "error": failure.message})
            continue
        rows.append(
            (entry.name, _sides(profile), profile.model or "?", profile.method, entry.origin)
        )
        out.record({"name": entry.name, "origin": entry.origin, **_facts(profile, entry.path)})
    if len(rows) == 1:
        out.notice("there are no profiles yet (build one with: alignez build AXIS)")
    else:
        out.result(table(rows))


@app.command()
@grouped
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A profile.")], *, out: Output
) -> None:
    """Show what a profile is and how it was calibrated."""
    from alignez_edge.library import ProfileLibrary
    from alignez_edge.profile import Profile

    path = ProfileLibrary().find(name)
    profile = Profile.load(path)
    out.record(_facts(profile, path))
    out.result(_card(profile, path))


@app.command()
@grouped
def path(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A profile; without it, the folder.")
    ] = None,
    *,
    out: Output,
) -> None:
    """Print where the profiles are, or where one is."""
    from alignez_edge.library import ProfileLibrary

    library = ProfileLibrary()
    found = library.folder if name is None else library.find(name)
    out.record({"path": str(found)})
    out.result(str(found))


@app.command("mix")
@grouped
def mix_(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROFILE[:S]", help="Profiles (names or files), each at strength S, else 1."
        ),
    ],
    *,
    orthogonal: Annotated[
        bool,
        typer.Option(
            "--orthogonal", help="Take out of each part what it has along the axes of the others."
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; else the parts' names.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where the profile goes; else the library."
        ),
    ] = None,
    out: Output,
) -> None:
    """Make one profile of several, and show how they interfere.

    Strength 1 of the mix does what its parts do together at their strengths. A part of strength 0
    adds nothing, but with --orthogonal the others lose what they have along its axis.
    """
    from alignez_edge.library import ProfileLibrary
    from alignez_edge.mix import Mixture, mix

    from .layout import table

    terms = load_steering(parts).terms
    called = name if name is not None else "-".join(p.name for p, _ in terms)[:64].rstrip("-")
    profile = mix(terms, called, orthogonal=orthogonal)
    if output is None:
        target = ProfileLibrary().save(called, profile)
    else:
        target = Path(output)
        profile.save(target)
    found = Mixture.of(profile)
    assert found is not None  # it has just been written there
    out.record(
        {"profile": str(target), "axis": profile.name, "layers": list(profile.layers)}
        | found.to_data()
    )
    rows = [("profile", str(target)), ("about", profile.axis.description)]
    rows.append(("layers", ", ".join(map(str, profile.layers))))
    lines = [f"{profile.name}: {_sides(profile)}", table(rows, "  "), "", _interference(found)]
    lines += ["", f'try: alignez run -p {output or called} "Tell me about bread."']
    out.result("\n".join(lines))


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


def _sides(profile: Profile) -> str:
    return f"{profile.axis.positive} / {profile.axis.negative}"


def _facts(profile: Profile, path: Path) -> dict[str, Any]:
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


def _card(profile: Profile, path: Path) -> str:
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
        f"{profile.name}: {_sides(profile)}",
        table([(key, printable(value)) for key, value in rows if value], indent="  "),
    ]
    if effect := effect_table(profile, indent="  "):
        lines += ["", EFFECT, effect, "", "the curve", curve_table(profile, indent="  ")]
    if mixture := Mixture.of(profile):
        lines += ["", _interference(mixture)]
    return "\n".join(lines)


def _interference(mixture: Mixture) -> str:
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
