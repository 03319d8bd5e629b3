"""Which nodes lose most in half precision, and what of that reaches the outputs: measured in one run.

To run the model once per node, with that node alone in half precision, would rank them by their true effect, in as many
runs as there are nodes. One run tells almost as much. Beside each node of the float32 model stand twins of it that read
the float32 model's values: one that computes in half precision, whose error is the node's *own error*, and one per
input, which reads that input with a small relative error; how much of it arrives at the outputs is the *gain* from this
input. The own error of a node, times the gains along the ways from it to an output, is its estimated *effect* there:
gains are multiplied from the outputs back, and where ways part, squares are added (rounding errors are independent).
So a node whose result is subtracted from a nearly equal one ranks high, though its own error is small.

Errors are compared element by element, |a - b| / (|a - b| + |b| + s), and averaged. s is the typical size of an
element, a mean (of -1/2nd powers) that neither zeros nor a few huge values move, so a mask of -1e9 does not drown what
it leaves alone. The small error of an input is noise of one size for all elements, 2^-9 of s: such are the errors that
arrive from nodes before. It is an error of precision alone; range is judged by the first twin. What is not finite there
and is in float32 comes before all numbers.

Twins are compared within the run, which yields two numbers of each; so it needs no more memory than the model, and
takes as long as two to four runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from onnxbench import backends
from onnxbench.captures import Value
from onnxbench.errors import ExecutionError
from onnxbench.graph import topological_order
from onnxbench.messages import copy_of
from onnxbench.tuning._emulation import FLOAT32, make_node

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

    from onnxbench.graph import GraphIndex
    from onnxbench.model import Model
    from onnxbench.tuning._emulation import Unit

_LARGEST_GAIN = 1e4
_NOISE = 2.0**-9
_TINY = 1e-37
_STRING = 8


class Lowering(Protocol):
    """A float32 model whose nodes can be computed with less: half precision (``Emulation``), or int8.

    Attributes:
        model: The model, sorted.
        index: Its index.
        kinds: Of each graph, the element types of its tensors, as far as they are known.
        units: The nodes that can be computed with less.
    """

    @property
    def model(self) -> Model: ...
    @property
    def index(self) -> GraphIndex: ...
    @property
    def kinds(self) -> Sequence[Mapping[str, int]]: ...
    @property
    def units(self) -> Sequence[Unit]: ...

    def units_of(self, position: int) -> list[int]:
        """Returns the units that a node of the main graph is, or holds in its bodies."""

    def is_moving(self, node: NodeProto) -> bool:
        """Tells whether the outputs of a node hold elements of its inputs."""

    def new_name(self) -> str:
        """Returns a name that no tensor has."""

    def twin(self, position: int, halves: dict[str, str], used: dict[str, None]) -> tuple[list[NodeProto], list[str]]:
        """Returns a node computed with less, on the values of the float32 model, and what its outputs are called."""

    def add_weights(self, graph: GraphProto, names: Iterable[str]) -> None:
        """Adds the weights that twins said to use."""


@dataclass(frozen=True, slots=True)
class Rank:
    """What is known of a unit before any set was tried.

    Attributes:
        own: Its own error: 0 to 1, infinite where it makes NaN or Inf of finite values; None where it was not measured.
        gain: What becomes of an error of its outputs at the outputs of the model: 1 leaves it as it is.
        effect: The estimated error at the outputs.
    """

    own: float | None
    gain: float
    effect: float


@dataclass(slots=True)
class _Twins:
    """What a run yields.

    Attributes:
        own: For a node: outputs that hold the sums of its errors and numbers of elements, by output.
        gains: For a node and an input slot, the same, by output.
        inputs: For a tensor, those of the error that it is read with.
    """

    own: dict[int, dict[str, tuple[str, str]]] = field(default_factory=dict)
    gains: dict[tuple[int, int], dict[str, tuple[str, str]]] = field(default_factory=dict)
    inputs: dict[str, tuple[str, str]] = field(default_factory=dict)


def rank(emulation: Lowering, feeds: Mapping[str, Value]) -> tuple[tuple[Rank, ...], float]:
    """Returns what is measured of each unit on one sample, and how many runs of the model that took.

    Args:
        emulation: The model.
        feeds: The sample.
    """
    main = emulation.index.main
    wanted = [position for position in range(len(main.nodes)) if _is_measured(emulation, position)]
    runs = 0.0
    errors = _Errors()
    pending = [wanted]
    while pending:
        nodes = pending.pop()
        try:
            runs += _measure(emulation, nodes, feeds, errors)
        except ExecutionError:  # a twin has another shape, perhaps: which one?
            runs += 1
            if len(nodes) > 1:
                pending += [nodes[len(nodes) // 2 :], nodes[: len(nodes) // 2]]
    return _ranks(emulation, errors), runs


def merge(one: Sequence[Rank], other: Sequence[Rank]) -> tuple[Rank, ...]:
    """Returns the worse of what two samples say of each unit."""
    return tuple(max(pair, key=lambda each: (each.effect, each.own or 0.0)) for pair in zip(one, other, strict=True))


@dataclass(slots=True)
class _Errors:
    """Errors by node and output, and gains by node and input slot and output."""

    own: dict[int, dict[str, float]] = field(default_factory=dict)
    gains: dict[tuple[int, int], dict[str, float]] = field(default_factory=dict)


def _is_measured(emulation: Lowering, position: int) -> bool:
    """Tells whether a node of the main graph has twins: it is a unit or holds some, or an error passes through it."""
    main, kinds = emulation.index.main, emulation.kinds[0]
    if emulation.units_of(position):
        return True
    node = main.nodes[position]
    reads_floats = any(kinds.get(name) == FLOAT32 for name in node.input)
    return reads_floats and not emulation.is_moving(node) and node.op_type not in ("Shape", "Size", "Constant")


def _measure(emulation: Lowering, nodes: Sequence[int], feeds: Mapping[str, Value], errors: _Errors) -> float:
    """Runs the model with twins of these nodes; returns how many runs of the model that is as long as."""
    builder = _Builder(emulation, nodes)
    session = backends.open_session(
        emulation.model.derive(builder.proto), options=backends.Options(optimization="none", frugal=True)
    )
    values = session.run(feeds)
    session.close()

    def error(names: tuple[str, str]) -> float:
        total, size = (float(values[name]) for name in names)
        if not math.isfinite(total):
            return math.inf
        return total / size if size else 0.0

    found = builder.twins
    for position, outputs in found.own.items():
        errors.own[position] = {name: error(pair) for name, pair in outputs.items()}
    arriving = {name: error(pair) for name, pair in found.inputs.items()}
    main = emulation.index.main
    for (position, slot), outputs in found.gains.items():
        before = arriving[main.nodes[position].input[slot]]
        if before and math.isfinite(before):
            errors.gains[position, slot] = {
                name: min(error(pair) / before, _LARGEST_GAIN) for name, pair in outputs.items()
            }
    return 1 + builder.copies / max(1, len(main.nodes))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Names of what is known of a tensor within the run.

    Attributes:
        plain: The tensor as float32.
        size: The absolute values of its elements.
        count: How many these are.
        typical: How large they typically are.
    """

    plain: str
    size: str
    count: str
    typical: str


class _Builder:
    """The model with twins of some nodes, and the sums of their errors as outputs.

    Attributes:
        proto: The model that is run.
        twins: Which of its outputs are what.
        copies: How many twins there are.
    """

    def __init__(self, emulation: Lowering, nodes: Collection[int]) -> None:
        self._emulation, self._main, self._kinds = emulation, emulation.index.main, emulation.kinds[0]
        self.twins, self.copies = _Twins(), 0
        self._outputs: list[str] = []
        self._halves: dict[str, str] = {}
        self._perturbed: dict[str, str] = {}
        self._sizes: dict[str, _Sizes] = {}
        used: dict[str, None] = {}
        chosen = set(nodes)
        varying = _varying(emulation)
        self.proto: ModelProto = copy_of(emulation.model.proto)
        graph = self.proto.graph
        made: list[NodeProto] = []
        self._zero, self._one, self._tiny = (emulation.new_name() for _ in range(3))
        for position, node in enumerate(self._main.nodes):
            made.append(node)
            if position not in chosen:
                continue
            if emulation.units_of(position):
                twin, names = emulation.twin(position, self._halves, used)
                made += twin
                self.copies += 1
                pairs = zip(node.output, names, strict=True)
                self.twins.own[position] = self._compare_all(pairs, made)
            for slot, name in enumerate(node.input):
                if self._kinds.get(name) == FLOAT32 and name in varying:
                    self.twins.gains[position, slot] = self._gain(node, slot, made)
                    self.copies += 1
        copies = [copy_of(node) for node in made]
        del graph.node[:]
        graph.node.extend(copies)
        del graph.output[:]
        for name in self._outputs:
            graph.output.add(name=name)
        emulation.add_weights(graph, used)
        for name, value in ((self._zero, 0.0), (self._one, 1.0), (self._tiny, _TINY)):
            graph.initializer.add(name=name, data_type=FLOAT32, float_data=[value])

    def _gain(self, node: NodeProto, slot: int, made: list[NodeProto]) -> dict[str, tuple[str, str]]:
        """Adds a twin that reads one input with a small error, and returns how far its outputs are off."""
        name = node.input[slot]
        if name not in self._perturbed:
            self._perturbed[name] = self._perturb(name, made)
            self.twins.inputs[name] = self._compare(name, self._perturbed[name], made)
        twin = copy_of(node)
        twin.input[slot] = self._perturbed[name]
        names = [self._emulation.new_name() if output else "" for output in node.output]
        del twin.output[:]
        twin.output.extend(names)
        made.append(twin)
        return self._compare_all(zip(node.output, names, strict=True), made)

    def _perturb(self, name: str, made: list[NodeProto]) -> str:
        """Adds noise to a tensor, and returns what the sum is called."""
        new = self._emulation.new_name
        noise, small, off = new(), new(), new()
        made += [
            make_node("RandomUniformLike", [name], [noise], low=-_NOISE, high=_NOISE, seed=1.0),
            make_node("Mul", [noise, self._measured(name, made).typical], [small]),
            make_node("Add", [name, small], [off]),
        ]
        return off

    def _compare_all(self, pairs: Iterable[tuple[str, str]], made: list[NodeProto]) -> dict[str, tuple[str, str]]:
        return {
            one: self._compare(one, other, made)
            for one, other in pairs
            if one and self._kinds.get(one, _STRING) != _STRING
        }

    def _measured(self, name: str, made: list[NodeProto]) -> _Sizes:
        """Returns a tensor as float32, the sizes of its elements, and so on; made when it is first asked for."""
        if name not in self._sizes:
            new = self._emulation.new_name
            plain = name
            if self._kinds[name] != FLOAT32:
                plain = new()
                made.append(make_node("Cast", [name], [plain], to=FLOAT32))
            size, count, zero, root, power, some, there, sums, number, mean, typical = (new() for _ in range(11))
            made += [
                make_node("Abs", [plain], [size]),
                make_node("Size", [plain], [count]),
                make_node("Equal", [size, self._zero], [zero]),
                make_node("Where", [zero, self._one, size], [some]),
                make_node("Sqrt", [some], [root]),
                make_node("Where", [zero, self._zero, self._one], [there]),
                make_node("Div", [there, root], [power]),
                make_node("ReduceSum", [power], [sums], keepdims=0),
                make_node("ReduceSum", [there], [number], keepdims=0),
                *self._guarded_ratio(number, sums, mean),
                make_node("Mul", [mean, mean], [typical]),
            ]
            self._sizes[name] = _Sizes(plain, size, count, typical)
            self._outputs.append(count)
        return self._sizes[name]

    def _guarded_ratio(self, above: str, below: str, target: str) -> list[NodeProto]:
        """Returns the nodes that divide one number by another one, which may be 0 if that is."""
        safe = self._emulation.new_name()
        return [make_node("Add", [below, self._tiny], [safe]), make_node("Div", [above, safe], [target])]

    def _compare(self, one: str, other: str, made: list[NodeProto]) -> tuple[str, str]:
        """Adds the comparison of two tensors; returns the outputs with the sum of errors and the number of elements."""
        new = self._emulation.new_name
        sizes = self._measured(one, made)
        if self._kinds[one] != FLOAT32:
            cast = new()
            made.append(make_node("Cast", [other], [cast], to=FLOAT32))
            other = cast
        apart, size, same, distance, whole, scale, share, total = (new() for _ in range(8))
        made += [
            make_node("Sub", [other, sizes.plain], [apart]),
            make_node("Abs", [apart], [size]),
            make_node("Equal", [other, sizes.plain], [same]),
            make_node("Where", [same, self._zero, size], [distance]),  # two infinities of one sign are equal
            make_node("Add", [distance, sizes.size], [whole]),
            make_node("Add", [whole, sizes.typical], [scale]),
            *self._guarded_ratio(distance, scale, share),
            make_node("ReduceSum", [share], [total], keepdims=0),
        ]
        self._outputs.append(total)
        return total, sizes.count


def _varying(emulation: Lowering) -> set[str]:
    """Returns the tensors of the main graph that depend on an input of the model."""
    from onnxbench.boundary import depends_on

    main = emulation.index.main
    return set(depends_on(main, main.true_inputs()))


def _ranks(emulation: Lowering, errors: _Errors) -> tuple[Rank, ...]:
    """Returns own errors, gains to the outputs, and effects, from what was measured of single nodes."""
    main = emulation.index.main
    squares: dict[str, float] = dict.fromkeys(main.outputs, 1.0)
    order = topological_order(main) or range(len(main.nodes))
    ranks: list[Rank | None] = [None] * len(emulation.units)
    for position in reversed(order):
        node = main.nodes[position]
        reaching = {name: squares.get(name, 0.0) for name in main.writes[position]}
        for slot, name in enumerate(node.input):
            if not name:
                continue
            gains = errors.gains.get((position, slot), {})
            arriving = sum(gains.get(output, 1.0) ** 2 * square for output, square in reaching.items())
            squares[name] = min(squares.get(name, 0.0) + arriving, _LARGEST_GAIN**4)
        for name in set(main.reads[position]) - set(node.input):  # what its bodies capture
            squares[name] = min(squares.get(name, 0.0) + sum(reaching.values()), _LARGEST_GAIN**4)
        units = emulation.units_of(position)
        if units:
            found = _rank(errors.own.get(position), reaching)
            for unit in units:
                before = ranks[unit]
                ranks[unit] = found if before is None else merge([before], [found])[0]
    return tuple(each or Rank(None, 0.0, 0.0) for each in ranks)


def _rank(own: Mapping[str, float] | None, reaching: Mapping[str, float]) -> Rank:
    gain = math.sqrt(max(reaching.values(), default=0.0))
    if own is None:
        return Rank(None, gain, gain)
    error = max(own.values(), default=0.0)
    if math.isinf(error):
        return Rank(error, gain, math.inf)
    return Rank(error, gain, math.sqrt(sum(own[name] ** 2 * reaching.get(name, 0.0) for name in own)))
