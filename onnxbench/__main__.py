"""``python -m onnxbench`` is the command line."""

from __future__ import annotations

from onnxbench.cli import main

if __name__ == "__main__":
    main()
