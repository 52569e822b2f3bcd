"""Run folders made on the spot, as `alignez eval` leaves them, with answers and verdicts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignez_edge.evaluation.arms import Aim, Arm, asked, plain
from alignez_edge.evaluation.results import results_of
from alignez_edge.evaluation.runfolder import RunFolder
from alignez_edge.preferences.axes import Axis

POLITE = Axis("polite", "polite", "rude")
FORMAL = Axis("formal", "formal", "casual")


def arm(
    axis: Axis, strength: float, sweep: dict[str, str | float] | None = None, name: str = ""
) -> Arm:
    """The arm of a profile of `axis`, as the folder describes it."""
    aim = Aim(axis, "negative" if strength < 0 else "positive")
    given = name or f"{axis.name}:{strength:g}"
    return Arm(given, "steered", axis.name, strength, (aim,), sweep=sweep or {})


def make_run(
    folder: Path,
    arms: Sequence[Arm],
    *,
    n_query: int = 6,
    seeds: int = 2,
    scored: bool = True,
    asking: bool = True,
    text: str = "Answer {arm} {query} {seed}.",
    finished: bool = True,
    tied: Collection[str] = (),
) -> RunFolder:
    """A run of the arms in `folder`; a stronger arm moves the score further, with some noise. All
    verdicts on arms of the kinds `tied` are ties.

    An arm of two aims is a cell of a grid: its name says how far it moves either axis.
    """
    rng = np.random.default_rng(0)
    every = [plain(), *(asked(arms) if asking else ()), *arms]
    described = []
    for one in every:
        told = one.describe()
        if one.kind == "steered":
            told["steering"] = [
                {"profile": profile, "strength": s, "digest": f"{profile:0<16.16}"}
                for profile, s in _terms(one).items()
            ]
            told["way"] = "auto"
        described.append(told)
    settings = {
        "model": "tiny model",
        "fingerprint": "f" * 64,
        "quantization": "Q8_0",
        "queries": {"digest": "d" * 16, "count": n_query},
        "seeds": seeds,
        "sampling": {"temperature": 0.8},
        "context": 512,
        "judge": "rules",
        "reference": None,
        "neutral": "",
        "arms": described,
    }
    run = RunFolder.begin(folder, settings)
    cells = [(q, s) for q in range(n_query) for s in range(seeds)]
    for one in every:
        run.answers.append(
            [
                {
                    "arm": one.name, "query_index": q, "query": f"Query {q}?", "facts": {},
                    "seed_index": s, "seed": 1000 * s + q, "tokens": 10 + q,
                    "text": text.format(arm=one.name, query=q, seed=s),
                    "finish_reason": "stop", "nats": 5.0 + 0.2 * abs(one.strength),
                }
                for q, s in cells
            ]
        )  # fmt: skip
        drift = {"drift": 0.01 * one.strength**2, "nats": 6.0, "tokens": 12}
        run.drift.append([{"arm": one.name, "text_index": 0, **drift}])
        for aim in one.aims:
            by = _terms(one).get(aim.axis.name, 0.0)
            found = [_verdict(rng, one, aim, by, q, s, scored) for q, s in cells]
            if one.kind in tied:
                found = [verdict | {"preference": 0.0, "scores": {}} for verdict in found]
            run.verdicts.append(found)
    if finished:
        run.write_results(results_of(run))
    return run


def _terms(one: Arm) -> dict[str, float]:
    """The strengths of an arm by the name of the axis."""
    if len(one.aims) < 2 or one.kind != "steered":
        return {one.profile: one.strength}
    parts = (part.split(":") for part in one.name.split(" + "))
    return {axis: float(strength) for axis, strength in parts}


def _verdict(
    rng: np.random.Generator, one: Arm, aim: Aim, by: float, query: int, seed: int, scored: bool
) -> dict[str, Any]:
    sign = 1 if aim.side == "positive" else -1
    if one.kind == "asked":
        by = sign * 0.9
    own = float(np.clip(0.7 * by + rng.normal(0, 0.2), -1, 1))
    return {
        "arm": one.name,
        "against": "plain",
        "axis": aim.axis.name,
        "side": aim.side,
        "query_index": query,
        "seed_index": seed,
        "preference": float(np.sign(sign * own)),
        "scores": {aim.axis.name: [own, 0.0]} if scored else {},
        "orders": None,
    }
