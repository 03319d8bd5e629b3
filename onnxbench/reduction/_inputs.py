"""Inputs of a part made smaller while it still shows the failure: fewer elements, and constants in place of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from onnxbench.captures import Value, onnx_dtype
from onnxbench.inference import bare, inferred, inferred_types
from onnxbench.messages import copy_of, delete_named
from onnxbench.model import Model
from onnxbench.shrinking import Specimen
from onnxbench.tensortype import make_type, make_value_info, tensor_shape

_MOST_ELEMENTS = 64
Try = Callable[[Specimen], bool]


def only_set(specimen: Specimen, number: int) -> Specimen:
    """Returns a part with one of its sets, held in memory."""
    return replace(specimen, sets=(dict(specimen.sets[number]),))


def shrink_sizes(specimen: Specimen, shows: Try) -> Iterator[Specimen]:
    """Yields the part with smaller and smaller inputs.

    Axes of one size are taken to belong together (a batch, say) and halved together: the first half is tried, then the
    last. Then each axis is tried by itself.
    """
    current = specimen
    for size in sorted(_sizes(current.sets[0]), reverse=True):
        for smaller in _halve(current, lambda name, axis, length, size=size: length == size, shows):  # type: ignore[misc]
            current = smaller
            yield current
    for name in current.inputs:
        for axis in range(getattr(current.sets[0].get(name), "ndim", 0)):
            for smaller in _halve(current, lambda n, a, _, at=(name, axis): (n, a) == at, shows):  # type: ignore[misc]
                current = smaller
                yield current


def _sizes(feeds: Mapping[str, Value]) -> set[int]:
    return {int(size) for value in feeds.values() if hasattr(value, "shape") for size in value.shape if size > 1}


def _halve(current: Specimen, chosen: Callable[[str, int, int], bool], shows: Try) -> Iterator[Specimen]:
    """Yields a part whose chosen axes are halved, again and again."""
    places = {
        (name, axis): size
        for name, value in current.sets[0].items()
        if hasattr(value, "shape")
        for axis, size in enumerate(value.shape)
        if size > 1 and chosen(name, axis, size)
    }
    while places:
        half = {place: -(-size // 2) for place, size in places.items()}
        for from_end in (False, True):
            feeds = {name: _cut(value, name, half, from_end) for name, value in current.sets[0].items()}
            candidate = with_feeds(current, feeds)
            if shows(candidate):
                current = candidate
                yield current
                break
        else:
            return
        places = {place: size for place, size in half.items() if size > 1}


def _cut(value: Value, name: str, sizes: Mapping[tuple[str, int], int], from_end: bool) -> Value:
    if not hasattr(value, "shape"):
        return value
    index = [slice(None)] * value.ndim
    for axis in range(value.ndim):
        size = sizes.get((name, axis))
        if size is not None:
            index[axis] = slice(-size, None) if from_end else slice(size)
    return value[tuple(index)].copy() if value.ndim else value


def with_feeds(specimen: Specimen, feeds: Mapping[str, Value]) -> Specimen:
    """Returns a part on other values: its inputs have their sizes, unless these are open, and what follows is found."""
    proto = copy_of(specimen.model.proto)
    graph = proto.graph
    given = {name: value for name, value in feeds.items() if hasattr(value, "shape")}
    for info in graph.input:
        if info.name in given:
            value = given[info.name]
            known = tensor_shape(info.type)
            is_open = known is not None and len(known) == value.ndim and not any(isinstance(s, int) for s in known)
            shape = [None] * value.ndim if is_open else value.shape
            info.type.CopyFrom(make_type(onnx_dtype(value.dtype), shape))
    del graph.value_info[:]
    _find_output_types(specimen.model, proto)
    return replace(specimen, model=specimen.model.derive(proto), sets=(dict(feeds),))


def _find_output_types(model: Model, proto: Any) -> None:
    graph = proto.graph
    fed = {info.name for info in graph.input}
    outputs = [info for info in graph.output if info.name not in fed]
    for info in outputs:
        for dim in info.type.tensor_type.shape.dim:
            dim.ClearField("value")
    found = inferred_types(inferred(bare(model.with_small_weights(proto))), [info.name for info in outputs])
    for info in outputs:
        kind = found.get(info.name)
        if kind is not None and kind.WhichOneof("value") == info.type.WhichOneof("value") == "tensor_type":
            same = kind.tensor_type.elem_type == info.type.tensor_type.elem_type
            if same and kind.tensor_type.HasField("shape"):
                info.CopyFrom(make_value_info(info.name, kind))


def fix_inputs(specimen: Specimen, shows: Try) -> Iterator[Specimen]:
    """Yields the part with small inputs of whole numbers (shapes, indices, conditions) made constants."""
    from onnx import numpy_helper

    current = specimen
    for name in specimen.inputs:
        value: Any = current.sets[0].get(name)
        if len(current.inputs) < 2 or not hasattr(value, "dtype") or value.dtype.kind not in "iub":
            continue
        if value.size > _MOST_ELEMENTS or name in current.outputs:
            continue
        proto = copy_of(current.model.proto)
        graph = proto.graph
        delete_named(graph.input, {name})
        proto.ir_version = max(proto.ir_version, 4)  # before, initializers had to be listed as inputs
        graph.initializer.append(numpy_helper.from_array(value, name))
        candidate = replace(
            current, model=current.model.derive(proto), inputs=tuple(n for n in current.inputs if n != name),
            sets=({n: v for n, v in current.sets[0].items() if n != name},),
        )  # fmt: skip
        if shows(candidate):
            current = candidate
            yield current
