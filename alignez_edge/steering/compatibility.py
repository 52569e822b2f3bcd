"""Whether a profile fits a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_edge.errors import ProfileFileError
from alignez_edge.files.text import printable
from alignez_edge.modelfiles.fingerprint import Fit, compare, misfits

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights
    from alignez_edge.steering.steerable import Steerable


def check_fit(profile: Steerable, model: Weights) -> str | None:
    """One line about a profile made for a sibling of `model`; None if it is the same model.

    Raises `ProfileFileError`, naming what differs, if the profile does not fit.
    """
    name = printable(profile.name)
    comparison = compare(profile.fingerprint, model.fingerprint)
    if comparison.fit is Fit.DIFFERENT:
        raise ProfileFileError(
            f"the profile {name} was made for another model{_called(profile)}: "
            f"{misfits(profile.fingerprint, model.fingerprint)}",
            hint=f"build one for this model: alignez build {name} -m MODEL",
        )
    if profile.vector.deciding.shape != (model.n_layer, model.n_embd):
        raise ProfileFileError(
            f"the profile {name} is for {profile.vector.n_layer} layers of "
            f"{profile.vector.n_embd}, the model has {model.n_layer} of {model.n_embd}"
        )
    if comparison.fit is Fit.SAME_SHAPE:
        differing = ", ".join(comparison.differing)
        return f"the profile {name} was made for a model of the same shape with other {differing}"
    return None


def _called(profile: Steerable) -> str:
    return f" ({printable(profile.model, 60)})" if profile.model else ""
