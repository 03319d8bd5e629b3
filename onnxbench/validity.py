"""Whether a model is valid: the onnx checker in full, and what it does not look at.

The full check needs a model without holes, and must not read gigabytes of weights. So it is run on the
structure, in which every tensor that lies outside points to one small file. Two things that the ONNX standard
and runtimes allow are not accepted by the full check as it stands, and are checked in two steps instead, structure
and then strict type inference: sparse initializers (inference has no notion of them) and inputs or outputs of
unknown rank (the structure check wants a shape, of any kind).

The checker does not notice undefined outputs, references to attributes that nobody gives, calls of functions with
too many arguments, data longer than its tensor, negative dimensions, or two versions of one opset. These are
looked at here.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.errors import ModelError, RefusedResultError
from onnxbench.graph import node_bodies
from onnxbench.inference import slim
from onnxbench.repair import repair
from onnxbench.schemas import describe_unknown, plain_domain
from onnxbench.tensortype import dtype_bits, make_type, make_value_info, raw_size, tensor_shape

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

_MOST_COMPLAINTS = 12
_UNKNOWN_OPERATOR = re.compile(r"No Op registered for (\S+) with domain_version of (\d+)")
_TENSOR, _TENSORS, _GRAPHS = 4, 9, (5, 10)  # AttributeProto types
Complete = Callable[["ModelProto"], "ModelProto"]


def make_valid(proto: ModelProto, *, complete: Complete | None = None) -> list[str]:
    """Repairs a model in place if it is not valid, and returns what was done.

    Args:
        proto: The model.
        complete: Gives a structure the small weights that type inference needs, where they may lie outside
            (``Model.with_small_weights``).

    Raises:
        RefusedResultError: It is not valid even so.
    """
    complaints = find_complaints(proto, complete=complete)
    if not complaints and not any(map(_is_rankless, proto.graph.output)):
        return []
    try:
        repairs = repair(proto, complete=complete)
    except ModelError as error:
        raise RefusedResultError(error.message, hint=error.hint) from None
    if repairs:
        complaints = find_complaints(proto, complete=complete)
    if complaints:
        raise RefusedResultError(
            "the result is not a valid ONNX model, so it was not written",
            hint=_way_out(complaints),
            details=complaints,
        )
    return repairs


def validate(proto: ModelProto) -> None:
    """Raises RefusedResultError if a model is not valid."""
    complaints = find_complaints(proto)
    if complaints:
        raise RefusedResultError("the model is not valid ONNX", hint=_way_out(complaints), details=complaints)


def _way_out(complaints: Iterable[str]) -> str | None:
    """Returns what helps against an operator that the standard domain does not have, where that is the complaint."""
    found = next(filter(None, map(_UNKNOWN_OPERATOR.search, complaints)), None)
    return None if found is None else describe_unknown("", found[1], int(found[2]))[1]


def find_complaints(proto: ModelProto, *, complete: Complete | None = None) -> list[str]:
    """Returns what makes a model invalid, or an empty list; large weights may lie outside its structure.

    Args:
        proto: The model.
        complete: As for ``make_valid``.
    """
    complaints = list(_own_complaints(proto))[:_MOST_COMPLAINTS]
    return complaints or checker_complaints(proto if complete is None else complete(proto))


def checker_complaints(proto: ModelProto) -> list[str]:
    """Returns the lines of the full onnx checker's first complaint, or an empty list."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="onnxbench-") as folder:
        standin = Path(folder) / "model.onnx"
        structure = slim(proto, place=standin.name)
        rankless = any(map(_is_rankless, (*proto.graph.input, *proto.graph.output)))
        in_two_steps = rankless or len(proto.graph.sparse_initializer) > 0
        inference = type(proto)()
        if in_two_steps:
            checked = type(proto).FromString(structure)
            inference.CopyFrom(checked)
            _make_sparse_inputs(inference.graph)
            for info in (*checked.graph.input, *checked.graph.output):
                if _is_rankless(info):
                    info.type.tensor_type.shape.SetInParent()
            structure = checked.SerializeToString()
        standin.write_bytes(structure)
        try:
            onnx.checker.check_model(os.fspath(standin), full_check=not in_two_steps)
            if in_two_steps:
                onnx.shape_inference.infer_shapes(inference, check_type=True, strict_mode=True)
        except Exception as error:  # ValidationError, InferenceError, and RuntimeError from C++
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return lines[:_MOST_COMPLAINTS] or [repr(error)]
    return []


def _is_rankless(info: ValueInfoProto) -> bool:
    return info.type.WhichOneof("value") == "tensor_type" and tensor_shape(info.type) is None


def _make_sparse_inputs(graph: GraphProto) -> None:
    """Turns sparse initializers into inputs of their type, for type inference."""
    for sparse in graph.sparse_initializer:
        graph.input.append(make_value_info(sparse.values.name, make_type(sparse.values.data_type, tuple(sparse.dims))))
    del graph.sparse_initializer[:]


def _own_complaints(proto: ModelProto) -> Iterable[str]:
    """Yields what the onnx checker does not look at."""
    yield from _opset_complaints(proto)
    yield from _graph_output_complaints(proto.graph)
    for info in (*proto.graph.input, *proto.graph.output):
        for dim in tensor_shape(info.type) or ():
            if isinstance(dim, int) and dim < 0:
                yield f"{info.name!r} has a dimension of {dim}"
    yield from _data_complaints(proto.graph.initializer)
    given_names = [*(info.name for info in proto.graph.input), *(tensor.name for tensor in proto.graph.initializer)]
    if complaint := _text_complaint(given_names):
        yield complaint
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    yield from _node_complaints(proto.graph.node, frozenset(), functions)
    for function in proto.functions:
        yield from _function_complaints(function)
        given = frozenset((*function.attribute, *(a.name for a in function.attribute_proto)))
        yield from _node_complaints(function.node, given, functions)


def _text_complaint(names: list[str]) -> str | None:
    """Returns a complaint if one of these is not UTF-8 text: protobuf hands such a name out as bytes."""
    try:
        "".join(names)
    except TypeError:
        wrong = next(name for name in names if not isinstance(name, str))
        return f"the tensor name {wrong!r} is not UTF-8 text"
    return None


def _opset_complaints(proto: ModelProto) -> Iterable[str]:
    from onnx import defs

    versions: dict[str, int] = {}
    for opset in proto.opset_import:
        domain = plain_domain(opset.domain)
        if versions.setdefault(domain, opset.version) != opset.version:
            yield f"opset {domain or 'ai.onnx'!r} is imported in two versions, {versions[domain]} and {opset.version}"
    newest = defs.onnx_opset_version()
    if versions.get("", 0) > newest:
        yield f"the model uses opset {versions['']}, and the onnx package that is installed knows opsets up to {newest}"


def _graph_output_complaints(graph: GraphProto) -> Iterable[str]:
    missing = {info.name for info in graph.output}
    missing.difference_update(info.name for info in graph.input)
    missing.difference_update(tensor.name for tensor in graph.initializer)
    missing.difference_update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in reversed(graph.node):  # what makes an output is mostly near the end
        if not missing:
            return
        missing.difference_update(node.output)
    for info in graph.output:
        if info.name in missing:
            yield f"graph output {info.name!r} is made by no node"


def _data_complaint(tensor: TensorProto) -> str | None:
    """Returns a complaint about data that does not have the size of its tensor; too little the checker finds."""
    if tensor.data_location == 1:
        size = weights.stub_length(tensor)  # other external data is looked at where its file is
    else:
        size = len(tensor.raw_data)
    if size:
        wanted = raw_size(tensor.dims, tensor.data_type)
        if (size > wanted or (size < wanted and tensor.data_location == 1)) and dtype_bits(tensor.data_type):
            return f"tensor {tensor.name!r} has {size:,} bytes of data where its type and shape take {wanted:,}"
    elif tensor.float_data and tensor.data_type == 1:
        count = raw_size(tensor.dims, 1) // 4
        if len(tensor.float_data) > count:
            return f"tensor {tensor.name!r} has {len(tensor.float_data):,} values where its shape takes {count:,}"
    return None


def _node_complaints(
    nodes: Iterable[NodeProto],
    given: frozenset[str],
    functions: dict[tuple[str, str, str], FunctionProto],
) -> Iterable[str]:
    """Yields complaints about attribute references, tensors in attributes, and calls, in bodies too."""
    pending = [nodes]
    names: list[str] = []
    while pending:
        for node in pending.pop():
            names += node.output[:]
            for attribute in node.attribute or ():
                kind = attribute.type
                if attribute.ref_attr_name and attribute.ref_attr_name not in given:
                    yield (
                        f"attribute {attribute.name!r} of node {node.name or node.op_type!r} refers to attribute "
                        f"{attribute.ref_attr_name!r}, which nobody gives"
                    )
                if kind in (_TENSOR, _TENSORS):
                    yield from _data_complaints((attribute.t,) if kind == _TENSOR else attribute.tensors)
                elif kind in _GRAPHS:
                    bodies = [body for _, body in node_bodies(node)]
                    pending += [body.node for body in bodies]
                    for body in bodies:
                        yield from _data_complaints(body.initializer)
            if functions:
                function = functions.get((node.domain, node.op_type, node.overload))
                if function is not None:
                    yield from _call_complaints(node, function)
    complaint = _text_complaint(names)
    if complaint:
        yield complaint


def _data_complaints(tensors: Iterable[TensorProto]) -> Iterable[str]:
    return (complaint for tensor in tensors if (complaint := _data_complaint(tensor)))


def _call_complaints(node: NodeProto, function: FunctionProto) -> Iterable[str]:
    for what, said, taken in (
        ("inputs", len(node.input), len(function.input)),
        ("outputs", len(node.output), len(function.output)),
    ):
        if said > taken:
            label = node.name or node.output[0]
            yield f"node {label!r} calls {function.domain}::{function.name} with {said} {what}; it has {taken}"


def _function_complaints(function: FunctionProto) -> Iterable[str]:
    defined = {name for node in function.node for name in node.output}.union(function.input)
    for name in function.output:
        if name not in defined:
            yield f"output {name!r} of function {function.domain}::{function.name} is made by no node"
