"""The seam behind which the kinds of intervention differ.

A profile has a control vector, and may have an intervention that is injected in its place. The
intervention says itself what it adds to one model, how it stands in a profile's file, and what of
it is left in a mix and in other programs' files. A new kind is one file with a subclass, and one
line in `kinds.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from alignez_edge.arrays import DoubleArray, FloatArray
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.untrusted import Keys
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.ways import Way

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Edits, LogitEdits
    from alignez_edge.runtime.weights import Weights


@dataclass(frozen=True, eq=False)
class Share:
    """What one profile adds to an injection: edits, and rows `(n_layer, n_embd)` for `l_out` at the
    last prompt token and at later ones."""

    deciding: DoubleArray
    answer: DoubleArray
    deciding_edits: Edits = ()
    answer_edits: Edits = ()
    logit_edits: LogitEdits = ()

    @classmethod
    def of_vector(cls, vector: ControlVector, scale: float) -> Share:
        """A control vector, multiplied."""
        deciding, answer = (v.astype(np.float64) for v in (vector.deciding, vector.answer))
        return cls(scale * deciding, scale * answer)


class ShareByQuery(Protocol):
    """A share that depends on the query: on its plain states at `tensor` in `layers`, at the last
    token of the prompt."""

    @property
    def tensor(self) -> Literal["l_out", "ffn_out"]: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    def at(self, states: FloatArray) -> Share:
        """The share, given the states `(n_layer, n_embd)`."""


class Intervention(ABC):
    """What is injected in place of a profile's control vector.

    `edits_layers`: there is a vector beside it, and layers; else it acts elsewhere, and can be
    injected by the way `auto` alone. `can_mix`: several of a kind add up (`mixed`). `lost_in_mix`
    and `lost_in_export` say what their control vectors, alone, have not; '' for nothing. `no_lora`
    says of what no adapter for other programs can be made, where the profile has no exact form.
    """

    edits_layers: ClassVar[bool] = True
    can_mix: ClassVar[bool] = False
    lost_in_mix: ClassVar[str] = ""
    lost_in_export: ClassVar[str] = ""
    no_lora: ClassVar[str] = "adds constants"

    @property
    @abstractmethod
    def digest(self) -> str:
        """Equal ones have equal ones."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, in words, for a profile's card."""

    @property
    def exact_unit(self) -> float | None:
        """The calibrated scale of its edit of MLP outputs, as a profile's unit is of its control
        vector; None if it is no such edit, or this model allows none."""
        return None

    def with_exact_unit(self, unit: float | None) -> Intervention | None:
        """The same with another unit of its edit; None takes the edit out."""
        return self

    @abstractmethod
    def check(self, vector: ControlVector, layers: tuple[int, ...]) -> None:
        """Raise `ValueError` where it contradicts the vector and the layers of its profile."""

    def reason_against(self, model: Weights) -> str | None:
        """Why its edit cannot be injected exactly into `model`; None if it can. Raises
        `BadInputError` with such a reason as well."""
        return None

    @abstractmethod
    def share(
        self, model: Weights, vector: ControlVector, way: Way, scale: float
    ) -> Share | ShareByQuery:
        """What it adds to `model`, of a profile with this control vector, by a way that is to be
        had there. `scale` is of the vector or of the edit, whichever the way injects."""

    @abstractmethod
    def write(self, writer: Any) -> None:
        """Its keys and tensors, into a profile's file."""

    @classmethod
    @abstractmethod
    def read(cls, file: GGUFFile, keys: Keys, n_layer: int, n_embd: int) -> Intervention | None:
        """What `write` wrote; None if the file has none of this kind.

        Raises `ValueError`, `TypeError` or `BadInputError` on anything that is not as it was
        written; `profile/file.py` makes one line of it.
        """

    @classmethod
    def mixed(cls, terms: Sequence[tuple[Any, float]]) -> Intervention | None:
        """The sum of some of this kind, each at a scale of its edit; None if they do not add
        up, so that a mix has the sum of their control vectors alone."""
        return None
