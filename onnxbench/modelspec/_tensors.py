"""Tensors of a specification: literals, files, fills and seeded random values.

Random values are drawn from NumPy's ``RandomState``, whose streams are frozen: the same seed gives the same bytes
with every version of NumPy. A tensor without a seed of its own gets one from the specification's seed and its
name, so that it depends neither on the order of the tensors nor on what else there is.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import literals, weights
from onnxbench.documents import Item, plain_float, to_integer
from onnxbench.errors import ExternalDataError, UsageError, did_you_mean
from onnxbench.tensortype import dtype_name, dtype_number

if TYPE_CHECKING:
    import numpy as np
    from onnx import TensorProto

SOURCES = ("value", "zeros", "ones", "full", "arange", "random", "file")
TENSOR_KEYS = (*SOURCES, "dtype", "shape", "seed", "mean", "scale", "low", "high", "doc", "metadata")
_RANDOM_KEYS = {
    "normal": ("mean", "scale"),
    "uniform": ("low", "high"),
    "integers": ("low", "high"),
}
_REFER_FROM = 4096  # bytes; smaller arrays of .npy files are copied into the model's structure
_MOST_ELEMENTS = 1 << 31
_FLOAT32, _INT64, _STRING, _BOOL = 1, 7, 8, 9


@dataclass(frozen=True, slots=True)
class TensorContext:
    """What making a tensor needs to know.

    Attributes:
        folder: What files are relative to.
        seed: The seed of the whole specification.
        allow_outside: Whether files may lie outside of the folder.
    """

    folder: Path
    seed: int
    allow_outside: bool


def fill_tensor(tensor: TensorProto, item: Item, name: str, context: TensorContext) -> None:
    """Gives a tensor the type, shape and data that an item spells.

    Args:
        tensor: An empty message.
        item: A literal (number, string, nested lists), an array, or a mapping with one of ``SOURCES``.
        name: What random values are derived from: the path of the tensor in the model.
        context: Folder, seed, permissions.

    Raises:
        SpecError: The item does not spell a tensor.
        ExternalDataError: A file is missing, or out of the folder.
    """
    if item.kind != "map":
        _fill_literal(tensor, item, None, None)
        return
    item.require_map("a tensor", TENSOR_KEYS)
    sources = [key for key in SOURCES if key in item.entries]
    if len(sources) != 1:
        found = f"found {' and '.join(sources)}" if sources else "found none"
        raise item.error(f"a tensor has one of {', '.join(SOURCES)}; {found}")
    source = sources[0]
    value = item.entries[source][1]
    number = _dtype(item)
    shape = _shape(item, "shape")
    _refuse_extra_keys(item, source, value)
    if source == "value":
        _fill_literal(tensor, value, number, shape)
    elif source == "file":
        _fill_from_file(tensor, value, number, shape, context)
    elif source == "random":
        _store(tensor, _random(item, value, number, shape, name, context), number or _random_type(value.text))
    else:
        _fill_regular(tensor, item, source, value, number, shape)


def _dtype(item: Item) -> int | None:
    said = item.get("dtype")
    if said is None:
        return None
    try:
        return dtype_number(said.require_text("an element type"))
    except UsageError as error:
        raise said.error(error.message, hint=error.hint) from None


def _shape(item: Item, key: str) -> tuple[int, ...] | None:
    said = item.get(key)
    return None if said is None else _sizes(said)


def _sizes(item: Item) -> tuple[int, ...]:
    parts = item.require_list("a shape") if item.kind != "int" else [item]
    shape = tuple(part.require_integer("a size", low=0) for part in parts)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise item.error(f"a tensor of {math.prod(shape):,} elements does not fit a specification")
    return shape


def _refuse_extra_keys(item: Item, source: str, value: Item) -> None:
    """Refuses keys that would be ignored: a seed of something that is not random, say."""
    allowed = {source, "dtype", "doc", "metadata"}
    if source in ("value", "file", "full", "random"):
        allowed.add("shape")
    if source == "random":
        kind = value.require_text("a distribution")
        if kind not in _RANDOM_KEYS:
            hint = did_you_mean(kind, _RANDOM_KEYS) or f"There are {', '.join(_RANDOM_KEYS)}."
            raise value.error(f"{kind!r} is no distribution", hint=hint)
        allowed.update(("seed", *_RANDOM_KEYS[kind]))
    for key, key_item, _ in item.pairs():
        if key not in allowed:
            raise key_item.error(
                f"{key!r} does not go with {source!r}", hint=f"These do: {', '.join(sorted(allowed))}."
            )


def _fill_regular(
    tensor: TensorProto, item: Item, source: str, value: Item, number: int | None, shape: tuple[int, ...] | None
) -> None:
    import numpy as np

    if source == "arange":
        bounds = value.items if value.kind == "list" else [value]
        if not 1 <= len(bounds) <= 3:
            raise value.error("arange takes a stop, or [start, stop], or [start, stop, step]")
        is_whole = all(bound.kind == "int" for bound in bounds)
        steps = [bound.require_integer("a bound") if is_whole else bound.require_float("a bound") for bound in bounds]
        if len(steps) == 3 and steps[2] == 0:
            raise bounds[2].error("the step cannot be 0")
        if _arange_length(steps) > _MOST_ELEMENTS:
            raise value.error("this range has too many elements for a specification")
        made = np.arange(*steps)
        number = number or (_INT64 if is_whole else _FLOAT32)
        _store(tensor, made, number, item=item)
    elif source == "full":
        if shape is None:
            raise item.error("'full' needs a shape", hint="{full: 0.5, shape: [2, 3]}")
        if value.kind not in ("int", "float", "bool", "str"):
            raise value.error(f"expected one value to fill with, found {value.described()}")
        number = number or _literal_type([value])
        one = _literals([value], number)
        _store(tensor, np.full(shape, one[0] if number != _STRING else value.text, one.dtype), number)
    else:
        shape = _sizes(value)
        number = number or _FLOAT32
        if number == _STRING:
            raise item.error("strings have no zero and no one", hint='{full: "", shape: [2, 3]}')
        filled = np.zeros(shape) if source == "zeros" else np.ones(shape)
        _store(tensor, filled, number, item=item)


def _arange_length(steps: list[float]) -> float:
    start, stop, step = (0, steps[0], 1) if len(steps) == 1 else (*steps, 1)[:3]
    return max(0.0, (stop - start) / step) if math.isfinite(start + stop + step) else math.inf


# -- literals ----------------------------------------------------------------------------------------------------


def _fill_literal(tensor: TensorProto, item: Item, number: int | None, shape: tuple[int, ...] | None) -> None:
    if item.kind == "array":
        assert item.array is not None
        _store_array(tensor, item.array, number, shape, item)
        return
    leaves, own_shape = _flatten(item)
    if shape is not None and math.prod(shape) != len(leaves):
        raise item.error(
            f"{len(leaves):,} values do not fill the shape {list(shape)}, which takes {math.prod(shape):,}"
        )
    number = number or _literal_type(leaves)
    array = _literals(leaves, number)
    _store(tensor, array.reshape(shape if shape is not None else own_shape), number)


def _flatten(item: Item) -> tuple[list[Item], tuple[int, ...]]:
    """Returns the scalars of nested lists, and their shape.

    Raises:
        SpecError: The lists are ragged, or hold mappings.
    """
    shape: list[int] = []
    level = [item]
    while level and any(each.kind == "list" for each in level):
        length = len(next(each for each in level if each.kind == "list").items)
        for each in level:
            if each.kind != "list" or len(each.items) != length:
                found = f"{len(each.items)} elements" if each.kind == "list" else each.described()
                raise each.error(f"ragged lists: the first one beside it has {length} elements, and here are {found}")
        shape.append(length)
        level = [inner for each in level for inner in each.items]
    for each in level:
        if each.kind in ("map", "null", "array"):
            raise each.error(f"expected a number or a string, found {each.described()}")
    return level, tuple(shape)


def _literal_type(leaves: list[Item]) -> int:
    """Returns the element type that literals imply: int64, float32, bool or string."""
    kinds = {leaf.kind for leaf in leaves}
    if not kinds:
        return _FLOAT32
    if "str" in kinds:
        return _STRING
    if kinds == {"bool"}:
        return _BOOL
    return _INT64 if kinds == {"int"} else _FLOAT32


def _literals(leaves: list[Item], number: int) -> np.ndarray:
    import numpy as np

    if number == _STRING:
        return np.array([leaf.text for leaf in leaves], dtype=object)
    tokens: list[str] = []
    for leaf in leaves:
        tokens += _tokens(leaf, number)
    try:
        return literals.parse_array(tokens, number)
    except literals.LiteralError as error:
        raise leaves[error.index // literals.literals_per_element(number)].error(str(error)) from None


def _tokens(leaf: Item, number: int) -> list[str]:
    """Returns a scalar as the literals that ``onnxbench.literals`` reads; here integers are always values."""
    text = leaf.text
    if literals.literals_per_element(number) == 2:
        try:
            value = complex(text.replace(" ", "").replace("i", "j") if leaf.kind == "str" else plain_float(text))
        except ValueError:
            raise leaf.error(f"{text!r} is no complex number", hint='Write "1+2j".') from None
        return [repr(value.real), repr(value.imag)]
    if leaf.kind == "bool" and number != _BOOL:
        raise leaf.error(f"{text} is no {dtype_name(number)}", hint="Write 1 or 0.")
    if leaf.kind == "int":
        whole = str(to_integer(text)) if text[:2] in ("0x", "0o") else text
        return [f"{whole}.0" if literals.is_float(number) else whole]
    return [plain_float(text) if leaf.kind == "float" else text]


# -- random ------------------------------------------------------------------------------------------------------


def _random(
    item: Item, value: Item, number: int | None, shape: tuple[int, ...] | None, name: str, context: TensorContext
) -> np.ndarray:
    import numpy as np

    kind = value.text
    if shape is None:
        raise item.error("random values need a shape", hint="{random: normal, shape: [64, 3, 7, 7]}")
    number = number or _random_type(kind)
    if kind == "integers":
        limit = 2 if number == _BOOL else 10
        low, high = _bound(item, "low", 0, whole=True), _bound(item, "high", limit, whole=True)
        if literals.is_float(number) and number != _FLOAT32:
            raise item.error(f"random integers of {dtype_name(number)} are not supported")
    else:
        if not literals.is_float(number) or literals.literals_per_element(number) == 2:
            hint = "{random: integers, low: 0, high: 10, ...}"
            raise item.error(f"random {kind} values have fractions, and {dtype_name(number)} has none", hint=hint)
        low, high = _bound(item, "low", 0.0), _bound(item, "high", 1.0)
    if low >= high:
        raise item.error(f"low ({low}) must be less than high ({high})")
    generator = np.random.RandomState(_seed(item, name, context))
    if kind == "integers":
        return generator.randint(low, high, size=shape, dtype=np.int64)
    if kind == "uniform":
        return np.asarray(low + (high - low) * generator.random_sample(shape))
    mean, scale = _bound(item, "mean", 0.0), _bound(item, "scale", 1.0)
    return np.asarray(mean + scale * generator.standard_normal(shape))


def _random_type(kind: str) -> int:
    return _INT64 if kind == "integers" else _FLOAT32


def _bound(item: Item, key: str, default: float, *, whole: bool = False) -> Any:
    said = item.get(key)
    if said is None:
        return default
    value = said.require_integer(key) if whole else said.require_float(key)
    if not math.isfinite(value):
        raise said.error(f"{key} must be finite")
    return value


def _seed(item: Item, name: str, context: TensorContext) -> list[int]:
    """Returns the words that start the generator."""
    said = item.get("seed")
    if said is not None:
        return [said.require_integer("a seed", low=0, high=(1 << 32) - 1)]
    digest = hashlib.sha256(f"{context.seed}/{name}".encode()).digest()
    return [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 16, 4)]


# -- files -------------------------------------------------------------------------------------------------------


def _fill_from_file(
    tensor: TensorProto, value: Item, number: int | None, shape: tuple[int, ...] | None, context: TensorContext
) -> None:
    import numpy as np

    where = value.require_text("a file")
    where, separator, key = where.rpartition(".npz:") if ".npz:" in where else (where, "", "")
    if separator:
        where += ".npz"
    elif not where.endswith(".npy"):
        hint = "{file: weights.npz:NAME}" if where.endswith(".npz") else "{file: w.npy} or {file: weights.npz:NAME}"
        raise value.error(f"expected a .npy file or an array in an .npz file, found {where!r}", hint=hint)
    try:
        path = weights.resolve(where, context.folder, tensor.name, allow_outside=context.allow_outside)
    except ExternalDataError as error:
        is_outside = "--allow-outside" in (error.hint or "")
        next_step = error.hint if is_outside else "A file's path is relative to the specification."
        raise ExternalDataError(f"{value.place()}{error.message}", hint=next_step) from None
    if not separator and _refer_to_npy(tensor, path, number, shape):
        return
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if separator:
            with loaded:
                if key not in loaded.files:
                    hint = did_you_mean(key, loaded.files) or f"It has: {', '.join(loaded.files[:8])}."
                    raise value.error(f"{where} has no array {key!r}", hint=hint)
                loaded = loaded[key]
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise value.error(f"{where} cannot be read: {error}") from None
    _store_array(tensor, loaded, number, shape, value)


def _refer_to_npy(tensor: TensorProto, path: Path, number: int | None, shape: tuple[int, ...] | None) -> bool:
    """Refers to the bytes of a large .npy file instead of reading them; tells whether that was possible."""
    import numpy as np
    from onnx import helper

    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                return False
            own_shape, fortran, dtype = read_header[version](file)
            offset = file.tell()
    except (ValueError, OSError):
        return False
    length = math.prod(own_shape) * dtype.itemsize
    if fortran or dtype.kind not in "fiub" or dtype.byteorder == ">" or length < _REFER_FROM:
        return False
    own = helper.np_dtype_to_tensor_dtype(dtype)
    if number not in (None, own) or (shape is not None and math.prod(shape) != math.prod(own_shape)):
        return False
    if path.stat().st_size < offset + length:
        return False
    tensor.data_type = own
    tensor.dims.extend(shape if shape is not None else own_shape)
    weights.refer(tensor, weights.ByteRange(path, offset, length))
    return True


# -- storing -----------------------------------------------------------------------------------------------------


def _store_array(
    tensor: TensorProto, array: np.ndarray, number: int | None, shape: tuple[int, ...] | None, item: Item
) -> None:
    """Stores an array of the user's, whose type decides unless ``number`` says otherwise."""
    from onnx import helper

    if array.dtype.kind in "US":
        own = _STRING
    elif array.dtype.kind == "O":
        raise item.error("an array of Python objects has no element type")
    else:
        try:
            own = helper.np_dtype_to_tensor_dtype(array.dtype)
        except (KeyError, ValueError):
            raise item.error(f"ONNX has no element type for arrays of {array.dtype}") from None
    if number is not None and (number == _STRING) != (own == _STRING):
        raise item.error(f"an array of {dtype_name(own)} cannot become {dtype_name(number)}")
    if shape is not None:
        if math.prod(shape) != array.size:
            raise item.error(f"{array.size:,} values do not fill the shape {list(shape)}")
        array = array.reshape(shape)
    _store(tensor, array, number or own, item=item if number not in (None, own) else None)


def _store(tensor: TensorProto, array: np.ndarray, number: int, *, item: Item | None = None) -> None:
    """Stores values as raw data of an element type (strings as strings).

    Args:
        tensor: Where to.
        array: The values, in a type that holds them.
        number: The element type.
        item: If the values may not fit: what an error points at.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    tensor.data_type = number
    tensor.dims.extend(array.shape)
    if number == _STRING:
        flat = array.reshape(-1).tolist()
        tensor.string_data.extend(each if isinstance(each, bytes) else each.encode() for each in flat)
        return
    dtype = helper.tensor_dtype_to_np_dtype(number)
    if array.dtype != dtype:
        with np.errstate(over="ignore", invalid="ignore"):
            converted = array.astype(dtype)
        if not literals.is_float(number) and not np.array_equal(converted.astype(array.dtype), array):
            message = f"these values do not fit {dtype_name(number)}"
            if item is None:
                raise UsageError(message)
            raise item.error(message)
        array = converted
    tensor.raw_data = numpy_helper.from_array(np.ascontiguousarray(array)).raw_data
