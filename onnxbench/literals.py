"""Values of tensors as text and back, bit for bit, for every element type.

A value is written as the shortest decimal that reads back as the same bits. Three things make this more than
``repr`` and ``float``:

*Rounding once.* The nearest float32 of a decimal is not always the nearest float32 of its nearest float64. The
difference can only arise where the float64 lies exactly between two neighbours, so those few are settled with
exact fractions and the rest go through NumPy at its full speed.

*Types of 16 bits and less* (float16, bfloat16, float8, float6, float4). ``onnx.parser`` reads their elements as
integers that stand for bit patterns, and that stays so. A literal with a point, an exponent, ``inf`` or ``nan``
is a value, which onnx.parser does not know. These types have few patterns, so each text is found once, by
trying precisions.

*NaN.* ``nan`` and ``-nan`` are the quiet NaNs of their type; any other payload is written as its bit pattern,
``0x7fc00001``, which every float type may use for any element.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onnxbench.tensortype import dtype_name

if TYPE_CHECKING:
    import numpy as np

_FLOAT32, _STRING, _BOOL, _FLOAT64, _COMPLEX64, _COMPLEX128 = 1, 8, 9, 11, 14, 15
_SMALL_FLOATS = frozenset({10, 16, 17, 18, 19, 20, 23, 24, 27, 28})
_READABLE = 9  # an exact decimal of up to so many characters is preferred to a shorter one
_PLAIN_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
_HEXADECIMAL = re.compile(r"0[xX][0-9a-fA-F]+")


class LiteralError(ValueError):
    """A literal that is no element of its type.

    Attributes:
        index: Which literal of the list it is, from 0.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def is_float(number: int) -> bool:
    """Tells whether an element type has fractions (complex included)."""
    return number in _SMALL_FLOATS or number in (_FLOAT32, _FLOAT64, _COMPLEX64, _COMPLEX128)


def literals_per_element(number: int) -> int:
    """Returns how many literals one element takes: 2 for complex (real, imaginary), else 1."""
    return 2 if number in (_COMPLEX64, _COMPLEX128) else 1


def array_texts(array: np.ndarray, number: int) -> list[str]:
    """Returns the literals of a flat array whose elements have ONNX type ``number`` (not strings)."""
    import numpy as np

    if number in (_COMPLEX64, _COMPLEX128):
        part, number = (np.float32, _FLOAT32) if number == _COMPLEX64 else (np.float64, _FLOAT64)
        array = np.ascontiguousarray(array).view(part)
    if number == _FLOAT32:
        return _patch_nans(array.astype("U").tolist(), array, np.uint32)
    if number == _FLOAT64:
        return _patch_nans(list(map(repr, array.tolist())), array, np.uint64)
    if number in _SMALL_FLOATS:
        bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").tolist()
        return [_small_float_text(pattern, number) for pattern in bits]
    return list(map(str, array.astype(np.uint64 if array.dtype == np.uint64 else np.int64).tolist()))


def _patch_nans(texts: list[str], array: np.ndarray, unsigned: Any) -> list[str]:
    import numpy as np

    quiet, negative = (_nan(array.dtype, sign).view(unsigned)[0] for sign in (False, True))
    for at in np.flatnonzero(np.isnan(array)).tolist():
        bits = array[at : at + 1].view(unsigned)[0]
        texts[at] = "nan" if bits == quiet else "-nan" if bits == negative else f"{int(bits):#x}"
    return texts


def _nan(dtype: np.dtype, negative: bool) -> np.ndarray:
    """Returns the quiet NaN of a type, as an array of one element."""
    import numpy as np

    made = np.array([np.nan]).astype(dtype)
    unsigned = f"u{made.dtype.itemsize}"
    bits = made.view(unsigned)
    sign = np.array([1], unsigned) << (8 * made.dtype.itemsize - 1)
    signed: np.ndarray = ((bits | sign) if negative else (bits & ~sign)).view(made.dtype)
    # Types with a single NaN keep it in the negative half (float8e4m3fnuz), or have no sign at all.
    return signed if np.isnan(signed.astype(np.float64))[0] else made


@lru_cache(maxsize=1 << 17)
def _small_float_text(pattern: int, number: int) -> str:
    import numpy as np

    dtype = _numpy_type(number)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        value = float(np.array([pattern], unsigned).view(dtype).astype(np.float64)[0])
    if value != value:
        for text, negative in (("nan", False), ("-nan", True)):
            if _nan(dtype, negative).view(unsigned)[0] == pattern:
                return text
        return f"{pattern:#x}"
    exact = repr(value)
    if len(exact) <= _READABLE:
        return exact
    for precision in range(4 if dtype.itemsize == 1 else 1, 18):
        text = f"{value:.{precision}g}"
        if "." not in text and "e" not in text:
            text += ".0"
        with np.errstate(over="ignore"):
            if np.array([float(text)]).astype(dtype).view(unsigned)[0] == pattern:
                return text
    return f"{pattern:#x}"


def float32_text(value: float) -> str:
    """Returns the shortest literal of a float32 value that has a point, an exponent, or is inf or nan."""
    import numpy as np

    return array_texts(np.array([value], np.float32), _FLOAT32)[0]


def reads_patterns(tokens: Sequence[str], number: int) -> bool:
    """Tells whether decimal integers among these literals are read as bit patterns, which may surprise."""
    return number in _SMALL_FLOATS and any(_PLAIN_INTEGER.fullmatch(token) and int(token) for token in tokens)


def parse_array(tokens: Sequence[str], number: int) -> np.ndarray:
    """Returns the flat array of elements that a list of literals spells.

    Args:
        tokens: Literals without space around them.
        number: The ONNX element type (not string).

    Raises:
        LiteralError: One of them is no element of that type, or out of its range.
    """
    import numpy as np

    if is_float(number):
        part = {_COMPLEX64: _FLOAT32, _COMPLEX128: _FLOAT64}.get(number, number)
        if len(tokens) % literals_per_element(number):
            raise LiteralError(len(tokens) - 1, "complex elements take two numbers each, the real and imaginary part")
        flat = _parse_floats(tokens, part)
        return flat.view(_numpy_type(number)) if part != number else flat
    dtype = _numpy_type(number)
    low, high = (0, 1) if number == _BOOL else _integer_limits(dtype)
    joined = "".join(tokens)
    try:  # int() also takes underscores and the digits of every script
        if "_" in joined or not joined.isascii():
            raise ValueError
        values = list(map(int, tokens))
    except ValueError:
        values = [_parse_integer(token, at, number) for at, token in enumerate(tokens)]
    if values and (min(values) < low or max(values) > high):
        at = next(i for i, value in enumerate(values) if not low <= value <= high)
        raise LiteralError(at, f"{tokens[at]} does not fit {dtype_name(number)}, which holds {low} to {high}")
    return np.array(values, np.uint64 if high > 1 << 62 and low == 0 else np.int64).astype(dtype)


def _parse_integer(token: str, index: int, number: int) -> int:
    if _PLAIN_INTEGER.fullmatch(token):
        return int(token)
    if _HEXADECIMAL.fullmatch(token):
        return int(token, 16)
    if number == _BOOL and token.lower() in ("true", "false"):
        return int(token.lower() == "true")
    raise LiteralError(index, f"{token!r} is not an integer, as an element of {dtype_name(number)} must be")


def _integer_limits(dtype: np.dtype) -> tuple[int, int]:
    import ml_dtypes

    limits = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]  # ml_dtypes is not typed
    return int(limits.min), int(limits.max)


def _numpy_type(number: int) -> np.dtype:
    from onnx import helper

    dtype: np.dtype = helper.tensor_dtype_to_np_dtype(number)
    return dtype


def _parse_floats(tokens: Sequence[str], number: int) -> np.ndarray:
    import numpy as np

    dtype = _numpy_type(number)
    joined = "".join(tokens)
    patterns = number in _SMALL_FLOATS or "x" in joined or "X" in joined
    try:  # float() also takes underscores and the digits of every script
        if patterns or "_" in joined or not joined.isascii():
            raise ValueError
        doubles = np.array(list(map(float, tokens)), np.float64)
    except ValueError:
        doubles = np.array([_one_double(token, at, number) for at, token in enumerate(tokens)], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        made = _round_to_float32(tokens, doubles) if number == _FLOAT32 else doubles.astype(dtype)
    finite = np.isfinite(doubles)
    lost = np.flatnonzero(finite & ~np.isfinite(made.astype(np.float64)))
    if lost.size:
        at = int(lost[0])
        raise LiteralError(at, f"{tokens[at]} is too large for {dtype_name(number)}; write inf if you mean it")
    if patterns:
        _set_patterns(made, tokens, number)
    for at in np.flatnonzero(np.isnan(doubles)).tolist():
        made[at : at + 1] = _nan(made.dtype, tokens[at].startswith("-"))
    return made


def _one_double(token: str, index: int, number: int) -> float:
    if _HEXADECIMAL.fullmatch(token) or (number in _SMALL_FLOATS and _PLAIN_INTEGER.fullmatch(token)):
        return 1.0  # a bit pattern, set later
    if _DECIMAL.fullmatch(token):
        return float(token)
    raise LiteralError(index, f"{token!r} is not a number, as an element of {dtype_name(number)} must be")


def _set_patterns(made: np.ndarray, tokens: Sequence[str], number: int) -> None:
    """Overwrites the elements that are given as bit patterns."""
    unsigned = made.view(f"u{made.dtype.itemsize}")
    limit = 6 if number in (27, 28) else 4 if number == 23 else 8 * made.dtype.itemsize
    small = number in _SMALL_FLOATS
    for at, token in enumerate(tokens):
        if token[:2] in ("0x", "0X") or (small and _PLAIN_INTEGER.fullmatch(token)):
            pattern = int(token, 0) if "x" in token.lower() else int(token)
            if not 0 <= pattern < 1 << limit:
                raise LiteralError(at, f"{token} is not a bit pattern of {dtype_name(number)}, which has {limit} bits")
            unsigned[at] = pattern


def _round_to_float32(tokens: Sequence[str], doubles: np.ndarray) -> np.ndarray:
    """Returns decimals as float32, rounded once; ``doubles`` are their nearest float64."""
    import numpy as np

    made = doubles.astype(np.float32)
    back = made.astype(np.float64)
    inexact = np.flatnonzero((back != doubles) & np.isfinite(doubles) & np.isfinite(back))
    if inexact.size:
        value, near = doubles[inexact], made[inexact]
        other = np.nextafter(near, np.where(value > back[inexact], np.float32(np.inf), np.float32(-np.inf)))
        ties = inexact[np.abs(value - near.astype(np.float64)) == np.abs(other.astype(np.float64) - value)]
        for at in ties.tolist():
            exact, double = Fraction(tokens[at]), Fraction(float(doubles[at]))
            if exact != double:
                toward = np.float32(np.inf if exact > double else -np.inf)
                low = made[at] if float(made[at]) < doubles[at] else np.nextafter(made[at], np.float32(-np.inf))
                made[at] = np.nextafter(low, toward) if exact > double else low
    return made


def parse_float32(token: str) -> float:
    """Returns the float32 nearest to a decimal literal, as a Python float.

    Raises:
        LiteralError: It is not a number, or too large.
    """
    if _DECIMAL.fullmatch(token) and "n" not in token.lower():
        value = float(token)
        try:
            (single,) = struct.unpack("<f", struct.pack("<f", value))
        except OverflowError:
            single = None
        if single == value:
            return float(single)
    return float(_parse_floats([token], _FLOAT32)[0])


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TO_ESCAPE = re.compile(rb'[\x00-\x1f"\\\x7f-\xff]')
_ESCAPED = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)


def quote(text: str | bytes, *, one_line: bool = False) -> str:
    r"""Returns a string literal: ``"..."`` as onnx.parser reads it, or ``b"..."`` with ``\n`` and ``\xff`` escapes.

    The second form is for what the first cannot hold (bytes that are not UTF-8) or would put on the terminal
    raw (control characters). Non-ASCII text stays readable in both.

    Args:
        text: The string.
        one_line: Use the second form for line breaks and tabs too.
    """
    if isinstance(text, bytes):
        try:
            return quote(text.decode(), one_line=one_line)
        except UnicodeDecodeError:
            return f'b"{_escape(text)}"'
    if _CONTROL.search(text) or (one_line and ("\n" in text or "\t" in text)):
        pieces = [_escape(c.encode("utf-8", "surrogatepass")) if _must_escape(c) else c for c in text]
        return f'b"{"".join(pieces)}"'
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _must_escape(character: str) -> bool:
    return character in '"\\\n\t' or _CONTROL.match(character) is not None


def _escape(data: bytes) -> str:
    names = {ord(value): name for name, value in _ESCAPES.items() if name in "ntr"}

    def one(match: re.Match[bytes]) -> bytes:
        byte = match[0][0]
        if byte in b'"\\':
            return b"\\" + match[0]
        return b"\\" + names[byte].encode() if byte in names else b"\\x%02x" % byte

    return _TO_ESCAPE.sub(one, data).decode("ascii")


def unquote(body: str, *, escapes: bool = False) -> bytes:
    r"""Returns what a string literal holds, given the text between its quotes.

    Args:
        body: The text between the quotes.
        escapes: Whether it is the ``b"..."`` form; else a backslash only protects the next character, as in
            onnx.parser.
    """
    if not escapes:
        plain = re.sub(r"\\(.)", r"\1", body, flags=re.DOTALL) if "\\" in body else body
        return plain.encode("utf-8", "surrogatepass")

    def one(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        if len(escape) == 3:
            return bytes([int(escape[1:], 16)])
        return _ESCAPES.get(escape.decode("latin-1"), escape.decode("latin-1")).encode("latin-1")

    return _ESCAPED.sub(one, body.encode("utf-8", "surrogatepass"))
