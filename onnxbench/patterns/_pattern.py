"""Patterns, made ready for matching from the functions that they are written as.

A pattern is an ONNX text function. Its inputs are the tensors that it captures, its outputs those that it stands
for, its nodes what must be there:

    <domain: "pattern"> gelu (x) => (y) {
       half = Constant <value_float = 0.5> ()
       ...
    }

==================================  ==================================================================================
``Add (a, b)``                      operators that commute match in either order (see ``COMMUTATIVE``)
``"Relu|LeakyRelu" (x)``            any of these operators
``"*" (x)``                         any operator; ``com.microsoft."*"`` any of a domain; ``"*".Gelu`` of any domain
``c = Constant <...> ()``           a constant of this value, an initializer as well as a Constant node
``Softmax <axis = -1> (x)``         an attribute of this value (an operator's default counts)
``Softmax <axis = @axis> (x)``      an attribute that is captured; ``f <axis: int = -1> (x)`` states one that may lack
``Conv <_rest = @rest> (x, w)``     all attributes that are not named are captured; without this there must be none
``"*" <_op = @op> (x)``             the operator is captured (``com.microsoft::Gelu``)
``Cast <_optional = 1> (x)``        a node that may be missing: its first input then takes the place of its output
``Conv (x, w, "b?")``               an input that may be missing
``Concat ("parts...")``             any number of further inputs
``f (float16[n, 3] x) => (y)``      an element type and shape; a size by name is the same wherever the name stands
==================================  ==================================================================================

Nodes that may be missing are spelled out: a pattern with two of them is four variants, the largest first. So the
search itself knows nothing of them, and neither does the search by brute force that tests compare it with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from onnxbench.errors import SpecError
from onnxbench.schemas import plain_domain

if TYPE_CHECKING:
    import numpy as np
    from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto

COMMUTATIVE = frozenset({
    "Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
})  # fmt: skip
"""Operators of the standard domain whose inputs may stand in any order."""

_MOST_OPTIONAL = 6
_MOST_NODES = 400
_MOST_PERMUTED = 6
_SPECIAL = ("_rest", "_op", "_optional", "_tolerance")
_GRAPHS = (5, 10)


@dataclass(slots=True, eq=False)
class Value:
    """A tensor of a pattern.

    Attributes:
        name: Its name, without the marks ``?`` and ``...``.
        step: The node that makes it; None for an input or a constant.
        output: Which of that node's outputs it is.
        constant: Its value, for a constant.
        element: The element type that the constant was written with.
        tolerance: How far off a number may be, relative to it; None: by the element type.
        is_optional: Whether it may be absent.
        is_many: Whether it stands for any number of tensors.
    """

    name: str
    step: Step | None = None
    output: int = 0
    constant: np.ndarray | None = None
    element: int = 0
    tolerance: float | None = None
    is_optional: bool = False
    is_many: bool = False

    @property
    def is_input(self) -> bool:
        """Whether it is captured from outside."""
        return self.step is None and self.constant is None


@dataclass(slots=True, eq=False)
class Step:
    """A node of a pattern.

    Attributes:
        number: Its position in the text.
        operators: What it may be, as (domain, operator); ``*`` stands for any.
        inputs: What it reads; None for an input that must be absent.
        outputs: Names of what it makes; ``""`` for an output that is of no interest.
        attributes: Values that attributes must have.
        captures: Names under which attributes are captured.
        defaults: What a captured attribute is where the node lacks it.
        rest: The name under which all others are captured; None: there must be none.
        operator_name: The name under which the operator is captured.
        is_commutative: Whether the inputs may stand in any order.
        is_optional: Whether the node may be missing.
        names: The operators without their domains; None if it may be any.
        order: Its inputs in the order in which they are looked at: constants, then nodes, then captured tensors.
    """

    number: int
    operators: tuple[tuple[str, str], ...]
    inputs: list[Value | None] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, AttributeProto] = field(default_factory=dict)
    captures: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, AttributeProto] = field(default_factory=dict)
    rest: str | None = None
    operator_name: str | None = None
    is_commutative: bool = False
    is_optional: bool = False
    names: frozenset[str] | None = None
    order: tuple[int, ...] = ()

    @property
    def spelled(self) -> str:
        """The operators as they are written."""
        domain, op_type = self.operators[0]
        name = "|".join(each for _, each in self.operators)
        if domain == "*":
            return "any operator" if op_type == "*" else f"*::{name}"
        name = "any operator" if name == "*" else name
        return f"{domain}::{name}" if domain else name

    @property
    def label(self) -> str:
        """What to call it in a sentence: ``y = Mul``."""
        made = ", ".join(name for name in self.outputs if name)
        return f"{made} = {self.spelled}" if made else self.spelled

    def accepts(self, domain: str, op_type: str) -> bool:
        """Tells whether a node of this operator may be it."""
        domain = plain_domain(domain)
        return any(
            wanted_domain in ("*", domain) and wanted_op in ("*", op_type)
            for wanted_domain, wanted_op in self.operators
        )

    def count_words(self) -> str:
        """How many inputs it takes, in words."""
        least = sum(value is None or not (value.is_optional or value.is_many) for value in self.inputs)
        if any(value is not None and value.is_many for value in self.inputs):
            return f"{least} or more"
        return str(least) if least == len(self.inputs) else f"{least} to {len(self.inputs)}"


@dataclass(slots=True, eq=False)
class Pattern:
    """One variant of a pattern.

    Attributes:
        name: The function's name.
        inputs: Names of the captured tensors, in order.
        absent: Those of them that only missing nodes read: they are bound to nothing.
        outputs: What it stands for, in order.
        steps: Its nodes, in the order of the text.
        values: Its tensors by name.
        types: Types that captured or made tensors must have, by name.
        anchor: The node that makes the first output.
        reached: Nodes that no output above them leads to, with the tensor through which they are reached.
        missing: The optional nodes that are left out in this variant.
        opset: The versions of domains from which on it holds.
        steps_before: For each node, the numbers of all nodes of the pattern that it depends on.
        aliases: What the outputs of missing nodes are in this variant.
    """

    name: str
    inputs: tuple[str, ...]
    absent: frozenset[str]
    outputs: tuple[Value, ...]
    steps: tuple[Step, ...]
    values: Mapping[str, Value]
    types: Mapping[str, TypeProto]
    anchor: Step
    reached: tuple[tuple[Step, tuple[Value, ...]], ...]
    missing: tuple[Step, ...]
    opset: Mapping[str, int]
    steps_before: Mapping[int, frozenset[int]]
    aliases: Mapping[str, str]

    @property
    def captured_attributes(self) -> set[str]:
        """Names of all that is captured of attributes."""
        names = {name for step in self.steps for name in step.captures.values()}
        names.update(step.rest for step in self.steps if step.rest)
        names.update(step.operator_name for step in self.steps if step.operator_name)
        return names


def compile_pattern(function: FunctionProto) -> list[Pattern]:
    """Returns the variants of a pattern, the largest first.

    Raises:
        SpecError: The function is no pattern.
    """
    name = f"pattern {function.name!r}"
    if not function.output:
        raise SpecError(f"{name} has no outputs, so there is nothing that could be replaced")
    if len(function.node) > _MOST_NODES:
        raise SpecError(f"{name} has {len(function.node)} nodes; there may be {_MOST_NODES}")
    optional = [at for at, node in enumerate(function.node) if _flag(node, "_optional")]
    if len(optional) > _MOST_OPTIONAL:
        raise SpecError(f"{name} has {len(optional)} optional nodes; there may be {_MOST_OPTIONAL}")
    found = []
    for count in range(len(optional) + 1):
        for left_out in combinations(optional, count):
            made = _Compiler(function, frozenset(left_out)).pattern()
            if made is not None:
                found.append(made)
    return found


def _flag(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


class _Compiler:
    """Makes one variant of a pattern."""

    def __init__(self, function: FunctionProto, left_out: frozenset[int]) -> None:
        self._function = function
        self._left_out = left_out
        self._values: dict[str, Value] = {}
        self._through: dict[str, str] = {}
        self._what = f"pattern {function.name!r}"

    def pattern(self) -> Pattern | None:
        """Returns the variant; None if it leaves nothing of the pattern."""
        function = self._function
        for written in function.input:
            name, optional, many = _marks(written)
            if name in self._values:
                raise SpecError(f"{self._what} has two inputs {name!r}")
            self._values[name] = Value(name, is_optional=optional, is_many=many)
        inputs = tuple(self._values)
        defaults = {each.name: each for each in function.attribute_proto}
        steps: list[Step] = []
        missing: list[Step] = []
        for number, node in enumerate(function.node):
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                self._add_constant(node)
                continue
            step = self._step(number, node, defaults)
            if number in self._left_out:
                missing.append(step)
                self._pass_through(step, node)
                continue
            steps.append(step)
            for output, name in enumerate(step.outputs):
                if name:
                    self._define(Value(name, step, output), node)
        outputs = []
        for written in function.output:
            name = self._through.get(written, written)
            value = self._values.get(name)
            if value is None:
                raise SpecError(f"{self._what}: nothing makes its output {written!r}")
            if value.step is None:
                if missing:
                    return None
                raise SpecError(f"{self._what}: its output {written!r} is made by no node")
            outputs.append(value)
        leading = _leading_to(outputs)
        idle = [step for step in steps if step.number not in leading]
        if idle and not missing:
            raise SpecError(f"{self._what}: {idle[0].label} leads to none of its outputs")
        steps = [step for step in steps if step.number in leading]
        missing += idle
        read = {value.name for step in steps for value in step.inputs if value is not None}
        lost = {value.name for step in missing for value in step.inputs if value is not None}
        unread = [name for name in inputs if name not in read and name not in lost]
        if unread:
            raise SpecError(f"{self._what}: no node reads its input {unread[0]!r}")
        before = _dependencies(steps)
        anchor = outputs[0].step
        assert anchor is not None
        return Pattern(
            function.name, inputs, frozenset(name for name in inputs if name not in read), tuple(outputs), tuple(steps),
            self._values, self._types(), anchor, self._reach(steps, outputs, before), tuple(missing),
            {plain_domain(each.domain): each.version for each in function.opset_import}, before,
            dict(self._through),
        )  # fmt: skip

    def _define(self, value: Value, node: NodeProto) -> None:
        if value.name in self._values or value.name in self._through:
            raise SpecError(f"{self._what}: {value.name!r} is made twice")
        self._values[value.name] = value

    def _add_constant(self, node: NodeProto) -> None:
        from onnx import TensorProto, helper, numpy_helper

        numbers = [each for each in node.attribute if each.name not in _SPECIAL]
        tolerance = next((float(each.f or each.i) for each in node.attribute if each.name == "_tolerance"), None)
        if len(numbers) != 1 or numbers[0].ref_attr_name:
            raise SpecError(f"{self._what}: the Constant {node.output[0]!r} needs exactly one value")
        value = helper.get_attribute_value(numbers[0])
        name = numbers[0].name
        if name == "value":
            array, element = numpy_helper.to_array(value), int(value.data_type)
        else:
            kinds = {"value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT}
            kinds |= {"value_int": TensorProto.INT64, "value_ints": TensorProto.INT64}
            if name not in kinds:
                raise SpecError(f"{self._what}: a Constant with {name!r} cannot be matched", hint="Use value.")
            import numpy as np

            element = int(kinds[name])
            array = np.asarray(value, np.float32 if element == TensorProto.FLOAT else np.int64)
        self._define(Value(node.output[0], constant=array, element=element, tolerance=tolerance), node)

    def _step(self, number: int, node: NodeProto, defaults: Mapping[str, AttributeProto]) -> Step:
        step = Step(number, self._operators(node), outputs=list(node.output), is_optional=_flag(node, "_optional"))
        names = [op_type for domain, op_type in step.operators if domain == ""]
        step.is_commutative = len(names) == len(step.operators) and COMMUTATIVE.issuperset(names)
        for written in node.input:
            step.inputs.append(self._read(written, node))
        while step.inputs and step.inputs[-1] is None:
            step.inputs.pop()
        many = [value for value in step.inputs if value is not None and value.is_many]
        if many and (len(many) > 1 or step.inputs[-1] is not many[0]):
            raise SpecError(f"{self._what}: {many[0].name + '...'!r} must be the last input of {step.label}")
        if many or len(step.inputs) > _MOST_PERMUTED or any(v is None or v.is_optional for v in step.inputs):
            step.is_commutative = False
        for attribute in node.attribute:
            self._attribute(step, attribute, defaults)
        step.names = None if any(name == "*" for _, name in step.operators) else frozenset(n for _, n in step.operators)
        present = [(at, value) for at, value in enumerate(step.inputs) if value is not None]
        step.order = tuple(at for at, _ in sorted(present, key=lambda each: _hardness(each[1])))
        return step

    def _operators(self, node: NodeProto) -> tuple[tuple[str, str], ...]:
        domain = plain_domain(node.domain)
        if node.op_type in ("*", "any_op") and not domain:
            return (("*", "*"),)
        names = [name.strip() for name in node.op_type.split("|")]
        if not all(names):
            raise SpecError(f"{self._what}: {node.op_type!r} names no operator")
        return tuple((domain, "*" if name == "any_op" else name) for name in names)

    def _read(self, written: str, node: NodeProto) -> Value | None:
        if not written:
            return None
        name, _, _ = _marks(written)
        name = self._through.get(name, name)
        value = self._values.get(name)
        if value is None:
            raise SpecError(
                f"{self._what}: {node.op_type} reads {name!r}, which nothing above it makes",
                hint="Nodes of a pattern stand in order, and what it captures is one of its inputs.",
            )
        return value

    def _attribute(self, step: Step, attribute: AttributeProto, defaults: Mapping[str, AttributeProto]) -> None:
        name, reference = attribute.name, attribute.ref_attr_name
        if name in ("_rest", "_op"):
            if not reference:
                raise SpecError(f"{self._what}: write {name} = @name, the name that it is captured under")
            if name == "_rest":
                step.rest = reference
            else:
                step.operator_name = reference
        elif name in _SPECIAL:
            return
        elif reference:
            step.captures[name] = reference
            if reference in defaults:
                step.defaults[name] = defaults[reference]
        elif attribute.type in _GRAPHS:
            raise SpecError(f"{self._what}: bodies cannot be matched (attribute {name!r} of {step.label})")
        else:
            step.attributes[name] = attribute

    def _pass_through(self, step: Step, node: NodeProto) -> None:
        first = step.inputs[0] if step.inputs else None
        if first is None or len([name for name in step.outputs if name]) != 1:
            raise SpecError(f"{self._what}: an optional node has an input and one output; {step.label} has not")
        self._through[next(name for name in step.outputs if name)] = first.name

    def _types(self) -> dict[str, TypeProto]:
        types = {_marks(info.name)[0]: info.type for info in self._function.value_info if info.HasField("type")}
        for name in types:
            if name not in self._values and name not in self._through:
                raise SpecError(f"{self._what} states a type of {name!r}, which it does not have")
        return {name: value for name, value in types.items() if name in self._values}

    def _reach(
        self, steps: Sequence[Step], outputs: Sequence[Value], before: Mapping[int, frozenset[int]]
    ) -> tuple[tuple[Step, tuple[Value, ...]], ...]:
        """Returns the other ends of a pattern, each with the tensors that they have in common with what is above."""
        anchor = outputs[0].step
        assert anchor is not None
        by_number = {step.number: step for step in steps}
        seen = {anchor.number, *before[anchor.number]}
        found: list[tuple[Step, tuple[Value, ...]]] = []
        read_by = {number: {id(v): v for v in by_number[number].inputs if v is not None} for number in by_number}
        while len(seen) < len(steps):
            known = {key for number in seen for key in read_by[number]}
            known |= {
                id(value) for value in self._values.values() if value.step is not None and value.step.number in seen
            }
            for step in steps:
                shared = tuple(v for key, v in read_by[step.number].items() if key in known and v.constant is None)
                if step.number not in seen and shared:
                    found.append((step, shared))
                    seen |= {step.number, *before[step.number]}
                    break
            else:
                loose = next(step for step in steps if step.number not in seen)
                raise SpecError(
                    f"{self._what} falls into pieces: {loose.label} has no tensor in common with {anchor.label}",
                    hint="Every node must be connected to the node that makes the first output.",
                )
        return tuple(found)


def _hardness(value: Value) -> int:
    """Returns how late a tensor is looked at: what can fail soonest goes first."""
    return 0 if value.constant is not None else 1 if value.step is not None else 2


def _marks(written: str) -> tuple[str, bool, bool]:
    """Returns a name, whether it ends in ``?`` and whether in ``...``."""
    if written.endswith("..."):
        return written[:-3], True, True
    return (written[:-1], True, False) if written.endswith("?") else (written, False, False)


def _leading_to(outputs: Sequence[Value]) -> set[int]:
    """Returns the numbers of the nodes that outputs depend on."""
    pending = [value.step for value in outputs if value.step is not None]
    found: set[int] = set()
    while pending:
        step = pending.pop()
        if step.number not in found:
            found.add(step.number)
            pending += [value.step for value in step.inputs if value is not None and value.step is not None]
    return found


def _dependencies(steps: Sequence[Step]) -> dict[int, frozenset[int]]:
    before: dict[int, frozenset[int]] = {}
    for step in steps:  # they stand in order
        above = {value.step.number for value in step.inputs if value is not None and value.step is not None}
        before[step.number] = frozenset(above.union(*(before[number] for number in above)))
    return before


def plain_name(written: str) -> str:
    """Returns the name of a pattern's tensor without ``?`` and ``...``."""
    return _marks(written)[0]


def permutations_of(step: Step, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the orders in which a node's inputs may be taken for those of a step, the given one first."""
    from itertools import permutations

    if step.is_commutative and len(names) == len(step.inputs):
        yield from dict.fromkeys(permutations(names))
    else:
        yield tuple(names)
