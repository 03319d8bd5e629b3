"""Splitting a model into disjoint pieces that cover it, and the manifest that wires them together.

Every way of splitting comes down to a *group* per node such that groups can be ordered: no group both precedes
and follows another. Then each group is a piece, its inputs are the tensors that enter it, and its outputs are
those that leave it.

- At tensors: a node's group is the set of cut tensors that it depends on. Along any edge that set only grows, so
  the groups are ordered by construction, whatever the model looks like; a tensor that bypasses a cut (a residual)
  becomes a further boundary of its own. Within a group, parts that are not connected and each make a cut tensor
  are pieces of their own, so parallel branches are told apart.
- In parts, or by weight: runs of the topological order. Boundaries are looked for where few tensors cross.
- By module scopes: nodes of one module that are not separated by another module's nodes.
- By labels: nodes of one kind (what a runtime takes and what it does not) that are not separated by the other kind.

Nodes that depend on no graph input (constants, casts of weights) belong to whoever reads them and are copied into
each such piece: as boundary tensors they would turn weights and shapes into run-time inputs. Random generators
are never copied.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxbench.boundary import depends_on, reach_back
from onnxbench.cut import Cut
from onnxbench.errors import CutError, UsageError
from onnxbench.graph import GraphIndex, Scope, topological_order
from onnxbench.select import origins
from onnxbench.weights import node_tensors, tensor_bytes
from onnxbench.wording import plural

_OWN = "\0node {}"
"""Stands for the tensors in the attributes of the node at a position; no tensor has such a name."""
_RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


@dataclass(frozen=True, slots=True)
class PlannedPiece:
    """One piece of a partition.

    Attributes:
        name: A short name, used for its file.
        cut: Its nodes and boundary.
    """

    name: str
    cut: Cut


@dataclass(frozen=True, slots=True)
class Partition:
    """Disjoint pieces that cover a model, in an order in which they can be run.

    Attributes:
        pieces: The pieces; each needs only the graph's inputs and outputs of earlier ones.
        passed_through: Graph outputs that no node makes: they are graph inputs.
        shared_nodes: How many constant nodes were copied into more than one piece.
        dead_nodes: How many nodes lead to no output and were left out.
        notes: What a user should know.
    """

    pieces: tuple[PlannedPiece, ...]
    passed_through: tuple[str, ...]
    shared_nodes: int
    dead_nodes: int
    notes: tuple[str, ...] = ()


class _Plan:
    """What all ways of splitting need to know about a graph."""

    def __init__(self, index: GraphIndex) -> None:
        self.scope: Scope = index.main
        order = topological_order(self.scope)
        self.order: list[int] = list(range(len(self.scope.nodes))) if order is None else order
        drawing = _drawing_scopes(index)
        random = [
            name
            for position, node in enumerate(self.scope.nodes)
            if _draws(index, self.scope, position, drawing)
            or (not self.scope.reads[position] and node.domain not in ("", "ai.onnx"))
            for name in self.scope.writes[position]
        ]
        self.dynamic: set[str] = depends_on(self.scope, [*self.scope.true_inputs(), *random])
        self.live: list[int] = [
            position for position in self.order if any(name in self.dynamic for name in self.scope.writes[position])
        ]

    def varying_reads(self, position: int) -> list[str]:
        """Returns the tensors a node reads that are not constant."""
        return [name for name in self.scope.reads[position] if name in self.dynamic]


def _drawing_scopes(index: GraphIndex) -> set[Scope]:
    """Returns the graphs that draw random numbers: in a node, in a body, or in a function that they call."""
    drawing: set[Scope] = set()
    while True:
        found = {
            scope
            for scope in reversed(index.scopes)
            if scope not in drawing and any(_draws(index, scope, at, drawing) for at in range(len(scope.nodes)))
        }
        if not found:
            return drawing
        drawing |= found


def _draws(index: GraphIndex, scope: Scope, position: int, drawing: set[Scope]) -> bool:
    node = scope.nodes[position]
    if node.op_type in _RANDOM_OPS or (node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]):
        return True
    if not drawing:
        return False
    return index.function_of(node) in drawing or any(body in drawing for body in scope.bodies.get(position, ()))


def split_at(index: GraphIndex, tensors: Sequence[str]) -> Partition:
    """Returns the pieces that come apart when a model is cut at these tensors.

    Raises:
        CutError: A tensor is constant, or a graph input, so that nothing is to be cut there.
    """
    plan = _Plan(index)
    scope = plan.scope
    bit: dict[str, int] = {}
    notes = []
    for name in dict.fromkeys(tensors):
        if name not in plan.dynamic:
            raise CutError(f"the model cannot be cut at {name!r}: it is constant, so every piece has a copy of it")
        if name in scope.inputs:
            notes.append(f"{name!r} is a graph input: every piece that needs it reads it anyway")
        elif not scope.consumers.get(name):
            notes.append(f"{name!r} is read by no node: nothing lies behind it")
        else:
            bit[name] = 1 << len(bit)
    if not bit:
        raise CutError("there is nothing to cut at these tensors", details=notes)
    above: dict[int, int] = {}
    for position in plan.live:
        key = 0
        for name in plan.varying_reads(position):
            producer = scope.producers.get(name)
            key |= above.get(producer, 0) if producer is not None else 0
            key |= bit.get(name, 0)
        above[position] = key
    groups = _components(plan, above, set(bit))
    partition = _pieces(plan, groups, wanted=set(bit))
    return _with_notes(partition, notes)


def _components(plan: _Plan, key: dict[int, int], cuts: set[str]) -> dict[int, object]:
    """Splits groups of equal key into connected parts, where each part makes something of its own.

    A part that makes neither a cut tensor nor a graph output (a chain that computes a shape, say) is no piece that
    anybody asked for; it joins the first part of its group that is.
    """
    scope = plan.scope
    parent = {position: position for position in key}

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for position in key:
        for name in plan.varying_reads(position):
            producer = scope.producers.get(name)
            if producer is not None and name not in cuts and key.get(producer) == key[position]:
                parent[root(producer)] = root(position)
    finished = cuts.union(scope.outputs)
    mains = {root(position) for position in key if any(name in finished for name in scope.writes[position])}
    first: dict[int, int] = {}
    for position in key:
        if root(position) in mains:
            first.setdefault(key[position], root(position))
    return {
        position: (key[position], root(position) if root(position) in mains else first.get(key[position], -1))
        for position in key
    }


def split_parts(index: GraphIndex, parts: int) -> Partition:
    """Returns a model in ``parts`` pieces of about as many nodes each.

    Raises:
        UsageError: There are fewer nodes than parts.
    """
    plan = _Plan(index)
    if parts < 2 or parts > len(plan.live):
        most = len(plan.live)
        hint = f"Use 2 to {most} parts." if most > 2 else "Use 2 parts." if most == 2 else None
        raise UsageError(f"{plural(most, 'node')} cannot be split into {plural(parts, 'part')}", hint=hint)
    crossing = _crossings(plan)
    size = len(plan.live) / parts
    cuts: list[int] = []
    for number in range(1, parts):
        ideal, slack = round(number * size), int(size * 0.1)
        low = max(cuts[-1] + 1 if cuts else 1, ideal - slack)
        high = min(len(plan.live) - (parts - number), ideal + slack)
        cuts.append(min(range(low, max(high, low) + 1), key=lambda at: (crossing[at], abs(at - ideal))))
    return _pieces(plan, _runs(plan, cuts))


def split_weights(index: GraphIndex, most: int) -> Partition:
    """Returns a model in pieces whose weights have at most ``most`` bytes each.

    Raises:
        CutError: One node alone has more.
    """
    plan = _Plan(index)
    scope = plan.scope
    sizes: dict[str, int] = {tensor.name: tensor_bytes(tensor) for tensor in scope.graph.initializer}
    for position, node in enumerate(scope.nodes):
        if node.attribute:
            sizes[_OWN.format(position)] = sum(map(tensor_bytes, node_tensors(node)))
    crossing = _crossings(plan)
    needs = _constant_needs(plan)
    cuts: list[int] = []
    held: set[str] = set()
    total = start = 0
    at = 0
    while at < len(plan.live):
        fresh = [name for name in needs[at] if name not in held]
        added = sum(sizes.get(name, 0) for name in fresh)
        if total + added > most and at > start:
            earliest = start + max(1, (at - start) * 3 // 4)
            at = start = min(range(earliest, at + 1), key=lambda place: (crossing[place], at - place))
            cuts.append(at)
            held, total = set(), 0
            continue
        if added > most:
            label = scope.label(plan.live[at])
            raise CutError(
                f"node {label!r} alone has {plural(added, 'byte')} of weights, and the limit is {most:,}",
                hint=f"Use --max-weights {added} or more.",
            )
        held.update(fresh)
        total += added
        at += 1
    return _pieces(plan, _runs(plan, cuts))


def _constant_needs(plan: _Plan) -> list[list[str]]:
    """Returns, for each live node, the weights it needs: initializers and tensors in attributes (``_OWN``).

    They are its own, those of its bodies, and those of the constant nodes that it reads from.
    """
    scope = plan.scope
    through: dict[str, frozenset[str]] = {}
    for position in plan.order:
        if scope.writes[position] and scope.writes[position][0] not in plan.dynamic:
            own = frozenset((_OWN.format(position),))
            found = own.union(*(_needs(name, scope, through) for name in scope.reads[position]))
            through.update((name, found) for name in scope.writes[position])
    return [
        sorted(frozenset((_OWN.format(position),)).union(*(_needs(n, scope, through) for n in scope.reads[position])))
        for position in plan.live
    ]


def _needs(name: str, scope: Scope, through: dict[str, frozenset[str]]) -> frozenset[str]:
    return frozenset((name,)) if name in scope.constants else through.get(name, frozenset())


def split_scopes(index: GraphIndex, depth: int) -> Partition:
    """Returns a model in pieces along its PyTorch modules, paths shortened to ``depth`` parts.

    Raises:
        CutError: No node says which module it comes from.
    """
    plan = _Plan(index)
    scope = plan.scope
    module: dict[int, str] = {}
    known = origins(index)
    for position in plan.live:
        path = known.scope(scope.nodes[position])
        if path is not None:
            module[position] = ".".join(path.split(".")[:depth])
    if not module:
        raise CutError(
            "no node of the model says which PyTorch module it comes from, so it cannot be split by scopes",
            hint="Use --at TENSOR... or --parts N.",
        )
    group: dict[int, object] = {}
    level: dict[int, int] = {}
    for position in plan.live:
        before = [p for name in plan.varying_reads(position) if (p := scope.producers.get(name)) in level]
        own = module.get(position) or (module.get(max(before), "") if before else "")
        module[position] = own
        level[position] = max((level[p] + (module[p] != own) for p in before), default=0)
        group[position] = (level[position], own)
    return _pieces(plan, group, name=lambda key: str(key[1]) if isinstance(key, tuple) else "")


def varying_nodes(index: GraphIndex) -> list[int]:
    """Returns the nodes of the main graph that depend on an input (or draw), in an order in which they can be run."""
    return list(_Plan(index).live)


def split_labels(index: GraphIndex, labels: Mapping[int, str], first: str) -> Partition:
    """Returns a model in as few pieces as nodes of two kinds allow, each piece of one kind.

    A node's level is how often the kind changes on the way to it, counted so that one kind has the even levels. Along
    any edge the level only grows, and grows where the kind changes: so no way leads out of a piece and back into it.

    Args:
        index: The model.
        labels: Node to its kind, for all of ``varying_nodes``; pieces are called so.
        first: The kind with the even levels.
    """
    plan = _Plan(index)
    level: dict[int, int] = {}
    for position in plan.live:
        least = 0 if labels[position] == first else 1
        for name in plan.varying_reads(position):
            producer = plan.scope.producers.get(name)
            if producer in level:
                least = max(least, level[producer] + (labels[producer] != labels[position]))
        level[position] = least
    group: dict[int, object] = {position: (level[position], labels[position]) for position in plan.live}
    return _pieces(plan, group, name=lambda key: str(key[1]) if isinstance(key, tuple) else "")


def _crossings(plan: _Plan) -> list[int]:
    """Returns, for each place between live nodes, how many varying tensors cross it."""
    rank = {position: at for at, position in enumerate(plan.live)}
    change = [0] * (len(plan.live) + 2)
    for at, position in enumerate(plan.live):
        for name in plan.scope.writes[position]:
            readers = [rank[user] for user in plan.scope.consumers.get(name, ()) if user in rank]
            if readers and max(readers) > at:
                change[at + 1] += 1
                change[max(readers) + 1] -= 1
    total, crossing = 0, []
    for value in change[:-1]:
        total += value
        crossing.append(total)
    return crossing


def _runs(plan: _Plan, cuts: list[int]) -> dict[int, object]:
    group: dict[int, object] = {}
    starts = [0, *cuts, len(plan.live)]
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        group.update(dict.fromkeys(plan.live[start:stop], number))
    return group


def _pieces(
    plan: _Plan,
    group: dict[int, object],
    *,
    wanted: Iterable[str] = (),
    name: Callable[[object], str] = lambda key: "",
) -> Partition:
    """Makes pieces of groups: orders them, finds their boundaries, and adds the constants that each needs."""
    scope = plan.scope
    members: dict[object, list[int]] = defaultdict(list)
    for position in plan.live:
        members[group[position]].append(position)
    ordered = _order_groups(plan, group, members)
    finished = {*wanted, *scope.outputs}
    made_here: dict[str, object] = {
        tensor: group[position] for position in plan.live for tensor in scope.writes[position]
    }
    foreign = {
        tensor
        for position in plan.live
        for tensor in plan.varying_reads(position)
        if tensor in made_here and made_here[tensor] != group[position]
    }
    pieces: list[PlannedPiece] = []
    dead = 0
    for key in ordered:
        nodes = members[key]
        inputs: dict[str, None] = {}
        for position in nodes:
            for tensor in plan.varying_reads(position):
                if made_here.get(tensor) != key:
                    inputs[tensor] = None
        outputs = [t for position in nodes for t in scope.writes[position] if t in finished or t in foreign]
        if not outputs:
            dead += len(nodes)
            continue
        reads = [tensor for position in nodes for tensor in scope.reads[position] if tensor not in plan.dynamic]
        constant = reach_back(scope, reads, ())
        inside = constant.nodes.union(nodes)
        cut = Cut(
            inputs=tuple(inputs),
            outputs=tuple(dict.fromkeys(outputs)),
            nodes=tuple(position for position in plan.order if position in inside) if constant.nodes else tuple(nodes),
            constants=tuple(sorted(constant.constants)),
            total_nodes=len(scope.nodes),
        )
        pieces.append(PlannedPiece(name(key), cut))
    pieces += _constant_outputs(plan)
    through = tuple(tensor for tensor in scope.outputs if tensor in scope.inputs)
    copies = Counter(position for piece in pieces for position in piece.cut.nodes)
    return Partition(tuple(pieces), through, sum(count > 1 for count in copies.values()), dead)


def _constant_outputs(plan: _Plan) -> list[PlannedPiece]:
    """Returns a piece for the graph outputs that depend on no input, if there are any."""
    scope = plan.scope
    outputs = [name for name in dict.fromkeys(scope.outputs) if name not in plan.dynamic]
    if not outputs:
        return []
    reach = reach_back(scope, outputs, ())
    nodes = tuple(position for position in plan.order if position in reach.nodes)
    cut = Cut((), tuple(outputs), nodes, tuple(sorted(reach.constants)), total_nodes=len(scope.nodes))
    return [PlannedPiece("constant", cut)]


def _order_groups(plan: _Plan, group: dict[int, object], members: dict[object, list[int]]) -> list[object]:
    """Returns the groups in an order in which they can be run, as near to the file's order as possible."""
    from heapq import heapify, heappop, heappush

    scope = plan.scope
    rank = {position: at for at, position in enumerate(plan.order)}
    followers: dict[object, set[object]] = defaultdict(set)
    waiting: dict[object, int] = dict.fromkeys(members, 0)
    for position in plan.live:
        for name in plan.varying_reads(position):
            producer = scope.producers.get(name)
            if producer is None or producer not in group or group[producer] == group[position]:
                continue
            if group[position] not in followers[group[producer]]:
                followers[group[producer]].add(group[position])
                waiting[group[position]] += 1
    ready = [(rank[members[key][0]], number, key) for number, key in enumerate(members) if not waiting[key]]
    numbers = {key: number for number, key in enumerate(members)}
    heapify(ready)
    ordered = []
    while ready:
        _, _, key = heappop(ready)
        ordered.append(key)
        for follower in followers[key]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heappush(ready, (rank[members[follower][0]], numbers[follower], follower))
    assert len(ordered) == len(members), "groups of a partition form a cycle"
    return ordered


def _with_notes(partition: Partition, notes: list[str]) -> Partition:
    return Partition(
        partition.pieces, partition.passed_through, partition.shared_nodes, partition.dead_nodes, tuple(notes)
    )
