"""One pass of llama.cpp out of the spans of many requests, and what comes of it.

A pass that fails is undone, and each of its requests then runs alone once: the one that fails again
gets the error, the others go on. What a request's own steering, reader or sampler raises ends that
request only. What is no `Exception`, such as Ctrl-C, undoes the pass and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.probe import steers_rows
from alignez_edge.runtime.rows import RowPlan
from alignez_edge.runtime.slots import Slots
from alignez_edge.runtime.work import Grouping, Span, Work, slot_of

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

_WORTH_THREADS = 1 << 17
"""Logits of a pass from which on drawing is spread over threads: a draw from 32,000 even logits
takes 2 ms, so 16 of them one after another cost a third as much as the pass that made them."""


class Passes:
    """The passes of one context, whose sequences are `slots`. `grouped` forces one way of steering
    rows; None finds out."""

    def __init__(
        self, model: Weights, context: Context, slots: Slots, grouped: bool | None
    ) -> None:
        self._model = model
        self._context = context
        self._slots = slots
        self._grouped = grouped
        self._under_way: Sequence[Span] = ()

    @cached_property
    def grouping(self) -> Grouping:
        """What rows of one pass must have in common where something is steered."""
        recurrent = self._context.recurrent
        if self._grouped is not None:
            return Grouping(self._grouped, recurrent)
        return Grouping(recurrent or not steers_rows(self._model), recurrent)

    def compute(self, spans: Sequence[Span]) -> None:
        """Compute the spans in one pass; what comes of it is in their requests and slots."""
        self._under_way = spans
        try:
            reads = self._decode(spans)
            for span in spans:
                self._slots.extend(slot_of(span.work), span.tokens, span.is_plain)
            self._draw(self._rows_with_logits(spans, reads))
        except Exception as error:
            self._failed(spans, error)
        for span in spans:
            span.work.alone = span.work.alone and len(spans) > 1
            if span.work.done:
                span.work.end()
        self._under_way = ()

    def mend(self) -> None:
        """After an interrupt: the pass that was broken off is undone."""
        for span in self._under_way:
            self._undo(span)
        self._under_way = ()

    def _decode(self, spans: Sequence[Span]) -> dict[TensorName, list[int]]:
        """Compute the spans in one pass; the rows that were read, by tensor."""
        context = self._context
        rows = [(span.work, at) for span in spans for at in range(span.start, span.stop)]
        vectors = [work.phase(at).vectors for work, at in rows]
        uniform = vectors[0] if all(v is vectors[0] for v in vectors) else None
        if uniform is not None and uniform[0].any() and not self.grouping.by_vectors:
            uniform = None  # layer 0 can only be steered row by row
        adds = [(row, v) for row, v in enumerate(vectors) if v is not None and uniform is None]
        reads: dict[TensorName, list[int]] = {}
        layers: dict[TensorName, set[int]] = {}
        for row, (work, at) in enumerate(rows):
            for tensor, wanted in work.reads(at, self._model.n_layer).items():
                reads.setdefault(tensor, []).append(row)
                layers.setdefault(tensor, set()).update(wanted)
        context.set_control_vector(uniform)
        context.set_adapters(spans[0].edits)
        context.set_embeddings(any(span.hidden for span in spans))
        context.decode(
            [token for span in spans for token in span.tokens],
            [at for _, at in rows],
            [slot_of(span.work).sequence for span in spans for _ in range(len(span))],
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
            self._slots.cut(slot_of(work), position)
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

        threads = len(rows) * self._model.n_vocab >= _WORTH_THREADS
        if not threads or any(work.answer is None for work, *_ in rows):
            for row in rows:
                draw(row)
            return
        # llama.cpp sorts the rows of recurrent models when the first one is asked for.
        self._context.logits(rows[0][2])
        # Every answer has a sampler and a row of logits to itself: the order is irrelevant.
        self._context.team.do([partial(draw, row) for row in rows])

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
