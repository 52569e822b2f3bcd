"""A turn's adapter out of the kept product is the adapter of its edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.directions.hidden_states import POSITIONS, HiddenStates
from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.folders import cache_dir
from alignez_edge.files.gguffile import GGUFFile, read_gguf
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.bank_products import BankProduct
from alignez_edge.interventions.by_query import Recipe, condition
from alignez_edge.interventions.exact import exact_edit
from alignez_edge.modelfiles.lora import Lora, adapter_file, read_lora
from alignez_edge.runtime.injection import Edits, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter

N_PAIRS, LAYERS = 9, (1, 3)


def bank_for(gguf: GGUFFile, folder: Path, seed: int = 0) -> Bank:
    rng = np.random.default_rng(seed)
    n_layer = int(gguf.hparam("block_count"))
    n_embd = int(gguf.hparam("embedding_length"))
    with HiddenStates(folder / f"states-{seed}", (n_layer, n_embd)) as states:
        for _ in range(N_PAIRS):
            pair = rng.standard_normal((2, 2, n_layer, n_embd)).astype(np.float32) + 0.5
            states.append(pair[0], pair[1])
        queries = rng.standard_normal((N_PAIRS, n_layer, n_embd))
        return Bank.from_states(states, range(N_PAIRS), queries, LAYERS, "ffn_out")


def adapter(folder: Path, gguf: GGUFFile, scale: float = 0.05) -> Lora:
    """A rank-3 adapter of one of the edited matrices."""
    name = "blk.3.ffn_down.weight"
    n_in, n_out = gguf.tensors[name].shape
    rng = np.random.default_rng(8)
    a, b = (scale * rng.standard_normal(x).astype("<f4") for x in ((3, n_in), (n_out, 3)))
    tensors = [
        (f"{name}.lora_{side}", factor.shape[::-1], "F32", factor.tobytes())
        for side, factor in (("a", a), ("b", b))
    ]
    path = folder / "a.gguf"
    path.write_bytes(adapter_file(str(gguf.metadata["general.architecture"]), 0.0, tensors))
    return read_lora(path, gguf)


def changes(content: bytes, folder: Path) -> dict[str, np.ndarray]:
    """By matrix, what an adapter adds to it."""
    path = folder / "adapter.gguf"
    path.write_bytes(content)
    file = read_gguf(path)
    names = {name.rpartition(".lora_")[0] for name in file.tensors}
    return {n: file.tensor(f"{n}.lora_b") @ file.tensor(f"{n}.lora_a") for n in sorted(names)}


@pytest.mark.parametrize("method", ["alignez", "alignez-v1"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tuned", [False, True])
def test_the_adapter_is_that_of_the_edit(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    architecture: str,
    method: Literal["alignez", "alignez-v1"],
    tuned: bool,
) -> None:
    """gpt2 has biases: what the edit makes of them goes into the constants."""
    gguf = read_gguf(tiny_model(architecture, n_layer=5))
    lora = [(adapter(tmp_path, gguf), 0.7)] if tuned else []
    bank = bank_for(gguf, tmp_path)
    product = BankProduct.of(bank, gguf, lora)
    rng = np.random.default_rng(1)
    turn = condition(bank, rng.standard_normal((5, bank.n_embd)), Recipe(method, k=4, rank=2))
    for position in POSITIONS:
        found = product.exact_edit(turn, position)
        expected = exact_edit(gguf, turn.edit(position), lora=lora)
        np.testing.assert_array_equal(found.constants, expected.constants)
        assert bool(found.constants.any()) == (architecture == "gpt2")
        own = changes(found.adapter, tmp_path)
        for name, change in changes(expected.adapter, tmp_path).items():
            off = np.linalg.norm(own.pop(name) - change) / np.linalg.norm(change)
            assert off < 1e-3
        assert not own


def test_it_is_made_once_for_a_bank_and_a_model(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    gguf = read_gguf(tiny_model("llama", n_layer=5))
    bank = bank_for(gguf, tmp_path)
    calls: list[tuple[int, int]] = []

    def of(bank: Bank, lora: list[tuple[Lora, float]] | None = None) -> BankProduct:
        calls.clear()
        return BankProduct.of(bank, gguf, lora or [], lambda *x: calls.append(x))

    first = of(bank)
    assert calls == [(0, 2), (1, 2), (2, 2)]
    again = of(bank)
    assert calls == []
    np.testing.assert_array_equal(again.cells, first.cells)
    of(bank_for(gguf, tmp_path, seed=1))
    assert calls
    of(bank, [(adapter(tmp_path, gguf), 1.0)])
    assert calls
    files = sorted((cache_dir() / "products").iterdir())
    assert len(files) == 3


def test_torn_and_foreign_files_are_made_anew(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    gguf = read_gguf(tiny_model("llama", n_layer=5))
    bank = bank_for(gguf, tmp_path)
    expected = np.array(BankProduct.of(bank, gguf).cells)
    (path,) = (cache_dir() / "products").iterdir()
    whole = path.read_bytes()
    np.save(tmp_path / "foreign.npy", np.zeros(3))
    for content in (whole[:-5], b"", b"nothing", (tmp_path / "foreign.npy").read_bytes()):
        path.write_bytes(content)
        np.testing.assert_array_equal(BankProduct.of(bank, gguf).cells, expected)
    path.write_bytes(whole[:200] + b"\xff" * (len(whole) - 200))
    turn = condition(bank, np.ones((5, bank.n_embd)))
    with pytest.raises(AlignezError, match="damaged"), np.errstate(all="ignore"):
        BankProduct.of(bank, gguf).exact_edit(turn, "answer")


def test_models_with_experts_are_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    gguf = read_gguf(tiny_model("llama", n_layer=5, experts=4))
    with pytest.raises(BadInputError, match="one MLP a layer"):
        BankProduct.of(bank_for(gguf, tmp_path), gguf)


@dataclass
class Neighbors:
    """A `Conditional` as a profile makes one: a turn of the bank, natively or by the reference."""

    bank: Bank
    model: Model
    product: BankProduct | None
    tensor: Literal["l_out", "ffn_out"] = "ffn_out"

    @property
    def layers(self) -> tuple[int, ...]:
        return self.bank.layers

    def at(self, states: FloatArray) -> Injection | None:
        turn = condition(self.bank, states, Recipe("alignez-v1", k=4))
        rows: list[FloatArray] = []
        edits: list[Edits] = []
        for position in POSITIONS:
            if self.product is None:
                rows.append(np.zeros_like(states))
                edits.append(((turn.edit(position), 2.0),))
            else:
                found = self.product.exact_edit(turn, position)
                rows.append(2 * found.constants)
                edits.append(((Adapter(self.model, found.adapter), 2.0),))
        return Injection(rows[0], rows[1], edits[0], edits[1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_turn_of_a_session_is_the_reference(
    tiny_model: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    """Within 1 % of the edit's own effect on the logits of the first answer token."""
    with Model.load(tiny_model(architecture, n_layer=5), threads=1) as model:
        bank = bank_for(model.gguf, tmp_path)
        product = BankProduct.of(bank, model.gguf)
        prompt = model.tokenize("Why is the sky blue?", begin=True)
        logits = []
        for steering in (None, Neighbors(bank, model, None), Neighbors(bank, model, product)):
            with Session(model) as session:
                list(session.stream(prompt, Sampling(temperature=0, max_tokens=1), steering))
                logits.append(session._scheduler._context.logits(0).copy())
        plain, expected, found = logits
        effect = np.linalg.norm(expected - plain)
        assert effect > 0.1
        assert np.linalg.norm(found - expected) < 0.01 * effect
