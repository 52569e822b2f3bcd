"""Which cells of a shared cache are held, when sequences share their beginnings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Cells:
    """A mirror of the cells of one cache: each is held by any number of sequences, or free.

    The numbers are this class' own; only how many are held is what llama.cpp sees, too.
    """

    def __init__(self, n_cells: int) -> None:
        self._holders = np.zeros(n_cells, np.int32)

    @property
    def n_free(self) -> int:
        """Cells that nobody holds."""
        return int(np.count_nonzero(self._holders == 0))

    def take(self, n: int) -> list[int]:
        """`n` free cells, held once from now on. Raises `ValueError` where there are fewer."""
        found = np.flatnonzero(self._holders == 0)[:n]
        if len(found) < n:
            raise ValueError(f"{n} cells are wanted, {len(found)} are free")
        self._holders[found] = 1
        return found.tolist()

    def hold(self, cells: Sequence[int]) -> None:
        """One sequence more has these cells, each named once."""
        self._holders[list(cells)] += 1

    def drop(self, cells: Sequence[int]) -> None:
        """One sequence fewer has these cells, each named once."""
        self._holders[list(cells)] -= 1
