"""What the pages show is there: links, pictures, Python, and commands with their options."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.main import UsageError, app
from tests import cli_page
from tests.terminal import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^()\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for kind, text in _FENCE.findall(page.read_text("utf-8")) if kind == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> Iterator[tuple[bool, str]]:
    """Whether it is a picture, and where it leads, of each link into this project."""
    for mark, target in _LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:", target):
            yield mark == "!", target


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page can be called."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def imports(text: str) -> Iterator[tuple[str, str]]:
    """The modules of this project that Python imports, each with a name out of it or ''."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alignez_edge"):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.startswith("alignez_edge"))


def is_there(module: str, name: str) -> bool:
    found = import_module(module)
    return not name or hasattr(found, name)


def command_lines(text: str) -> Iterator[list[str]]:
    """What follows `alignez` wherever it is called in a shell's text."""
    for line in text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        reader.whitespace_split = True
        call: list[str] = []
        for token in [*reader, ";"]:
            if set(token) <= set("|;&<>"):
                if call and call[0].rpartition("/")[2] == "alignez":
                    yield call[1:]
                call = []
            elif call or not re.match(r"[A-Z_]+=", token):
                call.append(token)


def found(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that is meant, and what is left for it. Raises `KeyError` where there is none."""
    command: Any = COMMANDS
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, arguments


def trouble(arguments: list[str], whole: bool = True) -> str:
    """What is wrong with a command line; '' where nothing is. Nothing is run.

    Unless it is `whole`, only its command and the names of its options are looked at.
    """
    try:
        command, rest = found(arguments)
        if whole and not hasattr(command, "commands"):
            command.make_context("alignez", list(rest))
    except KeyError as missing:
        return f"there is no command {missing}"
    except UsageError as failure:
        return str(failure.format_message())  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {"-h", "--help"}
    given = {text.partition("=")[0] for text in rest if re.match(r"--?[a-zA-Z]", text)}
    return f"there is no option {', '.join(sorted(given - known))}" if given - known else ""


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for _, link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_pictures_are_there(page: Path) -> None:
    for is_picture, link in links(page):
        assert not is_picture or (page.parent / link).read_bytes()[:4] == b"\x89PNG", link


@pages
def test_python_compiles_and_imports_what_there_is(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")
        for module, name in imports(text):
            assert is_there(module, name), f"from {module} import {name}"


@pages
def test_commands_and_options_exist(page: Path) -> None:
    for text in blocks(page, "sh"):
        for arguments in command_lines(text):
            assert not trouble(arguments), f"alignez {shlex.join(arguments)}: {trouble(arguments)}"


@pages
def test_commands_within_the_text_exist(page: Path) -> None:
    """These may be shortened: what they need and do not name is not asked for."""
    for span in _SPAN.findall(prose(page)):
        words = " ".join(span.replace("...", "").split())
        if words.startswith("alignez "):
            arguments = words.replace("'", "").split()[1:]
            assert not trouble(arguments, whole=False), f"{words}: {trouble(arguments, False)}"


def test_the_page_of_the_commands_is_what_they_say() -> None:
    kept = cli_page.PAGE.read_text("utf-8")
    assert kept == cli_page.page(), "the commands have changed: run python -m tests.cli_page"
    names = [name for name, _ in cli_page.commands()]
    assert re.findall(r"^## `(.+)`$", kept, re.MULTILINE) == names
    assert {"alignez", "alignez build", "alignez profile export"} <= set(names)
    for name, group in cli_page.GROUPS.items():
        assert f"](#{name.lower().replace(' ', '-')})" in kept, f"nobody takes {group}"


def test_the_page_of_the_commands_leaves_nothing_out() -> None:
    kept = cli_page.PAGE.read_text("utf-8")
    for name, command in cli_page.commands():
        assert command.help in kept, name
        for parameter in command.params:
            assert f"\n- {cli_page.line(parameter)}\n" in kept, name


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    """The tests above look at something."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A b, c\n[x](#a-b-c) ![y](z.png) [w](https://a.b)\n"
        "```sh\nA=1 .venv/bin/alignez run -p x \\\n  --json | alignez nothing  # no\n```\n"
        "```python\nfrom alignez_edge import Model, Nothing\n```\n",
        "utf-8",
    )
    assert list(links(page)) == [(False, "#a-b-c"), (True, "z.png")]
    assert anchors(page) == {"a-b-c"}
    (shell,) = blocks(page, "sh")
    assert list(command_lines(shell)) == [["run", "-p", "x", "--json"], ["nothing"]]
    (code,) = blocks(page, "python")
    assert [is_there(*pair) for pair in imports(code)] == [True, False]
    assert not trouble(["profile", "export", "x", "--to", "lora", "-o", "y"])
    assert "output" in trouble(["profile", "export", "x", "--to", "lora"])
    assert "nothing" in trouble(["profile", "nothing"])
    assert "--nothing" in trouble(["run", "--nothing", "x"])
    assert "--nothing" in trouble(["run", "--nothing"], whole=False)
    assert "--seed" in trouble(["run", "--seed", "many"])
    assert sum(len(blocks(page, "sh")) for page in PAGES) > 10
