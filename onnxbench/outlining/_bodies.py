"""What an instance does, with its names taken out, so that two of them can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.graph import GraphIndex, Scope
from onnxbench.messages import copy_of
from onnxbench.provenance import ModuleCall
from onnxbench.schemas import plain_domain

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto, TensorProto

    from onnxbench.draft import Draft

GRAPH, GRAPHS, TENSOR, SPARSE = 5, 10, 4, 11  # AttributeProto types
_PLAIN = (1, 2, 3, 6, 7, 8)  # those of numbers and strings


@dataclass(frozen=True, slots=True)
class Instance:
    """Nodes of one graph that become one call.

    Attributes:
        scope: The graph.
        positions: Their positions, ascending.
        label: What to call them in a sentence.
        module: The call of a PyTorch module that they are, or None.
    """

    scope: Scope
    positions: tuple[int, ...]
    label: str
    module: ModuleCall | None = None


@dataclass(slots=True)
class Body:
    """What an instance does: a copy of its nodes, and every place in it that says a name.

    Attributes:
        instance: The instance.
        nodes: Positions of the nodes that it is made of.
        function: The copy.
        made: Names that its own nodes make, in order.
        slots: Places that read a tensor from outside: the message, the position in its inputs (-1: a body's output),
            and the name.
        reads: Places that read what it makes itself, likewise, with the number in ``made``.
        used: Numbers of what is read outside.
        skeleton: Digest of what it does, values of its own Constant nodes left out.
        plain: Attributes left out of it too, serialized, by the node's position among ``nodes`` and their name.
        constants: Digests of these values, by the node's position among ``nodes``.
        parts: Each node's operator, attributes and inputs, to tell differences.
        stated: Types that are stated of tensors, by a number that means the same in all bodies of that skeleton.
        references: Attributes of the function around the instance that it refers to, with their types.
        domains: Domains of its operators, those in bodies included.
        graphs: The bodies in it.
    """

    instance: Instance
    nodes: list[int]
    function: FunctionProto
    made: list[str] = field(default_factory=list)
    slots: list[tuple[Any, int, str]] = field(default_factory=list)
    reads: list[tuple[Any, int, int]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    skeleton: bytes = b""
    plain: dict[tuple[int, str], bytes] = field(default_factory=dict)
    constants: dict[int, bytes] = field(default_factory=dict)
    parts: list[tuple[str, Any, list[str]]] = field(default_factory=list)
    stated: dict[int, bytes] = field(default_factory=dict)
    references: dict[str, int] = field(default_factory=dict)
    domains: dict[str, None] = field(default_factory=dict)
    graphs: list[Any] = field(default_factory=list)
    _infos: list[tuple[Any, int, int]] = field(default_factory=list)

    def drop_types(self, kept: Collection[int]) -> None:
        """Removes what bodies state of the types of tensors, but for these numbers."""
        for infos, position, number in reversed(self._infos):
            if number not in kept:
                del infos[position]


def read_body(
    draft: Draft, instance: Instance, nodes: list[int], outer_types: dict[str, Any], parameters: bool
) -> Body:
    """Returns what nodes of an instance do, comparable with what those of others do by its skeleton.

    Args:
        draft: The model, which says the opsets.
        instance: The instance.
        nodes: Positions of the nodes, ascending.
        outer_types: Types of tensors of the graph around, by name.
        parameters: Whether numbers and strings in attributes of its own nodes are left out of the skeleton.
    """
    import onnx

    holder = onnx.ModelProto()
    function = holder.functions.add()
    function.node.extend(instance.scope.nodes[position] for position in nodes)
    index = GraphIndex(holder)
    top = index.functions["", "", ""]
    body = Body(instance, nodes, function)
    numbers: dict[tuple[int, str], int] = {}
    tree = [scope for scope in index.scopes if scope is not index.main]
    for scope in tree:
        names = scope.tensor_names() if scope is not top else (name for names in scope.writes for name in names)
        for name in names:
            numbers.setdefault((id(scope), name), len(numbers))
        if scope is top:
            body.made = [name for names in scope.writes for name in names]
    digest = hashlib.sha256()
    for scope in tree:
        _digest_graph(body, scope, top, numbers, digest, parameters)
    for name in body.made:
        if name in outer_types:
            body.stated[numbers[id(top), name]] = outer_types[name].SerializeToString(deterministic=True)
    for domain in sorted(map(plain_domain, body.domains)):
        digest.update(repr((domain, draft.opset(instance.scope, domain))).encode())
    members, around = set(nodes), instance.scope
    outputs = set(around.outputs)
    body.used = {
        number
        for number, name in enumerate(body.made)
        if name in outputs or any(user not in members for user in around.consumers.get(name, ()))
    }
    body.skeleton = digest.digest()
    return body


def _digest_graph(
    body: Body, scope: Scope, top: Scope, numbers: dict[tuple[int, str], int], digest: Any, parameters: bool
) -> None:
    def place(message: Any, at: int, name: str) -> str:
        if not name:
            return ""
        around: Scope | None = scope
        while around is not None and (id(around), name) not in numbers:
            around = around.parent
        if around is None:
            body.slots.append((message, at, name))
            return "outside"
        number = numbers[id(around), name]
        if around is top:
            body.reads.append((message, at, number))
        return str(number)

    said: list[Any] = [scope.owner, scope.body_name, scope.depth]
    graph = scope.graph
    if scope is not top:
        body.graphs.append(graph)
        said += [(numbers[id(scope), info.name], info.type.SerializeToString(deterministic=True))
                 for info in graph.input]  # fmt: skip
        for tensor in graph.initializer:
            said.append((numbers[id(scope), tensor.name], tensor_digest(tensor)))
        for sparse in graph.sparse_initializer:
            said.append((numbers[id(scope), sparse.values.name], sparse.SerializeToString(deterministic=True)))
        for position, info in enumerate(graph.value_info):
            number = numbers.get((id(scope), info.name), -1)
            body._infos.append((graph.value_info, position, number))
            body.stated[number] = info.type.SerializeToString(deterministic=True)
    for position, node in enumerate(scope.nodes):
        bare = copy_of(node)
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                body.references[attribute.ref_attr_name] = attribute.type
        for message in ("name", "doc_string", "metadata_props", "input", "output", "attribute"):
            bare.ClearField(message)
        body.domains[node.domain] = None
        inputs = [place(node, at, name) for at, name in enumerate(node.input)]
        outputs = [str(numbers[id(scope), name]) if name else "" for name in node.output]
        attributes: Any = sorted(attribute_digest(attribute) for attribute in node.attribute)
        if scope is top:
            if is_constant(node):
                body.constants[position] = repr(attributes).encode()
                attributes = [(each[0], each[1]) for each in attributes]
            elif parameters:
                free = {each.name for each in node.attribute if each.type in _PLAIN and not each.ref_attr_name}
                body.plain.update(((position, each[0]), each[2]) for each in attributes if each[0] in free)
                attributes = [each[:2] if each[0] in free else each for each in attributes]
            body.parts.append((node.op_type, attributes, inputs))
        said.append((bare.SerializeToString(deterministic=True), inputs, outputs, attributes))
    if scope is not top:
        said += [(place(info, -1, info.name), info.type.SerializeToString(deterministic=True))
                 for info in graph.output]  # fmt: skip
    digest.update(repr(said).encode())


def is_constant(node: NodeProto) -> bool:
    """Tells whether a node is a Constant whose value stands in it, and is not the caller's."""
    return (
        node.op_type == "Constant"
        and plain_domain(node.domain) == ""
        and not any(attribute.ref_attr_name for attribute in node.attribute)
    )


def attribute_digest(attribute: Any) -> tuple[str, Any, bytes]:
    """Returns name, kind and content of an attribute; bodies are digested as graphs of their own."""
    kind: Any = attribute.type
    if attribute.type in (GRAPH, GRAPHS):
        return attribute.name, (kind, len(attribute.graphs)), b""
    if attribute.type == TENSOR:
        return attribute.name, (kind, attribute.t.data_type), tensor_digest(attribute.t)
    copy = copy_of(attribute)
    copy.ClearField("doc_string")
    return attribute.name, kind, copy.SerializeToString(deterministic=True)


def tensor_digest(tensor: TensorProto) -> bytes:
    """Returns the sha256 of a tensor's type, shape and values, or of where these lie; its name does not count."""
    copy = copy_of(tensor)
    copy.ClearField("name")
    copy.ClearField("doc_string")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).digest()


def say(message: Any, position: int, name: str) -> None:
    """Writes a name into a place that says one."""
    if position < 0:
        message.name = name
    else:
        message.input[position] = name


def names_in_bodies(function: FunctionProto) -> set[str]:
    """Returns every tensor name that stands in the bodies of a function's nodes."""
    import onnx

    holder = onnx.ModelProto()
    holder.functions.append(function)
    names: set[str] = set()
    for scope in GraphIndex(holder).scopes:
        if scope.parent is not None:
            names.update(scope.inputs, scope.constants, scope.producers)
    return names


def within(scope: Scope) -> str:
    """Returns `` (in If_3/then)`` for a body or function, and nothing for the main graph."""
    return f" (in {scope.path})" if scope.path else ""
