"""Making the batch of a model dynamic: repairs of what exporters baked in, and the proof that they are right.

    made = make_batch_dynamic(model)                 # every input's first dimension becomes "batch"
    made.model, made.repairs, made.proof

The batch is followed through the model (``onnxbench.batching._tracing``, ``_rules``, ``_shaping``), what stands in
its way is repaired (``_mending``), and the result is run (``_proving``): the rows of a run at three batches at once
must equal three runs of the model as it was. A node that mixes samples up, or that cannot be repaired, is named, and
nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnxbench.batching._mending import Repair, mend
from onnxbench.batching._proving import SAMPLES, BatchProof, ProvenRows, Prover
from onnxbench.batching._rules import RULES
from onnxbench.batching._tracing import Blocked, Observed, Spread, Trace, node_path, trace
from onnxbench.draft import Draft
from onnxbench.errors import FeedsError, NotFoundError, RefusedResultError, UsageError, did_you_mean
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.graph import GraphIndex, tree_of
from onnxbench.messages import copy_of
from onnxbench.specs import parse_named
from onnxbench.tensortype import Dim, format_shape, tensor_shape

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

    from onnxbench.model import Model

_MOST_PROOFS = 4
"""So many choices of where the batch goes are run; that takes longer than to trace them."""

__all__ = [
    "BatchBlockedError",
    "BatchDynamic",
    "BatchOutput",
    "BatchProof",
    "ProvenRows",
    "Repair",
    "free_batch",
    "make_batch_dynamic",
]


class BatchBlockedError(RefusedResultError):
    """A node stands in the way of a dynamic batch.

    Attributes:
        position: The node, in the main graph.
    """

    def __init__(self, message: str, *, hint: str | None, position: int) -> None:
        super().__init__(message, hint=hint)
        self.position = position


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """An output of a model whose batch is dynamic.

    Attributes:
        name: The output.
        axis: The axis along which the samples lie; None if it does not depend on the batch.
        rows: How many entries along that axis one sample has.
        outer: Into how many blocks, each with a part of every sample, the axis is divided; 1 as a rule.
    """

    name: str
    axis: int | None
    rows: int = 1
    outer: int = 1


@dataclass(frozen=True, slots=True)
class BatchDynamic:
    """What making a batch dynamic did.

    Attributes:
        model: The new model.
        inputs: The inputs that carry the batch, with its axis in each.
        outputs: The outputs.
        batch: The size that the batch had.
        repairs: What was changed in the nodes.
        proof: What running it showed.
        notes: What a user should know beyond that.
    """

    model: Model
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[BatchOutput, ...]
    batch: int
    repairs: tuple[Repair, ...]
    proof: BatchProof
    notes: tuple[str, ...]


def make_batch_dynamic(
    model: Model,
    *,
    inputs: Sequence[str] | Mapping[str, int] | None = None,
    dim: int = 0,
    to: str = "batch",
    feeds: FeedOptions | None = None,
    atol: float | None = None,
    rtol: float | None = None,
) -> BatchDynamic:
    """Returns the model with a batch of any size, what was repaired for that, and the proof.

    Args:
        model: The model; it is not changed.
        inputs: The inputs that carry the batch: names, ``name:axis``, or axes by name. None: all that have ``dim``.
        dim: The axis of the batch in inputs for which no other is said.
        to: What the dimension is called.
        feeds: What to run on: three sets of data, or shapes and ranges to draw them in. Their batch is the model's.
        atol: How far apart rows may be, as a share of the largest value of their tensor; None: by element type.
        rtol: How far apart rows may be, as a share of the value.

    Raises:
        RefusedResultError: A node stands in the way; the message names it and says why.
        NotFoundError: There is no such input.
        UsageError: The inputs have no batch in common.
        FeedsError: The data does not fit.
        ExecutionError: ONNX Runtime does not run the model as it is.
        UnsupportedError: The opset is too old for a repair.
    """
    draft = Draft.of(model)
    return free_batch(draft, inputs=inputs, dim=dim, to=to, feeds=feeds, atol=atol, rtol=rtol)


def free_batch(
    draft: Draft,
    *,
    inputs: Sequence[str] | Mapping[str, int] | None = None,
    dim: int = 0,
    to: str = "batch",
    feeds: FeedOptions | None = None,
    atol: float | None = None,
    rtol: float | None = None,
) -> BatchDynamic:
    """Makes the batch of a draft dynamic in place; arguments, result and errors as for ``make_batch_dynamic``."""
    if not to or to.isdigit():
        raise UsageError(f"{to!r} is no name for a dimension", hint="Write a word, such as batch.")
    carrying = _carrying(draft, inputs, dim)
    sets = _samples(draft, carrying, feeds)
    batch = _old_batch(draft, carrying, sets)
    prover = Prover(draft, sets, carrying, batch, _interim, atol=atol, rtol=rtol)
    observed = Observed(draft, batch, prover.shapes(), sets[0], prover.probe, prover.value_of)
    source = next(iter(carrying.items()))
    weak: list[str] = []
    choices: dict[int, int] | None = None
    first: RefusedResultError | None = None
    for _ in range(_MOST_PROOFS):
        try:
            found, weak = _traced(observed, prover, carrying, choices)
        except Blocked as blocked:
            raise first or _refusal(observed, blocked) from None
        made = Draft.of(draft.model, folder=draft.folder)
        mend(made, found.mends, source, batch)
        _state(made, found, carrying, to, observed.shapes)
        try:
            proof = prover.prove(made.model, found.spreads)
            break
        except Blocked as blocked:
            first = first or _refusal(observed, blocked)
        except RefusedResultError as error:
            first = first or error
        choices = found.following
        if choices is None:
            raise first
    else:
        assert first is not None
        raise first
    repairs = mend(draft, found.mends, source, batch)
    _state(draft, found, carrying, to, observed.shapes)
    outputs = tuple(_described(name, found.spreads.get(name)) for name in draft.main.outputs)
    notes = [
        f"output {each.name!r} has {each.rows} rows of axis {each.axis} for each sample"
        for each in outputs
        if each.axis is not None and each.rows > 1
    ]
    notes += [f"output {each.name!r} does not depend on the batch" for each in outputs if each.axis is None]
    notes += [*weak, *proof.notes]
    draft.notes += [_summary(proof), *notes]
    return BatchDynamic(
        draft.model, tuple(carrying.items()), outputs, batch, tuple(repairs), proof, tuple(notes)
    )  # fmt: skip


def _summary(proof: BatchProof) -> str:
    at = " and ".join(map(str, proof.batches))
    off = max((each.worst.max_abs or 0.0 for each in proof.outputs), default=0.0)
    how = "equal bit for bit" if proof.exact else f"equal within {off:.3g}"
    return f"run at batches {at}: the outputs of each sample are {how}, {proof.inner} inner tensors agree"


def _refusal(observed: Observed, blocked: Blocked) -> BatchBlockedError:
    node = observed.draft.main.nodes[blocked.position]
    path = node_path(observed, blocked.position)
    return BatchBlockedError(
        f"the batch cannot be made dynamic: {node.op_type} {path!r} {blocked.reason}",
        hint=blocked.hint,
        position=blocked.position,
    )


def _traced(
    observed: Observed, prover: Prover, carrying: Mapping[str, int], choices: dict[int, int] | None
) -> tuple[Trace, list[str]]:
    """Returns where the batch is; if a node stands in the way, then in the outputs alone, where samples do not mix.

    Sorting sequences by their length before a recurrent layer, and back behind it, is the usual case.

    Raises:
        Blocked: Samples do mix, or cannot be told apart.
    """
    try:
        return trace(observed, carrying, RULES, choices), []
    except Blocked as blocked:
        spreads = prover.prove_outputs(blocked.mends)
        if spreads is None:
            raise
        node = observed.draft.main.nodes[blocked.position]
        note = (
            f"{node.op_type} {node_path(observed, blocked.position)!r} {blocked.reason}, but the outputs do not show it"
        )
        return Trace(spreads, blocked.mends, only_outputs=True), [note]


def _described(name: str, spread: Spread | None) -> BatchOutput:
    return BatchOutput(name, None) if spread is None else BatchOutput(name, spread.axis, spread.factor, spread.outer)


# ---------------------------------------------------------------- which inputs, and how large


def _carrying(draft: Draft, inputs: Sequence[str] | Mapping[str, int] | None, dim: int) -> dict[str, int]:
    """Returns the inputs that carry the batch, with its axis."""
    shapes = {name: _input_shape(draft, name) for name in draft.main.true_inputs()}
    if inputs is None:
        chosen = {name: dim for name, shape in shapes.items() if shape is not None and len(shape) > max(dim, -dim - 1)}
        if not chosen:
            raise UsageError(f"no input has a dimension {dim}", hint="Say which inputs carry the batch, and where.")
    elif isinstance(inputs, Mapping):
        chosen = {str(name): int(axis) for name, axis in inputs.items()}
    else:
        chosen = {}
        for word in inputs:
            if word in shapes or ":" not in word:
                chosen[word] = dim
            else:
                chosen.update(
                    {str(name): axis for name, axis in parse_named([word], shapes, _axis, what="inputs").items()}
                )
    for name, axis in chosen.items():
        if name not in shapes:
            known = did_you_mean(name, shapes) or f"Inputs: {', '.join(shapes)}."
            raise NotFoundError(f"there is no input {name!r}", hint=known)
        shape = shapes[name]
        if shape is None:
            raise UsageError(
                f"the model does not say how many dimensions input {name!r} has", hint="set_shape says it."
            )
        if not -len(shape) <= axis < len(shape):
            raise UsageError(f"input {name!r} has no dimension {axis}: it is {format_shape(shape)}")
        chosen[name] = axis % len(shape)
    return chosen


def _axis(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{text!r} is no dimension", hint="Write input:0.") from None


def _input_shape(draft: Draft, name: str) -> tuple[Dim, ...] | None:
    info = next(info for info in draft.main.graph.input if info.name == name)
    return tensor_shape(info.type)


def _samples(draft: Draft, carrying: Mapping[str, int], feeds: FeedOptions | None) -> list[dict[str, Any]]:
    """Returns three sets of inputs that differ only in those that carry the batch."""
    options = replace(feeds or FeedOptions(), iterations=SAMPLES)
    sets = [dict(each.feeds) for each in feed_sets(draft.model, options, index=draft.index)]
    if len(sets) < SAMPLES:
        raise FeedsError(f"{SAMPLES} sets of inputs are needed, and there are {len(sets)}")
    return [{name: each[name] if name in carrying else sets[0][name] for name in each} for each in sets[:SAMPLES]]


def _old_batch(draft: Draft, carrying: Mapping[str, int], sets: Sequence[Mapping[str, Any]]) -> int:
    sizes = {name: [each[name].shape[axis] for each in sets] for name, axis in carrying.items()}
    found = {size for each in sizes.values() for size in each}
    if len(found) != 1:
        listed = ", ".join(f"{name}: {each[0]} at {carrying[name]}" for name, each in sizes.items())
        raise UsageError(
            f"the inputs have no batch in common ({listed})",
            hint="Say which inputs carry the batch, and at which dimension: inputs: [x, state:1].",
        )
    (batch,) = found
    if not batch:
        raise UsageError("the batch is 0 in the data")
    return int(batch)


# ---------------------------------------------------------------- what the model states of it


def _interim(draft: Draft, mends: Sequence[Any], carrying: Mapping[str, int], batch: int) -> Model:
    """Returns the model with some repairs made, and nothing stated but its inputs."""
    made = Draft.of(draft.model, folder=draft.folder)
    mend(made, mends, next(iter(carrying.items())), batch)
    for scope in made.index.scopes:
        del scope.graph.value_info[:]
        if not scope.is_function:
            _forget_sizes(scope.graph.output if scope is made.main else (*scope.graph.input, *scope.graph.output))
    for info in made.main.graph.input:
        if info.name in carrying:
            _set_dim(info, carrying[info.name], "batch")
    return made.model


def _state(
    draft: Draft, found: Trace, carrying: Mapping[str, int], to: str, shapes: Mapping[str, Sequence[int]]
) -> None:
    """States the new sizes: of the main graph as the trace tells them, in bodies as inference does.

    Where the model states another rank than its tensors have when it runs, nothing that it states of their dimensions
    can be meant.
    """
    graph: GraphProto = draft.main.graph
    was_fixed = False
    for info in graph.input:
        if info.name in carrying:
            before = _dim_word(info, carrying[info.name])
            was_fixed |= before.isdigit()
            _set_dim(info, carrying[info.name], to)
            if before != to:
                draft.record("input", info.name, f"dimension {carrying[info.name]}", before=before, after=to)
    kept = [list(map(copy_of, infos)) for infos in (graph.value_info, graph.output)]
    bodies = _touched_bodies(draft, found) if found.mends or was_fixed else []
    draft.touch()
    if found.only_outputs:
        draft.retype(draft.main, list(carrying), strictly=True, same_rank=True)
        draft.refresh_types()
        kept = [list(map(copy_of, draft.main.graph.value_info)), kept[1]]
    if bodies:
        index = draft.index.scope_paths
        for path in bodies:
            scope = index[path]
            if scope.is_function:
                _forget_sizes(scope.graph.value_info)
            else:
                _forget_sizes(scope.graph.input)
                draft.retype(scope, list(scope.tensor_names()), strictly=True, same_rank=True)
        draft.refresh_types()
        graph = draft.main.graph
        for infos, before_infos in zip((graph.value_info, graph.output), kept, strict=True):
            del infos[:]
            infos.extend(before_infos)
    for info in (*graph.value_info, *graph.output):
        spread = found.spreads.get(info.name)
        if spread is None or info.name in carrying:
            continue
        shape = tensor_shape(info.type)
        if shape is None:
            continue
        is_output = info.name in draft.main.outputs
        rank = len(shapes.get(info.name, shape))
        if rank != len(shape):
            info.type.tensor_type.shape.ClearField("dim")
            for _ in range(rank):
                info.type.tensor_type.shape.dim.add()
            if is_output:
                draft.notes.append(f"output {info.name!r} was stated with {len(shape)} dimensions, and has {rank}")
        if spread.axis < rank:
            before, after = _dim_word(info, spread.axis), to if spread.is_pure else None
            _set_dim(info, spread.axis, after)
            if is_output and before != (after or "?"):
                draft.record("output", info.name, f"dimension {spread.axis}", before=before, after=after or "?")
    draft.touch()


def _forget_sizes(infos: Iterable[ValueInfoProto]) -> None:
    for info in infos:
        if info.type.WhichOneof("value") == "tensor_type":
            for dim in info.type.tensor_type.shape.dim:
                dim.ClearField("dim_value")


def _set_dim(info: ValueInfoProto, axis: int, to: str | None) -> None:
    dim = info.type.tensor_type.shape.dim[axis]
    dim.ClearField("dim_value")
    dim.ClearField("dim_param")
    if to is not None:
        dim.dim_param = to


def _dim_word(info: ValueInfoProto, axis: int) -> str:
    dim = (tensor_shape(info.type) or ())[axis]
    return "?" if dim is None else str(dim)


def _touched_bodies(draft: Draft, found: Trace) -> list[str]:
    """Returns the paths of the bodies and functions that see the batch."""
    scope, paths = draft.main, []
    functions = []
    for position, names in enumerate(scope.reads):
        if not any(name in found.spreads for name in names):
            continue
        for body in scope.bodies.get(position, ()):
            paths += [inner.path for inner in tree_of(body)]
            functions += [node for inner in tree_of(body) for node in inner.nodes]
        functions.append(scope.nodes[position])
    index: GraphIndex = draft.index
    for key in index.function_closure(functions):
        paths += [inner.path for inner in tree_of(index.functions[key])]
    return paths
