"""The committed fixtures as test cases, by what the manifest says about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "fixtures"
sys.path.insert(0, str(FIXTURES))

from gen.verify import feeds_for  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One model of the manifest."""

    entry: dict[str, Any]

    @property
    def name(self) -> str:
        file = str(self.entry["file"])
        return file.removesuffix("/model.onnx").split("/", 1)[1]

    @property
    def path(self) -> Path:
        return FIXTURES / str(self.entry["file"])

    @property
    def valid(self) -> str:
        return str(self.entry["valid"])

    @property
    def error(self) -> str:
        return str(self.entry["error"])

    @property
    def engine(self) -> str | None:
        """ONNX Runtime if it runs the model, else the reference evaluator if that does, else None."""
        runs = self.entry["runs_in"]
        return "ort" if "ort" in runs else None if runs == ["none"] else "reference"

    @property
    def is_external(self) -> bool:
        return self.path.name in ("model.onnx", "net.onnx")

    def whole(self) -> onnx.ModelProto:
        """Returns the model with all its weights, read by onnx itself."""
        return onnx.load(str(self.path)) if self.path.suffix == ".onnx" else onnx.load(str(self.path), format=None)

    def feeds(self) -> dict[str, Any]:
        """Returns inputs on which the model runs."""
        return feeds_for(self.whole(), self.entry.get("feeds", {}))


@cache
def all_cases() -> tuple[Case, ...]:
    """Returns every model of the manifest, in its order."""
    entries = json.loads((FIXTURES / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    return tuple(Case(entry) for entry in entries if entry["role"] == "model")


def cases(keep: Callable[[Case], bool]) -> Any:
    """Returns a parametrization ``case`` over the models for which ``keep`` holds."""
    chosen = [case for case in all_cases() if keep(case)]
    assert chosen, "a test over no models proves nothing"
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])


def named(name: str) -> Case:
    """Returns the one fixture of that name, ``.onnx`` understood."""
    (case,) = [case for case in all_cases() if case.name in (name, f"{name}.onnx")]
    return case
