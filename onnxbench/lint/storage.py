"""Rules on tensors' data: whether it is there, where it lies, and whether it has the size that the tensor says."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.graph import Scope
from onnxbench.lint.data import FIELDS, filled_fields, is_element_type, typed_size
from onnxbench.lint.facts import Facts, function_of, graph_of
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.tensortype import dtype_bits, dtype_name, raw_size
from onnxbench.weights import is_outside
from onnxbench.wire import STUB_PREFIX

if TYPE_CHECKING:
    from onnx import AttributeProto, SparseTensorProto, TensorProto

checks = Checks("Storage: data of tensors, inline and external")

_GIB = 1 << 30
_LIMIT = (1 << 31) - 1

EXTERNAL_MISSING = Rule(
    code="OB301",
    name="external-data-missing",
    severity=Severity.ERROR,
    summary="The file with a tensor's data is not there.",
    why="A model with external data is two files or more; copying the .onnx file alone loses the weights. Names are "
    "compared with case, so that what works on Windows or macOS can fail on Linux.",
    mend="Put the weights file beside the model, under the name that the message gives.",
    example="""
        initializer w: data_location EXTERNAL, location "model.onnx.data"      # no such file
        """,
)
EXTERNAL_OUTSIDE = Rule(
    code="OB302",
    name="external-data-leaves-folder",
    severity=Severity.ERROR,
    summary="A tensor's data is said to lie outside of the model's folder.",
    why="A model is data, and data must not choose which files of a machine are read. Absolute paths, '..' and "
    "symbolic links out of the folder are refused by onnx and ONNX Runtime alike.",
    mend="If you trust the model: write it anew with its weights beside it, 'onnxbench extract IN OUT --outputs "
    '"output:*" --allow-outside\'.',
    example="""
        location: "../../etc/passwd"
        """,
)
EXTERNAL_RANGE = Rule(
    code="OB303",
    name="external-data-out-of-range",
    severity=Severity.ERROR,
    summary="The file with a tensor's data ends before the data does.",
    why="The file is truncated (a download that stopped, a full disk) or belongs to another version of the model.",
    mend="Fetch the weights file again.",
    example="""
        offset: 4096, length: 1048576           # in a file of 65536 bytes
        """,
)
EXTERNAL_ENTRY = Rule(
    code="OB304",
    name="external-data-entry",
    severity=Severity.ERROR,
    summary="The place of a tensor's data is not written as it must be.",
    why="It needs one 'location', and may have an 'offset' and a 'length', each a number of bytes in decimal. "
    "Readers differ in what they make of anything else.",
    mend="Export again.",
    example="""
        location: ""    offset: "4 KiB"    length: "-1"
        """,
)
EXTERNAL_LENGTH = Rule(
    code="OB305",
    name="external-data-length",
    severity=Severity.ERROR,
    summary="The stated length of a tensor's external data is not what its type and shape take.",
    why="The model and its weights do not belong together, or one of them was changed.",
    mend="Bring the two files of one export together.",
    example="""
        w float[2, 2], length: 12               # 16 bytes are needed
        """,
)
EXTERNAL_OVERLAP = Rule(
    code="OB306",
    name="external-data-overlap",
    severity=Severity.WARNING,
    summary="The external data of two tensors overlaps in part.",
    why="Sharing one range is fine. Ranges that overlap in part mean that offsets were counted wrongly, and one of "
    "the tensors has the other's numbers in it.",
    mend="Export again.",
    example="""
        a: offset 0, length 64        b: offset 32, length 64
        """,
)
EXTERNAL_NOT_A_FILE = Rule(
    code="OB307",
    name="external-data-not-a-file",
    severity=Severity.ERROR,
    summary="A tensor's data is said to lie in something that is not a regular file.",
    why="A folder holds no bytes, and a device or pipe can hang whoever reads it.",
    mend="Correct the location.",
    example="""
        location: "."
        """,
)
TWO_PLACES = Rule(
    code="OB308",
    name="data-in-two-places",
    severity=Severity.ERROR,
    summary="A tensor has data in two fields, or both inline and external.",
    why="Readers differ in which they take, and the two can differ.",
    mend="Keep one of them.",
    example="""
        initializer w: raw_data and float_data
        """,
)
DATA_SIZE = Rule(
    code="OB309",
    name="data-size",
    severity=Severity.ERROR,
    summary="A tensor has more or less data than its type and shape take.",
    why="Too little makes runtimes refuse the model or read past the end. Too much passes the onnx checker unseen, "
    "and means that dims and data are not of one tensor.",
    mend="Correct the dims, or store the data again.",
    example="""
        w float[2, 2]: raw_data of 12 bytes
        """,
)
DATA_FIELD = Rule(
    code="OB310",
    name="data-field",
    severity=Severity.ERROR,
    summary="A tensor has no data, or has it in a field that its element type does not use.",
    why="Each element type has one field besides raw_data (float16, say, uses int32_data). Strings have string_data "
    "alone: neither raw nor external.",
    mend="Make the tensor with onnx.numpy_helper.from_array.",
    example="""
        w float[2]: int64_data: [1, 2]
        """,
)
ELEMENT_TYPE = Rule(
    code="OB311",
    name="element-type",
    severity=Severity.ERROR,
    summary="A tensor has an element type that does not exist.",
    why="UNDEFINED (0), or a number that the installed onnx does not know: a newer type, or a damaged file.",
    mend="Update onnx, or export again.",
    example="""
        w: data_type 1000
        """,
)
BAD_DIMS = Rule(
    code="OB312",
    name="impossible-dims",
    severity=Severity.ERROR,
    summary="A tensor has a dimension below zero, or more elements than can be counted.",
    why="Readers that multiply first and look afterwards allocate nothing, or all memory.",
    mend="Export again.",
    example="""
        w: dims [-2, 3]
        """,
)
BAD_SPARSE = Rule(
    code="OB313",
    name="sparse-tensor",
    severity=Severity.ERROR,
    summary="A sparse tensor's indices do not fit its values or its shape.",
    why="There is one index per value, within the shape, in ascending order; anything else the standard forbids.",
    mend="Build the sparse tensor again.",
    example="""
        sparse w[8]: values [1, 2], indices [7, 3]
        """,
)
NEAR_LIMIT = Rule(
    code="OB314",
    name="near-protobuf-limit",
    severity=Severity.WARNING,
    summary="The model file is near 2 GiB, the most that protobuf reads.",
    why="A file beyond it cannot be opened at all, and an optimizer that adds a few megabytes gets there. Tools "
    "that serialize the model in memory fail even before.",
    mend="Move the weights out: 'onnxbench extract IN OUT --outputs \"output:*\" --save-external-data auto'.",
    example="""
        model.onnx of 1.9 GiB
        """,
)
CHECKSUM = Rule(
    code="OB315",
    name="external-data-checksum",
    severity=Severity.ERROR,
    summary="The checksum of a tensor's external data is not that of the file.",
    why="The SHA-1 of the whole file is kept beside its name. Neither onnx nor ONNX Runtime looks at it. Reading "
    "the file takes time, so that this is looked at with --values only.",
    mend="Fetch the weights file again.",
    example="""
        location: "w.bin"    checksum: "da39a3ee5e6b4b0d3255bfef95601890afd80709"
        """,
    needs="values",
)


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor and where it stands: a graph, and a node of it unless the tensor is an initializer."""

    tensor: TensorProto
    scope: Scope
    position: int | None
    name: str


def held_tensors(facts: Facts) -> Iterator[Held]:
    """Yields every tensor of the main graph, bodies and functions, in the order of the graphs."""
    for scope in facts.index.scopes:
        graph = graph_of(scope)
        if graph is not None:
            for tensor in graph.initializer:
                yield Held(tensor, scope, None, tensor.name)
        for position, node in enumerate(scope.nodes):
            for attribute in node.attribute:
                for tensor in _of_attribute(attribute):
                    yield Held(tensor, scope, position, tensor.name or (node.output[0] if node.output else ""))
        function = function_of(scope)
        for attribute in function.attribute_proto if function is not None else ():
            for tensor in _of_attribute(attribute):
                yield Held(tensor, scope, None, tensor.name or attribute.name)


def _of_attribute(attribute: AttributeProto) -> list[TensorProto]:
    if attribute.type == 4:
        return [attribute.t]
    return list(attribute.tensors) if attribute.type == 9 else []


def _sparse_tensors(facts: Facts) -> Iterator[tuple[SparseTensorProto, Scope, int | None, str]]:
    for scope in facts.index.scopes:
        graph = graph_of(scope)
        if graph is not None:
            for sparse in graph.sparse_initializer:
                yield sparse, scope, None, sparse.values.name
        for position, node in enumerate(scope.nodes):
            for attribute in node.attribute:
                if attribute.type in (11, 12):
                    held = [attribute.sparse_tensor] if attribute.type == 11 else attribute.sparse_tensors
                    for sparse in held:
                        yield sparse, scope, position, sparse.values.name or (node.output[0] if node.output else "")


def _sparse_parts(facts: Facts) -> Iterator[Held]:
    for sparse, scope, position, name in _sparse_tensors(facts):
        for part in (sparse.values, sparse.indices):
            yield Held(part, scope, position, name)


@checks(ELEMENT_TYPE, BAD_DIMS, TWO_PLACES, DATA_SIZE, DATA_FIELD)
def _data(facts: Facts) -> Iterator[Finding | NotRun]:
    for held in (*held_tensors(facts), *_sparse_parts(facts)):
        for rule, message in _data_complaints(held.tensor):
            yield _at(facts, rule, held, message)


def _data_complaints(tensor: TensorProto) -> Iterator[tuple[Rule, str]]:
    number = tensor.data_type
    if not is_element_type(number):
        yield ELEMENT_TYPE, f"has the element type {number} ({dtype_name(number)})"
        return
    count = math.prod(tensor.dims)
    if any(dim < 0 for dim in tensor.dims):
        yield BAD_DIMS, f"has a dimension below zero: {list(tensor.dims)}"
        return
    if count * max(dtype_bits(number), 8) >= 1 << 63:
        yield BAD_DIMS, f"has {count:,} elements, which no machine holds: {list(tensor.dims)}"
        return
    filled = filled_fields(tensor)
    if is_outside(tensor):
        stub = weights.location(tensor) is None
        if filled:
            yield TWO_PLACES, f"is external and has {filled[0]} besides"
        if stub:
            length = int(weights.entries(tensor)["length"])
            yield from _size_complaints(tensor, length, raw_size(tensor.dims, number), "bytes")
        elif number == 8:
            yield DATA_FIELD, "is of strings, which have no external form"
        return
    if len(filled) > 1:
        yield TWO_PLACES, f"has data in {' and '.join(filled)}"
        return
    if not filled:
        if count:
            yield DATA_FIELD, f"has no data for its {count:,} elements"
        return
    if filled == ["raw_data"]:
        if number == 8:
            yield DATA_FIELD, "is of strings, which cannot be raw data"
        else:
            yield from _size_complaints(tensor, len(tensor.raw_data), raw_size(tensor.dims, number), "bytes")
    elif number not in FIELDS[filled[0]]:
        yield DATA_FIELD, f"is {dtype_name(number)} and has its data in {filled[0]}"
    else:
        yield from _size_complaints(tensor, len(getattr(tensor, filled[0])), typed_size(number, count), "values")


def _size_complaints(tensor: TensorProto, size: int, wanted: int, unit: str) -> Iterator[tuple[Rule, str]]:
    if size != wanted:
        shape = f"{dtype_name(tensor.data_type)}{list(tensor.dims)}"
        yield DATA_SIZE, f"has {size:,} {unit} of data, and {shape} takes {wanted:,}"


@checks(BAD_SPARSE)
def _sparse(facts: Facts) -> Iterator[Finding | NotRun]:
    from onnx import checker

    for sparse, scope, position, name in _sparse_tensors(facts):
        if is_outside(sparse.values) or is_outside(sparse.indices):
            continue
        try:
            checker.check_sparse_tensor(sparse)
        except checker.ValidationError as error:
            words = str(error).strip().splitlines()[0]
            yield facts.find(BAD_SPARSE, f"{name!r}: {words}", scope=scope, position=position, tensor=name)


@dataclass(frozen=True, slots=True)
class _Look:
    """What a location was found to be: a rule that it breaks, or a file of some size."""

    rule: Rule | None = None
    message: str = ""
    file: Path | None = None
    size: int = 0


@checks(
    EXTERNAL_MISSING,
    EXTERNAL_OUTSIDE,
    EXTERNAL_RANGE,
    EXTERNAL_ENTRY,
    EXTERNAL_LENGTH,
    EXTERNAL_OVERLAP,
    EXTERNAL_NOT_A_FILE,
)
def _external(facts: Facts) -> Iterator[Finding | NotRun]:
    looks: dict[str, _Look] = {}
    ranges: dict[Path, list[tuple[int, int, Held]]] = {}
    for held in _external_tensors(facts):
        complaints, said = _entry_complaints(held.tensor)
        for message in complaints:
            yield _at(facts, EXTERNAL_ENTRY, held, message)
        if said is None:
            continue
        where, offset, length = said
        if where not in looks:
            looks[where] = _look(where, facts)
        look = looks[where]
        if look.rule is not None:
            yield _at(facts, look.rule, held, look.message)
        number = held.tensor.data_type
        if not dtype_bits(number) or any(dim < 0 for dim in held.tensor.dims):
            continue  # other rules say so
        wanted = raw_size(held.tensor.dims, number)
        if length is not None and length != wanted:
            shape = f"{dtype_name(number)}{list(held.tensor.dims)}"
            yield _at(
                facts, EXTERNAL_LENGTH, held, f"says {length:,} bytes of external data, and {shape} takes {wanted:,}"
            )
        if look.file is None:
            continue
        end = offset + (wanted if length is None else length)
        if end > look.size:
            message = f"wants bytes {offset:,} to {end:,} of {where!r}, which has {look.size:,}"
            yield _at(facts, EXTERNAL_RANGE, held, message)
        elif end > offset:
            ranges.setdefault(look.file, []).append((offset, end, held))
    for file, taken in ranges.items():
        yield from _overlaps(facts, file, taken)


def _external_tensors(facts: Facts) -> Iterator[Held]:
    for held in held_tensors(facts):
        if is_outside(held.tensor) and weights.location(held.tensor) is not None:
            yield held
    for held in _sparse_parts(facts):
        if is_outside(held.tensor) and weights.location(held.tensor) is not None:
            yield held


def _at(facts: Facts, rule: Rule, held: Held, message: str) -> Finding:
    words = f"tensor {held.name!r} {message}"
    return facts.find(rule, words, scope=held.scope, position=held.position, tensor=held.name)


def _entry_complaints(tensor: TensorProto) -> tuple[list[str], tuple[str, int, int | None] | None]:
    """Returns what is wrong with the entries of an external tensor; and its location, offset, length, if usable."""
    complaints = []
    keys = [entry.key for entry in tensor.external_data]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        complaints.append(f"has two entries {twice[0]!r} for its external data")
    said = weights.entries(tensor)
    where = said.get("location", "")
    if not where:
        complaints.append("has external data and names no file")
    elif "\0" in where or where.startswith(STUB_PREFIX):
        complaints.append(f"has the location {where[:80]!r}, which is no file name")
    numbers: dict[str, int | None] = {"offset": 0, "length": None}
    for key in numbers:
        text = said.get(key)
        if text is None:
            continue
        if text.isascii() and text.isdigit():
            numbers[key] = int(text)
        else:
            complaints.append(f"has the {key} {text[:80]!r}, which is not a number of bytes")
    if complaints:
        return complaints, None
    return [], (where, numbers["offset"] or 0, numbers["length"])


def _look(where: str, facts: Facts) -> _Look:
    """Looks at a location without opening it."""
    folder = facts.model.folder
    windows = PureWindowsPath(where)
    if not facts.model.allow_outside:
        real, home = Path(os.path.realpath(folder / where)), Path(os.path.realpath(folder))
        leaves = os.path.isabs(where) or bool(windows.drive) or windows.is_absolute() or ".." in windows.parts
        if leaves or not real.is_relative_to(home):
            return _Look(EXTERNAL_OUTSIDE, f"keeps its data in {where!r}, which leaves the model's folder")
    try:
        status = os.stat(folder / where)
    except OSError as error:
        near = _same_but_case(folder, where)
        hint = f"; there is {near!r}" if near else ""
        if os.path.islink(folder / where):
            hint = "; it is a symbolic link that leads nowhere"
        reason = "is not there" if error.errno in (2, 20) else f"cannot be had ({error.strerror})"
        return _Look(EXTERNAL_MISSING, f"has its data in {where[:200]!r}, which {reason}{hint}")
    if not stat.S_ISREG(status.st_mode):
        return _Look(EXTERNAL_NOT_A_FILE, f"has its data in {where!r}, which is not a regular file")
    if not os.access(folder / where, os.R_OK):
        return _Look(EXTERNAL_MISSING, f"has its data in {where!r}, which may not be read")
    return _Look(file=folder / where, size=status.st_size)


def _same_but_case(folder: Path, where: str) -> str | None:
    if os.path.dirname(where) or not folder.is_dir():
        return None
    return next(
        (name for name in sorted(os.listdir(folder)) if name != where and name.casefold() == where.casefold()), None
    )


def _overlaps(facts: Facts, file: Path, taken: list[tuple[int, int, Held]]) -> Iterator[Finding]:
    """Yields the tensors whose range overlaps that of one before in the file, unless both are the same range."""
    end, before = -1, None
    last: tuple[int, int] | None = None
    for start, stop, held in sorted(taken, key=lambda item: item[:2]):
        if before is not None and start < end and (start, stop) != last:
            message = f"has bytes {start:,} to {stop:,} of {file.name!r}, of which tensor {before.name!r} has a part"
            yield _at(facts, EXTERNAL_OVERLAP, held, message)
        if stop > end:
            end, before, last = stop, held, (start, stop)


@checks(NEAR_LIMIT)
def _size(facts: Facts) -> Iterator[Finding | NotRun]:
    size = facts.model.file_size
    if size > 0.9 * _LIMIT:
        yield facts.find(
            NEAR_LIMIT,
            f"the model file has {size / _GIB:.2f} GiB of at most {_LIMIT / _GIB:.2f}",
            fix=f"{facts.rewrite_command()} --save-external-data auto",
        )


@checks(CHECKSUM)
def _checksums(facts: Facts) -> Iterator[Finding | NotRun]:
    import hashlib

    sums: dict[Path, str] = {}
    for held in _external_tensors(facts):
        complaints, said = _entry_complaints(held.tensor)
        wanted = weights.entries(held.tensor).get("checksum")
        if complaints or said is None or not wanted:
            continue
        look = _look(said[0], facts)
        if look.file is None:
            continue
        if look.file not in sums:
            with open(look.file, "rb") as file:
                sums[look.file] = hashlib.file_digest(file, "sha1").hexdigest()
        if sums[look.file] != wanted.lower():
            message = f"wants a file with SHA-1 {wanted}; {said[0]!r} has {sums[look.file]}"
            yield _at(facts, CHECKSUM, held, message)
