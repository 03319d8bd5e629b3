"""Which node of a region goes wrong, where the reference knows values within it but not which tensor is which.

A wrong value is like none of the reference's, so it finds no partner, and neither does what is made of it, down to the
next value that is known. What is known there is what should come out. So each of the reference's values of the right
size is put in the place of each tensor within: if the region's result is right then, that tensor should have been
that value, and what makes it is to blame. Where the reference makes the result by one call, these are the values that
PyTorch computes within it. What the region reads is such a value too: nodes that it has to be put behind should not be
there. If this is so for a tensor that the region only reads, which is right by itself, then the reference computes
something in between that the suspect does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxbench.bisection._finding import FACTOR
from onnxbench.bisection._measures import measure
from onnxbench.bisection._sides import as_dtype, is_floating
from onnxbench.boundary import reach_back
from onnxbench.captures import Value, onnx_dtype
from onnxbench.errors import ExecutionError

if TYPE_CHECKING:
    from onnxbench.bisection._effects import Telling
    from onnxbench.bisection._finding import Finding
    from onnxbench.bisection._report import Culprit
    from onnxbench.bisection._search import Search

_MOST_TRIES = 200
_LEAST_ELEMENTS = 4
_SHAPING = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
"""Operators that give what they are given, in another shape."""
_PASSING = _SHAPING | {"Cast", "CastLike", "Dropout"}
"""Operators that may well give what they are given."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor, and the reference's value that it should have been.

    Attributes:
        tensor: The tensor.
        value: The reference's value.
        nodes: Positions of the nodes that may be meant; empty where the suspect lacks what makes the value.
    """

    tensor: str
    value: str
    nodes: tuple[int, ...]


def narrowed(
    search: Search, telling: Telling, culprit: Culprit, finding: Finding, feeds: Mapping[str, Value]
) -> Culprit:
    """Returns a culprit whose node and region are told more closely, as far as they can be.

    Args:
        search: The search, when it is done.
        telling: What says what nodes are called.
        culprit: The culprit.
        finding: What was found of its tensor.
        feeds: The set of inputs that it was found on.
    """
    between = getattr(search.reference, "between", None)
    if between is None or finding.own is None or finding.own.problem == "kind":
        return culprit
    known = [search.match.tensors[name] for name in finding.inputs if name in search.match.tensors]
    steps: list[str] = between(finding.partner, known)
    if not steps and len(finding.nodes) == 1:
        return culprit
    try:
        region = _Region(search, finding, feeds, steps)
        place = region.place()
    except ExecutionError:
        return culprit
    if place is None:
        return culprit
    result = f"{finding.tensor} ({finding.partner})"
    note = f"with PyTorch's {place.value} in place of {place.tensor}, {result} is right"
    if place.value in region.hints:
        if not place.nodes:  # a step that has no node of its own here says nothing
            return culprit
        return telling.moved(culprit, place.nodes, region.losing(place), finding.partner, note)
    if not place.nodes:
        idle = region.idle_maker(place.tensor)
        if idle is not None:
            return telling.moved(culprit, (idle,), idle, place.value, note)
        readers = region.readers(place.tensor)
        meant = next((name for name, partner in search.match.tensors.items() if partner == place.value), None)
        if meant is not None:
            note = f"with {meant} (PyTorch's {place.value}) in place of {place.tensor}, {result} is right"
            return telling.lacking(culprit, readers, [place.value], note)
        missing = [*between(place.value, known), place.value]
        return telling.lacking(culprit, readers, missing, f"{note}: {', '.join(missing)} missing here")
    if place.tensor == finding.tensor:
        return replace(culprit, region=tuple(map(telling.label, place.nodes)))
    moved = telling.moved(culprit, place.nodes, region.losing(place), place.value, note)
    beginning = _beginning(search, finding, place)
    return moved if beginning is None else narrowed(search, telling, moved, beginning, feeds)


def told_once(culprits: Sequence[Culprit], explained: float | None) -> list[Culprit]:
    """Returns culprits without those that are the node of one before, found at another tensor that is made of its own.

    Args:
        culprits: The culprits, narrowed, the most important first.
        explained: The share of the outputs' error that all of them have.
    """
    kept: dict[tuple[str, tuple[str, ...]], Culprit] = {}
    for culprit in culprits:
        kept.setdefault((culprit.node, culprit.region), culprit)
    if len(kept) == 1 < len(culprits):
        return [replace(culprit, effect=explained) for culprit in kept.values()]
    return list(kept.values())


def _beginning(search: Search, finding: Finding, place: _Place) -> Finding | None:
    """Returns the nodes up to a tensor that should have been a value of the reference, as a region of their own.

    One call of the reference may make that value. None if it is one node, or reads what is made within the region.
    """
    scope = search.parts.scope
    made = {name for at in place.nodes for name in scope.writes[at]}
    read = {name for at in place.nodes for name in scope.reads[at]} - made
    if len(place.nodes) == 1 or (read & search.parts.varying) - set(finding.inputs):
        return None
    inputs = tuple(name for name in finding.inputs if name in read)
    maker = scope.producers[place.tensor]
    return replace(finding, tensor=place.tensor, partner=place.value, maker=maker, nodes=place.nodes, inputs=inputs)


class _Region:
    """A region on the reference's values, with one of its tensors replaced at a time.

    Attributes:
        hints: Values that tell something only where they take the place of a wrong tensor: what the steps of the call
            give that the reference makes the region's result by, and what the region reads.
    """

    def __init__(self, search: Search, finding: Finding, feeds: Mapping[str, Value], steps: Sequence[str]) -> None:
        parts, tensors = search.parts, search.match.tensors
        self._parts, self._finding, self._tensors = parts, finding, tensors
        inputs = [name for name in finding.inputs if name in tensors]
        asked = list(dict.fromkeys([*steps, *(tensors[name] for name in inputs), finding.partner]))
        values = _kept(search, finding, inputs, steps, feeds) or next(
            iter(search.reference.stream(feeds, [asked], number=finding.number))
        )
        self._wanted = values[finding.partner]
        within = self._steps_within(search, values, feeds)
        self._steps = {**{name: values[name] for name in steps}, **within}
        self._read = {tensors[name]: values[tensors[name]] for name in inputs}
        self.hints = within.keys() | self._read.keys()
        kinds = parts.kinds(inputs, stated=True)
        self._given = {name: feeds[name] for name in finding.inputs if name in feeds}
        self._given.update(
            (name, as_dtype(values[tensors[name]], kinds[name].tensor_type.elem_type)) for name in inputs
        )
        inner = [name for at in finding.nodes for name in parts.scope.writes[at]]
        self._inner = self._run(self._given, inner)

    def _run(self, given: Mapping[str, Value], outputs: Sequence[str]) -> dict[str, Value]:
        return self._parts.run(self._finding.nodes, given, outputs, unpacked=True)  # more than rounding is asked for

    def _steps_within(
        self, search: Search, values: Mapping[str, Value], feeds: Mapping[str, Value]
    ) -> dict[str, Value]:
        """Returns what the steps of the one call make that the reference makes its value by."""
        within = getattr(search.reference, "within", None)
        partner = self._finding.partner
        if within is None:
            return {}
        given = {name: value for name, value in values.items() if name != partner}
        found: dict[str, Value] = within(partner, {**feeds, **given})
        # What is an input all the same (a view of it, say) tells nothing of what is made of that input.
        return {
            f"{partner}/{name}": value
            for name, value in found.items()
            if not any(_is_of_a_kind(value, each) and measure(each, value).equal for each in given.values())
        }

    def place(self) -> _Place | None:
        """Returns the first tensor that should have been another; None if nothing is told."""
        right = {name for name, value in self._inner.items() if self._is_known(value)} - {self._finding.tensor}
        for name, step, value in self._pairs(right):
            if self._is_right({**self._given, name: value}):
                return _Place(name, step, self._upstream(name, right))
        if right:
            return _Place(self._finding.tensor, self._finding.partner, self._upstream(self._finding.tensor, right))
        return None

    def readers(self, tensor: str) -> tuple[int, ...]:
        """Returns the nodes of the region that read a tensor, from front to back."""
        reads = self._parts.scope.reads
        found = (at for at in self._finding.nodes if tensor in reads[at])
        return tuple(sorted(found, key=self._parts.rank.__getitem__))

    def idle_maker(self, tensor: str) -> int | None:
        """Returns the node that makes a tensor and gives what it is given, although its operator is to change that.

        Then it is this node that should have made another value: a Transpose that leaves everything where it is.
        """
        at = self._parts.scope.producers.get(tensor)
        if at is None or tensor not in self._tensors:
            return None
        node, same = self._parts.scope.nodes[at], self._tensors[tensor]
        is_idle = node.op_type not in _PASSING and any(self._tensors.get(name) == same for name in node.input)
        return at if is_idle else None

    def losing(self, place: _Place) -> int:
        """Returns the node that makes a wrong tensor; of Casts in a row the first, which none behind it mends."""
        scope = self._parts.scope
        at = scope.producers[place.tensor]
        while scope.nodes[at].op_type == "Cast":
            before = scope.producers.get(scope.nodes[at].input[0])
            if before not in place.nodes or scope.nodes[before].op_type != "Cast":
                break
            at = before
        return at

    def _pairs(self, right: Collection[str]) -> Iterator[tuple[str, str, Value]]:
        """Yields tensors, from front to back, with values that they could have been meant to be, and are not.

        In the place of one that is right, a value shows that what makes it is missing here. Hints are no such values: a
        later step of a call may well undo the fault. What is right but for its shape can only be wrong in that.
        """
        shaped_only = self._shaped_only(right)
        tensors = {
            **self._given,
            **{name: value for name, value in self._inner.items() if name != self._finding.tensor},
        }
        tries = 0
        for name, own in tensors.items():
            tried = [own]
            is_right = name in self._given or name in right
            for step, value in {**self._steps, **self._read}.items():
                if is_right and step in self.hints:
                    continue
                for shaped in _fitting(own, value):
                    if name in shaped_only and not self._agrees(own.reshape(shaped.shape), shaped):
                        continue
                    if any(shaped.shape == each.shape and self._agrees(each, shaped) for each in tried):
                        continue
                    tried.append(shaped)
                    tries += 1
                    if tries > _MOST_TRIES:
                        return
                    yield name, step, _as_kind_of(own, shaped)

    def _shaped_only(self, right: Collection[str]) -> set[str]:
        """Returns tensors that are one that is right, or that the region reads, in another shape."""
        scope = self._parts.scope
        found: set[str] = set()
        for at in self._finding.nodes:
            node = scope.nodes[at]
            source = node.input[0] if node.op_type in _SHAPING else ""
            if source in self._given or source in right or source in found:
                found.update(node.output)
        return found

    def _is_right(self, given: Mapping[str, Value]) -> bool:
        try:
            made = self._run(given, [self._finding.tensor])[self._finding.tensor]
        except ExecutionError:
            return False
        return self._agrees(made, self._wanted)

    def _agrees(self, value: Value, wanted: Value) -> bool:
        apart = measure(wanted, value)
        return apart.equal or (not apart.problem and apart.rel <= FACTOR * self._finding.precision)

    def _is_known(self, value: Value) -> bool:
        """Tells whether a tensor is one of the reference's values, and not by chance."""
        import numpy as np

        return (
            hasattr(value, "dtype")
            and value.size >= _LEAST_ELEMENTS
            and len(np.unique(value)) > 1
            and any(
                each.shape == value.shape and self._agrees(value, each)
                for step in self._steps.values()
                for each in _fitting(value, step)
            )
        )

    def _upstream(self, tensor: str, right: set[str]) -> tuple[int, ...]:
        """Returns the nodes that make a tensor of what is known to be right."""
        scope = self._parts.scope
        if tensor in self._given or (tensor in right and tensor != self._finding.tensor):
            return ()
        start = scope.producers[tensor]
        stops = (right - {tensor}) | self._given.keys()
        nodes = {start, *reach_back(scope, scope.reads[start], stops).nodes}
        return tuple(sorted(nodes, key=self._parts.rank.__getitem__))


def _kept(
    search: Search, finding: Finding, inputs: Sequence[str], steps: Sequence[str], feeds: Mapping[str, Value]
) -> dict[str, Value] | None:
    """Returns the reference's values around a region, by its names, if the search has kept what they are made of."""
    kept, tensors = search.kept, search.match.tensors
    recompute = getattr(search.reference, "recompute", None)
    if (
        recompute is None
        or kept.number != finding.number
        or finding.tensor not in kept.values
        or any(name not in kept.inputs for name in inputs)
    ):
        return None
    values = {finding.partner: kept.values[finding.tensor][0]}
    values.update((tensors[name], kept.inputs[name]) for name in inputs)
    made = recompute(steps, {**feeds, **values}) if steps else {}
    return None if made is None else {**values, **made}


def _is_of_a_kind(one: Value, other: Value) -> bool:
    """Tells whether two arrays hold numbers of one kind, floating, whole, or truth values, and as many of them."""
    return hasattr(one, "dtype") and hasattr(other, "dtype") and one.size == other.size and _kind(one) == _kind(other)


def _fitting(own: Value, value: Value) -> Iterator[Value]:
    """Yields what a tensor could have been meant to be: a value of its size, and that in the tensor's shape.

    The shape may be what is wrong. Else PyTorch takes leading dimensions as one, for products of matrices.
    """
    if not _is_of_a_kind(own, value):
        return
    if value.shape != own.shape and value.shape[-1:] == own.shape[-1:]:
        yield value.reshape(own.shape)
    yield value


def _kind(value: Value) -> str:
    return "f" if is_floating(value) else "i" if value.dtype.kind in "iu" else str(value.dtype.kind)


def _as_kind_of(own: Value, value: Value) -> Value:
    return as_dtype(value, onnx_dtype(own.dtype)) if is_floating(own) else value.astype(own.dtype)
