"""The methods that find directions: all of them, by name.

Light, as `--help` imports it: `method` imports the file of a method when it is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from alignez_edge.errors import BadInputError

if TYPE_CHECKING:
    from alignez_edge.methods.base import Method


@dataclass(frozen=True)
class Entry:
    """A method in a line. `by_query`: it can look at the query (`--neighbors`); `edits_layers`:
    there are layers to choose (`--layers`)."""

    about: str
    by_query: bool = False
    edits_layers: bool = True


METHODS: dict[str, Entry] = {
    "alignez": Entry(
        "SVD of the pairs' differences (version 2), displaced by their raw difference",
        by_query=True,
    ),
    "alignez-v1": Entry(
        "first singular vectors of each side (version 1): the mean of the papers' edit",
        by_query=True,
    ),
    "alignez-v2": Entry(
        "version 2's own edit: doubled along the directions of the pairs' differences",
        by_query=True,
    ),
    "affine": Entry("moved, along those directions, to the mean of the wanted side"),
    "mean": Entry("difference of the two sides' means"),
    "caa": Entry("difference of means at one layer, the same for every token (Panickssery et al.)"),
    "pca": Entry("first principal direction of the differences, the same for every token (repeng)"),
    "iti": Entry("shifts of the attention heads that tell the sides apart best (Li et al.)"),
    "recontrol": Entry(
        "a value function on the last hidden state moves the logits (Kong et al.)",
        edits_layers=False,
    ),
}
"""`alignez-v1` is the `METHOD` of the file `alignez_v1.py`, and so on."""
DEFAULT_METHOD = "alignez"
BY_QUERY = tuple(name for name, entry in METHODS.items() if entry.by_query)


def method(name: str) -> Method:
    """The method of a name in `METHODS`."""
    file = import_module(f"alignez_edge.methods.{name.replace('-', '_')}")
    return cast("Method", file.METHOD)


def check_method(name: str, neighbors: int | None, layers: Sequence[int] | None) -> None:
    """Raise `BadInputError` unless the method can be had, with these options."""
    from alignez_edge.files.text import near_hint

    if name not in METHODS:
        raise BadInputError(f"no method is called {name!r}", near_hint(name, METHODS, "methods"))
    if neighbors is not None and not METHODS[name].by_query:
        raise BadInputError(
            f"the method {name} does not look at neighbors",
            f"methods that do are {', '.join(BY_QUERY)}",
        )
    if neighbors is not None and neighbors < 1:
        raise BadInputError(f"{neighbors} neighbors are too few", "10 are usual")
    if layers is not None and not METHODS[name].edits_layers:
        raise BadInputError(f"the method {name} edits no layers", "leave --layers out")
