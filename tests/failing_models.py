"""Models that do not run in ONNX Runtime, each in another way; the node that is to blame stands between others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MIN = np.iinfo(np.int64).min


def make(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any] | None = None,
    *,
    inputs: dict[str, tuple[int, list[Any]]],
    output: int = TensorProto.FLOAT,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """Returns a model with the output ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", 18)]
    if functions:
        imports.append(helper.make_opsetid("local", 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions or [])


def chain(prefix: str, source: str, count: int, other: str) -> tuple[list[onnx.NodeProto], str]:
    """Returns Add nodes one after the other, and what the last one makes."""
    nodes = []
    for at in range(count):
        nodes.append(helper.make_node("Add", [source, other], [f"{prefix}{at}"], f"{prefix}_{at}"))
        source = f"{prefix}{at}"
    return nodes, source


def crash(before: int = 9, after: int = 6) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The smallest int64 divided by -1, which ends the process with SIGFPE on x86."""
    front, last = chain("a", "x", before, "zero")
    back, end = chain("b", "q", after, "zero")
    nodes = [
        *front,
        helper.make_node("Sub", [last, "next"], ["minus"], "minus"),
        helper.make_node("Div", [last, "minus"], ["q"], "bad"),
        *back,
        helper.make_node("Identity", [end], ["y"], "end"),
    ]
    weights = {"zero": np.array(0), "next": np.array(MIN + 1)}
    model = make(nodes, weights, inputs={"x": (TensorProto.INT64, ["n"])}, output=TensorProto.INT64)
    return model, {"x": np.full(4, MIN)}


def _floats(bad: list[onnx.NodeProto], weights: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Returns a model whose nodes ``bad`` make ``q`` of ``in``, in the midst of others."""
    front, last = chain("a", "x", 5, "one")
    back, end = chain("b", "q", 4, "one")
    nodes = [
        *front, helper.make_node("Relu", [last], ["in"], "relu"), *bad, *back,
        helper.make_node("Identity", [end], ["y"], "end"),
    ]  # fmt: skip
    model = make(nodes, {"one": np.ones(1, np.float32), **weights}, inputs={"x": (TensorProto.FLOAT, ["n"])})
    return model, {"x": np.arange(4, dtype=np.float32)}


def out_of_range() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A Gather whose index is computed, and is beyond the end."""
    bad = [
        helper.make_node("Shape", ["in"], ["size"], "size"),
        helper.make_node("Gather", ["in", "size"], ["q"], "bad"),
    ]
    return _floats(bad, {})


def wrong_reshape() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A Reshape to 3 x 3 of four numbers."""
    return _floats([helper.make_node("Reshape", ["in", "shape"], ["q"], "bad")], {"shape": np.array([3, 3])})


def no_kernel() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Tan in float64: valid ONNX, and ONNX Runtime has no kernel for it."""
    bad = [
        helper.make_node("Cast", ["in"], ["wide"], "up", to=TensorProto.DOUBLE),
        helper.make_node("Tan", ["wide"], ["tan"], "bad"),
        helper.make_node("Cast", ["tan"], ["q"], "down", to=TensorProto.FLOAT),
    ]
    return _floats(bad, {})


def too_large() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """An Expand to 16 TB."""
    bad = [
        helper.make_node("Expand", ["in", "shape"], ["huge"], "bad"),
        helper.make_node("ReduceSum", ["huge"], ["q"], "sum", keepdims=0),
    ]
    return _floats(bad, {"shape": np.array([10**6, 10**6, 4])})


def hang() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A Loop of 2**40 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes"]), helper.make_node("Mul", ["state", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    return _floats([helper.make_node("Loop", ["turns", "", "in"], ["q"], "bad", body=body)], {"turns": np.array(2**40)})


def crash_in_a_branch() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The division of ``crash`` in a branch of an If that captures what it divides."""
    branches = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.INT64, None)])
        for name, nodes in (
            ("yes", [helper.make_node("Div", ["last", "minus"], ["yes_y"], "div")]),
            ("no", [helper.make_node("Identity", ["last"], ["no_y"])]),
        )
    ]
    front, last = chain("a", "x", 4, "zero")
    nodes = [
        *front,
        helper.make_node("Identity", [last], ["last"], "last"),
        helper.make_node("Sub", ["last", "next"], ["minus"], "minus"),
        helper.make_node("ReduceMax", ["last"], ["most"], "most", keepdims=0),
        helper.make_node("Less", ["most", "zero"], ["is_less"], "less"),
        helper.make_node("If", ["is_less"], ["q"], "bad", then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Add", ["q", "zero"], ["y"], "end"),
    ]
    weights = {"zero": np.array(0), "next": np.array(MIN + 1)}
    model = make(nodes, weights, inputs={"x": (TensorProto.INT64, ["n"])}, output=TensorProto.INT64)
    return model, {"x": np.full(4, MIN)}


def crash_in_a_function() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The division of ``crash`` within a local function."""
    function = helper.make_function(
        "local", "Halve", ["a", "b"], ["c"],
        [helper.make_node("Identity", ["b"], ["d"], "same"), helper.make_node("Div", ["a", "d"], ["c"], "div")],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Add", ["x", "zero"], ["a"], "front"),
        helper.make_node("Sub", ["a", "next"], ["minus"], "minus"),
        helper.make_node("Halve", ["a", "minus"], ["q"], "bad", domain="local"),
        helper.make_node("Add", ["q", "zero"], ["y"], "end"),
    ]
    weights = {"zero": np.array(0), "next": np.array(MIN + 1)}
    model = make(
        nodes, weights, inputs={"x": (TensorProto.INT64, ["n"])}, output=TensorProto.INT64, functions=[function]
    )
    return model, {"x": np.full(4, MIN)}
