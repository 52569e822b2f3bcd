"""Writes `docs/cli.md` from the help texts of the commands: `python docs/make_cli.py`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TYPER = ".".join(version("typer").split(".")[:2])
HEAD = f"""\
# The command line

Written by `docs/make_cli.py` from what the commands say with `--help` (typer {TYPER}).
"""


def commands(group: Any = None, path: str = "") -> Iterator[str]:
    """What is typed after `alignez` for each command: a group before those in it."""
    if group is None:
        import typer

        from cli.main import app

        group = typer.main.get_command(app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            yield from commands(command, f"{path} {name}".strip())


def page() -> str:
    """The page as it should be now."""
    sys.path.insert(0, str(ROOT))
    from cli.main import main

    os.environ["COLUMNS"] = "80"
    parts = [HEAD]
    for command in commands():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main([*command.split(), "--help"])
        title = f"alignez {command}".strip()
        lines = [line.rstrip() for line in said.getvalue().strip().splitlines()]
        parts.append("\n".join([f"## `{title}`", "", "```text", *lines, "```", ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("usage: python docs/make_cli.py")
    (ROOT / "docs" / "cli.md").write_text(page(), encoding="utf-8")
