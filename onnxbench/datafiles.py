"""Values read from the files in which other tools keep them; what onnxbench itself saves is in ``captures``.

``.npz``, ``.npy``, folders of them, the ``.pb`` test sets of the onnx package, raw ``.bin`` files, Polygraphy's JSON,
or a Python function. Reading a data file never runs code: pickles are refused. A script is code, and runs.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from onnxbench.captures import STRING, Capture, Feeds, Port, Value, as_strings, read_npy, require_file
from onnxbench.errors import FeedsError, UsageError, did_you_mean
from onnxbench.tensortype import Dim, dtype_bits, dtype_name, format_shape, format_type, raw_size

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

DEFAULT_FUNCTION = "load_data"
RAW_ENDINGS = (".bin", ".raw", ".dat")


def load(
    source: str | os.PathLike[str], ports: Sequence[Port] | None = None, *, prefix: str = "input"
) -> Iterator[Feeds]:
    """Yields the sets of values that a source holds, one after the other; most hold one.

    Args:
        source: ``.npz``; ``.npy`` or ``.pb`` (for the single input); Polygraphy's ``.json``; a folder of ``.npz`` or
            ``.json`` files (a set each), of ``.npy`` or ``.pb`` files (an input each), or of such folders (a set each,
            ``test_data_set_0``); ``script.py:function`` (``load_data`` unless named; a leading ``@`` is allowed),
            which is run and returns a dict or an iterable of dicts.
        ports: The inputs of the model. They are needed to read what has no names: ``.npy``, ``.pb``, ``arr_0``.
        prefix: In a folder, files called ``input_0`` count by position (``output``: those called ``output_0``).

    Raises:
        NotFoundError: There is no such file.
        FeedsError: It cannot be read, or the script failed.
    """
    text = os.fspath(source)
    script = re.fullmatch(r"@?(.+\.py)(?::([A-Za-z_]\w*))?", text)
    if script:
        yield from _from_script(Path(script[1]), script[2] or DEFAULT_FUNCTION)
        return
    path = Path(text)
    if path.is_dir():
        yield from _from_folder(path, ports, prefix)
        return
    require_file(path)
    ending = path.suffix.lower()
    if ending == ".npz":
        with Capture(path) as capture:
            yield _by_position({name: capture[name] for name in capture}, ports)
    elif ending == ".json":
        yield from _from_polygraphy(path)
    elif ending in (".npy", ".pb", *RAW_ENDINGS):
        port = _only_input(path, ports)
        yield {port.name: load_value(path, port)}
    else:
        raise UsageError(
            f"{path} has no ending by which feeds are recognized",
            hint="Feeds are .npz, .npy, .pb, .bin, .json (Polygraphy), a folder of these, or script.py:function.",
        )


def load_value(path: str | os.PathLike[str], port: Port, shape: Sequence[Dim] | None = None) -> Value:
    """Returns the value of one input from a file of its own: ``.npy``, ``.pb``, ``.npz`` with one entry, or raw bytes.

    Args:
        path: The file.
        port: The input that it is for.
        shape: The shape of raw bytes; the model's own where it is fixed. One dimension may be unknown.

    Raises:
        NotFoundError: There is no such file.
        FeedsError: It cannot be read.
    """
    file = Path(path)
    require_file(file)
    ending = file.suffix.lower()
    if ending == ".npy":
        return read_npy(file)
    if ending == ".npz":
        with Capture(file) as capture:
            if port.name in capture:
                return capture[port.name]
            if len(capture) == 1:
                return capture[next(iter(capture))]
            raise FeedsError(
                f"{file} has no entry {port.name!r}, and {len(capture)} others", hint=did_you_mean(port.name, capture)
            )
    return _load_pb(file, port) if ending == ".pb" else _load_raw(file, port, shape)


def _only_input(path: Path, ports: Sequence[Port] | None) -> Port:
    required = [port for port in ports or () if port.required]
    if len(required) != 1:
        names = ", ".join(repr(port.name) for port in required[:8])
        raise FeedsError(
            f"{path} holds one value, and the model has {len(required)} inputs{': ' + names if names else ''}",
            hint=f"Say which input it is for: name:{path}.",
        )
    return required[0]


def _by_position(feeds: Feeds, ports: Sequence[Port] | None) -> Feeds:
    """Gives the entries of ``numpy.savez(file, a, b)``, which are called arr_0 and arr_1, the inputs' names."""
    required = [port.name for port in ports or () if port.required]
    if len(feeds) == len(required) and not set(required) & set(feeds):
        with suppress(KeyError):
            return {name: feeds[f"arr_{i}"] for i, name in enumerate(required)}
    return feeds


def _load_pb(file: Path, port: Port) -> Value:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    data = file.read_bytes()
    try:
        if port.kind == "sequence":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        if port.kind == "optional":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
        tensor = onnx.TensorProto.FromString(data)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise FeedsError(f"{file} keeps its data in another file, which is not read")
        array = numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise FeedsError(f"{file} cannot be read as a serialized {port.kind or 'tensor'}: {error}") from None
    return as_strings(array) if tensor.data_type == STRING else array


def _load_raw(file: Path, port: Port, told: Sequence[Dim] | None) -> Array:
    """Reads raw little-endian bytes as the input's element type; one unknown dimension follows from the size."""
    import onnx
    from onnx import numpy_helper

    bits = dtype_bits(port.dtype)
    shape = list(told if told is not None else port.shape or ())
    if not bits or (told is None and port.shape is None):
        raise FeedsError(
            f"{file} is raw bytes, and input {port.name!r} ({format_type(port.type)}) does not say how to read them",
            hint=f"Give its shape: --shape '{port.name}:[1,3]'.",
        )
    size = file.stat().st_size
    unknown = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    rest = math.prod(dim for dim in shape if isinstance(dim, int))
    if len(unknown) == 1 and rest:
        shape[unknown[0]] = size * 8 // (bits * rest)
    elif unknown:
        raise FeedsError(
            f"{file} is raw bytes, and the shape {format_shape(shape)} of input {port.name!r} leaves too much open",
            hint=f"Give its shape: --shape '{port.name}:[1,3]'.",
        )
    dims = [int(dim) for dim in shape if isinstance(dim, int)]
    if raw_size(dims, port.dtype) != size:
        raise FeedsError(
            f"{file} has {size:,} bytes; {dtype_name(port.dtype)}{format_shape(dims)} for input {port.name!r} takes "
            f"{raw_size(dims, port.dtype):,}"
        )
    return numpy_helper.to_array(onnx.TensorProto(data_type=port.dtype, dims=dims, raw_data=file.read_bytes()))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts ``input_10`` after ``input_9``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name) if part]


def _from_folder(folder: Path, ports: Sequence[Port] | None, prefix: str) -> Iterator[Feeds]:
    entries = sorted(folder.iterdir(), key=_natural)
    for ending in (".npz", ".json"):
        files = [entry for entry in entries if entry.is_file() and entry.suffix.lower() == ending]
        if files:
            for file in files:
                yield from load(file, ports)
            return
    other = "output_" if prefix == "input" else "input_"
    values = [
        entry
        for entry in entries
        if entry.is_file() and entry.suffix.lower() in (".npy", ".pb") and not entry.name.startswith(other)
    ]
    if values:
        yield _values_of_folder(values, ports, prefix)
        return
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise FeedsError(f"the folder {folder} holds no .npz, .json, .npy or .pb file of {prefix}s")
    for inner in folders:
        yield from _from_folder(inner, ports, prefix)


def _values_of_folder(files: Sequence[Path], ports: Sequence[Port] | None, prefix: str) -> Feeds:
    """Reads one file per value: by its name, by its name with odd characters as ``_``, or ``input_0`` by position."""
    required = [port for port in ports or () if port.required]
    by_stem = {stem: port for port in ports or () for stem in (file_stem(port.name), port.name)}
    feeds: Feeds = {}
    for file in files:
        port = by_stem.get(file.stem)
        position = re.fullmatch(rf"{prefix}_(\d+)", file.stem)
        if port is None and position and ports is not None:
            if int(position[1]) >= len(required):
                raise FeedsError(f"{file} is for {prefix} number {position[1]}, and the model has {len(required)}")
            port = required[int(position[1])]
        if port is None and ports is not None:
            raise FeedsError(f"{file} is for no {prefix} of the model", hint=did_you_mean(file.stem, by_stem))
        port = port or Port(file.stem, None)
        feeds[port.name] = load_value(file, port)
    return feeds


def file_stem(name: str) -> str:
    """Returns a tensor's name as a file name: letters, digits, ``.``, ``-`` and ``_`` stay, the rest becomes ``_``."""
    return re.sub(r"[^\w.-]", "_", name)


def _from_polygraphy(path: Path) -> Iterator[Feeds]:
    """Reads Polygraphy's JSON: a set of inputs, a list of them, or the results of a run (of its first runner)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FeedsError(f"{path} cannot be read as JSON: {error}") from None
    if isinstance(data, dict) and data.get("polygraphy_class") == "RunResults" and isinstance(data.get("lst"), list):
        if not data["lst"]:
            raise FeedsError(f"{path} holds the results of no run")
        try:
            sets = [iteration["outputs"] for iteration in data["lst"][0][1]]
        except (KeyError, IndexError, TypeError):
            raise FeedsError(f"{path} is not a RunResults of Polygraphy as we know it") from None
    else:
        sets = data if isinstance(data, list) else [data]
    for values in sets:
        if not isinstance(values, dict):
            raise FeedsError(f"{path} holds {type(values).__name__} where inputs by name belong")
        yield {name: _from_json(value, f"{name!r} in {path}") for name, value in values.items()}


def _from_json(value: Any, where: str) -> Array:
    while isinstance(value, dict) and "values" in value:  # LazyArray
        value = value["values"]
    text = value.get("array") if isinstance(value, dict) else None
    if not isinstance(text, str):
        kind = value.get("polygraphy_class", "an object") if isinstance(value, dict) else type(value).__name__
        raise FeedsError(f"{where} is {kind}, not a NumPy array")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = text.encode("latin-1", "replace")  # so written by old versions
    return read_npy(io.BytesIO(data), where)


def _from_script(path: Path, function: str) -> Iterator[Feeds]:
    """Runs ``path`` and yields what its ``function()`` returns; it is compiled in memory, so no cache file is left."""
    require_file(path)
    module = ModuleType(f"onnxbench_feeds_{path.stem}")
    module.__file__ = str(path)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        call = module.__dict__.get(function)
        if not callable(call):
            names = [name for name, value in module.__dict__.items() if callable(value) and not name.startswith("_")]
            raise FeedsError(f"{path} has no function {function}()", hint=did_you_mean(function, names))
        made = call()
        if isinstance(made, Mapping):
            made = [made]
        if not isinstance(made, Iterable):
            raise FeedsError(f"{function}() in {path} returned {type(made).__name__}, not a dict or dicts of inputs")
        for values in made:
            if not isinstance(values, Mapping):
                raise FeedsError(f"{function}() in {path} gave {type(values).__name__} where a dict of inputs belongs")
            yield {str(name): value for name, value in values.items()}
    except (Exception, SystemExit) as error:  # the user's own code: anything may come out of it
        if isinstance(error, FeedsError):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        at = f"{path}:{line}" if line else str(path)
        raise FeedsError(f"{at} failed: {type(error).__name__}: {error}") from None
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
