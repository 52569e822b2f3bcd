"""What comes from elsewhere into the library: profile files, and control vectors of other programs.

Nothing that is there already is overwritten, and what is copied is checked before it gets its name.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge._version import __version__
from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.exchange.vectorfile import ARCHITECTURE, Maker, VectorFile
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.files.text import printable
from alignez_edge.files.writing import make_folder, write_atomic
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.library import SUFFIX, ProfileLibrary
from alignez_edge.profile.profile import Profile

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

METHOD = "imported"
_UNIT_ERROR = 0.02
"""By how much the lengths of good PCA directions differ from 1 at most: 0.002 was measured; of
bad ones, which are read out of memory that was used again, 0.03 to 0.17."""
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


def files_of(path: str | Path) -> list[Path]:
    """The file itself, or the GGUF files of a folder, by name. Raises `ProfileFileError`."""
    place, shown = Path(path), printable(str(path))
    try:
        if not place.is_dir():
            return [place]
        files = sorted(p for p in place.iterdir() if p.suffix == SUFFIX and p.is_file())
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or str(failure)
        raise ProfileFileError(f"cannot read {shown}: {reason}") from None
    if not files:
        raise ProfileFileError(f"the folder {shown} holds no {SUFFIX} files")
    return files


def is_control_vector(path: str | Path) -> bool:
    """Whether the GGUF file at `path` says that it is one; raises `ProfileFileError` if it
    cannot be read."""
    file = read_gguf(path, ProfileFileError)
    return str(file.metadata.get("general.architecture")) == ARCHITECTURE


def name_for(path: Path) -> str:
    """The name that a file gets in the library where nobody gives one."""
    name = _UNFIT.sub("-", path.name.removesuffix(SUFFIX))[:64].strip("-_")
    if not name:
        raise BadInputError(f"{printable(str(path))} has no usable name", "give one: --name NAME")
    return name


def copy_profile(path: str | Path, library: ProfileLibrary, name: str) -> tuple[Path, Profile]:
    """Take a profile file into the library under `name`, byte by byte; where it lies, and it.

    Raises `ProfileFileError` if it is no usable profile, `BadInputError` if the name cannot
    be or another profile for the same model has it.
    """
    given = Profile.load(path)  # for messages that name the file that was given
    target = library.place(name, given.fingerprint, given.model)
    if not _same(target, Path(path)):  # the very same bytes may be imported again
        target = library.free_place(name, given.fingerprint, given.model)
    loaded: list[Profile] = []

    def copy(temporary: Path) -> None:
        shutil.copyfile(path, temporary)
        # The copy is what is checked: the original may change in between.
        loaded.append(Profile.load(temporary))

    make_folder(library.folder)
    write_atomic(target, copy)
    return target, loaded[0]


def imported_profile(
    file: VectorFile, model: Model, name: str, *, maker: Maker | None = None, unit: float = 1.0
) -> Profile:
    """A control vector as a profile of `model` called `name`: the same at every token.

    Strength 1 adds `unit` times what the file holds. Raises `BadInputError` if it does not fit
    the model, if nobody knows who made it, and for a name or a unit that cannot be.
    """
    maker = maker or file.maker
    rows = file.rows(model.n_layer, model.n_embd, maker)
    vector = ControlVector(rows, rows)
    shown = printable(file.path.name, 100)
    axis = Axis(
        name, positive=name, negative=f"not {name}", description=f"the control vector {shown}"
    )
    try:
        return Profile(
            axis=axis,
            vector=vector,
            layers=vector.layers,
            fingerprint=model.fingerprint,
            unit=unit,
            method=METHOD,
            versions={"alignez-edge": __version__},
            model=printable(model.facts.name),
            report={"imported": {"file": shown, "made_by": maker}},
        )
    except ValueError as failure:
        raise BadInputError(printable(str(failure), 300)) from None


def notices_of(file: VectorFile, model: Model, maker: Maker) -> list[str]:
    """What a user should know of a control vector that is imported, one line each."""
    found = []
    late = maker == "llama.cpp"
    if late:
        found.append(
            "llama.cpp's cvector-generator counts layers from 1: each direction goes to the layer"
            " where it was found, one lower"
        )
        found.append("its PCA has a random sign: if it steers the wrong way, use strength -1")
        lengths = [float(np.linalg.norm(row)) for row in file.directions.values()]
        if max(abs(length - 1) for length in lengths) > _UNIT_ERROR:
            found.append(
                "its directions are not of length 1: the PCA of cvector-generator may have gone"
                " wrong, which --pca-batch 1 avoids"
            )
    if min(file.directions) <= int(late):
        found.append("the direction of layer 0 is left out: nothing can be added there")
    if file.hint and file.hint != model.facts.architecture:
        found.append(
            f"it says it was made for {printable(file.hint, 40)}, the model is"
            f" {printable(model.facts.architecture)}"
        )
    return found


def _same(a: Path, b: Path) -> bool:
    try:
        return a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes()
    except OSError:
        return False
