"""The algebra of edits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_edge.interventions.mlp_edit import Edit, LayerEdit

N = 24
seeds = st.integers(0, 2**32 - 1)
strengths = st.floats(-4, 4, width=32)
quick = settings(max_examples=40)


def orthonormal(rng: np.random.Generator, n: int, size: int = N) -> np.ndarray:
    """`n` orthonormal rows."""
    return np.linalg.qr(rng.standard_normal((size, n)))[0].T


def some_edit(rng: np.random.Generator, kind: str) -> LayerEdit:
    rows = rng.standard_normal((3, N))
    if kind == "swap":
        return LayerEdit.swap(rows[0], rows[1])
    if kind == "move":
        return LayerEdit.move(rows, rng.standard_normal(3))
    return LayerEdit.amplify(rows)


kinds = st.sampled_from(["swap", "amplify", "move"])


def edited_by(edit: LayerEdit, x: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """The rows of `x` as llama.cpp has them at a strength."""
    return x + x.dtype.type(strength) * edit.change(x)


@quick
@given(seeds, kinds)
def test_strength_zero_and_other_layers_change_nothing(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, N)).astype(np.float32)
    edit = some_edit(rng, kind)
    assert not (edit * 0).change(x).any()
    assert not Edit({3: edit}).change(2, x).any()
    assert np.array_equal(Edit({3: edit}).change(3, x), edit.change(x))
    assert (edit * 0).is_zero() and not edit.is_zero()


@quick
@given(seeds, kinds, strengths, strengths)
def test_linear_in_strength(seed: int, kind: str, s: float, t: float) -> None:
    rng = np.random.default_rng(seed)
    x, edit = rng.standard_normal((5, N)), some_edit(rng, kind)
    np.testing.assert_allclose((edit * s).change(x), s * edit.change(x), atol=1e-4)
    np.testing.assert_allclose((edit * s + edit * t).change(x), (s + t) * edit.change(x), atol=1e-4)
    np.testing.assert_allclose((-edit).change(x), -edit.change(x), atol=1e-5)
    np.testing.assert_allclose((edit - edit).change(x), 0, atol=1e-5)


@quick
@given(seeds)
def test_swap_doubles_help_and_removes_harm(seed: int) -> None:
    """For orthogonal directions, at strength 1; everything orthogonal to both stays."""
    rng = np.random.default_rng(seed)
    h, d, *others = orthonormal(rng, 5)
    x = rng.standard_normal((7, N))
    edited = edited_by(LayerEdit.swap(3.0 * h, 0.2 * d), x)
    np.testing.assert_allclose(edited @ h, 2 * (x @ h), atol=1e-5)
    np.testing.assert_allclose(edited @ d, 0, atol=1e-5)
    for other in others:
        np.testing.assert_allclose(edited @ other, x @ other, atol=1e-5)


@quick
@given(seeds)
def test_swap_is_the_two_steps_of_the_method(seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, d = rng.standard_normal((2, N))
    x = rng.standard_normal((7, N))
    edited = edited_by(LayerEdit.swap(h, d), x)
    expected = x - np.outer(x @ d / (d @ d), d)
    expected = expected + np.outer(expected @ h / (h @ h), h)
    np.testing.assert_allclose(edited, expected, atol=1e-4)
    assert LayerEdit.swap(h, d).rank == 2


@quick
@given(seeds, st.sampled_from([-1.0, 1.0]), st.sampled_from([-1.0, 1.0]))
def test_the_sign_of_a_singular_vector_is_irrelevant(seed: int, a: float, b: float) -> None:
    rng = np.random.default_rng(seed)
    h, d = rng.standard_normal((2, N))
    x = rng.standard_normal((5, N))
    for plain, turned in (
        (LayerEdit.swap(h, d), LayerEdit.swap(a * h, b * d)),
        (LayerEdit.amplify([h, d]), LayerEdit.amplify([a * h, b * d])),
        # a turned direction has the turned coordinate
        (LayerEdit.move([h, d], [0.7, -2.0]), LayerEdit.move([a * h, b * d], [a * 0.7, b * -2.0])),
    ):
        np.testing.assert_allclose(plain.change(x), turned.change(x), atol=1e-5)


@quick
@given(seeds)
def test_move_reaches_its_targets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, targets = orthonormal(rng, 3), rng.standard_normal(3)
    x = rng.standard_normal((5, N))
    edited = edited_by(LayerEdit.move(rows, targets), x)
    np.testing.assert_allclose(edited @ rows.T, np.tile(targets, (5, 1)), atol=1e-5)
    halfway = edited_by(LayerEdit.move(rows, targets), x, 0.5)
    np.testing.assert_allclose(halfway @ rows.T, (x @ rows.T + targets) / 2, atol=1e-5)


def test_amplify_doubles_along_its_direction() -> None:
    t = np.zeros(N)
    t[0] = 2.0
    x = np.zeros((2, N))
    x[:, 0] = (3.0, -3.0)
    assert edited_by(LayerEdit.amplify(t), x)[:, 0].tolist() == [6.0, -6.0]


@quick
@given(seeds, strengths, strengths)
def test_axes_commute_as_sums(seed: int, s: float, t: float) -> None:
    rng = np.random.default_rng(seed)
    a = Edit({1: some_edit(rng, "swap"), 2: some_edit(rng, "amplify")})
    b = Edit({2: some_edit(rng, "move"), 4: some_edit(rng, "amplify")})
    x = rng.standard_normal((5, N))
    one, other = a * s + b * t, b * t + a * s
    assert list(one.layers) == list(other.layers) == [1, 2, 4]
    for layer in range(6):
        np.testing.assert_allclose(one.change(layer, x), other.change(layer, x), atol=1e-4)
        both = s * a.change(layer, x) + t * b.change(layer, x)
        np.testing.assert_allclose(one.change(layer, x), both, atol=1e-4)
        np.testing.assert_allclose((one - other).change(layer, x), 0, atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_bounds_of_theorem_3_1(noise: float, share: float) -> None:
    """On sampled noise, with directions of length 1: harm nearly gone, help nearly doubled, the
    rest nearly untouched. `noise` is the paper's sigma_linguistic, `share * noise` sigma_align.

    The theorem reads both coefficients off the same `x`. The edit reads help off what is left
    without harm, and the proof drops a negative term of the help bound; each costs up to
    sigma_align^2 of the help coefficient.
    """
    rng = np.random.default_rng(0)
    n_samples = 4000
    align, linguistic = share * noise, noise
    basis = orthonormal(rng, N)
    alpha = np.array([1.3, -0.9, *rng.uniform(0.5, 1.0, N - 2)])  # help, harm, the others
    x = alpha @ basis
    coefficients = np.empty((n_samples, N))
    for i in range(n_samples):
        h, d = linguistic * rng.standard_normal((2, N))
        h[:2] = 1.0, align * rng.standard_normal()
        d[:2] = align * rng.standard_normal(), 1.0
        coefficients[i] = basis @ edited_by(LayerEdit.swap(h @ basis, d @ basis), x)
    mean = coefficients.mean(axis=0)
    error = 4 * coefficients.std(axis=0) / np.sqrt(n_samples) + 1e-6
    spread = align**2 + (N - 2) * linguistic**2
    assert abs(mean[1]) <= abs(alpha[1]) * (align**2 + spread) + error[1]
    assert mean[0] >= (1 + 1 / (1 + spread) - 2 * align**2) * alpha[0] - error[0]
    assert (abs(mean[2:] - alpha[2:]) <= abs(alpha[2:]) * linguistic**2 * 2 + error[2:]).all()
    if noise == 0:
        np.testing.assert_allclose(mean[:2], [2 * alpha[0], 0], atol=1e-6)


def test_what_is_no_edit_is_refused() -> None:
    one = np.ones(N)
    for bad in (np.zeros(N), np.full(N, np.nan), np.full(N, np.inf)):
        with pytest.raises(ValueError, match="finite length"):
            LayerEdit.swap(one, bad)
    with pytest.raises(ValueError, match="shape"):
        LayerEdit.swap(one, np.ones((2, N)))
    with pytest.raises(ValueError, match="targets"):
        LayerEdit.move(np.ones((2, N)), [1.0])
    ones = np.ones((N, N), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        LayerEdit(ones[:, :2], ones[:3], ones[0])
    with pytest.raises(ValueError, match="not finite"):
        LayerEdit(ones[:, :1], ones[:1], np.inf * ones[0])
    with pytest.raises(ValueError, match="counted from 0"):
        Edit({-1: LayerEdit.amplify(one)})
    with pytest.raises(ValueError, match="different sizes"):
        Edit({0: LayerEdit.amplify(one), 1: LayerEdit.amplify(np.ones(N + 1))})


def test_edits_are_values() -> None:
    source = np.ones((N, 1), np.float32)
    edit = LayerEdit(source, source.T, np.zeros(N, np.float32))
    source[:] = 7
    assert edit.outward.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        edit.inward[0, 0] = 2
    whole = Edit({1: edit})
    assert not whole.is_zero() and Edit({}).is_zero()
    with pytest.raises(TypeError):
        whole.layers[2] = edit  # type: ignore[index]
