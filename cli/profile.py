"""`alignez profile`: the library of profiles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from alignez_edge.errors import AlignezError, BadInputError

from . import exchange
from .cards import (
    card,
    effect_line,
    facts,
    fits,
    interference,
    sides,
    size_line,
    verdict_line,
)
from .options import grouped, load_steering
from .output import Output
from .verify import verify

app = typer.Typer(help="The library of profiles.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
@grouped
def list_(*, out: Output) -> None:
    """List the profiles that can be used by name.

    The strength is that of 1, in natural lengths; the effect is how far +1 and -1 move answers
    apart, against prompting; the verdict says whether it works.
    """
    from alignez_edge.files import printable
    from alignez_edge.library import ProfileLibrary
    from alignez_edge.profile import Profile

    from .layout import table

    rows = [("name", "axis", "model", "strength", "effect", "verdict", "size", "origin")]
    library = ProfileLibrary()
    if trouble := library.trouble():
        out.notice(f"profiles of your own are not listed: {trouble}")
    for entry in library.list():
        try:
            profile = Profile.load(entry.path)
        except AlignezError as failure:
            rows.append((entry.name, "cannot be used", "", "", "", "", "", entry.origin))
            out.notice(f"{entry.name}: {printable(failure.message)}")
            out.record({"name": entry.name, "path": str(entry.path), "error": failure.message})
            continue
        rows.append(
            (
                entry.name,
                sides(profile),
                printable(profile.model or "?", 40),
                f"{profile.unit:.2f}",
                effect_line(profile),
                verdict_line(profile),
                size_line(entry.path),
                entry.origin,
            )
        )
        out.record({"name": entry.name, "origin": entry.origin, **facts(profile, entry.path)})
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
    details = {"fits": fits(profile), "report": dict(profile.report)}
    out.record({**facts(profile, path), **details})
    out.result(card(profile, path))


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


@app.command()
@grouped
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile of your own.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    out: Output,
) -> None:
    """Delete a profile of your own."""
    from alignez_edge.library import ProfileLibrary

    library = ProfileLibrary()
    place = library.check_removable(name)
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise BadInputError(
                "nobody is there to confirm that", f"alignez profile remove {name} --yes"
            )
        if not typer.confirm(f"delete {place}?", err=True):
            out.notice("not removed")
            raise typer.Exit(1)
    library.remove(name)
    out.record({"removed": str(place)})
    out.result(f"deleted {place}")


app.command()(verify)


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
    from alignez_edge.files import check_apart
    from alignez_edge.library import ProfileLibrary, parse_profile_option
    from alignez_edge.mix import Mixture, left_out, mix

    from .layout import table

    library = ProfileLibrary()
    terms = load_steering(parts).terms
    called = name if name is not None else "-".join(p.name for p, _ in terms)[:64].rstrip("-")
    profile = mix(terms, called, orthogonal=orthogonal)
    target = library.free_place(called) if output is None else Path(output)
    check_apart(target, [library.find(parse_profile_option(text)[0]) for text in parts])
    for loss in left_out(terms, orthogonal=orthogonal):
        out.notice(loss)
    if output is None:
        library.save(called, profile)
    else:
        profile.save(target)
    found = Mixture.of(profile)
    assert found is not None  # it has just been written there
    out.record(
        {"profile": str(target), "axis": profile.name, "layers": list(profile.layers)}
        | found.to_data()
    )
    rows = [("profile", str(target)), ("about", profile.axis.description)]
    rows.append(("layers", ", ".join(map(str, profile.layers))))
    lines = [f"{profile.name}: {sides(profile)}", table(rows, "  "), "", interference(found)]
    lines += ["", f'try: alignez run -p {output or called} "Tell me about bread."']
    out.result("\n".join(lines))


app.command("export")(exchange.export)
app.command("import")(exchange.import_)
