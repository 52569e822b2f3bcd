"""The user's profiles by name, and the built-in ones for the demo model."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignez_edge.errors import AlignezError, BadInputError, ProfileFileError
from alignez_edge.files import (
    builtin_folder,
    is_file,
    is_there,
    make_folder,
    near_hint,
    printable,
    user_dir,
)

if TYPE_CHECKING:
    from alignez_edge.profile import Profile

SUFFIX = ".gguf"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


Origin = Literal["user", "built-in"]


@dataclass(frozen=True)
class LibraryEntry:
    """A profile that can be named: the user's own, or one that ships with the package."""

    name: str
    path: Path
    origin: Origin


class ProfileLibrary:
    """A folder of profiles, `<name>.gguf`; by default `profiles` in the user's data folder.

    A name of the user's own hides a built-in one. The folder is made when something is saved.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else user_dir() / "profiles"

    def list(self) -> list[LibraryEntry]:
        """Every profile that `find` knows by name, in order of names."""
        found: dict[str, LibraryEntry] = {}
        places: tuple[tuple[Path, Origin], ...] = (
            (builtin_folder(), "built-in"),
            (self.folder, "user"),
        )
        for folder, origin in places:
            with contextlib.suppress(OSError):  # `trouble` tells
                for path in folder.iterdir():
                    if path.suffix == SUFFIX and _NAME.fullmatch(path.stem) and _is_file(path):
                        found[path.stem] = LibraryEntry(path.stem, path, origin)
        return [found[name] for name in sorted(found)]

    def trouble(self) -> str | None:
        """Why `list` lacks the user's own profiles; None where nothing is wrong."""
        try:
            any(self.folder.iterdir())
        except FileNotFoundError:
            return None
        except OSError as failure:
            return f"cannot read {printable(str(self.folder))}: {failure.strerror}"
        return None

    def path(self, name: str) -> Path:
        """Where the user's profile `name` lies or would lie; raises on a name that is none."""
        if not _NAME.fullmatch(name):
            raise BadInputError(
                f"'{printable(name, 80)}' cannot be the name of a profile",
                hint="use up to 64 letters, digits, hyphens, underscores and dots",
            )
        return self.folder / f"{name}{SUFFIX}"

    def find(self, name_or_file: str) -> Path:
        """The file of a name (the user's own first, then built-in), else of a path.

        Raises `ProfileFileError` with near matches where there is neither.
        """
        if _NAME.fullmatch(name_or_file):
            for folder in (self.folder, builtin_folder()):
                path = folder / f"{name_or_file}{SUFFIX}"
                if is_file(path):
                    return path
        path = Path(name_or_file)
        if is_there(name_or_file):
            return path
        raise ProfileFileError(
            f"no profile called '{printable(name_or_file, 120)}', and no such file",
            self._hint(path),
        )

    def free_place(self, name: str) -> Path:
        """Where a new profile `name` would lie; raises `BadInputError` where there is one."""
        path = self.path(name)
        if is_there(path):
            raise BadInputError(
                f"there is a profile called {name} already",
                "give another name (--name NAME), or remove the old one",
            )
        return path

    def save(self, name: str, profile: Profile) -> Path:
        """Write the profile under `name` and return where; an older one of that name goes."""
        path = self.path(name)
        make_folder(self.folder)
        profile.save(path)
        return path

    def check_removable(self, name: str) -> Path:
        """Where the user's profile `name` lies. Raises `BadInputError` for a built-in one, and
        `ProfileFileError` where there is none of that name."""
        path = self.path(name)
        if is_file(path):
            return path
        if (builtin_folder() / path.name).is_file():
            raise BadInputError(
                f"{name} is built in and stays",
                hint="a profile of your own by that name hides it",
            )
        own = [entry.name for entry in self.list() if entry.origin == "user"]
        raise ProfileFileError(
            f"you have no profile called {name!r}",
            near_hint(name, own, "profiles") if own else None,
        )

    def remove(self, name: str) -> None:
        """Delete the user's profile `name`; raises as `check_removable`, and `AlignezError` where
        the system does not let it."""
        path = self.check_removable(name)
        try:
            path.unlink()
        except OSError as failure:
            raise AlignezError(
                f"cannot delete {printable(str(path))}: {failure.strerror}"
            ) from None

    def _hint(self, path: Path) -> str:
        names = [entry.name for entry in self.list()]
        if not names:
            return "build one with: alignez build AXIS"
        return near_hint(path.name.removesuffix(SUFFIX), names, "profiles")


def parse_profile_option(text: str) -> tuple[str, float]:
    """`NAME_OR_FILE[:STRENGTH]` as (name or file, strength); the default strength is 1.0.

    A file whose name has colons, and a Windows drive, are left whole. Raises `BadInputError` where
    the strength is not a finite number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon:
        return _named(text, text), 1.0
    if is_there(text):
        return text, 1.0
    if _NUMBER.fullmatch(tail) and math.isfinite(float(tail)):
        return _named(head, text), float(tail)
    drive = len(head) == 1 and head.isalpha() and tail[:1] in ("\\", "/")
    if drive or (tail.endswith(SUFFIX) and head):
        return text, 1.0
    raise BadInputError(
        f"the strength in '{printable(text, 120)}' is not a finite number",
        hint="write it like polite:0.8",
    )


def _is_file(path: Path) -> bool:
    """Whether it is a plain file, or may be one: what may not be looked at says so when read."""
    try:
        return path.is_file()
    except OSError:
        return True


def _named(name: str, text: str) -> str:
    if not name.strip():
        raise BadInputError(f"no profile is named in '{printable(text, 120)}'")
    return name
