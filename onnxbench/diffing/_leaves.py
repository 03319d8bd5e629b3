"""Which input and which weight of one graph is which of another: what nodes that were found tell, and what is left."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import partial

from onnxbench.diffing import _tensors
from onnxbench.diffing._neighbours import join, type_key
from onnxbench.diffing._sides import Side


class Leaves:
    """Pairs tensors that no node makes, into the tables of a matching (see ``_matching``)."""

    def __init__(
        self, a: Side, b: Side, nodes: Sequence[int], tensors: dict[str, str], tensors_b: dict[str, str]
    ) -> None:
        """Looks at two graphs.

        Args:
            a: The first graph.
            b: The second one.
            nodes: Of each node of ``a``, the position of its partner by now, or -1.
            tensors: Tensors of ``a`` to tensors of ``b``, as far as they are known by now; gets further ones.
            tensors_b: The same from ``b``.
        """
        self._a, self._b = a, b
        self._nodes, self._tensors, self._tensors_b = nodes, tensors, tensors_b

    def can_be_one(self, name: str, name_b: str) -> bool:
        """Tells whether what two nodes that are the same read at the same place are one input or one weight."""
        a, b = self._a, self._b
        if name in a.given and name_b in b.given:
            return name not in b.given and name_b not in a.given
        if name not in a.stored or name_b not in b.stored or name in a.given or name_b in b.given:
            return False
        return name == name_b or self._may_be_renamed(name, name_b)

    def _may_be_renamed(self, name: str, name_b: str) -> bool:
        a, b = self._a, self._b
        if list(a.stored[name].dims) != list(b.stored[name_b].dims):
            return False
        return (name not in b.stored and name_b not in a.stored) or self._was_renamed(name, name_b)

    def _was_renamed(self, name: str, name_b: str) -> bool:
        """Tells whether a weight has another name although its old name is in use: by samples of the values."""
        one = self._values(True, name)
        if one != self._values(False, name_b):
            return False
        return name not in self._b.stored or one != self._values(False, name)

    # ---- when no more nodes are found

    def pair_rest(self, ends: Iterable[tuple[str, str]]) -> None:
        """Pairs inputs and weights that no node has settled: by name, then by type or value; then all by name alone.

        Args:
            ends: Tensors that are the same output.
        """
        self._pair_inputs()
        a, b = self._a, self._b
        for name, name_b in (*((name, name) for name in a.stored), *ends):
            if name in a.stored and name_b in b.stored and name not in self._tensors and name_b not in self._tensors_b:
                self._pair(name, name_b)
        for key, takes_several in ((self._use_and_values, True), (self._used, True), (self._values, False)):
            stored = [name for name in a.stored if name not in self._tensors]
            stored_b = [name for name in b.stored if name not in self._tensors_b]
            for ones, others in join(stored, partial(key, True), stored_b, partial(key, False)):
                if len(ones) == len(others) and (len(ones) == 1 or takes_several):
                    for one, other in zip(ones, others, strict=True):
                        self._pair(one, other)
        self._pair_by_name_alone()

    def _pair_inputs(self) -> None:
        a, b = self._a, self._b
        inputs = [name for name in a.given if name not in self._tensors]
        inputs_b = [name for name in b.given if name not in self._tensors_b]
        if not inputs or not inputs_b or a.scope.is_function:
            return
        types = {info.name: type_key(info.type) for info in a.scope.graph.input}
        types_b = {info.name: type_key(info.type) for info in b.scope.graph.input}
        for ones, others in join(inputs, types.get, inputs_b, types_b.get):
            if len(ones) == len(others):
                for one, other in zip(ones, others, strict=True):
                    self._pair(one, other)

    def _pair_by_name_alone(self) -> None:
        """Pairs tensors that are made otherwise now and are called the same: who reads them was not changed."""
        a, b = self._a, self._b
        made = [name for one, other in enumerate(self._nodes) if other < 0 for name in a.scope.writes[one]]
        for name in (*made, *a.stored, *a.given):
            if name in self._tensors or name in self._tensors_b:
                continue
            if name in b.scope.producers or name in b.stored or name in b.given:
                self._pair(name, name)

    def _pair(self, name: str, name_b: str) -> None:
        self._tensors[name], self._tensors_b[name_b] = name_b, name

    # ---- what a weight is told by

    def _values(self, first: bool, name: str) -> Hashable:
        side = self._a if first else self._b
        return _tensors.sample(side.model, side.stored[name])

    def _use_and_values(self, first: bool, name: str) -> Hashable:
        return self._use_of(first, name), self._values(first, name)

    def _used(self, first: bool, name: str) -> Hashable:
        """Returns who reads a weight of some shape; None if nobody does."""
        use = self._use_of(first, name)
        return (use, tuple((self._a if first else self._b).stored[name].dims)) if use else None

    def _use_of(self, first: bool, name: str) -> Hashable:
        """Returns which nodes read a weight, as positions in ``b``."""
        if first:
            return tuple(sorted({(self._nodes[reader], slot) for reader, slot in self._a.consumers.get(name, ())}))
        return tuple(sorted(set(self._b.consumers.get(name, ()))))
