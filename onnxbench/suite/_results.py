"""What a suite showed: a cell for each model in each pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxbench.drift import TensorDrift
from onnxbench.timing import Latency
from onnxbench.wording import plural

Status = Literal["pass", "fail", "error", "built", "skip", "planned"]
"""How a cell came out.

``pass``: the outputs are within tolerance. ``fail``: they are not. ``error``: the model could not be converted, is not
valid, or did not run. ``built``: its engine could be built, and there is no GPU to run it on. ``skip``: it was not
tried. ``planned``: of a dry run.
"""
Step = Literal["load", "convert", "check", "reference", "run", "compare"]
STATUSES: tuple[Status, ...] = ("pass", "fail", "error", "built", "skip", "planned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model in one pipeline.

    Attributes:
        model: The model's name.
        pipeline: The pipeline's name.
        status: How it came out.
        on: What ran the model, in words.
        against: What it was compared with, in words.
        allowed: What outputs may be off, in words; ``""`` stands for the default of each element type.
        message: Why it failed, was skipped, or could not be run; ``""`` when it passed.
        step: The step at which an error came; None without one.
        kind: The kind of the error (``onnxbench.errors``); None without one.
        details: Further lines of the error.
        hint: What to do about it, or None.
        notes: What else there is to know: what is wrong with the model file, and does not keep it from running.
        worst: How the output compares that is off most, or passes by least; None where nothing was compared.
        outputs: How many values were compared, over all sets of inputs.
        sets: How many sets of inputs were run.
        latency: How long runs take, if that was asked for.
        next: Command lines that find out more, in the order in which they are typed.
    """

    model: str
    pipeline: str
    status: Status
    on: str = ""
    against: str = ""
    allowed: str = ""
    message: str = ""
    step: Step | None = None
    kind: str | None = None
    details: tuple[str, ...] = ()
    hint: str | None = None
    notes: tuple[str, ...] = ()
    worst: TensorDrift | None = None
    outputs: int = 0
    sets: int = 0
    latency: Latency | None = None
    next: tuple[str, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether it failed or could not be run."""
        return self.status in ("fail", "error")


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """What one suite file showed.

    Attributes:
        path: The file.
        title: What the table is called.
        description: What the suite is for.
        models: The models that were chosen, in order.
        pipelines: The pipelines that were chosen, in order, with what each does in words.
        cells: The cells, model by model.
    """

    path: Path
    title: str
    description: str
    models: tuple[str, ...]
    pipelines: Mapping[str, str]
    cells: tuple[Cell, ...]

    @property
    def passed(self) -> bool:
        """Whether no cell is wrong."""
        return not any(cell.is_wrong for cell in self.cells)

    @property
    def counts(self) -> dict[Status, int]:
        """How many cells came out how; only those that there are any of."""
        found = Counter(cell.status for cell in self.cells)
        return {status: found[status] for status in STATUSES if found[status]}

    @property
    def verdict(self) -> str:
        """One line."""
        words = {"pass": "passed", "fail": "failed", "error": "with an error", "built": "built only", "skip": "skipped"}
        said = ", ".join(f"{count:,} {words.get(status, status)}" for status, count in self.counts.items())
        ran = {"pass", "built"} & self.counts.keys()
        head = "FAILED" if not self.passed else "PASSED" if ran else "NOTHING RUN"
        return f"{head}: {plural(len(self.cells), 'cell')}: {said}"

    def cell(self, model: str, pipeline: str) -> Cell:
        """Returns the cell of a model in a pipeline."""
        return next(each for each in self.cells if (each.model, each.pipeline) == (model, pipeline))

    def to_json(self) -> dict[str, Any]:
        """Returns the table as plain values."""
        judged = {"passed": self.passed, "verdict": self.verdict, "counts": self.counts}
        return judged | {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What suites showed.

    Attributes:
        tables: One for each suite file, in order.
    """

    tables: tuple[SuiteTable, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells."""
        return tuple(cell for table in self.tables for cell in table.cells)

    @property
    def passed(self) -> bool:
        """Whether no cell is wrong."""
        return all(table.passed for table in self.tables)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {"passed": self.passed, "suites": self.tables}
