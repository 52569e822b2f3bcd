"""Pictures: what they show of profiles and runs, and what their bytes hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.chat.preamble import Preamble
from alignez_edge.directions.geometry import Geometry
from alignez_edge.directions.hidden_states import HiddenStates
from alignez_edge.errors import AlignezError, BadInputError, ProfileFileError
from alignez_edge.evaluation.arms import Aim, Arm, prompted
from alignez_edge.evaluation.outcome import Outcome
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.by_query import Recipe
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.pictures import of_profile, of_run
from alignez_edge.pictures.drawing import _LOOKS, Chart, Curve, Heat, Picture, rendered, save
from alignez_edge.pictures.text import MOST_LINES, drawn
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.mix import mix
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.runs import FORMAL, POLITE, arm, make_run
from tests.terminal import ROOT

OKABE_ITO = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9"}


def small(name: str = "steered", **facts: Any) -> Picture:
    curve = Curve(name, (-1.0, 0.0, 1.0), (-0.5, 0.0, 0.4), (-0.6, -0.1, 0.3), (-0.4, 0.1, 0.5))
    known: dict[str, Any] = {"levels": (("plain", 0.0),)}
    chart = Chart("effect", "strength", "score", (curve,), **(known | facts))
    cells = Heat("cells", "x", "y", ("a", "b"), ("c",), ((0.5, -1.0),), "score")
    return Picture("a title", ((chart, cells),))


def charts(picture: Picture) -> list[Chart]:
    return [panel for panel in picture.panels if isinstance(panel, Chart)]


# The bytes


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_pictures_are_equal_bytes(kind: Any) -> None:
    assert rendered(small(), kind) == rendered(small(), kind)
    code = (
        "import sys, hashlib; from tests.test_pictures import small, rendered;"
        f"print(hashlib.sha256(rendered(small(), {kind!r})).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == hashlib.sha256(rendered(small(), kind)).hexdigest(), done.stderr


def test_a_users_settings_change_nothing() -> None:
    import matplotlib

    plain = rendered(small(), "svg")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "lines.linewidth": 9}):
        assert rendered(small(), "svg") == plain


def test_an_svg_loads_and_runs_nothing() -> None:
    root = ElementTree.fromstring(rendered(small(), "svg"))
    for element in root.iter():
        assert not element.tag.endswith("script")
        for key, value in element.attrib.items():
            assert not key.lower().startswith("on")
            assert not key.endswith("href") or value.startswith(("#", "data:image/png;base64,"))


def test_looks_differ_in_more_than_colour() -> None:
    colours, dashes, markers = ([str(x) for x in column] for column in zip(*_LOOKS, strict=True))
    for column in (colours, dashes, markers):
        assert len(set(column)) == len(_LOOKS)
    assert set(colours) == OKABE_ITO


@pytest.mark.parametrize(
    "name",
    ["$x^$", "$\\frac{", "a\x00b\x1b[31m", "‮reversed", "名前" * 40, "x" * 5000, "_hidden", ""],
)
def test_untrusted_names_are_no_markup(name: str) -> None:
    picture = replace(small(name, levels=((f"{name}2", 0.1),)), title=name * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ElementTree.fromstring(rendered(picture, "svg"))
    assert "\x1b" not in drawn(picture)


def test_without_matplotlib_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AlignezError, match="needs matplotlib") as caught:
        rendered(small(), "png")
    assert caught.value.hint == "pip install 'alignez-edge[plot]'"
    assert "effect" in drawn(small())


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    gaps = Curve("gaps", (0.0, 1.0, nan), (nan, 1.0, 2.0), (nan, 0.5, nan), (nan, 1.5, nan))
    heat = Heat("cells", "x", "y", ("a",), ("b",), ((nan,),), "score")
    picture = Picture("gaps", ((Chart("t", "x", "y", (gaps,)), heat),))
    save(picture, tmp_path / "gaps.png")
    assert "n/a" in drawn(picture)


@pytest.mark.parametrize("name", ["picture", "picture.pdf", "picture.png.exe"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match=r"a \.png or a \.svg file"):
        save(small(), tmp_path / name)
    assert not list(tmp_path.iterdir())


# Profiles


def test_calibration_over_calibrated_strengths(llama_model: Model) -> None:
    picture = of_profile.strength_of(random_profile(llama_model))
    (margin, drift) = (chart.curves[0] for chart in charts(picture))
    unit = random_profile(llama_model).unit
    assert margin.x == pytest.approx((-1 / unit, 0, 0.1 / unit))
    assert margin.y == (-1.5, 0, 1 / 3)
    assert drift.y == (0.2, 0, 1e-300)


def test_strength_0_is_added_where_the_file_leaves_it_out(llama_model: Model) -> None:
    curves = {
        "strengths": (-1.0, 2.0), "margin": (-3.0, 4.0), "drift": (0.1, 0.2),
        "asked_margin": (5.0, -6.0), "asked_drift": (0.3, 0.4),
    }  # fmt: skip
    profile = random_profile(llama_model, calibration=curves, unit=2.0)
    margin, drift = charts(of_profile.strength_of(profile))
    assert margin.curves[0].x == (-0.5, 0.0, 1.0)
    assert margin.curves[0].y == (-3, 0, 4)
    assert [level for _, level in margin.levels] == [5, -6]
    assert [level for _, level in drift.levels] == [0.3, 0.4]


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"strengths": 1.0, "margin": 1.0, "drift": 1.0},
        {"strengths": (1.0,), "margin": (1e308,), "drift": (0.0,)},
        {"strengths": (1e308,), "margin": (1.0,), "drift": (0.0,)},
    ],
)
def test_an_untrusted_curve_is_data(llama_model: Model, curves: Any) -> None:
    with pytest.raises(BadInputError, match=r"no calibration curve|too large"):
        of_profile.strength_of(random_profile(llama_model, calibration=curves))


def with_geometry(model: Model, **facts: Any) -> Profile:
    rng = np.random.default_rng(5)
    thetas = rng.normal(size=(2, model.n_layer, 8))
    thetas /= np.linalg.norm(thetas, axis=2, keepdims=True)
    told = Geometry.of_directions(*thetas).to_report()
    told["separation"] = list(map(float, range(model.n_layer)))
    return random_profile(model, report=told, **facts)


def test_layers_of_a_profile(llama_model: Model) -> None:
    profile = with_geometry(llama_model)
    geometry = Geometry.of(profile.report, profile.vector.n_layer)
    assert geometry is not None
    picture = of_profile.layers_of(profile)
    apart, between, counted = charts(picture)
    assert apart.curves[0].y == (0, 1, 2, 3, 4, 5)
    assert apart.curves[1].x == (2, 3)
    assert between.curves[0].y == geometry.help_harm
    assert counted.curves[0].x == (2, 3, 4, 5, 6)
    assert picture.notes == ()


def test_what_a_file_does_not_keep_is_said(llama_model: Model) -> None:
    report = {"interlayer_cosine": [0.5] * llama_model.n_layer}
    picture = of_profile.layers_of(random_profile(llama_model, report=report))
    assert len(charts(picture)) == 1
    assert [note.partition(":")[0] for note in picture.notes] == [
        "the file keeps no separation by layer",
        "the file keeps no geometry of its directions",
    ]
    with pytest.raises(BadInputError, match="says nothing of its layers"):
        of_profile.layers_of(random_profile(llama_model, report={"separation": ["x"] * 6}))


def test_directions_of_one_profile_by_layer(llama_model: Model) -> None:
    profile = with_geometry(llama_model)
    (chart,) = charts(of_profile.directions_of([profile]))
    assert [curve.name for curve in chart.curves] == [of_profile.HELP, of_profile.HARM]
    assert chart.curves[0].labels == ("0", "1", "2", "3", "4", "5")
    assert not any(curve.joined for curve in chart.curves)


def test_directions_of_several_profiles(llama_model: Model) -> None:
    first, second = (random_profile(llama_model, draw, name) for draw, name in ((0, "a"), (1, "b")))
    (chart,) = charts(of_profile.directions_of([first, second]))
    assert [curve.name for curve in chart.curves] == [
        "a, last prompt token", "a, later tokens", "b, last prompt token", "b, later tokens",
    ]  # fmt: skip
    assert chart.curves[0].labels == ("2", "3")
    # The same profile twice lies on itself.
    twice = charts(of_profile.directions_of([first, first]))[0].curves
    assert twice[0].name == "a 1, last prompt token"
    np.testing.assert_allclose(twice[0].y, twice[2].y, atol=1e-12)


def test_directions_of_a_profile_that_keeps_none_are_its_own(llama_model: Model) -> None:
    picture = of_profile.directions_of([random_profile(llama_model)])
    assert len(charts(picture)[0].curves) == 2
    assert "build it again" in picture.notes[0]


def test_directions_of_every_remembered_query(llama_model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    n_layer, n_embd, n_pairs = llama_model.n_layer, llama_model.n_embd, 9
    help_, harm = np.eye(2, n_embd) * 10
    with HiddenStates(tmp_path / "states", (n_layer, n_embd)) as states:
        for _ in range(n_pairs):
            noise = rng.normal(0, 0.1, (4, n_layer, n_embd))
            states.append((noise[0] + help_, noise[1] + harm), (noise[2] + help_, noise[3] + harm))
        queries = rng.normal(size=(n_pairs, n_layer, n_embd))
        bank = Bank.from_states(states, range(n_pairs), queries, (2, 3), "l_out")
    near = Neighborhood(bank, Recipe(k=3))
    picture = of_profile.directions_of([random_profile(llama_model, intervention=near)])
    assert [chart.title for chart in charts(picture)] == ["layer 2", "layer 3"]
    for chart in charts(picture):
        wanted, unwanted = chart.curves
        assert len(wanted.x) == len(unwanted.x) == n_pairs
        # The planted sides are two clusters, apart along the first component.
        assert max(wanted.x) < 0 < min(unwanted.x) or max(unwanted.x) < 0 < min(wanted.x)


def test_interference_of_profiles_and_of_a_mix(llama_model: Model) -> None:
    profiles = [random_profile(llama_model, draw, name) for draw, name in ((0, "a"), (1, "b"))]
    (heat,) = of_profile.interference_of(profiles).panels
    assert isinstance(heat, Heat)
    assert [heat.values[i][i] for i in (0, 1)] == [1, 1]
    assert heat.x_names == heat.y_names == ("a", "b")
    mixed = mix([(profile, 1.0) for profile in profiles], "mixed", orthogonal=True)
    before, after = of_profile.interference_of([mixed]).panels
    assert isinstance(before, Heat)
    assert isinstance(after, Heat)
    assert before.values == heat.values
    assert abs(after.values[0][1]) < 1e-3
    with pytest.raises(BadInputError, match="needs several profiles or a mix"):
        of_profile.interference_of(profiles[:1])


def test_profiles_of_two_models_are_refused(llama_model: Model, chat_model: Model) -> None:
    profiles = [random_profile(llama_model), random_profile(chat_model)]
    for make in (of_profile.directions_of, of_profile.interference_of):
        with pytest.raises(ProfileFileError, match="different models"):
            make(profiles)


# Runs


def strengths(tmp_path: Path, **options: Any) -> Outcome:
    arms = [arm(POLITE, s) for s in (-1.0, 0.5, 1.0)] + [arm(FORMAL, 1.0)]
    make_run(tmp_path / "run", arms, **options)
    return Outcome.load(tmp_path / "run")


def test_strengths_of_a_run(tmp_path: Path) -> None:
    outcome = strengths(tmp_path)
    picture = of_run.strength_of_run(outcome)
    assert [[len(row), row[0].title] for row in picture.rows] == [
        [2, "polite: effect"], [2, "cost"], [2, "KL"],
    ]  # fmt: skip
    effect, cost, kl = (row[0] for row in picture.rows)
    assert isinstance(effect, Chart)
    assert effect.y_label == of_run.SCORE
    (curve,) = effect.curves
    assert curve.x == (-1, 0, 0.5, 1)
    scores = {row.strength: row.own_score for row in outcome.steered if row.axis == "polite"}
    assert curve.y[0] == scores[-1].mean
    assert curve.low[2] == scores[0.5].low
    assert [name for name, _ in effect.levels] == ["plain", *of_run.ASKED.values()]
    assert isinstance(cost, Chart)
    assert isinstance(kl, Chart)
    assert cost.curves[0].y[1] == 0
    assert kl.curves[0].y == pytest.approx((0.01, 0, 0.0025, 0.01))
    rendered(picture, "png")


def test_net_wins_where_the_judge_gives_no_scores(tmp_path: Path) -> None:
    outcome = strengths(tmp_path, scored=False)
    effect = of_run.strength_of_run(outcome).rows[0][0]
    assert isinstance(effect, Chart)
    assert effect.y_label == of_run.NET_WIN
    (curve,) = effect.curves
    # Towards the positive side: what wins for the negative one lies below 0.
    assert curve.y[0] < -50 < 50 < curve.y[-1]
    assert curve.low[0] <= curve.y[0] <= curve.high[0]


def test_prompting_steering_and_both(tmp_path: Path) -> None:
    preamble = Preamble("be nice", ({"role": "system", "content": "Be nice."},))
    arms = [arm(POLITE, s) for s in (-1.0, 1.0)]
    make_run(tmp_path / "run", [*prompted(preamble, arms), *arms])
    effect, cost, _ = charts(of_run.strength_of_run(Outcome.load(tmp_path / "run")))
    assert [curve.name for curve in effect.curves] == ["steered + be nice", "steered"]
    assert [curve.x for curve in effect.curves] == [(-1, 1), (-1, 0, 1)]
    assert [name for name, _ in effect.levels][3:] == ["system:be nice"]
    assert [name for name, _ in cost.levels] == ["plain"]


def test_sweeps_of_a_run(tmp_path: Path) -> None:
    arms = [arm(POLITE, 1.0, {"k": k}, f"polite k {k}") for k in (3, 5, 10)]
    arms += [arm(POLITE, 1.0, {"method": m}, f"polite {m}") for m in ("alignez", "mean")]
    make_run(tmp_path / "run", arms)
    outcome = Outcome.load(tmp_path / "run")
    picture = of_run.sweep_of_run(outcome)
    assert [panel.title for panel in picture.panels] == [
        "effect over k", "effect over method", "cost over k", "cost over method",
    ]  # fmt: skip
    over_k, over_method = charts(picture)[:2]
    assert over_k.curves[0].x == (3, 5, 10)
    assert over_method.x_names == ("alignez", "mean")
    assert not over_method.curves[0].joined
    with pytest.raises(BadInputError, match="no profile that is used alone") as caught:
        of_run.picture_of_run(outcome, "strength")
    assert caught.value.hint == "this run has: sweep"
    rendered(picture, "svg")


def cells(steps: tuple[float, ...]) -> list[Arm]:
    aims = [
        {s: Aim(axis, "negative" if s < 0 else "positive") for s in steps}
        for axis in (POLITE, FORMAL)
    ]
    return [
        Arm(
            f"polite:{s:g} + formal:{t:g}", "steered", "polite + formal", s,
            (aims[0][s], aims[1][t]),
        )
        for s in steps
        for t in steps
    ]  # fmt: skip


@pytest.mark.parametrize("scored", [True, False])
def test_a_grid(tmp_path: Path, scored: bool) -> None:
    make_run(tmp_path / "run", cells((-1.0, 0.0, 1.0)), scored=scored)
    picture = of_run.grid_of_run(Outcome.load(tmp_path / "run"))
    first, second, net = picture.rows[0]
    assert isinstance(first, Heat)
    assert isinstance(second, Heat)
    assert isinstance(net, Chart)
    one, other = np.array(first.values), np.array(second.values)
    # The first strength rises to the right and moves the first score, the second upwards.
    assert (np.diff(one, axis=1) > 0).all()
    assert (np.diff(other, axis=0) > 0).all()
    assert len(net.curves) == 7
    assert first.high == (1 if scored else 100)
    rendered(picture, "png")


def test_a_run_of_many_profiles_says_what_is_left_out(tmp_path: Path) -> None:
    axes = [Axis(f"axis-{i}", "more", "less") for i in range(8)]
    make_run(tmp_path / "run", [arm(axis, 1.0) for axis in axes], n_query=2, seeds=1)
    picture = of_run.strength_of_run(Outcome.load(tmp_path / "run"))
    assert len(picture.rows[0]) == of_run.MOST_PANELS
    assert picture.notes == ("not drawn for lack of room: axis-6, axis-7",)


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [arm(POLITE, 1.0)], finished=False)
    with pytest.raises(BadInputError, match="not finished"):
        Outcome.load(tmp_path / "run")


def _first_row(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda results: change(results["rows"][-1])


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results.clear(),
        lambda results: results.update(rows=None),
        lambda results: results.update(rows=[7]),
        lambda results: results.update(plain=[]),
        _first_row(lambda row: row.update(arm="another")),
        _first_row(lambda row: row.pop("strength")),
        _first_row(lambda row: row.update(strength="1")),
        _first_row(lambda row: row.update(delta=[1])),
        _first_row(lambda row: row.update(scores=[])),
        _first_row(lambda row: row.update(scores={"polite": 3})),
        _first_row(lambda row: row.update(sweep={"k": [1]})),
    ],
)
def test_strange_results_are_one_line(tmp_path: Path, change: Any) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2, seeds=1)
    path = run.path / "results.json"
    results = json.loads(path.read_text("utf-8"))
    change(results)
    path.write_text(json.dumps(results), "utf-8")
    with pytest.raises(BadInputError, match=r"has no usable results") as caught:
        Outcome.load(run.path)
    assert "\n" not in caught.value.message


def test_numbers_beyond_all_bounds_are_not_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [arm(POLITE, 1.0)], n_query=2, seeds=1)
    path = run.path / "results.json"
    results = json.loads(path.read_text("utf-8"))
    results["rows"][-1] |= {"strength": 1e300, "delta": 10**400, "low": float("inf")}
    path.write_text(json.dumps(results), "utf-8")
    outcome = Outcome.load(run.path)
    assert np.isnan(outcome.rows[-1].delta.mean)
    for picture in of_run.pictures_of_run(outcome).values():
        rendered(picture, "png")
        drawn(picture)


# As text


def test_bars_are_as_long_as_their_numbers() -> None:
    lines = drawn(small()).splitlines()
    bars = [line for line in lines if "|" in line]
    assert [bar.count("#") for bar in bars] == [20, 0, 16]
    assert "−0.500 [−0.600, −0.400]" in bars[0]
    assert "plain: +0.00" in drawn(small())


def test_a_long_panel_is_cut(tmp_path: Path) -> None:
    many = tuple(map(float, range(1000)))
    picture = Picture("many", ((Chart("t", "x", "y", (Curve("c", many, many),)),),))
    assert len(drawn(picture).splitlines()) < MOST_LINES + 10
    assert f"({1001 - MOST_LINES} more lines)" in drawn(picture)


def test_points_lie_where_they_are() -> None:
    points = Curve("points", (0.0, 1.0), (0.0, 1.0), joined=False)
    chart = Chart("t", "x", "y", (points,), square=True)
    field = [line for line in drawn(Picture("p", ((chart,),))).splitlines() if "|" in line]
    assert field[0].endswith("o")
    assert field[-1] == "  |o"
