"""The page of a run: what stands in it, and that nothing in it can do anything."""

from __future__ import annotations

import base64
import json
import random
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.blind import Blind, Seen
from alignez_edge.evaluation.outcome import Outcome
from alignez_edge.evaluation.results import results_of
from alignez_edge.evaluation.runfolder import RunFolder
from alignez_edge.reports.moved import MOST_TEXT, most_moved
from alignez_edge.reports.opening import sentence
from alignez_edge.reports.page import MOVED, write_report
from cli.eval.tables import summary
from tests.runs import FORMAL, POLITE, arm, make_run

ATTACK = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> ![p](http://evil.example/p.png) "
    "[l](javascript:alert(3)) | cell `code` **bold** www.evil.example \x1b[31m \u202ereversed\n"
    "# heading\n\n```\n"
)
EMPTY = {"meta", "img", "br", "!doctype"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def page_of(run: RunFolder, tmp_path: Path, suffix: str = "html") -> str:
    path = tmp_path / f"page.{suffix}"
    write_report(run.path, path)
    return path.read_text("utf-8")


def test_a_page_is_whole_and_says_what_was_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, s) for s in (-1.0, 1.0)])
    page = page_of(run, tmp_path)
    reader = Reader(page)
    text = " ".join(reader.words)
    for fact in ("tiny model", "d" * 16, "f" * 64, "rules", "temperature", "6 queries, 2 answers"):
        assert fact in text
    titles = ("Six of the answers", "Who won", "Scores", "The cost", "moved most towards",
              "What was compared, and how", "f" * 64)  # fmt: skip
    assert sorted(titles, key=text.index) == list(titles)
    images = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 1
    head = "data:image/svg+xml;base64,"
    assert images[0].startswith(head)
    assert b"<svg" in base64.b64decode(images[0].removeprefix(head))
    assert page_of(run, tmp_path) == page


def test_a_page_begins_with_a_sentence_a_picture_and_six_answers(tmp_path: Path) -> None:
    arms = [arm(POLITE, s) for s in (-1.0, 0.5, 1.0)]
    run = make_run(tmp_path / "run", [*arms, arm(FORMAL, 1.0)])
    rows = {row.arm: row for row in Outcome.load(run.path).rows}
    plus, minus = rows["polite:1"], rows["polite:-1"]
    said = (
        f"On tiny model, polite at strength +1 made {plus.win:.0f} % of the answers to 6 queries"
        f" more polite than plain ones and {plus.lose:.0f} % less, as the judge rules sees it;"
        f" at −1, {minus.win:.0f} % more rude and {minus.lose:.0f} % less."
    )
    page = page_of(run, tmp_path)
    first, rest = page.split("<h2>", 1)
    assert f"</h1>\n<p>{said}</p>" in first and first.count("<img") == 1
    answers, _ = rest.split("<h2>", 1)
    assert answers.startswith("Six of the answers") and answers.count("<tr>") == 1 + 6
    assert page_of(run, tmp_path, "md").splitlines()[2] == said


def test_what_may_be_chance_is_said_to_be(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 0.01)], asking=False)
    (row,) = Outcome.load(run.path).rows
    assert row.delta.low <= 0 <= row.delta.high
    assert sentence(Outcome.load(run.path)).endswith(
        "as the judge rules sees it (which may be chance)."
    )


@pytest.mark.parametrize("asking", [True, False])
def test_where_the_judge_ties_everything_that_is_said_and_answers_are_shown(
    tmp_path: Path, asking: bool
) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], asking=asking, tied=("steered", "asked"))
    told = " ".join(Reader(page_of(run, tmp_path)).words).split("Who won")[0]
    n = 36 if asking else 12
    assert f"Warning: the judge rules called 100% of the {n} answers" in told
    assert ("where the prompt asked for it" in told) == asking
    assert ("--asking" in told) != asking
    for query in range(6):
        assert f"Answer polite:1 {query} 0." in told and f"Answer plain {query} 0." in told


def test_a_judge_that_cannot_tell_is_said_to(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2)
    assert "its test" not in page_of(run, tmp_path)
    kept = {"can_tell": False, "finding": "rules cannot tell: <b>50 %</b> right"}
    (run.path / "judge.json").write_text(json.dumps(kept), "utf-8")
    words = Reader(page_of(run, tmp_path)).words
    assert words.count(str(kept["finding"])) == 1
    assert f"Not to be relied on: {kept['finding']}" in words[: words.index("Who won")]
    (run.path / "judge.json").write_text("[]", "utf-8")
    with pytest.raises(BadInputError):
        page_of(run, tmp_path)


def test_every_row_has_its_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)])
    (row,) = [r for r in json.loads((run.path / "results.json").read_text("utf-8"))["rows"]
              if r["kind"] == "steered"]  # fmt: skip
    shown = f"{row['delta']:+.0f} [{row['low']:+.0f}, {row['high']:+.0f}]".replace("-", "−")
    assert f"<td>{shown}</td>" in page_of(run, tmp_path)


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_untrusted_answers_are_text(tmp_path: Path, suffix: str) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2, seeds=1, text=ATTACK)
    page = page_of(run, tmp_path, suffix)
    for raw in ("<script", "<img src=x", "\x1b", "\u202e"):
        assert raw not in page
    if suffix == "md":
        for raw in (
            " [l]",
            "http://",
            "www.",
            "`code`",
            "**bold",
            "\n# heading",
            "\n```",
        ):
            assert raw not in page
        rows = [line for line in page.splitlines() if "evil" in line]
        assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
        return
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th",
        "td", "img", "details", "summary", "pre",
    }  # fmt: skip
    for _, attributes in reader.tags:
        assert not any(key.startswith("on") or key == "href" for key in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "<script>alert(1)</script>" in " ".join(reader.words)


def test_untrusted_names_are_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0, name="<b>polite</b>\n|x")], n_query=2)
    path = run.path / "run.json"
    told = json.loads(path.read_text("utf-8"))
    told["model"] = "</title><script>alert(4)</script>"
    told["judge"] = ["<i>"]
    path.write_text(json.dumps(told), "utf-8")
    for suffix in ("html", "md"):
        # What Markdown indents by four is shown as it is.
        lines = page_of(run, tmp_path, suffix).splitlines()
        page = "\n".join(line for line in lines if suffix == "html" or line[:4].strip())
        assert "alert(4)" in page
        for raw in ("<script", "<b>", "<i>"):
            assert raw not in page


def test_without_matplotlib_pictures_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = page_of(run, tmp_path)
    assert "<img" not in page
    assert "polite: effect" in page


def test_other_endings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"a report is a \.html or a \.md file"):
        write_report(tmp_path / "nothing", tmp_path / "page.pdf")


def test_nothing_is_written_of_a_damaged_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2)
    with run.verdicts.path.open("a", encoding="utf-8") as file:
        file.write('{"arm": "nobody", "query_index": 0, "seed_index": 0}\n')
    with pytest.raises(BadInputError, match="answer of another run"):
        write_report(run.path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


ODD: tuple[Any, ...] = (
    None, 1, -1, 1e308, 10**400, "", "\x1b[31m", [], {}, [1], {"a": 1}, True, float("nan"),
)  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """`value` with something odd somewhere in it."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(list(value if isinstance(value, dict) else range(len(value))))
        value[key] = mutated(value[key], rng)
        return value
    return rng.choice(ODD)


def test_an_untrusted_run_is_a_page_or_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=1, seeds=1, asking=False)
    pages = 0
    for seed in range(120):
        rng = random.Random(seed)
        shutil.copytree(tmp_path / "run", tmp_path / "other", dirs_exist_ok=True)
        name = rng.choice(("run.json", "results.json", "verdicts.jsonl", "answers.jsonl"))
        path = tmp_path / "other" / name
        values = path.read_text("utf-8")
        lines = [values] if name.endswith("json") else values.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(mutated(json.loads(lines[at]), rng))
        path.write_text("\n".join(lines) + "\n", "utf-8")
        try:
            write_report(tmp_path / "other", tmp_path / "page.md")
            pages += 1
        except BadInputError as failure:
            assert "\n" not in failure.message
    assert 10 < pages < 110


# A judge that sees nothing


def test_a_judge_is_blind_where_it_ties_every_arm(tmp_path: Path) -> None:
    for number, (tied, blind) in enumerate(
        [((), False), (("steered",), False), (("asked",), False), (("steered", "asked"), True)]
    ):
        run = make_run(tmp_path / str(number), [arm(POLITE, 1.0), arm(FORMAL, 0.0)], tied=tied)
        found = Outcome.load(run.path).blind
        assert {one.axis for one in found} == ({"polite", "formal"} if blind else set())


def test_eval_warns_of_a_blind_judge(tmp_path: Path) -> None:
    for tied in ((), ("steered", "asked")):
        run = make_run(tmp_path / str(len(tied)), [arm(POLITE, 1.0)], tied=tied)
        told = summary(results_of(run))
        assert ("warning: the judge rules called 100% of the 36 answers" in told) == bool(tied)


def test_answers_that_are_the_plain_ones_tell_nothing_of_a_judge(tmp_path: Path) -> None:
    same = make_run(tmp_path / "same", [arm(POLITE, 1.0)], asking=False, tied=("steered",),
                    text="Answer {query} {seed}.")  # fmt: skip
    assert Outcome.load(same.path).blind == ()


def test_nine_in_ten_ties_are_blindness() -> None:
    assert Blind.of("polite", [Seen("steered", 10, 9), Seen("asked", 30, 27)]) == Blind(
        "polite", 36, 40, True
    )
    assert Blind.of("polite", [Seen("steered", 10, 10), Seen("asked", 30, 26)]) is None
    assert Blind.of("polite", [Seen("steered", 7, 7), Seen("asked", 0, 0)]) is None


# The answers that moved most


def test_the_answers_that_moved_most_by_hand(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, -1.0), arm(FORMAL, 1.0)], n_query=8, seeds=3)
    towards, away = most_moved(run, 10**6)
    by_hand = []
    for _, record in run.verdicts.records():
        if record["arm"].startswith("asked"):
            continue
        own, plain = record["scores"][record["axis"]]
        by_hand.append((own - plain) * (-1 if record["side"] == "negative" else 1))
    assert [one.amount for one in towards] == sorted((x for x in by_hand if x > 0), reverse=True)
    assert [one.amount for one in away] == sorted(x for x in by_hand if x < 0)
    few, _ = most_moved(run, 4)
    assert few == towards[:4]


def test_side_by_side_are_answers_to_one_query_and_seed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)])
    towards, away = most_moved(run, MOVED)
    assert towards
    for one in (*towards, *away):
        query = one.query.removeprefix("Query ").removesuffix("?")
        assert one.plain == f"Answer plain {query} {one.seed}."
        assert one.steered == f"Answer {one.arm} {query} {one.seed}."


def test_preferences_tell_where_there_are_no_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], scored=False)
    towards, _ = most_moved(run, MOVED)
    assert {one.amount for one in towards} == {1.0}
    assert not any(one.scored for one in towards)


def test_what_did_not_move_is_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [], asking=False)
    assert most_moved(run) == ([], [])


def test_an_endless_answer_is_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=1, seeds=1, text="x" * 100_000)
    (one, *_), _ = most_moved(run)
    assert len(one.steered) == MOST_TEXT
