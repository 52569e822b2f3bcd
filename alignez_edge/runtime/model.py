"""A language model as a user has it: weights that are loaded, and answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignez_edge.chat.messages import Message
from alignez_edge.demo.bundled import demo_file
from alignez_edge.errors import BadInputError, ModelFileError, RuntimeFailure
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.files.text import printable_name
from alignez_edge.modelfiles.lora import check_scale, read_lora
from alignez_edge.runtime import llama
from alignez_edge.runtime.check import check_model
from alignez_edge.runtime.cores import usable_cores
from alignez_edge.runtime.injection import Conditional, Injection, Steers
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.requests import Completion, Sampling
from alignez_edge.runtime.weights import Weights

MOST_THREADS = 512
"""Of a context, in llama.cpp (GGML_MAX_N_THREADS): beyond it the process may abort."""


class Model(Weights):
    """A loaded GGUF model: `Weights` that answer. Use it as a context manager, or `close()` it."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        gpu_layers: int | None = None,
        lora: Sequence[tuple[str | Path, float]] = (),
    ) -> Model:
        """Load the GGUF model at `path`.

        `threads` defaults to the physical cores this process may use; `gpu_layers` (-1 for all)
        to all layers where llama.cpp was built for a GPU. `lora` are files of LoRA adapters with
        scales: the model is then the tuned one in everything. Raises `ModelFileError` for a file
        that is not a usable model or not an adapter for it, and `RuntimeFailure` where there is no
        memory for it.
        """
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise BadInputError(f"threads is {threads}; it must be from 1 to {MOST_THREADS}")
        gguf = read_gguf(path)
        check_model(gguf)
        attached = [(read_lora(file, gguf), check_scale(scale)) for file, scale in lora]
        params = cpp.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        llama.clear_log()
        with llama.HeedingInterrupts():
            handle = cpp.llama_model_load_from_file(os.fsencode(gguf.path), params)
            if not handle:
                said = printable_name(llama.last_error(), 160) or "no reason given"
                kind = RuntimeFailure if "alloc" in said else ModelFileError
                raise kind(f"llama.cpp cannot load {printable_name(str(path), 200)}: {said}")
            # From here on the object owns the weights, and frees them if it cannot be finished.
            return cls(gguf, handle, threads or usable_cores(), attached)

    @classmethod
    def demo(
        cls,
        *,
        threads: int | None = None,
        gpu_layers: int | None = None,
        lora: Sequence[tuple[str | Path, float]] = (),
    ) -> Model:
        """Load the small model that ships with the package; see `load`."""
        return cls.load(demo_file(), threads=threads, gpu_layers=gpu_layers, lora=lora)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        steering: Steers | Sequence[Steers | None] | None = None,
        sampling: Sampling = Sampling(),
        width: int = 16,
    ) -> list[Completion]:
        """One answer to each of `prompts`, up to `width` at a time, in their order.

        Each prompt is a user message; prompt `i` is answered with the seed `sampling.seed + i`.
        `steering` is one for all, or a list with one for each, `None` being plain; they all run in
        one batch. An answer depends on its company within llama.cpp's rounding: what else is in a
        batch may turn a token that is drawn, and then the rest of that answer is another one.
        Raises `BadInputError` if the list is of another length.
        """
        from alignez_edge.runtime.batch import generate_batch
        from alignez_edge.runtime.requests import Request

        if isinstance(prompts, str):
            raise BadInputError("the prompts are one text", "give a list of texts")

        sampling = sampling.with_stops(self.stops)
        own: list[Any] = [steering] * len(prompts)
        if isinstance(steering, Sequence) and not isinstance(steering, str):
            own = list(steering)
        wrong = [
            steers for steers in own if steers is not None and not hasattr(steers, "injection")
        ]
        if wrong:
            raise BadInputError(
                f"{printable_name(repr(wrong[0]), 40)} is nothing that steers",
                "give profiles, sums of them, or None for the plain model",
            )
        if len(own) != len(prompts):
            raise BadInputError(f"{len(own)} steerings for {len(prompts)} prompts")
        known: dict[int, Injection | Conditional | None] = {id(None): None}
        for steers in own:
            if steers is not None and id(steers) not in known:
                known[id(steers)] = steers.injection(self)
        requests = [
            Request(
                self.ask_tokens(text),
                sampling.with_seed(sampling.seed + i),
                i,
                known[id(own[i])],
            )
            for i, text in enumerate(prompts)
        ]
        answers = generate_batch(self, requests, width=width)
        return sorted(answers, key=lambda answer: answer.index)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        steering: Steers | None = None,
        sampling: Sampling = Sampling(),
    ) -> Iterator[str]:
        """The answer to `messages`, in pieces as they are made."""
        from alignez_edge.runtime.session import Session

        with Session(self) as session:
            yield from session.answer(messages, steering=steering, sampling=sampling)
