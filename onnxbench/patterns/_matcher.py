"""Finding a pattern in a graph.

Problem: given a node that may be the pattern's anchor (the node that makes its first output), find nodes for all
steps and tensors for all captured names, such that operators, attributes, constants and wiring agree.

Operators that commute, and second outputs that are looked for among the readers of a tensor, make this a search. It
is done with a list of goals, depth first, without recursion: a goal is a tensor or a node of the pattern with the
tensor or node of the model that it must be. Where there are several ways, the others are put aside with the state
that they began in. Goals that can fail soonest go first (constants, then nodes, then captured tensors). Almost all
attempts end at the first or second goal, so a scan costs about as much as looking at each node of the anchor's
operator once. The number of goals of one attempt is bounded, so that no pattern can make it exponential.

What is asked of a match as a whole comes last: types, uses outside of it, conditions. They are the only ones that
may need inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

from onnxbench.errors import UnsupportedError
from onnxbench.graph import root_of, topological_order
from onnxbench.patterns._conditions import Bindings, unmet_condition
from onnxbench.patterns._expressions import UnknownError
from onnxbench.patterns._facts import MOST_ELEMENTS, Facts
from onnxbench.patterns._fitting import (
    are_same,
    capture_attributes,
    constant_difference,
    count_difference,
    node_words,
    operator_difference,
    origin_words,
    output_difference,
    read_names,
)
from onnxbench.patterns._pattern import Pattern, Step, Value
from onnxbench.tensortype import dtype_name, elem_type, format_shape, format_type, tensor_shape

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.graph import NodeRef, Scope
    from onnxbench.patterns._rules import Rule

_MOST_GOALS = 20_000
_BROADCASTING = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal", "Less",
    "Greater", "LessOrEqual", "GreaterOrEqual", "Where", "PRelu", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift",
})  # fmt: skip


@dataclass(slots=True, eq=False)
class Match:
    """A pattern found.

    Attributes:
        rule: Its rule.
        pattern: The variant that was found.
        scope: The graph.
        nodes: Positions of nodes by the number of the step.
        bindings: What names of the pattern stand for.
        kept: Positions of matched nodes that stay, for others read what they make.
    """

    rule: Rule
    pattern: Pattern
    scope: Scope
    nodes: dict[int, int]
    bindings: Bindings
    kept: frozenset[int] = frozenset()

    @property
    def anchor(self) -> int:
        """Position of the node that makes the first output."""
        return self.nodes[self.pattern.anchor.number]

    @property
    def removed(self) -> list[int]:
        """Positions of the nodes that the replacement takes the place of, ascending."""
        return sorted(position for position in self.nodes.values() if position not in self.kept)


@dataclass(frozen=True, slots=True)
class Difference:
    """Why a pattern is not found somewhere.

    Attributes:
        step: The node of the pattern, in words; empty if it is about the match as a whole.
        node: The node of the model, by its path; empty if there is none.
        message: What is different.
    """

    step: str
    node: str
    message: str

    def sentence(self) -> str:
        """The difference in one line."""
        if self.step and self.node:
            return f"{self.step} of the pattern against {self.node}: {self.message}"
        return f"{self.step} of the pattern: {self.message}" if self.step else self.message


@dataclass(slots=True)
class Attempt:
    """What became of one attempt to match, for explanations.

    Attributes:
        difference: What stopped the attempt that came furthest.
        score: How many nodes had been matched then; a match that fails as a whole counts one more than all.
        nodes: The nodes that had been.
    """

    difference: Difference | None = None
    score: int = -1
    nodes: dict[int, int] = field(default_factory=dict)

    def note(self, score: int, nodes: Mapping[int, int], difference: Difference) -> None:
        """Remembers a failure if none before came as far."""
        if score > self.score:
            self.score, self.nodes, self.difference = score, dict(nodes), difference


class Search:
    """One attempt to match a variant at a node."""

    def __init__(
        self, rule: Rule, pattern: Pattern, facts: Facts, scope: Scope, attempt: Attempt | None = None
    ) -> None:
        self._rule = rule
        self._pattern = pattern
        self._facts = facts
        self._scope = scope
        self._attempt = attempt
        self._nodes: dict[int, int] = {}
        self._steps: dict[int, int] = {}
        self._tensors: dict[str, Any] = {}
        self._attributes: dict[str, Any] = {}
        self._trail: list[tuple[dict[Any, Any], Any]] = []

    def run(self, position: int) -> Match | None:
        """Returns the first match with this node as the anchor, or None.

        Raises:
            UnsupportedError: The pattern has too many ways to match here.
        """
        return next(self.matches(position), None)

    def matches(self, position: int) -> Iterator[Match]:
        """Yields every match with this node as the anchor."""
        goals: Any = None
        for step, shared in reversed(self._pattern.reached):
            goals = (("reach", step, shared), goals)
        aside: list[tuple[Any, int]] = [((("node", self._pattern.anchor, position), goals), 0)]
        budget = _MOST_GOALS
        while aside:
            goals, mark = aside.pop()
            self._undo(mark)
            while goals is not None:
                budget -= 1
                if budget < 0:
                    raise self._endless(position)
                goal, goals = goals
                ways = self._take(goal)
                if ways is None:
                    break
                aside.extend((_joined(other, goals), len(self._trail)) for other in reversed(ways[1:]))
                if ways:
                    goals = _joined(ways[0], goals)
            else:
                match = self._whole()
                if match is not None:
                    yield match

    def _endless(self, position: int) -> UnsupportedError:
        node = self._scope.nodes[position]
        return UnsupportedError(
            f"rule {self._rule.name!r} has too many ways to match at {node.name or node.op_type}",
            hint="Say more in the pattern: operators instead of '*', attributes, constants.",
        )

    # -- the state ----------------------------------------------------------------------------------------------

    def _set(self, where: dict[Any, Any], key: Any, value: Any) -> None:
        where[key] = value
        self._trail.append((where, key))

    def _undo(self, mark: int) -> None:
        while len(self._trail) > mark:
            where, key = self._trail.pop()
            del where[key]

    def _fail(self, step: Step | None, position: int | None, message: str) -> None:
        if self._attempt is not None:
            where = self._path(position) if position is not None else ""
            difference = Difference(step.label if step is not None else "", where, message)
            self._attempt.note(len(self._nodes), self._nodes, difference)

    def _path(self, position: int) -> str:
        return node_words(self._scope, position)

    # -- goals --------------------------------------------------------------------------------------------------

    def _take(self, goal: Any) -> list[Any] | None:
        """Does what a goal asks; returns the ways to go on (lists of goals), or None if it cannot be done."""
        if goal[0] == "node":
            return self._take_node(goal[1], goal[2])
        if goal[0] == "tensor":
            return self._take_tensor(goal[1], goal[2], goal[3], goal[4])
        return self._take_reach(goal[1], goal[2])

    def _take_reach(self, step: Step, shared: Sequence[Value]) -> list[Any] | None:
        """Offers the nodes that may be a step which is not above the first output."""
        if step.number in self._nodes:
            return []
        candidates: dict[int, None] = {}
        for value in shared:
            bound = self._tensors.get(value.name, "")
            for name in bound if isinstance(bound, tuple) else (bound,):
                candidates.update(dict.fromkeys(self._scope.consumers.get(name, ()) if name else ()))
        nodes = self._scope.nodes
        fitting = [
            at for at in candidates if at not in self._steps and step.accepts(nodes[at].domain, nodes[at].op_type)
        ]
        if not fitting:
            self._fail(step, None, f"no {step.spelled} reads {', '.join(repr(value.name) for value in shared)}")
            return None
        return [[("node", step, at)] for at in fitting]

    def _take_tensor(self, value: Value, name: Any, step: Step, position: int) -> list[Any] | None:
        known = self._tensors.get(value.name)
        if known is not None:
            may_differ = value.step is None and isinstance(known, str) and isinstance(name, str)
            if known == name or (may_differ and self._are_equal(known, name)):
                return []
            if self._attempt is not None:
                said = (
                    f"the pattern's {value.name!r} is {_shown(known)} elsewhere in the match, and {_shown(name)} here"
                )
                self._fail(step, position, said)
            return None
        if value.constant is not None and not self._is_constant(value, name):
            if self._attempt is not None:
                wrong = constant_difference(value, self._facts, self._scope, name)
                self._fail(step, position, wrong or "")
            return None
        if value.step is None:
            self._set(self._tensors, value.name, name)
            return []
        producer = self._scope.producers.get(name)
        if producer is None:
            if self._attempt is not None:
                self._fail(
                    value.step, None, f"{origin_words(self._facts, self._scope, name)}, and no {value.step.spelled}"
                )
            return None
        if value.output >= len(made := self._scope.nodes[producer].output) or made[value.output] != name:
            self._fail(value.step, producer, f"{name!r} is not output {value.output} of it")
            return None
        return [[("node", value.step, producer)]]

    def _is_constant(self, value: Value, name: Any) -> bool:
        """Tells whether a tensor is a constant of the pattern; most constants of a model are compared many times."""
        key = id(value), id(self._scope), name
        known = self._facts.compared.get(key)
        if known is None:
            known = constant_difference(value, self._facts, self._scope, name) is None
            self._facts.compared[key] = known
        return known

    def _are_equal(self, first: str, second: str) -> bool:
        """Tells whether two tensors are constants of the same type, shape and bits."""
        if not first or not second:
            return False
        a, b = self._facts.constant(self._scope, first), self._facts.constant(self._scope, second)
        if a is None or b is None or a.data_type != b.data_type or list(a.dims) != list(b.dims):
            return False
        size = 1
        for dim in a.dims:
            size *= dim
        return size <= MOST_ELEMENTS and self._facts.array(a).tobytes() == self._facts.array(b).tobytes()

    def _take_node(self, step: Step, position: int) -> list[Any] | None:
        known = self._nodes.get(step.number)
        if known is not None:
            if known == position:
                return []
            self._fail(step, position, f"{step.label} is {self._path(known)} elsewhere in the match")
            return None
        node = self._scope.nodes[position]
        if position in self._steps:
            self._fail(step, position, "it is another node of the pattern already")
            return None
        wrong = operator_difference(step, self._facts, node)
        if wrong is not None:
            self._fail(step, position, wrong)
            return None
        names = read_names(node)
        wrong = output_difference(step, self._facts, self._scope, node)
        if wrong is not None:
            self._fail(step, position, wrong)
            return None
        captured = capture_attributes(step, self._facts, self._scope, node)
        if isinstance(captured, str):
            self._fail(step, position, captured)
            return None
        wrong = count_difference(step, names) or self._captures_differ(captured)
        if wrong is not None:
            self._fail(step, position, wrong)
            return None
        self._set(self._nodes, step.number, position)
        self._set(self._steps, position, step.number)
        for name, value in captured.items():
            if name not in self._attributes:
                self._set(self._attributes, name, value)
        for output, made in enumerate(step.outputs):
            if made:
                given = node.output[output] if output < len(node.output) else ""
                if not given or self._tensors.get(made, given) != given:
                    self._fail(
                        step, position, f"it does not make {made!r}" if not given else f"{made!r} is another one"
                    )
                    return None
                if made not in self._tensors:
                    self._set(self._tensors, made, given)
        return self._input_goals(step, position, names)

    def _captures_differ(self, captured: Mapping[str, Any]) -> str | None:
        for name, value in captured.items():
            known = self._attributes.get(name)
            if known is not None and not are_same(known, value):
                return f"@{name} is another value elsewhere in the match"
        return None

    def _input_goals(self, step: Step, position: int, names: list[str]) -> list[Any] | None:
        if not step.inputs:
            return [[]]
        if not step.is_commutative or len(names) < 2:
            return [self._in_order(step, position, names)]
        if len(names) == 2:
            orders = [names] if names[0] == names[1] else [names, names[::-1]]
        else:
            orders = [list(each) for each in dict.fromkeys(permutations(names))]
        if self._attempt is None:
            orders = [order for order in orders if self._may_fit(step, order)]
            if not orders:
                return None
        return [self._in_order(step, position, order) for order in orders]

    def _may_fit(self, step: Step, names: Sequence[str]) -> bool:
        """Tells by operators alone whether inputs in this order may be those of a step."""
        producers, operators = self._scope.producers, self._facts.operators(self._scope)
        for value, name in zip(step.inputs, names, strict=False):
            if value is not None and value.step is not None:
                producer = producers.get(name)
                if producer is None or not (value.step.names is None or operators[producer] in value.step.names):
                    return False
        return True

    def _in_order(self, step: Step, position: int, names: list[str]) -> list[Any]:
        goals: list[Any] = []
        for at in step.order:
            value = step.inputs[at]
            assert value is not None
            name: Any = tuple(names[at:]) if value.is_many else names[at] if at < len(names) else ""
            goals.append(("tensor", value, name, step, position))
        return goals

    # -- the match as a whole -----------------------------------------------------------------------------------

    def _whole(self) -> Match | None:
        tensors = dict(self._tensors)
        tensors.update(dict.fromkeys(self._pattern.absent, ""))
        bindings = Bindings(self._facts, self._scope, tensors, dict(self._attributes), lets=self._rule.let)
        match = Match(self._rule, self._pattern, self._scope, dict(self._nodes), bindings)
        wrong = self._uses(match) or self._wrong_opset() or self._broadcasts() or self._types(bindings)
        wrong = wrong or self._cycle(match)
        if wrong is None:
            unmet = unmet_condition(self._rule.where, bindings)
            wrong = Difference("", "", unmet) if unmet is not None else None
        if wrong is None:
            return match
        if self._attempt is not None:
            self._attempt.note(len(self._pattern.steps) + 1, self._nodes, wrong)
        return None

    def _wrong_opset(self) -> Difference | None:
        for domain, version in self._pattern.opset.items():
            has = self._facts.opset(self._scope, domain)
            if has < version and any(
                domain in (each, "*") for step in self._pattern.steps for each, _ in step.operators
            ):
                said = f"the pattern is about {domain or 'ai.onnx'} {version} and later, and the model imports {has}"
                return Difference("", "", said)
        return None

    def _uses(self, match: Match) -> Difference | None:
        """Finds the nodes that must stay, or tells which tensor inside of the match others read."""
        scope, pattern = self._scope, self._pattern
        outside = self._facts.outputs(scope)
        ends = {(value.step.number, value.output) for value in pattern.outputs if value.step is not None}
        kept = self._rule.needed_steps(pattern)
        for step in pattern.steps:
            position = self._nodes[step.number]
            for output, name in enumerate(scope.nodes[position].output):
                if not name or (step.number, output) in ends:
                    continue
                readers = [at for at in scope.consumers.get(name, ()) if at not in self._steps]
                if not readers and name not in outside:
                    continue
                if self._rule.keep or step.number in kept:
                    kept = kept | {step.number} | pattern.steps_before[step.number]
                    continue
                said = f"{name!r}, which is inside of the match, is "
                said += "an output of the graph" if name in outside else f"also read by {self._path(readers[0])}"
                said += f" and {len(readers) - 1} more" if len(readers) > 1 and name not in outside else ""
                return Difference(step.label, self._path(position), said)
        for number, _ in ends:
            if number in kept:
                step = next(each for each in pattern.steps if each.number == number)
                said = "nodes that must stay read what it makes"
                return Difference(step.label, self._path(self._nodes[number]), said)
        match.kept = frozenset(self._nodes[number] for number in kept)
        return None

    def _broadcasts(self) -> Difference | None:
        """Tells of a constant with dimensions of size 1 that may give the result of its operator more dimensions."""
        for step in self._pattern.steps:
            node = self._scope.nodes[self._nodes[step.number]]
            if node.op_type not in _BROADCASTING:
                continue
            for value in step.inputs:
                if value is None or value.constant is None or value.constant.ndim:
                    continue
                name = self._tensors[value.name]
                tensor = self._facts.constant(self._scope, name)
                rank = len(tensor.dims) if tensor is not None else 0
                if rank and not self._others_reach(node, name, rank):
                    said = f"{name!r} has {rank} dimension{'s' if rank > 1 else ''}, and that the other input has as "
                    said += "many is not known, so the result might have more than it"
                    return Difference(step.label, self._path(self._nodes[step.number]), said)
        return None

    def _others_reach(self, node: NodeProto, name: str, rank: int) -> bool:
        for other in node.input:
            if other and other != name:
                try:
                    if len(self._facts.shape(self._scope, other)) >= rank:
                        return True
                except UnknownError:
                    continue
        return False

    def _types(self, bindings: Bindings) -> Difference | None:
        for name, wanted in self._pattern.types.items():
            bound = bindings.tensors.get(name, "")
            for tensor in bound if isinstance(bound, tuple) else (bound,):
                wrong = self._type_difference(name, wanted, tensor, bindings) if tensor else None
                if wrong is not None:
                    return Difference("", "", wrong)
        return None

    def _type_difference(self, name: str, wanted: Any, tensor: str, bindings: Bindings) -> str | None:
        element, shape = elem_type(wanted), tensor_shape(wanted)
        has = self._facts.type_of(self._scope, tensor)
        if element and (has is None or elem_type(has) != element):
            said = f"is {format_type(has)}" if has is not None else "is of unknown type"
            return f"{name!r} must be {dtype_name(element)}, and {tensor!r} {said}"
        if shape is None:
            return None
        known = tensor_shape(has) if has is not None else None
        if known is None:
            return f"{name!r} must be {format_shape(shape)}, and the shape of {tensor!r} is not known"
        if len(known) != len(shape):
            return f"{name!r} must be {format_shape(shape)}, and {tensor!r} is {format_shape(known)}"
        for wanted_size, size in zip(shape, known, strict=True):
            if isinstance(wanted_size, int) and size != wanted_size:
                return f"{name!r} must be {format_shape(shape)}, and {tensor!r} is {format_shape(known)}"
            if isinstance(wanted_size, str) and wanted_size not in bindings.sizes:
                bindings.sizes[wanted_size] = size
            elif isinstance(wanted_size, str):
                before = bindings.sizes[wanted_size]
                if before is None or before != size:
                    first = "unknown" if before is None else before
                    return f"the size {wanted_size!r} is {first} elsewhere, and {size or 'unknown'} in {tensor!r}"
        return None

    def _cycle(self, match: Match) -> Difference | None:
        """Tells if what the match reads depends on what it makes: one node in its place would depend on itself."""
        if len(self._pattern.outputs) < 2:
            return None
        scope = self._scope
        first = min(self._steps) if topological_order(scope) is None else -1
        pending = [
            name for value in self._pattern.values.values() if value.is_input
            for name in _names(match.bindings.tensors.get(value.name, ""))
        ]  # fmt: skip
        seen: set[int] = set()
        while pending:
            position = scope.producers.get(pending.pop(), -1)
            if position < first or position < 0 or position in seen:
                continue
            if position in self._steps:
                said = f"what the match reads depends on {self._path(position)}, which is in it"
                return Difference("", "", said)
            seen.add(position)
            pending += scope.reads[position]
        return None


def _names(bound: Any) -> tuple[str, ...]:
    return bound if isinstance(bound, tuple) else (bound,)


def _shown(bound: Any) -> str:
    if isinstance(bound, tuple):
        return f"{len(bound)} tensors"
    return repr(bound) if bound else "absent"


def _joined(goals: Sequence[Any], rest: Any) -> Any:
    for goal in reversed(goals):
        rest = (goal, rest)
    return rest


# -- all matches of a rule ---------------------------------------------------------------------------------------


def find_matches(
    rule: Rule, facts: Facts, *, among: frozenset[NodeRef] | None = None, limit: int | None = None
) -> list[Match]:
    """Returns the matches of a rule that can be replaced together: no node is in two of them.

    Larger variants come before smaller ones, and within a variant the earlier node of a graph before the later.

    Args:
        rule: The rule.
        facts: What is known of the model.
        among: Only matches whose anchor is one of these.
        limit: So many at most.

    Raises:
        UnsupportedError: The pattern has too many ways to match somewhere.
    """
    found: list[Match] = []
    allowed = None if among is None else {(id(ref.scope), ref.position) for ref in among}
    brought = {(function.domain, function.name, function.overload) for function in rule.functions}
    own = {id(scope) for key, scope in facts.index.functions.items() if key in brought}
    for scope in facts.index.scopes:
        if id(root_of(scope)) in own:
            continue  # what the rule itself brought is no place to apply it
        taken: set[int] = set()
        stay: set[int] = set()
        here: list[Match] = []
        for pattern in rule.patterns:
            for position in possible_anchors(pattern, facts, scope):
                if position in taken or (allowed is not None and (id(scope), position) not in allowed):
                    continue
                match = Search(rule, pattern, facts, scope).run(position)
                if match is None:
                    continue
                removed = match.removed
                if not taken.isdisjoint(removed) or not taken.isdisjoint(match.kept) or not stay.isdisjoint(removed):
                    continue
                taken.update(removed)
                stay |= match.kept
                here.append(match)
        found += sorted(here, key=lambda match: match.anchor)
        if limit is not None and len(found) >= limit:
            return found[:limit]
    return found


def possible_anchors(pattern: Pattern, facts: Facts, scope: Scope) -> Sequence[int]:
    """Returns the nodes at which a pattern may end, by operators alone, ascending.

    The node of the pattern whose operators are rarest in the graph is looked at first, and the way from there down to
    the anchor is followed. A graph that lacks one of the operators is done with at once.
    """
    places = facts.places(scope)
    before = pattern.steps_before[pattern.anchor.number]
    rarest, least = pattern.anchor, _count(pattern.anchor, places, len(scope.nodes))
    for step in pattern.steps:
        count = _count(step, places, len(scope.nodes))
        if not count:
            return []
        if step.number in before and 2 * count < least:
            rarest, least = step, count
    if rarest.names is None:
        found: set[int] = set(range(len(scope.nodes)))
    else:
        found = {position for name in rarest.names for position in places.get(name, ())}
    operators, consumers = facts.operators(scope), scope.consumers
    for step in _way_down(pattern, rarest):
        found = {
            reader
            for position in found
            for name in scope.writes[position]
            for reader in consumers.get(name, ())
            if step.names is None or operators[reader] in step.names
        }
    return sorted(found)


def _count(step: Step, places: Mapping[str, list[int]], nodes: int) -> int:
    return nodes if step.names is None else sum(len(places.get(name, ())) for name in step.names)


def _way_down(pattern: Pattern, start: Step) -> list[Step]:
    """Returns the steps on a shortest way from one to the anchor, the anchor last; empty for the anchor itself."""
    above: dict[int, list[Step]] = {}
    for step in pattern.steps:
        for value in step.inputs:
            if value is not None and value.step is not None:
                above.setdefault(value.step.number, []).append(step)
    came: dict[int, list[Step]] = {start.number: []}
    pending = [start]
    for step in pending:
        if step is pattern.anchor:
            break
        for below in above.get(step.number, ()):
            if below.number not in came:
                came[below.number] = [*came[step.number], below]
                pending.append(below)
    return came[pattern.anchor.number]
