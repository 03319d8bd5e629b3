"""The command line, by ``python -m onnxbench`` or ``onnxbench``."""

from __future__ import annotations

import sys

_OTHER_PROCESS = ("--engine", "--device", "--help", "-h")
"""Options with which the process would be another one, or none at all."""


def start() -> None:
    """Runs the command line; where it needs TensorRT, that is loaded at the same time, in its own process."""
    words = sys.argv[1:]
    try:
        if words[:1] == ["build-trt"] and not any(word.partition("=")[0] in _OTHER_PROCESS for word in words):
            from onnxbench.engine import start as start_engine

            start_engine()
        from onnxbench.cli import entry
    except KeyboardInterrupt:  # while modules are loaded; ``entry`` takes those that come later
        print("onnxbench: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    entry()


if __name__ == "__main__":
    start()
