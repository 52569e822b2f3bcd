"""One conversation: the cache between answers is plain, the text arrives whole."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.errors import BadInputError, PromptTooLongError, RuntimeFailure
from alignez_edge.interventions.exact import exact_edit
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Completion, Sampling
from alignez_edge.runtime.sampler import Answer, TextStream
from alignez_edge.runtime.score import Scorer
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter

GREEDY = Sampling(temperature=0, max_tokens=20, min_tokens=20)


def test_stop_strings_of_a_model_are_added_once() -> None:
    settings = Sampling(seed=3, stop=("a", "b")).with_stops(("b", "c"))
    assert settings == Sampling(seed=3, stop=("a", "b", "c"))
    assert settings.with_stops(("c", "a")) == settings


def plain_tokens(session: Session) -> tuple[int, ...]:
    """What a session keeps between two answers."""
    (slot,) = session._scheduler._slots._slots
    assert slot.n_plain == len(slot.tokens)
    return tuple(slot.tokens)


def injection_for(model: Model, size: float = 2.0) -> Injection:
    rng = np.random.default_rng(1)
    deciding = np.zeros((model.n_layer, model.n_embd), np.float32)
    deciding[2:4] = size * rng.standard_normal((2, model.n_embd))
    return Injection(deciding, -deciding[::-1] * (np.arange(model.n_layer) > 0)[:, None])


def ask(
    session: Session,
    tokens: list[int],
    injection: Injection | None = None,
    sampling: Sampling = GREEDY,
) -> Completion:
    pieces = list(session.stream(tokens, sampling, injection))
    assert session.completion is not None
    assert "".join(pieces) == session.completion.text
    return session.completion


def next_logits(session: Session, tokens: list[int]) -> np.ndarray:
    """Logits after the last prompt token of a plain turn, as the session itself computes them."""
    list(session.stream(tokens, Sampling(temperature=0, max_tokens=1)))
    return session._scheduler._context.logits(0).copy()


@pytest.fixture
def prompt(llama_model: Model) -> list[int]:
    return llama_model.tokenize("Why is the sky blue?", begin=True)


def test_zero_and_none_set_nothing(
    llama_model: Model, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import context as module

    def refuse(*args: object) -> None:
        raise AssertionError("a control vector was set")

    monkeypatch.setattr(module.cpp, "llama_set_adapter_cvec", refuse)
    zeros = np.zeros((llama_model.n_layer, llama_model.n_embd), np.float32)
    with Session(llama_model) as session:
        plain = ask(session, prompt)
        zero = ask(session, prompt, Injection(zeros, zeros))
    assert plain.tokens == zero.tokens


def test_a_steered_answer_leaves_a_plain_cache(llama_model: Model, prompt: list[int]) -> None:
    with Session(llama_model) as session, Session(llama_model) as fresh:
        steered = ask(session, prompt, injection_for(llama_model))
        assert plain_tokens(session) == tuple(prompt[:-1])
        after = next_logits(session, prompt)
        assert np.array_equal(after, next_logits(fresh, prompt))
        assert steered.tokens != ask(session, prompt).tokens


def test_a_plain_answer_leaves_no_trace_in_a_steered_one(
    llama_model: Model, prompt: list[int]
) -> None:
    injection = injection_for(llama_model)
    with Session(llama_model) as session, Session(llama_model) as fresh:
        ask(session, prompt)
        assert ask(session, prompt, injection).tokens == ask(fresh, prompt, injection).tokens


def test_the_phases_are_those_of_the_injection(llama_model: Model, prompt: list[int]) -> None:
    """A steered answer is the greedy one under exactly these passes, done by hand."""
    injection = injection_for(llama_model)
    with Session(llama_model) as session:
        steered = ask(session, prompt, injection)
    with Context(llama_model) as context:
        n = len(prompt)
        context.prefill(prompt[:-1])
        expected = []
        token, vectors = prompt[-1], injection.deciding
        for position in range(n - 1, n + 19):
            context.set_control_vector(vectors)
            context.decode([token], [position], [0], [True])
            logits = context.logits(0).copy()
            logits[[t for t in range(llama_model.n_vocab) if llama_model.is_end(t)]] = -np.inf
            token, vectors = int(logits.argmax()), injection.answer
            expected.append(token)
    assert list(steered.tokens) == expected


def test_a_plain_answer_stays_as_a_prefix(llama_model: Model, prompt: list[int]) -> None:
    with Session(llama_model) as session:
        answer = ask(session, prompt)
        assert plain_tokens(session) == (*prompt, *answer.tokens[:-1])
        longer = [*prompt, *answer.tokens, *prompt[1:]]
        with Session(llama_model) as fresh:
            np.testing.assert_allclose(
                next_logits(session, longer), next_logits(fresh, longer), atol=2e-2
            )


@pytest.mark.parametrize("steered", [False, True])
def test_closing_in_an_answer_leaves_a_plain_cache(
    llama_model: Model, prompt: list[int], steered: bool
) -> None:
    injection = injection_for(llama_model) if steered else None
    sampling = Sampling(temperature=0, max_tokens=50, min_tokens=50)
    with Session(llama_model) as session, Session(llama_model) as fresh:
        stream = session.stream(prompt, sampling, injection)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert session.completion is not None
        assert session.completion.finish_reason == "interrupted"
        assert np.array_equal(next_logits(session, prompt), next_logits(fresh, prompt))


@pytest.mark.parametrize("at", [2, 3, 6])
def test_an_interrupt_in_an_answer_leaves_a_plain_cache(
    llama_model: Model, prompt: list[int], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = Answer.step

    def step(self: Answer, context: Context, index: int) -> str:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return real(self, context, index)

    with Session(llama_model) as session, Session(llama_model) as fresh:
        monkeypatch.setattr(Answer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            list(session.stream(prompt, GREEDY, injection_for(llama_model)))
        monkeypatch.undo()
        assert session.completion is not None
        assert session.completion.finish_reason == "interrupted"
        assert len(session.completion.tokens) == at - 1
        assert np.array_equal(next_logits(session, prompt), next_logits(fresh, prompt))


class NoChange:
    """A `LogitEditor` that moves nothing."""

    def change(self, hidden: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([0]), np.array([0.0], np.float32)


@pytest.mark.parametrize(
    "name", ["llama_set_adapter_cvec", "llama_set_adapters_lora", "llama_set_embeddings"]
)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupt_while_llama_cpp_is_told_of_a_steering(
    llama_model: Model, prompt: list[int], name: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = 0, getattr(cpp, name)

    def told(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        result = real(*arguments)
        if calls == at:
            raise KeyboardInterrupt  # as Python does with a signal that came during the call
        return result

    rng = np.random.default_rng(0)
    edit = Edit({3: LayerEdit.swap(*rng.standard_normal((2, llama_model.n_embd)))})
    term = Adapter(llama_model, exact_edit(llama_model.gguf, edit).adapter)
    injection = replace(
        injection_for(llama_model),
        deciding_edits=((term, 4.0),),
        answer_edits=((term, -4.0),),
        logit_edits=((NoChange(), 1.0),),
    )
    del term
    with Session(llama_model) as session, Session(llama_model) as fresh:
        monkeypatch.setattr(cpp, name, told)
        with contextlib.suppress(KeyboardInterrupt):
            for turn in range(3):  # each with a body of its own, which runs plain
                list(session.stream([*prompt[:-1], turn + 1, prompt[-1]], GREEDY, injection))
        # A control vector is told of once: after that it is written into the graph.
        assert calls == at or (name == "llama_set_adapter_cvec" and calls == 1)
        monkeypatch.undo()
        del injection
        gc.collect()
        assert ask(session, prompt).tokens == ask(fresh, prompt).tokens
        assert np.array_equal(next_logits(session, prompt), next_logits(fresh, prompt))


def test_a_closed_model_ends_its_answers(tiny_llama: Path, prompt: list[int]) -> None:
    model = Model.load(tiny_llama, threads=1)
    session = Session(model)
    for injection in (None, injection_for(model)):
        stream = session.stream(prompt, GREEDY, injection)
        next(stream)
    model.close()
    with pytest.raises(RuntimeFailure, match="the model was closed"):
        list(stream)
    session.close()


def test_a_new_stream_ends_the_one_before(llama_model: Model, prompt: list[int]) -> None:
    with Session(llama_model) as session:
        first = session.stream(prompt, GREEDY, injection_for(llama_model))
        next(first)
        second = ask(session, prompt)
        assert list(first) == []
        assert second.tokens == ask(session, prompt).tokens


def test_the_seed_decides(llama_model: Model, prompt: list[int]) -> None:
    hot = Sampling(temperature=1.5, max_tokens=20, min_tokens=20)
    with Session(llama_model) as session:
        tokens = [
            ask(session, prompt, None, hot.with_seed(s)).tokens for s in (1, 1, 2, 0xFFFFFFFF)
        ]
        again = ask(session, prompt, None, hot.with_seed(0xFFFFFFFF)).tokens
    assert tokens[0] == tokens[1] != tokens[2]
    assert tokens[3] == again


def test_top_k_one_is_greedy(llama_model: Model, prompt: list[int]) -> None:
    narrow = Sampling(temperature=1.5, top_k=1, max_tokens=20, min_tokens=20)
    with Session(llama_model) as session:
        assert ask(session, prompt, None, narrow).tokens == ask(session, prompt).tokens


def test_lengths(llama_model: Model, prompt: list[int]) -> None:
    with Session(llama_model) as session:
        none = ask(session, prompt, None, Sampling(max_tokens=0))
        assert (none.text, none.tokens, none.finish_reason) == ("", (), "length")
        ends = [t for t in range(llama_model.n_vocab) if llama_model.is_end(t)]
        for seed in range(20):
            sampling = Sampling(temperature=3, seed=seed, max_tokens=9, min_tokens=9, top_p=1)
            answer = ask(session, prompt, None, sampling)
            assert len(answer.tokens) == 9 and answer.finish_reason == "length"
            assert not set(ends) & set(answer.tokens)


def test_the_window_ends_an_answer(llama_model: Model, prompt: list[int]) -> None:
    n = len(prompt)
    sampling = Sampling(temperature=0, max_tokens=100, min_tokens=100)
    with Session(llama_model, n_ctx=n + 4) as session:
        answer = ask(session, prompt, injection_for(llama_model), sampling)
        assert answer.finish_reason == "context"
        assert len(answer.tokens) == 4
        longest = [*prompt, *prompt][: n + 3]
        assert len(ask(session, longest, None, sampling).tokens) == 1
        with pytest.raises(PromptTooLongError):
            session.stream([*longest, 1], sampling)
        with pytest.raises(BadInputError, match="empty"):
            session.stream([], sampling)


def test_a_stop_string_ends_an_answer(llama_model: Model, prompt: list[int]) -> None:
    with Session(llama_model) as session:
        whole = ask(session, prompt)
        stop = whole.text[5:8]
        stopped = ask(
            session,
            prompt,
            None,
            Sampling(temperature=0, max_tokens=20, min_tokens=20, stop=(stop,)),
        )
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]


def feed(stream: TextStream, pieces: list[bytes]) -> list[str]:
    return [stream.feed(piece) for piece in pieces]


def test_characters_arrive_whole() -> None:
    stream = TextStream()
    assert feed(stream, [b"a\xc3", b"\xa4", b"\xf0\x9f", b"\x98", b"\x80!"]) == [
        "a", "ä", "", "", "😀!"
    ]  # fmt: skip
    assert feed(stream, [b"x\xe2\x82"]) == ["x"]
    assert stream.finish() == ""
    assert stream.text == "aä😀!x"


def test_broken_bytes_do_not_stop_the_text() -> None:
    stream = TextStream()
    assert "".join(feed(stream, [b"a\xff", b"b"])) == "a\ufffdb"


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(("\n\nQ:", "END"))
    assert feed(stream, [b"one\n", b"\ntwo E", b"N", b"d\n\n", b"Q"]) == [
        "one", "\n\ntwo ", "", "ENd", ""
    ]  # fmt: skip
    assert not stream.stopped
    assert stream.feed(b": more END") == ""
    assert stream.stopped and stream.finish() == ""
    assert stream.text == "one\n\ntwo ENd"


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(("END", ""))
    assert feed(stream, [b"an E", b"N"]) == ["an ", ""]
    assert stream.finish() == "EN"


def test_the_first_of_several_stop_strings_counts() -> None:
    stream = TextStream(("later", "x"))
    assert stream.feed(b"a x later") == "a "
    assert stream.stopped


def test_any_split_of_the_bytes_gives_the_same_text() -> None:
    text = "Grüße 😀 abcabd END"
    raw = text.encode()
    for stop, expected in (((), text), (("abd",), "Grüße 😀 abc")):
        for n in range(1, 8):
            stream = TextStream(stop)
            for begin in range(0, len(raw), n):
                if not stream.stopped:
                    stream.feed(raw[begin : begin + n])
            stream.finish()
            assert stream.text == expected


def test_a_scorer_and_a_session_see_the_same_passes(llama_model: Model, prompt: list[int]) -> None:
    injection = injection_for(llama_model)
    ends = [t for t in range(llama_model.n_vocab) if llama_model.is_end(t)]
    with Session(llama_model) as session, Scorer(llama_model) as scorer:
        answer = ask(session, prompt, injection)
        (rows,) = scorer.log_probs(prompt, answer.tokens, [injection])
        rows[:, ends] = -np.inf
        chosen = rows[np.arange(len(answer.tokens)), list(answer.tokens)]
        assert (rows.max(axis=1) - chosen < 1e-2).all()
