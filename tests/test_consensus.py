"""Consensus among ways of asking: what a text shows of a side, by the model itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.axes import Axis, Wording
from alignez_edge.consensus import Text, consensus, counted, evidence, words_of
from alignez_edge.requests import FORMS
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer, answer_log_prob

AXIS = Axis("bright", "cheerful", "gloomy")
FORMS3 = [FORMS[name] for name in ("style", "role", "system")]
TEXTS = [
    Text(query, text, form)
    for query in ("Why is the sky blue?", "Tell me about bread.")
    for text in ("So fine and warm a day!", "Rain, and nothing but rain.")
    for form in ("style", "list")
]


def test_evidence_is_the_difference_of_two_teacher_forced_scores(llama_model: Model) -> None:
    found = evidence(llama_model, AXIS, TEXTS, FORMS3)
    assert found.shape == (len(TEXTS), 3)
    for text, row in zip(TEXTS, found, strict=True):
        answer = llama_model.tokenize(f" {text.text}", begin=False)
        for form, value in zip(FORMS3, row, strict=True):
            if form.name == text.form:
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


def test_a_text_is_asked_about_in_few_forms_none_its_own(llama_model: Model) -> None:
    found = evidence(llama_model, AXIS, TEXTS, FORMS3, n_probes=1)
    for text, row in zip(TEXTS, found, strict=True):
        assert list(~np.isnan(row)) == [text.form != "style", text.form == "style", False]
    np.testing.assert_array_equal(consensus(found), np.nanmax(found, axis=1))


def test_exchanged_sides_turn_the_sign(llama_model: Model) -> None:
    other = Axis("dim", "gloomy", "cheerful")
    one, two = (evidence(llama_model, axis, TEXTS, FORMS3) for axis in (AXIS, other))
    np.testing.assert_allclose(one, -two, atol=0.02)


def test_words_of_the_requests_that_come_back_gain_nothing(llama_model: Model) -> None:
    """All that such a text says is what it was asked for: it scores 0, however likely that is."""
    echo = Text("Tell me about bread.", "extremely cheerful assistant, cheerfully!", "list")
    found = evidence(llama_model, AXIS, [echo], FORMS3)
    tokens = llama_model.tokenize(f" {echo.text}", begin=False)
    left = counted(llama_model, tokens, words_of(AXIS))
    said = b"".join(
        llama_model.token_bytes(t) for t, counts in zip(tokens, left, strict=True) if counts
    )
    assert not any(chr(c).isalpha() for c in said)
    plain = evidence(llama_model, Axis("x", "cold", "warm"), [echo], FORMS3)
    assert np.abs(found).max() < np.abs(plain).max()
    empty = evidence(llama_model, AXIS, [Text("Who?", "  ")], FORMS3)
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
    found = evidence(llama_model, axis, TEXTS[:2], FORMS3)
    assert np.isfinite(found[1]).all() and (found[1] != 0).all()


def test_the_end_of_an_answer_counts_where_the_model_ended_it(chat_model: Model) -> None:
    short, cut = (Text("Why?", "So it is", "list", ended=ended) for ended in (True, False))
    found = evidence(chat_model, AXIS, [short, cut], FORMS3)
    assert chat_model.end_token is not None and not np.allclose(found[0], found[1])
