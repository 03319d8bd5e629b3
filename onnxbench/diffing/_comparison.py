"""Two models compared: what is matched (``_matching``) is looked at field by field, and every difference is a change.

Graphs are taken from outside to inside. The bodies of two nodes are compared if the nodes are the same, with what
their names mean outside; functions beside the main graph, by their names, and those that are left by what they call.
Values are compared last, small ones first, when everything that needs no reading is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.diffing import _tensors
from onnxbench.diffing._matching import Matching
from onnxbench.diffing._report import Change, Rename, rename_changes
from onnxbench.diffing._sides import Ids, Side, attribute_key, output_number
from onnxbench.errors import ModelError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.records import attribute_value, tensor_text
from onnxbench.tensortype import format_type
from onnxbench.version import STAMP

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TypeProto

    from onnxbench.drift import Tolerance
    from onnxbench.model import Model

FunctionKey = tuple[str, str, str]
_MOST_SHOWN = 8
_HEAD, _ENDS, _NODES, _WEIGHTS, _INFOS, _NAMES = range(6)  # the parts of a graph, in the order of a report


class Comparison:
    """Collects the differences of two models.

    Attributes:
        notes: What differs and is no change.
    """

    def __init__(self, a: Model, b: Model, *, ignored: Iterable[str], allowed: Tolerance, names: Sequence[str]) -> None:
        self._a, self._b = a, b
        self._ignored, self._allowed = frozenset(ignored), allowed
        self._ids = Ids()
        self._index_a, self._index_b = _index(a, names[0]), _index(b, names[1])
        self._functions = _pair_functions(self._index_a, self._index_b)
        self._sides_a = self._make_sides(a, self._index_a, names[0], {})
        self._sides_b = self._make_sides(b, self._index_b, names[1], {b: a for a, b in self._functions.items()})
        self._numbers = {scope: number for number, scope in enumerate(self._index_a.scopes, start=1)}
        self._has_unknown = _has_unknown(a) or _has_unknown(b)
        self._found: list[tuple[tuple[int, ...], Change]] = []
        self.notes: list[str] = []
        self._values: list[tuple[int, int, Callable[[], None]]] = []

    def _make_sides(
        self, model: Model, index: GraphIndex, name: str, renamed: dict[FunctionKey, FunctionKey]
    ) -> dict[Scope, Side]:
        def operator(node: NodeProto) -> Hashable:
            key = (_plain_domain(node.domain), node.op_type, node.overload)
            return renamed.get((node.domain, node.op_type, node.overload), key) if renamed else key

        sides: dict[Scope, Side] = {}
        try:
            for scope in reversed(index.scopes):
                sides[scope] = Side(model, scope, self._ids, operator, sides)
        except ModelError as error:
            raise _of_model(error, name) from None
        return sides

    def run(self) -> list[Change]:
        """Returns all changes, in the order of the model."""
        self._compare_models()
        pending = [self._match(self._index_a.main, self._index_b.main)]
        for key, key_b in reversed(self._functions.items()):
            scope, scope_b = self._index_a.functions[key], self._index_b.functions[key_b]
            self._compare_functions(scope, scope_b, key, key_b)
            pending.append(self._match(scope, scope_b))
        while pending:
            matching = pending.pop()
            for scope, scope_b in reversed(_Graphs(self, matching).compare()):
                pending.append(self._match(scope, scope_b, matching))
        for _, _, compare in sorted(self._values, key=lambda task: task[:2]):
            compare()
        return [change for _, change in sorted(self._found, key=lambda found: found[0])]

    def match_main(self) -> Matching:
        """Returns which node and tensor of the main graphs is which."""
        return self._match(self._index_a.main, self._index_b.main)

    def _match(self, scope: Scope, scope_b: Scope, outer: Matching | None = None) -> Matching:
        return Matching(self._sides_a[scope], self._sides_b[scope_b], self._ids, outer)

    # ---- what the comparison of graphs uses

    def add(self, place: tuple[int, ...], change: Change) -> None:
        """Records a change unless its kind is ignored."""
        if change.kind not in self._ignored:
            self._found.append(((*place, len(self._found)), change))

    def looks_at(self, kind: str) -> bool:
        """Tells whether a kind of change is looked at."""
        return kind not in self._ignored

    def number(self, scope: Scope) -> int:
        """Returns where a graph of the first model stands in the report."""
        return self._numbers[scope]

    def compare_values(self, kind: str, a: Any, b: Any, report: Callable[[Any, Any, str], None]) -> None:
        """Compares two stored tensors: types now, values when all else is done.

        Args:
            kind: Which kind of change it would be.
            a: The first tensor, dense or sparse.
            b: The second one.
            report: Is called with what it was, what it is, and how far apart, if they differ.
        """
        if not self.looks_at(kind):
            return
        types = _tensors.type_text(a), _tensors.type_text(b)
        if types[0] != types[1]:
            report(*types, "")
            return

        def compare() -> None:
            found = _tensors.distance(self._a, a, self._b, b, self._allowed)
            if found is not None:
                before, after = (types[0] if _tensors.is_sparse(tensor) else tensor_text(tensor) for tensor in (a, b))
                report(before, after, found.text)

        size = weights.tensor_bytes(a.values if _tensors.is_sparse(a) else a)
        self._values.append((size, len(self._values), compare))

    def compare_texts(
        self, place: tuple[int, ...], kind: str, what: str, before: str, after: str, where: str = "", graph: str = ""
    ) -> None:
        """Compares two texts of which an empty one is none."""
        if before != after:
            self.add(place, Change(kind, where, what, before or None, after or None, graph=graph))

    def compare_metadata(
        self, place: tuple[int, ...], a: Any, b: Any, where: str, graph: str, told: Collection[str] = ()
    ) -> None:
        """Compares the metadata of two messages, entry by entry; those under keys that are ``told`` are only noted."""
        if not len(a.metadata_props) and not len(b.metadata_props):
            return
        before, after = ({entry.key: entry.value for entry in message.metadata_props} for message in (a, b))
        for key in dict.fromkeys((*before, *after)):
            one, other = before.get(key), after.get(key)
            if one == other:
                continue
            if key not in told:
                self.add(place, Change("metadata", where, f"metadata {key}", one, other, graph=graph))
            elif self.looks_at("metadata"):
                words = (value or "none" for value in (one, other))
                self.notes.append(f"metadata {key} is not counted: {' -> '.join(words)}")

    def compare_unknown(self, place: tuple[int, ...], a: Any, b: Any, where: str, graph: str) -> None:
        """Compares the fields of two messages that this version of onnx does not know."""
        if not self._has_unknown:
            return
        before, after = _unknown_fields(a), _unknown_fields(b)
        if before != after:
            one, other = (_unknown_text(fields) for fields in (before, after))
            if one == other:
                other = f"{other}, other values"
            self.add(place, Change("unknown", where, "unknown fields", one, other, graph=graph))

    def default_of(self, node: NodeProto, name: str, scope: Scope, first: bool) -> Hashable:
        """Returns the default of an operator's attribute as a key; None if there is none that is known."""
        from onnx import defs

        while scope.parent is not None:
            scope = scope.parent
        index, model = (self._index_a, self._a) if first else (self._index_b, self._b)
        imports = scope.graph.opset_import if scope.is_function else index.proto.opset_import
        domain = _plain_domain(node.domain)
        versions = [entry.version for entry in imports if _plain_domain(entry.domain) == domain]
        if not versions or index.function_of(node) is not None:
            return None
        try:
            schema = defs.get_schema(node.op_type, max_inclusive_version=max(versions), domain=domain)
        except defs.SchemaError:
            return None
        known = schema.attributes.get(name)
        if known is None or known.default_value.type == 0:
            return None
        return attribute_key(model, known.default_value)

    # ---- whole models and functions

    def _compare_models(self) -> None:
        a, b = self._a.proto, self._b.proto
        place = (0, _HEAD)
        if a.ir_version != b.ir_version:
            self.add(place, Change("ir-version", "", "IR version", a.ir_version, b.ir_version))
        self._compare_imports(place, a, b, "", "")
        producers = [f"{model.producer_name} {model.producer_version}".strip() for model in (a, b)]
        self.compare_texts(place, "producer", "producer", *producers)
        self.compare_texts(place, "producer", "domain", a.domain, b.domain)
        if a.model_version != b.model_version:
            self.add(place, Change("producer", "", "model version", a.model_version, b.model_version))
        self.compare_texts(place, "doc", "doc string", *_docs(a, b))
        self.compare_metadata(place, a, b, "", "", told=(STAMP,))
        self.compare_unknown(place, a, b, "", "")
        for kind, before, after in (
            ("training", a.training_info, b.training_info),
            ("configuration", a.configuration, b.configuration),
        ):
            if len(before) or len(after):
                self._compare_messages(place, kind, list(before), list(after))
        for key in self._index_a.functions:
            if key not in self._functions:
                self._add_function(self._index_a, key, True)
        kept = set(self._functions.values())
        for key in self._index_b.functions:
            if key not in kept:
                self._add_function(self._index_b, key, False)

    def _compare_imports(self, place: tuple[int, ...], a: Any, b: Any, where: str, graph: str) -> None:
        before, after = (
            {_plain_domain(entry.domain): entry.version for entry in owner.opset_import} for owner in (a, b)
        )
        for domain in sorted({*before, *after}):
            one, other = before.get(domain), after.get(domain)
            if one != other:
                self.add(place, Change("opset", where, f"opset {domain or 'ai.onnx'}", one, other, graph=graph))

    def _compare_messages(self, place: tuple[int, ...], kind: str, before: list[Any], after: list[Any]) -> None:
        """Compares messages that are only told apart as a whole."""
        texts, texts_b = (
            [message.SerializeToString(deterministic=True) for message in side] for side in (before, after)
        )
        for number in range(max(len(texts), len(texts_b))):
            one, other = (side[number] if number < len(side) else None for side in (texts, texts_b))
            if one != other:
                words = [None if text is None else f"{len(text):,} bytes" for text in (one, other)]
                if words[0] == words[1]:
                    words[1] = f"{words[1]}, other values"
                self.add(place, Change(kind, "", f"{kind} {number}", words[0], words[1]))

    def _add_function(self, index: GraphIndex, key: FunctionKey, removed: bool) -> None:
        scope = index.functions[key]
        text = f"({', '.join(scope.inputs)}) -> ({', '.join(scope.outputs)}), {_plural(len(scope.nodes), 'node')}"
        before, after = (text, None) if removed else (None, text)
        self.add((0, _NAMES), Change("function", scope.path, "function", before, after))

    def _compare_functions(self, scope: Scope, scope_b: Scope, key: FunctionKey, key_b: FunctionKey) -> None:
        a, b = scope.graph, scope_b.graph
        place, path = (self._numbers[scope], _HEAD), scope.path
        if key != key_b:
            self.add(place, Change("name", path, "function", scope.path, scope_b.path, graph=path))
        self._compare_imports(place, a, b, path, path)
        before, after = self._formals(self._a, a), self._formals(self._b, b)
        for name in dict.fromkeys((*before, *after)):
            one, other = before.get(name, (None, None)), after.get(name, (None, None))
            if one[0] != other[0]:
                self.add(place, Change("attribute", path, f"attribute {name}", one[1], other[1], path))

    @staticmethod
    def _formals(model: Model, function: Any) -> dict[str, tuple[Hashable, Any]]:
        """Returns the attributes that a function takes, each as a key and in words."""
        found: dict[str, tuple[Hashable, Any]] = dict.fromkeys(function.attribute, ("required", "required"))
        for entry in function.attribute_proto:
            found[entry.name] = (attribute_key(model, entry), attribute_value(entry))
        return found


class _Graphs:
    """Compares two graphs that were matched."""

    def __init__(self, whole: Comparison, matching: Matching) -> None:
        self._whole, self._matching = whole, matching
        self._a, self._b = matching.a, matching.b
        self._scope, self._scope_b = matching.a.scope, matching.b.scope
        self._path = self._scope.path
        self._number = whole.number(self._scope)
        self._bodies: list[tuple[Scope, Scope]] = []

    def compare(self) -> list[tuple[Scope, Scope]]:
        """Records every difference; returns the bodies of nodes that are the same."""
        self._compare_heads()
        self._compare_interfaces()
        self._compare_nodes()
        if not self._scope.is_function:
            self._compare_weights()
            self._compare_annotations()
        self._compare_infos()
        self._compare_names()
        return self._bodies

    def _add(self, part: int, change: Change, *more: int) -> None:
        self._whole.add((self._number, part, *more), change)

    def _label(self, name: str) -> str:
        return f"{self._path}/{name}" if self._path else name

    def _compare_heads(self) -> None:
        a, b = self._scope.graph, self._scope_b.graph
        place, path = (self._number, _HEAD), self._path
        if not self._scope.is_function and a.name != b.name:
            self._add(_HEAD, Change("name", path, "graph", a.name, b.name, graph=path))
        self._whole.compare_texts(place, "doc", "doc string of the graph", *_docs(a, b), where=path, graph=path)
        self._whole.compare_metadata(place, a, b, path, path)
        self._whole.compare_unknown(place, a, b, path, path)

    # ---- inputs and outputs

    def _compare_interfaces(self) -> None:
        matching, scope, scope_b = self._matching, self._scope, self._scope_b
        infos, infos_b = _interface(scope, "input"), _interface(scope_b, "input")
        kept = []
        for place, name in enumerate(scope.inputs):
            partner = matching.tensors.get(name)
            if partner is None or partner not in matching.b.given:
                self._add_end("input", name, infos.get(name), True, place)
            else:
                kept.append(partner)
                self._compare_info("type", "input", name, infos.get(name), infos_b.get(partner), _ENDS, place)
        for place, name in enumerate(scope_b.inputs):
            if matching.tensors_b.get(name) not in matching.a.given:
                self._add_end("input", name, infos_b.get(name), False, place)
        now = [name for name in scope_b.inputs if name in set(kept)]
        self._compare_order("inputs", kept, now)
        self._compare_outputs()

    def _compare_outputs(self) -> None:
        matching, scope, scope_b = self._matching, self._scope, self._scope_b
        infos, infos_b = _interface(scope, "output"), _interface(scope_b, "output")
        pairs = self._output_pairs()
        kept = [other for _, other in pairs]
        for one, other in pairs:
            name, name_b = scope.outputs[one], scope_b.outputs[other]
            if matching.meaning_a(name) != matching.meaning_b(name_b):
                before, after = self._sources(name, name_b)
                change = Change("wiring", self._label(name), "output", before, after, graph=self._path)
                self._add(_ENDS, change, one)
            self._compare_info("type", "output", name, infos.get(name), infos_b.get(name_b), _ENDS, one)
        gone, new = set(range(len(scope.outputs))), set(range(len(scope_b.outputs)))
        for one in sorted(gone - {one for one, _ in pairs}):
            self._add_end("output", scope.outputs[one], infos.get(scope.outputs[one]), True, one)
        for other in sorted(new - set(kept)):
            self._add_end("output", scope_b.outputs[other], infos_b.get(scope_b.outputs[other]), False, other)
        names = [scope_b.outputs[other] for other in kept]
        self._compare_order("outputs", names, [scope_b.outputs[other] for other in sorted(kept)])

    def _output_pairs(self) -> list[tuple[int, int]]:
        """Returns which output is which: by name or place (see ``_matching``), then by the tensor, then what is left.

        In the order of the first graph.
        """
        outputs, outputs_b = self._scope.outputs, self._scope_b.outputs
        if (self._scope.parent is not None or self._scope.is_function) and len(outputs) == len(outputs_b):
            return [(place, place) for place in range(len(outputs))]
        places: dict[str, list[int]] = {}
        for other in reversed(range(len(outputs_b))):
            places.setdefault(outputs_b[other], []).append(other)
        pairs: dict[int, int] = {}
        for key in (lambda name: name, self._matching.tensors.get):
            for one, name in enumerate(outputs):
                found = places.get(key(name) or "") if one not in pairs else None
                if found:
                    pairs[one] = found.pop()
        return sorted(pairs.items())

    def _compare_order(self, noun: str, before: list[str], after: list[str]) -> None:
        """Compares the order of what both graphs have, as names of the second one."""
        if before != after:
            change = Change(noun[:-1], self._path, f"order of {noun}", before, after, graph=self._path)
            self._add(_ENDS, change)

    def _add_end(self, kind: str, name: str, info: Any, removed: bool, place: int) -> None:
        text = format_type(info.type) if info is not None and info.HasField("type") else "?"
        before, after = (text, None) if removed else (None, text)
        self._add(_ENDS, Change(kind, self._label(name), kind, before, after, graph=self._path), place)

    def _compare_info(self, kind: str, noun: str, name: str, a: Any, b: Any, part: int, *more: int) -> None:
        """Compares two value infos of one tensor: type, doc string, metadata."""
        if a is None or b is None or a is b:
            return
        where, path, place = self._label(name), self._path, (self._number, part, *more)
        before, after = _type_texts(a, b)
        if before != after:
            self._add(
                part, Change(kind, where, f"type of {noun}" if noun else "type", before, after, graph=path), *more
            )
        self._whole.compare_texts(place, "doc", f"doc string of {noun or 'tensor'}", *_docs(a, b), where, path)
        self._whole.compare_metadata(place, a, b, where, path)
        self._whole.compare_unknown(place, a, b, where, path)

    # ---- nodes

    def _compare_nodes(self) -> None:
        matching = self._matching
        for one, other in enumerate(matching.nodes):
            if other < 0:
                node = self._scope.nodes[one]
                change = self._node_change(self._scope, one, _node_text(node), None)
                self._add(_NODES, change, one, 0)
            else:
                self._compare_pair(one, other)
        if -1 in matching.nodes_b:
            before = -1
            for other, one in enumerate(matching.nodes_b):
                if one >= 0:
                    before = one
                else:
                    change = self._node_change(self._scope_b, other, None, _node_text(self._scope_b.nodes[other]))
                    self._add(_NODES, change, before, 1, other)

    def _node_change(self, scope: Scope, position: int, before: Any, after: Any) -> Change:
        where = self._label(scope.label(position))
        return Change("node", where, "node", before, after, self._path, operator_text(scope.nodes[position]))

    def _compare_pair(self, one: int, other: int) -> None:
        a, b = self._a, self._b
        node, node_b = self._scope.nodes[one], self._scope_b.nodes[other]
        if a.operators[one] != b.operators[other]:
            before, after = operator_text(node), operator_text(node_b)
            self._add_node(one, "op", "op_type", before, after)
        self._compare_inputs(one, a.inputs[one], b.inputs[other])
        if len(node.output) != len(node_b.output) or len(self._scope.writes[one]) != len(self._scope_b.writes[other]):
            self._compare_written(one, list(node.output), list(node_b.output))
        if a.bases[one] != b.bases[other] or len(node.attribute):
            self._compare_attributes(one, other, node, node_b)
        if node.doc_string != node_b.doc_string:
            self._add_node(one, "doc", "doc string", *_docs_or_none(node, node_b))
        if len(node.metadata_props) or len(node_b.metadata_props):
            where, place = self._label(self._scope.label(one)), (self._number, _NODES, one, 0)
            self._whole.compare_metadata(place, node, node_b, where, self._path)
        if len(node.device_configurations) or len(node_b.device_configurations):
            texts = [
                [entry.SerializeToString(deterministic=True) for entry in side.device_configurations]
                for side in (node, node_b)
            ]
            if texts[0] != texts[1]:
                words = [[entry.configuration_id for entry in side.device_configurations] for side in (node, node_b)]
                self._add_node(one, "configuration", "device configurations", words[0] or None, words[1] or None)
        self._whole.compare_unknown(
            (self._number, _NODES, one, 0), node, node_b, self._label(self._scope.label(one)), self._path
        )

    def _add_node(self, one: int, kind: str, what: str, before: Any, after: Any, note: str = "") -> None:
        """Records a change of a node of the first graph."""
        where, op = self._label(self._scope.label(one)), operator_text(self._scope.nodes[one])
        self._add(_NODES, Change(kind, where, what, before, after, self._path, op, note), one, 0)

    def _compare_inputs(self, one: int, inputs: list[str], inputs_b: list[str]) -> None:
        matching = self._matching
        for slot in range(max(len(inputs), len(inputs_b))):
            name = inputs[slot] if slot < len(inputs) else ""
            name_b = inputs_b[slot] if slot < len(inputs_b) else ""
            if name and name_b:
                if matching.tensors.get(name) == name_b or matching.meaning_a(name) == matching.meaning_b(name_b):
                    continue
            elif not name and not name_b:
                continue
            before, after = name or None, name_b or None
            if before == after:
                before, after = self._sources(name, name_b)
            self._add_node(one, "wiring", f"input {slot}", before, after)

    def _compare_written(self, one: int, outputs: list[str], outputs_b: list[str]) -> None:
        for number in range(max(len(outputs), len(outputs_b))):
            name = outputs[number] if number < len(outputs) else ""
            name_b = outputs_b[number] if number < len(outputs_b) else ""
            if bool(name) != bool(name_b):
                self._add_node(one, "wiring", f"output {number}", name or None, name_b or None)

    def _sources(self, name: str, name_b: str) -> tuple[str, str]:
        """Returns what makes a tensor, in words, in both graphs."""
        before, after = self._source(self._a, name), self._source(self._b, name_b)
        return (before, after) if before != after else (f"{before} (before)", f"{after} (another)")

    @staticmethod
    def _source(side: Side, name: str) -> str:
        scope = side.scope
        position = scope.producers.get(name)
        if position is not None:
            return f"{name} of {scope.label(position)}, output {output_number(scope.nodes[position], name)}"
        if name in side.given:
            return f"input {name}"
        return f"weight {name}" if name in side.stored else name

    # ---- attributes

    def _compare_attributes(self, one: int, other: int, node: NodeProto, node_b: NodeProto) -> None:
        before, after = ({entry.name: entry for entry in side.attribute} for side in (node, node_b))
        for name in dict.fromkeys((*before, *after)):
            self._compare_attribute(one, other, name, before.get(name), after.get(name))

    def _compare_attribute(
        self, one: int, other: int, name: str, a: AttributeProto | None, b: AttributeProto | None
    ) -> None:
        if a is None or b is None:
            self._add_attribute(one, other, name, a, b)
            return
        place = (self._number, _NODES, one, 0)
        if a.doc_string != b.doc_string:
            self._add_node(one, "doc", f"doc string of attribute {name}", *_docs_or_none(a, b))
        self._whole.compare_unknown(place, a, b, self._label(self._scope.label(one)), self._path)
        kind = a.type
        if kind != b.type or a.ref_attr_name or b.ref_attr_name:
            if attribute_key(self._a.model, a) != attribute_key(self._b.model, b):
                self._add_node(one, "attribute", f"attribute {name}", *_value_texts(a, b))
        elif kind in (4, 9, 11, 12):
            self._compare_attribute_tensors(one, name, a, b)
        elif kind in (5, 10):
            self._compare_bodies(one, other, name, a, b)
        elif attribute_key(self._a.model, a) != attribute_key(self._b.model, b):
            self._add_node(one, "attribute", f"attribute {name}", *_value_texts(a, b))

    def _add_attribute(
        self, one: int, other: int, name: str, a: AttributeProto | None, b: AttributeProto | None
    ) -> None:
        """Records an attribute that one side alone has, and whether it says no more than the default."""
        kind = "attribute"
        if self._a.operators[one] == self._b.operators[other]:
            if a is not None:
                default = self._whole.default_of(self._scope_b.nodes[other], name, self._scope_b, False)
                known: Hashable = attribute_key(self._a.model, a)
            else:
                default = self._whole.default_of(self._scope.nodes[one], name, self._scope, True)
                known = attribute_key(self._b.model, b) if b is not None else None
            kind = "default" if default is not None and default == known else kind
        before, after = (None if entry is None else attribute_value(entry) for entry in (a, b))
        self._add_node(one, kind, f"attribute {name}", before, after)

    def _compare_attribute_tensors(self, one: int, name: str, a: AttributeProto, b: AttributeProto) -> None:
        tensors, tensors_b = _tensors_of(a), _tensors_of(b)
        kind = "weight" if self._scope.nodes[one].op_type == "Constant" else "attribute"
        if len(tensors) != len(tensors_b):
            self._add_node(one, kind, f"attribute {name}", *_value_texts(a, b))
            return
        for number, (tensor, tensor_b) in enumerate(zip(tensors, tensors_b, strict=True)):
            what = f"attribute {name}" if len(tensors) == 1 else f"attribute {name}[{number}]"

            def report(before: Any, after: Any, note: str, what: str = what) -> None:
                self._add_node(one, kind, what, before, after, note)

            self._whole.compare_values(kind, tensor, tensor_b, report)

    def _compare_bodies(self, one: int, other: int, name: str, a: AttributeProto, b: AttributeProto) -> None:
        bodies, bodies_b = (
            {body.body_name: body for body in scope.bodies.get(position, ())}
            for scope, position in ((self._scope, one), (self._scope_b, other))
        )
        count, count_b = (len(entry.graphs) if entry.type == 10 else 1 for entry in (a, b))
        if count != count_b:
            self._add_node(one, "attribute", f"attribute {name}", *_value_texts(a, b))
        for number in range(min(count, count_b)):
            held = f"{name}[{number}]" if a.type == 10 else name
            if held in bodies and held in bodies_b:
                self._bodies.append((bodies[held], bodies_b[held]))

    # ---- weights

    def _compare_weights(self) -> None:
        a, b, matching = self._a, self._b, self._matching
        for place, (name, tensor) in enumerate(a.stored.items()):
            partner = matching.tensors.get(name)
            if partner is None or partner not in b.stored:
                change = Change("weight", self._label(name), "weight", _stored_text(tensor), graph=self._path)
                self._add(_WEIGHTS, change, place, 0)
            else:
                self._compare_weight(place, name, tensor, b.stored[partner])
        for place, (name, tensor) in enumerate(b.stored.items()):
            partner = matching.tensors_b.get(name)
            if partner is None or partner not in a.stored:
                change = Change("weight", self._label(name), "weight", None, _stored_text(tensor), self._path)
                self._add(_WEIGHTS, change, len(a.stored), 1, place)

    def _compare_weight(self, place: int, name: str, tensor: Any, tensor_b: Any) -> None:
        def report(before: Any, after: Any, note: str) -> None:
            change = Change("weight", self._label(name), "weight", before, after, self._path, note=note)
            self._add(_WEIGHTS, change, place, 0)

        self._whole.compare_values("weight", tensor, tensor_b, report)
        one, other = (held.values if _tensors.is_sparse(held) else held for held in (tensor, tensor_b))
        key, where = (self._number, _WEIGHTS, place, 0), self._label(name)
        self._whole.compare_texts(key, "doc", "doc string of weight", *_docs(one, other), where, self._path)
        self._whole.compare_metadata(key, one, other, where, self._path)
        self._whole.compare_unknown(key, one, other, where, self._path)

    def _compare_annotations(self) -> None:
        before, after = (
            {entry.tensor_name: entry for entry in scope.graph.quantization_annotation}
            for scope in (self._scope, self._scope_b)
        )
        matching = self._matching
        for name, entry in before.items():
            partner = after.pop(matching.tensors.get(name, name), None)
            texts = {item.key: item.value for item in entry.quant_parameter_tensor_names}
            texts_b = None
            if partner is not None:
                texts_b = {item.key: item.value for item in partner.quant_parameter_tensor_names}
                known = {key: matching.meaning_a(value) for key, value in texts.items()}
                if known == {key: matching.meaning_b(value) for key, value in texts_b.items()}:
                    continue
            self._add_annotation(name, _pairs_text(texts), None if texts_b is None else _pairs_text(texts_b))
        for name, entry in after.items():
            texts = {item.key: item.value for item in entry.quant_parameter_tensor_names}
            self._add_annotation(name, None, _pairs_text(texts))

    def _add_annotation(self, name: str, before: str | None, after: str | None) -> None:
        what = "quantization annotation"
        self._add(_INFOS, Change("quantization", self._label(name), what, before, after, graph=self._path), 1)

    # ---- stated types of inner tensors

    def _compare_infos(self) -> None:
        """Compares value infos of tensors that both graphs have; those of others go with the nodes that make them."""
        infos, infos_b = (
            {info.name: info for info in scope.graph.value_info} for scope in (self._scope, self._scope_b)
        )
        if not infos and not infos_b:
            return
        matching = self._matching
        ends, ends_b = ({*scope.inputs, *scope.outputs} for scope in (self._scope, self._scope_b))
        for name, info in infos.items():
            partner = matching.tensors.get(name)
            if partner is None and not _exists(self._a, name) and not _exists(self._b, name):
                partner = name
            if partner is None or name in ends or partner in ends_b:
                continue
            other = infos_b.get(partner)
            if other is None:
                self._add_info(name, format_type(info.type), None)
            else:
                self._compare_info("value-info", "", name, info, other, _INFOS, 0)
        for name, info in infos_b.items():
            partner = matching.tensors_b.get(name)
            if partner is None and not _exists(self._a, name) and not _exists(self._b, name):
                partner = name
            if partner is not None and partner not in infos and partner not in ends and name not in ends_b:
                self._add_info(name, None, format_type(info.type))

    def _add_info(self, name: str, before: str | None, after: str | None) -> None:
        self._add(_INFOS, Change("value-info", self._label(name), "type", before, after, graph=self._path), 0)

    # ---- names

    def _compare_names(self) -> None:
        if not self._whole.looks_at("name"):
            return
        matching = self._matching
        renamed = {name: partner for name, partner in matching.tensors.items() if name != partner}
        tensors = []
        if renamed:
            outputs, outputs_b = set(self._scope.outputs), set(self._scope_b.outputs)
            for name in self._scope.tensor_names():
                partner = renamed.get(name)
                if partner is not None:
                    noun = (
                        "input" if name in self._a.given
                        else "output" if name in outputs and partner in outputs_b
                        else "weight" if name in self._a.stored
                        else "tensor"
                    )  # fmt: skip
                    tensors.append(Rename(noun, self._label(name), name, partner))
        nodes = []
        for one, other in enumerate(matching.nodes):
            if other >= 0:
                name, partner = self._scope.nodes[one].name, self._scope_b.nodes[other].name
                if name != partner:
                    nodes.append(Rename("node", self._label(self._scope.label(one)), name, partner))
        for renames, plural in ((tensors, "tensors"), (nodes, "nodes")):
            for change in rename_changes(renames, self._path, plural):
                self._add(_NAMES, change)


# ---- words


def operator_text(node: NodeProto) -> str:
    """Returns a node's operator with its domain and overload."""
    domain = _plain_domain(node.domain)
    return f"{f'{domain}::' if domain else ''}{node.op_type}{f':{node.overload}' if node.overload else ''}"


def _node_text(node: NodeProto) -> str:
    inputs, outputs = (_listed([name or '""' for name in names]) for names in (node.input, node.output))
    return f"{operator_text(node)}({inputs}) -> {outputs}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_SHOWN
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_SHOWN])}, ... {more:,} more"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _pairs_text(entries: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in entries.items())


def _stored_text(tensor: Any) -> str:
    return _tensors.type_text(tensor) if _tensors.is_sparse(tensor) else tensor_text(tensor)


def _value_texts(a: AttributeProto, b: AttributeProto) -> tuple[Any, Any]:
    """Returns two different attributes as values that differ."""
    before, after = attribute_value(a), attribute_value(b)
    if repr(before) == repr(after):  # another type, or a difference that the words leave out
        names = [
            entry.DESCRIPTOR.enum_types_by_name["AttributeType"].values_by_number[entry.type].name for entry in (a, b)
        ]
        if names[0] != names[1]:
            return f"{before} ({names[0].lower()})", f"{after} ({names[1].lower()})"
        return f"{before}", f"{after} (other bits)"
    return before, after


def _type_texts(a: Any, b: Any) -> tuple[str | None, str | None]:
    """Returns the types of two value infos in words; the same words mean the same type."""
    types = [info.type if info.HasField("type") else None for info in (a, b)]
    before, after = (None if value is None else format_type(value) for value in types)
    if before == after and types[0] is not None and types[1] is not None:
        marks, marks_b = _denotations(types[0]), _denotations(types[1])
        if marks != marks_b:
            return f"{before} {marks}", f"{after} {marks_b}"
    return before, after


def _denotations(value: TypeProto) -> str:
    words = [value.denotation] if value.denotation else []
    kind = value.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        dims = getattr(value, kind).shape.dim
        if any(dim.denotation for dim in dims):
            words.append("[" + ", ".join(dim.denotation or "-" for dim in dims) + "]")
    return " ".join(words)


def _docs(a: Any, b: Any) -> tuple[str, str]:
    before, after = (_text(message.doc_string) for message in (a, b))
    return before, after


def _docs_or_none(a: Any, b: Any) -> tuple[str | None, str | None]:
    before, after = _docs(a, b)
    return before or None, after or None


def _text(value: Any) -> str:
    """Returns a text; protobuf hands out bytes where it is not UTF-8."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _tensors_of(attribute: AttributeProto) -> list[Any]:
    match attribute.type:
        case 4:
            return [attribute.t]
        case 9:
            return list(attribute.tensors)
        case 11:
            return [attribute.sparse_tensor]
    return list(attribute.sparse_tensors)


def _plain_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _interface(scope: Scope, field: str) -> dict[str, Any]:
    return {} if scope.is_function else {info.name: info for info in getattr(scope.graph, field)}


def _exists(side: Side, name: str) -> bool:
    return name in side.scope.producers or name in side.given or name in side.stored


# ---- models


def _index(model: Model, name: str) -> GraphIndex:
    try:
        return GraphIndex(model.proto)
    except ModelError as error:
        raise _of_model(error, name) from None


def _of_model(error: ModelError, name: str) -> ModelError:
    """Returns an error that says which of the two models it is about."""
    return ModelError(f"{name}: {error.message}", hint=error.hint, details=error.details)


def _pair_functions(a: GraphIndex, b: GraphIndex) -> dict[FunctionKey, FunctionKey]:
    """Returns which function is which: those called the same, then those that alone do the same."""
    pairs = {key: key for key in a.functions if key in b.functions}
    left = {key: scope for key, scope in a.functions.items() if key not in pairs}
    left_b = {key: scope for key, scope in b.functions.items() if key not in pairs}
    if left and left_b:
        found: dict[Hashable, tuple[list[FunctionKey], list[FunctionKey]]] = {}
        for number, side in enumerate((left, left_b)):
            for key, scope in side.items():
                found.setdefault(_outline(scope, side), ([], []))[number].append(key)
        pairs |= {ones[0]: others[0] for ones, others in found.values() if len(ones) == len(others) == 1}
    return {key: pairs[key] for key in a.functions if key in pairs}


def _outline(scope: Scope, renamed: dict[FunctionKey, Scope]) -> Hashable:
    """Returns what a function calls in order, whatever it and others that are called anew are called."""
    operators = tuple(
        "?" if (key := (node.domain, node.op_type, node.overload)) in renamed else key for node in scope.nodes
    )
    return len(scope.inputs), len(scope.outputs), operators


def _has_unknown(model: Model) -> bool:
    """Tells whether a model has fields that this version of onnx does not know."""
    copy = type(model.proto)()
    copy.CopyFrom(model.proto)
    size = int(copy.ByteSize())
    copy.DiscardUnknownFields()
    return int(copy.ByteSize()) != size


def _unknown_fields(message: Any) -> list[tuple[int, int, Any]]:
    from google.protobuf.unknown_fields import UnknownFieldSet

    return _unknown_values(UnknownFieldSet(message))


def _unknown_values(fields: Any) -> list[tuple[int, int, Any]]:
    """Returns unknown fields as plain values; a group is the list of its own (protobuf bounds how deep they nest)."""
    return [
        (
            field.field_number,
            field.wire_type,
            field.data if isinstance(field.data, (int, bytes)) else _unknown_values(field.data),
        )
        for field in fields
    ]


def _unknown_text(fields: list[tuple[int, int, Any]]) -> str | None:
    return ", ".join(f"field {number}" for number, _, _ in fields) or None
