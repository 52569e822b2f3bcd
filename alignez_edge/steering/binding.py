"""A steering bound to one model: whether its profiles fit, and the way in which each gets in.

- `control-vector`: one constant vector a layer and position. Any model, any profile.
- `exact`: the profile's exact form as LoRA adapters and constants, at native speed.
- `reference`: the same form in the evaluation callback: slow, for tests and experiments.
- `auto`: where the vector is only the mean of the profile's edit, exact if the model allows it;
  else the control vector, which is then the whole of what was fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.interventions.intervention import Share, ShareByQuery
from alignez_edge.interventions.ways import Way
from alignez_edge.steering.compatibility import check_fit

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Conditional, Injection
    from alignez_edge.runtime.weights import Weights
    from alignez_edge.steering.steerable import Steerable

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Binding:
    """A steering bound to one model: that the profiles fit is known, and which way each takes.

    `parts` are the profiles with their strengths and ways, in canonical order; `notices` what a
    user should know about how they fit, one line each.
    """

    model: Weights
    parts: tuple[tuple[Steerable, float, Way], ...]
    notices: tuple[str, ...]

    @cached_property
    def injection(self) -> Injection | Conditional | None:
        """What is injected: the sum of what the parts add; None for nothing. It depends on the
        prompt where a profile looks at the query.

        Raises `BadInputError` if a strength is so large that the sum overflows, and if two
        profiles look at different states of a query.
        """
        shares = [share_of(self.model, *part) for part in self.parts]
        fixed = [share for share in shares if isinstance(share, Share)]
        turning = [share for share in shares if not isinstance(share, Share)]
        if turning:
            return Turns(self.model, fixed, turning)
        return _total(self.model, fixed) if fixed else None


def bind(model: Weights, terms: Sequence[tuple[Steerable, float]], way: Way) -> Binding:
    """Profiles with strengths, in canonical order, bound to `model`.

    Raises `ProfileFileError` if one was made for another model, naming what differs, and
    `BadInputError` if one cannot be injected by `way`.
    """
    fits = [check_fit(profile, model) for profile, _ in terms]
    parts: list[tuple[Steerable, float, Way]] = []
    notices: list[str] = []
    for (profile, strength), notice in zip(terms, fits, strict=True):
        taken, reason = way_into(model, profile, way)
        parts.append((profile, strength, taken))
        if notice is not None:
            notices.append(notice)
        if reason is not None:
            notices.append(f"{printable(profile.name)} is injected as a control vector: {reason}")
    return Binding(model, tuple(parts), tuple(notices))


class Turns:
    """A steering of which some profiles look at the query: a `Conditional` of the runtime."""

    tensor: Literal["l_out", "ffn_out"]

    def __init__(
        self, model: Weights, fixed: Sequence[Share], turning: Sequence[ShareByQuery]
    ) -> None:
        self._model, self._fixed, self._turning = model, fixed, turning
        if len({share.tensor for share in turning}) > 1:
            raise BadInputError(
                "profiles that look at different states of a query cannot be added up",
                "use profiles of one method, or leave one out",
            )
        self.tensor = turning[0].tensor
        self.layers = tuple(sorted({layer for share in turning for layer in share.layers}))

    def at(self, states: FloatArray) -> Injection | None:
        """What steers the answer to the query whose plain states at its last token these are."""
        turns = [share.at(states) for share in self._turning]
        return _total(self._model, [*self._fixed, *turns])


def way_into(model: Weights, profile: Steerable, way: Way) -> tuple[Way, str | None]:
    """The way that is really taken, and why not the exact one, where that was wanted.

    `auto` is left only to an intervention that edits no layers: there is no other way. Raises
    `BadInputError` if a way was asked for that is not to be had.
    """
    if profile.intervention is not None and not profile.intervention.edits_layers:
        if way == "auto":
            return way, None
        raise _not_to_be_had(profile, way, "it moves the logits, no layer", "use --inject auto")
    has_edit = profile.exact_unit is not None
    if way == "control-vector" or (way == "auto" and not has_edit):
        return "control-vector", None
    reason = _reason_against(model, profile, way)
    if reason is None:
        return (way if way == "reference" else "exact"), None
    if way == "auto":
        return "control-vector", reason
    raise _not_to_be_had(profile, way, reason, "use --inject auto or control-vector")


def share_of(model: Weights, profile: Steerable, strength: float, way: Way) -> Share | ShareByQuery:
    """What `profile` adds at `strength`, in a way that `way_into` gave."""
    scale = profile.scale(strength, way)
    if profile.intervention is None:
        return Share.of_vector(profile.vector, scale)
    return profile.intervention.share(model, profile.vector, way, scale)


def _total(model: Weights, parts: Sequence[Share]) -> Injection | None:
    """The sum of what profiles add; None for nothing."""
    from alignez_edge.runtime.injection import Injection

    rows = np.zeros((2, model.n_layer, model.n_embd))
    for part in parts:
        rows += part.deciding, part.answer
    with np.errstate(over="ignore"):
        deciding, answer = rows.astype(np.float32)
    scales = [
        abs(strength)
        for part in parts
        for _, strength in (*part.deciding_edits, *part.answer_edits, *part.logit_edits)
    ]
    bounded = all(scale <= _LARGEST for scale in scales)  # as llama.cpp takes them
    if not (np.isfinite(deciding).all() and np.isfinite(answer).all() and bounded):
        raise BadInputError("the strength is so large that the steering overflows")
    injection = Injection(
        deciding,
        answer,
        tuple(edit for part in parts for edit in part.deciding_edits),
        tuple(edit for part in parts for edit in part.answer_edits),
        tuple(edit for part in parts for edit in part.logit_edits),
    )
    return None if injection.is_zero() else injection


def _not_to_be_had(profile: Steerable, way: Way, reason: str, hint: str) -> BadInputError:
    return BadInputError(
        f"--inject {way} is not available for the profile {printable(profile.name)}: {reason}", hint
    )


def _reason_against(model: Weights, profile: Steerable, way: Way) -> str | None:
    if profile.intervention is None or profile.exact_unit is None:
        return f"the method {profile.method or 'that made it'} is a control vector by nature"
    if way == "reference":
        return None
    try:
        return profile.intervention.reason_against(model)
    except BadInputError as failure:
        return failure.message
