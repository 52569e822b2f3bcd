"""The reference: edits of the MLP's output done in NumPy, in the evaluation callback.

Slow, plain and obviously right: each layer's MLP output is read, edited and written back before
the graph goes on. It is what the fast paths are tested against, and the only path for edits with
an activation.

Facts of llama.cpp that this stands on: a layer's MLP output is the first tensor named `ffn_out-<l>`
(the second, which there is while a control vector is set, is the residual stream before the
vector), or `ffn_moe_out-<l>` where a layer has experts and no shared one; its rows are tokens of
the batch, all of which are edited.
"""

from __future__ import annotations

import numpy as np

from alignez_edge.errors import RuntimeFailure
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.runtime.injection import Editor
from alignez_edge.runtime.llama import ggml, tensor_shape, tensor_type

_F32 = 0


class Reference:
    """A tap that edits. `editors` are applied to every pass; their changes add up."""

    def __init__(self, gguf: GGUFFile, n_layer: int, n_embd: int) -> None:
        self.editors: tuple[tuple[Editor, float], ...] = ()
        self._n_embd = n_embd
        self._layers = {mlp_output(gguf, layer).encode(): layer for layer in range(n_layer)}
        self._wanted: set[int] = set()

    @property
    def active(self) -> bool:
        """Whether a layer has yet to be edited in this pass."""
        return bool(self._wanted)

    def start(self) -> None:
        """A new pass begins."""
        self._wanted = {layer for editor, _ in self.editors for layer in editor.layers}

    def finish(self) -> None:
        """A pass has ended. Raises `RuntimeFailure` if an edited layer did not come by."""
        if self._wanted:
            raise RuntimeFailure(
                f"llama.cpp shows no MLP output of layer {min(self._wanted)} of this model",
                "it cannot be edited there",
            )

    def wants(self, name: bytes) -> bool:
        return bool(self._wanted) and self._layers.get(name) in self._wanted

    def read(self, name: bytes, tensor: int) -> bool:
        layer = self._layers[name]
        self._wanted.remove(layer)
        n_embd, n_rows, *others = tensor_shape(tensor)
        if n_embd != self._n_embd or others != [1, 1] or tensor_type(tensor) != _F32:
            raise RuntimeFailure(f"{name.decode()} has the shape {(n_embd, n_rows, *others)}")
        x = np.empty((n_rows, n_embd), np.float32)
        ggml.tensor_get(tensor, x.ctypes.data, 0, x.nbytes)
        edited = x.copy()
        for editor, strength in self.editors:
            if layer in editor.layers:
                edited += np.float32(strength) * editor.change(layer, x)
        ggml.tensor_set(tensor, edited.ctypes.data, 0, edited.nbytes)
        return True


def mlp_output(gguf: GGUFFile, layer: int) -> str:
    """The name of the tensor that holds a layer's MLP output."""
    experts = f"blk.{layer}.ffn_down_exps.weight" in gguf.tensors
    shared = f"blk.{layer}.ffn_down_shexp.weight" in gguf.tensors
    return f"ffn_moe_out-{layer}" if experts and not shared else f"ffn_out-{layer}"
