"""Which stored values steer a model: shapes, indices, loop counts, quantization parameters.

Most weights can have other values and the model still runs. Some cannot: the target of a Reshape, the scales of a
Resize, an index, the condition of an If. They are found by where they go. An input of an operator that only takes
integers or booleans is one of these places, and so are some that take floats. From each of them the way goes back
through nodes that compute with stored values and shapes alone; whatever is stored at its start steers.

The way ends at tensors that depend on the values of inputs: what a whole network computes and then rounds to an
index is not steered by its weights in this sense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxbench.graph import GraphIndex, NodeRef, Scope, home_of, root_of, topological_order
from onnxbench.schemas import find_schema, plain_domain

if TYPE_CHECKING:
    from onnx import NodeProto

_FLOAT_SLOTS: dict[str, tuple[int, ...]] = {
    "Resize": (1, 2, 3), "Upsample": (1,), "Range": (0, 1, 2), "OneHot": (1,), "NonMaxSuppression": (2, 3, 4),
    "Dropout": (1, 2), "TopK": (1,),
}  # fmt: skip
_QUANTIZATION: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "ConvInteger": (2, 3), "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5), "DynamicQuantizeMatMul": (2, 3), "MatMulNBits": (2, 3, 4),
    "QLinearAdd": (1, 2, 4, 5, 6, 7), "QLinearMul": (1, 2, 4, 5, 6, 7), "QGemm": (1, 2, 4, 5, 7, 8),
    "QAttention": (3, 4, 6, 7), "DynamicQuantizeLSTM": (8, 9, 10, 11), "QLinearSigmoid": (1, 2, 3, 4),
    "QLinearLeakyRelu": (1, 2, 3, 4), "QLinearGlobalAveragePool": (1, 2, 3, 4), "QLinearAveragePool": (1, 2, 3, 4),
    "QLinearSoftmax": (1, 2, 3, 4), "QLinearWhere": (2, 3, 5, 6, 7, 8),
}  # fmt: skip
_QUANTIZED: dict[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,), "QLinearConv": (0, 3, 8), "QLinearMatMul": (0, 3), "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1), "MatMulIntegerToFloat": (0, 1), "DynamicQuantizeMatMul": (1,), "MatMulNBits": (1,),
    "QLinearAdd": (0, 3), "QLinearMul": (0, 3), "QGemm": (0, 3, 6), "QAttention": (0, 1),
    "DynamicQuantizeLSTM": (1, 2),
}  # fmt: skip
_ONLY_SHAPES = ("Shape", "Size")


def is_quantized_data(op_type: str, slot: int) -> bool:
    """Tells whether an input of an operator takes quantized numbers: integers that stand for floats."""
    return slot in _QUANTIZED.get(op_type, ())


def steering(index: GraphIndex) -> dict[tuple[Scope, str], str]:
    """Returns the names of tensors that steer a model, stored or computed of stored ones alone, and what they steer."""
    opsets = {plain_domain(each.domain): each.version for each in index.proto.opset_import}
    fixed: dict[Scope, set[str]] = {}
    found: dict[tuple[Scope, str], str] = {}
    for scope in index.scopes:  # outer before inner, so what a body captures is known
        _find_fixed(scope, fixed)
    for scope in index.scopes:
        versions = opsets
        if root_of(scope).is_function:
            versions = {plain_domain(each.domain): each.version for each in root_of(scope).graph.opset_import}
        pending = [
            (scope, name, reason)
            for position, node in enumerate(scope.nodes)
            for name, reason in _steered(index, scope, position, node, versions)
        ]
        while pending:
            inner, name, reason = pending.pop()
            home = home_of(inner, name)
            if home is None or name not in fixed[home] or (home, name) in found:
                continue
            found[home, name] = reason
            maker = home.producers.get(name)
            if maker is not None and home.nodes[maker].op_type not in _ONLY_SHAPES:
                pending += [(home, read, reason) for read in home.reads[maker]]
    return found


def _find_fixed(scope: Scope, fixed: dict[Scope, set[str]]) -> None:
    """Finds the tensors of a graph that depend on no value of an input."""
    known = fixed[scope] = set(scope.constants)
    order = topological_order(scope)
    for position in range(len(scope.nodes)) if order is None else order:
        node = scope.nodes[position]
        if position in scope.bodies:
            continue
        if node.op_type in _ONLY_SHAPES or all(_is_fixed(scope, name, fixed) for name in scope.reads[position]):
            known.update(scope.writes[position])


def _is_fixed(scope: Scope, name: str, fixed: dict[Scope, set[str]]) -> bool:
    home = home_of(scope, name)
    return home is not None and name in fixed[home]


def _steered(
    index: GraphIndex, scope: Scope, position: int, node: NodeProto, versions: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """Yields the inputs of a node that steer it, with the reason."""
    if index.function_of(node) is not None:
        return
    domain, op_type = plain_domain(node.domain), node.op_type
    version = versions.get(domain, 0)
    schema = find_schema(domain, op_type, version) if version else None
    parameters, floats = _QUANTIZATION.get(op_type, ()), _FLOAT_SLOTS.get(op_type, ())
    for slot, name in enumerate(node.input):
        if not name:
            continue
        if slot in parameters:
            yield name, f"quantization parameters, as of {NodeRef(scope, position).path}"
        elif slot in floats:
            yield name, f"it steers {op_type}, as {NodeRef(scope, position).path}"
        elif schema is not None and schema.inputs and not is_quantized_data(op_type, slot):
            formal = schema.inputs[min(slot, len(schema.inputs) - 1)]
            if formal.types and all(_is_discrete(word) for word in formal.types):
                yield name, f"it steers {op_type}, as {NodeRef(scope, position).path}"


def _is_discrete(word: str) -> bool:
    return word.startswith(("tensor(int", "tensor(uint", "tensor(bool"))
