"""Finished engines as sides: what they were built of, their outputs, and how to build that model again for the search.

An engine gives its outputs and nothing within. So these are compared first. Only where they are off the model that the
record beside the engine names is built again, as the engine was, with its tensors as outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import engine as engines
from onnxbench.backends import Options
from onnxbench.bisection._sides import Place
from onnxbench.captures import Value
from onnxbench.errors import DeviceError, ModelError, NotFoundError, UnsupportedError, UsageError
from onnxbench.model import load

if TYPE_CHECKING:
    from onnxbench.backends import Operator
    from onnxbench.engine import EngineFile
    from onnxbench.model import Model

_OF_THE_FILE = {
    "refit", "strip_weights", "weight_streaming", "version_compatible", "exclude_lean_runtime", "runtime_platform",
    "timing_cache", "profiling_verbosity", "propose", "embed_plugins",
}  # fmt: skip
"""Options that change the file and not what it computes."""


class EngineSide:
    """A finished engine, run as it is.

    Attributes:
        file: The engine.
        label: What it is, in words.
    """

    def __init__(self, file: EngineFile, plugins: Sequence[str], device: int) -> None:
        self.file = file
        self.label = f"{file.path.name}, {file.kind} {file.version or ''}".rstrip()
        self._engine = engines.Engine(file.path, device=device, plugins=plugins)

    def outputs(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Returns what it gives.

        Raises:
            FeedsError: The inputs do not fit the shapes that it was built for.
            DeviceError: There is no GPU, or it failed.
        """
        known = {port["name"] for port in self._engine.inputs}
        return self._engine({name: value for name, value in feeds.items() if name in known})

    def close(self) -> None:
        """Frees what it holds on the GPU."""
        self._engine.close()


def names_engine(source: object) -> bool:
    """Tells whether a side is given as an engine file."""
    return isinstance(source, (str, Path)) and engines.is_engine(Path(source))


def open_engine_side(
    path: str | Path, operators: Sequence[Operator], *, what: str, on: Place | str | None, allow_outside: bool
) -> tuple[Model, Place, EngineSide]:
    """Returns the model that an engine was built of, the place that builds it likewise, and the engine.

    Args:
        path: The engine.
        operators: Its custom operators.
        what: The option that says where a side runs, for messages.
        on: What was said there.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        UsageError: It is said to run elsewhere.
        ModelError: It is not all of an engine; or the record is of another one, or of another state of the model.
        NotFoundError: There is no record beside it, or no model where that says.
        UnsupportedError: It was built of a model that was edited on the way and is in no file.
    """
    file = engines.read_engine(path)
    if on is not None:
        raise UsageError(f"{what} means nothing for {file.path.name}, which runs on the GPU that it was built for")
    if file.record is None:
        raise NotFoundError(
            f"there is no {engines.record_path(file.path).name} beside the engine, so what it is built of is unknown",
            details=file.problems,
            hint="'onnxbench build-trt' writes it. 'onnxbench run ENGINE --expect' compares its outputs without it.",
        )
    if file.problems:
        raise ModelError(
            f"{file.path.name} and its record do not fit: {file.problems[0]}", details=file.problems[1:],
            hint="Build it again: onnxbench build-trt.",
        )  # fmt: skip
    said = file.record.data["model"]
    if said.get("edited") or not said.get("file"):
        raise UnsupportedError(
            f"{file.path.name} was built of a model that was edited on the way (--fp16, say), which no file has",
            hint="Build it of a file: 'onnxbench build-trt ... --save-model edited.onnx', then build edited.onnx.",
        )
    source = file.path.parent / said["file"]
    if not source.is_file():
        raise NotFoundError(f"the model that {file.path.name} was built of is not at {source}")
    options: dict[str, Any] = dict(file.record.data.get("options", {}))
    kept = {name: value for name, value in options.items() if name not in _OF_THE_FILE}
    build: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
    place = Place(file.kind, Options("none", operators=tuple(operators), build=build))
    bundles = list(dict.fromkeys(str(each.bundle) for each in operators if each.bundle is not None))
    return (
        load(source, allow_outside=allow_outside), place, EngineSide(file, bundles, int(build.get("device") or 0)),
    )  # fmt: skip


def lacks_gpu(*places: Place) -> bool:
    """Tells whether a side needs a GPU and there is none."""
    return any(place.is_engine for place in places) and not engines.has_gpu()


def without_gpu(error: DeviceError, suspect: str) -> DeviceError:
    """Returns the error of a side that needs a GPU, with what can be done instead."""
    return DeviceError(
        f"the engine cannot be run: {error.message}", details=error.details,
        hint=f"Run this where a GPU is. Or let it record there what it computes: 'onnxbench bisect {suspect} --record "
        "DIR' writes engines, inputs and a script for that machine, and --load-outputs compares the values here.",
    )  # fmt: skip
