"""Whether a model's names and operators hold together, told of the node that is wrong.

The onnx checker refuses most of these mistakes too, but in its own words and often without a place. Here every graph
is looked at: names that are made twice or read and not made, operators that do not exist in the imported opset,
numbers of inputs and outputs, attributes and their types, calls of functions. ``locate`` finds the node that one of
onnx's own complaints means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench.errors import did_you_mean
from onnxbench.graph import GraphIndex, Scope, declared_types, root_of
from onnxbench.inference import inferred
from onnxbench.messages import copy_of
from onnxbench.modeltext import ATTRIBUTE_WORDS
from onnxbench.schemas import attribute_type, describe_unknown, find_schema, known_domains, plain_domain
from onnxbench.tensortype import format_type

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TypeProto
    from onnx.defs import OpSchema

_FLOAT, _INT, _FLOATS, _INTS = 1, 2, 6, 7
_NUMBERED = "onnxbench-node-"
_INPUT, _INITIALIZER = -1, -2  # in place of the position of the node that makes a name


@dataclass(frozen=True, slots=True)
class Flaw:
    """One mistake.

    Attributes:
        scope: The graph that has it.
        message: What is wrong, with the node's name in it.
        node: Position of the node that is wrong, if it is a node.
        output: Number of the graph's output that is wrong, if it is one.
        hint: What to do.
        first: Position of the node that made a name first, where a name is made twice.
    """

    scope: Scope
    message: str
    node: int | None = None
    output: int | None = None
    hint: str | None = None
    first: int | None = None

    def sentence(self) -> str:
        """The message, and the graph that it is about."""
        return f"{self.message}{inside(self.scope)}"


def find_flaws(index: GraphIndex, *, names_only: bool = False) -> Iterator[Flaw]:
    """Yields the mistakes of a model; what comes after the first may follow from it.

    An attribute whose type differs from the one that its operator states is given that type where its value allows.

    Args:
        index: The model's index.
        names_only: Do not look at operators and attributes.
    """
    return _Checker(index).flaws(names_only=names_only)


class _Checker:
    """Checks names and operators of all graphs."""

    def __init__(self, index: GraphIndex) -> None:
        self._index = index
        self._own: dict[int, set[str]] = {}
        self._functions = index.functions
        self._main_versions = {plain_domain(o.domain): o.version for o in index.proto.opset_import}

    def flaws(self, *, names_only: bool) -> Iterator[Flaw]:
        """Yields what is wrong."""
        for scope in self._index.scopes:
            yield from self._duplicates(scope)
        for scope in self._index.scopes:
            yield from self._reads(scope)
            yield from self._outputs(scope)
            if not names_only:
                yield from self._nodes(scope)

    def _duplicates(self, scope: Scope) -> Iterator[Flaw]:
        seen: dict[str, int] = {}
        for name in scope.inputs:
            if name in seen:
                yield Flaw(scope, f"there are two inputs {name!r}")
            seen[name] = _INPUT
        for name in scope.constants:
            seen.setdefault(name, _INITIALIZER)
        if not scope.is_function and len(scope.constants) < _constant_count(scope):
            yield Flaw(scope, "two initializers have one name")
        for position, names in enumerate(scope.writes):
            for name in names:
                if name in seen:
                    hint = "Every name is given once: rename one of them."
                    node = scope.nodes[position]
                    message = f"{with_article(node)} makes {name!r} again: {_maker(scope, seen[name])}"
                    yield Flaw(scope, message, position, hint=hint, first=seen[name] if seen[name] >= 0 else None)
                seen[name] = position
        self._own[id(scope)] = set(seen)

    def _visible(self, scope: Scope) -> Iterator[set[str]]:
        around: Scope | None = scope
        while around is not None:
            yield self._own[id(around)]
            around = around.parent

    def _is_visible(self, scope: Scope, name: str) -> bool:
        return any(name in names for names in self._visible(scope))

    def _reads(self, scope: Scope) -> Iterator[Flaw]:
        own = self._own[id(scope)]
        for position, names in enumerate(scope.reads):
            if position in scope.bodies:  # what its bodies capture is looked at in them
                names = [name for name in scope.nodes[position].input if name]
            for name in names:
                if name not in own and not self._is_visible(scope, name):
                    hint = did_you_mean(name, (each for names in self._visible(scope) for each in names))
                    hint = hint or "Make it an input, an initializer, or the output of a node."
                    message = f"{called(scope, position)} reads {name!r}, which nothing makes"
                    yield Flaw(scope, message, position, hint=hint)

    def _outputs(self, scope: Scope) -> Iterator[Flaw]:
        for at, name in enumerate(scope.outputs):
            if not self._is_visible(scope, name):
                hint = did_you_mean(name, self._own[id(scope)])
                yield Flaw(scope, f"output {name!r} is made by no node", output=at, hint=hint)

    def _nodes(self, scope: Scope) -> Iterator[Flaw]:
        versions, root = self._main_versions, root_of(scope)
        if root.is_function:
            versions = {plain_domain(o.domain): o.version for o in root.graph.opset_import}
        for position, node in enumerate(scope.nodes):
            callee = self._functions.get((node.domain, node.op_type, node.overload))
            domain = plain_domain(node.domain)
            if callee is not None:
                yield from self._call(scope, position, node, callee.graph)
            elif domain in known_domains() and domain in versions:
                schema = find_schema(domain, node.op_type, versions[domain])
                if schema is None:
                    names = [key[1] for key in self._functions if key[0] == node.domain]
                    message, hint = describe_unknown(domain, node.op_type, versions[domain])
                    yield Flaw(scope, message, position, hint=did_you_mean(node.op_type, names) or hint)
                    continue
                yield from self._operator(scope, position, node, schema)
            elif any(key[0] == node.domain for key in self._functions):
                names = [key[1] for key in self._functions if key[0] == node.domain]
                message = f"there is no function {node.domain}::{node.op_type}"
                hint = did_you_mean(node.op_type, names) or f"{node.domain} has: {', '.join(names)}."
                yield Flaw(scope, message, position, hint=hint)

    def _call(self, scope: Scope, position: int, node: NodeProto, function: FunctionProto) -> Iterator[Flaw]:
        for what, given, most in (
            ("inputs", len(node.input), len(function.input)),
            ("outputs", len(node.output), len(function.output)),
        ):
            if given > most:
                message = f"{function.domain}::{function.name} is called with {given} {what}, and has {most}"
                yield Flaw(scope, message, position)
        known = {*function.attribute, *(attribute.name for attribute in function.attribute_proto)}
        for attribute in node.attribute:
            if attribute.name not in known:
                message = f"function {function.domain}::{function.name} has no attribute {attribute.name!r}"
                yield Flaw(scope, message, position, hint=did_you_mean(attribute.name, known))
        given_names = {attribute.name for attribute in node.attribute}
        for name in function.attribute:
            if name not in given_names:
                message = f"{called(scope, position)} lacks attribute {name!r}, which has no default"
                yield Flaw(scope, message, position)

    def _operator(self, scope: Scope, position: int, node: NodeProto, schema: OpSchema) -> Iterator[Flaw]:
        name_of_node = called(scope, position)
        if schema.deprecated:
            message = f"{node.op_type} is deprecated since opset {schema.since_version}"
            yield Flaw(scope, message, position, hint="Use the operator that came in its place.")
        for what, names, least, most in (
            ("input", node.input, schema.min_input, schema.max_input),
            ("output", node.output, schema.min_output, schema.max_output),
        ):
            if not least <= len(names) <= most:
                formals = schema.inputs if what == "input" else schema.outputs
                takes = f"{least}" if least == most else f"{least} or more" if most >= 1 << 30 else f"{least} to {most}"
                message = f"{name_of_node} has {len(names)} {what}{'s' if len(names) != 1 else ''}; {node.op_type} "
                message += f"{'takes' if what == 'input' else 'makes'} {takes}"
                yield Flaw(scope, message, position, hint=f"They are: {', '.join(f.name for f in formals)}.")
        for formal, name in zip(schema.inputs, node.input, strict=False):
            if not name and formal.option.name == "Single":  # type: ignore[attr-defined]  # the stubs do not know its name
                message = f"{name_of_node} leaves input {formal.name!r} empty, which {node.op_type} needs"
                yield Flaw(scope, message, position)
        if node.attribute or schema.attributes:
            yield from self._attributes(scope, position, node, schema)

    def _attributes(self, scope: Scope, position: int, node: NodeProto, schema: OpSchema) -> Iterator[Flaw]:
        seen: set[str] = set()
        for attribute in node.attribute:
            name = attribute.name
            if name in seen:
                yield Flaw(scope, f"attribute {name!r} stands twice", position)
            seen.add(name)
            wanted = attribute_type(schema, name)
            if not wanted:
                hint = did_you_mean(name, schema.attributes)
                if hint is None:
                    hint = f"It has: {', '.join(sorted(schema.attributes)) or 'none'}."
                yield Flaw(scope, f"{node.op_type} has no attribute {name!r}", position, hint=hint)
            if attribute.type != wanted and not _coerce(attribute, wanted):
                message = (
                    f"attribute {name!r} of {node.op_type} is of type {ATTRIBUTE_WORDS.get(wanted, '?')}, and this is "
                    f"{ATTRIBUTE_WORDS.get(attribute.type, '?')}"
                )
                yield Flaw(scope, message, position)
        for name, known in schema.attributes.items():
            if known.required and name not in seen:
                yield Flaw(scope, f"{called(scope, position)} lacks attribute {name!r}", position)


def _coerce(attribute: AttributeProto, wanted: int) -> bool:
    """Gives an attribute the type that its operator states where the value allows; tells whether it does."""
    if attribute.type == 0 and attribute.ref_attr_name:
        attribute.type = wanted  # type: ignore[assignment]  # the stub wants its enum
        return True
    if attribute.type == _INT and wanted == _FLOAT:
        attribute.f = float(attribute.i)
        attribute.ClearField("i")
    elif attribute.type == _INTS and wanted == _FLOATS:
        attribute.floats.extend(map(float, attribute.ints))
        attribute.ClearField("ints")
    else:
        return False
    attribute.type = wanted  # type: ignore[assignment]  # the stub wants its enum
    return True


def _constant_count(scope: Scope) -> int:
    graph = scope.graph
    return len(graph.initializer) + len(graph.sparse_initializer)


def inside(scope: Scope) -> str:
    """Returns `` (in If_3/then)`` for a body or function, and nothing for the main graph."""
    return f" (in {scope.path})" if scope.path else ""


def with_article(node: NodeProto) -> str:
    """Returns the operator of a node with its article."""
    return f"an {node.op_type}" if node.op_type[:1] in "AEIOU" else f"a {node.op_type}"


def called(scope: Scope, position: int) -> str:
    """Returns what to call a node in a sentence: its name, or what it makes."""
    node = scope.nodes[position]
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    made = next(filter(None, node.output), None)
    return f"the {node.op_type} that makes {made!r}" if made else f"a {node.op_type} node"


# -- names and operators -----------------------------------------------------------------------------------------


def _maker(scope: Scope, position: int) -> str:
    if position < 0:
        return "it is an input" if position == _INPUT else "it is an initializer"
    return f"{with_article(scope.nodes[position])} makes it"


@dataclass(frozen=True, slots=True)
class Complaint:
    """What onnx's checker or type inference has against a model, and where.

    Attributes:
        message: Its words, with nodes called as in the model.
        scope: The graph of the node it means, if it means one.
        node: Position of that node.
        inputs: That node's inputs with their types, a line each.
    """

    message: str
    scope: Scope | None = None
    node: int | None = None
    inputs: tuple[str, ...] = ()


class Located:
    """A copy of a model whose nodes have distinct names, to find the ones that onnx's errors mean.

    Attributes:
        numbered: The copy.
    """

    def __init__(self, proto: ModelProto) -> None:
        self.numbered = copy_of(proto)
        self._places: list[tuple[Scope, int, str]] = []
        for scope in GraphIndex(self.numbered).scopes:
            for position, node in enumerate(scope.nodes):
                words = called(scope, position)
                node.name = f"{_NUMBERED}{len(self._places)}"
                self._places.append((scope, position, words + inside(scope)))

    def explain(self, lines: Iterable[str]) -> Complaint:
        """Returns what onnx says of the numbered copy as a complaint about the model.

        Inference goes on after an error, and what it says then, a line for each node, follows from the first.
        """
        said = [line.strip() for line in lines if line.strip()]
        said = [line for line in said if "InferenceError]" in line and _NUMBERED in line][:1] or said
        text = " ".join(said)
        numbers = [int(number) for number in re.findall(rf"{_NUMBERED}([0-9]+)", text)]
        text = re.sub(r"\[?(?:Shape|Type)InferenceError\]?\s*|Inference error\(s\):\s*", "", text)
        text = re.sub(rf"\(op_type:[^,()]*, node name: {_NUMBERED}[0-9]+\):?\s*", "", text)
        text = re.sub(r"\s*==> Context:.*", "", text).strip()
        if not numbers:
            return Complaint(text)
        scope, position, words = self._places[numbers[-1]]
        text = re.sub(rf"{_NUMBERED}([0-9]+)", lambda match: self._places[int(match[1])][2], text)
        types = tuple(_input_types(self.numbered, f"{_NUMBERED}{numbers[-1]}"))
        return Complaint(f"{words}: {text}", scope, position, types)


def _input_types(numbered: ModelProto, name: str) -> list[str]:
    """Returns the inputs of a node with what is known of their types, a line each."""
    for scope in GraphIndex(inferred(numbered)).scopes:
        for node in scope.nodes:
            if node.name == name:
                types: dict[str, TypeProto] = {}
                around: Scope | None = scope
                while around is not None:
                    types = {**declared_types(around), **types}
                    around = around.parent
                return [f"{each}: {format_type(types.get(each))}" for each in node.input if each]
    return []
