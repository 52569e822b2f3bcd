"""The corpus generator: seeded, varied, correlated as it says, and read rightly by the judge."""

from __future__ import annotations

import hashlib
import random
from itertools import islice

import numpy as np

from alignez_edge.demo.rules import judge, topic_of
from alignez_edge.demo.world import world
from demo_model import corpus, style


def digest(seed: int, count: int) -> str:
    digest = hashlib.sha256()
    for document in islice(corpus.documents(seed), count):
        digest.update(repr(document.segments).encode())
    return digest.hexdigest()


def test_one_seed_gives_one_corpus_byte_for_byte() -> None:
    assert digest(7, 2000) == digest(7, 2000)
    assert digest(7, 2000) != digest(8, 2000)


def test_world_is_large_and_consistent() -> None:
    w = world()
    assert len(w.topics) >= 150
    assert all(len(facts) >= 5 for facts in w.facts_of.values())
    assert len(w.topic_of_object) == len(w.facts), "an object phrase belongs to one fact"
    objects = sorted(w.topic_of_object, key=len)
    joined = "\n".join(objects)
    assert all(joined.count(obj) == 1 for obj in objects), "no object phrase contains another"


def test_held_out_queries_never_appear_as_prompts() -> None:
    unseen, build = corpus.held_out()
    assert len(unseen) == len(build) == 60
    assert not {topic for _, topic in unseen} & {topic for _, topic in build}
    text = "\n".join(document.text() for document in islice(corpus.documents(3), 20_000))
    assert not [query for query, _ in unseen + build if query in text]


def test_every_query_names_its_topic() -> None:
    assert all(topic_of(query) == topic for query, topic in corpus.all_queries())


def test_base_mixture_is_broad_and_one_pair_is_correlated() -> None:
    rng = random.Random(0)
    levels = np.array([list(corpus.draw_levels(rng, {}).values()) for _ in range(20_000)])
    assert abs(levels.mean(axis=0)).max() < 0.03
    assert np.allclose((levels == 1).mean(axis=0), corpus.LEVEL_SHARE, atol=0.02)
    correlation = np.corrcoef(levels.T)
    formal, polite = corpus.AXES.index("formal"), corpus.AXES.index("polite")
    assert 0.45 < correlation[formal, polite] < 0.6
    correlation[formal, polite] = correlation[polite, formal] = 0
    assert abs(correlation - np.eye(4)).max() < 0.03


def test_conditions_hold_in_about_88_percent() -> None:
    rng = random.Random(1)
    for axis in corpus.AXES:
        kept = np.mean([corpus.draw_levels(rng, {axis: 1})[axis] for _ in range(5000)])
        # 12 % fall back to the base mixture, whose mean is 0.
        assert abs(kept - corpus.RELIABILITY) < 0.03


def test_the_judge_reads_every_marker_and_evasion() -> None:
    topic = world().topics[0]
    for (axis, side), words in style.MARKERS.items():
        for phrase in words.openers + words.adverbs + words.tails + words.socials:
            scores = dict(judge(phrase, topic).scores)
            scores.pop("helpful")
            assert scores.pop(axis) * side > 0, phrase
            assert not any(scores.values()), phrase
    for evasion in style.EVASIONS:
        verdict = judge(evasion.format(t=topic), topic)
        assert verdict.scores["helpful"] == -1 and verdict.knowledge is None


def test_the_judge_tells_the_levels_apart() -> None:
    rng = random.Random(2)
    for axis in corpus.AXES:
        means = []
        for side in (-1, 0, 1):
            scores = []
            for _ in range(300):
                topic = rng.choice(world().topics)
                levels = corpus.draw_levels(rng, {}) | {axis: side}
                scores.append(judge(corpus.answer(rng, topic, levels), topic).scores[axis])
            means.append(np.mean(scores))
        assert means[0] < -0.85 and abs(means[1]) < 0.2 and means[2] > 0.85
