"""What batching and reading hidden states cost: `python -m benchmarks.runtime`.

Every figure is a ratio of two things measured in one run, alternating, after a warm-up; the table
shows the median ratio over the repetitions with its quartiles, and what is wanted. What a batch can
gain at most is what llama.cpp's own passes gain by being wider: they are measured beside it. What
steering costs is measured by `benchmarks.scheduler`.
Without `--model` a random 1 B-shaped llama (hidden 2048, 16 layers, feed-forward 8192) is made in
`.cache/`. Times need a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from alignez_edge.calibration.free_running import TEMPERATURE
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.capture import capture
from alignez_edge.runtime.context import Context
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.runtime.sampler import Sampler
from alignez_edge.speed.workload import (
    Job,
    exact_length,
    peak_rss,
    prefill,
    random_injection,
    random_prompts,
    timed,
)
from benchmarks.steering_report import insert
from tests.tinymodels import FILE_TYPES, byte_characters, quantize

CACHE = Path(__file__).parent.parent / ".cache"
WIDTH = 16
PASSES = (1, 2, 4, 8, 16, 32)
"""Widths of the passes whose own speed is measured."""
N_PASSES = 16
N_PROMPT = 48
WANTED = {
    "batch of 16 / one by one through Llama": (">=", 3.0),
    "batch of 16 / bare llama_decode loop": (">=", 0.9),
    "prefill with capture / prefill (time)": ("<=", 1.05),
    "resident memory above llama.cpp's own (MB)": ("<=", 120.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF file (default: a random 1 B llama)")
    parser.add_argument("--type", choices=FILE_TYPES, default="Q4_K_M", help="the random llama's")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=48, help="tokens per answer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--page", type=Path, help="put the tables between this file's markers")
    parser.add_argument("--memory", choices=("ours", "bare"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.model or random_model(CACHE, options.type)
    with Model.load(path, threads=options.threads) as model:
        if options.memory:
            print(peak_memory(model, options.memory, options.tokens))
            return
        rates, ratios, passes = measure(model, options.tokens, options.repeat)
        threads, name = model.threads, model.path.stem
    above = memory_above(path, threads)
    ratios["resident memory above llama.cpp's own (MB)"] = Ratio(above, above, above)
    if options.json:
        result = {"model": name, "threads": threads, "repeat": options.repeat}
        plain = {what: ratio._asdict() for what, ratio in ratios.items()}
        print(json.dumps({**result, **rates, **plain, "passes": passes}))
        return
    head = f"{name}, {threads} threads, median of {options.repeat}"
    text = f"{head}\n\n{markdown(rates, ratios, passes)}"
    if options.page:
        insert(text, options.page, name)
    print(text)


class Ratio(NamedTuple):
    """The median of a figure that was made of two things measured side by side, and its quartiles:
    mostly a ratio of their times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float], scale: float = 1.0) -> Ratio:
        """`a` over `b`, times `scale`."""
        return cls._of([scale * x / y for x, y in zip(a, b, strict=True)])

    @classmethod
    def more(cls, a: Sequence[float], b: Sequence[float], scale: float = 1.0) -> Ratio:
        """How much `a` is above `b`, times `scale`."""
        return cls._of([scale * (x - y) for x, y in zip(a, b, strict=True)])

    @classmethod
    def _of(cls, values: Sequence[float]) -> Ratio:
        return cls(*map(float, np.quantile(values, (0.5, 0.25, 0.75))))

    def __str__(self) -> str:
        spread = f" ({_short(self.low)} to {_short(self.high)})" if self.low < self.high else ""
        return _short(self.median) + spread


def tables(
    ratios: Mapping[str, Ratio],
    wanted: Mapping[str, tuple[str, float]],
    rates: Mapping[str, float],
) -> str:
    """The figures beside what is wanted (`>=` or `<=` a limit), and the rates."""
    lines = ["| figure | measured | wanted | met |", "| --- | ---: | ---: | --- |"]
    for what, ratio in ratios.items():
        relation, limit = wanted[what]
        met = ratio.median >= limit if relation == ">=" else ratio.median <= limit
        shown = f"{'≥' if relation == '>=' else '≤'} {limit:g}"
        lines.append(f"| {what} | {ratio} | {shown} | {'yes' if met else '**no**'} |")
    lines += ["", "| beside it | measured |", "| --- | ---: |"]
    lines += [f"| {what} | {_short(rate)} |" for what, rate in rates.items()]
    return "\n".join(lines)


def markdown(rates: dict[str, float], ratios: dict[str, Ratio], passes: dict[int, float]) -> str:
    """The ratios with what is wanted, the rates, and the passes by width, as three tables."""
    lines = [tables(ratios, WANTED, rates), ""]
    lines.append("| tokens in a pass of llama.cpp | " + " | ".join(map(str, passes)) + " |")
    lines.append("| --- |" + " ---: |" * len(passes))
    by_width = list(passes.items())
    lines.append("| tokens/s | " + " | ".join(f"{n * 1000 / ms:.0f}" for n, ms in by_width) + " |")
    gains = " | ".join(f"{n * by_width[0][1] / ms:.2f}" for n, ms in by_width)
    return "\n".join([*lines, f"| times a pass of 1 | {gains} |"])


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 20 else f"{value:#.3g}"


def measure(
    model: Model, n_tokens: int, repeat: int
) -> tuple[dict[str, float], dict[str, Ratio], dict[int, float]]:
    """Rates in tokens per second, the ratios that are wanted, milliseconds of passes by width."""
    prompts = random_prompts(model, WIDTH, N_PROMPT)
    sampling = replace(exact_length(n_tokens), temperature=TEMPERATURE, top_p=1.0)  # as for pairs
    texts = [(p[:16], p[16:]) for p in random_prompts(model, WIDTH, 96)]
    n_read = sum(len(a) + len(b) for a, b in texts)

    requests = [Request(p, sampling.with_seed(i), i) for i, p in enumerate(prompts)]
    few = max(2, WIDTH // 8)
    batch, bare, single = alternate(
        repeat,
        lambda: list(generate_batch(model, requests, width=WIDTH)),
        lambda: bare_loop(model, prompts, sampling),
        lambda: through_llama(model, prompts[:few], sampling),
    )
    read, unread, same_rows = alternate(
        2 * repeat + 1,
        lambda: list(capture(model, texts)),
        lambda: prefill(model, texts),
        lambda: prefill(model, texts, like_capture=True),
    )
    many = random_prompts(model, max(PASSES), N_PROMPT)
    passes = alternate(repeat, *(partial(bare_passes, model, many[:n]) for n in PASSES))

    rates = {
        "one by one through Llama (tokens/s)": few * n_tokens / statistics.median(single),
        "batch of 16 (tokens/s)": WIDTH * n_tokens / statistics.median(batch),
        "prefill (tokens/s)": n_read / statistics.median(unread),
        # The last layer computes only rows that are asked for, and a bare prefill asks for one.
        "capture / prefill of the same rows (time)": Ratio.of(read, same_rows).median,
    }
    ratios = {
        "batch of 16 / one by one through Llama": Ratio.of(single, batch, WIDTH / few),
        "batch of 16 / bare llama_decode loop": Ratio.of(bare, batch),
        "prefill with capture / prefill (time)": Ratio.of(read, unread),
    }
    widths = {
        n: 1000 * statistics.median(seconds) / N_PASSES
        for n, seconds in zip(PASSES, passes, strict=True)
    }
    # A batch of which nothing takes time but llama.cpp's own passes, seconds an answer.
    passing = N_PROMPT / rates["prefill (tokens/s)"] + n_tokens * widths[WIDTH] / WIDTH / 1000
    single_rate = rates["one by one through Llama (tokens/s)"]
    rates["the passes of a batch alone / one by one through Llama"] = (
        n_tokens / passing / single_rate
    )
    return rates, ratios, widths


def alternate(repeat: int, *jobs: Job) -> list[list[float]]:
    """Seconds of each job, run in turn `repeat` times after one turn that does not count."""
    return [seconds[1:] for seconds in timed(jobs, repeat + 1)]


def bare_loop(model: Model, prompts: list[list[int]], sampling: Sampling) -> None:
    """What `generate_batch` is measured against: all prompts, then all answers in step."""
    n_cells = sum(len(p) for p in prompts) + len(prompts) * sampling.max_tokens
    n = len(prompts)
    with Context(model, n_ctx=n_cells, n_seq=n, n_batch=512, n_outputs=n) as context:
        samplers = [Sampler(model, sampling.with_seed(i)) for i in range(n)]
        entries = [(t, i, s) for s, p in enumerate(prompts) for i, t in enumerate(p[:-1])]
        for begin in range(0, len(entries), 512):
            tokens, positions, sequences = zip(*entries[begin : begin + 512], strict=True)
            context.decode(tokens, positions, sequences, [False] * len(tokens))
        last, at = [p[-1] for p in prompts], [len(p) - 1 for p in prompts]
        for _ in range(sampling.max_tokens):
            context.decode(last, at, range(n), [True] * n)
            last = [sampler.draw(context, i) for i, sampler in enumerate(samplers)]
            at = [position + 1 for position in at]


def through_llama(model: Model, prompts: list[list[int]], sampling: Sampling) -> float:
    """Seconds for the answers one by one with the binding's own class, its loading apart."""
    from llama_cpp import Llama

    llama = Llama(
        str(model.path),
        n_ctx=min(1024, model.n_ctx_train),
        n_threads=model.threads,
        n_threads_batch=model.threads,
        verbose=False,
    )
    begin = time.perf_counter()
    for prompt in prompts:
        tokens = llama.generate(
            prompt, temp=sampling.temperature, top_p=sampling.top_p, top_k=0, min_p=0.0,
            repeat_penalty=1.0,
        )  # fmt: skip
        for _ in range(sampling.max_tokens):
            next(tokens)
    seconds = time.perf_counter() - begin
    llama.close()
    return seconds


def bare_passes(model: Model, prompts: list[list[int]]) -> float:
    """Seconds of passes of one token for each prompt, without drawing any."""
    n = len(prompts)
    with Context(model, n_ctx=n * 80, n_seq=n, n_batch=512, n_outputs=n) as context:
        for sequence, prompt in enumerate(prompts):
            context.prefill(prompt, sequence=sequence)
        at = [len(p) for p in prompts]
        context.decode([p[0] for p in prompts], at, range(n), [True] * n)
        begin = time.perf_counter()
        for step in range(1, N_PASSES + 1):
            places = [position + step for position in at]
            context.decode([p[step] for p in prompts], places, range(n), [True] * n)
        return time.perf_counter() - begin


def memory_above(path: Path, threads: int) -> float:
    """Peak resident MB of this runtime's work above a bare context's, each in its own process."""
    found = []
    for kind in ("ours", "bare"):
        command = [sys.executable, "-m", "benchmarks.runtime", "--model", str(path)]
        command += ["--threads", str(threads), "--tokens", "8", "--memory", kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(float(done.stdout.split()[-1]))
    return found[0] - found[1]


def peak_memory(model: Model, kind: str, n_tokens: int) -> float:
    """Peak resident MB after a batch ("bare": the loop over llama_decode alone) and a capture."""
    prompts = random_prompts(model, WIDTH, N_PROMPT)
    sampling = Sampling(max_tokens=n_tokens, min_tokens=n_tokens)
    if kind == "bare":
        bare_loop(model, prompts, sampling)
    else:
        steering = random_injection(model)
        requests = [Request(p, sampling, i) for i, p in enumerate(prompts)]
        list(generate_batch(model, requests, injection=steering, width=WIDTH))
        list(capture(model, [(p[:16], p[16:]) for p in prompts]))
    return peak_rss()


def random_model(
    folder: Path,
    file_type: str = "Q4_K_M",
    n_embd: int = 2048,
    n_layer: int = 16,
    n_ff: int = 8192,
    n_vocab: int = 32000,
) -> Path:
    """A random llama; two layers are made and quantized, then repeated: speed and size are those
    of a real model."""
    path = folder / f"random-llama-{n_layer}x{n_embd}-{file_type}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.getpid()
    source, two = folder / f"source-{pid}.gguf", folder / f"two-{pid}.gguf"
    rng = np.random.default_rng(0)
    n_kv = n_embd // 4
    shapes = {
        "attn_q": (n_embd, n_embd), "attn_k": (n_kv, n_embd), "attn_v": (n_kv, n_embd),
        "attn_output": (n_embd, n_embd), "ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }  # fmt: skip
    writer = _writer(source, "F16", 2, n_embd, n_ff, n_vocab)
    embedding = rng.standard_normal((n_vocab, n_embd), np.float32) / np.sqrt(n_embd)
    writer.add_tensor("token_embd.weight", embedding.astype(np.float16))
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    for layer in range(2):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(n_embd, np.float32))
        for name, shape in shapes.items():
            values = 0.3 * rng.standard_normal(shape, np.float32) / np.sqrt(shape[1])
            writer.add_tensor(f"blk.{layer}.{name}.weight", values.astype(np.float16))
    _write(writer)
    quantize(source, two, file_type)
    writer = _writer(path.with_suffix(".part"), file_type, n_layer, n_embd, n_ff, n_vocab)
    tensors = {t.name: t for t in gguf.GGUFReader(two).tensors}
    for name, tensor in tensors.items():
        if not name.startswith("blk."):
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    for layer in range(n_layer):
        for name, tensor in tensors.items():
            if name.startswith(f"blk.{layer % 2}."):
                own = f"blk.{layer}." + name.split(".", 2)[2]
                writer.add_tensor(own, tensor.data, raw_dtype=tensor.tensor_type)
    _write(writer)
    path.with_suffix(".part").replace(path)
    for file in (source, two):
        file.unlink()
    return path


def _writer(
    path: Path, file_type: str, n_layer: int, n_embd: int, n_ff: int, n_vocab: int
) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layer)
    writer.add_context_length(4096)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_embd // 64)
    writer.add_head_count_kv(n_embd // 256)
    writer.add_rope_dimension_count(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(FILE_TYPES[file_type])
    tokens = byte_characters()
    tokens += [f"word{i}" for i in range(n_vocab - len(tokens) - 1)] + ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (n_vocab - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(n_vocab - 1)
    return writer


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
