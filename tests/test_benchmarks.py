"""The benchmarks of steering and building: their arithmetic, and that they run from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.evaluation.measures import Figure, Resamples
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.score import Scorer
from benchmarks import build, forms, grid, scheduler, steering, steering_report, turn
from benchmarks.llamacpp import built
from benchmarks.llamaserver import LlamaServer
from tests.profiles import random_profile


def test_a_figure_of_nothing_is_null() -> None:
    nothing = Figure(math.nan, math.nan, math.nan)
    assert steering.plain_data(nothing) == dict.fromkeys(("mean", "low", "high"))


def test_steering_runs_and_draws(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Model.load(tiny_llama, threads=1) as model:
        for draw, name in enumerate(("polite", "formal")):
            random_profile(model, draw, name).save(tmp_path / f"{name}.gguf")
    picture = tmp_path / "figures" / "steering.png"
    arguments = ["--model", str(tiny_llama), "--threads", "1", "--profiles", str(tmp_path)]
    arguments += ["--limit", "2", "--seeds", "1", "--axes", "polite", "formal"]
    steering.main([*arguments, "--json", "--picture", str(picture)])
    result = json.loads(capsys.readouterr().out)
    assert list(result["axes"]) == ["polite", "formal"]
    for table in result["axes"].values():
        assert table["strength 0"] == {"same as plain": 2, "answers": 2}
    met = {check["what"]: check["met"] for check in result["checks"]}
    assert met["strength 0 gives the plain answers"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tables_have_one_row_per_axis() -> None:
    rows = steering_report._table(["axis", "x"], [["polite", "1"], ["formal", "22"]]).splitlines()
    assert len(rows) == 4
    assert len({len(row) for row in rows}) == 1


def test_build_is_timed_and_weighed(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.main(["--model", str(tiny_llama), "--threads", "1", "--queries", "16", "--json"])
    result = json.loads(capsys.readouterr().out)
    (found,) = result["builds"]
    assert found["queries"] == 16
    steps = {"request", "pairs", "embeddings", "subspace", "calibration"}
    assert set(found["seconds"]) == steps | {"total", "answers alone"}
    assert found["seconds"]["total"] >= sum(found["seconds"][step] for step in steps)
    assert result["bare MB"] > 0


def test_the_scheduler_is_measured(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    name = f"scheduler-{tiny_llama.stem}"
    page.write_text(f"a\n<!-- {name} -->\n<!-- /{name} -->\nb\n", encoding="utf-8")
    arguments = ["--model", str(tiny_llama), "--threads", "1", "--tokens", "8", "--repeat", "1"]
    arguments += ["--requests", "60", "--no-server"]
    scheduler.main([*arguments, "--page", str(page)])
    table = capsys.readouterr().out
    for what in scheduler.WANTED:
        assert (f"| {what} | " in table) == ("llama-server" not in what)
    assert table in page.read_text("utf-8")
    scheduler.main([*arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert set(result["16 steerings / plain, batch of 16"]) == {"median", "low", "high"}
    assert result["batch of 16 (tokens/s)"] > 0


def test_a_steering_that_stays_is_told_of_once_a_context() -> None:
    found = turn.graph_reserves()
    assert {n for what, n in found.items() if "control vector" in what} == {0}
    assert {n for what, n in found.items() if "exact" in what} == {3}


@pytest.mark.skipif(built("llama-server") is None, reason="llama-server is not built")
def test_llamas_server_answers_at_once_and_ends(tiny_llama: Path) -> None:
    program = built("llama-server")
    assert program is not None
    sampling = Sampling(top_p=1.0, max_tokens=5)
    with LlamaServer(program, tiny_llama, n_slots=3, n_ctx=32, threads=1) as server:
        assert server.answers([[1, 2, 3], [4, 5], [6]], sampling) == [5, 5, 5]
    with pytest.raises(OSError):
        server.answers([[1, 2, 3]], sampling)


def test_slopes_over_a_grid_are_least_squares() -> None:
    rng = np.random.default_rng(0)
    s, t = np.meshgrid(grid.STRENGTHS, grid.STRENGTHS, indexing="ij")
    effects, base = rng.normal(size=(2, 3, 2)), rng.normal(size=(3, 2))
    planted = base + s[..., None, None] * effects[0] + t[..., None, None] * effects[1]
    np.testing.assert_allclose(grid.slopes(planted), effects)
    noisy = planted + rng.normal(size=planted.shape)
    design = np.stack([s.ravel(), t.ravel(), np.ones(s.size)], axis=1)
    fitted = np.linalg.lstsq(design, noisy.reshape(s.size, -1), rcond=None)[0][:2]
    np.testing.assert_allclose(grid.slopes(noisy), fitted.reshape(effects.shape))


def test_a_cell_injects_the_sum(llama_model: Model) -> None:
    pair = random_profile(llama_model, 0, "a", (1, 2)), random_profile(llama_model, 1, "b")
    found = grid.sum_of(pair, (0.5, -1.0))
    wanted = (pair[0] * 0.5 - pair[1]).injection(llama_model)
    assert isinstance(wanted, Injection)
    np.testing.assert_allclose(found.deciding, wanted.deciding, atol=1e-6)
    np.testing.assert_allclose(found.answer, wanted.answer, atol=1e-6)


def test_a_grid_runs_and_draws(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Model.load(tiny_llama, threads=1) as model:
        for draw, name in enumerate(("cheerful", "polite", "formal")):
            random_profile(model, draw, name).save(tmp_path / f"{name}.gguf")
    picture, page = tmp_path / "grid.png", tmp_path / "page.md"
    page.write_text("a\n<!-- grid -->\n<!-- /grid -->\nb\n", encoding="utf-8")
    arguments = ["--model", str(tiny_llama), "--threads", "1", "--profiles", str(tmp_path)]
    arguments += ["--limit", "2", "--picture", str(picture), "--page", str(page), "--json"]
    grid.main(arguments)
    result = json.loads(capsys.readouterr().out)
    assert [pair["axes"] for pair in result["pairs"]] == [list(pair) for pair in grid.PAIRS]
    for pair in result["pairs"]:
        middles = [np.array(table["scores"])[2, 2].tolist() for table in pair["ways"].values()]
        assert middles[0] == middles[1] == middles[2], "strength 0 is the plain model"
        for name in pair["axes"]:
            assert abs(pair["ways"][grid.BOTH]["axes"][name]["predicted"]) < 1e-3
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert page.read_text("utf-8").count("\n| ") == 2 + 2 * 3 * 2


def test_forms_are_compared_pair_by_pair() -> None:
    """The distance from the best form is that of samples over the same resampled queries."""
    resamples = Resamples(12)
    rng = np.random.default_rng(3)

    def cell(share: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        figure = resamples.figure(share)
        return {
            "net win": figure,
            "share of asking": figure,
            "nats above plain": figure,
            "knowledge above plain": figure,
            "strength": 1.0,
        }, share

    base = resamples.mean(rng.random((12, 2)))
    found = {"polite": {"CAA": cell(base - 0.25), "control vector": cell(base)}}
    result = forms.gathered(found, resamples)
    assert result["best"] == "control vector"
    below = result["forms"]["CAA"]["mean"]["below the best"]
    assert (below.mean, below.low, below.high) == pytest.approx((0.25, 0.25, 0.25))
    table = forms.markdown(result, ["polite"])
    assert table.index("| control vector |") < table.index("| CAA |")
    assert table.endswith(
        "**control vector** moves the scores most at equal KL from the plain model."
    )
    assert len(forms.brief(result, ["polite"]).splitlines()) == 4


def test_a_forms_strength_is_where_its_kl_is_as_told(llama_model: Model) -> None:
    profile = random_profile(llama_model)
    pair = PreferencePair("Why?", "Because.", "No idea.", "Why?", "Why?")

    def form(strength: float) -> Injection | None:
        found = (profile * strength).injection(llama_model)
        assert found is None or isinstance(found, Injection)
        return found

    with Scorer(llama_model) as scorer:
        divergence = forms.Divergence(llama_model, [pair], scorer)
        assert divergence.of(form, 0.0) == 0
        target = divergence.of(form, 0.7)
        strength, there = divergence.matched(form, target)
        assert strength == pytest.approx(0.7, abs=0.05) and there == pytest.approx(target, rel=0.05)
        assert divergence.matched(form, 1e9)[0] == forms.MOST
