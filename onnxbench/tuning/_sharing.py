"""Models that have much in common, run in one session that computes only once what is the same.

A set of kept nodes and the same set without one node differ in that node and in what depends on it. All else is the
same in both, bit for bit. So the graphs of such models are put into one, node by node in order: a node that does the
same as one that is there already, to the same values, is that one. Near the outputs of a network, where errors count
most as a rule, a further model costs a few nodes.

What it costs is told in nodes: all of the one graph over those of the first model. Models whose nodes have bodies are
run by themselves, since a name within a body may stand for what is not the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.folding import meaning_of
from onnxbench.graph import node_bodies
from onnxbench.messages import copy_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from onnxbench.captures import Value
    from onnxbench.model import Model

_OPTIONS = backends.Options(optimization="none", unpacked=True)


@dataclass(frozen=True, slots=True)
class Together:
    """A session with several models in it.

    Attributes:
        session: The session.
        names: Of each model, what its outputs are called in the session.
        cost: How long a run is, in runs of the first model.
    """

    session: backends.Session
    names: tuple[Mapping[str, str], ...]
    cost: float = 1.0

    def run(self, feeds: Mapping[str, Value]) -> list[dict[str, Value]]:
        """Returns the outputs of each model.

        Raises:
            ExecutionError: ONNX Runtime fails.
        """
        made = self.session.run(feeds)
        return [{name: made[inner] for name, inner in each.items()} for each in self.names]

    def close(self) -> None:
        """Ends the session."""
        self.session.close()


def alone(session: backends.Session) -> Together:
    """Returns a session with one model in it."""
    return Together(session, ({port.name: port.name for port in session.outputs},))


def open_together(models: Iterator[Model], *, most: float) -> Together:
    """Returns a session with as many of the first models as have not too many nodes together; with one at least.

    Args:
        models: Models with the same inputs, each of which is made when it is asked for.
        most: How many nodes they may have together, in those of the first one.

    Raises:
        ExecutionError: ONNX Runtime does not take them.
    """
    first = next(models)
    if _has_bodies(first.proto):
        return alone(backends.open_session(first, options=_OPTIONS))
    union = _Union(first.proto)
    for model in models:
        if not union.add(model.proto, most):
            break
    whole = first.derive(union.proto)
    whole.look_again()
    return Together(backends.open_session(whole, options=_OPTIONS), tuple(union.names), union.cost)


def _has_bodies(proto: ModelProto) -> bool:
    return any(node_bodies(node) for node in proto.graph.node)


class _Union:
    """A graph that computes what several do.

    Attributes:
        proto: The model that has it.
        names: Of each model that was added, what its outputs are called here.
    """

    def __init__(self, first: ModelProto) -> None:
        self.proto = copy_of(first)
        graph = self.proto.graph
        self._size = max(1, len(graph.node))
        self._first: dict[object, NodeProto] = {}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._taken = {info.name for info in graph.input} | set(self._stored)
        for node in graph.node:
            self._first.setdefault(meaning_of(node, {}), node)
            self._taken.update(node.output)
        self.names = [{info.name: info.name for info in graph.output}]

    @property
    def cost(self) -> float:
        """The nodes of this graph over those of the first one."""
        return len(self.proto.graph.node) / self._size

    def add(self, proto: ModelProto, most: float) -> bool:
        """Adds a model; returns whether it was, and does nothing if there were too many nodes then."""
        same: dict[str, str] = {}
        weights = [self._weight(tensor, same) for tensor in proto.graph.initializer]
        made: list[tuple[object, NodeProto]] = []
        known: dict[object, NodeProto] = {}
        for node in proto.graph.node:
            key = meaning_of(node, same)
            twin = self._first.get(key) or known.get(key)
            if twin is None:
                twin = copy_of(node)
                for slot, name in enumerate(twin.input):
                    twin.input[slot] = same.get(name, name)
                for slot, name in enumerate(twin.output):
                    twin.output[slot] = self._new(name) if name else ""
                known[key] = twin
                made.append((key, twin))
            same.update((old, new) for old, new in zip(node.output, twin.output, strict=True) if old)
        graph = self.proto.graph
        if len(graph.node) + len(made) > most * self._size:
            return False
        for tensor in weights:
            if tensor is not None:
                graph.initializer.append(tensor)
                self._stored[tensor.name] = graph.initializer[-1]
        for key, twin in made:
            graph.node.append(twin)
            self._first[key] = twin
        self._add_outputs(proto.graph, same)
        return True

    def _add_outputs(self, graph: GraphProto, same: Mapping[str, str]) -> None:
        names = {info.name: same.get(info.name, info.name) for info in graph.output}
        there = {info.name for info in self.proto.graph.output}
        for name in dict.fromkeys(names.values()):
            if name not in there:
                self.proto.graph.output.add(name=name)
        self.names.append(names)

    def _weight(self, tensor: TensorProto, same: dict[str, str]) -> TensorProto | None:
        """Returns a weight that is to be added; None where it is there. ``same`` learns what it is called here."""
        known = self._stored.get(tensor.name)
        if known is not None and known == tensor:
            return None
        copy = copy_of(tensor)
        copy.name = self._new(tensor.name)
        same[tensor.name] = copy.name
        return copy

    def _new(self, name: str) -> str:
        """Returns a name like this one that nothing has."""
        new, number = name, 0
        while new in self._taken:
            number += 1
            new = f"{name}#{number}"
        self._taken.add(new)
        return new
