"""Operations that make initializers Constant nodes, and Constant nodes initializers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxbench.draft import Draft, require_dense
from onnxbench.errors import NotFoundError, RefusedResultError, UnsupportedError
from onnxbench.graph import NodeRef, Scope, TensorRef, home_of, root_of
from onnxbench.messages import as_text, delete_named
from onnxbench.operations._base import NodeOperation, TensorOperation, describe_tensor
from onnxbench.operations._weights import (
    Weight,
    Workshop,
    constant_tensor,
    is_constant,
    refuse_default,
    require_constant_of,
)
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART
from onnxbench.tensortype import initializer_type, make_value_info

if TYPE_CHECKING:
    from onnx import TensorProto


@dataclass(frozen=True)
class ToConstant(TensorOperation):
    """Make initializers Constant nodes.

    Documentation and metadata of the initializer stay with its tensor. Large weights in nodes are inside of the model
    file, for runtimes read no external data there.

    Attributes:
        at: Selector of the initializers, sparse ones included.
    """

    word: ClassVar[str] = "to_constant"
    spelling: ClassVar[str] = "{at}"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the initializers."""
        refs = draft.tensors(self.at)
        found = []
        for ref in refs:
            home = home_of(ref.scope, ref.name)
            if home is not None and ref.name in home.constants:
                found.append(TensorRef(home, ref.name))
        if not found:
            require_dense(draft, refs[0])
        return found

    def apply(self, draft: Draft) -> None:
        """Makes the nodes."""
        from onnx import NodeProto

        by_scope: dict[int, tuple[Scope, set[str]]] = {}
        for ref in self.find(draft):
            refuse_default(draft, ref, "a Constant")
            by_scope.setdefault(id(ref.scope), (ref.scope, set()))[1].add(ref.name)
        workshop = Workshop(draft)
        for scope, names in by_scope.values():
            graph = scope.graph
            for tensor in graph.initializer:
                if tensor.name in names:
                    require_constant_of(draft, scope, tensor.data_type)
                    node = NodeProto(op_type="Constant", output=[tensor.name])
                    node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
                    workshop.insert(Weight(TensorRef(scope, tensor.name), tensor), node, end="Constant")
            for sparse in graph.sparse_initializer:
                if sparse.values.name in names:
                    _require_sparse(draft, scope)
                    node = NodeProto(op_type="Constant", output=[sparse.values.name])
                    node.attribute.add(name="sparse_value", type=11).sparse_tensor.CopyFrom(sparse)
                    ref = TensorRef(scope, sparse.values.name)
                    workshop.insert(Weight(ref, sparse.values), node, end="Constant")
            for repeated in (graph.initializer, graph.input):
                delete_named(repeated, names)
            delete_named(graph.sparse_initializer, names, by="values.name")
        workshop.finish()


def _require_sparse(draft: Draft, scope: Scope) -> None:
    if draft.opset(scope) < 11:
        raise RefusedResultError(
            f"a Constant cannot be sparse in opset {draft.opset(scope)}", hint="It can be from opset 11 on."
        )


@dataclass(frozen=True)
class ToInitializer(NodeOperation):
    """Make Constant nodes initializers, whatever attribute holds their value.

    Documentation and metadata of the node go to the initializer. Constants in functions stay: functions have no
    initializers.

    Attributes:
        at: Selector of the Constant nodes.
    """

    word: ClassVar[str] = "to_initializer"
    spelling: ClassVar[str] = "{at}"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> list[NodeRef]:
        """Returns the Constant nodes outside of functions."""
        refs = draft.nodes(self.at)
        constants = [ref for ref in refs if is_constant(draft, ref.node)]
        if not constants:
            raise NotFoundError(f"{refs[0].path} is a {refs[0].node.op_type}, not a Constant", hint="op:Constant")
        found = [ref for ref in constants if not root_of(ref.scope).is_function]
        if not found:
            raise UnsupportedError(
                f"{constants[0].path} is in a function, and functions have no initializers",
                hint="Inline the function first.",
            )
        return found

    def apply(self, draft: Draft) -> None:
        """Makes the initializers."""
        found = self.find(draft)
        left = sum(is_constant(draft, ref.node) for ref in draft.nodes(self.at)) - len(found)
        if left:
            draft.notes.append(f"{left} Constant nodes in functions stay: functions have no initializers")
        store_constants(draft, found)


def store_constants(draft: Draft, found: Sequence[NodeRef]) -> None:
    """Makes initializers of Constant nodes outside of functions.

    Args:
        draft: The model.
        found: The nodes.

    Raises:
        UnsupportedError: One has no output, or its graph can hold no initializer.
    """
    is_old = draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
    removed: dict[int, tuple[Scope, list[int]]] = {}
    for ref in found:
        if is_old and ref.scope.parent is not None:
            raise UnsupportedError(
                f"{ref.path} is in a body, and before IR version 4 initializers of bodies would be inputs",
                hint="Raise the IR version first.",
            )
        graph, name = ref.scope.graph, ref.node.output[0] if ref.node.output else ""
        if not name:
            raise UnsupportedError(f"{ref.path} is a Constant whose output has no name")
        attribute = ref.node.attribute[0] if ref.node.attribute else None
        if attribute is not None and attribute.name == "sparse_value":
            sparse = graph.sparse_initializer.add()
            sparse.CopyFrom(attribute.sparse_tensor)
            tensor = sparse.values
        else:
            made = constant_tensor(ref)
            tensor = graph.initializer.add()
            tensor.CopyFrom(made)
        tensor.name = name
        _hand_over(draft, ref, tensor)
        if is_old:
            graph.input.append(make_value_info(name, initializer_type(tensor)))
        removed.setdefault(id(ref.scope), (ref.scope, []))[1].append(ref.position)
        where = TensorRef(ref.scope, name).path
        draft.record("weight", where, "made an initializer", after=describe_tensor(tensor))
    for scope, positions in sorted(removed.values(), key=lambda each: -each[0].depth):  # as in ``Workshop.finish``
        draft.splice(scope, removed=positions)
    draft.touch()


def _hand_over(draft: Draft, ref: NodeRef, tensor: TensorProto) -> None:
    """Gives a tensor the documentation and metadata of its node; what it says itself goes before."""
    node = ref.node
    if node.doc_string and node.doc_string != tensor.doc_string:
        told = (as_text(tensor.doc_string), as_text(node.doc_string))
        tensor.doc_string = "\n".join(filter(None, told))
    said = {entry.key: entry.value for entry in tensor.metadata_props}
    for entry in node.metadata_props:
        if entry.key not in said:
            tensor.metadata_props.add().CopyFrom(entry)
        elif said[entry.key] != entry.value:
            draft.notes.append(f"{ref.path}: its metadata {entry.key!r} is lost; the tensor has its own")
