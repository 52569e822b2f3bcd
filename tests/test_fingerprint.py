"""A fingerprint sees through quantization, and sees other models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.errors import ProfileFileError
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.modelfiles.fingerprint import (
    Fingerprint,
    Fit,
    compare,
    distance,
    fingerprint,
    misfits,
)
from alignez_edge.modelfiles.lora import read_lora
from tests.terminal import ROOT
from tests.tinymodels import ARCHITECTURES, CHATML, quantize

Make = Callable[..., Path]


def taken(path: Path) -> Fingerprint:
    return fingerprint(read_gguf(path))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_quantizations_of_one_model_are_the_same(tiny_model: Make, architecture: str) -> None:
    made = [
        taken(tiny_model(architecture, n_embd=256, n_layer=3, file_type=kind))
        for kind in ("F16", "Q8_0", "Q4_K_M")
    ]
    for a in made:
        for b in made:
            assert compare(a, b).fit is Fit.SAME
            assert compare(a, b).differing == ()


def test_quantizations_of_the_demo_model_are_the_same_and_tuned_ones_are_not(
    tmp_path: Path,
) -> None:
    source = ROOT / "demo_model" / "demo-model-f16.gguf"
    made = {"F16": source, "shipped": ROOT / "alignez_edge" / "demo" / "demo-model.gguf"}
    for kind in ("Q8_0", "Q4_K_M"):
        made[kind] = tmp_path / f"{kind}.gguf"
        quantize(source, made[kind], kind)
    found = {kind: taken(path) for kind, path in made.items()}
    for a in found.values():
        for b in found.values():
            assert compare(a, b).fit is Fit.SAME
    for path in made.values():
        gguf = read_gguf(path)
        lora = read_lora(ROOT / "demo_model" / "dpo-polite-25.gguf", gguf)
        tuned = compare(found["Q8_0"], fingerprint(gguf, [(lora, 1.0)]))
        assert (tuned.fit, tuned.differing) == (Fit.SAME_SHAPE, ("adapter",))


def test_what_does_not_fit_is_said_with_both_values(tiny_model: Make) -> None:
    said = misfits(taken(tiny_model("llama")), taken(tiny_model("qwen2", n_layer=5)))
    assert said == "architecture is llama there and qwen2 here, n_layer is 4 there and 5 here"


def test_norms_agree_to_the_bit_across_quantizations(tiny_model: Make) -> None:
    a = taken(tiny_model("llama", n_embd=256, n_layer=3))
    b = taken(tiny_model("llama", n_embd=256, n_layer=3, file_type="Q4_K_M"))
    norms = [name for name in a.weights if "norm" in name]
    assert len(norms) == 7
    for name in norms:
        assert distance(a.weights[name], b.weights[name]) == 0


def test_another_seed_has_the_same_shape_only(tiny_model: Make) -> None:
    found = compare(taken(tiny_model("llama")), taken(tiny_model("llama", seed=1)))
    assert found.fit is Fit.SAME_SHAPE
    assert found.differing == ("weights",)


def drifted(name: str, values: np.ndarray) -> np.ndarray:
    """Matrices moved by 2 %, norms left alone: what merging a small adapter does."""
    noise = np.random.default_rng(7).standard_normal(values.shape).astype(np.float32)
    return values if "norm" in name else values + 0.02 * values.std() * noise


def retrained(name: str, values: np.ndarray) -> np.ndarray:
    """Norms moved by 1 %, which every format shows."""
    return values * np.float32(1.01) if "norm" in name else values


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_merged_adapter_is_seen_in_fine_formats(tiny_model: Make, kind: str) -> None:
    found = compare(
        taken(tiny_model("llama", n_embd=256)),
        taken(tiny_model("llama", n_embd=256, file_type=kind, weights=drifted)),
    )
    assert found.fit is Fit.SAME_SHAPE


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M"])
def test_retrained_norms_are_seen_in_every_format(tiny_model: Make, kind: str) -> None:
    found = compare(
        taken(tiny_model("llama", n_embd=256)),
        taken(tiny_model("llama", n_embd=256, file_type=kind, weights=retrained)),
    )
    assert found.differing == ("weights",)


def test_shape_and_architecture_decide(tiny_model: Make) -> None:
    base = taken(tiny_model("llama"))
    for other, fact in (
        (tiny_model("llama", n_layer=5), "n_layer"),
        (tiny_model("llama", n_embd=128), "n_embd"),
        (tiny_model("qwen2"), "architecture"),
    ):
        found = compare(base, taken(other))
        assert found.fit is Fit.DIFFERENT
        assert fact in found.differing


def test_template_and_tokenizer_are_named(tiny_model: Make) -> None:
    base = taken(tiny_model("llama"))
    found = compare(base, taken(tiny_model("llama", template=CHATML)))
    assert (found.fit, found.differing) == (Fit.SAME_SHAPE, ("template",))
    other = tiny_model("llama", metadata={"tokenizer.ggml.merges": ["t h"]})
    assert compare(base, taken(other)).differing == ("tokenizer",)


def test_metadata_and_back(tiny_model: Make) -> None:
    base = taken(tiny_model("llama", file_type="Q8_0"))
    again = Fingerprint.from_metadata({**base.to_metadata(), "profile.name": "else"})
    assert compare(base, again).fit is Fit.SAME
    assert again.to_metadata().keys() == base.to_metadata().keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.n_layer", "4"),
        ("model.n_layer", None),
        ("model.tokenizer", 7),
        ("model.weights.token_embd.weight", np.array([np.nan], np.float32)),
        ("model.weights.token_embd.weight", np.zeros(10**6, np.float32)),
        ("model.weights.token_embd.weight", "x"),
        ("model.formats.token_embd.weight", None),
    ],
)
def test_a_broken_fingerprint_is_refused(tiny_model: Make, key: str, value: object) -> None:
    metadata = {**taken(tiny_model("llama")).to_metadata(), key: value}
    with pytest.raises(ProfileFileError):
        Fingerprint.from_metadata(metadata)
