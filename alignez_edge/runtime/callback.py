"""llama.cpp's evaluation callback: who looks at which tensor while a graph is computed.

It is called for every node of the graph, twice where somebody wants it: where nobody wants
anything it is almost free. An exception in it would be printed and swallowed by ctypes, Ctrl-C
included: it ends the pass instead, and whoever runs the pass raises it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from alignez_edge.runtime.llama import cpp, ggml
from alignez_edge.runtime.places import VectorPlaces
from alignez_edge.runtime.reference import Reference
from alignez_edge.runtime.rows import RowTap


class Tap(Protocol):
    """Reads tensors while the graph is computed."""

    def wants(self, name: bytes) -> bool:
        """Whether the tensor of this name is to be read. Called for every node of the graph."""
        ...

    def read(self, name: bytes, tensor: int) -> bool:
        """Read a computed `ggml_tensor *`. False: nothing computed after it is needed."""
        ...


def evaluation_callback(
    taps: Sequence[Tap],
    reference: Reference,
    rows: RowTap,
    places: VectorPlaces,
    errors: list[BaseException],
) -> Any:
    """The ctypes callback around what looks at tensors; keep a reference to it while it is set. It
    refers to no context, so that one that is dropped is freed at once, not at a later collection.

    What is raised in it stands in `errors`, the last one only.
    """
    get_name = ggml.get_name
    all_taps: list[Tap] = [*taps, reference, rows]

    @cpp.ggml_backend_sched_eval_callback
    def callback(tensor: int, ask: bool, user_data: Any) -> bool:
        if ask and not (taps or reference.active or places.sought):  # a token's usual case
            return bool(rows.wanted) and get_name(tensor) in rows.wanted
        try:
            name = get_name(tensor)
            if ask and places.sought:
                places.look_at(name, tensor)
            wanted, goes_on = False, True
            for tap in all_taps:
                if tap.wants(name):
                    wanted = True
                    goes_on = (ask or tap.read(name, tensor)) and goes_on
            return wanted and goes_on
        except BaseException as error:
            errors[:] = [error]
            return False

    return callback
