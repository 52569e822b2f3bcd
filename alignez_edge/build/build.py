"""From an axis to a profile: pairs, embeddings, subspaces, layers, vectors, calibration.

Every finished step is kept in the work folder (`steps.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_edge.build.steps import Builder, Progress, queries_of
from alignez_edge.calibration.free_running import Paid
from alignez_edge.directions.geometry import Geometry, agreement
from alignez_edge.directions.hidden_states import Tensor
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.files.writing import alone_in
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.by_query import Neighbourhood, Recipe
from alignez_edge.interventions.control_vector import ControlVector, check_layers
from alignez_edge.methods.fit import fit, tensor_of
from alignez_edge.methods.iti import attention_heads
from alignez_edge.methods.names import DEFAULT_METHOD, check_method
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
    with_provenance,
)
from alignez_edge.profile.units import ways_of, with_units
from alignez_edge.profile.verify import with_kept_pairs

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

    Raises `BadInputError` where there is too little to work with, and `AlignezError` where another
    process builds in the same folder; `KeyboardInterrupt` passes through, and the same call goes on
    where it was.
    """
    check_method(method, neighbors, layers)
    check_request(request, axis)
    if limit is not None and limit < MIN_PAIRS:
        raise BadInputError(
            f"a limit of {limit} pairs", f"a build needs at least {MIN_PAIRS} of them"
        )
    _check_steerable(model, method, layers)
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
            found, choice = builder.generated(asked, request, wanted, _tensor(model, method))
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
        profile = Profile(
            axis=axis,
            fingerprint=model.fingerprint,
            method=method,
            seed=seed,
            pairs=len(usable),
            dropped=found.dropped,
            versions=versions(),
            author=author,
            licence=licence,
            model=printable(model.facts.name),
            **_found(builder, usable, train, method, layers, neighbors),
        )
        judges = [usable[i] for i in held_back]
        if choice is not None:
            profile = replace(profile, report={**profile.report, "request": choice.report()})
        questions = builder.questions(judges, unasked, choice)
        prompted = builder.prompted_cost(usable) if choice is not None else None
        profile = _calibrated(builder, profile, questions, choice, prompted, keep=texts != "none")
        profile = replace(profile, report={"held_back": len(judges), **profile.report})
        if texts != "none":
            profile = with_kept_pairs(profile, model, judges, ctx)
        told = Provenance(
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
        return with_provenance(profile, told)


def _found(
    builder: Builder,
    pairs: Sequence[PreferencePair],
    rows: Sequence[int],
    method: str,
    layers: Sequence[int] | None,
    neighbors: int | None,
) -> dict[str, Any]:
    """What the method makes of the pairs `rows`, as fields of a profile, at natural length."""
    model = builder.model
    if method == "recontrol":
        nothing = ControlVector.zeros(model.n_layer, model.n_embd)
        value = builder.value_function([pairs[i] for i in rows])
        return {"vector": nothing, "layers": (), "value": value}
    tensor = _tensor(model, method)
    assert tensor is not None
    heads = attention_heads(model.gguf, model.lora) if tensor.name == "kqv_out" else None
    with builder.states(pairs, tensor) as states:
        result = fit(states, rows, method, layers, builder.progress, heads)
        geometry = Geometry.measure(states, rows)
        agreeing = agreement(states, result.layers, len(pairs))
        near = None
        if neighbors is not None:
            remembered = rows[:BANK_PAIRS]
            asked = builder.query_states([pairs[i].query for i in remembered], tensor.name)
            bank = Bank.from_states(states, remembered, asked, result.layers, tensor.name)
            unit = 1.0 if result.exact is not None else None
            near = Neighbourhood(bank, Recipe.of(method, neighbors), unit)
    return {
        "vector": result.vector,
        "layers": result.layers,
        "exact": result.exact if near is None else None,
        "neighbours": near,
        "report": {
            "separation": [round(float(x), 4) for x in result.separation],
            "interlayer_cosine": [round(float(x), 4) for x in result.interlayer],
            "agreement": round(agreeing, 4),
            **geometry.to_report(),
        },
    }


def _tensor(model: Model, method: str) -> Tensor | None:
    """What a method reads of the pairs; None where that is no layer's state."""
    if method == "recontrol":
        return None
    name = tensor_of(method)
    heads = attention_heads(model.gguf, model.lora) if name == "kqv_out" else None
    return Tensor(name, heads.n_dims if heads else model.n_embd)


def _calibrated(
    builder: Builder,
    profile: Profile,
    questions: Sequence[str],
    choice: RequestChoice | None,
    asked: tuple[Paid, Paid] | None,
    *,
    keep: bool,
) -> Profile:
    """`profile` with its units, its curves and the verdict, as measured on its answers to
    `questions`, which it remembers with `keep`; `asked` is what the pairs' answers cost, where they
    were prompted for."""
    ways = ways_of(profile, builder.model)
    if profile.exact_unit is not None and "exact" not in ways:
        profile = profile.with_exact_unit(None)  # this model cannot be edited exactly
    if not questions:
        raise BadInputError(
            "no query is left to calibrate with", "use more queries, or a larger window: --ctx"
        )
    read = {
        way: builder.free_running(questions, profile, way, choice, (step, len(ways)))
        for step, way in enumerate(ways)
    }
    made = with_units(profile, read, asked)
    told = list(questions) if keep else len(questions)
    return replace(made, report={**made.report, "questions": told})


def _check_steerable(model: Model, method: str, layers: Sequence[int] | None) -> None:
    """Refuse what cannot work before the long work begins."""
    from alignez_edge.runtime.logits import output_matrix

    facts = model.facts
    if facts.n_layer < 2 or not facts.can_steer:
        reason = "has one layer only" if facts.n_layer < 2 else "takes no control vectors"
        raise BadInputError(f"{printable(facts.name)} ({facts.architecture}) {reason}")
    if layers is not None:
        try:
            check_layers(layers, facts.n_layer)
        except ValueError as failure:
            raise BadInputError(f"{failure}", "layer 0 cannot be edited") from None
    if method == "iti":
        attention_heads(model.gguf, model.lora)
    if method == "recontrol":
        output_matrix(model)


def split(n_pairs: int) -> tuple[list[int], list[int]]:
    """The pairs for the directions, and those held back for calibration (disjoint)."""
    held_back = list(range(HELD_BACK_EVERY - 1, n_pairs, HELD_BACK_EVERY))[:MAX_HELD_BACK]
    return [i for i in range(n_pairs) if i not in set(held_back)], held_back
