"""A body of an If, Loop or Scan as a model of its own, to be run on what flows into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxbench.captures import Value, onnx_dtype
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART
from onnxbench.tensortype import make_type

if TYPE_CHECKING:
    from onnx import TypeProto

    from onnxbench.graph import Scope
    from onnxbench.model import Model


def body_model(model: Model, body: Scope, values: Mapping[str, Value], stated: Mapping[str, TypeProto]) -> Model:
    """Returns a body as a model whose inputs are these values; captured initializers come along as they are.

    Args:
        model: The model that the body is in.
        body: The body.
        values: What flows into it: values of its own inputs, and of what it captures and the model does not store.
        stated: Types of the model's tensors, for values that are no arrays.
    """
    source = model.proto
    proto = type(source)()
    proto.ir_version = max(source.ir_version, FIRST_IR_WITH_WEIGHTS_APART)
    proto.opset_import.extend(source.opset_import)
    proto.functions.extend(source.functions)
    proto.graph.CopyFrom(body.graph)
    graph = proto.graph
    declared = {info.name: info.type for info in graph.input if info.HasField("type")}
    del graph.input[:]
    for name, value in values.items():
        info = graph.input.add(name=name)
        kind = type_of(value) or declared.get(name) or stated.get(name)
        if kind is not None:
            info.type.CopyFrom(kind)
    stored = set(body.captures) - set(values)
    graph.initializer.extend(t for t in source.graph.initializer if t.name in stored)
    graph.sparse_initializer.extend(t for t in source.graph.sparse_initializer if t.values.name in stored)
    for info in graph.output:
        info.ClearField("type")  # what a body declares may be wrong for this run
    return model.derive(proto)


def type_of(value: Value) -> TypeProto | None:
    """Returns the type of an array, its sizes left open; None for what is no array."""
    if not hasattr(value, "dtype"):
        return None
    return make_type(onnx_dtype(value.dtype), [None] * value.ndim)
