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
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError

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
        """The value function of such arrays. Raises `BadInputError` where they are none."""
        names = set(cls.__dataclass_fields__)
        if set(arrays) != names:
            odd = ", ".join(sorted(names ^ set(arrays)))
            raise BadInputError(f"these arrays make no value function: {odd}")
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
a drift of 0.1 nats the score's span between strengths -1 and 1, mean of the four axes, was 1.43
with one step, 1.41 with two and 1.21 with four, at the same price."""
TOP, MOST_TOP = 64, 256
"""The likeliest tokens, whose logits are moved; and so many at most, whose rows of the output
matrix are always in memory."""


@dataclass(frozen=True, eq=False)
class ReControl:
    """A trained value function as a steering: `kind * 0.5`, `-kind`; strength 0 is the base model.

    Strength scales the move of the hidden state, so that a negative one moves it the other way.
    """

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

        Raises `BadInputError` where the model has other sizes, or logits that are not linear in
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
