"""What of a prompt is already computed: plain states that are kept from prompt to prompt."""

from __future__ import annotations

from collections.abc import Sequence

from alignez_edge.runtime.context import Context


class PlainPrefix:
    """Sequence 0 of a context as a prefix of plain states, reused from prompt to prompt.

    `tokens` are those whose cells are known to be plain; whatever else the cache holds is removed
    by the next `hold` (or at once by `cut`).
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tokens: list[int] = []

    def hold(self, tokens: Sequence[int]) -> None:
        """Make the sequence exactly `tokens`, all plain, computing only what is not yet there."""
        self.context.steer(None)
        self.cut(common_prefix(self.tokens, tokens))
        start = len(self.tokens)
        for begin in range(start, len(tokens), self.context.n_batch):
            step = tokens[begin : begin + self.context.n_batch]
            self.context.prefill(step, begin)
            self.tokens.extend(step)

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens and drop all other cells, steered ones included."""
        del self.tokens[length:]
        if not self.context.remove(0, length):
            self.context.clear()
            self.tokens.clear()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts share at their beginning."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
