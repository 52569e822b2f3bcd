"""Many prompts, each with its own steering, at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.prefix import common_prefix
from alignez_edge.runtime.requests import Completion, Request
from alignez_edge.runtime.scheduler import Progress, Scheduler
from alignez_edge.runtime.window import window

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

_MOST_CELLS = 16384
"""Cells of the shared cache at most, unless one sequence is allowed more: 0.5 GB in a 1 B model.
Where the first prompts ask for more, fewer of them run at a time."""


def generate_batch(
    model: Weights,
    requests: Iterable[Request],
    *,
    injection: Injection | Conditional | None = None,
    width: int = 16,
    n_ctx_per_sequence: int | None = None,
    on_progress: Progress | None = None,
) -> Iterator[Completion]:
    """Answers to all requests, as they finish; `Completion.index` tells which is which.

    `injection` steers those that bring no steering of their own. At most `width` run at a time;
    `requests` is drawn lazily. One prompt and its answer have room for `n_ctx_per_sequence` tokens
    (default: as for a `Session`), whatever else is running. Where a request cannot be taken (its
    prompt does not fit: `PromptTooLongError` with its index) or fails, the running answers are
    finished and yielded, then the error is raised. Closing the iterator frees everything.
    """
    if width < 1:
        raise BadInputError(f"a batch of width {width}", "it must be at least 1")
    limit = window(model, n_ctx_per_sequence)
    width = min(width, cpp.llama_max_parallel_sequences())
    steered = (
        request if request.steering is not None else replace(request, steering=injection)
        for request in requests
    )
    return _run(model, steered, width, limit, on_progress)


def _run(
    model: Weights,
    requests: Iterator[Request],
    width: int,
    limit: int,
    on_progress: Progress | None,
) -> Iterator[Completion]:
    first = list(islice(requests, width))
    if first:
        cells = min(_wanted(first, limit), _MOST_CELLS)
        with Scheduler(model, n_slots=width, n_ctx=limit, n_cells=cells) as scheduler:
            yield from scheduler.complete(chain(first, requests), on_progress)


def _wanted(requests: list[Request], limit: int) -> int:
    """The cells that requests like these take. Prompts count twice: those that follow may be
    longer, and what ended ones leave is worth keeping."""
    cells, first = 0, list(requests[0].tokens)
    for request in requests:
        tokens = list(request.tokens)
        shared = 0 if request is requests[0] else common_prefix(first, tokens)
        answer = max(0, request.sampling.max_tokens)
        cells += min(len(tokens) + answer, limit) + len(tokens) - 2 * shared
    return cells
