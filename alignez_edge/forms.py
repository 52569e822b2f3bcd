"""The exact form of a profile: the papers' edit of MLP outputs itself, not its mean over tokens.

NumPy in, NumPy out; `exact.py` makes the adapter of a model from it, `inject.py` takes it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignez_edge.edits import Edit, LayerEdit
from alignez_edge.embeddings import POSITIONS, HiddenStates
from alignez_edge.subspace import first_direction


@dataclass(frozen=True, eq=False)
class ExactForm:
    """What is injected in place of the control vector where a model can be edited exactly.

    `deciding` and `answer` are linear edits of the MLP's output in the pass of the last prompt
    token and in those after it; `unit` is the calibrated scale, as a profile's: strength `s` edits
    with `s * unit`. Raises `ValueError` for edits with an activation and a unit out of range.
    """

    deciding: Edit
    answer: Edit
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not (self.deciding.is_linear() and self.answer.is_linear()):
            raise ValueError("an exact form has no activation")
        if not np.isfinite(self.unit) or self.unit <= 0:
            raise ValueError(f"the calibrated scale must be a positive number, not {self.unit}")

    @property
    def edits(self) -> dict[str, Edit]:
        """The two edits by position."""
        return {"deciding": self.deciding, "answer": self.answer}


def swap(mlp: HiddenStates, rows: Sequence[int], layers: Sequence[int]) -> ExactForm:
    """Version 1 of the papers (000, section 2.3) in `layers`: harm removed, help doubled.

    `mlp` are the MLP outputs of the pairs, of which `rows` are used.
    """
    edits = []
    for position in POSITIONS:
        found = {}
        for layer in layers:
            sides = mlp.layer(layer, position, rows)
            found[layer] = LayerEdit.swap(
                first_direction(sides.chosen), first_direction(sides.rejected)
            )
        edits.append(Edit(found))
    return ExactForm(edits[0], edits[1])
