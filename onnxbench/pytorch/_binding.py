"""Which argument of a PyTorch model each input of an ONNX model is, and inputs like the example ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxbench.captures import Feeds, Port, Value
from onnxbench.errors import FeedsError, NotFoundError, did_you_mean
from onnxbench.pytorch._dynamic import Axes
from onnxbench.pytorch._verification import as_array
from onnxbench.pytorch.sources import Leaf


def similar_inputs(examples: Mapping[str, Value], number: int) -> Feeds:
    """Returns inputs like the given ones: number 0 are these, any other has others in their place.

    Floating-point numbers are drawn with the mean and spread of the example's, the elements of all others are put in
    another order: so indices stay within their tables.
    """
    import numpy as np

    if number == 0:
        return dict(examples)
    made: Feeds = {}
    for at, (name, value) in enumerate(examples.items()):
        draw = np.random.default_rng(1000 * number + at)
        if value.dtype.kind in "iub" or value.dtype.kind not in "fV":
            made[name] = draw.permutation(value.reshape(-1)).reshape(value.shape)
            continue
        wide = value.astype(np.float64)
        made[name] = draw.normal(float(wide.mean()), float(wide.std()) or 1.0, value.shape).astype(value.dtype)
    return made


def bound_inputs(ports: Sequence[Port], leaves: Sequence[Leaf], said: Mapping[str, str], label: str) -> dict[str, str]:
    """Returns which argument each input is, by the input's name, in the order of the inputs.

    What is said comes first, then equal names; the inputs left are the arguments left, in order, by kind and shape.

    Args:
        ports: The inputs of the ONNX model; none: nothing is bound.
        leaves: The arguments, with example values.
        said: Arguments by input, as the user names them; those of other inputs are an error.
        label: The PyTorch model, for messages.

    Raises:
        NotFoundError: An input or argument that is named does not exist.
        FeedsError: An input does not fit its argument, or more than one way is left.
    """
    known = {leaf.name: leaf for leaf in leaves}
    names = {port.name for port in ports}
    for name, leaf in said.items():
        if ports and name not in names:
            raise NotFoundError(f"the model has no input {name!r}", hint=did_you_mean(name, names))
        if leaf not in known:
            raise NotFoundError(f"{label} has no argument {leaf!r}", hint=did_you_mean(leaf, known))
    bound = {name: leaf for name, leaf in said.items() if name in names}
    taken = set(bound.values())
    for port in ports:
        if port.name not in bound and port.name in known and port.name not in taken:
            bound[port.name] = port.name
            taken.add(port.name)
    _require_fits(ports, known, bound, label)
    rest = [port for port in ports if port.name not in bound]
    free = [leaf for leaf in leaves if leaf.name not in taken and hasattr(leaf.value, "shape")]
    if rest:
        ways = _ways(rest, free)
        if len(ways) != 1:
            raise FeedsError(
                f"it cannot be told which argument of {label} the input {rest[0].name!r} is"
                if ways or len(rest) > len(free) or _fits(rest[0], free[0]) == ""
                else f"input {rest[0].name!r} does not fit the arguments of {label}: {_fits(rest[0], free[0])}",
                details=[f"arguments: {', '.join(map(_described, leaves))}"],
                hint=f"Is it the PyTorch model of this file? If so, say --input '{rest[0].name}=ARGUMENT'.",
            )
        bound.update(zip((port.name for port in rest), (leaf.name for leaf in ways[0]), strict=True))
    return {port.name: bound[port.name] for port in ports}


def _require_fits(
    ports: Sequence[Port], known: Mapping[str, Leaf], bound: Mapping[str, str], label: str
) -> None:  # fmt: skip
    for port in ports:
        reason = _fits(port, known[bound[port.name]]) if port.name in bound else ""
        if reason:
            raise FeedsError(
                f"input {port.name!r} does not fit the argument {bound[port.name]!r} of {label}: {reason}",
                hint="Is it the PyTorch model of this file, with example inputs as it was exported with?",
            )


def _ways(ports: Sequence[Port], leaves: Sequence[Leaf]) -> list[list[Leaf]]:
    """Returns the ways in which inputs are arguments, in order: two at most, so that one is known to be the only."""
    ways: list[list[Leaf]] = [[]]
    starts = [0]
    for port in ports:
        found: list[tuple[list[Leaf], int]] = []
        for way, start in zip(ways, starts, strict=True):
            found += [([*way, leaf], at + 1) for at, leaf in enumerate(leaves) if at >= start and not _fits(port, leaf)]
        if len(ports) == len(leaves):  # all of them, so each has its place
            found = [each for each in found if each[1] == len(each[0])]
        ways, starts = [way for way, _ in found[:64]], [start for _, start in found[:64]]
    return ways[:2]


def _fits(port: Port, leaf: Leaf) -> str:
    """Returns why an argument cannot be an input, or nothing."""
    from onnxbench.captures import FLOATS, onnx_dtype

    value, shape = leaf.value, port.shape
    if not hasattr(value, "shape"):
        return "" if isinstance(value, (bool, int, float)) else f"the argument is {type(value).__name__}, no tensor"
    number = onnx_dtype(as_array(value[(0,) * value.ndim] if value.numel() else value).dtype)
    if port.dtype and number and (port.dtype in FLOATS) != (number in FLOATS):
        return f"one holds floating-point numbers, the other ({value.dtype}) does not"
    if shape is not None and len(shape) != value.ndim:
        return f"it has {len(shape)} dimensions, the example input {list(value.shape)}"
    if shape is not None:
        for axis, (size, own) in enumerate(zip(shape, value.shape, strict=True)):
            if isinstance(size, int) and size != own:
                return f"dimension {axis} is {size}, and {own} in the example input {list(value.shape)}"
    return ""


def _described(leaf: Leaf) -> str:
    value = leaf.value
    return f"{leaf.name} {list(value.shape)} {value.dtype}" if hasattr(value, "shape") else f"{leaf.name}={value!r}"


def open_sizes(ports: Sequence[Port], bound: Mapping[str, str]) -> dict[str, Axes]:
    """Returns which sizes of the arguments an ONNX model leaves open, with its names for them."""
    found: dict[str, Axes] = {}
    for port in ports:
        leaf = bound[port.name]
        axes = {
            axis: size if isinstance(size, str) and size.isidentifier() else f"{leaf}_dim{axis}"
            for axis, size in enumerate(port.shape or ())
            if not isinstance(size, int)
        }
        if axes:
            found[leaf] = axes
    return found
