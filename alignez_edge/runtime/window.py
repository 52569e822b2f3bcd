"""How many tokens a prompt and its answer have room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_edge.chat.messages import fold_system
from alignez_edge.chat.preamble import Preamble
from alignez_edge.errors import BadInputError, PromptTooLongError
from alignez_edge.files.text import printable

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import Weights
DEFAULT_CONTEXT = 4096
"""Tokens of context where nothing is asked for: a long chat, at a modest cache (128 MB in a
1 B model); models trained on less get what they were trained on."""


def window(model: Weights, n_ctx: int | None) -> int:
    """The tokens of one sequence: `n_ctx` checked against the model, or a sensible default."""
    trained = model.n_ctx_train
    if n_ctx is None:
        return min(trained, DEFAULT_CONTEXT)
    if n_ctx < 1:
        raise BadInputError(f"a context of {n_ctx} tokens", "it must be at least 1")
    if n_ctx > trained:
        raise BadInputError(
            f"a context of {n_ctx} tokens, but the model was trained with {trained}",
            f"use at most {trained}",
        )
    return n_ctx


def check_fits(n_tokens: int, n_ctx: int, what: str = "the prompt") -> None:
    """Raise `PromptTooLongError` unless `n_tokens` and one more fit a window of `n_ctx`."""
    if n_tokens + 1 > n_ctx:
        raise PromptTooLongError(
            f"{what} has {n_tokens} tokens, the context window only {n_ctx}",
            "shorten it, or use a larger context where the model allows it (--ctx, n_ctx)",
        )


def preamble_notices(preamble: Preamble, model: Weights, n_ctx: int | None = None) -> list[str]:
    """What a user should know about how a preamble gets into `model`, one line each.

    Raises `PromptTooLongError` if it leaves no room in a window of `n_ctx` tokens (default
    as for a `Session`), and whatever the model's template raises.
    """
    if not preamble.messages:
        return []
    asked = preamble.before([{"role": "user", "content": "?"}])
    prompt = model.prompt(asked)
    room = window(model, n_ctx)
    if len(prompt.tokens) + 1 > room:
        larger = " or use a larger context (--ctx)" if room < model.n_ctx_train else ""
        raise PromptTooLongError(
            f"the system prompt {printable(preamble.name)} takes {len(prompt.tokens)} tokens,"
            f" the context window has only {room}",
            f"use a shorter one{larger}",
        )
    if model.template and prompt.text == model.prompt(fold_system(asked)).text:
        return [
            "the model's chat template has no place of its own for a system prompt:"
            " it stands before the first question"
        ]
    return []
