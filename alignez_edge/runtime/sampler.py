"""From logits to text: drawing tokens, assembling characters, knowing when to stop."""

from __future__ import annotations

import codecs
import time
import weakref
from bisect import bisect_left
from math import inf, isfinite
from typing import TYPE_CHECKING

from alignez_edge.errors import RuntimeFailure
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.requests import Completion, FinishReason, Sampling

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp takes this seed (LLAMA_DEFAULT_SEED) as 'choose one yourself'."""


class NotFiniteError(RuntimeFailure):
    """What the model computes is no number any more."""


class Sampler:
    """Draws tokens by one `Sampling`, with llama.cpp's sampler chain and a seed of its own."""

    def __init__(self, model: Weights, sampling: Sampling) -> None:
        self._model = model
        chain = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        if sampling.temperature <= 0:
            links = [cpp.llama_sampler_init_greedy()]
        else:
            links = [
                cpp.llama_sampler_init_temp(sampling.temperature),
                cpp.llama_sampler_init_dist(sampling.seed % _RANDOM_SEED),
            ]
            if sampling.top_p < 1:
                links.insert(0, cpp.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.top_k > 0:
                links.insert(0, cpp.llama_sampler_init_top_k(sampling.top_k))
        for link in links:
            cpp.llama_sampler_chain_add(chain, link)
        self._chain = chain
        self._free = weakref.finalize(self, cpp.llama_sampler_free, chain)

    def draw(self, context: Context, index: int, *, may_end: bool = True) -> int:
        """The next token from the logits of batch entry `index`.

        With `may_end` False end-of-generation tokens are rejected and their logits in the context
        overwritten, which is drawing from the distribution without them. Raises `NotFiniteError`
        where there is nothing to draw from: logits that are not finite, or none but of such tokens.
        """
        while True:
            token = int(cpp.llama_sampler_sample(self._chain, context.handle, index))
            logits = cpp.llama_get_logits_ith(context.handle, index)
            # Looking at the chosen one only: where one is not a number, all are.
            if not isfinite(logits[token]):
                raise NotFiniteError(
                    "the model's logits are not finite", "steer it less strongly, if it is steered"
                )
            if may_end or not self._model.is_end(token):
                return token
            logits[token] = -inf

    def close(self) -> None:
        """Free the chain; a second call does nothing."""
        self._free()


class TextStream:
    """Assembles token bytes into text that may be shown.

    Never lets out half a character, nor text that could be the beginning of a stop string.
    `text` is everything let out so far; `length` counts the characters fed, held ones included.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.text = ""
        self.stopped = False

    @property
    def length(self) -> int:
        return len(self.text) + len(self._held)

    def feed(self, piece: bytes) -> str:
        """The text that has become certain; sets `stopped` at the first stop string."""
        self._held += self._decoder.decode(piece)
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return self._show(len(self._held))
        return self._show(len(self._held) - self._undecided())

    def finish(self) -> str:
        """What was held back; an unfinished character at the very end is dropped."""
        return self._show(len(self._held))

    def _undecided(self) -> int:
        """The longest end of the held text that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self._stop):
                return n
        return 0

    def _show(self, n: int) -> str:
        text, held = self._held[:n], self._held[n:]
        # In one statement, so that no interrupt loses text or lets it out twice.
        self.text, self._held = self.text + text, held
        return text


class Answer:
    """One answer in the making: its sampler, its text and its limits.

    `finish_reason` is None while it goes on. A token that a stop string cuts in two belongs to
    the answer's tokens, as it carries a part of the text. Until it is finished everything follows
    from `tokens`: what an interrupt leaves half done, `mend` does again.
    """

    def __init__(self, model: Weights, sampling: Sampling, n_prompt: int, n_ctx: int) -> None:
        self._model = model
        self._sampling = sampling
        self._sampler = Sampler(model, sampling)
        self._stream = TextStream(sampling.stop)
        self._begins: list[int] = []
        self._pieces: list[bytes] = []
        self._started = time.perf_counter()
        self._n_prompt = n_prompt
        self._n_ctx = n_ctx
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = "length" if sampling.max_tokens < 1 else None

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be drawn."""
        return self.finish_reason is not None

    def text_from(self, begin: int) -> str:
        """What was let out of the text after its first `begin` characters."""
        return self._stream.text[begin:]

    @property
    def n_certain(self) -> int:
        """The tokens that no stop string can take back any more."""
        return bisect_left(self._begins, len(self._stream.text))

    def step(self, context: Context, index: int) -> str:
        """Draw from the logits of batch entry `index`; returns the text that became certain."""
        may_end = len(self.tokens) >= self._sampling.min_tokens
        token = self._sampler.draw(context, index, may_end=may_end)
        if self._model.is_end(token):
            return self.finish("stop")
        self._pieces.append(self._model.token_bytes(token))
        self.tokens.append(token)
        return self._write(self._pieces[-1])

    def finish(self, reason: FinishReason) -> str:
        """End the answer; returns the text that was held back."""
        self.finish_reason = reason
        self._sampler.close()
        return self._stream.finish()

    def mend(self) -> None:
        """After an interrupt anywhere in here: the text is that of the tokens."""
        if self.finish_reason is None:
            self._stream, self._begins = TextStream(self._sampling.stop), []
            del self._pieces[len(self.tokens) :]
            for piece in self._pieces:
                self._write(piece)
        if self.finish_reason is not None:
            self.finish(self.finish_reason)

    def _write(self, piece: bytes) -> str:
        """Add what the next of the tokens says; returns the text that became certain."""
        self._begins.append(self._stream.length)
        text, n = self._stream.feed(piece), len(self._begins)
        if self._stream.stopped:
            kept = bisect_left(self._begins, self._stream.length)
            self.tokens, self.finish_reason = self.tokens[:kept], "stop"
            return text + self.finish("stop")
        if n >= self._sampling.max_tokens:
            return text + self.finish("length")
        if self._n_prompt + n >= self._n_ctx:
            return text + self.finish("context")
        return text

    def completion(self, index: int = 0) -> Completion:
        """The finished answer."""
        assert self.finish_reason is not None
        return Completion(
            index=index,
            text=self._stream.text,
            tokens=tuple(self.tokens),
            prompt_tokens=self._n_prompt,
            finish_reason=self.finish_reason,
            seconds=time.perf_counter() - self._started,
        )
