"""Items of a specification made into the messages of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxbench import literals
from onnxbench.documents import Document, Item, plain_float, to_integer
from onnxbench.errors import SpecError, UsageError, did_you_mean
from onnxbench.modelspec._tensors import TENSOR_KEYS, TensorContext, fill_tensor
from onnxbench.modeltext import ATTRIBUTE_WORDS, MAX_BODY_DEPTH, Marks, ScopeKey, function_key, read_node
from onnxbench.schemas import attribute_type, default_version, find_schema, plain_domain
from onnxbench.tensortype import dtype_number

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto
    from onnx.defs import OpSchema

GRAPH_KEYS = ("name", "doc", "inputs", "outputs", "initializers", "values", "nodes", "metadata")
MODEL_KEYS = (
    *GRAPH_KEYS, "opset", "ir_version", "functions", "seed", "producer_name", "producer_version", "domain",
    "model_version", "model_doc", "model_metadata",
)  # fmt: skip
NODE_KEYS = ("op", "domain", "overload", "name", "inputs", "outputs", "attributes", "doc", "metadata")
FUNCTION_KEYS = (
    "name", "domain", "overload", "inputs", "outputs", "attributes", "nodes", "values", "opset", "doc", "metadata",
)  # fmt: skip
VALUE_KEYS = ("type", "doc", "metadata")
HINT_KEYS = (
    "int", "float", "string", "tensor", "graph", "type", "ints", "floats", "strings", "tensors", "graphs", "types",
    "ref",
)  # fmt: skip
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
_TENSORS, _GRAPHS, _TYPE, _TYPES = 9, 10, 13, 14
_HINTS = {
    "int": _INT, "float": _FLOAT, "string": _STRING, "tensor": _TENSOR, "graph": _GRAPH, "type": _TYPE, "ints": _INTS,
    "floats": _FLOATS, "strings": _STRINGS, "tensors": _TENSORS, "graphs": _GRAPHS, "types": _TYPES,
}  # fmt: skip
_SINGLES = {
    _INTS: _INT, _FLOATS: _FLOAT, _STRINGS: _STRING, _TENSORS: _TENSOR, _GRAPHS: _GRAPH, _TYPES: _TYPE,
}  # fmt: skip
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision", "precision"}
"""Integer attributes of standard operators that say an element type."""
_WRAPPERS = ("sequence", "seq", "optional", "map", "sparse", "sparse_tensor")
_TYPE_TEXT = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(?:\[(.*)\]|\((.*)\))?\s*", re.DOTALL)
_OPERATOR = re.compile(r"(?:([A-Za-z_][\w.-]*)(?:::|\.))?([A-Za-z_]\w*)")


class SpecReader:
    """Makes a model of the items of a specification.

    Attributes:
        proto: The model.
        marks: The lines of its nodes and outputs.
    """

    def __init__(self, document: Document, context: TensorContext) -> None:
        from onnx import ModelProto

        self.proto: ModelProto = ModelProto()
        self.marks = Marks(document.source, lines=document.lines)
        self._context = context
        self._versions: dict[str, int] = {}
        self._functions: dict[tuple[str, str], Item] = {}
        self._depth = 0

    def model(self, root: Item, *, default_name: str, opset: int | None) -> None:
        """Reads a whole specification into ``proto``."""
        self._model(root.require_map("the specification", MODEL_KEYS), default_name, opset)

    def attribute(self, attribute: AttributeProto, item: Item, wanted: int, versions: dict[str, int]) -> None:
        """Gives one attribute (which has its name) the value of an item.

        Args:
            attribute: The attribute.
            item: The value.
            wanted: The type that the operator states, or 0.
            versions: Opset versions by domain, for nodes in bodies.
        """
        self._attribute(attribute, item, wanted, ("main",), versions, item)

    # -- the whole ----------------------------------------------------------------------------------------------

    def _model(self, root: Item, default_name: str, opset: int | None) -> None:
        proto = self.proto
        seed = root.get("seed")
        if seed is not None:
            number = seed.require_integer("the seed", low=0)
            self._context = TensorContext(self._context.folder, number, self._context.allow_outside)
        said = root.get("ir_version")
        if said is not None:
            proto.ir_version = said.require_integer("the IR version", low=1, high=1 << 31)
        self._versions = self._opsets(root.get("opset"))
        if opset is not None:
            self._versions[""] = opset
        for domain, version in self._versions.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.producer_name = "onnxbench"
        for key in ("producer_name", "producer_version", "domain"):
            text = root.get(key)
            if text is not None:
                setattr(proto, key, text.require_text(key))
        release = root.get("model_version")
        if release is not None:
            proto.model_version = release.require_integer("the model version")
        doc = root.get("model_doc")
        if doc is not None:
            proto.doc_string = doc.require_text("a doc string")
        self._metadata(proto, root.get("model_metadata"))
        functions = root.get("functions")
        for item in functions.require_list("the functions") if functions is not None else []:
            item.require_map("a function", FUNCTION_KEYS)
            self._functions[self._function_name(item)] = item
        self._graph(proto.graph, root, ("main",), default_name)
        for item in functions.items if functions is not None else []:
            self._function(proto.functions.add(), item)

    def _opsets(self, item: Item | None) -> dict[str, int]:
        if item is None:
            return {}
        if item.kind == "map":
            versions = {}
            for domain, _, version in item.pairs():
                name = plain_domain(domain)
                versions[name] = version.require_integer("an opset version", low=1, high=1 << 31)
            return versions
        return {"": item.require_integer("the opset", low=1, high=1 << 31)}

    def _metadata(self, message: Any, item: Item | None) -> None:
        if item is not None:
            for key, _, value in item.require_map("metadata").pairs():
                message.metadata_props.add(key=key, value=value.require_text("a value of metadata"))

    def _function_name(self, item: Item) -> tuple[str, str]:
        name, domain = item.get("name"), item.get("domain")
        if name is None:
            raise item.error("a function needs a name")
        return (domain.require_text("a domain") if domain else "local"), name.require_text("a name")

    def _function(self, function: FunctionProto, item: Item) -> None:
        function.domain, function.name = self._function_name(item)
        for key in ("overload", "doc"):
            said = item.get(key)
            if said is not None:
                setattr(function, "doc_string" if key == "doc" else key, said.require_text(key))
        self._metadata(function, item.get("metadata"))
        function.input.extend(self._names(item.get("inputs"), "the inputs of a function"))
        outputs = item.get("outputs")
        function.output.extend(self._names(outputs, "the outputs of a function"))
        own = {**self._versions, **self._opsets(item.get("opset"))}
        scope = function_key(function)
        self.marks.graphs[scope] = item.line
        self.marks.outputs[scope] = [_line(outputs, at) for at in range(len(function.output))]
        attributes = item.get("attributes")
        if attributes is not None and attributes.kind == "map":
            for name, key_item, value in attributes.pairs():
                if value.kind == "null":
                    function.attribute.append(name)
                else:
                    self._attribute(function.attribute_proto.add(name=name), value, 0, (*scope, ""), own, key_item)
        elif attributes is not None:
            function.attribute.extend(self._names(attributes, "the attributes of a function"))
        self._values(function.value_info, item.get("values"), "the values of a function")
        self._nodes(function, item, scope, own)
        used = {node.domain for node in function.node} | {""}
        for domain in sorted(used | set(self._opsets(item.get("opset")))):
            function.opset_import.add(domain=domain, version=own.get(domain) or default_version(domain))

    # -- graphs -------------------------------------------------------------------------------------------------

    def _graph(self, graph: GraphProto, item: Item, scope: ScopeKey, default_name: str) -> None:
        name = item.get("name")
        graph.name = name.require_text("a name") if name is not None else default_name
        doc = item.get("doc")
        if doc is not None:
            graph.doc_string = doc.require_text("a doc string")
        self._metadata(graph, item.get("metadata"))
        self.marks.graphs[scope] = item.line
        inputs = item.get("inputs")
        if inputs is not None:
            self._values(graph.input, inputs.require_map("the inputs"), "the inputs")
        outputs = item.get("outputs")
        if outputs is None:
            raise item.error("a graph needs outputs", hint="outputs: [y]   or   outputs: {y: 'float32[1, 10]'}")
        self._outputs(graph, outputs, scope)
        tensors = item.get("initializers")
        if tensors is not None:
            for key, _, value in tensors.require_map("the initializers").pairs():
                tensor = graph.initializer.add(name=key)
                fill_tensor(tensor, value, "/".join(map(str, (*scope[1:], key))), self._context)
                self._describe(tensor, value)
        self._values(graph.value_info, item.get("values"), "the values")
        self._nodes(graph, item, scope, self._versions)

    def _describe(self, message: Any, item: Item) -> None:
        """Reads the doc string and metadata that stand in the mapping of a value or tensor."""
        if item.kind == "map":
            doc = item.get("doc")
            if doc is not None:
                message.doc_string = doc.require_text("a doc string")
            self._metadata(message, item.get("metadata"))

    def _outputs(self, graph: GraphProto, item: Item, scope: ScopeKey) -> None:
        if item.kind == "map":
            self._values(graph.output, item, "the outputs")
            self.marks.outputs[scope] = [key_item.line for _, key_item, _ in item.pairs()]
            return
        names = self._names(item, "the outputs")
        for name in names:
            graph.output.add(name=name)
        self.marks.outputs[scope] = [_line(item, at) for at in range(len(names))]

    def _values(self, infos: Any, item: Item | None, what: str) -> None:
        if item is None:
            return
        for name, key_item, value in item.require_map(what).pairs():
            info: ValueInfoProto = infos.add(name=name)
            if value.kind == "map":
                value.require_map("a value", VALUE_KEYS)
                self._describe(info, value)
            said = value.get("type") if value.kind == "map" else value
            if said is not None and said.kind != "null":
                parse_type(info.type, said)
            elif what == "the inputs":
                raise key_item.error(f"input {name!r} needs a type", hint=f"{name}: float32[1, 3, 224, 224]")

    def _names(self, item: Item | None, what: str) -> list[str]:
        """Returns names given as a list, or one of them alone; null is the empty name."""
        if item is None:
            return []
        if item.kind != "list":
            return [item.require_text(f"{what} as a list of names")]
        return [each.require_text(f"one of {what}") for each in item.items]

    # -- nodes --------------------------------------------------------------------------------------------------

    def _nodes(self, graph: GraphProto | FunctionProto, item: Item, scope: ScopeKey, versions: dict[str, int]) -> None:
        nodes = item.get("nodes")
        lines = self.marks.nodes.setdefault(scope, [])
        for each in nodes.require_list("the nodes") if nodes is not None else []:
            lines.append(each.line)
            node = graph.node.add()
            if each.kind == "str":
                self._text_node(node, each)
            else:
                self._node(node, each.require_map("a node", NODE_KEYS), scope, versions, len(lines) - 1)

    def _text_node(self, node: NodeProto, item: Item) -> None:
        source = item.document.source if item.line else f"{item.document.source}: {item.path}"
        line, column, context = item.line or 1, item.column or 1, item.document.lines
        if item.style in ("|", ">"):  # the text begins in the line below, with an indentation that is gone
            line, column, context = line + 1, 1, []
        elif item.style:
            column += 1
        try:
            read_node(item.text, node, source=source, line=line, column=column, context=context)
        except SpecError as error:
            hint = error.hint or "A node as text is: outputs = Operator <attribute = value> (inputs)."
            if item.text.count("(") > item.text.count(")") and item.line and not item.style:
                hint = "Inside of [ ] a comma ends a value: quote the node, or give it a line of its own ('- y = ...')."
            raise SpecError(error.message, hint=hint, details=error.details) from None

    def _node(self, node: NodeProto, item: Item, scope: ScopeKey, versions: dict[str, int], position: int) -> None:
        self._operator(node, item)
        for key in ("name", "overload", "doc"):
            said = item.get(key)
            if said is not None:
                setattr(node, "doc_string" if key == "doc" else key, said.require_text(key))
        self._metadata(node, item.get("metadata"))
        schema = find_schema(node.domain, node.op_type, versions.get(node.domain) or default_version(node.domain))
        callee = self._functions.get((node.domain, node.op_type))
        if callee is not None:
            schema = None
        for key, target in (("inputs", node.input), ("outputs", node.output)):
            said = item.get(key)
            if said is not None and said.kind == "map":
                target.extend(self._by_formal_name(node, said, key, schema, callee))
            else:
                target.extend(self._names(said, f"the {key} of a node"))
        if not any(node.output):
            raise item.error(f"a node of {node.op_type} needs outputs", hint="outputs: [y]")
        attributes = item.get("attributes")
        if attributes is None:
            return
        owner = (*scope, next(filter(None, node.output), f"#{position}"))
        for name, key_item, value in attributes.require_map("the attributes").pairs():
            wanted = attribute_type(schema, name) if schema is not None else 0
            if schema is not None and not wanted:
                hint = did_you_mean(name, schema.attributes) or _listing("It has", sorted(schema.attributes))
                raise key_item.error(f"{node.op_type} has no attribute {name!r}", hint=hint)
            self._attribute(node.attribute.add(name=name), value, wanted, owner, versions, key_item)

    def _operator(self, node: NodeProto, item: Item) -> None:
        said = item.get("op")
        if said is None:
            raise item.error("a node needs an operator", hint="{op: Add, inputs: [a, b], outputs: [c]}")
        text = said.require_text("an operator")
        domain = item.get("domain")
        if domain is not None:
            node.domain, node.op_type = domain.require_text("a domain"), text
            return
        match = _OPERATOR.fullmatch(text)
        if match is None:
            hint = "Write Add, or com.microsoft::FusedConv; other names need op and domain apart."
            raise said.error(f"{text!r} is no operator", hint=hint)
        node.op_type = match[2]
        if match[1]:
            node.domain = match[1]

    def _by_formal_name(
        self, node: NodeProto, item: Item, key: str, schema: OpSchema | None, callee: Item | None
    ) -> list[str]:
        """Returns names in the order of the operator's own names for them: ``{X: image, W: weights}``."""
        if schema is not None:
            formals = [formal.name for formal in (schema.inputs if key == "inputs" else schema.outputs)]
        elif callee is not None:
            formals = self._names(callee.get(key), key)
        else:
            hint = "Give them as a list."
            raise item.error(f"the names of the {key} of {node.op_type} are not known", hint=hint)
        names: list[str] = []
        for name, key_item, value in item.pairs():
            if name not in formals:
                hint = did_you_mean(name, formals) or _listing("It has", formals)
                raise key_item.error(f"{node.op_type} has no {key[:-1]} {name!r}", hint=hint)
            given = self._names(value, f"the {key} of a node")
            at = formals.index(name)
            names += [""] * (at + len(given) - len(names))
            names[at : at + len(given)] = given
        return names

    # -- attributes ---------------------------------------------------------------------------------------------

    def _attribute(
        self, attribute: AttributeProto, item: Item, wanted: int, owner: ScopeKey, versions: dict[str, int], at: Item
    ) -> None:
        """Gives an attribute the value of an item; ``wanted`` is the type that the operator states, or 0."""
        if item.kind == "map" and len(item.entries) == 1:
            (key,) = item.entries
            hinted = item.entries[key][1]
            if key == "ref":
                attribute.ref_attr_name = hinted.require_text("the name of a function's attribute")
                attribute.type = wanted  # type: ignore[assignment]  # the stub wants its enum
                return
            if key in _HINTS:
                if wanted and wanted != _HINTS[key]:
                    raise at.error(f"{attribute.name!r} is of type {ATTRIBUTE_WORDS[wanted]}, and not {key}")
                item, wanted = hinted, _HINTS[key]
        kind = wanted or self._implied_type(item, at)
        attribute.type = kind  # type: ignore[assignment]  # the stub wants its enum
        if kind in _SINGLES:
            single = _SINGLES[kind]
            elements = item.items if item.kind == "list" else [item]
            if kind == _TENSORS and item.kind != "list":
                item.require_list("a list of tensors")
            for number, element in enumerate(elements):
                self._add_element(attribute, element, single, owner, number, versions)
        else:
            self._set_value(attribute, item, kind, owner, versions)

    def _implied_type(self, item: Item, at: Item) -> int:
        """Returns the type of a value of which no operator tells the type."""
        if item.kind == "list":
            kinds = {element.kind for element in item.items}
            if not kinds:
                raise at.error("an empty list needs the type of its elements", hint="{ints: []}, {floats: []}, ...")
            if kinds <= {"int", "bool"}:
                return _INTS
            if kinds <= {"int", "float"}:
                return _FLOATS
            if kinds == {"str"}:
                return _STRINGS
            raise at.error("this list has no one type", hint="Say which: {ints: [...]}, {tensor: [...]}, ...")
        if item.kind == "map":
            if set(item.entries) & {"nodes", "outputs"}:
                return _GRAPH
            if set(item.entries) <= set(TENSOR_KEYS):
                return _TENSOR
        kinds_of = {"int": _INT, "bool": _INT, "float": _FLOAT, "str": _STRING, "array": _TENSOR}
        if item.kind not in kinds_of:
            raise at.error("this value has no type of an attribute", hint=f"Say which: {_listing('one of', HINT_KEYS)}")
        return kinds_of[item.kind]

    def _set_value(
        self, attribute: AttributeProto, item: Item, kind: int, owner: ScopeKey, versions: dict[str, int]
    ) -> None:
        what = f"attribute {attribute.name!r}"
        if kind == _INT:
            is_type = item.kind == "str" and attribute.name in _TYPE_ATTRIBUTES
            attribute.i = _element_type(item) if is_type else item.require_integer(what)
        elif kind == _FLOAT:
            attribute.f = _float32(item, what)
        elif kind == _STRING:
            attribute.s = item.require_text(f"{what} as a string").encode()
        elif kind == _TENSOR:
            fill_tensor(attribute.t, item, "/".join(map(str, (*owner[1:], attribute.name))), self._context)
        elif kind == _GRAPH:
            self._body(attribute.g, item, (*owner, attribute.name, 0))
        elif kind == _TYPE:
            parse_type(attribute.tp, item)
        else:
            hint = "Write this model as ONNX text, which has a form for everything."
            raise item.error(f"{what} is of type {ATTRIBUTE_WORDS.get(kind)}, which YAML has no form for", hint=hint)

    def _add_element(
        self, attribute: AttributeProto, item: Item, single: int, owner: ScopeKey, number: int, versions: dict[str, int]
    ) -> None:
        what = f"an element of attribute {attribute.name!r}"
        if single == _INT:
            attribute.ints.append(item.require_integer(what))
        elif single == _FLOAT:
            attribute.floats.append(_float32(item, what))
        elif single == _STRING:
            attribute.strings.append(item.require_text(f"{what} as a string").encode())
        elif single == _TENSOR:
            path = "/".join(map(str, (*owner[1:], attribute.name, number)))
            fill_tensor(attribute.tensors.add(), item, path, self._context)
        elif single == _GRAPH:
            self._body(attribute.graphs.add(), item, (*owner, attribute.name, number))
        else:
            parse_type(attribute.type_protos.add(), item)

    def _body(self, graph: GraphProto, item: Item, scope: ScopeKey) -> None:
        if self._depth >= MAX_BODY_DEPTH:
            raise item.error(f"bodies nested more than {MAX_BODY_DEPTH} deep do not fit the ONNX format")
        self._depth += 1
        self._graph(graph, item.require_map("a body", GRAPH_KEYS), scope, str(scope[-2]))
        self._depth -= 1


def _line(item: Item | None, position: int) -> int:
    if item is None:
        return 0
    return item.items[position].line if item.kind == "list" else item.line


def _element_type(item: Item) -> int:
    """Returns the number of an element type that an attribute such as Cast's ``to`` names."""
    try:
        return dtype_number(item.text)
    except UsageError as error:
        raise item.error(error.message, hint=error.hint) from None


def _float32(item: Item, what: str) -> float:
    if item.kind not in ("int", "float"):
        raise item.error(f"expected {what} as a number, found {item.described()}")
    text = str(to_integer(item.text)) if item.kind == "int" else plain_float(item.text)
    try:
        return literals.parse_float32(text)
    except literals.LiteralError as error:
        raise item.error(str(error)) from None


def _listing(words: str, names: Sequence[str]) -> str:
    if not names:
        return f"{words} none."
    return f"{words} {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."


def parse_type(value: TypeProto, item: Item) -> None:
    """Reads a type as ``onnxbench`` shows it.

    ``float32[1, 3, height, ?]``, ``float32[]`` (a scalar), ``float32[...]`` (any shape), ``sequence(...)``,
    ``optional(...)``, ``map(int64, ...)``, ``sparse(...)``.

    Raises:
        SpecError: It is no type.
    """
    _parse_type(value, item.require_text("a type"), item, 0)


def _parse_type(value: TypeProto, text: str, item: Item, depth: int) -> None:
    match = _TYPE_TEXT.fullmatch(text)
    if match is None or depth > 16:
        raise item.error(f"{text!r} is no type", hint="A type is float32[1, 3, height, ?], or sequence(int64[...]).")
    word, dims, inner = match.groups()
    if inner is None:
        if word in _WRAPPERS:
            raise item.error(f"{text!r} lacks what it is a {word} of", hint=f"{word}(float32[...])")
        _parse_tensor_type(value.tensor_type, word, dims, text, item)
        return
    if word in ("sequence", "seq"):
        _parse_type(value.sequence_type.elem_type, inner, item, depth + 1)
    elif word == "optional":
        _parse_type(value.optional_type.elem_type, inner, item, depth + 1)
    elif word == "map":
        key, separator, rest = inner.partition(",")
        if not separator:
            raise item.error(f"{text!r} lacks the type of its values", hint="map(int64, float32[...])")
        value.map_type.key_type = _number(key, item)
        _parse_type(value.map_type.value_type, rest, item, depth + 1)
    elif word in ("sparse", "sparse_tensor"):
        tensor = _TYPE_TEXT.fullmatch(inner)
        if tensor is None or tensor[3] is not None:
            raise item.error(f"{text!r} is no type", hint="sparse(float32[9])")
        _parse_tensor_type(value.sparse_tensor_type, tensor[1], tensor[2], inner, item)
    else:
        raise item.error(f"{word!r} is no kind of type", hint=did_you_mean(word, _WRAPPERS))


def _number(word: str, item: Item) -> int:
    try:
        return dtype_number(word)
    except UsageError as error:
        raise item.error(error.message, hint=error.hint) from None


def _parse_tensor_type(tensor: Any, word: str, dims: str | None, text: str, item: Item) -> None:
    tensor.elem_type = _number(word, item)
    if dims is None:
        hint = f"Write {word}[] for a scalar, {word}[...] for any shape, or {word}[1, N, ?]."
        raise item.error(f"{text.strip()!r} has no shape", hint=hint)
    if dims.strip() == "...":
        return
    tensor.shape.SetInParent()
    for part in dims.split(",") if dims.strip() else []:
        size = part.strip()
        dim = tensor.shape.dim.add()
        if size.isascii() and size.isdigit():
            if int(size) >= 1 << 63:
                raise item.error(f"{size} does not fit a dimension")
            dim.dim_value = int(size)
        elif not size or size.startswith("-") or "..." in size:
            hint = "A size is a number, a name, or ? where it is not known."
            raise item.error(f"{size or 'nothing'!r} is no size in {text.strip()!r}", hint=hint)
        elif size != "?":
            dim.dim_param = size
