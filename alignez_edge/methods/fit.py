"""From hidden states to a control vector: the seam behind which methods differ.

A method turns one layer's two sides, `(n_pairs, n_embd)` each, into a direction and a displacement;
it says where these are read and added, and how layers are chosen. Only `iti` has its displacements
from elsewhere (`heads.py`). Everything after that is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.directions.layers import best_layer, choose_layers, interlayer_cosine
from alignez_edge.directions.subspace import (
    difference_subspace,
    first_direction,
    separation,
    version_1_edit,
)
from alignez_edge.interventions.control_vector import ControlVector, check_layers
from alignez_edge.interventions.exact_form import (
    ExactForm,
    LayerEditor,
    amplify,
    exact_form,
    move,
    swap,
)
from alignez_edge.interventions.mlp_edit import LayerEdit
from alignez_edge.methods.iti import AttentionHeads, fit_heads

Estimator = Callable[[AnyFloatArray, AnyFloatArray], tuple[AnyFloatArray, AnyFloatArray]]
"""(chosen, rejected) of one layer and position -> (direction, displacement), `(n_embd,)` each."""

TensorName = Literal["l_out", "ffn_out", "kqv_out"]
RANK = 1
DECIDING_GAIN, ANSWER_GAIN = 1.5, 0.8
"""Natural lengths that strength 1 adds at the deciding token and at each later one. The first is
one token of the answer's price and decides most of its style (docs/method.md, section 4)."""


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


def tensor_of(method: str) -> TensorName:
    """The tensor that a method reads: the residual stream, the MLP's output, or the heads'."""
    return "kqv_out" if method == "iti" else _METHODS[method].tensor


def fit(
    states: HiddenStates,
    rows: Sequence[int],
    method: str,
    layers: Sequence[int] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
    heads: AttentionHeads | None = None,
) -> Fit:
    """Directions, layers and control vector from the pairs `rows`; one layer in memory at a time.

    `heads` are the model's, for `iti`, whose `states` hold head outputs. Raises `ValueError` for
    layers that the model does not have.
    """
    if heads is not None:
        return _fit_heads(states, rows, heads, layers, on_progress)
    how = _METHODS[method]
    n_layer, n_embd = states.shape
    displaced = {position: np.zeros((n_layer, n_embd)) for position in how.read}
    directions = np.zeros((n_layer, n_embd))
    apart = np.zeros(n_layer)
    for layer in range(n_layer):
        on_progress("subspace", layer, n_layer)
        for position in displaced:
            sides = states.layer(layer, position, rows)
            direction, displaced[position][layer] = how.estimate(sides.chosen, sides.rejected)
            if position == how.read[0]:
                directions[layer] = direction
                apart[layer] = separation(sides.chosen, sides.rejected)
    on_progress("subspace", n_layer, n_layer)
    agreement = interlayer_cosine(directions)
    chosen = tuple(sorted(layers)) if layers is not None else how.choose(apart, agreement)
    add = ControlVector.from_displacements if how.tensor == "l_out" else _whole
    vector = add(displaced[how.read[0]], displaced[how.read[1]], chosen)
    deciding_gain, answer_gain = map(np.float32, how.gains)
    vector = ControlVector(vector.deciding * deciding_gain, vector.answer * answer_gain)
    form = exact_form(states, rows, chosen, how.edit) if how.edit else None
    return Fit(vector, chosen, apart, agreement, form)


def _fit_heads(
    states: HiddenStates,
    rows: Sequence[int],
    heads: AttentionHeads,
    layers: Sequence[int] | None,
    on_progress: Callable[[str, int, int], None],
) -> Fit:
    if layers is not None:
        layers = check_layers(layers, states.shape[0])
    found = fit_heads(states, rows, heads, layers, on_progress)
    chosen = tuple(int(layer) for layer in np.flatnonzero(found.mask.any(axis=1)))
    # Every head's output is new in its layer, so all are displaced whole.
    vector = _whole(found.displacement, found.displacement, chosen)
    return Fit(vector, chosen, found.separation, interlayer_cosine(found.displacement))


def _whole(deciding: AnyFloatArray, answer: AnyFloatArray, layers: Iterable[int]) -> ControlVector:
    """Each of `layers` gets its own displacement whole: outputs that are no running sums."""
    rows = deciding.astype(np.float32), answer.astype(np.float32)
    for row in rows:
        row[0] = 0  # nothing can be added there
    return ControlVector(*rows).restrict(layers)


def _alignez(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    found = difference_subspace(chosen, rejected, RANK)
    return found.directions[0], found.displacement()


def _alignez_v1(
    chosen: AnyFloatArray, rejected: AnyFloatArray
) -> tuple[AnyFloatArray, AnyFloatArray]:
    help_, harm = first_direction(chosen), first_direction(rejected)
    middle = (np.mean(chosen, axis=0, dtype=np.float64) + np.mean(rejected, axis=0)) / 2
    return help_, version_1_edit(middle, help_, harm)


def _alignez_v2(
    chosen: AnyFloatArray, rejected: AnyFloatArray
) -> tuple[AnyFloatArray, AnyFloatArray]:
    return _mean_field(amplify(chosen, rejected), chosen, rejected)


def _affine(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    return _mean_field(move(chosen, rejected), chosen, rejected)


def _mean_field(
    edit: LayerEdit, chosen: AnyFloatArray, rejected: AnyFloatArray
) -> tuple[AnyFloatArray, AnyFloatArray]:
    middle = (np.mean(chosen, axis=0, dtype=np.float64) + np.mean(rejected, axis=0)) / 2
    return edit.outward[:, 0], edit.change(middle)


def _mean(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[AnyFloatArray, AnyFloatArray]:
    shift = np.mean(np.asarray(chosen, np.float64) - rejected, axis=0)
    length = np.linalg.norm(shift)
    return (shift / length if length else shift), shift


_METHODS = {
    "alignez": Method(_alignez),
    "alignez-v1": Method(_alignez_v1, tensor="ffn_out", edit=swap),
    "alignez-v2": Method(_alignez_v2, tensor="ffn_out", edit=amplify),
    "affine": Method(_affine, tensor="ffn_out", edit=move),
    "mean": Method(_mean),
    # The same displacement at every token, read over the answer's, where its natural length is of
    # the order of asking: what is read at the deciding token is several times as long and, added to
    # every token, breaks the text (docs/method.md, section 9).
    "caa": Method(_mean, read=("answer", "answer"), gains=(1.0, 1.0), choose=best_layer),
    # Uncentred, as in llama.cpp and repeng's `pca_center`; centring the differences (`pca_diff`)
    # would remove the shift. Their vectors have unit length and go into every layer whole.
    "pca": Method(_alignez, read=("answer", "answer"), gains=(1.0, 1.0)),
}
