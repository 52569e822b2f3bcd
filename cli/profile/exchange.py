"""`alignez profile export` and `import`: to and from other programs."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignez_edge.errors import AlignezError, BadInputError
from alignez_edge.files.text import near_hint
from alignez_edge.files.writing import check_apart

from ..groups import grouped
from ..options import MODEL_VARIABLE, ModelOptions, WhoseOptions
from ..output import Output, complain

if TYPE_CHECKING:
    from alignez_edge.exchange.export import Exported
    from alignez_edge.exchange.vectorfile import Maker
    from alignez_edge.profile.library import ProfileLibrary
    from alignez_edge.profile.profile import Profile
    from alignez_edge.runtime.model import Model

FORMS = ("control-vector", "lora", "peft", "pairs")

ExportedArgument = Annotated[
    str,
    typer.Argument(metavar="PROFILE[:S]", help="A profile (name or file), at strength S, else 1."),
]
FormOption = Annotated[
    str, typer.Option("--to", metavar="FORM", help=f"What to write: {', '.join(FORMS)}.")
]
TargetOption = Annotated[
    str, typer.Option("-o", "--output", metavar="PATH", help="The file or folder to write.")
]
PartOption = Annotated[
    str,
    typer.Option(
        metavar="PART",
        help="What a vector or adapter holds: what the profile does at the tokens of the answer,"
        " or at the last prompt token.",
    ),
]
PairsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Where the pairs are; else the build on this machine."),
]
MakerOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="PROGRAM",
        help="Which program made a control vector, if the file does not say: llama.cpp (its"
        " cvector-generator), or repeng.",
    ),
]


@grouped
def export(
    profile: ExportedArgument,
    *,
    to: FormOption,
    output: TargetOption,
    part: PartOption = "answer",
    pairs: PairsOption = None,
    loading: ModelOptions,
    out: Output,
) -> None:
    """Write a profile for other programs.

    control-vector is a file for llama.cpp. lora is a folder with an adapter for llama.cpp and a
    Modelfile for Ollama; peft is a folder for transformers and vLLM. Both are for profiles that
    hold an exact form, and need the model (-m) for its weights. pairs are JSON lines for training:
    prompt, chosen, rejected.
    """
    from alignez_edge.exchange.export import (
        ADAPTER,
        PARTS,
        VECTOR,
        export_control_vector,
        export_lora,
        export_pairs,
        no_lora,
    )
    from alignez_edge.exchange.peft import export_peft
    from alignez_edge.modelfiles.lora import parse_lora_option
    from alignez_edge.profile.library import parse_profile_option
    from alignez_edge.profile.profile import Profile

    if to not in FORMS:
        raise BadInputError(f"--to cannot be {to!r}", near_hint(to, FORMS, "forms"))
    if part not in PARTS:
        raise BadInputError(f"--part cannot be {part!r}", f"choose from {', '.join(PARTS)}")
    if pairs is not None and to != "pairs":
        raise BadInputError("--pairs is for --to pairs only", "leave it out")
    name, strength = parse_profile_option(profile)
    source = WhoseOptions(loading.model).find(name)  # the demo's only where that is said
    value = Profile.load(source)
    attached = [parse_lora_option(text)[0] for text in loading.lora]
    for target in (output, Path(output) / ADAPTER, Path(output) / VECTOR):
        check_apart(target, [source, *attached])
    if to == "pairs":
        found = export_pairs(value, output, pairs)
    elif to == "control-vector":
        found = export_control_vector(value, output, strength=strength, part=part)
    else:
        if value.exact is None:
            raise no_lora(value)
        write = export_lora if to == "lora" else export_peft
        with loading.load(out) as model:
            found = write(value, model, output, strength=strength, part=part)
    for notice in found.notices:
        out.notice(f"note: {notice}")
    facts = {} if to == "pairs" else {"strength": strength, "part": part}
    files = [str(path) for path in found.files]
    out.record({"profile": value.name, "to": to, **facts, "files": files})
    out.result("\n".join([*files, *_how_to_use(to, output, found)]))


@grouped
def import_(
    path: Annotated[
        str, typer.Argument(metavar="FILE|FOLDER", help="A profile, a control vector, or many.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name in the library; else the file's.")
    ] = None,
    made_by: MakerOption = None,
    strength: Annotated[
        float,
        typer.Option(metavar="X", help="Strength 1 adds a control vector this many times."),
    ] = 1.0,
    loading: ModelOptions,
    out: Output,
) -> None:
    """Take profiles from elsewhere into the library.

    Profile files are checked and copied. Control vectors of llama.cpp and of repeng become
    profiles of the model that is named with -m; they are not calibrated, so try their strength.
    Nothing that has the same name, for the same model, is overwritten. Of a folder every GGUF file
    is taken; what cannot be is reported, and the exit code is 2.
    """
    from alignez_edge.exchange.importing import files_of
    from alignez_edge.exchange.vectorfile import MAKERS

    if made_by is not None and made_by not in MAKERS:
        raise BadInputError(f"--from cannot be {made_by!r}", f"choose from {', '.join(MAKERS)}")
    if not math.isfinite(strength) or strength <= 0:
        raise BadInputError(f"--strength is {strength}; it must be a number above 0")
    files = files_of(path)
    if name is not None and files != [Path(path)]:
        raise BadInputError("--name is for one file, not for a folder", "leave it out")
    with _Importer(made_by, strength, loading, out) as importer:
        if files == [Path(path)]:
            importer.take(files[0], name)
            return
        refused = 0
        for file in files:
            try:
                importer.take(file, None)
            except AlignezError as failure:
                complain(failure.message, failure.hint)
                refused += 1
    if refused:
        raise typer.Exit(2)


class _Importer(ExitStack):
    """Takes files one by one; the model is loaded when the first control vector needs it."""

    def __init__(
        self, maker: Maker | None, strength: float, loading: ModelOptions, out: Output
    ) -> None:
        super().__init__()
        self._maker, self._strength = maker, strength
        self._loading, self._out = loading, out
        self._model: Model | None = None

    def take(self, file: Path, name: str | None) -> None:
        """One file, under `name` or its own; raises `AlignezError` if it cannot be taken."""
        from alignez_edge.exchange.importing import copy_profile, is_control_vector, name_for
        from alignez_edge.profile.library import ProfileLibrary

        library = ProfileLibrary()
        called = name if name is not None else name_for(file)
        is_vector = is_control_vector(file)
        if is_vector:
            target, profile = self._vector(file, library, called)
        else:
            target, profile = copy_profile(file, library, called)
        origin = "control-vector" if is_vector else "profile"
        layers = list(profile.layers)
        self._out.record(
            {"profile": str(target), "axis": profile.name, "kind": origin, "layers": layers}
        )
        self._out.result(f"{target}\n{self._loading.try_it(called)}")

    def _vector(self, file: Path, library: ProfileLibrary, name: str) -> tuple[Path, Profile]:
        from alignez_edge.exchange.importing import imported_profile, notices_of
        from alignez_edge.exchange.vectorfile import read_control_vector
        from alignez_edge.profile.library import check_name

        check_name(name)
        found = read_control_vector(file)
        model = self._loaded(file)
        library.free_place(name, model.fingerprint, model.facts.name)
        profile = imported_profile(found, model, name, maker=self._maker, unit=self._strength)
        target = library.save(name, profile)
        maker = self._maker or found.maker
        assert maker is not None  # or it had been refused
        for notice in notices_of(found, model, maker):
            self._out.notice(f"note: {notice}")
        return target, profile

    def _loaded(self, file: Path) -> Model:
        if self._model is None:
            if self._loading.model is None and not os.environ.get(MODEL_VARIABLE):
                raise BadInputError(
                    f"{file} is a control vector, which does not name its model",
                    "give it: -m FILE (the demo model is called demo)",
                )
            self._model = self.enter_context(self._loading.load(self._out))
        return self._model


def _how_to_use(to: str, output: str, found: Exported) -> list[str]:
    """What to type next; nothing for pairs."""
    if to == "control-vector":
        return [f"try: llama-completion -m MODEL --control-vector {output} -p ..."]
    if to == "lora":
        vectors = [path for path in found.files if path.name == "control-vector.gguf"]
        more = "".join(f" --control-vector {path}" for path in vectors)
        return [
            f"try: llama-completion -m MODEL --lora {found.files[0]}{more} -p ...",
            f"or:  ollama create NAME -f {found.files[-1]}",
        ]
    if to == "peft":
        return [f'try: PeftModel.from_pretrained(model, "{output}")']
    return []
