"""What a method is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alignez_edge.arrays import AnyFloatArray, TensorName
from alignez_edge.directions.layers import choose_layers
from alignez_edge.interventions.control_vector import ANSWER_GAIN, DECIDING_GAIN, ControlVector
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.methods.mlp_edits import LayerEditor

Estimator = Callable[[AnyFloatArray, AnyFloatArray], tuple[AnyFloatArray, AnyFloatArray]]
"""(chosen, rejected) of one layer and position -> (direction, displacement), `(n_embd,)` each."""
RANK = 1


@dataclass(frozen=True)
class Method:
    """How a control vector comes from the states of `tensor`.

    `read` names the positions whose displacements are added at the deciding token and at later
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


@dataclass(frozen=True)
class Fit:
    """A control vector at natural length, and what the layers were chosen by.

    `exact` is the edit that the vector is only the mean of, where the method is such an edit.
    `separation` (d' at the deciding token) and `interlayer` (mean cosine of the layer's direction
    with the others') are `(n_layer,)`.
    """

    vector: ControlVector
    layers: tuple[int, ...]
    separation: AnyFloatArray
    interlayer: AnyFloatArray
    exact: ExactForm | None = None
