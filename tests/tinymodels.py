"""Random-weight GGUF models made on the spot: real graphs, real tokenizers, nothing trained.

The weights have the scale of an untrained network (unit residual stream), so logits are neither
flat nor saturated. `vocab="tiny"` is a byte-level BPE vocabulary of some 270 tokens made here;
other names are real vocabularies, fetched once (`vocabs.py`).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from alignez_edge.files.gguf_values import StringArray
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.runtime.llama import cpp
from tests.vocabs import real_vocab

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "gpt2", "qwen2moe")
"""Transformers; `mamba`, which is recurrent, is made in F32 only."""
_SSM = {"conv": 4, "state": 16, "step": 4}
_STRING, _ARRAY = 8, 9
TIED = ("gemma", "gemma2", "gpt2")
"""Those whose token embeddings are also the output matrix (gemma scales them on the way in)."""
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_M": 15}
SPECIALS = ("<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "Ġ t", "Ġt h", "Ġth e", "th e", "i n", "Ġ a", "e r", "a n", "an d", "Ġ W", "h y")


def tiny_model(
    folder: Path,
    architecture: str = "llama",
    *,
    vocab: str = "tiny",
    n_vocab: int = 0,
    n_layer: int = 4,
    n_embd: int | None = None,
    file_type: str = "F16",
    template: str | None = None,
    seed: int = 0,
    experts: int = 0,
    n_ctx: int = 512,
    metadata: dict[str, Any] | None = None,
    weights: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values,
) -> Path:
    """Write a model into `folder` and return its path.

    Words that mean nothing fill the vocabulary up to `n_vocab`.
    `experts` > 0 makes a mixture of experts of `llama` or `qwen2moe`. `metadata` adds keys or
    replaces some (None leaves one out); `weights` may change each tensor on its way.
    """
    if architecture == "qwen2moe":
        experts = experts or 4
    n_embd = n_embd or (256 if file_type == "Q4_K_M" else 64)
    words = _tiny_vocab() if vocab == "tiny" else _real_vocab(vocab)
    for i in range(n_vocab - len(words["tokenizer.ggml.tokens"])):
        words["tokenizer.ggml.tokens"].append(f"word{i}")
        words["tokenizer.ggml.token_type"].append(1)
    keys = {**_keys(architecture, n_layer, n_embd, experts, n_ctx), **words}
    keys["general.file_type"] = FILE_TYPES["F32" if file_type == "F32" else "F16"]
    if template is not None:
        keys["tokenizer.chat_template"] = template
    keys.update(metadata or {})

    name = f"{architecture}-{vocab}-{n_layer}x{n_embd}-{experts}-{seed}"
    path = folder / f"{name}-{file_type}.gguf"
    source = path if file_type in ("F32", "F16") else folder / f"{name}-source.gguf"
    n_vocab = len(words["tokenizer.ggml.tokens"])
    rng = np.random.default_rng(seed)
    writer = _Writer(source, architecture)
    for key, value in keys.items():
        if value is not None:
            _add(writer, key, value)
    for tensor, shape in _shapes(architecture, n_layer, n_embd, n_vocab, experts, n_ctx):
        values = weights(tensor, _values(rng, tensor, shape, architecture))
        plain = values.ndim == 1 or "gate_inp" in tensor or file_type == "F32"
        writer.add_tensor(tensor, values if plain else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if source != path:
        quantize(source, path, file_type)
        source.unlink()
    return path


def quantize(source: Path, target: Path, file_type: str) -> None:
    """Quantize a model file with llama.cpp, with one thread."""
    params = cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[file_type], 1
    failed = cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert not failed, f"llama.cpp cannot quantize {source.name} to {file_type}"


def _keys(arch: str, n_layer: int, n_embd: int, experts: int, n_ctx: int) -> dict[str, Any]:
    if arch == "mamba":
        return {
            "general.name": "Random model",
            "mamba.block_count": n_layer,
            "mamba.context_length": n_ctx,
            "mamba.embedding_length": n_embd,
            "mamba.feed_forward_length": 0,
            "mamba.attention.head_count": 0,
            "mamba.attention.layer_norm_rms_epsilon": 1e-5,
            "mamba.ssm.conv_kernel": _SSM["conv"],
            "mamba.ssm.inner_size": 2 * n_embd,
            "mamba.ssm.state_size": _SSM["state"],
            "mamba.ssm.time_step_rank": _SSM["step"],
        }
    n_head = n_embd // 32
    keys: dict[str, Any] = {
        # llama.cpp knows some names (phi-3, jina) and expects their tokens: name no architecture.
        "general.name": "Random model",
        f"{arch}.block_count": n_layer,
        f"{arch}.context_length": n_ctx,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.feed_forward_length": 2 * n_embd,
        f"{arch}.attention.head_count": n_head,
        f"{arch}.attention.head_count_kv": n_head if arch in ("gpt2", "phi3") else n_head // 2,
    }
    if arch == "gpt2":
        keys["gpt2.attention.layer_norm_epsilon"] = 1e-5
    else:
        keys[f"{arch}.attention.layer_norm_rms_epsilon"] = 1e-5
        keys[f"{arch}.rope.freq_base"] = 10000.0
    if arch in ("llama", "phi3"):
        keys[f"{arch}.rope.dimension_count"] = 32
    if arch in ("gemma", "gemma2", "qwen3"):
        keys[f"{arch}.attention.key_length"] = keys[f"{arch}.attention.value_length"] = 32
    if arch == "gemma2":
        keys["gemma2.attention.sliding_window"] = 128
    if experts:
        keys[f"{arch}.expert_count"], keys[f"{arch}.expert_used_count"] = experts, 2
    if arch == "qwen2moe":
        keys["qwen2moe.expert_feed_forward_length"] = n_embd
        keys["qwen2moe.expert_shared_feed_forward_length"] = 2 * n_embd
    return keys


def _shapes(
    arch: str, n_layer: int, n_embd: int, n_vocab: int, experts: int, n_ctx: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in NumPy's order (outputs first)."""
    n_ff = 2 * n_embd
    n_kv = n_embd if arch in ("gpt2", "phi3") else n_embd // 2
    bias = arch == "gpt2"

    def both(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        if bias:
            yield f"{name}.bias", shape[:1]

    yield "token_embd.weight", (n_vocab, n_embd)
    if arch == "mamba":
        yield from _recurrent(n_layer, n_embd)
        n_layer = 0
    if arch == "gpt2":
        yield "position_embd.weight", (n_ctx, n_embd)
    for i in range(n_layer):
        b = f"blk.{i}"
        yield from both(f"{b}.attn_norm", n_embd)
        if arch in ("gpt2", "phi3"):
            yield from both(f"{b}.attn_qkv", n_embd + 2 * n_kv, n_embd)
        else:
            for part, rows in (("q", n_embd), ("k", n_kv), ("v", n_kv)):
                yield f"{b}.attn_{part}.weight", (rows, n_embd)
                if arch in ("qwen2", "qwen2moe"):
                    yield f"{b}.attn_{part}.bias", (rows,)
        if arch == "qwen3":
            yield f"{b}.attn_q_norm.weight", (32,)
            yield f"{b}.attn_k_norm.weight", (32,)
        yield from both(f"{b}.attn_output", n_embd, n_embd)
        if arch == "gemma2":
            yield f"{b}.post_attention_norm.weight", (n_embd,)
            yield f"{b}.post_ffw_norm.weight", (n_embd,)
        yield from both(f"{b}.ffn_norm", n_embd)
        if experts:
            n_each = n_embd if arch == "qwen2moe" else n_ff
            yield f"{b}.ffn_gate_inp.weight", (experts, n_embd)
            yield f"{b}.ffn_gate_exps.weight", (experts, n_each, n_embd)
            yield f"{b}.ffn_up_exps.weight", (experts, n_each, n_embd)
            yield f"{b}.ffn_down_exps.weight", (experts, n_embd, n_each)
        if arch == "qwen2moe":
            yield f"{b}.ffn_gate_inp_shexp.weight", (n_embd,)
        if arch == "qwen2moe" or not experts:
            suffix = "_shexp" if experts else ""
            if arch not in ("gpt2", "phi3"):
                yield f"{b}.ffn_gate{suffix}.weight", (n_ff, n_embd)
            rows = 2 * n_ff if arch == "phi3" else n_ff
            yield from both(f"{b}.ffn_up{suffix}", rows, n_embd)
            yield from both(f"{b}.ffn_down{suffix}", n_embd, n_ff)
    yield from both("output_norm", n_embd)
    if arch not in TIED:
        yield "output.weight", (n_vocab, n_embd)


def _recurrent(n_layer: int, n_embd: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The layers of a mamba."""
    inner, conv, state, step = 2 * n_embd, _SSM["conv"], _SSM["state"], _SSM["step"]
    for i in range(n_layer):
        b = f"blk.{i}"
        yield f"{b}.attn_norm.weight", (n_embd,)
        yield f"{b}.ssm_in.weight", (2 * inner, n_embd)
        yield f"{b}.ssm_conv1d.weight", (inner, conv)
        yield f"{b}.ssm_conv1d.bias", (inner,)
        yield f"{b}.ssm_x.weight", (step + 2 * state, inner)
        yield f"{b}.ssm_dt.weight", (inner, step)
        yield f"{b}.ssm_dt.bias", (inner,)
        yield f"{b}.ssm_a", (inner, state)
        yield f"{b}.ssm_d", (inner,)
        yield f"{b}.ssm_out.weight", (n_embd, inner)


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...], arch: str) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1 + 0.1 * noise
    if name.endswith(".bias"):
        return 0.1 * noise
    if name.endswith("ssm_a"):
        return -0.1 - np.abs(noise)  # states fade
    if name == "token_embd.weight" and arch not in TIED:
        return noise
    return noise / np.float32(np.sqrt(shape[-1]))


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(spare)) for b in range(256)]


def _tiny_vocab() -> dict[str, Any]:
    tokens = [*byte_characters(), *(m.replace(" ", "") for m in MERGES), *SPECIALS]
    first = len(tokens) - len(SPECIALS)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * first + [3] * len(SPECIALS),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 1,
        "tokenizer.ggml.add_bos_token": True,
    }


def _real_vocab(name: str) -> dict[str, Any]:
    metadata = read_gguf(real_vocab(name)).metadata
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.ggml.")}


class _Writer(gguf.GGUFWriter):
    """A writer that copies arrays as they are, where the base class packs value by value."""

    def _pack_val(self, val: Any, vtype: gguf.GGUFValueType, *args: Any, **kwargs: Any) -> bytes:
        kinds = {"<f4": 6, "<i4": 5, "<u4": 4, "|u1": 0}
        if isinstance(val, StringArray):
            return struct.pack("<IIQ", _ARRAY, _STRING, len(val)) + val.raw
        if isinstance(val, np.ndarray):
            return struct.pack("<IIQ", _ARRAY, kinds[val.dtype.str], len(val)) + val.tobytes()
        return super()._pack_val(val, vtype, *args, **kwargs)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY)
