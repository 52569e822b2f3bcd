"""`alignez profile verify`: does a profile fit a model, and does it do there what it says?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignez_edge.errors import AlignezError, BadInputError, ProfileFileError
from alignez_edge.files.text import printable
from alignez_edge.files.writing import place_of

from ..groups import grouped
from ..layout import table
from ..options import ModelOptions
from ..output import Output
from .cards import verdict_facts, verdict_line

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile
    from alignez_edge.profile.verify import Effect, Verification
    from alignez_edge.runtime.model import Model


@grouped
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A profile.")],
    *,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="On a finetune of its model: measure strength 1 again and save it."
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Where --calibrate saves; else in the library, or in the file's place.",
        ),
    ] = None,
    loading: ModelOptions,
    out: Output,
) -> None:
    """Check whether a profile fits a model and does there what it did where it was made.

    It is made for the same model, for one of the same shape with other weights (a finetune: use it
    with care, or --calibrate), or it does not fit (exit code 2). Then the few pairs that it carries
    are replayed; an effect that is not the one it tells of is exit code 1, and so is a verdict of
    the build other than `works`.
    """
    from alignez_edge.calibration.verdict import Verdict
    from alignez_edge.modelfiles.fingerprint import Fit
    from alignez_edge.profile.profile import Profile
    from alignez_edge.profile.verify import verify as replay

    path = loading.find(name)
    profile = Profile.load(path)
    if output is not None and not calibrate:
        raise BadInputError("-o needs --calibrate", "add --calibrate")
    if output is not None:
        place_of(output)  # before the work
    with loading.load(out) as model:
        try:
            with out.progress() as progress:
                found = replay(profile, model, lambda *at: progress("replaying", *at))
        except ProfileFileError:
            out.record(_record(profile, path, model, None))
            raise
        record = _record(profile, path, model, found)
        lines = _card(profile, path, model, found)
        if calibrate:
            target = _calibrated(profile, path, model, found, output, out)
            record["calibrated"] = str(target)
            lines.append(f"strength 1 measured anew: {target}")
    out.record(record)
    out.result("\n".join(lines))
    if calibrate:
        return
    if found.comparison.fit is not Fit.SAME:
        out.notice(
            "warning: strength 1 may be stronger or weaker on this model (measure it: --calibrate)"
        )
    elif found.as_before is False:
        raise AlignezError("the effect is not what the profile says", _advice(profile, model))
    verdict = Verdict.of(profile)
    if verdict is not None and not verdict.works:
        raise AlignezError(f"the profile does not work as it should: {verdict.verdict}")


def _calibrated(
    profile: Profile,
    path: Path,
    model: Model,
    found: Verification,
    output: str | None,
    out: Output,
) -> Path:
    """Measure strength 1 on `model` and save the profile; where it went."""
    from alignez_edge.modelfiles.fingerprint import Fit
    from alignez_edge.profile.library import ProfileLibrary
    from alignez_edge.profile.verify import recalibrate

    if found.comparison.fit is Fit.SAME and found.as_before:
        raise BadInputError(
            "the profile was made for this model: its strength is already measured",
            "--calibrate is for a model of the same shape with other weights",
        )
    with out.progress() as progress:
        made = recalibrate(profile, model, lambda *at: progress("calibration", *at))
    library = ProfileLibrary()
    place = path.resolve()
    known = next((entry for entry in library.list() if entry.path.resolve() == place), None)
    if output is None and known is not None:
        return library.save(known.name, made)  # beside the one that was measured, which stays
    target = path if output is None else Path(output)
    made.save(target)
    return target


def _answer(found: Verification) -> str:
    from alignez_edge.modelfiles.fingerprint import Fit

    differing = found.comparison.differing
    if found.comparison.fit is Fit.SAME:
        return "the same model"
    if {"weights", "adapter"} & set(differing):
        return f"the same shape, other weights ({', '.join(differing)} differ): a finetune of it?"
    return f"the same weights as far as they are told apart, but another {' and '.join(differing)}"


def _advice(profile: Profile, model: Model) -> str:
    if profile.fingerprint.formats == model.fingerprint.formats:
        return "the file or the model is not what it was: do not rely on the profile"
    return "a coarse quantization can do that: measure its strength here with --calibrate"


def _card(profile: Profile, path: Path, model: Model, found: Verification) -> list[str]:
    facts = model.facts
    rows = [
        ("file", str(path)),
        ("made for", profile.model or "?"),
        ("model", f"{facts.name}, {facts.quantization}"),
        ("answer", _answer(found)),
    ]
    if found.before is None or found.now is None:
        rows.append(("effect", "not checked: the profile carries no pairs to replay"))
    else:
        rows.append(("effect", _effect(found.before, found.now, found.pairs)))
    rows.append(("verdict", verdict_line(profile, long=True)))
    return [
        f"{profile.name}: {profile.axis}",
        table([(key, printable(value)) for key, value in rows], indent="  "),
    ]


def _effect(before: Effect, now: Effect, pairs: int) -> str:
    return (
        f"+1 and -1 lie {now.span:.3f} nats per token apart on {pairs} pairs, "
        f"{before.span:.3f} when it was made"
    )


def _record(
    profile: Profile, path: Path, model: Model, found: Verification | None
) -> dict[str, Any]:
    from alignez_edge.modelfiles.fingerprint import compare

    comparison = compare(profile.fingerprint, model.fingerprint)
    effects = (found.before, found.now) if found else (None, None)
    return {
        "profile": str(path),
        "axis": profile.name,
        "model": model.path.name,
        "fit": comparison.fit.word,
        "differing": list(comparison.differing),
        "pairs": found.pairs if found else 0,
        "effect_before": asdict(effects[0]) if effects[0] else None,
        "effect_now": asdict(effects[1]) if effects[1] else None,
        "as_before": found.as_before if found else None,
        **verdict_facts(profile),
    }
