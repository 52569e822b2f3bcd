"""Byte-level BPE in GPT-2's manner, so that llama.cpp's `gpt-2` pre-tokenizer cuts text alike."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_model.settings import SPECIALS, Settings


def path_in(work: Path) -> Path:
    """Where the tokenizer of a work folder lies."""
    return work / "tokenizer.json"


def train(texts: Iterable[str], settings: Settings) -> Tokenizer:
    """Learn the merges from `texts`; all 256 bytes are in the alphabet, specials are ids 0 to 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.n_vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != settings.n_vocab:
        raise ValueError(
            f"the corpus yields {tokenizer.get_vocab_size()} tokens, {settings.n_vocab} are wanted"
        )
    return tokenizer


def load(work: Path) -> Tokenizer:
    """The tokenizer that the corpus step left in `work`."""
    return Tokenizer.from_file(str(path_in(work)))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text; names of special tokens in it become those tokens; no BOS is added."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def special_id(tokenizer: Tokenizer, name: str) -> int:
    """Id of a special token; KeyError when the tokenizer lacks it."""
    return tokenizer.get_vocab()[name]


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """The tokens by id, ordinary ones in GPT-2's printable form of bytes."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    return [by_id[number] for number in range(len(by_id))]


def merges(tokenizer: Tokenizer) -> list[str]:
    """The merges in their order, as `left right`."""
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
