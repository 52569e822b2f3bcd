"""Mixes of profiles: the algebra of sums and of orthogonalising, interference, the command."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_edge.errors import AxisError, BadInputError, ProfileFileError
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.profile.mix import (
    MAX_PARTS,
    Mixture,
    displacements,
    interference,
    left_out,
    mix,
    orthogonalise,
)
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile
from tests.terminal import Alignez

STRENGTHS = st.floats(-3, 3).filter(lambda s: abs(s) > 1e-3)


@pytest.fixture
def overlapping(llama_model: Model) -> list[Profile]:
    """Three profiles on different layers that overlap pairwise, in other units."""
    a, b, c = (
        random_profile(llama_model, seed, name, (2, 3, 5), unit=unit)
        for seed, name, unit in ((0, "a", 0.5), (1, "b", 2.0), (2, "c", 1.0))
    )
    shared = (b.vector + c.vector * 0.3).restrict([3, 5])
    return [replace(a, vector=a.vector + shared, layers=(2, 3, 5)), b, c]


def rows(profile: Profile, model: Model) -> npt.NDArray[np.float32]:
    found = profile.injection(model)
    assert isinstance(found, Injection)
    return np.stack([found.deciding, found.answer])


def cosines(a: Profile, b: Profile) -> npt.NDArray[np.float64]:
    """Between the displacements at each position and layer; 0 where one of them is zero."""
    x, y = displacements(a), displacements(b)
    lengths = np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2)
    return np.divide((x * y).sum(axis=2), lengths, out=np.zeros_like(lengths), where=lengths > 0)


@settings(max_examples=20)
@given(strengths=st.tuples(STRENGTHS, STRENGTHS, STRENGTHS))
def test_a_mix_injects_the_sum_to_the_bit(
    llama_model: Model, strengths: tuple[float, float, float]
) -> None:
    names = zip(strengths, "abc", ((1, 2), (2, 4), (5,)), strict=True)
    terms = [
        (random_profile(llama_model, seed, name, layers), strength)
        for seed, (strength, name, layers) in enumerate(names)
    ]
    wanted = sum((p * s for p, s in terms[1:]), terms[0][0] * terms[0][1]).injection(llama_model)
    assert isinstance(wanted, Injection)
    for order in itertools.permutations(terms):
        found = mix(order, "all").injection(llama_model)
        assert isinstance(found, Injection)
        assert found.deciding.tobytes() == wanted.deciding.tobytes()
        assert found.answer.tobytes() == wanted.answer.tobytes()


def test_a_mix_says_what_it_is(overlapping: list[Profile]) -> None:
    a, b, _ = overlapping
    made = mix([(a, 0.5), (b, -1), (a, 0.25)], "both")
    assert made.name == "both" and made.unit == 1 and made.model == a.model
    assert (made.axis.positive, made.axis.negative) == ("polite and rude", "rude and polite")
    assert made.layers == (2, 3, 5) and made.pairs == a.pairs + b.pairs
    assert made.dropped == {"equal answers": 2} and not made.calibration
    assert made.author == "Zoë" and made.licence == "CC0-1.0" and "numpy" in made.versions
    found = Mixture.of(made)
    assert found is not None and found.remaining is None
    assert [(p.profile, p.digest, p.strength) for p in found.parts] == [
        (*a.order, 0.75),
        (*b.order, -1.0),
    ]
    assert found.interference[0] == (1.0, round(interference(a, b), 4))


def test_a_mix_is_kept_in_its_file(overlapping: list[Profile], tmp_path: Path) -> None:
    made = mix([(p, 1) for p in overlapping], "all", orthogonal=True)
    made.save(tmp_path / "all.gguf")
    read = Profile.load(tmp_path / "all.gguf")
    assert read.order == made.order and Mixture.of(read) == Mixture.of(made)
    assert Mixture.of(mix([(read, 1), (overlapping[0], 1)], "more")) is not None


def test_mixes_of_mixes_are_sums(overlapping: list[Profile], llama_model: Model) -> None:
    a, b, c = overlapping
    inner = mix([(a, 0.5), (b, -1)], "inner")
    outer = mix([(inner, 2), (c, 0.1)], "outer")
    flat = mix([(a, 1), (b, -2), (c, 0.1)], "flat")
    wanted = rows(flat, llama_model)
    np.testing.assert_allclose(rows(outer, llama_model), wanted, atol=1e-6 * abs(wanted).max())


def test_orthogonal_in_every_layer_and_position(overlapping: list[Profile]) -> None:
    a, b, c = overlapping
    assert abs(cosines(a, b)).max() > 0.3
    for against in ([b], [b, c], [b, c, b]):
        left = orthogonalise(a, *against)
        for other in against:
            assert abs(cosines(left, other)).max() < 1e-4
            assert interference(left, other) == pytest.approx(0, abs=1e-5)
        assert set(left.layers) <= {2, 3, 5}
        # What was taken away lies in the span of the others, so it is orthogonal to what is left.
        gone = displacements(a) - displacements(left) * (a.unit / left.unit)
        assert abs((gone * displacements(left)).sum(axis=2)).max() < 1e-4
        assert left.unit > a.unit
    assert (left.name, left.calibration) == (a.name, {})
    assert left.report["orthogonal_to"][0] == {"profile": "b", "digest": b.order[1]}


def test_orthogonalising_keeps_the_length(llama_model: Model) -> None:
    b = random_profile(llama_model, 1, "b", unit=0.5)
    other = random_profile(llama_model, 2)
    away = orthogonalise(other, b).vector
    for share in (0.3, 3.0):
        left = orthogonalise(replace(b, vector=away + b.vector * share, unit=2.0), b)
        np.testing.assert_allclose(cosines(left, replace(b, vector=away))[:, 2:], 1, atol=1e-5)
    a = replace(b, vector=ControlVector(*(away.deciding + b.vector.deciding,) * 2))
    b = replace(b, vector=ControlVector(*(b.vector.deciding,) * 2))
    before, after = (np.linalg.norm(displacements(p)[:, [2, 3]]) for p in (a, orthogonalise(a, b)))
    assert after == pytest.approx(before, rel=1e-5)


def test_orthogonalising_is_a_projection(overlapping: list[Profile]) -> None:
    a, b, _ = overlapping
    once = orthogonalise(a, b)
    twice = orthogonalise(once, b)
    np.testing.assert_allclose(displacements(twice), displacements(once), atol=1e-5)
    # Neither the length nor the sign of what it is done against matters.
    for factor in (-1e-3, 40):
        same = orthogonalise(a, replace(b, vector=b.vector * factor))
        np.testing.assert_allclose(displacements(same), displacements(once), atol=1e-5)


def test_what_is_orthogonal_stays_as_it_is(llama_model: Model) -> None:
    p = random_profile(llama_model, layers=(2, 3))
    half = p.vector.n_embd // 2

    def only(part: slice, name: str) -> Profile:
        keep = np.zeros(p.vector.n_embd, np.float32)
        keep[part] = 1
        vector = ControlVector(p.vector.deciding * keep, p.vector.answer * keep)
        return random_profile(llama_model, name=name, vector=vector)

    left, right = only(slice(half), "left"), only(slice(half, None), "right")
    assert interference(left, right) == interference(right, left) == 0
    for made in (orthogonalise(left, right), orthogonalise(left, right, right)):
        np.testing.assert_allclose(displacements(made), displacements(left), atol=1e-6)
    plain, other = (mix([(left, 1), (right, -2)], "x", orthogonal=o) for o in (False, True))
    np.testing.assert_allclose(plain.vector.deciding, other.vector.deciding, atol=1e-6)


def test_an_orthogonal_mix_is_the_sum_of_what_is_left(overlapping: list[Profile]) -> None:
    a, b, c = overlapping
    strengths = (1.0, -0.5, 0.0)
    terms = list(zip(overlapping, strengths, strict=True))
    made = mix(terms, "all", orthogonal=True)
    wanted = displacements(orthogonalise(a, b, c)) - 0.5 * displacements(orthogonalise(b, a, c))
    np.testing.assert_allclose(displacements(made), wanted, atol=1e-5)
    assert abs(cosines(made, c)).max() < 1e-4, "strength 0 still takes its axis from the others"
    for order in itertools.permutations(terms):
        other = mix(order, "all", orthogonal=True)
        np.testing.assert_allclose(displacements(other), displacements(made), atol=1e-5)
    found = Mixture.of(made)
    assert found is not None and found.remaining is not None
    remaining = np.array(found.remaining)
    np.testing.assert_allclose(remaining - np.diag(np.diag(remaining)), 0, atol=1e-4)
    assert ((np.diag(remaining) > 0) & (np.diag(remaining) <= 1)).all()


def test_interference_is_in_units_of_the_others_effect(overlapping: list[Profile]) -> None:
    a, b, _ = overlapping
    assert interference(a, a) == pytest.approx(1)
    for factor in (0.5, 4.0):
        assert interference(replace(a, unit=a.unit * factor), b) == pytest.approx(
            factor * interference(a, b)
        )
        assert interference(a, replace(b, unit=b.unit * factor)) == pytest.approx(
            interference(a, b) / factor
        )
    assert interference(replace(a, vector=-a.vector), b) == pytest.approx(-interference(a, b))
    nothing = replace(b, vector=b.vector * 0)
    assert interference(a, nothing) == 0 and interference(nothing, a) == 0


def test_interference_is_the_mean_of_the_positions(llama_model: Model) -> None:
    b = random_profile(llama_model, 1, layers=(2, 4), unit=2.0)
    a = replace(b, vector=ControlVector(b.vector.deciding * 0.5, b.vector.answer * 0.1), unit=1.0)
    assert interference(a, b) == pytest.approx((0.25 + 0.05) / 2)
    only = replace(b, vector=ControlVector(b.vector.deciding * 0, b.vector.answer))
    assert interference(a, only) == pytest.approx(0.05), "positions where b does nothing are out"


def with_edits(profile: Profile, draw: int) -> Profile:
    """`profile` with exact edits of its layers."""
    rng = np.random.default_rng(draw)
    edits = [
        Edit({i: LayerEdit.swap(*rng.standard_normal((2, profile.vector.n_embd))) for i in (2, 3)})
        for _ in range(2)
    ]
    return replace(profile, intervention=ExactForm(edits[0], edits[1], unit=0.5 + draw))


def test_exact_edits_add_up_where_every_part_has_one(overlapping: list[Profile]) -> None:
    a, b = (with_edits(profile, draw) for draw, profile in enumerate(overlapping[:2]))
    mixed = mix([(a, 0.5), (b, -2.0)], "both")
    assert mixed.exact is not None and left_out([(a, 0.5), (b, -2.0)]) == []
    x = np.random.default_rng(5).standard_normal((7, a.vector.n_embd))
    for position, edit in mixed.exact.edits.items():
        for layer in (2, 3):
            parts = [(a, 0.5 * 0.5), (b, -2.0 * 1.5)]
            wanted = sum(
                s * p.exact.edits[position].layers[layer].change(x) for p, s in parts if p.exact
            )
            np.testing.assert_allclose(edit.layers[layer].change(x), wanted, atol=1e-4)
    for terms, orthogonal in (([(a, 1.0), (overlapping[2], 1.0)], False), ([(a, 1), (b, 1)], True)):
        assert mix(terms, "both", orthogonal=orthogonal).exact is None
        (line,) = left_out(terms, orthogonal=orthogonal)
        assert line.startswith("the mix has control vectors only")


def test_mixes_of_mixes_that_no_file_could_hold(llama_model: Model) -> None:
    rng = np.random.default_rng(0)
    halves = []
    for half in range(2):
        parts = []
        for draw in range(17):
            edit = Edit({2: LayerEdit.swap(*rng.standard_normal((2, llama_model.n_embd)))})
            profile = random_profile(llama_model, 100 * half + draw, layers=(2,))
            parts.append((replace(profile, intervention=ExactForm(edit, edit)), 1.0))
        halves.append((mix(parts, f"half{half}"), 1.0))
    with pytest.raises(BadInputError, match="rank 68, of at most 64"):
        mix(halves, "both")


@pytest.mark.parametrize("strength", [math.nan, math.inf, "x", None])
def test_bad_strengths(overlapping: list[Profile], strength: Any) -> None:
    a, b, _ = overlapping
    with pytest.raises(BadInputError, match="finite number"):
        mix([(a, 1), (b, strength)], "x")


def test_mixes_that_make_no_sense(overlapping: list[Profile], llama_model: Model) -> None:
    a, b, _ = overlapping
    double = replace(a, vector=a.vector * 2)
    many = [(random_profile(llama_model, draw, layers=(2,)), 1.0) for draw in range(MAX_PARTS + 1)]
    for terms, error in (
        ([], "not 0"), ([(a, 1)], "not 1"), ([(a, 1), (a, 2)], "not 1"), (many, "not 33"),
        ([(a, 0), (b, 0)], "nothing is left"), ([(a, 2), (double, -1)], "nothing is left"),
        ([(a, 1e300), (b, 1)], "overflows"),
    ):  # fmt: skip
        with pytest.raises(BadInputError, match=error):
            mix(terms, "x")
    with pytest.raises(BadInputError, match="nothing of a is left: it lies along a"):
        mix([(a, 1), (replace(a, unit=7.0), 1)], "x", orthogonal=True)
    for unit in (1e308, 1e150):
        for orthogonal in (False, True):
            with pytest.raises(BadInputError, match="numbers of the profile a are too large"):
                mix([(replace(a, unit=unit), 1), (b, 1)], "x", orthogonal=orthogonal)
    faint = replace(a, unit=1e-300)
    assert np.isfinite([interference(faint, b), interference(b, faint)]).all()
    near = replace(a, vector=a.vector + b.vector * 1e-3)
    with pytest.raises(BadInputError, match="nothing of a is left"):
        orthogonalise(near, a)
    with pytest.raises(AxisError, match="cannot be named"):
        mix([(a, 1), (b, 1)], "a/b")


def test_parts_must_be_for_one_model(
    llama_model: Model, tiny_model: Callable[..., Path], overlapping: list[Profile]
) -> None:
    p = random_profile(llama_model)
    for options, differs in (
        ({"architecture": "qwen2", "n_layer": 6}, "architecture"),
        ({"n_layer": 6, "seed": 5}, "weights"),
    ):
        with Model.load(tiny_model(**options), threads=1) as other:
            q = random_profile(other, 1, "terse")
        for act in (
            lambda q=q: mix([(p, 1), (q, 0)], "x"),
            lambda q=q: orthogonalise(p, q),
            lambda q=q: interference(p, q),
        ):
            with pytest.raises(ProfileFileError, match=f"polite and terse .*{differs}") as caught:
                act()
            assert "\n" not in caught.value.message
    odd = random_profile(llama_model, vector=ControlVector.zeros(9, 3), layers=(1,))
    with pytest.raises(ProfileFileError, match="shapes"):
        mix([(p, 1), (odd, 1)], "x")


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"mix": 3},
        {"mix": {"parts": [], "interference": [], "remaining": None}},
        {"mix": {"parts": [], "interference": [[1]], "remaining": None}},
        {"mix": {"parts": 7, "interference": [], "remaining": None}},
        {"mix": {"parts": [{"profile": "a", "digest": "", "strength": "1"}], "interference": [[1]],
                 "remaining": None}},
        {"mix": {"parts": [{"profile": "a", "digest": "", "strength": 1}], "interference": [["x"]],
                 "remaining": None}},
        {"mix": {"parts": [{"profile": "a", "digest": "", "strength": 1}], "interference": [[1]],
                 "remaining": [[1, 2]]}},
        {"mix": {"parts": [{"profile": "a", "digest": "", "strength": 10**400}],
                 "interference": [[1]], "remaining": None}},
    ],
)  # fmt: skip
def test_an_untrusted_report_is_data(llama_model: Model, report: dict[str, Any]) -> None:
    assert Mixture.of(random_profile(llama_model, report=report)) is None


def test_the_command(alignez: Alignez, overlapping: list[Profile], tmp_path: Path) -> None:
    for profile in overlapping:
        profile.save(tmp_path / f"{profile.name}.gguf")
    a, b = (tmp_path / f"{name}.gguf" for name in "ab")
    said = alignez("profile", "mix", a, f"{b}:-0.5")
    assert (said.code, said.err) == (0, "")
    assert "A mix of a:1 b:-0.5" in said.out and "orthogonalising" not in said.out
    shown = alignez("profile", "show", "a-b")
    table = said.out.split("\n\n")[1]
    assert "b  " in table and table in shown.out
    target = tmp_path / "new.gguf"
    options = ["--orthogonal", "--name", "new", "-o", target, "--json"]
    said = alignez("profile", "mix", a, b, *options)
    (record,) = map(json.loads, said.out.splitlines())
    assert record["profile"] == str(target) and record["axis"] == "new"
    assert [part["profile"] for part in record["parts"]] == ["a", "b"]
    assert record["interference"][0][0] == 1 and abs(record["remaining"][0][1]) < 1e-3
    (facts,) = map(json.loads, alignez("profile", "show", target, "--json").out.splitlines())
    assert facts["mix"]["remaining"] == record["remaining"]
    assert "after orthogonalising" in alignez("profile", "show", target).out


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ([], "error: a mix needs 2 to 32 different profiles, not 1"),
        (["nowhere"], "error: no profile called 'nowhere'"),
        (["b.gguf:nan"], "error: the strength in 'b.gguf:nan' is not a finite number"),
        (["b.gguf", "-o", "no/x.gguf"], "error: cannot write no/x.gguf: no such folder"),
        (["b.gguf", "-o", "."], "error: cannot write .: it is not a plain file"),
        (["b.gguf", "--name", "a b"], "error: an axis cannot be named 'a b'"),
        (["other.gguf"], "error: a and other are for different models: "),
        (["broken.gguf"], "error: broken.gguf"),
    ],
)
def test_wrong_use(
    alignez: Alignez,
    overlapping: list[Profile],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for profile in overlapping:
        profile.save(f"{profile.name}.gguf")
    with Model.load(tiny_model("qwen2", n_layer=6), threads=1) as other:
        random_profile(other, 1, "other").save("other.gguf")
    Path("broken.gguf").write_bytes(b"GGUF")
    said = alignez("profile", "mix", "a.gguf", *more)
    assert (said.code, said.out) == (2, "")
    first, *rest = said.err.splitlines()
    assert first.startswith(error) and len(rest) <= 1
