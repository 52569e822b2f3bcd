"""Makes the judges' test pairs, and measures judges on them: `python -m benchmarks.judges`.

With `--make`, the demo model answers the queries of its world with either side of each axis asked
for, and with nothing asked for; the rules of the world say which of two answers to one query is the
better. The file that ships (`alignez_edge/demo/judge_pairs.jsonl`) is made this way. Without it, a
table: judges that know, that half know and that cannot know.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import AXES, judge
from alignez_edge.judges.named import MODEL_WAYS, JudgeSettings, ModelWay, judge_of
from alignez_edge.judges.quality import JudgeReport, KnownPair, measure, shipped_pairs
from alignez_edge.preferences import prompts
from alignez_edge.preferences.axes import Axis
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from benchmarks.steering_report import insert
from tests.tinymodels import tiny_model

FILE = Path(__file__).parent.parent / "alignez_edge" / "demo" / "judge_pairs.jsonl"
RULES = Path(__file__).parent / "everyday_rules.toml"
SAMPLING = Sampling(temperature=0.8, top_p=1.0, max_tokens=96)
N_BETTER, N_EQUAL = 24, 6
"""Pairs for each axis with a better answer, and without."""
GAP = 0.5
"""By how much the better answer's score is higher at least; scores go from −1 to 1."""
ALWAYS_FIRST = 'import sys\nfor line in sys.stdin:\n    print(\'{"winner": "first"}\')\n'


def make(model: Model, seed: int) -> list[dict[str, object]]:
    """The records of the file: for each axis, pairs in a mixed order."""
    queries = demo_queries("build") + demo_queries("unseen")
    chance = random.Random(seed)
    records: list[dict[str, object]] = []
    for number, axis in enumerate(map(Axis.builtin, AXES)):
        asked = [
            text
            for q in queries
            for text in (
                *(prompts.prompted(q["query"], axis, side) for side in prompts.SIDES),
                q["query"],
            )
        ]
        sampling = SAMPLING.with_seed(seed + number * len(asked))
        texts = [answer.text.strip() for answer in model.generate(asked, sampling=sampling)]
        better: list[dict[str, object]] = []
        equal: list[dict[str, object]] = []
        for i, query in enumerate(queries):
            shuffled = chance.sample(texts[3 * i : 3 * i + 3], 3)
            for one, other in combinations(shuffled, 2):
                gap = _score(one, query, axis) - _score(other, query, axis)
                first, second = (other, one) if gap < 0 else (one, other)
                record = {"axis": axis.name, **query, "first": first, "second": second}
                if abs(gap) >= GAP:
                    better.append(record | {"equal": False})
                elif not gap and one != other:
                    equal.append(record | {"equal": True})
        picked = chance.sample(better, N_BETTER) + chance.sample(equal, N_EQUAL)
        records += chance.sample(picked, len(picked))
    return records


def _score(text: str, query: dict[str, str], axis: Axis) -> float:
    return judge(text, query["topic"]).scores[axis.name]


def reports(models: Sequence[str], threads: int | None) -> Iterator[JudgeReport]:
    """The judges of the table on all axes that they know."""
    every = [pair for axis in AXES for pair in shipped_pairs(axis)]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "always_first.py"
        script.write_text(ALWAYS_FIRST)
        command = f"command:{shlex.join([sys.executable, str(script)])}"
        rules = [pair for pair in every if pair.comparison.axis.name != "helpful"]
        named: list[tuple[str, str, JudgeSettings, list[KnownPair]]] = [
            ("the demo model's rules", "demo", JudgeSettings(), every),
            ("a rule file of everyday words", str(RULES), JudgeSettings(), rules),
            ("a program that always says 'first'", command, JudgeSettings(), every),
        ]
        # Random weights know nothing whatever; the demo model has never seen such a question, and
        # no room for the paper's wording.
        noise = str(tiny_model(Path(folder), "llama", n_ctx=4096))
        asked: list[tuple[str, str, tuple[ModelWay, ...]]] = [
            ("the demo model", "model:demo", ("short", "likelihood")),
            ("a model of random weights", noise, MODEL_WAYS),
            *((Path(name).stem, name, MODEL_WAYS) for name in models),
        ]
        for title, name, ways in asked:
            for way in ways:
                settings = JudgeSettings(by=way, threads=threads)
                shown = way if way == "likelihood" else f"{way} prompt"
                named.append((f"{title}, {shown}", name, settings, every))
        for title, text, settings, pairs in named:
            print(f"  {title}", file=sys.stderr)
            report = measure(judge_of(text, settings), pairs)
            yield replace(report, judge=title)


def markdown(rows: Sequence[JudgeReport]) -> str:
    """The figures as a Markdown table."""
    head = ["judge", "right, asked once", "position bias", "same place both times",
            "right, both orders", "ties", "equal pairs: ties", "can tell"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        low, high = row.averaged.interval()
        cells = [
            row.judge,
            f"{row.once.accuracy:.0%}",
            f"{row.position_bias or 0:+.0%}",
            f"{row.contradicted or 0:.0%}",
            f"{row.averaged.accuracy:.0%} [{low:.0%}, {high:.0%}]",
            f"{row.averaged.ties:.0%}",
            f"{row.averaged.equal_ties:.0%}",
            "yes" if row.can_tell else "**no**",
        ]
        lines.append("| " + " | ".join(cells).replace("-", "−").replace("%", " %") + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--make", action="store_true", help="write the test pairs anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--judge-model", action="append", default=[], help="a GGUF file to measure as well"
    )
    parser.add_argument("--page", type=Path, help="put the table into this Markdown file")
    options = parser.parse_args(arguments)
    if options.make:
        with Model.demo(threads=options.threads) as model:
            records = make(model, options.seed)
        FILE.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
        print(f"{len(records)} pairs in {FILE.name}")
        return
    text = markdown(list(reports(options.judge_model, options.threads)))
    print(text)
    if options.page:
        insert(text, options.page, "judges")


if __name__ == "__main__":
    main()
