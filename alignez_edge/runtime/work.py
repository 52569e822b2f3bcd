"""One request on its way: which tokens it wants computed next, and what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alignez_edge.arrays import FloatArray, TensorName
from alignez_edge.directions.hidden_states import States
from alignez_edge.errors import BadInputError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Conditional, Edits, Injection
from alignez_edge.runtime.requests import Completion, FinishReason, Request, shown, whole
from alignez_edge.runtime.sampler import Answer
from alignez_edge.runtime.slots import Slot
from alignez_edge.runtime.window import check_fits

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights


class Grouping(NamedTuple):
    """What the rows of one pass must have in common beside edits: vectors, and whether a row that
    is read must have its pass to itself."""

    by_vectors: bool
    readers_alone: bool


@dataclass(frozen=True)
class _Phase:
    """How the tokens of one part of a text are computed: `vectors` None adds nothing."""

    vectors: FloatArray | None = None
    edits: Edits = ()
    hidden: bool = False

    def key(self, grouping: Grouping) -> object:
        """Tokens with equal keys can share a pass."""
        edits = tuple((id(edit), strength) for edit, strength in self.edits if strength)
        return edits, self.hidden, id(self.vectors) if grouping.by_vectors else None


_PLAIN = _Phase()


@dataclass(frozen=True)
class Span:
    """Tokens `[start, stop)` of a request's text that one pass computes. `key` is equal for spans
    that can share it."""

    work: Work
    start: int
    stop: int
    key: object

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> list[int]:
        return self.work.tokens[self.start : self.stop]

    @property
    def n_outputs(self) -> int:
        """Its tokens that give logits: the last of the prompt, and all after it."""
        return max(0, self.stop - max(self.start, self.work.n_body))

    @property
    def edits(self) -> Edits:
        return self.work.phase(self.start).edits

    @property
    def hidden(self) -> bool:
        return any(self.work.phase(position).hidden for position in (self.start, self.stop - 1))

    @property
    def is_plain(self) -> bool:
        """Whether nothing steers any of its tokens."""
        ends = self.work.phase(self.start), self.work.phase(self.stop - 1)
        return all(phase.vectors is None and not phase.edits for phase in ends)


class Work:
    """A request with what is known of it so far.

    `tokens` are the prompt's, `n_body` of them before the last, and then the answer's as far as it
    is known. `slot` is there while it runs. `leader` is the request whose first `common` tokens it
    waits for. `alone`: its next pass is its own. Raises as `Scheduler.submit` does.
    """

    def __init__(self, ticket: int, request: Request, model: Weights, n_ctx: int) -> None:
        given, n_prompt = request.given, len(request.tokens)
        if not n_prompt:
            raise BadInputError(f"prompt {request.index} is empty")
        tokens = [whole(token, "a token") for token in request.tokens]
        rest = [whole(token, "a token") for token in given.tokens] if given is not None else []
        check_fits(n_prompt + len(rest) - bool(rest), n_ctx, f"prompt {request.index}")
        self.ticket = ticket
        self.request = request
        self.tokens = tokens + rest
        self.n_body = n_prompt - 1
        self.slot: Slot | None = None
        self.leader: Work | None = None
        self.common = 0
        self.alone = False
        self.outcome: tuple[Completion | None, Exception | None] | None = None
        self.n_told, self.told_end = 0, False
        self._n_read = 0
        most = len(rest) if given is not None else max(0, request.sampling.max_tokens)
        self.need = min(n_prompt + most, n_ctx)
        self.answer: Answer | None = None
        self._model, self._n_ctx = model, n_ctx
        self._started = 0.0
        self._pool = _Pool() if request.capture is not None else None
        steering = request.steering
        self._conditional: Conditional | None = None
        if steering is not None and not isinstance(steering, Injection):
            if not all(hasattr(steering, name) for name in ("at", "layers", "tensor")):
                raise BadInputError(
                    f"{shown(steering)} is nothing that steers a request",
                    "give an Injection or a Conditional: profile.injection(model)",
                )
            self._conditional, steering = steering, None
        self._steer(steering)

    def start(self) -> None:
        """Its turn has come; a second call does nothing, but for what an interrupt left out."""
        if self.answer is None and self.request.given is None:
            n_prompt = self.n_body + 1
            self.answer = Answer(self._model, self.request.sampling, n_prompt, self._n_ctx)
        self._started = self._started or time.perf_counter()

    def end(self, error: Exception | None = None) -> None:
        """It goes no further; what has come of it is its `outcome`."""
        if self.outcome is not None:
            return
        if error is None:
            self.outcome = self.finish(), None
        else:
            if self.answer is not None and not self.answer.finished:
                self.answer.finish("interrupted")
            self.outcome = None, error

    def said(self) -> str:
        """The text that became certain since it was told last."""
        return "" if self.answer is None else self.answer.text_from(self.n_told)

    @property
    def n_computed(self) -> int:
        """Its tokens in the cache."""
        return len(self.slot.tokens) if self.slot is not None else 0

    @property
    def is_steered(self) -> bool:
        """Whether something steers it, or will perhaps."""
        return self._steered or self._conditional is not None

    @property
    def wants_logits(self) -> bool:
        """Whether somebody looks at the logits of its tokens, or at the states that give them."""
        return self.request.given is None or self.request.given.on_row is not None

    @property
    def reads_prompt(self) -> bool:
        """Whether a part of the prompt's body has yet to be computed."""
        return self.n_computed < self.n_body

    @property
    def done(self) -> bool:
        """Whether nothing more is to be computed; only once it was started."""
        if self.answer is None:
            return self.n_computed >= len(self.tokens)
        return self.answer.finished and (self._pool is None or self.n_computed > self.n_body)

    def phase(self, position: int) -> _Phase:
        """How the token at a position is computed."""
        if position < self.n_body:
            return _PLAIN
        return self._deciding if position == self.n_body else self._answering

    def span(self, most: int, outputs: int, grouping: Grouping) -> Span:
        """The next tokens to compute, at most `most`, of which at most `outputs` give logits."""
        start = self.n_computed
        stop = min(len(self.tokens), start + most, max(start, self.n_body) + outputs)
        if start < self.n_body and self.wants_logits:
            stop = min(stop, self.n_body)
        if start <= self.n_body and (self.wants_logits or self._conditional is not None):
            stop = min(stop, self.n_body + 1)
        key = self._key(start, grouping)
        for border in (self.n_body, self.n_body + 1):
            if start < border < stop and self._key(border, grouping) != key:
                stop = border
        return Span(self, start, stop, key)

    def reads(self, position: int, n_layer: int) -> dict[TensorName, Collection[int]]:
        """The tensors of a position that are to be read, and in which layers."""
        reads: dict[TensorName, Collection[int]] = {}
        if position == self.n_body and self._conditional is not None:
            reads[self._conditional.tensor] = self._conditional.layers
        if position >= self.n_body and self.request.capture is not None:
            reads[self.request.capture] = range(n_layer)
        return reads

    def saw(self, position: int, states: Mapping[TensorName, FloatArray]) -> bool:
        """Take the states `(n_layer, n_dims)` of a position; False where its token must run again,
        steered now. Raises what the steering raises."""
        if self.request.capture is not None and self._pool is not None:
            n_certain = len(self.tokens) if self.answer is None else self.answer.n_certain
            self._pool.add(position - self.n_body, states[self.request.capture], n_certain)
        if position != self.n_body or self._conditional is None:
            return True
        conditional = self._conditional
        self._steer(conditional.at(states[conditional.tensor]))
        self._conditional = None
        return not self._steered

    def computed(self, context: Context, position: int, entry: int) -> None:
        """Draw from the logits of batch entry `entry`, or let them be read: once of each position,
        although a recurrent model computes a whole text again after a pass that was broken off."""
        given, answer = self.request.given, self.answer
        place = position - self.n_body
        if place != (self._n_read if answer is None else len(answer.tokens)):
            return
        if self._logit_edits:
            context.edit_logits(entry, self._logit_edits)
        if given is not None and given.on_row is not None:
            given.on_row(context, entry, place)
            self._n_read += 1
        if answer is None or answer.finished:
            return
        answer.step(context, entry)
        self._follow_answer(answer)

    def mend(self) -> None:
        """After an interrupt anywhere in here: everything follows from the answer's tokens."""
        if self.answer is not None:
            self.answer.mend()
            self._follow_answer(self.answer)

    def resumable(self, start: int) -> int:
        """The tokens of the cache after which it can go on, where a pass that began at `start` was
        broken off, before or after its draw."""
        if self.answer is None:
            return min(start, self.n_computed)
        return min(self.n_computed, self.n_body + len(self.answer.tokens))

    def finish(self) -> Completion:
        """What has come of it; an answer that goes on, or has not begun, is interrupted."""
        n_prompt = self.n_body + 1
        if self.answer is None:
            seconds = time.perf_counter() - self._started if self._started else 0.0
            ended = self.request.given is not None and self.done
            reason: FinishReason = "stop" if ended else "interrupted"
            tokens = tuple(self.tokens[n_prompt : self.n_computed])
            done = Completion(self.request.index, "", tokens, n_prompt, reason, seconds)
        else:
            if not self.answer.finished:
                self.answer.finish("interrupted")
            done = self.answer.completion(self.request.index)
        return replace(done, states=self._pool.states(len(done.tokens)) if self._pool else None)

    def _follow_answer(self, answer: Answer) -> None:
        """Take over what the answer has drawn, or taken back."""
        del self.tokens[self.n_body + 1 + len(answer.tokens) :]
        self.tokens += answer.tokens[len(self.tokens) - self.n_body - 1 :]
        if self._pool is not None:
            self._pool.settle(answer.n_certain)

    def _key(self, position: int, grouping: Grouping) -> object:
        own = self.alone or (grouping.readers_alone and self.reads(position, 1))
        return self.phase(position).key(grouping), self.ticket if own else None

    def _steer(self, injection: Injection | None) -> None:
        shape = self._model.n_layer, self._model.n_embd
        if injection is not None and injection.deciding.shape != shape:
            raise BadInputError(
                f"an injection of shape {injection.deciding.shape} for a model of {shape}",
                "make it for this model",
            )
        hidden = self.request.given is not None and self.request.given.hidden
        edits = () if injection is None else injection.logit_edits
        self._logit_edits = tuple((editor, strength) for editor, strength in edits if strength)
        self._deciding = self._answering = _Phase(hidden=hidden) if hidden else _PLAIN
        self._steered = injection is not None and not injection.is_zero()
        if injection is not None and self._steered:
            hidden = hidden or bool(self._logit_edits)
            self._deciding, self._answering = (
                _Phase(vectors if vectors.any() else None, edits, hidden)
                for vectors, edits in (injection.at("deciding"), injection.at("answer"))
            )


def slot_of(work: Work) -> Slot:
    """The slot of a request that runs."""
    assert work.slot is not None, "a request that runs has a slot"
    return work.slot


class _Pool:
    """Sums the states of an answer's tokens, once it is certain that they stay in it."""

    def __init__(self) -> None:
        self._deciding: FloatArray | None = None
        self._total: FloatArray | None = None
        self._n = 0
        self._waiting: dict[int, FloatArray] = {}

    def add(self, place: int, states: FloatArray, n_certain: int) -> None:
        """The states at the last prompt token (place 0) or at an answer's token, counted from 1, of
        which the first `n_certain` will not be taken back."""
        if place == 0:
            self._deciding = states.copy()
        elif place > self._n:
            self._waiting[place] = states
            self.settle(n_certain)
            if place in self._waiting:
                self._waiting[place] = states.copy()  # the next pass overwrites them

    def settle(self, n_certain: int) -> None:
        """The answer's first `n_certain` tokens will not be taken back."""
        while self._n < n_certain and self._n + 1 in self._waiting:
            states = self._waiting[self._n + 1]
            total = states.copy() if self._total is None else self._total + states
            # In one statement, so that no interrupt loses a state or counts one twice.
            self._total, self._n = total, self._n + 1
            del self._waiting[self._n]

    def states(self, n_answer: int) -> States | None:
        """The pooled states; None where not even the prompt was read."""
        if self._deciding is None:
            return None
        self.settle(n_answer)
        total = np.zeros_like(self._deciding) if self._total is None else self._total
        return States(self._deciding, total / np.float32(max(1, self._n)), self._n)
