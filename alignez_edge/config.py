"""Short names for the models that one uses: a JSON file in the user's data folder."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from pathlib import Path

from alignez_edge.errors import BadInputError, ModelFileError
from alignez_edge.files import is_there, make_folder, printable, read_text, user_dir, write_atomic

DEMO = "demo"
"""The short name that always means the bundled demo model."""
MAX_FILE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ModelNames:
    """Short name → path of a GGUF file, in `models.json` of the user's data folder."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else user_dir() / "models.json"

    def all(self) -> dict[str, Path]:
        """Every short name in order; raises `BadInputError` where the file is malformed."""
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
        """Let `name` mean the file at `path`; True where it meant another one before."""
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
        """The file of a short name, else of a path; raises `ModelFileError` with near matches."""
        names = self.all()
        if name_or_path in names:
            return names[name_or_path]
        if is_there(name_or_path):
            return Path(name_or_path)
        near = get_close_matches(name_or_path, [*names, DEMO], n=3)
        raise ModelFileError(
            f"no model called '{printable(name_or_path, 120)}', and no such file",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "name a GGUF file, or give one a short name: alignez model add NAME FILE",
        )
