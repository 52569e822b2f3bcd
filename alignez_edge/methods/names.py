"""The names of the methods that find directions, and of the ways in which they are injected.

Light: `--help` imports it.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignez_edge.errors import BadInputError

METHODS: dict[str, str] = {
    "alignez": "SVD of the pairs' differences (version 2), displaced by their natural length",
    "alignez-v1": "first singular vectors of each side (version 1): the mean of the papers' edit",
    "alignez-v2": "version 2's own edit: doubled along the directions of the pairs' differences",
    "affine": "moved, along those directions, to the mean of the wanted side",
    "mean": "difference of the two sides' means",
    "caa": "difference of means at one layer, the same for every token (Panickssery et al.)",
    "pca": "first principal direction of the differences, the same for every token (repeng)",
    "iti": "shifts of the attention heads that tell the sides apart best (Li et al.)",
    "recontrol": "a value function on the last hidden state moves the logits (Kong et al.)",
}
DEFAULT_METHOD = "alignez"
BY_QUERY = ("alignez", "alignez-v1", "alignez-v2")
"""The methods that can look at the query (`--neighbors`)."""


def check_method(name: str, neighbors: int | None, layers: Sequence[int] | None) -> None:
    """Raise `BadInputError` unless the method can be had, with these options."""
    from alignez_edge.files.text import near_hint

    if name not in METHODS:
        raise BadInputError(f"no method is called {name!r}", near_hint(name, METHODS, "methods"))
    if neighbors is not None and name not in BY_QUERY:
        raise BadInputError(
            f"the method {name} does not look at neighbours",
            f"methods that do are {', '.join(BY_QUERY)}",
        )
    if neighbors is not None and neighbors < 1:
        raise BadInputError(f"{neighbors} neighbours are too few", "10 are usual")
    if name == "recontrol" and layers is not None:
        raise BadInputError("the method recontrol edits no layers", "leave --layers out")
