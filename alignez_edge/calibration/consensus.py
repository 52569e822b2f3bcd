"""How much of a side is in a text, judged by the model itself: consensus among forms of request.

A text that was written for one form of request is scored by how much likelier the model finds it
under the positive than under the negative request of *other* forms, the probes:

    evidence(text, probe) = (log p(text | probe, positive) - log p(text | probe, negative)) / n

in nats per token. What only belongs to one form (its frame coming back, a list) does not count,
because the others do not expect it; forms that ask in the same words are no probes for each other.
Neither do the words of the requests count: a token of the text that is part of such a word counts
as 0, so that a model that answers "I am an extremely cheerful assistant" gains nothing by it.

A model understands some probes better than others, and no form is judged by its own. So that forms
can be compared, the span between the sides is taken for a product, `span(form, probe) =
span(form) * weight(probe)`, with weights of mean 1, and solved for by least squares (`weigh`). A
pair's score is then the least-squares estimate of its own span, in which a probe that the model
does not understand says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignez_edge.arrays import DoubleArray
from alignez_edge.preferences import prompts, requests
from alignez_edge.preferences.axes import QUERY, Axis
from alignez_edge.preferences.prompts import SIDES
from alignez_edge.preferences.requests import FORMS, PROBES, RequestForm

if TYPE_CHECKING:
    from alignez_edge.runtime.model import Model


N_TOKENS = 24
"""Tokens of a text that are read: its first sentence or two."""
_WORD = re.compile(r"[^\W\d_]+")
_ROUNDS = 2000
_SETTLED = 1e-9
"""A change of weights, of mean 1, below which they are found."""
_SHORT = 4
"""Letters that a word of a request must have to be left out of the score: shorter ones are "you",
"are", "the", which any text has."""
_ENDING = 3
"""Letters in which two forms of a word may differ at the end: cheerful, cheerfully, cheering."""


@dataclass(frozen=True)
class Text:
    """An answer to a query. `form` names the form of request that it was written for, '' for none;
    `ended` says that the model ended it by itself."""

    query: str
    text: str
    form: str = ""
    ended: bool = False


def evidence(
    model: Model,
    axis: Axis,
    texts: Sequence[Text],
    probes: Sequence[RequestForm] = PROBES,
    *,
    n_tokens: int = N_TOKENS,
    n_ctx: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DoubleArray:
    """The evidence of each text by each probe: `(n_texts, n_probes)`, nats per token.

    NaN where the text was written for a form of the probe's family; 0 for an empty text. At most
    the first `n_tokens` of a text are read.
    """
    from alignez_edge.runtime.score import score_batch

    words = words_of(axis)
    answers = [answer_tokens(model, text, n_tokens) for text in texts]
    counts = [counted(model, tokens, words) for tokens in answers]
    found = np.full((len(texts), len(probes)), np.nan)
    jobs: list[tuple[int, int, float]] = []
    items: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    chat = model.template is not None
    families = [FORMS[text.form].family if text.form else "" for text in texts]
    for query in dict.fromkeys(text.query for text in texts):
        own = [i for i, text in enumerate(texts) if text.query == query]
        for f, probe in enumerate(probes):
            for side in SIDES:
                request = probe.request(query, axis, side, chat=chat)
                prompt = model.prompt(request.messages()).tokens
                for i in own:
                    if families[i] == probe.family:
                        continue
                    found[i, f] = 0.0
                    if answers[i]:
                        jobs.append((i, f, 1.0 if side == "positive" else -1.0))
                        items.append((prompt, answers[i]))
    for done, ((i, f, sign), scores) in enumerate(
        zip(jobs, score_batch(model, items, n_ctx=n_ctx), strict=True), 1
    ):
        found[i, f] += sign * float(scores[counts[i]].sum(dtype=np.float64)) / len(scores)
        if on_progress is not None:
            on_progress(done, len(jobs))
    return found


def weigh(spans: DoubleArray) -> DoubleArray:
    """The probes' weights, `(n_probes,)`, mean 1, from the spans of forms `(n_forms, n_probes)`,
    NaN where a form has no span by a probe.

    Alternating least squares on the product of one number a form and one a probe. A probe never
    weighs less than 0.
    """
    known = ~np.isnan(spans)
    values = np.where(known, spans, 0.0)
    weights = np.ones(spans.shape[1])
    for _ in range(_ROUNDS):
        before = weights
        forms = _ratio(values @ weights, known @ weights**2)
        weights = np.maximum(_ratio(values.T @ forms, known.T @ forms**2), 0.0)
        if not weights.any():  # nothing is told by any of them
            return np.ones(spans.shape[1])
        weights /= weights.mean()
        if np.abs(weights - before).max() < _SETTLED:
            break
    return weights


def spans(found: DoubleArray, weights: DoubleArray) -> DoubleArray:
    """How far apart the two texts of each pair are, in nats per token: `(n_pairs,)`.

    `found` is the `evidence` of the texts, the wanted and the unwanted one of a pair in turn.
    """
    apart = found[::2] - found[1::2]
    known = ~np.isnan(apart)
    return _ratio(np.where(known, apart, 0.0) @ weights, known @ weights**2)


def _ratio(total: DoubleArray, weight: DoubleArray) -> DoubleArray:
    """Their quotient, 0 where nothing weighs."""
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def counted(model: Model, tokens: Sequence[int], words: frozenset[str]) -> npt.NDArray[np.bool_]:
    """Which of a text's tokens count: those that are no part of one of `words`."""
    ends = np.cumsum([0, *(len(model.token_bytes(token)) for token in tokens)])
    data = b"".join(map(model.token_bytes, tokens))
    # Half a character, where a text was cut, keeps its length in bytes.
    text = data.decode("utf-8", "surrogateescape")
    mask = np.ones(len(tokens), np.bool_)
    for match in _WORD.finditer(text):
        if any(_alike(match.group(), word) for word in words):
            begin = _size(text[: match.start()])
            mask[(ends[:-1] < begin + _size(match.group())) & (ends[1:] > begin)] = False
    return mask


def words_of(axis: Axis) -> frozenset[str]:
    """The words, in lower case, that ask for either side of an axis in any form."""
    texts = []
    for side in SIDES:
        if not prompts.is_plain(axis, side):
            forms = (requests.role, requests.style, requests.person, prompts.role, prompts.trait)
            texts += [words(axis, side) for words in forms]
            texts.append((axis.wording_of(side).own or "").replace(QUERY, ""))
    distinct = {word.casefold() for text in texts for word in _WORD.findall(text)}
    return frozenset(word for word in distinct if len(word) >= _SHORT)


def _alike(word: str, other: str) -> bool:
    """Whether two words are forms of one: they begin alike."""
    word = word.casefold()
    n = max(_SHORT, min(len(word), len(other)) - _ENDING)
    return len(word) >= _SHORT and word[:n] == other[:n]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def answer_tokens(model: Model, text: Text, n_tokens: int) -> tuple[int, ...]:
    """The tokens of an answer as the model itself would write it, with the end if it ended."""
    own = text.text.strip()
    if not own:
        return ()
    # After a blank where the model's prompt form ends in a word ("Answer:").
    tokens = model.tokenize(own if model.template else f" {own}", begin=False)
    end = model.end_token
    if text.ended and end is not None:
        tokens.append(end)
    return tuple(tokens[:n_tokens])
