"""What building a profile takes, in seconds and memory: `python -m benchmarks.build`.

Each build runs in a process of its own, whose peak of resident memory is compared with that of a
process that loads the same model and only decodes: as many sequences at a time as a build, each
with the longest prompt and answer that a build may need. Beside a build's time stands that of its
pairs' answers alone, asked for again as they were. Times need a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from alignez_edge.build.build import build_profile
from alignez_edge.build.generate import ANSWER_TOKENS
from alignez_edge.calibration.free_running import TEMPERATURE
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.preferences.pairs import PreferencePair
from alignez_edge.runtime.batch import generate_batch
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Request, Sampling
from alignez_edge.speed.workload import peak_rss
from benchmarks.requests import model_file
from benchmarks.runtime import WIDTH, bare_loop
from benchmarks.steering_report import insert

AXIS = "polite"
FIELDS = [field.name for field in fields(PreferencePair) if field.name != "score"]
TIMES_WANTED = 1.5
"""The time of a build over that of its pairs' answers alone."""
ABOVE_WANTED = 120.0
GROWTH_WANTED = 16.0
"""MB between the smallest and the largest build: 'flat', up to the allocator's habits."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="demo", help="a short name or a GGUF file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--queries", type=_numbers, default=[32, 512], help="such as 32,512")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--page", type=Path, help="put the tables between this file's markers")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(child(options.model, options.threads, options.child)))
        return
    bare = run(options.model, options.threads, 0)
    builds = {n: run(options.model, options.threads, n) for n in options.queries}
    result = {
        "model": model_file(options.model).stem,
        "threads": bare["threads"],
        "bare MB": bare["peak MB"],
        "builds": [
            {"queries": n, **build, "MB above bare": build["peak MB"] - bare["peak MB"]}
            for n, build in builds.items()
        ],
    }
    if options.page:
        insert(table(result), options.page, f"build-{result['model']}")
    print(json.dumps(result) if options.json else table(result))


def run(model: str, threads: int | None, n_queries: int) -> dict[str, Any]:
    """One build with `n_queries` in a process of its own; 0 queries: only decoding."""
    command = [sys.executable, "-m", "benchmarks.build", "--child", str(n_queries)]
    command += ["--model", model]
    command += ["--threads", str(threads)] if threads else []
    what = f"a build from {n_queries} queries" if n_queries else "only decoding"
    print(f"{what} …", file=sys.stderr, flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(name: str, threads: int | None, n_queries: int) -> dict[str, Any]:
    """Build (or decode), then say how long each step took and how much memory it needed."""
    with Model.load(model_file(name), threads=threads) as model:
        if n_queries:
            found = timed_build(model, n_queries)
        else:
            decode(model)
            found = {}
        return {**found, "threads": model.threads, "peak MB": peak_rss()}


def timed_build(model: Model, n_queries: int) -> dict[str, Any]:
    """Seconds per step (each report counts the time since the one before) and usable pairs."""
    seconds: dict[str, float] = defaultdict(float)
    last = begin = time.perf_counter()

    def on_progress(step: str, done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[step] += now - last
        last = now

    with tempfile.TemporaryDirectory() as work:
        profile = build_profile(
            model,
            Axis.builtin(AXIS),
            queries=some_queries(n_queries),
            width=WIDTH,
            work=work,
            on_progress=on_progress,
        )
        total = time.perf_counter() - begin
        alone = seconds_of_answers(model, Path(work))
    return {
        "pairs": profile.pairs,
        "seconds": {**seconds, "total": total, "answers alone": alone},
    }


def seconds_of_answers(model: Model, work: Path) -> float:
    """What the answers of a build's pairs take alone, in one batch."""
    sampling = Sampling(TEMPERATURE, 1.0, 0, 0, ANSWER_TOKENS, stop=model.stops)
    pairs = [
        PreferencePair(*(record.get(field, "") for field in FIELDS))
        for record in map(json.loads, (work / "pairs.jsonl").read_text("utf-8").splitlines()[1:])
    ]
    asked = [
        model.prompt(request.messages()).tokens for pair in pairs for request in pair.requests()
    ]
    jobs = (Request(prompt, sampling.with_seed(i), i) for i, prompt in enumerate(asked))
    begin = time.perf_counter()
    for _ in generate_batch(model, jobs, width=WIDTH):
        pass
    return time.perf_counter() - begin


def decode(model: Model) -> None:
    """What llama.cpp itself takes: the sequences of a build, as long as they may become."""
    # The second request of a pair lists what the first one's answer described.
    texts = [
        prompts.answer(query, ["Be kind and patient with everybody who asks"] * prompts.MAX_ITEMS)
        for query in some_queries(WIDTH)
    ]
    tokens = [list(model.ask_tokens(t)) for t in texts]
    bare_loop(model, tokens, Sampling(max_tokens=ANSWER_TOKENS))


def some_queries(n: int) -> list[str]:
    """`n` different queries: the axis' own, then some about the demo model's world."""
    from demo_model.corpus import all_queries

    own = list(Axis.builtin(AXIS).queries)[:n]
    others = [query for query, _ in all_queries() if query not in set(own)]
    return own + random.Random(0).sample(others, n - len(own))


def table(result: dict[str, Any]) -> str:
    """The builds, and the figures beside what is wanted, as two Markdown tables."""
    builds = result["builds"]
    steps = list(builds[0]["seconds"])
    times = max(b["seconds"]["total"] / b["seconds"]["answers alone"] for b in builds)
    head = ["queries", "usable pairs", *(f"{step}, s" for step in steps), "peak, MB",
            "above only decoding, MB"]  # fmt: skip
    lines = [f"{result['model']}, {result['threads']} threads, axis {AXIS}", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    for build in builds:
        numbers = [*(build["seconds"][s] for s in steps), build["peak MB"], build["MB above bare"]]
        cells = [f"{build['queries']}", f"{build['pairs']}", *(f"{x:.1f}" for x in numbers)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| figure | measured | wanted | met |", "| --- | ---: | ---: | --- |"]
    first, last = builds[0], builds[-1]
    for what, value, limit in (
        ("a build over its pairs' answers alone, at most", times, TIMES_WANTED),
        ("MB above only decoding, at most", max(b["MB above bare"] for b in builds), ABOVE_WANTED),
        *(
            [
                (
                    f"MB more for {last['queries']} queries than for {first['queries']}",
                    last["peak MB"] - first["peak MB"],
                    GROWTH_WANTED,
                )
            ]
            if last is not first
            else []
        ),
    ):
        met = "yes" if value <= limit else "**no**"
        lines.append(f"| {what} | {value:.1f} | ≤ {limit:g} | {met} |")
    return "\n".join(lines)


def _numbers(text: str) -> list[int]:
    return sorted(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
