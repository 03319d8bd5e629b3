"""Which tensors bound a piece of a graph: what it still needs, and which few tensors would do.

Everything here is about reachability in one graph, over tensors. Three questions are answered.

*What does the piece need?* Walk back from its outputs, stopping at its inputs. Graph inputs that are reached
are what is not yet bounded.

*What exactly is missing?* Naming graph inputs far away helps nobody. The tensors that matter stand at the rim
of what the given inputs determine: read by a node that depends on a given input, and not depending on any
themselves.

*Which cut would do?* A smallest set of tensors that separates the graph inputs from the outputs is a minimum
vertex cut, found by augmenting paths (every augmentation is one breadth-first search, so the cost is the size
of the cut times the size of the region). Of all minimum cuts the one nearest to the outputs is taken: it makes
the smallest piece. The tensors asked for are never in the cut themselves, or every question would have the
answer "start at the end".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onnxbench.graph import Scope


@dataclass(frozen=True, slots=True)
class Reach:
    """What a backward walk from some outputs met.

    Attributes:
        nodes: Positions of the nodes that make the outputs from the stops.
        stops: Names at which the walk was told to stop and did.
        inputs: Graph inputs that it ended at.
        constants: Initializers that it ended at.
        undefined: Names that nothing in the graph makes (captured from outside, in a body).
    """

    nodes: set[int]
    stops: set[str]
    inputs: list[str]
    constants: set[str]
    undefined: list[str]


def reach_back(scope: Scope, outputs: Iterable[str], stops: Collection[str]) -> Reach:
    """Walks back from ``outputs`` to ``stops`` or to where the graph begins; linear, iterative."""
    producers, reads, constants = scope.producers, scope.reads, scope.constants
    inputs = set(scope.inputs)
    reach = Reach(set(), set(), [], set(), [])
    seen: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in stops:
            reach.stops.add(name)
        elif (position := producers.get(name)) is not None:
            if position not in reach.nodes:
                reach.nodes.add(position)
                pending.extend(reads[position])
        elif name in constants:
            reach.constants.add(name)
        elif name in inputs:
            reach.inputs.append(name)
        else:
            reach.undefined.append(name)
    reach.inputs.sort(key=scope.inputs.index)
    return reach


def depends_on(scope: Scope, seeds: Iterable[str]) -> set[str]:
    """Returns every tensor of a graph that depends on one of the seeds, the seeds included."""
    consumers, writes = scope.consumers, scope.writes
    reached = set(seeds)
    pending = list(reached)
    visited: set[int] = set()
    while pending:
        for position in consumers.get(pending.pop(), ()):
            if position not in visited:
                visited.add(position)
                for made in writes[position]:
                    if made not in reached:
                        reached.add(made)
                        pending.append(made)
    return reached


def missing_at_rim(scope: Scope, reach: Reach, given: Collection[str]) -> list[str]:
    """Returns the tensors that a piece lacks where its given inputs leave off, in graph order.

    Falls back to the graph inputs that were reached when no given input determines anything.
    """
    determined = depends_on(scope, reach.stops)
    open_ended = depends_on(scope, reach.inputs)
    rim: dict[str, None] = {}
    for position in sorted(reach.nodes):
        if not any(name in determined for name in scope.reads[position]):
            continue
        for name in scope.reads[position]:
            if name in open_ended and name not in determined and name not in given:
                rim[name] = None
    return list(rim) or list(reach.inputs)


def smallest_cut(
    scope: Scope, outputs: Sequence[str], given: Collection[str], *, limit: int | None = None
) -> list[str] | None:
    """Returns a smallest set of tensors that, with those given, bounds the outputs; nearest to them, in graph order.

    Args:
        scope: The graph.
        outputs: What is to be computed; never part of the answer.
        given: Tensors that are inputs already; those that matter stay so, nothing that depends on them is cut.
        limit: Give up when more tensors than this would be needed.

    Returns:
        The names to add to ``given``, or None when an output is itself a graph input or ``limit`` is exceeded.
    """
    reach = reach_back(scope, outputs, given)
    ends = set(reach.inputs)
    # What the given inputs already determine is not to be cut: a cut behind them would make them useless.
    determined = depends_on(scope, reach.stops)
    region = {name for position in reach.nodes for name in scope.writes[position]}
    sources = [name for name in dict.fromkeys((*outputs, *sorted(determined & region))) if name not in given]
    if ends.intersection(sources):
        return None
    relevant = depends_on(scope, ends)
    flow = _Flow(scope, sources, ends, relevant, given)
    while flow.augment():
        if limit is not None and flow.value > limit:
            return None
    cut = flow.cut()
    order = {name: at for at, name in enumerate(scope.inputs)}
    base = len(order)
    return sorted(cut, key=lambda name: order.get(name, base + scope.producers.get(name, 0)))


class _Flow:
    """Vertex-disjoint paths from outputs back to graph inputs; every tensor carries at most one.

    A vertex has an entry and an exit state. ``_before[v]`` is the vertex from which the path through ``v`` comes;
    ``v`` is in it exactly when a path goes through ``v``.
    """

    def __init__(
        self, scope: Scope, sources: list[str], ends: set[str], relevant: set[str], given: Collection[str]
    ) -> None:
        self._scope = scope
        self._sources = sources
        self._source_set = set(sources)
        self._ends = ends
        self._relevant = relevant
        self._given = given
        self._before: dict[str, str] = {}
        self.value = 0

    def augment(self) -> bool:
        """Adds one path if there is room for it."""
        came, end = self._search()
        if end is None:
            return False
        self.value += 1
        state: tuple[str, bool] = (end, True)
        added: dict[str, str] = {}
        removed: list[str] = []
        while True:
            previous = came[state]
            if previous is None:
                break
            name, at_exit = state
            before, before_at_exit = previous
            if before_at_exit and not at_exit:
                if before == name:
                    removed.append(name)  # the path through `name` is led around it
                else:
                    added[name] = before
            state = previous
        for name in removed:
            del self._before[name]
        self._before.update(added)
        return True

    def _search(self) -> tuple[dict[tuple[str, bool], tuple[str, bool] | None], str | None]:
        """Breadth-first search through the residual graph; states are (tensor, at its exit)."""
        came: dict[tuple[str, bool], tuple[str, bool] | None] = {(name, True): None for name in self._sources}
        queue = deque(came)
        before = self._before
        while queue:
            state = queue.popleft()
            name, at_exit = state
            following: list[tuple[str, bool]] = []
            if at_exit:
                if name in self._ends:
                    return came, name
                following = [(read, False) for read in self._steps(name)]
                if name in before:
                    following.append((name, False))
            elif name in before:
                following.append((before[name], True))
            else:
                following.append((name, True))
            for found in following:
                if found not in came:
                    came[found] = state
                    queue.append(found)
        return came, None

    def _steps(self, name: str) -> list[str]:
        position = self._scope.producers.get(name)
        if position is None or name in self._given:
            return []
        return [
            read
            for read in self._scope.reads[position]
            if read in self._relevant and read not in self._given and read not in self._source_set
        ]

    def cut(self) -> list[str]:
        """Returns the tensors whose entry can still be reached and whose exit cannot."""
        came, _ = self._search()
        return [name for name, at_exit in came if not at_exit and (name, True) not in came]
