"""Answers under a control vector that acts on every token, the prompt's included.

That is how llama.cpp's own programs apply one (`--control-vector`). The library leaves the prompt
plain, so the vector is set on the context itself, and no request has a steering of its own. The
draws are those of every other arm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.preferences.requests import RequestText
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Completion, Request, Sampling
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.score import score_batch
from benchmarks.real_answers import CHUNK, WIDTH, Answer, Answers, Task, mark_of


def rows_at(profile: Profile, strength: float) -> FloatArray:
    """What an export of the profile adds at every token, `(n_layer, n_embd)`."""
    scale = np.float32(profile.scale(strength))
    return np.asarray(profile.vector.answer * scale, np.float32)


def complete_everywhere(
    model: Model, requests: Iterable[Request], vectors: FloatArray, width: int = WIDTH
) -> Iterator[Completion]:
    """Answers to requests without a steering, as they finish; `vectors`, `(n_layer, n_embd)`, are
    added to every row of every pass."""
    with Scheduler(model, n_slots=width) as scheduler:
        context = scheduler._context

        def set_own(_: FloatArray | None) -> None:
            Context.set_control_vector(context, vectors)

        context.set_control_vector = set_own  # type: ignore[method-assign, assignment]
        yield from scheduler.complete(requests)


class PeerAnswers(Answers):
    """The answers of one model, kept in a folder; those under vectors everywhere among them."""

    def everywhere(self, tasks: Sequence[Task], profile: Profile, n_tokens: int) -> list[Answer]:
        """The answers to plain prompts, in order, each under the vector of its task's strength;
        those that are not kept yet are made chunk by chunk."""
        keys = [
            self._key(
                RequestText(task.query),
                f"{mark_of(profile, task.arm.strength)} everywhere",
                task.draw,
                n_tokens,
            )
            for task in tasks
        ]
        missing = {k: task for k, task in zip(keys, tasks, strict=True) if k not in self._kept}
        for strength in dict.fromkeys(task.arm.strength for task in tasks):
            left = iter([job for job in missing.items() if job[1].arm.strength == strength])
            rows = rows_at(profile, strength)
            while chunk := list(islice(left, CHUNK)):
                self._make_everywhere(chunk, n_tokens, rows)
        return [self._kept[key] for key in keys]

    def _make_everywhere(
        self, jobs: Sequence[tuple[str, Task]], n_tokens: int, rows: FloatArray
    ) -> None:
        """Draw, score and keep the answers of one chunk."""
        model = self._model
        sampling = Sampling(max_tokens=n_tokens, stop=model.stops)
        requests = [
            Request(model.ask_tokens(task.query), replace(sampling, seed=task.draw), i)
            for i, (_, task) in enumerate(jobs)
        ]
        drawn = {done.index: done for done in complete_everywhere(model, requests, rows)}
        some = [i for i in drawn if drawn[i].tokens]
        scored = score_batch(model, [(requests[i].tokens, drawn[i].tokens) for i in some])
        nats = {i: -float(found.sum()) for i, found in zip(some, scored, strict=True)}
        made = {
            key: Answer(drawn[i].text.strip(), len(drawn[i].tokens), nats.get(i, 0.0))
            for i, (key, _) in enumerate(jobs)
        }
        self._file.add({key: asdict(answer) for key, answer in made.items()})
        self._kept |= made
