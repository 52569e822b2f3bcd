"""The exact form of a profile: an edit of MLP outputs itself, not its mean over tokens.

NumPy in, NumPy out; `exact.py` makes the adapter of a model from it, `inject.py` takes it there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignez_edge.interventions.mlp_edit import Edit


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
