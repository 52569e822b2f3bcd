"""Many prompts at once: continuous batching with shared prefixes.

How a round goes. Free places are taken by the next prompts. Their bodies (all tokens but the
last) are computed plain. Without an injection the bodies, the new prompts' deciding tokens and the
running answers' next tokens go through llama.cpp together. With one, three passes follow each
other: the bodies plain, the new deciding tokens under `injection.deciding`, then all running
answers under `injection.answer`. Without one no control vector is ever set.

Shared prefixes. One more sequence, the keeper, holds the body of the last prompt that came in,
plain as all bodies are. A new prompt takes over the cells of what it shares with that. Recurrent
models have one running state in place of cells, so they share nothing.

An injection that depends on the prompt (`Conditional`) differs from prompt to prompt, and a
context has one control vector: such prompts are answered one after another, by a `Session`.

Memory is flat: requests are drawn only when a place is free, and a prompt is let in only if the
cells for it and its longest answer are there, shared ones counted once (`cells.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.runtime.cells import Cells
from alignez_edge.runtime.context import Context, check_fits, window
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.prefix import common_prefix
from alignez_edge.runtime.sampler import Answer
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.types import Completion, Conditional, Injection, Request

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

_MOST_CELLS = 16384
"""Cells of the shared cache at most, unless one sequence is allowed more: 0.5 GB in a 1 B model.
Where the first prompts ask for more, fewer of them run at a time."""
_WORTH_A_PASS = 16
"""Tokens that a separate pass over a shared prefix must save: about what a pass of few tokens
costs more than the same tokens in a larger one."""
_WORTH_THREADS = 1 << 17
"""Logits of a round from which on drawing is spread over threads: a draw from 32,000 even logits
takes 2 ms, so 16 of them one after another cost a third as much as the pass that made them."""
_N_BATCH = 512

Progress = Callable[[int, int], None]
"""Called once a round with the number of finished answers and of tokens drawn so far."""


def generate_batch(
    model: Model,
    requests: Iterable[Request],
    *,
    injection: Injection | Conditional | None = None,
    width: int = 16,
    n_ctx_per_sequence: int | None = None,
    on_progress: Progress | None = None,
) -> Iterator[Completion]:
    """Answers to all requests, as they finish; `Completion.index` tells which is which.

    At most `width` run at a time; `requests` is drawn lazily. One prompt and its answer have room
    for `n_ctx_per_sequence` tokens (default: as for a `Session`), whatever else is running. At a
    prompt that does not fit this, the running answers are finished and yielded, then
    `PromptTooLongError` is raised with its index. Closing the iterator frees everything.
    """
    if width < 1:
        raise BadInputError(f"a batch of width {width}", "it must be at least 1")
    limit = window(model, n_ctx_per_sequence)
    width = min(width, cpp.llama_max_parallel_sequences() - 1)
    if injection is not None and not isinstance(injection, Injection):
        return _one_by_one(model, iter(requests), injection, limit, on_progress)
    if injection is not None and injection.is_zero():
        injection = None
    return _run(model, iter(requests), injection, width, limit, on_progress)


def _run(
    model: Model,
    requests: Iterator[Request],
    injection: Injection | None,
    width: int,
    limit: int,
    on_progress: Progress | None,
) -> Iterator[Completion]:
    first = list(islice(requests, width))
    if not first:
        return
    # Prompts count twice: those that follow may be longer, and the keeper holds one more.
    wanted = 0
    for request in first:
        shared = common_prefix(first[0].tokens, request.tokens) if request is not first[0] else 0
        wanted += _need(request, limit) + len(request.tokens) - 2 * shared
    cells = max(limit, min(wanted, _MOST_CELLS))
    n_done = 0
    with (
        Context(
            model,
            n_ctx=cells,
            n_seq=width + 1,
            n_batch=_N_BATCH,
            n_outputs=width,
            reference=injection is not None and injection.needs_reference(),
        ) as context,
        ThreadPoolExecutor(model.threads) as pool,
    ):
        batch = _Batch(context, pool, chain(first, requests), injection, width, limit)
        while batch.admit():
            for completion in batch.round():
                n_done += 1
                yield completion
            if on_progress is not None:
                on_progress(n_done, batch.n_drawn)
        if batch.refused is not None:
            raise batch.refused


def _one_by_one(
    model: Model,
    requests: Iterator[Request],
    injection: Conditional,
    limit: int,
    on_progress: Progress | None,
) -> Iterator[Completion]:
    n_done = n_drawn = 0
    with Session(model, n_ctx=limit, reference=injection.needs_reference()) as session:
        for request in requests:
            _check(request, limit)
            for _ in session.stream(request.tokens, request.sampling, injection):
                pass
            assert session.completion is not None
            n_done += 1
            n_drawn += len(session.completion.tokens)
            yield replace(session.completion, index=request.index)
            if on_progress is not None:
                on_progress(n_done, n_drawn)


def _check(request: Request, limit: int) -> None:
    what = f"prompt {request.index}"
    if not request.tokens:
        raise BadInputError(f"{what} is empty")
    check_fits(len(request.tokens), limit, what)


def _need(request: Request, limit: int) -> int:
    """The cells that a prompt and its longest answer take."""
    return min(len(request.tokens) + max(0, request.sampling.max_tokens), limit)


@dataclass
class _Place:
    """One running sequence.

    `pending` is the token to compute next, at `position`; it starts as the deciding token.
    `n_shared` tokens of the body came from the keeper, `n_certain` of it are sure to.
    """

    sequence: int
    index: int
    answer: Answer
    body: Sequence[int]
    n_shared: int
    n_certain: int
    pending: int
    position: int


Entries = list[tuple[int, int, int]]
"""(token, position, sequence) of tokens whose logits nobody wants."""


class _Batch:
    """The places, the keeper and the cells of one `generate_batch`."""

    def __init__(
        self,
        context: Context,
        pool: Executor,
        requests: Iterator[Request],
        injection: Injection | None,
        width: int,
        limit: int,
    ) -> None:
        self._context = context
        self._pool = pool
        self._requests = requests
        self._injection = injection
        self._limit = limit
        self._keeper = width
        self._kept: Sequence[int] = ()
        self._free = deque(range(width))
        self._cells = Cells(context.n_ctx)
        self._running: list[_Place] = []
        self._fresh: list[_Place] = []
        self._next: Request | None = None
        self.n_drawn = 0
        self.refused: Exception | None = None

    def admit(self) -> bool:
        """Give free places to the next requests; False when nothing is running any more."""
        while self._free and self.refused is None:
            try:
                self._next = self._next or next(self._requests, None)
                if self._next is None:
                    break
                _check(self._next, self._limit)
            except Exception as error:  # the caller's own iterator may fail as well
                self.refused = error
                break
            if not self._enter(self._next):
                break
            self._next = None
        return bool(self._running or self._fresh)

    def round(self) -> Iterator[Completion]:
        """Compute the new prompts and one token of every answer; yields what is finished."""
        context, injection = self._context, self._injection
        fresh, self._fresh = self._fresh, []
        bodies = self._bodies(fresh)
        self._running += fresh
        if injection is None:
            yield from self._advance(self._running, bodies, fresh)
            return
        if fresh:
            context.steer(None)
            self._compute(bodies)
            self._keep(fresh[-1])
            context.steer(injection, "deciding")
            yield from self._advance(fresh)
        if self._running:
            context.steer(injection, "answer")
            yield from self._advance(self._running)

    def _enter(self, request: Request) -> bool:
        """Give a prompt a place, cells and what the keeper has of it; False: there is no room."""
        n_prompt, body = len(request.tokens), request.tokens[:-1]
        n_certain, shared = self._sharing(body)
        cells = self._cells.copy()
        cells.enter(self._free[0], _need(request, self._limit), shared)
        keep = cells.free >= 0 or not self._kept
        if not keep:
            cells.leave(self._keeper)
        if cells.free < 0:
            return False
        self._cells = cells
        place = _Place(
            sequence=self._free.popleft(),
            index=request.index,
            answer=Answer(self._context.model, request.sampling, n_prompt, self._limit),
            body=body,
            n_shared=0,
            n_certain=n_certain,
            pending=request.tokens[-1],
            position=n_prompt - 1,
        )
        self._share_kept(place)
        if not keep:
            self._context.remove(self._keeper)
            self._kept = ()
        self._fresh.append(place)
        return True

    def _sharing(self, body: Sequence[int]) -> tuple[int, int]:
        """Tokens that `body` is certain to share with the first of the fresh prompts, and with the
        sequence before it: the keeper, or another fresh prompt."""
        kept = common_prefix(self._kept, body)
        if not self._fresh:
            return len(body), kept
        first, before = self._fresh[0], self._fresh[-1]
        common = 0 if self._context.recurrent else common_prefix(first.body, body)
        # Else it depends on the others whether `_bodies` computes the first one's body for them.
        certain = common if common - kept > _WORTH_A_PASS else min(first.n_shared, kept)
        return certain, min(before.n_certain, certain)

    def _share_kept(self, place: _Place) -> None:
        if self._context.recurrent:
            return
        common = common_prefix(self._kept, place.body)
        if common > place.n_shared:
            self._context.share(self._keeper, place.sequence, place.n_shared, common)
            place.n_shared = common

    def _keep(self, place: _Place) -> None:
        """Let the keeper hold the body of `place`, whose cells must be computed."""
        if self._context.recurrent:
            return
        self._context.remove(self._keeper)
        self._context.share(place.sequence, self._keeper, 0, len(place.body))
        if self._kept:
            self._cells.leave(self._keeper)
        self._kept = place.body
        if self._kept:
            n_kept = len(self._kept)
            self._cells.enter(self._keeper, n_kept, n_kept, after=place.sequence)

    def _bodies(self, fresh: list[_Place]) -> Entries:
        """What is to be computed of the new bodies, after sharing all that is worth a pass."""
        if len(fresh) > 1 and not self._context.recurrent:
            first, *rest = fresh
            saved = [common_prefix(first.body, place.body) - place.n_shared for place in rest]
            if sum(n for n in saved if n > 0) > _WORTH_A_PASS:
                self._context.steer(None)
                self._compute(_entries(first))
                first.n_shared = len(first.body)
                self._keep(first)
                for place in rest:
                    self._share_kept(place)
        return [entry for place in fresh for entry in _entries(place)]

    def _compute(self, entries: Entries) -> None:
        n_batch = self._context.n_batch
        for begin in range(0, len(entries), n_batch):
            tokens, positions, sequences = zip(*entries[begin : begin + n_batch], strict=True)
            self._context.decode(tokens, positions, sequences, [False] * len(tokens))

    def _advance(
        self,
        places: list[_Place],
        bodies: Sequence[tuple[int, int, int]] = (),
        fresh: Sequence[_Place] = (),
    ) -> Iterator[Completion]:
        """One token for each of `places`, computed together with `bodies` of `fresh` prompts."""
        context = self._context
        before = max(0, len(bodies) - (context.n_batch - len(places)))
        self._compute(list(bodies[:before]))
        entries = [*bodies[before:], *((p.pending, p.position, p.sequence) for p in places)]
        first = len(entries) - len(places)
        tokens, positions, sequences = zip(*entries, strict=True)
        context.decode(tokens, positions, sequences, [i >= first for i in range(len(entries))])
        if fresh:
            self._keep(fresh[-1])
        self._draw([(p.answer, i) for i, p in enumerate(places, first) if not p.answer.finished])
        finished = []
        for place in places:
            if place.answer.finished:
                finished.append(place)
            else:
                place.pending = place.answer.tokens[-1]
                place.position += 1
        for place in finished:
            self._running.remove(place)
            self._context.remove(place.sequence)
            self._free.append(place.sequence)
            self._cells.leave(place.sequence)
        for place in finished:
            yield place.answer.completion(place.index)

    def _draw(self, answers: list[tuple[Answer, int]]) -> None:
        """The next token of each answer, from its entry of the batch just computed."""

        def step(item: tuple[Answer, int]) -> None:
            answer, index = item
            answer.step(self._context, index)

        # Every answer has a sampler and a row of logits to itself: the order is irrelevant.
        threads = len(answers) * self._context.model.n_vocab >= _WORTH_THREADS
        if threads:
            # llama.cpp sorts the rows of recurrent models when the first one is asked for.
            self._context.logits(answers[0][1])
        for _ in (self._pool.map if threads else map)(step, answers):
            self.n_drawn += 1


def _entries(place: _Place) -> Entries:
    start = place.n_shared
    return [
        (token, position, place.sequence)
        for position, token in enumerate(place.body[start:], start)
    ]
