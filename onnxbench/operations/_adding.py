"""The operation that adds a weight, for later steps to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench.draft import Draft, require_free
from onnxbench.errors import NotFoundError, SpecError, UsageError, did_you_mean
from onnxbench.graph import Scope, TensorRef
from onnxbench.modelspec import make_tensor
from onnxbench.operations._base import Operation, describe_tensor
from onnxbench.operations._weights import raise_ir_version, require_constant_of
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART
from onnxbench.tensortype import dtype_number, initializer_type

if TYPE_CHECKING:
    from onnx import TensorProto


@dataclass(frozen=True)
class AddWeight(Operation):
    """Add a weight that later steps make nodes read.

    It is an initializer, in a function a Constant node. If nothing reads it when all steps are done, a note says so.

    Attributes:
        name: What it is called; no tensor around may have the name.
        value: Its values as in a build specification: ``0.5``, ``[1, 2]``, ``{full: 0, shape: [4]}``,
            ``{random: normal, shape: [64, 3]}``, ``{file: w.npy}``, ``{file: "all.npz:w"}``.
        dtype: Its element type; by default that of the file, int64 for whole numbers and float32 for others.
        to: Path of the body or function that it is added to; by default the main graph.
    """

    word: ClassVar[str] = "add_weight"
    spelling: ClassVar[str] = "{name}={value}"

    name: str
    value: Any
    dtype: str | None = None
    to: str = ""

    def apply(self, draft: Draft) -> None:
        """Adds it."""
        scope = self._scope(draft)
        require_free(draft, scope, self.name)
        tensor = self._made(draft)
        raise_ir_version(draft, tensor.data_type)
        if scope.is_function:
            _add_constant(draft, scope, tensor)
        else:
            scope.graph.initializer.append(tensor)
            if scope is draft.main and draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART:
                info = scope.graph.input.add(name=self.name)
                info.type.CopyFrom(initializer_type(tensor))
        where = TensorRef(scope, self.name).path
        draft.record("weight", where, "added", after=describe_tensor(tensor))
        draft.await_reader(scope, self.name, where)
        draft.touch()

    def _scope(self, draft: Draft) -> Scope:
        scope = draft.index.scope_paths.get(self.to)
        if scope is None:
            hint = did_you_mean(self.to, draft.index.scope_paths)
            raise NotFoundError(f"there is no body or function {self.to!r}", hint=hint)
        return scope

    def _made(self, draft: Draft) -> TensorProto:
        value = self.value
        if value is None:
            raise SpecError("add_weight needs 'value'", hint="value: {random: normal, shape: [64, 3]}")
        if self.dtype is not None:
            if not isinstance(value, dict):
                value = {"value": value, "dtype": self.dtype}
            elif dtype_number(value.get("dtype", self.dtype)) != dtype_number(self.dtype):
                raise UsageError(f"weight {self.name!r} is to be {self.dtype}, and its value says {value['dtype']}")
            else:
                value = {**value, "dtype": self.dtype}
        return make_tensor(self.name, value, folder=draft.folder, allow_outside=draft.allow_outside)


def _add_constant(draft: Draft, scope: Scope, tensor: TensorProto) -> None:
    """Adds a weight to a function, which has no initializers."""
    from onnx import NodeProto

    draft.import_domain(scope, "")
    require_constant_of(draft, scope, tensor.data_type)
    node = NodeProto(op_type="Constant", output=[tensor.name], name=draft.fresh_node(scope, tensor.name))
    node.attribute.add(name="value", type=4, t=tensor)
    draft.splice(scope, {0: [node]})
