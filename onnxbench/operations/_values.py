"""Operations on the values of weights: new ones, or the same in another element type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnxbench import weights
from onnxbench.conversion import Loss, convert, packed, require_convertible
from onnxbench.draft import Draft
from onnxbench.errors import RefusedResultError, UsageError
from onnxbench.graph import TensorRef, home_of
from onnxbench.messages import copy_of
from onnxbench.model import SMALL_WEIGHT
from onnxbench.modelspec import make_tensor
from onnxbench.operations._base import Effect, describe_tensor
from onnxbench.operations._weights import (
    Weight,
    WeightOperation,
    Workshop,
    own,
    raise_ir_version,
    readers_of,
    refuse_default,
    require_constant_of,
    retype_readers,
    weights_at,
)
from onnxbench.schemas import find_schema, takes
from onnxbench.tensortype import dtype_name, dtype_number, elem_type, format_shape, raw_size
from onnxbench.weighing import blocks

if TYPE_CHECKING:
    from onnx import TensorProto

    from onnxbench.model import Model

_STRING = 8


def _is_same(model: Model, one: TensorProto, other: TensorProto) -> bool:
    """Tells whether two tensors are the same bit for bit; reads them in blocks, up to the first that differs."""
    if (one.data_type, one.dims) != (other.data_type, other.dims):
        return False
    if one.data_type == _STRING:
        return list(one.string_data) == list(other.string_data)
    pairs = zip(blocks(model, one), blocks(model, other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


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
            if _is_same(draft.model, weight.tensor, made):
                continue
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
                retype_readers(draft, weight, strictly=shape_changes)
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
                require_constant_of(draft, weight.ref.scope, number)
        workshop = Workshop(draft)
        cache: dict[tuple[weights.ByteRange, int], tuple[weights.ByteRange, Loss]] = {}
        for weight in found:
            self._cast(draft, workshop, weight, number, cache)
        raise_ir_version(draft, number)
        workshop.finish()
        if self.everywhere:
            for weight in found:
                retype_readers(draft, weight)

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
            held = copy_of(tensor)
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


def _require_cast(draft: Draft, weight: Weight, number: int) -> None:
    """Refuses a type that Cast does not take in the opset of the graph."""
    version = draft.opset(weight.ref.scope)
    if version and not takes(find_schema("", "Cast", version), 0, number):
        raise RefusedResultError(
            f"Cast does not take {dtype_name(number)} in opset {version}", hint=_since("Cast", version, number)
        )


def _since(op_type: str, version: int, number: int) -> str | None:
    from onnx import defs

    for later in range(version + 1, defs.onnx_opset_version() + 1):
        if takes(find_schema("", op_type, later), 0, number):
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
        elif not takes(schema, slot, number):
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
