"""What other programs make of exported profiles, and what is made of theirs:
`python -m benchmarks.exchange`.

1. Control vectors and LoRA adapters of the demo model in llama.cpp's own completion program, whose
   greedy answers are compared token for token with those of `alignez run`.
2. PEFT adapters with transformers and peft, on small random models of several architectures.
3. Control vectors made by llama.cpp's `cvector-generator` and by the package repeng, on a model
   with a known direction at each layer: at which layers they arrive.

llama.cpp's programs are built in `.cache/` at the first run (some minutes; cmake and a compiler).
The second part needs `pip install 'alignez-edge[exchange]'`; without it, it is left out and said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from alignez_edge.arrays import FloatArray, IntArray
from alignez_edge.demo.bundled import demo_queries
from alignez_edge.demo.rules import judge
from alignez_edge.exchange.export import PARTS, Part, export_control_vector, export_lora
from alignez_edge.exchange.vectorfile import read_control_vector
from alignez_edge.interventions.ways import Way
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.injection import Injection
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.requests import Sampling
from alignez_edge.runtime.score import Scorer
from alignez_edge.runtime.session import Session
from benchmarks.llamacpp import Completion, programs
from benchmarks.planted import N_EMBD, N_LAYER, planted_model, with_generator, with_repeng
from benchmarks.steering import profile_of, say
from benchmarks.steering_report import insert

AXIS = "polite"
N_TOKENS = 64
CASES: tuple[tuple[str, Way], ...] = (
    ("alignez", "control-vector"),
    ("caa", "control-vector"),
    ("pca", "control-vector"),
    ("iti", "control-vector"),
    ("alignez-v1", "exact"),
    ("alignez-v2", "exact"),
    ("affine", "exact"),
)


@dataclass(frozen=True)
class Difference:
    """Where an answer of llama.cpp's program first differs: both tokens as text.

    The gaps are by how much the logit of ours is the larger one: as the answer came about, one
    token a pass, and with all its tokens in one pass. What differs between the two is rounding.
    """

    at: int
    ours: str
    theirs: str
    gap: float
    gap_together: float

    @property
    def is_tie(self) -> bool:
        """Whether the gap is no larger than what rounding makes of it."""
        return self.gap <= abs(self.gap - self.gap_together)


@dataclass(frozen=True)
class Row:
    """One profile in one way: `same` of `n` greedy answers are the same token for token.

    `everywhere` counts those of the common use, where the vector or adapter of the answer's tokens
    acts on the whole prompt. Scores are means of the rule judge's over the prompts.
    """

    method: str
    way: Way
    n: int
    tokens: int
    same: int
    differences: tuple[Difference, ...]
    everywhere: int
    score_plain: float
    score: float
    score_everywhere: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--limit", type=int, default=60, help="prompts")
    parser.add_argument("--jobs", type=int, default=2, help="processes that build llama.cpp")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument("--page", type=Path, help="put the tables into this Markdown file")
    options = parser.parse_args(arguments)
    built = programs(options.jobs)
    rows = completions(built["llama-completion"], options.limit)
    peft = peft_rows()
    made = imports(built["llama-cvector-generator"])
    if options.json:
        print(json.dumps({"completion": [asdict(r) for r in rows], "peft": peft, "import": made}))
        return
    text = "\n\n".join([completion_table(rows), peft_table(peft), import_table(made)])
    print(text)
    if options.page:
        insert(text, options.page, "exchange")


def completions(program: Path, limit: int) -> list[Row]:
    """The first part: one row for each of `CASES`."""
    entries = demo_queries("unseen")[:limit]
    with Model.demo(threads=1) as model:
        bench = Bench(model, Completion(program, model.path, N_TOKENS), entries)
        profiles: dict[str, Profile] = {}
        rows = []
        for method, way in CASES:
            if method not in profiles:
                axis = Axis.builtin(AXIS)
                profiles[method] = profile_of(model, axis, method, None, 0, say)
            say(f"{method} by {way}: {limit} answers in llama.cpp's program")
            rows.append(bench.row(profiles[method], method, way))
        return rows


class _Logits:
    """An edit of the logits that changes nothing, and keeps them."""

    def __init__(self) -> None:
        self.rows: list[FloatArray] = []

    def change(self, hidden: FloatArray, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        """No token's logit is moved."""
        self.rows.append(logits.copy())
        return np.zeros(0, np.int64), np.zeros(0, np.float32)


class Bench:
    """The prompts with their plain answers, and the two programs that answer them."""

    def __init__(
        self, model: Model, program: Completion, entries: Sequence[dict[str, str]]
    ) -> None:
        self.model, self.program = model, program
        self.end = int(model.gguf.metadata["tokenizer.ggml.eos_token_id"])
        self.topics = [entry["topic"] for entry in entries]
        messages = [[{"role": "user", "content": entry["query"]}] for entry in entries]
        self.prompts = [model.prompt(each) for each in messages]
        self.plain = [self.answer(prompt.tokens, None) for prompt in self.prompts]

    def row(self, profile: Profile, method: str, way: Way) -> Row:
        """One profile, injected in one way."""
        injection = (profile * 1.0).by(way).injection(self.model)
        assert isinstance(injection, Injection)
        ours = [self.answer(prompt.tokens, injection) for prompt in self.prompts]
        with tempfile.TemporaryDirectory() as folder:
            given = {part: self.exported(profile, way, part, Path(folder)) for part in PARTS}
            run = self.program.from_the_deciding_token
            stepwise = [
                self.after(prompt.tokens, run(prompt.text, given["deciding"], given["answer"]))
                for prompt in self.prompts
            ]
            everywhere = [
                self.after(p.tokens, self.program.everywhere(p.text, given["answer"]))
                for p in self.prompts
            ]
        return Row(
            method,
            way,
            n=len(ours),
            tokens=sum(map(len, ours)),
            same=sum(a == b for a, b in zip(ours, stepwise, strict=True)),
            differences=tuple(self.differences(ours, stepwise, injection)),
            everywhere=sum(a == b for a, b in zip(ours, everywhere, strict=True)),
            score_plain=self.score(self.plain),
            score=self.score(ours),
            score_everywhere=self.score(everywhere),
        )

    def exported(self, profile: Profile, way: Way, part: Part, folder: Path) -> list[str]:
        """The arguments that give one exported part to llama.cpp's program."""
        if way == "control-vector":
            export_control_vector(profile, folder / f"{part}.gguf", part=part)
            return ["--control-vector", str(folder / f"{part}.gguf")]
        found = export_lora(profile, self.model, folder / part, part=part).files
        kinds = {"adapter.gguf": "--lora", "control-vector.gguf": "--control-vector"}
        return [x for path in found if path.name in kinds for x in (kinds[path.name], str(path))]

    def answer(
        self, prompt: Sequence[int], injection: Injection | None, n_tokens: int | None = None
    ) -> list[int]:
        """Our greedy answer of at most as many tokens as the program's."""
        sampling = Sampling(temperature=0, max_tokens=n_tokens or self.program.n_tokens)
        with Session(self.model) as session:
            for _ in session.stream(prompt, sampling, injection):
                pass
            assert session.completion is not None
            return list(session.completion.tokens)

    def after(self, prompt: Sequence[int], tokens: list[int]) -> list[int]:
        """The answer in `tokens`, without the token that ends it."""
        assert tokens[: len(prompt)] == list(prompt), "llama.cpp's program reads another prompt"
        answer = tokens[len(prompt) :]
        ends = [i for i, token in enumerate(answer) if self.model.is_end(token)]
        return answer[: ends[0]] if ends else answer

    def differences(
        self, ours: list[list[int]], theirs: list[list[int]], injection: Injection
    ) -> list[Difference]:
        """The first difference of each answer that differs."""
        found = []
        for prompt, a, b in zip(self.prompts, ours, theirs, strict=True):
            if a == b:
                continue
            pairs = enumerate(zip_longest(a, b, fillvalue=self.end))
            at, (x, y) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            kept = _Logits()
            self.answer(prompt.tokens, replace(injection, logit_edits=((kept, 1.0),)), at + 1)
            with Scorer(self.model) as scorer:
                (rows,) = scorer.log_probs(prompt.tokens, [*a[:at], x], [injection])
            words = [self.model.detokenize([token]) or "(end)" for token in (x, y)]
            gaps = [float(row[x] - row[y]) for row in (kept.rows[at], rows[at])]
            found.append(Difference(at, words[0], words[1], *gaps))
        return found

    def score(self, answers: list[list[int]]) -> float:
        """The judge's mean score on the axis."""
        texts = [self.model.detokenize(answer) for answer in answers]
        scores = [judge(t, topic).scores[AXIS] for t, topic in zip(texts, self.topics, strict=True)]
        return float(np.mean(scores))


def peft_rows() -> list[dict[str, Any]]:
    """The second part; nothing where the packages are missing."""
    from benchmarks.peft_agreement import ARCHITECTURES, agreement

    rows = []
    try:
        for architecture in ARCHITECTURES:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(asdict(agreement(architecture, Path(folder))))
    except ImportError as missing:
        say(f"PEFT is left out: {missing}")
    return rows


def imports(generator: Path) -> list[dict[str, Any]]:
    """The third part: one row for each maker of control vectors that is there."""

    def run(arguments: list[str]) -> None:
        subprocess.run([str(generator), *arguments], check=True, capture_output=True)

    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        planted = planted_model(folder)
        files = {}
        for method in ("mean", "pca"):
            files[f"cvector-generator, {method}"] = with_generator(
                run, planted.path, folder, method
            )
        try:
            with Model.load(planted.path, threads=1) as model:
                files["repeng, pca_center"] = with_repeng(
                    planted.path, lambda text: model.tokenize(text, begin=True), folder
                )
        except ImportError as missing:
            say(f"repeng is left out: {missing}")
        for name, path in files.items():
            file = read_control_vector(path)
            stored = np.stack(list(file.directions.values()))
            rows.append(
                {
                    "made by": name,
                    "told": file.maker,
                    "numbers": list(file.directions),
                    "of layers": planted.layers_of(stored),
                    "imported": planted.layers_of(file.rows(N_LAYER, N_EMBD)),
                }
            )
    return rows


def completion_table(rows: Sequence[Row]) -> str:
    """The first part as Markdown, with every difference below."""
    head = ["method", "injected as", "same answers", "tokens", "same at every token",
            "score plain", "score", "score at every token"]  # fmt: skip
    cells = [
        [r.method, r.way, f"{r.same} of {r.n}", f"{r.tokens:,}", f"{r.everywhere} of {r.n}",
         *(f"{x:+.2f}" for x in (r.score_plain, r.score, r.score_everywhere))]
        for r in rows
    ]  # fmt: skip
    lines = [_markdown(head, cells)]
    for row in rows:
        for d in row.differences:
            kind = "a tie within rounding" if d.is_tie else "not a tie"
            lines.append(
                f"- {row.method} by {row.way}, token {d.at}: `{d.ours}` here, `{d.theirs}` there."
                f" The logits differ by {d.gap:+.4f}, and by {d.gap_together:+.4f} where the"
                f" tokens share a pass: {kind}."
            )
    return "\n\n".join([lines[0], "\n".join(lines[1:])]).rstrip()


def peft_table(rows: Sequence[dict[str, Any]]) -> str:
    """The second part as Markdown."""
    head = [
        "architecture",
        "plain models differ by",
        "edited models differ by",
        "the edit's effect",
    ]
    keys = ("plain", "edited", "effect")
    return _markdown(head, [[r["architecture"], *(f"{r[k]:.4f}" for k in keys)] for r in rows])


def import_table(rows: Sequence[dict[str, Any]]) -> str:
    """The third part as Markdown."""

    def listed(values: Sequence[int | None]) -> str:
        return " ".join("–" if value is None else str(value) for value in values)

    head = ["made by", "told to be of", "numbers in the file", "are of layers",
            "imported, in layers 0 to 5"]  # fmt: skip
    keys = ("numbers", "of layers", "imported")
    return _markdown(head, [[r["made by"], r["told"], *(listed(r[k]) for k in keys)] for r in rows])


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
