"""A model as text that people read and edit, and back: a superset of onnx's own text syntax.

Decision. ``onnx.printer`` and ``onnx.parser`` (1.23.2) were tried first, on all fixtures, the real models and the
models inside the onnx package: 36 of 315 do not come back the same. What they cannot hold, found by experiment
and in their source:

* lost silently: doc strings and metadata of everything below the model, sparse initializers, quantization
  annotations, denotations, training info, device configurations, defaults of function attributes, value infos of
  functions, lists of tensors, graphs and types in attributes;
* printed and not readable: int4, uint4, int2, float4, float6 and complex tensors (``...``), sparse attributes, empty
  string tensors, types without an element type, operator types, domains, attributes and bodies whose name is no C
  identifier, references to attributes of such names;
* not printable: attribute strings that are not UTF-8;
* and nothing is said about where weights are: all of them are always read and printed.

The list is too long for a pre- and a post-processor, so this module has its own printer and its own parser (a
tokenizer and a descent whose depth is the nesting of bodies, which protobuf bounds at 31). Whatever onnx.parser
accepts is accepted and means the same, and a model that needs no extension is printed in plain onnx syntax.

Extensions:

=========================================  =====================================================================
``@{doc_string: "...", ...}``              after a node, value, initializer, attribute or a graph's signature:
                                           ``doc_string``, ``metadata_props``, ``denotation``, ``dim_denotation``,
                                           ``quantization_annotation``, ``textproto`` (whatever else there is)
``{...}``                                  values left out; ``{... "old"}`` if the name changed since
``b"\\xff\\n"``                              a string with escapes: bytes, control characters
``"any name"``                             also for operator types, domains, attributes, bodies, references
``sparse_tensor(float[9]) s = {v, i}``     a sparse initializer or attribute: its values and its indices
``float16[2] {1.5, 0x7e01}``               small floats by value; hexadecimal is a bit pattern of any float type
``undefined``, ``dtype99``, ``?``              element types that say nothing, or that this version does not know; no type
``float32``, ``float64``                       other names of ``float`` and ``double``
=========================================  =====================================================================

Weights that are left out are put back by name (``weights_from``): an initializer by the name it has in its
graph, an attribute by the first output of its node, a body by the first output of the node that owns it. Names
and not positions, so that an edit above a node cannot silently exchange its weights with another's.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from onnxbench import literals, weights
from onnxbench.errors import ExternalDataError, ModelError, NotFoundError, SpecError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.model import Model
from onnxbench.tensortype import dtype_name, dtype_number, format_type
from onnxbench.wire import STUB_PREFIX

if TYPE_CHECKING:
    from onnx import (
        AttributeProto,
        FunctionProto,
        GraphProto,
        ModelProto,
        NodeProto,
        SparseTensorProto,
        TensorProto,
        TypeProto,
        ValueInfoProto,
    )

Weights = Literal["elided", "inline", "stats"]
"""What is printed of large weights: nothing but type and place, every value, or statistics."""

MAX_BODY_DEPTH = 31
"""Bodies inside bodies: protobuf refuses messages nested more than 100 deep, and each body takes three levels."""
_MAX_TYPE_DEPTH = 16
_WRAP = 16  # values on a line, when they do not fit on the line of their tensor
_WIDE = 110  # characters; longer signatures get one line per value

_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
_TENSORS, _GRAPHS, _SPARSE, _SPARSES, _TYPE, _TYPES = 9, 10, 11, 12, 13, 14
_ATTRIBUTE_TYPES = {
    "float": _FLOAT, "int": _INT, "string": _STRING, "tensor": _TENSOR, "graph": _GRAPH, "sparse_tensor": _SPARSE,
    "type_proto": _TYPE, "floats": _FLOATS, "ints": _INTS, "strings": _STRINGS, "tensors": _TENSORS, "graphs": _GRAPHS,
    "sparse_tensors": _SPARSES, "type_protos": _TYPES,
}  # fmt: skip
_ATTRIBUTE_WORDS = {number: word for word, number in _ATTRIBUTE_TYPES.items()}
_VALUE_FIELDS = {
    _FLOAT: "f", _INT: "i", _STRING: "s", _TENSOR: "t", _GRAPH: "g", _SPARSE: "sparse_tensor", _TYPE: "tp",
    _FLOATS: "floats", _INTS: "ints", _STRINGS: "strings", _TENSORS: "tensors", _GRAPHS: "graphs",
    _SPARSES: "sparse_tensors", _TYPES: "type_protos",
}  # fmt: skip
_PLURALS = {
    _FLOAT: _FLOATS, _INT: _INTS, _STRING: _STRINGS, _TENSOR: _TENSORS, _GRAPH: _GRAPHS, _SPARSE: _SPARSES,
    _TYPE: _TYPES,
}  # fmt: skip
_SINGULARS = {plural: single for single, plural in _PLURALS.items()}

_TYPE_WORDS = {
    {1: "float", 11: "double"}.get(number, dtype_name(number)): number for number in range(1, 29)
}
"""Element types as onnx.parser spells them."""
_TYPE_NAMES = {number: word for word, number in _TYPE_WORDS.items()} | {0: "undefined"}
_WRAPPERS = frozenset({"seq", "map", "optional", "sparse_tensor", "opaque"})
_SPECIAL_FLOATS = frozenset({"inf", "infinity", "nan"})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = re.compile(r"undefined|dtype[0-9]+|float32|float64|b")
_DATA_FIELDS = (
    "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "raw_data", "external_data",
    "data_location",
)  # fmt: skip
_ELIDED = "onnxbench-elided:"

ScopeKey = tuple[object, ...]
"""A graph by names: ``("main",)``, then (first output of the owner, attribute, position in its list) per body."""


# ---------------------------------------------------------------------------------------------------------------
# Printing


def show(
    model: Model,
    selectors: Sequence[str] = (),
    *,
    nodes: Sequence[str] = (),
    function: str | None = None,
    weights: Weights = "elided",
    max_elements: int = 16,
    notes: list[str] | None = None,
) -> str:
    """Returns a model, or part of it, as text (see ``lines`` for the arguments)."""
    found = lines(
        model,
        selectors,
        nodes=nodes,
        function=function,
        weights=weights,
        max_elements=max_elements,
        notes=notes,
    )
    return "\n".join(found) + "\n"


def lines(
    model: Model,
    selectors: Sequence[str] = (),
    *,
    nodes: Sequence[str] = (),
    function: str | None = None,
    weights: Weights = "elided",
    max_elements: int = 16,
    notes: list[str] | None = None,
) -> Iterator[str]:
    """Yields the lines of a model as text, without line ends.

    Args:
        model: The model. Its weights are read only where they are printed.
        selectors: Print only these tensors: their declarations, and the nodes that make them.
        nodes: Print only these nodes (selectors).
        function: Print only this local function (``domain::Name``, or its name alone).
        weights: What is printed of tensors with more than ``max_elements`` elements.
        max_elements: Smaller tensors are printed in full.
        notes: A list to which every sentence on what the text does not carry is appended.

    Raises:
        NotFoundError: A selector or function name matches nothing.
        ModelError: The model has names that are not text.
        ExternalDataError: Values that must be printed cannot be read.
    """
    printer = _Printer(model, weights, max_elements, notes if notes is not None else [])
    if function is not None:
        if selectors or nodes:
            raise UsageError("selectors and a function cannot be combined", hint="Print them one after the other.")
        chosen = _functions_named(model.proto, function)
        found = (line for each in chosen for line in printer.function(each))
    elif selectors or nodes:
        found = printer.selection(GraphIndex(model.proto), selectors, nodes)
    else:
        found = printer.model_lines()
    try:
        yield from found
    except UnicodeDecodeError:
        raise ModelError("the model has names that are not UTF-8 text") from None


@dataclass(frozen=True, slots=True)
class TextCounts:
    """What a model's text is about.

    Attributes:
        nodes: Nodes, those of bodies and functions included.
        bodies: Bodies of If, Loop, Scan and the like.
        functions: Local functions.
        tensors: Tensors with values: initializers and attributes.
        elided: Those of them that have more elements than are printed.
    """

    nodes: int
    bodies: int
    functions: int
    tensors: int
    elided: int


def counts(model: Model, *, weights: Weights = "elided", max_elements: int = 16) -> TextCounts:
    """Returns how much the text of a whole model holds."""
    index = GraphIndex(model.proto)
    sizes = [math.prod(tensor.dims) for _, tensor in keyed_tensors(model.proto)]
    return TextCounts(
        sum(len(scope.nodes) for scope in index.scopes),
        len(index.scopes) - 1 - len(index.functions),
        len(index.functions),
        len(sizes),
        0 if weights == "inline" else sum(size > max_elements for size in sizes),
    )


def _functions_named(proto: ModelProto, name: str) -> list[FunctionProto]:
    chosen = [each for each in proto.functions if name in (each.name, f"{each.domain}::{each.name}")]
    chosen = chosen or [each for each in proto.functions if name == f"{each.domain}::{each.name}:{each.overload}"]
    if not chosen:
        names = [f"{each.domain}::{each.name}" for each in proto.functions]
        hint = did_you_mean(name, names) or (f"It has: {', '.join(names[:8])}." if names else None)
        raise NotFoundError(f"the model has no function {name!r}" if names else "the model has no functions", hint=hint)
    return chosen


class _Names(dict[str, str]):
    """Tensor and node names as they are printed, each looked at once."""

    def __missing__(self, name: str) -> str:
        plain = _IDENTIFIER.fullmatch(name) and name not in _TYPE_WORDS and name not in _WRAPPERS
        if plain and not _RESERVED.fullmatch(name) and name.lower() not in _SPECIAL_FLOATS:
            text = name
        else:
            text = literals.quote(name)
        self[name] = text
        return text


@dataclass(slots=True)
class _Values:
    """The text of a tensor's values.

    Attributes:
        rows: The literals, a row per line; a single row is put on the line of the tensor.
        comment: What stands in a comment beside it.
    """

    rows: Iterable[str]
    comment: str = ""
    is_long: bool = False


class _Printer:
    """Prints one model; see ``lines``."""

    def __init__(self, model: Model, weights: Weights, max_elements: int, notes: list[str]) -> None:
        if weights not in ("elided", "inline", "stats"):
            raise UsageError(f"{weights!r} is no way to print weights", hint="Use elided, inline or stats.")
        self._model = model
        self._weights = weights
        self._max_elements = max_elements
        self._notes = notes
        self._names = _Names()
        self._ops: dict[tuple[str, str], str] = {}

    # -- the whole ----------------------------------------------------------------------------------------------

    def model_lines(self) -> Iterator[str]:
        """Yields a whole model."""
        proto = self._model.proto
        self._note_unknown_fields(proto)
        yield from self._header(proto)
        yield from self._graph(proto.graph, "", "", "")
        for function in proto.functions:
            yield ""
            yield from self.function(function)

    def _header(self, proto: ModelProto) -> Iterator[str]:
        entries: list[list[str]] = []
        if proto.HasField("ir_version"):
            entries.append([f"ir_version: {proto.ir_version}"])
        if proto.opset_import:
            entries.append([f"opset_import: {self._opsets(proto)}"])
        for key in ("producer_name", "producer_version", "domain"):
            if proto.HasField(key):
                entries.append([f"{key}: {literals.quote(getattr(proto, key))}"])
        if proto.HasField("model_version"):
            entries.append([f"model_version: {proto.model_version}"])
        if proto.HasField("doc_string"):
            entries.append([f"doc_string: {literals.quote(proto.doc_string)}"])
        if proto.metadata_props:
            pairs = [f"{literals.quote(p.key)}: {literals.quote(p.value)}" for p in proto.metadata_props]
            short = sum(map(len, pairs)) < _WIDE
            entries.append(
                [f"metadata_props: [{', '.join(pairs)}]"] if short
                else ["metadata_props: [", *_joined([f"   {pair}" for pair in pairs]), "]"]
            )  # fmt: skip
        if proto.configuration:
            part = type(proto)(configuration=proto.configuration)
            entries.append([f"textproto: {_textproto(part)}"])
        if proto.training_info:
            entries.append(["training_info: [", *self._training(proto), "]"])
        if not entries:
            return
        yield "<"
        for at, entry in enumerate(entries):
            *first, last = entry
            for line in first:
                yield f"   {line}"
            yield f"   {last}{',' if at + 1 < len(entries) else ''}"
        yield ">"

    def _opsets(self, proto: ModelProto | FunctionProto) -> str:
        return "[" + ", ".join(f"{literals.quote(o.domain)} : {o.version}" for o in proto.opset_import) + "]"

    def _training(self, proto: ModelProto) -> Iterator[str]:
        for at, training in enumerate(proto.training_info):
            entries: list[Iterable[str]] = []
            for key in ("initialization", "algorithm"):
                if training.HasField(key):
                    entries.append(self._graph(getattr(training, key), f"{key}: ", "", "      "))
            for key in ("initialization_binding", "update_binding"):
                pairs = getattr(training, key)
                if pairs:
                    entries.append([f"      {key}: {_pairs(pairs)}"])
            yield "   {"
            for number, entry in enumerate(entries):
                yield from _with_suffix(entry, "," if number + 1 < len(entries) else "")
            yield "   }," if at + 1 < len(proto.training_info) else "   }"

    def function(self, function: FunctionProto) -> Iterator[str]:
        """Yields a local function."""
        entries = [f"domain: {literals.quote(function.domain)}"]
        if function.overload:
            entries.append(f"overload: {literals.quote(function.overload)}")
        entries.append(f"opset_import: {self._opsets(function)}")
        if function.HasField("doc_string"):
            entries.append(f"doc_string: {literals.quote(function.doc_string)}")
        if function.metadata_props:
            entries.append(f"metadata_props: {_pairs(function.metadata_props)}")
        yield "<"
        yield from _joined([f"   {entry}" for entry in entries])
        yield ">"
        place = f"function {function.name!r}"
        attributes = [self._names[name] for name in function.attribute]
        attributes += [self._attribute(attribute, place, []) for attribute in function.attribute_proto]
        head = self._names[function.name] + (f" <{', '.join(attributes)}>" if attributes else "")
        inputs, outputs = ([self._names[name] for name in names] for names in (function.input, function.output))
        yield f"{head} ({', '.join(inputs)}) => ({', '.join(outputs)})"
        if function.value_info:
            yield "<"
            yield from _joined([f"   {self._value_info(info)}" for info in function.value_info])
            yield ">"
        yield "{"
        for node in function.node:
            yield from self._node(node, "   ", place)
        yield "}"

    def _graph(self, graph: GraphProto, prefix: str, suffix: str, indent: str) -> Iterator[str]:
        """Yields a graph; ``prefix`` stands before its name and ``suffix`` after its last brace."""
        inputs = [self._value_info(info) for info in graph.input]
        outputs = [self._value_info(info) for info in graph.output]
        head = f"{indent}{prefix}{self._names[graph.name]}"
        signature = f"{head} ({', '.join(inputs)}) => ({', '.join(outputs)})"
        if len(signature) <= _WIDE:
            yield signature
        else:
            yield f"{head} ("
            yield from _joined([f"{indent}   {each}" for each in inputs])
            yield f"{indent}) => ("
            yield from _joined([f"{indent}   {each}" for each in outputs])
            yield f"{indent})"
        extras = self._extras(graph)
        if graph.quantization_annotation:
            annotations = [
                f"{literals.quote(each.tensor_name)}: {_pairs(each.quant_parameter_tensor_names)}"
                for each in graph.quantization_annotation
            ]
            extras.append(f"quantization_annotation: [{', '.join(annotations)}]")
        if extras:
            yield f"{indent}@{{{', '.join(extras)}}}"
        if graph.initializer or graph.sparse_initializer or graph.value_info:
            yield f"{indent}<"
            yield from self._declarations(graph, f"{indent}   ")
            yield f"{indent}>"
        yield f"{indent}{{"
        for node in graph.node:
            yield from self._node(node, f"{indent}   ", "")
        yield f"{indent}}}{suffix}"

    def _declarations(self, graph: GraphProto, indent: str) -> Iterator[str]:
        remaining = len(graph.initializer) + len(graph.sparse_initializer) + len(graph.value_info)
        for tensor in graph.initializer:
            remaining -= 1
            yield from self._initializer(tensor, indent, "," if remaining else "")
        for sparse in graph.sparse_initializer:
            remaining -= 1
            yield self._sparse_initializer(sparse, indent, "," if remaining else "")
        for info in graph.value_info:
            remaining -= 1
            yield f"{indent}{self._value_info(info)}{',' if remaining else ''}"

    def _initializer(self, tensor: TensorProto, indent: str, separator: str) -> Iterator[str]:
        head = f"{indent}{self._tensor_type(tensor)} {self._names[tensor.name]} = "
        values = self._values(tensor)
        tail = self._tail(self._tensor_extras(tensor)) + separator + _comment(values.comment)
        if values.is_long:
            yield f"{head}{{"
            yield from _joined(f"{indent}   {row}" for row in values.rows)
            yield f"{indent}}}{tail}"
        else:
            yield f"{head}{{{', '.join(values.rows)}}}{tail}"

    def _sparse_initializer(self, sparse: SparseTensorProto, indent: str, separator: str) -> str:
        comments: list[str] = []
        text = self._sparse(sparse, sparse.values.name, comments)
        return f"{indent}{text}{separator}{_comment('; '.join(comments))}"

    def _sparse(self, sparse: SparseTensorProto, name: str, comments: list[str]) -> str:
        """Returns a sparse tensor: its type, its name if it has one, and its two parts."""
        dims = f"[{','.join(map(str, sparse.dims))}]" if sparse.dims else ""
        parts = []
        for part, label in ((sparse.values, "values"), (sparse.indices, "indices")):
            own_name = part.name if label == "indices" or part.name != name else ""
            parts.append(self._inline_tensor(part, own_name, label, comments))
        word = _type_word(sparse.values.data_type)
        shown = f" {self._names[name]}" if name else ""
        return f"sparse_tensor({word}{dims}){shown} = {{{', '.join(parts)}}}"

    # -- nodes --------------------------------------------------------------------------------------------------

    def _node(self, node: NodeProto, indent: str, place: str) -> Iterator[str]:
        names = self._names
        outputs = ", ".join([names[name] for name in node.output])
        inputs = ", ".join([names[name] for name in node.input])
        label = f"[{names[node.name]}] " if node.name else ""
        domain, op_type = node.domain, node.op_type
        operator = self._ops.get((domain, op_type)) or self._operator(domain, op_type)
        if node.overload:
            operator += f":{names[node.overload]}"
        extras = self._extras(node)
        if node.device_configurations:
            part = type(node)(device_configurations=node.device_configurations)
            extras.append(f"textproto: {_textproto(part)}")
        tail = self._tail(extras)
        if not node.attribute:
            yield f"{indent}{label}{outputs} = {operator} ({inputs}){tail}"
            return
        comments: list[str] = []
        if not any(attribute.type in (_GRAPH, _GRAPHS) for attribute in node.attribute):
            where = place or f"node {node.name or outputs!r}"
            texts = ", ".join([self._attribute(attribute, where, comments) for attribute in node.attribute])
            note = _comment("; ".join(comments)) if comments else ""
            yield f"{indent}{label}{outputs} = {operator} <{texts}> ({inputs}){tail}{note}"
            return
        yield f"{indent}{label}{outputs} = {operator} ({inputs}) <"
        remaining = len(node.attribute)
        for attribute in node.attribute:
            remaining -= 1
            yield from self._attribute_lines(attribute, f"{indent}   ", "," if remaining else "", place)
        yield f"{indent}>{tail}"

    def _operator(self, domain: str, op_type: str) -> str:
        parts = domain.split(".") if domain else []
        if not all(_IDENTIFIER.fullmatch(part) for part in parts):
            parts = [literals.quote(domain)]
        parts.append(op_type if _IDENTIFIER.fullmatch(op_type) else literals.quote(op_type))
        text = self._ops[domain, op_type] = ".".join(parts)
        return text

    def _attribute_lines(self, attribute: AttributeProto, indent: str, separator: str, place: str) -> Iterator[str]:
        kind = attribute.type
        if kind not in (_GRAPH, _GRAPHS) or attribute.ref_attr_name:
            comments: list[str] = []
            text = self._attribute(attribute, place, comments)
            yield f"{indent}{text}{separator}{_comment('; '.join(comments))}"
            return
        self._note_other_values(attribute, place)
        tail = self._tail(self._extras(attribute))
        head = f"{self._names[attribute.name]}: {_ATTRIBUTE_WORDS[kind]} = "
        if kind == _GRAPH:
            yield from self._graph(attribute.g, head, tail + separator, indent)
            return
        yield f"{indent}{head}["
        for at, graph in enumerate(attribute.graphs):
            yield from self._graph(graph, "", "," if at + 1 < len(attribute.graphs) else "", f"{indent}   ")
        yield f"{indent}]{tail}{separator}"

    def _attribute(self, attribute: AttributeProto, place: str, comments: list[str]) -> str:
        """Returns an attribute that holds no graph (or a default graph of a function) as one line."""
        kind = attribute.type or self._guess_type(attribute, place)
        self._note_other_values(attribute, place)
        head = f"{self._names[attribute.name]}: {_ATTRIBUTE_WORDS.get(kind, 'undefined')} = "
        if attribute.ref_attr_name:
            return f"{head}@{self._names[attribute.ref_attr_name]}{self._tail(self._extras(attribute))}"
        if kind == _INT:
            text = str(attribute.i)
        elif kind == _INTS:
            text = f"[{', '.join(map(str, attribute.ints))}]"
        elif kind == _FLOAT:
            text = literals.float32_text(attribute.f)
        elif kind == _FLOATS:
            text = f"[{', '.join(self._floats(attribute))}]"
        elif kind == _STRING:
            text = literals.quote(attribute.s)
        elif kind == _STRINGS:
            text = f"[{', '.join(map(literals.quote, attribute.strings))}]"
        else:
            text = self._large_attribute(attribute, kind, comments)
        if attribute.doc_string:
            text += self._tail(self._extras(attribute))
        return head + text

    def _floats(self, attribute: AttributeProto) -> list[str]:
        import numpy as np

        return literals.array_texts(np.array(attribute.floats, np.float32), _FLOAT)

    def _large_attribute(self, attribute: AttributeProto, kind: int, comments: list[str]) -> str:
        name = attribute.name
        if kind == _TENSOR:
            return self._inline_tensor(attribute.t, attribute.t.name, name, comments)
        if kind == _TENSORS:
            each = (self._inline_tensor(t, t.name, name, comments) for t in attribute.tensors)
            return f"[{', '.join(each)}]"
        if kind == _SPARSE:
            return self._sparse(attribute.sparse_tensor, attribute.sparse_tensor.values.name, comments)
        if kind == _SPARSES:
            return f"[{', '.join(self._sparse(s, s.values.name, comments) for s in attribute.sparse_tensors)}]"
        if kind == _TYPE:
            return self._typed(attribute.tp)
        if kind == _TYPES:
            return f"[{', '.join(map(self._typed, attribute.type_protos))}]"
        graphs = [attribute.g] if kind == _GRAPH else list(attribute.graphs)
        texts = [" ".join(line.strip() for line in self._graph(graph, "", "", "")) for graph in graphs]
        return texts[0] if kind == _GRAPH else f"[{', '.join(texts)}]"

    def _guess_type(self, attribute: AttributeProto, place: str) -> int:
        """Returns the type of an attribute that states none (as IR version 1 allowed), by the value it has."""
        present = {field.name for field, _ in attribute.ListFields()}
        for kind, name in _VALUE_FIELDS.items():
            if name in present:
                self._notes.append(
                    f"{place}: attribute {attribute.name!r} states no type; the text says {_ATTRIBUTE_WORDS[kind]}"
                )
                return kind
        if not attribute.ref_attr_name:
            self._notes.append(f"{place}: attribute {attribute.name!r} has neither a type nor a value; the text says 0")
            return _INT
        return 0

    def _note_other_values(self, attribute: AttributeProto, place: str) -> None:
        known = 2 + (attribute.doc_string != "") + (attribute.ref_attr_name != "")
        fields = attribute.ListFields()
        if len(fields) <= known:
            return
        own = _VALUE_FIELDS.get(attribute.type, "") if not attribute.ref_attr_name else ""
        kept = {"name", "type", "doc_string", "ref_attr_name", own}
        others = [each.name for each, _ in fields if each.name not in kept]
        if others and attribute.type:
            self._notes.append(
                f"{place}: attribute {attribute.name!r} has values besides its own ({', '.join(others)}), not in the text"
            )

    # -- values and types ---------------------------------------------------------------------------------------

    def _value_info(self, info: ValueInfoProto) -> str:
        name = self._names[info.name]
        extras = self._extras(info) if info.doc_string or info.metadata_props else []
        if not info.HasField("type"):
            return f"{name}{self._tail(extras)}"
        return f"{self._type(info.type)} {name}{self._tail(extras + self._denotations(info.type))}"

    def _typed(self, value: TypeProto) -> str:
        return self._type(value) + self._tail(self._denotations(value))

    def _type(self, value: TypeProto) -> str:
        kind = value.WhichOneof("value")
        if kind == "tensor_type":
            return self._element(value.tensor_type)
        if kind is None:
            return "?"
        if kind == "sparse_tensor_type":
            return f"sparse_tensor({self._element(value.sparse_tensor_type)})"
        if kind == "sequence_type":
            return f"seq({self._inner(value.sequence_type.elem_type)})"
        if kind == "optional_type":
            return f"optional({self._inner(value.optional_type.elem_type)})"
        if kind == "map_type":
            return f"map({_type_word(value.map_type.key_type)}, {self._inner(value.map_type.value_type)})"
        opaque = value.opaque_type
        if opaque.domain:
            return f"opaque({self._operator(opaque.domain, opaque.name).rpartition('.')[0]}, {self._names[opaque.name]})"
        return f"opaque({self._names[opaque.name] if opaque.name else ''})"

    def _inner(self, value: TypeProto) -> str:
        if self._denotations(value):
            self._notes.append(f"a denotation inside of the type {format_type(value)} is not in the text")
        return self._type(value)

    def _element(self, tensor: Any) -> str:
        """Returns a tensor type: no brackets for rank 0, empty ones when the rank is unknown."""
        word = _type_word(tensor.elem_type)
        if not tensor.HasField("shape"):
            return f"{word}[]"
        dims = tensor.shape.dim
        if not dims:
            return word
        texts = []
        for dim in dims:
            which = dim.WhichOneof("value")
            texts.append(
                "?" if which is None else str(dim.dim_value) if which == "dim_value" else self._names[dim.dim_param]
            )
        return f"{word}[{','.join(texts)}]"

    def _denotations(self, value: TypeProto) -> list[str]:
        found = [f"denotation: {literals.quote(value.denotation)}"] if value.denotation else []
        kind = value.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            dims = getattr(value, kind).shape.dim
            if any(dim.denotation for dim in dims):
                found.append(f"dim_denotation: [{', '.join(literals.quote(dim.denotation) for dim in dims)}]")
        return found

    def _tensor_type(self, tensor: TensorProto) -> str:
        word = _type_word(tensor.data_type)
        return f"{word}[{','.join(map(str, tensor.dims))}]" if tensor.dims else word

    def _inline_tensor(self, tensor: TensorProto, name: str, label: str, comments: list[str]) -> str:
        values = self._values(tensor)
        if values.comment:
            comments.append(f"{label}: {values.comment}")
        shown = f" {self._names[name]} =" if name else ""
        extras = self._tail(self._tensor_extras(tensor))
        return f"{self._tensor_type(tensor)}{shown} {{{', '.join(values.rows)}}}{extras}"

    def _tensor_extras(self, tensor: TensorProto) -> list[str]:
        extras = self._extras(tensor) if tensor.doc_string or tensor.metadata_props else []
        if tensor.HasField("segment"):
            extras.append(f"textproto: {_textproto(type(tensor)(segment=tensor.segment))}")
        return extras

    def _values(self, tensor: TensorProto) -> _Values:
        """Returns what stands between the braces of a tensor."""
        count = math.prod(tensor.dims)
        problem = _data_problem(tensor, count)
        if problem:
            self._notes.append(f"tensor {tensor.name!r}: {problem}; its data is not in the text")
            return _Values(["..."], problem)
        is_large = count > self._max_elements
        if is_large and self._weights != "inline":
            return _Values(["..."], self._place(tensor) + (self._statistics(tensor) if self._weights == "stats" else ""))
        if tensor.data_type == 8:
            texts: Iterable[str] = map(literals.quote, tensor.string_data)
            return _Values(_rows(list(texts)) if is_large else texts, is_long=is_large)
        try:
            array = self._model.array(tensor).reshape(-1)
        except ExternalDataError as error:
            if self._weights == "inline":
                raise
            self._notes.append(f"{error.message}; the text has no values for it")
            return _Values(["..."], self._place(tensor))
        if is_large:
            return _Values(_array_rows(array, tensor.data_type), is_long=True)
        return _Values(literals.array_texts(array, tensor.data_type))

    def _place(self, tensor: TensorProto) -> str:
        """Returns the size of a tensor's data and where it lies, in words."""
        size = f"{weights.tensor_bytes(tensor):,} bytes"
        said = weights.entries(tensor)
        if not weights.is_outside(tensor):
            origin = self._model.origin
            return f"{size} in {_printable(origin.name)}" if origin else size
        where = said.get("location", "")
        name = Path(where.removeprefix(STUB_PREFIX)).name if where.startswith(STUB_PREFIX) else where
        offset = said.get("offset", "0")
        return f"{size} at {int(offset):,} of {_printable(name)}" if offset.isdigit() else f"{size} in {_printable(name)}"

    def _statistics(self, tensor: TensorProto) -> str:
        import numpy as np

        if tensor.data_type == 8 or tensor.data_type in (14, 15):
            return ""
        array = self._model.array(tensor).reshape(-1)
        values = array.astype(np.float64)
        finite = values[np.isfinite(values)]
        words = []
        if finite.size:
            words.append(f"min {finite.min():.4g}, max {finite.max():.4g}")
            words.append(f"mean {finite.mean():.4g}, std {finite.std():.4g}")
        for word, number in (("NaN", int(np.isnan(values).sum())), ("Inf", int(np.isinf(values).sum()))):
            if number:
                words.append(f"{number:,} {word}")
        return f": {', '.join(words)}"

    # -- what stands beside things ------------------------------------------------------------------------------

    def _extras(self, message: Any) -> list[str]:
        """Returns the doc string and metadata of a node, value, tensor, attribute or graph."""
        extras = []
        if message.doc_string:
            extras.append(f"doc_string: {literals.quote(message.doc_string, one_line=True)}")
        pairs = getattr(message, "metadata_props", None)
        if pairs:
            extras.append(f"metadata_props: {_pairs(pairs)}")
        return extras

    def _tail(self, extras: list[str]) -> str:
        return f" @{{{', '.join(extras)}}}" if extras else ""

    def _note_unknown_fields(self, proto: ModelProto) -> None:
        """Notes fields that this version of onnx does not know; their bytes are in no text."""
        known = type(proto)()
        known.CopyFrom(proto)
        known.DiscardUnknownFields()  # type: ignore[attr-defined]
        lost = proto.ByteSize() - known.ByteSize()
        if lost > 0:
            self._notes.append(f"{lost:,} bytes of fields that onnx does not know are not in the text")

    # -- parts --------------------------------------------------------------------------------------------------

    def selection(self, index: GraphIndex, selectors: Sequence[str], nodes: Sequence[str]) -> Iterator[str]:
        """Yields the declarations of the selected tensors and the selected nodes, graph by graph."""
        from onnxbench import select

        tensors = select.tensors(index, selectors) if selectors else []
        wanted_nodes = select.nodes(index, nodes, what="--node") if nodes else []
        chosen: dict[Scope, tuple[list[str], list[int]]] = {}
        for ref in tensors:
            names, positions = chosen.setdefault(ref.scope, ([], []))
            made_at = ref.scope.producers.get(ref.name)
            if made_at is None:
                names.append(ref.name)
            else:
                positions.append(made_at)
        for node in wanted_nodes:
            chosen.setdefault(node.scope, ([], []))[1].append(node.position)
        for scope in index.scopes:
            if scope in chosen:
                names, positions = chosen[scope]
                if scope.path:
                    yield f"# {_printable(scope.path)}"
                yield from self._declared(scope, set(names))
                for position in sorted(set(positions)):
                    yield from self._node(scope.nodes[position], "", scope.path)

    def _declared(self, scope: Scope, names: set[str]) -> Iterator[str]:
        graph = scope.graph
        if scope.is_function:
            yield from (self._names[name] for name in scope.inputs if name in names)
            return
        for info in graph.input:  # type: ignore[union-attr]
            if info.name in names:  # type: ignore[union-attr]
                yield f"{self._value_info(info)}  # input"  # type: ignore[arg-type]
        for tensor in graph.initializer:  # type: ignore[union-attr]
            if tensor.name in names:
                yield from self._initializer(tensor, "", "")
        for sparse in graph.sparse_initializer:  # type: ignore[union-attr]
            if sparse.values.name in names:
                yield self._sparse_initializer(sparse, "", "")


def _type_word(number: int) -> str:
    return _TYPE_NAMES.get(number) or f"dtype{number}"


def _joined(items: Iterable[str]) -> Iterator[str]:
    """Yields lines with a comma after all but the last."""
    previous: str | None = None
    for item in items:
        if previous is not None:
            yield f"{previous},"
        previous = item
    if previous is not None:
        yield previous


def _with_suffix(items: Iterable[str], suffix: str) -> Iterator[str]:
    previous: str | None = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous + suffix


def _pairs(entries: Iterable[Any]) -> str:
    texts = [
        f"{literals.quote(entry.key, one_line=True)}: {literals.quote(entry.value, one_line=True)}" for entry in entries
    ]
    return f"[{', '.join(texts)}]"


def _textproto(message: Any) -> str:
    from google.protobuf import text_format

    return literals.quote(text_format.MessageToString(message, as_one_line=True), one_line=True)


def _comment(text: str) -> str:
    return f"  # {text}" if text else ""


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _rows(texts: list[str]) -> Iterator[str]:
    for at in range(0, len(texts), _WRAP):
        yield ", ".join(texts[at : at + _WRAP])


def _array_rows(array: Any, number: int) -> Iterator[str]:
    block = _WRAP << 12  # some megabytes of text at a time
    for start in range(0, len(array), block):
        yield from _rows(literals.array_texts(array[start : start + block], number))


def _data_problem(tensor: TensorProto, count: int) -> str:
    """Returns what is wrong with a tensor's own data, or "" (data outside is judged when it is read)."""
    number = tensor.data_type
    if number == 0 or number not in _TYPE_NAMES:
        return f"element type {_type_word(number)} has no values"
    if count < 0 or any(dim < 0 for dim in tensor.dims):
        return f"shape {list(tensor.dims)} has a negative size"
    if weights.is_outside(tensor):
        return ""
    if number == 8:
        held, wanted = len(tensor.string_data), count
    elif tensor.HasField("raw_data"):
        held, wanted = len(tensor.raw_data), weights.tensor_bytes(tensor)
    else:
        held, wanted = _typed_length(tensor), _typed_length_wanted(number, count)
    return "" if held == wanted else f"it holds {held:,} where {_type_word(number)}{list(tensor.dims)} takes {wanted:,}"


def _typed_length(tensor: TensorProto) -> int:
    names = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return sum(len(getattr(tensor, name)) for name in names)


def _typed_length_wanted(number: int, count: int) -> int:
    if number in (21, 22, 23):
        return (count + 1) // 2
    return (count + 3) // 4 if number in (25, 26) else count * literals.literals_per_element(number)
