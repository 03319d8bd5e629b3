"""Whether two stored tensors hold the same values, and how far apart they are: read in blocks, and only if need be.

Two tensors that are the same range of the same file are equal without a look. Where both are read, blocks of equal
bytes are not decoded. Where bytes differ, ``onnxbench.drift`` measures: what is not finite is judged before any
tolerance. How the values are stored (inline or external, raw or as typed fields) makes no difference.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import drift, weights
from onnxbench.errors import BenchError, ExternalDataError
from onnxbench.tensortype import dtype_bits, dtype_name, format_shape, raw_size

if TYPE_CHECKING:
    from onnx import SparseTensorProto, TensorProto

    from onnxbench.model import Model

_BLOCK = 1 << 18  # elements; a multiple of 8, so that a block of packed elements is whole bytes
SMALL = 256
"""Values of at most this many bytes take part in what tells nodes apart."""
_SAMPLE = 256


def type_text(tensor: Any) -> str:
    """Returns the type of a stored tensor as people write it: ``float32[3, 4]``, ``sparse(float32[3, 4])``."""
    if is_sparse(tensor):
        return f"sparse({dtype_name(tensor.values.data_type)}{format_shape(tuple(tensor.dims))})"
    return f"{dtype_name(tensor.data_type)}{format_shape(tuple(tensor.dims))}"


def is_sparse(tensor: TensorProto | SparseTensorProto) -> bool:
    """Tells whether this is a sparse tensor."""
    return hasattr(tensor, "indices")


def identity(model: Model, tensor: Any) -> tuple[Any, ...]:
    """Returns what tells stored values apart at no cost: element type, shape, and the values if they are few.

    It does not depend on how the values are stored.
    """
    if is_sparse(tensor):
        return ("sparse", tuple(tensor.dims), identity(model, tensor.values), identity(model, tensor.indices))
    dims = tuple(tensor.dims)
    number = tensor.data_type
    if number == 8:
        texts = tensor.string_data
        few = len(texts) <= 16 and sum(map(len, texts)) <= SMALL
        return (number, dims, tuple(texts) if few else None)
    if raw_size(dims, number) > SMALL:
        return (number, dims, None)
    try:
        return (number, dims, _raw(model, tensor))
    except (BenchError, ValueError, TypeError, KeyError):  # data that is missing or does not fit says nothing
        return (number, dims, None)


def sample(model: Model, tensor: Any) -> tuple[Any, ...]:
    """Returns what tells large stored values apart at a small cost: a few of their bytes besides their type."""
    known = identity(model, tensor)
    if is_sparse(tensor) or known[2] is not None or tensor.data_type == 8:
        return known
    try:
        return (*known[:2], _some_bytes(model, tensor))
    except BenchError:
        return known


def _some_bytes(model: Model, tensor: TensorProto) -> tuple[bytes, ...]:
    where = model.byte_range(tensor)
    if where is None:
        data = _raw(model, tensor)
        size = len(data)
        return tuple(data[at : at + _SAMPLE] for at in _sample_places(size))
    try:
        with open(where.file, "rb", buffering=0) as file:
            found = []
            for at in _sample_places(where.length):
                file.seek(where.offset + at)
                found.append(file.read(min(_SAMPLE, where.length - at)))
            return tuple(found)
    except OSError as error:
        raise ExternalDataError(f"{where.file} cannot be read: {error.strerror}") from None


def _sample_places(size: int) -> tuple[int, ...]:
    last = max(0, size - _SAMPLE)
    return (0, last // 3, last // 3 * 2, last)


@dataclass(slots=True)
class Distance:
    """How far apart the values of two tensors of one type are.

    Attributes:
        elements: How many elements there are.
        differing: How many differ (by more than the tolerance, if there is one).
        nonfinite: How many of these are NaN or infinite on one side only, or differ in that.
        max_abs: The largest absolute difference of elements that are finite on both sides; None if there is none.
        index: Where it is.
        before: The first tensor's value there.
        after: The second one's.
    """

    elements: int
    differing: int = 0
    nonfinite: int = 0
    max_abs: float | None = None
    index: tuple[int, ...] = ()
    before: Any = None
    after: Any = None

    @property
    def text(self) -> str:
        """In words: what is not finite first."""
        parts = []
        if self.nonfinite:
            parts.append(f"{self.nonfinite:,} NaN or Inf on one side only")
        if self.max_abs is not None:
            at = f" at {list(self.index)} ({_short(self.before)} -> {_short(self.after)})" if self.max_abs else ""
            parts.append(f"max abs {self.max_abs:.6g}{at}")
        parts.append(f"{self.differing:,} of {self.elements:,} elements differ")
        if self.max_abs == 0 and not self.nonfinite:
            parts.append("in the sign of zero or the bits of NaN only")
        return ", ".join(parts)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def same_place(model_a: Model, a: Any, model_b: Model, b: Any) -> bool:
    """Tells whether two tensors are the same bytes of the same file, so that there is nothing to compare."""
    if is_sparse(a) or not (weights.is_outside(a) and weights.is_outside(b)):
        return False
    if weights.entries(a) == weights.entries(b) and (weights.location(a) is None or model_a.folder == model_b.folder):
        return True
    one, other = model_a.byte_range(a), model_b.byte_range(b)
    if one is None or other is None or (one.offset, one.length) != (other.offset, other.length):
        return False
    return os.path.samefile(one.file, other.file)


def distance(model_a: Model, a: Any, model_b: Model, b: Any, allowed: drift.Tolerance) -> Distance | None:
    """Returns how far two tensors of one type and shape are apart; None if their bytes are equal.

    What is ``differing`` is told by the tolerance: none may be.

    Raises:
        ExternalDataError: Bytes that have to be read cannot be had.
        ModelError: The data does not fit the tensor's type and shape.
    """
    if is_sparse(a):
        return _sparse_distance(model_a, a, model_b, b, allowed)
    if same_place(model_a, a, model_b, b):
        return None
    if a == b and not weights.is_outside(a):
        return None
    found = Distance(math.prod(a.dims))
    if a.data_type == 8:
        differs = [at for at, (x, y) in enumerate(zip(a.string_data, b.string_data, strict=False)) if x != y]
        found.differing = len(differs) + abs(len(a.string_data) - len(b.string_data))
        return found if found.differing else None
    start, equal = 0, True
    for count, one, other in _pairs(model_a, a, model_b, b):
        if one != other:
            equal = False
            _measure(found, a, start, _decoded(a, count, one), _decoded(b, count, other), allowed)
        start += count
    return None if equal else found


def _measure(found: Distance, tensor: TensorProto, start: int, one: Any, other: Any, allowed: drift.Tolerance) -> None:
    import numpy as np

    block = drift.compare(one, other, allowed)
    found.differing += block.failing
    found.nonfinite += block.nonfinite
    if block.max_abs is not None and block.failing and (found.max_abs is None or block.max_abs > found.max_abs):
        at = start + (block.max_abs_index or (0,))[0]
        found.max_abs, found.before, found.after = block.max_abs, block.expected_at, block.actual_at
        found.index = tuple(int(i) for i in np.unravel_index(at, tuple(tensor.dims))) if tensor.dims else ()


def _sparse_distance(model_a: Model, a: Any, model_b: Model, b: Any, allowed: drift.Tolerance) -> Distance | None:
    elements = math.prod(a.dims)
    layout = [(part.data_type, list(part.dims)) for part in (a.values, a.indices)]
    if layout != [(part.data_type, list(part.dims)) for part in (b.values, b.indices)]:
        return Distance(elements, max(math.prod(a.values.dims), math.prod(b.values.dims)))
    moved = distance(model_a, a.indices, model_b, b.indices, drift.BITWISE)
    if moved is not None and moved.differing:
        return Distance(elements, moved.differing)
    found = distance(model_a, a.values, model_b, b.values, allowed)
    if found is not None:
        found.elements = elements
    return found


def _pairs(model_a: Model, a: TensorProto, model_b: Model, b: TensorProto) -> Iterator[tuple[int, bytes, bytes]]:
    """Yields counts of elements and the raw bytes of both sides, block by block."""
    total, bits = math.prod(a.dims), dtype_bits(a.data_type)
    for done, one, other in zip(
        range(0, total, _BLOCK), _blocks(model_a, a, total, bits), _blocks(model_b, b, total, bits), strict=True
    ):
        yield min(_BLOCK, total - done), one, other


def _blocks(model: Model, tensor: TensorProto, total: int, bits: int) -> Iterator[bytes]:
    where = model.byte_range(tensor)
    sizes = [(min(_BLOCK, total - done) * bits + 7) // 8 for done in range(0, total, _BLOCK)]
    if where is None:
        data, at = _raw(model, tensor), 0
        for size in sizes:
            yield data if size == len(data) else data[at : at + size]
            at += size
        return
    try:
        with open(where.file, "rb", buffering=0) as file:
            file.seek(where.offset)
            for size in sizes:
                data = file.read(size)
                while len(data) < size:
                    more = file.read(size - len(data))
                    if not more:
                        raise ExternalDataError(f"{where.file} ended in the middle of tensor {tensor.name!r}")
                    data += more
                yield data
    except OSError as error:
        raise ExternalDataError(f"{where.file} cannot be read: {error.strerror}") from None


def _raw(model: Model, tensor: TensorProto) -> bytes:
    """Returns the raw bytes of a tensor whose values are in the structure, or are few."""
    if not weights.is_outside(tensor) and tensor.HasField("raw_data"):
        data: bytes = tensor.raw_data
        if len(data) == raw_size(tensor.dims, tensor.data_type):
            return data
    from onnx import numpy_helper

    made: bytes = numpy_helper.from_array(model.array(tensor)).raw_data
    return made


def _decoded(tensor: TensorProto, count: int, data: bytes) -> Any:
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(TensorProto(data_type=tensor.data_type, dims=[count], raw_data=data))
