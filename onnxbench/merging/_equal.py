"""What two models hold both: weights of the same bytes, functions and constants of the same content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.model import SMALL_WEIGHT, Model
from onnxbench.progress import track

if TYPE_CHECKING:
    from onnx import TensorProto

_HEAD = 4096
_BLOCK = 4 << 20


def equal_weights(a: Model, ours: Sequence[TensorProto], b: Model, theirs: Sequence[TensorProto]) -> dict[str, str]:
    """Returns, by name, which weight of A each weight of B is equal to, if any.

    Compared are element type and shape, then the first block, and only what agrees in both is read whole, once. A
    weight that may be a shape or axes is shared only under its own name, since two of them being equal means nothing.
    """
    by_kind: dict[tuple[Any, ...], list[TensorProto]] = defaultdict(list)
    for tensor in ours:
        by_kind[tensor.data_type, tuple(tensor.dims)].append(tensor)
    candidates: list[tuple[TensorProto, list[TensorProto]]] = []
    for tensor in theirs:
        twins = by_kind.get((tensor.data_type, tuple(tensor.dims)), [])
        if weights.tensor_bytes(tensor) <= SMALL_WEIGHT:
            twins = [twin for twin in twins if twin.name == tensor.name]
        if twins:
            candidates.append((tensor, twins))
    heads: dict[tuple[int, str], bytes] = {}
    wholes: dict[tuple[int, str], bytes] = {}

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
    to_read = {
        (number, one.name): (model, one)
        for tensor, twins in likely
        if b.byte_range(tensor) is None or a.byte_range(twins[0]) != b.byte_range(tensor)
        for number, model, one in ((1, b, tensor), *((0, a, twin) for twin in twins))
    }
    total = sum(weights.tensor_bytes(tensor) for _, tensor in to_read.values())
    with track("comparing weights", total, "bytes") as advance:
        for key, (model, tensor) in to_read.items():
            wholes[key] = _digest(model, tensor, advance)
    for tensor, twins in likely:
        place = b.byte_range(tensor)
        for twin in twins:
            same = (place is not None and a.byte_range(twin) == place) or (
                wholes[1, tensor.name] == wholes[0, twin.name]
            )
            if same and (twin.name == tensor.name or tensor.name not in equal):
                equal[tensor.name] = twin.name
    return equal


def _head(model: Model, tensor: TensorProto) -> bytes:
    where = model.byte_range(tensor)
    if where is None:
        return _plain_bytes(tensor)[:_HEAD]
    return weights.read_bytes(replace(where, length=min(_HEAD, where.length)))


def _digest(model: Model, tensor: TensorProto, advance: Callable[[int], None] = lambda amount: None) -> bytes:
    """Returns a hash of a tensor's bytes; what lies outside is read in blocks."""
    made = hashlib.blake2b(digest_size=32)
    where = model.byte_range(tensor)
    if where is None:
        data = _plain_bytes(tensor)
        made.update(data)
        advance(len(data))
        return made.digest()
    done = 0
    while done < where.length:
        block = replace(where, offset=where.offset + done, length=min(_BLOCK, where.length - done))
        made.update(weights.read_bytes(block))
        done += block.length
        advance(block.length)
    return made.digest()


def _plain_bytes(tensor: TensorProto) -> bytes:
    """Returns the data of a tensor in the structure as raw bytes, however it is stored; texts with their lengths."""
    if tensor.data_type == 8:
        return b"".join(b"%d:%s" % (len(text), text) for text in tensor.string_data)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    from onnx import numpy_helper

    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def same_messages(a: Model, ours: Sequence[Any], b: Model, theirs: Sequence[Any]) -> bool:
    """Tells whether messages say the same, weights by their values and not by where they lie."""
    return [_settled(a, one) for one in ours] == [_settled(b, one) for one in theirs]


def _settled(model: Model, message: Any) -> bytes:
    """Returns a message as bytes in which the data of every tensor is its hash."""
    copy = type(message)()
    copy.CopyFrom(message)
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
