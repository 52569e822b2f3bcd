"""The papers' methods on a real model: what is read off the curves; that it runs and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.methods.table import BY_QUERY, METHODS
from alignez_edge.runtime.model import Model
from benchmarks import papers, real
from benchmarks.real_answers import Answers
from tests.profiles import random_profile


def test_every_method_of_a_build_is_compared_or_named() -> None:
    for method, neighbors in papers.METHODS.values():
        assert method in METHODS and (neighbors is None or method in BY_QUERY)
    assert next(iter(papers.METHODS.values())) == ("alignez", None)
    assert 1.0 in papers.STRENGTHS


def test_the_effect_is_read_where_the_cost_reaches_that_of_prompting() -> None:
    effects = np.array([[1.0], [2.0], [2.5]])
    costs = np.array([[0.1], [0.5], [0.4]])

    def at(target: float) -> tuple[float, float]:
        found = papers.at_cost([0.5, 1.0, 2.0], effects, costs, np.array([target]))
        return float(found[0][0]), float(found[1][0])

    assert at(0.05) == pytest.approx((0.5, 0.25)), "between 0 and the first strength"
    assert at(0.1) == pytest.approx((1.0, 0.5))
    assert at(0.3) == pytest.approx((1.5, 0.75))
    assert at(0.45) == pytest.approx((1.875, 0.9375)), "the first time, not on the way back"
    assert np.isnan(at(0.6)).all(), "it never costs so much"
    assert np.isnan(at(0.0)).all() and np.isnan(at(-0.1)).all(), "prompting is free"


def test_shares_and_costs_are_those_of_strength_1() -> None:
    rng = np.random.default_rng(0)
    base, ones = rng.normal(size=(12, 1)), np.ones((12, 1))

    def moved(move: float) -> real.Judged:
        return real.Judged(base + move, (1 + abs(move)) * ones, ones)

    yardstick = {"plain": moved(0.0), "prompted +": moved(1.0), "prompted -": moved(-0.5)}
    arms = {arm.name: moved(0.8 * arm.strength) for arm in papers.steered((0.5, 1.0, 2.0))}
    found = papers.figures(yardstick, {"caa": arms}, (0.5, 1.0, 2.0))
    cell = found["methods"]["caa"]
    assert found["prompted"]["span"].mean == pytest.approx(1.5)
    assert cell["share"].mean == pytest.approx(1.6 / 1.5)
    assert [cell["effect"][sign].mean for sign in "+-"] == pytest.approx([0.8, -0.8])
    assert [cell["cost"][sign].mean for sign in "+-"] == pytest.approx([0.8, 0.8])
    there = cell["at the cost of prompting"]
    assert [there[sign]["effect"].mean for sign in "+-"] == pytest.approx([1.0, -0.5])
    assert [there[sign]["strength"] for sign in "+-"] == pytest.approx([1.25, 0.625])


def test_it_runs_and_goes_on(
    tiny_chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`caa` is built here, of the pairs that the build of the default has left."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- papers -->\n<!-- /papers -->\nb\n", encoding="utf-8")
    with Model.load(tiny_chat, threads=1) as model:
        random_profile(model, 0, "concise").save(tmp_path / "concise-4.gguf")
        random_profile(model, 1, "concise").save(tmp_path / "concise-4-pca.gguf")
        random_profile(model, 2, "concise").save(tmp_path / "concise-4-by-10.gguf")
    asked: list[tuple[str, Path]] = []

    def build(model: Model, axis: object, *, method: str, work: Path, **_: object) -> object:
        asked.append((method, work))
        return random_profile(model, 3, "concise")

    monkeypatch.setattr(real, "build_profile", build)
    arguments = ["--model", str(tiny_chat), "--threads", "1", "--folder", str(tmp_path)]
    arguments += ["--axes", "concise", "--queries", "2", "--choosing", "1", "--tokens", "6"]
    arguments += ["--limit", "4", "--methods", "alignez", "alignez, by query", "caa", "pca"]
    papers.main([*arguments, "--page", str(page)])
    text = capsys.readouterr().out.strip()
    assert asked == [("caa", tmp_path / "build-concise-4")], "in the folder of the same pairs"
    assert page.read_text("utf-8") == f"a\n<!-- papers -->\n{text}\n<!-- /papers -->\nb\n"
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows[:3] == ["| method", "| ---", "| prompting"]
    assert sorted(rows[3:]) == ["| alignez", "| alignez, by query", "| caa", "| pca"]

    def nothing(*_: object) -> None:
        raise AssertionError("everything is there already")

    monkeypatch.setattr(Answers, "_make", nothing)
    papers.main([*arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert len(result["axes"]["concise"]["methods"]["caa"]["by strength"]) == 4
    assert len(asked) == 1


def test_a_method_that_the_model_does_not_allow_is_told_of(
    tiny_chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from alignez_edge.errors import BadInputError

    def refuse(*_: object, **__: object) -> None:
        raise BadInputError("no attention heads")

    with Model.load(tiny_chat, threads=1) as model:
        random_profile(model, 0, "concise").save(tmp_path / "concise.gguf")
    monkeypatch.setattr(real, "build_profile", refuse)
    arguments = ["--model", str(tiny_chat), "--threads", "1", "--folder", str(tmp_path)]
    arguments += ["--axes", "concise", "--queries", "1", "--choosing", "1", "--tokens", "4"]
    papers.main([*arguments, "--methods", "iti"])
    assert "iti cannot be had: no attention heads." in capsys.readouterr().out
