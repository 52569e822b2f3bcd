"""Judges: which of two answers shows more of one side of an axis.

`judge_of` reads what a user wrote after `--judge`; each kind of judge has a module of its own.
"""

from __future__ import annotations

from alignez_edge.errors import BadInputError
from alignez_edge.files import printable
from alignez_edge.judging import Judge

FORMS = "demo"


def judge_of(text: str) -> Judge:
    """The judge that `text` names: `demo`.

    What can be checked without judging is checked here. Raises `BadInputError`.
    """
    if text == "demo":
        from alignez_edge.judges.demo import DemoJudge

        return DemoJudge()
    raise BadInputError(f"no judge is called {printable(text, 120)!r}", f"a judge is one of {FORMS}")
