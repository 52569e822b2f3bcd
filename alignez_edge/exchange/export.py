"""Profiles as files of other programs: control vectors, LoRA adapters, PEFT folders, pairs.

What alignez-edge does between a prompt and its answer is more than such a file can say: it leaves
the prompt plain but for its last token, and adds other things there than at
the tokens after it. Other programs apply one vector or one adapter to every token. So a file holds
one `Part` of a profile, and every export says in `notices` what is lost.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.exchange.vectorfile import write_control_vector
from alignez_edge.files.folders import user_dir
from alignez_edge.files.records import iter_records
from alignez_edge.files.text import is_unprintable, printable
from alignez_edge.files.writing import check_apart, make_folder, status_of, write_atomic
from alignez_edge.interventions.exact import adapter_bytes, adapter_tensors, constants
from alignez_edge.interventions.intervention import Intervention
from alignez_edge.preferences.pairs import read_labelled_pairs
from alignez_edge.profile.provenance import Provenance
from alignez_edge.steering.compatibility import check_fit

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model

ADAPTER, VECTOR, MODELFILE = "adapter.gguf", "control-vector.gguf", "Modelfile"
Part = Literal["answer", "deciding"]
PARTS: tuple[Part, ...] = get_args(Part)
_HEADER = 1 << 20  # bytes of the first line of a pair file


@dataclass(frozen=True)
class Exported:
    """The files that were written, the one that other programs are given first, and what a user
    should know of them, one line each."""

    files: tuple[Path, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Factors:
    """The exact form of a profile at a strength, as a LoRA of one rank, and constants.

    `matrices` maps GGUF's names of matrices to `A` `(rank, n_in)` and `B` `(n_out, rank)`, with a
    first axis over experts where the matrix has one; the matrix changes by `B @ A`. `constants`,
    `(n_layer, n_embd)`, are added to the residual stream beside it.
    """

    matrices: dict[str, tuple[FloatArray, FloatArray]]
    constants: FloatArray
    rank: int


def export_control_vector(
    profile: Profile, path: str | Path, *, strength: float = 1.0, part: Part = "answer"
) -> Exported:
    """Write llama.cpp's control vector of one part of `profile` at `strength`.

    Raises `BadInputError` if that changes nothing, and for a profile that adds no vectors.
    """
    if not profile.edits_layers:
        raise _moves_logits(profile)
    rows = _scaled(getattr(profile.vector, part), profile.scale(strength))
    write_control_vector(path, rows, profile.fingerprint.architecture)
    notices = notices_of(profile, part)
    if profile.exact is not None:
        notices.append("this is the mean of the profile's edit; --to lora writes the edit itself")
    return Exported((Path(path),), tuple(notices))


def export_lora(
    profile: Profile,
    model: Model,
    folder: str | Path,
    *,
    strength: float = 1.0,
    part: Part = "answer",
) -> Exported:
    """Write llama.cpp's LoRA of one part of the exact form of `profile` at `strength`.

    The folder (made if missing) gets `adapter.gguf`, a `Modelfile` for Ollama that names the model
    by its file's name alone, and `control-vector.gguf` where the edit has constants. Scale 1 of
    the adapter is this strength. Raises `BadInputError` for profiles without an exact form and
    for models that cannot be edited exactly, `ProfileFileError` for other models.
    """
    name = model.path.name
    if any(is_unprintable(char) for char in name):
        raise BadInputError(f"a Modelfile cannot name '{printable(name)}'", "rename the model")
    found = factors(profile, model, strength, part)
    pairs = [(matrix, a, b) for matrix, (a, b) in found.matrices.items()]
    target = folder_at(folder)
    files = [target / ADAPTER]
    write_atomic(files[0], adapter_bytes(model.gguf, pairs, alpha=float(found.rank)))
    notices = notices_of(profile, part, model)
    if found.constants.any():
        files.append(target / VECTOR)
        write_control_vector(files[-1], found.constants, profile.fingerprint.architecture)
        notices.append(
            "the edit has constants: give llama.cpp the control vector too; Ollama cannot add them"
        )
    files.append(target / MODELFILE)
    lines = [
        f"# {printable(profile.name)} at strength {strength:g}. The model file belongs beside it.",
        f"FROM ./{name}",
        f"ADAPTER ./{ADAPTER}",
    ]
    write_atomic(files[-1], ("\n".join(lines) + "\n").encode())
    return Exported(tuple(files), tuple(notices))


def export_pairs(profile: Profile, path: str | Path, source: str | Path | None = None) -> Exported:
    """Write the pairs of `profile` as JSON lines for training: `prompt`, `chosen`, `rejected`.

    `source` is a file of pairs; by default the one that the build of this profile has left in the
    user's data folder. The prompt is the query alone: what either side was told is not in it.
    Raises `BadInputError` if there is no such file, if there are several, and if one is
    malformed.
    """
    file = Path(source) if source is not None else built_from(profile)
    check_apart(path, [file])
    pairs = read_labelled_pairs(file, profile.axis)
    records = [
        {"prompt": pair.query, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in pairs.pairs
    ]
    if not records:
        raise BadInputError(f"the pair file {printable(str(file))} has no usable pairs")
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomic(path, lines.encode())
    dropped = sum(pairs.dropped.values())
    notices = (f"left out, because no build would use them: {dropped}",) if dropped else ()
    return Exported((Path(path),), notices)


def factors(profile: Profile, model: Model, strength: float, part: Part) -> Factors:
    """One part of the exact form of `profile` at `strength`, for `model` as it is with what it
    carries. Raises as `export_lora` does."""
    form = profile.exact
    if form is None:
        raise no_lora(profile)
    check_fit(profile, model)
    edit = form.edits[part]
    scale = profile.scale(strength, "exact")
    tensors = list(adapter_tensors(model.gguf, edit, model.lora)) if scale else []
    if not tensors:
        raise BadInputError("this adapter changes nothing")
    rank = max(a.shape[-2] for _, a, _ in tensors)
    matrices = {
        name: (_padded(a, rank, -2), _padded(_scaled(b, scale), rank, -1)) for name, a, b in tensors
    }
    return Factors(matrices, _scaled(constants(model.gguf, edit), scale), rank)


def folder_at(path: str | Path) -> Path:
    """The folder, made if missing; raises `BadInputError` if a file is in its place."""
    status = status_of(path)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise BadInputError(f"cannot write {printable(str(path))}: it is a file, not a folder")
    return make_folder(Path(path))


def notices_of(profile: Profile, part: Part, model: Model | None = None) -> list[str]:
    """What is lost where other programs apply one part of `profile` to every token."""
    notices = [
        "other programs apply it to every token, the prompt's too; alignez leaves the prompt alone"
        " but for its last token"
    ]
    if profile.intervention is not None and profile.intervention.lost_in_export:
        notices.append(profile.intervention.lost_in_export)
    vector = profile.vector
    if profile.exact is not None or not np.array_equal(vector.deciding, vector.answer):
        notices.append(
            "what the profile does at the last prompt token is left out (--part deciding)"
            if part == "answer"
            else "this is for the last prompt token only: at every token it is too strong"
        )
    if model is not None and model.lora:
        notices.append("it is for the model with its attached adapters: use it beside those")
    return notices


def no_lora(profile: Profile) -> BadInputError:
    """The refusal of an adapter for a profile without an exact form."""
    if not profile.edits_layers:
        return _moves_logits(profile)
    what = (profile.intervention or Intervention).no_lora
    return BadInputError(
        f"the profile {printable(profile.name)} {what}: no LoRA can be made of it",
        "export it as a control vector: --to control-vector",
    )


def built_from(profile: Profile) -> Path:
    """The file of pairs that a build on this machine has made `profile` from.

    Raises `BadInputError` if there is none, and if several could be it.
    """
    name = printable(profile.name)
    wanted: dict[str, object] = {
        "axis": profile.axis.wording(),
        "model": profile.fingerprint.digest(),
        "seed": profile.seed,
    }
    if (told := Provenance.of(profile)) is not None:
        if told.source.kind == "pairs":
            raise BadInputError(
                f"{name} was built from pairs in a file, not from pairs of the model's own",
                "name that file: --pairs FILE",
            )
        wanted["quantization"] = told.model.quantization
        wanted |= {key: getattr(told, key) for key in ("width", "threads", "ctx")}
    found = [
        path
        for path in sorted((user_dir() / "builds").glob(f"{profile.axis.name}-*/pairs.jsonl"))
        if _settings(path).items() >= wanted.items()
    ]
    if not found:
        raise BadInputError(
            f"the pairs of {name} are not on this machine: a profile does not hold them",
            "name their file: --pairs FILE",
        )
    if len(found) > 1:
        places = ", ".join(printable(str(path)) for path in found)
        raise BadInputError(
            f"{len(found)} builds could have made {name}: {places}", "choose one: --pairs FILE"
        )
    return found[0]


def _settings(path: Path) -> dict[str, object]:
    """The settings that a build's file of pairs begins with, the axis as a table; {} for none."""
    try:
        with path.open("rb") as file:
            line = file.readline(_HEADER).decode("utf-8")
        ((_, header),) = iter_records(line, "")
        settings = header["settings"]
        return {"ctx": None, **settings, "axis": json.loads(settings["axis"])}  # type: ignore[index, dict-item]
    except (OSError, BadInputError, ValueError, TypeError, KeyError):
        return {}


def _moves_logits(profile: Profile) -> BadInputError:
    return BadInputError(
        f"the profile {printable(profile.name)} moves the logits, which no other program does",
        "profiles of other methods can be exported",
    )


def _scaled(values: FloatArray, scale: float) -> FloatArray:
    """`scale * values`, rounded once. Raises `BadInputError` if that overflows."""
    with np.errstate(over="ignore"):
        scaled = (scale * values.astype(np.float64)).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise BadInputError("the strength is so large that the steering overflows")
    return scaled


def _padded(factor: FloatArray, rank: int, axis: int) -> FloatArray:
    """The factor with zeros up to `rank` along `axis`, so that all matrices have one rank."""
    width = [(0, 0)] * factor.ndim
    width[axis] = (0, rank - factor.shape[axis])
    return np.pad(factor, width)
