"""Judges that nobody here wrote, and how well they judge: `python -m benchmarks.instruments`.

Each instrument turns a text into a number by a published rule: a lexicon, a formula, or a count of
something that cannot be argued about. They see words and marks and nothing else. They are blind to
truth, sense and fluency, and to irony; whoever measures with them has to measure the cost of an
effect beside it. They are for English, except those that look at marks only.

What they are worth is measured on answers written by hand, 20 for each side of an axis, in
`instrument_answers/`. Both sides answer the same questions.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from alignez_edge.evaluation.measures import LEVEL, Figure
from benchmarks.politeness import politeness, sentences

ANSWERS = Path(__file__).parent / "instrument_answers"
MARKER = "instruments"
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LIST_MARK = re.compile(r"[ \t]*(?:[-*+•‣◦–]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|Step \d+[.:])[ \t]+")
_ASKED = re.compile(r"[?？؟]\W*$")
_DECORATION = re.compile(r"[*_#`]+")

_CONTRACTION = re.compile(
    r"\b(?:\w+n['’]t|i['’]m|y['’]all|\w+['’](?:ll|ve|re|d)"
    r"|(?:it|he|she|that|there|here|what|who|where|how|when|why|let|"
    r"every(?:one|body|thing)|some(?:one|body|thing)|no(?:body|thing))['’]s"
    r"|(?:do|does|did|ca|wo|is|are|was|were|would|could|should|have|has)nt|im|ive|youre|thats)\b",
    re.IGNORECASE,
)
_UNCONTRACTED = re.compile(
    r"\b(?:i am|(?:you|we|they) are|(?:it|he|she|that|there|here|what|who|where|how) is"
    r"|(?:i|you|we|they|he|she|it|that|there|who) (?:will|would)"
    r"|(?:i|you|we|they|he|she|it) (?:have|has|had)(?= (?:not|never|already|just|been|\w+(?:ed|en)|"
    r"done|had|got|made|gone|put|read)\b)"
    r"|(?:do|does|did|is|are|was|were|has|have|had|will|would|can|could|should|must|need) not"
    r"|let us)\b(?= \w)|\bcannot\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Instrument:
    """A judge of one axis: `score` rises from the `negative` to the `positive` side.

    `unit` says what the number is. `measure` gets a text that has a word and gives the number, or
    None if the text has nothing that the instrument measures. `any_script` is for instruments
    that do not read words: the others know Latin letters only.
    """

    axis: str
    name: str
    positive: str
    negative: str
    unit: str
    measure: Callable[[str], float | None]
    any_script: bool = False

    def score(self, text: str) -> float | None:
        """How much of the axis' positive side the text has, in `unit`.

        None: there is nothing to judge. That is a text without a letter or digit, one that is
        mostly in another script than Latin (unless `any_script`), or one without anything that the
        instrument measures (for `formal`: without a place for a contraction). An average leaves
        such a text out; it is neither good nor bad.
        """
        if not _WORD.search(text) or not (self.any_script or _is_latin(text)):
            return None
        return self.measure(text)


def _is_latin(text: str) -> bool:
    """Whether half of the letters, or more, are Latin; true for a text of digits."""
    letters = [char for char in text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters)
    return 2 * latin >= len(letters)


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _cheerful(text: str) -> float:
    """Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social
    media text" (ICWSM 2014). Long texts saturate: it normalizes the sum over the words."""
    return float(_vader().polarity_scores(text)["compound"])


def _concise(text: str) -> float:
    """Minus the logarithm, so that half as long is as much at any length, and so that one answer
    that loops until it is cut off does not carry a mean."""
    return -math.log2(len(_WORD.findall(text)))


def _simple(text: str) -> float:
    """Flesch, "A new readability yardstick" (1948), as textstat computes it, from 0 up.

    Syllables are looked up in the CMU dictionary, which is among the installed packages. Flesch's
    scale begins at 0; below that there is only text without full stops, of which one would carry a
    mean. textstat does not know that a line's end ends a sentence, so a full stop is put there.
    """
    import textstat

    lines = (_DECORATION.sub("", _LIST_MARK.sub("", line)).strip() for line in text.splitlines())
    ended = (line if line.endswith((".", "!", "?")) else f"{line}." for line in lines if line)
    return max(0.0, float(textstat.flesch_reading_ease(" ".join(ended))))


def _formal(text: str) -> float | None:
    """None if there is neither a contraction nor a place for one. A place is two words that are
    commonly drawn together; a noun before 's is none, because that may be a possessive."""
    text = " ".join(text.split())
    contracted = len(_CONTRACTION.findall(text))
    places = contracted + len(_UNCONTRACTED.findall(text))
    return 1 - contracted / places if places else None


def _lists(text: str) -> float:
    """The words of the lines that begin with a list mark, over all words."""
    marked = 0
    for line in text.splitlines():
        if mark := _LIST_MARK.match(line):
            marked += len(_WORD.findall(line[mark.end() :]))
    total = sum(len(_WORD.findall(_LIST_MARK.sub("", line))) for line in text.splitlines())
    return marked / total if total else 0.0


def _questions(text: str) -> float:
    """A question that the answer puts to itself counts as well."""
    found = sentences(text)
    return sum(bool(_ASKED.search(part)) for part in found) / len(found)


INSTRUMENTS = {
    instrument.axis: instrument
    for instrument in (
        Instrument(
            "cheerful", "VADER", "cheerful", "gloomy", "compound score, −1 to +1", _cheerful
        ),
        Instrument("concise", "words", "concise", "wordy", "−log2 of the words", _concise),
        Instrument("simple", "Flesch", "simple", "complicated", "reading ease, 0 to 121", _simple),
        Instrument(
            "formal", "contractions", "formal", "casual", "share of places uncontracted", _formal
        ),
        Instrument(
            "lists", "list marks", "lists", "prose", "share of words in list items", _lists, True
        ),
        Instrument(
            "questions",
            "question marks",
            "asks back",
            "only answers",
            "share of sentences that are questions",
            _questions,
            True,
        ),
        Instrument(
            "polite",
            "politeness strategies",
            "polite",
            "rude",
            "rating in standard deviations",
            politeness,
        ),
    )
}
"""By axis."""


@dataclass(frozen=True)
class Quality:
    """What an instrument makes of answers of known sides; `Figure`s are shares from 0 to 1.

    `judged` of the `answers` got a score. `ordered` is the share of the pairs of a positive and a
    negative answer in which the positive one scores higher (the AUC; half where they score alike
    or one has no score). `right` is the share of answers on their side of `threshold`, the middle
    between the sides' means; none of those without a score.
    """

    answers: int
    judged: int
    ordered: Figure
    threshold: float
    right: Figure


def read_answers(axis: str) -> tuple[list[str], list[str]]:
    """The positive and the negative answers for an axis."""
    sides: dict[str, list[str]] = {"positive": [], "negative": []}
    for line in (ANSWERS / f"{axis}.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        sides[row["side"]].append(row["text"])
    return sides["positive"], sides["negative"]


def quality(instrument: Instrument, positive: Sequence[str], negative: Sequence[str]) -> Quality:
    """How well an instrument tells the sides apart; raises ValueError if it scores none of one."""
    above = np.array([instrument.score(text) for text in positive], float)  # None becomes NaN
    below = np.array([instrument.score(text) for text in negative], float)
    if np.isnan(above).all() or np.isnan(below).all():
        raise ValueError(f"{instrument.name} has no score for any answer of one side")
    signs = np.nan_to_num(np.sign(above[:, None] - below))
    threshold = float(np.nanmean(above) + np.nanmean(below)) / 2
    n_right = int((above > threshold).sum() + (below < threshold).sum())
    n = len(above) + len(below)
    interval = stats.binomtest(n_right, n).proportion_ci(LEVEL, "wilson")
    return Quality(
        n,
        int(np.isfinite(above).sum() + np.isfinite(below).sum()),
        auc_figure(float((1 + signs.mean()) / 2), len(above), len(below)),
        threshold,
        Figure(n_right / n, float(interval.low), float(interval.high)),
    )


def auc_figure(auc: float, n_positive: int, n_negative: int) -> Figure:
    """An AUC with its 95 % interval, which does not collapse where all pairs are in order.

    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    part 2, method 5 (Statistics in Medicine, 2006): the ends are those true values t from which the
    AUC lies z standard errors away, by Hanley and McNeil's variance at t.
    """
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    more = (n_positive + n_negative) / 2 - 1

    def beyond(t: float) -> float:
        spread = t * (1 - t) * (1 + more * (1 - t) / (2 - t) + more * t / (1 + t))
        return (auc - t) ** 2 - z**2 * spread / (n_positive * n_negative)

    near = 1e-9  # at 0 and 1 the AUC itself is a root, too
    low = optimize.brentq(beyond, 0, auc - near) if auc > near else 0.0
    high = optimize.brentq(beyond, auc + near, 1) if auc < 1 - near else 1.0
    return Figure(auc, float(low), float(high))


def markdown(found: dict[str, Quality]) -> str:
    """The table, a row for each instrument."""
    rows = [
        "| axis | instrument | what the number is | answers with a score | pairs in order (AUC) |"
        " answers on their side |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for axis, row in found.items():
        instrument = INSTRUMENTS[axis]
        rows.append(
            f"| {axis} | {instrument.name} | {instrument.unit} | {row.judged} of {row.answers} |"
            f" {_percent(row.ordered)} | {_percent(row.right)} |"
        )
    return "\n".join(rows)


def _percent(figure: Figure) -> str:
    mean, low, high = (f"{100 * value:.0f} %" for value in (figure.mean, figure.low, figure.high))
    return f"{mean} [{low}, {high}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--axes", nargs="+", choices=INSTRUMENTS, default=list(INSTRUMENTS))
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    options = parser.parse_args(arguments)
    found = {axis: quality(INSTRUMENTS[axis], *read_answers(axis)) for axis in options.axes}
    table = markdown(found)
    print(table)
    if options.page:
        from benchmarks.steering_report import insert

        insert(table, options.page, MARKER)


if __name__ == "__main__":
    main()
