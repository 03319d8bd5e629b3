"""The onnx checker and strict type inference, asked so that they say everything and say where.

``onnx.checker.check_model`` stops at its first complaint and names a node by its name alone, which may be empty or
shared. So every node is checked by itself (0.1 s for 100,000 of them), its bodies and tensors taken out: they have
checks of their own.

Type inference tells all shape errors at once but stops at the first error of types, and again names nodes only. It
is therefore run on a probe: a copy in which every node is named by its place, nodes are sorted, nodes that the checker
refuses are left out, and value infos that contradict the operators are corrected (they are reported, and would
otherwise put the blame on nodes after them). A node with a type error is left out in its turn, its outputs taken for
inputs, and the rest is looked at again, a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import ModelError
from onnxbench.graph import GraphIndex, Scope, node_bodies, root_of, topological_order
from onnxbench.inference import has_long_vector, without_made_up_dims
from onnxbench.lint.data import is_element_type, is_sound
from onnxbench.messages import copy_of
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import (
    agree,
    initializer_type,
    is_complete,
    make_type,
    make_value_info,
)

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

NodeKey = tuple[int, int]
"""A node: the number of its graph in ``GraphIndex.scopes``, and its position there."""

_GRAPH, _GRAPHS, _TENSOR, _TENSORS, _SPARSE, _SPARSES = 5, 10, 4, 9, 11, 12
_TOKEN = re.compile(r"@(\d+):(\d+)@")
_AT_NODE = re.compile(r"\(op_type:[^,()]*, node name: @(\d+):(\d+)@\): ")
_KIND = re.compile(r"^\[(?:Shape|Type)InferenceError\] ")
# What follows from an unknown type, which is reported where it arises.
_CONSEQUENCE = re.compile(r"expected to have type but instead is null|Element type of input \d+ unknown")
_ABOUT_TYPES = re.compile(r"TypeInferenceError|inconsistent type|unsupported type|element type|elem type")


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something that inference has against a node."""

    at: NodeKey
    text: str
    about_types: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """A stated type that contradicts what the operators make.

    Attributes:
        scope: Number of the graph.
        name: The tensor.
        stated: What the file says.
        known: What inference says.
        is_output: Whether it is an output of the graph, and not a value info.
    """

    scope: int
    name: str
    stated: TypeProto
    known: TypeProto
    is_output: bool


@dataclass(slots=True)
class StrictInference:
    """What inference says about a model.

    Attributes:
        types: By the path of a graph, the types of its tensors.
        complaints: What it has against nodes.
        conflicts: Stated types that it contradicts.
        stopped: Why it did not come to an end, or None.
    """

    types: dict[str, dict[str, TypeProto]] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    stopped: str | None = None


def check_nodes(proto: ModelProto, index: GraphIndex) -> dict[NodeKey, str]:
    """Returns what the onnx checker has against single nodes, by node."""
    from onnx import checker

    complaints: dict[NodeKey, str] = {}
    contexts: dict[int, Any] = {}
    lexical = checker.LEXICAL_SCOPE_CONTEXT
    check_node, error = checker.C.check_node, checker.ValidationError
    for number, scope in enumerate(index.scopes):
        root = root_of(scope)
        context = contexts.get(id(root))
        if context is None:
            context = contexts[id(root)] = _checker_context(proto, root)
        for position, node in enumerate(scope.nodes):
            if index.functions and node.domain in _ONNX_DOMAINS and index.function_of(node) is not None:
                continue  # the checker would look for a standard operator of that name
            if node.domain == "ai.onnx" or any(attribute.type in _HOLDERS for attribute in node.attribute):
                node = _hollow(node)
            try:
                check_node(node.SerializeToString(), context, lexical)
            except error as complaint:
                complaints[number, position] = str(complaint).strip().splitlines()[0]
    return complaints


_ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"})
_HOLDERS = frozenset({_GRAPH, _GRAPHS, _TENSOR, _TENSORS, _SPARSE, _SPARSES})


def _checker_context(proto: ModelProto, root: Scope) -> Any:
    from onnx import IR_VERSION, checker

    versions: dict[str, int] = {}
    for opset in getattr(root.graph, "opset_import", proto.opset_import):
        versions[plain_domain(opset.domain)] = opset.version
    context = checker.C.CheckerContext()
    context.ir_version = min(proto.ir_version, IR_VERSION) or IR_VERSION
    most = (1 << 31) - 1  # the checker takes no more; no opset has such a version
    context.opset_imports = {domain: max(-most, min(version, most)) for domain, version in versions.items()}
    return context


def _hollow(node: NodeProto) -> NodeProto:
    """Returns a copy of a node whose tensors are empty and whose bodies have a name and nothing else."""
    from onnx import GraphProto, SparseTensorProto, TensorProto

    copy = type(node)(name=node.name, op_type=node.op_type, domain=plain_domain(node.domain))
    copy.input.extend(node.input)
    copy.output.extend(node.output)
    empty = TensorProto(data_type=1, dims=[0])
    sparse = SparseTensorProto(values=empty, indices=TensorProto(data_type=7, dims=[0]), dims=[1])
    for attribute in node.attribute:
        if attribute.type not in _HOLDERS:
            copy.attribute.add().CopyFrom(attribute)
            continue
        added = copy.attribute.add(name=attribute.name, type=attribute.type, ref_attr_name=attribute.ref_attr_name)
        if attribute.HasField("g"):
            added.g.name = "body"
        if attribute.HasField("t"):
            added.t.CopyFrom(empty)
        if attribute.HasField("sparse_tensor"):
            added.sparse_tensor.CopyFrom(sparse)
        added.graphs.extend(GraphProto(name="body") for _ in attribute.graphs)
        added.tensors.extend(empty for _ in attribute.tensors)
        added.sparse_tensors.extend(sparse for _ in attribute.sparse_tensors)
        for scalar in ("f", "i", "s"):
            if attribute.HasField(scalar):
                setattr(added, scalar, getattr(attribute, scalar))
    return copy


def infer_strictly(proto: ModelProto, index: GraphIndex, refused: frozenset[NodeKey]) -> StrictInference:
    """Returns what strict type inference says about a model, every complaint at its node.

    Args:
        proto: The model, with the small weights in it that inference needs.
        index: Its index.
        refused: Nodes that the checker refuses; they are not looked at.
    """
    found = StrictInference()
    if makes_twice(index):
        found.stopped = "a tensor is made twice, so its type is not known"
        return found
    probe = _probe(proto, index, refused)
    error = _strict_error(probe)
    if error is not None:
        found.conflicts = _correct_conflicts(probe, index)
        seen: set[Complaint] = set()
        # Each round costs one inference; few nodes are wrong, and one round is enough for all errors of shape.
        for _ in range(1 + min(24, 400_000 // (1 + sum(len(scope.nodes) for scope in index.scopes)))):
            error = _strict_error(probe)
            if error is None:
                break
            blamed = _complaints(error, index)
            seen.update(complaint for complaint in blamed if complaint.at not in refused)
            if "Inference error(s):" in error:
                break
            keys = {complaint.at for complaint in blamed if complaint.at[0] == 0}
            if not keys:
                found.stopped = f"type inference stopped: {_first_line(error)}"
                break
            _leave_out(probe, keys)
        else:
            found.stopped = "there are more errors of types than are looked for at once; mend these first"
        found.complaints = [complaint for complaint in seen if not _CONSEQUENCE.search(complaint.text)]
    found.complaints.sort(key=lambda complaint: (complaint.at, complaint.text))
    found.types = _types(probe if error is None else _loosely_inferred(probe, data_prop=False), probe, index)
    return found


def makes_twice(index: GraphIndex) -> bool:
    """Tells whether some graph makes a tensor twice, so that who makes it is not known."""
    return any(
        len(scope.producers) != sum(map(len, scope.writes))
        or not scope.producers.keys().isdisjoint(scope.inputs)
        or not scope.producers.keys().isdisjoint(scope.constants)
        for scope in index.scopes
    )


def _probe(proto: ModelProto, index: GraphIndex, refused: frozenset[NodeKey]) -> ModelProto:
    """Returns a copy to run inference on (see the head of this module)."""
    probe = copy_of(proto)
    for tensor in weights.tensors(probe):
        if weights.is_outside(tensor):
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="elsewhere")
    graphs = _twins(probe, index, by_name=False)
    for number, graph in enumerate(graphs):
        for position, node in enumerate(graph.node):
            node.name = f"@{number}:{position}@"
            if node.domain == "ai.onnx":
                node.domain = ""
        if hasattr(graph, "initializer"):
            _settle_inputs(graph)
    _drop_unsound(probe.graph)
    _complete_imports(probe, graphs, index)
    if probe.graph.sparse_initializer:
        for sparse in probe.graph.sparse_initializer:
            kind = make_type(sparse.values.data_type, tuple(sparse.dims))
            probe.graph.input.append(make_value_info(sparse.values.name, kind))
        del probe.graph.sparse_initializer[:]
    for scope, graph in zip(reversed(index.scopes), reversed(graphs), strict=True):
        _sort(scope, graph)  # inner before outer: sorting a graph copies the bodies of its nodes
    _leave_out(probe, {key for key in refused if key[0] == 0})
    return probe


def _settle_inputs(graph: GraphProto) -> None:
    """Takes back what cannot be: element types that do not exist, sizes below zero, types that initializers deny."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.WhichOneof("value") == "tensor_type":
            if info.type.tensor_type.elem_type and not is_element_type(info.type.tensor_type.elem_type):
                info.ClearField("type")
                continue
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("value")
    if graph.initializer and graph.input:
        inputs = {info.name: info for info in graph.input}
        for position in range(len(graph.initializer) - 1, -1, -1):
            tensor = graph.initializer[position]
            given = inputs.get(tensor.name)
            if given is not None and not agree(given.type, initializer_type(tensor)):
                given.ClearField("type")
                del graph.initializer[position]


def _drop_unsound(graph: GraphProto) -> None:
    """Makes inputs of unknown type of constants whose type or shape cannot be right, so that no node is blamed."""
    known = {info.name for info in graph.input}
    for position in range(len(graph.initializer) - 1, -1, -1):
        tensor = graph.initializer[position]
        if not _has_possible_type(tensor):
            if tensor.name not in known:
                graph.input.add(name=tensor.name)
            del graph.initializer[position]
    for position in range(len(graph.node) - 1, -1, -1):
        node = graph.node[position]
        if node.op_type == "Constant" and any(
            a.type == _TENSOR and not _has_possible_type(a.t) for a in node.attribute
        ):
            for name in filter(None, node.output):
                graph.input.add(name=name)
            del graph.node[position]


def _has_possible_type(tensor: TensorProto) -> bool:
    if not weights.is_outside(tensor):
        return is_sound(tensor)
    return is_element_type(tensor.data_type) and all(dim >= 0 for dim in tensor.dims)


def _complete_imports(probe: ModelProto, graphs: list[Any], index: GraphIndex) -> None:
    """Imports domains that nodes use and nobody imports: inference would stop at the first such node."""
    roots: dict[int, tuple[Any, set[str]]] = {}
    for scope, graph in zip(index.scopes, graphs, strict=True):
        root = root_of(scope)
        holder = graph if root is scope and root.is_function else probe
        _, used = roots.setdefault(id(root), (holder, set()))
        used.update(node.domain for node in graph.node)
    for holder, used in roots.values():
        known = {plain_domain(opset.domain) for opset in holder.opset_import}
        for domain in sorted(used - known):
            holder.opset_import.add(domain=domain, version=1)


def _sort(scope: Scope, graph: GraphProto | FunctionProto) -> None:
    try:
        order = topological_order(scope)
    except ModelError:  # a cycle: its nodes stay as they are, and their types unknown
        return
    if order is not None:
        nodes = [type(graph.node[position])() for position in order]
        for copy, position in zip(nodes, order, strict=True):
            copy.CopyFrom(graph.node[position])
        del graph.node[:]
        graph.node.extend(nodes)


def _leave_out(probe: ModelProto, keys: set[NodeKey]) -> None:
    """Removes nodes of the main graph; what they make becomes an input of whatever type is stated for it."""
    if not keys:
        return
    graph = probe.graph
    names = {f"@{scope}:{position}@" for scope, position in keys}
    stated = {info.name: info for info in (*graph.value_info, *graph.output) if is_complete(info.type)}
    kept = type(graph)()
    for node in graph.node:
        if node.name not in names:
            kept.node.append(node)
            continue
        for name in filter(None, node.output):
            added = graph.input.add(name=name)
            if name in stated:
                added.type.CopyFrom(stated[name].type)
    del graph.node[:]
    graph.node.extend(kept.node)


def _twins(proto: ModelProto, index: GraphIndex, *, by_name: bool) -> list[Any]:
    """Returns the graphs of a copy of the indexed model, in the order of ``index.scopes``.

    Args:
        proto: The copy.
        index: The index of the original.
        by_name: Find the owners of bodies by the names that ``_probe`` gives them, since nodes were moved.

    Graphs of bodies whose owner is gone are empty ones.
    """
    functions = iter(proto.functions)
    graphs: list[Any] = []
    numbers = {id(scope): number for number, scope in enumerate(index.scopes)}
    named: dict[int, dict[str, NodeProto]] = {}
    for scope in index.scopes:
        if scope is index.main:
            graphs.append(proto.graph)
        elif scope.parent is None:
            graphs.append(next(functions))
        else:
            outer = numbers[id(scope.parent)]
            if by_name:
                if outer not in named:
                    named[outer] = {node.name: node for node in graphs[outer].node}
                owner = named[outer].get(f"@{outer}:{scope.owner}@")
            else:
                owner = graphs[outer].node[scope.owner]
            at = scope.parent.bodies[scope.owner].index(scope)
            graphs.append(node_bodies(owner)[at][1] if owner is not None else type(proto.graph)())
    return graphs


def _strict_error(probe: ModelProto) -> str | None:
    """Runs strict inference and returns what it raises; on success the probe takes on the types it found."""
    from onnx import shape_inference

    try:
        result = shape_inference.infer_shapes(probe, check_type=True, strict_mode=True, data_prop=False)
    except Exception as error:  # InferenceError, ValidationError, ValueError and RuntimeError from C++ alike
        return str(error)
    probe.CopyFrom(result)
    return None


def _loosely_inferred(probe: ModelProto, *, data_prop: bool) -> ModelProto:
    from onnx import shape_inference

    try:
        return shape_inference.infer_shapes(probe, data_prop=data_prop and not has_long_vector(probe))
    except Exception:  # as above; what is not known then stays unknown
        return probe


def _complaints(error: str, index: GraphIndex) -> list[Complaint]:
    """Returns the complaints in the text of an inference error, each at the innermost node it names."""
    found = []
    for line in error.splitlines():
        places = list(_AT_NODE.finditer(line))
        if not places:
            continue
        last = places[-1]
        text = line[last.end() :].strip()
        text = _TOKEN.sub(lambda match: index.scopes[int(match[1])].label(int(match[2])), text)
        about_types = bool(_ABOUT_TYPES.search(text))
        found.append(Complaint((int(last[1]), int(last[2])), _KIND.sub("", text), about_types))
    return list(dict.fromkeys(found))


def _first_line(error: str) -> str:
    return _KIND.sub("", error.strip().splitlines()[0])


def _correct_conflicts(probe: ModelProto, index: GraphIndex) -> list[Conflict]:
    """Corrects stated types that contradict inference without them, in place, and returns them."""
    bare = copy_of(probe)
    for graph in _twins(bare, index, by_name=True):
        del graph.value_info[:]
        if hasattr(graph, "initializer"):
            for output in graph.output:
                output.ClearField("type")
    made = _twins(_loosely_inferred(bare, data_prop=False), index, by_name=True)
    conflicts = []
    for number, graph in enumerate(_twins(probe, index, by_name=True)):
        known = {info.name: info.type for info in made[number].value_info}
        outputs: list[ValueInfoProto] = []
        if hasattr(graph, "initializer"):
            known.update((info.name, info.type) for info in (*made[number].output, *made[number].input))
            known.update((tensor.name, initializer_type(tensor)) for tensor in graph.initializer)
            outputs = list(graph.output)
        for is_output, infos in ((False, graph.value_info), (True, outputs)):
            for info in infos:
                found = known.get(info.name)
                if found is None or not is_complete(found) or agree(info.type, found):
                    continue
                stated = copy_of(info.type)
                right = copy_of(without_made_up_dims(found))
                conflicts.append(Conflict(number, info.name, stated, right, is_output))
                info.type.CopyFrom(right)
    return conflicts


def _types(typed: ModelProto, probe: ModelProto, index: GraphIndex) -> dict[str, dict[str, TypeProto]]:
    """Returns the types of all tensors of all graphs as far as inference finds them.

    Propagating the values of shape tensors finds more ranks, but in bodies it finds less (onnx 1.23 takes a body
    that is inferred twice for an error), so both ways are asked.
    """
    types = {
        scope.path: dict(_stated(graph))
        for scope, graph in zip(index.scopes, _twins(typed, index, by_name=True), strict=True)
    }
    produced = sum(len(scope.producers) for scope in index.scopes if not scope.is_function)
    if sum(1 for known in types.values() for kind in known.values() if is_ranked(kind)) < produced:
        further = _loosely_inferred(probe, data_prop=True)
        for scope, graph in zip(index.scopes, _twins(further, index, by_name=True), strict=True):
            known = types[scope.path]
            for name, kind in _stated(graph):
                if is_ranked(kind) and not is_ranked(known.get(name)):
                    known[name] = kind
    return types


def _stated(graph: GraphProto | FunctionProto) -> Iterator[tuple[str, TypeProto]]:
    for info in graph.value_info:
        yield info.name, info.type
    if hasattr(graph, "initializer"):
        for info in (*graph.input, *graph.output):
            if info.HasField("type"):
                yield info.name, info.type
        for tensor in graph.initializer:
            yield tensor.name, initializer_type(tensor)


def is_ranked(value: TypeProto | None) -> bool:
    """Tells whether a type is complete and, for a tensor, has a rank."""
    if value is None:
        return False
    tensor = value.tensor_type
    if tensor.elem_type:
        return bool(tensor.HasField("shape"))
    return value.WhichOneof("value") != "tensor_type" and is_complete(value)
