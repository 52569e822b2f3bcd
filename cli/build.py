"""`alignez build`: from an axis to a profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import BadInputError
from alignez_edge.methods.table import BY_QUERY, DEFAULT_METHOD, METHODS, check_method
from alignez_edge.preferences.requests import AUTO, FORMS, check_request

from .layout import terminal_width, wrap
from .options import (
    DEFAULT_WIDTH,
    ContextOption,
    ModelOptions,
    ParallelOption,
    check_width,
    grouped,
)
from .output import Output, duration

MIN_LIMIT = 4
"""Pairs without which no profile can be built."""

if TYPE_CHECKING:
    from alignez_edge.preferences.axes import Axis
    from alignez_edge.profile.profile import Profile
    from alignez_edge.profile.provenance import Texts
    from alignez_edge.runtime.model import Model

    Make = Callable[..., Profile]
    """Called with the model, and `on_progress`."""


@dataclass(frozen=True)
class TellingOptions:
    """What a profile tells of its making."""

    author: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Who made it, for the profile's card.")
    ] = None
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Under which licence others may use it.")
    ] = None
    include_queries: Annotated[
        bool, typer.Option("--include-queries", help="Put the queries into the profile.")
    ] = False
    no_texts: Annotated[
        bool,
        typer.Option(
            "--no-texts", help="Leave out the few pairs that `profile verify` replays as well."
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.include_queries and self.no_texts:
            raise BadInputError("--include-queries and --no-texts exclude each other")
        for option, text in (("--author", self.author), ("--licence", self.licence)):
            _check_line(option, text or "")

    @property
    def texts(self) -> Texts:
        """What goes into the profile of the texts that it is built from."""
        return "all" if self.include_queries else "none" if self.no_texts else "some"


@grouped
def build(
    axis: Annotated[
        str | None,
        typer.Argument(
            metavar="AXIS",
            help="A built-in axis, a TOML file, or a new name with --positive.",
        ),
    ] = None,
    *,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="In place of AXIS: build this profile again, as it was built."
        ),
    ] = None,
    positive: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the wanted side is like.")
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the other side is like; else the plain answer."),
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Queries, one a line or JSON lines; else the axis' own."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Stop asking when N usable pairs are there.")
    ] = None,
    request: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"How the sides are asked for: {', '.join(FORMS)}; auto tries them and takes the"
            " best.",
        ),
    ] = AUTO,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Pairs of your own (JSON lines: query, chosen, rejected); nothing is generated.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"How directions are found: {', '.join(METHODS)}."),
    ] = DEFAULT_METHOD,
    layers: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Layers to edit, like 3-8,10; else the best are found."),
    ] = None,
    neighbors: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Look at each query and steer by the K pairs nearest to it"
            f" ({', '.join(BY_QUERY)}).",
        ),
    ] = None,
    parallel: ParallelOption = DEFAULT_WIDTH,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where the profile goes; else the library."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of all chance.")] = 0,
    ctx: ContextOption = None,
    telling: TellingOptions,
    loading: ModelOptions,
    out: Output,
) -> None:
    """Build a profile that steers a model along an axis.

    The model writes pairs of answers itself; from what differs inside it between the two sides
    come the directions, the layers and the calibrated strength. Interrupted and started again
    with the same options, it goes on where it was.
    """
    from alignez_edge.files.writing import place_of

    check_width(parallel)
    if limit is not None and limit < MIN_LIMIT:
        raise BadInputError(f"--limit is {limit}; it must be at least {MIN_LIMIT}")
    check_seed(seed)
    wanted = parse_layers(layers) if layers is not None else None
    check_method(method, neighbors, wanted)
    check_request(request)
    if pairs is not None and request != AUTO:
        raise BadInputError("--pairs and --request exclude each other", "use one of them")
    make: Make
    if like is not None:
        given = (axis, positive, negative, limit, wanted, neighbors, ctx)
        chosen = (method, parallel, seed, telling.texts, request)
        if any(given) or chosen != (DEFAULT_METHOD, DEFAULT_WIDTH, 0, "some", AUTO):
            raise BadInputError(
                "--like takes the axis and every option of the build from the profile",
                "give no more than -m, --lora, --threads, --queries, --pairs, --author, -o",
            )
        what, loading, make = _like(like, queries, pairs, loading, out)
    elif axis is None:
        raise BadInputError("no axis is named", "like this: alignez build polite")
    else:
        from alignez_edge.build.build import build_profile

        what = find_axis(axis, positive, negative)
        make = partial(
            build_profile,
            axis=what,
            queries=_queries(queries, loading, pairs, out),
            pairs=pairs,
            method=method,
            layers=wanted,
            neighbors=neighbors,
            limit=limit,
            request=request,
            seed=seed,
            width=parallel,
            ctx=ctx,
            texts=telling.texts,
        )
    if output is not None:
        place_of(output)  # before the work
    with loading.load(out) as model:
        target = Path(output) if output is not None else _target(what, model)
        try:
            with out.progress() as progress:
                profile = make(model, on_progress=progress, on_notice=out.notice)
        except KeyboardInterrupt:
            out.notice("interrupted: start the same build again and it goes on where it was")
            raise
    if telling.author is not None:
        profile = replace(profile, author=telling.author)
    if telling.licence is not None:
        profile = replace(profile, licence=telling.licence)
    profile.save(target)
    seconds = {step: round(spent, 2) for step, spent in progress.seconds.items()}
    out.record(_record(profile, target, seconds))
    shown = _summary(profile, target, output, sum(seconds.values()), loading.words())
    out.result(shown)


def check_seed(seed: int) -> None:
    """Raise `BadInputError` unless a profile can be built with this seed."""
    if not 0 <= seed < 1 << 63:
        raise BadInputError(f"--seed is {seed}; it must be at least 0 and below 2**63")


def _check_line(option: str, text: str) -> None:
    from alignez_edge.files.text import is_unprintable

    if len(text) > 200 or any(map(is_unprintable, text)):
        raise BadInputError(f"{option} must be one printable line of at most 200 characters")


def _like(
    name: str, queries: str | None, pairs: str | None, loading: ModelOptions, out: Output
) -> tuple[Axis, ModelOptions, Make]:
    """How to build a profile again: its axis, the model with as many threads, and the build."""
    from alignez_edge.build.rebuild import build_like, differences, threads_of
    from alignez_edge.preferences.queries import read_queries
    from alignez_edge.profile.profile import Profile

    original = Profile.load(loading.find(name))
    asked = read_queries(queries) if queries is not None else None
    if loading.threads is None:
        loading = replace(loading, threads=threads_of(original))

    def make(model: Model, **more: Any) -> Profile:
        if difference := differences(original, model):
            out.notice(f"not the same as then, so that the profile will differ: {difference}")
        return build_like(model, original, queries=asked, pairs=pairs, **more)

    return original.axis, loading, make


def find_axis(name: str, positive: str | None, negative: str | None) -> Axis:
    """The axis that is meant: a new one, a TOML file, or a built-in one."""
    from alignez_edge.files.reading import is_file
    from alignez_edge.preferences.axes import Axis

    if positive is None and negative is not None:
        raise BadInputError("--positive is missing", "an axis needs its positive side")
    if positive is not None:
        return Axis(name, positive=positive, negative=negative)
    if name.endswith(".toml") or is_file(name):
        return Axis.load(name)
    return Axis.builtin(name)


def parse_layers(text: str) -> list[int]:
    """`3-8,10` as the layers 3 to 8 and 10; raises `BadInputError` on anything else."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        bounds = (first, last) if dash else (first, first)
        if not all(b.isascii() and b.isdecimal() and len(b) < 6 for b in bounds):
            raise BadInputError(f"--layers cannot be {text!r}", "write it like 3-8,10")
        low, high = map(int, bounds)
        if low > high:
            raise BadInputError(f"--layers: {part.strip()} runs backwards", "write it like 3-8,10")
        found.update(range(low, high + 1))
    return sorted(found)


def _queries(
    file: str | None, loading: ModelOptions, pairs: str | None, out: Output
) -> list[str] | None:
    from alignez_edge.preferences.queries import read_queries

    if file is not None:
        if pairs is not None:
            raise BadInputError("--pairs and --queries exclude each other", "use one of them")
        return read_queries(file)
    if pairs is None and loading.is_demo:
        from alignez_edge.demo.bundled import demo_queries

        out.notice("using the demo model's own queries (choose others: --queries FILE)")
        return [entry["query"] for entry in demo_queries("build")]
    return None


def _target(axis: Axis, model: Model) -> Path:
    """Where the profile goes in the library, checked before the work begins."""
    from alignez_edge.files.writing import make_folder, place_of
    from alignez_edge.profile.library import ProfileLibrary

    library = ProfileLibrary()
    make_folder(library.folder)
    target = library.place(axis.name, model.fingerprint, model.facts.name)
    place_of(target)
    return target


def _record(profile: Profile, path: Path, seconds: dict[str, float]) -> dict[str, object]:
    from .profile.cards import verdict_facts

    return {
        "profile": str(path),
        "axis": profile.name,
        "method": profile.method,
        "layers": list(profile.layers),
        "pairs": profile.pairs,
        "pairs_dropped": sum(profile.dropped.values()),
        "strength": profile.unit,
        "strength_negative": profile.unit_negative or profile.unit,
        "seconds": seconds,
        "calibration": dict(profile.calibration),
        "request": profile.report.get("request"),
        **verdict_facts(profile),
    }


def _asked(profile: Profile) -> str:
    """In which form the pairs were asked for, and how well its sides came out in the trial."""
    from alignez_edge.preferences.choice import RequestChoice

    found = profile.report.get("request")
    if found is None:  # from labelled pairs
        return ""
    choice = RequestChoice.of(found)
    tried = next((score for score in choice.scores if score.form == choice.form), None)
    if tried is None:
        return f"in the form {choice.form}"
    if not choice.works:
        return f"in the form {choice.form}, but no form tells the sides apart on this model"
    return (
        f"in the form {choice.form}, the best of {len(choice.scores)}: its sides"
        f" {tried.span:.2f} nats per token apart, {tried.right:.0%} the right way round"
    )


def _summary(profile: Profile, path: Path, output: str | None, seconds: float, model: str) -> str:
    from .profile.cards import (
        carried,
        effect_table,
        effect_title,
        forms,
        strength_line,
        verdict_line,
    )

    dropped = sum(profile.dropped.values())
    layers = ", ".join(map(str, profile.layers))
    reasons = ", ".join(f"{n} {reason}" for reason, n in profile.dropped.items())
    lines = [
        f"{profile.name}: {profile.axis}",
        f"  profile     {path}",
        f"  pairs       {profile.pairs}" + (f" ({dropped} dropped: {reasons})" if dropped else ""),
        *([f"  asked       {asked}"] if (asked := _asked(profile)) else []),
        *([f"  layers      {layers}"] if layers else []),
        f"  acts as     {forms(profile)}",
        f"  strength 1  {strength_line(profile)}",
        f"  texts       {carried(profile)} in the file",
        f"  time        {duration(seconds)}",
    ]
    if effect := effect_table(profile, indent="  "):
        lines += ["", effect_title(profile), effect]
    lines += ["", *wrap(verdict_line(profile, long=True), min(terminal_width(), 80))]
    name = output or profile.name
    lines += ["", f'try: alignez run{model} -p {name} "Tell me about bread."  (or -p {name}:-1)']
    return "\n".join(lines)
