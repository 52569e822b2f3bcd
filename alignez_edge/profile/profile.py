"""A steering profile: what one axis adds to one model, as a value.

`file.py` writes it as one GGUF file and reads it back; `steering.py` adds profiles up.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_edge.files.text import printable
from alignez_edge.files.untrusted import MAX_NUMBERS, MAX_REPORT, check_text, to_json
from alignez_edge.interventions.control_vector import check_layers
from alignez_edge.profile.file import read_profile, write_profile
from alignez_edge.steering.steerable import Steerable
from alignez_edge.steering.steering import Steering

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Conditional, Injection
    from alignez_edge.runtime.weights import Weights

_CURVE = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, eq=False)
class Profile(Steerable):
    """What steers one model along one axis, checked: `Steerable` says what its parts are.

    The axis' queries are not kept. Raises `ValueError` if something contradicts.
    """

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

    @classmethod
    def of(cls, steerable: Steerable) -> Profile:
        """The profile of parts that were collected."""
        return cls(**_fields_of(steerable))

    def parts(self) -> Steerable:
        """Its parts, to be changed before another profile is made of them."""
        return Steerable(**_fields_of(self))

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

        Raises `AlignezError` if the disk or the folder does not allow it.
        """
        write_profile(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file; raises `ProfileFileError` with one line on anything wrong in it."""
        return read_profile(path, cls)


def _fields_of(steerable: Steerable) -> dict[str, Any]:
    return {field.name: getattr(steerable, field.name) for field in fields(Steerable)}


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
