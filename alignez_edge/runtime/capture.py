"""Pooled hidden states of (prompt, answer) texts, read while llama.cpp computes them.

Each text is one teacher-forced prefill; short texts go several at a time. The tap copies, of every
layer, only the rows of the last prompt token and of the answer's tokens, and keeps only that row
and the sum over those tokens. Once the last layer's rows are read the rest of the graph (the large
output matrix) is left out, as nobody needs the logits that were asked for.

Facts of llama.cpp that this stands on: the last layer holds only rows whose logits were asked
for (after its attention, whose `kqv_out`, the heads' outputs before the output matrix, still holds
all); the other layers hold all rows of the micro-batch, in the batch's order; nothing is injected
here, so `l_out` is the plain residual stream and each name occurs once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from alignez_edge.errors import BadInputError, PromptTooLongError, RuntimeFailure
from alignez_edge.runtime.context import Context, window
from alignez_edge.runtime.llama import ggml, tensor_shape
from alignez_edge.runtime.score import rows_that_fit
from alignez_edge.runtime.types import Conditional, Injection, States

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

TensorName = Literal["l_out", "ffn_out", "kqv_out"]
Item = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens and answer tokens; the answer may be empty."""

_FALLBACK = {"ffn_out": "ffn_moe_out"}
"""The name where a layer's MLP is a mixture of experts and nothing is added to its output."""


def injected_after(
    model: Model,
    steerings: Sequence[Injection | Conditional | None],
    prompt: Sequence[int],
    n_ctx: int | None = None,
) -> list[Injection | None]:
    """What each of `steerings` injects into the answer to `prompt` (tokens), whether or not it
    looks at it: the prompt is read once for all that do.

    `n_ctx` is the window. Raises as `capture` does.
    """
    seen: dict[TensorName, States] = {}
    found: list[Injection | None] = []
    for steering in steerings:
        if steering is None or isinstance(steering, Injection):
            found.append(steering)
            continue
        tensor = steering.tensor
        if tensor not in seen:
            (seen[tensor],) = capture(model, [(prompt, ())], tensor=tensor, n_ctx=n_ctx)
        found.append(steering.at(seen[tensor].deciding))
    return found


def capture(
    model: Model,
    items: Iterable[Item],
    *,
    tensor: TensorName = "l_out",
    n_dims: int | None = None,
    width: int = 8,
    n_ctx: int | None = None,
) -> Iterator[States]:
    """The `States` of each item, in order; up to `width` items go through llama.cpp together.

    `n_dims` is the size of the tensor's rows where it is not `n_embd`. `items` is drawn lazily, at
    most `width` ahead. Raises `PromptTooLongError` for an item longer than the window (`n_ctx`,
    default as for a `Session`), `BadInputError` where the model's architecture has no such tensor.
    """
    limit = window(model, n_ctx)
    pool = _Pool(model.n_layer, n_dims or model.n_embd, tensor)
    with _Reader(model, pool, width, limit) as reader:
        group: list[_Text] = []
        n_tokens = 0
        for index, (prompt, answer) in enumerate(items):
            text = _text(index, prompt, answer, limit)
            if group and (
                len(group) == reader.width or n_tokens + len(text.tokens) > reader.n_batch
            ):
                yield from reader.read(group)
                group, n_tokens = [], 0
            group.append(text)
            n_tokens += len(text.tokens)
        if group:
            yield from reader.read(group)


@dataclass(frozen=True)
class _Text:
    """One item: all its tokens, and the position of the deciding one."""

    tokens: list[int]
    deciding: int

    @property
    def n_answer(self) -> int:
        return len(self.tokens) - self.deciding - 1


def _text(index: int, prompt: Sequence[int], answer: Sequence[int], limit: int) -> _Text:
    if not prompt:
        raise BadInputError(f"text {index} has an empty prompt")
    n_tokens = len(prompt) + len(answer)
    if n_tokens > limit:
        raise PromptTooLongError(
            f"text {index} has {n_tokens} tokens, the context window only {limit}",
            "shorten it, or use a larger context (--ctx)",
        )
    return _Text([*prompt, *answer], len(prompt) - 1)


@dataclass
class _Span:
    """Where the rows of text `text` are among the wanted rows of one decode.

    `deciding` is a row or None; the answer's rows are `[begin, end)`.
    """

    text: int
    deciding: int | None
    begin: int
    end: int

    @property
    def first(self) -> int:
        """The first of its rows."""
        return self.begin if self.deciding is None else self.deciding


class _Pool:
    """The tap: deciding rows and sums of answer rows, for one group of texts."""

    def __init__(self, n_layer: int, n_dims: int, tensor: TensorName) -> None:
        self._shape = (n_layer, n_dims)
        self._tensor = tensor
        names = [_FALLBACK[tensor]] if tensor in _FALLBACK else []
        self._layers = {
            f"{name}-{layer}".encode(): layer
            for name in [*names, tensor]
            for layer in range(n_layer)
        }
        self._last = f"{tensor}-{n_layer - 1}".encode()
        self._rows = np.zeros(0, np.int64)
        self._n_tokens = 0
        self._spans: list[_Span] = []
        self._block = np.empty((0, n_dims), np.float32)
        self.start(0)

    def start(self, n_texts: int) -> None:
        """Forget everything and expect `n_texts` texts."""
        self.deciding = np.zeros((n_texts, *self._shape), np.float32)
        self.total = np.zeros((n_texts, *self._shape), np.float64)

    def expect(self, n_tokens: int, rows: list[int], spans: list[_Span]) -> None:
        """What the next decode holds: `rows` are the wanted ones of its `n_tokens`, rising."""
        self._n_tokens, self._rows, self._spans = n_tokens, np.array(rows, np.int64), spans
        longest = max((span.end - span.first for span in spans), default=0)
        if longest > len(self._block):
            self._block = np.empty((longest, self._shape[1]), np.float32)
        # By layer, so that a second reading replaces the first: experts' output, then the sum of
        # that and a shared expert's.
        self._found: dict[int, np.ndarray] = {}

    def wants(self, name: bytes) -> bool:
        return len(self._rows) > 0 and name in self._layers

    def read(self, name: bytes, tensor: int) -> bool:
        n_dims, n_rows, *others = tensor_shape(tensor)
        if n_dims != self._shape[1] or others != [1, 1]:
            raise RuntimeFailure(f"{name.decode()} has the shape {(n_dims, n_rows, *others)}")
        if n_rows == len(self._rows):
            at = [span.first for span in self._spans]
        elif n_rows == self._n_tokens:
            at = [int(self._rows[span.first]) for span in self._spans]
        else:
            raise RuntimeFailure(
                f"{name.decode()} has {n_rows} rows, not {len(self._rows)} or {self._n_tokens}"
            )
        # A text's rows are neighbours: one copy a text, small enough to stay in the cpu's cache.
        found = np.zeros((len(self._spans), 2, n_dims), np.float32)
        for (deciding, total), span, first in zip(found, self._spans, at, strict=True):
            rows = self._block[: span.end - span.first]
            ggml.tensor_get(tensor, rows.ctypes.data, first * n_dims * 4, rows.nbytes)
            if span.deciding is not None:
                deciding[:] = rows[0]
            rows[span.begin - span.first :].sum(axis=0, out=total)
        self._found[self._layers[name]] = found
        return name != self._last

    def add(self) -> None:
        """Take what the decode left. Raises `BadInputError` where a layer's tensor was missing."""
        if not len(self._rows):
            return
        for layer in range(self._shape[0]):
            if layer not in self._found:
                raise BadInputError(
                    f"this model's architecture has no tensor {self._tensor}-{layer} in llama.cpp",
                    "its hidden states cannot be read there",
                )
            for (deciding, total), span in zip(self._found[layer], self._spans, strict=True):
                if span.deciding is not None:
                    self.deciding[span.text, layer] = deciding
                self.total[span.text, layer] += total


class _Reader:
    """A context with a tap; its cache grows with the texts, so that short ones take little."""

    def __init__(self, model: Model, pool: _Pool, width: int, limit: int) -> None:
        self._model = model
        self._pool = pool
        self._limit = limit
        self._width = width
        self._context = self._make(limit if width == 1 else rows_that_fit(model.n_vocab))
        # llama.cpp reorders the tokens of several sequences where the model is recurrent.
        self.width = 1 if self._context.recurrent else width

    @property
    def n_batch(self) -> int:
        """Tokens per decode."""
        return self._context.n_batch

    def read(self, group: Sequence[_Text]) -> Iterator[States]:
        """Compute a group, of one text or of at most `n_batch` tokens, and yield its states."""
        self._compute(group)
        deciding, total = self._pool.deciding, self._pool.total
        for i, text in enumerate(group):
            mean = (total[i] / max(1, text.n_answer)).astype(np.float32)
            yield States(deciding[i].copy(), mean, text.n_answer)

    def close(self) -> None:
        self._context.close()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _make(self, n_cells: int) -> Context:
        return Context(
            self._model,
            n_ctx=n_cells,
            n_seq=self._width,
            n_batch=rows_that_fit(self._model.n_vocab),
            capture=self._pool,
        )

    def _compute(self, group: Sequence[_Text]) -> None:
        n_tokens = sum(len(text.tokens) for text in group)
        if n_tokens > self._context.n_ctx:
            self._context.close()
            self._context = self._make(min(self._limit, 1 << (n_tokens - 1).bit_length()))
        self._context.clear()
        self._pool.start(len(group))
        tokens = [token for text in group for token in text.tokens]
        positions = [i for text in group for i in range(len(text.tokens))]
        sequences = [i for i, text in enumerate(group) for _ in text.tokens]
        for begin in range(0, n_tokens, self.n_batch):
            end = min(begin + self.n_batch, n_tokens)
            rows, spans = _wanted(group, begin, end)
            wanted = np.zeros(end - begin, bool)
            wanted[rows] = True
            self._pool.expect(end - begin, rows, spans)
            self._context.decode(
                tokens[begin:end], positions[begin:end], sequences[begin:end], wanted.tolist()
            )
            self._pool.add()


def _wanted(group: Sequence[_Text], begin: int, end: int) -> tuple[list[int], list[_Span]]:
    """The wanted rows among tokens `[begin, end)` of the joined texts, and whose they are."""
    rows: list[int] = []
    spans: list[_Span] = []
    offset = 0
    for index, text in enumerate(group):
        deciding = offset + text.deciding
        offset += len(text.tokens)
        first, last = max(deciding, begin), min(offset, end)
        if first < last:
            row = len(rows)
            rows.extend(range(first - begin, last - begin))
            decides = first == deciding
            spans.append(_Span(index, row if decides else None, row + decides, len(rows)))
    return rows, spans
