"""What tells a node of one graph from others that compute the same: names, the places of its outputs, its weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from onnxbench.diffing import _tensors
from onnxbench.diffing._sides import Side


class Traits:
    """What nodes of a graph may be told apart by. None says nothing of a node.

    Attributes:
        made_names: Of each node the name of the first tensor it makes.
        node_names: Of each node its name, if it has one and no other node of the graph has it.
    """

    def __init__(self, side: Side, ends: Mapping[str, Hashable]) -> None:
        """Looks at a graph.

        Args:
            side: The graph.
            ends: Those of its outputs of which it is known which they are, by tensor name.
        """
        self._side, self._ends = side, ends
        self._places = {name: place for place, name in enumerate(side.scope.outputs)}
        self._samples: dict[str, Hashable] = {}
        self.made_names = [writes[0] if writes else None for writes in side.scope.writes]
        self.node_names = _node_names(side)

    def names(self) -> tuple[Callable[[int], Hashable], ...]:
        """Returns what gives the traits that cost no look at weights, of a node by its position, strongest first."""
        return (
            self._all_names,
            self._weight_names,
            self.made_names.__getitem__,
            self.node_names.__getitem__,
            self._place,
            self._side.details,
        )

    def sample(self, position: int) -> Hashable:
        """Returns a few bytes of each of a node's weights; None if it has none."""
        side, known = self._side, self._samples
        names = [name for name in side.inputs[position] if name in side.stored]
        tensors = [attribute.t for attribute in side.scope.nodes[position].attribute if attribute.type == 4]
        for name in names:
            if name not in known:
                known[name] = _tensors.sample(side.model, side.stored[name])
        found = (*(known[name] for name in names), *(_tensors.sample(side.model, tensor) for tensor in tensors))
        return found or None

    def _all_names(self, position: int) -> Hashable:
        node = self._side.scope.nodes[position]
        return (node.name, *node.output)

    def _weight_names(self, position: int) -> Hashable:
        return tuple(name for name in self._side.inputs[position] if name in self._side.stored) or None

    def _place(self, position: int) -> Hashable:
        """Returns at which place the graph returns a tensor of a node; None if it returns none."""
        return next((self._places[name] for name in self._side.scope.writes[position] if name in self._ends), None)


def _node_names(side: Side) -> list[str | None]:
    names = [node.name for node in side.scope.nodes]
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [name if name and seen[name] == 1 else None for name in names]
