"""Ctrl-C, failing passes and closing at any moment: nothing is lost, wrong or freed too early."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.places import VectorPlaces
from alignez_edge.runtime.requests import Completion, Given, Request, Sampling
from alignez_edge.runtime.sampler import Answer, Sampler
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.slots import Slots
from alignez_edge.runtime.work import Work
from tests.test_batch import assert_same_answers
from tests.test_conditional import Fixed
from tests.test_scheduler import (
    Log,
    answers,
    assert_idle,
    assert_undisturbed,
    by_ticket,
    some_requests,
    steering,
)


@pytest.fixture(scope="module", params=["llama", "mamba"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Iterator[Model]:
    """One with cells that can be cut, and a recurrent one, which forgets all or nothing."""
    options: dict[str, dict[str, Any]]
    options = {"llama": {"n_layer": 6}, "mamba": {"file_type": "F32"}}
    with Model.load(tiny_model(request.param, **options[request.param]), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def expected(model: Model) -> list[Completion]:
    """What `some_requests` are answered, undisturbed."""
    return answers(model, some_requests(model), n_slots=4)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 7, 20])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Sampler, "draw"), (Context, "decode"), (Context, "remove"),
        (Context, "set_control_vector"), (Slots, "enter"), (Slots, "extend"), (Slots, "cut"),
        (Slots, "leave"), (Fixed, "at"), (Answer, "__init__"),
    ],
)  # fmt: skip
def test_after_an_interrupt_all_go_on(
    model: Model,
    expected: list[Completion],
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    at: int,
    after: bool,
) -> None:
    """Ctrl-C before or after the `at`-th call of a function: the same answers, all text told."""
    calls, real = 0, getattr(kind, name)

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise KeyboardInterrupt
        result = real(*args, **options)
        if calls == at:
            raise KeyboardInterrupt
        return result

    with Scheduler(model, n_slots=4) as scheduler:
        for request in some_requests(model):
            scheduler.submit(request)
        monkeypatch.setattr(kind, name, interrupted)
        log = Log()
        try:
            log.run(scheduler)
        except KeyboardInterrupt:
            monkeypatch.undo()
            log.run(scheduler)
        assert_undisturbed(model, log, expected)
        assert_idle(scheduler)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_beginning_can_be_closed(
    model: Model, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    real = Answer.__init__

    def interrupted(*args: Any) -> None:
        if after:
            real(*args)
        raise KeyboardInterrupt

    with Scheduler(model) as scheduler:
        for request in some_requests(model):
            scheduler.submit(request)
        with monkeypatch.context() as patched:
            patched.setattr(Answer, "__init__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                scheduler.step()
        scheduler.close()
        assert scheduler.n_running == scheduler.n_waiting == 0


class AtLine:
    """A trace function that raises Ctrl-C at the `at`-th line of the runtime that is reached."""

    FILES = ("scheduler.py", "work.py", "slots.py", "cells.py", "sampler.py")

    def __init__(self, at: int, *files: str, function: str = "") -> None:
        self.left, self.files, self.function = at, files or self.FILES, function
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> AtLine | None:
        path = Path(frame.f_code.co_filename)
        if path.name not in self.files or path.parent.name != "runtime":
            return None
        if self.function not in ("", frame.f_code.co_name):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.where = f"{path.name}:{frame.f_lineno} ({frame.f_code.co_name})"
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("part", range(4))
def test_an_interrupt_at_any_line_loses_nothing(
    model: Model, expected: list[Completion], part: int
) -> None:
    """Neither a slot, nor a request, nor a text; 60 places, drawn evenly from all."""
    lost: dict[str, str] = {}
    for at in range(1 + 37 * part, 15 * 37 * 16, 37 * 40 + 7):
        with Scheduler(model, n_slots=4) as scheduler:
            for request in some_requests(model):
                scheduler.submit(request)
            log, trace, usual = Log(), AtLine(at), sys.gettrace()
            try:
                sys.settrace(trace)
                log.run(scheduler)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(usual)
            try:
                log.run(scheduler)
                assert_undisturbed(model, log, expected)
                assert_idle(scheduler)
            except AssertionError as error:
                lost[trace.where] = str(error)[:60]
    assert not lost


def test_a_pass_that_fails_is_made_good(
    model: Model, expected: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the first passes it is: the same answers, without an error."""
    real = cpp.llama_decode
    for at in range(1, 12):
        calls = 0

        def decode(*args: Any, at: int = at) -> int:
            nonlocal calls
            calls += 1
            status = int(real(*args))
            return -3 if calls == at else status

        with Scheduler(model, n_slots=4) as scheduler:
            monkeypatch.setattr(cpp, "llama_decode", decode)
            for request in some_requests(model):
                scheduler.submit(request)
            log = Log().run(scheduler)
            monkeypatch.undo()
            if log.errors:  # a pass of a single request: its own failure
                assert len(log.errors) == 1 and calls > at
                continue
            assert_undisturbed(model, log, expected)
            assert_idle(scheduler)


def test_what_is_computed_again_is_read_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By readers of rows and by the pool of states, whichever pass is broken off."""
    one, other = some_requests(model, 2)
    real = cpp.llama_decode
    for at in range(2, 9):
        calls, places = 0, list[int]()

        def decode(*args: Any, at: int = at) -> int:
            nonlocal calls
            calls += 1
            status = int(real(*args))
            return -3 if calls == at else status

        def on_row(context: Context, entry: int, place: int, places: list[int] = places) -> None:
            places.append(place)

        with Scheduler(model, n_slots=2) as scheduler:
            scheduler.submit(replace(one, given=Given([5, 6, 7, 8], on_row)))
            pooled = scheduler.submit(replace(other, capture="l_out"))
            monkeypatch.setattr(cpp, "llama_decode", decode)
            log = Log().run(scheduler)
            monkeypatch.undo()
            if not log.errors:
                assert places == [0, 1, 2, 3, 4]
                done = log.done[pooled]
                assert done.states is not None and done.states.n_answer == len(done.tokens) - 1


def interrupted_at(trace: AtLine, run: Callable[[], object]) -> bool:
    """Whether a run was interrupted."""
    usual = sys.gettrace()
    try:
        sys.settrace(trace)
        run()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(usual)


@pytest.mark.parametrize("then", ["go on", "cancel"])
def test_an_interrupted_draw_is_whole(model: Model, then: str) -> None:
    """At any line of it, also as a stop string takes tokens back: the tokens say the text."""
    (request,) = some_requests(model, 1)
    (usual,) = answers(model, [request], n_slots=1)
    stop = usual.text[3:6]
    request = replace(request, sampling=replace(request.sampling, stop=(stop,)), capture="l_out")
    (whole,) = answers(model, [request], n_slots=1)
    assert whole.finish_reason == "stop" and whole.states is not None
    at, alive = 0, True
    while alive:
        at += 3
        with Scheduler(model, n_slots=1) as scheduler:
            ticket, log = scheduler.submit(request), Log()
            trace = AtLine(at, "sampler.py")
            alive = interrupted_at(trace, lambda log=log, run=scheduler: log.run(run))  # type: ignore[misc]
            if alive and then == "cancel":
                done = scheduler.cancel(ticket)
                if done is not None:
                    said = model.detokenize(done.tokens)
                    assert said.startswith(done.text.rstrip("\ufffd")), trace.where
                    assert done.text.startswith(log.text[ticket]), trace.where
                    continue
            done = log.run(scheduler).done[ticket]
            assert (done.text, done.tokens) == (whole.text, whole.tokens), trace.where
            assert log.text[ticket] == whole.text
            assert done.states is not None and done.states.n_answer == whole.states.n_answer
    assert at > 50


# --- requests that cannot be started ----------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 1.0}, {"stop": None}, {"stop": "x"}, {"temperature": "1"}, {"top_p": None},
        {"temperature": float("nan")}, {"max_tokens": 2.5}, {"top_k": None}, {"min_tokens": "2"},
    ],
)  # fmt: skip
def test_settings_of_another_kind_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(BadInputError, match=f"^{name} is .*; it must be a "):
        Sampling(**wrong)


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    (request,) = some_requests(model, 1)
    same = Sampling(
        temperature=np.float32(0),
        top_k=np.int64(40),
        seed=np.int64(3),
        max_tokens=np.int32(4),
        stop=["no such"],  # type: ignore[arg-type]
    )
    assert len(answers(model, [replace(request, sampling=same)])[0].tokens) == 4


def test_what_cannot_be_started_ends_alone(
    model: Model, expected: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Answer.__init__

    def failing(answer: Answer, model: Model, sampling: Sampling, *rest: Any) -> None:
        if sampling.seed == 13:
            raise MemoryError
        real(answer, model, sampling, *rest)

    monkeypatch.setattr(Answer, "__init__", failing)
    requests = some_requests(model)
    bad = replace(requests[0], sampling=Sampling(seed=13))
    with Scheduler(model, n_slots=4) as scheduler:
        first = scheduler.submit(bad)
        for request in requests:
            scheduler.submit(request)
        last, gone = scheduler.submit(bad), scheduler.submit(bad)
        done = scheduler.cancel(gone)
        assert done is not None and done.finish_reason == "interrupted"
        log = Log().run(scheduler)
        assert list(log.errors) == [first, last]
        assert_idle(scheduler)
        assert_same_answers(model, requests, by_ticket(log), expected)
        scheduler.submit(bad)
    assert scheduler._context.closed


# --- handing rows to threads, and the last moments of a request -------------------------------


def test_no_thread_draws_from_what_is_freed(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C as the rows of a pass are handed out: whoever closes then waits for the threads."""
    path, real = tiny_model("llama", n_vocab=20000), ThreadPoolExecutor.submit
    open_at_the_end: list[bool] = []
    with Model.load(path, threads=2) as model:
        for at in range(9, 13):
            n = 0

            def submit(pool: ThreadPoolExecutor, job: Any, at: int = at) -> Any:
                nonlocal n
                n += 1
                if n == at:
                    raise KeyboardInterrupt

                def late() -> None:
                    time.sleep(0.01)
                    job()
                    open_at_the_end.append(not scheduler._context.closed)

                return real(pool, late)

            monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
            with pytest.raises(KeyboardInterrupt), Scheduler(model, n_slots=8) as scheduler:
                for i in range(8):
                    scheduler.submit(
                        Request([1, 2, 3 + i], Sampling(min_tokens=20, max_tokens=30), i)
                    )
                for _ in range(6):
                    scheduler.step()
        monkeypatch.undo()
    assert len(open_at_the_end) > 30 and all(open_at_the_end)


@pytest.mark.parametrize("given", [None, Given([5, 6, 7]), Given([5, 6], lambda *row: None)])
def test_an_interrupt_just_before_the_end(
    model: Model, monkeypatch: pytest.MonkeyPatch, given: Given | None
) -> None:
    """It comes to its end all the same, and nothing more is computed for it."""
    (request,) = some_requests(model, 1)
    request = replace(request, given=given)
    (whole,) = answers(model, [request])
    real = Work.end

    def interrupted(*args: Any) -> None:
        monkeypatch.setattr(Work, "end", real)
        raise KeyboardInterrupt

    with Scheduler(model) as scheduler:
        ticket = scheduler.submit(request)
        monkeypatch.setattr(Work, "end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Log().run(scheduler)
        done = Log().run(scheduler).done[ticket]
        assert (done.tokens, done.finish_reason) == (whole.tokens, whole.finish_reason)
        assert_idle(scheduler)


def test_events_that_were_not_told_are_told(
    model: Model, expected: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at any line from the end of the last request on, or a cancel in place of a step."""
    (request,) = some_requests(model, 1)
    for then in (Scheduler.step, Scheduler.cancel):
        for at in range(1, 40):
            with Scheduler(model, n_slots=1) as scheduler:
                ticket, log = scheduler.submit(request), Log()
                while len(scheduler._running[0].tokens if scheduler._running else []) < 3 + 7:
                    log.take(scheduler.step())
                trace = AtLine(at, "scheduler.py")
                if not interrupted_at(
                    trace,
                    lambda log=log, run=scheduler: log.run(run),  # type: ignore[misc]
                ):
                    continue
                if then is Scheduler.cancel:
                    done = scheduler.cancel(ticket)
                    assert (done is None) == (ticket in log.done), trace.where
                else:
                    assert log.run(scheduler).done[ticket].text == log.text[ticket], trace.where


def test_complete_yields_its_own_only(model: Model) -> None:
    requests = some_requests(model)
    with Scheduler(model, n_slots=2) as scheduler:
        left = scheduler.complete(requests[:4])
        next(left)
        left.close()  # type: ignore[attr-defined]
        assert scheduler.n_running == scheduler.n_waiting == 0
        other = scheduler.submit(requests[5])
        assert [done.index for done in scheduler.complete(requests[4:5])] == [4]
        assert scheduler.cancel(other) is None or scheduler.n_running == 0


# --- closing ----------------------------------------------------------------------------------


class Closes:
    """An `Editor` that does something in the middle of a pass, once."""

    layers = (1,)

    def __init__(self, what: Callable[[], object]) -> None:
        self.what: Callable[[], object] | None = what
        self.raised: Exception | None = None

    def change(self, layer: int, x: FloatArray) -> FloatArray:
        what, self.what = self.what, None
        try:
            if what is not None:
                what()
        except Exception as error:
            self.raised = error
        return np.zeros_like(x)


def inside(model: Model, what: Callable[[], object]) -> Injection:
    zeros = np.zeros((model.n_layer, model.n_embd), np.float32)
    return Injection(zeros, zeros, answer_edits=((Closes(what), 1.0),))


@pytest.mark.parametrize("which", ["model", "scheduler", "thread"])
def test_closing_in_the_middle_of_a_pass_waits_for_the_steps_end(
    tiny_llama: Path, which: str
) -> None:
    with Model.load(tiny_llama, threads=1) as model:
        scheduler = Scheduler(model, n_slots=3)

        def close() -> None:
            if which == "thread":
                thread = threading.Thread(target=model.close)
                thread.start()
                thread.join()
            else:
                (model if which == "model" else scheduler).close()
            assert not scheduler._context.closed and not model.closed

        steering = inside(model, close)
        requests = some_requests(model, 2)
        tickets = [
            scheduler.submit(replace(requests[0], steering=steering)),
            scheduler.submit(requests[1]),
        ]
        log = Log()
        with pytest.raises(RuntimeFailure, match="was closed"):
            log.run(scheduler)
        assert steering.answer_edits[0][0].raised is None  # type: ignore[union-attr]
        assert not log.errors and scheduler._context.closed
        assert model.closed == (which != "scheduler")
        said = [scheduler.cancel(ticket) for ticket in tickets]
        assert all(done is not None for done in said) or which == "scheduler"
        scheduler.close()
        scheduler.close()
        assert scheduler.n_running == 0


@pytest.mark.parametrize("what", ["step", "cancel"])
def test_a_step_in_a_step_is_refused(model: Model, expected: list[Completion], what: str) -> None:
    if model.gguf.architecture == "mamba":
        pytest.skip("an editor sees nothing of it")
    requests = some_requests(model)
    with Scheduler(model, n_slots=4) as scheduler:
        calls = {"step": scheduler.step, "cancel": lambda: scheduler.cancel(1)}
        steering = inside(model, calls[what])
        requests[0] = replace(requests[0], steering=steering)
        for request in requests:
            scheduler.submit(request)
        log = Log().run(scheduler)
        raised = steering.answer_edits[0][0].raised  # type: ignore[union-attr]
        assert isinstance(raised, RuntimeFailure) and "in the middle of a step" in str(raised)
        assert_undisturbed(model, log, expected)


def test_nothing_is_written_into_a_closed_model(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.load(tiny_llama, threads=1) as model, Scheduler(model, n_slots=1) as scheduler:
        list(scheduler.complete([some_requests(model)[1]]))
        vectors = np.ones((model.n_layer, model.n_embd), np.float32)
        vectors[0] = 0
        context = scheduler._context
        assert context._places.known
        model.close()
        monkeypatch.setattr(VectorPlaces, "write", lambda *_: pytest.fail("written"))
        with pytest.raises(RuntimeFailure, match="was closed"):
            context.set_control_vector(vectors)


def test_a_session_of_a_closed_model_can_be_closed(tiny_llama: Path) -> None:
    with Model.load(tiny_llama, threads=1) as model:
        session = Session(model)
        next(session.stream([1, 2, 3], Sampling(max_tokens=50)))
        model.close()
        session.close()
        assert session.completion is not None
        assert session.completion.finish_reason == "interrupted"
        assert session._scheduler.n_running == 0


# --- what is set for a pass -------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
def test_an_interrupt_leaves_no_vector_in_place(
    tiny_model: Callable[..., Path], grouped: bool
) -> None:
    """At any line of what sets vectors: a plain request after it is plain."""
    with Model.load(tiny_model("llama"), threads=1) as model:
        requests = some_requests(model, 6)
        plain = replace(requests[3], steering=None)
        # Alike where all rows of a pass must be.
        steered = [
            replace(requests[i], steering=steering(model, 1 if grouped else i)) for i in (1, 2)
        ]
        (expected,) = answers(model, [plain], n_slots=1, grouped=grouped)
        at, alive = 0, True
        while alive:
            at += 1
            with Scheduler(model, n_slots=2, grouped=grouped) as scheduler:
                tickets = [scheduler.submit(request) for request in steered]
                place = ("places.py", "finish") if grouped else ("rows.py", "set")
                trace = AtLine(at, place[0], function=place[1])
                alive = at < 80 and interrupted_at(
                    trace,
                    lambda run=scheduler: Log().run(run),  # type: ignore[misc]
                )
                for ticket in tickets:
                    scheduler.cancel(ticket)
                (found,) = scheduler.complete([plain])
                assert found.tokens == expected.tokens, trace.where


# --- requests that nobody can answer ----------------------------------------------------------


def test_a_steering_that_is_none_or_for_another_model_is_refused(
    model: Model, expected: list[Completion]
) -> None:
    """Also one that does something in layer 0 only, or whose columns would stretch."""
    requests = some_requests(model)
    with Scheduler(model, n_slots=4) as scheduler:
        for request in requests:
            scheduler.submit(request)
        for wrong in (object(), "cheerful", 3):
            with pytest.raises(BadInputError, match="is nothing that steers a request"):
                scheduler.submit(replace(requests[0], steering=wrong))  # type: ignore[arg-type]
        for shape in ((model.n_layer - 1, model.n_embd), (model.n_layer, 1)):
            vectors = np.zeros(shape, np.float32)
            vectors[0] = 1
            with pytest.raises(BadInputError, match="an injection of shape"):
                scheduler.submit(replace(requests[0], steering=Injection(vectors, vectors)))
        late = Fixed(Injection(vectors, vectors), layers=(1,))
        ticket = scheduler.submit(replace(requests[0], steering=late))
        log = Log().run(scheduler)
        assert list(log.errors) == [ticket] and "of shape" in str(log.errors.pop(ticket))
        assert_undisturbed(model, log, expected)


def test_tokens_are_whole_numbers(model: Model, expected: list[Completion]) -> None:
    requests = some_requests(model)
    arrays = [replace(request, tokens=np.array(request.tokens)) for request in requests]  # type: ignore[arg-type]
    assert_same_answers(model, requests, answers(model, arrays, n_slots=4), expected)
    with Scheduler(model) as scheduler:
        for wrong in ([1, 2.0], ["a"], np.array([1.5])):
            with pytest.raises(BadInputError, match="it must be a whole number"):
                scheduler.submit(Request(wrong))  # type: ignore[arg-type]
        with pytest.raises(BadInputError, match="is empty"):
            scheduler.submit(Request(np.array([], np.int64)))  # type: ignore[arg-type]


def test_a_scheduler_has_a_slot(model: Model) -> None:
    with pytest.raises(BadInputError, match="a scheduler of 0 slots"):
        Scheduler(model, n_slots=0)


# --- what is no number any more ---------------------------------------------------------------


class Huge:
    """An `Editor` that lets a layer overflow."""

    layers = (1,)

    def change(self, layer: int, x: FloatArray) -> FloatArray:
        return np.full_like(x, 3e38)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2moe"])
def test_what_overflows_ends_with_an_error_and_nobody_after_it_notices(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    wiped, real = [], Context.clear

    def clear(context: Context, wipe: bool = False) -> None:
        wiped.append(wipe)
        real(context, wipe)

    with Model.load(tiny_model(architecture), threads=1) as model:
        requests = some_requests(model)
        expected = answers(model, requests, n_slots=4)
        zeros = np.zeros((model.n_layer, model.n_embd), np.float32)
        huge = Injection(zeros, zeros, answer_edits=((Huge(), 1.0),))
        monkeypatch.setattr(Context, "clear", clear)
        with Scheduler(model, n_slots=4) as scheduler:
            for beside in ([], requests):
                wiped.clear()
                tickets = [scheduler.submit(request) for request in beside]
                bad = scheduler.submit(replace(requests[0], steering=huge))
                log = Log().run(scheduler)
                assert bad in log.errors
                assert all("not finite" in str(error) for error in log.errors.values())
                # Whoever stood beside it has its own answer, or the same error.
                right = [i for i, ticket in enumerate(tickets) if ticket in log.done]
                assert_same_answers(
                    model,
                    [requests[i] for i in right],
                    by_ticket(log),
                    [expected[i] for i in right],
                )
                for request in requests:
                    scheduler.submit(request)
                log = Log().run(scheduler)
                assert not log.errors
                assert True in wiped
                assert_same_answers(model, requests, by_ticket(log), expected)
                assert_idle(scheduler)


def test_vectors_that_a_cache_cannot_hold_are_refused() -> None:
    vectors = np.zeros((4, 8), np.float32)
    vectors[2, 3] = -65504
    Injection(vectors, vectors)
    vectors[2, 3] = -3e38
    with pytest.raises(BadInputError, match="an injection adds values of 3e"):
        Injection(vectors, vectors)


@pytest.mark.parametrize("logits", ["nan", "of ends only"])
def test_a_draw_from_nothing_comes_to_an_end(tiny_model: Callable[..., Path], logits: str) -> None:
    """Token 0 ends a text, and is what a greedy sampler takes where nothing is larger."""
    path = tiny_model("llama", metadata={"tokenizer.ggml.eos_token_id": 0})
    with Model.load(path, threads=1) as model, Context(model, n_ctx=32) as context:
        context.decode([5], [0], [0], [True])
        context.logits(0)[:] = np.nan if logits == "nan" else -np.inf
        sampler = Sampler(model, Sampling(temperature=0))
        with pytest.raises(RuntimeFailure, match="not finite"):
            sampler.draw(context, 0, may_end=False)
