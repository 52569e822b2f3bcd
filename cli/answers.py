"""Answers as commands give them: streamed to a person, or one JSON object each; lines of a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .output import Output, shown

if TYPE_CHECKING:
    from alignez_edge.chat.messages import Message
    from alignez_edge.chat.preamble import Preamble
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Completion, Sampling
    from alignez_edge.runtime.session import Session
    from alignez_edge.runtime.weights import Prompt
    from alignez_edge.steering.steering import Steering


@dataclass(frozen=True)
class Answers:
    """How the answers of a model are given, all after the same preamble."""

    model: Model
    preamble: Preamble
    out: Output

    def stream(
        self,
        session: Session,
        asked: str,
        turns: Sequence[Message] | Prompt,
        steering: Steering,
        sampling: Sampling,
        said: list[str],
    ) -> None:
        """Answer what was `asked` last in these messages, or the prompt made of them, piece by
        piece.

        What has been given is in `said`, even where it is cut short.
        """
        pieces = session.answer(turns, steering=steering, sampling=sampling)
        try:
            for piece in _unindented(pieces):
                said.append(piece)
                if not self.out.json:
                    print(shown(piece), end="", flush=True)
        finally:
            self.out.result()
        assert session.completion is not None and session.prompt is not None
        self.record(asked, session.prompt.text, steering, sampling.seed, session.completion)

    def record(
        self, asked: str, prompt_text: str, steering: Steering, seed: int, answer: Completion
    ) -> None:
        """One answer as `--json` says it."""
        speed = len(answer.tokens) / answer.seconds if answer.seconds else 0.0
        self.out.record(
            {
                "prompt": asked,
                "prompt_text": prompt_text,
                "text": answer.text.strip(),
                "model": self.model.path.name,
                **({"lora": self.model.describe_lora()} if self.model.lora else {}),
                "steering": steering.describe(),
                **({"system": self.preamble.name} if self.preamble.messages else {}),
                "seed": seed,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": len(answer.tokens),
                "tokens_per_second": round(speed, 1),
                "finish_reason": answer.finish_reason,
            }
        )


def steered_by(steering: Steering) -> str:
    """The profiles of a steering, each with its strength, in words; '' for none."""
    return ", ".join(f"{t['profile']} {t['strength']:+g}" for t in steering.describe())


def stdin_lines() -> Iterator[tuple[int, str | None]]:
    """The lines of standard input that are not blank, with their numbers; None if not UTF-8."""
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            yield number, None
        else:
            if line:
                yield number, line


def _unindented(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of an answer without the blanks that it begins with."""
    begun = False
    for piece in pieces:
        text = piece if begun else piece.lstrip()
        if text:
            begun = True
            yield text
