"""The larger parts of a profile file, each written and read: exact form, bank, value function.

Reading raises `ValueError`, `TypeError` or `BadInputError` on anything that is not as it was
written; `file.py` makes one line of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray
from alignez_edge.directions.hidden_states import POSITIONS, SIDES
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.untrusted import Keys
from alignez_edge.interventions.bank import MOST_PAIRS, TENSORS, Bank
from alignez_edge.interventions.by_query import Neighbourhood, Recipe
from alignez_edge.interventions.control_vector import check_layers
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.interventions.value_function import ReControl, ValueFunction

MAX_RANK = 64  # of a layer's exact edit
MAX_CELLS = 1 << 30  # numbers of a bank or of a value function
MAX_STEPS = 64
_BANK_KINDS = (*(f"{position}.{side}" for position in POSITIONS for side in SIDES), "query")
_VALUE_SIZES = ("n_steps", "top")


def add_exact(writer: Any, form: ExactForm) -> None:
    """Keys `profile.exact.*`, tensors `exact.<position>.<l>.<part>`."""
    writer.add_float64("profile.exact.unit", form.unit)
    for position, edit in form.edits.items():
        if edit.layers:
            add_integers(writer, f"profile.exact.{position}.layers", edit.layers)
        for layer, own in edit.layers.items():
            name = f"exact.{position}.{layer}"
            if own.rank:
                writer.add_tensor(f"{name}.outward", np.ascontiguousarray(own.outward.T))
                writer.add_tensor(f"{name}.inward", own.inward)
            writer.add_tensor(f"{name}.constant", own.constant)


def exact_of(file: GGUFFile, keys: Keys, n_layer: int, n_embd: int) -> ExactForm | None:
    """What `add_exact` wrote; None where the file has none."""
    if "profile.exact.unit" not in keys:
        return None
    edits = []
    for position in POSITIONS:
        key = f"profile.exact.{position}.layers"
        layers = keys.integers(key) if key in keys else []
        if layers != sorted(set(layers)) or any(not 0 <= layer < n_layer for layer in layers):
            raise ValueError(f"{key} are no layers: {layers[:8]}")
        edits.append(Edit({i: _layer_edit(file, f"exact.{position}.{i}", n_embd) for i in layers}))
    return ExactForm(edits[0], edits[1], keys.real("profile.exact.unit"))


def add_neighbours(writer: Any, neighbours: Neighbourhood) -> None:
    """Keys `profile.neighbors.*`, tensors `bank.*`."""
    recipe, arrays = neighbours.recipe, neighbours.bank.to_arrays()
    if recipe.layers is not None or recipe.n_layers is not None:
        raise ValueError("a profile file keeps no recipe that leaves out layers of its bank")
    writer.add_string("profile.neighbors.method", recipe.method)
    writer.add_uint32("profile.neighbors.k", recipe.k)
    writer.add_uint32("profile.neighbors.rank", recipe.rank)
    writer.add_bool("profile.neighbors.opposed", recipe.opposed)
    if neighbours.exact_unit is not None:
        writer.add_float64("profile.neighbors.exact_unit", neighbours.exact_unit)
    writer.add_string("profile.bank.tensor", neighbours.bank.tensor)
    add_integers(writer, "profile.bank.layers", neighbours.bank.layers)
    for name in ("scales", *_BANK_KINDS):
        writer.add_tensor(f"bank.{name}", np.ascontiguousarray(arrays[name]))


def neighbours_of(file: GGUFFile, keys: Keys, n_layer: int, n_embd: int) -> Neighbourhood | None:
    """What `add_neighbours` wrote; None where the file has none."""
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
        "scales": tensor_of(file, "bank.scales", (len(layers), len(_BANK_KINDS))),
    }
    for kind in _BANK_KINDS:
        wanted = (len(layers), n_pairs, n_embd)
        _check_tensor(file, f"bank.{kind}", wanted, "F16")
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
    return Neighbourhood(Bank.from_arrays(arrays, tensor), recipe, exact_unit)


def add_value(writer: Any, steering: ReControl) -> None:
    """Keys `profile.value.*`, tensors `value.*`."""
    writer.add_float64("profile.value.size", steering.size)
    for key in _VALUE_SIZES:
        writer.add_uint32(f"profile.value.{key}", getattr(steering, key))
    for name, array in steering.value.to_arrays().items():
        writer.add_tensor(f"value.{name}", np.atleast_1d(array))


def value_of(file: GGUFFile, keys: Keys, n_embd: int) -> ReControl | None:
    """What `add_value` wrote; None where the file has none."""
    if "profile.value.size" not in keys:
        return None
    width = file.tensors["value.b1"].shape[0] if "value.b1" in file.tensors else 0
    if not 0 < width * (n_embd + width) <= MAX_CELLS:
        raise ValueError(f"a value function of width {width}")
    shapes = {
        "mean": (n_embd,), "scale": (n_embd,), "w1": (width, n_embd), "b1": (width,),
        "w2": (width, width), "b2": (width,), "w3": (width,), "b3": (1,),
    }  # fmt: skip
    arrays = {name: tensor_of(file, f"value.{name}", shape) for name, shape in shapes.items()}
    arrays["b3"] = arrays["b3"].reshape(())
    n_steps, top = (keys.number(f"profile.value.{key}") for key in _VALUE_SIZES)
    if n_steps > MAX_STEPS:
        raise ValueError(f"{n_steps} steps a token are more than {MAX_STEPS}")
    return ReControl(
        ValueFunction.from_arrays(arrays), keys.real("profile.value.size"), n_steps, top
    )


def tensor_of(file: GGUFFile, name: str, shape: tuple[int, ...]) -> FloatArray:
    """The float32 tensor `name`, which must have this NumPy `shape`.

    Leading axes of length 1 need not be in the file. Raises `ValueError` where it is another.
    """
    _check_tensor(file, name, shape, "F32")
    return np.asarray(file.tensor(name), np.float32).reshape(shape)


def _check_tensor(file: GGUFFile, name: str, shape: tuple[int, ...], kind: str) -> None:
    if name not in file.tensors:
        raise ValueError(f"the tensor {name} is missing")
    info = file.tensors[name]
    wanted = shape[::-1]
    if info.type != kind or _trimmed(info.shape) != _trimmed(wanted):
        raise ValueError(
            f"the tensor {name} is {info.type} of shape {info.shape}, not {kind} of {wanted}"
        )


def add_integers(writer: Any, key: str, values: Mapping[int, Any] | tuple[int, ...]) -> None:
    """A list of whole numbers."""
    import gguf

    kinds = gguf.GGUFValueType
    writer.add_key_value(key, list(values), kinds.ARRAY, kinds.UINT32)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the axes of length 1 at the end, which files may leave out."""
    kept = len(shape)
    while kept > 1 and shape[kept - 1] == 1:
        kept -= 1
    return tuple(shape[:kept])


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
