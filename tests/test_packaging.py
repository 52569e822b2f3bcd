"""What users get: the source distribution, the wheel built from it, and the wheel installed.

Nothing is fetched and nothing but this package is built: the fresh environment borrows what this
one has installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import alignez_edge
from alignez_edge.profile.file import VERSION
from tests.terminal import ROOT

HOMES = {
    "alignez_edge": "alignez_edge",
    "cli": "alignez_edge/cli",
    "profiles": "alignez_edge/profiles",
}
"""The folders of the checkout that are installed, and where."""
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
"""What `python -m build --sdist` asks of setuptools."""
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
VERSIONS = re.compile(r"^\| (\d+)\.(\d+) \|", re.MULTILINE)


def run(command: list[object], folder: Path, home: Path | None = None) -> str:
    """What a program says that runs in `folder`; with a `home`, it does not see this checkout."""
    environment = dict(os.environ)
    if home:
        environment.pop("PYTHONPATH", None)
        environment["ALIGNEZ_HOME"] = str(home)
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shipped() -> Iterator[tuple[Path, str]]:
    """Every file of the installed folders, and its name in the wheel."""
    for home, name in HOMES.items():
        for path in (ROOT / home).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield path, f"{name}/{path.relative_to(ROOT / home).as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, out of the source distribution, out of a copy: builds write beside the sources."""
    folder = tmp_path_factory.mktemp("packaging")
    tree = folder / "tree"
    tree.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    for name in HOMES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    name = run([sys.executable, "-c", SDIST, folder], tree).splitlines()[-1]
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir"]
    run([*PIP, "wheel", *offline, "--wheel-dir", folder, folder / name], folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def away(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment: the wheel, and behind it the packages of this one."""
    folder = tmp_path_factory.mktemp("away") / "env"
    run([sys.executable, "-m", "venv", "--without-pip", folder], ROOT)
    python = folder / "bin" / "python"
    run([*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel], ROOT)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed), "utf-8")
    return python.parent


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    about = {name for name in held if name.split("/")[0].endswith(".dist-info")}
    assert any(name.endswith("/LICENSE") for name in about)
    expected = {name: path for path, name in shipped()}
    assert held.keys() - about == expected.keys()
    assert [name for name, path in expected.items() if held[name] != path.read_bytes()] == []
    assert {"alignez_edge/py.typed", "alignez_edge/demo/demo-model.gguf"} <= expected.keys()


def test_the_installed_command(away: Path, tmp_path: Path, home: Path) -> None:
    where = run(
        [away / "python", "-c", "import alignez_edge as a; print(a.__file__)"], tmp_path, home
    )
    assert Path(where).is_relative_to(away.parent)
    said = run([away / "alignez", "--version"], tmp_path, home)
    assert said == f"alignez {alignez_edge.__version__}\n"
    said = run([away / "alignez", "profile", "list", "--json"], tmp_path, home)
    assert '"cheerful"' in said
    assert not home.exists() and list(tmp_path.iterdir()) == []


def test_the_installed_demo(away: Path, tmp_path: Path, home: Path) -> None:
    said = run([away / "alignez", "demo", "--quiet"], tmp_path, home)
    assert "steered +1" in said and "Try it yourself:" in said
    assert [path.name for path in (home / "profiles").iterdir()] == ["demo-cheerful.gguf"]


def test_the_changelog_begins_with_this_version() -> None:
    page = (ROOT / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## \[(\d.*?)\]", page, re.MULTILINE)
    assert released[0] == alignez_edge.__version__


def test_the_changelog_knows_every_version_of_the_profile_file() -> None:
    told = [
        [(int(major), int(minor)) for major, minor in VERSIONS.findall(path.read_text("utf-8"))]
        for path in (ROOT / "CHANGELOG.md", ROOT / "docs" / "profile-file.md")
    ]
    assert told[0] == sorted(told[1], reverse=True) and told[0][0] == VERSION


def test_contributing_names_what_there_is() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    flat = " ".join(page.split())
    named = re.findall(r"`(\w+)` in `([\w./]+\.py)`", flat)
    assert len(named) > 10
    for name, file in named:
        text = (ROOT / file).read_text("utf-8")
        defined = rf"^(class |def )?{name}\b( =|:|\(|: )"
        assert re.search(defined, text, re.MULTILINE), f"{name} in {file}"
    for file in re.findall(r"`((?:alignez_edge|cli|tests|docs)/[\w./]*)`", flat):
        assert (ROOT / file).exists(), file
