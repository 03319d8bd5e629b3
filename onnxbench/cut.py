"""Pieces of a model as models of their own: extract, expose, lift. ModelProto to new ModelProto.

A piece is right or refused. It holds exactly the nodes between its inputs and its outputs (what bodies capture
counts as an input of their node), the initializers, value infos, annotations, functions and opset imports that
these need, and everything that belongs to the model as a whole. If its inputs do not bound it, nothing is made:
the error names the tensors that are missing and cuts that would work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxbench.boundary import Reach, missing_at_rim, reach_back, smallest_cut
from onnxbench.errors import CutError, NotFoundError, Proposal, UnsupportedError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex, Scope, TensorRef, home_of, node_bodies, root_of, topological_order
from onnxbench.inference import TypeFinder, TypeSource, bare, inferred, inferred_types
from onnxbench.messages import copy_of, delete_named, set_plain_fields
from onnxbench.model import Model
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import format_type, make_value_info, tensor_shape

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto

_PROPOSAL_LIMIT = 64
# The fields of a graph of which a piece takes what its nodes need.
_OWNED_BY_MODEL = ("functions", "opset_import", "training_info")
_OWNED_FIELDS = (
    "node",
    "initializer",
    "sparse_initializer",
    "value_info",
    "input",
    "output",
    "quantization_annotation",
)


@dataclass(frozen=True, slots=True)
class Boundary:
    """One input or output of a piece.

    Attributes:
        name: The tensor.
        type: Its type as text, ``float32[1, 3, ?]``.
        origin: Where the type is known from: ``model``, ``inferred``, ``given``.
    """

    name: str
    type: str
    origin: str = "model"


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a model is cut, before anything is made (what ``--dry-run`` shows).

    Attributes:
        inputs: The piece's inputs.
        outputs: Its outputs.
        nodes: Positions of its nodes in the graph, in topological order.
        constants: Names of the initializers it takes along.
        dropped: Given inputs that change nothing and were left out.
        added: Inputs that were added: by ``auto_inputs``, or because they are outputs as well.
        scope: Path of the graph that is cut; ``""`` for the main one.
        total_nodes: How many nodes that graph has.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[int, ...]
    constants: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    scope: str = ""
    total_nodes: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece that was cut out.

    Attributes:
        model: The piece; its weights still lie where the whole model's do.
        cut: Where it was cut.
        inputs: Its inputs with their types.
        outputs: Its outputs with their types.
        notes: What a user should know (unknown ranks, dropped inputs, left-out training info).
    """

    model: Model
    cut: Cut
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]
    notes: tuple[str, ...] = ()


def plan_cut(
    scope: Scope,
    outputs: Sequence[str],
    inputs: Sequence[str] | None = None,
    *,
    auto_inputs: bool = False,
    keep_unused: bool = False,
) -> Cut:
    """Returns the cut that gives ``outputs`` from ``inputs``.

    Args:
        scope: The graph to cut.
        outputs: Names of the tensors to compute.
        inputs: Names of the tensors to start from; None means the graph's own inputs.
        auto_inputs: Where ``inputs`` do not bound the piece, add the smallest set of tensors that does.
        keep_unused: Keep given inputs that change nothing.

    Raises:
        CutError: The inputs do not bound the piece (its ``missing`` and ``proposals`` say what would).
        NotFoundError: There is no tensor of one of these names.
    """
    order = topological_order(scope)
    given = list(dict.fromkeys(inputs if inputs is not None else ()))
    _require_names(scope, (*outputs, *given))
    ends = set(outputs)
    # An output that is itself an input of the graph can only be passed through.
    added = [name for name in scope.true_inputs() if name in ends and name not in given and inputs is not None]
    stops = {*given, *added}
    reach = reach_back(scope, outputs, stops)
    unbounded = inputs is not None and bool(reach.inputs)
    if unbounded and auto_inputs:
        added += smallest_cut(scope, outputs, stops) or list(reach.inputs)
        stops.update(added)
        reach = reach_back(scope, outputs, stops)
    elif unbounded:
        raise _not_bounded(scope, outputs, given, reach)
    used = reach.stops | (set(scope.captures) & stops)
    kept = [name for name in (*given, *added) if name in used or keep_unused]
    if inputs is None:
        kept = list(reach.inputs)
    positions = reach.nodes if order is None else {position: None for position in order if position in reach.nodes}
    return Cut(
        inputs=tuple(kept),
        outputs=tuple(dict.fromkeys(outputs)),
        nodes=tuple(sorted(positions) if order is None else positions),
        constants=tuple(sorted(reach.constants)),
        dropped=tuple(name for name in given if name not in used),
        added=tuple(name for name in added if name in used),
        scope=scope.path,
        total_nodes=len(scope.nodes),
    )


def _require_names(scope: Scope, names: Iterable[str]) -> None:
    for name in names:
        if not scope.defines(name) and name not in scope.consumers and name not in scope.outputs:
            where = f" in {scope.path}" if scope.path else ""
            raise NotFoundError(f"there is no tensor {name!r}{where}", hint=did_you_mean(name, scope.tensor_names()))


def _not_bounded(scope: Scope, outputs: Sequence[str], given: list[str], reach: Reach) -> CutError:
    missing = missing_at_rim(scope, reach, given)
    proposals = list(_proposals(scope, outputs, given, reach))
    named = ", ".join(repr(name) for name in missing[:8]) + (", ..." if len(missing) > 8 else "")
    ends = ", ".join(repr(name) for name in dict.fromkeys(outputs))
    plural = "tensors" if len(missing) > 1 else "tensor"
    return CutError(
        f"the inputs do not bound the piece: to compute {ends[:200]}, {plural} {named} must be given too"
        f" (or something above {'them' if len(missing) > 1 else 'it'})",
        details=[f"{p.kind}: inputs {' '.join(p.inputs)} ({p.nodes} nodes)" for p in proposals],
        hint="auto_inputs adds the minimum cut.",
        missing=missing,
        proposals=proposals,
    )


def _proposals(scope: Scope, outputs: Sequence[str], given: list[str], reach: Reach) -> Iterable[Proposal]:
    """Yields up to three different ways to bound the piece, the smallest first."""
    useful = [name for name in given if name in reach.stops]
    seen: set[frozenset[str]] = set()
    smallest = smallest_cut(scope, outputs, given, limit=_PROPOSAL_LIMIT)
    above = smallest_cut(scope, [*outputs, *useful], (), limit=_PROPOSAL_LIMIT)
    for kind, inputs in (
        ("minimum cut", None if smallest is None else [*useful, *smallest]),
        ("dominating tensors", above),
        ("whole upstream", reach_back(scope, outputs, ()).inputs),
    ):
        if inputs and frozenset(inputs) not in seen:
            seen.add(frozenset(inputs))
            yield Proposal(tuple(inputs), kind, len(reach_back(scope, outputs, set(inputs)).nodes))


def extract(
    model: Model,
    outputs: Sequence[str],
    inputs: Sequence[str] | None = None,
    *,
    index: GraphIndex | None = None,
    auto_inputs: bool = False,
    keep_unused: bool = False,
    types: Mapping[str, TypeProto] | None = None,
    sources: Sequence[TypeSource] = (),
) -> Piece:
    """Returns the piece of a model's main graph that computes ``outputs`` from ``inputs``.

    Args:
        model: The model; it is not changed.
        outputs: Exact tensor names.
        inputs: Exact tensor names, or None for the graph's own inputs.
        index: The model's index, if there is one already.
        auto_inputs: Add the smallest set of tensors that bounds the piece.
        keep_unused: Keep given inputs that change nothing.
        types: Types that replace what is known of a boundary tensor.
        sources: Where else to ask for types (see ``onnxbench.inference``).

    Raises:
        CutError: The inputs do not bound the piece.
        NotFoundError: There is no tensor of one of these names.
        UnsupportedError: A boundary tensor's element type cannot be found out.
    """
    index = index or GraphIndex(model.proto)
    cut = plan_cut(index.main, outputs, inputs, auto_inputs=auto_inputs, keep_unused=keep_unused)
    return assemble(model, index, index.main, cut, types=types, finder=TypeFinder(model, index, sources))


def assemble(
    model: Model,
    index: GraphIndex,
    scope: Scope,
    cut: Cut,
    *,
    finder: TypeFinder,
    types: Mapping[str, TypeProto] | None = None,
) -> Piece:
    """Returns the model that a cut describes, with what is known of its inputs and outputs.

    Args:
        model: The model; it is not changed.
        index: Its index.
        scope: The graph that is cut.
        cut: The cut.
        finder: What finds the types of inputs and outputs.
        types: Types that replace what is known of a tensor; what follows from those of inputs is inferred anew.

    Raises:
        UnsupportedError: An element type cannot be found out.
    """
    infos, boundaries, notes = _boundary_infos(scope, cut, finder, types or {})
    nodes, remade = _without_given(index, scope, cut)
    notes += remade
    proto = _shell(model.proto)
    graph = proto.graph
    if scope is not index.main:
        _copy_plain_fields(scope.graph, graph)
    graph.node.extend(nodes)
    graph.input.extend(infos[name] for name in cut.inputs)
    graph.output.extend(infos[name] for name in cut.outputs)
    _copy_belongings(scope, graph, cut)
    _order_inputs(scope, graph, cut)
    _copy_functions(model.proto, index, proto, nodes, _imports(model.proto, scope))
    if model.proto.training_info:
        notes.append("training info was left out: it belongs to the whole model")
    if cut.added:
        notes.append(f"input {', '.join(map(repr, cut.added))} was added")
    if cut.dropped:
        names = ", ".join(repr(name) for name in cut.dropped)
        kept = set(cut.dropped) & set(cut.inputs)
        notes.append(
            f"input {names} changes nothing" + (" (kept as asked)" if kept else "; dropped (--keep-unused keeps it)")
        )
    if types and not set(types).isdisjoint(cut.inputs):
        _infer_anew(model, graph, proto)
        boundaries.update((o.name, replace(boundaries[o.name], type=format_type(o.type))) for o in graph.output)
    inputs = tuple(boundaries[name] for name in cut.inputs)
    outputs = tuple(boundaries[name] for name in cut.outputs)
    return Piece(model.derive(proto), cut, inputs, outputs, tuple(notes))


def _infer_anew(model: Model, graph: GraphProto, proto: ModelProto) -> None:
    """Gives inner tensors and outputs the shapes that follow from the shapes stated for the inputs.

    What was known of them was true for the old shapes. Where inference cannot tell, only the rank stays.
    """
    infos = [*graph.value_info, *(o for o in graph.output if o.name not in {i.name for i in graph.input})]
    found = inferred_types(inferred(bare(model.with_small_weights(proto))), [info.name for info in infos])
    for info in infos:
        if info.name in found and tensor_shape(found[info.name]) is not None:
            info.type.CopyFrom(found[info.name])
        elif info.type.WhichOneof("value") == "tensor_type":
            for dim in info.type.tensor_type.shape.dim:
                dim.ClearField("value")


def _without_given(index: GraphIndex, scope: Scope, cut: Cut) -> tuple[list[NodeProto], list[str]]:
    """Returns the piece's nodes, none of which makes an input of the piece, and notes on what was renamed for that.

    A node of several outputs may be needed for one and make another that is given. That one gets a name that nobody
    reads; to leave it out is not possible for every operator.
    """
    given = set(cut.inputs)
    makers = {scope.producers[name] for name in given if name in scope.producers}
    nodes, notes = [], []
    taken: set[str] | None = None
    for position in cut.nodes:
        node = scope.nodes[position]
        if position not in makers:
            nodes.append(node)
            continue
        copy = copy_of(node)
        for at, name in enumerate(node.output):
            if name in given:
                taken = {ref.name for ref in index.tensors()} if taken is None else taken
                fresh = f"{name}_not_used"
                while fresh in taken:
                    fresh += "_"
                taken.add(fresh)
                copy.output[at] = fresh
                notes.append(
                    f"node {scope.label(position)!r} is needed for another output and makes the input {name!r} as well;"
                    f" what it makes is called {fresh!r} and not used"
                )
        nodes.append(copy)
    return nodes, notes


def _shell(proto: ModelProto) -> ModelProto:
    """Returns a model with everything that belongs to the whole, unknown fields included, and an empty graph."""
    from onnx import ModelProto

    shell = ModelProto()
    if set_plain_fields(proto, shell, but=("graph", *_OWNED_BY_MODEL)) and set_plain_fields(
        proto.graph, shell.graph, but=_OWNED_FIELDS
    ):
        return shell
    # A copy of it all, most of which goes again, is what keeps unknown fields, and text that is none.
    shell.CopyFrom(proto)
    for name in _OWNED_FIELDS:
        shell.graph.ClearField(name)
    for name in _OWNED_BY_MODEL:
        shell.ClearField(name)
    return shell


def _copy_plain_fields(source: GraphProto | FunctionProto, graph: GraphProto) -> None:
    """Makes a graph's name, doc string, metadata and unknown fields those of a body or function."""
    plain = copy_of(source)
    graph.Clear()
    if isinstance(plain, type(graph)):
        for name in _OWNED_FIELDS:
            plain.ClearField(name)
        graph.MergeFrom(plain)
        return
    graph.name = plain.name
    graph.metadata_props.extend(plain.metadata_props)
    with contextlib.suppress(UnicodeDecodeError):  # a doc string that is not text cannot be set, only copied
        graph.doc_string = plain.doc_string


def _boundary_infos(
    scope: Scope, cut: Cut, finder: TypeFinder, given: Mapping[str, TypeProto]
) -> tuple[dict[str, ValueInfoProto], dict[str, Boundary], list[str]]:
    """Returns the value info of each input and output, the same for people, and notes on what is not known."""
    names = list(dict.fromkeys((*cut.inputs, *cut.outputs)))
    _refuse_sparse(scope, cut.outputs)
    stated = scope.stated
    if not scope.path:
        finder.verify(name for name in cut.inputs if name not in given)
    known = finder.find(scope, [name for name in names if name not in given])
    infos: dict[str, ValueInfoProto] = {}
    boundaries: dict[str, Boundary] = {}
    notes = []
    untyped = [name for name in names if name not in given and name not in known]
    if untyped:
        raise UnsupportedError(
            f"the element type of {', '.join(map(repr, untyped[:5]))} is not known, so the piece cannot state it",
            hint="Extract around one of its calls instead, with --inline-functions."
            if scope.is_function
            else f"Give it: '{untyped[0]}:auto:float32' (name:shape:dtype), or use --feeds to find it by a run.",
        )
    for name in names:
        value = given.get(name) or known[name]
        info = make_value_info(name, value)
        origin = "given" if name in given else "inferred"
        if name in stated:
            kept = copy_of(stated[name])
            if name not in given and kept.type == value:
                origin = "model"
            kept.type.CopyFrom(value)
            info = kept
        if value.WhichOneof("value") == "tensor_type" and tensor_shape(value) is None:
            notes.append(f"the rank of {name!r} is not known; it is left dynamic")
        infos[name] = info
        boundaries[name] = Boundary(name, format_type(value), origin)
    return infos, boundaries, notes


def _refuse_sparse(scope: Scope, outputs: Iterable[str]) -> None:
    """Raises UnsupportedError when an output is a sparse constant, which runtimes read and do not give out."""
    sparse = {tensor.values.name for tensor in getattr(scope.graph, "sparse_initializer", ())}
    for name in outputs:
        position = scope.producers.get(name)
        made = position is not None and any(a.name == "sparse_value" for a in scope.nodes[position].attribute)
        if name in sparse or made:
            raise UnsupportedError(
                f"{name!r} is a sparse constant, and no runtime gives these out",
                hint="Take what the nodes that read it make.",
            )


def _copy_belongings(scope: Scope, graph: GraphProto, cut: Cut) -> None:
    """Copies what the piece's tensors own: initializers, value infos, quantization annotations, listed inputs.

    In a body, initializers of the graphs around it that it captures come along too.
    """
    source = scope.graph
    inputs = set(cut.inputs)
    tensors = {name for position in cut.nodes for name in scope.writes[position]}
    constants = set(cut.constants)
    annotated = tensors | constants | inputs
    annotations = [a for a in getattr(source, "quantization_annotation", ()) if a.tensor_name in annotated]
    for annotation in annotations:
        constants.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    constants -= inputs
    holder: Scope | None = scope
    pending = set(constants)
    while holder is not None and pending:
        if not holder.is_function:
            # An initializer that its graph lists among the inputs (before IR 4 it must be) stays listed.
            graph.input.extend(i for i in holder.graph.input if i.name in pending and i.name in holder.constants)
            graph.initializer.extend(t for t in holder.graph.initializer if t.name in pending)
            graph.sparse_initializer.extend(t for t in holder.graph.sparse_initializer if t.values.name in pending)
            pending -= holder.constants
        holder = holder.parent
    graph.quantization_annotation.extend(annotations)
    inner = (tensors | constants) - inputs - set(cut.outputs)
    graph.value_info.extend([info for info in source.value_info if info.name in inner])


def _order_inputs(scope: Scope, graph: GraphProto, cut: Cut) -> None:
    """Puts initializers that are listed as inputs where they stood, if the other inputs are in their old order too."""
    if len(graph.input) == len(cut.inputs):
        return
    place = {name: at for at, name in enumerate(scope.inputs)}
    order = [place.get(name, -1) for name in cut.inputs]
    if order == sorted(order) and -1 not in order:
        graph.input.sort(key=lambda info: place.get(info.name, len(place)))


def _copy_functions(
    source: ModelProto,
    index: GraphIndex,
    target: ModelProto,
    nodes: list[NodeProto],
    imports: Sequence[OperatorSetIdProto],
) -> None:
    """Copies the functions that the nodes need, and of ``imports`` what all of it needs."""
    if len(imports) == 1 and not source.functions:
        target.opset_import.extend(imports)  # whatever the nodes are
        return
    needed = index.function_closure(nodes)
    target.functions.extend(f for f in source.functions if (f.domain, f.name, f.overload) in needed)
    domains = _domains(nodes)
    for key in needed:
        domains |= _domains(index.functions[key].nodes)
    kept = [opset for opset in imports if plain_domain(opset.domain) in domains]
    target.opset_import.extend(kept or [opset for opset in imports if not plain_domain(opset.domain)][:1] or imports)


def _imports(proto: ModelProto, scope: Scope) -> list[OperatorSetIdProto]:
    """Returns the opset imports that hold in a graph: a function has its own, which go before the model's."""
    root = root_of(scope)
    own = list(root.graph.opset_import) if root.is_function else []
    said = {plain_domain(opset.domain) for opset in own}
    return [*own, *(opset for opset in proto.opset_import if plain_domain(opset.domain) not in said)]


def _domains(nodes: Iterable[NodeProto]) -> set[str]:
    found: set[str] = set()
    pending: list[Iterable[NodeProto]] = [nodes]
    while pending:
        for node in pending.pop():
            found.add(node.domain)
            if node.attribute:
                pending.extend(body.node for _, body in node_bodies(node))
    return {plain_domain(domain) for domain in found}


def frontier(scope: Scope, positions: Collection[int]) -> tuple[list[str], list[str]]:
    """Returns the tensors that enter and leave a set of nodes, in graph order.

    Initializers are not among those that enter; graph outputs are among those that leave.
    """
    inside = set(positions)
    made = {name for position in inside for name in scope.writes[position]}
    graph_outputs = set(scope.outputs)
    entering: dict[str, None] = {}
    leaving: dict[str, None] = {}
    for position in sorted(inside):
        for name in scope.reads[position]:
            if name not in made and name not in scope.constants:
                entering[name] = None
        for name in scope.writes[position]:
            users = scope.consumers.get(name, ())
            if name in graph_outputs or any(user not in inside for user in users) or not users:
                leaving[name] = None
    used = {name for name in leaving if name in graph_outputs or scope.consumers.get(name)}
    return list(entering), [name for name in leaving if name in used] or list(leaving)


def lift(
    model: Model,
    path: str,
    *,
    index: GraphIndex | None = None,
    types: Mapping[str, TypeProto] | None = None,
    sources: Sequence[TypeSource] = (),
) -> Piece:
    """Returns a body (``If_3/then``) or function as a model of its own, its captures as inputs.

    Captured initializers come along as initializers; inputs follow in the body's order, captures after them.

    Raises:
        NotFoundError: There is no such body or function.
        UnsupportedError: A type cannot be found out, or a function needs attributes of its caller.
    """
    index = index or GraphIndex(model.proto)
    scope = index.scope_paths.get(path)
    if scope is None or scope is index.main:
        bodies = [name for name in index.scope_paths if name]
        hint = did_you_mean(path, bodies) or (
            f"Bodies and functions: {', '.join(bodies[:8])}" if bodies else "The model has no bodies and no functions."
        )
        raise NotFoundError(f"{path!r} is no body or function of the model", hint=hint)
    if scope.is_function and (scope.graph.attribute or scope.graph.attribute_proto):
        raise UnsupportedError(
            f"function {path} has attributes, whose values its callers give",
            hint="Extract around one of its calls instead, with --inline-functions.",
        )
    finder = TypeFinder(model, index, sources)
    captured, constants = _captured(scope)
    own = [*scope.true_inputs(), *captured]
    order = topological_order(scope)
    cut = Cut(
        inputs=tuple(own),
        outputs=tuple(dict.fromkeys(scope.outputs)),
        nodes=tuple(order if order is not None else range(len(scope.nodes))),
        constants=tuple(sorted(scope.constants | constants)),
        scope=path,
        total_nodes=len(scope.nodes),
    )
    return assemble(model, index, scope, cut, finder=finder, types=types)


def _captured(scope: Scope) -> tuple[list[str], set[str]]:
    """Splits what a body captures into tensors and initializers."""
    tensors, constants = [], set()
    for name in scope.captures:
        holder = home_of(scope, name)
        if holder is not None and name in holder.constants:
            constants.add(name)
        else:
            tensors.append(name)
    return tensors, constants


def expose(
    model: Model,
    outputs: Sequence[str],
    *,
    index: GraphIndex | None = None,
    types: Mapping[str, TypeProto] | None = None,
    sources: Sequence[TypeSource] = (),
) -> Piece:
    """Returns the whole model with further tensors of its main graph as outputs.

    Args:
        model: The model; it is not changed.
        outputs: Exact tensor names; those that are outputs already are left as they are.
        index: The model's index, if there is one already.
        types: Types that replace what is known of a tensor.
        sources: Where else to ask for types.

    Raises:
        NotFoundError: There is no tensor of one of these names.
        UnsupportedError: A tensor's element type cannot be found out.
    """
    index = index or GraphIndex(model.proto)
    scope = index.main
    _require_names(scope, outputs)
    new = [name for name in dict.fromkeys(outputs) if name not in set(scope.outputs)]
    cut = Cut((), tuple(new), tuple(range(len(scope.nodes))), (), total_nodes=len(scope.nodes))
    infos, boundaries, notes = _boundary_infos(scope, cut, TypeFinder(model, index, sources), types or {})
    proto = copy_of(model.proto)
    graph = proto.graph
    graph.output.extend(infos[name] for name in new)
    named = set(new)
    delete_named(graph.value_info, named)
    already = len(dict.fromkeys(outputs)) - len(new)
    if already:
        notes.append(f"{already} of the tensors {'were outputs' if already > 1 else 'was an output'} already")
    return Piece(model.derive(proto), cut, (), tuple(boundaries[name] for name in new), tuple(notes))


def require_main(refs: Sequence[TensorRef], *, what: str) -> list[str]:
    """Returns the names of tensors of the main graph.

    Raises:
        UnsupportedError: One lies inside a body or a function; the hint says how to get at it.
        UsageError: There are none.
    """
    if not refs:
        raise UsageError(f"{what}: no tensors are named")
    for ref in refs:
        if ref.scope.parent is not None:
            raise UnsupportedError(
                f"{what} {ref.path!r} lies inside a body, which runs any number of times or not at all,"
                " so it cannot be an output of the whole model",
                hint=f"Make that body a model of its own: --lift {ref.scope.path}",
            )
        if ref.scope.is_function:
            raise UnsupportedError(
                f"{what} {ref.path!r} lies inside a function",
                hint=f"Inline it with --inline-functions, or make it a model of its own: --lift {ref.scope.path}",
            )
    return [ref.name for ref in refs]
