"""The instruments: what each counts and what it is worth; and none of them reaches a build."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import instruments
from benchmarks.instruments import INSTRUMENTS, auc_figure, quality, read_answers
from benchmarks.politeness import STRATEGIES, sentences, strategies
from tests.terminal import ROOT
from tests.test_architecture import FILES

WORDS = [axis for axis, instrument in INSTRUMENTS.items() if not instrument.any_script]
OFFLINE = """
import socket, sys

def refuse(*_):
    raise OSError("the network was asked for")

socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["nltk"] = None  # which would download a dictionary
from benchmarks.instruments import INSTRUMENTS
for instrument in INSTRUMENTS.values():
    assert instrument.score("It is a well-behaved sentence, isn't it?") is not None
"""
PAPER = {
    "Gratitude": "I really appreciate that you've done them.",
    "Deference": "Nice work so far on your rewrite.",
    "Greeting": "Hey, I just tried to do it.",
    "Positive lexicon": "This is a great way to deal with it.",
    "Negative lexicon": "If you're going to accuse me, do it.",
    "Apologizing": "Sorry to bother you.",
    "Please": "Could you please say more?",
    "Please start": "Please do not remove warnings.",
    "Indirect (btw)": "By the way, where did you find it?",
    "Direct question": "What is your native language?",
    "Direct start": "So can you retrieve it or not?",
    "Counterfactual modal": "Could you do it?",
    "Indicative modal": "Can you do it?",
    "1st person start": "I have just put the article there.",
    "1st person pl.": "Could we find a less complex name?",
    "1st person": "It is my view that it fits.",
    "2nd person": "But what's the good source you have in mind?",
    "2nd person start": "You've reverted yourself.",
    "Hedges": "I suggest we start with it.",
    "Factuality": "In fact you did link it.",
}
"""The examples of the paper's table 3, completed where it breaks off."""
LEAST = {
    "cheerful": 0.86,
    "concise": 0.95,
    "simple": 0.95,
    "formal": 0.81,
    "lists": 0.88,
    "questions": 0.90,
    "polite": 0.90,
}
"""The share of pairs in order that each instrument reaches, less some 0.06: what a change of an
instrument may cost before somebody has to look at it."""


@pytest.mark.parametrize("module", FILES)
def test_instruments_never_reach_a_build(module: str) -> None:
    text = FILES[module].read_text("utf-8")
    assert re.findall(r"^\s*(?:from|import) benchmarks", text, re.MULTILINE) == []
    assert re.findall(r"(?i)vadersentiment|textstat", text) == [], "nor by a name in a string"


def test_instruments_need_no_network() -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("axis", INSTRUMENTS)
@pytest.mark.parametrize("text", ["", " \n", "!?", "- \n- ", "😀", "\0", "**"])
def test_without_a_word_there_is_nothing_to_judge(axis: str, text: str) -> None:
    assert INSTRUMENTS[axis].score(text) is None


@pytest.mark.parametrize("text", ["日本語のテキストです。", "Привет, как дела?", "안녕 hi"])
def test_words_in_another_script_are_not_judged(text: str) -> None:
    scores = {axis: instrument.score(text) for axis, instrument in INSTRUMENTS.items()}
    assert [axis for axis, score in scores.items() if score is None] == (
        WORDS if text[0] != "안" else ["formal"]
    )


@pytest.mark.parametrize("axis", INSTRUMENTS)
@pytest.mark.parametrize("text", ["word", "42", "x" * 5000, "no " * 5000, "1.\n2.\n", "Ça va ?"])
def test_odd_answers_get_a_number(axis: str, text: str) -> None:
    score = INSTRUMENTS[axis].score(text)
    assert axis == "formal" if score is None else math.isfinite(score)


@pytest.mark.parametrize(
    ("axis", "text", "score"),
    [
        ("concise", "One two three four", -2.0),
        ("concise", "It's a well-known fact, that.", -math.log2(5)),
        ("simple", "The cat sat on it.", 206.835 - 1.015 * 5 - 84.6),
        ("simple", "The cat sat on it", 206.835 - 1.015 * 5 - 84.6),
        ("simple", "- The cat sat on it\n- The dog sat on it", 206.835 - 1.015 * 5 - 84.6),
        ("simple", "Institutionalization internationally.", 0.0),
        ("formal", "It is late and I am tired.", 1.0),
        ("formal", "It's late and I’m tired.", 0.0),
        ("formal", "It is not late, don't go.", 0.5),
        ("formal", "I cannot say what it is.", 1.0),
        ("formal", "The king's hat is old.", None),
        ("formal", "I have a dog, and you have been there.", 1.0),
        ("lists", "1. one\n2. two", 1.0),
        ("lists", "Here:\n\n- one two\n  * three", 0.75),
        ("lists", "1969 was a year.\n-40 is cold. A - B.", 0.0),
        ("questions", "Is it? It is. Who knows?!", 2 / 3),
        ("questions", "And you ask me (really?)\nYes.", 1 / 2),
        ("questions", "元気ですか？はい。", 1 / 2),
        ("polite", "Water boils.", 0.0),
        ("polite", "Thank you.", 0.87 + 0.12 + 0.05),
        ("polite", "Thank you. Water boils. Water boils.", (0.87 + 0.12 + 0.05) / 2),
    ],
)
def test_what_is_counted(axis: str, text: str, score: float | None) -> None:
    assert INSTRUMENTS[axis].score(text) == (score if score is None else pytest.approx(score))


def test_the_lexicon_knows_negation() -> None:
    score = INSTRUMENTS["cheerful"].score
    assert (score("It is good.") or 0) > 0 > (score("It is not good.") or 0)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_examples_use_their_strategies(name: str) -> None:
    assert name in [strategy.name for strategy in strategies([PAPER[name]])]


def test_strategies_are_the_papers_twenty() -> None:
    assert [strategy.name for strategy in STRATEGIES] == list(PAPER)
    assert strategies(["Water boils at a hundred degrees."]) == []


def test_sentences_end_at_marks_and_lines() -> None:
    text = 'He said "Stop!" and left. \n\n- one\n- two... "Three?" Four 3.5'
    assert sentences(text) == [
        'He said "Stop!',
        "and left.",
        "- one",
        "- two...",
        '"Three?',
        "Four 3.5",
    ]


@pytest.mark.parametrize("axis", INSTRUMENTS)
def test_an_instrument_tells_the_sides_apart(axis: str) -> None:
    found = quality(INSTRUMENTS[axis], *read_answers(axis))
    assert found.ordered.mean >= LEAST[axis]
    assert found.ordered.low > 0.5 and found.right.low > 0.5, "better than chance"
    assert found.judged >= 0.8 * found.answers


@pytest.mark.parametrize("axis", INSTRUMENTS)
def test_the_answers_are_20_a_side_to_the_same_questions(axis: str) -> None:
    lines = (instruments.ANSWERS / f"{axis}.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(list(row) == ["question", "text", "side"] for row in rows)
    sides = [[r["question"] for r in rows if r["side"] == s] for s in ("positive", "negative")]
    assert sides[0] == sides[1] and len(set(sides[0])) == 20
    assert len({row["text"] for row in rows}) == 40
    assert sorted(path.stem for path in instruments.ANSWERS.iterdir()) == sorted(INSTRUMENTS)


def test_the_quality_of_a_known_judge() -> None:
    judge = replace(INSTRUMENTS["concise"], measure=lambda text: {"n": None}.get(text, len(text)))
    perfect = quality(judge, ["aaa", "aaaa"], ["a", "aa"])
    assert (perfect.ordered.mean, perfect.right.mean, perfect.threshold) == (1, 1, 2.5)
    assert quality(judge, ["a", "aa"], ["aaa", "aaaa"]).ordered.mean == 0
    mixed = quality(judge, ["aaaa", "n"], ["a", "aa"])
    assert mixed.judged == 3
    assert (mixed.ordered.mean, mixed.right.mean) == (0.75, 0.75), "no score: half, and not right"
    assert quality(judge, ["aa"], ["aa"]).ordered.mean == 0.5
    with pytest.raises(ValueError, match="no score"):
        quality(judge, ["n"], ["a"])


def test_intervals_of_an_auc_hold_the_truth() -> None:
    """Two normals one apart, 20 draws of each, 400 times. 95 % of 400 is 380 ± 9 (two standard
    errors); a false alarm below 366 has a probability of about 0.1 %."""
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(0.5))
    held = 0
    for _ in range(400):
        above, below = rng.normal(1, 1, 20), rng.normal(0, 1, 20)
        found = auc_figure(float((above[:, None] > below).mean()), 20, 20)
        held += found.low <= truth <= found.high
    assert held >= 366
    ends = auc_figure(1.0, 20, 20), auc_figure(0.0, 20, 20)
    assert 0.8 < ends[0].low < 0.95 and ends[0].high == 1
    assert ends[1].high == pytest.approx(1 - ends[0].low) and ends[1].low == 0


def test_the_table_goes_into_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- instruments -->\n<!-- /instruments -->\nb\n", "utf-8")
    instruments.main(["--axes", "lists", "polite", "--page", str(page)])
    table = capsys.readouterr().out.strip()
    assert len(table.splitlines()) == 4 and "40 of 40" in table
    text = page.read_text("utf-8")
    assert text == f"a\n<!-- instruments -->\n{table}\n<!-- /instruments -->\nb\n"


def test_the_page_holds_the_table_of_today(capsys: pytest.CaptureFixture[str]) -> None:
    instruments.main([])
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "evaluation.md").read_text("utf-8")
