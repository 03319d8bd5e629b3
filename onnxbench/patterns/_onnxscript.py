"""Rules of onnxscript's rewriter, as a bridge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ScriptRule:
    """A rule in a Python file."""

    file: Path
    name: str


def load_script(reference: str, folder: Path | None = None) -> ScriptRule:
    """Returns the rule."""
    raise NotImplementedError
