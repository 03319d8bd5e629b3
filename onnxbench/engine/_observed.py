"""A profile from real inputs: the smallest, the usual and the largest shape that they have.

Most inputs vary in their shape. An input whose *values* become sizes (the target of a Resize) gets the range of its
values, because that is what TensorRT asks for there; such inputs are found by where they lead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from onnxbench.captures import Port, input_ports
from onnxbench.engine._profiles import Range, Sizes, holds_sizes, is_dynamic
from onnxbench.errors import FeedsError
from onnxbench.feeding import FeedOptions, FeedSet, feed_sets, first_set
from onnxbench.graph import GraphIndex, Scope

if TYPE_CHECKING:
    from onnxbench.model import Model

_SIZES: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Resize": (3,), "Expand": (1,), "ConstantOfShape": (0,), "Slice": (1, 2, 4), "Tile": (1,),
    "Range": (0, 1, 2), "Pad": (1,), "TopK": (1,), "OneHot": (1,), "CenterCropPad": (1,), "AffineGrid": (1,),
}  # fmt: skip
_PASSING = frozenset({
    "Cast", "Concat", "Gather", "Add", "Sub", "Mul", "Div", "Unsqueeze", "Squeeze", "Identity", "Max", "Min", "Where",
    "Reshape", "Slice", "Floor", "Ceil", "Split",
})  # fmt: skip
_INTEGERS = (6, 7)
_MOST_VALUES = 64


@dataclass(frozen=True, slots=True)
class Observed:
    """What feeds say of shapes.

    Attributes:
        profile: Input to the range of its shapes, or of its values where these are sizes.
        sets: How many sets of inputs were looked at.
    """

    profile: dict[str, Range]
    sets: int


def observe(model: Model, sources: Sequence[str]) -> Observed:
    """Returns the profile that real inputs of a model fit: in each dimension from the smallest to the largest seen.

    The best shape is the one seen most often; where no shape came twice, the one of middle size.

    Args:
        model: The model.
        sources: Data as for ``onnxbench.feeding.FeedOptions``: a folder of .npz, files, ``script.py:func``.

    Raises:
        FeedsError: The data does not fit the model, or holds no set.
        NotFoundError: There is no such file.
    """
    found = observe_sets(model, (each.feeds for each in feed_sets(model, FeedOptions(sources))))
    if not found.sets:
        raise FeedsError(f"{', '.join(sources)}: the data holds no set of inputs")
    return found


def observe_sets(model: Model, sets: Iterable[Mapping[str, Any]]) -> Observed:
    """Returns the profile that sets of inputs fit (see ``observe``); of large values only the shape is looked at."""
    ports = [port for port in input_ports(model.proto.graph) if port.required]
    sizes = _inputs_of_sizes(GraphIndex(model.proto).main, ports)
    wanted = [port.name for port in ports if is_dynamic(port) or port.name in sizes]
    seen: dict[str, Counter[Sizes]] = {name: Counter() for name in wanted}
    count = 0
    for feeds in sets:
        count += 1
        for name in wanted:
            value = feeds[name]
            shape = tuple(int(n) for n in value.reshape(-1)) if name in sizes else tuple(value.shape)
            seen[name][shape] += 1
    return Observed({name: _range(name, shapes) for name, shapes in seen.items() if shapes}, count)


def without_missing(found: Observed, model: Model) -> Observed:
    """Returns what is said of inputs that a model (edited since) still has."""
    names = {port.name for port in input_ports(model.proto.graph)}
    return replace(found, profile={name: each for name, each in found.profile.items() if name in names})


def _range(name: str, shapes: Counter[Sizes]) -> Range:
    ranks = {len(shape) for shape in shapes}
    if len(ranks) > 1:
        raise FeedsError(f"input {name!r} has {' and '.join(map(str, sorted(ranks)))} dimensions in the data",
                         hint="An engine has one rank for each input.")  # fmt: skip
    low, high = (tuple(pick(sizes) for sizes in zip(*shapes, strict=True)) for pick in (min, max))
    ordered = sorted(shapes, key=lambda shape: (prod(shape), shape))
    most = max(shapes.values())
    often = [shape for shape in ordered if shapes[shape] == most]
    best = often[-1] if most > 1 else ordered[len(ordered) // 2]
    return Range(low, best, high)


def _inputs_of_sizes(scope: Scope, ports: Sequence[Port]) -> frozenset[str]:
    """Returns the inputs whose values become sizes of tensors."""
    found = set()
    for port in ports:
        shape = port.shape
        if port.dtype not in _INTEGERS or shape is None or len(shape) > 1:
            continue
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) == len(shape) and prod(sizes) <= _MOST_VALUES and _sizes_follow(scope, port):
            found.add(port.name)
    return frozenset(found)


def _sizes_follow(scope: Scope, port: Port) -> bool:
    waiting, seen = [port.name], {port.name}
    while waiting:
        name = waiting.pop()
        for position in scope.consumers.get(name, ()):
            node = scope.nodes[position]
            slots = [slot for slot, read in enumerate(node.input) if read == name]
            if any(slot in _SIZES.get(node.op_type, ()) for slot in slots):
                return True
            if node.op_type in _PASSING:
                fresh = [each for each in node.output if each and each not in seen]
                seen.update(fresh)
                waiting += fresh
    return False


def inputs_at(model: Model, profile: Mapping[str, Range], kind: str, said: FeedOptions | None = None) -> FeedSet:
    """Returns drawn inputs of a model at one end of a profile; inputs whose values are sizes have these values.

    Args:
        model: The model.
        profile: The profile.
        kind: ``min``, ``opt`` or ``max``.
        said: What else is said of the inputs.

    Raises:
        FeedsError: They cannot be drawn.
    """
    import numpy as np

    ports = {port.name: port for port in input_ports(model.proto.graph)}
    values = {name: each for name, each in profile.items() if holds_sizes(ports[name], each)}
    words = tuple(
        f'"{name}":[{",".join(map(str, getattr(each, kind)))}]' for name, each in profile.items() if name not in values
    )
    options = said or FeedOptions()
    drawn = first_set(model, replace(options, shapes=(*options.shapes, *words)))
    feeds = dict(drawn.feeds)
    for name, each in values.items():
        feeds[name] = np.array(getattr(each, kind), feeds[name].dtype).reshape(feeds[name].shape)
    return FeedSet(feeds, drawn.choices)
