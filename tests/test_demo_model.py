"""The shipped demo model: it is the one that was trained, and it behaves as its card says.

What PyTorch and `tokenizers` say of it is stored in `tests/data`, so neither is needed here.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alignez_edge.demo.rules import AXES
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.model import Model
from demo_model import measure
from demo_model.measure import CHAT, FORMS, PLAIN, Condition, Judged

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
SHIPPED = ROOT / "alignez_edge" / "demo" / "demo-model.gguf"
F16 = ROOT / "demo_model" / "demo-model-f16.gguf"

LARGEST_DIFFERENCE = 0.05
"""Of a logit; the report measured 0.01, logits spread over tens, another CPU rounds otherwise."""
LEAST_APART = 0.6
"""Of means of 40 answers a side, whose difference has a standard error near 0.15: four of those
below the 1.2 or more that the card tells, and above the 0 of a model that does not listen."""


@pytest.fixture(scope="module")
def full() -> Iterator[Model]:
    with Model.load(F16, threads=2, gpu_layers=0) as model:
        yield model


def test_f16_file_gives_the_logits_of_pytorch(full: Model) -> None:
    with np.load(DATA / "demo-parity.npz") as stored:
        tokens, lengths = stored["tokens"].tolist(), stored["lengths"].tolist()
        top_ids, top_logits = stored["top_ids"], stored["top_logits"]
    assert len(tokens) == sum(lengths) == len(top_ids) >= 200
    rows, start = [], 0
    for length in lengths:
        with Context(full, n_ctx=512, n_batch=512) as context:
            document = tokens[start : start + length]
            context.decode(document, range(length), [0] * length, [True] * length)
            rows += [context.logits(i).copy() for i in range(length)]
        start += length
    ours = np.stack(rows)
    assert (ours.argmax(axis=1) == top_ids[:, 0]).mean() >= 0.99
    difference = np.take_along_axis(ours, top_ids.astype(np.int64), axis=1) - top_logits
    assert np.abs(difference).max() < LARGEST_DIFFERENCE


@pytest.mark.parametrize("path", [F16, SHIPPED], ids=["F16", "shipped"])
def test_texts_are_tokenized_as_in_training(path: Path) -> None:
    pairs = json.loads(gzip.decompress((DATA / "demo-tokens.json.gz").read_bytes()))
    assert len(pairs) >= 1000
    with Model.load(path, threads=1, gpu_layers=0) as model:
        different = [
            text for text, ids in pairs if model.tokenize(text, begin=False, special=True) != ids
        ]
    assert not different


def test_the_model_is_small_and_quantized() -> None:
    assert SHIPPED.stat().st_size <= 8_000_000
    installed = [
        path
        for folder in ("alignez_edge", "cli", "profiles")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sum(path.stat().st_size for path in installed) < 12_000_000, "a wheel of 12 MB"
    with Model.load(SHIPPED, threads=1, gpu_layers=0) as model:
        assert model.facts.quantization != "F16" and model.facts.can_steer
        assert model.template is not None


@pytest.mark.parametrize("axis", AXES)
def test_a_trait_that_is_asked_for_shows(axis: str) -> None:
    index = AXES.index(axis)
    positive, negative = (
        measure.judged_model(SHIPPED, CHAT, Condition(axis, side), seeds=1, queries=40)
        for side in measure.SIDES
    )
    apart = positive.scores[..., index].mean() - negative.scores[..., index].mean()
    assert apart > LEAST_APART
    assert positive.loop.mean() <= 0.1 and positive.coherence.mean() > 0.8


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_prompt_is_answered_on_the_topic(form: str) -> None:
    asked = Condition("helpful", "positive")
    answers = measure.judged_model(SHIPPED, form, asked, seeds=1, queries=12)
    assert answers.on_topic.mean() >= 0.7
    assert np.nanmean(answers.knowledge) >= 0.6
    assert answers.stopped.mean() >= 0.9


def test_plain_forms_differ_in_the_prompt_only(full: Model) -> None:
    texts = {form: measure.prompt_tokens(full, form, "Tell me about the cat.") for form in FORMS}
    assert len(set(texts.values())) == len(FORMS)
    assert {tokens[0] for tokens in texts.values()} == {full.tokenize("", begin=True)[0]}


def judged(sentences: list[list[int]], stopped: list[list[int]]) -> Judged:
    """Answers of so many sentences, all else nought."""
    nought = np.zeros(np.shape(sentences))
    scores = np.zeros((*nought.shape, len(AXES)))
    counts, ends = np.array(sentences, dtype=float), np.array(stopped, dtype=float)
    return Judged(scores, nought, nought, counts, nought, ends, nought)


def test_intervals_count_queries_and_not_answers() -> None:
    rng = np.random.default_rng(0)
    by_query = rng.normal(size=(60, 1))
    once, often = measure.figure(by_query), measure.figure(np.repeat(by_query, 50, axis=1))
    assert once.mean == pytest.approx(often.mean) and once.half == pytest.approx(often.half)
    holes = np.where(rng.random((60, 50)) < 0.5, np.nan, np.repeat(by_query, 50, axis=1))
    holes[0] = np.nan
    assert measure.figure(holes).mean == pytest.approx(by_query[1:].mean())


def test_ends_are_counted_among_the_answers_that_came_so_far() -> None:
    answers = judged([[1, 2], [2, 3]], [[1, 1], [1, 0]])
    # The answer that was cut in its third sentence has two whole ones and no end.
    assert measure.end_shares(answers, longest=3) == [(4, 0.25), (3, pytest.approx(2 / 3)), (0, 0)]


def test_the_corpus_itself_meets_what_is_asked_of_the_model() -> None:
    """The yardstick of the card: its axes are apart, and formal and polite are correlated."""
    table = measure.figures({c: measure.judged_corpus(c, 2) for c in measure.CONDITIONS})
    assert all(table[f"{axis} difference"].mean > 1.0 for axis in AXES)
    assert all(abs(table[f"{axis} plain"].mean) < 0.3 for axis in AXES if axis != "helpful")
    assert table["knowledge"].mean > 0.85 and table["loops"].mean < 0.02
    together = measure.correlations(measure.judged_corpus(PLAIN, 10))
    assert 0.3 < together[AXES.index("formal"), AXES.index("polite")] < 0.6
