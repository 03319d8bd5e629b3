"""Twelve small models with a place that float16 does not bear, and the nodes that have to stay there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

WIDTH = 32
SAMPLES = 6


@dataclass(frozen=True)
class Planted:
    """A model, what has to stay in float32 for it, and inputs.

    Attributes:
        name: What goes wrong.
        body: Nodes that make ``z`` of ``h``, as ONNX text.
        minimum: The nodes that have to stay.
        weights: Values of its weights by name.
        scale: What inputs are multiplied with.
        make: Makes ``h`` of the inputs.
    """

    name: str
    body: str
    minimum: tuple[str, ...]
    weights: dict[str, Any]
    make: str = "h = Tanh(h2)"
    width: int = WIDTH

    def model(self) -> onnx.ModelProto:
        """Returns the model: two layers, the planted place, two layers."""
        proto = parser.parse_model(
            f"""<ir_version: 9, opset_import: ["": 17]>
            g (float[4,{self.width}] x, float[4,{self.width}] flags) => (float[4,8] y)
            {{
              [in1] h1 = MatMul(x, w1)  [in2] h2 = Add(h1, b1)  [in3] {self.make}
              {self.body}
              [out1] o1 = MatMul(z, w2)  [out2] o2 = Add(o1, b2)  [out3] o3 = Tanh(o2)  [out4] o4 = MatMul(o3, w3)
              [out5] o5 = Sigmoid(o4)  [out6] y = Add(o5, b3)
            }}"""
        )
        rng = np.random.default_rng(7)

        def drawn(*shape: int) -> np.ndarray:
            return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

        wide = self.width
        weights = {"w1": drawn(wide, wide), "b1": drawn(wide), "w2": drawn(wide, 16), "b2": drawn(16),
                   "w3": drawn(16, 8), "b3": drawn(8), **self.weights}  # fmt: skip
        for name, value in weights.items():
            array = np.asarray(value, np.int64 if isinstance(value, (list, np.int64)) else np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return proto

    def samples(self) -> list[dict[str, np.ndarray]]:
        """Returns inputs; the last ones are for the end."""
        made = []
        for number in range(SAMPLES):
            rng = np.random.default_rng(100 + number)
            flags = (rng.random((4, self.width)) < 0.5).astype(np.float32)
            flags[number % 4] = 0  # a row in which all is masked
            made.append({"x": rng.normal(size=(4, self.width)).astype(np.float32), "flags": flags})
        return made


_NORM = """
[scale] a = Mul(h, size) [mean] m = ReduceMean<axes = [-1]>(a) [center] d = Sub(a, m) [square] p = Pow(d, two)
[variance] v = ReduceMean<axes = [-1]>(p) [guard] e = Add(v, eps) [root] s = Sqrt(e) [normal] z = Div(d, s)
"""

MODELS: tuple[Planted, ...] = (
    Planted("LayerNorm variance", _NORM, ("square", "variance", "guard", "root"),
            {"size": 1500.0, "two": 2.0, "eps": 1e-5}),
    Planted("attention mask -1e9",
            "[inverse] i = Sub(one, flags) [mask1] m1 = Mul(i, minus) [mask2] m2 = Mul(m1, far) "
            "[masked] s = Add(h, m2) [soft] q = Softmax<axis = -1>(s) [spread] z = Mul(q, many)",
            ("mask2", "masked", "soft"), {"one": 1.0, "minus": -31623.0, "far": 31623.0, "many": 8.0}),
    Planted("Softmax logits", "[logits] l = Mul(h, four) [shift] s = Add(l, far) [soft] q = Softmax<axis = -1>(s) "
            "[spread] z = Mul(q, many)", ("shift", "soft"), {"four": 4.0, "far": 3000.0, "many": 8.0}),
    Planted("exp", "[up] u = Mul(h, steep) [exp] e = Exp(u) [plus] p = Add(e, one) [log] l = Log(p) "
            "[down] z = Mul(l, small)", ("exp", "plus", "log"), {"steep": 18.0, "one": 1.0, "small": 0.1}),
    Planted("norm", "[scale] a = Mul(h, size) [square] p = Mul(a, a) [sum] s = ReduceSum(p, last) [root] r = Sqrt(s) "
            "[unit] n = Div(a, r) [spread] z = Mul(n, many)", ("square", "sum", "root"),
            {"size": 900.0, "last": [-1], "many": 4.0}),
    Planted("cumulative sums",
            "[lift] a = Add(h, two) [sums] c = CumSum(a, axis) [late] t = Slice(c, one, end, last) "
            "[early] f = Slice(c, nil, minus, last) [windows] w = Sub(t, f) [pad] q = Pad(w, pads) "
            "[settle] k = Sub(q, two) [grown] g = Mul(k, grow) [even] z = Tanh(g)",
            ("sums", "windows"), {"two": 2.0, "one": [1], "end": [1024], "nil": [0], "minus": [-1], "last": [-1],
                                  "pads": [0, 1, 0, 0], "grow": 1.0, "axis": np.int64(1)}, width=1024),
    Planted("RMSNorm square", "[scale] a = Mul(h, size) [square] p = Mul(a, a) [mean] v = ReduceMean<axes = [-1]>(p) "
            "[guard] e = Add(v, eps) [root] s = Sqrt(e) [inverse] r = Reciprocal(s) [normal] n = Mul(a, r) "
            "[gain] z = Mul(n, many)", ("square", "mean", "guard", "root"), {"size": 700.0, "eps": 1e-5, "many": 1.5}),
    Planted("epsilon 1e-8", _NORM, ("square", "variance", "guard", "root"),
            {"size": 2e-4, "two": 2.0, "eps": 1e-8}),
    Planted("large minus large", "[up] u = Add(h, far) [turn] t = Reshape(u, shape) [down] d = Sub(t, far) "
            "[spread] z = Mul(d, many)", ("up", "down"), {"far": 900.0, "shape": [4, WIDTH], "many": 2.0}),
    Planted("ReduceSum over many", "[lift] a = Add(h, far) [sum] s = ReduceSum(a, last) [share] m = Mul(s, part) "
            "[centre] d = Sub(a, m) [even] z = Tanh(d)", ("sum", "share"),
            {"far": 80.0, "last": [-1], "part": 1 / 1024}, width=1024),
    Planted("Pow", "[lift] a = Add(h, far) [cube] c = Pow(a, three) [root] r = Pow(c, third) [centre] d = Sub(r, far) "
            "[even] z = Tanh(d)", ("cube", "root"), {"far": 50.0, "three": 3.0, "third": 1 / 3}),
    Planted("1/x", "[even] e = Sigmoid(h) [small] s = Mul(e, tiny) [other] o = Mul(s, e) [inverse] r = Reciprocal(s) "
            "[product] p = Mul(r, o) [spread] z = Mul(p, many)", ("other", "inverse", "product"),
            {"tiny": 1e-6, "many": 2.0}),
)  # fmt: skip
