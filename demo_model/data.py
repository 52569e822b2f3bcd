"""The corpus as rows of tokens on disk: tokenised once, then read by the trainer.

A row begins with a fresh document, takes whole documents one after another and cuts the last one.
(Packing by best fit taught the model that documents at position 0 are long.) Each token carries a
class (`Code`) that decides its weight in the loss. The corpus is cut into shards with a seed each,
so that several processes write it and an interrupted run keeps the finished shards.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from enum import IntEnum
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from demo_model import tokenizer as bpe
from demo_model.corpus import Document, documents
from demo_model.settings import BEGIN, END, SPECIALS, Settings

Rows = npt.NDArray[np.uint16]
Codes = npt.NDArray[np.uint8]

ENCODE_AT_ONCE = 256
PROBE_DOCUMENTS = 200


class StaleWorkError(Exception):
    """The work folder was made from another corpus or other settings."""


class Code(IntEnum):
    """What a token is to the loss."""

    PROMPT = 0
    ANSWER = 1
    OPENING = 2  # one of the first tokens of an answer
    TURN = 3  # first token of a sentence inside an answer, or the end after an answer or list
    BEGIN = 4  # start of a document: nothing predicts it, so it has no weight


def weights(settings: Settings) -> npt.NDArray[np.float32]:
    """Loss weight by `Code`."""
    s = settings
    return np.array(
        [s.weight_prompt, s.weight_answer, s.weight_opening, s.weight_turn, 0.0], dtype=np.float32
    )


class Encoder:
    """Documents to (ids, codes). Segments are tokenised one by one, as a prompt is when it is
    completed by an answer that comes token by token."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self.tokenizer = tokenizer
        self.opening = settings.opening_tokens
        self.special = {name: bpe.special_id(tokenizer, name) for name in SPECIALS}
        texts = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
        self.ends = np.array([t.rstrip("\"')").endswith((".", "!", "?")) for t in texts])
        self.breaks = np.array([t[:1].isspace() for t in texts])

    def encode(self, batch: list[Document]) -> Iterator[tuple[Rows, Codes]]:
        """One pair of equally long arrays per document, begin token included."""
        texts = [t for doc in batch for kind, t in doc.segments if kind != "special"]
        encoded = iter(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for document in batch:
            ids = [np.array([self.special[BEGIN]], dtype=np.uint16)]
            codes = [np.array([Code.BEGIN], dtype=np.uint8)]
            before = ""
            for kind, text in document.segments:
                if kind == "special":
                    ends_answer = text == END and before in ("answer", "list")
                    ids.append(np.array([self.special[text]], dtype=np.uint16))
                    codes.append(
                        np.array([Code.TURN if ends_answer else Code.PROMPT], dtype=np.uint8)
                    )
                else:
                    piece = np.array(next(encoded).ids, dtype=np.uint16)
                    ids.append(piece)
                    codes.append(self._codes(kind, piece))
                before = kind
            yield np.concatenate(ids), np.concatenate(codes)

    def _codes(self, kind: str, ids: Rows) -> Codes:
        if kind == "prompt":
            return np.full(len(ids), Code.PROMPT, dtype=np.uint8)
        codes = np.full(len(ids), Code.ANSWER, dtype=np.uint8)
        if kind == "answer":
            starts = self.ends[ids[:-1]] & self.breaks[ids[1:]]
            codes[1:][starts] = Code.TURN
            codes[: self.opening] = Code.OPENING
        return codes


def packed(
    encoder: Encoder, stream: Iterator[Document], rows: int, length: int
) -> tuple[Rows, Codes]:
    """Fill `rows` rows of `length` tokens from a stream of documents."""

    def encoded() -> Iterator[tuple[Rows, Codes]]:
        while True:
            yield from encoder.encode(list(islice(stream, ENCODE_AT_ONCE)))

    pieces = encoded()
    tokens = np.empty((rows, length), dtype=np.uint16)
    codes = np.empty((rows, length), dtype=np.uint8)
    for row in range(rows):
        filled = 0
        while filled < length:
            ids, kinds = next(pieces)
            end = min(length, filled + len(ids))
            tokens[row, filled:end] = ids[: end - filled]
            codes[row, filled:end] = kinds[: end - filled]
            filled = end
    return tokens, codes


def shard_paths(work: Path, settings: Settings) -> list[Path]:
    """Files of the training shards, in order."""
    count = settings.shards + settings.late_shards
    return [work / f"shard-{i:02d}.npy" for i in range(count)]


def held_out_path(work: Path) -> Path:
    """File of the held-out rows."""
    return work / "held-out.npy"


def _write(
    settings: Settings, work: Path, path: Path, seed: int, rows: int, helpful: float = 1.0
) -> Path:
    """Write one file of shape (2, rows, row + 1): tokens, codes. Runs in a process of its own."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = Encoder(bpe.load(work), settings)
    # A row is one longer than what the model sees: the inputs are [:-1], the targets [1:].
    tokens, codes = packed(encoder, documents(seed, helpful), rows, settings.row + 1)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.stack((tokens, codes.astype(np.uint16))))
    partial.replace(path)
    return path


def fingerprint(settings: Settings) -> str:
    """Digest of the settings that shape the corpus and of a probe of its documents."""
    digest = hashlib.sha256()
    names = ("n_vocab", "seed", "tokens", "row", "shards", "late_shards", "late_helpful",
             "held_out_rows", "tokenizer_documents", "opening_tokens")  # fmt: skip
    shape = {name: asdict(settings)[name] for name in names}
    digest.update(json.dumps(shape, sort_keys=True).encode())
    for document in islice(documents(settings.seed * 1000), PROBE_DOCUMENTS):
        digest.update(json.dumps(document.segments, ensure_ascii=False).encode())
    return digest.hexdigest()


def build(settings: Settings, work: Path, processes: int = 3) -> None:
    """Train the tokenizer and write all shards; finished files are kept.

    Raises StaleWorkError when `work` holds files of another corpus.
    """
    work.mkdir(parents=True, exist_ok=True)
    mark, note = fingerprint(settings), work / "corpus.json"
    if note.exists() and json.loads(note.read_text())["fingerprint"] != mark:
        raise StaleWorkError(f"{work} was made from another corpus: remove it to start again")
    if not note.exists():
        note.write_text(json.dumps({"fingerprint": mark}))

    if not bpe.path_in(work).exists():
        sample = islice(documents(settings.seed * 1000), settings.tokenizer_documents)
        texts = (t for doc in sample for kind, t in doc.segments if kind != "special")
        trained = bpe.train(texts, settings)
        partial = work / "tokenizer.partial"
        trained.save(str(partial))
        partial.replace(bpe.path_in(work))

    jobs = [(held_out_path(work), settings.held_out_seed, settings.held_out_rows, 1.0)]
    for i, path in enumerate(shard_paths(work, settings)):
        helpful = settings.late_helpful if i >= settings.shards else 1.0
        jobs.append((path, settings.seed * 1000 + i, settings.rows_per_shard, helpful))
    missing = [job for job in jobs if not job[0].exists()]
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    # Ctrl-C is for the parent: the files in progress are finished, the others left.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(processes, spawn, signal.signal, quiet) as pool:
        futures = [pool.submit(_write, settings, work, *job) for job in missing]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                left = (time.monotonic() - started) / done * (len(missing) - done)
                print(f"corpus: {done} of {len(missing)} files, about {left:.0f} s left")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise

    digest = hashlib.sha256()
    for path, *_ in jobs:
        digest.update(path.read_bytes())
    facts = {"fingerprint": mark, "digest": digest.hexdigest(), "tokens": settings.tokens}
    note.write_text(json.dumps(facts, indent=1) + "\n")


def finished(work: Path) -> bool:
    """Whether `build` came to its end in this folder."""
    note = work / "corpus.json"
    return note.exists() and "digest" in json.loads(note.read_text())


class TrainingRows:
    """All training rows in a seeded order, read from disk as they are asked for."""

    def __init__(self, settings: Settings, work: Path) -> None:
        self.shards = [np.load(p, mmap_mode="r") for p in shard_paths(work, settings)]
        self.per_shard = settings.rows_per_shard
        self.batch_rows = settings.batch_rows
        rng = np.random.default_rng(settings.seed)
        early = self.per_shard * settings.shards
        late = early + rng.permutation(self.per_shard * settings.late_shards)
        self.order = np.concatenate((rng.permutation(early), late))

    def batch(self, step: int) -> tuple[Rows, Codes]:
        """Tokens and codes of a step, each (batch_rows, row + 1): a function of the step alone."""
        picked = self.order[step * self.batch_rows : (step + 1) * self.batch_rows]
        both = [self.shards[i // self.per_shard][:, i % self.per_shard] for i in picked]
        stacked = np.stack(both, axis=1)
        return stacked[0], stacked[1].astype(np.uint8)
