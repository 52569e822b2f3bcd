"""Choosing a form of request: the one whose sides the other forms tell apart best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.build.choice import choose_request, n_trials
from alignez_edge.calibration.consensus import Text
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.choice import FormScore, RequestChoice
from alignez_edge.preferences.requests import FORMS, RequestForm, RequestText

POLITE = Axis("polite", "polite", "rude")
QUERIES = [f"Question {n}?" for n in range(6)]
MORE = [f"Question {n}?" for n in range(20)]
WEIGHTS = {"style": 1.5, "role": 1.0, "interview": 0.5}
TRIED = [FORMS[name] for name in ("style", "role", "system", "list", "two-steps")]


def complete(
    requests: Sequence[RequestText], seeds: Sequence[int], max_tokens: Sequence[int]
) -> Iterator[tuple[int, str, bool]]:
    """Answers that say what they were asked."""
    for index, request in enumerate(requests):
        yield index, f"1. {request.system} {request.user} so", True


def choose(spans: dict[str, Sequence[float]], queries: Sequence[str] = QUERIES) -> RequestChoice:
    """A choice among forms whose pairs have these scores, one a query and then over again."""

    def evidence(texts: Sequence[Text], probes: Sequence[RequestForm]) -> DoubleArray:
        values = []
        for text in texts:
            scores = spans[text.form]
            span = scores[queries.index(text.query) % len(scores)]
            wanted = "rude" not in text.text
            own = [FORMS[text.form].family == probe.family for probe in probes]
            weights = np.array([WEIGHTS[probe.name] for probe in probes])
            told = 0.3 + (weights * span if wanted else 0 * weights)
            values.append(np.where(own, np.nan, told))
        return np.array(values)

    ticks: list[None] = []
    found = choose_request(
        complete, evidence, POLITE, TRIED, queries, chat=True, seed=3,
        tick=lambda: ticks.append(None),
    )  # fmt: skip
    assert len(ticks) <= n_trials(TRIED, POLITE, queries)
    return found


def test_trials_are_counted() -> None:
    assert n_trials(TRIED, POLITE, QUERIES) == 3 * 4 * 2 + 3 * 3 * 2 + 6 * 4
    assert n_trials(TRIED, POLITE, MORE) == 3 * 4 * 2 + 5 * 3 * 2 + 8 * 4 + 6 * (4 + 2)


def test_two_that_are_as_good_as_each_other_are_tried_longer() -> None:
    spans: dict[str, Sequence[float]] = {form.name: [0.1, 0.12] for form in TRIED}
    spans["role"] = [0.3] * 8 + [0.1] * 12  # only seems better at first
    spans["style"] = [0.28, 0.32, 0.3, 0.3]
    found = choose(spans, MORE)
    assert found.form == "style"
    assert [score.pairs for score in found.scores] == [14, 14, 8, 3]
    spans["role"] = [0.8] * 20
    assert [score.pairs for score in choose(spans, MORE).scores] == [8, 8, 8, 3]


def test_the_largest_span_wins_but_one_that_is_unsure() -> None:
    flat = [0.1] * 6
    spans: dict[str, Sequence[float]] = {form.name: flat for form in TRIED}
    spans["role"] = [0.2, 0.3, 0.2, 0.3, 0.2, 0.3]
    spans["system"] = [1.9, -1.0, 0.1, -0.4, 1.3, 0.1]  # a larger mean, of anything
    found = choose(spans)
    assert found.form == "role" and found.works
    scores = {score.form: score for score in found.scores}
    assert scores["system"].span > scores["role"].span
    assert scores["role"] == FormScore("role", 0.25, 0.0224, 1.0, 6)
    ranked = [score.form for score in found.scores]
    assert ranked == ["role", "style", "system", "list"]
    assert [score.pairs for score in found.scores] == [6, 6, 6, 3]


def test_two_steps_are_tried_where_one_is_among_the_best() -> None:
    spans: dict[str, Sequence[float]] = {form.name: [0.1] for form in TRIED}
    spans["list"], spans["two-steps"] = [0.3, 0.32], [0.5, 0.52]
    found = choose(spans)
    assert found.form == "two-steps"
    assert [score.pairs for score in found.scores] == [6, 6, 6, 6, 3]


def test_a_form_that_goes_the_wrong_way_never_wins() -> None:
    spans: dict[str, Sequence[float]] = {form.name: [-0.9, -0.8] * 3 for form in TRIED}
    spans["list"] = [0.01, 0.02] * 3
    assert choose(spans).form == "list"


def test_where_no_form_works_the_choice_says_so() -> None:
    spans: dict[str, Sequence[float]] = {form.name: [-0.9, -0.8] * 3 for form in TRIED}
    spans["role"] = [0.2, -0.2] * 3
    found = choose(spans)
    assert found.form == "role" and not found.works


def test_a_choice_is_kept_as_json_and_told_in_a_report() -> None:
    found = choose({form.name: [0.1, 0.2, 0.3] * 2 for form in TRIED})
    assert RequestChoice.from_json(found.to_json()) == found
    assert found.weights == {"style": 1.5, "role": 1.0, "interview": 0.5}
    report = found.report()
    assert RequestChoice.of(report) == found
    assert report["form"] == "style" and list(report["scores"]) == [f.name for f in TRIED[:-1]]
    assert report["scores"]["list"].keys() == {"span", "error", "right", "pairs"}
    assert RequestChoice("role").works and RequestChoice("role").report()["scores"] == {}
