"""Reading a model from text: functions, graphs, nodes and attributes; see ``onnxbench.modeltext`` for the syntax."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxbench import literals
from onnxbench.errors import did_you_mean
from onnxbench.modeltext._originals import ScopeKey, TensorKey, function_key
from onnxbench.modeltext._parts import PartsReader
from onnxbench.modeltext._syntax import (
    ATTRIBUTE_TYPES,
    ATTRIBUTE_WORDS,
    FLOAT,
    GRAPH,
    INT,
    MAX_BODY_DEPTH,
    PLURALS,
    SINGULARS,
    SPARSE,
    SPECIAL_FLOATS,
    STRING,
    TENSOR,
    TYPE,
    TYPE_WORDS,
    VALUE_FIELDS,
)
from onnxbench.modeltext._tokens import NAME_KINDS, Lines

if TYPE_CHECKING:
    from onnx import (
        AttributeProto,
        FunctionProto,
        GraphProto,
        ModelProto,
        NodeProto,
    )


@dataclass(slots=True)
class Marks:
    """Lines of a specification, from 1, that errors point at.

    Attributes:
        source: The file, as the user named it.
        nodes: By graph: the line of each node, in the order of the protobuf message.
        outputs: By graph: the line of each output.
        graphs: By graph: the line it starts at.
        lines: The specification itself, to be quoted; empty if there is no file.
    """

    source: str
    nodes: dict[ScopeKey, list[int]] = field(default_factory=dict)
    outputs: dict[ScopeKey, list[int]] = field(default_factory=dict)
    graphs: dict[ScopeKey, int] = field(default_factory=dict)
    lines: Sequence[str] = ()


_HEADER_KEYS = (
    "ir_version", "opset_import", "producer_name", "producer_version", "domain", "model_version", "doc_string",
    "metadata_props", "training_info", "textproto",
)  # fmt: skip
_FUNCTION_KEYS = ("domain", "overload", "opset_import", "doc_string", "metadata_props", "textproto")


class Reader(PartsReader):
    """Reads one text, with a method per rule of the grammar.

    Attributes:
        marks: Lines of what was read.
    """

    def __init__(
        self, text: str, source: str, *, first_line: int = 1, first_column: int = 1, context: Sequence[str] = ()
    ) -> None:
        super().__init__(text, source, first_line=first_line, first_column=first_column, context=context)
        self.marks = Marks(source, lines=Lines(text))
        self._depth = 0

    def _id_list(self, close: str, where: str) -> list[str]:
        """Returns names separated by commas; nothing between two commas is an empty name."""
        names: list[str] = []
        while True:
            if self.kind in NAME_KINDS:
                names.append(self.name("a name"))
            elif self.kind == ",":
                names.append("")
            else:
                break
            if not self.take(","):
                break
        if self.kind != close:
            hint = (
                None
                if self.kind in (*NAME_KINDS, "end")
                else 'Names of other than letters, digits and _ are quoted: "a.b/c:0".'
            )
            raise self.error(f"expected ',' or {close!r} {where}, found {self.found()}", hint=hint)
        self.advance()
        return names

    # -- the whole ----------------------------------------------------------------------------------------------

    def model(self) -> ModelProto:
        """Returns the model; the text ends after it."""
        from onnx import ModelProto

        proto = ModelProto()
        if self.kind == "end":
            raise self.error("the text is empty")
        if self.take("<"):
            self._entries(_HEADER_KEYS, "the model's header", lambda key: self._header_entry(proto, key))
        self._graph(proto.graph, ("main",))
        while self.kind != "end":
            self._function(proto.functions.add())
        return proto

    def functions_alone(self) -> list[FunctionProto]:
        """Returns the functions that the text consists of."""
        from onnx import FunctionProto

        found: list[FunctionProto] = []
        while self.kind != "end":
            function = FunctionProto()
            self._function(function)
            found.append(function)
        if not found:
            raise self.error("the text is empty")
        return found

    def node_alone(self, node: NodeProto) -> None:
        """Reads one node; the text ends after it."""
        self._node(node, ("main",), 0)
        if self.kind != "end":
            raise self.error(f"expected the end of the node, found {self.found()}")

    def _header_entry(self, proto: ModelProto, key: str) -> None:
        if key in ("ir_version", "model_version"):
            setattr(proto, key, self.integer("a number"))
        elif key == "opset_import":
            self._opsets(proto)
        elif key == "metadata_props":
            self._pairs(proto.metadata_props)
        elif key == "training_info":
            self.expect("[", "before training info")
            while self.kind != "]":
                self._training(proto)
                if not self.take(","):
                    break
            self.expect("]", "after training info")
        elif key == "textproto":
            self._textproto(proto)
        else:
            self._text(proto, key)

    def _opsets(self, proto: ModelProto | FunctionProto) -> None:
        self.expect("[", "before opset imports")
        while self.kind != "]":
            domain = self.string()
            self.expect(":", "between a domain and its version")
            proto.opset_import.add(domain=domain, version=self.integer("an opset version"))
            if not self.take(","):
                break
        self.expect("]", "after opset imports")

    def _training(self, proto: ModelProto) -> None:
        number = len(proto.training_info)
        training = proto.training_info.add()
        keys = ("initialization", "algorithm", "initialization_binding", "update_binding")

        def read_value(key: str) -> None:
            if key in keys[:2]:
                self._graph(getattr(training, key), ("training", number, key))
            else:
                self._pairs(getattr(training, key))

        self.expect("{", "before training info")
        if not self.take("}"):
            self._entries(keys, "training info", read_value, "}")

    def _function(self, function: FunctionProto) -> None:
        def read_value(key: str) -> None:
            if key == "opset_import":
                self._opsets(function)
            elif key == "metadata_props":
                self._pairs(function.metadata_props)
            elif key == "doc_string":
                self._text(function, key)
            elif key == "textproto":
                self._textproto(function)
            else:
                setattr(function, key, self.string())

        if self.take("<"):
            self._entries(_FUNCTION_KEYS, "a function's header", read_value)
        start = self.start
        function.name = self.name("the name of a graph or function")
        scope = function_key(function)
        if self.take("<"):
            while True:
                name = self.name("an attribute of the function")
                if self.kind in (":", "="):
                    self._attribute(function.attribute_proto.add(), name, scope, "")
                else:
                    function.attribute.append(name)
                if not self.take(","):
                    break
            self.expect(">", "after the attributes of a function")
        for names, what in ((function.input, "inputs"), (function.output, "outputs")):
            if what == "outputs":
                self.expect("=", "before the outputs of a function")
                self.expect(">", "before the outputs of a function")
            self.expect("(", f"before the {what} of a function")
            while self.kind != ")":
                if self._at_type():
                    info = function.value_info.add()
                    self._value_info(info)
                    names.append(info.name)
                else:
                    names.append(self.name(f"one of a function's {what}"))
                if not self.take(","):
                    break
            self.expect(")", f"after the {what} of a function")
        if self.take("<"):
            while self.kind != ">":
                self._value_info(function.value_info.add())
                if not self.take(","):
                    break
            self.expect(">", "after the value infos of a function")
        self.marks.graphs[scope] = self.line_of(start)
        self._node_list(function, scope)

    def _graph(self, graph: GraphProto, scope: ScopeKey) -> None:
        self.marks.graphs[scope] = self.line_of(self.start)
        graph.name = self.name("the name of a graph")
        if self.kind == "(":
            self.advance()
            while self.kind != ")":
                info = graph.input.add()
                start = self.start
                self._value_info(info)
                if self.take("="):
                    tensor = graph.initializer.add(name=info.name)
                    self._tensor_of(tensor, info.type, (*scope, "initializer", info.name), start)
                    self._extras(tensor)
                if not self.take(","):
                    break
            self._close(")", "the inputs of a graph")
        self.expect("=", "and '>' before the outputs of a graph")
        self.expect(">", "before the outputs of a graph")
        self.expect("(", "before the outputs of a graph")
        marks = self.marks.outputs.setdefault(scope, [])
        while self.kind != ")":
            marks.append(self.line_of(self.start))
            self._value_info(graph.output.add())
            if not self.take(","):
                break
        self._close(")", "the outputs of a graph")
        self._extras(graph)
        if self.take("<"):
            while self.kind != ">":
                self._declaration(graph, scope)
                if not self.take(","):
                    break
            self._close(">", "the initializers and value infos of a graph")
        self._extras(graph)
        self._node_list(graph, scope)

    def _declaration(self, graph: GraphProto, scope: ScopeKey) -> None:
        """Reads a value info or an initializer (whose type is a value info's)."""
        from onnx import ValueInfoProto

        start = self.start
        info = ValueInfoProto()
        self._value_info(info)
        if not self.take("="):
            graph.value_info.append(info)
        elif info.type.WhichOneof("value") == "sparse_tensor_type":
            key = (*scope, "values", info.name), (*scope, "indices", info.name)
            self._sparse(graph.sparse_initializer.add(), info.type, info.name, key, start)
        else:
            tensor = graph.initializer.add(name=info.name)
            self._tensor_of(tensor, info.type, (*scope, "initializer", info.name), start)
            self._extras(tensor)

    def _node_list(self, graph: GraphProto | FunctionProto, scope: ScopeKey) -> None:
        self.expect("{", "before the nodes")
        marks = self.marks.nodes.setdefault(scope, [])
        add = graph.node.add
        while self.kind != "}":
            if self.kind == "end":
                raise self.error("expected a node or '}', found the end of the text")
            marks.append(self.line_of(self.start))
            self._node(add(), scope, len(marks) - 1)
        self.advance()

    # -- nodes --------------------------------------------------------------------------------------------------

    def _node(self, node: NodeProto, scope: ScopeKey, position: int) -> None:
        if self.take("["):
            if self.kind != "]":
                node.name = self.name("the name of a node")
            self.expect("]", "after the name of a node")
        outputs = self._id_list("=", "after the outputs of a node")
        node.output.extend(outputs)
        owner = next(filter(None, outputs), f"#{position}")
        parts = [self.name("an operator type")]
        while self.take("."):
            parts.append(self.name("the rest of an operator type"))
        node.op_type = parts.pop()
        if parts:
            node.domain = ".".join(parts)
        if self.take(":"):
            node.overload = self.name("the overload of a function")
        if self.take("<"):
            self._attributes(node, scope, owner)
        self.expect("(", f"before the inputs of {node.op_type}")
        node.input.extend(self._id_list(")", f"after the inputs of {node.op_type}"))
        if not node.attribute and self.take("<"):
            self._attributes(node, scope, owner)
        if self.kind == "@":
            self._extras(node)

    def _attributes(self, node: NodeProto, scope: ScopeKey, owner: str) -> None:
        while True:
            name = self.name("the name of an attribute")
            self._attribute(node.attribute.add(), name, scope, owner)
            if not self.take(","):
                break
        if self.kind != ">":
            raise self.error(f"expected ',' or '>' after an attribute of {node.op_type}, found {self.found()}")
        self.advance()

    def _attribute(self, attribute: AttributeProto, name: str, scope: ScopeKey, owner: str) -> None:
        attribute.name = name
        kind = 0
        if self.take(":"):
            start, word = self.start, self.name("the type of an attribute")
            kind = ATTRIBUTE_TYPES.get(word, 0)
            if not kind and word != "undefined":
                hint = did_you_mean(word, ATTRIBUTE_TYPES) or f"Attribute types: {', '.join(ATTRIBUTE_TYPES)}."
                raise self.error(f"{word!r} is no type of an attribute", at=start, hint=hint)
        self.expect("=", f"after the attribute {name!r}")
        if self.take("@"):
            attribute.ref_attr_name = self.name("the function attribute that is referred to")
        elif self.kind == "[":
            kind = self._attribute_list(attribute, kind, (*scope, owner))
        else:
            kind = self._attribute_value(attribute, kind, (*scope, owner, name, 0))
        if kind:
            attribute.type = kind  # type: ignore[assignment]  # the stub wants its enum
        self._extras(attribute)

    def _attribute_list(self, attribute: AttributeProto, kind: int, owner: ScopeKey) -> int:
        """Reads a list of values; returns the attribute's type."""
        from onnx import AttributeProto

        start = self.start
        self.advance()
        if self.kind == "]":
            if kind not in SINGULARS:
                hint = f"Write {attribute.name}: ints = [], or another of {', '.join(_plural_words())}."
                raise self.error("an empty list needs the type of its elements", at=start, hint=hint)
            self.advance()
            return kind
        wanted = SINGULARS.get(kind, kind)
        values: list[AttributeProto] = []
        while True:
            element = AttributeProto()
            element.type = self._attribute_value(  # type: ignore[assignment]  # the stub wants its enum
                element, wanted, (*owner, attribute.name, len(values))
            )
            values.append(element)
            if not self.take(","):
                break
        self._close("]", "a list of attribute values")
        kinds = {int(each.type) for each in values}
        if kinds == {INT, FLOAT}:
            kinds = {FLOAT}
        if len(kinds) > 1:
            words = " and ".join(sorted(ATTRIBUTE_WORDS[each] for each in kinds))
            raise self.error(f"a list cannot hold {words} together", at=start)
        single = kinds.pop()
        if single == FLOAT:
            attribute.floats.extend([float(v.i) if v.type == INT else v.f for v in values])
        else:
            _extend_list(attribute, single, values)
        return PLURALS[single]

    def _attribute_value(self, attribute: AttributeProto, wanted: int, key: TensorKey) -> int:
        """Reads one value; returns its type (``wanted``, if that is not 0)."""
        start = self.start
        kind = self._any_value(attribute, wanted, key)
        if wanted and kind != wanted:
            raise self.error(
                f"attribute {key[-2]!r} is {_with_article(wanted)}, and this is {_with_article(kind)}", at=start
            )
        return kind

    def _any_value(self, attribute: AttributeProto, wanted: int, key: TensorKey) -> int:
        if self.kind == "num" or (self.kind == "id" and self.value.lower() in SPECIAL_FLOATS and wanted != GRAPH):
            return self._number(attribute, wanted)
        if self.kind in ("str", "bytes") and wanted != GRAPH and self.following() != "(":
            attribute.s = self.any_string()
            return STRING
        if self.kind == "?" or self._at_type(only=wanted == TYPE):
            return self._typed_value(attribute, key)
        if self.kind in NAME_KINDS:
            if self.following() not in ("(", "="):
                hint = "A string needs quotes; a body is name (inputs) => (outputs) {...}."
                hint = self._misspelt_type() or did_you_mean(self.value, ("inf", "nan")) or hint
                raise self.error(f"{self.value!r} is no value of an attribute", hint=hint)
            self._body(attribute, key)
            return GRAPH
        raise self.error(f"expected the value of an attribute, found {self.found()}")

    def _misspelt_type(self) -> str | None:
        return did_you_mean(self.value, TYPE_WORDS) if self.following() == "[" else None

    def _number(self, attribute: AttributeProto, wanted: int) -> int:
        token = self.value
        if wanted != FLOAT and re.fullmatch(r"[+-]?[0-9]+", token):
            attribute.i = self.integer("an integer")
            return INT
        try:
            attribute.f = literals.parse_float32(token)
        except literals.LiteralError as error:
            raise self.error(str(error)) from None
        self.advance()
        return FLOAT

    def _typed_value(self, attribute: AttributeProto, key: TensorKey) -> int:
        """Reads a type, or the tensor that begins with one."""
        from onnx import TypeProto

        start = self.start
        value = TypeProto()
        self._type(value)
        name = ""
        if self.kind in NAME_KINDS:
            name = self.name("the name of a tensor")
        if self.kind not in ("{", "=", "dots") and not name:
            attribute.tp.CopyFrom(value)
            self._extras(attribute.tp)
            return TYPE
        self.take("=")
        if value.WhichOneof("value") == "sparse_tensor_type":
            keys = (*key, "values"), (*key, "indices")
            self._sparse(attribute.sparse_tensor, value, name, keys, start)
            return SPARSE
        if name:
            attribute.t.name = name
        self._tensor_of(attribute.t, value, (*key, "value"), start)
        self._extras(attribute.t)
        return TENSOR

    def _body(self, attribute: AttributeProto, key: TensorKey) -> None:
        if self._depth >= MAX_BODY_DEPTH:
            raise self.error(f"bodies nested more than {MAX_BODY_DEPTH} deep do not fit the ONNX format")
        self._depth += 1
        self._graph(attribute.g, key)
        self._depth -= 1


def _plural_words() -> list[str]:
    return [ATTRIBUTE_WORDS[kind] for kind in SINGULARS]


def _with_article(kind: int) -> str:
    word = ATTRIBUTE_WORDS.get(kind, "undefined").replace("_", " ")
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _extend_list(attribute: AttributeProto, single: int, values: list[AttributeProto]) -> None:
    source, target = VALUE_FIELDS[single], VALUE_FIELDS[PLURALS[single]]
    getattr(attribute, target).extend([getattr(value, source) for value in values])
