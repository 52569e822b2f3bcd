"""Which form of request a model understands: tried on a few queries, and judged by consensus.

No judge is asked. Every form that applies asks for both sides of the same queries; the answers are
scored by how well forms in other words tell them apart (`consensus.py`). Which form wins depends on
model and axis, so the scores are kept with the profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.calibration.consensus import Text, spans, weigh
from alignez_edge.preferences.answers import Complete, n_completions, write_answers
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.choice import FormScore, RequestChoice
from alignez_edge.preferences.prompts import cut_next_turn
from alignez_edge.preferences.requests import PROBES, RequestForm

Evidence = Callable[[Sequence[Text], Sequence[RequestForm]], DoubleArray]
"""The evidence of texts by some probes: `(n_texts, n_probes)`."""

N_FIRST = 3
"""Queries that every form of one step is tried on."""
N_KEPT = 3
"""Forms that are tried on more queries: those that did best on the first."""
N_QUERIES = 8
"""Queries in all, unless the best two are as good as each other."""
N_MOST = 14
"""Queries in all for these two then."""
N_JUDGES = 2
"""Probes that judge the forms that are kept: those that the model understands best."""
N_TOKENS = 32
"""Tokens of a trial's answer, written and read: with fewer, forms whose answers only begin as they
were asked to come out as well as those that go on so (docs/method.md, section 1)."""


def choose_request(
    complete: Complete,
    evidence: Evidence,
    axis: Axis,
    forms: Sequence[RequestForm],
    queries: Sequence[str],
    *,
    chat: bool,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> RequestChoice:
    """Try `forms` on `queries` and take the one with the largest span less its standard error.

    All are tried on the first `N_FIRST` queries, the best `N_KEPT` on `N_QUERIES`, and the best two
    on `N_MOST` where their spans differ by less than the standard error. A form of two steps costs
    several times as much and asks in the words of a form of one step: it is
    only tried where that one is among the best. A form whose sides do not differ, or go the wrong
    way, is only taken where no form does better than that; `RequestChoice.works` says so. `tick` is
    called for each text that the model writes. The same arguments give the same choice.
    """
    found: dict[str, list[DoubleArray]] = {form.name: [] for form in forms}

    def attempt(
        queries: Sequence[str], forms: Sequence[RequestForm], judges: Sequence[int]
    ) -> None:
        tasks = [(query, form) for query in queries for form in forms]
        written = write_answers(
            complete, axis, tasks, chat=chat, seed=seed, max_tokens=N_TOKENS, tick=tick
        )
        texts = [
            Text(query, cut_next_turn(answer.text), form.name, answer.ended)
            for (query, form), answers in zip(tasks, written, strict=True)
            for answer in answers
        ]
        told = np.full((len(texts), len(PROBES)), np.nan)
        told[:, judges] = evidence(texts, [PROBES[i] for i in judges])
        for n, (_, form) in enumerate(tasks):
            found[form.name] += [told[2 * n], told[2 * n + 1]]

    def scores(forms: Sequence[RequestForm]) -> list[FormScore]:
        return [
            FormScore.of(form.name, spans(np.array(found[form.name]), weights)) for form in forms
        ]

    first = [form for form in forms if not form.two_steps] or list(forms)
    attempt(queries[:N_FIRST], first, range(len(PROBES)))
    pairs = (np.array(found[form.name]) for form in first)
    weights = weigh(np.array([np.mean(each[::2] - each[1::2], axis=0) for each in pairs]))
    judges = sorted(np.argsort(-weights, kind="stable")[:N_JUDGES].tolist())
    # Stable sorts: of forms that do as well as each other, the one that stands first.
    ranked = sorted(scores(first), key=lambda score: -score.span)
    names = [score.form for score in ranked[:N_KEPT]]
    kept = [form for form in first if form.name in names]
    families = {form.family for form in kept}
    more = [form for form in forms if form not in first and form.family in families]
    if more:
        attempt(queries[:N_FIRST], more, judges)
    kept += more
    if queries[N_FIRST:N_QUERIES]:
        attempt(queries[N_FIRST:N_QUERIES], kept, judges)
    best = sorted(scores(kept), key=FormScore.rank)
    if queries[N_QUERIES:N_MOST] and _alike(best):
        close = [form for form in kept if form.name in [score.form for score in best[:2]]]
        attempt(queries[N_QUERIES:N_MOST], close, judges)
        best = sorted(scores(kept), key=FormScore.rank)
    probes = (probe.name for probe in PROBES)
    shown = dict(zip(probes, (round(float(weight), 4) for weight in weights), strict=True))
    return RequestChoice(best[0].form, (*best, *ranked[N_KEPT:]), shown)


def n_trials(forms: Sequence[RequestForm], axis: Axis, queries: Sequence[str]) -> int:
    """Texts that the model writes for a choice, at most."""
    each = {form.name: n_completions(form, axis) for form in forms}
    two = sum(each[form.name] for form in forms if form.two_steps)
    one = sorted((each[form.name] for form in forms if not form.two_steps), reverse=True)
    last = sum(sorted(each.values(), reverse=True)[:2])
    n_first, n_all = len(queries[:N_FIRST]), len(queries[:N_QUERIES])
    total = n_first * sum(one) + n_all * two + (n_all - n_first) * sum(one[:N_KEPT])
    return total + len(queries[N_QUERIES:N_MOST]) * last


def _alike(best: Sequence[FormScore]) -> bool:
    """Whether the first two forms work and are as good as each other, as far as one can tell."""
    if len(best) < 2 or not (best[0].works and best[1].works):
        return False
    return abs(best[0].span - best[1].span) < np.hypot(best[0].error, best[1].error)
