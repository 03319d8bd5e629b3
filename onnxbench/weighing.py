"""The values that a model stores: where each lies, what it weighs, which modules use it, and how it is distributed.

Weights are initializers and the tensors in attributes (some exporters keep all weights in Constant nodes). Their
sizes follow from their types, so a model of any size is weighed without reading one of them. ``statistics`` does
read: block by block, in bounded memory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import ExternalDataError
from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.tensortype import dtype_bits, dtype_name

if TYPE_CHECKING:
    import numpy as np
    from onnx import TensorProto

    from onnxbench.model import Model
    from onnxbench.provenance import Origins

BLOCK = 1 << 20
"""Elements that are held at once; a multiple of 8, so that a block of packed elements is whole bytes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One value that is stored in a model.

    Attributes:
        scope: The graph that holds it.
        name: Its name in that graph; a tensor in an attribute goes by the output of its node.
        tensor: The tensor; the values, of a sparse one.
        place: ``inline``, ``external``, or ``node`` (in an attribute, whatever file its bytes are in).
        shape: Its shape.
        bytes: Its size.
        node: Position of the node whose attribute it is; -1 for an initializer.
        is_sparse: Whether only the values that are not zero are stored.
    """

    scope: Scope
    name: str
    tensor: TensorProto
    place: str
    shape: tuple[int, ...]
    bytes: int
    node: int = -1
    is_sparse: bool = False

    @property
    def path(self) -> str:
        """The name with the path of its graph."""
        return f"{self.scope.path}/{self.name}" if self.scope.path else self.name

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """Its element type."""
        return dtype_name(self.tensor.data_type)


def stored_values(index: GraphIndex) -> Iterator[Stored]:
    """Yields every value that a model stores, in the order of the file, bodies and functions included."""
    for scope in index.scopes:
        if not scope.is_function:
            for tensor in scope.graph.initializer:
                place = "external" if weights.location(tensor) is not None else "inline"
                yield Stored(scope, tensor.name, tensor, place, tuple(tensor.dims), weights.tensor_bytes(tensor))
            for sparse in scope.graph.sparse_initializer:
                yield _sparse(scope, sparse.values.name, sparse, "inline", -1)
        for position, node in enumerate(scope.nodes):
            attributes = node.attribute
            if not attributes:
                continue
            for attribute in attributes:
                kind = attribute.type
                if kind == 4 or kind == 9:
                    name = node.output[0] if node.output else scope.label(position)
                    for tensor in (attribute.t,) if kind == 4 else attribute.tensors:
                        size = weights.tensor_bytes(tensor)
                        yield Stored(scope, name, tensor, "node", tuple(tensor.dims), size, position)
                elif kind == 11 or kind == 12:
                    name = node.output[0] if node.output else scope.label(position)
                    for sparse in (attribute.sparse_tensor,) if kind == 11 else attribute.sparse_tensors:
                        yield _sparse(scope, name, sparse, "node", position)


def _sparse(scope: Scope, name: str, sparse: Any, place: str, position: int) -> Stored:
    size = weights.tensor_bytes(sparse.values) + weights.tensor_bytes(sparse.indices)
    if place == "inline" and weights.location(sparse.values) is not None:
        place = "external"
    return Stored(scope, name, sparse.values, place, tuple(sparse.dims), size, position, is_sparse=True)


@dataclass(frozen=True, slots=True)
class Statistics:
    """How the elements of a tensor are distributed. Non-finite ones are counted, and left out of the rest.

    Attributes:
        elements: How many were looked at: the stored ones, of a sparse tensor.
        minimum: The smallest, or None if there is none (no finite element, complex, strings).
        maximum: The largest, likewise.
        mean: Their mean, likewise, in double precision.
        std: Their standard deviation (of the whole population), likewise.
        zeros: How many are zero.
        nans: How many are not a number.
        infinities: How many are infinite.
    """

    elements: int
    minimum: float | int | None
    maximum: float | int | None
    mean: float | None
    std: float | None
    zeros: int
    nans: int
    infinities: int


def statistics(model: Model, tensor: TensorProto) -> Statistics | None:
    """Returns how the elements of a tensor are distributed, read a block at a time; None for strings.

    Raises:
        ExternalDataError: The bytes cannot be had.
    """
    if not dtype_bits(tensor.data_type):
        return None
    count, mean, squares = 0, 0.0, 0.0
    low: float | int | None = None
    high: float | int | None = None
    elements = zeros = nans = infinities = 0
    for block in blocks(model, tensor):
        elements += block.size
        finite, block_nans, block_infinities = _finite(block)
        zeros += int((finite == 0).sum())
        nans += block_nans
        infinities += block_infinities
        if not finite.size or finite.dtype.kind == "c":
            continue
        least, most = finite.min().item(), finite.max().item()
        low, high = least if low is None else min(low, least), most if high is None else max(high, most)
        # Chan's way to merge means and squared deviations, which loses no digits where a plain sum of squares does.
        wide = finite.astype("float64")
        block_mean = float(wide.mean())
        delta, total = block_mean - mean, count + wide.size
        squares += float(((wide - block_mean) ** 2).sum()) + delta * delta * count * wide.size / total
        mean += delta * wide.size / total
        count = total
    std = math.sqrt(squares / count) if count else None
    return Statistics(elements, low, high, mean if count else None, std, zeros, nans, infinities)


def blocks(model: Model, tensor: TensorProto) -> Iterator[np.ndarray]:
    """Yields the elements of a tensor in flat arrays of at most ``BLOCK`` elements, which are not to be written to.

    Raises:
        ExternalDataError: The bytes cannot be had.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    where = model.byte_range(tensor)
    if where is None:
        flat = model.array(tensor).reshape(-1)
        yield from (flat[start : start + BLOCK] for start in range(0, flat.size or 1, BLOCK))
        return
    left, bits = math.prod(tensor.dims), dtype_bits(tensor.data_type)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    is_plain = dtype.itemsize * 8 == bits and sys.byteorder == "little"
    with open(where.file, "rb") as file:
        file.seek(where.offset)
        while left > 0:
            count = min(left, BLOCK)
            size = (count * bits + 7) // 8
            data = file.read(size)
            if len(data) < size:
                raise ExternalDataError(f"{where.file} ended in the middle of tensor {tensor.name!r}")
            if is_plain:
                yield np.frombuffer(data, dtype)
            else:
                yield numpy_helper.to_array(TensorProto(data_type=tensor.data_type, dims=[count], raw_data=data))
            left -= count


def _finite(block: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Returns the finite elements of a block in a type that NumPy counts with, and how many are NaN and infinite."""
    import numpy as np

    if block.dtype.kind in "biuc" and block.dtype.isbuiltin == 1:
        if block.dtype.kind != "c":
            return block.astype("uint8") if block.dtype.kind == "b" else block, 0, 0
    elif block.dtype.name.startswith(("int", "uint")):  # int4 and the like
        return block.astype("int16"), 0, 0
    elif block.dtype.kind != "f" or block.dtype.itemsize < 4:
        block = block.astype("float32")
    nans = np.isnan(block)
    infinities = np.isinf(block)
    bad = nans | infinities
    return (block[~bad] if bad.any() else block), int(nans.sum()), int(infinities.sum())


@dataclass(slots=True)
class _Count:
    """What is counted for one module while the nodes and weights go by."""

    nodes: int = 0
    nodes_below: int = 0
    ops: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    weights: int = 0
    calls: int = 1
    module_class: str | None = None


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """One PyTorch module, as far as the model shows it.

    Attributes:
        path: Module path; ``""`` for the model itself.
        depth: How many modules are around it, 0 for the model itself.
        module_class: Its class, or None when the exporter kept none.
        calls: How often it is called.
        nodes: How many nodes are its own, not those of modules in it.
        nodes_below: How many nodes it has in all.
        ops: Operators in it and in the modules in it, with their counts, most frequent first.
        weights: How many weights it and the modules in it read; one that several read counts once.
        bytes: What these weigh.
    """

    path: str
    depth: int
    module_class: str | None
    calls: int
    nodes: int
    nodes_below: int
    ops: dict[str, int]
    weights: int
    bytes: int


def module_tree(
    index: GraphIndex,
    origins: Origins,
    operator: Callable[[Any], str],
    *,
    nodes: Collection[NodeRef] | None = None,
) -> list[ModuleRecord]:
    """Returns the PyTorch modules of a model, each before the modules in it, in the order of their first use.

    A weight belongs to the modules of the nodes that read it; where these are unknown, to the module that its name
    spells (``encoder.layer.0.weight``). Nodes of unknown origin are in no module, and not counted.

    Args:
        index: The model's index.
        origins: What tells where its nodes come from.
        operator: How an operator is written.
        nodes: Only these nodes and the weights that they read; None: all.
    """
    counts: dict[str, _Count] = {}
    for ref in index.nodes() if nodes is None else nodes:
        found = origins.of(ref.node)
        if found.scope is None:
            continue
        op = operator(ref.node)
        own = counts.setdefault(found.scope, _Count())
        own.nodes += 1
        own.calls = max(own.calls, found.call + 1)
        for path in _lineage(found.scope):
            count = counts.setdefault(path, _Count())
            count.nodes_below += 1
            count.ops[op] = count.ops.get(op, 0) + 1
        for path, module_class in zip(found.scopes, found.classes, strict=True):
            counts.setdefault(path, _Count()).module_class = module_class
    chosen = None if nodes is None else {(id(ref.scope), ref.position) for ref in nodes}
    for stored in stored_values(index):
        readers = _readers(stored)
        if chosen is not None:
            readers = [reader for reader in readers if (id(reader.scope), reader.position) in chosen]
            if not readers:
                continue
        for path in {path for scope in _modules_of(stored, readers, origins) for path in _lineage(scope)}:
            count = counts.setdefault(path, _Count())
            count.bytes += stored.bytes
            count.weights += 1
    return _depth_first(counts)


def modules_reading(stored: Stored, origins: Origins) -> list[str]:
    """Returns the modules that a stored value belongs to (see ``module_tree``), in no more than a few steps."""
    return _modules_of(stored, _readers(stored), origins)


def _readers(stored: Stored) -> list[NodeRef]:
    """Returns the nodes that read a stored value; bodies' captures are followed to the nodes inside."""
    found: list[NodeRef] = []
    pending = [stored.scope]
    while pending:
        scope = pending.pop()
        for position in scope.consumers.get(stored.name, ()):
            if position in scope.bodies:
                pending += [body for body in scope.bodies[position] if stored.name in body.captures]
            found.append(NodeRef(scope, position))
    if not found and stored.node >= 0:
        found.append(NodeRef(stored.scope, stored.node))
    return found


def _modules_of(stored: Stored, readers: Iterable[NodeRef], origins: Origins) -> list[str]:
    modules = dict.fromkeys(scope for ref in readers if (scope := origins.scope(ref.node)) is not None)
    if not modules and stored.node < 0:
        spelled = stored.name.rpartition(".")[0]
        if spelled and not spelled.startswith(".") and not set(stored.name) & set("/:; "):
            modules[spelled] = None
    return list(modules)


def _lineage(path: str) -> list[str]:
    """Returns a module path and all that enclose it, the model itself (``""``) last."""
    lineage = []
    while path:
        lineage.append(path)
        path = path.rpartition(".")[0]
    return [*lineage, ""]


def _depth_first(counts: Mapping[str, _Count]) -> list[ModuleRecord]:
    children: dict[str, list[str]] = {}
    for path in list(counts):
        if path:
            children.setdefault(path.rpartition(".")[0], []).append(path)
    found: list[ModuleRecord] = []
    pending = [("", 0)] if counts else []
    while pending:
        path, depth = pending.pop()
        count = counts[path]
        found.append(
            ModuleRecord(
                path=path,
                depth=depth,
                module_class=count.module_class,
                calls=count.calls,
                nodes=count.nodes,
                nodes_below=count.nodes_below,
                ops=dict(sorted(count.ops.items(), key=lambda item: -item[1])),
                weights=count.weights,
                bytes=count.bytes,
            )
        )
        pending += [(child, depth + 1) for child in reversed(children.get(path, ()))]
    return found
