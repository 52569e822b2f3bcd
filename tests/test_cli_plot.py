"""`alignez plot` and `alignez report` as a user types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignez_edge.runtime.model import Model
from cli.plot import file_stem
from tests.profiles import random_profile
from tests.runs import POLITE, arm, make_run
from tests.terminal import Alignez


@pytest.fixture
def alignez(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Alignez:
    """The command line, in an empty folder with an empty home."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Alignez(monkeypatch, capsys)


@pytest.fixture
def profile(llama_model: Model, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path / "home" / "profiles"
        folder.mkdir(parents=True, exist_ok=True)
        random_profile(llama_model, len(name), name).save(folder / f"{name}.gguf")
        return folder / f"{name}.gguf"

    return make


def test_a_picture_of_a_profile(alignez: Alignez, profile: Callable[[str], Path]) -> None:
    profile("kind")
    said = alignez("plot", "strength", "kind")
    assert (said.out, said.err, said.code) == ("drawn in kind-strength.png\n", "", 0)
    assert Path("kind-strength.png").read_bytes().startswith(b"\x89PNG")


def test_text_needs_no_matplotlib_and_writes_nothing(
    alignez: Alignez, profile: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [profile("polite"), profile("formal")]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = alignez("plot", "interference", *paths, "--text")
    assert said.code == 0
    assert said.out.startswith("Interference: how far strength 1 of each profile moves")
    assert "+1.00" in said.out
    assert not list(Path().iterdir())
    said = alignez("plot", "interference", *paths)
    assert said.out == ""
    assert said.err.splitlines() == [
        "error: drawing needs matplotlib, which is not installed",
        "hint: pip install 'alignez-edge[plot]'",
    ]
    assert said.code == 1
    assert not list(Path().iterdir())


def test_both_text_and_a_file_as_json(
    alignez: Alignez, profile: Callable[[str], Path], tmp_path: Path
) -> None:
    profile("kind")
    path = tmp_path / "picture.svg"
    said = alignez("plot", "directions", "kind", "--text", "-o", path, "--json")
    record = json.loads(said.out)
    assert record["picture"] == str(path)
    assert record["kind"] == "directions"
    assert "build it again" in record["notes"][0]
    assert said.err.splitlines() == record["notes"]
    assert path.read_bytes().startswith(b"<?xml")


def test_a_run_by_its_folder_and_by_its_name(alignez: Alignez, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "runs" / "polite-0123"
    folder.parent.mkdir(parents=True)
    make_run(folder, [arm(POLITE, s) for s in (-1.0, 1.0)], n_query=3)
    for named in (folder, "polite-0123"):
        said = alignez("plot", "strength", named)
        assert (said.out, said.code) == ("drawn in polite-0123-strength.png\n", 0)
    said = alignez("report", "polite-0123")
    assert (said.out, said.err, said.code) == ("written to polite-0123-report.html\n", "", 0)
    said = alignez("report", folder, "-o", "page.md", "--json")
    assert json.loads(said.out) == {"report": "page.md"}
    assert Path("page.md").read_text("utf-8").startswith("# What steering does to tiny model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("strength", "nothing"), "no profile called 'nothing', and no such file"),
        (("grid", "nothing"), "no run called 'nothing', and no such folder"),
        (("sweep", "RUN"), "the run swept no setting"),
        (("layers", "nothing"), "no profile called 'nothing', and no such file"),
        (("strength", "RUN", "-o", "a.pdf"), "cannot draw a.pdf: a picture is a .png or a .svg"),
        (("strength", "RUN", "-o", "no/where.png"), "cannot write no/where.png: no such folder"),
        (("strength", "."), "no such run: run.json"),
    ],
)
def test_wrong_use_is_one_line(
    alignez: Alignez, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2, seeds=1)
    given = [str(tmp_path / "run") if word == "RUN" else word for word in arguments]
    said = alignez("plot", *given)
    assert said.out == ""
    assert said.code == 2
    first, *rest = said.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert all(line.startswith("hint: ") for line in rest)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "it is damaged"), ("{}", "it is damaged"), ('{"rows": [], "plain": []}', "a list where")],
)
def test_results_that_cannot_be_read_are_said_to_be_damaged(
    alignez: Alignez, tmp_path: Path, content: str, reason: str
) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2, seeds=1)
    (run.path / "results.json").write_text(content)
    said = alignez("report", run.path)
    assert (said.code, said.out) == (2, "")
    error, hint = said.err.splitlines()
    assert error.startswith("error: ")
    assert f"has no usable results: {reason}" in error
    assert hint.startswith("hint: start the same evaluation again")


@pytest.mark.parametrize(
    ("named", "stem"),
    [
        (("polite", "formal"), "polite-formal"),
        (("a/b/x.gguf",), "x"),
        (("run/",), "run"),
        (("../..",), "picture"),
        (("a b$(c)\n",), "a-b--c"),
        (("x" * 200,), "x" * 60),
    ],
)
def test_a_derived_name_is_a_plain_name(named: tuple[str, ...], stem: str) -> None:
    assert file_stem(*named) == stem
