"""The ways in which a profile gets into a model: they agree, are kept, and refuse in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.errors import BadInputError, ProfileFileError
from alignez_edge.files.folders import cache_dir
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.by_query import Recipe
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.interventions.value_function import ReControl, ValueFunction
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.score import Scorer
from alignez_edge.runtime.session import Session
from alignez_edge.steering.binding import Turns
from alignez_edge.steering.steering import Steering
from tests.profiles import random_profile

LAYERS = (1, 3)


def profile_for(model: Model, *, exact: bool = True) -> Profile:
    rng = np.random.default_rng(3)
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    rows[list(LAYERS)] = 0.05 * rng.standard_normal((len(LAYERS), model.n_embd))
    edits = [
        Edit({i: LayerEdit.swap(*rng.standard_normal((2, model.n_embd))) for i in LAYERS})
        for _ in range(2)
    ]
    return Profile(
        Axis("polite", positive="polite", negative="rude"),
        ControlVector(rows, 2 * rows),
        LAYERS,
        model.fingerprint,
        method="alignez-v1" if exact else "alignez",
        intervention=ExactForm(edits[0], edits[1], unit=4.0) if exact else None,
    )


def logits(model: Model, profile: Profile, way: str, strength: float = 1.0) -> np.ndarray:
    tokens = model.tokenize("How do I bake bread? With flour.", begin=True)
    with Scorer(model) as scorer:
        injection = (profile * strength).by(way).injection(model)  # type: ignore[arg-type]
        (rows,) = scorer.log_probs(tokens[:6], tokens[6:], [injection])
    return rows


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_exact_is_the_reference(tiny_model: Callable[..., Path], architecture: str) -> None:
    with Model.load(tiny_model(architecture, n_layer=5, file_type="F16"), threads=1) as model:
        profile = profile_for(model)
        plain = logits(model, profile, "exact", 0.0)
        exact, reference = (logits(model, profile, way) for way in ("exact", "reference"))
        effect = np.abs(reference - plain).max()
        assert effect > 0.01
        assert np.abs(exact - reference).max() < 0.02 * effect
        assert np.array_equal(logits(model, profile, "auto"), exact)
        vector = logits(model, profile, "control-vector")
        assert np.abs(vector - exact).max() > 0.1 * effect


def test_an_adapter_is_made_once_and_kept(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model("llama", n_layer=5)
    with Model.load(path, threads=1) as model:
        profile = profile_for(model)
        first = logits(model, profile, "exact")
        injections = [(profile * s).injection(model) for s in (1.0, -0.5)]
        assert isinstance(injections[0], Injection) and isinstance(injections[1], Injection)
        assert injections[0].deciding_edits[0][0] is injections[1].deciding_edits[0][0]
        assert len(list((cache_dir() / "adapters").iterdir())) == 2

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patched, Model.load(path, threads=1) as model:
        patched.setattr("alignez_edge.interventions.adapters.exact_edit", refuse)
        assert np.array_equal(logits(model, profile, "exact"), first)
    for cut in (slice(-40), slice(0)):
        for file in (cache_dir() / "adapters").iterdir():
            file.write_bytes(file.read_bytes()[cut])
        with Model.load(path, threads=1) as model:
            assert np.array_equal(logits(model, profile, "exact"), first)


def test_strengths_that_llama_cpp_cannot_take(tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile = profile_for(model)
        for way in ("control-vector", "exact", "reference"):
            with pytest.raises(BadInputError, match="overflows"):
                (profile * 1e45).by(way).injection(model)


def test_a_control_vector_has_no_exact_form(tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile = profile_for(model, exact=False)
        assert np.array_equal(
            logits(model, profile, "auto"), logits(model, profile, "control-vector")
        )
        for way in ("exact", "reference"):
            with pytest.raises(BadInputError, match="is a control vector by nature"):
                (profile * 1.0).by(way).injection(model)


def test_auto_says_where_it_falls_back(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile = profile_for(model)
        assert (profile * 1.0).notices(model) == []
        monkeypatch.setattr(
            "alignez_edge.interventions.exact_form.can_inject_exactly", lambda *_: "out of reach"
        )
        (notice,) = (profile * 1.0).notices(model)
        assert notice == "polite is injected as a control vector: out of reach"
        assert np.array_equal(
            logits(model, profile, "auto"), logits(model, profile, "control-vector")
        )


def test_a_profile_keeps_its_exact_form(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile = profile_for(model)
        profile.save(tmp_path / "polite.gguf")
        read = Profile.load(tmp_path / "polite.gguf")
        assert read.order == profile.order
        assert np.array_equal(logits(model, read, "exact"), logits(model, profile, "exact"))


def test_a_file_with_two_kinds_is_refused(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile, near = profile_for(model), conditioned_profile(model, tmp_path).neighbors
        write = ExactForm.write

        def both(self: ExactForm, writer: Any) -> None:
            assert near is not None
            write(self, writer)
            near.write(writer)

        monkeypatch.setattr(ExactForm, "write", both)
        profile.save(tmp_path / "both.gguf")
        with pytest.raises(ProfileFileError, match="a profile can have one only"):
            Profile.load(tmp_path / "both.gguf")


def test_a_binding_decides_the_ways_once(
    tiny_model: Callable[..., Path],
) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        exact, plain = profile_for(model), random_profile(model, name="terse")
        bound = (exact * 0.5 + plain * 0.0 + plain * -0.3).bind(model)
        assert {(p.name, s, way) for p, s, way in bound.parts} == {
            ("polite", 0.5, "exact"),
            ("terse", -0.3, "control-vector"),
        }
        assert bound.notices == () and bound.injection is bound.injection
        assert Steering().bind(model).injection is None


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(BadInputError, match="cannot be injected"):
        Steering().by("magic")  # type: ignore[arg-type]


# --- profiles that look at the query -----------------------------------------------------------


def conditioned_profile(
    model: Model, path: Path, tensor: str = "ffn_out", method: str = "alignez-v1", draw: int = 4
) -> Profile:
    """A profile with a bank of random states."""
    rng = np.random.default_rng(draw)
    n_pairs, shape = 8, (model.n_layer, model.n_embd)
    with HiddenStates(path / f"{tensor}-{draw}.f32", shape) as states:
        for _ in range(n_pairs):
            sides = 0.05 * rng.standard_normal((2, 2, *shape)).astype(np.float32)
            sides[0] += 0.1
            states.append(sides[:, 0], sides[:, 1])
        queries = rng.standard_normal((n_pairs, *shape)).astype(np.float32)
        bank = Bank.from_states(states, range(n_pairs), queries, LAYERS, tensor)
    recipe = Recipe.of(method, 3)
    unit = 2.0 if tensor == "ffn_out" else None
    static = profile_for(model, exact=False)
    return replace(static, method=method, intervention=Neighborhood(bank, recipe, unit))


def greedy(model: Model, steering: Steering, text: str = "How do I bake bread?") -> tuple[int, ...]:
    tokens = model.tokenize(text, begin=True)
    sampling = Sampling(temperature=0, max_tokens=12, min_tokens=12)
    with Session(model) as session:
        for _ in session.stream(tokens, sampling, steering.injection(model)):
            pass
        assert session.completion is not None
        return session.completion.tokens


@pytest.mark.parametrize("method", ["alignez-v1", "alignez-v2"])
def test_a_turns_exact_edit_is_its_reference(
    tmp_path: Path, tiny_model: Callable[..., Path], method: str
) -> None:
    with Model.load(tiny_model("llama", n_layer=5, file_type="F16"), threads=1) as model:
        profile = conditioned_profile(model, tmp_path, method=method)
        states = np.random.default_rng(0).standard_normal((5, model.n_embd)).astype(np.float32)
        tokens = model.tokenize("How do I bake bread? With flour.", begin=True)
        rows: list[np.ndarray] = []
        for way in ("exact", "reference"):
            steering = (profile * 3.0).by(way).injection(model)
            assert isinstance(steering, Turns)
            with Scorer(model) as scorer:
                rows += scorer.log_probs(tokens[:6], tokens[6:], [None, steering.at(states)])
        effect = np.abs(rows[3] - rows[2]).max()
        assert effect > 0.01
        assert np.abs(rows[1] - rows[3]).max() < 0.02 * effect


def test_a_profile_keeps_its_neighbors(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        for tensor, method in (("ffn_out", "alignez-v2"), ("l_out", "alignez")):
            profile = conditioned_profile(model, tmp_path, tensor, method)
            profile.save(tmp_path / "near.gguf")
            read = Profile.load(tmp_path / "near.gguf")
            assert read.order == profile.order
            assert read.neighbors is not None and profile.neighbors is not None
            assert read.neighbors.recipe == profile.neighbors.recipe
            assert read.neighbors.bank.digest == profile.neighbors.bank.digest
            assert greedy(model, read * 20.0) == greedy(model, profile * 20.0)


def test_profiles_add_up_turn_by_turn(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        near = conditioned_profile(model, tmp_path, "l_out", "alignez")
        static = random_profile(model, name="terse")
        states = np.random.default_rng(0).standard_normal((5, model.n_embd)).astype(np.float32)

        def at(steering: Steering) -> np.ndarray:
            found = steering.injection(model)
            assert isinstance(found, Turns)
            injection = found.at(states)
            return np.zeros(0) if injection is None else injection.deciding

        alone = (static * -0.5).injection(model)
        assert isinstance(alone, Injection)
        total = at(near * 0.8 + static * -0.5)
        np.testing.assert_allclose(total, at(near * 0.8) + alone.deciding, atol=1e-6)
        assert np.array_equal(total, at(static * -0.5 + near * 0.8))
        assert (near - near).injection(model) is None
        other = conditioned_profile(model, tmp_path, "ffn_out", "alignez-v1")
        with pytest.raises(BadInputError, match="look at different states"):
            (near + other).injection(model)


def test_a_profile_with_a_value_function(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        rng = np.random.default_rng(1)

        def drawn(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        value = ValueFunction(
            mean=drawn(model.n_embd), scale=np.ones(model.n_embd, np.float32),
            w1=drawn(6, model.n_embd), b1=drawn(6), w2=drawn(6, 6), b2=drawn(6), w3=drawn(6),
            b3=np.float32(0.5).reshape(()),
        )  # fmt: skip
        profile = replace(
            profile_for(model, exact=False),
            method="recontrol",
            vector=ControlVector.zeros(model.n_layer, model.n_embd),
            layers=(),
            intervention=ReControl(value, 3.0),
        )
        profile.save(tmp_path / "value.gguf")
        read = Profile.load(tmp_path / "value.gguf")
        assert read.order == profile.order and read.layers == ()
        assert greedy(model, read * 50.0) == greedy(model, profile * 50.0)
        assert not np.array_equal(logits(model, read, "auto"), logits(model, read, "auto", 0.0))
        with pytest.raises(BadInputError, match="it moves the logits, no layer"):
            (read * 1.0).by("exact").injection(model)
