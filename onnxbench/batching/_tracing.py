"""Where the batch is in every tensor, and which constants must change for it to be free.

The problem: exporters write the batch size of the example input into constants (shapes of Reshape, ends of Slice,
initial states, index grids). Whoever only renames the input's dimension gets a model that fails, or mixes samples
up, at any other size. Two -1 in one shape are not allowed, so "write -1 for the batch" does not work either.

How it is solved. The batch is followed from the inputs through the operators. In a tensor it lies along one axis,
which may hold more than it: of ``outer * batch * inner`` entries, laid out in that order (``Spread``). What a shape
says at any batch is found by evaluating the small tensors that shapes are computed from in several *worlds*, one per
batch size: where the worlds differ the graph already follows the batch, where they agree a constant is baked in. Each
operator's rule says what comes out, and which repair it needs for that.

Where a reshape leaves a choice (a batch of 1 can hide in many places), the likeliest is taken, and the next one when
that leads to a dead end, up to ``MOST_TRIES``. An operator without a rule (custom ones, functions, If, Loop, Scan) is
run at three batches at once and one by one, and its outputs tell.

Rejected: running the model and repairing what fails, one error at a time. Hundreds of runs, and what mixes samples up
does not fail. Cost here: one run for the shapes, then time linear in the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnxbench.graph import NodeRef, TensorRef
from onnxbench.tensortype import Dim, tensor_shape

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    from onnxbench.draft import Draft

MOST_TRIES = 64
"""So many choices of where the batch goes are tried."""
SMALL = 4096
"""Tensors of at most this many elements may be shapes or what shapes are computed from."""
WHOLE = (1 << 63) - 1
"""As the end of a Slice: to the end of the axis."""
_MAKERS = {"Expand", "Tile", "ConstantOfShape", "Range"}
"""Operators that can make a batch of numbers alone, with no input that carries one."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the batch lies in a tensor: along one axis, of ``outer * batch * inner`` entries in this order."""

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def factor(self) -> int:
        """How many entries along the axis one sample has."""
        return self.outer * self.inner

    @property
    def is_pure(self) -> bool:
        """Whether the axis is the batch and nothing else."""
        return self.factor == 1


@dataclass(frozen=True, slots=True)
class Times:
    """An element of a shape that must be a multiple of the batch."""

    factor: int = 1


@dataclass(frozen=True, slots=True)
class SizeOf:
    """An element of a shape that is the size of an axis of the reader's first input."""

    axis: int


Element = int | Times | SizeOf | None
"""What an element of a vector becomes; None: it stays."""


@dataclass(frozen=True, slots=True)
class Mend:
    """One repair: what is done to one node.

    Attributes:
        position: The node, in the main graph.
        kind: ``vector`` (elements of a vector input or attribute change), ``spread`` (an input without a batch gets
            one), ``reshape`` (the node becomes a Reshape), ``identity`` (the node becomes an Identity), ``index``
            (indices that point into the batch count it), ``drop`` (an attribute goes).
        slot: The input that it is about.
        name: The attribute that it is about, where it is one.
        elements: New elements by position.
        spread: The batch that the input gets.
        shape: The shape of that input, or of the vector's reader, at the old batch.
        component: Which component of the indices points into the batch.
    """

    position: int
    kind: str
    slot: int = -1
    name: str = ""
    elements: tuple[Element, ...] = ()
    spread: Spread | None = None
    shape: tuple[int, ...] = ()
    component: int = 0


class Blocked(Exception):  # noqa: N818 - a finding, which the caller reports or works around
    """A node stands in the way.

    Attributes:
        position: The node.
        reason: Why, as the end of a sentence that starts with the node.
        hint: What to do, or None.
        mends: What had been repaired before it.
    """

    def __init__(self, position: int, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason
        self.hint = hint
        self.mends: list[Mend] = []


class NoRule(Exception):  # noqa: N818 - a finding as well
    """What an operator does to the batch cannot be told from its inputs; it must be run."""


@dataclass
class Observed:
    """What is known of a model before the batch is followed.

    Attributes:
        draft: The model as it is, its batch fixed at ``batch``.
        batch: The size of the batch.
        shapes: The shapes of the main graph's tensors at that batch.
        feeds: Inputs that gave these shapes.
        probe: Runs a node at several batches: given the position and the mends so far, returns where the batch is in
            each of its outputs; raises Blocked.
        value_of: Returns the values of a tensor at that batch.
    """

    draft: Draft
    batch: int
    shapes: dict[str, tuple[int, ...]]
    feeds: Mapping[str, Any]
    probe: Callable[[int, Sequence[Mend]], list[Spread | None]]
    value_of: Callable[[str], Any]
    probed: dict[int, list[Spread | None]] = field(default_factory=dict)


@dataclass
class Trace:
    """Where the batch is, and what must be mended.

    Attributes:
        spreads: By tensor that carries the batch.
        mends: The repairs, in the order of their nodes.
        following: The choices that come next if these turn out wrong; None if there are none.
        only_outputs: Whether ``spreads`` says nothing of inner tensors.
    """

    spreads: dict[str, Spread]
    mends: list[Mend]
    following: dict[int, int] | None = None
    only_outputs: bool = False


def trace(
    observed: Observed,
    inputs: Mapping[str, int],
    rules: Mapping[str, Rule],
    choices: dict[int, int] | None = None,
) -> Trace:
    """Returns where the batch is in every tensor, given the axis that it is in each of these inputs.

    Args:
        observed: What is known of the model.
        inputs: The axis of the batch in each input that carries it.
        rules: What operators do, by their type.
        choices: What to take at nodes that leave a choice, by position; elsewhere the likeliest.

    Raises:
        Blocked: A node stands in the way, whatever is chosen.
    """
    choices = choices or {}
    first: Blocked | None = None
    for _ in range(MOST_TRIES):
        tracer = Tracer(observed, inputs, rules, choices)
        try:
            tracer.run()
        except Blocked as blocked:
            blocked.mends = tracer.mends
            first = first or blocked
            following = _next_choices(tracer.made)
            if following is None:
                raise first from None
            choices = following
            continue
        return Trace(tracer.spreads, tracer.mends, _next_choices(tracer.made))
    assert first is not None
    raise first


def _next_choices(made: Sequence[tuple[int, int, int]]) -> dict[int, int] | None:
    """Returns the choices of the next try: the last one that has another possibility takes it."""
    for number in reversed(range(len(made))):
        position, taken, count = made[number]
        if taken + 1 < count:
            return {**{at: choice for at, choice, _ in made[:number]}, position: taken + 1}
    return None


class Tracer:
    """One walk over the nodes of the main graph, in an order in which each comes after what it reads."""

    def __init__(
        self, observed: Observed, inputs: Mapping[str, int], rules: Mapping[str, Rule], choices: Mapping[int, int]
    ) -> None:
        from onnxbench.graph import topological_order

        self.observed = observed
        self.batch = observed.batch
        self.worlds = (self.batch, self.batch + 2, self.batch + 5)
        self.scope = observed.draft.main
        self.shapes = observed.shapes
        self.spreads: dict[str, Spread] = {name: Spread(axis) for name, axis in inputs.items()}
        self.mends: list[Mend] = []
        self.made: list[tuple[int, int, int]] = []
        self._choices = choices
        self._rules = rules
        self._values: dict[str, tuple[np.ndarray[Any, Any], ...] | None] = {}
        order = topological_order(self.scope)
        self._order = range(len(self.scope.nodes)) if order is None else order

    def run(self) -> None:
        """Follows the batch through every node."""
        for position in self._order:
            node = self.scope.nodes[position]
            for name, spread in zip(node.output, self._outcome(position, node), strict=False):
                if name and spread is not None:
                    self.spreads[name] = spread

    def _outcome(self, position: int, node: NodeProto) -> Sequence[Spread | None]:
        step = Step(self, position, node)
        is_standard = node.domain in ("", "ai.onnx") and self.observed.draft.index.function_of(node) is None
        rule = self._rules.get(node.op_type) if is_standard and position not in self.scope.bodies else None
        touched = any(name in self.spreads for name in self.scope.reads[position])
        if not touched and (rule is None or node.op_type not in _MAKERS):
            return ()
        if rule is not None:
            try:
                return rule(step)
            except NoRule:
                pass
        if position not in self.observed.probed:
            self.observed.probed[position] = self.observed.probe(position, self.mends)
        return self.observed.probed[position]

    # -- what is known ------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor at the old batch."""
        found = self.shapes.get(name)
        if found is None:
            raise NoRule
        return found

    def shape_in(self, name: str, world: int) -> tuple[int, ...]:
        """Returns the shape of a tensor in a world."""
        shape, spread = list(self.shape(name)), self.spreads.get(name)
        if spread is not None:
            shape[spread.axis] = spread.factor * self.worlds[world]
        return tuple(shape)

    def stated(self, name: str) -> tuple[Dim, ...] | None:
        """Returns the shape that the model implies for a tensor, which may have dimensions of no fixed size."""
        kind = self.observed.draft.type_of(TensorRef(self.scope, name))
        return tensor_shape(kind) if kind is not None else None

    def values(self, name: str) -> tuple[np.ndarray[Any, Any], ...] | None:
        """Returns the values of a small tensor in each world, or None where they depend on data."""
        pending = [name]
        while pending:
            current = pending[-1]
            if current in self._values:
                pending.pop()
                continue
            waiting = self._try_values(current)
            if waiting:
                pending += waiting
            else:
                pending.pop()
        return self._values[name]

    def _try_values(self, name: str) -> list[str]:
        """Finds the values of a tensor, or returns what must be found before."""
        self._values.setdefault(name, None) if name in self.spreads else None
        if name in self._values:
            return []
        scope, draft = self.scope, self.observed.draft
        position = scope.producers.get(name)
        if name in scope.constants or position is None:
            self._values[name] = self._given(name)
            return []
        node = scope.nodes[position]
        if node.op_type in ("Shape", "Size") and node.input[0] in self.shapes:
            self._values[name] = self._measured(node)
            return []
        sizes = [math.prod(self.shapes.get(each, (SMALL + 1,))) for each in scope.writes[position]]
        if position in scope.bodies or draft.index.function_of(node) is not None or max(sizes) > SMALL:
            self._values[name] = None
            return []
        waiting = [each for each in scope.reads[position] if each not in self._values]
        if waiting:
            return waiting
        known = {each: self._values[each] for each in scope.reads[position]}
        if any(value is None for value in known.values()):
            self._values.update(dict.fromkeys(scope.writes[position]))
            return []
        made = _evaluate(node, known, draft.opset(None, node.domain), len(self.worlds))
        for each in scope.writes[position]:
            self._values[each] = None if made is None else made.get(each)
        return []

    def _given(self, name: str) -> tuple[np.ndarray[Any, Any], ...] | None:
        import numpy as np

        tensor = self.observed.draft.initializer(TensorRef(self.scope, name))
        if tensor is not None:
            if math.prod(tensor.dims) > SMALL:
                return None
            return (self.observed.draft.model.array(tensor),) * len(self.worlds)
        value = self.observed.feeds.get(name)
        if isinstance(value, np.ndarray) and value.size <= SMALL and name not in self.spreads:
            return (value,) * len(self.worlds)
        return None

    def _measured(self, node: NodeProto) -> tuple[np.ndarray[Any, Any], ...]:
        import numpy as np

        said = {each.name: each.i for each in node.attribute}
        found = []
        for world in range(len(self.worlds)):
            shape = self.shape_in(node.input[0], world)
            if node.op_type == "Size":
                found.append(np.array(math.prod(shape), np.int64))
            else:
                found.append(np.array(shape[said.get("start", 0) : said.get("end", len(shape))], np.int64))
        return tuple(found)

    # -- choosing -----------------------------------------------------------------------------------------------

    def choose(self, position: int, count: int) -> int:
        """Returns which of so many possibilities is taken at a node."""
        taken = min(self._choices.get(position, 0), count - 1)
        self.made.append((position, taken, count))
        return taken


def _evaluate(
    node: NodeProto, known: Mapping[str, Any], version: int, worlds: int
) -> dict[str, tuple[np.ndarray[Any, Any], ...]] | None:
    """Returns what a node makes of known inputs in each world, or None where that cannot be told."""
    import numpy as np
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    inputs = [helper.make_tensor_value_info(name, 0, None) for name in known]
    names = [name for name in node.output if name]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in names]
    graph = helper.make_graph([node], "one", inputs, outputs)
    opsets = [helper.make_opsetid(node.domain, version or 1)]
    try:
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
        runs: list[Any] = [
            evaluator.run(None, {name: value[world] for name, value in known.items()}) for world in range(worlds)
        ]
    except Exception:  # the evaluator raises whatever NumPy does, and knows no custom operators
        return None
    return {name: tuple(np.asarray(run[at]) for run in runs) for at, name in enumerate(names)}


# ---------------------------------------------------------------- what a rule works with


@dataclass
class Step:
    """One node, as its rule sees it."""

    tracer: Tracer
    position: int
    node: NodeProto

    @property
    def batch(self) -> int:
        """The old batch."""
        return self.tracer.batch

    @property
    def version(self) -> int:
        """The opset."""
        return self.tracer.observed.draft.opset()

    def attribute(self, name: str, default: Any = None) -> Any:
        """Returns the value of an attribute."""
        from onnx import helper

        found = next((each for each in self.node.attribute if each.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def name(self, slot: int) -> str:
        """Returns the name of an input; empty if there is none."""
        return self.node.input[slot] if slot < len(self.node.input) else ""

    def spread(self, slot: int) -> Spread | None:
        """Returns where the batch is in an input."""
        return self.tracer.spreads.get(self.name(slot))

    def shape(self, slot: int) -> tuple[int, ...]:
        """Returns the shape of an input at the old batch."""
        return self.tracer.shape(self.name(slot))

    def rank(self, slot: int) -> int:
        """Returns how many axes an input has."""
        return len(self.shape(slot))

    def made(self, number: int = 0) -> tuple[int, ...]:
        """Returns the shape of an output at the old batch."""
        return self.tracer.shape(self.node.output[number])

    def vectors(self, slot: int) -> tuple[list[int], ...] | None:
        """Returns the elements of a small integer input in each world; None where they depend on data."""
        if not self.name(slot):
            return None
        values = self.tracer.values(self.name(slot))
        return None if values is None else tuple([int(each) for each in value.reshape(-1)] for value in values)

    def axes(self, slot: int, name: str = "axes") -> list[int] | None:
        """Returns axes given as an attribute or, later, as an input; None where there are none."""
        said = self.attribute(name)
        if said is not None:
            return [said] if isinstance(said, int) else list(said)
        if not self.name(slot):
            return None
        vectors = self.vectors(slot)
        if vectors is None:
            raise NoRule
        return vectors[0]

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """Returns an axis as a position."""
        axis = int(self.attribute(name, default))
        return axis + rank if axis < 0 else axis

    def blocked(self, reason: str, hint: str | None = None) -> Blocked:
        """Returns the error that this node stands in the way."""
        return Blocked(self.position, reason, hint)

    def mend(self, kind: str, **fields: Any) -> None:
        """Notes a repair of this node."""
        self.tracer.mends.append(Mend(self.position, kind, **fields))

    def need(self, slot: int, spread: Spread) -> None:
        """Sees to it that an input carries the batch in a certain way: it does, or is mended to.

        Raises:
            Blocked: It carries the batch in another way, or holds what cannot be repeated for any number of samples.
        """
        if not self.name(slot):
            return
        has = self.spread(slot)
        if has == spread:
            return
        shape = self.shape(slot)
        if has is not None or shape[spread.axis] != spread.factor * self.batch:
            raise self.blocked(f"joins the batch with {self.name(slot)!r}, in which it lies elsewhere")
        if self.batch > 1 and not _repeats(self.tracer.observed.value_of(self.name(slot)), spread, self.batch):
            raise self.blocked(
                f"joins the batch with {self.name(slot)!r}, which holds other values for each of {self.batch} samples"
            )
        stated = self.tracer.stated(self.name(slot)) if spread.outer > 1 else ()
        if stated is None or not all(isinstance(size, int) for size in stated):
            raise self.blocked(f"joins the batch with {self.name(slot)!r}, whose size is not fixed")
        self.mend("spread", slot=slot, spread=spread, shape=shape)

    def together(self, slots: Sequence[int], rank: int, *, apart: Sequence[int] = ()) -> Spread | None:
        """Returns the batch of what is made of inputs that are broadcast together (see numpy).

        Args:
            slots: The inputs.
            rank: How many axes the result has; inputs are aligned at the right.
            apart: Axes of the result in which inputs are not broadcast.
        """
        found: Spread | None = None
        for slot in slots:
            spread = self.spread(slot)
            if spread is None or spread.axis + rank - self.rank(slot) in apart:
                continue
            aligned = replace(spread, axis=spread.axis + rank - self.rank(slot))
            if found is not None and aligned != found:
                raise self.blocked("joins tensors in which the batch lies differently")
            found = aligned
        if found is None:
            return None
        for slot in slots:
            axis = found.axis - (rank - self.rank(slot)) if self.name(slot) else -1
            if axis < 0:
                continue
            size = self.shape(slot)[axis]
            if self.spread(slot) is not None or size == 1:
                continue
            if size != found.factor * self.batch:
                raise self.blocked(f"broadcasts the batch against {size} rows of {self.name(slot)!r}")
            self.need(slot, replace(found, axis=axis))
        return found

    # -- reshaping ----------------------------------------------------------------------------------------------

    def places(self, slot: int, made: Sequence[int]) -> list[Spread]:
        """Returns every way in which the batch of an input can lie in a tensor of the same elements."""
        spread, shape = self.spread(slot), self.shape(slot)
        assert spread is not None
        before = math.prod(shape[: spread.axis]) * spread.outer
        behind = spread.inner * math.prod(shape[spread.axis + 1 :])
        if not before * behind:
            raise NoRule
        found = []
        for axis in range(len(made)):
            head, tail = math.prod(made[:axis]), math.prod(made[axis + 1 :])
            if head and tail and before % head == 0 and behind % tail == 0:
                found.append(Spread(axis, before // head, behind // tail))
        return found

    def settle(
        self,
        slot: int,
        made: Sequence[int],
        actual: Sequence[tuple[int, ...] | None],
        natural: int | None = None,
        moving: Collection[int] = (),
    ) -> tuple[Spread, bool]:
        """Returns where the batch goes when elements are laid out anew, and whether the node does so by itself.

        Args:
            slot: The input.
            made: The shape of the result at the old batch.
            actual: The shape that the node makes in each world; None where it fails.
            natural: The axis where the batch stays if nothing speaks against it.
            moving: Axes whose size the graph computes from the batch.
        """
        places = self.places(slot, made)
        if not places:
            raise self.blocked("lays the elements out so that the samples of a batch cannot be told apart")

        def fits(place: Spread) -> bool:
            return all(
                shape is not None
                and len(shape) == len(made)
                and shape == (*made[: place.axis], place.factor * size, *made[place.axis + 1 :])
                for shape, size in zip(actual, self.tracer.worlds, strict=True)
            )

        places.sort(
            key=lambda place: (
                not (place.is_pure and (fits(place) or not moving)),
                place.axis != natural,
                not fits(place),
                not place.is_pure,
                place.outer != 1,
                place.axis,
            )
        )
        place = places[self.tracer.choose(self.position, len(places))]
        return place, fits(place)

    def become_reshape(self, slot: int, made: Sequence[int], place: Spread, sources: Sequence[int | None]) -> None:
        """Notes that the node becomes a Reshape.

        Args:
            slot: Its data input.
            made: The shape of the result at the old batch.
            place: Where the batch goes.
            sources: For each axis of the result, the axis of the input that it is the size of; None: none alone.
        """
        stated = self.tracer.stated(self.node.output[0])
        elements: list[Element] = []
        for axis, size in enumerate(made):
            if axis == place.axis:
                elements.append(-1)
            elif stated is not None and isinstance(stated[axis], int):
                elements.append(size)
            elif (source := sources[axis]) is not None:
                elements.append(SizeOf(source))
            else:
                raise self.blocked("lays elements out in a size that is not fixed")
        self.mend("reshape", slot=slot, elements=tuple(elements), shape=tuple(made))


def _repeats(value: Any, spread: Spread, batch: int) -> bool:
    """Tells whether a tensor holds the same values for every sample of the batch."""
    import numpy as np

    array = np.moveaxis(np.asarray(value), spread.axis, 0)
    blocks = array.reshape(spread.outer, batch, spread.inner, *array.shape[1:])
    return bool((blocks == blocks[:, :1]).all())


Rule = Callable[[Step], Sequence[Spread | None]]
"""Given a node, returns where the batch is in each of its outputs; notes repairs; raises Blocked or NoRule."""


def node_path(observed: Observed, position: int) -> str:
    """Returns what a node of the main graph is called."""
    return NodeRef(observed.draft.main, position).path
