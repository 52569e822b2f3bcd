"""What `alignez build` tells of the profile that it has made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .layout import paragraph
from .output import duration
from .profile.cards import (
    effect_table,
    effect_title,
    forms,
    strength_line,
    texts_stored,
    verdict_facts,
    verdict_line,
)

if TYPE_CHECKING:
    from alignez_edge.profile.profile import Profile


def record(profile: Profile, path: Path, seconds: dict[str, float]) -> dict[str, object]:
    """A new profile as `--json` says it; `seconds` are those of each step."""
    return {
        "profile": str(path),
        "axis": profile.name,
        "method": profile.method,
        "layers": list(profile.layers),
        "pairs": profile.pairs,
        "pairs_dropped": sum(profile.dropped.values()),
        "strength": profile.unit,
        "strength_negative": profile.unit_negative or profile.unit,
        "seconds": seconds,
        "calibration": dict(profile.calibration),
        "request": profile.report.get("request"),
        **verdict_facts(profile),
    }


def _asked(profile: Profile) -> str:
    """In which form the pairs were asked for, and how well its sides came out in the trial."""
    from alignez_edge.preferences.choice import RequestChoice

    found = profile.report.get("request")
    if found is None:  # from labelled pairs
        return ""
    choice = RequestChoice.of(found)
    tried = next((score for score in choice.scores if score.form == choice.form), None)
    if tried is None:
        return f"in the form {choice.form}"
    if not choice.works:
        return f"in the form {choice.form}, but no form tells the sides apart on this model"
    return (
        f"in the form {choice.form}, the best of {len(choice.scores)}: its sides"
        f" {tried.span:.2f} nats per token apart, {tried.right:.0%} the right way round"
    )


def summary(profile: Profile, path: Path, seconds: float, suggestion: str) -> str:
    """The same for a person, with a line that suggests what to try."""
    dropped = sum(profile.dropped.values())
    layers = ", ".join(map(str, profile.layers))
    reasons = ", ".join(f"{n} {reason}" for reason, n in profile.dropped.items())
    lines = [
        f"{profile.name}: {profile.axis}",
        f"  profile     {path}",
        f"  pairs       {profile.pairs}" + (f" ({dropped} dropped: {reasons})" if dropped else ""),
        *([f"  asked       {asked}"] if (asked := _asked(profile)) else []),
        *([f"  layers      {layers}"] if layers else []),
        f"  acts as     {forms(profile)}",
        f"  strength 1  {strength_line(profile)}",
        f"  texts       {texts_stored(profile)} in the file",
        f"  time        {duration(seconds)}",
    ]
    if effect := effect_table(profile, indent="  "):
        lines += ["", effect_title(profile), effect]
    return "\n".join([*lines, "", paragraph(verdict_line(profile, long=True)), "", suggestion])
