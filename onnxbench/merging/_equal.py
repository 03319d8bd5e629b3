"""What two models hold both: weights of the same bytes, functions and constants of the same content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.messages import copy_of
from onnxbench.model import SMALL_WEIGHT, Model
from onnxbench.progress import track

if TYPE_CHECKING:
    from onnx import TensorProto

_HEAD = 4096
_BLOCK = 1 << 20


def equal_weights(
    a: Model, ours: Sequence[TensorProto], b: Model, theirs: Sequence[TensorProto], *, by_name: Collection[str] = ()
) -> dict[str, str]:
    """Returns, by name, which weight of A each weight of B is equal to, if any.

    Compared are element type and shape, then the first bytes, and only what agrees in both is read, in blocks, to the
    first difference; where several weights of A come into question, each is read once, for its hash. A
    weight that may be a shape or axes is shared only under its own name, since two of them being equal means nothing.
    """
    by_kind: dict[tuple[Any, ...], list[TensorProto]] = defaultdict(list)
    for tensor in ours:
        by_kind[tensor.data_type, tuple(tensor.dims)].append(tensor)
    candidates: list[tuple[TensorProto, list[TensorProto]]] = []
    for tensor in theirs:
        twins = by_kind.get((tensor.data_type, tuple(tensor.dims)), [])
        if weights.tensor_bytes(tensor) <= SMALL_WEIGHT or tensor.name in by_name:
            twins = [twin for twin in twins if twin.name == tensor.name]
        if twins:
            candidates.append((tensor, twins))
    heads: dict[tuple[int, str], bytes] = {}
    wholes: dict[tuple[int, str], bytes] = {}

    def digest(model: Model, number: int, tensor: TensorProto) -> bytes:
        key = number, tensor.name
        if key not in wholes:
            wholes[key] = _digest(model, tensor)
        return wholes[key]

    def head(model: Model, number: int, tensor: TensorProto) -> bytes:
        key = number, tensor.name
        if key not in heads:
            heads[key] = _head(model, tensor)
        return heads[key]

    likely: list[tuple[TensorProto, list[TensorProto]]] = []
    for tensor, twins in candidates:
        place = b.byte_range(tensor)
        same_place = [twin for twin in twins if place is not None and a.byte_range(twin) == place]
        found = same_place[:1] or [twin for twin in twins if head(a, 0, twin) == head(b, 1, tensor)]
        if found:
            likely.append((tensor, found))
    equal: dict[str, str] = {}
    total = sum(weights.tensor_bytes(tensor) for tensor, _ in likely)
    with track("comparing weights", total, "bytes") as advance:
        for tensor, twins in likely:
            place = b.byte_range(tensor)
            twins = sorted(twins, key=lambda twin: twin.name != tensor.name)
            for twin in twins:
                if place is not None and a.byte_range(twin) == place:
                    same = True
                elif len(twins) == 1:
                    same = _same_data(a, twin, b, tensor)
                else:
                    same = digest(a, 0, twin) == digest(b, 1, tensor)
                if same:
                    equal[tensor.name] = twin.name
                    break
            advance(weights.tensor_bytes(tensor))
    return equal


def _head(model: Model, tensor: TensorProto) -> bytes:
    where = model.byte_range(tensor)
    if where is None:
        return _plain_bytes(tensor)[:_HEAD]
    return weights.read_bytes(replace(where, length=min(_HEAD, where.length)))


def _same_data(a: Model, one: TensorProto, b: Model, other: TensorProto) -> bool:
    return all(x == y for x, y in zip_longest(_blocks(a, one), _blocks(b, other)))


def _digest(model: Model, tensor: TensorProto) -> bytes:
    """Returns a hash of a tensor's bytes."""
    made = hashlib.blake2b(digest_size=32)
    for block in _blocks(model, tensor):
        made.update(block)
    return made.digest()


def _blocks(model: Model, tensor: TensorProto) -> Iterator[memoryview | bytes]:
    """Yields the bytes of a tensor in blocks of one size, the last one shorter; what lies outside is read."""
    where = model.byte_range(tensor)
    if where is None:
        data = memoryview(_plain_bytes(tensor))
        for at in range(0, len(data), _BLOCK):
            yield data[at : at + _BLOCK]
        return
    for at in range(0, where.length, _BLOCK):
        yield weights.read_bytes(replace(where, offset=where.offset + at, length=min(_BLOCK, where.length - at)))


def _plain_bytes(tensor: TensorProto) -> bytes:
    """Returns the data of a tensor in the structure as raw bytes, however it is stored; texts with their lengths."""
    if tensor.data_type == 8:
        return b"".join(b"%d:%s" % (len(text), text) for text in tensor.string_data)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    from onnx import numpy_helper

    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def same_messages(a: Model, one: Any, b: Model, other: Any) -> bool:
    """Tells whether two messages say the same, weights by their values and not by where they lie."""
    return _settled(a, one) == _settled(b, other)


def _settled(model: Model, message: Any) -> bytes:
    """Returns a message as bytes in which the data of every tensor is its hash."""
    copy = copy_of(message)
    kind = copy.DESCRIPTOR.name
    if kind == "SparseTensorProto":
        held: Iterable[TensorProto] = (copy.values, copy.indices)
    else:
        held = weights.node_tensors(copy) if kind == "NodeProto" else weights.graph_tensors(copy)
    for tensor in list(held):
        digest = _digest(model, tensor)
        for name in (
            "external_data", "data_location", "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
            "string_data",
        ):  # fmt: skip
            tensor.ClearField(name)
        tensor.raw_data = digest
    data: bytes = copy.SerializeToString(deterministic=True)
    return data
