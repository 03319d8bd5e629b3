"""Models for the tests of reports: thousands of nodes, modules and source lines, and names that mean mischief."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxbench import captures

MISCHIEF = (
    '</script><script>window.hacked = 1</script>',
    '<img src="https://example.com/x.png" onerror="window.hacked = 2">',
    "quote\" and 'quote' & &amp; {{ 7 * 7 }} {% raw %}",
    "javascript:window.hacked=3",
    "<b>bold</b> <!-- comment",
    "naïve 名前 \u2028 \u202e \x07",
)  # fmt: skip
"""Names of nodes."""
OPERATORS = ("Mul", "Tanh", "Add", "Sigmoid", "Sub")


@dataclass(frozen=True)
class Pair:
    """A suspect, its reference, their inputs, and the truth."""

    suspect: Path
    reference: Path
    feeds: Path
    culprit: str


def write_pair(
    folder: Path,
    *,
    layers: int = 8,
    wide: int = 5,
    names: tuple[str, ...] = (),
    modules: bool = True,
    fault: float = 0.1,
) -> Pair:
    """Writes two models that differ in one weight: layers of five operators each, with a branch around each layer."""
    made = []
    for scale in (0.0, fault):
        nodes, weights, current = [], {}, "x"
        for layer in range(layers):
            start = current
            for place, operator in enumerate(OPERATORS[:wide]):
                number = len(nodes)
                name = names[number] if number < len(names) else f"layer{layer}/{operator}_{place}"
                inputs = [current]
                if operator in ("Mul", "Sub"):
                    weight = f"layer.{layer}.w{place}"
                    value = np.linspace(0.5, 1.5, 16, dtype=np.float32)
                    weights[weight] = value + np.float32(scale if (layer, place) == (layers // 2, 0) else 0)
                    inputs.append(weight)
                elif operator == "Add":
                    inputs.append(start)
                current = f"t{number}"
                node = helper.make_node(operator, inputs, [current], name)
                if modules:
                    _tell(node, layer, place)
                nodes.append(node)
        nodes.append(helper.make_node("Identity", [current], ["y"], "out"))
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 16])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        made.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    folder.mkdir(parents=True, exist_ok=True)
    pair = Pair(folder / "suspect.onnx", folder / "reference.onnx", folder / "feeds.npz", f"t{layers // 2 * wide}")
    onnx.save(made[1], pair.suspect)
    onnx.save(made[0], pair.reference)
    captures.save(pair.feeds, {"x": np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)})
    return pair


def _tell(node: onnx.NodeProto, layer: int, place: int) -> None:
    """Writes what torch.export writes of a node's module and source line."""
    scopes = ["", "encoder", f"encoder.layer.{layer}", f"encoder.layer.{layer}.part{place}", node.name]
    for key, value in (
        ("pkg.torch.onnx.name_scopes", repr(scopes)),
        ("pkg.torch.onnx.class_hierarchy", repr(["Net", "Encoder", "Layer", "Part", node.op_type])),
        (
            "pkg.torch.onnx.stack_trace",
            f'File "/home/me/my net/net#1.py", line {10 + place}, in forward\n    x = self.f(x)',
        ),
    ):
        node.metadata_props.add(key=key, value=value)
