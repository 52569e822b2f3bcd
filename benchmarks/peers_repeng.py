"""The control vectors that repeng makes: `PYTHON peers_repeng.py MODEL LINES FOLDER THREADS`.

Runs in an environment of its own (`make peers`), which has repeng, torch and transformers, and
nothing of this project. MODEL is a GGUF file, which transformers reads; LINES holds JSON lines
`[positive, negative]`. FOLDER gets a GGUF control vector for each of repeng's two methods:
`pca_diff`, its default, and `pca_center`. The layers are those of its notebooks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LAYERS = range(-5, -18, -1)
"""Of the `ControlModel` in repeng's notebooks and README."""
METHODS = ("pca_diff", "pca_center")


def main() -> None:
    import torch
    from repeng import ControlVector, DatasetEntry
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, lines, folder = map(Path, sys.argv[1:4])
    torch.set_num_threads(int(sys.argv[4]))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.pad_token_id = 0  # as the notebooks have it
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    depth = model.config.num_hidden_layers
    layers = [depth + layer for layer in LAYERS if depth + layer > 0]
    pairs = [DatasetEntry(*json.loads(line)) for line in lines.read_text("utf-8").splitlines()]
    for method in METHODS:
        vector = ControlVector.train(model, tokenizer, pairs, method=method, hidden_layers=layers)
        vector.export_gguf(folder / f"{method}.gguf")


if __name__ == "__main__":
    main()
