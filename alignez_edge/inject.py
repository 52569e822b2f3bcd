"""From a profile to what llama.cpp is given: the ways in which a steering gets into a model.

- `control-vector`: one constant vector a layer and position. Any model, any profile.
- `exact`: the profile's exact form as LoRA adapters and constants, at native speed.
- `reference`: the same form in the evaluation callback: slow, for tests and experiments.
- `auto`: where the vector is only the mean of the profile's edit, exact if the model allows it;
  else the control vector, which is then the whole of what was fitted.

What an adapter takes of a model is computed once: it is kept with the model, and in the user's
cache folder by the profile's digest and the model's.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignez_edge.edits import Edit
from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.exact import ExactEdit, can_inject_exactly, constants, exact_edit
from alignez_edge.files import cache_dir, make_folder, printable, write_atomic
from alignez_edge.methods import Way

if TYPE_CHECKING:
    from alignez_edge.profile import Profile
    from alignez_edge.runtime.adapter import Adapter
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.types import Edits, FloatArray


@dataclass(frozen=True, eq=False)
class Share:
    """What one profile adds at one position: rows for `l_out`, `(n_layer, n_embd)`, and edits."""

    vector: npt.NDArray[np.float64]
    edits: Edits = ()


def way_into(model: Model, profile: Profile, way: Way) -> tuple[Way, str | None]:
    """The way that is really taken, never `auto`, and why not the exact one, where that was wanted.

    Raises `BadInputError` where `exact` or `reference` was asked for and is not to be had.
    """
    if way == "control-vector" or (way == "auto" and profile.exact is None):
        return "control-vector", None
    reason = _reason_against(model, profile, way)
    if reason is None:
        return (way if way == "reference" else "exact"), None
    if way == "auto":
        return "control-vector", reason
    raise BadInputError(
        f"--inject {way} is not available for the profile {printable(profile.name)}: {reason}",
        "use --inject auto or control-vector",
    )


def shares(model: Model, profile: Profile, strength: float, way: Way) -> tuple[Share, Share]:
    """What `profile` adds at `strength` at the deciding token and at later ones, in a way that
    `way_into` gave."""
    vectors = profile.vector.deciding, profile.vector.answer
    form = profile.exact
    if way == "control-vector" or form is None:
        scale = strength * profile.unit
        deciding, answer = (Share(scale * v.astype(np.float64)) for v in vectors)
        return deciding, answer
    found = []
    scale = strength * form.unit
    for position, edit in form.edits.items():
        rows = np.zeros(profile.vector.deciding.shape)
        if way == "reference":
            # The edit as it stands: the callback adds its constants where they belong.
            found.append(Share(rows, ((edit, scale),)))
        elif edit.is_zero() or not scale:
            found.append(Share(rows))
        else:
            adapter, added = _prepared(model, profile, position, edit)
            found.append(Share(rows + scale * added, ((adapter, scale),)))
    return found[0], found[1]


def _reason_against(model: Model, profile: Profile, way: Way) -> str | None:
    form = profile.exact
    if form is None:
        return f"the method {profile.method or 'that made it'} is a control vector by nature"
    if way == "reference":
        return None
    for edit in form.edits.values():
        reason = can_inject_exactly(model.gguf, edit.layers)
        if reason is not None:
            return reason
        try:
            constants(model.gguf, edit)
        except BadInputError as failure:
            return failure.message
    return None


def _prepared(
    model: Model, profile: Profile, position: str, edit: Edit
) -> tuple[Adapter, FloatArray]:
    """The adapter of an edit in llama.cpp, and its constants; made at most once a model."""
    from alignez_edge.runtime.adapter import Adapter

    key = f"{profile.order[1]}-{position}"
    if key not in model.kept:
        facts = (key, model.fingerprint.digest(), model.facts.quantization, model.gguf.size)
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:40]
        path = cache_dir() / "adapters" / f"{name}.npz"
        found = _read(path, (model.n_layer, model.n_embd))
        if found is None:
            found = exact_edit(model.gguf, edit, lora=model.lora)
            _keep(path, found)
        model.kept[key] = Adapter(model, found.adapter, carried=True), found.constants
    return model.kept[key]


def _read(path: Path, shape: tuple[int, int]) -> ExactEdit | None:
    """What `_keep` wrote; None where it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            adapter, rows = file["adapter"], file["constants"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
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
