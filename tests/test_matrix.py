"""The whole road on random-weight models of many kinds, around real tokenizers.

Every file type occurs with and without a chat template. What is said means nothing here; that it is
said, saved and steered exactly does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.arrays import FloatArray
from alignez_edge.build import choice, generate
from alignez_edge.build import steps as builder
from alignez_edge.build.build import build_profile
from alignez_edge.chat.messages import Message
from alignez_edge.preferences import answers
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.session import Session
from tests.test_context import Rows
from tests.tinymodels import CHATML

TOPICS = "bread rain trains cats snow tea maps birds salt glue wool milk".split()
QUERIES = [f"Tell me about {topic}." for topic in TOPICS]
QUERIES += [f"And what of {topic}?" for topic in TOPICS]
SHORT = Sampling(max_tokens=4, min_tokens=1)
GREEDY = Sampling(temperature=0, max_tokens=4, min_tokens=1)


@dataclass(frozen=True)
class Kind:
    """One cell: `layers` None lets the build choose."""

    architecture: str
    vocab: str
    file_type: str
    template: str | None
    layers: tuple[int, ...] | None = None
    experts: int = 0

    def __str__(self) -> str:
        form = "chat" if self.template else "plain"
        experts = "-experts" if self.experts else ""
        return f"{self.architecture}{experts}-{self.file_type}-{form}"


KINDS = (
    Kind("qwen3", "qwen2", "F16", CHATML, (2, 3)),
    Kind("gpt2", "gpt-2", "F16", None),
    Kind("gemma2", "gemma-4", "Q8_0", CHATML),
    Kind("qwen2moe", "qwen2", "Q8_0", None, (1, 3)),
    Kind("llama", "llama-spm", "Q4_K_M", CHATML),
    Kind("phi3", "phi-3", "Q4_K_M", None, (2,)),
    Kind("qwen2", "qwen2", "F16", None),
    Kind("llama", "llama-bpe", "Q8_0", CHATML, experts=4),
)


def test_the_matrix_is_whole() -> None:
    cells = {(kind.file_type, kind.template is not None) for kind in KINDS}
    assert cells == {(t, c) for t in ("F16", "Q8_0", "Q4_K_M") for c in (True, False)}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def built(
    request: pytest.FixtureRequest,
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Model, Profile, Path]]:
    """A model, the profile that was built for it, loaded again, and its file."""
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp("matrix")
    path = tiny_model(
        kind.architecture,
        vocab=kind.vocab,
        n_layer=4,
        file_type=kind.file_type,
        template=kind.template,
        experts=kind.experts,
    )
    with pytest.MonkeyPatch.context() as patch, Model.load(path, threads=1) as model:
        patch.setattr(answers, "DESCRIPTION_TOKENS", 12)
        patch.setattr(builder, "N_MOST", 2)
        patch.setattr(choice, "N_TOKENS", 4)
        patch.setattr(generate, "ANSWER_TOKENS", 8)
        axis = Axis("bright", positive="bright", negative="dark")
        made = build_profile(
            model, axis, queries=QUERIES, limit=4, layers=kind.layers, width=8, work=folder / "work"
        )
        assert kind.layers is None or made.layers == kind.layers
        made.save(folder / "bright.gguf")
        yield model, Profile.load(folder / "bright.gguf"), folder / "bright.gguf"
    path.unlink()


def test_saved_and_loaded_it_is_the_same(
    built: tuple[Model, Profile, Path], tmp_path: Path
) -> None:
    model, profile, path = built
    profile.save(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    assert set(profile.vector.layers) == set(profile.layers)
    assert 4 <= profile.pairs <= 4 + sum(profile.dropped.values()) <= len(QUERIES)
    assert profile.model == model.facts.name


def test_a_batch_is_answered(built: tuple[Model, Profile, Path]) -> None:
    model, profile, _ = built
    answers = model.generate(["Hello?", "Who are you?"], steering=profile * 0.5, sampling=SHORT)
    assert sorted(answer.index for answer in answers) == [0, 1]
    assert all(answer.tokens for answer in answers)


def test_a_conversation_is_steered_and_strength_0_is_plain(
    built: tuple[Model, Profile, Path],
) -> None:
    model, profile, _ = built
    talk: list[Message] = [{"role": "user", "content": "Hello?"}]
    with Session(model) as session:

        def said(steering: object) -> tuple[int, ...]:
            for _ in session.answer(talk, steering=steering, sampling=GREEDY):  # type: ignore[arg-type]
                pass
            assert session.completion is not None
            return session.completion.tokens

        plain = said(None)
        steered = said(profile * 1.0)
        assert plain and steered
        assert said(profile * 0.0) == plain
        assert said(profile * 1.0) == steered
        talk += [
            {"role": "assistant", "content": model.detokenize(steered)},
            {"role": "user", "content": "And then?"},
        ]
        assert said(profile * -1.0)


def test_each_layer_that_is_named_changes_by_exactly_its_vector(
    built: tuple[Model, Profile, Path],
) -> None:
    model, profile, _ = built
    injection = profile.injection(model)
    assert isinstance(injection, Injection)
    prompt = list(model.prompt([{"role": "user", "content": "Hello?"}]).tokens)
    for vectors in (injection.deciding, injection.answer):
        named = np.flatnonzero(vectors.any(axis=1))
        assert tuple(named) == profile.layers
        plain, *steered = _last_token(model, prompt, [None, vectors, *_one_by_one(vectors)])
        # All at once: nothing below the first, and there exactly the vector.
        _check(plain, steered[0], vectors, int(named[0]))
        for layer, found in zip(named, steered[1:], strict=True):
            _check(plain, found, vectors, int(layer))


def _one_by_one(vectors: FloatArray) -> Iterator[FloatArray]:
    for layer in np.flatnonzero(vectors.any(axis=1)):
        one = np.zeros_like(vectors)
        one[layer] = vectors[layer]
        yield one


def _last_token(
    model: Model, prompt: list[int], injected: list[FloatArray | None]
) -> list[FloatArray]:
    """The residual stream `(n_layer, n_embd)` at the last token, under each injection in turn."""
    found = []
    tap = Rows(model.n_embd)
    with Context(model, capture=tap) as context:
        for vectors in injected:
            tap.found = {}
            context.clear()
            context.set_control_vector(None)
            context.prefill(prompt[:-1])
            tap.found = {}
            context.set_control_vector(vectors)
            context.decode(prompt[-1:], [len(prompt) - 1], [0], [True])
            found.append(
                np.stack([tap.found[f"l_out-{layer}"][0] for layer in range(model.n_layer)])
            )
    return found


def _check(plain: FloatArray, steered: FloatArray, vectors: FloatArray, first: int) -> None:
    assert np.array_equal(plain[:first], steered[:first])
    assert np.array_equal(steered[first], plain[first] + vectors[first])
    for layer in range(first + 1, len(plain)):
        assert not np.array_equal(plain[layer], steered[layer])
