"""From hidden states to a control vector: the seam behind which methods differ.

A method turns one layer's two sides, `(n_pairs, n_embd)` each, into a direction and a displacement;
everything after that is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from alignez_edge.embeddings import POSITIONS, HiddenStates
from alignez_edge.layers import choose_layers, interlayer_cosine
from alignez_edge.subspace import (
    difference_subspace,
    first_direction,
    separation,
    version_1_edit,
)
from alignez_edge.vectors import ControlVector

FloatArray = npt.NDArray[np.floating]
Estimator = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]
"""(chosen, rejected) of one layer and position -> (direction, displacement), `(n_embd,)` each."""

TensorName = Literal["l_out", "ffn_out"]
RANK = 1
DECIDING_GAIN, ANSWER_GAIN = 1.5, 0.8
"""Natural lengths that strength 1 adds at the deciding token and at each later one. The first is
one token of the answer's price and decides most of its style (docs/method.md, section 4)."""


@dataclass(frozen=True)
class Fit:
    """A control vector at natural length, and what the layers were chosen by.

    `separation` (d' at the deciding token) and `interlayer` (mean cosine of the layer's direction
    with the others') are `(n_layer,)`.
    """

    vector: ControlVector
    layers: tuple[int, ...]
    separation: FloatArray
    interlayer: FloatArray


def tensor_of(method: str) -> TensorName:
    """The tensor that a method reads: the MLP's output for the papers' edit, else the residual."""
    return "ffn_out" if method == "alignez-v1" else "l_out"


def fit(
    states: HiddenStates,
    rows: Sequence[int],
    method: str,
    layers: Sequence[int] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Fit:
    """Directions, layers and control vector from the pairs `rows`; one layer in memory at a time.

    Raises `ValueError` for layers that the model does not have.
    """
    n_layer, n_embd = states.shape
    estimate = _ESTIMATORS[method]
    displaced = {position: np.zeros((n_layer, n_embd)) for position in POSITIONS}
    directions = np.zeros((n_layer, n_embd))
    apart = np.zeros(n_layer)
    for layer in range(n_layer):
        on_progress("subspace", layer, n_layer)
        for position in POSITIONS:
            sides = states.layer(layer, position, rows)
            direction, displaced[position][layer] = estimate(sides.chosen, sides.rejected)
            if position == "deciding":
                directions[layer] = direction
                apart[layer] = separation(sides.chosen, sides.rejected)
    on_progress("subspace", n_layer, n_layer)
    agreement = interlayer_cosine(directions)
    chosen = tuple(sorted(layers)) if layers is not None else choose_layers(apart, agreement)
    deciding, answer = (displaced[position] for position in POSITIONS)
    if tensor_of(method) == "l_out":
        vector = ControlVector.from_displacements(deciding, answer, chosen)
    else:
        # An MLP's own output is no running sum: every layer gets its own displacement whole.
        deciding[0] = answer[0] = 0
        vector = ControlVector(deciding.astype(np.float32), answer.astype(np.float32)).restrict(
            chosen
        )
    vector = ControlVector(
        vector.deciding * np.float32(DECIDING_GAIN), vector.answer * np.float32(ANSWER_GAIN)
    )
    return Fit(vector, chosen, apart, agreement)


def _alignez(chosen: FloatArray, rejected: FloatArray) -> tuple[FloatArray, FloatArray]:
    found = difference_subspace(chosen, rejected, RANK)
    return found.directions[0], found.displacement()


def _alignez_v1(chosen: FloatArray, rejected: FloatArray) -> tuple[FloatArray, FloatArray]:
    help_, harm = first_direction(chosen), first_direction(rejected)
    middle = (np.mean(chosen, axis=0, dtype=np.float64) + np.mean(rejected, axis=0)) / 2
    return help_, version_1_edit(middle, help_, harm)


def _mean(chosen: FloatArray, rejected: FloatArray) -> tuple[FloatArray, FloatArray]:
    shift = np.mean(np.asarray(chosen, np.float64) - rejected, axis=0)
    length = np.linalg.norm(shift)
    return (shift / length if length else shift), shift


_ESTIMATORS: dict[str, Estimator] = {
    "alignez": _alignez,
    "alignez-v1": _alignez_v1,
    "mean": _mean,
}
