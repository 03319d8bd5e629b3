"""Parts of a model as models of their own, with the values that flow into them: what is tried in a search.

A part is a set of nodes. What they read and none of them makes becomes an input, which is fed with what the whole
model had there; what is read outside of them, or by nobody, becomes an output. Nodes with bodies are kept whole.
Constant nodes are no part of the question: each comes along with the nodes that read it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench.captures import Value, onnx_dtype
from onnxbench.cut import Cut, assemble, frontier
from onnxbench.errors import UnsupportedError
from onnxbench.graph import GraphIndex, Scope, topological_order
from onnxbench.inference import TypeFinder
from onnxbench.tensortype import make_type

if TYPE_CHECKING:
    from onnx import TypeProto

    from onnxbench.model import Model
    from onnxbench.shrinking._records import Records


@dataclass(frozen=True, slots=True, eq=False)
class Specimen:
    """A part of a model, and what flows into it.

    Attributes:
        model: The part: a model of its own.
        sets: What flows into it, for each set of the whole model's inputs.
        inputs: Its inputs.
        outputs: Its outputs.
        nodes: How many nodes it has, Constant nodes included.
    """

    model: Model
    sets: tuple[Mapping[str, Value], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int

    def inputs_as_text(self, number: int) -> list[str]:
        """Returns what flows in, on one set: ``x: float32[1, 3]``."""
        given = self.sets[number]
        return [
            f"{name}: {value.dtype.name}{list(value.shape)}" if hasattr(value, "dtype") else f"{name}: no tensor"
            for name in self.inputs
            if name in given and (value := given[name]) is not None
        ]


class Specimens:
    """What parts of a model are made of.

    Args:
        model: The model, without local functions; it is not changed.
        records: Values of its tensors.
        open_sizes: Leave the sizes of what flows into parts open. A runtime that knows them may find out before the run
            what fails in it otherwise.

    Attributes:
        scope: Its main graph.
        units: Positions of the nodes that a search is about, in topological order.
    """

    def __init__(self, model: Model, records: Records, *, open_sizes: bool = False) -> None:
        self.model, self.records, self._open_sizes = model, records, open_sizes
        self._index = GraphIndex(model.proto)
        self.scope: Scope = self._index.main
        self._finder = TypeFinder(model, self._index)
        order = topological_order(self.scope)
        self._order = list(range(len(self.scope.nodes))) if order is None else list(order)
        self._constants = {at for at, node in enumerate(self.scope.nodes) if _is_constant(node)}
        self.units = tuple(at for at in self._order if at not in self._constants)
        self._rank = {at: rank for rank, at in enumerate(self._order)}

    def of(self, part: Model) -> Specimens:
        """Returns what parts of a part are made of."""
        return Specimens(part, self.records, open_sizes=self._open_sizes)

    def in_order(self, nodes: Collection[int]) -> tuple[int, ...]:
        """Returns positions of nodes in topological order."""
        return tuple(sorted(nodes, key=self._rank.__getitem__))

    def made(self, nodes: Collection[int]) -> list[str]:
        """Returns the tensors that these nodes make, in the order of the model."""
        return [name for at in self.in_order(nodes) for name in self.scope.writes[at] if name]

    def with_constants(self, nodes: Collection[int]) -> set[int]:
        """Returns these nodes and the Constant nodes that they read."""
        producers, reads = self.scope.producers, self.scope.reads
        read = {producers[name] for at in nodes for name in reads[at] if name in producers}
        return set(nodes) | (read & self._constants)

    def whole(self) -> Specimen:
        """Returns the model as it is."""
        names = self.scope.true_inputs()
        given = enumerate(self.records.sets)
        sets = tuple(self.records.feeds([name for name in names if name in each], at) for at, each in given)
        return Specimen(self.model, sets, tuple(names), tuple(self.scope.outputs), len(self.scope.nodes))

    def make(self, nodes: Collection[int], outputs: Sequence[str] | None = None) -> Specimen:
        """Returns the part that consists of some nodes.

        Args:
            nodes: Their positions; Constant nodes that they read come along.
            outputs: What it gives out, in place of all that leaves it.

        Raises:
            UnsupportedError: A value that flows into it is not known, or a type cannot be told.
        """
        chosen = self.with_constants(nodes)
        entering, leaving = frontier(self.scope, chosen)
        constants = [n for at in chosen for n in self.scope.reads[at] if n in self.scope.constants]
        if outputs is None:
            made_by_constants = {name for at in chosen & self._constants for name in self.scope.writes[at]}
            leaving = [name for name in leaving if name not in made_by_constants] or leaving
        else:
            leaving = list(outputs)
        if not self.records.has(entering):
            raise UnsupportedError("a value that flows into these nodes is not known")
        cut = Cut(
            inputs=tuple(entering), outputs=tuple(leaving), nodes=self.in_order(chosen),
            constants=tuple(sorted(set(constants))), total_nodes=len(self.scope.nodes),
        )  # fmt: skip
        types = {name: kind for name in entering if (kind := self._type(name)) is not None}
        types |= {
            name: kind
            for name in leaving
            if name not in types and self.records.has([name]) and (kind := self._type(name)) is not None
        }
        piece = assemble(self.model, self._index, self.scope, cut, finder=self._finder, types=types)
        sets = tuple(self.records.feeds(entering, number) for number in range(len(self.records.sets)))
        return Specimen(piece.model, sets, tuple(entering), tuple(leaving), len(chosen))

    def _type(self, name: str) -> TypeProto | None:
        """Returns the type of a recorded value, a size that differs between sets left open; None for no tensor."""
        values = [self.records.value(name, number) for number in range(len(self.records.sets))]
        if not all(hasattr(value, "dtype") for value in values):
            return None
        if len({value.ndim for value in values}) > 1:
            return make_type(onnx_dtype(values[0].dtype), None)
        if self._open_sizes:
            return make_type(onnx_dtype(values[0].dtype), [None] * values[0].ndim)
        sizes = [set(axis) for axis in zip(*(value.shape for value in values), strict=True)]
        shape = [size.pop() if len(size) == 1 else None for size in sizes]
        return make_type(onnx_dtype(values[0].dtype), shape)


def _is_constant(node: object) -> bool:
    return getattr(node, "op_type", "") == "Constant" and getattr(node, "domain", "") in ("", "ai.onnx")
