"""What it costs that every request has its own steering: `python -m benchmarks.scheduler`.

Every figure is made of two things measured in one run, alternating, after a warm-up; the table
shows the median over the repetitions with its quartiles, and what is wanted. Prompts are random
tokens that share nothing, answers have a fixed length, and one scheduler that keeps nothing of
ended requests makes all the batches. Steering acts in every layer but the first.

- A batch is 16 requests at once: plain, with 16 different steerings, with 16 query-conditioned ones
  (a profile with a bank of 128 pairs of all these layers), and plain with the states of the answers
  read at every layer.
- llama.cpp's own server answers the same prompts from the same file, with as many threads and the
  same sampling, asked from 16 connections at once; each side idles while the other one works.
- A stream is one answer, timed from its fifth token on.
- A turn is a prompt that is 2 tokens longer than the one before, and an answer of two; three chats
  of the same prompts go on in turn: plain, with a steering that stays, and with another one every
  turn. The figure is what a turn takes above the plain one, where both read the same tokens. What a
  steering adds once does not depend on the length of a turn, but chance does: hence so short.
- In a real chat the prompt holds the answers, too. Steered ones are read again, plain, as is the
  token before them: what a turn takes longer to its first words by that stands beside the figures.
- `--requests N` puts N short requests through one scheduler on the demo model, in a process of its
  own, steered in all kinds of ways or not, some of them cancelled, some failing, and looks at the
  resident memory after a tenth of them and at the end.

Without `--model` the random 1 B llama of `benchmarks.runtime` is taken. Times need a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.calibration.free_running import TEMPERATURE
from alignez_edge.interventions.by_query import Recipe
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.modelfiles.names import PACKAGED, packaged_model
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.session import Session
from alignez_edge.speed.workload import SHORT, Job, answer, exact_length, random_prompts
from benchmarks.llamacpp import built, programs
from benchmarks.llamaserver import LlamaServer
from benchmarks.runtime import CACHE, N_PROMPT, WIDTH, Ratio, alternate, random_model, tables
from benchmarks.steering_report import insert
from benchmarks.turn import Sizes, random_bank
from tests.profiles import random_profile
from tests.tinymodels import FILE_TYPES

SERVER = "llama-server"
FIRST, GROWTH, TURNS, CHATS = 24, 2, 8, 4
"""Tokens of a chat's first prompt, those that each turn adds, turns of a chat, different chats."""
SAID = 24
"""Tokens of an answer that the next prompt holds."""
Steering = Injection | Conditional | None
WANTED = {
    "16 steerings / plain, batch of 16": (">=", 0.95),
    "query-conditioned / static, batch of 16": (">=", 0.8),
    "batch of 16 / llama-server, 16 at once": (">=", 0.9),
    "generating with capture / without (time)": ("<=", 1.03),
    "steered / plain decoding, one stream": (">=", 0.98),
    "what a steering that stays adds to a turn (ms)": ("<=", 0.5),
    "what another steering every turn adds to a turn (ms)": ("<=", 0.5),
    "resident memory at the end of the requests above that after a tenth (MB)": ("<=", 4.0),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="a GGUF file, or smollm2 (default: a random 1 B llama)")
    parser.add_argument("--type", choices=FILE_TYPES, default="Q4_K_M", help="the random llama's")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=48, help="tokens per answer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--requests", type=int, default=0, help="look at the memory of so many")
    parser.add_argument(
        "--server",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="build llama.cpp's server where it is missing (default: then leave it out)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--page", type=Path, help="put the tables between this file's markers")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.memory:
        with Model.demo(threads=1) as model:
            print(*resident_memory(model, options.requests))
        return
    rates, ratios = {}, {}
    with Model.load(_path(options.model, options.type), threads=options.threads) as model:
        name, threads = model.path.stem, model.threads
        program = _program(options.server)
        for part in (
            batches(model, options.tokens, options.repeat, program),
            stream(model, options.tokens, options.repeat),
            turns(model, options.repeat),
        ):
            rates.update(part[0])
            ratios.update(part[1])
    if options.requests:
        early, late = _memory_of(options.requests)
        rates[f"resident memory after {options.requests // 10:,} requests (MB)"] = early
        rates[f"resident memory after {options.requests:,} requests (MB)"] = late
        (what,) = (key for key in WANTED if key.startswith("resident"))
        ratios[what] = Ratio(late - early, late - early, late - early)
    if options.json:
        plain = {what: ratio._asdict() for what, ratio in ratios.items()}
        head = {"model": name, "threads": threads, "repeat": options.repeat}
        print(json.dumps({**head, **rates, **plain}))
        return
    found = tables({what: ratios[what] for what in WANTED if what in ratios}, WANTED, rates)
    text = f"{name}, {threads} threads, median of {options.repeat}\n\n{found}"
    if options.page:
        insert(text, options.page, f"scheduler-{name}")
    print(text)


Figures = tuple[dict[str, float], dict[str, Ratio]]
"""What stands beside the figures, and the figures themselves."""


def batches(model: Model, n_tokens: int, repeat: int, server: Path | None) -> Figures:
    """16 answers at once: plain, steered, query-conditioned, read, and those of llama-server."""
    prompts = random_prompts(model, WIDTH, N_PROMPT)
    sampling = replace(exact_length(n_tokens), temperature=TEMPERATURE, top_p=1.0)  # as for pairs
    conditional = query_conditioned(model)
    n_ctx = N_PROMPT + n_tokens
    with ExitStack() as stack:
        scheduler = stack.enter_context(
            Scheduler(model, n_slots=WIDTH, n_ctx=n_ctx, n_cells=WIDTH * n_ctx, keep=0)
        )
        batch = partial(_batch, scheduler, prompts, sampling)
        jobs: list[Job] = [
            batch,
            partial(batch, injections(model, WIDTH)),
            partial(batch, [conditional] * WIDTH),
            partial(batch, capture="l_out"),
        ]
        idle: list[float] = []
        if server is not None:
            other = stack.enter_context(
                LlamaServer(
                    server, model.path, n_slots=WIDTH, n_ctx=n_ctx + 1, threads=model.threads
                )
            )
            jobs[0] = partial(_beside, other, batch, idle)
            jobs.append(partial(_served, other, prompts, sampling))
        plain, steered, conditioned, read, *served = alternate(repeat, *jobs)
    rates = {"batch of 16 (tokens/s)": WIDTH * n_tokens / statistics.median(plain)}
    ratios = {
        "16 steerings / plain, batch of 16": Ratio.of(plain, steered),
        "query-conditioned / static, batch of 16": Ratio.of(steered, conditioned),
        "generating with capture / without (time)": Ratio.of(read, plain),
    }
    if served:
        ratios["batch of 16 / llama-server, 16 at once"] = Ratio.of(served[0], plain)
        rates["llama-server, 16 at once (tokens/s)"] = (
            WIDTH * n_tokens / statistics.median(served[0])
        )
    if idle:
        rates["what llama-server computes meanwhile (share of a core)"] = statistics.mean(idle)
    return rates, ratios


def stream(model: Model, n_tokens: int, repeat: int) -> Figures:
    """One answer at a time, plain and steered."""
    (prompt,) = random_prompts(model, 1, N_PROMPT)
    (steering,) = injections(model, 1)
    with Scheduler(model, n_slots=1, n_ctx=N_PROMPT + n_tokens) as scheduler:
        jobs = [partial(_decoding, scheduler, prompt, n_tokens, s) for s in (None, steering)]
        plain, steered = alternate(4 * repeat + 1, *jobs)
    rate = (n_tokens - SHORT) / statistics.median(plain)
    ratio = Ratio.of(plain, steered)
    return {"plain decode (tokens/s)": rate}, {"steered / plain decoding, one stream": ratio}


def turns(model: Model, repeat: int) -> Figures:
    """Chats of short turns: plain, with one steering, with another one every turn."""
    texts = random_prompts(model, CHATS, FIRST + TURNS * GROWTH)
    own = injections(model, 5)
    kinds: list[Sequence[Steering]] = [[None], own[:1], own]
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session(model, n_ctx=_window(model))) for _ in range(3)]
        chats = [
            Chat(session, texts, steerings).turn
            for session, steerings in zip(sessions, kinds, strict=True)
        ]
        plain, stays, changes = alternate(4 * CHATS * TURNS * repeat, *chats)
        talks = [Chat(sessions[0], texts, [None]), Chat(sessions[1], texts, own[:1])]
        first, first_steered = alternate(TURNS * repeat, *(talk.quoting_turn for talk in talks))
        writing = seconds_of_injecting([chats[2]] * (TURNS * repeat))
    again = statistics.median(1000 * (b - a) for a, b in zip(first, first_steered, strict=True))
    return (
        {
            "a plain turn (ms)": 1000 * statistics.median(plain),
            "writing the control vectors of such a turn (ms of processor time)": 1000
            * statistics.median(writing),
            f"reading a steered answer of {SAID} tokens again (ms)": again,
        },
        {
            "what a steering that stays adds to a turn (ms)": Ratio.more(stays, plain, 1000),
            "what another steering every turn adds to a turn (ms)": Ratio.more(
                changes, plain, 1000
            ),
        },
    )


def seconds_of_injecting(turns: Iterable[Job]) -> list[float]:
    """Processor time that each turn spends in setting control vectors: all that another steering
    adds to a turn once, and far less than turns differ from each other by chance."""
    real, spent, found = Context.set_control_vector, 0.0, []

    def set_timed(context: Context, vectors: FloatArray | None) -> None:
        nonlocal spent
        begin = time.thread_time()
        real(context, vectors)
        spent += time.thread_time() - begin

    Context.set_control_vector = set_timed  # type: ignore[assignment, method-assign]
    try:
        for turn in turns:
            spent = 0.0
            turn()
            found.append(spent)
    finally:
        Context.set_control_vector = real  # type: ignore[method-assign]
    return found


class Chat:
    """A conversation on `texts`, one after the other, each growing from turn to turn; the
    steerings take turns as well."""

    def __init__(
        self, session: Session, texts: Sequence[list[int]], steerings: Iterable[Steering]
    ) -> None:
        self._session = session
        self._steerings = itertools.cycle(steerings)
        self._texts = itertools.cycle((text, turn) for text in texts for turn in range(TURNS))
        self._before: list[int] = []

    def turn(self) -> None:
        """A short answer to a prompt that holds no answers, nor the prompts' last tokens, which are
        read steered: plain and steered turns read the same tokens."""
        text, turn = next(self._texts)
        prompt = [*text[: FIRST + GROWTH * turn], text[-1]]
        answer(self._session, next(self._steerings), prompt, 2)

    def quoting_turn(self) -> float:
        """Seconds to the first words of an answer to a prompt that holds all answers so far."""
        text, turn = next(self._texts)
        start = FIRST + GROWTH * (turn - 1) if turn else 0
        prompt = [*self._before, *text[start : FIRST + GROWTH * turn]] if turn else text[:FIRST]
        begin = time.perf_counter()
        pieces = self._session.stream(prompt, exact_length(SAID), next(self._steerings))
        next(pieces, "")
        seconds = time.perf_counter() - begin
        for _ in pieces:
            pass
        done = self._session.completion
        assert done is not None
        self._before = [*prompt, *done.tokens]
        return seconds


def resident_memory(model: Model, n_requests: int) -> tuple[float, float]:
    """Resident MB after a tenth of the requests and after all of them, when none runs."""
    rng = np.random.default_rng(0)
    (beginning,) = random_prompts(model, 1, 16)
    conditional = query_conditioned(model)

    def some() -> Request:
        return _some_request(model, rng, beginning, conditional)

    early = n_requests // 10
    found = []
    with Scheduler(model, n_slots=WIDTH, n_ctx=64, n_cells=WIDTH * 48) as scheduler:
        for n in (early, n_requests - early):
            _come_and_go(scheduler, n, some, rng)
            found.append(_resident())
    return found[0], found[1]


def _come_and_go(
    scheduler: Scheduler, n: int, some: Callable[[], Request], rng: np.random.Generator
) -> None:
    """Let `n` requests come, as many waiting as run, and go; one is cancelled every tenth step."""
    n_asked = n_ended = 0
    left: set[int] = set()
    while n_asked < n or left:
        while n_asked < n and len(left) < 2 * WIDTH:
            left.add(scheduler.submit(some()))
            n_asked += 1
        if rng.random() < 0.1:
            ticket = int(rng.choice(sorted(left)))
            n_ended += scheduler.cancel(ticket) is not None
            left.discard(ticket)
        ended = {event.ticket for event in scheduler.step() if event.completion or event.error}
        left -= ended
        n_ended += len(ended)
    if n_ended != n or scheduler.n_running or scheduler.n_waiting:
        raise SystemExit(f"{n_ended} of {n} requests have ended")


def _some_request(
    model: Model, rng: np.random.Generator, beginning: list[int], conditional: Conditional
) -> Request:
    """A short request of some kind; most of what it brings is new."""
    prompt = beginning[: int(rng.integers(17))] + rng.integers(40, 90, rng.integers(1, 17)).tolist()
    n_tokens = int(rng.integers(13))
    sampling = Sampling(max_tokens=n_tokens, seed=int(rng.integers(1 << 31)))
    vectors = 0.05 * rng.standard_normal((2, model.n_layer, model.n_embd), np.float32)
    vectors[:, 0] = 0
    steering: Steering = [
        lambda: None,
        lambda: Injection(*vectors),
        lambda: conditional,
        lambda: _Failing(),
    ][rng.choice(4, p=(0.3, 0.5, 0.18, 0.02))]()
    capture: TensorName | None = "l_out" if rng.random() < 0.2 else None
    return Request(prompt, sampling, steering=steering, capture=capture)


class _Failing:
    """A steering that raises once it sees a prompt."""

    layers: Collection[int] = (1,)
    tensor: Literal["l_out"] = "l_out"

    def at(self, states: FloatArray) -> Injection | None:
        raise ValueError("no steering comes of this prompt")


def _memory_of(n_requests: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.scheduler", "--memory"]
    command += ["--requests", str(n_requests)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    early, late = map(float, done.stdout.split())
    return early, late


def _resident() -> float:
    """Resident MB of this process now."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def injections(model: Model, n: int) -> list[Injection]:
    """Different small control vectors in every layer that can have one."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        vectors = 0.01 * rng.standard_normal((2, model.n_layer, model.n_embd), np.float32)
        vectors[:, 0] = 0
        found.append(Injection(*vectors))
    return found


def query_conditioned(model: Model) -> Conditional:
    """A profile that remembers 128 random pairs in every layer that can be edited; each prompt gets
    the control vector of the ten that are nearest to it."""
    layers = tuple(range(1, model.n_layer))
    sizes = Sizes(n_embd=model.n_embd, n_layer=model.n_layer)
    bank = random_bank(np.random.default_rng(0), sizes, layers, "l_out")
    near = Neighborhood(bank, Recipe())
    steering = (random_profile(model, layers=layers, intervention=near) * 0.01).injection(model)
    assert steering is not None and not isinstance(steering, Injection)
    return steering


def _batch(
    scheduler: Scheduler,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    steerings: Sequence[Steering] = (None,) * WIDTH,
    capture: TensorName | None = None,
) -> None:
    """An answer to each prompt, with a seed and a steering of its own."""
    done = list(
        scheduler.complete(
            Request(prompt, sampling.with_seed(i), i, steering, capture)
            for i, (prompt, steering) in enumerate(zip(prompts, steerings, strict=True))
        )
    )
    _check([len(completion.tokens) for completion in done], sampling)


def _served(server: LlamaServer, prompts: Sequence[list[int]], sampling: Sampling) -> None:
    _check(server.answers(prompts, sampling), sampling)


def _beside(server: LlamaServer, job: Job, idle: list[float]) -> None:
    """Do a job, and note what the server computes meanwhile, as a share of one core."""
    before, begin = server.cpu_seconds(), time.perf_counter()
    job()
    after, seconds = server.cpu_seconds(), time.perf_counter() - begin
    if before is not None and after is not None:
        idle.append((after - before) / seconds)


def _check(lengths: Sequence[int], sampling: Sampling) -> None:
    if list(lengths) != [sampling.max_tokens] * WIDTH:
        raise SystemExit(f"answers of {sorted(lengths)} tokens, not {sampling.max_tokens}")


def _decoding(
    scheduler: Scheduler, prompt: list[int], n_tokens: int, steering: Injection | None
) -> float:
    """Seconds of an answer after its first tokens."""
    scheduler.submit(Request(prompt, exact_length(n_tokens), steering=steering))
    end = scheduler.n_drawn + SHORT
    while scheduler.n_drawn < end:
        scheduler.step()
    begin = time.perf_counter()
    while scheduler.n_running:
        scheduler.step()
    return time.perf_counter() - begin


def _window(model: Model) -> int | None:
    return 1024 if model.n_ctx_train >= 1024 else None


def _path(model: str | None, file_type: str) -> Path:
    if model is None:
        return random_model(CACHE, file_type)
    return packaged_model(model) if model in PACKAGED else Path(model)


def _program(wanted: bool | None) -> Path | None:
    """llama.cpp's server; None, with a note, where it is to be left out."""
    if wanted is False:
        return None
    found = programs(os.cpu_count() or 1)[SERVER] if wanted else built(SERVER)
    if found is None:
        print(f"{SERVER} is not built: --server builds it", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
