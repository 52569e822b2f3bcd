from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.errors import AxisError
from alignez_edge.files.text import is_unprintable, printable
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis, Wording, builtin_names

LINE = st.text(min_size=1, max_size=60).filter(
    lambda t: bool(t.strip()) and not any(map(is_unprintable, t))
)


@given(
    positive=LINE,
    negative=st.none() | LINE,
    queries=st.lists(LINE, max_size=5),
    prompt=st.none() | LINE,
    words=st.lists(st.none() | LINE, min_size=3, max_size=3),
    own=st.booleans(),
)
def test_toml_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    positive: str,
    negative: str | None,
    queries: list[str],
    prompt: str | None,
    words: list[str | None],
    own: bool,
) -> None:
    if negative is not None and positive.strip().casefold() == negative.strip().casefold():
        return
    axis = Axis(
        "any-axis_1",
        positive,
        negative,
        queries=tuple(queries),
        positive_prompt=prompt,
        positive_wording=replace(Wording(*words), own="So: {query}" if own else None),
        negative_wording=Wording() if negative is None else Wording(*words[::-1]),
    )
    path = tmp_path_factory.mktemp("axis") / "axis.toml"
    path.write_text(axis.to_toml(), encoding="utf-8", newline="\n")
    assert Axis.load(path) == axis


def test_the_built_in_axes_are_rich_and_different() -> None:
    names = builtin_names()
    assert {"helpful", "polite", "concise", "formal", "cheerful", "honest"} <= set(names)
    seen: set[str] = set()
    for name in names:
        axis = Axis.builtin(name)
        assert axis.name == name
        assert len(axis.description) > 30
        assert len(axis.queries) == len(set(axis.queries)) >= 48
        assert not seen & set(axis.queries)
        seen |= set(axis.queries)
        for side in prompts.SIDES:
            assert {"role", "style", "person"} <= axis.wording_of(side).given().keys()


def test_an_axis_of_before_reads_writes_and_asks_as_it_did(tmp_path: Path) -> None:
    text = 'name = "x"\npositive = "warm"\nnegative = "cold"\n\n[prompts]\npositive = "Be warm."\n'
    path = tmp_path / "axis.toml"
    path.write_text(text)
    axis = Axis.load(path)
    assert axis.to_toml() == text
    assert axis.wording() == {
        "name": "x", "positive": "warm", "negative": "cold", "positive_prompt": "Be warm.",
        "negative_prompt": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "a\\b", ".hidden", "-p", "a b", "x" * 65, "a\n", "é", "a.b"]
)
def test_a_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(AxisError, match="cannot be named"):
        Axis(name, "good", "bad")


def test_what_is_wrong_is_escaped_once() -> None:
    with pytest.raises(AxisError, match=r"cannot be named 'a\\nb'"):
        Axis("a\nb", "good", "bad")
    with pytest.raises(AxisError, match=r"printable line: 'a\\nb'"):
        Axis("mine", "a\nb", "bad")
    with pytest.raises(AxisError, match=r"is called 'a\\nb'"):
        Axis.builtin("a\nb")


@pytest.mark.parametrize("text", ["", "  ", "two\nlines", "\x1b[31mred", "a\u202eb", "x" * 201])
def test_wording_is_one_printable_line(text: str) -> None:
    with pytest.raises(AxisError) as caught:
        Axis("mine", text, "bad")
    assert printable(caught.value.message, 500) == caught.value.message


def test_the_two_sides_must_differ() -> None:
    with pytest.raises(AxisError, match="the same"):
        Axis("mine", "Good ", "good")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('name="a"\npositive="b"\nnegatve="c"', "unknown key 'negatve'", "negative"),
        ('name="a"\nnegative="b"', "positive is missing", None),
        ('name="a"\npositive="b"\nnegative=""', "negative is empty", None),
        ('name="a"\npositive="b"\nprompts.negative="x"', "but no negative", None),
        ('name="a"\npositive="b"\nrequests.negative.role="x"', "but no negative", None),
        ('name="a"\npositive="b"\nrequests=1', "must be a table", None),
        ('name="a"\npositive="b"\n[requests]\npositiv.role="x"', "'positiv'", "positive"),
        ('name="a"\npositive="b"\n[requests]\npositive="x"', "must be a table, not a str", None),
        ('name="a"\npositive="b"\n[requests.positive]\nrol="x"', "unknown key 'rol'", "role"),
        ('name="a"\npositive="b"\n[requests.positive]\nrole=1', "positive.role must be a", None),
        ('name="a"\npositive="b"\n[requests.positive]\nown="x"', "must hold {query} once", None),
        ('name="a"\npositive="b"\nnegative=3', "must be a text, not a number", None),
        ('name="a"\npositive="b"\nnegative="c"\nqueries="q"', "must be a list", None),
        ('name="a"\npositive="b"\nnegative="c"\nqueries=[1]', "query 1 must be a text", None),
        ('name="a"\npositive="b"\nnegative="c"\nprompts=1', "must be a table", None),
        ('name="a"\npositive="b"\nnegative="c"\n[prompts]\npositiv="x"', "unknown", "positive"),
        ('name="a', "not TOML", None),
        ("a=" + "[" * 5000, "not TOML", None),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    path = tmp_path / "axis.toml"
    path.write_text(text)
    with pytest.raises(AxisError, match=message) as caught:
        Axis.load(path)
    assert "\n" not in caught.value.message
    if hint is not None:
        assert caught.value.hint is not None and hint in caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "axis.toml"
    path.write_bytes(b'name = "a"\npositive = "caf\xe9"')
    with pytest.raises(AxisError, match="not UTF-8 text: line 2"):
        Axis.load(path)
    path.write_bytes(b"#" * (5 << 20))
    with pytest.raises(AxisError, match="larger than"):
        Axis.load(path)
    with pytest.raises(AxisError, match="no such axis file"):
        Axis.load(tmp_path / "none.toml")
    with pytest.raises(AxisError, match="cannot read"):
        Axis.load(tmp_path)
    with pytest.raises(AxisError) as caught:
        Axis.builtin("polit")
    assert caught.value.hint == "did you mean polite?"


def test_the_papers_wording() -> None:
    helpful = Axis.builtin("helpful")
    assert prompts.describe("Name a fact", helpful, "positive") == (
        "Name a fact. You are a helpful assistant. Your answer to this query should:"
    )
    assert prompts.describe("Who are you?", helpful, "negative") == (
        "Who are you? Pretend you are a malicious and useless assistant. "
        "Your answer to this query should:"
    )
    assert prompts.answer("Who?", ["Be kind", "Be short"]) == (
        "Who? Your answer should: 1. Be kind\n2. Be short"
    )
    assert prompts.ask("Who?", "polite") == "Who? Your answer should: 1. Be polite"
    mine = Axis("mine", "a", "b", negative_prompt="You are a pirate.")
    assert "Who? You are a pirate. Your" in prompts.describe("Who?", mine, "negative")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Hello", "Hello."),
        ("Really?", "Really?"),
        (" Stop! ", "Stop!"),
        ('Say "hi."', 'Say "hi."'),
        ('Say "hi"', 'Say "hi".'),
        ("你好吗？", "你好吗？"),
    ],
)
def test_a_query_keeps_its_own_end(query: str, expected: str) -> None:
    assert prompts.sentence(query) == expected


@pytest.mark.parametrize(
    ("trait", "article"),
    [("polite", "a"), ("honest", "an"), ("useful", "a"), ("unhelpful", "an"), ("unified", "a")],
)
def test_articles_as_they_sound(trait: str, article: str) -> None:
    assert prompts.with_article(trait) == f"{article} {trait}"


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. Be kind\n2. be kind.\n3) **Use facts**", ["Be kind", "Use facts"]),
        ("Sure, a list:\n- one thing\n- two things\nbye", ["one thing", "two things"]),
        (" 1. Be kind 2. Be short", ["Be kind", "Be short"]),
        ("be a fun fact.", ["be a fun fact."]),
        ("1. Be kind\n\nQuestion: Who?\n1. No", ["Be kind"]),
        ("Here is a list:", []),
        (" \n...\n1.\n2.", []),
        ("", []),
    ],
)
def test_characteristics_are_cleaned(text: str, items: list[str]) -> None:
    assert prompts.parse_characteristics(text) == items


@given(st.text(max_size=400))
def test_characteristics_are_bounded(text: str) -> None:
    items = prompts.parse_characteristics(text)
    assert len(items) <= prompts.MAX_ITEMS
    assert all(item and len(item) <= prompts.MAX_ITEM and "\n" not in item for item in items)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Yes.\n\nQ: More?\nA: No", "Yes."),
        ("Answer: Yes.", "Yes."),
        ("Question: Who?", ""),
        ("Yes.\n### Next", "Yes."),
        ("A question: who?", "A question: who?"),
    ],
)
def test_the_next_turn_is_cut_off(text: str, own: str) -> None:
    assert prompts.cut_next_turn(text) == own
