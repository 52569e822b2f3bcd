"""One pass over the corpus on the CPU: bf16 autocast, compiled, interruptible, resumable.

All randomness is the seed's (initial weights, order of rows; there is no dropout), so a checkpoint
of weights, optimizer and step is all that a resumed run needs.
"""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from demo_model import data
from demo_model.model import Llama
from demo_model.settings import Settings

CHECKPOINT_SECONDS = 120.0
PROGRESS_STEPS = 10
SNAPSHOTS = (25, 50, 75, 100)  # per cent of the run
CURVE_HEADER = ("step", "tokens", "train_loss", "held_out_loss")


def checkpoint_path(work: Path) -> Path:
    """What a resumed run reads."""
    return work / "checkpoint.pt"


def weights_path(work: Path, percent: int = 100) -> Path:
    """Weights alone after that part of the run."""
    return work / f"weights-{percent}.pt"


def save(content: object, path: Path) -> None:
    """Write a file that is either whole or not there."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def weighted_loss(model: Callable[[Tensor], Tensor], tokens: Tensor, weight: Tensor) -> Tensor:
    """Mean cross-entropy per unit of weight.

    `tokens` (batch, row + 1) int64; `weight` (batch, row + 1) float32, of which the first column
    is not used (nothing predicts it).
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens[:, :-1])
    each = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    of_targets = weight[:, 1:].flatten()
    return (each * of_targets).sum() / of_targets.sum()


def as_tensors(
    rows: data.Rows, codes: data.Codes, table: npt.NDArray[np.float32]
) -> tuple[Tensor, Tensor]:
    """Rows and codes to what `weighted_loss` takes."""
    return torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(table[codes])


class Trainer:
    """Weights, optimizer and step of one run in one work folder."""

    def __init__(self, settings: Settings, work: Path, compiled: bool = True) -> None:
        self.settings, self.work, self.step = settings, work, 0
        self.model = Llama(settings)
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        gains = [p for p in self.model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay},
             {"params": gains, "weight_decay": 0.0}],
            lr=settings.peak_lr, betas=settings.betas, fused=True,
        )  # fmt: skip
        self.loss = torch.compile(weighted_loss, dynamic=False) if compiled else weighted_loss
        self.table = data.weights(settings)
        self.rows = data.TrainingRows(settings, work)
        held_out = np.load(data.held_out_path(work))
        self.held_out = as_tensors(held_out[0], held_out[1].astype(np.uint8), self.table)
        self.curve: list[tuple[int, int, float, float]] = []

    def resume(self) -> None:
        """Go on from the checkpoint of the work folder, if there is one.

        Raises data.StaleWorkError when it was made under other settings.
        """
        path = checkpoint_path(self.work)
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise data.StaleWorkError(f"{path} was made under other settings: remove it")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve = state["step"], state["curve"]

    def checkpoint(self) -> None:
        save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
             "step": self.step, "curve": self.curve, "settings": asdict(self.settings)},
            checkpoint_path(self.work),
        )  # fmt: skip

    def advance(self) -> float:
        """One optimizer step; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr(self.step)
        tokens, weight = as_tensors(*self.rows.batch(self.step), self.table)
        loss = self.loss(self.model, tokens, weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss over the held-out rows, in batches of the training shape."""
        tokens, weight = self.held_out
        size = self.settings.batch_rows
        whole = range(0, len(tokens) - size + 1, size)
        losses = [self.loss(self.model, tokens[i : i + size], weight[i : i + size]) for i in whole]
        return float(torch.stack(losses).mean())

    def record(self, train_loss: float) -> float:
        """Measure the held-out loss, add a point to the curve and write it as CSV."""
        held_out = self.held_out_loss()
        seen = self.step * self.settings.batch_rows * self.settings.row
        self.curve.append((self.step, seen, train_loss, held_out))
        with (self.work / "curve.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(CURVE_HEADER)
            writer.writerows((s, n, f"{a:.4f}", f"{b:.4f}") for s, n, a, b in self.curve)
        return held_out

    def run(self, until: int, interrupted: Callable[[], bool]) -> bool:
        """Train up to step `until`; False when interrupted. A checkpoint is left either way."""
        settings = self.settings
        marks = {settings.steps * p // 100: p for p in SNAPSHOTS}
        per_step = settings.batch_rows * settings.row
        saved = shown = time.monotonic()
        losses: list[float] = []
        while self.step < until:
            losses.append(self.advance())
            now = time.monotonic()
            if self.step % PROGRESS_STEPS == 0:
                rate = PROGRESS_STEPS * per_step / (now - shown)
                left = (settings.steps - self.step) * per_step / rate / 60
                recent = float(np.mean(losses[-PROGRESS_STEPS:]))
                print(f"step {self.step}/{settings.steps}  loss {recent:.4f}  "
                      f"{rate:,.0f} tokens/s  about {left:.1f} min left", flush=True)  # fmt: skip
                shown = now
            if self.step % settings.evaluate_every == 0 or self.step == settings.steps:
                held_out = self.record(float(np.mean(losses[-settings.evaluate_every :])))
                print(f"step {self.step}  held-out loss {held_out:.4f}", flush=True)
                shown += time.monotonic() - now
            if self.step in marks:
                save(self.model.state_dict(), weights_path(self.work, marks[self.step]))
            stop = interrupted()
            if stop or now - saved > CHECKPOINT_SECONDS or self.step == until:
                self.checkpoint()
                saved = time.monotonic()
            if stop:
                return False
        return True


def run(
    settings: Settings, work: Path, threads: int = 3, until: int | None = None,
    compiled: bool = True,
) -> bool:  # fmt: skip
    """Train (or go on training) in `work` up to step `until` (all); False when interrupted."""
    torch.set_num_threads(threads)
    trainer = Trainer(settings, work, compiled)
    trainer.resume()
    print(f"training from step {trainer.step} of {settings.steps}", flush=True)
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # Only noted: the step in progress ends first, so that weights and optimizer agree.
        asked.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        return trainer.run(until or settings.steps, lambda: bool(asked))
    finally:
        signal.signal(signal.SIGINT, before)


def finished(work: Path) -> bool:
    """Whether the run in this folder came to its end."""
    return weights_path(work).exists()
