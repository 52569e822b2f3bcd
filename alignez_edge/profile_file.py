"""The profile file: one GGUF that holds a steering profile and nothing that could run.

Tensors `deciding.<l>` and `answer.<l>` for the edited layers, `exact.<position>.<l>.<part>` for the
exact form, keys `profile.*` for everything else; no code, no pickle, no path. Reading trusts
nothing: the header goes through `gguffile`, every key is checked for type and bounds, every number
for being finite.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignez_edge.axes import Axis
from alignez_edge.edits import Edit, LayerEdit
from alignez_edge.embeddings import POSITIONS
from alignez_edge.errors import AxisError, BadInputError, ProfileFileError
from alignez_edge.files import printable, write_atomic
from alignez_edge.fingerprint import Fingerprint
from alignez_edge.forms import ExactForm
from alignez_edge.gguffile import GGUFFile, read_gguf
from alignez_edge.profile import MAX_NUMBERS, MAX_REPORT, Profile, check_text, to_json
from alignez_edge.vectors import ControlVector, FloatArray, check_layers

ARCHITECTURE = "steering-profile"
VERSION = (1, 1)
"""Major and minor version of the file. What a newer minor adds is ignored; a newer major is
refused, because what we would do with it might not be what it means."""
MAX_RANK = 64  # of a layer's exact edit
MAX_CELLS = 1 << 24  # n_layer * n_embd; the largest open model has an eighth of it
_AXIS_TEXTS = ("description", "positive_prompt", "negative_prompt")
_TEXTS = ("author", "licence", "created_at", "model")


def write_profile(profile: Profile, path: str | Path) -> None:
    """Write `profile` whole or not at all; see `Profile.save`."""
    write_atomic(path, lambda temporary: _write(profile, temporary))


def read_profile(path: str | Path) -> Profile:
    """Read a profile file; see `Profile.load`."""
    file = read_gguf(path, ProfileFileError)
    shown = printable(str(path))
    try:
        return _profile_of(file)
    except BadInputError as failure:
        hint = failure.hint if not isinstance(failure, AxisError) else None
        raise ProfileFileError(f"{shown}: {failure.message}", hint) from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as failure:
        raise ProfileFileError(f"{shown}: {printable(str(failure), 300)}") from None


def _write(profile: Profile, path: Path) -> None:
    import gguf

    kinds = gguf.GGUFValueType
    writer = gguf.GGUFWriter(path, ARCHITECTURE)

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
        for key in ("method", *_TEXTS):
            text(f"profile.{key}", getattr(profile, key))
        for key, number in (
            ("n_layer", profile.vector.n_layer),
            ("n_embd", profile.vector.n_embd),
            ("seed", profile.seed),
            ("pairs", profile.pairs),
        ):
            writer.add_uint64(f"profile.{key}", number)
        writer.add_key_value("profile.layers", profile.layers, kinds.ARRAY, kinds.UINT32)
        writer.add_float64("profile.unit", profile.unit)
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
        if profile.exact is not None:
            _add_exact(writer, profile.exact)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_exact(writer: Any, form: ExactForm) -> None:
    import gguf

    kinds = gguf.GGUFValueType
    writer.add_float64("profile.exact.unit", form.unit)
    for position, edit in form.edits.items():
        layers = list(edit.layers)
        if layers:
            key = f"profile.exact.{position}.layers"
            writer.add_key_value(key, layers, kinds.ARRAY, kinds.UINT32)
        for layer, own in edit.layers.items():
            name = f"exact.{position}.{layer}"
            if own.rank:
                writer.add_tensor(f"{name}.outward", np.ascontiguousarray(own.outward.T))
                writer.add_tensor(f"{name}.inward", own.inward)
            writer.add_tensor(f"{name}.constant", own.constant)


def _exact_of(file: GGUFFile, keys: _Keys, n_layer: int, n_embd: int) -> ExactForm | None:
    if "profile.exact.unit" not in file.metadata:
        return None
    edits = []
    for position in POSITIONS:
        key = f"profile.exact.{position}.layers"
        layers = keys.integers(key) if key in file.metadata else []
        if layers != sorted(set(layers)) or any(not 0 <= layer < n_layer for layer in layers):
            raise ValueError(f"{key} are no layers: {layers[:8]}")
        edits.append(Edit({i: _layer_edit(file, f"exact.{position}.{i}", n_embd) for i in layers}))
    return ExactForm(edits[0], edits[1], keys.real("profile.exact.unit"))


def _layer_edit(file: GGUFFile, name: str, n_embd: int) -> LayerEdit:
    rank = 0
    if f"{name}.inward" in file.tensors:
        shape = file.tensors[f"{name}.inward"].shape
        rank = shape[1] if len(shape) == 2 else 1
    if rank > MAX_RANK:
        raise ValueError(f"{name} has rank {rank}, more than {MAX_RANK}")
    factors = [
        _tensor(file, f"{name}.{part}", n_embd, rank) if rank else np.zeros((0, n_embd), np.float32)
        for part in ("outward", "inward")
    ]
    return LayerEdit(factors[0].T, factors[1], _tensor(file, f"{name}.constant", n_embd)[0])


def _profile_of(file: GGUFFile) -> Profile:
    keys = _Keys(file.metadata)
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
    layers = tuple(check_layers(keys.integers("profile.layers"), n_layer))
    axis = Axis(
        name=keys.text("profile.axis.name", needed=True),
        positive=keys.text("profile.axis.positive", needed=True),
        negative=keys.text("profile.axis.negative", needed=True),
        description=keys.text("profile.axis.description"),
        positive_prompt=keys.text("profile.axis.positive_prompt") or None,
        negative_prompt=keys.text("profile.axis.negative_prompt") or None,
    )
    prefix = "profile.calibration."
    return Profile(
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
        exact=_exact_of(file, keys, n_layer, n_embd),
        **{key: keys.text(f"profile.{key}") for key in _TEXTS},
    )


class _Keys:
    """Typed access to a stranger's metadata; raises `ValueError` that names the key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def _get(self, key: str) -> Any:
        if key not in self._metadata:
            raise ValueError(f"the key {key} is missing")
        return self._metadata[key]

    def text(self, key: str, needed: bool = False) -> str:
        value = self._get(key) if needed else self._metadata.get(key, "")
        check_text(key, value)
        return str(value)

    def number(self, key: str) -> int:
        value = self._get(key)
        if type(value) is not int:
            raise ValueError(f"{key} is not a whole number")
        return value

    def real(self, key: str) -> float:
        value = self._get(key)
        if type(value) is not float:
            raise ValueError(f"{key} is not a floating-point number")
        return value

    def integers(self, key: str) -> list[int]:
        value = self._get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise ValueError(f"{key} is not a list of whole numbers")
        if len(value) > 10_000:
            raise ValueError(f"{key} has {len(value):,} entries")
        return [int(entry) for entry in value]

    def curve(self, key: str) -> float | tuple[float, ...]:
        value = self._get(key)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and len(value) <= MAX_NUMBERS:
            return tuple(float(entry) for entry in value)
        return self.real(key)

    def table(self, key: str, kind: type) -> dict[str, Any]:
        text = self._metadata.get(key, "{}")
        if not isinstance(text, str) or len(text) > MAX_REPORT:
            raise ValueError(f"{key} is not a text of at most {MAX_REPORT:,} characters")
        try:
            value = json.loads(text, parse_constant=_refuse)
        except ValueError:
            raise ValueError(f"{key} is not JSON") from None
        if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
            raise ValueError(f"{key} is not a table of the expected kind")
        return value


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
        rows[layer] = _tensor(file, tensor, n_embd)[0]
    return rows


def _tensor(file: GGUFFile, name: str, n_embd: int, n_rows: int = 1) -> FloatArray:
    """The float32 tensor `name` as `(n_rows, n_embd)`; raises `ValueError` on another shape."""
    if name not in file.tensors:
        raise ValueError(f"the tensor {name} is missing")
    info = file.tensors[name]
    if info.type != "F32" or info.shape not in ((n_embd, n_rows), (n_embd,) * (n_rows == 1)):
        wanted = (n_embd, n_rows) if n_rows > 1 else (n_embd,)
        raise ValueError(
            f"the tensor {name} is {info.type} of shape {info.shape}, not F32 of {wanted}"
        )
    return np.asarray(file.tensor(name), np.float32).reshape(n_rows, n_embd)


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


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
