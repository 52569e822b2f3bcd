"""LoRA adapters that a model carries: what tunes it, in files beside its own.

An adapter changes matrices `W` of a model to `W + s B A` (Hu et al. 2021, arXiv:2106.09685). Its
file is untrusted: what llama.cpp would abort on or leave out in silence is refused here,
and what llama.cpp gets is written anew from the parts that were checked (`Lora.content`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError, ModelFileError
from alignez_edge.files.gguffile import GGUFFile, TensorInfo, read_gguf
from alignez_edge.files.reading import is_there
from alignez_edge.files.text import printable_name

_TYPES = frozenset(
    "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
)
"""Formats that llama.cpp can multiply with; kernels of others (Q8_1, F64, integers) are missing,
and it calls them all the same."""
_EMBEDDING = "token_embd.weight"
_ALIGNMENT = 32
_MERGE = "merge it into the model instead"
FROM_VECTOR = "make a profile of it: alignez profile import FILE -m MODEL"
"""What to do with a control vector that was given as something else."""


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter that was checked against a model.

    At scale `s` llama.cpp adds `s * alpha / rank * B A` to a matrix, or `s * B A` where `alpha`
    is 0.
    """

    gguf: GGUFFile
    alpha: float

    @property
    def name(self) -> str:
        """The name of its file, as it may be shown."""
        return printable_name(self.gguf.path.name)

    def product(self, inward: FloatArray, matrix: str) -> FloatArray | float:
        """`inward @ (B A)` at scale 1, for `inward` of `(n, n_out)`.

        `(n, n_in)`, with a first axis over experts where the matrix has one; 0.0 for a matrix that
        the adapter leaves alone.
        """
        if f"{matrix}.lora_a" not in self.gguf.tensors:
            return 0.0
        a, b = (self.gguf.tensor(f"{matrix}.lora_{side}") for side in "ab")
        factor = np.float32(self.alpha / b.shape[-1] if self.alpha else 1.0)
        return np.asarray(factor * ((inward @ b) @ a), np.float32)

    def content(self) -> bytes:
        """The adapter as a file that holds nothing but what was checked."""
        architecture = str(self.gguf.metadata["general.architecture"])
        return adapter_file(
            architecture,
            self.alpha,
            (self._stored(t) for _, t in sorted(self.gguf.tensors.items())),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `content`, in hexadecimal: equal for equal adapters, whatever is said of
        them in their files."""
        return hashlib.sha256(self.content()).hexdigest()

    def _stored(self, tensor: TensorInfo) -> tuple[str, tuple[int, ...], str, bytes]:
        try:
            with self.gguf.path.open("rb") as file:
                file.seek(tensor.offset)
                raw = file.read(tensor.nbytes)
        except OSError as error:
            raise ModelFileError(f"cannot read {self.name} again: {error.strerror}") from error
        if len(raw) != tensor.nbytes:
            raise ModelFileError(f"{self.name} has changed while it was read")
        return tensor.name, tensor.shape, tensor.type, raw


Attached = Sequence[tuple[Lora, float]]
"""The adapters of a model, with their scales."""


def read_lora(path: str | Path, model: GGUFFile) -> Lora:
    """The adapter in the file at `path`, for `model`. Raises `ModelFileError` if it is none
    that llama.cpp can apply as it is meant."""
    return _Check(read_gguf(path), model).run()


def check_scale(scale: float) -> float:
    """A scale that llama.cpp can take. Raises `BadInputError`."""
    if not math.isfinite(_single(scale)):
        raise BadInputError(f"the scale of an adapter is {scale}; it must be a finite number")
    return float(scale)


def parse_lora_option(text: str) -> tuple[str, float]:
    """`FILE[:SCALE]` as (file, scale); the default scale is 1.

    Only a number behind the last colon is a scale, and not where a file is called so. Raises
    `BadInputError` if it is not finite.
    """
    head, colon, tail = text.rpartition(":")
    if colon and head and not is_there(text):
        try:
            return head, check_scale(float(tail))
        except ValueError:
            pass
    return text, 1.0


def adapter_file(
    architecture: str, alpha: float, tensors: Iterable[tuple[str, tuple[int, ...], str, bytes]]
) -> bytes:
    """A LoRA adapter as llama.cpp and others read it (GGUF, version 3).

    A tensor is its name, its shape in ggml's order, its format and its bytes.
    """
    import gguf

    keys = _text("general.architecture", architecture)
    keys += _text("general.type", "adapter") + _text("adapter.type", "lora")
    keys += _string("adapter.lora.alpha") + struct.pack("<If", 6, alpha)
    described, blocks, offset = [], [], 0
    for name, shape, kind, raw in tensors:
        number = gguf.GGMLQuantizationType[kind]
        described.append(
            _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)
        )
        blocks.append(raw + bytes(-len(raw) % _ALIGNMENT))
        offset += len(blocks[-1])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(blocks), 4) + keys + b"".join(described)
    return b"".join([head, bytes(-len(head) % _ALIGNMENT), *blocks])


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _text(key: str, value: str) -> bytes:
    return _string(key) + struct.pack("<I", 8) + _string(value)


def _single(number: float) -> float:
    """`number` in single precision, in which llama.cpp keeps it."""
    with np.errstate(over="ignore"):
        return float(np.float32(number))


class _Check:
    def __init__(self, gguf: GGUFFile, model: GGUFFile) -> None:
        self._gguf, self._model = gguf, model

    def run(self) -> Lora:
        """All checks, the most telling first."""
        self._kind()
        alpha = self._gguf.metadata.get("adapter.lora.alpha", 0.0)
        if type(alpha) not in (int, float) or not math.isfinite(_single(alpha)):
            raise self._fail(f"its alpha is {printable_name(str(alpha), 40)}, not a finite number")
        matrices = {
            name.rpartition(".lora_")[0]: None for name in map(self._known, self._tensors())
        }
        if not matrices:
            raise self._fail("an adapter without any tensors")
        for name in matrices:
            self._pair(name)
        for tensor in self._tensors():
            if not self._gguf.is_finite(tensor):
                raise self._fail(f"{printable_name(tensor)} holds numbers that are not finite")
        return Lora(self._gguf, float(alpha))

    def _fail(self, what: str, hint: str | None = None) -> ModelFileError:
        return ModelFileError(f"{printable_name(str(self._gguf.path), 200)}: {what}", hint)

    def _tensors(self) -> list[str]:
        return list(self._gguf.tensors)

    def _kind(self) -> None:
        keys = self._gguf.metadata
        kind = str(keys.get("general.type", "model"))
        if str(keys.get("general.architecture")) == "steering-profile":
            raise self._fail("a steering profile, not an adapter", "give profiles with -p")
        if str(keys.get("general.architecture")) == "controlvector":
            raise self._fail("a control vector, not an adapter", FROM_VECTOR)
        if kind != "adapter":
            raise self._fail(
                f"not an adapter but '{printable_name(kind)}'",
                "give a LoRA in GGUF form; llama.cpp's convert_lora_to_gguf.py makes one",
            )
        if (way := str(keys.get("adapter.type"))) != "lora":
            raise self._fail(f"an adapter of the kind '{printable_name(way)}'")
        if "adapter.alora.invocation_tokens" in keys:
            raise self._fail("an activated LoRA (aLoRA), which is not supported")
        architecture, expected = (
            printable_name(str(source.metadata.get("general.architecture")))
            for source in (self._gguf, self._model)
        )
        if architecture != expected:
            raise self._fail(f"an adapter for {architecture}; the model is {expected}")

    def _known(self, name: str) -> str:
        """`name`, if it is a factor of a matrix in a format that can be used."""
        shown = printable_name(name)
        if not name.endswith((".lora_a", ".lora_b")):
            raise self._fail(f"it replaces {shown}, which llama.cpp would leave out", _MERGE)
        kind = self._gguf.tensors[name].type
        if kind not in _TYPES:
            raise self._fail(f"{shown} holds {kind} numbers")
        return name

    def _pair(self, matrix: str) -> None:
        shown = printable_name(matrix)
        base = self._model.tensors.get(matrix)
        if base is None:
            raise self._fail(f"it changes {shown}, which the model does not have")
        if len(base.shape) < 2:
            raise self._fail(f"it changes {shown}, which is not a matrix", _MERGE)
        if base.type == "NVFP4":  # llama.cpp ends the process over some of them
            raise self._fail(f"it changes {shown}, which is NVFP4", "use another quantization")
        if matrix == _EMBEDDING and "output.weight" not in self._model.tensors:
            # llama.cpp would multiply with the factors of the embedding on the way out as well.
            raise self._fail(f"it changes {shown}, also this model's output matrix", _MERGE)
        shapes = []
        for side in "ab":
            factor = self._gguf.tensors.get(f"{matrix}.lora_{side}")
            if factor is None:
                raise self._fail(f"{shown}.lora_{side} is missing")
            shapes.append(_four(factor.shape))
        a, b = shapes
        n_in, n_out, *more = _four(base.shape)
        rank = b[0]
        # In the embedding rows are looked up, so that its factors change places.
        expected = (
            ((rank, n_out), (rank, n_in)) if matrix == _EMBEDDING else ((n_in, rank), (rank, n_out))
        )
        if (a, b) != tuple((*pair, *more) for pair in expected):
            raise self._fail(
                f"the factors of {shown} are {_shape(a)} and {_shape(b)}, the matrix is "
                f"{_shape(_four(base.shape))}"
            )


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, *(1,) * (4 - len(shape)))


def _shape(four: tuple[int, ...]) -> str:
    shown = four[:2] if four[2:] == (1, 1) else four
    return " x ".join(map(str, shown))
