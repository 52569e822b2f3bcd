"""Which cells of a shared cache are held, when sequences share their beginnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class Cells:
    """A mirror of the cells of one cache: each is held by any number of sequences, or free. `held`
    are the cells of sequences that are there already.

    The numbers are this class' own; only how many are held is what llama.cpp sees, too.
    """

    def __init__(self, n_cells: int, held: Iterable[Sequence[int]] = ()) -> None:
        self._holders = np.zeros(n_cells, np.int32)
        for cells in held:
            self.hold(cells)
        self._free = np.flatnonzero(self._holders == 0).tolist()

    @property
    def n_free(self) -> int:
        """Cells that nobody holds."""
        return len(self._free)

    def take(self, n: int) -> list[int]:
        """`n` free cells, held once from now on. Raises `ValueError` if there are fewer."""
        if n > len(self._free):
            raise ValueError(f"{n} cells are wanted, {len(self._free)} are free")
        found = self._free[len(self._free) - n :]
        del self._free[len(self._free) - n :]
        self._holders[found] = 1
        return found

    def hold(self, cells: Sequence[int]) -> None:
        """One sequence more has these cells, each named once."""
        self._holders[list(cells)] += 1

    def drop(self, cells: Sequence[int]) -> None:
        """One sequence fewer has these cells, each named once."""
        left = self._holders[list(cells)] - 1
        self._holders[list(cells)] = left
        self._free += [cell for cell, n in zip(cells, left.tolist(), strict=True) if not n]
