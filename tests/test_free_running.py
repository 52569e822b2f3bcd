"""Planted effects give the units that they must; the answers of a profile are read as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_edge.calibration.free_running import (
    GRID,
    LEAST_SHARE,
    MORE_COST,
    STRENGTHS,
    FreeReading,
    Paid,
    calibrate_freely,
    form_for,
    n_texts,
    probe_for,
    read_questions,
)
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.requests import FORMS, PROBES
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile

N_EACH = 3 + len(GRID)


def planted(
    up: float,
    down: float,
    asked: tuple[float, float],
    steep: float = 0.0,
    paid: float = 0.0,
) -> list[FreeReading]:
    """Readings of effects that grow in proportion to strength, `up` and `down` per raw difference,
    around plain answers that differ; prompting moves by `asked` and costs `paid`."""
    found = []
    for base in (-0.4, 0.0, 0.7):
        effect = [0.0, asked[0], -asked[1], *(s * (up if s > 0 else down) for s in GRID)]
        cost = [0.0, paid, paid, *(steep * s**2 for s in GRID)]
        found.append(
            FreeReading(
                "Why?",
                tuple(base + x for x in effect),
                tuple(1.5 + base + x for x in cost),
                (20,) * N_EACH,
            )
        )
    return found


@given(up=st.floats(1, 2), down=st.floats(1, 2), at=st.floats(0.4, 1.25))
def test_a_unit_of_either_sign_means_as_much_as_prompting(
    up: float, down: float, at: float
) -> None:
    found = calibrate_freely(planted(up, down, asked=(up * at, down * at)))
    assert found.limits == ("prompting", "prompting")
    assert (found.unit, found.unit_negative) == pytest.approx((at, at), abs=0.0101)
    np.testing.assert_allclose(found.prompted, [[up * at, down * at]] * 3)
    np.testing.assert_allclose(found.steered, found.prompted, atol=0.021)


def test_the_sides_have_units_of_their_own() -> None:
    found = calibrate_freely(planted(1.0, 0.5, asked=(0.5, 0.5)))
    assert (found.unit, found.unit_negative) == pytest.approx((0.5, 1.0), abs=0.0101)


def test_the_cost_binds_above_that_of_prompting() -> None:
    found = calibrate_freely(planted(1.0, 1.0, asked=(1.25, 1.25), steep=1.0, paid=0.39))
    assert found.limits == ("cost", "cost")
    assert found.unit == pytest.approx((0.39 + MORE_COST) ** 0.5, abs=0.0101)
    # That prompting costs nothing, or less than nothing, leaves the bound where it is.
    less = calibrate_freely(planted(1.0, 1.0, asked=(1.25, 1.25), steep=1.0, paid=-2.0))
    assert less.unit == pytest.approx(MORE_COST**0.5, abs=0.0101)


def test_costs_are_by_token_and_those_of_other_prompted_answers_count() -> None:
    readings = planted(1.0, 1.0, asked=(1.25, 1.25), steep=1.0, paid=0.39)
    # A short answer that cost much, of three that were prompted for: 1 of 41 tokens.
    (first, *others) = readings
    at = list(first.cost)
    at[1] += 41.0
    odd = replace(first, cost=tuple(at), tokens=(20, 1, *first.tokens[2:]))
    found = calibrate_freely([odd, *others])
    assert found.prompted_cost[1] == pytest.approx(0.39)
    plain = 1.5 + np.mean([-0.4, 0.0, 0.7])
    own = [reading.cost[1] for reading in (odd, *others)]
    assert found.prompted_cost[0] == pytest.approx(np.average(own, weights=(1, 20, 20)) - plain)
    # Many other answers outvote it.
    paid = Paid(1e6 * (plain + 0.39), 1_000_000)
    found = calibrate_freely([odd, *others], asked=(paid, Paid()))
    assert found.prompted_cost[0] == pytest.approx(0.39, abs=1e-3)
    assert found.unit == pytest.approx((0.39 + MORE_COST) ** 0.5, abs=0.0101)


def test_out_of_reach_is_said() -> None:
    found = calibrate_freely(planted(0.1, 0.1, asked=(1.0, 1.0)))
    assert (found.unit, found.limits) == (STRENGTHS[-1], ("grid", "grid"))


def test_a_side_that_is_there_already_still_means_something() -> None:
    found = calibrate_freely(planted(1.0, 1.0, asked=(0.0, 1.2)))
    assert found.unit == pytest.approx(LEAST_SHARE * 1.2, abs=0.0101)
    assert found.unit_negative == pytest.approx(1.2, abs=0.0101)


def test_where_prompting_moves_nothing_the_raw_difference_stands() -> None:
    found = calibrate_freely(planted(1.0, 1.0, asked=(0.0, 0.0)))
    assert (found.unit, found.unit_negative, found.limits) == (1.0, 1.0, ("grid", "grid"))
    dear = calibrate_freely(planted(1.0, 1.0, asked=(0.0, -0.1), steep=1.0))
    assert dear.unit < 0.4 and dear.limits == ("cost", "cost")


def test_one_side_only() -> None:
    found = calibrate_freely(planted(1.0, 0.0, asked=(0.6, 0.0)), one_side=True)
    assert found.unit == found.unit_negative == pytest.approx(0.6, abs=0.0101)


@given(st.lists(st.floats(-3, 3), min_size=2 * N_EACH, max_size=2 * N_EACH))
def test_any_reading_gives_units_within_the_grid(values: list[float]) -> None:
    evidence, cost = tuple(values[:N_EACH]), tuple(values[N_EACH:])
    readings = [FreeReading("?", evidence, cost, (3,) * N_EACH)]
    found = calibrate_freely(readings)
    for unit, limit in zip((found.unit, found.unit_negative), found.limits, strict=True):
        assert 0 < unit <= STRENGTHS[-1] and limit in ("prompting", "cost", "grid")
    assert set(found.curves()) >= {"strengths", "effect", "cost"}


def test_a_reading_survives_its_line() -> None:
    (reading, *_) = planted(1 / 3, 0.1, asked=(0.2, 0.3))
    reading = replace(reading, texts=("one\ntwo", "drei “vier”"))
    assert "\n" not in reading.to_json()
    assert FreeReading.from_json(reading.to_json()) == reading


def test_forms_and_probes_differ_in_their_words() -> None:
    for name in FORMS:
        form = form_for(name)
        assert not form.two_steps
        for best in PROBES:
            probe = probe_for(form, {probe.name: float(probe is best) for probe in PROBES})
            assert probe.family != form.family
            assert probe is best or best.family == form.family
    assert form_for("").name == "style"


def test_answers_are_read(llama_model: Model) -> None:
    questions, ticks = ["Why?", "What now?"], []

    def read(size: float, one_side: bool = False) -> list[FreeReading]:
        profile = random_profile(llama_model)
        vector = profile.vector * size
        axis = Axis("bright", "bright", None if one_side else "dark")
        return read_questions(
            replace(profile, vector=vector, axis=axis, unit=7.0, unit_negative=0.5),
            llama_model,
            questions,
            form=FORMS["style"],
            probe=FORMS["role"],
            seed=1,
            way="control-vector",
            tick=lambda: ticks.append(1),
        )

    still = read(1e-12)
    assert len(ticks) == 2 * n_texts(questions)
    assert [reading.question for reading in still] == questions
    for reading in still:  # nothing is added: every steered answer is the plain one
        assert set(reading.texts[3:]) == {reading.texts[0]}
        np.testing.assert_allclose(reading.evidence[3:], reading.evidence[0], atol=1e-4)
        assert min(reading.cost) > 0
    strong = read(1.0)
    assert [reading.texts[0] for reading in strong] == [reading.texts[0] for reading in still]
    assert all(len(set(reading.texts)) > 4 for reading in strong)
    alone = read(1.0, one_side=True)
    assert all(reading.texts[2] == reading.texts[0] for reading in alone)
    assert all(reading.evidence[2] == reading.evidence[0] for reading in alone)
