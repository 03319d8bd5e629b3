"""Types of tensors as people write them: ``float32[1, 3, height, width]``.

Element types follow the ONNX names in lower case (``float32`` for ``FLOAT``, ``float8e4m3fn``, ``int4``), and
the usual short spellings are understood. Sequences, optionals, maps and sparse tensors are shown as
``sequence(float32[?])`` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from onnx import TensorProto, TensorShapeProto, TypeProto, ValueInfoProto

Dim = int | str | None
"""One dimension: a size, a symbolic name, or None when unknown."""

_NAMES: dict[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2", 27: "float6e2m3", 28: "float6e3m2",
}  # fmt: skip
_BITS: dict[int, int] = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6, 28: 6,
}  # fmt: skip
_ALIASES: dict[str, str] = {
    "float": "float32", "f32": "float32", "fp32": "float32", "single": "float32",
    "double": "float64", "f64": "float64", "fp64": "float64",
    "half": "float16", "f16": "float16", "fp16": "float16", "bf16": "bfloat16",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "long": "int64", "int": "int32",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
    "str": "string", "boolean": "bool", "fp8": "float8e4m3fn", "i4": "int4", "u4": "uint4",
}  # fmt: skip
_NUMBERS = {name: number for number, name in _NAMES.items()}


def dtype_name(number: int) -> str:
    """Returns the name of a ``TensorProto.DataType`` number; ``undefined`` for 0, ``dtype<n>`` if unknown."""
    return _NAMES.get(number, "undefined" if number == 0 else f"dtype<{number}>")


def schema_word(number: int) -> str:
    """Returns the name of an element type as schemas and the text form of onnx spell it: ``float``, ``int64``."""
    return {1: "float", 11: "double"}.get(number, dtype_name(number))


def dtype_number(name: str) -> int:
    """Returns the ``TensorProto.DataType`` number of a spelling such as ``fp16``, ``FLOAT`` or ``np.int64``.

    Raises:
        UsageError: No element type is spelled so.
    """
    spelled = name.strip().lower().removeprefix("np.").removeprefix("torch.").removeprefix("numpy.")
    number = _NUMBERS.get(_ALIASES.get(spelled, spelled))
    if number is None:
        raise UsageError(
            f"{name!r} is not an element type",
            hint=did_you_mean(spelled, [*_NUMBERS, *_ALIASES]) or f"Element types: {', '.join(_NUMBERS)}.",
        )
    return number


def is_dtype(name: str) -> bool:
    """Tells whether ``name`` spells an element type."""
    spelled = name.strip().lower()
    return _ALIASES.get(spelled, spelled) in _NUMBERS


def dtype_bits(number: int) -> int:
    """Returns the bits that one element takes in raw data; 0 for strings, which have no raw form."""
    return _BITS.get(number, 0)


def byte_width(number: int) -> int:
    """Returns the bytes that one element takes in an array, where none are packed; a guess for strings."""
    return max(1, (dtype_bits(number) or 256) // 8)


def raw_size(dims: Sequence[int], number: int) -> int:
    """Returns the bytes of a tensor's raw data; elements under a byte are packed, the last byte padded."""
    return (math.prod(dims) * dtype_bits(number) + 7) // 8


def tensor_shape(value: TypeProto) -> tuple[Dim, ...] | None:
    """Returns the shape of a tensor type: None if even the rank is unknown (or it is no tensor)."""
    kind = value.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return None
    tensor = value.tensor_type if kind == "tensor_type" else value.sparse_tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(_dim(dim) for dim in tensor.shape.dim)


def _dim(dim: TensorShapeProto.Dimension) -> Dim:
    which = dim.WhichOneof("value")
    if which == "dim_value":
        return dim.dim_value
    # Some exporters write a question mark where the dimension has no name; it is not one name for all of them.
    return dim.dim_param if which == "dim_param" and dim.dim_param not in ("", "?") else None


def elem_type(value: TypeProto) -> int:
    """Returns the element type number of a (sparse) tensor type; 0 when undefined or no tensor."""
    kind = value.WhichOneof("value")
    if kind == "tensor_type":
        return value.tensor_type.elem_type
    return value.sparse_tensor_type.elem_type if kind == "sparse_tensor_type" else 0


def format_shape(shape: Sequence[Dim] | None) -> str:
    """Returns ``[1, 3, height, ?]``; ``[...]`` when the rank is unknown."""
    return "[...]" if shape is None else f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def format_type(value: TypeProto | None) -> str:
    """Returns a type as text: ``float32[1, 3, ?]``, ``sequence(int64[...])``, ``?`` when nothing is known."""
    wrappers = []
    while value is not None:
        kind = value.WhichOneof("value")
        if kind == "sequence_type":
            wrappers.append("sequence({})")
            value = value.sequence_type.elem_type
        elif kind == "optional_type":
            wrappers.append("optional({})")
            value = value.optional_type.elem_type
        elif kind == "map_type":
            wrappers.append(f"map({dtype_name(value.map_type.key_type)}, {{}})")
            value = value.map_type.value_type
        else:
            break
    text = "?"
    if value is not None and (kind := value.WhichOneof("value")):
        if kind == "opaque_type":
            text = f"opaque({value.opaque_type.domain}::{value.opaque_type.name})"
        else:
            text = f"{dtype_name(elem_type(value))}{format_shape(tensor_shape(value))}"
            text = f"sparse({text})" if kind == "sparse_tensor_type" else text
    for wrapper in reversed(wrappers):
        text = wrapper.format(text)
    return text


def make_type(number: int, shape: Sequence[Dim] | None) -> TypeProto:
    """Returns a tensor ``TypeProto``; a ``shape`` of None leaves the rank unknown."""
    from onnx import TypeProto

    value = TypeProto()
    value.tensor_type.elem_type = number
    if shape is not None:
        value.tensor_type.shape.SetInParent()
        for dim in shape:
            added = value.tensor_type.shape.dim.add()
            if isinstance(dim, int):
                added.dim_value = dim
            elif dim is not None:
                added.dim_param = dim
    return value


def make_value_info(name: str, value: TypeProto) -> ValueInfoProto:
    """Returns a ``ValueInfoProto`` of that name and type."""
    from onnx import ValueInfoProto

    info = ValueInfoProto(name=name)
    info.type.CopyFrom(value)
    return info


def initializer_type(tensor: TensorProto) -> TypeProto:
    """Returns the type of an initializer."""
    return make_type(tensor.data_type, tuple(tensor.dims))


def is_complete(value: TypeProto | None) -> bool:
    """Tells whether a type says at least its kind and element type (its shape may be unknown)."""
    while value is not None:
        kind = value.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            return elem_type(value) != 0
        if kind == "sequence_type":
            value = value.sequence_type.elem_type
        elif kind == "optional_type":
            value = value.optional_type.elem_type
        elif kind == "map_type":
            value = value.map_type.value_type
        else:
            return bool(kind == "opaque_type")
    return False


def agree(stated: TypeProto, known: TypeProto) -> bool:
    """Tells whether two types can both be true: same kind and element type, no dimension of two sizes."""
    if stated.WhichOneof("value") != known.WhichOneof("value"):
        return not is_complete(stated) or not is_complete(known)
    if 0 not in (elem_type(stated), elem_type(known)) and elem_type(stated) != elem_type(known):
        return False
    first, second = tensor_shape(stated), tensor_shape(known)
    if first is None or second is None:
        return True
    return len(first) == len(second) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(first, second, strict=True)
    )
