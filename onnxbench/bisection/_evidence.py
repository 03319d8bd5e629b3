"""What a report or a baseline says beyond the result: what was compared, by digests, and the values at the culprits."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from onnxbench import backends, weights
from onnxbench.bisection._sides import ModelReference, RecordedReference, as_dtype
from onnxbench.captures import Value, onnx_dtype
from onnxbench.errors import ExecutionError, NotFoundError
from onnxbench.messages import copy_of
from onnxbench.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from onnxbench.bisection._finding import Finding
    from onnxbench.bisection._search import Search
    from onnxbench.bisection._sides import Reference, Suspect
    from onnxbench.model import Model

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MOST_HISTOGRAMS = 6
_BINS = 64
_MOST_ELEMENTS = 1 << 22
"""Of a larger tensor, every n-th element is counted."""
_TAIL = 5e-4
"""The share of elements at either end that may lie beyond the bins, and are counted in the outermost ones."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A model, or a file, by its content.

    Attributes:
        role: ``suspect`` or ``reference``.
        name: Its name, without a folder; None for what was made in memory.
        sha256: The digest of the file, or of the content of what has none.
        weights: The digests of the files that hold its weights, by their names.
    """

    role: str
    name: str | None
    sha256: str
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeedDigest:
    """One set of inputs: what each is, and the digest of its values."""

    sha256: str
    inputs: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How the values of a tensor are spread.

    Attributes:
        tensor: The tensor.
        number: The set of inputs.
        edges: Limits of the bins, one more than there are bins. Values beyond are counted in the outermost bins.
        counts: How many values are in each bin, by side: ``reference``, ``suspect``, and ``own``: what the suspect's
            node makes of the reference's values. A side is missing where it has no numbers.
        nonfinite: How many values are NaN or infinite, by side.
        step: Every so many elements were counted; 1: all.
    """

    tensor: str
    number: int
    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    nonfinite: Mapping[str, int]
    step: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was compared, and values at the culprits.

    Attributes:
        versions: Versions of what took part, by name.
        models: Digests of the suspect and the reference, and of files with recorded values.
        feeds: Digests of the sets of inputs.
        histograms: Values at the culprits; where there are none, at the tensor that is furthest off.
    """

    versions: Mapping[str, str]
    models: tuple[Digest, ...]
    feeds: tuple[FeedDigest, ...]
    histograms: tuple[Histogram, ...]


def gather(
    search: Search,
    findings: Sequence[Finding],
    feeds: Sequence[Mapping[str, Value]],
    sources: Mapping[str, Sequence[str]],
) -> Evidence:
    """Returns the evidence of a search.

    Args:
        search: The search, when it is done.
        findings: The culprits, the worst first.
        feeds: All sets of inputs.
        sources: The files that the ``suspect`` and the ``reference`` were given as; what was given as a model in memory
            is known by its content, since it need not be what its file holds.

    Raises:
        NotFoundError: A file that was read before cannot be read any more.
    """
    if not findings and search.findings:
        findings = [max(search.findings.values(), key=lambda f: (f.excess(search.median), f.total.severity))]
    findings = findings[:MOST_HISTOGRAMS]
    order = {finding.tensor: place for place, finding in enumerate(findings)}
    return Evidence(
        versions(search.suspect),
        (
            _identify("suspect", search.suspect.model, sources),
            *_identify_reference(search.reference, sources),
        ),
        tuple(_identify_feeds(values) for values in feeds),
        tuple(sorted(_histograms(search, findings, feeds), key=lambda found: order[found.tensor])),
    )


def versions(suspect: Suspect) -> dict[str, str]:
    """Returns the versions of what takes part."""
    import numpy as np
    import onnx

    found = {
        "onnxbench": __version__,
        "python": platform.python_version(),
        "onnx": onnx.__version__,
        "numpy": np.__version__,
        "onnxruntime": backends.backend("ort").version(),
    }
    return {name: str(version) for name, version in found.items()}


# ---------------------------------------------------------------- what was compared


def _identify(role: str, model: Model, sources: Mapping[str, Sequence[str]]) -> Digest:
    """Returns the digests of a model's files, or that of its content."""
    if model.origin is not None and sources.get(role):
        outside = sorted({where.file for where in _ranges(model)} - {model.origin})
        return Digest(role, model.origin.name, file_digest(model.origin), {f.name: file_digest(f) for f in outside})
    whole = hashlib.sha256()
    proto = copy_of(model.proto)
    for tensor, mine in zip(weights.tensors(model.proto), weights.tensors(proto), strict=True):
        where = model.byte_range(tensor) if weights.is_outside(tensor) else None
        if where is not None:
            whole.update(weights.read_bytes(where))
            mine.ClearField("external_data")
    whole.update(proto.SerializeToString(deterministic=True))
    return Digest(role, model.origin.name if model.origin is not None else None, whole.hexdigest())


def model_digest(model: Model) -> str:
    """Returns the SHA-256 of a model's content, its weights included."""
    return _identify("model", model, {}).sha256


def _ranges(model: Model) -> Iterator[weights.ByteRange]:
    for tensor in weights.tensors(model.proto) if model.has_outside else ():
        where = model.byte_range(tensor) if weights.is_outside(tensor) else None
        if where is not None:
            yield where


def _identify_reference(reference: Reference, sources: Mapping[str, Sequence[str]]) -> Iterator[Digest]:
    if isinstance(reference, ModelReference):
        yield _identify("reference", reference.side.model, sources)
        return
    digest = getattr(reference, "digest", None)
    if digest is not None:
        yield Digest("reference", reference.label, digest())
        return
    files = [Path(word) for word in sources.get("reference", ()) if Path(word).is_file()]
    for file in files:
        yield Digest("reference", file.name, file_digest(file))
    if not files and isinstance(reference, RecordedReference):
        whole = hashlib.sha256()
        for values in reference.recorded:
            for name in sorted(values):
                whole.update(f"{name}\0{value_digest(values[name])}\n".encode("utf-8", "surrogatepass"))
        yield Digest("reference", None, whole.hexdigest())


def _identify_feeds(feeds: Mapping[str, Value]) -> FeedDigest:
    inputs = tuple((name, _described(feeds[name]), value_digest(feeds[name])) for name in sorted(feeds))
    whole = "".join(f"{name}\0{what}\0{digest}\n" for name, what, digest in inputs)
    return FeedDigest(hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest(), inputs)


def _described(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, read in blocks.

    Raises:
        NotFoundError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read any more: {error.strerror or error}") from None


def value_digest(value: Value) -> str:
    """Returns the SHA-256 of a value: element type, shape and elements in order."""
    import numpy as np

    whole = hashlib.sha256(_described(value).encode())
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OUS":
        whole.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, np.ndarray):
        for text in value.reshape(-1).tolist():
            whole.update(f"{len(text)}:".encode() + (text if isinstance(text, bytes) else text.encode()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            whole.update(value_digest(each).encode())
    elif isinstance(value, Mapping):
        for key, each in value.items():
            whole.update(f"{key}\0{value_digest(each)}".encode())
    return whole.hexdigest()


# ---------------------------------------------------------------- values at the culprits


def _histograms(
    search: Search, findings: Sequence[Finding], feeds: Sequence[Mapping[str, Value]]
) -> Iterator[Histogram]:
    """Yields the histograms of tensors; one whose values cannot be had or are no numbers has none."""
    rest = []
    for finding in findings:
        seen = search.kept.values.get(finding.tensor) if search.kept.number == finding.number else None
        made = _histogram(finding, dict(zip(("reference", "suspect", "own"), seen, strict=True))) if seen else None
        if made is not None:
            yield made
        elif seen is None:
            rest.append(finding)
    for number in dict.fromkeys(finding.number for finding in rest):
        group = [finding for finding in rest if finding.number == number]
        fed = feeds[number]
        inner = [name for finding in group for name in finding.inputs if name not in fed]
        names = list(dict.fromkeys([*inner, *(finding.tensor for finding in group)]))
        try:
            wanted = search.values(names, fed, number)
            plain = search.with_values({}, fed, names)
        except ExecutionError:
            continue
        for finding in group:
            sides = {"reference": wanted[finding.tensor], "suspect": plain[finding.tensor]}
            own = _own_value(search, finding, fed, wanted, plain)
            made = _histogram(finding, sides if own is None else {**sides, "own": own})
            if made is not None:
                yield made


def _own_value(
    search: Search,
    finding: Finding,
    fed: Mapping[str, Value],
    wanted: Mapping[str, Value],
    plain: Mapping[str, Value],
) -> Value | None:
    """Returns what the suspect's region makes of the reference's values; None where it was not judged by them."""
    if finding.own is None:
        return None
    given = {
        name: fed[name] if name in fed else as_dtype(wanted[name], onnx_dtype(plain[name].dtype))
        for name in finding.inputs
    }
    try:
        return search.parts.run(finding.nodes, given, [finding.tensor])[finding.tensor]
    except ExecutionError:
        return None


def _histogram(finding: Finding, sides: Mapping[str, Value]) -> Histogram | None:
    import numpy as np

    step = 1
    numbers: dict[str, Array] = {}
    nonfinite: dict[str, int] = {}
    for side, value in sides.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind in "OUSc":
            continue
        step = max(step, -(-value.size // _MOST_ELEMENTS))
        flat = value.reshape(-1)[::step]
        wide = flat.astype(np.float64) if flat.dtype.kind != "V" else flat.astype(np.float32).astype(np.float64)
        finite = np.isfinite(wide)
        nonfinite[side] = int(wide.size - finite.sum())
        numbers[side] = wide[finite]
    spans = [np.quantile(each, (_TAIL, 1 - _TAIL)) for each in numbers.values() if each.size]
    if "reference" not in numbers or not spans:
        return None
    low, high = float(min(span[0] for span in spans)), float(max(span[1] for span in spans))
    if not np.isfinite(high - low):
        return None
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    edges = np.linspace(low, high, _BINS + 1)
    counts = {}
    for side, each in numbers.items():
        made, _ = np.histogram(np.clip(each, edges[0], edges[-1]), bins=edges)
        counts[side] = tuple(int(count) for count in made)
    return Histogram(finding.tensor, finding.number, tuple(float(edge) for edge in edges), counts, nonfinite, step)
