"""Protobuf wire format of a model: weights taken out of it, and put back, without reading them.

A ``.onnx`` file is one protobuf message, and its parser reads all of it: two gigabytes of weights for a
question about names. Only three things about the format are needed to avoid that. A message is a row of
fields; a field starts with a tag (number and wire type); a field that holds a message or bytes carries its
length. So the weights can be skipped over: ``lift`` copies everything but the large ``raw_data`` fields and
leaves a stub in their place, and ``splice`` does the reverse with the serialized structure, giving a list of
segments to copy. Both are linear in the structure, touch no weight byte, and descend only into fields that
are long enough (lift) or known to hold a stub (splice), so that a hundred thousand small nodes cost one tag
and one length each.

Rejected: parsing with a second schema that leaves ``raw_data`` out (unknown fields are kept, so the bytes
come along all the same), and streaming parsers in pure Python for every field (ten times slower).
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Buffer = bytes | mmap.mmap

# Which fields of which message hold messages on the way to a TensorProto (onnx.proto, field numbers).
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_PLACES = (_EXTERNAL_DATA, _DATA_LOCATION)
_MAX_DEPTH = 100  # protobuf's own limit on nested messages

STUB_PREFIX = "onnxbench-bytes:"
"""A tensor's external location that starts so is a stub: the rest is the file that holds its raw bytes."""
STUB_EXPLICIT = "explicit"
"""Key of a stub's entry when the tensor said ``data_location = DEFAULT`` in so many words."""


class WireError(ValueError):
    """The bytes are not a well-formed protobuf message."""


@dataclass(frozen=True, slots=True)
class Splice:
    """One segment of a spliced message: the payload with this number goes here."""

    number: int


def lift(buffer: Buffer, *, location: str, threshold: int) -> tuple[bytes, int]:
    """Returns a serialized model without its large raw data, and how many tensors were lifted.

    Each TensorProto whose ``raw_data`` has at least ``threshold`` bytes keeps all its other fields and gets
    ``data_location = EXTERNAL`` with the entries location (``STUB_PREFIX`` + ``location``), offset and length
    (bytes in ``buffer``), so that the result parses as an ordinary model with external data.

    Raises:
        WireError: ``buffer`` is truncated or malformed.
    """
    pieces: list[bytes] = []
    lifted = _lift_message(buffer, 0, len(buffer), "model", STUB_PREFIX + location, threshold, 0, pieces)
    return (b"".join(pieces) if lifted else bytes(buffer[:])), lifted


def _lift_message(
    buffer: Buffer, start: int, end: int, kind: str, location: str, threshold: int, depth: int, pieces: list[bytes]
) -> int:
    """Appends the message in ``buffer[start:end]`` to ``pieces`` with stubs in it; returns how many."""
    if depth > _MAX_DEPTH:
        raise WireError(f"messages nested more than {_MAX_DEPTH} deep at byte {start}")
    children = _CHILDREN[kind]
    lifted, copied, tail = 0, start, b""
    for number, wire_type, field_start, payload, stop in _fields(buffer, start, end, least=threshold):
        if wire_type != 2:
            continue
        if kind == "tensor" and number == _RAW_DATA:
            fields = list(_fields(buffer, start, end))
            places = [buffer[at:to] for field, _, _, at, to in fields if field in _PLACES]
            if any(place != b"\0" for place in places) or sum(field[0] == _RAW_DATA for field in fields) > 1:
                continue  # it says that its data is elsewhere, or has it twice: left as it stands
            pieces.append(buffer[copied:field_start])
            tail = _stub(location, payload, stop - payload, explicit=bool(places))  # last: the last word counts
        elif number in children:
            inner: list[bytes] = []
            below = _lift_message(buffer, payload, stop, children[number], location, threshold, depth + 1, inner)
            if not below:
                continue
            size = sum(map(len, inner))
            pieces += (buffer[copied:field_start], _tag(number, 2), _encode_varint(size), *inner)
            lifted += below - 1
        else:
            continue
        lifted, copied = lifted + 1, stop
    pieces += (buffer[copied:end], tail)
    return lifted


def _stub(location: str, offset: int, length: int, *, explicit: bool) -> bytes:
    entries = [("location", location), ("offset", str(offset)), ("length", str(length))]
    if explicit:
        entries.append((STUB_EXPLICIT, "1"))
    fields = [_message(_EXTERNAL_DATA, _text(1, key) + _text(2, value)) for key, value in entries]
    return b"".join(fields) + _tag(_DATA_LOCATION, 0) + b"\x01"


def splice(structure: bytes, positions: Sequence[int], lengths: Sequence[int]) -> list[bytes | Splice]:
    """Returns ``structure`` as segments in which placeholders are replaced by payloads of other lengths.

    Args:
        structure: A serialized model.
        positions: Where the ``raw_data`` payloads to be replaced start, ascending.
        lengths: The length in bytes of what comes in their place.

    Returns:
        Bytes to write as they are and ``Splice(number)`` where payload ``number`` belongs, in file order. The
        lengths of all enclosing messages are those of the whole.
    """
    segments: list[bytes | Splice] = []
    _splice_message(structure, 0, len(structure), "model", positions, lengths, 0, segments)
    return segments


def _splice_message(
    data: bytes,
    start: int,
    end: int,
    kind: str,
    positions: Sequence[int],
    lengths: Sequence[int],
    depth: int,
    out: list[bytes | Splice],
) -> int:
    """Appends the message ``data[start:end]`` with its payloads to ``out``; returns its new size in bytes."""
    upcoming = bisect_left(positions, start)
    copied, size = start, 0
    for number, wire_type, field_start, payload, stop in _fields(data, start, end):
        if upcoming >= len(positions) or positions[upcoming] >= end:
            break
        if wire_type != 2 or positions[upcoming] >= stop:
            continue
        if kind == "tensor" and number == _RAW_DATA:
            inner: list[bytes | Splice] = [Splice(upcoming)]
            inner_size = lengths[upcoming]
        else:
            inner = []
            child = _CHILDREN[kind][number]
            inner_size = _splice_message(data, payload, stop, child, positions, lengths, depth + 1, inner)
        header = data[copied:field_start] + _tag(number, 2) + _encode_varint(inner_size)
        out += (header, *inner)
        size += len(header) + inner_size
        copied, upcoming = stop, bisect_left(positions, stop)
    out.append(data[copied:end])
    return size + end - copied


def _fields(buffer: Buffer, start: int, end: int, *, least: int = 0) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (field number, wire type, field start, payload start, payload end) of each field of a message.

    Messages, bytes and texts of less than ``least`` bytes are passed over, a hundred thousand small nodes in one loop.
    """
    position = start
    try:
        while position < end:
            field_start = position
            tag = buffer[position]
            position += 1
            if tag >= 0x80:
                tag, position = _varint(buffer, field_start)
            wire_type = tag & 7
            if wire_type == 2:
                length = buffer[position]
                position += 1
                if length >= 0x80:
                    length, position = _varint(buffer, position - 1)
                stop = position + length
                if length < least and stop <= end:
                    position = stop
                    continue
            elif wire_type == 0:
                stop = position
                while buffer[stop] >= 0x80:
                    stop += 1
                stop += 1
            elif wire_type in (1, 5):
                stop = position + (8 if wire_type == 1 else 4)
            elif wire_type == 3:
                stop = _group_end(buffer, position, end)
            else:
                raise WireError(f"wire type {wire_type} at byte {field_start}, which no model uses")
            if stop > end:
                raise WireError(f"field {tag >> 3} at byte {field_start} ends {stop - end} bytes after its message")
            yield tag >> 3, wire_type, field_start, position, stop
            position = stop
    except IndexError:
        raise WireError(f"the data ends in the middle of a field, at byte {len(buffer)}") from None


def _group_end(buffer: Buffer, position: int, end: int) -> int:
    """Returns where a group ends: no field of a model is one, but an unknown field may be."""
    depth = 1
    while depth:
        if position >= end:
            raise WireError(f"a group has no end at byte {end}")
        tag, position = _varint(buffer, position)
        wire_type = tag & 7
        if wire_type == 0:
            _, position = _varint(buffer, position)
        elif wire_type == 2:
            length, position = _varint(buffer, position)
            position += length
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        elif wire_type in (3, 4):
            depth += 1 if wire_type == 3 else -1
        else:
            raise WireError(f"wire type {wire_type} in a group that ends at byte {position}, which no model uses")
    return position


def _varint(buffer: Buffer, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise WireError(f"a number of more than 64 bits at byte {position}")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, wire_type: int) -> bytes:
    return _encode_varint(number << 3 | wire_type)


def _message(number: int, payload: bytes) -> bytes:
    return _tag(number, 2) + _encode_varint(len(payload)) + payload


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())
