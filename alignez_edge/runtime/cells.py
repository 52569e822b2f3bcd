"""How many cells of a shared cache are spoken for, when sequences share their beginnings.

Sequences stand in the order in which they came in. Each reserves what it needs less what it shares
with the one before it, because those cells are there already. When a sequence leaves, the next one
shares with the one before both what all three shared; the rest of the cells becomes its own. A
cell is counted at least once as long as somebody has it, so what is free is truly free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class _Held:
    sequence: int
    need: int
    shared: int

    @property
    def own(self) -> int:
        return self.need - self.shared


class Cells:
    """`free` cells, and the sequences that hold the others."""

    def __init__(self, free: int) -> None:
        self.free = free
        self._held: list[_Held] = []

    def copy(self) -> Cells:
        """The same reservations, to try something on."""
        other = Cells(self.free)
        other._held = list(self._held)
        return other

    def enter(self, sequence: int, need: int, shared: int, after: int | None = None) -> None:
        """Reserve `need` cells, the first `shared` of which are those of the sequence before.

        That is the last one, or `after`. `free` may become negative: who enters looks before.
        """
        at = len(self._held) if after is None else self._index(after) + 1
        self._held.insert(at, _Held(sequence, need, shared if at else 0))
        self.free -= self._held[at].own

    def leave(self, sequence: int) -> None:
        """Give back what nobody else holds; `free` never shrinks."""
        at = self._index(sequence)
        gone = self._held.pop(at)
        self.free += gone.own
        if at < len(self._held):
            heir = self._held[at]
            self._held[at] = replace(heir, shared=min(heir.shared, gone.shared))
            self.free += heir.own - self._held[at].own

    def _index(self, sequence: int) -> int:
        return next(i for i, held in enumerate(self._held) if held.sequence == sequence)
