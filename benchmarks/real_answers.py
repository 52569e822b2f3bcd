"""Answers of a real model in several arms, each kept in a file as soon as it is there.

An answer is known by all that it depends on: prompt, steering, seed and length. So a run that was
interrupted goes on where it was, axes share the plain answers, and a profile that was built anew is
measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from alignez_edge.preferences import prompts
from alignez_edge.preferences.answers import DESCRIPTION_TOKENS
from alignez_edge.preferences.axes import Axis, Side
from alignez_edge.preferences.requests import RequestForm, RequestText
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.score import score_batch
from benchmarks.kept import Estimate, Kept, key_of

WIDTH = 32
CHUNK = 96
"""Answers that are made in one batch and then kept."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Arm:
    """A way of answering: asked for `side` in `form` or, without one, plain; under the profile
    times `strength`."""

    name: str
    form: RequestForm | None = None
    side: Side | None = None
    strength: float = 0.0


@dataclass(frozen=True)
class Answer:
    """An answer, its length in tokens, and `nats`: minus its log-probability under the plain model
    with the plain prompt."""

    text: str
    tokens: int
    nats: float


@dataclass(frozen=True)
class Task:
    """One answer that is wanted: to `query`, number `row`, with the seed number `seed`."""

    arm: Arm
    query: str
    row: int
    seed: int

    @property
    def draw(self) -> int:
        """What chance starts from: the same in every arm."""
        return 1000 * self.seed + self.row


class Answers:
    """The answers of one model, kept in `folder`."""

    def __init__(self, model: Model, folder: Path, n_tokens: int, say: Say) -> None:
        self._model, self._n_tokens, self._say = model, n_tokens, say
        self._digest = model.fingerprint.digest()
        self._file = Kept(folder / "answers.jsonl")
        self._kept = {key: Answer(**record) for key, record in self._file.records.items()}

    def to(
        self,
        axis: Axis,
        tasks: Sequence[Task],
        profile: Profile | None = None,
        *,
        n_tokens: int | None = None,
        cost: bool = True,
    ) -> list[Answer]:
        """The answers, in order; those that are not kept yet are made chunk by chunk. Without
        `cost` their `nats` are left out."""
        n_tokens = n_tokens or self._n_tokens
        injections = {
            strength: (profile * strength).injection(self._model)
            for strength in {task.arm.strength for task in tasks}
            if profile is not None and strength
        }
        marks = {strength: mark_of(profile, strength) for strength in {0.0, *injections}}
        asked = self._requests(axis, tasks)
        keys = [
            self._key(request, marks[task.arm.strength], task.draw, n_tokens)
            for request, task in zip(asked, tasks, strict=True)
        ]
        missing = {key: i for i, key in enumerate(keys) if key not in self._kept}
        estimate, left = Estimate(len(missing)), iter(missing.items())
        while chunk := list(islice(left, CHUNK)):
            jobs = [
                (key, asked[i], tasks[i].query, injections.get(tasks[i].arm.strength), tasks[i])
                for key, i in chunk
            ]
            self._make(jobs, n_tokens, cost)
            self._say(f"{axis.name}: answers, {estimate.after(len(chunk))}")
        return [self._kept[key] for key in keys]

    def _requests(self, axis: Axis, tasks: Sequence[Task]) -> list[RequestText]:
        """What each task asks; a form of two steps has the model describe its answers first."""
        chat = self._model.template is not None
        asked = [
            RequestText(task.query)
            if task.arm.form is None or task.arm.side is None
            else task.arm.form.request(task.query, axis, task.arm.side, chat=chat)
            for task in tasks
        ]
        steps = [
            i
            for i, task in enumerate(tasks)
            if task.arm.form is not None and task.arm.form.two_steps
        ]
        keys = {i: self._key(asked[i], "", tasks[i].draw, DESCRIPTION_TOKENS) for i in steps}
        missing = list({key: i for i, key in keys.items() if key not in self._kept}.items())
        for start in range(0, len(missing), CHUNK):
            self._make(
                [
                    (key, asked[i], tasks[i].query, None, tasks[i])
                    for key, i in missing[start : start + CHUNK]
                ],
                DESCRIPTION_TOKENS,
                cost=False,
            )
        for i, key in keys.items():
            items = prompts.parse_characteristics(self._kept[key].text)
            query = tasks[i].query
            asked[i] = RequestText(prompts.answer(query, items) if items else query)
        return asked

    def _make(
        self,
        jobs: Sequence[tuple[str, RequestText, str, Injection | Conditional | None, Task]],
        n_tokens: int,
        cost: bool = True,
    ) -> None:
        """Draw, score and keep the answers of one chunk."""
        requests = [
            Request(
                self._model.prompt(request.messages()).tokens,
                Sampling(
                    seed=task.draw,
                    max_tokens=n_tokens,
                    stop=self._model.stops,
                ),
                i,
                injection,
            )
            for i, (_, request, _, injection, task) in enumerate(jobs)
        ]
        drawn = {done.index: done for done in generate_batch(self._model, requests, width=WIDTH)}
        # Those to one question side by side: they share its prompt.
        order = sorted((i for i in drawn if cost and drawn[i].tokens), key=lambda i: jobs[i][2])
        items = [(self._model.ask_tokens(jobs[i][2]), drawn[i].tokens) for i in order]
        scored = score_batch(self._model, items)
        nats = {i: -float(found.sum()) for i, found in zip(order, scored, strict=True)}
        made = {
            key: Answer(drawn[i].text.strip(), len(drawn[i].tokens), nats.get(i, 0.0))
            for i, (key, *_) in enumerate(jobs)
        }
        self._file.add({key: asdict(answer) for key, answer in made.items()})
        self._kept |= made

    def _key(self, request: RequestText, mark: str, draw: int, n_tokens: int) -> str:
        return key_of(self._digest, request.user, request.system, mark, draw, n_tokens)


def mark_of(profile: Profile | None, strength: float) -> str:
    """What a steering is known by; '' for none."""
    if profile is None or not strength:
        return ""
    return f"{profile.order[1]} {strength}"
