"""Synthetic models for the measurements, the same for the same arguments.

``chain`` is a long graph with branches and small initializers; ``heavy`` is three matrix products with gigabytes of
external weights, every byte of them really there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BLOCK = 10
"""Nodes of one block of a chain."""
WIDTH = 16
"""Elements of a tensor of a chain: float32[1, WIDTH]."""


@dataclass(frozen=True)
class Chain:
    """A long model on disk.

    Attributes:
        path: The file.
        nodes: How many nodes it has.
        start: The tensor behind the first quarter of the nodes; everything later depends on it alone.
        end: The tensor behind the third quarter.
        middle: How many nodes lie between the two.
    """

    path: Path
    nodes: int
    start: str
    end: str
    middle: int


def chain(path: Path, nodes: int, *, value_info: bool = False) -> Chain:
    """Writes a chain of blocks of ten nodes and returns it.

    A block is a stem of three nodes, two branches of three, and an Add that joins them; it reads three of a few
    hundred initializers of 64 bytes.

    Args:
        path: The file to write.
        nodes: A multiple of 40.
        value_info: State the type of every inner tensor.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    if nodes % (4 * BLOCK):
        raise ValueError(f"a chain has a multiple of {4 * BLOCK} nodes, not {nodes}")
    rng = np.random.default_rng(0)
    count = min(256, nodes // 4)
    weights = [
        numpy_helper.from_array(rng.uniform(-1, 1, (1, WIDTH)).astype(np.float32), f"w{i}") for i in range(count)
    ]
    made, previous = [], "x"
    for block in range(nodes // BLOCK):
        name = f"block{block}"
        w = [f"w{(3 * block + i) % count}" for i in range(3)]
        stem = [("Mul", (previous, w[0]), "scale"), ("Tanh", ("scale",), "tanh"), ("Add", ("tanh", w[1]), "stem")]
        left = [("Relu", ("stem",), "relu"), ("Mul", ("relu", w[2]), "gain"), ("Sigmoid", ("gain",), "left")]
        right = [("Neg", ("stem",), "neg"), ("Sub", ("neg", w[1]), "shift"), ("Tanh", ("shift",), "right")]
        for op, inputs, output in (*stem, *left, *right, ("Add", ("left", "right"), "out")):
            read = [n if n == previous or n in w else f"{name}/{n}" for n in inputs]
            made.append(helper.make_node(op, read, [f"{name}/{output}"], name=f"{name}/{op}_{output}"))
        previous = f"{name}/out"
    shape: list[str | int | None] = [1, WIDTH]
    infos = [
        helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape) for node in made[:-1] if value_info
    ]
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(previous, TensorProto.FLOAT, shape)],
        weights,
        value_info=infos,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    quarter = nodes // BLOCK // 4
    return Chain(path, nodes, f"block{quarter - 1}/out", f"block{3 * quarter - 1}/out", 2 * quarter * BLOCK)


def edited(chain: Chain, path: Path, *, renamed: bool = False) -> Path:
    """Writes a copy of a chain with an operator changed at 5 % of its nodes and an attribute added at 70 %.

    Args:
        chain: The chain.
        path: The file to write.
        renamed: Also give every inner tensor another name, none to the nodes, and shuffle the nodes.
    """
    import random

    from onnx import load, save

    model = load(chain.path)
    nodes = model.graph.node
    nodes[chain.nodes // 20 + 5].op_type = "Softplus"
    nodes[7 * chain.nodes // 10].attribute.add(name="edited", type=2, i=1)
    if renamed:
        names = {name: f"t{number}" for number, name in enumerate(node.output[0] for node in nodes[:-1])}
        for node in nodes:
            node.name = ""
            node.output[0] = names.get(node.output[0], node.output[0])
            node.input[:] = [names.get(name, name) for name in node.input]
        shuffled = list(nodes)
        random.Random(0).shuffle(shuffled)
        copies = [type(node).FromString(node.SerializeToString()) for node in shuffled]
        del nodes[:]
        nodes.extend(copies)
    save(model, path)
    return path


@dataclass(frozen=True)
class Heavy:
    """A model with large external weights on disk.

    Attributes:
        path: The model file.
        data: The file with the weights.
        start: The tensor before the middle MatMul.
        end: The tensor behind it.
        weight: The initializer that the middle MatMul reads.
        offset: Where its bytes start in ``data``.
        length: How many they are.
    """

    path: Path
    data: Path
    start: str
    end: str
    weight: str
    offset: int
    length: int


def heavy(folder: Path, *, side: int = 16384, layers: int = 3) -> Heavy:
    """Writes ``layers`` matrix products of ``side`` squared float32 weights, external in one file, and returns them.

    Args:
        folder: Where the files go; ``layers * side**2 * 4`` bytes (3 GiB by default).
        side: Rows and columns of each matrix; a multiple of 256.
        layers: How many matrix products.
    """
    import numpy as np
    from onnx import TensorProto, helper, save

    folder.mkdir(parents=True, exist_ok=True)
    data, length = folder / "heavy.data", side * side * 4
    rng = np.random.default_rng(0)
    with open(data, "wb") as file:
        for _ in range(layers):
            for _ in range(0, side, side // 64):
                rows = rng.random((side // 64, side), dtype=np.float32)
                rows -= np.float32(0.5)
                rows.tofile(file)
    nodes, weights, previous = [], [], "x"
    for layer in range(layers):
        tensor = TensorProto(
            name=f"weight{layer}",
            data_type=TensorProto.FLOAT,
            dims=[side, side],
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", data.name), ("offset", str(layer * length)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [previous, tensor.name], [f"product{layer}"], name=f"MatMul_{layer}"))
        nodes.append(helper.make_node("Relu", [f"product{layer}"], [f"relu{layer}"], name=f"Relu_{layer}"))
        previous = f"relu{layer}"
    shape: list[str | int | None] = ["batch", side]
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(previous, TensorProto.FLOAT, shape)],
        weights,
    )
    path = folder / "heavy.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    middle = layers // 2
    return Heavy(path, data, f"relu{middle - 1}", f"product{middle}", f"weight{middle}", middle * length, length)
