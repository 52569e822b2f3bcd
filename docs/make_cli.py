"""Writes `docs/cli.md` from the help texts of the commands: `python docs/make_cli.py`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "",
    "demo",
    "build",
    "run",
    "chat",
    "eval",
    "judge",
    "report",
    "profile",
    "profile list",
    "profile show",
    "profile verify",
    "profile remove",
    "profile path",
    "profile mix",
    "bench",
    "model",
    "model show",
    "model list",
    "model add",
    "plot",
    "plot strength",
    "plot sweep",
    "plot grid",
    "plot layers",
    "plot directions",
    "plot interference",
)
TYPER = ".".join(version("typer").split(".")[:2])
HEAD = f"""\
# The command line

Written by `docs/make_cli.py` from what the commands say with `--help` (typer {TYPER}).
"""


def page() -> str:
    """The page as it should be now."""
    sys.path.insert(0, str(ROOT))
    from cli.main import main

    os.environ["COLUMNS"] = "80"
    parts = [HEAD]
    for command in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main([*command.split(), "--help"])
        title = f"alignez {command}".strip()
        lines = [line.rstrip() for line in said.getvalue().strip().splitlines()]
        parts.append("\n".join([f"## `{title}`", "", "```text", *lines, "```", ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(page(), encoding="utf-8")
