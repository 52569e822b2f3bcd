"""`alignez chat`: a conversation at a terminal, or line by line from a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from alignez_edge.errors import AlignezError
from alignez_edge.files.text import printable

from .answers import Answers, stdin_lines
from .conversation import Conversation
from .groups import grouped
from .options import (
    ContextOption,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    SteeringOptions,
    check_fit,
    check_preamble,
)
from .output import Output, complain

PROMPT = "> "


@grouped
def chat(
    *,
    loading: ModelOptions,
    steered: SteeringOptions,
    prompted: PromptOptions,
    drawing: SamplingOptions,
    ctx: ContextOption = None,
    out: Output,
) -> None:
    """Talk with a model; /help lists what can be changed on the way.

    Ctrl-C ends an answer, at the prompt it ends the chat. Turn number i is drawn with the seed
    --seed + i, counted from 0.
    """
    from alignez_edge.calibration.verdict import Verdict
    from alignez_edge.runtime.session import Session

    steering, preamble = steered.load(loading), prompted.load()
    with loading.load(out) as model, Session(model, n_ctx=ctx) as session:
        check_fit(steering, model, out)
        check_preamble(preamble, model, ctx, out)
        for profile, _ in steering.terms:
            found = Verdict.of(profile)
            if found is not None and not found.works:
                out.notice(f"{printable(profile.name)}: {found}")
        answers = Answers(model, preamble, out)
        conversation = Conversation(answers, session, drawing.sampling(model), steering)
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if terminal:
            out.notice(f"{model.facts.name}, {conversation.steered_by()}; /help lists commands")
        for line in _typed() if terminal else _piped():
            try:
                if not conversation.take(line):
                    break
            except AlignezError as failure:
                complain(failure.message, failure.hint)
            except KeyboardInterrupt:
                if not terminal:
                    raise
                out.notice("(interrupted)")


def _typed() -> Iterator[str]:
    """Lines from the keyboard, with a history where the system has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it is what gives `input` its history)
    while True:
        try:
            line = input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line:
            yield line


def _piped() -> Iterator[str]:
    for number, line in stdin_lines():
        if line is None:
            complain(f"line {number}: it is not UTF-8 text")
        else:
            yield line
