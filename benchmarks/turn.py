"""What a query-conditioned turn costs on top of its prefill: `python -m benchmarks.turn`.

The first table is NumPy alone, at synthetic sizes (a random bank and a random product, whose file
is in memory): the nearest pairs, their SVD, then either the control vector or the exact adapters of
both positions. The second counts, on a small random model, how often a turn lets llama.cpp reserve
its graph anew: each pass before which it was told of a control vector or of adapters is one. Of
control vectors it is told once a context; later ones are written where its graph keeps them.

Times need a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from alignez_edge.arrays import FloatArray
from alignez_edge.directions.hidden_states import POSITIONS
from alignez_edge.files.gguffile import read_gguf
from alignez_edge.interventions.bank import Bank
from alignez_edge.interventions.bank_products import BankProduct
from alignez_edge.interventions.by_query import QueryEdit, Recipe, condition
from alignez_edge.interventions.exact import exact_edit
from alignez_edge.runtime import context
from alignez_edge.runtime.injection import Conditional, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter
from tests.tinymodels import tiny_model


@dataclass(frozen=True)
class Sizes:
    """Of the model and its bank; `n_edited` layers are edited, the bank holds `n_layer - 1`."""

    n_embd: int = 4096
    n_layer: int = 32
    n_ff: int = 11008
    n_pairs: int = 128
    k: int = 10
    n_edited: int = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--repeat", type=int, default=21)
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    options = vars(parser.parse_args())
    repeat, as_json = options.pop("repeat"), options.pop("json")
    sizes = Sizes(**options)
    times, reserves = cost(sizes, repeat), graph_reserves()
    if as_json:
        print(json.dumps({"sizes": options, "milliseconds": times, "reserves": reserves}))
        return
    print(f"{sizes}, median of {repeat}, milliseconds")
    for what, value in times.items():
        print(f"  {what:<52}{value:8.2f}")
    print("graph reserves of a turn, from the second turn on")
    for what, count in reserves.items():
        print(f"  {what:<52}{count:8d}")


def cost(sizes: Sizes, repeat: int) -> dict[str, float]:
    """Median milliseconds of a turn's steps, and of whole turns."""
    rng = np.random.default_rng(0)
    layers = tuple(range(1, sizes.n_layer))
    edited = layers[len(layers) // 3 :][: sizes.n_edited]
    banks = {tensor: random_bank(rng, sizes, layers, tensor) for tensor in ("l_out", "ffn_out")}
    product = random_product(rng, sizes, banks["ffn_out"], edited)
    recipes = {
        "version 2": Recipe("alignez", sizes.k, edited),
        "version 1": Recipe("alignez-v1", sizes.k, edited),
    }

    states = rng.standard_normal((sizes.n_layer, sizes.n_embd), np.float32)

    def adapters(turn: QueryEdit) -> None:
        for position in POSITIONS:
            product.exact_edit(turn, position)

    def vector(recipe: Recipe) -> None:
        condition(banks["l_out"], states, recipe).vector(sizes.n_layer)

    def whole(recipe: Recipe) -> None:
        adapters(condition(banks["ffn_out"], states, recipe))

    bank = banks["ffn_out"]
    turns = {name: condition(bank, states, recipe) for name, recipe in recipes.items()}
    steps: dict[str, Callable[[], object]] = {
        "nearest pairs": lambda: bank.nearest(states, sizes.k)
    }
    for name, recipe in recipes.items():
        steps[f"{name}: nearest, SVD"] = partial(condition, bank, states, recipe)
        steps[f"{name}: its exact adapters"] = partial(adapters, turns[name])
    steps["a turn, version 2, control vector"] = lambda: vector(recipes["version 2"])
    steps["a turn, version 2, exact"] = lambda: whole(recipes["version 2"])
    steps["a turn, version 1, exact"] = lambda: whole(recipes["version 1"])
    return {name: median_ms(step, repeat) for name, step in steps.items()}


def random_bank(
    rng: np.random.Generator, sizes: Sizes, layers: tuple[int, ...], tensor: str
) -> Bank:
    """A bank of noise: the numbers cost what any others do."""
    shape = (len(layers), sizes.n_pairs, sizes.n_embd)
    queries = rng.standard_normal(shape, np.float32).astype(np.float16)
    pairs = np.stack([np.roll(queries, i, axis=1) for i in range(1, 5)], axis=1)
    return Bank(
        layers,
        tensor,
        pairs.reshape(len(layers), 2, 2, *shape[1:]),
        np.ones((len(layers), 2, 2), np.float32),
        queries,
        np.ones(len(layers), np.float32),
    )


def random_product(
    rng: np.random.Generator, sizes: Sizes, bank: Bank, edited: tuple[int, ...]
) -> BankProduct:
    """A product of noise, with the head of a model's file of these sizes."""
    kind = np.dtype([("scales", "<f4", (2,)), ("rows", "<f2", (2, 2 * sizes.n_pairs, sizes.n_ff))])
    cells = np.zeros(len(bank.layers), kind)
    cells["scales"] = 1
    for layer in edited:
        rows = cells[bank.layers.index(layer)]["rows"]
        rows[:] = rng.standard_normal(rows.shape, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        gguf = read_gguf(tiny_model(Path(folder), n_layer=1))
    own = {"llama.block_count": sizes.n_layer, "llama.embedding_length": sizes.n_embd}
    matrix = replace(gguf.tensors["blk.0.ffn_down.weight"], shape=(sizes.n_ff, sizes.n_embd))
    head = replace(
        gguf,
        metadata={**gguf.metadata, **own},
        tensors={f"blk.{layer}.ffn_down.weight": matrix for layer in edited},
    )
    return BankProduct(bank, head, cells)


def median_ms(step: Callable[[], object], repeat: int) -> float:
    step()  # what is computed once a bank
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


@dataclass
class _Given:
    """A `Conditional` that gives one injection."""

    injection: Injection
    layers: Collection[int] = (1, 2, 3)
    tensor: Literal["l_out", "ffn_out"] = "l_out"

    def at(self, states: FloatArray) -> Injection | None:
        return self.injection


def graph_reserves() -> dict[str, int]:
    """By kind of turn, the passes of a turn before which llama.cpp was told of something."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_model(Path(folder), n_layer=5)
        with Model.load(path, threads=1) as model:
            rng = np.random.default_rng(0)
            rows = rng.standard_normal((5, model.n_embd)).astype(np.float32)
            rows[0] = 0
            bank = random_bank(rng, Sizes(model.n_embd, 5, 0, 12), (1, 2, 3), "ffn_out")
            turn = condition(bank, rows, Recipe("alignez-v1"))
            own = [
                Adapter(model, exact_edit(model.gguf, turn.edit(position)).adapter)
                for position in POSITIONS
            ]
            vector = Injection(rows, -rows)
            exact = Injection(rows, -rows, ((own[0], 1.0),), ((own[1], 1.0),))
            kinds: dict[str, Injection | Conditional] = {
                "static control vector": vector,
                "query-conditioned control vector": _Given(vector),
                "static exact, with constants": exact,
                "query-conditioned exact, with constants": _Given(exact),
            }
            return {name: _reserves(model, kind) for name, kind in kinds.items()}


def _reserves(model: Model, steering: Injection | Conditional) -> int:
    """Passes of the second turn under `steering` before which llama.cpp was told of something."""
    names = ("llama_set_adapter_cvec", "llama_set_adapters_lora", "llama_decode")
    real = {name: getattr(context.cpp, name) for name in names}
    events: list[str] = []

    def spy(name: str) -> Callable[..., object]:
        def call(*args: object) -> object:
            events.append(name)
            return real[name](*args)

        return call

    tokens = model.tokenize("How do I bake bread?", begin=True)
    sampling = Sampling(temperature=0, max_tokens=6, min_tokens=6)
    with Session(model) as session:
        for turn in (tokens, [*tokens, *tokens[1:]]):
            if events:  # what the first turn changed after its last pass belongs to the second
                del events[: len(events) - events[::-1].index("llama_decode")]
            for name in names:
                setattr(context.cpp, name, spy(name))
            try:
                for _ in session.stream(turn, sampling, steering):
                    pass
            finally:
                for name in names:
                    setattr(context.cpp, name, real[name])
    changed = [name != "llama_decode" for name in events]
    return sum(a and not b for a, b in itertools.pairwise(changed))


if __name__ == "__main__":
    main()
