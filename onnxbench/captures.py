"""Values of tensors outside a model: read from every usual file, drawn from a seed, checked, and saved.

``Feeds`` are a model's inputs by name. They come from ``.npz``, ``.npy``, folders of them, the ``.pb`` test sets of
the onnx package, raw ``.bin`` files, Polygraphy's JSON, or a Python function (``load``); or they are drawn
(``random_feeds``). Reading a data file never runs code: pickles are refused. A script is code, and runs.

What onnxbench saves is a plain ``.npz``, a zip of ``.npy`` files, that ``numpy.load`` opens as it is. What NumPy
cannot express is described by one more entry, ``__onnxbench__``, a JSON text:

    {"version": 1,
     "dtypes": {"w": "bfloat16"},                entry "w" holds the bits, as uint8 or uint16 of the same shape
                                                 (int4 and the like one element to a byte)
     "values": {"seq": {"list": ["seq[0]"]},     a sequence: its elements are the entries named
                "probs": {"map": [[0, 0.5]]},    a map: its keys and numbers
                "opt": null}}                    an optional that is absent

``Capture`` reads such a file lazily, ``CaptureWriter`` writes it piece by piece, and both keep at most one tensor
in memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from onnxbench.errors import FeedsError, NotFoundError, OutputError, UnsupportedError, UsageError, did_you_mean
from onnxbench.tensortype import (
    Dim,
    dtype_bits,
    dtype_name,
    dtype_number,
    elem_type,
    format_shape,
    format_type,
    raw_size,
    tensor_shape,
)

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, TypeProto

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

Value: TypeAlias = Any
"""A NumPy array; a list for a sequence; a dict for a map; None for an optional that is absent."""
Feeds: TypeAlias = dict[str, Value]

MANIFEST = "__onnxbench__"
DEFAULT_FUNCTION = "load_data"
RAW_ENDINGS = (".bin", ".raw", ".dat")
_STRING, _BOOL = 8, 9
_FLOATS = {1, 10, 11, 16, 17, 18, 19, 20, 23, 24}
_COMPLEX = {14, 15}


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: The tensor.
        type: Its type as far as known.
        required: False for an input that an initializer backs, and for outputs.
    """

    name: str
    type: TypeProto | None
    required: bool = True

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """The shape of a tensor; None when the rank is unknown or it is no tensor."""
        return None if self.type is None else _shape_of(self.type)

    @property
    def dtype(self) -> int:
        """The element type of a tensor as ``TensorProto.DataType``; 0 when unknown or no tensor."""
        return 0 if self.type is None else elem_type(self.type)

    @property
    def kind(self) -> str:
        """``tensor``, ``sequence``, ``optional``, ``map``, ``sparse_tensor``, or ``""`` when nothing is known."""
        return "" if self.type is None else (self.type.WhichOneof("value") or "").removesuffix("_type")


def _shape_of(kind: TypeProto) -> tuple[Dim, ...] | None:
    """Returns the shape of a tensor type; ``-1`` and ``?``, as some exporters write them, are unknown dimensions."""
    shape = tensor_shape(kind)
    unknown = (None, "?", "*", "-1", "None")
    return (
        None
        if shape is None
        else tuple(None if dim in unknown or (isinstance(dim, int) and dim < 0) else dim for dim in shape)
    )


def input_ports(graph: GraphProto) -> list[Port]:
    """Returns the inputs of a graph in order; those that an initializer backs are not required."""
    backed = {tensor.name for tensor in graph.initializer}
    backed.update(tensor.values.name for tensor in graph.sparse_initializer)
    return [
        Port(info.name, info.type if info.HasField("type") else None, info.name not in backed) for info in graph.input
    ]


# ---------------------------------------------------------------- drawing inputs


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


def require_shape(port: Port, told: Sequence[Dim]) -> None:
    """Raises FeedsError when a shape told for an input (or the elements of a sequence) is not one that it can have."""
    kind = port.type
    while kind is not None and kind.WhichOneof("value") in ("sequence_type", "optional_type"):
        kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
    declared = None if kind is None else _shape_of(kind)
    if declared is None:
        return
    if len(told) != len(declared):
        raise FeedsError(
            f"input {port.name!r} is given the shape {format_shape(told)}, but the model wants "
            f"{len(declared)} dimensions: {format_shape(declared)}"
        )
    for axis, (mine, theirs) in enumerate(zip(told, declared, strict=True)):
        if isinstance(theirs, int) and mine is not None and theirs != mine:
            raise FeedsError(
                f"input {port.name!r} is given the shape {format_shape(told)}, but the model fixes dimension {axis} "
                f"at {theirs}: {format_shape(declared)}"
            )


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
    declared = _shape_of(kind)
    if declared is None and told is None:
        raise FeedsError(
            f"the model does not say how many dimensions input {name!r} has", hint=f"Give them: --shape '{name}:[1,3]'."
        )
    shape = _sizes_of(name, declared if declared is not None else tuple(told or ()), told, sizes, choices)
    return _draw(name, shape, elem_type(kind), bounds, limit, choices, rng)


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

    if dtype == _STRING:
        letters = rng.integers(ord("a"), ord("z") + 1, size=(*shape, 4))
        words = ["".join(map(chr, row)) for row in letters.reshape(-1, 4)]
        made = np.empty(len(words), dtype=object)
        made[:] = words
        return made.reshape(shape)
    kind = numpy_dtype(dtype)
    if dtype in _FLOATS or dtype in _COMPLEX:
        low, high = bounds or ((0.5, 2.0) if dtype == 24 else (-1.0, 1.0))
        lowest, highest = _float_limits(dtype)
        if low < lowest or high > highest:
            raise FeedsError(f"the values [{low}, {high}] of input {name!r} do not fit {dtype_name(dtype)}")
        wide = np.float64 if dtype in (11, 15) else np.float32

        def uniform() -> Array:
            unit = rng.random(shape, dtype=wide)
            return np.clip(unit * wide(high - low) + wide(low), wide(low), wide(high))

        return ((uniform() + 1j * uniform()) if dtype in _COMPLEX else uniform()).astype(kind)
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

    if dtype in _COMPLEX:
        dtype = 1 if dtype == 14 else 11
    finfo: Any = ml_dtypes.finfo
    limits = finfo(numpy_dtype(dtype))
    return (float(limits.tiny), float(limits.max)) if dtype == 24 else (float(limits.min), float(limits.max))


def numpy_dtype(number: int) -> np.dtype[Any]:
    """Returns the NumPy (or ``ml_dtypes``) element type of a ``TensorProto.DataType``; object for strings.

    Raises:
        UnsupportedError: There is none.
    """
    from onnx import helper

    try:
        return helper.tensor_dtype_to_np_dtype(number)
    except (KeyError, ValueError, TypeError):
        raise UnsupportedError(f"no NumPy type holds elements of type {dtype_name(number)}") from None


def onnx_dtype(dtype: np.dtype[Any]) -> int:
    """Returns the ``TensorProto.DataType`` of a NumPy (or ``ml_dtypes``) element type; 0 when there is none."""
    from onnx import helper

    if dtype.kind in "OUS":
        return _STRING
    try:
        return int(helper.np_dtype_to_tensor_dtype(dtype))
    except (KeyError, ValueError, TypeError):
        return 0


# ---------------------------------------------------------------- checking inputs


def check_feeds(feeds: Mapping[str, Value], ports: Sequence[Port], *, cast: bool = False) -> Feeds:
    """Returns the feeds as a runtime wants them: contiguous arrays in the order of the inputs.

    Python numbers and lists become arrays of the wanted type, and an optional that is not given is absent. Arrays must
    have the type already, unless ``cast`` is set: then they are converted where no value changes its kind (float to
    float, integer to integer or float).

    Args:
        feeds: Values by input.
        ports: The inputs of the model.
        cast: Convert element types.

    Raises:
        FeedsError: Inputs are missing or unknown, or shapes or types do not fit; every problem is a line of details.
    """
    known = {port.name: port for port in ports}
    problems: list[str] = []
    hint: str | None = None
    for name in feeds:
        if name not in known:
            problems.append(f"{name!r} is not an input of the model")
            hint = hint or did_you_mean(name, known)
    fitted: Feeds = {}
    for port in ports:
        if port.name not in feeds:
            if port.kind == "optional":
                fitted[port.name] = None
            elif port.required:
                problems.append(f"input {port.name!r} ({format_type(port.type)}) is missing")
            continue
        try:
            fitted[port.name] = _fit(port.name, feeds[port.name], port.type, cast)
        except FeedsError as error:
            problems.append(error.message)
            hint = hint or error.hint
    if problems:
        given = ", ".join(map(repr, feeds)) or "nothing"
        raise FeedsError(
            problems[0] if len(problems) == 1 else f"the feeds do not fit the model ({len(problems)} problems)",
            details=(*problems[:20], f"given: {given[:400]}") if len(problems) > 1 else (f"given: {given[:400]}",),
            hint=hint,
        )
    return fitted


def _fit(name: str, value: Value, kind: TypeProto | None, cast: bool) -> Value:
    import numpy as np

    which = None if kind is None else kind.WhichOneof("value")
    if kind is None or which is None:
        return value
    if which == "optional_type":
        return None if value is None else _fit(name, value, kind.optional_type.elem_type, cast)
    if value is None:
        raise FeedsError(f"input {name!r} is {format_type(kind)} and cannot be absent")
    if which == "sequence_type":
        if not isinstance(value, (list, tuple)):
            raise FeedsError(f"input {name!r} is {format_type(kind)} and wants a list, not {_describe(value)}")
        inner = kind.sequence_type.elem_type
        return [_fit(f"{name}[{i}]", item, inner, cast) for i, item in enumerate(value)]
    if which == "map_type":
        if not isinstance(value, dict):
            raise FeedsError(f"input {name!r} is {format_type(kind)} and wants a dict, not {_describe(value)}")
        return value
    if which != "tensor_type":
        raise UnsupportedError(f"input {name!r} is {format_type(kind)}, which cannot be fed")
    wanted = kind.tensor_type.elem_type
    array = value if isinstance(value, np.ndarray) else _from_python(name, value, wanted)
    array = _fit_dtype(name, array, wanted, cast, typed=isinstance(value, np.ndarray))
    _check_shape(name, array.shape, _shape_of(kind))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _describe(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def _from_python(name: str, value: Value, wanted: int) -> Array:
    import numpy as np

    if isinstance(value, dict):
        raise FeedsError(f"input {name!r} wants a tensor, not a dict")
    if callable(getattr(value, "detach", None)):  # a torch tensor
        value = value.detach().cpu()
    try:
        return np.asarray(value, dtype=object) if wanted == _STRING else np.asarray(value)
    except (ValueError, TypeError) as error:
        raise FeedsError(f"input {name!r}: {type(value).__name__} is no array ({error})") from None


def _fit_dtype(name: str, array: Array, wanted: int, cast: bool, *, typed: bool) -> Array:
    """Returns the array with the wanted element type, where that is the same values or conversion was asked for."""
    import numpy as np

    target = numpy_dtype(wanted)
    if wanted == _STRING:
        if array.dtype.kind not in "OUS":
            raise FeedsError(f"input {name!r} is {array.dtype}, the model wants string")
        return _strings(array)
    if array.dtype == target:
        return array if array.dtype.isnative else array.astype(target)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == target.itemsize:
        return array.view(target)  # numpy.save writes the types of ml_dtypes as raw bytes of their size
    mine = onnx_dtype(array.dtype)
    if array.dtype.newbyteorder("=") == target:
        return array.astype(target)
    floating = wanted in _FLOATS
    same_kind = (mine in _FLOATS and floating) or (mine not in {0, _STRING} | _FLOATS | _COMPLEX)
    if (cast or not typed) and mine != 0 and same_kind:
        with np.errstate(all="ignore"):
            made = array.astype(target)
            if floating:
                kept = np.isfinite(made.astype(np.float32)) | ~np.isfinite(array.astype(np.float64))
            else:
                kept = made.astype(array.dtype) == array
        if kept.all():
            return made
        raise FeedsError(f"input {name!r} has values that {dtype_name(wanted)} cannot hold")
    raise FeedsError(
        f"input {name!r} is {dtype_name(mine) if mine else array.dtype}, the model wants {dtype_name(wanted)}",
        hint="Convert it, or allow conversion with --cast." if same_kind else None,
    )


def _strings(array: Array) -> Array:
    import numpy as np

    made = np.empty(array.shape, dtype=object)
    flat = made.reshape(-1)
    for at, item in enumerate(array.reshape(-1)):
        flat[at] = item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item)
    return made


def _check_shape(name: str, shape: tuple[int, ...], wanted: Sequence[Dim] | None) -> None:
    """Compares a shape with the model's. Symbols are not compared: exporters reuse them, and no runtime looks."""
    if wanted is None:
        return
    if len(shape) != len(wanted):
        raise FeedsError(
            f"input {name!r} has {len(shape)} dimensions, {format_shape(shape)}; the model wants {len(wanted)}: "
            f"{format_shape(wanted)}"
        )
    for axis, (mine, theirs) in enumerate(zip(shape, wanted, strict=True)):
        if isinstance(theirs, int) and mine != theirs:
            raise FeedsError(
                f"input {name!r} has the shape {format_shape(shape)}; the model wants {format_shape(wanted)} "
                f"(dimension {axis} is {mine}, not {theirs})"
            )


# ---------------------------------------------------------------- reading


def load(
    source: str | os.PathLike[str], ports: Sequence[Port] | None = None, *, prefix: str = "input"
) -> Iterator[Feeds]:
    """Yields the sets of values that a source holds, one after the other; most hold one.

    Args:
        source: ``.npz``; ``.npy`` or ``.pb`` (for the single input); Polygraphy's ``.json``; a folder of ``.npz`` or
            ``.json`` files (a set each), of ``.npy`` or ``.pb`` files (an input each), or of such folders (a set each,
            ``test_data_set_0``); ``script.py:function`` (``load_data`` unless named; a leading ``@`` is allowed),
            which is run and returns a dict or an iterable of dicts.
        ports: The inputs of the model. They are needed to read what has no names: ``.npy``, ``.pb``, ``arr_0``.
        prefix: In a folder, files called ``input_0`` count by position (``output``: those called ``output_0``).

    Raises:
        NotFoundError: There is no such file.
        FeedsError: It cannot be read, or the script failed.
    """
    text = os.fspath(source)
    script = re.fullmatch(r"@?(.+\.py)(?::([A-Za-z_]\w*))?", text)
    if script:
        yield from _from_script(Path(script[1]), script[2] or DEFAULT_FUNCTION)
        return
    path = Path(text)
    if path.is_dir():
        yield from _from_folder(path, ports, prefix)
        return
    _require(path)
    ending = path.suffix.lower()
    if ending == ".npz":
        with Capture(path) as capture:
            yield _by_position({name: capture[name] for name in capture}, ports)
    elif ending == ".json":
        yield from _from_polygraphy(path)
    elif ending in (".npy", ".pb", *RAW_ENDINGS):
        port = _only_input(path, ports)
        yield {port.name: load_value(path, port)}
    else:
        raise UsageError(
            f"{path} has no ending by which feeds are recognized",
            hint="Feeds are .npz, .npy, .pb, .bin, .json (Polygraphy), a folder of these, or script.py:function.",
        )


def load_value(path: str | os.PathLike[str], port: Port, shape: Sequence[Dim] | None = None) -> Value:
    """Returns the value of one input from a file of its own: ``.npy``, ``.pb``, ``.npz`` with one entry, or raw bytes.

    Args:
        path: The file.
        port: The input that it is for.
        shape: The shape of raw bytes; the model's own where it is fixed. One dimension may be unknown.

    Raises:
        NotFoundError: There is no such file.
        FeedsError: It cannot be read.
    """
    file = Path(path)
    _require(file)
    ending = file.suffix.lower()
    if ending == ".npy":
        return _load_npy(file)
    if ending == ".npz":
        with Capture(file) as capture:
            if port.name in capture:
                return capture[port.name]
            if len(capture) == 1:
                return capture[next(iter(capture))]
            raise FeedsError(
                f"{file} has no entry {port.name!r}, and {len(capture)} others", hint=did_you_mean(port.name, capture)
            )
    return _load_pb(file, port) if ending == ".pb" else _load_raw(file, port, shape)


def _require(path: Path) -> None:
    if path.is_file():
        return
    if path.exists():
        raise UsageError(f"{path} is not a regular file")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise NotFoundError(f"there is no file {path}", hint=did_you_mean(path.name, siblings))


def _only_input(path: Path, ports: Sequence[Port] | None) -> Port:
    required = [port for port in ports or () if port.required]
    if len(required) != 1:
        names = ", ".join(repr(port.name) for port in required[:8])
        raise FeedsError(
            f"{path} holds one value, and the model has {len(required)} inputs{': ' + names if names else ''}",
            hint=f"Say which input it is for: name:{path}.",
        )
    return required[0]


def _by_position(feeds: Feeds, ports: Sequence[Port] | None) -> Feeds:
    """Gives the entries of ``numpy.savez(file, a, b)``, which are called arr_0 and arr_1, the inputs' names."""
    required = [port.name for port in ports or () if port.required]
    if len(feeds) == len(required) and not set(required) & set(feeds):
        with suppress(KeyError):
            return {name: feeds[f"arr_{i}"] for i, name in enumerate(required)}
    return feeds


def _load_npy(file: Path | IO[bytes], name: str = "") -> Array:
    import numpy as np

    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError) as error:
        said = "it holds Python objects, which are not loaded" if "pickle" in str(error).lower() else str(error)
        raise FeedsError(f"{name or file} cannot be read as .npy: {said}") from None
    if not isinstance(array, np.ndarray):
        raise FeedsError(f"{name or file} holds no single array")
    return _strings(array) if array.dtype.kind in "US" else array


def _load_pb(file: Path, port: Port) -> Value:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    data = file.read_bytes()
    try:
        if port.kind == "sequence":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        if port.kind == "optional":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
        tensor = onnx.TensorProto.FromString(data)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise FeedsError(f"{file} keeps its data in another file, which is not read")
        array = numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise FeedsError(f"{file} cannot be read as a serialized {port.kind or 'tensor'}: {error}") from None
    return _strings(array) if tensor.data_type == _STRING else array


def _load_raw(file: Path, port: Port, told: Sequence[Dim] | None) -> Array:
    """Reads raw little-endian bytes as the input's element type; one unknown dimension follows from the size."""
    import onnx
    from onnx import numpy_helper

    bits = dtype_bits(port.dtype)
    shape = list(told if told is not None else port.shape or ())
    if not bits or (told is None and port.shape is None):
        raise FeedsError(
            f"{file} is raw bytes, and input {port.name!r} ({format_type(port.type)}) does not say how to read them",
            hint=f"Give its shape: --shape '{port.name}:[1,3]'.",
        )
    size = file.stat().st_size
    unknown = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    rest = math.prod(dim for dim in shape if isinstance(dim, int))
    if len(unknown) == 1 and rest:
        shape[unknown[0]] = size * 8 // (bits * rest)
    elif unknown:
        raise FeedsError(
            f"{file} is raw bytes, and the shape {format_shape(shape)} of input {port.name!r} leaves too much open",
            hint=f"Give its shape: --shape '{port.name}:[1,3]'.",
        )
    dims = [int(dim) for dim in shape if isinstance(dim, int)]
    if raw_size(dims, port.dtype) != size:
        raise FeedsError(
            f"{file} has {size:,} bytes; {dtype_name(port.dtype)}{format_shape(dims)} for input {port.name!r} takes "
            f"{raw_size(dims, port.dtype):,}"
        )
    return numpy_helper.to_array(onnx.TensorProto(data_type=port.dtype, dims=dims, raw_data=file.read_bytes()))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts ``input_10`` after ``input_9``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name) if part]


def _from_folder(folder: Path, ports: Sequence[Port] | None, prefix: str) -> Iterator[Feeds]:
    entries = sorted(folder.iterdir(), key=_natural)
    for ending in (".npz", ".json"):
        files = [entry for entry in entries if entry.is_file() and entry.suffix.lower() == ending]
        if files:
            for file in files:
                yield from load(file, ports)
            return
    other = "output_" if prefix == "input" else "input_"
    values = [
        entry
        for entry in entries
        if entry.is_file() and entry.suffix.lower() in (".npy", ".pb") and not entry.name.startswith(other)
    ]
    if values:
        yield _values_of_folder(values, ports, prefix)
        return
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise FeedsError(f"the folder {folder} holds no .npz, .json, .npy or .pb file of {prefix}s")
    for inner in folders:
        yield from _from_folder(inner, ports, prefix)


def _values_of_folder(files: Sequence[Path], ports: Sequence[Port] | None, prefix: str) -> Feeds:
    """Reads one file per value: by its name, by its name with odd characters as ``_``, or ``input_0`` by position."""
    required = [port for port in ports or () if port.required]
    by_stem = {stem: port for port in ports or () for stem in (file_stem(port.name), port.name)}
    feeds: Feeds = {}
    for file in files:
        port = by_stem.get(file.stem)
        position = re.fullmatch(rf"{prefix}_(\d+)", file.stem)
        if port is None and position and ports is not None:
            if int(position[1]) >= len(required):
                raise FeedsError(f"{file} is for {prefix} number {position[1]}, and the model has {len(required)}")
            port = required[int(position[1])]
        if port is None and ports is not None:
            raise FeedsError(f"{file} is for no {prefix} of the model", hint=did_you_mean(file.stem, by_stem))
        port = port or Port(file.stem, None)
        feeds[port.name] = load_value(file, port)
    return feeds


def file_stem(name: str) -> str:
    """Returns a tensor's name as a file name: letters, digits, ``.``, ``-`` and ``_`` stay, the rest becomes ``_``."""
    return re.sub(r"[^\w.-]", "_", name)


def _from_polygraphy(path: Path) -> Iterator[Feeds]:
    """Reads Polygraphy's JSON: a set of inputs, a list of them, or the results of a run (of its first runner)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FeedsError(f"{path} cannot be read as JSON: {error}") from None
    if isinstance(data, dict) and data.get("polygraphy_class") == "RunResults" and isinstance(data.get("lst"), list):
        if not data["lst"]:
            raise FeedsError(f"{path} holds the results of no run")
        try:
            sets = [iteration["outputs"] for iteration in data["lst"][0][1]]
        except (KeyError, IndexError, TypeError):
            raise FeedsError(f"{path} is not a RunResults of Polygraphy as we know it") from None
    else:
        sets = data if isinstance(data, list) else [data]
    for values in sets:
        if not isinstance(values, dict):
            raise FeedsError(f"{path} holds {type(values).__name__} where inputs by name belong")
        yield {name: _from_json(value, f"{name!r} in {path}") for name, value in values.items()}


def _from_json(value: Any, where: str) -> Array:
    while isinstance(value, dict) and "values" in value:  # LazyArray
        value = value["values"]
    text = value.get("array") if isinstance(value, dict) else None
    if not isinstance(text, str):
        kind = value.get("polygraphy_class", "an object") if isinstance(value, dict) else type(value).__name__
        raise FeedsError(f"{where} is {kind}, not a NumPy array")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = text.encode("latin-1", "replace")  # so written by old versions
    return _load_npy(io.BytesIO(data), where)


def _from_script(path: Path, function: str) -> Iterator[Feeds]:
    """Runs ``path`` and yields what its ``function()`` returns; it is compiled in memory, so no cache file is left."""
    _require(path)
    module = ModuleType(f"onnxbench_feeds_{path.stem}")
    module.__file__ = str(path)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        call = module.__dict__.get(function)
        if not callable(call):
            names = [name for name, value in module.__dict__.items() if callable(value) and not name.startswith("_")]
            raise FeedsError(f"{path} has no function {function}()", hint=did_you_mean(function, names))
        made = call()
        if isinstance(made, Mapping):
            made = [made]
        if not isinstance(made, Iterable):
            raise FeedsError(f"{function}() in {path} returned {type(made).__name__}, not a dict or dicts of inputs")
        for values in made:
            if not isinstance(values, Mapping):
                raise FeedsError(f"{function}() in {path} gave {type(values).__name__} where a dict of inputs belongs")
            yield {str(name): value for name, value in values.items()}
    except (Exception, SystemExit) as error:  # the user's own code: anything may come out of it
        if isinstance(error, FeedsError):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        at = f"{path}:{line}" if line else str(path)
        raise FeedsError(f"{at} failed: {type(error).__name__}: {error}") from None
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)


# ---------------------------------------------------------------- npz with a manifest


class Capture(Mapping[str, Value]):
    """The values in a ``.npz`` file by name, read one by one when asked for; use it in a ``with`` statement.

    Raises:
        NotFoundError: There is no such file.
        FeedsError: It is not a ``.npz`` file, or an entry cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        _require(self.path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise FeedsError(f"{self.path} is not a .npz file: {error}") from None
        entries = {info.filename.removesuffix(".npy"): info.filename for info in self._zip.infolist()}
        self._entries = entries
        self._dtypes: dict[str, str] = {}
        trees: dict[str, Any] = {}
        if MANIFEST in entries:
            trees = self._read_manifest()
        inner = {leaf for tree in trees.values() for leaf in _leaves(tree)}
        self._trees: dict[str, Any] = {
            name: name for name in entries if name != MANIFEST and name not in inner and name not in trees
        }
        self._trees.update(trees)

    def _read_manifest(self) -> dict[str, Any]:
        try:
            said = json.loads(str(self._array(MANIFEST)[()]))
            version, dtypes, trees = said["version"], said.get("dtypes", {}), said.get("values", {})
            if version != 1:
                raise FeedsError(f"{self.path} was written by a later version of onnxbench")
            self._dtypes = {str(entry): str(name) for entry, name in dtypes.items()}
            return dict(trees)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise FeedsError(f"the entry {MANIFEST} of {self.path} is not understood") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._trees)

    def __len__(self) -> int:
        return len(self._trees)

    def __contains__(self, name: object) -> bool:
        return name in self._trees

    def __getitem__(self, name: str) -> Value:
        return self._value(self._trees[name])

    def _value(self, tree: Any) -> Value:
        if tree is None:
            return None
        if isinstance(tree, str):
            return self._array(tree)
        if isinstance(tree, dict) and isinstance(tree.get("list"), list):
            return [self._value(item) for item in tree["list"]]
        if isinstance(tree, dict) and isinstance(tree.get("map"), list):
            return dict(tree["map"])
        raise FeedsError(f"the entry {MANIFEST} of {self.path} is not understood")

    def _array(self, entry: str) -> Array:
        if entry not in self._entries:
            raise FeedsError(f"{self.path} has no entry {entry!r}, which its entry {MANIFEST} names")
        where = f"{entry!r} in {self.path}"
        try:
            with self._zip.open(self._entries[entry]) as file:
                array = _load_npy(file, where)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise FeedsError(f"{where} cannot be read: {error}") from None
        if entry == MANIFEST:
            return array
        said = self._dtypes.get(entry)
        if said is None:
            return array
        target = numpy_dtype(dtype_number(said))
        if target.itemsize != array.dtype.itemsize or array.dtype.kind not in "uV":
            raise FeedsError(f"{where} is said to be {said}, but holds {array.dtype}")
        return array.view(target)

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leaves(tree: Any) -> Iterator[str]:
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("list"), list):
            pending += item["list"]


class CaptureWriter:
    """Writes values to a ``.npz`` file one after the other; the file appears, whole, when the ``with`` block ends.

    The same values in the same order give the same bytes.

    Raises:
        OutputError: The file cannot be written; nothing is left behind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._temporary: Path | None = None
        self._entries: set[str] = {MANIFEST}
        self._dtypes: dict[str, str] = {}
        self._trees: dict[str, Any] = {}

    def __enter__(self) -> CaptureWriter:
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder")
        try:
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from None
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        return self

    def write(self, name: str, value: Value) -> None:
        """Adds one value: an array of any element type, a list, a dict of numbers, or None.

        Raises:
            OutputError: The disk is full, say.
            FeedsError: The value cannot be saved without loss.
        """
        if name in self._trees:
            raise FeedsError(f"two values are called {name!r}")
        tree = self._tree(name, value)
        self._trees[name] = tree

    def _tree(self, name: str, value: Value) -> Any:
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return {"list": [self._tree(f"{name}[{i}]", item) for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            pairs = [[_plain(key), _plain(item)] for key, item in value.items()]
            if all(isinstance(part, (str, int, float)) for pair in pairs for part in pair):
                return {"map": pairs}
            raise FeedsError(f"{name!r} is a map of {type(next(iter(value.values()))).__name__}, which cannot be saved")
        return self._write_array(name, value)

    def _write_array(self, name: str, value: Any) -> str:
        import numpy as np

        entry = name
        while entry in self._entries:
            entry += "'"
        self._entries.add(entry)
        array = np.asarray(value)
        if array.dtype.kind in "OUS":
            texts = _strings(array)
            array = texts.astype(np.str_) if texts.size else np.empty(texts.shape, dtype="<U1")
            if not np.array_equal(array.astype(object), texts):
                raise FeedsError(f"{name!r} has strings that end in NUL or are not text, which .npz cannot hold")
        elif not np.issubdtype(array.dtype, np.generic) or array.dtype.kind == "V" or array.dtype.num >= 256:
            number = onnx_dtype(array.dtype)
            if not number:
                raise FeedsError(f"{name!r} has elements of type {array.dtype}, which cannot be saved")
            self._dtypes[entry] = dtype_name(number)
            array = array.view(f"u{array.dtype.itemsize}")
        self._write_entry(entry, array)
        return entry

    def _write_entry(self, entry: str, array: Array) -> None:
        import numpy as np

        info = zipfile.ZipInfo(f"{entry}.npy", (1980, 1, 1, 0, 0, 0))
        try:
            with self._zip.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import numpy as np

        assert self._temporary is not None
        done = False
        try:
            if kind is None:
                trees = {name: tree for name, tree in self._trees.items() if tree != name}
                if self._dtypes or trees:
                    manifest = {"version": 1, "dtypes": self._dtypes, "values": trees}
                    self._write_entry(MANIFEST, np.array(json.dumps(manifest)))
                self._zip.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.chmod(self._temporary, 0o666 & ~_umask())
                os.replace(self._temporary, self.path)
                done = True
        except OSError as failure:
            raise OutputError(f"{self.path} cannot be written: {failure.strerror}") from None
        finally:
            if not done:
                with suppress(OSError, ValueError):
                    self._zip.close()
                with suppress(OSError):
                    self._file.close()
                self._temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def save(path: str | os.PathLike[str], values: Mapping[str, Value]) -> None:
    """Saves values by name as ``.npz`` (see the module's text for what NumPy cannot express).

    Raises:
        OutputError: The file cannot be written; nothing is left behind.
        FeedsError: A value cannot be saved without loss.
    """
    with CaptureWriter(path) as writer:
        for name, value in values.items():
            writer.write(name, value)
