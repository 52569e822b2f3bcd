"""Consensus among forms of request: what a text shows of a side, by the model itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.calibration.consensus import Text, counted, evidence, spans, weigh, words_of
from alignez_edge.preferences.axes import Axis, Wording
from alignez_edge.preferences.requests import FORMS, PROBES
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer, answer_log_prob

AXIS = Axis("bright", "cheerful", "gloomy")
TEXTS = [
    Text(query, text, form)
    for query in ("Why is the sky blue?", "Tell me about bread.")
    for text in ("So fine and warm a day!", "Rain, and nothing but rain.")
    for form in ("style", "list")
]


def test_evidence_is_the_difference_of_two_teacher_forced_scores(llama_model: Model) -> None:
    found = evidence(llama_model, AXIS, TEXTS)
    assert found.shape == (len(TEXTS), 3)
    for text, row in zip(TEXTS, found, strict=True):
        answer = llama_model.tokenize(f" {text.text}", begin=False)
        for form, value in zip(PROBES, row, strict=True):
            if form.family == FORMS[text.form].family:
                assert np.isnan(value)
                continue
            total = 0.0
            with Scorer(llama_model) as scorer:
                for side, sign in (("positive", 1), ("negative", -1)):
                    request = form.request(text.query, AXIS, side, chat=False)  # type: ignore[arg-type]
                    prompt = llama_model.prompt(request.messages()).tokens
                    (rows,) = scorer.log_probs(prompt, answer)
                    total += sign * answer_log_prob(rows, answer)
            assert value == pytest.approx(total / len(answer), abs=0.02)


def test_forms_that_ask_in_the_same_words_do_not_judge_each_other(llama_model: Model) -> None:
    texts = [Text("Why?", "So it is.", form) for form in ("system", "role", "list", "two-steps")]
    found = evidence(llama_model, AXIS, texts)
    by_role = [probe.name for probe in PROBES].index("role")
    assert [list(np.flatnonzero(np.isnan(row))) for row in found] == [[by_role]] * 2 + [[]] * 2


@given(
    forms=st.lists(st.floats(0.1, 2), min_size=3, max_size=7),
    probes=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
    sign=st.sampled_from([1, -1]),
)
def test_planted_weights_and_spans_are_found_again(
    forms: list[float], probes: list[float], sign: int
) -> None:
    """Though no form is judged by its own probe."""
    weights = np.array(probes) / np.mean(probes)
    wanted = sign * np.array(forms)
    table = np.outer(wanted, weights)
    for i in range(min(3, len(forms))):
        table[i, i] = np.nan
    found = weigh(table)
    np.testing.assert_allclose(found, weights, rtol=0.02)
    told = np.stack([table / 2, -table / 2], axis=1).reshape(-1, 3)
    np.testing.assert_allclose(spans(told, found), wanted, rtol=0.02)


def test_a_probe_that_tells_nothing_or_the_opposite_does_not_count() -> None:
    table = np.outer([0.2, 0.4, 0.3, 0.1], [1.0, 0.5, -0.4])
    weights = weigh(table)
    assert weights[2] == 0 and weights[0] == pytest.approx(2 * weights[1])
    np.testing.assert_array_equal(weigh(np.zeros((4, 3))), 1)
    unknown = np.array([[np.nan, np.nan, 0.3], [np.nan, np.nan, 0.0]])
    np.testing.assert_array_equal(spans(unknown, weights), 0)


def test_exchanged_sides_turn_the_sign(llama_model: Model) -> None:
    other = Axis("dim", "gloomy", "cheerful")
    one, two = (evidence(llama_model, axis, TEXTS) for axis in (AXIS, other))
    np.testing.assert_allclose(one, -two, atol=0.02)


def test_words_of_the_requests_that_come_back_gain_nothing(llama_model: Model) -> None:
    """All that such a text says is what it was asked for: it scores 0, however likely that is."""
    echo = Text("Tell me about bread.", "extremely cheerful assistant, cheerfully!", "list")
    found = evidence(llama_model, AXIS, [echo])
    tokens = llama_model.tokenize(f" {echo.text}", begin=False)
    left = counted(llama_model, tokens, words_of(AXIS))
    said = b"".join(
        llama_model.token_bytes(t) for t, counts in zip(tokens, left, strict=True) if counts
    )
    assert not any(chr(c).isalpha() for c in said)
    plain = evidence(llama_model, Axis("x", "cold", "warm"), [echo])
    assert np.abs(found).max() < np.abs(plain).max()
    empty = evidence(llama_model, AXIS, [Text("Who?", "  ")])
    np.testing.assert_array_equal(empty, 0)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a cheerful day", "a  day"),
        ("Cheerfully, they cheer: CHEERFULNESS.", ", they : ."),
        ("you are a way of it", "you are a way of it"),
        ("gloom and form", " and form"),
        ("é cheerful é日本", "é  é日本"),
    ],
)
def test_which_words_count(llama_model: Model, text: str, left: str) -> None:
    tokens = llama_model.tokenize(text, begin=False)
    kept = counted(llama_model, tokens, words_of(AXIS))
    pieces = [llama_model.token_bytes(t) for t, k in zip(tokens, kept, strict=True) if k]
    assert b"".join(pieces).decode().split() == left.split()


@given(st.text(max_size=60))
def test_any_text_has_as_many_marks_as_tokens(llama_model: Model, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    tokens = llama_model.tokenize(text, begin=False)
    for cut in (len(tokens), len(tokens) // 2):
        assert len(counted(llama_model, tokens[:cut], words_of(AXIS))) == cut


def test_an_axis_with_one_side_is_told_from_the_plain_answer(llama_model: Model) -> None:
    axis = Axis("pirate", "talks like a pirate", positive_wording=Wording(style="Say arr."))
    assert "pirate" in words_of(axis) and "plain" not in words_of(axis)
    found = evidence(llama_model, axis, TEXTS[:2])
    assert np.isfinite(found[1]).all() and (found[1] != 0).all()


def test_the_end_of_an_answer_counts_where_the_model_ended_it(chat_model: Model) -> None:
    short, cut = (Text("Why?", "So it is", "list", ended=ended) for ended in (True, False))
    found = evidence(chat_model, AXIS, [short, cut])
    assert chat_model.end_token is not None and not np.allclose(found[0], found[1])
