"""How a report begins: what steering did in one sentence, and six answers that show it."""

from __future__ import annotations

import math

from alignez_edge.evaluation.outcome import Outcome, Row
from alignez_edge.files.text import printable
from alignez_edge.reports.moved import Moved, beside_plain, most_moved

SHOWN = 6


def sentence(outcome: Outcome) -> str:
    """What the first profile did at the strength nearest to 1, and at the opposite one."""
    model, judge = (printable(outcome.fact(key), 80) for key in ("model", "judge"))
    n = outcome.run.shape[1]
    queries = f"{n} {'query' if n == 1 else 'queries'}"
    head = headline(outcome)
    if head is None:
        return f"{model} answered {queries}; no steering was judged."
    row, opposite = head
    told = (
        f"On {model}, {printable(row.profile, 60)} at strength {row.strength:+g} made"
        f" {row.win:.0f} % of the answers to {queries} more {printable(row.trait, 60)} than plain"
        f" ones and {row.lose:.0f} % less, as the judge {judge} sees it"
    )
    if row.delta.low <= 0 <= row.delta.high:
        told += " (which may be chance)"
    if opposite is not None:
        told += (
            f"; at {opposite.strength:+g}, {opposite.win:.0f} % more"
            f" {printable(opposite.trait, 60)} and {opposite.lose:.0f} % less"
        )
    return told.replace(" -", " −") + "."


def headline(outcome: Outcome) -> tuple[Row, Row | None] | None:
    """The row that the sentence is about, and the one of the opposite strength; None for none."""
    known = [row for row in outcome.steered if not math.isnan(row.strength + row.win + row.lose)]
    if not known:
        return None
    own = [row for row in known if row.profile == known[0].profile]
    row = min(own, key=lambda row: abs(row.strength - 1))
    opposite = (other for other in own if other.strength == -row.strength != 0)
    return row, next(opposite, None)


def warnings(outcome: Outcome) -> list[str]:
    """What keeps the verdicts from proving anything, a sentence each."""
    judge = printable(outcome.fact("judge"), 120)
    told = [f"Warning: {found.finding(judge)}." for found in outcome.blind]
    if outcome.can_tell is False:
        told.append(f"Not to be relied on: {outcome.finding}")
    return [printable(text, 600) for text in told]


def six_answers(outcome: Outcome) -> list[Moved]:
    """Answers that moved towards what was aimed at and away from it, half of each if there are as
    many; then others, so that there is something to read whatever the judge says."""
    towards, away = most_moved(outcome.run, SHOWN)
    against = min(len(away), max(SHOWN // 2, SHOWN - len(towards)))
    shown = [*towards[: SHOWN - against], *away[:against]]
    head = headline(outcome)
    if len(shown) < SHOWN and head is not None:
        known = {(one.arm, one.query, one.seed) for one in shown}
        others = beside_plain(outcome.run, head[0].arm, 2 * SHOWN)
        shown += [one for one in others if (one.arm, one.query, one.seed) not in known]
    return shown[:SHOWN]
