"""Writing GGUF files so that a full disk is noticed.

The `gguf` package hands tensors to NumPy's `tofile`, which writes them through a stream of its own
and does not look at what comes of closing it: on a full disk the last 4 KB of a tensor can be lost
without an error (seen with NumPy 2 and a limit on the file's size; `tests/test_saving.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class _Array(np.ndarray):
    """An array that is written as any bytes are."""

    def tofile(self, file: Any, *_: Any) -> None:
        """Write it to a file object; raises `OSError`, there or when the file is closed."""
        file.write(self.tobytes())


def gguf_writer(path: Path, architecture: str) -> Any:
    """A `gguf.GGUFWriter` whose every lost byte is an `OSError`."""
    import gguf

    class Writer(gguf.GGUFWriter):
        def add_tensor(self, name: str, tensor: Any, *rest: Any, **options: Any) -> None:
            super().add_tensor(name, np.asarray(tensor).view(_Array), *rest, **options)

    return Writer(path, architecture)
