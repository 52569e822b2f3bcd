"""From messages to the prompt's text, and which parts of that text are the user's.

A chat template is a Jinja program from a stranger: it runs in Jinja's immutable sandbox, in a
process with limits (`rendering.py`), and whatever it does becomes a text or one error. What the
user wrote must never turn into control tokens, so each message's content is rendered between two
marks (characters of a Unicode private plane that no text carries). The marks tell afterwards which
spans of the text are the template's own, and only in those the tokenizer looks for control tokens
(`Model.prompt`). A template that takes a content apart so that its marks are lost is rendered with
contents from which every control token's text is removed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from threading import Lock, Timer

from alignez_edge.errors import AlignezError, BadInputError, ModelFileError, RuntimeFailure
from alignez_edge.files.gguffile import printable
from alignez_edge.runtime.requests import Message

_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"
_MAX_TEMPLATE = 1 << 20
_PATIENCE = 30.0
"""Seconds that a text may take by the clock, where the system cannot limit a process."""
QUESTION_STOPS = ("\nQuestion:",)
"""What ends an answer in the question/answer form: the model going on to ask itself."""


@dataclass(frozen=True)
class Span:
    """A part of a prompt. `trusted` parts come from the template and may hold control tokens."""

    text: str
    trusted: bool


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `BadInputError` unless `messages` is a conversation that can be answered."""
    if not messages:
        raise BadInputError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise BadInputError(
                "the conversation is no list of messages",
                'a message is {"role": "user", "content": "..."}',
            )
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise BadInputError(
                f"message {i + 1} has the role '{printable(str(role))}'",
                "a role is system, user or assistant",
            )
        if not isinstance(content, str):
            raise BadInputError(f"message {i + 1} has no text as its content")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise BadInputError(f"message {i + 1} is not valid Unicode") from None


def question_answer(messages: Sequence[Message]) -> str:
    """The form for models without a template: `Question: …` and `Answer:`, a blank line between."""
    forms = {"system": "{}", "user": "Question: {}", "assistant": "Answer: {}"}
    messages = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    return (
        "\n\n".join(
            # The cue to answer stands right below the last question, as an answer does.
            "\n".join(forms[m["role"]].format(m["content"].strip()) for m in turn)
            for turn in _turns(messages)
        )
        + "\nAnswer:"
    )


def _turns(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Questions each with the answer that follows, other messages alone."""
    turn: list[Message] = []
    for message in messages:
        if turn and not (turn[-1]["role"] == "user" and message["role"] == "assistant"):
            yield turn
            turn = []
        turn.append(message)
    yield turn


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The system texts put in front of the first user message, as paragraphs of it."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = [dict(m) for m in messages if m["role"] != "system"]
    first = next((m for m in rest if m["role"] == "user"), None)
    if first is None:
        first = {"role": "user", "content": ""}
        rest.insert(0, first)
    first["content"] = "\n\n".join([*system, first["content"]]).strip()
    return rest


class ChatTemplate:
    """A model's chat template. Raises `ModelFileError` for one of absurd length.

    `controls` gives the texts of all control tokens; it is asked only where marks are lost.
    """

    def __init__(
        self, source: str, bos: str, eos: str, controls: Callable[[], Sequence[str]]
    ) -> None:
        if len(source) > _MAX_TEMPLATE:
            raise ModelFileError(f"the model's chat template has {len(source)} characters")
        self._controls = controls
        self._renderer = _Renderer({"source": source, "bos": bos, "eos": eos})

    def spans(self, messages: Sequence[Message]) -> list[Span]:
        """The prompt that asks for the answer to `messages`, in spans.

        A system message that the template refuses or ignores is folded into the first user turn.
        Raises `ModelFileError` where the template fails on any conversation, and `BadInputError`
        where it refuses this one.
        """
        if not any(m["role"] == "system" and m["content"].strip() for m in messages):
            return self._safely([m for m in messages if m["role"] != "system"])
        try:
            spans = self._safely(messages)
        except AlignezError:
            return self._safely(fold_system(messages))
        shown = "".join(span.text for span in spans)
        texts = (m["content"].strip() for m in messages if m["role"] == "system")
        return spans if all(t in shown for t in texts) else self._safely(fold_system(messages))

    def _safely(self, messages: Sequence[Message]) -> list[Span]:
        plain = self._render(messages)
        # A template may trim what it is given: marks would keep the spaces, so try both.
        for strip in (False, True):
            marked = [_marked(m, strip) for m in messages]
            try:
                spans = _split(self._render(marked))
            except AlignezError:
                continue
            if spans is not None and "".join(s.text for s in spans) == plain:
                return spans
        return [Span(self._render([self._cleaned(m) for m in messages]), True)]

    def _cleaned(self, message: Message) -> Message:
        content, before = message["content"], None
        while content != before:  # taking one out may join the parts of another
            before = content
            for control in self._controls():
                content = content.replace(control, "")
        return {**message, "content": content}

    def _render(self, messages: Sequence[Message]) -> str:
        return self._renderer.text({"messages": list(messages)})


class _Renderer:
    """The process that renders a template, begun when it is needed first and after it has ended."""

    def __init__(self, template: Mapping[str, str]) -> None:
        self._template = template
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def text(self, given: Mapping[str, object]) -> str:
        """What the template makes of a conversation; raises `BadInputError` where it refuses it
        and `ModelFileError` where it does not work."""
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
            shown = printable(answer["refused"], 120)
            raise BadInputError(f"the model's chat template refuses this conversation: {shown}")
        # One that has failed to compile, or has ended, is begun again.
        _end(process)
        shown = printable(answer.get("error", "it takes too much time or memory"), 160)
        raise ModelFileError(f"the model's chat template does not work ({shown})")


def _begun() -> subprocess.Popen[str]:
    program = Path(__file__).with_name("rendering.py")
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


def _marked(message: Message, strip: bool) -> Message:
    content = message["content"].strip() if strip else message["content"]
    for mark in (_OPEN, _CLOSE):
        content = content.replace(mark, "")
    return {**message, "content": f"{_OPEN}{content}{_CLOSE}" if content else content}


def _split(text: str) -> list[Span] | None:
    """Cut at the marks; None where they are not properly paired."""
    spans: list[Span] = []
    inside = False
    for mark, run in groupby(text, lambda c: c if c in (_OPEN, _CLOSE) else ""):
        part = "".join(run)
        if not mark:
            spans.append(Span(part, trusted=not inside))
        elif len(part) > 1 or inside == (mark == _OPEN):
            return None
        else:
            inside = mark == _OPEN
    return None if inside else spans
