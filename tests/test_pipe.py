"""Many prompts through a pipe: every line out, in order, in flat memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import COMMAND, ROOT
from tests.test_cli import RUN_KEYS

MEGABYTE = 1 << 20
# Linux counts the memory of the process that forked as the child's own: a small one must fork.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def piped(options: list[str], n_lines: int) -> tuple[list[dict[str, Any]], int]:
    """What `run --json` says to so many lines, and the most memory it took, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *COMMAND, "run", "--json", *options],
        cwd=ROOT,
        input="".join(f"Question {n}?\n" for n in range(n_lines)),
        capture_output=True,
        text=True,
    )
    *complaints, memory = done.stderr.splitlines()
    assert (done.returncode, complaints) == (0, [])
    unit = 1 if sys.platform == "darwin" else 1024
    return [json.loads(line) for line in done.stdout.splitlines()], int(memory) * unit


def test_a_thousand_lines_take_no_more_memory_than_a_hundred(
    tiny_chat: Path, chat_model: Model, tmp_path: Path
) -> None:
    profile = tmp_path / "polite.gguf"
    random_profile(chat_model).save(profile)
    options = ["-m", str(tiny_chat), "-p", f"{profile}:0.5", "--threads", "1", "--max-tokens", "3"]
    few, memory_of_few = piped(options, 100)
    many, memory_of_many = piped(options, 1000)
    for records, n_lines in ((few, 100), (many, 1000)):
        assert [record["prompt"] for record in records] == [
            f"Question {n}?" for n in range(n_lines)
        ]
        assert [record["seed"] for record in records] == list(range(n_lines))
        assert all(list(record) == RUN_KEYS for record in records)
        assert all(
            record["steering"] == [{"profile": "polite", "strength": 0.5}] for record in records
        )
        assert all(record["completion_tokens"] <= 3 for record in records)
    assert memory_of_few > 30 * MEGABYTE, "it was not the command that was measured"
    assert memory_of_many - memory_of_few < 30 * MEGABYTE
