"""Training of RE-Control's value function: temporal differences, Adam, early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError
from alignez_edge.interventions.value_function import ValueFunction

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
