"""Models in a form in which equal means the same model, however it is stored."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from onnxbench import weights
from onnxbench.model import Model

_DATA = (
    "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "raw_data", "external_data",
    "data_location",
)  # fmt: skip


def normal(model: Model) -> onnx.ModelProto:
    """Returns a model with all data raw and inline, and no field that only repeats its default.

    Fields that onnx does not know are left out, as is the way a tensor's data is stored; everything else stays.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.DiscardUnknownFields()
    for tensor in weights.tensors(proto):
        if tensor.data_type not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            raw = numpy_helper.from_array(model.array(tensor)).raw_data
            for field in _DATA:
                tensor.ClearField(field)
            tensor.raw_data = raw
    pending = [proto]
    while pending:
        message = pending.pop()
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending.extend(value if field.is_repeated else [value])
            elif not field.is_repeated and field.containing_oneof is None and value == field.default_value:
                message.ClearField(field.name)
    return proto
