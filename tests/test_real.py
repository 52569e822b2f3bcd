"""The benchmark on real models: its arithmetic, its questions, and that it runs and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.queries import read_queries
from alignez_edge.runtime.model import Model
from benchmarks import real
from benchmarks.real_answers import Answers
from tests.profiles import random_profile


def test_no_build_has_seen_the_questions() -> None:
    report, others = (
        read_queries(real.QUESTIONS / f"{name}.jsonl") for name in ("report", "choosing")
    )
    assert (len(report), len(others)) == (60, 24)
    assert not set(report) & set(others)
    assert all(len(query) <= 300 for query in (*report, *others))
    for name in real.AXES:
        asked = real.build_queries(real.OWN.get(name) or Axis.builtin(name))
        assert len(asked) >= 40 and not set(asked) & {*report, *others}


def test_the_ratio_is_the_span_of_steering_over_that_of_prompting() -> None:
    rng = np.random.default_rng(0)
    base, ones = rng.normal(size=(12, 2)), np.ones((12, 2))
    moves = {"plain": 0.0, "prompted +": 1.0, "prompted -": -1.0, "both +": 2.0, "both -": -2.0}
    moves |= {"steered +1": 0.5, "steered -1": -1.0}

    def axis(scale: float) -> dict[str, real.Judged]:
        return {
            name: real.Judged(base + scale * move, (2 + abs(move)) * ones, ones)
            for name, move in moves.items()
        }

    found = real.figures({"cheerful": axis(1.0), "polite": axis(0.0), "formal": axis(-1.0)})
    assert found["counted"] == ["cheerful"]
    assert found["mean ratio"]["steered"].mean == pytest.approx(0.75)
    assert found["mean ratio"]["both"].mean == pytest.approx(2.0)
    table = found["axes"]["cheerful"]
    assert table["effect"]["steered +1"].low == pytest.approx(0.5), "arms are paired"
    assert table["nats above plain"]["both -"].mean == pytest.approx(2.0)
    assert table["nats above prompting"]["+"].mean == pytest.approx(-0.5)


def test_it_runs_and_goes_on(
    tiny_chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Model.load(tiny_chat, threads=1) as model:
        for draw, name in enumerate(("cheerful", "concise")):
            random_profile(model, draw, name).save(tmp_path / f"{name}.gguf")
    pages = {
        "--readme": ("real", tmp_path / "first.md"),
        "--page": ("real", tmp_path / "more.md"),
        "--forms": ("real-forms", tmp_path / "forms.md"),
    }
    for marker, page in pages.values():
        page.write_text(f"a\n<!-- {marker} -->\n<!-- /{marker} -->\nb\n", encoding="utf-8")
    arguments = ["--model", str(tiny_chat), "--threads", "1", "--folder", str(tmp_path)]
    arguments += ["--axes", "cheerful", "concise", "--queries", "2", "--choosing", "2"]
    arguments += ["--seeds", "2", "--tokens", "8"]
    real.main([*arguments, *(str(x) for name, (_, page) in pages.items() for x in (name, page))])
    said = capsys.readouterr().out
    whole_pages = [page.read_text("utf-8") for _, page in pages.values()]
    texts = [page.split("-->\n")[1].partition("\n<!--")[0] for page in whole_pages]
    assert "\n\n".join(texts) == said.strip()
    for (marker, _), whole_page, text in zip(pages.values(), whole_pages, texts, strict=True):
        assert whole_page == f"a\n<!-- {marker} -->\n{text}\n<!-- /{marker} -->\nb\n"
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        heads = [i for i, line in enumerate(lines) if line.startswith("| ---")]
        columns = [line.replace("\\|", "").count("|") - 1 for line in lines]
        for start, end in zip(heads, [*(i - 1 for i in heads[1:]), len(lines)], strict=True):
            assert len({columns[i] for i in range(start - 1, end)}) == 1
    rows = [line.split(" ", 3)[1] for line in texts[0].splitlines() if line.startswith("| ")]
    assert rows[2:7] == ["cheerful", "cheerful", "concise", "concise", "mean"]

    log = tmp_path / "answers.jsonl"
    whole = log.read_text("utf-8").splitlines()
    log.write_text("\n".join(whole[:-3]) + '\n{"key": "torn', encoding="utf-8")
    real.main([*arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert list(result["axes"]) == ["cheerful", "concise"]
    assert [len(table["first answers"]) for table in result["axes"].values()] == [2, 2]
    assert log.read_text("utf-8").splitlines()[: len(whole) - 3] == whole[:-3]
    assert {json.loads(line)["key"] for line in log.read_text("utf-8").splitlines()} == {
        json.loads(line)["key"] for line in whole
    }

    def nothing(*_: object) -> None:
        raise AssertionError("everything is there already")

    monkeypatch.setattr(Answers, "_make", nothing)
    real.main(arguments)
    capsys.readouterr()


def test_a_run_begins_with_the_answers_that_are_published(
    tiny_chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(real, "CACHE", tmp_path / "mine")
    monkeypatch.setattr(real, "PUBLISHED", tmp_path / "published")
    arguments = ["--model", str(tiny_chat), "--threads", "1", "--axes", "cheerful"]
    arguments += ["--queries", "2", "--choosing", "1", "--seeds", "1", "--tokens", "4", "--publish"]
    with Model.load(tiny_chat, threads=1) as model:
        random_profile(model, 0, "cheerful").save(
            real.answers_folder(model, None) / "cheerful.gguf"
        )
    real.main(arguments)
    said = capsys.readouterr().out
    monkeypatch.setattr(real, "CACHE", tmp_path / "yours")
    monkeypatch.setattr(Answers, "_make", None)
    real.main(arguments)
    assert capsys.readouterr().out == said
