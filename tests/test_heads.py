"""The heads that carry a shift are found, and what ITI shifts them by; what cannot be injected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_edge.build.build import build_profile
from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.errors import BadInputError
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.methods.iti import (
    ALPHA,
    SHARE,
    AttentionHeads,
    attention_heads,
    best_heads,
    fit_heads,
    head_shift,
    probe_score,
)
from alignez_edge.modelfiles.lora import read_lora
from alignez_edge.preferences.axes import Axis
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.llama import ggml, tensor_shape
from alignez_edge.runtime.model import Model
from tests.test_lora import factors, write

N_PAIRS, N_LAYER, N_HEAD, SIZE, N_EMBD = 40, 5, 4, 24, 32
PLANTED = ((2, 1), (2, 3), (4, 0), (3, 2))
"""As many heads as are shifted: a quarter of those of layers 1 to 4."""


def planted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions `(n_layer, n_head, size)` and the states of pairs shifted along those of the
    planted heads, `(n_layer, n_head, side, n_pairs, size)`."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(N_LAYER, N_HEAD, SIZE))
    theta /= np.linalg.norm(theta, axis=-1, keepdims=True)
    base = 2 * rng.normal(size=(N_LAYER, N_HEAD, SIZE))
    noise = 0.5 * rng.normal(size=(N_LAYER, N_HEAD, 2, N_PAIRS, SIZE))
    states = base[:, :, None, None] + noise
    for place in PLANTED:
        states[place] += 3 * np.multiply.outer([[1], [-1]], theta[place])
    return theta, states


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_heads_direction_is_found(seed: int) -> None:
    theta, states = planted(seed)
    for place in PLANTED:
        chosen, rejected = states[place]
        shift = head_shift(chosen, rejected)
        length = np.linalg.norm(shift)
        assert shift @ theta[place] / length > 0.99
        spread = (np.concatenate([chosen, rejected]) @ theta[place]).std()
        np.testing.assert_allclose(length, spread, rtol=0.05)
        np.testing.assert_allclose(head_shift(rejected, chosen), -shift)


def test_probes_judge_pairs_that_they_have_not_seen() -> None:
    """More dimensions than pairs: a probe tells its own pairs apart perfectly, others by chance."""
    rng = np.random.default_rng(0)
    accuracy, _ = probe_score(*rng.normal(size=(2, 30, 200)))
    assert 0.2 < accuracy < 0.8
    _, states = planted(0)
    assert probe_score(*states[2, 1])[0] == 1


def test_ties_are_told_apart_by_the_loss() -> None:
    rng = np.random.default_rng(0)
    near, far = (np.array([[[d]], [[-d]]]) + rng.normal(size=(2, 30, 8)) for d in (3, 9))
    assert probe_score(*near)[0] == probe_score(*far)[0] == 1
    assert probe_score(*near) < probe_score(*far)


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_heads_are_shifted_and_no_others(tmp_path: Path, seed: int) -> None:
    _, planted_states = planted(seed)
    outward = np.random.default_rng(9).normal(size=(N_LAYER, N_EMBD, N_HEAD * SIZE))
    heads = AttentionHeads(
        N_HEAD, N_HEAD * SIZE, N_EMBD, lambda layer, x: np.asarray(outward[layer] @ x)
    )
    with HiddenStates(tmp_path / "states", (N_LAYER, N_HEAD * SIZE)) as states:
        for pair in planted_states.transpose(3, 2, 0, 1, 4).reshape(N_PAIRS, 2, N_LAYER, -1):
            sides = [side.astype(np.float32) for side in pair]
            states.append(deciding=sides, answer=sides)
        found = fit_heads(states, range(N_PAIRS), heads)
    assert {tuple(place) for place in np.argwhere(found.mask)} == set(PLANTED)
    wanted = np.zeros((N_LAYER, N_HEAD, SIZE))
    for place in PLANTED:
        wanted[place] = ALPHA * head_shift(*planted_states[place])
    expected = np.einsum("ldh,lh->ld", outward, wanted.reshape(N_LAYER, -1))
    np.testing.assert_allclose(found.displacement, expected, rtol=1e-4, atol=1e-4)


def test_the_best_heads() -> None:
    scores = np.zeros((N_LAYER, N_HEAD, 2))
    scores[..., 0] = np.arange(N_LAYER * N_HEAD).reshape(N_LAYER, N_HEAD)
    mask = best_heads(scores)
    assert mask.sum() == round(SHARE * (N_LAYER - 1) * N_HEAD) and mask[-1].all()
    assert not best_heads(-scores)[0].any(), "layer 0 cannot be edited"
    named = best_heads(scores, [1, 4])
    assert named[1].tolist() == [False, False, False, True], "a layer that was named is edited"
    assert not named[[0, 2, 3]].any() and named[4].sum() == round(SHARE * 2 * N_HEAD)
    assert best_heads(np.zeros((2, 1, 2))).sum() == 1


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "phi3", "qwen2moe", "gemma"])
def test_the_heads_of_a_model(tiny_model: Callable[..., Path], architecture: str) -> None:
    gguf = read_gguf(tiny_model(architecture, n_layer=3))
    heads = attention_heads(gguf)
    assert (heads.n_head, heads.n_dims, heads.n_embd) == (2, 64, 64)
    x = np.random.default_rng(0).normal(size=64)
    matrix = gguf.tensor("blk.1.attn_output.weight")
    np.testing.assert_allclose(heads.outward(1, x), matrix.astype(float) @ x, rtol=1e-5)


def test_heads_of_a_model_that_carries_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    made = factors(tiny_llama, "attn_output")
    gguf = read_gguf(tiny_llama)
    lora = read_lora(write(tmp_path / "lora.gguf", made, alpha=8.0), gguf)
    x = np.random.default_rng(0).normal(size=64)
    matrix = gguf.tensor("blk.1.attn_output.weight").astype(float)
    a, b = (made[f"blk.1.attn_output.weight.lora_{side}"] for side in "ab")
    expected = (matrix + 0.5 * 8 / len(a) * b @ a) @ x
    found = attention_heads(gguf, [(lora, 0.5)]).outward(1, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_norm_after_the_heads_is_refused(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(BadInputError, match=r"gemma2 .* normalizes its attention's output"):
        attention_heads(read_gguf(tiny_model("gemma2", n_layer=3)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("drop", "layer 1 has no attention output matrix"),
        ("gate", "attn_gate acts on its attention's output"),
        ("scale", "its attention's output is scaled"),
        ("heads", "its layers have different heads"),
    ],
)
def test_what_cannot_be_injected_is_refused(tiny_llama: Path, change: str, reason: str) -> None:
    gguf = read_gguf(tiny_llama)
    tensors, metadata = dict(gguf.tensors), dict(gguf.metadata)
    matrix = "blk.1.attn_output.weight"
    if change == "drop":
        del tensors[matrix]
    elif change == "heads":
        metadata["llama.attention.head_count"] = np.array([2, 2, 4, 2, 2, 2])
    else:
        name = {"gate": "blk.1.attn_gate.weight", "scale": "blk.1.attn_output.scale"}[change]
        tensors[name] = tensors[matrix]
    with pytest.raises(BadInputError, match=reason):
        attention_heads(replace(gguf, tensors=tensors, metadata=metadata))


class Shift:
    """A tap that adds a constant to the head outputs of one layer."""

    def __init__(self, layer: int, constant: np.ndarray) -> None:
        self.name = f"kqv_out-{layer}".encode()
        self.constant = constant

    def wants(self, name: bytes) -> bool:
        return name == self.name

    def read(self, name: bytes, tensor: int) -> bool:
        n_dims, n_rows, *_ = tensor_shape(tensor)
        x = np.empty((n_rows, n_dims), np.float32)
        ggml.tensor_get(tensor, x.ctypes.data, 0, x.nbytes)
        x += self.constant
        ggml.tensor_set(tensor, x.ctypes.data, 0, x.nbytes)
        return True


@pytest.mark.parametrize("silent", [True, False])
def test_what_is_injected_is_the_shift_but_for_the_layers_own_mlp(
    tiny_model: Callable[..., Path], silent: bool
) -> None:
    """The intervention itself, in the graph, beside the control vector: where the layer's MLP adds
    nothing they are one and the same."""
    layer, tokens = 2, [5, 7, 11, 13]

    def weights(name: str, values: np.ndarray) -> np.ndarray:
        return values * (not (silent and name == f"blk.{layer}.ffn_down.weight"))

    def logits(context: Context) -> np.ndarray:
        n = len(tokens)
        context.decode(tokens, range(n), [0] * n, [True] * n)
        return np.stack([context.logits(i) for i in range(n)])

    with Model.load(tiny_model(n_layer=4, file_type="F32", weights=weights), threads=1) as model:
        heads = attention_heads(model.gguf)
        constant = np.random.default_rng(0).normal(size=heads.n_dims).astype(np.float32)
        rows = np.zeros((model.n_layer, model.n_embd), np.float32)
        rows[layer] = heads.outward(layer, constant)
        with Context(model) as context:
            plain = logits(context)
            context.clear()
            context.set_control_vector(rows)
            injected = logits(context)
        with Context(model, capture=Shift(layer, constant)) as context:
            shifted = logits(context)
    effect = np.abs(shifted - plain).max()
    assert effect > 0.1
    assert (np.abs(injected - shifted).max() < 0.01 * effect) == silent


def test_a_build_refuses_it_before_the_long_work(tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("gemma2", n_layer=3), threads=1) as model:
        axis = Axis("bright", positive="bright", negative="dark")
        with pytest.raises(BadInputError, match="iti cannot be used on gemma2 models"):
            build_profile(model, axis, queries=["Why?"] * 8, method="iti")
        with pytest.raises(BadInputError, match="caps this model's logits"):
            build_profile(model, axis, queries=["Why?"] * 8, method="recontrol")
