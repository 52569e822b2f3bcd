"""Pooled hidden states of given (prompt, answer) texts; those of generated answers come with them
(`Request.capture`).

Each text is one teacher-forced prefill; short texts go several at a time. Of every layer only the
rows of the last prompt token and of the answer's tokens are copied, and only that row and the mean
over those tokens are kept. Once the last layer's rows are read the rest of the graph (the large
output matrix) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from alignez_edge.arrays import TensorName
from alignez_edge.directions.hidden_states import States
from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.runtime.requests import Given, Request
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.score import rows_that_fit
from alignez_edge.runtime.window import window

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

Item = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens and answer tokens; the answer may be empty."""


def capture(
    model: Weights,
    items: Iterable[Item],
    *,
    tensor: TensorName = "l_out",
    width: int = 8,
    n_ctx: int | None = None,
) -> Iterator[States]:
    """The `States` of each item, in order; up to `width` items go through llama.cpp together.

    `items` is drawn lazily, at most `width` ahead. Raises `PromptTooLongError` for an item longer
    than the window (`n_ctx`, default as for a `Session`), `BadInputError` where the model's
    architecture has no such tensor.
    """
    limit = window(model, n_ctx)
    reader = _Reader(model, tensor, width, limit)
    try:
        group: list[Request] = []
        n_tokens = 0
        for index, (prompt, answer) in enumerate(items):
            request = _request(index, prompt, answer, tensor, limit)
            n_text = len(prompt) + len(answer)
            if group and (len(group) == width or n_tokens + n_text > reader.n_batch):
                yield from reader.read(group, n_tokens)
                group, n_tokens = [], 0
            group.append(request)
            n_tokens += n_text
        if group:
            yield from reader.read(group, n_tokens)
    finally:
        reader.close()


def _request(
    index: int, prompt: Sequence[int], answer: Sequence[int], tensor: TensorName, limit: int
) -> Request:
    if not prompt:
        raise BadInputError(f"text {index} has an empty prompt")
    n_tokens = len(prompt) + len(answer)
    if n_tokens > limit:
        raise PromptTooLongError(
            f"text {index} has {n_tokens} tokens, the context window only {limit}",
            "shorten it, or use a larger context (--ctx)",
        )
    return Request(prompt, index=index, capture=tensor, given=Given(answer))


class _Reader:
    """A scheduler whose cache grows with the texts, so that short ones take little."""

    def __init__(self, model: Weights, tensor: TensorName, width: int, limit: int) -> None:
        self._model, self._width, self._limit = model, width, limit
        self.n_batch = rows_that_fit(model.n_vocab)
        self._n_cells = 0
        self._scheduler: Scheduler | None = None

    def read(self, group: Sequence[Request], n_tokens: int) -> Iterator[States]:
        """The states of a group of texts with so many tokens together, in their order."""
        if n_tokens > self._n_cells:
            self.close()
            wanted = max(n_tokens, min(self.n_batch, self._limit))
            self._n_cells = min(1 << (wanted - 1).bit_length(), max(self._limit, wanted))
            self._scheduler = Scheduler(
                self._model,
                n_slots=self._width,
                n_ctx=min(self._n_cells, self._limit),
                n_cells=self._n_cells,
                n_batch=self.n_batch,
                n_outputs=self.n_batch,
                keep=0,
            )
        assert self._scheduler is not None
        done = sorted(self._scheduler.complete(group), key=lambda completion: completion.index)
        for completion in done:
            assert completion.states is not None
            yield completion.states

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        if self._scheduler is not None:
            self._scheduler.close()
