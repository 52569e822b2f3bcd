"""A model in which a known direction is planted at every layer, and control vectors made of it.

The word 'x' carries `planted(l)` after layer `l`, other words carry nothing of it: each layer's MLP
recognises what the layer below has written, and writes the next direction, four times as long. So
whoever reads the difference between 'x' and other words after layer `l` finds `planted(l)`, which
is nothing like that of the layers around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignez_edge.arrays import FloatArray
from tests.tinymodels import byte_characters, tiny_model

N_LAYER, N_EMBD = 6, 64
LENGTH = 8.0
"""Of an embedding: components of unit size, as the norm of a layer leaves them."""
GROWTH = 4.0
WORD, OTHERS = "x", "abcdefgh"


@dataclass(frozen=True)
class Planted:
    """The model's file, and `(N_LAYER, N_EMBD)`: what 'x' has after each layer."""

    path: Path
    directions: FloatArray

    def layers_of(self, rows: FloatArray) -> list[int | None]:
        """For each row `(n, N_EMBD)` the layer whose direction it is; None for a row of zeros.

        A sign does not matter. Raises `AssertionError` for a row that is like none of them.
        """
        found: list[int | None] = []
        for row in rows:
            if not row.any():
                found.append(None)
                continue
            likeness = np.abs(self._unit(self.directions) @ self._unit(row))
            assert likeness.max() > 0.9, f"like none of the directions: {likeness}"
            found.append(int(likeness.argmax()))
        return found

    @staticmethod
    def _unit(values: FloatArray) -> FloatArray:
        return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), np.float32)


def planted_model(folder: Path) -> Planted:
    """Write the model into `folder`."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((N_EMBD, N_LAYER + 1)))[0].T.astype(np.float32)
    lengths = LENGTH * GROWTH ** np.arange(N_LAYER + 1, dtype=np.float32)
    word = byte_characters()[ord(WORD)]

    def weights(name: str, values: np.ndarray) -> np.ndarray:
        if name.endswith("norm.weight"):
            return np.ones_like(values)
        if name == "token_embd.weight":
            values = values - values @ basis.T @ basis
            values *= LENGTH / np.linalg.norm(values, axis=1, keepdims=True)
            values[byte_characters().index(word)] = lengths[0] * basis[0]
            return values
        if not name.startswith("blk.") or ("attn_output" not in name and "ffn" not in name):
            return values
        values = np.zeros_like(values)
        layer = int(name.split(".")[1])
        if "ffn_gate" in name or "ffn_up" in name:
            values[0] = basis[layer]
        elif "ffn_down" in name:
            # What the layer below has written is nearly all of the residual stream, so that its
            # component is nearly LENGTH once it is normed; silu(y) * y is nearly its square.
            values[:, 0] = lengths[layer + 1] / LENGTH**2 * basis[layer + 1]
        return values

    path = tiny_model(folder, n_layer=N_LAYER, n_embd=N_EMBD, file_type="F32", weights=weights)
    grown = np.cumsum(lengths[:, None] * basis, axis=0)
    return Planted(path, grown[1:].astype(np.float32))


def with_generator(
    run: Callable[[list[str]], None], model: Path, folder: Path, method: str
) -> Path:
    """The control vector that llama.cpp's `cvector-generator` makes (`mean` or `pca`); `run` is
    the program, given its arguments.

    One iteration a batch: with its default of 100 the generator takes its result out of memory
    that later iterations of the batch have used again, once the first ones have converged.
    """
    for name, lines in (("positive", [WORD] * len(OTHERS)), ("negative", list(OTHERS))):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    target = folder / f"generator-{method}.gguf"
    files = ["--positive-file", str(folder / "positive.txt")]
    files += ["--negative-file", str(folder / "negative.txt"), "-o", str(target)]
    batch = ["--pca-iter", "20", "--pca-batch", "1"]
    run(["-m", str(model), "-t", "1", "--method", method, *batch, *files])
    return target


def with_repeng(model: Path, tokenize: Callable[[str], list[int]], folder: Path) -> Path:
    """The control vector that the package repeng makes. Raises `ImportError` without it."""
    import torch
    from repeng import ControlVector, DatasetEntry
    from transformers import AutoModelForCausalLM, BatchEncoding
    from transformers.utils import logging

    def tokenizer(texts: list[str], **_: object) -> BatchEncoding:
        tokens = torch.tensor([tokenize(text) for text in texts])
        return BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    same = AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32
    )
    pairs = [DatasetEntry(positive=WORD, negative=other) for other in OTHERS]
    vector = ControlVector.train(same, tokenizer, pairs, method="pca_center")
    target = folder / "repeng.gguf"
    vector.export_gguf(target)
    return target
