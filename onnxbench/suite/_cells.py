"""One model through its pipelines, cell by cell: convert, check, run, compare. What fails stays within its cell."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onnxbench import backends, weights
from onnxbench.bisection import Place, parse_place
from onnxbench.captures import input_ports
from onnxbench.drift import DriftReport, TensorDrift, are_nan, compare_values
from onnxbench.engine import has_gpu
from onnxbench.errors import (
    BenchError,
    DeviceError,
    FeedsError,
    MissingDependencyError,
    ModelError,
    RefusedResultError,
)
from onnxbench.messages import copy_of
from onnxbench.model import TEXT_FORMATS, Model, load
from onnxbench.running import time_session
from onnxbench.samples import Samples
from onnxbench.suite._calibration import Calibration, choose_calibration
from onnxbench.suite._file import INT8, Export, Limits, Stage, Suite, SuiteModel, in_folder, reference_kind
from onnxbench.suite._next import file_name, next_steps
from onnxbench.suite._references import References, fitted, paired
from onnxbench.suite._results import Cell, Step
from onnxbench.surgery import edit
from onnxbench.validity import find_complaints, make_valid
from onnxbench.writer import save

if TYPE_CHECKING:
    from onnxbench.captures import Feeds, Value

_MODEL_ENDINGS = (".onnx", *TEXT_FORMATS)
_OTHERS = {"recorded": "recorded outputs", "torch": "PyTorch"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How all cells are run.

    Attributes:
        time: How many runs of each cell are timed.
        warmup: How many come before them.
        options: Custom operators, and the time limit in a process of its own.
        allow_outside: Follow external data that leaves a model's folder.
        keep: The folder that converted models of cells that are wrong are written to; None writes none.
        plugins: The bundles of the custom operators.
    """

    time: int = 0
    warmup: int = 5
    options: backends.Options = field(default_factory=backends.Options)
    allow_outside: bool = False
    keep: Path | None = None
    plugins: tuple[str, ...] = ()


class ModelRuns:
    """A model of a suite, and what is kept of it between its cells: its structure, and files with what is right."""

    def __init__(self, suite: Suite, entry: SuiteModel, settings: Settings) -> None:
        self._suite, self._entry, self._settings = suite, entry, settings
        self._folder = tempfile.TemporaryDirectory(prefix="onnxbench-")
        self._step: Step = "load"
        self._made: Model | None = None
        self._calibration: Calibration | None = None

    def close(self) -> None:
        """Removes what was kept."""
        self._folder.cleanup()

    def planned(self, stage: Stage) -> Cell:
        """Returns the cell of a pipeline, not run."""
        word = self._suite.against_word(self._entry, stage)
        kind = reference_kind(word)
        against = parse_place(word, level="none", what="against:").text if kind == "place" else f"{_title(kind)} {word}"
        return Cell(
            model=self._entry.name, pipeline=stage.name, status="planned",
            on=stage.said.on if stage.place is None else stage.place.text,
            against=against.strip(), allowed=self._suite.limits(self._entry, stage).text,
        )  # fmt: skip

    def cell(self, stage: Stage) -> Cell:
        """Returns how the model comes out of a pipeline."""
        cell = self.planned(stage)
        self._begin()
        try:
            reason = self._reason_to_skip(stage)
            if reason is not None:
                return replace(cell, status="skip", message=reason)
            return self._run(stage, cell)
        except MissingDependencyError as error:
            return replace(cell, status="skip", message=error.message, hint=error.hint)
        except DeviceError as error:
            if self._step == "run" and stage.place is not None and stage.place.is_engine and not has_gpu():
                return replace(cell, status="built", message=error.details[0] if error.details else error.message)
            return self._failed(cell, stage, error)
        except BenchError as error:
            return self._failed(cell, stage, error)
        except MemoryError:
            return replace(cell, status="error", step=self._step, kind="memory", message="memory ran out")

    def _begin(self) -> None:
        self._step, self._made, self._calibration = "load", None, None

    def _failed(self, cell: Cell, stage: Stage, error: BenchError) -> Cell:
        lines = self._next(stage) if self._step == "run" else ()
        return replace(
            cell, status="error", step=self._step, kind=error.kind, message=error.message, details=error.details,
            hint=error.hint, next=lines,
        )  # fmt: skip

    def _reason_to_skip(self, stage: Stage) -> str | None:
        settings = self._entry.cells.get(stage.name)
        if settings is not None and settings.skip:
            return settings.skip
        if stage.place is None:
            return stage.missing
        kind, word = self._suite.against(self._entry, stage)
        places = [stage.place] + ([parse_place(word, level="none", what="against:")] if kind == "place" else [])
        reasons = (backends.why_unavailable(place.backend) for place in places)
        return next((reason for reason in reasons if reason is not None), None)

    @cached_property
    def _loaded(self) -> Model | BenchError:
        try:
            file = self._exported() if self._entry.is_torch else self._suite.folder / self._entry.file
            return load(file, allow_outside=self._settings.allow_outside)
        except BenchError as error:
            return error

    @property
    def _model(self) -> Model:
        if isinstance(self._loaded, BenchError):
            raise self._loaded
        return self._loaded

    def _exported(self) -> Path:
        """Returns the file that a PyTorch model is exported to; pipelines compare it, so nothing else does."""
        from onnxbench.pytorch.exporting import ExportOptions, export

        entry, file = self._entry, Path(self._folder.name, "exported.onnx")
        said = entry.export or Export()
        options = ExportOptions(
            exporter=said.exporter, opset=said.opset, dynamic=said.dynamic, shapes=entry.shapes, seed=entry.seed,
            rewrites=self._suite.rewrites(entry), plugins=self._settings.plugins, verify=False,
        )  # fmt: skip
        export(in_folder(entry.file, self._suite.folder), file, options=options)
        return file

    @cached_property
    def _references(self) -> References:
        return References(
            self._model, self._entry.feed_options(self._suite.folder), Path(self._folder.name), self._settings.options,
            allow_outside=self._settings.allow_outside,
        )  # fmt: skip

    @cached_property
    def _repairs(self) -> tuple[str, ...]:
        return check_model(self._model)

    def _run(self, stage: Stage, cell: Cell) -> Cell:
        assert stage.place is not None
        model = self._model
        if stage.converts:
            self._step = "convert"
            model = self._made = self._converted(stage, stage.place)
        self._step = "check"
        repairs = self._repairs if model is self._model else check_model(model)
        notes = [f"the model is not valid as it stands: {repair}" for repair in repairs]
        notes += [f"int8 is calibrated on {self._calibration.text}"] if self._calibration is not None else []
        cell = replace(cell, notes=tuple(notes))
        limits = self._suite.limits(self._entry, stage)
        options = replace(
            stage.place.options, operators=self._settings.options.operators, isolate=self._settings.options.isolate
        )
        self._step = "run"
        session = backends.open_session(model, stage.place.backend, options=options)
        try:
            return self._compared(stage, cell, session, limits)
        finally:
            session.close()

    def _compared(self, stage: Stage, cell: Cell, session: backends.Session, limits: Limits) -> Cell:
        """Returns the cell with what a session gives, compared with what is right, set by set."""
        drifts: list[TensorDrift] = []
        held_out = 0 if self._calibration is None else self._calibration.held_out
        number, first = held_out, None
        kind, word = self._suite.against(self._entry, stage)
        same_types = not stage.converts and kind != "model"
        sets = islice(self._references.expected(kind, word), held_out, None)
        while True:
            self._step = "reference"
            pair = next(sets, None)
            if pair is None:
                break
            self._step = "run"
            feeds: Feeds = fitted(pair[0], session.inputs)
            actual = session.run(feeds)
            self._step = "compare"
            first = feeds if first is None else first
            drifts += compare_outputs(pair[1], actual, limits, number=number, same_types=same_types)
            number += 1
        if first is None:
            raise FeedsError("the data holds no set of inputs")
        report = DriftReport(tuple(drifts))
        self._step = "compare"
        if are_nan(drifts):
            raise FeedsError(
                "nothing can be told of the outputs: they are NaN throughout on both sides",
                hint="onnxbench run MODEL --find-nan names the first node that makes NaN.",
            )
        if drifts and not any(each.elements for each in drifts):
            cell = replace(cell, notes=(*cell.notes, "the outputs have no elements, so nothing was compared"))
        self._step = "run"
        settings = self._settings
        latency = time_session(session, first, settings.time, settings.warmup) if settings.time else None
        worst = report.worst
        wrong = [drift for drift in drifts if not drift.passed]
        message = "" if drifts else "there is nothing in the outputs that could be compared"
        if wrong and worst is not None:
            several = f" ({len(wrong)} of {len(drifts)} values are off)" if len(drifts) > 1 else ""
            message = f"{worst.name}: {worst.reason}{several}"
        return replace(
            cell, status="pass" if report.passed else "fail", message=message, worst=worst, outputs=len(drifts),
            sets=number - held_out, latency=latency, next=self._next(stage) if wrong else (),
        )  # fmt: skip

    def _converted(self, stage: Stage, place: Place) -> Model:
        model = self._model
        if stage.edits.steps:
            model = edit(model, stage.edits, stamp=False, allow_outside=self._settings.allow_outside).model
        if stage.said.precision != INT8:
            return model
        from onnxbench.int8 import quantize

        target: Literal["tensorrt", "onnxruntime"] = "tensorrt" if place.is_engine else "onnxruntime"
        kind, word = self._suite.against(self._entry, stage)
        self._calibration = choose_calibration(
            self._model, self._entry, self._suite.folder, self._references, kind, word
        )
        ports = input_ports(model.proto.graph)
        sets = Samples(fitted(feeds, ports) for feeds in self._calibration.sets)
        made = quantize(model, feeds=sets, target=target, method="minmax").model
        assert made is not None, "there is a model where nothing is searched"
        return made

    def _next(self, stage: Stage) -> tuple[str, ...]:
        """Returns what finds out more about a cell that is wrong, its converted model written if that is wanted."""
        kept = None
        if self._settings.keep is not None and self._made is not None:
            kept = self._settings.keep / file_name(self._entry, stage)
            save(self._made, kept, is_valid=True)
        return tuple(next_steps(self._suite, self._entry, stage, kept))


def can_be_loaded(suite: Suite, entry: SuiteModel, settings: Settings) -> bool:
    """Tells whether a model file and all that holds its weights is there; of a PyTorch model nothing is known."""
    try:
        if not entry.is_torch:
            load(suite.folder / entry.file, allow_outside=settings.allow_outside)
    except BenchError:
        return False
    return True


def weights_of(file: Path) -> set[Path]:
    """Returns the files that hold weights of a model file; none of any other file, or of one that is broken."""
    if file.suffix.lower() not in _MODEL_ENDINGS or not file.is_file():
        return set()
    try:
        proto = load(file, allow_outside=True, require_weights=False).proto
    except BenchError:
        return set()
    return {file.parent / name for name in map(weights.location, weights.tensors(proto)) if name}


def check_model(model: Model) -> tuple[str, ...]:
    """Returns what would have to be mended of a model so that the onnx checker takes it: nothing, as a rule.

    Raises:
        ModelError: It is not valid, and cannot be mended.
    """
    complaints = find_complaints(model.proto, complete=model.with_small_weights)
    if not complaints:
        return ()
    try:
        return tuple(make_valid(copy_of(model.proto), complete=model.with_small_weights))
    except RefusedResultError:
        raise ModelError(f"the model is not valid: {complaints[0]}", details=complaints[1:]) from None


def compare_outputs(
    expected: Mapping[str, Value], actual: Mapping[str, Value], limits: Limits, *, number: int, same_types: bool
) -> list[TensorDrift]:
    """Returns how the outputs of one run compare with those that are right: by name, the others by place.

    Args:
        expected: What is right; it may be a file.
        actual: What was computed.
        limits: What they may be off.
        number: Which set of inputs this is, from 0; later ones are told in names.
        same_types: Whether another element type is wrong.

    Raises:
        FeedsError: They have other names, and are not as many.
    """
    found: list[TensorDrift] = []
    for name, made in paired(list(expected), list(actual), "outputs").items():
        label = f"{name} (set {number + 1})" if number else name
        drifts = compare_values(label, expected[name], actual[made], tolerance=limits.tolerance, check_dtype=same_types)
        found += [_judged(drift, limits.sqnr) for drift in drifts]
    return found


def _judged(drift: TensorDrift, least: float | None) -> TensorDrift:
    """Returns a comparison that fails if its signal to noise is less than asked for."""
    if least is None or not drift.passed or drift.bitwise_equal:
        return drift
    if drift.sqnr_db is not None and drift.sqnr_db >= least:
        return drift
    noise = "no signal to noise" if drift.sqnr_db is None else f"{drift.sqnr_db:.1f} dB signal to noise"
    return replace(drift, passed=False, reason=f"{noise}, and {least:g} dB are asked for")


def _title(kind: str) -> str:
    return _OTHERS.get(kind, "")


def chosen(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Returns the names that a pattern matches, all without patterns, in their order."""
    from fnmatch import fnmatchcase

    return [name for name in names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]
