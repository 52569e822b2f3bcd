"""The benchmark of verdicts: its short way is that of a build, a swap is a swap, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.build.build import build_profile
from alignez_edge.calibration import free_running
from alignez_edge.calibration.verdict import Verdict, judge
from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import read_labelled_pairs
from alignez_edge.runtime.model import Model
from benchmarks import trust

AXIS = Axis("concise", "concise", "wordy")


def write_pairs(path: Path, count: int, swapped: frozenset[int] = frozenset()) -> Path:
    """Pairs with requests of their own; the sides of some are swapped."""
    lines = []
    for i in range(count):
        row = {"query": f"Who is number {i}?"}
        names = ("chosen", "rejected") if i not in swapped else ("rejected", "chosen")
        for name, trait in zip(names, ("concise", "wordy"), strict=True):
            row[name] = f"The {trait} answer {i % 7} is here."
            row[f"{name}_request"] = f"{row['query']} Answer in a very {trait} way."
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of few tokens, in a build as well."""
    monkeypatch.setattr(free_running, "N_TOKENS", 6)


@pytest.fixture
def pairs(tmp_path: Path) -> trust.Pairs:
    found = read_labelled_pairs(write_pairs(tmp_path / "pairs.jsonl", 32), AXIS).pairs
    return trust.Pairs(AXIS, found, tmp_path / "states.f32")


def test_the_verdict_is_that_of_a_build(
    chat_model: Model, pairs: trust.Pairs, tmp_path: Path
) -> None:
    """The short way is no other way: the same words and the same figures."""
    own = write_pairs(tmp_path / "own.jsonl", 32)
    built = Verdict.of(build_profile(chat_model, AXIS, pairs=own, work=tmp_path / "own"))
    pairs.read(chat_model)
    found, alone = pairs.build(chat_model, trust.swaps(trust.AS_WRITTEN, 32, 0))
    assert found == built
    assert alone.figures == {**found.figures, "agreement": None}

    swapped = trust.swaps(1, 32, 0)
    file = write_pairs(tmp_path / "mixed.jsonl", 32, frozenset(np.flatnonzero(swapped).tolist()))
    built = Verdict.of(build_profile(chat_model, AXIS, pairs=file, work=tmp_path / "mixed"))
    found, _ = pairs.build(chat_model, swapped)
    assert built is not None, "its texts may differ, as the sides were read in another order"
    assert found.figures["agreement"] == built.figures["agreement"] < 1


def test_a_swapped_pair_has_its_states_the_other_way_round(
    chat_model: Model, pairs: trust.Pairs
) -> None:
    pairs.read(chat_model)
    swapped = np.arange(32) % 3 == 0
    shape = chat_model.n_layer, chat_model.n_embd
    rows = [0, 1, 3, 31]
    with (
        HiddenStates(pairs.path, shape) as states,
        trust.Swapped(pairs.path, shape, swapped) as other,
    ):
        assert len(states) == len(other) == 32
        plain, mixed = (each.layer(2, "answer", rows) for each in (states, other))
    for place, row in enumerate(rows):
        sides = [plain.chosen[place], plain.rejected[place]]
        own = [mixed.chosen[place], mixed.rejected[place]]
        np.testing.assert_array_equal(own, sides[::-1] if swapped[row] else sides)
    assert not np.array_equal(plain.chosen, plain.rejected)


def test_half_of_the_pairs_are_swapped_anew_in_each_build() -> None:
    assert not trust.swaps(trust.AS_WRITTEN, 400, 0).any()
    first, second = (trust.swaps(number, 400, 0) for number in (1, 2))
    assert 150 < first.sum() < 250 and 150 < second.sum() < 250  # 5 standard deviations
    assert (first != second).sum() > 150
    np.testing.assert_array_equal(first, trust.swaps(1, 400, 0))


def test_the_table_says_whether_too_many_work() -> None:
    def row(build: int, word: str, alone: str, agreement: float) -> dict[str, Any]:
        figures = {"agreement": agreement, "ratio_to_prompting": None if build else 1.1}
        return {
            "axis": "concise",
            "build": build,
            "verdict": word,
            "without agreement": alone,
            "figures": figures,
        }

    rows = [row(0, "works", "works", 0.98)]
    rows += [row(1 + i, "not enough to tell", "works", 0.5 + i / 100) for i in range(18)]
    rows += [row(19, "works", "works", 0.9), row(20, "wrong way", "wrong way", 0.6)]
    text = trust.markdown({"model": "m", "builds": rows})
    lines = {line.split(" | ")[0]: line for line in text.splitlines()}
    cells = lines["| **all, swapped**"].strip("| ").split(" | ")
    assert cells == [
        "**all, swapped**", "20", "1", "", "", "1", "18", "0.50 to 0.90", "n/a", "19",
    ]  # fmt: skip
    assert "1 is said to work; 1 may be: met." in text
    rows[2]["verdict"] = "works"
    assert "2 are said to work; 1 may be: **not met**." in trust.markdown(
        {"model": "m", "builds": rows}
    )


def test_it_runs_and_goes_on(
    tiny_chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("concise", "cheerful"):
        (tmp_path / f"build-{name}-8").mkdir()
        write_pairs(tmp_path / f"build-{name}-8" / "pairs.jsonl", 8)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- trust -->\n<!-- /trust -->\nb\n", encoding="utf-8")
    arguments = ["--model", str(tiny_chat), "--threads", "1", "--folder", str(tmp_path)]
    arguments += ["--axes", "concise", "cheerful", "--limit", "8"]
    trust.main([*arguments, "--builds", "1"])
    capsys.readouterr()
    log = tmp_path / "trust.jsonl"
    whole = log.read_text("utf-8").splitlines()
    assert len(whole) == 3, "both axes as written, and one build of the first with sides swapped"
    log.write_text("\n".join(whole[:-1]) + '\n{"key": "torn', encoding="utf-8")

    trust.main([*arguments, "--builds", "2", "--page", str(page)])
    text = capsys.readouterr().out.strip()
    assert page.read_text("utf-8") == f"a\n<!-- trust -->\n{text}\n<!-- /trust -->\nb\n"
    lines = log.read_text("utf-8").splitlines()
    assert lines[:3] == whole, "the build that was torn comes out alike"
    assert [json.loads(line)["axis"] for line in lines] == ["concise", "cheerful"] * 2

    def nothing(*_: object) -> None:
        raise AssertionError("everything is there already")

    monkeypatch.setattr(trust, "capture", nothing)
    monkeypatch.setattr(trust.Pairs, "build", nothing)
    trust.main([*arguments, "--builds", "2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [row["build"] for row in result["builds"]] == [0, 0, 1, 1]


def test_chance_is_not_said_to_work_where_pairs_agree_by_chance() -> None:
    """What the second verdict is for: without the look at the pairs the answers decide alone."""
    effect = np.full((8, 2), 0.3) + np.random.default_rng(0).normal(0, 0.02, (8, 2))
    assert judge(AXIS, effect, effect, 0.6).verdict == "not enough to tell"
    assert judge(AXIS, effect, effect, None).verdict == "works"
