"""From the files of a run to its table: wins, scores and costs of every arm, with intervals.

Nothing here needs a model: whoever has the folder can compute the table again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.errors import BadInputError
from alignez_edge.evaluation.blind import Blind, Seen
from alignez_edge.evaluation.measures import Figure, Resamples, loops, sign_test
from alignez_edge.evaluation.runfolder import RunFolder
from alignez_edge.files.text import printable

Contest = tuple[str, str, str]
"""(arm, axis, side): one arm against plain answers, judged by one aim."""
KNOWLEDGE = "knowledge"
"""The aspect that is a cost and no style: the share of claims that are true."""


@dataclass(frozen=True)
class Judged:
    """The verdicts of one contest: preferences `(n_query, n_seed)`, NaN where there is none, and
    by aspect the scores of both answers, `(2, n_query, n_seed)`: the arm's, then the plain one's.
    """

    preferences: DoubleArray
    scores: dict[str, DoubleArray]


class Tables:
    """The numbers of a run as arrays. Missing ones are NaN."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.arms: list[dict[str, Any]] = run.run["arms"]
        self.tokens = np.full(run.shape, np.nan)
        self.nats = np.full(run.shape, np.nan)
        self.loops = np.full(run.shape, np.nan)
        texts = np.zeros(run.shape, np.int64)
        for _, record in run.answers.records():
            place = run.place(record)
            self.tokens[place] = _number(run, record, "tokens")
            self.nats[place] = _number(run, record, "nats")
            text = str(record.get("text", ""))
            self.loops[place] = loops(text)
            texts[place] = hash(text)
        self.differing = texts != texts[0]
        self.judged = self._judged()
        self.drift = self._drift()
        self.resamples = Resamples(run.shape[1])

    def _judged(self) -> dict[Contest, Judged]:
        shape = self.run.shape[1:]
        by_contest: dict[Contest, Judged] = {}
        for _, record in self.run.verdicts.records():
            _, query, seed = self.run.place(record)
            contest = str(record["arm"]), str(record.get("axis")), str(record.get("side"))
            judged = by_contest.setdefault(contest, Judged(np.full(shape, np.nan), {}))
            judged.preferences[query, seed] = _number(self.run, record, "preference")
            scores = record.get("scores")
            for aspect, pair in scores.items() if isinstance(scores, dict) else ():
                both = judged.scores.setdefault(str(aspect), np.full((2, *shape), np.nan))
                both[:, query, seed] = _pair(self.run, pair)
        return by_contest

    def _drift(self) -> dict[str, DoubleArray]:
        """By arm, the sums over neutral texts of KL times tokens, of nats, and of tokens."""
        by_arm: dict[str, DoubleArray] = {}
        for _, record in self.run.drift.records():
            sums = by_arm.setdefault(str(record.get("arm")), np.zeros(3))
            tokens = _number(self.run, record, "tokens")
            if tokens > 0:
                drift, nats = (_number(self.run, record, key) for key in ("drift", "nats"))
                sums += (drift * tokens, nats, tokens)
        return by_arm

    @cached_property
    def plain_scores(self) -> dict[str, DoubleArray]:
        """By aspect, the scores of the plain answers, from whichever contest has them."""
        by_aspect: dict[str, DoubleArray] = {}
        for judged in self.judged.values():
            for aspect, (_, plain) in judged.scores.items():
                known = by_aspect.setdefault(aspect, plain.copy())
                np.copyto(known, plain, where=np.isnan(known))
        return by_aspect

    def scores(self, contest: Contest) -> dict[str, DoubleArray]:
        """By aspect, the scores of an arm's answers. Answers that were not judged because they are
        the plain ones have the scores of those."""
        judged = self.judged.get(contest)
        if judged is None:
            return {}
        by_aspect = {}
        for aspect, plain in self.plain_scores.items():
            own = judged.scores.get(aspect, np.full((2, *plain.shape), np.nan))[0]
            unscored = np.all([np.isnan(both[0]) for both in judged.scores.values()] or [True], 0)
            same = unscored & (judged.preferences == 0)
            by_aspect[aspect] = np.where(same, plain, own)
        return by_aspect

    def sample(self, contest: Contest) -> DoubleArray:
        """How much an arm's answers show of the positive side of their axis.

        The mean of the scores for the aspect of the axis' name; where the judge gives none, the
        mean preference over plain answers, which are then at 0.
        """
        _, axis, side = contest
        scores = self.scores(contest)
        if axis in scores:
            return self.resamples.mean(scores[axis])
        sign = -1.0 if side == "negative" else 1.0
        return sign * self.resamples.mean(self.judged[contest].preferences)


def results_of(run: RunFolder) -> dict[str, Any]:
    """What `results.json` holds: see docs/evaluation.md."""
    tables = Tables(run)
    rows = []
    for number, arm in enumerate(tables.arms):
        for aim in arm["aims"]:
            contest = (arm["name"], aim["axis"], aim["side"])
            if contest in tables.judged:
                rows.append(_row(tables, number, contest, aim["trait"]))
    return {
        "model": run.run["model"],
        "judge": run.run["judge"],
        "queries": run.shape[1],
        "seeds": run.shape[2],
        "rows": rows,
        "plain": _plain(tables),
        "position_bias": _position_bias(run),
        "blind": [asdict(found) for found in _blind(tables)],
    }


def _blind(tables: Tables) -> list[Blind]:
    """The axes of which the judge saw nothing."""
    seen: dict[str, list[Seen]] = {}
    for (name, axis, _), judged in tables.judged.items():
        number = tables.run.arms[name]
        told = judged.preferences[tables.differing[number]]
        told = told[np.isfinite(told)]
        kind = str(tables.arms[number].get("kind"))
        seen.setdefault(axis, []).append(Seen(kind, len(told), int((told == 0).sum())))
    return [found for axis in seen if (found := Blind.of(axis, seen[axis])) is not None]


def _row(tables: Tables, number: int, contest: Contest, trait: str) -> dict[str, Any]:
    arm = tables.arms[number]
    judged = tables.judged[contest]
    wins = tables.resamples.net_win(judged.preferences)
    row: dict[str, Any] = {
        "arm": arm["name"],
        "kind": arm["kind"],
        "profile": arm["profile"],
        "strength": arm["strength"],
        "axis": contest[1],
        "side": contest[2],
        "trait": trait,
        "answers": int(np.isfinite(judged.preferences).sum()),
        "win": _percent(wins.win),
        "lose": _percent(wins.lose),
        "tie": _percent(wins.tie),
        "delta": _percent(wins.net.mean),
        "low": _percent(wins.net.low),
        "high": _percent(wins.net.high),
        "p_value": sign_test(judged.preferences),
        "price": _cost(tables, number, contest),
        "scores": {
            aspect: _triple(tables.resamples.figure(tables.resamples.mean(values)))
            for aspect, values in tables.scores(contest).items()
        },
    }
    if arm["kind"] == "steered":
        for name, share in (
            ("relative_improvement", _relative_improvement(tables, contest)),
            ("share_of_asking", _ratio_to_prompting(tables, number, contest)),
        ):
            if share is not None:
                scale = 100 if name == "relative_improvement" else 1
                row[name] = _plain_number(scale * share.mean)
                row[f"{name}_low"] = _plain_number(scale * share.low)
                row[f"{name}_high"] = _plain_number(scale * share.high)
    if arm.get("sweep"):
        row["sweep"] = arm["sweep"]
    return row


def _cost(tables: Tables, number: int, contest: Contest) -> dict[str, float | None]:
    """What an arm's answers cost, against plain answers of the same seeds."""
    both = tables.resamples
    above = both.ratio(tables.nats[number], tables.tokens[number]) - both.ratio(
        tables.nats[0], tables.tokens[0]
    )
    nats = both.figure(above)
    drift, neutral_nats, neutral_tokens = tables.drift.get(contest[0], np.zeros(3))
    knowledge = None
    if KNOWLEDGE in tables.plain_scores:
        # Of answers to which both have it, so that other answers are no gain or loss.
        gained = tables.scores(contest)[KNOWLEDGE] - tables.plain_scores[KNOWLEDGE]
        knowledge = _plain_number(both.mean(gained)[0])
    return {
        "nats_above_plain": _plain_number(nats.mean),
        "low": _plain_number(nats.low),
        "high": _plain_number(nats.high),
        "drift": _plain_number(drift / neutral_tokens if neutral_tokens else math.nan),
        "perplexity": _perplexity(neutral_nats, neutral_tokens),
        "repetition": _plain_number(np.nanmean(tables.loops[number])),
        "length_change": _plain_number(
            np.nanmean(tables.tokens[number]) - np.nanmean(tables.tokens[0])
        ),
        "knowledge": knowledge,
    }


def _plain(tables: Tables) -> dict[str, Any]:
    both = tables.resamples
    _, nats, tokens = tables.drift.get(tables.arms[0]["name"], np.zeros(3))
    return {
        "nats_per_token": _triple(both.figure(both.ratio(tables.nats[0], tables.tokens[0]))),
        "tokens": _plain_number(np.nanmean(tables.tokens[0])),
        "repetition": _plain_number(np.nanmean(tables.loops[0])),
        "perplexity": _perplexity(nats, tokens),
        "scores": {
            aspect: _triple(both.figure(both.mean(values)))
            for aspect, values in tables.plain_scores.items()
        },
    }


def _relative_improvement(tables: Tables, contest: Contest) -> Figure | None:
    """`Δ(ours over plain) / Δ(reference over plain)`; None without a reference."""
    other = next((arm["name"] for arm in tables.arms if arm["kind"] == "reference"), None)
    reference = tables.judged.get((str(other), *contest[1:]))
    if other is None or reference is None:
        return None
    mean = tables.resamples.mean
    ours = mean(np.sign(tables.judged[contest].preferences))
    return tables.resamples.share(ours, mean(np.sign(reference.preferences)))


def _ratio_to_prompting(tables: Tables, number: int, contest: Contest) -> Figure | None:
    """The span from this strength to the opposite one, over that of prompting for either side.

    None if one of the four arms is missing.
    """
    arm = tables.arms[number]
    axis = contest[1]
    ends = []
    for kind in ("steered", "asked"):
        for side in ("positive", "negative"):
            found = next(
                (
                    (other["name"], axis, side)
                    for other in tables.arms
                    if other["kind"] == kind
                    and (axis, side) in [(aim["axis"], aim["side"]) for aim in other["aims"]]
                    and (kind == "asked" or _is_counterpart(arm, other))
                ),
                None,
            )
            if found is None or found not in tables.judged:
                return None
            ends.append(tables.sample(found))
    return tables.resamples.share(ends[0] - ends[1], ends[2] - ends[3])


def _is_counterpart(arm: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether `other` is the same profile at the same or the opposite strength, and no sum."""
    strengths = [abs(term["strength"]) for term in (*arm["steering"], *other["steering"])]
    return (
        len(strengths) == 2
        and strengths[0] == strengths[1] > 0
        and arm["steering"][0]["digest"] == other["steering"][0]["digest"]
        and arm["way"] == other["way"]
        and arm["system"] == other["system"]
    )


def _position_bias(run: RunFolder) -> float | None:
    """The mean bias of a judge that saw both orders: 1 always takes the first one shown."""
    found = [
        (record["orders"][0] - record["orders"][1]) / 2
        for _, record in run.verdicts.records()
        if record.get("orders")
    ]
    return float(np.mean(found)) if found else None


def _perplexity(nats: float, tokens: float) -> float | None:
    # A text that the model cannot have written has a perplexity beyond what JSON can say.
    return _plain_number(np.exp(min(nats / tokens, 700.0))) if tokens else None


def _number(run: RunFolder, record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value):
        if value is None:
            return math.nan
        raise BadInputError(
            f"{printable(str(run.path))} holds a line whose {key} is not a number",
            "the folder is damaged: choose another one with -o",
        )
    return float(value)


def _pair(run: RunFolder, value: object) -> list[float]:
    """The scores of two answers."""
    if not isinstance(value, list) or len(value) != 2:
        value = ["no pair"]
    return [_number(run, {"score": score}, "score") for score in value]


def _percent(share: float) -> float | None:
    return _plain_number(100 * share)


def _plain_number(value: float) -> float | None:
    """A number as JSON can say it."""
    return round(float(value), 6) if math.isfinite(value) else None


def _triple(figure: Figure) -> dict[str, float | None]:
    return {
        "mean": _plain_number(figure.mean),
        "low": _plain_number(figure.low),
        "high": _plain_number(figure.high),
    }
