from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from alignez_edge.build.generate import generate_pairs
from alignez_edge.calibration.consensus import Text
from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pair_store import PairStore
from alignez_edge.preferences.pairs import (
    NO_DIFFERENCE,
    PairSet,
    PreferencePair,
    drop_reason,
    read_labelled_pairs,
)
from alignez_edge.preferences.requests import FORMS, RequestText
from alignez_edge.repeatable import derive_seed

POLITE = Axis("polite", "polite", "rude")
QUERIES = [f"Question {n}?" for n in range(10)]
SETTINGS: dict[str, str | int] = {"axis": "polite", "seed": 7}


class Writer:
    """A stand-in for a model, whose text depends on the request and on what is batched with it,
    as the rounding of a real one does. Texts finish in reverse order."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.requests: list[str] = []
        self.fail_after = fail_after

    def __call__(
        self, requests: Sequence[RequestText], seeds: Sequence[int], max_tokens: Sequence[int]
    ) -> Iterator[tuple[int, str, bool]]:
        company = derive_seed(0, *(f"{request}" for request in requests))
        for index in reversed(range(len(requests))):
            if self.fail_after is not None and len(self.requests) >= self.fail_after:
                raise KeyboardInterrupt
            text = requests[index].user
            self.requests.append(text)
            described = text.endswith("should:")
            body = f"Be kind {seeds[index]}" if described else f"Word {seeds[index]} {company}"
            yield index, f" 1. {body}\n" if described else f" {body}.", True


def generate(store: PairStore, writer: Writer, queries: Sequence[str] = QUERIES) -> list[str]:
    found = generate_pairs(writer, POLITE, queries, store, seed=7, chunk=4)
    return [json.dumps(pair.__dict__) for pair in found.pairs]


def test_two_steps_for_both_sides(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    store = PairStore(tmp_path / "pairs.jsonl", SETTINGS)
    writer = Writer()
    found = generate_pairs(
        writer, POLITE, QUERIES, store, seed=7, on_progress=lambda *s: steps.append(s), chunk=4
    )
    assert [pair.query for pair in found.pairs] == QUERIES and not found.dropped
    assert len(writer.requests) == 40 and steps == [(n, 40) for n in range(1, 41)]
    pair = found.pairs[3]
    assert pair.chosen != pair.rejected
    assert pair.chosen_request.startswith("Question 3? Your answer should: 1. Be kind ")
    assert sum("You are a polite" in request for request in writer.requests) == 10
    assert sum("Pretend you are a rude" in request for request in writer.requests) == 10


def test_one_step_and_a_system_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    writer, steps = Writer(), []
    found = generate_pairs(
        writer, POLITE, QUERIES, PairStore(path, SETTINGS), seed=7, form=FORMS["system"],
        on_progress=lambda *s: steps.append(s),
    )  # fmt: skip
    assert writer.requests == [query for query in reversed(QUERIES) for _ in range(2)]
    assert steps[-1] == (20, 20)
    wanted, unwanted = found.pairs[3].requests()
    assert wanted == RequestText("Question 3?", "You are an extremely polite assistant.")
    assert unwanted == RequestText("Question 3?", "You are an extremely rude assistant.")
    assert PairStore(path, SETTINGS).result(QUERIES).pairs == found.pairs
    assert read_labelled_pairs(path, POLITE).pairs == found.pairs


def test_what_is_no_pair_is_dropped_and_more_is_asked(tmp_path: Path) -> None:
    """Every third pair is none: queries are asked until the limit, and no further."""
    asked: list[str] = []

    def score(pairs: Sequence[tuple[Text, Text]]) -> list[float]:
        asked.extend(wanted.query for wanted, _ in pairs)
        return [0.0 if int(wanted.query[9:-1]) % 3 == 0 else 0.25 for wanted, _ in pairs]

    queries = [f"Question {n}?" for n in range(40)]
    path = tmp_path / "pairs.jsonl"

    def make(limit: int) -> PairSet:
        return generate_pairs(
            Writer(), POLITE, queries, PairStore(path, SETTINGS), seed=7, limit=limit,
            form=FORMS["style"], score=score,
        )  # fmt: skip

    found = make(12)
    assert len(found.pairs) == 12 and all(pair.score == 0.25 for pair in found.pairs)
    n_asked = len(found.queries)
    assert found.queries == tuple(queries[:n_asked]) and 18 <= n_asked < 24
    assert asked == list(found.queries)
    assert found.dropped == {NO_DIFFERENCE: -(-n_asked // 3)}
    assert make(12) == found and len(asked) == n_asked, "what is scored is not scored again"
    everything = make(40)
    assert everything.queries == tuple(queries)
    assert len(everything.pairs) == 26 and everything.pairs[:12] == found.pairs


def test_what_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    writer = Writer()
    steps: list[tuple[int, int]] = []
    found = generate_pairs(
        writer, POLITE, QUERIES, PairStore(tmp_path / "pairs.jsonl", SETTINGS), seed=7, limit=6,
        form=FORMS["style"], fits=lambda query: "1" not in query and "2" not in query,
        on_progress=lambda *s: steps.append(s),
    )  # fmt: skip
    assert found.dropped == {"too long": 2}
    assert [pair.query[9] for pair in found.pairs] == list("034567")
    assert not any("1?" in text or "2?" in text for text in writer.requests)
    assert steps[-1][0] == steps[-1][1]


def test_a_side_that_is_the_plain_answer(tmp_path: Path) -> None:
    pirate = Axis("pirate", "talks like a pirate")
    for form, n_texts in (("style", 2), ("two-steps", 3)):
        writer = Writer()
        found = generate_pairs(
            writer, pirate, QUERIES[:1], PairStore(tmp_path / form, SETTINGS), seed=7,
            form=FORMS[form],
        )  # fmt: skip
        assert len(writer.requests) == n_texts
        assert found.pairs[0].requests()[1] == RequestText(QUERIES[0])


def test_old_files_and_scores_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    PairStore(path, SETTINGS).append([(PreferencePair("q", "a", "b", "c", "d"), None)])
    line = path.read_text().splitlines()[1]
    assert json.loads(line).keys() == {
        *("query", "chosen", "rejected", "chosen_request", "rejected_request")
    }
    assert PairStore(path, SETTINGS).result(["q"]).pairs[0].score is None
    for value, fine in (("0.5", True), ("-2", True), ('"x"', False), ("true", False),
                        ("NaN", False), ("1e400", False), ("null", True)):  # fmt: skip
        path.write_text(f'{{"query": "q", "chosen": "a", "rejected": "b", "score": {value}}}')
        if fine:
            assert len(read_labelled_pairs(path, POLITE).pairs) == 1
        else:
            with pytest.raises(BadInputError, match="line 1: 'score' is not a number"):
                read_labelled_pairs(path, POLITE)


def test_another_seed_gives_other_seeds_everywhere() -> None:
    seeds = {
        derive_seed(seed, query, side, step)
        for seed in (0, 1)
        for query in QUERIES
        for side in ("positive", "negative")
        for step in ("describe", "answer")
    }
    assert len(seeds) == 80 and all(0 <= seed < 1 << 31 for seed in seeds)
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 15, 16, 17, 31, 39])
def test_an_interrupted_build_ends_the_same(tmp_path: Path, stop: int) -> None:
    whole = generate(PairStore(tmp_path / "whole.jsonl", SETTINGS), Writer())
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate(PairStore(path, SETTINGS), Writer(fail_after=stop))
    store, again = PairStore(path, SETTINGS), Writer()
    stored = [query for query in QUERIES if query in store]
    assert generate(store, again) == whole
    assert not any(request.startswith(query) for request in again.requests for query in stored)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_build_generates_nothing_and_more_queries_keep_the_old(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    first = generate(PairStore(path, SETTINGS), Writer(), QUERIES[:8])
    idle = Writer()
    assert generate(PairStore(path, SETTINGS), idle, QUERIES[:8]) == first
    assert not idle.requests
    assert generate(PairStore(path, SETTINGS), Writer())[:8] == first


@pytest.mark.parametrize("cut", [1, 2, 20, 200, 1000])
def test_a_torn_end_is_cut_off_and_the_build_ends_the_same(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "pairs.jsonl"
    whole = generate(PairStore(path, SETTINGS), Writer())
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert generate(PairStore(path, SETTINGS), Writer()) == whole
    assert sorted(path.read_bytes().splitlines()) == sorted(data.splitlines())


@pytest.mark.parametrize("keep", range(0, 60, 7))
def test_a_torn_first_line(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "pairs.jsonl"
    PairStore(path, SETTINGS)
    header = path.read_bytes()
    path.write_bytes(header[:keep])
    assert len(PairStore(path, SETTINGS)) == 0
    assert path.read_bytes() == header


def test_a_torn_character(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    store = PairStore(path, SETTINGS)
    store.append([(PreferencePair("q", "é", "b", "c", "d"), None)])
    data = path.read_bytes()
    path.write_bytes(data + data[: data.index("é".encode()) + 1].rpartition(b"\n")[2])
    assert len(PairStore(path, SETTINGS)) == 1
    assert path.read_bytes() == data


def test_a_killed_writer_loses_no_finished_chunk(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    script = f"""
        from alignez_edge.preferences.pair_store import PairStore
        from alignez_edge.preferences.pairs import PreferencePair
        store = PairStore({str(path)!r}, {SETTINGS!r})
        for n in range(100000):
            store.append([(PreferencePair(str(n), "a" * 5000, "b", "c", "d"), None)])
            print(n, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline().strip() for _ in range(5)]
        process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        reported += process.stdout.read().split()
    store = PairStore(path, SETTINGS)
    assert all(query in store for query in reported)
    store.append([(PreferencePair("last", "a", "b", "c", "d"), None)])
    assert "last" in PairStore(path, SETTINGS)


def test_a_person_may_edit_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    generate(PairStore(path, SETTINGS), Writer())
    lines = path.read_text().splitlines()
    edited = json.loads(lines[2]) | {"chosen": "My own words"}
    equal = json.loads(lines[3]) | {"chosen": "same", "rejected": "Same "}
    path.write_text("\r\n".join([*lines[:2], "", *lines[4:], *map(json.dumps, (edited, equal))]))
    found = PairStore(path, SETTINGS).result(QUERIES)
    assert [pair.query for pair in found.pairs] == [q for q in QUERIES if q != equal["query"]]
    assert found.pairs[1].chosen == "My own words"
    assert found.dropped == {"equal answers": 1}


def test_other_settings_do_not_mix_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    generate(PairStore(path, SETTINGS), Writer())
    old = path.read_bytes()
    store = PairStore(path, {**SETTINGS, "seed": 8})
    assert len(store) == 0 and store.notice is not None and "\n" not in store.notice
    assert (tmp_path / "pairs.jsonl.old").read_bytes() == old


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("oops\n", "line 2: not JSON"),
        ("[]\n", "line 2: not a JSON object"),
        ('{"query": "a"}\n', "line 2: 'chosen' is missing"),
        ('{"query": 1}\n', "line 2: 'query' is not a text"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    PairStore(path, SETTINGS)
    with path.open("a") as file:
        file.write(line)
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=message):
        PairStore(path, SETTINGS)
    assert path.read_bytes() == before


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"query": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(BadInputError, match="not a file of pairs in progress"):
        PairStore(path, SETTINGS)


def test_a_full_disk_is_one_line_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pairs.jsonl"
    store = PairStore(path, SETTINGS)
    before = path.read_bytes()
    real = os.write

    def full(handle: int, data: memoryview) -> int:
        if len(data) <= 10:
            raise OSError(28, "No space left on device")
        return real(handle, data[:10])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AlignezError, match="No space left on device"):
        store.append([(PreferencePair("q", "a", "b", "c", "d"), None)])
    monkeypatch.undo()
    assert path.read_bytes() == before and "q" not in PairStore(path, SETTINGS)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("Yes, please.", "No.", None),
        ("", "No.", "empty answer"),
        ("Yes.", " \n", "empty answer"),
        ("Question: Who?", "No.", "cut to nothing"),
        ("...", "No.", "cut to nothing"),
        ("Yes  indeed", "yes\nindeed", "equal answers"),
        ("Yes.\nQ: a", "Yes.\nQ: b", "equal answers"),
        ("是", "不是", None),
    ],
)
def test_why_a_pair_is_dropped(chosen: str, rejected: str, reason: str | None) -> None:
    assert drop_reason(chosen, rejected) == reason


def test_dropped_pairs_are_counted_and_not_tried_again(tmp_path: Path) -> None:
    class Silent(Writer):
        def __call__(
            self, requests: Sequence[RequestText], seeds: Sequence[int], max_tokens: Sequence[int]
        ) -> Iterator[tuple[int, str, bool]]:
            for index, text, ended in super().__call__(requests, seeds, max_tokens):
                request = requests[index].user
                undescribed = "1?" in request and "rude" in request
                unanswered = "2?" in request and "1. Be" in request
                yield index, "" if undescribed or unanswered else text, ended

    path = tmp_path / "pairs.jsonl"
    steps: list[tuple[int, int]] = []
    found = generate_pairs(
        Silent(), POLITE, QUERIES, PairStore(path, SETTINGS), seed=7,
        on_progress=lambda *s: steps.append(s),
    )  # fmt: skip
    assert found.dropped == {"empty answer": 1, "no characteristics": 1}
    assert len(found.pairs) == 8 and steps[-1] == (40, 40)
    idle = Writer()
    again = generate_pairs(idle, POLITE, QUERIES, PairStore(path, SETTINGS), seed=7)
    assert again == found and not idle.requests


def test_labelled_pairs(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    records = [
        {"query": "Who?", "chosen": " Me, please. ", "rejected": "Not you."},
        {"query": "Who?", "chosen": "I am.", "rejected": "No.", "chosen_request": "Who? Nicely!"},
        {"query": "What?", "chosen": "same", "rejected": "same"},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    found = read_labelled_pairs(path, POLITE)
    assert found.dropped == {"equal answers": 1}
    assert found.pairs[0].chosen == "Me, please."
    assert found.pairs[0].chosen_request == "Who? Your answer should: 1. Be polite"
    assert found.pairs[0].rejected_request == "Who? Your answer should: 1. Be rude"
    assert found.pairs[1].chosen_request == "Who? Nicely!"


def test_a_builds_own_pairs_can_be_labelled_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    generate(PairStore(path, SETTINGS), Writer())
    assert read_labelled_pairs(path, POLITE) == PairStore(path, SETTINGS).result(QUERIES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no pairs"),
        ('{"query": "a", "chosen": "b"}', "line 1: 'rejected' is missing"),
        ('{"query": " ", "chosen": "b", "rejected": "c"}', "line 1: 'query' is empty"),
        ("{", "line 1: not JSON"),
    ],
)
def test_bad_labelled_pairs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        read_labelled_pairs(path, POLITE)
