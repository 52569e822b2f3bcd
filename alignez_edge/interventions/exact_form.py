"""The exact form of a profile: an edit of MLP outputs itself, not its mean over tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_edge.arrays import DoubleArray, FloatArray
from alignez_edge.directions.hidden_states import POSITIONS
from alignez_edge.errors import BadInputError
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.untrusted import Keys
from alignez_edge.interventions.adapters import prepared
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact import can_inject_exactly, constants
from alignez_edge.interventions.intervention import Intervention, Share
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.interventions.tensors import add_integers, tensor_of
from alignez_edge.interventions.ways import Way

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Edits
    from alignez_edge.runtime.weights import Adapter, Weights

MAX_RANK = 64  # of a layer's exact edit


@dataclass(frozen=True, eq=False)
class ExactForm(Intervention):
    """What is injected in place of the control vector where a model can be edited exactly.

    `deciding` and `answer` are edits of the MLP's output in the pass of the last prompt
    token and in those after it; `unit` is the calibrated scale, as a profile's: strength `s` edits
    with `s * unit`. Raises `ValueError` for a unit out of range.
    """

    can_mix = True

    deciding: Edit
    answer: Edit
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.unit) or self.unit <= 0:
            raise ValueError(f"the calibrated scale must be a positive number, not {self.unit}")

    @property
    def edits(self) -> dict[str, Edit]:
        """The two edits by position."""
        return {"deciding": self.deciding, "answer": self.answer}

    @cached_property
    def digest(self) -> str:
        """See `Intervention`."""
        return repr(self.unit) + "".join(edit.digest for edit in self.edits.values())

    def describe(self) -> str:
        """See `Intervention`."""
        return "an exact edit or its mean, a control vector"

    @property
    def exact_unit(self) -> float:
        """See `Intervention`."""
        return self.unit

    def with_exact_unit(self, unit: float | None) -> ExactForm | None:
        """See `Intervention`."""
        return None if unit is None else replace(self, unit=unit)

    def check(self, vector: ControlVector, layers: tuple[int, ...]) -> None:
        """See `Intervention`."""
        for edit in self.edits.values():
            if not set(edit.layers) <= {0, *layers}:
                raise ValueError(
                    f"the exact form edits layers {sorted(edit.layers)}, the profile names {layers}"
                )
            if any(x.n_embd != vector.n_embd for x in edit.layers.values()):
                raise ValueError("the exact form is of another hidden size than the vector")

    def reason_against(self, model: Weights) -> str | None:
        """See `Intervention`."""
        for edit in self.edits.values():
            reason = can_inject_exactly(model.gguf, edit.layers)
            if reason is not None:
                return reason
            constants(model.gguf, edit)
        return None

    def share(self, model: Weights, vector: ControlVector, way: Way, scale: float) -> Share:
        """See `Intervention`."""
        if way == "control-vector":
            return Share.of_vector(vector, scale)
        return share_of_edits(
            model, self.edits, way, scale, lambda position: prepared(model, self.edits[position])
        )

    def write(self, writer: Any) -> None:
        """Keys `profile.exact.*`, tensors `exact.<position>.<l>.<part>`."""
        writer.add_float64("profile.exact.unit", self.unit)
        for position, edit in self.edits.items():
            if edit.layers:
                add_integers(writer, f"profile.exact.{position}.layers", edit.layers)
            for layer, own in edit.layers.items():
                name = f"exact.{position}.{layer}"
                if own.rank:
                    writer.add_tensor(f"{name}.outward", np.ascontiguousarray(own.outward.T))
                    writer.add_tensor(f"{name}.inward", own.inward)
                writer.add_tensor(f"{name}.constant", own.constant)

    @classmethod
    def read(cls, file: GGUFFile, keys: Keys, n_layer: int, n_embd: int) -> ExactForm | None:
        """See `Intervention`."""
        if "profile.exact.unit" not in keys:
            return None
        edits = []
        for position in POSITIONS:
            key = f"profile.exact.{position}.layers"
            layers = keys.integers(key) if key in keys else []
            if layers != sorted(set(layers)) or any(not 0 <= layer < n_layer for layer in layers):
                raise ValueError(f"{key} are no layers: {layers[:8]}")
            names = {layer: f"exact.{position}.{layer}" for layer in layers}
            edits.append(Edit({i: _layer_edit(file, name, n_embd) for i, name in names.items()}))
        return cls(edits[0], edits[1], keys.real("profile.exact.unit"))

    @classmethod
    def mixed(cls, terms: Sequence[tuple[ExactForm, float]]) -> ExactForm:
        """See `Intervention`; raises `BadInputError` if the sum is too large for a profile."""
        sums = []
        for position in POSITIONS:
            total = Edit({})
            for form, scale in terms:
                total = total + form.edits[position] * scale
            rank = max((edit.rank for edit in total.layers.values()), default=0)
            if rank > MAX_RANK:
                raise BadInputError(
                    f"the exact edits of the mix have rank {rank},"
                    f" of at most {MAX_RANK} in a profile",
                    "mix fewer profiles, or leave out mixes among them",
                )
            sums.append(total)
        return cls(sums[0], sums[1])


def share_of_edits(
    model: Weights,
    edits: Mapping[str, Edit],
    way: Way,
    scale: float,
    adapted: Callable[[str], tuple[Adapter, FloatArray]],
) -> Share:
    """What edits of MLP outputs, by position, add to `model`, `exact` or by the `reference`.

    `adapted` gives the adapter of the edit at a position, and its constants.
    """
    nothing = np.zeros((model.n_layer, model.n_embd))
    rows: list[DoubleArray] = []
    made: list[Edits] = []
    for position, edit in edits.items():
        if way == "reference":
            # The edit as it stands: the callback adds its constants where they belong.
            rows.append(nothing)
            made.append(((edit, scale),))
        elif edit.is_zero() or not scale:
            rows.append(nothing)
            made.append(())
        else:
            adapter, added = adapted(position)
            rows.append(scale * added.astype(np.float64))
            made.append(((adapter, scale),))
    return Share(rows[0], rows[1], made[0], made[1])


def _layer_edit(file: GGUFFile, name: str, n_embd: int) -> LayerEdit:
    rank = 0
    if f"{name}.inward" in file.tensors:
        shape = file.tensors[f"{name}.inward"].shape
        rank = shape[1] if len(shape) == 2 else 1
    elif f"{name}.outward" in file.tensors:
        raise ValueError(f"the tensor {name}.inward is missing")
    if rank > MAX_RANK:
        raise ValueError(f"{name} has rank {rank}, more than {MAX_RANK}")
    factors: list[FloatArray] = [
        tensor_of(file, f"{name}.{part}", (rank, n_embd))
        if rank
        else np.zeros((0, n_embd), np.float32)
        for part in ("outward", "inward")
    ]
    return LayerEdit(factors[0].T, factors[1], tensor_of(file, f"{name}.constant", (n_embd,)))
