"""Many prompts at once: as if each ran alone, in any company."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Completion, Request, Sampling
from alignez_edge.runtime.rows import RowPlan
from alignez_edge.runtime.scheduler import Event, Scheduler
from alignez_edge.runtime.score import Scorer
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.work import Span
from tests.test_session import injection_for

PREAMBLE = "Answer the question below politely and in few words. "


def requests_for(model: Model, n: int, **options: object) -> list[Request]:
    """Prompts of different lengths behind one preamble, answers of different lengths."""
    found = []
    for i in range(n):
        text = PREAMBLE + f"Question {i}: " + "why and " * (i % 5) + "how?"
        settings = {"temperature": 0.0, "max_tokens": 4 + i % 9, "min_tokens": 4 + i % 9}
        sampling = Sampling(**{**settings, **options}, seed=i)  # type: ignore[arg-type]
        found.append(Request(model.tokenize(text, begin=True), sampling, i))
    return found


def by_index(completions: Iterator[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: completion.index)


def assert_same_answers(
    model: Model,
    requests: list[Request],
    a: list[Completion],
    b: list[Completion],
    injection: Injection | None = None,
    tolerance: float = 1e-2,
) -> None:
    """The same greedy answers, or at the first other token a choice within rounding.

    `injection` is what steered the requests that brought no steering of their own."""
    assert [c.index for c in a] == [c.index for c in b] == [r.index for r in requests]
    with Scorer(model) as scorer:
        for request, one, other in zip(requests, a, b, strict=True):
            pairs = list(zip(one.tokens, other.tokens, strict=True))
            split = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
            if split is not None:
                answer = one.tokens[: split + 1]
                (rows,) = scorer.log_probs(request.tokens, answer, [request.steering or injection])
                x, y = pairs[split]
                assert abs(rows[split, x] - rows[split, y]) < tolerance


@pytest.mark.parametrize("steered", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen2moe"])
def test_a_batch_gives_what_a_session_gives(
    tiny_model: Callable[..., Path], architecture: str, steered: bool
) -> None:
    with Model.load(tiny_model(architecture, n_layer=6), threads=1) as model:
        injection = injection_for(model) if steered else None
        requests = requests_for(model, 12)
        batch = by_index(generate_batch(model, requests, injection=injection, width=5))
        alone = []
        with Session(model) as session:
            for request in requests:
                list(session.stream(request.tokens, request.sampling, injection))
                assert session.completion is not None
                alone.append(Completion(**{**session.completion.__dict__, "index": request.index}))
        assert_same_answers(model, requests, batch, alone, injection)
        assert [c.prompt_tokens for c in batch] == [len(r.tokens) for r in requests]


@pytest.mark.parametrize("steered", [False, True])
def test_order_and_width_do_not_matter(llama_model: Model, steered: bool) -> None:
    injection = injection_for(llama_model) if steered else None
    requests = requests_for(llama_model, 11)
    expected = by_index(generate_batch(llama_model, requests, injection=injection, width=4))
    for order, width in ((requests[::-1], 4), (requests, 1), (requests[::2] + requests[1::2], 16)):
        found = by_index(generate_batch(llama_model, order, injection=injection, width=width))
        assert_same_answers(llama_model, requests, expected, found, injection)


def test_the_same_batch_gives_the_same_answers(llama_model: Model) -> None:
    requests = requests_for(llama_model, 10, temperature=1.0)
    runs = [by_index(generate_batch(llama_model, requests, width=4)) for _ in range(2)]
    assert [c.tokens for c in runs[0]] == [c.tokens for c in runs[1]]


def test_drawing_in_threads_changes_nothing(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_for(llama_model, 10, temperature=1.0)
    alone = by_index(generate_batch(llama_model, requests, width=4))
    monkeypatch.setattr("alignez_edge.runtime.passes._WORTH_THREADS", 1)
    threads = by_index(generate_batch(llama_model, requests, width=4))
    assert [c.tokens for c in threads] == [c.tokens for c in alone]


def test_drawing_in_threads_waits_for_the_rows_of_a_recurrent_model(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.load(tiny_model("mamba", file_type="F32", n_vocab=45_000), threads=2) as model:
        rng = np.random.default_rng(1)
        requests = [
            Request(
                rng.integers(1, 200, rng.integers(3, 40)).tolist(),
                Sampling(max_tokens=int(rng.integers(2, 12)), seed=i),
                i,
            )
            for i in range(48)
        ]
        monkeypatch.setattr("alignez_edge.runtime.passes._WORTH_THREADS", 1 << 60)
        alone = by_index(generate_batch(model, requests, width=12))
        monkeypatch.undo()
        for _ in range(5):
            threads = by_index(generate_batch(model, requests, width=12))
            assert [c.tokens for c in threads] == [c.tokens for c in alone]


def test_each_request_has_its_own_seed(llama_model: Model) -> None:
    tokens = llama_model.tokenize(PREAMBLE, begin=True)
    hot = Sampling(temperature=2, max_tokens=12, min_tokens=12)
    requests = [Request(tokens, hot.with_seed(i % 3), i) for i in range(6)]
    answers = [c.tokens for c in by_index(generate_batch(llama_model, requests, width=6))]
    assert len(set(answers)) == 3
    assert answers[:3] == answers[3:]


def test_a_preamble_is_computed_once(llama_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    real = Context.decode

    def decode(self: Context, tokens: Sequence[int], *rest: Any) -> None:
        nonlocal computed
        computed += len(tokens)
        real(self, tokens, *rest)

    monkeypatch.setattr(Context, "decode", decode)
    requests = requests_for(llama_model, 20)
    shared = len(llama_model.tokenize(PREAMBLE, begin=True))
    for injection in (None, injection_for(llama_model)):
        computed = 0
        done = list(generate_batch(llama_model, requests, injection=injection, width=4))
        # Every prompt token once, every answer token but the last of each once.
        everything = sum(len(r.tokens) for r in requests) + sum(len(c.tokens) - 1 for c in done)
        assert computed <= everything - 19 * shared


def test_requests_are_drawn_lazily_and_places_refilled(llama_model: Model) -> None:
    drawn = 0

    def stream() -> Iterator[Request]:
        nonlocal drawn
        for request in requests_for(llama_model, 30):
            drawn += 1
            yield request

    finished = 0
    for _ in generate_batch(llama_model, stream(), width=4):
        finished += 1
        assert drawn <= finished + 3  # as many as run, one of which has just finished
    assert finished == drawn == 30


def test_progress_counts_answers_and_tokens(llama_model: Model) -> None:
    seen: list[tuple[int, int]] = []
    requests = requests_for(llama_model, 7)
    done = list(
        generate_batch(llama_model, requests, width=3, on_progress=lambda *at: seen.append(at))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (7, sum(len(c.tokens) for c in done))


@pytest.mark.parametrize("steered", [False, True])
def test_few_cells_only_mean_fewer_at_a_time(
    llama_model: Model, steered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import batch as module

    monkeypatch.setattr(module, "_MOST_CELLS", 1)
    injection = injection_for(llama_model) if steered else None
    requests = [
        replace(request, tokens=[request.index + 1, *request.tokens])  # nothing is shared
        for request in requests_for(llama_model, 8, max_tokens=12, min_tokens=12)
    ]
    room = max(len(r.tokens) for r in requests) + 12
    most = most_at_a_time(monkeypatch)
    done = by_index(
        generate_batch(
            llama_model, requests, injection=injection, width=8, n_ctx_per_sequence=2 * room
        )
    )
    assert [c.index for c in done] == list(range(8))
    assert 1 <= max(most) <= 3


def test_a_shared_preamble_takes_its_cells_once(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import batch as module

    monkeypatch.setattr(module, "_MOST_CELLS", 1)
    preamble = llama_model.tokenize(4 * PREAMBLE, begin=True)
    settings = Sampling(temperature=0, max_tokens=4, min_tokens=4)
    requests = [Request([*preamble, i + 1, 1], settings, i) for i in range(20)]
    most = most_at_a_time(monkeypatch)
    room = len(preamble) + 6 * 9
    done = by_index(generate_batch(llama_model, requests, width=8, n_ctx_per_sequence=room))
    assert max(most) == 8
    wide = by_index(generate_batch(llama_model, requests, width=2))
    assert_same_answers(llama_model, requests, done, wide, None)


def most_at_a_time(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with how many sequences run together."""
    most: list[int] = []
    real = Scheduler._planned

    def planned(self: Scheduler) -> list[list[Span]]:
        most.append(self.n_running)
        return real(self)

    monkeypatch.setattr(Scheduler, "_planned", planned)
    return most


@pytest.mark.parametrize("steered", [False, True])
@pytest.mark.parametrize("longest", [6, 40])
@pytest.mark.parametrize("seed", range(4))
def test_no_more_cells_are_taken_than_are_spoken_for(
    llama_model: Model, seed: int, longest: int, steered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import batch as module

    rng = np.random.default_rng(seed)
    beginnings: list[list[int]] = [[]]
    for _ in range(12):  # a tree of prompts that share long and short beginnings
        more = rng.integers(1, 200, rng.integers(1, longest)).tolist()
        beginnings.append([*beginnings[rng.integers(len(beginnings))], *more])
    requests = []
    for i in range(60):
        tokens = beginnings[rng.integers(len(beginnings))] + rng.integers(1, 200, 3).tolist()
        n = int(rng.integers(1, 20))
        requests.append(Request(tokens, Sampling(temperature=0, max_tokens=n, min_tokens=n), i))
    room = max(len(r.tokens) for r in requests) + 20
    monkeypatch.setattr(module, "_MOST_CELLS", int(room * rng.uniform(1, 3)))
    ledger = Ledger(monkeypatch)
    done = by_index(
        generate_batch(
            llama_model,
            requests,
            injection=injection_for(llama_model) if steered else None,
            width=8,
            n_ctx_per_sequence=room,
        )
    )
    assert [len(c.tokens) for c in done] == [r.sampling.max_tokens for r in requests]
    assert ledger.most > room / 2


class Ledger:
    """Follows which cells of the cache each sequence has, and compares with the mirror of them and
    with what the running requests may still take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self._cells: dict[int, dict[int, object]] = {}
        share, remove, decode = Context.share, Context.remove, Context.decode
        step = Scheduler.step

        def shared(context: Context, source: int, target: int, p0: int, p1: int) -> None:
            mine = self._cells.setdefault(target, {})
            assert not set(range(p0, p1)) & set(mine)
            mine |= {at: self._cells[source][at] for at in range(p0, p1)}
            share(context, source, target, p0, p1)

        def removed(context: Context, sequence: int, p0: int = 0, p1: int = -1) -> bool:
            assert p1 == -1
            mine = self._cells.get(sequence, {})
            self._cells[sequence] = {at: cell for at, cell in mine.items() if at < p0}
            return remove(context, sequence, p0, p1)

        def decoded(
            context: Context,
            tokens: Sequence[int],
            positions: Sequence[int],
            sequences: Sequence[int],
            want_logits: Sequence[bool],
            plan: RowPlan,
        ) -> None:
            for at, sequence in zip(positions, sequences, strict=True):
                mine = self._cells.setdefault(sequence, {})
                assert at not in mine and (at == 0 or at - 1 in mine)
                mine[at] = object()
            assert self.taken <= context.n_ctx
            decode(context, tokens, positions, sequences, want_logits, plan)

        def stepped(scheduler: Scheduler) -> list[Event]:
            events = step(scheduler)
            slots = scheduler._slots
            n_free, n_cells = slots._cells.n_free, scheduler._context.n_ctx
            assert self.taken == n_cells - n_free
            assert sum(s.need - len(s.cells) for s in slots._slots if not s.idle) <= n_free
            for slot in slots._slots:
                assert len(slot.tokens) == len(slot.cells) == len(self._cells[slot.sequence])
            self.most = max(self.most, self.taken)
            return events

        monkeypatch.setattr(Context, "share", shared)
        monkeypatch.setattr(Context, "remove", removed)
        monkeypatch.setattr(Context, "decode", decoded)
        monkeypatch.setattr(Scheduler, "step", stepped)

    @property
    def taken(self) -> int:
        return len({cell for mine in self._cells.values() for cell in mine.values()})


def test_the_room_of_a_sequence_does_not_depend_on_others(llama_model: Model) -> None:
    requests = requests_for(llama_model, 6, max_tokens=400, min_tokens=400)
    longest = max(len(r.tokens) for r in requests)
    done = by_index(generate_batch(llama_model, requests, width=6, n_ctx_per_sequence=longest + 5))
    assert {c.finish_reason for c in done} == {"context"}
    assert [c.prompt_tokens + len(c.tokens) for c in done] == [longest + 5] * 6


def test_a_prompt_that_never_fits_comes_after_the_running_answers(llama_model: Model) -> None:
    requests = requests_for(llama_model, 5)
    requests[3] = Request([1] * 600, Sampling(), 3)
    done = []
    with pytest.raises(PromptTooLongError, match="prompt 3 has 600 tokens"):
        for completion in generate_batch(llama_model, requests, width=2):
            done.append(completion.index)
    assert sorted(done) == [0, 1, 2]


def test_a_failing_iterator_comes_after_the_running_answers(llama_model: Model) -> None:
    def stream() -> Iterator[Request]:
        yield from requests_for(llama_model, 6)
        raise OSError("the file broke off")

    done = []
    with pytest.raises(OSError, match="broke off"):
        for completion in generate_batch(llama_model, stream(), width=4):
            done.append(completion.index)
    assert sorted(done) == list(range(6))


def test_edges(llama_model: Model) -> None:
    assert list(generate_batch(llama_model, [])) == []
    with pytest.raises(BadInputError, match="width 0"):
        generate_batch(llama_model, [], width=0)
    with pytest.raises(BadInputError, match="prompt 7 is empty"):
        list(generate_batch(llama_model, [Request([], Sampling(), 7)]))
    (short,) = generate_batch(llama_model, [Request([1], Sampling(max_tokens=0))])
    assert (short.tokens, short.finish_reason) == ((), "length")
    one_token = Sampling(temperature=0, max_tokens=3, min_tokens=3)
    requests = [Request([i + 1], one_token, i) for i in range(3)]
    done = by_index(generate_batch(llama_model, requests, injection=injection_for(llama_model)))
    assert [len(c.tokens) for c in done] == [3, 3, 3]


def test_no_control_vector_is_set_without_an_injection(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import context as module

    def refuse(*args: object) -> None:
        raise AssertionError("a control vector was set")

    monkeypatch.setattr(module.cpp, "llama_set_adapter_cvec", refuse)
    zeros = np.zeros((llama_model.n_layer, llama_model.n_embd), np.float32)
    requests = requests_for(llama_model, 5)
    plain = by_index(generate_batch(llama_model, requests, width=2))
    zero = by_index(
        generate_batch(llama_model, requests, width=2, injection=Injection(zeros, zeros))
    )
    assert [c.tokens for c in plain] == [c.tokens for c in zero]


def test_closing_early_frees_the_context(llama_model: Model) -> None:
    batch = generate_batch(llama_model, requests_for(llama_model, 12), width=3)
    next(batch)
    batch.close()  # type: ignore[attr-defined]
    assert list(batch) == []
