"""Another version of the standard operators for a model, with everything else in it left as it is.

onnx's version converter knows how an operator of one version is said in another. It knows nothing else: it drops
functions, metadata, sparse initializers and quantization annotations, reads all weights, and gives up as a whole.
So it never gets to see the model. Only nodes whose operator changed between the two versions are looked at; each
becomes a small problem (the node, the types of what it reads, the values of small constants), equal problems are one,
and all of them go through the converter in one graph. What comes out replaces the node, and the first of it keeps the
node's name, metadata and unknown fields. This works alike in the main graph, in bodies and in functions.

Three things are ours, because the converter lacks them or is wrong:

* Down, it has few adapters. A node also goes down as it stands if the older version takes it (attributes, number of
  inputs, element types) and the converter, asked to bring that up again, gives the same node: then both mean the same.
* Resize and Upsample before opset 11 took coordinates ``asymmetric``; the converter leaves the new default.
* GroupNormalization had one scale per group up to opset 20, and has one per channel since; it is refused.

A node that cannot be converted, and every other one, is named in the error, and nothing is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import ModelError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex, Scope, home_of
from onnxbench.inference import TypeFinder
from onnxbench.messages import copy_of, delete_named
from onnxbench.model import SMALL_WEIGHT, Model
from onnxbench.opsets._problems import (
    CONSTANT_SCALARS,
    MAIN,
    Problem,
    constant_tensor,
    same_node,
    value_of,
)
from onnxbench.opsets._rules import SAME_UPWARD, bring_down, bring_up
from onnxbench.schemas import find_schema, plain_domain, same_operator
from onnxbench.validity import make_valid

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto

__all__ = ["LOWEST", "convert_opset", "opset_number", "standard_opset"]

_MOST_NAMED = 12
_PLAIN_ELEMENTS = {1, 2, 3, 6, 7, 9, 10, 11}
"""Element types of constants that the converter is given; it has no use for others, and does not take all."""
_SAME_BROADCAST = 7
"""The version since which no operator broadcasts by an attribute, so that what shapes it has does not matter for it."""
_Place = tuple[Scope, int, int, int]
"""A node: its graph, the number of that, its position, and the opset there."""
LOWEST = 9
"""The version that models are brought down to at most; before, operators did not broadcast alike."""


def opset_number(version: int | str) -> int:
    """Returns an opset version from how it is spelled: a number, or ``latest`` for what the onnx package knows.

    Raises:
        UsageError: It is neither, or no version that the onnx package knows.
    """
    from onnx import defs

    newest = int(defs.onnx_opset_version())
    text = str(version).strip().lower()
    if text == "latest":
        return newest
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{version!r} is no opset version", hint="Give a number, or 'latest'.")
    number = int(text)
    if not 1 <= number <= newest:
        raise UsageError(f"there is no opset {number}", hint=f"The onnx package that is installed knows 1 to {newest}.")
    return number


def standard_opset(proto: ModelProto) -> int | None:
    """Returns the version of the standard domain that a model imports, or None if it imports none.

    Raises:
        ModelError: It imports two different ones.
    """
    found = {opset.version for opset in proto.opset_import if plain_domain(opset.domain) == ""}
    if len(found) > 1:
        raise ModelError(f"the standard opset is imported in the versions {' and '.join(map(str, sorted(found)))}")
    return found.pop() if found else None


def convert_opset(model: Model, version: int | str) -> tuple[Model, tuple[str, ...]]:
    """Returns a model that says the same with another version of the standard operators, and what was done.

    Names, metadata, doc strings, annotations, functions, sparse initializers, weights (not read) and the order of the
    nodes stay. Functions are brought to the same version. The IR version rises if the opset needs it.

    Args:
        model: The model; it is not changed.
        version: The version wanted, up or down, or ``latest``.

    Returns:
        The model (the given one if nothing is to be done), and notes: how many nodes changed, and how.

    Raises:
        UnsupportedError: An operator has no equal in that version, or it cannot be told; the details name all of them.
        RefusedResultError: The result would not be a valid model.
        UsageError: There is no such version.
    """
    target = opset_number(version)
    index = GraphIndex(model.proto)
    jobs = _jobs(model, index, target)
    if target < LOWEST and any(job.source > target for job in jobs):
        raise UnsupportedError(f"opset {target} is too old: models are brought down to opset {LOWEST} at most")
    changed = _solve(jobs, target)
    if not changed and all(_is_at(imports, target) for imports in _imports(model.proto)):
        return model, ()
    proto = copy_of(model.proto)
    notes = _apply(proto, changed)
    before = standard_opset(proto)
    for imports in _imports(proto):
        _set_version(imports, target)
    notes = [f"opset {before if before is not None else 'none'} is {target} now", *notes]
    notes += _raise_ir_version(proto)
    result = model.derive(proto)
    if jobs:
        _refuse_invalid(model, result, target)
    return result, tuple(notes)


# ---------------------------------------------------------------- what is to be done


@dataclass(slots=True)
class _Job:
    """A node of the model whose operator differs between two versions."""

    scope: Scope
    scope_number: int
    position: int
    source: int
    names: dict[str, str]
    problem: Problem

    @property
    def label(self) -> str:
        path = self.scope.path
        return f"{path}/{self.scope.label(self.position)}" if path else self.scope.label(self.position)


def _jobs(model: Model, index: GraphIndex, target: int) -> list[_Job]:
    """Returns the nodes that have to change; those that pose the same problem share it."""
    found: list[_Place] = []
    unknown: dict[str, str] = {}
    function_keys = set(index.functions)
    versions: dict[int, int] = {}
    for number, scope in enumerate(index.scopes):
        source = versions[id(scope)] = _version_in(model.proto, scope, versions)
        if source == target:
            continue
        for position, node in enumerate(scope.nodes):
            if plain_domain(node.domain) or (node.domain, node.op_type, node.overload) in function_keys:
                continue
            now = find_schema("", node.op_type, source)
            if now is None:
                unknown.setdefault(node.op_type, scope.label(position))
            elif not same_operator("", node.op_type, source, target):
                found.append((scope, number, position, source))
    if unknown:
        raise UnsupportedError(
            f"the standard domain has no operator {', '.join(sorted(unknown)[:_MOST_NAMED])} that onnx knows, so what "
            f"it is in opset {target} cannot be told",
            details=[f"node {label!r}" for label in list(unknown.values())[:_MOST_NAMED]],
        )
    found = _unsettled(found, target)
    finder = TypeFinder(model, index)
    by_scope: dict[int, list[_Place]] = defaultdict(list)
    for entry in found:
        by_scope[entry[1]].append(entry)
    problems: dict[tuple[Any, ...], Problem] = {}
    jobs: list[_Job] = []
    constants = _Constants(model)
    for entries in by_scope.values():
        scope = entries[0][0]
        nodes = [scope.nodes[at] for _, _, at, _ in entries]
        asked = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output) if name)
        types = finder.find(scope, asked)
        for _, number, position, source in entries:
            jobs.append(_job(constants, scope, number, position, source, types, problems))
    return jobs


def _unsettled(found: list[_Place], target: int) -> list[_Place]:
    """Leaves out the nodes that stay as they are whatever their types, which on the way up are most.

    Nodes are told apart by operator, attributes and which inputs they have, so the converter sees one of each kind;
    types, which take a look at the whole model, are found only for the rest.
    """
    kinds: dict[Any, Problem | None] = {}
    keys: list[Any] = []
    for scope, _, position, source in found:
        node = scope.nodes[position]
        key: Any = None
        if target > source >= _SAME_BROADCAST and node.op_type in SAME_UPWARD and source >= SAME_UPWARD[node.op_type]:
            key = source, node.op_type
            kinds[key] = None
        elif target > source >= _SAME_BROADCAST:
            names = {name: at for at, name in reversed(list(enumerate(node.input)))}
            attributes = [attribute.SerializeToString(deterministic=True) for attribute in node.attribute]
            shape = tuple(names[name] if name else -1 for name in node.input), tuple(map(bool, node.output))
            key = source, node.op_type, shape, *attributes
            if key not in kinds:
                kinds[key] = _plain_problem(node)[0]
        keys.append(key)
    originals = {key: _copied(problem.main) for key, problem in kinds.items() if problem is not None}
    for source in {key[0] for key in originals}:
        asked = [problem for key, problem in kinds.items() if key[0] == source and problem is not None]
        bring_up(asked, source, target)
    settled = {key for key, problem in kinds.items() if problem is None or _is_same(problem, originals[key], target)}
    return [entry for entry, key in zip(found, keys, strict=True) if key not in settled]


def _copied(node: NodeProto) -> NodeProto:
    return copy_of(node)


def _is_same(problem: Problem, original: NodeProto, target: int) -> bool:
    """Tells whether a node came out of the conversion as it was."""
    if problem.failure or problem.by_caller or len(problem.nodes) != 1:
        return False
    return same_node(original, problem.nodes[0], find_schema("", original.op_type, target))


def _version_in(proto: ModelProto, scope: Scope, versions: Mapping[int, int]) -> int:
    """Returns the standard opset that holds in a graph: a function may import its own."""
    if scope.parent is not None:
        return versions[id(scope.parent)]
    if scope.is_function:
        own = [opset.version for opset in scope.graph.opset_import if plain_domain(opset.domain) == ""]
        if own:
            return int(max(own))
    return standard_opset(proto) or 1


def _job(
    small: _Constants, scope: Scope, number: int, position: int, source: int, types: Mapping[str, TypeProto],
    problems: dict[tuple[Any, ...], Problem],
) -> _Job:  # fmt: skip
    node = scope.nodes[position]
    problem, inner = _plain_problem(node)
    (plain,), by_caller, bodies = problem.nodes, problem.by_caller, problem.bodies
    known = {inner[name]: types[name] for name in inner if name in types}
    constants = {
        inner[name]: value
        for name in dict.fromkeys(node.input)
        if name and (value := small.find(scope, name)) is not None
    }
    key = (
        source, plain.SerializeToString(deterministic=True), by_caller, bodies,
        tuple((name, value.SerializeToString(deterministic=True)) for name, value in sorted(known.items())),
        tuple((name, value.SerializeToString(deterministic=True)) for name, value in sorted(constants.items())),
    )  # fmt: skip
    if key not in problems:
        for name, value in constants.items():
            value.name = name
        problems[key] = Problem([plain], known, constants, by_caller, bodies)
    problem = problems[key]
    return _Job(scope, number, position, source, {short: name for name, short in inner.items()}, problem)


def _plain_problem(node: NodeProto) -> tuple[Problem, dict[str, str]]:
    """Returns the problem that a node poses before anything is known of its tensors, and their names in it."""
    from onnx import NodeProto

    inner: dict[str, str] = {}
    for letter, names in (("i", node.input), ("o", node.output)):
        for at, name in enumerate(names):
            if name and name not in inner:
                inner[name] = f"{letter}{at}"
    plain = NodeProto(op_type=node.op_type, name=MAIN)
    plain.input.extend(inner.get(name, "") for name in node.input)
    plain.output.extend(inner.get(name, "") for name in node.output)
    by_caller, bodies = [], False
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            by_caller.append(attribute.name)
        elif attribute.type in (5, 10):
            bodies = True
        elif node.op_type != "Constant" or attribute.name in CONSTANT_SCALARS:
            plain.attribute.append(attribute)
        else:
            plain.attribute.add(name=attribute.name, type=attribute.type)  # weights stay where they are
    return Problem([plain], {}, {}, tuple(by_caller), bodies), inner


class _Constants:
    """The small constants of a model's graphs, looked up by the names that nodes use for them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._stored: dict[Scope, dict[str, TensorProto]] = {}

    def find(self, scope: Scope, name: str) -> TensorProto | None:
        """Returns the value that a name stands for in a graph, without a name of its own; None if it may vary."""
        holder: Scope | None = scope
        while holder is not None:
            if holder not in self._stored:
                given = set(holder.inputs)
                tensors = () if holder.is_function else holder.graph.initializer
                self._stored[holder] = {tensor.name: tensor for tensor in tensors if tensor.name not in given}
            if name in self._stored[holder]:
                return self._small(self._stored[holder][name])
            if name in holder.producers:
                node = holder.nodes[holder.producers[name]]
                if node.op_type != "Constant" or plain_domain(node.domain) or len(node.attribute) != 1:
                    return None
                return self._small(constant_tensor(node.attribute[0]))
            if name in holder.inputs:
                return None
            holder = holder.parent
        return None

    def _small(self, found: TensorProto | None) -> TensorProto | None:
        if found is None or found.data_type not in _PLAIN_ELEMENTS or weights.tensor_bytes(found) > SMALL_WEIGHT:
            return None
        value = copy_of(found)
        value.ClearField("name")
        value.ClearField("doc_string")
        where = self._model.byte_range(found)
        if where is not None:
            value.ClearField("external_data")
            value.ClearField("data_location")
            value.raw_data = weights.read_bytes(where)
        return value


def _solve(jobs: Sequence[_Job], target: int) -> dict[int, dict[int, _Job]]:
    """Converts all problems and returns, by graph and position, the jobs whose node changes.

    Raises:
        UnsupportedError: Some cannot be converted.
    """
    by_source: dict[int, dict[int, Problem]] = defaultdict(dict)
    originals: dict[int, NodeProto] = {}
    for job in jobs:
        by_source[job.source][id(job.problem)] = job.problem
    for source, problems in by_source.items():
        listed = list(problems.values())
        for problem in listed:
            first = copy_of(problem.nodes[0])
            originals[id(problem)] = first
        if target > source:
            bring_up(listed, source, target)
        else:
            for version in range(source, target, -1):
                bring_down(listed, version, version - 1)
    changed: dict[int, dict[int, _Job]] = defaultdict(dict)
    failed: dict[tuple[str, str], list[_Job]] = defaultdict(list)
    for job in jobs:
        problem, original = job.problem, originals[id(job.problem)]
        schema = find_schema("", original.op_type, target)
        same = len(problem.nodes) == 1 and same_node(original, problem.nodes[0], schema)
        if problem.by_caller and not same and not problem.failure:
            problem.failure = f"the caller of the function gives its attribute {problem.by_caller[0]!r}"
        if problem.failure:
            failed[original.op_type, problem.failure].append(job)
        elif not same:
            changed[job.scope_number][job.position] = job
    if failed:
        operators = sorted({op for op, _ in failed})
        lines = [
            f"{op} ({len(held)} node{'s' if len(held) > 1 else ''}, the first {held[0].label!r}): {why}"
            for (op, why), held in failed.items()
        ]
        in_function = any(job.scope.is_function for held in failed.values() for job in held)
        raise UnsupportedError(
            f"{', '.join(operators[:_MOST_NAMED])} cannot be said in opset {target} without a change of meaning, or "
            "it cannot be told",
            details=lines[:_MOST_NAMED],
            hint="Inline the functions first (--inline-functions): types and attributes are known then."
            if in_function
            else None,
        )
    return changed


# ---------------------------------------------------------------- putting it in place


def _apply(proto: ModelProto, changed: Mapping[int, Mapping[int, _Job]]) -> list[str]:
    """Puts the converted nodes in place and returns what was done."""
    index = GraphIndex(proto)
    names = _Names(index)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    gone: list[tuple[int, str]] = []
    for number in sorted(changed, reverse=True):  # inner before outer: a graph that is remade copies its bodies
        scope = index.scopes[number]
        expanded: dict[int, list[NodeProto]] = {}
        for position, job in changed[number].items():
            node = scope.nodes[position]
            before, reads = node.op_type, set(node.input)
            made = _instantiated(job, node, scope, names)
            counts[before, " + ".join(sorted(dict.fromkeys(one.op_type for one in made)))] += 1
            gone += [(number, name) for name in reads - {name for one in made for name in one.input} if name]
            if len(made) == 1:
                node.CopyFrom(made[0])
            else:
                expanded[position] = made
        if expanded:
            rebuilt: list[NodeProto] = []
            for position, node in enumerate(scope.nodes):
                rebuilt.extend(copy_of(one) for one in expanded.get(position, [node]))
            del scope.graph.node[:]
            scope.graph.node.extend(rebuilt)
    dropped = _drop_unread(proto, gone)
    notes = [
        f"{count} {before} node{'s' if count > 1 else ''} "
        + (f"{'are' if count > 1 else 'is'} said anew" if before == after else f"became {after}")
        for (before, after), count in counts.items()
    ]
    if dropped:
        notes.append(f"{dropped} constant{'s' if dropped > 1 else ''} that became attributes went")
    return notes


class _Names:
    """New names for tensors and nodes, distinct from all there are."""

    def __init__(self, index: GraphIndex) -> None:
        self._tensors = {name for scope in index.scopes for name in scope.tensor_names()}
        self._nodes = {node.name for scope in index.scopes for node in scope.nodes}

    def tensor(self, base: str) -> str:
        return _distinct(base, self._tensors)

    def node(self, base: str) -> str:
        return _distinct(base, self._nodes)


def _distinct(base: str, taken: set[str]) -> str:
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


def _instantiated(job: _Job, node: NodeProto, scope: Scope, names: _Names) -> list[NodeProto]:
    """Returns the nodes that a node becomes: the first of them by name is the node, with all that it carries."""
    problem = job.problem
    main = problem.main
    outer = dict(job.names)
    base = next((name for name in node.output if name), node.name)
    for made in problem.nodes:
        for short in made.output:
            if short and short not in outer:
                outer[short] = names.tensor(f"{base}_{made.op_type.lower()}")
    result = []
    for made in problem.nodes:
        copy = type(node)()
        if made is main:
            copy.CopyFrom(node)
            copy.op_type = made.op_type
            _set_attributes(copy, made)
        else:
            copy.CopyFrom(made)
            copy.name = names.node(f"{node.name}_{made.op_type}") if node.name else ""
            copy.metadata_props.extend(node.metadata_props)
        del copy.input[:], copy.output[:]
        copy.input.extend(outer.get(name, "") for name in made.input)
        copy.output.extend(outer.get(name, "") for name in made.output)
        result.append(copy)
    return result


def _set_attributes(node: NodeProto, made: NodeProto) -> None:
    """Gives a node the attributes of what was made of it; what says the same stays as it is, where it is."""
    new = {attribute.name: attribute for attribute in made.attribute}
    kept = []
    for attribute in node.attribute:
        other = new.pop(attribute.name, None)
        if other is not None:
            kept.append(attribute if attribute.type in (5, 10) or value_of(attribute) == value_of(other) else other)
        elif attribute.type in (5, 10) or attribute.ref_attr_name:
            kept.append(attribute)
    kept += new.values()
    copies = [type(attribute).FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend(copies)


def _drop_unread(proto: ModelProto, names: Iterable[tuple[int, str]]) -> int:
    """Removes constants that nothing reads any more, of those that a converted node had read; returns how many."""
    wanted = dict.fromkeys(names)
    if not wanted:
        return 0
    index = GraphIndex(proto)
    drops: dict[int, set[str]] = defaultdict(set)
    for number, name in wanted:
        scope = home_of(index.scopes[number], name)
        if scope is None or name in scope.consumers or name in scope.outputs or name in scope.inputs:
            continue
        position = scope.producers.get(name)
        if name in scope.constants or (position is not None and scope.nodes[position].op_type == "Constant"):
            drops[index.scopes.index(scope)].add(name)
    for number in sorted(drops, reverse=True):
        graph, unread = index.scopes[number].graph, drops[number]
        for at in reversed(range(len(graph.node))):
            if graph.node[at].op_type == "Constant" and unread.issuperset(graph.node[at].output):
                del graph.node[at]
        for held in (getattr(graph, "initializer", []), graph.value_info):
            delete_named(held, unread)
    return sum(map(len, drops.values()))


# ---------------------------------------------------------------- imports


def _imports(proto: ModelProto) -> list[Any]:
    """Returns the lists of opset imports: the model's, and that of each function that has standard operators."""
    own = [function.opset_import for function in proto.functions]
    return [proto.opset_import, *(imports for imports in own if any(plain_domain(one.domain) == "" for one in imports))]


def _is_at(imports: Iterable[OperatorSetIdProto], version: int) -> bool:
    found = [opset.version for opset in imports if plain_domain(opset.domain) == ""]
    return bool(found) and all(one == version for one in found)


def _set_version(imports: Any, version: int) -> None:
    found = [opset for opset in imports if plain_domain(opset.domain) == ""]
    for opset in found:
        opset.version = version
    if not found:
        imports.add(domain="", version=version)


def _raise_ir_version(proto: ModelProto) -> list[str]:
    from onnx import helper

    least = helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    if proto.ir_version >= least:
        return []
    proto.ir_version = least
    return [f"the IR version is {least} now, which the opset needs"]


def _refuse_invalid(model: Model, result: Model, target: int) -> None:
    """Raises RefusedResultError if the result cannot be made valid and the model could."""

    def complaints(one: Model) -> RefusedResultError | None:
        copy = copy_of(one.proto)
        try:
            make_valid(copy, complete=one.with_small_weights)
        except RefusedResultError as error:
            return error
        return None

    wrong = complaints(result)
    if wrong is not None and complaints(model) is None:
        raise RefusedResultError(
            f"the model would not be valid in opset {target}", details=wrong.details, hint=wrong.hint
        )
