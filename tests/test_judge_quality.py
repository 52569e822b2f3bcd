"""The test of judges: what it counts, the pairs that ship, and `alignez judge` in a terminal."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignez_edge.demo.rules import AXES, judge
from alignez_edge.errors import BadInputError
from alignez_edge.judges.judging import Comparison, Judgement
from alignez_edge.judges.named import JudgeSettings, identity_of, judge_of
from alignez_edge.judges.orders import Asked
from alignez_edge.judges.quality import (
    KnownPair,
    Tally,
    axes_for,
    guessing_p_value,
    measure,
    read_test_pairs,
    shipped_pairs,
)
from alignez_edge.preferences.axes import Axis
from benchmarks import judges
from cli.judge import command
from cli.output import Output
from tests.terminal import Alignez, in_terminal

POLITE = Axis.builtin("polite")
RULES = Path(__file__).parents[1] / "benchmarks" / "everyday_rules.toml"


@dataclass(frozen=True)
class Scripted:
    """Prefers by a rule over the texts of the two answers, as they are shown."""

    prefer: Callable[[str, str], float]
    name: str = "scripted"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        for asked in comparisons:
            yield Judgement(self.prefer(asked.first, asked.second))


def pairs(n: int, n_equal: int = 0) -> list[KnownPair]:
    better = [KnownPair(Comparison("q", f"good {i}", f"bad {i}", POLITE)) for i in range(n)]
    equal = [
        KnownPair(Comparison("q", f"even {i}", f"so {i}", POLITE), equal=True)
        for i in range(n_equal)
    ]
    return better + equal


def knows(first: str, second: str) -> float:
    return float(first.startswith("good")) - float(second.startswith("good"))


def test_a_judge_that_knows() -> None:
    report = measure(Asked(Scripted(knows)), pairs(20, 5))
    assert report.averaged == Tally(right=20, wrong=0, tie=0, equal=5, equal_tie=5)
    assert report.once == report.averaged and report.by_axis == {"polite": report.averaged}
    assert (report.position_bias, report.contradicted) == (0, 0)
    assert report.can_tell and "can tell better" in report.finding
    assert "right in 100% of 20 test pairs" in report.finding


def test_a_handful_of_pairs_proves_nothing() -> None:
    report = measure(Scripted(knows), pairs(6))
    assert not report.can_tell
    assert report.finding.startswith("6 test pairs are too few to say whether the judge ")
    assert "right in 100% of 6 test pairs" in report.finding
    assert measure(Scripted(knows), pairs(7)).can_tell


def test_a_judge_that_knows_the_wrong_way_round_cannot_tell() -> None:
    report = measure(Asked(Scripted(lambda a, b: -knows(a, b))), pairs(20))
    assert report.averaged.accuracy == 0 and not report.can_tell


def test_a_judge_of_places() -> None:
    """All bias and no knowledge: half right when asked once, nothing but ties in both orders."""
    report = measure(Asked(Scripted(lambda a, b: 1.0)), pairs(20, 4))
    assert report.once == Tally(right=10, wrong=10, tie=0, equal=4, equal_tie=0)
    assert report.averaged == Tally(right=0, wrong=0, tie=20, equal=4, equal_tie=4)
    assert (report.position_bias, report.contradicted) == (1, 1)
    assert not report.can_tell and "cannot tell" in report.finding
    second = measure(Scripted(lambda a, b: -1.0), pairs(20))
    assert (second.position_bias, second.contradicted) == (-1, 1)


def test_averaging_recovers_what_bias_hides() -> None:
    report = measure(Asked(Scripted(lambda a, b: 0.6 + 0.3 * knows(a, b))), pairs(20))
    assert (report.once.accuracy, report.averaged.accuracy) == (0.5, 1)
    assert report.position_bias == 1 and report.can_tell


def test_what_counts_is_how_the_judge_is_used() -> None:
    judge = Scripted(lambda a, b: 0.6 + 0.3 * knows(a, b))
    report = measure(Asked(judge, both_orders=False), pairs(20))
    assert report.used == report.once and report.by_axis["polite"] == report.once
    banded = measure(Asked(judge, tie_band=0.5), pairs(20))
    assert banded.used == Tally(right=0, wrong=0, tie=20, equal=0, equal_tie=0)


def test_guessing_is_found_out() -> None:
    """Of many judges that toss a coin, hardly more than one in a hundred passes."""
    chance = random.Random(0)
    judge = Scripted(lambda a, b: chance.choice((-1.0, 1.0)))
    passed = sum(measure(judge, pairs(30)).can_tell for _ in range(300))
    assert passed <= 10


def test_how_likely_guessing_is() -> None:
    assert guessing_p_value(0, 0) == 1
    assert guessing_p_value(3, 0) == pytest.approx(1 / 8)
    assert guessing_p_value(2, 1) == pytest.approx(4 / 8)


def test_intervals() -> None:
    low, high = Tally(right=15, wrong=5, tie=0, equal=0, equal_tie=0).interval()
    assert (low, high) == pytest.approx((0.531, 0.888), abs=0.001)  # Wilson's, 15 of 20
    assert Tally(20, 0, 0, 0, 0).interval()[1] == 1
    empty = Tally(0, 0, 0, 3, 1)
    assert all(map(math.isnan, (empty.accuracy, empty.ties, *empty.interval())))
    assert empty.equal_ties == pytest.approx(1 / 3)


def test_progress_and_nothing_to_do() -> None:
    seen: list[tuple[int, int]] = []
    measure(Scripted(knows), pairs(3), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(BadInputError, match="no pairs to test the judge on"):
        measure(Scripted(knows), [])


def test_a_person_is_asked_once() -> None:
    seen: list[str] = []

    def ask(asked: Comparison) -> float:
        seen.append(asked.first)
        return knows(asked.first, asked.second)

    report = measure(judge_of("human", JudgeSettings(ask=ask)), pairs(8))
    assert len(seen) == 8 and report.used.accuracy == 1
    assert report.position_bias is None and report.contradicted is None


# The pairs that ship ------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
def test_shipped_pairs_are_what_the_rules_of_the_world_say(axis: str) -> None:
    found = shipped_pairs(axis)
    assert len(found) == 30 and sum(pair.equal for pair in found) == 6
    for pair in found:
        asked = pair.comparison
        assert asked.axis.name == axis and asked.first.strip() != asked.second.strip()
        one, other = (
            judge(text, asked.facts["topic"]).scores[axis] for text in (asked.first, asked.second)
        )
        assert one == other if pair.equal else one - other >= 0.5


def test_the_demo_judge_is_right_about_all_of_them() -> None:
    report = measure(judge_of("demo"), [pair for axis in AXES for pair in shipped_pairs(axis)])
    assert report.used.accuracy == report.used.equal_ties == 1 and report.position_bias == 0
    assert set(report.by_axis) == set(AXES)


def test_ordinary_words_tell_most_of_them() -> None:
    who = judge_of(str(RULES))
    assert axes_for(who) == ("cheerful", "formal", "polite")
    report = measure(who, [pair for axis in axes_for(who) for pair in shipped_pairs(axis)])
    assert report.can_tell and report.used.accuracy > 0.9


def test_the_demo_model_cannot_judge_and_that_is_said() -> None:
    """It answers questions about its world and has never seen one about two answers."""
    report = measure(judge_of("model:demo", JudgeSettings(threads=1)), shipped_pairs("polite")[:16])
    assert not report.can_tell


def test_the_same_model_tells_by_likelihood_what_it_cannot_say() -> None:
    who = judge_of("model:demo", JudgeSettings(threads=1, by="likelihood"))
    report = measure(who, shipped_pairs("polite")[:16])
    assert report.can_tell and report.position_bias == 0


def test_axes_without_pairs() -> None:
    assert shipped_pairs("concise") == ()
    assert axes_for(judge_of("demo")) == AXES


def test_pairs_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    lines = [{"query": "q", "chosen": "Thank you.", "rejected": "You fool."}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (pair,) = read_test_pairs(file, POLITE)
    assert pair.comparison == Comparison("q", "Thank you.", "You fool.", POLITE)
    file.write_text(json.dumps(lines[0] | {"rejected": "Thank you."}))
    with pytest.raises(BadInputError, match="can be used to test a judge"):
        read_test_pairs(file, POLITE)


def test_the_table_of_judges() -> None:
    known = measure(judge_of("demo"), shipped_pairs("polite"))
    placed = measure(Asked(Scripted(lambda a, b: -1.0, "by place")), shipped_pairs("polite"))
    head, rule, *rows = judges.markdown([known, placed]).splitlines()
    assert len({line.count("|") for line in (head, rule, *rows)}) == 1
    assert rows == [
        "| demo | 100 % | +0 % | 0 % | 100 % [86 %, 100 %] | 0 % | 100 % | yes |",
        "| by place, both orders | 50 % | −100 % | 100 % | 50 % [31 %, 69 %] | 100 % | 100 % |"
        " **no** |",
    ]


# The command --------------------------------------------------------------------------------------


def test_judge_command(alignez: Alignez) -> None:
    said = alignez("judge", "demo", "--axis", "polite", "--axis", "formal", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "            right  interval 95%  ties  equal pairs called ties\n"
        "polite      100%   86% to 100%   0%    100%\n"
        "formal      100%   86% to 100%   0%    100%\n"
        "all         100%   93% to 100%   0%    100%\n"
        "asked once  100%   93% to 100%   0%    100%\n"
        "\n"
        "position bias: +0% of verdicts for the answer shown first; the same place won in both"
        " orders in 0% of pairs\n"
        "the judge demo can tell better answers from worse ones: right in 100% of 48 test pairs,"
        " guessing is 50%\n"
    )


def test_judge_command_for_a_program(alignez: Alignez, tmp_path: Path) -> None:
    script = tmp_path / "first.sh"
    script.write_text('while read -r line; do echo \'{"winner": "first"}\'; done\n')
    said = alignez("judge", f"command:sh {script}", "--json", "--quiet", "--limit", "4")
    record = json.loads(said.out)
    assert record["can_tell"] is False and record["accuracy"] == 0.5 and record["ties"] == 1
    assert record["once"]["ties"] == 0 and record["position_bias"] == 1
    assert set(record["by_axis"]) == set(AXES)
    said = alignez("judge", f"command:sh {script}", "--one-order", "--axis", "polite", "--quiet")
    assert "cannot tell better answers" in said.out and "asked once" not in said.out


def test_a_model_that_cannot_say_is_given_another_way(alignez: Alignez) -> None:
    said = alignez("judge", "model:demo", "--axis", "polite", "--limit", "12", "--threads", "1")
    assert said.code == 0 and "cannot tell" in said.out
    assert said.err.endswith("small models often judge better with --judge-by likelihood\n")


def test_judge_command_on_pairs_of_ones_own(alignez: Alignez, tmp_path: Path) -> None:
    file, rules = tmp_path / "pairs.jsonl", tmp_path / "rules.toml"
    lines = [{"query": "q", "chosen": f"Arr, {i}!", "rejected": f"Yes, {i}."} for i in range(12)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "pirate.toml").write_text('name="pirate"\npositive="pirate"\nnegative="dull"')
    rules.write_text('[aspects.pirate]\npositive = ["arr"]')
    axis = tmp_path / "pirate.toml"
    said = alignez("judge", rules, "--pairs", file, "--axis", axis, "--json", "--quiet")
    assert json.loads(said.out)["accuracy"] == 1 and json.loads(said.out)["equal_ties"] is None
    said = alignez("judge", rules, "--pairs", file)
    assert (said.code, said.err.splitlines()[0]) == (2, "error: --pairs needs one axis")
    said = alignez("judge", rules)
    assert said.code == 2 and "there are no test pairs for the axes of rules-" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["human"], "a person can only judge at a terminal"),
        (["nobody"], "no judge is called 'nobody'"),
        (["demo", "--axis", "concise"], "there are no test pairs for the axis 'concise'"),
        (["demo", "--limit", "0"], "--limit is 0; it must be at least 1"),
        (["demo", "--judge-by", "x"], "--judge-by cannot be 'x'"),
        (["demo", "--judge-timeout", "0"], "--judge-timeout is 0.0; it must be above 0"),
        (["demo", "--judge-timeout", "nan"], "--judge-timeout is nan; it must be above 0"),
    ],
)
def test_wrong_use(alignez: Alignez, arguments: list[str], message: str) -> None:
    said = alignez("judge", *arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[0] == f"error: {message}"


def test_an_evaluation_tests_its_judge_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it is relied on; what was found is kept with the run and said again."""
    asked: list[str] = []

    def prefer(first: str, second: str) -> float:
        asked.append(first)
        return 1.0

    who = Asked(Scripted(prefer))
    with command.tested(who, ["polite", "honest"], tmp_path, Output()):
        said = capsys.readouterr().err
        assert "warning: the judge scripted, both orders cannot tell better answers" in said
        assert "the judge scripted, both orders is not tested on honest: no test pairs" in said
        assert len(asked) == 60
        (tmp_path / "run.json").touch()
    record = json.loads((tmp_path / "judge.json").read_text())
    assert record["can_tell"] is False and record["position_bias"] == 1
    with command.tested(who, ["polite"], tmp_path, Output()):
        assert capsys.readouterr().err.startswith("warning: the judge scripted, both orders cannot")
        assert len(asked) == 60
    (tmp_path / "judge.json").write_text(json.dumps({"finding": "\x1b[2J", "can_tell": True}))
    with command.tested(who, ["polite"], tmp_path, Output()):
        assert capsys.readouterr().err == "\\x1b[2J\n"
    (tmp_path / "judge.json").write_text("[]")
    with pytest.raises(BadInputError, match=r"judge\.json: not a JSON object"):
        command.tested(who, ["polite"], tmp_path, Output()).__enter__()


def test_a_test_that_was_interrupted_goes_on(home: Path) -> None:
    asked: list[str] = []

    def prefer(first: str, second: str) -> float:
        asked.append(first)
        if len(asked) == 15:  # a pair's second order: the pair is asked again
            raise KeyboardInterrupt
        return knows(first, second)

    who, known = Asked(Scripted(prefer)), pairs(20, 5)
    with pytest.raises(KeyboardInterrupt):
        command._measured(who, "one", known, None)
    (kept,) = home.rglob("verdicts.jsonl")
    assert len(kept.read_text().splitlines()) == 7
    kept.write_text(kept.read_text() + '{"orders": [1.0')
    steps: list[tuple[int, int]] = []
    report = command._measured(who, "one", known, lambda done, total: steps.append((done, total)))
    assert report == measure(Asked(Scripted(knows)), known)
    assert steps[0] == (8, 25) and len(asked) == 15 + 2 * 18
    assert not kept.exists()
    for identity, again in (("one", 50), ("two", 50), (None, 50)):
        asked[:] = ["before"] * 15
        command._measured(who, identity, known, None)
        assert len(asked) - 15 == again
    kept.write_text('{"orders": ["x", 1.0]}\n')
    with pytest.raises(BadInputError, match="is damaged"):
        command._measured(who, "one", known, None)


def test_a_judge_is_the_same_one_while_its_file_is(tiny_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "judge.gguf"
    shutil.copy(tiny_llama, copy)
    first = identity_of(str(copy))
    assert first == identity_of(str(copy)) is not None
    assert identity_of(str(copy), JudgeSettings(by="paper")) != first
    os.utime(copy, (0, 0))
    assert identity_of(str(copy)) != first
    assert identity_of("model:demo") and identity_of("human") != identity_of(
        "human", JudgeSettings(seed=1)
    )
    assert identity_of("command:cat") is identity_of("demo") is identity_of("words.toml") is None


def test_no_run_no_file(tmp_path: Path) -> None:
    """A folder without a run stays as it is, and so it does for judges that need no test."""
    with command.tested(Asked(Scripted(knows)), ["polite"], tmp_path, Output(quiet=True)):
        pass
    (tmp_path / "run.json").touch()
    with command.tested(judge_of("demo"), ["polite"], tmp_path, Output(quiet=True)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_person_at_the_terminal() -> None:
    """What was not offered is asked again; q ends it without a word, and the next time goes on."""
    question = "Which is more like an answer of a polite assistant?"
    keys = [("q to stop: ", f"{key}\n") for key in ("x", "", "1", "2", "0")]
    arguments = ["judge", "human", "--axis", "polite", "--limit", "3"]
    text, code = in_terminal(arguments, keys, columns=60)
    assert code == 0 and text.count(question) == 3
    assert "position bias" not in text and "asked once" not in text and "the judge human" in text
    text, code = in_terminal(arguments, [("q to stop: ", f"{key}\n") for key in "1q"], columns=100)
    assert code == 130 and "error" not in text and text.count(question) == 2
    assert "1" + " " * 40 in text  # wide enough for the two answers side by side
    text, code = in_terminal(arguments, [("q to stop: ", f"{key}\n") for key in "20"])
    assert code == 0 and text.count(question) == 2 and "of 3 test pairs" in text
