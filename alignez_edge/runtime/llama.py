"""The only module that imports `llama_cpp`.

It makes llama.cpp quiet (its log is kept, not printed, so that a failure can quote it), starts
the backend once, and adds the few ggml functions that the binding lacks. Everything else in the
runtime reaches llama.cpp through `llama.cpp`, the binding's module of low-level functions.

Every ctypes callback handed to llama.cpp must stay referenced for as long as it may be called:
a collected one crashes the process. The log callback below lives as long as the process.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp as _package
from llama_cpp import llama_cpp as cpp

from alignez_edge.runtime.cores import usable_cores

__all__ = [
    "BINDING_VERSION",
    "HeedingInterrupts",
    "TensorHead",
    "clear_log",
    "cpp",
    "ggml",
    "is_on_host",
    "last_error",
    "operand",
    "tensor_buffer",
    "tensor_head",
    "tensor_shape",
    "tensor_type",
    "usable_cores",
]

BINDING_VERSION: str = _package.__version__
_ERROR, _CONTINUED = 4, 5
_errors: deque[str] = deque(maxlen=20)


class _Log:
    level = 0


@cpp.llama_log_callback
def _on_log(level: int, text: bytes, user_data: Any) -> None:
    if level != _CONTINUED:
        _Log.level = level
    if _Log.level == _ERROR and text:
        _errors.append(text.decode("utf-8", "backslashreplace"))


class HeedingInterrupts:
    """Around a call in which llama.cpp may log: a Ctrl-C that meets the log callback is raised
    after it. By itself ctypes would print what is raised in a callback, and go on."""

    def __enter__(self) -> None:
        self._met = False
        self._usual: Callable[[sys.UnraisableHookArgs], Any] | None = None
        if threading.current_thread() is threading.main_thread():  # which alone hears of signals
            self._usual, sys.unraisablehook = sys.unraisablehook, self._hook

    def __exit__(self, *_: object) -> None:
        if self._usual is not None:
            sys.unraisablehook = self._usual
        if self._met:
            raise KeyboardInterrupt

    def _hook(self, ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            self._met = True
        elif self._usual is not None:
            self._usual(ignored)


def clear_log() -> None:
    """Forget the errors that llama.cpp has reported so far."""
    _errors.clear()


def last_error() -> str:
    """The most telling line among llama.cpp's errors since `clear_log`; '' where there is none.

    The first line names the cause; those after it only say that the caller gave up.
    """
    lines = [line.strip() for line in "".join(_errors).splitlines() if line.strip()]
    return lines[0].split(": ", 1)[-1] if lines else ""


class _TensorHead(ctypes.Structure):
    """The fields of `struct ggml_tensor` (ggml.h) before its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
    )


_FIELDS = struct.Struct(f"@iP4q{_TensorHead.data.offset - 48}xP")
"""The same, read at once: type, buffer, extents, data."""
_MOST_MEMORIES = 1 << 14
_memory: dict[int, Any] = {}
"""Where tensors lie, as what a struct reads from: making that takes longer than the reading."""


def tensor_shape(tensor: int) -> tuple[int, int, int, int]:
    """The four extents of a `ggml_tensor *`, fastest first."""
    a, b, c, d = _TensorHead.from_address(tensor).ne
    return a, b, c, d


def tensor_type(tensor: int) -> int:
    """The number of a `ggml_tensor *`'s format (0 is float32)."""
    return int(_TensorHead.from_address(tensor).type)


def tensor_buffer(tensor: int) -> int | None:
    """The `ggml_backend_buffer *` that holds a `ggml_tensor *`'s data; of a view, its source's."""
    head = _TensorHead.from_address(tensor)
    found: int | None = head.buffer
    if not found and head.view_src:
        found = _TensorHead.from_address(head.view_src).buffer
    return found


def is_on_host(tensor: int) -> bool:
    """Whether the data of a `ggml_tensor *` can be read and written in this process' memory."""
    buffer = tensor_buffer(tensor)
    return bool(buffer and ggml.buffer_is_host(buffer))


class TensorHead(NamedTuple):
    """What a `ggml_tensor` says of its data: the number of its format (0 is float32), the buffer
    that it is in, its extents, fastest first, and its address."""

    type: int
    buffer: int
    ne: tuple[int, int, int, int]
    data: int


def tensor_head(tensor: int) -> TensorHead:
    """The head of a `ggml_tensor *`."""
    memory = _memory.get(tensor)
    if memory is None:
        if len(_memory) >= _MOST_MEMORIES:
            _memory.clear()
        memory = _memory[tensor] = (ctypes.c_char * _FIELDS.size).from_address(tensor)
    kind, buffer, a, b, c, d, data = _FIELDS.unpack_from(memory)
    return TensorHead(kind, buffer, (a, b, c, d), data)


def operand(tensor: int, number: int) -> int | None:
    """An operand of the operation that makes a `ggml_tensor *`; None where there is none, or where
    this llama.cpp lays its tensors out otherwise than this module knows."""
    head = _TensorHead.from_address(tensor)
    if ggml.get_name_address(tensor) != tensor + ctypes.sizeof(_TensorHead):
        return None
    found: int | None = head.src[number]
    return found


class Ggml:
    """The functions of ggml that the binding does not declare, with their prototypes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.get_name = library.ggml_get_name
        self.get_name.argtypes, self.get_name.restype = [pointer], ctypes.c_char_p
        # The same function for the place of the name.
        self.get_name_address = ctypes.CFUNCTYPE(pointer, pointer)(("ggml_get_name", library))
        self.get_data = library.ggml_get_data
        self.get_data.argtypes, self.get_data.restype = [pointer], pointer
        self.buffer_is_host = library.ggml_backend_buffer_is_host
        self.buffer_is_host.argtypes, self.buffer_is_host.restype = [pointer], ctypes.c_bool
        self.tensor_get = library.ggml_backend_tensor_get
        self.tensor_get.argtypes, self.tensor_get.restype = [pointer, pointer, size, size], None
        self.tensor_set = library.ggml_backend_tensor_set
        self.tensor_set.argtypes, self.tensor_set.restype = [pointer, pointer, size, size], None


def _ggml_library() -> ctypes.CDLL:
    """The library that holds ggml's base functions.

    On POSIX a lookup through libllama also searches the libraries it was linked to, which is
    the copy it really uses; Windows needs the library by its file.
    """
    if sys.platform != "win32":
        return cpp._lib
    folder = os.environ.get("LLAMA_CPP_LIB_PATH") or Path(_package.__file__).parent / "lib"
    for name in ("ggml-base.dll", "libggml-base.dll"):
        if (Path(folder) / name).exists():
            return ctypes.CDLL(str(Path(folder) / name))
    raise ImportError(f"ggml-base.dll is not in {folder}: reinstall llama-cpp-python")


cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
cpp.llama_backend_init()
ggml = Ggml(_ggml_library())
