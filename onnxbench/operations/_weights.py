"""Operations on single weights: their values, their element type, their layout, and where they stand.

A weight is an initializer or what a Constant node makes: exporters use both, and bodies and functions too. Where its
type or layout changes, it is stored under another name, and a Cast or Transpose makes the old name of it. So readers,
the captures of bodies, graph outputs and quantization annotations stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnxbench import weights
from onnxbench.conversion import Loss, convert, packed, require_convertible
from onnxbench.draft import Draft, home_of, require_dense
from onnxbench.errors import NotFoundError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import NodeRef, Scope, TensorRef
from onnxbench.model import SMALL_WEIGHT
from onnxbench.modelspec import make_tensor
from onnxbench.operations._base import Effect, NodeOperation, TensorOperation, describe_tensor
from onnxbench.schemas import find_schema, plain_domain
from onnxbench.tensortype import (
    dtype_bits,
    dtype_name,
    dtype_number,
    elem_type,
    format_shape,
    initializer_type,
    is_complete,
    raw_size,
    tensor_shape,
)
from onnxbench.weighing import blocks

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto, TensorProto
    from onnx.defs import OpSchema

_IR_OF_TYPES = {17: 9, 18: 9, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 14, 28: 14}
_HELD = 1 << 26  # bytes of a weight that is transposed in memory; a larger one is mapped
_NO_INPUTS = 4  # from this IR version on, an initializer that is an input is a default, which callers may replace
_STRING = 8


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
        return TensorProto(data_type=_STRING, dims=dims, string_data=values)
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
    if ref.name in ref.scope.inputs and draft.model.proto.ir_version >= _NO_INPUTS:
        raise RefusedResultError(
            f"{ref.path!r} is the default of an input, which callers may replace, so it cannot be {what}",
            hint="Remove the input first; the initializer then is a plain weight.",
        )


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
        home, base, number = self.home(scope), f"{weight.ref.name}_{end}", 1
        name = base
        while name in home.labels:
            name, number = f"{base}_{number}", number + 1
        home.labels.add(name)
        node.name = name
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


@dataclass(frozen=True)
class SetWeight(WeightOperation):
    """Give weights new values.

    The element type and the shape are those that the weight has, unless the value says others; these must be the same,
    or for the shape ``allow_shape`` be given.

    Attributes:
        at: Selector of the weights.
        value: The values as in a build specification: ``[1, 2]``, ``{full: 0}``, ``{random: normal, seed: 7}``,
            ``{file: w.npy}``, ``{file: "all.npz:w"}``.
        allow_shape: Another shape may be given; the types of all that depends on the weight are found anew.
    """

    word: ClassVar[str] = "set_weight"
    spelling: ClassVar[str] = "{at}={value}"
    effect: ClassVar[Effect] = "numerics"

    value: Any = None
    allow_shape: bool = False

    def apply(self, draft: Draft) -> None:
        """Sets the values."""
        if self.value is None:
            raise UsageError("set_weight takes a value", hint="value: {file: w.npy}")
        workshop = Workshop(draft)
        for weight in weights_at(draft, self.at):
            made = self._made(draft, weight)
            self._require_fit(draft, weight, made)
            before, tensor = describe_tensor(weight.tensor), own(weight)
            shape_changes = list(tensor.dims) != list(made.dims)
            weights.clear_data(tensor)
            tensor.dims[:] = made.dims
            where = draft.model.byte_range(made)
            if where is not None:
                draft.model.refer(tensor, where)
            else:
                tensor.MergeFrom(type(made)(raw_data=made.raw_data, string_data=made.string_data))
                if not made.HasField("raw_data"):
                    tensor.ClearField("raw_data")
            if shape_changes:
                workshop.restate(weight)
            draft.record("weight", weight.ref.path, "values", before=before, after=describe_tensor(tensor))
            if shape_changes or weights.tensor_bytes(tensor) <= SMALL_WEIGHT:  # it may be a shape
                _retype_readers(draft, weight, strictly=shape_changes)
        draft.touch()

    def _made(self, draft: Draft, weight: Weight) -> TensorProto:
        name, value = weight.ref.path, self.value
        number = dtype_name(weight.tensor.data_type)
        if not isinstance(value, dict):
            value = value if hasattr(value, "dtype") else {"value": value, "dtype": number}
        elif "file" not in value:
            value = {"dtype": number, **value}
            if ("full" in value or "random" in value) and "shape" not in value:
                value["shape"] = list(weight.tensor.dims)
        return make_tensor(name, value, folder=draft.folder, allow_outside=draft.allow_outside)

    def _require_fit(self, draft: Draft, weight: Weight, made: TensorProto) -> None:
        path, tensor = weight.ref.path, weight.tensor
        if made.data_type != tensor.data_type:
            wanted = dtype_name(tensor.data_type)
            raise RefusedResultError(
                f"weight {path!r} is {describe_tensor(tensor)}, and the new values are {describe_tensor(made)}",
                hint=f"Convert them with 'dtype: {wanted}', or change the weight's type with cast_weight.",
            )
        if list(made.dims) == list(tensor.dims):
            return
        if not self.allow_shape:
            hint = "Give 'allow_shape: true' if what reads it can do with that."
            if not made.dims:
                hint = "To fill it with one value: {full: VALUE}."
            raise RefusedResultError(
                f"weight {path!r} has the shape {format_shape(tuple(tensor.dims))}, and the new values "
                f"{format_shape(tuple(made.dims))}",
                hint=hint,
            )
        refuse_default(draft, weight.ref, "given another shape")


@dataclass(frozen=True)
class CastWeight(WeightOperation):
    """Store weights in another element type, each value rounded once to nearest.

    A Cast node makes the old type of it again, so that whatever reads the weight reads its old type. Integers are
    checked for range; floats that become integers are cut off towards zero, as Cast does.

    Attributes:
        at: Selector of the weights.
        to: The element type: ``float16``, ``bfloat16``, ``float8e4m3fn``, ``int4``, ...
        everywhere: No Cast is inserted, and readers get the new type; refused where one does not take it.
        overflow: What to do with values beyond the range of the type: ``refuse``, ``clamp`` to its largest value, or
            ``inf``: what rounding makes of them (Inf, or NaN in types without Inf).
    """

    word: ClassVar[str] = "cast_weight"
    spelling: ClassVar[str] = "{at}={to}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "numerics"

    to: str
    everywhere: bool = False
    overflow: Literal["refuse", "clamp", "inf"] = "refuse"

    def apply(self, draft: Draft) -> None:
        """Casts them."""
        number = dtype_number(self.to)
        if self.overflow not in ("refuse", "clamp", "inf"):
            raise UsageError(f"overflow: {self.overflow!r} is not understood", hint="There are refuse, clamp and inf.")
        found = [weight for weight in weights_at(draft, self.at) if weight.tensor.data_type != number]
        if not found:
            draft.notes.append(f"all weights that {self.at!r} stands for are {dtype_name(number)} already")
            return
        names = {(id(weight.ref.scope), weight.ref.name) for weight in found}
        for weight in found:
            require_convertible(weight.tensor.data_type, number)
            refuse_default(draft, weight.ref, f"cast to {dtype_name(number)}")
            if self.everywhere:
                _require_readers_take(draft, weight, number, names)
            else:
                _require_cast(draft, weight, number)
            if weight.node >= 0:
                _require_constant_of(draft, weight.ref.scope, number)
        workshop = Workshop(draft)
        cache: dict[tuple[weights.ByteRange, int], tuple[weights.ByteRange, Loss]] = {}
        for weight in found:
            self._cast(draft, workshop, weight, number, cache)
        _raise_ir_version(draft, number)
        workshop.finish()
        if self.everywhere:
            for weight in found:
                _retype_readers(draft, weight)

    def _cast(
        self,
        draft: Draft,
        workshop: Workshop,
        weight: Weight,
        number: int,
        cache: dict[tuple[weights.ByteRange, int], tuple[weights.ByteRange, Loss]],
    ) -> None:
        from onnx import helper

        ref, old, before = weight.ref, weight.tensor.data_type, describe_tensor(weight.tensor)
        source = draft.model.byte_range(weight.tensor)
        tensor, loss = own(weight), Loss()
        shared = cache.get((source, old)) if source is not None else None
        if shared is not None:
            tensor.data_type, loss = number, shared[1]
            draft.model.refer(tensor, shared[0])
        else:
            held = type(tensor)()
            held.CopyFrom(tensor)
            tensor.data_type = number
            new = self._converted(draft, held, number, loss)
            draft.model.store(tensor, new, raw_size(tensor.dims, number))
            where = draft.model.byte_range(tensor)
            if source is not None and where is not None:
                cache[source, old] = where, loss
        self._judge(ref, number, loss)
        after = f"{describe_tensor(tensor)}, {loss.sentence()}"
        draft.record("weight", ref.path, "cast", before=before, after=after)
        if loss.overflows:
            made = "clamped" if self.overflow == "clamp" else "not finite"
            draft.notes.append(f"{ref.path}: {loss.overflows:,} values (up to {loss.largest:.6g}) are {made} now")
        is_read = ref.name in ref.scope.consumers or ref.name in ref.scope.outputs
        if self.everywhere or not is_read:
            workshop.restate(weight)
            return
        new_name = draft.fresh(ref.scope, f"{ref.name}_{dtype_name(number)}")
        workshop.store_as(weight, new_name)
        workshop.insert(weight, helper.make_node("Cast", [new_name], [ref.name], to=old), end="Cast")

    def _converted(self, draft: Draft, tensor: TensorProto, number: int, loss: Loss) -> Iterator[bytes]:
        for block in blocks(draft.model, tensor):
            yield packed(convert(block, number, loss, clamp=self.overflow == "clamp"))

    def _judge(self, ref: TensorRef, number: int, loss: Loss) -> None:
        name = dtype_name(number)
        if loss.nans:
            raise RefusedResultError(f"weight {ref.path!r} has {loss.nans:,} NaN, and {name} has none")
        if loss.overflows and self.overflow == "refuse":
            raise RefusedResultError(
                f"weight {ref.path!r} has {loss.overflows:,} values that {name} does not reach (up to "
                f"{loss.largest:.6g})",
                hint="Choose a wider type, or say 'overflow: clamp' or 'overflow: inf'.",
            )


def _accepts(schema: OpSchema | None, slot: int, number: int) -> bool:
    if schema is None or not schema.inputs:
        return False
    return f"tensor({_onnx_word(number)})" in schema.inputs[min(slot, len(schema.inputs) - 1)].types


def _onnx_word(number: int) -> str:
    return {1: "float", 11: "double"}.get(number, dtype_name(number))


def _require_cast(draft: Draft, weight: Weight, number: int) -> None:
    """Refuses a type that Cast does not take in the opset of the graph."""
    version = draft.opset(weight.ref.scope)
    if version and not _accepts(find_schema("", "Cast", version), 0, number):
        raise RefusedResultError(
            f"Cast does not take {dtype_name(number)} in opset {version}", hint=_since("Cast", version, number)
        )


def _require_constant_of(draft: Draft, scope: Scope, number: int) -> None:
    version = draft.opset(scope)
    schema = find_schema("", "Constant", version)
    if schema is not None and f"tensor({_onnx_word(number)})" not in schema.outputs[0].types:
        raise RefusedResultError(f"a Constant cannot be {dtype_name(number)} in opset {version}")


def _since(op_type: str, version: int, number: int) -> str | None:
    from onnx import defs

    for later in range(version + 1, defs.onnx_opset_version() + 1):
        if _accepts(find_schema("", op_type, later), 0, number):
            return f"It does from opset {later} on."
    return None


def _require_readers_take(draft: Draft, weight: Weight, number: int, cast: set[tuple[int, str]]) -> None:
    """Refuses to change the type of a weight when a node that reads it does not take the new one.

    What the new type makes of the outputs of readers is left to the checks behind the operation.
    """
    ref, name = weight.ref, dtype_name(number)
    if ref.name in ref.scope.outputs:
        raise RefusedResultError(f"weight {ref.path!r} is an output, whose type cannot change", hint="Insert a Cast.")
    for reader, slot in readers_of(ref):
        node = reader.node
        schema = None
        if draft.index.function_of(node) is None:
            version = draft.opset(reader.scope, node.domain)
            schema = find_schema(node.domain, node.op_type, version) if version else None
        why = None
        if schema is None:
            why = f"onnx does not know what types {node.op_type} takes"
        elif not _accepts(schema, slot, number):
            why = f"it takes no {name} there"
        else:
            formal = schema.inputs[min(slot, len(schema.inputs) - 1)]
            for other, sibling in enumerate(node.input):
                kin = schema.inputs[min(other, len(schema.inputs) - 1)]
                if not sibling or other == slot or kin.type_str != formal.type_str or "(" in formal.type_str:
                    continue
                home = home_of(reader.scope, sibling) or reader.scope
                known = draft.type_of(TensorRef(home, sibling))
                if (id(home), sibling) not in cast and known is not None and elem_type(known) not in (0, number):
                    why = f"its input {sibling!r}, which must have the same type, is {dtype_name(elem_type(known))}"
        if why:
            raise RefusedResultError(
                f"{reader.path} ({node.op_type}) reads weight {ref.path!r} and does not take {name}: {why}",
                hint="Without 'everywhere: true' a Cast is inserted.",
            )


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


def _retype_readers(draft: Draft, weight: Weight, *, strictly: bool = False) -> None:
    """Says that what is made of a weight may have other types now."""
    for reader, _ in readers_of(weight.ref):
        draft.retype(reader.scope, reader.scope.writes[reader.position], strictly=strictly)


def _raise_ir_version(draft: Draft, number: int) -> None:
    proto, needed = draft.model.proto, _IR_OF_TYPES.get(number, 0)
    if proto.ir_version >= needed:
        return
    if proto.ir_version < _NO_INPUTS:
        raise RefusedResultError(
            f"{dtype_name(number)} needs IR version {needed}, and this model has {proto.ir_version}, in which "
            "initializers are inputs",
            hint="Raise the IR version first.",
        )
    draft.record("model", "", "IR version", before=str(proto.ir_version), after=str(needed))
    proto.ir_version = needed


@dataclass(frozen=True)
class TransposeWeight(WeightOperation):
    """Store weights with their axes in another order.

    Readers that can say so themselves do: Gemm by transA and transB, Transpose by its perm. For all others a
    Transpose node makes the old order again.

    Attributes:
        at: Selector of the weights.
        perm: The new order of the axes, as of a Transpose; reversed by default.
        fold: Let Gemm and Transpose nodes take the new order themselves.
        to_gemm: Also make a MatMul of two matrices a Gemm with transB (its results may differ by rounding).
    """

    word: ClassVar[str] = "transpose_weight"
    spelling: ClassVar[str] = "{at}[={perm}]"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "rounding"

    perm: list[int] | None = None
    fold: bool = True
    to_gemm: bool = False

    def apply(self, draft: Draft) -> None:
        """Transposes them."""
        workshop = Workshop(draft)
        for weight in weights_at(draft, self.at):
            perm = self._order(weight)
            if perm == sorted(perm):
                draft.notes.append(f"{weight.ref.path}: its axes are in this order already")
                continue
            refuse_default(draft, weight.ref, "transposed")
            if weight.tensor.data_type == _STRING:
                raise UnsupportedError(f"weight {weight.ref.path!r} holds strings, which are not transposed")
            self._transpose(draft, workshop, weight, perm)
        workshop.finish()

    def _order(self, weight: Weight) -> list[int]:
        rank = len(weight.tensor.dims)
        perm = list(range(rank))[::-1] if self.perm is None else list(self.perm)
        if sorted(perm) != list(range(rank)):
            raise UsageError(
                f"{perm} is no order of the axes of {weight.ref.path!r}, which is {describe_tensor(weight.tensor)}",
                hint=f"Name each of {list(range(rank))} once.",
            )
        return perm

    def _transpose(self, draft: Draft, workshop: Workshop, weight: Weight, perm: list[int]) -> None:
        from onnx import helper

        ref, before = weight.ref, describe_tensor(weight.tensor)
        inverse = [perm.index(axis) for axis in range(len(perm))]
        folded, others = self._readers(draft, weight, perm)
        tensor = own(weight)
        held = type(tensor)()
        held.CopyFrom(tensor)
        tensor.dims[:] = [held.dims[axis] for axis in perm]
        draft.model.store(tensor, _transposed(draft, held, perm), weights.tensor_bytes(held))
        draft.record("weight", ref.path, "transposed", before=before, after=describe_tensor(tensor))
        name = ref.name
        if others:
            name = draft.fresh(ref.scope, f"{ref.name}_transposed")
            workshop.store_as(weight, name)
            workshop.insert(weight, helper.make_node("Transpose", [name], [ref.name], perm=inverse), end="Transpose")
        else:
            workshop.restate(weight)
        for position in folded:
            _fold(draft, NodeRef(ref.scope, position), ref.name, name, inverse)

    def _readers(self, draft: Draft, weight: Weight, perm: list[int]) -> tuple[list[int], bool]:
        """Returns the nodes that take the new order themselves, and whether there are other readers."""
        ref, scope = weight.ref, weight.ref.scope
        folded, others = [], ref.name in scope.outputs
        for position in scope.consumers.get(ref.name, ()):
            if self.fold and self._takes(draft, NodeRef(scope, position), ref.name, perm):
                folded.append(position)
            else:
                others = True
        return folded, others

    def _takes(self, draft: Draft, reader: NodeRef, name: str, perm: list[int]) -> bool:
        node = reader.node
        if plain_domain(node.domain) or draft.index.function_of(node) is not None:
            return False
        if any(attribute.ref_attr_name for attribute in node.attribute):
            return False
        slots = [slot for slot, read in enumerate(node.input) if read == name]
        if node.op_type == "Transpose":
            return True
        if perm != [1, 0]:
            return False
        if node.op_type == "Gemm":
            return 2 not in slots
        if node.op_type == "MatMul" and self.to_gemm and slots == [1] and draft.opset(reader.scope) >= 11:
            found = draft.type_of(TensorRef(home_of(reader.scope, node.input[0]) or reader.scope, node.input[0]))
            shape = tensor_shape(found) if found is not None and is_complete(found) else None
            schema = find_schema("", "Gemm", draft.opset(reader.scope))
            return shape is not None and len(shape) == 2 and found is not None and _accepts(schema, 0, elem_type(found))
        return False


def _fold(draft: Draft, reader: NodeRef, old: str, new: str, inverse: list[int]) -> None:
    """Makes a node read a weight whose axes are in another order."""
    from onnx import helper

    node, path = reader.node, reader.path
    said = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Transpose":
        perm = list(said["perm"].ints) if "perm" in said else list(range(len(inverse)))[::-1]
        now = [inverse[axis] for axis in perm]
        if "perm" in said:
            node.attribute.remove(said["perm"])
        if now == sorted(now):
            node.op_type = "Identity"
            draft.record("node", path, "op_type", before="Transpose", after="Identity")
        else:
            node.attribute.append(helper.make_attribute("perm", now))
            draft.record("node", path, "attribute perm", before=str(perm), after=str(now))
    else:
        if node.op_type == "MatMul":
            node.op_type = "Gemm"
            draft.record("node", path, "op_type", before="MatMul", after="Gemm")
        for slot, key in ((0, "transA"), (1, "transB")):
            if node.input[slot] == old:
                before = said[key].i if key in said else 0
                if key in said:
                    said[key].i = 1 - before
                else:
                    node.attribute.append(helper.make_attribute(key, 1))
                draft.record("node", path, f"attribute {key}", before=str(before), after=str(1 - before))
    for slot, name in enumerate(node.input):
        if name == old:
            node.input[slot] = new


def _transposed(draft: Draft, tensor: TensorProto, perm: Sequence[int]) -> Iterator[bytes]:
    """Yields the raw data of a tensor with its axes in another order.

    A large one is mapped, not read: the system keeps as much of it in memory as there is room for.
    """
    import numpy as np

    where = draft.model.byte_range(tensor)
    bits = dtype_bits(tensor.data_type)
    if where is None or where.length <= _HELD or bits < 8:
        array = draft.model.array(tensor).transpose(perm)
        if array.dtype.isbuiltin != 1:
            yield packed(np.ascontiguousarray(array).reshape(-1))
            return
    else:
        mapped = np.memmap(where.file, f"V{bits // 8}", "r", where.offset, tuple(tensor.dims))
        array = mapped.transpose(perm)
    yield from _in_order(array)


def _in_order(array: np.ndarray) -> Iterator[bytes]:
    """Yields the bytes of an array in the order of its axes, some megabytes at a time."""
    import numpy as np

    most = 1 << 23
    inner, axis = array.itemsize, array.ndim
    while axis > 0 and inner * array.shape[axis - 1] <= most:
        axis -= 1
        inner *= array.shape[axis]
    if axis == 0:
        yield np.ascontiguousarray(array).tobytes()
        return
    step = max(1, most // max(inner, 1))
    for index in np.ndindex(*array.shape[: axis - 1]):
        part = array[index]
        for start in range(0, array.shape[axis - 1], step):
            yield np.ascontiguousarray(part[start : start + step]).tobytes()


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
                    _require_constant_of(draft, scope, tensor.data_type)
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
                for position in reversed(range(len(repeated))):
                    if repeated[position].name in names:
                        del repeated[position]
            for position in reversed(range(len(graph.sparse_initializer))):
                if graph.sparse_initializer[position].values.name in names:
                    del graph.sparse_initializer[position]
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
        found = [ref for ref in constants if not _is_in_function(ref.scope)]
        if not found:
            raise UnsupportedError(
                f"{constants[0].path} is in a function, and functions have no initializers",
                hint="Inline the function first.",
            )
        return found

    def apply(self, draft: Draft) -> None:
        """Makes the initializers."""
        from onnxbench.tensortype import make_value_info

        found = self.find(draft)
        left = sum(is_constant(draft, ref.node) for ref in draft.nodes(self.at)) - len(found)
        if left:
            draft.notes.append(f"{left} Constant nodes in functions stay: functions have no initializers")
        is_old = draft.model.proto.ir_version < _NO_INPUTS
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
        for scope, positions in sorted(removed.values(), key=lambda each: -each[0].depth):  # as ``Workshop.finish``
            draft.splice(scope, removed=positions)
        draft.touch()


def _is_in_function(scope: Scope) -> bool:
    while scope.parent is not None:
        scope = scope.parent
    return scope.is_function


def _text(value: str | bytes) -> str:
    """Returns a text field as text, also if it holds bytes that are none."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _hand_over(draft: Draft, ref: NodeRef, tensor: TensorProto) -> None:
    """Gives a tensor the documentation and metadata of its node; what it says itself goes before."""
    node = ref.node
    if node.doc_string and node.doc_string != tensor.doc_string:
        told = (_text(tensor.doc_string), _text(node.doc_string))
        tensor.doc_string = "\n".join(filter(None, told))
    said = {entry.key: entry.value for entry in tensor.metadata_props}
    for entry in node.metadata_props:
        if entry.key not in said:
            tensor.metadata_props.add().CopyFrom(entry)
        elif said[entry.key] != entry.value:
            draft.notes.append(f"{ref.path}: its metadata {entry.key!r} is lost; the tensor has its own")
