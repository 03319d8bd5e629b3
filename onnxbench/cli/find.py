"""``onnxbench find``: what selectors match, with all that is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onnxbench.cli import _render
from onnxbench.cli._options import AllowOutside, AsJson, Infer, ModelArgument
from onnxbench.cli._records import (
    NODE_COLUMNS,
    TENSOR_COLUMNS,
    attribute_text,
    kind_of,
    module_text,
    node_row,
    tensor_row,
    type_sources,
)
from onnxbench.cli._tables import print_fields, print_heading, print_table
from onnxbench.errors import UsageError

if TYPE_CHECKING:
    from onnxbench.records import Found, Link, NodeRecord, Origin, TensorRecord

_LONG_UP_TO = 12
_MOST_USES = 12


def find(
    model: ModelArgument,
    selectors: Annotated[
        list[str], typer.Argument(metavar="SELECTOR...", help="What to look for.", show_default=False)
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="Tensors: of matching nodes, what they make.")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="Nodes: of matching tensors, what makes them.")] = False,
    names: Annotated[
        bool, typer.Option("--names", help="Only names, one per line, as selectors (nodes as node:NAME).")
    ] = False,
    count: Annotated[bool, typer.Option("--count", "-c", help="Only how many there are.")] = False,
    long: Annotated[
        bool | None,
        typer.Option(
            "--long/--short",
            help="All that is known, or a table. Default: a table of more than 12.",
            show_default=False,
        ),
    ] = None,
    infer: Infer = None,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
) -> None:
    """Find tensors and nodes by selectors.

    Shows what makes and reads them, type, module and source line. No weight is read.

    \b
    Selectors (all commands take them):
      conv1_out               a tensor by its exact name, whatever characters it has
      'conv*_out' 'x[0-9]'    tensors by glob
      're:conv[0-9]+_(a|b)'      tensors by regular expression
      node:Conv_3 node:#12    nodes by name, glob or position
      op:Conv op:com.x::Foo   nodes by operator type
      scope:layer1.0          nodes of a PyTorch module and the modules in it
      'input:*' 'output:*' 'weight:*'   the model's inputs, outputs, initializers
      dtype:float16           tensors whose element type the model states
      mark:func[1]:output     tensors at a Mark of an exported function
      upstream(x) downstream(x) between(a,b)   what x depends on, what depends on it
      'A & B' 'A | B' '!A'    both, either, not
      @names.txt              one selector per line
    Tensors in bodies and functions have a path: If_3/then/x, local::Block/x.

    \b
    Examples:
      onnxbench find model.onnx conv1_out
      onnxbench find model.onnx op:Conv --count
      onnxbench find model.onnx 'scope:encoder.layer.0 & op:MatMul'
      onnxbench find model.onnx 'between(22, 28)' --names > names.txt
      onnxbench find model.onnx node:Conv_3 --tensors --json
    """
    from onnxbench.model import load
    from onnxbench.records import find as look_up

    if tensors and nodes:
        raise UsageError("--tensors and --nodes cannot both be wanted", hint="Without either, both are shown.")
    if names and count:
        raise UsageError("--names and --count cannot both be wanted")
    if long is not None and (names or count):
        raise UsageError(f"{'--long' if long else '--short'} is for tables, not for --{'names' if names else 'count'}")
    only: Literal["nodes", "tensors"] | None = "nodes" if nodes else "tensors" if tensors else None
    loaded = load(model, allow_outside=allow_outside, require_weights=False)
    found = look_up(loaded, selectors, only=only, infer=infer, sources=type_sources(infer), names_only=names or count)
    if as_json:
        _render.print_json("find", {"count": len(found.names), "names": found.names, **_records(found, names or count)})
    elif count:
        print(len(found.names))
    elif names:
        print("\n".join(found.names))
    else:
        _print(found, long=len(found.names) <= _LONG_UP_TO if long is None else long)


def _records(found: Found, without: bool) -> dict[str, Sequence[object]]:
    return {} if without else {"tensors": found.tensors, "nodes": found.nodes}


def _print(found: Found, *, long: bool) -> None:
    if long:
        for number, tensor in enumerate(found.tensors):
            print("\n" * bool(number), end="")
            print_heading(tensor.name)
            print_fields(_tensor_fields(tensor), indent=2)
        for number, node in enumerate(found.nodes, len(found.tensors)):
            print("\n" * bool(number), end="")
            print_heading(node.path)
            print_fields(_node_fields(node), indent=2)
        return
    if found.tensors:
        print_table(TENSOR_COLUMNS, map(tensor_row, found.tensors))
    if found.nodes:
        print("\n" * bool(found.tensors), end="")
        print_table(NODE_COLUMNS, map(node_row, found.nodes))


def _tensor_fields(tensor: TensorRecord) -> Iterable[tuple[str, str]]:
    known = tensor.type
    how = {"model": "", "inference": "  (inferred)", "nobody": "  (unknown)"}[known.by]
    yield "tensor", kind_of(tensor) + (f" of {tensor.graph}" if tensor.graph else "")
    yield "type", known.text + how
    if tensor.bytes is not None:
        yield "bytes", _render.format_bytes(tensor.bytes)
    if tensor.producer is not None:
        yield "made by", f"{tensor.producer}  ({tensor.producer_op}, output {tensor.producer_output})"
    for use in tensor.consumers[:_MOST_USES]:
        how = "a body of it returns it" if use.input is None else f"input {use.input}"
        yield "read by", f"{use.node}  ({use.op}, {how})"
    more = len(tensor.consumers) - _MOST_USES
    if more > 0:
        yield "read by", f"... and {more:,} more"
    if not tensor.consumers:
        yield "read by", "nothing" + (" (it is an output)" if tensor.is_output else "")
    yield from _origin_fields(tensor.origin)


def _node_fields(node: NodeRecord) -> Iterable[tuple[str, str]]:
    called = ", a call of a local function" if node.is_function_call else ""
    yield "node", f"{node.op}{called}; number {node.position}" + (f" of {node.graph}" if node.graph else "")
    if not node.name:
        yield "name", "none in the file"
    elif node.path.rpartition("/")[2] != node.name and not node.path.endswith(node.name):
        yield "name", f"{node.name} (shared with other nodes)"
    for link in node.inputs:
        yield "input", _link(link)
    for name in node.captures:
        yield "captures", name
    for link in node.outputs:
        yield "output", _link(link)
    for key, value in node.attributes.items():
        yield "attribute", f"{key} = {attribute_text(value)}"
    for body in node.bodies:
        yield "body", body
    yield from _origin_fields(node.origin)


def _link(link: Link) -> str:
    if not link.name:
        return "- (left out)"
    return f"{link.name}  {link.type}" + ("" if link.kind == "inner" else f"  ({link.kind})")


def _origin_fields(origin: Origin) -> Iterable[tuple[str, str]]:
    if origin.module is not None:
        of_class = f"  ({origin.module_class})" if origin.module_class else ""
        yield "module", module_text(origin.module, origin.call) + of_class
    if origin.source:
        yield "source", origin.source
    if origin.code:
        yield "code", origin.code if len(origin.code) <= 300 else origin.code[:300] + "..."
    if origin.rule:
        yield "made in", f"the exporter's rewrite {origin.rule}"
