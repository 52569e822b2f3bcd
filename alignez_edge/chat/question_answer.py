"""The prompt form of models without a chat template: questions and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignez_edge.chat.messages import Message

QUESTION_STOPS = ("\nQuestion:",)
"""What ends an answer in the question/answer form: the model going on to ask itself."""


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
