"""The benchmark of chats: its rotation, what is said and paid for, and that it runs and goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.requests import FORMS
from alignez_edge.runtime.model import Model
from benchmarks import turns
from benchmarks.kept import Kept
from tests.profiles import random_profile

QUERIES = ["Who was Ada?", "Why is it hot?", "What is tea?", "Where is Rome?"]


def chats(model: Model, folder: Path, axis: Axis, form: str = "style", **other: Any) -> turns.Chats:
    """Chats of three turns about four questions."""
    options: dict[str, Any] = {"n_turns": 3, "n_tokens": 6, "seed": 0, "say": lambda line: None}
    profile = random_profile(model, 0, axis.name)
    return turns.Chats(model, axis, FORMS[form], profile, QUERIES, folder, **(options | other))


@pytest.mark.parametrize(("n_chats", "n_turns"), [(12, 10), (5, 5), (4, 1), (1, 1)])
def test_every_question_stands_at_every_turn_once(n_chats: int, n_turns: int) -> None:
    order = turns.rotation(n_chats, n_turns)
    assert all(len(set(chat)) == n_turns for chat in order), "no question twice in a chat"
    for turn in zip(*order, strict=True):
        assert sorted(turn) == list(range(n_chats))
    follows = Counter(pair for chat in order for pair in pairwise(chat))
    assert max(follows.values(), default=0) <= 2


def test_turns_need_as_many_questions() -> None:
    with pytest.raises(SystemExit, match="10 turns need as many chats"):
        turns.rotation(9, 10)


def test_what_is_asked_at_which_turn(chat_model: Model, tmp_path: Path) -> None:
    axis = Axis("cheerful", "cheerful", "gloomy")
    made, system = (chats(chat_model, tmp_path, axis, form) for form in ("style", "system"))
    ways = {way.name: way for way in turns.WAYS}
    said = ["one", "two"]
    asks = "Answer in a very gloomy way."

    def users(talk: turns.Chats, name: str) -> list[str]:
        return [m["content"] for m in talk.messages(ways[name], 1, said) if m["role"] == "user"]

    plain = users(made, "plain")
    assert len(plain) == 3 and set(plain) <= set(QUERIES)
    assert users(made, "steered +1") == plain
    assert users(made, "prompted once -") == [f"{plain[0]} {asks}", *plain[1:]]
    assert users(made, "prompted always -") == [f"{query} {asks}" for query in plain]
    told = made.messages(ways["plain"], 1, said)
    assert [m["content"] for m in told[1::2]] == said, "the chat's own answers are its history"
    roles = [m["role"] for m in system.messages(ways["prompted always +"], 0, said)]
    assert roles.count("system") == 1 and roles[0] == "system", "said once, it holds for all turns"


def test_the_cost_is_that_of_the_plain_history(chat_model: Model, tmp_path: Path) -> None:
    """What was prompted for is scored after its own answers, the requests left out."""
    from alignez_edge.runtime.score import score_batch

    made = chats(chat_model, tmp_path, Axis("cheerful", "cheerful", "gloomy"))
    way = next(way for way in turns.WAYS if way.name == "prompted always +")
    spoken = made.hold(way)
    answers = [r for r in Kept(tmp_path / "turns.jsonl").records.values() if "text" in r]
    first, second, third = answers[::4]  # of chat 0, turn by turn
    history = made.messages(turns.PLAIN, 0, [first["text"], second["text"]])
    item = chat_model.prompt(history).tokens, third["tokens"]
    row = QUERIES.index(history[-1]["content"])
    (scores,) = score_batch(chat_model, [item])
    assert spoken.nats[row, 2] == pytest.approx(-scores.sum(), rel=1e-3)
    assert spoken.tokens[row, 2] == len(third["tokens"])


def test_effects_are_above_plain_at_the_same_turn() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(6, 10))
    moves = np.linspace(1.0, 0.1, 10)  # an effect that fades
    ones = np.ones((6, 10))
    plain = turns.Spoken(base, ones, ones)
    moved = turns.Spoken(base + moves, (1 + moves) * ones, ones)
    found = turns.figures({"plain": plain, "steered +1": moved})["steered +1"]
    assert turns.shown(10) == [0, 4, 9]
    assert [f.mean for f in found["effect"]] == pytest.approx([1.0, 0.6, 0.1])
    assert [f.mean for f in found["cost"]] == pytest.approx([1.0, 0.6, 0.1])
    assert found["change"].mean == pytest.approx(-0.9) and found["change"].high < 0


def test_it_runs_and_goes_on(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.tinymodels import CHATML

    path = tiny_model("llama", n_layer=6, template=CHATML)
    with Model.load(path, threads=1) as model:
        random_profile(model, 0, "concise").save(tmp_path / "concise.gguf")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- turns -->\n<!-- /turns -->\nb\n", encoding="utf-8")
    arguments = ["--model", str(path), "--threads", "1", "--folder", str(tmp_path)]
    arguments += ["--axes", "concise", "--chats", "3", "--turns", "2", "--choosing", "1"]
    arguments += ["--tokens", "6"]
    turns.main([*arguments, "--page", str(page)])
    text = capsys.readouterr().out.strip()
    assert page.read_text("utf-8") == f"a\n<!-- turns -->\n{text}\n<!-- /turns -->\nb\n"
    rows = [line for line in text.splitlines() if line.startswith("| concise")]
    assert [row.split(" | ")[1] for row in rows] == [w.name.replace("-", "−") for w in turns.WAYS]

    log = tmp_path / "turns.jsonl"
    whole = log.read_text("utf-8").splitlines()
    log.write_text("\n".join(whole[:-5]) + '\n{"key": "torn', encoding="utf-8")
    turns.main([*arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert list(result["axes"]["concise"]["arms"]) == [way.name for way in turns.WAYS]
    assert log.read_text("utf-8").splitlines()[: len(whole) - 5] == whole[:-5]

    def nothing(*_: object) -> None:
        raise AssertionError("everything is there already")

    monkeypatch.setattr(turns, "Scheduler", nothing)
    monkeypatch.setattr(turns, "score_batch", nothing)
    turns.main(arguments)
    capsys.readouterr()
