"""Any program as a judge: JSON lines in, JSON lines out.

Each line in is one comparison (`query`, `first`, `second`, `axis`, `side`, `trait`, `facts`); each
line out is one verdict, in the same order: `{"preference": x}` with x from −1 (second) to 1
(first), or `{"winner": "first" | "second" | "tie"}`, and optionally `"scores": {aspect: [first's,
second's]}`. The program is started without a shell, and its input ends when all has been asked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.records import parse_record
from alignez_edge.files.text import printable
from alignez_edge.judges.judging import Comparison, Judgement
from alignez_edge.preferences.prompts import trait

TIMEOUT = 300.0
"""Seconds without a verdict after which a program counts as stuck."""
MAX_LINE = 1 << 20  # bytes
MAX_SCORES = 100
_LEAVE = 2.0  # seconds that a program has for leaving when it is told to
_WINNERS = {"first": 1.0, "second": -1.0, "tie": 0.0}


@dataclass(frozen=True)
class CommandJudge:
    """A program, asked in one order; `judge_of` wraps it so that it is asked in both."""

    name: str
    command: tuple[str, ...]
    timeout: float = TIMEOUT

    @classmethod
    def parse(cls, text: str, timeout: float = TIMEOUT) -> CommandJudge:
        """The judge of a command line, split as a shell does; raises `BadInputError`."""
        try:
            words = tuple(shlex.split(text))
        except ValueError as failure:
            raise BadInputError(
                f"the judge's command cannot be read: {str(failure).lower()}: {printable(text, 80)}"
            ) from None
        if not words:
            raise BadInputError("the judge's command is empty", "write command:PROGRAM ARGUMENTS")
        if "\0" in text or shutil.which(words[0]) is None:
            raise BadInputError(
                f"the judge's program {printable(words[0], 120)!r} was not found",
                "give its path, or a name on $PATH; scripts need to be executable",
            )
        if not (math.isfinite(timeout) and timeout > 0):
            raise BadInputError(f"a timeout of {timeout:g} seconds; it must be above 0")
        return cls(printable(shlex.join(words), 120), words, timeout)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Judgement]:
        """See `Judge`. Raises `AlignezError` if the program dies, stalls or says nonsense."""
        lines = [_line(asked) for asked in comparisons]
        if not lines:
            return
        program = _Program(self.command, lines)
        try:
            for number in range(1, len(lines) + 1):
                where = f"the judge {self.name}, line {number} of {len(lines)}"
                yield _verdict(program.next_line(where, self.timeout), where)
            program.expect_end(self.name, self.timeout)
        finally:
            program.end()


class _Program:
    """A running program that is fed by one thread and read by two.

    Neither side ever waits for the other, whatever the program buffers: a program that reads all
    its input before it writes anything is as good as one that answers line by line.
    """

    def __init__(self, command: Sequence[str], lines: Sequence[bytes]) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A group of its own, so that what the program started ends with it.
                start_new_session=True,
            )
        except OSError as failure:
            shown = printable(command[0], 120)
            raise BadInputError(
                f"cannot start the judge's program {shown}: {failure.strerror}",
                "a script needs a first line such as #!/usr/bin/env python3",
            ) from None
        process = self._process
        assert process.stdin and process.stdout and process.stderr
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._complaints: deque[bytes] = deque(maxlen=1)
        self._threads = [
            threading.Thread(target=target, args=arguments, daemon=True)
            for target, arguments in (
                (_feed, (process.stdin, lines)),
                (self._read, (process.stdout, len(lines))),
                (self._listen, (process.stderr,)),
            )
        ]
        for thread in self._threads:
            thread.start()

    def next_line(self, where: str, timeout: float) -> bytes:
        """The next line that is not blank; raises `AlignezError` if none comes."""
        try:
            line = self._said.get(timeout=timeout)
        except queue.Empty:
            raise AlignezError(
                f"{where}: no verdict within {timeout:g} seconds",
                "let the program write each line at once, or wait longer (--judge-timeout)",
            ) from None
        if line is None:
            raise AlignezError(f"{where}: {self._how_it_ended()}")
        if len(line) > MAX_LINE:
            raise AlignezError(f"{where}: a line of more than {MAX_LINE:,} bytes")
        return line

    def expect_end(self, name: str, timeout: float) -> None:
        """Raise `AlignezError` if the program says more than it was asked."""
        try:
            line = self._said.get(timeout=min(timeout, _LEAVE))
        except queue.Empty:
            return  # it has answered all; that it stays is its own affair, and ended below
        if line is not None:
            raise AlignezError(
                f"the judge {name} wrote more lines than it was asked for: {_shown(line)}",
                "it must write one verdict for each line that it reads",
            )

    def end(self) -> None:
        """End the program with everything that it started; a second call does nothing."""
        process = self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.poll() is None:
                self._stop(now=False)
                process.wait(_LEAVE)
        self._stop(now=True)
        process.wait()
        for thread in self._threads:
            thread.join(_LEAVE)

    def _stop(self, *, now: bool) -> None:
        """Ask the program's group to leave, or end it; on Windows the program alone."""
        if sys.platform == "win32":
            self._process.kill()
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL if now else signal.SIGTERM)

    def _read(self, pipe: IO[bytes], n_asked: int) -> None:
        with pipe:
            n_left = n_asked + 1  # one more is enough to know that there are too many
            while n_left and (line := pipe.readline(MAX_LINE + 1)):
                if line.strip():
                    self._said.put(line)
                    n_left -= 1
        self._said.put(None)

    def _listen(self, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(MAX_LINE):
                if line.strip():
                    self._complaints.append(line)

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE)
        self._threads[2].join(_LEAVE)
        code = self._process.poll()
        if code is None:
            how = "the program closed its output"
        elif code < 0:
            how = f"the program was killed by signal {-code}"
        else:
            how = f"the program ended with exit code {code}"
        said = f": {_shown(self._complaints[0])}" if self._complaints else ""
        return f"{how} before its verdict{said}"


def _feed(pipe: IO[bytes], lines: Sequence[bytes]) -> None:
    # A program that has ended, or been ended, takes no more: its reader says so.
    with contextlib.suppress(OSError), pipe:
        for line in lines:
            pipe.write(line)
            pipe.flush()


def _line(asked: Comparison) -> bytes:
    values = {
        "query": asked.query,
        "first": asked.first,
        "second": asked.second,
        "axis": asked.axis.name,
        "side": asked.side,
        "trait": trait(asked.axis, asked.side),
        "facts": dict(asked.facts),
    }
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _verdict(line: bytes, where: str) -> Judgement:
    try:
        record = parse_record(line.decode("utf-8"), where)
    except UnicodeDecodeError:
        raise AlignezError(f"{where}: not UTF-8 text: {_shown(line)}") from None
    except BadInputError as failure:
        raise AlignezError(f"{failure.message}: {_shown(line)}") from None
    if "preference" in record:
        preference = _number(record["preference"], f"{where}: preference")
        if not -1 <= preference <= 1:
            raise AlignezError(f"{where}: preference is {preference:g}; it goes from -1 to 1")
    elif (winner := record.get("winner")) in tuple(_WINNERS):
        preference = _WINNERS[str(winner)]
    elif "winner" in record:
        raise AlignezError(
            f"{where}: the winner is {printable(str(winner), 40)!r}",
            f"it must be {', '.join(_WINNERS)}",
        )
    else:
        raise AlignezError(f"{where}: neither 'preference' nor 'winner': {_shown(line)}")
    return Judgement(preference, _scores(record.get("scores", {}), where))


def _scores(value: object, where: str) -> dict[str, tuple[float, float]]:
    if not isinstance(value, dict) or len(value) > MAX_SCORES:
        raise AlignezError(f"{where}: scores must be an object of at most {MAX_SCORES} aspects")
    scores = {}
    for aspect, pair in value.items():
        named = f"{where}: score {printable(aspect, 40)!r}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise AlignezError(f"{named} must be two numbers, the first answer's and the second's")
        scores[printable(aspect, 64)] = (_number(pair[0], named), _number(pair[1], named))
    return scores


def _number(value: object, what: str) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        with contextlib.suppress(OverflowError):  # a whole number beyond all floats
            if math.isfinite(number := float(value)):
                return number
    raise AlignezError(f"{what} must be a number")


def _shown(line: bytes) -> str:
    return printable(line.decode("utf-8", "replace").strip(), 120)
