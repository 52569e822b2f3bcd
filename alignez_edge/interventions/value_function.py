"""A value function on hidden states: RE-Control's guide (Kong et al. 2024, arXiv 2406.05954).

`V(h)` predicts, from the last hidden state at any token of an answer, the reward of the finished
answer. It is a perceptron with two hidden layers, trained with a temporal-difference loss; when an
answer is generated, a few steps of gradient ascent on `V` move the hidden state. NumPy in, NumPy
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError

WIDTH = 128
"""Units of each hidden layer."""
_ADAM = (0.9, 0.999, 1e-8)
"""Both decays and the floor of Adam (Kingma and Ba 2015, algorithm 1)."""
_LEARNING_RATE = 1e-3
_BATCH = 16
"""Answers a step of training."""
_HELD_OUT = 5
"""One answer in so many judges when to stop."""
_PATIENCE = 8
"""Epochs without a better value function on the held-out answers, after which training ends."""
_MOST_EPOCHS = 200


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


@dataclass(frozen=True)
class Fitted:
    """A trained value function and how training went.

    `errors` are the mean squared errors against the finished answers' rewards on the held-out
    answers, after each epoch; `constant_error` is that of the best constant, the variance of their
    rewards. `epoch` counts from 0: the one that was kept.
    """

    value: ValueFunction
    errors: tuple[float, ...]
    constant_error: float
    epoch: int

    @property
    def explained(self) -> float:
        """The share of the held-out rewards' variance that the value function explains."""
        return 1 - self.errors[self.epoch] / max(self.constant_error, 1e-12)


def fit_value(
    states: Sequence[FloatArray],
    rewards: Sequence[float],
    *,
    seed: int,
    trace: float = 0.9,
    width: int = WIDTH,
) -> Fitted:
    """Train a value function on scored answers: TD(λ) with λ = `trace` (0 is TD(0)), by Adam.

    `states[i]`, `(n_i, n_embd)`, are the states of answer `i` in their order; its only reward,
    `rewards[i]`, comes at its end. Every fifth answer, drawn by `seed`, is held out and judges when
    to stop. The same arguments give the same function. Raises `BadInputError` for fewer than ten
    answers, for equal rewards, and for numbers that are not finite.
    """
    _check(states, rewards)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(states))
    n_held = -(-len(order) // _HELD_OUT)
    held, train = order[:n_held], order[n_held:]
    value = _start(
        np.concatenate([states[i] for i in train]), [rewards[i] for i in train], width, rng
    )
    judges = np.concatenate([states[i] for i in held])
    wanted = np.repeat([rewards[i] for i in held], [len(states[i]) for i in held])
    adam = _Adam(value)
    best, errors = value, []
    for epoch in range(_MOST_EPOCHS):
        rng.shuffle(train)
        for begin in range(0, len(train), _BATCH):
            batch = train[begin : begin + _BATCH]
            value = adam.step(value, [states[i] for i in batch], [rewards[i] for i in batch], trace)
        errors.append(float(np.mean((value(judges) - wanted) ** 2)))
        kept = int(np.argmin(errors))
        if kept == epoch:
            best = value
        elif epoch - kept >= _PATIENCE:
            break
    return Fitted(best, tuple(errors), float(np.var(wanted)), int(np.argmin(errors)))


def td_targets(values: FloatArray, reward: float, trace: float) -> FloatArray:
    """What the values `(n,)` of one answer's states should have been: the λ-returns, `(n,)`.

    `G_n = reward` and `G_t = (1 - λ) V(h_(t+1)) + λ G_(t+1)`: nothing is discounted, and only the
    end is rewarded (Sutton and Barto 2018, equation 12.2 in its recursive form).
    """
    targets = np.full(len(values), reward, np.float32)
    for t in range(len(values) - 2, -1, -1):
        targets[t] = (1 - trace) * values[t + 1] + trace * targets[t + 1]
    return targets


class _Adam:
    """Gradient steps on the temporal-difference loss, targets held fixed (semi-gradient)."""

    def __init__(self, value: ValueFunction) -> None:
        self._names = ("w1", "b1", "w2", "b2", "w3", "b3")
        self._first = {name: np.zeros_like(getattr(value, name)) for name in self._names}
        self._second = {name: np.zeros_like(getattr(value, name)) for name in self._names}
        self._n = 0

    def step(
        self,
        value: ValueFunction,
        states: Sequence[FloatArray],
        rewards: Sequence[float],
        trace: float,
    ) -> ValueFunction:
        """The value function after one step on a few answers."""
        u = value._standardized(np.concatenate(states))
        first, second = value._layers(u)
        values = second @ value.w3 + value.b3
        ends = np.cumsum([len(group) for group in states])[:-1]
        targets = np.concatenate(
            [
                td_targets(group, reward, trace)
                for group, reward in zip(np.split(values, ends), rewards, strict=True)
            ]
        )
        # Half the mean squared error, propagated backwards.
        error = (values - targets) / len(values)
        back2 = error[:, None] * value.w3 * (1 - second**2)
        back1 = back2 @ value.w2 * (1 - first**2)
        gradients = {
            "w1": back1.T @ u, "b1": back1.sum(axis=0), "w2": back2.T @ first,
            "b2": back2.sum(axis=0), "w3": error @ second, "b3": error.sum(),
        }  # fmt: skip
        self._n += 1
        return replace(
            value,
            **{
                name: getattr(value, name) - self._move(name, np.asarray(gradients[name]))
                for name in self._names
            },
        )

    def _move(self, name: str, gradient: FloatArray) -> FloatArray:
        decay1, decay2, floor = _ADAM
        first, second = self._first, self._second
        first[name] = decay1 * first[name] + (1 - decay1) * gradient
        second[name] = decay2 * second[name] + (1 - decay2) * gradient**2
        mean = first[name] / (1 - decay1**self._n)
        size = np.sqrt(second[name] / (1 - decay2**self._n))
        return np.asarray(_LEARNING_RATE * mean / (size + floor), np.float32)


def _start(
    states: FloatArray, rewards: Sequence[float], width: int, rng: np.random.Generator
) -> ValueFunction:
    """A random value function, standardized to the states and close to the mean reward."""
    scale = states.std(axis=0, dtype=np.float64)
    # A coordinate that hardly varies must not be blown up.
    scale = np.maximum(scale, max(1e-6, 1e-3 * float(scale.mean())))
    n_embd = states.shape[1]

    def drawn(*shape: int) -> FloatArray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    return ValueFunction(
        mean=states.mean(axis=0, dtype=np.float64).astype(np.float32),
        scale=scale.astype(np.float32),
        w1=drawn(width, n_embd),
        b1=np.zeros(width, np.float32),
        w2=drawn(width, width),
        b2=np.zeros(width, np.float32),
        w3=np.float32(0.1) * drawn(width),
        b3=np.asarray(np.mean(rewards), np.float32),
    )


def _check(states: Sequence[FloatArray], rewards: Sequence[float]) -> None:
    if len(states) != len(rewards):
        raise ValueError(f"{len(states)} answers with {len(rewards)} rewards")
    if len(states) < 10:
        raise BadInputError(f"a value function needs at least 10 scored answers, not {len(states)}")
    if any(group.ndim != 2 or not len(group) for group in states):
        raise ValueError("the states of an answer must be (n, n_embd) with n of at least 1")
    if not np.isfinite(rewards).all() or not all(np.isfinite(group).all() for group in states):
        raise BadInputError("a score or a hidden state is not finite")
    if np.ptp(rewards) == 0:
        raise BadInputError(
            "all answers have the same score", "a value function needs better and worse ones"
        )
