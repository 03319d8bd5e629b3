"""Rules of onnxscript's rewriter, as a bridge.

onnxscript matches and makes the new nodes; putting them in is done here, on the model's own messages. So nothing that
the rule does not touch goes through onnxscript's representation, and nothing is lost in it. What onnxscript does on
the side when it applies rules itself (removing unused nodes and opset imports, renaming values) is not done.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import (
    MissingDependencyError,
    NotFoundError,
    RefusedResultError,
    SpecError,
    UnsupportedError,
    did_you_mean,
    near_file,
)
from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.messages import copy_of
from onnxbench.patterns._replacement import Common, Replacer, Swap
from onnxbench.patterns._rules import split_reference
from onnxbench.schemas import find_schema, plain_domain

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxbench.draft import Draft
    from onnxbench.model import Model

_MOST_IDLE_PASSES = 24
_INLINED = 4096


@dataclass(frozen=True, slots=True, eq=False)
class ScriptRule:
    """Rules of onnxscript's rewriter, out of a Python file.

    Attributes:
        name: What it is called.
        rules: ``onnxscript.rewriter`` rules.
    """

    name: str
    rules: tuple[Any, ...]


def load_script(reference: str, folder: Path | None = None) -> ScriptRule:
    """Returns the rules that ``FILE.py[:name]`` stands for. The file is run: it is code that you trust.

    The name may be a rule, a rule set, a list of rules, a class of rules, or a function that returns one of these; by
    default it is ``rules`` or ``rule``.

    Raises:
        MissingDependencyError: onnxscript is not installed.
        NotFoundError: There is no such file, or no such name in it.
        SpecError: The file cannot be run, or the name is no rule.
    """
    try:
        rewriter = import_module("onnxscript.rewriter.pattern")
    except ImportError:
        raise MissingDependencyError(
            "rules in Python files are rules of onnxscript, which is not installed", hint="pip install onnxscript"
        ) from None
    file, name = split_reference(reference)
    path = (folder or Path.cwd()) / str(file)
    if not path.is_file():
        raise NotFoundError(f"there is no file {file}", hint=near_file(path))
    spec = importlib.util.spec_from_file_location(f"onnxbench_rules_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code
        raise SpecError(f"{file} cannot be run: {type(error).__name__}: {error}") from None
    names = [name] if name is not None else ["rules", "rule"]
    found = next((getattr(module, each) for each in names if hasattr(module, each)), None)
    if found is None:
        hint = did_you_mean(names[0], vars(module)) or "Name a rule of onnxscript's rewriter: FILE.py:rule."
        raise NotFoundError(f"{file} has no {names[0]!r}", hint=hint)
    try:
        rules = tuple(_rules_in(found, rewriter))
    except Exception as error:  # the user's own code
        raise SpecError(f"{reference} cannot be made: {type(error).__name__}: {error}") from None
    if not rules:
        raise SpecError(f"{reference} is a {type(found).__name__}, and no rule of onnxscript's rewriter")
    return ScriptRule(name or path.stem, rules)


def _rules_in(found: Any, rewriter: Any) -> Iterator[Any]:
    if isinstance(found, type) and issubclass(found, rewriter.RewriteRuleClassBase):
        found = found.rule()  # type: ignore[attr-defined]  # onnxscript is not typed
    elif callable(found) and not isinstance(found, (rewriter.RewriteRule, rewriter.RewriteRuleSet)):
        found = found()
    if isinstance(found, rewriter.RewriteRule):
        yield found
    elif isinstance(found, rewriter.RewriteRuleSet):
        yield from found.rules
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from _rules_in(each, rewriter)


def find_script_matches(draft: Draft, script: ScriptRule, *, at: str | None = None) -> list[NodeRef]:
    """Returns the nodes at which rules of onnxscript match, each the last node of its match."""
    among = frozenset(draft.nodes(at)) if at is not None else None
    return [NodeRef(swap.scope, swap.anchor) for swap in _Pass(draft, script, Replacer(draft)).swaps(among, None)]


def apply_script(draft: Draft, script: ScriptRule, *, at: str | None = None, most: int | None = None) -> int:
    """Applies rules of onnxscript until they do not match any more; returns how often.

    Raises:
        RefusedResultError: They match what they made again and again.
        UnsupportedError: A rule makes something that cannot be put in.
    """
    replacer, idle, size = Replacer(draft), 0, 0
    while most is None or replacer.count < most:
        try:
            among = frozenset(draft.nodes(at)) if at is not None else None
        except NotFoundError:
            if not replacer.count:
                raise
            break
        run = _Pass(draft, script, replacer)
        swaps = list(run.swaps(among, None if most is None else most - replacer.count))
        if not swaps:
            break
        if idle >= _MOST_IDLE_PASSES:
            raise RefusedResultError(
                f"rule {script.name!r} does not come to an end: after {idle} passes it still matches",
                hint="Its replacement is a match again. Give it a condition, or say how many at most (max).",
            )
        for domain, version in run.opsets.items():
            for swap in swaps:
                draft.import_domain(swap.scope, domain, version)
        replacer.swap(swaps)
        now = sum(len(scope.nodes) for scope in draft.index.scopes)
        idle, size = (0, now) if not size or now < size else (idle + 1, size)
    return replacer.count


class _Pass:
    """One pass of onnxscript's rules over a draft as it is now."""

    def __init__(self, draft: Draft, script: ScriptRule, replacer: Replacer) -> None:
        ir = import_module("onnx_ir")
        optimizer = import_module("onnxscript.optimizer")
        self._draft = draft
        self._script = script
        self._replacer = replacer
        self._ir = ir
        self.opsets: dict[str, int | None] = {}
        self._model = ir.serde.deserialize_model(_readable(draft.model))
        self._graphs = dict(_graphs(draft.index, self._model))
        for graph in self._graphs.values():
            optimizer.basic_constant_propagation(graph)

    def swaps(self, among: frozenset[NodeRef] | None, limit: int | None) -> Iterator[Swap]:
        """Yields what takes the place of matches, no two of which have a node in common."""
        count = 0
        allowed = None if among is None else {(id(ref.scope), ref.position) for ref in among}
        for rule in self._script.rules:
            if rule.graph_pre_visitor:
                rule.graph_pre_visitor()
        taken: set[tuple[int, int]] = set()
        for scope in self._draft.index.scopes:
            graph = self._graphs[id(scope)]
            nodes = list(graph)
            positions = {id(node): position for position, node in enumerate(nodes)}
            for position, node in enumerate(nodes):
                if (id(scope), position) in taken or (allowed is not None and (id(scope), position) not in allowed):
                    continue
                for rule in self._script.rules:
                    delta = self._try(rule, graph, node)
                    if delta is None:
                        continue
                    old = sorted(positions[id(each)] for each in delta.match.nodes) if rule.remove_nodes else [position]
                    if any((id(scope), each) in taken for each in old):
                        continue
                    yield self._swap(rule, scope, delta, old, position)
                    taken.update((id(scope), each) for each in old)
                    count += 1
                    if limit is not None and count >= limit:
                        return
                    break

    def _try(self, rule: Any, graph: Any, node: Any) -> Any:
        try:
            return rule.try_rewrite(self._model, graph, node)
        except Exception as error:  # the user's own code, in a condition or a replacement
            raise SpecError(
                f"rule {rule.name or self._script.name!r} fails at node {node.name!r}: {type(error).__name__}: {error}"
            ) from None

    def _swap(self, rule: Any, scope: Scope, delta: Any, old: list[int], position: int) -> Swap:
        name = rule.name or self._script.name
        if rule.as_function:
            raise UnsupportedError(
                f"rule {name!r} makes functions of what it matches (as_function), which is not supported"
            )
        outputs = [value.name for value in delta.match.outputs]
        swap = Swap(name, scope, old, position, outputs)
        made = {id(value) for new in delta.new_nodes for value in new.outputs}
        named: dict[int, str] = {}
        for before, after in zip(delta.match.outputs, delta.new_outputs, strict=True):
            if id(after) in made and id(after) not in named:
                named[id(after)] = before.name
            else:
                self._replacer.hand_on(swap, before.name, after.name)
        stored = {id(value): value for value in delta.new_initializers}
        for key, value in stored.items():
            tensor = self._ir.serde.serialize_tensor(value.const_value)
            named[key] = value.name = self._replacer.store(swap, tensor, value.name or f"{outputs[0]}_constant")
        common = Common.of(swap)
        for new in delta.new_nodes:
            if any(attribute.type.value in (5, 10) for attribute in new.attributes.values()):
                raise UnsupportedError(f"rule {name!r} makes nodes with bodies, which is not supported")
            for value in new.outputs:
                if id(value) not in named:
                    named[id(value)] = self._replacer.fresh(scope, value.name or f"{outputs[0]}_{new.op_type}")
                value.name = named[id(value)]
            new.name = self._replacer.fresh_node(scope, common.name_for(new.op_type))
            node = self._ir.serde.serialize_node(new)
            reads = ["" if v is None else named.get(id(v), v.name) for v in new.inputs]
            del node.input[:], node.output[:]
            node.input.extend(reads)
            node.output.extend(named[id(value)] for value in new.outputs)
            del node.metadata_props[:]
            common.describe(node, name)
            swap.nodes.append(node)
            domain = plain_domain(new.domain)
            self.opsets.setdefault(domain, new.version)
        versions = {plain_domain(node.domain): self._draft.opset(scope, node.domain) for node in swap.nodes}
        swap.is_retyped = all(
            find_schema(n.domain, n.op_type, versions[plain_domain(n.domain)] or 1) for n in swap.nodes
        )
        return swap


def _readable(model: Model) -> ModelProto:
    """Returns a copy of a structure in which onnx-ir can read all weights: small ones inline, others by their file."""
    proto = model.with_small_weights(model.proto)
    if proto is model.proto:
        proto = copy_of(model.proto)
    for tensor in weights.tensors(proto):
        where = model.byte_range(tensor)
        if where is None:
            continue
        del tensor.external_data[:]
        if where.length <= _INLINED:
            tensor.ClearField("data_location")
            tensor.raw_data = weights.read_bytes(where)
            continue
        for key, value in (("location", where.file), ("offset", where.offset), ("length", where.length)):
            tensor.external_data.add(key=key, value=str(value))
    return proto


def _graphs(index: GraphIndex, model: Any) -> Iterator[tuple[int, Any]]:
    """Yields each graph of a model by its scope's identity; nodes stand in the same order in both."""
    functions: Mapping[Any, Any] = model.functions
    roots = [(index.main, model.graph)]
    roots += [(scope, functions[key]) for key, scope in index.functions.items()]
    pending: list[tuple[Scope, Any]] = roots[::-1]
    while pending:
        scope, graph = pending.pop()
        yield id(scope), graph
        if not scope.bodies:
            continue
        nodes = list(graph)
        for position, bodies in scope.bodies.items():
            inner = [
                each
                for attribute in scope.nodes[position].attribute
                if attribute.type in (5, 10)
                for each in _attribute_graphs(nodes[position].attributes[attribute.name])
            ]
            pending += zip(bodies, inner, strict=True)


def _attribute_graphs(attribute: Any) -> list[Any]:
    return [attribute.value] if attribute.type.value == 5 else list(attribute.value)
