"""Which form of request was taken, and how all of them did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from alignez_edge.arrays import DoubleArray


@dataclass(frozen=True)
class FormScore:
    """How a form did: `span`, the mean over `pairs` of how far the two sides are apart in nats per
    token, its standard `error`, and the share of pairs that are the right way round."""

    form: str
    span: float
    error: float
    right: float
    pairs: int

    @classmethod
    def of(cls, form: str, scores: Sequence[float] | DoubleArray) -> FormScore:
        """The score of a form whose pairs have these scores."""
        values = np.asarray(scores, np.float64)
        n = len(values)
        error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
        right = float((values > 0).mean()) if n else 0.0
        span = float(values.mean()) if n else 0.0
        return cls(form, round(span, 4), round(error, 4), round(right, 4), n)

    @property
    def sure(self) -> float:
        """What the span is at least, but for one standard error."""
        return self.span - self.error

    def rank(self) -> tuple[bool, float]:
        """What forms are sorted by, the best first."""
        return not self.works, -self.sure

    @property
    def works(self) -> bool:
        """Whether the sides differ, and the right way round."""
        return self.sure > 0 and self.right > 0.5


@dataclass(frozen=True)
class RequestChoice:
    """The form that pairs are asked for in, and what each form that was tried scored, best first;
    no scores where the form was given. `weights` tell how well the model understands each probe
    (`consensus.weigh`)."""

    form: str
    scores: tuple[FormScore, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether the sides came out in the trial; True if nothing was tried."""
        return all(score.works for score in self.scores if score.form == self.form)

    def report(self) -> dict[str, Any]:
        """What a profile keeps of it: `form`, `scores` by form, and the probes' `weights`."""
        return {
            "form": self.form,
            "scores": {score.form: _numbers(score) for score in self.scores},
            "weights": dict(self.weights),
        }

    def to_json(self) -> str:
        """A text that `from_json` reads back as an equal choice."""
        return json.dumps(self.report())

    @classmethod
    def from_json(cls, text: str) -> RequestChoice:
        """The choice of a text that `to_json` wrote."""
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RequestChoice:
        """The choice of a `report`; raises `KeyError` or `TypeError` on anything else."""
        scores = tuple(FormScore(form, **score) for form, score in found["scores"].items())
        return cls(found["form"], scores, found["weights"])


def _numbers(score: FormScore) -> dict[str, float]:
    return {key: value for key, value in asdict(score).items() if key != "form"}
