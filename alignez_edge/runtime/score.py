"""What a model thinks of a given answer: teacher-forced log-probabilities under injections.

`Scorer` gives whole distributions for one text at a time. Its passes are those of generation: the
prompt's body plain, its last token under `injection.deciding`, the answer's tokens under
`injection.answer`. `score_batch` gives the answers' own tokens only, for many plain texts at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.runtime.context import Context, window
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.prefix import PlainPrefix, common_prefix
from alignez_edge.runtime.types import FloatArray, Injection

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

_LOGITS_BYTES = 64 << 20
_N_BATCH = 512
_SEQUENCES = 64
"""Prompts and answers of one group at most."""
_CELLS = 2048
"""Cells of the cache of `score_batch`, unless one text is allowed more."""
_WORTH_A_PASS = 16
"""Tokens that a separate pass over a shared beginning must save (see `batch.py`)."""

Item = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens and answer tokens."""


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


def score_batch(
    model: Model, items: Iterable[Item], *, n_ctx: int | None = None
) -> Iterator[FloatArray]:
    """For each item, in order: the log-probabilities `(n_answer,)` of its answer's tokens, in nats.

    Nothing is injected. Many items go through llama.cpp together. Neighbours share the cells of
    what their prompts have in common, so items with alike prompts should stand side by side.
    `items` is drawn lazily; logits are read pass by pass and not kept. `n_ctx` is the window of one
    text, by default as for a `Session`. Equal to `Scorer.log_probs` up to the rounding of llama.cpp
    in passes of another size. Raises `PromptTooLongError` where a text does not fit the window, and
    `BadInputError` for an empty prompt or answer.
    """
    limit = window(model, n_ctx)
    if cpp.llama_model_is_recurrent(model.handle) or cpp.llama_model_is_hybrid(model.handle):
        return _score_alone(model, items, limit)
    return _score_groups(model, items, limit)


def _score_alone(model: Model, items: Iterable[Item], limit: int) -> Iterator[FloatArray]:
    """One text after another: a running state cannot be shared in part."""
    with Scorer(model, n_ctx=limit) as scorer:
        for prompt, answer in items:
            (rows,) = scorer.log_probs(prompt, answer)
            yield rows[np.arange(len(answer)), list(answer)]


def _score_groups(model: Model, items: Iterable[Item], limit: int) -> Iterator[FloatArray]:
    n_seq = min(_SEQUENCES + 1, cpp.llama_max_parallel_sequences())
    n_rows = min(rows_that_fit(model.n_vocab), _N_BATCH)
    with Context(
        model, n_ctx=max(limit, _CELLS), n_seq=n_seq, n_batch=_N_BATCH, n_outputs=n_rows
    ) as context:
        scores = _BatchScores(context, n_rows)
        group: list[Item] = []
        n_group = n_tokens = 0
        for index, (prompt, answer) in enumerate(items):
            if not prompt or not answer:
                raise BadInputError(f"text {index}: its prompt or its answer is empty")
            if len(prompt) + len(answer) > limit:
                raise PromptTooLongError(
                    f"text {index} has {len(prompt) + len(answer)} tokens, the context window only "
                    f"{limit}",
                    "shorten it, or use a larger context (--ctx)",
                )
            new = not group or group[-1][0] != prompt
            more = len(prompt) * new + len(answer)
            full = (
                n_group + new + 1 > n_seq - 1
                or n_tokens + more > context.n_ctx
                or sum(len(a) for _, a in group) + len(answer) > n_rows
            )
            if group and full:
                yield from scores.read(group)
                group, n_group, n_tokens, new = [], 0, 0, True
                more = len(prompt) + len(answer)
            group.append((prompt, answer))
            n_group, n_tokens = n_group + new + 1, n_tokens + more
        if group:
            yield from scores.read(group)


@dataclass
class _Wanted:
    """A token whose logits are read: which tokens' log-probabilities go to which places."""

    token: int
    position: int
    sequence: int
    picks: list[tuple[FloatArray, int, int]]
    """(the item's result, index in it, token); empty where nobody wants the logits."""


class _BatchScores:
    """Computes groups of items. Sequence 0 holds the plain body of the last prompt."""

    def __init__(self, context: Context, n_rows: int) -> None:
        self._context = context
        self._n_rows = n_rows
        self._kept: Sequence[int] = ()
        self._scratch = np.empty(context.model.n_vocab, np.float32)

    def read(self, group: Sequence[Item]) -> list[FloatArray]:
        """The log-probabilities of each item's answer."""
        found = [np.empty(len(answer), np.float32) for _, answer in group]
        prompts: list[Sequence[int]] = []
        members: list[list[int]] = []
        for i, (prompt, _) in enumerate(group):
            if not prompts or prompts[-1] != prompt:
                prompts.append(prompt)
                members.append([])
            members[-1].append(i)
        self._share_beginning([prompt[:-1] for prompt in prompts])
        # The first answer to a prompt follows it in its own sequence; the others share its cells.
        first: list[_Wanted] = []
        for sequence, (prompt, own) in enumerate(zip(prompts, members, strict=True), 1):
            n_shared = common_prefix(self._kept, prompt[:-1])
            if n_shared:
                self._context.share(0, sequence, 0, n_shared)
            for position in range(n_shared, len(prompt) - 1):
                first.append(_Wanted(prompt[position], position, sequence, []))
            picks = [(found[i], 0, group[i][1][0]) for i in own]
            first.append(_Wanted(prompt[-1], len(prompt) - 1, sequence, picks))
            first += _answer(group[own[0]], sequence, found[own[0]])
        self._compute(first)
        rest: list[_Wanted] = []
        free = len(prompts) + 1
        for sequence, (prompt, own) in enumerate(zip(prompts, members, strict=True), 1):
            for i in own[1:]:
                self._context.share(sequence, free, 0, len(prompt))
                rest += _answer(group[i], free, found[i])
                free += 1
        self._compute(rest)
        self._context.remove(0)
        self._kept = prompts[-1][:-1]
        if self._kept:
            self._context.share(len(prompts), 0, 0, len(self._kept))
        for sequence in range(1, free):
            self._context.remove(sequence)
        return found

    def _share_beginning(self, bodies: Sequence[Sequence[int]]) -> None:
        """Compute into sequence 0 what the others have in common with the first, if that pays."""
        first, *others = bodies
        common = [common_prefix(first, body) for body in others]
        saved = (n - common_prefix(self._kept, b) for n, b in zip(common, others, strict=True))
        if sum(n for n in saved if n > 0) <= _WORTH_A_PASS:
            return
        n_kept = common_prefix(self._kept, first)
        self._context.remove(0, n_kept)
        self._kept = first[: max(common)]
        self._context.prefill(self._kept[n_kept:], n_kept)

    def _compute(self, entries: Sequence[_Wanted]) -> None:
        """Compute the tokens in passes of at most `n_batch` tokens and `n_rows` rows of logits."""
        begin = 0
        while begin < len(entries):
            end, n_rows = begin, 0
            while end < min(len(entries), begin + self._context.n_batch):
                n_rows += bool(entries[end].picks)
                if n_rows > self._n_rows:
                    break
                end += 1
            step = entries[begin:end]
            self._context.decode(
                [e.token for e in step],
                [e.position for e in step],
                [e.sequence for e in step],
                [bool(e.picks) for e in step],
            )
            for i, entry in enumerate(step):
                if entry.picks:
                    self._pick(self._context.logits(i), entry.picks)
            begin = end

    def _pick(self, logits: FloatArray, picks: Sequence[tuple[FloatArray, int, int]]) -> None:
        # Only the normalizer and the picked entries: no array of log-probabilities is made.
        top = logits.max()
        np.subtract(logits, top, out=self._scratch)
        np.exp(self._scratch, out=self._scratch)
        normalizer = top + np.log(self._scratch.sum())
        for target, index, token in picks:
            target[index] = logits[token] - normalizer


def _answer(item: Item, sequence: int, target: FloatArray) -> list[_Wanted]:
    """The passes of an answer's tokens but the last, each of which predicts the next."""
    prompt, answer = item
    return [
        _Wanted(token, len(prompt) + i, sequence, [(target, i + 1, answer[i + 1])])
        for i, token in enumerate(answer[:-1])
    ]


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
