"""The way back from an edit: a patch that makes the model before of the model after.

A patch is made of two structures and says of each list of the earlier model (nodes, initializers, functions, ...)
which runs of items the later one still has, and holds the others whole. It is as small as the edit was. Weights that
the later model has are taken from its file; those that it does not have any more are the only ones that are copied
into the patch. So undoing an edit needs the edited file and the patch, and nothing of the original.

A patch file is a line that says what it is, the length of a JSON head, that head, and the bytes that it refers to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import NotFoundError, SpecError, UsageError, near_file
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.weights import ByteRange
from onnxbench.wire import STUB_EXPLICIT, STUB_PREFIX
from onnxbench.writer import write_whole

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_MAGIC = b"onnxbench undo patch 1\n"
_MODEL_LISTS = ("opset_import", "metadata_props", "training_info", "functions", "configuration")
_GRAPH_LISTS = (
    "node", "initializer", "sparse_initializer", "input", "output", "value_info", "quantization_annotation",
    "metadata_props",
)  # fmt: skip


def save_patch(path: str | os.PathLike[str], before: Model, after: Model) -> Path:
    """Writes the patch that makes ``before`` of ``after``, and returns its path.

    Args:
        path: The patch file.
        before: The model before an edit.
        after: The model after it, its weights where ``before`` has them or in new places.

    Raises:
        OutputError: The file cannot be written.
    """
    blob = _Blob()
    taken = {
        where: number
        for number, tensor in reversed(list(enumerate(weights.tensors(after.proto))))
        if weights.is_outside(tensor) and (where := after.byte_range(tensor)) is not None
    }
    head: dict[str, Any] = {
        "before": fingerprint(before.proto),
        "after": fingerprint(after.proto),
        "shell": blob.add(_shell(before.proto).SerializeToString(deterministic=True)),
        "lists": {},
        "explicit": [number for number, tensor in enumerate(weights.tensors(before.proto)) if _says_inline(tensor)],
    }
    lists = dict(_lists(after.proto))
    for name, items in _lists(before.proto):
        later = lists[name]
        runs: list[Any] = []
        for run in _runs([_bytes_of(item) for item in items], [_bytes_of(item) for item in later]):
            if isinstance(run, int):
                places = _places(before, items[run], taken, blob)
                runs.append({"item": blob.add(_bytes_of(items[run])), "weights": places})
            else:
                runs.append(list(run))
        head["lists"][name] = runs
    text = json.dumps(head).encode()
    target = Path(path)
    write_whole(target, (_MAGIC, len(text).to_bytes(8, "little"), text, *blob.parts))
    return target


def undo(after: Model, patch: str | os.PathLike[str]) -> Model:
    """Returns the model before an edit, of the edited one and the patch that was saved with it.

    Args:
        after: The edited model, as it was written.
        patch: The patch file. It must stay until the result is saved: weights that only it has are read from there.

    Raises:
        NotFoundError: There is no such patch.
        SpecError: The file is no patch, or is cut short.
        UsageError: The patch belongs to another model.
    """
    path = Path(patch)
    head, start = _read_head(path)
    if fingerprint(after.proto) != head["after"]:
        raise UsageError(
            f"{path} does not lead back from this model: it is not the one that the edit wrote, or was changed since",
            hint="Name the file that was written with the patch, as it was then.",
        )
    pool = list(weights.tensors(after.proto))
    from onnx import ModelProto

    with open(path, "rb") as file:

        def read(place: list[int]) -> bytes:
            file.seek(start + place[0])
            data = file.read(place[1])
            if len(data) != place[1]:
                raise SpecError(f"{path} is cut short")
            return data

        proto = ModelProto.FromString(read(head["shell"]))
        later = dict(_lists(after.proto))
        for name, items in _lists(proto):
            for run in head["lists"][name]:
                if isinstance(run, list):
                    items.extend(later[name][run[0] : run[1]])
                    continue
                item = items.add()
                item.ParseFromString(read(run["item"]))
                _restore(item, run["weights"], pool, path.resolve(), start)
    restored = list(weights.tensors(proto))
    for number in head.get("explicit", ()):
        tensor = restored[number]
        if not weights.is_outside(tensor):
            tensor.data_location = type(tensor).DEFAULT
        elif not _says_inline(tensor):
            tensor.external_data.add(key=STUB_EXPLICIT, value="1")
    if fingerprint(proto) != head["before"]:
        raise SpecError(f"{path} is damaged: what it makes is not the model before the edit")
    model = after.derive(proto)
    model.look_again()  # the edited model may have no weights outside, and this one those of the patch
    return model


def fingerprint(proto: ModelProto) -> str:
    """Returns a digest of a structure that does not depend on where its weights lie."""
    copy = copy_of(proto)
    for tensor in weights.tensors(copy):
        tensor.ClearField("raw_data")
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    return f"sha256:{hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()}"


def _says_inline(tensor: TensorProto) -> bool:
    """Tells whether a tensor says in so many words that its data is in the model; while it lies outside it cannot."""
    if weights.is_outside(tensor):
        return STUB_EXPLICIT in weights.entries(tensor)
    return bool(tensor.HasField("data_location"))


class _Blob:
    """Bytes that are written behind the head."""

    def __init__(self) -> None:
        self.parts: list[bytes | ByteRange] = []
        self._end = 0

    def add(self, data: bytes | ByteRange) -> list[int]:
        """Adds bytes and returns their offset and length."""
        length = data.length if isinstance(data, ByteRange) else len(data)
        self.parts.append(data)
        self._end += length
        return [self._end - length, length]


def _lists(proto: ModelProto) -> Iterator[tuple[str, Any]]:
    for name in _MODEL_LISTS:
        if hasattr(proto, name):
            yield name, getattr(proto, name)
    for name in _GRAPH_LISTS:
        if hasattr(proto.graph, name):
            yield f"graph.{name}", getattr(proto.graph, name)


def _shell(proto: ModelProto) -> ModelProto:
    """Returns a model without the items of its lists."""
    shell = copy_of(proto)
    for _, items in _lists(shell):
        del items[:]
    return shell


def _bytes_of(item: Any) -> bytes:
    data: bytes = item.SerializeToString(deterministic=True)
    return data


def _runs(earlier: list[bytes], later: list[bytes]) -> Iterator[tuple[int, int] | int]:
    """Yields how an earlier list is made of a later one: runs of its positions, and earlier items that it lacks.

    Greedy and linear: the next item is looked for right behind the last one, else at its first place.
    """
    places: dict[bytes, list[int]] = defaultdict(list)
    for position in reversed(range(len(later))):
        places[later[position]].append(position)
    start = end = 0
    for number, item in enumerate(earlier):
        if end < len(later) and later[end] == item and end > start:
            end += 1
            continue
        if end > start:
            yield start, end
        if item in places:
            start = end if end < len(later) and later[end] == item else places[item][-1]
            end = start + 1
        else:
            start = end
            yield number
    if end > start:
        yield start, end


def _tensors_of(item: Any) -> Iterator[TensorProto]:
    """Yields the tensors of an item of one of the lists."""
    kind = item.DESCRIPTOR.name
    if kind == "TensorProto":
        yield item
    elif kind == "SparseTensorProto":
        yield item.values
        yield item.indices
    elif kind == "NodeProto":
        yield from weights.node_tensors(item)
    elif kind == "FunctionProto":
        yield from weights.graph_tensors(item)
    elif kind == "TrainingInfoProto":
        yield from weights.graph_tensors(item.initialization)
        yield from weights.graph_tensors(item.algorithm)


def _places(model: Model, item: Any, taken: dict[ByteRange, int], blob: _Blob) -> list[Any]:
    """Returns where the bytes of an item's tensors are found again: in a tensor of the later model, or in the patch."""
    found: list[Any] = []
    for tensor in _tensors_of(item):
        where = model.byte_range(tensor) if weights.is_outside(tensor) else None
        if where is None:
            found.append(None)
        elif where in taken:
            found.append(taken[where])
        else:
            found.append(blob.add(where))
    return found


def _restore(item: Any, places: list[Any], pool: list[TensorProto], path: Path, start: int) -> None:
    for tensor, place in zip(_tensors_of(item), places, strict=True):
        if place is None:
            continue
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        if isinstance(place, int):
            twin = pool[place]
            if weights.is_outside(twin):
                tensor.external_data.extend(twin.external_data)
                tensor.data_location = twin.data_location
            else:
                tensor.raw_data = twin.raw_data
            continue
        tensor.data_location = type(tensor).EXTERNAL
        location = f"{STUB_PREFIX}{weights.stub_location(path)}"
        for key, value in (("location", location), ("offset", str(start + place[0])), ("length", str(place[1]))):
            tensor.external_data.add(key=key, value=value)


def _read_head(path: Path) -> tuple[dict[str, Any], int]:
    """Returns the head of a patch and where the bytes behind it begin."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise SpecError(f"{path} is no undo patch", hint="'onnxbench edit --save-undo FILE' writes one.")
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, path.stat().st_size))
            head = json.loads(text)
            return head, file.tell()
    except FileNotFoundError:
        raise NotFoundError(f"there is no undo patch {path}", hint=near_file(path)) from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError):
        raise SpecError(f"{path} is damaged: its head cannot be read") from None
