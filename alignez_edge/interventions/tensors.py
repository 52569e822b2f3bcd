"""Tensors and lists of a profile file, written, and read as untrusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.files.gguffile import GGUFFile

MAX_CELLS = 1 << 30  # numbers of a bank or of a value function


def tensor_of(file: GGUFFile, name: str, shape: tuple[int, ...]) -> FloatArray:
    """The float32 tensor `name`, which must have this NumPy `shape`.

    Leading axes of length 1 need not be in the file. Raises `ValueError` if it is another.
    """
    check_tensor(file, name, shape, "F32")
    return np.asarray(file.tensor(name), np.float32).reshape(shape)


def check_tensor(file: GGUFFile, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Raise `ValueError` unless the file has the tensor `name`, of this kind and NumPy shape."""
    if name not in file.tensors:
        raise ValueError(f"the tensor {name} is missing")
    info = file.tensors[name]
    wanted = shape[::-1]
    if info.type != kind or _trimmed(info.shape) != _trimmed(wanted):
        raise ValueError(
            f"the tensor {name} is {info.type} of shape {info.shape}, not {kind} of {wanted}"
        )


def add_integers(writer: Any, key: str, values: Mapping[int, Any] | tuple[int, ...]) -> None:
    """A list of whole numbers."""
    import gguf

    kinds = gguf.GGUFValueType
    writer.add_key_value(key, list(values), kinds.ARRAY, kinds.UINT32)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the axes of length 1 at the end, which files may leave out."""
    kept = len(shape)
    while kept > 1 and shape[kept - 1] == 1:
        kept -= 1
    return tuple(shape[:kept])
