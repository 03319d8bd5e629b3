"""What operations on single weights share: which these are, and nodes that make the old weight of the new one.

A weight is an initializer or what a Constant node makes: exporters use both, and bodies and functions too. Where its
type or layout changes, it is stored under another name, and a Cast or Transpose makes the old name of it. So readers,
the captures of bodies, graph outputs and quantization annotations stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.draft import Draft, distinct, require_dense
from onnxbench.errors import RefusedResultError, UnsupportedError
from onnxbench.graph import NodeRef, Scope, TensorRef, home_of
from onnxbench.operations._base import TensorOperation
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART, find_schema, ir_version_of_type, plain_domain
from onnxbench.tensortype import dtype_name, initializer_type, schema_word

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

STRING = 8
"""The element type of strings."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of a draft.

    Attributes:
        ref: Its name, in the graph that holds it.
        tensor: Its values. Those of a Constant with another attribute than ``value`` are a tensor made of it.
        node: Position of the Constant node that makes it; -1 for an initializer.
    """

    ref: TensorRef
    tensor: TensorProto
    node: int = -1


def weights_at(draft: Draft, selector: str) -> list[Weight]:
    """Returns the weights among the tensors that a selector stands for.

    Raises:
        NotFoundError: There is none.
        UnsupportedError: One of them is sparse.
    """
    refs = draft.tensors(selector)
    stored: dict[int, dict[str, TensorProto]] = {}
    found = []
    for ref in refs:
        scope = home_of(ref.scope, ref.name) or ref.scope
        position = scope.producers.get(ref.name)
        if position is not None:
            if is_constant(draft, scope.nodes[position]):
                tensor = constant_tensor(NodeRef(scope, position))
                found.append(Weight(TensorRef(scope, ref.name), tensor, position))
        elif ref.name in scope.constants:
            if id(scope) not in stored:
                stored[id(scope)] = {tensor.name: tensor for tensor in scope.graph.initializer}
            tensor = stored[id(scope)].get(ref.name) or require_dense(draft, ref)
            found.append(Weight(TensorRef(scope, ref.name), tensor))
    if not found:
        require_dense(draft, refs[0])
    return found


def is_constant(draft: Draft, node: NodeProto) -> bool:
    """Tells whether a node is a Constant of the standard."""
    return node.op_type == "Constant" and not plain_domain(node.domain) and draft.index.function_of(node) is None


def constant_tensor(ref: NodeRef) -> TensorProto:
    """Returns the tensor of a Constant node's ``value``, or one made of its other attribute (``value_ints``, ...).

    Raises:
        UnsupportedError: It is sparse, or takes its value from an attribute of the function around it.
    """
    from onnx import TensorProto

    if not ref.node.attribute:
        raise UnsupportedError(f"{ref.path} is a Constant without a value")
    attribute = ref.node.attribute[0]
    if attribute.ref_attr_name:
        raise UnsupportedError(
            f"{ref.path} takes its value from the attribute {attribute.ref_attr_name!r} of the function around it",
            hint="The calls of the function state it.",
        )
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    if attribute.name == "sparse_value":
        raise UnsupportedError(f"{ref.path} is a sparse Constant, and this operation changes dense weights")
    form = attribute.name.removeprefix("value_")
    values: list[Any] = {
        "float": [attribute.f], "floats": list(attribute.floats), "int": [attribute.i], "ints": list(attribute.ints),
        "string": [attribute.s], "strings": list(attribute.strings),
    }[form]  # fmt: skip
    dims = [len(values)] if form.endswith("s") else []
    if form.startswith("string"):
        return TensorProto(data_type=STRING, dims=dims, string_data=values)
    import numpy as np

    number, dtype = (1, np.float32) if form.startswith("float") else (7, np.int64)
    return TensorProto(data_type=number, dims=dims, raw_data=np.array(values, dtype).tobytes())


def own(weight: Weight) -> TensorProto:
    """Returns the tensor of a weight for changing: a Constant with another attribute gets it as its ``value``."""
    if weight.node < 0:
        return weight.tensor
    node = weight.ref.scope.nodes[weight.node]
    if node.attribute[0].name != "value":
        del node.attribute[:]
        attribute = node.attribute.add(name="value", type=4)
        attribute.t.CopyFrom(weight.tensor)
    tensor: TensorProto = node.attribute[0].t
    return tensor


def refuse_default(draft: Draft, ref: TensorRef, what: str) -> None:
    """Refuses to change the type of an initializer that is the default of an input.

    Before IR version 4 every initializer is an input too, and none is a default.
    """
    if ref.name in ref.scope.inputs and draft.model.proto.ir_version >= FIRST_IR_WITH_WEIGHTS_APART:
        raise RefusedResultError(
            f"{ref.path!r} is the default of an input, which callers may replace, so it cannot be {what}",
            hint="Remove the input first; the initializer then is a plain weight.",
        )


def require_constant_of(draft: Draft, scope: Scope, number: int) -> None:
    """Refuses an element type that a Constant node cannot have in the opset of a graph."""
    version = draft.opset(scope)
    schema = find_schema("", "Constant", version)
    if schema is not None and f"tensor({schema_word(number)})" not in schema.outputs[0].types:
        raise RefusedResultError(f"a Constant cannot be {dtype_name(number)} in opset {version}")


def readers_of(ref: TensorRef) -> Iterator[tuple[NodeRef, int]]:
    """Yields the nodes that read a tensor, in bodies too, with the number of the input."""
    pending = [ref.scope]
    while pending:
        scope = pending.pop()
        for position in scope.consumers.get(ref.name, ()):
            reader = NodeRef(scope, position)
            for slot, name in enumerate(reader.node.input):
                if name == ref.name:
                    yield reader, slot
            pending += [body for body in scope.bodies.get(position, ()) if ref.name in body.captures]


def retype_readers(draft: Draft, weight: Weight, *, strictly: bool = False) -> None:
    """Says that what is made of a weight may have other types now."""
    for reader, _ in readers_of(weight.ref):
        draft.retype(reader.scope, reader.scope.writes[reader.position], strictly=strictly)


@dataclass(slots=True)
class _Home:
    """What inserting nodes into one graph needs to know, made once."""

    scope: Scope
    inputs: dict[str, Any]
    values: dict[str, Any]
    labels: set[str]
    inserted: dict[int, list[NodeProto]] = field(default_factory=dict)


class Workshop:
    """Makes changes to many weights, and inserts the nodes that they need into each graph at once."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._homes: dict[int, _Home] = {}

    def home(self, scope: Scope) -> _Home:
        """Returns what is known of a graph."""
        if id(scope) not in self._homes:
            inputs = {} if scope.is_function else {info.name: info for info in scope.graph.input}
            values = {info.name: info for info in scope.graph.value_info}
            self._homes[id(scope)] = _Home(scope, inputs, values, {node.name for node in scope.nodes})
        return self._homes[id(scope)]

    def store_as(self, weight: Weight, name: str) -> None:
        """Gives the initializer, or the Constant's output, another name; its readers are left as they are."""
        scope = weight.ref.scope
        if weight.node >= 0:
            scope.nodes[weight.node].output[0] = name
            return
        weight.tensor.name = name
        info = self.home(scope).inputs.get(weight.ref.name)
        if info is not None:
            info.name = name
            info.type.CopyFrom(initializer_type(weight.tensor))

    def restate(self, weight: Weight) -> None:
        """Makes what the graph states of a weight true again, whose type or shape has changed."""
        home = self.home(weight.ref.scope)
        for stated in (home.inputs, home.values) if weight.node < 0 else (home.values,):
            if weight.ref.name in stated:
                stated[weight.ref.name].type.CopyFrom(initializer_type(own(weight)))

    def insert(self, weight: Weight, node: NodeProto, *, end: str) -> None:
        """Has a node inserted that makes something of a weight: behind its Constant, or before its first reader.

        Args:
            weight: The weight.
            node: The node, without a name.
            end: What its name ends with.
        """
        scope = weight.ref.scope
        if self.draft.index.function_of(node) is not None:
            raise UnsupportedError(f"this model has a function of its own called {node.op_type}, which would be called")
        if not self.draft.opset(scope):
            self.draft.import_domain(scope, "")
        home = self.home(scope)
        node.name = name = distinct(f"{weight.ref.name}_{end}", home.labels)
        readers = scope.consumers.get(weight.ref.name, ())
        position = weight.node + 1 if weight.node >= 0 else min(readers, default=len(scope.nodes))
        home.inserted.setdefault(position, []).append(node)
        where = f"{scope.path}/{name}" if scope.path else name
        self.draft.record("node", where, "inserted", after=node.op_type)

    def finish(self) -> None:
        """Inserts the nodes."""
        # Inner graphs first: to insert many nodes copies those of a graph, and the bodies in them with it.
        for home in sorted(self._homes.values(), key=lambda each: -each.scope.depth):
            if home.inserted:
                self.draft.splice(home.scope, home.inserted)
        self.draft.touch()


@dataclass(frozen=True)
class WeightOperation(TensorOperation):
    """An operation on weights: initializers, and what Constant nodes make.

    Attributes:
        at: Selector of the weights; other tensors that it stands for are passed over.
    """

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the weights."""
        return [weight.ref for weight in weights_at(draft, self.at)]


def raise_ir_version(draft: Draft, number: int) -> None:
    """Gives the model the IR version that an element type came with, if its own is an earlier one.

    Raises:
        RefusedResultError: Its initializers are inputs, and would not be any more.
    """
    proto, needed = draft.model.proto, ir_version_of_type(number)
    if proto.ir_version >= needed:
        return
    if proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART:
        raise RefusedResultError(
            f"{dtype_name(number)} needs IR version {needed}, and this model has {proto.ir_version}, in which "
            "initializers are inputs",
            hint="Raise the IR version first.",
        )
    draft.record("model", "", "IR version", before=str(proto.ir_version), after=str(needed))
    proto.ir_version = needed
