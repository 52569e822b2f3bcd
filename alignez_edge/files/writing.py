"""Files that are written whole or not at all, logs that are appended line by line, and folders."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.reading import _reason, is_there
from alignez_edge.files.text import printable

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.alignez", re.DOTALL)
_STALE = 3600.0  # seconds; nothing takes so long to write


def check_apart(target: str | Path, sources: Iterable[str | Path]) -> None:
    """Raise `BadInputError` where `target`, which is to be written, is one of what is read."""
    for source in sources:
        if is_there(target) and is_there(source) and Path(target).samefile(source):
            raise BadInputError(
                f"cannot write {printable(str(target))}: it is the file that is read",
                "name another one",
            )


def status_of(path: str | Path) -> os.stat_result | None:
    """What lies where something is to be written, links followed; None for nothing.

    Raises `BadInputError` if nothing can lie there: too long a name, a folder that may not be
    looked into.
    """
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as failure:
        raise BadInputError(f"cannot write {printable(str(path))}: {_reason(failure)}") from None


def place_of(path: str | Path) -> Path:
    """Where a file that is written to `path` will lie, links followed; nothing is written.

    Raises `BadInputError` if no plain file can lie there, and `AlignezError` if its folder
    may not be written. A disk that is full, and the like, shows only in the writing.
    """
    shown, found = printable(str(path)), status_of(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise BadInputError(f"cannot write {shown}: it is not a plain file")
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise BadInputError(f"cannot write {shown}: no such folder")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise AlignezError(f"cannot write {shown}: its folder may not be written")
    return target


def write_atomic(path: str | Path, content: bytes | Callable[[Path], None]) -> None:
    """Write a file so that at every moment the old or the new one is there whole.

    `content` is the bytes, or a function that writes them to the path it is given. The temporary
    file stands in the same folder and is removed on failure; what a kill has left is removed
    by a later save into that folder, an hour or more after. Raises as `place_of` does, and
    `AlignezError` if the system fails (disk full).
    """
    target = place_of(path)
    shown = printable(str(path))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.alignez")
    try:
        # Made exclusively, so that nothing planted under this name is written through.
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
        if not isinstance(content, bytes):
            content(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
        _sweep(target.parent)
    except OSError as failure:
        raise AlignezError(f"cannot write {shown}: {_reason(failure)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def append_whole(path: Path, data: bytes) -> int:
    """Add to the end of a file, made where missing; on disk when this returns.

    Returns the offset at which `data` begins. Raises `OSError`; the file is then as it was.
    """
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(file.fileno(), view) :]
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), start)
            raise
    return start


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes of ours from appending to the files of a folder meanwhile.

    The system lets go when a process ends, killed or not. Raises `AlignezError` if another one
    is at work there. Windows and some network drives have no such lock: there nobody is kept out.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlignezError(
                f"another process is at work in {printable(str(folder))}",
                "wait until it has finished",
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents where missing; raises `AlignezError` if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise AlignezError(
            f"cannot make the folder {printable(str(folder))}: {_reason(failure)}"
        ) from None
    return folder


def _sweep(folder: Path) -> None:
    """Remove the temporary files that writers have left who were killed."""
    with contextlib.suppress(OSError):  # another program may be faster
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime < time.time() - _STALE:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system can do that (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
