"""Rules on the numbers in weights; they read the weights, block by block, and are looked at only when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.errors import ExternalDataError, ModelError
from onnxbench.lint.data import is_sound
from onnxbench.lint.deployment import INT64_RANGE
from onnxbench.lint.facts import SMALL, Facts
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.lint.storage import Held, held_tensors
from onnxbench.tensortype import dtype_bits, raw_size

if TYPE_CHECKING:
    import numpy as np

    from onnxbench.model import Model

checks = Checks("Values of weights (with --values)")

_BLOCK = 8 << 20  # bytes
_FLOAT16_MAX = 65504.0
_FLOAT16_ZERO = 2.0**-25  # half of the smallest float16: this and less rounds to zero
_SHARE = 0.01  # of the elements of a weight; trained weights always have a few that hardly matter
_INT32_MIN, _INT32_MAX = -(1 << 31), (1 << 31) - 1

NAN = Rule(
    code="OB901",
    name="nan-constant",
    severity=Severity.WARNING,
    summary="A constant has NaN in it.",
    why="Everything computed with it is NaN, and comparisons with NaN are false, so that checks with a tolerance "
    "pass. A training run that diverged, or a float16 conversion that overflowed, leaves such weights.",
    mend="Look at where the weight comes from.",
    example="""
        <float[2] w = {nan, 1}>
        """,
    needs="values",
)
INFINITE = Rule(
    code="OB902",
    name="infinite-constant",
    severity=Severity.INFO,
    summary="A constant has an infinity in it.",
    why="-inf in a mask is common and works until a whole row is masked (Softmax then gives NaN). Anything else "
    "overflowed.",
    mend="In masks use the most negative finite number of the type.",
    example="""
        <float[2] mask = {0, -inf}>
        """,
    needs="values",
)
FLOAT16_OVERFLOW = Rule(
    code="OB903",
    name="float16-overflow",
    severity=Severity.WARNING,
    summary="A constant has numbers that are infinite in float16.",
    why="float16 ends at 65504. A conversion to float16 turns the number into infinity, or clamps it.",
    mend="Keep the nodes that read it in float32 (or use bfloat16); for masks, use -65504 or -1e4.",
    example="""
        <float[1] m = {-1e9}>
        """,
    needs="values",
)
FLOAT16_UNDERFLOW = Rule(
    code="OB904",
    name="float16-underflow",
    severity=Severity.INFO,
    summary="A constant has numbers that are zero in float16.",
    why="float16 has nothing between 0 and 6e-8. A few such numbers in a weight hardly matter; where they are more "
    "than one in a hundred it is an info. A lone number is an epsilon that guards a division, and zero does not: a "
    "warning.",
    mend="Keep the nodes that read it in float32, or use a larger epsilon (1e-7 at least).",
    example="""
        <float eps = {1e-12}>   v = Add (variance, eps)   d = Sqrt (v)
        """,
    needs="values",
)


@dataclass(slots=True)
class _Summary:
    """What was seen of a tensor's elements."""

    size: int = 0
    nans: int = 0
    infinities: int = 0
    largest: float = 0.0
    over: int = 0
    under: int = 0
    smallest: float = math.inf
    beyond_int32: int | None = None


@checks(NAN, INFINITE, FLOAT16_OVERFLOW, FLOAT16_UNDERFLOW, INT64_RANGE)
def _values(facts: Facts) -> Iterator[Finding | NotRun]:
    unread: list[str] = []
    for held in held_tensors(facts):
        try:
            seen = _summary(facts.model, held)
        except (ExternalDataError, ModelError) as error:
            unread.append(error.message)
            continue
        if seen is not None:
            yield from _judge(facts, held, seen)
    if unread:
        codes = (NAN.code, INFINITE.code, FLOAT16_OVERFLOW.code, FLOAT16_UNDERFLOW.code)
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        yield NotRun(codes, f"{unread[0]}{more}")


def _judge(facts: Facts, held: Held, seen: _Summary) -> Iterator[Finding]:
    def found(rule: Rule, message: str, severity: Severity | None = None) -> Finding:
        words = f"constant {held.name!r} {message}"
        return facts.find(rule, words, scope=held.scope, position=held.position, tensor=held.name, severity=severity)

    total = f"of {seen.size:,} elements"
    if seen.nans:
        yield found(NAN, f"has {seen.nans:,} NaN {total}")
    if seen.infinities:
        yield found(INFINITE, f"has {seen.infinities:,} infinities {total}")
    if held.tensor.data_type in (1, 11, 16):
        if seen.over:
            yield found(FLOAT16_OVERFLOW, f"has {seen.over:,} {total} beyond 65504, up to {seen.largest:.3g}")
        lone = seen.size == 1
        if (lone and seen.under) or seen.under > _SHARE * seen.size:
            words = (
                f"is {seen.smallest:.3g}"
                if lone
                else f"has {seen.under:,} {total} below 3e-8, down to {seen.smallest:.3g}"
            )
            yield found(FLOAT16_UNDERFLOW, f"{words}, which is zero in float16", Severity.WARNING if lone else None)
    if seen.beyond_int32 is not None and (weights.is_outside(held.tensor) or seen.size > SMALL):
        yield found(INT64_RANGE, f"has {seen.beyond_int32:,}, which int32 cannot hold")


def _summary(model: Model, held: Held) -> _Summary | None:
    """Looks at a tensor's elements, a block at a time; None for element types that have nothing to look at."""
    import numpy as np

    number = held.tensor.data_type
    if number not in (1, 7, 10, 11, 13, 16, 17, 18, 19, 20):
        return None
    seen = _Summary()
    for block in _blocks(model, held):
        seen.size += block.size
        if number in (7, 13):
            odd = block[(block > _INT32_MAX) | (block < _INT32_MIN)] if number == 7 else block[block > _INT32_MAX]
            if odd.size and seen.beyond_int32 is None:
                seen.beyond_int32 = int(odd.flat[0])
            continue
        with np.errstate(all="ignore"):
            absolute = np.abs(block if number in (1, 10, 11) else block.astype(np.float32))
        nans = int(np.isnan(absolute).sum())
        finite = absolute[np.isfinite(absolute)] if nans or np.isinf(absolute).any() else absolute
        seen.nans += nans
        seen.infinities += block.size - nans - finite.size
        if not finite.size:
            continue
        seen.largest = max(seen.largest, float(finite.max()))
        seen.over += int((finite > _FLOAT16_MAX).sum())
        tiny = finite[(finite <= _FLOAT16_ZERO) & (finite > 0)]
        if tiny.size:
            seen.under += int(tiny.size)
            seen.smallest = min(seen.smallest, float(tiny.min()))
    return seen


def _blocks(model: Model, held: Held) -> Iterator[np.ndarray]:
    """Yields the elements of a tensor in flat blocks; nothing for data that does not have the size of its shape."""
    import numpy as np
    from onnx import helper, numpy_helper

    tensor = held.tensor
    where = model.byte_range(tensor)
    if where is None:
        if is_sound(tensor):
            yield numpy_helper.to_array(tensor).ravel()
        return
    if where.length != raw_size(tensor.dims, tensor.data_type):
        return
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
    per_block = _BLOCK // (dtype_bits(tensor.data_type) // 8)
    left = where.length // dtype.itemsize
    with open(where.file, "rb") as file:
        file.seek(where.offset)
        while left:
            block = np.fromfile(file, dtype, min(per_block, left))
            if not block.size:
                return
            left -= block.size
            yield block
