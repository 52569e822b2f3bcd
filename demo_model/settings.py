"""Every number of the recipe in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

WORK = Path(__file__).parent / "work"
"""Where the steps leave their files by default (ignored by git)."""

BEGIN, END, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIALS = (BEGIN, END, USER, ASSISTANT)
"""Control tokens, in the order of their ids. END closes documents and chat turns alike."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the model, shape of the corpus, and the optimizer's schedule.

    Lengths are in tokens. `n_embd` and `n_ff` are multiples of 256 so that llama.cpp's K-quants
    apply to every matrix.
    """

    n_layer: int = 8
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 512
    n_vocab: int = 1536
    context: int = 512
    rms_eps: float = 1e-5
    rope_theta: float = 10_000.0
    init_std: float = 0.02

    seed: int = 1
    tokens: int = 24_000_000
    row: int = 512
    shards: int = 16
    # What an answer says is learned later than how it says it: facts come before lies. So the run
    # ends with shards in which conditions on `helpful` are more frequent, under a second cosine.
    late_shards: int = 8
    late_helpful: float = 2.5
    held_out_rows: int = 60
    tokenizer_documents: int = 10_000

    batch_rows: int = 12
    peak_lr: float = 2e-3
    late_peak_lr: float = 1.2e-3
    final_lr_share: float = 0.1
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 200

    # Loss weights by token class (see `data.Code`). With uniform weights the answers' opening,
    # which is where the wanted traits are taken up, was hardly learned in 5 million tokens.
    weight_prompt: float = 0.3
    weight_answer: float = 1.0
    weight_opening: float = 4.0
    weight_turn: float = 2.5
    opening_tokens: int = 8

    @property
    def n_head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def rows_per_shard(self) -> int:
        return math.ceil(self.tokens / self.row / self.shards)

    @property
    def steps(self) -> int:
        """Optimizer steps of one pass over the corpus, the late shards included."""
        return self.early_steps + self.rows_per_shard * self.late_shards // self.batch_rows

    @property
    def early_steps(self) -> int:
        """Optimizer steps of the part before the late shards."""
        return self.rows_per_shard * self.shards // self.batch_rows

    @property
    def held_out_seed(self) -> int:
        """A corpus seed that no training shard uses (those use `seed * 1000 + shard`)."""
        return self.seed * 1000 + 999

    def lr(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, a cosine down, and a lower one for the rest."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        late = step >= self.early_steps
        start, end = (
            (self.early_steps, self.steps) if late else (self.warmup_steps, self.early_steps)
        )
        floor = self.peak_lr * self.final_lr_share
        peak = self.late_peak_lr if late else self.peak_lr
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / max(1, end - start))))
        return floor + (peak - floor) * wave


DEFAULT = Settings()


@dataclass(frozen=True)
class Tuning:
    """Tuning by DPO (`dpo.py`): shares of the full set of pairs are in per cent.

    Rafailov et al. (2023) take a `beta` of 0.1 or 0.5. On pairs outside of both shares, after
    training on 1 %, the chosen answers themselves had lost 56 nats with 0.1 and a rate of 3e-3, and
    0.1 nats as it is now. Steps are the optimizer's; training ends `patience` steps after the
    lowest loss on the held-out pairs.
    """

    seed: int = 1
    pairs: int = 2_000
    percents: tuple[int, ...] = (1, 25)
    held_out_share: float = 0.2
    rank: int = 4
    beta: float = 0.5
    lr: float = 2e-3
    batch_pairs: int = 8
    most_steps: int = 100
    evaluate_every: int = 10
    patience: int = 30


DEFAULT_TUNING = Tuning()
