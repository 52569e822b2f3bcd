"""What is timed: answers, prefills and batches on random tokens; and the stopwatch.

Prompts share nothing and answers have a fixed length, so no cache helps and no answer ends early.
Speed depends on a steering's form, not on its values; only one of zeros would be skipped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.score import rows_that_fit
from alignez_edge.runtime.session import Session

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

SHORT = 4
"""Tokens of the short answer that is taken off a long one."""
_GROUP = 8  # texts that `capture` reads together

Job = Callable[[], object]
"""Something to time. It may return the seconds that count as a float; else its whole time does."""
Text = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens and answer tokens."""
Turn = tuple[Session, Injection | Conditional | None]
"""Where an answer is made, and what steers it."""


def turn_jobs(turns: Sequence[Turn], prompt: Sequence[int], n_tokens: int) -> list[Job]:
    """Answers to `prompt`: a short one for each turn, then one of `n_tokens` for each."""
    return [partial(answer, *turn, prompt, n) for n in (SHORT, n_tokens) for turn in turns]


def answer(
    session: Session,
    steering: Injection | Conditional | None,
    prompt: Sequence[int],
    n_tokens: int,
) -> None:
    """An answer of exactly `n_tokens`."""
    for _ in session.stream(prompt, exact_length(n_tokens), steering):
        pass


def timed(
    jobs: Sequence[Job], rounds: int, on_job: Callable[[int, int], None] | None = None
) -> list[list[float]]:
    """Seconds of each job, all run in turn `rounds` times."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for turn in range(rounds):
        for place, (job, found) in enumerate(zip(jobs, seconds, strict=True), 1):
            begin = time.perf_counter()
            own = job()
            found.append(own if isinstance(own, float) else time.perf_counter() - begin)
            if on_job is not None:
                on_job(turn * len(jobs) + place, rounds * len(jobs))
    return seconds


def prefill(model: Model, texts: Sequence[Text], *, like_capture: bool = False) -> None:
    """The prefill that `capture` rides on, in the same groups, without reading anything.

    It asks for one row of logits; `like_capture` for the rows that `capture` asks for, and ends
    each pass where that ends it.
    """
    n_batch = rows_that_fit(model.n_vocab)
    groups: list[list[Text]] = [[]]
    n_tokens = 0
    for text in texts:
        n_text = sum(map(len, text))
        if groups[-1] and (len(groups[-1]) == _GROUP or n_tokens + n_text > n_batch):
            groups.append([])
            n_tokens = 0
        groups[-1].append(text)
        n_tokens += n_text
    end = _End(model.n_layer - 1) if like_capture else None
    n_outputs = None if like_capture else _GROUP
    with Context(
        model, n_ctx=n_batch, n_seq=_GROUP, n_batch=n_batch, n_outputs=n_outputs, capture=end
    ) as context:
        for group in groups:
            context.clear()
            flat = [
                (token, position, sequence, like_capture and position >= len(prompt) - 1)
                for sequence, (prompt, rest) in enumerate(group)
                for position, token in enumerate([*prompt, *rest])
            ]
            tokens, positions, sequences, wanted = zip(*flat, strict=True)
            context.decode(tokens, positions, sequences, [*wanted[:-1], True])


class _End:
    """A tap that reads nothing and ends the graph after a layer, as `capture` does."""

    def __init__(self, layer: int) -> None:
        self._name = f"l_out-{layer}".encode()

    def wants(self, name: bytes) -> bool:
        return name == self._name

    def read(self, name: bytes, tensor: int) -> bool:
        return False


def random_prompts(model: Model, n: int, length: int) -> list[list[int]]:
    """Prompts that share nothing, so that sharing prefixes cannot help."""
    rng = np.random.default_rng(0)
    usable = [t for t in range(min(model.n_vocab, 2000)) if not model.is_end(t)]
    return [rng.choice(usable, length).tolist() for _ in range(n)]


def random_injection(model: Model) -> Injection:
    """Small control vectors in every layer that can have one."""
    shape = model.n_layer, model.n_embd
    vectors: FloatArray = 0.01 * np.random.default_rng(0).standard_normal(shape, np.float32)
    vectors[0] = 0
    return Injection(vectors, -vectors)


def peak_rss() -> float:
    """Peak resident MB of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's peak too: Linux keeps it across exec
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, else KB


def exact_length(n_tokens: int) -> Sampling:
    """Settings for answers of exactly `n_tokens`."""
    return Sampling(temperature=0.8, max_tokens=n_tokens, min_tokens=n_tokens)
