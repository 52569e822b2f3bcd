"""One batch in which every request has its own prompt, settings, limits and steering.

How a step goes. Free slots are taken by the requests that wait. Every running answer wants one
token computed, every new prompt as many as it gets of the pass; all of them go through llama.cpp
together, each row with the vector of its own request (`rows.py`). Then every answer draws from its
own row. So requests come and go at any time, and a long prompt stops nobody: beside answers that
run, prompts share a budget of tokens a pass.

What cannot share a pass goes in one of its own, within the same step: rows under other LoRA
adapters or edits in the callback, which belong to a whole pass, and rows whose logits are edited,
for which llama.cpp computes all rows' logits. Where rows cannot be steered one by one (layers on a
device, recurrent models, whose rows come in another order), rows are grouped by their vectors, too,
and llama.cpp's own control vector is used: `grouped`.

The last token of a prompt runs with other requests' answers, and not with what comes before or
after it in its own text, so that answers come from equally shaped passes, whether they are steered
or not and whatever of the prompt was there already. Only where nobody wants logits is a given text
computed as one.

Steering that depends on the prompt (`Conditional`) sees the plain state of the last prompt token in
the very pass that computes it; where something comes of it, that token runs again under it.

A pass that fails is undone, and each of its requests then runs alone once: the one that fails again
gets the error, the others go on. Whatever is raised elsewhere for one request ends that one only.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.errors import BusyError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.prefix import common_prefix
from alignez_edge.runtime.probe import steers_rows
from alignez_edge.runtime.requests import Completion, Request
from alignez_edge.runtime.rows import RowPlan
from alignez_edge.runtime.slots import Slot, Slots
from alignez_edge.runtime.window import window
from alignez_edge.runtime.work import Grouping, Span, Work

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

N_BATCH = 512
"""Tokens of a pass at most."""
PROMPT_BUDGET = 128
"""Tokens of prompts in a pass that answers wait for: it takes a few times as long as without."""
MAX_WAITING = 1024
KEPT = 1024
"""Tokens of ended requests that stay: every row of a pass looks at all cells that are in use."""
_WORTH_WAITING = 16
"""Tokens that a prompt must save by waiting for another one's beginning: about what a pass of few
tokens costs more than the same tokens in a larger one."""
_WORTH_THREADS = 1 << 17
"""Logits of a pass from which on drawing is spread over threads: a draw from 32,000 even logits
takes 2 ms, so 16 of them one after another cost a third as much as the pass that made them."""
_ALIKE = Grouping(by_vectors=False, readers_alone=False)

Progress = Callable[[int, int], None]
"""Called once a step with the number of finished answers and of tokens drawn so far."""


@dataclass(frozen=True)
class Event:
    """What has become of a request: more `text`, and at its end a `completion` or an `error`."""

    ticket: int
    text: str = ""
    completion: Completion | None = None
    error: Exception | None = None


class Scheduler:
    """Requests in one context; a context manager. Not for several threads at once.

    At most `n_slots` requests run at a time, `max_waiting` wait. A prompt and its answer have room
    for `n_ctx` tokens (default: as for a `Session`), all running ones together for `n_cells`
    (default: as many). A pass has `n_batch` tokens at most, of which `n_outputs` may give logits
    (default: one a slot; more let given answers run faster). `keep` tokens of ended requests stay
    for prompts that begin alike. `grouped` forces one way of steering rows; None finds out.
    """

    def __init__(
        self,
        model: Weights,
        *,
        n_slots: int = 16,
        n_ctx: int | None = None,
        n_cells: int | None = None,
        n_batch: int = N_BATCH,
        n_outputs: int | None = None,
        max_waiting: int = MAX_WAITING,
        keep: int = KEPT,
        grouped: bool | None = None,
    ) -> None:
        self.model = model
        self.n_ctx = window(model, n_ctx)
        self._n_slots = n_slots
        self._n_outputs = max(n_slots, n_outputs or 0)
        self._max_waiting = max_waiting
        self._forced = grouped
        self._context = Context(
            model,
            n_ctx=max(n_cells or 0, self.n_ctx) if n_slots > 1 else self.n_ctx,
            n_seq=n_slots,
            n_batch=n_batch,
            n_outputs=self._n_outputs,
        )
        self._slots = Slots(self._context, n_slots, keep)
        self._waiting: deque[Work] = deque()
        self._running: list[Work] = []
        self._events: list[Event] = []
        self._tickets = itertools.count()
        self._pool: ThreadPoolExecutor | None = None
        self._torn = False
        self._n_told = 0

    @property
    def n_waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Requests that have one."""
        return len(self._running)

    @property
    def n_drawn(self) -> int:
        """Tokens of answers so far."""
        return self._n_told + sum(len(w.answer.tokens) for w in self._running if w.answer)

    def submit(self, request: Request) -> int:
        """Have a request answered; its ticket names it in the events of `step`.

        Raises `BadInputError` for an empty prompt, `PromptTooLongError` for one that the window has
        no room for, and `BusyError` where too many wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(
                f"{len(self._waiting)} requests are waiting already", "try again a little later"
            )
        work = Work(next(self._tickets), request, self.model, self.n_ctx)
        self._waiting.append(work)
        return work.ticket

    def cancel(self, ticket: int) -> Completion | None:
        """End a request at once: what it has said so far. None where it has ended already."""
        self._mend()
        for work in (*self._running, *self._waiting):
            if work.ticket == ticket:
                with self._whole():
                    completion = work.finish()
                    work.told_end = True
                    self._release(work)
                return completion
        return None

    def step(self) -> list[Event]:
        """Let every request go on by one pass; what came of it, in the order of the tickets.

        What is raised for one request ends that one, with an event. Anything else, such as Ctrl-C,
        passes through, and all requests can go on after it.
        """
        self._mend()
        with self._whole():
            self._admit()
            for spans in self._passes():
                self._compute(spans)
            self._tell()
            self._events.sort(key=lambda event: event.ticket)
            events, self._events = self._events, []
            return events

    def complete(
        self, requests: Iterable[Request], on_progress: Progress | None = None
    ) -> Iterator[Completion]:
        """Answers to requests as they finish, drawn lazily, as many at a time as there are slots.

        Where a request cannot be taken or fails, the running ones are finished and yielded, then
        the first error is raised.
        """
        left, n_done, failure = iter(requests), 0, None
        while True:
            while failure is None and len(self._running) + len(self._waiting) < self._n_slots:
                try:
                    request = next(left, None)
                    if request is None:
                        break
                    self.submit(request)
                except Exception as error:  # the caller's own iterator may fail as well
                    failure = error
            if not (self._running or self._waiting):
                break
            for event in self.step():
                failure = failure or event.error
                if event.completion is not None:
                    n_done += 1
                    yield event.completion
            if on_progress is not None:
                on_progress(n_done, self.n_drawn)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Forget all requests and free the context; a second call does nothing."""
        for work in (*self._running, *self._waiting):
            work.finish()
        self._running, self._waiting = [], deque()
        self._context.close()
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _grouping(self) -> Grouping:
        """What rows of one pass must have in common where something is steered."""
        recurrent = self._context.recurrent
        if self._forced is not None:
            return Grouping(self._forced, recurrent)
        return Grouping(recurrent or not steers_rows(self.model), recurrent)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Around what an interrupt must not leave half done: it is mended before anything else."""
        try:
            yield
        except BaseException:
            self._torn = True
            raise

    def _mend(self) -> None:
        """After an interrupt: everything is again as the requests' own records say."""
        if self._torn:
            self._running = [work for work in self._running if not work.told_end]
            started = {work.ticket for work in self._running}
            self._waiting = deque(
                work for work in self._waiting if work.ticket not in started and not work.told_end
            )
            self._slots.mend([_slot(work) for work in self._running])
            for work in self._running:
                self._slots.cut(_slot(work), work.resumable(work.n_computed))
            self._torn = False

    def _admit(self) -> None:
        """Give free slots to those that wait, in their order."""
        for work in list(self._waiting):
            work.start()
            if work.done:  # nothing is to be computed at all
                work.end()
                continue
            work.slot = self._slots.enter(work.tokens[: work.n_body], work.need)
            if work.slot is None:
                return
            self._running.append(work)
            self._waiting.remove(work)
            self._follow(work)

    def _follow(self, work: Work) -> None:
        """Let a prompt wait for the running request that is about to compute most of what it begins
        with, if that saves enough."""
        work.leader, work.common = None, 0
        if self._context.recurrent or not work.wants_logits:
            return
        body = work.tokens[: work.n_body]
        for other in self._running:
            if other is not work and other.leader is None and other.reads_prompt:
                common = common_prefix(other.tokens[: other.n_body], body)
                if common > work.common and other.wants_logits:
                    work.leader, work.common = other, common
        if work.common - work.n_computed <= _WORTH_WAITING:
            work.leader = None

    def _may_read(self, work: Work) -> bool:
        """Whether a prompt need not wait, or no longer, for another one's beginning."""
        leader = work.leader
        if leader is None:
            return True
        if leader.slot is None:  # it has ended: what it left is there, and another one may lead
            self._slots.complete(_slot(work), work.tokens[: work.n_body])
            self._follow(work)
            return work.leader is None
        if leader.slot.n_plain < work.common:
            return False
        self._slots.share(leader.slot, _slot(work), work.common)
        work.leader = None
        return True

    def _passes(self) -> list[list[Span]]:
        """The tokens that this step computes, by the passes that they share."""
        steered = any(work.is_steered for work in self._running)
        grouping = self._grouping if steered or self._context.recurrent else _ALIKE
        answering = [w for w in self._running if w.answer is not None and not w.reads_prompt]
        spans = [work.span(1, 1, grouping) for work in answering]
        readers = [w for w in self._running if w not in answering and self._may_read(w)]
        outputs = self._n_outputs - len(spans)
        budget = self._context.n_batch - len(spans)
        if spans:
            budget = min(budget, PROMPT_BUDGET)
        for n_left, work in zip(range(len(readers), 0, -1), readers, strict=True):
            span = work.span(-(-budget // n_left), outputs, grouping)
            if len(span):
                spans.append(span)
                budget -= len(span)
                outputs -= span.n_outputs
        groups: dict[object, list[Span]] = {}
        # Rows with vectors of their own stand together, at the end.
        for span in sorted(spans, key=lambda span: not span.is_plain):
            groups.setdefault(span.key, []).append(span)
        return list(groups.values())

    def _compute(self, spans: list[Span]) -> None:
        """One pass, and what comes of it."""
        try:
            reads = self._decode(spans)
            for span in spans:
                self._slots.extend(_slot(span.work), span.tokens, span.is_plain)
            self._draw(self._rows_with_logits(spans, reads))
        except Exception as error:
            self._failed(spans, error)
        except BaseException:
            for span in spans:
                self._undo(span)
            raise
        for span in spans:
            span.work.alone = span.work.alone and len(spans) > 1
            if span.work.done:
                span.work.end()

    def _decode(self, spans: Sequence[Span]) -> dict[TensorName, list[int]]:
        """Compute the spans in one pass; the rows that were read, by tensor."""
        context = self._context
        rows = [(span.work, at) for span in spans for at in range(span.start, span.stop)]
        vectors = [work.phase(at).vectors for work, at in rows]
        uniform = vectors[0] if all(v is vectors[0] for v in vectors) else None
        if uniform is not None and uniform[0].any() and not self._grouping.by_vectors:
            uniform = None  # layer 0 can only be steered row by row
        adds = [(row, v) for row, v in enumerate(vectors) if v is not None and uniform is None]
        reads: dict[TensorName, list[int]] = {}
        layers: dict[TensorName, set[int]] = {}
        for row, (work, at) in enumerate(rows):
            for tensor, wanted in work.reads(at, self.model.n_layer).items():
                reads.setdefault(tensor, []).append(row)
                layers.setdefault(tensor, set()).update(wanted)
        context.set_control_vector(uniform)
        context.set_adapters(spans[0].edits)
        context.set_embeddings(any(span.hidden for span in spans))
        context.decode(
            [token for span in spans for token in span.tokens],
            [at for _, at in rows],
            [_slot(span.work).sequence for span in spans for _ in range(len(span))],
            [at >= work.n_body for work, at in rows],
            RowPlan(
                adds,
                {tensor: (reads[tensor], layers[tensor]) for tensor in reads},
                ends=bool(reads) and not any(span.work.wants_logits for span in spans),
            ),
        )
        return reads

    def _rows_with_logits(
        self, spans: Sequence[Span], reads: Mapping[TensorName, Sequence[int]]
    ) -> list[tuple[Work, int, int]]:
        """(request, position, entry of the pass) of the rows that give a token, after every request
        has seen the states of its own."""
        states = self._context.states
        index = {(name, row): i for name, rows in reads.items() for i, row in enumerate(rows)}
        found = []
        first = 0
        for span in spans:
            for at in range(max(span.start, span.work.n_body), span.stop):
                entry = first + at - span.start
                own = {
                    name: states[name][index[name, entry]]
                    for name in reads
                    if (name, entry) in index
                }
                if self._has_seen(span.work, at, own):
                    found.append((span.work, at, entry))
            first += len(span)
        return found

    def _has_seen(self, work: Work, position: int, states: Mapping[TensorName, FloatArray]) -> bool:
        """Show a request the states of one of its tokens. False where that token gives nothing: it
        runs again under what came of them, or the request has ended with an error."""
        try:
            if work.saw(position, states):
                return True
        except Exception as error:
            work.end(error)
        else:
            self._slots.cut(_slot(work), position)
        return False

    def _draw(self, rows: Sequence[tuple[Work, int, int]]) -> None:
        """Let every answer draw from the logits at its entry of the pass."""

        def draw(row: tuple[Work, int, int]) -> None:
            work, position, entry = row
            try:
                if work.outcome is None:
                    work.computed(self._context, position, entry)
            except Exception as error:
                work.end(error)

        threads = len(rows) * self.model.n_vocab >= _WORTH_THREADS
        if not threads or any(work.answer is None for work, *_ in rows):
            for row in rows:
                draw(row)
            return
        # llama.cpp sorts the rows of recurrent models when the first one is asked for.
        self._context.logits(rows[0][2])
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.model.threads)
        # Every answer has a sampler and a row of logits to itself: the order is irrelevant. None of
        # the threads is at work any more when this ends, however it ends.
        futures = [self._pool.submit(draw, row) for row in rows]
        try:
            for future in futures:
                future.result()
        finally:
            wait(futures)

    def _failed(self, spans: Sequence[Span], error: Exception) -> None:
        """A pass has failed: undo it, and let each of its requests find out whether it was to
        blame."""
        for span in spans:
            self._undo(span)
            if len(spans) == 1:
                span.work.end(error)
            else:
                span.work.alone = True

    def _undo(self, span: Span) -> None:
        """Forget what a pass that was broken off has left of a request that still runs."""
        if span.work.slot is not None:
            self._slots.cut(span.work.slot, span.work.resumable(span.start))

    def _tell(self) -> None:
        """Events of what has become of the requests since the last step; the ended ones go."""
        for work in (*self._waiting, *self._running):
            said, outcome = work.said(), work.outcome
            if not said and outcome is None:
                continue
            event = Event(work.ticket, said, *(outcome or ()))
            # In one statement, so that nothing is told twice or never.
            self._events, work.n_told, work.told_end = (
                [*self._events, event],
                work.n_told + len(said),
                outcome is not None,
            )
            if outcome is not None:
                self._release(work)

    def _release(self, work: Work) -> None:
        """Take a request out that has been told of."""
        if work in self._running and work.answer is not None:
            self._n_told += len(work.answer.tokens)
        (self._running if work in self._running else self._waiting).remove(work)
        slot, work.slot = work.slot, None
        if slot is not None:
            self._slots.leave(slot)


def _slot(work: Work) -> Slot:
    assert work.slot is not None, "a request that runs has a slot"
    return work.slot
