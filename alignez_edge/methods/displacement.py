"""Methods that displace layers: from the states of both sides to a control vector.

Such a method turns one layer's two sides, `(n_pairs, n_embd)` each, into a direction and a
displacement; it says where these are read and added, and how layers are chosen. Everything after
that is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import AnyFloatArray, TensorName
from alignez_edge.directions.hidden_states import HiddenStates, Tensor
from alignez_edge.directions.layers import choose_layers, interlayer_cosine
from alignez_edge.directions.subspace import separation
from alignez_edge.interventions.control_vector import ANSWER_GAIN, DECIDING_GAIN, ControlVector
from alignez_edge.methods.base import Finding, Material, Progress
from alignez_edge.methods.mlp_edits import LayerEditor, exact_form

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

Estimator = Callable[[AnyFloatArray, AnyFloatArray], tuple[AnyFloatArray, AnyFloatArray]]
"""(chosen, rejected) of one layer and position -> (direction, displacement), `(n_embd,)` each."""


@dataclass(frozen=True)
class Displacement:
    """How a control vector comes from the states of `tensor`.

    `read` names the positions whose displacements are added at the last prompt token and at later
    ones, `gains` their lengths. The residual stream hands on what was added below, so there every
    layer gets the increment only; an MLP's output is displaced whole. `choose` picks the layers
    from their separation and their agreement. `edit` is the method's own edit of MLP outputs where
    its displacement is only that edit's mean.
    """

    estimate: Estimator
    tensor: TensorName = "l_out"
    read: tuple[str, str] = ("deciding", "answer")
    gains: tuple[float, float] = (DECIDING_GAIN, ANSWER_GAIN)
    choose: Callable[[AnyFloatArray, AnyFloatArray], tuple[int, ...]] = choose_layers
    edit: LayerEditor | None = None

    def reads(self, model: Model) -> Tensor:
        """See `Method`."""
        return Tensor(self.tensor, model.n_embd)

    def find(self, material: Material) -> Finding:
        """See `Method`."""
        assert material.states is not None
        return self.fit(material.states, material.rows, material.layers, material.progress)

    def fit(
        self,
        states: HiddenStates,
        rows: Sequence[int],
        layers: Sequence[int] | None = None,
        on_progress: Progress = lambda *_: None,
    ) -> Finding:
        """Directions, layers and control vector from the pairs `rows`; one layer in memory at a
        time. Raises `ValueError` for layers that the model does not have."""
        n_layer, n_embd = states.shape
        displaced = {position: np.zeros((n_layer, n_embd)) for position in self.read}
        directions = np.zeros((n_layer, n_embd))
        apart = np.zeros(n_layer)
        for layer in range(n_layer):
            on_progress("subspace", layer, n_layer)
            for position in displaced:
                sides = states.layer(layer, position, rows)
                direction, displaced[position][layer] = self.estimate(sides.chosen, sides.rejected)
                if position == self.read[0]:
                    directions[layer] = direction
                    apart[layer] = separation(sides.chosen, sides.rejected)
        on_progress("subspace", n_layer, n_layer)
        agreement = interlayer_cosine(directions)
        chosen = tuple(sorted(layers)) if layers is not None else self.choose(apart, agreement)
        add = ControlVector.from_displacements if self.tensor == "l_out" else whole
        vector = add(displaced[self.read[0]], displaced[self.read[1]], chosen)
        deciding_gain, answer_gain = map(np.float32, self.gains)
        vector = ControlVector(vector.deciding * deciding_gain, vector.answer * answer_gain)
        exact = exact_form(states, rows, chosen, self.edit) if self.edit else None
        return Finding(vector, chosen, exact, separation=apart, interlayer=agreement)


def whole(deciding: AnyFloatArray, answer: AnyFloatArray, layers: Iterable[int]) -> ControlVector:
    """Each of `layers` gets its own displacement whole: outputs that are no running sums."""
    rows = deciding.astype(np.float32), answer.astype(np.float32)
    for row in rows:
        row[0] = 0  # nothing can be added there
    return ControlVector(*rows).restrict(layers)
