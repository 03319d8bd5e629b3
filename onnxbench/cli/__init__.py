"""The command line: one app, one error boundary. Commands are thin; the library does the work."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer

from onnxbench.cli._boundary import bounded
from onnxbench.cli._command import BenchCommand, BenchGroup
from onnxbench.cli._supervision import own_process
from onnxbench.version import __version__

# Command name -> module of onnxbench.cli that holds a function of the same name (with "_" for "-"), and as
# ``COMMAND_CLASS`` the command's class, if it is not BenchCommand.
COMMANDS = (
    "inspect", "find", "extract", "expose", "split", "partition", "unmark", "merge", "edit", "rewrite", "precision",
    "quantize", "build", "show", "check", "explain", "run", "suite", "diff", "bisect", "reduce", "export", "map",
    "build-trt", "plugins", "capability", "migrate", "doctor",
)  # fmt: skip


@cache
def _command(name: str) -> Any:
    """Returns a command. To import and build all of them takes longer than most commands run."""
    function = name.replace("-", "_")
    module = import_module(f"onnxbench.cli.{function}")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=getattr(module, "COMMAND_CLASS", BenchCommand))(getattr(module, function))
    return typer.main.get_command(alone)


class _Commands(BenchGroup):
    """The commands, each of which is made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns all names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns the command of a name, or None."""
        return _command(cmd_name) if cmd_name in COMMANDS else None


app = typer.Typer(
    name="onnxbench",
    cls=_Commands,
    help="ONNX graph surgery and debugging workbench: look into a model, cut it, join it, build it, check it, run it.",
    epilog="Exit codes: 0 fine, 1 a check found something, 2 usage, 3 and up one per kind of error "
    "(see docs/errors.md), 70 a bug, 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onnxbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _open_closed_streams() -> None:
    """Opens standard streams that are closed (``>&-``), so that no other file takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as we live


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits the process with its status.

    Args:
        arguments: What stands after the program's name; ``sys.argv[1:]`` by default.
    """
    _open_closed_streams()
    # Short-lived processes over large graphs make many small objects and almost no cycles.
    gc.set_threshold(200_000, 50, 50)
    os.environ.setdefault("PYTHONUTF8", "1")
    for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))  # so that what is half-written goes
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may have letters that the terminal's encoding lacks
    argv = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(bounded(app, argv))


def entry() -> None:
    """The console command: ``main``, and then out at once, without taking a hundred thousand objects apart."""
    own_process()
    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
