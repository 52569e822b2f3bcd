"""The user's profiles by name and model, and the built-in ones for the demo model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignez_edge.errors import AlignezError, BadInputError, ProfileFileError
from alignez_edge.files.folders import builtin_folder, user_dir
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.files.reading import is_file, is_there
from alignez_edge.files.text import near_hint, printable
from alignez_edge.files.writing import make_folder
from alignez_edge.modelfiles.fingerprint import Fingerprint, Fit, compare

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile

SUFFIX = ".gguf"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
_MODEL = re.compile(r"[A-Za-z0-9._-]{1,80}")
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 48  # characters of a model in the name of a file
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


Origin = Literal["user", "built-in"]


@dataclass(frozen=True)
class LibraryEntry:
    """A profile that can be named: the user's own, or one that ships with the package.

    `name@model` names it where other models have a profile of that name, too.
    """

    name: str
    path: Path
    origin: Origin

    @property
    def full_name(self) -> str:
        """`name@model`."""
        return f"{self.name}@{self.model}"

    @cached_property
    def model(self) -> str:
        """The model that it was made for, as its file is called, else as the file says."""
        _, at, model = self.path.stem.partition("@")
        if at:
            return model
        return _in_a_name(str(self._said.get("profile.model", ""))) if self._said else "damaged"

    @cached_property
    def fingerprint(self) -> Fingerprint | None:
        """That of its model; None if the file cannot be read."""
        try:
            return Fingerprint.from_metadata(self._said)
        except ProfileFileError:
            return None

    def fit(self, model: Fingerprint) -> Fit:
        """How well it fits a model; one that cannot be read fits none."""
        if self.fingerprint is None:
            return Fit.DIFFERENT
        return compare(self.fingerprint, model).fit

    @cached_property
    def _said(self) -> dict[str, Any]:
        try:
            return dict(read_gguf(self.path, ProfileFileError).metadata)
        except AlignezError:
            return {}


class ProfileLibrary:
    """A folder of profiles; by default `profiles` in the user's data folder.

    A profile is the file `<name>.gguf` or, where another model's profile has that name already,
    `<name>@<model>.gguf`; what it is for stands in its fingerprint, not in the file's name. A
    profile of the user's own hides a built-in one of the same name for the same model. The folder
    is made when something is saved.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else user_dir() / "profiles"

    def list(self) -> list[LibraryEntry]:
        """Every profile that `find` knows by name, in order of names."""
        return [*self._entries()]

    def trouble(self) -> str | None:
        """Why `list` lacks the user's own profiles; None if nothing is wrong."""
        try:
            any(self.folder.iterdir())
        except FileNotFoundError:
            return None
        except OSError as failure:
            return f"cannot read {printable(str(self.folder))}: {failure.strerror}"
        return None

    def called(self, name: str) -> Sequence[LibraryEntry]:
        """The profiles that `name` may mean, or `name@model`, where a word or more of the model,
        or the beginning of it, will do.

        Raises `BadInputError` if one may not be looked at.
        """
        short, at, model = name.partition("@")
        if not _NAME.fullmatch(short) or (at and not _MODEL.fullmatch(model)):
            return []
        entries = self._entries(short)
        if at:
            wanted = model.lower()
            exact = [entry for entry in entries if entry.model.lower() == wanted]
            entries = exact or [e for e in entries if f"-{wanted}" in f"-{e.model.lower()}"]
        return entries

    def find(self, name_or_file: str, model: Fingerprint | None = None) -> Path:
        """The file of a name (see `called`), else of a path.

        Of several profiles of one name it is the one made for `model`, else for one of the same
        shape. Raises `ProfileFileError` with near matches if there is neither name nor file,
        and with what there is if several are meant.
        """
        entries = self.called(name_or_file)
        if entries:
            return _one_of(entries, name_or_file, model).path
        if is_there(name_or_file):
            return Path(name_or_file)
        raise ProfileFileError(
            f"no profile called '{printable(name_or_file, 120)}', and no such file",
            self._hint(Path(name_or_file)),
        )

    def place(self, name: str, model: Fingerprint, called: str) -> Path:
        """Where the user's profile `name` for a model lies or would lie, the model being `called`
        so. It is never another model's place. Raises `BadInputError` on a name that is none."""
        own = self._own(name, model)
        if own is not None:
            return own.path
        base, plain = _in_a_name(called), self.folder / f"{name}{SUFFIX}"
        taken = {e.model.lower() for e in self._entries(name) if e.fit(model) is not Fit.SAME}
        if base.lower() not in taken and not is_there(plain):
            return plain
        tags = (base if n == 1 else f"{base}-{n}" for n in count(1))
        places = ((tag, self.folder / f"{name}@{tag}{SUFFIX}") for tag in tags)
        return next(path for tag, path in places if tag.lower() not in taken and not is_there(path))

    def free_place(self, name: str, model: Fingerprint, called: str) -> Path:
        """Where a new profile `name` for a model would lie; raises `BadInputError` if the user
        has one for that model."""
        if self._own(name, model) is not None:
            raise BadInputError(
                f"there is a profile called {name} for this model already",
                "give another name (--name NAME), or remove the old one",
            )
        return self.place(name, model, called)

    def save(self, name: str, profile: Profile) -> Path:
        """Write the profile under `name` and return where; an older one of that name for the same
        model goes, those for other models stay."""
        path = self.place(name, profile.fingerprint, profile.model)
        make_folder(self.folder)
        profile.save(path)
        return path

    def check_removable(self, name: str, model: Fingerprint | None = None) -> Path:
        """Where the user's profile `name` lies, or that for `model`. Raises `BadInputError` for a
        built-in one, and `ProfileFileError` if there is none, or if several are meant."""
        check_name(name.partition("@")[0])
        found = self.called(name)
        own = [entry for entry in found if entry.origin == "user"]
        if own and model is not None and all(entry.fit(model) is not Fit.SAME for entry in own):
            raise ProfileFileError(
                f"you have no profile called '{printable(name, 80)}' for this model,"
                f" only {_names(own)}"
            )
        if own:
            return _one_of(own, name, model).path
        if found:
            raise BadInputError(
                f"{name} is built in and cannot be removed",
                hint="a profile of your own by that name for the same model hides it",
            )
        known = [entry.name for entry in self.list() if entry.origin == "user"]
        raise ProfileFileError(
            f"you have no profile called {name!r}",
            near_hint(name, {*known}, "profiles") if known else None,
        )

    def remove(self, name: str, model: Fingerprint | None = None) -> None:
        """Delete the user's profile `name`; raises as `check_removable`, and `AlignezError` if
        the system does not let it."""
        path = self.check_removable(name, model)
        try:
            path.unlink()
        except OSError as failure:
            raise AlignezError(
                f"cannot delete {printable(str(path))}: {failure.strerror}"
            ) from None

    def _own(self, name: str, model: Fingerprint) -> LibraryEntry | None:
        """The user's profile `name` for a model; raises `BadInputError` on a name that is none."""
        check_name(name)
        own = (entry for entry in self._entries(name) if entry.origin == "user")
        return next((entry for entry in own if entry.fit(model) is Fit.SAME), None)

    def _entries(self, name: str | None = None) -> Sequence[LibraryEntry]:
        """The profiles, or those of one name, which must be such that they can be looked at."""
        look = _is_file if name is None else is_file
        places: tuple[tuple[Path, Origin], ...] = (
            (self.folder, "user"),
            (builtin_folder(), "built-in"),
        )
        own, shipped = (
            [
                LibraryEntry(short, path, origin)
                for short, path in _profiles_in(folder, name)
                if look(path)
            ]
            for folder, origin in places
        )
        found = own + [entry for entry in shipped if not _is_hidden(entry, own)]
        return sorted(found, key=lambda entry: (entry.name, entry.model.lower(), entry.path))

    def _hint(self, path: Path) -> str:
        if trouble := self.trouble():
            return trouble
        names = {entry.name for entry in self.list()}
        if not names:
            return "build one with: alignez build AXIS"
        return near_hint(path.name.removesuffix(SUFFIX).partition("@")[0], names, "profiles")


def parse_profile_option(text: str) -> tuple[str, float]:
    """`NAME_OR_FILE[:STRENGTH]` as (name or file, strength); the default strength is 1.0.

    A file whose name has colons, and a Windows drive, are left whole. Raises `BadInputError` if
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


def check_name(name: str) -> None:
    """Raise `BadInputError` where `name` cannot be that of a profile."""
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"'{printable(name, 80)}' cannot be the name of a profile",
            hint="use up to 64 letters, digits, hyphens, underscores and dots",
        )


def _in_a_name(model: str) -> str:
    """A model's name as it stands in the name of a file."""
    return _UNFIT.sub("-", model)[:_LONGEST].strip("-._") or "unnamed"


def _one_of(entries: Sequence[LibraryEntry], name: str, model: Fingerprint | None) -> LibraryEntry:
    """The entry that is meant; raises `ProfileFileError` if that is not clear."""
    shown = printable(name, 80)
    if model is not None and len(entries) > 1:
        for fit in (Fit.SAME, Fit.SAME_SHAPE):
            if fitting := [entry for entry in entries if entry.fit(model) is fit]:
                entries = fitting
                break
        else:
            raise ProfileFileError(
                f"no profile called '{shown}' is for this model, only {_names(entries)}",
                hint=f"build one for this model: alignez build {shown.partition('@')[0]} -m MODEL",
            )
    if len(entries) > 1:
        raise ProfileFileError(
            f"{len(entries)} profiles are called '{shown}': {_names(entries)}",
            hint=f"name one, like {printable(entries[0].full_name)}, or the model: -m MODEL",
        )
    return entries[0]


def _names(entries: Iterable[LibraryEntry]) -> str:
    return ", ".join(printable(entry.full_name) for entry in entries)


def _profiles_in(folder: Path, name: str | None) -> Iterator[tuple[str, Path]]:
    """The files in a folder that are called like profiles, or like those of one name."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # `trouble` tells
        return
    for path in paths:
        short, at, model = path.stem.partition("@")
        if path.suffix != SUFFIX or (name is not None and short != name):
            continue
        if _NAME.fullmatch(short) and (not at or _MODEL.fullmatch(model)):
            yield short, path


def _is_hidden(shipped: LibraryEntry, own: Iterable[LibraryEntry]) -> bool:
    model = shipped.fingerprint
    rivals = [entry for entry in own if entry.name == shipped.name]
    return model is not None and any(entry.fit(model) is Fit.SAME for entry in rivals)


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
