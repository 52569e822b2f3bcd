"""Files from strangers are read within bounds; files of ours are written whole or not at all.

No path that stands inside a file is ever followed, and text out of a file reaches a terminal only
through `printable`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import secrets
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from alignez_edge.errors import AlignezError, BadInputError

APP = "alignez-edge"
# Joiners are format characters that ordinary Persian, Hindi and emoji text needs.
_JOINERS = "\u200c\u200d"
MAX_LINE = 1 << 20  # bytes; what a parser makes of one line may take twenty times its size
MAX_DOTS = 1000  # in a line of TOML; a dotted key takes time with the square of its parts
_PIECE = 1 << 20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.alignez", re.DOTALL)
_STALE = 3600.0  # seconds; nothing takes so long to write


def is_unprintable(char: str) -> bool:
    """Whether `char` could move the cursor, hide, or reorder the text around it."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS


def printable(text: str, limit: int = 200) -> str:
    """`text` on one line of at most `limit` characters, control and bidi characters escaped."""
    cut = text[: limit + 1]
    safe = "".join(ascii(c)[1:-1] if is_unprintable(c) else c for c in cut)
    return safe if len(safe) <= limit else safe[: max(limit - 1, 0)] + "…"


def near_hint(word: str, known: Iterable[str], noun: str) -> str:
    """A hint that names what `word` was probably meant to be, or all that is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known {noun}: {', '.join(names)}"


def read_text(
    path: str | Path, *, limit: int, what: str, error: type[BadInputError] = BadInputError
) -> str:
    """The UTF-8 text of a file of at most `limit` bytes; a byte order mark is dropped.

    `what` names the kind of file in messages ("axis file"). Raises `error` on a missing or
    unreadable file, one that is too large, and one that is not UTF-8 (with the line).
    """
    return decode_utf8(read_bytes(path, limit=limit, what=what, error=error), path, what, error)


def read_bytes(
    path: str | Path, *, limit: int, what: str, error: type[BadInputError] = BadInputError
) -> bytes:
    """The bytes of a file of at most `limit` bytes; raises `error` with one line otherwise."""
    shown = printable(str(path))
    try:
        with Path(path).open("rb") as file:
            # A read takes the memory that it is asked to fill, whatever there is to read.
            data = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
            while len(data) <= limit and (more := file.read(_PIECE)):  # a pipe has no size
                data += more
    except FileNotFoundError:
        raise error(f"no such {what}: {shown}") from None
    except (OSError, ValueError) as failure:
        raise error(f"cannot read the {what} {shown}: {_reason(failure)}") from None
    if len(data) > limit:
        raise error(f"the {what} {shown} is larger than {limit:,} bytes")
    return data


def read_lines(
    path: str | Path, *, limit: int, what: str, error: type[BadInputError] = BadInputError
) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, one in memory at a time.

    Only a newline ends a line. Raises `error` as `read_text` does, and on a line of more than
    `MAX_LINE` bytes.
    """
    shown = printable(str(path))
    number = size = 0
    try:
        with Path(path).open("rb") as file:
            while raw := file.readline(MAX_LINE + 1):
                number, size = number + 1, size + len(raw)
                if size > limit:
                    raise error(f"the {what} {shown} is larger than {limit:,} bytes")
                if len(raw) > MAX_LINE:
                    raise error(f"{shown}, line {number}: longer than {MAX_LINE:,} bytes")
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise _not_utf8(path, what, number, error) from None
                yield number, line.removesuffix("\n")
    except FileNotFoundError:
        raise error(f"no such {what}: {shown}") from None
    except (OSError, ValueError) as failure:
        raise error(f"cannot read the {what} {shown}: {_reason(failure)}") from None


def decode_utf8(
    data: bytes, path: str | Path, what: str, error: type[BadInputError] = BadInputError
) -> str:
    """`data` as text; raises `error` with the line number where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = data.count(b"\n", 0, failure.start) + 1
        raise _not_utf8(path, what, line, error) from None


def parse_toml(
    text: str, path: str | Path, error: type[BadInputError] = BadInputError
) -> dict[str, Any]:
    """The table of a TOML file's text; raises `error` with one line where it is none.

    Half a second for 512 KB at the worst; whoever reads the text sets a limit.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

    shown = printable(str(path))
    if max(line.count(".") for line in text.split("\n")) > MAX_DOTS:
        raise error(f"{shown} has a line of more than {MAX_DOTS:,} dots")
    try:
        return dict(tomllib.loads(text))
    except (ValueError, RecursionError) as failure:  # a number too long is no TOMLDecodeError
        raise error(f"{shown} is not TOML: {printable(str(failure))}") from None


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder; False for what can be no path at all.

    Raises `BadInputError` where it lies in a folder that may not be looked into.
    """
    try:
        return bool(str(path)) and bool(Path(path).stat())
    except PermissionError as failure:
        raise BadInputError(f"cannot look at {printable(str(path))}: {_reason(failure)}") from None
    except (OSError, ValueError):  # nothing there; too long a name; a NUL character
        return False


def is_file(path: str | Path) -> bool:
    """Whether there is such a file, which is no folder; as `is_there` otherwise."""
    return is_there(path) and Path(path).is_file()


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

    Raises `BadInputError` where nothing can lie there: too long a name, a folder that may not be
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

    Raises `BadInputError` where no plain file can lie there, and `AlignezError` where its folder
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
    `AlignezError` where the system fails (disk full).
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

    The system lets go when a process ends, killed or not. Raises `AlignezError` where another one
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


def user_dir() -> Path:
    """The folder of the user's own data: `$ALIGNEZ_HOME`, else where the system keeps such."""
    home = os.environ.get("ALIGNEZ_HOME")
    if home:
        return Path(home)
    import platformdirs  # not for --help

    return Path(platformdirs.user_data_dir(APP, appauthor=False))


def cache_dir() -> Path:
    """The folder of what can be made again: `$ALIGNEZ_HOME/cache`, else the system's place."""
    home = os.environ.get("ALIGNEZ_HOME")
    if home:
        return Path(home) / "cache"
    import platformdirs

    return Path(platformdirs.user_cache_dir(APP, appauthor=False))


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents where missing; raises `AlignezError` where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise AlignezError(
            f"cannot make the folder {printable(str(folder))}: {_reason(failure)}"
        ) from None
    return folder


def builtin_folder() -> Path:
    """The folder of the built-in axes and profiles: the installed package, or the checkout's."""
    installed = Path(__file__).parent / "profiles"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "profiles"


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


def _not_utf8(path: str | Path, what: str, line: int, error: type[BadInputError]) -> BadInputError:
    return error(
        f"the {what} {printable(str(path))} is not UTF-8 text: line {line}",
        hint="save it as UTF-8",
    )


def _reason(failure: Exception) -> str:
    return getattr(failure, "strerror", None) or str(failure)
