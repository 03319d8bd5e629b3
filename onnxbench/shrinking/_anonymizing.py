"""A part without what it would give away: names, texts and metadata, and the values of weights and inputs.

Names are always replaced. Values are replaced by random ones of the same size and spread, one tensor after the
other, as long as the failure shows; which had to stay is told. What Constant nodes and bodies hold stays.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnxbench.captures import Value
from onnxbench.graph import node_bodies
from onnxbench.messages import copy_of
from onnxbench.shrinking._specimens import Specimen

if TYPE_CHECKING:
    from onnx import GraphProto

Try = Callable[[Specimen], bool]
_TEXTS = ("doc_string", "metadata_props")


def without_names(specimen: Specimen) -> Specimen:
    """Returns a part whose tensors, nodes, graphs and dimensions are numbered, without texts and metadata."""
    proto = copy_of(specimen.model.proto)
    names: dict[str, str] = {}
    symbols: dict[str, str] = {}
    for field in ("producer_name", "producer_version", "domain", "model_version", *_TEXTS):
        proto.ClearField(field)
    count = 0
    for number, graph in enumerate(_graphs(proto.graph)):
        graph.name = f"graph{number}"
        for field in _TEXTS:
            graph.ClearField(field)
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        for info in (*graph.input, *graph.output):
            info.name = _numbered(names, info.name, "t")
            for field in _TEXTS:
                info.ClearField(field)
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = _numbered(symbols, dim.dim_param, "d")
                dim.ClearField("denotation")
            info.type.ClearField("denotation")
        for tensor in (*graph.initializer, *(each.values for each in graph.sparse_initializer)):
            tensor.name = _numbered(names, tensor.name, "t")
            tensor.ClearField("doc_string")
        for node in graph.node:
            node.name = f"{node.op_type}_{count}"
            count += 1
            for field in _TEXTS:
                node.ClearField(field)
            node.input[:] = [_numbered(names, name, "t") for name in node.input]
            node.output[:] = [_numbered(names, name, "t") for name in node.output]
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
                if attribute.HasField("t"):
                    attribute.t.ClearField("name")
                    attribute.t.ClearField("doc_string")
    sets = tuple({names[name]: value for name, value in given.items()} for given in specimen.sets)
    return replace(
        specimen, model=specimen.model.derive(proto), sets=sets, inputs=tuple(names[n] for n in specimen.inputs),
        outputs=tuple(names[n] for n in specimen.outputs),
    )  # fmt: skip


def _numbered(names: dict[str, str], name: str, letter: str) -> str:
    return names.setdefault(name, f"{letter}{len(names)}") if name else ""


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    pending = [graph]
    while pending:
        current = pending.pop(0)
        yield current
        for node in current.node:
            pending += [body for _, body in node_bodies(node)]


def without_values(specimen: Specimen, shows: Try) -> tuple[Specimen, list[str]]:
    """Returns a part with random values where the failure still shows, and the tensors that had to stay as they are."""
    from onnx import numpy_helper

    current, kept = specimen, []
    for name, value in specimen.sets[0].items():
        other = _random(name, value)
        if other is None:
            continue
        candidate = replace(current, sets=({**current.sets[0], name: other},))
        if shows(candidate):
            current = candidate
        else:
            kept.append(name)
    for at, tensor in enumerate(specimen.model.proto.graph.initializer):
        other = _random(tensor.name, current.model.array(tensor))
        if other is None:
            continue
        proto = copy_of(current.model.proto)
        proto.graph.initializer[at].CopyFrom(numpy_helper.from_array(other, tensor.name))
        candidate = replace(current, model=current.model.derive(proto))
        if shows(candidate):
            current = candidate
        else:
            kept.append(tensor.name)
    return current, kept


def _random(name: str, value: Value) -> Any:
    """Returns random numbers like those of a floating array; None for anything else."""
    import numpy as np

    if not hasattr(value, "dtype") or value.dtype.kind != "f" or not value.size:
        return None
    wide = value.astype(np.float64)
    if not np.isfinite(wide).all():
        return None
    random = np.random.default_rng(zlib.crc32(name.encode()))
    made = random.standard_normal(value.shape) * (wide.std() or 1.0) + wide.mean()
    return np.asarray(made).astype(value.dtype)
