"""A steering profile: what one axis adds to one model, as a value.

`file.py` writes it as one GGUF file and reads it back; `steering.py` adds profiles up.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_edge.files.text import printable
from alignez_edge.files.untrusted import MAX_NUMBERS, MAX_REPORT, check_text, to_json
from alignez_edge.interventions.control_vector import ControlVector, check_layers
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.intervention import Intervention
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.interventions.ways import Way
from alignez_edge.modelfiles.fingerprint import Fingerprint
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.file import read_profile, write_profile
from alignez_edge.repeatable import timestamp
from alignez_edge.steering.steering import Steering

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Conditional, Injection
    from alignez_edge.runtime.weights import Weights

_CURVE = re.compile(r"[a-z][a-z0-9_]{0,39}")

Curves = Mapping[str, float | tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Profile:
    """What steers one model along one axis.

    `vector` has its natural lengths and edits only `layers`; `unit` is the calibrated scale, so
    that strength `s` adds `s * unit * vector` and strength 1 means 'as calibrated'. Negative
    strengths have a scale of their own, `unit_negative`, and those of the exact edit
    `exact_unit_negative`; None means that both signs are alike (see `scale`). `calibration`
    holds curves (tuples of numbers) and single numbers by name; `report` is anything that JSON can
    say. `pairs` were used, `dropped` counts those that were not by reason. The axis' queries are
    not kept. `intervention` is what is injected in place of the vector, where there is more to the
    method than that: its edit, whose mean the vector is, where the model allows it; vector and edit
    made anew for every query; or a value function that moves the logits and nothing else, so that
    the vector is zero and no layers are named. Raises `ValueError` where
    something contradicts.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", replace(self.axis, queries=()))
        if self.edits_layers:
            layers = tuple(check_layers(self.layers, self.vector.n_layer))
            object.__setattr__(self, "layers", layers)
        if self.intervention is not None:
            self.intervention.check(self.vector, self.layers)
        if not set(self.vector.layers) <= set(self.layers):
            raise ValueError(
                f"the vector edits layers {self.vector.layers}, the profile names {self.layers}"
            )
        for name in ("unit", "unit_negative", "exact_unit_negative"):
            if (scale := getattr(self, name)) is None and name != "unit":
                continue
            object.__setattr__(self, name, float(scale))
            if not math.isfinite(scale) or scale <= 0:
                raise ValueError(f"the calibrated scale must be a positive number, not {scale}")
        if self.exact_unit is None:
            object.__setattr__(self, "exact_unit_negative", None)
        for name in ("method", "author", "licence", "created_at", "model"):
            check_text(name, getattr(self, name))
        for name, count in (("seed", self.seed), ("pairs", self.pairs)):
            if not 0 <= count < 1 << 63:
                raise ValueError(f"{name} is {count}, outside 0 to 2**63 - 1")
        object.__setattr__(self, "calibration", _checked_curves(self.calibration))
        for name in ("dropped", "versions", "report"):
            text = to_json(getattr(self, name))
            if len(text) > MAX_REPORT:
                raise ValueError(f"{name} is longer than {MAX_REPORT:,} characters")
            object.__setattr__(self, name, json.loads(text))
        for name in ("dropped", "versions"):
            for key, value in getattr(self, name).items():
                check_text(name, key)
                check_text(name, str(value))

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
        """What `unit` is to the exact edit; None where there is no such edit."""
        return None if self.intervention is None else self.intervention.exact_unit

    def describe(self) -> str:
        """In what forms it can be injected, in words."""
        return "a control vector" if self.intervention is None else self.intervention.describe()

    def with_exact_unit(self, unit: float | None, negative: float | None = None) -> Profile:
        """The profile with other units of its exact edit; None takes the edit out, `negative`
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

    def natural(self) -> Profile:
        """The profile with all units 1: its strengths are natural lengths."""
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

    def injection(self, model: Weights) -> Injection | Conditional | None:
        """What strength 1 injects into `model`; see `Steering.injection`."""
        return (self * 1.0).injection(model)

    def __mul__(self, strength: float) -> Steering:
        return Steering(((self, strength),))

    __rmul__ = __mul__

    def __neg__(self) -> Steering:
        return self * -1.0

    def __add__(self, other: Profile | Steering) -> Steering:
        return self * 1.0 + other

    def __sub__(self, other: Profile | Steering) -> Steering:
        return self * 1.0 - other

    def save(self, path: str | Path) -> None:
        """Write the GGUF file, whole or not at all; equal profiles give equal bytes.

        Raises `AlignezError` where the disk or the folder does not allow it.
        """
        write_profile(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file; raises `ProfileFileError` with one line on anything wrong in it."""
        return read_profile(path, cls)


def _checked_curves(calibration: Mapping[str, Any]) -> dict[str, float | tuple[float, ...]]:
    """The curves as plain numbers; raises `ValueError` on odd names and on unfinite numbers."""
    curves: dict[str, float | tuple[float, ...]] = {}
    for key, value in calibration.items():
        if not isinstance(key, str) or not _CURVE.fullmatch(key):
            raise ValueError(f"odd name of a calibration curve: {printable(str(key), 60)!r}")
        numbers = np.asarray(value, np.float64)
        if (
            numbers.ndim > 1
            or not 1 <= numbers.size <= MAX_NUMBERS
            or not np.isfinite(numbers).all()
        ):
            raise ValueError(f"calibration {key} must be 1 to {MAX_NUMBERS} finite numbers")
        curves[key] = float(numbers) if numbers.ndim == 0 else tuple(numbers.tolist())
    strengths = curves.get("strengths")
    for key in ("margin", "drift", "effect", "cost"):
        if isinstance(strengths, tuple) and key in curves:
            curve = curves[key]
            if not isinstance(curve, tuple) or len(curve) != len(strengths):
                raise ValueError(f"calibration {key} does not have one number per strength")
    return curves
