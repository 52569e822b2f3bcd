"""Messages of a conversation, and what they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable_name

Message = dict[str, str]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant", "content": str}`."""


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `BadInputError` unless `messages` is a conversation that can be answered."""
    if not messages:
        raise BadInputError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise BadInputError(
                "the conversation is not a list of messages",
                'a message is {"role": "user", "content": "..."}',
            )
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise BadInputError(
                f"message {i + 1} has the role '{printable_name(str(role))}'",
                "a role is system, user or assistant",
            )
        if not isinstance(content, str):
            raise BadInputError(f"message {i + 1} has no text as its content")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise BadInputError(f"message {i + 1} is not valid Unicode") from None


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
