"""From a profile to what llama.cpp is given: the ways in which a steering gets into a model.

- `control-vector`: one constant vector a layer and position. Any model, any profile.
- `exact`: the profile's exact form as LoRA adapters and constants, at native speed.
- `reference`: the same form in the evaluation callback: slow, for tests and experiments.
- `auto`: where the vector is only the mean of the profile's edit, exact if the model allows it;
  else the control vector, which is then the whole of what was fitted.

What an adapter takes of a model is computed once: it is kept with the model, and in the user's
cache folder by the edit's digest and the model's.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from alignez_edge.arrays import DoubleArray, FloatArray
from alignez_edge.directions.hidden_states import POSITIONS
from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.folders import cache_dir
from alignez_edge.files.text import printable
from alignez_edge.files.writing import make_folder, write_atomic
from alignez_edge.interventions.by_query import Turn
from alignez_edge.interventions.mlp_edit import Edit
from alignez_edge.modelfiles.fingerprint import identity
from alignez_edge.steering.bank_products import BankProduct, not_by_query
from alignez_edge.steering.exact import ExactEdit, can_inject_exactly, constants, exact_edit
from alignez_edge.steering.ways import Way

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Conditional, Edits, Injection, LogitEdits
    from alignez_edge.runtime.weights import Adapter, Weights
    from alignez_edge.steering.steerable import Steerable

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Share:
    """What one profile adds to an injection: rows `(n_layer, n_embd)` for `l_out` at the deciding
    token and at later ones, and edits."""

    deciding: DoubleArray
    answer: DoubleArray
    deciding_edits: Edits = ()
    answer_edits: Edits = ()
    logit_edits: LogitEdits = ()


def injected(
    model: Weights, terms: Sequence[tuple[Steerable, float]], way: Way
) -> Injection | Conditional | None:
    """What profiles with strengths add up to; None for nothing.

    Raises `BadInputError` where one cannot be injected by `way`, where the sum overflows, and where
    two look at different states of a query.
    """
    parts = [(profile, s, way_into(model, profile, way)[0]) for profile, s in terms]
    fixed = [shares(model, *part) for part in parts if part[0].neighbours is None]
    turning = [part for part in parts if part[0].neighbours is not None]
    return Turns(model, fixed, turning) if turning else _total(model, fixed)


class Turns:
    """A steering of which some profiles look at the query: a `Conditional` of the runtime."""

    tensor: Literal["l_out", "ffn_out"]

    def __init__(
        self,
        model: Weights,
        fixed: Sequence[Share],
        turning: Sequence[tuple[Steerable, float, Way]],
    ) -> None:
        self._model, self._fixed = model, fixed
        self._turning = [(p, p.neighbours, s, way) for p, s, way in turning if p.neighbours]
        banks = [neighbours.bank for _, neighbours, _, _ in self._turning]
        if len({bank.tensor for bank in banks}) > 1:
            raise BadInputError(
                "profiles that look at different states of a query cannot be added up",
                "use profiles of one method, or leave one out",
            )
        self.tensor = banks[0].tensor  # type: ignore[assignment]
        self.layers = tuple(sorted({layer for bank in banks for layer in bank.layers}))

    def at(self, states: FloatArray) -> Injection | None:
        """What steers the answer to the query whose plain states at its last token these are."""
        turns = [
            shares(self._model, profile, strength, way, neighbours.turn(states))
            for profile, neighbours, strength, way in self._turning
        ]
        return _total(self._model, [*self._fixed, *turns])


def way_into(model: Weights, profile: Steerable, way: Way) -> tuple[Way, str | None]:
    """The way that is really taken, and why not the exact one, where that was wanted.

    `auto` is left only to a value function, which moves the logits: there is no other way. Raises
    `BadInputError` where a way was asked for that is not to be had.
    """
    if profile.value is not None:
        if way == "auto":
            return way, None
        raise _not_to_be_had(profile, way, "it moves the logits, no layer", "use --inject auto")
    has_edit = profile.exact_unit is not None
    if way == "control-vector" or (way == "auto" and not has_edit):
        return "control-vector", None
    reason = _reason_against(model, profile, way, has_edit)
    if reason is None:
        return (way if way == "reference" else "exact"), None
    if way == "auto":
        return "control-vector", reason
    raise _not_to_be_had(profile, way, reason, "use --inject auto or control-vector")


def shares(
    model: Weights, profile: Steerable, strength: float, way: Way, turn: Turn | None = None
) -> Share:
    """What `profile` adds at `strength`, in a way that `way_into` gave; in `turn`, where it looks
    at the query."""
    nothing = np.zeros((model.n_layer, model.n_embd))
    if profile.value is not None:
        found = (profile.value * profile.scale(strength)).injection(model)
        return Share(nothing, nothing, logit_edits=found.logit_edits if found else ())
    if way == "control-vector":
        vector = turn.vector(model.n_layer) if turn else profile.vector
        scale = profile.scale(strength)
        deciding, answer = (v.astype(np.float64) for v in (vector.deciding, vector.answer))
        return Share(scale * deciding, scale * answer)
    scale = profile.scale(strength, way)
    if turn is not None:
        edits = {position: turn.edit(position) for position in POSITIONS}
    else:
        assert profile.exact is not None
        edits = profile.exact.edits
    rows: list[DoubleArray] = []
    made: list[Edits] = []
    for position, edit in edits.items():
        if way == "reference":
            # The edit as it stands: the callback adds its constants where they belong.
            rows.append(nothing)
            made.append(((edit, scale),))
        elif edit.is_zero() or not scale:
            rows.append(nothing)
            made.append(())
        else:
            adapter, added = (
                _of_turn(model, profile, position, turn) if turn else _prepared(model, edit)
            )
            rows.append(scale * added.astype(np.float64))
            made.append(((adapter, scale),))
    return Share(rows[0], rows[1], made[0], made[1])


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


def _reason_against(model: Weights, profile: Steerable, way: Way, has_edit: bool) -> str | None:
    if not has_edit:
        return f"the method {profile.method or 'that made it'} is a control vector by nature"
    if way == "reference":
        return None
    try:
        if profile.neighbours is not None:
            layers = profile.neighbours.bank.layers
            return can_inject_exactly(model.gguf, layers) or not_by_query(model.gguf, layers)
        assert profile.exact is not None
        for edit in profile.exact.edits.values():
            reason = can_inject_exactly(model.gguf, edit.layers)
            if reason is not None:
                return reason
            constants(model.gguf, edit)
    except BadInputError as failure:
        return failure.message
    return None


def _of_turn(
    model: Weights, profile: Steerable, position: str, turn: Turn
) -> tuple[Adapter, FloatArray]:
    """The adapter of a turn's edit and its constants, out of a product that is kept."""
    from alignez_edge.runtime.weights import Adapter

    assert profile.neighbours is not None
    bank = profile.neighbours.bank
    if bank.digest not in model.kept:
        model.kept[bank.digest] = BankProduct.of(bank, model.gguf, model.lora)
    found = model.kept[bank.digest].exact_edit(turn, position)
    return Adapter(model, found.adapter), found.constants


def _prepared(model: Weights, edit: Edit) -> tuple[Adapter, FloatArray]:
    """The adapter of an edit in llama.cpp, and its constants; made at most once a model."""
    from alignez_edge.runtime.weights import Adapter

    key = edit.digest
    if key not in model.kept:
        name = f"{key[:32]}-{identity(model.gguf, model.lora)[:32]}.npz"
        path = cache_dir() / "adapters" / name
        found = _read(path, (model.n_layer, model.n_embd))
        if found is None:
            found = exact_edit(model.gguf, edit, lora=model.lora)
            _keep(path, found)
        model.kept[key] = Adapter(model, found.adapter, carried=True), found.constants
    return model.kept[key]


def _read(path: Path, shape: tuple[int, int]) -> ExactEdit | None:
    """What `_keep` wrote; None where it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            adapter, rows = file["adapter"], file["constants"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if adapter.dtype != np.uint8 or rows.shape != shape or rows.dtype != np.float32:
        return None
    return ExactEdit(adapter.tobytes(), rows) if np.isfinite(rows).all() else None


def _keep(path: Path, edit: ExactEdit) -> None:
    """Keep what was computed; a full disk or a folder that cannot be written costs only time."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, adapter=np.frombuffer(edit.adapter, np.uint8), constants=edit.constants)

    try:
        make_folder(path.parent)
        write_atomic(path, write)
    except AlignezError:
        pass
