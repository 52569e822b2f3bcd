"""Does steering last, turn after turn? `python -m benchmarks.turns`.

Chats of ten questions are answered plain, prompted once (in the first turn, as a user asks),
prompted in every turn, and steered in every turn; each arm has its own answers in its history.
An instrument judges what was said at the first turn, in the middle and at the last one. Every
question stands at every turn once, so that turns differ in nothing but what came before.

The cost is what the plain model thinks of an answer after the same history, from which the requests
are left out. Everything is kept in the folder of `benchmarks.real`, whose profiles are used.
"""

from __future__ import annotations

from alignez_edge.arrays import DoubleArray
from alignez_edge.threads import calm

calm()  # before NumPy and llama.cpp are loaded

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignez_edge.chat.messages import Message
from alignez_edge.evaluation.measures import Resamples
from alignez_edge.modelfiles.names import ModelNames
from alignez_edge.preferences.axes import Axis, Side
from alignez_edge.preferences.prompts import SIDES
from alignez_edge.preferences.queries import read_queries
from alignez_edge.preferences.requests import RequestForm
from alignez_edge.profile.profile import Profile
from alignez_edge.repeatable import derive_seed
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.scheduler import Scheduler
from alignez_edge.runtime.score import score_batch
from benchmarks.instruments import INSTRUMENTS
from benchmarks.kept import Estimate, Kept, key_of
from benchmarks.real import (
    LONG,
    QUESTIONS,
    answers_folder,
    parser_of,
    profile_of,
    prompting,
    strongest,
    tell,
)
from benchmarks.real_answers import Answers, Say, mark_of
from benchmarks.real_report import as_table, interval, number
from benchmarks.requests import OWN
from benchmarks.steering import say

MARKER = "turns"
WIDTH = 4
"""Chats that are held side by side: every token looks at the cells of all of them."""
_SLACK = 8
"""Tokens that an answer may take more in a history than as it was drawn, its end included."""


@dataclass(frozen=True)
class Way:
    """A way of holding a chat: asked for `side` in the first turn or, with `always`, in every turn;
    or steered at `strength` in every turn."""

    name: str
    side: Side | None = None
    always: bool = False
    strength: float = 0.0

    def asks(self, turn: int) -> bool:
        """Whether the side is asked for in a turn, counted from 0."""
        return self.side is not None and (self.always or turn == 0)


PLAIN = Way("plain")
WAYS = (
    PLAIN,
    *(Way(f"prompted once {sign}", side) for sign, side in zip("+-", SIDES, strict=True)),
    *(Way(f"prompted always {sign}", side, True) for sign, side in zip("+-", SIDES, strict=True)),
    *(Way(f"steered {sign}1", strength=float(f"{sign}1")) for sign in "+-"),
)


@dataclass(frozen=True)
class Spoken:
    """The answers of an arm, all `(n_chat, n_turn)`, row by row of the same question; a score is
    NaN where there is nothing to judge, and `nats` is where it was not asked for."""

    scores: DoubleArray
    nats: DoubleArray
    tokens: DoubleArray


def rotation(n_chats: int, n_turns: int) -> list[list[int]]:
    """Which question each chat asks at each turn, `[n_chats][n_turns]`.

    Every question stands at every turn once, and hardly ever follows the same one again: a zigzag
    0, 1, -1, 2, -2 ..., turned on by one from chat to chat (Williams 1949).
    """
    if not 1 <= n_turns <= n_chats:
        raise SystemExit(f"{n_turns} turns need as many chats or more, not {n_chats}")
    zigzag = [(turn + 1) // 2 * (1 if turn % 2 else -1) for turn in range(n_turns)]
    return [[(chat + step) % n_chats for step in zigzag] for chat in range(n_chats)]


def shown(n_turns: int) -> list[int]:
    """The turns that are told of, counted from 0: first, middle and last."""
    return sorted({0, (n_turns + 1) // 2 - 1, n_turns - 1})


class Chats:
    """The chats about `queries` on one axis, kept in `folder`."""

    def __init__(
        self,
        model: Model,
        axis: Axis,
        form: RequestForm,
        profile: Profile,
        queries: Sequence[str],
        folder: Path,
        *,
        n_turns: int,
        n_tokens: int,
        seed: int,
        say: Say,
    ) -> None:
        self._model, self._axis, self._form, self._profile = model, axis, form, profile
        self._queries, self._n_tokens, self._seed, self._say = queries, n_tokens, seed, say
        self._order = rotation(len(queries), n_turns)
        self._kept = Kept(folder / "turns.jsonl")
        self._estimate = Estimate(len(WAYS) * len(queries) * n_turns)
        empty = [""] * (n_turns - 1)
        longest = max(
            len(model.prompt(self.messages(way, chat, empty)).tokens)
            for way in WAYS
            for chat in range(len(queries))
        )
        self._n_ctx = longest + n_turns * (n_tokens + _SLACK)

    def messages(self, way: Way, chat: int, answers: Sequence[str]) -> list[Message]:
        """The conversation of a chat up to the question after `answers`."""
        messages: list[Message] = []
        for turn, row in enumerate(self._order[chat][: len(answers) + 1]):
            query, asked = self._queries[row], None
            if way.side is not None and way.asks(turn):
                is_chat = self._model.template is not None
                asked = self._form.request(query, self._axis, way.side, chat=is_chat)
                if turn == 0 and asked.system:
                    messages.append({"role": "system", "content": asked.system})
            messages.append({"role": "user", "content": asked.user if asked else query})
            if turn < len(answers):
                messages.append({"role": "assistant", "content": answers[turn]})
        return messages

    def hold(self, way: Way) -> Spoken:
        """All chats of one arm; what is kept is not said again."""
        texts: list[list[str]] = [[] for _ in self._order]
        keys: list[list[str]] = [[] for _ in self._order]
        everything = range(len(self._order))
        for first in range(0, len(self._order), WIDTH):
            self._talk(way, everything[first : first + WIDTH], texts, keys)
        self._score(texts, keys)
        return self._spoken(texts, keys)

    def _talk(
        self, way: Way, group: Sequence[int], texts: list[list[str]], keys: list[list[str]]
    ) -> None:
        """The chats of a group, turn by turn in one batch; `texts` and `keys` grow by theirs."""
        with ExitStack() as stack:
            scheduler = None
            for turn in range(len(self._order[0])):
                talks = {chat: self.messages(way, chat, texts[chat]) for chat in group}
                for chat, talk in talks.items():
                    keys[chat].append(self._key(way, talk, chat, turn))
                known = self._kept.records
                missing = {c: talk for c, talk in talks.items() if keys[c][-1] not in known}
                self._estimate.skip(len(group) - len(missing))
                if missing:
                    scheduler = scheduler or stack.enter_context(self._scheduler(len(group)))
                    made = self._answers(scheduler, way, turn, missing)
                    self._kept.add({keys[chat][-1]: record for chat, record in made.items()})
                    told = self._estimate.after(len(missing))
                    self._say(f"{self._axis.name}: {way.name}, turn {turn + 1}: answers, {told}")
                for chat in group:
                    texts[chat].append(known[keys[chat][-1]]["text"])

    def _scheduler(self, n_chats: int) -> Scheduler:
        """A batch that keeps what each of its chats has read."""
        cells = n_chats * self._n_ctx
        return Scheduler(self._model, n_slots=n_chats, n_ctx=self._n_ctx, n_cells=cells, keep=cells)

    def _key(self, way: Way, talk: Sequence[Message], chat: int, turn: int) -> str:
        steering = mark_of(self._profile, way.strength)
        facts = [self._seed, chat, turn, self._n_tokens]
        return key_of(self._model.fingerprint.digest(), talk, steering, *facts)

    def _answers(
        self, scheduler: Scheduler, way: Way, turn: int, talks: Mapping[int, list[Message]]
    ) -> dict[int, dict[str, Any]]:
        """The next answer of each of these chats; the seed is the same in every arm."""
        steering = (self._profile * way.strength).injection(self._model) if way.strength else None
        requests = [
            Request(
                self._model.prompt(talk).tokens,
                Sampling(
                    seed=derive_seed(self._seed, str(chat), str(turn)),
                    max_tokens=self._n_tokens,
                    stop=self._model.stops,
                ),
                chat,
                steering,
            )
            for chat, talk in talks.items()
        ]
        return {
            done.index: {"text": done.text.strip(), "tokens": done.tokens}
            for done in scheduler.complete(requests)
        }

    def _score(self, texts: Sequence[Sequence[str]], keys: Sequence[Sequence[str]]) -> None:
        """Keep what the plain model thinks of the shown turns, the requests left out."""
        items, names = [], []
        for chat, own in enumerate(keys):
            for turn in shown(len(own)):
                tokens = self._kept.records[own[turn]]["tokens"]
                name = f"{own[turn]} nats"
                if tokens and name not in self._kept.records:
                    history = self.messages(PLAIN, chat, texts[chat][:turn])
                    items.append((self._model.prompt(history).tokens, tokens))
                    names.append(name)
        if items:
            scored = score_batch(self._model, items, n_ctx=self._n_ctx)
            nats = [{"nats": -float(found.sum())} for found in scored]
            self._kept.add(dict(zip(names, nats, strict=True)))

    def _spoken(self, texts: Sequence[Sequence[str]], keys: Sequence[Sequence[str]]) -> Spoken:
        """The answers by question and turn."""
        scores, nats, tokens = (np.full((len(keys), len(keys[0])), np.nan) for _ in range(3))
        for chat, order in enumerate(self._order):
            for turn, row in enumerate(order):
                key = keys[chat][turn]
                score = INSTRUMENTS[self._axis.name].score(texts[chat][turn])
                scores[row, turn] = np.nan if score is None else score
                tokens[row, turn] = len(self._kept.records[key]["tokens"])
                found = self._kept.records.get(f"{key} nats", {"nats": 0.0})
                nats[row, turn] = found["nats"] if turn in shown(len(order)) else np.nan
        return Spoken(scores, nats, tokens)


def figures(held: Mapping[str, Spoken]) -> dict[str, Any]:
    """By arm: `effect` and `cost` above plain at each shown turn, and how the effect has changed
    from the first turn to the last. The leaves are `Figure`s, over questions."""
    n_chats, n_turns = held[PLAIN.name].scores.shape
    resamples, turns = Resamples(n_chats), shown(n_turns)

    def effect(name: str, turn: int) -> DoubleArray:
        return resamples.mean(held[name].scores[:, [turn]])

    def cost(name: str, turn: int) -> DoubleArray:
        return resamples.ratio(held[name].nats[:, [turn]], held[name].tokens[:, [turn]])

    found: dict[str, Any] = {
        PLAIN.name: {
            "effect": [resamples.figure(effect(PLAIN.name, turn)) for turn in turns],
            "cost": [resamples.figure(cost(PLAIN.name, turn)) for turn in turns],
        }
    }
    for name in held:
        if name != PLAIN.name:
            effects = [effect(name, turn) - effect(PLAIN.name, turn) for turn in turns]
            costs = [cost(name, turn) - cost(PLAIN.name, turn) for turn in turns]
            found[name] = {
                "effect": [resamples.figure(sample) for sample in effects],
                "cost": [resamples.figure(sample) for sample in costs],
                "change": resamples.figure(effects[-1] - effects[0]),
            }
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The table: a row for each arm of each axis."""
    turns = [turn + 1 for turn in shown(result["turns"])]
    head = ["axis", "arm", *(f"turn {turn}" for turn in turns), f"turn {turns[-1]} less turn 1"]
    head += [f"nats, turn {turn}" for turn in turns]
    rows = []
    for axis, table in result["axes"].items():
        for arm, cell in table["arms"].items():
            if arm == PLAIN.name:
                effects = [number(figure.mean) for figure in cell["effect"]]
                rows.append([axis, arm, *effects, "", *(f"{f.mean:.2f}" for f in cell["cost"])])
                continue
            effects = [interval(figure) for figure in (*cell["effect"], cell["change"])]
            costs = [interval(figure) for figure in cell["cost"]]
            rows.append([axis, arm.replace("-", "−"), *effects, *costs])
    axes = result["axes"].items()
    forms = ", ".join(f"{axis} {table['form']}" for axis, table in axes)
    lengths = ", ".join(f"{axis} {table['tokens']}" for axis, table in axes)
    return "\n\n".join(
        [
            f"{result['model']}: {result['chats']} chats of {result['turns']} questions; "
            f"tokens of an answer at most: {lengths}; prompted in the strongest form ({forms}). "
            "The row of plain says how it scores and what it costs, the others how far they lie "
            "above it at the same turn, with 95 % intervals over the questions.",
            as_table(head, rows),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, ["cheerful", "concise"])
    parser.add_argument("--chats", type=int, default=12, help="chats, and questions in turn")
    parser.add_argument("--turns", type=int, default=10, help="questions of a chat")
    parser.add_argument("--choosing", type=int, default=24, help="questions to choose the form on")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    queries = read_queries(QUESTIONS / "report.jsonl", options.chats)
    rotation(len(queries), options.turns)  # before the long work begins
    others = read_queries(QUESTIONS / "choosing.jsonl", options.choosing)
    axes: dict[str, Any] = {}
    with Model.load(ModelNames().find(options.model), threads=options.threads) as model:
        folder = answers_folder(model, options.folder)
        answers = Answers(model, folder, options.tokens, say)
        for name in options.axes:
            axis = OWN.get(name) or Axis.builtin(name)
            profile = profile_of(model, name, axis, folder, options.limit, say)
            forms = [form for form in prompting(model, axis) if not form.two_steps]
            n_tokens = LONG.get(name, 1) * options.tokens
            form, _ = strongest(answers, name, axis, forms, others, say, n_tokens)
            chats = Chats(
                model,
                axis,
                form,
                profile,
                queries,
                folder,
                n_turns=options.turns,
                n_tokens=n_tokens,
                seed=options.seed,
                say=say,
            )
            held = {way.name: chats.hold(way) for way in WAYS}
            axes[name] = {"form": form.name, "tokens": n_tokens, "arms": figures(held)}
    result = {
        "model": model.path.name,
        "chats": len(queries),
        "turns": options.turns,
        "seed": options.seed,
        "axes": axes,
    }
    tell(result, markdown(result), MARKER, options)


if __name__ == "__main__":
    main()
