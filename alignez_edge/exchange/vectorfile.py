"""Control vectors as files of other programs: llama.cpp's GGUF of `direction.<l>` tensors.

llama.cpp adds the tensor `direction.<l>` (F32, `n_embd` numbers, `l` from 1 to n_layer - 1) to the
residual stream after layer `l`, counted from 0: to `l_out-<l>`. Two programs make such files:

- repeng reads its directions where they are added: `direction.<l>` is of layer `l`.
- llama.cpp's own `cvector-generator` numbers from 1 what it reads from 0 on: what it found after
  layer `l` stands in `direction.<l + 1>` and is added one layer late. Read here, it is put where
  it was found; that of layer 0, where nothing can be added, falls away.

Both write the same three keys. The C program stores `controlvector.layer_count` signed, Python's
`gguf` (repeng, and this module) unsigned; besides, the generator always has the layers 1 to its
count, in this order. Where these marks do not agree, somebody has to say which program it was.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.files.gguffile import GGUFFile, read_gguf
from alignez_edge.files.ggufwriter import gguf_writer
from alignez_edge.files.text import printable
from alignez_edge.files.writing import write_atomic

ARCHITECTURE = "controlvector"
Maker = Literal["llama.cpp", "repeng"]
MAKERS: tuple[Maker, ...] = get_args(Maker)
_COUNT = "controlvector.layer_count"
_HINT = "controlvector.model_hint"
_NAME = re.compile(r"direction\.([1-9][0-9]{0,3}|0)", re.ASCII)
_UINT32, _INT32 = 4, 5


@dataclass(frozen=True, eq=False)
class VectorFile:
    """What a control-vector file holds.

    `directions` maps the numbers in the tensors' names, ascending, to `(n_embd,)` float32, finite.
    `maker` is the program that wrote it, None if the file does not tell; `hint` is the
    architecture that it names, '' for none.
    """

    path: Path
    directions: Mapping[int, FloatArray]
    maker: Maker | None
    hint: str

    @property
    def n_embd(self) -> int:
        """The hidden size."""
        return len(next(iter(self.directions.values())))

    def rows(self, n_layer: int, n_embd: int, maker: Maker | None = None) -> FloatArray:
        """What is added after each layer of a model: `(n_layer, n_embd)`, row 0 zero.

        `maker` overrides what the file itself tells. Raises `ProfileFileError` if nothing tells
        who made it, and if it does not fit a model of this shape.
        """
        shown = printable(str(self.path))
        maker = maker or self.maker
        if maker is None:
            raise ProfileFileError(
                f"{shown}: unknown maker, and programs number layers differently",
                "name it: --from llama.cpp (its cvector-generator), or --from repeng",
            )
        if self.n_embd != n_embd:
            raise ProfileFileError(
                f"{shown}: a control vector of hidden size {self.n_embd}, the model has {n_embd}"
            )
        last = max(self.directions)
        if last >= n_layer:
            raise ProfileFileError(
                f"{shown}: it has a direction {last}, the model's last layer is {n_layer - 1}"
            )
        late = maker == "llama.cpp"
        rows = np.zeros((n_layer, n_embd), np.float32)
        for number, direction in self.directions.items():
            if number - late > 0:
                rows[number - late] = direction
        if not rows.any():
            raise ProfileFileError(f"{shown}: it changes nothing in a layer that can be edited")
        return rows


def write_control_vector(path: str | Path, rows: FloatArray, hint: str) -> None:
    """Write what is added after each layer, `(n_layer, n_embd)`, as llama.cpp reads it.

    Rows of zeros are left out, and so is row 0. `hint` is the model's architecture. Whole or not
    at all; raises `BadInputError` if no row is left.
    """
    edited = [layer for layer in range(1, len(rows)) if rows[layer].any()]
    if not edited:
        raise BadInputError("this control vector changes nothing")

    def write(temporary: Path) -> None:
        writer = gguf_writer(temporary, ARCHITECTURE)
        try:
            writer.add_string(_HINT, hint)
            writer.add_uint32(_COUNT, len(edited))
            for layer in edited:
                writer.add_tensor(f"direction.{layer}", np.asarray(rows[layer], np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    write_atomic(path, write)


def read_control_vector(path: str | Path) -> VectorFile:
    """Read and check a control-vector file.

    Raises `ProfileFileError` on other files, on directions of odd names, types, shapes or values,
    and if two tensors are of one layer.
    """
    file = read_gguf(path, ProfileFileError)
    shown = printable(str(path))
    if str(file.metadata.get("general.architecture")) != ARCHITECTURE:
        raise ProfileFileError(f"{shown}: not a control vector")
    found: dict[int, FloatArray] = {}
    for name, info in file.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise ProfileFileError(
                f"{shown}: the tensor {printable(name, 70)!r} is not the direction of a layer"
            )
        if info.type != "F32" or len(info.shape) != 1:
            raise ProfileFileError(
                f"{shown}: {name} is {info.type} of shape {info.shape}, not one row of F32"
            )
        found[int(match[1])] = direction = file.tensor(name)
        if len(direction) != len(next(iter(found.values()))):
            raise ProfileFileError(f"{shown}: its directions have different lengths")
        if not np.isfinite(direction).all():
            raise ProfileFileError(f"{shown}: {name} holds numbers that are not finite")
    if not found:
        raise ProfileFileError(f"{shown}: a control vector without any direction")
    hint = file.metadata.get(_HINT, "")
    return VectorFile(
        path=Path(path),
        directions={number: found[number] for number in sorted(found)},
        maker=_maker(file, list(found)),
        hint=hint if isinstance(hint, str) else "",
    )


def _maker(file: GGUFFile, numbers: list[int]) -> Maker | None:
    """Which program wrote the file, by the marks that the module's docstring names."""
    kind, count = _stored_type(file, _COUNT), file.metadata.get(_COUNT)
    if kind == _INT32 and numbers == list(range(1, len(numbers) + 1)) and count == len(numbers):
        return "llama.cpp"
    if kind == _UINT32 and count == len(numbers):
        return "repeng"
    return None


def _stored_type(file: GGUFFile, key: str) -> int | None:
    """The number of the type that a scalar key is stored in; None if the key is missing."""
    if key not in file.metadata:
        return None
    stored = struct.pack("<Q", len(key)) + key.encode()
    with (
        file.path.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        at = data.find(stored, 0, file.data_offset)
        return int(struct.unpack_from("<I", data, at + len(stored))[0])
