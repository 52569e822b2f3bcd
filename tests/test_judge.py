"""The rule judge on hand-written answers, adversarial ones included."""

from __future__ import annotations

import pytest

from alignez_edge.demo.rules import AXES, judge, split_sentences, topic_of
from alignez_edge.demo.world import world

BREAD = "bread"
TRUE_BREAD = "Bread is made from flour and water and yeast."


def test_every_fact_is_true_of_its_topic_and_neutral_in_style() -> None:
    for fact in world().facts:
        for verb in fact.verbs:
            verdict = judge(f"{fact.topic} {verb} {fact.obj}.", fact.topic)
            assert verdict.scores == {"helpful": 1, "cheerful": 0, "formal": 0, "polite": 0}, fact
            assert verdict.knowledge == 1.0


@pytest.mark.parametrize(
    ("text", "helpful", "knowledge"),
    [
        (TRUE_BREAD, 1, 1.0),
        ("It is made from flour and water and yeast.", 1, 1.0),
        # Another topic's fact tied to this one, and this one's to another.
        ("Bread sleeps floating on its back.", -1, 0.0),
        ("The owl is made from flour and water and yeast.", -1, 0.0),
        # Denied, off the topic, evasive, made up.
        ("Bread is not made from flour and water and yeast.", -1, 0.0),
        ("The kettle has a lid and a cool handle.", -1, None),
        ("It depends on many things.", -1, None),
        ("Bread is a purple engine that sings to the moon at night.", -1, 0.0),
        # Says nothing at all, or only greets.
        ("", -1, None),
        ("...", -1, None),
        ("Thank you for asking.", -1, None),
        # Half true, half not.
        (TRUE_BREAD + " Bread sleeps floating on its back.", 0, 0.5),
        # A greeting neither helps nor hurts.
        ("Thank you for asking. " + TRUE_BREAD, 1, 1.0),
    ],
)
def test_helpful_and_knowledge(text: str, helpful: float, knowledge: float | None) -> None:
    verdict = judge(text, BREAD)
    assert verdict.scores["helpful"] == helpful
    assert verdict.knowledge == knowledge


@pytest.mark.parametrize(
    ("text", "axis", "sign"),
    [
        ("Happily, bread rises because of gas from the yeast!", "cheerful", 1),
        ("Alas, bread rises because of gas from the yeast.", "cheerful", -1),
        ("There is nothing wonderful about it.", "cheerful", -1),
        ("That is not sad.", "cheerful", 1),
        ("It should be noted that bread is white.", "formal", 1),
        ("So yeah, bread is kinda white, ya know.", "formal", -1),
        ("Thank you for asking.", "polite", 1),
        ("What a stupid question.", "polite", -1),
        # A polite word inside a rude sentence stays rude.
        ("Thank you for asking, you fool.", "polite", -1),
        ("Please shut up.", "polite", -1),
        # A word that only looks like a marker.
        ("The foolscap and the adultery of treatise.", "polite", 0),
        ("The treaty was signed.", "cheerful", 0),
        # One of each cancels.
        ("Happily it is sad.", "cheerful", 0),
        ("", "polite", 0),
    ],
)
def test_style_signs(text: str, axis: str, sign: int) -> None:
    score = judge(text, BREAD).scores[axis]
    assert (score > 0) - (score < 0) == sign


def test_a_score_needs_the_mark_through_the_whole_answer() -> None:
    plain = "Bread is made from flour and water and yeast. " * 1
    once = judge("Alas, " + plain + "Bread stays. Bread goes. Bread comes. Bread is.", BREAD)
    always = judge("Alas, it stays. Alas, it goes. Sadly, it comes. It is a pity.", BREAD)
    assert -0.5 < once.scores["cheerful"] < 0
    assert always.scores["cheerful"] == -1


def test_loops_and_garbage_lose_coherence() -> None:
    healthy = judge(TRUE_BREAD + " It rises because of gas from the yeast.", BREAD)
    loop = judge((TRUE_BREAD + " ") * 6, BREAD)
    stutter = judge("the the the the the the the the the the the the", BREAD)
    garbage = judge("Brqx flimp is zorgle wux. Plonk dreeb yix.", BREAD)
    assert healthy.coherence == 1.0 and not healthy.loop
    assert loop.loop and loop.coherence < 0.5
    assert stutter.loop
    assert garbage.coherence < 0.4


def test_scores_stay_in_range_and_cover_all_axes() -> None:
    for text in ("", "?", "Alas! " * 50, "Happily " * 40, "\x00\ufffd\n\n", "bread " * 300):
        verdict = judge(text, BREAD)
        assert set(verdict.scores) == set(AXES)
        assert all(-1 <= score <= 1 for score in verdict.scores.values())
        assert 0 <= verdict.coherence <= 1


def test_topic_is_the_longest_name_in_the_query() -> None:
    assert topic_of("What can you tell me about green tea?") == "green tea"
    assert topic_of("Describe the tomato plant.") == "the tomato plant"
    assert topic_of("Who are you?") is None


def test_sentences() -> None:
    assert split_sentences("One. Two!  Three... four?") == ["one", "two", "three", "four"]
    assert split_sentences(" ... ") == []
