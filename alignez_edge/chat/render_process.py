"""A chat template at work, in a process of its own: this file is a program.

Jinja's sandbox keeps a template from attributes and calls that it should not reach. It does not
keep it from looping for ever, and not from making a text of gigabytes out of a few characters;
nothing inside one process can. So the process has limits: a second of processor time for a text,
half a gigabyte of memory, no file to open. Beyond them it ends, and `template.py` says so.

It is given a line of JSON for the template, then one for each conversation, and answers each with
one: `{"text": …}`, `{"refused": …}` (the template's own words) or `{"error": …}`. The settings of
Jinja are those that chat templates are written for (transformers, and llama-cpp-python after it).
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

SECONDS = 1.0
MEMORY = 512 << 20  # bytes of address space, where the system counts them
MAX_TEXT = 1 << 24  # characters
_EVERYTHING = r"""
{{ strftime_now('%d %B %Y') ~ 'é\n\u00e9'|title|urlize ~ messages|tojson|wordwrap ~ lipsum(1) }}
{{ messages|pprint|trim ~ [3]|random ~ {'a': 'é'}|xmlattr|urlencode ~ raise_exception('') }}
"""


class Refused(Exception):
    """What a template raises by itself."""


def serve(paths: list[str]) -> None:
    """Answer standard input on standard output until it ends; `paths` are where Jinja lies."""
    sys.path[:0] = paths
    compiled = prepare()
    limit()
    template = None
    for line in sys.stdin:
        given = json.loads(line)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # what it sends ends the process
        try:
            if template is None:
                template = compiled(given["source"], given["bos"], given["eos"])
                answer = {"text": ""}
            else:
                answer = {"text": template(given["messages"])}
        except Refused as refusal:
            answer = {"refused": str(refusal)}
        except Exception as error:  # whatever an untrusted program provokes in Jinja
            answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
        if len(answer.get("text", "")) > MAX_TEXT:
            answer = {"error": f"a prompt of {len(answer['text'])} characters"}
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def prepare() -> Callable[[str, str, str], Callable[[list[Any]], str]]:
    """A function (source, bos, eos) -> function (messages) -> text."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model is trained on; here it stands for its body."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def refuse(message: object) -> None:
        raise Refused(str(message))

    def compiled(source: str, bos: str, eos: str) -> Callable[[list[Any]], str]:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = tojson
        template = environment.from_string(source)

        def rendered(messages: list[Any]) -> str:
            return template.render(
                messages=messages,
                bos_token=bos,
                eos_token=eos,
                add_generation_prompt=True,
                # Models that can think aloud first are asked not to: an answer is what is steered.
                enable_thinking=False,
                tools=None,
                tool_choice=None,
                functions=None,
                function_call=None,
                raise_exception=refuse,
                strftime_now=lambda form: datetime.now().strftime(form),
            )

        return rendered

    with contextlib.suppress(Refused):  # what is imported late, and for errors, is imported now
        compiled(_EVERYTHING, "", "")([])
    return compiled


def limit() -> None:
    """Give away what rendering a text does not need."""
    time.localtime()  # which opens a file
    if sys.platform == "win32":  # where template.py's clock is the only limit
        return
    import resource

    for name, most in (
        ("RLIMIT_AS", MEMORY), ("RLIMIT_NOFILE", 3), ("RLIMIT_FSIZE", 0), ("RLIMIT_NPROC", 0),
        ("RLIMIT_CORE", 0),
    ):  # fmt: skip
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has all
            resource.setrlimit(getattr(resource, name), (most, most))


if __name__ == "__main__":
    serve(sys.argv[1:])
