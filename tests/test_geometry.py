"""How directions lie to each other, against what it must be for directions that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignez_edge.directions.geometry import Geometry, cosine_by_count, principal_plane
from alignez_edge.runtime.model import Model
from tests.profiles import random_profile


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_equal_directions_agree_however_many_layers() -> None:
    rows = np.tile(unit(np.random.default_rng(0).normal(size=(1, 8))), (5, 1))
    np.testing.assert_allclose(cosine_by_count(rows), 1)


def test_mean_cosine_of_layers_by_their_agreement() -> None:
    rows = unit(np.random.default_rng(1).normal(size=(6, 4)))
    similar = rows @ rows.T
    order = np.argsort(-similar.sum(axis=1))
    found = cosine_by_count(rows)
    for count in range(2, 7):
        inner = similar[np.ix_(order[:count], order[:count])]
        mean = inner[~np.eye(count, dtype=bool)].mean()
        assert found[count - 2] == pytest.approx(mean)


def test_two_planted_clusters_lie_apart_in_the_plane() -> None:
    rng = np.random.default_rng(2)
    centres = np.zeros((2, 50))
    centres[0, 0] = centres[1, 1] = 5.0
    rows = np.concatenate([centre + rng.normal(size=(20, 50)) * 0.1 for centre in centres])
    plane, share = principal_plane(rows)
    assert plane[:20, 0].max() < plane[20:, 0].min() or plane[:20, 0].min() > plane[20:, 0].max()
    assert share[0] > 0.8
    assert share.sum() <= 1 + 1e-12


def test_the_plane_does_not_depend_on_the_origin_and_keeps_distances_of_flat_points() -> None:
    flat = np.zeros((7, 9))
    flat[:, :2] = np.random.default_rng(3).normal(size=(7, 2))
    plane, share = principal_plane(flat + 3.0)
    between = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(plane[:, None] - plane[None], axis=-1), between)
    assert share.sum() == pytest.approx(1)
    np.testing.assert_allclose(principal_plane(flat)[0], plane, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2])
def test_a_plane_of_few_points(n: int) -> None:
    plane, share = principal_plane(np.ones((n, 3)))
    assert not plane.any()
    assert not share.any()


def test_help_and_harm_of_known_directions() -> None:
    help_ = np.eye(3, 4)
    harm = np.array([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0.6, 0.8]], float)
    assert Geometry.of_directions(help_, harm).help_harm == (1, -1, 0.6)


def test_a_report_keeps_it(llama_model: Model) -> None:
    rng = np.random.default_rng(4)
    made = Geometry.of_directions(*unit(rng.normal(size=(12, 9))).reshape(2, 6, 9))
    profile = random_profile(llama_model, report=made.to_report())
    assert Geometry.of(profile.report, profile.vector.n_layer) == made


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        [],
        {},
        {"help_harm": [0.0]},
        {"plane": 3},
        {"plane": [[[0, 0]] * 6, [[0, 0]] * 5]},
        {"plane": [[[0, 0]] * 6, [["a", 0]] * 6]},
        {"share": [1e400, 0]},
        {"share": [True, 0]},
        {"by_count": {"0": 1}},
    ],
)
def test_an_untrusted_report_is_data(llama_model: Model, wrong: object) -> None:
    made = Geometry.of_directions(np.eye(6), np.eye(6)).to_report()["geometry"]
    told = {**made, **wrong} if isinstance(wrong, dict) and wrong else wrong
    profile = random_profile(llama_model)
    # As a file's JSON may have it, infinity included.
    object.__setattr__(profile, "report", json.loads(json.dumps({"geometry": told})))
    assert Geometry.of(profile.report, profile.vector.n_layer) is None
    assert Geometry.of({}, 6) is None
