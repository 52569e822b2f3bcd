"""Profiles from the outside: verify, list, show, remove, the gallery, build --like."""

# ruff: noqa: F811 (fixtures are imported by name)

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.demo.rules import AXES
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.profile.library import ProfileLibrary
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import ROOT, Alignez, in_terminal
from tests.test_cli import alignez, home, records  # noqa: F401  (fixtures)
from tests.test_cli_build import NEW_AXIS, pairs_file  # noqa: F401  (fixture)

GALLERY = ROOT / "profiles"
DEMO_MODEL = ROOT / "alignez_edge" / "demo" / "demo-model.gguf"
needs_demo = pytest.mark.skipif(not DEMO_MODEL.exists(), reason="no demo model here")


@pytest.fixture
def use(tiny_chat: Path) -> list[object]:
    return ["-m", tiny_chat, "--threads", 1]


@pytest.fixture(scope="module")
def sibling(tiny_model: Callable[..., Path]) -> Path:
    """A file of the same shape with other weights."""
    from tests.tinymodels import CHATML

    return tiny_model("llama", n_layer=6, template=CHATML, seed=1)


@pytest.fixture
def bright(alignez: Alignez, use: list[object], pairs_file: Path) -> Path:
    """A profile in the user's library, built for `tiny_chat`, and said to work: a random model has
    no axis, and the pairs are few."""
    said = alignez("build", *NEW_AXIS, *use, "--pairs", pairs_file, "--json", "--quiet")
    assert said.code == 0, said.err
    path = Path(records(said.out)[0]["profile"])
    profile = Profile.load(path)
    works = {"verdict": "works", "reason": "it does.", "figures": {}}
    replace(profile, report={**profile.report, "verdict": works}).save(path)
    return path


# verify


def test_verify_on_the_model_of_the_build(
    alignez: Alignez,
    use: list[object],
    bright: Path,
) -> None:
    said = alignez("profile", "verify", "bright", *use)
    assert (said.code, said.err.count("warning")) == (0, 0)
    lines = said.out.splitlines()
    assert lines[0] == "bright: bright / dark"
    heads = [line.split()[0] for line in lines[1:]]
    assert heads == ["file", "made", "model", "answer", "effect", "verdict"]
    assert lines[4] == "  answer    the same model"
    (record,) = records(alignez("profile", "verify", bright, *use, "--json", "--quiet").out)
    assert (record["fit"], record["differing"], record["as_before"]) == ("same", [], True)
    assert record["effect_now"] == record["effect_before"] and record["pairs"] == 2


def test_verify_on_a_sibling_warns(
    alignez: Alignez,
    bright: Path,
    sibling: Path,
    tmp_path: Path,
) -> None:
    use = ["-m", sibling, "--threads", 1]
    said = alignez("profile", "verify", "bright", *use)
    assert said.code == 0 and "same shape, other weights (weights differ)" in said.out
    assert said.err.splitlines()[-1].startswith("warning: strength 1 may be stronger or weaker")
    before = bright.read_bytes()
    target = tmp_path / "mine.gguf"
    said = alignez("profile", "verify", "bright", *use, "--calibrate", "-o", target, "--json")
    (record,) = records(said.out)
    assert said.code == 0 and record["calibrated"] == str(target)
    assert bright.read_bytes() == before
    (record,) = records(alignez("profile", "verify", target, *use, "--json").out)
    assert record["fit"] == "same"
    assert alignez("profile", "verify", "bright", *use, "--calibrate").code == 0
    assert bright.read_bytes() == before  # the other model's stays; the new one lies beside it
    card = alignez("profile", "show", "bright", "-m", sibling).out
    assert "measured anew on 2 pairs" in card
    (record,) = records(alignez("profile", "verify", "bright", *use, "--json").out)
    assert (record["fit"], Path(record["profile"]).name) == ("same", "bright@Random-model-2.gguf")


def test_verify_refuses_what_does_not_fit(
    alignez: Alignez,
    bright: Path,
    tiny_model: Callable[..., Path],
) -> None:
    use = ["-m", tiny_model("qwen2"), "--threads", 1]
    said = alignez("profile", "verify", "bright", *use)
    assert (said.code, said.out) == (2, "")
    error, hint = said.err.splitlines()
    assert error.startswith("error: the profile bright was made for another model (")
    assert "architecture is llama there and qwen2 here" in error
    assert hint == "hint: build one for this model: alignez build bright -m MODEL"
    said = alignez("profile", "verify", "bright", *use, "--json")
    assert said.code == 2 and records(said.out)[0]["fit"] == "different"
    assert alignez("profile", "verify", "bright", *use, "--calibrate").code == 2


def test_verify_finds_a_file_that_is_not_what_it_was(
    alignez: Alignez,
    use: list[object],
    bright: Path,
    tmp_path: Path,
) -> None:
    profile = Profile.load(bright)
    shape = profile.vector.deciding.shape
    false = tmp_path / "false.gguf"
    replace(profile, vector=ControlVector.zeros(*shape)).save(false)
    said = alignez("profile", "verify", false, *use)
    assert said.code == 1 and "answer    the same model" in said.out
    assert said.err.splitlines()[-2:] == [
        "error: the effect is not what the profile says",
        "hint: the file or the model is not what it was: do not rely on the profile",
    ]


def test_verify_says_what_it_cannot_check(
    alignez: Alignez,
    use: list[object],
    chat_model: Model,
    tmp_path: Path,
) -> None:
    bare = tmp_path / "bare.gguf"
    random_profile(chat_model).save(bare)
    said = alignez("profile", "verify", bare, *use)
    assert said.code == 0 and "not checked: the profile carries no pairs" in said.out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["nowhere"], "error: no profile called 'nowhere'"),
        (["bright", "-o", "x.gguf"], "error: -o needs --calibrate"),
        (["bright", "--calibrate", "-o", "."], "error: cannot write .: it is not a plain file"),
        (["bright", "--calibrate"], "error: the profile was made for this model"),
    ],
)
def test_wrong_use_of_verify(
    alignez: Alignez,
    use: list[object],
    bright: Path,
    options: list[str],
    error: str,
) -> None:
    said = alignez("profile", "verify", *options, *use, "--quiet")
    assert said.code == 2 and said.err.startswith(error)


# list, show, remove


def test_list_and_show_tell_every_fact(
    alignez: Alignez,
    use: list[object],
    bright: Path,
) -> None:
    head, *rows = alignez("profile", "list").out.splitlines()
    assert head.split()[3:] == ["strength", "effect", "verdict", "size", "origin"]
    (row,) = (row for row in rows if row.startswith("bright "))
    assert row.endswith("user") and "kB" in row
    (facts,) = records(alignez("profile", "show", "bright", "--json").out)
    profile = Profile.load(bright)
    assert facts["size_bytes"] == bright.stat().st_size
    assert facts["fits"]["n_layer"] == 6 and facts["fits"]["architecture"] == "llama"
    assert facts["report"] == profile.report and set(facts["report"]) >= {"build", "check"}
    assert facts["dropped"] == {"equal answers": 1}
    card = alignez("profile", "show", "bright").out
    build: dict[str, Any] = facts["report"]["build"]
    assert build["model"]["sha256"] in card and build["source"]["sha256"] in card
    for text in ("8 labelled pairs", "16 at a time, 1 thread", "2 pairs in the file"):
        assert text in card
    assert "llama, 6 layers of 64" in card


def test_remove_needs_a_yes(alignez: Alignez, bright: Path) -> None:
    said = alignez("profile", "remove", "bright")
    assert said.code == 2 and bright.exists()
    assert said.err == "error: stdin is not a terminal; pass --yes\n"
    said = alignez("profile", "remove", "bright", "--yes")
    assert (said.code, said.out, said.err) == (0, f"deleted {bright}\n", "")
    assert not bright.exists()
    said = alignez("profile", "remove", "bright", "--yes")
    assert said.code == 2 and said.err.startswith("error: you have no profile called 'bright'")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("key", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x03", 130)])
def test_remove_asks_in_a_terminal(
    home: Path,
    chat_model: Model,
    key: str,
    code: int,
) -> None:
    path = ProfileLibrary().save("mine", random_profile(chat_model))
    text, said = in_terminal(["profile", "remove", "mine"], [("[y/N]", key)])
    assert said == code and path.exists() == (code != 0)
    assert "delete" in text and "Traceback" not in text
    assert ("not removed" in text) == (code == 1)


def test_a_folder_of_profiles_that_cannot_be_read_is_told(
    alignez: Alignez,
    home: Path,
) -> None:
    home.mkdir()
    (home / "profiles").touch()
    said = alignez("profile", "list")
    assert (said.code, "built-in" in said.out) == (0, True)
    assert said.err == (
        f"profiles of your own are not listed: cannot read {home}/profiles: Not a directory\n"
    )


def test_a_mix_replaces_no_profile(alignez: Alignez, chat_model: Model, tmp_path: Path) -> None:
    paths = [ProfileLibrary().save(n, random_profile(chat_model, i, n)) for i, n in enumerate("ab")]
    kept = [path.read_bytes() for path in paths]
    command = ["profile", "mix", "a", "b:0.5"]
    said = alignez(*command, "--name", "a")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "error: there is a profile called a for this model already",
        "hint: give another name (--name NAME), or remove the old one",
    ]
    said = alignez(*command, "-o", paths[1])
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: cannot write {paths[1]}: it is the file that is read\n")
    assert [path.read_bytes() for path in paths] == kept
    assert alignez(*command).code == 0
    assert alignez(*command).code == 2


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "\x1b[2J"])
def test_remove_stays_in_the_folder(alignez: Alignez, name: str) -> None:
    said = alignez("profile", "remove", name, "--yes")
    assert said.code == 2 and "cannot be the name of a profile" in said.err
    assert "\x1b" not in said.err


# The gallery


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    with Model.demo(threads=1) as model:
        yield model


@needs_demo
@pytest.mark.parametrize("name", AXES)
def test_the_gallery_is_for_the_demo_model(demo: Model, name: str) -> None:
    from alignez_edge.profile.kept_pairs import kept_pairs
    from alignez_edge.profile.provenance import Provenance
    from alignez_edge.profile.verify import verify

    profile = Profile.load(GALLERY / f"{name}.gguf")
    assert (profile.name, profile.licence) == (name, "MIT")
    assert profile.author == "The alignez-edge authors"
    assert profile.created_at == "2026-01-01T00:00:00Z"
    assert (GALLERY / f"{name}.gguf").stat().st_size < 64_000
    found = Provenance.of(profile)
    assert found is not None and len(kept_pairs(profile)) == 4
    checked = verify(profile, demo)
    assert checked.comparison.differing == () and checked.as_before
    assert checked.now is not None and checked.now.span > 0


@needs_demo
def test_the_gallery_is_used_at_once(alignez: Alignez) -> None:
    rows = records(alignez("profile", "list", "--json").out)
    assert [row["name"] for row in rows if row["origin"] == "built-in"] == sorted(AXES)
    said = alignez("chat", "-p", "cheerful", "--threads", 1, "--max-tokens", 4, "--json",
                   stdin="Tell me about bread.\n")  # fmt: skip
    assert said.code == 0
    assert records(said.out)[0]["steering"] == [{"profile": "cheerful", "strength": 1.0}]
    refused = alignez("profile", "remove", "cheerful", "--yes")
    assert refused.code == 2 and refused.err.startswith(
        "error: cheerful is built in and cannot be removed"
    )


def test_the_gallery_is_refused_by_other_models(
    alignez: Alignez,
    use: list[object],
) -> None:
    said = alignez("run", "hello", "-p", "cheerful", *use)
    assert (said.code, said.out) == (2, "")
    error, hint = said.err.splitlines()
    assert error.startswith("error: the profile cheerful was made for another model (alignez demo)")
    assert hint == "hint: build one for this model: alignez build cheerful -m MODEL"


@needs_demo
def test_one_name_for_two_models(
    alignez: Alignez, use: list[object], chat_model: Model, home: Path, tmp_path: Path
) -> None:
    """The shipped profile of a name is there beside one's own for another model."""
    own = ProfileLibrary().save("cheerful", random_profile(chat_model, name="cheerful"))
    shipped = GALLERY / "cheerful.gguf"
    assert alignez("profile", "path", "cheerful", *use[:2]).out == f"{own}\n"
    assert alignez("profile", "path", "cheerful@demo").out == f"{shipped}\n"
    demo = ["-m", "demo", "--threads", 1]
    for model in (use, demo):
        said = alignez("run", "hello", "-p", "cheerful:0.5", *model, "--max-tokens", 2)
        assert (said.code, said.err) == (0, "")
        said = alignez("chat", *model, "--max-tokens", 2, stdin="/profile cheerful\n")
        assert (said.code, said.err) == (0, "(steered by cheerful +1)\n")
    for command in (
        ["profile", "show", "cheerful"],
        ["profile", "export", "cheerful", "--to", "control-vector", "-o", tmp_path / "v.gguf"],
        ["plot", "strength", "cheerful", "--text"],
    ):
        said = alignez(*command)
        assert (said.code, said.out) == (2, "")
        assert said.err.splitlines() == [
            "error: 2 profiles are called 'cheerful': cheerful@alignez-demo, cheerful@Random-model",
            "hint: name one, like cheerful@alignez-demo, or the model: -m MODEL",
        ]
        assert alignez(*command, *use[:2]).code == 0
    said = alignez("profile", "list", *use[:2], "--json")
    fits = {record["full_name"]: record["fit"] for record in records(said.out)}
    assert fits["cheerful@Random-model"] == "same"
    assert fits["cheerful@alignez-demo"] == fits["polite@alignez-demo"] == "different"
    listed = alignez("profile", "list", *use[:2]).out
    assert listed.splitlines()[0].split()[3] == "fits"
    assert "cheerful@alignez-demo" in listed and "polite@" not in listed
    assert alignez("profile", "remove", "cheerful", "--yes", "-m", "demo").code == 2
    assert alignez("profile", "remove", "cheerful", "--yes").code == 0
    assert not own.exists()
    assert alignez("profile", "path", "cheerful").out == f"{shipped}\n"


# build --like, --author, --licence


def test_build_like_is_the_same_but_for_its_time(
    alignez: Alignez,
    use: list[object],
    pairs_file: Path,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    sent, again = tmp_path / "sent.gguf", tmp_path / "again.gguf"
    options = ["--pairs", pairs_file, "--author", "Zoë", "--licence", "CC0-1.0", "--parallel", 3]
    assert alignez("build", *NEW_AXIS, *use, *options, "--layers", "2-4", "-o", sent).code == 0
    shutil.rmtree(home)
    said = alignez("build", "--like", sent, *use[:2], "--pairs", pairs_file, "-o", again)
    assert said.code == 0 and "the profile will differ" not in said.err
    assert again.read_bytes() == sent.read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    assert alignez("build", "--like", sent, *use[:2], "--pairs", pairs_file, "-o", again).code == 0
    then, now = np.frombuffer(sent.read_bytes(), "u1"), np.frombuffer(again.read_bytes(), "u1")
    assert len(then) == len(now) and 0 < (then != now).sum() < len("2023-11-14T22:13:20Z")
    said = alignez("build", "--like", sent, *use, "--pairs", pairs_file, "--author", "Me", "-o",
                   again)  # fmt: skip
    assert said.code == 0 and Profile.load(again).author == "Me"


@needs_demo
def test_build_like_for_another_model_says_what_differs(
    alignez: Alignez,
    use: list[object],
    pairs_file: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "mine.gguf"
    said = alignez("build", "--like", "cheerful", *use, "--pairs", pairs_file, "-o", target)
    assert said.code == 2 and "built from queries, not from labelled pairs" in said.err
    assert "the profile will differ, because this has changed: the model's file" in said.err
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "error: no axis given"),
        (["polite", "--like", "cheerful"], "error: --like takes the axis and every option"),
        (["--like", "cheerful", "--seed", "1"], "error: --like takes the axis and every option"),
        (["--like", "cheerful", "--layers", "2"], "error: --like takes the axis and every option"),
        (["--like", "cheerful", "--no-texts"], "error: --like takes the axis and every option"),
        (["--like", "nowhere"], "error: no profile called 'nowhere'"),
        (["polite", "--no-texts", "--include-queries"], "error: --include-queries and --no-texts"),
        (["polite", "--author", "a\x1b[2J"], "error: --author must be one printable line"),
        (["polite", "--licence", "x" * 201], "error: --licence must be one printable line"),
        (["polite", "--ctx", "9999"], "error: a context of 9999 tokens"),
    ],
)
def test_wrong_use_of_what_a_build_tells(
    alignez: Alignez,
    use: list[object],
    arguments: list[str],
    error: str,
) -> None:
    said = alignez("build", *arguments, *use, "--quiet")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(error) and "\x1b" not in said.err


def test_a_verdict_is_shown_wherever_a_profile_is(
    alignez: Alignez,
    home: Path,
    tiny_chat: Path,
    chat_model: Model,
) -> None:
    told = {"verdict": "wrong way", "reason": "it goes backwards.", "figures": {}}
    library = ProfileLibrary(home / "profiles")
    library.save("bad", random_profile(chat_model, name="bad", report={"verdict": told}))
    works = {**told, "verdict": "works", "reason": "it does."}
    library.save("good", random_profile(chat_model, 1, name="good", report={"verdict": works}))
    library.save("old", random_profile(chat_model, 2, name="old"))
    listed = alignez("profile", "list", "--json").out.splitlines()
    found = {entry["name"]: entry["verdict"] for entry in map(json.loads, listed)}
    assert [found[name] for name in ("bad", "good", "old")] == ["wrong way", "works", None]
    assert "not measured" in alignez("profile", "list").out
    shown = alignez("profile", "show", "bad")
    assert "wrong way: it goes backwards." in shown.out
    use = ["-m", tiny_chat, "--threads", 1]
    checked = alignez("profile", "verify", "bad", *use)
    assert checked.code == 1 and "does not work as it should: wrong way" in checked.err
    assert "wrong way: it goes backwards." in checked.out
    assert [alignez("profile", "verify", name, *use).code for name in ("good", "old")] == [0, 0]
    for name in ("bad", "good", "old"):
        said = alignez("chat", "-p", name, *use, stdin="/quit\n")
        assert ("bad: wrong way: it goes backwards." in said.err) == (name == "bad"), said.err
