"""Types and shapes of tensors: what the model states, what its operators imply, what a runtime says.

Two thirds of real models state no type for any inner tensor. Sources are asked in the order of their cost and
only for what is still unknown: statements in the file, onnx's shape inference (in full, with data
propagation, over the structure; weights are not read), and last the callables that a caller hands in, which
are bridges to symbolic inference or to a runtime that types operators of its own (``onnxbench.backends``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.graph import GraphIndex, Scope, declared_types
from onnxbench.tensortype import is_complete, tensor_shape

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto

    from onnxbench.model import Model

TypeSource = Callable[["Model", Sequence[str]], "dict[str, TypeProto]"]
"""Given a model and names of tensors in its main graph, returns the types it can tell."""


def inferred(proto: ModelProto) -> ModelProto:
    """Returns the model with the types that onnx's inference adds, or as it was where inference gives up."""
    from onnx import shape_inference

    data = without_places(proto).SerializeToString()
    for propagate in (True, False):
        try:
            result = shape_inference.infer_shapes(data, data_prop=propagate)
        except Exception:  # onnx raises RuntimeError, InferenceError, ValueError and others from C++ alike
            continue
        return result
    return proto


def without_places(proto: ModelProto) -> ModelProto:
    """Returns the model with tensors outside the structure left without their place, for tools that look at it."""
    if not any(weights.is_outside(tensor) for tensor in weights.tensors(proto)):
        return proto
    copy = type(proto)()
    copy.CopyFrom(proto)
    for tensor in weights.tensors(copy):
        if weights.is_outside(tensor):
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="elsewhere")
    return copy


def inferred_types(proto: ModelProto, names: Iterable[str]) -> dict[str, TypeProto]:
    """Returns the types that inference gave to these tensors of the main graph.

    Args:
        proto: A model that went through ``inferred``.
        names: The tensors of interest; others cost one look at their name.
    """
    wanted = set(names)
    infos = (*proto.graph.value_info, *proto.graph.output)
    return {info.name: without_made_up_dims(info.type) for info in infos if info.name in wanted}


def without_made_up_dims(value: TypeProto) -> TypeProto:
    """Removes, in place, the ``unk__7`` names that inference invents: a name promises equality with its namesakes."""
    if value.WhichOneof("value") == "tensor_type":
        for dim in value.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):
                dim.ClearField("dim_param")
    return value


class TypeFinder:
    """Types of a model's tensors, found step by step and remembered.

    Args:
        model: The model; it is not changed.
        index: Its index.
        sources: Further places to ask, dearest last.
    """

    def __init__(self, model: Model, index: GraphIndex, sources: Sequence[TypeSource] = ()) -> None:
        self._model = model
        self._index = index
        self._sources = sources
        self._known: dict[str, dict[str, TypeProto]] = {}
        self._inferred: ModelProto | None = None
        self._inferred_index: GraphIndex | None = None

    def find(self, scope: Scope, names: Iterable[str]) -> dict[str, TypeProto]:
        """Returns the types of these tensors of a graph; a name that no source can tell is absent.

        A type whose element type is known and whose rank is not is complete enough to be returned.
        """
        wanted = list(dict.fromkeys(names))
        known = self._known.get(scope.path)
        if known is None:
            known = self._known[scope.path] = declared_types(scope)
        if any(not _has_shape(known.get(name)) for name in wanted):
            self._infer(scope, known, wanted)
        for source in self._sources if scope is self._index.main else ():
            missing = [name for name in wanted if not is_complete(known.get(name))]
            if not missing:
                break
            known.update((name, found) for name, found in source(self._model, missing).items() if is_complete(found))
        return {name: known[name] for name in wanted if is_complete(known.get(name))}

    def _infer(self, scope: Scope, known: dict[str, TypeProto], wanted: list[str]) -> None:
        """Adds what inference tells about a graph to what is known of it; a fuller shape replaces none at all."""
        if self._inferred is None:
            self._inferred = inferred(self._model.proto)
        if scope is self._index.main:
            types = inferred_types(self._inferred, wanted)
        else:
            if self._inferred_index is None:
                self._inferred_index = GraphIndex(self._inferred)
            twin = self._inferred_index.scope_paths[scope.path]
            types = {name: without_made_up_dims(value) for name, value in declared_types(twin).items()}
        for name, found in types.items():
            if not is_complete(known.get(name)) or (not _has_shape(known.get(name)) and _has_shape(found)):
                known[name] = found


def _has_shape(value: TypeProto | None) -> bool:
    if value is None or not is_complete(value):
        return False
    return value.WhichOneof("value") != "tensor_type" or tensor_shape(value) is not None
