"""`alignez run`: one answer, or one for each line of standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from alignez_edge.errors import BadInputError

from .answers import Answers, stdin_lines
from .groups import grouped
from .options import (
    DEFAULT_WIDTH,
    ContextOption,
    ModelOptions,
    ParallelOption,
    PromptOptions,
    SamplingOptions,
    SteeringOptions,
    at_least,
    check_fit,
    check_preamble,
)
from .output import Output, complain

if TYPE_CHECKING:
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
    from alignez_edge.runtime.session import Session

    at_least("--parallel", parallel, 1)
    if prompt is None and sys.stdin.isatty():
        raise BadInputError("no prompt given", 'try: alignez run "Tell me about bread."')
    if prompt is not None and not prompt.strip():
        raise BadInputError("the prompt is empty")
    steering, preamble = steered.load(loading), prompted.load()
    with loading.load(out) as model:
        check_fit(steering, model, out)
        check_preamble(preamble, model, ctx, out)
        answers, sampling = Answers(model, preamble, out), drawing.sampling(model)
        if prompt is not None:
            messages = preamble.before([{"role": "user", "content": prompt}])
            with Session(model, n_ctx=ctx) as session:
                answers.stream(session, prompt, messages, steering, sampling, [])
            return
        lines = _Lines(answers, sampling, ctx)
        _answer_lines(lines, steering, parallel)
    if lines.n_refused:
        raise typer.Exit(2)


class _Lines:
    """Standard input as requests, drawn as places in the batch become free.

    `waiting` holds (line, text of the prompt) of what is being answered, by index; None for a
    line that was refused and reported.
    """

    def __init__(self, answers: Answers, sampling: Sampling, n_ctx: int | None) -> None:
        self.answers = answers
        self.sampling = sampling
        self.n_ctx = n_ctx
        self.waiting: dict[int, tuple[str, str] | None] = {}
        self.n_refused = 0

    def requests(self) -> Iterator[Request]:
        """A request for each line that can be answered."""
        from alignez_edge.runtime.requests import Request
        from alignez_edge.runtime.window import check_fits, window

        model, preamble = self.answers.model, self.answers.preamble
        limit = window(model, self.n_ctx)
        for index, (number, line) in enumerate(stdin_lines()):
            try:
                if line is None:
                    raise BadInputError("it is not UTF-8 text")
                messages = preamble.before([{"role": "user", "content": line}])
                prompt = model.prompt(messages)
                check_fits(len(prompt.tokens), limit)
            except BadInputError as failure:
                complain(f"line {number}: {failure.message}", failure.hint)
                self.waiting[index] = None
                self.n_refused += 1
                continue
            self.waiting[index] = line, prompt.text
            sampling = self.sampling.with_seed(self.sampling.seed + index)
            yield Request(prompt.tokens, sampling, index)


def _answer_lines(lines: _Lines, steering: Steering, width: int) -> None:
    from alignez_edge.runtime.batch import generate_batch

    model, out = lines.answers.model, lines.answers.out
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
                lines.answers.record(*entry, steering, seed, answer)
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
