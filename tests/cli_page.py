"""Writes `docs/cli.md` from what the commands say of themselves: `python -m tests.cli_page`.

What stands above the marker is written by hand and stays. Options that come in groups
(`cli/groups.py`) are explained once, at the end. Nothing here depends on how a version of typer
formats its help.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import typer

from cli.groups import grouped
from cli.judge.command import JudgeOptions
from cli.main import app
from cli.options import (
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    SteeringOptions,
    WhoseOptions,
)
from cli.output import Output
from cli.plot import Drawing
from tests.terminal import ROOT

PAGE = ROOT / "docs" / "cli.md"
MARKER = "<!-- what follows is written by `python -m tests.cli_page` -->\n"
GROUPS = {
    "The model": ModelOptions,
    "Whose profile": WhoseOptions,
    "Steering": SteeringOptions,
    "The system prompt": PromptOptions,
    "How answers are drawn": SamplingOptions,
    "How a judge is asked": JudgeOptions,
    "Where a picture goes": Drawing,
    "Output": Output,
}
"""The groups of options that several commands take, by their headings."""


def page() -> str:
    """The page as it should be now."""
    by_hand, marker, _ = PAGE.read_text("utf-8").partition(MARKER)
    assert marker, f"{PAGE} has lost its line {MARKER}"
    sections = [section(name, command) for name, command in commands()]
    shared = [f"### {title}\n\n{_list(_lines_of(group))}" for title, group in GROUPS.items()]
    return "\n\n".join([by_hand + MARKER.rstrip(), *sections, "## Shared options", *shared]) + "\n"


def commands(command: Any = None, name: str = "alignez") -> Iterator[tuple[str, Any]]:
    """Each command with what is typed for it; one that has commands of its own before these."""
    command = command or typer.main.get_command(app)
    yield name, command
    for inner, each in _commands_of(command).items():
        yield from commands(each, f"{name} {inner}")


def section(name: str, command: Any) -> str:
    """How a command is called, what it does, and its arguments and options."""
    inner = _commands_of(command)
    lines = [line(parameter) for parameter in command.params]
    groups = {title: _lines_of(group) for title, group in GROUPS.items()}
    taken = {title: group for title, group in groups.items() if set(group) <= set(lines)}
    own = [line for line in lines if not any(line in group for group in taken.values())]
    blocks = [
        f"## `{name}`",
        "" if inner else f"`{_usage(name, command)}`",
        command.help,
        _list(f"{_link(f'{name} {key}', code=True)}: {_first(c.help)}" for key, c in inner.items()),
        _list(own),
        f"Shared options: {', '.join(map(_link, taken))}." if taken else "",
    ]
    return "\n\n".join(filter(None, blocks))


def _commands_of(command: Any) -> dict[str, Any]:
    found = getattr(command, "commands", {})
    return {name: inner for name, inner in found.items() if not inner.hidden}


def _usage(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    shown = [p.metavar if p.required else f"[{p.metavar}]" for p in arguments]
    if any(p.nargs < 0 for p in arguments):  # these stand last
        shown[-1] = f"{shown[-1].removesuffix('...')}..."
    return " ".join([name, "[OPTIONS]", *shown])


def line(parameter: Any) -> str:
    """An argument or an option as an entry of a list."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`: {parameter.help}"
    *short, long = parameter.opts
    names = [*short, f"{long} {parameter.metavar}" if parameter.metavar else long]
    shows = parameter.show_default and not parameter.is_flag and parameter.default is not None
    default = f" Default: {parameter.default}." if shows and not parameter.required else ""
    needed = " Required." if parameter.required else ""
    return f"{', '.join(f'`{name}`' for name in names)}: {parameter.help}{default}{needed}"


@cache
def _lines_of(group: Any) -> list[str]:
    def command(*, options: Any) -> None:
        pass

    command.__annotations__ = {"options": group}
    own = typer.Typer(add_completion=False)
    own.command()(grouped(command))
    found: Any = typer.main.get_command(own)
    return [line(parameter) for parameter in found.params]


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _first(text: str) -> str:
    """The first sentence of a help text, which is its first paragraph, on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def _link(heading: str, code: bool = False) -> str:
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return f"[{f'`{heading}`' if code else heading}](#{anchor})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
