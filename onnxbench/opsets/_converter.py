"""onnx's version converter, asked about single nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.messages import copy_of
from onnxbench.opsets._problems import MAIN, Problem

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, TypeProto


def through_onnx(problems: Sequence[Problem], source: int, target: int) -> list[tuple[list[NodeProto], str]]:
    """Returns what onnx makes of each problem's one node, or why it makes nothing.

    A call takes 20 ms, whatever it is asked, so all are asked at once. It fails as a whole: then kind by kind, and in
    a kind that fails node by node.
    """
    results: dict[int, tuple[list[NodeProto], str]] = {}
    _ask(list(enumerate(problems)), source, target, results)
    return [results[number] for number in range(len(problems))]


def _ask(
    numbered: list[tuple[int, Problem]], source: int, target: int, results: dict[int, tuple[list[NodeProto], str]]
) -> None:
    pending = [numbered] if numbered else []
    while pending:
        group = pending.pop()
        try:
            made = _converted(group, source, target)
        except Exception as error:  # RuntimeError and others, from C++
            kinds: dict[str, list[tuple[int, Problem]]] = defaultdict(list)
            for number, problem in group:
                kinds[problem.nodes[0].op_type].append((number, problem))
            if len(kinds) > 1:
                pending += kinds.values()
            elif len(group) > 1 and _has_no_adapter(error):
                results.update((number, ([], _words(error))) for number, _ in group)
            elif len(group) > 1:
                half = len(group) // 2
                pending += [group[:half], group[half:]]
            else:
                results[group[0][0]] = ([], _words(error))
            continue
        results.update((number, (nodes, "")) for number, nodes in made.items())


def _has_no_adapter(error: Exception) -> bool:
    return "No Adapter" in str(error) or "No Previous Version" in str(error)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text.partition("` failed: ")[2] or text
    if _has_no_adapter(error):
        return "onnx's version converter has no way to say it"
    return f"onnx's version converter says: {text[:160]}"


def _converted(group: list[tuple[int, Problem]], source: int, target: int) -> dict[int, list[NodeProto]]:
    from onnx import ModelProto, version_converter

    proto = ModelProto(ir_version=10)
    proto.opset_import.add(domain="", version=source)
    graph = proto.graph
    graph.name = "problems"
    ends: dict[int, list[str]] = {}
    for number, problem in group:
        node = graph.node.add()
        node.CopyFrom(problem.nodes[0])
        node.name = str(number)
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name:
                    names[at] = f"{number}.{name}"
        for name in dict.fromkeys(name for name in problem.nodes[0].input if name):
            if name in problem.constants:
                tensor = graph.initializer.add()
                tensor.CopyFrom(problem.constants[name])
                tensor.name = f"{number}.{name}"
            else:
                _add_info(graph.input.add(), f"{number}.{name}", problem.types.get(name))
        ends[number] = [name for name in node.output if name]
        for name in ends[number]:
            _add_info(graph.output.add(), name, None)
    given = {tensor.name for tensor in graph.initializer}
    result = version_converter.convert_version(proto, target).graph
    nodes = [*result.node, *(_constant_node(tensor) for tensor in result.initializer if tensor.name not in given)]
    order = {id(node): at for at, node in enumerate(nodes)}
    producers = {name: node for node in nodes for name in node.output if name}
    made: dict[int, list[NodeProto]] = {}
    for number, _ in group:
        reached: dict[int, NodeProto] = {}
        pending = [producers[name] for name in ends[number]]
        while pending:
            node = pending.pop()
            if id(node) not in reached:
                reached[id(node)] = node
                pending += [producers[name] for name in node.input if name in producers]
        chosen = sorted(reached.values(), key=lambda node: (node.op_type == "Constant" and -1, order[id(node)]))
        made[number] = _short_names(chosen, number)
    return made


def _add_info(info: Any, name: str, value: TypeProto | None) -> None:
    info.name = name
    if value is not None:
        info.type.CopyFrom(value)


def _constant_node(tensor: TensorProto) -> NodeProto:
    from onnx import NodeProto

    node = NodeProto(op_type="Constant")
    node.output.append(tensor.name)
    node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
    node.attribute[0].t.ClearField("name")
    return node


def _short_names(nodes: Sequence[NodeProto], number: int) -> list[NodeProto]:
    """Returns nodes with the problem's own names: ``i0``, ``o0``, and ``f0`` for what lies between."""
    prefix = f"{number}."
    shortened: list[NodeProto] = []
    fresh: dict[str, str] = {}
    for node in nodes:
        copy = copy_of(node)
        copy.name = MAIN if node.name == str(number) else ""
        for names in (copy.output, copy.input):
            for at, name in enumerate(names):
                short = name.removeprefix(prefix)
                if not name:
                    continue
                if name.startswith(prefix) and short[0] in "io" and short[1:].isdigit():
                    names[at] = short
                else:
                    names[at] = fresh.setdefault(name, f"f{len(fresh)}")
        shortened.append(copy)
    if not any(node.name == MAIN for node in shortened) and shortened:
        shortened[-1].name = MAIN
    return shortened
