"""The search itself: every tensor of both sides compared, and every node's own error told from what it inherits.

*Problem.* Drift shows everywhere below the node that makes it, grows and shrinks on the way (a Softmax may hide it, a
subtraction of near-equal values blow it up), and there may be several culprits. So neither the first tensor beyond a
tolerance nor a binary search finds them: what counts is the error that a node makes of its own.

*Way.* The suspect's graph falls into regions: the nodes between tensors that the reference knows too; one node each,
where every tensor is matched. A region's own error is how far its outputs are from the reference's when it is fed the
reference's values. Regions of a batch are run so in one session (teacher forcing). Where the suspect's own values at a
region's inputs are the reference's, bit for bit, the plain run has shown its own error already. Where they and what it
makes of them are the reference's within rounding, it is settled (``_finding``) and not run.

Behind a fault nothing is settled so. But the first region that goes wrong reads only what is right. Its result is
mended, and what depends on it runs once more, plainly; what is right then is settled as well. Mostly one fault explains
all, and that run tells what it does to the outputs too.

*Noise.* Two correct kernels differ by rounding. How much is too much is not one number:

* nodes that are the same on both sides, run by the same kernels, must agree to the last bits (``TWIN``);
* for others, the element type's precision, the median own error of all regions, and what the region makes of inputs
  that are moved by one unit of precision (its condition: a sum of a million terms that cancel has a large one) are
  measured, and the own error has to be ``FACTOR`` times the largest of the three. Rounding has been seen at up to 8
  times, and the smallest fault tried (a Gelu by tanh) is at 1,000 times.

Values that are NaN or infinite on one side only, and other shapes, need no threshold. Integers have no rounding of
their own: they may differ only as far as moved inputs make them.

*Memory.* Reference, suspect and forced values of one batch are held at a time, and what later batches read. How large
batches may be is worked out before (``_budget``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnxbench.bisection._budget import Budget, Side
from onnxbench.bisection._calibrating import calibrated
from onnxbench.bisection._finding import Finding, Kept, is_right, is_settled, mended
from onnxbench.bisection._measures import Distance, epsilon, measure
from onnxbench.bisection._sides import ModelReference, RecordedReference, as_dtype, is_floating
from onnxbench.boundary import depends_on, reach_back
from onnxbench.captures import Value, onnx_dtype
from onnxbench.drift import TensorDrift, Tolerance, compare_values, default_tolerance
from onnxbench.errors import ExecutionError, UsageError
from onnxbench.tensortype import dtype_name, elem_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import NodeProto, TypeProto

    from onnxbench.bisection._sides import Reference, Suspect

_ENOUGH = 12
_FEW = 8
"""So many regions are run at once with packed weights."""
_BLOCK = 1 << 17
_HALF = (10, 16)
_SINGLE = 2.0**-23
_STEP = 2.0**-8
_QUANTIZING = ("Quantize", "Integer", "QLinear", "QAttention", "QGemm", "NBits")
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
"""Operators that engines compute in TF32."""
_BOUNDED = {"Sigmoid", "Tanh", "Erf", "HardSigmoid", "LSTM", "GRU", "RNN"}
"""Operators whose kernels are accurate to a unit of 1, not of what they give."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known when the regions of a batch are judged, by tensor.

    Attributes:
        held: The reference's values: the batch's, and what its regions read.
        got: The suspect's values of the batch.
        totals: How far the suspect's values are from the reference's, of all tensors so far.
        given: What regions are fed: ``held``, in the suspect's element types.
    """

    held: Mapping[str, Value]
    got: Mapping[str, Value]
    totals: Mapping[str, Distance]
    given: dict[str, Value] = field(default_factory=dict)


class Search:
    """Compares a suspect with a reference, set of inputs after set.

    Args:
        suspect: The suspect.
        reference: The reference.
        max_bytes: How much memory values may take.
        tolerance: What is allowed for a tensor, by its name; None: by its element type.
        twins: Whether a node and the one that makes the reference's tensor run on the same kernels.
        strict: Hold no more than ``max_bytes``, and refuse a search that cannot (see ``_budget``).
        calibrate: Measure what rounding does to each tensor, and allow that.
        thorough: Measure the own error of every node, and not only where something may be wrong.

    Attributes:
        match: Which tensors are which.
        findings: What was measured, by the suspect's tensor, in the order of the model.
        unmatched: How many tensors of the suspect have no partner.
        reference_outputs: The reference's values of the suspect's outputs, on the last set of inputs.
        outputs: The suspect's own, from the run in which all tensors were looked at.
        calibrated: What rounding is allowed to do to each tensor, on the last set of inputs; empty unless asked for.
        kept: What was seen around tensors that look wrong, on the set of inputs where the worst of them is.
    """

    def __init__(
        self,
        suspect: Suspect,
        reference: Reference,
        *,
        max_bytes: int,
        tolerance: Callable[[str], Tolerance | None],
        twins: Callable[[int, str], bool],
        calibrate: bool = False,
        strict: bool = False,
        thorough: bool = False,
    ) -> None:
        self.suspect, self.reference, self.parts = suspect, reference, suspect.parts
        self._max_bytes, self._tolerance, self._twins, self._calibrate = max_bytes, tolerance, twins, calibrate
        self._strict = strict
        self._thorough = thorough
        self._unit = max(suspect.place.unit, getattr(reference, "unit", 0.0))
        self._budget: Budget | None = None
        self.match = reference.match(suspect)
        scope = self.parts.scope
        made = [name for names in scope.writes for name in names]
        self._kinds: dict[str, TypeProto] = self.parts.kinds(list(dict.fromkeys(made)), stated=True)
        matched = [name for name in made if name in self.match.tensors and self._is_tensor(name)]
        if suspect.place.is_engine:  # constants are folded there
            matched = [name for name in matched if name in self.parts.varying]
        self.names = self.parts.in_order(matched)
        self.unmatched = len(made) - len(matched)
        self._forced = {name for name in matched if name in self.parts.varying}
        self._batches: list[list[str]] | None = None
        self.findings: dict[str, Finding] = {}
        self.reference_outputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.calibrated: dict[str, Tolerance] = {}
        self.kept = Kept()
        self._outputs = set(scope.outputs)
        self._units = self._coarsest_units() if calibrate else {}

    def _is_tensor(self, name: str) -> bool:
        kind = self._kinds.get(name)
        return kind is None or kind.WhichOneof("value") == "tensor_type"

    def take(self, feeds: Mapping[str, Value], number: int, advance: Callable[[int], None]) -> None:
        """Compares all matched tensors on one set of inputs.

        Raises:
            ExecutionError: A side failed.
        """
        batches = self._split(feeds)
        partners = [[self.match.tensors[name] for name in batch] for batch in batches]
        last = self._last_reads(batches)
        held: dict[str, Value] = dict(feeds)
        totals: dict[str, Distance] = {name: Distance(equal=True) for name in feeds}
        dtypes: dict[str, int] = {name: _dtype(value) for name, value in feeds.items()}
        seen = Kept(number, room=self._max_bytes // 8)
        constants: set[str] = set()  # constants that differ: they are fed the reference's value like other tensors
        expected = self.reference.stream(feeds, partners, number=number)
        actual = self.parts.stream(feeds, batches)
        others = self._other_rounding(feeds, partners, number)
        for at, (batch, wanted, got, other) in enumerate(zip(batches, expected, actual, others, strict=True)):
            references = {name: wanted[self.match.tensors[name]] for name in batch}
            self._learn(references, got, other)
            totals.update(self._distances(references, got))
            for name, reference in references.items():
                held[name], dtypes[name] = reference, _dtype(got[name])
                if name in self._outputs:
                    self.reference_outputs[name], self.outputs[name] = reference, got[name]
                if name not in self._forced and not totals[name].equal:
                    constants.add(name)
            groups = self._regions(batch, constants, held)
            drifts = self._drifts(references, got) if self._thorough else {}
            self._judge(groups, _Known(held, got, totals), drifts, dtypes, seen)
            for name in [name for name in held if last.get(name, -1) <= at and name not in constants]:
                if name not in feeds:
                    del held[name]
            advance(len(batch))
        if seen.worst > self.kept.worst:
            self.kept = replace(seen, outputs=dict(self.outputs), reference_outputs=dict(self.reference_outputs))

    def _other_rounding(
        self, feeds: Mapping[str, Value], partners: Sequence[Sequence[str]], number: int
    ) -> Iterator[Mapping[str, Value]]:
        if not self._calibrate:
            return iter([{}] * len(partners))
        compute = getattr(self.reference, "other_rounding", None)
        if compute is None:
            raise UsageError(
                f"tolerances cannot be calibrated: {self.reference.label} cannot be computed with other rounding",
                hint="Name a model as the reference (--against, --torch), or say what is allowed: --atol, --rtol.",
            )
        found: Iterator[Mapping[str, Value]] = compute(feeds, partners, number=number)
        return found

    def _learn(self, references: Mapping[str, Value], got: Mapping[str, Value], other: Mapping[str, Value]) -> None:
        """Finds out what rounding does to the tensors of a batch."""
        for name, reference in references.items():
            partner = self.match.tensors[name]
            if partner in other and self._tolerance(name) is None and hasattr(got[name], "dtype"):
                unit = max(self._units.get(name, 0.0), epsilon(got[name].dtype.name))
                told = calibrated(reference, other[partner], unit)
                if told is not None:
                    self.calibrated[name] = told

    def _coarsest_units(self) -> dict[str, float]:
        """Returns the unit of precision of the coarsest of the tensors that each one comes from, itself included.

        A Cast back to float32 at the end takes no rounding back.
        """
        units: dict[str, float] = {}
        for node, made in zip(self.parts.scope.nodes, self.parts.scope.writes, strict=True):
            above = max((units.get(name, 0.0) for name in node.input if name in self.parts.varying), default=0.0)
            for name in made:
                kind = self._kinds.get(name)
                units[name] = max(above, epsilon(dtype_name(elem_type(kind))) if kind is not None else 0.0)
        return units

    def _distances(self, references: Mapping[str, Value], got: Mapping[str, Value]) -> dict[str, Distance]:
        """Returns how far the suspect's values are from the reference's."""
        return {
            name: measure(reference, got[name], self._allowed(name, reference, got[name]))
            for name, reference in references.items()
        }

    def _drifts(self, references: Mapping[str, Value], got: Mapping[str, Value]) -> dict[str, TensorDrift]:
        """Returns all that there is to know of how far the suspect's values are from the reference's."""

        def drift(name: str) -> TensorDrift:
            reference, value = references[name], got[name]
            allowed = self._allowed(name, reference, value)
            return compare_values(name, reference, value, check_dtype=False, tolerance=allowed)[0]

        return {name: drift(name) for name in references}

    def _split(self, feeds: Mapping[str, Value]) -> list[list[str]]:
        """Returns the matched tensors in batches: as the budget says, or of a quarter of the memory each.

        The quarters are two sides, forced values, and what is kept.
        """
        if self._batches is None:
            if self._strict:
                self._budget = self._make_budget(feeds)
                self._batches = self._budget.split(self.names)
            else:
                self._batches = self.parts.batches(feeds, self.names, self._max_bytes // 4)
        return self._batches

    def _make_budget(self, feeds: Mapping[str, Value]) -> Budget:
        other: Side | None = None
        if isinstance(self.reference, ModelReference):
            other = Side.of(self.reference.side.parts, self.reference.own_feeds(feeds))
        given = sum(getattr(value, "nbytes", 0) for value in feeds.values())
        return Budget(
            self._max_bytes, Side.of(self.parts, feeds), other, self.match.tensors, self._last_reads, self._inputs_of,
            streams=1 + self._calibrate, recorded=isinstance(self.reference, RecordedReference),
            reserve=given,
        )  # fmt: skip

    def fits(self, names: Iterable[str]) -> bool:
        """Tells whether the values of some tensors can be held at once, of both sides."""
        return self._budget is None or self._budget.fits(names)

    def _inputs_of(self, names: Sequence[str]) -> set[str]:
        makers = {self.parts.scope.producers[name] for name in names}
        return {name for maker in makers for name in self._reach(maker, self._forced).stops}

    def _last_reads(self, batches: Sequence[Sequence[str]]) -> dict[str, int]:
        """Returns the last batch in which a region reads each matched tensor."""
        last: dict[str, int] = {}
        for at, batch in enumerate(batches):
            for maker in {self.parts.scope.producers[name] for name in batch}:
                for name in self._reach(maker, self._forced).stops:
                    last[name] = at
        return last

    def _reach(self, maker: int, stops: Collection[str]) -> Any:
        return reach_back(self.parts.scope, self.parts.scope.reads[maker], stops)

    def _allowed(self, name: str, reference: Value, value: Value) -> Tolerance | None:
        given = self._tolerance(name) or self.calibrated.get(name)
        if given is not None or not hasattr(reference, "dtype") or not hasattr(value, "dtype"):
            return given
        both = default_tolerance(reference.dtype), default_tolerance(value.dtype)
        return Tolerance(max(t.atol for t in both), max(t.rtol for t in both))

    # ---- regions

    def _regions(self, batch: Sequence[str], constants: set[str], held: Mapping[str, Value]) -> list[Finding]:
        """Returns the regions that end in tensors of a batch: one finding for each tensor."""
        by_maker: dict[int, list[str]] = {}
        for name in batch:
            by_maker.setdefault(self.parts.scope.producers[name], []).append(name)
        found = []
        stops = self._forced | constants if constants else self._forced
        for maker, names in by_maker.items():
            reach = self._reach(maker, stops)
            nodes = tuple(sorted({maker, *reach.nodes}, key=self.parts.rank.__getitem__))
            inputs = tuple(self.parts.in_order([*reach.stops, *(name for name in reach.inputs if name in held)]))
            for name in names:
                partner = self.match.tensors[name]
                twin = len(nodes) == 1 and self._twins(maker, partner)
                found.append(Finding(name, partner, maker, nodes, inputs, twin=twin))
        return found

    # ---- own error

    def _judge(
        self,
        found: list[Finding],
        known: _Known,
        drifts: Mapping[str, TensorDrift],
        dtypes: Mapping[str, int],
        seen: Kept,
    ) -> None:
        """Finds own and inherited errors of regions, and keeps what is worse than on other inputs."""
        held, got, totals = known.held, known.got, known.totals
        to_run = []
        for finding in found:
            finding.number, finding.total = seen.number, totals[finding.tensor]
            finding.allowed = self._allowed(finding.tensor, held[finding.tensor], got[finding.tensor])
            finding.drift = drifts.get(finding.tensor)
            finding.precision = max(map(epsilon, finding.total.dtypes))
            if self._unit and finding.precision and self._multiplies(finding):
                finding.precision = max(finding.precision, self._unit)
            if not finding.twin and self._quantizes(finding):
                finding.precision = max(finding.precision, _STEP)
            before = [totals[name] for name in finding.inputs]
            if finding.precision:  # the reference's values are rounded where the suspect takes coarser ones
                rounded = [epsilon(distance.dtypes[1]) for distance in before if len({*distance.dtypes}) > 1]
                finding.precision = max(finding.precision, *rounded, 0.0)
            # The runtime keeps 32 bits between half-precision nodes on a CPU, and rounds where one is fed.
            finding.twin &= all(epsilon(word) <= _SINGLE for distance in before for word in distance.dtypes)
            finding.before = max(before, key=lambda distance: distance.severity, default=None)
            finding.note = self._unfit(finding, held, dtypes)
            if finding.note:
                continue
            if all(distance.equal and distance.dtypes[0] == distance.dtypes[1] for distance in before):
                finding.own, finding.inherited = finding.total, Distance(equal=True)
                seen.add(finding, held, got[finding.tensor], got[finding.tensor])
            elif not self._thorough and is_settled(finding, finding.total, before):
                finding.settled = True
                continue
            else:
                to_run.append(finding)
            new = [name for name in finding.inputs if name not in known.given]
            known.given.update((name, as_dtype(held[name], dtypes[name])) for name in new)
        shown = [finding for finding in found if finding.own is not None]
        self._measure_noise([finding for finding in shown if finding.excess(0.0) > 1], known)
        if not self._thorough and len(self._batches or ()) == 1:
            to_run = self._run_first(found, to_run, known, seen)
        self._run_regions(to_run, known, seen)
        for finding in found:
            self._keep(finding)

    def _run_first(
        self, found: Sequence[Finding], to_run: Sequence[Finding], known: _Known, seen: Kept
    ) -> list[Finding]:
        """Runs the regions that read nothing wrong, and returns those that are still to be judged.

        Where one of them goes wrong, what depends on it is run once with its result mended. A tensor that is right then
        is settled, and mostly all are: that one run is in place of a run of all these regions on the reference's
        values, and shows what the culprit does to the outputs.
        """
        first = [finding for finding in to_run if all(is_right(known.totals[name]) for name in finding.inputs)]
        self._run_regions(first, known, seen)
        names = {finding.tensor for finding in first}
        rest = [finding for finding in to_run if finding.tensor not in names]
        wrong = [(finding, finding.own) for finding in found if finding.own is not None and finding.excess(0.0) > 1]
        can_be_mended = all(not own.problem and finding.tensor in seen.values for finding, own in wrong)
        if not rest or not wrong or not can_be_mended:
            return rest
        values = {
            finding.tensor: mended(as_dtype(wanted, _dtype(plain)), plain, forced)
            for finding, _ in wrong
            for wanted, plain, forced in [seen.values[finding.tensor]]
        }
        try:
            made = self._run_mended(values, known, [finding.tensor for finding in found])
        except ExecutionError:
            return rest
        seen.mended = frozenset(values)
        seen.mended_outputs = {name: made.get(name, value) for name, value in self.outputs.items()}
        now = {**known.totals, **self._distances({name: known.held[name] for name in made}, made)}
        left = []
        for finding in rest:
            if is_settled(finding, now[finding.tensor], [now[name] for name in finding.inputs]):
                finding.settled, finding.inherited = True, finding.total
            else:
                left.append(finding)
        return left

    def _run_mended(self, values: Mapping[str, Value], known: _Known, names: Sequence[str]) -> dict[str, Value]:
        """Returns what becomes of tensors that depend on mended ones, and these; all others stay as the suspect's."""
        affected = depends_on(self.parts.scope, values)
        around = {name: known.got[name] for name in names if name in self._forced and name not in affected}
        inputs = {name: known.held[name] for name in self.parts.scope.true_inputs() if name in known.held}
        given = {**inputs, **around, **values}
        rest = [name for name in names if name in affected and name not in values]
        nodes = reach_back(self.parts.scope, rest, given).nodes
        unpacked = not isinstance(self.reference, ModelReference)
        return {**values, **(self.parts.run(nodes, given, rest, unpacked=unpacked) if rest else {})}

    def _run_regions(self, found: Sequence[Finding], known: _Known, seen: Kept) -> None:
        """Runs regions on the reference's values, for their own errors and, where these are large, their noise."""
        if isinstance(self.reference, ModelReference) or len(found) <= _FEW:
            self._own_errors(found, known, seen)
        else:
            self._own_errors(found, known, seen, unpacked=True)
            odd = [finding for finding in found if finding.excess(0.0) > 1 or finding.is_unexplained]
            self._own_errors(odd, known, seen)
        self._measure_noise([finding for finding in found if finding.excess(0.0) > 1], known)

    def _own_errors(self, found: Sequence[Finding], known: _Known, seen: Kept, *, unpacked: bool = False) -> None:
        """Runs regions on the reference's values, and measures own and inherited errors.

        Packing weights takes as long as a run or two, so the many regions that are in order are run without
        (``unpacked``). Their kernels are not quite the suspect's then: what looks odd is run again as it is.
        """
        held, got = known.held, known.got
        for finding, value in self._forced_values(found, known.given, unpacked=unpacked):
            name = finding.tensor
            if value is None:
                finding.note = finding.note or "its nodes do not run on the reference's values"
                continue
            finding.own, finding.inherited = measure(held[name], value.array), measure(value.array, got[name])
            seen.add(finding, held, got[name], value.array)

    def _multiplies(self, finding: Finding) -> bool:
        return any(self.parts.scope.nodes[at].op_type in _PRODUCTS for at in finding.nodes)

    def _quantizes(self, finding: Finding) -> bool:
        """Tells whether a region rounds to 8 bits or fewer on the way; kernels differ by a step there."""
        nodes = self.parts.scope.nodes
        return any(word in nodes[at].op_type for at in finding.nodes for word in _QUANTIZING)

    def _unfit(self, finding: Finding, held: Mapping[str, Value], dtypes: Mapping[str, int]) -> str:
        """Returns why a region cannot be fed the reference's values: they have no place in the suspect's types."""
        import numpy as np

        for name in finding.inputs:
            value = held[name]
            if not hasattr(value, "dtype"):
                return f"its input {name!r} is no tensor"
            if _dtype(value) == dtypes[name]:
                continue
            if not is_floating(value):
                return f"its input {name!r} has another element type in the reference"
            cast = as_dtype(value, dtypes[name])
            if not is_floating(cast) or _dtype(cast) != dtypes[name]:
                return f"its input {name!r} has another element type in the reference"
            apart = measure(value, cast)
            if apart.problem or apart.rel > 4 * epsilon(np.dtype(cast.dtype).name):
                return f"the reference's values of its input {name!r} do not fit {cast.dtype.name}"
        if self.parts.random.intersection(finding.nodes):
            return "it makes random numbers"
        return ""

    def _forced_values(
        self, found: Sequence[Finding], given: Mapping[str, Value], *, unpacked: bool = False
    ) -> Iterator[tuple[Finding, _Value | None]]:
        """Yields what regions make of given values; None where they do not run on these.

        All are run at once. If that fails, halves are, until those that fail stand alone.
        """
        pending = [list(found)] if found else []
        while pending:
            group = pending.pop()
            nodes = {at for finding in group for at in finding.nodes}
            fed = {name: given[name] for finding in group for name in finding.inputs}
            try:
                values = self.parts.run(nodes, fed, [finding.tensor for finding in group], unpacked=unpacked)
            except ExecutionError as error:
                makers = list(dict.fromkeys(finding.maker for finding in group))
                if len(makers) == 1:
                    for finding in group:
                        finding.note = f"on the reference's values: {error.message}"
                        yield finding, None
                    continue
                middle = set(makers[: len(makers) // 2])
                pending.append([finding for finding in group if finding.maker not in middle])
                pending.append([finding for finding in group if finding.maker in middle])
                continue
            for finding in group:
                yield finding, _Value(values[finding.tensor])

    def _measure_noise(self, found: Sequence[Finding], known: _Known) -> None:
        """Runs regions on inputs that are moved by one unit of precision, and measures what becomes of it."""
        found = [finding for finding in found if not finding.twin]
        if not found:
            return
        moved: dict[str, Value] = {}
        precision = {name: finding.precision for finding in found for name in finding.inputs}
        for name in precision:
            moved[name] = _move(known.given[name], name)
        unpacked = not isinstance(self.reference, ModelReference)  # one kernel is compared with itself
        plain = {each.tensor: value for each, value in self._forced_values(found, known.given, unpacked=unpacked)}
        for finding, value in self._forced_values(found, moved, unpacked=unpacked):
            base = plain.get(finding.tensor)
            if value is None or base is None:
                continue
            apart = measure(base.array, value.array)
            reference = measure(known.held[finding.tensor], base.array)
            scale = apart.rel if math.isfinite(apart.rel) else math.inf
            finding.noise = (scale if not apart.problem else math.inf, apart.peak if not apart.problem else math.inf)
            if reference.problem:
                finding.noise = (0.0, 0.0)
            self._bound_by_reference(finding, known.held)
            if any(self.parts.scope.nodes[at].op_type in _BOUNDED for at in finding.nodes) and reference.size:
                unit = finding.precision * math.sqrt(reference.elements) / reference.size
                typical = reference.max_abs / reference.peak if reference.peak else 1.0
                finding.noise = (
                    max(finding.noise[0], unit),
                    max(finding.noise[1], finding.precision / max(typical, finding.precision)),
                )

    def _bound_by_reference(self, finding: Finding, held: Mapping[str, Value]) -> None:
        """Takes the noise of the reference's own nodes if it is less: a fault may make some, by rounding to 16 bits."""
        rerun = getattr(self.reference, "rerun", None)
        if rerun is None or not any(finding.noise):
            return
        values = {self.match.tensors.get(name, name): held[name] for name in finding.inputs}
        moved = {name: _move(value, name) for name, value in values.items()}
        made = [rerun(finding.partner, inputs) for inputs in (values, moved)]
        if any(value is None for value in made):
            return
        apart = measure(*made)
        if not apart.problem:
            finding.noise = (min(finding.noise[0], apart.rel), min(finding.noise[1], apart.peak))

    def _keep(self, finding: Finding) -> None:
        known = self.findings.get(finding.tensor)
        if known is None or self._rank(finding) > self._rank(known):
            self.findings[finding.tensor] = finding

    @staticmethod
    def _rank(finding: Finding) -> tuple[float, float]:
        return finding.excess(0.0), finding.total.severity

    # ---- what it comes to

    @property
    def is_undisturbed(self) -> bool:
        """Whether the suspect gives the same outputs while its tensors are looked at.

        Without optimizations it does, but for half precision on a CPU, which is rounded where a value leaves the graph.
        """
        place = self.suspect.place
        on_cpu = {name.lower() for name in place.options.providers} == {"cpu"}
        half = any(elem_type(kind) in _HALF for kind in self._kinds.values())
        return on_cpu and not place.optimizes and not half and not place.is_engine

    @property
    def median(self) -> float:
        """The median own error of regions that are no twins, taken as 0 where it is settled; 0 where these are few."""
        found = [
            0.0 if finding.own is None else finding.own.rel
            for finding in self.findings.values()
            if (finding.settled or (finding.own is not None and not finding.own.problem))
            and not finding.twin
            and finding.precision
        ]
        return statistics.median(found) if len(found) >= _ENOUGH else 0.0

    def culprits(self) -> list[list[Finding]]:
        """Returns the findings beyond noise, those of one node together, in the order of the model."""
        median = self.median
        found: dict[int, list[Finding]] = {}
        for name in self.names:
            finding = self.findings.get(name)
            if finding is not None and finding.excess(median) > 1:
                found.setdefault(finding.maker, []).append(finding)
        return list(found.values())

    def unstable(self) -> Finding | None:
        """Returns what is further off than rounding, but no more than moved inputs make it; the furthest, or None."""
        median = self.median
        found = [
            finding
            for finding in self.findings.values()
            if finding.own is not None and finding.excess(median) <= 1 < replace(finding, noise=(0, 0)).excess(median)
        ]
        return max(found, key=lambda finding: finding.own.rel if finding.own else 0.0, default=None)

    def values(self, names: Sequence[str], feeds: Mapping[str, Value], number: int) -> dict[str, Value]:
        """Returns the reference's values of some of the suspect's tensors, by the suspect's names."""
        wanted = list(dict.fromkeys(names))
        partners = [self.match.tensors[name] for name in wanted]
        found = next(iter(self.reference.stream(feeds, [partners], number=number)))
        return {name: found[partner] for name, partner in zip(wanted, partners, strict=True)}

    def with_values(
        self, replaced: Mapping[str, Value], feeds: Mapping[str, Value], outputs: Sequence[str]
    ) -> dict[str, Value]:
        """Returns the suspect's outputs when some of its tensors are replaced."""
        given = {**feeds, **replaced}
        there = {name: given[name] for name in outputs if name in given}
        rest = [name for name in outputs if name not in given]
        nodes = reach_back(self.parts.scope, rest, set(replaced)).nodes
        unpacked = not isinstance(self.reference, ModelReference)  # more than rounding is asked for
        return {**there, **(self.parts.run(nodes, given, rest, unpacked=unpacked) if rest else {})}


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that may be None itself."""

    array: Any


def make_twins(suspect: Suspect, reference: ModelReference) -> Callable[[int, str], bool]:
    """Returns what tells whether a node and the one that makes the reference's tensor run on the same kernels."""
    one, other = suspect.place, reference.side.place
    same_kernels = one.backend == other.backend and all(
        getattr(one.options, name) == getattr(other.options, name) for name in ("providers", "threads", "libraries")
    )
    on_cpu = {name.lower() for name in one.options.providers} == {"cpu"}
    cpu = one.backend == "reference" or (on_cpu and not one.is_engine)
    versions = [
        {entry.domain or "ai.onnx": entry.version for entry in side.parts.model.proto.opset_import}
        for side in (suspect, reference.side)
    ]
    own, scope = suspect.parts.scope, reference.side.parts.scope
    comparable = same_kernels and cpu and not one.optimizes and not other.optimizes

    def is_twin(position: int, partner: str) -> bool:
        at = scope.producers.get(partner)
        if at is None or not comparable:
            return False
        mine, theirs = own.nodes[position], scope.nodes[at]
        domain = mine.domain or "ai.onnx"
        # Kernels for weights that are stored are others than for those that are computed: they pack them beforehand.
        stored = [[name in holder.constants for name in node.input] for holder, node in ((own, mine), (scope, theirs))]
        alike = _kind(mine) == _kind(theirs) and stored[0] == stored[1]
        return alike and versions[0].get(domain) == versions[1].get(domain)

    return is_twin


def _kind(node: NodeProto) -> tuple[str, str, int, int]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type, len(node.input), len(node.output))


def _move(value: Value, name: str) -> Value:
    """Returns an array whose numbers are moved up or down by one unit of precision each, the same for a name."""
    import zlib

    import numpy as np

    if not is_floating(value):
        return value
    unit = epsilon(value.dtype.name)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    signs = random.integers(0, 2, size=value.shape, dtype=np.int8) * 2 - 1
    wide = np.float64 if value.dtype.itemsize > 2 else np.float32
    moved = np.empty(value.shape, value.dtype)
    flat, ups, made = value.reshape(-1), signs.reshape(-1), moved.reshape(-1)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            made[block] = (flat[block].astype(wide) * (1 + unit * ups[block])).astype(value.dtype)
    return moved


def _dtype(value: Value) -> int:
    return onnx_dtype(value.dtype) if hasattr(value, "dtype") else 0
