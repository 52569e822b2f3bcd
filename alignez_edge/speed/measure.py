"""How fast this machine is, with and without steering.

Times of things that are compared are taken in turn, round after round, and a ratio is made within
each round: what slows a machine down for a while slows both sides. A token's cost is what a long
answer takes above a short one: what a turn costs once (its last prompt token, the switch of the
steering) is then left out, and is reported by itself.

What is timed is in `workload.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.requests import Request
from alignez_edge.runtime.session import Session
from alignez_edge.speed.workload import (
    SHORT,
    Job,
    Text,
    Turn,
    answer,
    exact_length,
    peak_rss,
    prefill,
    random_prompts,
    timed,
    turn_jobs,
)

if TYPE_CHECKING:
    from alignez_edge.interventions.ways import Way
    from alignez_edge.runtime.model import Model
    from alignez_edge.steering.steering import Steering

LEAST = 8
"""Tokens of a long answer at least."""
WINDOW = 1024
"""Tokens of a session's context: what is measured uses no more."""
_FAST: tuple[Way, ...] = ("control-vector", "exact")
_PROMPT, _TEXT = 8, 32  # tokens of a prompt, and of a text that is read
_FEW = 2  # answers that are made one by one
_SHARES = (0.4, 0.4, 0.2)  # of the time, for the blocks of `measure`

Progress = Callable[[str, int, int], None]
"""Called with a step's name and the number of its finished jobs and of all."""


@dataclass(frozen=True)
class Spread:
    """A figure over `rounds` rounds: the median, the lowest and the highest."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))


@dataclass(frozen=True)
class SteeredSpeed:
    """One answer under a steering: `decode` in tokens/s, `against_plain` that over the plain rate,
    `added_ms` what steering adds to a turn once, in milliseconds."""

    decode: Spread
    against_plain: Spread
    added_ms: Spread


@dataclass(frozen=True)
class Speed:
    """What `measure` found, rates in tokens/s.

    `decode` is one answer of `tokens`, its prompt apart. `one_by_one` and `batch` are whole answers
    of `batch_tokens` to short prompts, the latter `width` at a time, and `batch_gain` is the one
    over the other. `capture_time` is the time of a prefill whose hidden states are read, over that
    of one without. `resident_mb` is the most memory that this process has held.
    """

    tokens: int
    decode: Spread
    steered: Mapping[str, SteeredSpeed]
    width: int
    batch_tokens: int
    one_by_one: Spread
    batch: Spread
    batch_gain: Spread
    prefill: Spread
    capture_time: Spread
    resident_mb: float


def measure(
    model: Model,
    steerings: Mapping[str, Injection | Conditional],
    *,
    tokens: int = 64,
    rounds: int = 15,
    seconds: float = 25.0,
    width: int = 16,
    on_progress: Progress | None = None,
) -> Speed:
    """The speed of plain answers, and of those under each of `steerings` by their names.

    Takes about `seconds`: where that is short for the machine, answers get shorter (down to
    `LEAST` tokens) and rounds fewer; one round of the least is always made. Raises `BadInputError`
    for a model whose window does not hold even that.
    """
    begin = time.perf_counter()
    most = min(model.n_ctx_train, WINDOW) - _PROMPT - 1
    if most < LEAST:
        raise BadInputError(f"the model's window of {model.n_ctx_train} tokens is too short")
    tell = on_progress or (lambda *_: None)
    with ExitStack() as stack:
        bench = _Bench(model, steerings, width, stack)
        # All weights are touched once: what a disk takes to bring them is nobody's speed.
        answer(*bench.turns[0], bench.prompts[0], 1)
        blocks = {"answers": bench.answers, "batches": bench.batches, "reading": bench.readings}
        trials = []
        for done, jobs in enumerate(blocks.values()):
            tell("warming up", done, len(blocks))
            trials.append(timed(jobs(LEAST), 1))
        tell("warming up", len(blocks), len(blocks))
        left = seconds - (time.perf_counter() - begin)
        lengths, found = [], []
        for (name, jobs), trial, share in zip(blocks.items(), trials, _SHARES, strict=True):
            cost = sum(column[0] for column in trial)
            n_tokens, n_rounds = plan(cost, left * share, min(tokens, most), rounds)
            times = timed(jobs(n_tokens), n_rounds, partial(tell, name))
            lengths.append(n_tokens)
            found.append(times)
        return bench.speed(lengths, found)


def plan(cost: float, seconds: float, tokens: int, rounds: int) -> tuple[int, int]:
    """Tokens and rounds that fit into `seconds`, at most `tokens` and `rounds`.

    `cost` is that of a round of `LEAST` tokens; more tokens cost at most in proportion. Three
    rounds come before more tokens, more tokens before more rounds; one round is always made, since
    what warms up is no measurement.
    """
    affordable = max(seconds, 0.0) / cost  # rounds of the least
    n_tokens = max(LEAST, min(tokens, int(LEAST * affordable / min(rounds, 3))))
    return n_tokens, max(1, min(rounds, int(affordable * LEAST / n_tokens)))


def injections(
    model: Model, steering: Steering
) -> tuple[dict[str, Injection | Conditional], list[str]]:
    """`steering` by its own way, or if that is `auto`, by each fast way that its profiles allow;
    and why not by the others, one line each.

    Raises `BadInputError` if there is nothing to measure.
    """
    found: dict[str, Injection | Conditional] = {}
    reasons = []
    for way in _FAST if steering.way == "auto" else (steering.way,):
        try:
            injection = steering.by(way).injection(model)
        except BadInputError as failure:
            reasons.append(failure.message)
            continue
        if injection is None:
            raise BadInputError("the steering is zero: there is nothing to measure")
        found[way] = injection
    if not found:
        raise BadInputError(reasons[-1])
    return found, reasons


def builtin_steering(model: Model) -> Steering | None:
    """The first profile that ships with the package and fits `model`; None if none does."""
    from alignez_edge.profile.library import ProfileLibrary
    from alignez_edge.profile.profile import Profile

    for entry in ProfileLibrary().list():
        if entry.origin == "built-in":
            try:
                steering = Profile.load(entry.path) * 1.0
                steering.notices(model)
            except AlignezError:
                continue
            return steering
    return None


class _Bench:
    """What is timed, in blocks: all jobs of a block are compared, and are taken in turn.

    Each block makes its jobs for answers of so many tokens. `turns` are the plain one and the
    steered ones.
    """

    def __init__(
        self,
        model: Model,
        steerings: Mapping[str, Injection | Conditional],
        width: int,
        stack: ExitStack,
    ) -> None:
        self._model, self._width, self._names = model, width, list(steerings)
        self._window = min(WINDOW, model.n_ctx_train)
        self.prompts = random_prompts(model, max(width, _FEW), _PROMPT)

        session = stack.enter_context(Session(model, n_ctx=self._window))
        self.turns: list[Turn] = [(session, None), *((session, s) for s in steerings.values())]

    def answers(self, n_tokens: int) -> list[Job]:
        """The turns, short and long."""
        return turn_jobs(self.turns, self.prompts[0], n_tokens)

    def batches(self, n_tokens: int) -> list[Job]:
        """A few answers one by one, and a batch."""
        sampling = exact_length(n_tokens)
        prompts = self.prompts[: self._width]
        requests = [Request(p, sampling.with_seed(i), i) for i, p in enumerate(prompts)]

        def one_by_one() -> None:
            with Session(self._model, n_ctx=self._window) as session:
                for prompt in self.prompts[:_FEW]:
                    answer(session, None, prompt, n_tokens)

        return [one_by_one, lambda: list(generate_batch(self._model, requests, width=self._width))]

    def readings(self, n_tokens: int) -> list[Job]:
        """A prefill without and with the reading of hidden states."""
        texts = self._texts(n_tokens)
        return [lambda: prefill(self._model, texts), lambda: list(capture(self._model, texts))]

    def speed(self, lengths: Sequence[int], found: Sequence[list[list[float]]]) -> Speed:
        """The seconds of each block's jobs, for answers of these lengths, as figures."""
        n = len(self.turns)
        short, long = found[0][:n], found[0][n:]
        single, batch = found[1]
        unread, read = found[2]
        tokens, batch_tokens, n_texts = lengths
        n_counted = tokens - SHORT

        def above(a: float, b: float) -> float:
            # Noise can swallow a difference of a few tokens; the mean of the long one is no less.
            return b - a if b > a else b * n_counted / tokens

        per_token = [_each(above, *pair) for pair in zip(short, long, strict=True)]
        steered = {
            name: SteeredSpeed(
                decode=_rate(n_counted, per_token[i]),
                against_plain=Spread.of(_each(lambda a, b: a / b, per_token[0], per_token[i])),
                added_ms=Spread.of(_each(lambda a, b: 1000 * (b - a), short[0], short[i])),
            )
            for i, name in enumerate(self._names, 1)
        }
        gain = self._width / _FEW
        return Speed(
            tokens=tokens,
            decode=_rate(n_counted, per_token[0]),
            steered=steered,
            width=self._width,
            batch_tokens=batch_tokens,
            one_by_one=_rate(_FEW * batch_tokens, single),
            batch=_rate(self._width * batch_tokens, batch),
            batch_gain=Spread.of(_each(lambda a, b: gain * a / b, single, batch)),
            prefill=_rate(sum(len(a) + len(b) for a, b in self._texts(n_texts)), unread),
            capture_time=Spread.of(_each(lambda a, b: b / a, unread, read)),
            resident_mb=peak_rss(),
        )

    def _texts(self, n_tokens: int) -> list[Text]:
        """Texts in proportion to the answers' tokens."""
        prompts = random_prompts(self._model, max(2, n_tokens // 4), _TEXT)
        return [(prompt[:_PROMPT], prompt[_PROMPT:]) for prompt in prompts]


def _each(
    function: Callable[[float, float], float], a: Sequence[float], b: Sequence[float]
) -> list[float]:
    """`function` of what was taken in the same round."""
    return [function(x, y) for x, y in zip(a, b, strict=True)]


def _rate(n_tokens: int, seconds: Sequence[float]) -> Spread:
    return Spread.of(n_tokens / s for s in seconds)
