"""`alignez plot` and `alignez report`: pictures of profiles and of runs, and a page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignez_edge.errors import BadInputError
from alignez_edge.files.folders import user_dir
from alignez_edge.files.reading import is_there
from alignez_edge.files.text import printable

from .groups import grouped
from .layout import terminal_width
from .options import WhoseOptions
from .output import Output

if TYPE_CHECKING:
    from alignez_edge.pictures.drawing import Picture
    from alignez_edge.profile.profile import Profile

app = typer.Typer(
    help="Pictures of a profile or of an evaluation.", no_args_is_help=True, rich_markup_mode=None
)

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder of an evaluation, or its name.")
]
ProfilesArgument = Annotated[
    list[str], typer.Argument(metavar="PROFILE...", help="Profiles (names or files).")
]


@dataclass(frozen=True)
class Drawing:
    """Where a picture goes."""

    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="A .png or .svg file; else a .png named after what is drawn.",
        ),
    ] = None
    text: Annotated[
        bool, typer.Option("--text", help="Print a small version; draw a file only with -o.")
    ] = False

    def show(self, picture: Picture, kind: str, named: Sequence[str], out: Output) -> None:
        """Write or print the picture of what the user has named."""
        from alignez_edge.pictures.drawing import save
        from alignez_edge.pictures.text import drawn

        path = None
        if self.output is not None or not self.text:
            path = self.output or f"{file_stem(*named)}-{kind}.png"
            save(picture, path)
        for note in picture.notes:
            out.notice(note)
        if self.text:
            out.result(drawn(picture, terminal_width()))
        if path is not None:
            out.result(f"drawn in {path}")
        out.record(
            {"picture": path, "kind": kind, "title": picture.title, "notes": list(picture.notes)}
        )


@app.command()
@grouped
def strength(
    what: Annotated[
        str,
        typer.Argument(metavar="RUN|PROFILE", help="The folder of an evaluation, or a profile."),
    ],
    *,
    whose: WhoseOptions,
    drawing: Drawing,
    out: Output,
) -> None:
    """Effect and cost over strength.

    Of an evaluation the scores (or net wins) of its answers; of a profile what its calibration
    measured on pairs that were held back.
    """
    from alignez_edge.pictures.of_profile import strength_of

    run = _find_run(what)
    picture = strength_of(_profiles([what], whose)[0]) if run is None else _of_run(run, "strength")
    drawing.show(picture, "strength", [what], out)


@app.command()
@grouped
def sweep(run: RunArgument, *, drawing: Drawing, out: Output) -> None:
    """Effect and cost over each setting that was swept."""
    drawing.show(_of_run(_run(run), "sweep"), "sweep", [run], out)


@app.command()
@grouped
def grid(run: RunArgument, *, drawing: Drawing, out: Output) -> None:
    """Two profiles at once, over both strengths (eval --grid)."""
    drawing.show(_of_run(_run(run), "grid"), "grid", [run], out)


@app.command()
@grouped
def layers(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile (a name or file).")],
    *,
    whose: WhoseOptions,
    drawing: Drawing,
    out: Output,
) -> None:
    """How the sides and their directions lie, by layer."""
    from alignez_edge.pictures.of_profile import layers_of

    drawing.show(layers_of(_profiles([profile], whose)[0]), "layers", [profile], out)


@app.command()
@grouped
def directions(
    profile: ProfilesArgument, *, whose: WhoseOptions, drawing: Drawing, out: Output
) -> None:
    """Directions in their first two principal components.

    Of one profile its directions of help and harm, by query if it remembers queries (build
    --neighbors), else by layer. Of several, what each of them moves its layers along.
    """
    from alignez_edge.pictures.of_profile import directions_of

    drawing.show(directions_of(_profiles(profile, whose)), "directions", profile, out)


@app.command()
@grouped
def interference(
    profile: ProfilesArgument, *, whose: WhoseOptions, drawing: Drawing, out: Output
) -> None:
    """How far profiles, or the parts of a mix, move each other's axes."""
    from alignez_edge.pictures.of_profile import interference_of

    drawing.show(interference_of(_profiles(profile, whose)), "interference", profile, out)


@grouped
def report(
    run: RunArgument,
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="A .html or .md file; else named after the run."
        ),
    ] = None,
    out: Output,
) -> None:
    """Write one page about an evaluation: what was compared, tables, pictures, answers.

    The page is whole in itself: nothing is loaded from elsewhere, and nothing in it is run. It
    shows the answers that moved most to either side, beside the plain ones.
    """
    from alignez_edge.reports.page import write_report

    path = output or f"{file_stem(run)}-report.html"
    write_report(_run(run), path)
    out.record({"report": path})
    out.result(f"written to {path}")


def file_stem(*named: str) -> str:
    """The beginning of a file's name, out of names and paths that a user has given."""
    stems = [Path(name.rstrip("/\\")).name.removesuffix(".gguf") for name in named]
    text = "-".join(stems)[:60]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text).strip("-") or "picture"


def _of_run(folder: Path, kind: str) -> Picture:
    from alignez_edge.evaluation.outcome import Outcome
    from alignez_edge.pictures.of_run import picture_of_run

    return picture_of_run(Outcome.load(folder), kind)


def _profiles(named: Sequence[str], whose: WhoseOptions) -> list[Profile]:
    from alignez_edge.profile.profile import Profile

    return [Profile.load(whose.find(name)) for name in named]


def _find_run(name: str) -> Path | None:
    """The folder of a run: a path, or the name of one in the user's data folder."""
    for path in (Path(name), user_dir() / "runs" / Path(name).name):
        if is_there(path) and path.is_dir():
            return path
    return None


def _run(name: str) -> Path:
    folder = _find_run(name)
    if folder is None:
        raise BadInputError(
            f"no run called '{printable(name, 120)}', and no such folder",
            "`alignez eval` says where it keeps one",
        )
    return folder
