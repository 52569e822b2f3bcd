"""Teacher-forced log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax as reference_log_softmax

from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import (
    Scorer,
    answer_log_prob,
    kl_divergence,
    log_softmax,
    rows_that_fit,
    score_batch,
)
from tests.test_session import injection_for


@pytest.fixture
def texts(llama_model: Model) -> tuple[list[int], list[int]]:
    return (
        llama_model.tokenize("Why is the sky blue?", begin=True),
        llama_model.tokenize(" Because of the air.", begin=False),
    )


def test_rows_are_those_of_a_plain_decode(
    llama_model: Model, texts: tuple[list[int], list[int]]
) -> None:
    prompt, answer = texts
    tokens = prompt + answer
    n = len(tokens)
    with Context(llama_model) as context:
        context.decode(tokens, range(n), [0] * n, [True] * n)
        logits = np.array([context.logits(i) for i in range(len(prompt) - 1, n - 1)], np.float64)
    expected = reference_log_softmax(logits, axis=-1)
    with Scorer(llama_model) as scorer:
        (rows,) = scorer.log_probs(prompt, answer)
    assert rows.shape == (len(answer), llama_model.n_vocab) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, atol=1e-2)
    total = expected[np.arange(len(answer)), answer].sum()
    assert answer_log_prob(rows, answer) == pytest.approx(total, abs=1e-1)


def test_zero_is_none_and_the_order_does_not_matter(
    llama_model: Model, texts: tuple[list[int], list[int]]
) -> None:
    steer = injection_for(llama_model)
    zero = injection_for(llama_model, 0.0)
    with Scorer(llama_model) as scorer:
        rows = list(scorer.log_probs(*texts, [None, steer, zero, steer, None]))
    assert np.array_equal(rows[0], rows[2]) and np.array_equal(rows[0], rows[4])
    assert np.array_equal(rows[1], rows[3])
    assert kl_divergence(rows[0], rows[2]) == 0
    assert kl_divergence(rows[0], rows[1]) > 1e-4


def test_the_deciding_vector_acts_on_the_first_row_alone_as_the_answer_begins(
    llama_model: Model, texts: tuple[list[int], list[int]]
) -> None:
    from alignez_edge.runtime.injection import Injection

    steer = injection_for(llama_model)
    nothing = np.zeros_like(steer.deciding)
    with Scorer(llama_model) as scorer:
        plain, answer_only, deciding_only = scorer.log_probs(
            *texts, [None, Injection(nothing, steer.answer), Injection(steer.deciding, nothing)]
        )
    assert np.array_equal(plain[0], answer_only[0])
    assert not np.array_equal(plain[1], answer_only[1])
    assert not np.array_equal(plain[0], deciding_only[0])


def test_an_abandoned_iterator_leaves_nothing_behind(
    llama_model: Model, texts: tuple[list[int], list[int]]
) -> None:
    steer = injection_for(llama_model)
    with Scorer(llama_model) as scorer:
        (plain,) = scorer.log_probs(*texts)
        steered = scorer.log_probs(*texts, [steer, steer])
        next(steered)
        (again,) = scorer.log_probs(*texts)
        next(steered)
        (third,) = scorer.log_probs(*texts)
    assert np.array_equal(plain, again) and np.array_equal(plain, third)


def test_limits(llama_model: Model) -> None:
    with Scorer(llama_model, n_ctx=16) as scorer:
        assert len(next(scorer.log_probs([1] * 8, [2] * 8))) == 8
        with pytest.raises(PromptTooLongError, match="17 tokens"):
            scorer.log_probs([1] * 8, [2] * 9)
        for prompt, answer in (([], [1]), ([1], [])):
            with pytest.raises(BadInputError, match="empty"):
                scorer.log_probs(prompt, answer)


def test_long_answers_go_in_steps(llama_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignez_edge.runtime import score as module

    prompt, answer = [5, 6, 7], list(range(60, 100))
    with Scorer(llama_model) as scorer:
        (whole,) = scorer.log_probs(prompt, answer)
    monkeypatch.setattr(module, "rows_that_fit", lambda n_vocab: 7)
    with Scorer(llama_model) as scorer:
        (steps,) = scorer.log_probs(prompt, answer)
    np.testing.assert_allclose(whole, steps, atol=2e-2)


def test_log_softmax_and_divergence_are_stable() -> None:
    rng = np.random.default_rng(0)
    logits = (30 * rng.standard_normal((5, 1000)) + 500).astype(np.float32)
    p = log_softmax(logits.copy())
    np.testing.assert_allclose(p, reference_log_softmax(logits.astype(np.float64), -1), atol=1e-3)
    np.testing.assert_allclose(np.exp(p.astype(np.float64)).sum(axis=1), 1, atol=1e-4)
    q = log_softmax(logits[::-1].copy())
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) > 0
    uniform = log_softmax(np.zeros((1, 4), np.float32))
    half = np.log(np.array([[0.5, 0.5, 1e-30, 1e-30]], np.float32))
    assert kl_divergence(half, uniform) == pytest.approx(np.log(2), abs=1e-6)
    with pytest.raises(ValueError, match="rows for"):
        answer_log_prob(p, [1, 2])
    with pytest.raises(ValueError, match="shapes differ"):
        kl_divergence(p, q[:2])


def test_rows_that_fit_are_bounded() -> None:
    assert rows_that_fit(300) == 512
    assert rows_that_fit(128_256) == 130
    assert rows_that_fit(10_000_000) == 32


def one_by_one(model: Model, items: list[tuple[list[int], list[int]]]) -> list[np.ndarray]:
    found = []
    with Scorer(model) as scorer:
        for prompt, answer in items:
            (rows,) = scorer.log_probs(prompt, answer)
            found.append(rows[np.arange(len(answer)), answer])
    return found


@pytest.fixture
def many(llama_model: Model) -> list[tuple[list[int], list[int]]]:
    """A tree of prompts, each with one to four answers of one to 40 tokens."""
    rng = np.random.default_rng(4)
    items = []
    for question in ("Why is the sky so very blue today?", "What is bread made of, then?"):
        for ending in ("", " Say it kindly.", " Say it kindly, please.", " Say it rudely."):
            prompt = llama_model.tokenize(question + ending, begin=True)
            for _ in range(int(rng.integers(1, 5))):
                items.append((prompt, rng.integers(10, 250, int(rng.integers(1, 41))).tolist()))
    return items


@pytest.mark.parametrize("n_slots", [1, 5, 32])
def test_a_batch_of_answers_scores_as_each_alone(
    llama_model: Model, many: list, n_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import score as module

    monkeypatch.setattr(module, "_SLOTS", n_slots)
    found = list(score_batch(llama_model, many))
    for scores, expected in zip(found, one_by_one(llama_model, many), strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=2e-2)


def test_long_answers_and_prompts_go_in_passes(
    llama_model: Model, many: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import score as module

    expected = list(score_batch(llama_model, many))
    monkeypatch.setattr(module, "rows_that_fit", lambda n_vocab: 70)
    for scores, before in zip(score_batch(llama_model, many), expected, strict=True):
        np.testing.assert_allclose(scores, before, atol=2e-2)


def test_a_batch_of_a_recurrent_model(tiny_model: Callable[..., Path]) -> None:
    items = [([5, 6, 7], [8, 9]), ([5, 6, 7], [10]), ([5, 6], [11, 12, 13])]
    with Model.load(tiny_model("mamba", file_type="F32"), threads=1) as model:
        found, expected = list(score_batch(model, items)), one_by_one(model, items)
    assert list(map(len, found)) == [2, 1, 3]
    for scores, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_limits_of_a_batch(llama_model: Model) -> None:
    drawn = []

    def items(prompt: list[int], answer: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        for n in range(200):
            drawn.append(n)
            yield [1, 2], [3]
        yield prompt, answer

    found = score_batch(llama_model, items([1] * 8, [2] * 9), n_ctx=16)
    next(found)
    assert len(drawn) < 150, "items are drawn as they are needed"
    with pytest.raises(PromptTooLongError, match="text 200 has 17 tokens"):
        list(found)
    for prompt, answer in (([], [1]), ([1], [])):
        with pytest.raises(BadInputError, match="empty"):
            list(score_batch(llama_model, items(prompt, answer)))
    assert list(score_batch(llama_model, [])) == []
