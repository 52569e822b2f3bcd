"""The report: the demo model's figures by the rule judge, and what is checked of them.

Everything runs through the project's own runtime, in several processes of one thread each (a
model of this size gains nothing from more). It leaves `report.json`, the training curve and the
model card in the work folder; `ship` takes them from there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignez_edge.demo.rules import AXES
from alignez_edge.runtime.cores import usable_cores
from demo_model import card, corpus, export, measure, parity
from demo_model.measure import BRIEF, CHAT, CONDITIONS, FORMS, PLAIN, Condition, Figure, Judged
from demo_model.settings import Settings

SEEDS = 8
"""Answers to each query and condition. With three, the noise alone of an answer's score (its
standard deviation is near 0.8 for plain answers) would move a mean by up to 0.1."""
FORM_SEEDS = 3
CORPUS_SEEDS = 40
FULL = "F16"
KINDS = (FULL, *export.QUANTIZATIONS)

LEAST_DIFFERENCE = 1.0
LEAST_KNOWLEDGE = 0.85
MOST_LOOPS = 0.02
MOST_DEVIATION = 0.1
CORPUS_PROBE = 5000  # documents that two processes must make alike

Table = dict[str, Figure]
Answers = dict[Condition, Judged]


@dataclass(frozen=True)
class Check:
    """One requirement: what is asked, what was found, whether that is enough."""

    name: str
    asked: str
    found: str
    passed: bool


def report_path(work: Path) -> Path:
    """All figures as JSON."""
    return work / "report.json"


def corpus_digest(seed: int) -> str:
    """SHA-256 of the first documents of the corpus with that seed."""
    digest = hashlib.sha256()
    for document in islice(corpus.documents(seed), CORPUS_PROBE):
        digest.update(document.text().encode())
    return digest.hexdigest()


def run(settings: Settings, work: Path, seeds: int = SEEDS) -> bool:
    """Measure, write `report.json`, the picture and the card; whether every check passed."""
    answers, of_corpus, digests = _measured(settings, work, seeds)
    tables = {kind: measure.figures(answers[kind, CHAT]) for kind in KINDS}
    forms = {form: measure.figures(answers[FULL, form]) for form in FORMS}
    deviations = {kind: deviation(tables[kind], tables[FULL]) for kind in export.QUANTIZATIONS}
    shipped = chosen(work, deviations)
    compared = json.loads(parity.report_path(work).read_text())
    checks = [
        *_parity_checks(compared),
        *_table_checks(tables[FULL]),
        _quantization_check(shipped, deviations[shipped]),
        *(_form_check(form, table) for form, table in forms.items()),
        Check("two runs of the generator", "one corpus, byte for byte",
              "alike" if len(set(digests)) == 1 else "different", len(set(digests)) == 1),
    ]  # fmt: skip

    found: dict[str, Any] = {
        "seeds": {CHAT: seeds, "other forms": FORM_SEEDS},
        "shipped": shipped,
        "bytes": {kind: export.gguf_path(work, kind).stat().st_size for kind in KINDS},
        "parity": compared,
        "corpus": _as_plain(measure.figures(of_corpus)),
        "brief": _as_plain(measure.brief_differences(answers[FULL, CHAT])),
        "models": {kind: _as_plain(table) for kind, table in tables.items()},
        "deviations": {k: {"figure": name, "by": by} for k, (name, by) in deviations.items()},
        "forms": {form: _as_plain(table) for form, table in forms.items()},
        "ends": {
            "corpus": measure.end_shares(of_corpus[PLAIN]),
            "model": measure.end_shares(answers[FULL, CHAT][PLAIN]),
        },
        "correlations": {
            "axes": AXES,
            "corpus": measure.correlations(of_corpus[PLAIN]).tolist(),
            "model": measure.correlations(answers[FULL, CHAT][PLAIN]).tolist(),
        },
        "training": _training(work),
        "checks": [asdict(check) for check in checks],
    }
    report_path(work).write_text(json.dumps(found, indent=1) + "\n")
    card.write(found, settings, work)
    for check in checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.found} "
              f"(asked: {check.asked})")  # fmt: skip
    print(f"to ship: {shipped}; the card is {card.card_path(work)}", flush=True)
    return all(check.passed for check in checks)


def deviation(table: Mapping[str, Figure], full: Mapping[str, Figure]) -> tuple[str, float]:
    """The figure that is furthest from that of the full model, and how far."""
    by = {name: abs(found.mean - full[name].mean) for name, found in table.items()}
    name = max(by, key=lambda key: by[key])
    return name, by[name]


def chosen(work: Path, deviations: Mapping[str, tuple[str, float]]) -> str:
    """The smallest quantization whose every figure is near enough; the nearest if none is."""
    near = [kind for kind, (_, by) in deviations.items() if by <= MOST_DEVIATION]
    if not near:
        return min(deviations, key=lambda kind: deviations[kind][1])
    return min(near, key=lambda kind: export.gguf_path(work, kind).stat().st_size)


def _measured(
    settings: Settings, work: Path, seeds: int
) -> tuple[dict[tuple[str, str], Answers], Answers, list[str]]:
    """Judged answers by (type, form), those of the corpus, and two digests of one corpus."""
    wanted = [(kind, CHAT, c, seeds) for kind in KINDS for c in CONDITIONS]
    wanted += [(FULL, CHAT, c, seeds) for c in BRIEF]
    wanted += [(FULL, form, c, FORM_SEEDS) for form in FORMS if form != CHAT for c in CONDITIONS]
    # Processes of their own: llama.cpp is not forked, and the digests do not share a hash seed.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), spawn) as pool:
        digests = [pool.submit(corpus_digest, settings.seed) for _ in range(2)]
        of_corpus = {c: pool.submit(measure.judged_corpus, c, CORPUS_SEEDS) for c in CONDITIONS}
        of_models = {
            (kind, form, c):
            pool.submit(measure.judged_model, export.gguf_path(work, kind), form, c, n)
            for kind, form, c, n in wanted
        }  # fmt: skip
        _show_progress([*of_corpus.values(), *of_models.values()])
        answers: dict[tuple[str, str], Answers] = {}
        for (kind, form, condition), future in of_models.items():
            answers.setdefault((kind, form), {})[condition] = future.result()
        return (
            answers,
            {condition: future.result() for condition, future in of_corpus.items()},
            [digest.result() for digest in digests],
        )


def _show_progress(futures: Sequence[Future[Judged]]) -> None:
    """Wait for all; a failure is raised at once."""
    started = time.monotonic()
    for done, future in enumerate(as_completed(futures), 1):
        future.result()
        left = (time.monotonic() - started) / done * (len(futures) - done)
        print(f"report: {done} of {len(futures)} sets of answers, about {left:.0f} s left",
              file=sys.stderr, flush=True)  # fmt: skip


def _parity_checks(compared: Mapping[str, Any]) -> list[Check]:
    agreement, largest = compared["top1_agreement"], compared["max_difference"]
    alike, texts = compared["texts_tokenised_alike"], compared["texts"]
    return [
        Check("F16 file against PyTorch, top token", "at least 99% of 200 positions or more",
              f"{agreement:.1%} of {compared['positions']} positions, largest difference of a "
              f"logit {largest:.4f}", agreement >= 0.99 and compared["positions"] >= 200),
        Check("tokenization", "1,000 corpus lines and unseen Unicode alike",
              f"{alike:,} of {texts:,} texts alike", alike == texts >= 1000),
    ]  # fmt: skip


def _table_checks(table: Table) -> list[Check]:
    checks = []
    for axis in AXES:
        difference = table[f"{axis} difference"].mean
        checks.append(
            Check(f"{axis}: asked for one side against the other",
                  f"at least {LEAST_DIFFERENCE:.1f} apart, plain between",
                  f"{difference:.2f} apart, plain {_place(table, axis)}",
                  difference >= LEAST_DIFFERENCE and _is_between(table, axis))
        )  # fmt: skip
    knowledge, loops = table["knowledge"].mean, table["loops"].mean
    return [
        *checks,
        Check("knowledge of helpful answers", f"at least {LEAST_KNOWLEDGE:.0%}",
              f"{knowledge:.1%}", knowledge >= LEAST_KNOWLEDGE),
        Check("loops", f"at most {MOST_LOOPS:.0%}", f"{loops:.2%}", loops <= MOST_LOOPS),
    ]  # fmt: skip


def _quantization_check(kind: str, found: tuple[str, float]) -> Check:
    name, by = found
    return Check(f"{kind} against F16", f"every figure within {MOST_DEVIATION}",
                 f"at most {by:.3f} ({name})", by <= MOST_DEVIATION)  # fmt: skip


def _form_check(form: str, table: Table) -> Check:
    """A form works when it steers as the table asks and the answer is about the topic."""
    least = min(AXES, key=lambda axis: table[f"{axis} difference"].mean)
    difference, topic = table[f"{least} difference"].mean, table["on topic"].mean
    between = all(_is_between(table, axis) for axis in AXES)
    return Check(f"form of prompt: {form}",
                 f"every axis at least {LEAST_DIFFERENCE:.1f} apart, plain between, "
                 "90% of helpful answers name the topic",
                 f"at least {difference:.2f} ({least}), plain "
                 f"{'between' if between else 'NOT between'}, {topic:.0%} name it",
                 difference >= LEAST_DIFFERENCE and between and topic >= 0.9)  # fmt: skip


def _is_between(table: Table, axis: str) -> bool:
    low, plain, high = (table[f"{axis} {s}"].mean for s in ("negative", "plain", "positive"))
    return low < plain < high


def _place(table: Table, axis: str) -> str:
    return "between" if _is_between(table, axis) else "NOT between"


def _training(work: Path) -> dict[str, float]:
    """The last point of the training curve."""
    steps, tokens, trained, held_out = card.curve(work)[-1]
    return {"steps": steps, "tokens": tokens, "loss": trained, "held_out_loss": held_out}


def _as_plain(table: Mapping[str, Figure]) -> dict[str, dict[str, float]]:
    return {name: asdict(found) for name, found in table.items()}
