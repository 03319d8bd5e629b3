"""If nodes whose condition is constant, replaced by the branch that is taken.

Exporters write both branches of what was decided when the model was made: a sample rate, a training flag, a shape
check. Inference then knows little of what comes behind (the branches may differ in rank), and compilers refuse the
If. Where the condition is an initializer or a Constant, the nodes of one branch take the place of the If: what they
made gets the If's names, the rest keeps its own unless another graph around has them, and the other branch is gone.

Innermost graphs come first, and each graph is rewritten once, so the time is linear in the size of the model for each
graph that has such nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.draft import Draft
from onnxbench.graph import NodeRef, Scope, home_of, root_of, tree_of
from onnxbench.messages import copy_of
from onnxbench.schemas import plain_domain

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto


def taken_branch(draft: Draft, ref: NodeRef) -> bool | None:
    """Returns whether an If takes its then branch; None if its condition is not constant, or it is no If."""
    node = ref.node
    if node.op_type != "If" or plain_domain(node.domain) or not node.input:
        return None
    tensor = constant_of(draft, ref.scope, node.input[0])
    if tensor is None:
        return None
    value = draft.model.array(tensor)
    return bool(value.reshape(-1)[0]) if value.size == 1 else None


def take_branches(draft: Draft, refs: Sequence[NodeRef]) -> int:
    """Replaces If nodes by the branch that they always take, and returns how many; others are left alone."""
    wanted: dict[str, dict[int, bool]] = {}
    for ref in refs:
        value = taken_branch(draft, ref)
        if value is not None and _can_lift(ref, value):
            wanted.setdefault(ref.scope.path, {})[ref.position] = value
    for path in sorted(wanted, key=lambda each: -draft.index.scope_paths[each].depth):
        _take(draft, draft.index.scope_paths[path], wanted[path])
    return sum(map(len, wanted.values()))


def constant_of(draft: Draft, scope: Scope, name: str) -> TensorProto | None:
    """Returns the tensor that a name always stands for: of an initializer or a Constant node; None if it varies."""
    home = home_of(scope, name)
    if home is None:
        return None
    if home.is_function or name not in home.constants:
        position = home.producers.get(name)
        node = home.nodes[position] if position is not None else None
        if node is None or node.op_type != "Constant" or plain_domain(node.domain):
            return None
        return next((a.t for a in node.attribute if a.name == "value" and not a.ref_attr_name), None)
    if name in home.inputs:
        return None
    return next((tensor for tensor in home.graph.initializer if tensor.name == name), None)


def _bodies(ref: NodeRef) -> dict[bool, Scope]:
    """Returns the branches of an If, by the condition that leads to them."""
    named = {a.name: a.g for a in ref.node.attribute if a.HasField("g")}
    return {
        name == "then_branch": body
        for name, graph in named.items()
        for body in ref.scope.bodies.get(ref.position, ())
        if body.graph is graph
    }


def _can_lift(ref: NodeRef, value: bool) -> bool:
    """Tells whether the branch's weights have a place: a function has no initializers, and nodes no outside data."""
    body = _bodies(ref).get(value)
    if body is None:
        return False
    return not ref.scope.is_function or not any(map(weights.is_outside, body.graph.initializer))


def _take(draft: Draft, scope: Scope, wanted: dict[int, bool]) -> None:
    """Does so for the If nodes of one graph."""
    defined: Counter[str] = Counter()
    for inner in tree_of(root_of(scope)):
        defined.update(_own_names(inner))
    node_names = {node.name for position, node in enumerate(scope.nodes) if position not in wanted}
    inserted: dict[int, list[NodeProto]] = {}
    made: list[str] = []
    for position, value in sorted(wanted.items()):
        ref = NodeRef(scope, position)
        bodies = _bodies(ref)
        for body in bodies.values():
            for inner in tree_of(body):
                defined.subtract(_own_names(inner))
        defined.subtract(scope.writes[position])
        draft.record(
            "node",
            ref.path,
            "replaced",
            before="If",
            after=f"its {'then' if value else 'else'} branch, which is always taken",
        )
        inserted[position] = _lifted(draft, ref, bodies[value], defined, node_names)
        made += scope.writes[position]
    draft.splice(scope, inserted, removed=wanted.keys())
    draft.retype(draft.index.scope_paths[scope.path], made, same_rank=True)


def _own_names(scope: Scope) -> set[str]:
    return {name for name in (*scope.inputs, *scope.constants, *scope.producers) if name}


def _lifted(draft: Draft, ref: NodeRef, body: Scope, defined: Counter[str], node_names: set[str]) -> list[NodeProto]:
    """Returns the nodes of a branch under the names that they have outside; its weights and types move over."""
    from onnx import NodeProto

    outputs = [(outer, info.name) for outer, info in zip(ref.node.output, body.graph.output, strict=False) if outer]
    names: dict[str, str] = {}
    copied: list[tuple[str, str]] = []
    for outer, inner in outputs:
        if inner in body.producers and inner not in names:
            names[inner] = outer
        else:
            copied.append((outer, inner))
    inside = Counter(name for inner in tree_of(body) for name in _own_names(inner))
    outside = {outer for outer, _ in outputs}
    defined.update(outside)
    for name in sorted(_own_names(body) - names.keys()):
        if defined[name] > 0:
            names[name] = _free(name, lambda each: defined[each] > 0 or each in inside)
    defined.update({name: count for name, count in inside.items() if name not in names})
    defined.update(new for new in names.values() if new not in outside)
    del body.graph.output[:]
    draft.rename(body, names)
    for node in body.graph.node:
        if node.name in node_names:
            node.name = node.name and _free(node.name, node_names.__contains__)
        node_names.add(node.name)
    nodes = _moved_weights(ref.scope, body)
    nodes += [copy_of(node) for node in body.graph.node]
    for outer, inner in copied:
        nodes.append(NodeProto(op_type="Identity", input=[names.get(inner, inner)], output=[outer]))
    graph = ref.scope.graph
    stated = {info.name for info in graph.value_info} | outside
    graph.value_info.extend(info for info in body.graph.value_info if info.name not in stated)
    return nodes


def _free(base: str, is_taken: Callable[[str], bool]) -> str:
    """Returns ``base_1``, or the next such name that is not taken."""
    number = 1
    while is_taken(f"{base}_{number}"):
        number += 1
    return f"{base}_{number}"


def _moved_weights(scope: Scope, body: Scope) -> list[NodeProto]:
    """Moves the weights of a branch into the graph around it, or returns them as Constant nodes for a function."""
    from onnx import NodeProto

    graph = body.graph
    if not scope.is_function:
        scope.graph.initializer.extend(graph.initializer)
        scope.graph.sparse_initializer.extend(graph.sparse_initializer)
        scope.graph.quantization_annotation.extend(graph.quantization_annotation)
        return []
    nodes = []
    for tensor in graph.initializer:
        node = NodeProto(op_type="Constant", output=[tensor.name])
        node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
        nodes.append(node)
    for sparse in graph.sparse_initializer:
        node = NodeProto(op_type="Constant", output=[sparse.values.name])
        node.attribute.add(name="sparse_value", type=11).sparse_tensor.CopyFrom(sparse)
        nodes.append(node)
    return nodes
