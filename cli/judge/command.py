"""`alignez judge`: whether a judge can tell better answers from worse ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from alignez_edge.errors import BadInputError
from alignez_edge.files.folders import cache_dir
from alignez_edge.files.reading import read_text
from alignez_edge.files.text import printable
from alignez_edge.files.writing import alone_in, make_folder, write_atomic

from ..groups import grouped
from ..layout import table
from ..options import GpuLayersOption, SeedOption, ThreadsOption, at_least, find_axis
from ..output import Output, can_ask
from . import person

if TYPE_CHECKING:
    from alignez_edge.judges.judging import Judge
    from alignez_edge.judges.named import JudgeSettings, ModelWay
    from alignez_edge.judges.quality import JudgeReport, KnownPair, Orders, Tally


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is asked."""

    judge_by: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            help="How a model judges: short or paper (a prompt), or likelihood (of the answers).",
        ),
    ] = "short"
    one_order: Annotated[
        bool,
        typer.Option(
            "--one-order",
            help="Show models and programs each pair once, not in both orders.",
        ),
    ] = False
    judge_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Seconds to wait for a verdict of a program; 300 if not given."
        ),
    ] = None

    def __post_init__(self) -> None:
        from alignez_edge.judges.named import MODEL_WAYS

        if self.judge_by not in MODEL_WAYS:
            raise BadInputError(
                f"--judge-by cannot be {self.judge_by!r}", f"choose from {', '.join(MODEL_WAYS)}"
            )
        if self.judge_timeout is not None and not 0 < self.judge_timeout < math.inf:
            raise BadInputError(f"--judge-timeout is {self.judge_timeout}; it must be above 0")

    def settings(
        self, *, threads: int | None = None, gpu_layers: int | None = None, seed: int = 0
    ) -> JudgeSettings:
        """As `judge_of` takes them; a person is asked at the terminal, where there is one."""
        from alignez_edge.judges.named import JudgeSettings

        return JudgeSettings(
            both_orders=not self.one_order,
            by=cast("ModelWay", self.judge_by),
            threads=threads,
            gpu_layers=gpu_layers,
            timeout=self.judge_timeout,
            ask=person.ask if can_ask() else None,
            seed=seed,
        )


@grouped
def judge(
    name: Annotated[
        str,
        typer.Argument(
            metavar="JUDGE",
            help="demo, FILE.toml, FILE.gguf, model:NAME, command:PROGRAM ARGS, or human.",
        ),
    ],
    *,
    axis: Annotated[
        list[str],
        typer.Option(
            metavar="AXIS",
            help="Test it on this axis; may be repeated. Else on all that have test pairs.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - typer copies it
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Test pairs of your own for one axis, JSON lines: query, chosen, rejected.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use the first N pairs of each axis only.")
    ] = None,
    asking: JudgeOptions,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    seed: SeedOption = 0,
    out: Output,
) -> None:
    """Test a judge on pairs of answers of which the better one is known.

    Each pair is shown in both orders. The pairs that ship are answers of the demo model on the
    axes helpful, cheerful, formal and polite. A test that was interrupted goes on where it was,
    but for programs, which may have changed.
    """
    from alignez_edge.judges.named import identity_of, judge_of

    at_least("--limit", limit, 1)
    settings = asking.settings(threads=threads, gpu_layers=gpu_layers, seed=seed)
    who = judge_of(name, settings)
    tested = _pairs(who, axis, pairs, limit)
    with out.progress() as progress:
        # A person sees two answers at a time, and how far it is would only be in the way.
        show = None if name == "human" else lambda done, total: progress("judging", done, total)
        report = _measured(who, identity_of(name, settings), tested, show)
    out.record(record_of(report))
    out.result(_page(report))
    _advise(who, report, out)


def _measured(
    who: Judge,
    identity: str | None,
    pairs: Sequence[KnownPair],
    show: Callable[[int, int], None] | None,
) -> JudgeReport:
    """The report on a judge. Until it is there, what one with an `identity` said is kept."""
    from alignez_edge.files.json_log import Log
    from alignez_edge.judges.quality import measure
    from alignez_edge.repeatable import digest

    if identity is None:
        return measure(who, pairs, show)
    asked = [
        (c.query, c.first, c.second, c.axis.wording(), c.side, dict(c.facts))
        for c in (pair.comparison for pair in pairs)
    ]
    folder = make_folder(cache_dir() / "judges" / digest([identity, asked]))
    log = Log(folder / "verdicts.jsonl")

    def keep(orders: Orders) -> None:
        log.append([{"orders": list(map(float, orders))}])

    with alone_in(folder):
        log.repair()
        known = [_orders(record, log.path) for _, record in log.records()]
        report = measure(who, pairs, show, known=known, keep=keep)
        log.path.unlink(missing_ok=True)
    return report


def _orders(record: Mapping[str, Any], path: Path) -> Orders:
    found = record.get("orders")
    if not isinstance(found, list) or [type(x) for x in found] != [float, float]:
        raise BadInputError(f"{printable(str(path))} is damaged", "delete it")
    return found[0], found[1]


def record_of(report: JudgeReport) -> dict[str, Any]:
    """A report as `--json` says it; shares are from 0 to 1, None if nothing was counted."""
    return {
        "judge": report.judge,
        "can_tell": report.can_tell,
        "finding": report.finding,
        "p_value": report.p_value,
        "pairs": report.averaged.n,
        "equal_pairs": report.averaged.equal,
        "both_orders": report.both_orders,
        **_shares(report.used),
        "once": _shares(report.once),
        "position_bias": report.position_bias,
        "contradicted": report.contradicted,
        "by_axis": {axis: _shares(tally) for axis, tally in report.by_axis.items()},
    }


def _shares(tally: Tally) -> dict[str, Any]:
    def known(share: float) -> float | None:
        return None if math.isnan(share) else round(share, 4)

    return {
        "accuracy": known(tally.accuracy),
        "interval": [known(end) for end in tally.interval()],
        "ties": known(tally.ties),
        "equal_ties": known(tally.equal_ties),
    }


def _pairs(
    who: Judge, names: Sequence[str], file: str | None, limit: int | None
) -> list[KnownPair]:
    """What the judge is tested on."""
    from alignez_edge.judges.quality import axes_for, read_test_pairs, shipped_pairs

    if file is not None:
        if len(names) != 1:
            raise BadInputError("--pairs needs one axis", "name it: --axis AXIS")
        axis = find_axis(names[0])
        return list(read_test_pairs(file, axis)[:limit])
    if not (names or (names := axes_for(who))):
        raise BadInputError(
            f"there are no test pairs for the axes of {who.name}",
            "bring your own: --pairs FILE --axis AXIS",
        )
    groups = {name: shipped_pairs(name)[:limit] for name in names}
    if missing := [name for name, pairs in groups.items() if not pairs]:
        raise BadInputError(
            f"there are no test pairs for the axis '{printable(missing[0], 80)}'",
            f"bring your own: --pairs FILE --axis {printable(missing[0], 80)}",
        )
    return [pair for pairs in groups.values() for pair in pairs]


def _page(report: JudgeReport) -> str:
    rows = [["", "right", "interval 95%", "ties", "equal pairs called ties"]]
    rows += [_row(axis, tally) for axis, tally in report.by_axis.items()]
    if len(report.by_axis) > 1:
        rows.append(_row("all", report.used))
    if report.both_orders and report.position_bias is not None:
        rows.append(_row("asked once", report.once))
    lines = [table(rows), ""]
    if report.position_bias is not None and report.contradicted is not None:
        lines.append(
            f"position bias: {report.position_bias:+.0%} of verdicts for the answer shown first;"
            f" the same place won in both orders in {report.contradicted:.0%} of pairs"
        )
    return "\n".join([*lines, report.finding])


def _row(title: str, tally: Tally) -> list[str]:
    low, high = tally.interval()
    ties = "" if math.isnan(tally.equal_ties) else f"{tally.equal_ties:.0%}"
    return [title, f"{tally.accuracy:.0%}", f"{low:.0%} to {high:.0%}", f"{tally.ties:.0%}", ties]


_WHOSE = "the pairs are answers of the demo model; of another model's it may see less"


@contextmanager
def tested(
    who: Judge, axes: Collection[str], folder: Path, out: Output, identity: str | None = None
) -> Iterator[None]:
    """Around an evaluation: test its judge, and say whether it can tell before it is relied on.

    The demo model's rules, from which the test pairs come, and persons are not tested. What was
    found is kept as `judge.json` in the folder of the run, so that a run that goes on does not ask
    again.
    """
    from alignez_edge.files.records import parse_record, text_of
    from alignez_edge.judges.demo import DemoJudge
    from alignez_edge.judges.quality import axes_for, shipped_pairs

    kept = folder / "judge.json"
    if isinstance(who, DemoJudge) or who.name == "human":
        yield
        return
    if kept.exists():
        record = parse_record(read_text(kept, limit=1 << 20, what="judge's test"), kept.name)
        _announce(out, record.get("can_tell") is True, text_of(record, "finding", kept.name))
        yield
        return
    known = [axis for axis in axes_for(who) if axis in axes]
    if untested := sorted(set(axes) - set(known)):
        out.notice(
            f"the judge {printable(who.name, 120)} is not tested on {', '.join(untested)}: no test"
            " pairs (bring your own: alignez judge JUDGE --pairs FILE --axis AXIS)"
        )
    found: JudgeReport | None = None
    if pairs := [pair for axis in known for pair in shipped_pairs(axis)]:
        with out.progress() as progress:
            show = partial(progress, "the judge")
            found = _measured(who, identity, pairs, show)
        _announce(out, found.can_tell, f"{found.finding} ({_WHOSE})")
        _advise(who, found, out)
    try:
        yield
    finally:
        # Not before there is a run: another file would make the folder look like something else.
        if found is not None and (folder / "run.json").exists():
            write_atomic(kept, _kept(found) + b"\n")


def _kept(found: JudgeReport) -> bytes:
    record = record_of(found)
    return json.dumps(record | {"finding": f"{found.finding} ({_WHOSE})"}, indent=2).encode()


def _announce(out: Output, can_tell: bool, finding: str) -> None:
    out.notice(f"{'' if can_tell else 'warning: '}{printable(finding, 500)}")


def _advise(who: Judge, report: JudgeReport, out: Output) -> None:
    """A model that cannot say which answer is better may still know."""
    from alignez_edge.judges.model import ModelJudge

    if not report.can_tell and isinstance(getattr(who, "inner", None), ModelJudge):
        out.notice("small models often judge better with --judge-by likelihood")
