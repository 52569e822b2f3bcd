"""Adapters that a model carries: always set, beneath every steering, and part of what it is."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import pytest

from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.interventions.exact import adapter_tensors, exact_edit
from alignez_edge.interventions.mlp_edit import Edit
from alignez_edge.modelfiles.fingerprint import Fingerprint, Fit, compare
from alignez_edge.modelfiles.lora import Lora, adapter_file, parse_lora_option, read_lora
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.score import Scorer
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter
from tests.profiles import random_profile
from tests.terminal import Alignez
from tests.test_exact import KINDS, STRENGTH, distance, edit_for, logits

RANK = 4
Make = Callable[..., Path]
Factors = dict[str, np.ndarray]


def factors(model: Path, *parts: str, seed: int = 0, size: float = 0.5) -> Factors:
    """Random factors of rank 4 for the matrices of a model file whose names hold one of `parts`."""
    rng = np.random.default_rng(seed)
    made: Factors = {}
    for name, info in read_gguf(model).tensors.items():
        if len(info.shape) < 2 or not any(part in name for part in parts):
            continue
        n_in, n_out, *experts = info.shape
        a = rng.standard_normal((*experts, RANK, n_in)) / np.sqrt(n_in)
        b = rng.standard_normal((*experts, n_out, RANK)) * size
        made[f"{name}.lora_a"], made[f"{name}.lora_b"] = a, b
    return made


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    architecture: str = "llama",
    alpha: Any = 8.0,
    keys: Mapping[str, Any] = {},
) -> Path:
    """An adapter file as another program would write it; `keys` add some, None leaves one out."""
    usual = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha}
    writer = gguf_package.GGUFWriter(path, architecture)
    for key, value in {**usual, **keys}.items():
        if value is not None:
            kind = (
                gguf_package.GGUFValueType.FLOAT32
                if isinstance(value, float)
                else gguf_package.GGUFValueType.get_type(value)
            )
            writer.add_key_value(key, value, kind)
    for name, values in tensors.items():
        plain = values.dtype if values.dtype in (np.float16, np.int32) else np.float32
        writer.add_tensor(name, np.ascontiguousarray(values, plain))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tuned_file(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of all matrices in the layers of `tiny_llama`."""
    folder = tmp_path_factory.mktemp("lora")
    return write(folder / "tuned.gguf", factors(tiny_llama, "blk."))


@pytest.fixture(scope="module")
def tuned(tiny_llama: Path, tuned_file: Path) -> Any:
    with Model.load(tiny_llama, threads=1, lora=[(tuned_file, 0.5)]) as model:
        yield model


# --- what it does to the model ----------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "options"), [KINDS[0], KINDS[1], KINDS[7], KINDS[8]])
@pytest.mark.parametrize("alpha", [8.0, None])
def test_it_is_the_model_with_other_matrices(
    tiny_model: Make, tmp_path: Path, architecture: str, options: dict[str, Any], alpha: float
) -> None:
    """The same logits as a model file whose matrices are `W + s alpha/rank B A`."""
    path = tiny_model(architecture, file_type="F32", **options)
    made = factors(path, "ffn_down", "attn_output", "output.weight")
    scale = 0.7 * (alpha / RANK if alpha else 1)

    def merged(name: str, values: np.ndarray) -> np.ndarray:
        if f"{name}.lora_a" not in made:
            return values
        change = scale * (made[f"{name}.lora_b"] @ made[f"{name}.lora_a"])
        return (values + change).astype(np.float32)

    whole = tiny_model(architecture, file_type="F32", weights=merged, **options)
    file = write(tmp_path / "a.gguf", made, architecture, alpha)
    with (
        Model.load(path, threads=1) as base,
        Model.load(path, threads=1, lora=[(file, 0.7)]) as carrying,
        Model.load(whole, threads=1) as expected,
    ):
        effect = distance(logits(base), logits(expected))
        assert effect > 0.1 * distance(logits(base), 0 * logits(base))
        assert distance(logits(carrying), logits(expected)) < 0.001 * effect


def test_token_embeddings_have_their_factors_the_other_way_round(
    tiny_model: Make, tmp_path: Path
) -> None:
    path = tiny_model("llama", file_type="F32")
    n_embd, n_vocab = read_gguf(path).tensors["token_embd.weight"].shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n_vocab, RANK)), rng.standard_normal((n_embd, RANK))
    name = "token_embd.weight"
    file = write(tmp_path / "a.gguf", {f"{name}.lora_a": a, f"{name}.lora_b": b}, alpha=0.0)

    def merged(tensor: str, values: np.ndarray) -> np.ndarray:
        return (values + a @ b.T).astype(np.float32) if tensor == name else values

    whole = tiny_model("llama", file_type="F32", weights=merged)
    with Model.load(path, threads=1, lora=[(file, 1)]) as model, Model.load(whole) as expected:
        size = distance(logits(expected), 0 * logits(expected))
        assert distance(logits(model), logits(expected)) < 0.001 * size


def test_scales_add_up_and_zero_is_the_base_model(tiny_llama: Path, tuned_file: Path) -> None:
    def found(*scales: float) -> np.ndarray:
        lora = [(tuned_file, scale) for scale in scales]
        with Model.load(tiny_llama, threads=1, lora=lora) as model:
            return logits(model)

    base = found()
    assert np.array_equal(base, found(0.0))
    effect = distance(base, found(0.5))
    assert effect > 1 and distance(found(0.5), found(0.2, 0.3)) < 0.01 * effect


def test_strength_zero_is_the_tuned_model_to_the_bit(tuned: Model, llama_model: Model) -> None:
    edit = edit_for(tuned, (1, 3))
    adapter = Adapter(tuned, exact_edit(tuned.gguf, edit, lora=tuned.lora).adapter)
    plain = logits(tuned)
    assert not np.array_equal(plain, logits(llama_model))
    assert np.array_equal(plain, logits(tuned, ((adapter, 0.0),)))
    assert np.array_equal(plain, logits(tuned, ((adapter, 2.0), (adapter, -2.0))))
    assert np.array_equal(plain, logits(tuned, ((edit, 0.0),)))
    with Context(tuned, n_ctx=64) as context:
        tokens = tuned.tokenize("hello", begin=True)
        n = len(tokens)
        context.decode(tokens, range(n), [0] * n, [True] * n)
        before = context.logits(n - 1).copy()
        context.set_adapters(((adapter, 2.0),))
        context.set_adapters(())
        context.clear()
        context.decode(tokens, range(n), [0] * n, [True] * n)
        assert np.array_equal(before, context.logits(n - 1))


def test_everything_runs_on_the_tuned_model(tuned: Model, llama_model: Model) -> None:
    """Conversations, batches, scores and captures see it, steered by nothing and by something."""
    sampling = Sampling(temperature=0, max_tokens=8, min_tokens=8)
    prompt = tuned.tokenize("Why is the sky blue?", begin=True)
    answer = tuned.tokenize(" Because of the air.", begin=False)
    adapter = Adapter(tuned, exact_edit(tuned.gguf, edit_for(tuned, (1,)), lora=tuned.lora).adapter)
    zeros = np.zeros((tuned.n_layer, tuned.n_embd), np.float32)
    loud = Injection(zeros, zeros, ((adapter, 6.0),), ((adapter, 6.0),))

    def spoken(model: Model, injection: Injection | None) -> list[tuple[int, ...]]:
        with Session(model) as session:
            list(session.stream(prompt, sampling, injection))
            assert session.completion is not None
            first = session.completion.tokens
        requests = [Request(prompt, sampling, i) for i in range(2)]
        return [first, *(c.tokens for c in generate_batch(model, requests, injection=injection))]

    plain, steered = spoken(tuned, None), spoken(tuned, loud)
    assert len(set(plain)) == len(set(steered)) == 1
    assert len({plain[0], steered[0], spoken(llama_model, None)[0]}) == 3
    with Scorer(tuned) as scorer:
        first, between, again = scorer.log_probs(prompt, answer, [None, loud, None])
    with Scorer(llama_model) as scorer:
        (base,) = scorer.log_probs(prompt, answer, [None])
    assert np.array_equal(first, again)
    assert distance(first, between) > 0.1 and distance(first, base) > 0.1
    states, other = (next(capture(m, [(prompt, answer)])) for m in (tuned, llama_model))
    assert distance(states.deciding, other.deciding) > 1


# --- exact edits of the adapted matrices ------------------------------------------------------


@pytest.mark.parametrize(("architecture", "options"), KINDS)
def test_exact_is_the_reference_on_an_adapted_model(
    tiny_model: Make, tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    """Within 1 % of the edit's own effect; an edit of the plain matrices is far off.

    At three of four tokens: one whose experts are nearly tied goes to others by rounding alone.
    """
    path = tiny_model(architecture, n_layer=5, **options)
    files = [
        write(tmp_path / f"{i}.gguf", factors(path, "blk.", seed=i), architecture, alpha)
        for i, alpha in enumerate((8.0, None))
    ]
    with Model.load(path, threads=1, lora=[(files[0], 0.3), (files[1], -0.4)]) as model:
        edit = edit_for(model, (1, 2, 4))
        slow = logits(model, ((edit, STRENGTH),))
        effect = np.linalg.norm(slow - logits(model), axis=1)

        def off(**carried: Any) -> float:
            made = exact_edit(model.gguf, edit, **carried)
            vectors = made.constants * np.float32(STRENGTH)
            native = logits(model, ((Adapter(model, made.adapter), STRENGTH),), vectors)
            return float(np.quantile(np.linalg.norm(native - slow, axis=1) / effect, 0.75))

        assert off(lora=model.lora) < 0.01
        assert off() > 0.05


def test_the_edit_is_of_the_adapted_matrix(tiny_model: Make, tmp_path: Path) -> None:
    for options in ({}, {"experts": 4}):
        path = tiny_model("llama", **options)
        model = read_gguf(path)
        made = factors(path, "ffn_down")
        lora = read_lora(write(tmp_path / "a.gguf", made, alpha=2.0), model)
        edit = Edit({2: edit_for_size(int(model.metadata["llama.embedding_length"]))})
        ((name, a, b),) = adapter_tensors(model, edit, [(lora, 0.6)])
        change = made[f"{name}.lora_b"] @ made[f"{name}.lora_a"]
        matrix = model.tensor(name) + 0.6 * 2.0 / RANK * change
        expected = edit.layers[2].outward @ (edit.layers[2].inward @ matrix)
        np.testing.assert_allclose(b @ a, expected, atol=1e-5)


def edit_for_size(n_embd: int) -> Any:
    from alignez_edge.interventions.mlp_edit import LayerEdit

    return LayerEdit.swap(*np.random.default_rng(3).standard_normal((2, n_embd)))


# --- which model it is ------------------------------------------------------------------------


def test_the_fingerprint_says_what_a_model_carries(
    tiny_llama: Path, tuned_file: Path, tmp_path: Path
) -> None:
    def taken(*lora: tuple[Path, float]) -> Fingerprint:
        with Model.load(tiny_llama, threads=1, lora=lora) as model:
            return model.fingerprint

    other = write(tmp_path / "other.gguf", factors(tiny_llama, "ffn_up", seed=1))
    copied = write(
        tmp_path / "copy.gguf", factors(tiny_llama, "blk."), keys={"general.name": "otherwise"}
    )
    base, one = taken(), taken((tuned_file, 0.5))
    same = (
        (base, taken((tuned_file, 0.0))),
        (one, taken((copied, 0.5))),
        (one, taken((tuned_file, 0.2), (copied, 0.3))),
        (taken((tuned_file, 0.5), (other, 1)), taken((other, 1), (tuned_file, 0.5))),
    )
    for a, b in same:
        assert compare(a, b).fit is Fit.SAME and a.digest() == b.digest()
    for changed in (base, taken((tuned_file, 0.6)), taken((other, 0.5))):
        found = compare(one, changed)
        assert (found.fit, found.differing) == (Fit.SAME_SHAPE, ("adapter",))
        assert one.digest() != changed.digest()
    assert Fingerprint.from_metadata(one.to_metadata()).adapter == one.adapter != ""
    assert "model.adapter" not in base.to_metadata()
    for bad in (7, "x", "0" * 64, one.adapter + "\n"):
        with pytest.raises(ProfileFileError, match="adapter"):
            Fingerprint.from_metadata({**one.to_metadata(), "model.adapter": bad})


def test_a_profile_knows_its_adapter(tuned: Model, llama_model: Model, tmp_path: Path) -> None:
    from alignez_edge.profile.profile import Profile

    random_profile(tuned).save(tmp_path / "p.gguf")
    profile = Profile.load(tmp_path / "p.gguf")
    assert compare(profile.fingerprint, tuned.fingerprint).fit is Fit.SAME
    assert (profile * 1.0).notices(tuned) == []
    (notice,) = (profile * 1.0).notices(llama_model)
    assert notice.endswith("adapter")
    assert tuned.facts.name == f"{llama_model.facts.name} + tuned.gguf:0.5"


# --- lifetimes --------------------------------------------------------------------------------


def test_a_dropped_model_goes_at_once(tiny_llama: Path, tuned_file: Path) -> None:
    gc.disable()
    try:
        model = Model.load(tiny_llama, threads=1, lora=[(tuned_file, 1.0)])
        gone, adapter = weakref.ref(model), model.adapters[0][0]
        assert adapter.model is model
        del model
        assert gone() is None and adapter.model is None
    finally:
        gc.enable()


# --- untrusted files --------------------------------------------------------------------------

DOWN = "blk.1.ffn_down.weight"


def nothing(made: Factors) -> None:
    """Leave the factors as they are."""


def without_b(made: Factors) -> None:
    del made[f"{DOWN}.lora_b"]


def another_rank(made: Factors) -> None:
    made[f"{DOWN}.lora_a"] = made[f"{DOWN}.lora_a"][:2]


def other_sizes(made: Factors) -> None:
    made[f"{DOWN}.lora_b"] = made[f"{DOWN}.lora_b"][:7]


def more_axes(made: Factors) -> None:
    for side in "ab":
        made[f"{DOWN}.lora_{side}"] = np.stack([made[f"{DOWN}.lora_{side}"]] * 2)


def renamed(new: str) -> Callable[[Factors], None]:
    def rename(made: Factors) -> None:
        for side in "ab":
            made[f"{new}.lora_{side}"] = made.pop(f"{DOWN}.lora_{side}")

    return rename


def a_norm(made: Factors) -> None:
    made["blk.1.ffn_norm.weight"] = np.ones(64)


def infinite(made: Factors) -> None:
    made[f"{DOWN}.lora_a"][1, 2] = np.inf


def whole_numbers(made: Factors) -> None:
    made[f"{DOWN}.lora_a"] = made[f"{DOWN}.lora_a"].astype(np.int32)


BAD: dict[str, tuple[str, Callable[[Factors], None], dict[str, Any]]] = {
    "model": ("not an adapter but 'model'", nothing, {"general.type": "model"}),
    "no-type": ("not an adapter but 'model'", nothing, {"general.type": None}),
    "number-type": ("not an adapter but '7'", nothing, {"general.type": 7}),
    "kind": ("of the kind 'other'", nothing, {"adapter.type": "other"}),
    "no-kind": ("of the kind 'None'", nothing, {"adapter.type": None}),
    "architecture": (
        "an adapter for qwen2; the model is llama",
        nothing,
        {"general.architecture": "qwen2"},
    ),
    "alpha-nan": ("alpha is nan", nothing, {"adapter.lora.alpha": float("nan")}),
    "alpha-text": ("alpha is much", nothing, {"adapter.lora.alpha": "much"}),
    "alpha-yes": ("alpha is True", nothing, {"adapter.lora.alpha": True}),
    "words": ("aLoRA", nothing, {"adapter.alora.invocation_tokens": [1, 2]}),
    "empty": ("without any tensors", dict.clear, {}),
    "half": (f"{DOWN}.lora_b is missing", without_b, {}),
    "rank": ("are 128 x 2 and 4 x 64", another_rank, {}),
    "sizes": ("are 128 x 4 and 4 x 7, the matrix is 128 x 64", other_sizes, {}),
    "axes": ("are 128 x 4 x 2 x 1", more_axes, {}),
    "unknown": ("blk.9.ffn_down.weight, which the model", renamed("blk.9.ffn_down.weight"), {}),
    "vector": ("is not a matrix", renamed("blk.1.ffn_norm.weight"), {}),
    "norm": ("replaces blk.1.ffn_norm.weight", a_norm, {}),
    "infinite": ("lora_a holds numbers that are not finite", infinite, {}),
    "integers": ("lora_a holds I32 numbers", whole_numbers, {}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_adapter_for_this_model(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    error, change, keys = BAD[name]
    made = factors(tiny_llama, "blk.1.")
    change(made)
    architecture = keys.get("general.architecture", "llama")
    keys = {key: value for key, value in keys.items() if key != "general.architecture"}
    file = write(tmp_path / "bad.gguf", made, architecture, keys=keys)
    with pytest.raises(BadInputError) as caught:
        read_lora(file, read_gguf(tiny_llama))
    assert error in caught.value.message and "\n" not in caught.value.message


def test_tied_embeddings_are_refused(tiny_model: Make, tmp_path: Path) -> None:
    """llama.cpp ends the process where it meets them again as the output matrix."""
    path = tiny_model("gemma")
    n_embd, n_vocab = read_gguf(path).tensors["token_embd.weight"].shape
    made = {"a": np.ones((n_vocab, RANK)), "b": np.ones((n_embd, RANK))}
    tensors = {f"token_embd.weight.lora_{side}": values for side, values in made.items()}
    file = write(tmp_path / "a.gguf", tensors, "gemma")
    with pytest.raises(BadInputError, match="also this model's output matrix"):
        read_lora(file, read_gguf(path))


def test_matrices_that_llama_cpp_cannot_adapt(tiny_llama: Path, tuned_file: Path) -> None:
    model = read_gguf(tiny_llama)
    tensors = {**model.tensors, DOWN: replace(model.tensors[DOWN], type="NVFP4")}
    with pytest.raises(BadInputError, match=f"{DOWN}, which is NVFP4"):
        read_lora(tuned_file, replace(model, tensors=tensors))


def test_torn_files_are_refused_or_are_whole(
    tiny_llama: Path, tuned_file: Path, tmp_path: Path
) -> None:
    whole, base = tuned_file.read_bytes(), read_gguf(tiny_llama)
    file = tmp_path / "torn.gguf"
    rng = np.random.default_rng(0)
    for cut in (0, 3, 20, 500, 3000, len(whole) // 2, len(whole) - 1000):
        file.write_bytes(whole[:cut])
        with pytest.raises(BadInputError):
            read_lora(file, base)
    with Model.load(tiny_llama, threads=1) as model:
        for _ in range(150):
            torn = bytearray(whole)
            for at in rng.integers(0, 6000, 3):
                torn[at] = rng.integers(256)
            file.write_bytes(torn)
            try:
                content = read_lora(file, base).content()
            except BadInputError as error:
                assert "\n" not in error.message
            else:
                Adapter(model, content)


def test_quantized_factors_are_used_as_they_are(tiny_model: Make, tmp_path: Path) -> None:
    """What is not kept in F32 is handed on in its own format."""
    path = tiny_model("llama")
    kinds = gguf_package.GGMLQuantizationType
    tensors = []
    plain = factors(path, "ffn_down", "attn_output")
    for name, values in plain.items():
        kind = kinds.Q8_0 if name.endswith("lora_a") else kinds.F16
        raw = gguf_package.quants.quantize(values.astype(np.float32), kind).tobytes()
        tensors.append((name, values.shape[::-1], kind.name, raw))
    file = tmp_path / "q.gguf"
    file.write_bytes(adapter_file("llama", 8.0, tensors))
    exact = write(tmp_path / "f.gguf", plain)
    with (
        Model.load(path, threads=1) as base,
        Model.load(path, threads=1, lora=[(file, 1)]) as quantized,
        Model.load(path, threads=1, lora=[(exact, 1)]) as full,
    ):
        effect = distance(logits(full), logits(base))
        assert distance(logits(quantized), logits(full)) < 0.1 * effect
        assert read_gguf(file).tensors.keys() == quantized.lora[0][0].gguf.tensors.keys()
        assert quantized.lora[0][0].content() != full.lora[0][0].content()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e300])
def test_scales_must_be_finite(tiny_llama: Path, tuned_file: Path, scale: float) -> None:
    with pytest.raises(BadInputError, match="must be a finite number"):
        Model.load(tiny_llama, threads=1, lora=[(tuned_file, scale)])


def test_reading_and_writing_are_the_same(
    tiny_llama: Path, tuned_file: Path, tmp_path: Path
) -> None:
    base = read_gguf(tiny_llama)
    lora = read_lora(tuned_file, base)
    (tmp_path / "again.gguf").write_bytes(lora.content())
    again: Lora = read_lora(tmp_path / "again.gguf", base)
    assert again.content() == lora.content() and again.digest == lora.digest
    assert again.alpha == lora.alpha == 8


# --- the command line -------------------------------------------------------------------------


def test_the_option(tmp_path: Path) -> None:
    assert parse_lora_option("a.gguf") == ("a.gguf", 1.0)
    assert parse_lora_option("a.gguf:0.5") == ("a.gguf", 0.5)
    assert parse_lora_option("a.gguf:-2e-1") == ("a.gguf", -0.2)
    assert parse_lora_option("C:\\a.gguf") == ("C:\\a.gguf", 1.0)
    assert parse_lora_option("a:b.gguf:0.5") == ("a:b.gguf", 0.5)
    assert parse_lora_option("a.gguf:half") == ("a.gguf:half", 1.0)
    (tmp_path / "a:2").write_bytes(b"")
    assert parse_lora_option(str(tmp_path / "a:2")) == (str(tmp_path / "a:2"), 1.0)
    for scale in ("nan", "inf", "-inf", "1e300"):
        with pytest.raises(BadInputError, match="finite"):
            parse_lora_option(f"a.gguf:{scale}")


def test_commands_take_it(alignez: Alignez, tiny_chat: Path, tuned_file: Path) -> None:
    use = ["-m", tiny_chat, "--threads", 1, "--json"]
    run = ["run", "hello", *use, "--max-tokens", 4, "--temperature", 0]
    plain = json.loads(alignez(*run).out)
    half, off = (json.loads(alignez(*run, "--lora", f"{tuned_file}:{s}").out) for s in ("0.5", "0"))
    assert "lora" not in plain
    assert half["lora"] == [{"file": "tuned.gguf", "scale": 0.5}]
    assert off["text"] == plain["text"] != half["text"]
    facts = json.loads(alignez("model", "show", *use, "--lora", tuned_file).out)
    assert facts["lora"] == [{"file": "tuned.gguf", "scale": 1.0}]
    card = alignez("model", "show", "-m", tiny_chat, "--lora", f"{tuned_file}:0.5").out
    assert "tuned.gguf at scale 0.5" in card


def test_bad_adapters_are_one_line_and_2(
    alignez: Alignez, tiny_chat: Path, tuned_file: Path, tmp_path: Path
) -> None:
    random_profile_file = tmp_path / "p.gguf"
    with Model.load(tiny_chat, threads=1) as model:
        random_profile(model).save(random_profile_file)
    for option, error in (
        (tmp_path / "nowhere.gguf", "no such file"),
        (f"{tuned_file}:nan", "must be a finite number"),
        (f"{tuned_file}:half", "no such file"),
        (tiny_chat, "not an adapter but 'model'"),
        (random_profile_file, "give profiles with -p"),
        ("", "is a folder"),
    ):
        said = alignez("run", "hello", "-m", tiny_chat, "--threads", 1, "--lora", option)
        assert (said.code, said.out) == (2, "")
        shown, *rest = said.err.splitlines()
        assert shown.startswith("error: ") and len(rest) <= 1
        assert error in said.err
    said = alignez("run", "hello", "-m", tuned_file)
    assert said.code == 2 and "give adapters with --lora" in said.err
