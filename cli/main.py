"""The entry point of `alignez`: the commands, and the one place where errors become words.

Nothing heavy is imported before a command needs it: `alignez --help` must answer at once.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130

try:  # Ctrl-C may come while all this is read
    from collections.abc import Sequence
    from typing import Annotated

    import typer

    from alignez_edge import __version__
    from alignez_edge.errors import AlignezError

    from . import bench, build, chat, demo, model, plot, run
    from .eval.command import eval_
    from .judge.command import judge
    from .output import abandon, complain, tell
    from .profile.commands import app as profile
except KeyboardInterrupt:
    sys.exit(INTERRUPTED)

# Typer brings its own copy of click from some version on; its parameter error leads to either's.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="alignez",
    help="Steer quantized local language models without labels and without training.",
    epilog="Start with: alignez demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"alignez {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(demo.demo)
app.command()(build.build)
app.command()(run.run)
app.command()(chat.chat)
app.command("eval")(eval_)
app.command()(judge)
app.command()(plot.report)
app.command()(bench.bench)
app.add_typer(profile, name="profile")
app.add_typer(model.app, name="model")
app.add_typer(plot.app, name="plot")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong use, 130 Ctrl-C."""
    try:
        return _main(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return INTERRUPTED


def _main(arguments: list[str]) -> int:
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows escapes where it lacks a character.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as failure:
        code = code or _failed(failure)
        abandon(sys.stdout)
    return code


def _open_streams() -> None:
    """Let the streams that were closed by whoever started us (`>&-`) lead nowhere.

    Files that are opened later would get their numbers, and with them what is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _run(arguments: list[str]) -> int:
    try:
        returned = app(args=arguments, prog_name="alignez", standalone_mode=False)
        return returned if isinstance(returned, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as leaving:  # what click makes of a reader that closed the pipe
        return leaving.code if isinstance(leaving.code, int) else 1
    except UsageError as failure:
        return _misused(failure)
    except Exception as failure:
        if "--debug" in arguments:
            import traceback

            tell(traceback.format_exc(), end="")
        return _failed(failure)


def _misused(failure: Exception) -> int:
    context = getattr(failure, "ctx", None)
    if type(failure).__name__ == "NoArgsIsHelpError" and context is not None:
        print(context.get_help())
        return 0
    path = getattr(context, "command_path", "alignez")
    message = " ".join(failure.format_message().split())  # type: ignore[attr-defined]
    complain(message[0].lower() + message[1:].rstrip("."), f"see: {path} --help")
    return 2


def _failed(failure: Exception) -> int:
    if isinstance(failure, BrokenPipeError):
        return 1
    if isinstance(failure, AlignezError):
        complain(failure.message, failure.hint)
        return failure.exit_code
    if isinstance(failure, OSError) and failure.strerror:
        place = f": {failure.filename}" if failure.filename else ""
        complain(f"{failure.strerror.lower()}{place}")
        return 1
    words = " ".join(f"{type(failure).__name__}: {failure}".split())
    complain(f"unexpected {words}", "run it again with --debug for the details")
    return 1


if __name__ == "__main__":
    sys.exit(main())
