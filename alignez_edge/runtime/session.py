"""One conversation: a scheduler of one slot, which keeps what is plain from turn to turn."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from alignez_edge.chat.messages import Message
from alignez_edge.errors import BadInputError
from alignez_edge.runtime.injection import Conditional, Injection, Steers
from alignez_edge.runtime.requests import Completion, Request, Sampling
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.weights import Prompt, Weights
from alignez_edge.runtime.window import check_fits

_STEP = 256
"""Tokens per step of a prompt: Ctrl-C is answered between steps, and larger ones are no faster."""


class Session:
    """One conversation with one model; a context manager.

    `completion` is the last answer, once its stream has ended or was closed, and `prompt` what
    it answers, where `answer` was asked for it.
    """

    def __init__(self, model: Weights, *, n_ctx: int | None = None) -> None:
        self._model = model
        self._scheduler = Scheduler(model, n_slots=1, n_ctx=n_ctx, n_batch=_STEP, keep=1 << 31)
        self._current: Generator[str, None, None] | None = None
        self.completion: Completion | None = None
        self.prompt: Prompt | None = None

    @property
    def n_ctx(self) -> int:
        """Tokens that prompt and answer may take together."""
        return self._scheduler.n_ctx

    def stream(
        self,
        prompt_tokens: Sequence[int],
        sampling: Sampling,
        injection: Injection | Conditional | None = None,
    ) -> Iterator[str]:
        """The answer, piece by piece; an answer that is still being streamed is ended first.

        Raises `BadInputError` for an empty prompt and `PromptTooLongError` at once where prompt and
        one token more do not fit; once the stream is read, `BadInputError` where the architecture
        lacks a tensor that the steering needs.
        """
        if not prompt_tokens:
            raise BadInputError("the prompt is empty")
        check_fits(len(prompt_tokens), self.n_ctx)
        self._end_current()
        self.completion = self.prompt = None
        ticket = self._scheduler.submit(Request(prompt_tokens, sampling, 0, injection))
        self._current = self._stream(ticket)
        next(self._current)  # so that it is ended even if nobody reads it
        return self._current

    def answer(
        self,
        asked: Sequence[Message] | Prompt,
        *,
        steering: Steers | None = None,
        sampling: Sampling = Sampling(),
    ) -> Iterator[str]:
        """`stream` for the next turn of a conversation, in the model's prompt form: its messages,
        or the prompt that the model has made of them already."""
        prompt = asked if isinstance(asked, Prompt) else self._model.prompt(asked)
        injection = steering.injection(self._model) if steering is not None else None
        pieces = self.stream(prompt.tokens, sampling.with_stops(self._model.stops), injection)
        self.prompt = prompt
        return pieces

    def close(self) -> None:
        """End a running answer and free the context; a second call does nothing."""
        try:
            self._end_current()
        finally:
            self._scheduler.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(self, ticket: int) -> Generator[str, None, None]:
        try:
            yield ""  # read by `stream`
            while self.completion is None:
                for event in self._scheduler.step():
                    if event.error is not None:
                        raise event.error
                    self.completion = event.completion or self.completion
                    if event.text:
                        yield event.text
        finally:
            self.completion = self.completion or self._scheduler.cancel(ticket)

    def _end_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.close()
