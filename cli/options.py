"""The options that commands share; those that belong together are groups (`groups.py`)."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from alignez_edge.errors import BadInputError
from alignez_edge.files.reading import is_file
from alignez_edge.interventions.ways import WAYS, Way
from alignez_edge.modelfiles.names import DEMO, ModelNames

from .output import Output

if TYPE_CHECKING:
    from alignez_edge.chat.preamble import Preamble
    from alignez_edge.modelfiles.fingerprint import Fingerprint
    from alignez_edge.preferences.axes import Axis
    from alignez_edge.runtime.model import Model
    from alignez_edge.runtime.requests import Sampling
    from alignez_edge.steering.steering import Steering

MODEL_VARIABLE = "ALIGNEZ_MODEL"
DEFAULT_WIDTH = 16

ContextOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens of context; else 4096, or as in training if less."),
]
ParallelOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Prompts to work on at the same time; another N may round differently.",
    ),
]
SeedOption = Annotated[int, typer.Option(metavar="N", help="Random seed.")]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", help="CPU threads; else the physical cores.")
]
GpuLayersOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Layers on the GPU, -1 for all; else all, if there is one."),
]
ProfileOutput = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="Where the profile goes; else the library."
    ),
]


def at_least(name: str, value: int | None, least: int) -> None:
    """Raise `BadInputError` if an option is given, and below what it must be."""
    if value is not None and value < least:
        raise BadInputError(f"{name} is {value}; it must be at least {least}")


def check_seed(seed: int) -> None:
    """Raise `BadInputError` unless a profile can be built with this seed."""
    if not 0 <= seed < 1 << 63:
        raise BadInputError(f"--seed is {seed}; it must be at least 0 and below 2**63")


def find_axis(name: str) -> Axis:
    """The axis that is meant: a TOML file, or a built-in one."""
    from alignez_edge.preferences.axes import Axis

    return Axis.load(name) if name.endswith(".toml") or is_file(name) else Axis.builtin(name)


@dataclass(frozen=True)
class WhoseOptions:
    """Which model's profiles are meant."""

    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="FILE|NAME",
            help="The model whose profile is meant, if several have one of that name;"
            f" else ${MODEL_VARIABLE}.",
        ),
    ] = None

    def find(self, name: str) -> Path:
        """The profile of a name or path: where models share the name, the one for this model."""
        from alignez_edge.profile.library import ProfileLibrary

        library = ProfileLibrary()
        # Reading a model's fingerprint takes longer than all the rest.
        several = len(library.called(name)) > 1
        return library.find(name, self.fingerprint() if several else None)

    def fingerprint(self) -> Fingerprint | None:
        """That of the model, without loading it; None if no model is named."""
        name = self._named()
        return _fingerprint(name) if name is not None else None

    def try_it(self, profile: str) -> str:
        """A line that suggests a command with the profile, on this model."""
        return f'try: alignez run{self._words()} -p {profile} "Tell me about bread."'

    def _words(self) -> str:
        """` -m NAME`, or nothing where the model is the one that is taken anyway."""
        usual = os.environ.get(MODEL_VARIABLE) or DEMO
        if self.model is None or self.model == usual:
            return ""
        return f" -m {shlex.quote(self.model)}"

    def _named(self) -> str | None:
        return self.model if self.model is not None else os.environ.get(MODEL_VARIABLE) or None


def model_file(name: str) -> Path:
    """The file of a model: a short name, or a path."""
    if name == DEMO:
        from alignez_edge.demo.bundled import demo_file

        return demo_file()
    return ModelNames().find(name)


def _fingerprint(name: str, lora: Sequence[str] = ()) -> Fingerprint:
    from alignez_edge.files.gguffile import read_gguf
    from alignez_edge.modelfiles.fingerprint import fingerprint
    from alignez_edge.modelfiles.lora import parse_lora_option, read_lora

    gguf = read_gguf(model_file(name))
    attached = [parse_lora_option(text) for text in lora]
    return fingerprint(gguf, [(read_lora(file, gguf), scale) for file, scale in attached])


@dataclass(frozen=True)
class ModelOptions(WhoseOptions):
    """Which model, and how it runs."""

    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="FILE|NAME",
            help=f"A GGUF file or a short name; else ${MODEL_VARIABLE}, else the demo model.",
        ),
    ] = None
    lora: Annotated[
        list[str],
        typer.Option(
            "--lora",
            metavar="FILE[:S]",
            help="A LoRA adapter (GGUF) to attach to the model, at scale S (else 1); may be"
            " repeated.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    threads: ThreadsOption = None
    gpu_layers: GpuLayersOption = None

    def __post_init__(self) -> None:
        at_least("--threads", self.threads, 1)
        at_least("--gpu-layers", self.gpu_layers, -1)

    @property
    def is_demo(self) -> bool:
        """Whether the demo model is meant."""
        return self._named() in (None, DEMO)

    def load(self, out: Output) -> Model:
        """The model, loaded; a model that nobody asked for is said in one notice."""
        from alignez_edge.modelfiles.lora import parse_lora_option
        from alignez_edge.runtime.model import Model

        lora = [parse_lora_option(text) for text in self.lora]
        name = self._named()
        if name is None:
            out.notice(
                f"using the bundled demo model (choose another: -m FILE or ${MODEL_VARIABLE})"
            )
        if name is None or self.is_demo:
            return Model.demo(threads=self.threads, gpu_layers=self.gpu_layers, lora=lora)
        path = ModelNames().find(name)
        return Model.load(path, threads=self.threads, gpu_layers=self.gpu_layers, lora=lora)

    def fingerprint(self) -> Fingerprint:
        """That of the model with its adapters, without loading it."""
        return _fingerprint(self._named() or DEMO, self.lora)


@dataclass(frozen=True)
class SteeringOptions:
    """Which profiles steer, how strongly, and how they get into the model."""

    profile: Annotated[
        list[str],
        typer.Option(
            "-p",
            "--profile",
            metavar="NAME[:S]",
            help="Steer with this profile (a name or a file) at strength S; may be repeated."
            " Strength 1 is 'as calibrated'.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    inject: Annotated[
        str,
        typer.Option(metavar="WAY", help=f"How steering is injected: {', '.join(WAYS)}."),
    ] = "auto"

    def __post_init__(self) -> None:
        if self.inject not in WAYS:
            raise BadInputError(
                f"--inject cannot be {self.inject!r}", f"choose from {', '.join(WAYS)}"
            )

    def load(self, loading: ModelOptions) -> Steering:
        """The sum of the profiles for that model; no profiles are the base model."""
        return load_steering(self.profile, loading.find, self.inject)


def load_steering(texts: Sequence[str], find: Callable[[str], Path], way: str = "auto") -> Steering:
    """The sum of what each `NAME_OR_FILE[:STRENGTH]` names, injected by `way`, one of `WAYS`."""
    from alignez_edge.profile.library import parse_profile_option
    from alignez_edge.profile.profile import Profile
    from alignez_edge.steering.steering import Steering

    named = [parse_profile_option(text) for text in texts]
    terms = tuple((Profile.load(find(name)), s) for name, s in named)
    return Steering(terms, cast(Way, way))


def check_fit(steering: Steering, model: Model, out: Output) -> None:
    """Raise `ProfileFileError` unless every profile is for `model`, those of strength 0 as well."""
    from alignez_edge.steering.steering import Steering

    every = Steering(tuple((profile, 1.0) for profile, _ in steering.terms), steering.way)
    for notice in every.notices(model):
        out.notice(notice)


@dataclass(frozen=True)
class PromptOptions:
    """What stands before every conversation."""

    system: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A text file as system prompt; 'urial' is a built-in preamble for base models.",
        ),
    ] = None

    def load(self) -> Preamble:
        """The system prompt; nothing where none was asked for."""
        from alignez_edge.chat.preamble import Preamble

        return Preamble() if self.system is None else Preamble.find(self.system)


def check_preamble(preamble: Preamble, model: Model, n_ctx: int | None, out: Output) -> None:
    """Raise where the system prompt does not fit; say where it cannot stand as such."""
    from alignez_edge.runtime.window import preamble_notices

    for notice in preamble_notices(preamble, model, n_ctx):
        out.notice(notice)


@dataclass(frozen=True)
class SamplingOptions:
    """How answers are drawn. The defaults are those of `Sampling`."""

    seed: SeedOption = 0
    temperature: Annotated[
        float, typer.Option(metavar="T", help="0 always takes the likeliest token.")
    ] = 0.8
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Draw from the likeliest tokens that sum to P.")
    ] = 0.95
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of an answer at most.")] = 256

    def __post_init__(self) -> None:
        at_least("--seed", self.seed, 0)
        at_least("--max-tokens", self.max_tokens, 1)
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise BadInputError(
                f"--temperature is {self.temperature}; it must be a number from 0 up"
            )
        if not 0 < self.top_p <= 1:
            raise BadInputError(f"--top-p is {self.top_p}; it must be above 0 and at most 1")

    def sampling(self, model: Model) -> Sampling:
        """The settings for `model`, with the stop strings of its prompt form."""
        from alignez_edge.runtime.requests import Sampling

        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop=model.stops,
        )
