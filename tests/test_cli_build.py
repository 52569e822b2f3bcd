"""`alignez build` and `alignez demo` from the outside: what they say, save and leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from cli import demo
from tests.terminal import ROOT, Alignez, in_terminal
from tests.test_cli import alignez, home  # noqa: F401  (fixtures)

BUILD_KEYS = [
    "profile",
    "axis",
    "method",
    "layers",
    "pairs",
    "pairs_dropped",
    "strength",
    "strength_negative",
    "seconds",
    "calibration",
    "request",
    "verdict",
    "reason",
]
DEMO_MODEL = ROOT / "alignez_edge" / "demo" / "demo-model.gguf"
NEW_AXIS = ["bright", "--positive", "bright", "--negative", "dark"]


@pytest.fixture
def use(tiny_chat: Path) -> list[object]:
    return ["-m", tiny_chat, "--threads", 2]


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Labelled pairs, one of them useless."""
    path = tmp_path / "pairs.jsonl"
    topics = ("bread", "rain", "trains", "cats", "snow", "tea", "maps", "birds")
    pairs: list[dict[str, str]] = [
        {"query": f"Tell me about {t}.", "chosen": f"I love {t}!", "rejected": f"{t} is bad."}
        for t in topics
    ]
    pairs.append({"query": "And you?", "chosen": "Fine.", "rejected": "Fine."})
    path.write_text("\n".join(map(json.dumps, pairs)) + "\n", "utf-8")
    return path


def built(text: str) -> dict[str, Any]:
    (line,) = text.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_build_from_pairs_into_the_library(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    pairs_file: Path,
    home: Path,  # noqa: F811
    chat_model: Model,
) -> None:
    said = alignez("build", *NEW_AXIS, *use, "--pairs", pairs_file, "--json", "--quiet")
    assert (said.code, said.err) == (0, "")
    record = built(said.out)
    assert list(record) == BUILD_KEYS
    assert record["profile"] == str(home / "profiles" / "bright.gguf")
    assert (record["pairs"], record["pairs_dropped"]) == (8, 1)
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    profile = Profile.load(record["profile"])
    assert profile.unit == record["strength"] and list(profile.layers) == record["layers"]
    assert profile.injection(chat_model) is not None
    answer = alignez("run", "hello", *use, "-p", "bright:0.5", "--json", "--max-tokens", 2)
    assert built(answer.out)["steering"] == [{"profile": "bright", "strength": 0.5}]


def test_build_into_a_file_says_what_to_try(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    pairs_file: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "mine.gguf"
    options = ["--pairs", pairs_file, "--layers", "2-3", "-o", target]
    said = alignez("build", *NEW_AXIS, *use, *options)
    assert said.code == 0 and target.is_file()
    assert f"alignez run -m {use[1]} -p {target}" in said.out
    assert "not enough to tell: only 2 questions could be held back" in said.out
    assert "8 (1 dropped: 1 equal answers)" in said.out
    assert Profile.load(target).layers == (2, 3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--layers", "99"], "error: "),
        (["--layers", "5-2"], "error: --layers: 5-2 is reversed"),
        (["--method", "alignes"], "error: no method is called 'alignes'"),
        (["--method", "caa", "--neighbors", "3"], "error: the method caa does not look at"),
        (["--neighbors", "0"], "error: 0 neighbors are too few"),
        (["--method", "recontrol", "--layers", "2"], "error: the method recontrol edits no"),
        (["--limit", "3"], "error: --limit is 3; it must be at least 4"),
        (["--request", "stile"], "error: no form of request is called 'stile'"),
        (["--request", "style"], "error: --pairs and --request cannot be combined"),
        (["--seed", "-1"], "error: --seed is -1"),
        (["--seed", 2**63], "error: --seed is 9223372036854775808; it must be at least 0 and"),
        (["--parallel", "0"], "error: --parallel is 0"),
        (["--queries", "q.txt"], "error: --pairs and --queries cannot be combined"),
        (["-o", "no/such/folder/x.gguf"], "error: cannot write no/such/folder/x.gguf"),
        (["-o", "."], "error: cannot write .: it is not a plain file"),
        (["-o", "/dev/null"], "error: cannot write /dev/null: it is not a plain file"),
    ],
)
def test_wrong_use_of_build(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    pairs_file: Path,
    home: Path,  # noqa: F811
    options: list[object],
    error: str,
) -> None:
    said = alignez("build", *NEW_AXIS, *use, "--quiet", "--pairs", pairs_file, *options)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(error) and "Traceback" not in said.err
    if options[0] == "-o":
        assert not home.exists(), "it was to be known before the work"


def test_a_folder_that_may_not_be_written_is_known_before_the_work(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    pairs_file: Path,
    home: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Root may write anywhere, so that a folder's mode would not do here.
    monkeypatch.setattr("alignez_edge.files.writing.os.access", lambda *_: False)
    target = tmp_path / "x.gguf"
    said = alignez("build", *NEW_AXIS, *use, "--quiet", "--pairs", pairs_file, "-o", target)
    assert (said.code, said.out) == (1, "")
    assert said.err == f"error: cannot write {target}: its folder may not be written\n"
    assert not home.exists()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_wrong_use_of_demo(alignez: Alignez, seed: int) -> None:  # noqa: F811
    said = alignez("demo", "--seed", seed)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: --seed is {seed}; it must be at least 0")


def test_queries_that_cannot_be_read(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_bytes(b"\n")
    binary.write_bytes(b"one\n\xff\xfe\n")
    for path, error in ((empty, "has no queries"), (binary, "line 2"), (tmp_path, "cannot read")):
        said = alignez("build", *NEW_AXIS, *use, "--queries", path)
        assert said.code == 2 and error in said.err


def test_build_says_in_which_form_it_asked(
    alignez: Alignez,  # noqa: F811
    use: list[object],
    tmp_path: Path,
) -> None:
    queries = tmp_path / "queries.txt"
    topics = "bread rain trains cats snow tea maps birds salt glue wool milk".split()
    queries.write_text("\n".join(f"{w} {t}?" for t in topics for w in ("Why", "What is")), "utf-8")
    options = ["pirate", "--positive", "talks like a pirate", "--queries", queries, "--limit", 4]
    said = alignez("build", *options, *use, "--request", "role", "--json")
    assert said.code == 0, said.err
    assert built(said.out)["request"] == {"form": "role", "scores": {}, "weights": {}}
    shown = alignez("build", *options, *use, "--request", "role", "--quiet")
    assert "pirate: talks like a pirate / the plain answer" in shown.out
    assert "asked       in the form role" in shown.out
    none = alignez("build", "x", "--negative", "dark", *use)
    assert none.code == 2 and none.err.startswith("error: --positive is missing")


def test_an_interrupted_build_says_that_it_goes_on(tiny_chat: Path) -> None:
    arguments = ["build", "cheerful", "-m", tiny_chat, "--threads", 2, "--limit", 48]
    text, code = in_terminal(arguments, [("pairs ", "\x03"), ("goes on where it was", "")])
    assert code == 130 and "Traceback" not in text


@pytest.mark.skipif(not DEMO_MODEL.exists(), reason="the demo model has not been built here")
def test_demo_tells_the_whole_story(
    alignez: Alignez,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("N_BUILD", 8), ("N_SHOWN", 1), ("N_MEASURED", 2), ("MAX_TOKENS", 24)):
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setenv("COLUMNS", "80")
    said = alignez("demo", "--threads", 2)
    assert said.code == 0
    assert all(len(line) <= 80 for line in said.out.splitlines())
    for word in ("plain", "-p demo-cheerful:-1", "steered +1", "asked to be cheerful", "alignez "):
        assert word in said.out
    again = alignez("demo", "--threads", 2, "--json")
    *answers, scores = map(json.loads, again.out.splitlines())
    assert list(answers[0]) == ["query", "negative", "plain", "positive"]
    assert scores["queries"] == 2 and all(-1 <= s <= 1 for s in scores["scores"].values())
