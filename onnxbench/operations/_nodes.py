"""Operations on single nodes: what they are, what their attributes say, what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench.errors import NotFoundError, RefusedResultError, UsageError, did_you_mean
from onnxbench.modelspec import fill_attribute
from onnxbench.modeltext import read_node
from onnxbench.operations._base import (
    Effect,
    NodeOperation,
    describe_attribute,
    operator_name,
    parse_operator,
    schema_of,
)
from onnxbench.schemas import attribute_type

if TYPE_CHECKING:
    from onnx import AttributeProto

    from onnxbench.draft import Draft
    from onnxbench.graph import NodeRef


@dataclass(frozen=True)
class SetOp(NodeOperation):
    """Make nodes another operator, with the inputs, outputs and attributes that they have.

    Attributes:
        at: Selector of the nodes.
        to: The operator: ``Sub``, or ``com.microsoft::Gelu`` of another domain.
        drop_attributes: Remove attributes that the new operator does not have, instead of refusing.
    """

    word: ClassVar[str] = "set_op"
    spelling: ClassVar[str] = "{at}={to}"
    effect: ClassVar[Effect] = "numerics"

    to: str
    drop_attributes: bool = False

    def apply(self, draft: Draft) -> None:
        """Changes operator and domain."""
        domain, op_type = parse_operator(self.to)
        for ref in self.find(draft):
            node, before = ref.node, operator_name(ref.node.domain, ref.node.op_type)
            if (node.op_type, node.domain, node.overload) != (op_type, domain, ""):
                node.op_type, node.domain = op_type, domain
                node.ClearField("overload")
                draft.record("node", ref.path, "op_type", before=before, after=operator_name(domain, op_type))
            draft.import_domain(ref.scope, domain)
            self._require_attributes(draft, ref)
            self._drop_attributes(draft, ref)
            draft.retype(ref.scope, ref.scope.writes[ref.position])
        draft.touch()

    def _require_attributes(self, draft: Draft, ref: NodeRef) -> None:
        schema = schema_of(draft, ref)
        given = {attribute.name for attribute in ref.node.attribute}
        missing = [name for name, each in schema.attributes.items() if each.required] if schema is not None else []
        missing = [name for name in missing if name not in given]
        if missing:
            said = ", ".join(f"{name}: ..." for name in missing)
            raise RefusedResultError(
                f"{self.to} needs {' and '.join(map(repr, missing))}, which {ref.path!r} does not have",
                hint=f"replace: {{at: ..., op: {self.to}, attributes: {{{said}}}}} gives them.",
            )

    def _drop_attributes(self, draft: Draft, ref: NodeRef) -> None:
        schema = schema_of(draft, ref)
        unknown = [each for each in ref.node.attribute if schema is not None and each.name not in schema.attributes]
        if unknown and not self.drop_attributes:
            names = " and ".join(repr(each.name) for each in unknown)
            raise RefusedResultError(
                f"{self.to} has no attribute {names}, which {ref.path!r} has", hint="drop_attributes: true removes it."
            )
        for attribute in unknown:
            before = describe_attribute(attribute)
            draft.record("node", ref.path, f"attribute {attribute.name} removed", before=before)
            ref.node.attribute.remove(attribute)


@dataclass(frozen=True)
class SetAttribute(NodeOperation):
    """Set an attribute of nodes, with the type that the operator states for it.

    Attributes:
        at: Selector of the nodes.
        name: The attribute.
        value: Its value as in a build specification: ``1``, ``[1, 1]``, ``{ints: []}``, ``{tensor: {zeros: [2]}}``, or
            ``{outputs: [y], nodes: [y = Relu(x)]}`` for a body.
        text: Instead, its value in ONNX text: ``g () => (float[1] y) { y = Relu (x) }`` for a body.
    """

    word: ClassVar[str] = "set_attribute"
    spelling: ClassVar[str] = "{at}:{name}={value}"
    effect: ClassVar[Effect] = "numerics"

    name: str
    value: Any = None
    text: str | None = None

    def apply(self, draft: Draft) -> None:
        """Sets the attribute."""
        if (self.value is None) == (self.text is None):
            raise UsageError("set_attribute takes a value or a text", hint="value: [1, 1, 1, 1]")
        for ref in self.find(draft):
            made = self._made(draft, ref)
            known = next((each for each in ref.node.attribute if each.name == self.name), None)
            if known == made:
                continue
            before = describe_attribute(known) if known is not None else None
            (known if known is not None else ref.node.attribute.add()).CopyFrom(made)
            after = describe_attribute(made)
            draft.record("node", ref.path, f"attribute {self.name}", before=before, after=after)
            draft.retype(ref.scope, ref.scope.writes[ref.position])
        draft.touch()

    def _made(self, draft: Draft, ref: NodeRef) -> AttributeProto:
        from onnx import NodeProto

        schema = schema_of(draft, ref)
        wanted = attribute_type(schema, self.name) if schema is not None else 0
        if schema is not None and not wanted:
            hint = did_you_mean(self.name, schema.attributes)
            hint = hint or f"It has: {', '.join(sorted(schema.attributes)) or 'none'}."
            raise RefusedResultError(
                f"{ref.path} is a {ref.node.op_type}, which has no attribute {self.name!r}", hint=hint
            )
        node = NodeProto()
        if self.text is not None:
            source = f"y = Node <{self.name} = {self.text}> ()"
            read_node(source, node, source="the text of the attribute", line=1)
            read: AttributeProto = node.attribute[0]
            return read
        made: AttributeProto = node.attribute.add(name=self.name)
        versions = {o.domain: o.version for o in draft.model.proto.opset_import}
        fill_attribute(
            made, self.value, wanted=wanted, versions=versions, folder=draft.folder, allow_outside=draft.allow_outside
        )
        return made


@dataclass(frozen=True)
class DeleteAttribute(NodeOperation):
    """Remove an attribute of nodes, so that the operator's default holds.

    Attributes:
        at: Selector of the nodes.
        name: The attribute.
    """

    word: ClassVar[str] = "delete_attribute"
    spelling: ClassVar[str] = "{at}:{name}"
    effect: ClassVar[Effect] = "numerics"

    name: str

    def apply(self, draft: Draft) -> None:
        """Removes the attribute."""
        for ref in self.find(draft):
            known = next((each for each in ref.node.attribute if each.name == self.name), None)
            if known is None:
                names = [each.name for each in ref.node.attribute]
                hint = did_you_mean(self.name, names) or f"It has: {', '.join(names) or 'none'}."
                raise NotFoundError(f"node {ref.path} ({ref.node.op_type}) has no attribute {self.name!r}", hint=hint)
            draft.record("node", ref.path, f"attribute {self.name} removed", before=describe_attribute(known))
            ref.node.attribute.remove(known)
            draft.retype(ref.scope, ref.scope.writes[ref.position])
        draft.touch()


@dataclass(frozen=True)
class RenameNode(NodeOperation):
    """Give a node another name.

    Attributes:
        at: Selector of the node.
        to: Its new name.
    """

    word: ClassVar[str] = "rename_node"
    spelling: ClassVar[str] = "{at}={to}"
    keeps_types: ClassVar[bool] = True

    to: str

    def apply(self, draft: Draft) -> None:
        """Renames the node."""
        refs = self.find(draft)
        if len(refs) > 1:
            raise UsageError(f"{len(refs)} nodes cannot all be called {self.to!r}", hint="Name one of them.")
        for ref in refs:
            if self.to and any(node.name == self.to for node in ref.scope.nodes if node is not ref.node):
                raise RefusedResultError(f"there is a node {self.to!r} already", hint="Choose another name.")
            if ref.node.name == self.to:
                continue
            draft.record("node", ref.path, "renamed", before=ref.node.name, after=self.to)
            ref.node.name = self.to
        draft.touch()
