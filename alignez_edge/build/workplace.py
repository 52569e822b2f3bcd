"""Where a build works: its model and settings, its files, and how it asks the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_edge.arrays import TensorName
from alignez_edge.build.generate import ANSWER_TOKENS
from alignez_edge.calibration.free_running import TEMPERATURE
from alignez_edge.files.folders import cache_dir, user_dir
from alignez_edge.files.writing import make_folder
from alignez_edge.preferences import prompts
from alignez_edge.preferences.answers import DESCRIPTION_TOKENS
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.requests import RequestForm, RequestText
from alignez_edge.repeatable import digest

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Completion

Progress = Callable[[str, int, int], None]

GO_ON = "finished work is kept: start the build again to go on"
_PROMPTS = 1024
"""Prompts that are remembered: those of a chunk are asked for more than once."""


@dataclass
class Workplace:
    """One build at work. `settings` name all that shapes what is kept; `folder` holds what a person
    may want to see, `cache` what can be made again; both are the same for the same settings."""

    model: Model
    axis: Axis
    seed: int
    width: int
    ctx: int | None
    work: str | Path | None
    progress: Progress
    notice: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self._prompts: dict[RequestText, tuple[int, ...]] = {}
        self.settings: dict[str, str | int] = {
            "axis": json.dumps(self.axis.wording(), sort_keys=True, ensure_ascii=False),
            "model": self.model.fingerprint.digest(),
            "contents": self.model.gguf.contents(),
            "quantization": self.model.facts.quantization,
            "seed": self.seed,
            "width": self.width,
            "threads": self.model.threads,
        }
        if self.ctx is not None:
            self.settings["ctx"] = self.ctx
        key = digest(self.settings)
        name = f"{self.axis.name}-{key}"
        self.folder = make_folder(Path(self.work) if self.work else user_dir() / "builds" / name)
        self.cache = make_folder(Path(self.work) if self.work else cache_dir() / "builds" / name)

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return self.model.template is not None

    @property
    def window(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        from alignez_edge.runtime.window import window

        return window(self.model, self.ctx)

    def fits(self, query: str, forms: Sequence[RequestForm]) -> bool:
        """Whether a query has room for an answer in every form."""
        for form in forms:
            answer = ANSWER_TOKENS + (DESCRIPTION_TOKENS if form.two_steps else 0)
            for side in prompts.SIDES:
                request = form.request(query, self.axis, side, chat=self.chat)
                if len(self.tokens(request)) > self.window - answer:
                    return False
        return True

    def tokens(self, request: RequestText) -> tuple[int, ...]:
        """The prompt that asks a request."""
        if request not in self._prompts:
            if len(self._prompts) >= _PROMPTS:
                self._prompts.clear()
            self._prompts[request] = self.model.prompt(request.messages()).tokens
        return self._prompts[request]

    def complete(
        self, requests: Sequence[RequestText], seeds: Sequence[int], max_tokens: Sequence[int]
    ) -> Iterator[tuple[int, str, bool]]:
        """The answers as they are finished: which, its text, whether it came to its end."""
        for done in self.completions(requests, seeds, max_tokens):
            yield done.index, done.text, done.finish_reason == "stop"

    def completions(
        self,
        requests: Sequence[RequestText],
        seeds: Sequence[int],
        max_tokens: Sequence[int],
        tensor: TensorName | None = None,
    ) -> Iterator[Completion]:
        """The answers as they are finished, with their states at `tensor`, if one is named."""
        from alignez_edge.runtime.batch import generate_batch
        from alignez_edge.runtime.requests import Request, Sampling

        jobs = (
            Request(
                self.tokens(request),
                Sampling(
                    temperature=TEMPERATURE,
                    top_p=1.0,
                    seed=seed,
                    max_tokens=limit,
                    stop=self.model.stops,
                ),
                index,
                capture=tensor,
            )
            for index, (request, seed, limit) in enumerate(
                zip(requests, seeds, max_tokens, strict=True)
            )
        )
        yield from generate_batch(self.model, jobs, width=self.width, n_ctx_per_sequence=self.ctx)
