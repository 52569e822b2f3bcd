"""Injections that depend on the prompt: what the runtime shows them, and what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import AlignezError, BadInputError, PromptTooLongError
from alignez_edge.interventions.exact import exact_edit
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Completion, Request, Sampling
from alignez_edge.runtime.sampler import Sampler
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter
from tests.test_session import GREEDY, injection_for, next_logits, plain_tokens

PROMPTS = ("Why is the sky blue?", "Why is the sea salt?", "Who are you?")


@dataclass
class Fixed:
    """A `Conditional` that gives the same injection to every prompt, and keeps what it saw."""

    injection: Injection | None
    tensor: Literal["l_out", "ffn_out"] = "l_out"
    layers: tuple[int, ...] = (1, 2, 4)
    seen: list[FloatArray] = field(default_factory=list)

    def at(self, states: FloatArray) -> Injection | None:
        self.seen.append(states.copy())
        return self.injection


def ask(
    session: Session, tokens: list[int], steering: Injection | Fixed | None, sampling: Sampling
) -> Completion:
    for _ in session.stream(tokens, sampling, steering):
        pass
    assert session.completion is not None
    return session.completion


@pytest.fixture
def prompts(llama_model: Model) -> list[list[int]]:
    return [llama_model.tokenize(text, begin=True) for text in PROMPTS]


def spied(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes of all logits that answers are drawn from, as they come."""
    found: list[bytes] = []
    real = Sampler.draw

    def draw(self: Sampler, context: Context, index: int, **options: bool) -> int:
        found.append(context.logits(index).tobytes())
        return real(self, context, index, **options)

    monkeypatch.setattr(Sampler, "draw", draw)
    return found


def test_a_fixed_one_is_the_static_injection_to_the_bit(
    llama_model: Model, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = spied(monkeypatch)
    injection = injection_for(llama_model)
    answers = []
    for steering in (injection, Fixed(injection), None, Fixed(None)):
        with Session(llama_model) as session:
            answers.append([ask(session, prompt, steering, GREEDY).tokens for prompt in prompts])
    assert answers[0] == answers[1] != answers[2] == answers[3]
    static, conditional, plain, nothing = np.array_split(np.array(logits, object), 4)
    assert static.tolist() == conditional.tolist()
    assert plain.tolist() == nothing.tolist()


@pytest.mark.parametrize("tensor", ["l_out", "ffn_out"])
def test_it_sees_the_plain_state_of_the_last_token(
    llama_model: Model, prompts: list[list[int]], tensor: Literal["l_out", "ffn_out"]
) -> None:
    steering = Fixed(injection_for(llama_model), tensor, layers=(0, 2, 5))
    with Session(llama_model) as session:
        for prompt in prompts:  # from the second on after an answer that was steered
            ask(session, prompt, steering, GREEDY)
    captured = capture(llama_model, [(prompt, []) for prompt in prompts], tensor=tensor, width=1)
    for seen, states in zip(steering.seen, captured, strict=True):
        others = [1, 3, 4]
        assert not seen[others].any()
        expected = states.deciding.copy()
        expected[others] = 0
        np.testing.assert_allclose(seen, expected, atol=2e-2 * np.abs(expected).max())


def test_the_cache_holds_plain_states_only(llama_model: Model, prompts: list[list[int]]) -> None:
    steering = Fixed(injection_for(llama_model))
    with Session(llama_model) as session, Session(llama_model) as fresh:
        ask(session, prompts[0], steering, GREEDY)
        assert plain_tokens(session) == tuple(prompts[0][:-1])
        assert np.array_equal(next_logits(session, prompts[0]), next_logits(fresh, prompts[0]))
        # A plain answer that a conditional gave stays, as a plain one does.
        answer = ask(session, prompts[1], Fixed(None), GREEDY)
        assert plain_tokens(session) == (*prompts[1], *answer.tokens[:-1])
        # Its context changes once, at the first conditional, and the window does not.
        assert session.n_ctx == fresh.n_ctx


def test_a_failure_leaves_a_plain_cache(llama_model: Model, prompts: list[list[int]]) -> None:
    class Fails(Fixed):
        def at(self, states: FloatArray) -> Injection | None:
            raise KeyboardInterrupt

    with Session(llama_model) as session, Session(llama_model) as fresh:
        with pytest.raises(KeyboardInterrupt):
            ask(session, prompts[0], Fails(None), GREEDY)
        assert plain_tokens(session) == tuple(prompts[0][:-1])
        assert np.array_equal(next_logits(session, prompts[0]), next_logits(fresh, prompts[0]))


def test_a_missing_tensor_is_named(llama_model: Model, prompts: list[list[int]]) -> None:
    steering = Fixed(None)
    with Session(llama_model) as session:
        ask(session, prompts[0], steering, GREEDY)
        rows = session._scheduler._context._rows
        rows._name("l_out", 4)
        rows._names["l_out"][4] = b"nothing-4"
        with pytest.raises(BadInputError, match="no tensor nothing-4"):
            ask(session, prompts[0], steering, GREEDY)
        assert plain_tokens(session) == tuple(prompts[0][:-1])


def test_one_token_is_a_prompt(llama_model: Model) -> None:
    injection = injection_for(llama_model)
    with Session(llama_model) as session:
        static = ask(session, [5], injection, GREEDY)
        assert ask(session, [5], Fixed(injection), GREEDY).tokens == static.tokens


def test_models_that_cannot_forget_a_token_read_the_body_anew(
    llama_model: Model, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recurrent models do."""
    real = Context.remove

    def remove(self: Context, sequence: int, p0: int = 0, p1: int = -1) -> bool:
        return not p0 and real(self, sequence, p0, p1)

    monkeypatch.setattr(Context, "remove", remove)
    injection = injection_for(llama_model)
    for static, steering in ((injection, Fixed(injection)), (None, Fixed(None))):
        with Session(llama_model) as session:
            answers = [ask(session, prompts[0], x, GREEDY).tokens for x in (static, steering)]
        assert answers[0] == answers[1]


def test_exact_edits_and_their_reference(llama_model: Model, prompts: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    edit = Edit({3: LayerEdit.swap(*rng.standard_normal((2, llama_model.n_embd)))})
    zeros = np.zeros((llama_model.n_layer, llama_model.n_embd), np.float32)
    adapter = Adapter(llama_model, exact_edit(llama_model.gguf, edit).adapter)
    for term in (adapter, edit):
        injection = Injection(zeros, zeros, ((term, 4.0),), ((term, -4.0),))
        steering = Fixed(injection)
        with Session(llama_model) as session:
            static = ask(session, prompts[0], injection, GREEDY)
            assert ask(session, prompts[0], steering, GREEDY).tokens == static.tokens
            assert static.tokens != ask(session, prompts[0], None, GREEDY).tokens
        # The state that it sees is the plain one, edits or not.
        (states,) = capture(llama_model, [(prompts[0], [])])
        np.testing.assert_allclose(steering.seen[0][4], states.deciding[4], atol=0.1)


def test_a_batch_looks_at_every_prompt(llama_model: Model, prompts: list[list[int]]) -> None:
    injection = injection_for(llama_model)
    sampling = Sampling(temperature=0, max_tokens=9, min_tokens=9)
    requests = [Request(p, sampling, 10 + i) for i, p in enumerate(prompts)]
    calls: list[tuple[int, int]] = []
    steering = Fixed(injection)
    found = list(
        generate_batch(
            llama_model, requests, injection=steering, on_progress=lambda *x: calls.append(x)
        )
    )
    assert sorted(completion.index for completion in found) == [10, 11, 12]
    assert calls[-1] == (3, 27)
    assert len(steering.seen) == 3
    found.sort(key=lambda completion: completion.index)
    for completion, request in zip(found, requests, strict=True):
        with Session(llama_model) as session:
            alone = ask(session, list(request.tokens), injection, request.sampling)
        assert completion.tokens == alone.tokens


def test_a_batch_refuses_what_does_not_fit(llama_model: Model, prompts: list[list[int]]) -> None:
    def answers(bad: Request) -> Iterator[Completion]:
        good = Request(prompts[0], GREEDY)
        return generate_batch(
            llama_model, [good, bad], injection=Fixed(None), n_ctx_per_sequence=100
        )

    cases: list[tuple[Request, type[AlignezError]]] = [
        (Request([], index=1), BadInputError),
        (Request([3] * 100, index=1), PromptTooLongError),
    ]
    for bad, error in cases:
        stream = answers(bad)
        assert next(stream).index == 0
        with pytest.raises(error, match="prompt 1"):
            next(stream)
