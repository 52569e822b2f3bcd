"""From the work folder into the project: model files, card, picture, and what the tests compare.

The tests must need neither PyTorch nor `tokenizers`, so what those two say is stored: the logits
of real documents, and the tokens of texts.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from alignez_edge.files.writing import write_atomic
from demo_model import card, export, parity, report, train
from demo_model import tokenizer as bpe
from demo_model.corpus import Document, documents
from demo_model.settings import BEGIN, Settings

ROOT = Path(__file__).parent.parent
MOST_BYTES = 8_000_000
POSITIONS = 400
LINES = 1000
TOP = 20


class ShippingError(Exception):
    """What the work folder holds cannot be shipped."""


def run(settings: Settings, work: Path, percent: int = 100, root: Path = ROOT) -> None:
    """Copy and write everything; raises ShippingError for a model that is too large."""
    kind = json.loads(report.report_path(work).read_text())["shipped"]
    source = export.gguf_path(work, kind)
    size = source.stat().st_size
    if size > MOST_BYTES:
        raise ShippingError(f"{source.name} has {size:,} bytes; at most {MOST_BYTES:,} may ship")
    copies = {
        source: root / "alignez_edge" / "demo" / "demo-model.gguf",
        export.gguf_path(work): root / "demo_model" / "demo-model-f16.gguf",
        card.card_path(work): root / "demo_model" / card.card_path(work).name,
        card.picture_path(work): root / "demo_model" / card.picture_path(work).name,
    }
    for original, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced and not overwritten: a process that has the old model mapped must not lose it.
        write_atomic(target, original.read_bytes())
    data = root / "tests" / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_logits(settings, work, percent, data / "demo-parity.npz")
    write_tokens(settings, work, data / "demo-tokens.json.gz")
    for path in (*copies.values(), data / "demo-parity.npz", data / "demo-tokens.json.gz"):
        print(f"{path.relative_to(root)}  {path.stat().st_size / 1e6:.2f} MB", flush=True)


def write_logits(settings: Settings, work: Path, percent: int, path: Path) -> None:
    """PyTorch's logits on held-out documents, of the weights as the F16 file has them.

    `tokens` are the documents one after another, each from its begin token, and `lengths` theirs;
    for each token `top_ids` (n, 20) and `top_logits` (n, 20), the largest first.
    """
    weights = torch.load(train.weights_path(work, percent), weights_only=True)
    model = parity.rounded_model(weights, settings)
    tokenizer = bpe.load(work)
    sequences: list[list[int]] = []
    logits = []
    for document in _sample(settings):
        if sum(map(len, sequences)) >= POSITIONS:
            break
        ids = [bpe.special_id(tokenizer, BEGIN), *bpe.encode(tokenizer, document.text())]
        sequences.append(ids[: settings.context])
        with torch.no_grad():
            logits.append(model(torch.tensor(sequences[-1:]))[0])
    top = torch.cat(logits).topk(TOP, dim=-1)
    np.savez_compressed(
        path,
        tokens=np.concatenate([np.array(ids, dtype=np.uint16) for ids in sequences]),
        lengths=np.array([len(ids) for ids in sequences], dtype=np.uint16),
        top_ids=top.indices.numpy().astype(np.uint16),
        top_logits=top.values.numpy().astype(np.float32),
    )


def write_tokens(settings: Settings, work: Path, path: Path) -> None:
    """`[[text, ids], ...]`: 1,000 random lines of the corpus and the Unicode it never saw."""
    tokenizer = bpe.load(work)
    rng = random.Random(settings.seed)
    lines = [rng.choice(document.text().splitlines()) for document in _sample(settings)]
    pairs = [[text, bpe.encode(tokenizer, text)] for text in (*lines, *parity.UNSEEN)]
    content = json.dumps(pairs, ensure_ascii=False, separators=(",", ":")).encode()
    # Without the time of day the same model gives the same file.
    path.write_bytes(gzip.compress(content, mtime=0))


def _sample(settings: Settings) -> Iterator[Document]:
    return islice(documents(settings.held_out_seed), LINES)
