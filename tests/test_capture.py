"""Pooled hidden states against a plain reading of everything, one text at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.directions.hidden_states import States
from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.runtime import capture as module
from alignez_edge.runtime.capture import Item, capture
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.llama import ggml, tensor_shape
from alignez_edge.runtime.model import Model

QUESTIONS = ("Why?", "How do I bake bread at home?", "What is the moon made of, and who knows?")
ANSWERS = (" Because.", " With flour, water, salt, yeast and some patience.", "", " No.")


class Everything:
    """A tap that keeps all rows of all layers' tensors of one name."""

    def __init__(self, tensor: str, n_embd: int) -> None:
        self.tensor, self.n_embd = tensor, n_embd
        self.found: dict[int, FloatArray] = {}

    def wants(self, name: bytes) -> bool:
        return name.rpartition(b"-")[0] == self.tensor.encode()

    def read(self, name: bytes, tensor: int) -> bool:
        data = np.empty((math.prod(tensor_shape(tensor)) // self.n_embd, self.n_embd), np.float32)
        ggml.tensor_get(tensor, data.ctypes.data, 0, data.nbytes)
        self.found[int(name.rpartition(b"-")[2])] = data
        return True


def one_by_one(model: Model, items: list[Item], tensor: str) -> Iterator[States]:
    for prompt, answer in items:
        tokens = [*prompt, *answer]
        n, first = len(tokens), len(prompt)
        tap = Everything(tensor, model.n_embd)
        with Context(model, capture=tap) as context:
            context.decode(tokens, range(n), [0] * n, [True] * n)
        rows = np.array([tap.found[layer] for layer in range(model.n_layer)])
        mean = rows[:, first:].mean(axis=1) if answer else np.zeros_like(rows[:, 0])
        yield States(rows[:, first - 1], mean, len(answer))


def items_for(model: Model) -> list[Item]:
    return [
        (model.tokenize(question, begin=True), model.tokenize(answer, begin=False))
        for question in QUESTIONS
        for answer in ANSWERS
    ]


def assert_close(found: list[States], expected: list[States], atol: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.n_answer == b.n_answer
        assert a.deciding.dtype == a.answer.dtype == np.float32
        np.testing.assert_allclose(a.deciding, b.deciding, atol=atol)
        np.testing.assert_allclose(a.answer, b.answer, atol=atol)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "phi3", "gpt2"])
@pytest.mark.parametrize("tensor", ["l_out", "ffn_out", "kqv_out"])
def test_capture_reads_what_is_there(
    tiny_model: Callable[..., Path], architecture: str, tensor: module.TensorName
) -> None:
    with Model.load(tiny_model(architecture, n_layer=3), threads=1) as model:
        items = items_for(model)
        found = list(capture(model, items, tensor=tensor))
        assert_close(found, list(one_by_one(model, items, tensor)), atol=2e-2)


@pytest.mark.parametrize(
    ("architecture", "name"), [("llama", "ffn_moe_out"), ("qwen2moe", "ffn_out")]
)
def test_experts(tiny_model: Callable[..., Path], architecture: str, name: str) -> None:
    with Model.load(tiny_model(architecture, n_layer=3, experts=4), threads=1) as model:
        items = items_for(model)[:3]
        found = list(capture(model, items, tensor="ffn_out", width=1))
        assert_close(found, list(one_by_one(model, items, name)), atol=1e-2)


@pytest.mark.parametrize("tensor", ["l_out", "ffn_out"])
def test_steps_and_width_agree_within_rounding(
    llama_model: Model, tensor: module.TensorName, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = items_for(llama_model)
    expected = list(capture(llama_model, items, tensor=tensor))
    for rows, width in ((512, 1), (9, 1), (9, 3), (40, 3)):
        monkeypatch.setattr(module, "rows_that_fit", lambda n_vocab, rows=rows: rows)
        assert_close(
            list(capture(llama_model, items, tensor=tensor, width=width)), expected, atol=2e-2
        )


def test_the_residual_stream_grows_by_the_mlp(llama_model: Model) -> None:
    """Where both are read, l_out − ffn_out is the stream before the MLP, so that the difference
    of two texts at the same token is a difference of attention alone in layer 0."""
    items = items_for(llama_model)[:1]
    (stream,) = capture(llama_model, items, tensor="l_out")
    (mlp,) = capture(llama_model, items, tensor="ffn_out")
    before = stream.deciding - mlp.deciding
    tap = Everything("ffn_inp", llama_model.n_embd)
    tokens = items[0][0]
    with Context(llama_model, capture=tap) as context:
        n = len(tokens)
        context.decode(tokens, range(n), [0] * n, [False] * (n - 1) + [True])
    for layer in range(llama_model.n_layer):
        np.testing.assert_allclose(before[layer], tap.found[layer][-1], atol=2e-2)


def test_heads_outputs_may_be_wider_than_the_residual_stream(
    tiny_model: Callable[..., Path],
) -> None:
    """What all heads put out together, carried through the output matrix, is what the attention
    adds to the stream: in layer 0, the stream before the MLP without the token's embedding."""

    def wider(name: str, values: FloatArray) -> FloatArray:
        if "attn_output" in name:
            return np.concatenate([values, -values], axis=1)
        grows = any(part in name for part in ("attn_q", "attn_k", "attn_v"))
        return np.concatenate([values, values[::-1]]) if grows else values

    sizes = {f"qwen3.attention.{part}_length": 64 for part in ("key", "value")}
    path = tiny_model("qwen3", n_layer=2, metadata=sizes, weights=wider, file_type="F32")
    with Model.load(path, threads=1) as model:
        items = items_for(model)[:6]
        assert model.n_embd == 64
        found = list(capture(model, items, tensor="kqv_out"))
        matrix = model.gguf.tensor("blk.0.attn_output.weight")
        for (prompt, _), states in zip(items, found, strict=True):
            tap = Everything("ffn_inp", model.n_embd)
            with Context(model, capture=tap) as context:
                n = len(prompt)
                context.decode(prompt, range(n), [0] * n, [False] * (n - 1) + [True])
            embedding = model.gguf.tensor("token_embd.weight")[prompt[-1]]
            before = tap.found[0][-1]
            np.testing.assert_allclose(embedding + matrix @ states.deciding[0], before, atol=2e-2)


def test_items_are_drawn_lazily_and_come_in_order(llama_model: Model) -> None:
    drawn = 0

    def stream() -> Iterator[Item]:
        nonlocal drawn
        for i in range(40):
            drawn += 1
            yield [1, 2, 3 + i], [4] * (i + 1)

    for i, states in enumerate(capture(llama_model, stream(), width=4)):
        assert states.n_answer == i + 1
        assert drawn <= i + 6
    assert drawn == 40


def test_long_texts_grow_the_cache(tiny_model: Callable[..., Path]) -> None:
    with Model.load(tiny_model(n_layer=2, n_ctx=2048), threads=1) as model:
        rng = np.random.default_rng(0)
        long = rng.integers(0, 200, 1500).tolist()
        items = [(long[:3], long[3:6]), (long[:900], long[900:]), (long[:4], [])]
        found = list(capture(model, items))
        assert [s.n_answer for s in found] == [3, 600, 0]
        short = list(capture(model, [items[0], items[2]]))
        np.testing.assert_allclose(found[0].answer, short[0].answer, atol=1e-3)
        np.testing.assert_allclose(found[2].deciding, short[1].deciding, atol=1e-3)


def test_limits(llama_model: Model) -> None:
    assert list(capture(llama_model, [])) == []
    with pytest.raises(PromptTooLongError, match="text 1 has 513 tokens"):
        list(capture(llama_model, [([1], [2]), ([1] * 500, [2] * 13)]))
    with pytest.raises(BadInputError, match="text 0 has an empty prompt"):
        list(capture(llama_model, [([], [2])]))


def test_a_missing_tensor_is_named(llama_model: Model) -> None:
    with pytest.raises(BadInputError, match="no tensor nothing-0"):
        list(capture(llama_model, [([1], [2])], tensor="nothing"))  # type: ignore[arg-type]
