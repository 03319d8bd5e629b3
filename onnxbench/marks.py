"""Mark nodes: taken out of a model as if they had never been there, and given a body that any runtime runs.

A Mark passes on what it is given. PyTorch code that is marked (``onnxbench.mark``, and MMDeploy's) leaves them in an
exported file, with attributes that name a function, the number of its call, one of its inputs or outputs, and the type
that the tensor had: ``select`` reads them as points (``detector_forward:input``).

**Taking out.** Readers of a Mark's output read its input, in bodies too. Where the output is one that the graph (or
body, or function) hands out, its name is what callers know, so the tensor takes that name. An Identity is left only
where a graph hands out what it is itself given, or one tensor twice: ONNX has no other way to say that. What was said
of the output, its type say, is said of the input where nothing else is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxbench import select
from onnxbench.draft import Draft
from onnxbench.errors import ModelError, NotFoundError
from onnxbench.graph import GraphIndex, NodeRef, Scope, tree_of
from onnxbench.inlining import inline_functions, remove_uncalled
from onnxbench.messages import delete_named
from onnxbench.model import Model, load
from onnxbench.tensortype import make_type, tensor_shape

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TypeProto

MARK = "Mark"
DOMAIN = "onnxbench"
"""The domain of our own Mark nodes."""


@dataclass(frozen=True, slots=True)
class Unmarked:
    """A model without marks.

    Attributes:
        model: It.
        removed: How many Mark nodes are gone.
        names: What tensors of the main graph are called now, by what they were called; only those that changed.
        types: What the Marks in the main graph said of their tensors, by their names now.
    """

    model: Model = field(repr=False)
    removed: int
    names: Mapping[str, str]
    types: Mapping[str, TypeProto]

    def name(self, tensor: str) -> str:
        """Returns what a tensor of the main graph is called now."""
        return self.names.get(tensor, tensor)

    def recorded(self, model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
        """Returns what the Marks said of tensors, as a place to ask for types (see ``onnxbench.inference``).

        MMDeploy records the sizes of the example input, which is all that is known of a model whose own inputs are
        fixed; where they are not, only the number of dimensions is believed.
        """
        fixed = all(isinstance(size, int) for i in model.proto.graph.input for size in tensor_shape(i.type) or ())
        found = {name: self.types[name] for name in names if name in self.types}
        if fixed:
            return found
        return {
            name: make_type(kind.tensor_type.elem_type, [None] * len(kind.tensor_type.shape.dim))
            for name, kind in found.items()
        }


def unmark(
    source: Model | str | os.PathLike[str], at: str | None = None, *, allow_outside: bool = False
) -> Unmarked:  # fmt: skip
    """Returns a model without Mark nodes, or without some of them; inputs and outputs keep their names.

    Args:
        source: A model or a model file; neither is changed.
        at: A selector of the Marks: ``mark:detector_forward:input``, ``op:mmdeploy::Mark``; None: all.
        allow_outside: For a file: follow external data that leaves the model's folder.

    Raises:
        NotFoundError: The selector matches nothing, or other nodes.
        ModelError: A Mark does not have one input and one output.
    """
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    draft = Draft.of(model)
    refs = marks(draft.index) if at is None else chosen_marks(draft, at)
    types = recorded_types(ref.node for ref in refs if ref.scope is draft.main)
    names = take_out(draft, refs)
    return Unmarked(draft.model, len(refs), names, {names.get(name, name): kind for name, kind in types.items()})


def marks(index: GraphIndex) -> list[NodeRef]:
    """Returns all Mark nodes of a model, those in bodies and functions too."""
    return [ref for ref in index.nodes() if select.mark_point(ref) is not None]


def require_marks(index: GraphIndex) -> list[NodeRef]:
    """Returns all Mark nodes of a model.

    Raises:
        NotFoundError: It has none.
    """
    found = marks(index)
    if not found:
        raise NotFoundError(
            "the model has no Mark nodes",
            hint="Exporters leave them where PyTorch code was marked (docs/marks.md).",
        )
    return found


def chosen_marks(draft: Draft, selector: str) -> list[NodeRef]:
    """Returns the Mark nodes that a selector stands for.

    Raises:
        NotFoundError: It stands for nothing, or for a node that is no Mark.
    """
    refs = draft.nodes(selector)
    other = next((ref for ref in refs if select.mark_point(ref) is None), None)
    if other is not None:
        raise NotFoundError(
            f"{selector!r} stands for {other.path!r}, which is no Mark but {other.node.op_type}",
            hint="mark:FUNCTION:input and op:Mark stand for Marks; 'onnxbench find MODEL op:Mark' lists them.",
        )
    return refs


def recorded_types(nodes: Iterable[NodeProto]) -> dict[str, TypeProto]:
    """Returns the types that Mark nodes say their outputs had when they were recorded; a size below zero is unknown."""
    types: dict[str, TypeProto] = {}
    for node in nodes:
        said = {attribute.name: attribute for attribute in node.attribute}
        if said.get("dtype") is not None and said["dtype"].i > 0 and node.output:
            shape = [size if size >= 0 else None for size in said["shape"].ints] if "shape" in said else None
            types[node.output[0]] = make_type(said["dtype"].i, shape)
    return types


def take_out(draft: Draft, refs: Sequence[NodeRef]) -> dict[str, str]:
    """Takes Mark nodes out of a draft, and their function and domain if none is left.

    Returns:
        What tensors of the main graph are called now, by what they were called, where that changed.

    Raises:
        ModelError: A Mark does not have one input and one output.
    """
    domains = {(ref.node.domain, ref.node.op_type) for ref in refs}
    by_path: dict[str, list[int]] = {}
    for ref in refs:
        node = ref.node
        if len(node.input) != 1 or len(node.output) != 1 or not node.input[0] or not node.output[0]:
            raise ModelError(f"Mark {ref.path!r} does not pass on one tensor: it has other inputs or outputs than one")
        by_path.setdefault(ref.scope.path, []).append(ref.position)
        point = select.mark_point(ref)
        if point is not None:
            draft.record("node", ref.path, "unmarked", before=point.spelling)
    moved: dict[str, str] = {}
    scopes = draft.index.scope_paths
    for path in sorted(by_path, key=lambda each: -scopes[each].depth):  # inner first: paths name outer nodes
        scope = draft.index.scope_paths[path]
        names = _take_out_of(draft, scope, by_path[path])
        if not path:
            moved = names
    _remove_functions(draft, domains)
    return moved


@dataclass(slots=True)
class _Passing:
    """What becomes of the Marks of one graph.

    Attributes:
        passed: For each tensor of a Mark that goes, the tensor that it passes on, Marks between them passed over.
        renamed: Tensors that take the name of an output.
        kept: Positions of Marks that become an Identity.
    """

    passed: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    def names(self) -> dict[str, str]:
        """Returns what tensors are called afterwards, by what they were called, where that changes."""
        found = {made: self.renamed.get(source, source) for made, source in self.passed.items()}
        return {old: new for old, new in (found | self.renamed).items() if old != new}


def _take_out_of(draft: Draft, scope: Scope, positions: Sequence[int]) -> dict[str, str]:
    """Takes the Marks at these positions out of one graph; returns the new names of its tensors."""
    plan = _plan(scope, positions)
    for position in plan.kept:
        node = scope.nodes[position]
        node.op_type, node.domain = "Identity", ""
        node.ClearField("attribute")
        node.ClearField("overload")
        draft.import_domain(scope, "")
        draft.record("node", NodeRef(scope, position).path, "op_type", before=MARK, after="Identity, for an output")
    now = plan.names()
    _tell(scope, plan, now)
    for source, made in plan.renamed.items():
        maker = scope.nodes[scope.producers[source]]
        for number, name in enumerate(maker.output):
            if name == source:
                maker.output[number] = made
    gone = set(positions) - plan.kept
    draft.replace_uses(scope, now, readers=[at for at in range(len(scope.nodes)) if at not in gone])
    draft.forget(scope, now)
    if gone:
        draft.splice(draft.index.scope_paths[scope.path], removed=gone)
    return now


def _plan(scope: Scope, positions: Sequence[int]) -> _Passing:
    plan = _Passing()
    outputs = set(scope.outputs)
    aliases: dict[str, list[str]] = {}
    for position in _in_order(scope, positions):
        node = scope.nodes[position]
        made = str(node.output[0])
        source = plan.passed.get(node.input[0], str(node.input[0]))
        if made not in outputs:
            is_free = not _is_hidden(scope, made, plan.renamed.get(source, source))
        else:
            is_free = (
                source in scope.producers
                and source not in outputs
                and source not in plan.renamed
                and not any(_is_hidden(scope, name, made) for name in (source, *aliases.get(source, ())))
            )
            if is_free:
                plan.renamed[source] = made
        if is_free:
            plan.passed[made] = source
            aliases.setdefault(source, []).append(made)
        else:
            plan.kept.add(position)
            node.input[0] = source
    return plan


def _in_order(scope: Scope, positions: Sequence[int]) -> list[int]:
    """Returns the positions of Marks such that one which reads another's output comes after it."""
    remaining = dict.fromkeys(sorted(positions))
    order: list[int] = []
    for start in sorted(positions):
        trail: list[int] = []
        at: int | None = start
        while at is not None and at in remaining:
            del remaining[at]
            trail.append(at)
            at = scope.producers.get(scope.nodes[at].input[0])
        order.extend(reversed(trail))
    return order


def _is_hidden(scope: Scope, old: str, new: str) -> bool:
    """Tells whether a body that reads ``old`` has a tensor of its own that is called ``new``."""
    for position in scope.consumers.get(old, ()):
        for body in scope.bodies.get(position, ()):
            if old in body.captures and any(inner.defines(new) for inner in tree_of(body)):
                return True
    return False


def _tell(scope: Scope, plan: _Passing, now: Mapping[str, str]) -> None:
    """Says of the tensors that stay what was said of those that go, where nothing else is."""
    graph = scope.graph
    told = {info.name for info in graph.value_info if info.HasField("type")}
    for info in graph.value_info:
        source = plan.passed.get(info.name)
        if source is None or source in told or source in plan.renamed or source not in scope.producers:
            continue
        if info.HasField("type") and source not in scope.outputs:
            told.add(source)
            info.name = source
    if scope.is_function:
        return
    annotated = {annotation.tensor_name for annotation in graph.quantization_annotation}
    for annotation in graph.quantization_annotation:
        if now.get(annotation.tensor_name, annotation.tensor_name) not in annotated:
            annotation.tensor_name = now[annotation.tensor_name]
            annotated.add(annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = now.get(entry.value, entry.value)


def _remove_functions(draft: Draft, domains: Collection[tuple[str, str]]) -> None:
    """Removes the functions and imports that only Marks needed."""
    proto = draft.model.proto
    keys = {(f.domain, f.name, f.overload) for f in proto.functions if (f.domain, f.name) in domains}
    for name in remove_uncalled(proto, keys):
        draft.record("function", name, "removed")
    draft.touch()
    words = {domain for domain, _ in domains}
    for function in proto.functions:
        scope = draft.index.functions[function.domain, function.name, function.overload]
        used = {node.domain for inner in tree_of(scope) for node in inner.nodes}
        delete_named(function.opset_import, words - used, by="domain")
    held = {function.domain for function in proto.functions}
    held.update(opset.domain for function in proto.functions for opset in function.opset_import)
    for domain in draft.unused_imports():
        if domain in words - held:
            draft.remove_import(domain)


def inline_all_but_marks(model: Model) -> tuple[Model, dict[str, list[str]]]:
    """Returns what ``inline_functions`` does, with the Marks left as they are: inlined, they would be gone."""
    bodies = [f for f in model.proto.functions if f.name == MARK and f.domain in select.MARK_DOMAINS]
    if not bodies:
        return inline_functions(model)
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    for position in reversed(range(len(proto.functions))):
        if proto.functions[position] in bodies:
            del proto.functions[position]
    done, names = inline_functions(model.derive(proto))
    done.proto.functions.extend(bodies)
    return done, names


def add_functions(proto: ModelProto) -> ModelProto:
    """Gives the Marks of a model a body that passes on what they are given, in place, so that any runtime runs it.

    The function comes last and only now, for an optimizer that sees it inlines it, and the marks are gone. A domain
    that has one already keeps it.

    Returns:
        The model that was given.
    """
    attributes: dict[str, dict[str, None]] = {}
    for ref in marks(GraphIndex(proto)):
        attributes.setdefault(ref.node.domain, {}).update((each.name, None) for each in ref.node.attribute)
    known = {(function.domain, function.name) for function in proto.functions}
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    for domain, names in attributes.items():
        if domain not in versions:
            proto.opset_import.add(domain=domain, version=1)
        if (domain, MARK) in known:
            continue
        version = versions.get("", versions.get("ai.onnx"))
        if version is None:
            version = 13
            proto.opset_import.add(domain="", version=version)
        function = proto.functions.add(name=MARK, domain=domain, input=["x"], output=["y"], attribute=sorted(names))
        function.opset_import.add(domain="", version=version)
        function.node.add(op_type="Identity", input=["x"], output=["y"])
        function.doc_string = "Passes on what it is given; onnxbench unmark takes it out."
    return proto
