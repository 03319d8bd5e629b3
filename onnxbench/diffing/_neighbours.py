"""What ``_matching`` asks of one graph, or of two lists of nodes: keys in common, readers, nodes further on.

Nothing here knows what was matched but what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from onnxbench.diffing._sides import Side

if TYPE_CHECKING:
    from onnx import TypeProto

_Thing = TypeVar("_Thing", int, str)
_FAR = 4
"""So many nodes may lie between a node and one that it was next to before."""
MOST_BEYOND, MOST_NEAR = 64, 8
"""So many readers of one tensor, and nodes next to one place, are looked at."""


def joined(names: Sequence[str | None], numbers: Sequence[int]) -> list[Hashable]:
    """Returns names with numbers as keys; None, which is no key, for what has no name."""
    return [None if name is None else (name, number) for name, number in zip(names, numbers, strict=True)]


def type_key(value: TypeProto | None) -> Hashable:
    """Returns what is equal for equal types; None for none."""
    return None if value is None else value.SerializeToString(deterministic=True)


def groups_of(
    ones: Iterable[int], keys_a: Any, others: Iterable[int], keys_b: Any
) -> list[tuple[list[int], list[int]]]:
    """Returns nodes of both sides that have a key in common, by key, in the order of the first side."""
    return join(ones, keys_a.__getitem__, others, keys_b.__getitem__)


def alone(groups: Iterable[tuple[list[int], list[int]]]) -> list[tuple[int, int]]:
    """Returns the pairs of nodes that alone on their sides have a key."""
    return [(ones[0], others[0]) for ones, others in groups if len(ones) == len(others) == 1]


def join(
    ones: Iterable[_Thing],
    key_a: Callable[[_Thing], Hashable],
    others: Iterable[_Thing],
    key_b: Callable[[_Thing], Hashable],
) -> list[tuple[list[_Thing], list[_Thing]]]:
    """Returns what has a key in common on both sides, by key, in the order of the first side; None is no key."""
    first: dict[Hashable, _Thing] = {}
    more: dict[Hashable, list[_Thing]] = {}
    for other in others:
        key = key_b(other)
        if key is not None and first.setdefault(key, other) != other:
            more.setdefault(key, [first[key]]).append(other)
    found: dict[Hashable, tuple[list[_Thing], list[_Thing]]] = {}
    for one in ones:
        key = key_a(one)
        if key in first:
            group = found.get(key)
            if group is None:
                found[key] = ([one], more.get(key) or [first[key]])
            else:
                group[0].append(one)
    return list(found.values())


def uses_of(consumers: Iterable[tuple[int, int]], matched: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Returns the nodes among consumers that are left, each with the inputs at which it reads the tensor."""
    found: dict[int, list[int]] = {}
    for position, slot in consumers:
        if matched[position] < 0:
            found.setdefault(position, []).append(slot)
    return {position: tuple(slots) for position, slots in found.items()}


def nodes_beyond(side: Side, starts: Iterable[int], matched: Sequence[int], *, forward: bool) -> dict[int, int]:
    """Returns nodes that are left, a few steps from some that are too, with how many steps."""
    found: dict[int, int] = {}
    edge = list(starts)
    for steps in range(1, _FAR + 1):
        after: dict[int, None] = {}
        for position in edge:
            if forward:
                names = side.scope.writes[position]
                near = [reader for name in names for reader, _ in side.consumers.get(name, ())[:MOST_BEYOND]]
            else:
                near = [side.scope.producers[name] for name in side.inputs[position] if name in side.scope.producers]
            after.update((other, None) for other in near if matched[other] < 0 and other not in found)
        found.update(dict.fromkeys(after, steps))
        edge = list(after)
        if len(found) > MOST_BEYOND:
            break
    return found


def next_node(side: Side, position: int, matched: Sequence[int], *, forward: bool) -> int:
    """Returns the first node that is left right behind (or before) another; -1 if there is none."""
    if forward:
        names = side.scope.writes[position]
        near = (reader for name in names for reader, _ in side.consumers.get(name, ())[:MOST_NEAR])
    else:
        near = (side.scope.producers.get(name, -1) for name in side.inputs[position])
    return next((other for other in near if other >= 0 and matched[other] < 0), -1)
