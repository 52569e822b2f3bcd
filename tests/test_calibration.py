"""Planted curves give the unit that they must; a reading has the right signs and zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.calibration.teacher_forced import read_pair
from alignez_edge.calibration.unit import DRIFT_BUDGET, GRID, Reading, calibrate
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model

Curve = Callable[[float], float]
LAST = GRID[-1]


def planted(margin: Curve, drift: Curve, asked: float, asked_drift: float = 1.0) -> Reading:
    """A reading of curves over the signed strength; prompting moves either side by `asked`."""
    signed = [*GRID, *(-s for s in GRID)]
    return Reading(
        margin=np.array([margin(s) for s in signed]),
        drift=np.array([drift(s) for s in signed]),
        asked_margin=np.array([asked, -asked]),
        asked_drift=np.array([asked_drift, asked_drift]),
    )


@given(slope=st.floats(0.1, 10), unit=st.floats(0.05, LAST * 0.99))
def test_strength_1_lies_between_prompting_and_the_raw_difference(
    slope: float, unit: float
) -> None:
    found = calibrate(planted(lambda s: slope * s, lambda s: 0.01 * abs(s), asked=slope * unit))
    assert found.unit == pytest.approx(unit**0.5)
    assert found.limit == "asking"


def test_one_sided_curves_meet_prompting_as_a_span() -> None:
    """Only margin(+s) - margin(-s) counts: a side that is there already has nowhere to go."""
    found = calibrate(planted(lambda s: max(2 * s, 0.0), lambda s: 0.0, asked=LAST / 2))
    assert found.unit == pytest.approx((LAST / 2) ** 0.5)


def test_the_first_strength_that_is_enough_is_taken() -> None:
    def bump(s: float) -> float:
        return np.sign(s) * (1.0 if abs(s) in GRID[1::2] else 0.0)

    found = calibrate(planted(bump, lambda s: 0.0, asked=0.5))
    assert GRID[0] < found.unit**2 < GRID[1]


@given(allowed=st.floats(0.05, LAST * 0.9))
def test_the_kl_budget_binds(allowed: float) -> None:
    reading = planted(lambda s: s, lambda s: DRIFT_BUDGET * abs(s) / allowed, asked=LAST)
    found = calibrate(reading)
    assert found.unit == pytest.approx(allowed**0.5)
    assert found.limit == "drift"
    assert calibrate(reading, budget=100 * DRIFT_BUDGET).limit == "asking"


def test_where_prompting_is_out_of_reach_the_most_is_taken() -> None:
    best = GRID[len(GRID) // 2]
    found = calibrate(planted(lambda s: s * (2 * best - abs(s)), lambda s: 0.0, asked=1e6))
    assert (found.unit, found.limit) == (best**0.5, "grid")


@pytest.mark.parametrize("slope", [0.0, -1.0])
def test_what_moves_nothing_keeps_its_raw_difference(slope: float) -> None:
    found = calibrate(planted(lambda s: slope * s, lambda s: 0.1 * abs(s), asked=1.0))
    assert (found.unit, found.limit) == (1.0, "grid")


@given(
    st.lists(st.floats(-5, 5), min_size=2 * len(GRID), max_size=2 * len(GRID)),
    st.lists(st.floats(0, 5), min_size=2 * len(GRID), max_size=2 * len(GRID)),
    st.floats(-3, 3),
    st.floats(0, 3),
)
def test_any_curves_give_a_unit_within_the_grid(
    margin: list[float], drift: list[float], asked: float, asked_drift: float
) -> None:
    found = calibrate(
        Reading(
            np.array(margin),
            np.array(drift),
            np.array([asked, -asked]),
            np.array([asked_drift, asked_drift]),
        )
    )
    assert 0 < found.unit <= LAST
    assert found.limit in ("asking", "drift", "grid")


def test_the_curves_come_out_ascending_and_with_their_signs() -> None:
    found = calibrate(planted(lambda s: s**3, lambda s: s + 10, asked=0.5))
    assert tuple(found.strengths) == (*(-s for s in reversed(GRID)), *GRID)
    np.testing.assert_array_equal(found.margin, found.strengths**3)
    np.testing.assert_array_equal(found.drift, found.strengths + 10)


def test_a_reading_survives_its_line_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    readings = [planted(lambda s: rng.normal(), lambda s: rng.random() / 3, 0.1) for _ in "ab"]
    for reading in readings:
        line = reading.to_json()
        assert "\n" not in line
        again = Reading.from_json(line)
        for name in ("margin", "drift", "asked_margin", "asked_drift"):
            np.testing.assert_array_equal(getattr(again, name), getattr(reading, name))
    mean = Reading.mean(readings)
    np.testing.assert_allclose(mean.margin, (readings[0].margin + readings[1].margin) / 2)


def injection(model: Model, size: float) -> Injection:
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    rows[2] = size * np.random.default_rng(0).standard_normal(model.n_embd)
    return Injection(rows, rows)


def test_a_pair_is_read(llama_model: Model) -> None:
    model = llama_model
    plain = model.prompt([{"role": "user", "content": "How are you?"}]).tokens
    asked = model.prompt([{"role": "user", "content": "How are you? Be rude."}]).tokens
    answers = [model.tokenize(text, begin=False) for text in ("Fine, thanks!", "Go away.")]
    injections = [injection(model, size) for size in (0.0, 0.3, 3.0)]
    reading = read_pair(model, plain, [plain, asked], answers, injections)
    # Nothing is added, or nothing more is asked: exactly nothing changes.
    assert reading.margin[0] == reading.drift[0] == 0
    assert reading.asked_margin[0] == pytest.approx(0, abs=1e-6)
    assert reading.asked_drift[0] == pytest.approx(0, abs=1e-6)
    assert reading.margin[1] != 0 and reading.asked_margin[1] != 0
    assert 0 < reading.drift[1] < reading.drift[2]
    assert reading.asked_drift[1] > 0
    swapped = read_pair(model, plain, [plain, asked], answers[::-1], injections)
    np.testing.assert_allclose(swapped.margin, -reading.margin, atol=1e-9)
    np.testing.assert_allclose(swapped.drift, reading.drift, atol=1e-9)
