"""The element type of every tensor, in bodies and functions too: what operators make, not what the file states.

Value infos may be wrong or missing, and onnx's inference says nothing of what is inside of a function. So types are
followed from inputs and weights through the nodes in order. A function is gone through with the types of its calls; one
that is called with several has to become several functions first (``_specializing``).

Bodies and functions are visited by generators on a stack of their own: the depth of nesting costs no Python stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from onnxbench.graph import GraphIndex, NodeRef, Scope, root_of, topological_order
from onnxbench.precision._signatures import Prober, Signature, element, signature, tensor_word, type_word
from onnxbench.schemas import plain_domain

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto

    _Walk: TypeAlias = Iterator["_Walk"]

_FIRST_SCAN_WITHOUT_LENGTHS = 9
_CONSTANTS = {
    "value_float": 1,
    "value_floats": 1,
    "value_int": 7,
    "value_ints": 7,
    "value_string": 8,
    "value_strings": 8,
}
_INT = 2
Fallback = Callable[[Scope, str], "str | None"]
"""What tells the type of a tensor that its operator does not tell of."""


@dataclass(frozen=True, slots=True)
class Port:
    """A value that a node hands to its bodies, has them hand on, or takes from them: one element type at all places.

    Attributes:
        inputs: Inputs of the node.
        given: Inputs of bodies, as number of the body and of its input.
        taken: Outputs of bodies.
        outputs: Outputs of the node.
    """

    inputs: tuple[int, ...] = ()
    given: tuple[tuple[int, int], ...] = ()
    taken: tuple[tuple[int, int], ...] = ()
    outputs: tuple[int, ...] = ()


def ports(node: NodeProto, bodies: list[Scope], version: int) -> list[Port] | None:
    """Returns the ports of a node with bodies; None if it is not known what it does with them."""
    if plain_domain(node.domain):
        return None
    if node.op_type == "If":
        return [
            Port(taken=tuple((body, slot) for body, _ in enumerate(bodies)), outputs=(slot,))
            for slot in range(len(node.output))
        ]
    inner = bodies[0]
    if node.op_type == "Loop":
        states = len(inner.inputs) - 2
        carried = [Port((2 + k,), ((0, 2 + k),), ((0, 1 + k),), (k,)) for k in range(states)]
        return carried + [Port(taken=((0, 1 + k),), outputs=(k,)) for k in range(states, len(inner.outputs) - 1)]
    if node.op_type == "Scan":
        first = 0 if version >= _FIRST_SCAN_WITHOUT_LENGTHS else 1
        scanned = next((each.i for each in node.attribute if each.name == "num_scan_inputs"), 0)
        states = len(inner.inputs) - scanned
        found = [Port((first + k,), ((0, k),), ((0, k),), (k,)) for k in range(states)]
        found += [Port((first + k,), ((0, k),)) for k in range(states, len(inner.inputs))]
        return found + [Port(taken=((0, k),), outputs=(k,)) for k in range(states, len(inner.outputs))]
    if node.op_type == "SequenceMap":
        return [Port((k,), ((0, k),)) for k in range(len(inner.inputs))] + [
            Port(taken=((0, k),), outputs=(k,)) for k in range(len(inner.outputs))
        ]
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What nodes have in common whose operator, inputs and outputs have the same types; there is one object for each.

    Attributes:
        sig: The signature of the operator; None where nothing tells it.
        given: The types of the inputs.
        made: The types of the outputs.
        inputs: The inputs that are floats.
        outputs: The outputs that are.
    """

    sig: Signature | None
    given: tuple[str | None, ...]
    made: tuple[str | None, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


Call = tuple[tuple[str | None, ...], tuple[tuple[str, int], ...], bool]
"""What a call makes of a function: the types of its inputs, element types given as attributes, and whether it stays."""


@dataclass(slots=True)
class Typing:
    """The types of a model's tensors.

    Attributes:
        index: The index of the model.
        known: For each graph, the types of the tensors that it defines, by name.
        calls: For each function, how it is called, with the nodes that call it so, as first met.
        asked: Nodes that stay with all they contain, by graph.
        prober: What is known of single nodes.
    """

    index: GraphIndex
    fallback: Fallback
    prober: Prober
    asked: Mapping[Scope, Mapping[int, tuple[str, str]]]
    known: dict[Scope, dict[str, str]] = field(default_factory=dict)
    calls: dict[Scope, dict[Call, list[NodeRef]]] = field(default_factory=dict)
    versions: dict[Scope, dict[str, int]] = field(default_factory=dict)
    staying: set[Scope] = field(default_factory=set)
    given: dict[Scope, dict[str, int]] = field(default_factory=dict)
    _signatures: dict[Scope, list[Signature | None]] = field(default_factory=dict)
    _told: dict[tuple[Signature, tuple[str | None, ...]], Form] = field(default_factory=dict)
    _forms: dict[tuple[object, ...], Form] = field(default_factory=dict)
    _form_of: dict[Scope, list[Form | None]] = field(default_factory=dict)

    def version(self, scope: Scope, domain: str) -> int:
        """Returns the opset version of a domain within a graph; 0 if it is not imported."""
        found = self.versions.get(scope)
        if found is None:
            top = root_of(scope)
            holder = top.graph if top.is_function else self.index.proto
            found = self.versions[scope] = {plain_domain(each.domain): each.version for each in holder.opset_import}
        return found.get(plain_domain(domain), 0)

    def signatures(self, scope: Scope) -> list[Signature | None]:
        """Returns the signature of each node of a graph; None for calls of functions and where nothing tells it."""
        found = self._signatures.get(scope)
        if found is None:
            index = self.index
            known: dict[tuple[str, str, int, int], Signature | None] = {}
            found = self._signatures[scope] = []
            for node in scope.nodes:
                key = node.domain, node.op_type, len(node.input), len(node.output)
                if key not in known:
                    known[key] = signature(key[0], key[1], self.version(scope, key[0]), key[2], key[3])
                is_call = index.functions and index.function_of(node) is not None
                found.append(None if is_call else known[key])
        return found

    def type_of(self, scope: Scope, name: str) -> str | None:
        """Returns the type of a tensor that a graph sees."""
        around: Scope | None = scope
        while around is not None:
            word = self.known[around].get(name)
            if word is not None:
                return word
            around = around.parent
        return None

    def types(self, scope: Scope, names: list[str]) -> tuple[str | None, ...]:
        """Returns the types of tensors that a graph sees."""
        own = self.known[scope]
        return tuple([own.get(name) or (self.type_of(scope, name) if name else None) for name in names])

    def form(self, scope: Scope, position: int) -> Form:
        """Returns the form of a node, after all types were found."""
        found = self._form_of[scope][position]
        if found is None:  # all is known only now
            node = scope.nodes[position]
            given, made = self.types(scope, list(node.input)), self.types(scope, list(node.output))
            found = self._form_of[scope][position] = self._form(self.signatures(scope)[position], given, made)
        return found

    def _form(self, sig: Signature | None, given: tuple[str | None, ...], made: tuple[str | None, ...]) -> Form:
        key = sig, given, made
        found = self._forms.get(key)
        if found is None:
            inputs, outputs = ([slot for slot, word in enumerate(words) if word and element(word)]
                               for words in (given, made))  # fmt: skip
            found = self._forms[key] = Form(sig, given, made, tuple(inputs), tuple(outputs))
        return found

    def follow(self) -> None:
        """Finds all types."""
        main = self.index.main
        self._run(self._graph(main, {}, record=True))
        for function in self.index.functions.values():  # those that nothing calls
            if function not in self.known:
                self._run(self._graph(function, {}, record=False))

    def _run(self, first: _Walk) -> None:
        stack = [first]
        while stack:
            deeper = next(stack[-1], None)
            if deeper is None:
                stack.pop()
            else:
                stack.append(deeper)

    def _graph(self, scope: Scope, given: Mapping[str, str], *, record: bool) -> _Walk:
        """Finds the types of a graph's tensors; yields what is to be gone through before it goes on."""
        own = self.known[scope] = dict(given)
        if not scope.is_function:
            graph = scope.graph
            for tensor in graph.initializer:
                own[tensor.name] = tensor_word(tensor.data_type)
            for sparse in graph.sparse_initializer:
                own[sparse.values.name] = tensor_word(sparse.values.data_type)
            for info in graph.input:
                if info.name not in own and (word := type_word(info.type)):
                    own[info.name] = word
        order = topological_order(scope)
        signatures = self.signatures(scope)
        self._form_of[scope] = [None] * len(scope.nodes)
        for position in range(len(scope.nodes)) if order is None else order:
            node = scope.nodes[position]
            if position in scope.bodies:
                yield from self._bodies(scope, position, record)
            elif self.index.functions and (function := self.index.function_of(node)) is not None:
                yield from self._call(scope, position, function, record)
            else:
                self._node(scope, position, node, signatures[position])

    def _node(self, scope: Scope, position: int, node: NodeProto, sig: Signature | None) -> None:
        own = self.known[scope]
        if sig is None or sig.is_constant:
            if node.op_type == "Constant" and not plain_domain(node.domain):
                word = self._constant(scope, node)
                if word is not None and node.output:
                    own[node.output[0]] = word
            elif any(node.output):
                self._ask(scope, node, sig)
            return
        names, outputs = scope.reads[position], scope.writes[position]
        if len(names) != len(sig.inputs):
            names = list(node.input)
        if len(outputs) != len(sig.outputs):
            outputs = list(node.output)
        given = tuple([own.get(name) for name in names])
        if None in given:
            given = self.types(scope, names)
        form = self._told.get((sig, given))
        if form is None:
            form = self._told[sig, given] = self._form(sig, given, _told(sig, given))
        made = form.made
        for name, word in zip(outputs, made, strict=True):
            if word is not None and name:
                own[name] = word
        if None not in given and None not in made:
            self._form_of[scope][position] = form
            return
        pairs = reversed([*zip(sig.inputs, given, strict=True)])
        found = {variable: word for variable, word in pairs if word is not None}  # the first one counts
        for slot, name in enumerate(names):
            word = found.get(sig.inputs[slot])
            if name and given[slot] is None and word is not None:
                self._learn(scope, name, word)
        if any(name and word is None for name, word in zip(outputs, made, strict=True)):
            self._ask(scope, node, sig)

    def _learn(self, scope: Scope, name: str, word: str) -> None:
        """Takes what reads a tensor as telling its type, where nothing else did."""
        around: Scope | None = scope
        while around is not None and not around.defines(name):
            around = around.parent
        if around is not None:
            self.known[around].setdefault(name, word)

    def _ask(self, scope: Scope, node: NodeProto, sig: Signature | None) -> None:
        own = self.known[scope]
        made = None
        if sig is not None:
            made = self.prober.outputs(self.resolved(scope, node), sig, self.types(scope, list(node.input)))
        for slot, name in enumerate(node.output):
            if name and name not in own:
                word = (made[slot] if made is not None else None) or self.fallback(scope, name)
                if word is not None:
                    own[name] = word

    def resolved(self, scope: Scope, node: NodeProto) -> NodeProto:
        """Returns a node with the element types that a function's call gives to its attributes."""
        values = self.given.get(root_of(scope))
        if not values or not any(each.ref_attr_name in values for each in node.attribute if each.ref_attr_name):
            return node
        copy = type(node)()
        copy.CopyFrom(node)
        for each in copy.attribute:
            if each.ref_attr_name in values:
                each.i = values[each.ref_attr_name]
                each.type = _INT
                each.ClearField("ref_attr_name")
        return copy

    def _constant(self, scope: Scope, node: NodeProto) -> str | None:
        for each in node.attribute:
            if each.name == "value" and not each.ref_attr_name:
                return tensor_word(each.t.data_type)
            if each.name == "sparse_value" and not each.ref_attr_name:
                return tensor_word(each.sparse_tensor.values.data_type)
            if each.name in _CONSTANTS:
                return tensor_word(_CONSTANTS[each.name])
        return self.fallback(scope, node.output[0]) if node.output else None

    def _bodies(self, scope: Scope, position: int, record: bool) -> _Walk:
        node, bodies = scope.nodes[position], scope.bodies[position]
        if position in self.asked.get(scope, ()) or scope in self.staying:
            self.staying.update(bodies)
        known_ports = ports(node, bodies, self.version(scope, node.domain))
        handed = self.types(scope, list(node.input))
        is_map = node.op_type == "SequenceMap"
        given: list[dict[str, str]] = [{} for _ in bodies]
        for port in known_ports or ():
            for body, slot in port.given:
                for source in port.inputs:
                    word = handed[source] if source < len(handed) else None
                    if word is not None:
                        given[body][bodies[body].inputs[slot]] = _item(word) if is_map else word
        for inner, words in zip(bodies, given, strict=True):
            yield self._graph(inner, words, record=record)
        own = self.known[scope]
        for port in known_ports or ():
            for body, slot in port.taken:
                word = self.type_of(bodies[body], bodies[body].outputs[slot])
                if word is None:
                    info = bodies[body].graph.output[slot]
                    word = type_word(info.type)
                    if word is not None:
                        self._learn(bodies[body], info.name, word)
                for target in port.outputs:
                    if word is not None and target < len(node.output) and node.output[target]:
                        own.setdefault(node.output[target], f"seq({word})" if is_map else word)
        if known_ports is None:
            self._ask(scope, node, None)

    def _call(self, scope: Scope, position: int, function: Scope, record: bool) -> _Walk:
        node = scope.nodes[position]
        words = self.types(scope, list(node.input))
        words += (None,) * (len(function.inputs) - len(words))
        values = element_attributes(function, node.attribute)
        stays = scope in self.staying or position in self.asked.get(scope, ())
        call: Call = words, values, stays
        if record:
            self.calls.setdefault(function, {}).setdefault(call, []).append(NodeRef(scope, position))
        given = {name: word for name, word in zip(function.inputs, words, strict=False) if word is not None}
        if record and len(self.calls[function]) == 1 and function not in self.known:
            if stays:
                self.staying.add(function)
            self.given[function] = dict(values)
            yield self._graph(function, given, record=record)
            made = [self.known[function].get(name) for name in function.outputs]
        elif function in self.calls and next(iter(self.calls[function])) == call:
            made = [self.known[function].get(name) for name in function.outputs]
        else:  # gone through apart, for what it makes; it becomes a function of its own before anything is done
            before = dict(self.known), dict(self._form_of), dict(self.given), set(self.staying)
            self.given[function] = dict(values)
            yield self._graph(function, given, record=False)
            made = [self.known[function].get(name) for name in function.outputs]
            self.known, self._form_of, self.given, self.staying = before
        own = self.known[scope]
        for name, word in zip(node.output, made, strict=False):
            if name and (word := word or self.fallback(scope, name)) is not None:
                own[name] = word


def _told(sig: Signature, given: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Returns the types of outputs that a schema tells, given those of the inputs; None for the others."""
    found: dict[int, str] = {}
    for variable, word in zip(sig.inputs, given, strict=True):
        if word is not None:
            found.setdefault(variable, word)
    for variable in sig.outputs:
        if variable not in found and len(sig.allowed[variable]) == 1:
            (found[variable],) = sig.allowed[variable]
    return tuple([found.get(variable) for variable in sig.outputs])


def _item(word: str) -> str:
    return word[4:-1] if word.startswith("seq(") else word


def element_attributes(function: Scope, attributes: object) -> tuple[tuple[str, int], ...]:
    """Returns the attributes of a call that are integers and that nodes of the function take for element types."""
    from collections.abc import Iterable
    from typing import cast

    held = {each.name: each for each in cast("Iterable[AttributeProto]", attributes)}
    defaults = {each.name: each for each in function.graph.attribute_proto} if function.is_function else {}
    wanted = {
        each.ref_attr_name
        for node in function.nodes
        for each in node.attribute
        if each.ref_attr_name and (each.name == "to" or each.name.endswith("dtype"))
    }
    found = ((name, held.get(name) or defaults.get(name)) for name in sorted(wanted))
    return tuple((name, each.i) for name, each in found if each is not None and each.type == _INT)
