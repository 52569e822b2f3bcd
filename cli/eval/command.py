"""`alignez eval`: what profiles do to answers, judged against plain ones, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_edge.errors import BadInputError
from alignez_edge.files.folders import user_dir
from alignez_edge.files.text import printable

from ..groups import grouped
from ..judge.command import JudgeOptions, tested
from ..options import (
    DEFAULT_WIDTH,
    ContextOption,
    ModelOptions,
    ParallelOption,
    PromptOptions,
    SamplingOptions,
    SteeringOptions,
    at_least,
    check_preamble,
    model_file,
)
from ..output import Output
from .arms import Treatments, all_arms
from .options import (
    BaselineOptions,
    FolderOption,
    JudgeOption,
    NeutralOption,
    QueryOptions,
    StrengthOptions,
    SweepOptions,
)
from .tables import summary, warnings

if TYPE_CHECKING:
    from alignez_edge.evaluation.plan import Plan
    from alignez_edge.judges.judging import Judge
    from alignez_edge.runtime.model import Model


@grouped
def eval_(
    *,
    loading: ModelOptions,
    steered: SteeringOptions,
    strengths: StrengthOptions,
    questions: QueryOptions,
    judge: JudgeOption = None,
    baselines: BaselineOptions,
    sweeping: SweepOptions,
    neutral: NeutralOption = None,
    prompting: PromptOptions,
    judging: JudgeOptions,
    drawing: SamplingOptions,
    ctx: ContextOption = None,
    parallel: ParallelOption = DEFAULT_WIDTH,
    output: FolderOption = None,
    out: Output,
) -> None:
    """Measure what profiles do, against the model's plain answers to the same queries.

    Every profile given with -p is tried by itself. All answers and verdicts are kept in the folder
    of the run; interrupted and started again with the same options, it goes on where it was.
    """
    at_least("--parallel", parallel, 1)
    treatments = Treatments.parse(steered, strengths, sweeping, loading)
    queries = questions.load(loading, out)
    preamble = prompting.load()
    who, identity = _judge(judge, loading, judging, drawing.seed)
    other_model = model_file(baselines.reference) if baselines.reference is not None else None

    from alignez_edge.evaluation.plan import Plan, that_fit
    from alignez_edge.evaluation.run import evaluate

    with out.resumable("the same evaluation"), loading.load(out) as model:
        treatments.check_fit(model, out)
        check_preamble(preamble, model, ctx, out)
        arms = all_arms(treatments.arms(model, out), baselines, preamble, loading, steered.inject)
        fitting = that_fit(model, arms, queries, ctx)
        if left_out := len(queries) - len(fitting):
            out.notice(f"left out {left_out} queries longer than the context")
        plan = Plan(
            arms=tuple(arms),
            queries=tuple(fitting),
            # The stop strings are each model's own: a reference may have another prompt form.
            sampling=replace(drawing.sampling(model), stop=()),
            seeds=questions.seeds,
            n_ctx=ctx,
            reference=other_model,
            neutral=_texts(neutral),
        )
        plan.check(who)
        folder = Path(output) if output is not None else _folder(plan, model, who)
        axes = {aim.axis.name for arm in arms for aim in arm.aims}
        with tested(who, axes, folder, out, identity), out.progress() as progress:
            results = evaluate(model, plan, who, folder, width=parallel, on_progress=progress)
    _tell(results, folder, out)


def _tell(results: Mapping[str, Any], folder: Path, out: Output) -> None:
    """The results, and where they are kept."""
    for row in results["rows"]:
        out.record(row)
    out.result(summary(results))
    if out.json:
        for warning in warnings(results):
            out.notice(f"warning: {warning}")
    out.notice(f"kept in {printable(str(folder), 500)}")


def _judge(
    text: str | None, loading: ModelOptions, judging: JudgeOptions, seed: int
) -> tuple[Judge, str | None]:
    """The judge, and what is the same where it is the same one."""
    from alignez_edge.judges.named import FORMS, identity_of, judge_of

    if text is None and not loading.is_demo:
        raise BadInputError("no judge given", f"name a judge with --judge: {', '.join(FORMS)}")
    settings = judging.settings(threads=loading.threads, gpu_layers=loading.gpu_layers, seed=seed)
    name = text or "demo"
    return judge_of(name, settings), identity_of(name, settings)


def _texts(file: str | None) -> tuple[str, ...]:
    from alignez_edge.preferences.queries import read_queries

    return () if file is None else tuple(read_queries(file))


def _folder(plan: Plan, model: Model, judge: Judge) -> Path:
    """Where a run goes by itself: the same options lead to the same folder again."""
    from alignez_edge.repeatable import digest

    profiles = dict.fromkeys(arm.profile for arm in plan.arms if arm.kind == "steered")
    name = "".join(c if c.isalnum() else "-" for c in "-".join(profiles))[:40]
    return user_dir() / "runs" / f"{name}-{digest(plan.settings(model, judge))}"
