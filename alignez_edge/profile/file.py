"""The profile file: one GGUF that holds a steering profile and nothing that could run.

Tensors `deciding.<l>` and `answer.<l>` for the edited layers, keys `profile.*` for everything else
(an intervention writes and reads its own); no code, no pickle, no path. Reading trusts nothing: the
header goes through `gguffile`, every key is checked for type and bounds (`untrusted.py`), every
number for being finite.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import AxisError, BadInputError, ProfileFileError
from alignez_edge.files.gguffile import GGUFFile, read_gguf
from alignez_edge.files.ggufwriter import gguf_writer
from alignez_edge.files.text import printable
from alignez_edge.files.untrusted import Keys, to_json
from alignez_edge.files.writing import write_atomic
from alignez_edge.interventions.control_vector import ControlVector, check_layers
from alignez_edge.interventions.kinds import read_intervention
from alignez_edge.interventions.tensors import add_integers, tensor_of
from alignez_edge.modelfiles.fingerprint import Fingerprint
from alignez_edge.preferences.axes import WORDINGS, Axis, Side, Wording
from alignez_edge.preferences.prompts import SIDES

ARCHITECTURE = "steering-profile"
VERSION = (1, 4)
"""Major and minor version of the file. What a newer minor adds is ignored; a newer major is
refused, because what we would do with it might not be what it means."""
MAX_CELLS = 1 << 22  # n_layer * n_embd; the largest open model has half of it
Made = TypeVar("Made")
_AXIS_TEXTS = ("description", "positive_prompt", "negative_prompt")
_NEGATIVE = ("unit_negative", "exact_unit_negative")
_TEXTS = ("author", "licence", "created_at", "model")


def write_profile(profile: Any, path: str | Path) -> None:
    """Write a profile, or anything with its attributes, whole or not at all; see `Profile.save`."""
    write_atomic(path, lambda temporary: _write(profile, temporary))


def read_profile(path: str | Path, make: Callable[..., Made]) -> Made:
    """What `make` makes of the parts of a profile file; see `Profile.load`."""
    file = read_gguf(path, ProfileFileError)
    shown = printable(str(path))
    try:
        return make(**_parts_of(file))
    except BadInputError as failure:
        hint = failure.hint if not isinstance(failure, AxisError) else None
        raise ProfileFileError(f"{shown}: {failure.message}", hint) from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as failure:
        raise ProfileFileError(f"{shown}: {printable(str(failure), 300)}") from None


def _write(profile: Any, path: Path) -> None:
    import gguf

    kinds = gguf.GGUFValueType
    writer = gguf_writer(path, ARCHITECTURE)

    def text(key: str, value: str | None) -> None:
        if value:
            writer.add_string(key, value)

    try:
        text(
            "general.name", f"{profile.name} for {profile.model}" if profile.model else profile.name
        )
        writer.add_string("profile.version", f"{VERSION[0]}.{VERSION[1]}")
        for key in ("name", "positive", "negative", *_AXIS_TEXTS):
            text(f"profile.axis.{key}", getattr(profile.axis, key))
        for side in SIDES:
            for key, words in profile.axis.wording_of(side).given().items():
                text(f"profile.axis.requests.{side}.{key}", words)
        for key in ("method", *_TEXTS):
            text(f"profile.{key}", getattr(profile, key))
        for key, number in (
            ("n_layer", profile.vector.n_layer),
            ("n_embd", profile.vector.n_embd),
            ("seed", profile.seed),
            ("pairs", profile.pairs),
        ):
            writer.add_uint64(f"profile.{key}", number)
        if profile.layers:
            add_integers(writer, "profile.layers", profile.layers)
        writer.add_float64("profile.unit", profile.unit)
        for key in _NEGATIVE:
            if (scale := getattr(profile, key)) is not None:
                writer.add_float64(f"profile.{key}", scale)
        for key, curve in sorted(profile.calibration.items()):
            if isinstance(curve, tuple):
                writer.add_key_value(
                    f"profile.calibration.{key}", curve, kinds.ARRAY, kinds.FLOAT64
                )
            else:
                writer.add_float64(f"profile.calibration.{key}", curve)
        for key in ("dropped", "versions", "report"):
            text(f"profile.{key}", to_json(getattr(profile, key)))
        for key, value in sorted(profile.fingerprint.to_metadata().items()):
            _add(writer, key, value)
        for layer in profile.layers:
            writer.add_tensor(f"deciding.{layer}", profile.vector.deciding[layer])
            writer.add_tensor(f"answer.{layer}", profile.vector.answer[layer])
        if profile.intervention is not None:
            profile.intervention.write(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _parts_of(file: GGUFFile) -> dict[str, Any]:
    """The arguments of a profile, checked by themselves."""
    keys = Keys(file.metadata)
    architecture = keys.text("general.architecture")
    if architecture != ARCHITECTURE:
        raise ProfileFileError(
            f"not a steering profile but {architecture or 'a GGUF of no kind'!r}",
            hint="a profile is a file that `alignez build` wrote",
        )
    _check_version(keys.text("profile.version", needed=True))
    n_layer = keys.number("profile.n_layer")
    n_embd = keys.number("profile.n_embd")
    if not 2 <= n_layer <= 10_000 or n_embd < 1 or n_layer * n_embd > MAX_CELLS:
        raise ValueError(f"impossible sizes: {n_layer} layers of {n_embd}")
    intervention = read_intervention(file, keys, n_layer, n_embd)
    edits_layers = intervention is None or intervention.edits_layers
    named = check_layers(keys.integers("profile.layers"), n_layer) if edits_layers else ()
    layers = tuple(named)
    negative = keys.text("profile.axis.negative") or None
    axis = Axis(
        name=keys.text("profile.axis.name", needed=True),
        positive=keys.text("profile.axis.positive", needed=True),
        negative=negative,
        description=keys.text("profile.axis.description"),
        positive_prompt=keys.text("profile.axis.positive_prompt") or None,
        negative_prompt=(negative and keys.text("profile.axis.negative_prompt")) or None,
        positive_wording=_wording(keys, "positive"),
        negative_wording=_wording(keys, "negative") if negative else Wording(),
    )
    prefix = "profile.calibration."
    return dict(
        axis=axis,
        vector=ControlVector(
            _rows(file, "deciding", layers, n_layer, n_embd),
            _rows(file, "answer", layers, n_layer, n_embd),
        ),
        layers=layers,
        fingerprint=Fingerprint.from_metadata(file.metadata),
        unit=keys.real("profile.unit"),
        method=keys.text("profile.method"),
        calibration={
            key.removeprefix(prefix): keys.curve(key)
            for key in file.metadata
            if key.startswith(prefix)
        },
        seed=keys.number("profile.seed"),
        pairs=keys.number("profile.pairs"),
        dropped=keys.table("profile.dropped", int),
        versions=keys.table("profile.versions", str),
        report=keys.table("profile.report", object),
        intervention=intervention,
        unit_negative=_optional(keys, "profile.unit_negative"),
        exact_unit_negative=_optional(keys, "profile.exact_unit_negative"),
        **{key: keys.text(f"profile.{key}") for key in _TEXTS},
    )


def _optional(keys: Keys, key: str) -> float | None:
    return keys.real(key) if key in keys else None


def _wording(keys: Keys, side: Side) -> Wording:
    """The axis' words for one side."""
    return Wording(*(keys.text(f"profile.axis.requests.{side}.{key}") or None for key in WORDINGS))


def _rows(
    file: GGUFFile, name: str, layers: tuple[int, ...], n_layer: int, n_embd: int
) -> FloatArray:
    """The tensors `<name>.<l>` as rows of a zero array `(n_layer, n_embd)`."""
    wanted = {f"{name}.{layer}": layer for layer in layers}
    for found in file.tensors:
        if found.startswith(f"{name}.") and found not in wanted:
            raise ValueError(f"the tensor {printable(found)} is of no layer in profile.layers")
    rows = np.zeros((n_layer, n_embd), np.float32)
    for tensor, layer in wanted.items():
        rows[layer] = tensor_of(file, tensor, (n_embd,))
    return rows


def _check_version(text: str) -> None:
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text, re.ASCII)
    if found is None:
        raise ValueError(f"profile.version is {text!r}, not like '1.0'")
    if int(found[1]) > VERSION[0]:
        raise ProfileFileError(
            f"made for version {text} of the format; this program reads up to {VERSION[0]}.x",
            hint="a newer alignez-edge can read it",
        )
    if int(found[1]) < 1:
        raise ValueError(f"no such version of the format: {text}")


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a fact of a fingerprint: a text, a count or an array of float32."""
    import gguf

    kinds = gguf.GGUFValueType
    if isinstance(value, str):
        writer.add_key_value(key, value, kinds.STRING)
    elif isinstance(value, int):
        writer.add_uint64(key, value)
    else:
        writer.add_key_value(key, value.tolist(), kinds.ARRAY, kinds.FLOAT32)
