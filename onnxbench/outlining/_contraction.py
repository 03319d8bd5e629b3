"""Whether sets of nodes can each be one node, all at once, and the order of the graph then."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from onnxbench.conformity import called
from onnxbench.errors import RefusedResultError
from onnxbench.graph import Scope, topological_order
from onnxbench.outlining._bodies import Body, Instance, is_constant, within


def own_nodes(instance: Instance) -> list[int]:
    """Returns the nodes that make up an instance: constants that only others read stay where they are."""
    scope, members = instance.scope, set(instance.positions)
    return [
        position
        for position in instance.positions
        if not is_constant(scope.nodes[position])
        or any(user in members for name in scope.writes[position] for user in scope.consumers.get(name, ()))
    ]


def is_shared_constant(body: Body, position: int) -> bool:
    """Tells whether a Constant is read outside too: it stays there, and the function has one of its own."""
    scope = body.instance.scope
    if not is_constant(scope.nodes[position]):
        return False
    members, outputs = set(body.nodes), set(scope.outputs)
    names = scope.writes[position]
    return any(name in outputs or any(u not in members for u in scope.consumers.get(name, ())) for name in names)


def contracted(bodies: list[Body]) -> list[tuple[Scope, list[int | Body], list[Body]]]:
    """Returns, for each graph, its nodes in an order in which every body is one unit.

    Raises:
        RefusedResultError: There is none.
    """
    by_scope: dict[int, list[Body]] = {}
    for body in bodies:
        by_scope.setdefault(id(body.instance.scope), []).append(body)
    return [(group[0].instance.scope, _order(group[0].instance.scope, group), group) for group in by_scope.values()]


def _order(scope: Scope, bodies: list[Body]) -> list[int | Body]:
    """Returns nodes and bodies in the order of the file where dependencies allow; a body stands for its last node."""
    topological_order(scope)  # a cycle that was there before is not of our making
    unit = list(range(len(scope.nodes)))
    units: dict[int, Body] = {}
    members: dict[int, list[int]] = {}
    for body in bodies:
        own = [position for position in body.nodes if not is_shared_constant(body, position)]
        if not own:
            raise RefusedResultError(f"{body.instance.label} is nothing but constants", hint="Select more nodes.")
        last = own[-1]
        units[last], members[last] = body, own
        for position in own:
            unit[position] = last
    needs: dict[int, set[int]] = {each: set() for each in set(unit)}
    users: dict[int, list[int]] = {each: [] for each in needs}
    for position, names in enumerate(scope.reads):
        mine = unit[position]
        for name in names:
            source = scope.producers.get(name)
            if source is not None and unit[source] != mine and unit[source] not in needs[mine]:
                needs[mine].add(unit[source])
                users[unit[source]].append(mine)
    waiting = {each: len(sources) for each, sources in needs.items()}
    ready = [each for each, count in waiting.items() if not count]
    heapify(ready)
    order: list[int] = []
    while ready:
        each = heappop(ready)
        order.append(each)
        for user in users[each]:
            waiting[user] -= 1
            if not waiting[user]:
                heappush(ready, user)
    if len(order) < len(needs):
        raise _between(scope, unit, units, {each for each, count in waiting.items() if count}, needs)
    return [units.get(each, each) for each in order]


def _between(
    scope: Scope, unit: list[int], units: dict[int, Body], stuck: set[int], needs: dict[int, set[int]]
) -> RefusedResultError:
    """Returns the error that names what lies between the nodes of an instance."""
    trail: dict[int, int] = {}
    each = min(stuck)
    while each not in trail:
        trail[each] = len(trail)
        each = min(source for source in needs[each] if source in stuck)
    cycle = [at for at, number in trail.items() if number >= trail[each]]  # each needs the one after it
    start = next(number for number, at in enumerate(cycle) if at in units)
    cycle = cycle[start:] + cycle[:start]
    body = units[cycle[0]]
    others = [units[at].instance.label for at in cycle[1:] if at in units]
    if others:
        return RefusedResultError(
            f"{body.instance.label} and {others[0]} each need what the other makes, so they cannot both be one call",
            hint="Outline them in one function, or only one of them.",
        )
    last, first = cycle[1], cycle[-1]
    after = next(p for p in range(len(unit)) if unit[p] == cycle[0] and _reads_from(scope, unit, p, last))
    before = next(
        scope.producers[name]
        for name in scope.reads[first]
        if name in scope.producers and unit[scope.producers[name]] == cycle[0]
    )
    some = " and ".join(called(scope, at) for at in dict.fromkeys((first, last)))
    verb = "lies" if first == last else "lie"
    return RefusedResultError(
        f"{body.instance.label} cannot become one call: {some}, outside of it, {verb} between "
        f"{called(scope, before)} and {called(scope, after)}{within(scope)}",
        hint="Select what lies between too (fill: true does), or fewer nodes.",
    )


def _reads_from(scope: Scope, unit: list[int], position: int, source: int) -> bool:
    return any(name in scope.producers and unit[scope.producers[name]] == source for name in scope.reads[position])
