"""What a specification must fulfil to be a model, told with its lines.

The onnx checker would refuse most of these too, but later, in its own words, and without a place. Order: versions,
names, operators, order of the nodes, types. Names and operators are looked at in every graph; a mistake in one is
reported for the first node that has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.errors import ModelError, RefusedResultError, SpecError, did_you_mean
from onnxbench.graph import GraphIndex, Scope, declared_types, topological_order
from onnxbench.inference import has_long_vector, inferred, inferred_types, slim, without_made_up_dims
from onnxbench.model import Model
from onnxbench.modelspec._schemas import (
    attribute_type,
    default_version,
    describe_unknown,
    find_schema,
    ir_version_for,
    known_domains,
    plain_domain,
)
from onnxbench.modeltext import ATTRIBUTE_WORDS, Marks, ScopeKey, function_key, owner_name, quoted
from onnxbench.tensortype import format_type, is_complete
from onnxbench.validity import find_complaints, make_valid

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TypeProto
    from onnx.defs import OpSchema

_FLOAT, _INT, _FLOATS, _INTS = 1, 2, 6, 7
_NUMBERED = "onnxbench-node-"
_INPUT, _INITIALIZER = -1, -2  # in place of the position of the node that makes a name
_BODY = re.compile(r"(.*)\[([0-9]+)\]", re.DOTALL)


def verify(model: Model, marks: Marks, *, notes: list[str], mendable: bool) -> None:
    """Completes a model in place (versions, order, types of outputs) and checks it.

    Args:
        model: The model as it was specified.
        marks: Where its parts stand.
        notes: Gets a sentence on everything that was chosen for the user.
        mendable: Accept what ``onnxbench.writer.save`` mends (contradicting value infos of real models, say).

    Raises:
        SpecError: It is no valid model; the message names the line.
        ExternalDataError: Weights outside of the specification cannot be had.
    """
    proto = model.proto
    index = GraphIndex(proto)
    _set_versions(proto, index, notes)
    _Checker(index, marks).check()
    _sort(index, marks)
    _check_types(model, marks, mendable=mendable)


# -- versions ----------------------------------------------------------------------------------------------------


def _set_versions(proto: ModelProto, index: GraphIndex, notes: list[str]) -> None:
    """Adds the opset imports and the IR version that are not stated."""
    stated = {plain_domain(opset.domain) for opset in proto.opset_import}
    used = {plain_domain(node.domain) for scope in index.scopes if not _is_in_function(scope) for node in scope.nodes}
    for domain in sorted((used if stated else used | {""}) - stated):
        version = default_version(domain)
        proto.opset_import.add(domain=domain, version=version)
        if domain == "":
            notes.append(f"no opset is stated: it is {version}")
        elif domain in known_domains():
            notes.append(f"no opset of {domain} is stated: it is {version}")
    versions = {plain_domain(opset.domain): opset.version for opset in proto.opset_import}
    for function in proto.functions:
        own = {plain_domain(opset.domain) for opset in function.opset_import}
        scopes = [scope for scope in index.scopes if _root(scope).graph is function]
        for domain in sorted({plain_domain(node.domain) for scope in scopes for node in scope.nodes} - own):
            function.opset_import.add(domain=domain, version=versions.get(domain) or default_version(domain))
    if not proto.ir_version:
        types = {tensor.data_type for tensor in weights.tensors(proto)}
        types.update(info.type.tensor_type.elem_type for info in (*proto.graph.input, *proto.graph.output))
        overloads = any(function.overload for function in proto.functions)
        proto.ir_version = ir_version_for(types, versions, has_overloads=overloads)


def _root(scope: Scope) -> Scope:
    while scope.parent is not None:
        scope = scope.parent
    return scope


def _is_in_function(scope: Scope) -> bool:
    return _root(scope).is_function


# -- names and operators -----------------------------------------------------------------------------------------


def scope_key(scope: Scope) -> ScopeKey:
    """Returns the key that marks use for a graph."""
    parts: list[object] = []
    while scope.parent is not None:
        match = _BODY.fullmatch(scope.body_name)
        name, at = (match[1], int(match[2])) if match else (scope.body_name, 0)
        parts[:0] = [owner_name(scope.parent.nodes[scope.owner], scope.owner), name, at]
        scope = scope.parent
    root: ScopeKey = function_key(scope.graph) if scope.is_function else ("main",)
    return (*root, *parts)


def _line_of(marks: Marks, scope: Scope, position: int) -> int:
    """Returns the line of a node, or of the node around it if it has none of its own; 0 if nothing has one."""
    while True:
        lines = marks.nodes.get(scope_key(scope), ())
        if position < len(lines):
            return lines[position]
        if scope.parent is None:
            return 0
        scope, position = scope.parent, scope.owner


class _Checker:
    """Checks names and operators of all graphs."""

    def __init__(self, index: GraphIndex, marks: Marks) -> None:
        self._index = index
        self._marks = marks
        self._own: dict[int, set[str]] = {}
        self._functions = index.functions
        self._main_versions = {plain_domain(o.domain): o.version for o in index.proto.opset_import}

    def check(self) -> None:
        """Raises SpecError for the first mistake."""
        for scope in self._index.scopes:
            self._check_duplicates(scope)
        for scope in self._index.scopes:
            self._check_reads(scope)
            self._check_outputs(scope)
            self._check_nodes(scope)

    def _error(self, scope: Scope, line: int, message: str, hint: str | None = None) -> SpecError:
        where = f"{self._marks.source}:{line}: " if line else f"{self._marks.source}: "
        return SpecError(f"{where}{message}{_inside(scope)}", hint=hint, details=quoted(self._marks.lines, line))

    def _first(self, scope: Scope, position: int) -> str:
        """Returns what gave a name first, in words."""
        if position < 0:
            return "it is an input" if position == _INPUT else "it is an initializer"
        line = _line_of(self._marks, scope, position)
        return f"{_with_article(scope.nodes[position])} makes it{f' in line {line}' if line else ''}"

    def _at_node(self, scope: Scope, position: int, message: str, hint: str | None = None) -> SpecError:
        return self._error(scope, _line_of(self._marks, scope, position), message, hint)

    def _check_duplicates(self, scope: Scope) -> None:
        seen: dict[str, int] = {}
        graph_line = self._marks.graphs.get(scope_key(scope), 0)
        for name in scope.inputs:
            if name in seen:
                raise self._error(scope, graph_line, f"there are two inputs {name!r}")
            seen[name] = _INPUT
        for name in scope.constants:
            seen.setdefault(name, _INITIALIZER)
        if not scope.is_function and len(scope.constants) < _constant_count(scope):
            raise self._error(scope, graph_line, "two initializers have one name")
        for position, names in enumerate(scope.writes):
            for name in names:
                if name in seen:
                    hint = "Every name is given once: rename one of them."
                    node = scope.nodes[position]
                    message = f"{_with_article(node)} makes {name!r} again: {self._first(scope, seen[name])}"
                    raise self._at_node(scope, position, message, hint)
                seen[name] = position
        self._own[id(scope)] = set(seen)

    def _visible(self, scope: Scope) -> Iterator[set[str]]:
        around: Scope | None = scope
        while around is not None:
            yield self._own[id(around)]
            around = around.parent

    def _is_visible(self, scope: Scope, name: str) -> bool:
        return any(name in names for names in self._visible(scope))

    def _check_reads(self, scope: Scope) -> None:
        own = self._own[id(scope)]
        for position, node in enumerate(scope.nodes):
            for name in node.input:
                if name and name not in own and not self._is_visible(scope, name):
                    hint = did_you_mean(name, (each for names in self._visible(scope) for each in names))
                    hint = hint or "Make it an input, an initializer, or the output of a node."
                    message = f"{_called(scope, position)} reads {name!r}, which nothing makes"
                    raise self._at_node(scope, position, message, hint)

    def _check_outputs(self, scope: Scope) -> None:
        lines = self._marks.outputs.get(scope_key(scope), [])
        for at, name in enumerate(scope.outputs):
            if not self._is_visible(scope, name):
                hint = did_you_mean(name, self._own[id(scope)])
                line = lines[at] if at < len(lines) else 0
                raise self._error(scope, line, f"output {name!r} is made by no node", hint)

    def _check_nodes(self, scope: Scope) -> None:
        root = _root(scope).graph
        versions = self._main_versions
        if _is_in_function(scope):
            versions = {plain_domain(o.domain): o.version for o in root.opset_import}
        for position, node in enumerate(scope.nodes):
            called = self._functions.get((node.domain, node.op_type, node.overload))
            domain = plain_domain(node.domain)
            if called is not None:
                self._check_call(scope, position, node, called.graph)
            elif domain in known_domains() and domain in versions:
                schema = find_schema(domain, node.op_type, versions[domain])
                if schema is None:
                    names = [key[1] for key in self._functions if key[0] == node.domain]
                    message, hint = describe_unknown(domain, node.op_type, versions[domain])
                    raise self._at_node(scope, position, message, did_you_mean(node.op_type, names) or hint)
                self._check_operator(scope, position, node, schema)
            elif any(key[0] == node.domain for key in self._functions):
                names = [key[1] for key in self._functions if key[0] == node.domain]
                message = f"there is no function {node.domain}::{node.op_type}"
                hint = did_you_mean(node.op_type, names) or f"{node.domain} has: {', '.join(names)}."
                raise self._at_node(scope, position, message, hint)

    def _check_call(self, scope: Scope, position: int, node: NodeProto, function: FunctionProto) -> None:
        for what, given, most in (
            ("inputs", len(node.input), len(function.input)),
            ("outputs", len(node.output), len(function.output)),
        ):
            if given > most:
                message = f"{function.domain}::{function.name} is called with {given} {what}, and has {most}"
                raise self._at_node(scope, position, message)
        known = {*function.attribute, *(attribute.name for attribute in function.attribute_proto)}
        for attribute in node.attribute:
            if attribute.name not in known:
                message = f"function {function.domain}::{function.name} has no attribute {attribute.name!r}"
                raise self._at_node(scope, position, message, did_you_mean(attribute.name, known))
        given_names = {attribute.name for attribute in node.attribute}
        for name in function.attribute:
            if name not in given_names:
                message = f"{_called(scope, position)} lacks attribute {name!r}, which has no default"
                raise self._at_node(scope, position, message)

    def _check_operator(self, scope: Scope, position: int, node: NodeProto, schema: OpSchema) -> None:
        called = _called(scope, position)
        if schema.deprecated:
            message = f"{node.op_type} is deprecated since opset {schema.since_version}"
            raise self._at_node(scope, position, message, "Use the operator that came in its place.")
        for what, names, least, most in (
            ("input", node.input, schema.min_input, schema.max_input),
            ("output", node.output, schema.min_output, schema.max_output),
        ):
            if not least <= len(names) <= most:
                formals = schema.inputs if what == "input" else schema.outputs
                takes = f"{least}" if least == most else f"{least} or more" if most >= 1 << 30 else f"{least} to {most}"
                message = f"{called} has {len(names)} {what}{'s' if len(names) != 1 else ''}; {node.op_type} "
                message += f"{'takes' if what == 'input' else 'makes'} {takes}"
                raise self._at_node(scope, position, message, f"They are: {', '.join(f.name for f in formals)}.")
        for formal, name in zip(schema.inputs, node.input, strict=False):
            if not name and formal.option.name == "Single":  # type: ignore[attr-defined]
                message = f"{called} leaves input {formal.name!r} empty, which {node.op_type} needs"
                raise self._at_node(scope, position, message)
        if node.attribute or schema.attributes:
            self._check_attributes(scope, position, node, schema)

    def _check_attributes(self, scope: Scope, position: int, node: NodeProto, schema: OpSchema) -> None:
        seen: set[str] = set()
        for attribute in node.attribute:
            name = attribute.name
            if name in seen:
                raise self._at_node(scope, position, f"attribute {name!r} stands twice")
            seen.add(name)
            wanted = attribute_type(schema, name)
            if not wanted:
                hint = did_you_mean(name, schema.attributes)
                if hint is None:
                    hint = f"It has: {', '.join(sorted(schema.attributes)) or 'none'}."
                raise self._at_node(scope, position, f"{node.op_type} has no attribute {name!r}", hint)
            if attribute.type != wanted and not _coerce(attribute, wanted):
                message = (
                    f"attribute {name!r} of {node.op_type} is of type {ATTRIBUTE_WORDS.get(wanted, '?')}, and this is "
                    f"{ATTRIBUTE_WORDS.get(attribute.type, '?')}"
                )
                raise self._at_node(scope, position, message)
        for name, known in schema.attributes.items():
            if known.required and name not in seen:
                raise self._at_node(scope, position, f"{_called(scope, position)} lacks attribute {name!r}")


def _coerce(attribute: AttributeProto, wanted: int) -> bool:
    """Gives an attribute the type that its operator states where the value allows; tells whether it does."""
    if attribute.type == 0 and attribute.ref_attr_name:
        attribute.type = wanted  # type: ignore[assignment]
        return True
    if attribute.type == _INT and wanted == _FLOAT:
        attribute.f = float(attribute.i)
        attribute.ClearField("i")
    elif attribute.type == _INTS and wanted == _FLOATS:
        attribute.floats.extend(map(float, attribute.ints))
        attribute.ClearField("ints")
    else:
        return False
    attribute.type = wanted  # type: ignore[assignment]
    return True


def _constant_count(scope: Scope) -> int:
    graph = scope.graph
    return len(graph.initializer) + len(graph.sparse_initializer)


def _inside(scope: Scope) -> str:
    return f" (in {scope.path})" if scope.path else ""


def _with_article(node: NodeProto) -> str:
    return f"an {node.op_type}" if node.op_type[:1] in "AEIOU" else f"a {node.op_type}"


def _called(scope: Scope, position: int) -> str:
    node = scope.nodes[position]
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    made = next(filter(None, node.output), None)
    return f"the {node.op_type} that makes {made!r}" if made else f"a {node.op_type} node"


# -- order -------------------------------------------------------------------------------------------------------


def _sort(index: GraphIndex, marks: Marks) -> None:
    """Sorts the nodes of all graphs in place, and their lines with them."""
    orders: list[tuple[Scope, ScopeKey, list[int]]] = []
    for scope in index.scopes:
        try:
            order = topological_order(scope)
        except ModelError as error:
            raise _cycle_error(scope, marks, error) from None
        if order is not None:
            orders.append((scope, scope_key(scope), order))
    for scope, key, order in reversed(orders):  # inner first: sorting a graph copies the bodies in it
        lines = marks.nodes.get(key)
        if lines:
            marks.nodes[key] = [lines[position] for position in order]
        ordered = [type(scope.nodes[position])() for position in order]
        for copy, position in zip(ordered, order, strict=True):
            copy.CopyFrom(scope.nodes[position])
        del scope.graph.node[:]
        scope.graph.node.extend(ordered)


def _cycle_error(scope: Scope, marks: Marks, error: ModelError) -> SpecError:
    labels = error.message.rpartition(": ")[2].split(" -> ")[:-1]
    positions = {label: position for position, label in enumerate(scope.labels())}
    known = [positions[label] for label in labels if label in positions]
    lines = [_line_of(marks, scope, position) for position in known]
    first = lines[0] if lines else 0
    where = f"{marks.source}:{first}: " if first else f"{marks.source}: "
    listed = [
        f"{_called(scope, position)}{f', line {line}' if line else ''}"
        for position, line in zip(known, lines, strict=True)
    ]
    return SpecError(f"{where}{error.message}", hint=error.hint, details=(*quoted(marks.lines, first), *listed))


# -- types -------------------------------------------------------------------------------------------------------


def _check_types(model: Model, marks: Marks, *, mendable: bool) -> None:
    """Gives outputs without a type the one that inference finds, and checks the whole."""
    proto = model.proto
    untyped = [info for info in proto.graph.output if not is_complete(info.type)]
    if untyped:
        types = _infer(model, [info.name for info in untyped], marks, mendable=mendable)
        for info in untyped:
            if not is_complete(types.get(info.name)):
                raise _untyped(proto, marks, info.name)
            info.type.CopyFrom(types[info.name])
    if not find_complaints(proto, complete=model.with_small_weights):
        return
    if mendable:
        mended = type(proto)()
        mended.CopyFrom(proto)
        try:
            make_valid(mended, complete=model.with_small_weights)
        except RefusedResultError:
            pass
        else:
            return
    located = _Located(proto, marks)
    raise located.error(find_complaints(located.numbered, complete=model.with_small_weights))


def _untyped(proto: ModelProto, marks: Marks, name: str) -> SpecError:
    names = [info.name for info in proto.graph.output]
    lines = marks.outputs.get(("main",), [])
    at = names.index(name)
    line = lines[at] if at < len(lines) else 0
    where = f"{marks.source}:{line}: " if line else f"{marks.source}: "
    return SpecError(
        f"{where}the type of output {name!r} cannot be inferred",
        hint=f"State it: {name}: float32[...] in YAML, float[] {name} in text.",
        details=quoted(marks.lines, line),
    )


def _infer(model: Model, names: list[str], marks: Marks, *, mendable: bool) -> dict[str, TypeProto]:
    """Returns the types of graph outputs; where types contradict each other, that is the error."""
    bare = type(model.proto).FromString(slim(model.with_small_weights(model.proto)))
    for info in bare.graph.output:
        if not is_complete(info.type):
            info.ClearField("type")
    found, complaint = _infer_strictly(bare)
    if found is not None:
        return {info.name: without_made_up_dims(info.type) for info in found.graph.output if info.name in names}
    types = inferred_types(inferred(bare), names) if mendable else {}
    if all(is_complete(types.get(name)) for name in names):
        return types
    located = _Located(bare, marks)
    raise located.error(_infer_strictly(located.numbered)[1] or complaint)


def _infer_strictly(proto: ModelProto) -> tuple[ModelProto | None, list[str]]:
    """Returns the model with its types, or what inference has against it."""
    from onnx import shape_inference

    try:
        return shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=not has_long_vector(proto)
        ), []
    except Exception as error:  # InferenceError, RuntimeError and others from C++
        return None, str(error).splitlines()


class _Located:
    """A copy of a model whose nodes have distinct names, to find the ones that onnx's errors mean.

    Attributes:
        numbered: The copy.
    """

    def __init__(self, proto: ModelProto, marks: Marks) -> None:
        self.numbered = type(proto)()
        self.numbered.CopyFrom(proto)
        self._marks = marks
        self._places: list[tuple[int, str]] = []
        for scope in GraphIndex(self.numbered).scopes:
            for position, node in enumerate(scope.nodes):
                called = _called(scope, position)
                node.name = f"{_NUMBERED}{len(self._places)}"
                self._places.append((_line_of(marks, scope, position), called + _inside(scope)))

    def error(self, lines: Iterable[str]) -> SpecError:
        """Returns an error of onnx's as one about a line of the specification."""
        text = " ".join(line.strip() for line in lines if line.strip())
        numbers = [int(number) for number in re.findall(rf"{_NUMBERED}([0-9]+)", text)]
        text = re.sub(r"\[?(?:Shape|Type)InferenceError\]?\s*|Inference error\(s\):\s*", "", text)
        text = re.sub(rf"\(op_type:[^,()]*, node name: {_NUMBERED}[0-9]+\):?\s*", "", text)
        text = re.sub(r"\s*==> Context:.*", "", text).strip()
        source = self._marks.source
        if not numbers:
            return SpecError(f"{source}: {text}")
        line, called = self._places[numbers[-1]]
        where = f"{source}:{line}: " if line else f"{source}: "
        text = re.sub(rf"{_NUMBERED}([0-9]+)", lambda match: self._places[int(match[1])][1], text)
        details = (*quoted(self._marks.lines, line), *_input_types(self.numbered, f"{_NUMBERED}{numbers[-1]}"))
        return SpecError(f"{where}{called}: {text}", details=details)


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
