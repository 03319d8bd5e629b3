"""The JSON beside an engine: what it was built from, with what, and for which shapes; and whether that is still so."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxbench.errors import ModelError, NotFoundError
from onnxbench.version import __version__

RECORD_VERSION = 1
_SIGNATURES = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt", b"ptrt": "tensorrt"}
_CAPABILITIES = {0x1: "7.5", 0x2: "8.0", 0x4: "8.6", 0x8: "8.9", 0x10: "12.0", 0x20: "12.1"}
_KNOWN_LAYOUTS = ((1, 7, 1),)
"""Versions of TensorRT-RTX whose undocumented header was looked at; of others nothing is read."""
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What is known of an engine's making; ``data`` is the JSON as it is stored.

    Attributes:
        data: The entries.
    """

    data: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A digest of all that decides what the build yields."""
        return str(self.data.get("key", ""))

    @property
    def sha256(self) -> str:
        """The digest of the engine file."""
        return str(self.data.get("engine", {}).get("sha256", ""))

    @property
    def profiles(self) -> list[dict[str, dict[str, list[int]]]]:
        """The profiles, plain."""
        return list(self.data.get("profiles", []))

    def to_json(self) -> dict[str, Any]:
        """Returns the entries."""
        return dict(self.data)


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine file as it is found.

    Attributes:
        path: Where it is.
        bytes: Its size.
        kind: ``tensorrt-rtx`` or ``tensorrt``, from its first bytes.
        version: Version of the TensorRT that made it, if the file says so in a way that is known; else None.
        compute_capabilities: The GPUs that its header names; empty if unknown.
        sections: Name of a part of the file to its bytes; empty if unknown.
        record: The JSON beside it, or None.
        problems: What does not fit: a JSON of another engine, a model that changed since.
    """

    path: Path
    bytes: int
    kind: str
    version: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    sections: Mapping[str, int] = field(default_factory=dict)
    record: EngineRecord | None = None
    problems: tuple[str, ...] = ()


def record_path(engine: Path) -> Path:
    """Returns where the JSON of an engine is: ``net.engine.json`` beside ``net.engine``."""
    return engine.with_name(f"{engine.name}.json")


def load_record(engine: Path) -> EngineRecord | None:
    """Returns the record beside an engine; None if there is none that can be read."""
    try:
        data = json.loads(record_path(engine).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return EngineRecord(data) if isinstance(data, dict) and "engine" in data else None


def as_text(record: Mapping[str, Any]) -> str:
    """Returns a record as it is stored."""
    envelope = {"schema_version": RECORD_VERSION, "onnxbench": __version__, **record}
    return json.dumps(envelope, indent=1, ensure_ascii=False) + "\n"


def file_digest(path: Path, into: Any = None) -> str:
    """Returns the sha256 of a file's bytes, read block by block."""
    digest = into if into is not None else hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def is_engine(path: Path) -> bool:
    """Tells whether a file begins like a TensorRT engine."""
    try:
        with open(path, "rb") as handle:
            return handle.read(4) in _SIGNATURES
    except OSError:
        return False


def read_engine(path: str | Path) -> EngineFile:
    """Returns what an engine file, and the record beside it, tell; TensorRT is not needed and no GPU.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is no engine, or not all of one.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            head = handle.read(4096)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {file}") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    kind = _SIGNATURES.get(head[:4])
    if kind is None:
        raise ModelError(f"{file} is not a TensorRT engine", hint="'onnxbench inspect' shows ONNX models as well.")
    version, capabilities, sections = (None, (), {}) if kind != "tensorrt-rtx" else _header(file, head, size)
    record = load_record(file)
    return EngineFile(file, size, kind, version, capabilities, sections, record, _problems(file, size, record))


def _header(file: Path, head: bytes, size: int) -> tuple[str | None, tuple[str, ...], dict[str, int]]:
    """Reads the header of a TensorRT-RTX engine, where its version's layout is known.

    Raises:
        ModelError: The file is shorter than it says.
    """
    if len(head) < 64:
        raise ModelError(f"{file} is cut off: {size} bytes are no engine", hint="Build or copy it again.")
    count, length = struct.unpack_from("<QQ", head, 8)
    numbers = tuple(head[24:28])
    if numbers[:3] not in _KNOWN_LAYOUTS:
        return None, (), {}
    version = ".".join(map(str, numbers))
    if length != size:
        raise ModelError(
            f"{file} says that it has {length:,} bytes, and it has {size:,}",
            hint="It was cut off or added to: build or copy it again.",
        )
    (mask,) = struct.unpack_from("<Q", head, 32)
    capabilities = tuple(word for bit, word in _CAPABILITIES.items() if mask & bit)
    sections = {}
    for number in range(min(count, 64)):
        at = 64 + 24 * number
        if at + 24 > len(head):
            break
        tag, _, held = struct.unpack_from("<8sQQ", head, at)
        sections[tag.strip(b"\0")[::-1].decode("ascii", "replace")] = held
    return version, capabilities, sections


def _problems(file: Path, size: int, record: EngineRecord | None) -> tuple[str, ...]:
    if record is None:
        there = record_path(file).exists()
        return (f"{record_path(file).name} cannot be read",) if there else ()
    said = record.data["engine"]
    found = []
    if said.get("bytes") != size or (said.get("sha256") and said["sha256"] != file_digest(file)):
        found.append(f"{record_path(file).name} is of another engine file: it describes {said.get('bytes', 0):,} bytes "
                     f"with another digest")  # fmt: skip
    model = record.data.get("model", {})
    origin = Path(str(model.get("file", "")))
    source = origin if origin.is_absolute() else file.parent / origin
    if model.get("file") and source.is_file() and not model.get("edited"):
        from onnxbench.model import load

        try:
            now = model_digest(source, load(source))
        except Exception:  # a model that is no model any more has changed
            now = ""
        if now != model.get("sha256"):
            found.append(f"{model['file']} changed after this engine was built of it")
    return tuple(found)


def model_digest(file: Path, model: Any) -> str:
    """Returns a digest of a model file and of the weights outside of it."""
    from onnxbench import weights

    digest = hashlib.sha256()
    file_digest(file, digest)
    outside: dict[Path, None] = {}
    for tensor in weights.tensors(model.proto) if model.has_outside else ():
        location = weights.location(tensor)
        if location is not None:
            where = model.byte_range(tensor)
            if where is not None and where.file != file.resolve():
                outside[where.file] = None
    for each in outside:
        file_digest(each, digest)
    return digest.hexdigest()
