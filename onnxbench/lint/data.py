"""Which field of a tensor holds its data, and how many values of it there must be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxbench.tensortype import dtype_bits, raw_size

if TYPE_CHECKING:
    from onnx import TensorProto

FIELDS: dict[str, frozenset[int]] = {
    "float_data": frozenset({1, 14}),
    "int32_data": frozenset({2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28}),
    "string_data": frozenset({8}),
    "int64_data": frozenset({7}),
    "double_data": frozenset({11, 15}),
    "uint64_data": frozenset({12, 13}),
}
"""The typed fields of a TensorProto, and the element types that use each."""


def is_element_type(number: int) -> bool:
    """Tells whether an element type exists."""
    return number == 8 or dtype_bits(number) > 0


def filled_fields(tensor: TensorProto) -> list[str]:
    """Returns the fields that hold data; a sound tensor with elements has one."""
    return [name for name in (*FIELDS, "raw_data") if len(getattr(tensor, name))]


def typed_size(number: int, count: int) -> int:
    """Returns how many values a typed field has for ``count`` elements (complex: two each; 4 and 2 bits: packed)."""
    if number in (14, 15):
        return 2 * count
    per_value = {2: 4, 4: 2}.get(dtype_bits(number), 1)
    return -(-count // per_value)


def is_sound(tensor: TensorProto) -> bool:
    """Tells whether a tensor's inline data is what its type and shape take."""
    number = tensor.data_type
    if any(dim < 0 for dim in tensor.dims) or not is_element_type(number):
        return False
    filled = filled_fields(tensor)
    count: int = math.prod(tensor.dims)
    if not filled:
        return count == 0
    if filled == ["raw_data"]:
        held: bytes = tensor.raw_data
        return number != 8 and len(held) == raw_size(tensor.dims, number)
    field = filled[0]
    if len(filled) > 1 or number not in FIELDS[field]:
        return False
    size: int = len(getattr(tensor, field))
    return size == typed_size(number, count)
