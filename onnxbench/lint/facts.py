"""What checks ask about a model: its index, opsets, constants, types. Each fact is found once, when it is asked for.

A broken model is looked at as far as it can be. Where the text of names is not UTF-8, a copy with readable names is
looked at instead; where a fact depends on something that is broken, it says so and the check that asked yields a
``NotRun``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from shlex import quote
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import ExternalDataError, ModelError
from onnxbench.graph import GraphIndex, Scope, home_of, root_of
from onnxbench.lint.checker import NodeKey, StrictInference, check_nodes, infer_strictly
from onnxbench.lint.data import is_element_type, is_sound
from onnxbench.lint.findings import Finding, Place, Severity
from onnxbench.lint.rules import Rule
from onnxbench.messages import copy_of
from onnxbench.model import SMALL_WEIGHT
from onnxbench.provenance import NONE, Origins
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART, plain_domain
from onnxbench.tensortype import tensor_shape
from onnxbench.validity import find_complaints

if TYPE_CHECKING:
    import numpy as np
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

    from onnxbench.model import Model

Opener = Callable[["Model"], object]
"""Makes a session of a model in some runtime, or raises ``onnxbench.errors.ExecutionError``."""

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
SMALL = 4096
"""Elements of a constant that a check looks at without being allowed to read weights."""
_GRAPH, _GRAPHS = 5, 10
_STRING_FIELD, _MESSAGE_FIELD = 9, 11


class Facts:
    """A model as checks see it.

    Args:
        model: The model; it is not changed.
        target: The runtime that severities are for, or None.
        openers: By the name of a runtime, what makes a session in it.
    """

    def __init__(self, model: Model, *, target: str | None = None, openers: Mapping[str, Opener] | None = None) -> None:
        self.model = model
        self.target = target
        self.openers = dict(openers or {})
        self.unreadable: list[tuple[str, str]] = []
        self.proto = model.proto
        if not _is_readable(model.proto):
            self.proto = copy_of(model.proto)
            self.unreadable = _make_readable(self.proto)
        self._constants: dict[int, dict[str, TensorProto]] = {}
        self._opsets: dict[int, dict[str, int]] = {}

    # The graph

    @cached_property
    def index(self) -> GraphIndex:
        """The index of ``proto``."""
        return GraphIndex(self.proto)

    def opsets(self, scope: Scope) -> dict[str, int]:
        """Returns the opset versions that hold in a graph, by domain; the standard one is ``""``."""
        root = root_of(scope)
        found = self._opsets.get(id(root))
        if found is None:
            function = function_of(root)
            found = {}
            for opset in (function or self.proto).opset_import:
                # Of two imports of one domain the last holds, for onnx as for ONNX Runtime.
                found[plain_domain(opset.domain)] = opset.version
            self._opsets[id(root)] = found
        return found

    @cached_property
    def live(self) -> dict[int, set[int]]:
        """By the id of a graph, the positions of the nodes that its outputs depend on."""
        return {id(scope): _live_nodes(scope) for scope in self.index.scopes}

    # Constants

    def constant(self, scope: Scope, name: str) -> TensorProto | None:
        """Returns the constant of that name that a graph sees: an initializer or what a Constant node makes."""
        home = home_of(scope, name)
        return self._constants_of(home).get(name) if home is not None else None

    def integers(self, scope: Scope, name: str) -> list[int] | None:
        """Returns the values of a small constant of integers or booleans, or None."""
        tensor = self.constant(scope, name)
        if tensor is None or tensor.data_type not in (6, 7, 9):
            return None
        data = self.small_data(tensor)
        array = readable_array(tensor if data is None else _inline(tensor, data))
        return None if array is None else [int(value) for value in array.ravel()]

    def small_data(self, tensor: TensorProto) -> bytes | None:
        """Returns the bytes of a small tensor outside of the structure (a shape, say), or None if it cannot be had."""
        if not weights.is_outside(tensor) or not is_element_type(tensor.data_type) or tensor.data_type == 8:
            return None
        try:
            where = self.model.byte_range(tensor)
        except (ExternalDataError, ModelError):  # a finding of its own
            return None
        return weights.read_bytes(where) if where is not None and where.length <= SMALL_WEIGHT else None

    def with_small_weights(self, proto: ModelProto) -> ModelProto:
        """Returns a structure with the small weights in it that can be had, for type inference."""
        copy = copy_of(proto)
        for tensor in weights.tensors(copy):
            data = self.small_data(tensor)
            if data is not None:
                tensor.CopyFrom(_inline(tensor, data))
        return copy

    def _constants_of(self, scope: Scope) -> dict[str, TensorProto]:
        found = self._constants.get(id(scope))
        if found is None:
            found = {}
            for tensor in getattr(scope.graph, "initializer", ()):
                if self.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART or tensor.name not in scope.inputs:
                    found[tensor.name] = tensor
            for node in scope.nodes:
                if node.op_type == "Constant" and len(node.output) == 1 and node.domain in STANDARD_DOMAINS:
                    tensor_ = constant_tensor(node)
                    if tensor_ is not None:
                        found[node.output[0]] = tensor_
            self._constants[id(scope)] = found
        return found

    # Operators and types

    @cached_property
    def refused_nodes(self) -> dict[NodeKey, str]:
        """What the onnx checker has against single nodes."""
        return check_nodes(self.proto, self.index)

    @cached_property
    def inference(self) -> StrictInference:
        """Strict type and shape inference over the whole model, its complaints located."""
        return infer_strictly(self.with_small_weights(self.proto), self.index, frozenset(self.refused_nodes))

    def types(self, scope: Scope) -> dict[str, TypeProto]:
        """Returns the types of a graph's tensors as far as they are known."""
        return self.inference.types.get(scope.path, {})

    # What a save does

    @cached_property
    def complaints(self) -> list[str]:
        """What ``onnxbench.validity`` has against the model."""
        return find_complaints(self.proto, complete=self.with_small_weights)

    @cached_property
    def is_mended(self) -> bool:
        """Whether a save mends what it can: it leaves a model that is valid, its outputs ranked, as it is."""
        return bool(self.complaints) or any(
            info.type.WhichOneof("value") == "tensor_type" and tensor_shape(info.type) is None
            for info in self.proto.graph.output
        )

    # Findings

    @cached_property
    def origins(self) -> Origins:
        """Where nodes come from in PyTorch."""
        nodes = (node for scope in self.index.scopes for node in scope.nodes)
        return Origins(nodes, self.index.main.constants)

    def find(
        self,
        rule: Rule,
        message: str,
        *,
        scope: Scope | None = None,
        position: int | None = None,
        tensor: str | None = None,
        fix: str | None = None,
        mendable: bool = False,
        severity: Severity | None = None,
    ) -> Finding:
        """Returns a finding of a rule, placed.

        Args:
            rule: The rule.
            message: What is wrong.
            scope: The graph; None for the main one.
            position: The node in it.
            tensor: The tensor in it.
            fix: What to do.
            mendable: Whether ``onnxbench.repair`` mends this; it does when the model is not valid as it stands.
            severity: Another severity than the rule's, for this one.
        """
        node = scope.nodes[position] if scope is not None and position is not None else None
        origin = self.origins.of(node) if node is not None else NONE
        place = Place(
            graph=scope.path if scope is not None else "",
            node=scope.label(position) if scope is not None and position is not None else None,
            op=operator(node) if node is not None else None,
            tensor=tensor,
            module=origin.scope or None,
            source=origin.source,
        )
        wanted = rule.severities.get(self.target) if self.target else None
        mends = mendable and self.is_mended
        if mends and fix is None:
            fix = f"Writing the model with onnxbench mends it: {self.rewrite_command()}"
        return Finding(rule.code, rule.name, wanted or severity or rule.severity, message, place, fix, mends)

    def rewrite_command(self) -> str:
        """Returns a command line that writes the whole model anew."""
        return f"onnxbench extract {quote(self.file_name())} mended.onnx --outputs {self.all_outputs()}"

    def all_outputs(self) -> str:
        """Returns a selector of all outputs; their names where one is called ``output``, which has a meaning there."""
        outputs = self.index.main.outputs
        return " ".join(map(quote, outputs)) if self.index.main.defines("output") else "'output:*'"

    def file_name(self) -> str:
        """Returns the model's file as a user would type it."""
        if self.model.origin is None:
            return "model.onnx"
        relative = os.path.relpath(self.model.origin)
        return str(self.model.origin) if relative.startswith("..") else relative


def graph_of(scope: Scope) -> GraphProto | None:
    """Returns the graph that a scope is, or None for a function, which has names where a graph has types."""
    return None if scope.is_function else scope.graph


def function_of(scope: Scope) -> FunctionProto | None:
    """Returns the function that a scope is, or None for a graph."""
    return scope.graph if scope.is_function else None


def operator(node: NodeProto) -> str:
    """Returns ``Conv``, or ``com.x::Foo`` outside of the standard domain."""
    return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Returns what a Constant node makes as a tensor; None for strings and sparse tensors."""
    from onnx import TensorProto

    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == 4:
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name == "value_int":
            return TensorProto(data_type=7, int64_data=[attribute.i])
        if attribute.name == "value_ints":
            return TensorProto(data_type=7, dims=[len(attribute.ints)], int64_data=attribute.ints)
        if attribute.name == "value_float":
            return TensorProto(data_type=1, float_data=[attribute.f])
        if attribute.name == "value_floats":
            return TensorProto(data_type=1, dims=[len(attribute.floats)], float_data=attribute.floats)
    return None


def readable_array(tensor: TensorProto) -> np.ndarray | None:
    """Returns the values of a tensor in the structure if it is small and its data fits its shape, else None."""
    from onnx import numpy_helper

    if weights.is_outside(tensor) or not is_sound(tensor) or math.prod(tensor.dims) > SMALL:
        return None
    return numpy_helper.to_array(tensor)


def _inline(tensor: TensorProto, data: bytes) -> TensorProto:
    """Returns a tensor with its bytes in it."""
    return type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data)


def nodes_of(graph: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Yields the nodes of a graph and of all bodies in it."""
    from onnxbench.graph import node_bodies

    pending = [graph]
    while pending:
        for node in pending.pop().node:
            yield node
            if node.attribute:
                pending += [body for _, body in node_bodies(node)]


def listed(names: list[str], *, limit: int = 5) -> str:
    """Returns names as text, the first few of many."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def _live_nodes(scope: Scope) -> set[int]:
    live: set[int] = set()
    pending = list(scope.outputs)
    seen = set(pending)
    while pending:
        position = scope.producers.get(pending.pop())
        if position is not None and position not in live:
            live.add(position)
            for name in scope.reads[position]:
                if name not in seen:
                    seen.add(name)
                    pending.append(name)
    return live


def _is_readable(proto: ModelProto) -> bool:
    """Tells whether all names are text; protobuf hands out bytes where a string is not UTF-8."""
    try:
        for words in _names(proto):
            "".join(words)
    except TypeError:
        return False
    return True


def _names(proto: ModelProto) -> Iterator[list[str]]:
    """Yields the names in a model, a handful at a time."""
    yield [proto.producer_name, proto.producer_version, proto.domain]
    yield [opset.domain for opset in proto.opset_import]
    yield [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
    pending: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        yield [graph.name]
        yield [info.name for info in graph.value_info]
        if hasattr(graph, "initializer"):
            yield [info.name for info in (*graph.input, *graph.output)]
            yield [tensor.name for tensor in graph.initializer]
            yield [
                text
                for tensor in graph.initializer
                for entry in tensor.external_data
                for text in (entry.key, entry.value)
            ]
            yield [tensor.values.name for tensor in graph.sparse_initializer]
            for annotation in graph.quantization_annotation:
                yield [annotation.tensor_name]
                yield [text for entry in annotation.quant_parameter_tensor_names for text in (entry.key, entry.value)]
        else:
            yield [graph.domain, graph.overload, *graph.input, *graph.output, *graph.attribute]
            yield [opset.domain for opset in graph.opset_import]
        for node in graph.node:
            yield [node.name, node.op_type, node.domain, node.overload, *node.input, *node.output]
            for attribute in node.attribute:
                yield [attribute.name, attribute.ref_attr_name]
                if attribute.type == 4:
                    yield [attribute.t.name]
                    yield [text for entry in attribute.t.external_data for text in (entry.key, entry.value)]
                elif attribute.type == _GRAPH:
                    pending.append(attribute.g)
                elif attribute.type == _GRAPHS:
                    pending.extend(attribute.graphs)


def _make_readable(proto: ModelProto) -> list[tuple[str, str]]:
    r"""Writes every string that is not UTF-8 with ``\xff`` escapes, in place.

    Returns:
        For each such string its field (``NodeProto.output``) and what it reads now.
    """
    found = []
    pending: list[Any] = [proto]
    while pending:
        message = pending.pop()
        for field, value in message.ListFields():
            if field.type == _MESSAGE_FIELD:
                pending.extend(value if field.is_repeated else [value])
            elif field.type == _STRING_FIELD:
                name = f"{field.containing_type.name}.{field.name}"
                if field.is_repeated:
                    for position, text in enumerate(value):
                        if isinstance(text, bytes):
                            value[position] = text.decode(errors="backslashreplace")
                            found.append((name, value[position]))
                elif isinstance(value, bytes):
                    setattr(message, field.name, value.decode(errors="backslashreplace"))
                    found.append((name, getattr(message, field.name)))
    return list(dict.fromkeys(sorted(found)))
