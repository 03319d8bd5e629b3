"""A model in memory: its structure, and where its weights lie. The only place that reads model files.

``load`` brings the structure alone. Large inline weights are left in the file (``onnxbench.wire``), external
ones where they are, so a 3 GB model opens in milliseconds and a few megabytes. Everything that onnxbench does
is done to ``Model.proto``, a plain ``onnx.ModelProto``: what an edit does not touch, unknown fields included,
stays as it was.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from onnxbench import weights
from onnxbench.errors import ExternalDataError, ModelError, NotFoundError, UsageError, near_file
from onnxbench.messages import copy_of
from onnxbench.scratch import Scratch
from onnxbench.wire import STUB_PREFIX, WireError, lift

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, TensorProto

LIFT_FILE_SIZE = 1 << 20
"""Files smaller than this (bytes) are parsed whole; larger ones have their large weights lifted out first."""
LIFT_THRESHOLD = 4096
"""Raw data of at least this many bytes is left in the file."""

SMALL_WEIGHT = 1024
"""Weights of at most this many bytes may be shapes, axes or other numbers that type inference looks at."""

TEXT_FORMATS: dict[str, str] = {
    ".onnxtxt": "onnxtxt", ".onnxtext": "onnxtxt",
    ".textproto": "textproto", ".pbtxt": "textproto", ".prototxt": "textproto", ".textpb": "textproto",
    ".json": "json", ".onnxjson": "json",
}  # fmt: skip
"""File endings that mean one of onnx's text serializations; any other file is binary."""

Fingerprint = tuple[int, int, int]


@dataclass(slots=True)
class Model:
    """The structure of a model and the whereabouts of its weights.

    Attributes:
        proto: The structure. Tensors with ``data_location == EXTERNAL`` have their bytes elsewhere.
        folder: The folder that external locations are relative to.
        origin: The file it was loaded from, or None for a model made in memory.
        allow_outside: Whether external locations may leave ``folder``.
        sources: The files that hold weights, as they were (size, mtime in ns, inode) when first seen.
        file_size: Bytes of the model file itself; 0 for a model made in memory.
        real_folder: Where the model file itself lies, if ``folder`` only has a symbolic link to it.
        scratch: Where new weights lie that are too large for memory; it lives as long as a model refers to it.
    """

    proto: ModelProto
    folder: Path = field(default_factory=Path.cwd)
    origin: Path | None = None
    allow_outside: bool = False
    sources: dict[Path, Fingerprint] = field(default_factory=dict)
    file_size: int = 0
    real_folder: Path | None = None
    _has_outside: bool | None = None
    scratch: Scratch = field(default_factory=Scratch)
    _promises: dict[weights.ByteRange, Callable[[], Iterable[bytes]]] = field(default_factory=dict)

    def derive(self, proto: ModelProto) -> Model:
        """Returns a model with another structure whose weights lie where this model's do."""
        return Model(
            proto, self.folder, self.origin, self.allow_outside, self.sources, real_folder=self.real_folder,
            _has_outside=self._has_outside, scratch=self.scratch, _promises=self._promises,
        )  # fmt: skip

    def byte_range(self, tensor: TensorProto) -> weights.ByteRange | None:
        """Returns where a tensor's bytes lie, or None when they are in ``proto``.

        Raises:
            ExternalDataError: The place is not usable, or the file changed since the model was loaded.
        """
        where = self.place(tensor)
        if where in self._promises:
            self.scratch.fill(where, self._promises.pop(where)())
            self.sources[where.file] = _fingerprint(where.file)
        return where

    def place(self, tensor: TensorProto) -> weights.ByteRange | None:
        """Returns what ``byte_range`` does, but the bytes may be promised alone: only ``copy`` is sure to have them.

        Raises:
            ExternalDataError: As for ``byte_range``.
        """
        where = weights.byte_range(tensor, self.folder, real_folder=self.real_folder, allow_outside=self.allow_outside)
        if where is not None:
            now = _fingerprint(where.file)
            if self.sources.setdefault(where.file, now) != now:
                raise ExternalDataError(
                    f"{where.file} changed after the model was loaded, so its weights are no longer there",
                    hint="Load the model again.",
                )
        return where

    def copy(self, where: weights.ByteRange, out: BinaryIO, advance: Callable[[int], None]) -> None:
        """Copies the bytes of a range to a file; promised ones are made now, and lie nowhere else.

        Args:
            where: The range.
            out: The file.
            advance: Told how many bytes were copied, again and again.

        Raises:
            ExternalDataError: The bytes cannot be read.
        """
        make = self._promises.get(where)
        if make is None:
            weights.copy_range(where, out, advance)
            return
        for block in make():
            out.write(block)
            advance(len(block))

    def refer(self, tensor: TensorProto, where: weights.ByteRange) -> None:
        """Gives a tensor of this model the bytes of a range in place of the data that it has."""
        weights.clear_data(tensor)
        weights.refer(tensor, where)
        self._has_outside = True

    def look_again(self) -> None:
        """Says that tensors were changed directly, and some may lie outside the structure now."""
        self._has_outside = self._has_outside or None

    def store(self, tensor: TensorProto, blocks: Iterable[bytes], length: int) -> None:
        """Gives a tensor of this model new raw data, which is held in memory only if it is small.

        Args:
            tensor: The tensor, with its new type and shape.
            blocks: The data, in pieces.
            length: Its bytes in all.

        Raises:
            OutputError: There is no space for it.
        """
        if length < LIFT_THRESHOLD:
            data = b"".join(blocks)
            weights.clear_data(tensor)
            tensor.raw_data = data
            return
        where = self.scratch.append(blocks)
        self.sources[where.file] = _fingerprint(where.file)
        self.refer(tensor, where)

    def promise(self, tensor: TensorProto, make: Callable[[], Iterable[bytes]], length: int) -> None:
        """Gives a tensor new raw data that is made when it is wanted: while the model is written, or the tensor read.

        Args:
            tensor: The tensor, with its new type and shape.
            make: Makes the data, in pieces, as often as it is asked. What it raises, who wants the data gets.
            length: Its bytes in all.

        Raises:
            OutputError: The folder for temporary files cannot be written to.
        """
        if length < LIFT_THRESHOLD:
            self.store(tensor, make(), length)
            return
        where = self.scratch.reserve(length)
        self.sources[where.file] = _fingerprint(where.file)
        self._promises[where] = make
        self.refer(tensor, where)

    def array(self, tensor: TensorProto) -> np.ndarray:
        """Returns the values of a tensor, read now (see ``onnxbench.weights.read_array``)."""
        self.byte_range(tensor)
        return weights.read_array(tensor, self.folder, real_folder=self.real_folder, allow_outside=self.allow_outside)

    @property
    def has_outside(self) -> bool:
        """Whether any tensor's bytes lie outside the structure; looked up once, and the same for derived models."""
        if self._has_outside is None:
            self._has_outside = weights.any_outside(self.proto)
        return self._has_outside

    def with_small_weights(self, proto: ModelProto) -> ModelProto:
        """Returns a structure with small weights in it that lie outside, as shapes and axes may: inference needs them.

        Args:
            proto: A structure whose weights lie where this model's do; it is returned itself if there are none.

        Raises:
            ExternalDataError: They cannot be had.
        """
        small = {}
        for number, tensor in enumerate(weights.tensors(proto) if self.has_outside else ()):
            if weights.is_outside(tensor):
                where = self.place(tensor)
                if where is not None and where.length <= SMALL_WEIGHT:  # so it was not promised
                    small[number] = where
        if not small:
            return proto
        copy = copy_of(proto)
        for number, tensor in enumerate(weights.tensors(copy)):
            if number in small:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = weights.read_bytes(small[number])
        return copy

    def check_weights(self) -> None:
        """Looks whether every weight outside the structure can be had, by the files' sizes alone.

        Raises:
            ExternalDataError: One cannot.
        """
        for tensor in weights.tensors(self.proto):
            self.place(tensor)


def load(path: str | os.PathLike[str], *, allow_outside: bool = False, require_weights: bool = True) -> Model:
    """Returns the model in a file: its structure, without the weights.

    Args:
        path: A binary ``.onnx`` file, or one of onnx's text formats by its ending (``TEXT_FORMATS``).
        allow_outside: Follow external data that leaves the model's folder (``..``, absolute, symbolic links).
        require_weights: Refuse a model whose external data is not there. Their bytes are not read either way.

    Raises:
        NotFoundError: There is no such file.
        ModelError: The file is not an ONNX model.
        ExternalDataError: Weights are missing, out of range, or out of the folder.
    """
    file = Path(path)
    _require_file(file)
    data, lifted = (_read_text(file), 0) if file.suffix.lower() in TEXT_FORMATS else _read_structure(file)
    if data.count(STUB_PREFIX.encode()) != lifted:  # or a file could name any other one to be read
        raise ExternalDataError(f"{file} names an external location that is reserved, {STUB_PREFIX!r}")
    proto = _parse(data, file)
    folder, origin = file.parent.resolve(), file.resolve()
    real_folder = origin.parent if origin.parent != folder else None
    # Without this mark in the bytes there is nothing outside, and no walk is needed.
    outside = weights.OUTSIDE_MARK in data
    model = Model(proto, folder, origin, allow_outside, {}, file.stat().st_size, real_folder, outside)
    if require_weights and outside:
        model.check_weights()
    return model


def from_proto(proto: ModelProto, *, folder: str | os.PathLike[str] | None = None) -> Model:
    """Returns a model made of a ``ModelProto`` in memory.

    Args:
        proto: The model, which is not copied.
        folder: Where its external data lies; None: the current folder. Nothing is looked for yet.
    """
    return Model(proto, Path(folder) if folder is not None else Path.cwd())


_SPOOL = "Weights are read where they lie in a file, so write it to one first, and name that."


def _require_file(file: Path) -> None:
    if str(file) == "-":
        raise UsageError("a model is not read from standard input", hint=_SPOOL)
    try:
        if file.is_file():
            with open(file, "rb"):
                return
        if file.is_dir():
            raise UsageError(f"{file} is a folder, not a model file")
        if file.exists():
            raise UsageError(f"{file} is not a regular file", hint=_SPOOL)
        if file.is_symlink():
            file.stat()
    except FileNotFoundError:
        raise NotFoundError(f"{file} is a symbolic link to a file that is not there") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    raise NotFoundError(f"there is no file {file}", hint=near_file(file))


def _read_structure(file: Path) -> tuple[bytes, int]:
    """Returns the bytes of a binary model, its large weights replaced by stubs, and how many stubs there are."""
    size = file.stat().st_size
    if size == 0:
        raise ModelError(f"{file} is empty")
    with open(file, "rb") as handle:
        if size < LIFT_FILE_SIZE:
            return handle.read(), 0
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            try:
                return lift(buffer, location=weights.stub_location(file.resolve()), threshold=LIFT_THRESHOLD)
            except WireError as error:
                raise ModelError(
                    f"{file} is not an ONNX model: {error}", hint=_what_is_it(buffer[:512]) or "It may be truncated."
                ) from None


def _parse(data: bytes, file: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto: ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{file} is not an ONNX model: the protobuf parser gave up ({error})",
            hint=_what_is_it(data[:512]) or "It may be truncated.",
        ) from None
    if not proto.HasField("graph") and not proto.functions:
        raise ModelError(f"{file} holds no graph, so it is not an ONNX model", hint=_what_is_it(data[:512]))
    try:
        str(proto.producer_name), [opset.domain for opset in proto.opset_import], proto.graph.name
    except UnicodeDecodeError:
        raise ModelError(f"{file} is not an ONNX model: its names are not text") from None
    return proto


def _what_is_it(head: bytes) -> str | None:
    """Returns a hint on what a file that is no model looks like, from its first bytes."""
    signatures = {
        b"PK\x03\x04": "It is a zip archive (a PyTorch checkpoint, a .pt2 program or a wheel, perhaps).",
        b"\x80\x02": "It looks like a Python pickle (an old PyTorch checkpoint, perhaps).",
        b"\x89HDF": "It is an HDF5 file (a Keras model, perhaps).",
        b"ptrt": "It is a TensorRT engine.",
        b"ftrt": "It is a TensorRT engine.",
        b"vtrt": "It is a TensorRT-RTX engine.",
        b"version https://git-lfs": "It is a Git LFS pointer: fetch the file itself with 'git lfs pull'.",
        b"\x1f\x8b": "It is a gzip file.",
    }
    for signature, words in signatures.items():
        if head.startswith(signature):
            return words
    if head[4:8] in (b"TFL3", b"ORTM"):
        return "It is a TensorFlow Lite model." if head[4:8] == b"TFL3" else "It is an ONNX Runtime .ort file."
    text = head.lstrip()[:1]
    if text in (b"{", b"["):
        return "It looks like JSON; onnx's own JSON form is read from a file that ends in .json."
    return "It looks like a web page: the download went wrong." if text == b"<" else None


def _read_text(file: Path) -> bytes:
    """Returns a text model as the bytes of its binary form."""
    import onnx

    kind = TEXT_FORMATS[file.suffix.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx calls its own text form experimental
            proto = onnx.load_model(os.fspath(file), format=kind, load_external_data=False)
    except UnicodeDecodeError:
        raise ModelError(f"{file} is not text, so it is no {kind} model") from None
    except Exception as error:  # each text parser raises its own family of errors
        said = error.args[0] if error.args else repr(error)
        words = " ".join((said.decode(errors="replace") if isinstance(said, bytes) else str(said)).split())
        raise ModelError(
            f"{file} is not an ONNX model in {kind} form: {words[:300]}",
            hint="'onnxbench build' reads all that 'onnxbench show' prints." if kind == "onnxtxt" else None,
        ) from None
    data: bytes = proto.SerializeToString()
    return data


def _fingerprint(file: Path) -> Fingerprint:
    try:
        status = file.stat()
    except OSError as error:
        raise ExternalDataError(f"{file} cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns, status.st_ino
