"""From messages to the prompt's text, and which parts of that text are the user's.

A chat template is an untrusted Jinja program: it runs in Jinja's immutable sandbox, in a
process with limits (`render_process.py`), and whatever it does becomes a text or one error. What
the user wrote must never turn into control tokens, so each message's content is rendered between
two marks (characters of a Unicode private plane that no text carries). They tell afterwards which
spans of the text are the template's own, and only in those the tokenizer looks for control tokens
(`Model.prompt`). A template that takes a content apart so that its marks are lost is rendered with
contents from which every control token's text is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from alignez_edge.chat.messages import Message, fold_system
from alignez_edge.chat.renderer import _Renderer
from alignez_edge.errors import AlignezError, ModelFileError

_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"
_MAX_TEMPLATE = 1 << 20


@dataclass(frozen=True)
class Span:
    """A part of a prompt. `trusted` parts come from the template and may hold control tokens."""

    text: str
    trusted: bool


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
        Raises `ModelFileError` if the template fails on any conversation, and `BadInputError`
        if it refuses this one.
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


def _marked(message: Message, strip: bool) -> Message:
    content = message["content"].strip() if strip else message["content"]
    for mark in (_OPEN, _CLOSE):
        content = content.replace(mark, "")
    return {**message, "content": f"{_OPEN}{content}{_CLOSE}" if content else content}


def _split(text: str) -> list[Span] | None:
    """Cut at the marks; None if they are not properly paired."""
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
