"""Two graphs compared that were matched: inputs and outputs, nodes, weights, stated types, names.

What this needs of the comparison of the whole models is where changes are recorded, which kinds count, and how values,
texts and metadata are compared (``_comparison.Comparison``).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from onnxbench.diffing import _tensors
from onnxbench.diffing._matching import Matching
from onnxbench.diffing._report import Change, Rename, rename_changes
from onnxbench.diffing._sides import Side, attribute_key, output_number
from onnxbench.diffing._words import (
    docs,
    docs_or_none,
    node_text,
    operator_text,
    pairs_text,
    stored_text,
    type_texts,
    value_texts,
)
from onnxbench.graph import Scope
from onnxbench.records import attribute_value
from onnxbench.tensortype import format_type

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto

    from onnxbench.diffing._comparison import Comparison

HEAD, ENDS, NODES, WEIGHTS, INFOS, NAMES = range(6)
"""The parts of a graph, in the order of a report."""


class GraphComparison:
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
        place, path = (self._number, HEAD), self._path
        if not self._scope.is_function and a.name != b.name:
            self._add(HEAD, Change("name", path, "graph", a.name, b.name, graph=path))
        self._whole.compare_texts(place, "doc", "doc string of the graph", *docs(a, b), where=path, graph=path)
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
                self._compare_info("type", "input", name, infos.get(name), infos_b.get(partner), ENDS, place)
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
                self._add(ENDS, change, one)
            self._compare_info("type", "output", name, infos.get(name), infos_b.get(name_b), ENDS, one)
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
            self._add(ENDS, change)

    def _add_end(self, kind: str, name: str, info: Any, removed: bool, place: int) -> None:
        text = format_type(info.type) if info is not None and info.HasField("type") else "?"
        before, after = (text, None) if removed else (None, text)
        self._add(ENDS, Change(kind, self._label(name), kind, before, after, graph=self._path), place)

    def _compare_info(self, kind: str, noun: str, name: str, a: Any, b: Any, part: int, *more: int) -> None:
        """Compares two value infos of one tensor: type, doc string, metadata."""
        if a is None or b is None or a is b:
            return
        where, path, place = self._label(name), self._path, (self._number, part, *more)
        before, after = type_texts(a, b)
        if before != after:
            self._add(
                part, Change(kind, where, f"type of {noun}" if noun else "type", before, after, graph=path), *more
            )
        self._whole.compare_texts(place, "doc", f"doc string of {noun or 'tensor'}", *docs(a, b), where, path)
        self._whole.compare_metadata(place, a, b, where, path)
        self._whole.compare_unknown(place, a, b, where, path)

    # ---- nodes

    def _compare_nodes(self) -> None:
        matching = self._matching
        for one, other in enumerate(matching.nodes):
            if other < 0:
                node = self._scope.nodes[one]
                change = self._node_change(self._scope, one, node_text(node), None)
                self._add(NODES, change, one, 0)
            else:
                self._compare_pair(one, other)
        if -1 in matching.nodes_b:
            before = -1
            for other, one in enumerate(matching.nodes_b):
                if one >= 0:
                    before = one
                else:
                    change = self._node_change(self._scope_b, other, None, node_text(self._scope_b.nodes[other]))
                    self._add(NODES, change, before, 1, other)

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
            self._add_node(one, "doc", "doc string", *docs_or_none(node, node_b))
        if len(node.metadata_props) or len(node_b.metadata_props):
            where, place = self._label(self._scope.label(one)), (self._number, NODES, one, 0)
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
            (self._number, NODES, one, 0), node, node_b, self._label(self._scope.label(one)), self._path
        )

    def _add_node(self, one: int, kind: str, what: str, before: Any, after: Any, note: str = "") -> None:
        """Records a change of a node of the first graph."""
        where, op = self._label(self._scope.label(one)), operator_text(self._scope.nodes[one])
        self._add(NODES, Change(kind, where, what, before, after, self._path, op, note), one, 0)

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
        place = (self._number, NODES, one, 0)
        if a.doc_string != b.doc_string:
            self._add_node(one, "doc", f"doc string of attribute {name}", *docs_or_none(a, b))
        self._whole.compare_unknown(place, a, b, self._label(self._scope.label(one)), self._path)
        kind = a.type
        if kind != b.type or a.ref_attr_name or b.ref_attr_name:
            if attribute_key(self._a.model, a) != attribute_key(self._b.model, b):
                self._add_node(one, "attribute", f"attribute {name}", *value_texts(a, b))
        elif kind in (4, 9, 11, 12):
            self._compare_attribute_tensors(one, name, a, b)
        elif kind in (5, 10):
            self._compare_bodies(one, other, name, a, b)
        elif attribute_key(self._a.model, a) != attribute_key(self._b.model, b):
            self._add_node(one, "attribute", f"attribute {name}", *value_texts(a, b))

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
            self._add_node(one, kind, f"attribute {name}", *value_texts(a, b))
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
            self._add_node(one, "attribute", f"attribute {name}", *value_texts(a, b))
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
                change = Change("weight", self._label(name), "weight", stored_text(tensor), graph=self._path)
                self._add(WEIGHTS, change, place, 0)
            else:
                self._compare_weight(place, name, tensor, b.stored[partner])
        for place, (name, tensor) in enumerate(b.stored.items()):
            partner = matching.tensors_b.get(name)
            if partner is None or partner not in a.stored:
                change = Change("weight", self._label(name), "weight", None, stored_text(tensor), self._path)
                self._add(WEIGHTS, change, len(a.stored), 1, place)

    def _compare_weight(self, place: int, name: str, tensor: Any, tensor_b: Any) -> None:
        def report(before: Any, after: Any, note: str) -> None:
            change = Change("weight", self._label(name), "weight", before, after, self._path, note=note)
            self._add(WEIGHTS, change, place, 0)

        self._whole.compare_values("weight", tensor, tensor_b, report)
        one, other = (held.values if _tensors.is_sparse(held) else held for held in (tensor, tensor_b))
        key, where = (self._number, WEIGHTS, place, 0), self._label(name)
        self._whole.compare_texts(key, "doc", "doc string of weight", *docs(one, other), where, self._path)
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
            self._add_annotation(name, pairs_text(texts), None if texts_b is None else pairs_text(texts_b))
        for name, entry in after.items():
            texts = {item.key: item.value for item in entry.quant_parameter_tensor_names}
            self._add_annotation(name, None, pairs_text(texts))

    def _add_annotation(self, name: str, before: str | None, after: str | None) -> None:
        what = "quantization annotation"
        self._add(INFOS, Change("quantization", self._label(name), what, before, after, graph=self._path), 1)

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
                self._compare_info("value-info", "", name, info, other, INFOS, 0)
        for name, info in infos_b.items():
            partner = matching.tensors_b.get(name)
            if partner is None and not _exists(self._a, name) and not _exists(self._b, name):
                partner = name
            if partner is not None and partner not in infos and partner not in ends and name not in ends_b:
                self._add_info(name, None, format_type(info.type))

    def _add_info(self, name: str, before: str | None, after: str | None) -> None:
        self._add(INFOS, Change("value-info", self._label(name), "type", before, after, graph=self._path), 0)

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
        for renames, nouns in ((tensors, "tensors"), (nodes, "nodes")):
            for change in rename_changes(renames, self._path, nouns):
                self._add(NAMES, change)


def _tensors_of(attribute: AttributeProto) -> list[Any]:
    match attribute.type:
        case 4:
            return [attribute.t]
        case 9:
            return list(attribute.tensors)
        case 11:
            return [attribute.sparse_tensor]
    return list(attribute.sparse_tensors)


def _interface(scope: Scope, field: str) -> dict[str, Any]:
    return {} if scope.is_function else {info.name: info for info in getattr(scope.graph, field)}


def _exists(side: Side, name: str) -> bool:
    return name in side.scope.producers or name in side.given or name in side.stored
