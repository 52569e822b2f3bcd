"""The verdict says what the readings show, and chance hardly ever says `works`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alignez_edge.calibration.free_running import GRID, STRENGTHS, FreeReading, calibrate_freely
from alignez_edge.calibration.verdict import CONSISTENT, MIN_QUESTIONS, Verdict, judge
from alignez_edge.directions.geometry import agreement
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile

AXIS = Axis("bright", "bright", "dark")
WIGGLE = np.array([0.03, -0.02, 0.05, -0.06, 0.01, -0.01, 0.04, -0.04])[:, None]


def sides(plus: float, minus: float, n: int = 8) -> np.ndarray:
    """Effects on `n` questions around two means."""
    return np.array([[plus, minus]]) + WIGGLE[:n] * np.array([[1.0, -0.7]])


ASKED = sides(0.3, 0.3)


@pytest.mark.parametrize(
    ("steered", "prompted", "word"),
    [
        (sides(0.3, 0.25), ASKED, "works"),
        (sides(0.1, 0.1), ASKED, "weak"),
        (sides(0.0, 0.0), ASKED, "weak"),
        (sides(0.5, 0.0), ASKED, "one side"),
        (sides(-0.1, 0.6), ASKED, "one side"),
        (sides(-0.3, -0.3), ASKED, "wrong way"),
        (sides(-0.3, -0.3), sides(0.0, 0.0), "wrong way"),
        (sides(0.3, 0.3), sides(0.0, 0.0), "not enough to tell"),
        (sides(0.3, 0.3), sides(-0.3, -0.3), "not enough to tell"),
        (sides(0.3, 0.3, MIN_QUESTIONS - 1), sides(0.3, 0.3, MIN_QUESTIONS - 1),
         "not enough to tell"),
        (sides(0.3, 0.3, 1), sides(0.3, 0.3, 1), "not enough to tell"),
        (20 * WIGGLE + sides(0.2, 0.2), ASKED, "not enough to tell"),
        # The plain answers are bright already: prompting for it moves nothing.
        (sides(0.0, 0.4), sides(0.0, 0.4), "works"),
    ],
)  # fmt: skip
def test_what_is_found_is_said(steered: np.ndarray, prompted: np.ndarray, word: str) -> None:
    found = judge(AXIS, steered, prompted, 0.95)
    assert found.verdict == word and found.works == (word == "works")
    assert found.reason.endswith(".") and "\n" not in found.reason
    assert str(found) == f"{word}: {found.reason}"


def test_an_axis_that_the_model_does_not_know_is_told_as_such() -> None:
    found = judge(AXIS, sides(0.3, 0.3), sides(0.0, 0.01), 1.0)
    assert "does not seem to know the axis" in found.reason


def test_an_axis_with_one_side_is_judged_by_it() -> None:
    pirate = Axis("pirate", "talks like a pirate")
    assert judge(pirate, sides(0.3, -0.3), sides(0.3, 0.0), 1.0).works
    assert judge(pirate, sides(-0.3, 0.3), sides(0.3, 0.0), 1.0).verdict == "wrong way"


def test_pairs_that_contradict_each_other_never_work() -> None:
    found = judge(AXIS, sides(0.3, 0.3), ASKED, CONSISTENT - 0.01)
    assert found.verdict == "not enough to tell" and "contradict" in found.reason
    assert judge(AXIS, sides(0.3, 0.3), ASKED, None).works


def test_chance_hardly_ever_works() -> None:
    """Effects of noise alone, correlated over strengths as real answers are, while prompting works:
    with the units chosen on the same readings. At most 1 in 20; about 1 in 100 are found."""
    rng = np.random.default_rng(5)
    works, trials, n = 0, 1000, len(STRENGTHS)
    for _ in range(trials):
        readings = []
        for _ in range(8):
            steps = rng.normal(size=(2, n)).cumsum(axis=1) / np.sqrt(np.arange(1, n + 1))
            noise = 0.3 * np.concatenate([steps[0][::-1], steps[1]])
            plain, up, down = 0.3 * rng.normal(size=3) + (0, 0.3, -0.3)
            cost = np.array([0.0, 0.3, 0.3, *(0.3 * abs(s) for s in GRID)])
            cost += 0.1 * np.abs(rng.normal(size=len(cost)))
            readings.append(
                FreeReading("?", (plain, up, down, *noise), tuple(cost), (9,) * len(cost))
            )
        found = calibrate_freely(readings)
        works += judge(AXIS, found.steered, found.prompted).works
    assert works / trials < 0.05


class Planted:
    """Hidden states of pairs whose sides differ along one direction, the wrong way where `signs`
    say so."""

    def __init__(self, signs: np.ndarray, noise: float = 0.5) -> None:
        rng = np.random.default_rng(len(signs))
        self.along, self.signs = rng.normal(size=32), signs
        self.noise = noise * rng.normal(size=(2, len(signs), 32)) * np.linalg.norm(self.along) / 6

    def layer(self, layer: int, position: str, rows: range) -> Any:
        from types import SimpleNamespace

        half = self.signs[:, None] * self.along / 2
        return SimpleNamespace(chosen=self.noise[0] + half, rejected=self.noise[1] - half)


def test_mixed_up_sides_do_not_agree() -> None:
    """20 builds with sides swapped at random: at most one looks as if its pairs agreed."""
    assert agreement(Planted(np.ones(24)), [1, 2], 24) == 1.0  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    swapped = [
        agreement(Planted(rng.choice([-1.0, 1.0], size=24)), [1, 2], 24)  # type: ignore[arg-type]
        for _ in range(20)
    ]
    assert sum(share >= CONSISTENT for share in swapped) <= 1
    few = np.ones(24)
    few[:3] = -1
    assert agreement(Planted(few), [1], 24) == pytest.approx(21 / 24)  # type: ignore[arg-type]


def test_it_is_kept_and_read_back(llama_model: Model) -> None:
    profile = random_profile(llama_model)
    assert Verdict.of(profile) is None
    found = judge(AXIS, sides(0.3, 0.25), ASKED, 1.0)
    kept = with_report(profile, found.report())
    assert Verdict.of(kept) == found


@pytest.mark.parametrize(
    "value",
    [
        None, "works", [], {}, {"verdict": "works"}, {"verdict": ["works"], "reason": "x."},
        {"verdict": "great", "reason": "x."}, {"verdict": "works", "reason": ""},
        {"verdict": "works", "reason": "x" * 1000}, {"verdict": "works", "reason": "a\x1b[2J"},
        {"verdict": "works", "reason": 7},
    ],
)  # fmt: skip
def test_that_of_an_untrusted_file_is_sound_or_none(llama_model: Model, value: Any) -> None:
    assert Verdict.of(with_report(random_profile(llama_model), value)) is None


def with_report(profile: Profile, value: Any) -> Profile:
    return replace(profile, report={**profile.report, "verdict": value})
