"""A bfloat16 model in a form that ONNX Runtime runs, which has hardly any kernels for bfloat16 on the CPU.

Everything of bfloat16 becomes float32, and what a node made in bfloat16 is rounded to it, by a Cast there and back. So
each node computes in float32 and rounds once, as tensor cores do; values, overflow and loss of precision are those of
the model as it is. What the model casts to bfloat16 is rounded at that place too. Nothing else of the graph changes: if
a tensor is read in a type that it does not have, the form is as invalid as the model.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxbench import model, weights
from onnxbench.graph import GraphIndex
from onnxbench.inference import TypeFinder
from onnxbench.inlining import inline_functions
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.precision._signatures import set_element
from onnxbench.tensortype import elem_type

_SAYING_TYPES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision")
_TYPE = 13  # AttributeProto type


def in_float32(proto: onnx.ModelProto) -> Model:
    """Returns the form of a bfloat16 model, without local functions, with float32 inputs and outputs for bfloat16."""
    whole, _ = inline_functions(model.from_proto(copy_of(proto)))
    index = GraphIndex(whole.proto)
    finder = TypeFinder(whole, index)
    made = [
        {name for name, kind in finder.find(scope, [n for each in scope.writes for n in each]).items()
         if elem_type(kind) == TensorProto.BFLOAT16}
        for scope in index.scopes
    ]  # fmt: skip
    count = 0
    for scope, names in reversed([*zip(index.scopes, made, strict=True)]):  # inner first: nodes are copied with bodies
        nodes = []
        for node in scope.nodes:
            for attribute in node.attribute:
                if attribute.name in _SAYING_TYPES and attribute.i == TensorProto.BFLOAT16:
                    attribute.i = TensorProto.FLOAT
                elif attribute.type == _TYPE:
                    _widen_type(attribute.tp)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            nodes.append(copy)
            for slot, name in enumerate(node.output):
                if name in names and node.op_type != "Constant":
                    raw, half = f"bf16_raw_{count}", f"bf16_{count}"
                    count += 1
                    copy.output[slot] = raw
                    nodes.append(helper.make_node("Cast", [raw], [half], to=TensorProto.BFLOAT16))
                    nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
        del scope.graph.node[:]
        scope.graph.node.extend(nodes)
        del scope.graph.value_info[:]
        for info in (*scope.graph.input, *scope.graph.output):
            _widen_type(info.type)
    for tensor in weights.tensors(whole.proto):
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(values)
    return whole


def _widen_type(value: onnx.TypeProto) -> None:
    text = str(value)
    if f"elem_type: {TensorProto.BFLOAT16}" in text:
        set_element(value, TensorProto.FLOAT)
