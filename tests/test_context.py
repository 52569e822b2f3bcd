"""What an injection does to the graph, and what it leaves alone."""

from __future__ import annotations

import gc
import math
import random
import signal
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.errors import BadInputError, PromptTooLongError, RuntimeFailure
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.llama import ggml, tensor_shape
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.prefix import common_prefix
from alignez_edge.runtime.window import check_fits

TEXT = "The quick brown fox jumps over the lazy dog."


class Rows:
    """A tap that keeps the first tensor of every `l_out-<l>` name, in the shape (rows, n_embd)."""

    def __init__(self, n_embd: int) -> None:
        self.n_embd = n_embd
        self.found: dict[str, FloatArray] = {}

    def wants(self, name: bytes) -> bool:
        return name.startswith(b"l_out-")

    def read(self, name: bytes, tensor: int) -> bool:
        data = np.empty((math.prod(tensor_shape(tensor)) // self.n_embd, self.n_embd), np.float32)
        ggml.tensor_get(tensor, data.ctypes.data, 0, data.nbytes)
        assert name.decode() not in self.found
        self.found[name.decode()] = data
        return True


def decode_all(context: Context, tokens: list[int], start: int = 0) -> FloatArray:
    n = len(tokens)
    context.decode(tokens, range(start, start + n), [0] * n, [True] * n)
    return np.array([context.logits(i).copy() for i in range(n)])


def layer_vectors(model: Model, *layers: int, size: float = 1.0, seed: int = 0) -> FloatArray:
    vectors = np.zeros((model.n_layer, model.n_embd), np.float32)
    rng = np.random.default_rng(seed)
    for layer in layers:
        vectors[layer] = size * rng.standard_normal(model.n_embd)
    return vectors


def test_zero_is_the_base_model_to_the_bit(llama_model: Model) -> None:
    tokens = llama_model.tokenize(TEXT, begin=True)
    with Context(llama_model) as context:
        plain = decode_all(context, tokens)
        context.clear()
        context.set_control_vector(layer_vectors(llama_model))
        zero = decode_all(context, tokens)
        context.clear()
        context.set_control_vector(layer_vectors(llama_model, 2))
        steered = decode_all(context, tokens)
        context.clear()
        context.set_control_vector(None)
        cleared = decode_all(context, tokens)
    assert np.array_equal(plain, zero)
    assert np.array_equal(plain, cleared)
    assert np.abs(plain - steered).max() > 0.01


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt2"])
@pytest.mark.parametrize("layer", [1, 3, 5])
def test_a_vector_changes_exactly_its_layer_by_exactly_itself(
    tiny_model: Callable[..., Path], architecture: str, layer: int
) -> None:
    with Model.load(tiny_model(architecture, n_layer=6), threads=1) as model:
        tokens = model.tokenize(TEXT, begin=True)
        vectors = layer_vectors(model, layer)
        taps = []
        for injected in (None, vectors):
            tap = Rows(model.n_embd)
            with Context(model, capture=tap) as context:
                context.set_control_vector(injected)
                decode_all(context, tokens)
            taps.append(tap.found)
    plain, steered = taps
    assert len(plain) == len(steered) == 6
    for below in range(layer):
        assert np.array_equal(plain[f"l_out-{below}"], steered[f"l_out-{below}"])
    here = f"l_out-{layer}"
    assert np.array_equal(steered[here], plain[here] + vectors[layer])
    for above in range(layer + 1, 6):
        assert not np.array_equal(plain[f"l_out-{above}"], steered[f"l_out-{above}"])


def test_the_last_injection_replaces_the_one_before(llama_model: Model) -> None:
    tokens = llama_model.tokenize(TEXT, begin=True)
    low, high = layer_vectors(llama_model, 1), layer_vectors(llama_model, 4, 5)
    with Context(llama_model) as context:
        context.set_control_vector(low)
        expected = decode_all(context, tokens)
    with Context(llama_model) as context:
        context.set_control_vector(high)
        context.set_control_vector(low)
        found = decode_all(context, tokens)
    assert np.array_equal(expected, found)


@pytest.mark.parametrize("at_once", [True, False])
def test_written_vectors_are_what_llama_cpp_would_be_told(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """All layers at once where they lie in memory at equal distances, else tensor by tensor."""
    if not at_once:
        monkeypatch.setattr("alignez_edge.runtime.places._view", lambda tensors: None)
    tokens = llama_model.tokenize(TEXT, begin=True)
    low, high = layer_vectors(llama_model, 1), layer_vectors(llama_model, 4, 5)
    expected = []
    for vectors in (low, high, None):
        with Context(llama_model) as context:
            context.set_control_vector(vectors)
            expected.append(decode_all(context, tokens))
    with Context(llama_model) as context:
        context.set_control_vector(high)
        decode_all(context, tokens)
        assert context._places.known and (context._places._view is not None) == at_once
        for vectors, wanted in zip((low, high, None), expected, strict=True):
            context.clear()
            context.set_control_vector(vectors)
            assert np.array_equal(decode_all(context, tokens), wanted)


def test_an_unchanged_injection_calls_nothing(
    llama_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_edge.runtime import context as module

    calls: list[Any] = []
    real = module.cpp.llama_set_adapter_cvec

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(module.cpp, "llama_set_adapter_cvec", counted)
    vectors = layer_vectors(llama_model, 2)
    with Context(llama_model) as context:
        context.set_control_vector(None)
        context.set_control_vector(np.zeros_like(vectors))
        assert not calls
        context.set_control_vector(vectors)
        context.set_control_vector(vectors.copy())
        assert len(calls) == 1
        context.set_control_vector(None)
        context.set_control_vector(None)
        assert len(calls) == 2


def test_an_injection_of_another_model_is_refused(llama_model: Model) -> None:
    with Context(llama_model) as context, pytest.raises(ValueError, match="is not"):
        context.set_control_vector(np.ones((3, 5), np.float32))


def test_removed_cells_leave_no_trace(llama_model: Model) -> None:
    tokens = llama_model.tokenize(TEXT, begin=True)
    with Context(llama_model) as context:
        context.prefill(tokens[:-1])
        once = decode_all(context, tokens[-1:], len(tokens) - 1)
        context.set_control_vector(layer_vectors(llama_model, 2))
        decode_all(context, tokens[:5], len(tokens))
        context.set_control_vector(None)
        assert context.remove(0, len(tokens) - 1)
        again = decode_all(context, tokens[-1:], len(tokens) - 1)
    assert np.array_equal(once, again)


def test_a_shared_prefix_reads_like_ones_own(llama_model: Model) -> None:
    tokens = llama_model.tokenize(TEXT, begin=True)
    n = len(tokens) - 1
    with Context(llama_model, n_ctx=256, n_seq=2) as context:
        context.prefill(tokens[:-1], sequence=0)
        context.share(0, 1, 0, n)
        context.remove(0)
        context.decode(tokens[-1:], [n], [1], [True])
        shared = context.logits(0).copy()
        context.clear()
        context.prefill(tokens[:-1], sequence=1)
        context.decode(tokens[-1:], [n], [1], [True])
        assert np.array_equal(shared, context.logits(0))


def test_prefill_in_steps_agrees_within_rounding(llama_model: Model) -> None:
    tokens = llama_model.tokenize(TEXT, begin=True)
    rows = []
    for n_batch in (512, 7):
        with Context(llama_model, n_batch=n_batch) as context:
            context.prefill(tokens[:-1])
            rows.append(decode_all(context, tokens[-1:], len(tokens) - 1))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-2)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_an_interrupt_is_not_lost_in_llama_cpp(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it comes: in a call, in the log callback, in freeing. Only Python's own finalizers
    may swallow it, as they do anywhere."""
    fired, lost = 0, []

    def interrupt(*_: object) -> None:
        nonlocal fired
        fired += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: lost.append(str(ignored)))
    usual, rng, raised = signal.signal(signal.SIGALRM, interrupt), random.Random(1), 0
    try:
        for count in range(1, 201):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 8e-3))
                with (
                    Model.load(tiny_llama, threads=1) as model,
                    Context(model, n_ctx=64) as context,
                ):
                    context.decode([1, 2], [0, 1], [0, 0], [False, True])
                while fired < count:
                    time.sleep(1e-4)
            except KeyboardInterrupt:
                raised += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert fired == 200 and raised >= 190
    assert not [what for what in lost if "_on_log" in what]


def test_an_error_in_a_tap_comes_out_of_decode(llama_model: Model) -> None:
    class Broken(Rows):
        def read(self, name: bytes, tensor: int) -> bool:
            raise KeyboardInterrupt

    with Context(llama_model, capture=Broken(llama_model.n_embd)) as context:
        with pytest.raises(KeyboardInterrupt):
            context.decode([1, 2], [0, 1], [0, 0], [False, True])
        context.clear()
        with pytest.raises(KeyboardInterrupt):
            context.decode([1, 2], [0, 1], [0, 0], [False, True])


def test_faults_are_reported(llama_model: Model) -> None:
    with Context(llama_model, n_ctx=256) as context:
        with pytest.raises(RuntimeFailure, match="could not decode"):
            context.decode([llama_model.n_vocab + 5], [0], [0], [True])
        context.decode([1], [0], [0], [False])
        with pytest.raises(RuntimeFailure, match="no logits"):
            context.logits(0)
        with pytest.raises(ValueError, match="in a batch of"):
            context.decode([1] * 300, range(300), [0] * 300, [False] * 300)
        with pytest.raises(RuntimeFailure, match="no room"):
            for start in (1, 129):
                context.prefill([1] * 128, start)


def test_windows(llama_model: Model) -> None:
    with Context(llama_model) as context:
        assert context.n_ctx == llama_model.n_ctx_train
    with pytest.raises(BadInputError, match="trained with 512"):
        Context(llama_model, n_ctx=513)
    with pytest.raises(BadInputError, match="context of 0"):
        Context(llama_model, n_ctx=0)
    check_fits(511, 512)
    with pytest.raises(PromptTooLongError, match="512 tokens, the context window only 512"):
        check_fits(512, 512)


def test_a_context_is_freed_without_a_collection_and_keeps_its_model(tiny_llama: Path) -> None:
    gc.disable()
    try:
        model = Model.load(tiny_llama, threads=1)
        alive = weakref.ref(model)
        context = Context(model, capture=Rows(model.n_embd))
        del model
        assert alive() is not None
        context.decode([1], [0], [0], [True])
        context.close()
        context.close()
        gone = weakref.ref(context)
        del context
        assert gone() is None and alive() is None
    finally:
        gc.enable()


def test_common_prefix() -> None:
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
