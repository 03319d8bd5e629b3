"""Local functions replaced by their bodies, and where each inner tensor went.

onnx's inliner does the work. It leaves two things to be done around it: it forgets the default values that a
function gives to its attributes (a call that relies on one silently computes something else), so calls are
completed first; and it renames what it inlines without saying how, so nodes are tagged before and looked up after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxbench.errors import UnsupportedError
from onnxbench.graph import node_bodies, sort_nodes
from onnxbench.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto, NodeProto

_TAG = "onnxbench.inlined_from"


def inline_functions(model: Model) -> tuple[Model, dict[str, list[str]]]:
    """Returns a model without local functions, and the new names of what was inside them.

    Returns:
        The model (the given one if it has no functions), and for every tensor that a node of a function makes, by
        its path (``local::Block/x``), its names in the main graph: one per call, in graph order. Calls inside bodies
        are inlined there and are not listed.

    Raises:
        UnsupportedError: onnx's inliner does not take the model.
    """
    from onnx import inliner

    if not model.proto.functions:
        return model, {}
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    sort_nodes(proto)  # the inliner renames as it goes, and loses its way where a tensor is read before it is made
    _give_defaults(proto)
    _adopt_opsets(proto)
    made: dict[str, list[list[str]]] = {}
    for function in proto.functions:
        path = f"{function.domain}::{function.name}{f':{function.overload}' if function.overload else ''}"
        made[path] = [list(node.output) for node in function.node]
        for position, node in enumerate(function.node):
            node.metadata_props.add(key=_TAG, value=f"{position}|{path}")
    try:
        inlined = inliner.inline_local_functions(proto, convert_version=True)
    except Exception as error:  # C++ errors of several types
        raise UnsupportedError(f"onnx cannot inline the functions of this model: {error}") from None
    if inlined.functions:
        names = ", ".join(f"{function.domain}::{function.name}" for function in inlined.functions)
        raise UnsupportedError(f"onnx cannot inline the functions {names} of this model")
    moved: dict[str, list[str]] = defaultdict(list)
    for node in inlined.graph.node:
        tag = _take_tag(node)
        if tag is not None:
            at, _, path = tag.partition("|")
            for before, after in zip(made[path][int(at)], node.output, strict=False):
                if before and after:
                    moved[f"{path}/{before}"].append(after)
    for node in _nodes_below(inlined.graph.node):
        _take_tag(node)
    return model.derive(inlined), dict(moved)


def _adopt_opsets(proto: ModelProto) -> None:
    """Makes functions import the model's version of a domain where their operators are the same in both.

    The inliner takes no others as they are: it converts them, and their metadata is lost on the way.
    """
    versions = {_plain(opset.domain): opset.version for opset in proto.opset_import}
    for function in proto.functions:
        nodes = [*function.node, *_nodes_below(function.node)]
        for opset in function.opset_import:
            domain = _plain(opset.domain)
            version = versions.get(domain, opset.version)
            used = {node.op_type for node in nodes if _plain(node.domain) == domain}
            if version != opset.version and all(_same(name, domain, version, opset.version) for name in used):
                opset.version = version


def _same(name: str, domain: str, one: int, other: int) -> bool:
    from onnx import defs

    try:
        first, second = (defs.get_schema(name, max_inclusive_version=v, domain=domain) for v in (one, other))
    except (defs.SchemaError, TypeError):  # no such operator, or a version that is out of all range
        return False
    return bool(first.since_version == second.since_version)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _give_defaults(proto: ModelProto) -> None:
    """Writes a function's default attribute values into the calls that leave them out."""
    defaults = {(f.domain, f.name, f.overload): f.attribute_proto for f in proto.functions if f.attribute_proto}
    if not defaults:
        return
    roots = [proto.graph.node, *(function.node for function in proto.functions)]
    for root in roots:
        for node in (*root, *_nodes_below(root)):
            given = {attribute.name for attribute in node.attribute}
            for default in defaults.get((node.domain, node.op_type, node.overload), ()):
                if default.name not in given:
                    node.attribute.append(default)


def _nodes_below(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yields the nodes in the bodies of these nodes, at any depth."""
    pending = list(nodes)
    while pending:
        for _, body in node_bodies(pending.pop()):
            yield from body.node
            pending.extend(body.node)


def _take_tag(node: NodeProto) -> str | None:
    for position, entry in enumerate(node.metadata_props):
        if entry.key == _TAG:
            value: str = entry.value
            del node.metadata_props[position]
            return value
    return None
