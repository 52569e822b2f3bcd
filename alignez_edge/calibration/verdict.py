"""Whether a profile works, in one word and one plain sentence.

It is read from answers that the model wrote freely (`free_running.py`), with standard errors over
questions: nothing is called an effect that could be chance. NumPy in, plain values out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.files.text import is_unprintable
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.prompts import is_plain, trait

if TYPE_CHECKING:
    from alignez_edge.steering.steerable import Steerable

Word = Literal["works", "weak", "one side", "wrong way", "not enough to tell"]

KEY = "verdict"
MIN_QUESTIONS = 6
"""Questions without which nothing is said."""
LEAST_SPAN = 0.03
"""Nats per token that prompting for both sides must be apart: half of the weakest form of request
on the models that were tried."""
ENOUGH = 0.5
"""Of the span of prompting, what a profile that works moves the answers by, at least."""
CONSISTENT = 0.8
"""Share of the pairs that must point the way that the others point."""
_T = {5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833, 10: 1.812, 11: 1.796}
"""Student's t, 95 % one-sided, by degrees of freedom."""
_MAX_REASON = 400


@dataclass(frozen=True)
class Verdict:
    """The word, the sentence that says what was found and what to do, and the figures behind it."""

    verdict: Word
    reason: str
    figures: Mapping[str, Any]

    @property
    def works(self) -> bool:
        """Whether the profile does what it is for."""
        return self.verdict == "works"

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"

    def report(self) -> dict[str, Any]:
        """What a profile keeps of it."""
        return {"verdict": self.verdict, "reason": self.reason, "figures": dict(self.figures)}

    @classmethod
    def of(cls, profile: Steerable) -> Verdict | None:
        """That of a profile; None if it was not measured, or if the report is not sound.

        A report can come from an untrusted file.
        """
        found = profile.report.get(KEY)
        if not isinstance(found, dict):
            return None
        word, reason, figures = (found.get(key) for key in ("verdict", "reason", "figures"))
        if not isinstance(word, str) or not isinstance(reason, str):
            return None
        sound = 0 < len(reason) <= _MAX_REASON and not any(map(is_unprintable, reason))
        if word not in get_args(Word) or not sound:
            return None
        return cls(cast(Word, word), reason, figures if isinstance(figures, dict) else {})


@dataclass(frozen=True)
class _Mean:
    """A mean over questions, and what it has to be away from 0 to be no chance."""

    value: float
    error: float
    margin: float

    @classmethod
    def of(cls, values: DoubleArray) -> _Mean:
        n = len(values)
        error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
        return cls(float(values.mean()), error, _T.get(n - 1, 1.78 if n > 12 else 2.1) * error)

    @property
    def clear(self) -> bool:
        return self.value > self.margin

    @property
    def wrong(self) -> bool:
        return self.value < -self.margin


def judge(
    axis: Axis, steered: DoubleArray, prompted: DoubleArray, agreement: float | None = None
) -> Verdict:
    """The verdict on a profile.

    `steered` and `prompted` are `(n_questions, 2)`, in nats per token: how far strengths +1 and
    -1, and prompting for either side, move the answers towards their own side. `agreement` is the
    share of the pairs that point the way of the others; None if that is not known.

    Clear of 0 means: by more than `_T` standard errors over questions. It `works` where the span
    of steering is clear of 0 and at least `ENOUGH` of that of prompting, and so is each side that
    prompting moves. Where the pairs do not agree among themselves nothing is called working: what
    they add up to is chance, even where it happens to move the answers.
    """
    one_side = is_plain(axis, "negative")
    names = [trait(axis, side) for side in ("positive", "negative")]
    columns = [0] if one_side else [0, 1]
    sides = [_Mean.of(steered[:, i]) for i in columns]
    asked = [_Mean.of(prompted[:, i]) for i in columns]
    span = _Mean.of(steered[:, columns].sum(axis=1))
    target = _Mean.of(prompted[:, columns].sum(axis=1))
    n = len(steered)
    ratio = span.value / target.value if target.value > 0 else None
    figures = {
        "questions": n,
        "steered": [_pair(side) for side in sides],
        "prompted": [_pair(side) for side in asked],
        "steered_span": _pair(span),
        "prompted_span": _pair(target),
        "ratio_to_prompting": None if ratio is None else round(ratio, 3),
        "agreement": None if agreement is None else round(agreement, 3),
    }

    def say(word: Word, reason: str) -> Verdict:
        return Verdict(word, reason, figures)

    if n < MIN_QUESTIONS:
        return say(
            "not enough to tell",
            f"only {n} question{'s' * (n != 1)} could be held back for the measurement, of at"
            f" least {MIN_QUESTIONS}; build with more queries (--queries, --limit 24 or more).",
        )
    if span.wrong or (all(side.wrong for side in sides)):
        return say(
            "wrong way",
            f"on {n} questions strength 1 makes answers less {names[0]}, and -1 the opposite;"
            " do not use it: build with more queries, or ask in another form (--request).",
        )
    if not target.clear or target.value < LEAST_SPAN:
        return say(
            "not enough to tell",
            f"this model does not seem to know the axis: prompting for {_both(names, one_side)}"
            " does not move its answers either; word the axis otherwise, or use another model.",
        )
    assert ratio is not None
    if agreement is not None and agreement < CONSISTENT:
        return say(
            "not enough to tell",
            f"the pairs contradict each other: only {agreement:.0%} of them point the same way;"
            " look through them, or ask in another form (--request).",
        )
    if not span.clear:
        if span.value + span.margin >= ENOUGH * target.value:
            return say(
                "not enough to tell",
                f"on {n} questions what it does cannot be told from chance; build with more"
                " queries (--queries, --limit).",
            )
        return say(
            "weak",
            f"on {n} questions it hardly moves the answers ({ratio:.2f} of what prompting does);"
            " build with more queries, or ask in another form (--request).",
        )
    if ratio < ENOUGH:
        return say(
            "weak",
            f"on {n} questions it moves the answers {ratio:.2f} times as far as prompting does;"
            " use a larger strength, or build with more queries.",
        )
    # A side that prompting does not move, because the answers are there already, is not asked for.
    needed = [i for i, side in enumerate(asked) if side.clear] or columns
    failed = [i for i in columns if sides[i].wrong or (i in needed and not sides[i].clear)]
    if failed:
        good = [i for i in columns if i not in failed]
        sign = ("+1", "-1")
        reason = f"on {n} questions strength {sign[failed[0]]} does not make answers"
        reason += f" {names[failed[0]]}"
        reason += f", {sign[good[0]]} makes them {names[good[0]]}" if good else ""
        return say("one side", reason + "; use that side only, or build with more queries.")
    return say(
        "works",
        f"on {n} questions strengths {'+1' if one_side else '+1 and -1'} move the answers"
        f" {ratio:.2f} times as far as prompting does.",
    )


def _both(names: list[str], one_side: bool) -> str:
    return names[0] if one_side else f"{names[0]} or {names[1]}"


def _pair(found: _Mean) -> list[float]:
    """A mean and its standard error, as a report keeps them."""
    return [round(found.value, 4), round(found.error, 4)]
