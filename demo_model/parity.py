"""The exported F16 file against PyTorch: the same tokens in, the same logits out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from llama_cpp import Llama as GGUFModel

from demo_model import export, train
from demo_model import tokenizer as bpe
from demo_model.corpus import documents
from demo_model.model import Llama
from demo_model.settings import BEGIN, SPECIALS, Settings

POSITIONS = 400
LINES = 1000

UNSEEN = (
    "Café naïve façade, Übergröße, señor, smörgåsbord, İstanbul, cafe\u0301 e\u0301e\u0301",
    "日本語のテキストです。漢字とカナ。", "中文句子，没有空格。", "한국어 문장입니다.",
    "😀👍🏽 👩‍👩‍👧 🇩🇪 ☕️ ❤️‍🔥", "שלום עולם", "مرحبا بالعالم ١٢٣", "Ελληνικά и кириллица",
    "हिन्दी में वाक्य", "ไทยไม่มีช่องว่าง", "a\u0001b\u0007c\u001b[31m\u007f", "tab\tand\ttabs\t\t",
    "many     spaces  and trailing   ", "   leading", "\n\n\nline\n\n breaks \r\n mixed\r",
    "0 1 12 123 1234567890 3.14159 1,000,000 ½ ² ⅷ ٣", "don't I'll we've THEY'RE it's 'd 's",
    "!!!??...---___***((([[[{{{<<<>>>}}}]]])))", "\u00a0nbsp\u2003em\u200bzero\u3000wide\ufeff",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 🏴‍☠️ ﷽ ﬁ ß ſ", "x" * 300, " ", "\n", "", "a", "<|en", "|>", "< |end|>",
)  # fmt: skip
"""Texts that the corpus does not contain, for the comparison of the two tokenizers."""


@dataclass(frozen=True)
class Parity:
    """What `compare` measured; differences are of logits, PyTorch against llama.cpp."""

    positions: int
    top1_agreement: float
    max_difference: float
    mean_difference: float
    texts: int
    texts_tokenised_alike: int

    @property
    def passed(self) -> bool:
        """Whether the export is faithful."""
        return self.top1_agreement >= 0.99 and self.texts == self.texts_tokenised_alike


def rounded_model(weights: dict[str, torch.Tensor], settings: Settings) -> Llama:
    """The PyTorch model with its matrices rounded to float16, as the file has them."""
    model = Llama(settings)
    model.load_state_dict(
        {name: w.half().float() if w.dim() == 2 else w for name, w in weights.items()}
    )
    return model.eval()


def logit_differences(
    model: Llama, other: GGUFModel, sequences: Sequence[Sequence[int]]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Per position: whether the top token agrees; absolute differences (positions, n_vocab)."""
    agree, differences = [], []
    for ids in sequences:
        with torch.no_grad():
            ours = model(torch.tensor([ids]))[0].numpy()
        other.reset()
        other.eval(ids)
        theirs = other.scores[: len(ids)]
        agree.append(ours.argmax(-1) == theirs.argmax(-1))
        differences.append(np.abs(ours - theirs))
    return np.concatenate(agree), np.concatenate(differences)


def compare(settings: Settings, work: Path, percent: int = 100) -> Parity:
    """Compare the F16 file in `work` with the weights that it was made from."""
    weights = torch.load(train.weights_path(work, percent), weights_only=True)
    tokenizer = bpe.load(work)
    sample = list(islice(documents(settings.held_out_seed), LINES))
    other = GGUFModel(
        str(export.gguf_path(work)), n_ctx=settings.context, n_threads=2, logits_all=True,
        verbose=False,
    )  # fmt: skip

    sequences: list[list[int]] = []
    for document in sample:
        if sum(map(len, sequences)) >= POSITIONS:
            break
        ids = [bpe.special_id(tokenizer, BEGIN), *bpe.encode(tokenizer, document.text())]
        sequences.append(ids[: settings.context])
    agree, difference = logit_differences(rounded_model(weights, settings), other, sequences)

    picked = random.Random(settings.seed)
    lines = [picked.choice(d.text().splitlines()) for d in sample]
    texts = [*lines, *UNSEEN, *(d.text() for d in sample[:20]), *SPECIALS]
    alike = sum(
        other.tokenize(text.encode(), add_bos=False, special=True) == bpe.encode(tokenizer, text)
        for text in texts
    )
    return Parity(
        positions=len(agree),
        top1_agreement=float(agree.mean()),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        texts=len(texts),
        texts_tokenised_alike=alike,
    )


def report_path(work: Path) -> Path:
    """Where `run` leaves its figures."""
    return work / "parity.json"


def run(settings: Settings, work: Path, percent: int = 100) -> Parity:
    """Compare, print the figures as JSON and keep them in `work`."""
    parity = compare(settings, work, percent)
    text = json.dumps({**asdict(parity), "passed": parity.passed}, indent=1)
    report_path(work).write_text(text + "\n")
    print(text, flush=True)
    return parity
