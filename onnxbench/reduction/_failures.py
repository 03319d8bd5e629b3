"""What a reduction looks for: drift, NaN, a failure to run, or what a user's command tells.

Each is a question that is put to parts of the model (``shows``), with a first guess at where to look (``guesses``), and
what a script has to do to ask it again (``check``).
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from onnxbench import backends, captures
from onnxbench.bisection import (
    Bisection,
    ModelReference,
    Place,
    RecordedReference,
    Reference,
    Suspect,
    as_dtype,
    epsilon,
    measure,
)
from onnxbench.boundary import reach_back
from onnxbench.captures import Value
from onnxbench.drift import Tolerance, compare_values
from onnxbench.errors import UnsupportedError, UsageError
from onnxbench.nonfinite import NonFinite
from onnxbench.parts import Parts
from onnxbench.shrinking import (
    Names,
    Outcome,
    SameFailure,
    Specimen,
    Specimens,
    Stream,
    check_command,
    check_drifts,
    check_fails,
    check_nonfinite,
)
from onnxbench.tensorstats import statistics
from onnxbench.writer import save as save_model

_SHARE = 4
"""Of the culprit's own error, a part has to show this share (a quarter) of it."""
_MOST = 1e-2
_REACHES = (0, 1, 2, 4, 8, 16, 32)


class Failure(Protocol):
    """What a part of a model is asked.

    Attributes:
        kind: ``drift``, ``nonfinite``, ``run`` or ``command``.
        text: The failure of the whole, in words.
        place: What runs the parts.
        number: The set of inputs on which a part showed it last.
    """

    kind: str
    text: str
    place: Place
    number: int

    def stream(self, model_sets: Sequence[Mapping[str, Value]]) -> Stream:
        """Returns what records the values that flow into parts."""
        ...

    def shows(self, specimen: Specimen) -> bool:
        """Tells whether a part shows the failure."""
        ...

    def guesses(self, specimens: Specimens) -> Iterator[set[int]]:
        """Yields sets of nodes that may show it, the smallest first."""
        ...

    def expected(self, specimen: Specimen) -> dict[str, Value] | None:
        """Returns what should come out of a part, if that is known."""
        ...

    def check(self, names: Names) -> str:
        """Returns the source text by which a script asks the same."""
        ...


def _around(specimens: Specimens, seeds: Sequence[int]) -> Iterator[set[int]]:
    """Yields the nodes around some: those within 0, 1, 2, 4, ... steps up."""
    scope = specimens.scope
    constants = set(range(len(scope.nodes))) - set(specimens.units)
    found, rim, steps = set(seeds), set(seeds), 0
    for most in _REACHES:
        while steps < most and rim:
            above = {scope.producers[n] for at in rim for n in scope.reads[at] if n in scope.producers}
            rim = above - found - constants
            found |= rim
            steps += 1
        if found:
            yield set(found)


class RunFailure:
    """A model that does not run: refused, failed, crashed, hung."""

    kind = "run"

    def __init__(self, model: Any, outcome: Outcome, place: Place, seconds: float) -> None:
        self.outcome, self.place, self.number = outcome, place, outcome.number
        self.text = f"the model {outcome.text}"
        self._seconds = seconds
        self._same = SameFailure(outcome, place.backend, place.options, seconds)
        options = replace(place.options, isolate=seconds if outcome.kills else 0.0)
        self._parts = Parts(model, place.recorder, options)

    def stream(self, model_sets: Sequence[Mapping[str, Value]]) -> Stream:
        """Returns what records values (see ``Failure``)."""
        return lambda number, batches: self._parts.stream(model_sets[number], batches)

    def shows(self, specimen: Specimen) -> bool:
        """Tells whether a part fails as the whole does."""
        return self._same(specimen)

    def guesses(self, specimens: Specimens) -> Iterator[set[int]]:
        """Yields nothing: cuts are tried first, since no value behind the failing node is known."""
        return iter(())

    def expected(self, specimen: Specimen) -> dict[str, Value] | None:
        """Returns None: nothing comes out."""
        return None

    def check(self, names: Names) -> str:
        """Returns the source text of the question."""
        return check_fails(self.outcome.how, self._seconds)


class NonFiniteFailure:
    """NaN, or infinities, out of values that are none."""

    kind = "nonfinite"

    def __init__(self, model: Any, found: NonFinite | None, place: Place, number: int) -> None:
        self.place, self.number = place, number
        self._parts = Parts(model, place.recorder, place.options)
        origin = found.nan_origin or found.origin if found is not None else None
        self._nans = origin is None or "NaN" in origin.makes
        self._tensors = [stats.name for stats in origin.outputs] if origin is not None else []
        self._label = "" if origin is None else origin.within[0].rpartition(" (")[0] if origin.within else origin.node
        where = f" at {origin.node} ({origin.op_type})" if origin is not None else ""
        self.text = f"the model makes {'NaN' if self._nans else 'Inf'}{where}"

    def stream(self, model_sets: Sequence[Mapping[str, Value]]) -> Stream:
        """Returns what records values (see ``Failure``)."""
        return lambda number, batches: self._parts.stream(model_sets[number], batches)

    def shows(self, specimen: Specimen) -> bool:
        """Tells whether a part makes NaN (or infinities) where none flows in."""
        session: backends.Session | None = None
        order = sorted(range(len(specimen.sets)), key=lambda number: number != self.number)
        for number in order:
            feeds = specimen.sets[number]
            if any(self._is_bad(feeds[name]) for name in feeds):
                continue
            session = session or backends.open_session(specimen.model, self.place.backend, options=self.place.options)
            if any(self._is_bad(value) for value in session.run(feeds).values()):
                self.number = number
                return True
        return False

    def _is_bad(self, value: Value) -> bool:
        stats = statistics("", value)
        return bool(stats.nans) if self._nans else not stats.finite

    def guesses(self, specimens: Specimens) -> Iterator[set[int]]:
        """Yields the node that makes the first, and its neighbourhood."""
        scope = specimens.scope
        seeds = [scope.producers[name] for name in self._tensors if name in scope.producers]
        seeds = seeds or [at for at in specimens.units if self._label and scope.label(at) == self._label]
        return _around(specimens, seeds)

    def expected(self, specimen: Specimen) -> dict[str, Value] | None:
        """Returns None: what should come out is not known."""
        return None

    def check(self, names: Names) -> str:
        """Returns the source text of the question."""
        return check_nonfinite(self._nans)


@dataclass(frozen=True, slots=True)
class Limit:
    """From where on a difference is the failure.

    Attributes:
        threshold: Relative error of a tensor as a whole.
        tolerance: What an element may be off, in place of that.
    """

    threshold: float
    tolerance: Tolerance | None = None

    def exceeded(self, expected: Value, actual: Value) -> bool:
        """Tells whether a value is off by more."""
        if self.tolerance is not None:
            return not all(
                drift.passed
                for drift in compare_values("", expected, actual, tolerance=self.tolerance, check_dtype=False)
            )
        distance = measure(expected, actual)
        return bool(distance.problem) or distance.rel >= self.threshold


def make_limit(found: Bisection, tolerance: Tolerance | None) -> Limit:
    """Returns from where on a difference is the failure that a search found."""
    if tolerance is not None:
        return Limit(0.0, tolerance)
    if found.culprits:
        own = found.culprits[0].own.rel
        return Limit(max(found.median, min(_MOST, own / _SHARE)) if math.isfinite(own) else 1e-6)
    return Limit(0.0, Tolerance(1e-5, 1e-4))


def drift_text(found: Bisection) -> str:
    """Returns the drift in words: the culprit, or that outputs are off."""
    if found.culprits:
        return found.verdict
    bad = next((drift for drift in found.outputs if not drift.passed), None)
    return f"output {bad.name} is off: {bad.reason}" if bad is not None else found.verdict


class PlacesFailure:
    """A model that gives something else on one runtime, or at one level, than on another."""

    kind = "drift"

    def __init__(self, model: Any, found: Bisection, place: Place, reference: Place, limit: Limit) -> None:
        self.place, self._reference, self.limit, self.number = place, reference, limit, 0
        self._parts = Parts(model, reference.backend, reference.options)
        self._found = found
        self.text = drift_text(found)
        if found.culprits:
            self.number = found.culprits[0].number

    def stream(self, model_sets: Sequence[Mapping[str, Value]]) -> Stream:
        """Returns what records values: those of the reference's runtime."""
        return lambda number, batches: self._parts.stream(model_sets[number], batches)

    def shows(self, specimen: Specimen) -> bool:
        """Tells whether a part gives something else on both."""
        sessions = [
            backends.open_session(specimen.model, place.backend, options=place.options)
            for place in (self._reference, self.place)
        ]
        for number in sorted(range(len(specimen.sets)), key=lambda number: number != self.number):
            right, wrong = (session.run(specimen.sets[number]) for session in sessions)
            if any(self.limit.exceeded(right[name], wrong[name]) for name in right):
                self.number = number
                return True
        return False

    def guesses(self, specimens: Specimens) -> Iterator[set[int]]:
        """Yields the nodes that the culprit stands for, and its neighbourhood."""
        scope = specimens.scope
        if not self._found.culprits:
            return
        first = self._found.culprits[0]
        region = set(first.reference_region)
        found = {at for at in specimens.units if scope.label(at) in region}
        if found:
            yield found
        seeds = [scope.producers[first.tensor]] if first.tensor in scope.producers else sorted(found)
        yield from _around(specimens, seeds)

    def expected(self, specimen: Specimen) -> dict[str, Value] | None:
        """Returns what comes out on the reference's runtime."""
        session = backends.open_session(specimen.model, self._reference.backend, options=self._reference.options)
        return session.run(specimen.sets[self.number])

    def check(self, names: Names) -> str:
        """Returns the source text of the question."""
        same = self._reference.backend == self.place.backend == "ort" and all(
            getattr(self._reference.options, name) == getattr(self.place.options, name)
            for name in ("providers", "threads")
        )
        level = self._reference.options.optimization if same else None
        return _drift_check(names, self.limit, level)


class _ReferenceFailure:
    """A model that gives something else than a reference: nodes are compared on the reference's values.

    Attributes:
        takes_other_inputs: Whether the reference can tell what should come out for any inputs.
    """

    kind = "drift"
    takes_other_inputs = True

    def __init__(self, suspect: Suspect, reference: Reference, found: Bisection, limit: Limit, place: Place) -> None:
        self.place, self._values, self._found, self.limit = place, reference, found, limit
        self.number = found.culprits[0].number if found.culprits else 0
        self.text = drift_text(found)
        self._matched = reference.match(suspect).tensors
        inner = [name for name in self._matched if name in suspect.parts.scope.producers]
        self._dtypes = {
            name: kind.tensor_type.elem_type for name, kind in backends.tensor_types(suspect.plain, inner).items()
        }

    def stream(self, model_sets: Sequence[Mapping[str, Value]]) -> Stream:
        """Returns what records values: the reference's, by the suspect's names and in its element types."""

        def run(number: int, batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]:
            partners = [[self._matched[name] for name in batch] for batch in batches]
            feeds = model_sets[number]
            stream = self._values.stream(feeds, partners, number=number)
            for batch, made in zip(batches, stream, strict=True):
                yield {name: as_dtype(made[self._matched[name]], self._dtypes.get(name, 0)) for name in batch}

        return run

    @property
    def recordable(self) -> set[str]:
        """The tensors whose values the reference knows."""
        return set(self._matched)

    def shows(self, specimen: Specimen) -> bool:
        """Tells whether a part gives something else than the reference's nodes between the same tensors."""
        compared = [name for name in specimen.outputs if name in self._matched]
        if not compared:
            return False
        session = backends.open_session(specimen.model, self.place.backend, options=self.place.options)
        for number in sorted(range(len(specimen.sets)), key=lambda number: number != self.number):
            right = self._right(specimen, compared, number)
            wrong = session.run(specimen.sets[number], compared)
            if any(self.limit.exceeded(right[name], wrong[name]) for name in compared):
                self.number = number
                return True
        return False

    def _right(self, specimen: Specimen, names: Sequence[str], number: int) -> dict[str, Value]:
        """Returns what the reference makes of what flows into a part.

        Raises:
            UnsupportedError: It cannot be told.
        """
        raise NotImplementedError

    def guesses(self, specimens: Specimens) -> Iterator[set[int]]:
        """Yields the culprit with the unmatched nodes before it, and its neighbourhood."""
        scope = specimens.scope
        if not self._found.culprits:
            return
        for culprit in self._found.culprits:
            maker = scope.producers.get(culprit.tensor)
            if maker is None:
                continue
            stops = set(self._matched)
            reach = reach_back(scope, scope.reads[maker], stops)
            yield {maker, *reach.nodes}.intersection(specimens.units)
        first = scope.producers.get(self._found.culprits[0].tensor)
        if first is not None:
            yield from _around(specimens, [first])

    def expected(self, specimen: Specimen) -> dict[str, Value] | None:
        """Returns what the reference's nodes make."""
        return self._right(specimen, [name for name in specimen.outputs if name in self._matched], self.number)

    def check(self, names: Names) -> str:
        """Returns the source text of the question."""
        return _drift_check(names, self.limit, None)


class ModelFailure(_ReferenceFailure):
    """A model that gives something else than another one, whose nodes are run between the same tensors."""

    def __init__(
        self, suspect: Suspect, reference: ModelReference, found: Bisection, limit: Limit, place: Place
    ) -> None:
        super().__init__(suspect, reference, found, limit, place)
        self._parts = reference.side.parts
        self._reference_dtypes = {port.name: port.dtype for port in reference.side.ports}

    def _right(self, specimen: Specimen, names: Sequence[str], number: int) -> dict[str, Value]:
        feeds = specimen.sets[number]
        scope = self._parts.scope
        given = {self._matched.get(name, name): feeds[name] for name in feeds}
        partners = {name: self._matched[name] for name in names}
        through = {name: given[partner] for name, partner in partners.items() if partner in given}
        left = [partner for partner in partners.values() if partner not in given]
        reach = reach_back(scope, left, set(given))
        if reach.inputs or reach.undefined:
            raise UnsupportedError("the reference's nodes between these tensors read others too")
        made = self._parts.run(reach.nodes, self._as_the_reference(given), left) if left else {}
        return {name: through[name] if name in through else made[partner] for name, partner in partners.items()}

    def _as_the_reference(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """Returns values in the element types of the reference's tensors."""
        known = self._reference_dtypes
        lacking = [name for name in given if name not in known and name in self._parts.scope.producers]
        if lacking:
            kinds = self._parts.kinds(lacking)
            known.update((name, kinds[name].tensor_type.elem_type if name in kinds else 0) for name in lacking)
        return {name: as_dtype(value, known.get(name, 0)) for name, value in given.items()}


class TorchFailure(_ReferenceFailure):
    """A model that gives something else than PyTorch, which computes values anew from those that flow into a part."""

    def _right(self, specimen: Specimen, names: Sequence[str], number: int) -> dict[str, Value]:
        given = {self._matched.get(name, name): value for name, value in specimen.sets[number].items()}
        rerun = getattr(self._values, "rerun")  # noqa: B009 - a reference may have it
        made = {name: rerun(self._matched[name], given) for name in names}
        if any(value is None for value in made.values()):
            raise UnsupportedError("the reference cannot compute these values from those that flow into the part")
        return made


class RecordedFailure(_ReferenceFailure):
    """A model that gives something else than what was recorded, for the very values that were recorded."""

    takes_other_inputs = False

    def _right(self, specimen: Specimen, names: Sequence[str], number: int) -> dict[str, Value]:
        assert isinstance(self._values, RecordedReference)
        feeds = specimen.sets[number]
        for recorded in self._values.recorded:
            known = [name for name in feeds if self._matched.get(name, name) in recorded]
            if all(self._is_recorded(feeds[name], recorded[self._matched.get(name, name)]) for name in known):
                return {name: recorded[self._matched[name]] for name in names}
        raise UnsupportedError("what flows into the part was not recorded")

    @staticmethod
    def _is_recorded(value: Value, recorded: Value) -> bool:
        distance = measure(recorded, value)
        return not distance.problem and distance.rel <= epsilon(distance.dtypes[1])


def _drift_check(names: Names, limit: Limit, level: str | None) -> str:
    told = limit.tolerance
    return check_drifts(
        names, level=level, threshold=limit.threshold, atol=None if told is None else told.atol,
        rtol=None if told is None else told.rtol,
    )  # fmt: skip


class CommandFailure:
    """What a user's command tells of a model file by its exit code."""

    kind = "command"

    def __init__(self, model: Any, command: str, code: int, place: Place, seconds: float) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"--check {command!r} cannot be read: {error}") from None
        if not self._words:
            raise UsageError("--check names no command")
        if not any("{}" in word for word in self._words):
            unknown = next((word for word in self._words if re.fullmatch(r"\{\w+\}", word) and word != "{feeds}"), None)
            if unknown is not None:
                raise UsageError(
                    f"--check {command!r}: {unknown} stands for nothing",
                    hint="{} is the model file, {feeds} its inputs.",
                )
            self._words.append("{}")
        self.place, self.number, self._code, self._seconds = place, 0, code, seconds
        self.text = f"{command!r} ends with {code}"
        self._parts = Parts(model, place.recorder, replace(place.options, isolate=seconds))
        self.last: int | None = None

    def stream(self, model_sets: Sequence[Mapping[str, Value]]) -> Stream:
        """Returns what records values (see ``Failure``), in a process of its own: the model may crash."""
        return lambda number, batches: self._parts.stream(model_sets[number], batches)

    def shows(self, specimen: Specimen) -> bool:
        """Tells whether the command ends with the code on a part, on one of the sets."""
        with tempfile.TemporaryDirectory(prefix="onnxbench-") as folder:
            file = Path(folder) / "model.onnx"
            save_model(specimen.model, file)
            for number in sorted(range(len(specimen.sets)), key=lambda number: number != self.number):
                feeds = Path(folder) / f"feeds{number}.npz"
                captures.save(feeds, specimen.sets[number])
                if self._run(file, feeds) == self._code:
                    self.number = number
                    return True
        return False

    def _run(self, file: Path, feeds: Path) -> int | None:
        """Returns the exit code of the command, as a shell tells it; None if it took too long."""
        words = [word.replace("{feeds}", str(feeds)).replace("{}", str(file)) for word in self._words]
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, "ONNXBENCH_FEEDS": str(feeds)},
            )  # fmt: skip
        except OSError as error:
            raise NoCommandError(f"--check: {words[0]} cannot be run: {error.strerror}") from None
        try:
            code = process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        self.last = code if code >= 0 else 128 - code
        return self.last

    def guesses(self, specimens: Specimens) -> Iterator[set[int]]:
        """Yields nothing."""
        return iter(())

    def expected(self, specimen: Specimen) -> dict[str, Value] | None:
        """Returns None: what should come out is not known."""
        return None

    def check(self, names: Names) -> str:
        """Returns the source text of the question."""
        words = [word.replace("{feeds}", names.feeds).replace("{}", names.model) for word in self._words]
        return check_command(words, self._code)


class NoCommandError(UsageError):
    """The command of a user cannot be run at all."""
