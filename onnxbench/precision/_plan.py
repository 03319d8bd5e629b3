"""The plan of a conversion: which tensors get the new type, and where one must be cast.

Slots that have one type form a group: a type variable of a node, or a value that a node hands to its bodies or a call
to its function. A group changes its type or stays. Groups that may not change are one with ``STAYS``; those that
compute change; those that only move values take the side on which less has to be cast (``_sides``). Weights belong to
no group: they are stored in whatever type is wanted, in two if both are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from onnxbench.graph import Scope
from onnxbench.precision._sides import CHANGES, STAYS, Link, choose_sides
from onnxbench.precision._signatures import Signature, element, is_plain, retyped, said_of
from onnxbench.precision._typing import Typing, ports
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART, plain_domain

if TYPE_CHECKING:
    from onnx import NodeProto

_TENSOR = 4  # AttributeProto type
_ONE_CAST = 1 << 40
"""A Cast more costs more than any number of bytes less: most Casts are dear for being there, not for their size."""


class Use(NamedTuple):
    """A place where a tensor is read: an input of a node, or an output of a graph (``position`` -1)."""

    group: int
    scope: Scope
    position: int
    slot: int


@dataclass(slots=True)
class Tensor:
    """A tensor of floats.

    Attributes:
        scope: The graph that defines it.
        name: Its name.
        word: Its type now.
        maker: The group that makes it; -1 for a weight.
        uses: Where it is read.
        position: The node that makes it; -1 if none does.
    """

    scope: Scope
    name: str
    word: str
    maker: int = STAYS
    position: int = -1
    uses: list[Use] = field(default_factory=list)

    @property
    def is_weight(self) -> bool:
        """Whether it is stored, and can be stored in another type."""
        return self.maker < 0


class Place(NamedTuple):
    """A node that has floats, with the groups of its inputs and outputs."""

    scope: Scope
    position: int
    groups: tuple[int, ...]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What nodes of one operator, with inputs and outputs of the same types, make of their type variables.

    Attributes:
        states: Each variable that has floats, with whether what has it is only moved; None if it stays.
        united: Pairs of variables that are one group.
        detail: What the schema does not admit.
        lacking: See ``Plan.lacking``.
    """

    states: tuple[tuple[int, bool | None], ...]
    united: tuple[tuple[int, int], ...] = ()
    detail: str = ""
    lacking: tuple[tuple[str, int, str, int, str], ...] = ()

    @property
    def stays(self) -> bool:
        """Whether all of it stays."""
        return all(moves is None for _, moves in self.states)


@dataclass(slots=True)
class Plan:
    """Which groups change (see above).

    Attributes:
        typing: The types as they are.
        to: The new element type.
        converts_io: Whether inputs and outputs get it, too.
        reasons: Nodes that stay, by graph and position, with the reason and its details.
        tensors: All tensors of floats, by graph and name.
        places: All nodes that have floats.
        changes: For each group whether it changes, once that is decided.
        open: Those of them that make a type that is not that of an input: an attribute says it.
        lacking: Operators of the standard that do not take the type in the opset of their graph, with the types of
            what they are given and make, as (operator, version, input or output, slot, type).
    """

    typing: Typing
    to: int
    converts_io: bool
    reasons: Mapping[Scope, Mapping[int, tuple[str, str]]]
    size_of: Callable[[Tensor], int]
    tensors: dict[Scope, dict[str, Tensor]] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    changes: list[bool] = field(default_factory=list)
    open: list[Place] = field(default_factory=list)
    lacking: dict[tuple[str, int, str, int, str], None] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=lambda: [STAYS, CHANGES])
    _moves: list[bool] = field(default_factory=lambda: [False, False])
    _ports: dict[tuple[Scope, str, int], int] = field(default_factory=dict)
    _patterns: dict[tuple[object, ...], Pattern] = field(default_factory=dict)

    # -- groups -------------------------------------------------------------------------------------------------

    def find(self, group: int) -> int:
        """Returns the group that this one is part of by now."""
        parent = self._parent
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    def _unite(self, first: int, second: int) -> None:
        one, other = sorted((self.find(first), self.find(second)))
        if one != other:
            self._parent[other] = one
            self._moves[one] &= self._moves[other]

    def _group(self, *, moves: bool) -> int:
        self._parent.append(len(self._parent))
        self._moves.append(moves)
        return len(self._parent) - 1

    def _port(self, scope: Scope, kind: str, slot: int) -> int:
        key = scope, kind, slot
        if key not in self._ports:
            self._ports[key] = self._group(moves=True)
        return self._ports[key]

    # -- tensors ------------------------------------------------------------------------------------------------

    def tensor(self, scope: Scope, name: str) -> Tensor | None:
        """Returns the tensor of floats that a graph sees under a name; None if there is none."""
        around: Scope | None = scope
        while around is not None:
            found = self.tensors[around].get(name)
            if found is not None:
                return found
            word = self.typing.known[around].get(name)
            if word is not None:
                if not element(word):
                    return None
                found = self.tensors[around][name] = Tensor(around, name, word)
                return found
            around = around.parent
        return None

    def made(self, tensor: Tensor) -> str:
        """Returns the type that a tensor has when it is made; of a weight the one that it has now."""
        return self.wanted(tensor, tensor.maker) if tensor.maker >= 0 else tensor.word

    def wanted(self, tensor: Tensor, group: int) -> str:
        """Returns the type that a group wants a tensor to have."""
        return retyped(tensor.word, self.to) if self.changes[group] else tensor.word

    # -- building -----------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Finds all groups and what is between them, and decides."""
        index = self.typing.index
        living = [scope for scope in index.scopes if scope in self.typing.known and not self._is_idle(scope)]
        for scope in living:
            self.tensors[scope] = {}
        for scope in living:
            self._ends(scope)
        for scope in living:
            for position, node in enumerate(scope.nodes):
                if position in scope.bodies:
                    self._owner(scope, position, node)
                elif index.functions and (function := index.function_of(node)) is not None:
                    self._call(scope, position, node, function)
                else:
                    self._node(scope, position, node)
        self._tie_what_has_no_cast()
        self._decide()

    def _is_idle(self, scope: Scope) -> bool:
        """Tells whether a graph is part of a function that nothing calls."""
        while scope.parent is not None:
            scope = scope.parent
        return scope.is_function and scope not in self.typing.calls

    def _ends(self, scope: Scope) -> None:
        """Takes in the weights, inputs and outputs of a graph."""
        is_main = scope is self.typing.index.main
        is_old = self.typing.index.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
        inputs = set(scope.inputs)
        for name in scope.constants:
            tensor = self.tensor(scope, name)
            if tensor is not None and (name not in inputs or (is_main and is_old)):
                tensor.maker = -1
        for slot, name in enumerate(scope.inputs):
            tensor = self.tensor(scope, name)
            if tensor is None or tensor.is_weight:
                continue
            if is_main:
                tensor.maker = self._border(tensor)
            elif scope.is_function:
                tensor.maker = self._port(scope, "input", slot)
            elif name in scope.constants:
                tensor.maker = STAYS
        for slot, name in enumerate(scope.outputs):
            tensor = self.tensor(scope, name)
            if tensor is None or not (is_main or scope.is_function):
                continue
            group = self._border(tensor) if is_main else self._port(scope, "output", slot)
            tensor.uses.append(Use(group, scope, -1, slot))

    def _border(self, tensor: Tensor) -> int:
        if not self.converts_io:
            return STAYS
        return CHANGES if is_plain(tensor.word) else self._group(moves=False)

    def _reason(self, scope: Scope, position: int) -> tuple[str, str] | None:
        if scope in self.typing.staying:
            return "asked", ""
        reasons = self.reasons.get(scope)
        return reasons.get(position) if reasons else None

    def _read(self, scope: Scope, position: int, slot: int, name: str, group: int) -> None:
        tensor = self.tensor(scope, name)
        if tensor is not None:
            tensor.uses.append(Use(group, scope, position, slot))

    def _make(self, scope: Scope, position: int, name: str, group: int) -> None:
        tensor = self.tensor(scope, name)
        if tensor is not None:
            tensor.maker, tensor.position = group, position

    def _node(self, scope: Scope, position: int, node: NodeProto) -> None:
        if node.op_type == "Constant" and not plain_domain(node.domain):
            tensor = self.tensor(scope, node.output[0]) if node.output else None
            if tensor is not None:
                is_given = any(each.ref_attr_name for each in node.attribute)
                tensor.maker, tensor.position = STAYS if is_given else -1, position
            return
        names, typing = list(node.input), self.typing
        outs = list(node.output)
        given, made = typing.types(scope, names), typing.types(scope, outs)
        inputs = [slot for slot, word in enumerate(given) if word is not None and element(word)]
        outputs = [slot for slot, word in enumerate(made) if word is not None and element(word)]
        if not inputs and not outputs:
            return
        sig = typing.signatures(scope)[position]
        reason, detail = self._reason(scope, position) or ("", "")
        if not reason and sig is None:
            reason = "unknown"
        elif not reason and sig is not None and sig.quantizes:
            reason = "quantized"
        groups: dict[int, int] = {}
        if not reason and sig is not None:
            pattern = self._pattern(scope, node, sig, given, made)
            groups = {variable: STAYS if moves is None else self._group(moves=moves)
                      for variable, moves in pattern.states}  # fmt: skip
            for one, other in pattern.united:
                self._unite(groups[one], groups[other])
            detail = pattern.detail
            if pattern.stays:
                reason = "schema"
        own = self.tensors[scope]
        for slot in inputs:
            tensor = own.get(names[slot]) or self.tensor(scope, names[slot])
            if tensor is not None:
                group = groups[sig.inputs[slot]] if groups and sig is not None else STAYS
                tensor.uses.append(Use(group, scope, position, slot))
        for slot in outputs:
            self._make(scope, position, outs[slot], groups[sig.outputs[slot]] if groups and sig is not None else STAYS)
        place = Place(scope, position, tuple(groups.values()) or (STAYS,), reason, detail)
        self.places.append(place)
        if sig is not None and any(sig.outputs[slot] not in sig.inputs for slot in outputs):
            self.open.append(place)

    def _pattern(
        self,
        scope: Scope,
        node: NodeProto,
        sig: Signature,
        given: tuple[str | None, ...],
        made: tuple[str | None, ...],
    ) -> Pattern:
        """Returns the pattern of a node, which is found once for all like it."""
        resolved = self.typing.resolved(scope, node) if node.attribute else node
        key = sig, given, made, said_of(resolved) if node.attribute else ()
        pattern = self._patterns.get(key)
        if pattern is None:
            pattern = self._patterns[key] = self._find_pattern(
                resolved, sig, self.typing.version(scope, node.domain), given, made
            )
        for each in pattern.lacking:
            self.lacking[each] = None
        return pattern

    def _find_pattern(
        self,
        node: NodeProto,
        sig: Signature,
        version: int,
        given: tuple[str | None, ...],
        made: tuple[str | None, ...],
    ) -> Pattern:
        """Returns the pattern of a node without references to attributes of a function."""
        is_standard = not plain_domain(node.domain)
        changes: dict[int, bool] = {}
        lacking: list[tuple[str, int, str, int, str]] = []
        detail = ""
        for kind, words, of in (("input", given, sig.inputs), ("output", made, sig.outputs)):
            for slot, word in enumerate(words):
                if word is None or not element(word):
                    continue
                variable, new = of[slot], retyped(word, self.to)
                changes.setdefault(variable, True)
                if new not in sig.allowed[variable]:
                    changes[variable] = False
                    detail = f"{node.op_type} does not take {new} in opset {version}"
                    if is_standard and word in sig.allowed[variable]:
                        lacking.append((node.op_type, version, kind, slot, new))
        outputs = [slot for slot, word in enumerate(made) if word is not None and element(word)]
        main = sig.outputs[outputs[0]] if outputs else None
        bound, prober = set(sig.inputs), self.typing.prober
        told = prober.outputs(node, sig, given) if any(sig.outputs[slot] not in bound for slot in outputs) else None
        for number, slot in enumerate(outputs):
            variable = sig.outputs[slot]
            if variable in bound or len(sig.allowed[variable]) == 1:
                continue
            if number and variable != main:
                changes[variable] = False  # a by-product of a precision of its own, as LayerNormalization's mean
            elif told is None or told[slot] is None:
                return _all_stay(changes, "nothing tells what types it makes", lacking)
        if not self._takes_its_tensors(node, sig, given, changes):
            return _all_stay(changes, "its attributes have the type", lacking)
        united: list[tuple[int, int]] = []
        states = {variable: sig.moves[variable] or main is None if each else None for variable, each in changes.items()}
        for variable, moves in states.items():
            if main is not None and moves is not None and not sig.is_made[variable] and not sig.moves[variable]:
                if states[main] is None:
                    states[variable] = None
                else:
                    united.append((variable, main))
        if len(states) > 1:
            pairs = prober.coupled(node, sig, given, made, self.to)
            united += [(one, other) for one, other in pairs if one in states and other in states]
        return Pattern(tuple(states.items()), tuple(united), detail, tuple(lacking))

    def _takes_its_tensors(
        self, node: NodeProto, sig: Signature, given: tuple[str | None, ...], changes: Mapping[int, bool]
    ) -> bool:
        """Tells whether a node goes with other types, whose attributes hold tensors that may have to have the same."""
        if not any(each.type == _TENSOR for each in node.attribute):
            return True
        new = tuple(
            retyped(word, self.to) if word and element(word) and changes.get(sig.inputs[slot]) else word
            for slot, word in enumerate(given)
        )
        prober = self.typing.prober
        return prober.outputs(node, sig, new) is not None or prober.outputs(node, sig, given) is None

    def _owner(self, scope: Scope, position: int, node: NodeProto) -> None:
        """Takes in a node with bodies: what goes in and out of these has one type at all places."""
        bodies = scope.bodies[position]
        known = ports(node, bodies, self.typing.version(scope, node.domain))
        sig = self.typing.signatures(scope)[position]
        reason = self._reason(scope, position)
        used: set[int] = set()
        tied: set[tuple[str, int]] = set()
        for port in known or ():
            group = STAYS if reason is not None or sig is None else self._group(moves=True)
            for kind, slots, names in (("in", port.inputs, node.input), ("out", port.outputs, node.output)):
                for slot in slots:
                    tied.add((kind, slot))
                    tensor = self.tensor(scope, names[slot]) if slot < len(names) and names[slot] else None
                    if tensor is None or sig is None:
                        continue
                    variable = (sig.inputs if kind == "in" else sig.outputs)[slot]
                    new = retyped(tensor.word, self.to)
                    if new not in sig.allowed[variable]:
                        group = self._joined(group, STAYS)
                        if not plain_domain(node.domain):
                            version = self.typing.version(scope, node.domain)
                            self.lacking[node.op_type, version, f"{kind}put", slot, new] = None
                    used.add(group)
            for slot in port.inputs:
                if slot < len(node.input) and node.input[slot]:
                    self._read(scope, position, slot, node.input[slot], group)
            for slot in port.outputs:
                if slot < len(node.output) and node.output[slot]:
                    self._make(scope, position, node.output[slot], group)
            for body, slot in port.given:
                self._make(bodies[body], -1, bodies[body].inputs[slot], group)
            for body, slot in port.taken:
                tensor = self.tensor(bodies[body], bodies[body].outputs[slot])
                if tensor is not None:
                    tensor.uses.append(Use(group, bodies[body], -1, slot))
        self._rest_stays(scope, position, node, bodies if known is None else [], tied)
        if used:
            why, detail = reason or ("", "")
            self.places.append(Place(scope, position, tuple(sorted(used)), why, detail))

    def _joined(self, group: int, other: int) -> int:
        self._unite(group, other)
        return self.find(group)

    def _rest_stays(
        self, scope: Scope, position: int, node: NodeProto, bodies: list[Scope], tied: set[tuple[str, int]]
    ) -> None:
        """Leaves what goes in and out of a node as it is, where no port is known of it."""
        for slot, name in enumerate(node.input):
            if name and ("in", slot) not in tied:
                self._read(scope, position, slot, name, STAYS)
        for slot, name in enumerate(node.output):
            if name and ("out", slot) not in tied:
                self._make(scope, position, name, STAYS)
        for body in bodies:
            for slot, name in enumerate(body.outputs):
                self._read(body, -1, slot, name, STAYS)

    def _call(self, scope: Scope, position: int, node: NodeProto, function: Scope) -> None:
        groups = []
        for slot, name in enumerate(node.input):
            if name:
                group = self._port(function, "input", slot)
                self._read(scope, position, slot, name, group)
                groups.append(group)
        for slot, name in enumerate(node.output):
            if name:
                self._make(scope, position, name, self._port(function, "output", slot))

    def _tie_what_has_no_cast(self) -> None:
        """Makes all that have to do with a sequence or optional one group: there is no Cast for them."""
        for tensors in self.tensors.values():
            for tensor in tensors.values():
                if not is_plain(tensor.word) and not tensor.is_weight:
                    for use in tensor.uses:
                        self._unite(tensor.maker, use.group)

    def _decide(self) -> None:
        roots = [self.find(group) for group in range(len(self._parent))]
        ends = [root if root <= CHANGES else root if self._moves[root] else CHANGES for root in roots]
        links = []
        for tensors in self.tensors.values():
            for tensor in tensors.values():
                if tensor.is_weight or not tensor.uses or tensor.word == retyped(tensor.word, self.to):
                    continue
                maker = ends[tensor.maker]
                users = {ends[use.group] for use in tensor.uses}
                if users == {maker} or (maker <= CHANGES and max(users) <= CHANGES):
                    continue
                links.append(Link(maker, tuple(sorted(users)), self._cost_of(tensor)))
        sides = choose_sides(len(ends), links)
        self.changes = [sides[end] for end in ends]

    def _cost_of(self, tensor: Tensor) -> Callable[[], int]:
        return lambda: _ONE_CAST + min(self.size_of(tensor), _ONE_CAST >> 10)


def _all_stay(variables: Iterable[int], why: str, lacking: Sequence[tuple[str, int, str, int, str]]) -> Pattern:
    return Pattern(tuple((variable, None) for variable in variables), (), why, tuple(lacking))
