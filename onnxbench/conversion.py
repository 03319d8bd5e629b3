"""Values in another element type, rounded once and to nearest, with an account of what was lost.

NumPy and ml_dtypes convert, but not every pair rightly: from float64 to the small floats they round twice (to float32
first), ints beyond 53 bits too, some types saturate silently and others answer NaN, and a float out of the range of an
integer becomes an arbitrary one. Rounding to odd on the way makes the second rounding the only one that counts; what
does not fit is found and counted here, and left to the caller to judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import literals
from onnxbench.errors import UnsupportedError
from onnxbench.tensortype import dtype_name

if TYPE_CHECKING:
    import numpy as np

_FLOAT32, _STRING, _BOOL, _FLOAT16, _FLOAT64, _E8M0 = 1, 8, 9, 10, 11, 24
_COMPLEX = (14, 15)
_SATURATING = {23: (6.0, 7.0), 27: (7.5, 7.75), 28: (28.0, 30.0)}
"""Types without Inf and NaN: their largest value, and from where on a value is beyond it even when rounded."""
_FLOAT32_BYTES = 4
_STICKY = 11  # bits of a 64-bit integer that a float64 has no room for


@dataclass(slots=True)
class Loss:
    """What a conversion did to values, added up over blocks.

    Attributes:
        elements: How many there were.
        changed: How many have another value now.
        overflows: How many lay beyond the type: made Inf, NaN or the largest value.
        underflows: How many were not zero and are now.
        nans: How many NaN met a type that has none.
        largest: The largest magnitude among the overflows.
        worst: The largest difference between an old and a new value, of finite ones.
    """

    elements: int = 0
    changed: int = 0
    overflows: int = 0
    underflows: int = 0
    nans: int = 0
    largest: float = 0.0
    worst: float = 0.0

    def sentence(self) -> str:
        """What was lost, in words."""
        parts = [f"{self.changed:,} of {self.elements:,} values changed"]
        if self.overflows:
            parts.append(f"{self.overflows:,} beyond the range")
        if self.underflows:
            parts.append(f"{self.underflows:,} became 0")
        if self.changed:
            parts.append(f"largest difference {self.worst:.3g}")
        return ", ".join(parts)


def require_convertible(source: int, target: int) -> None:
    """Raises UnsupportedError if values of one element type have no meaning in the other."""
    for number in (source, target):
        if number in (_STRING, *_COMPLEX, _E8M0):
            raise UnsupportedError(f"weights are not cast from or to {dtype_name(number)}")


def convert(block: np.ndarray, number: int, loss: Loss, *, clamp: bool = False) -> np.ndarray:
    """Returns values in another element type.

    Floats are rounded to nearest, ties to even; to integers they are cut off towards zero, as Cast does.

    Args:
        block: Flat array of numbers or booleans.
        number: The element type, as ``TensorProto.DataType`` numbers it.
        loss: What happened is added to this.
        clamp: What lies beyond the type becomes its largest value instead of Inf or NaN.
    """
    import numpy as np

    loss.elements += block.size
    if number == _BOOL:
        made = np.asarray(_wide(block) != 0)
        loss.changed += int((made.astype(np.float64) != _wide(block)).sum())
        return made
    with np.errstate(all="ignore"):
        if literals.is_float(number):
            return _to_float(block, number, loss, clamp)
        return _to_integer(block, number, loss)


def _to_float(block: np.ndarray, number: int, loss: Loss, clamp: bool) -> np.ndarray:
    import numpy as np
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(number)
    if block.dtype.itemsize <= _FLOAT32_BYTES and literals.is_float(helper.np_dtype_to_tensor_dtype(block.dtype)):
        wide = block.astype(np.float32, copy=False)  # exact, and half the work
        made = wide.astype(dtype)
        back = made.astype(np.float32)
    else:
        wide = _wide(block)
        direct = number in (_FLOAT32, _FLOAT16, _FLOAT64)
        made = (wide if direct else _odd_float32(wide)).astype(dtype)
        back = made.astype(np.float64)
    if number in _SATURATING:
        loss.nans += int(np.isnan(wide).sum())
        beyond = np.abs(wide) >= _SATURATING[number][1]
    elif np.isfinite(back).all():
        beyond = np.isinf(wide)
    else:
        beyond = np.isinf(wide) & ~np.isinf(back) | np.isfinite(wide) & ~np.isfinite(back)
    if beyond.any():
        loss.overflows += int(beyond.sum())
        loss.largest = max(loss.largest, float(np.abs(wide[beyond]).max()))
        if clamp:
            top = _SATURATING[number][0] if number in _SATURATING else float(_info(dtype).max)
            made[beyond] = np.copysign(top, wide[beyond]).astype(dtype)
            back = made.astype(wide.dtype)
    _add(loss, wide, back)
    return np.asarray(made)


def _to_integer(block: np.ndarray, number: int, loss: Loss) -> np.ndarray:
    import numpy as np
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(number)
    low, high = integer_range(number)
    if block.dtype.kind in "biu" and block.dtype.isbuiltin == 1:
        values = block.astype(np.uint8) if block.dtype.kind == "b" else block
        beyond = (values < low) | (values > high)
    else:
        values = np.trunc(_wide(block))
        loss.nans += int(np.isnan(values).sum())
        beyond = (values < float(low)) | (values >= float(high + 1))
    if beyond.any():
        loss.overflows += int(beyond.sum())
        loss.largest = max(loss.largest, float(np.abs(values[beyond].astype(np.float64)).max()))
    holder: Any = values.astype(np.uint64 if high >= 1 << 63 else np.int64)
    made = holder.astype(dtype)
    _add(loss, _wide(block), made.astype(np.float64))
    return np.asarray(made)


def integer_range(number: int) -> tuple[int, int]:
    """Returns the smallest and the largest value of an integer element type."""
    from onnxbench.tensortype import dtype_bits

    bits = dtype_bits(number)
    return (0, (1 << bits) - 1) if dtype_name(number).startswith("uint") else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _add(loss: Loss, before: np.ndarray, after: np.ndarray) -> None:
    import numpy as np

    differs = before != after
    changed = int(np.count_nonzero(differs))
    if not changed:
        return
    loss.changed += changed - int(np.count_nonzero(np.isnan(before) & np.isnan(after)))
    loss.underflows += int(np.count_nonzero((after == 0) & differs))
    difference = np.abs(before - after)
    worst = float(difference.max())
    if not math.isfinite(worst):
        finite = difference[np.isfinite(difference)]
        worst = float(finite.max()) if finite.size else 0.0
    loss.worst = max(loss.worst, worst)


def _wide(block: np.ndarray) -> np.ndarray:
    """Returns values as float64: exact, but for integers of more than 53 bits, which are rounded to odd."""
    import numpy as np

    if block.dtype.kind in "iu" and block.dtype.itemsize == 8 and block.dtype.isbuiltin == 1:
        low = (1 << _STICKY) - 1
        large = (block > 1 << 53) | (block < -(1 << 53)) if block.dtype.kind == "i" else block > 1 << 53
        if large.any():
            cut = (block >> _STICKY << _STICKY) | (((block & low) != 0).astype(block.dtype) << _STICKY)
            return np.where(large, cut, block).astype(np.float64)
    return np.asarray(block.astype(np.float64))


def _odd_float32(wide: np.ndarray) -> np.ndarray:
    """Returns float64 values as float32, cut off towards zero, the last bit set where anything was cut off."""
    import numpy as np

    narrow = wide.astype(np.float32)
    again = narrow.astype(np.float64)
    narrow = np.where(np.abs(again) > np.abs(wide), np.nextafter(narrow, np.float32(0)), narrow)
    inexact = (narrow.astype(np.float64) != wide) & ~np.isnan(wide)
    return np.asarray((narrow.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32))


def _info(dtype: np.dtype[Any]) -> Any:
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return finfo(dtype)


def packed(array: np.ndarray) -> bytes:
    """Returns the raw data of a flat array, elements under a byte packed as ONNX packs them."""
    from onnx import numpy_helper

    if array.dtype.isbuiltin == 1 or array.dtype.itemsize > 1:
        return array.tobytes()
    data: bytes = numpy_helper.from_array(array).raw_data
    return data
