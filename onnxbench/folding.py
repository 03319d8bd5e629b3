"""Nodes replaced by what they compute: those of constants, and those that compute what another one does.

**Constants.** A node whose inputs are all constant is replaced by its results, as is ``Shape`` of a tensor whose sizes
are fixed. It goes in rounds: each finds all such nodes, decides which are worth it, and computes those of a graph in
one session of ONNX Runtime, which reads the weights that they need and no others; what it refuses, onnx's reference
evaluator computes. The next round knows more. Only operators of the standard domains are folded, and none that draws
random numbers or (unless asked for) quantizes: a model whose ``DequantizeLinear`` are folded is quantized no longer.

Folding can make a model larger. Sizes are known before anything is computed, from types that inference tells without
believing what the file states. No tensor of more than ``max_bytes`` is made, and what makes the model larger is
folded only if all of it together adds at most ``max_bytes``; else none of it is, which is easier to understand than
some.

**Common subexpressions.** In one pass in order, each node is looked up by operator, attributes, and inputs as they are
called after what was found before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from onnxbench import backends, pruning, weights
from onnxbench.backends import Options
from onnxbench.draft import Draft
from onnxbench.errors import BenchError, ExecutionError
from onnxbench.graph import (
    GraphIndex,
    NodeRef,
    Scope,
    TensorRef,
    home_of,
    node_bodies,
    root_of,
    topological_order,
    tree_of,
)
from onnxbench.inference import inferred
from onnxbench.messages import copy_of
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART, find_schema, known_domains, plain_domain
from onnxbench.tensortype import dtype_bits, elem_type, raw_size, tensor_shape

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto, TensorProto, TypeProto

    from onnxbench.model import Model

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
QUANTIZING = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger"}
)  # fmt: skip
_AT_MOST_INPUT = frozenset({"NonZero", "Compress", "Unique"})
"""Operators whose results' sizes depend on values and are bounded by those of their inputs."""
_ALWAYS = 4096
"""A result of at most this many bytes is worth it even if it makes the model larger."""
_MOST_ROUNDS = 50
_STRING = 8


@dataclass(frozen=True, slots=True)
class Folded:
    """What was folded.

    Attributes:
        nodes: How many nodes are gone.
        grown: By how many bytes the weights grew; negative if they shrank.
        left: How many nodes are constant and stay, since they would make the model too large.
        larger: By how many bytes those would have.
        spent: How much of what the model may grow by is used up, by earlier calls too.
    """

    nodes: int
    grown: int
    left: int
    larger: int
    spent: int = 0


def fold_constants(draft: Draft, *, max_bytes: int, among: Sequence[NodeRef] | None = None, spent: int = 0) -> Folded:
    """Replaces nodes of constants by their results.

    Args:
        draft: The model.
        max_bytes: No larger tensor is made, and the model grows by no more.
        among: Only these nodes, quantizing ones too; None: all but those.
        spent: By how many bytes earlier calls let the model grow already.
    """
    folder = _Folder(draft, max_bytes, among, spent)
    for _ in range(_MOST_ROUNDS):
        if not folder.round():
            break
    return folder.done()


@dataclass(slots=True)
class _Plan:
    """What of a graph is folded in a round.

    Attributes:
        scope: The graph.
        positions: The nodes.
        needed: Those of their outputs that are still read afterwards.
        shapes: Outputs that are known from types alone, with their values.
        growth: By how many bytes the results are larger than what they replace.
    """

    scope: Scope
    positions: list[int]
    needed: list[str]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    growth: int = 0


class _Folder:
    def __init__(self, draft: Draft, max_bytes: int, among: Sequence[NodeRef] | None, spent: int) -> None:
        self._draft = draft
        self._most = max_bytes
        self._before = _weight_bytes(draft.model.proto)
        self._ids = {id(scope): number for number, scope in enumerate(draft.index.scopes)}
        self._among = None if among is None else {self._key(ref.scope, ref.position) for ref in among}
        self._refused: set[tuple[int, str]] = set()
        self._nodes, self._spent = 0, spent
        self._left: dict[tuple[int, str], int] = {}
        self._types: dict[str, dict[str, TypeProto]] = {}
        self._known: dict[int, dict[str, TensorProto | NodeProto]] = {}

    def done(self) -> Folded:
        """Returns what was done."""
        grown = _weight_bytes(self._draft.model.proto) - self._before
        return Folded(self._nodes, grown, len(self._left), sum(self._left.values()), self._spent)

    def _key(self, scope: Scope, position: int) -> tuple[int, str]:
        """Returns what a node is known by from round to round: its graph's number and its first output."""
        return self._ids[id(scope)], next(iter(scope.writes[position]), "")

    def round(self) -> bool:
        """Folds what can be folded now; tells whether that was anything."""
        draft = self._draft
        self._types = _types_without_statements(draft.model)
        self._known = {}
        self._find_types_in_functions()
        plans = self._plans()
        if not plans:
            return False
        values = {id(plan.scope): self._compute(plan) for plan in plans}
        done = 0
        read: dict[int, set[str]] = {}
        lost: set[int] = set()
        scopes = draft.index.scopes
        for plan in reversed(plans):  # inner graphs first, since outer ones may be copied
            positions = self._replace(plan, values[id(plan.scope)], read)
            bodies = (body for at in positions for body in plan.scope.bodies.get(at, ()))
            lost.update(id(inner) for body in bodies for inner in tree_of(body))
            done += len(positions)
        draft.touch()
        left = [scope for scope in scopes if id(scope) not in lost]  # names of nodes, and so paths, may have changed
        now = draft.index.scopes
        self._ids = {id(new): self._ids[id(old)] for old, new in zip(left, now, strict=True)}
        for old, new in reversed(list(zip(left, now, strict=True))):
            if id(old) in read:
                pruning.remove_unread(draft, new, read[id(old)])
        new_scopes = draft.index.scopes
        self._ids = {id(new): self._ids[id(old)] for old, new in zip(now, new_scopes, strict=True)}
        return done > 0

    # -- what to fold -----------------------------------------------------------------------------------------------

    def _plans(self) -> list[_Plan]:
        scopes = self._draft.index.scopes
        candidates = [(scope, *self._candidates(scope)) for scope in scopes]
        candidates = [each for each in candidates if each[1]]
        plans = [self._chosen(scope, found, shapes, any_size=True) for scope, found, shapes in candidates]
        growth = sum(plan.growth for plan in plans)
        if growth + self._spent > self._most:
            smaller = [self._chosen(scope, found, shapes, any_size=False) for scope, found, shapes in candidates]
            for plan, small in zip(plans, smaller, strict=True):
                gone = set(plan.positions) - set(small.positions)
                self._left.update((self._key(plan.scope, at), 0) for at in gone)
                if gone:
                    self._left[self._key(plan.scope, min(gone))] = plan.growth - small.growth
            plans = smaller
        self._spent += sum(max(0, plan.growth) for plan in plans)
        return [plan for plan in plans if plan.positions]

    def _candidates(self, scope: Scope) -> tuple[list[int], dict[str, list[int]]]:
        """Returns the nodes whose inputs are constant, in order, and the results that are known from types."""
        shapes: dict[str, list[int]] = {}
        made: set[str] = set()
        found = []
        for position in topological_order(scope) or range(len(scope.nodes)):
            node = scope.nodes[position]
            if not self._may_fold(scope, position):
                continue
            sizes = self._shape_result(scope, node)
            if sizes is not None:
                shapes[node.output[0]] = sizes
            elif not scope.reads[position] or not all(
                name in made or self._is_constant(scope, name) for name in scope.reads[position]
            ):
                continue
            bytes_made = [self._size(scope, position, name) for name in scope.writes[position]]
            if any(size is None or size > self._most for size in bytes_made):
                continue
            found.append(position)
            made.update(scope.writes[position])
        return found, shapes

    def _find_types_in_functions(self) -> None:
        """Finds the types of what nodes of functions make of constants: inference tells nothing of functions."""
        for scope in self._draft.index.scopes:
            if not root_of(scope).is_function:
                continue
            made: set[str] = set()
            positions = []
            for position in topological_order(scope) or range(len(scope.nodes)):
                reads = scope.reads[position]
                known = bool(reads) and all(name in made or self._is_constant(scope, name) for name in reads)
                if known and self._may_fold(scope, position):
                    positions.append(position)
                    made.update(scope.writes[position])
            if positions:
                problem = self._problem(_Plan(scope, positions, []), positions)
                told = inferred(self._draft.model.with_small_weights(problem))
                self._types[scope.path] = {info.name: info.type for info in told.graph.value_info}

    def _may_fold(self, scope: Scope, position: int) -> bool:
        node, key = scope.nodes[position], self._key(scope, position)
        if key in self._refused or (self._among is not None and key not in self._among):
            return False
        if node.op_type == "Constant" or not scope.writes[position]:
            return False
        if node.op_type in QUANTIZING and self._among is None:
            return False
        return _is_pure(self._draft, scope, node)

    def _is_constant(self, scope: Scope, name: str) -> bool:
        home = home_of(scope, name)
        return home is not None and name in self._stored(home)

    def _stored(self, scope: Scope) -> dict[str, Any]:
        """Returns the initializers of a graph that no caller can set, and its Constant nodes, by name."""
        known = self._known.get(id(scope))
        if known is None:
            known = {}
            graph: Any = scope.graph
            is_old = self._draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
            settable = set() if is_old and scope.parent is None else set(scope.inputs)
            for tensor in () if scope.is_function else graph.initializer:
                if tensor.name not in settable:
                    known[tensor.name] = tensor
            for position, node in enumerate(scope.nodes):
                if node.op_type == "Constant" and plain_domain(node.domain) == "" and scope.writes[position]:
                    attribute = node.attribute[0] if len(node.attribute) == 1 else None
                    if attribute is not None and not attribute.ref_attr_name and attribute.name != "sparse_value":
                        known[node.output[0]] = node
            self._known[id(scope)] = known
        return known

    def _type(self, scope: Scope, name: str) -> TypeProto | None:
        return self._types.get(scope.path, {}).get(name)

    def _shape_result(self, scope: Scope, node: NodeProto) -> list[int] | None:
        """Returns what Shape or Size gives if the sizes of its input are fixed."""
        if node.op_type not in ("Shape", "Size") or not node.input:
            return None
        home = home_of(scope, node.input[0])
        kind = self._type(home, node.input[0]) if home is not None else None
        sizes = tensor_shape(kind) if kind is not None else None
        if sizes is None:
            return None
        if node.op_type == "Shape":
            said = {attribute.name: attribute for attribute in node.attribute}
            if any(attribute.ref_attr_name for attribute in node.attribute):
                return None
            start = said["start"].i if "start" in said else 0
            end = said["end"].i if "end" in said else len(sizes)
            sizes = sizes[slice(*(max(0, at + len(sizes)) if at < 0 else at for at in (start, end)))]
        fixed = [size for size in sizes if isinstance(size, int)]
        if len(fixed) < len(sizes):
            return None
        return fixed if node.op_type == "Shape" else [prod(fixed)]

    def _size(self, scope: Scope, position: int, name: str) -> int | None:
        """Returns how many bytes a tensor takes, at most; None if that is unknown or it is no tensor."""
        kind = self._type(scope, name)
        sizes = tensor_shape(kind) if kind is not None else None
        number = elem_type(kind) if kind is not None else 0
        if kind is None or kind.WhichOneof("value") != "tensor_type":
            return None
        if sizes is not None and all(isinstance(size, int) for size in sizes):
            count = prod(size for size in sizes if isinstance(size, int))
            return -(-count * (dtype_bits(number) or 128) // 8)
        node = scope.nodes[position]
        if node.op_type in _AT_MOST_INPUT:
            home = home_of(scope, node.input[0])
            kind = self._type(home, node.input[0]) if home is not None else None
            sizes = tensor_shape(kind) if kind is not None else None
            if sizes is not None and all(isinstance(size, int) for size in sizes):
                return prod(size for size in sizes if isinstance(size, int)) * 8 * max(1, len(sizes))
        return None

    def _chosen(self, scope: Scope, found: list[int], shapes: dict[str, list[int]], *, any_size: bool) -> _Plan:
        """Returns the plan for a graph; without ``any_size``, one that makes nothing larger that is not small."""
        freed = self._freed(scope, found)
        kept, outputs, growth = set(found), set(scope.outputs), 0
        needed: list[str] = []
        for position in reversed(found):
            read = [
                name
                for name in scope.writes[position]
                if name in outputs or any(user not in kept for user in scope.consumers.get(name, ()))
            ]
            if not read:
                if not any(scope.consumers.get(name) for name in scope.writes[position]):
                    kept.discard(position)  # it is dead, which is another matter
                continue
            size = sum(self._size(scope, position, name) or 0 for name in read)
            grown = size - freed[position]
            if not any_size and grown > _ALWAYS:
                kept.discard(position)
                continue
            growth += grown if grown > _ALWAYS else 0
            needed += read
        return _Plan(scope, [at for at in found if at in kept], needed, shapes, growth)

    def _freed(self, scope: Scope, found: list[int]) -> dict[int, int]:
        """Returns how many bytes of weights nothing reads any more when a node is folded with what it depends on."""
        freed: dict[int, int] = {}
        for position in found:
            total = 0
            for name in dict.fromkeys(scope.reads[position]):
                if scope.consumers.get(name) != [position] or name in scope.outputs:
                    continue
                maker = scope.producers.get(name)
                if maker is not None and maker in freed:
                    total += freed[maker]
                elif name in self._stored(scope):
                    held = self._stored(scope)[name]
                    tensors = [held] if hasattr(held, "data_type") else list(weights.node_tensors(held))
                    total += sum(raw_size(tensor.dims, tensor.data_type) for tensor in tensors)
            freed[position] = total
        return freed

    # -- what they compute -------------------------------------------------------------------------------------------

    def _compute(self, plan: _Plan) -> dict[str, Any]:
        """Returns the values of what is needed; what nothing can compute is absent."""
        import numpy as np

        values: dict[str, Any] = {}
        shaped = {name for name in plan.needed if name in plan.shapes}
        for name in shaped:
            node = plan.scope.nodes[plan.scope.producers[name]]
            sizes = plan.shapes[name]
            values[name] = np.array(sizes if node.op_type == "Shape" else sizes[0], np.int64)
        wanted = [name for name in plan.needed if name not in shaped]
        if wanted:
            try:
                values.update(self._run(plan, plan.positions, wanted, "ort"))
            except ExecutionError:
                for positions, names in _components(plan, wanted):
                    values.update(self._run_alone(plan, positions, names))
        return values

    def _run_alone(self, plan: _Plan, positions: list[int], names: list[str]) -> dict[str, Any]:
        for backend in ("ort", "reference"):
            try:
                return self._run(plan, positions, names, backend)
            except BenchError:
                continue
        self._refused.update(self._key(plan.scope, position) for position in positions)
        return {}

    def _run(self, plan: _Plan, positions: list[int], wanted: list[str], backend: str) -> dict[str, Any]:
        model = self._draft.model.derive(self._problem(plan, positions))
        session = backends.open_session(model, backend, outputs=wanted, options=Options("none", frugal=True))
        try:
            return dict(session.run({}))
        finally:
            session.close()

    def _problem(self, plan: _Plan, positions: list[int]) -> ModelProto:
        """Returns a model of these nodes and the constants that they read."""
        import onnx

        scope = plan.scope
        top = root_of(scope)
        holder: Any = top.graph if top.is_function else self._draft.model.proto
        proto = onnx.ModelProto(ir_version=max(8, self._draft.model.proto.ir_version), opset_import=holder.opset_import)
        proto.graph.name = "constants"
        made = {name for position in positions for name in scope.writes[position]}
        seen: set[str] = set()
        for position in positions:
            for name in () if scope.nodes[position].output[0] in plan.shapes else scope.reads[position]:
                if name in made or name in seen:
                    continue
                seen.add(name)
                home = home_of(scope, name)
                assert home is not None
                held = self._stored(home)[name]
                if hasattr(held, "data_type"):
                    proto.graph.initializer.add().CopyFrom(held)
                else:
                    node = proto.graph.node.add()
                    node.CopyFrom(held)
                    node.ClearField("name")
        for position in positions:
            node = proto.graph.node.add()
            if scope.nodes[position].output[0] in plan.shapes:
                original = scope.nodes[position]
                sizes = plan.shapes[original.output[0]]
                node.CopyFrom(onnx.NodeProto(op_type="Constant", output=original.output))
                dims = [len(sizes)] if original.op_type == "Shape" else []
                value = onnx.TensorProto(data_type=7, dims=dims, int64_data=sizes)
                node.attribute.add(name="value", type=4).t.CopyFrom(value)
            else:
                node.CopyFrom(scope.nodes[position])
                node.ClearField("name")
        return proto

    # -- the change -------------------------------------------------------------------------------------------------

    def _replace(self, plan: _Plan, values: dict[str, Any], read: dict[int, set[str]]) -> list[int]:
        """Puts results in the place of nodes, and returns the positions of the nodes that are gone."""
        import onnx

        draft, scope = self._draft, plan.scope
        keep = _without_results(plan, values)
        positions = [position for position in plan.positions if position not in keep]
        graph: Any = scope.graph
        listed = draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART and scope.parent is None
        inserted: dict[int, list[NodeProto]] = {}
        stored: list[str] = []
        for position in positions:
            original = scope.nodes[position]
            for name in scope.reads[position]:
                home = home_of(scope, name)
                if home is not None and name in self._stored(home):
                    read.setdefault(id(home), set()).add(name)
            results = [name for name in scope.writes[position] if name in values]
            for name in results:
                tensor = _tensor(name, values[name])
                if scope.is_function or listed or name in scope.outputs:
                    node = onnx.NodeProto(op_type="Constant", output=[name], doc_string=original.doc_string)
                    node.name = original.name if len(results) == 1 else ""
                    node.metadata_props.extend(original.metadata_props)
                    node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
                    inserted.setdefault(position, []).append(node)
                else:
                    graph.initializer.add().CopyFrom(tensor)
                    stored.append(name)
            where = f"{scope.path}/{scope.label(position)}" if scope.path else scope.label(position)
            draft.record("node", where, "folded", before=original.op_type)
        gone = [name for at in positions for name in scope.writes[at] if name not in values]
        draft.splice(scope, inserted, removed=positions)
        draft.forget(scope, gone)
        draft.forget(scope, stored, annotations=False)
        self._nodes += len(positions)
        return positions


def _key(scope: Scope, position: int) -> tuple[str, str]:
    return scope.path, next(iter(scope.writes[position]), "")


def _weight_bytes(proto: ModelProto) -> int:
    return sum(weights.tensor_bytes(tensor) for tensor in weights.tensors(proto))


def _types_without_statements(model: Model) -> dict[str, dict[str, TypeProto]]:
    """Returns the types of tensors, by graph, as inference tells them from inputs and weights alone."""
    proto = copy_of(model.proto)
    for scope in GraphIndex(proto).scopes:
        del scope.graph.value_info[:]
        for info in () if scope.is_function else scope.graph.output:
            info.type.tensor_type.ClearField("shape") if info.type.HasField("tensor_type") else None
    told = inferred(model.with_small_weights(proto))
    found: dict[str, dict[str, TypeProto]] = {}
    from onnxbench.graph import declared_types

    for scope in GraphIndex(told).scopes:
        found[scope.path] = declared_types(scope)
    return found


def _is_pure(draft: Draft, scope: Scope, node: NodeProto) -> bool:
    """Tells whether a node is of standard operators alone, and computes the same each time."""
    pending = [node]
    while pending:
        each = pending.pop()
        if each.op_type in RANDOM or draft.index.function_of(each) is not None or not _is_standard(draft, scope, each):
            return False
        if any(attribute.ref_attr_name for attribute in each.attribute):
            return False
        pending += [inner for _, body in node_bodies(each) for inner in body.node]
    return True


def _is_standard(draft: Draft, scope: Scope, node: NodeProto) -> bool:
    domain = plain_domain(node.domain)
    version = draft.opset(scope, domain) if domain in known_domains() else 0
    return bool(version) and find_schema(domain, node.op_type, version) is not None


def _components(plan: _Plan, wanted: Collection[str]) -> Iterable[tuple[list[int], list[str]]]:
    """Yields the parts of a plan that have nothing to do with each other, with what is wanted of each."""
    scope = plan.scope
    parent = {position: position for position in plan.positions}

    def top(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for position in plan.positions:
        for name in scope.reads[position]:
            maker = scope.producers.get(name)
            if maker in parent:
                parent[top(position)] = top(maker)
    groups: dict[int, list[int]] = {}
    for position in plan.positions:
        groups.setdefault(top(position), []).append(position)
    for positions in groups.values():
        names = [name for position in positions for name in scope.writes[position] if name in wanted]
        if names:
            yield positions, names


def _without_results(plan: _Plan, values: Collection[str]) -> set[int]:
    """Returns the nodes that stay since a result that depends on them could not be computed."""
    scope = plan.scope
    pending = [scope.producers[name] for name in plan.needed if name not in values]
    planned, keep = set(plan.positions), set()
    while pending:
        position = pending.pop()
        if position in planned and position not in keep:
            keep.add(position)
            pending += [scope.producers[name] for name in scope.reads[position] if name in scope.producers]
    return keep


def _tensor(name: str, value: np.ndarray) -> TensorProto:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    if value.dtype.kind in "OUS":
        texts = [text if isinstance(text, bytes) else str(text).encode(errors="surrogateescape") for text in value.flat]
        return onnx.TensorProto(name=name, data_type=_STRING, dims=value.shape, string_data=texts)
    made: TensorProto = numpy_helper.from_array(np.asarray(value), name)
    return made


# -- common subexpressions -----------------------------------------------------------------------------------------


def merge_equal(draft: Draft, *, among: Sequence[NodeRef] | None = None) -> int:
    """Makes the readers of nodes that compute the same read the first of them; returns how many nodes are gone.

    Names of outputs of graphs stay: if only the later node makes one, the first takes over its name.

    Args:
        draft: The model.
        among: Only these nodes; None: all of standard operators.
    """
    wanted = None if among is None else {_key(ref.scope, ref.position) for ref in among}
    gone = 0
    for path in [scope.path for scope in reversed(draft.index.scopes)]:
        gone += _merge_in(draft, draft.index.scope_paths[path], wanted)
    return gone


def _merge_in(draft: Draft, scope: Scope, wanted: Collection[tuple[str, str]] | None) -> int:
    first: dict[Any, int] = {}
    same: dict[str, str] = {}
    taken_over: dict[str, str] = {}
    removed: list[int] = []
    outputs = set(scope.outputs)
    for position in topological_order(scope) or range(len(scope.nodes)):
        node = scope.nodes[position]
        if wanted is not None and _key(scope, position) not in wanted:
            continue
        if not scope.writes[position] or not _is_repeatable(draft, scope, node):
            continue
        key = meaning_of(node, same)
        other = first.setdefault(key, position)
        if other == position:
            continue
        pairs = [(old, new) for old, new in zip(node.output, scope.nodes[other].output, strict=True) if old]
        if any(old in outputs and (new in outputs or new in taken_over) for old, new in pairs):
            continue
        for old, new in pairs:
            same[old] = new
            if old in outputs:
                taken_over[new] = old
        removed.append(position)
        label = NodeRef(scope, position).path
        draft.record("node", label, "removed", before=f"the same as {scope.label(other)}")
    if not removed:
        return 0
    draft.replace_uses(scope, {old: new for old, new in same.items() if old not in outputs})
    kept = {old: new for old, new in same.items() if old in outputs}
    for position in removed:
        for number, name in enumerate(scope.nodes[position].output):
            if name in kept:
                scope.nodes[position].output[number] = ""
    if taken_over:
        draft.forget(scope, [name for name in taken_over if name not in outputs], annotations=False)
        draft.rename(scope, taken_over)
        for before, after in taken_over.items():
            draft.record("tensor", TensorRef(scope, before).path, "renamed", before=before, after=after)
    gone = [name for name in same if name not in outputs]
    draft.splice(draft.index.scope_paths[scope.path], removed=removed)
    draft.forget(draft.index.scope_paths[scope.path], gone)
    return len(removed)


def _is_repeatable(draft: Draft, scope: Scope, node: NodeProto) -> bool:
    """Tells whether two such nodes give the same on the same inputs: standard operators, or functions of these."""
    pending, seen = [(scope, node)], set()
    while pending:
        around, each = pending.pop()
        function = draft.index.function_of(each)
        if function is not None:
            if function.path not in seen:
                seen.add(function.path)
                pending += [(function, inner) for inner in function.nodes]
        elif each.op_type in RANDOM or not _is_standard(draft, around, each):
            return False
        pending += [(around, inner) for _, body in node_bodies(each) for inner in body.node]
    return True


def meaning_of(node: NodeProto, same: Mapping[str, str]) -> Any:
    """Returns what two nodes that compute the same have in common; it can be hashed.

    Args:
        node: The node.
        same: Tensors that are known by another name as well, by name.
    """
    bare = copy_of(node)
    for message in ("name", "doc_string", "metadata_props", "input", "output", "attribute"):
        bare.ClearField(message)
    attributes = []
    for attribute in node.attribute:
        copy = copy_of(attribute)
        copy.ClearField("doc_string")
        if copy.type == 4:
            copy.t.ClearField("name")
            copy.t.ClearField("doc_string")
        attributes.append(copy.SerializeToString(deterministic=True))
    inputs = tuple(same.get(name, name) for name in node.input)
    return bare.SerializeToString(deterministic=True), inputs, tuple(map(bool, node.output)), tuple(sorted(attributes))
