"""Runs models for tests, and makes what comes out comparable bit for bit."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Bits = Any
"""A value as plain data: (dtype, shape, bytes) of a tensor, a list, a dict, or None."""

Source = str | Path | bytes | onnx.ModelProto


def bits(value: Any) -> Bits:
    """Returns a value in a form whose equality is equality of every bit, element type and shape included."""
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        texts = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1).tolist()]
        return ("string", array.shape, texts)
    return (array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())


def _ort_value_bits(value: Any) -> Bits:
    if not value.has_value():
        return None
    if value.data_type() == "tensor(string)":
        return bits(value.numpy())
    size = value.tensor_size_in_bytes()
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), size) if size and 0 not in shape else b""
    kind = value.data_type().removeprefix("tensor(").removesuffix(")")
    return (_ORT_NUMPY.get(kind, kind.replace("float8", "float8_")), shape, data)


def ort_session(source: Source) -> Any:
    """Returns a session that changes nothing in the graph and runs on one thread."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if isinstance(source, onnx.ModelProto):
        source = source.SerializeToString()
    elif isinstance(source, Path):
        source = os.fspath(source)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Bits]:
    """Returns the outputs by name, as bits."""
    names = list(outputs) if outputs is not None else [value.name for value in session.get_outputs()]
    names = list(dict.fromkeys(names))
    kinds = {value.name: value.type for value in session.get_outputs()}
    plain = all(kinds[name].startswith("tensor(") for name in names)
    values = {name: _ort_feed(value) for name, value in feeds.items()}
    if plain and all(value is not None for value in values.values()):
        got = session.run_with_ort_values(names, values)
        return {name: _ort_value_bits(value) for name, value in zip(names, got, strict=True)}
    return {name: bits(value) for name, value in zip(names, session.run(names, dict(feeds)), strict=True)}


def _ort_feed(value: Any) -> Any:
    """Returns an OrtValue of a tensor, or None where there is no way to make one."""
    import onnxruntime

    if isinstance(value, Raw):
        make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
        return make(np.frombuffer(value.data, dtype=f"u{value.width}").reshape(value.shape), value.element)
    if not isinstance(value, np.ndarray) or value.dtype == object:
        return None
    if value.dtype.type.__module__ == "numpy":
        return onnxruntime.OrtValue.ortvalue_from_numpy(value)
    element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
    return make(value.view(f"u{value.dtype.itemsize}"), element)


class Raw:
    """A tensor that NumPy has no type for, as it came out of ONNX Runtime: it can be fed again."""

    def __init__(self, shape: tuple[int, ...], data: bytes, element: int, width: int) -> None:
        self.shape, self.data, self.element, self.width = shape, data, element, width


_ORT_NUMPY = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "int8": "int8", "int16": "int16",
    "int32": "int32", "int64": "int64", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
    "complex64": "complex64", "complex128": "complex128",
}  # fmt: skip
_ORT_RAW = {"bfloat16": (16, 2), "float8_e4m3fn": (17, 1), "float8_e4m3fnuz": (18, 1), "float8_e5m2": (19, 1),
            "float8_e5m2fnuz": (20, 1)}  # fmt: skip


def as_feed(value: Bits) -> Any:
    """Returns a value that ``run_session`` gave, as one to feed to a session."""
    if value is None:
        return None
    if isinstance(value, list):
        return [as_feed(item) for item in value]
    if isinstance(value, dict):
        return {key: as_feed(item) for key, item in value.items()}
    kind, shape, data = value
    if kind == "string":
        return np.array([text.decode(errors="surrogateescape") for text in data], dtype=object).reshape(shape)
    if kind in _ORT_RAW:
        return Raw(shape, data, *_ORT_RAW[kind])
    return np.frombuffer(data, dtype=kind).reshape(shape)


def can_feed(value: Bits, engine: str) -> bool:
    """Tells whether an engine takes a value that it gave: ONNX Runtime's Python takes no packed numbers and no maps."""
    if engine != "ort":
        return True
    if isinstance(value, list):
        return not any(isinstance(item, dict) for item in value)
    return value is None or value[0] == "string" or value[0] in _ORT_RAW or value[0] in _ORT_NUMPY.values()


def run_ort(source: Source, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Bits]:
    """Returns what ONNX Runtime computes, optimizations off."""
    return run_session(ort_session(source), feeds, outputs)


def run_reference(source: Source, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Bits]:
    """Returns what the reference evaluator of the onnx package computes."""
    from onnx.reference import ReferenceEvaluator

    model = source if isinstance(source, onnx.ModelProto) else load_whole(source)
    evaluator = ReferenceEvaluator(model)
    names = list(outputs) if outputs is not None else list(evaluator.output_names)
    with np.errstate(all="ignore"):
        got = evaluator.run(names, dict(feeds))
    return {name: bits(value) for name, value in zip(names, got, strict=True)}


def load_whole(source: Source) -> onnx.ModelProto:
    """Returns a model with all its weights."""
    if isinstance(source, onnx.ModelProto):
        return source
    if isinstance(source, bytes):
        return onnx.load_model_from_string(source)
    return onnx.load(os.fspath(source))


ENGINES = {"ort": run_ort, "reference": run_reference}
