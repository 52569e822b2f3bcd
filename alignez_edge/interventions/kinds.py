"""The kinds of intervention that a profile can have, each in a file of its own."""

from __future__ import annotations

from alignez_edge.files.gguffile import GGUFFile
from alignez_edge.files.untrusted import Keys
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.intervention import Intervention
from alignez_edge.interventions.neighborhood import Neighborhood
from alignez_edge.interventions.value_function import ReControl

KINDS: tuple[type[Intervention], ...] = (ExactForm, Neighborhood, ReControl)


def read_intervention(file: GGUFFile, keys: Keys, n_layer: int, n_embd: int) -> Intervention | None:
    """What a profile's file has beside its control vector; None for nothing.

    Raises as `Intervention.read` does, and `ValueError` if a file has more than one.
    """
    found = [kind.read(file, keys, n_layer, n_embd) for kind in KINDS]
    there = [each for each in found if each is not None]
    if len(there) > 1:
        raise ValueError(
            "of an exact form, neighbors and a value function a profile can have one only"
        )
    return there[0] if there else None
