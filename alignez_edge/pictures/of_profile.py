"""Pictures of profiles: out of their files alone, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from alignez_edge.arrays import AnyFloatArray
from alignez_edge.calibration.unit import Measured
from alignez_edge.directions.geometry import Geometry, principal_plane
from alignez_edge.directions.subspace import first_direction
from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.files.untrusted import LARGEST, numbers
from alignez_edge.pictures.drawing import Chart, Curve, Heat, Numbers, Panel, Picture
from alignez_edge.profile.mix import Mixture, check_same_model, displacements, interferences
from alignez_edge.profile.profile import Profile

if TYPE_CHECKING:
    from alignez_edge.interventions.neighborhood import Neighborhood


LAYER = "layer (0 is the first)"
COSINE = "cosine (−1 to 1)"
HELP, HARM = "θ help", "θ harm"
SIDES = ("prompting for the wanted side", "prompting for the unwanted side")
MOST_LAYERS = 6
"""Layers of which the directions of all queries are drawn: those that tell the sides apart best."""


def strength_of(profile: Profile) -> Picture:
    """What calibration measured: effect and cost over strength.

    Raises `BadInputError` if the profile keeps no such curve.
    """
    found = Measured.of(profile)
    if found is None:
        raise BadInputError(
            f"the profile {_name(profile)} keeps no calibration curve", "measure it: alignez eval"
        )
    # 0 is the base model and always at 0.
    rows = np.stack([found.strengths, found.effect, found.cost], axis=1)
    rows = np.concatenate([rows, np.zeros((1, 3))])
    if not np.abs(rows).max() < LARGEST:
        raise BadInputError(f"the numbers of the profile {_name(profile)} are too large to draw")
    x, above, cost = (tuple(column.tolist()) for column in rows[np.argsort(rows[:, 0])].T)
    asked = [tuple(map(float, levels)) for levels in found.prompted or ((), ())]
    names = (
        ("effect", "towards the wanted side (nats per token)")
        if found.free
        else ("preference for the wanted answer", "margin over plain (nats per token)"),
        ("cost", "above plain (nats per token)")
        if found.free
        else ("KL", "KL from the plain model (nats per token)"),
    )
    panels = [
        Chart(
            title, "strength (1: as calibrated)", label, (Curve("steered", x, y),), _asked(levels)
        )
        for (title, label), y, levels in zip(names, (above, cost), asked, strict=True)
    ]
    what = (
        "effect and cost over strength, on answers written freely"
        if found.free
        else "margin and KL over strength, on pairs held back for calibration"
    )
    return Picture(f"{_of(profile)}: {what}", (tuple(panels),))


def layers_of(profile: Profile) -> Picture:
    """How far apart the sides lie, and how their directions agree, layer by layer.

    The papers' figure 4c with the separation that the layers were chosen by. What the file does
    not keep is said in the notes; raises `BadInputError` if it keeps none of it.
    """
    n_layer = profile.vector.n_layer
    panels: list[Panel] = []
    notes = []
    if apart := _by_layer(profile, "separation"):
        panels.append(
            _chart_by_layer(
                "how far apart the sides lie", "d′ (standard deviations)", apart, profile
            )
        )
    else:
        notes.append("the file keeps no separation by layer")
    if geometry := Geometry.of(profile.report, profile.vector.n_layer):
        between = _chart_by_layer(
            "cosine of θ help and θ harm", COSINE, geometry.help_harm, profile
        )
        counts = tuple(map(float, range(2, n_layer + 1)))
        panels += [
            between,
            Chart(
                "mean cosine between layers",
                "layers chosen, best first",
                COSINE,
                (Curve(HELP, counts, geometry.by_count),),
            ),
        ]
    else:
        notes.append("the file keeps no geometry of its directions: build it again to have it")
        if agreement := _by_layer(profile, "interlayer_cosine"):
            panels.append(
                _chart_by_layer("mean cosine with the other layers", COSINE, agreement, profile)
            )
    if not panels:
        raise BadInputError(
            f"the report of {_name(profile)} says nothing of its layers",
            "a profile that `alignez build` wrote does",
        )
    return Picture(
        f"{_of(profile)}: its sides and directions by layer", (tuple(panels),), tuple(notes)
    )


def directions_of(profiles: Sequence[Profile]) -> Picture:
    """All directions in their first two principal components: the papers' figure 5.

    Of one profile, those of help and harm: for every query that it remembers, or, where it
    remembers none, for every layer. Of several, what each of them moves its layers along. Raises
    `ProfileFileError` if they are for different models.
    """
    check_same_model(profiles)
    if len(profiles) > 1:
        return _displacements(profiles)
    profile = profiles[0]
    if profile.neighbors is not None:
        return _of_queries(profile, profile.neighbors)
    if geometry := Geometry.of(profile.report, profile.vector.n_layer):
        curves = tuple(
            Curve(name, *_columns(side), joined=False, labels=tuple(map(str, range(len(side)))))
            for name, side in zip((HELP, HARM), geometry.plane, strict=True)
        )
        title = f"{_of(profile)}: θ help and θ harm by layer (numbers) in two principal components"
        return Picture(title, ((_plane("all layers", curves, geometry.share),),))
    note = "the file keeps no directions of help and harm: build it again to have them"
    return _displacements(profiles, (note,))


def interference_of(profiles: Sequence[Profile]) -> Picture:
    """How far strength 1 of each profile moves along the axis of each other.

    Of one profile that is a mix: its parts. Raises `BadInputError` for one that is none, and
    `ProfileFileError` if they are for different models.
    """
    if len(profiles) > 1:
        check_same_model(profiles)
        names = _distinct(profiles)
        what = "how far strength 1 of each profile moves along each axis"
        return Picture(
            f"Interference: {what}", ((_matrix(names, interferences(profiles, profiles), ""),),)
        )
    profile = profiles[0]
    mixture = Mixture.of(profile)
    if mixture is None:
        raise BadInputError(
            f"interference needs several profiles or a mix, not {_name(profile)} alone",
            "name several: alignez plot interference polite formal",
        )
    names = tuple(part.profile for part in mixture.parts)
    panels = [_matrix(names, mixture.interference, "as they are")]
    if mixture.remaining:
        panels.append(_matrix(names, mixture.remaining, "orthogonalised, along the axes as before"))
    return Picture(f"{_of(profile)}: interference of its parts", (tuple(panels),))


def _matrix(names: tuple[str, ...], values: Sequence[Sequence[float]], title: str) -> Heat:
    rows = tuple(tuple(map(float, row)) for row in values)
    return Heat(
        title,
        "along the axis of",
        "profile",
        names,
        names,
        rows,
        "share of the axis' own effect",
        upwards=False,
    )


def _displacements(profiles: Sequence[Profile], notes: tuple[str, ...] = ()) -> Picture:
    """The unit displacements of all edited layers, at either position."""
    found = [displacements(profile)[:, list(profile.layers)] for profile in profiles]
    rows = [group.reshape(-1, group.shape[-1]) for group in found]
    lengths = [np.linalg.norm(group, axis=1, keepdims=True) for group in rows]
    units = [
        np.divide(group, length, out=np.zeros_like(group), where=length > 0)
        for group, length in zip(rows, lengths, strict=True)
    ]
    plane, share = principal_plane(np.concatenate(units))
    groups = np.split(plane, np.cumsum([len(group) for group in rows])[:-1])
    curves = []
    for name, profile, group in zip(_distinct(profiles), profiles, groups, strict=True):
        labels = tuple(map(str, profile.layers))
        for position, part in zip(
            ("last prompt token", "later tokens"), np.split(group, 2), strict=True
        ):
            curves.append(
                Curve(f"{name}, {position}", *_columns(part), joined=False, labels=labels)
            )
    names = ", ".join(map(_name, profiles))
    title = f"{names}: directions by layer (numbers) in two principal components"
    return Picture(title, ((_plane("displacements of unit length", tuple(curves), share),),), notes)


def _of_queries(profile: Profile, near: Neighborhood) -> Picture:
    """θ help and θ harm of every query that the bank holds, from its nearest pairs, by layer."""
    bank = near.bank
    layers = sorted(near.recipe.layers or bank.layers)
    if apart := _by_layer(profile, "separation"):
        layers = sorted(sorted(layers, key=lambda layer: -apart[layer])[:MOST_LAYERS])
    nearest = []
    for i in range(bank.n_pairs):
        states = np.zeros((bank.layers[-1] + 1, bank.n_embd), np.float32)
        states[list(bank.layers)] = bank.queries[:, i] * bank.query_scales[:, None]
        nearest.append(bank.nearest(states, near.recipe.k))
    panels = []
    for layer in layers[:MOST_LAYERS]:
        sides = [bank.sides(rows, "deciding", layer) for rows in nearest]
        helps = [first_direction(side.chosen) for side in sides]
        harms = [first_direction(side.rejected) for side in sides]
        plane, share = principal_plane(np.stack(helps + harms))
        curves = tuple(
            Curve(name, *_columns(side), joined=False)
            for name, side in zip((HELP, HARM), np.split(plane, 2), strict=True)
        )
        panels.append(_plane(f"layer {layer}", curves, share))
    k = min(near.recipe.k, bank.n_pairs)
    title = (
        f"{_of(profile)}: θ help and θ harm of {bank.n_pairs} queries, each of {k} nearest pairs"
    )
    across = 2 if len(panels) == 4 else 3
    rows = tuple(tuple(panels[at : at + across]) for at in range(0, len(panels), across))
    return Picture(title, rows)


def _plane(title: str, curves: tuple[Curve, ...], share: Sequence[float] | AnyFloatArray) -> Chart:
    labels = [
        f"{which} component ({100 * part:.0f} % of variance)"
        for which, part in zip(("first", "second"), share, strict=True)
    ]
    return Chart(title, labels[0], labels[1], curves, square=True)


def _chart_by_layer(title: str, label: str, values: Numbers, profile: Profile) -> Chart:
    layers = tuple(map(float, range(len(values))))
    edited = tuple(values[layer] for layer in profile.layers)
    return Chart(
        title,
        LAYER,
        label,
        (
            Curve("all layers", layers, values),
            Curve(
                "layers that are edited", tuple(map(float, profile.layers)), edited, joined=False
            ),
        ),
    )


def _by_layer(profile: Profile, key: str) -> Numbers | None:
    """A number per layer out of the report; an untrusted file's may hold anything."""
    try:
        return numbers(profile.report.get(key), profile.vector.n_layer)
    except (TypeError, ValueError, OverflowError):
        return None


def _asked(levels: object) -> tuple[tuple[str, float], ...]:
    try:
        return tuple(zip(SIDES, numbers(levels, len(SIDES)), strict=True))
    except (TypeError, ValueError):
        return ()


def _columns(points: Sequence[Sequence[float]] | AnyFloatArray) -> tuple[Numbers, Numbers]:
    return tuple(float(p[0]) for p in points), tuple(float(p[1]) for p in points)


def _distinct(profiles: Sequence[Profile]) -> tuple[str, ...]:
    """Their names, numbered where they repeat."""
    names = [profile.name for profile in profiles]
    return tuple(
        f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    )


def _name(profile: Profile) -> str:
    return printable(profile.name, 60)


def _of(profile: Profile) -> str:
    return _name(profile) + (f" for {printable(profile.model, 60)}" if profile.model else "")
