"""The run of an evaluation: what it keeps, that it goes on, and that its table is right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.evaluation import arms
from alignez_edge.evaluation.plan import Plan, Query, that_fit
from alignez_edge.evaluation.results import results_of
from alignez_edge.evaluation.run import evaluate
from alignez_edge.evaluation.runfolder import RunFolder
from alignez_edge.judges.judging import Comparison, Judgement
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from tests.profiles import random_profile
from tests.terminal import ROOT

TOPICS = "bread rain trains cats snow tea maps birds salt glue wool milk".split()
QUERIES = tuple(Query(f"Tell me about {topic}.", {"topic": topic}) for topic in TOPICS)
SAMPLING = Sampling(max_tokens=6)


@dataclass(frozen=True)
class Longer:
    """Prefers the longer answer; on the negative side the shorter one."""

    scored: bool = True
    name: str = "longer"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        for asked in comparisons:
            lengths = len(asked.first), len(asked.second)
            sign = 1 if asked.side == "positive" else -1
            scores = {asked.axis.name: (lengths[0] / 100, lengths[1] / 100)}
            yield Judgement(
                sign * float(np.sign(lengths[0] - lengths[1])), scores if self.scored else {}
            )


@pytest.fixture(scope="module")
def tiny(tiny_chat: Path) -> Iterator[Model]:
    with Model.load(tiny_chat, threads=1) as model:
        yield model


def plan_of(model: Model, *strengths: float, asking: bool = False, **more: Any) -> Plan:
    profile = random_profile(model)
    made = [arms.steered("polite", profile * strength) for strength in strengths]
    asked = arms.asked(made) if asking else []
    return Plan((arms.plain(), *asked, *made), QUERIES, SAMPLING, **({"seeds": 2} | more))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A run of plain, asked and steered arms, judged."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    plan = plan_of(tiny, 1.0, -1.0, 0.0, asking=True)
    evaluate(tiny, plan, Longer(), folder)
    return plan, folder


def test_everything_is_kept(finished: tuple[Plan, Path]) -> None:
    _, folder = finished
    run = json.loads((folder / "run.json").read_text("utf-8"))
    assert run["version"] == 1 and run["queries"]["count"] == len(QUERIES)
    names = ["plain", "asked:polite+", "asked:polite-", "polite:1", "polite:-1", "polite:0"]
    assert [arm["name"] for arm in run["arms"]] == names
    assert [arm["kind"] for arm in run["arms"]] == ["plain", *["asked"] * 2, *["steered"] * 3]
    answers = lines(folder / "answers.jsonl")
    assert len(answers) == len(names) * len(QUERIES) * 2
    keys = ["arm", "query_index", "query", "facts", "seed_index", "seed", "text", "tokens"]
    assert all(list(answer) == [*keys, "finish_reason", "nats"] for answer in answers)
    assert all(
        answer["seed"] == 1000 * answer["seed_index"] + answer["query_index"]
        and answer["facts"] == {"topic": TOPICS[answer["query_index"]]}
        and answer["nats"] >= 0
        for answer in answers
    )
    verdicts = lines(folder / "verdicts.jsonl")
    assert len(verdicts) == (len(names) - 1) * len(QUERIES) * 2
    assert {verdict["against"] for verdict in verdicts} == {"plain"}
    drift = lines(folder / "drift.jsonl")
    assert all(record["drift"] == 0 for record in drift if record["arm"] in ("plain", "polite:0"))
    assert any(record["drift"] > 0 for record in drift if record["arm"] == "polite:1")


def test_strength_0_is_the_plain_model(finished: tuple[Plan, Path]) -> None:
    _, folder = finished
    by_arm: dict[str, list[str]] = {}
    for answer in lines(folder / "answers.jsonl"):
        by_arm.setdefault(answer["arm"], []).append(answer["text"])
    assert by_arm["polite:0"] == by_arm["plain"] != by_arm["polite:1"]
    (row,) = rows(folder, "polite:0")
    assert (row["win"], row["lose"], row["tie"], row["p_value"]) == (0, 0, 100, 1)
    assert row["price"]["nats_above_plain"] == row["price"]["length_change"] == 0


def test_answers_are_those_of_the_model_itself(finished: tuple[Plan, Path], tiny: Model) -> None:
    plan, folder = finished
    first = next(a for a in lines(folder / "answers.jsonl") if a["arm"] == "polite:1")
    (alone,) = tiny.generate(
        [first["query"]], steering=plan.arms[3].steering, sampling=SAMPLING.with_seed(first["seed"])
    )
    assert alone.text == first["text"]


def rows(folder: Path, arm: str) -> list[dict[str, Any]]:
    results = json.loads((folder / "results.json").read_text("utf-8"))
    return [row for row in results["rows"] if row["arm"] == arm]


def test_rows_say_what_the_files_say(finished: tuple[Plan, Path]) -> None:
    _, folder = finished
    length: dict[str, dict[tuple[int, int], int]] = {}
    for answer in lines(folder / "answers.jsonl"):
        place = answer["query_index"], answer["seed_index"]
        length.setdefault(answer["arm"], {})[place] = len(answer["text"])
    for name, sign in (("polite:1", 1), ("polite:-1", -1)):
        (row,) = rows(folder, name)
        signs = [sign * np.sign(length[name][at] - length["plain"][at]) for at in length["plain"]]
        assert row["win"] == pytest.approx(100 * np.mean(np.array(signs) > 0), abs=1e-5)
        assert row["lose"] == pytest.approx(100 * np.mean(np.array(signs) < 0), abs=1e-5)
        assert row["delta"] == pytest.approx(row["win"] - row["lose"], abs=1e-5)
        assert row["low"] <= row["delta"] <= row["high"]
        mean = np.mean(list(length[name].values())) / 100
        assert row["scores"]["polite"]["mean"] == pytest.approx(mean, abs=1e-5)
    plus, minus, asked, asked_not = (
        np.mean(list(length[name].values()))
        for name in ("polite:1", "polite:-1", "asked:polite+", "asked:polite-")
    )
    (row,) = rows(folder, "polite:1")
    if row["share_of_asking"] is not None:
        wanted = (plus - minus) / (asked - asked_not)
        assert row["share_of_asking"] == pytest.approx(wanted, rel=1e-4)


def test_the_table_needs_only_the_folder(finished: tuple[Plan, Path]) -> None:
    _, folder = finished
    again = json.loads(json.dumps(results_of(RunFolder(folder))))
    assert again == json.loads((folder / "results.json").read_text("utf-8"))


def test_half_a_reference_is_half_the_improvement(tiny: Model, tmp_path: Path) -> None:
    """A profile against itself improves by all of the reference's net win."""
    profile = random_profile(tiny)
    one = arms.steered("polite", profile * 1.0)
    other = arms.reference("same", [one], profile * 1.0)
    plan = Plan((arms.plain(), other, one), QUERIES, SAMPLING, 2)
    results = evaluate(tiny, plan, Longer(scored=False), tmp_path / "run")
    own = next(row for row in results["rows"] if row["kind"] == "steered")
    its = next(row for row in results["rows"] if row["kind"] == "reference")
    assert (own["delta"], own["low"]) == (its["delta"], its["low"])
    if own["relative_improvement"] is not None:
        assert own["relative_improvement"] == pytest.approx(100)
        assert own["relative_improvement_low"] == pytest.approx(100)
    assert (own["low"] > 0 or own["high"] < 0) == (own["relative_improvement"] is not None)


def test_a_reference_model_of_another_file(tiny: Model, tiny_llama: Path, tmp_path: Path) -> None:
    one = arms.steered("polite", random_profile(tiny) * 1.0)
    made = (arms.plain(), arms.reference("other", [one]), one)
    greedy = replace(SAMPLING, temperature=0)
    plan = Plan(made, QUERIES[:3], greedy, reference=tiny_llama)
    results = evaluate(tiny, plan, Longer(), tmp_path / "run")
    its = next(row for row in results["rows"] if row["kind"] == "reference")
    assert its["price"]["drift"] is None and its["price"]["nats_above_plain"] is not None
    with Model.load(tiny_llama, threads=1) as model:
        (alone,) = model.generate([QUERIES[0].text], sampling=greedy)
    kept = next(a for a in lines(tmp_path / "run" / "answers.jsonl") if a["arm"].endswith("other"))
    assert kept["text"] == alone.text


def test_a_cell_is_judged_by_both_axes(tiny: Model, tmp_path: Path) -> None:
    polite, terse = random_profile(tiny), random_profile(tiny, 1, "terse")
    made = [arms.cell(("polite", "terse"), polite * s + terse * t) for s in (-1, 1) for t in (0, 1)]
    plan = Plan((arms.plain(), *made), QUERIES[:4], SAMPLING)
    results = evaluate(tiny, plan, Longer(), tmp_path / "run")
    assert [(row["arm"], row["axis"], row["side"]) for row in results["rows"]] == [
        (f"polite:{s} + terse:{t}", axis, "negative" if strength < 0 else "positive")
        for s in (-1, 1)
        for t in (0, 1)
        for axis, strength in (("polite", s), ("terse", t))
    ]


def test_a_text_of_ones_own_measures_drift(tiny: Model, tmp_path: Path) -> None:
    plan = plan_of(tiny, 1.0, neutral=("It rained all day.", "Bread is baked."))
    results = evaluate(tiny, plan, Longer(), tmp_path / "run")
    assert results["rows"][0]["price"]["drift"] > 0 and results["plain"]["perplexity"] > 1
    assert len(lines(tmp_path / "run" / "drift.jsonl")) == 2 * 2


def test_queries_longer_than_the_window_are_left_out(tiny: Model) -> None:
    long = Query("bread " * 400)
    arm = arms.plain()
    assert that_fit(tiny, [arm], [*QUERIES, long], 128) == list(QUERIES)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_two_processes_are_not_let_into_one_folder(
    finished: tuple[Plan, Path], tiny: Model, tmp_path: Path
) -> None:
    """What another one is writing is not taken for a torn line, and not cut off."""
    plan, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    with (tmp_path / "run" / "answers.jsonl").open("ab") as file:
        file.write(b'{"half a li')
    before = (tmp_path / "run" / "answers.jsonl").read_bytes()
    script = f"""
        from pathlib import Path
        from alignez_edge.files.writing import alone_in
        with alone_in(Path({str(tmp_path / "run")!r})):
            print("in", flush=True)
            input()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    with pytest.raises(AlignezError, match="another process is at work"):
        evaluate(tiny, plan, Longer(), tmp_path / "run")
    assert (tmp_path / "run" / "answers.jsonl").read_bytes() == before
    other.kill()
    other.communicate()
    evaluate(tiny, plan, Longer(), tmp_path / "run")
    assert (tmp_path / "run" / "answers.jsonl").read_bytes() == before[: -len(b'{"half a li')]


def test_another_run_in_the_folder_is_refused(finished: tuple[Plan, Path], tiny: Model) -> None:
    _, folder = finished
    before = (folder / "answers.jsonl").read_bytes()
    with pytest.raises(BadInputError, match="other settings: arms differ"):
        evaluate(tiny, plan_of(tiny, 0.5), Longer(), folder)
    with pytest.raises(BadInputError, match="other settings: seeds"):
        evaluate(tiny, plan_of(tiny, 1.0, -1.0, 0.0, asking=True, seeds=3), Longer(), folder)
    with pytest.raises(BadInputError, match="not the folder of a run"):
        evaluate(tiny, plan_of(tiny, 0.5), Longer(), folder.parent)
    assert (folder / "answers.jsonl").read_bytes() == before


@pytest.mark.parametrize("cell", [{"query_index": 99}, {"arm": "x"}, {"seed_index": True}, {}])
def test_a_line_of_another_run_is_one_error(
    finished: tuple[Plan, Path], tiny: Model, tmp_path: Path, cell: dict[str, object]
) -> None:
    plan, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    with (tmp_path / "run" / "answers.jsonl").open("a") as file:
        file.write(json.dumps(cell) + "\n")
    with pytest.raises(BadInputError, match="answer of another run"):
        evaluate(tiny, plan, Longer(), tmp_path / "run")


class Tired(Longer):
    """A judge that stops after a few verdicts, without a word or with one."""

    def __init__(self, after: int, failure: Exception | None) -> None:
        super().__init__()
        self.__dict__.update(after=after, failure=failure)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        for number, verdict in enumerate(super().compare(comparisons)):
            if number == self.__dict__["after"]:
                if self.__dict__["failure"] is not None:
                    raise self.__dict__["failure"]
                return
            yield verdict


@pytest.mark.parametrize("failure", [None, AlignezError("gone")])
def test_verdicts_are_kept_when_the_judge_stops(
    tiny: Model, tmp_path: Path, failure: Exception | None
) -> None:
    plan, folder = plan_of(tiny, 1.0), tmp_path / "run"
    with pytest.raises(AlignezError):
        evaluate(tiny, plan, Tired(5, failure), folder)
    before = lines(folder / "verdicts.jsonl")
    assert len(before) == 5
    assert evaluate(tiny, plan, Longer(), folder)["rows"][0]["answers"] == 2 * len(QUERIES)
    assert lines(folder / "verdicts.jsonl")[:5] == before


@dataclass(frozen=True)
class Places(Longer):
    """A judge that was shown both orders and took the first one shown in most of them."""

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        for _ in comparisons:
            yield Judgement(0.25, {}, (1.0, -0.5))


def test_the_judges_position_bias_is_told(tiny: Model, tmp_path: Path) -> None:
    results = evaluate(tiny, plan_of(tiny, 1.0), Places(), tmp_path / "run")
    assert results["position_bias"] == pytest.approx(0.75)
    assert results["rows"][0]["win"] == 100


CHILD = """
import os, signal, sys
from alignez_edge.evaluation.run import evaluate
from alignez_edge.runtime.model import Model
from tests.test_evaluation import Longer, plan_of

path, folder, doomed, moment = sys.argv[1:]
left = int(moment)

def watch(step, done, total):
    global left
    left -= step == doomed
    if doomed and not left:
        os.kill(os.getpid(), signal.SIGKILL)

with Model.load(path, threads=1) as model:
    evaluate(model, plan_of(model, 1.0, -1.0, seeds=2), Longer(), folder, on_progress=watch)
"""


def run_child(model: Path, folder: Path, doomed: str = "", moment: int = 0) -> None:
    command = [sys.executable, "-c", CHILD, model, folder, doomed, moment]
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    assert done.returncode == (-signal.SIGKILL if doomed else 0), done.stderr.decode()


def test_a_killed_evaluation_goes_on(tiny_chat: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_child(tiny_chat, whole)
    for step, moment in (("answers", 5), ("verdicts", 30)):
        before = {path.name: path.read_bytes() for path in killed.glob("*.jsonl")}
        run_child(tiny_chat, killed, step, moment)
        for name, text in before.items():
            assert (killed / name).read_bytes().startswith(text), "what is finished stays"
    os.truncate(killed / "answers.jsonl", (killed / "answers.jsonl").stat().st_size - 30)
    run_child(tiny_chat, killed)
    for name in ("run.json", "answers.jsonl", "verdicts.jsonl", "drift.jsonl", "results.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("verdicts.jsonl", {"preference": "much"}),
        ("verdicts.jsonl", {"scores": {"polite": [1.0]}}),
        ("verdicts.jsonl", {"scores": {"polite": [1.0, "high"]}}),
        ("answers.jsonl", {"nats": "few"}),
        ("answers.jsonl", {"tokens": 1e999}),
        ("drift.jsonl", {"drift": []}),
    ],
)
def test_odd_numbers_in_a_folder_are_one_error(
    finished: tuple[Plan, Path], tmp_path: Path, name: str, change: dict[str, object]
) -> None:
    _, folder = finished
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    first, rest = (run / name).read_text("utf-8").split("\n", 1)
    (run / name).write_text(json.dumps(json.loads(first) | change) + "\n" + rest, "utf-8")
    with pytest.raises(BadInputError, match="is not a number"):
        results_of(RunFolder(run))


@pytest.mark.parametrize("change", [{"seeds": 0}, {"seeds": 1 << 30}, {"arms": 3}, {"version": 2}])
def test_a_run_that_makes_no_sense_is_refused(
    finished: tuple[Plan, Path], tmp_path: Path, change: dict[str, object]
) -> None:
    _, folder = finished
    run = json.loads((folder / "run.json").read_text("utf-8"))
    (tmp_path / "run.json").write_text(json.dumps(run | change), "utf-8")
    with pytest.raises(BadInputError, match="does not describe a run"):
        RunFolder(tmp_path)


def test_prompting_asks_in_the_form_of_the_pairs_and_may_go_with_steering(tiny: Model) -> None:
    profile = random_profile(tiny)
    chosen = replace(profile, report={"request": {"form": "style"}})
    made = [arms.steered("polite", chosen * s) for s in (-1.0, 0.0, 1.0)]
    wanted = "Why? Answer in a very polite way."
    plus, minus = arms.asked(made)
    assert plus.messages("Why?", chat=True) == [{"role": "user", "content": wanted}]
    assert minus.aims[0].side == "negative"
    down, up = arms.both(made)
    assert (down.name, up.name) == ("polite:-1 + asked", "polite:1 + asked")
    assert up.messages("Why?", chat=True) == plus.messages("Why?", chat=True)
    assert up.steering == made[-1].steering and down.aims[0].side == "negative"
    # A profile of before says nothing of a form; two steps are no prompt that anybody writes.
    for report in ({}, {"request": {"form": "two-steps"}}, {"request": "?"}):
        old = arms.steered("polite", replace(profile, report=report) * 1.0)
        assert {arm.form for arm in arms.asked([old])} == {"list"}
