"""From hidden states to a control vector: the seam behind which methods differ.

A method turns one layer's two sides, `(n_pairs, n_embd)` each, into a direction and a displacement;
it says where these are read and added, and how layers are chosen. Only `iti` has its displacements
from elsewhere (`iti.py`). Everything after that is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alignez_edge.arrays import TensorName
from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.directions.layers import best_layer, interlayer_cosine
from alignez_edge.directions.subspace import (
    separation,
)
from alignez_edge.interventions.control_vector import ControlVector, check_layers
from alignez_edge.methods.base import Fit, Method
from alignez_edge.methods.differences import (
    _affine,
    _alignez,
    _alignez_v1,
    _alignez_v2,
    _mean,
    _whole,
)
from alignez_edge.methods.iti import AttentionHeads, fit_heads
from alignez_edge.methods.mlp_edits import amplify, exact_form, move, swap


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
