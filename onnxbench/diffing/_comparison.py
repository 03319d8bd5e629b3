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
from onnxbench.diffing._graphs import HEAD, NAMES, GraphComparison
from onnxbench.diffing._matching import Matching
from onnxbench.diffing._report import Change
from onnxbench.diffing._sides import Ids, Side, attribute_key
from onnxbench.diffing._words import docs
from onnxbench.drift import BITWISE, Tolerance
from onnxbench.errors import ModelError
from onnxbench.graph import GraphIndex, Scope, root_of
from onnxbench.messages import copy_of
from onnxbench.records import attribute_value, tensor_text
from onnxbench.schemas import find_schema, plain_domain
from onnxbench.version import STAMP
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.model import Model

FunctionKey = tuple[str, str, str]


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
        self._within = 0

    def _make_sides(
        self, model: Model, index: GraphIndex, name: str, renamed: dict[FunctionKey, FunctionKey]
    ) -> dict[Scope, Side]:
        def operator(node: NodeProto) -> Hashable:
            key = (plain_domain(node.domain), node.op_type, node.overload)
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
            for scope, scope_b in reversed(GraphComparison(self, matching).compare()):
                pending.append(self._match(scope, scope_b, matching))
        for _, _, compare in sorted(self._values, key=lambda task: task[:2]):
            compare()
        if self._within and self._allowed != BITWISE:
            words = "1 weight differs" if self._within == 1 else f"{self._within:,} weights differ"
            self.notes.append(f"{words} within the tolerance and {'is' if self._within == 1 else 'are'} not counted")
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
            if found is not None and not found.differing:
                self._within += 1
            elif found is not None:
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
        root = root_of(scope)
        index, model = (self._index_a, self._a) if first else (self._index_b, self._b)
        imports = root.graph.opset_import if root.is_function else index.proto.opset_import
        domain = plain_domain(node.domain)
        versions = [entry.version for entry in imports if plain_domain(entry.domain) == domain]
        if not versions or index.function_of(node) is not None:
            return None
        schema = find_schema(domain, node.op_type, max(versions))
        known = schema.attributes.get(name) if schema is not None else None
        if known is None or known.default_value.type == 0:
            return None
        return attribute_key(model, known.default_value)

    # ---- whole models and functions

    def _compare_models(self) -> None:
        a, b = self._a.proto, self._b.proto
        place = (0, HEAD)
        if a.ir_version != b.ir_version:
            self.add(place, Change("ir-version", "", "IR version", a.ir_version, b.ir_version))
        self._compare_imports(place, a, b, "", "")
        producers = [f"{model.producer_name} {model.producer_version}".strip() for model in (a, b)]
        self.compare_texts(place, "producer", "producer", *producers)
        self.compare_texts(place, "producer", "domain", a.domain, b.domain)
        if a.model_version != b.model_version:
            self.add(place, Change("producer", "", "model version", a.model_version, b.model_version))
        self.compare_texts(place, "doc", "doc string", *docs(a, b))
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
            {plain_domain(entry.domain): entry.version for entry in owner.opset_import} for owner in (a, b)
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
        text = f"({', '.join(scope.inputs)}) -> ({', '.join(scope.outputs)}), {plural(len(scope.nodes), 'node')}"
        before, after = (text, None) if removed else (None, text)
        self.add((0, NAMES), Change("function", scope.path, "function", before, after))

    def _compare_functions(self, scope: Scope, scope_b: Scope, key: FunctionKey, key_b: FunctionKey) -> None:
        a, b = scope.graph, scope_b.graph
        place, path = (self._numbers[scope], HEAD), scope.path
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
    copy = copy_of(model.proto)
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
