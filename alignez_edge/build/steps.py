"""The steps of a build that need the model, each kept in a file as it goes.

Every step is computed in chunks that are alike whether or not the build was interrupted: a build
that was killed at any moment and started again ends with the same profile as an undisturbed one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import DoubleArray, FloatArray, TensorName
from alignez_edge.build.choice import (
    N_FIRST,
    N_JUDGES,
    N_KEPT,
    N_MOST,
    N_QUERIES,
    N_TOKENS,
    choose_request,
    n_trials,
)
from alignez_edge.build.generate import generate_pairs
from alignez_edge.build.workplace import GO_ON, Workplace
from alignez_edge.calibration import free_running
from alignez_edge.calibration.consensus import N_TOKENS as N_READ
from alignez_edge.calibration.consensus import Text, evidence, spans
from alignez_edge.calibration.free_running import (
    CHUNK,
    GRID,
    FreeReading,
    Paid,
    form_for,
    n_texts,
    paid_for,
    probe_for,
    read_questions,
)
from alignez_edge.directions.hidden_states import CapturedStates, HiddenStates, Tensor
from alignez_edge.errors import BadInputError
from alignez_edge.files.json_log import Log
from alignez_edge.files.writing import write_atomic
from alignez_edge.interventions.ways import Way
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.choice import RequestChoice
from alignez_edge.preferences.pair_store import PairStore
from alignez_edge.preferences.pairs import PairSet, PreferencePair
from alignez_edge.preferences.requests import AUTO, FORMS, RequestForm, RequestText
from alignez_edge.repeatable import digest

if TYPE_CHECKING:
    from alignez_edge.directions.hidden_states import States
    from alignez_edge.runtime.model import Model
    from alignez_edge.steering.steerable import Steerable

DEFAULT_LIMIT = 48
"""Pairs that a build wants unless it is told otherwise."""
COST_PAIRS = 24
"""Pairs whose answers say what prompting costs."""
STATES_CHUNK = 4
"""Pairs whose states are computed and kept together."""


class Builder(Workplace):
    """The steps that need the model, each kept in a file as it goes."""

    def generated(
        self, queries: Sequence[str], request: str, limit: int, tensor: Tensor | None
    ) -> tuple[PairSet, RequestChoice]:
        """The model's own pairs, `limit` of them as far as `queries` go, and the form that they
        are asked for in: the one named `request`, or with `auto` the best one. Their states at
        `tensor` are kept as they come."""
        forms = self.forms()
        choice = RequestChoice(request) if request != AUTO else self.choice(forms, queries)
        form = FORMS[choice.form]
        # One probe tells pairs from what is none almost as well as all (docs/method.md, section 1):
        # the one that the model understands best.
        probe = probe_for(form, choice.weights)
        weight = np.array([choice.weights.get(probe.name, 1.0) or 1.0])

        def score(pairs: Sequence[tuple[Text, Text]]) -> DoubleArray:
            texts = [text for pair in pairs for text in pair]
            return spans(self._evidence(texts, [probe]), weight)

        store = PairStore(self.folder / "pairs.jsonl", {**self.settings, "request": form.name})
        if store.notice is not None:
            self.notice(store.notice)
        came: dict[tuple[RequestText, str], States] = {}

        def complete(
            requests: Sequence[RequestText], seeds: Sequence[int], max_tokens: Sequence[int]
        ) -> Iterator[tuple[int, str, bool]]:
            name = tensor.name if tensor else None
            for done in self.completions(requests, seeds, max_tokens, name):
                if done.states is not None:
                    came[requests[done.index], done.text.strip()] = done.states
                yield done.index, done.text, done.finish_reason == "stop"

        def keep(pairs: Sequence[PreferencePair]) -> None:
            """Keep the states of answers that are in the pair as they were written."""
            sides = {_key(pair): [came.get(side) for side in _sides(pair)] for pair in pairs}
            captured.add({k: [s for s in v if s] for k, v in sides.items() if all(v)})
            came.clear()

        with self._captured(tensor) as captured:
            found = generate_pairs(
                complete,
                self.axis,
                queries,
                store,
                seed=self.seed,
                form=form,
                chat=self.chat,
                limit=limit,
                fits=lambda query: self.fits(query, (form, probe)),
                score=score,
                keep=keep,
                on_progress=lambda done, total: self.progress("pairs", done, total),
            )
        return found, choice

    def forms(self) -> list[RequestForm]:
        """The forms that this model and this axis can be asked in."""
        return [
            form
            for form in FORMS.values()
            if form.fits(self.axis) and (form.name != "system" or takes_system(self.model))
        ]

    def choice(self, forms: Sequence[RequestForm], queries: Sequence[str]) -> RequestChoice:
        """The best of `forms`, tried on the first of `queries`; read back where it was tried."""
        short = (query for query in dict.fromkeys(queries) if self.fits(query, forms))
        tried = list(islice(short, N_MOST))
        if not tried:
            raise BadInputError(
                "all queries are too long for the context window", "use a larger one: --ctx"
            )
        rounds = [N_FIRST, N_KEPT, N_QUERIES, N_JUDGES, N_TOKENS]
        facts = [self.settings, tried, [form.name for form in forms], rounds]
        kept = self.folder / f"request-{digest(facts)}.json"
        if kept.exists():
            with suppress(ValueError, KeyError, TypeError):  # a person's hand was in it
                return RequestChoice.from_json(kept.read_text("utf-8"))
        total = n_trials(forms, self.axis, tried)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.progress("request", done, total + 1)

        choice = choose_request(
            self.complete,
            lambda texts, probes: self._evidence(texts, probes, N_TOKENS),
            self.axis,
            forms,
            tried,
            chat=self.chat,
            seed=self.seed,
            tick=tick,
        )
        write_atomic(kept, choice.to_json().encode("utf-8"))
        self.progress("request", total + 1, total + 1)
        return choice

    def _evidence(
        self, texts: Sequence[Text], probes: Sequence[RequestForm], n_tokens: int = N_READ
    ) -> DoubleArray:
        return evidence(self.model, self.axis, texts, probes, n_tokens=n_tokens, n_ctx=self.ctx)

    def that_fit(self, found: PairSet) -> PairSet:
        """Labelled pairs without those that are longer than the context window."""

        def length(pair: PreferencePair) -> int:
            """Calibration scores both answers under the query and with either side asked for."""
            prompted = [prompts.prompted(pair.query, self.axis, side) for side in prompts.SIDES]
            asked = [*map(RequestText, (pair.query, *prompted)), *pair.requests()]
            answers = [
                self.model.tokenize(text, begin=False) for text in (pair.chosen, pair.rejected)
            ]
            return max(len(self.tokens(each)) for each in asked) + max(map(len, answers))

        fitting = [pair for pair in found.pairs if length(pair) < self.window]
        dropped = len(found.pairs) - len(fitting)
        return _with_dropped(PairSet(tuple(fitting), found.dropped), "too long", dropped)

    def states(self, pairs: Sequence[PreferencePair], tensor: Tensor) -> HiddenStates:
        """The hidden states of all pairs with the request in context: those that came with their
        answers, the others read."""
        name = f"states-{tensor.name}-{digest([self.settings, [asdict(p) for p in pairs]])}.f32"
        states = HiddenStates(self.cache / name, (self.model.n_layer, tensor.n_dims))
        states.truncate(len(states) // STATES_CHUNK * STATES_CHUNK)
        with self._captured(tensor) as captured:
            for start in range(len(states), len(pairs), STATES_CHUNK):
                self.progress("embeddings", start, len(pairs))
                chunk = pairs[start : start + STATES_CHUNK]
                kept = [captured.get(_key(pair)) for pair in chunk]
                read = self._read(chunk, tensor) if any(each is None for each in kept) else kept
                for deciding, answer in filter(None, read):
                    states.append(deciding, answer)
        self.progress("embeddings", len(pairs), len(pairs))
        return states

    def _read(
        self, pairs: Sequence[PreferencePair], tensor: Tensor
    ) -> Iterator[tuple[Sequence[FloatArray], Sequence[FloatArray]]]:
        """The states of pairs, each as `HiddenStates.append` takes it."""
        from alignez_edge.runtime.capture import capture

        items = [
            (self.tokens(request), self.model.tokenize(answer, begin=False))
            for pair in pairs
            for request, answer in _sides(pair)
        ]
        read = list(capture(self.model, items, tensor=tensor.name, n_ctx=self.ctx))
        for sides in zip(read[::2], read[1::2], strict=True):
            yield [side.deciding for side in sides], [side.answer for side in sides]

    def _captured(self, tensor: Tensor | None) -> CapturedStates:
        """The states at `tensor` that came with the answers; without one, none."""
        name, n_dims = (tensor.name, tensor.n_dims) if tensor else ("none", 0)
        path = self.cache / f"captured-{name}-{digest(self.settings)}.f32"
        return CapturedStates(path, (self.model.n_layer, n_dims))

    def query_states(self, queries: Sequence[str], tensor: TensorName) -> FloatArray:
        """The states at the last token of the plain prompts of `queries`: `(n, n_layer, n_embd)`,
        of an MLP or of the residual stream."""
        from alignez_edge.runtime.capture import capture

        states = np.zeros((len(queries), self.model.n_layer, self.model.n_embd), np.float32)
        items = ((self.model.ask_tokens(query), ()) for query in queries)
        for i, read in enumerate(capture(self.model, items, tensor=tensor, n_ctx=self.ctx)):
            self.progress("queries", i, len(queries))
            states[i] = read.deciding
        self.progress("queries", len(queries), len(queries))
        return states

    def questions(
        self, pairs: Sequence[PreferencePair], more: Sequence[str], choice: RequestChoice | None
    ) -> list[str]:
        """What is asked to calibrate: the queries of the held-back `pairs`, and where they are too
        few, those of `more`, in which the directions have no part."""
        form, probe = self._prompting(choice)
        asked = dict.fromkeys((*(pair.query for pair in pairs), *more))
        short = (query for query in asked if self.fits(query, (form, probe)))
        return list(islice(short, free_running.N_QUESTIONS))

    def free_running(
        self,
        questions: Sequence[str],
        profile: Steerable,
        way: Way,
        choice: RequestChoice | None,
        step: tuple[int, int] = (0, 1),
    ) -> list[FreeReading]:
        """The free-running answers to `questions`; finished ones are read back. `step` says which
        of how many such measurements this is. Raises `BadInputError` if this model does not
        allow `way`."""
        form, probe = self._prompting(choice)
        names = [way, form.name, probe.name, *(field.name for field in fields(FreeReading))]
        facts = [list(questions), GRID, free_running.N_TOKENS, profile.natural().order[1], names]
        log = Log(self.cache / f"calibration-{digest([self.settings, facts])}.jsonl", GO_ON)
        log.repair()
        lines = list(log.lines())
        whole = len(lines) if len(lines) == len(questions) else len(lines) // CHUNK * CHUNK
        if whole < len(lines):
            log.cut(lines[whole][0])
        readings = [FreeReading.from_json(line) for _, line in lines[:whole]]
        each = 2 * n_texts(questions)
        done = each * step[0] + 2 * n_texts(questions[:whole])

        def tick() -> None:
            nonlocal done
            self.progress("calibration", done, each * step[1])
            done += 1

        for start in range(whole, len(questions), CHUNK):
            found = read_questions(
                profile,
                self.model,
                questions[start : start + CHUNK],
                form=form,
                probe=probe,
                seed=self.seed,
                way=way,
                width=self.width,
                n_ctx=self.ctx,
                tick=tick,
            )
            log.append_lines([reading.to_json() for reading in found])
            readings += found
        self.progress("calibration", each * (step[0] + 1), each * step[1])
        return readings

    def prompted_cost(self, pairs: Sequence[PreferencePair]) -> tuple[Paid, Paid]:
        """What the plain model pays for the answers of either side, of some pairs, which were
        prompted for; read once."""
        some = pairs[:: max(1, len(pairs) // COST_PAIRS)][:COST_PAIRS]
        log = self.cache / f"cost-{digest([self.settings, [asdict(pair) for pair in some]])}.json"
        if not log.exists():
            sides = ("chosen", "rejected")
            texts = [[Text(pair.query, getattr(pair, side)) for pair in some] for side in sides]
            paid = [vars(paid_for(self.model, each, self.ctx)) for each in texts]
            write_atomic(log, json.dumps(paid).encode())
        wanted, unwanted = json.loads(log.read_text("utf-8"))
        return Paid(**wanted), Paid(**unwanted)

    def _prompting(self, choice: RequestChoice | None) -> tuple[RequestForm, RequestForm]:
        """The form in which either side is prompted for, and the one that answers are judged by."""
        form = form_for(choice.form if choice else "")
        return form, probe_for(form, choice.weights if choice else {})


def _sides(pair: PreferencePair) -> tuple[tuple[RequestText, str], tuple[RequestText, str]]:
    """What was asked and answered on either side."""
    wanted, unwanted = pair.requests()
    return (wanted, pair.chosen), (unwanted, pair.rejected)


def _key(pair: PreferencePair) -> str:
    """What a pair's states depend on, but for the settings of the build."""
    return digest([[vars(request), answer] for request, answer in _sides(pair)])


def queries_of(
    axis: Axis, queries: Sequence[str] | None, limit: int | None
) -> tuple[list[str], int]:
    """The queries that a build may ask, those given or the axis' own, and how many pairs it wants
    of them: `limit`, else all that are given."""
    asked = list(dict.fromkeys(queries if queries is not None else axis.queries))
    if not asked:
        raise BadInputError(f"the axis {axis.name} has no queries", "give some: --queries FILE")
    return asked, limit if limit is not None else max(DEFAULT_LIMIT, len(queries or ()))


def takes_system(model: Model) -> bool:
    """Whether the model's prompt form has a place of its own for a system text."""
    from alignez_edge.chat.messages import fold_system

    messages = RequestText("a", "b").messages()
    return model.prompt(messages) != model.prompt(fold_system(messages))


def _with_dropped(found: PairSet, reason: str, count: int) -> PairSet:
    return replace(found, dropped={**found.dropped, reason: count}) if count else found
