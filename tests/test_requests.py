"""Forms of request: what a model is given for each form, axis and side."""

from __future__ import annotations

import pytest

from alignez_edge.errors import BadInputError
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis, Wording, builtin_names
from alignez_edge.preferences.requests import FORMS, RequestForm, RequestText, check_request

POLITE = Axis("polite", "polite", "rude")
Q = "Who are you"


def asked(
    form: str, axis: Axis = POLITE, side: prompts.Side = "positive", chat: bool = True
) -> str:
    request = FORMS[form].request(Q, axis, side, chat=chat)
    return f"{request.system}|{request.user}" if request.system else request.user


def test_the_forms_from_the_trait_alone() -> None:
    assert asked("style") == "Who are you. Answer in a very polite way."
    assert asked("role", side="negative") == "You are an extremely rude assistant. Who are you"
    assert asked("system") == "You are an extremely polite assistant.|Who are you"
    assert asked("list") == "Who are you. Your answer should: 1. Be polite"
    assert asked("two-steps") == (
        "Who are you. You are a polite assistant. Your answer to this query should:"
    )


def test_an_interview_is_the_form_of_a_base_model_and_a_text_to_a_chat_model() -> None:
    frame = "The following is an interview with somebody who is always very polite."
    assert asked("interview", chat=False) == f"{frame}|Who are you"
    assert asked("interview") == f"{frame}\n\nQuestion: Who are you\nAnswer:"


@pytest.mark.parametrize(
    ("trait", "role", "style", "person"),
    [
        (
            "talks like a pirate",
            "You are an assistant who talks like a pirate.",
            "Answer like somebody who talks like a pirate.",
            "somebody who talks like a pirate",
        ),
        (
            "a pirate",
            "You are a pirate.",
            "Answer like a pirate.",
            "somebody who is always a pirate",
        ),
        (
            "serious and dry",
            "You are an extremely serious and dry assistant.",
            "Answer in a very serious and dry way.",
            "somebody who is always very serious and dry",
        ),
    ],
)
def test_traits_that_are_adjectives_nouns_and_verbs(
    trait: str, role: str, style: str, person: str
) -> None:
    axis = Axis("x", trait)
    assert asked("system", axis).split("|")[0] == role
    assert asked("style", axis).endswith(style)
    assert person in asked("interview", axis)


def test_an_axis_brings_words_of_its_own() -> None:
    words = Wording(role="Ahoy!", style="As pirates do.", person="a pirate", own="Arr, {query}?")
    axis = Axis("x", "a", "b", positive_prompt="You are A.", positive_wording=words)
    assert asked("role", axis) == "Ahoy! Who are you"
    assert asked("style", axis) == "Who are you. As pirates do."
    assert asked("own", axis) == "Arr, Who are you?"
    assert "interview with a pirate." in asked("interview", axis)
    assert "You are A." in asked("two-steps", axis), "the paper's two steps keep their own words"
    bare = Axis("x", "a", "b", positive_prompt="You are A.")
    assert asked("role", bare) == "You are A. Who are you"


def test_own_words_are_needed_for_both_sides_that_are_asked_for() -> None:
    words = Wording(own="{query}!")
    assert not FORMS["own"].fits(POLITE)
    assert not FORMS["own"].fits(Axis("x", "a", "b", positive_wording=words))
    assert FORMS["own"].fits(Axis("x", "a", "b", positive_wording=words, negative_wording=words))
    assert FORMS["own"].fits(Axis("x", "a", positive_wording=words))


@pytest.mark.parametrize("form", FORMS.values(), ids=str)
def test_the_other_side_of_an_axis_with_one_side_is_the_plain_query(form: RequestForm) -> None:
    axis = Axis("x", "a pirate", positive_wording=Wording(own="{query}!"))
    for chat in (True, False):
        assert form.request(f" {Q}?", axis, "negative", chat=chat) == RequestText(f"{Q}?")
        assert form.request(Q, axis, "positive", chat=chat) != RequestText(Q)


def test_the_sides_of_every_built_in_axis_differ_in_every_form() -> None:
    for name in builtin_names():
        axis = Axis.builtin(name)
        for form in filter(lambda form: form.fits(axis), FORMS.values()):
            for chat in (True, False):
                one, other = (form.request(Q, axis, s, chat=chat) for s in prompts.SIDES)
                assert one != other and Q in one.user + one.system


def test_what_cannot_be_asked_for_is_refused() -> None:
    check_request("auto", POLITE)
    check_request("style", POLITE)
    with pytest.raises(BadInputError, match="is called 'stile'") as caught:
        check_request("stile")
    assert caught.value.hint == "did you mean style?"
    with pytest.raises(BadInputError, match="has no words for the form own"):
        check_request("own", POLITE)


def test_messages() -> None:
    assert RequestText("a").messages() == [{"role": "user", "content": "a"}]
    assert [m["role"] for m in RequestText("a", "b").messages()] == ["system", "user"]
