"""ITI (Li et al. 2023, *Inference-Time Intervention*): shifts of the attention heads that tell.

For every head a logistic probe says how well its output tells the sides apart; the best heads are
shifted by `alpha sigma theta` (section 3.2 there): `theta` is the direction from the unwanted to
the wanted side's mean ("mass mean shift", the best of the paper's three), `sigma` the standard
deviation of the head's outputs along it, over both sides. As there, the shift is one constant for
every token. Head outputs are llama.cpp's `kqv_out-<l>`, before the attention's output matrix.

What llama.cpp can inject of it: a constant `c` at the heads of layer `l` is the constant `W_o c` in
the residual stream, exactly, and that a control vector can add; but only after the layer, whereas
the intervention comes before the layer's MLP. So the MLP of the same layer does not answer to the
shift; all later layers do. Layer 0 cannot be edited. Where something acts between the heads and the
residual stream other than that matrix (a norm, a gate), the constant does not pass, and the method
is refused.

Ours: pairs are split in halves that judge each other (the paper: 4 to 1), accuracies that tie are
told apart by the probes' log loss, heads are read as the mean over the answer's tokens (the paper:
its last), and the share of heads and `alpha` were measured on the demo model (docs/method.md,
section 9; the paper took 48 of 1024 heads and 15).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.directions.hidden_states import HiddenStates, Tensor
from alignez_edge.directions.layers import interlayer_cosine
from alignez_edge.directions.subspace import separation
from alignez_edge.errors import BadInputError
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.text import printable_name
from alignez_edge.interventions.control_vector import check_layers
from alignez_edge.methods.base import Finding, Material, Progress
from alignez_edge.methods.displacement import whole
from alignez_edge.modelfiles.lora import Attached

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

READ = "answer"
"""Where head outputs are read. Read at the last prompt token the probes are surer, but a shift that
moves as much costs twice as much: ratio to prompting 0.92 at 0.08 nats, here 0.98 at 0.04."""
SHARE = 0.25
"""The share of the heads that are shifted."""
ALPHA = 4.0
"""Standard deviations that strength 1 shifts them by, before calibration."""
_BETWEEN = ("attn_gate", "attn_sub_norm", "attn_output_norm")
"""Tensors of a layer that act between the heads and the residual stream."""


@dataclass(frozen=True, eq=False)
class AttentionHeads:
    """The attention heads of a model: `n_head` a layer, together `n_dims` numbers.

    `outward(layer, x)` carries their outputs `(n_dims,)` into the residual stream, `(n_embd,)`.
    """

    n_head: int
    n_dims: int
    n_embd: int
    outward: Callable[[int, AnyFloatArray], AnyFloatArray]


@dataclass(frozen=True, eq=False)
class HeadFit:
    """`displacement` `(n_layer, n_embd)` in the residual stream; `mask` `(n_layer, n_head)` says
    which heads it comes from; `separation` `(n_layer,)` is d' of a layer's heads together."""

    displacement: AnyFloatArray
    mask: npt.NDArray[np.bool_]
    separation: AnyFloatArray


def attention_heads(gguf: GGUFFile, lora: Attached = ()) -> AttentionHeads:
    """The heads of a model that carries the adapters `lora`.

    Raises `BadInputError` if a shift of them cannot be injected.
    """
    n_layer, n_embd = int(gguf.hparam("block_count")), int(gguf.hparam("embedding_length"))
    counts = np.unique(np.asarray(gguf.hparam("attention.head_count", 0)))
    matrices = [gguf.tensors.get(_output_matrix(layer)) for layer in range(n_layer)]
    widths = {matrix.shape[0] for matrix in matrices if matrix is not None}
    reason = next((why for layer in range(n_layer) if (why := _between(gguf, layer))), None)
    if None in matrices:
        reason = f"layer {matrices.index(None)} has no attention output matrix"
    elif len(counts) != 1 or len(widths) != 1 or counts[0] < 1 or min(widths) % counts[0]:
        reason = "its layers have different heads"
    if reason is not None:
        kind = printable_name(gguf.architecture)
        raise BadInputError(
            f"the method iti cannot be used on {kind} models: {reason}",
            "choose another --method",
        )

    def outward(layer: int, x: AnyFloatArray) -> AnyFloatArray:
        name = _output_matrix(layer)
        matrix = gguf.tensor(name)
        for adapter, scale in lora:
            matrix += np.float32(scale) * adapter.product(np.eye(n_embd, dtype=np.float32), name)
        return np.asarray(matrix @ x)

    return AttentionHeads(int(counts[0]), widths.pop(), n_embd, outward)


def fit_heads(
    states: HiddenStates,
    rows: Sequence[int],
    heads: AttentionHeads,
    layers: Sequence[int] | None = None,
    on_progress: Progress = lambda *_: None,
) -> HeadFit:
    """Probe all heads with the pairs `rows`, choose the best, and shift them.

    `states` holds head outputs. The best `SHARE` of all heads are chosen, of those in `layers`
    where these are given; then each of `layers` keeps its best head at least.
    """
    n_layer, _ = states.shape
    shifts, scores, apart = [], [], []
    for layer in range(n_layer):
        on_progress("subspace", layer, n_layer)
        sides = states.layer(layer, READ, rows)
        chosen, rejected = (by_head(x, heads.n_head) for x in (sides.chosen, sides.rejected))
        both = list(zip(chosen, rejected, strict=True))
        shifts.append(np.stack([head_shift(*outputs) for outputs in both]))
        scores.append([probe_score(*outputs) for outputs in both])
        apart.append(separation(sides.chosen, sides.rejected))
    on_progress("subspace", n_layer, n_layer)
    mask = best_heads(np.array(scores), layers)
    displacement = np.zeros((n_layer, heads.n_embd))
    for layer, picked in enumerate(mask):
        if picked.any():
            shift = np.where(picked[:, None], shifts[layer], 0.0)
            displacement[layer] = heads.outward(layer, ALPHA * shift.ravel())
    return HeadFit(displacement, mask, np.array(apart))


class HeadShifts:
    """ITI as a method: see `Method`."""

    def reads(self, model: Model) -> Tensor:
        """The outputs of all heads of a layer."""
        return Tensor("kqv_out", attention_heads(model.gguf, model.lora).n_dims)

    def find(self, material: Material) -> Finding:
        """The chosen heads' shifts, as a control vector."""
        assert material.states is not None
        heads = attention_heads(material.model.gguf, material.model.lora)
        return shifted(material.states, material.rows, heads, material.layers, material.progress)


METHOD = HeadShifts()


def shifted(
    states: HiddenStates,
    rows: Sequence[int],
    heads: AttentionHeads,
    layers: Sequence[int] | None = None,
    on_progress: Progress = lambda *_: None,
) -> Finding:
    """What `fit_heads` finds, as a control vector; raises `ValueError` for layers that are not
    there."""
    if layers is not None:
        layers = check_layers(layers, states.shape[0])
    found = fit_heads(states, rows, heads, layers, on_progress)
    chosen = tuple(int(layer) for layer in np.flatnonzero(found.mask.any(axis=1)))
    # Every head's output is new in its layer, so all are displaced whole.
    vector = whole(found.displacement, found.displacement, chosen)
    return Finding(
        vector,
        chosen,
        separation=found.separation,
        interlayer=interlayer_cosine(found.displacement),
    )


def by_head(x: AnyFloatArray, n_head: int) -> AnyFloatArray:
    """Outputs of all heads of a layer, `(n, n_dims)`, as `(n_head, n, head size)`."""
    return np.asarray(x, np.float64).reshape(len(x), n_head, -1).swapaxes(0, 1)


def head_shift(chosen: AnyFloatArray, rejected: AnyFloatArray) -> AnyFloatArray:
    """`sigma theta` of one head, `(head size,)`, from its outputs on each side, `(n, head size)`.

    Zero where the sides' means are equal.
    """
    theta = chosen.mean(axis=0) - rejected.mean(axis=0)
    length = np.linalg.norm(theta)
    if not length:
        return np.zeros_like(theta)
    theta = theta / length
    return np.asarray((np.concatenate([chosen, rejected]) @ theta).std() * theta)


def probe_score(chosen: AnyFloatArray, rejected: AnyFloatArray) -> tuple[float, float]:
    """How well logistic probes tell the sides of one head apart: (accuracy, -log loss).

    Each half of the pairs is judged by a probe of the other half, so that a pair's two answers are
    never on both sides of the split.
    """
    halves = (slice(0, None, 2), slice(1, None, 2))
    margins = []
    for train, judge in (halves, halves[::-1]):
        x = np.concatenate([chosen[train], rejected[train]])
        side = np.repeat([1.0, -1.0], len(x) // 2)
        middle, scale = x.mean(axis=0), x.std() or 1.0
        weights, bias = logistic_probe((x - middle) / scale, side)
        margins += [
            sign * ((x - middle) / scale @ weights + bias)
            for sign, x in ((1, chosen[judge]), (-1, rejected[judge]))
        ]
    margin = np.concatenate(margins)
    return float((margin > 0).mean()), -float(np.logaddexp(0, -margin).mean())


def logistic_probe(x: AnyFloatArray, side: AnyFloatArray) -> tuple[AnyFloatArray, float]:
    """Logistic regression of `side` (`(n,)` of +1 and -1) on the rows of `x`: weights and bias.

    With the usual unit ridge on the weights: sum of log losses + |w|^2 / 2.
    """
    import scipy.optimize
    import scipy.special

    def loss(w: AnyFloatArray) -> tuple[float, AnyFloatArray]:
        margin = side * (x @ w[:-1] + w[-1])
        slope = -side * scipy.special.expit(-margin)
        value = np.logaddexp(0, -margin).sum() + w[:-1] @ w[:-1] / 2
        return float(value), np.append(slope @ x + w[:-1], slope.sum())

    found = scipy.optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B")
    return found.x[:-1], float(found.x[-1])


def best_heads(scores: AnyFloatArray, layers: Sequence[int] | None = None) -> npt.NDArray[np.bool_]:
    """Which heads to shift, `(n_layer, n_head)`: the best `SHARE` of those of `layers`, at least
    one; of layers that were named each one's best. `scores` is `(n_layer, n_head, 2)`, compared by
    the first number and then by the second; layer 0 cannot be edited."""
    n_layer, n_head, _ = scores.shape
    usable = range(1, n_layer) if layers is None else layers
    ranked = sorted(
        ((layer, head) for layer in usable for head in range(n_head)),
        key=lambda place: tuple(scores[place]),
        reverse=True,
    )
    mask = np.zeros((n_layer, n_head), bool)
    for place in ranked[: max(1, round(SHARE * len(ranked)))]:
        mask[place] = True
    for layer in layers or ():
        mask[next(place for place in ranked if place[0] == layer)] = True
    return mask


def _output_matrix(layer: int) -> str:
    return f"blk.{layer}.attn_output.weight"


def _between(gguf: GGUFFile, layer: int) -> str | None:
    """What acts on the heads' outputs in a layer beside the output matrix; None for nothing."""

    def has(name: str) -> bool:
        return f"blk.{layer}.{name}" in gguf.tensors

    for name in _BETWEEN:
        if has(f"{name}.weight"):
            return f"{name} acts on its attention's output"
    if has("attn_output.scale"):
        return "its attention's output is scaled"
    # Alone, this is the norm before the MLP by another name.
    if has("post_attention_norm.weight") and (
        has("ffn_norm.weight") or has("post_ffw_norm.weight")
    ):
        return "it normalizes its attention's output"
    return None
