"""A model reduced to the smallest part that still shows a failure.

    found = onnxbench.reduce_failure("model.onnx", "small.onnx", against="reference.onnx")
    print(found.before, found.after, found.ended)

``_failures`` says what is looked for, ``onnxbench.shrinking`` how parts are cut and tried, ``_inputs`` how what flows
into the last one is made smaller.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import nonfinite as nan_search
from onnxbench.bisection import (
    Bisection,
    ModelReference,
    Place,
    RecordedReference,
    Reference,
    Suspect,
    bisect,
    free_memory,
    parse_place,
    recorded_reference,
)
from onnxbench.captures import Value, check_feeds, input_ports
from onnxbench.drift import Tolerance
from onnxbench.errors import BenchError, FeedsError, UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions, feed_sets, refuse_to_overwrite
from onnxbench.graph import GraphIndex
from onnxbench.inlining import inline_functions
from onnxbench.model import Model, load
from onnxbench.progress import track
from onnxbench.reduction._failures import (
    CommandFailure,
    Failure,
    ModelFailure,
    NonFiniteFailure,
    PlacesFailure,
    RecordedFailure,
    RunFailure,
    TorchFailure,
    make_limit,
)
from onnxbench.reduction._inputs import fix_inputs, only_set, shrink_sizes
from onnxbench.shrinking import (
    Names,
    OutOfRunsError,
    Records,
    Scene,
    Shrinker,
    Specimen,
    Specimens,
    attempt,
    without_names,
    without_values,
    write_files,
)
from onnxbench.tensorstats import statistics
from onnxbench.writer import require_place

if TYPE_CHECKING:
    from onnxbench.backends import Options

__all__ = ["Reduction", "reduce_failure"]

MAX_RUNS = 500
SECONDS = 60.0
_SMALLEST, _RUNS, _STOPPED = "nothing more can go", "the tries were used up", "it was interrupted"


@dataclass(frozen=True, slots=True)
class Reduction:
    """What became of a reduction.

    Attributes:
        kind: ``drift``, ``nonfinite``, ``run``, ``command``; ``none`` where the whole model shows no failure.
        failure: The failure of the whole, in words.
        shows: Whether there is a failure at all; nothing was written otherwise.
        before: How many nodes the model has, functions inlined.
        after: How many are left.
        nodes: Their labels in the model, Constant nodes left out; functions inlined.
        inputs: The inputs of what is left: ``x: float32[1, 8]``.
        elements: How many numbers flow in, before and after inputs were made smaller.
        runs: How many parts were tried.
        ended: Why the search ended.
        interrupted: Whether that was Ctrl-C.
        number: The set of inputs that the failure shows on.
        sets: How many sets were given.
        files: What was written: the model first.
        choices: What was decided about the inputs without being told.
        notes: What else a user should know.
        model: What is left.
        feeds: What flows into it.
        expected: What should come out, if that is known.
    """

    kind: str
    failure: str
    shows: bool
    before: int
    after: int
    nodes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    elements: tuple[int, int] = (0, 0)
    runs: int = 0
    ended: str = ""
    interrupted: bool = False
    number: int = 0
    sets: int = 1
    files: tuple[Path, ...] = ()
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    model: Model | None = field(default=None, repr=False)
    feeds: Mapping[str, Value] = field(default_factory=dict, repr=False)
    expected: Mapping[str, Value] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values."""
        hidden = ("model", "feeds", "expected")
        return {name: getattr(self, name) for name in self.__slots__ if name not in hidden}


def reduce_failure(
    source: Model | str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    against: Model | Reference | str | os.PathLike[str] | None = None,
    recorded: Sequence[str] | Mapping[str, Value] = (),
    on: Place | str | None = None,
    reference_on: Place | str | None = None,
    nonfinite: bool = False,
    check: str | None = None,
    check_exit: int = 0,
    feeds: Mapping[str, Value] | FeedOptions | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    memory: int | None = None,
    max_runs: int = MAX_RUNS,
    timeout: float = SECONDS,
    libraries: Sequence[Path] = (),
    anonymize: bool = False,
    allow_outside: bool = False,
) -> Reduction:
    """Returns the smallest part of a model that still shows a failure, and writes it.

    What the failure is: drift with ``against``, ``recorded`` or ``reference_on``, NaN and infinities with
    ``nonfinite``, what a command says with ``check``. With none of these, a model that does not run (refused, failed,
    crashed, hung) is reduced for that, and one that runs for the NaN that it makes.

    Args:
        source: A model or a model file.
        target: Where what is left goes, with ``.feeds.npz``, ``.expected.npz`` and ``.reproduce.py`` beside it; None
            writes nothing.
        against: Another model, which is right, or a reference that computes values anew (``torch_reference``).
        recorded: Values that are right, of any tensors: files, or values by tensor. Parts are cut at recorded tensors.
        on: What runs the model: ``ort:all`` (the default; ``ort:none`` with ``against``), ``ort:none,threads=1``,
            ``reference``.
        reference_on: What runs the reference, which is the same model without ``against``.
        nonfinite: The failure is a NaN, or an infinity where there is no NaN.
        check: A command; ``{}`` in it is a model file and ``{feeds}`` a file with its inputs. It is run, without a
            shell, on part after part.
        check_exit: The exit code with which it says that the failure shows (128 + n where it dies of signal n).
        feeds: Values by input, or what a user says about them; None draws one set from seed 0.
        atol: What an element may be off, in place of a share of the culprit's error.
        rtol: The same, relative to the expected value.
        memory: How many bytes the search for drift may hold; None: a quarter of free memory.
        max_runs: How many parts are tried at most.
        timeout: Seconds that opening a part, a run, or the command may take, where these run in other processes.
        libraries: Libraries with custom operators; they are code.
        anonymize: Replace names, texts and metadata of what is left, and values where the failure shows without them;
            not with ``against``, where the other model's values are what is right.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        UsageError: The options contradict each other, or the command cannot be run.
        RefusedResultError: What is left is no valid model: the whole was none.
        OutputError: A file cannot be written.
    """
    told = [word for word, given in (("drift", against is not None or reference_on is not None or len(recorded) > 0),
                                     ("nonfinite", nonfinite), ("command", check is not None)) if given]  # fmt: skip
    if len(told) > 1:
        raise UsageError(f"one failure is reduced at a time, and {' and '.join(told)} were asked for")
    if (atol is not None or rtol is not None) and told != ["drift"]:
        raise UsageError("atol and rtol are for drift: name a reference with --against or --reference-on")
    if max_runs < 1:
        raise UsageError("max_runs must be at least 1")
    if against is not None and len(recorded):
        raise UsageError("the reference is either a model (against) or recorded values, not both")
    if anonymize and (against is not None or len(recorded)):
        raise UsageError("a part cannot be anonymized with --against: the other model's values tell what is right")
    if timeout <= 0:
        raise UsageError("timeout must be more than 0 seconds")
    if target is not None and Path(target).suffix.lower() != ".onnx":
        raise UsageError(f"{target} does not end in .onnx", hint="Runtimes and the script read the binary form alone.")
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    other = load(against, allow_outside=allow_outside) if isinstance(against, (str, os.PathLike)) else against
    if target is not None:
        names = Names.after(Path(target).name)
        words = [] if not isinstance(feeds, FeedOptions) else list(feeds.sources)
        words += [] if isinstance(recorded, Mapping) else list(recorded)
        words += [os.fspath(against)] if isinstance(against, (str, os.PathLike)) else []
        beside = (Path(target).parent / name for name in (names.feeds, names.expected, names.script))
        refuse_to_overwrite(model, words, target, *beside)
        require_place(Path(target))
    place = _place(on, "none" if against is not None or len(recorded) else "all", "--on", libraries)
    inlined = inline_functions(model)[0]
    if len(recorded):
        other = recorded_reference(model, recorded)
    sets, choices = _sets(model, inlined, other, feeds)
    job = _Job(model, inlined, sets, place, timeout, max_runs, anonymize=anonymize)
    kind = told[0] if told else ""
    if kind == "drift":
        right = _place(reference_on, "none", "--reference-on", libraries)
        tolerance = None if atol is None and rtol is None else Tolerance(atol or 0.0, rtol or 0.0)
        failure, close = job.drift(other, right, tolerance, free_memory() if memory is None else memory)
    elif kind == "command":
        assert check is not None
        failure, close = CommandFailure(inlined, check, check_exit, place, timeout), _nothing
    else:
        failure, close = job.found(nonfinite_only=nonfinite), _nothing
    try:
        found = job.none() if failure is None else job.reduce(failure, target)
    finally:
        close()
    return replace(found, choices=choices)


def _nothing() -> None:
    pass


def _place(given: Place | str | None, level: str, what: str, libraries: Sequence[Path]) -> Place:
    place = given if isinstance(given, Place) else parse_place(given or "ort", level=level, what=what)
    if not libraries:
        return place
    options: Options = replace(place.options, libraries=tuple(libraries))
    return Place(place.backend, options)


def _sets(
    model: Model, inlined: Model, other: Model | Reference | None, feeds: Mapping[str, Value] | FeedOptions | None
) -> tuple[list[Mapping[str, Value]], tuple[str, ...]]:
    ports = input_ports(model.proto.graph)
    if isinstance(feeds, Mapping):
        return [check_feeds(feeds, ports)], ()
    if isinstance(other, RecordedReference) and (feeds is None or not feeds.sources):
        own = list(other.feeds(ports))
        if own:
            return list(own), ()
    inputs = getattr(other, "inputs", None)
    if inputs is not None and other is not None and (feeds is None or feeds.says_nothing):
        assert not isinstance(other, Model)
        other.match(Suspect(inlined, Place()))
        many = 1 if feeds is None or feeds.iterations is None else feeds.iterations
        return [check_feeds(inputs(number), ports) for number in range(many)], ()
    found = list(feed_sets(model, feeds))
    if not found:
        raise FeedsError("the data holds no set of inputs")
    if isinstance(other, RecordedReference) and len(found) != len(other.recorded):
        raise FeedsError(
            f"{len(other.recorded)} sets of values are recorded, and {len(found)} sets of inputs are given"
        )
    return [each.feeds for each in found], tuple(dict.fromkeys(word for each in found for word in each.choices))


class _Job:
    """One reduction from a model to files."""

    def __init__(
        self,
        model: Model,
        inlined: Model,
        sets: list[Mapping[str, Value]],
        place: Place,
        seconds: float,
        max_runs: int,
        *,
        anonymize: bool,
    ) -> None:
        self._model, self._inlined, self._sets, self._place = model, inlined, sets, place
        self._seconds, self._max_runs, self._anonymize = seconds, max_runs, anonymize
        self._index = GraphIndex(inlined.proto)
        self._notes: list[str] = []
        self._why = "the model runs, and makes neither NaN nor infinities"

    # ---- which failure

    def found(self, *, nonfinite_only: bool) -> Failure | None:
        """Returns the failure of a model that no reference was named for: it does not run, or makes NaN."""
        place = self._place
        if not nonfinite_only:
            isolated = replace(place.options, isolate=self._seconds)
            outcome = attempt(self._model, self._sets, place.backend, isolated)
            if outcome is not None:
                return RunFailure(self._inlined, outcome, place, self._seconds)
        for number, feeds in enumerate(self._sets):
            found = nan_search.find_nonfinite(self._inlined, feeds, backend=place.backend, options=place.options)
            if found is not None and (found.origin is not None or found.nan_origin is not None):
                return NonFiniteFailure(self._inlined, found, place, number)
            if found is not None:
                source = found.sources[0].name if found.sources else "its inputs"
                self._why = f"no node makes NaN or infinities out of finite values: they are in {source} already"
            elif self._breaks_when_optimized(feeds):
                return NonFiniteFailure(self._inlined, None, place, number)
        return None

    def _breaks_when_optimized(self, feeds: Mapping[str, Value]) -> bool:
        from onnxbench import backends

        if not self._place.optimizes:
            return False
        session = backends.open_session(self._model, self._place.backend, options=self._place.options)
        return any(statistics("", value).nans for value in session.run(feeds).values())

    def drift(
        self, other: Model | Reference | None, right: Place, tolerance: Tolerance | None, memory: int
    ) -> tuple[Failure | None, Callable[[], None]]:
        """Returns the drift from another model, or from another place."""
        found: Bisection | None = None
        for number, feeds in enumerate(self._sets):
            told = () if tolerance is None else tolerance
            alone = other
            if isinstance(other, RecordedReference):
                alone = RecordedReference([other.recorded[number]], other.label)
            tried = bisect(
                self._model, against=alone, on=self._place, reference_on=right, feeds=feeds, memory=memory,
                atol=told.atol if told else (), rtol=told.rtol if told else (), timeout=self._seconds,
            )  # fmt: skip
            if tried.failure is not None:
                raise UsageError(
                    f"nothing can be compared: {tried.verdict}", hint="Reduce that first: leave the reference out."
                )
            if found is None or (found.passed and not tried.passed):
                found = tried
        assert found is not None
        if found.passed:
            self._why = found.verdict
            return None, _nothing
        limit = make_limit(found, tolerance)
        if other is None:
            return PlacesFailure(self._inlined, found, self._place, right, limit), _nothing
        plain = replace(self._place, options=replace(self._place.options, optimization="none"))
        suspect = Suspect(self._inlined, plain)
        if not isinstance(other, Model):
            of = RecordedFailure if isinstance(other, RecordedReference) else TorchFailure
            return of(suspect, other, found, limit, self._place), suspect.close
        reference = ModelReference(other, right)

        def close() -> None:
            suspect.close()
            reference.close()

        return ModelFailure(suspect, reference, found, limit, self._place), close

    def none(self) -> Reduction:
        """Returns what is told where there is no failure."""
        count = len(self._index.main.nodes)
        return Reduction("none", self._why, False, count, count, sets=len(self._sets), notes=tuple(self._notes))

    # ---- the search

    def reduce(self, failure: Failure, target: str | os.PathLike[str] | None) -> Reduction:
        """Returns the smallest part that shows a failure, and writes it."""
        records = Records(failure.stream(self._sets), self._sets)
        try:
            open_sizes = isinstance(failure, RunFailure) and failure.outcome.phase == "run"
            specimens = Specimens(self._inlined, records, open_sizes=open_sizes)
            shrinker = Shrinker(specimens, failure.shows, max_runs=self._max_runs)
            specimen, ended = self._search(shrinker, records, failure)
            if specimen is None:
                if isinstance(failure, CommandFailure) and failure.last is not None:
                    self._why = f"the command ends with {failure.last} on the whole model"
                else:
                    self._why = f"the failure does not show on the whole model: {failure.text}"
                return self.none()
            return self._told(failure, specimen, shrinker, ended, target)
        finally:
            records.close()

    def _search(self, shrinker: Shrinker, records: Records, failure: Failure) -> tuple[Specimen | None, str]:
        """Returns what is left, on the one set that shows the failure, and why the search ended."""
        last: Specimen | None = None
        ended = _SMALLEST
        try:
            with track("trying parts", self._max_runs, "parts") as advance:
                shrinker.heard = lambda: advance(1)
                shown = shrinker.try_specimen(shrinker.best)
                self._shrink_nodes(shrinker, records, failure, shown)
                if not shrinker.shown:
                    return None, ended
                last = self._on_one_set(shrinker.best, failure)
                for smaller in self._smaller_inputs(last, shrinker, failure):
                    last = smaller
        except OutOfRunsError:
            ended = _RUNS
        except KeyboardInterrupt:
            if not shrinker.shown:
                raise
            ended = _STOPPED
        if last is None:
            if not shrinker.shown:
                return None, ended
            last = self._on_one_set(shrinker.best, failure)
        return last, ended

    def _on_one_set(self, specimen: Specimen, failure: Failure) -> Specimen:
        self._number, failure.number = failure.number, 0
        found = only_set(specimen, self._number)
        self._elements = _elements(found)
        return found

    def _shrink_nodes(self, shrinker: Shrinker, records: Records, failure: Failure, shown: bool) -> None:
        if not self._guess(shrinker, records, failure):
            if not shown:
                return
            shrinker.cut_back()
            units = shrinker.units if failure.kind != "run" else shrinker.units[:-1]
            records.record(self._recordable(failure, shrinker.specimens.made(units)))
            if failure.kind != "run" or not shrinker.start_with(shrinker.units[-1:]):
                shrinker.cut_front()
        records.record(self._recordable(failure, shrinker.specimens.made(shrinker.units[:-1])))
        shrinker.delta_debug()
        shrinker.drop_outputs()

    def _guess(self, shrinker: Shrinker, records: Records, failure: Failure) -> bool:
        """Goes on with the first guess that shows the failure; returns whether one did."""
        specimens = shrinker.specimens
        guesses = list(failure.guesses(specimens))
        wanted: dict[str, None] = {}
        for nodes in guesses:
            wanted.update(dict.fromkeys(n for at in nodes for n in specimens.scope.reads[at]))
            wanted.update(dict.fromkeys(specimens.made(nodes)))
        if not wanted:
            return False
        made = [name for name in specimens.made(range(len(specimens.scope.nodes))) if name in wanted]
        records.record(self._recordable(failure, made))
        return any(shrinker.start_with(nodes) for nodes in guesses)

    @staticmethod
    def _recordable(failure: Failure, names: Sequence[str]) -> list[str]:
        known = getattr(failure, "recordable", None)
        return [name for name in names if known is None or name in known]

    def _smaller_inputs(self, specimen: Specimen, shrinker: Shrinker, failure: Failure) -> Iterator[Specimen]:
        last = specimen
        if not getattr(failure, "takes_other_inputs", True):
            return
        for smaller in shrink_sizes(last, shrinker.try_specimen):
            last = smaller
            yield last
        if not hasattr(failure, "recordable"):
            yield from fix_inputs(last, shrinker.try_specimen)

    # ---- what is told

    def _labels(self, specimen: Specimen) -> list[str]:
        """Returns what the nodes that are left are called in the whole model."""
        scope = self._index.main
        return [
            scope.label(scope.producers[node.output[0]])
            for node in specimen.model.proto.graph.node
            if node.op_type != "Constant" and node.output and node.output[0] in scope.producers
        ]

    def _anonymous(self, specimen: Specimen, failure: Failure) -> Specimen:
        """Returns a part without names, and without the values that the failure does not need."""

        def shows(candidate: Specimen) -> bool:
            try:
                return failure.shows(candidate)
            except BenchError:
                return False

        plain = without_names(specimen)
        if not shows(plain):
            raise UnsupportedError("the failure does not show once names are replaced, so nothing was written")
        found, kept = without_values(plain, shows)
        if kept:
            self._notes.append(f"the failure needs the values of {', '.join(kept)}, which stay as they are")
        return found

    def _told(
        self,
        failure: Failure,
        specimen: Specimen,
        shrinker: Shrinker,
        ended: str,
        target: str | os.PathLike[str] | None,
    ) -> Reduction:
        left = self._labels(specimen)
        if self._anonymize:
            specimen = self._anonymous(specimen, failure)
        expected = failure.expected(specimen)
        feeds = dict(specimen.sets[0])
        files: tuple[Path, ...] = ()
        if target is not None:
            path = Path(target)
            names = Names.after(path.name)
            name = self._model.origin.name if self._model.origin is not None else "a model"
            what = failure.text
            if self._anonymize:
                name, what = "a model", f"{_KINDS[failure.kind]}, in a part whose names were replaced"
            scene = Scene(what, name, failure.place.backend, failure.place.options, failure.check(names))
            files, note = write_files(path, specimen.model, feeds, expected, scene)
            self._notes += [note] if note else []
            written = replace(specimen, model=load(files[0]))
            if ended != _STOPPED and not failure.shows(written):
                self._notes.append(
                    "what was written did not show the failure when it was tried again: it comes and goes"
                )
        return Reduction(
            kind=failure.kind, failure=failure.text, shows=True, before=len(self._index.main.nodes),
            after=specimen.nodes,
            nodes=tuple(left), inputs=tuple(specimen.inputs_as_text(0)), elements=(self._elements, _elements(specimen)),
            runs=shrinker.runs, ended=ended, interrupted=ended == _STOPPED, number=self._number,
            sets=len(self._sets), files=files, notes=tuple(self._notes), model=specimen.model, feeds=feeds,
            expected=expected,
        )  # fmt: skip


_KINDS = {
    "run": "the model does not run", "nonfinite": "the model makes NaN or Inf", "drift": "outputs are off",
    "command": "a command tells of a failure",
}  # fmt: skip


def _elements(specimen: Specimen) -> int:
    return sum(int(value.size) for value in specimen.sets[0].values() if hasattr(value, "size"))
