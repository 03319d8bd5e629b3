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
        self._one_line = False

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
        tail = self._tail(self._tensor_extras(tensor)) + separator + self._comment(values.comment)
        if values.is_long:
            yield f"{head}{{"
            yield from _joined(f"{indent}   {row}" for row in values.rows)
            yield f"{indent}}}{tail}"
        else:
            yield f"{head}{{{', '.join(values.rows)}}}{tail}"

    def _sparse_initializer(self, sparse: SparseTensorProto, indent: str, separator: str) -> str:
        comments: list[str] = []
        text = self._sparse(sparse, sparse.values.name, comments)
        return f"{indent}{text}{separator}{self._comment('; '.join(comments))}"

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
            note = self._comment("; ".join(comments)) if comments else ""
            yield f"{indent}{label}{outputs} = {operator} <{texts}> ({inputs}){tail}{note}"
            return
        yield f"{indent}{label}{outputs} = {operator} ({inputs}) <"
        remaining = len(node.attribute)
        for attribute in node.attribute:
            remaining -= 1
            yield from self._attribute_lines(attribute, f"{indent}   ", "," if remaining else "", place)
        yield f"{indent}>{tail}"

    def _operator(self, domain: str, op_type: str) -> str:
        name = op_type if _IDENTIFIER.fullmatch(op_type) else literals.quote(op_type)
        text = self._ops[domain, op_type] = f"{_dotted(domain)}.{name}" if domain else name
        return text

    def _attribute_lines(self, attribute: AttributeProto, indent: str, separator: str, place: str) -> Iterator[str]:
        kind = attribute.type
        if kind not in (_GRAPH, _GRAPHS) or attribute.ref_attr_name:
            comments: list[str] = []
            text = self._attribute(attribute, place, comments)
            yield f"{indent}{text}{separator}{self._comment('; '.join(comments))}"
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
        self._one_line = True
        texts = [" ".join(line.strip() for line in self._graph(graph, "", "", "")) for graph in graphs]
        self._one_line = False
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
            return f"opaque({_dotted(opaque.domain)}, {self._names[opaque.name]})"
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

    def _comment(self, text: str) -> str:
        return f"  # {text}" if text and not self._one_line else ""

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


def _dotted(domain: str) -> str:
    return domain if all(map(_IDENTIFIER.fullmatch, domain.split("."))) else literals.quote(domain)


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
    from onnx import helper

    return len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))


def _typed_length_wanted(number: int, count: int) -> int:
    if number in (21, 22, 23):
        return (count + 1) // 2
    return (count + 3) // 4 if number in (25, 26) else count * literals.literals_per_element(number)


# ---------------------------------------------------------------------------------------------------------------
# Weights by name


TensorKey = tuple[object, ...]


def keyed_tensors(proto: ModelProto) -> Iterator[tuple[TensorKey, TensorProto]]:
    """Yields every tensor of a model with a key that survives edits elsewhere (see the top of the module)."""
    stack: list[tuple[ScopeKey, GraphProto | FunctionProto]] = [(("main",), proto.graph)]
    stack += [(function_key(each), each) for each in proto.functions]
    for number, training in enumerate(proto.training_info):
        stack.append((("training", number, "initialization"), training.initialization))
        stack.append((("training", number, "algorithm"), training.algorithm))
    while stack:
        scope, graph = stack.pop()
        if hasattr(graph, "initializer"):
            for tensor in graph.initializer:
                yield (*scope, "initializer", tensor.name), tensor
            for sparse in graph.sparse_initializer:
                yield (*scope, "values", sparse.values.name), sparse.values
                yield (*scope, "indices", sparse.values.name), sparse.indices
        else:
            for attribute in graph.attribute_proto:
                yield from _attribute_tensors(attribute, (*scope, ""))
        for position, node in enumerate(graph.node):
            if node.attribute:
                owner = owner_name(node, position)
                for attribute in node.attribute:
                    if attribute.type in (_GRAPH, _GRAPHS):
                        bodies = [attribute.g] if attribute.type == _GRAPH else attribute.graphs
                        stack += [((*scope, owner, attribute.name, at), body) for at, body in enumerate(bodies)]
                    else:
                        yield from _attribute_tensors(attribute, (*scope, owner))


def function_key(function: FunctionProto) -> ScopeKey:
    """Returns the key of a local function's graph."""
    return "function", function.domain, function.name, function.overload


def owner_name(node: NodeProto, position: int) -> str:
    """Returns what a node is called in keys: its first output, or its position if it makes nothing."""
    return next(filter(None, node.output), f"#{position}")


def _attribute_tensors(attribute: AttributeProto, owner: TensorKey) -> Iterator[tuple[TensorKey, TensorProto]]:
    kind = attribute.type
    if kind in (_TENSOR, _TENSORS):
        for at, tensor in enumerate([attribute.t] if kind == _TENSOR else attribute.tensors):
            yield (*owner, attribute.name, at, "value"), tensor
    elif kind in (_SPARSE, _SPARSES):
        for at, sparse in enumerate([attribute.sparse_tensor] if kind == _SPARSE else attribute.sparse_tensors):
            yield (*owner, attribute.name, at, "values"), sparse.values
            yield (*owner, attribute.name, at, "indices"), sparse.indices


@dataclass(slots=True)
class _Elided:
    """A tensor whose values the text leaves out.

    Attributes:
        tensor: The tensor to fill.
        key: Where it is.
        old_name: The name it has in the original, if the text says one.
        offset: Where in the text its braces open.
    """

    tensor: TensorProto
    key: TensorKey
    old_name: str | None
    offset: int


# ---------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(slots=True)
class Marks:
    """Lines of a specification, from 1, that errors point at.

    Attributes:
        source: The file, as the user named it.
        nodes: By graph: the line of each node, in the order of the protobuf message.
        outputs: By graph: the line of each output.
        graphs: By graph: the line it starts at.
    """

    source: str
    nodes: dict[ScopeKey, list[int]] = field(default_factory=dict)
    outputs: dict[ScopeKey, list[int]] = field(default_factory=dict)
    graphs: dict[ScopeKey, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a text says.

    Attributes:
        model: The model.
        marks: The lines of its nodes and outputs.
        notes: What the reader should know (integers read as bit patterns, say).
    """

    model: Model
    marks: Marks
    notes: tuple[str, ...]


def parse(
    text: str,
    *,
    source: str = "<text>",
    folder: Path | None = None,
    weights_from: Model | None = None,
    allow_outside: bool = False,
) -> Model:
    """Returns the model that a text describes (see ``read``)."""
    return read(
        text, source=source, folder=folder, weights_from=weights_from, allow_outside=allow_outside
    ).model


def read(
    text: str,
    *,
    source: str = "<text>",
    folder: Path | None = None,
    weights_from: Model | None = None,
    allow_outside: bool = False,
) -> Parsed:
    """Returns the model that a text describes, with the lines of its parts.

    Only the text is judged, not the model: unsorted nodes, unknown operators and the like are for
    ``onnxbench.modelspec.build``.

    Args:
        text: The text, onnx.parser's syntax and the extensions at the top of this module.
        source: What errors call it.
        folder: The folder that external data is relative to; the current one by default.
        weights_from: Where the values come from that the text leaves out. They are referred to, not read.
        allow_outside: Follow external data that leaves ``folder``.

    Raises:
        SpecError: The text has a mistake, or leaves out values that ``weights_from`` does not have.
    """
    reader = _Reader(text, source)
    proto = reader.model()
    model = Model(proto, folder if folder is not None else Path.cwd(), None, allow_outside)
    if reader.elided:
        _fill(model, reader, weights_from)
    return Parsed(model, reader.marks, tuple(reader.notes))


_TOKEN = re.compile(
    r"""(?:[ \t\n\v\f\r]+|\#[^\n]*)*
    (?:(?P<bytes>b"[^"\\]*(?:\\.[^"\\]*)*")
      |(?P<id>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<str>"[^"\\]*(?:\\.[^"\\]*)*")
      |(?P<num>[+-]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
              |-(?:[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN])(?![A-Za-z0-9_]))
      |(?P<dots>\.\.\.)
      |(?P<mark>[<>(){}\[\],:=@.?])
      |(?P<end>\Z)
      |(?P<bad>.))""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"(?:[ \t\n\v\f\r]+|#[^\n]*)*")
_COMMENT = re.compile(r"#[^\n]*")
_EXTRA_TYPE = re.compile(r"undefined|dtype[0-9]+|float32|float64")
_NAME_KINDS = ("id", "str", "bytes")
_HEADER_KEYS = (
    "ir_version", "opset_import", "producer_name", "producer_version", "domain", "model_version", "doc_string",
    "metadata_props", "training_info", "textproto",
)  # fmt: skip
_FUNCTION_KEYS = ("domain", "overload", "opset_import", "doc_string", "metadata_props")
_EXTRA_KEYS = (
    "doc_string", "metadata_props", "denotation", "dim_denotation", "quantization_annotation", "textproto",
)  # fmt: skip


class _Reader:
    """Reads one text: a tokenizer with one token of look-ahead, and a method per rule of the grammar.

    The current token is (``kind``, ``value``), it starts at ``start`` and ends at ``end``. For punctuation the
    kind is the character itself.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.marks = Marks(source)
        self.notes: list[str] = []
        self.elided: list[_Elided] = []
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        self._depth = 0
        self._patterns_noted = False
        self.start = self.end = 0
        self.kind = self.value = ""
        self._advance()

    # -- tokens -------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        match = _TOKEN.match(self.text, self.end)
        assert match is not None  # the last alternatives take any character, and the end
        kind = match.lastgroup
        assert kind is not None
        self.value = match[kind]
        self.start, self.end = match.span(kind)
        self.kind = self.value if kind == "mark" else kind
        if kind == "bad":
            if self.value == '"':
                self._fail("this string does not end", hint='A string ends with a quote; write \\" for a quote inside it.')
            self._fail(f"{self.value!r} means nothing here", hint="Quote names that have special characters in them.")

    def _take(self, kind: str) -> bool:
        if self.kind == kind:
            self._advance()
            return True
        return False

    def _expect(self, kind: str, where: str) -> None:
        if self.kind != kind:
            self._fail(f"expected {kind!r} {where}, found {self._found()}")
        self._advance()

    def _found(self) -> str:
        return "the end of the text" if self.kind == "end" else repr(self.value[:40])

    def _following(self) -> str:
        """Returns the first character after the current token and the space behind it."""
        space = _SPACE.match(self.text, self.end)
        at = space.end() if space else self.end
        return self.text[at : at + 1]

    def _line_of(self, offset: int) -> int:
        return bisect_right(self._line_ends, offset - 1) + 1

    def _fail(self, message: str, *, at: int | None = None, hint: str | None = None) -> NoReturn:
        offset = self.start if at is None else at
        raise _error_at(self.text, self.source, offset, message, hint)

    # -- words --------------------------------------------------------------------------------------------------

    def _name(self, what: str) -> str:
        kind, value = self.kind, self.value
        if kind == "id":
            self._advance()
            return value
        if kind in ("str", "bytes"):
            return self._string()
        self._fail(f"expected {what}, found {self._found()}")

    def _string(self) -> str:
        value = self._bytes_or_string()
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                self._fail("this string must be text, and its bytes are not UTF-8", at=self.start)
        return value

    def _bytes_or_string(self) -> bytes | str:
        if self.kind == "str":
            value: bytes | str = literals.unquote(self.value[1:-1])
        elif self.kind == "bytes":
            value = literals.unquote(self.value[2:-1], escapes=True)
        else:
            self._fail(f"expected a string in quotes, found {self._found()}")
        self._advance()
        return value

    def _integer(self, what: str) -> int:
        if self.kind != "num" or not re.fullmatch(r"[+-]?[0-9]+", self.value):
            self._fail(f"expected {what}, found {self._found()}")
        value = int(self.value)
        if not -(1 << 63) <= value < 1 << 63:
            self._fail(f"{self.value} does not fit 64 bits")
        self._advance()
        return value

    def _pairs(self, entries: Any) -> None:
        self._expect("[", "before pairs of strings")
        while self.kind != "]":
            key = self._string()
            self._expect(":", "between a key and its value")
            entries.add(key=key, value=self._string())
            if not self._take(","):
                break
        self._expect("]", "after pairs of strings")

    def _id_list(self, close: str, where: str) -> list[str]:
        """Returns names separated by commas; nothing between two commas is an empty name."""
        names: list[str] = []
        while True:
            if self.kind in _NAME_KINDS:
                names.append(self._name("a name"))
            elif self.kind == ",":
                names.append("")
            else:
                break
            if not self._take(","):
                break
        if self.kind != close:
            self._fail(f"expected ',' or {close!r} {where}, found {self._found()}")
        self._advance()
        return names

    # -- the whole ----------------------------------------------------------------------------------------------

    def model(self) -> ModelProto:
        """Returns the model; the text ends after it."""
        from onnx import ModelProto

        proto = ModelProto()
        if self.kind == "end":
            self._fail("the text is empty")
        if self._take("<"):
            self._entries(_HEADER_KEYS, "the model's header", lambda key: self._header_entry(proto, key))
        self._graph(proto.graph, ("main",))
        while self.kind != "end":
            self._function(proto.functions.add())
        return proto

    def _entries(self, keys: Sequence[str], where: str, read_value: Any, close: str = ">") -> None:
        """Reads ``key: value, ...`` up to ``close``."""
        while True:
            start, key = self.start, self._name(f"a key of {where}")
            if key not in keys:
                hint = did_you_mean(key, keys) or f"Keys here: {', '.join(keys)}."
                self._fail(f"{key!r} is no key of {where}", at=start, hint=hint)
            self._expect(":", f"after {key!r}")
            read_value(key)
            if not self._take(","):
                break
        if self.kind != close:
            self._fail(f"expected ',' or {close!r} in {where}, found {self._found()}")
        self._advance()

    def _header_entry(self, proto: ModelProto, key: str) -> None:
        if key in ("ir_version", "model_version"):
            setattr(proto, key, self._integer("a number"))
        elif key == "opset_import":
            self._opsets(proto)
        elif key == "metadata_props":
            self._pairs(proto.metadata_props)
        elif key == "training_info":
            self._expect("[", "before training info")
            while self.kind != "]":
                self._training(proto)
                if not self._take(","):
                    break
            self._expect("]", "after training info")
        elif key == "textproto":
            self._textproto(proto)
        else:
            setattr(proto, key, self._string())

    def _opsets(self, proto: ModelProto | FunctionProto) -> None:
        self._expect("[", "before opset imports")
        while self.kind != "]":
            domain = self._string()
            self._expect(":", "between a domain and its version")
            proto.opset_import.add(domain=domain, version=self._integer("an opset version"))
            if not self._take(","):
                break
        self._expect("]", "after opset imports")

    def _training(self, proto: ModelProto) -> None:
        number = len(proto.training_info)
        training = proto.training_info.add()
        keys = ("initialization", "algorithm", "initialization_binding", "update_binding")

        def read_value(key: str) -> None:
            if key in keys[:2]:
                self._graph(getattr(training, key), ("training", number, key))
            else:
                self._pairs(getattr(training, key))

        self._expect("{", "before training info")
        if not self._take("}"):
            self._entries(keys, "training info", read_value, "}")

    def _function(self, function: FunctionProto) -> None:
        def read_value(key: str) -> None:
            if key == "opset_import":
                self._opsets(function)
            elif key == "metadata_props":
                self._pairs(function.metadata_props)
            else:
                setattr(function, key, self._string())

        if self._take("<"):
            self._entries(_FUNCTION_KEYS, "a function's header", read_value)
        start = self.start
        function.name = self._name("the name of a graph or function")
        scope = function_key(function)
        if self._take("<"):
            while True:
                name = self._name("an attribute of the function")
                if self.kind in (":", "="):
                    self._attribute(function.attribute_proto.add(), name, scope, "")
                else:
                    function.attribute.append(name)
                if not self._take(","):
                    break
            self._expect(">", "after the attributes of a function")
        for names, what in ((function.input, "inputs"), (function.output, "outputs")):
            if what == "outputs":
                self._expect("=", "before the outputs of a function")
                self._expect(">", "before the outputs of a function")
            self._expect("(", f"before the {what} of a function")
            while self.kind != ")":
                if self._at_type():
                    info = function.value_info.add()
                    self._value_info(info)
                    names.append(info.name)
                else:
                    names.append(self._name(f"one of a function's {what}"))
                if not self._take(","):
                    break
            self._expect(")", f"after the {what} of a function")
        if self._take("<"):
            while self.kind != ">":
                self._value_info(function.value_info.add())
                if not self._take(","):
                    break
            self._expect(">", "after the value infos of a function")
        self.marks.graphs[scope] = self._line_of(start)
        self._node_list(function, scope)

    def _graph(self, graph: GraphProto, scope: ScopeKey) -> None:
        self.marks.graphs[scope] = self._line_of(self.start)
        graph.name = self._name("the name of a graph")
        if self.kind == "(":
            self._advance()
            while self.kind != ")":
                info = graph.input.add()
                start = self.start
                self._value_info(info)
                if self._take("="):
                    tensor = graph.initializer.add(name=info.name)
                    self._tensor_of(tensor, info.type, (*scope, "initializer", info.name), start)
                    self._extras(tensor)
                if not self._take(","):
                    break
            self._close(")", "the inputs of a graph")
        self._expect("=", "and '>' before the outputs of a graph")
        self._expect(">", "before the outputs of a graph")
        self._expect("(", "before the outputs of a graph")
        marks = self.marks.outputs.setdefault(scope, [])
        while self.kind != ")":
            marks.append(self._line_of(self.start))
            self._value_info(graph.output.add())
            if not self._take(","):
                break
        self._close(")", "the outputs of a graph")
        self._extras(graph)
        if self._take("<"):
            while self.kind != ">":
                self._declaration(graph, scope)
                if not self._take(","):
                    break
            self._close(">", "the initializers and value infos of a graph")
        self._extras(graph)
        self._node_list(graph, scope)

    def _close(self, close: str, what: str) -> None:
        if self.kind != close:
            self._fail(f"expected ',' or {close!r} in {what}, found {self._found()}", hint=self._type_hint())
        self._advance()

    def _type_hint(self) -> str | None:
        """Returns a hint when the word before the current token looks like a misspelt element type."""
        before = re.search(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*$", self.text[max(0, self.start - 80) : self.start])
        if before is None or before[1] in _TYPE_WORDS or before[1] in _WRAPPERS:
            return None
        try:
            number = dtype_number(before[1])
        except UsageError:
            return did_you_mean(before[1], [*_TYPE_WORDS, *_WRAPPERS]) if self.kind in ("[", *_NAME_KINDS) else None
        return f"The text syntax calls this element type {_type_word(number)!r}."

    def _declaration(self, graph: GraphProto, scope: ScopeKey) -> None:
        """Reads a value info or an initializer (whose type is a value info's)."""
        from onnx import ValueInfoProto

        start = self.start
        info = ValueInfoProto()
        self._value_info(info)
        if not self._take("="):
            graph.value_info.append(info)
        elif info.type.WhichOneof("value") == "sparse_tensor_type":
            key = (*scope, "values", info.name), (*scope, "indices", info.name)
            self._sparse(graph.sparse_initializer.add(), info.type, info.name, key, start)
        else:
            tensor = graph.initializer.add(name=info.name)
            self._tensor_of(tensor, info.type, (*scope, "initializer", info.name), start)
            self._extras(tensor)

    def _node_list(self, graph: GraphProto | FunctionProto, scope: ScopeKey) -> None:
        self._expect("{", "before the nodes")
        marks = self.marks.nodes.setdefault(scope, [])
        add = graph.node.add
        while self.kind != "}":
            if self.kind == "end":
                self._fail("expected a node or '}', found the end of the text")
            marks.append(self._line_of(self.start))
            self._node(add(), scope, len(marks) - 1)
        self._advance()

    # -- nodes --------------------------------------------------------------------------------------------------

    def _node(self, node: NodeProto, scope: ScopeKey, position: int) -> None:
        if self._take("["):
            if self.kind != "]":
                node.name = self._name("the name of a node")
            self._expect("]", "after the name of a node")
        outputs = self._id_list("=", "after the outputs of a node")
        node.output.extend(outputs)
        owner = next(filter(None, outputs), f"#{position}")
        parts = [self._name("an operator type")]
        while self._take("."):
            parts.append(self._name("the rest of an operator type"))
        node.op_type = parts.pop()
        if parts:
            node.domain = ".".join(parts)
        if self._take(":"):
            node.overload = self._name("the overload of a function")
        if self._take("<"):
            self._attributes(node, scope, owner)
        self._expect("(", f"before the inputs of {node.op_type}")
        node.input.extend(self._id_list(")", f"after the inputs of {node.op_type}"))
        if not node.attribute and self._take("<"):
            self._attributes(node, scope, owner)
        if self.kind == "@":
            self._extras(node)

    def _attributes(self, node: NodeProto, scope: ScopeKey, owner: str) -> None:
        while True:
            name = self._name("the name of an attribute")
            self._attribute(node.attribute.add(), name, scope, owner)
            if not self._take(","):
                break
        if self.kind != ">":
            self._fail(f"expected ',' or '>' after an attribute of {node.op_type}, found {self._found()}")
        self._advance()

    def _attribute(self, attribute: AttributeProto, name: str, scope: ScopeKey, owner: str) -> None:
        attribute.name = name
        kind = 0
        if self._take(":"):
            start, word = self.start, self._name("the type of an attribute")
            kind = _ATTRIBUTE_TYPES.get(word, 0)
            if not kind and word != "undefined":
                hint = did_you_mean(word, _ATTRIBUTE_TYPES) or f"Attribute types: {', '.join(_ATTRIBUTE_TYPES)}."
                self._fail(f"{word!r} is no type of an attribute", at=start, hint=hint)
        self._expect("=", f"after the attribute {name!r}")
        if self._take("@"):
            attribute.ref_attr_name = self._name("the function attribute that is referred to")
        elif self.kind == "[":
            kind = self._attribute_list(attribute, kind, (*scope, owner))
        else:
            kind = self._attribute_value(attribute, kind, (*scope, owner, name, 0))
        if kind:
            attribute.type = kind  # type: ignore[assignment]
        self._extras(attribute)

    def _attribute_list(self, attribute: AttributeProto, kind: int, owner: ScopeKey) -> int:
        """Reads a list of values; returns the attribute's type."""
        from onnx import AttributeProto

        start = self.start
        self._advance()
        if self.kind == "]":
            if kind not in _SINGULARS:
                hint = f"Write {attribute.name}: ints = [], or another of {', '.join(_plural_words())}."
                self._fail("an empty list needs the type of its elements", at=start, hint=hint)
            self._advance()
            return kind
        wanted = _SINGULARS.get(kind, kind)
        values: list[AttributeProto] = []
        while True:
            element = AttributeProto()
            element.type = self._attribute_value(  # type: ignore[assignment]
                element, wanted, (*owner, attribute.name, len(values))
            )
            values.append(element)
            if not self._take(","):
                break
        self._close("]", "a list of attribute values")
        kinds = {int(each.type) for each in values}
        if kinds == {_INT, _FLOAT}:
            kinds = {_FLOAT}
        if len(kinds) > 1:
            words = " and ".join(sorted(_ATTRIBUTE_WORDS[each] for each in kinds))
            self._fail(f"a list cannot hold {words} together", at=start)
        single = kinds.pop()
        if single == _FLOAT:
            attribute.floats.extend([float(v.i) if v.type == _INT else v.f for v in values])
        else:
            _extend_list(attribute, single, values)
            self._readdress(attribute, single)
        return _PLURALS[single]

    def _readdress(self, attribute: AttributeProto, single: int) -> None:
        """Lets elided tensors that were read outside of ``attribute`` mean the copies of them inside it."""
        if not self.elided or single not in (_TENSOR, _GRAPH, _SPARSE):
            return
        holder = type(attribute)()
        for tensor in _tensors_in(attribute, single):
            said = weights.entries(tensor).get("location", "")
            if said.startswith(_ELIDED):
                self.elided[int(said[len(_ELIDED) :])].tensor = tensor
        del holder

    def _attribute_value(self, attribute: AttributeProto, wanted: int, key: TensorKey) -> int:
        """Reads one value; returns its type (``wanted``, if that is not 0)."""
        start = self.start
        kind = self._any_value(attribute, wanted, key)
        if wanted and kind != wanted:
            self._fail(
                f"attribute {key[-2]!r} is {_with_article(wanted)}, and this is {_with_article(kind)}", at=start
            )
        return kind

    def _any_value(self, attribute: AttributeProto, wanted: int, key: TensorKey) -> int:
        if self.kind == "num" or (self.kind == "id" and self.value.lower() in _SPECIAL_FLOATS and wanted != _GRAPH):
            return self._number(attribute, wanted)
        if self.kind in ("str", "bytes") and wanted != _GRAPH and self._following() != "(":
            value = self._bytes_or_string()
            attribute.s = value.encode() if isinstance(value, str) else value
            return _STRING
        if self.kind == "?" or self._at_type(only=wanted == _TYPE):
            return self._typed_value(attribute, key)
        if self.kind in _NAME_KINDS:
            if self._following() not in ("(", "="):
                hint = did_you_mean(self.value, ("inf", "nan")) or 'A string needs quotes: "..."; a body: name (inputs) => '
                self._fail(f"{self.value!r} is no value of an attribute", hint=self._misspelt_type() or hint)
            self._body(attribute, key)
            return _GRAPH
        self._fail(f"expected the value of an attribute, found {self._found()}")

    def _misspelt_type(self) -> str | None:
        return did_you_mean(self.value, _TYPE_WORDS) if self._following() == "[" else None

    def _number(self, attribute: AttributeProto, wanted: int) -> int:
        token = self.value
        if wanted != _FLOAT and re.fullmatch(r"[+-]?[0-9]+", token):
            attribute.i = self._integer("an integer")
            return _INT
        try:
            attribute.f = literals.parse_float32(token)
        except literals.LiteralError as error:
            self._fail(str(error))
        self._advance()
        return _FLOAT

    def _typed_value(self, attribute: AttributeProto, key: TensorKey) -> int:
        """Reads a type, or the tensor that begins with one."""
        from onnx import TypeProto

        start = self.start
        value = TypeProto()
        self._type(value)
        name = ""
        if self.kind in _NAME_KINDS:
            name = self._name("the name of a tensor")
        if self.kind not in ("{", "=", "dots") and not name:
            attribute.tp.CopyFrom(value)
            self._extras(attribute.tp)
            return _TYPE
        self._take("=")
        if value.WhichOneof("value") == "sparse_tensor_type":
            keys = (*key, "values"), (*key, "indices")
            self._sparse(attribute.sparse_tensor, value, name, keys, start)
            return _SPARSE
        if name:
            attribute.t.name = name
        self._tensor_of(attribute.t, value, (*key, "value"), start)
        self._extras(attribute.t)
        return _TENSOR

    def _body(self, attribute: AttributeProto, key: TensorKey) -> None:
        if self._depth >= MAX_BODY_DEPTH:
            self._fail(f"bodies nested more than {MAX_BODY_DEPTH} deep do not fit the ONNX format")
        self._depth += 1
        self._graph(attribute.g, key)
        self._depth -= 1

    # -- types --------------------------------------------------------------------------------------------------

    def _at_type(self, *, only: bool = False) -> bool:
        if self.kind != "id":
            return False
        if self.value in _TYPE_WORDS or self.value in _WRAPPERS:
            return True
        if not _EXTRA_TYPE.fullmatch(self.value):
            return False
        following = self._following()
        return only or following in ("[", "{", '"', "_") or (following.isascii() and following.isalpha())

    def _value_info(self, info: ValueInfoProto) -> None:
        if self.kind == "?":
            self._advance()
            info.type.SetInParent()
        elif self._at_type():
            self._type(info.type)
        elif self.kind == "id" and self._following() == "[":
            hint = did_you_mean(self.value, [*_TYPE_WORDS, *_WRAPPERS])
            self._fail(f"{self.value!r} is no element type", hint=self._known_type(self.value) or hint)
        info.name = self._name("the name of a value")
        if self.kind == "@":
            self._extras(info)

    def _known_type(self, word: str) -> str | None:
        try:
            return f"The text syntax calls this element type {_type_word(dtype_number(word))!r}."
        except UsageError:
            return None

    def _type(self, value: TypeProto, depth: int = 0) -> None:
        if depth > _MAX_TYPE_DEPTH:
            self._fail(f"types nested more than {_MAX_TYPE_DEPTH} deep are not supported")
        if self._take("?"):
            value.SetInParent()
            return
        start, word = self.start, self._name("a type")
        if word not in _WRAPPERS:
            self._element_type(value.tensor_type, word, start)
            return
        self._expect("(", f"after {word!r}")
        if word == "seq":
            self._type(value.sequence_type.elem_type, depth + 1)
        elif word == "optional":
            self._type(value.optional_type.elem_type, depth + 1)
        elif word == "sparse_tensor":
            self._element_type(value.sparse_tensor_type, self._name("an element type"), start)
        elif word == "map":
            key_start = self.start
            value.map_type.key_type = self._type_number(self._name("the type of a map's keys"), key_start)
            self._expect(",", "between the types of a map")
            self._type(value.map_type.value_type, depth + 1)
        else:
            self._opaque(value)
        self._expect(")", f"after the type in {word!r}")

    def _opaque(self, value: TypeProto) -> None:
        value.opaque_type.SetInParent()
        if self.kind == ")":
            return
        parts = [self._name("the name of an opaque type")]
        while self._take("."):
            parts.append(self._name("the rest of a domain"))
        if self._take(","):
            value.opaque_type.domain = ".".join(parts)
            value.opaque_type.name = self._name("the name of an opaque type")
        else:
            value.opaque_type.name = ".".join(parts)

    def _type_number(self, word: str, start: int) -> int:
        number = _TYPE_WORDS.get(word)
        if number is None:
            if word in ("float32", "float64"):
                return dtype_number(word)
            if word == "undefined":
                return 0
            if re.fullmatch(r"dtype[0-9]{1,9}", word):
                return int(word[5:])
            hint = self._known_type(word) or did_you_mean(word, _TYPE_WORDS)
            self._fail(f"{word!r} is no element type", at=start, hint=hint)
        return number

    def _element_type(self, tensor: Any, word: str, start: int) -> None:
        tensor.elem_type = self._type_number(word, start)
        if not self._take("["):
            tensor.shape.SetInParent()
            return
        if self._take("]"):
            return
        dims = tensor.shape.dim
        while True:
            dim = dims.add()
            if self.kind == "num":
                dim.dim_value = self._integer("a size")
            elif not self._take("?"):
                dim.dim_param = self._name("a size, a name or '?'")
            if not self._take(","):
                break
        self._close("]", "a shape")

    # -- values -------------------------------------------------------------------------------------------------

    def _sparse(
        self, sparse: SparseTensorProto, value: TypeProto, name: str, keys: tuple[TensorKey, TensorKey], start: int
    ) -> None:
        """Reads the two parts of a sparse tensor."""
        from onnx import TypeProto

        shape = value.sparse_tensor_type
        if not shape.HasField("shape") or any(not dim.HasField("dim_value") for dim in shape.shape.dim):
            self._fail("a sparse tensor with values needs a shape of numbers", at=start)
        sparse.dims.extend(dim.dim_value for dim in shape.shape.dim)
        self._expect("{", "before the values and indices of a sparse tensor")
        for part, key in zip((sparse.values, sparse.indices), keys, strict=True):
            if part is sparse.indices:
                self._expect(",", "between the values and the indices of a sparse tensor")
            at = self.start
            part_type = TypeProto()
            self._type(part_type)
            if self.kind in _NAME_KINDS:
                part.name = self._name("the name of a tensor")
            self._take("=")
            self._tensor_of(part, part_type, key, at)
            self._extras(part)
        if sparse.values.data_type != shape.elem_type:
            self._fail("the values of a sparse tensor must have its element type", at=start)
        if name:
            sparse.values.name = name
        self._expect("}", "after the indices of a sparse tensor")

    def _tensor_of(self, tensor: TensorProto, value: TypeProto, key: TensorKey, start: int) -> None:
        """Reads the data of a tensor whose type has been read."""
        if value.WhichOneof("value") != "tensor_type":
            self._fail("only tensors can have values", at=start)
        shape = value.tensor_type
        if not shape.HasField("shape"):
            self._fail("a tensor with values needs a shape; write no brackets for a scalar", at=start)
        for dim in shape.shape.dim:
            if not dim.HasField("dim_value"):
                self._fail("the shape of a tensor with values must be numbers", at=start)
            tensor.dims.append(dim.dim_value)
        tensor.data_type = shape.elem_type
        if self.kind == "dots":
            self._elide(tensor, key, None, self.start)
            self._advance()
        elif self.kind == "{":
            self._data(tensor, key)
        elif self.kind == "[":
            tensor.data_location = type(tensor).EXTERNAL
            self._pairs(tensor.external_data)
            if any(entry.value.startswith((STUB_PREFIX, _ELIDED)) for entry in tensor.external_data):
                self._fail("this location is reserved", at=start)
        else:
            self._fail(f"expected the values of a tensor in braces, found {self._found()}")

    def _elide(self, tensor: TensorProto, key: TensorKey, old_name: str | None, offset: int) -> None:
        tensor.data_location = type(tensor).EXTERNAL
        tensor.external_data.add(key="location", value=f"{_ELIDED}{len(self.elided)}")
        self.elided.append(_Elided(tensor, key, old_name, offset))

    def _data(self, tensor: TensorProto, key: TensorKey) -> None:
        """Reads the values between braces; numbers are taken all at once, not token by token."""
        opened = self.start
        text = self.text
        space = _SPACE.match(text, self.end)
        begin = space.end() if space else self.end
        if text.startswith("...", begin):
            self._advance()
            self._advance()
            old_name = self._string() if self.kind in ("str", "bytes") else None
            self._elide(tensor, key, old_name, opened)
            self._expect("}", "after the dots")
            return
        if tensor.data_type == 8:
            self._strings(tensor)
            return
        if tensor.data_type == 0 or tensor.data_type not in _TYPE_NAMES:
            self._fail(f"element type {_type_word(tensor.data_type)} has no values", at=opened)
        close = text.find("}", begin)
        if close < 0:
            self._fail("the values of a tensor do not end with '}'", at=opened)
        body = text[begin:close]
        if "#" in body:
            close, body = self._without_comments(begin)
        tokens = [token.strip(" \t\n\v\f\r") for token in body.split(",")] if body.strip(" \t\n\v\f\r") else []
        try:
            array = literals.parse_array(tokens, tensor.data_type)
        except literals.LiteralError as error:
            self._fail_in_values(str(error), begin, close, error.index)
        self._check_count(tensor, len(array), opened)
        if not self._patterns_noted:
            self._note_patterns(tensor, tokens)
        tensor.raw_data = _raw(array, tensor.data_type)
        self.end = close + 1
        self._advance()

    def _without_comments(self, begin: int) -> tuple[int, str]:
        """Returns where the values end and their text with comments blanked out."""
        at, pieces = begin, []
        while True:
            match = re.compile(r"[#}]").search(self.text, at)
            if match is None:
                self._fail("the values of a tensor do not end with '}'", at=begin)
            pieces.append(self.text[at : match.start()])
            if match[0] == "}":
                return match.start(), "".join(pieces)
            comment = _COMMENT.match(self.text, match.start())
            assert comment is not None
            pieces.append(" " * len(comment[0]))
            at = comment.end()

    def _fail_in_values(self, message: str, begin: int, close: int, index: int) -> NoReturn:
        blanked = _COMMENT.sub(lambda match: " " * len(match[0]), self.text[begin:close])
        at = 0
        for _ in range(index):
            at = blanked.index(",", at) + 1
        space = _SPACE.match(blanked, at)
        self._fail(message, at=begin + (space.end() if space else at))

    def _note_patterns(self, tensor: TensorProto, tokens: list[str]) -> None:
        if literals.reads_patterns(tokens, tensor.data_type):
            self._patterns_noted = True
            word = _type_word(tensor.data_type)
            self.notes.append(
                f"{self.source}:{self._line_of(self.start)}: integers in a {word} tensor are bit patterns, as in"
                " onnx.parser; write 1.0 for a value"
            )

    def _strings(self, tensor: TensorProto) -> None:
        opened = self.start
        self._advance()
        while self.kind != "}":
            value = self._bytes_or_string()
            tensor.string_data.append(value.encode() if isinstance(value, str) else value)
            if not self._take(","):
                break
        self._close("}", "the values of a string tensor")
        self._check_count(tensor, len(tensor.string_data), opened)

    def _check_count(self, tensor: TensorProto, count: int, opened: int) -> None:
        wanted = math.prod(tensor.dims)
        if count != wanted or any(dim < 0 for dim in tensor.dims):
            shape = f"{_type_word(tensor.data_type)}{list(tensor.dims) or ''}"
            plural = "value" if count == 1 else "values"
            self._fail(f"{count:,} {plural} for a tensor {shape}, which takes {wanted:,}", at=opened)

    # -- what stands beside things ------------------------------------------------------------------------------

    def _extras(self, message: Any) -> None:
        """Reads ``@{...}`` into a message, if it is there."""
        if self.kind != "@":
            return
        self._advance()
        self._expect("{", "after '@'")
        if self._take("}"):
            return
        fields = message.DESCRIPTOR.fields_by_name
        keys = [key for key in _EXTRA_KEYS if key in fields or key == "textproto"]
        if "type" in fields or "denotation" in fields:
            keys += ["denotation", "dim_denotation"]
        self._entries(keys, "these annotations", lambda key: self._extra(message, key), "}")

    def _extra(self, message: Any, key: str) -> None:
        start = self.start
        if key == "doc_string":
            message.doc_string = self._string()
        elif key == "metadata_props":
            self._pairs(message.metadata_props)
        elif key == "textproto":
            self._textproto(message)
        elif key == "quantization_annotation":
            self._quantization(message)
        elif key == "denotation":
            (message.type if hasattr(message, "type") else message).denotation = self._string()
        else:
            self._dim_denotation(message.type if hasattr(message, "type") else message, start)

    def _dim_denotation(self, value: TypeProto, start: int) -> None:
        names = []
        self._expect("[", "before the denotations of dimensions")
        while self.kind != "]":
            names.append(self._string())
            if not self._take(","):
                break
        self._expect("]", "after the denotations of dimensions")
        kind = value.WhichOneof("value")
        dims = getattr(value, kind).shape.dim if kind in ("tensor_type", "sparse_tensor_type") else []
        if len(dims) != len(names):
            self._fail(f"{len(names)} denotations for {len(dims)} dimensions", at=start)
        for dim, name in zip(dims, names, strict=True):
            if name:
                dim.denotation = name

    def _quantization(self, graph: GraphProto) -> None:
        self._expect("[", "before quantization annotations")
        while self.kind != "]":
            annotation = graph.quantization_annotation.add(tensor_name=self._string())
            self._expect(":", "after the name of a tensor")
            self._pairs(annotation.quant_parameter_tensor_names)
            if not self._take(","):
                break
        self._expect("]", "after quantization annotations")

    def _textproto(self, message: Any) -> None:
        from google.protobuf import text_format

        start, text = self.start, self._string()
        try:
            text_format.Merge(text, message)
        except text_format.ParseError as error:
            self._fail(f"this is no textproto of {message.DESCRIPTOR.name}: {error}", at=start)


def _plural_words() -> list[str]:
    return [_ATTRIBUTE_WORDS[kind] for kind in _SINGULARS]


def _with_article(kind: int) -> str:
    word = _ATTRIBUTE_WORDS.get(kind, "undefined").replace("_", " ")
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _extend_list(attribute: AttributeProto, single: int, values: list[AttributeProto]) -> None:
    source, target = _VALUE_FIELDS[single], _VALUE_FIELDS[_PLURALS[single]]
    getattr(attribute, target).extend([getattr(value, source) for value in values])


def _tensors_in(attribute: AttributeProto, single: int) -> Iterator[TensorProto]:
    if single == _TENSOR:
        yield from attribute.tensors
    elif single == _SPARSE:
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
    else:
        for graph in attribute.graphs:
            yield from weights.graph_tensors(graph)


def _raw(array: Any, number: int) -> bytes:
    """Returns the raw data of a flat array, packed as onnx packs its type."""
    from onnx import numpy_helper

    del number  # the array's own dtype says it
    raw: bytes = numpy_helper.from_array(array).raw_data
    return raw


def _error_at(text: str, source: str, offset: int, message: str, hint: str | None) -> SpecError:
    """Returns an error that shows the line and points at the column."""
    start = text.rfind("\n", 0, offset) + 1
    stop = text.find("\n", offset)
    line = text[start : stop if stop >= 0 else len(text)].rstrip("\r")
    number, column = text.count("\n", 0, offset) + 1, offset - start
    left = max(0, column - 70)
    shown = "".join(c if c.isprintable() else " " for c in line[left : left + 110])
    gutter = f"{number} | "
    details = (f"{gutter}{shown}", f"{' ' * (len(gutter) - 2)}| {' ' * (column - left)}^")
    return SpecError(f"{source}:{number}:{column + 1}: {message}", hint=hint, details=details)


# ---------------------------------------------------------------------------------------------------------------
# Putting weights back


def _fill(model: Model, reader: _Reader, original: Model | None) -> None:
    """Puts the values that a text leaves out back in place."""
    if original is None:
        first = reader.elided[0]
        shown = [
            f"line {reader._line_of(each.offset)}: {_describe(each.key)}: {_type_word(each.tensor.data_type)}"
            f"{list(each.tensor.dims)}"
            for each in reader.elided[:5]
        ]
        more = [f"and {len(reader.elided) - 5:,} more"] if len(reader.elided) > 5 else []
        error = _error_at(
            reader.text, reader.source, first.offset, "the values of this tensor are left out",
            "Take them from the model that was shown with --weights-from MODEL, or show it with --weights inline.",
        )  # fmt: skip
        raise SpecError(error.message, hint=error.hint, details=(*error.details, *shown, *more))
    known, ambiguous = _tensor_table(original.proto)
    for each in reader.elided:
        source = _find_original(reader, each, known, ambiguous)
        if source.data_type != each.tensor.data_type or list(source.dims) != list(each.tensor.dims):
            reader._fail(
                f"{_describe(each.key)} is {_type_word(each.tensor.data_type)}{list(each.tensor.dims)} here and "
                f"{_type_word(source.data_type)}{list(source.dims)} in the model its values are taken from",
                at=each.offset,
            )
        copy_data(original, source, each.tensor)
    model.sources.update(original.sources)


def _tensor_table(proto: ModelProto) -> tuple[dict[TensorKey, TensorProto], set[TensorKey]]:
    known: dict[TensorKey, TensorProto] = {}
    ambiguous: set[TensorKey] = set()
    for key, tensor in keyed_tensors(proto):
        for each in (key, ("anywhere", *_leaf(key))):
            if each in known:
                ambiguous.add(each)
            known[each] = tensor
    return known, ambiguous


def _leaf(key: TensorKey) -> TensorKey:
    """Returns the part of a key that names a tensor within its graph."""
    return key[-2:] if key[-2] in ("initializer", "values", "indices") else key[-4:]


def _find_original(
    reader: _Reader, each: _Elided, known: dict[TensorKey, TensorProto], ambiguous: set[TensorKey]
) -> TensorProto:
    leaf, scope = _leaf(each.key), each.key[: -len(_leaf(each.key))]
    if each.old_name is not None:
        leaf = (leaf[0], each.old_name) if len(leaf) == 2 else (each.old_name, *leaf[1:])
    for key in ((*scope, *leaf), ("anywhere", *leaf)):
        if key in known and key not in ambiguous:
            return known[key]
        if key in ambiguous and key[0] != "anywhere":
            break
    where = _describe(each.key)
    if (*scope, *leaf) in ambiguous or ("anywhere", *leaf) in ambiguous:
        reader._fail(
            f"{where}: the model its values are taken from has several tensors of this name", at=each.offset,
            hint="Show the model with --weights inline.",
        )  # fmt: skip
    at = 1 if len(leaf) == 2 else 0
    names = {str(_leaf(key)[at]) for key in known if key[0] != "anywhere" and len(_leaf(key)) == len(leaf)}
    near = did_you_mean(str(leaf[at]), names)
    reader._fail(
        f"{where}: the model its values are taken from has no such tensor", at=each.offset,
        hint=f'{near + " " if near else ""}If it was renamed, write the old name: {{... "old"}}.',
    )  # fmt: skip


def _describe(key: TensorKey) -> str:
    leaf = _leaf(key)
    if len(leaf) == 2:
        return f"{'initializer' if leaf[0] == 'initializer' else f'{leaf[0]} of'} {leaf[1]!r}"
    return f"attribute {leaf[1]!r} of the node that makes {leaf[0]!r}"


def copy_data(original: Model, source: TensorProto, target: TensorProto) -> None:
    """Gives ``target`` the data of ``source``: what is in the structure is copied, what lies outside is referred to."""
    for name in _DATA_FIELDS:
        target.ClearField(name)  # type: ignore[arg-type]
    where = original.byte_range(source)
    if where is not None:
        refer(target, where)
        return
    data = type(source)()
    data.CopyFrom(source)
    for field_, _ in source.ListFields():
        if field_.name not in _DATA_FIELDS:
            data.ClearField(field_.name)  # type: ignore[arg-type]
    target.MergeFrom(data)


def refer(tensor: TensorProto, where: weights.ByteRange) -> None:
    """Makes a tensor refer to bytes of a file, as tensors of a loaded model do."""
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in (("location", f"{STUB_PREFIX}{where.file}"), ("offset", where.offset), ("length", where.length)):
        tensor.external_data.add(key=key, value=str(value))
