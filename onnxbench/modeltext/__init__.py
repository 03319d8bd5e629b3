r"""A model as text that people read and edit, and back: a superset of onnx's own text syntax.

Decision. ``onnx.printer`` and ``onnx.parser`` (1.23.2) were tried first, on the fixtures, the real models and the
models inside the onnx package: 36 of 315 do not come back the same. What they cannot hold, found by experiment and
in their source:

* lost without a word: doc strings and metadata of everything below the model, sparse initializers, quantization
  annotations, denotations, training info, device configurations, defaults of function attributes, value infos of
  functions, lists of tensors, graphs and types in attributes;
* printed, and not readable again: int2, int4, float4, float6 and complex tensors (``...``), sparse attributes,
  empty string tensors, types without an element type, and every operator type, domain, attribute, overload, body
  or reference whose name is no C identifier;
* not printable: strings that are not UTF-8;
* and all weights are always read and printed.

The list is too long for processing before and after, so this module has a printer and a parser of its own: a
tokenizer, and a descent that is as deep as bodies are nested, which protobuf bounds at 31. Whatever onnx.parser
accepts is accepted and means the same, and a model that needs none of the extensions is printed without them, for
onnx.parser to read.

Extensions:

=====================================  =========================================================================
``@{doc_string: "...", ...}``          after a node, value, initializer, attribute or the signature of a graph:
                                       ``doc_string``, ``metadata_props``, ``denotation``, ``dim_denotation``,
                                       ``quantization_annotation``, ``textproto`` (whatever else onnx knows)
``{...}``                              values left out; ``{... "old"}`` if the name was another when shown
``b"\xff\n"``                          a string with escapes, for bytes and control characters
``"any name"``                         also for operator types, domains, attributes, overloads, bodies
``sparse_tensor(float[9]) s = {v, i}`` a sparse initializer or attribute: its values and its indices
``float16[2] {1.5, 0x7e01}``           small floats by value; hexadecimal is the bit pattern of any float
``undefined``, ``dtype99``, ``?``      no element type, one that this version does not know, no type at all
``float32``, ``float64``               other words for ``float`` and ``double``
=====================================  =========================================================================

What even these do not carry (fields unknown to onnx, data that does not fit its tensor) is told in ``notes``.
Where a tensor's data is stored (typed fields, raw, external) is no part of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.errors import ModelError, NotFoundError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex, node_bodies
from onnxbench.model import Model
from onnxbench.modeltext._originals import (
    ScopeKey,
    fill_elided,
    function_key,
    keyed_tensors,
    owner_name,
)
from onnxbench.modeltext._printer import Printer
from onnxbench.modeltext._reader import Marks, Reader
from onnxbench.modeltext._syntax import ATTRIBUTE_WORDS, MAX_BODY_DEPTH, type_word
from onnxbench.modeltext._tokens import quoted
from onnxbench.modeltext._values import Weights

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

__all__ = [
    "ATTRIBUTE_WORDS",
    "MAX_BODY_DEPTH",
    "Marks",
    "Parsed",
    "ScopeKey",
    "TextCounts",
    "Weights",
    "counts",
    "function_key",
    "keyed_tensors",
    "lines",
    "owner_name",
    "parse",
    "quoted",
    "read",
    "read_functions",
    "read_node",
    "show",
    "type_word",
    "weights_mode",
]


def show(
    model: Model,
    selectors: Sequence[str] = (),
    *,
    nodes: Sequence[str] = (),
    function: str | None = None,
    weights: Weights = "elided",
    max_elements: int = 16,
    metadata: bool = True,
    notes: list[str] | None = None,
) -> str:
    """Returns a model, or part of it, as text, each line ended; arguments and errors are those of ``lines``."""
    found = lines(
        model,
        selectors,
        nodes=nodes,
        function=function,
        weights=weights,
        max_elements=max_elements,
        metadata=metadata,
        notes=notes,
    )
    return "".join(f"{line}\n" for line in found)


def lines(
    model: Model,
    selectors: Sequence[str] = (),
    *,
    nodes: Sequence[str] = (),
    function: str | None = None,
    weights: Weights = "elided",
    max_elements: int = 16,
    metadata: bool = True,
    notes: list[str] | None = None,
) -> Iterator[str]:
    """Yields the lines of a model as text, without line ends.

    Args:
        model: The model. Its weights are read only where they are printed.
        selectors: Print only these tensors: their declarations, and the nodes that make them.
        nodes: Print only these nodes (selectors).
        function: Print only this local function (``domain::Name``, or its name alone).
        weights: What is printed of tensors with more than ``max_elements`` elements: ``elided`` leaves their values
            out, ``stats`` puts statistics of them into a comment, ``inline`` prints them.
        max_elements: Tensors of up to so many elements are printed in full.
        metadata: Print doc strings and metadata_props, at all levels. Without them the text is not the whole model.
        notes: A list to which every sentence on what the text does not carry is appended.

    Raises:
        NotFoundError: A selector or function name matches nothing.
        UsageError: Selectors and a function are given.
        ModelError: The model has names that are not text.
        ExternalDataError: Values that must be printed cannot be read.
    """
    told = notes if notes is not None else []
    printer = Printer(model, weights, max_elements, told, metadata=metadata)
    if function is not None:
        if selectors or nodes:
            raise UsageError("selectors and a function cannot be combined", hint="Print them one after the other.")
        chosen = _functions_named(model.proto, function)
        found: Iterator[str] = (line for each in chosen for line in printer.function(each))
    elif selectors or nodes:
        found = printer.selection(GraphIndex(model.proto), selectors, nodes)
    else:
        found = printer.whole()
    try:
        yield from found
    except UnicodeDecodeError:
        raise ModelError("the model has names that are not UTF-8 text") from None
    if printer.undescribed:
        plural = "entries of metadata and doc strings" if printer.undescribed > 1 else "entry of metadata"
        told.append(f"{printer.undescribed:,} {plural} left out as asked: this text does not build the same model")


def weights_mode(text: str) -> Weights:
    """Returns a way to print weights by its name.

    Raises:
        UsageError: There is none of this name.
    """
    modes: dict[str, Weights] = {"elided": "elided", "inline": "inline", "stats": "stats"}
    if text not in modes:
        raise UsageError(f"{text!r} is no way to print weights", hint=f"There are {', '.join(modes)}.")
    return modes[text]


def _functions_named(proto: ModelProto, name: str) -> list[FunctionProto]:
    chosen = [each for each in proto.functions if name in (each.name, f"{each.domain}::{each.name}")]
    chosen = chosen or [each for each in proto.functions if name == f"{each.domain}::{each.name}:{each.overload}"]
    if not chosen:
        names = [f"{each.domain}::{each.name}" for each in proto.functions]
        hint = did_you_mean(name, [*names, *(each.name for each in proto.functions)])
        if hint is None and names:
            hint = f"It has: {', '.join(names[:8])}."
        raise NotFoundError(f"the model has no function {name!r}" if names else "the model has no functions", hint=hint)
    return chosen


@dataclass(frozen=True, slots=True)
class TextCounts:
    """How much the text of a model holds.

    Attributes:
        nodes: Nodes, those of bodies and functions included.
        bodies: Bodies of If, Loop, Scan and the like.
        functions: Local functions.
        tensors: Tensors with values: initializers, and those in attributes.
        elided: Those of them whose values the text leaves out for their size.
    """

    nodes: int
    bodies: int
    functions: int
    tensors: int
    elided: int


def counts(model: Model, *, weights: Weights = "elided", max_elements: int = 16) -> TextCounts:
    """Returns how much the text of a whole model holds, printed with these options."""
    proto = model.proto
    sizes = [math.prod(tensor.dims) for _, tensor in keyed_tensors(proto)]
    graphs: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    for graph in graphs:  # grows while it is walked
        graphs += [body for node in graph.node if node.attribute for _, body in node_bodies(node)]
    return TextCounts(
        nodes=sum(len(graph.node) for graph in graphs),
        bodies=len(graphs) - 1 - len(proto.functions),
        functions=len(proto.functions),
        tensors=len(sizes),
        elided=0 if weights == "inline" else sum(size > max_elements for size in sizes),
    )


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a text says.

    Attributes:
        model: The model.
        marks: The lines of its nodes and outputs.
        notes: What the user should know (that integers were read as bit patterns, say).
    """

    model: Model
    marks: Marks
    notes: tuple[str, ...]


def parse(
    text: str,
    *,
    source: str = "<text>",
    folder: Path | None = None,
    weights_from: Model | None = None,
    allow_outside: bool = False,
) -> Model:
    """Returns the model that a text describes; the arguments and errors are those of ``read``."""
    return read(text, source=source, folder=folder, weights_from=weights_from, allow_outside=allow_outside).model


def read(
    text: str,
    *,
    source: str = "<text>",
    folder: Path | None = None,
    weights_from: Model | None = None,
    allow_outside: bool = False,
) -> Parsed:
    """Returns the model that a text describes, with the lines of its parts.

    Only the text is judged here. Unsorted nodes, undefined names, unknown operators and the like are the business
    of ``onnxbench.modelspec.build``.

    Args:
        text: onnx.parser's syntax and the extensions at the top of this module.
        source: What errors call it.
        folder: The folder that external data is relative to; the current one by default.
        weights_from: Where the values come from that the text leaves out. Large ones are referred to, not read.
        allow_outside: Follow external data that leaves ``folder``.

    Raises:
        SpecError: The text has a mistake, or leaves out values that ``weights_from`` does not have.
        ExternalDataError: The weights of ``weights_from`` are not where it says.
    """
    reader = Reader(text, source)
    proto = reader.model()
    model = Model(proto, folder if folder is not None else Path.cwd(), None, allow_outside)
    if reader.elided:
        fill_elided(model, reader.elided, weights_from, reader)
    return Parsed(model, reader.marks, tuple(reader.notes))


def read_functions(
    text: str, *, source: str, line: int = 1, context: Sequence[str] = ()
) -> tuple[list[FunctionProto], Marks]:
    """Returns the functions that a text consists of (``f <alpha> (x) => (y) { y = Relu (x) }``), and their lines.

    Args:
        text: The functions, one after the other, each with its header if it has one.
        source: The file that they stand in.
        line: The line of that file that the text begins at, from 1.
        context: The lines of that file, to be quoted in errors; else the text itself is.

    Raises:
        SpecError: The text has a mistake, or a tensor in it has no values.
    """
    reader = Reader(text, source, first_line=line, context=context)
    found = reader.functions_alone()
    if reader.elided:
        raise reader.error("the values of this tensor are left out", at=reader.elided[0].offset)
    return found, reader.marks


def read_node(
    text: str, node: NodeProto, *, source: str, line: int, column: int = 1, context: Sequence[str] = ()
) -> None:
    """Reads one node (``y = Relu (x)``) into an empty message.

    Args:
        text: The node, and nothing else.
        node: Where to put it.
        source: The file it stands in.
        line: Its line in that file, from 1, for errors.
        column: The column it starts at, from 1.
        context: The lines of that file, to be quoted in errors; else the text itself is.

    Raises:
        SpecError: The text has a mistake, or a tensor in it has no values.
    """
    reader = Reader(text, source, first_line=line, first_column=column, context=context)
    reader.node_alone(node)
    if reader.elided:
        raise reader.error("the values of this tensor are left out", at=reader.elided[0].offset)
