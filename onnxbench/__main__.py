"""``python -m onnxbench`` is the command line."""

from __future__ import annotations

from onnxbench.cli import entry

if __name__ == "__main__":
    entry()
