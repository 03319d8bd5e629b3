"""Putting the replacement of a rule in the place of its matches.

All matches of a pass are replaced in one sweep over each graph, inner graphs first, for rewriting the nodes of a
graph copies the bodies in it. Outputs keep their names, so nothing that reads them changes. New inner tensors and
nodes get names that nothing has.

Names and metadata. The node that makes the first output stands where the last replaced node stood. What all replaced
nodes say alike in their metadata stays; their PyTorch scopes are shortened to the modules that they have in common
(both in the metadata of torch.export and in names as TorchScript writes them), the stack trace and the doc string
are those of the node that made the first output. ``onnxbench.rewrite`` names the rule.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.draft import Draft, distinct
from onnxbench.errors import RefusedResultError, UnsupportedError
from onnxbench.graph import Scope, home_of, root_of
from onnxbench.messages import carry_field, copy_of
from onnxbench.modelspec import fill_attribute
from onnxbench.patterns._conditions import Bindings
from onnxbench.patterns._expressions import UnknownError, WrongError
from onnxbench.patterns._fitting import OVERLOAD
from onnxbench.patterns._matcher import Match
from onnxbench.patterns._pattern import plain_name
from onnxbench.patterns._rules import Rule
from onnxbench.provenance import CLASS_HIERARCHY, NAME_SCOPES, STACK_TRACE
from onnxbench.schemas import (
    FIRST_IR_WITH_FUNCTIONS,
    FIRST_IR_WITH_WEIGHTS_APART,
    attribute_type,
    find_schema,
    plain_domain,
)

if TYPE_CHECKING:
    import numpy as np
    from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto

RULE_KEY = "onnxbench.rewrite"
"""The metadata of a new node that names the rule that made it."""

_HELPERS = ("_rest", "_op", "_like")
_OPSET_OF_CONSTANTS = 18


@dataclass(slots=True)
class Swap:
    """New nodes in the place of old ones, in one graph.

    Attributes:
        rule: Name of the rule.
        scope: The graph.
        removed: Positions of the old nodes, ascending.
        anchor: Position of the node that made the first output.
        outputs: What the old nodes made that others read.
        nodes: The new nodes.
        passed: Outputs that are tensors which exist already, by the name of the output.
        is_retyped: Whether types are found anew. A rule that at most rounds otherwise makes what was made, so what is
            stated of it stays; where that is not true after all, the checks after the step refuse the result.
    """

    rule: str
    scope: Scope
    removed: list[int]
    anchor: int
    outputs: list[str]
    nodes: list[NodeProto] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)
    is_retyped: bool = False


@dataclass(slots=True)
class Replacer:
    """Replaces matches in a draft, pass after pass.

    Attributes:
        draft: The draft.
        count: How many matches were replaced.
    """

    draft: Draft
    count: int = 0
    _shared: dict[tuple[str, int, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _node_names: dict[str, set[str]] = field(default_factory=dict)
    _taken: dict[str, set[str]] = field(default_factory=dict)

    def replace(self, matches: Sequence[Match]) -> None:
        """Replaces matches, no two of which have a node in common.

        Raises:
            RefusedResultError: The model imports an older opset than a replacement needs, or has another function of
                the name of one that would come along.
        """
        for match in {(id(m.rule), id(root_of(m.scope))): m for m in matches}.values():
            self._prepare(match.rule, match.scope)
        self.swap([self._instance(match) for match in matches])

    def swap(self, swaps: Sequence[Swap]) -> None:
        """Puts new nodes in the place of old ones, and removes what nothing reads any more."""
        draft = self.draft
        by_scope: dict[int, list[Swap]] = {}
        for swap in swaps:
            by_scope.setdefault(id(swap.scope), []).append(swap)
            _record(draft, swap)
        lost: dict[str, list[str]] = {}
        passed: dict[str, dict[str, str]] = {}
        retyped: dict[str, list[str]] = {}
        for scope in reversed(draft.index.scopes):
            if id(scope) in by_scope:
                self._swap_in(scope, by_scope[id(scope)], lost, passed, retyped)
        draft.touch()
        for path, renamed in passed.items():
            draft.replace_uses(draft.index.scope_paths[path], _followed(renamed))
        _sweep(draft, lost)
        for path, names in retyped.items():
            home = draft.index.scope_paths.get(path)
            if home is not None:
                draft.retype(home, [name for name in names if name in home.producers])
        self.count += len(swaps)
        self._node_names.clear()  # a body is known by its path, and that may be another one's now
        self._shared = {key: name for key, name in self._shared.items() if not key[0]}

    # -- before -------------------------------------------------------------------------------------------------

    def _prepare(self, rule: Rule, scope: Scope) -> None:
        """Imports what a replacement needs into the model or function around a graph, and brings its functions."""
        require_opsets(self.draft, rule, scope)
        versions = {plain_domain(o.domain): o.version for o in rule.replacement.opset_import}
        functions = {(function.domain, function.name): function for function in rule.functions}
        domains = {plain_domain(node.domain) for node in rule.replacement.node}
        called = [key for key in functions if key[0] in domains]
        for key in called:
            self._bring(functions[key], rule)
        if functions:
            for inner in functions.values():
                for node in inner.node:
                    if (node.domain, node.op_type) in functions:
                        self._bring(functions[node.domain, node.op_type], rule)
        for domain in sorted(domains):
            self.draft.import_domain(scope, domain, versions.get(domain))

    def _bring(self, function: FunctionProto, rule: Rule) -> None:
        proto = self.draft.model.proto
        made = copy_of(function)
        imported = {plain_domain(o.domain): o.version for o in proto.opset_import}
        for opset in made.opset_import:
            has = imported.get(plain_domain(opset.domain), 0)
            opset.version = max(opset.version, has)
        known = next(
            (f for f in proto.functions if (f.domain, f.name, f.overload) == (made.domain, made.name, made.overload)),
            None,
        )
        if known is not None:
            if known.SerializeToString(deterministic=True) != made.SerializeToString(deterministic=True):
                raise RefusedResultError(
                    f"rule {rule.name!r} brings a function {made.domain}::{made.name}, and the model has another one",
                    hint="Rename one of them.",
                )
            return
        proto.functions.append(made)
        if proto.ir_version < FIRST_IR_WITH_FUNCTIONS:
            before, proto.ir_version = proto.ir_version, FIRST_IR_WITH_FUNCTIONS
            self.draft.record("model", "", "IR version", before=str(before), after=str(proto.ir_version))
        self.draft.record("function", f"{made.domain}::{made.name}", "added", after=f"{len(made.node)} nodes")

    # -- one graph ----------------------------------------------------------------------------------------------

    def _swap_in(
        self,
        scope: Scope,
        swaps: Sequence[Swap],
        lost: dict[str, list[str]],
        passed: dict[str, dict[str, str]],
        retyped: dict[str, list[str]],
    ) -> None:
        inserted: dict[int, list[NodeProto]] = {}
        removed: set[int] = set()
        gone: list[str] = []
        for swap in swaps:
            inserted[swap.removed[-1]] = swap.nodes
            removed.update(swap.removed)
            for position in swap.removed:
                lost.setdefault(scope.path, []).extend(scope.reads[position])
                gone += [name for name in scope.writes[position] if name not in swap.outputs]
            if swap.passed:
                passed.setdefault(scope.path, {}).update(swap.passed)
                gone += swap.passed
            if swap.is_retyped:
                retyped.setdefault(scope.path, []).extend(name for name in swap.outputs if name not in swap.passed)
        self.draft.splice(scope, inserted, removed)
        self.draft.forget(scope, gone)

    def _names_of(self, scope: Scope) -> set[str]:
        names = self._node_names.get(scope.path)
        if names is None:
            names = self._node_names[scope.path] = {node.name for node in scope.nodes}
        return names

    def _instance(self, match: Match) -> Swap:
        """Returns what takes the place of a match."""
        scope, rule = match.scope, match.rule
        made = Swap(
            rule.name, scope, match.removed, match.anchor,
            [_output(match, number) for number in range(len(match.pattern.outputs))],
        )  # fmt: skip
        names = self._calculated(match, made)
        for written in rule.replacement.input:
            name = plain_name(written)
            if name not in names:
                names[name] = match.bindings.tensors[match.pattern.aliases.get(name, name)]
        for number, written in enumerate(rule.replacement.output):
            name, output = plain_name(written), made.outputs[number]
            if name in names:
                self.hand_on(made, output, names[name])
            else:
                names[name] = output
        common = Common.of(made)
        makers = {plain_name(name) for name in rule.replacement.output}
        for node in rule.replacement.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and not makers.intersection(node.output):
                tensor = self._constant(node, match)
                names[node.output[0]] = self.store(made, tensor, f"{made.outputs[0]}_{node.output[0]}")
                continue
            for name in node.output:
                if name and name not in names:
                    names[name] = self.fresh(scope, f"{made.outputs[0]}_{name}")
            new = self._node(node, names, match)
            new.name = self.fresh_node(scope, common.name_for(new.op_type))
            common.describe(new, rule.name)
            made.nodes.append(new)
        made.is_retyped = rule.effect == "numerics" and all(_has_types(match, node) for node in made.nodes)
        return made

    def hand_on(self, made: Swap, output: str, tensor: Any) -> None:
        """Makes an output of old nodes a tensor that there is already."""
        if not isinstance(tensor, str) or not tensor:
            raise UnsupportedError(f"rule {made.rule!r}: an output of the replacement is no single tensor")
        if output not in made.scope.outputs:
            made.passed[output] = tensor
            return
        from onnx import helper  # a graph's output keeps its name, and may not be an input's

        node = helper.make_node("Identity", [tensor], [output])
        common = Common.of(made)
        node.name = self.fresh_node(made.scope, common.name_for("Identity"))
        common.describe(node, made.rule)
        made.nodes.append(node)

    def fresh(self, scope: Scope, base: str) -> str:
        """Returns a tensor name that nothing around a graph has or had; bodies may be rewritten before it."""
        top = root_of(scope)
        names = self._taken.get(top.path)
        if names is None:
            names = self._taken[top.path] = set(self.draft.taken(scope))
        return distinct(base, names)

    def fresh_node(self, scope: Scope, base: str) -> str:
        """Returns a node name that no node of a graph has or had."""
        return distinct(base, self._names_of(scope))

    def _node(self, node: NodeProto, names: Mapping[str, Any], match: Match) -> NodeProto:
        new = type(node)()
        new.op_type, new.domain, new.overload = node.op_type, node.domain, node.overload
        for written in node.input:
            bound = names[plain_name(written)] if written else ""
            new.input.extend(bound if isinstance(bound, tuple) else (bound,))
        while new.input and not new.input[-1]:
            del new.input[-1]
        new.output.extend(names[name] if name else "" for name in node.output)
        for attribute in node.attribute:
            self._attribute(new, attribute, match)
        return new

    def _attribute(self, new: NodeProto, attribute: AttributeProto, match: Match) -> None:
        name, reference = attribute.name, attribute.ref_attr_name
        if not reference:
            if name not in _HELPERS:
                new.attribute.add().CopyFrom(attribute)
            return
        if name == "_like":
            return
        bindings = match.bindings
        captured = bindings.attributes.get(reference)
        if name == "_rest":
            new.attribute.extend(captured if isinstance(captured, tuple) else ())
        elif name == "_op":
            domain, _, op_type = str(captured).rpartition("::")
            new.domain, new.op_type = domain, op_type
            new.overload = bindings.attributes[reference + OVERLOAD]
        elif captured is not None and not isinstance(captured, (str, tuple)):
            added = new.attribute.add()
            added.CopyFrom(captured)
            added.name = name
        else:
            version = self.draft.opset(match.scope, new.domain)
            schema = find_schema(new.domain, new.op_type, version) if version else None
            wanted = attribute.type or (attribute_type(schema, name) if schema is not None else 0)
            fill_attribute(new.attribute.add(name=name), _number(bindings, reference, match.rule), wanted=wanted)

    # -- constants ----------------------------------------------------------------------------------------------

    def _constant(self, node: NodeProto, match: Match) -> TensorProto:
        """Returns the tensor of a Constant node of a replacement."""
        from onnx import helper, numpy_helper

        new = self._node(node, {name: name for name in node.output}, match)
        like = next((each.ref_attr_name for each in node.attribute if each.name == "_like"), None)
        (attribute,) = new.attribute
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor: TensorProto = attribute.t
        else:
            import numpy as np

            dtype = np.float32 if attribute.name in ("value_float", "value_floats") else np.int64
            tensor = numpy_helper.from_array(np.asarray(value, dtype))
        if like is None:
            return tensor
        name = match.bindings.tensors.get(like, "")
        element = match.bindings.facts.element(match.scope, name)
        return numpy_helper.from_array(
            numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(element))
        )  # fmt: skip

    def store(self, made: Swap, tensor: TensorProto, base: str) -> str:
        """Stores a constant for new nodes and returns its name; equal ones of one run are stored once."""
        scope = made.scope
        alone = scope.is_function or self.draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
        key = scope.path, tensor.data_type, tuple(tensor.dims), tensor.raw_data
        if not alone and key in self._shared and tensor.raw_data:
            return self._shared[key]
        name = self.fresh(scope, base)
        if alone:
            from onnx import helper

            node = helper.make_node("Constant", [], [name], value=tensor)
            node.name = self.fresh_node(scope, f"{name}_Constant")
            made.nodes.append(node)
            return name
        stored = scope.graph.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = name
        self._shared[key] = name
        return name

    def _calculated(self, match: Match, made: Swap) -> dict[str, Any]:
        """Returns the names of the constants that a rule calculates for a match, which are stored."""
        function = match.rule.constants
        if function is None:
            return {}
        from onnx import numpy_helper

        found: dict[str, Any] = {}
        for name, array in zip(function.output, evaluate_constants(self, function, match), strict=True):
            tensor = numpy_helper.from_array(array)
            found[name] = self.store(made, tensor, f"{made.outputs[0]}_{name}")
        return found


def evaluate_constants(replacer: Replacer, function: FunctionProto, match: Match) -> list[np.ndarray]:
    """Returns what a function makes of constants of a match, calculated by onnx's reference evaluator.

    An input that is absent is a zero.

    Raises:
        RefusedResultError: It cannot be calculated, or an input is no constant.
    """
    import numpy as np
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    draft, facts, scope, rule = replacer.draft, match.bindings.facts, match.scope, match.rule
    graph = helper.make_graph(
        [], "constants", [], [helper.make_empty_tensor_value_info(name) for name in function.output]
    )
    for written in function.input:
        name = plain_name(written)
        bound = match.bindings.tensors[match.pattern.aliases.get(name, name)]
        if not bound:
            graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), name))
            continue
        tensor = facts.constant(scope, bound) if isinstance(bound, str) else None
        if tensor is None:
            raise RefusedResultError(
                f"rule {rule.name!r} calculates with {name!r}, and {bound!r} is no constant",
                hint=f"The rule lacks a condition: is_const({name}).",
            )
        graph.initializer.append(numpy_helper.from_array(draft.model.array(tensor), name))
    names = {plain_name(name): plain_name(name) for node in function.node for name in (*node.input, *node.output)}
    graph.node.extend(replacer._node(node, names, match) for node in function.node)
    versions = {plain_domain(o.domain): o.version for o in function.opset_import}
    versions.setdefault("", _OPSET_OF_CONSTANTS)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in versions.items()])
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(None, {})
    except Exception as error:  # whatever an operator of the reference evaluator raises
        first = str(error).partition("\n")[0]
        raise RefusedResultError(f"rule {rule.name!r} cannot calculate its constants: {first}") from None
    return [np.asarray(each) for each in found]


def require_opsets(draft: Draft, rule: Rule, scope: Scope) -> None:
    """Raises RefusedResultError if a graph imports an older opset than the replacement needs."""
    for opset in rule.replacement.opset_import:
        domain = plain_domain(opset.domain)
        has = draft.opset(scope, domain)
        if has and has < opset.version:
            where = f"function {root_of(scope).path}" if root_of(scope).is_function else "the model"
            raise RefusedResultError(
                f"rule {rule.name!r} puts in operators of {domain or 'ai.onnx'} {opset.version}, and {where} imports "
                f"{has}",
                hint=None
                if domain
                else f"Raise the opset first (onnxbench edit IN OUT --set-opset {opset.version}), or use a rule whose "
                "replacement is older.",
            )


def _output(match: Match, number: int) -> str:
    """Returns the name of the tensor that an output of the pattern is."""
    value = match.pattern.outputs[number]
    assert value.step is not None
    return str(match.scope.nodes[match.nodes[value.step.number]].output[value.output])


def _number(bindings: Bindings, name: str, rule: Rule) -> Any:
    """Returns the value that ``@name`` stands for in a replacement."""
    try:
        if name not in bindings.lets and name in bindings.tensors:
            bound = bindings.tensors[name]
            return bindings.facts.value(bindings.scope, bound)
        return bindings.value_of(name)
    except (UnknownError, WrongError) as problem:
        raise RefusedResultError(f"rule {rule.name!r}: the value of @{name} cannot be had: {problem}") from None


def _has_types(match: Match, node: NodeProto) -> bool:
    """Tells whether onnx can infer the types of what a node makes."""
    facts = match.bindings.facts
    if facts.index.function_of(node) is not None:
        return False
    version = facts.opset(match.scope, node.domain)
    return bool(version and find_schema(node.domain, node.op_type, version))


def _followed(names: Mapping[str, str]) -> dict[str, str]:
    """Returns the renaming with chains followed to their end."""
    found = {}
    for old, new in names.items():
        seen = {old}
        while new in names and new not in seen:
            seen.add(new)
            new = names[new]
        found[old] = new
    return found


def _record(draft: Draft, swap: Swap) -> None:
    scope = swap.scope
    before = ", ".join(scope.nodes[position].op_type for position in swap.removed)
    after = ", ".join(node.op_type for node in swap.nodes) or "nothing"
    label = scope.label(swap.anchor)
    path = f"{scope.path}/{label}" if scope.path else label
    draft.record("node", path, f"rewritten by {swap.rule}", before=before, after=after)


# -- what new nodes are called and say ---------------------------------------------------------------------------


@dataclass(slots=True)
class Common:
    """What the replaced nodes have in common.

    Attributes:
        prefix: The path that TorchScript names begin with, up to the modules in common; None for other names.
        base: What names are made from otherwise.
        metadata: Entries of the new nodes.
        anchor: The node whose doc string they get.
    """

    prefix: str | None
    base: str
    metadata: dict[str, str]
    anchor: NodeProto

    @classmethod
    def of(cls, swap: Swap) -> Common:
        """Returns what old nodes have in common."""
        scope = swap.scope
        anchor = scope.nodes[swap.anchor]
        nodes = [scope.nodes[position] for position in swap.removed]
        paths = [node.name.rpartition("/")[0].split("/") for node in nodes if node.name.startswith("/")]
        prefix = "/".join(_shared(paths)) if len(paths) == len(nodes) else None
        said = [{entry.key: entry.value for entry in node.metadata_props} for node in nodes]
        own = {entry.key: entry.value for entry in anchor.metadata_props}
        metadata = {key: value for key, value in own.items() if all(each.get(key) == value for each in said)}
        for key in (NAME_SCOPES, CLASS_HIERARCHY):
            if key in own:
                shortened = _shared_list([each[key] for each in said if key in each])
                if shortened is not None:
                    metadata[key] = shortened
        if STACK_TRACE in own:
            metadata[STACK_TRACE] = own[STACK_TRACE]
        ordered = {key: metadata[key] for key in own if key in metadata and key != RULE_KEY}
        base = anchor.name or next(filter(None, anchor.output), anchor.op_type)
        return cls(prefix, base, ordered, anchor)

    def name_for(self, op_type: str) -> str:
        """Returns the name that a new node of an operator should have."""
        return f"{self.prefix}/{op_type}" if self.prefix is not None else f"{self.base}_{op_type}"

    def describe(self, node: NodeProto, rule: str) -> None:
        """Gives a new node its metadata and doc string."""
        for key, value in self.metadata.items():
            node.metadata_props.add(key=key, value=value)
        node.metadata_props.add(key=RULE_KEY, value=rule)
        if self.anchor.doc_string:
            carry_field(self.anchor, node, "doc_string")


def _shared(paths: Iterable[Sequence[str]]) -> list[str]:
    """Returns what sequences begin with alike."""
    found: list[str] | None = None
    for path in paths:
        if found is None:
            found = list(path)
        count = next(
            (at for at, (a, b) in enumerate(zip(found, path, strict=False)) if a != b), min(len(found), len(path))
        )
        del found[count:]
    return found or []


def _shared_list(texts: Sequence[str]) -> str | None:
    """Returns the modules that lists as text begin with alike, and the last entry of the first list, the operator."""
    lists = []
    for text in texts:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        if not isinstance(value, list) or not value:
            return None
        lists.append(value)
    return repr([*_shared([each[:-1] for each in lists]), lists[-1][-1]])


# -- what is left over -------------------------------------------------------------------------------------------


def _sweep(draft: Draft, lost: Mapping[str, Sequence[str]]) -> None:
    """Removes nodes and initializers that only replaced nodes read, and what only these read.

    Args:
        draft: The draft, after the replacement.
        lost: By graph, the tensors that lost a reader.
    """
    all_scopes, scopes = draft.index.scopes, draft.index.scope_paths
    gone: dict[str, set[int]] = {}
    unused: dict[str, set[str]] = {}
    left: dict[tuple[int, str], int] = {}
    pending = [(scopes[path], name) for path, names in lost.items() if path in scopes for name in dict.fromkeys(names)]
    while pending:
        scope, name = pending.pop()
        home = home_of(scope, name)
        if home is None or name in home.outputs:
            continue
        key = id(home), name
        count = left.get(key)
        if count is None:
            count = left[key] = len(home.consumers.get(name, ()))
        if count:
            continue
        position = home.producers.get(name)
        if position is None:
            if name in home.constants and name not in home.inputs:
                unused.setdefault(home.path, set()).add(name)
            continue
        removed = gone.setdefault(home.path, set())
        if position in removed or any(
            made in home.outputs or left.get((id(home), made), len(home.consumers.get(made, ())))
            for made in home.writes[position]
        ):
            continue
        removed.add(position)
        for read in dict.fromkeys(home.reads[position]):
            owner = home_of(home, read)
            if owner is None:
                continue
            if owner is home:
                known = (id(home), read)
                left[known] = left.get(known, len(home.consumers.get(read, ()))) - 1
            pending.append((home, read))
    for path, names in unused.items():
        scope = scopes[path]
        for name in sorted(names):
            draft.record("weight", f"{path}/{name}" if path else name, "removed", before="nothing reads it any more")
        draft.remove_initializers(scope, names)
    for scope in reversed(all_scopes):
        if gone.get(scope.path):
            for position in sorted(gone[scope.path]):
                node = scope.nodes[position]
                label = scope.label(position)
                path = f"{scope.path}/{label}" if scope.path else label
                draft.record("node", path, "removed", before=f"{node.op_type}, which nothing reads any more")
            made = [name for position in gone[scope.path] for name in scope.writes[position]]
            draft.splice(scope, {}, gone[scope.path])
            draft.forget(scope, made)
    draft.touch()
