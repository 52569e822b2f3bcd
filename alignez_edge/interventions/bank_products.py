"""What makes a turn's exact adapter cheap: the bank's rows times the model's MLP matrices.

An edit's LoRA needs `V W` for the matrix `W` (`ffn_down`) and the edit's `inward` rows `V`
(`exact.py`). A query-conditioned `V` is made of the bank's rows, `V = C H`, so `V W = C (H W)`,
and `H W` is made once for a bank and a model and kept in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignez_edge.arrays import FloatArray, IntArray
from alignez_edge.directions.hidden_states import POSITIONS
from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.folders import cache_dir
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.text import printable
from alignez_edge.files.writing import make_folder, write_atomic
from alignez_edge.interventions.bank import Bank, packed, widened
from alignez_edge.interventions.by_query import QueryEdit
from alignez_edge.interventions.exact import ExactEdit, adapter_bytes, adapter_tensors, constants
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.modelfiles.fingerprint import identity
from alignez_edge.modelfiles.lora import Attached


@dataclass(frozen=True, eq=False)
class BankProduct:
    """`H W` of one bank and one model; opened as a map of its file, so that a turn reads only the
    rows of its neighbors.

    `cells` has a row per layer of the bank, with the fields `scales`, `(positions,)` float32, and
    `rows`, `(positions, sides * n_pairs, n_ff)` float16, the wanted sides first.
    """

    bank: Bank
    gguf: GGUFFile
    cells: np.ndarray

    @classmethod
    def of(
        cls,
        bank: Bank,
        gguf: GGUFFile,
        lora: Attached = (),
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> BankProduct:
        """The product of `bank` and the model `gguf` that carries `lora`, made where it is not yet
        there; `on_progress` is told of layers.

        Raises `BadInputError` for a model that cannot be edited exactly, or that has experts, and
        `AlignezError` if the file cannot be written.
        """
        folder = cache_dir() / "products"
        path = folder / f"{bank.digest[:32]}-{identity(gguf, lora)[:32]}.npy"
        kind = _cell(bank, _n_in(bank, gguf))
        cells = _open(path, kind, len(bank.layers))
        if cells is None:

            def write(temporary: Path) -> None:
                with temporary.open("wb") as file:
                    np.lib.format.write_array_header_1_0(
                        file,
                        {
                            "descr": np.lib.format.dtype_to_descr(kind),
                            "fortran_order": False,
                            "shape": (len(bank.layers),),
                        },
                    )
                    for i, layer in enumerate(bank.layers):
                        on_progress(i, len(bank.layers))
                        file.write(_made(bank, gguf, layer, lora, kind).tobytes())
                on_progress(len(bank.layers), len(bank.layers))

            make_folder(folder)
            write_atomic(path, write)
            cells = _open(path, kind, len(bank.layers))
            if cells is None:
                raise AlignezError(f"cannot read {printable(str(path))}, which was just written")
        return cls(bank, gguf, cells)

    def exact_edit(self, turn: QueryEdit, position: str) -> ExactEdit:
        """The adapter and the constants of a turn's edit at one position: what `exact.exact_edit`
        makes of `turn.edit(position)`, to the rounding of half precision.

        Raises `BadInputError` as that does, and `AlignezError` for a file that is damaged.
        """
        edit = turn.edit(position)
        pairs = [
            (_matrix(layer), self._times(coefficients, turn.rows, layer, position), own.outward)
            for (layer, coefficients), own in zip(
                turn.inward(position).items(), edit.layers.values(), strict=True
            )
        ]
        return ExactEdit(adapter_bytes(self.gguf, pairs), constants(self.gguf, edit))

    def _times(
        self, coefficients: FloatArray, rows: IntArray, layer: int, position: str
    ) -> FloatArray:
        """`coefficients @ H W` for the wanted and then the unwanted sides of `rows`."""
        cell = self.cells[self.bank.layers.index(layer)]
        p = POSITIONS.index(position)
        both = np.concatenate([rows, rows + self.bank.n_pairs])
        product = coefficients @ widened(cell["rows"][p, both])
        product *= cell["scales"][p]
        if not np.isfinite(product).all():
            raise AlignezError(
                "a product that was kept in the cache folder is damaged",
                f"remove {printable(str(cache_dir() / 'products'))}",
            )
        return np.asarray(product)


def _matrix(layer: int) -> str:
    return f"blk.{layer}.ffn_down.weight"


def _cell(bank: Bank, n_in: int) -> np.dtype:
    n_positions, n_sides, n_pairs = bank.pairs.shape[1:4]
    rows = (n_positions, n_sides * n_pairs, n_in)
    return np.dtype([("scales", "<f4", (n_positions,)), ("rows", "<f2", rows)])


def not_by_query(gguf: GGUFFile, layers: Sequence[int]) -> str | None:
    """Why no exact edit of `layers` can depend on the query; None if it can."""
    sizes = _sizes(gguf, layers)
    if len(sizes) > 1 or 0 in sizes:
        return (
            "exact edits that depend on the query need a model with one MLP a layer, all of a size"
        )
    return None


def _sizes(gguf: GGUFFile, layers: Sequence[int]) -> set[int]:
    """The sizes of the MLPs' hidden layers, 0 where a layer has no single one."""
    names = [_matrix(layer) for layer in layers]
    return {gguf.tensors[name].shape[0] if name in gguf.tensors else 0 for name in names}


def _n_in(bank: Bank, gguf: GGUFFile) -> int:
    """The size of the MLP's hidden layer. Raises `BadInputError` if layers have none or differ
    in it."""
    reason = not_by_query(gguf, bank.layers)
    if reason is not None:
        raise BadInputError(reason, "use control vectors (--inject control-vector)")
    return _sizes(gguf, bank.layers).pop()


def _open(path: Path, kind: np.dtype, n_layers: int) -> np.ndarray | None:
    """The array in the file; None if it is not there, not whole or of another shape."""
    try:
        cells = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    return cells if cells.dtype == kind and cells.shape == (n_layers,) else None


def _made(bank: Bank, gguf: GGUFFile, layer: int, lora: Attached, kind: np.dtype) -> np.ndarray:
    """One layer's cell."""
    sides = bank.take(np.arange(bank.n_pairs), [layer])[0]
    rows = sides.reshape(-1, bank.n_embd)
    # An edit with these rows going in has their product with the matrix as its adapter's A, up to
    # the sizes that its B was given.
    edit = LayerEdit(np.ones(rows.shape[::-1], np.float32), rows, np.zeros(bank.n_embd, np.float32))
    ((_, a, b),) = adapter_tensors(gguf, Edit({layer: edit}), lora)
    product = (a * b[0][:, None]).reshape(len(POSITIONS), -1, a.shape[1])
    cell = np.zeros((), kind)
    for p, part in enumerate(product):
        cell["rows"][p], cell["scales"][p] = packed(part)
    return cell
