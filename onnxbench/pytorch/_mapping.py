"""Which PyTorch value an ONNX value is, made certain with the program that the exporter itself used.

The default exporter gives an ONNX value that ends an fx node that node's name, and writes the fx node into the
metadata. A name alone can lie: the optimizer makes new values, and a program that was exported again numbers its
nodes anew. So a name counts only if the metadata of the node equals the fx node as it is printed (for an element of a
tuple, that of the tuple).
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from onnxbench import select
from onnxbench.graph import GraphIndex
from onnxbench.provenance import (
    CLASSES,
    FX_NODE,
    NAME_SCOPES,
    ORIGINS,
    RULE,
    STACK_TRACE,
    TRACE,
    fx_values,
    set_fx_values,
    set_metadata,
)

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.model import Model

_COPIES = frozenset({"aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default"})
_TRACE_LINE = re.compile(r"^(.+?)\((\d+)\): (\S+)$", re.MULTILINE)
_OWN_FRAME = re.compile(
    r'\s*File "[^"]*[/\\]onnxbench[/\\]pytorch[/\\]'
    r'(?:_autograd|_patching|_symbolics|_torchscript|rewrite_context|_stand_ins)\.py", line \d+, in \S+'
    r"(?:\n    [^\n]*)?"
)
"""What calls a rewrite: no code of the model."""
_COPIED = (NAME_SCOPES, "pkg.torch.onnx.class_hierarchy", FX_NODE, STACK_TRACE, "namespace")


def map_program(model: Model, program: Any) -> None:
    """Writes into the metadata of a fresh export which values are those of fx nodes, and what fusions were made of.

    Args:
        model: What the default exporter made; the metadata of its nodes is changed.
        program: The ``ExportedProgram`` that the exporter used.
    """
    index = GraphIndex(model.proto)
    for ref in index.nodes():
        for entry in ref.node.metadata_props:
            if entry.key == STACK_TRACE:
                entry.value = _OWN_FRAME.sub("", entry.value)
    _fill(index, _COPIED)
    known = dict(fx_nodes(program.graph_module))
    order = {name: at for at, name in enumerate(known)}
    exact: set[str] = set()
    for ref in index.nodes():
        said = _metadata(ref.node)
        names = [name if is_value(known.get(name), said.get(FX_NODE)) else None for name in ref.node.output]
        set_fx_values(ref.node, names)
        exact.update(name for name in names if name)
    _name_what_leaves(index, known, exact)
    for ref in index.nodes():
        if RULE not in _metadata(ref.node):
            continue
        gone = fx_origins([known[name] for name in ref.node.output if name in exact], exact, order)
        if gone:
            set_metadata(ref.node, {ORIGINS: " ".join(gone)})


def _name_what_leaves(index: GraphIndex, known: Mapping[str, Any], exact: set[str]) -> None:
    """Says whose values those are that end an fx node and are not called like it.

    These are elements of a tuple that one ONNX node makes whole, and what is left of an fx node when the optimizer has
    dropped the copy that had its name. Both are told by who reads them: nodes of fx nodes that read this fx node.
    """
    main = index.main
    said = [_metadata(node).get(FX_NODE) for node in main.nodes]
    printed = {str(node.format_node()): node for node in known.values() if node.op == "call_function"}
    made = {name: fx for node in main.nodes for name, fx in zip(node.output, fx_values(node), strict=True) if fx}
    ends = set(main.outputs)
    left: dict[Any, list[tuple[int, int]]] = {}
    for position, node in enumerate(main.nodes):
        if RULE in _metadata(node):
            continue
        own = _element_of(node, made, known) if len(node.output) > 1 else printed.get(said[position] or "")
        for at, output in enumerate(node.output if own is not None else ()):
            readers = [said[each] for each in main.consumers.get(output, ())]
            if output and (output in ends or any(each != said[position] or len(node.output) > 1 for each in readers)):
                left.setdefault(own, []).append((position, at))
    for own, places in left.items():
        elements = _elements(own)
        whole = len(places) == 1 and not elements and own.name not in exact
        if not whole and len({position for position, _ in places}) != 1:
            continue
        for position, at in places:
            node = main.nodes[position]
            element = own if whole else elements.get(at)
            if element is None or element.name in exact or fx_values(node)[at] is not None:
                continue
            after = [printed.get(said[each] or "") for each in main.consumers.get(node.output[at], ())]
            if any(each is None or element not in each.all_input_nodes for each in after):
                continue
            set_fx_values(node, [*fx_values(node)[:at], element.name, *fx_values(node)[at + 1 :]])
            exact.add(element.name)
            if len(node.output) > 1:
                set_metadata(node, {FX_NODE: str(own.format_node())})


def is_element(node: Any) -> bool:
    """Tells whether an fx node takes one element of what another one gives, a tuple."""
    return getattr(node.target, "__name__", "") == "getitem"


def _elements(node: Any) -> dict[int, Any]:
    """Returns the fx nodes that are the elements of what an fx node gives, a tuple, by position."""
    return {user.args[1]: user for user in node.users if is_element(user) and isinstance(user.args[1], int)}


def _element_of(node: NodeProto, made: Mapping[str, str], known: Mapping[str, Any]) -> Any:
    """Returns the fx node that gives a tuple of as many elements as a node has outputs, out of what the node reads."""
    sources = [known[made[name]] for name in node.input if name in made]
    found = [
        user
        for user in (sources[0].users if sources else ())
        if isinstance(user.meta.get("val"), (tuple, list)) and len(user.meta["val"]) == len(node.output)
    ]
    return found[0] if len(found) == 1 else None


def fx_nodes(module: Any) -> Iterator[tuple[str, Any]]:
    """Yields the fx nodes of a program by name; those of bodies (``torch.cond``) where no outer one has the name."""
    bodies = [module]
    for body in bodies:
        bodies += [each for each in body.children() if hasattr(each, "graph")]
    for body in reversed(bodies):
        yield from ((node.name, node) for node in body.graph.nodes)


def is_value(node: Any, said: str | None) -> bool:
    """Tells whether the fx node that a value is named after is the one that its metadata tells of."""
    while node is not None and said is not None:
        if said == str(node.format_node()):
            return True
        if node.op != "call_function":
            return False
        if is_element(node):
            return said == str(node.args[0].format_node())
        # Where the optimizer drops a copy, what is copied takes the name of the copy.
        node = node.args[0] if str(node.target) in _COPIES else None
    return False


def fx_origins(ends: list[Any], exact: set[str], order: Mapping[str, int]) -> list[str]:
    """Returns the fx nodes between these and the nearest ones whose values exist in the file, in program order."""
    found: dict[str, Any] = {}
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node.name in found or node.op not in ("call_function", "call_module", "call_method"):
            continue
        found[node.name] = node
        pending += [each for each in node.all_input_nodes if each.name not in exact]
    return sorted(found, key=order.__getitem__)


def _fill(index: GraphIndex, keys: tuple[str, ...]) -> None:
    """Gives nodes that the optimizer made without metadata that of the node that reads them.

    What it adds before a node (a constant, a reshape) belongs to what that node computes.
    """
    for scope in index.scopes:
        readers: dict[str, NodeProto] = {}
        for node in reversed(scope.nodes):
            if keys[0] not in _metadata(node):
                reader = next((readers[name] for name in node.output if name in readers), None)
                said = _metadata(reader) if reader is not None else {}
                set_metadata(node, {key: said[key] for key in keys if key in said})
            for name in node.input:
                readers[name] = node


def _metadata(node: NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props if isinstance(entry.value, str)}


def map_torchscript(model: Model, module: Any) -> None:
    """Writes stack traces and module classes into the metadata of a fresh TorchScript export.

    The exporter leaves the traces in the doc strings of the nodes, innermost call first; they are taken out of there.

    Args:
        model: What the exporter made; its nodes are changed.
        module: The module.
    """
    index = GraphIndex(model.proto)
    origins = select.origins(index)
    classes = {path: _class_name(each) for path, each in module.named_modules()}
    for ref in index.nodes():
        node = ref.node
        trace = _trace(node.doc_string)
        if not trace:
            continue
        scope = origins.scope(node)
        node.ClearField("doc_string")
        said = {TRACE: trace}
        if scope is not None:
            parts = scope.split(".") if scope else []
            around = ["", *(".".join(parts[:end]) for end in range(1, len(parts) + 1))]
            said[CLASSES] = repr([classes[path] for path in around if path in classes])
        set_metadata(node, said)
    _fill(index, (TRACE, CLASSES))
    _name_after_readers(index)


def _name_after_readers(index: GraphIndex) -> None:
    """Names nodes that tell no module (constants that the exporter shares) after that of the node that reads them."""
    for scope in index.scopes:
        readers: dict[str, NodeProto] = {}
        for node in reversed(scope.nodes):
            reader = next((readers[name] for name in node.output if name in readers), None)
            if reader is not None and not node.name.startswith("/") and reader.name.startswith("/"):
                own = node.name or re.sub(r"\W+", "_", node.output[0])
                node.name = f"{reader.name.rpartition('/')[0]}/{own}"
            for name in node.input:
                readers[name] = node


def _class_name(module: Any) -> str:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def _trace(text: str) -> str:
    """Returns a TorchScript stack trace as the other exporter writes one: outermost call first, with the code."""
    lines = [
        f'File "{file}", line {number}, in {function}\n    {linecache.getline(file, int(number)).strip()}'
        for file, number, function in reversed(_TRACE_LINE.findall(text))
        if not re.search(r"[/\\]torch[/\\](nn[/\\]modules[/\\]module|jit|onnx|_?utils)", file)
    ]
    first = next((at for at, line in enumerate(lines) if ", in forward" in line), 0)
    return _OWN_FRAME.sub("", "\n  ".join(lines[first:]))


def weight_names(model: Model, state: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many initializers carry a name of the state dict, and how many there are."""
    names = [tensor.name for tensor in model.proto.graph.initializer]
    return sum(name in state for name in names), len(names)
