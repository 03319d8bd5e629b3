"""Writing models: checked before, atomic, weights copied as byte ranges. The only place that writes them.

The order is: check in full (``onnxbench.validity``), repair if that asks for it, lay out the weights, write
everything into a hidden folder beside the target, flush it to the disk, and only then rename. Whatever goes wrong
before the rename (a full disk, Ctrl-C) leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from onnxbench import weights
from onnxbench.errors import BenchError, OutputError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex
from onnxbench.messages import copy_of
from onnxbench.model import SMALL_WEIGHT, TEXT_FORMATS, Model
from onnxbench.progress import track
from onnxbench.staging import BEFORE, staging_folder
from onnxbench.validity import make_valid
from onnxbench.wire import STUB_EXPLICIT, Splice, splice

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

PROTOBUF_LIMIT = (1 << 31) - 1
"""Bytes that one protobuf message may have; a larger model needs external data."""
_ROOM = 1 << 20  # for the bytes that external data entries add to a structure near the limit
_SMALL_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """How a model is written.

    Attributes:
        external: Weights in files beside the model: True or False, or None for "only when over 2 GiB".
        location: Name of the one weights file, relative to the model's folder; by default NAME.onnx.data.
        per_tensor: One weights file per tensor instead.
        threshold: Initializers with fewer bytes than this stay inline. So do scalars and vectors of at most 1 KiB,
            whatever it is: runtimes want to see shapes and axes before they open any other file.
        alignment: Weights start at multiples of this many bytes (smaller ones than it, of 64).
        share_weights: Refer to the files that hold the weights now, instead of copying the bytes.
        home: The folder in which the model will lie in the end, for ``share_weights``; None: that of the target.
    """

    external: bool | None = None
    location: str | None = None
    per_tensor: bool = False
    threshold: int = 1024
    alignment: int = 4096
    share_weights: bool = False
    home: Path | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written.

    Attributes:
        path: The model file.
        size: Its bytes.
        external_files: Weights files written beside it.
        external_size: Their bytes.
        repairs: What had to be mended for the checker to accept the model (see ``onnxbench.repair``).
    """

    path: Path
    size: int
    external_files: tuple[Path, ...]
    external_size: int
    repairs: tuple[str, ...]


@dataclass(slots=True)
class _Blob:
    """Bytes that go into a weights file: a range of another file, or bytes in memory."""

    file: str
    offset: int
    source: weights.ByteRange | bytes


def save(
    model: Model, path: str | os.PathLike[str], *, options: SaveOptions | None = None, is_valid: bool = False
) -> Saved:
    """Writes a model, checked and in one piece, and returns what was written.

    Args:
        model: The model; it is not changed.
        path: The target. A text ending (``.onnxtxt``, ``.textproto``, ``.json``) writes that form, weights inline.
        options: How weights are stored.
        is_valid: The model went through ``onnxbench.validity.make_valid`` as it is now, so that need not be done again.

    Raises:
        RefusedResultError: The onnx checker does not accept the model; nothing was written.
        OutputError: The target cannot be written; nothing was left behind.
        UsageError: The target is a file that the model is read from, or ``-``.
        UnsupportedError: A text form cannot hold the model.
        ExternalDataError: A weight cannot be had.
    """
    options = options or SaveOptions()
    _require_file_name(path)
    try:
        target = Path(os.path.realpath(path))
    except ValueError:
        raise OutputError(f"{os.fspath(path)!r} is not a usable file name") from None
    proto = copy_of(model.proto)
    repairs = [] if is_valid else make_valid(proto, complete=model.with_small_weights)
    text = TEXT_FORMATS.get(Path(path).suffix.lower())
    if options.share_weights and (options.external or options.per_tensor or options.location):
        raise UsageError("weights are either shared with the input or written to external files, not both")
    if options.per_tensor and options.location:
        raise UsageError("weights go to one external file or to one per tensor, not both")
    if text and (options.external or options.share_weights):
        raise UsageError(f"{target.name} is a text form, which holds its weights itself")
    blobs, inline = ([], _outside(model, proto, reads=True)) if text else _lay_out(model, proto, target, options)
    try:
        _refuse_inputs(model, target, {blob.file for blob in blobs})
        with _staging(target) as staging:
            names = _write_blobs(model, blobs, staging)
            structure = staging / target.name
            with open(structure, "wb") as out:
                if text:
                    out.write(_text_form(model, proto, inline, text))
                else:
                    _write_structure(model, proto, inline, out)
                _flush(out)
            sizes = [(staging / name).stat().st_size for name in names]
            size = structure.stat().st_size
            _publish(staging, target.parent, [*names, target.name])
    except OSError as error:
        raise _cannot_write(error, target) from None
    return Saved(Path(path), size, tuple(Path(path).parent / name for name in names), sum(sizes), tuple(repairs))


def write_whole(target: Path, parts: Iterable[bytes | weights.ByteRange]) -> None:
    """Writes a file that is no model, in one piece: the parts one after the other, or nothing.

    Raises:
        OutputError: It cannot be written; nothing was left behind.
    """
    try:
        require_place(target)
        with _staging(target) as staging:
            with open(staging / target.name, "wb") as out:
                for part in parts:
                    if isinstance(part, bytes):
                        out.write(part)
                    else:
                        weights.copy_range(part, out)
                _flush(out)
            _publish(staging, target.parent, [target.name])
    except OSError as error:
        raise _cannot_write(error, target) from None


def require_place(target: Path) -> None:
    """Raises OutputError where no file can be written: its folder is not there, or something else has its name."""
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} exists and is not a regular file")
    _require_folder(target)


def _require_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}", hint="Make it first.")


@contextlib.contextmanager
def held_back(path: str | os.PathLike[str] | None) -> Iterator[Path | None]:
    """Gives a place for a file that is to appear only if all that the block does goes well; None for None.

    Raises:
        OutputError: The file cannot be written.
    """
    if path is None:
        yield None
        return
    target = Path(path)
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} exists and is not a regular file")
    try:
        with _staging(target) as staging:
            yield staging / target.name
            os.replace(staging / target.name, target)
    except OSError as error:
        raise _cannot_write(error, target) from None


@contextlib.contextmanager
def held_together(target: str | os.PathLike[str], *others: str, flushed: bool = True) -> Iterator[Path]:
    """Gives a folder for files that appear beside a target, all of them or none, if the block goes well.

    Args:
        target: The file that gives the folder its place; one of its name must be made.
        others: Names of further files that must be made.
        flushed: Wait until they are on the disk, so that they are whole after a power cut, too.

    Raises:
        OutputError: A file cannot be written.
    """
    whole = Path(target)
    for each in (whole, *(whole.parent / name for name in others)):
        if each.exists() and not each.is_file():
            raise OutputError(f"{each} exists and is not a regular file")
    try:
        with _staging(whole) as staging:
            yield staging
            for name in (*others, whole.name):
                with open(staging / name, "rb+") as made:
                    if flushed:
                        os.fsync(made.fileno())
            _publish(staging, whole.parent, [*others, whole.name])
    except OSError as error:
        raise _cannot_write(error, whole) from None


def _publish(staging: Path, folder: Path, names: list[str]) -> None:
    """Moves files into a folder, all of them or none; the model, the last one, is never beside wrong weights."""
    if len(names) == 1:
        os.replace(staging / names[0], folder / names[0])
        return
    before = staging / BEFORE
    before.mkdir()
    try:
        for name in reversed(names):
            if (folder / name).exists():
                os.replace(folder / name, before / name)
        for name in names:
            os.replace(staging / name, folder / name)
    except BaseException:  # an interrupt, too, must leave the folder as it was
        for name in reversed(names):
            if not (staging / name).exists():
                (folder / name).unlink(missing_ok=True)
            if (before / name).exists():
                os.replace(before / name, folder / name)
        raise


def _lay_out(
    model: Model, proto: ModelProto, target: Path, options: SaveOptions
) -> tuple[list[_Blob], list[tuple[TensorProto, weights.ByteRange]]]:
    """Decides where every large tensor goes, and says so in ``proto``.

    Returns:
        The blobs to write into weights files, and the tensors whose bytes are spliced into the model file.
    """
    outside = _outside(model, proto)
    if options.share_weights:
        return _share(model, proto, outside, target, options)
    total = proto.ByteSize() + sum(where.length for _, where in outside)
    external = options.external if options.external is not None else total > PROTOBUF_LIMIT - _ROOM
    if not external:
        if total > PROTOBUF_LIMIT - _ROOM:
            raise UsageError(
                f"the result has {total:,} bytes, and a model file without external data can have {PROTOBUF_LIMIT:,}",
                hint="Use --save-external-data.",
            )
        return [], outside
    ranges = {id(tensor): where for tensor, where in outside}  # `outside` keeps these objects, so their ids, alive
    sizer = _Layout(target, options)
    inline = []
    for tensor, is_initializer in list(weights.classified_tensors(proto)):
        found = ranges.get(id(tensor))
        source: weights.ByteRange | bytes = found if found is not None else tensor.raw_data
        length = found.length if found is not None else len(tensor.raw_data)
        # Runtimes do not read external data of node attributes, so these stay inline while they fit.
        if length >= max(options.threshold, 1) and is_initializer and not _may_be_a_shape(tensor, length):
            _refer(tensor, *sizer.place(tensor.name, source, length), length)
        elif found is not None:
            inline.append((tensor, found))
    return sizer.blobs, inline


def _share(
    model: Model,
    proto: ModelProto,
    outside: list[tuple[TensorProto, weights.ByteRange]],
    target: Path,
    options: SaveOptions,
) -> tuple[list[_Blob], list[tuple[TensorProto, weights.ByteRange]]]:
    """Makes tensors refer to the files that hold their bytes now; what an edit made anew gets a file of its own."""
    layout = _Layout(target, options)
    is_initializer = {id(tensor): dense for tensor, dense in list(weights.classified_tensors(proto))}
    inline = []
    for tensor, where in outside:
        is_new = where.file == model.scratch.path
        if _may_be_a_shape(tensor, where.length) or (is_new and not is_initializer[id(tensor)]):
            inline.append((tensor, where))
        elif is_new:
            _refer(tensor, *layout.place(tensor.name, where, where.length), where.length)
        else:
            location = _shared_location(where.file, options.home or target.parent, target.name)
            _refer(tensor, location, where.offset, where.length)
    return layout.blobs, inline


def _may_be_a_shape(tensor: TensorProto, length: int) -> bool:
    return len(tensor.dims) < 2 and length <= SMALL_WEIGHT


class _Layout:
    """Places blobs one after the other in one weights file, or each in a file of its own."""

    def __init__(self, target: Path, options: SaveOptions) -> None:
        self.blobs: list[_Blob] = []
        self._options = options
        self._file = options.location or f"{target.name}.data"
        if Path(self._file).name != self._file:
            raise UsageError(f"the weights file {self._file!r} must be a plain name: it is written beside the model")
        if self._file == target.name:
            raise UsageError("the weights file and the model cannot have the same name")
        self._taken = {target.name}
        self._end = 0
        self._shared: dict[weights.ByteRange, tuple[str, int]] = {}

    def place(self, name: str, source: weights.ByteRange | bytes, length: int) -> tuple[str, int]:
        """Returns the file and the offset where these bytes will lie; equal ranges lie in one place."""
        if isinstance(source, weights.ByteRange) and source in self._shared:
            return self._shared[source]
        if self._options.per_tensor:
            file, offset = self._own_file(name), 0
        else:
            alignment = self._options.alignment if length >= self._options.alignment else _SMALL_ALIGNMENT
            file, offset = self._file, -(-self._end // alignment) * alignment
            self._end = offset + length
        self.blobs.append(_Blob(file, offset, source))
        if isinstance(source, weights.ByteRange):
            self._shared[source] = file, offset
        return file, offset

    def _own_file(self, name: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:100].lstrip(".") or "tensor"
        file, count = f"{base}.bin", 1
        while file in self._taken:
            file, count = f"{base}_{count}.bin", count + 1
        self._taken.add(file)
        return file


def _outside(model: Model, proto: ModelProto, *, reads: bool = False) -> list[tuple[TensorProto, weights.ByteRange]]:
    """Returns the tensors whose bytes lie outside the structure, with where; ``reads``: they are not only copied."""
    found = []
    for tensor in weights.tensors(proto) if model.has_outside else ():
        if weights.is_outside(tensor):
            where = model.byte_range(tensor) if reads else model.place(tensor)
            assert where is not None
            found.append((tensor, where))
    return found


def _refer(tensor: TensorProto, file: str, offset: int, length: int) -> None:
    """Makes a tensor refer to external bytes."""
    tensor.ClearField("raw_data")
    tensor.data_location = type(tensor).EXTERNAL
    kept = [(e.key, e.value) for e in tensor.external_data if e.key not in _PLACE_KEYS]
    del tensor.external_data[:]
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length)), *kept):
        tensor.external_data.add(key=key, value=value)


_PLACE_KEYS = ("location", "offset", "length", STUB_EXPLICIT)


def _shared_location(file: Path, home: Path, name: str) -> str:
    folder = Path(os.path.realpath(home))
    real = Path(os.path.realpath(file))
    if not real.is_relative_to(folder):
        raise UsageError(
            f"--share-weights would make {name} refer to {real}, which is outside of its folder {folder}",
            hint="Write the result into the folder of the weights, or let the bytes be copied.",
        )
    return real.relative_to(folder).as_posix()


def _write_blobs(model: Model, blobs: list[_Blob], staging: Path) -> list[str]:
    """Writes the weights files and returns their names, in order."""
    names = list(dict.fromkeys(blob.file for blob in blobs))
    needed = sum(b.source.length if isinstance(b.source, weights.ByteRange) else len(b.source) for b in blobs)
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise OutputError(f"the weights take {needed:,} bytes and the disk of {staging.parent} has {free:,} left")
    by_file: dict[str, list[_Blob]] = {name: [] for name in names}
    for blob in blobs:
        by_file[blob.file].append(blob)
    with track("copying weights", needed, "bytes") as advance:
        for name, held in by_file.items():
            _write_blob_file(model, held, staging / name, advance)
    return names


def _write_blob_file(model: Model, blobs: list[_Blob], path: Path, advance: Callable[[int], None]) -> None:
    with open(path, "wb") as out:
        for blob in blobs:
            out.seek(blob.offset)
            if isinstance(blob.source, bytes):
                out.write(blob.source)
            else:
                model.copy(blob.source, out, advance)
        _flush(out)


def _write_structure(
    model: Model, proto: ModelProto, inline: list[tuple[TensorProto, weights.ByteRange]], out: BinaryIO
) -> None:
    """Writes the model file, the bytes of ``inline`` tensors copied into their places."""
    if not inline:
        out.write(proto.SerializeToString(deterministic=True))
        return
    salt = _unused_salt(proto)
    for number, (tensor, _) in enumerate(inline):
        _make_inline(tensor, salt + b"%010d" % number)
    structure = proto.SerializeToString(deterministic=True)
    positions, at = [], structure.find(salt)
    order = []
    while at >= 0:
        positions.append(at)
        order.append(int(structure[at + len(salt) : at + len(salt) + 10]))
        at = structure.find(salt, at + 1)
    sources = [inline[number][1] for number in order]
    lengths = [source.length for source in sources]
    with track("copying weights", sum(lengths), "bytes") as advance:
        for segment in splice(structure, positions, lengths):
            if isinstance(segment, Splice):
                model.copy(sources[segment.number], out, advance)
            else:
                out.write(segment)


def _make_inline(tensor: TensorProto, data: bytes) -> None:
    said = weights.entries(tensor)
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    if STUB_EXPLICIT in said:
        tensor.data_location = type(tensor).DEFAULT
    tensor.raw_data = data


def _unused_salt(proto: ModelProto) -> bytes:
    """Returns bytes that occur nowhere in the structure; the same for the same structure."""
    data = proto.SerializeToString(deterministic=True)
    number = 0
    while (salt := b"\x00onnxbench-payload-%06d\x00" % number) in data:
        number += 1
    return salt


def _text_form(
    model: Model, proto: ModelProto, inline: list[tuple[TensorProto, weights.ByteRange]], kind: str
) -> bytes:
    """Returns a model as text.

    Raises:
        UnsupportedError: Something of it would be lost: onnx's text forms do not hold everything, and its printer does
            not say so.
    """
    from onnx import serialization

    for tensor, where in inline:
        _make_inline(tensor, weights.read_bytes(where))
    serializer = serialization.registry.get(kind)
    try:
        text = serializer.serialize_proto(proto)
        again = serializer.deserialize_proto(text, type(proto)())
        lost = _differences(_normal(proto), _normal(again))
    except Exception as error:  # each text form raises its own family of errors
        lost = [f"it cannot be read back: {' '.join(str(error).split())[:200]}"]
    if lost:
        raise UnsupportedError(
            f"the {kind} form cannot hold this model without loss",
            details=lost[:8],
            hint="Write a binary .onnx file" + (", or .textproto." if kind != "textproto" else "."),
        )
    return text if isinstance(text, bytes) else str(text).encode()


def _normal(proto: ModelProto) -> ModelProto:
    """Returns a copy in which what can be written in two ways is written in one: tensor data, the standard domain."""
    from onnx import numpy_helper

    copy = copy_of(proto)
    for tensor in weights.tensors(copy):
        if tensor.data_type != 8 and not tensor.HasField("raw_data"):  # 8: strings, which have no raw form
            raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
            for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "data_location"):
                tensor.ClearField(name)
            tensor.raw_data = raw
    for ref in GraphIndex(copy).nodes():
        if not ref.node.domain:
            ref.node.ClearField("domain")
    return copy


def _differences(first: Message, second: Message, path: str = "") -> list[str]:
    """Returns the paths of the fields in which two messages differ; unknown fields count as one.

    A plain field that is set to its default value and one that is not set say the same.
    """
    from google.protobuf.unknown_fields import UnknownFieldSet

    if first == second:
        return []
    found: dict[str, None] = {}
    for field in first.DESCRIPTOR.fields:
        one, other, name = getattr(first, field.name), getattr(second, field.name), f"{path}{field.name}"
        says = hasattr(one, "DESCRIPTOR") or field.containing_oneof is not None
        if says and first.HasField(field.name) != second.HasField(field.name):
            found[name] = None
        if one == other:
            continue
        if field.message_type is None or (not hasattr(one, "DESCRIPTOR") and len(one) != len(other)):
            found[name] = None
        elif hasattr(one, "DESCRIPTOR"):
            found.update(dict.fromkeys(_differences(one, other, f"{name}.")))
        else:
            for inner, twin in zip(one, other, strict=True):
                found.update(dict.fromkeys(_differences(inner, twin, f"{name}.")))
    if len(UnknownFieldSet(first)) != len(UnknownFieldSet(second)):
        found[f"{path}(unknown fields)"] = None
    return list(found)


def _refuse_inputs(model: Model, target: Path, external: set[str]) -> None:
    """Refuses to overwrite what the model is read from, and anything that is not a regular file."""
    read = {os.path.realpath(file) for file in model.sources}
    if model.origin is not None:
        read.add(os.path.realpath(model.origin))
    for name in (target, *(target.parent / file for file in sorted(external))):
        if os.path.realpath(name) in read:
            raise UsageError(
                f"{name} is what the model is read from, and input files are never changed",
                hint="Write to another file; a rename afterwards is yours to do.",
            )
        if name.exists() and not name.is_file():
            raise OutputError(f"{name} exists and is not a regular file")


def _require_file_name(target: str | os.PathLike[str]) -> None:
    if os.fspath(target) == "-":
        raise UsageError("files are not written to standard output", hint="Name a file.")


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Gives a hidden folder beside the target, gone afterwards whatever happens."""
    _require_file_name(target)
    _require_folder(target)
    with staging_folder(target) as folder:
        yield folder


def _flush(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


def _cannot_write(error: OSError, target: Path) -> BenchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left while writing {target}; nothing was left behind")
    return OutputError(f"cannot write {target}: {error.strerror or error}")
