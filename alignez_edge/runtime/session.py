"""One conversation: a context whose cache holds plain states only.

Invariant: between calls every cell of the cache was computed without injection. A prompt but for
its last token always runs plain, on top of the longest prefix that is already there; the last
token (the deciding token) always runs alone, steered or not, so that plain and steered answers to
one prompt come from equally shaped passes. What was computed under an injection is removed when
the answer ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.runtime.context import Context, PlainPrefix, check_fits
from alignez_edge.runtime.sampler import Answer
from alignez_edge.runtime.types import Completion, Injection, Message, Sampling, Steers

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

_STEP = 256
"""Tokens per step of a prompt: Ctrl-C is answered between steps, and larger ones are no faster."""


class Session:
    """One conversation with one model; a context manager.

    `completion` is the last answer, once its stream has ended or was closed. `reference` is
    needed for injections with an `Editor`.
    """

    def __init__(self, model: Model, *, n_ctx: int | None = None, reference: bool = False) -> None:
        self._model = model
        self._context = Context(model, n_ctx=n_ctx, n_batch=_STEP, n_outputs=1, reference=reference)
        self._plain = PlainPrefix(self._context)
        self._current: Generator[str, None, None] | None = None
        self.completion: Completion | None = None

    @property
    def n_ctx(self) -> int:
        """Tokens that prompt and answer may take together."""
        return self._context.n_ctx

    @property
    def plain_tokens(self) -> tuple[int, ...]:
        """The tokens whose plain states are in the cache."""
        return tuple(self._plain.tokens)

    def stream(
        self,
        prompt_tokens: Sequence[int],
        sampling: Sampling,
        injection: Injection | None = None,
    ) -> Iterator[str]:
        """The answer, piece by piece; an answer that is still being streamed is ended first.

        Raises `PromptTooLongError` at once where prompt and one token more do not fit.
        """
        if not prompt_tokens:
            raise BadInputError("the prompt is empty")
        check_fits(len(prompt_tokens), self.n_ctx)
        if injection is not None and injection.is_zero():
            injection = None
        self._end_current()
        self.completion = None
        self._current = self._stream(list(prompt_tokens), sampling, injection)
        return self._current

    def answer(
        self,
        messages: Sequence[Message],
        *,
        steering: Steers | None = None,
        sampling: Sampling = Sampling(),
    ) -> Iterator[str]:
        """`stream` for the next turn of a conversation, in the model's prompt form."""
        prompt = self._model.prompt(messages)
        injection = steering.injection(self._model) if steering is not None else None
        stop = tuple(dict.fromkeys((*sampling.stop, *self._model.stops)))
        return self.stream(prompt.tokens, replace(sampling, stop=stop), injection)

    def close(self) -> None:
        """End a running answer and free the context; a second call does nothing."""
        self._end_current()
        self._context.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(
        self, prompt: list[int], sampling: Sampling, injection: Injection | None
    ) -> Generator[str, None, None]:
        context, plain = self._context, self._plain
        answer = Answer(self._model, sampling, len(prompt), self.n_ctx)
        n_body = len(prompt) - 1
        try:
            if not answer.finished:
                plain.hold(prompt[:-1])
                context.steer(injection, "deciding")
                self._decode(prompt[-1], n_body, injection is None)
                if text := answer.step(context, 0):
                    yield text
                context.steer(injection, "answer")
            while not answer.finished:
                position = n_body + len(answer.tokens)
                self._decode(answer.tokens[-1], position, injection is None)
                if text := answer.step(context, 0):
                    yield text
        finally:
            if injection is not None:
                context.steer(None)
                plain.cut(min(n_body, len(plain.tokens)))
            if not answer.finished:
                answer.finish("interrupted")
            self.completion = answer.completion()

    def _decode(self, token: int, position: int, is_plain: bool) -> None:
        self._context.decode([token], [position], [0], [True])
        if is_plain:
            self._plain.tokens.append(token)

    def _end_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.close()
