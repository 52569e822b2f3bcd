"""The run of an evaluation: every arm's answers, what they cost, and a judge's verdicts on them.

The answers of all arms to a few queries are made in one batch, plain and steered ones side by side,
and reach the disk together, because what else is in a batch changes the rounding: an evaluation
that was killed and started again ends with the files of an undisturbed one. A query's draws are the
same in every arm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_edge.errors import AlignezError
from alignez_edge.evaluation.arms import ASKING, PLAIN, Aim, Arm
from alignez_edge.evaluation.plan import Plan, prompt_of
from alignez_edge.evaluation.results import results_of
from alignez_edge.evaluation.runfolder import RunFolder
from alignez_edge.judges.judging import Comparison, Judge, Judgement

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model

CHUNK = 32
"""Answers that are made and kept together: two for each place of a usual batch."""
N_NEUTRAL = 24
"""Texts that KL from the plain model is measured on, and what of each is read."""
NEUTRAL_TOKENS = 96
_VERDICTS, _PAUSE = 64, 2.0
"""Verdicts that are kept together at most, and seconds that they may wait for."""
_UNKNOWN: dict[str, float | None] = {"drift": None, "nats": None, "tokens": 0}

Progress = Callable[[str, int, int], None]
Cell = tuple[int, int]
"""(query, seed): one answer of an arm."""


def evaluate(
    model: Model,
    plan: Plan,
    judge: Judge,
    folder: str | Path,
    *,
    width: int = 16,
    on_progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Do what `plan` says, or what is left of it, and return what `results.json` then holds.

    Raises `BadInputError` if `folder` holds another run, `AlignezError` if another process is
    at work on it, and what steering, generating and judging raise; `KeyboardInterrupt` passes
    through. The same call goes on where it was.
    """
    plan.check(judge)
    run = RunFolder.begin(folder, plan.settings(model, judge))
    with run.at_work():
        work = _Work(model, plan, run, width, on_progress)
        work.answer()
        work.measure_drift()
        work.judge(judge)
        results = results_of(run)
        run.write_results(results)
    return results


class _Work:
    """The steps of one evaluation; each does what its file does not hold yet."""

    def __init__(
        self, model: Model, plan: Plan, run: RunFolder, width: int, progress: Progress
    ) -> None:
        self.model = model
        self.plan = plan
        self.run = run
        self.width = width
        self.progress = progress
        self.index = run.index()

    def answer(self) -> None:
        """Make the answers that are missing, a few queries at a time in all arms."""
        from alignez_edge.runtime.model import Model

        arms = range(len(self.plan.arms))
        of_another = [n for n in arms if self._is_of_another_model(self.plan.arms[n])]
        self._answer_arms([n for n in arms if n not in of_another], self.model)
        if of_another and (self.index[of_another] < 0).any():
            assert self.plan.reference is not None
            with Model.load(self.plan.reference, threads=self.model.threads) as other:
                self._answer_arms(of_another, other)
        self.progress("answers", self.index.size, self.index.size)

    def _is_of_another_model(self, arm: Arm) -> bool:
        return arm.kind == "reference" and arm.steering is None

    def _answer_arms(self, arms: Sequence[int], model: Model) -> None:
        if not arms:
            return
        # By query and then by seed, so that answers to one query share their prompt.
        cells = list(product(range(len(self.plan.queries)), range(self.plan.seeds)))
        steerings = {n: self.plan.arms[n].steering for n in arms}
        injections = {
            n: steering.injection(model) if steering is not None else None
            for n, steering in steerings.items()
        }
        n_cells = max(1, CHUNK // len(arms))
        for start in range(0, len(cells), n_cells):
            chunk = [(n, cell) for cell in cells[start : start + n_cells] for n in arms]
            missing = [(n, cell) for n, cell in chunk if self.index[n][cell] < 0]
            if missing:
                self.progress("answers", int((self.index >= 0).sum()), self.index.size)
                made = self._answers(model, injections, chunk)
                offsets = self.run.answers.append([made[place] for place in missing])
                for (n, cell), offset in zip(missing, offsets, strict=True):
                    self.index[n][cell] = offset

    def _answers(
        self, model: Model, injections: Mapping[int, Any], places: Sequence[tuple[int, Cell]]
    ) -> dict[tuple[int, Cell], dict[str, Any]]:
        """The records of answers, by the number of their arm and their cell."""
        from alignez_edge.runtime.batch import generate_batch
        from alignez_edge.runtime.requests import Request
        from alignez_edge.runtime.score import Scorer

        done = int((self.index >= 0).sum())
        sampling = self.plan.sampling.with_stops(model.stops)
        # An arm that steers nothing is asked as plain: what is asked alike is made once.
        asked_alike: dict[Any, list[int]] = {}
        for at, (number, (query, seed)) in enumerate(places):
            prompt = prompt_of(model, self.plan.arms[number], self.plan.queries[query].text)
            steered_by = None if injections[number] is None else number
            asked_alike.setdefault((prompt, query, seed, steered_by), []).append(at)
        requests = [
            Request(
                prompt,
                sampling.with_seed(self.plan.seed(query, seed)),
                group,
                None if number is None else injections[number],
            )
            for group, (prompt, query, seed, number) in enumerate(asked_alike)
        ]
        answers = generate_batch(
            model,
            requests,
            width=self.width,
            n_ctx_per_sequence=self.plan.n_ctx if model is self.model else None,
            # All but the last: they are finished only when they are scored and kept.
            on_progress=lambda n, _: self.progress(
                "answers", min(done + n, self.index.size - 1), self.index.size
            ),
        )
        same = list(asked_alike.values())
        completions = {at: answer for answer in answers for at in same[answer.index]}
        records: dict[tuple[int, Cell], dict[str, Any]] = {}
        # A context a chunk: what an answer's numbers are must not depend on earlier chunks.
        with Scorer(self.model, n_ctx=self.plan.n_ctx) as scorer:
            for at, place in enumerate(places):
                completion, (number, (query, seed)) = completions[at], place
                asked = self.plan.queries[query]
                tokens = completion.tokens
                if model is not self.model:
                    tokens = tuple(self.model.tokenize(completion.text, begin=False))
                records[place] = {
                    "arm": self.plan.arms[number].name,
                    "query_index": query,
                    "query": asked.text,
                    "facts": dict(asked.facts),
                    "seed_index": seed,
                    "seed": self.plan.seed(query, seed),
                    "text": completion.text,
                    "tokens": len(tokens),
                    "finish_reason": completion.finish_reason,
                    "nats": self._nats(scorer, asked.text, tokens),
                }
        return records

    def _nats(self, scorer: Any, query: str, tokens: Sequence[int]) -> float:
        """Minus the log-probability of an answer under the unsteered model and plain prompt."""
        from alignez_edge.runtime.score import answer_log_prob
        from alignez_edge.runtime.window import window

        prompt = prompt_of(self.model, self.plan.arms[0], query)
        tokens = tokens[: window(self.model, self.plan.n_ctx) - len(prompt)]
        if not tokens:
            return 0.0
        (rows,) = scorer.log_probs(prompt, tokens)
        return -answer_log_prob(rows, tokens)

    def measure_drift(self) -> None:
        """How far each arm moves the next-token distributions on neutral texts."""
        known = {record.get("text_index"): None for _, record in self.run.drift.records()}
        texts = list(self._neutral())
        arms = [
            arm for arm in self.plan.arms if arm.kind != "reference" or arm.steering is not None
        ]
        missing = [number for number in range(len(texts)) if number not in known]
        if not missing:
            return
        injections = [
            arm.steering.injection(self.model) if arm.steering is not None else None for arm in arms
        ]
        for number in missing:
            self.progress("drift", number, len(texts))
            self.run.drift.append(
                [
                    {"arm": arm.name, "text_index": number, **found}
                    for arm, found in zip(
                        arms, self._drifts(*texts[number], arms, injections), strict=True
                    )
                ]
            )
        self.progress("drift", len(texts), len(texts))

    def _neutral(self) -> Iterator[tuple[str | None, list[int]]]:
        """The texts, each with the query that it answers, where it answers one."""
        if self.plan.neutral:
            for text in self.plan.neutral[:N_NEUTRAL]:
                yield None, self.model.tokenize(text, begin=True)
            return
        n = len(self.plan.queries)
        for query in np.unique(np.linspace(0, n - 1, min(n, N_NEUTRAL)).astype(int)):
            text = self.run.answers.at(int(self.index[0, query, 0]))["text"]
            yield self.plan.queries[query].text, self.model.tokenize(text, begin=False)

    def _drifts(
        self,
        query: str | None,
        tokens: list[int],
        arms: Sequence[Arm],
        injections: Sequence[Any],
    ) -> Iterator[dict[str, float | None]]:
        """`drift` (KL from plain, nats per token), `nats` and `tokens` of one text in every arm."""
        from alignez_edge.runtime.score import Scorer, answer_log_prob, kl_divergence
        from alignez_edge.runtime.window import window

        prompts = [
            tokens[:1] if query is None else list(prompt_of(self.model, arm, query)) for arm in arms
        ]
        answer = tokens[1:] if query is None else tokens
        room = window(self.model, self.plan.n_ctx) - max(map(len, prompts))
        answer = answer[: max(0, min(NEUTRAL_TOKENS, room))]
        if not answer:
            for _ in arms:
                yield dict(_UNKNOWN)
            return
        with Scorer(self.model, n_ctx=self.plan.n_ctx) as scorer:
            (base,) = scorer.log_probs(prompts[0], answer)
            for arm, injection, prompt in zip(arms, injections, prompts, strict=True):
                if query is None and (arm.kind in ASKING or arm.preamble.messages):
                    yield dict(_UNKNOWN)
                    continue
                (rows,) = scorer.log_probs(prompt, answer, [injection])
                yield {
                    "drift": kl_divergence(base, rows),
                    "nats": -answer_log_prob(rows, answer),
                    "tokens": len(answer),
                }

    def judge(self, judge: Judge) -> None:
        """Have every arm's answers compared with the plain ones."""
        contests = [(arm, aim) for arm in self.plan.arms for aim in arm.aims]
        place = {(arm.name, *aim.key): number for number, (arm, aim) in enumerate(contests)}
        known = np.zeros((len(contests), *self.index.shape[1:]), bool)
        for _, record in self.run.verdicts.records():
            _, query, seed = self.run.place(record)
            number = place.get((record["arm"], str(record.get("axis")), str(record.get("side"))))
            if number is not None:
                known[number, query, seed] = True
        todo = np.argwhere(~known)

        def comparisons() -> Iterator[Comparison]:
            for number, query, seed in todo:
                arm, aim = contests[number]
                yield self._comparison(arm, aim, int(query), int(seed))

        waiting: list[dict[str, Any]] = []
        last, done = time.monotonic(), int(known.sum())
        verdicts = judge.compare(comparisons())
        try:
            for number, query, seed in todo:
                verdict = next(verdicts, None)
                if verdict is None:
                    raise AlignezError(f"the judge {judge.name} gave fewer verdicts than asked for")
                arm, aim = contests[number]
                waiting.append(_verdict_record(arm, aim, int(query), int(seed), verdict))
                done += 1
                if len(waiting) >= _VERDICTS or time.monotonic() - last > _PAUSE:
                    self.run.verdicts.append(waiting)
                    waiting, last = [], time.monotonic()
                self.progress("verdicts", done, known.size)
        finally:
            self.run.verdicts.append(waiting)

    def _comparison(self, arm: Arm, aim: Aim, query: int, seed: int) -> Comparison:
        number = self.run.arms[arm.name]
        own, plain_one = (
            str(self.run.answers.at(int(self.index[which, query, seed]))["text"])
            for which in (number, 0)
        )
        asked = self.plan.queries[query]
        return Comparison(asked.text, own, plain_one, aim.axis, aim.side, asked.facts)


def _verdict_record(
    arm: Arm, aim: Aim, query: int, seed: int, verdict: Judgement
) -> dict[str, Any]:
    axis, side = aim.key
    return {
        "arm": arm.name,
        "against": PLAIN,
        "axis": axis,
        "side": side,
        "query_index": query,
        "seed_index": seed,
        "preference": verdict.preference,
        "scores": {aspect: list(pair) for aspect, pair in verdict.scores.items()},
        "orders": list(verdict.orders) if verdict.orders is not None else None,
    }
