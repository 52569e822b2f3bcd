"""The exact form of an edit against the reference, on random models of several architectures."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.interventions import exact
from alignez_edge.interventions.exact import (
    ExactEdit,
    adapter_tensors,
    can_inject_exactly,
    exact_edit,
)
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Edits, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.score import Scorer
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter
from tests.test_session import plain_tokens

TEXT = "The quick brown fox jumps over the lazy dog."
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}), ("llama", {"experts": 4}), ("qwen2", {}), ("qwen3", {}), ("gemma", {}),
    ("gemma2", {}), ("phi3", {}), ("gpt2", {}), ("qwen2moe", {}),
]  # fmt: skip
STRENGTH = 2.0


def edit_for(model: Model, layers: tuple[int, ...], seed: int = 0, affine: bool = False) -> Edit:
    """A rank-2 edit of each of `layers`, and a move of one coordinate where `affine`."""
    rng = np.random.default_rng(seed)
    edit = Edit({i: LayerEdit.swap(*rng.standard_normal((2, model.n_embd))) for i in layers})
    if affine:
        edit += Edit({i: LayerEdit.move(rng.standard_normal(model.n_embd), [2.0]) for i in layers})
    return edit


def logits(
    model: Model,
    edits: Edits = (),
    vectors: FloatArray | None = None,
    *,
    behind: int = 0,
) -> FloatArray:
    """The logits of all of TEXT's tokens, behind that many of another text in the same batch."""
    tokens = model.tokenize(TEXT, begin=True)
    n = len(tokens)
    with Context(model, n_ctx=256, n_seq=2) as context:
        context.set_control_vector(vectors)
        context.set_adapters(edits)
        batch = [*tokens[:behind], *tokens]
        positions = [*range(behind), *range(n)]
        context.decode(batch, positions, [1] * behind + [0] * n, [True] * len(batch))
        return np.array([context.logits(behind + i).copy() for i in range(n)])


def distance(a: FloatArray, b: FloatArray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b))


class Agreement(NamedTuple):
    """Distances between logits in units of the edit's own effect, which is in units of theirs.

    `difference` is exact against reference. The other two are what the model's own products do
    when nothing is edited: `batch` where more tokens go through with them, `nudge` where a vector
    far smaller than half precision resolves is added in layer 1.
    """

    difference: float
    batch: float
    nudge: float
    effect: float


def compare(model: Model, edit: Edit) -> Agreement:
    made = exact_edit(model.gguf, edit)
    adapter = Adapter(model, made.adapter)
    base = logits(model)
    native = logits(model, ((adapter, STRENGTH),), made.constants * np.float32(STRENGTH))
    slow = logits(model, ((edit, STRENGTH),))
    effect = distance(slow, base)
    nudges = np.zeros((3, model.n_layer, model.n_embd), np.float32)
    nudges[:, 1] = 1e-4 * np.random.default_rng(2).standard_normal((3, model.n_embd))
    return Agreement(
        difference=distance(native, slow) / effect,
        # More than 64 tokens: llama.cpp's CPU attention goes another way from there on.
        batch=distance(base, logits(model, behind=40)) / effect,
        nudge=max(distance(base, logits(model, (), nudge)) for nudge in nudges) / effect,
        effect=effect / distance(base, np.zeros_like(base)),
    )


@pytest.mark.parametrize(("architecture", "options"), KINDS)
def test_exact_is_the_reference_on_f16(
    tiny_model: Callable[..., Path], architecture: str, options: dict[str, Any]
) -> None:
    """Within 1 % of the edit's own effect. Layer 0 is edited too, where no constant is needed."""
    with Model.load(tiny_model(architecture, n_layer=5, **options), threads=1) as model:
        normed = architecture == "gemma2"
        edit = edit_for(model, (1, 2, 4), affine=not normed)
        if architecture != "gpt2":
            edit += edit_for(model, (0,))
        found = compare(model, edit)
        assert found.effect > 0.05
        assert found.difference < 0.01


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M"])
@pytest.mark.parametrize(("architecture", "options"), [KINDS[0], KINDS[1], KINDS[7]])
def test_quantized_models_differ_by_no_more_than_their_products_do(
    tiny_model: Callable[..., Path], architecture: str, options: dict[str, Any], file_type: str
) -> None:
    """At most twice what the plain model's products differ from each other, or 2 %."""
    path = tiny_model(architecture, n_layer=5, file_type=file_type, **options)
    with Model.load(path, threads=1) as model:
        found = compare(model, edit_for(model, (1, 3, 4)))
        assert found.difference < max(2 * found.batch, 2 * found.nudge, 0.02)


def test_the_reference_takes_the_mlp_output_under_a_control_vector(
    tiny_model: Callable[..., Path],
) -> None:
    """The name `ffn_out` appears twice then, the second being the residual stream."""
    for options in ({}, {"experts": 4}):
        with Model.load(tiny_model("llama", n_layer=5, **options), threads=1) as model:
            edit = edit_for(model, (1, 2, 4))
            adapter = Adapter(model, exact_edit(model.gguf, edit).adapter)
            vectors = np.zeros((model.n_layer, model.n_embd), np.float32)
            vectors[2] = np.random.default_rng(1).standard_normal(model.n_embd)
            native = logits(model, ((adapter, 2.0),), vectors)
            slow = logits(model, ((edit, 2.0),), vectors)
            assert distance(native, slow) < 0.01 * distance(slow, logits(model, (), vectors))


def test_the_reference_edits_what_it_says(llama_model: Model) -> None:
    base = logits(llama_model)
    edit = Edit({2: LayerEdit.amplify(np.arange(1, llama_model.n_embd + 1))})
    assert np.array_equal(base, logits(llama_model, ((edit, 0.0),)))
    assert np.array_equal(base, logits(llama_model, ((Edit({}), 1.0),)))
    one = logits(llama_model, ((edit, 1.0),))
    two = logits(llama_model, ((edit, 0.4), (edit * 2, 0.3)))
    assert distance(one, base) > 1 and distance(one, two) < 0.01 * distance(one, base)
    missing = Edit({99: edit.layers[2]})
    with pytest.raises(BaseException, match="no MLP output of layer 99"):
        logits(llama_model, ((missing, 1.0),))


# --- making it --------------------------------------------------------------------------------


def test_the_pairs_are_the_edited_matrices(tiny_model: Callable[..., Path]) -> None:
    """`B @ A` is `U V W`, per expert where there are some; blocks of rows change nothing."""
    for architecture, options in (KINDS[0], KINDS[1], KINDS[8]):
        gguf = read_gguf(tiny_model(architecture, n_layer=5, **options))
        size = int(gguf.hparam("embedding_length"))
        swap = LayerEdit.swap(*np.random.default_rng(0).standard_normal((2, size)))
        names = []
        for name, a, b in adapter_tensors(gguf, Edit({0: swap, 3: swap})):
            names.append(name)
            expected = swap.outward @ (swap.inward @ gguf.tensor(name))
            np.testing.assert_allclose(b @ a, expected, atol=1e-6)
        assert names[0].startswith("blk.0.ffn_down") and len(names) == len(set(names))


def test_rows_are_read_a_block_at_a_time(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = read_gguf(tiny_model("llama", n_layer=5, experts=4))
    edit = Edit({1: LayerEdit.swap(*np.random.default_rng(0).standard_normal((2, 64)))})
    ((_, whole, _),) = adapter_tensors(gguf, edit)
    monkeypatch.setattr(exact, "_BLOCK_BYTES", 7 * 4 * 128)
    ((_, parts, _),) = adapter_tensors(gguf, edit)
    np.testing.assert_allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("adapter_type", ["F32", "F16"])
def test_the_file_is_an_adapter(tiny_llama: Path, tmp_path: Path, adapter_type: Any) -> None:
    gguf = read_gguf(tiny_llama)
    edit = Edit({2: LayerEdit.swap(*np.random.default_rng(0).standard_normal((2, 64)))})
    (tmp_path / "a.gguf").write_bytes(exact_edit(gguf, edit, adapter_type=adapter_type).adapter)
    file = read_gguf(tmp_path / "a.gguf")
    assert dict(file.metadata) == {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }  # fmt: skip
    ((name, a, b),) = adapter_tensors(gguf, edit)
    assert {t.type for t in file.tensors.values()} == {adapter_type}
    np.testing.assert_allclose(file.tensor(f"{name}.lora_a"), a, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(file.tensor(f"{name}.lora_b"), b, rtol=1e-3, atol=1e-6)


def test_half_precision_is_enough(llama_model: Model) -> None:
    edit = edit_for(llama_model, (0, 2, 4))
    adapter = Adapter(llama_model, exact_edit(llama_model.gguf, edit, adapter_type="F16").adapter)
    slow = logits(llama_model, ((edit, STRENGTH),))
    native = logits(llama_model, ((adapter, STRENGTH),))
    assert distance(native, slow) < 0.01 * distance(slow, logits(llama_model))


def test_biases_become_constants(tiny_model: Callable[..., Path]) -> None:
    gguf = read_gguf(tiny_model("gpt2", n_layer=5))
    edit = LayerEdit.move(np.random.default_rng(0).standard_normal(64), [3.0])
    rows = exact_edit(gguf, Edit({2: edit})).constants
    expected = edit.change(gguf.tensor("blk.2.ffn_down.bias"))
    np.testing.assert_allclose(rows[2], expected, atol=1e-5)
    assert not np.delete(rows, 2, axis=0).any()


@pytest.fixture
def refused(tiny_model: Callable[..., Path]) -> Iterator[Callable[..., str]]:
    """Makes an edit that is refused and returns the message."""

    def make(architecture: str, edit: Edit) -> str:
        gguf = read_gguf(tiny_model(architecture, n_layer=5))
        with pytest.raises(BadInputError) as caught:
            exact_edit(gguf, edit)
        assert "\n" not in caught.value.message and caught.value.hint != ""
        return caught.value.message

    yield make


def test_what_cannot_be_exact_is_refused(refused: Callable[..., str]) -> None:
    one = np.ones(64)
    move, swap = LayerEdit.move(one, [1.0]), LayerEdit.swap(one, np.arange(64.0))
    assert "constant in layer 0" in refused("llama", Edit({0: move}))
    assert "constant in layer 0" in refused("gpt2", Edit({0: swap}))
    assert "normalizes" in refused("gemma2", Edit({1: move}))
    assert "5 layers" in refused("llama", Edit({5: swap}))
    assert "3 dimensions" in refused("llama", Edit({1: LayerEdit.amplify(np.ones(3))}))


def test_which_models_can_be_edited(tiny_model: Callable[..., Path]) -> None:
    for architecture, options in KINDS:
        assert can_inject_exactly(read_gguf(tiny_model(architecture, n_layer=5, **options))) is None
    gguf = read_gguf(tiny_model("llama", n_layer=5))
    experts = read_gguf(tiny_model("llama", n_layer=5, experts=4))

    def reason(source: Any, metadata: dict[str, Any], tensors: dict[str, str]) -> str | None:
        more = {new: source.tensors[old] for new, old in tensors.items()}
        return can_inject_exactly(
            replace(
                source,
                metadata={**source.metadata, **metadata},
                tensors={**source.tensors, **more},
            )
        )

    down = "blk.1.ffn_down"
    assert "bitnet" in str(reason(gguf, {"general.architecture": "bitnet"}, {}))
    assert "scaled" in str(reason(gguf, {}, {f"{down}.scale": "output_norm.weight"}))
    bias = {f"{down}_exps.bias": "blk.1.ffn_gate_inp.weight"}
    assert "token to token" in str(reason(experts, {}, bias))
    mixed = {f"{down}.weight": f"{down}_exps.weight"}
    assert "ffn_down and ffn_down_exps" in str(reason(experts, {}, mixed))
    none = replace(gguf, tensors={k: v for k, v in gguf.tensors.items() if not k.startswith(down)})
    assert "no ffn_down" in str(can_inject_exactly(none))
    assert can_inject_exactly(none, [0, 2]) is None
    assert "does not end" in str(reason(gguf, {"llama.embedding_length": 63}, {}))


# --- handing it over --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(llama_model: Model) -> tuple[Edit, ExactEdit]:
    edit = edit_for(llama_model, (1, 2, 4))
    return edit, exact_edit(llama_model.gguf, edit)


def test_nothing_is_the_base_model_to_the_bit(
    llama_model: Model, made: tuple[Edit, ExactEdit], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import context as module

    calls = []
    real = module.cpp.llama_set_adapters_lora

    def call(*arguments: object) -> int:
        calls.append(arguments)
        return int(real(*arguments))

    monkeypatch.setattr(module.cpp, "llama_set_adapters_lora", call)
    tokens = llama_model.tokenize(TEXT, begin=True)
    n = len(tokens)
    adapter = Adapter(llama_model, made[1].adapter)

    def run(context: Context) -> FloatArray:
        context.clear()
        context.decode(tokens, range(n), [0] * n, [True] * n)
        return np.array([context.logits(i).copy() for i in range(n)])

    with Context(llama_model, n_ctx=64) as context:
        base = run(context)
        for nothing in ((), ((adapter, 0.0),), ((adapter, 1.5), (adapter, -1.5))):
            context.set_adapters(nothing)
            assert np.array_equal(base, run(context))
        assert not calls
        context.set_adapters(((adapter, 1.0),))
        edited = run(context)
        context.set_adapters(((adapter, 0.75), (adapter, 0.25)))
        assert len(calls) == 1 and not np.array_equal(base, edited)
        context.set_adapters(())
        assert np.array_equal(base, run(context))
        assert len(calls) == 2


def test_the_order_of_adapters_is_irrelevant_to_the_bit(llama_model: Model) -> None:
    adapters = [
        Adapter(llama_model, exact_edit(llama_model.gguf, edit_for(llama_model, (i, 4), i)).adapter)
        for i in range(3)
    ]
    terms = tuple(zip(adapters, (0.8, -0.3, 1.7), strict=True))
    assert np.array_equal(logits(llama_model, terms), logits(llama_model, terms[::-1]))


def test_several_adapters_are_the_edit_of_their_sum(llama_model: Model) -> None:
    one, two = edit_for(llama_model, (1, 3), 1), edit_for(llama_model, (3, 4), 2)
    adapters = [Adapter(llama_model, exact_edit(llama_model.gguf, e).adapter) for e in (one, two)]
    separate = logits(llama_model, ((adapters[0], 0.8), (adapters[1], -1.5)))
    total = one * 0.8 + two * -1.5
    joined = Adapter(llama_model, exact_edit(llama_model.gguf, total).adapter)
    slow = logits(llama_model, ((total, 1.0),))
    effect = distance(slow, logits(llama_model))
    assert distance(separate, slow) < 0.01 * effect
    assert distance(logits(llama_model, ((joined, 1.0),)), slow) < 0.01 * effect


def test_what_is_no_adapter_is_refused(
    llama_model: Model, tiny_model: Callable[..., Path], made: tuple[Edit, ExactEdit]
) -> None:
    content = made[1].adapter
    for bad in (b"", b"GGUF", b"no adapter", content[:200], content[:-5000], content[:4] * 100):
        with pytest.raises(BadInputError) as caught:
            Adapter(llama_model, bad)
        assert "\n" not in caught.value.message
    with (
        Model.load(tiny_model("qwen2", n_layer=5), threads=1) as other,
        pytest.raises(BadInputError, match="mismatch"),
    ):
        Adapter(other, content)
    adapter = Adapter(llama_model, content)
    with (
        Model.load(llama_model.path, threads=1) as other,
        Context(other, n_ctx=64) as context,
        pytest.raises(ValueError, match="another model"),
    ):
        context.set_adapters(((adapter, 1.0),))
    with pytest.raises(ValueError, match="finite"):
        zeros = np.zeros((2, 2), np.float32)
        Injection(zeros, zeros, ((adapter, float("nan")),))


def test_an_adapter_lives_as_long_as_it_is_set(
    llama_model: Model, made: tuple[Edit, ExactEdit]
) -> None:
    adapter = Adapter(llama_model, made[1].adapter)
    gone = weakref.ref(adapter)
    with Context(llama_model, n_ctx=64) as context:
        context.set_adapters(((adapter, 1.0),))
        del adapter
        assert gone() is not None
        context.decode([5, 6, 7], range(3), [0] * 3, [True] * 3)
        context.set_adapters(())
        assert gone() is None
        context.decode([8], [3], [0], [True])


def test_systems_without_memory_files(
    llama_model: Model, made: tuple[Edit, ExactEdit], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(llama_model, ((Adapter(llama_model, made[1].adapter), 1.0),))
    monkeypatch.delattr("os.memfd_create", raising=False)
    found = logits(llama_model, ((Adapter(llama_model, made[1].adapter), 1.0),))
    assert np.array_equal(expected, found)


def test_a_closed_model_takes_its_adapters_along(
    llama_model: Model, made: tuple[Edit, ExactEdit]
) -> None:
    with Model.load(llama_model.path, threads=1) as model:
        adapter = Adapter(model, made[1].adapter)
    del adapter
    gc.collect()


# --- in use -----------------------------------------------------------------------------------


def phases(model: Model, deciding: Edits, answer: Edits) -> Injection:
    zeros = np.zeros((model.n_layer, model.n_embd), np.float32)
    return Injection(zeros, zeros, deciding, answer)


def test_each_phase_has_its_edits(llama_model: Model, made: tuple[Edit, ExactEdit]) -> None:
    edit, content = made
    adapter = Adapter(llama_model, content.adapter)
    prompt = llama_model.tokenize("Why is the sky blue?", begin=True)
    answer = llama_model.tokenize(" Because of the air.", begin=False)
    native, slow = ((adapter, 1.5),), ((edit, 1.5),)
    injections = [
        None, phases(llama_model, native, ()), phases(llama_model, (), native),
        phases(llama_model, native, native), phases(llama_model, slow, slow),
        phases(llama_model, ((adapter, 0.0),), ((edit, 0.0),)), None,
    ]  # fmt: skip
    with Scorer(llama_model) as scorer:
        base, first, rest, both, reference, zero, again = scorer.log_probs(
            prompt, answer, injections
        )
    assert np.array_equal(base, zero) and np.array_equal(base, again)
    assert not np.array_equal(base[0], first[0]) and np.array_equal(first[0], both[0])
    assert np.array_equal(base[0], rest[0]) and not np.array_equal(base[1], rest[1])
    assert distance(both, reference) < 0.01 * distance(both, base)


def test_sessions_and_batches_leave_nothing_behind(
    llama_model: Model, made: tuple[Edit, ExactEdit]
) -> None:
    edit, content = made
    adapter = Adapter(llama_model, content.adapter)
    sampling = Sampling(temperature=0, max_tokens=8, min_tokens=8)
    prompt = llama_model.tokenize("Why is the sky blue?", begin=True)
    loud = phases(llama_model, ((adapter, 6.0),), ((adapter, 6.0),))
    slow = phases(llama_model, ((edit, 6.0),), ((edit, 6.0),))
    assert not loud.is_zero()

    def answer(session: Session, injection: Injection | None) -> tuple[int, ...]:
        list(session.stream(prompt, sampling, injection))
        assert session.completion is not None
        return session.completion.tokens

    with Session(llama_model) as session:
        plain = answer(session, None)
        edited = answer(session, loud)
        assert edited != plain and plain_tokens(session) == tuple(prompt[:-1])
        assert answer(session, None) == plain
        assert answer(session, loud) == edited
        assert answer(session, slow) == edited
        half = session.stream(prompt, sampling, loud)
        next(half)
        assert answer(session, None) == plain
    requests = [Request(prompt, sampling, i) for i in range(3)]
    for injection, expected in ((None, plain), (loud, edited), (slow, edited)):
        found = generate_batch(llama_model, requests, injection=injection, width=2)
        assert [c.tokens for c in found] == [expected] * 3
