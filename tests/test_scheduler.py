"""Requests that come and go: each is answered as if it were alone, and none waits for long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.errors import BadInputError, BusyError, PromptTooLongError, RuntimeFailure
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.passes import Passes
from alignez_edge.runtime.requests import Completion, Given, Request, Sampling
from alignez_edge.runtime.scheduler import PROMPT_BUDGET, Event, Scheduler
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Weights
from alignez_edge.runtime.work import Span, Work
from tests.test_batch import assert_same_answers
from tests.test_conditional import Fixed


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Iterator[Model]:
    with Model.load(tiny_llama, threads=1) as model:
        yield model


def steering(model: Model, seed: int, size: float = 2.0) -> Injection:
    """Random vectors in two layers, others at the last prompt token than in the answer."""
    rng = np.random.default_rng(seed)
    vectors = np.zeros((2, model.n_layer, model.n_embd), np.float32)
    vectors[:, 2:4] = size * rng.standard_normal((2, 2, model.n_embd))
    return Injection(*vectors)


def conditional(model: Model, seed: int) -> Fixed:
    return Fixed(steering(model, seed), layers=(1, 3))


def some_requests(model: Model, n: int = 6) -> list[Request]:
    """Other prompts, lengths and steerings: plain, static and conditional ones in turn."""
    rng = np.random.default_rng(n)
    found = []
    for i in range(n):
        tokens = rng.integers(1, 200, 3 + 7 * (i % 4)).tolist()
        length = 8 + 3 * (i % 5)
        own: list[Injection | Conditional | None] = [
            None, steering(model, i), conditional(model, i), Fixed(None, layers=(1, 3))
        ]  # fmt: skip
        settings = Sampling(temperature=0, max_tokens=length, min_tokens=length)
        found.append(Request(tokens, settings, i, own[i % 4]))
    return found


class Log:
    """What a scheduler said of each ticket."""

    def __init__(self) -> None:
        self.text: defaultdict[int, str] = defaultdict(str)
        self.done: dict[int, Completion] = {}
        self.errors: dict[int, Exception] = {}
        self.ended: set[int] = set()

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            assert event.ticket not in self.ended
            self.text[event.ticket] += event.text
            if event.completion is not None:
                self.done[event.ticket] = event.completion
            if event.error is not None:
                assert event.completion is None
                self.errors[event.ticket] = event.error
            if event.completion is not None or event.error is not None:
                self.ended.add(event.ticket)

    def run(self, scheduler: Scheduler) -> Log:
        """Until nothing is left to do."""
        for _ in range(2000):
            if not scheduler.n_running + scheduler.n_waiting:
                return self
            self.take(scheduler.step())
        raise AssertionError("it does not come to an end")


def assert_idle(scheduler: Scheduler) -> None:
    """No slot and no cell is lost, and llama.cpp holds what the slots say."""
    slots = scheduler._slots
    assert scheduler.n_running == scheduler.n_waiting == 0
    held = {cell for slot in slots._slots for cell in slot.cells}
    assert slots._cells.n_free == scheduler._context.n_ctx - len(held)
    memory = cpp.llama_get_memory(scheduler._context.handle)
    for slot in slots._slots:
        assert slot.idle and len(slot.cells) == len(slot.tokens) == slot.n_plain
        last = cpp.llama_memory_seq_pos_max(memory, slot.sequence)
        assert last == len(slot.tokens) - 1


def answers(model: Model, requests: Sequence[Request], **options: Any) -> list[Completion]:
    with Scheduler(model, **options) as scheduler:
        return sorted(scheduler.complete(requests), key=lambda completion: completion.index)


@pytest.fixture(scope="module")
def expected(model: Model) -> list[Completion]:
    """What `some_requests` are answered, undisturbed."""
    return answers(model, some_requests(model), n_slots=4)


def assert_undisturbed(model: Model, log: Log, expected: list[Completion]) -> None:
    assert not log.errors
    assert_same_answers(model, some_requests(model), list(by_ticket(log)), expected)
    for ticket, done in log.done.items():
        assert log.text[ticket] == done.text
        assert done.finish_reason == "length"


def by_ticket(log: Log) -> list[Completion]:
    return [log.done[ticket] for ticket in sorted(log.done)]


# --- company ----------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("file_type", ["F16", "Q4_K_M"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2", "qwen2moe"])
def test_each_answer_is_that_of_a_session(
    tiny_model: Callable[..., Path], architecture: str, file_type: str, grouped: bool
) -> None:
    """Prompts in pieces of 16 beside running answers, six steerings at a time."""
    path = tiny_model(architecture, file_type=file_type)
    with Model.load(path, threads=1) as model:
        requests = some_requests(model, 9)
        found = answers(model, requests, n_slots=6, n_batch=16, grouped=grouped)
        alone = []
        for request in requests:
            with Session(model) as session:
                list(session.stream(request.tokens, request.sampling, request.steering))
                assert session.completion is not None
                alone.append(replace(session.completion, index=request.index))
        tolerance = 1e-2 if file_type == "F16" else 0.2
        assert_same_answers(model, requests, found, alone, tolerance=tolerance)


class Scripted:
    """Has every answer go by a script, whatever its logits; keeps the logits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: dict[tuple[int, int], FloatArray] = {}
        real = Work.computed

        def computed(work: Work, context: Context, position: int, entry: int) -> None:
            logits = context.logits(entry)
            index = work.request.index
            self.logits[index, position] = logits.copy()
            logits[:] = -1.0
            logits[1 + (31 * index + 7 * position) % 200] = 1.0
            real(work, context, position, entry)

        monkeypatch.setattr(Work, "computed", computed)

    def of(self, model: Model, requests: Sequence[Request], **options: Any) -> FloatArray:
        """All logits of the requests' answers, in their order."""
        self.logits.clear()
        answers(model, requests, **options)
        return np.array([self.logits[key] for key in sorted(self.logits)])


def test_company_is_felt_no_more_than_llama_cpps_rounding(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much plain neighbours change the logits is measured; steered ones may do no more."""
    script = Scripted(monkeypatch)
    requests = some_requests(model, 8)
    plain = [replace(request, steering=None) for request in requests]

    def alone(some: Sequence[Request]) -> FloatArray:
        return np.concatenate([script.of(model, [one], n_slots=1) for one in some])

    rounding = np.abs(script.of(model, plain, n_slots=8) - alone(plain)).max()
    assert rounding < 1e-2
    for grouped in (False, True):
        found = script.of(model, requests, n_slots=8, grouped=grouped)
        own = alone(requests)
        assert np.abs(found - own).max() <= 4 * rounding
        assert np.abs(found - alone(plain)).max() > 0.1  # it is steered


def test_strength_0_beside_steered_neighbours_is_plain(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit that of a plain one in the same place."""
    script = Scripted(monkeypatch)
    zeros = np.zeros((model.n_layer, model.n_embd), np.float32)
    requests = [replace(r, steering=steering(model, r.index)) for r in some_requests(model)]
    found = []
    for nothing in (None, Injection(zeros, zeros)):
        for i in (0, 3):
            requests[i] = replace(requests[i], steering=nothing)
        found.append(script.of(model, requests, n_slots=6))
    assert np.array_equal(found[0], found[1])


# --- cancelling, errors -----------------------------------------------------------------------


def test_cancelling_leaves_the_others_alone(model: Model, expected: list[Completion]) -> None:
    requests = some_requests(model)
    rng = np.random.default_rng(3)
    for moment in range(0, 14, 2):
        with Scheduler(model, n_slots=4) as scheduler:
            log, tickets = Log(), [scheduler.submit(request) for request in requests]
            for _ in range(moment):
                log.take(scheduler.step())
            gone = {}
            for ticket in rng.permutation(tickets)[:3].tolist():
                done = scheduler.cancel(ticket)
                assert (done is None) == (ticket in log.done)
                if done is not None:
                    gone[ticket] = done
                assert scheduler.cancel(ticket) is None
            log.run(scheduler)
            assert not set(gone) & set(log.done) and set(gone) | set(log.done) == set(tickets)
            for ticket, done in gone.items():
                assert done.finish_reason == "interrupted" and done.index == ticket
                assert done.text.startswith(log.text[ticket])
                n = len(done.tokens)
                short = replace(expected[ticket], tokens=expected[ticket].tokens[:n])
                assert_same_answers(model, [requests[ticket]], [done], [short])
            for ticket, done in log.done.items():
                assert log.text[ticket] == done.text
                assert_same_answers(model, [requests[ticket]], [done], [expected[ticket]])
            assert_idle(scheduler)


def test_a_given_answer_that_is_cancelled_was_interrupted(model: Model) -> None:
    """Its tokens are those that were computed."""
    (request,) = some_requests(model, 1)
    with Scheduler(model, n_slots=1, n_outputs=1) as scheduler:
        ticket = scheduler.submit(replace(request, given=Given([5, 6, 7, 8], lambda *row: None)))
        for _ in range(4):  # the body, the last prompt token and two of the answer
            scheduler.step()
        done = scheduler.cancel(ticket)
        assert done is not None
        assert (done.finish_reason, done.tokens) == ("interrupted", (5, 6))


def test_an_unknown_ticket_is_nothing(model: Model) -> None:
    with Scheduler(model) as scheduler:
        assert scheduler.cancel(3) is None
        assert scheduler.step() == []


@pytest.mark.parametrize("culprit", range(6))
def test_only_the_one_that_fails_gets_the_error(
    model: Model, expected: list[Completion], monkeypatch: pytest.MonkeyPatch, culprit: int
) -> None:
    """A pass fails whenever a certain request has its fourth answer token in it."""
    tokens = [int(t) for t in expected[culprit].tokens]
    n_prompt = expected[culprit].prompt_tokens
    real = Context.decode

    def decode(context: Context, some: Sequence[int], positions: Sequence[int], *rest: Any) -> None:
        real(context, some, positions, *rest)
        if (tokens[3], n_prompt + 3) in zip(some, positions, strict=True):
            raise RuntimeFailure("it cannot be computed")

    same = [
        i
        for i, one in enumerate(expected)
        if one.prompt_tokens + len(one.tokens) > n_prompt + 4
        and n_prompt + 3 - one.prompt_tokens >= 0
        and one.tokens[n_prompt + 3 - one.prompt_tokens] == tokens[3]
    ]
    assert culprit in same
    monkeypatch.setattr(Context, "decode", decode)
    with Scheduler(model, n_slots=4) as scheduler:
        for request in some_requests(model):
            scheduler.submit(request)
        log = Log().run(scheduler)
        monkeypatch.undo()
        assert sorted(log.errors) == same
        assert str(log.errors[culprit]) == "it cannot be computed"
        assert_idle(scheduler)
    others = [i for i in range(6) if i not in same]
    requests = some_requests(model)
    assert_same_answers(
        model, [requests[i] for i in others], by_ticket(log), [expected[i] for i in others]
    )


def test_what_a_request_itself_raises_is_its_own(model: Model, expected: list[Completion]) -> None:
    class Raises(Fixed):
        def at(self, states: FloatArray) -> Injection | None:
            raise ZeroDivisionError

    def on_row(context: Context, entry: int, place: int) -> None:
        if place == 2:
            raise OSError("full")

    class Editor:
        def change(self, hidden: FloatArray, logits: FloatArray) -> tuple[Any, FloatArray]:
            raise LookupError

    zeros = np.zeros((model.n_layer, model.n_embd), np.float32)
    with Scheduler(model, n_slots=6) as scheduler:
        good = [scheduler.submit(request) for request in some_requests(model)]
        bad = [
            scheduler.submit(replace(some_requests(model)[2], **change))
            for change in (
                {"steering": Raises(None, layers=(1,))},
                {"steering": None, "given": Given([5, 6, 7, 8], on_row)},
                {"steering": Injection(zeros, zeros, logit_edits=((Editor(), 1.0),))},
                {"steering": Fixed(None, layers=(1, 77))},
            )
        ]
        with pytest.raises(PromptTooLongError):
            scheduler.submit(Request([1] * 600))
        with pytest.raises(BadInputError, match="prompt 9 is empty"):
            scheduler.submit(Request([], index=9))
        log = Log().run(scheduler)
        kinds = [ZeroDivisionError, OSError, LookupError, Exception]
        assert sorted(log.errors) == bad
        assert all(isinstance(log.errors[t], kind) for t, kind in zip(bad, kinds, strict=True))
        assert_idle(scheduler)
    assert_same_answers(
        model, some_requests(model), [log.done[ticket] for ticket in good], expected
    )


def test_layer_0_is_steered_in_rows_only(model: Model) -> None:
    """Grouped, the request that wants it gets one clear error, and the others their answers."""
    own = steering(model, 1)
    own.deciding[0] = own.answer[0] = np.random.default_rng(0).standard_normal(model.n_embd)
    requests = [replace(r, steering=own if r.index == 2 else r.steering) for r in
                some_requests(model)]  # fmt: skip
    found = answers(model, requests, n_slots=4, grouped=False)
    alone = answers(model, [requests[2]], n_slots=1, grouped=False)
    assert_same_answers(model, [requests[2]], [found[2]], alone)
    with Scheduler(model, n_slots=4, grouped=True) as scheduler:
        for request in requests:
            scheduler.submit(request)
        log = Log().run(scheduler)
        assert list(log.errors) == [2] and isinstance(log.errors[2], BadInputError)
        assert "layer 0" in str(log.errors[2])
        assert_idle(scheduler)
    rest = [r for r in requests if r.index != 2]
    assert_same_answers(model, rest, by_ticket(log), [found[r.index] for r in rest])


# --- fairness ---------------------------------------------------------------------------------


def spied(monkeypatch: pytest.MonkeyPatch) -> list[list[Span]]:
    """The spans of every pass, as they come."""
    found: list[list[Span]] = []
    real = Passes.compute

    def compute(passes: Passes, spans: list[Span]) -> None:
        found.append(spans)
        real(passes, spans)

    monkeypatch.setattr(Passes, "compute", compute)
    return found


@pytest.mark.parametrize("steered", [False, True])
def test_a_long_prompt_stops_nobody(
    model: Model, monkeypatch: pytest.MonkeyPatch, steered: bool
) -> None:
    """Running answers get a token in every step, beside at most PROMPT_BUDGET of prompts."""
    settings = Sampling(temperature=0, max_tokens=40, min_tokens=40)
    passes = spied(monkeypatch)
    with Scheduler(model, n_slots=8, n_cells=2048) as scheduler:
        answering = [
            scheduler.submit(
                Request([i + 1] * 5, settings, i, steering(model, i) if steered else None)
            )
            for i in range(3)
        ]
        log = Log()
        for _ in range(3):
            log.take(scheduler.step())
        long = [scheduler.submit(Request([i + 9] * 401, settings, i)) for i in range(2)]
        log.take(scheduler.step())
        n_steps = 0
        while any(work.reads_prompt for work in scheduler._running):
            passes.clear()
            log.take(scheduler.step())
            n_steps += 1
            tokens = {span.work.ticket: len(span) for spans in passes for span in spans}
            assert [tokens[ticket] for ticket in answering] == [1, 1, 1]
            assert sum(tokens.get(ticket, 0) for ticket in long) <= PROMPT_BUDGET
        assert n_steps == -(-800 // PROMPT_BUDGET) - 1
        log.run(scheduler)
        assert [len(done.tokens) for done in by_ticket(log)] == [40] * 5


def test_too_many_are_turned_away(model: Model) -> None:
    requests = some_requests(model)
    with Scheduler(model, n_slots=1, max_waiting=2) as scheduler:
        first = scheduler.submit(requests[0])
        scheduler.submit(requests[1])
        with pytest.raises(BusyError, match="2 requests are waiting"):
            scheduler.submit(requests[2])
        scheduler.step()  # one has a slot now
        last = scheduler.submit(requests[2])
        with pytest.raises(BusyError):
            scheduler.submit(requests[3])
        scheduler.cancel(last)
        scheduler.submit(requests[3])
        assert scheduler.cancel(first) is not None
        log = Log().run(scheduler)
        assert sorted(done.index for done in log.done.values()) == [1, 3]


def test_a_free_slot_is_filled_in_the_next_step(model: Model) -> None:
    with Scheduler(model, n_slots=3) as scheduler:
        for request in some_requests(model, 12):
            scheduler.submit(request)
        log = Log()
        while scheduler.n_waiting:
            n_done = len(log.done)
            waiting = scheduler.n_waiting
            log.take(scheduler.step())
            assert scheduler.n_running + len(log.done) - n_done == min(
                3, waiting + scheduler.n_running
            )
        log.run(scheduler)
        assert len(log.done) == 12


# --- shared beginnings ------------------------------------------------------------------------


BEGINNING = [1 + (7 * i) % 200 for i in range(120)]


def alike(n: int = 4) -> list[Request]:
    """Requests that begin alike, and go on each in its own way."""
    settings = Sampling(temperature=0, max_tokens=3, min_tokens=3)
    return [Request([*BEGINNING, i + 1, 2, 3], settings, i) for i in range(n)]


@pytest.mark.parametrize("how", ["undisturbed", "cancelled", "failing"])
@pytest.mark.parametrize("moment", [0, 1, 2, 3])
def test_a_beginning_is_computed_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, how: str, moment: int
) -> None:
    """Also where the first one is cancelled half-way, or fails: what it did is not lost."""
    requests = alike()
    expected = answers(model, requests, n_slots=1, keep=0)
    passes = spied(monkeypatch)
    with Scheduler(model, n_slots=4, n_cells=1024, n_batch=32) as scheduler:
        tickets = [scheduler.submit(request) for request in requests]
        log = Log()
        for _ in range(moment):
            log.take(scheduler.step())
        if how == "cancelled":
            scheduler.cancel(tickets[0])
        elif how == "failing":
            first = next((w for w in scheduler._running if w.ticket == tickets[0]), None)
            if first is None:
                pytest.skip("it has not begun yet")
            first.end(OSError("it broke off"))
        log.run(scheduler)
        n_computed = sum(len(span) for spans in passes for span in spans)
        assert_idle(scheduler)
    assert_same_answers(
        model, [requests[i] for i in log.done], by_ticket(log), [expected[i] for i in log.done]
    )
    assert n_computed <= len(BEGINNING) + len(requests) * (3 + 2) + 16


def test_texts_of_which_nobody_wants_logits_need_not_wait_for_each_other(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are computed as one, so that the first has gone before it could be shared."""
    passes = spied(monkeypatch)
    requests = [replace(request, capture="l_out", given=Given([7, 8])) for request in alike(3)]
    answers(model, requests, n_slots=3, n_cells=1024, n_batch=512, n_outputs=512, keep=0)
    assert len(passes) == 1


# --- states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["l_out", "ffn_out", "kqv_out"])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_states_of_drawn_answers_are_those_of_their_tokens(
    model: Model, tensor: TensorName, grouped: bool
) -> None:
    """In company, with lengths from 1 on and stop strings that take tokens back."""
    requests = [replace(request, capture=tensor) for request in some_requests(model, 12)]
    for i, n in enumerate((1, 2, 3)):
        settings = Sampling(temperature=0, max_tokens=n, min_tokens=n)
        requests[4 * i] = replace(requests[4 * i], sampling=settings)
    whole = answers(model, requests, n_slots=5, grouped=grouped)
    for i in (5, 6, 9, 10):
        for start in range(3, 7):
            stop = whole[i].text[start : start + 3]
            if len(stop) == 3:
                settings = replace(requests[i].sampling, stop=(stop,))
                requests.append(replace(requests[i], sampling=settings, index=len(requests)))
    found = answers(model, requests, n_slots=5, grouped=grouped)
    assert {done.finish_reason for done in found} == {"length", "stop"}
    for request, done in zip(requests, found, strict=True):
        states = done.states
        assert states is not None, f"{request.index}: none after {len(done.tokens)} tokens"
        n = len(done.tokens)
        assert states.n_answer in ((n, n - 1) if done.finish_reason == "stop" else (max(0, n - 1),))
        tokens = done.tokens[: states.n_answer]
        text = Request(
            request.tokens, steering=request.steering, capture=tensor, given=Given(tokens)
        )
        (own,) = [one.states for one in answers(model, [text], n_slots=1, grouped=False)]
        expected = [own]
        if request.steering is None:
            expected += capture(model, [(request.tokens, tokens)], tensor=tensor)
        for theirs in expected:
            assert theirs is not None and theirs.n_answer == states.n_answer
            assert_close(states.deciding, theirs.deciding)
            assert_close(states.answer, theirs.answer)


def assert_close(a: FloatArray, b: FloatArray) -> None:
    np.testing.assert_allclose(a, b, atol=2e-2 * max(1, np.abs(b).max()))


def test_the_states_of_an_answer_of_length_0_are_those_of_its_prompt(model: Model) -> None:
    (request,) = some_requests(model, 1)
    request = replace(request, capture="l_out", sampling=Sampling(max_tokens=0))
    (done,) = answers(model, [request])
    (expected,) = capture(model, [(request.tokens, [])])
    assert done.states is not None and done.states.n_answer == 0
    assert_close(done.states.deciding, expected.deciding)
    assert not done.states.answer.any()


# --- the faces of it --------------------------------------------------------------------------


class Gives:
    """Something that steers by a given injection."""

    def __init__(self, injection: Injection | Conditional) -> None:
        self.given = injection

    def injection(self, model: Weights) -> Injection | Conditional | None:
        return self.given


def test_generate_takes_a_steering_for_each_prompt(model: Model) -> None:
    prompts = ["Why is the sky blue?", "Who are you?", "Why?", "And how?"]
    a, b = Gives(steering(model, 1)), Gives(conditional(model, 2))
    settings = Sampling(temperature=0, max_tokens=12, min_tokens=12)
    steerings = [a, None, b, a]
    found = model.generate(prompts, steering=steerings, sampling=settings)
    alone = [
        replace(model.generate([prompt], steering=own, sampling=settings)[0], index=i)
        for i, (prompt, own) in enumerate(zip(prompts, steerings, strict=True))
    ]
    requests = [
        Request(model.ask_tokens(prompt), settings, i, own.given if own else None)
        for i, (prompt, own) in enumerate(zip(prompts, steerings, strict=True))
    ]
    assert_same_answers(model, requests, found, alone)
    with pytest.raises(BadInputError, match="2 steerings for 4 prompts"):
        model.generate(prompts, steering=[a, None])


def test_a_turn_costs_no_graph(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp is told of a control vector at most once, and every answer is a fresh session's."""
    told, real = 0, cpp.llama_set_adapter_cvec

    def tell(*args: Any) -> int:
        nonlocal told
        told += 1
        return int(real(*args))

    monkeypatch.setattr(cpp, "llama_set_adapter_cvec", tell)
    requests = [*some_requests(model, 9), *some_requests(model, 6)]
    with Session(model) as session:
        found = []
        for request in requests:
            list(session.stream(request.tokens, request.sampling, request.steering))
            assert session.completion is not None
            found.append(session.completion)
        assert told <= 1
    for request, done in zip(requests, found, strict=True):
        with Session(model) as fresh:
            list(fresh.stream(request.tokens, request.sampling, request.steering))
            assert fresh.completion is not None and fresh.completion.tokens == done.tokens


def test_turns_give_a_fresh_sessions_logits_to_the_bit(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = bytes_of_logits(monkeypatch)
    requests = some_requests(model, 9)
    with Session(model) as session:
        for request in requests:
            list(session.stream(request.tokens, request.sampling, request.steering))
    turns = logits.copy()
    logits.clear()
    for request in requests:
        with Session(model) as fresh:
            list(fresh.stream(request.tokens, request.sampling, request.steering))
    assert turns == logits


def bytes_of_logits(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    from tests.test_conditional import spied as spied_logits

    return spied_logits(monkeypatch)
