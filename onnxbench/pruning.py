"""What no output depends on: nodes, initializers, functions, value infos, imports; found and removed.

Bodies are looked at before the graphs around them: what a dead node of a body captures may be all that keeps an outer
node alive. Names that training steps mean, and parameters of quantization annotations, count as read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from onnxbench.graph import TensorRef
from onnxbench.inlining import remove_uncalled
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.graph import Scope

KINDS = ("nodes", "initializers", "functions", "value_infos", "opset_imports")
"""What can be dead."""


def remove_dead(draft: Draft, kinds: Collection[str] = KINDS) -> None:
    """Removes what is dead: functions first, since they need others, then nodes, then what only those read."""
    if "functions" in kinds:
        remove_dead_functions(draft)
    if "nodes" in kinds:
        remove_dead_nodes(draft)
    if "initializers" in kinds:
        for scope in draft.index.scopes:
            if scope.constants:
                remove_unread(draft, scope)
    if "value_infos" in kinds:
        remove_stray_value_infos(draft)
    if "opset_imports" in kinds:
        remove_dead_imports(draft)


def remove_dead_functions(draft: Draft) -> None:
    """Removes functions that nothing calls, or only other such functions."""
    proto = draft.model.proto
    for name in remove_uncalled(proto, {(f.domain, f.name, f.overload) for f in proto.functions}):
        draft.record("function", name, "removed")
    draft.touch()


def remove_dead_nodes(draft: Draft) -> None:
    """Removes nodes that no output of their graph depends on."""
    for depth in range(max(scope.depth for scope in draft.index.scopes), -1, -1):
        dead = []
        for scope in draft.index.scopes:
            if scope.depth == depth:
                live = _live(draft, scope)
                if len(live) < len(scope.nodes):
                    dead.append((scope, [at for at in range(len(scope.nodes)) if at not in live]))
        for scope, positions in dead:
            remove_nodes(draft, scope, positions)


def remove_nodes(draft: Draft, scope: Scope, positions: Collection[int]) -> None:
    """Removes nodes that nothing needs, with what is said of their outputs."""
    gone = [name for at in positions for name in scope.writes[at]]
    for at in sorted(positions):
        where = f"{scope.path}/{scope.label(at)}" if scope.path else scope.label(at)
        draft.record("node", where, "removed", before=scope.nodes[at].op_type)
    draft.splice(scope, removed=positions)
    draft.forget(scope, gone)


def _live(draft: Draft, scope: Scope) -> set[int]:
    pending = [*scope.outputs, *(_named_in_training(draft) if scope is draft.main else ())]
    live: set[int] = set()
    while pending:
        position = scope.producers.get(pending.pop())
        if position is not None and position not in live:
            live.add(position)
            pending += scope.reads[position]
    return live


def _named_in_training(draft: Draft) -> Iterator[str]:
    """Yields the names that training steps, which see the main graph, may mean."""
    for training in draft.model.proto.training_info:
        for binding in (*training.initialization_binding, *training.update_binding):
            yield from (binding.key, binding.value)
        for graph in (training.initialization, training.algorithm):
            yield from (name for node in graph.node for name in node.input)
            yield from (info.name for info in graph.output)


def remove_upstream(draft: Draft, names: Iterable[str]) -> None:
    """Removes what makes these tensors of the main graph, and what only that needed, as far as nothing reads it."""
    main = draft.main
    waiting = {name: len(readers) for name, readers in main.consumers.items()}
    outputs = set(main.outputs)
    removed: set[int] = set()
    weights: set[str] = set()
    pending = list(names)

    def unneeded(name: str) -> bool:
        return not waiting.get(name) and name not in outputs

    while pending:
        name = pending.pop()
        if not unneeded(name):
            continue
        position = main.producers.get(name)
        if position is None:
            if name in main.constants:
                weights.add(name)
            continue
        if position in removed or not all(map(unneeded, main.writes[position])):
            continue
        removed.add(position)
        for read in dict.fromkeys(main.reads[position]):
            waiting[read] -= 1
            pending.append(read)
    remove_nodes(draft, main, removed)
    for name in sorted(weights):
        draft.record("weight", name, "removed")
    if weights:
        draft.remove_initializers(draft.main, weights)


def remove_unread(draft: Draft, scope: Scope, among: Iterable[str] | None = None) -> None:
    """Removes initializers and Constant nodes' outputs that nothing reads; an input that a caller may set stays.

    Args:
        draft: The model.
        scope: One of its graphs, as it is now.
        among: Only these; Constant nodes are looked at only here. None: all initializers.
    """
    graph: Any = scope.graph
    read = set(scope.outputs)
    if not scope.is_function:
        if scope is draft.main:
            read.update(_named_in_training(draft))
        for annotation in graph.quantization_annotation:
            read.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    listed = draft.model.proto.ir_version >= FIRST_IR_WITH_WEIGHTS_APART or scope.parent is not None
    kept = set(scope.inputs) if listed else set()
    unread = {
        name
        for name in (scope.constants if among is None else among)
        if name not in read and name not in kept and name not in scope.consumers
    }
    constants = {scope.producers[name] for name in unread if name in scope.producers}
    if constants:
        draft.splice(scope, removed=constants)
        draft.forget(scope, unread)
    stored = unread & scope.constants
    if stored:
        draft.remove_initializers(scope, stored)
        draft.forget(scope, stored)
    for name in sorted(unread):
        draft.record("weight", TensorRef(scope, name).path, "removed")


def remove_stray_value_infos(draft: Draft) -> None:
    """Removes value infos of tensors that their graph does not have."""
    for scope in draft.index.scopes:
        known = {*scope.inputs, *scope.constants, *scope.producers}
        unknown = [info.name for info in scope.graph.value_info if info.name not in known]
        if unknown:
            draft.forget(scope, unknown)
        for name in unknown:
            draft.record("tensor", TensorRef(scope, name).path, "value info removed")


def remove_dead_imports(draft: Draft) -> None:
    """Removes imports of domains that no node and no function is of; that of the standard operators stays."""
    functions = {f.domain for f in draft.model.proto.functions}
    for domain in draft.unused_imports():
        if domain not in ("", "ai.onnx") and domain not in functions:
            draft.remove_import(domain)
