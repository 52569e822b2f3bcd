"""The adapter of an edit in one model: made once, and kept with the model and in the user's cache
folder, by the edit's digest and the model's."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import AlignezError
from alignez_edge.files.folders import cache_dir
from alignez_edge.files.writing import make_folder, write_atomic
from alignez_edge.interventions.exact import ExactEdit, exact_edit
from alignez_edge.interventions.mlp_edit import Edit
from alignez_edge.modelfiles.fingerprint import identity

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Adapter, Weights


def prepared(model: Weights, edit: Edit) -> tuple[Adapter, FloatArray]:
    """The adapter of an edit in llama.cpp, and its constants; made at most once a model."""
    from alignez_edge.runtime.weights import Adapter

    key = edit.digest
    if key not in model.kept:
        name = f"{key[:32]}-{identity(model.gguf, model.lora)[:32]}.npz"
        path = cache_dir() / "adapters" / name
        found = _read(path, (model.n_layer, model.n_embd))
        if found is None:
            found = exact_edit(model.gguf, edit, lora=model.lora)
            _keep(path, found)
        model.kept[key] = Adapter(model, found.adapter, attached=True), found.constants
    return model.kept[key]


def _read(path: Path, shape: tuple[int, int]) -> ExactEdit | None:
    """What `_keep` wrote; None if it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            adapter, rows = file["adapter"], file["constants"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if adapter.dtype != np.uint8 or rows.shape != shape or rows.dtype != np.float32:
        return None
    return ExactEdit(adapter.tobytes(), rows) if np.isfinite(rows).all() else None


def _keep(path: Path, edit: ExactEdit) -> None:
    """Keep what was computed; a full disk or a folder that cannot be written costs only time."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, adapter=np.frombuffer(edit.adapter, np.uint8), constants=edit.constants)

    try:
        make_folder(path.parent)
        write_atomic(path, write)
    except AlignezError:
        pass
