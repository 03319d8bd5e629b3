"""Values of tensors outside a model: what fits a model's inputs, and the file that holds values.

``Feeds`` are a model's inputs by name. They come from files (``onnxbench.datafiles``) or are drawn
(``onnxbench.drawing``), and are checked against the model's ``Port``s here.

What onnxbench saves is a plain ``.npz``, a zip of ``.npy`` files, that ``numpy.load`` opens as it is. What NumPy
cannot express is described by one more entry, ``__onnxbench__``, a JSON text:

    {"version": 1,
     "dtypes": {"w": "bfloat16"},                entry "w" holds the bits, as uint8 or uint16 of the same shape
                                                 (int4 and the like one element to a byte)
     "values": {"seq": {"list": ["seq[0]"]},     a sequence: its elements are the entries named
                "probs": {"map": [[0, 0.5]]},    a map: its keys and numbers
                "opt": null}}                    an optional that is absent

``Capture`` reads such a file lazily, ``CaptureWriter`` writes it piece by piece, and both keep at most one tensor
in memory.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from onnxbench.errors import (
    FeedsError,
    NotFoundError,
    OutputError,
    UnsupportedError,
    UsageError,
    did_you_mean,
    near_file,
)
from onnxbench.tensortype import (
    Dim,
    dtype_name,
    dtype_number,
    elem_type,
    format_shape,
    format_type,
    tensor_shape,
)

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, TypeProto

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

Value: TypeAlias = Any
"""A NumPy array; a list for a sequence; a dict for a map; None for an optional that is absent."""
Feeds: TypeAlias = dict[str, Value]

MANIFEST = "__onnxbench__"
STRING = 8
FLOATS = {1, 10, 11, 16, 17, 18, 19, 20, 23, 24}
COMPLEX = {14, 15}


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: The tensor.
        type: Its type as far as known.
        required: False for an input that an initializer backs, and for outputs.
    """

    name: str
    type: TypeProto | None
    required: bool = True

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """The shape of a tensor; None when the rank is unknown or it is no tensor."""
        return None if self.type is None else shape_of(self.type)

    @property
    def dtype(self) -> int:
        """The element type of a tensor as ``TensorProto.DataType``; 0 when unknown or no tensor."""
        return 0 if self.type is None else elem_type(self.type)

    @property
    def kind(self) -> str:
        """``tensor``, ``sequence``, ``optional``, ``map``, ``sparse_tensor``, or ``""`` when nothing is known."""
        return "" if self.type is None else (self.type.WhichOneof("value") or "").removesuffix("_type")


def shape_of(kind: TypeProto) -> tuple[Dim, ...] | None:
    """Returns the shape of a tensor type; ``-1`` and ``?``, as some exporters write them, are unknown dimensions."""
    shape = tensor_shape(kind)
    unknown = (None, "?", "*", "-1", "None")
    return (
        None
        if shape is None
        else tuple(None if dim in unknown or (isinstance(dim, int) and dim < 0) else dim for dim in shape)
    )


def input_ports(graph: GraphProto) -> list[Port]:
    """Returns the inputs of a graph in order; those that an initializer backs are not required."""
    backed = {tensor.name for tensor in graph.initializer}
    backed.update(tensor.values.name for tensor in graph.sparse_initializer)
    return [
        Port(info.name, info.type if info.HasField("type") else None, info.name not in backed) for info in graph.input
    ]


def require_shape(port: Port, told: Sequence[Dim]) -> None:
    """Raises FeedsError when a shape told for an input (or the elements of a sequence) is not one that it can have."""
    kind = port.type
    while kind is not None and kind.WhichOneof("value") in ("sequence_type", "optional_type"):
        kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
    declared = None if kind is None else shape_of(kind)
    if declared is None:
        return
    if len(told) != len(declared):
        raise FeedsError(
            f"input {port.name!r} is given the shape {format_shape(told)}, but the model wants "
            f"{len(declared)} dimensions: {format_shape(declared)}"
        )
    for axis, (mine, theirs) in enumerate(zip(told, declared, strict=True)):
        if isinstance(theirs, int) and mine is not None and theirs != mine:
            raise FeedsError(
                f"input {port.name!r} is given the shape {format_shape(told)}, but the model fixes dimension {axis} "
                f"at {theirs}: {format_shape(declared)}"
            )


def numpy_dtype(number: int) -> np.dtype[Any]:
    """Returns the NumPy (or ``ml_dtypes``) element type of a ``TensorProto.DataType``; object for strings.

    Raises:
        UnsupportedError: There is none.
    """
    from onnx import helper

    try:
        return helper.tensor_dtype_to_np_dtype(number)
    except (KeyError, ValueError, TypeError):
        raise UnsupportedError(f"no NumPy type holds elements of type {dtype_name(number)}") from None


def onnx_dtype(dtype: np.dtype[Any]) -> int:
    """Returns the ``TensorProto.DataType`` of a NumPy (or ``ml_dtypes``) element type; 0 when there is none."""
    from onnx import helper

    if dtype.kind in "OUS":
        return STRING
    try:
        return int(helper.np_dtype_to_tensor_dtype(dtype))
    except (KeyError, ValueError, TypeError):
        return 0


# ---------------------------------------------------------------- checking inputs


def check_feeds(feeds: Mapping[str, Value], ports: Sequence[Port], *, cast: bool = False) -> Feeds:
    """Returns the feeds as a runtime wants them: contiguous arrays in the order of the inputs.

    Python numbers and lists become arrays of the wanted type, and an optional that is not given is absent. Arrays must
    have the type already, unless ``cast`` is set: then they are converted where no value changes its kind (float to
    float, integer to integer or float).

    Args:
        feeds: Values by input.
        ports: The inputs of the model.
        cast: Convert element types.

    Raises:
        FeedsError: Inputs are missing or unknown, or shapes or types do not fit; every problem is a line of details.
    """
    known = {port.name: port for port in ports}
    problems: list[str] = []
    hint: str | None = None
    for name in feeds:
        if name not in known:
            problems.append(f"{name!r} is not an input of the model")
            hint = hint or did_you_mean(name, known)
    fitted: Feeds = {}
    for port in ports:
        if port.name not in feeds:
            if port.kind == "optional":
                fitted[port.name] = None
            elif port.required:
                problems.append(f"input {port.name!r} ({format_type(port.type)}) is missing")
            continue
        try:
            fitted[port.name] = _fit(port.name, feeds[port.name], port.type, cast)
        except FeedsError as error:
            problems.append(error.message)
            hint = hint or error.hint
    if problems:
        given = ", ".join(map(repr, feeds)) or "nothing"
        raise FeedsError(
            problems[0] if len(problems) == 1 else f"the feeds do not fit the model ({len(problems)} problems)",
            details=(*problems[:20], f"given: {given[:400]}") if len(problems) > 1 else (f"given: {given[:400]}",),
            hint=hint,
        )
    return fitted


def _fit(name: str, value: Value, kind: TypeProto | None, cast: bool) -> Value:
    import numpy as np

    which = None if kind is None else kind.WhichOneof("value")
    if kind is None or which is None:
        return value
    if which == "optional_type":
        return None if value is None else _fit(name, value, kind.optional_type.elem_type, cast)
    if value is None:
        raise FeedsError(f"input {name!r} is {format_type(kind)} and cannot be absent")
    if which == "sequence_type":
        if not isinstance(value, (list, tuple)):
            raise FeedsError(f"input {name!r} is {format_type(kind)} and wants a list, not {_describe(value)}")
        inner = kind.sequence_type.elem_type
        return [_fit(f"{name}[{i}]", item, inner, cast) for i, item in enumerate(value)]
    if which == "map_type":
        if not isinstance(value, dict):
            raise FeedsError(f"input {name!r} is {format_type(kind)} and wants a dict, not {_describe(value)}")
        return value
    if which != "tensor_type":
        raise UnsupportedError(f"input {name!r} is {format_type(kind)}, which cannot be fed")
    wanted = kind.tensor_type.elem_type
    array = value if isinstance(value, np.ndarray) else _from_python(name, value, wanted)
    array = _fit_dtype(name, array, wanted, cast, typed=isinstance(value, np.ndarray))
    _check_shape(name, array.shape, shape_of(kind))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _describe(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def _from_python(name: str, value: Value, wanted: int) -> Array:
    import numpy as np

    if isinstance(value, dict):
        raise FeedsError(f"input {name!r} wants a tensor, not a dict")
    if callable(getattr(value, "detach", None)):  # a torch tensor
        value = value.detach().cpu()
    try:
        return np.asarray(value, dtype=object) if wanted == STRING else np.asarray(value)
    except (ValueError, TypeError) as error:
        raise FeedsError(f"input {name!r}: {type(value).__name__} is no array ({error})") from None


def _fit_dtype(name: str, array: Array, wanted: int, cast: bool, *, typed: bool) -> Array:
    """Returns the array with the wanted element type, where that is the same values or conversion was asked for."""
    import numpy as np

    target = numpy_dtype(wanted)
    if wanted == STRING:
        if array.dtype.kind not in "OUS":
            raise FeedsError(f"input {name!r} is {array.dtype}, the model wants string")
        return as_strings(array)
    if array.dtype == target:
        return array if array.dtype.isnative else array.astype(target)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == target.itemsize:
        return array.view(target)  # numpy.save writes the types of ml_dtypes as raw bytes of their size
    mine = onnx_dtype(array.dtype)
    if array.dtype.newbyteorder("=") == target:
        return array.astype(target)
    floating = wanted in FLOATS
    same_kind = (mine in FLOATS and floating) or (mine not in {0, STRING} | FLOATS | COMPLEX)
    if (cast or not typed) and mine != 0 and same_kind:
        with np.errstate(all="ignore"):
            made = array.astype(target)
            if floating:
                kept = np.isfinite(made.astype(np.float32)) | ~np.isfinite(array.astype(np.float64))
            else:
                kept = made.astype(array.dtype) == array
        if kept.all():
            return made
        raise FeedsError(f"input {name!r} has values that {dtype_name(wanted)} cannot hold")
    given = dtype_name(mine) if mine else array.dtype
    if same_kind:
        raise FeedsError(
            f"input {name!r} is {given}, the model wants {dtype_name(wanted)}",
            hint="Convert it, or allow conversion with --cast.",
        )
    why = "turns no floats into integers" if mine in FLOATS else "does not convert that"
    raise FeedsError(
        f"input {name!r} is {given}, the model wants {dtype_name(wanted)}" + (f", and --cast {why}" if cast else ""),
        hint="Round the data first, or give other data." if mine in FLOATS else "Convert the data first.",
    )


def as_strings(array: Array) -> Array:
    """Returns an array of text as one of ``str`` objects, as runtimes take it; bytes are UTF-8."""
    import numpy as np

    made = np.empty(array.shape, dtype=object)
    flat = made.reshape(-1)
    for at, item in enumerate(array.reshape(-1)):
        flat[at] = item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item)
    return made


def _check_shape(name: str, shape: tuple[int, ...], wanted: Sequence[Dim] | None) -> None:
    """Compares a shape with the model's. Symbols are not compared: exporters reuse them, and no runtime looks."""
    if wanted is None:
        return
    if len(shape) != len(wanted):
        raise FeedsError(
            f"input {name!r} has {len(shape)} dimensions, {format_shape(shape)}; the model wants {len(wanted)}: "
            f"{format_shape(wanted)}"
        )
    for axis, (mine, theirs) in enumerate(zip(shape, wanted, strict=True)):
        if isinstance(theirs, int) and mine != theirs:
            raise FeedsError(
                f"input {name!r} has the shape {format_shape(shape)}; the model wants {format_shape(wanted)} "
                f"(dimension {axis} is {mine}, not {theirs})"
            )


# ---------------------------------------------------------------- npz with a manifest


def require_file(path: Path) -> None:
    """Raises NotFoundError unless there is a file (UsageError if it is something else)."""
    if path.is_file():
        return
    if path.exists():
        raise UsageError(f"{path} is not a regular file")
    raise NotFoundError(f"there is no file {path}", hint=near_file(path))


def read_npy(file: Path | IO[bytes], name: str = "") -> Array:
    """Returns the array in a ``.npy`` file; pickles are refused.

    Args:
        file: The file, or a stream.
        name: What a message calls it.

    Raises:
        FeedsError: It cannot be read.
    """
    import numpy as np

    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError) as error:
        said = "it holds Python objects, which are not loaded" if "pickle" in str(error).lower() else str(error)
        raise FeedsError(f"{name or file} cannot be read as .npy: {said}") from None
    if not isinstance(array, np.ndarray):
        raise FeedsError(f"{name or file} holds no single array")
    return as_strings(array) if array.dtype.kind in "US" else array


class Capture(Mapping[str, Value]):
    """The values in a ``.npz`` file by name, read one by one when asked for; use it in a ``with`` statement.

    Raises:
        NotFoundError: There is no such file.
        FeedsError: It is not a ``.npz`` file, or an entry cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        require_file(self.path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise FeedsError(f"{self.path} is not a .npz file: {error}") from None
        entries = {info.filename.removesuffix(".npy"): info.filename for info in self._zip.infolist()}
        self._entries = entries
        self._dtypes: dict[str, str] = {}
        trees: dict[str, Any] = {}
        if MANIFEST in entries:
            trees = self._read_manifest()
        inner = {leaf for tree in trees.values() for leaf in _leaves(tree)}
        self._trees: dict[str, Any] = {
            name: name for name in entries if name != MANIFEST and name not in inner and name not in trees
        }
        self._trees.update(trees)

    def _read_manifest(self) -> dict[str, Any]:
        try:
            said = json.loads(str(self._array(MANIFEST)[()]))
            version, dtypes, trees = said["version"], said.get("dtypes", {}), said.get("values", {})
            if version != 1:
                raise FeedsError(f"{self.path} was written by a later version of onnxbench")
            self._dtypes = {str(entry): str(name) for entry, name in dtypes.items()}
            return dict(trees)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise FeedsError(f"the entry {MANIFEST} of {self.path} is not understood") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._trees)

    def __len__(self) -> int:
        return len(self._trees)

    def __contains__(self, name: object) -> bool:
        return name in self._trees

    def __getitem__(self, name: str) -> Value:
        return self._value(self._trees[name])

    def _value(self, tree: Any) -> Value:
        if tree is None:
            return None
        if isinstance(tree, str):
            return self._array(tree)
        if isinstance(tree, dict) and isinstance(tree.get("list"), list):
            return [self._value(item) for item in tree["list"]]
        if isinstance(tree, dict) and isinstance(tree.get("map"), list):
            return dict(tree["map"])
        raise FeedsError(f"the entry {MANIFEST} of {self.path} is not understood")

    def _array(self, entry: str) -> Array:
        if entry not in self._entries:
            raise FeedsError(f"{self.path} has no entry {entry!r}, which its entry {MANIFEST} names")
        where = f"{entry!r} in {self.path}"
        try:
            with self._zip.open(self._entries[entry]) as file:
                array = read_npy(file, where)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise FeedsError(f"{where} cannot be read: {error}") from None
        if entry == MANIFEST:
            return array
        said = self._dtypes.get(entry)
        if said is None:
            return array
        target = numpy_dtype(dtype_number(said))
        if target.itemsize != array.dtype.itemsize or array.dtype.kind not in "uV":
            raise FeedsError(f"{where} is said to be {said}, but holds {array.dtype}")
        return array.view(target)

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leaves(tree: Any) -> Iterator[str]:
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("list"), list):
            pending += item["list"]


class CaptureWriter:
    """Writes values to a ``.npz`` file one after the other; the file appears, whole, when the ``with`` block ends.

    The same values in the same order give the same bytes.

    Raises:
        OutputError: The file cannot be written; nothing is left behind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._temporary: Path | None = None
        self._entries: set[str] = {MANIFEST}
        self._dtypes: dict[str, str] = {}
        self._trees: dict[str, Any] = {}

    def __enter__(self) -> CaptureWriter:
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder")
        try:
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from None
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        return self

    def write(self, name: str, value: Value) -> None:
        """Adds one value: an array of any element type, a list, a dict of numbers, or None.

        Raises:
            OutputError: The disk is full, say.
            FeedsError: The value cannot be saved without loss.
        """
        if name in self._trees:
            raise FeedsError(f"two values are called {name!r}")
        tree = self._tree(name, value)
        self._trees[name] = tree

    def _tree(self, name: str, value: Value) -> Any:
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return {"list": [self._tree(f"{name}[{i}]", item) for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            pairs = [[_plain(key), _plain(item)] for key, item in value.items()]
            if all(isinstance(part, (str, int, float)) for pair in pairs for part in pair):
                return {"map": pairs}
            raise FeedsError(f"{name!r} is a map of {type(next(iter(value.values()))).__name__}, which cannot be saved")
        return self._write_array(name, value)

    def _write_array(self, name: str, value: Any) -> str:
        import numpy as np

        entry = name
        while entry in self._entries:
            entry += "'"
        self._entries.add(entry)
        array = np.asarray(value)
        if array.dtype.kind in "OUS":
            texts = as_strings(array)
            array = texts.astype(np.str_) if texts.size else np.empty(texts.shape, dtype="<U1")
            if not np.array_equal(array.astype(object), texts):
                raise FeedsError(f"{name!r} has strings that end in NUL or are not text, which .npz cannot hold")
        elif not np.issubdtype(array.dtype, np.generic) or array.dtype.kind == "V" or array.dtype.num >= 256:
            number = onnx_dtype(array.dtype)
            if not number:
                raise FeedsError(f"{name!r} has elements of type {array.dtype}, which cannot be saved")
            self._dtypes[entry] = dtype_name(number)
            array = array.view(f"u{array.dtype.itemsize}")
        self._write_entry(entry, array)
        return entry

    def _write_entry(self, entry: str, array: Array) -> None:
        import numpy as np

        info = zipfile.ZipInfo(f"{entry}.npy", (1980, 1, 1, 0, 0, 0))
        try:
            with self._zip.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import numpy as np

        assert self._temporary is not None
        done = False
        try:
            if kind is None:
                trees = {name: tree for name, tree in self._trees.items() if tree != name}
                if self._dtypes or trees:
                    manifest = {"version": 1, "dtypes": self._dtypes, "values": trees}
                    self._write_entry(MANIFEST, np.array(json.dumps(manifest)))
                self._zip.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.chmod(self._temporary, 0o666 & ~_umask())
                os.replace(self._temporary, self.path)
                done = True
        except OSError as failure:
            raise OutputError(f"{self.path} cannot be written: {failure.strerror}") from None
        finally:
            if not done:
                with suppress(OSError, ValueError):
                    self._zip.close()
                with suppress(OSError):
                    self._file.close()
                self._temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def save(path: str | os.PathLike[str], values: Mapping[str, Value]) -> None:
    """Saves values by name as ``.npz`` (see the module's text for what NumPy cannot express).

    Raises:
        OutputError: The file cannot be written; nothing is left behind.
        FeedsError: A value cannot be saved without loss.
    """
    with CaptureWriter(path) as writer:
        for name, value in values.items():
            writer.write(name, value)
