"""The one exception tree of the project.

Raised where the fact is known, with what was expected, what was found and what to do. The face
prints `error: <message>` and, where there is one, `hint: <hint>`, and leaves with `exit_code`.
"""

from __future__ import annotations


class AlignezError(Exception):
    """Something failed that the user should read about in one line.

    `message` is one line; `hint` (optional) is one line that says what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInputError(AlignezError):
    """Wrong use or bad input: a file, an option or a text that cannot be worked with."""

    exit_code = 2


class ModelFileError(BadInputError):
    """A file that is not a usable GGUF language model."""


class ProfileFileError(BadInputError):
    """A file that is not a usable steering profile, or one that does not fit the model."""


class AxisError(BadInputError):
    """An axis that is unknown, incomplete or malformed."""


class PromptTooLongError(BadInputError):
    """A prompt that does not fit into the context window."""


class BusyError(AlignezError):
    """So much is waiting already that nothing more is taken."""


class RuntimeFailure(AlignezError):
    """llama.cpp refused or failed at something that was valid input."""
