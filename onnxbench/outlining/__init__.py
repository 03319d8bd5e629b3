"""Nodes moved out of a graph into a local function, with a call in their place.

An *instance* is a set of nodes of one graph that becomes one call: nodes that a user names, or all of one call of a
PyTorch module. Instances that do the same share one function, as the modules share a class: what may differ is names,
weights (they are arguments), and constants (those that differ are arguments too). Whether two instances do the same
is decided by a digest of their nodes in file order, in which every name is replaced by where it comes from.

A function sees nothing but its arguments. So whatever an instance reads from outside, in bodies too, becomes one. Two
places where one instance reads the same tensor are the same argument only if all instances agree on that.

Several instances may stand in each other's way though each of them alone could become a call. So all of them are
contracted at once and the rest is sorted: one linear pass, and what is left over is a cycle that can be named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench.draft import distinct, rename_annotations
from onnxbench.errors import NotFoundError, RefusedResultError, UnsupportedError, UsageError, did_you_mean
from onnxbench.graph import NodeRef, Scope, TensorRef, home_of, root_of
from onnxbench.messages import copy_of
from onnxbench.outlining._bodies import (
    SPARSE,
    TENSOR,
    Body,
    Instance,
    attribute_digest,
    is_constant,
    names_in_bodies,
    read_body,
    say,
    tensor_digest,
    within,
)
from onnxbench.outlining._contraction import contracted, is_shared_constant, own_nodes
from onnxbench.outlining._moving import move_in, move_out
from onnxbench.provenance import ModuleCall
from onnxbench.schemas import FIRST_IR_WITH_FUNCTIONS, known_domains, plain_domain
from onnxbench.select import matcher, origins

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

    from onnxbench.draft import Draft

__all__ = ["Instance", "Outlined", "chosen_instance", "filled", "module_instances", "move_in", "move_out", "outline"]

FIRST_IR_WITH_FUNCTION_TYPES = 10
DEFAULT_DOMAIN = "local"
_LISTED = 6


@dataclass(frozen=True, slots=True)
class Outlined:
    """One function that was made.

    Attributes:
        domain: Its domain.
        name: Its name.
        calls: Names of the nodes that call it, with the paths of their graphs.
        nodes: How many nodes it has.
        inputs: Its inputs.
        outputs: Its outputs.
    """

    domain: str
    name: str
    calls: tuple[str, ...]
    nodes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# -- what is to be outlined ----------------------------------------------------------------------------------------


def module_instances(draft: Draft, pattern: str) -> list[Instance]:
    """Returns the calls of PyTorch modules whose path matches a glob, each as an instance.

    Of nested modules that match, the outermost counts. A module that is called several times is several instances,
    as far as the exporter tells, and so is one whose nodes stand in several graphs.

    Raises:
        NotFoundError: No module matches.
    """
    index = draft.index
    known, matches = origins(index), matcher(pattern)
    found: dict[tuple[int, ModuleCall], list[int]] = {}
    verdicts: dict[tuple[ModuleCall, ...], ModuleCall | None] = {}
    seen: set[str] = set()
    by_id = {id(scope): scope for scope in index.scopes}
    inside: set[int] = set()  # bodies of nodes that belong to an instance go with them
    called_inside: set[int] | None = None
    for scope in index.scopes:
        if scope.is_function and called_inside is None:  # what an instance calls is part of it
            own = [NodeRef(by_id[key], at).node for (key, _), positions in found.items() for at in positions]
            called_inside = {id(index.functions[key]) for key in index.function_closure(own)}
        if id(root_of(scope)) in (called_inside or ()):
            continue
        if scope.parent is not None and id(scope) in inside:
            inside.update(id(body) for bodies in scope.bodies.values() for body in bodies)
            continue
        for position, node in enumerate(scope.nodes):
            modules = known.modules(node)
            if modules not in verdicts:
                verdicts[modules] = next((module for module in modules if matches(module.path)), None)
                seen.update(module.path for module in modules)
            module = verdicts[modules]
            if module is not None:
                found.setdefault((id(scope), module), []).append(position)
                inside.update(id(body) for body in scope.bodies.get(position, ()))
    if not found:
        hint = did_you_mean(pattern, seen - {""}) or _some("The model has the modules", sorted(seen - {""}))
        raise NotFoundError(f"no PyTorch module {pattern!r} in the model", hint=hint or "Its nodes tell of no modules.")
    return [
        Instance(by_id[key], tuple(positions), f"{module}{within(by_id[key])}", module)
        for (key, module), positions in found.items()
    ]


def chosen_instance(draft: Draft, selector: str) -> Instance:
    """Returns the nodes that a selector stands for as one instance; nodes in bodies of others of them go with these.

    Raises:
        NotFoundError: It matches nothing.
        UsageError: The nodes lie in several graphs.
    """
    refs = draft.nodes(selector)
    held = {(id(ref.scope), ref.position) for ref in refs}
    outer = [ref for ref in refs if not _lies_in(ref.scope, held)]
    scopes = {id(ref.scope): ref.scope for ref in outer}
    if len(scopes) > 1:
        paths = [repr(scope.path or "the main graph") for scope in scopes.values()]
        raise UsageError(
            f"{selector!r} stands for nodes of {len(scopes)} graphs: {', '.join(paths[:_LISTED])}",
            hint="One call stands for nodes of one graph: give a list with one selector for each.",
        )
    return Instance(outer[0].scope, tuple(sorted(ref.position for ref in outer)), repr(selector))


def _lies_in(scope: Scope, held: Collection[tuple[int, int]]) -> bool:
    while scope.parent is not None:
        if (id(scope.parent), scope.owner) in held:
            return True
        scope = scope.parent
    return False


def filled(instance: Instance) -> Instance:
    """Returns an instance with all nodes that lie between its own."""
    scope, members = instance.scope, set(instance.positions)
    below = _closure(members, lambda at: (u for name in scope.writes[at] for u in scope.consumers.get(name, ())))
    above = _closure(members, lambda at: (scope.producers[n] for n in scope.reads[at] if n in scope.producers))
    return Instance(scope, tuple(sorted(members | (below & above))), instance.label, instance.module)


def _closure(start: Iterable[int], following: Any) -> set[int]:
    reached = set(start)
    pending = list(reached)
    while pending:
        for position in following(pending.pop()):
            if position not in reached:
                reached.add(position)
                pending.append(position)
    return reached


# -- the change ----------------------------------------------------------------------------------------------------


def outline(
    draft: Draft,
    instances: Sequence[Instance],
    name: str,
    *,
    inside: Collection[TensorRef] = (),
    share: bool = True,
    parameters: bool = False,
) -> list[Outlined]:
    """Makes functions of instances and puts calls in their place; returns the functions.

    Args:
        draft: The model.
        instances: What becomes a call each; no node may be in two of them.
        name: What the function is called, ``domain::Name`` (domain ``local`` where none is said). Further functions,
            of instances that do something else, are called ``Name_2`` and so on.
        inside: Initializers and outputs of Constant nodes that move into the function, if all of its calls would give
            the same.
        share: Whether instances that do the same share a function.
        parameters: Whether they also do so if numbers and strings in attributes differ, which become attributes of the
            function.

    Raises:
        UsageError: A node is in two instances, or the name cannot be that of a function.
        RefusedResultError: A node outside lies between two of an instance, or nothing reads what one makes, or there
            is such a function already.
        UnsupportedError: A weight that would have to move inside can be overridden by a caller.
    """
    domain, base = _function_name(draft, name)
    _require_distinct(instances)
    types: dict[int, dict[str, Any]] = {}
    for instance in instances:
        types.setdefault(id(instance.scope), {i.name: i.type for i in instance.scope.graph.value_info})
    bodies = [read_body(draft, each, own_nodes(each), types[id(each.scope)], parameters) for each in instances]
    for body in bodies:
        if not body.used:
            raise RefusedResultError(
                f"nothing outside reads what {body.instance.label} makes",
                hint="Select the nodes that use it too, or remove what is unused with remove_dead.",
            )
    groups = _grouped(draft, bodies, types, parameters) if share else [[body] for body in bodies]
    orders = contracted(bodies)
    if draft.model.proto.ir_version < FIRST_IR_WITH_FUNCTIONS:
        draft.record(
            "model", "", "ir_version", before=str(draft.model.proto.ir_version), after=str(FIRST_IR_WITH_FUNCTIONS)
        )
        draft.model.proto.ir_version = FIRST_IR_WITH_FUNCTIONS
    maker = _Maker(draft, domain, base, {(id(ref.scope), ref.name) for ref in inside})
    made = [maker.make(group) for group in groups]
    if share:
        _note_differences(draft, groups, made)
    maker.replace(orders)
    return made


def _function_name(draft: Draft, name: str) -> tuple[str, str]:
    domain, separator, base = name.rpartition("::")
    domain = domain if separator else DEFAULT_DOMAIN
    if not base or ":" in domain or any(char.isspace() for char in name):
        raise UsageError(f"{name!r} cannot be the name of a function", hint="Write local::Block.")
    if plain_domain(domain) in known_domains() or not domain:
        raise UsageError(
            f"{domain or 'ai.onnx'!r} is a domain of standard operators, not one for functions of a model",
            hint=f"Write {DEFAULT_DOMAIN}::{base}, or another domain.",
        )
    if (domain, base, "") in draft.index.functions:
        raise RefusedResultError(f"there is a function {domain}::{base} already", hint="Choose another name.")
    return domain, base


def _require_distinct(instances: Sequence[Instance]) -> None:
    owners: dict[tuple[int, int], Instance] = {}
    for instance in instances:
        for position in instance.positions:
            other = owners.setdefault((id(instance.scope), position), instance)
            if other is not instance:
                where = NodeRef(instance.scope, position).path
                raise UsageError(f"node {where} is in {other.label} and in {instance.label}; it can be in one only")
    for instance in instances:
        if _lies_in(instance.scope, owners):
            raise UsageError(
                f"{instance.label} lies in a body of a node that is outlined itself",
                hint="Outline the inner nodes in a step of their own, before.",
            )


def _grouped(draft: Draft, bodies: list[Body], types: dict[int, dict[str, Any]], parameters: bool) -> list[list[Body]]:
    """Returns the bodies by what they do; constants that differ within a group are taken out of its bodies."""
    place = {id(body): at for at, body in enumerate(bodies)}
    groups: dict[bytes, list[Body]] = {}
    for body in bodies:
        groups.setdefault(body.skeleton, []).append(body)
    done = []
    for group in groups.values():
        differing = [
            position for position in group[0].constants if len({body.constants[position] for body in group}) > 1
        ]
        if differing:
            out = set(differing)
            for number, body in enumerate(group):
                nodes = [position for at, position in enumerate(body.nodes) if at not in out]
                made = read_body(draft, body.instance, nodes, types[id(body.instance.scope)], parameters)
                bodies[place[id(body)]] = group[number] = made
        done.append(group)
    return done


class _Maker:
    """Makes functions of groups of bodies, and remembers the calls until all functions are made."""

    def __init__(self, draft: Draft, domain: str, base: str, inside: set[tuple[int, str]]) -> None:
        self._draft = draft
        self._domain, self._base = domain, base
        self._inside = inside
        self._count = 0
        self._calls: dict[int, NodeProto] = {}
        self._node_names: dict[int, set[str]] = {}
        self._moved: dict[tuple[int, str], TensorRef] = {}
        self._constants: dict[int, dict[str, Any]] = {}

    def make(self, group: list[Body]) -> Outlined:
        """Makes the function of one group."""
        draft, first = self._draft, group[0]
        name = self._next_name()
        function = first.function
        function.domain, function.name = self._domain, name
        shorten = _shortening(first) if len(group) > 1 else lambda text: text
        taken = {"", *names_in_bodies(function)}
        made_names = [distinct(shorten(made), taken) for made in first.made]
        keys: dict[tuple[str, ...], str] = {}
        for at, (_, _, read) in enumerate(first.slots):
            key = tuple(body.slots[at][2] for body in group)
            if key not in keys:
                keys[key] = distinct(shorten(read), taken)
        formals = [keys[tuple(body.slots[at][2] for body in group)] for at in range(len(first.slots))]
        for (message, position, _), formal in zip(first.slots, formals, strict=True):
            say(message, position, formal)
        for message, position, number in first.reads:
            say(message, position, made_names[number])
        renamed = dict(zip(first.made, made_names, strict=True))
        renamed.update((read, formal) for (_, _, read), formal in zip(first.slots, formals, strict=True))
        for graph in first.graphs:
            rename_annotations(graph, renamed)
        numbers = iter(made_names)
        for node in function.node:
            node.name = shorten(node.name)
            for position, output in enumerate(node.output):
                if output:
                    node.output[position] = next(numbers)
        parameters = self._parameters(function, group)
        moved = {key: tensor for key in keys if (tensor := self._to_move(group, key)) is not None}
        for key in reversed(moved):
            self._put_inside(function, keys[key], moved[key])
        arguments = [key for key in keys if key not in moved]
        function.input.extend(keys[key] for key in arguments)
        used = sorted(set().union(*(self._really_used(body) for body in group)))
        function.output.extend(made_names[number] for number in used)
        self._finish(function, group, made_names)
        calls = []
        for number, body in enumerate(group):
            call = self._call(body, name)
            for parameter, values in parameters.items():
                given = call.attribute.add()
                given.ParseFromString(values[number])
                given.name = parameter
            call.input.extend(key[number] for key in arguments)
            really = self._really_used(body)
            call.output.extend(body.made[at] if at in really else "" for at in used)
            while call.output and not call.output[-1]:
                call.output.pop()
            calls.append(f"{body.instance.scope.path}/{call.name}" if body.instance.scope.path else call.name)
            self._calls[id(body)] = call
        draft.model.proto.functions.append(function)
        said = (
            f"{_nodes(len(function.node))}, called {len(group)} times" if len(group) > 1 else _nodes(len(function.node))
        )
        draft.record("function", f"{self._domain}::{name}", "inserted", after=said)
        return Outlined(
            self._domain, name, tuple(calls), len(function.node), tuple(function.input), tuple(function.output)
        )

    def _parameters(self, function: FunctionProto, group: list[Body]) -> dict[str, list[bytes]]:
        """Makes attributes of the function of those that differ; returns their values, one for each body."""
        first = group[0]
        taken = {"", *first.references}
        names: dict[tuple[str, tuple[bytes, ...]], str] = {}
        for position, attribute in first.plain:
            values = tuple(body.plain[position, attribute] for body in group)
            if len(set(values)) == 1:
                continue
            if (attribute, values) not in names:
                names[attribute, values] = distinct(attribute, taken)
                function.attribute.append(names[attribute, values])
            held = next(each for each in function.node[position].attribute if each.name == attribute)
            kind = held.type
            held.Clear()
            held.name, held.type, held.ref_attr_name = attribute, kind, names[attribute, values]
        return {name: list(values) for (_, values), name in names.items()}

    def _next_name(self) -> str:
        while True:
            self._count += 1
            name = self._base if self._count == 1 else f"{self._base}_{self._count}"
            if (self._domain, name, "") not in self._draft.index.functions:
                return name

    def _really_used(self, body: Body) -> set[int]:
        scope = body.instance.scope
        return {
            number
            for number in body.used
            if not is_shared_constant(body, scope.producers[body.made[number]])
        }  # fmt: skip

    def _to_move(self, group: list[Body], key: tuple[str, ...]) -> Any:
        """Returns the tensor or Constant node that moves inside instead of being an argument, or None."""
        if not self._inside:
            return None
        found: list[tuple[Scope, str]] = []
        for body, name in zip(group, key, strict=True):
            home = home_of(body.instance.scope, name)
            if home is None or (id(home), name) not in self._inside:
                return None
            found.append((home, name))
        held = [self._constant(scope, name) for scope, name in found]
        if held[0] is None or any(each is None or each[0] != held[0][0] for each in held):
            return None
        for scope, name in found:
            self._moved[id(scope), name] = TensorRef(scope, name)
        return held[0][1]

    def _constant(self, scope: Scope, name: str) -> tuple[bytes, Any] | None:
        if name in scope.producers:
            node = scope.nodes[scope.producers[name]]
            if not is_constant(node):
                raise UsageError(
                    f"{TensorRef(scope, name).path!r} is no constant, so it cannot move inside",
                    hint="Initializers and outputs of Constant nodes can: weight:*, op:Constant.",
                )
            return repr(sorted(attribute_digest(attribute) for attribute in node.attribute)).encode(), node
        if name not in scope.constants:
            return None
        if name in scope.inputs:
            raise UnsupportedError(
                f"{name!r} is an input with a default, which a caller may override, so it cannot move inside",
                hint="Remove it from the inputs first.",
            )
        if id(scope) not in self._constants:
            graph: Any = scope.graph
            self._constants[id(scope)] = {tensor.name: tensor for tensor in graph.initializer}
            self._constants[id(scope)].update((sparse.values.name, sparse) for sparse in graph.sparse_initializer)
        held = self._constants[id(scope)][name]
        if not hasattr(held, "raw_data"):
            return held.SerializeToString(deterministic=True), held
        return tensor_digest(held), held

    def _put_inside(self, function: FunctionProto, name: str, held: Any) -> None:
        import onnx

        node = onnx.NodeProto(op_type="Constant", output=[name], name=name)
        if isinstance(held, onnx.NodeProto):
            node.CopyFrom(held)
            node.output[0] = name
        elif isinstance(held, onnx.TensorProto):
            node.attribute.add(name="value", type=TENSOR).t.CopyFrom(held)
        else:
            node.attribute.add(name="sparse_value", type=SPARSE).sparse_tensor.CopyFrom(held)
        function.node.insert(0, node)

    def _finish(self, function: FunctionProto, group: list[Body], made_names: list[str]) -> None:
        """States opsets, attributes and types of a function."""
        draft, first = self._draft, group[0]
        holder: Any = draft.model.proto
        if root_of(first.instance.scope).is_function:
            holder = root_of(first.instance.scope).graph
        wanted = {plain_domain(domain) for domain in first.domains}
        wanted.update(plain_domain(node.domain) for node in function.node)
        for opset in holder.opset_import:
            domain = plain_domain(opset.domain)
            if domain in wanted:
                wanted.remove(domain)
                function.opset_import.add(domain=domain, version=opset.version)
        function.attribute.extend(first.references)
        overloads = {node.op_type for node in function.node if node.overload and draft.index.function_of(node)}
        if overloads:
            draft.notes.append(
                f"{function.domain}::{function.name} calls overloads of {', '.join(sorted(overloads))}; "
                "ONNX Runtime does not find these from within a function"
            )
        agreed = {
            number: stated
            for number, stated in first.stated.items()
            if all(body.stated.get(number) == stated for body in group)
        }
        first.drop_types(agreed)
        if draft.model.proto.ir_version >= FIRST_IR_WITH_FUNCTION_TYPES:
            for number, name in enumerate(made_names):
                if number in agreed:
                    info = function.value_info.add(name=name)
                    info.type.ParseFromString(agreed[number])
        modules = [str(body.instance.module) for body in group if body.instance.module is not None]
        if modules:
            said = ", ".join(modules[:_LISTED])
            function.doc_string = f"Outlined from {said}{', ...' if len(modules) > _LISTED else ''}"

    def _call(self, body: Body, name: str) -> NodeProto:
        """Returns a call without inputs and outputs, which says what its nodes said of their PyTorch module."""
        import onnx

        from onnxbench.provenance import call_metadata, call_name

        scope = body.instance.scope
        nodes = [scope.nodes[position] for position in body.nodes]
        names = self._node_names.get(id(scope))
        if names is None:
            names = self._node_names[id(scope)] = {node.name for node in scope.nodes}
        module = body.instance.module
        call = onnx.NodeProto(op_type=name, domain=self._domain)
        call.name = distinct(call_name(nodes, module, name), names)
        for key, value in call_metadata(nodes, module, call.name, f"{self._domain}::{name}").items():
            call.metadata_props.add(key=key, value=value)
        for reference, kind in body.references.items():
            call.attribute.add(name=reference, ref_attr_name=reference, type=kind)
        return call

    def replace(self, orders: list[tuple[Scope, list[int | Body], list[Body]]]) -> None:
        """Puts the calls in the place of the nodes, inner graphs first, since outer ones are copied with them."""
        draft = self._draft
        rank = {id(scope): number for number, scope in enumerate(draft.index.scopes)}
        for scope, order, bodies in sorted(orders, key=lambda each: -rank[id(each[0])]):
            nodes = [copy_of(scope.nodes[unit] if isinstance(unit, int) else self._calls[id(unit)]) for unit in order]
            del scope.graph.node[:]
            scope.graph.node.extend(nodes)
            gone: set[str] = set()
            for body in bodies:
                really = self._really_used(body)
                kept = {at for at in body.nodes if is_shared_constant(body, at)}
                gone.update(
                    name
                    for number, name in enumerate(body.made)
                    if number not in really and scope.producers[name] not in kept
                )
                call = self._calls[id(body)]
                where = f"{scope.path}/{call.name}" if scope.path else call.name
                draft.record(
                    "node",
                    where,
                    "inserted",
                    after=f"a call of {call.domain}::{call.op_type} for {_nodes(len(body.nodes))}",
                )
            if not scope.is_function:
                _note_annotations(draft, scope, gone)
            draft.forget(scope, gone)
        for scope, _, _ in orders:
            draft.import_domain(scope, self._domain, draft.opset(None, self._domain) or 1)
        draft.touch()
        self._remove_moved()

    def _remove_moved(self) -> None:
        """Removes what moved inside and nothing reads any more."""
        draft = self._draft
        by_path: dict[str, set[str]] = {}
        for ref in self._moved.values():
            by_path.setdefault(ref.scope.path, set()).add(ref.name)
        for path, names in by_path.items():
            scope = draft.index.scope_paths[path]
            unread = {name for name in names if not scope.consumers.get(name) and name not in scope.outputs}
            stored = unread & scope.constants
            if stored:
                draft.remove_initializers(scope, stored)
                scope = draft.index.scope_paths[path]
            made = {scope.producers[name] for name in unread if name in scope.producers}
            if made:
                draft.splice(scope, removed=made)
                draft.forget(scope, unread)
            for name in sorted(unread):
                draft.record("weight", TensorRef(scope, name).path, "moved into the function")


# -- words and names -----------------------------------------------------------------------------------------------


def _shortening(body: Body) -> Any:
    """Returns what takes the module of the first instance out of names, for a function that several share."""
    from onnxbench.provenance import spelled_prefix

    module = body.instance.module
    scope = body.instance.scope
    spelled = spelled_prefix([scope.nodes[position] for position in body.nodes], module)
    dotted = f"{module.path}." if module is not None and module.path else ""

    def shorten(name: str) -> str:
        if spelled and name.startswith(f"{spelled}/"):
            return name[len(spelled) :]
        return name[len(dotted) :] if dotted and name.startswith(dotted) and len(name) > len(dotted) else name

    return shorten


def _note_differences(draft: Draft, groups: list[list[Body]], made: list[Outlined]) -> None:
    """Says why instances did not all share one function."""
    if len(groups) < 2:
        return
    first = groups[0][0]
    for group, outlined in zip(groups[1:], made[1:], strict=True):
        other = group[0]
        words = _first_difference(first, other)
        draft.notes.append(
            f"{other.instance.label} does not do the same as {first.instance.label} ({words}), "
            f"so it has a function of its own: {outlined.domain}::{outlined.name}"
        )


def _first_difference(first: Body, other: Body) -> str:
    """Returns in what the second body differs from the first, in words."""
    for number, (one, two) in enumerate(zip(first.parts, other.parts, strict=False), 1):
        if one == two:
            continue
        if one[0] != two[0]:
            return f"node {number} is a {two[0]}, and not a {one[0]}"
        mine, its = ({name: rest for name, *rest in part[1]} for part in (one, two))
        names = [name for name in {**mine, **its} if mine.get(name) != its.get(name)]
        if names:
            return f"node {number}, a {one[0]}, has another {names[0]!r}"
        return f"node {number}, a {one[0]}, reads what other nodes make"
    if len(first.parts) != len(other.parts):
        return f"it has {len(other.parts)} nodes, and not {len(first.parts)}"
    return "a body in it differs"


def _note_annotations(draft: Draft, scope: Scope, gone: set[str]) -> None:
    graph: Any = scope.graph
    lost = [each.tensor_name for each in graph.quantization_annotation if each.tensor_name in gone]
    if lost:
        draft.notes.append(f"quantization annotations cannot move into a function, and are gone: {', '.join(lost)}")
        for name in lost:
            draft.record("tensor", TensorRef(scope, name).path, "quantization annotation removed")


def _some(words: str, names: Sequence[str]) -> str | None:
    if not names:
        return None
    return f"{words} {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}."


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
