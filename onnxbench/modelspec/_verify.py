"""What a specification must fulfil to be a model, told with its lines.

The onnx checker would refuse most of these too, but later, in its own words, and without a place. Order: versions,
names, operators, order of the nodes, types. Names and operators are looked at in every graph; a mistake in one is
reported for the first node that has it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.conformity import Complaint, Flaw, Located, called, find_flaws, inside
from onnxbench.errors import ModelError, RefusedResultError, SpecError
from onnxbench.graph import GraphIndex, Scope, reorder, root_of, topological_order
from onnxbench.inference import has_long_vector, inferred, inferred_types, slim, without_made_up_dims
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.modeltext import Marks, ScopeKey, function_key, owner_name, quoted
from onnxbench.schemas import default_version, ir_version_for, known_domains, plain_domain
from onnxbench.tensortype import is_complete
from onnxbench.validity import find_complaints, make_valid

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto

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
    flaw = next(find_flaws(index), None)
    if flaw is not None:
        raise _flaw_error(flaw, marks)
    _sort(index, marks)
    _check_types(model, marks, mendable=mendable)


# -- versions ----------------------------------------------------------------------------------------------------


def _set_versions(proto: ModelProto, index: GraphIndex, notes: list[str]) -> None:
    """Adds the opset imports and the IR version that are not stated."""
    stated = {plain_domain(opset.domain) for opset in proto.opset_import}
    used = {
        plain_domain(node.domain) for scope in index.scopes if not root_of(scope).is_function for node in scope.nodes
    }
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
        scopes = [scope for scope in index.scopes if root_of(scope).graph is function]
        for domain in sorted({plain_domain(node.domain) for scope in scopes for node in scope.nodes} - own):
            function.opset_import.add(domain=domain, version=versions.get(domain) or default_version(domain))
    if not proto.ir_version:
        types = {tensor.data_type for tensor in weights.tensors(proto)}
        types.update(info.type.tensor_type.elem_type for info in (*proto.graph.input, *proto.graph.output))
        overloads = any(function.overload for function in proto.functions)
        proto.ir_version = ir_version_for(types, versions, has_overloads=overloads)


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
        reorder(scope, order)


def _cycle_error(scope: Scope, marks: Marks, error: ModelError) -> SpecError:
    labels = error.message.rpartition(": ")[2].split(" -> ")[:-1]
    positions = {label: position for position, label in enumerate(scope.labels())}
    known = [positions[label] for label in labels if label in positions]
    lines = [_line_of(marks, scope, position) for position in known]
    first = lines[0] if lines else 0
    where = f"{marks.source}:{first}: " if first else f"{marks.source}: "
    listed = [
        f"{called(scope, position)}{f', line {line}' if line else ''}"
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
        mended = copy_of(proto)
        try:
            make_valid(mended, complete=model.with_small_weights)
        except RefusedResultError:
            pass
        else:
            return
    located = Located(proto)
    lines = find_complaints(located.numbered, complete=model.with_small_weights)
    raise _complaint_error(located.explain(lines), marks)


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
    located = Located(bare)
    raise _complaint_error(located.explain(_infer_strictly(located.numbered)[1] or complaint), marks)


def _infer_strictly(proto: ModelProto) -> tuple[ModelProto | None, list[str]]:
    """Returns the model with its types, or what inference has against it."""
    from onnx import shape_inference

    try:
        return shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=not has_long_vector(proto)
        ), []
    except Exception as error:  # InferenceError, RuntimeError and others from C++
        return None, str(error).splitlines()


# -- errors ------------------------------------------------------------------------------------------------------


def _flaw_error(flaw: Flaw, marks: Marks) -> SpecError:
    """Returns a mistake as one about a line of the specification."""
    scope, message = flaw.scope, flaw.message
    if flaw.node is not None:
        line = _line_of(marks, scope, flaw.node)
    elif flaw.output is not None:
        lines = marks.outputs.get(scope_key(scope), [])
        line = lines[flaw.output] if flaw.output < len(lines) else 0
    else:
        line = marks.graphs.get(scope_key(scope), 0)
    first = _line_of(marks, scope, flaw.first) if flaw.first is not None else 0
    if first:
        message = f"{message} in line {first}"
    where = f"{marks.source}:{line}: " if line else f"{marks.source}: "
    return SpecError(f"{where}{message}{inside(scope)}", hint=flaw.hint, details=quoted(marks.lines, line))


def _complaint_error(complaint: Complaint, marks: Marks) -> SpecError:
    """Returns a complaint of onnx's as one about a line of the specification."""
    line = 0
    if complaint.scope is not None and complaint.node is not None:
        line = _line_of(marks, complaint.scope, complaint.node)
    where = f"{marks.source}:{line}: " if line else f"{marks.source}: "
    details = (*quoted(marks.lines, line), *complaint.inputs) if complaint.scope is not None else ()
    return SpecError(f"{where}{complaint.message}", details=details)
