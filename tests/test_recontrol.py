"""RE-Control: logits moved by the output matrix times a move of the last hidden state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.interventions.value_function import ReControl, ValueFunction
from alignez_edge.methods.recontrol import ScoredAnswer, from_pairs, sample_answers, train
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.logits import LogitSteps, OutputMatrix, last_states
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.score import Scorer, kl_divergence
from alignez_edge.runtime.session import Session
from tests.test_lora import factors, write
from tests.tinymodels import ARCHITECTURES

GREEDY = Sampling(temperature=0, max_tokens=12, min_tokens=12)
LINEAR = tuple(name for name in ARCHITECTURES if name != "gemma2")


class Constant:
    """Moves every state by the same vector."""

    def __init__(self, model: Model, size: float = 1.0) -> None:
        rng = np.random.default_rng(8)
        self.move = (size * rng.standard_normal(model.n_embd)).astype(np.float32)

    def __call__(self, states: FloatArray) -> FloatArray:
        return np.broadcast_to(self.move, states.shape)


def nothing(model: Model) -> FloatArray:
    return np.zeros((model.n_layer, model.n_embd), np.float32)


def moved(model: Model, strength: float = 1.0, top: int = 10_000, size: float = 1.0) -> Injection:
    editor = LogitSteps(OutputMatrix(model), Constant(model, size), top)
    zero = nothing(model)
    return Injection(zero, zero, logit_edits=((editor, strength),))


@pytest.fixture
def prompt(llama_model: Model) -> list[int]:
    return llama_model.tokenize("Why is the sky blue?", begin=True)


@pytest.fixture
def answer(llama_model: Model) -> list[int]:
    return llama_model.tokenize(" Because of the air.", begin=False)


def states_and_logits(model: Model) -> tuple[FloatArray, FloatArray]:
    tokens = list(range(5, 11))
    n = len(tokens)
    with Context(model, n_batch=8) as context:
        context.set_embeddings(True)
        context.decode(tokens, range(n), [0] * n, [True] * n)
        hidden = np.array([context.hidden(i) for i in range(n)])
        return hidden, np.array([context.logits(i) for i in range(n)])


@pytest.mark.parametrize("architecture", LINEAR)
def test_the_output_matrix_makes_the_logits(
    tiny_model: Callable[..., Path], architecture: str
) -> None:
    with Model.load(tiny_model(architecture), threads=1) as model:
        matrix = OutputMatrix(model)
        assert matrix.scale == 1.0
        hidden, logits = states_and_logits(model)
        made = hidden @ matrix.rows(np.arange(model.n_vocab)).T
        np.testing.assert_allclose(made, logits, atol=1e-3 * np.abs(logits).max())


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M"])
def test_quantized_matrices_agree_to_rounding(
    tiny_model: Callable[..., Path], file_type: str
) -> None:
    with Model.load(tiny_model("llama", file_type=file_type, n_embd=256), threads=1) as model:
        matrix = OutputMatrix(model)
        hidden, logits = states_and_logits(model)
        made = hidden @ matrix.rows(np.arange(model.n_vocab)).T
        assert matrix.scale == 1.0
        np.testing.assert_allclose(made, logits, atol=2e-2 * np.abs(logits).max())


def test_logits_that_are_capped_are_refused(tiny_model: Callable[..., Path]) -> None:
    paths = [
        tiny_model("gemma2"),  # capped without a key that says so
        tiny_model("llama", metadata={"llama.final_logit_softcapping": 30.0}),
    ]
    for path in paths:
        with (
            Model.load(path, threads=1) as model,
            pytest.raises(BadInputError, match="caps this model's logits"),
        ):
            OutputMatrix(model)


def test_an_adapter_of_the_output_matrix_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", factors(tiny_llama, "output"))
    with (
        Model.load(tiny_llama, threads=1, lora=[(file, 1.0)]) as model,
        pytest.raises(BadInputError, match="changes its output matrix"),
    ):
        OutputMatrix(model)


def test_rows_are_the_files_and_the_cache_is_bounded(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import logits as module

    monkeypatch.setattr(module, "_CACHE_BYTES", 0)
    monkeypatch.setattr(module, "_PROBED", 20)
    matrix = OutputMatrix(llama_model)
    whole = llama_model.gguf.tensor("output.weight")
    rng = np.random.default_rng(0)
    for n in (1, 20, 7, 20, 13):
        tokens = rng.choice(llama_model.n_vocab, n, replace=False)
        assert np.array_equal(matrix.rows(tokens), whole[tokens])
    assert len(matrix._rows) == 20


def test_reading_hidden_states_changes_no_logits(llama_model: Model) -> None:
    tokens = list(range(5, 11))
    n = len(tokens)
    found = []
    with Context(llama_model, n_batch=8) as context:
        for on in (False, True, False):
            context.clear()
            context.set_embeddings(on)
            context.decode(tokens, range(n), [0] * n, [True] * n)
            found.append(np.array([context.logits(i) for i in range(n)]))
        with pytest.raises(Exception, match="no hidden state"):
            context.hidden(0)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_the_change_is_linear_in_strength_and_exact(
    llama_model: Model, prompt: list[int], answer: list[int]
) -> None:
    matrix = OutputMatrix(llama_model)
    change = matrix.rows(np.arange(llama_model.n_vocab)) @ Constant(llama_model).move
    with Scorer(llama_model) as scorer:
        plain, once, back, zero, again = scorer.log_probs(
            prompt, answer, [None, moved(llama_model), moved(llama_model, -2.0),
                             moved(llama_model, 0.0), None],
        )  # fmt: skip
    assert np.array_equal(plain, zero) and np.array_equal(plain, again)
    for rows, strength in ((once, 1.0), (back, -2.0)):
        difference = rows - plain - strength * change
        # Up to the normalizer, one number a row.
        np.testing.assert_allclose(difference - difference[:, :1], 0, atol=2e-3)


def test_only_the_likeliest_tokens_move(
    llama_model: Model, prompt: list[int], answer: list[int]
) -> None:
    with Scorer(llama_model) as scorer:
        plain, steered = scorer.log_probs(prompt, answer, [None, moved(llama_model, top=5)])
    for before, after in zip(plain, steered, strict=True):
        difference = after - before
        kept = np.argsort(before)[:-5]
        assert np.ptp(difference[kept]) < 1e-4
        assert np.ptp(difference) > 1e-2


def test_two_edits_see_the_models_own_logits(
    llama_model: Model, prompt: list[int], answer: list[int]
) -> None:
    zero = nothing(llama_model)
    one, two = (
        moved(llama_model, strength, top=6, size=size).logit_edits
        for strength, size in ((1.0, 2.0), (-0.5, 3.0))
    )
    with Scorer(llama_model) as scorer:
        first, second = scorer.log_probs(
            prompt,
            answer,
            [Injection(zero, zero, logit_edits=edits) for edits in (one + two, two + one)],
        )
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_session_batch_and_scorer_agree(llama_model: Model, prompt: list[int]) -> None:
    injection = moved(llama_model, 3.0, top=40)
    other = llama_model.tokenize("And what of the sea?", begin=True)
    with Session(llama_model) as session:
        alone = []
        for tokens in (prompt, other):
            list(session.stream(tokens, GREEDY, injection))
            assert session.completion is not None
            alone.append(session.completion.tokens)
        list(session.stream(prompt, GREEDY))
        assert session.completion is not None
        plain = session.completion.tokens
    requests = [Request(prompt, GREEDY, 0), Request(other, GREEDY, 1), Request(prompt, GREEDY, 2)]
    done = {c.index: c for c in generate_batch(llama_model, requests, injection=injection, width=2)}
    assert [done[i].tokens for i in range(3)] == [alone[0], alone[1], alone[0]]
    assert alone[0] != plain
    with Scorer(llama_model) as scorer:
        (rows,) = scorer.log_probs(prompt, alone[0], [injection])
    ends = [t for t in range(llama_model.n_vocab) if llama_model.is_end(t)]
    rows[:, ends] = -np.inf
    assert rows.argmax(axis=1).tolist() == list(alone[0])


def test_an_edit_of_strength_zero_is_no_injection(llama_model: Model) -> None:
    assert moved(llama_model, 0.0).is_zero() and not moved(llama_model).is_zero()
    with pytest.raises(ValueError, match="finite"):
        moved(llama_model, float("nan"))


def test_last_states_are_those_of_one_pass(
    llama_model: Model, prompt: list[int], answer: list[int]
) -> None:
    tokens = prompt + answer
    n = len(tokens)
    with Context(llama_model) as context:
        context.set_embeddings(True)
        context.decode(tokens, range(n), [0] * n, [True] * n)
        expected = np.array([context.hidden(i) for i in range(len(prompt) - 1, n)])
    found = list(last_states(llama_model, [(prompt, answer), (prompt, answer[:3])]))
    assert [len(rows) for rows in found] == [len(answer) + 1, 4]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[0], expected, atol=1e-2 * scale)
    np.testing.assert_allclose(found[1], expected[:4], atol=1e-2 * scale)
    with pytest.raises(PromptTooLongError, match="text 0"):
        list(last_states(llama_model, [(prompt, answer)], n_ctx=8))
    with pytest.raises(BadInputError, match="text 0 has an empty prompt"):
        list(last_states(llama_model, [([], answer)]))


@pytest.fixture(scope="module")
def scored(llama_model: Model) -> list[ScoredAnswer]:
    """Random answers of two kinds of tokens; the reward is the share of the one kind."""
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(80):
        share = rng.uniform()
        tokens = np.where(rng.uniform(size=10) < share, 66, 90) + rng.integers(0, 8, 10)
        score = 2 * float((tokens < 80).mean()) - 1
        answers.append(
            ScoredAnswer((5, 6, int(rng.integers(7, 60))), tuple(tokens.tolist()), score)
        )
    return answers


@pytest.fixture(scope="module")
def trained(llama_model: Model, scored: list[ScoredAnswer]) -> Iterator[ReControl]:
    yield train(llama_model, scored, seed=0, drift=0.1).steering


def test_strength_one_costs_the_drift_it_was_sized_for(
    llama_model: Model, scored: list[ScoredAnswer], trained: ReControl
) -> None:
    drifts = []
    with Scorer(llama_model) as scorer:
        for item in scored[:20]:
            injections = [None, trained.injection(llama_model), (-trained).injection(llama_model)]
            plain, *steered = scorer.log_probs(item.prompt, item.answer, injections)
            drifts += [kl_divergence(plain, rows) for rows in steered]
    assert np.mean(drifts) == pytest.approx(0.1, rel=0.25)


def test_strength_moves_the_value_of_the_state(llama_model: Model, trained: ReControl) -> None:
    hidden, _ = states_and_logits(llama_model)
    value = trained.value
    up = value(hidden + trained.moves(hidden))
    assert (up > value(hidden)).all()
    assert np.array_equal((trained * 0.5).moves(hidden), trained.moves(hidden))


def test_strengths_multiply_and_zero_is_the_base_model(
    llama_model: Model, trained: ReControl
) -> None:
    assert (trained * 0.0).injection(llama_model) is None
    assert (2 * trained * -0.25).strength == -0.5 and (-trained).strength == -1.0
    plain = llama_model.generate(["Why?"], sampling=GREEDY)[0].tokens
    assert (
        llama_model.generate(["Why?"], steering=trained * 0.0, sampling=GREEDY)[0].tokens == plain
    )
    with pytest.raises(BadInputError, match="finite"):
        trained * float("inf")
    with pytest.raises(BadInputError, match="1 to 256 tokens"):
        replace(trained, top=257)


def test_training_is_a_function_of_its_arguments(
    llama_model: Model, scored: list[ScoredAnswer], trained: ReControl
) -> None:
    again = train(llama_model, scored, seed=0, drift=0.1).steering
    assert again.size == trained.size
    assert np.array_equal(again.value.w1, trained.value.w1)


def test_a_value_function_of_another_size_is_refused(
    tiny_model: Callable[..., Path], trained: ReControl
) -> None:
    with (
        Model.load(tiny_model("llama", n_embd=128), threads=1) as other,
        pytest.raises(BadInputError, match="hidden states of 64, the model has 128"),
    ):
        trained.injection(other)


def test_answers_from_pairs_and_from_a_score(llama_model: Model) -> None:
    pair = PreferencePair("Why?", "Because.", "Go away.", "Why? Kindly.", "Why? Rudely.")
    chosen, rejected = from_pairs(llama_model, [pair])
    assert (chosen.score, rejected.score) == (1.0, -1.0)
    assert llama_model.detokenize(rejected.answer) == "Go away."
    sampling = Sampling(max_tokens=6, min_tokens=6, seed=3)

    def score(query: str, answer: str) -> float:
        return float(len(answer) + len(query))

    sampled = [
        sample_answers(
            llama_model, ["Why?", "How so?"], score, per_query=3, sampling=sampling, width=width
        )
        for width in (1, 4)
    ]
    assert [len(answers) for answers in sampled] == [6, 6]
    assert sampled[0][0].prompt == chosen.prompt
    assert len({item.answer for item in sampled[0][:3]}) > 1
    with pytest.raises(BadInputError, match="finite number, not nan"):
        sample_answers(llama_model, ["Why?"], lambda q, a: float("nan"), sampling=sampling)


def test_a_flat_value_function_is_said_to_be_one(
    llama_model: Model, scored: list[ScoredAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.methods import recontrol

    def flat(*arguments: Any, **options: Any) -> object:
        fitted = fit(*arguments, **options)
        arrays = fitted.value.to_arrays()
        value = ValueFunction.from_arrays({**arrays, "w3": 0 * arrays["w3"]})
        return type(fitted)(value, fitted.errors, fitted.constant_error, fitted.epoch)

    fit = recontrol.fit_value
    monkeypatch.setattr(recontrol, "fit_value", flat)
    with pytest.raises(BadInputError, match="flat"):
        train(llama_model, scored, seed=0)
