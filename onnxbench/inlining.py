"""Local functions replaced by their bodies, and where each inner tensor went.

onnx's inliner does the work. It leaves some things to be done around it: it forgets the default values that a
function gives to its attributes (a call that relies on one silently computes something else), so calls are
completed first; and it renames what it inlines without saying how, so nodes are tagged before and looked up after.
It also gives two names to a body's initializer that is the body's output: such a one is a Constant node on the way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from onnxbench.errors import UnsupportedError
from onnxbench.graph import node_bodies, sort_nodes
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.provenance import take_scope
from onnxbench.schemas import plain_domain, same_operator

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto, NodeProto

_TAG = "onnxbench.inlined_from"
_NAME_TAG = "onnxbench.inlined_name"
_WAS_INITIALIZER = "initializer"
_STAND_IN = "__onnxbench_inlined_"


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
    proto = copy_of(model.proto)
    sort_nodes(proto)  # the inliner renames as it goes, and loses its way where a tensor is read before it is made
    _give_defaults(proto)
    _adopt_opsets(proto)
    _make_constants_of_outputs(proto)
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
    _make_outputs_of_constants(inlined)
    for node in _nodes_below(inlined.graph.node):
        _take_tag(node)
    return model.derive(inlined), dict(moved)


def inline_calls(proto: ModelProto, calls: Iterable[NodeProto]) -> ModelProto:
    """Returns a model in which these calls are replaced by what their functions do; other calls stay.

    Functions that nothing calls any more are gone, unless nothing called them before.

    Args:
        proto: The model; it is changed on the way.
        calls: Nodes of it, each of which calls a local function. One within a function is replaced there.

    Raises:
        UnsupportedError: onnx's inliner does not take the model, or a function's operators are of another opset than
            those of the model.
    """
    from onnx import inliner

    _give_defaults(proto)
    _adopt_opsets(proto)
    _make_constants_of_outputs(proto)
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    before = _called(proto)
    stand_ins: list[tuple[str, str]] = []
    for node in calls:  # the inliner chooses by function: each call gets one of its own
        key = (node.domain, node.op_type, node.overload)
        clone = proto.functions.add()
        clone.CopyFrom(functions[key])
        clone.name = f"{node.op_type}{_STAND_IN}{len(stand_ins)}"
        clone.ClearField("overload")
        stand_ins.append((clone.domain, clone.name))
        for inner in (*clone.node, *_nodes_below(clone.node)):
            take_scope(inner, node)
            if inner.name:
                inner.metadata_props.add(key=_NAME_TAG, value=inner.name)
        node.op_type = clone.name
        node.ClearField("overload")
    try:
        done = inliner.inline_selected_functions(proto, stand_ins)
    except Exception as error:  # C++ errors of several types
        raise UnsupportedError(f"onnx cannot inline these calls: {error}") from None
    left = [f for f in done.functions if _STAND_IN in f.name]
    if left:
        name = left[0].name.partition(_STAND_IN)[0]
        raise UnsupportedError(
            f"onnx cannot inline calls of {left[0].domain}::{name}, which imports {_said(left[0])}; the model imports "
            f"{_said(proto)}",
            hint="Inline all functions at once (without a selector): then onnx converts their operators.",
        )
    _make_outputs_of_constants(done)
    _give_names_back(done)
    remove_uncalled(done, before)
    return done


def _give_names_back(proto: ModelProto) -> None:
    """Gives inlined nodes the names that they had, where these are free; the inliner numbers all of them."""
    for root in (proto.graph, *proto.functions):
        nodes = [*root.node, *_nodes_below(root.node)]
        taken = Counter(node.name for node in nodes)
        for node in nodes:
            name = _take_tag(node, _NAME_TAG)
            if name is not None and not taken[name]:
                taken[name] += 1
                node.name = name


def inline_everything(model: Model) -> ModelProto:
    """Returns a structure without local functions, level by level, so that nodes tell of the module that they are in.

    Where a function's operators are of another opset than the model's, onnx converts them, and numbers all names.

    Raises:
        UnsupportedError: As for ``inline_functions``.
    """
    proto = copy_of(model.proto)
    sort_nodes(proto)
    _adopt_opsets(proto)
    versions = {plain_domain(o.domain): o.version for o in proto.opset_import}
    imports = [o for function in proto.functions for o in function.opset_import]
    if any(versions.get(plain_domain(o.domain), o.version) != o.version for o in imports):
        return inline_functions(model)[0].proto
    for _ in range(len(proto.functions)):
        keys = {(f.domain, f.name, f.overload) for f in proto.functions}
        nodes = [*proto.graph.node, *_nodes_below(proto.graph.node)]
        calls = [node for node in nodes if (node.domain, node.op_type, node.overload) in keys]
        if not calls:
            break
        proto = inline_calls(proto, calls)
    del proto.functions[:]
    return proto


def remove_uncalled(proto: ModelProto, among: Collection[tuple[str, str, str]]) -> list[str]:
    """Removes those of these functions that nothing calls, over and over; returns their names."""
    removed: list[str] = []
    while True:
        called = _called(proto)
        gone = [
            at
            for at, f in enumerate(proto.functions)
            if (key := (f.domain, f.name, f.overload)) in among and key not in called
        ]
        if not gone:
            return removed
        for at in reversed(gone):
            removed.append(f"{proto.functions[at].domain}::{proto.functions[at].name}")
            del proto.functions[at]


def _called(proto: ModelProto) -> set[tuple[str, str, str]]:
    """Returns the functions that any node calls."""
    known = {(f.domain, f.name, f.overload) for f in proto.functions}
    roots = [proto.graph.node, *(function.node for function in proto.functions)]
    nodes = (node for root in roots for node in (*root, *_nodes_below(root)))
    return known.intersection((node.domain, node.op_type, node.overload) for node in nodes) if known else set()


def _said(holder: Any) -> str:
    return ", ".join(f"{plain_domain(o.domain) or 'ai.onnx'} {o.version}" for o in holder.opset_import)


def _make_constants_of_outputs(proto: ModelProto) -> None:
    """Makes Constant nodes of initializers that are outputs of bodies in functions."""
    for function in proto.functions:
        pending = [body for node in function.node for _, body in node_bodies(node)]
        while pending:
            body = pending.pop()
            pending += [inner for node in body.node for _, inner in node_bodies(node)]
            names = {info.name for info in body.output}
            for position in reversed(range(len(body.initializer))):
                if body.initializer[position].name in names:
                    node = body.node.add(op_type="Constant", output=[body.initializer[position].name])
                    node.metadata_props.add(key=_TAG, value=_WAS_INITIALIZER)
                    node.attribute.add(name="value", type=4).t.CopyFrom(body.initializer[position])
                    del body.initializer[position]
            if body.node and any(_is_marked(node) for node in body.node):
                ordered = [node for node in body.node if _is_marked(node)]
                ordered += [node for node in body.node if not _is_marked(node)]
                copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
                del body.node[:]
                body.node.extend(copies)


def _is_marked(node: NodeProto) -> bool:
    return any(entry.key == _TAG and entry.value == _WAS_INITIALIZER for entry in node.metadata_props)


def _make_outputs_of_constants(proto: ModelProto) -> None:
    """Makes initializers of what ``_make_constants_of_outputs`` made Constant nodes of."""
    roots = [proto.graph.node, *(function.node for function in proto.functions)]
    pending = [body for root in roots for node in root for _, body in node_bodies(node)]
    while pending:
        body = pending.pop()
        pending += [inner for node in body.node for _, inner in node_bodies(node)]
        for position in reversed(range(len(body.node))):
            node = body.node[position]
            if _is_marked(node):
                tensor = body.initializer.add()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
                del body.node[position]


def _adopt_opsets(proto: ModelProto) -> None:
    """Makes functions import the model's version of a domain where their operators are the same in both.

    The inliner takes no others as they are: it converts them, and their metadata is lost on the way.
    """
    versions = {plain_domain(opset.domain): opset.version for opset in proto.opset_import}
    for function in proto.functions:
        nodes = [*function.node, *_nodes_below(function.node)]
        for opset in function.opset_import:
            domain = plain_domain(opset.domain)
            version = versions.get(domain, opset.version)
            used = {node.op_type for node in nodes if plain_domain(node.domain) == domain}
            if version != opset.version and all(same_operator(domain, name, version, opset.version) for name in used):
                opset.version = version


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


def _take_tag(node: NodeProto, key: str = _TAG) -> str | None:
    for position, entry in enumerate(node.metadata_props):
        if entry.key == key:
            value: str = entry.value
            del node.metadata_props[position]
            return value
    return None
