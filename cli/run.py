"""`alignez run`: one answer, or one for each line of standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import BadInputError

from .options import (
    DEFAULT_WIDTH,
    ContextOption,
    ModelOptions,
    ParallelOption,
    PromptOptions,
    SamplingOptions,
    SteeringOptions,
    check_fit,
    check_preamble,
    check_width,
    grouped,
)
from .output import Output, complain, shown

if TYPE_CHECKING:
    from alignez_edge.chat.preamble import Preamble
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Completion, Request, Sampling
    from alignez_edge.steering.steering import Steering


@grouped
def run(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to ask; without it, each line of standard input is a prompt.",
        ),
    ] = None,
    *,
    loading: ModelOptions,
    steered: SteeringOptions,
    prompted: PromptOptions,
    drawing: SamplingOptions,
    ctx: ContextOption = None,
    parallel: ParallelOption = DEFAULT_WIDTH,
    out: Output,
) -> None:
    """Answer a prompt, or each line of standard input.

    Answers to lines come in the order of the lines, each on one line of its own; prompt number i
    is drawn with the seed --seed + i, counted from 0. Empty lines are skipped. A line that cannot
    be answered is reported, the others are answered, and the exit code is 2.
    """
    check_width(parallel)
    if prompt is None and sys.stdin.isatty():
        raise BadInputError("there is nothing to answer", 'try: alignez run "Tell me about bread."')
    if prompt is not None and not prompt.strip():
        raise BadInputError("the prompt is empty")
    steering, preamble = steered.load(loading), prompted.load()
    with loading.load(out) as model:
        check_fit(steering, model, out)
        check_preamble(preamble, model, ctx, out)
        sampling = drawing.sampling(model)
        if prompt is not None:
            _answer_one(model, steering, preamble, sampling, prompt, ctx, out)
            return
        lines = _Lines(model, preamble, sampling, ctx)
        _answer_lines(lines, steering, parallel, out)
    if lines.n_refused:
        raise typer.Exit(2)


def answer_record(
    model: Model,
    steering: Steering,
    preamble: Preamble,
    asked: str,
    prompt_text: str,
    seed: int,
    answer: Completion,
) -> dict[str, Any]:
    """One answer as `--json` says it."""
    speed = len(answer.tokens) / answer.seconds if answer.seconds else 0.0
    return {
        "prompt": asked,
        "prompt_text": prompt_text,
        "text": answer.text.strip(),
        "model": model.path.name,
        **({"lora": model.describe_lora()} if model.lora else {}),
        "steering": steering.describe(),
        **({"system": preamble.name} if preamble.messages else {}),
        "seed": seed,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.tokens),
        "tokens_per_second": round(speed, 1),
        "finish_reason": answer.finish_reason,
    }


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


def _answer_one(
    model: Model,
    steering: Steering,
    preamble: Preamble,
    sampling: Sampling,
    asked: str,
    n_ctx: int | None,
    out: Output,
) -> None:
    from alignez_edge.runtime.session import Session

    messages = preamble.before([{"role": "user", "content": asked}])
    with Session(model, n_ctx=n_ctx) as session:
        pieces = session.answer(messages, steering=steering, sampling=sampling)
        try:
            for piece in unindented(pieces):
                if not out.json:
                    print(shown(piece), end="", flush=True)
        finally:
            out.result()
        assert session.completion is not None and session.prompt is not None
        text, answer = session.prompt.text, session.completion
        out.record(answer_record(model, steering, preamble, asked, text, sampling.seed, answer))


def unindented(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of an answer without the blanks that it begins with."""
    begun = False
    for piece in pieces:
        text = piece if begun else piece.lstrip()
        if text:
            begun = True
            yield text


class _Lines:
    """Standard input as requests, drawn as places in the batch become free.

    `waiting` holds (line, text of the prompt) of what is being answered, by index; None for a
    line that was refused and reported.
    """

    def __init__(
        self, model: Model, preamble: Preamble, sampling: Sampling, n_ctx: int | None
    ) -> None:
        self.model = model
        self.preamble = preamble
        self.sampling = sampling
        self.n_ctx = n_ctx
        self.waiting: dict[int, tuple[str, str] | None] = {}
        self.n_refused = 0

    def requests(self) -> Iterator[Request]:
        """A request for each line that can be answered."""
        from alignez_edge.runtime.requests import Request
        from alignez_edge.runtime.window import check_fits, window

        limit = window(self.model, self.n_ctx)
        for index, (number, line) in enumerate(stdin_lines()):
            try:
                if line is None:
                    raise BadInputError("it is not UTF-8 text")
                messages = self.preamble.before([{"role": "user", "content": line}])
                prompt = self.model.prompt(messages)
                check_fits(len(prompt.tokens), limit)
            except BadInputError as failure:
                complain(f"line {number}: {failure.message}", failure.hint)
                self.waiting[index] = None
                self.n_refused += 1
                continue
            self.waiting[index] = line, prompt.text
            sampling = self.sampling.with_seed(self.sampling.seed + index)
            yield Request(prompt.tokens, sampling, index)


def _answer_lines(lines: _Lines, steering: Steering, width: int, out: Output) -> None:
    from alignez_edge.runtime.batch import generate_batch

    model = lines.model
    finished: dict[int, Completion] = {}
    following = 0

    def print_ready() -> None:
        nonlocal following
        while following in finished or lines.waiting.get(following, ()) is None:
            entry = lines.waiting.pop(following)
            if entry is None:
                out.result()
            else:
                answer = finished.pop(following)
                out.result(" ".join(answer.text.split()))
                seed = lines.sampling.seed + following
                out.record(answer_record(model, steering, lines.preamble, *entry, seed, answer))
            following += 1

    answers = generate_batch(
        model,
        lines.requests(),
        injection=steering.injection(model),
        width=width,
        n_ctx_per_sequence=lines.n_ctx,
    )
    with closing(answers):  # type: ignore[type-var]
        for answer in answers:
            finished[answer.index] = answer
            print_ready()
    print_ready()
    if not following:
        raise BadInputError("standard input holds no prompt", "write one prompt a line")
