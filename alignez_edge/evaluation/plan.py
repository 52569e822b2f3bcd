"""What an evaluation is to find out: its arms, its queries and how answers are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.arms import Arm, plain
from alignez_edge.evaluation.runfolder import MAX_ANSWERS
from alignez_edge.files.text import printable
from alignez_edge.judges.judging import Comparison, Judge
from alignez_edge.repeatable import digest

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Sampling


@dataclass(frozen=True)
class Query:
    """What is asked, and what its file says beside it (the demo queries: `topic`)."""

    text: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What an evaluation is to find out.

    `arms` begin with the plain one. `sampling.seed` is the base of all seeds, `seeds` the number of
    answers to each query; the stop strings of a model's prompt form need not be named. `n_ctx` is
    the window of a prompt and its answer. `reference` is the file of the model that a reference arm
    without a steering stands for. KL is measured on the `neutral` texts, or on plain answers
    where there are none.
    """

    arms: tuple[Arm, ...]
    queries: tuple[Query, ...]
    sampling: Sampling
    seeds: int = 1
    n_ctx: int | None = None
    reference: Path | None = None
    neutral: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.arms or self.arms[0] != plain():
            raise ValueError("the first arm must be the plain one")
        names = [arm.name for arm in self.arms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise BadInputError(f"two arms are called {printable(twice[0])}", "leave one out")
        if not self.queries or self.seeds < 1:
            raise BadInputError("an evaluation needs a query, and an answer to it")
        n_answers = len(self.arms) * len(self.queries) * self.seeds
        if n_answers > MAX_ANSWERS:
            raise BadInputError(
                f"an evaluation of {n_answers:,} answers; at most {MAX_ANSWERS:,} are possible",
                "use fewer seeds, queries or strengths",
            )

    def seed(self, query: int, seed: int) -> int:
        """What an answer is drawn with, in every arm."""
        return 1000 * seed + query + self.sampling.seed

    def check(self, judge: Judge) -> None:
        """Raise what a judge whose verdicts are `instant` would raise of these axes and queries
        after all the work."""
        if getattr(judge, "instant", False):
            axes = {aim.axis.name: aim.axis for arm in self.arms for aim in arm.aims}
            for _ in judge.compare(
                Comparison(query.text, "", "", axis, facts=query.facts)
                for axis in axes.values()
                for query in self.queries
            ):
                pass

    def settings(self, model: Model, judge: Judge) -> dict[str, Any]:
        """Everything that shapes the results, as the run folder keeps it."""
        from alignez_edge.files.gguffile import read_gguf
        from alignez_edge.modelfiles.fingerprint import identity
        from alignez_edge.runtime.window import window

        other = None
        if self.reference is not None:
            other = identity(read_gguf(self.reference))
        return {
            "model": model.facts.name,
            "fingerprint": model.fingerprint.digest(),
            "contents": model.gguf.contents(),
            "quantization": model.facts.quantization,
            "queries": {
                "digest": digest([[query.text, dict(query.facts)] for query in self.queries]),
                "count": len(self.queries),
            },
            "seeds": self.seeds,
            "sampling": asdict(self.sampling),
            "context": window(model, self.n_ctx),
            "judge": judge.name,
            "reference": other,
            "neutral": digest(list(self.neutral)) if self.neutral else "",
            "arms": [arm.describe() for arm in self.arms],
        }


def that_fit(
    model: Model, arms: Sequence[Arm], queries: Sequence[Query], n_ctx: int | None
) -> list[Query]:
    """The queries that every arm's prompt has room for in the context window."""
    from alignez_edge.runtime.window import window

    limit = window(model, n_ctx)
    return [
        query
        for query in queries
        if all(len(prompt_of(model, arm, query.text)) < limit for arm in arms)
    ]


def prompt_of(model: Model, arm: Arm, query: str) -> tuple[int, ...]:
    """The tokens that ask for an arm's answer to a query."""
    return model.prompt(arm.messages(query, chat=model.template is not None)).tokens
