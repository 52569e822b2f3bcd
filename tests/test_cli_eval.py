"""`alignez eval` from the outside: what it says, keeps and refuses."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import Alignez, process
from tests.test_cli import alignez, home  # noqa: F401  (fixtures)

ROW_KEYS = [
    "arm",
    "kind",
    "profile",
    "strength",
    "axis",
    "side",
    "trait",
    "answers",
    "win",
    "lose",
    "tie",
    "delta",
    "low",
    "high",
    "p_value",
    "price",
    "scores",
]
COST_KEYS = [
    "nats_above_plain",
    "low",
    "high",
    "drift",
    "perplexity",
    "repetition",
    "length_change",
    "knowledge",
]
RULES = """
name = "wordy"
[aspects.polite]
length = { unit = "characters", best = 100, worst = 0 }
"""


@pytest.fixture
def use(tiny_chat: Path, chat_model: Model, tmp_path: Path) -> list[object]:
    """What every evaluation here needs: a tiny model, a profile, queries and a judge."""
    profile, queries, rules = (tmp_path / name for name in ("bright.gguf", "q.txt", "rules.toml"))
    random_profile(chat_model).save(profile)
    queries.write_text("".join(f"Tell me about {t}.\n" for t in ("bread", "rain", "tea")), "utf-8")
    rules.write_text(RULES, "utf-8")
    where = ["-m", tiny_chat, "--threads", 1, "--queries", queries, "--judge", rules]
    return [*where, "--max-tokens", 4, "--seeds", 1, "-p", profile]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_row_for_each_profile_and_strength(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    home: Path,  # noqa: F811
) -> None:
    said = alignez("eval", *use, "-p", f"{use[-1]}:-0.5", "--json", "--quiet")
    assert (said.code, said.err) == (0, "")
    found = records(said.out)
    assert [list(row) for row in found] == [ROW_KEYS, ROW_KEYS]
    assert [list(row["price"]) for row in found] == [COST_KEYS, COST_KEYS]
    assert [(row["arm"], row["strength"], row["side"], row["trait"]) for row in found] == [
        ("bright:1", 1.0, "positive", "polite"),
        ("bright:-0.5", -0.5, "negative", "rude"),
    ]
    assert all(row["win"] + row["lose"] + row["tie"] == pytest.approx(100) for row in found)
    (folder,) = (home / "runs").iterdir()
    assert folder.name.startswith("bright-")
    assert json.loads((folder / "results.json").read_text("utf-8"))["rows"] == found
    before = (folder / "answers.jsonl").read_bytes()
    again = alignez("eval", *use, "-p", f"{use[-1]}:-0.5", "--json", "--quiet")
    assert again.out == said.out and (folder / "answers.jsonl").read_bytes() == before
    assert list((home / "runs").iterdir()) == [folder]


def test_the_table_says_wins_and_prices(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    said = alignez("eval", *use, "--strengths=-1,1", "--asking", "-o", tmp_path / "run")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0].startswith("Random model: 3 queries, 1 answer to each, judged by wordy-")
    head = "arm                more    win  lose  tie  net win %"
    assert lines[2].startswith(head) and lines[2].endswith("of prompting")
    arms = [line.split("  ")[0] for line in lines[3:9]]
    both = ["bright:-1 + asked", "bright:1 + asked"]
    assert arms == ["asked:polite+", "asked:polite-", "bright:-1", "bright:1", *both]
    assert "the cost, against plain answers:" in lines
    assert f"kept in {tmp_path / 'run'}" in said.err


def test_a_reference_gives_the_relative_improvement(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    for number, option in enumerate((["--reference", tiny_llama], ["--against", use[-1]])):
        said = alignez("eval", *use, *option, "--json", "--quiet", "-o", tmp_path / str(number))
        assert said.code == 0
        its, own = records(said.out)
        keys = [f"relative_improvement{end}" for end in ("", "_low", "_high")]
        assert its["kind"] == "reference" and list(own) == [*ROW_KEYS, *keys]


def test_a_grid_and_a_sweep(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    chat_model: Model,
    tmp_path: Path,
) -> None:
    other = tmp_path / "terse.gguf"
    random_profile(chat_model, 1, "terse").save(other)
    *without, _, profile = use
    options = ["--grid", profile, other, "--strengths=-1,0", "--json", "--quiet"]
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES + "[aspects.terse]\n" + RULES.splitlines()[-1] + "\n", "utf-8")
    cells = records(alignez("eval", *without, *options).out)
    assert [(row["arm"], row["axis"]) for row in cells] == [
        (f"bright:{s} + terse:{t}", axis)
        for s in (-1, 0)
        for t in (-1, 0)
        for axis in ("polite", "terse")
    ]
    sweeps = ["--sweep", "inject=control-vector", "--sweep", "strength=0.5,1", "--json", "--quiet"]
    swept = records(alignez("eval", *use, *sweeps).out)
    assert [row["sweep"] for row in swept] == [
        {"inject": "control-vector", "strength": strength} for strength in (0.5, 1.0)
    ]
    assert [row["profile"] for row in swept] == ["bright", "bright"]


def test_a_system_prompt_alone_and_with_a_profile(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    system = tmp_path / "kind.txt"
    system.write_text("Be kind.", "utf-8")
    rows = records(alignez("eval", *use, "--system", system, "--json", "--quiet").out)
    assert [(row["arm"], row["kind"]) for row in rows] == [
        ("bright:1", "steered"),
        ("system:kind.txt", "prompted"),
        ("bright:1 + system:kind.txt", "steered"),
    ]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--limit", "0"], "error: --limit is 0; it must be at least 1"),
        (["--seeds", "0"], "error: --seeds is 0"),
        (["--parallel", "0"], "error: --parallel is 0"),
        (["--strengths", "1,x"], "error: --strengths cannot be '1,x'"),
        (["--strengths", "inf"], "error: --strengths cannot be 'inf'"),
        (["--sweep", "depth=1"], "error: --sweep cannot be 'depth=1'"),
        (["--sweep", "layers=0"], "error: '0' is not a count"),
        (["--sweep", "method=alignes"], "error: 'alignes' cannot be swept over"),
        (["--sweep", "strength=1", "--strengths", "1"], "error: --sweep strength and --strengths"),
        (["--sweep", "strength=1", "--ablations"], "error: --sweep and --ablations cannot"),
        (["--sweep", "strength=1", "--grid", "a", "b"], "error: --grid and -p cannot"),
        (["--sweep", "strength=1", "--sweep", "strength=2"], "error: --sweep names a setting"),
        (["--strengths", "1,1.0000001"], "error: two arms are called bright:1"),
        (["--grid", "a", "b"], "error: --grid and -p cannot be combined"),
        (["--reference", "a", "--against", "b"], "error: --reference and --against cannot"),
        (["--reference", "nowhere"], "error: no model called 'nowhere'"),
        (["--against", "nobody"], "error: no profile called 'nobody'"),
        (["--judge", "nobody"], "error: no judge is called 'nobody'"),
        (["--queries", "no.txt"], "error: no such query file"),
        (["--sweep", "layers=1"], "error: the profile polite does not say how it was built"),
        (["--inject", "exact"], "error: --inject exact is not available"),
        (["-o", "."], "error: . is not the folder of a run"),
    ],
)
def test_wrong_use(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    home: Path,  # noqa: F811
    options: list[str],
    error: str,
) -> None:
    said = alignez("eval", *use, *options, "--quiet")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(error) and "Traceback" not in said.err
    assert not (home / "runs").exists(), "nothing half-begun"


def test_a_grid_needs_two_profiles(
    alignez: Alignez,  # noqa: F811
    use: list[object],
) -> None:
    *without, _, profile = use
    said = alignez("eval", *without, "--grid", profile, profile, "--quiet")
    assert (said.code, said.err.splitlines()[0]) == (2, "error: --grid names one profile twice")


def test_what_has_to_be_named(
    alignez: Alignez,  # noqa: F811
    use: list[object],
) -> None:
    *without, _, profile = use
    model = without[:2]
    for options, error in (
        (without, "error: no profile given"),
        ([*model, "-p", profile], "error: no queries given"),
        ([*without[:6], "-p", profile], "error: no judge given"),
    ):
        said = alignez("eval", *options)
        assert said.code == 2 and said.err.startswith(error)


def test_ctrl_c_is_one_line_and_the_evaluation_goes_on(
    tiny_model: Callable[..., Path], use: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    queries = tmp_path / "q.txt"
    queries.write_text("".join(f"Tell me about {n}.\n" for n in range(60)), "utf-8")
    command = ["eval", *use, "--seeds", 4, "--max-tokens", 24, "--json", "-o", run]
    running = process(*command)
    kept = run / "answers.jsonl"
    while running.poll() is None and not kept.exists():
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    said, complaint = running.communicate()
    assert (running.returncode, said) == (130, b""), complaint.decode()
    told = [line for line in complaint.decode().splitlines() if not line.startswith("  ")]
    assert told[-1] == "interrupted: start the same evaluation again and it goes on where it was"
    before = kept.read_bytes()
    assert not (run / "results.json").exists()
    again = process(*command, "--quiet")
    said, complaint = again.communicate()
    assert (again.returncode, complaint, said.count(b"\n")) == (0, b"", 1)
    assert kept.read_bytes().startswith(before)


def test_a_judge_that_cannot_judge_is_found_out_before_the_work(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    rules = tmp_path / "other.toml"
    length = 'length = { unit = "characters", best = 100, worst = 0 }\n'
    rules.write_text(f"[aspects.one]\n{length}[aspects.two]\n{length}", "utf-8")
    for judge, complaint in ((rules, "no aspect"), ("demo", "no topic")):
        said = alignez("eval", *use, "--judge", judge, "-o", tmp_path / "run")
        assert (said.code, said.out) == (2, "")
        assert complaint in said.err
        assert not (tmp_path / "run").exists()


def test_more_answers_than_a_run_can_hold(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    said = alignez("eval", *use, "--seeds", 10**11, "-o", tmp_path / "run")
    assert (said.code, said.out) == (2, "")
    assert "at most 16,777,216" in said.err and not (tmp_path / "run").exists()


def test_the_demo_model_may_be_the_reference(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    said = alignez("eval", *use, "--reference", "demo", "-o", tmp_path / "run", "--json", "--quiet")
    assert said.code == 0, said.err
    assert "relative_improvement" in records(said.out)[-1]
