"""Ctrl-C, failing passes and closing at any moment: nothing is lost, wrong or freed too early."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from alignez_edge.errors import BadInputError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Completion, Given, Sampling
from alignez_edge.runtime.sampler import Answer, Sampler
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.slots import Slots
from tests.test_batch import assert_same_answers
from tests.test_conditional import Fixed
from tests.test_scheduler import (
    Log,
    answers,
    assert_idle,
    assert_undisturbed,
    by_ticket,
    some_requests,
)


@pytest.fixture(scope="module", params=["llama", "mamba"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Iterator[Model]:
    """One with cells that can be cut, and a recurrent one, which forgets all or nothing."""
    options = {"llama": {"n_layer": 6}, "mamba": {"file_type": "F32"}}[request.param]
    with Model.load(tiny_model(request.param, **options), threads=1) as model:
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

    def __init__(self, at: int, *files: str) -> None:
        self.left, self.files = at, files or self.FILES
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> AtLine | None:
        path = Path(frame.f_code.co_filename)
        if path.name not in self.files or path.parent.name != "runtime":
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
