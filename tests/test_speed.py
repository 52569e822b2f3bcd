"""Measuring speed: what is timed, in which order, and what the times mean."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.session import Session
from alignez_edge.speed.measure import LEAST, Spread, builtin_steering, injections, measure, plan
from alignez_edge.speed.workload import (
    SHORT,
    answer,
    peak_rss,
    prefill,
    random_injection,
    random_prompts,
    timed,
    turn_jobs,
)
from alignez_edge.steering.steering import Steering
from tests.profiles import random_profile


class Looking:
    """A steering that depends on the prompt, though it always comes to the same."""

    tensor: Literal["l_out", "ffn_out"] = "l_out"
    layers: Collection[int] = (2,)

    def __init__(self, injection: Injection) -> None:
        self._injection = injection

    def at(self, states: FloatArray) -> Injection:
        assert states[2].any()
        return self._injection

    def needs_reference(self) -> bool:
        return False


class Counted:
    """How many tokens, and how many logits, contexts have been asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = self.outputs = 0
        real = Context.decode

        def decode(
            context: Context,
            tokens: list[int],
            places: object,
            sequences: object,
            want: list[bool],
            *plan: object,
        ) -> None:
            self.tokens += len(tokens)
            self.outputs += sum(want)
            real(context, tokens, places, sequences, want, *plan)  # type: ignore[arg-type]

        monkeypatch.setattr(Context, "decode", decode)


# What is timed


def test_jobs_are_taken_in_turn() -> None:
    ran: list[str] = []
    told: list[tuple[int, int]] = []

    def own() -> float:
        ran.append("b")
        return 2.5

    seconds = timed([lambda: ran.append("a"), own], 3, lambda *of: told.append(of))
    assert ran == ["a", "b"] * 3
    assert [len(column) for column in seconds] == [3, 3]
    assert seconds[1] == [2.5] * 3 and all(0 <= s < 1 for s in seconds[0])
    assert told == [(i, 6) for i in range(1, 7)]


def test_answers_have_their_length(llama_model: Model) -> None:
    injection, (prompt,) = random_injection(llama_model), random_prompts(llama_model, 1, 8)
    with Session(llama_model) as session:
        for job, length in zip(
            turn_jobs([(session, None), (session, injection)], prompt, 9),
            (SHORT, SHORT, 9, 9),
            strict=True,
        ):
            job()
            assert session.completion is not None
            assert len(session.completion.tokens) == length
        answer(session, None, prompt, 1)


def test_the_bare_prefill_is_what_capture_rides_on(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    prompts = random_prompts(llama_model, 11, 20)
    texts = [(p[:6], p[6 : 10 + i]) for i, p in enumerate(prompts)]
    n_tokens = sum(len(a) + len(b) for a, b in texts)
    n_read = sum(1 + len(b) for _, b in texts)
    outputs = []
    for job in (
        lambda: prefill(llama_model, texts),
        lambda: prefill(llama_model, texts, like_capture=True),
        lambda: list(capture(llama_model, texts)),
    ):
        counted.tokens = counted.outputs = 0
        job()
        assert counted.tokens == n_tokens
        outputs.append(counted.outputs)
    assert outputs == [2, n_read, n_read]


def test_random_work_is_the_same_every_time(llama_model: Model) -> None:
    assert random_prompts(llama_model, 3, 5) == random_prompts(llama_model, 3, 5)
    injection = random_injection(llama_model)
    assert not injection.is_zero() and injection.deciding[1:].all()
    np.testing.assert_array_equal(injection.deciding, -injection.answer)
    assert 10 < peak_rss() < 1e6


# How much of it


@given(
    cost=st.floats(1e-6, 1e4),
    seconds=st.floats(-10, 1e4),
    tokens=st.integers(LEAST, 4096),
    rounds=st.integers(1, 100),
)
def test_a_plan_keeps_its_time(cost: float, seconds: float, tokens: int, rounds: int) -> None:
    n_tokens, n_rounds = plan(cost, seconds, tokens, rounds)
    assert LEAST <= n_tokens <= tokens and 1 <= n_rounds <= rounds
    least = n_rounds == 1 and n_tokens == LEAST  # which is made in any case
    assert least or n_rounds * cost * n_tokens / LEAST <= max(seconds, 0) * (1 + 1e-9)
    if n_rounds < min(rounds, 3):
        assert n_tokens == LEAST, "rounds come before tokens"


def test_a_plan_with_time_to_spare_takes_all() -> None:
    assert plan(0.01, 10.0, 64, 15) == (64, 15)


# What comes out


def test_spreads() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert Spread.of(iter([2.0])) == Spread(2.0, 2.0, 2.0, 1)


def test_everything_is_measured(llama_model: Model) -> None:
    steps: list[tuple[str, int, int]] = []
    injection = random_injection(llama_model)
    speed = measure(
        llama_model,
        {"fixed": injection, "looking": Looking(injection)},
        tokens=12,
        rounds=3,
        width=3,
        on_progress=lambda *step: steps.append(step),
    )
    assert (speed.tokens, speed.batch_tokens, speed.width) == (12, 12, 3)
    assert list(speed.steered) == ["fixed", "looking"]
    spreads = [speed.decode, speed.one_by_one, speed.batch, speed.batch_gain]
    spreads += [speed.prefill, speed.capture_time]
    for steered in speed.steered.values():
        spreads += [steered.decode, steered.against_plain]
        assert steered.added_ms.rounds == 3
    for spread in spreads:
        assert spread.rounds == 3
        assert 0 < spread.low <= spread.median <= spread.high < 1e9
    assert speed.resident_mb > 10
    assert list(dict.fromkeys(name for name, _, _ in steps)) == [
        "warming up",
        "answers",
        "batches",
        "reading",
    ]
    assert steps[-1] == ("reading", 6, 6)


def test_without_time_it_is_measured_once(llama_model: Model) -> None:
    speed = measure(llama_model, {}, tokens=64, seconds=1e-6, width=2)
    assert (speed.tokens, speed.batch_tokens) == (LEAST, LEAST)
    assert speed.decode.rounds == speed.batch.rounds == speed.prefill.rounds == 1
    assert speed.steered == {}


def test_small_windows(tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_ctx=40), threads=1) as model:
        assert measure(model, {}, tokens=512, rounds=1, width=2).tokens == 31
    with (
        Model.load(tiny_model("llama", n_ctx=16), threads=1) as model,
        pytest.raises(BadInputError, match="window of 16 tokens"),
    ):
        measure(model, {})


# What steers


def test_each_way_that_a_profile_allows(llama_model: Model) -> None:
    profile = random_profile(llama_model)
    found, reasons = injections(llama_model, profile * 1.0)
    assert list(found) == ["control-vector"]
    assert len(reasons) == 1 and "exact" in reasons[0]
    found, reasons = injections(llama_model, Steering(((profile, 1.0),), "control-vector"))
    assert (list(found), reasons) == (["control-vector"], [])
    with pytest.raises(BadInputError, match="exact"):
        injections(llama_model, Steering(((profile, 1.0),), "exact"))
    with pytest.raises(BadInputError, match="nothing to measure"):
        injections(llama_model, profile * 0.0)


def test_the_builtin_profile_that_fits(
    llama_model: Model,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alignez_edge.profile.library.builtin_folder", lambda: tmp_path)
    assert builtin_steering(llama_model) is None
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with Model.load(tiny_model("llama", n_layer=5, seed=3), threads=1) as other:
        random_profile(other).save(tmp_path / "other.gguf")
    random_profile(llama_model, name="polite").save(tmp_path / "polite.gguf")
    steering = builtin_steering(llama_model)
    assert steering is not None
    assert steering.describe() == [{"profile": "polite", "strength": 1.0}]
