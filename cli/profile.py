"""`alignez profile`: the library of profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import AlignezError

from .options import grouped
from .output import Output

if TYPE_CHECKING:
    from alignez_edge.profile import Profile

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


def calibration_table(profile: Profile, indent: str = "") -> str:
    """The curves over the strengths as a table; '' where there are none."""
    from .layout import table

    curves = {k: v for k, v in profile.calibration.items() if isinstance(v, tuple)}
    strengths = curves.pop("strengths", ())
    columns = {key: curve for key, curve in curves.items() if len(curve) == len(strengths)}
    if not strengths or not columns:
        return ""
    rows = [["strength", *columns]]
    for at, strength in enumerate(strengths):
        rows.append([f"{strength:+.2f}", *(f"{curve[at]:+.3f}" for curve in columns.values())])
    return table(rows, indent)


def _sides(profile: Profile) -> str:
    return f"{profile.axis.positive} / {profile.axis.negative}"


def _facts(profile: Profile, path: Path) -> dict[str, Any]:
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
    }


def _card(profile: Profile, path: Path) -> str:
    from alignez_edge.files import printable

    from .layout import table

    dropped = ", ".join(f"{n} {reason}" for reason, n in profile.dropped.items())
    rows = [
        ("file", str(path)),
        ("about", profile.axis.description),
        ("model", profile.model),
        ("method", profile.method),
        ("layers", ", ".join(map(str, profile.layers))),
        ("strength 1", f"{profile.unit:.3g} x the natural displacement"),
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
    single = {k: v for k, v in profile.calibration.items() if isinstance(v, float)}
    if single or calibration_table(profile):
        lines += ["", "calibration"]
    if single:
        lines.append(table([(k, f"{v:.4g}") for k, v in single.items()], indent="  "))
    if curves := calibration_table(profile, indent="  "):
        lines.append(curves)
    return "\n".join(lines)
