"""The plan of a conversion: which tensors get the new type, and where one must be cast.

Slots that have one type form a group: a type variable of a node, or a value that a node hands to its bodies or a call
to its function. A group changes its type or stays. Groups that may not change are one with ``STAYS``; those that
compute change; those that only move values take the side on which less has to be cast (``_sides``). Weights belong to
no group: they are stored in whatever type is wanted, in two if both are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxbench.graph import Scope
from onnxbench.precision._sides import CHANGES, STAYS, Link, choose_sides
from onnxbench.precision._signatures import Signature, element, is_plain, retyped
from onnxbench.precision._typing import Typing, ports
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART, plain_domain

if TYPE_CHECKING:
    from onnx import NodeProto

_TENSOR = 4  # AttributeProto type
_ONE_CAST = 1 << 40
"""A Cast more costs more than any number of bytes less: most Casts are dear for being there, not for their size."""


@dataclass(frozen=True, slots=True)
class Use:
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


@dataclass(frozen=True, slots=True)
class Place:
    """A node that has floats, with the groups of its inputs and outputs."""

    scope: Scope
    position: int
    groups: tuple[int, ...]
    reason: str = ""
    detail: str = ""


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
        inputs = [(slot, name, tensor) for slot, name in enumerate(node.input)
                  if name and (tensor := self.tensor(scope, name)) is not None]  # fmt: skip
        outputs = [(slot, name, tensor) for slot, name in enumerate(node.output)
                   if name and (tensor := self.tensor(scope, name)) is not None]  # fmt: skip
        if not inputs and not outputs:
            return
        sig = self.typing.signature(scope, node)
        reason, detail = self._reason(scope, position) or ("", "")
        if not reason and sig is None:
            reason = "unknown"
        elif not reason and sig is not None and sig.quantizes:
            reason = "quantized"
        groups: dict[int, int] = {}
        if not reason and sig is not None:
            groups, detail = self._variables(scope, node, sig, inputs, outputs)
            if all(group == STAYS for group in groups.values()):
                reason = "schema"
        for slot, _, tensor in inputs:
            group = groups[sig.inputs[slot]] if groups and sig is not None else STAYS
            tensor.uses.append(Use(group, scope, position, slot))
        for slot, _, tensor in outputs:
            tensor.maker = groups[sig.outputs[slot]] if groups and sig is not None else STAYS
            tensor.position = position
        place = Place(scope, position, tuple(groups.values()) or (STAYS,), reason, detail)
        self.places.append(place)
        if sig is not None and any(sig.outputs[slot] not in sig.inputs for slot, _, _ in outputs):
            self.open.append(place)

    def _variables(
        self,
        scope: Scope,
        node: NodeProto,
        sig: Signature,
        inputs: list[tuple[int, str, Tensor]],
        outputs: list[tuple[int, str, Tensor]],
    ) -> tuple[dict[int, int], str]:
        """Returns the group of each type variable of a node that has floats, and what the schema does not admit."""
        words: dict[int, str] = {}
        detail = ""
        groups: dict[int, int] = {}
        for kind, slots, of in (("input", inputs, sig.inputs), ("output", outputs, sig.outputs)):
            for slot, _, tensor in slots:
                variable = of[slot]
                words[variable] = tensor.word
                if variable not in groups:
                    groups[variable] = CHANGES
                new = retyped(tensor.word, self.to)
                if new not in sig.allowed[variable]:
                    groups[variable] = STAYS
                    detail = f"{node.op_type} does not take {new} in opset {self.typing.version(scope, node.domain)}"
                    if not plain_domain(node.domain) and tensor.word in sig.allowed[variable]:
                        version = self.typing.version(scope, node.domain)
                        self.lacking[node.op_type, version, kind, slot, new] = None
        main = sig.outputs[outputs[0][0]] if outputs else None
        bound = set(sig.inputs)
        for number, (slot, _, _) in enumerate(outputs):
            variable = sig.outputs[slot]
            if variable in bound or len(sig.allowed[variable]) == 1:
                continue
            if number and variable != main:
                groups[variable] = STAYS  # a by-product of a precision of its own, as LayerNormalization's mean
            elif not self._is_told(scope, node, sig, slot):
                return dict.fromkeys(groups, STAYS), "nothing tells what types it makes"
        if not self._takes_its_tensors(scope, node, sig, groups):
            return dict.fromkeys(groups, STAYS), "its attributes have the type"
        for variable, state in groups.items():
            if state == CHANGES:
                groups[variable] = self._group(moves=sig.moves[variable] or main is None)
        for variable, group in list(groups.items()):
            if main is not None and not sig.is_made[variable] and not sig.moves[variable] and group != STAYS:
                if groups[main] == STAYS:
                    groups[variable] = STAYS
                else:
                    self._unite(group, groups[main])
        if len(groups) > 1:
            node_now = self.typing.resolved(scope, node)
            given = self.typing.types(scope, list(node.input))
            made = self.typing.types(scope, list(node.output))
            for one, other in self.typing.prober.coupled(node_now, sig, given, made, self.to):
                if one in groups and other in groups:
                    self._unite(groups[one], groups[other])
        return groups, detail

    def _takes_its_tensors(self, scope: Scope, node: NodeProto, sig: Signature, groups: Mapping[int, int]) -> bool:
        """Tells whether a node goes with other types, whose attributes hold tensors that may have to have the same."""
        if not any(each.type == _TENSOR for each in node.attribute):
            return True
        given = self.typing.types(scope, list(node.input))
        new = tuple(
            retyped(word, self.to) if word and element(word) and groups.get(sig.inputs[slot]) == CHANGES else word
            for slot, word in enumerate(given)
        )
        resolved, prober = self.typing.resolved(scope, node), self.typing.prober
        return prober.outputs(resolved, sig, new) is not None or prober.outputs(resolved, sig, given) is None

    def _is_told(self, scope: Scope, node: NodeProto, sig: Signature, slot: int) -> bool:
        """Tells whether inference knows the type of an output that is not that of an input."""
        given = self.typing.types(scope, list(node.input))
        made = self.typing.prober.outputs(self.typing.resolved(scope, node), sig, given)
        return made is not None and made[slot] is not None

    def _owner(self, scope: Scope, position: int, node: NodeProto) -> None:
        """Takes in a node with bodies: what goes in and out of these has one type at all places."""
        bodies = scope.bodies[position]
        known = ports(node, bodies, self.typing.version(scope, node.domain))
        sig = self.typing.signature(scope, node)
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
