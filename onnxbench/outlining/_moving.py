"""Nodes moved across the border of a local function: in, from beside every call, or out, to beside every call.

A function may have many calls, and all of them change when it does. So a node can move in only if each call has such a
node beside it, doing the same and connected alike; and a node can move out only if nothing else in the function
stands between it and the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.draft import distinct
from onnxbench.errors import RefusedResultError, UnsupportedError
from onnxbench.graph import NodeRef, Scope, root_of
from onnxbench.outlining._bodies import Body, Instance, names_in_bodies, read_body, say
from onnxbench.outlining._contraction import contracted
from onnxbench.schemas import find_schema, plain_domain

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.draft import Draft


def move_in(draft: Draft, refs: Sequence[NodeRef], function: Scope) -> None:
    """Moves nodes into a function, one from beside each of its calls.

    Args:
        draft: The model.
        refs: The nodes, one for each call: it reads what the call makes, or the call reads what it makes.
        function: The function.

    Raises:
        RefusedResultError: They are not the same for all calls, or something lies between node and call.
        UnsupportedError: The function is of another opset, or the node refers to attributes of a function around it.
    """
    proto: Any = function.graph
    name = function.path
    pairs = _paired(draft, refs, function)
    nodes = [read_body(draft, Instance(r.scope, (r.position,), r.path), [r.position], {}, False) for r, _ in pairs]
    calls = [call for _, call in pairs]
    first = nodes[0]
    for body in nodes[1:]:
        if body.skeleton != first.skeleton or body.constants != first.constants:
            raise RefusedResultError(
                f"{body.instance.label} does not do the same as {first.instance.label}",
                hint=f"All calls of {name} change with it: beside each of them there must be such a node.",
            )
    if first.references:
        raise UnsupportedError(f"{first.instance.label} refers to attributes of the function that it is in")
    _require_same_opset(draft, refs[0].scope, function, refs[0].node)
    contracted(
        [
            read_body(
                draft,
                Instance(r.scope, tuple(sorted((r.position, c.position))), f"{r.path} with {c.path}"),
                sorted((r.position, c.position)),
                {},
                False,
            )
            for r, c in pairs
        ]
    )
    joined = [_links(r.node, c.node) for r, c in pairs]  # what of the call's inputs is made by the node
    if any(links != joined[0] for links in joined):
        raise RefusedResultError(f"these nodes are not connected alike to the calls of {name}")
    taken = {"", *proto.input, *proto.output, *(o for n in proto.node for o in n.output), *names_in_bodies(proto)}
    copy = first.function.node[0]
    made = [distinct(each, taken) for each in first.made]
    formals: dict[tuple[str, ...], str] = {}
    for at, (message, position, read) in enumerate(first.slots):
        key = tuple(body.slots[at][2] for body in nodes)
        say(message, position, _formal(proto, key, calls, formals, read, taken))
    made_names = iter(made)
    for position, output in enumerate(copy.output):
        if output:
            copy.output[position] = next(made_names)
    kept = [_read_elsewhere(body, call.position) for body, call in zip(nodes, calls, strict=True)]
    used = sorted(set().union(*kept))
    wide_in, wide_out = len(proto.input), len(proto.output)
    _write_function(draft, function, copy, joined[0], made, formals, [made[at] for at in used])
    gone = []
    for number, (body, call, own) in enumerate(zip(nodes, calls, kept, strict=True)):
        node = call.node
        _pad(node.input, wide_in)
        for position in sorted(joined[0], reverse=True):
            del node.input[position]
        node.input.extend(key[number] for key in formals)
        _pad(node.output, wide_out)
        node.output.extend(body.made[at] if at in own else "" for at in used)
        _trim(node)
        gone.append({each for at, each in enumerate(body.made) if at not in own})
        draft.record("node", body.instance.label, "moved", after=f"into {name}")
    _remove(draft, [ref for ref, _ in pairs], gone)
    _drop_unused_outputs(draft, proto.domain, proto.name, proto.overload)


def _paired(draft: Draft, refs: Sequence[NodeRef], function: Scope) -> list[tuple[NodeRef, NodeRef]]:
    """Returns each node with the call that it is beside."""
    calls = [ref for ref in draft.index.nodes() if draft.index.function_of(ref.node) is function]
    if not calls:
        raise RefusedResultError(f"nothing calls {function.path}, so nothing is beside a call of it")
    left = list(refs)
    pairs = []
    for call in calls:
        beside = [
            ref
            for ref in left
            if ref.scope is call.scope and ref.position != call.position and _touch(ref, call)
        ]  # fmt: skip
        if len(beside) != 1:
            words = "none of the nodes is" if not beside else f"{len(beside)} of the nodes are"
            raise RefusedResultError(
                f"{words} beside the call {call.path} of {function.path}",
                hint="Select one node for each call: one that reads what the call makes, or makes what it reads.",
            )
        left.remove(beside[0])
        pairs.append((beside[0], call))
    if left:
        raise RefusedResultError(f"{left[0].path} is beside no call of {function.path}, or beside one that has another")
    return pairs


def _touch(ref: NodeRef, call: NodeRef) -> bool:
    reads, made = ref.scope.reads[ref.position], ref.scope.writes[ref.position]
    outputs, inputs = call.scope.writes[call.position], call.scope.reads[call.position]
    return any(name in outputs for name in reads) or any(name in inputs for name in made)


def _links(node: NodeProto, call: NodeProto) -> dict[int, int]:
    """Returns which inputs of a call are which outputs of a node."""
    made = {name: at for at, name in enumerate(filter(None, node.output))}
    return {position: made[name] for position, name in enumerate(call.input) if name in made}


def _formal(
    proto: Any,
    key: tuple[str, ...],
    calls: Sequence[NodeRef],
    formals: dict[tuple[str, ...], str],
    read: str,
    taken: set[str],
) -> str:  # fmt: skip
    """Returns what a tensor that the nodes read is called within the function."""
    for names, side in ((proto.output, "output"), (proto.input, "input")):
        for position, formal in enumerate(names):
            given = [getattr(call.node, side) for call in calls]
            if all(position < len(each) and each[position] == name for each, name in zip(given, key, strict=True)):
                return str(formal)
    if any(name in call.node.output for name, call in zip(key, calls, strict=True)):
        raise RefusedResultError("these nodes do not read the same outputs of their calls")
    if key not in formals:
        formals[key] = distinct(read, taken)
    return formals[key]


def _read_elsewhere(body: Body, call: int) -> set[int]:
    """Returns the numbers of what a node makes and others than the call read."""
    scope = body.instance.scope
    return {
        number
        for number, name in enumerate(body.made)
        if name in scope.outputs or any(user != call for user in scope.consumers.get(name, ()))
    }


def _write_function(
    draft: Draft,
    function: Scope,
    copy: NodeProto,
    joined: dict[int, int],
    made: list[str],
    formals: dict[tuple[str, ...], str],
    outputs: list[str],
) -> None:
    proto: Any = function.graph
    replaced = {proto.input[position]: made[number] for position, number in joined.items()}
    if replaced:
        draft.replace_uses(function, replaced)
        for position, name in enumerate(proto.output):
            if name in replaced:
                proto.output[position] = replaced[name]
        for position in sorted(joined, reverse=True):
            del proto.input[position]
        nodes = [copy, *(type(node).FromString(node.SerializeToString()) for node in proto.node)]
        del proto.node[:]
        proto.node.extend(nodes)
    else:
        proto.node.add().CopyFrom(copy)
    proto.input.extend(formals.values())
    proto.output.extend(outputs)
    imported = {plain_domain(opset.domain) for opset in proto.opset_import}
    if plain_domain(copy.domain) not in imported:
        version = draft.opset(None, copy.domain)
        proto.opset_import.add(domain=plain_domain(copy.domain), version=version)
    draft.record("function", function.path, "node added", after=copy.op_type)


def _require_same_opset(draft: Draft, here: Scope, there: Scope, node: NodeProto) -> None:
    domain = plain_domain(node.domain)
    one, other = draft.opset(here, domain), draft.opset(there, domain)
    if not other or one == other:
        return
    schemas = [find_schema(domain, node.op_type, version) for version in (one, other)]
    if schemas[0] is None or schemas[1] is None or schemas[0].since_version != schemas[1].since_version:
        raise UnsupportedError(
            f"{node.op_type} is not the same in {domain or 'ai.onnx'} {one} and {other}, which the two graphs import",
            hint="Bring both to one version first: set_opset.",
        )


def _pad(names: Any, length: int) -> None:
    while len(names) < length:
        names.append("")


def _trim(node: NodeProto) -> None:
    for names in (node.input, node.output):
        while len(names) > 1 and not names[-1]:
            names.pop()


def _remove(draft: Draft, refs: Sequence[NodeRef], gone: Sequence[set[str]]) -> None:
    """Removes nodes, inner graphs first, since outer ones may be copied."""
    by_scope: dict[int, list[int]] = {}
    names: dict[int, set[str]] = {}
    scopes = {id(ref.scope): ref.scope for ref in refs}
    for ref, lost in zip(refs, gone, strict=True):
        by_scope.setdefault(id(ref.scope), []).append(ref.position)
        names.setdefault(id(ref.scope), set()).update(lost)
    for key in sorted(by_scope, key=lambda each: -scopes[each].depth):
        draft.splice(scopes[key], removed=by_scope[key])
        draft.forget(scopes[key], names[key])


def _drop_unused_outputs(draft: Draft, domain: str, name: str, overload: str) -> None:
    """Removes outputs of a function that no call of it uses any more."""
    draft.touch()
    function = draft.index.functions[domain, name, overload]
    proto: Any = function.graph
    calls = [ref for ref in draft.index.nodes() if draft.index.function_of(ref.node) is function]
    for position in reversed(range(len(proto.output))):
        if any(_is_used(call, position) for call in calls) or len(proto.output) == 1:
            continue
        gone = proto.output[position]
        del proto.output[position]
        for call in calls:
            if position < len(call.node.output):
                draft.forget(call.scope, [call.node.output[position]])
                del call.node.output[position]
        draft.record("function", function.path, "output removed", before=gone)
    draft.touch()


def _is_used(call: NodeRef, position: int) -> bool:
    if position >= len(call.node.output) or not call.node.output[position]:
        return False
    name = call.node.output[position]
    return name in call.scope.outputs or bool(call.scope.consumers.get(name))


# -- out -----------------------------------------------------------------------------------------------------------


def move_out(draft: Draft, ref: NodeRef) -> None:
    """Moves a node of a function out of it, to beside each of its calls.

    It must be the first of its kind (all that it reads are inputs of the function) or the last (nothing else in the
    function reads what it makes).

    Raises:
        RefusedResultError: It is neither.
        UnsupportedError: A body of it refers to attributes of the function, or the opsets differ.
    """
    function = ref.scope
    if not function.is_function:
        raise RefusedResultError(f"{ref.path} lies in no function, or in a body within one", hint="Name a node of one.")
    calls = [each for each in draft.index.nodes() if draft.index.function_of(each.node) is function]
    if not calls:
        raise RefusedResultError(f"nothing calls {function.path}", hint="remove_dead removes such functions.")
    if len(function.nodes) == 1:
        raise RefusedResultError(
            f"{ref.path} is all that {function.path} does",
            hint=f"inline_functions: op:{function.path} inlines its calls.",
        )
    body = read_body(draft, Instance(function, (ref.position,), ref.path), [ref.position], {}, False)
    inner_reads = [name for _, _, name in body.slots if name in function.producers]
    is_last = not any(function.consumers.get(name) for name in body.made)
    if not is_last and inner_reads:
        reader = next(user for name in body.made for user in function.consumers.get(name, ()))
        maker = function.producers[inner_reads[0]]
        raise RefusedResultError(
            f"{ref.path} lies between {function.label(maker)} and {function.label(reader)} of {function.path}",
            hint="Only a node at the border of a function can move out of it.",
        )
    nested = {a.ref_attr_name for a in ref.node.attribute if a.ref_attr_name} != set(body.references)
    if nested:
        raise UnsupportedError(f"a body of {ref.path} refers to attributes of {function.path}")
    for call in calls:
        _require_same_opset(draft, function, call.scope, ref.node)
    mover = _Mover(draft, ref, body, calls)
    mover.last() if is_last else mover.first()
    draft.record("node", ref.path, "moved", after=f"out, to beside {len(calls)} calls")


class _Mover:
    def __init__(self, draft: Draft, ref: NodeRef, body: Body, calls: Sequence[NodeRef]) -> None:
        self._draft, self._ref, self._body, self._calls = draft, ref, body, calls
        self._function = ref.scope
        self._proto: Any = ref.scope.graph

    def first(self) -> None:
        """Puts the node before each call, which gets its results as arguments."""
        body, proto = self._body, self._proto
        wide = len(proto.input)
        copies = []
        for call in self._calls:
            made = [self._draft.fresh(call.scope, name) for name in body.made]
            copies.append(self._copy(call, made, self._actual_inputs(call)))
            _pad(call.node.input, wide)
            call.node.input.extend(made)
        proto.input.extend(body.made)
        self._finish(copies, before=True)

    def last(self) -> None:
        """Puts the node behind each call, which hands over what it reads."""
        body, proto = self._body, self._proto
        inner = list(dict.fromkeys(name for _, _, name in body.slots if name in self._function.producers))
        new = [name for name in inner if name not in proto.output]
        wide = len(proto.output)
        copies: list[NodeProto | None] = []
        for call in self._calls:
            outputs = call.node.output
            given = {formal: outputs[at] for at, formal in enumerate(proto.output) if at < len(outputs)}
            actual = self._actual_inputs(call)
            for name in inner:
                actual[name] = given.get(name) or self._draft.fresh(call.scope, name)
            made = [given.get(name, "") for name in body.made]
            _pad(outputs, wide)
            for position, formal in enumerate(proto.output):
                if formal in body.made:
                    outputs[position] = ""
                elif formal in inner:
                    outputs[position] = actual[formal]
            outputs.extend(actual[name] for name in new)
            if any(made):
                copies.append(self._copy(call, made, actual))
            else:
                copies.append(None)
        proto.output.extend(new)
        for position in reversed(range(len(proto.output))):
            if proto.output[position] in body.made:
                del proto.output[position]
                for call in self._calls:
                    del call.node.output[position]
        self._finish(copies, before=False)

    def _actual_inputs(self, call: NodeRef) -> dict[str, str]:
        given = list(call.node.input)
        return {formal: given[at] if at < len(given) else "" for at, formal in enumerate(self._proto.input)}

    def _copy(self, call: NodeRef, made: list[str], actual: dict[str, str]) -> NodeProto:
        """Returns the node as it is beside a call."""
        draft, ref = self._draft, self._ref
        fresh = read_body(draft, Instance(ref.scope, (ref.position,), ref.path), [ref.position], {}, False)
        for message, position, name in fresh.slots:
            if not actual[name] and position < 0:
                raise RefusedResultError(f"{call.path} leaves out {name!r}, which a body of {ref.path} reads")
            say(message, position, actual[name])
        node: NodeProto = fresh.function.node[0]
        names = iter(made)
        for position, output in enumerate(node.output):
            if output:
                node.output[position] = next(names)
        node.name = draft.fresh_node(call.scope, ref.node.name) if ref.node.name else ""
        self._fill_attributes(node, call.node)
        return node

    def _fill_attributes(self, node: NodeProto, call: NodeProto) -> None:
        """Replaces references to the function's attributes by what a call gives, or the default."""
        given = {attribute.name: attribute for attribute in (*self._proto.attribute_proto, *call.attribute)}
        for position in reversed(range(len(node.attribute))):
            attribute = node.attribute[position]
            if not attribute.ref_attr_name:
                continue
            value, name = given.get(attribute.ref_attr_name), attribute.name
            if value is None:
                del node.attribute[position]
            else:
                attribute.CopyFrom(value)
                attribute.name = name

    def _finish(self, copies: Sequence[NodeProto | None], *, before: bool) -> None:
        draft, function = self._draft, self._function
        inserted: dict[int, dict[int, list[NodeProto]]] = {}
        scopes = {id(call.scope): call.scope for call in self._calls}
        for call, copy in zip(self._calls, copies, strict=True):
            _trim(call.node)
            if copy is not None:
                at = call.position if before else call.position + 1
                inserted.setdefault(id(call.scope), {}).setdefault(at, []).append(copy)
                draft.import_domain(call.scope, plain_domain(copy.domain))
        for key in sorted(inserted, key=lambda each: -scopes[each].depth):
            draft.splice(scopes[key], inserted[key])
        proto: Any = function.graph
        removed = self._ref.position
        if root_of(function) is function:
            del proto.node[removed]
        draft.forget(function, self._body.made)
        draft.touch()
        self._drop_unread_inputs()

    def _drop_unread_inputs(self) -> None:
        """Removes inputs of the function that nothing in it reads any more because of the move."""
        draft, proto = self._draft, self._proto
        function = draft.index.functions[proto.domain, proto.name, proto.overload]
        calls = [ref for ref in draft.index.nodes() if draft.index.function_of(ref.node) is function]
        read = {name for _, _, name in self._body.slots}
        for position in reversed(range(len(proto.input))):
            name = proto.input[position]
            if name in read and name not in function.consumers and name not in function.outputs:
                del proto.input[position]
                for call in calls:
                    if position < len(call.node.input):
                        del call.node.input[position]
        draft.touch()
