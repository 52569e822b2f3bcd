"""What a steering adds up: what steers one model along one axis, and what is known of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.intervention import Intervention
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.interventions.ways import Way
from alignez_edge.modelfiles.fingerprint import Fingerprint
from alignez_edge.preferences.axes import Axis
from alignez_edge.repeatable import timestamp

Curves = Mapping[str, float | tuple[float, ...]]
Own = TypeVar("Own", bound="Steerable")


@dataclass(frozen=True, eq=False)
class Steerable:
    """All that a profile holds, unchecked: what a build measures while it collects the parts.

    `vector` is the raw difference and edits only `layers`; `unit` is the calibrated scale, so
    that strength `s` adds `s * unit * vector` and strength 1 means 'as calibrated'. Negative
    strengths have a scale of their own, `unit_negative`, and those of the exact edit
    `exact_unit_negative`; None means that both signs are alike (see `scale`). `calibration`
    holds curves (tuples of numbers) and single numbers by name; `report` is anything that JSON can
    say. `pairs` were used, `dropped` counts those that were not by reason. `intervention` is what
    is injected in place of the vector, where there is more to the method than that: its edit, whose
    mean the vector is, where the model allows it; vector and edit made anew for every query; or a
    value function that moves the logits and nothing else, so that the vector is zero and no layers
    are named.
    """

    axis: Axis
    vector: ControlVector
    layers: tuple[int, ...]
    fingerprint: Fingerprint
    unit: float = 1.0
    method: str = ""
    calibration: Curves = field(default_factory=dict)
    seed: int = 0
    pairs: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    author: str = ""
    licence: str = ""
    created_at: str = field(default_factory=timestamp)
    model: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    intervention: Intervention | None = None
    unit_negative: float | None = None
    exact_unit_negative: float | None = None

    @property
    def name(self) -> str:
        """The name of its axis."""
        return self.axis.name

    @property
    def exact(self) -> ExactForm | None:
        """Its exact form, where that is its intervention."""
        return self.intervention if isinstance(self.intervention, ExactForm) else None

    @property
    def neighbors(self) -> Neighborhood | None:
        """What makes it query-conditioned, where that is its intervention."""
        return self.intervention if isinstance(self.intervention, Neighborhood) else None

    @property
    def edits_layers(self) -> bool:
        """Whether it edits layers at all: one that moves the logits does not."""
        return self.intervention is None or self.intervention.edits_layers

    @property
    def way(self) -> Way:
        """The way of injection that `unit` is for: `auto` where no layer is edited."""
        return "control-vector" if self.edits_layers else "auto"

    @property
    def exact_unit(self) -> float | None:
        """What `unit` is to the exact edit; None if there is no such edit."""
        return None if self.intervention is None else self.intervention.exact_unit

    def describe(self) -> str:
        """In what forms it can be injected, in words."""
        return "a control vector" if self.intervention is None else self.intervention.describe()

    def with_exact_unit(self: Own, unit: float | None, negative: float | None = None) -> Own:
        """The same with other units of its exact edit; None takes the edit out, `negative`
        None means that both signs are alike."""
        assert self.intervention is not None
        other = self.intervention.with_exact_unit(unit)
        return replace(self, intervention=other, exact_unit_negative=negative)

    def scale(self, strength: float, way: Way = "control-vector") -> float:
        """What the vector is multiplied by at a strength, or the exact edit where that is the
        `way`: the strength times the unit of its sign."""
        if way in ("exact", "reference"):
            assert self.exact_unit is not None
            unit, negative = self.exact_unit, self.exact_unit_negative
        else:
            unit, negative = self.unit, self.unit_negative
        return strength * (negative if strength < 0 and negative is not None else unit)

    def natural(self: Own) -> Own:
        """The same with all units 1: its strengths are raw differences."""
        plain = replace(self, unit=1.0, unit_negative=None)
        return plain.with_exact_unit(1.0) if plain.exact_unit is not None else plain

    @cached_property
    def order(self) -> tuple[str, str]:
        """Its name and a digest of what it adds to which model: equal profiles have equal ones.

        Sums are taken in this order, so that the order of their terms does not matter.
        """
        digest = hashlib.sha256(self.vector.deciding.tobytes() + self.vector.answer.tobytes())
        digest.update(repr(self.unit).encode())
        for scale in (self.unit_negative, self.exact_unit_negative):
            if scale is not None:
                digest.update(f"-{scale!r}".encode())
        if self.intervention is not None:
            digest.update(self.intervention.digest.encode())
        for key, value in sorted(self.fingerprint.to_metadata().items()):
            digest.update(key.encode())
            digest.update(
                value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            )
        return self.name, digest.hexdigest()
