"""A language model: weights, vocabulary, facts and prompt forms.

A `Model` is immutable once loaded; contexts (KV cache, steering) are made from it in `context.py`
and belong to whoever made them, but end with the model at the latest.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from alignez_edge.chat.messages import Message, check_messages
from alignez_edge.chat.question_answer import QUESTION_STOPS, question_answer
from alignez_edge.chat.template import ChatTemplate, Span
from alignez_edge.demo.bundled import demo_file
from alignez_edge.errors import BadInputError, ModelFileError, RuntimeFailure
from alignez_edge.files.gguffile import GGUFFile, printable, read_gguf
from alignez_edge.modelfiles.lora import Carried, check_scale, read_lora
from alignez_edge.runtime import llama
from alignez_edge.runtime.adapter import Adapter
from alignez_edge.runtime.check import UNSTEERABLE, check_loaded, check_model
from alignez_edge.runtime.injection import Conditional, Injection, Steers
from alignez_edge.runtime.llama import cpp
from alignez_edge.runtime.requests import Completion, Sampling
from alignez_edge.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from alignez_edge.modelfiles.fingerprint import Fingerprint
    from alignez_edge.runtime.context import Context

MOST_THREADS = 512
"""Of a context, in llama.cpp (GGML_MAX_N_THREADS): beyond it the process may abort."""


@dataclass(frozen=True)
class Prompt:
    """What the model is given: the text, and its tokens with the begin-of-text token."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What a GGUF model is. `size_bytes` is the file's (all files' of a split model)."""

    name: str
    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_vocab: int
    n_ctx_train: int
    quantization: str
    parameters: int
    size_bytes: int
    tokenizer: str
    template: str
    experts: int
    can_steer: bool


class Model:
    """A loaded GGUF model. Use it as a context manager, or `close()` it.

    `handle` is the `llama_model *`, `vocab` the `llama_vocab *`; `threads` is what contexts use.
    `lora` are the adapters that it carries, with their scales; `adapters` the same in llama.cpp.
    `kept` is what was made for it, by key: adapters that belong to it, matrices, products;
    `contexts` those that were made from it.
    """

    def __init__(self, gguf: GGUFFile, handle: int, threads: int, lora: Carried = ()) -> None:
        self.gguf = gguf
        self.path = gguf.path
        self._handle = handle
        self.threads = threads
        self.kept: dict[str, Any] = {}
        self.contexts: WeakSet[Context] = WeakSet()
        check_loaded(handle, gguf)
        self.vocab: int = cpp.llama_model_get_vocab(handle)
        self.n_layer: int = cpp.llama_model_n_layer(handle)
        self.n_embd: int = cpp.llama_model_n_embd(handle)
        self.n_vocab: int = cpp.llama_vocab_n_tokens(self.vocab)
        self.n_ctx_train: int = cpp.llama_model_n_ctx_train(handle)
        self._words = Vocabulary(self.vocab)
        source = gguf.metadata.get("tokenizer.chat_template")
        self.template: ChatTemplate | None = None
        if isinstance(source, str) and source.strip():
            words = self.words
            self.template = ChatTemplate(source, words.bos_text, words.eos_text, words.controls)
        self.lora = tuple(lora)
        self.adapters = tuple((Adapter(self, a.content(), carried=True), s) for a, s in lora)

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
        carried = [(read_lora(file, gguf), check_scale(scale)) for file, scale in lora]
        params = cpp.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        llama.clear_log()
        with llama.HeedingInterrupts():
            handle = cpp.llama_model_load_from_file(os.fsencode(gguf.path), params)
            if not handle:
                said = printable(llama.last_error(), 160) or "no reason given"
                kind = RuntimeFailure if "alloc" in said else ModelFileError
                raise kind(f"llama.cpp cannot load {printable(str(path), 200)}: {said}")
            # From here on the object owns the weights, and frees them if it cannot be finished.
            return cls(gguf, handle, threads or llama.usable_cores(), carried)

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

    def close(self) -> None:
        """Free the contexts that are still open, then the weights. A second call does nothing."""
        for context in list(self.contexts):
            context.close()
        # Forgotten before it is freed: an interrupt between the two must not free it twice.
        handle, self._handle = self._handle, 0
        if handle:
            with llama.HeedingInterrupts():
                cpp.llama_model_free(handle)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            self.close()

    @property
    def closed(self) -> bool:
        """Whether the weights have been freed."""
        return not self._handle

    @property
    def handle(self) -> int:
        """The `llama_model *`. Raises `RuntimeFailure` once the model is closed."""
        if not self._handle:
            raise RuntimeFailure("the model was closed", "load it again: Model.load(...)")
        return self._handle

    @property
    def words(self) -> Vocabulary:
        """The vocabulary, which goes with the weights. Raises as `handle`."""
        return self._words if self._handle else Vocabulary(self.handle)

    @cached_property
    def facts(self) -> ModelFacts:
        """What the model is, in one value."""
        keys = self.gguf.metadata
        architecture = str(keys["general.architecture"])
        name = printable(str(keys.get("general.name") or self.path.stem))
        pre = keys.get("tokenizer.ggml.pre", "")

        def number(key: str) -> int:
            return int(np.max(keys.get(f"{architecture}.{key}", 0)))

        return ModelFacts(
            name=" + ".join(
                [name, *(a.name + (f":{s:g}" if s != 1 else "") for a, s in self.lora)]
            ),
            architecture=architecture,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            n_ff=number("feed_forward_length"),
            n_head=cpp.llama_model_n_head(self.handle),
            n_vocab=self.n_vocab,
            n_ctx_train=self.n_ctx_train,
            quantization=_quantization(self.gguf),
            parameters=cpp.llama_model_n_params(self.handle),
            size_bytes=self.gguf.size,
            tokenizer=printable(f"{keys['tokenizer.ggml.model']} {pre}".strip()),
            template="chat template" if self.template else "question/answer",
            experts=number("expert_count"),
            # A control vector cannot edit layer 0, so one layer is not enough.
            can_steer=architecture not in UNSTEERABLE and self.n_layer > 1,
        )

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What tells this model from others: see `fingerprint.py`."""
        from alignez_edge.modelfiles.fingerprint import fingerprint

        return fingerprint(self.gguf, self.lora)

    def describe_lora(self) -> list[dict[str, str | float]]:
        """The adapters that it carries as plain data: `file` (a name, no path) and `scale`."""
        return [{"file": adapter.name, "scale": scale} for adapter, scale in self.lora]

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings that the prompt form needs."""
        return () if self.template else QUESTION_STOPS

    def tokenize(self, text: str, *, begin: bool, special: bool = False) -> list[int]:
        """Tokens of `text`, after the begin-of-text token if `begin` and the model wants one.

        `special=True` reads control tokens in the text: never for what a user wrote.
        """
        tokens = self.words.tokenize(text, special=special)
        return self.words.with_bos(tokens) if begin else tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, control tokens left out; half characters become U+FFFD."""
        return self.words.detokenize(tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to a text (b'' for a control token)."""
        return self.words.piece(token)

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer of a model with a chat template; None without one, where
        it may be anything."""
        return self.words.end if self.template else None

    def is_end(self, token: int) -> bool:
        """Whether `token` ends an answer."""
        return bool(self.handle and cpp.llama_vocab_is_eog(self.vocab, token))

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """What asks the model for the answer to `messages`: its chat template, or the
        question/answer form where it has none.

        Control tokens are only read in the template's own text, never in a message. Raises
        `BadInputError` for messages that cannot be answered, `ModelFileError` for a bad template.
        """
        check_messages(messages)
        if self.template:
            spans = self.template.spans(messages)
        else:
            spans = [Span(question_answer(messages), trusted=False)]
        tokens = self.words.with_bos(self.words.tokenize_spans(spans))
        return Prompt("".join(span.text for span in spans), tuple(tokens))

    def ask_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of the `prompt` that asks for the answer to one user message."""
        return self.prompt([{"role": "user", "content": text}]).tokens

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
        Raises `BadInputError` where the list is of another length.
        """
        from alignez_edge.runtime.batch import generate_batch
        from alignez_edge.runtime.requests import Request

        if isinstance(prompts, str):
            raise BadInputError("the prompts are one text", "give a list of texts")

        sampling = replace(sampling, stop=(*sampling.stop, *self.stops))
        own: list[Any] = [steering] * len(prompts)
        if isinstance(steering, Sequence) and not isinstance(steering, str):
            own = list(steering)
        wrong = [
            steers for steers in own if steers is not None and not hasattr(steers, "injection")
        ]
        if wrong:
            raise BadInputError(
                f"{printable(repr(wrong[0]), 40)} is nothing that steers",
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


def _quantization(gguf: GGUFFile) -> str:
    """llama.cpp's name for the file's type, else the commonest format by size."""
    from gguf import LlamaFileType

    number = gguf.metadata.get("general.file_type")
    if isinstance(number, int) and number in {int(t) for t in LlamaFileType}:
        return LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        sizes[tensor.type] += tensor.nbytes
    return sizes.most_common(1)[0][0]
