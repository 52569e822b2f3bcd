"""Weights in llama.cpp, with vocabulary, facts and prompt form, and the LoRA adapters on them.

`Weights` are immutable once loaded; contexts (KV cache, steering) are made from them in
`context.py` and belong to whoever made them, but end with the weights at the latest.

llama.cpp keeps adapters with the model and frees what is left of them with it. An `Adapter` is
freed when nothing refers to it any more; contexts refer to the adapters that they have set, so a
freed one can never be in use. Adapters are made from bytes: nothing need touch the disk.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import numpy as np

from alignez_edge.chat.messages import Message, check_messages
from alignez_edge.chat.question_answer import QUESTION_STOPS, question_answer
from alignez_edge.chat.template import ChatTemplate, Span
from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.text import printable_name
from alignez_edge.modelfiles.fingerprint import Fingerprint, fingerprint
from alignez_edge.modelfiles.lora import Attached
from alignez_edge.runtime.check import UNSTEERABLE, check_loaded
from alignez_edge.runtime.llama import HeedingInterrupts, clear_log, cpp, last_error
from alignez_edge.runtime.vocabulary import Vocabulary

Own = TypeVar("Own", bound="Weights")
_serial = itertools.count()


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


class Closes(Protocol):
    """What ends with the weights: a context."""

    def close(self) -> None: ...


class Weights:
    """The weights of a GGUF model. Use them as a context manager, or `close()` them.

    `handle` is the `llama_model *`, `vocab` the `llama_vocab *`; `threads` is what contexts use.
    `lora` are the adapters that it carries, with their scales; `adapters` the same in llama.cpp.
    `kept` is what was made for it, by key: adapters that belong to it, matrices, products;
    `contexts` those that were made from it.
    """

    def __init__(self, gguf: GGUFFile, handle: int, threads: int, lora: Attached = ()) -> None:
        self.gguf = gguf
        self.path = gguf.path
        self._handle = handle
        self.threads = threads
        self.kept: dict[str, Any] = {}
        self.contexts: WeakSet[Closes] = WeakSet()
        self._leases: set[object] = set()
        self._closing = False
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
        self.adapters = tuple((Adapter(self, a.content(), attached=True), s) for a, s in lora)

    def close(self) -> None:
        """Free the contexts that are still open, then the weights. A second call does nothing.

        Contexts in which something is being computed (this is a signal handler, a callback or
        another thread) are freed when that has ended, and the weights with the last of them.
        """
        self._closing = True
        for context in list(self.contexts):
            context.close()
        self._free_unused()

    def lease(self) -> object:
        """Something to `release` when the weights are needed no longer; until then they are kept.
        Raises as `handle`, and where they are being closed."""
        lease = object()
        self._leases.add(lease)
        if self._closing:
            self.release(lease)
            raise RuntimeFailure("the model was closed", "load it again: Model.load(...)")
        return lease

    def release(self, lease: object) -> None:
        """Give a lease back; the last one frees weights that are to be closed."""
        self._leases.discard(lease)
        self._free_unused()

    def _free_unused(self) -> None:
        if self._leases or not self._closing:
            return
        # Forgotten before it is freed: an interrupt between the two must not free it twice.
        handle, self._handle = self._handle, 0
        if handle:
            with HeedingInterrupts():
                cpp.llama_model_free(handle)

    def __enter__(self: Own) -> Own:
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
        architecture = self.gguf.architecture
        name = printable_name(str(keys.get("general.name") or self.path.stem))
        pre = keys.get("tokenizer.ggml.pre", "")

        def number(key: str) -> int:
            return int(np.max(self.gguf.hparam(key, 0)))

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
            tokenizer=printable_name(f"{keys['tokenizer.ggml.model']} {pre}".strip()),
            template="chat template" if self.template else "question/answer",
            experts=number("expert_count"),
            # A control vector cannot edit layer 0, so one layer is not enough.
            can_steer=architecture not in UNSTEERABLE and self.n_layer > 1,
        )

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What tells this model from others: see `fingerprint.py`."""
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


class Adapter:
    """One LoRA adapter, loaded into `model` from the bytes of its file.

    `handle` is the `llama_adapter_lora *`; `serial` rises from one adapter to the next. One that is
    `attached` belongs to its model, and is freed with it and not before. Raises
    `BadInputError` for bytes that are no adapter for this model, `RuntimeFailure` where they
    cannot be handed over.
    """

    def __init__(self, model: Weights, content: bytes, *, attached: bool = False) -> None:
        if content[:4] != b"GGUF":
            raise BadInputError("an adapter must be a GGUF file")
        clear_log()
        with HeedingInterrupts():
            try:
                handle = _load(model.handle, content)
            except OSError as error:
                raise RuntimeFailure(f"no room to hand an adapter to llama.cpp: {error}") from error
            if not handle:
                said = printable_name(last_error(), 160) or "no reason given"
                raise BadInputError(f"llama.cpp refuses the adapter: {said}")
            if not attached:
                # The model is an argument so that it outlives the adapter.
                weakref.finalize(self, _free, handle, model)
        # A model refers to the adapters that it carries: nothing may refer back from them.
        self._model = weakref.ref(model)
        self.handle = handle
        self.serial = next(_serial)

    @property
    def model(self) -> Weights | None:
        """The model that it was loaded into; None once that is gone."""
        return self._model()


def _free(handle: Any, model: Weights) -> None:
    if not model.closed:  # a closed model has freed its adapters
        cpp.llama_adapter_lora_free(handle)


def _load(model: int, content: bytes) -> Any:
    """The `llama_adapter_lora *`, or None where llama.cpp refuses. Raises `OSError`."""
    if sys.platform == "win32":  # its llama.cpp may have a C library of its own
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapter.gguf"
            path.write_bytes(content)
            return cpp.llama_adapter_lora_init(model, os.fsencode(path))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fdopen.argtypes, libc.fdopen.restype = [ctypes.c_int, ctypes.c_char_p], ctypes.c_void_p
    libc.fclose.argtypes = [ctypes.c_void_p]
    descriptor = _anonymous_file(content)
    stream = libc.fdopen(descriptor, b"rb")
    if not stream:
        os.close(descriptor)
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        return cpp.llama_adapter_lora_init_from_file_ptr(model, stream)
    finally:
        libc.fclose(stream)


def _anonymous_file(content: bytes) -> int:
    """A descriptor of a file without a name that holds `content`, at its beginning."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("adapter")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
