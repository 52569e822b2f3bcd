"""The sequences of one cache: what each holds, what they share, and who may come in.

A slot's plain states outlive the request that made them: the next prompt that begins alike takes
them over, from an idle slot or from a running one, without computing them. Recurrent models have
one running state in place of cells; of theirs only a whole sequence can be taken over.

Memory is flat: a request comes in only if the cells for its prompt and its longest answer are
there, beside what all running ones may still take. Idle slots give theirs back when somebody needs
them, the one that was used longest ago first, and keep at most `keep` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignez_edge.runtime.cells import Cells
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.prefix import common_prefix


class Slot:
    """One sequence. `tokens` are those in the cache, the first `n_plain` of them computed without
    steering; `cells` are theirs. `need` is what its request may take in all; 0 where it is idle.
    """

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.tokens: list[int] = []
        self.cells: list[int] = []
        self.n_plain = 0
        self.need = 0
        self.used_at = 0

    @property
    def idle(self) -> bool:
        return self.need == 0


class Slots:
    """All slots of a context."""

    def __init__(self, context: Context, n_slots: int, keep: int) -> None:
        self._context = context
        self._keep = keep
        self._cells = Cells(context.n_ctx)
        self._slots = [Slot(sequence) for sequence in range(n_slots)]
        self._clock = 0
        self._spoilt = False

    def enter(self, body: list[int], need: int) -> Slot | None:
        """A slot for a prompt that takes up to `need` cells with its answer; None: not now.

        It holds what was there already of the prompt's `body`, all its tokens but the last.
        """
        idle = [slot for slot in self._slots if slot.idle]
        if not idle or not self._clean():
            return None
        source, common = self._source(body)
        slot = self._target(idle, source, common)
        self.cut(slot, common if slot is source else 0)
        others = [other for other in idle if other is not slot and other is not source]
        for other in sorted(others, key=lambda other: other.used_at):
            if self._has_room(need - common):
                break
            self.cut(other, 0)
        if not self._has_room(need - common) and source is not None and source.idle:
            slot = source  # what it holds beyond is in the way
            self.cut(slot, common)
        if not self._has_room(need - common):
            return None
        slot.need = need
        if source is not None and slot is not source:
            self.share(source, slot, common)
        return slot

    def share(self, source: Slot, target: Slot, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`, which must be plain there."""
        begin = len(target.tokens)
        if length <= begin or self._context.recurrent:
            return
        self._context.share(source.sequence, target.sequence, begin, length)
        cells = source.cells[begin:length]
        self._cells.hold(cells)
        target.cells += cells
        target.tokens += source.tokens[begin:length]
        target.n_plain = length

    def extend(self, slot: Slot, tokens: Sequence[int], plain: bool) -> None:
        """A pass has computed `tokens` after those of the slot."""
        if plain and slot.n_plain == len(slot.tokens):
            slot.n_plain += len(tokens)
        slot.cells += self._cells.take(len(tokens))
        slot.tokens += tokens

    def cut(self, slot: Slot, length: int) -> None:
        """Keep the first `length` tokens of a slot, none where the model cannot forget in part."""
        length = self._forget(slot, length)
        self._cells.drop(slot.cells[length:])
        del slot.cells[length:], slot.tokens[length:]
        slot.n_plain = min(slot.n_plain, length)

    def leave(self, slot: Slot, spoilt: bool = False) -> None:
        """A request has ended: what is plain stays, as far as it may. `spoilt`: it has left in its
        cells what is no number."""
        self._clock += 1
        self._spoilt = self._spoilt or spoilt
        slot.need, slot.used_at = 0, self._clock
        self.cut(slot, slot.n_plain)
        kept = 0
        for other in sorted(self._slots, key=lambda other: -other.used_at):
            if other.idle:
                kept += len(other.tokens)
                if kept > self._keep and other.tokens:
                    kept -= len(other.tokens)
                    self.cut(other, 0)

    def complete(self, slot: Slot, body: list[int]) -> None:
        """Let a slot that holds the beginning of a body hold what others hold of it, too."""
        source, common = self._source(body)
        if source is not None and source is not slot:
            self.share(source, slot, common)

    def mend(self, running: list[Slot]) -> None:
        """After an interrupt anywhere in here: what is recorded of every slot is there, and nothing
        else; all slots but the running ones are idle."""
        for slot in self._slots:
            length = self._forget(slot, min(len(slot.tokens), len(slot.cells)))
            del slot.cells[length:], slot.tokens[length:]
            slot.n_plain = min(slot.n_plain, length)
        self._cells = Cells(self._context.n_ctx, [slot.cells for slot in self._slots])
        for slot in self._slots:
            if slot not in running:
                slot.need = 0
                self.cut(slot, slot.n_plain)

    def _clean(self) -> bool:
        """Whether the cells hold nothing but numbers. One that is none spoils every row that looks
        at all cells, masked or not, so nobody comes in until all have ended: then they are wiped.
        """
        if self._spoilt and all(slot.idle for slot in self._slots):
            for slot in self._slots:
                self.cut(slot, 0)
            self._context.clear(wipe=True)
            self._spoilt = False
        return not self._spoilt

    def _forget(self, slot: Slot, length: int) -> int:
        """Have llama.cpp keep the first `length` tokens of a slot; how many it could keep."""
        if self._context.remove(slot.sequence, length) or not length:
            return length
        self._context.remove(slot.sequence)
        return 0

    def _source(self, body: list[int]) -> tuple[Slot | None, int]:
        """The slot that holds most of a body in plain states, and how many tokens."""
        best, most = None, 0
        for slot in self._slots:
            common = common_prefix(slot.tokens[: slot.n_plain], body)
            if self._context.recurrent and (not slot.idle or common < len(slot.tokens)):
                continue
            if common > most:
                best, most = slot, common
        return best, most

    def _target(self, idle: list[Slot], source: Slot | None, common: int) -> Slot:
        """The idle slot that a prompt gets: the source itself where it loses little by that."""
        if source is not None and source.idle:
            if len(idle) == 1 or self._context.recurrent or 2 * common >= len(source.tokens):
                return source
            idle = [slot for slot in idle if slot is not source]
        return min(idle, key=lambda slot: (bool(slot.tokens), slot.used_at))

    def _has_room(self, n_cells: int) -> bool:
        """Whether so many cells are free beside what the running requests may still take."""
        spoken_for = sum(slot.need - len(slot.cells) for slot in self._slots if not slot.idle)
        return self._cells.n_free >= n_cells + spoken_for
