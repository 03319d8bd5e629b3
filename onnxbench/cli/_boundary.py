"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from onnxbench.cli._progress import bars
from onnxbench.cli._render import print_error_json
from onnxbench.errors import BenchError, OutputError
from onnxbench.version import __version__

INTERRUPTED = 130
BUG = 70


def bounded(app: Callable[..., Any], argv: list[str]) -> int:
    """Runs the app on ``argv`` and returns the exit status; prints one clear message on any error."""
    try:
        with bars():
            return _status(lambda: app(args=argv, prog_name="onnxbench", standalone_mode=True))
    except BenchError as error:
        return _report(error, argv)
    except KeyboardInterrupt:
        print("onnxbench: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RecursionError as error:
        return _bug(error, argv)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            return _report(OutputError(f"{error.strerror}: {error.filename or 'while writing'}"), argv)
        return _bug(error, argv)
    except Exception as error:  # the boundary: whatever else arrives here is a bug of onnxbench
        return _bug(error, argv)


def _status(call: Callable[[], Any]) -> int:
    """Returns the status a click-style app ends with; Ctrl-C and a closed pipe, which it turns into exits, stay so."""
    try:
        call()
    except SystemExit as end:
        for kind in (KeyboardInterrupt, BrokenPipeError):
            if _came_of(end, kind):
                raise kind from None
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0


def _came_of(error: BaseException, kind: type[BaseException]) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, kind):
            return True
        chain = chain.__context__
    return False


def _report(error: BenchError, argv: list[str]) -> int:
    if "--json" in argv:
        print_error_json(error, command=argv[0] if argv else "")
    print(f"onnxbench: error: {error.message}", file=sys.stderr)
    for line in error.details:
        print(f"  {line}", file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    return error.exit_code


def _bug(error: BaseException, argv: list[str]) -> int:
    """Saves a report of an unexpected error and says where it is."""
    text = "\n".join(
        [
            f"onnxbench {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"arguments: {argv!r}",
            *(f"{name} {_version_of(name)}" for name in ("onnx", "onnxruntime", "protobuf", "numpy", "typer")),
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    with tempfile.NamedTemporaryFile(
        "w", prefix="onnxbench-report-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    print(
        f"onnxbench: this is a bug in onnxbench: {type(error).__name__}: {error}\n"
        f"A report with versions and the traceback was saved to {file.name}; please attach it to an issue.",
        file=sys.stderr,
    )
    return BUG


def _version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
