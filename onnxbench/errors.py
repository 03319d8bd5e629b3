"""The errors that onnxbench raises, and the exit code each kind ends a command with.

    BenchError
    ├── UsageError               2   a flag, spelling or combination that cannot be understood
    ├── CutError                 3   the given tensors do not bound a piece of the model
    ├── NotFoundError            4   a name or selector that matches nothing
    ├── ModelError               5   the input is not a model, or not one that can be mended
    ├── ExternalDataError        6   weights outside the model file: missing, out of range, or out of the folder
    ├── OutputError              7   the result could not be written
    ├── RefusedResultError       8   the result does not pass the checks, so it was not written
    ├── ExecutionError           9   a runtime refused the model or failed while running it
    ├── FeedsError              10   input data that does not fit the model
    ├── SpecError               11   a text or YAML specification with a mistake in it
    ├── MissingDependencyError  12   an optional package is not installed
    ├── UnsupportedError        13   a case that is understood and not supported
    ├── GuardError              14   a step of a recipe matches other than it expects
    ├── EngineError             15   TensorRT does not take the model, or its build failed
    └── DeviceError             16   there is no GPU for an engine, or it did not run it

0 means fine and 1 means that a check found something (no error is raised for that); 130 is Ctrl-C and
70 a bug in onnxbench itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class BenchError(Exception):
    """Base of every error that a user can cause and act on.

    Attributes:
        message: What is wrong and where, in one sentence.
        hint: What to do next, or None.
        details: Further lines (the names that are missing, say), shown under the message.
        exit_code: The exit status of a command that ends with this error.
        kind: A stable word for machines (the ``--json`` error object).
    """

    exit_code: ClassVar[int] = 70
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        lines = [self.message, *(f"  {line}" for line in self.details)]
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


class UsageError(BenchError):
    """A flag, spelling or combination of options that cannot be understood."""

    exit_code = 2
    kind = "usage"


class EmptyPieceError(UsageError):
    """No node lies between the inputs and the outputs that a piece shall have.

    Attributes:
        is_reversed: Whether there is a piece if inputs and outputs are exchanged.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, details: Sequence[str] = (), is_reversed: bool = False
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.is_reversed = is_reversed


@dataclass(frozen=True, slots=True)
class Proposal:
    """A set of inputs that bounds a piece.

    Attributes:
        inputs: All inputs of the piece.
        kind: ``minimum cut``, ``dominating tensors`` or ``whole upstream``.
        nodes: How many nodes the piece would have.
    """

    inputs: tuple[str, ...]
    kind: str
    nodes: int


class CutError(BenchError):
    """The given inputs and outputs do not bound a piece of the model.

    Attributes:
        missing: Names of the tensors that the piece still reads.
        proposals: Ready sets of inputs that would work, smallest first.
    """

    exit_code = 3
    kind = "cut"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: Sequence[str] = (),
        missing: Sequence[str] = (),
        proposals: Sequence[Proposal] = (),
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.missing = tuple(missing)
        self.proposals = tuple(proposals)


class NotFoundError(BenchError):
    """A name or selector that matches nothing in the model."""

    exit_code = 4
    kind = "not-found"


class ModelError(BenchError):
    """The input file is not an ONNX model, or is one that cannot be mended."""

    exit_code = 5
    kind = "model"


class ExternalDataError(BenchError):
    """Weights stored outside the model file are missing, out of range, or out of the model's folder."""

    exit_code = 6
    kind = "external-data"


class OutputError(BenchError):
    """The result could not be written; nothing was left behind."""

    exit_code = 7
    kind = "output"


class RefusedResultError(BenchError):
    """The result does not pass the checks, so it was not written."""

    exit_code = 8
    kind = "refused"


class ExecutionError(BenchError):
    """A runtime refused the model, or failed while running it."""

    exit_code = 9
    kind = "execution"


class RefusedModelError(ExecutionError):
    """A runtime refused the model, and said so only when it knew the inputs: an engine is built for their shapes."""


class LostProcessError(ExecutionError):
    """A runtime, in a process of its own, crashed or took too long.

    Attributes:
        how: ``hang``, or what ended the process: ``SIGSEGV``, ``crash`` where no signal did.
    """

    def __init__(self, message: str, *, how: str = "crash", hint: str | None = None, details: Sequence[str] = ()):
        super().__init__(message, hint=hint, details=details)
        self.how = how


class FeedsError(BenchError):
    """Input data that is missing, unreadable, or does not fit the model's inputs."""

    exit_code = 10
    kind = "feeds"


class SpecError(BenchError):
    """A text or YAML specification with a mistake in it; the message names the line."""

    exit_code = 11
    kind = "spec"


class MissingDependencyError(BenchError):
    """An optional package that the request needs is not installed."""

    exit_code = 12
    kind = "missing-dependency"


class UnsupportedError(BenchError):
    """A case that is understood and that onnxbench does not support."""

    exit_code = 13
    kind = "unsupported"


class GuardError(BenchError):
    """A step of a recipe that matches more or fewer targets than it expects; nothing was changed."""

    exit_code = 14
    kind = "guard"


class EngineError(BenchError):
    """TensorRT does not take the model, or building the engine failed; no engine was written."""

    exit_code = 15
    kind = "engine"


class DeviceError(BenchError):
    """There is no GPU that an engine could run on, or it failed while it ran it."""

    exit_code = 16
    kind = "device"


def error_kinds() -> list[type[BenchError]]:
    """Returns every concrete error class, by exit code (for docs and the ``--json`` schema)."""
    return sorted(BenchError.__subclasses__(), key=lambda error: error.exit_code)


def nearest(name: str, candidates: Iterable[str], *, limit: int = 3) -> list[str]:
    """Returns up to ``limit`` candidates that look like ``name``, most alike first.

    Args:
        name: What the user typed.
        candidates: What exists. A hundred thousand names take some tens of milliseconds.
        limit: The most names to return.
    """
    from rapidfuzz import fuzz, process  # loaded only when something has gone wrong

    matches = process.extract(name, list(dict.fromkeys(candidates)), scorer=fuzz.ratio, limit=limit, score_cutoff=55)
    return [match[0] for match in matches]


def near_file(path: Path) -> str | None:
    """Returns a "did you mean" hint for a file that is not there, of what lies in its folder; None if nothing is near.

    An ending is no likeness: ``half.onnx`` is not near ``a.onnx``, and ``half.onx`` is near ``half.onnx``.
    """
    try:
        names = sorted(each.name for each in path.parent.iterdir())
    except OSError:
        return None
    renamed = [name for name in names if Path(name).stem == path.stem]
    alike = {Path(name).stem: name for name in names if Path(name).suffix == path.suffix}
    found = nearest(path.name, renamed) or [alike[stem] for stem in nearest(path.stem, alike)]
    return f"Did you mean {' or '.join(map(repr, found))}?" if found else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """Returns a "did you mean" hint for ``name``, or None when nothing is near."""
    names = nearest(name, candidates)
    return f"Did you mean {' or '.join(repr(near) for near in names)}?" if names else None
