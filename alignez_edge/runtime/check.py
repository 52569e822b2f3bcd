"""What a model file must hold before llama.cpp gets it.

llama.cpp answers many bad files with an error, and others by ending the whole process: failed
assertions on layer, expert and token counts, exceptions that leave its C functions, divisions by
zero, kernels without the needed type. `check_model` refuses those, found in the source of the
bound version and by mutating files (`tests/test_model.py`), and the files that are no text
generator. It keeps no list of supported architectures: llama.cpp refuses unknown ones politely.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignez_edge.errors import ModelFileError
from alignez_edge.files.gguf_values import StringArray
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.text import printable_name
from alignez_edge.modelfiles.lora import FROM_VECTOR
from alignez_edge.runtime.llama import cpp


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ENCODERS = _names(
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert "
    "gemma-embedding llama-embed t5encoder"
)
_OTHERS = {
    "clip": "the vision part of a model",
    "t5": "an encoder-decoder model",
    "wavtokenizer-dec": "an audio decoder",
    "qwen3tts": "a speech model",
    "pockettts": "a speech model",
    "eagle3": "a draft model",
    "dflash": "a draft model",
    "gemma4-assistant": "a draft model",
    "dream": "a diffusion model",
    "llada": "a diffusion model",
    "llada-moe": "a diffusion model",
    "rnd1": "a diffusion model",
}
UNSTEERABLE = frozenset({"plamo2", "hy_v4"})
"""Generating architectures whose graph takes no control vector (source of the bound llama.cpp)."""

_EQUAL_HEADS = _names(
    "afmoe bailingmoe2 bitnet bloom chatglm cohere2 command-r glm4 glm4moe gpt2 gptneox "
    "granitehybrid jais laguna minimax-01 minimax-m2 minimax-m3 mpt muse-glimmer nanbeige nemotron "
    "nemotron_h nemotron_h_moe openelm phi2 phi3 phimoe qwen qwen35 qwen35moe qwen3next qwen4exp "
    "refact spark2_5 stablelm starcoder"
)
"""Their graphs assert that keys and values have heads of one width (source of llama.cpp)."""
_ROTATED_HEADS = _names(
    "apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1 "
    "ernie4_5 ernie4_5-moe exaone falcon granite granite_swa granitemoe graniteswitch grok "
    "hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llama llama4 maincoder mellum "
    "minicpm mistral3 olmo olmo2 olmoe orion paddleocr pangu-embedded plamo qwen2 qwen2moe qwen2vl "
    "qwen3 qwen3moe qwen3vl qwen3vlmoe seed_oss smallthinker smollm3 starcoder2 xverse"
)
"""Theirs assert as well that a head is rotated as a whole."""
_MAX_LAYERS, _MAX_EXPERTS, _MAX_WIDTH = 512, 1024, 1 << 20
_MAX_WINDOW = 1 << 24
_MIN_TOKENS = 32
_UNUSABLE = _names("I8 I16 I32 I64 F64 Q8_1 Q8_K")
"""Formats that llama.cpp cannot multiply with; it calls a kernel that is not there all the same."""
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_INSTEAD = "use a GGUF of a language model that generates text"


def check_model(gguf: GGUFFile) -> None:
    """Raise `ModelFileError` unless llama.cpp can be given this file as a text generator."""
    _Check(gguf).run()


def check_loaded(handle: int, gguf: GGUFFile) -> None:
    """Raise `ModelFileError` if the loaded `llama_model *` does not generate text from left to
    right: what llama.cpp itself knows about architectures that this module does not."""
    if cpp.llama_model_has_encoder(handle) or not cpp.llama_model_has_decoder(handle):
        raise ModelFileError(f"{printable_name(str(gguf.path), 200)} is an encoder model", _INSTEAD)
    if cpp.llama_model_is_diffusion(handle):
        raise ModelFileError(
            f"{printable_name(str(gguf.path), 200)} is a diffusion model", _INSTEAD
        )


class _Check:
    def __init__(self, gguf: GGUFFile) -> None:
        self._gguf = gguf
        self._keys = gguf.metadata
        self._architecture = ""

    def run(self) -> None:
        """All checks, the most telling first."""
        self._kind()
        n_layer = self._whole("block_count", 1, _MAX_LAYERS)
        n_embd = self._whole("embedding_length", 1, _MAX_WIDTH)
        self._whole("context_length", 1, 2**31 - 1)
        self._per_layer("feed_forward_length", n_layer)
        self._heads(n_layer, n_embd)
        self._experts(n_layer)
        self._whole("nextn_predict_layers", 0, n_layer - 1, default=0)
        self._numbers()
        n_vocab = self._tokenizer()
        self._tensors(n_layer, n_embd, n_vocab)

    def _fail(self, what: str, hint: str | None = None) -> ModelFileError:
        # Keys are named with the architecture in front, which is the file's own word.
        return ModelFileError(
            f"{printable_name(str(self._gguf.path), 200)}: {printable_name(what, 300)}", hint
        )

    def _kind(self) -> None:
        architecture = self._keys.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._fail("not a model: it names no architecture")
        self._architecture = architecture
        if architecture == "steering-profile":
            raise self._fail("a steering profile, not a model", "give profiles with -p")
        if architecture == "controlvector":
            raise self._fail("a control vector, not a model", FROM_VECTOR)
        kind = str(self._keys.get("general.type", "model"))
        if kind == "adapter":
            raise self._fail("an adapter, not a model", "give adapters with --lora")
        if kind != "model":
            raise self._fail(f"not a model but '{printable_name(kind)}'", _INSTEAD)
        if architecture in _ENCODERS:
            raise self._fail(
                f"an embedding model ({architecture}), which cannot write text", _INSTEAD
            )
        if architecture in _OTHERS:
            raise self._fail(f"{_OTHERS[architecture]} ({architecture})", _INSTEAD)
        causal = self._gguf.hparam("attention.causal", True)
        if causal is not True or self._whole("pooling_type", 0, 4, default=0):
            raise self._fail("an embedding model, which cannot write text", _INSTEAD)
        parts = str(self._keys.get("split.count", 0))
        if parts not in ("0", "1"):
            raise self._fail(
                f"one of {printable_name(parts)} parts of a model",
                "join them with llama.cpp's llama-gguf-split --merge",
            )
        if not self._gguf.tensors:
            raise self._fail("it holds no weights (a vocabulary only)", _INSTEAD)

    def _value(self, key: str) -> Any:
        return self._gguf.hparam(key)

    def _whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within bounds; the error says what was found."""
        value = self._value(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self._fail(f"the key {self._architecture}.{key} is missing")
        if type(value) is not int or not low <= value <= high:
            found = printable_name(str(value), 40)
            raise self._fail(f"{self._architecture}.{key} is {found}, not within {low} to {high}")
        return value

    def _per_layer(self, key: str, n_layer: int) -> list[int]:
        """A whole number, or one for each layer; zeros where the key is missing."""
        value = self._value(key)
        if not isinstance(value, np.ndarray):
            return [self._whole(key, 0, _MAX_WIDTH, default=0)] * n_layer
        fits = value.dtype.kind in "iu" and len(value) >= n_layer
        if not fits or value.min(initial=0) < 0 or value.max(initial=0) > _MAX_WIDTH:
            raise self._fail(f"{self._architecture}.{key} is not a size for each layer")
        return [int(v) for v in value[:n_layer]]

    def _heads(self, n_layer: int, n_embd: int) -> None:
        heads = self._per_layer("attention.head_count", n_layer)
        key_heads = self._per_layer("attention.head_count_kv", n_layer)
        if self._value("attention.head_count_kv") is None:
            key_heads = heads
        for n_head, n_key in zip(heads, key_heads, strict=True):
            if n_key and n_head % n_key:
                raise self._fail(f"{n_head} attention heads cannot share {n_key} key heads")
        if not heads[0]:
            return
        given = self._value("attention.key_length") is not None
        if not given and n_embd % heads[0]:
            raise self._fail(f"{n_embd} dimensions do not divide into {heads[0]} heads")
        usual = n_embd // heads[0]
        width = self._whole("attention.key_length", 1, _MAX_WIDTH, default=usual)
        values = self._whole("attention.value_length", 1, _MAX_WIDTH, default=usual)
        rotated = self._whole("rope.dimension_count", 1, _MAX_WIDTH, default=width)
        architecture = self._architecture
        if width != values and architecture in _EQUAL_HEADS | _ROTATED_HEADS:
            raise self._fail(f"keys of {width} and values of {values} in one attention head")
        partly = rotated != width and architecture in _ROTATED_HEADS
        if rotated % 2 or rotated > width or partly:
            raise self._fail(f"rope.dimension_count is {rotated} for heads of {width}")

    def _experts(self, n_layer: int) -> None:
        count = self._whole("expert_count", 0, _MAX_EXPERTS, default=0)
        used = max(self._per_layer("expert_used_count", n_layer))
        if used > count or (count and not used):
            raise self._fail(f"{used} of {count} experts are used")
        groups = self._whole("expert_group_count", 0, max(count - 1, 0), default=0)
        if groups > 1:
            self._whole("expert_group_used_count", 1, groups - 1)
            if count % groups:
                raise self._fail(f"{count} experts do not divide into {groups} groups")

    def _numbers(self) -> None:
        """Numbers that kernels take without a look."""
        if self._keys.get("general.alignment", 32) % 32:
            raise self._fail("its tensors are not aligned to 32 bytes")
        for key, value in self._keys.items():
            if not isinstance(value, float) or not key.startswith(self._architecture + "."):
                continue
            low = 1e-30 if key.endswith("rope.freq_base") else 0.0
            positive = key.endswith(("_epsilon", "rope.freq_base"))
            if not math.isfinite(value) or (positive and value < low):
                raise self._fail(f"{printable_name(key)} is {value}")
        # llama.cpp takes memory for the whole window at the first token.
        self._whole("attention.sliding_window", 0, _MAX_WINDOW, default=0)
        # Layers of a sliding window are announced, and the pattern then names none.
        pattern = self._value("attention.sliding_window_pattern")
        none = pattern == 1 if isinstance(pattern, int) else not np.any(pattern)
        if pattern is not None and none and self._value("attention.sliding_window"):
            raise self._fail("its sliding window has no layers")
        scaling = str(self._gguf.hparam("rope.scaling.type", "linear"))
        if scaling not in _ROPE_SCALINGS:
            raise self._fail(f"the rope scaling '{printable_name(scaling)}' is unknown")

    def _tokenizer(self) -> int:
        """The number of tokens."""
        kind = self._keys.get("tokenizer.ggml.model")
        if not isinstance(kind, str) or kind in ("none", "no_vocab", "bert"):
            raise self._fail("it has no tokenizer to write text with")
        tokens = self._keys.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, StringArray) or len(tokens) < _MIN_TOKENS:
            raise self._fail("it has no list of tokens")
        for key in ("scores", "token_type"):
            values = self._keys.get(f"tokenizer.ggml.{key}")
            if values is not None and (
                not isinstance(values, np.ndarray) or len(values) < len(tokens)
            ):
                raise self._fail(f"tokenizer.ggml.{key} does not have one for each token")
        # llama.cpp reads a token up to its first zero byte and gives empty ones a name.
        words = {
            word.partition(b"\0")[0] or b"[EMPTY_%d]" % i
            for i, word in enumerate(tokens.all_encoded())
        }
        if len(words) < len(tokens):
            raise self._fail(f"{len(tokens) - len(words)} of its tokens are there twice")
        if kind == "llama":
            missing = [b for b in range(256) if not {b"<0x%02X>" % b, bytes([b])} & words]
            if missing:
                raise self._fail(f"its tokenizer has no token for {len(missing)} of the 256 bytes")
        return len(tokens)

    def _tensors(self, n_layer: int, n_embd: int, n_vocab: int) -> None:
        tensors = self._gguf.tensors
        embedding = tensors.get("token_embd.weight")
        if embedding is None:
            raise self._fail("the tensor token_embd.weight is missing")
        if embedding.shape != (n_embd, n_vocab):
            raise self._fail(
                f"token_embd.weight is {embedding.shape}; its keys say {(n_embd, n_vocab)}"
            )
        layers = {name.split(".", 2)[1] for name in tensors if name.startswith("blk.")}
        missing = [i for i in range(n_layer) if str(i) not in layers]
        if missing:
            raise self._fail(f"layer {missing[0]} of {n_layer} has no tensors")
        for tensor in tensors.values():
            # Norms and biases are always kept in F32; most kernels abort on anything else.
            flat = len(tensor.shape) == 1 and tensor.type != "F32"
            if flat or tensor.type in _UNUSABLE:
                raise self._fail(
                    f"tensor {printable_name(tensor.name)} holds {tensor.type} numbers"
                )
            # Many downloads take the file's whole size at once and fill it later; no norm is zero.
            if tensor.name.endswith("norm.weight") and self._gguf.is_zero(tensor.name):
                raise self._fail(
                    f"tensor {printable_name(tensor.name)} holds zeros only",
                    "the download may be incomplete: fetch the file again",
                )
