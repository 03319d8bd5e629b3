"""Inputs for a model from the words a user types: files, folders, scripts, shapes, ranges, a seed.

Words become sets of inputs here, one set after the other; ``onnxbench.datafiles`` reads, ``onnxbench.drawing`` draws.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.captures import Feeds, Port, check_feeds, input_ports, require_shape
from onnxbench.datafiles import load, load_value
from onnxbench.drawing import random_feeds
from onnxbench.errors import ExecutionError, FeedsError, NotFoundError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex, Scope
from onnxbench.specs import TensorSpec, parse_data_files, parse_dims, parse_ranges, parse_tensor_specs
from onnxbench.tensortype import Dim, dtype_name, format_shape

if TYPE_CHECKING:
    from onnxbench.model import Model

_INTEGERS = {2, 3, 4, 5, 6, 7, 12, 13}
_SAME_ELEMENTS = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice"}
_SAME_ROWS = {"Cast", "Identity", "DequantizeLinear", "Mul"}


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What a user says about the inputs of a model, as typed.

    Attributes:
        sources: Data: ``f.npz``, ``x:f.npy``, a folder, ``script.py:func`` (see ``onnxbench.datafiles.load``).
        shapes: Shapes for drawn or raw inputs (see ``onnxbench.specs``).
        dims: Sizes of symbolic dimensions: ``batch=4``.
        ranges: Ranges for drawn values: ``[0,1]``, ``x:[2,50]``.
        seed: Seed for drawn values.
        iterations: How many sets; None: all that the data holds, or one.
        fill: Draw the inputs that the data lacks.
        cast: Convert element types where no value changes its kind.
    """

    sources: Sequence[str] = ()
    shapes: Sequence[str] = ()
    dims: Sequence[str] = ()
    ranges: Sequence[str] = ()
    seed: int = 0
    iterations: int | None = None
    fill: bool = False
    cast: bool = False

    @property
    def says_nothing(self) -> bool:
        """Whether neither data nor anything of what is drawn is told."""
        return not (self.sources or self.shapes or self.dims or self.ranges or self.seed)


@dataclass(frozen=True, slots=True)
class FeedSet:
    """One set of inputs.

    Attributes:
        feeds: Values by input, checked against the model.
        choices: What was decided without being told, one phrase each.
    """

    feeds: Feeds
    choices: tuple[str, ...] = ()


def feed_sets(
    model: Model, options: FeedOptions | None = None, *, index: GraphIndex | None = None
) -> Iterator[FeedSet]:
    """Yields sets of inputs for a model.

    Args:
        model: The model.
        options: What the user says; None draws one set from seed 0.
        index: The model's index, if there is one already.

    Raises:
        FeedsError: The data does not fit the model.
        NotFoundError: There is no such file, or a word names no input.
        UsageError: A word cannot be read.
    """
    said = options or FeedOptions()
    ports = input_ports(model.proto.graph)
    names = [port.name for port in ports]
    required = {port.name for port in ports if port.required}
    specs = _shape_specs(said.shapes, required or set(names), ports)
    shapes = {spec.name: spec.shape for spec in specs if spec.shape is not None}
    ranges = parse_ranges(said.ranges, names, what="--val-range")
    dims = parse_dims(said.dims)
    _check_dims(dims, ports)
    for port in ports:
        if port.name in shapes:
            require_shape(port, shapes[port.name])
            _require_dims(port, shapes[port.name], dims, "--shape")
    given = _given(said, ports, shapes)
    drawing = given is None or said.fill
    if said.ranges and not drawing:
        raise UsageError("--val-range is for inputs that are drawn, and all come from the data")
    limits = index_limits(model, index) if drawing else {}
    sets: Iterator[Feeds] = iter([{}] * (said.iterations or 1)) if given is None else given
    for iteration, values in enumerate(sets):
        choices: tuple[str, ...] = ()
        _require_as_told(values, ports, shapes, dims)
        if drawing:
            drawn = random_feeds(
                ports, shapes=shapes, dims=dims, ranges=ranges, limits=limits, given=values, seed=said.seed,
                iteration=iteration,
            )  # fmt: skip
            values, choices = values | drawn.feeds, drawn.choices
        yield FeedSet(check_feeds(values, ports, cast=said.cast), choices)


def first_set(model: Model, options: FeedOptions | None = None) -> FeedSet:
    """Returns one set of inputs for a model: the first that the data holds, or drawn values.

    Raises:
        FeedsError: They do not fit the model, or cannot be drawn.
        NotFoundError: There is no such file.
    """
    first = next(feed_sets(model, options), None)
    if first is None:
        raise FeedsError("the data holds no set of inputs")
    return first


def refuse_to_overwrite(model: Model, words: Sequence[str], *targets: str | os.PathLike[str] | None) -> None:
    """Raises UsageError when a file to be written is one that is read, or is to be written twice.

    Args:
        model: The model that is read.
        words: Further files that are read, as typed: ``f.npz``, ``x:f.npy``, ``script.py:load``.
        targets: The files to be written.
    """
    read = {Path(word).resolve() for word in words} | {model.origin} | set(model.sources)
    parts = (part for word in words for sign in ":=" if sign in word for part in word.partition(sign)[::2])
    read |= {Path(part).resolve() for part in parts if part}
    seen: set[Path] = set()
    for target in targets:
        if target is None:
            continue
        place = Path(target).resolve()
        if place in read or place in seen:
            raise UsageError(f"{target} is {'to be written twice' if place in seen else 'an input'}; name another file")
        seen.add(place)


@contextmanager
def choices_explained(choices: Sequence[str]) -> Iterator[None]:
    """Makes a failure while running on drawn inputs say what was drawn."""
    try:
        yield
    except ExecutionError as error:
        if choices:
            error.details = (*error.details, "The inputs were drawn, and this was chosen:", *choices)
            error.hint = error.hint or "If that does not suit the model, say otherwise: --shape, --dim, --val-range."
        raise


def _shape_specs(words: Sequence[str], names: set[str], ports: Sequence[Port]) -> list[TensorSpec]:
    specs = parse_tensor_specs(words, names, what="--shape")
    by_name = {port.name: port for port in ports}
    for spec in specs:
        wanted = by_name[spec.name].dtype
        if spec.dtype is not None and wanted and spec.dtype != wanted:
            raise FeedsError(
                f"input {spec.name!r} is {dtype_name(wanted)} in the model, not {dtype_name(spec.dtype)}",
                hint="The element type of an input cannot be chosen; leave it out.",
            )
    return specs


def _check_dims(dims: Mapping[str, int], ports: Sequence[Port]) -> None:
    symbols = {dim for port in ports for dim in port.shape or () if isinstance(dim, str)}
    for symbol in dims:
        if symbol not in symbols:
            known = f"Symbols: {', '.join(sorted(symbols))}." if symbols else "Give shapes instead: --shape x:[1,3]."
            raise NotFoundError(
                f"no input has a dimension called {symbol!r}", hint=did_you_mean(symbol, symbols) or known
            )


def _require_dims(port: Port, shape: Sequence[Dim], dims: Mapping[str, int], source: str) -> None:
    for axis, (size, symbol) in enumerate(zip(shape, port.shape or (), strict=False)):
        if isinstance(size, int) and isinstance(symbol, str) and dims.get(symbol, size) != size:
            raise FeedsError(
                f"dimension {axis} ({symbol}) of input {port.name!r} is {size} by {source}, and {dims[symbol]} by --dim"
            )


def _require_as_told(
    values: Feeds, ports: Sequence[Port], shapes: Mapping[str, Sequence[Dim]], dims: Mapping[str, int]
) -> None:
    """Raises FeedsError when data has other sizes than the user says."""
    for port in ports:
        shape = getattr(values.get(port.name), "shape", None)
        if shape is None:
            continue
        told = shapes.get(port.name, shape)
        if len(told) != len(shape) or any(isinstance(a, int) and a != b for a, b in zip(told, shape, strict=True)):
            raise FeedsError(
                f"input {port.name!r} has the shape {format_shape(shape)} in the data, and {format_shape(told)} by "
                "--shape",
                hint="--shape is for inputs that are drawn, and for raw bytes.",
            )
        _require_dims(port, shape, dims, "the data")


def _given(said: FeedOptions, ports: Sequence[Port], shapes: Mapping[str, Sequence[Dim]]) -> Iterator[Feeds] | None:
    """Returns the sets that the data holds, or None when no data is given."""
    if not said.sources:
        return None
    by_name = {port.name: port for port in ports}
    files = parse_data_files(said.sources, by_name)
    whole = files.pop(None, [])
    single: Feeds = {}
    for name, paths in files.items():
        if name is None:
            continue
        if len(paths) > 1:
            raise UsageError(f"input {name!r} is given twice: {', '.join(paths)}")
        single[name] = load_value(paths[0], by_name[name], shapes.get(name))
    sets: Iterator[Feeds]
    if whole:
        sets = ({**values, **single} for values in chain.from_iterable(_load(source, ports) for source in whole))
    else:
        sets = iter([single])
    return _first_sets(sets, said.iterations) if said.iterations else sets


def _first_sets(sets: Iterator[Feeds], count: int) -> Iterator[Feeds]:
    found = 0
    for values in islice(sets, count):
        found += 1
        yield values
    if found < count:
        raise FeedsError(f"{count} sets of inputs are asked for, and the data holds {found}")


def _load(source: str, ports: Sequence[Port]) -> Iterator[Feeds]:
    """Loads a source; a path that cannot be found and looks like ``name:path`` gets a hint on the name."""
    try:
        yield from load(source, ports)
    except NotFoundError as error:
        name = next((source.partition(sign)[0] for sign in ":=" if sign in source), "")
        near = did_you_mean(name, [port.name for port in ports]) if name else None
        if near is None:
            raise
        raise NotFoundError(f"{error.message}, and no input is called {name!r}", hint=near) from None


def index_limits(model: Model, index: GraphIndex | None = None) -> dict[str, int]:
    """Returns the number of rows of the table that integer inputs of a model index, by input.

    An input that reaches the indices of a ``Gather`` from a stored table, through operators that keep its values, has
    to stay below the table's size: the vocabulary of an embedding, say. Linear in the nodes it reaches.
    """
    integers = [port.name for port in input_ports(model.proto.graph) if port.required and port.dtype in _INTEGERS]
    if not integers:
        return {}
    scope = (index or GraphIndex(model.proto)).main
    stored = {tensor.name: tuple(tensor.dims) for tensor in scope.graph.initializer}
    limits: dict[str, int] = {}
    for name in integers:
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            for position in scope.consumers.get(current, ()):
                node = scope.nodes[position]
                if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] == current:
                    dims = _table(scope, node.input[0], stored)
                    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
                    if dims and -len(dims) <= axis < len(dims):
                        limits[name] = min(limits.get(name, dims[axis]), dims[axis])
                elif node.op_type in _SAME_ELEMENTS and node.input[0] == current:
                    new = [output for output in node.output if output and output not in seen]
                    seen.update(new)
                    pending += new
    return limits


def _table(scope: Scope, name: str, stored: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Returns the dims of the stored tensor behind ``name``, looking through operators that keep its rows."""
    for _ in range(8):
        if name in stored:
            return stored[name]
        position = scope.producers.get(name)
        if position is None:
            return None
        node = scope.nodes[position]
        if node.op_type == "Constant":
            return next((tuple(attribute.t.dims) for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type not in _SAME_ROWS:
            return None
        name = node.input[0]
    return None
