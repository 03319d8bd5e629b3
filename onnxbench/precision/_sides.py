"""Which of two types what is only moved should have: the choice with the least to cast.

A group of slots has one type. Some groups have theirs already; the others (Reshape, Concat, Where, the state of a loop)
take either. A tensor costs one Cast if any reader is on the other side than its maker, however many do. What costs the
least in all is a minimum cut. The groups that touch each other through free ones alone are looked at together; where
only one side is to be seen, that is the answer, so the cut is rarely needed and then small.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STAYS, CHANGES = 0, 1
"""The two groups that stand for the sides."""
_NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Link:
    """A tensor between groups.

    Attributes:
        maker: The group that makes it.
        users: The groups that read it.
        cost: What a Cast of it costs; asked only where it matters.
    """

    maker: int
    users: tuple[int, ...]
    cost: Callable[[], int]


def choose_sides(count: int, links: Sequence[Link]) -> list[bool]:
    """Returns for each group whether it changes its type.

    Args:
        count: How many groups there are; 0 and 1 are the sides themselves.
        links: The tensors between them.
    """
    parent = list(range(count))

    def find(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for link in links:
        free = [group for group in (link.maker, *link.users) if group > CHANGES]
        for group in free[1:]:
            parent[find(group)] = find(free[0])
    touched: dict[int, set[int]] = defaultdict(set)
    together: dict[int, list[Link]] = defaultdict(list)
    for link in links:
        ends = (link.maker, *link.users)
        root = next((find(group) for group in ends if group > CHANGES), None)
        if root is not None:
            touched[root].update(group for group in ends if group <= CHANGES)
            together[root].append(link)
    changes = [True] * count
    changes[STAYS] = False
    mixed = {root for root, ends in touched.items() if len(ends) > 1}
    for group in range(CHANGES + 1, count):
        if touched.get(find(group)) == {STAYS}:
            changes[group] = False
    for root in sorted(mixed):
        for group, side in _cut(together[root]).items():
            changes[group] = side
    return changes


def _cut(links: Sequence[Link]) -> dict[int, bool]:
    """Returns the side of each group of these links: on the changing side are all that may be there at least cost."""
    numbers: dict[int, int] = {CHANGES: 0, STAYS: 1}
    network = _Network()
    for _ in numbers:
        network.add_node()
    for link in links:
        for group in (link.maker, *link.users):
            if group not in numbers:
                numbers[group] = network.add_node()
    for link in links:
        maker = numbers[link.maker]
        users = {numbers[group] for group in link.users} - {maker}
        if not users:
            continue
        cost = link.cost()
        if len(users) == 1:
            (user,) = users
            network.add_edge(maker, user, cost)
            network.add_edge(user, maker, cost)
            continue
        some_stay, some_change = network.add_node(), network.add_node()
        network.add_edge(maker, some_stay, cost)
        network.add_edge(some_change, maker, cost)
        for user in sorted(users):
            network.add_edge(some_stay, user, _NEVER)
            network.add_edge(user, some_change, _NEVER)
    behind = network.saturate(0, 1)
    return {group: number not in behind for group, number in numbers.items() if group > CHANGES}


class _Network:
    """A flow network (Dinic's algorithm, on lists)."""

    def __init__(self) -> None:
        self._edges: list[list[int]] = []
        self._to: list[int] = []
        self._room: list[int] = []

    def add_node(self) -> int:
        self._edges.append([])
        return len(self._edges) - 1

    def add_edge(self, start: int, end: int, room: int) -> None:
        for source, target, free in ((start, end, room), (end, start, 0)):
            self._edges[source].append(len(self._to))
            self._to.append(target)
            self._room.append(free)

    def saturate(self, source: int, sink: int) -> set[int]:
        """Sends all that can flow, and returns the nodes from which more could still reach the sink."""
        while (levels := self._levels(source, sink)) is not None:
            self._augment(source, sink, levels)
        behind, pending = {sink}, [sink]
        while pending:
            node = pending.pop()
            for edge in self._edges[node]:
                before = self._to[edge]
                if self._room[edge ^ 1] and before not in behind:
                    behind.add(before)
                    pending.append(before)
        return behind

    def _levels(self, source: int, sink: int) -> list[int] | None:
        levels = [-1] * len(self._edges)
        levels[source] = 0
        pending = deque([source])
        while pending:
            node = pending.popleft()
            for edge in self._edges[node]:
                if self._room[edge] and levels[self._to[edge]] < 0:
                    levels[self._to[edge]] = levels[node] + 1
                    pending.append(self._to[edge])
        return levels if levels[sink] >= 0 else None

    def _augment(self, source: int, sink: int, levels: list[int]) -> None:
        at = [0] * len(self._edges)
        path: list[int] = []
        node = source
        while True:
            if node == sink:
                amount = min(self._room[edge] for edge in path)
                for edge in path:
                    self._room[edge] -= amount
                    self._room[edge ^ 1] += amount
                cut = next(number for number, edge in enumerate(path) if not self._room[edge])
                node = self._to[path[cut] ^ 1]
                del path[cut:]
                continue
            edges = self._edges[node]
            while at[node] < len(edges):
                edge = edges[at[node]]
                if self._room[edge] and levels[self._to[edge]] == levels[node] + 1:
                    break
                at[node] += 1
            if at[node] < len(edges):
                path.append(edges[at[node]])
                node = self._to[path[-1]]
                continue
            if node == source:
                return
            edge = path.pop()
            node = self._to[edge ^ 1]
            at[node] += 1
