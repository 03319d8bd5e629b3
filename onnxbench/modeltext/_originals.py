"""Weights that a text leaves out: what they are called, and putting them back.

A tensor is found again by names: an initializer by its name and its graph, a tensor in an attribute by the first
output of its node, and a body by the first output of the node that owns it. Positions would be simpler, and after
an edit they would silently give a tensor the weights of its neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.errors import SpecError, did_you_mean
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.modeltext._syntax import (
    ELIDED,
    GRAPH,
    GRAPHS,
    SPARSE,
    SPARSES,
    TENSOR,
    TENSORS,
    type_word,
)
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

ScopeKey = tuple[object, ...]
"""A graph by names: ``("main",)``, then (first output of the owner, attribute, position in its list) per body."""
TensorKey = tuple[object, ...]
"""A tensor: the key of its graph, then (what, name) or (first output of its node, attribute, position, what)."""

_GRAPH_TENSORS = ("initializer", "values", "indices")


@dataclass(frozen=True, slots=True)
class Elided:
    """A tensor whose values a text leaves out.

    Attributes:
        key: Where it is.
        old_name: What it, or the node it belongs to, was called in the original, if the text says so.
        offset: Where in the text its values would be.
    """

    key: TensorKey
    old_name: str | None
    offset: int


class ErrorAt:
    """What can make an error that points at an offset of a text (the reader)."""

    def error(self, message: str, *, at: int | None = None, hint: str | None = None) -> SpecError:
        """Returns the error."""
        raise NotImplementedError


def keyed_tensors(proto: ModelProto) -> Iterator[tuple[TensorKey, TensorProto]]:
    """Yields every tensor of a model with its key."""
    stack: list[tuple[ScopeKey, GraphProto | FunctionProto]] = [(("main",), proto.graph)]
    stack += [(function_key(each), each) for each in proto.functions]
    for number, training in enumerate(proto.training_info):
        stack.append((("training", number, "initialization"), training.initialization))
        stack.append((("training", number, "algorithm"), training.algorithm))
    while stack:
        scope, graph = stack.pop()
        if hasattr(graph, "initializer"):
            for tensor in graph.initializer:
                yield (*scope, "initializer", tensor.name), tensor
            for sparse in graph.sparse_initializer:
                yield (*scope, "values", sparse.values.name), sparse.values
                yield (*scope, "indices", sparse.values.name), sparse.indices
        else:
            for attribute in graph.attribute_proto:
                yield from _attribute_tensors(attribute, (*scope, ""))
        for position, node in enumerate(graph.node):
            if not node.attribute:
                continue
            owner = (*scope, owner_name(node, position))
            for attribute in node.attribute:
                if attribute.type in (GRAPH, GRAPHS):
                    bodies = [attribute.g] if attribute.type == GRAPH else attribute.graphs
                    stack += [((*owner, attribute.name, at), body) for at, body in enumerate(bodies)]
                else:
                    yield from _attribute_tensors(attribute, owner)


def function_key(function: FunctionProto) -> ScopeKey:
    """Returns the key of a local function's graph."""
    return "function", function.domain, function.name, function.overload


def owner_name(node: NodeProto, position: int) -> str:
    """Returns what a node is called in keys: its first output, or its position if it makes nothing."""
    return next(filter(None, node.output), f"#{position}")


def _attribute_tensors(attribute: AttributeProto, owner: TensorKey) -> Iterator[tuple[TensorKey, TensorProto]]:
    kind = attribute.type
    if kind in (TENSOR, TENSORS):
        for at, tensor in enumerate([attribute.t] if kind == TENSOR else attribute.tensors):
            yield (*owner, attribute.name, at, "value"), tensor
    elif kind in (SPARSE, SPARSES):
        for at, sparse in enumerate([attribute.sparse_tensor] if kind == SPARSE else attribute.sparse_tensors):
            yield (*owner, attribute.name, at, "values"), sparse.values
            yield (*owner, attribute.name, at, "indices"), sparse.indices


def mark_elided(tensor: TensorProto, number: int) -> None:
    """Makes a tensor a placeholder for elided values ``number``."""
    tensor.data_location = type(tensor).EXTERNAL
    tensor.external_data.add(key="location", value=f"{ELIDED}{number}")


def fill_elided(model: Model, elided: Sequence[Elided], original: Model | None, text: ErrorAt) -> None:
    """Puts the values that a text leaves out back in place: copied, or referred to where they lie in a file.

    Raises:
        SpecError: There is no ``original``, or it has no such tensor, or several, or one of another type.
    """
    if original is None:
        raise _nothing_to_fill_from(elided, text)
    known, ambiguous = _tensor_table(original.proto)
    for target in weights.tensors(model.proto):
        said = weights.entries(target).get("location", "") if weights.is_outside(target) else ""
        if not said.startswith(ELIDED):
            continue
        each = elided[int(said[len(ELIDED) :])]
        source = _find_original(text, each, known, ambiguous)
        if source.data_type != target.data_type or list(source.dims) != list(target.dims):
            raise text.error(
                f"{_describe(each.key)} is {type_word(target.data_type)}{list(target.dims)} here and "
                f"{type_word(source.data_type)}{list(source.dims)} in the model that its values come from",
                at=each.offset,
            )
        _copy_data(original, source, target)
    model.sources.update(original.sources)


def _nothing_to_fill_from(elided: Sequence[Elided], text: ErrorAt) -> SpecError:
    error = text.error(
        f"the values of {_describe(elided[0].key)} are left out",
        at=elided[0].offset,
        hint="Take them from the model that was shown with --weights-from MODEL, or show it with --weights inline.",
    )
    others = len(elided) - 1
    more = [f"and those of {plural(others, 'more tensor')}"] if others else []
    return SpecError(error.message, hint=error.hint, details=(*error.details, *more))


def _tensor_table(proto: ModelProto) -> tuple[dict[TensorKey, TensorProto], set[TensorKey]]:
    """Returns the tensors by key, and by their name in whatever graph; and the keys that stand for several."""
    known: dict[TensorKey, TensorProto] = {}
    ambiguous: set[TensorKey] = set()
    for key, tensor in keyed_tensors(proto):
        for each in (key, ("anywhere", *_leaf(key))):
            if each in known:
                ambiguous.add(each)
            known[each] = tensor
    return known, ambiguous


def _leaf(key: TensorKey) -> TensorKey:
    """Returns the part of a key that names a tensor within its graph."""
    return key[-2:] if key[-2] in _GRAPH_TENSORS else key[-4:]


def _find_original(
    text: ErrorAt, each: Elided, known: dict[TensorKey, TensorProto], ambiguous: set[TensorKey]
) -> TensorProto:
    leaf = _leaf(each.key)
    scope = each.key[: -len(leaf)]
    named_at = 1 if len(leaf) == 2 else 0
    if each.old_name is not None:
        leaf = tuple(each.old_name if at == named_at else part for at, part in enumerate(leaf))
    own, anywhere = (*scope, *leaf), ("anywhere", *leaf)
    key = own if own in known else anywhere
    if key in known and key not in ambiguous:
        return known[key]
    where = _describe(each.key)
    if key in ambiguous:
        raise text.error(
            f"{where}: the model that its values come from has several tensors of this name",
            at=each.offset,
            hint="Show that model with --weights inline.",
        )
    names = {str(_leaf(other)[named_at]) for other in known if len(_leaf(other)) == len(leaf)}
    near = did_you_mean(str(leaf[named_at]), names)
    raise text.error(
        f"{where}: the model that its values come from has no such tensor",
        at=each.offset,
        hint=f'{near + " " if near else ""}If it was renamed, write the old name: {{... "old"}}.',
    )


def _describe(key: TensorKey) -> str:
    leaf = _leaf(key)
    if len(leaf) == 2:
        return f"{'initializer' if leaf[0] == 'initializer' else f'the {leaf[0]} of'} {leaf[1]!r}"
    return f"attribute {leaf[1]!r} of the node that makes {leaf[0]!r}"


def _copy_data(original: Model, source: TensorProto, target: TensorProto) -> None:
    """Gives ``target`` the data of ``source``: what is in the structure is copied, what lies outside referred to."""
    weights.clear_data(target)
    where = original.byte_range(source)
    if where is not None:
        weights.refer(target, where)
        return
    data = copy_of(source)
    for descriptor, _ in source.ListFields():
        if descriptor.name not in weights.DATA_FIELDS:
            data.ClearField(descriptor.name)
    target.MergeFrom(data)
