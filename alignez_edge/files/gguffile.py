"""Reading untrusted GGUF files.

Every count, length, offset and size is checked against the size of the file before anything is
allocated or looped over, so the time and the memory spent are bounded by what the file really
holds. Whatever is wrong raises one error with one line; nothing is ever executed or trusted.
llama.cpp reads the same format, but ends the whole process on some malformed files.

The layout is documented at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_edge.errors import AlignezError, BadInputError, ModelFileError
from alignez_edge.files.gguf_values import INCOMPLETE, HeaderValues
from alignez_edge.files.text import printable_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_NAME = 63
"""Bytes of a tensor name: ggml keeps 64 with the terminating zero."""
MAX_KEY = 65535
"""Bytes of a key, as the format says."""
MAX_ELEMENTS = 2**63 - 1
MAX_KEYS, MAX_TENSORS = 1 << 14, 1 << 16
"""Far above what any model has."""
_MIN_PAIR = 8 + 4 + 1
"""Bytes of the smallest key and value: an empty key, a type, a byte."""
_MIN_TENSOR = 8 + 4 + 8 + 4 + 8
"""Bytes of the smallest tensor description: an empty name and one dimension."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in ggml's order (fastest first); sizes are in bytes.

    `offset` counts from the start of the file; `type` is ggml's name of the format (`Q4_K`).
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=object))


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file whose every part was found to lie inside the file.

    `metadata` maps keys to `int`, `float`, `bool`, `str`, NumPy arrays or `StringArray`s.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data_offset: int
    size: int

    @property
    def architecture(self) -> str:
        """The model's, in llama.cpp's word; '' if the file names none."""
        return str(self.metadata.get("general.architecture", ""))

    def hparam(self, key: str, default: Any = None) -> Any:
        """A hyper-parameter, which the file has under the architecture's name: `block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def tensor(self, name: str, rows: slice | None = None) -> npt.NDArray[np.float32]:
        """The tensor in float32, dequantized, in NumPy's order: `(..., rows, columns)`.

        `rows` cuts the first axis before anything is read. Raises `KeyError` for an unknown name
        and `BadInputError` if the file has changed or the format cannot be decoded.
        """
        info = self.tensors[name]
        _, block, block_bytes = _by_name()[info.type]
        shape = (*info.shape[:0:-1], info.shape[0] // block * block_bytes)
        data = self._raw(info).reshape(shape)
        return self._decoded(info, np.array(data if rows is None else data[rows]))

    def half(self, name: str) -> npt.NDArray[np.float16]:
        """A tensor of the type F16 as it is stored, in NumPy's order: a copy."""
        info = self.tensors[name]
        return np.array(self._raw(info)).view(np.float16).reshape(info.shape[::-1])

    def contents(self) -> str:
        """SHA-256, in hexadecimal, over the table of tensors and some bytes of each.

        Files of models that differ in a whole tensor differ in it, however alike they are
        otherwise: what is computed from a model is kept under it. Reads some 100 KB. Raises
        `BadInputError` if the file has gone.
        """
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                for name, info in sorted(self.tensors.items()):
                    digest.update(f"{name}\0{info.shape}\0{info.type}\0".encode())
                    for piece in range(_PIECES):
                        last = max(0, info.nbytes - _PIECE)
                        file.seek(info.offset + last * piece // (_PIECES - 1))
                        digest.update(file.read(min(_PIECE, info.nbytes)))
        except OSError as error:
            shown = printable_name(str(self.path), 200)
            raise BadInputError(f"cannot read {shown} again: {error.strerror}") from None
        return digest.hexdigest()

    def is_zero(self, name: str) -> bool:
        """Whether all bytes of a tensor are zero; nothing is decoded."""
        return not self._raw(self.tensors[name]).any()

    def is_finite(self, name: str) -> bool:
        """Whether all numbers of a tensor are finite; a part of it in memory at a time."""
        info = self.tensors[name]
        _, _, block_bytes = _by_name()[info.type]
        blocks = self._raw(info).reshape(-1, block_bytes)
        parts = (blocks[i : i + _PART] for i in range(0, len(blocks), _PART))
        return all(np.isfinite(self._decoded(info, np.array(part))).all() for part in parts)

    def _raw(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        try:
            return np.memmap(self.path, np.uint8, "r", offset=info.offset, shape=(info.nbytes,))
        except (OSError, ValueError) as error:
            shown = printable_name(str(self.path), 200)
            raise BadInputError(f"cannot read {shown} again: {error}") from error

    def _decoded(self, info: TensorInfo, taken: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Whole rows or blocks as float32, `(..., numbers)`."""
        import gguf.quants

        kind = gguf.GGMLQuantizationType[info.type]
        if info.type in ("F32", "F16", "F64"):
            plain = {"F32": np.float32, "F16": np.float16, "F64": np.float64}[info.type]
            with np.errstate(all="ignore"):
                return taken.view(plain).astype(np.float32)
        try:
            with np.errstate(all="ignore"):  # untrusted scales may be infinite
                return np.asarray(gguf.quants.dequantize(taken, kind), dtype=np.float32)
        except (NotImplementedError, ValueError) as error:
            raise BadInputError(
                f"tensor {printable_name(info.name)} is {info.type}, which cannot be decoded here"
            ) from error


_PART = 1 << 12
"""Blocks (of at most 256 numbers) that are looked at together."""
_PIECES, _PIECE = 4, 64
"""Evenly spread pieces of a tensor, and their bytes, that `contents` reads."""


@cache
def _types() -> dict[int, tuple[str, int, int]]:
    """ggml's formats: number -> name, numbers in a block, bytes of a block."""
    import gguf

    return {int(t): (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}


@cache
def _by_name() -> dict[str, tuple[str, int, int]]:
    return {name: (name, block, size) for name, block, size in _types().values()}


def read_gguf(path: str | Path, error: type[AlignezError] = ModelFileError) -> GGUFFile:
    """Read and check the header of the GGUF file at `path`. Raises `error` on anything wrong."""
    path = Path(path)
    shown = printable_name(str(path), 200)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise error(f"{shown} is empty", INCOMPLETE)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, HeaderValues(data, size, shown, error)).read()
    except FileNotFoundError:
        raise error(f"no such file: {shown}") from None
    except IsADirectoryError:
        raise error(f"{shown} is a folder, not a GGUF file") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"cannot read {shown}: {printable_name(reason, 120)}") from None


class _Reader:
    """The parts of a header, and what they must have to do with each other."""

    def __init__(self, path: Path, values: HeaderValues) -> None:
        self._path, self._values, self._fail = path, values, values.fail

    def read(self) -> GGUFFile:
        """The whole header, checked."""
        head = self._values.first(len(MAGIC))
        if head != MAGIC:
            raise self._fail(f"not a GGUF file (it begins with '{printable_name(head)}')")
        version = self._values.scalar("I", "the header")
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise self._fail("a big-endian GGUF file, which this machine cannot use")
            raise self._fail(f"GGUF version {version}; versions 2 and 3 can be read")
        n_tensors = self._values.scalar("Q", "the header")
        n_pairs = self._values.scalar("Q", "the header")
        for count, least, most, what in (
            (n_tensors, _MIN_TENSOR, MAX_TENSORS, "tensors"),
            (n_pairs, _MIN_PAIR, MAX_KEYS, "keys"),
        ):
            if count > (self._values.size - self._values.at) // least:
                raise self._fail(
                    f"the header announces {count} {what}, more than the file can hold", INCOMPLETE
                )
            if count > most:
                raise self._fail(f"the header has {count} {what}; at most {most} are allowed")
        metadata = self._metadata(n_pairs)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise self._fail("general.alignment is not a power of two")
        described = [self._tensor() for _ in range(n_tensors)]
        data_offset = -(-self._values.at // alignment) * alignment
        tensors = self._place(described, data_offset, alignment)
        return GGUFFile(self._path, version, metadata, tensors, data_offset, self._values.size)

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._values.name(MAX_KEY, "a key")
            if key in metadata:
                raise self._fail(f"the key '{printable_name(key)}' is there twice")
            metadata[key] = self._values.value(f"the value of '{printable_name(key)}'")
        return metadata

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._values.name(MAX_NAME, "a tensor's name")
        what = f"the description of tensor '{printable_name(name)}'"
        n_dims = self._values.scalar("I", what)
        if not 1 <= n_dims <= 4:
            raise self._fail(f"{what} says {n_dims} dimensions; 1 to 4 are possible")
        shape = tuple(self._values.scalar("Q", what) for _ in range(n_dims))
        return name, shape, self._values.scalar("I", what), self._values.scalar("Q", what)

    def _place(
        self, described: list[tuple[str, tuple[int, ...], int, int]], base: int, alignment: int
    ) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        size = self._values.size
        for name, shape, kind, offset in described:
            shown = f"tensor '{printable_name(name)}'"
            if name in tensors:
                raise self._fail(f"{shown} is there twice")
            if kind not in _types():
                raise self._fail(f"{shown} has the unknown type {kind}")
            type_name, block, block_bytes = _types()[kind]
            elements = int(np.prod(shape, dtype=object))
            if not 0 < elements <= MAX_ELEMENTS:
                raise self._fail(f"{shown} has an impossible shape {shape}")
            if shape[0] % block:
                raise self._fail(f"{shown} has rows of {shape[0]}, not in blocks of {block}")
            if offset % alignment:
                raise self._fail(f"{shown} lies at {offset}, not a multiple of {alignment}")
            nbytes = elements // block * block_bytes
            end = base + offset + nbytes
            if end > size:
                raise self._fail(
                    f"truncated: {shown} ends at byte {end} but the file has {size} bytes",
                    INCOMPLETE,
                )
            tensors[name] = TensorInfo(name, shape, type_name, base + offset, nbytes)
        in_order = sorted(tensors.values(), key=lambda t: t.offset)
        for left, right in pairwise(in_order):
            if left.offset + left.nbytes > right.offset:
                names = f"'{printable_name(left.name)}' and '{printable_name(right.name)}'"
                raise self._fail(f"the tensors {names} overlap")
        return tensors
