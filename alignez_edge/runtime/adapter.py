"""LoRA adapters in llama.cpp, made from bytes: nothing need touch the disk.

llama.cpp keeps adapters with the model and frees what is left of them with it. An `Adapter` is
freed when nothing refers to it any more; contexts refer to the adapters that they have set, so a
freed one can never be in use.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.files.gguffile import printable
from alignez_edge.runtime.llama import HeedingInterrupts, clear_log, cpp, last_error

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

_serial = itertools.count()


class Adapter:
    """One LoRA adapter, loaded into `model` from the bytes of its file.

    `handle` is the `llama_adapter_lora *`; `serial` rises from one adapter to the next. One that is
    `carried` belongs to its model, and is freed with it and not before. Raises
    `BadInputError` for bytes that are no adapter for this model, `RuntimeFailure` where they
    cannot be handed over.
    """

    def __init__(self, model: Model, content: bytes, *, carried: bool = False) -> None:
        if content[:4] != b"GGUF":
            raise BadInputError("an adapter must be a GGUF file")
        clear_log()
        with HeedingInterrupts():
            try:
                handle = _load(model.handle, content)
            except OSError as error:
                raise RuntimeFailure(f"no room to hand an adapter to llama.cpp: {error}") from error
            if not handle:
                said = printable(last_error(), 160) or "no reason given"
                raise BadInputError(f"llama.cpp refuses the adapter: {said}")
            if not carried:
                # The model is an argument so that it outlives the adapter.
                weakref.finalize(self, _free, handle, model)
        # A model refers to the adapters that it carries: nothing may refer back from them.
        self._model = weakref.ref(model)
        self.handle = handle
        self.serial = next(_serial)

    @property
    def model(self) -> Model | None:
        """The model that it was loaded into; None once that is gone."""
        return self._model()


def _free(handle: Any, model: Model) -> None:
    if not model.closed:  # a closed model has freed its adapters
        cpp.llama_adapter_lora_free(handle)


def _load(model: int, content: bytes) -> Any:
    """The `llama_adapter_lora *`, or None where llama.cpp refuses. Raises `OSError`."""
    if sys.platform == "win32":  # its llama.cpp may have a C library of its own
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapter.gguf"
            path.write_bytes(content)
            return cpp.llama_adapter_lora_init(model, os.fsencode(path))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fdopen.argtypes, libc.fdopen.restype = [ctypes.c_int, ctypes.c_char_p], ctypes.c_void_p
    libc.fclose.argtypes = [ctypes.c_void_p]
    descriptor = _anonymous_file(content)
    stream = libc.fdopen(descriptor, b"rb")
    if not stream:
        os.close(descriptor)
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        return cpp.llama_adapter_lora_init_from_file_ptr(model, stream)
    finally:
        libc.fclose(stream)


def _anonymous_file(content: bytes) -> int:
    """A descriptor of a file without a name that holds `content`, at its beginning."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("adapter")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
