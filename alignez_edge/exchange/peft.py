"""A profile's exact form as a PEFT adapter: for transformers, vLLM and other multi-LoRA servers.

The folder holds `adapter_model.safetensors` and `adapter_config.json`. It names modules of the
model in the transformers library, which the GGUF was converted from. Converting leaves the MLP's
last matrix as it is (only GPT-2's is stored the other way round there), so its factors fit.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.exchange.export import Exported, Part, factors, folder_at, notices_of
from alignez_edge.files.text import printable
from alignez_edge.files.writing import write_atomic

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model

_LLAMA = "model.layers.{}.mlp.down_proj"
_NEOX = "mlp.dense_4h_to_h"
MODULES = {
    **dict.fromkeys(
        "llama qwen2 qwen3 gemma gemma2 gemma3 phi3 olmo olmo2 granite stablelm command-r".split(),
        _LLAMA,
    ),
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "phi2": "model.layers.{}.mlp.fc2",
    "starcoder2": "model.layers.{}.mlp.c_proj",
    "falcon": f"transformer.h.{{}}.{_NEOX}",
    "gptneox": f"gpt_neox.layers.{{}}.{_NEOX}",
}
"""Where the transformers library keeps the MLP's last matrix, by the architecture in the GGUF.
Mistral models are `llama` there."""
_TRANSPOSED = ("gpt2",)
_MATRIX = re.compile(r"blk\.(\d+)\.ffn_down\.weight", re.ASCII)


def export_peft(
    profile: Profile,
    model: Model,
    folder: str | Path,
    *,
    strength: float = 1.0,
    part: Part = "answer",
) -> Exported:
    """Write a PEFT adapter of one part of the exact form of `profile` at `strength`.

    The folder is made if missing. Raises `BadInputError` as `export_lora` does, for architectures
    whose modules are not known here and for mixtures of experts; `AlignezError` if the package
    safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise AlignezError(
            "writing a PEFT adapter needs the package safetensors",
            "pip install 'alignez-edge[peft]'",
        ) from None
    architecture = profile.fingerprint.architecture
    if architecture not in MODULES:
        raise BadInputError(
            f"the names of {printable(architecture)}'s modules in transformers are not known",
            f"known: {', '.join(sorted(MODULES))}; --to lora works for all",
        )
    found = factors(profile, model, strength, part)
    biased = bool(found.constants.any())
    tensors: dict[str, np.ndarray] = {}
    modules = []
    for matrix, (a, b) in found.matrices.items():
        match = _MATRIX.fullmatch(matrix)
        if match is None:
            raise BadInputError(
                "PEFT adapters are written for models without experts",
                "export it for llama.cpp: --to lora",
            )
        layer = int(match[1])
        modules.append(MODULES[architecture].format(layer))
        name = f"base_model.model.{modules[-1]}"
        tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
        if biased:
            tensors[f"{name}.lora_B.bias"] = found.constants[layer]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": found.rank,
        "lora_alpha": found.rank,
        "target_modules": modules,
        "fan_in_fan_out": architecture in _TRANSPOSED,
        "lora_bias": biased,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    target = folder_at(folder)
    files = target / "adapter_model.safetensors", target / "adapter_config.json"
    write_atomic(files[0], save(tensors, {"format": "pt"}))
    write_atomic(files[1], (json.dumps(config, indent=2) + "\n").encode())
    notices = notices_of(profile, part, model)
    if biased:
        notices.append("the edit has constants, as biases of the adapter: vLLM cannot add them")
    return Exported(files, tuple(notices))
