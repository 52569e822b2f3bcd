"""The intervention of a query-conditioned profile: vector and edit are made anew for every query,
from the pairs nearest to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray
from alignez_edge.directions.hidden_states import POSITIONS, SIDES
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.untrusted import Keys
from alignez_edge.interventions.bank import MOST_PAIRS, TENSORS, Bank
from alignez_edge.interventions.bank_products import BankProduct, not_by_query
from alignez_edge.interventions.by_query import QueryEdit, Recipe, condition
from alignez_edge.interventions.control_vector import ControlVector, check_layers
from alignez_edge.interventions.exact import can_inject_exactly
from alignez_edge.interventions.exact_form import share_of_edits
from alignez_edge.interventions.intervention import Intervention, Share
from alignez_edge.interventions.tensors import MAX_CELLS, add_integers, check_tensor, tensor_of
from alignez_edge.interventions.ways import Way

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Adapter, Weights

_KINDS = (*(f"{position}.{side}" for position in POSITIONS for side in SIDES), "query")


@dataclass(frozen=True, eq=False)
class Neighborhood(Intervention):
    """The pairs that a profile remembers, and how a turn is made of those nearest to the query.

    `unit` is the calibrated scale of a turn's exact edit, as a profile's unit is of its control
    vector; None if the method is a displacement, which a control vector holds whole, or if
    the model allows no exact edit. Raises `ValueError` if these contradict each other.
    """

    lost_in_mix = "looks at each query; the mix has its control vector for all queries"
    lost_in_export = "what it would make of each query is lost: this is made of all its pairs"
    no_lora = "is made anew for each query"

    bank: Bank
    recipe: Recipe
    unit: float | None = None

    def __post_init__(self) -> None:
        layers = self.recipe.layers
        if layers is not None and not (layers and set(layers) <= set(self.bank.layers)):
            raise ValueError(f"the bank holds the layers {self.bank.layers}, not all of {layers}")
        if self.unit is not None:
            if self.bank.tensor != "ffn_out":
                raise ValueError(f"states of {self.bank.tensor} make no exact edit")
            if not np.isfinite(self.unit) or self.unit <= 0:
                raise ValueError(f"the calibrated scale must be positive, not {self.unit}")

    @cached_property
    def digest(self) -> str:
        """See `Intervention`."""
        # Mixes keep digests of their parts, so they must stay what they were; `n_layers` went.
        recipe = repr(self.recipe).replace(", rank=", ", n_layers=None, rank=")
        return f"{self.bank.digest} {recipe} {self.unit!r}"

    def describe(self) -> str:
        """See `Intervention`."""
        n_pairs = self.bank.n_pairs
        count = min(self.recipe.k, n_pairs)
        what = "a control vector"
        if self.unit is not None:
            what = f"an exact edit or its mean, {what}"
        return f"{what}, made anew for each query from the {count} nearest of {n_pairs} pairs"

    @property
    def exact_unit(self) -> float | None:
        """See `Intervention`."""
        return self.unit

    def with_exact_unit(self, unit: float | None) -> Neighborhood:
        """See `Intervention`."""
        return replace(self, unit=unit)

    def check(self, vector: ControlVector, layers: tuple[int, ...]) -> None:
        """See `Intervention`."""
        bank = self.bank
        if bank.n_embd != vector.n_embd or not set(bank.layers) <= set(layers):
            raise ValueError(
                f"a bank of the layers {bank.layers} with {bank.n_embd} dimensions in a profile of "
                f"{layers} with {vector.n_embd}"
            )

    def turn(self, states: npt.NDArray[np.floating]) -> QueryEdit:
        """See `condition`."""
        return condition(self.bank, states, self.recipe)

    def reason_against(self, model: Weights) -> str | None:
        """See `Intervention`."""
        layers = self.bank.layers
        return can_inject_exactly(model.gguf, layers) or not_by_query(model.gguf, layers)

    def share(
        self, model: Weights, vector: ControlVector, way: Way, scale: float
    ) -> NeighborhoodShare:
        """See `Intervention`."""
        return NeighborhoodShare(self, model, way, scale)

    def write(self, writer: Any) -> None:
        """Keys `profile.neighbors.*`, tensors `bank.*`."""
        recipe, arrays = self.recipe, self.bank.to_arrays()
        if recipe.layers is not None:
            raise ValueError("a profile file keeps no recipe that leaves out layers of its bank")
        writer.add_string("profile.neighbors.method", recipe.method)
        writer.add_uint32("profile.neighbors.k", recipe.k)
        writer.add_uint32("profile.neighbors.rank", recipe.rank)
        writer.add_bool("profile.neighbors.opposed", recipe.opposed)
        if self.unit is not None:
            writer.add_float64("profile.neighbors.exact_unit", self.unit)
        writer.add_string("profile.bank.tensor", self.bank.tensor)
        add_integers(writer, "profile.bank.layers", self.bank.layers)
        for name in ("scales", *_KINDS):
            writer.add_tensor(f"bank.{name}", np.ascontiguousarray(arrays[name]))

    @classmethod
    def read(cls, file: GGUFFile, keys: Keys, n_layer: int, n_embd: int) -> Neighborhood | None:
        """See `Intervention`."""
        if "profile.neighbors.k" not in keys:
            return None
        tensor = keys.text("profile.bank.tensor")
        if tensor not in TENSORS:
            raise ValueError(f"profile.bank.tensor is {tensor!r}, not {' or '.join(TENSORS)}")
        layers = check_layers(keys.integers("profile.bank.layers"), n_layer)
        shape = file.tensors["bank.query"].shape if "bank.query" in file.tensors else ()
        n_pairs = shape[1] if len(shape) > 1 else 0
        if not 0 < n_pairs <= MOST_PAIRS or 5 * len(layers) * n_pairs * n_embd > MAX_CELLS:
            raise ValueError(f"the tensor bank.query of shape {shape} is missing or too large")
        arrays: dict[str, npt.NDArray[Any]] = {
            "layers": np.array(layers),
            "scales": tensor_of(file, "bank.scales", (len(layers), len(_KINDS))),
        }
        for kind in _KINDS:
            wanted = (len(layers), n_pairs, n_embd)
            check_tensor(file, f"bank.{kind}", wanted, "F16")
            arrays[kind] = file.half(f"bank.{kind}").reshape(wanted)
        recipe = Recipe(
            keys.text("profile.neighbors.method"),  # type: ignore[arg-type]
            keys.number("profile.neighbors.k"),
            rank=keys.number("profile.neighbors.rank"),
            opposed=keys.flag("profile.neighbors.opposed"),
        )
        if max(recipe.k, recipe.rank) > MOST_PAIRS:
            raise ValueError(f"a turn of {recipe.k} pairs and {recipe.rank} directions")
        unit = "profile.neighbors.exact_unit"
        exact_unit = keys.real(unit) if unit in keys else None
        return cls(Bank.from_arrays(arrays, tensor), recipe, exact_unit)


@dataclass(frozen=True, eq=False)
class NeighborhoodShare:
    """What a neighborhood adds to one model: a `ShareByQuery`."""

    near: Neighborhood
    model: Weights
    way: Way
    scale: float

    @property
    def tensor(self) -> Literal["l_out", "ffn_out"]:
        """See `ShareByQuery`."""
        return self.near.bank.tensor  # type: ignore[return-value]

    @property
    def layers(self) -> tuple[int, ...]:
        """See `ShareByQuery`."""
        return self.near.bank.layers

    def at(self, states: FloatArray) -> Share:
        """See `ShareByQuery`."""
        turn = self.near.turn(states)
        if self.way == "control-vector":
            return Share.of_vector(turn.vector(self.model.n_layer), self.scale)
        edits = {position: turn.edit(position) for position in POSITIONS}
        return share_of_edits(
            self.model, edits, self.way, self.scale, lambda position: self._adapted(turn, position)
        )

    def _adapted(self, turn: QueryEdit, position: str) -> tuple[Adapter, FloatArray]:
        """The adapter of a turn's edit and its constants, out of a product that is kept."""
        from alignez_edge.runtime.weights import Adapter

        model, bank = self.model, self.near.bank
        if bank.digest not in model.kept:
            model.kept[bank.digest] = BankProduct.of(bank, model.gguf, model.lora)
        found = model.kept[bank.digest].exact_edit(turn, position)
        return Adapter(model, found.adapter), found.constants
