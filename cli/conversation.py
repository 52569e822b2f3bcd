"""The turns and the commands of a chat, without the terminal's line editing.

The model's window holds the newest turns: before each answer the oldest are dropped until the
prompt leaves room for one. What was said stays in the transcript.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.files.reading import is_there
from alignez_edge.files.writing import write_atomic

from .answers import Answers, steered_by
from .layout import compared, terminal_width
from .options import check_fit, load_steering

if TYPE_CHECKING:
    from alignez_edge.runtime.requests import Sampling
    from alignez_edge.runtime.session import Session
    from alignez_edge.runtime.weights import Prompt
    from alignez_edge.steering.steering import Steering

HELP = """\
/profile NAME[:S] ...  steer with these profiles; without a name: which are on
/strength S            set the strength of the profile that is on
/plain                 switch the steering off, and on again
/compare [TEXT]        plain and steered answers to TEXT or the last question
/reset                 forget the conversation
/save FILE             write the transcript to a file
/help                  this list
/quit                  leave"""


@dataclass(frozen=True)
class Turn:
    """A question with its answer, and what steered it."""

    question: str
    answer: str
    steered_by: str


class Conversation:
    """One chat: what was said, what steers it now, and the commands that change that."""

    def __init__(
        self, answers: Answers, session: Session, sampling: Sampling, steering: Steering
    ) -> None:
        self._answers = answers
        self._model, self._preamble, self._out = answers.model, answers.preamble, answers.out
        self._session = session
        self._sampling = sampling
        self._steering = steering
        self._is_plain = False
        self._turns: list[Turn] = []
        self._first_kept = 0
        self._n_asked = 0
        self._last: tuple[Prompt, Sampling] | None = None
        self._written: set[Path] = set()

    def take(self, line: str) -> bool:
        """Answer a question or follow a command; False if the chat is over.

        Raises `AlignezError` if that cannot be done; the conversation stays as it was.
        """
        if not line.startswith("/"):
            self._ask(line)
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "profile": self._profile,
            "strength": self._strength,
            "plain": self._plain,
            "compare": self._compare,
            "reset": self._reset,
            "save": self._save,
            "help": lambda rest: self._out.notice(HELP),
        }
        if name not in commands:
            raise BadInputError(f"there is no command /{name}", "/help lists them")
        commands[name](rest.strip())
        return True

    def steered_by(self) -> str:
        """What steers the answers now, in words."""
        return "plain" if self._is_plain else _words(self._steering)

    def _ask(self, question: str) -> None:
        sampling = self._sampling.with_seed(self._sampling.seed + self._n_asked)
        prompt = self._fitting(question)
        said: list[str] = []
        try:
            self._answers.stream(self._session, question, prompt, self._now(), sampling, said)
        except KeyboardInterrupt:
            # What was said before Ctrl-C has been said, and is what the next turn builds on.
            self._remember(question, prompt, sampling, said)
            raise
        self._remember(question, prompt, sampling, said)

    def _remember(self, question: str, prompt: Prompt, sampling: Sampling, said: list[str]) -> None:
        self._last = prompt, sampling
        self._n_asked += 1
        if answer := "".join(said).strip():
            self._turns.append(Turn(question, answer, self.steered_by()))

    def _now(self) -> Steering:
        from alignez_edge.steering.steering import Steering

        return Steering() if self._is_plain else self._steering

    def _fitting(self, question: str) -> Prompt:
        """What asks for the answer to `question` after the conversation so far, the oldest turns
        dropped where it is long.

        Raises `PromptTooLongError`, and drops nothing, if the question alone is too long.
        """
        from alignez_edge.runtime.window import check_fits

        window = self._session.n_ctx
        room = window - min(self._sampling.max_tokens, window // 2)
        first = self._first_kept
        while True:
            messages = self._preamble.before([])
            for turn in self._turns[first:]:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": turn.answer})
            messages.append({"role": "user", "content": question})
            prompt = self._model.prompt(messages)
            n_tokens = len(prompt.tokens)
            if first == len(self._turns) or n_tokens <= room:
                break
            first += 1
        check_fits(n_tokens, window)
        if first > self._first_kept:
            n = first - self._first_kept
            turns = "the oldest turn does" if n == 1 else f"the {n} oldest turns do"
            self._out.notice(f"({turns} not fit into the context any more and will be forgotten)")
            self._first_kept = first
        return prompt

    def _profile(self, rest: str) -> None:
        if rest:
            try:
                names = shlex.split(rest)
            except ValueError:
                raise BadInputError("a quotation mark is not closed") from None
            steering = load_steering(names, self._find, self._steering.way)
            check_fit(steering, self._model, self._out)
            self._steering, self._is_plain = steering, False
        self._out.notice(f"({self.steered_by()})")

    def _find(self, name: str) -> Path:
        from alignez_edge.profile.library import ProfileLibrary

        return ProfileLibrary().find(name, self._model.fingerprint)

    def _strength(self, rest: str) -> None:
        from alignez_edge.steering.steering import Steering

        terms = self._steering.terms
        if len(terms) != 1:
            what = "no profile is on" if not terms else "several profiles are on"
            raise BadInputError(what, "say /profile NAME:STRENGTH for each")
        if len(rest.split()) != 1:
            raise BadInputError("/strength takes one number", "say /strength 0.5")
        # A text that is no number is refused there, as nan is.
        steering = Steering(((terms[0][0], rest),), self._steering.way)  # type: ignore[arg-type]
        self._steering = steering
        self._is_plain = False
        self._out.notice(f"({self.steered_by()})")

    def _plain(self, rest: str) -> None:
        self._is_plain = not self._is_plain
        self._out.notice(f"({self.steered_by()})")

    def _compare(self, rest: str) -> None:
        from alignez_edge.steering.steering import Steering

        if not self._steering.terms:
            raise BadInputError("there is nothing to compare with", "say /profile NAME first")
        if rest:
            prompt, sampling = self._fitting(rest), self._sampling
        elif self._last is not None:
            prompt, sampling = self._last
        else:
            raise BadInputError("nothing was asked yet", "say /compare TEXT")
        sides = [("plain", Steering()), (_words(self._steering), self._steering)]
        texts = []
        for _, steering in sides:
            pieces = self._session.answer(prompt, steering=steering, sampling=sampling)
            texts.append("".join(pieces).strip())
        self._out.result(compared([title for title, _ in sides], texts, terminal_width()))
        for (_, steering), text in zip(sides, texts, strict=True):
            self._out.record({"compare": steering.describe(), "text": text})

    def _reset(self, rest: str) -> None:
        self._first_kept = len(self._turns)
        self._last = None
        self._out.notice("(the conversation is forgotten)")

    def _save(self, rest: str) -> None:
        if not rest:
            raise BadInputError("/save needs the name of a file")
        path = Path(rest).absolute()
        if is_there(path) and path not in self._written:
            raise BadInputError(f"{rest} exists already", "choose another name")
        blocks = [f"> {t.question}\n\n[{t.steered_by}]\n{t.answer}\n" for t in self._turns]
        write_atomic(path, "\n".join(blocks).encode())
        self._written.add(path)
        self._out.notice(f"(saved to {rest})")


def _words(steering: Steering) -> str:
    return f"steered by {steered_by(steering)}" if steering.terms else "plain"
