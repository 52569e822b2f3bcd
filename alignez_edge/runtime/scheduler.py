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

Whatever is raised for one request ends that one only: `passes.py` computes a pass and undoes one
that fails.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError, BusyError, RuntimeFailure
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.passes import Passes
from alignez_edge.runtime.prefix import common_prefix
from alignez_edge.runtime.requests import Completion, Request
from alignez_edge.runtime.sampler import NotFiniteError
from alignez_edge.runtime.slots import Slots
from alignez_edge.runtime.window import window
from alignez_edge.runtime.work import Grouping, Span, Work, slot_of

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

    @property
    def ends(self) -> bool:
        """Whether nothing more will be said of it."""
        return self.completion is not None or self.error is not None


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
        if n_slots < 1:
            raise BadInputError(f"a scheduler of {n_slots} slots", "it must have at least 1")
        self.model = model
        self.n_ctx = window(model, n_ctx)
        self._n_slots = n_slots
        self._n_outputs = max(n_slots, n_outputs or 0)
        self._max_waiting = max_waiting
        self._context = Context(
            model,
            n_ctx=max(n_cells or 0, self.n_ctx) if n_slots > 1 else self.n_ctx,
            n_seq=n_slots,
            n_batch=n_batch,
            n_outputs=self._n_outputs,
        )
        self._slots = Slots(self._context, n_slots, keep)
        self._passes = Passes(model, self._context, self._slots, grouped)
        self._waiting: deque[Work] = deque()
        self._running: list[Work] = []
        self._events: list[Event] = []
        self._handed: list[Event] = []
        self._tickets = itertools.count()
        self._torn = False
        self._n_told = 0

    @property
    def n_waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Requests that have one, or whose end has yet to be told."""
        running = {work.ticket for work in self._running}
        return len(running | {event.ticket for event in self._untold() if event.ends})

    @property
    def n_drawn(self) -> int:
        """Tokens of answers so far."""
        return self._n_told + sum(len(w.answer.tokens) for w in self._running if w.answer)

    def submit(self, request: Request) -> int:
        """Have a request answered; its ticket names it in the events of `step`.

        Raises `BadInputError` for an empty prompt, and for tokens and a steering that are none or
        not for this model, `PromptTooLongError` for a prompt that the window has no room for, and
        `BusyError` where too many wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(
                f"{len(self._waiting)} requests are waiting already", "try again a little later"
            )
        work = Work(next(self._tickets), request, self.model, self.n_ctx)
        self._waiting.append(work)
        return work.ticket

    def cancel(self, ticket: int) -> Completion | None:
        """End a request at once: what it has said so far. None where `step` has told its end.

        Raises `RuntimeFailure` in the middle of a step.
        """
        with self._whole():
            for event in self._events:
                if event.ticket == ticket and event.ends:  # an interrupt kept it from being told
                    self._events = [other for other in self._events if other.ticket != ticket]
                    return event.completion
            for work in (*self._running, *self._waiting):
                if work.ticket == ticket:
                    completion = work.finish()
                    work.told_end = True
                    self._release(work)
                    return completion
        return None

    def step(self) -> list[Event]:
        """Let every request go on by one pass; what came of it, in the order of the tickets.

        What is raised for one request ends that one, with an event. Anything else, such as Ctrl-C,
        passes through, and all requests can go on after it: what was not told is told then. Raises
        `RuntimeFailure` in the middle of another step, and once the model is closed.
        """
        with self._whole():
            self._context.check_open()
            self._admit()
            for spans in self._planned():
                self._passes.compute(spans)
            self._tell()
            self._handed, self._events = sorted(self._events, key=lambda event: event.ticket), []
            return self._handed

    def complete(
        self, requests: Iterable[Request], on_progress: Progress | None = None
    ) -> Iterator[Completion]:
        """Answers to requests as they finish, drawn lazily, as many at a time as there are slots.

        Where a request cannot be taken or fails, the running ones are finished and yielded, then
        the first error is raised. Those that are under way when it is left are cancelled; what is
        said of requests that others have submitted is not heard here.
        """
        left, n_done, failure = iter(requests), 0, None
        own, more = set[int](), True
        try:
            while True:
                while more and failure is None and self.n_running + self.n_waiting < self._n_slots:
                    try:
                        request = next(left, None)
                        if request is None:
                            more = False
                        else:
                            own.add(self.submit(request))
                    except Exception as error:  # the caller's own iterator may fail as well
                        failure = error
                if not own and (failure is not None or not more):
                    break
                for event in self.step():
                    if event.ticket not in own:
                        continue
                    if event.ends:
                        own.remove(event.ticket)
                    failure = failure or event.error
                    if event.completion is not None:
                        n_done += 1
                        yield event.completion
                if on_progress is not None:
                    on_progress(n_done, self.n_drawn)
        finally:
            for ticket in own:
                self.cancel(ticket)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Forget all requests and free the context; a second call does nothing.

        In the middle of a step (from a callback, a signal handler or another thread) that step ends
        as usual first, and then all is freed; the next one raises.
        """
        self._context.close()
        if not self._context.busy:
            self._running, self._waiting = [], deque()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Around what an interrupt must not leave half done: it is mended before anything else."""
        context = self._context
        if context.busy:
            raise RuntimeFailure(
                "the scheduler is in the middle of a step", "call it again when that has ended"
            )
        if not self._torn:
            self._handed = []
        try:
            try:
                context.busy = True
                self._mend()
                yield
            except BaseException:
                self._torn = True
                raise
            finally:
                context.busy = False
        finally:
            context.busy = False  # again: Ctrl-C may have met the first time
            context.settle()

    def _untold(self) -> list[Event]:
        """What has yet to be told: after an interrupt also what was being handed over."""
        return [*self._handed, *self._events] if self._torn else self._events

    def _mend(self) -> None:
        """After an interrupt: everything is again as the requests' own records say."""
        if self._torn:
            self._context.team.rest()
            self._events, self._handed = self._untold(), []
            self._running = [work for work in self._running if not work.told_end]
            started = {work.ticket for work in self._running}
            self._waiting = deque(
                work for work in self._waiting if work.ticket not in started and not work.told_end
            )
            self._slots.mend([slot_of(work) for work in self._running])
            for work in self._running:
                work.mend()
                self._slots.cut(slot_of(work), work.resumable(work.n_computed))
            self._passes.mend()
            for work in self._running:
                if work.done:  # it was to be ended just then
                    work.end()
            self._tell()
            self._torn = False

    def _admit(self) -> None:
        """Give free slots to those that wait, in their order."""
        for work in list(self._waiting):
            try:
                work.start()
            except Exception as error:
                work.end(error)
            if work.outcome is None and work.done:  # nothing is to be computed at all
                work.end()
            if work.outcome is not None:
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
            self._slots.complete(slot_of(work), work.tokens[: work.n_body])
            self._follow(work)
            return work.leader is None
        if leader.slot.n_plain < work.common:
            return False
        self._slots.share(leader.slot, slot_of(work), work.common)
        work.leader = None
        return True

    def _planned(self) -> list[list[Span]]:
        """The tokens that this step computes, by the passes that they share."""
        steered = any(work.is_steered for work in self._running)
        grouping = self._passes.grouping if steered or self._context.recurrent else _ALIKE
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
            spoilt = work.outcome is not None and isinstance(work.outcome[1], NotFiniteError)
            self._slots.leave(slot, spoilt)
