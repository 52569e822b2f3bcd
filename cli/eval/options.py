"""The options of `alignez eval`, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from alignez_edge.errors import BadInputError

from ..options import ModelOptions, at_least
from ..output import Output

if TYPE_CHECKING:
    from alignez_edge.evaluation.plan import Query

SWEPT = ("neighbors", "layers", "method", "strength", "inject")
"""`alignez_edge.evaluation.sweep.KEYS`, which `--help` need not load the builder for."""

JudgeOption = Annotated[
    str | None,
    typer.Option(
        metavar="JUDGE", help="Who compares the answers; the demo model has its own rules."
    ),
]
NeutralOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Texts to measure KL on, one a line; else plain answers."),
]
FolderOption = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", metavar="FOLDER", help="Where the run is kept; else your data folder."
    ),
]


@dataclass(frozen=True)
class StrengthOptions:
    """At which strengths the profiles are tried."""

    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Try each profile at these strengths, like -1,-0.5,0.5,1."
        ),
    ] = None
    grid: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--grid",
            metavar="P1 P2",
            help="Two profiles at all pairs of strengths.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class QueryOptions:
    """What is asked, and how often."""

    queries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What is asked: one query a line, or JSON lines; the demo model has its own.",
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Ask the first N queries only.")
    ] = None
    seeds: Annotated[int, typer.Option(metavar="N", help="Answers to each query.")] = 3

    def __post_init__(self) -> None:
        at_least("--limit", self.limit, 1)
        at_least("--seeds", self.seeds, 1)

    def load(self, loading: ModelOptions, out: Output) -> list[Query]:
        """The queries of the file, or those that come with the demo model."""
        from alignez_edge.evaluation.plan import Query
        from alignez_edge.preferences.queries import read_queries_with_facts

        if self.queries is not None:
            found = read_queries_with_facts(self.queries, self.limit)
            return [Query(text, facts) for text, facts in found.items()]
        if not loading.is_demo:
            raise BadInputError("no queries given", "name a file: --queries FILE")
        from alignez_edge.demo.bundled import demo_queries

        out.notice("using the demo model's own unseen queries (choose others: --queries FILE)")
        entries = demo_queries("unseen")[: self.limit]
        return [Query(entry.pop("query"), entry) for entry in entries]


@dataclass(frozen=True)
class BaselineOptions:
    """What the profiles are measured against."""

    asking: Annotated[
        bool,
        typer.Option(
            "--asking",
            help="Also answer with either side asked for in the prompt, and with both together.",
        ),
    ] = False
    reference: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="An aligned model; gives the relative improvement."),
    ] = None
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME[:S]", help="The same with another profile as the reference."),
    ] = None

    def __post_init__(self) -> None:
        if self.reference is not None and self.against is not None:
            raise BadInputError("--reference and --against cannot be combined", "use one of them")


@dataclass(frozen=True)
class SweepOptions:
    """Profiles under other settings."""

    sweep: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=V,V",
            help=f"Try these values of {', '.join(SWEPT)}; may be repeated, for all combinations.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    ablations: Annotated[
        bool,
        typer.Option(
            "--ablations",
            help="The papers' sweeps: 3 to 30 neighbors, then 1 to 30 layers, within the model's.",
        ),
    ] = False
    built_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Queries or pairs of the profile, for sweeps that build it again."
        ),
    ] = None
