"""Exports: the numbers in the files are the profile's, and llama.cpp does with them what we do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from alignez_edge.demo.bundled import demo_queries
from alignez_edge.errors import AlignezError, BadInputError, ProfileFileError
from alignez_edge.exchange.export import (
    PARTS,
    Part,
    built_from,
    export_control_vector,
    export_lora,
    export_pairs,
    factors,
)
from alignez_edge.exchange.peft import MODULES, export_peft
from alignez_edge.exchange.vectorfile import read_control_vector
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.interventions.ways import Way
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pair_store import PairStore
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.profile.profile import Profile
from alignez_edge.profile.provenance import ModelFile, Provenance, Source
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer
from benchmarks.exchange import Bench
from benchmarks.llamacpp import Completion, built
from tests.profiles import random_profile
from tests.seeds import all_profiles

LAYERS = (1, 3)
DOWN = "blk.{}.ffn_down.weight"


def exact_profile(model: Model, ranks: tuple[int, ...] = (2, 2)) -> Profile:
    """A profile that does one random edit at every token, of these ranks in `LAYERS`."""
    rng = np.random.default_rng(3)
    edits = {}
    for layer, rank in zip(LAYERS, ranks, strict=True):
        outward, inward = rng.standard_normal((2, rank, model.n_embd)) / model.n_embd**0.5
        edits[layer] = LayerEdit(
            outward.T.astype(np.float32),
            inward.astype(np.float32),
            np.zeros(model.n_embd, np.float32),
        )
    return Profile(
        Axis("polite", positive="polite", negative="rude"),
        ControlVector.zeros(model.n_layer, model.n_embd),
        LAYERS,
        model.fingerprint,
        intervention=ExactForm(Edit(edits), Edit(edits), unit=0.8),
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_control_vector_holds_what_is_injected(
    tmp_path: Path, llama_model: Model, part: Part
) -> None:
    profile = random_profile(llama_model)
    found = export_control_vector(profile, tmp_path / "v.gguf", strength=-0.7, part=part)
    injection = (profile * -0.7).by("control-vector").injection(llama_model)
    assert isinstance(injection, Injection)
    rows = read_control_vector(tmp_path / "v.gguf").rows(llama_model.n_layer, llama_model.n_embd)
    assert np.array_equal(rows, getattr(injection, part))
    assert found.files == (tmp_path / "v.gguf",)
    assert len(found.notices) == 2


def test_one_vector_for_all_tokens_loses_less(tmp_path: Path, llama_model: Model) -> None:
    profile = random_profile(llama_model)
    same = ControlVector(profile.vector.answer, profile.vector.answer)
    found = export_control_vector(replace(profile, vector=same), tmp_path / "v.gguf")
    (notice,) = found.notices
    assert "every token" in notice


@pytest.mark.parametrize(("strength", "error"), [(0.0, "changes nothing"), (1e38, "overflows")])
def test_strengths_that_cannot_be_written(
    tmp_path: Path, llama_model: Model, strength: float, error: str
) -> None:
    vector = random_profile(llama_model).vector * 1e3
    profile = replace(random_profile(llama_model), vector=vector)
    with pytest.raises(BadInputError, match=error):
        export_control_vector(profile, tmp_path / "v.gguf", strength=strength)
    with pytest.raises(BadInputError, match="changes nothing" if not strength else "overflow"):
        export_lora(
            exact_profile(llama_model), llama_model, tmp_path / "lora", strength=strength * 1e4
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_lora_is_the_exact_edit(
    tmp_path: Path, tiny_model: Callable[..., Path], architecture: str
) -> None:
    """llama.cpp loads the file as an adapter of the model: then every token is edited."""
    path = tiny_model(architecture, n_layer=5)
    with Model.load(path, threads=1) as model, Scorer(model) as scorer:
        tokens = model.tokenize("How do I bake bread? With flour.", begin=True)
        profile = exact_profile(model)
        exact = (profile * 0.5).by("exact").injection(model)
        assert isinstance(exact, Injection)
        # The prompt is one token, so that no token is left plain.
        plain, ours = scorer.log_probs(tokens[:1], tokens[1:], [None, exact])
        found = export_lora(profile, model, tmp_path / "lora", strength=0.5)
        shape = model.n_layer, model.n_embd
    names = [file.name for file in found.files]
    constants = None
    if architecture == "gpt2":  # the only one here whose MLP ends with a bias
        assert names == ["adapter.gguf", "control-vector.gguf", "Modelfile"]
        rows = read_control_vector(found.files[1]).rows(*shape)
        constants = Injection(rows, rows)
    else:
        assert names == ["adapter.gguf", "Modelfile"]
    lora = [(found.files[0], 1.0)]
    with Model.load(path, threads=1, lora=lora) as model, Scorer(model) as scorer:
        (theirs,) = scorer.log_probs(tokens[:1], tokens[1:], [constants])
    effect = np.abs(ours - plain).max()
    assert effect > 0.05
    assert np.abs(ours - theirs).max() < 0.02 * effect


def test_all_matrices_have_one_rank(tmp_path: Path, llama_model: Model) -> None:
    profile = exact_profile(llama_model, ranks=(1, 3))
    found = factors(profile, llama_model, 1.0, "answer")
    assert found.rank == 3 and not found.constants.any()
    for layer in LAYERS:
        a, b = found.matrices[DOWN.format(layer)]
        assert (a.shape, b.shape) == ((3, 2 * llama_model.n_embd), (llama_model.n_embd, 3))
        edit = profile.exact.answer.layers[layer]  # type: ignore[union-attr]
        weight = llama_model.gguf.tensor(DOWN.format(layer))
        wanted = 0.8 * edit.outward @ (edit.inward @ weight)
        assert np.allclose(b @ a, wanted, atol=1e-5)
    export_lora(profile, llama_model, tmp_path / "lora")
    keys = read_gguf(tmp_path / "lora" / "adapter.gguf").metadata
    assert keys["adapter.lora.alpha"] == 3.0


def test_the_modelfile_names_files_only(tmp_path: Path, llama_model: Model) -> None:
    export_lora(exact_profile(llama_model), llama_model, tmp_path / "lora")
    lines = (tmp_path / "lora" / "Modelfile").read_text("utf-8").splitlines()
    assert lines[1:] == [f"FROM ./{llama_model.path.name}", "ADAPTER ./adapter.gguf"]
    assert not any(str(llama_model.path.parent) in line for line in lines)


def test_what_stands_in_the_way_is_left(tmp_path: Path, llama_model: Model) -> None:
    pytest.importorskip("safetensors")
    profile = exact_profile(llama_model)
    (tmp_path / "there").write_text("mine")
    for export in (export_lora, export_peft):
        with pytest.raises(BadInputError, match="it is a file, not a folder"):
            export(profile, llama_model, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInputError, match="not a plain file"):
        export_control_vector(random_profile(llama_model), tmp_path / "folder")


def test_the_mean_of_an_edit_is_said_to_be_one(tmp_path: Path, llama_model: Model) -> None:
    exact = exact_profile(llama_model).exact
    profile = replace(random_profile(llama_model), layers=(1, 2, 3), intervention=exact)
    found = export_control_vector(profile, tmp_path / "v.gguf")
    assert "--to lora writes the edit itself" in found.notices[-1]


def test_a_displacement_is_no_lora(tmp_path: Path, llama_model: Model) -> None:
    profile = random_profile(llama_model)
    for export in (export_lora, export_peft):
        with pytest.raises(BadInputError, match="no LoRA can be made") as failure:
            export(profile, llama_model, tmp_path / "out")
        assert "--to control-vector" in (failure.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_a_lora_is_for_its_model(
    tmp_path: Path, llama_model: Model, tiny_model: Callable[..., Path]
) -> None:
    profile = exact_profile(llama_model)
    with (
        Model.load(tiny_model("qwen2", n_layer=5), threads=1) as other,
        pytest.raises(ProfileFileError, match="made for another model"),
    ):
        export_lora(profile, other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_peft_folder(tmp_path: Path, llama_model: Model) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    profile = exact_profile(llama_model)
    found = export_peft(profile, llama_model, tmp_path / "peft", strength=2.0)
    assert [file.name for file in found.files] == [
        "adapter_model.safetensors",
        "adapter_config.json",
    ]
    config = json.loads(found.files[1].read_text("utf-8"))
    modules = [f"model.layers.{layer}.mlp.down_proj" for layer in LAYERS]
    assert config["target_modules"] == modules
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)
    assert not config["fan_in_fan_out"] and not config["lora_bias"]
    tensors = numpy_files.load_file(found.files[0])
    wanted = factors(profile, llama_model, 2.0, "answer").matrices
    assert len(tensors) == 2 * len(LAYERS)
    for layer, module in zip(LAYERS, modules, strict=True):
        for factor, name in zip(wanted[DOWN.format(layer)], "AB", strict=True):
            stored = tensors[f"base_model.model.{module}.lora_{name}.weight"]
            assert stored.dtype == np.float32 and np.array_equal(stored, factor)


def test_peft_on_gpt2_has_biases(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    with Model.load(tiny_model("gpt2", n_layer=5), threads=1) as model:
        profile = exact_profile(model)
        found = export_peft(profile, model, tmp_path / "peft")
        rows = factors(profile, model, 1.0, "answer").constants
    config = json.loads(found.files[1].read_text("utf-8"))
    assert config["fan_in_fan_out"] and config["lora_bias"]
    tensors = numpy_files.load_file(found.files[0])
    for layer in LAYERS:
        name = f"base_model.model.transformer.h.{layer}.mlp.c_proj.lora_B.bias"
        assert np.array_equal(tensors[name], rows[layer])
    assert "vLLM" in found.notices[-1]


def test_modules_are_those_that_gguf_was_made_from() -> None:
    """gguf's own tables, with which models are converted, know each name as this matrix."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    for architecture, module in MODULES.items():
        names = gguf.get_tensor_name_map(kinds[architecture], 8)
        assert names.get_name(module.format(5)) == "blk.5.ffn_down", architecture


@pytest.mark.parametrize(
    ("architecture", "options", "error"),
    [("llama", {"experts": 4}, "without experts"), ("qwen2moe", {}, "are not known")],
)
def test_peft_refuses_what_it_cannot_name(
    tmp_path: Path,
    tiny_model: Callable[..., Path],
    architecture: str,
    options: dict[str, int],
    error: str,
) -> None:
    pytest.importorskip("safetensors")
    path = tiny_model(architecture, n_layer=5, **options)
    with Model.load(path, threads=1) as model, pytest.raises(BadInputError, match=error):
        export_peft(exact_profile(model), model, tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


def test_peft_without_safetensors(
    tmp_path: Path, llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(AlignezError, match="needs the package safetensors"):
        export_peft(exact_profile(llama_model), llama_model, tmp_path / "peft")


def keep_pairs(folder: Path, profile: Profile, **other: str | int) -> Path:
    """What a build of `profile` leaves behind, one of its pairs dropped."""
    settings: dict[str, str | int] = {
        "axis": json.dumps(profile.axis.wording(), sort_keys=True, ensure_ascii=False),
        "model": profile.fingerprint.digest(),
        "seed": profile.seed,
        "width": 16,
        **other,
    }
    path = folder / "pairs.jsonl"
    store = PairStore(path, settings)
    pairs = [PreferencePair(f"Why {n}?", f"Gladly: {n}.", f"No. {n}", "a", "b") for n in range(3)]
    store.append([(pairs[0], None), (pairs[1], "equal answers"), (pairs[2], None)])
    return path


def test_pairs_of_a_build_on_this_machine(home: Path, tmp_path: Path, llama_model: Model) -> None:
    profile = random_profile(llama_model)
    with pytest.raises(BadInputError, match="are not on this machine"):
        built_from(profile)
    builds = home / "builds"
    keep_pairs(builds / "polite-2", profile, seed=profile.seed + 1)
    (builds / "polite-3").mkdir()
    (builds / "polite-3" / "pairs.jsonl").write_bytes(b"\xff{]\n")
    path = keep_pairs(builds / "polite-1", profile)
    assert built_from(profile) == path
    found = export_pairs(profile, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in found.files[0].read_text("utf-8").splitlines()]
    assert lines == [
        {"prompt": f"Why {n}?", "chosen": f"Gladly: {n}.", "rejected": f"No. {n}"} for n in (0, 2)
    ]
    assert found.notices == ("left out, because no build would use them: 1",)
    keep_pairs(builds / "polite-4", profile, width=8)
    with pytest.raises(BadInputError, match="2 builds could have made polite"):
        built_from(profile)
    export_pairs(profile, tmp_path / "out.jsonl", path)


def test_provenance_tells_which_build_it_was(home: Path, llama_model: Model) -> None:
    file = ModelFile("m.gguf", "F16", 1, 64 * "0")
    queries = Source("queries", 3, 64 * "0")
    told = Provenance(file, queries, width=8, threads=2)
    profile = random_profile(llama_model, report=told.report())
    keep_pairs(home / "builds" / "polite-1", profile)
    with pytest.raises(BadInputError, match="are not on this machine"):
        built_from(profile)
    same: dict[str, str | int] = {"quantization": "F16", "width": 8, "threads": 2}
    path = keep_pairs(home / "builds" / "polite-2", profile, **same)
    keep_pairs(home / "builds" / "polite-3", profile, **same, ctx=128)
    assert built_from(profile) == path
    told = replace(told, source=replace(queries, kind="pairs"))
    with pytest.raises(BadInputError, match="built from pairs in a file"):
        built_from(replace(profile, report=told.report()))


def test_profiles_that_files_hold_in_part_or_not_at_all(tmp_path: Path, llama_model: Model) -> None:
    *_, near, guide = all_profiles(llama_model)
    assert near.neighbors is not None and not guide.edits_layers
    found = export_control_vector(near, tmp_path / "v.gguf")
    assert any("made of all its pairs" in notice for notice in found.notices)
    found.files[0].unlink()
    with pytest.raises(BadInputError, match="moves the logits"):
        export_control_vector(guide, tmp_path / "v.gguf")
    for export in (export_lora, export_peft):
        with pytest.raises(BadInputError, match="is made anew for each query"):
            export(near, llama_model, tmp_path / "out")
        with pytest.raises(BadInputError, match="moves the logits"):
            export(guide, llama_model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_pairs_from_a_file(tmp_path: Path, llama_model: Model) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text('{"query": "Why?", "chosen": "So.", "rejected": "No."}\n', "utf-8")
    found = export_pairs(random_profile(llama_model), tmp_path / "out.jsonl", source)
    assert json.loads(found.files[0].read_text("utf-8")) == {
        "prompt": "Why?",
        "chosen": "So.",
        "rejected": "No.",
    }
    assert found.notices == ()
    source.write_text('{"query": "Why?", "chosen": "So.", "rejected": "So."}\n', "utf-8")
    with pytest.raises(BadInputError, match="no usable pairs"):
        export_pairs(random_profile(llama_model), tmp_path / "none.jsonl", source)


@pytest.mark.parametrize("way", ["control-vector", "exact"])
def test_llama_cpps_own_program_answers_alike(way: Way) -> None:
    """With both parts, each for its tokens; differences may only be ties."""
    program = built("llama-completion")
    if program is None:
        pytest.skip("llama.cpp's programs are not built: python -m benchmarks.exchange")
    with Model.demo(threads=1) as model:
        completion = Completion(program, model.path, n_tokens=32)
        bench = Bench(model, completion, demo_queries("unseen")[:2])
        if way == "exact":
            form = exact_profile(model).exact
            assert form is not None
            profile = replace(exact_profile(model), intervention=replace(form, unit=40.0))
        else:
            profile = replace(random_profile(model), unit=1.5)
        row = bench.row(profile, "random", way)
        injection = (profile * 1.0).by(way).injection(model)
        steered = bench.answer(bench.prompts[0].tokens, injection)  # type: ignore[arg-type]
    assert steered != bench.plain[0]
    assert row.tokens and row.same + sum(each.is_tie for each in row.differences) == row.n
