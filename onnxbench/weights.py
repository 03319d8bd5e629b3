"""Where a tensor's bytes lie, and how they are read or copied: as ranges of files, on demand.

A tensor's data is in one of four places: in the parsed structure (small raw data, typed fields such as
``float_data``, strings), in the model file itself (a stub that ``onnxbench.wire.lift`` left), or in an
external file named by the tensor. The last two are a ``ByteRange``. Paths that the model names are followed
only inside its own folder unless the caller allows otherwise: a model is data, and data does not choose which
files of the machine are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from onnxbench.errors import ExternalDataError, ModelError
from onnxbench.tensortype import dtype_name, raw_size
from onnxbench.wire import STUB_PREFIX

if TYPE_CHECKING:
    import numpy as np
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

OUTSIDE_MARK = b"\x70\x01"
"""Field 14 of a TensorProto, ``data_location``, with the value 1: these bytes are wherever a tensor lies outside."""
COPY_BLOCK = 16 << 20
DATA_FIELDS = (
    "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "raw_data", "external_data",
    "data_location",
)  # fmt: skip
"""The fields of a TensorProto that hold its data, or say where it is."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """``length`` bytes of ``file`` from ``offset`` on."""

    file: Path
    offset: int
    length: int


def is_outside(tensor: TensorProto) -> bool:
    """Tells whether a tensor's bytes lie outside the parsed structure (a stub or external data)."""
    return tensor.data_location == 1  # TensorProto.EXTERNAL


def entries(tensor: TensorProto) -> dict[str, str]:
    """Returns the external data entries of a tensor (location, offset, length, checksum)."""
    return {entry.key: entry.value for entry in tensor.external_data}


def any_outside(proto: ModelProto) -> bool:
    """Tells whether any tensor's bytes lie outside the structure."""
    return any(tensor.data_location == 1 for tensor in tensors(proto))


def location(tensor: TensorProto) -> str | None:
    """Returns the external location that a tensor names, or None (inline data, or a stub of it)."""
    if not is_outside(tensor):
        return None
    named = entries(tensor).get("location", "")
    return None if named.startswith(STUB_PREFIX) else named


def stub_length(tensor: TensorProto) -> int:
    """Returns how many bytes a stub stands for; 0 for any other tensor."""
    said = entries(tensor)
    return int(said["length"]) if said.get("location", "").startswith(STUB_PREFIX) else 0


def tensor_bytes(tensor: TensorProto) -> int:
    """Returns the size of a tensor's data in bytes, from its dims and element type; strings by their length."""
    if tensor.data_type == 8:
        return sum(map(len, tensor.string_data))
    return raw_size(tensor.dims, tensor.data_type)


def clear_data(tensor: TensorProto) -> None:
    """Takes the data out of a tensor; type, shape, name and documentation stay."""
    for name in DATA_FIELDS:
        tensor.ClearField(name)


def refer(tensor: TensorProto, where: ByteRange) -> None:
    """Makes a tensor refer to bytes of a file, as the large tensors of a loaded model do; it must hold no data."""
    tensor.data_location = type(tensor).EXTERNAL
    place = STUB_PREFIX + stub_location(where.file)
    for key, value in (("location", place), ("offset", where.offset), ("length", where.length)):
        tensor.external_data.add(key=key, value=str(value))


def stub_location(file: Path) -> str:
    """Returns what a stub says after ``STUB_PREFIX`` of bytes that lie in ``file``: its path, always as UTF-8 text."""
    path = os.fspath(file)
    try:
        path.encode()
    except UnicodeEncodeError:
        return "\0" + os.fsencode(path).hex()
    return path


def _stub_file(said: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(said[1:])) if said.startswith("\0") else said)


def byte_range(
    tensor: TensorProto, folder: Path, *, real_folder: Path | None = None, allow_outside: bool = False
) -> ByteRange | None:
    """Returns where the bytes of a tensor lie, or None when they are in the parsed structure.

    Args:
        tensor: A tensor of a model loaded by ``onnxbench.model.load``.
        folder: The folder that external locations are relative to.
        real_folder: Where the model file itself lies, if it was reached through a symbolic link (as the files of a
            Hugging Face cache are): weights may lie there too.
        allow_outside: Also follow locations that leave these folders.

    Raises:
        ExternalDataError: The location, offset or length is not usable, or the file does not hold the range.
        ModelError: The tensor has its data twice.
    """
    if not is_outside(tensor):
        return None
    said = entries(tensor)
    where = said.get("location", "")
    if where.startswith(STUB_PREFIX):
        if tensor.HasField("raw_data"):
            raise ModelError(f"tensor {tensor.name!r} has its data twice")
        return ByteRange(_stub_file(where[len(STUB_PREFIX) :]), int(said["offset"]), int(said["length"]))
    if tensor.HasField("raw_data"):
        raise ExternalDataError(f"tensor {tensor.name!r} has data both inline and in the external file {where!r}")
    file = resolve(where, folder, tensor.name, real_folder=real_folder, allow_outside=allow_outside)
    size = raw_size(tensor.dims, tensor.data_type)
    offset, length = _number(tensor, said, "offset", 0), _number(tensor, said, "length", size)
    if length != size:
        raise ExternalDataError(
            f"tensor {tensor.name!r} says its external data has {length:,} bytes, but {dtype_name(tensor.data_type)}"
            f"{list(tensor.dims)} takes {size:,}",
            hint="The model and its weights file do not belong together, or one of them was changed.",
        )
    held = file.stat().st_size
    if offset + length > held:
        raise ExternalDataError(
            f"tensor {tensor.name!r} wants bytes {offset:,} to {offset + length:,} of {where!r}, which has {held:,}",
            hint="The weights file is truncated, or belongs to another model.",
        )
    return ByteRange(file, offset, length)


def _number(tensor: TensorProto, said: dict[str, str], key: str, default: int) -> int:
    text = said.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ExternalDataError(f"tensor {tensor.name!r} has the {key} {text!r}, which is not a number of bytes")
    return int(text)


def resolve(
    where: str, folder: Path, name: str, *, real_folder: Path | None = None, allow_outside: bool = False
) -> Path:
    """Returns the regular file that an external location means.

    Raises:
        ExternalDataError: The location is empty, leaves the folders (see ``byte_range``), or is no regular file.
    """
    if not where or "\0" in where:
        raise ExternalDataError(f"tensor {name!r} has external data but names no file")
    file = folder / where
    if real_folder is not None and not os.path.lexists(file):
        file = real_folder / where
    if not allow_outside:
        real = Path(os.path.realpath(file))
        homes = [Path(os.path.realpath(home)) for home in (folder, real_folder) if home is not None]
        inside = any(real.is_relative_to(home) for home in homes)
        if os.path.isabs(where) or ".." in Path(where).parts or not inside:
            raise ExternalDataError(
                f"tensor {name!r} keeps its data in {where!r}, which leaves the model's folder",
                hint="If you trust this model, allow it with --allow-outside.",
            )
    try:
        exists = file.exists()
    except OSError as error:
        raise ExternalDataError(f"the external data of tensor {name!r} has no usable name: {error.strerror}") from None
    if not exists:
        what = f"the external data {where!r} of tensor {name!r}" if name else f"the file {where!r}"
        raise ExternalDataError(
            f"{what} is missing from {folder}",
            hint="Put the weights file beside the model; commands that need no weights still work.",
        )
    if not file.is_file():
        raise ExternalDataError(f"the external data {where!r} of tensor {name!r} is not a regular file")
    if not os.access(file, os.R_OK):
        raise ExternalDataError(f"the external data {where!r} of tensor {name!r} may not be read by this user")
    return file


def copy_range(source: ByteRange, out: BinaryIO, advance: Callable[[int], None] = lambda amount: None) -> None:
    """Copies a byte range to the current position of ``out`` without holding more than a block of it.

    The kernel copies where it can (``copy_file_range``), so that the bytes do not pass through Python. Whoever writes
    weights flushes them to the disk afterwards; each block starts on its way there while the next one is copied.

    Args:
        source: What to copy.
        out: Where to; its position ends up behind the copy.
        advance: Is called with the bytes of every block that is done.

    Raises:
        ExternalDataError: The file holds fewer bytes than the range.
    """
    out.flush()
    start = out.tell()
    with open(source.file, "rb", buffering=0) as file:
        done = 0
        try:
            while done < source.length:
                count = min(source.length - done, COPY_BLOCK)
                copied = os.copy_file_range(file.fileno(), out.fileno(), count, source.offset + done)
                if copied == 0:
                    break
                _start_flush(out, start + done, copied)
                done += copied
                advance(copied)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (28, 122):  # no space, quota: not ours to work around
                raise
        file.seek(source.offset + done)
        while done < source.length:
            block = file.read(min(COPY_BLOCK >> 1, source.length - done))
            if not block:
                raise ExternalDataError(f"{source.file} ended {source.length - done:,} bytes too early while copying")
            out.write(block)
            _start_flush(out, start + done, len(block))
            done += len(block)
            advance(len(block))
    out.flush()
    out.seek(0, os.SEEK_END)


def _start_flush(out: BinaryIO, offset: int, length: int) -> None:
    """Lets the kernel begin to write new bytes to the disk: Linux does so when told that nobody needs them soon.

    Bytes that are not on the disk yet stay in the page cache all the same. What this does not do, a later flush does.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(out.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def read_bytes(source: ByteRange) -> bytes:
    """Returns the bytes of a range.

    Raises:
        ExternalDataError: The file does not hold them, or cannot be read.
    """
    try:
        with open(source.file, "rb") as file:
            file.seek(source.offset)
            data = file.read(source.length)
    except OSError as error:
        raise ExternalDataError(f"{source.file} cannot be read: {error.strerror}") from None
    if len(data) < source.length:
        raise ExternalDataError(f"{source.file} ends {source.length - len(data):,} bytes too early")
    return data


def read_array(
    tensor: TensorProto, folder: Path, *, real_folder: Path | None = None, allow_outside: bool = False
) -> np.ndarray:
    """Returns the values of one tensor as a NumPy array of its shape, read from wherever they lie.

    Elements that NumPy lacks come as the types of ``ml_dtypes`` (bfloat16, float8, int4, unpacked to one element
    each).

    Raises:
        ExternalDataError: As for ``byte_range``.
        ModelError: The data does not fit the tensor's type and shape.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    where = byte_range(tensor, folder, real_folder=real_folder, allow_outside=allow_outside)
    held = tensor
    if where is not None:
        held = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=read_bytes(where))
    try:
        return numpy_helper.to_array(held)
    except UnicodeDecodeError:  # strings in ONNX are bytes; what is no text comes with surrogates, as file names do
        texts = [text.decode(errors="surrogateescape") for text in held.string_data]
        return np.array(texts, dtype=object).reshape(tuple(held.dims))
    except (ValueError, TypeError, KeyError) as error:  # too much or too little data, an unknown element type
        raise ModelError(
            f"the data of tensor {tensor.name!r} does not fit "
            f"{dtype_name(tensor.data_type)}{list(tensor.dims)}: {error}"
        ) from None


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yields every TensorProto of a model: initializers, sparse ones, attributes, bodies, functions.

    The order is that of the file, each graph before the bodies in it; the walk is iterative.
    """
    for tensor, _ in classified_tensors(proto):
        yield tensor


def classified_tensors(proto: ModelProto) -> Iterator[tuple[TensorProto, bool]]:
    """Yields every TensorProto of a model and whether it is a dense initializer."""
    roots: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    for training in proto.training_info:
        roots += (training.initialization, training.algorithm)
    return _walk(roots)


def graph_tensors(graph: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Yields every TensorProto of one graph or function and of the bodies inside it."""
    for tensor, _ in _walk([graph]):
        yield tensor


def node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    """Yields the tensors in a node's attributes, bodies included."""
    bodies: list[GraphProto | FunctionProto] = []
    yield from _attribute_tensors(node.attribute, bodies)
    for tensor, _ in _walk(bodies):
        yield tensor


def _walk(roots: list[GraphProto | FunctionProto]) -> Iterator[tuple[TensorProto, bool]]:
    stack = roots[::-1]
    while stack:
        graph = stack.pop()
        bodies: list[GraphProto | FunctionProto] = []
        held: Iterable[AttributeProto] = ()
        if hasattr(graph, "initializer"):
            for tensor in graph.initializer:
                yield tensor, True
            for part in _sparse_parts(graph.sparse_initializer):
                yield part, False
        else:
            held = graph.attribute_proto
        for tensor in _attribute_tensors(held, bodies):
            yield tensor, False
        for node in graph.node:
            attributes = node.attribute
            if attributes:
                for tensor in _attribute_tensors(attributes, bodies):
                    yield tensor, False
        stack.extend(reversed(bodies))


def _attribute_tensors(
    attributes: Iterable[AttributeProto], bodies: list[GraphProto | FunctionProto]
) -> Iterator[TensorProto]:
    """Yields the tensors of attributes and appends the bodies they hold to ``bodies``."""
    for attribute in attributes:
        kind = attribute.type
        if kind == 4:
            yield attribute.t
        elif kind == 5:
            bodies.append(attribute.g)
        elif kind == 9:
            yield from attribute.tensors
        elif kind == 10:
            bodies.extend(attribute.graphs)
        elif kind == 11:
            yield from _sparse_parts([attribute.sparse_tensor])
        elif kind == 12:
            yield from _sparse_parts(attribute.sparse_tensors)


def _sparse_parts(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for part in sparse:
        yield part.values
        yield part.indices
