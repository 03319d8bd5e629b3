"""Types that a model states of its tensors, found and stated anew where an edit called them into question."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.inference import TypeFinder, inferred, without_made_up_dims
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.tensortype import elem_type, format_type, is_complete, tensor_shape

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto, ValueInfoProto


@dataclass(frozen=True, slots=True)
class Said:
    """A type that was stated and may no longer hold."""

    scope: Scope
    info: ValueInfoProto
    before: TypeProto
    is_output: bool


def downstream(
    seeds: Iterable[tuple[Scope, str]],
    *,
    stops: Callable[[Scope, str], bool],
    calls_of: Callable[[Scope], Iterable[NodeRef]],
) -> dict[Scope, set[str]]:
    """Returns the tensors that depend on these, themselves included, by graph: in bodies, and behind their owners.

    Behind a function's outputs lies what its calls make.

    Tensors at which ``stops`` says so are left out, and what lies behind them.
    """
    reached: dict[Scope, set[str]] = {}
    pending = list(seeds)
    while pending:
        scope, name = pending.pop()
        names = reached.setdefault(scope, set())
        if name in names or stops(scope, name):
            continue
        names.add(name)
        for position in scope.consumers.get(name, ()):
            pending.extend((scope, made) for made in scope.writes[position])
            for body in scope.bodies.get(position, ()):
                if name in body.captures:
                    pending.append((body, name))
                else:
                    pending.extend((body, given) for given in body.inputs)
        if scope.is_function and name in scope.outputs:
            pending.extend((call.scope, made) for call in calls_of(scope) for made in call.scope.writes[call.position])
        if scope.parent is not None and name in scope.outputs:
            pending.extend((scope.parent, made) for made in scope.parent.writes[scope.owner])
    return reached


def withdraw(scope: Scope, names: Collection[str]) -> list[Said]:
    """Clears what a graph states of the types of tensors that it makes, and returns it."""
    said = []
    for infos, is_output in ((scope.graph.value_info, False), (scope.graph.output, True)):
        for info in infos:
            if info.name in names and info.name not in scope.inputs:
                before = copy_of(info.type)
                said.append(Said(scope, info, before, is_output))
                info.ClearField("type")
    return said


def restate(
    said: Sequence[Said], *, model: Model, origin: Model, finder: TypeFinder, strictly: bool, same_rank: bool
) -> list[tuple[str, str, str]]:
    """States anew, where they were stated, the types that were withdrawn, and removes value infos that nothing tells.

    Args:
        said: What was withdrawn.
        model: The model as it is now.
        origin: The model before the edit.
        finder: Finds what inference alone does not tell of an output.
        strictly: Whether no stated size is believed any more.
        same_rank: Whether no tensor has another number of dimensions than before.

    Returns:
        The outputs of the model whose type is another one now: name, the type before, the type now.
    """
    wanted: dict[str, set[str]] = {}
    for each in said:
        wanted.setdefault(each.scope.path, set()).add(each.info.name)
    found = _told(model, model.proto, wanted)
    changed: list[tuple[str, str, str]] = []
    earlier: dict[tuple[str, str], TypeProto] | None = None
    for each in said:
        info, is_main = each.info, not each.scope.path
        now = found.get((each.scope.path, info.name))
        if not is_complete(now) and each.is_output and is_main:
            now = finder.find(each.scope, [info.name]).get(info.name)
        if now is not None and is_complete(now):
            _restate_type(info.type, each.before, now)
            if not strictly and _knows_less(now, each.before):
                if earlier is None:
                    earlier = _told_before(origin, wanted)
                _keep_sizes(info.type, each.before, earlier.get((each.scope.path, info.name)))
            _keep_names(info.type, each.before)
            if same_rank and tensor_shape(now) is None and each.is_output:
                _keep_rank(info.type, each.before, sizes=not strictly)
        elif each.is_output:
            info.type.CopyFrom(each.before)
            if info.type.WhichOneof("value") == "tensor_type":
                info.type.tensor_type.ClearField("shape")
                if same_rank:
                    _keep_rank(info.type, each.before, sizes=not strictly)
        if each.is_output:
            _open_shape(info.type, each.before)
        words = format_type(each.before), format_type(info.type)
        if each.is_output and is_main and words[0] != words[1]:
            changed.append((info.name, *words))
    for scope in {each.scope.path: each.scope for each in said}.values():
        infos = scope.graph.value_info
        for position in reversed(range(len(infos))):
            if not infos[position].HasField("type"):
                del infos[position]
    return changed


def _told(model: Model, proto: ModelProto, wanted: Mapping[str, set[str]]) -> dict[tuple[str, str], TypeProto]:
    """Returns what inference tells of tensors, by path of graph and name."""
    if not wanted:
        return {}
    result = inferred(model.with_small_weights(proto))
    graphs = {"": result.graph}
    if set(wanted) != {""}:
        graphs = {path: scope.graph for path, scope in GraphIndex(result).scope_paths.items() if not scope.is_function}
    return {
        (path, info.name): without_made_up_dims(info.type)
        for path, names in wanted.items()
        if path in graphs
        for info in (*graphs[path].value_info, *graphs[path].output)
        if info.name in names
    }


def _told_before(origin: Model, wanted: Mapping[str, set[str]]) -> dict[tuple[str, str], TypeProto]:
    """Returns what inference told of tensors before the edit, where the model stated nothing of them."""
    proto = copy_of(origin.proto)
    for path, scope in GraphIndex(proto).scope_paths.items():
        if path in wanted and not scope.is_function:
            withdraw(scope, wanted[path])
    return _told(origin, proto, wanted)


def _restate_type(stated: TypeProto, before: TypeProto, now: TypeProto) -> None:
    """Makes a type that was stated say what is known now; denotations and all else that it said of itself stay."""
    stated.CopyFrom(before)
    if not before.WhichOneof("value") == now.WhichOneof("value") == "tensor_type":
        stated.CopyFrom(now)
        if before.denotation:
            stated.denotation = before.denotation
        return
    tensor, shape = stated.tensor_type, tensor_shape(now)
    tensor.elem_type = elem_type(now)
    if shape is None:
        tensor.ClearField("shape")
    elif not tensor.HasField("shape") or len(tensor.shape.dim) != len(shape):
        tensor.shape.CopyFrom(now.tensor_type.shape)
    else:
        for dim, size in zip(tensor.shape.dim, shape, strict=True):
            dim.ClearField("value")
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size


def _knows_less(now: TypeProto, before: TypeProto) -> bool:
    """Tells whether a size that was stated is unknown now."""
    new, old = tensor_shape(now), tensor_shape(before)
    if old is None or elem_type(now) != elem_type(before):
        return False
    if new is None:
        return True
    return len(new) == len(old) and any(a is None and isinstance(b, int) for a, b in zip(new, old, strict=True))


def _keep_sizes(now: TypeProto, before: TypeProto, earlier: TypeProto | None) -> None:
    """Keeps stated sizes that inference could not tell before the edit either."""
    told = tensor_shape(earlier) if earlier is not None else None
    old, new = tensor_shape(before), tensor_shape(now)
    if old is None or (earlier is not None and told is not None and len(told) != len(old)):
        return
    if new is None:
        if told is None:
            now.tensor_type.shape.CopyFrom(before.tensor_type.shape)
        return
    for position, (size, stated) in enumerate(zip(new, old, strict=True)):
        if size is None and isinstance(stated, int) and (told is None or told[position] is None):
            now.tensor_type.shape.dim[position].CopyFrom(before.tensor_type.shape.dim[position])


def _open_shape(now: TypeProto, before: TypeProto) -> None:
    """Opens all sizes of an output whose shape nothing tells: onnx's checker wants an output to have a shape."""
    if tensor_shape(now) is None and tensor_shape(before) is not None and now.HasField("tensor_type"):
        now.tensor_type.shape.CopyFrom(before.tensor_type.shape)
        for dim in now.tensor_type.shape.dim:
            dim.ClearField("value")


def _keep_names(now: TypeProto, before: TypeProto) -> None:
    """Keeps the names of dimensions whose size is still unknown."""
    old, new = tensor_shape(before), tensor_shape(now)
    if old is None or new is None or len(old) != len(new):
        return
    for position, (size, stated) in enumerate(zip(new, old, strict=True)):
        if size is None and isinstance(stated, str):
            now.tensor_type.shape.dim[position].CopyFrom(before.tensor_type.shape.dim[position])


def _keep_rank(now: TypeProto, before: TypeProto, *, sizes: bool) -> None:
    """Keeps the number of dimensions that was stated, their names, and if they can be relied on, their sizes."""
    if before.WhichOneof("value") == now.WhichOneof("value") == "tensor_type" and before.tensor_type.HasField("shape"):
        shape = now.tensor_type.shape
        shape.CopyFrom(before.tensor_type.shape)
        for dim in () if sizes else shape.dim:
            if dim.HasField("dim_value"):
                dim.ClearField("dim_value")
