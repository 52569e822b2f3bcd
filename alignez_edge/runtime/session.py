"""One conversation: a context whose cache holds plain states only.

Invariant: between calls every cell of the cache was computed without injection. A prompt but for
its last token always runs plain, on top of the longest prefix that is already there; the last
token (the deciding token) always runs alone, steered or not, so that plain and steered answers to
one prompt come from equally shaped passes. What was computed under an injection is removed when
the answer ends, however it ends.

An injection that depends on the prompt (`Conditional`) costs one pass more: the last token runs
once plain and is read, its cell is removed, and it runs again under what came of it. Nothing else
differs from an injection that was known before.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.gguffile import GGUFFile
from alignez_edge.runtime.context import Context, check_fits
from alignez_edge.runtime.llama import ggml, tensor_shape
from alignez_edge.runtime.prefix import PlainPrefix
from alignez_edge.runtime.reference import mlp_output
from alignez_edge.runtime.sampler import Answer
from alignez_edge.runtime.types import (
    Completion,
    Conditional,
    FloatArray,
    Injection,
    Message,
    Sampling,
    Steers,
)

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
        self._reference = reference
        self._tap: _LastToken | None = None
        self._context = self._make_context(n_ctx)
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
        injection: Injection | Conditional | None = None,
    ) -> Iterator[str]:
        """The answer, piece by piece; an answer that is still being streamed is ended first.

        Raises `PromptTooLongError` at once where prompt and one token more do not fit; once the
        stream is read, `BadInputError` where the architecture lacks a tensor that a `Conditional`
        must see.
        """
        if not prompt_tokens:
            raise BadInputError("the prompt is empty")
        check_fits(len(prompt_tokens), self.n_ctx)
        if isinstance(injection, Injection) and injection.is_zero():
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self, prompt: list[int], sampling: Sampling, steering: Injection | Conditional | None
    ) -> Generator[str, None, None]:
        if isinstance(steering, Injection) or steering is None:
            injection, conditional = steering, None
        else:
            injection, conditional = None, steering
            self._let_read()
        context, plain = self._context, self._plain
        answer = Answer(self._model, sampling, len(prompt), self.n_ctx)
        n_body = len(prompt) - 1
        try:
            if not answer.finished:
                plain.hold(prompt[:-1])
                if conditional is not None:
                    injection = self._injection(conditional, prompt)
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
            if injection is not None and not context.closed:
                context.steer(None)
                plain.cut(min(n_body, len(plain.tokens)))
            if not answer.finished:
                answer.finish("interrupted")
            self.completion = answer.completion()

    def _decode(self, token: int, position: int, is_plain: bool) -> None:
        self._context.decode([token], [position], [0], [True])
        if is_plain:
            self._plain.tokens.append(token)

    def _make_context(self, n_ctx: int | None, tap: _LastToken | None = None) -> Context:
        context = Context(
            self._model,
            n_ctx=n_ctx,
            n_batch=_STEP,
            n_outputs=1,
            capture=tap,
            reference=self._reference,
        )
        context.listen(False)
        return context

    def _let_read(self) -> None:
        """Change to a context whose passes can be read: others need not pay for one that can."""
        if self._tap is not None:
            return
        tap = _LastToken(self._model.gguf, self._model.n_layer, self._model.n_embd)
        # Made first: where there is no memory for it, the session goes on with the old one.
        old, context = self._context, self._make_context(self.n_ctx, tap)
        self._tap, self._context, self._plain = tap, context, PlainPrefix(context)
        old.close()

    def _injection(self, steering: Conditional, prompt: list[int]) -> Injection | None:
        """What steers the answer to `prompt`, whose body is held; afterwards it is held again."""
        assert self._tap is not None
        self._tap.start(steering)
        self._context.listen(True)
        try:
            self._context.decode([prompt[-1]], [len(prompt) - 1], [0], [True])
        finally:
            self._context.listen(False)
            self._plain.cut(len(prompt) - 1)
        # Recurrent models cannot forget one token: they read the body anew.
        self._plain.hold(prompt[:-1])
        injection = steering.at(self._tap.finish())
        return None if injection is None or injection.is_zero() else injection

    def _end_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.close()


class _LastToken:
    """A tap that reads the states of a pass of one token, and ends it with the last of them."""

    def __init__(self, gguf: GGUFFile, n_layer: int, n_embd: int) -> None:
        self._names = {
            "l_out": [f"l_out-{layer}".encode() for layer in range(n_layer)],
            "ffn_out": [mlp_output(gguf, layer).encode() for layer in range(n_layer)],
        }
        self._shape = (n_layer, n_embd)

    def start(self, steering: Conditional) -> None:
        """Expect a pass, and what `steering` must see of it."""
        names = self._names[steering.tensor]
        self._wanted = {names[layer]: layer for layer in steering.layers}
        self._states = np.zeros(self._shape, np.float32)

    def finish(self) -> FloatArray:
        """`(n_layer, n_embd)`, zero in layers that nobody asked for. Raises `BadInputError` where
        a tensor did not come by."""
        if self._wanted:
            name = min(self._wanted).decode()
            raise BadInputError(
                f"this model's architecture has no tensor {name} in llama.cpp",
                "steering that depends on the query cannot be had with it",
            )
        return self._states

    def wants(self, name: bytes) -> bool:
        return name in self._wanted

    def read(self, name: bytes, tensor: int) -> bool:
        row = self._states[self._wanted.pop(name)]
        if tensor_shape(tensor) != (len(row), 1, 1, 1):
            raise RuntimeFailure(f"{name.decode()} has the shape {tensor_shape(tensor)}")
        ggml.tensor_get(tensor, row.ctypes.data, 0, row.nbytes)
        return bool(self._wanted)
