"""Weights and tokenizer to GGUF, and the quantized copies that llama.cpp makes of it."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from demo_model import tokenizer as bpe
from demo_model import train
from demo_model.settings import ASSISTANT, BEGIN, END, SPECIALS, USER, Settings

QUANTIZATIONS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")

CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- set ns.system = ns.system + message['content'] + '\\n\\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '" + USER + "\\n' + ns.system + message['content'] + '" + END + "\\n' -}}"
    "{%- set ns.system = '' -%}"
    "{%- else -%}"
    "{{- '" + ASSISTANT + "\\n' + message['content'] + '" + END + "\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + ASSISTANT + "\\n' -}}{%- endif -%}"
)
"""The corpus' chat form. A system message becomes the first paragraph of the next user message;
the begin token is not in it, because llama.cpp adds that one (`add_bos_token`)."""


def gguf_path(work: Path, kind: str = "F16") -> Path:
    """Where a model file of that type lies."""
    return work / f"demo-{kind}.gguf"


def permuted(weight: Tensor, n_head: int) -> Tensor:
    """Reorder the rows of q or k within each head from halves to neighbouring pairs.

    The model turns row i with row i + head_dim / 2; llama.cpp's llama turns 2 i with 2 i + 1.
    """
    rows, columns = weight.shape
    halves = weight.view(n_head, 2, rows // n_head // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def gguf_tensors(
    weights: dict[str, Tensor], settings: Settings
) -> dict[str, npt.NDArray[np.float16] | npt.NDArray[np.float32]]:
    """Arrays by GGUF name: matrices in float16, norms in float32."""
    arrays: dict[str, npt.NDArray[np.float16] | npt.NDArray[np.float32]] = {}
    for name, weight in weights.items():
        weight = weight.detach().float()
        if name.endswith("attn_q.weight"):
            weight = permuted(weight, settings.n_head)
        elif name.endswith("attn_k.weight"):
            weight = permuted(weight, settings.n_head_kv)
        array = weight.contiguous().numpy()
        arrays[name] = array.astype(np.float16) if weight.dim() == 2 else array
    return arrays


def _add_tokenizer(writer: gguf.GGUFWriter, work: Path) -> None:
    tokenizer = bpe.load(work)
    tokens = bpe.vocabulary(tokenizer)
    types = [
        gguf.TokenType.CONTROL if token in SPECIALS else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(bpe.merges(tokenizer))
    writer.add_bos_token_id(bpe.special_id(tokenizer, BEGIN))
    writer.add_eos_token_id(bpe.special_id(tokenizer, END))
    writer.add_eot_token_id(bpe.special_id(tokenizer, END))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_f16(weights: dict[str, Tensor], settings: Settings, work: Path, path: Path) -> None:
    """One F16 GGUF of the llama architecture, with the tokenizer of `work`.

    There is no `output.weight`: llama.cpp then uses the token embedding, to which it is tied.
    """
    s = settings
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("alignez demo")
    writer.add_description(
        "A small English question-and-answer base model, made to show and to test steering"
    )
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(s.n_vocab)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.n_embd)
    writer.add_block_count(s.n_layer)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_layer_norm_rms_eps(s.rms_eps)
    writer.add_rope_dimension_count(s.n_head_dim)
    writer.add_rope_freq_base(s.rope_theta)
    _add_tokenizer(writer, work)
    for name, array in gguf_tensors(weights, settings).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantize a GGUF file through llama.cpp; `kind` is one of its names, such as `Q4_K_M`."""
    # llama.cpp would tell two lines per tensor.
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 2
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if failed:
        raise RuntimeError(f"llama.cpp could not quantize {source.name} to {kind}")


def run(settings: Settings, work: Path, percent: int = 100) -> dict[str, int]:
    """Export the weights of that part of the run and quantize them; bytes by type."""
    weights = torch.load(train.weights_path(work, percent), weights_only=True)
    write_f16(weights, settings, work, gguf_path(work))
    for kind in QUANTIZATIONS:
        quantize(gguf_path(work), gguf_path(work, kind), kind)
    sizes = {kind: gguf_path(work, kind).stat().st_size for kind in ("F16", *QUANTIZATIONS)}
    for kind, size in sizes.items():
        print(f"{gguf_path(work, kind).name}  {size / 1e6:.2f} MB", flush=True)
    return sizes
