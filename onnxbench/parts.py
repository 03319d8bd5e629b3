"""A model that is run in parts: any nodes of it, on values from anywhere.

Two things are made of this. *Capture in bounded memory*: the model runs from front to back in parts, each of which
gives the tensors that were asked for next, and only tensors that a later part reads are kept meanwhile. (Running the
whole model once per batch of outputs gives the same values, in many times the time.) *Teacher forcing*: parts that
read the reference's values in place of what the nodes before them made, so that one run shows every node's own error.

Graph optimizations are off in all parts, so a part computes what the same nodes compute within the whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.bodies import body_model, type_of
from onnxbench.boundary import depends_on, reach_back
from onnxbench.captures import Value, onnx_dtype
from onnxbench.errors import ExecutionError
from onnxbench.graph import GraphIndex, Scope, topological_order
from onnxbench.inference import bare, inferred, inferred_types
from onnxbench.tensortype import byte_width, elem_type, make_type, tensor_shape

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto

    from onnxbench.model import Model

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a run from front to back.

    Attributes:
        nodes: Positions of its nodes.
        outputs: What it makes for the caller or for later parts.
        asked: What the caller asked for: made here, or earlier.
        last: Tensors that nobody needs afterwards.
    """

    nodes: tuple[int, ...]
    outputs: tuple[str, ...]
    asked: tuple[str, ...]
    last: tuple[str, ...]


class Parts:
    """A model whose nodes can be run on any values.

    Args:
        model: The model, without local functions; it is not changed.
        backend: What runs it.
        options: How sessions are set up, but for optimizations, which are off.
        index: Its index, if there is one already.

    Attributes:
        scope: Its main graph.
        varying: Tensors that depend on an input, or on a random operator; all others are constants.
        random: Positions of nodes that make random numbers.
    """

    def __init__(
        self, model: Model, backend: str, options: backends.Options, *, index: GraphIndex | None = None
    ) -> None:
        self.model, self._backend = model, backend
        self._options = replace(options, optimization="none", frugal=True, profile=None)
        self.scope: Scope = (index or GraphIndex(model.proto)).main
        order = topological_order(self.scope)
        self.rank = list(range(len(self.scope.nodes)))
        for place, position in enumerate(order or ()):
            self.rank[position] = place
        self.random = {at for at, node in enumerate(self.scope.nodes) if node.op_type in _RANDOM}
        made = [name for at in self.random for name in self.scope.writes[at]]
        self.varying = depends_on(self.scope, [*self.scope.true_inputs(), *made])
        self._declared = {name: info.type for name, info in self.scope.stated.items() if info.HasField("type")}
        self._kinds: dict[str, TypeProto | None] = {}
        names = set(self.scope.producers)
        self._mark = "onnxbench_made_"
        while any(name.startswith(self._mark) for name in names):
            self._mark += "_"

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Returns tensors in the order in which the model makes them; inputs and weights come first."""
        producers, rank = self.scope.producers, self.rank
        return sorted(names, key=lambda name: rank[producers[name]] if name in producers else -1)

    def run(
        self, nodes: Collection[int], given: Mapping[str, Value], outputs: Sequence[str], *, unpacked: bool = False
    ) -> dict[str, Value]:
        """Returns what some nodes make of given values.

        Args:
            nodes: Their positions.
            given: Values that they read. One that a node among them makes all the same is read by all others in place
                of what that node makes.
            outputs: What to return: tensors that these nodes make.
            unpacked: Take half the time where weights are many, and results that may differ in rounding.

        Raises:
            ExecutionError: They do not run on these values.
        """
        proto, made = self.proto(nodes, given, outputs)
        session = self.open(self.model.derive(proto), unpacked=unpacked)
        found = session.run({info.name: given[info.name] for info in proto.graph.input})
        session.close()
        return {name: found[made[name]] for name in outputs}

    def open(self, model: Model, *, unpacked: bool = False) -> backends.Session:
        """Returns a session for a model that is a part of this one."""
        return backends.open_session(model, self._backend, options=replace(self._options, unpacked=unpacked))

    def body(self, body: Scope, values: Mapping[str, Value]) -> Model:
        """Returns a body of a node as a model whose inputs are these values: its own inputs and what it captures."""
        return body_model(self.model, body, values, self._declared)

    def proto(
        self, nodes: Collection[int], given: Mapping[str, Value], outputs: Sequence[str]
    ) -> tuple[ModelProto, dict[str, str]]:
        """Returns the model that ``run`` runs, and what its outputs are called there."""
        source, scope = self.model.proto, self.scope
        proto = type(source)()
        proto.ir_version = max(source.ir_version, 4)  # before, initializers had to be listed as inputs
        proto.opset_import.extend(source.opset_import)
        proto.functions.extend(source.functions)
        graph = proto.graph
        graph.name = scope.graph.name or "part"
        ordered = sorted(nodes, key=self.rank.__getitem__)
        read = {name for position in ordered for name in scope.reads[position]}
        fed = [name for name in given if name in read]
        taken = set(fed)
        made: dict[str, str] = {}
        for position in ordered:
            node = graph.node.add()
            node.CopyFrom(scope.nodes[position])
            for at, name in enumerate(node.output):
                if name in taken:
                    node.output[at] = made[name] = self._mark + name
        for name in outputs:
            made.setdefault(name, name)
        graph.initializer.extend(t for t in scope.graph.initializer if t.name in read and t.name not in taken)
        graph.sparse_initializer.extend(
            t for t in scope.graph.sparse_initializer if t.values.name in read and t.values.name not in taken
        )
        for name in fed:
            info = graph.input.add(name=name)
            kind = type_of(given[name]) or self._declared.get(name)
            if kind is not None:
                info.type.CopyFrom(kind)
        for name in outputs:
            graph.output.add(name=made[name])
        return proto, made

    def plan(self, batches: Sequence[Sequence[str]]) -> list[Step]:
        """Returns the parts of a run that gives these tensors, batch after batch, running each node once.

        Nodes that depend on no input are the exception: each part that reads what they make runs them itself, so that
        what is a constant for the runtime stays one.
        """
        scope, varying = self.scope, self.varying
        made: set[str] = set()
        parts: list[set[int]] = []
        for batch in batches:
            reach = reach_back(scope, batch, made)
            parts.append(reach.nodes)
            made.update(name for at in reach.nodes for name in scope.writes[at] if name in varying)
        last: dict[str, int] = {}
        for number, (nodes, batch) in enumerate(zip(parts, batches, strict=True)):
            for name in batch:
                last[name] = number
            for position in nodes:
                for name in scope.reads[position]:
                    last[name] = number
        steps = []
        for number, (nodes, batch) in enumerate(zip(parts, batches, strict=True)):
            own = {name for at in nodes for name in scope.writes[at]}
            asked = set(batch)
            kept = [name for name in own if name in asked or (name in varying and last.get(name, -1) > number)]
            over = tuple(name for name in last if last[name] == number)
            steps.append(Step(tuple(sorted(nodes)), tuple(self.in_order(kept)), tuple(batch), over))
        return steps

    def stream(self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]:
        """Yields the values of tensors, batch after batch (see ``plan``).

        Args:
            feeds: The inputs of the model.
            batches: The tensors.

        Raises:
            ExecutionError: The run failed.
        """
        held: dict[str, Value] = dict(feeds)
        for step in self.plan(batches):
            made = self.run(step.nodes, held, step.outputs) if step.outputs else {}
            held.update((name, value) for name, value in made.items() if name in self.varying)
            asked = {name: made[name] if name in made else held.get(name) for name in step.asked}
            asked.update((name, self.stored(name)) for name in step.asked if name not in made and name not in held)
            del made
            yield asked
            del asked
            for name in step.last:
                held.pop(name, None)

    def stored(self, name: str) -> Value:
        """Returns the values of an initializer."""
        tensor = next(t for t in self.scope.graph.initializer if t.name == name)
        return self.model.array(tensor)

    def constant(self, name: str) -> Value | None:
        """Returns the values of a dense initializer, or of the tensor that a Constant node holds; None for all else."""
        at = self.scope.producers.get(name)
        if at is None:
            tensor = next((t for t in self.scope.graph.initializer if t.name == name), None)
        else:
            node = self.scope.nodes[at]
            held = node.attribute[0] if node.op_type == "Constant" and node.attribute else None
            tensor = held.t if held is not None and held.name == "value" else None
        return None if tensor is None else self.model.array(tensor)

    def kinds(self, names: Sequence[str], *, stated: bool = False) -> dict[str, TypeProto]:
        """Returns the types of tensors, as far as a runtime or onnx can tell; each is asked for once.

        Args:
            names: The tensors.
            stated: Take the file's word where it states a type. A wrong element type is refused by every runtime, so
                that is right in a model that runs; sizes may be wrong.
        """
        there = {name: self._declared[name] for name in names if stated and self._has_type(name)}
        new = [name for name in names if name not in self._kinds and name not in there]
        if new:
            self._kinds.update(dict.fromkeys(new))
            self._kinds.update(backends.tensor_types(self.model, new))
        return {name: kind for name in names if (kind := there.get(name) or self._kinds[name]) is not None}

    def _has_type(self, name: str) -> bool:
        return name in self._declared and elem_type(self._declared[name]) != 0

    def sizes(self, feeds: Mapping[str, Value], names: Sequence[str]) -> dict[str, int]:
        """Returns the bytes that tensors take for these inputs: as onnx infers them, else from a run that keeps none.

        Only what the others depend on is run.
        """
        sizes = self._inferred_sizes(feeds, names)
        rest = [name for name in names if name not in sizes]
        options = replace(self._options, optimization="none")
        return {**sizes, **(backends.observed_sizes(self.model, feeds, rest, options=options) if rest else {})}

    def _inferred_sizes(self, feeds: Mapping[str, Value], names: Sequence[str]) -> dict[str, int]:
        proto = bare(self.model.proto)
        for info in proto.graph.input:
            value: Any = feeds.get(info.name)
            if hasattr(value, "dtype"):
                info.type.CopyFrom(make_type(onnx_dtype(value.dtype), value.shape))
        sizes: dict[str, int] = {}
        for name, kind in inferred_types(inferred(proto), names).items():
            shape = tensor_shape(kind)
            if shape is not None and all(isinstance(size, int) for size in shape):
                sizes[name] = math.prod(size for size in shape if isinstance(size, int)) * byte_width(elem_type(kind))
        return sizes

    def batches(self, feeds: Mapping[str, Value], names: Sequence[str], max_bytes: int) -> list[list[str]]:
        """Returns tensors in batches whose values take about so many bytes for these inputs, in the order given."""
        try:
            sizes = self.sizes(feeds, names)
        except ExecutionError:
            sizes = {}
        return backends.in_batches(names, sizes, max_bytes)
