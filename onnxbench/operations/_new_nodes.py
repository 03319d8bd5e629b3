"""Nodes that operations add: checked against their operator, named, their constants beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.draft import require_free
from onnxbench.errors import NotFoundError, RefusedResultError, UsageError, did_you_mean
from onnxbench.graph import home_of
from onnxbench.modelspec import fill_attribute, make_tensor
from onnxbench.operations._base import parse_operator
from onnxbench.schemas import attribute_type, find_schema

if TYPE_CHECKING:
    from onnx import NodeProto
    from onnx.defs import OpSchema

    from onnxbench.draft import Draft
    from onnxbench.graph import Scope


def make_nodes(
    draft: Draft,
    scope: Scope,
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> list[NodeProto]:
    """Returns a node for a graph, its domain imported, behind the nodes of its constants if these are nodes.

    Args:
        draft: The model.
        scope: The graph.
        op: The operator: ``Add``, ``com.microsoft::Gelu``.
        inputs: What it reads, by name.
        outputs: What it makes.
        attributes: Its attributes, as in a build specification.
        constants: Values of inputs that are new, likewise: they become initializers, in functions Constant nodes.
        name: Its name; None: one made from its first output.

    Raises:
        RefusedResultError: The name is taken, or the operator has no such attribute, or needs more than is given.
        UsageError: ``op`` is no operator.
        SpecError: An attribute or constant cannot be read.
    """
    from onnx import NodeProto

    domain, op_type = parse_operator(op)
    draft.import_domain(scope, domain)
    if name is not None and any(node.name == name for node in scope.nodes):
        raise RefusedResultError(f"there is a node {name!r} already", hint="Choose another name.")
    node = NodeProto(op_type=op_type, domain=domain, input=inputs, output=outputs)
    node.name = name or draft.fresh_node(scope, _default_name(outputs, op_type))
    version = draft.opset(scope, domain)
    is_call = any((f.domain, f.name) == (domain, op_type) for f in draft.model.proto.functions)
    schema = find_schema(domain, op_type, version) if version and not is_call else None
    if schema is not None:
        _require_whole(schema, inputs, attributes or {})
    for key, value in (attributes or {}).items():
        wanted = attribute_type(schema, key) if schema is not None else 0
        if schema is not None and not wanted:
            hint = did_you_mean(key, schema.attributes)
            raise RefusedResultError(f"{op_type} has no attribute {key!r}", hint=hint)
        fill_attribute(
            node.attribute.add(name=key), value, wanted=wanted, folder=draft.folder, allow_outside=draft.allow_outside,
            versions={o.domain: o.version for o in draft.model.proto.opset_import},
        )  # fmt: skip
    return [*make_constants(draft, scope, constants or {}), node]


def _default_name(outputs: Sequence[str], op_type: str) -> str:
    """Returns ``x_Relu`` for a Relu that makes x, and for one that makes x_Relu or x_Relu_1 that name itself."""
    made = outputs[0] if outputs else op_type
    return made if re.search(rf"(?:^|_){op_type}(?:_\d+)?$", made) else f"{made}_{op_type}"


def _require_whole(schema: OpSchema, inputs: Sequence[str], attributes: Mapping[str, Any]) -> None:
    """Raises RefusedResultError if a new node has not all inputs and attributes that its operator needs."""
    names = [formal.name for formal in schema.inputs]
    if len(inputs) < schema.min_input:
        given = f"{len(inputs)} input{'' if len(inputs) == 1 else 's'}"
        raise RefusedResultError(
            f"{schema.name} needs the inputs {', '.join(names[: schema.min_input])}, and is given {given}",
            hint="inputs: [...] names all of them in order, and constants: {NAME: VALUE} makes those that are new.",
        )
    missing = [name for name, each in schema.attributes.items() if each.required and name not in attributes]
    if missing:
        said = ", ".join(f"{name}: ..." for name in missing)
        raise RefusedResultError(
            f"{schema.name} needs {' and '.join(map(repr, missing))}", hint=f"attributes: {{{said}}} gives them."
        )


def make_constants(draft: Draft, scope: Scope, constants: Mapping[str, Any]) -> list[NodeProto]:
    """Adds constants to a graph as initializers, or returns them as Constant nodes for a function, which has none."""
    from onnx import NodeProto

    made = []
    for name, value in constants.items():
        require_free(draft, scope, name)
        tensor = make_tensor(name, value, folder=draft.folder, allow_outside=draft.allow_outside)
        draft.taken(scope).add(name)
        if scope.is_function:
            node = NodeProto(op_type="Constant", output=[name])
            node.attribute.add(name="value", type=4, t=tensor)
            made.append(node)
        else:
            scope.graph.initializer.append(tensor)
        draft.record("weight", path_in(scope, name), "added")
    return made


def path_in(scope: Scope, name: str) -> str:
    """Returns the path of what has a name in a graph, as ``If_3/then/x``."""
    return f"{scope.path}/{name}" if scope.path else name


def require_known(scope: Scope, names: Iterable[str], constants: Mapping[str, Any]) -> None:
    """Raises NotFoundError if what new nodes shall read is neither a tensor that the graph sees nor a constant."""
    for name in names:
        if name and name not in constants and home_of(scope, name) is None:
            hint = did_you_mean(name, [*constants, *scope.tensor_names()])
            raise NotFoundError(f"there is no tensor {name!r}", hint=hint)


def refuse_unread(constants: Mapping[str, Any], read_names: Iterable[str]) -> None:
    """Raises UsageError if a constant is given that nothing would read."""
    known = list(dict.fromkeys(read_names))
    for name in constants:
        if name not in known:
            said = f"What is read: {', '.join(known)}." if known else f"inputs: [_, {name}] reads it."
            raise UsageError(f"nothing reads the constant {name!r}", hint=did_you_mean(name, known) or said)
