"""Operations on how a model's weights are stored: shared, replaced by random ones, inside or outside of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import literals, weights
from onnxbench.conversion import packed
from onnxbench.draft import Draft
from onnxbench.errors import ExternalDataError, NotFoundError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex, Scope, TensorRef, root_of
from onnxbench.imitation import imitate
from onnxbench.messages import copy_of, delete_named
from onnxbench.operations._base import Effect, Operation, describe_tensor
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART, plain_domain
from onnxbench.steering import is_quantized_data, steering
from onnxbench.tensortype import dtype_bits
from onnxbench.weighing import Stored, statistics, stored_values
from onnxbench.writer import SaveOptions

if TYPE_CHECKING:
    import numpy as np
    from onnx import AttributeProto, TensorProto

_STRING, _BOOL, _COMPLEX64, _COMPLEX128 = 8, 9, 14, 15
_FLOATS = 6  # AttributeProto.FLOATS
_READ = 1 << 23


# -- share -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShareEqualWeights(Operation):
    """Make equal initializers one.

    Two are equal if their type, shape and every bit are. The one that stays is the first, in the outermost graph;
    bodies capture it. Defaults of inputs, outputs, and weights with other quantization annotations stay.

    Attributes:
        at: Selector of the initializers to look at; all, by default.
        min_bytes: Leave smaller ones alone.
    """

    word: ClassVar[str] = "share_equal_weights"
    expects: ClassVar[str] = "optional"

    at: str = ""
    min_bytes: int = 0

    def find(self, draft: Draft) -> list[TensorRef] | None:
        """Returns the initializers that a selector names; None if all are meant."""
        if not self.at:
            return None
        found = [ref for ref in draft.tensors(self.at) if ref.name in ref.scope.constants]
        if not found:
            raise NotFoundError(f"{self.at!r} stands for tensors that are no initializers", hint="weight:* are all.")
        return found

    def apply(self, draft: Draft) -> None:
        """Shares them."""
        chosen = self.find(draft)
        names = None if chosen is None else {(id(ref.scope), ref.name) for ref in chosen}
        twins, saved = _find_twins(draft, names, self.min_bytes)
        for scope, renamed in twins:
            for name, twin in renamed.items():
                draft.record("weight", TensorRef(scope, name).path, "shared", after=twin)
        for scope, renamed in reversed(twins):  # inner graphs first: their scopes stay true
            _replace_by_twins(draft, scope, renamed)
        if saved:
            draft.notes.append(f"{sum(len(renamed) for _, renamed in twins):,} weights of {saved:,} bytes are shared")
        draft.touch()


@dataclass(slots=True)
class _Kept:
    scope: Scope
    name: str


def _find_twins(
    draft: Draft, names: set[tuple[int, str]] | None, min_bytes: int
) -> tuple[list[tuple[Scope, dict[str, str]]], int]:
    """Returns for each graph its initializers that an equal one replaces, and the bytes that this saves."""
    index, is_old = draft.index, draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
    groups: dict[tuple[int, tuple[int, ...], int], list[tuple[Scope, TensorProto]]] = {}
    for scope in index.scopes:
        if scope.is_function:
            continue
        defaults = set() if is_old else set(scope.inputs)
        outputs = set(scope.outputs)
        # What must stay comes first, so that the others become it.
        for tensor in sorted(scope.graph.initializer, key=lambda each: each.name not in outputs):
            size = weights.tensor_bytes(tensor)
            chosen = names is None or (id(scope), tensor.name) in names
            if chosen and size >= min_bytes and tensor.name not in defaults:
                groups.setdefault((tensor.data_type, tuple(tensor.dims), size), []).append((scope, tensor))
    annotations = {
        id(scope): {each.tensor_name: each for each in scope.graph.quantization_annotation}
        for scope in index.scopes
        if not scope.is_function
    }
    found: dict[int, dict[str, str]] = {}
    saved = 0
    for group in groups.values():
        if len(group) < 2:
            continue
        kept: dict[bytes, list[_Kept]] = {}
        digests: dict[weights.ByteRange, bytes] = {}
        for scope, tensor in group:
            known = kept.setdefault(_digest(draft, tensor, digests), [])
            twin = None
            if tensor.name not in scope.outputs:
                twin = next((each for each in known if _can_be(scope, tensor.name, each, annotations)), None)
            if twin is None:
                known.append(_Kept(scope, tensor.name))
            else:
                found.setdefault(id(scope), {})[tensor.name] = twin.name
                saved += weights.tensor_bytes(tensor)
    return [(scope, found[id(scope)]) for scope in index.scopes if id(scope) in found], saved


def _digest(draft: Draft, tensor: TensorProto, digests: dict[weights.ByteRange, bytes]) -> bytes:
    """Returns a digest of the bytes of a tensor, each range read once and in blocks."""
    where = draft.model.byte_range(tensor)
    if where is None:
        if tensor.data_type == _STRING:
            parts = b"".join(b"%d:%s" % (len(text), text) for text in tensor.string_data)
            return hashlib.blake2b(parts).digest()
        data = tensor.raw_data if tensor.HasField("raw_data") else packed(draft.model.array(tensor).reshape(-1))
        return hashlib.blake2b(data).digest()
    if where not in digests:
        digest, left = hashlib.blake2b(), where.length
        with open(where.file, "rb") as file:
            file.seek(where.offset)
            while left > 0 and (block := file.read(min(left, _READ))):
                digest.update(block)
                left -= len(block)
        if left:
            raise ExternalDataError(f"{where.file} ended in the middle of tensor {tensor.name!r}")
        digests[where] = digest.digest()
    return digests[where]


def _can_be(scope: Scope, name: str, twin: _Kept, annotations: Mapping[int, Mapping[str, Any]]) -> bool:
    """Tells whether what reads a weight of a graph can read an equal one instead."""
    around: Scope | None = scope
    while around is not None and around is not twin.scope:
        if around.defines(twin.name):
            return False
        around = around.parent
    if around is None:
        return False
    pending = [scope]
    while pending:  # nor may a body that captures the weight have something of its own that is called like the twin
        inner = pending.pop()
        for position in inner.consumers.get(name, ()):
            for body in inner.bodies.get(position, ()):
                if name in body.captures:
                    if body.defines(twin.name):
                        return False
                    pending.append(body)
    said, other = annotations[id(scope)].get(name), annotations[id(twin.scope)].get(twin.name)
    if said is None:
        return True
    return other is not None and list(said.quant_parameter_tensor_names) == list(other.quant_parameter_tensor_names)


def _replace_by_twins(draft: Draft, scope: Scope, renamed: dict[str, str]) -> None:
    graph = scope.graph
    draft.replace_uses(scope, renamed)
    for annotation in graph.quantization_annotation:
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = renamed.get(entry.value, entry.value)
    for repeated in (graph.initializer, graph.input, graph.value_info):
        delete_named(repeated, renamed)
    delete_named(graph.quantization_annotation, renamed, by="tensor_name")


# -- strip -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StripWeights(Operation):
    """Replace weights by seeded random values with the same statistics, so that a model can be shared without them.

    Element type, shape, smallest and largest value, mean, standard deviation, shares of zeros, NaN and Inf stay, so
    most bugs do too. What stays as it is, and is listed: integers of more than 8 bits, booleans and strings; whatever
    steers shapes, indices and control flow; scales and zero points; and tensors of few elements. Lists of floats in
    attributes (those of ai.onnx.ml) and the weights of training information are replaced as well. Weights that were
    equal to each other no longer are, unless share_equal_weights made them one before.

    Attributes:
        at: Selector of the weights to replace; all, by default.
        keep: Selector of weights that stay.
        also: Selector of weights to replace although they would stay.
        seed: What the values are derived from, with the name of each weight.
        few: Tensors with at most this many elements stay.
        anonymize: Also rename inner tensors, nodes and functions, and remove documentation and metadata. Inputs and
            outputs keep their names.
    """

    word: ClassVar[str] = "strip_weights"
    expects: ClassVar[str] = "optional"
    effect: ClassVar[Effect] = "numerics"

    at: str = ""
    keep: str = ""
    also: str = ""
    seed: int = 0
    few: int = 16
    anonymize: bool = False

    def find(self, draft: Draft) -> list[TensorRef] | None:
        """Returns the weights that a selector names; None if all are meant."""
        return draft.tensors(self.at) if self.at else None

    def apply(self, draft: Draft) -> None:
        """Replaces them."""
        training = draft.model.proto.training_info
        if training and self.anonymize:
            raise UnsupportedError(
                "this model has training information, which goes by the names of tensors, so they cannot be changed",
                hint="Leave anonymize out; or take a piece of the model, which has no training information: "
                "onnxbench extract MODEL OUT --outputs 'output:*'",
            )
        kept: dict[str, list[str]] = {}
        made: dict[tuple[weights.ByteRange, int], weights.ByteRange] = {}
        count, size = self._replace_in(draft, draft.index, "", kept, made)
        for number, each in enumerate(training) if not self.at else ():
            for word, graph in (("initialization", each.initialization), ("algorithm", each.algorithm)):
                alone = type(draft.model.proto)(opset_import=draft.model.proto.opset_import)
                alone.graph.CopyFrom(graph)
                done = self._replace_in(draft, GraphIndex(alone), f"training_info.{number}/{word}/", kept, made)
                graph.CopyFrom(alone.graph)
                count, size = count + done[0], size + done[1]
        draft.touch()
        draft.notes.append(f"{count:,} weights of {size:,} bytes replaced")
        for reason, names in kept.items():
            more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
            draft.notes.append(f"{len(names):,} stay ({reason}): {', '.join(names[:8])}{more}")
        if self.anonymize:
            anonymize(draft)

    def _replace_in(
        self,
        draft: Draft,
        index: GraphIndex,
        prefix: str,
        kept: dict[str, list[str]],
        made: dict[tuple[weights.ByteRange, int], weights.ByteRange],
    ) -> tuple[int, int]:
        """Replaces the weights of the model, or of a graph of its training information; returns how many and bytes."""
        is_model = index is draft.index
        chosen = self._names(draft, self.at) if self.at else None
        keep, also = (self._names(draft, each) if is_model else set() for each in (self.keep, self.also))
        steers = steering(index)
        count = size = 0
        numbers: dict[str, int] = {}
        for stored in list(stored_values(index)):
            where, path = (id(stored.scope), stored.name), prefix + stored.path
            if chosen is not None and where not in chosen:
                continue
            reason = "kept as asked" if where in keep else None
            if reason is None and where not in also:
                reason = self._reason(stored, steers)
            if reason is None and stored.tensor.data_type in (_STRING, _BOOL):
                reason = f"{stored.dtype} has no statistics"
            if reason is not None:
                kept.setdefault(reason, []).append(path)
                continue
            number = numbers[path] = numbers.get(path, -1) + 1
            self._replace(draft, stored.tensor, f"{path}#{number}" if number else path, made)
            draft.record("weight", path, "values replaced", after=describe_tensor(stored.tensor))
            count, size = count + 1, size + stored.bytes
        if chosen is None:
            lists, numbers_in_lists = self._replace_lists(draft, index, prefix, kept)
            count, size = count + lists, size + 4 * numbers_in_lists
        return count, size

    def _names(self, draft: Draft, selector: str) -> set[tuple[int, str]]:
        return {(id(ref.scope), ref.name) for ref in draft.tensors(selector)} if selector else set()

    def _reason(self, stored: Stored, steers: Mapping[tuple[Scope, str], str]) -> str | None:
        """Returns why a weight stays, or None."""
        number = stored.tensor.data_type
        if number in (_STRING, _BOOL):
            return stored.dtype
        if (stored.scope, stored.name) in steers:
            reason = steers[stored.scope, stored.name]
            return reason.partition(", as ")[0]
        if stored.elements <= self.few:
            return f"at most {self.few} elements"
        if not literals.is_float(number) and dtype_bits(number) > 8 and not _is_quantized(stored):
            return f"{stored.dtype}: indices, shapes and counts"
        if not dtype_bits(number):
            return "an element type that is not known"
        return None

    def _replace(
        self,
        draft: Draft,
        tensor: TensorProto,
        name: str,
        made: dict[tuple[weights.ByteRange, int], weights.ByteRange],
    ) -> None:
        where, number = draft.model.byte_range(tensor), tensor.data_type
        if where is not None and (where, number) in made:
            draft.model.refer(tensor, made[where, number])
            return
        looked_at, elements = tensor, 1
        for size in tensor.dims:
            elements *= size
        if number in (_COMPLEX64, _COMPLEX128):  # as the floats that it consists of
            looked_at = copy_of(tensor)
            looked_at.data_type, number, elements = (1 if number == _COMPLEX64 else 11), *_parts(number, elements)
            looked_at.dims[:] = [elements]
        like = statistics(draft.model, looked_at)
        if like is None or not elements:
            return
        drawn = (packed(block) for block in imitate(like, number, elements, name, self.seed))
        draft.model.store(tensor, drawn, weights.tensor_bytes(tensor))
        now = draft.model.byte_range(tensor)
        if where is not None and now is not None:
            made[where, tensor.data_type] = now

    def _replace_lists(
        self, draft: Draft, index: GraphIndex, prefix: str, kept: dict[str, list[str]]
    ) -> tuple[int, int]:
        """Replaces long lists of floats in attributes, and returns how many there were and their elements."""
        lists = elements = 0
        for ref in index.nodes():
            for attribute in ref.node.attribute:
                if attribute.type == _FLOATS and len(attribute.floats) > self.few:
                    self._replace_list(draft, prefix + ref.path, attribute)
                    lists, elements = lists + 1, elements + len(attribute.floats)
                elif max(len(attribute.ints), len(attribute.strings)) > self.few:
                    kept.setdefault("lists of integers or strings", []).append(f"{prefix}{ref.path}.{attribute.name}")
        return lists, elements

    def _replace_list(self, draft: Draft, path: str, attribute: AttributeProto) -> None:
        import numpy as np
        from onnx import TensorProto

        values = np.array(attribute.floats, np.float32)
        like = statistics(draft.model, TensorProto(data_type=1, dims=[values.size], raw_data=values.tobytes()))
        assert like is not None
        name = f"{path}.{attribute.name}"
        drawn: list[np.ndarray] = list(imitate(like, 1, values.size, name, self.seed))
        attribute.floats[:] = np.concatenate(drawn).tolist()
        draft.record("node", path, f"attribute {attribute.name}", before=f"{values.size} floats", after="replaced")


def _parts(number: int, elements: int) -> tuple[int, int]:
    return (1 if number == _COMPLEX64 else 11), 2 * elements


def _is_quantized(stored: Stored) -> bool:
    """Tells whether every reader of an integer weight takes it for quantized numbers."""
    readers = 0
    for position in stored.scope.consumers.get(stored.name, ()):
        node = stored.scope.nodes[position]
        for slot, name in enumerate(node.input):
            if name == stored.name:
                readers += 1
                if not is_quantized_data(node.op_type, slot):
                    return False
        if position in stored.scope.bodies:
            return False
    return readers > 0


# -- anonymize ---------------------------------------------------------------------------------------------------


def anonymize(draft: Draft) -> None:
    """Renames whatever is inside of a model, and removes documentation and metadata.

    Names of inputs and outputs stay, those of dimensions, operators and attributes too. One pass over the model.
    """
    proto, index = draft.model.proto, draft.index
    is_old = proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
    functions = {key: f"F{number}" for number, key in enumerate(index.functions)}
    names: dict[int, dict[str, str]] = {}
    taken = {name for scope in index.scopes for name in (*scope.inputs, *scope.outputs)}
    count = 0

    def fresh() -> str:
        nonlocal count
        while (name := f"t{count}") in taken:
            count += 1
        count += 1
        return name

    for scope in index.scopes:
        fixed: set[str] = set()
        if scope is index.main:
            fixed = {*scope.outputs, *(scope.true_inputs() if is_old else scope.inputs)}
        names[id(scope)] = {name: name if name in fixed else fresh() for name in scope.tensor_names()}
    number = 0
    for scope in index.scopes:
        for node in scope.nodes:
            _anonymize_node(scope, node, names, f"n{number}")
            number += 1
            key = (node.domain, node.op_type, node.overload)
            if key in functions:
                node.domain, node.op_type = _OWN_DOMAIN, functions[key]
                node.ClearField("overload")
    for scope in index.scopes:
        _anonymize_graph(scope, names)
    _anonymize_model(draft, functions, index)
    draft.record("model", "", "anonymized", after=f"{count:,} tensors and {number:,} nodes have other names")
    draft.touch()


_OWN_DOMAIN = "local"


def _now(scope: Scope, name: str, names: Mapping[int, Mapping[str, str]]) -> str:
    around: Scope | None = scope
    while around is not None:
        if name in names[id(around)]:
            return names[id(around)][name]
        around = around.parent
    return name


def _silence(message: Any) -> None:
    message.ClearField("doc_string")
    message.ClearField("metadata_props")


def _anonymize_node(scope: Scope, node: Any, names: Mapping[int, Mapping[str, str]], name: str) -> None:
    for repeated in (node.input, node.output):
        for position, each in enumerate(repeated):
            if each:
                repeated[position] = _now(scope, each, names)
    node.name = name
    _silence(node)
    node.ClearField("device_configurations")
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        for held in _held(attribute):
            held.ClearField("name")
            _silence(held)


def _held(attribute: AttributeProto) -> Iterator[Any]:
    if attribute.type == 4:
        yield attribute.t
    yield from attribute.tensors
    for sparse in (*([attribute.sparse_tensor] if attribute.type == 11 else ()), *attribute.sparse_tensors):
        yield sparse.values
        yield sparse.indices


def _anonymize_graph(scope: Scope, names: Mapping[int, Mapping[str, str]]) -> None:
    graph: Any = scope.graph
    _silence(graph)
    own = names[id(scope)]
    if scope.is_function:
        for repeated in (graph.input, graph.output):
            for position, name in enumerate(repeated):
                repeated[position] = own.get(name, name)
    else:
        graph.name = "graph"
        for info in (*graph.input, *graph.output):
            info.name = _now(scope, info.name, names)
            _silence(info)
        for tensor in graph.initializer:
            tensor.name = own[tensor.name]
            _silence(tensor)
        for sparse in graph.sparse_initializer:
            sparse.values.name = own[sparse.values.name]
            sparse.indices.ClearField("name")
            _silence(sparse.values)
            _silence(sparse.indices)
        for annotation in graph.quantization_annotation:
            annotation.tensor_name = _now(scope, annotation.tensor_name, names)
            for entry in annotation.quant_parameter_tensor_names:
                entry.value = _now(scope, entry.value, names)
    for position in reversed(range(len(graph.value_info))):
        info = graph.value_info[position]
        if info.name in own:
            info.name = own[info.name]
            _silence(info)
        else:  # of a tensor that does not exist, whose name would stay
            del graph.value_info[position]


def _anonymize_model(draft: Draft, functions: Mapping[tuple[str, str, str], str], index: GraphIndex) -> None:
    proto = draft.model.proto
    _silence(proto)
    for name in ("domain", "model_version", "configuration"):
        proto.ClearField(name)
    for key, scope in index.functions.items():
        function: Any = scope.graph
        function.domain, function.name = _OWN_DOMAIN, functions[key]
        function.ClearField("overload")
        for attribute in function.attribute_proto:
            attribute.ClearField("doc_string")
    if not functions:
        return
    used = {plain_domain(ref.node.domain) for ref in index.nodes()}
    gone = {plain_domain(key[0]) for key in functions} - used - {""}
    calling = {id(root_of(ref.scope)) for ref in index.nodes() if ref.node.domain == _OWN_DOMAIN}
    for root, holder in ((index.main, proto), *((scope, scope.graph) for scope in index.functions.values())):
        for position in reversed(range(len(holder.opset_import))):
            if plain_domain(holder.opset_import[position].domain) in gone:
                del holder.opset_import[position]
        is_missing = not any(each.domain == _OWN_DOMAIN for each in holder.opset_import)
        if is_missing and (root is index.main or id(root) in calling):
            holder.opset_import.add(domain=_OWN_DOMAIN, version=1)


# -- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Externalize(Operation):
    """Save the weights in files beside the model.

    This says how the result is saved; options of the command line go before it.

    Attributes:
        location: Name of the one weights file; by default that of the model with ``.data`` behind it.
        per_tensor: One file per weight instead.
        threshold: Weights of fewer bytes stay in the model.
        alignment: Weights start at multiples of this many bytes.
    """

    word: ClassVar[str] = "externalize"
    keeps_types: ClassVar[bool] = True

    location: str | None = None
    per_tensor: bool = False
    threshold: int = 1024
    alignment: int = 4096

    def apply(self, draft: Draft) -> None:
        """Says so."""
        if self.location and self.per_tensor:
            raise UsageError("a location is for one weights file, and per_tensor makes many")
        if self.threshold < 0 or self.alignment < 1:
            raise UsageError("threshold cannot be below 0, nor alignment below 1")
        draft.saving = replace(
            draft.saving or SaveOptions(), external=True, location=self.location, per_tensor=self.per_tensor,
            threshold=self.threshold, alignment=self.alignment,
        )  # fmt: skip
        where = "one file each" if self.per_tensor else self.location or "one file beside it"
        draft.record("model", "", "weights are saved outside", after=where)


@dataclass(frozen=True)
class InlineWeights(Operation):
    """Save the weights in the model file itself, which must then be smaller than 2 GiB."""

    word: ClassVar[str] = "inline_weights"
    keeps_types: ClassVar[bool] = True

    def apply(self, draft: Draft) -> None:
        """Says so."""
        draft.saving = SaveOptions(external=False)
        draft.record("model", "", "weights are saved in the model file")
