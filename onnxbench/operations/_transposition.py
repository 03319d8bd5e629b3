"""The operation that stores weights with their axes in another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxbench import weights
from onnxbench.conversion import packed
from onnxbench.draft import Draft
from onnxbench.errors import UnsupportedError, UsageError
from onnxbench.graph import NodeRef, TensorRef, home_of
from onnxbench.messages import copy_of
from onnxbench.operations._base import Effect, describe_tensor
from onnxbench.operations._weights import (
    STRING,
    Weight,
    WeightOperation,
    Workshop,
    own,
    refuse_default,
    weights_at,
)
from onnxbench.schemas import find_schema, plain_domain, takes
from onnxbench.tensortype import dtype_bits, elem_type, is_complete, tensor_shape

if TYPE_CHECKING:
    import numpy as np
    from onnx import TensorProto

_HELD = 1 << 26  # bytes of a weight that is transposed in memory; a larger one is mapped


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
            if weight.tensor.data_type == STRING:
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
        held = copy_of(tensor)
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
            return shape is not None and len(shape) == 2 and found is not None and takes(schema, 0, elem_type(found))
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
