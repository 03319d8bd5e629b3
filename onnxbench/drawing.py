"""Inputs drawn from a seed: the same values on every machine, of the right types, in likely sizes.

Each input has a stream of random numbers of its own, so that its values depend on no other input. What is decided
without being told (the size of a dynamic dimension, the range of values) is said.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from onnxbench.captures import COMPLEX, FLOATS, STRING, Feeds, Port, Value, numpy_dtype, require_shape, shape_of
from onnxbench.errors import FeedsError, UnsupportedError
from onnxbench.tensortype import Dim, dtype_bits, dtype_name, elem_type, format_shape, format_type, raw_size

if TYPE_CHECKING:
    import numpy as np
    from onnx import TypeProto

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_BOOL = 9
_MOST_BYTES = 1 << 47
"""What a process can address at most."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Inputs drawn from a seed.

    Attributes:
        feeds: The inputs by name.
        choices: What was decided without being told, one sentence each (sizes of dynamic dimensions, ranges).
        sizes: The sizes that symbolic dimensions got.
    """

    feeds: Feeds
    choices: tuple[str, ...]
    sizes: dict[str, int]


def random_feeds(
    ports: Sequence[Port],
    *,
    shapes: Mapping[str, Sequence[Dim]] | None = None,
    dims: Mapping[str, int] | None = None,
    ranges: Mapping[str | None, tuple[float, float]] | None = None,
    limits: Mapping[str, int] | None = None,
    given: Mapping[str, Value] | None = None,
    seed: int = 0,
    iteration: int = 0,
) -> Drawn:
    """Returns inputs of the right shapes and element types, the same for the same seed on every machine.

    Each input has a stream of its own, made of the seed, the iteration and its name: adding or removing another
    input changes none of its values. Values are uniform in a closed range: [-1, 1] for floats, 0 to 9 for integers of
    16 bits and more, the whole range of smaller ones, both truth values, and short words for strings. Integers that
    index a table get the table's range (``limits``), and integer masks are all ones.

    Args:
        ports: The inputs; only required ones that ``given`` lacks are drawn.
        shapes: Shapes by input; a dimension that is None or a symbol is left to the rules below.
        dims: Sizes of symbolic dimensions. One symbol has one size in all inputs. A dynamic dimension that nothing
            sets gets 1, or what its name suggests: 224 for the height or width of an image, 16 for the length of a
            sequence, 16,000 for samples of sound.
        ranges: Closed value ranges by input; key None is for every input without one.
        limits: The number of rows of the table that an integer input indexes, by input.
        given: Inputs that exist already; they are not drawn, and their sizes bind symbols.
        seed: Any non-negative integer.
        iteration: Which set of inputs this is.

    Raises:
        FeedsError: Shapes contradict the model or each other, an input has no known rank, or a range does not fit.
        UnsupportedError: An input is a sparse tensor or a map.
    """
    sizes = dict(dims or {})
    choices: list[str] = []
    given = given or {}
    ranges = ranges or {}
    wanted = [port for port in ports if port.required and port.name not in given]
    shapes = shapes or {}
    for port in ports:
        if port.name in shapes:
            require_shape(port, shapes[port.name])
        _bind(port, given[port.name].shape if hasattr(given.get(port.name), "shape") else shapes.get(port.name), sizes)
    feeds: Feeds = {}
    for port in wanted:
        wide = shapes.get(port.name)
        bounds = ranges.get(port.name, ranges.get(None))
        limit = (limits or {}).get(port.name)
        rng = _stream(seed, iteration, port.name)
        feeds[port.name] = _draw_value(port.name, port.type, wide, sizes, bounds, limit, choices, rng)
    return Drawn(feeds, tuple(choices), sizes)


def _stream(seed: int, iteration: int, name: str) -> np.random.Generator:
    import numpy as np

    digest = hashlib.sha256(name.encode()).digest()
    words = [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 16, 4)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, iteration, *words])))


def _bind(port: Port, told: Sequence[Dim] | None, sizes: dict[str, int]) -> None:
    """Binds the symbols of an input's shape to the sizes told for it."""
    for mine, theirs in zip(told or (), port.shape or (), strict=False):
        if isinstance(mine, int) and isinstance(theirs, str):
            sizes.setdefault(theirs, mine)


def _draw_value(
    name: str,
    kind: TypeProto | None,
    told: Sequence[Dim] | None,
    sizes: dict[str, int],
    bounds: tuple[float, float] | None,
    limit: int | None,
    choices: list[str],
    rng: np.random.Generator,
) -> Value:
    which = "" if kind is None else kind.WhichOneof("value")
    if kind is None or not which:
        raise FeedsError(f"input {name!r} has no type in the model, so no values can be drawn for it")
    if which == "optional_type":
        choices.append(f"{name} is present (it is optional)")
        inner = kind.optional_type.elem_type
        return _draw_value(name, inner, told, sizes, bounds, limit, choices, rng)
    if which == "sequence_type":
        choices.append(f"{name} has 2 elements")
        inner = kind.sequence_type.elem_type
        return [_draw_value(name, inner, told, sizes, bounds, limit, choices, rng) for _ in range(2)]
    if which != "tensor_type":
        raise UnsupportedError(
            f"input {name!r} is {format_type(kind)}, for which no values can be drawn", hint="Give it from a script."
        )
    declared = shape_of(kind)
    if declared is None and told is None:
        raise FeedsError(
            f"the model does not say how many dimensions input {name!r} has", hint=f"Give them: --shape '{name}:[1,3]'."
        )
    shape = _sizes_of(name, declared if declared is not None else tuple(told or ()), told, sizes, choices)
    size = raw_size(shape, elem_type(kind))
    try:
        if size > _MOST_BYTES:
            raise MemoryError
        return _draw(name, shape, elem_type(kind), bounds, limit, choices, rng)
    except MemoryError:
        raise FeedsError(
            f"there is not enough memory for input {name!r} with the shape {format_shape(shape)} ({size:,} bytes)",
            hint="Give smaller sizes: --shape, --dim.",
        ) from None


def _sizes_of(
    name: str, declared: Sequence[Dim], told: Sequence[Dim] | None, sizes: dict[str, int], choices: list[str]
) -> tuple[int, ...]:
    """Returns a shape in numbers; sizes chosen here for symbols hold for later inputs too."""
    shape: list[int] = []
    for axis, dim in enumerate(declared):
        mine = told[axis] if told is not None else None
        symbol = mine if isinstance(mine, str) else dim
        if isinstance(mine, int):
            shape.append(mine)
        elif isinstance(symbol, int):
            shape.append(symbol)
        elif isinstance(symbol, str) and symbol in sizes:
            shape.append(sizes[symbol])
        else:
            size = _likely_size(symbol, axis, declared)
            if isinstance(symbol, str):
                sizes[symbol] = size
            choices.append(f"{name}: dimension {axis} ({symbol or '?'}) = {size}")
            shape.append(size)
    return tuple(shape)


def _likely_size(symbol: str | None, axis: int, shape: Sequence[Dim]) -> int:
    word = (symbol or "").lower()
    if axis == 0 or "batch" in word:
        return 1
    if re.search(r"height|width|image|img", word) or word in ("h", "w"):
        return 224
    if len(shape) == 4:
        channels = [shape[place] for place in (1, 3)]
        if (axis in (2, 3) and channels[0] in (1, 3, 4)) or (axis in (1, 2) and channels[1] in (1, 3, 4)):
            return 224
    if re.search(r"sample|audio|signal|wave", word):
        return 16_000
    return 16 if re.search(r"seq|len|token|time|frame|step", word) else 1


def _draw(
    name: str,
    shape: tuple[int, ...],
    dtype: int,
    bounds: tuple[float, float] | None,
    limit: int | None,
    choices: list[str],
    rng: np.random.Generator,
) -> Array:
    import numpy as np

    if dtype == STRING:
        letters = rng.integers(ord("a"), ord("z") + 1, size=(*shape, 4))
        words = ["".join(map(chr, row)) for row in letters.reshape(-1, 4)]
        made = np.empty(len(words), dtype=object)
        made[:] = words
        return made.reshape(shape)
    kind = numpy_dtype(dtype)
    if dtype in FLOATS or dtype in COMPLEX:
        low, high = bounds or ((0.5, 2.0) if dtype == 24 else (-1.0, 1.0))
        lowest, highest = _float_limits(dtype)
        if low < lowest or high > highest:
            raise FeedsError(f"the values [{low}, {high}] of input {name!r} do not fit {dtype_name(dtype)}")
        wide = np.float64 if dtype in (11, 15) else np.float32

        def uniform() -> Array:
            unit = rng.random(shape, dtype=wide)
            return np.clip(unit * wide(high - low) + wide(low), wide(low), wide(high))

        return ((uniform() + 1j * uniform()) if dtype in COMPLEX else uniform()).astype(kind)
    low, high = _integer_bounds(name, dtype, bounds, limit, choices)
    draw = np.uint64 if high > np.iinfo(np.int64).max else np.int64
    return rng.integers(int(low), int(high), size=shape, dtype=draw, endpoint=True).astype(kind)


def _integer_bounds(
    name: str, dtype: int, bounds: tuple[float, float] | None, limit: int | None, choices: list[str]
) -> tuple[int, int]:
    signed = dtype in (3, 5, 6, 7, 22, 26)
    bits = 1 if dtype == _BOOL else dtype_bits(dtype)
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if bounds is not None:
        low, high = math.ceil(bounds[0]), math.floor(bounds[1])
        if low < lowest or high > highest or low > high:
            raise FeedsError(
                f"the values [{bounds[0]}, {bounds[1]}] of input {name!r} do not fit {dtype_name(dtype)} "
                f"({lowest} to {highest})"
            )
        return low, high
    if limit is not None and limit > 0:
        choices.append(f"{name}: values 0 to {limit - 1} (it indexes a table of {limit} rows)")
        return 0, min(limit - 1, highest)
    if dtype != _BOOL and bits > 8 and "mask" in name.lower():
        choices.append(f"{name}: all ones (it is called a mask)")
        return 1, 1
    if bits <= 8:
        return lowest, highest
    choices.append(f"{name}: values 0 to 9")
    return 0, 9


def _float_limits(dtype: int) -> tuple[float, float]:
    import ml_dtypes

    if dtype in COMPLEX:
        dtype = 1 if dtype == 14 else 11
    finfo: Any = ml_dtypes.finfo
    limits = finfo(numpy_dtype(dtype))
    return (float(limits.tiny), float(limits.max)) if dtype == 24 else (float(limits.min), float(limits.max))
