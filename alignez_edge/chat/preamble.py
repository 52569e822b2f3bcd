"""What stands before every conversation: a system prompt of the user's, or the built-in preamble.

Steering and prompting can then be compared, and used together. `URIAL` is for base models: a short
instruction and three questions with model answers, which a base model goes on in the style of. The
idea, and that so few examples are enough, are those of Lin et al. 2023, *The Unlocking Spell on
Base LLMs: Rethinking Alignment via In-Context Learning* (one question of knowledge, one that asks
for advice, one that must be declined); instruction and examples here are our own.

Both are messages, so a model's own prompt form writes them: `Model.prompt`. Whether one
has room in a model is told by `runtime/window.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.files.reading import read_text
from alignez_edge.files.text import printable

if TYPE_CHECKING:
    from alignez_edge.chat.messages import Message

MAX_FILE = 256 << 10
"""Bytes of a system prompt: some 60,000 tokens, more than any model here is given as a context."""


@dataclass(frozen=True)
class Preamble:
    """The messages that every conversation begins with, and what they are called; none by default.

    `name` is that of the file without its folder, or of the built-in preamble.
    """

    name: str = ""
    messages: tuple[Message, ...] = ()

    @classmethod
    def find(cls, name_or_file: str) -> Preamble:
        """The built-in preamble of this name, else `read` of the file."""
        return BUILTIN[name_or_file] if name_or_file in BUILTIN else cls.read(name_or_file)

    @classmethod
    def read(cls, path: str | Path) -> Preamble:
        """The text of a UTF-8 file of at most `MAX_FILE` bytes as a system prompt.

        Raises `BadInputError` if there is none, or if it is empty.
        """
        try:
            text = read_text(path, limit=MAX_FILE, what="system prompt").strip()
        except BadInputError as failure:
            hint = failure.hint or f"give a text file, or one of: {', '.join(BUILTIN)}"
            raise BadInputError(failure.message, hint) from None
        shown = printable(str(path))
        if not text:
            raise BadInputError(f"the system prompt {shown} is empty")
        if "\0" in text:
            raise BadInputError(f"the system prompt {shown} holds a NUL character")
        return cls(Path(path).name, ({"role": "system", "content": text},))

    def before(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation `messages` with this in front."""
        return [*self.messages, *messages]


def _urial() -> Preamble:
    instruction = (
        "Below are questions from users and the replies of an assistant. The assistant answers"
        " what was asked, directly and in plain words. It is friendly and respectful, gives useful"
        " detail in a clear order, says so when it is not sure, and declines to help with what"
        " would harm somebody."
    )
    examples = (
        (
            "Why do leaves change colour in autumn?",
            "It is a nice question, and the answer is mostly about what disappears.\n\n"
            "1. In summer a leaf is full of chlorophyll, the green pigment that catches light.\n"
            "2. As days get shorter and colder, the tree stops making chlorophyll and takes back"
            " what it can use. The green fades.\n"
            "3. Yellow and orange pigments were there all along and can now be seen. Some trees,"
            " such as maples, also make red ones in autumn.\n\n"
            "Sunny days with cool nights usually give the brightest colours.",
        ),
        (
            "I have to give a talk next week and I am very nervous. What can I do?",
            "Most people feel that way before a talk, so you are in good company. A few things"
            " help:\n\n"
            "- Write down the one thing that your listeners should remember, and build the talk"
            " around it.\n"
            "- Practise aloud three or four times, once in front of a friend.\n"
            "- Learn the first two sentences by heart; the start is the hardest part.\n"
            "- On the day, arrive early, breathe out slowly, and speak to one friendly face at a"
            " time.\n\n"
            "If you tell me what the talk is about, I can help you with an outline.",
        ),
        (
            "How can I read my flatmate's messages without her noticing?",
            "I am sorry, but I cannot help with that: reading somebody's messages in secret breaks"
            " her trust, and in many places the law. If something worries you, it is better to ask"
            " her openly at a quiet moment. I would be glad to help you find the words for that.",
        ),
    )
    messages: list[Message] = [{"role": "system", "content": instruction}]
    for question, answer in examples:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return Preamble("urial", tuple(messages))


URIAL = _urial()
BUILTIN = {preamble.name: preamble for preamble in (URIAL,)}
