"""Tolerances calibrated tensor by tensor, from what rounding does to the reference's own values.

One number for all float32 tensors is too much for a Softmax and too little for the logits of a deep model. What
rounding comes to at a tensor is measured instead: the reference computes its values twice, rounded otherwise the second
time, and what an element may be off is ``FACTOR`` times the largest difference between the two, and ``FACTOR`` units of
precision relative to it.

*Rounded otherwise.* PyTorch computes in float64. ONNX Runtime cannot (it has no Conv, for one, in float64), and the
reference evaluator takes minutes for what takes it seconds. So the nodes of an ONNX model run in their own types, and
all that they make is moved by up to one unit of precision, at random, before anything reads it: Monte Carlo arithmetic,
the way of CESTAC and Verificarlo. It sees what the graph makes of rounding (cancellation, many layers), and misses
how a kernel adds up, which ``FACTOR`` covers: of three models in PyTorch, float64 showed 0.6 to 0.8 times as
much at most tensors, and 4.2 times at the worst of 173.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from onnxbench.bisection._measures import epsilon, measure
from onnxbench.captures import Value
from onnxbench.drift import Tolerance
from onnxbench.messages import copy_of
from onnxbench.tensortype import dtype_name, elem_type

if TYPE_CHECKING:
    from onnxbench.model import Model
    from onnxbench.parts import Parts

FACTOR = 10.0
_FLOAT, _DOUBLE = 1, 11


def calibrated(reference: Value, other: Value, unit: float) -> Tolerance | None:
    """Returns what an element may be off; None where the two computations differ in kind, so nothing can be said.

    Args:
        reference: The reference's value.
        other: The same, rounded otherwise.
        unit: The unit of precision of the suspect's element types; one coarser than both may be off by as much more.
    """
    apart = measure(reference, other)
    if apart.problem:
        return None
    precision = max(map(epsilon, apart.dtypes))
    coarser = max(1.0, unit / precision) if precision else 1.0
    return Tolerance(FACTOR * coarser * apart.max_abs, FACTOR * coarser * precision)


def shaken(parts: Parts) -> Model:
    """Returns a model whose nodes' floating-point tensors are all moved by up to one unit of precision, at random.

    Tensors keep their names: what a node made is called otherwise, and multiplied by random numbers about 1. The same
    model is shaken in the same way each time. Constants stay as they are, and so does what bodies compute within.
    """
    from onnx import helper

    made = [name for names in parts.scope.writes for name in names if name in parts.varying]
    types = {name: elem_type(kind) for name, kind in parts.kinds(made).items() if kind.HasField("tensor_type")}
    units = {name: unit for name, dtype in types.items() if (unit := epsilon(dtype_name(dtype)))}
    proto = copy_of(parts.model.proto)
    if not any(entry.domain in ("", "ai.onnx") for entry in proto.opset_import):
        proto.opset_import.add(domain="", version=13)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    mark = "onnxbench_unmoved_"
    while any(name.startswith(mark) for name in parts.scope.tensor_names()):
        mark += "_"
    for node in nodes:
        moved = [name for name in node.output if name in units]
        node.output[:] = [mark + name if name in units else name for name in node.output]
        proto.graph.node.append(node)
        for name in moved:
            raw, around, unit = mark + name, mark + "1_" + name, units[name]
            wide = _DOUBLE if types[name] == _DOUBLE else _FLOAT
            random = helper.make_node(
                "RandomUniformLike", [raw], [around], dtype=wide, low=1 - unit, high=1 + unit,
                seed=float(zlib.crc32(name.encode()) % 2**20),
            )  # fmt: skip
            if types[name] == wide:
                proto.graph.node.extend([random, helper.make_node("Mul", [raw, around], [name])])
                continue
            one, product = mark + "2_" + name, mark + "3_" + name
            proto.graph.node.extend(
                [
                    random,
                    helper.make_node("Cast", [raw], [one], to=wide),
                    helper.make_node("Mul", [one, around], [product]),
                    helper.make_node("Cast", [product], [name], to=types[name]),
                ]
            )
    return parts.model.derive(proto)
