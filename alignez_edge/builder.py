"""The steps of a build that need the model, each kept in a file as it goes.

Every step is computed in chunks that are alike whether or not the build was interrupted: a build
that was killed at any moment and started again ends with the same profile as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignez_edge import prompts
from alignez_edge.axes import Axis
from alignez_edge.calibration import GRID, Calibration, Reading, calibrate, read_profile
from alignez_edge.embeddings import HiddenStates
from alignez_edge.errors import BadInputError
from alignez_edge.files import cache_dir, make_folder, user_dir
from alignez_edge.fit import TensorName
from alignez_edge.methods import Way
from alignez_edge.pairs import (
    ANSWER_TOKENS,
    DESCRIPTION_TOKENS,
    PairSet,
    PairStore,
    PreferencePair,
    generate_pairs,
)

if TYPE_CHECKING:
    from alignez_edge.profile import Profile
    from alignez_edge.recontrol import ReControl
    from alignez_edge.runtime.model import Model

FloatArray = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]

DEFAULT_LIMIT = 48
"""Queries a build uses unless it is told otherwise."""
STATES_CHUNK = 4
"""Pairs whose states are computed and kept together."""
TEMPERATURE = 0.8
_BOTH_SIGNS = (*GRID, *(-strength for strength in GRID))


@dataclass
class Builder:
    """The steps that need the model, each kept in a file as it goes."""

    model: Model
    axis: Axis
    seed: int
    width: int
    ctx: int | None
    work: str | Path | None
    progress: Progress

    def __post_init__(self) -> None:
        self.settings: dict[str, str | int] = {
            "axis": json.dumps(self.axis.wording(), sort_keys=True, ensure_ascii=False),
            "model": self.model.fingerprint.digest(),
            "contents": self.model.gguf.contents(),
            "quantization": self.model.facts.quantization,
            "seed": self.seed,
            "width": self.width,
            "threads": self.model.threads,
        }
        if self.ctx is not None:
            self.settings["ctx"] = self.ctx
        key = digest(self.settings)
        name = f"{self.axis.name}-{key}"
        self.folder = make_folder(Path(self.work) if self.work else user_dir() / "builds" / name)
        self.cache = make_folder(Path(self.work) if self.work else cache_dir() / "builds" / name)

    def generated(self, asked: Sequence[str]) -> PairSet:
        """The model's own pairs for these queries."""
        # The longest request is the query under a description of full length.
        room = self.window - DESCRIPTION_TOKENS - ANSWER_TOKENS
        short = [
            query
            for query in asked
            if len(self.model.ask_tokens(prompts.describe(query, self.axis, "negative"))) <= room
        ]
        found = generate_pairs(
            self._complete,
            self.axis,
            short,
            PairStore(self.folder / "pairs.jsonl", self.settings),
            seed=self.seed,
            on_progress=lambda done, total: self.progress("pairs", done, total),
        )
        return _with_dropped(found, "too long", len(asked) - len(short))

    def that_fit(self, found: PairSet) -> PairSet:
        """Labelled pairs without those that are longer than the context window."""
        wishes = [prompts.trait(self.axis, side) for side in prompts.SIDES]

        def length(pair: PreferencePair) -> int:
            """Calibration scores both answers under the query and under both wishes."""
            asked = [pair.query, *(prompts.ask(pair.query, wish) for wish in wishes)]
            asked += [pair.chosen_request, pair.rejected_request]
            answers = [
                self.model.tokenize(text, begin=False) for text in (pair.chosen, pair.rejected)
            ]
            return max(len(self.model.ask_tokens(text)) for text in asked) + max(map(len, answers))

        kept = [pair for pair in found.pairs if length(pair) < self.window]
        dropped = len(found.pairs) - len(kept)
        return _with_dropped(PairSet(tuple(kept), found.dropped), "too long", dropped)

    @property
    def window(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        from alignez_edge.runtime.context import window

        return window(self.model, self.ctx)

    def _complete(
        self, user_texts: Sequence[str], seeds: Sequence[int], max_tokens: int
    ) -> Iterator[tuple[int, str]]:
        from alignez_edge.runtime.batch import generate_batch
        from alignez_edge.runtime.types import Request, Sampling

        requests = (
            Request(
                self.model.ask_tokens(text),
                Sampling(
                    temperature=TEMPERATURE,
                    top_p=1.0,
                    seed=seed,
                    max_tokens=max_tokens,
                    stop=self.model.stops,
                ),
                index,
            )
            for index, (text, seed) in enumerate(zip(user_texts, seeds, strict=True))
        )
        batch = generate_batch(self.model, requests, width=self.width, n_ctx_per_sequence=self.ctx)
        for completion in batch:
            yield completion.index, completion.text

    def states(
        self, pairs: Sequence[PreferencePair], tensor: TensorName, n_dims: int
    ) -> HiddenStates:
        """The hidden states of all pairs, `n_dims` a layer, read with the request in context."""
        from alignez_edge.runtime.capture import capture

        name = f"states-{tensor}-{digest([self.settings, [asdict(p) for p in pairs]])}.f32"
        states = HiddenStates(self.cache / name, (self.model.n_layer, n_dims))
        states.truncate(len(states) // STATES_CHUNK * STATES_CHUNK)
        for start in range(len(states), len(pairs), STATES_CHUNK):
            self.progress("embeddings", start, len(pairs))
            items = [
                (self.model.ask_tokens(request), self.model.tokenize(answer, begin=False))
                for pair in pairs[start : start + STATES_CHUNK]
                for request, answer in (
                    (pair.chosen_request, pair.chosen),
                    (pair.rejected_request, pair.rejected),
                )
            ]
            read = list(capture(self.model, items, tensor=tensor, n_ctx=self.ctx))
            for chosen, rejected in zip(read[::2], read[1::2], strict=True):
                states.append(
                    deciding=(chosen.deciding, rejected.deciding),
                    answer=(chosen.answer, rejected.answer),
                )
        self.progress("embeddings", len(pairs), len(pairs))
        return states

    def query_states(self, queries: Sequence[str], tensor: TensorName) -> FloatArray:
        """The states at the last token of the plain prompts of `queries`: `(n, n_layer, n_embd)`,
        of an MLP or of the residual stream."""
        from alignez_edge.runtime.capture import capture

        found = np.zeros((len(queries), self.model.n_layer, self.model.n_embd), np.float32)
        items = ((self.model.ask_tokens(query), ()) for query in queries)
        for i, read in enumerate(capture(self.model, items, tensor=tensor, n_ctx=self.ctx)):
            self.progress("queries", i, len(queries))
            found[i] = read.deciding
        self.progress("queries", len(queries), len(queries))
        return found

    def value_function(self, pairs: Sequence[PreferencePair]) -> ReControl:
        """RE-Control's value function of these pairs, trained once."""
        from alignez_edge.recontrol import from_pairs, train

        self.progress("value function", 0, 1)
        scored = from_pairs(self.model, pairs)
        trained = train(self.model, scored, seed=self.seed, n_ctx=self.ctx)
        self.progress("value function", 1, 1)
        return trained.steering

    def calibration(
        self, pairs: Sequence[PreferencePair], profile: Profile, way: Way
    ) -> Calibration:
        """Measure `profile`, at unit 1, on the held-back `pairs` over the grid; finished ones are
        read back. Raises `BadInputError` where this model does not allow `way`."""
        key = digest(
            [self.settings, [asdict(pair) for pair in pairs], list(GRID), profile.order[1], way]
        )
        log = self.cache / f"calibration-{key}.jsonl"
        readings = [Reading.from_json(line) for line in _whole_lines(log)][: len(pairs)]
        with log.open("a", encoding="utf-8") as file:
            for done, pair in enumerate(pairs[len(readings) :], len(readings)):
                self.progress("calibration", done, len(pairs))
                reading = read_profile(profile, self.model, pair, _BOTH_SIGNS, way, n_ctx=self.ctx)
                file.write(reading.to_json() + "\n")
                file.flush()
                readings.append(reading)
        self.progress("calibration", len(pairs), len(pairs))
        return calibrate(Reading.mean(readings))


def queries_of(axis: Axis, queries: Sequence[str] | None, limit: int | None) -> list[str]:
    """The queries that a build uses: those given, else the axis' own; at most `limit`."""
    asked = list(dict.fromkeys(queries if queries is not None else axis.queries))
    asked = asked[: limit if limit is not None else max(DEFAULT_LIMIT, len(queries or ()))]
    if not asked:
        raise BadInputError(f"the axis {axis.name} has no queries", "give some: --queries FILE")
    return asked


def _with_dropped(found: PairSet, reason: str, count: int) -> PairSet:
    return PairSet(found.pairs, {**found.dropped, reason: count} if count else found.dropped)


def _whole_lines(path: Path) -> list[str]:
    """The finished lines of a log; a line that a kill has torn is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    return whole.decode("utf-8").splitlines()


def digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
