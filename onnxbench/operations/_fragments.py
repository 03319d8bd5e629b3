"""Nodes that are given as ONNX text, as nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.errors import NotFoundError, RefusedResultError, SpecError, did_you_mean
from onnxbench.graph import home_of
from onnxbench.modeltext import read, read_functions
from onnxbench.operations._new_nodes import refuse_unread

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

    from onnxbench.draft import Draft
    from onnxbench.graph import Scope


def read_fragment(
    draft: Draft, text: str, *, what: str = "the fragment", lines: Sequence[str] | None = None
) -> FunctionProto:
    """Returns a fragment of ONNX text, ``f (x) => (y) { y = Relu (x) }``, as a function.

    Args:
        draft: What it is for.
        text: The fragment.
        what: What errors call it.
        lines: What the user wrote of it, if a line was put before that.
    """
    imports = ", ".join(f'"{o.domain}": {o.version}' for o in draft.model.proto.opset_import)
    head = (
        f'<ir_version: 10, opset_import: [{imports}]> g () => () {{ }} <domain: "fragment", opset_import: [{imports}]>'
    )
    # its mistakes are told without what is put before it here
    read_functions(text, source=what, line=1 if lines is None else 0, context=lines or ())
    model = read(f"{head}\n{text}", source=what, folder=draft.folder, allow_outside=draft.allow_outside).model
    functions = model.proto.functions
    if len(functions) != 1:
        raise SpecError(f"the fragment is {len(functions)} functions, and one is wanted", hint="f (x) => (y) { ... }")
    found: FunctionProto = functions[0]
    return found


def fragment_nodes(
    draft: Draft, scope: Scope, text: str, inputs: Sequence[str], outputs: Sequence[str], constants: Mapping[str, Any]
) -> list[NodeProto]:
    """Returns the nodes of a fragment of ONNX text as nodes of a graph, whose names they read and make.

    Args:
        draft: What they are for.
        scope: The graph that they will stand in.
        text: The fragment: ``f (x) => (y) { y = Relu (x) }``.
        inputs: The tensors that its inputs stand for, by name where they have the same, else in order.
        outputs: The same of its outputs.
        constants: New constants, which it may read, too.

    Raises:
        SpecError: The text is no fragment.
        RefusedResultError: It has not as many inputs or outputs as it needs.
        NotFoundError: It reads what nothing makes.
        UsageError: It does not read one of the constants.
    """
    fragment = read_fragment(draft, text)
    refuse_unread(constants, names_read(fragment.node))
    names = _bound(fragment.input, inputs, "input") | _bound(fragment.output, outputs, "output")
    for node in fragment.node:
        for made in node.output:
            if made and made not in names:
                names[made] = draft.fresh(scope, made)
        draft.import_domain(scope, node.domain)
    allowed = {*names, *constants}
    for node in fragment.node:
        for number, read_name in enumerate(node.input):
            if read_name and read_name not in allowed and home_of(scope, read_name) is None:
                hint = did_you_mean(read_name, allowed)
                raise NotFoundError(f"the fragment reads {read_name!r}, which nothing makes", hint=hint)
            node.input[number] = names.get(read_name, read_name)
        for number, made in enumerate(node.output):
            node.output[number] = names.get(made, made)
        if node.name:
            node.name = draft.fresh_node(scope, node.name)
    return list(fragment.node)


def _bound(formals: Iterable[str], actuals: Sequence[str], what: str) -> dict[str, str]:
    """Returns the model's names for those of a fragment: the same where they are, else in order."""
    formal = list(formals)
    names = {name: name for name in formal if name in actuals}
    rest = [name for name in actuals if name not in names]
    open_names = [name for name in formal if name not in names]
    if len(open_names) > len(rest) or (what == "output" and len(open_names) != len(rest)):
        raise RefusedResultError(
            f"the fragment has {len(formal)} {what}s ({', '.join(formal)}), and the nodes have {len(actuals)}",
            hint=f"They are: {', '.join(actuals) or 'none'}. {what}s: [...] names them, in order.",
        )
    return names | dict(zip(open_names, rest, strict=False))


def names_read(nodes: Iterable[NodeProto]) -> set[str]:
    """Returns the names that nodes read, in bodies too."""
    found: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        found.update(node.input)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                pending += body.node
                found.update(info.name for info in body.output)
    return found - {""}
