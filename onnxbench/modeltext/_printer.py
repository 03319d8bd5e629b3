"""Printing a model as text; see ``onnxbench.modeltext`` for the syntax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench import literals
from onnxbench.errors import ModelError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.modeltext._syntax import (
    ATTRIBUTE_WORDS,
    FLOAT,
    FLOATS,
    GRAPH,
    GRAPHS,
    IDENTIFIER,
    INT,
    INTS,
    RESERVED,
    SPARSE,
    SPARSES,
    SPECIAL_FLOATS,
    STRING,
    STRINGS,
    TENSOR,
    TENSORS,
    TYPE,
    TYPE_WORDS,
    TYPES,
    VALUE_FIELDS,
    WRAPPERS,
    is_repeated,
    leftover_fields,
    printable,
    type_word,
)
from onnxbench.modeltext._values import ValuePrinter, Weights
from onnxbench.tensortype import format_type

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

_WIDE = 110  # characters; longer signatures get one line per value


class _Names(dict[str, str]):
    """Tensor and node names as they are printed, each looked at once."""

    def __missing__(self, name: str) -> str:
        if isinstance(name, bytes):  # what protobuf returns for a string that is not UTF-8
            raise ModelError(f"the model has a name that is not UTF-8 text: {name!r}")
        plain = IDENTIFIER.fullmatch(name) and name not in TYPE_WORDS and name not in WRAPPERS
        if plain and not RESERVED.fullmatch(name) and name.lower() not in SPECIAL_FLOATS:
            text = name
        else:
            text = literals.quote(name)
        self[name] = text
        return text


class Printer:
    """Prints one model; see ``onnxbench.modeltext.lines``."""

    def __init__(
        self, model: Model, mode: Weights, max_elements: int, notes: list[str], *, metadata: bool = True
    ) -> None:
        self._model = model
        self._metadata = metadata
        self._notes = notes
        self._names = _Names()
        self._ops: dict[tuple[str, str], str] = {}
        self._one_line = False
        self._values = ValuePrinter(model, mode, max_elements, notes)
        self.undescribed = 0
        """How many doc strings and metadata entries were left out, as asked."""

    # -- the whole ----------------------------------------------------------------------------------------------

    def whole(self) -> Iterator[str]:
        """Yields a whole model."""
        proto = self._model.proto
        self._note_unknown_fields(proto)
        yield from self._header(proto)
        yield from self._graph(proto.graph, "", "", "")
        for function in proto.functions:
            yield ""
            yield from self.function(function)
        count, size = self._values.left_out, self._values.left_out_bytes
        if count:
            origin = self._model.origin
            name = printable(origin.name) if origin else "MODEL"
            yield (
                f"# The values of {count:,} tensor{'s' if count > 1 else ''} ({size:,} bytes) are left out:"
                f" build with --weights-from {name}"
            )

    def _header(self, proto: ModelProto) -> Iterator[str]:
        entries: list[list[str]] = []
        if proto.HasField("ir_version"):
            entries.append([f"ir_version: {proto.ir_version}"])
        if proto.opset_import:
            entries.append([f"opset_import: {self._opsets(proto)}"])
        texts = [key for key in ("producer_name", "producer_version", "domain") if proto.HasField(key)]
        entries += [[f"{key}: {literals.quote(getattr(proto, key))}"] for key in texts]
        if proto.HasField("model_version"):
            entries.append([f"model_version: {proto.model_version}"])
        if proto.HasField("doc_string") and self._is_shown(1):
            entries.append([f"doc_string: {literals.quote(proto.doc_string)}"])
        if proto.metadata_props and self._is_shown(len(proto.metadata_props)):
            pairs = [f"{literals.quote(p.key)}: {literals.quote(p.value)}" for p in proto.metadata_props]
            short = sum(map(len, pairs)) < _WIDE
            entries.append(
                [f"metadata_props: [{', '.join(pairs)}]"] if short
                else ["metadata_props: [", *_joined([f"   {pair}" for pair in pairs]), "]"]
            )  # fmt: skip
        entries += [[extra] for extra in _leftovers(proto)]
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
            graphs = [key for key in ("initialization", "algorithm") if training.HasField(key)]
            bindings = [key for key in ("initialization_binding", "update_binding") if getattr(training, key)]
            entries: list[Iterable[str]] = [
                *(self._graph(getattr(training, key), f"{key}: ", "", "      ") for key in graphs),
                *([f"      {key}: {_pairs(getattr(training, key))}"] for key in bindings),
            ]
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
        entries += _leftovers(function)
        if function.HasField("doc_string") and self._is_shown(1):
            entries.append(f"doc_string: {literals.quote(function.doc_string)}")
        if function.metadata_props and self._is_shown(len(function.metadata_props)):
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
        values = self._values.text_of(tensor)
        tail = self._tail(self._extras(tensor)) + separator + self._comment(values.comment)
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
        word = type_word(sparse.values.data_type)
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
        tail = self._tail(extras)
        if not node.attribute:
            yield f"{indent}{label}{outputs} = {operator} ({inputs}){tail}"
            return
        comments: list[str] = []
        if not any(attribute.type in (GRAPH, GRAPHS) for attribute in node.attribute):
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
        name = op_type if IDENTIFIER.fullmatch(op_type) else literals.quote(op_type)
        text = self._ops[domain, op_type] = f"{_dotted(domain)}.{name}" if domain else name
        return text

    def _attribute_lines(self, attribute: AttributeProto, indent: str, separator: str, place: str) -> Iterator[str]:
        kind = attribute.type
        if kind not in (GRAPH, GRAPHS) or attribute.ref_attr_name:
            comments: list[str] = []
            text = self._attribute(attribute, place, comments)
            yield f"{indent}{text}{separator}{self._comment('; '.join(comments))}"
            return
        self._note_other_values(attribute, place)
        tail = self._tail(self._extras(attribute))
        head = f"{self._names[attribute.name]}: {ATTRIBUTE_WORDS[kind]} = "
        if kind == GRAPH:
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
        head = f"{self._names[attribute.name]}: {ATTRIBUTE_WORDS.get(kind, 'undefined')} = "
        if attribute.ref_attr_name:
            return f"{head}@{self._names[attribute.ref_attr_name]}{self._tail(self._extras(attribute))}"
        if kind == INT:
            text = str(attribute.i)
        elif kind == INTS:
            text = f"[{', '.join(map(str, attribute.ints))}]"
        elif kind == FLOAT:
            text = literals.float32_text(attribute.f)
        elif kind == FLOATS:
            text = f"[{', '.join(self._floats(attribute))}]"
        elif kind == STRING:
            text = literals.quote(attribute.s)
        elif kind == STRINGS:
            text = f"[{', '.join(map(literals.quote, attribute.strings))}]"
        else:
            text = self._large_attribute(attribute, kind, comments)
        if attribute.doc_string:
            text += self._tail(self._extras(attribute))
        return head + text

    def _floats(self, attribute: AttributeProto) -> list[str]:
        import numpy as np

        return literals.array_texts(np.array(attribute.floats, np.float32), FLOAT)

    def _large_attribute(self, attribute: AttributeProto, kind: int, comments: list[str]) -> str:
        name = attribute.name
        if kind == TENSOR:
            return self._inline_tensor(attribute.t, attribute.t.name, name, comments)
        if kind == TENSORS:
            each = (self._inline_tensor(t, t.name, name, comments) for t in attribute.tensors)
            return f"[{', '.join(each)}]"
        if kind == SPARSE:
            return self._sparse(attribute.sparse_tensor, attribute.sparse_tensor.values.name, comments)
        if kind == SPARSES:
            return f"[{', '.join(self._sparse(s, s.values.name, comments) for s in attribute.sparse_tensors)}]"
        if kind == TYPE:
            return self._typed(attribute.tp)
        if kind == TYPES:
            return f"[{', '.join(map(self._typed, attribute.type_protos))}]"
        graphs = [attribute.g] if kind == GRAPH else list(attribute.graphs)
        self._one_line = True
        texts = [" ".join(line.strip() for line in self._graph(graph, "", "", "")) for graph in graphs]
        self._one_line = False
        return texts[0] if kind == GRAPH else f"[{', '.join(texts)}]"

    def _guess_type(self, attribute: AttributeProto, place: str) -> int:
        """Returns the type of an attribute that states none (as IR version 1 allowed), by the value it has."""
        present = {field.name for field, _ in attribute.ListFields()}
        for kind, name in VALUE_FIELDS.items():
            if name in present:
                self._notes.append(
                    f"{place}: attribute {attribute.name!r} states no type; the text says {ATTRIBUTE_WORDS[kind]}"
                )
                return kind
        if not attribute.ref_attr_name:
            self._notes.append(f"{place}: attribute {attribute.name!r} has neither a type nor a value; the text says 0")
            return INT
        return 0

    def _note_other_values(self, attribute: AttributeProto, place: str) -> None:
        known = 2 + (attribute.doc_string != "") + (attribute.ref_attr_name != "")
        fields = attribute.ListFields()
        if len(fields) <= known:
            return
        own = VALUE_FIELDS.get(attribute.type, "") if not attribute.ref_attr_name else ""
        kept = {"name", "type", "doc_string", "ref_attr_name", own}
        others = [each.name for each, _ in fields if each.name not in kept]
        if others and attribute.type:
            listed = ", ".join(others)
            self._notes.append(f"{place}: attribute {attribute.name!r} also has {listed}, which is not in the text")

    # -- values and types ---------------------------------------------------------------------------------------

    def _value_info(self, info: ValueInfoProto) -> str:
        name = self._names[info.name]
        extras = self._extras(info)
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
            return f"map({type_word(value.map_type.key_type)}, {self._inner(value.map_type.value_type)})"
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
        word = type_word(tensor.elem_type)
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
        word = type_word(tensor.data_type)
        return f"{word}[{','.join(map(str, tensor.dims))}]" if tensor.dims else word

    def _inline_tensor(self, tensor: TensorProto, name: str, label: str, comments: list[str]) -> str:
        values = self._values.text_of(tensor)
        if values.comment:
            comments.append(f"{label}: {values.comment}")
        shown = f" {self._names[name]} =" if name else ""
        extras = self._tail(self._extras(tensor))
        return f"{self._tensor_type(tensor)}{shown} {{{', '.join(values.rows)}}}{extras}"

    # -- what stands beside things ------------------------------------------------------------------------------

    def _extras(self, message: Any) -> list[str]:
        """Returns what the line of a node, value, tensor, attribute or graph has no place for."""
        extras = []
        if message.doc_string and self._is_shown(1):
            extras.append(f"doc_string: {literals.quote(message.doc_string, one_line=True)}")
        pairs = getattr(message, "metadata_props", None)
        if pairs and self._is_shown(len(pairs)):
            extras.append(f"metadata_props: {_pairs(pairs)}")
        extras += _leftovers(message)
        return extras

    def _is_shown(self, count: int) -> bool:
        """Tells whether metadata is printed; where it is not, that many entries are counted as left out."""
        self.undescribed += 0 if self._metadata else count
        return self._metadata

    def _tail(self, extras: list[str]) -> str:
        return f" @{{{', '.join(extras)}}}" if extras else ""

    def _comment(self, text: str) -> str:
        return f"  # {text}" if text and not self._one_line else ""

    def _note_unknown_fields(self, proto: ModelProto) -> None:
        """Notes fields that this version of onnx does not know; their bytes are in no text."""
        known = copy_of(proto)
        known.DiscardUnknownFields()
        lost = proto.ByteSize() - known.ByteSize()
        if lost > 0:
            places = _with_unknown_fields(proto)
            listed = f"{', '.join(places[:4])}{f' and {len(places) - 4:,} more' if len(places) > 4 else ''}"
            self._notes.append(f"fields that onnx does not know ({lost:,} bytes: in {listed}) are not in the text")

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
                    yield f"# {printable(scope.path)}"
                yield from self._declared(scope, set(names))
                for position in sorted(set(positions)):
                    yield from self._node(scope.nodes[position], "", scope.path)

    def _declared(self, scope: Scope, names: set[str]) -> Iterator[str]:
        graph = scope.graph
        if scope.is_function:
            yield from (self._names[name] for name in scope.inputs if name in names)
            return
        for info in graph.input:
            if info.name in names:
                yield f"{self._value_info(info)}  # input"
        for tensor in graph.initializer:
            if tensor.name in names:
                yield from self._initializer(tensor, "", "")
        for sparse in graph.sparse_initializer:
            if sparse.values.name in names:
                yield self._sparse_initializer(sparse, "", "")


def _with_unknown_fields(proto: ModelProto) -> list[str]:
    """Returns the messages that have unknown fields, by type and name."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    found = []
    stack: list[Any] = [proto]
    while stack:
        message = stack.pop()
        if len(UnknownFieldSet(message)):
            name = getattr(message, "name", "")
            found.append(f"{message.DESCRIPTOR.name}{f' {name!r}' if name else ''}")
        for field, value in message.ListFields():
            if field.message_type is not None:
                stack.extend(reversed(value) if is_repeated(field) else [value])
    return found


def _dotted(domain: str) -> str:
    return domain if all(map(IDENTIFIER.fullmatch, domain.split("."))) else literals.quote(domain)


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


def _leftovers(message: Any) -> list[str]:
    """Returns the fields of a message that the syntax has no form for, as a ``textproto`` entry if there are any."""
    part = None
    for name, repeated in leftover_fields(message.DESCRIPTOR):
        if getattr(message, name) if repeated else message.HasField(name):
            part = part if part is not None else type(message)()
            part.MergeFrom(type(message)(**{name: getattr(message, name)}))
    if part is None:
        return []
    from google.protobuf import text_format

    text = text_format.MessageToString(part, as_one_line=True)
    return [f"textproto: {literals.quote(text, one_line=True)}"]
