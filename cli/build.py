"""`alignez build`: from an axis to a profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import is_unprintable
from alignez_edge.files.writing import make_folder, place_of
from alignez_edge.methods.table import BY_QUERY, DEFAULT_METHOD, METHODS, check_method
from alignez_edge.preferences.requests import AUTO, FORMS, check_request

from .build_report import record, summary
from .groups import grouped
from .options import (
    DEFAULT_WIDTH,
    ContextOption,
    ModelOptions,
    ParallelOption,
    ProfileOutput,
    SeedOption,
    at_least,
    check_seed,
    find_axis,
)
from .output import Output

if TYPE_CHECKING:
    from alignez_edge.preferences.axes import Axis
    from alignez_edge.profile.profile import Profile
    from alignez_edge.profile.provenance import Texts
    from alignez_edge.runtime.model import Model

    Make = Callable[..., Profile]
    """Called with the model, `on_progress` and `on_notice`."""

MIN_LIMIT = 4
"""Pairs without which no profile can be built."""
MAX_LINE = 200
"""Characters of an author's name, or a licence's."""

AxisArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="AXIS", help="A built-in axis, a TOML file, or a new name with --positive."
    ),
]
LikeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="In place of AXIS: build this profile again, as it was built."
    ),
]


@dataclass(frozen=True)
class SideOptions:
    """The two sides of a new axis."""

    positive: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the wanted side is like.")
    ] = None
    negative: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the other side is like; else the plain answer."),
    ] = None

    def axis(self, name: str) -> Axis:
        """The axis that is meant: a new one where a side is given, else one that is there."""
        from alignez_edge.preferences.axes import Axis

        if self.positive is not None:
            return Axis(name, positive=self.positive, negative=self.negative)
        if self.negative is not None:
            raise BadInputError("--positive is missing", "an axis needs its positive side")
        return find_axis(name)


@dataclass(frozen=True)
class PairOptions:
    """Where the pairs of answers come from."""

    queries: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Queries, one a line or JSON lines; else the axis' own."),
    ] = None
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Stop when there are N usable pairs.")
    ] = None
    request: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"How the sides are asked for: {', '.join(FORMS)}; auto tries them and takes the"
            " best.",
        ),
    ] = AUTO
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Pairs of your own (JSON lines: query, chosen, rejected); nothing is generated.",
        ),
    ] = None

    def __post_init__(self) -> None:
        at_least("--limit", self.limit, MIN_LIMIT)
        check_request(self.request)
        if self.pairs is not None and self.request != AUTO:
            raise BadInputError("--pairs and --request cannot be combined", "use one of them")

    def asked(self, loading: ModelOptions, out: Output) -> list[str] | None:
        """The queries to ask; None for the axis' own, or where the pairs are given."""
        from alignez_edge.preferences.queries import read_queries

        if self.queries is not None:
            if self.pairs is not None:
                raise BadInputError("--pairs and --queries cannot be combined", "use one of them")
            return read_queries(self.queries)
        if self.pairs is None and loading.is_demo:
            from alignez_edge.demo.bundled import demo_queries

            out.notice("using the demo model's own queries (choose others: --queries FILE)")
            return [entry["query"] for entry in demo_queries("build")]
        return None


@dataclass(frozen=True)
class DirectionOptions:
    """How the directions are found, and where they are used."""

    method: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"How directions are found: {', '.join(METHODS)}."),
    ] = DEFAULT_METHOD
    layers: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Layers to edit, like 3-8,10; else the best are found."),
    ] = None
    neighbors: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Look at each query and steer by the K pairs nearest to it"
            f" ({', '.join(BY_QUERY)}).",
        ),
    ] = None

    def __post_init__(self) -> None:
        check_method(self.method, self.neighbors, self.layer_numbers)

    @property
    def layer_numbers(self) -> list[int] | None:
        """The layers to edit; None if the best are to be found."""
        return parse_layers(self.layers) if self.layers is not None else None


@dataclass(frozen=True)
class CardOptions:
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
            "--no-texts", help="Store no texts, not even the pairs that `profile verify` replays."
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.include_queries and self.no_texts:
            raise BadInputError("--include-queries and --no-texts cannot be combined")
        for option, text in (("--author", self.author), ("--licence", self.licence)):
            if text is not None and (len(text) > MAX_LINE or any(map(is_unprintable, text))):
                raise BadInputError(
                    f"{option} must be one printable line of at most {MAX_LINE} characters"
                )

    @property
    def texts(self) -> Texts:
        """What goes into the profile of the texts that it is built from."""
        return "all" if self.include_queries else "none" if self.no_texts else "some"

    def sign(self, profile: Profile) -> Profile:
        """The profile with the author and the licence that are given."""
        return replace(
            profile,
            author=profile.author if self.author is None else self.author,
            licence=profile.licence if self.licence is None else self.licence,
        )


@grouped
def build(
    axis: AxisArgument = None,
    *,
    like: LikeOption = None,
    sides: SideOptions,
    pairing: PairOptions,
    directions: DirectionOptions,
    parallel: ParallelOption = DEFAULT_WIDTH,
    output: ProfileOutput = None,
    seed: SeedOption = 0,
    ctx: ContextOption = None,
    card: CardOptions,
    loading: ModelOptions,
    out: Output,
) -> None:
    """Build a profile that steers a model along an axis.

    The model writes pairs of answers itself; from what differs inside it between the two sides
    come the directions, the layers and the calibrated strength. Interrupted and started again
    with the same options, it goes on where it was.
    """
    at_least("--parallel", parallel, 1)
    check_seed(seed)
    make: Make
    if like is not None:
        own = (axis, sides, directions, pairing.limit, pairing.request, card.texts)
        usual = (None, SideOptions(), DirectionOptions(), None, AUTO, "some")
        if own != usual or (parallel, seed, ctx) != (DEFAULT_WIDTH, 0, None):
            raise BadInputError(
                "--like takes the axis and every option of the build from the profile",
                "besides it give only -m, --lora, --threads, --queries, --pairs, --author, -o",
            )
        built_axis, loading, make = _like(like, pairing, loading, out)
    elif axis is None:
        raise BadInputError("no axis given", "like this: alignez build polite")
    else:
        from alignez_edge.build.build import build_profile

        built_axis = sides.axis(axis)
        make = partial(
            build_profile,
            axis=built_axis,
            queries=pairing.asked(loading, out),
            pairs=pairing.pairs,
            method=directions.method,
            layers=directions.layer_numbers,
            neighbors=directions.neighbors,
            limit=pairing.limit,
            request=pairing.request,
            seed=seed,
            width=parallel,
            ctx=ctx,
            texts=card.texts,
        )
    if output is not None:
        place_of(output)  # before the work
    with loading.load(out) as model:
        target = Path(output) if output is not None else _target(built_axis, model)
        profile, seconds = _built(model, make, out)
    profile = card.sign(profile)
    profile.save(target)
    out.record(record(profile, target, seconds))
    suggestion = f"{loading.try_it(output or profile.name)}  (or -p {output or profile.name}:-1)"
    out.result(summary(profile, target, sum(seconds.values()), suggestion))


def _like(
    name: str, pairing: PairOptions, loading: ModelOptions, out: Output
) -> tuple[Axis, ModelOptions, Make]:
    """How to build a profile again: its axis, the model with as many threads, and the build."""
    from alignez_edge.build.rebuild import build_like, differences, threads_of
    from alignez_edge.preferences.queries import read_queries
    from alignez_edge.profile.profile import Profile

    original = Profile.load(loading.find(name))
    asked = read_queries(pairing.queries) if pairing.queries is not None else None
    if loading.threads is None:
        loading = replace(loading, threads=threads_of(original))

    def make(model: Model, **more: Any) -> Profile:
        if difference := differences(original, model):
            out.notice(f"the profile will differ, because this has changed: {difference}")
        return build_like(model, original, queries=asked, pairs=pairing.pairs, **more)

    return original.axis, loading, make


def _built(model: Model, make: Make, out: Output) -> tuple[Profile, dict[str, float]]:
    """The profile, and the seconds that each step took."""
    with out.resumable("the same build"), out.progress() as progress:
        profile = make(model, on_progress=progress, on_notice=out.notice)
    return profile, {step: round(spent, 2) for step, spent in progress.seconds.items()}


def _target(axis: Axis, model: Model) -> Path:
    """Where the profile goes in the library, checked before the work begins."""
    from alignez_edge.profile.library import ProfileLibrary

    library = ProfileLibrary()
    make_folder(library.folder)
    target = library.place(axis.name, model.fingerprint, model.facts.name)
    place_of(target)
    return target


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
            raise BadInputError(f"--layers: {part.strip()} is reversed", "write it like 3-8,10")
        found.update(range(low, high + 1))
    return sorted(found)
