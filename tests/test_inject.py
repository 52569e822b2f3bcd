"""The ways in which a profile gets into a model: they agree, are kept, and refuse in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.axes import Axis
from alignez_edge.edits import Edit, LayerEdit
from alignez_edge.errors import BadInputError
from alignez_edge.files import cache_dir
from alignez_edge.forms import ExactForm
from alignez_edge.profile import Profile
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer
from alignez_edge.vectors import ControlVector

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
        exact=ExactForm(edits[0], edits[1], unit=4.0) if exact else None,
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNEZ_HOME", str(tmp_path / "home"))
    return tmp_path


def logits(model: Model, profile: Profile, way: str, strength: float = 1.0) -> np.ndarray:
    tokens = model.tokenize("How do I bake bread? With flour.", begin=True)
    with Scorer(model, reference=way == "reference") as scorer:
        injection = (profile * strength).by(way).injection(model)  # type: ignore[arg-type]
        (rows,) = scorer.log_probs(tokens[:6], tokens[6:], [injection])
    return rows


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_exact_is_the_reference(
    home: Path, tiny_model: Callable[..., Path], architecture: str
) -> None:
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
    home: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model("llama", n_layer=5)
    with Model.load(path, threads=1) as model:
        profile = profile_for(model)
        first = logits(model, profile, "exact")
        injections = [(profile * s).injection(model) for s in (1.0, -0.5)]
        assert injections[0] is not None and injections[1] is not None
        assert injections[0].deciding_edits[0][0] is injections[1].deciding_edits[0][0]
        assert len(list((cache_dir() / "adapters").iterdir())) == 2

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patched, Model.load(path, threads=1) as model:
        patched.setattr("alignez_edge.inject.exact_edit", refuse)
        assert np.array_equal(logits(model, profile, "exact"), first)
    for file in (cache_dir() / "adapters").iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    with Model.load(path, threads=1) as model:
        assert np.array_equal(logits(model, profile, "exact"), first)


def test_a_control_vector_has_no_exact_form(home: Path, tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile = profile_for(model, exact=False)
        assert np.array_equal(
            logits(model, profile, "auto"), logits(model, profile, "control-vector")
        )
        for way in ("exact", "reference"):
            with pytest.raises(BadInputError, match="is a control vector by nature"):
                (profile * 1.0).by(way).injection(model)  # type: ignore[arg-type]


def test_auto_says_where_it_falls_back(
    home: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile = profile_for(model)
        assert (profile * 1.0).notices(model) == []
        monkeypatch.setattr("alignez_edge.inject.can_inject_exactly", lambda *_: "out of reach")
        (notice,) = (profile * 1.0).notices(model)
        assert notice == "polite is injected as a control vector: out of reach"
        assert np.array_equal(
            logits(model, profile, "auto"), logits(model, profile, "control-vector")
        )


def test_a_profile_keeps_its_exact_form(home: Path, tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model("llama", n_layer=5), threads=1) as model:
        profile = profile_for(model)
        profile.save(home / "polite.gguf")
        read = Profile.load(home / "polite.gguf")
        assert read.order == profile.order
        assert np.array_equal(logits(model, read, "exact"), logits(model, profile, "exact"))


def test_an_unknown_way_is_refused(home: Path) -> None:
    from alignez_edge.steering import Steering

    with pytest.raises(BadInputError, match="cannot be injected"):
        Steering().by("magic")  # type: ignore[arg-type]
