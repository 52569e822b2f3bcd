"""From an axis to a profile: pairs, embeddings, subspaces, layers, vectors, calibration.

Every finished step is kept in the work folder, in chunks that are computed alike whether or not
the build was interrupted: a build that was killed at any moment and started again ends with the
same profile as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge import prompts
from alignez_edge.axes import Axis
from alignez_edge.calibration import GRID, Calibration, Reading, calibrate, read_pair
from alignez_edge.embeddings import HiddenStates
from alignez_edge.errors import BadInputError
from alignez_edge.exact import exact_edit
from alignez_edge.files import cache_dir, make_folder, printable, user_dir
from alignez_edge.fit import Fit, TensorName, fit, tensor_of
from alignez_edge.forms import ExactForm, swap
from alignez_edge.geometry import Geometry
from alignez_edge.heads import attention_heads
from alignez_edge.methods import DEFAULT_METHOD, METHODS
from alignez_edge.pairs import (
    ANSWER_TOKENS,
    DESCRIPTION_TOKENS,
    PairSet,
    PairStore,
    PreferencePair,
    generate_pairs,
    read_labelled_pairs,
)
from alignez_edge.profile import Profile
from alignez_edge.vectors import ControlVector, check_layers

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.types import Injection

DEFAULT_LIMIT = 48
"""Queries a build uses unless it is told otherwise."""
MIN_PAIRS = 4
HELD_BACK_EVERY = 4
"""One pair in so many is kept from the directions and used for calibration."""
MAX_HELD_BACK = 12
STATES_CHUNK = 4
"""Pairs whose states are computed and kept together."""
TEMPERATURE = 0.8
_BOTH_SIGNS = (*GRID, *(-strength for strength in GRID))

Progress = Callable[[str, int, int], None]


def build_profile(
    model: Model,
    axis: Axis,
    *,
    queries: Sequence[str] | None = None,
    pairs: str | Path | None = None,
    method: str = DEFAULT_METHOD,
    layers: Sequence[int] | None = None,
    limit: int | None = None,
    seed: int = 0,
    width: int = 16,
    work: str | Path | None = None,
    on_progress: Progress | None = None,
    author: str = "",
    licence: str = "",
) -> Profile:
    """Build the steering profile of `axis` for `model`.

    `queries` (default: the axis' own) are answered by the model itself, both ways; `pairs` names a
    file of labelled pairs to use instead. `limit` is the number of queries used. `layers` (default:
    chosen by measurement) are those to edit, 1 to n_layer - 1. `work` is the folder of the build in
    progress, by default one in the user's data folder that these very arguments lead to again.
    `on_progress(step, done, total)` is called as the work goes on.

    Raises `BadInputError` where there is too little to work with; `KeyboardInterrupt` passes
    through, and the same call goes on where it was.
    """
    if method not in METHODS:
        raise BadInputError(f"no method is called {method!r}", f"choose from {', '.join(METHODS)}")
    _check_steerable(model, layers)
    heads = attention_heads(model.gguf, model.lora) if tensor_of(method) == "kqv_out" else None
    builder = _Builder(model, axis, seed, width, work, on_progress or (lambda *_: None))
    if pairs is not None:
        found = builder.that_fit(read_labelled_pairs(pairs, axis))
    else:
        found = builder.generated(queries, limit)
    usable = found.pairs
    if len(usable) < MIN_PAIRS:
        dropped = ", ".join(f"{n} {reason}" for reason, n in found.dropped.items())
        raise BadInputError(
            f"{len(usable)} of at least {MIN_PAIRS} usable pairs"
            + (f" (dropped: {dropped})" if dropped else ""),
            "use more queries, or another wording of the axis",
        )
    train, held_back = split(len(usable))
    n_dims = heads.n_dims if heads else model.n_embd
    with builder.states(usable, tensor_of(method), n_dims) as states:
        result = fit(states, train, method, layers, builder.progress, heads)
        form = swap(states, train, result.layers) if method == "alignez-v1" else None
        geometry = Geometry.measure(states, train)
    judges = [usable[i] for i in held_back]
    calibration = builder.calibration(judges, result.vector)
    if form is not None:
        exact = builder.exact_calibration(judges, form)
        form = replace(form, unit=exact.unit) if exact is not None else None
    return Profile(
        axis=axis,
        vector=result.vector,
        layers=result.layers,
        fingerprint=model.fingerprint,
        unit=calibration.unit,
        method=method,
        calibration=_curves(calibration),
        seed=seed,
        pairs=len(usable),
        dropped=found.dropped,
        versions=_versions(),
        author=author,
        licence=licence,
        model=printable(model.facts.name),
        report=_report(result, calibration, held_back) | geometry.to_report(),
        exact=form,
    )


def _check_steerable(model: Model, layers: Sequence[int] | None) -> None:
    """Refuse what cannot work before the long work begins."""
    facts = model.facts
    if facts.n_layer < 2 or not facts.can_steer:
        reason = "has one layer only" if facts.n_layer < 2 else "takes no control vectors"
        raise BadInputError(f"{printable(facts.name)} ({facts.architecture}) {reason}")
    if layers is not None:
        try:
            check_layers(layers, facts.n_layer)
        except ValueError as failure:
            raise BadInputError(f"{failure}", "layer 0 cannot be edited") from None


def split(n_pairs: int) -> tuple[list[int], list[int]]:
    """The pairs for the directions, and those held back for calibration (disjoint)."""
    held_back = list(range(HELD_BACK_EVERY - 1, n_pairs, HELD_BACK_EVERY))[:MAX_HELD_BACK]
    return [i for i in range(n_pairs) if i not in set(held_back)], held_back


@dataclass
class _Builder:
    """The steps that need the model, each kept in a file as it goes."""

    model: Model
    axis: Axis
    seed: int
    width: int
    work: str | Path | None
    progress: Progress

    def __post_init__(self) -> None:
        wording = asdict(self.axis)
        del wording["queries"], wording["description"]
        self.settings: dict[str, str | int] = {
            "axis": json.dumps(wording, sort_keys=True, ensure_ascii=False),
            "model": self.model.fingerprint.digest(),
            "quantization": self.model.facts.quantization,
            "seed": self.seed,
            "width": self.width,
            "threads": self.model.threads,
        }
        key = _digest(self.settings)
        name = f"{self.axis.name}-{key}"
        self.folder = make_folder(Path(self.work) if self.work else user_dir() / "builds" / name)
        self.cache = make_folder(Path(self.work) if self.work else cache_dir() / "builds" / name)

    def generated(self, queries: Sequence[str] | None, limit: int | None) -> PairSet:
        """The model's own pairs."""
        asked = list(dict.fromkeys(queries if queries is not None else self.axis.queries))
        asked = asked[: limit if limit is not None else max(DEFAULT_LIMIT, len(queries or ()))]
        if not asked:
            raise BadInputError(
                f"the axis {self.axis.name} has no queries", "give some: --queries FILE"
            )
        # The longest request is the query under a description of full length.
        room = self.window - DESCRIPTION_TOKENS - ANSWER_TOKENS
        short = [
            query
            for query in asked
            if len(self._prompt(prompts.describe(query, self.axis, "negative"))) <= room
        ]
        store = PairStore(self.folder / "pairs.jsonl", self.settings)
        found = generate_pairs(
            self._complete,
            self.axis,
            short,
            store,
            seed=self.seed,
            on_progress=lambda done, total: self.progress("pairs", done, total),
        )
        return _with_dropped(found, "too long", len(asked) - len(short))

    def that_fit(self, found: PairSet) -> PairSet:
        """Labelled pairs without those that are longer than the context window."""
        kept = [
            pair
            for pair in found.pairs
            if all(
                len(self._prompt(request)) + len(self.model.tokenize(text, begin=False))
                < self.window
                for request, text in (
                    (pair.chosen_request, pair.chosen),
                    (pair.rejected_request, pair.rejected),
                    (pair.query, pair.chosen),
                    (pair.query, pair.rejected),
                )
            )
        ]
        dropped = len(found.pairs) - len(kept)
        return _with_dropped(PairSet(tuple(kept), found.dropped), "too long", dropped)

    @property
    def window(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        from alignez_edge.runtime.context import window

        return window(self.model, None)

    def _complete(
        self, user_texts: Sequence[str], seeds: Sequence[int], max_tokens: int
    ) -> Iterator[tuple[int, str]]:
        from alignez_edge.runtime.batch import generate_batch
        from alignez_edge.runtime.types import Request, Sampling

        requests = (
            Request(
                self._prompt(text),
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
        for completion in generate_batch(self.model, requests, width=self.width):
            yield completion.index, completion.text

    def _prompt(self, text: str) -> tuple[int, ...]:
        return self.model.prompt([{"role": "user", "content": text}]).tokens

    def states(
        self, pairs: Sequence[PreferencePair], tensor: TensorName, n_dims: int
    ) -> HiddenStates:
        """The hidden states of all pairs, `n_dims` a layer, read with the request in context."""
        from alignez_edge.runtime.capture import capture

        name = f"states-{tensor}-{_digest([self.settings, [asdict(p) for p in pairs]])}.f32"
        states = HiddenStates(self.cache / name, (self.model.n_layer, n_dims))
        states.truncate(len(states) // STATES_CHUNK * STATES_CHUNK)
        for start in range(len(states), len(pairs), STATES_CHUNK):
            self.progress("embeddings", start, len(pairs))
            items = [
                (self._prompt(request), self.model.tokenize(answer, begin=False))
                for pair in pairs[start : start + STATES_CHUNK]
                for request, answer in (
                    (pair.chosen_request, pair.chosen),
                    (pair.rejected_request, pair.rejected),
                )
            ]
            read = list(capture(self.model, items, tensor=tensor, n_dims=n_dims))
            for chosen, rejected in zip(read[::2], read[1::2], strict=True):
                states.append(
                    deciding=(chosen.deciding, rejected.deciding),
                    answer=(chosen.answer, rejected.answer),
                )
        self.progress("embeddings", len(pairs), len(pairs))
        return states

    def calibration(self, pairs: Sequence[PreferencePair], vector: ControlVector) -> Calibration:
        """Measure the held-back pairs over the grid; finished ones are read back."""
        from alignez_edge.runtime.types import Injection

        scaled = [vector * strength for strength in _BOTH_SIGNS]
        edit = vector.deciding.tobytes().hex() + vector.answer.tobytes().hex()
        return self._calibrated(pairs, [Injection(v.deciding, v.answer) for v in scaled], edit)

    def exact_calibration(
        self, pairs: Sequence[PreferencePair], form: ExactForm
    ) -> Calibration | None:
        """The same for an exact form; None where this model cannot be edited exactly."""
        from alignez_edge.runtime.adapter import Adapter
        from alignez_edge.runtime.types import Injection

        try:
            made = [
                exact_edit(self.model.gguf, e, lora=self.model.lora) for e in form.edits.values()
            ]
        except BadInputError:
            return None
        adapters = [Adapter(self.model, each.adapter) for each in made]
        injections = [
            Injection(
                *(np.float32(strength) * each.constants for each in made),
                *(((adapter, strength),) for adapter in adapters),
            )
            for strength in _BOTH_SIGNS
        ]
        edit = hashlib.sha256(b"".join(each.adapter for each in made)).hexdigest()
        return self._calibrated(pairs, injections, edit)

    def _calibrated(
        self, pairs: Sequence[PreferencePair], injections: Sequence[Injection], edit: str
    ) -> Calibration:
        key = _digest([self.settings, [asdict(pair) for pair in pairs], list(GRID), edit])
        log = self.cache / f"calibration-{key}.jsonl"
        readings = [Reading.from_json(line) for line in _whole_lines(log)][: len(pairs)]
        with log.open("a", encoding="utf-8") as file:
            for done, pair in enumerate(pairs[len(readings) :], len(readings)):
                self.progress("calibration", done, len(pairs))
                asked = [
                    self._prompt(prompts.ask(pair.query, prompts.trait(self.axis, side)))
                    for side in prompts.SIDES
                ]
                answers = [
                    self.model.tokenize(text, begin=False) for text in (pair.chosen, pair.rejected)
                ]
                plain = self._prompt(pair.query)
                reading = read_pair(self.model, plain, asked, answers, injections)
                file.write(reading.to_json() + "\n")
                file.flush()
                readings.append(reading)
        self.progress("calibration", len(pairs), len(pairs))
        return calibrate(Reading.mean(readings))


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


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {}
    for name in ("alignez-edge", "llama-cpp-python", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _curves(calibration: Calibration) -> dict[str, float | tuple[float, ...]]:
    return {
        "strengths": tuple(map(float, calibration.strengths)),
        "margin": tuple(map(float, calibration.margin)),
        "drift": tuple(map(float, calibration.drift)),
        "asked_margin": tuple(map(float, calibration.asked_margin)),
        "asked_drift": tuple(map(float, calibration.asked_drift)),
    }


def _report(result: Fit, calibration: Calibration, held_back: Sequence[int]) -> dict[str, object]:
    return {
        "held_back": len(held_back),
        "unit_limit": calibration.limit,
        "separation": [round(float(x), 4) for x in result.separation],
        "interlayer_cosine": [round(float(x), 4) for x in result.interlayer],
    }
