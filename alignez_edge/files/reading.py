"""Untrusted files are read within bounds; files of ours are written whole or not at all.

No path that stands inside a file is ever followed, and text out of a file reaches a terminal only
through `printable`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable

MAX_LINE = 1 << 20  # bytes; what a parser makes of one line may take twenty times its size
MAX_DOTS = 1000  # in a line of TOML; a dotted key takes time with the square of its parts
_PIECE = 1 << 20


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
    """`data` as text; raises `error` with the line number if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = data.count(b"\n", 0, failure.start) + 1
        raise _not_utf8(path, what, line, error) from None


def parse_toml(
    text: str, path: str | Path, error: type[BadInputError] = BadInputError
) -> dict[str, Any]:
    """The table of a TOML file's text; raises `error` with one line if it is none.

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

    Raises `BadInputError` if it lies in a folder that may not be looked into.
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


def _not_utf8(path: str | Path, what: str, line: int, error: type[BadInputError]) -> BadInputError:
    return error(
        f"the {what} {printable(str(path))} is not UTF-8 text: line {line}",
        hint="save it as UTF-8",
    )


def _reason(failure: Exception) -> str:
    return getattr(failure, "strerror", None) or str(failure)
