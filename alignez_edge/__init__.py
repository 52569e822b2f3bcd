"""Steer quantized local language models without labels and without training.

    from alignez_edge import Axis, Model, build_profile

    model = Model.load("model.gguf")
    polite = build_profile(model, Axis("polite", positive="polite", negative="rude"), queries=[...])
    model.generate(["How do I bake bread?"], steering=polite * 0.8)

Names are imported when they are first used, so that importing the package costs nothing. What it
does at once: threads that wait for each other are told not to spin (`threads.py`), unless the user
has said how they should wait. Import it before other libraries that bring threads.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alignez_edge._version import __version__
from alignez_edge.threads import calm

if TYPE_CHECKING:
    from alignez_edge.build.build import build_profile
    from alignez_edge.errors import AlignezError
    from alignez_edge.preferences.axes import Axis
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Sampling
    from alignez_edge.steering.steering import Steering

calm()

__all__ = [
    "AlignezError",
    "Axis",
    "Model",
    "Profile",
    "Sampling",
    "Steering",
    "__version__",
    "build_profile",
]

_HOMES = {
    "AlignezError": "errors",
    "Axis": "preferences.axes",
    "Model": "runtime.model",
    "Profile": "profile.profile",
    "Sampling": "runtime.requests",
    "Steering": "steering.steering",
    "build_profile": "build.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
