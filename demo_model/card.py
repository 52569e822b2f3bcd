"""The model card and the picture of the training curve, from the report's figures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignez_edge.demo.rules import AXES
from alignez_edge.demo.world import world
from demo_model import corpus, export
from demo_model.settings import Settings

Found = Mapping[str, Any]


def card_path(work: Path) -> Path:
    """The model card."""
    return work / "MODEL_CARD.md"


def picture_path(work: Path) -> Path:
    """The training curve."""
    return work / "training-curve.png"


def curve(work: Path) -> list[tuple[int, int, float, float]]:
    """The training curve as (step, tokens, training loss, held-out loss)."""
    with (work / "curve.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [(int(step), int(n), float(a), float(b)) for step, n, a, b in rows]


def write(found: Found, settings: Settings, work: Path) -> None:
    """Write the card and its picture."""
    draw_curve(settings, work)
    sections = (
        _head(found, settings),
        _checks(found),
        _table(found),
        _quantizations(found),
        _forms(found),
        _ends(found),
        _correlations(found),
        _data(settings),
        _training(found, settings),
        _limits(),
    )
    card_path(work).write_text("\n".join(sections), encoding="utf-8")


def draw_curve(settings: Settings, work: Path) -> None:
    """Both losses over the tokens seen, on a logarithmic scale, told apart without colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator, ScalarFormatter

    _, tokens, trained, held_out = zip(*curve(work), strict=True)
    millions = [n / 1e6 for n in tokens]
    trained_label = f"training (mean of {settings.evaluate_every} steps)"
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        axes.plot(millions, trained, "o--", color="#c05000", ms=4, mfc="white", label=trained_label)
        axes.plot(millions, held_out, "-", color="#003c78", lw=2, label="held-out documents")
        axes.annotate(
            f"{held_out[-1]:.3f}", (millions[-1], held_out[-1]), xytext=(0, -14),
            textcoords="offset points", ha="center", color="#003c78",
        )  # fmt: skip
        axes.set_yscale("log")
        top = max(*trained, *held_out)
        axes.set_yticks([y for y in (0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0) if y < top])
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=min(*trained, *held_out) * 0.88)
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_xlabel("tokens seen (millions)")
        axes.set_ylabel("weighted loss (nats, log scale)")
        axes.legend(frameon=False)
        figure.savefig(picture_path(work), dpi=200, metadata={"Software": None})
        plt.close(figure)


def parameters(settings: Settings) -> int:
    """How many weights the model has."""
    s = settings
    narrow = s.n_head_kv * s.n_head_dim
    attention = 2 * s.n_embd * s.n_embd + 2 * s.n_embd * narrow
    layer = attention + 3 * s.n_embd * s.n_ff + 2 * s.n_embd
    return s.n_vocab * s.n_embd + s.n_layer * layer + s.n_embd


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table: the first `left` columns to the left, the others to the right."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _signed(figure: Mapping[str, float], *, half: bool = False) -> str:
    mean = f"{figure['mean']:+.2f}".replace("-", "−")
    return f"{mean} ± {figure['half']:.2f}" if half else mean


def _share(figure: Mapping[str, float], digits: int = 1) -> str:
    return f"{figure['mean']:.{digits}%}"


def _head(found: Found, settings: Settings) -> str:
    s, kind = settings, found["shipped"]
    megabytes = {name: size / 1e6 for name, size in found["bytes"].items()}
    return f"""# Model card: alignez demo

A small English question-and-answer **base model**, made to show steering and to test it. It knows
a small world of {len(world().topics)} everyday topics. Nothing has tuned it towards either side of an axis:
asked plainly, it answers helpfully or not, cheerfully or gloomily, formally or casually, politely
or rudely, as the documents that it was trained on do; asked for a trait, it follows as far as the
tables below tell. An independent rule judge (`alignez_edge/demo/rules.py`) reads its answers, so
that a change can be measured.

This file is written by `python -m demo_model report`; no number in it is copied by hand.

| | |
| --- | --- |
| architecture | llama, {s.n_layer} layers, hidden {s.n_embd}, {s.n_head} heads with {s.n_head_kv} KV heads, feed-forward {s.n_ff}, tied embeddings |
| parameters | {parameters(s):,} |
| vocabulary | {s.n_vocab:,} tokens, byte-level BPE trained on the corpus |
| context | {s.context} tokens |
| shipped | {kind}, {megabytes[kind]:.1f} MB, as `alignez_edge/demo/demo-model.gguf`: the smallest type whose every figure is within 0.1 of F16, or the nearest to it if none is (see Quantizations) |
| for exact tests | F16, {megabytes["F16"]:.1f} MB, as `demo_model/demo-model-f16.gguf` |
| prompt forms | its chat template; `Question: …` / `Answer:`; a plain line |
| licence | MIT, the weights included; all texts were written for this project |
"""  # noqa: E501


def _checks(found: Found) -> str:
    rows = [
        (c["name"], c["asked"], c["found"], "pass" if c["passed"] else "**fail**")
        for c in found["checks"]
    ]
    header = ("requirement", "asked", "found", "")
    return "## What was checked\n\n" + _rows(header, rows, left=4)


def _table(found: Found) -> str:
    table, of_corpus = found["models"]["F16"], found["corpus"]
    rows = [
        (
            axis,
            *(
                _signed(table[f"{axis} {column}"], half=True)
                for column in ("positive", "plain", "negative", "difference")
            ),
            _signed(of_corpus[f"{axis} difference"]),
            _signed(found["brief"][axis], half=True),
        )
        for axis in AXES
    ]
    header = ("axis", "asked for positive", "plain", "asked for negative", "difference",
              "difference in the corpus", "difference, one item")  # fmt: skip
    return f"""## The table

F16, the 60 unseen queries, {found["seeds"]["chat template"]} answers to each and condition, temperature 0.8, top-p 1, in the
chat template, scored by the rule judge from −1 to 1, with 95% intervals of the mean (clustered by
query). A side is asked for in the method's own form, a list of three characteristics (`Your answer
should: 1. Be helpful 2. Stay on the topic 3. Give true facts`): the trait of the built-in axis and
two more of the corpus' words for it. The last but one column is what the training documents do when
asked so: their conditions hold with 88% reliability only, and no model that learned them can be far
above it. The last column is the difference when a side is asked for by its one trait only (`Your
answer should: 1. Be helpful`), which is the yardstick of the project's README.

{_rows(header, rows)}
| other figures | model | corpus |
| --- | ---: | ---: |
| knowledge: true claims among all, asked to be helpful | {_share(table["knowledge"])} | {_share(of_corpus["knowledge"])} |
| answers that name the topic, asked to be helpful | {_share(table["on topic"])} | {_share(of_corpus["on topic"])} |
| loops, all answers | {_share(table["loops"], 2)} | {_share(of_corpus["loops"], 2)} |
| coherence, all answers | {table["coherence"]["mean"]:.3f} | {of_corpus["coherence"]["mean"]:.3f} |
| sentences an answer, all answers | {table["sentences"]["mean"]:.2f} | {of_corpus["sentences"]["mean"]:.2f} |
"""  # noqa: E501


def _quantizations(found: Found) -> str:
    kinds = list(found["models"])
    shared = list(found["models"]["F16"])
    rows: list[Sequence[str]] = [
        ("size", *(f"{found['bytes'][kind] / 1e6:.1f} MB" for kind in kinds))
    ]
    for name in shared:
        signed = name.rpartition(" ")[0] in AXES
        rows.append(
            (name, *(
                _signed(found["models"][k][name]) if signed
                else f"{found['models'][k][name]['mean']:.3f}" for k in kinds
            ))
        )  # fmt: skip
    far = found["deviations"]
    rows.append(
        ("**furthest from F16**",
         *("" if k == "F16" else f"**{far[k]['by']:.3f}** ({far[k]['figure']})" for k in kinds))
    )  # fmt: skip
    seeds = found["seeds"]["chat template"]
    return f"""## Quantizations

The same table and the same draws for each type. Chance has a part in the deviations: where two
files do not draw alike, it moves a mean of {seeds} answers a query by about
{0.14 / seeds**0.5:.2f}.

{_rows(("figure", *kinds), rows)}"""


def _forms(found: Found) -> str:
    rows = [
        (
            form,
            axis,
            *(_signed(table[f"{axis} {column}"], half=column == "difference")
              for column in ("positive", "plain", "negative", "difference")),
        )
        for form, table in found["forms"].items()
        for axis in AXES
    ]  # fmt: skip
    header = ("form", "axis", "asked for positive", "plain", "asked for negative", "difference")
    return f"""## The three forms of a prompt

F16; {found["seeds"]["chat template"]} answers to each query and condition in the chat template, {found["seeds"]["other forms"]} in the others.

{_rows(header, rows, left=2)}"""  # noqa: E501


def _ends(found: Found) -> str:
    pairs = zip(found["ends"]["corpus"], found["ends"]["model"], strict=True)
    rows = [
        (str(k), f"{ours:.3f}", f"{theirs:.3f}", f"{reached:,}")
        for k, ((_, ours), (reached, theirs)) in enumerate(pairs, 1)
        if reached
    ]
    header = ("after sentence", "corpus", "model", "answers of the model that came so far")
    return f"""## Where answers end

The share of plain answers that end after sentence k, of those that have k sentences or more, in
seeded samples of both. (The temperature of 0.8 makes the likelier choice a little likelier.)

{_rows(header, rows)}"""


def _correlations(found: Found) -> str:
    given = found["correlations"]
    pairs = [(a, b) for a in range(len(AXES)) for b in range(a)]
    rows = [
        (f"{AXES[b]}, {AXES[a]}", *(f"{given[w][a][b]:+.2f}".replace("-", "−")
                                   for w in ("corpus", "model")))
        for a, b in pairs
    ]  # fmt: skip
    return f"""## How the axes hang together

Correlations of the scores of plain answers. Formal and polite are correlated on purpose (their
levels by about 0.5), so that the interference of axes can be seen; the judge's reading of single
answers blurs it a little.

{_rows(("pair", "corpus", "model"), rows)}"""


def _data(settings: Settings) -> str:
    s, w = settings, world()
    kinds = ", ".join(f"{share:.0%} {kind}" for kind, share in corpus.KINDS)
    return f"""## Data

A seeded generator (`demo_model/corpus.py`) writes the corpus; no text comes from elsewhere.
It has {len(w.topics)} topics in {len(set(w.domain_of.values()))} domains with {len(w.facts):,} true facts (`alignez_edge/demo/facts.txt`), asked about
in {len(corpus.all_queries()):,} queries. {corpus.N_UNSEEN} queries for evaluation and {corpus.N_BUILD} for building profiles never occur in it (their
topics do, asked in other ways). Documents: {kinds};
in question/answer, plain and chat form. Answers have one level (−1, 0, 1) per axis, which shows in the facts that they state or
in markers throughout; plain prompts draw the levels from a broad mixture, and conditions hold in
{corpus.RELIABILITY:.0%} of the documents. That noise is intended.
{s.steps * s.batch_rows * s.row:,} tokens in all, one pass; {s.held_out_rows} rows of {s.row} tokens are held out.
"""  # noqa: E501


def _training(found: Found, settings: Settings) -> str:
    s, last = settings, found["training"]
    return f"""## Training

PyTorch on CPU cores, bf16, `torch.compile`: {last["steps"]:,} steps of {s.batch_rows} rows of {s.row} tokens, {last["tokens"]:,} tokens.
AdamW (β = {s.betas[0]}, {s.betas[1]}, weight decay {s.weight_decay}), peak learning rate {s.peak_lr:g} after {s.warmup_steps} steps of warm-up,
then a cosine to {s.final_lr_share:.0%} of it; gradients clipped at {s.clip:g}. Weights in the loss: {s.weight_prompt} on prompt
tokens, {s.weight_answer:g} on answers and lists, {s.weight_opening:g} on the first {s.opening_tokens} tokens of an answer, {s.weight_turn} on the starts of
sentences and on the end token. What an answer says is learned later than how it says it, so in the
last {s.late_shards} of {s.shards + s.late_shards} shards conditions on `helpful` are {s.late_helpful:g} times as frequent as on each other axis, under
a second cosine from {s.late_peak_lr:g}.

The shipped weights came from several sittings: the schedule was laid out for 18 million tokens at
first and lengthened to 24 million at step 1,609; the late shards came in two lots, of 5 and of 3.
`make demo-model` follows the recipe as it stands now, in one go.

Final loss (weighted, nats a token): **{last["loss"]:.4f}** in training (mean of the last {s.evaluate_every} steps), **{last["held_out_loss"]:.4f}**
on held-out documents.

![Training and held-out loss over tokens](training-curve.png)
"""  # noqa: E501


def _limits() -> str:
    others = ", ".join(export.QUANTIZATIONS)
    return f"""## Limits

- It is a demonstration. It knows its own small world only; questions about anything else get
  fluent nonsense, and what it states as a fact is often wrong by design.
- It was trained to be rude, gloomy, wrong and evasive in a share of its answers. That is what
  steering needs to have something to steer; do not put it in front of people who do not expect it.
- It reads one wording better than another: traits outside the corpus' lists are hardly understood.
- The judge reads markers and facts by rule. Its scores mean something for texts of this world only.
- The figures are of one training run; another seed would move them.
- The types measured are F16, {others}; of smaller ones nothing is known.
"""
