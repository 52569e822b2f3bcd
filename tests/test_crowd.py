"""A crowd of requests of all kinds, at random moments: no slot lost, no leak, no crossed answer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import PromptTooLongError
from alignez_edge.interventions.exact import exact_edit
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Completion, Given, Request, Sampling
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter
from tests.test_batch import assert_same_answers
from tests.test_scheduler import Log, assert_idle, some_requests, steering


class Odd(Exception):
    """What goes wrong in a request of a caller's own."""


class BySign:
    """A `Conditional` that steers one way or the other by the state that it sees, or not at all."""

    layers = (1, 3)
    tensor: Literal["l_out"] = "l_out"

    def __init__(self, model: Model, seed: int, fails: bool) -> None:
        self._injection, self._fails = steering(model, seed), fails

    def at(self, states: FloatArray) -> Injection | None:
        if self._fails:
            raise Odd
        at = states[3, 0] / np.abs(states[3]).max()
        if abs(at) < 0.01:
            return None
        sign = np.float32(np.sign(at))
        return Injection(sign * self._injection.deciding, sign * self._injection.answer)


class Favours:
    """A `LogitEditor` that moves some tokens, and fails at its `fails_at`-th call."""

    def __init__(self, seed: int, fails_at: int) -> None:
        rng = np.random.default_rng(seed)
        self._tokens = rng.choice(200, 20, replace=False)
        self._amounts = rng.standard_normal(20).astype(np.float32)
        self._left = fails_at

    def change(self, hidden: FloatArray, logits: FloatArray) -> tuple[Any, FloatArray]:
        self._left -= 1
        if not self._left:
            raise Odd
        return self._tokens, self._amounts


class Rows:
    """A reader of given answers that wants every row once, in order."""

    def __init__(self, fails_at: int) -> None:
        self.places: list[int] = []
        self._fails_at = fails_at

    def __call__(self, context: Context, entry: int, place: int) -> None:
        if place == self._fails_at:
            raise Odd
        assert np.isfinite(context.logits(entry)).all()
        self.places.append(place)


class Crowd:
    """Requests of all kinds, drawn at random."""

    def __init__(self, model: Model, seed: int) -> None:
        self._model, self._rng = model, np.random.default_rng(seed)
        self._beginnings = [self._tokens(n) for n in (0, 0, 5, 40, 90)]
        self.edits = model.facts.architecture != "mamba"

    def _tokens(self, n: int) -> list[int]:
        return self._rng.integers(1, 200, n).tolist()

    def _one_in(self, n: int) -> bool:
        return not self._rng.integers(n)

    def request(self, index: int) -> tuple[Request, bool]:
        """A request, and whether it will fail if it gets so far."""
        rng = self._rng
        tokens = self._beginnings[rng.integers(5)] + self._tokens(int(rng.integers(1, 25)))
        n = int(rng.integers(0, 12))
        stop = (chr(int(rng.integers(97, 123))),) if self._one_in(3) else ()
        settings = Sampling(temperature=0, max_tokens=n, min_tokens=n, stop=stop)
        request = Request(tokens, settings, index)
        kind = rng.choice(["plain", "static", "static", "by sign", "by sign", "edit", "logits"])
        fails = self._one_in(12) and n > 1
        if self._one_in(6):
            last = int(rng.integers(0, n + 1)) if fails else -1
            own = steering(self._model, index) if self._one_in(2) else None
            given = Given(self._tokens(n), Rows(last))
            return replace(request, given=given, steering=own), fails
        if self._one_in(5):
            request = replace(request, capture="kqv_out" if self.edits else "l_out")
        return self._steered(request, str(kind), fails)

    def _steered(self, request: Request, kind: str, fails: bool) -> tuple[Request, bool]:
        own: Injection | Conditional | None = None
        if kind == "by sign":
            own = BySign(self._model, request.index, fails)
        elif kind == "static":
            own = steering(self._model, request.index)
        elif kind == "edit" and self.edits:
            own = replace(steering(self._model, request.index), deciding_edits=self._edit(3.0))
            own = replace(own, answer_edits=own.deciding_edits if self._one_in(2) else ())
        elif kind == "logits":
            editor = Favours(request.index, 2 if fails else 0)
            zero = np.zeros((self._model.n_layer, self._model.n_embd), np.float32)
            own = Injection(zero, zero, logit_edits=((editor, 1.0),))
            return replace(request, steering=own), fails
        return replace(request, steering=own), fails and kind == "by sign"

    def _edit(self, strength: float) -> tuple[tuple[Adapter, float], ...]:
        edit = Edit({2: LayerEdit.swap(*self._rng.standard_normal((2, self._model.n_embd)))})
        made = exact_edit(self._model.gguf, edit)
        return ((Adapter(self._model, made.adapter), strength),)


class Balance:
    """How many of llama.cpp's objects are made and not yet freed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: tuple[str, str]) -> None:
        self.alive: dict[str, int] = {}
        for makes, frees in names:
            self.alive[makes] = 0
            for name, change in ((makes, 1), (frees, -1)):
                monkeypatch.setattr(cpp, name, self._counted(makes, getattr(cpp, name), change))

    def _counted(self, kind: str, real: Callable[..., Any], change: int) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.alive[kind] += change
            return real(*args)

        return counted


def resident() -> int:
    """Bytes of memory that this process has; 0 where nobody tells."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * 4096 if path.exists() else 0


def live(
    model: Model, scheduler: Scheduler, n: int, seed: int
) -> tuple[dict[int, tuple[Request, Completion]], list[int]]:
    """Send a crowd of `n` through a scheduler; what was answered of some that do not fail, and the
    memory after every hundred requests."""
    rng, crowd, log = np.random.default_rng(seed), Crowd(model, seed), Log()
    fate: dict[int, tuple[Request, bool]] = {}
    cancelled: dict[int, Completion] = {}
    answered: dict[int, tuple[Request, Completion]] = {}
    memory = []

    def settle(ticket: int) -> None:
        request, fails = fate.pop(ticket)
        gone = ticket in cancelled
        if gone:
            done = cancelled.pop(ticket)
            assert done.text.startswith(log.text.pop(ticket, ""))
        elif ticket in log.errors:
            assert fails and isinstance(log.errors.pop(ticket), Odd)
            return
        else:
            assert not fails or request.sampling.stop  # which may end it before
            done = log.done[ticket]
            assert log.text.pop(ticket) == done.text
        assert done.index == request.index and done.prompt_tokens == len(request.tokens)
        if request.given is not None:
            places = getattr(request.given.on_row, "places", None)
            wanted = list(range(len(request.given.tokens) + 1))
            assert places is not None and places == wanted[: len(places)]
            assert gone or places == wanted
        elif ticket % 8 == 0:  # all would take memory
            answered[ticket] = request, done
        log.done.pop(ticket, None)

    n_made = 0
    while n_made < n or fate:
        for _ in range(min(int(rng.integers(0, 6)), n - n_made)):
            request, fails = crowd.request(n_made)
            n_made += 1
            if n_made % 100 == 0:
                gc.collect()
                memory.append(resident())
            if rng.random() < 0.02:
                with pytest.raises(PromptTooLongError):
                    scheduler.submit(replace(request, tokens=[1] * 700))
            fate[scheduler.submit(request)] = request, fails
        if fate and rng.random() < 0.15:
            ticket = int(rng.choice(list(fate)))
            said = scheduler.cancel(ticket)
            assert said is not None
            cancelled[ticket] = said
            settle(ticket)
        log.take(scheduler.step())
        for ticket in [t for t in fate if t in log.done or t in log.errors]:
            settle(ticket)
    return answered, memory


def assert_own_answers(
    model: Model, answered: dict[int, tuple[Request, Completion]], n: int, seed: int
) -> None:
    """A sample of the answers is what a fresh session gives."""
    rng = np.random.default_rng(seed)
    for ticket in rng.permutation(sorted(answered))[:n].tolist():
        request, done = answered[ticket]
        with Session(model) as session:
            try:
                list(session.stream(request.tokens, request.sampling, request.steering))
            except Odd:  # it was cancelled before it could fail
                assert done.finish_reason == "interrupted"
                continue
            assert session.completion is not None
            own = replace(session.completion, index=request.index)
        length = min(len(own.tokens), len(done.tokens))
        if done.tokens[:length] == own.tokens[:length] and done.finish_reason != "interrupted":
            assert (done.text, done.finish_reason) == (own.text, own.finish_reason)
        one, other = (replace(x, tokens=x.tokens[:length]) for x in (done, own))
        assert_same_answers(model, [request], [one], [other])


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Iterator[Model]:
    with Model.load(tiny_model("llama"), threads=1) as model:
        yield model


@pytest.mark.parametrize(("grouped", "n", "sample"), [(False, 1000, 100), (True, 250, 40)])
def test_a_crowd(
    model: Model, monkeypatch: pytest.MonkeyPatch, grouped: bool, n: int, sample: int
) -> None:
    objects = Balance(
        monkeypatch,
        ("llama_sampler_chain_init", "llama_sampler_free"),
        ("llama_adapter_lora_init_from_file_ptr", "llama_adapter_lora_free"),
    )
    with Scheduler(model, n_slots=12, n_cells=1024, n_batch=128, grouped=grouped) as scheduler:
        answered, memory = live(model, scheduler, n, seed=1)
        assert_idle(scheduler)
        assert objects.alive["llama_sampler_chain_init"] == 0
        if n == 1000 and memory[-1]:
            assert max(memory[3:]) - memory[2] < 4 << 20
        # Every slot can be used again, for as much as fits.
        requests = some_requests(model, 12)
        again = sorted(scheduler.complete(requests), key=lambda completion: completion.index)
        with Scheduler(model, n_slots=12) as fresh:
            own = sorted(fresh.complete(requests), key=lambda completion: completion.index)
        assert_same_answers(model, requests, again, own)
        assert_idle(scheduler)
    assert_own_answers(model, answered, sample, seed=2)
    del answered, scheduler, fresh
    gc.collect()
    assert set(objects.alive.values()) == {0}


def test_a_crowd_before_a_recurrent_model(tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("mamba", file_type="F32"), threads=1) as model:
        with Scheduler(model, n_slots=6, n_cells=1024, n_batch=64) as scheduler:
            answered, _ = live(model, scheduler, 150, seed=3)
            assert_idle(scheduler)
        assert_own_answers(model, answered, 40, seed=4)
