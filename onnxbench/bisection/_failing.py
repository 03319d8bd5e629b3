"""A suspect that does not run: which part of it makes it crash, hang or fail, by a binary search over cuts.

No tensor can be compared there, so the question is put to parts of the model, each of which passes or fails as the
whole does. That is monotone along the graph, unlike drift: a part that holds the failing node fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.bisection._sides import Place
from onnxbench.captures import Value
from onnxbench.errors import ModelError, OutputError, UnsupportedError
from onnxbench.graph import GraphIndex
from onnxbench.inlining import inline_functions
from onnxbench.parts import Parts
from onnxbench.progress import track
from onnxbench.provenance import provenance
from onnxbench.shrinking import (
    Names,
    Outcome,
    OutOfRunsError,
    Records,
    SameFailure,
    Scene,
    Shrinker,
    Specimen,
    Specimens,
    attempt,
    check_fails,
    without_names,
    without_values,
    write_files,
)

if TYPE_CHECKING:
    from onnxbench.model import Model

_MOST_RUNS = 150
_UNSOUND = ("OB101", "OB102", "OB103", "OB104")
"""Rules of ``check``: a tensor that nothing makes, an output likewise, a tensor that is made twice, a cycle."""
SECONDS = 300.0
"""How long opening the suspect, or one run of it, may take unless told otherwise."""


@dataclass(frozen=True, slots=True)
class FailingPiece:
    """The smallest part of a suspect that was found to fail as the whole does.

    Attributes:
        how: ``refused``, ``failed``, ``hang``, or what ended the process: ``SIGSEGV``.
        phase: ``open`` or ``run``.
        message: What was said of the whole.
        details: Further lines of that.
        text: How it fails, in words.
        node: Label of the last node of the part.
        op_type: Its operator.
        nodes: Labels of all its nodes.
        inputs: Its inputs: ``x: float32[1, 3]``.
        number: The set of inputs that the whole fails on.
        runs: How many parts were tried.
        before: How many nodes the whole has.
        module: PyTorch module of the last node, or None.
        source: Its PyTorch source line, or None.
        function: The local function that it came out of, or None.
    """

    how: str
    phase: str
    message: str
    details: tuple[str, ...]
    text: str
    node: str
    op_type: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    number: int
    runs: int
    before: int
    module: str | None = None
    source: str | None = None
    function: str | None = None

    @property
    def verdict(self) -> str:
        """The one line that says it all."""
        words = ", ".join(word for word in (self.op_type, self.source or self.module) if word)
        place = f"{self.node} ({words})"
        many = len(self.nodes)
        return f"the suspect {self.text}: {place if many == 1 else f'{many:,} nodes that end in {place}'}" + (
            " is enough" if many == 1 else " are enough"
        )


def find_failing(
    model: Model,
    place: Place,
    sets: Sequence[Mapping[str, Value]],
    *,
    seconds: float = SECONDS,
    repro: Path | None = None,
    anonymize: bool = False,
) -> tuple[FailingPiece, tuple[str, ...]] | None:
    """Returns the part of a model that makes it fail to run, and notes; None if it runs.

    The model is tried in a process of its own.

    Args:
        model: The suspect.
        place: What runs it.
        sets: Its inputs.
        seconds: How long opening it, or one run, may take.
        repro: A folder to write the part into.
        anonymize: Replace names, texts, metadata, weights and inputs in what is written.

    Raises:
        ModelError: Its nodes do not fit together, which is not a matter of any part.
        UnsupportedError: The failure needs the values of a weight that was to be replaced.
        RefusedResultError: The part is no valid model, so it cannot be written.
    """
    outcome = attempt(model, sets, place.backend, replace(place.options, isolate=seconds))
    if outcome is None:
        return None
    if not outcome.kills:
        require_sound(model)
    inlined, moved = inline_functions(model)
    functions = {new: path for path, names in moved.items() for new in names}
    shrinker, records = failing_search(inlined, outcome, place, sets, seconds=seconds, max_runs=_MOST_RUNS)
    notes: list[str] = []
    try:
        with track("trying parts", _MOST_RUNS, "parts") as advance:
            shrinker.heard = lambda: advance(1)
            shrink_failing(shrinker, records)
    except OutOfRunsError:
        notes.append(f"the search was ended after {shrinker.runs} tries; a smaller part may fail too")
    try:
        piece = _described(inlined, functions, outcome, shrinker.best, shrinker.runs)
        if repro is not None:
            best = replace(shrinker.best, sets=(dict(shrinker.best.sets[outcome.number]),))
            if anonymize:
                best = _without_secrets(
                    best, SameFailure(replace(outcome, number=0), place.backend, place.options, seconds)
                )
            notes += _write(repro, None if anonymize else model, place, outcome, piece, best, seconds)
    finally:
        records.close()
    return piece, tuple(notes)


def require_sound(model: Model) -> None:
    """Raises ModelError for a model in which a tensor that is read is made by no node, or by two."""
    from onnxbench import lint

    found = lint.check(model, select=_UNSOUND).findings
    if not found:
        return
    name = model.origin.name if model.origin is not None else "the model"
    said = [f"{each.where.path}: {each.message}" for each in found]
    raise ModelError(
        f"{name} is no valid model: {said[0]}", details=said[1:],
        hint=f"'onnxbench check {model.origin or 'MODEL'}' says more, and what to do about it.",
    )  # fmt: skip


def _write(
    folder: Path,
    model: Model | None,
    place: Place,
    outcome: Outcome,
    piece: FailingPiece,
    best: Specimen,
    seconds: float,
) -> list[str]:
    """Writes the part as a repro, and returns notes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}") from None
    who = "a node" if model is None else piece.node
    scene = Scene(
        f"{who} ({piece.op_type}) {piece.text}", model.origin.name if model is not None and model.origin else "a model",
        place.backend, place.options, check_fails(outcome.how, seconds),
    )  # fmt: skip
    names = Names(*_REPRO_NAMES)
    _, note = write_files(folder / names.model, best.model, dict(best.sets[0]), None, scene, names=names)
    return [note] if note else []


def _without_secrets(best: Specimen, same: SameFailure) -> Specimen:
    """Returns a part without names and values of its own that fails all the same."""
    plain = without_names(best)
    if not same(plain):
        raise UnsupportedError("the failure does not show once names are replaced, so nothing was written")
    found, kept = without_values(plain, same)
    if kept:
        raise UnsupportedError(
            f"the failure needs the values of {len(kept)} tensors, so nothing was written",
            hint="Leave --anonymize out; 'onnxbench reduce' makes the part smaller.",
        )
    return found


_REPRO_NAMES = ("culprit.onnx", "inputs.npz", "expected.npz", "reproduce.py")


def failing_search(
    model: Model,
    outcome: Outcome,
    place: Place,
    sets: Sequence[Mapping[str, Value]],
    *,
    seconds: float,
    max_runs: int,
) -> tuple[Shrinker, Records]:
    """Returns a search for the smallest part of a model, without functions, that fails as the whole does."""
    options = replace(place.options, isolate=seconds if outcome.kills else 0.0)
    parts = Parts(model, place.recorder, options)
    records = Records(lambda number, batches: parts.stream(sets[number], batches), sets)
    check = SameFailure(outcome, place.backend, place.options, seconds)
    specimens = Specimens(model, records, open_sizes=outcome.phase == "run")
    return Shrinker(specimens, check, max_runs=max_runs), records


def shrink_failing(shrinker: Shrinker, records: Records) -> None:
    """Makes a part that fails to run small: the end is cut off first, and what flows into the rest is recorded.

    Raises:
        OutOfRunsError: The tries are used up.
    """
    shrinker.cut_back()
    if len(shrinker.units) > 1:
        records.record(shrinker.specimens.made(shrinker.units[:-1]))
        last = shrinker.units[-1:]
        if not shrinker.start_with(last):
            shrinker.cut_front()
            shrinker.delta_debug()


def _described(model: Model, functions: Mapping[str, str], outcome: Outcome, best: Specimen, runs: int) -> FailingPiece:
    scope = GraphIndex(model.proto).main
    positions = [
        scope.producers[name]
        for node in best.model.proto.graph.node
        if node.op_type != "Constant"
        for name in list(node.output)[:1]
        if name in scope.producers
    ]
    last = positions[-1] if positions else 0
    node = scope.nodes[last]
    whence = provenance(node)
    function = functions.get(scope.writes[last][0], "").rpartition("/")[0] or None
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}::"
    return FailingPiece(
        how=outcome.how, phase=outcome.phase, message=outcome.message, details=outcome.details, text=outcome.text,
        node=scope.label(last), op_type=f"{domain}{node.op_type}",
        nodes=tuple(scope.label(at) for at in positions), inputs=tuple(best.inputs_as_text(outcome.number)),
        number=outcome.number, runs=runs, before=len(scope.nodes), module=whence.scope or None,
        source=whence.source, function=function,
    )  # fmt: skip
