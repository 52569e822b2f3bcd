"""The demo model tuned by DPO: from the file to PyTorch and back, the loss, the adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from alignez_edge.arrays import FloatArray  # noqa: E402
from alignez_edge.demo.bundled import demo_queries  # noqa: E402
from alignez_edge.demo.rules import AXES, judge  # noqa: E402
from alignez_edge.demo.world import world  # noqa: E402
from alignez_edge.files.gguffile import read_gguf  # noqa: E402
from alignez_edge.runtime.context import Context  # noqa: E402
from alignez_edge.runtime.injection import Edits  # noqa: E402
from alignez_edge.runtime.model import Model  # noqa: E402
from alignez_edge.runtime.score import Scorer, answer_log_prob  # noqa: E402
from alignez_edge.runtime.weights import Adapter  # noqa: E402
from demo_model import dpo, export  # noqa: E402
from demo_model.model import Llama  # noqa: E402
from demo_model.settings import DEFAULT_TUNING  # noqa: E402

SHIPPED = sorted(dpo.HERE.glob("dpo-*.gguf"))
MOST_BYTES = 200_000
QUICK = replace(DEFAULT_TUNING, rank=2, batch_pairs=3, most_steps=2, evaluate_every=1)


@pytest.fixture(scope="module")
def full() -> Iterator[Model]:
    with Model.load(dpo.SOURCE, threads=1, gpu_layers=0) as model:
        yield model


@pytest.fixture(scope="module")
def base(full: Model) -> Llama:
    torch.set_num_threads(1)
    return dpo.base_model(full.gguf)


@pytest.fixture(scope="module")
def pairs(full: Model) -> list[dpo.TokenPair]:
    return dpo.tokens_of(full, dpo.labelled_pairs("cheerful", 4, seed=5))


def pytorch_logits(model: Llama, tokens: tuple[int, ...]) -> FloatArray:
    with torch.no_grad():
        found: FloatArray = model(torch.tensor([tokens]))[0].numpy()
    return found


def llama_logits(model: Model, tokens: tuple[int, ...], edits: Edits = ()) -> FloatArray:
    n = len(tokens)
    with Context(model, n_ctx=512) as context:
        context.set_adapters(edits)
        context.decode(tokens, range(n), [0] * n, [True] * n)
        return np.array([context.logits(i).copy() for i in range(n)])


def with_adapter(base: Llama, path: Path) -> Llama:
    """The PyTorch model with the factors of an adapter file."""
    file = read_gguf(path)
    rank = file.tensors["blk.0.ffn_down.weight.lora_a"].shape[1]
    model = dpo.adapted(base, rank, seed=0)
    for number, layer in enumerate(model.blk):
        for name in dpo.ADAPTED:
            for factor in "ab":
                array = file.tensor(f"blk.{number}.{name}.weight.lora_{factor}")
                getattr(getattr(layer, name), factor).data = torch.from_numpy(array)
    return model


def check_same(base: Llama, full: Model, path: Path, tokens: tuple[int, ...]) -> None:
    """PyTorch and llama.cpp agree on what the adapter does: within 2 % of its effect."""
    theirs = llama_logits(full, tokens, ((Adapter(full, path.read_bytes()), 1.0),))
    ours = pytorch_logits(with_adapter(base, path), tokens)
    effect = np.linalg.norm(ours - pytorch_logits(base, tokens))
    assert effect > 1
    assert np.linalg.norm(ours - theirs) < 0.02 * effect


def test_the_rows_of_q_and_k_come_back() -> None:
    weight = torch.arange(24.0).view(12, 2)
    assert torch.equal(dpo.unpermuted(export.permuted(weight, 3), 3), weight)


def test_the_file_in_pytorch_gives_its_logits(
    base: Llama, full: Model, pairs: list[dpo.TokenPair]
) -> None:
    tokens = pairs[0].prompt + pairs[0].chosen
    difference = np.abs(pytorch_logits(base, tokens) - llama_logits(full, tokens))
    assert difference.max() < 0.05  # the report of the model measured 0.01


def test_an_untrained_lora_is_the_base_model(base: Llama, pairs: list[dpo.TokenPair]) -> None:
    tokens = pairs[0].prompt + pairs[0].chosen
    same = pytorch_logits(dpo.adapted(base, 3, seed=1), tokens)
    np.testing.assert_array_equal(same, pytorch_logits(base, tokens))


def test_log_probs_are_those_of_the_runtime(
    base: Llama, full: Model, pairs: list[dpo.TokenPair]
) -> None:
    with torch.no_grad():
        together = dpo.log_probs(base, pairs)
        alone = torch.cat([dpo.log_probs(base, [pair]) for pair in pairs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)
    with Scorer(full) as scorer:
        for pair, row in zip(pairs, together, strict=True):
            for answer, ours in zip((pair.chosen, pair.rejected), row, strict=True):
                (rows,) = scorer.log_probs(pair.prompt, answer)
                assert answer_log_prob(rows, answer) == pytest.approx(float(ours), abs=0.1)


def test_the_loss_is_of_the_gain_over_the_reference() -> None:
    reference = torch.tensor([[-10.0, -20.0], [-30.0, -5.0]])
    assert float(dpo.dpo_loss(reference, reference, 0.1)) == pytest.approx(np.log(2))
    gain = torch.tensor([[3.0, -2.0], [0.0, -5.0]])
    expected = np.log1p(np.exp(-0.1 * 5))
    assert float(dpo.dpo_loss(reference + gain, reference, 0.1)) == pytest.approx(expected)
    # What both answers gain alike does not count.
    assert float(dpo.dpo_loss(reference + gain + 7, reference, 0.1)) == pytest.approx(expected)


@pytest.mark.parametrize("axis", AXES)
def test_labelled_pairs(axis: str) -> None:
    pairs = dpo.labelled_pairs(axis, 300, seed=1)
    assert pairs == dpo.labelled_pairs(axis, 400, seed=1)[:300]
    kept = {entry["query"] for name in ("unseen", "build") for entry in demo_queries(name)}
    asked = {pair.query for pair in pairs}
    assert len(asked) == 300
    assert not asked & kept
    differences = []
    for pair in pairs:
        topic = max((t for t in world().topics if t in pair.query), key=len)
        chosen, rejected = (judge(text, topic).scores for text in (pair.chosen, pair.rejected))
        differences.append([chosen[a] - rejected[a] for a in AXES])
    means = dict(zip(AXES, np.mean(differences, axis=0), strict=True))
    assert means.pop(axis) > 1
    # The sides differ in nothing but the axis.
    assert max(map(abs, means.values())) < 0.2


def test_training_lowers_the_loss_and_is_a_function_of_the_seed(
    base: Llama, pairs: list[dpo.TokenPair]
) -> None:
    same = [pairs[0]] * 4  # what is held out is what is learned
    first, outcome = dpo.train(base, same, QUICK)
    again, _ = dpo.train(base, same, QUICK)
    other, _ = dpo.train(base, same, replace(QUICK, seed=2))
    assert outcome.loss < outcome.loss_before == pytest.approx(np.log(2), abs=1e-4)
    weights, others = first.state_dict(), other.state_dict()
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert any(not torch.equal(weight, others[name]) for name, weight in weights.items())


def test_the_base_model_is_left_alone(base: Llama, pairs: list[dpo.TokenPair]) -> None:
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    dpo.train(base, pairs, QUICK)
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_an_exported_lora_is_the_one_of_pytorch(
    base: Llama, full: Model, pairs: list[dpo.TokenPair], tmp_path: Path
) -> None:
    model = dpo.adapted(base, 3, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if name.endswith(".b"):
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    path = tmp_path / "adapter.gguf"
    path.write_bytes(dpo.adapter(full.gguf, model))
    check_same(base, full, path, pairs[0].prompt + pairs[0].chosen)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_adapters(base: Llama, full: Model, path: Path) -> None:
    """They are small, the same in PyTorch and llama.cpp, and prefer what they were tuned to."""
    assert path.stat().st_size < MOST_BYTES
    keys = read_gguf(path).metadata
    assert keys["general.architecture"] == full.facts.architecture
    assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
    axis = path.stem.split("-")[1]
    tuning = DEFAULT_TUNING
    unused = dpo.labelled_pairs(axis, tuning.pairs, tuning.seed)[-8:]
    pairs = dpo.tokens_of(full, unused)
    check_same(base, full, path, pairs[0].prompt + pairs[0].chosen)
    with torch.no_grad():
        tuned = dpo.log_probs(with_adapter(base, path), pairs)
        gains = dpo.gains(tuned, dpo.log_probs(base, pairs))
    assert gains.mean() > 0
