"""One parser for the small languages of the command line: shapes and types of tensors, sizes, tolerances, ranges.

Every spelling that the tools of this field use for a tensor's shape means the same here:

    name:[1,3,224,224]       name:[N,3,?,-1]:float32      name:float32:[1,3]     (Polygraphy, and with quotes "a:0":[1])
    name:1x3x224x224         a:1x3,b:4     name=1x3       name:f32:1x3           (trtexec, onnx-tool)
    name:1,3,224,224         1,3,224,224 for a single input                      (onnxsim, onnxslim)
    name:auto:auto           name:scalar   name

Names of tensors hold colons, slashes and equal signs themselves (``input:0``), so a word is never simply split: of
all colons after which something readable follows, the last one whose left side is a real name counts. Whatever
cannot be read is an error; nothing is skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnxbench.errors import NotFoundError, UsageError, did_you_mean, nearest
from onnxbench.tensortype import Dim, dtype_number, is_dtype

T = TypeVar("T")

_UNKNOWN_DIMS = ("?", "-1", "*", "None")
_AUTO = "auto"
_SIZE_UNITS = {
    "": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_TIME_UNITS = {
    "": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "m": 60.0, "min": 60.0, "h": 3600.0,
}  # fmt: skip
_OPENING = {"[": "]", "(": ")"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a user says of one tensor.

    Attributes:
        name: The tensor.
        shape: Its dimensions (a size, a symbol, or None for unknown), or None when not said.
        dtype: Its ``TensorProto.DataType`` number, or None when not said.
    """

    name: str
    shape: tuple[Dim, ...] | None = None
    dtype: int | None = None


def parse_tensor_specs(
    texts: Sequence[str], names: Collection[str] | None = None, *, what: str = "shape"
) -> list[TensorSpec]:
    """Returns what each word says of a tensor, in order; a word may hold several, joined by commas.

    Args:
        texts: Words as typed (see the module's text for the spellings).
        names: The names that exist. With exactly one, a bare shape means that one. None: any name is taken, and the
            longest tail that reads as shape and type is taken for one.
        what: What these words are called in messages.

    Raises:
        NotFoundError: A word names no tensor of ``names``.
        UsageError: A word cannot be read in full, or speaks of a tensor twice and differently.
    """
    known = None if names is None else names if isinstance(names, (set, frozenset, dict)) else set(names)
    specs: dict[str, TensorSpec] = {}
    for text in texts:
        for part in _split(text, known):
            spec = _tensor_spec(part, known, what)
            if specs.setdefault(spec.name, spec) != spec:
                raise UsageError(f"{what} {part!r}: something else was already said of {spec.name!r}")
    return list(specs.values())


def parse_named(
    texts: Sequence[str], names: Collection[str] | None, convert: Callable[[str], T], *, what: str
) -> dict[str | None, T]:
    """Returns the values of words like ``1e-3`` (key None: for all) and ``out:1e-3`` (for that tensor).

    Args:
        texts: Words as typed; several may be joined by commas.
        names: The names that exist; None takes any.
        convert: Reads one value; raises UsageError if it cannot.
        what: What these words are called in messages.

    Raises:
        NotFoundError: A word names no tensor of ``names``.
        UsageError: A value cannot be read, or one is given twice and differently.
    """
    known = None if names is None else set(names)
    values: dict[str | None, T] = {}
    for text in texts:
        for part in _split(text, known):
            name, rest = _named(part, known, convert, what)
            if values.setdefault(name, rest) != rest:
                raise UsageError(f"{what} {part!r}: another value was already given for {name or 'all tensors'!r}")
    return values


def parse_tolerances(
    texts: Sequence[str], names: Collection[str] | None = None, *, what: str = "tolerance"
) -> dict[str | None, float]:
    """Returns tolerances from ``1e-3`` (key None) and ``out:1e-3``; each is a number that is not negative.

    Raises:
        NotFoundError: A word names no tensor of ``names``.
        UsageError: A word cannot be read.
    """
    return parse_named(texts, names, _tolerance, what=what)


def parse_ranges(
    texts: Sequence[str], names: Collection[str] | None = None, *, what: str = "value range"
) -> dict[str | None, tuple[float, float]]:
    """Returns closed value ranges from ``[0,1]`` or ``0,1`` (key None: all inputs) and ``inp:[2,50]``.

    Whole numbers stay ``int``, so that the limits of 64-bit integers are exact.

    Raises:
        NotFoundError: A word names no tensor of ``names``.
        UsageError: A word cannot be read, or a range is empty.
    """
    return parse_named(texts, names, _range, what=what)


def parse_data_files(texts: Sequence[str], names: Collection[str]) -> dict[str | None, list[str]]:
    """Returns files by the input they are for: ``f.npz`` (key None), ``x:f.npy``, ``x=f.bin``, ``x:f.bin,y:g.bin``.

    A colon or equal sign counts only after a real name; all else is part of a path.
    """
    known = set(names)
    files: dict[str | None, list[str]] = {}
    for text in texts:
        parts = text.split(",")
        if any(_after_name(part, known) is None for part in parts):
            parts = [text]
        for part in parts:
            found = _after_name(part, known)
            name, path = (None, part) if found is None else found
            files.setdefault(name, []).append(path)
    return files


def parse_dims(texts: Sequence[str]) -> dict[str, int]:
    """Returns sizes of symbolic dimensions from ``N=4``, ``batch:4`` and ``N=4,M=2``.

    Raises:
        UsageError: A word cannot be read, or one symbol gets two sizes.
    """
    sizes: dict[str, int] = {}
    for text in texts:
        for part in text.split(","):
            symbol, sign, number = part.rpartition("=") if "=" in part else part.rpartition(":")
            if not (sign and symbol.strip() and number.strip().isascii() and number.strip().isdigit()):
                raise UsageError(f"{part!r} does not give a dimension a size", hint="Write it as batch=4.")
            if sizes.setdefault(symbol.strip(), _size(number.strip())) != _size(number.strip()):
                raise UsageError(f"dimension {symbol.strip()!r} is given two sizes")
    return sizes


def parse_pairs(words: Iterable[str], *, what: str, example: str) -> dict[str, str]:
    """Returns values by names, of ``name=value``; names may hold equals signs.

    Args:
        words: What was typed.
        what: The option, for messages.
        example: How it is spelled: ``OLD=NEW: --rename dets=boxes``.

    Raises:
        UsageError: A word is no pair, or a name stands there twice with different values.
    """
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.rpartition("=")
        if not sign or not name or not value:
            raise UsageError(f"{what} {word!r} cannot be read", hint=f"Write {example}")
        if found.setdefault(name, value) != value:
            raise UsageError(f"{what} says two things of {name!r}: {found[name]!r} and {value!r}")
    return found


def parse_size(text: str) -> int:
    """Returns a size in bytes from ``4096``, ``16K``, ``1.5G``, ``2GiB``, ``500MB``.

    K, M, G, T and KiB, MiB, ... are powers of 1024; kB, MB, ... are powers of 1000.

    Raises:
        UsageError: ``text`` is no such size.
    """
    number, factor = _with_unit(text, _SIZE_UNITS, "size", "Write it as 4096, 16K, 1M, 2GiB or 500MB.")
    return round(number * factor)


def parse_memory(text: str) -> int:
    """Returns a size of memory in bytes, as ``parse_size``; a small number alone may be meant in MiB, and is refused.

    trtexec's ``--workspace`` and ``--memPoolSize`` take MiB. ``1024B`` is 1,024 bytes in any case.

    Raises:
        UsageError: ``text`` is no such size, or its unit is not clear.
    """
    size = parse_size(text)
    number = text.strip()
    if number.isdigit() and 0 < size < 1 << 20:
        raise UsageError(
            f"{number} would be {size:,} bytes of memory", hint=f"Write {number}M for MiB, or {number}B for bytes."
        )
    return size


def parse_duration(text: str) -> float:
    """Returns seconds from ``2``, ``2s``, ``500ms``, ``1.5min``, ``20us``.

    Raises:
        UsageError: ``text`` is no such time.
    """
    number, factor = _with_unit(text, _TIME_UNITS, "time", "Write it as 2s, 500ms or 1min.")
    return number * factor


def _with_unit(text: str, units: dict[str, T], what: str, hint: str) -> tuple[float, T]:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµ]*)\s*", text)
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a {what}", hint=hint)
    return float(match[1]), factor


# ---------------------------------------------------------------- words and their parts


def _split(text: str, known: Collection[str] | None) -> list[str]:
    """Splits a word at the commas that stand between tensors, not between the dimensions of one.

    A piece without a name of its own goes on with the one before it: ``a:1,3,b:4`` is ``a:1,3`` and ``b:4``.
    """
    if known is not None and _unquote(text) in known:
        return [text]
    parts: list[str] = []
    for piece in _top_level(text, ","):
        continues = _is_dim(piece.strip()) or _is_number(piece)
        if parts and continues and not (known is not None and _unquote(piece) in known):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return parts


def _top_level(text: str, separators: str) -> list[str]:
    """Splits at the separators that stand outside of brackets and quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[(":
            depth += 1
        elif char in "])":
            depth -= 1
        elif char in separators and depth <= 0:
            pieces.append(text[start:at])
            start = at + 1
    return [*pieces, text[start:]]


def _unquote(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _splits(text: str) -> list[tuple[str, str]]:
    """Returns every (left, right) of a colon or equal sign outside of brackets and quotes, the last one first."""
    pieces = _top_level(text, ":=")
    ends, at = [], -1
    for piece in pieces[:-1]:
        at += len(piece) + 1
        ends.append(at)
    return [(text[:end], text[end + 1 :]) for end in reversed(ends)]


def _after_name(text: str, known: Collection[str]) -> tuple[str, str] | None:
    """Returns (name, rest) of ``name:rest`` with the longest real name, or None."""
    return next(((_unquote(left), right) for left, right in _splits(text) if _unquote(left) in known), None)


def _unknown(name: str, known: Collection[str], what: str) -> NotFoundError:
    few = f"There is: {', '.join(map(repr, sorted(known)))}." if 0 < len(known) <= 8 else None
    return NotFoundError(f"{what}: there is no tensor {name!r} here", hint=did_you_mean(name, known) or few)


def _tensor_spec(text: str, known: Collection[str] | None, what: str) -> TensorSpec:
    name = _unquote(text)
    if known is not None and name in known:
        return TensorSpec(name)
    splits = _splits(text)
    for left, right in splits:
        if known is not None and _unquote(left) in known and (fields := _fields(right)) is not None:
            return TensorSpec(_unquote(left), *fields)
    bare = _fields(text)
    if bare is not None and (bare[0] is not None or known is not None) and text.strip():
        if known is not None and len(known) == 1:
            return TensorSpec(next(iter(known)), *bare)
        if known is not None and not known:
            raise UsageError(f"{what} {text!r}: there is no input to give it to")
        if bare[0] is not None or known is None:
            choices = f"; there are {len(known)} inputs: {', '.join(sorted(known)[:8])}" if known else ""
            raise UsageError(f"{what} {text!r} does not say which tensor it is for{choices}", hint="Write name:shape.")
    for left, right in splits:
        if known is not None and _unquote(left) in known:
            raise UsageError(f"{what} {text!r}: {_why_not(right)}", hint="Write name:[1,3,224,224]:float32.")
    readable = [(left, fields) for left, right in splits if (fields := _fields(right)) is not None and left.strip()]
    if readable:
        left, fields = readable[-1]
        if known is None:
            return TensorSpec(_unquote(left), *fields)
        raise _unknown(_unquote(left), known, what)
    if known is not None:
        raise _unknown(_unquote(splits[-1][0]) if splits else name, known, what)
    if splits or not name:
        raise UsageError(f"{what} {text!r} cannot be read", hint="Write name:[1,3,224,224]:float32.")
    return TensorSpec(name)


def _fields(text: str) -> tuple[tuple[Dim, ...] | None, int | None] | None:
    """Reads shape and type in either order, each at most once; None when ``text`` is not that.

    ``auto`` stands for a shape or a type that is left open.
    """
    fields = [field.strip() for field in _top_level(text, ":")]
    if len(fields) > 2:
        return None
    shape: tuple[Dim, ...] | None = None
    dtype: int | None = None
    seen: set[str] = set()
    for field in fields:
        if field == _AUTO:
            continue
        if is_dtype(field):
            kind, dtype = "dtype", dtype_number(field)
        else:
            parsed = _shape(field)
            if parsed is None:
                return None
            kind, shape = "shape", parsed
        if kind in seen:
            return None
        seen.add(kind)
    return shape, dtype


def _why_not(text: str) -> str:
    """Says what in the tail of a word cannot be read."""
    fields = [field.strip() for field in _top_level(text, ":")]
    for field in fields:
        if field != _AUTO and not is_dtype(field) and _shape(field) is None:
            near = nearest(field.lower(), ["float32", "float16", "int64", "int32", "bool", "bfloat16"], limit=1)
            also = f" (did you mean {near[0]!r}?)" if near else ""
            return f"{field!r} is neither a shape nor an element type{also}"
    return f"{text!r} gives more than one shape and one element type"


def _shape(text: str) -> tuple[Dim, ...] | None:
    """Reads ``[1,N,?]``, ``(1,3)``, ``1x3``, ``1,3``, ``scalar`` and the empty text; None when it is no shape.

    Without brackets one dimension at least must be a number or unknown: a single word is more likely a type
    with a typing error than a symbol.
    """
    if text in ("", "scalar"):
        return ()
    if text[0] in _OPENING:
        if not text.endswith(_OPENING[text[0]]):
            return None
        inner = text[1:-1].strip().removesuffix(",")
        return _dims(_top_level(inner, ",")) if inner else ()
    pieces = text.split(",") if "," in text else text.split("x")
    if not all(_is_dim(piece.strip()) for piece in pieces):
        return None
    if not any(_is_number(piece) or piece.strip() in _UNKNOWN_DIMS for piece in pieces):
        return None
    return _dims(pieces)


def _dims(pieces: Sequence[str]) -> tuple[Dim, ...] | None:
    dims: list[Dim] = []
    for piece in pieces:
        dim = _unquote(piece)
        if dim in _UNKNOWN_DIMS:
            dims.append(None)
        elif dim.isascii() and dim.isdigit():
            dims.append(_size(dim))
        elif not dim or dim[0] in "-+." or _is_number(dim) or any(char in dim for char in "[]"):
            return None
        else:
            dims.append(dim)
    return tuple(dims)


def _size(text: str) -> int:
    """Returns a size; protobuf holds no more than 63 bits of it."""
    if len(text) > 19 or int(text) > (1 << 63) - 1:
        raise UsageError(f"{text[:40]} is too large for the size of a dimension")
    return int(text)


def _is_dim(text: str) -> bool:
    return text in _UNKNOWN_DIMS or re.fullmatch(r"\d+|[A-Za-z_]\w*", text, re.ASCII) is not None


def _is_number(text: str) -> bool:
    try:
        float(text.strip(" []()"))
    except ValueError:
        return False
    return True


def _named(text: str, known: Collection[str] | None, convert: Callable[[str], T], what: str) -> tuple[str | None, T]:
    if known is not None:
        found = _after_name(text, known)
        if found is not None:
            return found[0], convert(found[1])
    splits = _splits(text)
    if not splits:
        return None, convert(text)
    name, value = _unquote(splits[0][0]), convert(splits[0][1])
    if known is not None:
        raise _unknown(name, known, what)
    return name, value


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise UsageError(f"{text!r} is not a tolerance", hint="Write a number that is not negative, or out:1e-3.")
    return value


def _range(text: str) -> tuple[float, float]:
    inner = text.strip()
    if inner and inner[0] in _OPENING and inner.endswith(_OPENING[inner[0]]):
        inner = inner[1:-1]
    pieces = [piece.strip() for piece in inner.split(",")]
    try:
        low, high = (int(piece) if re.fullmatch(r"[+-]?\d+", piece) else float(piece) for piece in pieces)
    except ValueError:
        raise UsageError(f"{text!r} is not a value range", hint="Write it as [0,1], or input:[0,1].") from None
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"the value range {text!r} is empty or not finite")
    return low, high
