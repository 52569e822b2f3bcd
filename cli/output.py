"""What the terminal gets: results, notices, errors and progress, each on its stream.

Results go to standard output, everything else to standard error. With `--json` standard output
carries one object a line and nothing else.
"""

from __future__ import annotations

import json as _json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

from alignez_edge.files.text import is_unprintable, printable


@dataclass(frozen=True)
class Output:
    """How a command speaks; its fields are options of every command."""

    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on standard output.")
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No notices and no progress on standard error.")
    ] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False

    def result(self, text: str = "") -> None:
        """One result for a person; nothing with `--json`."""
        if not self.json:
            print(shown(text), flush=True)

    def record(self, values: Mapping[str, Any]) -> None:
        """One result for a program; nothing without `--json`."""
        if self.json:
            print(_plain(_json.dumps(values, ensure_ascii=False, allow_nan=False)), flush=True)

    def notice(self, text: str) -> None:
        """One line that is good to know."""
        if not self.quiet:
            tell(text)

    @contextmanager
    def resumable(self, work: str) -> Iterator[None]:
        """Around work that goes on where it was when it is started again: Ctrl-C says so."""
        try:
            yield
        except KeyboardInterrupt:
            self.notice(f"interrupted: start {work} again and it goes on where it was")
            raise

    def progress(self) -> Progress:
        """What shows how far a long job is."""
        return Progress(quiet=self.quiet)


def complain(message: str, hint: str | None = None) -> None:
    """An error on standard error, as every command says it: one line, and one for the hint."""
    tell(f"error: {printable(message, 1000)}")
    if hint:
        tell(f"hint: {printable(hint, 1000)}")


def tell(text: str, end: str = "\n") -> None:
    """Text on standard error. What cannot be written there is lost: it costs no answer."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        abandon(sys.stderr)


def can_ask() -> bool:
    """Whether somebody sits at a terminal who can read a question and answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def abandon(stream: TextIO) -> None:
    """Let what could not be written to a stream go nowhere: the interpreter would try once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def shown(text: str) -> str:
    """`text` as standard output may have it: on a terminal, control characters escaped.

    A model's words could otherwise move the cursor or change the colours of the terminal.
    """
    return escaped(text) if sys.stdout.isatty() else text


def escaped(text: str) -> str:
    """`text` with escapes for what could move the cursor or reorder what is around it."""
    return "".join(ascii(c)[1:-1] if is_unprintable(c) and c not in "\n\t" else c for c in text)


def _plain(line: str) -> str:
    """The same JSON with what could steer a terminal as escapes; JSON itself escapes but a part."""
    if line.isprintable():
        return line
    return "".join(_json.dumps(c)[1:-1] if is_unprintable(c) else c for c in line)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """How far a job of several steps is, with an estimate, on standard error.

    A line that is redrawn on a terminal; elsewhere a line every few seconds; nothing if `quiet`.
    Call it with (step, done, total); it is a context manager that finishes the last line.
    `seconds` says how long each step took.
    """

    REDRAW, REPEAT = 0.1, 5.0  # seconds

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._step = ""
        self._open = False
        self._started = self._last = 0.0
        self._first = 0
        self._called = time.monotonic()
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._called
        self._called = now
        if not self._quiet:
            self._show(step, done, total, now)

    def _show(self, step: str, done: int, total: int, now: float) -> None:
        if step != self._step:
            self._finish_line()
            # What an interrupted run had finished before is no measure of speed.
            self._step, self._started, self._first, self._last = step, now, done, 0.0
            if not self._terminal:
                self._last = now
        pause = self.REDRAW if self._terminal else self.REPEAT
        if now - self._last < pause and done < total:
            return
        self._last = now
        line = f"  {step:<12} {_bar(done, total)} {done}/{total}  {self._time(done, total, now)}"
        if self._terminal:
            tell(f"\r\033[K{line}", end="")
            self._open = True
        else:
            tell(line.rstrip())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._finish_line()

    def _time(self, done: int, total: int, now: float) -> str:
        spent, steps = now - self._started, done - self._first
        if done >= total:
            return duration(spent)
        if spent < 1 or not steps:
            return ""
        return f"about {duration(spent / steps * (total - done))} left"

    def _finish_line(self) -> None:
        if self._open:
            tell("")
            self._open = False


def _bar(done: int, total: int, width: int = 20) -> str:
    filled = width * done // total if total else width
    return f"[{'#' * filled}{'.' * (width - filled)}]"
