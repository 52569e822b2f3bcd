"""The control vectors of other programs, made of the same lines as repeng's notebooks make theirs.

A line is a persona that the model is asked to be, and the beginning of an answer: the two sides
differ in the persona alone. The beginnings are repeng's own list, which llama.cpp ships beside its
`cvector-generator`, each cut after its first, second, ... token.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from alignez_edge.exchange.importing import imported_profile
from alignez_edge.exchange.vectorfile import read_control_vector
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from benchmarks.llamacpp import folder as llamacpp_folder
from benchmarks.peers_repeng import METHODS as REPENG_METHODS

Line = tuple[str, str]
"""The positive and the negative text."""
Run = Callable[[list[str]], None]
GENERATOR_METHODS = ("mean", "pca")
PERSONAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cheerful": (("happy", "ecstatic", "delighted"), ("sad", "depressed", "dismayed"))
}
"""By axis, as in repeng's notebook on emotions; other axes have the words of their two sides."""
_BATCH = "512"


def beginnings() -> list[str]:
    """repeng's list of answers that break off; llama.cpp's source must be there."""
    place = llamacpp_folder() / "source" / "tools" / "cvector-generator" / "completions.txt"
    return [line for line in place.read_text("utf-8").splitlines() if line.strip()]


def lines_of(model: Model, axis: Axis, texts: Sequence[str], n: int) -> list[Line]:
    """`n` lines, or all there are, taken evenly out of all beginnings, cuts and personas."""
    words = (axis.positive,), (axis.negative or f"not {axis.positive}",)
    positive, negative = PERSONAS.get(axis.name, words)
    asked = [(_asked(model, a), _asked(model, b)) for a, b in zip(positive, negative, strict=True)]
    every = [(a + cut, b + cut) for cut, (a, b) in product(_cuts(model, texts), asked)]
    taken = np.linspace(0, len(every) - 1, min(n, len(every))).round().astype(int)
    return [every[i] for i in taken]


def _asked(model: Model, persona: str) -> str:
    """The prompt up to where the answer begins."""
    message = f"Act as if you're extremely {persona}."
    return model.prompt([{"role": "user", "content": message}]).text


def _cuts(model: Model, texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        tokens = model.tokenize(text, begin=False)
        cuts = (model.detokenize(tokens[:end]) for end in range(1, len(tokens)))
        yield from (cut for cut in cuts if "\ufffd" not in cut)


def with_generator(
    run: Run, model: Model, lines: Sequence[Line], folder: Path
) -> dict[str, Profile]:
    """llama.cpp's `cvector-generator`, both methods; `run` is the program, given its arguments.

    Its numbers are taken as llama.cpp's own server takes them, one layer late. What it stumbles
    over is kept from it. It compares the sides position by position, so it gets the lines whose
    sides are equally long. Its PCA gives a result out of memory that is used again, least so with
    few iterations of one batch each. That PCA's sign is random: it gets that of the means, layer
    by layer.
    """
    even = [line for line in lines if len({len(_tokens(model, text)) for text in line}) == 1]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        files = [Path(place) / f"{side}.txt" for side in ("positive", "negative")]
        for file, side in zip(files, zip(*even, strict=True), strict=True):
            file.write_text("".join(f"{_escaped(text)}\n" for text in side), "utf-8")
        for method in GENERATOR_METHODS:
            target, made = folder / f"{method}.gguf", Path(place) / "made.gguf"
            if not target.exists():
                run(
                    [
                        "-m", str(model.path), "-t", str(model.threads), "--method", method,
                        "--positive-file", str(files[0]), "--negative-file", str(files[1]),
                        "-c", _BATCH, "-b", _BATCH, "-ub", _BATCH,
                        "--pca-iter", "20", "--pca-batch", "1", "-o", str(made),
                    ]
                )  # fmt: skip
                made.replace(target)
    mean, pca = (_profile(model, folder / f"{method}.gguf") for method in GENERATOR_METHODS)
    return {"mean": mean, "pca": signed_like(pca, mean)}


def signed_like(profile: Profile, other: Profile) -> Profile:
    """`profile` with each layer's direction turned to the side of the other's."""
    rows = profile.vector.answer
    signs = np.where(np.sum(rows * other.vector.answer, axis=1, keepdims=True) < 0, -1, 1)
    turned = (rows * signs).astype(np.float32)
    return replace(profile, vector=ControlVector(turned, turned))


def with_repeng(
    python: Path, model: Model, lines: Sequence[Line], folder: Path
) -> dict[str, Profile]:
    """repeng's vectors by method, made by the interpreter of its own environment."""
    files = {method: folder / f"{method}.gguf" for method in REPENG_METHODS}
    if not all(file.exists() for file in files.values()):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            told = Path(place) / "lines.jsonl"
            told.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
            script = Path(__file__).with_name("peers_repeng.py")
            arguments = [script, model.path.resolve(), told, place, model.threads]
            run_program(python, list(map(str, arguments)))
            for method, file in files.items():
                (Path(place) / f"{method}.gguf").replace(file)
    return {method: _profile(model, file) for method, file in files.items()}


def run_program(program: Path, arguments: list[str]) -> None:
    """Run to the end; where it fails, so does this, with its last lines."""
    done = subprocess.run(
        [str(program), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        sys.exit(f"{program.name} failed with {done.returncode}:\n{last}")


def _profile(model: Model, file: Path) -> Profile:
    """A control vector as llama.cpp's programs add it: each direction in the layer of its number,
    whoever wrote it."""
    return imported_profile(read_control_vector(file), model, file.stem, maker="repeng")


def _tokens(model: Model, text: str) -> list[int]:
    return model.tokenize(text, begin=True, special=True)


def _escaped(text: str) -> str:
    """One line, as the generator reads it."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")
