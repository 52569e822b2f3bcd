"""`alignez profile`: the library of profiles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.text import printable
from alignez_edge.files.writing import check_apart

from ..groups import grouped
from ..layout import table
from ..options import ProfileOutput, WhoseOptions, load_steering
from ..output import Output, can_ask
from . import exchange
from .cards import (
    card,
    effect_line,
    facts,
    fits,
    interference,
    size_line,
    verdict_line,
)
from .verify import verify

if TYPE_CHECKING:
    from alignez_edge.modelfiles.fingerprint import Fingerprint

app = typer.Typer(help="The library of profiles.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
@grouped
def list_(*, whose: WhoseOptions, out: Output) -> None:
    """List the profiles that can be used by name.

    Where models share a name, the full name tells their profiles apart. With a model the list says
    which of them fit it. The strength is that of 1, in raw differences; the effect is how far +1
    and -1 move answers apart, against prompting; the verdict says whether it works.
    """
    from alignez_edge.modelfiles.fingerprint import Fit
    from alignez_edge.profile.library import ProfileLibrary
    from alignez_edge.profile.profile import Profile

    library, model = ProfileLibrary(), _model_of(whose, out)
    fit_column = () if model is None else ("fits",)
    words = {Fit.SAME: "yes", Fit.SAME_SHAPE: "same shape", Fit.DIFFERENT: "no"}
    heads = ("strength", "effect", "verdict", "size", "origin")
    rows = [("name", "axis", "model", *fit_column, *heads)]
    if trouble := library.trouble():
        out.notice(f"profiles of your own are not listed: {trouble}")
    entries = library.list()
    shared = {name for name, n in Counter(entry.name for entry in entries).items() if n > 1}
    for entry in entries:
        name = entry.full_name if entry.name in shared else entry.name
        fit = None if model is None else entry.fit(model)
        try:
            profile = Profile.load(entry.path)
        except AlignezError as failure:
            blank = ("",) * (len(rows[0]) - 3)
            rows.append((name, "cannot be used", *blank, entry.origin))
            out.notice(f"{name}: {printable(failure.message)}")
            out.record({"name": entry.name, "path": str(entry.path), "error": failure.message})
            continue
        rows.append(
            (
                name,
                str(profile.axis),
                printable(profile.model or "?", 40),
                *(() if fit is None else (words[fit],)),
                f"{profile.unit:.2f}",
                effect_line(profile),
                verdict_line(profile),
                size_line(entry.path),
                entry.origin,
            )
        )
        out.record(
            {
                "name": entry.name,
                "full_name": entry.full_name,
                "origin": entry.origin,
                "fit": fit.word if fit is not None else None,
                **facts(profile, entry.path),
            }
        )
    if len(rows) == 1:
        out.notice("there are no profiles yet (build one with: alignez build AXIS)")
    else:
        out.result(table(rows))


def _model_of(whose: WhoseOptions, out: Output) -> Fingerprint | None:
    """The model to mark fitting profiles for; one that nobody named here may be missing."""
    try:
        return whose.fingerprint()
    except AlignezError as failure:
        if whose.model is not None:
            raise
        out.notice(f"cannot mark the profiles that fit: {failure.message}")
    return None


@app.command()
@grouped
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A profile.")],
    *,
    whose: WhoseOptions,
    out: Output,
) -> None:
    """Show what a profile is and how it was calibrated."""
    from alignez_edge.profile.profile import Profile

    path = whose.find(name)
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
    whose: WhoseOptions,
    out: Output,
) -> None:
    """Print where the profiles are, or where one is."""
    from alignez_edge.profile.library import ProfileLibrary

    place = ProfileLibrary().folder if name is None else whose.find(name)
    out.record({"path": str(place)})
    out.result(str(place))


@app.command()
@grouped
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile of your own.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    whose: WhoseOptions,
    out: Output,
) -> None:
    """Delete a profile of your own."""
    from alignez_edge.profile.library import ProfileLibrary

    library = ProfileLibrary()
    asked = whose.model is not None or len(library.called(name)) > 1
    model = whose.fingerprint() if asked else None
    place = library.check_removable(name, model)
    if not yes:
        if not can_ask():
            raise BadInputError("stdin is not a terminal; pass --yes")
        if not typer.confirm(f"delete {place}?", err=True):
            out.notice("not removed")
            raise typer.Exit(1)
    library.remove(name, model)
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
            "--orthogonal", help="Remove from each part what lies along the others' axes."
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; else the parts' names.")
    ] = None,
    output: ProfileOutput = None,
    whose: WhoseOptions,
    out: Output,
) -> None:
    """Make one profile of several, and show how they interfere.

    Strength 1 of the mix does what its parts do together at their strengths. A part of strength 0
    adds nothing, but with --orthogonal the others lose what they have along its axis.
    """
    from alignez_edge.profile.library import ProfileLibrary, parse_profile_option
    from alignez_edge.profile.mix import Mixture, left_out, mix

    library = ProfileLibrary()
    terms = load_steering(parts, whose.find).terms
    called = name if name is not None else "-".join(p.name for p, _ in terms)[:64].rstrip("-")
    profile = mix(terms, called, orthogonal=orthogonal)
    target = (
        library.free_place(called, profile.fingerprint, profile.model)
        if output is None
        else Path(output)
    )
    check_apart(target, [whose.find(parse_profile_option(text)[0]) for text in parts])
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
    lines = [f"{profile.name}: {profile.axis}", table(rows, "  "), "", interference(found)]
    lines += ["", whose.try_it(output or called)]
    out.result("\n".join(lines))


app.command("export")(exchange.export)
app.command("import")(exchange.import_)
