"""`alignez eval`: what profiles do to answers, judged against plain ones, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable

from ..judge.command import JudgeOptions, tested
from ..options import (
    DEFAULT_WIDTH,
    ContextOption,
    ModelOptions,
    ParallelOption,
    PromptOptions,
    SamplingOptions,
    SteeringOptions,
    check_fit,
    check_preamble,
    check_width,
    grouped,
    model_file,
)
from ..output import Output
from .arms import (
    arms_of,
    named,
    parse_strengths,
    parse_sweeps,
    reference_arms,
    swept_arms,
    unique,
)
from .tables import summary, warnings

if TYPE_CHECKING:
    from alignez_edge.evaluation.plan import Query
    from alignez_edge.judges.judging import Judge
    from alignez_edge.runtime.model import Model

SWEPT = ("neighbors", "layers", "method", "strength", "inject")
"""`alignez_edge.evaluation.sweep.KEYS`, which `--help` need not load the builder for."""


@grouped
def eval_(
    *,
    loading: ModelOptions,
    steered: SteeringOptions,
    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Try each profile at these strengths, like -1,-0.5,0.5,1."
        ),
    ] = None,
    grid: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--grid",
            metavar="P1 P2",
            help="Two profiles at all pairs of strengths.",
            show_default=False,
        ),
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What is asked: one query a line, or JSON lines; the demo model has its own.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Ask the first N queries only.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Answers to each query.")] = 3,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="JUDGE", help="Who compares the answers; the demo model has its own rules."
        ),
    ] = None,
    asking: Annotated[
        bool,
        typer.Option(
            "--asking",
            help="Also answer with either side asked for in the prompt, and with both together.",
        ),
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="An aligned model; gives the relative improvement."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME[:S]", help="The same with another profile as the reference."),
    ] = None,
    sweep: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=V,V",
            help=f"Try these values of {', '.join(SWEPT)}; may be repeated, for all combinations.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    ablations: Annotated[
        bool,
        typer.Option(
            "--ablations",
            help="The papers' sweeps: 3 to 30 neighbors, then 1 to 30 layers, within the model's.",
        ),
    ] = False,
    built_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Queries or pairs of the profile, for sweeps that build it again."
        ),
    ] = None,
    neutral: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Texts to measure drift on, one a line; else plain answers."
        ),
    ] = None,
    prompting: PromptOptions,
    judging: JudgeOptions,
    drawing: SamplingOptions,
    ctx: ContextOption = None,
    parallel: ParallelOption = DEFAULT_WIDTH,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Where the run is kept; else your data folder."
        ),
    ] = None,
    out: Output,
) -> None:
    """Measure what profiles do, against the model's plain answers to the same queries.

    Every profile given with -p is tried by itself. All answers and verdicts are kept in the folder
    of the run; interrupted and started again with the same options, it goes on where it was.
    """
    check_width(parallel)
    _check(limit, seeds, reference, against, grid, steered.profile)
    given = [named(text, loading, steered.inject) for text in (*steered.profile, *(grid or ()))]
    scale = parse_strengths(strengths) if strengths is not None else None
    sweeps = parse_sweeps(sweep, ablations, strengths, grid)
    asked = _queries(queries, limit, loading, out)
    preamble = prompting.load()
    who, identity = _judge(judge, loading, judging, drawing.seed)
    other_model = model_file(reference) if reference is not None else None

    from alignez_edge.evaluation import arms as kinds
    from alignez_edge.evaluation.plan import Plan, that_fit
    from alignez_edge.evaluation.run import evaluate

    try:
        with loading.load(out) as model:
            for _, steering in given:
                check_fit(steering, model, out)
            check_preamble(preamble, model, ctx, out)
            if sweeps:
                made = [
                    arm
                    for combined in sweeps
                    for arm in swept_arms(model, unique(given), combined, built_from, out)
                ]
            else:
                made = arms_of(unique(given), scale, grid is not None)
            arms = [
                kinds.plain(),
                *reference_arms(reference, against, loading, steered.inject, made),
                *(kinds.asked(made) if asking else ()),
                *made,
                *(kinds.both(made) if asking else ()),
                *(kinds.prompted(preamble, made) if preamble.messages else ()),
            ]
            fitting = that_fit(model, arms, asked, ctx)
            if len(fitting) < len(asked):
                out.notice(f"left out {len(asked) - len(fitting)} queries longer than the context")
            plan = Plan(
                arms=tuple(arms),
                queries=tuple(fitting),
                # The stop strings are each model's own: a reference may have another prompt form.
                sampling=replace(drawing.sampling(model), stop=()),
                seeds=seeds,
                n_ctx=ctx,
                reference=other_model,
                neutral=_texts(neutral),
            )
            plan.check(who)
            folder = Path(output) if output is not None else _folder(plan, model, who)
            axes = {aim.axis.name for arm in arms for aim in arm.aims}
            with tested(who, axes, folder, out, identity), out.progress() as progress:
                results = evaluate(model, plan, who, folder, width=parallel, on_progress=progress)
    except KeyboardInterrupt:
        out.notice("interrupted: start the same evaluation again and it goes on where it was")
        raise
    for row in results["rows"]:
        out.record(row)
    out.result(summary(results))
    if out.json:
        for warning in warnings(results):
            out.notice(f"warning: {warning}")
    out.notice(f"kept in {printable(str(folder), 500)}")


def _check(
    limit: int | None,
    seeds: int,
    reference: str | None,
    against: str | None,
    grid: tuple[str, str] | None,
    profiles: Sequence[str],
) -> None:
    for name, value in (("--limit", limit), ("--seeds", seeds)):
        if value is not None and value < 1:
            raise BadInputError(f"{name} is {value}; it must be at least 1")
    if reference is not None and against is not None:
        raise BadInputError("--reference and --against exclude each other", "use one of them")
    if grid is not None and profiles:
        raise BadInputError("--grid and -p exclude each other", "a grid names its two profiles")
    if not profiles and grid is None:
        raise BadInputError("there is no profile to evaluate", "name one: -p polite")


def _queries(
    file: str | None, limit: int | None, loading: ModelOptions, out: Output
) -> list[Query]:
    from alignez_edge.evaluation.plan import Query
    from alignez_edge.preferences.queries import read_queries_with_facts

    if file is not None:
        found = read_queries_with_facts(file, limit)
        return [Query(text, facts) for text, facts in found.items()]
    if not loading.is_demo:
        raise BadInputError("there is nothing to ask", "name a file: --queries FILE")
    from alignez_edge.demo.bundled import demo_queries

    out.notice("using the demo model's own unseen queries (choose others: --queries FILE)")
    entries = demo_queries("unseen")[:limit]
    return [Query(entry.pop("query"), entry) for entry in entries]


def _judge(
    text: str | None, loading: ModelOptions, judging: JudgeOptions, seed: int
) -> tuple[Judge, str | None]:
    """The judge, and what is the same where it is the same one."""
    from alignez_edge.judges.named import FORMS, identity_of, judge_of

    if text is None and not loading.is_demo:
        raise BadInputError(
            "there is nobody to judge", f"name a judge with --judge: {', '.join(FORMS)}"
        )
    settings = judging.settings(threads=loading.threads, gpu_layers=loading.gpu_layers, seed=seed)
    name = text or "demo"
    return judge_of(name, settings), identity_of(name, settings)


def _texts(file: str | None) -> tuple[str, ...]:
    from alignez_edge.preferences.queries import read_queries

    return () if file is None else tuple(read_queries(file))


def _folder(plan: Any, model: Model, judge: Judge) -> Path:
    """Where a run goes by itself: the same options lead to the same folder again."""
    from alignez_edge.files.folders import user_dir
    from alignez_edge.repeatable import digest

    profiles = dict.fromkeys(arm.profile for arm in plan.arms if arm.kind == "steered")
    name = "".join(c if c.isalnum() else "-" for c in "-".join(profiles))[:40]
    return user_dir() / "runs" / f"{name}-{digest(plan.settings(model, judge))}"
