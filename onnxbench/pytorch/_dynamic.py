"""Which sizes of the inputs are open: ``input:0=batch``, ``input:[batch,3,h,w]``, ``input:0,2``, ``batch``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from onnxbench.errors import NotFoundError, UsageError, did_you_mean
from onnxbench.pytorch.sources import Leaf

_AXIS = re.compile(r"(-?\d+)(?:=([A-Za-z_]\w*))?")
_HINT = "Write input:0=batch, input:0=batch,2=height, or input:[batch,3,height,width]."

Axes = dict[int, str]
"""Open dimensions of one input: axis to symbol."""


def parse_dynamic(words: Sequence[str], leaves: Sequence[Leaf]) -> dict[str, Axes]:
    """Returns the open dimensions of each input that words speak of.

    Args:
        words: As typed. ``input:0`` without a symbol gets one made of the input's name.
        leaves: The example inputs.

    Raises:
        NotFoundError: A word names no input.
        UsageError: A word cannot be read, or an axis is not there.
    """
    tensors = {leaf.name: tuple(leaf.value.shape) for leaf in leaves if hasattr(leaf.value, "shape")}
    found: dict[str, Axes] = {}
    for word in words:
        for name, said in _parts(word, tensors):
            if name not in tensors:
                known = f"The inputs are: {', '.join(tensors)}." if tensors else "The model has no tensor inputs."
                raise NotFoundError(
                    f"--dynamic {word!r}: there is no input {name!r}", hint=did_you_mean(name, tensors) or known
                )
            axes = found.setdefault(name, {})
            for axis, symbol in _axes(said, name, tensors[name], word).items():
                if axes.setdefault(axis, symbol) != symbol:
                    raise UsageError(f"--dynamic: dimension {axis} of {name!r} is given two names")
    return found


def _parts(word: str, tensors: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Splits ``a:0=n,b:0=n`` into what is said of each input; a bare text is about the only input."""
    name, colon, rest = word.rpartition(":")
    inner = re.split(r",(?=[A-Za-z_][\w.]*:)", word)
    if len(inner) > 1:
        return [part for each in inner for part in _parts(each, tensors)]
    if colon:
        return [(name, rest)]
    if len(tensors) == 1:
        return [(next(iter(tensors)), word)]
    raise UsageError(f"--dynamic {word!r} does not say of which input", hint=_HINT)


def _axes(said: str, name: str, shape: tuple[int, ...], word: str) -> Axes:
    text = said.strip()
    rank = len(shape)
    if text.startswith("["):
        sizes = [each.strip() for each in text.strip("[]").split(",")] if text.strip("[] ") else []
        if len(sizes) != rank or not text.endswith("]"):
            raise UsageError(f"--dynamic {word!r}: {name!r} has {rank} dimensions, {list(shape)}", hint=_HINT)
        axes: Axes = {}
        for axis, size in enumerate(sizes):
            if size.isdigit():
                if int(size) != shape[axis]:
                    raise UsageError(
                        f"--dynamic {word!r}: dimension {axis} of the example input is {shape[axis]}, not {size}"
                    )
            elif size in ("?", "-1", "*"):
                axes[axis] = f"{name}_dim{axis}"
            elif re.fullmatch(r"[A-Za-z_]\w*", size):
                axes[axis] = size
            else:
                raise UsageError(f"--dynamic {word!r}: {size!r} is no name for a dimension", hint=_HINT)
        return axes
    axes = {}
    for each in text.split(","):
        match = _AXIS.fullmatch(each.strip())
        if match is None:
            raise UsageError(f"--dynamic {word!r} is not understood", hint=_HINT)
        axis = int(match[1])
        if not -rank <= axis < rank:
            raise UsageError(f"--dynamic {word!r}: {name!r} has {rank} dimensions, {list(shape)}, and none {axis}")
        axes[axis % rank] = match[2] or f"{name}_dim{axis % rank}"
    return axes


def sizes_of(dynamic: Mapping[str, Axes], leaves: Sequence[Leaf]) -> dict[str, int]:
    """Returns the size that each symbol has in the example inputs.

    Raises:
        UsageError: It has two.
    """
    shapes = {leaf.name: leaf.value.shape for leaf in leaves if hasattr(leaf.value, "shape")}
    sizes: dict[str, int] = {}
    for name, axes in dynamic.items():
        for axis, symbol in axes.items():
            size = int(shapes[name][axis])
            if sizes.setdefault(symbol, size) != size:
                raise UsageError(
                    f"dimension {symbol!r} has two sizes in the example inputs, {sizes[symbol]} and {size}",
                    hint="Give them different names, or make the example inputs agree.",
                )
    return sizes


def resized(leaves: Sequence[Leaf], dynamic: Mapping[str, Axes], sizes: Mapping[str, int]) -> list[Any]:
    """Returns the values of example inputs at other sizes: cut, or gone over again from the start.

    So indices stay within their tables and masks stay masks.
    """
    from onnxbench.pytorch import require_torch

    torch = require_torch()
    values = []
    for leaf in leaves:
        value = leaf.value
        for axis, symbol in dynamic.get(leaf.name, {}).items():
            positions = torch.arange(sizes[symbol]) % max(1, value.shape[axis])
            value = value.index_select(axis, positions)
        values.append(value)
    return values
