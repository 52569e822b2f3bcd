"""The measures of an evaluation: known answers, invariants, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignez_edge.evaluation import measures
from alignez_edge.evaluation.measures import Figure, Resamples, loops, sign_test

N_DRAWS = 2000


def simulated(win: float, lose: float, alike: float, n_query: int, n_seed: int = 3) -> np.ndarray:
    """Mean preferences of queries, `(N_DRAWS, n_query)`, with the true net win `win - lose`.

    Every query has its own probabilities, drawn around the true ones: the smaller `alike`, the more
    the answers to one query agree. At infinity all answers are independent.
    """
    rng = np.random.default_rng(7)
    true = np.array([win, lose, 1 - win - lose])
    shape = (N_DRAWS, n_query)
    own = np.broadcast_to(true, (*shape, 3))
    if math.isfinite(alike):
        own = rng.dirichlet(np.maximum(alike * true, 1e-9), shape)
    counts = rng.multinomial(n_seed, own)
    return np.asarray((counts[..., 0] - counts[..., 1]) / n_seed)


def coverage(draws: np.ndarray, true: float) -> float:
    """The share of draws whose interval holds the true net win."""
    resamples = Resamples(draws.shape[1])
    low, high = resamples.net_win_bounds(resamples.sums(draws.T) / draws.shape[1])
    return float(np.mean((low <= true) & (true <= high)))


@pytest.mark.parametrize("alike", [1.0, 4.0, math.inf])
@pytest.mark.parametrize(("win", "lose"), [(0.3, 0.3), (0.45, 0.15), (0.7, 0.1)])
def test_intervals_cover_the_true_net_win(win: float, lose: float, alike: float) -> None:
    assert 0.93 <= coverage(simulated(win, lose, alike, 60), win - lose) <= 0.97


@pytest.mark.parametrize(("win", "lose"), [(0.85, 0.03), (0.9, 0.02), (0.0, 0.98), (0.02, 0.0)])
def test_intervals_do_not_promise_too_much_where_all_queries_agree(win: float, lose: float) -> None:
    for alike in (1.0, math.inf):
        draws = simulated(win, lose, alike, 60)
        assert coverage(draws, win - lose) >= 0.93
        resamples = Resamples(60)
        low, high = resamples.bounds(resamples.sums(draws.T) / 60)
        bare = np.mean((low <= win - lose) & (win - lose <= high))
        assert coverage(draws, win - lose) >= bare


def test_the_net_win_is_what_was_simulated() -> None:
    assert simulated(0.45, 0.15, 1.0, 60).mean() == pytest.approx(0.3, abs=0.01)


def test_a_figure_is_the_expanded_percentile_interval() -> None:
    values = np.random.default_rng(1).normal(0.5, 1.0, (60, 3))
    values[0] = np.nan
    resamples = Resamples(60)
    found = resamples.figure(resamples.mean(values))
    assert found.mean == pytest.approx(np.nanmean(values))
    error = values[1:].mean(axis=1).std(ddof=1) / math.sqrt(59)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 58) * error, rel=0.05)


def test_resamples_are_paired() -> None:
    values = np.random.default_rng(2).normal(size=(20, 2))
    resamples = Resamples(20)
    shift = resamples.figure(resamples.mean(values + 0.25) - resamples.mean(values))
    assert (shift.low, shift.mean, shift.high) == pytest.approx((0.25, 0.25, 0.25))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=(30, 1))
    whole = Resamples(30).sums(values)
    monkeypatch.setattr(measures, "_BLOCK", 100)
    parts = Resamples(30).sums(values)
    assert parts[0] == pytest.approx(whole[0]) and parts.shape == whole.shape
    assert np.std(parts) == pytest.approx(np.std(whole), rel=0.1)


def test_a_figure_of_nothing_is_nan() -> None:
    resamples = Resamples(4)
    found = resamples.figure(resamples.mean(np.full((4, 1), np.nan)))
    assert all(map(math.isnan, (found.mean, found.low, found.high)))


def test_one_query_has_no_interval() -> None:
    found = Resamples(1).net_win(np.array([[1.0, 1.0, -1.0]]))
    assert found.net.mean == pytest.approx(1 / 3)
    assert math.isnan(found.net.low) and math.isnan(found.net.high)


def test_wins_are_shares_of_what_was_judged() -> None:
    found = Resamples(3).net_win(np.array([[0.2, 1.0], [-0.1, 0.0], [np.nan, 1.0]]))
    assert (found.win, found.lose, found.tie) == pytest.approx((0.6, 0.2, 0.2))
    assert found.net.mean == pytest.approx(0.4)


def test_unanimous_queries_still_have_an_interval() -> None:
    found = Resamples(60).net_win(np.ones((60, 3))).net
    assert (found.mean, found.high) == (1.0, 1.0)
    # The largest share of queries that 60 miss in 2.5 % of cases, at six tenths of the way to -1.
    assert found.low == pytest.approx(1 - 2 * 0.6 * (1 - 0.025 ** (1 / 60)))


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=2, max_size=12))
@settings(max_examples=30)
def test_swapping_the_two_sides_swaps_everything(preferences: list[float]) -> None:
    values = np.array(preferences)[:, None]
    resamples = Resamples(len(preferences))
    one, other = resamples.net_win(values), resamples.net_win(-values)
    assert (one.win, one.lose, one.tie) == (other.lose, other.win, other.tie)
    assert one.net.mean == pytest.approx(-other.net.mean)
    assert one.net.low == pytest.approx(-other.net.high)
    assert sign_test(values) == sign_test(-values)
    assert -1 <= one.net.low <= one.net.mean <= one.net.high <= 1


def test_relative_improvement_of_half_the_reference() -> None:
    reference = np.repeat([1.0, 0.0], 30)[:, None]
    resamples = Resamples(60)
    whole = resamples.mean(reference)
    share = resamples.share(0.5 * whole, whole)
    assert (share.low, share.mean, share.high) == pytest.approx((0.5, 0.5, 0.5))


def test_nothing_is_a_share_of_what_may_be_nothing() -> None:
    resamples = Resamples(40)
    noise = np.random.default_rng(5).choice([-1.0, 1.0], (40, 1))
    noise[:20] = -noise[20:]
    share = resamples.share(resamples.mean(np.ones((40, 1))), resamples.mean(noise))
    assert share.mean != share.mean and isinstance(share, Figure)


def test_the_sign_test_counts_queries_and_not_answers() -> None:
    won = np.array([[1.0, 1.0, -1.0]] * 5 + [[0.0, 0.0, 0.0]] * 7)
    assert sign_test(won) == pytest.approx(2 * 0.5**5)
    assert sign_test(np.repeat(won, 10, axis=1)) == sign_test(won)
    assert sign_test(np.zeros((4, 2))) == 1.0


def test_the_sign_test_of_nothing_says_nothing() -> None:
    """Where either side is as good, p-values below 0.05 are at most that frequent."""
    draws = simulated(0.4, 0.4, 1.0, 60)[:400]
    assert np.mean([sign_test(draw[:, None]) < 0.05 for draw in draws]) <= 0.07


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("", False),
        ("the cat sat on the mat and then it went home to eat its dinner", False),
        ("yes yes yes yes yes yes yes", False),
        ("I like it. " * 20, True),
        (
            "One two three four five. " * 2 + "Then something else came up and it was all new.",
            False,
        ),
        ("猫は好きです。" * 10, True),
        ("吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。", False),
    ],
)
def test_loops(text: str, looped: bool) -> None:
    assert loops(text) is looped
