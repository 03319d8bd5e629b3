"""Loops whose number of steps can be told beforehand.

Exporters of frameworks with ``while`` write a Loop without a trip count whose body ends with ``counter < bound``, the
counter growing by a constant and the bound being the same all along. Such a loop ends after the first ``k`` steps for
which ``start + k * step`` reaches the bound, so their number can be computed before it. Compilers want it: with it they
know how long stacked outputs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench.branching import constant_of
from onnxbench.draft import Draft
from onnxbench.graph import NodeRef, Scope, TensorRef
from onnxbench.operations._base import Operation
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import elem_type, tensor_shape

if TYPE_CHECKING:
    from onnx import NodeProto

_INTEGERS = (6, 7)
_INT64 = 7
_EXACT = (1, 6, 7, 11)
"""Element types in which counters are compared: float32 holds each up to 2**24, more steps than a loop makes."""
_FIRST_INTEGER_MAX = 12
"""The first opset with Max and Min of integers."""


@dataclass(frozen=True, slots=True)
class _Count:
    """One condition ``start + k * step < bound``, after ``k`` steps.

    Attributes:
        start: The counter before the first step, a tensor around the loop.
        step: How much it grows in each.
        bound: A tensor around the loop, or a number.
    """

    start: str
    step: int
    bound: str | int


@dataclass(frozen=True)
class CountLoops(Operation):
    """Give each Loop without a trip count one that is computed, where a counter alone decides when it ends.

    Its body must end with ``counter < bound``, or several of these joined by And; the counter grows by a constant and
    the bound does not change. The condition stays, so the loop makes the steps that it made before.
    """

    word: ClassVar[str] = "count_loops"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> list[NodeRef]:
        """Returns the loops whose steps can be counted."""
        return [ref for ref in draft.index.nodes() if _counts(draft, ref)]

    def apply(self, draft: Draft) -> None:
        """Computes their trip counts."""
        found: dict[str, dict[int, list[_Count]]] = {}
        for ref in self.find(draft):
            found.setdefault(ref.scope.path, {})[ref.position] = _counts(draft, ref)
        for path in sorted(found, key=lambda each: -draft.index.scope_paths[each].depth):
            scope = draft.index.scope_paths[path]
            inserted = {at: _count_nodes(draft, scope, at, counts) for at, counts in found[path].items()}
            for at, nodes in inserted.items():
                scope.nodes[at].input[0] = nodes[-1].output[0]
                draft.record("node", scope.label(at), "trip count", before="none", after=nodes[-1].output[0])
            draft.splice(scope, inserted)


def _counts(draft: Draft, ref: NodeRef) -> list[_Count]:
    """Returns what the number of steps of a Loop without a trip count follows from; nothing if that is not known."""
    node, scope = ref.node, ref.scope
    if node.op_type != "Loop" or plain_domain(node.domain) or not node.input or node.input[0]:
        return []
    (body,) = scope.bodies.get(ref.position, [None])
    if body is None or len(body.inputs) < 2 or len(body.outputs) < 1:
        return []
    counts = []
    for term in _terms(body, body.outputs[0]):
        count = _count(draft, ref, body, term)
        if count is None:
            return []
        counts.append(count)
    first = _is_first_check(draft, ref, counts)
    return counts if first or draft.opset(scope) >= _FIRST_INTEGER_MAX else []


def _terms(body: Scope, name: str) -> Iterator[str]:
    """Yields the conditions that are joined by And."""
    waiting = [name]
    while waiting:
        name = _behind(body, waiting.pop(), ("Identity",))
        maker = body.producers.get(name, -1)
        if maker >= 0 and body.nodes[maker].op_type == "And":
            waiting += reversed(body.nodes[maker].input)
        else:
            yield name


def _behind(scope: Scope, name: str, passing: tuple[str, ...] = ("Identity", "Cast")) -> str:
    """Returns what a tensor is a copy of, casts that keep counters as they are seen through."""
    while (maker := scope.producers.get(name, -1)) >= 0:
        node = scope.nodes[maker]
        if node.op_type not in passing or plain_domain(node.domain):
            break
        if node.op_type == "Cast" and next((each.i for each in node.attribute if each.name == "to"), 0) not in _EXACT:
            break
        name = node.input[0]
    return name


def _compared(scope: Scope, name: str) -> tuple[str, str] | None:
    """Returns the two sides of ``small < large``."""
    maker = scope.producers.get(name, -1)
    node = scope.nodes[maker] if maker >= 0 else None
    if node is None or node.op_type not in ("Less", "Greater") or plain_domain(node.domain):
        return None
    small, large = node.input if node.op_type == "Less" else reversed(node.input)
    return _behind(scope, small), _behind(scope, large)


def _count(draft: Draft, ref: NodeRef, body: Scope, name: str) -> _Count | None:
    sides = _compared(body, name)
    if sides is None:
        return None
    counter, bound = sides
    maker = body.producers.get(counter, -1)
    if maker < 0 or body.nodes[maker].op_type != "Add":
        return None
    for carried, grown in (body.nodes[maker].input, reversed(body.nodes[maker].input)):
        step = _integer(draft, body, grown)
        slot = _slot(body, carried)
        if step is not None and step > 0 and slot and _behind(body, body.outputs[slot - 1], ("Identity",)) == counter:
            start, limit = ref.node.input[slot], _outer(draft, ref, body, bound)
            if limit is not None and _is_number(draft, ref.scope, start):
                return _Count(start, step, limit)
    return None


def _slot(body: Scope, name: str) -> int:
    """Returns the number of the input that a carried value is; 0 if it is none."""
    return body.inputs.index(name) if name in body.inputs[2:] else 0


def _outer(draft: Draft, ref: NodeRef, body: Scope, name: str) -> str | int | None:
    """Returns the tensor around a loop, or the number, that a tensor of its body is in every step."""
    number = _integer(draft, body, name)
    if number is not None:
        return number
    slot = _slot(body, name)
    if slot:
        is_same = _behind(body, body.outputs[slot - 1], ("Identity",)) == name
        name = ref.node.input[slot] if is_same else ""
    elif body.defines(name):
        return None
    return name if name and _is_number(draft, ref.scope, name) else None


def _is_number(draft: Draft, scope: Scope, name: str) -> bool:
    """Tells whether a tensor is known to be one integer."""
    kind = draft.type_of(TensorRef(scope, name)) if name else None
    return kind is not None and elem_type(kind) in _INTEGERS and tensor_shape(kind) in ((), (1,))


def _integer(draft: Draft, scope: Scope, name: str) -> int | None:
    tensor = constant_of(draft, scope, name)
    if tensor is None or tensor.data_type not in _INTEGERS:
        return None
    values = draft.model.array(tensor)
    return int(values.reshape(-1)[0]) if values.size == 1 else None


def _is_first_check(draft: Draft, ref: NodeRef, counts: list[_Count]) -> bool:
    """Tells whether the condition before the first step is the one that follows each: ``start < bound``."""
    if len(counts) != 1 or len(ref.node.input) < 2 or not ref.node.input[1]:
        return False
    (count,) = counts
    sides = _compared(ref.scope, _behind(ref.scope, ref.node.input[1], ("Identity",)))
    if sides is None:
        return False
    start, bound = ((_number(draft, ref.scope, side), side) for side in sides)
    wanted = (count.start, count.bound)
    known = [_number(draft, ref.scope, _behind(ref.scope, each)) if isinstance(each, str) else each for each in wanted]
    names = [_behind(ref.scope, each) if isinstance(each, str) else "" for each in wanted]
    return all(
        (side[0] is not None and side[0] == number) or side[1] == name
        for side, number, name in zip((start, bound), known, names, strict=True)
    )


def _number(draft: Draft, scope: Scope, name: str) -> float | None:
    """Returns the one number that a tensor always is, of whatever type; None if it varies."""
    tensor = constant_of(draft, scope, name)
    values = None if tensor is None or tensor.data_type not in _EXACT else draft.model.array(tensor)
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def _count_nodes(draft: Draft, scope: Scope, at: int, counts: list[_Count]) -> list[NodeProto]:
    """Returns the nodes that compute the trip count of a loop, the last one making it."""
    loop = scope.nodes[at]
    chain = _Chain(draft, scope, loop.name or loop.output[0])
    limits = []
    for count in counts:
        start = chain.add("Cast", count.start, to=_INT64)
        bound = chain.constant(count.bound) if isinstance(count.bound, int) else chain.add(
            "Cast", count.bound, to=_INT64
        )  # fmt: skip
        steps = chain.add("Sub", bound, start)
        if count.step > 1:
            steps = chain.add("Add", steps, chain.constant(count.step - 1))
            steps = chain.add("Div", steps, chain.constant(count.step))
        limits.append(steps)
    total = limits[0] if len(limits) == 1 else chain.add("Min", *limits)
    if not _is_first_check(draft, NodeRef(scope, at), counts):  # the first step is made without asking, or for another
        total = chain.add("Max", total, chain.constant(1))  # reason, so it counts
        if len(loop.input) > 1 and loop.input[1]:
            total = chain.add("Where", loop.input[1], total, chain.constant(0))
    return chain.nodes


class _Chain:
    """Nodes that are made one after the other, with names of their own."""

    def __init__(self, draft: Draft, scope: Scope, base: str) -> None:
        self._draft, self._scope, self._base = draft, scope, base
        self.nodes: list[NodeProto] = []

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node and returns what it makes."""
        from onnx import helper

        base = f"{self._base}_{op_type.lower()}"
        output = self._draft.fresh(self._scope, base)
        name = self._draft.fresh_node(self._scope, base)
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def constant(self, number: int) -> str:
        """Adds an int64 scalar and returns its name."""
        from onnx import TensorProto

        value = TensorProto(data_type=_INT64, raw_data=number.to_bytes(8, "little", signed=True))
        return self.add("Constant", value=value)
