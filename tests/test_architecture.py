"""The house of `docs/architecture.md`: rooms in order, imports only downwards, bounded sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminal import ROOT

FLOORS = (
    ("errors", "_version", "arrays", "repeatable", "threads"),
    ("files",),
    ("demo", "modelfiles", "directions", "chat"),
    ("preferences",),
    ("runtime",),
    ("interventions",),
    ("methods", "steering"),
    ("judges", "calibration"),
    ("profile",),
    ("build", "exchange", "speed"),
    ("evaluation",),
    ("pictures",),
    ("reports",),
    ("cli",),
)
"""The rooms, from the ground up. A file may import from floors below its own, and from its room."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MATHEMATICS = (
    *("calibration.unit", "calibration.verdict", "directions.geometry", "directions.layers"),
    *("directions.subspace", "evaluation.measures", "interventions.bank"),
    *("interventions.by_query", "interventions.control_vector", "interventions.exact_form"),
    *("interventions.mlp_edit", "interventions.value_function", "methods.iti", "profile.mix"),
)
"""NumPy in, NumPy out: none of these needs llama.cpp."""
MOST_LINES = 400
MOST_OF_A_COMMAND = 80


def files() -> dict[str, Path]:
    """Every module of the product by name; `cli` is installed as `alignez_edge.cli`."""
    found = {}
    for top in ("alignez_edge", "cli"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


def imports(name: str) -> Iterator[str]:
    """The modules of the product that a module imports, type-only and late imports included."""
    path = FILES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                home = ".".join([*package[: len(package) - node.level + 1], *filter(None, [home])])
            for alias in node.names:
                whole = f"{home}.{alias.name}"
                if whole in FILES or home in FILES:
                    yield whole if whole in FILES else home


GRAPH = {name: set(imports(name)) - {name} for name in FILES}


def room(name: str) -> str:
    """The room of a module: the package below the top, or the file itself."""
    top, _, rest = name.partition(".")
    return "cli" if top == "cli" else rest.partition(".")[0]


def test_every_room_has_its_floor() -> None:
    rooms = {room(name) for name in FILES} - {""}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"alignez_edge"}))
def test_imports_go_downwards(name: str) -> None:
    own = room(name)
    for other in GRAPH[name] - {"alignez_edge", "cli"}:
        there = room(other)
        assert there == own or FLOOR[there] < FLOOR[own], f"{name} imports {other}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    # The package itself names what it offers, and imports it when it is asked for.
    left = {name: others - {"alignez_edge"} for name, others in GRAPH.items()}
    del left["alignez_edge"]
    while ends := [name for name, others in left.items() if not others & left.keys()]:
        for name in ends:
            del left[name]
    assert not left, f"in circles: {sorted(left)}"


def test_few_modules_stand_in_the_hall() -> None:
    assert len(list((ROOT / "alignez_edge").glob("*.py"))) <= 12


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_can_be_read_in_one_sitting(name: str) -> None:
    n_lines = len(FILES[name].read_text("utf-8").splitlines())
    assert n_lines <= MOST_LINES


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) == "cli"))
def test_a_command_is_short(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            last = node.end_lineno or node.lineno
            assert last - node.lineno < MOST_OF_A_COMMAND, f"{name}.{node.name}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_only_the_runtime_knows_ctypes_and_llama_cpp(name: str) -> None:
    roots = set()
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add((node.module or "").partition(".")[0])
    if room(name) != "runtime":
        assert not roots & {"ctypes", "llama_cpp"}
    if name != "alignez_edge.runtime.llama":
        assert "llama_cpp" not in roots


def test_the_imports_are_seen() -> None:
    """The tests above look at something."""
    assert "alignez_edge.runtime.llama" in GRAPH["alignez_edge.runtime.context"]
    assert "cli.build" in GRAPH["cli.main"]


def test_the_page_of_the_house_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    modules = [path for path in (ROOT / "alignez_edge").rglob("*.py") if path.name != "__init__.py"]
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", page))
    assert [path.name for path in modules if not any(path.match(name) for name in named)] == []
    assert [name for name in named if not list(ROOT.rglob(name))] == []


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
