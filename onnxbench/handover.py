"""What nodes hand to their bodies: whether what a body states of its inputs still holds after an edit.

A body of Loop or Scan states the types of its inputs, and inference believes them. Where the state that a loop begins
with, or the sequence that it goes through, has other sizes than before, the statement is wrong, and so is all that is
inferred from it. What Scan hands over has the same sizes each time, so these are stated instead. A Loop may change its
state as it goes, so a size that is not what it begins with any more is left open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from onnxbench.graph import GraphIndex, Scope
from onnxbench.inference import TypeFinder
from onnxbench.messages import copy_of
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import Dim, elem_type, tensor_shape

if TYPE_CHECKING:
    from onnx import NodeProto, TypeProto, ValueInfoProto

    from onnxbench.model import Model

_FIRST_SCAN_WITHOUT_BATCH = 9


def correct_sizes(
    model: Model,
    index: GraphIndex,
    affected: Mapping[Scope, Collection[str]],
    *,
    before: Model,
    strictly: bool,
    opset: Callable[[Scope], int],
) -> Iterator[tuple[Scope, ValueInfoProto, TypeProto]]:
    """Corrects sizes that bodies state of their inputs and that are not those of what they are given now.

    One inference for each depth at which there are such bodies; outer ones first, for what they state tells the inner.

    Args:
        model: The model, which is changed.
        index: Its index.
        affected: The tensors whose types may be others now, by graph.
        before: The model before the edit. Sizes that inference could not tell there either stay.
        strictly: They do not.
        opset: Tells the opset version of a graph.

    Yields:
        Each body, input and former type that was changed.
    """
    pending = {
        scope: [info for info in scope.graph.input if info.name in affected[scope] and _has_sizes(info.type)]
        for scope in affected
        if scope.parent is not None and not scope.is_function
    }
    pending = {scope: infos for scope, infos in pending.items() if infos and not _is_in_function(scope)}
    for depth in sorted({scope.depth for scope in pending}):
        wanted = {scope: infos for scope, infos in pending.items() if scope.depth >= depth}
        finder = _finder(model, {scope.path: affected[scope] for scope in affected}, wanted)
        earlier: TypeFinder | None = None
        for scope in [scope for scope in wanted if scope.depth == depth]:
            given = _given(scope, opset(scope))
            for info in wanted[scope]:
                name, axis = given.get(info.name, ("", None))
                now = _handed(finder, scope, name, axis)
                then: tuple[Dim, ...] | None = None
                if not strictly and (now is None or any(not isinstance(size, int) for size in now[1])):
                    if earlier is None:
                        earlier = _finder(before, {each.path: affected[each] for each in affected}, wanted)
                    told = _handed(earlier, scope, name, axis)
                    then = told[1] if told is not None else None
                old = copy_of(info.type)
                is_scan = scope.parent is not None and scope.parent.nodes[scope.owner].op_type == "Scan"
                if _restate(info.type, now, then, strictly=strictly, exactly=is_scan):
                    yield scope, info, old


def _has_sizes(kind: TypeProto) -> bool:
    return any(isinstance(size, int) for size in tensor_shape(kind) or ())


def _is_in_function(scope: Scope) -> bool:
    while scope.parent is not None:
        scope = scope.parent
    return scope.is_function


def _finder(
    model: Model, affected: Mapping[str, Collection[str]], wanted: Mapping[Scope, list[ValueInfoProto]]
) -> TypeFinder:
    """Returns what tells the types of tensors without believing what is stated of these."""
    proto = copy_of(model.proto)
    index = GraphIndex(proto)
    for path, names in affected.items():
        scope = index.scope_paths.get(path)
        for info in (
            () if scope is None else (*scope.graph.value_info, *(() if scope.is_function else scope.graph.output))
        ):
            if info.name in names and scope is not None and info.name not in scope.inputs:
                info.ClearField("type")
    for body, infos in wanted.items():
        scope = index.scope_paths.get(body.path)
        names = {info.name for info in infos}
        for info in () if scope is None or scope.is_function else scope.graph.input:
            for dim in info.type.tensor_type.shape.dim if info.name in names else ():
                dim.ClearField("dim_value")
    return TypeFinder(model.derive(proto), index)


def _given(body: Scope, opset: int) -> dict[str, tuple[str, int | None]]:
    """Returns what a body's inputs get: the tensor of the graph around, and the axis of it that Scan goes along."""
    assert body.parent is not None
    node: NodeProto = body.parent.nodes[body.owner]
    if plain_domain(node.domain):
        return {}
    names = list(node.input)
    if node.op_type == "Loop":
        return {inner: (outer, None) for inner, outer in list(zip(body.inputs, names, strict=False))[2:]}
    if node.op_type == "Scan" and opset >= _FIRST_SCAN_WITHOUT_BATCH:
        said = {attribute.name: attribute for attribute in node.attribute}
        states = len(names) - said["num_scan_inputs"].i
        axes = list(said["scan_input_axes"].ints) if "scan_input_axes" in said else [0] * (len(names) - states)
        along: list[int | None] = [*[None] * states, *axes]
        return dict(zip(body.inputs, zip(names, along, strict=True), strict=False))
    return {}


def _handed(finder: TypeFinder, body: Scope, name: str, axis: int | None) -> tuple[int, tuple[Dim, ...]] | None:
    """Returns element type and shape of what a body's input gets, or None if they are not known."""
    scope = finder.index.scope_paths.get(body.parent.path) if body.parent is not None else None
    kind = finder.find(scope, [name]).get(name) if scope is not None and name else None
    shape = tensor_shape(kind) if kind is not None else None
    if kind is None or shape is None:
        return None
    if axis is not None:
        if not -len(shape) <= axis < len(shape):
            return None
        axis %= len(shape)
        shape = (*shape[:axis], *shape[axis + 1 :])
    return elem_type(kind), shape


def _restate(
    stated: TypeProto,
    now: tuple[int, tuple[Dim, ...]] | None,
    then: tuple[Dim, ...] | None,
    *,
    strictly: bool,
    exactly: bool,
) -> bool:
    """Opens or corrects the sizes that do not hold any more, and tells whether there were any."""
    dims = stated.tensor_type.shape.dim
    sizes: list[Dim] = [None] * len(dims)
    changed = False
    if now is not None:
        sizes = list(now[1])
        if len(sizes) != len(dims):
            del dims[:]
            for size in sizes:
                dims.add(**({"dim_value": size} if exactly and isinstance(size, int) else {}))
            return True
    was = list(then) if then is not None and len(then) == len(dims) else [None] * len(dims)
    for dim, size, earlier in zip(dims, sizes, was, strict=True):
        if not dim.HasField("dim_value") or size == dim.dim_value:
            continue
        if not isinstance(size, int) and not isinstance(earlier, int) and not strictly:
            continue  # what was stated is all that is known, now as before
        dim.ClearField("dim_value")
        if exactly and isinstance(size, int):
            dim.dim_value = size
        changed = True
    return changed
