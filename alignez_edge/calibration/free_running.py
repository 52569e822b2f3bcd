"""What strength 1 means: as much as prompting, measured on answers that the model writes freely.

Held-back questions are answered plain, prompted for either side in the form that the pairs were
asked for in, and steered at several strengths of either sign, all with the question's own seed.
The *effect* of an answer is its evidence by a form of request in other words (`consensus.py`), less
that of the plain answer; the *cost* of answers is what the plain model pays for them under the
plain prompt, -log p per token, less what it pays for its own plain answers. Both are in nats per
token. Costs differ far more from answer to answer than effects do, so that answers count by their
tokens there, and what prompting costs is read from the pairs' answers as well.

Given answers cannot show this: once an answer's first words are there, prompting changes little
and steering every token, and a profile that moves nothing looks as good as one that works
(docs/method.md, section 6).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import DoubleArray
from alignez_edge.calibration.consensus import Text, answer_tokens, evidence
from alignez_edge.preferences import prompts
from alignez_edge.preferences.requests import FORMS, PROBES, RequestForm
from alignez_edge.repeatable import derive_seed
from alignez_edge.steering.steering import Steering

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_edge.interventions.ways import Way
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Request
    from alignez_edge.steering.steerable import Steerable


STRENGTHS: tuple[float, ...] = (0.2, 0.45, 0.8, 1.3)
"""Strengths that are measured, in raw differences, with either sign."""
GRID: tuple[float, ...] = (*(-s for s in reversed(STRENGTHS)), *STRENGTHS)
N_QUESTIONS = 8
"""Questions that are answered, where there are as many."""
N_TOKENS = 32
"""Tokens of an answer, written and read."""
CHUNK = 4
"""Questions whose answers are written in one batch and kept together."""
MORE_COST = 0.1
"""Nats per token that strength 1 may cost more than prompting for that side."""
LEAST_SHARE = 0.25
"""Of the span of prompting, what strength 1 of either sign aims at, at least: the plain answers may
lie at one side already, so that prompting for it moves nothing."""
TEMPERATURE = 0.8
_HALF = 0.5
"""The strength at which half of what saturates is there."""
PLAIN, POSITIVE, NEGATIVE = range(3)
"""Places of the unsteered answers in a reading; those of `GRID` follow."""
DEFAULT_FORM = "style"
"""How either side is prompted for where the pairs were given: on two real models the strongest."""


@dataclass(frozen=True)
class FreeReading:
    """The answers to one question: plain, prompted for either side, and steered over `GRID`.

    `evidence` and `cost` are `(3 + len(GRID),)`, in nats per token, as they are: nothing is taken
    off yet. `tokens` are those that `cost` is the mean over, and `texts` what was written.
    """

    question: str
    evidence: tuple[float, ...]
    cost: tuple[float, ...]
    tokens: tuple[int, ...]
    texts: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line that `from_json` reads back as an equal reading."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> FreeReading:
        """The reading of a line that `to_json` wrote."""
        found = json.loads(line)
        return cls(found.pop("question"), **{key: tuple(value) for key, value in found.items()})


@dataclass(frozen=True)
class Paid:
    """What the plain model pays for some answers: their `nats`, all together, and their tokens."""

    nats: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class FreeCalibration:
    """The units (raw differences per strength 1) of either sign, and what they were read from.

    `limits` say what set them, + and -: `prompting` (as much effect as prompting for that side),
    `cost` (`MORE_COST` above what prompting costs), or `grid` (prompting was out of reach).
    `effect` and `cost` are means over questions at `GRID`. `steered` and `prompted` are
    `(n_questions, 2)`: by question, how far strengths +1 and -1, and prompting for either side,
    move the answers towards their own side.
    """

    unit: float
    unit_negative: float
    limits: tuple[str, str]
    effect: DoubleArray
    cost: DoubleArray
    prompted_effect: DoubleArray
    prompted_cost: DoubleArray
    steered: DoubleArray
    prompted: DoubleArray

    def curves(self) -> dict[str, float | tuple[float, ...]]:
        """What a profile keeps of it, by name."""
        names = ("effect", "cost", "prompted_effect", "prompted_cost")
        rounded = {name: np.round(getattr(self, name), 5) + 0.0 for name in names}
        return {"strengths": GRID, **{k: tuple(map(float, v)) for k, v in rounded.items()}}


def form_for(name: str) -> RequestForm:
    """The form in which either side is prompted for, given that of the pairs: the same, but in one
    step, as nobody prompts in two."""
    form = FORMS.get(name, FORMS[DEFAULT_FORM])
    return FORMS["list"] if form.two_steps else form


def probe_for(form: RequestForm, weights: Mapping[str, float]) -> RequestForm:
    """The form that answers are judged by: of other words, and the one that the model understands
    best by these `weights` (`consensus.weigh`)."""
    others = (probe for probe in PROBES if probe.family != form.family)
    return max(others, key=lambda probe: weights.get(probe.name, 1.0))


def read_questions(
    profile: Steerable,
    model: Model,
    questions: Sequence[str],
    *,
    form: RequestForm,
    probe: RequestForm,
    seed: int,
    way: Way,
    width: int = 16,
    n_ctx: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[FreeReading]:
    """Answer `questions` in one batch and read the answers, in order.

    `profile` is taken as the raw difference, whatever its units are, and injected by `way`. `tick`
    is called once for each of `n_texts` that is written, and once for each that is read. Raises
    `BadInputError` if this model does not allow `way`, `PromptTooLongError` if a question
    does not fit.
    """
    from alignez_edge.runtime.batch import generate_batch
    from alignez_edge.runtime.requests import Request, Sampling
    from alignez_edge.runtime.score import score_batch

    axis, chat = profile.axis, model.template is not None
    natural = profile.natural()
    steerings = [Steering(((natural, s),), way).injection(model) for s in GRID]
    one_side = prompts.is_plain(axis, "negative")

    def requests() -> Iterator[Request]:
        for n, question in enumerate(questions):
            own = derive_seed(seed, question, "", "free-running")
            sampling = Sampling(TEMPERATURE, 1.0, 0, own, N_TOKENS, stop=model.stops)
            plain = model.ask_tokens(question)
            first = n * (3 + len(GRID))
            yield Request(plain, sampling, first + PLAIN)
            for place, side in zip((POSITIVE, NEGATIVE), prompts.SIDES, strict=True):
                if side == "negative" and one_side:
                    continue
                asked = form.request(question, axis, side, chat=chat)
                yield Request(model.prompt(asked.messages()).tokens, sampling, first + place)
            for place, steering in enumerate(steerings, 3):
                yield Request(plain, sampling, first + place, steering)

    n_each = 3 + len(GRID)
    texts = [Text(questions[n // n_each], "") for n in range(n_each * len(questions))]
    for done in generate_batch(model, requests(), width=width, n_ctx_per_sequence=n_ctx):
        question = texts[done.index].query
        own_text = prompts.cut_next_turn(done.text)
        texts[done.index] = Text(question, own_text, ended=done.finish_reason == "stop")
        tick()
    if one_side:  # its prompt is the plain one, and its seed, too
        for n in range(0, len(texts), n_each):
            texts[n + NEGATIVE] = texts[n + PLAIN]
            tick()
    unlike = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    own = list(unlike)
    told = evidence(model, axis, own, [probe], n_tokens=N_TOKENS, n_ctx=n_ctx)[:, 0]
    answers = [answer_tokens(model, text, N_TOKENS) or _nothing(model) for text in own]
    paid = np.zeros(len(own))
    some = [n for n, answer in enumerate(answers) if answer]
    items = ((model.ask_tokens(own[n].query), answers[n]) for n in some)
    for n, scores in zip(some, score_batch(model, items, n_ctx=n_ctx), strict=True):
        paid[n] = -float(scores.mean(dtype=np.float64))
        tick()
    for _ in range(len(texts) - len(some)):
        tick()
    n_tokens = np.array([len(answer) for answer in answers])
    places = [unlike[text] for text in texts]
    found, costs, lengths = told[places], paid[places], n_tokens[places]
    return [
        FreeReading(
            question,
            tuple(map(float, found[n * n_each :][:n_each])),
            tuple(map(float, costs[n * n_each :][:n_each])),
            tuple(map(int, lengths[n * n_each :][:n_each])),
            tuple(text.text for text in texts[n * n_each :][:n_each]),
        )
        for n, question in enumerate(questions)
    ]


def paid_for(model: Model, texts: Sequence[Text], n_ctx: int | None = None) -> Paid:
    """What the plain model pays for these texts under their plain prompts."""
    from alignez_edge.runtime.score import score_batch

    answers = [(text, answer_tokens(model, text, N_TOKENS)) for text in texts]
    items = [(model.ask_tokens(text.query), answer) for text, answer in answers if answer]
    scores = score_batch(model, items, n_ctx=n_ctx)
    nats = -sum(float(each.sum(dtype=np.float64)) for each in scores)
    return Paid(nats, sum(len(answer) for _, answer in items))


def n_texts(questions: Sequence[str]) -> int:
    """Answers that are read of some questions."""
    return len(questions) * (3 + len(GRID))


def calibrate_freely(
    readings: Sequence[FreeReading],
    *,
    one_side: bool = False,
    asked: tuple[Paid, Paid] = (Paid(), Paid()),
) -> FreeCalibration:
    """Choose the units from the readings of all questions.

    For either sign the mean effect over strengths is taken for `a s / (1/2 + s) + b s`, 0 at 0, and
    the mean cost for `a + b s + c s^2` (least squares over `STRENGTHS`, the cost with the plain
    answers at 0: a few noisy points say less one by one than together). The unit is the smallest
    strength whose effect is that of prompting for that side, and at least `LEAST_SHARE` of the span
    between the sides, as long as its cost stays within `MORE_COST` of what prompting for that side
    costs; where that is not reached, the strength of the largest effect within the bound. Where
    prompting moves nothing there is nothing to aim at: the unit is the raw difference, within the
    bound. `asked` is what other answers cost that were prompted for either side in the same form.
    With `one_side` the other side is the plain answer, and strength -1 as long as +1.
    """
    told = np.array([reading.evidence for reading in readings])
    told = told - told[:, :1]
    tokens = np.array([reading.tokens for reading in readings], np.float64)
    nats = np.array([reading.cost for reading in readings]) * tokens
    paid = nats.sum(axis=0) / np.maximum(tokens.sum(axis=0), 1.0)
    prompted = told[:, [POSITIVE, NEGATIVE]] * (1, -1)
    prompted_paid = np.array(
        [
            (nats[:, place].sum() + other.nats) / max(tokens[:, place].sum() + other.tokens, 1.0)
            for place, other in zip((POSITIVE, NEGATIVE), asked, strict=True)
        ]
    )
    span = float(prompted.mean(axis=0).sum())
    n = len(STRENGTHS)
    units: list[float] = []
    limits: list[str] = []
    steered: list[DoubleArray] = []
    for side, sign in enumerate((1, -1)):
        columns = slice(3 + n, None) if sign > 0 else slice(2 + n, 2, -1)
        effects = sign * told[:, columns]
        costs = np.concatenate((paid[:1], paid[columns]))
        bound = max(paid[PLAIN], prompted_paid[side]) + MORE_COST
        target = max(float(prompted[:, side].mean()), LEAST_SHARE * span) if span > 0 else None
        unit, limit = _unit(effects.mean(axis=0), costs, target, float(bound))
        if one_side and sign < 0:
            unit, limit = units[0], limits[0]
        units.append(unit)
        limits.append(limit)
        steered.append(effects @ _at(_effect_terms, STRENGTHS, np.array([unit]))[0])
    return FreeCalibration(
        units[0],
        units[1],
        (limits[0], limits[1]),
        effect=told[:, 3:].mean(axis=0),
        cost=paid[3:] - paid[PLAIN],
        prompted_effect=told[:, [POSITIVE, NEGATIVE]].mean(axis=0),
        prompted_cost=prompted_paid - paid[PLAIN],
        steered=np.stack(steered, axis=1),
        prompted=prompted,
    )


def _unit(
    effects: DoubleArray, costs: DoubleArray, target: float | None, bound: float
) -> tuple[float, str]:
    """The unit of a sign and what set it, from mean effects towards its side at `STRENGTHS`, and
    mean costs at 0 and there."""
    grid = np.arange(STRENGTHS[0], STRENGTHS[-1] + 0.005, 0.01)
    effect = _at(_effect_terms, STRENGTHS, grid) @ effects
    cost = _at(_cost_terms, (0.0, *STRENGTHS), grid) @ costs
    beyond = np.flatnonzero(cost > bound)
    inside = int(beyond[0]) if beyond.size else len(grid)
    if inside == 0:
        return float(grid[0]), "cost"
    bounded = inside < len(grid)
    if target is None:
        natural = int(np.argmin(np.abs(grid - 1.0)))
        place = min(natural, inside - 1)
        return round(float(grid[place]), 4), "cost" if place < natural else "grid"
    enough = np.flatnonzero(effect[:inside] >= target - 1e-9)
    if enough.size:
        return round(float(grid[enough[0]]), 4), "prompting"
    best = int(np.argmax(effect[:inside]))
    return round(float(grid[best]), 4), "cost" if bounded and best == inside - 1 else "grid"


Terms = Callable[[DoubleArray], DoubleArray]


def _effect_terms(s: DoubleArray) -> DoubleArray:
    return np.stack([s / (_HALF + s), s], axis=1)


def _cost_terms(s: DoubleArray) -> DoubleArray:
    return np.stack([np.ones_like(s), s, s**2], axis=1)


def _at(terms: Terms, measured: Sequence[float], s: DoubleArray) -> DoubleArray:
    """What takes values at the `measured` strengths to those of the fitted curve at `s`:
    `(len(s), n)`."""
    return terms(s) @ np.linalg.pinv(terms(np.array(measured)))


def _nothing(model: Model) -> tuple[int, ...]:
    """An answer without a word: its end."""
    return () if model.end_token is None else (model.end_token,)
