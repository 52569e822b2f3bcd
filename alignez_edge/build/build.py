"""From an axis to a profile: pairs, embeddings, subspaces, layers, vectors, calibration.

Every finished step is kept in the work folder (`steps.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_edge.build.steps import Builder, queries_of
from alignez_edge.build.workplace import Progress
from alignez_edge.calibration.free_running import Paid
from alignez_edge.directions.geometry import Geometry, agreement
from alignez_edge.directions.hidden_states import HiddenStates, Tensor
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.files.writing import alone_in
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.by_query import Recipe
from alignez_edge.interventions.control_vector import check_layers
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.methods.base import Finding, Material, Method
from alignez_edge.methods.table import DEFAULT_METHOD, check_method
from alignez_edge.methods.table import method as method_called
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.choice import RequestChoice
from alignez_edge.preferences.pairs import PreferencePair, read_labelled_pairs
from alignez_edge.preferences.requests import AUTO, check_request
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.provenance import (
    ModelFile,
    Provenance,
    Source,
    Texts,
    versions,
)
from alignez_edge.profile.units import ways_of, with_units
from alignez_edge.profile.verify import measured_pairs
from alignez_edge.steering.steerable import Steerable

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

MIN_PAIRS = 4
HELD_BACK_EVERY = 4
"""One pair in so many is kept from the directions and used for calibration."""
MAX_HELD_BACK = 12
BANK_PAIRS = 128
"""Pairs that a query-conditioned profile remembers at most: its size does not grow with more."""


def build_profile(
    model: Model,
    axis: Axis,
    *,
    queries: Sequence[str] | None = None,
    pairs: str | Path | None = None,
    method: str = DEFAULT_METHOD,
    layers: Sequence[int] | None = None,
    neighbors: int | None = None,
    limit: int | None = None,
    request: str = AUTO,
    seed: int = 0,
    width: int = 16,
    ctx: int | None = None,
    texts: Texts = "some",
    work: str | Path | None = None,
    on_progress: Progress | None = None,
    on_notice: Callable[[str], None] | None = None,
    author: str = "",
    licence: str = "",
) -> Profile:
    """Build the steering profile of `axis` for `model`.

    `queries` (default: the axis' own) are answered by the model itself, both ways; `pairs` names a
    file of labelled pairs to use instead. `request` names the form in which the sides are asked for
    (`requests.FORMS`); by default several are tried, and the best is taken. `limit` is the number
    of usable pairs after which no more queries are asked. `layers` (default:
    chosen by measurement) are those to edit, 1 to n_layer - 1. With `neighbors` the profile looks
    at each query and steers by so many of the pairs nearest to it. `ctx` is the window in tokens.
    `texts` is what the profile carries of the texts: nothing, the pairs that `verify` replays, or
    these and the queries. `work` is the folder of the build in progress, by default one in the
    user's data folder that these very arguments lead to again. `on_progress(step, done, total)` is
    called as the work goes on, `on_notice` with a line that a user should see.

    Raises `BadInputError` if there is too little to work with, and `AlignezError` if another
    process builds in the same folder; `KeyboardInterrupt` passes through, and the same call goes on
    if it was.
    """
    check_method(method, neighbors, layers)
    check_request(request, axis)
    if limit is not None and limit < MIN_PAIRS:
        raise BadInputError(
            f"a limit of {limit} pairs", f"a build needs at least {MIN_PAIRS} of them"
        )
    _check_steerable(model, layers)
    how = method_called(method)
    tensor = how.reads(model)
    file = ModelFile.of(model)
    builder = Builder(
        model,
        axis,
        seed,
        width,
        ctx,
        work,
        on_progress or (lambda *_: None),
        on_notice or (lambda _: None),
    )
    choice = None
    with alone_in(builder.folder):
        if pairs is not None:
            labelled = read_labelled_pairs(pairs, axis)
            source = Source.of_pairs(labelled.pairs)
            found = builder.that_fit(labelled)
            taken = {pair.query for pair in labelled.pairs}
            unasked = [query for query in axis.queries if query not in taken]
        else:
            asked, wanted = queries_of(axis, queries, limit)
            source = Source.of_queries(asked, include=texts == "all")
            found, choice = builder.generated(asked, request, wanted, tensor)
            unasked = [query for query in asked if query not in set(found.queries)]
        usable = found.pairs
        if len(usable) < MIN_PAIRS:
            dropped = ", ".join(f"{n} {reason}" for reason, n in found.dropped.items())
            raise BadInputError(
                f"{len(usable)} of at least {MIN_PAIRS} usable pairs"
                + (f" (dropped: {dropped})" if dropped else ""),
                "use more queries, or another wording of the axis",
            )
        train, held_back = split(len(usable))
        recipe = None if neighbors is None else Recipe.of(method, neighbors)
        finding, report = _finding(builder, how, tensor, usable, train, layers, recipe)
        parts = Steerable(
            axis=axis,
            vector=finding.vector,
            layers=finding.layers,
            intervention=finding.intervention,
            fingerprint=model.fingerprint,
            method=method,
            seed=seed,
            pairs=len(usable),
            dropped=found.dropped,
            versions=versions(),
            author=author,
            licence=licence,
            model=printable(model.facts.name),
            report=report,
        )
        judges = [usable[i] for i in held_back]
        questions = builder.questions(judges, unasked, choice)
        prompted = builder.prompted_cost(usable) if choice is not None else None
        parts = _calibrated(builder, parts, questions, choice, prompted)
        made_from = Provenance(
            file,
            source,
            layers=None if layers is None else tuple(layers),
            neighbors=neighbors,
            width=width,
            threads=model.threads,
            ctx=ctx,
            limit=None if choice is None else wanted,
            request=request,
        )
        report = {**parts.report, "held_back": len(judges), **made_from.report()}
        report["questions"] = questions if texts != "none" else len(questions)
        if choice is not None:
            report["request"] = choice.report()
        if texts != "none":
            report |= measured_pairs(parts, model, judges, ctx)
        return Profile.of(replace(parts, report=report))


def _finding(
    builder: Builder,
    how: Method,
    tensor: Tensor | None,
    pairs: Sequence[PreferencePair],
    rows: Sequence[int],
    layers: Sequence[int] | None,
    recipe: Recipe | None,
) -> tuple[Finding, dict[str, Any]]:
    """What a method makes of the pairs `rows`, as a raw difference, and what the profile's report
    tells of it; with a `recipe` it is made anew for each query, of pairs that are remembered."""
    material = Material(
        builder.model, pairs, rows, None, layers, builder.seed, builder.ctx, builder.progress
    )
    if tensor is None:
        return how.find(material), {}
    with builder.states(pairs, tensor) as states:
        finding = how.find(replace(material, states=states))
        report = _report(finding, states, rows, len(pairs))
        if recipe is not None:
            remembered = rows[:BANK_PAIRS]
            asked = builder.query_states([pairs[i].query for i in remembered], tensor.name)
            bank = Bank.from_states(states, remembered, asked, finding.layers, tensor.name)
            edit = finding.intervention
            near = Neighborhood(bank, recipe, None if edit is None else edit.exact_unit)
            finding = replace(finding, intervention=near)
    return finding, report


def _report(
    finding: Finding, states: HiddenStates, rows: Sequence[int], n_pairs: int
) -> dict[str, Any]:
    """What the profile tells of its pairs' states, layer by layer."""
    geometry = Geometry.measure(states, rows)
    return {
        "separation": [round(float(x), 4) for x in finding.separation],
        "interlayer_cosine": [round(float(x), 4) for x in finding.interlayer],
        "agreement": round(agreement(states, finding.layers, n_pairs), 4),
        **geometry.to_report(),
    }


def _calibrated(
    builder: Builder,
    parts: Steerable,
    questions: Sequence[str],
    choice: RequestChoice | None,
    asked: tuple[Paid, Paid] | None,
) -> Steerable:
    """`parts` with units, curves and verdict, as measured on answers to `questions`; `asked` is
    what the pairs' answers cost, where they were prompted for."""
    ways = ways_of(parts, builder.model)
    if parts.exact_unit is not None and "exact" not in ways:
        parts = parts.with_exact_unit(None)  # this model cannot be edited exactly
    if not questions:
        raise BadInputError(
            "no query is left to calibrate with", "use more queries, or a larger window: --ctx"
        )
    read = {
        way: builder.free_running(questions, parts, way, choice, (step, len(ways)))
        for step, way in enumerate(ways)
    }
    return with_units(parts, read, asked)


def _check_steerable(model: Model, layers: Sequence[int] | None) -> None:
    """Refuse what cannot work before the long work begins."""
    facts = model.facts
    if facts.n_layer < 2 or not facts.can_steer:
        reason = "has one layer only" if facts.n_layer < 2 else "takes no control vectors"
        raise BadInputError(f"{printable(facts.name)} ({facts.architecture}) {reason}")
    if layers is not None:
        try:
            check_layers(layers, facts.n_layer)
        except ValueError as failure:
            raise BadInputError(f"{failure}", "layer 0 cannot be edited") from None


def split(n_pairs: int) -> tuple[list[int], list[int]]:
    """The pairs for the directions, and those held back for calibration (disjoint)."""
    held_back = list(range(HELD_BACK_EVERY - 1, n_pairs, HELD_BACK_EVERY))[:MAX_HELD_BACK]
    return [i for i in range(n_pairs) if i not in set(held_back)], held_back
