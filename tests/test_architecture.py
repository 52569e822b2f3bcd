"""The arrows of `docs/architecture.md`: face, core, ground, cellar; imports only go downwards."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminal import ROOT

CELLAR = ("errors", "waiting", "files", "gguffile", "ggufwriter", "lora", "fingerprint")
"""What anybody may import: it knows no model, no axis and no command."""
FLOORS = ("cellar", "ground", "core", "face")
MATHEMATICS = (
    *("bank", "calibration", "conditioned", "edits", "evaluation.measures", "forms", "geometry"),
    *("heads", "layers", "mix", "subspace", "value", "vectors"),
)
LIBRARY = ROOT / "alignez_edge"
FILES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "cli").rglob("*.py")])


def name_of(path: Path) -> str:
    """The module's name; `cli/` is installed as `alignez_edge.cli`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "cli":
        parts = ("alignez_edge", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> str:
    parts = module.split(".")[1:]
    if not parts or parts[0] in CELLAR:  # the package itself only names things lazily
        return "cellar"
    return {"cli": "face", "runtime": "ground"}.get(parts[0], "core")


MODULES = {name_of(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it; not those imported for type hints only."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    pending: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else base for name in inner)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    here = FLOORS.index(floor_of(module))
    for name in imported(MODULES[module]):
        if name == "alignez_edge" or name.startswith("alignez_edge."):
            above = FLOORS.index(floor_of(name)) > here
            assert not above, f"{module} ({floor_of(module)}) imports {name} ({floor_of(name)})"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_ground_knows_ctypes_and_llama_cpp(module: str) -> None:
    roots = {name.partition(".")[0] for name in imported(MODULES[module])}
    if floor_of(module) != "ground":
        assert not roots & {"ctypes", "llama_cpp"}
    if module != "alignez_edge.runtime.llama":
        assert "llama_cpp" not in roots


def test_the_page_of_the_house_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    modules = [path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"]
    assert [path.name for path in modules if f"`{path.name}`" not in page] == []
    missing = [name for name in re.findall(r"`(\w+\.py)`", page) if not list(ROOT.rglob(name))]
    assert missing == []


def test_the_arrows_are_seen() -> None:
    """The two tests above look at something."""
    assert {floor_of(module) for module in MODULES} == set(FLOORS)
    assert "llama_cpp" in set(imported(MODULES["alignez_edge.runtime.llama"]))
    assert "alignez_edge.cli.build" in set(imported(MODULES["alignez_edge.cli.main"]))


@pytest.mark.parametrize("module", MATHEMATICS)
def test_mathematics_needs_no_llama_cpp(module: str) -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None;"  # as if it were not installed
        f"import alignez_edge.{module}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["alignez_edge", "cli.main"])
def test_importing_the_front_door_is_light(module: str) -> None:
    code = (
        f"import sys, {module};"
        "heavy = {'numpy', 'scipy', 'llama_cpp', 'gguf', 'matplotlib'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
