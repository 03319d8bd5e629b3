"""Where and why a model drifts: the node whose own computation goes wrong, told from those that pass the error on.

    found = onnxbench.bisect("suspect.onnx", against="reference.onnx")
    print(found.verdict)
    for culprit in found.culprits:
        print(culprit.node, culprit.own.rel, culprit.effect, culprit.why)

``_sides`` says what a suspect and a reference are, ``_search`` how errors are told apart and what is noise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.backends import Options
from onnxbench.bisection._baseline import Baseline, Judgement, Worse, open_baseline
from onnxbench.bisection._bisector import Bisector
from onnxbench.bisection._budget import free_memory, returned_memory
from onnxbench.bisection._engines import lacks_gpu, names_engine, open_engine_side, without_gpu
from onnxbench.bisection._evidence import Evidence, model_digest, value_digest
from onnxbench.bisection._failing import (
    SECONDS,
    FailingPiece,
    failing_search,
    find_failing,
    require_sound,
    shrink_failing,
)
from onnxbench.bisection._measures import epsilon, measure
from onnxbench.bisection._page import COMMAND, write_bisection
from onnxbench.bisection._recording import Recording, write_recording
from onnxbench.bisection._report import Amplifier, Bisection, Culprit, ModuleError, Row, failed
from onnxbench.bisection._repro import require_empty
from onnxbench.bisection._sides import (
    Match,
    ModelReference,
    Place,
    RecordedReference,
    Reference,
    Suspect,
    as_dtype,
    parse_place,
)
from onnxbench.bisection._unexercised import UnrunBody
from onnxbench.captures import Capture, Port, Value, check_feeds, input_ports
from onnxbench.datafiles import load as load_values
from onnxbench.errors import DeviceError, ExecutionError, FeedsError, UsageError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.model import Model
from onnxbench.model import load as load_model
from onnxbench.reporting import require_report
from onnxbench.shrinking import attempt

if TYPE_CHECKING:
    from onnxbench.backends import Operator
    from onnxbench.bisection._engines import EngineSide

__all__ = [
    "Amplifier", "Baseline", "Bisection", "Culprit", "Evidence", "FailingPiece", "Judgement", "Match",
    "ModelReference", "ModuleError", "Place", "RecordedReference", "Recording", "Reference", "Row", "Suspect",
    "UnrunBody", "Worse", "as_dtype", "bisect", "epsilon", "failing_search", "free_memory", "measure", "model_digest",
    "open_baseline", "parse_place", "recorded_reference", "shrink_failing", "value_digest", "write_bisection",
    "write_recording",
]  # fmt: skip


def bisect(
    suspect: Model | str | os.PathLike[str],
    *,
    against: Model | Reference | str | os.PathLike[str] | None = None,
    recorded: Sequence[str] | Mapping[str, Value] = (),
    on: Place | str | None = None,
    reference_on: Place | str | None = None,
    feeds: Mapping[str, Value] | FeedOptions | None = None,
    atol: Sequence[str] | float = (),
    rtol: Sequence[str] | float = (),
    auto_tolerance: bool = False,
    keep_fusions: bool = False,
    memory: int | None = None,
    repro: str | os.PathLike[str] | None = None,
    anonymize: bool = False,
    isolate: bool = False,
    timeout: float = SECONDS,
    report: str | os.PathLike[str] | None = None,
    evidence: bool = False,
    operators: Sequence[Operator] = (),
    allow_outside: bool = False,
) -> Bisection:
    """Returns where a model drifts from a reference: the nodes whose own computation goes wrong, and their effect.

    Args:
        suspect: A model or a model file.
        against: The reference: another model, or anything that is a ``Reference``. None: the same model, unless values
            are recorded.
        recorded: The reference's values in place of a model: files as for feeds (one set each), or values by tensor.
        on: What runs the suspect: ``ort``, ``ort:extended``, ``ort:all,threads=1``, ``reference``. By default ONNX
            Runtime, with optimizations only if the reference is the same model: then these are what is searched.
        reference_on: What runs the reference; by default ONNX Runtime without optimizations.
        feeds: Values by input, or what a user says about them; None draws one set from seed 0.
        atol: What outputs may be off: a number, or words such as ``1e-3`` and ``out:1e-2``. With neither this nor
            ``rtol``, each element type has its own default, and rounding alone is no drift.
        rtol: The same, relative to the expected value.
        auto_tolerance: For tensors that neither says anything of, what rounding does to the reference's own values is
            measured, and ten times that is allowed (see ``_calibrating``).
        keep_fusions: Search the suspect as ONNX Runtime optimizes it (``all``, unless ``on`` says otherwise) whatever
            the reference is, and tell whether its outputs are those of the model with nothing looked at within.
        memory: How many bytes the search may hold (see ``_budget``); None: about a quarter of free memory.
        repro: Write the first culprit into this folder: a small model, inputs, expected outputs, and a script.
        anonymize: With ``repro``: replace names, texts, metadata, weights and inputs; nothing is written if the failure
            does not show without them.
        isolate: Try the suspect in a process of its own first, since it may crash or hang. A suspect that fails without
            ending this process is searched for the part that fails either way.
        timeout: Seconds that opening the suspect, or a run of it, may take in a process of its own.
        report: Write ``report.json`` and ``report.html`` here: all that was measured, and a page to look at.
        evidence: Return digests of all that was compared and histograms of values, too, and measure the own error of
            every node, also where it is clear that it is within rounding (with ``report`` always).
        operators: Custom operators that both sides are taught.
        allow_outside: For model files: follow external data that leaves their folder.

    Raises:
        ModelError: A side is no valid model: a node reads what nothing makes, say.
        UsageError: The sides contradict each other, tolerances cannot be calibrated, there are no fusions to keep,
            ``memory`` is too little for one node, or a process of its own cannot be taught ``operators``.
        UnsupportedError: No tensor of the suspect is known to the reference.
        FeedsError: The inputs do not fit, or there are none for recorded values.
        ExecutionError: A side failed.
        NotFoundError: There is no such file.
        OutputError: The folder for ``repro`` is not empty, or that for ``report`` holds something else.
        MissingDependencyError: A package is missing that reports are made with.
    """
    if anonymize and repro is None:
        raise UsageError("anonymize is for the repro: name a folder for it")
    if memory is not None and memory < 1:
        raise UsageError("the search needs memory, and may hold none", hint="--memory 2GiB, say.")
    if against is not None and len(recorded):
        raise UsageError("the reference is either a model (against) or recorded values, not both")
    if repro is not None:
        require_empty(Path(repro))
    if report is not None:
        if repro is not None and os.path.abspath(repro) == os.path.abspath(report):
            raise UsageError("the repro and the report need a folder each")
        require_report(report, COMMAND)
    same = against is None and not len(recorded)
    engine: EngineSide | None = None
    if names_engine(suspect):
        assert not isinstance(suspect, Model)
        model, place, engine = open_engine_side(
            os.fspath(suspect), operators, what="--on", on=on, allow_outside=allow_outside
        )
    else:
        model = suspect if isinstance(suspect, Model) else load_model(suspect, allow_outside=allow_outside)
        place = _place(on, "all" if same or keep_fusions else "none", "--on", operators)
    if keep_fusions and not place.optimizes:
        raise UsageError(f"{place.text} fuses nothing, so there are no fusions to keep", hint="--on ort:all does.")
    reference = _reference(model, against, recorded, reference_on, operators, allow_outside)
    told: Bisection | None = None
    tried_first = isolate or (lacks_gpu(place) and engine is None)  # whether an engine can be built needs none
    in_engine = suspect if place.is_engine else model if against is None else against
    with _told_without_gpu(in_engine):
        if tried_first and (told := _failing(model, place, reference, feeds, timeout, repro, anonymize)) is not None:
            return told
    try:
        accused = Suspect(model, place, engine=engine)
    except ExecutionError:
        told = _failing(model, place, reference, feeds, timeout, repro, anonymize)
        if told is None:
            raise
        return told
    if same and isinstance(reference, ModelReference) and accused.place == reference.side.place:
        raise UsageError(
            "the suspect and the reference are the same model on the same runtime",
            hint="Name another model with --against, or run one of them otherwise: --on, --reference-on.",
        )
    sources = _sources(suspect, against, recorded) if evidence or report is not None else None
    try:
        bisector = Bisector(
            accused, reference, atol, rtol, free_memory() if memory is None else memory, auto_tolerance=auto_tolerance,
            keep_fusions=keep_fusions, strict=memory is not None, thorough=sources is not None,
        )  # fmt: skip
        kept = contextlib.nullcontext() if memory is None else returned_memory()
        with _told_without_gpu(in_engine), kept:
            found = bisector.run(feeds, repro, sources, anonymize=anonymize)
    except ExecutionError as error:
        told = _failing(model, place, reference, feeds, timeout, repro, anonymize)
        if told is None:
            if isinstance(reference, ModelReference):
                require_sound(reference.side.model)
            error.details += (f"the suspect by itself runs; what fails is {reference.label}, or parts on its values",)
            raise
        return told
    finally:
        accused.close()
        if isinstance(reference, ModelReference):
            reference.close()
    if report is not None:
        write_bisection(report, found)
    return found


@contextlib.contextmanager
def _told_without_gpu(source: object) -> Iterator[None]:
    """Says of a side (a file, or a model in memory) that needs a GPU what can be done where there is none."""
    try:
        yield
    except DeviceError as error:
        origin = source.origin if isinstance(source, Model) else source
        name = os.fspath(origin) if isinstance(origin, (str, os.PathLike)) else "MODEL"
        raise without_gpu(error, name if names_engine(source) else f"{name} --on trt") from None


def _sources(
    suspect: Model | str | os.PathLike[str],
    against: Model | Reference | str | os.PathLike[str] | None,
    recorded: Sequence[str] | Mapping[str, Value],
) -> dict[str, list[str]]:
    """Returns the files that the sides were given as."""
    files = [os.fspath(suspect)] if isinstance(suspect, (str, os.PathLike)) else []
    if against is None and not len(recorded):
        return {"suspect": files, "reference": files}
    if against is not None:
        return {"suspect": files, "reference": [os.fspath(against)] if isinstance(against, (str, os.PathLike)) else []}
    return {"suspect": files, "reference": [] if isinstance(recorded, Mapping) else list(recorded)}


def _failing(
    model: Model,
    place: Place,
    reference: Reference,
    feeds: Mapping[str, Value] | FeedOptions | None,
    timeout: float,
    repro: str | os.PathLike[str] | None,
    anonymize: bool,
) -> Bisection | None:
    """Returns which part of a suspect makes it fail to run; None if it runs."""
    own = getattr(reference, "inputs", None)
    if isinstance(feeds, Mapping):
        sets: list[Mapping[str, Value]] = [check_feeds(feeds, input_ports(model.proto.graph))]
    elif own is not None and (feeds is None or feeds.says_nothing) and own(0):
        count = 1 if feeds is None or feeds.iterations is None else feeds.iterations
        sets = [check_feeds(own(number), input_ports(model.proto.graph)) for number in range(count)]
    elif isinstance(reference, RecordedReference) and (feeds is None or not feeds.sources):
        sets = list(reference.feeds(input_ports(model.proto.graph)))
    else:
        sets = [each.feeds for each in feed_sets(model, feeds)]
    folder = None if repro is None else Path(repro)
    found = find_failing(model, place, sets, seconds=timeout, repro=folder, anonymize=anonymize)
    if found is None:
        return None
    name = model.origin.name if model.origin is not None else "the model"
    piece, notes = found
    if piece.how == "failed" and _fails_too(reference, sets, timeout):
        notes = (*notes, "the reference fails on these inputs too, so it may be they that are wrong")
    return failed(f"{name} on {place.text}", reference.label, len(sets), piece, notes)


def _fails_too(reference: Reference, sets: Sequence[Mapping[str, Value]], seconds: float) -> bool:
    """Returns whether another model fails while it runs on these inputs, if it has inputs of their names."""
    if not isinstance(reference, ModelReference):
        return False
    model, place = reference.side.model, reference.side.place
    required = {port.name for port in input_ports(model.proto.graph) if port.required}
    if not all(required == set(feeds) for feeds in sets):
        return False
    outcome = attempt(model, sets, place.backend, replace(place.options, isolate=seconds))
    return outcome is not None and outcome.how == "failed"


def _place(given: Place | str | None, level: str, what: str, operators: Sequence[Operator]) -> Place:
    if not isinstance(given, Place):
        return parse_place(given or "ort", level=level, options=Options(operators=tuple(operators)), what=what)
    return replace(given, options=replace(given.options, operators=tuple(operators))) if operators else given


def _reference(
    model: Model,
    against: Model | Reference | str | os.PathLike[str] | None,
    recorded: Sequence[str] | Mapping[str, Value],
    on: Place | str | None,
    operators: Sequence[Operator],
    allow_outside: bool,
) -> Reference:
    if names_engine(against):
        assert isinstance(against, (str, os.PathLike))
        built_of, place, engine = open_engine_side(
            os.fspath(against), operators, what="--reference-on", on=on, allow_outside=allow_outside
        )
        return ModelReference(built_of, place, engine=engine)
    place = _place(on, "none", "--reference-on", operators)
    if isinstance(against, (str, os.PathLike)):
        against = load_model(against, allow_outside=allow_outside)
    if against is None and not len(recorded):
        against = model
    if isinstance(against, Model):
        return ModelReference(against, place)
    if against is not None:
        return against
    found = recorded_reference(model, recorded)
    found.unit = place.unit
    return found


def recorded_reference(model: Model, recorded: Sequence[str] | Mapping[str, Value]) -> RecordedReference:
    """Returns recorded values of a model's tensors as a reference: files as for feeds, or values by tensor.

    Raises:
        FeedsError: There are none.
    """
    if isinstance(recorded, Mapping):
        return RecordedReference([recorded], "recorded values")
    outputs = [Port(info.name, info.type if info.HasField("type") else None) for info in model.proto.graph.output]
    sets = list(chain.from_iterable(_recorded_sets(word, outputs) for word in recorded))
    if not sets or not all(sets):
        raise FeedsError("the recorded values are empty, so nothing could be compared")
    return RecordedReference(sets, f"recorded values ({', '.join(recorded)})")


def _recorded_sets(word: str, outputs: Sequence[Port]) -> Iterator[Mapping[str, Value]]:
    if word.lower().endswith(".npz") and Path(word).is_file():
        return iter([Capture(word)])
    return load_values(word, outputs, prefix="output")
