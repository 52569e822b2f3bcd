"""Valid files of every untrusted kind, made on the spot and small: what fuzzers start
from, and profiles that together use every part of the profile file."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.exchange.vectorfile import write_control_vector
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.by_query import Recipe
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.interventions.value_function import ReControl, ValueFunction
from alignez_edge.modelfiles.lora import adapter_file
from alignez_edge.preferences.axes import Axis, Wording
from alignez_edge.profile.mix import mix
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.tinymodels import CHATML, tiny_model

BASE = "model-0"
"""The seed of a model that adapters and profiles are for."""


def write_seeds(folder: Path) -> None:
    """Write all seeds into `folder`, named `<kind>-<number>`."""
    models: tuple[tuple[str, dict[str, object]], ...] = (
        ("llama", {"template": CHATML}),
        ("qwen2", {"file_type": "Q8_0"}),
        ("llama", {"experts": 4}),
        ("gpt2", {}),
        ("gemma2", {}),
        ("qwen2moe", {}),
    )
    for i, (architecture, options) in enumerate(models):
        with tempfile.TemporaryDirectory() as place:
            made = tiny_model(Path(place), architecture, n_layer=2, **options)  # type: ignore[arg-type]
            (folder / f"model-{i}").write_bytes(made.read_bytes())
    with Model.load(folder / BASE, threads=1) as model:
        for i, profile in enumerate(all_profiles(model, layers=(1,))):
            profile.save(folder / f"profile-{i}")
        rows = np.random.default_rng(0).standard_normal((2, model.n_embd)).astype(np.float32)
        write_control_vector(folder / "vector-0", rows, "llama")
        write_control_vector(folder / "vector-1", np.concatenate([rows, rows]), "llama")
    for i, part in enumerate(("ffn_down", "attn_", "blk.")):
        (folder / f"lora-{i}").write_bytes(_adapter(folder / BASE, part))
    for i, axis in enumerate(_axes()):
        (folder / f"axis-{i}").write_text(axis.to_toml(), "utf-8")
    rules = 'name = "mine"\n[aspects.x]\npositive = ["so nice", "très"]\nnegative = ["bad"]\n'
    rules += 'share = 0.5\nlength = { unit = "words", best = 20, worst = 120 }\n'
    (folder / "rules-0").write_text(rules, "utf-8")
    topics = ("bread", "rain “and” snow", "日本", "a\tb", "trains\\cats", "🙂")
    for kind, records in (
        (
            "pairs",
            [{"query": f"And {t}?", "chosen": f"I love {t}!", "rejected": t} for t in topics],
        ),
        ("queries", [{"prompt": f"Tell me about {t}.", "id": i} for i, t in enumerate(topics)]),
    ):
        (folder / f"{kind}-0").write_text("\n".join(map(json.dumps, records)) + "\n", "utf-8")
    own = {"alignez_pairs": 1, "settings": {"seed": 1}}
    pair = {"query": "Q?", "chosen": "Yes.", "rejected": "No.", "chosen_request": "Be kind."}
    lines = [own, {**pair, "rejected_request": "Be rude."}, {**pair, "dropped": "equal answers"}]
    (folder / "pairs-1").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (folder / "queries-1").write_text("\n".join(topics), "utf-8")


def all_profiles(model: Model, layers: tuple[int, ...] = (2, 3)) -> list[Profile]:
    """A plain profile, one with an exact form, a mix of the two, a query-conditioned one and one
    with a value function: every key and tensor of the file is in one of them."""
    rng = np.random.default_rng(5)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    n_embd, width = model.n_embd, 4
    plain = random_profile(model, layers=layers, report={"queries": ["Who?"]})
    words = Wording(role="Be “kind”.", style="Kindly.", person="who is kind", own="{query}!")
    axis = replace(plain.axis, description="d", negative_prompt="Be rude.", positive_wording=words)
    plain = replace(plain, axis=replace(axis, negative_wording=Wording(style="Rudely.")))
    edit = Edit({i: LayerEdit.move(drawn(2, n_embd), drawn(2)) for i in layers})
    exact = replace(
        random_profile(model, 1, name="formal", layers=layers),
        intervention=ExactForm(edit, edit, 0.5),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        HiddenStates(Path(folder) / "states", (model.n_layer, n_embd)) as states,
    ):
        for _ in range(3):
            states.append(*drawn(2, 2, model.n_layer, n_embd))
        own = drawn(3, model.n_layer, n_embd)
        bank = Bank.from_states(states, range(3), own, layers, "ffn_out")
    near = replace(plain, intervention=Neighborhood(bank, Recipe("alignez-v1", 2), 0.7))
    value = ValueFunction(
        mean=drawn(n_embd), scale=np.ones(n_embd, np.float32), w1=drawn(width, n_embd),
        b1=drawn(width), w2=drawn(width, width), b2=drawn(width), w3=drawn(width),
        b3=np.float32(0.5).reshape(()),
    )  # fmt: skip
    zero = ControlVector.zeros(model.n_layer, n_embd)
    guide = replace(plain, vector=zero, layers=(), intervention=ReControl(value, 3.0))
    return [plain, exact, mix([(plain, 1.0), (exact, -0.5)], "both"), near, guide]


def _adapter(model: Path, part: str) -> bytes:
    rng = np.random.default_rng(2)
    tensors = []
    for name, info in read_gguf(model).tensors.items():
        if len(info.shape) == 2 and part in name:
            n_in, n_out = info.shape
            for side, shape in (("a", (2, n_in)), ("b", (n_out, 2))):
                raw = (rng.standard_normal(shape) / 9).astype("<f4").tobytes()
                tensors.append((f"{name}.lora_{side}", shape[::-1], "F32", raw))
    return adapter_file("llama", 4.0, tensors)


def _axes() -> list[Axis]:
    return [
        Axis("polite", "polite", "rude", "How “kind” it is.", ("Who?", "What is 1 + 1 in 日本?")),
        Axis("y", "talks like a pirate", positive_wording=Wording(own='Ahoy: "{query}"')),
        Axis("x", "warm", "cold", positive_prompt='Be warm: \\ "so".', negative_prompt="Be cold."),
    ]
