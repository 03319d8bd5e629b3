"""The plan of a conversion: which tensors get the new type, and where one must be cast.

Slots that have one type form a group: a type variable of a node, or a value that a node hands to its bodies or a call
to its function. A group changes its type or stays. Groups that may not change are one with ``STAYS``; those that
compute change; those that only move values take the side on which less has to be cast (``_sides``). Weights belong to
no group: they are stored in whatever type is wanted, in two if both are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from onnxbench.graph import Scope
from onnxbench.precision._sides import CHANGES, STAYS, Link, choose_sides
from onnxbench.precision._signatures import element, is_plain, retyped, said_of
from onnxbench.precision._typing import Form, Typing, ports
from onnxbench.schemas import plain_domain

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


@dataclass(slots=True, eq=False)
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
    """What nodes of one form, with attributes that say the same of types, make of their type variables.

    Attributes:
        groups: For each variable that has floats whether what has it is only moved; None if it stays.
        inputs: Each input that is floats, with the place of its variable in ``groups``.
        outputs: The same of outputs.
        united: Pairs of places in ``groups`` that are one group.
        detail: What the schema does not admit.
        lacking: See ``Plan.lacking``.
        stays: Whether all of it stays.
        is_open: Whether it makes floats of a type that is not that of an input.
    """

    groups: tuple[bool | None, ...]
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]
    united: tuple[tuple[int, int], ...]
    detail: str
    lacking: tuple[tuple[str, int, str, int, str], ...]
    stays: bool
    is_open: bool


@dataclass(slots=True)
class Plan:
    """Which groups change (see above).

    Attributes:
        typing: The types as they are.
        to: The new element type.
        converts_io: Whether inputs and outputs get it, too.
        lists_weights: Whether inputs that have an initializer are weights: the model came in an IR version that
            wants all of them listed.
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
    lists_weights: bool = False
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
        return retyped(tensor.word, self.to) if tensor.maker >= 0 and self.changes[tensor.maker] else tensor.word

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
        inputs = set(scope.inputs)
        for name in scope.constants:
            tensor = self.tensor(scope, name)
            if tensor is not None and (name not in inputs or (is_main and self.lists_weights)):
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
        form = self.typing.form(scope, position)
        if not form.inputs and not form.outputs:
            return
        reason, detail = self._reason(scope, position) or ("", "")
        sig = form.sig
        if not reason and (sig is None or sig.quantizes):
            reason = "unknown" if sig is None else "quantized"
        pattern = self._pattern(scope, node, form, stays=bool(reason))
        groups = [STAYS if moves is None else self._group(moves=moves) for moves in pattern.groups]
        for one, other in pattern.united:
            self._unite(groups[one], groups[other])
        if not reason:
            detail = pattern.detail
            reason = "schema" if pattern.stays else ""
        own, names, outs = self.tensors[scope], scope.reads[position], scope.writes[position]
        if len(names) != len(form.given):
            names = list(node.input)
        if len(outs) != len(form.made):
            outs = list(node.output)
        for slot, at in pattern.inputs:
            tensor = own.get(names[slot]) or self.tensor(scope, names[slot])
            if tensor is not None:
                tensor.uses.append(Use(groups[at], scope, position, slot))
        for slot, at in pattern.outputs:
            name, word = outs[slot], form.made[slot]
            made = own.get(name)
            if made is not None:
                made.maker, made.position = groups[at], position
            elif word is not None:
                own[name] = Tensor(scope, name, word, groups[at], position)
        place = Place(scope, position, tuple(groups), reason, detail)
        self.places.append(place)
        if pattern.is_open:
            self.open.append(place)

    def _pattern(self, scope: Scope, node: NodeProto, form: Form, *, stays: bool) -> Pattern:
        """Returns the pattern of a node, which is found once for all like it."""
        key: tuple[object, ...] = form, stays
        resolved = node
        if node.attribute and not stays:
            resolved = self.typing.resolved(scope, node)
            key = form, stays, said_of(resolved)
        pattern = self._patterns.get(key)
        if pattern is None:
            version = self.typing.version(scope, node.domain)
            pattern = self._patterns[key] = _staying(form) if stays else self._find_pattern(resolved, form, version)
        for each in pattern.lacking:
            self.lacking[each] = None
        return pattern

    def _find_pattern(self, node: NodeProto, form: Form, version: int) -> Pattern:
        """Returns the pattern of a node without references to attributes of a function."""
        sig, given, made = form.sig, form.given, form.made
        assert sig is not None
        is_standard = not plain_domain(node.domain)
        changes: dict[int, bool] = {}
        lacking: list[tuple[str, int, str, int, str]] = []
        detail = ""
        for kind, words, slots, of in (("input", given, form.inputs, sig.inputs),
                                       ("output", made, form.outputs, sig.outputs)):  # fmt: skip
            for slot in slots:
                word = words[slot] or ""
                variable, new = of[slot], retyped(word, self.to)
                changes.setdefault(variable, True)
                if new not in sig.allowed[variable]:
                    changes[variable] = False
                    detail = f"{node.op_type} does not take {new} in opset {version}"
                    if is_standard and word in sig.allowed[variable]:
                        lacking.append((node.op_type, version, kind, slot, new))
        main = sig.outputs[form.outputs[0]] if form.outputs else None
        bound, prober = set(sig.inputs), self.typing.prober
        is_open = any(sig.outputs[slot] not in bound for slot in form.outputs)
        told = prober.outputs(node, sig, given) if is_open else None
        for number, slot in enumerate(form.outputs):
            variable = sig.outputs[slot]
            if variable in bound or len(sig.allowed[variable]) == 1:
                continue
            if number and variable != main:
                changes[variable] = False  # a by-product of a precision of its own, as LayerNormalization's mean
            elif told is None or told[slot] is None:
                return _pattern_of(form, dict.fromkeys(changes), "nothing tells what types it makes", lacking)
        if not self._takes_its_tensors(node, form, changes):
            return _pattern_of(form, dict.fromkeys(changes), "its attributes have the type", lacking)
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
        return _pattern_of(form, states, detail, lacking, united)

    def _takes_its_tensors(self, node: NodeProto, form: Form, changes: Mapping[int, bool]) -> bool:
        """Tells whether a node goes with other types, whose attributes hold tensors that may have to have the same."""
        sig, given = form.sig, form.given
        if sig is None or not any(each.type == _TENSOR for each in node.attribute):
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


def _staying(form: Form) -> Pattern:
    """Returns the pattern of nodes that stay for another reason than their types."""
    sig = form.sig
    is_open = sig is not None and any(sig.outputs[slot] not in sig.inputs for slot in form.outputs)
    inputs, outputs = (tuple((slot, 0) for slot in slots) for slots in (form.inputs, form.outputs))
    return Pattern((None,), inputs, outputs, (), "", (), stays=True, is_open=is_open)


def _pattern_of(
    form: Form,
    states: Mapping[int, bool | None],
    detail: str,
    lacking: Sequence[tuple[str, int, str, int, str]],
    united: Sequence[tuple[int, int]] = (),
) -> Pattern:
    """Returns a pattern.

    Args:
        form: The form of the nodes.
        states: Each variable that has floats, with whether what has it is only moved; None if it stays.
        detail: As in the pattern.
        lacking: As there.
        united: Pairs of variables that are one group.
    """
    sig = form.sig
    assert sig is not None
    at = {variable: number for number, variable in enumerate(states)}
    return Pattern(
        tuple(states.values()),
        tuple((slot, at[sig.inputs[slot]]) for slot in form.inputs),
        tuple((slot, at[sig.outputs[slot]]) for slot in form.outputs),
        tuple((at[one], at[other]) for one, other in united),
        detail,
        tuple(lacking),
        stays=all(moves is None for moves in states.values()),
        is_open=any(sig.outputs[slot] not in sig.inputs for slot in form.outputs),
    )
