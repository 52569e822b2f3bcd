"""`alignez bench`: the speed of this machine with and without steering."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import BadInputError

from .answers import steered_by
from .groups import grouped
from .layout import table
from .options import (
    DEFAULT_WIDTH,
    ModelOptions,
    ParallelOption,
    SteeringOptions,
    at_least,
    check_fit,
)
from .output import Output

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Conditional, Injection
    from alignez_edge.runtime.model import Model
    from alignez_edge.speed.measure import Speed, Spread
    from alignez_edge.steering.steering import Steering

LEAST_TOKENS = 8


@grouped
def bench(
    *,
    loading: ModelOptions,
    steered: SteeringOptions,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of an answer; fewer where time is short.")
    ] = 64,
    repeat: Annotated[
        int, typer.Option(metavar="N", help="Repetitions; fewer where time is short.")
    ] = 15,
    seconds: Annotated[
        float, typer.Option(metavar="S", help="Seconds it may take, without loading.")
    ] = 25.0,
    parallel: ParallelOption = DEFAULT_WIDTH,
    out: Output,
) -> None:
    """Measure the speed of this machine with and without steering.

    What is compared is taken in turn, repetition after repetition, on random prompts. Without -p
    the steering is a built-in profile, or else a random control vector: speed does not depend on
    its values. On a slow machine the least that can be measured may take longer than --seconds.
    """
    at_least("--parallel", parallel, 1)
    at_least("--tokens", tokens, LEAST_TOKENS)
    at_least("--repeat", repeat, 1)
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadInputError(f"--seconds is {seconds}; it must be a number above 0")
    steering = steered.load(loading)
    with loading.load(out) as model:
        from alignez_edge.speed.measure import measure

        steering, by_way = _steerings(model, steering, out)
        with out.progress() as progress:
            speed = measure(
                model,
                by_way,
                tokens=tokens,
                rounds=repeat,
                seconds=seconds,
                width=parallel,
                on_progress=progress,
            )
        facts = {
            "model": model.path.name,
            **({"lora": model.describe_lora()} if model.lora else {}),
            "threads": model.threads,
            "steering": steering.describe(),
        }
        out.record({**facts, **_rounded(asdict(speed))})
        out.result(_report(model, steering, speed))


def _steerings(
    model: Model, steering: Steering, out: Output
) -> tuple[Steering, dict[str, Injection | Conditional]]:
    """What is measured beside plain answers, by the ways in which it is injected."""
    from alignez_edge.speed.measure import builtin_steering, injections
    from alignez_edge.speed.workload import random_injection

    if not steering.terms:
        if not model.facts.can_steer:
            out.notice("(this model cannot be steered: only plain answers are measured)")
            return steering, {}
        found = builtin_steering(model)
        if found is None:
            return steering, {"control-vector": random_injection(model)}
        found = found.by(steering.way)
        return found, injections(model, found)[0]
    check_fit(steering, model, out)
    by_way, reasons = injections(model, steering)
    for reason in reasons:
        out.notice(f"({reason})")
    return steering, by_way


def _report(model: Model, steering: Steering, speed: Speed) -> str:
    facts = model.facts
    by = steered_by(steering) or "a random control vector"
    rows = [
        _row("prefill", speed.prefill, "tokens/s"),
        _row("reading hidden states", speed.capture_time, "x the time of a prefill"),
        _row("decode, plain", speed.decode, "tokens/s"),
    ]
    for way, steered in speed.steered.items():
        rows += [
            _row(f"decode, {way}", steered.decode, "tokens/s"),
            _row("", steered.against_plain, "x plain"),
            _row("", steered.added_ms, "ms more a turn"),
        ]
    rows += [
        _row("answers one by one", speed.one_by_one, "tokens/s"),
        _row(f"answers {speed.width} at a time", speed.batch, "tokens/s"),
        _row("", speed.batch_gain, "x one by one"),
        ("memory at most", f"{speed.resident_mb:>7,.0f} MB", ""),
    ]
    threads = f"{model.threads} {'thread' if model.threads == 1 else 'threads'}"
    return (
        f"{facts.name}, {facts.quantization}, {facts.n_layer} layers of {facts.n_embd}; {threads}"
        + (f"; steered by {by}" if speed.steered else "")
        + "\n"
        + table([("", "median", "lowest to highest"), *rows], indent="  ")
    )


def _row(what: str, spread: Spread, unit: str) -> tuple[str, str, str]:
    low, median, high = map(_number, (spread.low, spread.median, spread.high))
    span = f"{low} to {high}, {spread.rounds} times" if spread.rounds > 1 else "measured once"
    return what, f"{median:>7} {unit}", span


def _rounded(value: Any) -> Any:
    """The same data with four digits of each number that was measured."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _number(value: float) -> str:
    return (
        f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    )
