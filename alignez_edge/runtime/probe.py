"""What a model's graph allows, found out by trying rather than from a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.errors import AlignezError
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.rows import RowPlan

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights

_TOKENS = (0, 1)


def steers_rows(model: Weights) -> bool:
    """Whether the rows of a pass can be steered one by one at no cost, to the bit as llama.cpp's
    own control vector does it; found out once a model, by three passes of two tokens.

    Not so where a layer's output is on a device (every pass would carry it to the host and back),
    where it has another name or shape, and where llama.cpp's control vector does nothing.
    """
    if "steers rows" not in model.kept:
        model.kept["steers rows"] = _try(model)
    found: bool = model.kept["steers rows"]
    return found


def _try(model: Weights) -> bool:
    vectors = np.random.default_rng(0).standard_normal((model.n_layer, model.n_embd), np.float32)
    vectors[0] = 0
    with Context(model, n_ctx=min(32, model.n_ctx_train), n_batch=2) as context:

        def logits(adds: bool) -> np.ndarray:
            plan = RowPlan([(row, vectors) for row in range(len(_TOKENS))] if adds else ())
            context.clear()
            context.decode(_TOKENS, [0, 1], [0, 0], [True, True], plan)
            return np.stack([context.logits(0), context.logits(1)])

        try:
            plain, by_rows = logits(False), logits(True)
            context.set_control_vector(vectors)
            own = logits(False)
        except AlignezError:
            return False
        same = np.array_equal(own, by_rows) and not np.array_equal(own, plain)
        return same and not context.rows_on_device
