"""The seam behind which methods differ: what one reads of the pairs, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.hidden_states import HiddenStates, Tensor
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.intervention import Intervention
from alignez_edge.preferences.pairs import PreferencePair

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

Progress = Callable[[str, int, int], None]
"""Told of a step's name, how much of it is done, and of how much."""


@dataclass(frozen=True, eq=False)
class Material:
    """What a build has for a method.

    The directions come from the pairs `rows` alone; the others are held back. `states` are those of
    all pairs at the tensor that the method reads, None if it reads none. `layers` are those to
    edit where the user named some. `n_ctx` is the window, by default as for a `Session`.
    """

    model: Model
    pairs: Sequence[PreferencePair]
    rows: Sequence[int]
    states: HiddenStates | None
    layers: Sequence[int] | None
    seed: int
    n_ctx: int | None
    progress: Progress


@dataclass(frozen=True, eq=False)
class Finding:
    """What a method found, as a raw difference, and what the layers were chosen by.

    `intervention` is what the vector is only the mean of, or what is injected in its place; None
    if the vector is all of it. `separation` (d' at the last prompt token) and `interlayer` (mean
    cosine of the layer's direction with the others') are `(n_layer,)`, empty for a method that
    chooses no layers.
    """

    vector: ControlVector
    layers: tuple[int, ...] = ()
    intervention: Intervention | None = None
    separation: AnyFloatArray = field(default_factory=lambda: np.zeros(0))
    interlayer: AnyFloatArray = field(default_factory=lambda: np.zeros(0))


class Method(Protocol):
    """A way from pairs to an intervention: the `METHOD` of a file here, named in `table.py`."""

    def reads(self, model: Model) -> Tensor | None:
        """What it reads of the pairs; None if that is no layer's state.

        Raises `BadInputError` if the method cannot be used on this model.
        """

    def find(self, material: Material) -> Finding:
        """What it makes of the pairs; raises `ValueError` for layers that are not there."""
