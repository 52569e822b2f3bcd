"""Forms of request for one side of an axis: pure functions from texts to texts.

Which of them a model understands depends on the model, so a build tries them (`choice.py`). A form
is one entry of `FORMS`. It makes a request out of a query, an axis and a side: a user's text and,
where it has one, a system text, so that an instruct model is asked through its chat template and a
base model in its question/answer form, whose system text is a paragraph above the question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import near_hint, printable
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import QUERY, Axis, Side
from alignez_edge.preferences.prompts import SIDES

if TYPE_CHECKING:
    from alignez_edge.chat.messages import Message

AUTO = "auto"
"""In place of a form's name: the form that works best on the model at hand."""
TWO_STEPS = "two-steps"


@dataclass(frozen=True)
class RequestText:
    """What a model is asked: a user's text, and a system text or ''."""

    user: str
    system: str = ""

    def messages(self) -> list[Message]:
        """The conversation that asks it."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


Ask = Callable[[str, Axis, Side, bool], RequestText]


@dataclass(frozen=True)
class RequestForm:
    """One form of request.

    `ask(query, axis, side, chat)` gives the request; `chat` says whether the model has a chat
    template. With `two_steps` it asks for characteristics, which a second request then lists
    (`prompts.answer`). `needs` names a wording that an axis must bring for both of its sides.
    Forms of one `family` ask in the same words.
    """

    name: str
    family: str
    ask: Ask
    two_steps: bool = False
    needs: str | None = None

    def fits(self, axis: Axis) -> bool:
        """Whether the axis brings what the form needs."""
        if self.needs is None:
            return True
        sides = [side for side in SIDES if not prompts.is_plain(axis, side)]
        return all(self.needs in axis.wording_of(side).given() for side in sides)

    def request(self, query: str, axis: Axis, side: Side, *, chat: bool) -> RequestText:
        """The request for one side; the plain query where that side is the plain answer."""
        if prompts.is_plain(axis, side):
            return RequestText(query.strip())
        return self.ask(query, axis, side, chat)


def role(axis: Axis, side: Side) -> str:
    """Who the assistant is: "You are an extremely polite assistant."."""
    prompt = axis.positive_prompt if side == "positive" else axis.negative_prompt
    trait = prompts.trait(axis, side)
    if prompts.very(trait).startswith("very "):  # only an adjective can be extreme
        trait = f"extremely {trait.strip()}"
    return axis.wording_of(side).role or prompt or f"You are {prompts.an_assistant(trait)}."


def style(axis: Axis, side: Side) -> str:
    """How the answer is to be: "Answer in a very polite way."."""
    trait = prompts.very(prompts.trait(axis, side))
    manner = f"in a {trait} way" if trait.startswith("very ") else f"like {trait}"
    return axis.wording_of(side).style or f"Answer {manner}."


def person(axis: Axis, side: Side) -> str:
    """Who is interviewed: "somebody who is always very polite"."""
    trait = prompts.very(prompts.trait(axis, side))
    made = trait if trait.startswith("somebody who ") else f"somebody who is always {trait}"
    return axis.wording_of(side).person or made


def _two_steps(query: str, axis: Axis, side: Side, chat: bool) -> RequestText:
    return RequestText(prompts.describe(query, axis, side))


def _list(query: str, axis: Axis, side: Side, chat: bool) -> RequestText:
    return RequestText(prompts.prompted(query, axis, side))


def _role(query: str, axis: Axis, side: Side, chat: bool) -> RequestText:
    return RequestText(f"{role(axis, side)} {query.strip()}")


def _system(query: str, axis: Axis, side: Side, chat: bool) -> RequestText:
    return RequestText(query.strip(), role(axis, side))


def _style(query: str, axis: Axis, side: Side, chat: bool) -> RequestText:
    return RequestText(f"{prompts.sentence(query)} {style(axis, side)}")


def _interview(query: str, axis: Axis, side: Side, chat: bool) -> RequestText:
    frame = f"The following is an interview with {person(axis, side)}."
    if not chat:  # the form of a base model is that of an interview already
        return RequestText(query.strip(), frame)
    return RequestText(f"{frame}\n\nQuestion: {query.strip()}\nAnswer:")


def _own(query: str, axis: Axis, side: Side, chat: bool) -> RequestText:
    return RequestText((axis.wording_of(side).own or QUERY).replace(QUERY, query.strip()))


FORMS: dict[str, RequestForm] = {
    form.name: form
    for form in (
        RequestForm("style", "style", _style),
        RequestForm("role", "role", _role),
        RequestForm("system", "role", _system),
        RequestForm("interview", "interview", _interview),
        RequestForm("list", "list", _list),
        RequestForm("own", "own", _own, needs="own"),
        RequestForm(TWO_STEPS, "list", _two_steps, two_steps=True),
    )
}
PROBES = tuple(FORMS[name] for name in ("style", "role", "interview"))
"""The forms that texts of all forms are judged by: of three families, in one step. More of them say
the same (docs/method.md, section 1)."""


def check_request(name: str, axis: Axis | None = None) -> None:
    """Raise `BadInputError` unless `name` is a form, or `auto`, that the axis can be asked in."""
    if name == AUTO:
        return
    if name not in FORMS:
        raise BadInputError(
            f"no form of request is called '{printable(name, 40)}'",
            near_hint(name, [AUTO, *FORMS], "forms"),
        )
    form = FORMS[name]
    if axis is not None and not form.fits(axis):
        raise BadInputError(
            f"the axis {axis.name} has no words for the form {name}",
            f"write them into its file: {form.needs} under [requests.positive] and"
            " [requests.negative]",
        )
