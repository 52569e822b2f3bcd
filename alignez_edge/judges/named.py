"""Judges: which of two answers shows more of one side of an axis.

`judge_of` reads what a user wrote after `--judge`; each kind of judge has a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from alignez_edge.errors import BadInputError
from alignez_edge.files.text import printable
from alignez_edge.judges.judging import Judge

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_edge.judges.human import AskPerson

ModelWay = Literal["short", "paper", "likelihood"]
MODEL_WAYS: tuple[ModelWay, ...] = ("short", "paper", "likelihood")
FORMS = ("demo", "FILE.toml", "FILE.gguf", "model:NAME", "command:PROGRAM ARGS", "human")


@dataclass(frozen=True)
class JudgeSettings:
    """How judges are asked, each setting where it applies.

    Models and programs are shown the answers in `both_orders` and may take `timeout` seconds over
    a verdict (programs only; None for the default). Models judge `by` the answer to a short
    prompt or to the paper's, or by how likely they find the answers; `threads` and `gpu_layers`
    are as for `Model.load`. A person is asked through `ask`, in an order that `seed` decides.
    """

    both_orders: bool = True
    by: ModelWay = "short"
    threads: int | None = None
    gpu_layers: int | None = None
    timeout: float | None = None
    ask: AskPerson | None = None
    seed: int = 0


def judge_of(text: str, settings: JudgeSettings = JudgeSettings()) -> Judge:
    """The judge that `text` names, in one of the `FORMS`.

    What can be checked without judging is checked here; models and programs are loaded and started
    when they are first asked. Raises `BadInputError`.
    """
    kind, name = _read(text)
    if kind == "demo":
        from alignez_edge.judges.demo import DemoJudge

        return DemoJudge()
    if kind == "rules":
        from alignez_edge.judges.rules import RuleJudge

        return RuleJudge.load(name)
    if kind == "human":
        return _human(settings)
    return _command(name, settings) if kind == "command" else _model(name, settings)


def identity_of(text: str, settings: JudgeSettings = JudgeSettings()) -> str | None:
    """What is the same for two judges that give the same verdicts, as far as can be known.

    For models and persons, whose verdicts take long; None for others: a program may be another one
    the next time.
    """
    kind, name = _read(text)
    if kind == "human":
        return f"human, seed {settings.seed}"
    if kind != "model":
        return None
    path = _model_path(name)
    if path is None:
        return f"the demo model, {settings.by}"
    file = path.stat()
    return f"{path.resolve()}, {file.st_size}, {file.st_mtime_ns}, {settings.by}"


def _read(text: str) -> tuple[str, str]:
    """What `text` says in one of the `FORMS`: the kind (demo, rules, model, command, human) and
    the file, model or program."""
    kind, _, rest = text.partition(":")
    if text == "demo" or text == "human":
        return text, ""
    if kind == "command" or kind == "model":
        return kind, rest
    if text.lower().endswith(".toml"):
        return "rules", text
    if text.lower().endswith(".gguf"):
        return "model", text
    raise BadInputError(
        f"no judge is called {printable(text, 120)!r}", f"a judge is one of: {', '.join(FORMS)}"
    )


def _command(text: str, settings: JudgeSettings) -> Judge:
    from alignez_edge.judges.command import TIMEOUT, CommandJudge
    from alignez_edge.judges.orders import Asked

    timeout = TIMEOUT if settings.timeout is None else settings.timeout
    return Asked(CommandJudge.parse(text, timeout), settings.both_orders)


def _model_path(name: str) -> Path | None:
    """The file of a model; None for the demo model."""
    from alignez_edge.modelfiles.names import DEMO, ModelNames

    return None if name == DEMO else ModelNames().find(name)


def _model(name: str, settings: JudgeSettings) -> Judge:
    from alignez_edge.files.gguffile import read_gguf
    from alignez_edge.judges.likelihood import LikelihoodJudge
    from alignez_edge.judges.model import TIE_BAND, ModelJudge
    from alignez_edge.judges.orders import Asked
    from alignez_edge.runtime.check import check_model
    from alignez_edge.runtime.model import Model

    path = _model_path(name)
    if path is not None:
        check_model(read_gguf(path))
    shown = "demo-model" if path is None else printable(path.stem, 60)

    def load() -> Model:
        threads, gpu_layers = settings.threads, settings.gpu_layers
        if path is None:
            return Model.demo(threads=threads, gpu_layers=gpu_layers)
        return Model.load(path, threads=threads, gpu_layers=gpu_layers)

    if settings.by == "likelihood":  # which reads each answer by itself
        return Asked(LikelihoodJudge(f"{shown} (likelihood)", load), False, TIE_BAND)
    judge = ModelJudge(f"{shown} ({settings.by} prompt)", load, settings.by)
    return Asked(judge, settings.both_orders, TIE_BAND)


def _human(settings: JudgeSettings) -> Judge:
    from alignez_edge.judges.human import HumanJudge
    from alignez_edge.judges.orders import Asked

    if settings.ask is None:
        raise BadInputError("a person can only judge at a terminal")
    return Asked(HumanJudge(settings.ask, settings.seed), both_orders=False)
