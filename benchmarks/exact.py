"""How exact exact injection is and what it costs: `python -m benchmarks.exact`.

The first table compares it with the reference on small random models of several architectures and
formats: the difference of the logits in units of the edit's own effect on them. Beside it, in the
same units, the noise of the model's own products: how much the plain logits move where more tokens
share the batch, and where a vector far smaller than half precision resolves is added. Rounding the
activations to 8 bits makes the quantized formats that noisy, whatever is changed.

The figures after it are measured on a random 1 B-shaped
Q4_K_M llama (hidden 2048, 16 layers, feed-forward 8192) that is made in `.cache/`, or on `--model`:
ratios of two things measured in one run, alternating, as medians. Times need a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from alignez_edge.directions.hidden_states import POSITIONS
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact import exact_edit
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Edits, Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.session import Session
from alignez_edge.runtime.weights import Adapter
from alignez_edge.speed.workload import random_prompts
from benchmarks.runtime import CACHE, alternate, random_model
from tests.test_exact import KINDS, compare, edit_for
from tests.tinymodels import tiny_model

N_LAYERS, N_AXES = 5, 3
FILE_TYPES = ("F16", "Q8_0", "Q4_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF file (default: a random 1 B llama)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=48, help="tokens per answer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    options = parser.parse_args()
    rows = agreement()
    if not options.json:
        print("exact against reference, in units of the edit's own effect on the logits")
        print(f"  {'architecture':<18}{'format':<8}{'difference':>11}{'batch':>9}{'nudge':>9}")
        for row in rows:
            shown = f"{row['difference']:11.2%}{row['batch']:9.2%}{row['nudge']:9.2%}"
            print(f"  {row['architecture']:<18}{row['format']:<8}{shown}")
    with Model.load(options.model or random_model(CACHE), threads=options.threads) as model:
        figures = cost(model, options.tokens, options.repeat)
        head = {"model": model.path.name, "threads": model.threads, "repeat": options.repeat}
    if options.json:
        print(json.dumps({**head, "agreement": rows, **figures}))
        return
    print(f"{head['model']}, {head['threads']} threads, median of {head['repeat']}")
    for what, value in figures.items():
        print(f"  {what:<62} {value:9.3f}")


def agreement() -> list[dict[str, str | float]]:
    """One row per architecture and format; a rank-2 edit of three of five layers, twice as strong
    as the method's."""
    rows: list[dict[str, str | float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture, options in KINDS:
            for file_type in FILE_TYPES:
                path = tiny_model(
                    Path(folder), architecture, n_layer=5, file_type=file_type, **options
                )
                with Model.load(path, threads=1) as model:
                    found = compare(model, edit_for(model, (1, 3, 4)))
                path.unlink()
                name = architecture + (" (experts)" if options else "")
                rows.append({"architecture": name, "format": file_type, **found._asdict()})
    return rows


def through_the_cache(model: Model) -> dict[str, float]:
    """Seconds until a static profile's injection is there, both positions: made for the first
    time, read back by a program that starts anew, and at another strength."""
    layers = tuple(range(model.n_layer // 3, model.n_layer // 3 + N_LAYERS))
    rng = np.random.default_rng(1)
    edits = [
        Edit({i: LayerEdit.swap(*rng.standard_normal((2, model.n_embd))) for i in layers})
        for _ in POSITIONS
    ]
    profile = Profile(
        Axis("random", positive="one", negative="other"),
        ControlVector.zeros(model.n_layer, model.n_embd),
        layers,
        model.fingerprint,
        intervention=ExactForm(edits[0], edits[1]),
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("ALIGNEZ_HOME")
        os.environ["ALIGNEZ_HOME"] = folder
        try:
            for what, strength in (("the first time", 1.0), ("from the cache", 1.0)):
                model.kept.clear()
                begin = time.perf_counter()
                (profile * strength).by("exact").injection(model)
                found[f"a profile's two adapters, {what} (s)"] = time.perf_counter() - begin
            begin = time.perf_counter()
            (profile * 0.5).by("exact").injection(model)
            found["a profile's two adapters, another strength (s)"] = time.perf_counter() - begin
        finally:
            del os.environ["ALIGNEZ_HOME"]
            if before is not None:
                os.environ["ALIGNEZ_HOME"] = before
    return found


def cost(model: Model, n_tokens: int, repeat: int) -> dict[str, float]:
    """Speeds as ratios to plain decoding, and what making an adapter takes."""
    layers = range(model.n_layer // 3, model.n_layer // 3 + N_LAYERS)
    rng = np.random.default_rng(0)
    axes = [
        Edit({i: LayerEdit.swap(*rng.standard_normal((2, model.n_embd))) for i in layers})
        for _ in range(N_AXES)
    ]
    begin = time.perf_counter()
    contents = [exact_edit(model.gguf, axis).adapter for axis in axes]
    seconds = (time.perf_counter() - begin) / N_AXES
    begin = time.perf_counter()
    adapters = [Adapter(model, content) for content in contents]
    loading = (time.perf_counter() - begin) / N_AXES
    tracemalloc.start()
    exact_edit(model.gguf, axes[0])
    memory = tracemalloc.get_traced_memory()[1] / (1 << 20)
    tracemalloc.stop()

    vectors = (0.01 * rng.standard_normal((model.n_layer, model.n_embd))).astype(np.float32)
    vectors[0] = 0
    zeros = np.zeros_like(vectors)

    def injection(edits: Edits) -> Injection:
        return Injection(zeros, zeros, edits, edits)

    native = injection(tuple((adapter, 0.1) for adapter in adapters))
    cases = {
        "plain": None,
        f"exact, {N_LAYERS} layers, 1 axis": injection(((adapters[0], 0.1),)),
        f"exact, {N_LAYERS} layers, {N_AXES} axes": native,
        "control vector": Injection(vectors, -vectors),
        f"reference, {N_LAYERS} layers, {N_AXES} axes": injection(tuple((a, 0.1) for a in axes)),
    }
    (prompt,) = random_prompts(model, 1, 16)
    sampling = Sampling(temperature=0.8, max_tokens=n_tokens, min_tokens=n_tokens)
    with Session(model, n_ctx=512) as session:

        def answer(case: Injection | None) -> None:
            for _ in session.stream(prompt, sampling, case):
                pass

        found = alternate(repeat, *(lambda case=case: answer(case) for case in cases.values()))
    times = dict(zip(cases, found, strict=True))
    figures = {"plain decode (tokens/s)": n_tokens / statistics.median(times["plain"])}
    for name, own in times.items():
        if name != "plain":
            ratios = [plain / one for plain, one in zip(times["plain"], own, strict=True)]
            figures[f"speed of decoding against plain: {name}"] = statistics.median(ratios)
    figures[f"making an adapter of {N_LAYERS} layers (s)"] = seconds
    figures["peak memory of making it (MB)"] = memory
    figures["loading it (s)"] = loading
    figures["its size (MB)"] = len(contents[0]) / (1 << 20)
    return figures | through_the_cache(model)


if __name__ == "__main__":
    main()
