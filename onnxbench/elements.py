"""The elements of an array as numbers, as bits and in words: what the numerics look at, block by block.

Arrays have any element type: those of ``ml_dtypes`` that take less than a byte each, complex numbers and strings too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BLOCK = 1 << 17
"""Elements that are looked at in one go."""
_NARROW = {
    "int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6,
}  # fmt: skip


def in_blocks(*flats: Array) -> Iterator[tuple[Array, ...]]:
    """Yields ``BLOCK`` elements of each of some flat arrays of one length at a time."""
    for start in range(0, flats[0].size, BLOCK):
        yield tuple(flat[start : start + BLOCK] for flat in flats)


def bits_of(block: Array) -> Array:
    """Returns the bits of a block as unsigned integers (rows of them for elements of more than 8 bytes)."""
    import numpy as np

    block = np.ascontiguousarray(block)
    if not block.dtype.isnative:
        block = block.astype(block.dtype.newbyteorder("="))
    size = block.dtype.itemsize
    if narrow_bits(block.dtype):
        return block.view(np.uint8) & ((1 << narrow_bits(block.dtype)) - 1)
    return block.view(f"u{size}") if size <= 8 else block.view(np.uint64).reshape(-1, size // 8)


def narrow_bits(dtype: np.dtype[Any]) -> int:
    """Returns how many bits an element type has that takes less than its byte; 0 for all others."""
    return _NARROW.get(dtype.name, 0)


def is_integral(dtype: np.dtype[Any]) -> bool:
    """Tells whether elements are whole numbers or booleans, those of less than a byte included."""
    return dtype.kind in "iub" or dtype.name in ("int4", "uint4", "int2", "uint2")


def widen(block: Array) -> Array:
    """Returns a block as float64, complex numbers as complex128; integers of 64 bits are rounded."""
    import numpy as np

    if block.dtype.kind == "c":
        return block.astype(np.complex128)
    return block.astype(np.float64) if block.dtype.kind != "V" else block.astype(np.float32).astype(np.float64)


def steps_between(one: Array, other: Array) -> int:
    """Returns the largest number of steps from one representable number to the next between two blocks of one type.

    Floating-point numbers are sign and magnitude, so the magnitudes' bits count the steps from zero; numbers of
    unlike sign are as far apart as both magnitudes together.
    """
    import numpy as np

    a, b = bits_of(one), bits_of(other)
    bits = narrow_bits(one.dtype) or one.dtype.itemsize * 8
    if one.dtype.name == "float8_e8m0fnu":
        low, high = np.minimum(a, b), np.maximum(a, b)
        return int((high - low).max(initial=0))
    sign = np.uint64(1 << (bits - 1))
    a, b = a.astype(np.uint64), b.astype(np.uint64)
    left, right = a & (sign - np.uint64(1)), b & (sign - np.uint64(1))
    apart = np.where((a ^ b) & sign != 0, left + right, np.maximum(left, right) - np.minimum(left, right))
    return int(apart.max(initial=0))


def to_plain(value: Any) -> Any:
    """Returns an element as a value of Python."""
    if hasattr(value, "dtype") and value.dtype.kind == "V":
        value = value.astype("int32" if is_integral(value.dtype) else "float32")
    return value.item() if hasattr(value, "item") else value


def dtype_word(array: Array) -> str:
    """Returns the name of an array's element type: NumPy's, whatever the order of bytes; ``string`` for texts."""
    return "string" if array.dtype.kind in "OUS" else array.dtype.newbyteorder("=").name


def as_in_runtime(numbers: list[Any]) -> list[Any]:
    """Returns the numbers of a map as they were in the runtime, where Python's floats were float32."""
    import numpy as np

    if all(isinstance(number, float) and float(np.float32(number)) == number for number in numbers):
        return [np.float32(number) for number in numbers]
    return numbers
