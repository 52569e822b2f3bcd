"""What tells one model from another, small enough to travel inside a profile.

Quantization must not matter, so weights are compared by samples: all norms are kept in F32 by
every quantization and agree to the bit in all files of one model; some rows of matrices agree as
far as their formats keep them (`_NOISE`). Training on moves both, and it shows where it moves a
matrix by more than the noise of the two formats, or any norm at all: a 1 % change of the matrices
alone is seen between F16 and Q8_0 files and hidden by Q4_K.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.files.gguf_values import StringArray
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.text import printable_name
from alignez_edge.modelfiles.lora import Attached

PREFIX = "model."
_TEXTS = ("architecture", "tokenizer", "template")
_SIZES = ("n_layer", "n_embd", "n_ff", "n_head", "n_vocab")
_DECISIVE = ("architecture", "n_layer", "n_embd")
"""Without these in common a control vector cannot even be applied."""
_NORMS = ("attn_norm.weight", "ffn_norm.weight", "post_attention_norm.weight")
_MATRICES = ("attn_output.weight", "ffn_down.weight", "ssm_out.weight")
_ROWS, _COLUMNS = 4, 64
_NOISE = {"F32": 0.001, "F16": 0.001, "BF16": 0.004, "Q8_0": 0.006, "Q6_K": 0.02, "Q5_K": 0.04}
"""Relative root mean square error of formats; measured with Gaussian weights of unit scale."""
_COARSE, _COARSER = 0.09, 0.35
"""The same for formats of four bits, and for those below."""
_MARGIN = 1.5
"""Real weights have heavier tails than Gaussian ones, and samples scatter."""
_ADAPTER = re.compile(r"([0-9a-f]{64}:[0-9.e+-]{1,24}(,|$))*", re.ASCII)


class Fit(Enum):
    """How well two fingerprints agree."""

    SAME = "the same model"
    SAME_SHAPE = "the same shape"
    DIFFERENT = "another model"

    @property
    def word(self) -> str:
        """`same`, `same-shape` or `different`: as JSON says it."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class ModelMatch:
    """How two models agree, and the names of the facts that differ."""

    fit: Fit
    differing: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The facts of one model. Digests are SHA-256 in hexadecimal, '' for no template.

    `weights` maps tensor names to samples (float32, one axis), `formats` the same names to the
    formats that they were stored in. `adapter` says which LoRA adapters the model carries, as
    digests with scales; '' for none.
    """

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_vocab: int
    tokenizer: str
    template: str
    weights: Mapping[str, npt.NDArray[np.float32]]
    formats: Mapping[str, str]
    adapter: str = ""

    def to_metadata(self) -> dict[str, Any]:
        """As keys and values of a GGUF file: strings, integers and arrays of numbers."""
        facts: dict[str, Any] = {PREFIX + n: getattr(self, n) for n in (*_TEXTS, *_SIZES)}
        for name, sample in self.weights.items():
            facts[f"{PREFIX}weights.{name}"] = sample
            facts[f"{PREFIX}formats.{name}"] = self.formats[name]
        if self.adapter:
            facts[f"{PREFIX}adapter"] = self.adapter
        return facts

    def digest(self) -> str:
        """SHA-256 over everything in it, in hexadecimal: the same model in the same file type."""
        digest = hashlib.sha256()
        for key, value in sorted(self.to_metadata().items()):
            content = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
            digest.update(f"{key}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Fingerprint:
        """What `to_metadata` wrote, other keys ignored. Raises `ProfileFileError`."""
        facts: dict[str, Any] = {}
        for names, kind in ((_TEXTS, str), (_SIZES, int)):
            for name in names:
                facts[name] = metadata.get(PREFIX + name)
                if type(facts[name]) is not kind:
                    raise ProfileFileError(f"the model's fingerprint lacks {name}")
        weights, formats = {}, {}
        start = f"{PREFIX}weights."
        for key, sample in metadata.items():
            if not key.startswith(start):
                continue
            name = key.removeprefix(start)
            form = metadata.get(f"{PREFIX}formats.{name}")
            good = isinstance(sample, np.ndarray) and 0 < sample.size <= _ROWS * _COLUMNS
            if not good or sample.dtype.kind != "f" or not np.isfinite(sample).all():
                raise ProfileFileError(
                    f"the fingerprint's sample of {printable_name(name)} is unusable"
                )
            if not isinstance(form, str):
                raise ProfileFileError(f"the fingerprint's {printable_name(name)} has no format")
            weights[name], formats[name] = sample.astype(np.float32), form
        adapter = metadata.get(f"{PREFIX}adapter", "")
        if not isinstance(adapter, str) or not _ADAPTER.fullmatch(adapter):
            raise ProfileFileError("the fingerprint's adapter is unusable")
        return cls(**facts, weights=weights, formats=formats, adapter=adapter)


def fingerprint(gguf: GGUFFile, lora: Attached = ()) -> Fingerprint:
    """The fingerprint of a model file that carries `lora` (some 20 KB are read from the model)."""
    keys = gguf.metadata

    def size(key: str) -> int:
        value = gguf.hparam(key, 0)
        return int(np.max(value)) if isinstance(value, (int, np.ndarray)) else 0

    n_layer = size("block_count")
    tokens = keys.get("tokenizer.ggml.tokens", ())
    template = keys.get("tokenizer.chat_template", "")
    template = template if isinstance(template, str) else ""
    samples = {
        name: sample
        for name in _sampled(gguf, n_layer)
        if (sample := _sample(gguf, name)) is not None
    }
    return Fingerprint(
        architecture=gguf.architecture,
        n_layer=n_layer,
        n_embd=size("embedding_length"),
        n_ff=size("feed_forward_length"),
        n_head=size("attention.head_count"),
        n_vocab=len(tokens),
        tokenizer=_tokenizer_digest(keys),
        template=hashlib.sha256(template.encode()).hexdigest() if template else "",
        weights=samples,
        formats={name: gguf.tensors[name].type for name in samples},
        adapter=_adapter(lora),
    )


def identity(gguf: GGUFFile, lora: Attached = ()) -> str:
    """SHA-256, in hexadecimal, of a model's fingerprint and contents: the key under which what is
    computed from it is kept. The fingerprint alone is the same for some that are not alike."""
    return hashlib.sha256(
        f"{fingerprint(gguf, lora).digest()} {gguf.contents()}".encode()
    ).hexdigest()


def compare(a: Fingerprint, b: Fingerprint) -> ModelMatch:
    """How the models of two fingerprints agree, and in which facts they do not.

    `weights` is named when any tensor that both have sampled differs by more than what the two
    formats explain. Symmetric.
    """
    differing = [n for n in (*_TEXTS, *_SIZES) if getattr(a, n) != getattr(b, n)]
    common = a.weights.keys() & b.weights.keys()
    if not all(
        distance(a.weights[n], b.weights[n]) <= _tolerance(a.formats[n], b.formats[n])
        for n in common
    ):
        differing.append("weights")
    if a.adapter != b.adapter:
        differing.append("adapter")
    if any(fact in differing for fact in _DECISIVE):
        return ModelMatch(Fit.DIFFERENT, tuple(differing))
    return ModelMatch(Fit.SAME_SHAPE if differing else Fit.SAME, tuple(differing))


def misfits(there: Fingerprint, here: Fingerprint) -> str:
    """The facts for which a profile made for `there` cannot be used `here`, in words."""
    facts = [(fact, getattr(there, fact), getattr(here, fact)) for fact in _DECISIVE]
    return ", ".join(
        f"{fact} is {printable_name(str(a))} there and {printable_name(str(b))} here"
        for fact, a, b in facts
        if a != b
    )


def distance(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """`|a − b|` relative to the larger of `|a|` and `|b|`; infinite for other sizes."""
    if a.shape != b.shape:
        return math.inf
    scale = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / scale if scale else 0.0


def _adapter(lora: Attached) -> str:
    """Adapters as one text, in which neither their order nor their files' names show."""
    scales: dict[str, float] = {}
    for adapter, scale in lora:
        scales[adapter.digest] = scales.get(adapter.digest, 0.0) + scale
    return ",".join(f"{digest}:{scale:.9g}" for digest, scale in sorted(scales.items()) if scale)


def _tolerance(a: str, b: str) -> float:
    def noise(form: str) -> float:
        return _NOISE.get(form, _COARSE if "4" in form or "5" in form else _COARSER)

    return _MARGIN * math.hypot(noise(a), noise(b))


def _sampled(gguf: GGUFFile, n_layer: int) -> list[str]:
    layers = sorted({0, n_layer // 2, max(n_layer - 1, 0)})
    names = ["token_embd.weight", "output_norm.weight"]
    names += [f"blk.{layer}.{part}" for layer in layers for part in (*_NORMS, *_MATRICES)]
    return [name for name in names if name in gguf.tensors]


def _sample(gguf: GGUFFile, name: str) -> npt.NDArray[np.float32] | None:
    """The first columns of rows spread over the tensor; None for a format unknown here."""
    shape = gguf.tensors[name].shape
    try:
        if len(shape) == 1:
            return gguf.tensor(name)[: _ROWS * _COLUMNS]
        picks = np.unique(np.linspace(0, shape[-1] - 1, _ROWS).astype(int))
        rows = [gguf.tensor(name, slice(i, i + 1)).reshape(-1)[:_COLUMNS] for i in picks.tolist()]
    except BadInputError:
        return None
    sample = np.concatenate(rows)
    return sample if np.isfinite(sample).all() else None


def _tokenizer_digest(keys: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key in ("model", "pre", "tokens", "token_type", "merges"):
        value = keys.get(f"tokenizer.ggml.{key}", "")
        if isinstance(value, StringArray):
            part = value.raw
        elif isinstance(value, np.ndarray):
            part = value.astype("<i8").tobytes()
        else:
            part = str(value).encode()
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
