"""The model's own answers to requests, in one step or in two, many at once.

In two steps (AlignEZ, section 2.1) the model first describes how each side would answer, then
answers under each description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis, Side
from alignez_edge.preferences.prompts import SIDES
from alignez_edge.preferences.requests import RequestForm, RequestText
from alignez_edge.repeatable import derive_seed

DESCRIPTION_TOKENS = 96
Task = tuple[str, RequestForm]
"""A query, and the form in which both sides are asked for."""


class Complete(Protocol):
    """Answers many requests at once: (index, text, whether the model ended it by itself) as they
    finish, in any order."""

    def __call__(
        self, requests: Sequence[RequestText], seeds: Sequence[int], max_tokens: Sequence[int]
    ) -> Iterator[tuple[int, str, bool]]: ...


@dataclass(frozen=True)
class Written:
    """An answer as the model wrote it, and the request that it answers.

    Where the first of two steps gave no characteristics, the request is that first one, the text
    empty and `described` false.
    """

    request: RequestText
    text: str = ""
    ended: bool = False
    described: bool = True


def n_completions(form: RequestForm, axis: Axis) -> int:
    """Texts that the model writes for a pair of this form."""
    return sum(2 if _describes(form, axis, side) else 1 for side in SIDES)


def write_answers(
    complete: Complete,
    axis: Axis,
    tasks: Sequence[Task],
    *,
    chat: bool,
    seed: int,
    max_tokens: int,
    tick: Callable[[], None] = lambda: None,
) -> list[tuple[Written, Written]]:
    """Both sides' answers for each task; `tick` is called for each of its `n_completions`.

    `chat` says whether the model has a chat template. Every seed is derived from `seed`, the query,
    the side and the step, so that it does not depend on what else is asked; requests that are alike
    are answered once.
    """
    jobs = [(query, form, side) for query, form in tasks for side in SIDES]
    first = [form.request(query, axis, side, chat=chat) for query, form, side in jobs]
    described = [_describes(form, axis, side) for _, form, side in jobs]

    def run(step: str, asked: dict[int, RequestText], limits: dict[int, int]) -> list[Written]:
        """The answers to `asked`, by job, in order."""
        unlike: dict[tuple[RequestText, int, int], list[int]] = {}
        for job, request in asked.items():
            query, _, side = jobs[job]
            name = "describe" if step == "first" and described[job] else "answer"
            own = derive_seed(seed, query, side, name)
            unlike.setdefault((request, own, limits[job]), []).append(job)
        found: dict[int, Written] = {}
        columns = [list(column) for column in zip(*unlike, strict=True)]
        for index, text, ended in complete(*columns) if columns else ():
            for job in list(unlike.values())[index]:
                found[job] = Written(asked[job], text, ended)
                tick()
        return [found.get(job, Written(asked[job])) for job in asked]

    everything = dict(enumerate(first))
    limits = {n: DESCRIPTION_TOKENS if described[n] else max_tokens for n in everything}
    written = run("first", everything, limits)
    items = {n: prompts.parse_characteristics(written[n].text) for n in everything if described[n]}
    # A query whose one side was not described makes no pair: neither side is answered.
    usable = {n for n in items if items[n] and items.get(n ^ 1, [""])}
    for n in items:
        if n not in usable:
            written[n] = Written(first[n], described=False)
            tick()
    second = {n: RequestText(prompts.answer(jobs[n][0], items[n])) for n in sorted(usable)}
    answers = run("second", second, dict.fromkeys(second, max_tokens))
    for n, answer in zip(second, answers, strict=True):
        written[n] = answer
    return list(zip(written[::2], written[1::2], strict=True))


def _describes(form: RequestForm, axis: Axis, side: Side) -> bool:
    """Whether a side is described first."""
    return form.two_steps and not prompts.is_plain(axis, side)
