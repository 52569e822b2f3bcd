"""`alignez model`: what a GGUF is, and short names for the models that one uses."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignez_edge.files.text import printable
from alignez_edge.modelfiles.names import DEMO, PACKAGED, ModelNames, installed_models

from .groups import grouped
from .layout import table
from .options import MODEL_VARIABLE, ModelOptions
from .output import Output

if TYPE_CHECKING:
    from alignez_edge.runtime.weights import ModelFacts

app = typer.Typer(
    help="What a GGUF file is, and short names for models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
@grouped
def show(*, loading: ModelOptions, out: Output) -> None:
    """Show what a model is."""
    with loading.load(out) as model:
        facts, path, lora = model.facts, model.path, model.describe_lora()
    out.record({"path": str(path), **asdict(facts), "lora": lora})
    out.result(_card(facts, path, lora))


@app.command("list")
@grouped
def list_(*, out: Output) -> None:
    """List the models that have a short name."""
    names = ModelNames()
    known = names.all()
    packaged = {name: path for name, path in installed_models().items() if name not in known}
    rows = [(DEMO, "the bundled demo model")]
    out.record({"name": DEMO, "path": None, "exists": True})
    for name, path in (known | packaged).items():
        size = _size_of(path)
        shown = _size(size) if size is not None else "missing"
        place = printable(str(path))
        if name in packaged:
            place = f"in the Python package {PACKAGED[name].distribution}"
        rows.append((name, f"{place}  ({shown})"))
        out.record({"name": name, "path": str(path), "exists": size is not None})
    if chosen := os.environ.get(MODEL_VARIABLE):
        rows.append((f"${MODEL_VARIABLE}", printable(chosen)))
    out.result(table(rows))
    out.notice(f"(names are kept in {names.path}; add one with: alignez model add NAME FILE)")


@app.command()
@grouped
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The short name.")],
    path: Annotated[str, typer.Argument(help="A GGUF file.", metavar="FILE")],
    *,
    out: Output,
) -> None:
    """Give a model a short name; the file stays where it is."""
    from alignez_edge.files.gguffile import read_gguf
    from alignez_edge.runtime.check import check_model

    check_model(read_gguf(path))
    replaced = ModelNames().add(name, path)
    absolute = Path(path).absolute()
    out.record({"name": name, "path": str(absolute), "replaced": replaced})
    out.result(f"{name} {'now means' if replaced else 'means'} {absolute}")
    out.result(f'try: alignez run -m {name} "Tell me about bread."')


def _card(facts: ModelFacts, path: Path, lora: list[dict[str, str | float]]) -> str:
    rows = [
        ("file", printable(str(path))),
        ("size", _size(facts.size_bytes)),
        ("architecture", facts.architecture),
        ("parameters", _count(facts.parameters)),
        ("quantization", facts.quantization),
        ("layers", f"{facts.n_layer} of {facts.n_embd} dimensions, {facts.n_head} heads"),
        ("feed-forward", f"{facts.n_ff}"),
        ("experts", f"{facts.experts}"),
        ("vocabulary", f"{facts.n_vocab} tokens ({facts.tokenizer})"),
        ("context", f"{facts.n_ctx_train} tokens in training"),
        ("prompt form", facts.template),
        *(("adapter", f"{entry['file']} at scale {entry['scale']:g}") for entry in lora),
        ("steering", "control vectors" if facts.can_steer else "not possible"),
    ]
    kept = [row for row in rows if row != ("experts", "0")]
    return f"{facts.name}\n{table(kept, indent='  ')}"


def _size_of(path: Path) -> int | None:
    """The bytes of a file; None if there is none that this user may look at."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _size(n_bytes: int) -> str:
    if n_bytes < 1_000_000:
        return f"{n_bytes / 1e3:.0f} kB"
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _count(number: int) -> str:
    for unit, word in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {word}"
    return f"{number:,}"
