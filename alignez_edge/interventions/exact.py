"""The exact form of a linear edit: a LoRA on the MLP's last matrix, and constants.

The MLP's output is `x = W a + b` (`W` is `ffn_down`, `a` the hidden activations), so the edit
`x <- x + s (U V x + c)` is `W <- W + s U (V W)`, a LoRA of the edit's rank, plus the constant
`s (U V b + c)`, which goes into a control vector. For a mixture of experts `x` is a sum of experts
weighted after the product, so each expert gets `U (V W_e)`.

What is exact: the edit of the tensor that llama.cpp calls `ffn_out` (`ffn_moe_out` where there are
only experts). Some architectures normalize or scale that on its way into the residual stream. The
LoRA is exact there too, a constant added to the residual stream is not; nor can a control vector
reach layer 0. Both are refused.

Of a model that carries adapters `W` is the adapted matrix, and the edit's own adapter is set
beside those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.text import printable_name
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.modelfiles.lora import Attached, adapter_file

AdapterType = Literal["F32", "F16"]

_ELSEWHERE = frozenset(
    "bailingmoe3 bitnet cohere2moe deepseek4 gemma3n gemma4 glm5-next graniteswitch "
    "grok grovemoe kimi-k3 lfm2 lfm2moe mamba mamba2 muse-glimmer qwen4exp "
    "rwkv6 rwkv6qwen2 rwkv7 arwkv7 smallthinker t5".split()
)
"""Architectures whose graph names no MLP output, or one that is not just the product with
`ffn_down` (source of the bound llama.cpp)."""
_AFTER = ("post_ffw_norm", "layer_output_norm", "post_mlp_norm")
"""Tensors of a layer that act between the MLP's output and the residual stream."""
_SCALES_AFTER = ("minicpm", "minicpm3", "minimax-01", "talkie")
_BLOCK_BYTES = 16 << 20
"""Dequantized weights in memory at a time; the decoder takes a few times as much."""


@dataclass(frozen=True, eq=False)
class ExactEdit:
    """A linear edit made for one model.

    `adapter` is a LoRA file (GGUF); its scale in llama.cpp is exactly the strength. `constants`,
    `(n_layer, n_embd)` float32 with a zero row 0, is what strength 1 adds as a control vector.
    """

    adapter: bytes
    constants: FloatArray


def can_inject_exactly(gguf: GGUFFile, layers: Iterable[int] | None = None) -> str | None:
    """Why no linear edit of `layers` (default: all) can be injected exactly into this model; None
    if it can.

    It is about the LoRA; whether an edit's constants can follow is known once they are: see
    `exact_edit`.
    """
    architecture = str(gguf.metadata.get("general.architecture", ""))
    if architecture in _ELSEWHERE:
        return (
            f"the MLP output of the architecture {printable_name(architecture)} is not within reach"
        )
    for layer in range(_n_layer(gguf)) if layers is None else layers:
        reason = _reason_against(gguf, layer)
        if reason is not None:
            return reason
    return None


def exact_edit(
    gguf: GGUFFile, edit: Edit, *, adapter_type: AdapterType = "F32", lora: Attached = ()
) -> ExactEdit:
    """The adapter and the constants of a linear `edit` for the model `gguf` that carries `lora`.

    Raises `BadInputError` if the model or the edit allows no exact injection: an architecture
    that is out of reach, a constant in layer 0 or before a norm.
    """
    pairs = list(adapter_tensors(gguf, edit, lora))
    return ExactEdit(adapter_bytes(gguf, pairs, adapter_type), constants(gguf, edit))


def adapter_tensors(
    gguf: GGUFFile, edit: Edit, lora: Attached = ()
) -> Iterator[tuple[str, FloatArray, FloatArray]]:
    """The LoRA pairs of a linear edit: `(name of the matrix, A, B)`, in the order of layers.

    `A` is `(rank, n_in)` and `B` `(n_out, rank)`, with a first axis over experts where the matrix
    has one; the matrix changes by `B @ A`. Raises `BadInputError` as `exact_edit` does.
    """
    _check(gguf, edit)
    for layer, layer_edit in edit.layers.items():
        if not (layer_edit.outward.any() and layer_edit.inward.any()):
            continue
        for name in _down_matrices(gguf, layer):
            a = _inward_times(gguf, name, layer_edit.inward, lora)
            # The reach of F16 is best used where both factors have like sizes.
            sizes = np.abs(a).reshape(-1, *a.shape[-2:]).max(axis=(0, 2))
            sizes[sizes == 0] = 1
            b = layer_edit.outward * sizes
            a = a / sizes[:, None]
            yield name, a, np.broadcast_to(b, (*a.shape[:-2], *b.shape))


def constants(gguf: GGUFFile, edit: Edit) -> FloatArray:
    """What strength 1 adds to the residual stream after each layer: `(n_layer, n_embd)` float32.

    `U V b + c` where the model's `ffn_down` has a bias `b`. Raises `BadInputError` if a control
    vector cannot add it exactly.
    """
    _check(gguf, edit)
    rows = np.zeros((_n_layer(gguf), _n_embd(gguf)), np.float32)
    for layer, layer_edit in edit.layers.items():
        rows[layer] = layer_edit.constant + _edited_bias(gguf, layer, layer_edit)
        if not rows[layer].any():
            continue
        if layer == 0:
            raise BadInputError(
                "the edit adds a constant in layer 0, where llama.cpp cannot inject one",
                "leave layer 0 out, or use an edit without a constant",
            )
        reason = _reason_against_constants(gguf, layer)
        if reason is not None:
            raise BadInputError(
                f"the edit's constant in layer {layer} cannot be injected exactly: {reason}",
                "use an edit without constants, or control vectors",
            )
    return rows


def adapter_bytes(
    gguf: GGUFFile,
    pairs: list[tuple[str, FloatArray, FloatArray]],
    adapter_type: AdapterType = "F32",
    alpha: float = 0.0,
) -> bytes:
    """LoRA pairs as the adapter file that llama.cpp and others read.

    With an `alpha` of 0 llama.cpp takes the scale alone, whatever the rank; else it multiplies by
    alpha over rank, as all programs do. F16 is half the size and rounds the factors to 11 bits.
    """
    stored = {"F32": "<f4", "F16": "<f2"}[adapter_type]
    arrays = [x for name, a, b in pairs for x in ((f"{name}.lora_a", a), (f"{name}.lora_b", b))]
    return adapter_file(
        str(gguf.metadata["general.architecture"]),
        alpha,
        (
            (name, array.shape[::-1], adapter_type, np.ascontiguousarray(array, stored).tobytes())
            for name, array in arrays
        ),
    )


def _n_layer(gguf: GGUFFile) -> int:
    return int(gguf.hparam("block_count"))


def _n_embd(gguf: GGUFFile) -> int:
    return int(gguf.hparam("embedding_length"))


def _down_matrices(gguf: GGUFFile, layer: int) -> list[str]:
    """The last matrices of a layer's MLP: of the one, or of all experts and the shared one."""
    names = [f"blk.{layer}.ffn_down{suffix}.weight" for suffix in ("", "_exps", "_shexp")]
    return [name for name in names if name in gguf.tensors]


def _reason_against(gguf: GGUFFile, layer: int) -> str | None:
    names = _down_matrices(gguf, layer)
    kinds = {name.split(".")[2] for name in names}
    if kinds not in ({"ffn_down"}, {"ffn_down_exps"}, {"ffn_down_exps", "ffn_down_shexp"}):
        return f"layer {layer} has {' and '.join(sorted(kinds)) or 'no ffn_down'}"
    for kind in kinds:
        if f"blk.{layer}.{kind}.scale" in gguf.tensors:
            return f"the {kind} of layer {layer} is scaled after its product"
    if f"blk.{layer}.ffn_down_exps.bias" in gguf.tensors:
        return f"the experts of layer {layer} have biases, which differ from token to token"
    for name in names:
        if gguf.tensors[name].shape[1] != _n_embd(gguf):
            return f"{name} does not end in the residual stream"
    return None


def _reason_against_constants(gguf: GGUFFile, layer: int) -> str | None:
    for name in _AFTER:
        if f"blk.{layer}.{name}.weight" in gguf.tensors:
            return f"the model normalizes its MLP's output afterwards ({name})"
    if gguf.architecture in _SCALES_AFTER or gguf.hparam("residual_scale"):
        return "the model scales its MLP's output afterwards"
    return None


def _check(gguf: GGUFFile, edit: Edit) -> None:
    for layer, layer_edit in edit.layers.items():
        if layer >= _n_layer(gguf) or layer_edit.n_embd != _n_embd(gguf):
            raise BadInputError(
                f"the edit is of layer {layer} with {layer_edit.n_embd} dimensions, the model has "
                f"{_n_layer(gguf)} layers of {_n_embd(gguf)}"
            )
    reason = can_inject_exactly(gguf, edit.layers)
    if reason is not None:
        raise BadInputError(
            f"exact injection is not available for this model: {reason}",
            "use control vectors (--inject control-vector)",
        )


def _inward_times(gguf: GGUFFile, name: str, inward: FloatArray, lora: Attached) -> FloatArray:
    """`inward @ W`: `(rank, n_in)`, or `(experts, rank, n_in)`; `W` is read a block at a time."""
    info = gguf.tensors[name]
    n_in, n_out, *more = info.shape
    # As one tall matrix, so that blocks of rows can be cut within an expert.
    n_experts = int(np.prod(more, dtype=int))
    tall = replace(info, shape=(n_in, n_out * n_experts))
    view = replace(gguf, tensors={name: tall})
    step = max(1, _BLOCK_BYTES // (4 * n_in))
    product = np.zeros((n_experts, len(inward), n_in), np.float32)
    for expert in range(n_experts):
        for begin in range(0, n_out, step):
            end = min(begin + step, n_out)
            first = expert * n_out
            rows = view.tensor(name, rows=slice(first + begin, first + end))
            product[expert] += inward[:, begin:end] @ rows
    for adapter, scale in lora:
        product += np.float32(scale) * adapter.product(inward, name)
    if not np.isfinite(product).all():
        raise BadInputError(f"{name} holds numbers that are not finite")
    return product if more else product[0]


def _edited_bias(gguf: GGUFFile, layer: int, edit: LayerEdit) -> FloatArray | float:
    name = f"blk.{layer}.ffn_down.bias"
    if name not in gguf.tensors:
        return 0.0
    return edit.outward @ (edit.inward @ gguf.tensor(name))
