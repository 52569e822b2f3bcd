"""The benchmark of steering tuned models: its arithmetic, and that every row is what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.demo.rules import AXES
from alignez_edge.evaluation.measures import Figure
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.interventions.exact import adapter_bytes
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from benchmarks import tuned
from benchmarks.steering import Answers, plain_data
from tests.profiles import random_profile

AXIS = "polite"
QUERIES = [{"query": "What is tea?", "topic": "tea"}, {"query": "Describe salt.", "topic": "salt"}]


def answers(score: float) -> Answers:
    """Answers to 20 queries that score that much on `AXIS`, alike in all else."""
    scores = np.zeros((20, 3, len(AXES)))
    scores[..., AXES.index(AXIS)] = score
    one = np.ones((20, 3))
    return Answers(one.astype(object), scores, one, one, one, one, one, one)


def test_figures_and_the_claim() -> None:
    means = {tuned.BASE: 0.0, tuned.STEERED: 0.5, tuned.TUNED: 0.75}
    found = tuned.figures({kind: answers(score) for kind, score in means.items()}, AXIS)
    assert found["rows"]["base"]["net win"].mean == 0
    assert found["rows"]["DPO on 1 % + profile"]["score"].mean == pytest.approx(0.5)
    assert found["rows"]["DPO on 25 %"]["net win"].mean == pytest.approx(1)
    assert found["claim"]["score"].mean == pytest.approx(-0.25)
    assert found["claim"]["net win"].mean == pytest.approx(-1)
    assert "**falls short of** DPO on 25 %" in tuned.markdown(AXIS, found)
    assert tuned.summary({AXIS: found}).endswith(f"falls short of it on {AXIS}.")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.1, 0.2, "more than matches"), (-0.1, 0.1, "matches"), (-0.2, -0.1, "falls short of")],
)
def test_verdict(low: float, high: float, said: str) -> None:
    assert tuned.verdict(Figure((low + high) / 2, low, high)) == said


def test_every_row_is_of_its_own_model(tiny_llama: Path, tmp_path: Path) -> None:
    gguf = read_gguf(tiny_llama)
    rng = np.random.default_rng(0)
    matrix = gguf.tensors["blk.1.ffn_down.weight"].shape
    for percent in tuned.PERCENTS:
        a, b = (0.3 * rng.standard_normal((n, 2)).astype(np.float32) for n in matrix)
        content = adapter_bytes(gguf, [("blk.1.ffn_down.weight", a.T, b)], "F16")
        tuned.adapter_path(tmp_path, AXIS, percent).write_bytes(content)
    built: list[str] = []

    def load(lora: Sequence[tuple[Path, float]]) -> Model:
        return Model.load(tiny_llama, threads=1, lora=lora)

    def profile_for(model: Model) -> Profile:
        built.append(model.fingerprint.adapter)
        return random_profile(model, 0, AXIS)

    found = tuned.measure(load, tmp_path, AXIS, QUERIES, 1, profile_for, lambda line: None)
    assert len(set(built)) == 3
    assert len({tuple(arm.texts.ravel()) for arm in found.values()}) == len(found) == 7
    plain_data(tuned.figures(found, AXIS))
