"""Profiles made on the spot for a given model, with random vectors (`draw` picks them)."""

from __future__ import annotations

from typing import Any

import numpy as np

from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model


def random_profile(
    model: Model,
    draw: int = 0,
    name: str = "polite",
    layers: tuple[int, ...] = (2, 3),
    **facts: Any,
) -> Profile:
    """A profile that fits `model`; `facts` replace fields of it."""
    rng = np.random.default_rng(draw)
    deciding, answer = rng.normal(size=(2, model.n_layer, model.n_embd)).astype(np.float32)
    known: dict[str, Any] = {
        "axis": Axis(name, "polite", "rude", queries=("Who?",), positive_prompt="Be “kind”."),
        "vector": ControlVector.from_displacements(deciding, answer, layers),
        "layers": layers,
        "fingerprint": model.fingerprint,
        "unit": 0.1 + 0.2,
        "method": "difference of means",
        "calibration": {
            "strengths": (-1.0, 0.0, 0.1),
            "margin": (-1.5, 0.0, 1 / 3),
            "drift": (0.2, 0.0, 1e-300),
            "budget": 0.1,
        },
        "seed": 2**40,
        "pairs": 31,
        "dropped": {"equal answers": 1},
        "versions": {"alignez-edge": "0.1.0"},
        "author": "Zoë",
        "licence": "CC0-1.0",
        "created_at": "2026-01-01T00:00:00Z",
        "model": model.facts.name,
        "report": {"layers": [{"layer": 2, "separation": 1.5}], "note": "two\nlines"},
    }
    return Profile(**(known | facts))
