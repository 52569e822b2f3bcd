"""`python -m demo_model [corpus|train|export|parity|report|ship|all]`: the steps, in order.

`python -m demo_model dpo --axis AXIS` starts from the model as shipped and is no part of `all`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alignez_edge.demo.rules import AXES
from demo_model import data, dpo, export, parity, report, ship, train
from demo_model.settings import DEFAULT, WORK

STEPS = ("corpus", "train", "export", "parity", "report", "ship")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo_model", description=__doc__)
    parser.add_argument("step", nargs="?", choices=(*STEPS, "all", "dpo"), default="all")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the files made")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=report.SEEDS, help="answers in the report")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    parser.add_argument(
        "--percent", type=int, choices=train.SNAPSHOTS, default=100,
        help="export, compare and ship the weights of this part of the run",
    )  # fmt: skip
    parser.add_argument("--axis", choices=AXES, default="cheerful", help="what dpo tunes towards")
    return parser.parse_args(arguments)


def perform(step: str, options: argparse.Namespace) -> int:
    """Do one step; the exit code."""
    work: Path = options.work
    if step == "corpus":
        data.build(DEFAULT, work, options.threads)
    elif step == "train":
        done = train.run(DEFAULT, work, options.threads, compiled=not options.no_compile)
        if not done:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    elif step == "export":
        export.run(DEFAULT, work, options.percent)
    elif step == "parity":
        return 0 if parity.run(DEFAULT, work, options.percent).passed else 1
    elif step == "report":
        return 0 if report.run(DEFAULT, work, options.seeds) else 1
    elif step == "ship":
        ship.run(DEFAULT, work, options.percent)
    else:
        dpo.run(options.axis)
    return 0


def is_finished(step: str, work: Path) -> bool:
    """Whether `all` may skip a step; the checks are always made anew."""
    if step == "corpus":
        return data.finished(work)
    if step == "train":
        return train.finished(work)
    last = export.gguf_path(work, export.QUANTIZATIONS[-1])
    weights = train.weights_path(work)
    return step == "export" and last.exists() and last.stat().st_mtime > weights.stat().st_mtime


def main() -> int:
    """Run what the command line asks for."""
    options = parsed()
    steps = STEPS if options.step == "all" else (options.step,)
    try:
        for step in steps:
            if options.step == "all" and is_finished(step, options.work):
                print(f"{step}: already done", flush=True)
                continue
            code = perform(step, options)
            if code:
                return code
    except (data.StaleWorkError, ship.ShippingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
