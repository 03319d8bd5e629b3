"""What a runtime forgives and the onnx checker does not, mended.

ONNX Runtime runs models whose nodes are out of order, whose graph has no name, whose outputs carry no type, or
whose value infos contradict the operators. Real files have all of these. Each mend changes no number that the
model computes, and is reported in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from onnxbench.graph import GraphIndex, node_bodies, sort_nodes
from onnxbench.inference import bare, inferred, inferred_types
from onnxbench.tensortype import agree, format_type, is_complete, tensor_shape

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TypeProto


def repair(proto: ModelProto, *, complete: Callable[[ModelProto], ModelProto] | None = None) -> list[str]:
    """Mends a model in place and returns what was done, one sentence each.

    Args:
        proto: The model.
        complete: Gives a structure the small weights that type inference needs (``Model.with_small_weights``).

    Raises:
        ModelError: It cannot be mended: a cycle, or a tensor made twice.
    """
    mends = (_name_graphs, _set_ir_version, _spell_domains, _sort_nodes, _mend_dims, _say_default_axes)
    return [words for mend in mends for words in mend(proto)] + _mend_types(proto, complete)


def _graphs(proto: ModelProto) -> Iterator[GraphProto]:
    """Yields the main graph and every body, outer before inner."""
    pending: list[Iterable[NodeProto]] = [proto.graph.node, *(function.node for function in proto.functions)]
    yield proto.graph
    while pending:
        for node in pending.pop():
            if node.attribute:
                for _, body in node_bodies(node):
                    yield body
                    pending.append(body.node)


def _name_graphs(proto: ModelProto) -> list[str]:
    done = []
    for graph in _graphs(proto):
        if not graph.name:
            graph.name = "main_graph" if graph is proto.graph else "body"
            done.append(f"a graph had no name; it is called {graph.name!r} now")
    return done


def _set_ir_version(proto: ModelProto) -> list[str]:
    if proto.ir_version:
        return []
    from onnx import helper

    proto.ir_version = helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    return [f"the model had no IR version; it has {proto.ir_version} now, which its opsets need"]


def _spell_domains(proto: ModelProto) -> list[str]:
    """Writes the standard domain as the empty string everywhere, and imports it once."""
    done = []
    for opset in proto.opset_import:
        if opset.domain == "ai.onnx":
            opset.domain = ""
            done.append("the opset import 'ai.onnx' is written as '' now, which is the same")
    for position in range(len(proto.opset_import) - 1, -1, -1):
        opset = proto.opset_import[position]
        same = [o for o in proto.opset_import if (o.domain, o.version) == (opset.domain, opset.version)]
        if len(same) > 1:
            del proto.opset_import[position]
            done.append(f"opset {opset.domain or 'ai.onnx'!r} was imported twice; once is enough")
    renamed = 0
    for nodes in (*(graph.node for graph in _graphs(proto)), *(function.node for function in proto.functions)):
        for node in nodes:
            if node.domain == "ai.onnx":
                node.domain = ""
                renamed += 1
    if renamed:
        done.append(f"{renamed} nodes spelled the standard domain 'ai.onnx'; it is '' now, which is the same")
    return done


def _mend_dims(proto: ModelProto) -> list[str]:
    """Makes a dimension of -1, as old exporters wrote it, an unknown one."""
    done = []
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if info.type.WhichOneof("value") == "tensor_type":
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_value == -1:
                    dim.ClearField("value")
                    done.append(f"{info.name!r} had a dimension of -1; it is an unknown one now")
    return done


def _say_default_axes(proto: ModelProto) -> list[str]:
    """Writes out the default axes of MeanVarianceNormalization: the checker's own definition of it forgets them."""
    from onnx import helper

    done = []
    for nodes in (*(graph.node for graph in _graphs(proto)), *(function.node for function in proto.functions)):
        for node in nodes:
            if node.op_type == "MeanVarianceNormalization" and not node.domain and not node.attribute:
                node.attribute.append(helper.make_attribute("axes", [0, 2, 3]))
                done.append(f"the axes of node {node.name or node.op_type!r} were left to their default, [0, 2, 3]")
    return done


def _sort_nodes(proto: ModelProto) -> list[str]:
    paths = [scope.path for scope in GraphIndex(proto).scopes]
    done = []
    for number, order in sort_nodes(proto):
        moved = sum(position != at for at, position in enumerate(order))
        where = paths[number] or "the graph"
        done.append(f"{moved} of {len(order)} nodes of {where} were out of order; they are sorted")
    return done


def _mend_types(proto: ModelProto, complete: Callable[[ModelProto], ModelProto] | None) -> list[str]:
    """Completes the types of outputs and drops value infos that contradict what the operators make."""
    made = inferred(bare(proto) if complete is None else complete(bare(proto)))
    types = inferred_types(made, [info.name for info in (*made.graph.value_info, *made.graph.output)])
    return [*_mend_value_infos(proto.graph, types), *_mend_outputs(proto.graph, types)]


def _mend_value_infos(graph: GraphProto, types: dict[str, TypeProto]) -> list[str]:
    wrong = [info for info in graph.value_info if info.name in types and not agree(info.type, types[info.name])]
    if not wrong:
        return []
    words = [f"{info.name!r} said {format_type(info.type)}, is {format_type(types[info.name])}" for info in wrong]
    names = {info.name for info in wrong}
    for position in reversed(range(len(graph.value_info))):
        if graph.value_info[position].name in names:
            graph.value_info[position].type.CopyFrom(types[graph.value_info[position].name])
    return [f"value info contradicted the operators and was corrected: {text}" for text in words]


def _mend_outputs(graph: GraphProto, types: dict[str, TypeProto]) -> list[str]:
    done = []
    own = {info.name: info.type for info in graph.input}
    own.update((info.name, info.type) for info in graph.value_info)
    for output in graph.output:
        known = types.get(output.name) or own.get(output.name)
        if known is None or not is_complete(known):
            continue
        if not is_complete(output.type):
            output.type.CopyFrom(known)
            done.append(f"output {output.name!r} had no type; it is {format_type(known)}")
        elif tensor_shape(output.type) is None and tensor_shape(known) is not None:
            output.type.CopyFrom(known)
            done.append(f"output {output.name!r} had no shape; it is {format_type(known)}")
        elif not agree(output.type, known):
            done.append(f"output {output.name!r} said {format_type(output.type)}; it is {format_type(known)}")
            output.type.CopyFrom(known)
    return done
