"""A model at a glance: what is in the file, counted and weighed. Reads the structure, and no weight.

The card is one pass over the nodes and one over the stored values. Everything on it is a plain fact of the file
(counts, bytes, names); judgement is left to ``check``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import select, weighing, weights
from onnxbench.errors import ExternalDataError
from onnxbench.graph import GraphIndex, root_of
from onnxbench.messages import as_text
from onnxbench.records import operator
from onnxbench.tensortype import Dim, dtype_bits, dtype_name, elem_type, format_type, tensor_shape
from onnxbench.weighing import Stored

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from onnxbench.model import Model
    from onnxbench.provenance import Origins

_INTEGER_OPS = frozenset(
    {"ConvInteger", "MatMulInteger", "QGemm", "QAttention", "QEmbedLayerNormalization", "QMoE", "MatMulNBits",
     "MatMulBnb4", "GatherBlockQuantized", "MatMulIntegerToFloat"}
)  # fmt: skip
_INTEGER_FAMILIES = ("QLinear", "QOrdered", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_RUNTIME_DOMAINS = ("com.microsoft", "com.ms.", "ai.onnxruntime", "com.xilinx")
_STANDARD = "ai.onnx"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the model.

    Attributes:
        name: Its name.
        type: Its type as text, ``float32[batch, 3]``.
        dtype: Element type; None if it is no tensor or unknown.
        shape: Sizes, symbols and None; None if it is no tensor or the rank is unknown.
        has_default: Whether it need not be fed, since an initializer of its name gives the value.
        denotation: What the model says it means (``IMAGE``), or None.
        doc: Its doc string, or None.
    """

    name: str
    type: str
    dtype: str | None
    shape: tuple[Dim, ...] | None
    has_default: bool = False
    denotation: str | None = None
    doc: str | None = None


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """A file beside the model that holds weights.

    Attributes:
        location: Its path as the model gives it, relative to the model's folder.
        tensors: How many tensors lie in it.
        bytes: What these take.
        file_bytes: Size of the file, or None when it cannot be had.
        problem: Why the weights cannot be had, or None.
    """

    location: str
    tensors: int
    bytes: int
    file_bytes: int | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Weighed:
    """Stored values of one element type or in one place: how many tensors and elements, and their bytes."""

    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class OpCount:
    """How often an operator occurs.

    Attributes:
        op: The operator, with its domain unless that is the standard one.
        count: In all graphs.
        in_bodies: Of these, in bodies of If, Loop, Scan and the like.
        in_functions: Of these, in local functions (as written, not per call).
    """

    op: str
    count: int
    in_bodies: int
    in_functions: int


@dataclass(frozen=True, slots=True)
class CustomOp:
    """An operator that the installed onnx package does not define.

    Attributes:
        op: The operator, with its domain.
        count: How often it occurs.
        is_local_function: Whether the model defines it itself.
        known_to: ``onnxruntime`` for the domains of ONNX Runtime's own operators, else None.
    """

    op: str
    count: int
    is_local_function: bool
    known_to: str | None


@dataclass(frozen=True, slots=True)
class Quantization:
    """Traces of quantization.

    Attributes:
        quantize: QuantizeLinear nodes.
        dequantize: DequantizeLinear nodes.
        pairs: QuantizeLinear nodes whose result goes into a DequantizeLinear.
        dequantized_weights: DequantizeLinear nodes that read a stored value.
        dynamic: DynamicQuantizeLinear nodes.
        integer_ops: Operators that compute on quantized values, with their counts.
        annotations: Quantization annotations of tensors.
        low_bit_bytes: Bytes of stored values in types of 8 bits or fewer (bool apart).
    """

    quantize: int
    dequantize: int
    pairs: int
    dequantized_weights: int
    dynamic: int
    integer_ops: dict[str, int]
    annotations: int
    low_bit_bytes: int

    def __bool__(self) -> bool:
        return bool(self.quantize or self.dequantize or self.dynamic or self.integer_ops or self.annotations)


@dataclass(frozen=True, slots=True)
class DynamicDim:
    """A dimension without a fixed size.

    Attributes:
        symbol: Its name; ``?`` stands for all that have none.
        inputs: Where inputs have it: ``x[0]``.
        outputs: Where outputs have it.
        inner: How many inner tensors the model declares with it.
    """

    symbol: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inner: int


@dataclass(frozen=True, slots=True)
class Bodies:
    """Graphs inside nodes.

    Attributes:
        count: How many.
        depth: How deep they are nested at most.
        nodes: Nodes in them.
        by_op: Nodes with bodies by operator.
    """

    count: int
    depth: int
    nodes: int
    by_op: dict[str, int]


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """One local function.

    Attributes:
        name: ``domain::Name``.
        nodes: Nodes in it, its bodies included.
        calls: How many nodes call it, anywhere in the model.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        attributes: Names of its attributes.
        opsets: The opsets that it imports.
        ops: Operators in it.
        doc: Its doc string, or None.
    """

    name: str
    nodes: int
    calls: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    opsets: dict[str, int]
    ops: dict[str, int]
    doc: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """A model at a glance.

    Attributes:
        file: The model file, or None for a model in memory.
        file_bytes: Its size.
        external: Files beside it that hold weights.
        total_bytes: Its size with these.
        ir_version: Version of the ONNX file format.
        opsets: Version of each operator set by domain (``ai.onnx`` is the standard one).
        unused_opsets: Domains of these that no node, in a function or not, is of.
        producer: What wrote the file, with its version.
        model_version: The author's version number.
        domain: The model's own domain.
        graph_name: Name of the main graph.
        doc: Doc string of the model, or of its graph.
        metadata: Metadata of the model.
        inputs: Inputs.
        outputs: Outputs.
        nodes: Nodes of the main graph.
        all_nodes: Nodes of all graphs.
        unnamed_nodes: Nodes (of all graphs) without a name.
        parameters: Elements of all stored values.
        weights: All stored values together.
        by_dtype: Stored values by element type, heaviest first.
        by_place: Stored values by place: ``inline``, ``external``, ``node``.
        ops: Operators, most frequent first.
        bodies: Bodies of nodes.
        functions: Local functions.
        quantization: Traces of quantization.
        custom_ops: Operators that onnx does not define.
        dynamic_dims: Dimensions without a fixed size.
        provenance: Nodes by the trace of PyTorch that they carry: ``torch.export``, ``torchscript``, ``none``.
        in_modules: Nodes whose module is known.
        marks: Points of Mark nodes, ``function[call]:input``, with the number of tensors.
        training: Whether the file holds training information, which is not looked at.
    """

    file: Path | None
    file_bytes: int
    external: tuple[ExternalFile, ...]
    total_bytes: int
    ir_version: int
    opsets: dict[str, int]
    unused_opsets: tuple[str, ...]
    producer: str
    model_version: int
    domain: str
    graph_name: str
    doc: str
    metadata: dict[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    all_nodes: int
    unnamed_nodes: int
    parameters: int
    weights: Weighed
    by_dtype: dict[str, Weighed]
    by_place: dict[str, Weighed]
    ops: tuple[OpCount, ...]
    bodies: Bodies
    functions: tuple[FunctionRecord, ...]
    quantization: Quantization
    custom_ops: tuple[CustomOp, ...]
    dynamic_dims: tuple[DynamicDim, ...]
    provenance: dict[str, int]
    in_modules: int
    marks: dict[str, int]
    training: bool


def summarize(model: Model, index: GraphIndex | None = None, origins: Origins | None = None) -> Card:
    """Returns the card of a model.

    Args:
        model: The model; it may have been loaded without its weights.
        index: Its index, if there is one already.
        origins: What tells where its nodes come from, likewise.
    """
    proto = model.proto
    index = index or GraphIndex(proto)
    origins = origins or select.origins(index)
    stored = list(weighing.stored_values(index))
    external = _external_files(model, stored)
    opsets = {opset.domain or _STANDARD: opset.version for opset in proto.opset_import}
    counts = _OpCounts(index)
    by_dtype = _weighed(((item.dtype, item) for item in stored), heaviest_first=True)
    kinds: Counter[str] = Counter()
    in_modules = 0
    for ref in index.nodes():
        kind = origins.kind(ref.node)
        kinds[kind] += 1
        in_modules += kind != "none" and origins.scope(ref.node) is not None
    file_bytes = model.file_size
    return Card(
        file=model.origin,
        file_bytes=file_bytes,
        external=external,
        total_bytes=file_bytes + sum(file.file_bytes or 0 for file in external),
        ir_version=proto.ir_version,
        opsets=opsets,
        unused_opsets=tuple(domain for domain in opsets if domain not in counts.domains),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        model_version=proto.model_version,
        domain=proto.domain,
        graph_name=proto.graph.name,
        doc=as_text(proto.doc_string) or as_text(proto.graph.doc_string),
        metadata={as_text(entry.key): as_text(entry.value) for entry in proto.metadata_props},
        inputs=tuple(_port(info, index.main.constants) for info in proto.graph.input),
        outputs=tuple(_port(info, ()) for info in proto.graph.output),
        nodes=len(index.main.nodes),
        all_nodes=counts.nodes,
        unnamed_nodes=counts.unnamed,
        parameters=sum(item.elements for item in stored),
        weights=Weighed(len(stored), sum(item.elements for item in stored), sum(item.bytes for item in stored)),
        by_dtype=by_dtype,
        by_place=_weighed(((item.place, item) for item in stored), heaviest_first=True),
        ops=counts.ops(),
        bodies=_bodies(index),
        functions=tuple(describe_function(index, key, counts.calls) for key in index.functions),
        quantization=_quantization(index, counts, stored),
        custom_ops=_custom_ops(index, counts),
        dynamic_dims=_dynamic_dims(proto),
        provenance=dict(kinds.most_common()),
        in_modules=in_modules,
        marks=_marks(index, counts),
        training=bool(proto.training_info),
    )


def _port(info: ValueInfoProto, defaults: Iterable[str]) -> Port:
    number = elem_type(info.type)
    return Port(
        info.name,
        format_type(info.type),
        dtype_name(number) if number else None,
        tensor_shape(info.type),
        info.name in defaults,
        info.type.denotation or None,
        as_text(info.doc_string) or None,
    )


def _weighed(items: Iterable[tuple[str, Stored]], *, heaviest_first: bool) -> dict[str, Weighed]:
    sums: dict[str, list[int]] = {}
    for key, item in items:
        entry = sums.setdefault(key, [0, 0, 0])
        entry[0] += 1
        entry[1] += item.elements
        entry[2] += item.bytes
    ordered = sorted(sums.items(), key=lambda pair: -pair[1][2]) if heaviest_first else list(sums.items())
    return {key: Weighed(*entry) for key, entry in ordered}


class _OpCounts:
    """Operators of a model counted by where they stand, and calls of functions."""

    def __init__(self, index: GraphIndex) -> None:
        self.by_key: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self._in_bodies: Counter[tuple[str, str]] = Counter()
        self._in_functions: Counter[tuple[str, str]] = Counter()
        self.nodes = self.unnamed = 0
        for scope in index.scopes:
            keys = [(node.domain, node.op_type) for node in scope.nodes]
            self.by_key.update(keys)
            if scope.parent is not None:
                self._in_bodies.update(keys)
            if root_of(scope).is_function:
                self._in_functions.update(keys)
            self.nodes += len(keys)
            self.unnamed += sum(not node.name for node in scope.nodes)
            if index.functions:
                called = ((node.domain, node.op_type, node.overload) for node in scope.nodes)
                self.calls.update(key for key in called if key in index.functions)

    @property
    def domains(self) -> set[str]:
        """The domains that nodes are of."""
        return {domain or _STANDARD for domain, _ in self.by_key}

    def of(self, *op_types: str) -> int:
        """Returns how often these operators occur, in any domain."""
        return sum(count for (_, op_type), count in self.by_key.items() if op_type in op_types)

    def ops(self) -> tuple[OpCount, ...]:
        """Returns all operators, most frequent first."""
        merged: dict[str, list[int]] = {}
        for key, count in self.by_key.items():
            entry = merged.setdefault(written(*key), [0, 0, 0])
            for at, number in enumerate((count, self._in_bodies[key], self._in_functions[key])):
                entry[at] += number
        by_count = sorted(merged.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple(OpCount(op, *entry) for op, entry in by_count)


def written(domain: str, op_type: str) -> str:
    """Returns an operator with its domain, unless that is the standard one."""
    return op_type if domain in ("", _STANDARD) else f"{domain}::{op_type}"


def _external_files(model: Model, stored: Iterable[Stored]) -> tuple[ExternalFile, ...]:
    """Returns the files that hold weights; each is looked at once, and its bytes are not read."""
    held: dict[str, list[Stored]] = {}
    for item in stored:
        location = weights.location(item.tensor)
        if location is not None:
            held.setdefault(location, []).append(item)
    return tuple(_external_file(model, location, items) for location, items in held.items())


def _external_file(model: Model, location: str, items: list[Stored]) -> ExternalFile:
    size: int | None = None
    problem: str | None = None
    try:
        file = weights.resolve(location, model.folder, items[0].name, allow_outside=model.allow_outside)
        size = file.stat().st_size
        for item in items:
            said = weights.entries(item.tensor)
            end = _as_number(said.get("offset", "0")) + _as_number(said.get("length", str(item.bytes)))
            if end > size or item.tensor.HasField("raw_data"):
                weights.byte_range(item.tensor, model.folder, allow_outside=model.allow_outside)
    except ExternalDataError as error:
        problem = error.message
    return ExternalFile(location, len(items), sum(item.bytes for item in items), size, problem)


def _as_number(text: str) -> float:
    return int(text) if text.isascii() and text.isdigit() else float("inf")


def _bodies(index: GraphIndex) -> Bodies:
    inner = [scope for scope in index.scopes if scope.parent is not None]
    owners = {(id(scope.parent), scope.owner): scope for scope in inner}
    by_op = Counter(operator(scope.parent.nodes[scope.owner]) for scope in owners.values() if scope.parent is not None)
    return Bodies(
        len(inner),
        max((scope.depth for scope in inner), default=0),
        sum(len(scope.nodes) for scope in inner),
        dict(by_op.most_common()),
    )


def describe_function(
    index: GraphIndex, key: tuple[str, str, str], calls: Mapping[tuple[str, str, str], int]
) -> FunctionRecord:
    """Returns the record of a local function.

    Args:
        index: The model's index.
        key: Domain, name and overload of the function.
        calls: How many nodes call each function.
    """
    scope = index.functions[key]
    function = scope.graph
    inside = [scope]
    nodes = []
    while inside:
        part = inside.pop()
        nodes += part.nodes
        inside += [body for bodies in part.bodies.values() for body in bodies]
    return FunctionRecord(
        name=scope.path,
        nodes=len(nodes),
        calls=calls.get(key, 0),
        inputs=tuple(scope.inputs),
        outputs=tuple(scope.outputs),
        attributes=(*function.attribute, *(attribute.name for attribute in function.attribute_proto)),
        opsets={opset.domain or _STANDARD: opset.version for opset in function.opset_import},
        ops=dict(Counter(map(operator, nodes)).most_common()),
        doc=as_text(function.doc_string) or None,
    )


def function_calls(index: GraphIndex) -> Mapping[tuple[str, str, str], int]:
    """Returns how many nodes call each local function."""
    return _OpCounts(index).calls


def _quantization(index: GraphIndex, counts: _OpCounts, stored: Iterable[Stored]) -> Quantization:
    integer_ops = {
        written(domain, op_type): count
        for (domain, op_type), count in counts.by_key.most_common()
        if op_type in _INTEGER_OPS or op_type.startswith(_INTEGER_FAMILIES)
    }
    pairs = on_weights = 0
    if counts.of("DequantizeLinear"):
        for ref in index.nodes():
            if ref.node.op_type == "DequantizeLinear" and ref.node.input:
                name, scope = ref.node.input[0], ref.scope
                position = scope.producers.get(name)
                maker = "" if position is None else scope.nodes[position].op_type
                pairs += maker == "QuantizeLinear"
                on_weights += maker == "Constant" or (position is None and name in scope.constants)
    graphs = [scope.graph for scope in index.scopes if not scope.is_function]
    return Quantization(
        quantize=counts.of("QuantizeLinear"),
        dequantize=counts.of("DequantizeLinear"),
        pairs=pairs,
        dequantized_weights=on_weights,
        dynamic=counts.of("DynamicQuantizeLinear"),
        integer_ops=integer_ops,
        annotations=sum(len(graph.quantization_annotation) for graph in graphs),
        low_bit_bytes=sum(
            item.bytes for item in stored if 0 < dtype_bits(item.tensor.data_type) <= 8 and item.dtype != "bool"
        ),
    )


def _custom_ops(index: GraphIndex, counts: _OpCounts) -> tuple[CustomOp, ...]:
    from onnx import defs

    local = {key[:2] for key in index.functions}
    found = []
    for (domain, op_type), count in counts.by_key.most_common():
        if (domain, op_type) in local or not defs.has(op_type, "" if domain == _STANDARD else domain):
            known_to = "onnxruntime" if domain.startswith(_RUNTIME_DOMAINS) else None
            op = f"{domain or _STANDARD}::{op_type}"
            found.append(CustomOp(op, count, (domain, op_type) in local, known_to))
    return tuple(found)


def _dynamic_dims(proto: ModelProto) -> tuple[DynamicDim, ...]:
    """Returns the dimensions without a size; a type that many tensors share is taken apart once."""
    graph = proto.graph
    initializers = {tensor.name for tensor in graph.initializer}
    ends: dict[str, tuple[list[str], list[str]]] = {}
    for side, infos in enumerate((graph.input, graph.output)):
        for info in infos:
            for axis, dim in enumerate(tensor_shape(info.type) or ()):
                if not isinstance(dim, int) and info.name not in initializers:
                    ends.setdefault(dim or "?", ([], []))[side].append(f"{info.name}[{axis}]")
    inner: Counter[str] = Counter()
    symbols: dict[bytes, set[str]] = {}
    given = {info.name for infos in (graph.input, graph.output) for info in infos}
    for info in graph.value_info:
        if info.name in given:
            continue
        key = info.type.SerializeToString()
        held = symbols.get(key)
        if held is None:
            held = symbols[key] = {dim or "?" for dim in tensor_shape(info.type) or () if not isinstance(dim, int)}
        if held:
            inner.update(held)
    names = [*ends, *(name for name, _ in inner.most_common() if name not in ends)]
    nowhere: tuple[list[str], list[str]] = ([], [])
    places = {name: ends.get(name, nowhere) for name in names}
    return tuple(DynamicDim(name, tuple(at[0]), tuple(at[1]), inner[name]) for name, at in places.items())


def _marks(index: GraphIndex, counts: _OpCounts) -> dict[str, int]:
    if not counts.of("Mark"):
        return {}
    points = (select.mark_point(ref) for ref in index.nodes())
    return dict(Counter(f"{point.function}[{point.call}]:{point.side}" for point in points if point is not None))
