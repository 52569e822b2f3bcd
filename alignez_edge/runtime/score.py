"""What a model thinks of a given answer: teacher-forced log-probabilities under injections.

The passes are those of generation: the prompt's body plain, its last token under
`injection.deciding`, the answer's tokens under `injection.answer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.prefix import PlainPrefix
from alignez_edge.runtime.types import FloatArray, Injection

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

_LOGITS_BYTES = 64 << 20


def rows_that_fit(n_vocab: int) -> int:
    """Tokens per decode where all may ask for logits: llama.cpp's buffers for them stay at 64 MB
    (twice), at 32 to 512 tokens, which prefill almost as fast as more would."""
    return int(np.clip(_LOGITS_BYTES // (4 * n_vocab), 32, 512))


class Scorer:
    """Scores answers with one context; a context manager. Window and reference are as for a
    `Session`."""

    def __init__(self, model: Model, *, n_ctx: int | None = None, reference: bool = False) -> None:
        self._context = Context(
            model, n_ctx=n_ctx, n_batch=rows_that_fit(model.n_vocab), reference=reference
        )
        self._plain = PlainPrefix(self._context)

    def log_probs(
        self,
        prompt_tokens: Sequence[int],
        answer_tokens: Sequence[int],
        injections: Sequence[Injection | None] = (None,),
    ) -> Iterator[FloatArray]:
        """For each injection in turn, log-probabilities `(n_answer, n_vocab)` in nats.

        Row `i` predicts `answer_tokens[i]`. The prompt's body is computed once for all (and reused
        from the last call as far as it is the same). Each array is the caller's own; drawn one by
        one, only one is in memory. Raises `PromptTooLongError` where prompt and answer do not fit.
        """
        if not prompt_tokens or not answer_tokens:
            raise BadInputError("the prompt or the answer to be scored is empty")
        n_tokens = len(prompt_tokens) + len(answer_tokens)
        if n_tokens > self._context.n_ctx:
            raise PromptTooLongError(
                f"prompt and answer have {n_tokens} tokens, the context window only "
                f"{self._context.n_ctx}",
                "shorten them, or use a larger context (--ctx)",
            )
        return self._log_probs(list(prompt_tokens), list(answer_tokens), injections)

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        self._context.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log_probs(
        self, prompt: list[int], answer: list[int], injections: Sequence[Injection | None]
    ) -> Iterator[FloatArray]:
        context = self._context
        for injection in injections:
            self._plain.hold(prompt[:-1])
            rows = np.empty((len(answer), context.model.n_vocab), np.float32)
            try:
                context.steer(injection, "deciding")
                self._read(prompt[-1:], len(prompt) - 1, rows[:1])
                context.steer(injection, "answer")
                self._read(answer[:-1], len(prompt), rows[1:])
            finally:
                context.steer(None)
                self._plain.cut(len(self._plain.tokens))
            yield log_softmax(rows)

    def _read(self, tokens: list[int], start: int, rows: FloatArray) -> None:
        """Compute `tokens` from position `start` on and copy the logits after each into `rows`."""
        n_batch = self._context.n_batch
        for begin in range(0, len(tokens), n_batch):
            step = tokens[begin : begin + n_batch]
            n, first = len(step), start + begin
            self._context.decode(step, range(first, first + n), [0] * n, [True] * n)
            for i in range(n):
                self._context.edit_logits(i)
                rows[begin + i] = self._context.logits(i)


def log_softmax(logits: FloatArray) -> FloatArray:
    """Log-probabilities of each row, in place; the normalizer is summed in float64."""
    logits -= logits.max(axis=-1, keepdims=True)
    for row in logits:
        row -= np.log(np.exp(row).sum(dtype=np.float64))
    return logits


def answer_log_prob(log_probs: FloatArray, tokens: Sequence[int]) -> float:
    """Log-probability of the answer `tokens`, in nats: the sum over its tokens."""
    if len(log_probs) != len(tokens):
        raise ValueError(f"{len(log_probs)} rows for {len(tokens)} tokens")
    return float(log_probs[np.arange(len(tokens)), list(tokens)].sum(dtype=np.float64))


def kl_divergence(p: FloatArray, q: FloatArray) -> float:
    """KL(p || q) of log-probability rows `(n, n_vocab)`, in nats: the mean over rows.

    Never negative but for rounding: clipped at 0.
    """
    if p.shape != q.shape:
        raise ValueError(f"shapes differ: {p.shape} and {q.shape}")
    rows = []
    for a, b in zip(p, q, strict=True):  # a row at a time: they are as many as an answer's tokens
        exact = a.astype(np.float64)
        rows.append(np.dot(np.exp(exact), exact - b))
    return max(0.0, float(np.mean(rows)))
