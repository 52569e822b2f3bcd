"""A value function on hidden states: RE-Control's guide (Kong et al. 2024, arXiv 2406.05954).

`V(h)` predicts, from the last hidden state at any token of an answer, the reward of the finished
answer. It is a perceptron with two hidden layers, trained with a temporal-difference loss; when an
answer is generated, a few steps of gradient ascent on `V` move the hidden state. NumPy in, NumPy
out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.untrusted import Keys
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.intervention import Intervention, Share
from alignez_edge.interventions.tensors import MAX_CELLS, tensor_of
from alignez_edge.interventions.ways import Way

if TYPE_CHECKING:
    from alignez_edge.runtime.injection import Injection
    from alignez_edge.runtime.weights import Weights


@dataclass(frozen=True, eq=False)
class ValueFunction:
    """`V(h) = w3 · tanh(W2 tanh(W1 u + b1) + b2) + b3` with `u = (h - mean) / scale`.

    All float32: `mean` and `scale` `(n_embd,)`, `w1` `(width, n_embd)`, `w2` `(width, width)`,
    `b1`, `b2`, `w3` `(width,)`, `b3` `()`. Raises `BadInputError` on other shapes, on values that
    are not finite and on a scale that is not positive.
    """

    mean: FloatArray
    scale: FloatArray
    w1: FloatArray
    b1: FloatArray
    w2: FloatArray
    b2: FloatArray
    w3: FloatArray
    b3: FloatArray

    def __post_init__(self) -> None:
        width, n_embd = self.w1.shape if self.w1.ndim == 2 else (0, 0)
        shapes = {"mean": (n_embd,), "scale": (n_embd,), "w1": (width, n_embd), "b1": (width,),
                  "w2": (width, width), "b2": (width,), "w3": (width,), "b3": ()}  # fmt: skip
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not array.size or array.dtype != np.float32:
                raise BadInputError(
                    f"{name} of a value function is {array.dtype} {array.shape}, "
                    f"not float32 {shape}"
                )
            if not np.isfinite(array).all():
                raise BadInputError(f"{name} of a value function is not finite")
        if not (self.scale > 0).all():
            raise BadInputError("the scale of a value function is not positive")

    @property
    def n_embd(self) -> int:
        """The size of the hidden states."""
        return len(self.mean)

    def to_arrays(self) -> dict[str, FloatArray]:
        """Its arrays by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> ValueFunction:
        """The value function of such arrays. Raises `BadInputError` if they are none."""
        names = set(cls.__dataclass_fields__)
        if set(arrays) != names:
            odd = ", ".join(sorted(names ^ set(arrays)))
            raise BadInputError(f"these arrays are not a value function: {odd}")
        return cls(**{name: np.asarray(array) for name, array in arrays.items()})

    def __call__(self, states: FloatArray) -> FloatArray:
        """The values `(n,)` of states `(n, n_embd)`."""
        _, second = self._layers(self._standardized(states))
        return second @ self.w3 + self.b3

    def gradient(self, states: FloatArray) -> FloatArray:
        """The gradients `(n, n_embd)` of the values with respect to the states."""
        return self._inner_gradient(self._standardized(states)) / self.scale

    def steps(self, states: FloatArray, n: int, size: float) -> FloatArray:
        """What `n` steps of gradient ascent of this `size` add to each state, `(n, n_embd)`.

        They are taken in standardized coordinates, `u <- u + size * dV/du`, so that a coordinate
        moves in proportion to how much it varies by itself.
        """
        begin = u = self._standardized(states)
        for _ in range(n):
            u = u + np.float32(size) * self._inner_gradient(u)
        return (u - begin) * self.scale

    def _standardized(self, states: FloatArray) -> FloatArray:
        return (states - self.mean) / self.scale

    def _layers(self, u: FloatArray) -> tuple[FloatArray, FloatArray]:
        first = np.tanh(u @ self.w1.T + self.b1)
        return first, np.tanh(first @ self.w2.T + self.b2)

    def _inner_gradient(self, u: FloatArray) -> FloatArray:
        """dV/du, `(n, n_embd)`."""
        first, second = self._layers(u)
        back = ((1 - second**2) * self.w3) @ self.w2 * (1 - first**2)
        return np.asarray(back @ self.w1, np.float32)


N_STEPS = 1
"""Steps of gradient ascent a token. Measured on the demo model, 60 queries, two answers to each: at
a KL of 0.1 nats the score's span between strengths -1 and 1, mean of the four axes, was 1.43
with one step, 1.41 with two and 1.21 with four, at the same cost."""
TOP, MOST_TOP = 64, 256
"""The likeliest tokens, whose logits are moved; and so many at most, whose rows of the output
matrix are always in memory."""
MAX_STEPS = 64
_SIZES = ("n_steps", "top")


@dataclass(frozen=True, eq=False)
class ReControl(Intervention):
    """A trained value function as a steering: `kind * 0.5`, `-kind`; strength 0 is the base model.

    Strength scales the move of the hidden state, so that a negative one moves it the other way.
    """

    edits_layers = False

    value: ValueFunction
    size: float
    n_steps: int = N_STEPS
    top: int = TOP
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name in ("size", "strength"):
            number = getattr(self, name)
            if not math.isfinite(number):
                raise BadInputError(f"{name} must be a finite number, not {number}")
        if self.n_steps < 1 or not 1 <= self.top <= MOST_TOP:
            raise BadInputError(f"at least one step, and 1 to {MOST_TOP} tokens, are needed")

    @property
    def digest(self) -> str:
        """Equal ones move states alike."""
        digest = hashlib.sha256(repr((self.size, self.n_steps, self.top, self.strength)).encode())
        for array in self.value.to_arrays().values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """See `Intervention`."""
        return "a value function that moves the logits"

    def check(self, vector: ControlVector, layers: tuple[int, ...]) -> None:
        """See `Intervention`."""
        if layers:
            raise ValueError("a profile with a value function edits no layers")
        if self.value.n_embd != vector.n_embd or self.strength != 1:
            raise ValueError("the value function is of another hidden size, or has a strength")

    def share(self, model: Weights, vector: ControlVector, way: Way, scale: float) -> Share:
        """See `Intervention`."""
        nothing = np.zeros((model.n_layer, model.n_embd))
        found = (self * scale).injection(model)
        return Share(nothing, nothing, logit_edits=found.logit_edits if found else ())

    def write(self, writer: Any) -> None:
        """Keys `profile.value.*`, tensors `value.*`."""
        writer.add_float64("profile.value.size", self.size)
        for key in _SIZES:
            writer.add_uint32(f"profile.value.{key}", getattr(self, key))
        for name, array in self.value.to_arrays().items():
            writer.add_tensor(f"value.{name}", np.atleast_1d(array))

    @classmethod
    def read(cls, file: GGUFFile, keys: Keys, n_layer: int, n_embd: int) -> ReControl | None:
        """See `Intervention`."""
        if "profile.value.size" not in keys:
            return None
        width = file.tensors["value.b1"].shape[0] if "value.b1" in file.tensors else 0
        if not 0 < width * (n_embd + width) <= MAX_CELLS:
            raise ValueError(f"a value function of width {width}")
        shapes = {
            "mean": (n_embd,), "scale": (n_embd,), "w1": (width, n_embd), "b1": (width,),
            "w2": (width, width), "b2": (width,), "w3": (width,), "b3": (1,),
        }  # fmt: skip
        arrays = {name: tensor_of(file, f"value.{name}", shape) for name, shape in shapes.items()}
        arrays["b3"] = arrays["b3"].reshape(())
        n_steps, top = (keys.number(f"profile.value.{key}") for key in _SIZES)
        if n_steps > MAX_STEPS:
            raise ValueError(f"{n_steps} steps a token are more than {MAX_STEPS}")
        value = ValueFunction.from_arrays(arrays)
        return cls(value, keys.real("profile.value.size"), n_steps, top)

    def __mul__(self, factor: float) -> ReControl:
        return replace(self, strength=self.strength * factor)

    __rmul__ = __mul__

    def __neg__(self) -> ReControl:
        return self * -1.0

    def moves(self, states: FloatArray) -> FloatArray:
        """What strength 1 adds to each of the states `(n, n_embd)`."""
        return self.value.steps(states, self.n_steps, self.size)

    def injection(self, model: Weights) -> Injection | None:
        """What is injected into `model`; None at strength 0.

        Raises `BadInputError` if the model has other sizes, or logits that are not linear in
        its last hidden state.
        """
        from alignez_edge.runtime.injection import Injection
        from alignez_edge.runtime.logits import LogitSteps, output_matrix

        if not self.strength:
            return None
        if model.n_embd != self.value.n_embd:
            raise BadInputError(
                f"the value function is for hidden states of {self.value.n_embd}, "
                f"the model has {model.n_embd}"
            )
        nothing = np.zeros((model.n_layer, model.n_embd), np.float32)
        editor = LogitSteps(output_matrix(model), self.moves, self.top)
        return Injection(nothing, nothing, logit_edits=((editor, self.strength),))
