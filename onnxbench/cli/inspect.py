"""``onnxbench inspect``: a model at a glance, and its parts in tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli import _engines, _render
from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import AllowOutside, AsJson, Infer, ModelArgument, Quiet
from onnxbench.cli._records import (
    MOST_LISTED,
    NODE_COLUMNS,
    TENSOR_COLUMNS,
    listed,
    module_text,
    node_row,
    tensor_row,
    type_sources,
)
from onnxbench.cli._tables import NBSP, Column, plain, print_fields, print_heading, print_table
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.card import Card, ExternalFile, FunctionRecord, Port
    from onnxbench.inspection import BodyRecord, Inspection, WeightRecord
    from onnxbench.weighing import ModuleRecord

_SPELLINGS = {
    "layers": "nodes", "layer": "nodes", "ops": "nodes", "attrs": "attributes", "attr": "attributes",
    "scopes": "modules", "scope": "modules", "initializers": "weights",
}  # fmt: skip


@means_nothing_without(
    sort=("weights", "values", "show"),
    depth=("scopes", "bodies", "show"),
    top=(
        "selectors",
        "select",
        "nodes",
        "attributes",
        "tensors",
        "weights",
        "values",
        "scopes",
        "functions",
        "bodies",
        "show",
    ),
)
def inspect(
    model: ModelArgument,
    selectors: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SELECTOR]...", help="Only what these match (see `onnxbench find --help`).", show_default=False
        ),
    ] = None,
    select: Annotated[
        list[str] | None, typer.Option("--select", "-s", metavar="SEL...", help="The same.", show_default=False)
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="The model at a glance (shown if nothing else is).")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", "--layers", help="A table of nodes.")] = False,
    attributes: Annotated[bool, typer.Option("--attributes", "--attrs", help="Nodes with their attributes.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="A table of tensors.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="A table of stored values, heaviest first.")] = False,
    scopes: Annotated[
        bool, typer.Option("--scopes", "--modules", help="The tree of PyTorch modules with counts and bytes.")
    ] = False,
    functions: Annotated[bool, typer.Option("--functions", help="A table of local functions.")] = False,
    bodies: Annotated[bool, typer.Option("--bodies", help="The tree of If, Loop and Scan bodies.")] = False,
    show: Annotated[
        list[str] | None,
        typer.Option(
            "--show",
            metavar="VIEW...",
            help="The same by name: layers, attrs, weights, tensors, scopes...",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Weights with statistics: reads them, block by block.")
    ] = False,
    sort: Annotated[str, typer.Option("--sort", help="Order of weights: bytes, name or file.")] = "bytes",
    top: Annotated[
        int | None, typer.Option("--top", "-n", min=0, help="At most so many rows of each table.", show_default=False)
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=0, help="Modules and bodies nested no deeper.", show_default=False)
    ] = None,
    infer: Infer = None,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a model is made of: a card, or tables of its parts.

    Weights are not read, unless --values asks for statistics of them, so a model of any size is shown at once, also
    when its weights are missing. With selectors only what they match is shown, as tensors or nodes if no table is
    named. Names are whole in pipes and files, and shortened in the middle to fit a terminal; on a narrow one each row
    becomes a few lines with whole names.

    \b
    Examples:
      onnxbench inspect model.onnx
      onnxbench inspect model.onnx --nodes
      onnxbench inspect model.onnx --weights --top 10
      onnxbench inspect model.onnx --weights --values 'conv1.*'
      onnxbench inspect model.onnx --scopes --depth 2
      onnxbench inspect model.onnx --attrs op:Conv
      onnxbench inspect model.onnx --tensors 'scope:encoder.layer.0' --json
      onnxbench inspect model.onnx --show layers attrs weights
      onnxbench inspect model.engine
    """
    from onnxbench.inspection import inspect as take_apart
    from onnxbench.model import load

    if _engines.print_engine(model, nodes=nodes or "layers" in (show or ()), as_json=as_json, quiet=quiet):
        return
    loaded = load(model, allow_outside=allow_outside, require_weights=False)
    flags = {"card": card, "nodes": nodes, "attributes": attributes, "tensors": tensors, "modules": scopes,
             "weights": weights or values, "functions": functions, "bodies": bodies}  # fmt: skip
    asked = [view for view, wanted in flags.items() if wanted] + [_SPELLINGS.get(word, word) for word in show or ()]
    views = list(dict.fromkeys("nodes" if view == "attributes" else view for view in asked))
    found = take_apart(
        loaded,
        views,
        [*(selectors or ()), *(select or ())],
        infer=infer,
        sources=type_sources(infer),
        values=values,
        sort=sort,
        top=top,
        depth=depth,
    )
    _render.note(*found.notes, quiet=quiet)
    if as_json:
        _render.print_json("inspect", found)
    else:
        _print(found, with_attributes="attributes" in asked)


def _print(found: Inspection, *, with_attributes: bool) -> None:
    """Prints each view that was asked for."""
    if found.card is not None:
        print_heading(found.card.file.name if found.card.file else "model in memory")
        print_fields(_card_fields(found.card))
    rows: dict[str, Iterable[Sequence[str]]] = {
        "modules": map(_module_row, found.modules or ()),
        "functions": map(_function_row, found.functions or ()),
        "bodies": map(_body_row, found.bodies or ()),
        "nodes": (node_row(node, attributes=with_attributes) for node in found.nodes or ()),
        "tensors": map(tensor_row, found.tensors or ()),
        "weights": map(_weight_row, found.weights or ()),
    }
    shown = [view for view in rows if getattr(found, view) is not None]
    for view in shown:
        if len(shown) > 1 or found.card is not None:
            print("\n" if found.card is not None or view != shown[0] else "", end="")
            print_heading(view)
        if getattr(found, view):
            print_table(_COLUMNS[view], rows[view])
        else:
            print(_NONE[view])
        left_out = (found.left_out or {}).get(view)
        if left_out:
            print(f"... and {left_out:,} more")


_COLUMNS = {
    "modules": (
        Column("module"), Column("class"), Column("calls", "number"), Column("own nodes", "number"),
        Column("all nodes", "number"), Column("weights", "number"), Column("bytes", "number"),
        Column("operators", "list"),
    ),
    "functions": (
        Column("function"), Column("nodes", "number"), Column("calls", "number"), Column("inputs", "list"),
        Column("outputs", "list"), Column("attributes", "list"), Column("operators", "list"),
    ),
    "bodies": (
        Column("body"), Column("of", "whole"), Column("nodes", "number"), Column("in all", "number"),
        Column("weights", "number"), Column("bytes", "number"), Column("inputs", "list"), Column("outputs", "list"),
        Column("captures", "list"),
    ),
    "nodes": NODE_COLUMNS,
    "tensors": TENSOR_COLUMNS,
    "weights": (
        Column("weight"), Column("type", "whole"), Column("bytes", "number"), Column("place"),
        Column("module", "list"), Column("min", "number"), Column("max", "number"), Column("mean", "number"),
        Column("std", "number"), Column("zeros", "number"), Column("NaN", "number"), Column("Inf", "number"),
        Column("problem"),
    ),
}  # fmt: skip
_NONE = {
    "modules": "Nothing says which PyTorch modules this model was made of.",
    "functions": "The model has no local functions.",
    "bodies": "No node of the model has a body (no If, Loop or Scan).",
    "nodes": "The model has no nodes.",
    "tensors": "The model has no tensors.",
    "weights": "The model stores no values.",
}


def _module_row(module: ModuleRecord) -> list[str]:
    name = module.path.rpartition(".")[2] if module.path else "(model)"
    return [
        "  " * module.depth + name,
        (module.module_class or "").rpartition(".")[2],
        str(module.calls) if module.calls > 1 else "",
        str(module.nodes) if module.nodes else "",
        str(module.nodes_below) if module.nodes_below else "",
        str(module.weights) if module.weights else "",
        _render.format_bytes(module.bytes) if module.bytes else "",
        _counted(module.ops, most=4),
    ]


def _function_row(function: FunctionRecord) -> list[str]:
    return [
        function.name,
        str(function.nodes),
        str(function.calls),
        listed(function.inputs),
        listed(function.outputs),
        listed(function.attributes),
        _counted(function.ops),
    ]


def _body_row(body: BodyRecord) -> list[str]:
    return [
        "  " * (body.depth - 1) + body.name,
        body.op,
        str(body.nodes),
        str(body.nodes_below),
        str(body.weights) if body.weights else "",
        _render.format_bytes(body.bytes) if body.bytes else "",
        listed([port.name.removeprefix(f"{body.path}/") for port in body.inputs]),
        listed([port.name.removeprefix(f"{body.path}/") for port in body.outputs]),
        listed(body.captures),
    ]


def _weight_row(weight: WeightRecord) -> list[str]:
    stats = weight.statistics
    numbers = (stats.minimum, stats.maximum, stats.mean, stats.std) if stats else (None,) * 4
    counts = (stats.zeros, stats.nans, stats.infinities) if stats else (0,) * 3
    return [
        weight.name,
        f"{'sparse ' if weight.is_sparse else ''}{weight.dtype}[{', '.join(map(str, weight.shape))}]",
        _render.format_bytes(weight.bytes),
        weight.location or ("" if weight.place == "inline" else weight.place),
        listed([module_text(path) for path in weight.modules], most=2),
        *map(_number, numbers),
        *(f"{count:,}" if count else "" for count in counts),
        weight.problem or "",
    ]


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counted(counts: Mapping[str, int], *, most: int = MOST_LISTED) -> str:
    return listed([f"{name} {count}" for name, count in counts.items()], most=most)


def _card_fields(card: Card) -> Iterable[tuple[str, str]]:
    yield from _file_fields(card)
    yield from _metadata_fields(card)
    for side, ports in (("input", card.inputs), ("output", card.outputs)):
        widest = min(40, max((len(plain(port.name)) for port in ports), default=0))
        for port in ports:
            yield side, _port(port, widest)
    yield from _content_fields(card)
    yield from _dimension_fields(card)
    yield "PyTorch", _provenance(card)
    if card.marks:
        yield "marks", _counted(card.marks)
    if card.training:
        yield "training", "the file has training information, which is not looked at"


def _file_fields(card: Card) -> Iterable[tuple[str, str]]:
    size = _render.format_bytes
    beside = card.total_bytes - card.file_bytes
    where = f", {size(card.file_bytes)} in the model file and {size(beside)} beside it" if beside else ""
    yield "size", size(card.total_bytes) + where
    for file in card.external:
        yield "external", _external(file)
    yield "format", f"ONNX IR {card.ir_version}; opset {_opsets(card)}"


def _metadata_fields(card: Card) -> Iterable[tuple[str, str]]:
    yield "made by", card.producer or "unknown"
    for label, value in (("domain", card.domain), ("version", card.model_version), ("graph", card.graph_name)):
        if value:
            yield label, str(value)
    if card.doc:
        yield "doc", _excerpt(card.doc)
    for key, value in list(card.metadata.items())[:MOST_LISTED]:
        yield "metadata", f"{key} = {_excerpt(value, 90)}"
    if len(card.metadata) > MOST_LISTED:
        yield "", f"... and {len(card.metadata) - MOST_LISTED} more entries of metadata"


def _content_fields(card: Card) -> Iterable[tuple[str, str]]:
    yield "nodes", _node_counts(card)
    if card.ops:
        yield "operators", ", ".join(f"{op.op}{NBSP}{op.count:,}" for op in card.ops)
    yield "weights", _weight_totals(card)
    for function in card.functions[:MOST_LISTED]:
        yield "function", f"{function.name}: {plural(function.nodes, 'node')}, called {_times(function.calls)}"
    if len(card.functions) > MOST_LISTED:
        yield "", f"... and {len(card.functions) - MOST_LISTED} more (--functions)"
    if card.quantization:
        yield "quantized", _quantization(card)
    for op in card.custom_ops:
        if not op.is_local_function:
            known = "ONNX Runtime's own" if op.known_to else "a mark" if op.op.endswith("::Mark") else "needs a library"
            yield "custom op", f"{op.op} {op.count}, {known}"


def _dimension_fields(card: Card) -> Iterable[tuple[str, str]]:
    """Yields the dimensions that vary at the model's ends; those that only one tensor has share a field."""
    at_ends = [dim for dim in card.dynamic_dims if dim.inputs or dim.outputs]
    alone = [dim for dim in at_ends if len(dim.inputs) + len(dim.outputs) == 1 and not dim.inner]
    for dim in at_ends:
        if dim not in alone:
            inner = f"; {plural(dim.inner, 'inner tensor')}" if dim.inner else ""
            yield "dynamic", f"{dim.symbol}: {listed([*dim.inputs, *dim.outputs])}{inner}"
    if alone:
        yield "dynamic", listed([f"{dim.symbol}: {(*dim.inputs, *dim.outputs)[0]}".replace(" ", NBSP) for dim in alone])
    if not at_ends:
        yield "dynamic", "no: all inputs and outputs have fixed shapes"


def _external(file: ExternalFile) -> str:
    held = f"{file.location}: {plural(file.tensors, 'tensor')}, {_render.format_bytes(file.bytes)}"
    return f"{held} -- NOT USABLE: {file.problem}" if file.problem else held


def _excerpt(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}... ({len(text):,} characters)"


def _opsets(card: Card) -> str:
    used = [f"{domain}{NBSP}{version}" for domain, version in card.opsets.items() if domain not in card.unused_opsets]
    unused = [f"{domain}{NBSP}{card.opsets[domain]}" for domain in card.unused_opsets]
    return ", ".join(used) + (f" (unused: {', '.join(unused)})" if unused else "")


def _port(port: Port, widest: int) -> str:
    extras = [*(["has a default"] if port.has_default else []), *([port.denotation] if port.denotation else [])]
    if port.doc:
        extras.append(_excerpt(port.doc, 80))
    name = plain(port.name).ljust(widest) + "  "
    return f"{name}{port.type}".replace(" ", NBSP) + (f"  ({'; '.join(extras)})" if extras else "")


def _node_counts(card: Card) -> str:
    operators = plural(len(card.ops), "operator")
    words = f"{card.nodes:,} of {operators}"
    inside = card.all_nodes - card.nodes
    if inside:
        words = f"{card.all_nodes:,} of {operators}: {card.nodes:,} in the main graph"
        bodies = card.bodies
        if bodies.count:
            deep = f", nested {bodies.depth} deep" if bodies.depth > 1 else ""
            words += f", {bodies.nodes:,} in {plural(bodies.count, 'body', 'bodies')} ({_counted(bodies.by_op)}{deep})"
        if card.functions:
            nodes = sum(function.nodes for function in card.functions)
            words += f", {nodes:,} in {plural(len(card.functions), 'local function')}"
    if card.unnamed_nodes:
        words += f"; {card.unnamed_nodes:,} without a name"
    return words


def _weight_totals(card: Card) -> str:
    if not card.weights.tensors:
        return "none"
    size = _render.format_bytes
    tensors = plural(card.weights.tensors, "tensor")
    words = f"{plural(card.parameters, 'parameter')}, {size(card.weights.bytes)} in {tensors}: "
    words += ", ".join(
        f"{dtype} {size(held.bytes)} ({held.tensors:,})".replace(" ", NBSP) for dtype, held in card.by_dtype.items()
    )
    places = {"inline": "in the file", "external": "external", "node": "in attributes of nodes"}
    if list(card.by_place) != ["inline"]:
        words += "; " + ", ".join(f"{size(held.bytes)} {places[place]}" for place, held in card.by_place.items())
    return words


def _times(count: int) -> str:
    return "once" if count == 1 else "never" if not count else f"{count} times"


def _quantization(card: Card) -> str:
    found = card.quantization
    words = []
    if found.quantize or found.dequantize:
        words.append(
            f"QuantizeLinear {found.quantize}, DequantizeLinear {found.dequantize} "
            f"({found.pairs} pairs, {found.dequantized_weights} on weights)"
        )
    if found.dynamic:
        words.append(f"dynamic: DynamicQuantizeLinear {found.dynamic}")
    if found.integer_ops:
        words.append(_counted(found.integer_ops))
    if found.annotations:
        words.append(plural(found.annotations, "annotation"))
    if found.low_bit_bytes:
        words.append(f"{_render.format_bytes(found.low_bit_bytes)} stored in 8 bits or fewer")
    return "; ".join(words)


def _provenance(card: Card) -> str:
    traced = {kind: count for kind, count in card.provenance.items() if kind != "none"}
    if not traced:
        return "no trace of modules or source lines in the nodes"
    how = {"torch.export": "metadata of the default exporter", "torchscript": "names of the TorchScript exporter"}
    kinds = " and ".join(f"{how[kind]} on {count:,}" for kind, count in traced.items())
    return f"{kinds} of {card.all_nodes:,} nodes; the module of {card.in_modules:,} is known (--scopes)"
