"""The process that renders a chat template (`render_process.py`), as its parent sees it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Timer

from alignez_edge.errors import BadInputError, ModelFileError, RuntimeFailure
from alignez_edge.files.text import printable_name

_PATIENCE = 30.0
"""Seconds that a text may take by the clock, where the system cannot limit a process."""


class _Renderer:
    """The process that renders a template, begun when it is needed first and after it has ended."""

    def __init__(self, template: Mapping[str, str]) -> None:
        self._template = template
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def text(self, given: Mapping[str, object]) -> str:
        """What the template makes of a conversation; raises `BadInputError` if it refuses it
        and `ModelFileError` if it does not work."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = _begun()
                weakref.finalize(self, _end, process)
                self._ask(process, self._template)
                self._process = process
            return self._ask(process, given)

    def _ask(self, process: subprocess.Popen[str], given: Mapping[str, object]) -> str:
        assert process.stdin is not None and process.stdout is not None
        alarm = Timer(_PATIENCE, process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            process.stdin.write(json.dumps(given) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it has ended
            line = ""
        except BaseException:  # Ctrl-C: its answer would be taken for that to the next question
            _end(process)
            raise
        finally:
            alarm.cancel()
        answer: dict[str, str] = json.loads(line) if line.endswith("\n") else {}
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            shown = printable_name(answer["refused"], 120)
            raise BadInputError(f"the model's chat template refuses this conversation: {shown}")
        # One that has failed to compile, or has ended, is begun again.
        _end(process)
        shown = printable_name(answer.get("error", "it takes too much time or memory"), 160)
        raise ModelFileError(f"the model's chat template does not work ({shown})")


def _begun() -> subprocess.Popen[str]:
    program = Path(__file__).with_name("render_process.py")
    homes = {str(Path(str(find_spec(name).origin)).parents[1]) for name in ("jinja2", "markupsafe")}  # type: ignore[union-attr]
    try:
        return subprocess.Popen(
            # No site-packages but these: it begins in a third of the time.
            [sys.executable, "-I", "-S", str(program), *homes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for us
        )
    except OSError as failure:
        raise RuntimeFailure(f"cannot run the model's chat template: {failure.strerror}") from None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written is of no use
                pipe.close()
