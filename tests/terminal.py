"""Driving `alignez` as a user does: in this process, as a process, and in a terminal."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.main import main

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "cli.main"]


@dataclass(frozen=True)
class Said:
    """What a command wrote to each stream, and its exit code."""

    out: str
    err: str
    code: int


class Alignez:
    """Calls `main` with the streams of a test; `stdin` is what a pipe would bring."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object, stdin: str | bytes = "") -> Said:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        return Said(said.out, said.err, code)


def process(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """`alignez` as a process of its own, with pipes."""
    pipes: dict[str, object] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [*COMMAND, *map(str, arguments)]
    # A shell's background jobs ignore Ctrl-C, and so would what they start.
    options.setdefault("preexec_fn", _heed_interrupts)
    return subprocess.Popen(command, cwd=ROOT, **{**pipes, **options})  # type: ignore[call-overload]


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_terminal(
    arguments: Sequence[object], steps: Sequence[tuple[str, str]], columns: int = 80
) -> tuple[str, int]:
    """What a terminal shows, and the exit code.

    A step is (text to wait for, keys to press then); each waits for text after the one before.
    """
    import fcntl
    import pty
    import struct
    import termios

    child, screen = pty.fork()
    if child == 0:
        _heed_interrupts()
        os.chdir(ROOT)
        os.execv(COMMAND[0], [*COMMAND, *map(str, arguments)])
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    seen, mark, left = b"", 0, list(steps)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([screen], [], [], 0.1)[0]:
            try:
                piece = os.read(screen, 65536)
            except OSError:  # Linux says so that the other side has closed
                break
            if not piece:
                break
            seen += piece
        while left and (at := seen.find(left[0][0].encode(), mark)) >= 0:
            mark = at + len(left[0][0].encode())
            os.write(screen, left.pop(0)[1].encode())
    else:
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    os.close(screen)
    text = seen.decode("utf-8", "replace").replace("\r\n", "\n")
    assert not left, f"never seen: {left[0][0]!r} in\n{text}"
    return text, os.waitstatus_to_exitcode(status)
