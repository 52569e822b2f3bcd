"""Building a profile again from what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.profile.provenance import (
    ModelFile,
    Provenance,
    Source,
    Texts,
    queries_digest,
    versions,
)

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model


def build_like(
    model: Model,
    profile: Profile,
    *,
    queries: Sequence[str] | None = None,
    pairs: str | Path | None = None,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    neighbors: int | None = None,
    work: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Profile:
    """Build a profile again: the same axis, texts and options, on `model`.

    On the same model, with the same number of threads and versions, the result is equal to
    `profile` but for the time. `method`, `layers` and `neighbors`, where they are given, take the
    place of those that it was built with. `queries` or `pairs` (a file) are needed where the
    profile does not contain its queries and they are not the built-in ones. Raises `BadInputError`
    if the profile says nothing of its build, and if these are not what it was built from.
    """
    from alignez_edge.build.build import build_profile
    from alignez_edge.profile.kept_pairs import kept_pairs

    found = Provenance.of(profile)
    if found is None:
        raise BadInputError(
            f"the profile {printable(profile.name)} does not say how it was built",
            "only a profile that `alignez build` made can be built again",
        )
    asked = None
    if found.source.kind == "pairs":
        _check_pairs(found.source, profile, pairs)
    elif pairs is not None:
        raise BadInputError(
            "it was built from queries, not from labelled pairs", "leave out --pairs"
        )
    else:
        asked = _queries(found.source, profile, queries)
    texts: Texts = "some" if kept_pairs(profile) else "none"
    if found.source.queries:
        texts = "all"
    return build_profile(
        model,
        profile.axis,
        queries=asked,
        pairs=pairs,
        method=profile.method if method is None else method,
        layers=found.layers if layers is None else layers,
        neighbors=found.neighbors if neighbors is None else neighbors,
        seed=profile.seed,
        width=found.width,
        ctx=found.ctx,
        limit=found.limit,
        request=found.request,
        texts=texts,
        work=work,
        on_progress=on_progress,
        on_notice=on_notice,
        author=profile.author,
        licence=profile.licence,
    )


def threads_of(profile: Profile) -> int | None:
    """The threads that a profile was built with, which rounding depends on; None if it does not
    say, or if this machine has fewer cores."""
    provenance = Provenance.of(profile)
    if provenance is None or provenance.threads > (os.cpu_count() or 1):
        return None
    return provenance.threads


def differences(profile: Profile, model: Model) -> str:
    """What is not as it was when a profile was built, of what its numbers depend on; '' if
    building it again gives the same, as far as that can be told without building it."""
    provenance = Provenance.of(profile)
    facts: list[tuple[str, object, object]] = [
        (name, profile.versions.get(name), now) for name, now in versions().items()
    ]
    if provenance is not None:
        facts += [
            ("the model's file", provenance.model.sha256, ModelFile.of(model).sha256),
            ("threads", provenance.threads, model.threads),
        ]
    facts.append(("adapters", profile.fingerprint.adapter, model.fingerprint.adapter))
    return ", ".join(name for name, then, now in facts if then != now)


def _queries(source: Source, profile: Profile, offered: Sequence[str] | None) -> list[str]:
    """The queries of a build: those offered, else those in the file or the built-in ones."""
    name = printable(profile.name)
    for place in [source.queries, *_builtin(profile.name)] if offered is None else [offered]:
        queries = list(dict.fromkeys(place))[: source.count]
        if queries_digest(queries) == source.sha256:
            return queries
    if offered is None:
        raise BadInputError(
            f"the profile {name} does not contain its {source.count} queries",
            "give them: --queries FILE",
        )
    raise BadInputError(
        f"these are not the {source.count} queries that the profile {name} was built with",
        f"the right ones, one a line, have the SHA-256 {source.sha256}",
    )


def _builtin(name: str) -> list[Sequence[str]]:
    from alignez_edge.demo.bundled import demo_queries
    from alignez_edge.preferences.axes import Axis, builtin_names

    own = [Axis.builtin(name).queries] if name in builtin_names() else []
    return [*own, [entry["query"] for entry in demo_queries("build")]]


def _check_pairs(source: Source, profile: Profile, pairs: str | Path | None) -> None:
    from alignez_edge.preferences.pairs import read_labelled_pairs

    name = printable(profile.name)
    if pairs is None:
        raise BadInputError(
            f"the profile {name} does not contain the {source.count} pairs that it was built from",
            "give them: --pairs FILE",
        )
    if Source.of_pairs(read_labelled_pairs(pairs, profile.axis).pairs) != source:
        raise BadInputError(f"these are not the pairs that the profile {name} was built from")
