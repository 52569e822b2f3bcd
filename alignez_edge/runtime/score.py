"""What a model thinks of a given answer: teacher-forced log-probabilities under injections.

The tokens are computed as those of a drawn answer: the prompt's body plain, its last token under
`injection.deciding`, the answer's tokens under `injection.answer`. `Scorer` gives whole
distributions for one text at a time, `score_batch` the answers' own tokens only, for many plain
texts at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.requests import Given, Request
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.window import window

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

_LOGITS_BYTES = 64 << 20
_SLOTS = 32
"""Texts that `score_batch` has in a pass at most: together they fill one."""
_CELLS = 4096
"""Cells of its cache, unless one text is allowed more."""

Item = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens and answer tokens."""


def rows_that_fit(n_vocab: int) -> int:
    """Tokens per decode where all may ask for logits: llama.cpp's buffers for them stay at 64 MB
    (twice), at 32 to 512 tokens, which prefill almost as fast as more would."""
    return int(np.clip(_LOGITS_BYTES // (4 * n_vocab), 32, 512))


class Scorer:
    """Scores given answers; a context manager. The window is as for a `Session`."""

    def __init__(self, model: Weights, *, n_ctx: int | None = None) -> None:
        rows = rows_that_fit(model.n_vocab)
        self._model = model
        self._scheduler = Scheduler(
            model, n_slots=1, n_ctx=n_ctx, n_batch=rows, n_outputs=rows, keep=1 << 31
        )

    def log_probs(
        self,
        prompt_tokens: Sequence[int],
        answer_tokens: Sequence[int],
        steerings: Sequence[Injection | Conditional | None] = (None,),
    ) -> Iterator[FloatArray]:
        """For each steering in turn, log-probabilities `(n_answer, n_vocab)` in nats.

        Row `i` predicts `answer_tokens[i]`. The prompt's body is computed once for all (and reused
        from the last call as far as it is the same). Each array is the caller's own; drawn one by
        one, only one is in memory. Raises `PromptTooLongError` if prompt and answer do not fit.
        """
        if not prompt_tokens or not answer_tokens:
            raise BadInputError("the prompt or the answer to be scored is empty")
        n_tokens = len(prompt_tokens) + len(answer_tokens)
        if n_tokens > self._scheduler.n_ctx:
            raise PromptTooLongError(
                f"prompt and answer have {n_tokens} tokens, the context window only "
                f"{self._scheduler.n_ctx}",
                "shorten them, or use a larger context (--ctx)",
            )
        return self._log_probs(prompt_tokens, answer_tokens, steerings)

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        self._scheduler.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log_probs(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        steerings: Sequence[Injection | Conditional | None],
    ) -> Iterator[FloatArray]:
        for steering in steerings:
            rows = np.empty((len(answer), self._model.n_vocab), np.float32)

            def keep(context: Context, entry: int, place: int, rows: FloatArray = rows) -> None:
                rows[place] = context.logits(entry)

            given = Given(answer[:-1], keep)  # its last token predicts nothing that is asked for
            for _ in self._scheduler.complete([Request(prompt, steering=steering, given=given)]):
                pass
            yield log_softmax(rows)


def score_batch(
    model: Weights, items: Iterable[Item], *, n_ctx: int | None = None
) -> Iterator[FloatArray]:
    """For each item, in order: the log-probabilities `(n_answer,)` of its answer's tokens, in nats.

    Nothing is injected. Many items go through llama.cpp together, and what their prompts have in
    common is computed once, so items with alike prompts should stand side by side. `items` is drawn
    lazily; logits are read pass by pass and not kept. `n_ctx` is the window of one text, by default
    as for a `Session`. Equal to `Scorer.log_probs` up to the rounding of llama.cpp in passes of
    another size. Raises `PromptTooLongError` if a text does not fit the window, and
    `BadInputError` for an empty prompt or answer.
    """
    limit, left = window(model, n_ctx), enumerate(items)
    rows = rows_that_fit(model.n_vocab)
    with Scheduler(
        model, n_slots=_SLOTS, n_ctx=limit, n_cells=max(limit, _CELLS), n_outputs=max(rows, _SLOTS)
    ) as scheduler:
        while group := list(islice(left, 2 * _SLOTS)):
            found = [np.empty(len(answer), np.float32) for _, (_, answer) in group]
            for index, (prompt, answer) in group:
                _check(index, prompt, answer, limit)
            requests = [
                Request(prompt, index=index, given=Given(answer[:-1], _Picked(answer, picked)))
                for (index, (prompt, answer)), picked in zip(group, found, strict=True)
            ]
            for _ in scheduler.complete(requests):
                pass
            yield from found


class _Picked:
    """A reader of rows that keeps, of each, only the log-probability of the token that follows.

    No array of log-probabilities is made: only the normalizer and the picked entry.
    """

    def __init__(self, answer: Sequence[int], found: FloatArray) -> None:
        self._answer, self._found = answer, found

    def __call__(self, context: Context, entry: int, place: int) -> None:
        logits = context.logits(entry)
        top = logits.max()
        normalizer = top + np.log(np.exp(logits - top).sum())
        self._found[place] = logits[self._answer[place]] - normalizer


def _check(index: int, prompt: Sequence[int], answer: Sequence[int], limit: int) -> None:
    if not prompt or not answer:
        raise BadInputError(f"text {index}: its prompt or its answer is empty")
    if len(prompt) + len(answer) > limit:
        raise PromptTooLongError(
            f"text {index} has {len(prompt) + len(answer)} tokens, the context window only {limit}",
            "shorten it, or use a larger context (--ctx)",
        )


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
