"""The linter: every rule finds what it is for and not its near miss; fixtures and real models; reports; commands."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from corpus import fetch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, parser

from onnxbench import backends, lint
from onnxbench.errors import BenchError, NotFoundError, UsageError
from onnxbench.graph import GraphIndex
from onnxbench.lint import Severity, operators, reports
from onnxbench.lint.sessions import NodesRefusedError, Refusal
from onnxbench.model import Model, from_proto, load
from onnxbench.validity import find_complaints
from onnxbench.writer import save

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
MANIFEST = [e for e in json.loads((FIXTURES / "MANIFEST.json").read_text())["files"] if e["role"] == "model"]
ERROR = Severity.ERROR

pytestmark = pytest.mark.filterwarnings("ignore:The onnxtxt format is experimental")


def text(body: str, *, ir: int = 9, opsets: str = '"" : 18') -> onnx.ModelProto:
    """Parses a model from its graph and functions, in onnx's text form."""
    return parser.parse_model(f"<ir_version: {ir}, opset_import: [{opsets}]>\n{body}")


PLAIN = "g (float[2] x) => (float[2] y) { y = Relu (x) }"


def plain(change: Callable[[onnx.ModelProto], object] | None = None, *, body: str = PLAIN) -> onnx.ModelProto:
    """Returns a small sound model, changed in one way."""
    proto = text(body)
    if change is not None:
        change(proto)
    return proto


def node_op(name: str, domain: str = "") -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].op_type, proto.graph.node[0].domain = name, domain

    return change


def weighted(**fields: object) -> onnx.ModelProto:
    """Returns a model with one initializer ``w`` that has these fields."""
    proto = text("g (float[2] x) => (float[2] y) { y = Add (x, w) }")
    proto.graph.initializer.add(**{"name": "w", "dims": [2], "data_type": 1, **fields})
    return proto


def external(folder: Path, *, data: bytes = bytes(64), **entries: str) -> Model:
    """Returns a model whose initializer ``w`` lies in the file ``w.bin`` of a folder, as these entries say."""
    (folder / "w.bin").write_bytes(data)
    proto = weighted(data_location=1)
    for key, value in {"location": "w.bin", **entries}.items():
        if value is not None:
            proto.graph.initializer[0].external_data.add(key=key, value=value)
    return from_proto(proto, folder=folder)


IF = """g (float[2] x, bool c) => (float[2] y) {
  h = Neg (x)
  y = If (c) <then_branch = t () => (float[2] THEN) { BODY }, else_branch = e () => (float[2] z) { z = Relu (x) }>
}"""
FUNCTION = """g (float[2] x) => (float[2] y) { y = local.F (CALL) }
<domain: "local", opset_import: ["" : 18]> F (a) => (b) { BODY }"""
LOCAL = '"" : 18, "local" : 1'


def branch(body: str, out: str = "r") -> onnx.ModelProto:
    return text(IF.replace("THEN", out).replace("BODY", body))


def function(body: str = "b = Relu (a)", call: str = "x", opsets: str = LOCAL, **kwargs: int) -> onnx.ModelProto:
    return text(FUNCTION.replace("BODY", body).replace("CALL", call), opsets=opsets, **kwargs)


def value_info(name: str, kind: int, shape: list[object]) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def both(*changes: Callable[[onnx.ModelProto], object]) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: [change(proto) for change in changes]


TWO = "g (float[2] x) => (float[2] y) { h = Relu (x)  y = Neg (h) }"
LOOP = """g (float[2] x, int64 n, bool c) => (float[2] y) {
  h = Neg (x)
  y = Loop (n, c, h) <body = b (int64 i, bool k, float[2] NAME) => (bool m, float[2] o) {
    m = Identity (k)
    o = Relu (NAME)
  }>
}"""
RESHAPE = "g (float[N,2,3] x) => (float[?,?] y) <int64[2] s = {SHAPE}> { y = Reshape (x, s) }"


UPSAMPLE = "g (float[1,1,2,2] x, float[4] s) => (float[1,1,4,4] y) { y = Upsample (x, s) }"
SLICE = "g (float[2] x) => (float[?] y) <int64[1] a = {0}, int64[1] b = {9223372036854775807}> { y = Slice (x, a, b) }"
CONSTANT_IF = """g (float[2] x) => (float[2] y) <bool c = {1}> {
  y = If (c) <then_branch = t () => (float[2] a) { a = Neg (x) }, else_branch = e () => (float[2] b) { b = Abs (x) }>
}"""


def linear(
    body: str = "q = QuantizeLinear (x, s, z)  h = DequantizeLinear (q, s, z)  y = Relu (h)",
    constants: str = "float s = {0.5}, int8 z = {0}",
) -> onnx.ModelProto:
    """A graph that quantizes; by default soundly, and as every target takes it."""
    return text(f"g (float[1,2,4,4] x) => (float[?,?,?,?] y) <{constants}> {{ {body} }}")


CONV = """q = QuantizeLinear (x, s, z)  h = DequantizeLinear (q, s, z)  k = DequantizeLinear <axis = AXIS> (w, t, u)
  c = Conv (h, k)  END"""


def convolution(axis: int = 0, end: str = "y = Relu (c)", scales: int = 3) -> onnx.ModelProto:
    """A quantized Conv with weights per channel."""
    return linear(
        CONV.replace("AXIS", str(axis)).replace("END", end),
        f"float s = {{0.5}}, int8 z = {{0}}, int8[3,2,1,1] w = {{1,2,3,4,5,6}}, "
        f"float[{scales}] t = {{{','.join(['0.1'] * scales)}}}, int8[{scales}] u = {{{','.join('0' * scales)}}}",
    )


def enhance() -> onnx.ModelProto:
    return text("g (float[2] x) => (float[2] y) { y = com.example.Enhance (x) }", opsets='"" : 18, "com.example" : 1')


def max_pool(attribute: str) -> onnx.ModelProto:
    return text(f"g (float[1,1,4] x) => (float[1,1,4] y) {{ y = MaxPool <{attribute} kernel_shape = [1]> (x) }}")


def softmax_in_function(opset: int) -> onnx.ModelProto:
    body = FUNCTION.replace('"" : 18', f'"" : {opset}').replace("BODY", "b = Softmax (a)").replace("CALL", "x")
    return text(body, opsets=LOCAL)


def without_call(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "", "Relu"
    return proto


def without_domain(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.functions[0].ClearField("domain")
    return proto


def twice_the_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.functions.add().CopyFrom(proto.functions[0])
    return proto


def with_default(ir: int, kind: int = 1) -> onnx.ModelProto:
    """Returns a model whose input has an initializer of its name."""
    proto = text(PLAIN, ir=ir)
    proto.graph.initializer.append(helper.make_tensor("x", kind, [2], [1, 2]))
    return proto


def interface(change: Callable[[onnx.TypeProto.Tensor], object]) -> Callable[[onnx.ModelProto], object]:
    return lambda p: [change(info.type.tensor_type) for info in (*p.graph.input, *p.graph.output)]


def output_dim(size: int) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: setattr(proto.graph.output[0].type.tensor_type.shape.dim[0], "dim_value", size)


def set_input_type(kind: int | None) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        if kind is None:
            proto.graph.input[0].ClearField("type")
        else:
            proto.graph.input[0].type.tensor_type.elem_type = kind

    return change


def not_text(proto: onnx.ModelProto) -> onnx.ModelProto:
    data = proto.SerializeToString().replace(b"\x01h", b"\x01\xff")
    return onnx.ModelProto.FromString(data)


Case = Callable[[Path], onnx.ModelProto | Model]
# Code to a model that breaks the rule and one that comes near. A case takes a folder to put files into.
CASES: dict[str, tuple[Case, Case]] = {
    "OB101": (
        lambda _: text("g (float[2] x) => (float[2] y) { y = Add (x, nowhere) }"),
        lambda _: branch("r = Add (h, x)"),  # captured from the graph around
    ),
    "OB102": (
        lambda _: text("g (float[2] x) => (float[2] z) { y = Relu (x) }"),
        lambda _: text("g (float[2] x) => (float[2] x) { }"),
    ),
    "OB103": (lambda _: text("g (float[2] x) => (float[2] y) { y = Relu (x)  y = Neg (x) }"), lambda _: text(TWO)),
    "OB104": (lambda _: branch("r = Relu (y)"), lambda _: branch("r = Relu (h)")),
    "OB105": (
        lambda _: text("g (float[2] x) => (float[2] y) { y = Relu (h)  h = Neg (x) }"),
        lambda _: text(TWO),
    ),
    "OB106": (
        lambda _: branch("h = Relu (x)", "h"),
        lambda _: branch("y = Relu (x)", "y"),  # the name of what the If makes, which is not there yet
    ),
    "OB107": (lambda _: text(LOOP.replace("NAME", "h")), lambda _: text(LOOP.replace("NAME", "s"))),
    "OB108": (lambda _: text("g (float[2] x, float[2] x) => (float[2] y) { y = Relu (x) }"), lambda _: plain()),
    "OB109": (
        lambda _: text("g (float[2] x) => (float[2] y) <float[2] w = {1,2}, float[2] w = {3,4}> { y = Add (x, w) }"),
        lambda _: text("g (float[2] x) => (float[2] y) <float[2] w = {1,2}, float[2] v = {1,2}> { y = Sum (x, w, v) }"),
    ),
    "OB110": (lambda _: plain(lambda p: p.graph.input.add()), lambda _: plain()),
    "OB111": (lambda _: branch("", "x"), lambda _: branch("r = Identity (x)")),
    "OB112": (
        lambda _: text(LOOP.replace("NAME", "s").replace("int64 i, bool k, ", "bool k, ")),
        lambda _: text(LOOP.replace("NAME", "s")),
    ),
    "OB113": (lambda _: plain(lambda p: setattr(p.graph, "name", "")), lambda _: plain()),
    "OB114": (lambda _: not_text(text(TWO)), lambda _: plain(lambda p: setattr(p.graph.node[0], "name", "ü"))),
    "OB115": (lambda _: text("g (float[2] x) => () { y = Relu (x) }"), lambda _: plain()),
    "OB116": (
        lambda _: plain(lambda p: [p.metadata_props.add(key="author", value=v) for v in "ab"]),
        lambda _: plain(lambda p: [p.metadata_props.add(key=k, value="a") for k in "ab"]),
    ),
    "OB117": (
        lambda _: plain(lambda p: p.graph.quantization_annotation.add(tensor_name="z")),
        lambda _: plain(lambda p: p.graph.quantization_annotation.add(tensor_name="y")),
    ),
    "OB151": (lambda _: function("b = local.F (a)", opsets=LOCAL), lambda _: function()),
    "OB152": (
        lambda _: twice_the_function(function()),
        lambda _: function(),
    ),
    "OB153": (lambda _: function(call="x, x"), lambda _: function()),
    "OB154": (lambda _: function(opsets='"" : 18'), lambda _: function()),
    "OB155": (
        lambda _: function("b = LeakyRelu <alpha: float = @slope> (a)"),
        lambda _: text(
            FUNCTION.replace("F (a)", "F <slope> (a)")
            .replace("local.F (CALL)", "local.F <slope = 0.1> (x)")
            .replace("BODY", "b = LeakyRelu <alpha: float = @slope> (a)"),
            opsets=LOCAL,
        ),
    ),
    "OB156": (
        lambda _: softmax_in_function(12),
        lambda _: softmax_in_function(17),
    ),
    "OB201": (
        lambda _: plain(value_info("h", 1, [4]), body=TWO),
        lambda _: plain(value_info("h", 1, ["n"]), body=TWO),
    ),
    "OB202": (
        lambda _: plain(lambda p: p.graph.output[0].ClearField("type")),
        lambda _: plain(output_dim(2)),
    ),
    "OB203": (lambda _: plain(output_dim(5)), lambda _: plain(output_dim(2))),
    "OB204": (lambda _: plain(set_input_type(None)), lambda _: plain()),
    "OB205": (
        lambda _: text("g (float[2] x, int64[2] n) => (float[2] y) { y = Add (x, n) }"),
        lambda _: text("g (float[2] x, int64[2] n) => (float[2] y) { m = Cast <to = 1> (n)  y = Add (x, m) }"),
    ),
    "OB206": (
        lambda _: text("g (float[2,3] x, float[4,5] w) => (float[2,5] y) { y = MatMul (x, w) }"),
        lambda _: text("g (float[2,3] x, float[3,5] w) => (float[2,5] y) { y = MatMul (x, w) }"),
    ),
    "OB207": (
        lambda _: with_default(9, TensorProto.INT64),
        lambda _: with_default(9),
    ),
    "OB208": (
        lambda _: plain(both(value_info("h", 1, [2]), value_info("h", 1, [2])), body=TWO),
        lambda _: plain(both(value_info("h", 1, [2]), value_info("y", 1, [2])), body=TWO),
    ),
    "OB209": (
        lambda _: plain(interface(lambda kind: setattr(kind.shape.dim[0], "dim_value", -1))),
        lambda _: text("g (float[?] x) => (float[?] y) { y = Relu (x) }"),
    ),
    "OB210": (
        lambda _: plain(interface(lambda kind: kind.ClearField("shape"))),
        lambda _: text("g (float x) => (float y) { y = Relu (x) }"),  # a scalar
    ),
    "OB211": (
        lambda _: text("g (float[2] x, int64[n] s) => (float[?] y) { h = Reshape (x, s)  y = Relu (h) }"),
        lambda _: text("g (float[2] x, int64[2] s) => (float[?,?] y) { h = Reshape (x, s)  y = Relu (h) }"),
    ),
    "OB212": (lambda _: plain(set_input_type(1000)), lambda _: plain()),
    "OB301": (lambda f: external(f, location="other.bin"), lambda f: external(f)),
    "OB302": (lambda f: external(f, location="../w.bin"), lambda f: external(f, location="./w.bin")),
    "OB303": (lambda f: external(f, data=bytes(7)), lambda f: external(f, data=bytes(8))),
    "OB304": (lambda f: external(f, offset="4 KiB"), lambda f: external(f, offset="56")),
    "OB305": (lambda f: external(f, length="4"), lambda f: external(f, length="8")),
    "OB306": (lambda f: overlapping(f, 4), lambda f: overlapping(f, 0)),
    "OB307": (lambda f: external(f, location="."), lambda f: external(f)),
    "OB308": (
        lambda _: weighted(float_data=[1, 2], raw_data=bytes(8)),
        lambda _: weighted(raw_data=bytes(8)),
    ),
    "OB309": (lambda _: weighted(raw_data=bytes(12)), lambda _: weighted(raw_data=bytes(8))),
    "OB310": (lambda _: weighted(int64_data=[1, 2]), lambda _: weighted(float_data=[1, 2])),
    "OB311": (lambda _: weighted(data_type=1000, raw_data=bytes(8)), lambda _: weighted(raw_data=bytes(8))),
    "OB312": (lambda _: weighted(dims=[-2], float_data=[1, 2]), lambda _: weighted(float_data=[1, 2])),
    "OB313": (lambda _: sparse([3, 1]), lambda _: sparse([1, 3])),
    "OB314": (lambda f: of_size(f, 2_000_000_000), lambda f: of_size(f, 1_000_000_000)),
    "OB315": (
        lambda f: external(f, checksum="0" * 40),
        lambda f: external(f, checksum="c8d7d0ef0eedfa82d2ea1aa592845b9a6d4b02b7"),
    ),
    "OB401": (lambda _: plain(node_op("relu")), lambda _: plain(node_op("Neg"))),
    "OB402": (
        lambda _: text(UPSAMPLE),
        lambda _: text(UPSAMPLE, opsets='"" : 9'),
    ),
    "OB403": (
        lambda _: text("g (float[2] x) => (float[2] y) { y = Add (x) }"),
        lambda _: text("g (float[2] x) => (float[2] y) { y = Clip (x, , ) }"),
    ),
    "OB404": (
        lambda _: text("g (float[2] x) => (float[2] y) { y = Relu <slope = 0.1> (x) }"),
        lambda _: text("g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.1> (x) }"),
    ),
    "OB405": (
        lambda _: plain(node_op("Enhance", "com.example")),
        lambda _: enhance(),
    ),
    "OB406": (
        lambda _: plain(lambda p: p.opset_import.add(domain="", version=11)),
        lambda _: plain(lambda p: p.opset_import.add(domain="ai.onnx.ml", version=3)),
    ),
    "OB407": (lambda _: plain(lambda p: p.opset_import.add(domain="ai.onnx", version=18)), lambda _: plain()),
    "OB408": (lambda _: text(PLAIN, opsets='"" : 999'), lambda _: plain()),
    "OB409": (
        lambda _: text(PLAIN, opsets=f'"" : {limit(1) + 1}'),
        lambda _: text(PLAIN, opsets=f'"" : {limit(1)}'),
    ),
    "OB410": (lambda _: function(ir=7), lambda _: function(ir=8)),
    "OB411": (lambda _: plain(lambda p: p.ClearField("ir_version")), lambda _: plain()),
    "OB412": (lambda _: text(PLAIN, ir=9999), lambda _: text(PLAIN, ir=onnx.IR_VERSION)),
    "OB413": (lambda _: text(PLAIN, ir=limit(3) + 1), lambda _: text(PLAIN, ir=limit(3))),
    "OB414": (
        lambda _: enhance(),
        lambda _: function(),
    ),
    "OB415": (
        lambda _: plain(node_op("Relu", "ai.onnx")),
        lambda _: text(PLAIN.replace("Relu", "ai.onnx.Relu"), opsets='"ai.onnx" : 18'),
    ),
    "OB416": (
        lambda _: max_pool('auto_pad = "SAME",'),
        lambda _: max_pool('auto_pad = "VALID",'),
    ),
    "OB417": (
        lambda _: max_pool('auto_pad = "",'),
        lambda _: max_pool(""),
    ),
    "OB418": (
        lambda _: text(UPSAMPLE, opsets='"" : 9'),
        lambda _: text(UPSAMPLE.replace("Upsample", "Resize"), opsets='"" : 10'),
    ),
    "OB419": (lambda _: text(PLAIN, ir=3, opsets='"" : 6'), lambda _: text(PLAIN, ir=3, opsets='"" : 7')),
    "OB420": (lambda _: without_domain(function()), lambda _: function()),
    "OB501": (
        lambda _: text("g (float[2] x) => (float[2] y) { y = Relu (x)  z = Neg (x) }"),
        lambda _: branch("r = Relu (h)"),  # h is read inside a body only
    ),
    "OB502": (
        lambda _: text("g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { y = Relu (x) }"),
        lambda _: text("g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1,2}> { y = Relu (x) }"),
    ),
    "OB503": (
        lambda _: text("g (float[2] x, float[2] m) => (float[2] y) { y = Relu (x)  z = Neg (m) }"),
        lambda _: text("g (float[2] x, float[2] m) => (float[2] y, float[2] m) { y = Relu (x) }"),
    ),
    "OB504": (lambda _: without_call(function()), lambda _: function()),
    "OB505": (lambda _: plain(lambda p: p.opset_import.add(domain="ai.onnx.ml", version=3)), lambda _: function()),
    "OB506": (lambda _: plain(value_info("z", 1, [2])), lambda _: plain(value_info("h", 1, [2]), body=TWO)),
    "OB507": (lambda _: text(CONSTANT_IF), lambda _: branch("r = Relu (h)")),
    "OB601": (lambda _: plain(), lambda _: text("g (float[2] x) => (float[2] y) { [relu] y = Relu (x) }")),
    "OB602": (
        lambda _: text("g (float[2] x) => (float[2] y) { [n] h = Relu (x)  [n] y = Neg (h) }"),
        lambda _: text("g (float[2] x) => (float[2] y) { [n] h = Relu (x)  [m] y = Neg (h) }"),
    ),
    "OB603": (
        lambda _: plain(lambda p: setattr(p.graph.node[0], "name", "a\nb")),
        lambda _: plain(lambda p: setattr(p.graph.node[0], "name", "a b;/ü")),
    ),
    "OB701": (
        lambda _: text("g (int64[1] x) => (int64[1] y) <int64[1] big = {5000000000}> { y = Add (x, big) }"),
        lambda _: text(SLICE),  # the largest int64 as an end: clamped, it means the same
    ),
    "OB702": (
        lambda _: text("g (int64[1] x) => (int64[1] y) { y = Neg (x) }"),
        lambda _: text("g (int32[1] x) => (int32[1] y) { y = Neg (x) }"),
    ),
    "OB703": (lambda _: text("g (double[1] x) => (double[1] y) { y = Neg (x) }"), lambda _: plain()),
    "OB704": (lambda _: text("g (string[1] x) => (string[1] y) { y = Identity (x) }"), lambda _: plain()),
    "OB705": (lambda _: text(RESHAPE.replace("SHAPE", "4, 6")), lambda _: text(RESHAPE.replace("SHAPE", "-1, 6"))),
    "OB706": (
        lambda _: with_default(9),
        lambda _: with_default(3),
    ),
    "OB707": (lambda _: dropout(True), lambda _: dropout(False)),
    "OB708": (
        lambda _: text("g (float[2] x) => (float[2] y) { y = RandomNormalLike (x) }"),
        lambda _: text("g (float[2] x) => (float[2] y) { y = RandomNormalLike <seed = 1.0> (x) }"),
    ),
    "OB709": (
        lambda _: text("g (float[?,3] x) => (float[?,3] y) { y = Relu (x) }"),
        lambda _: text("g (float[n,3] x) => (float[n,3] y) { y = Relu (x) }"),
    ),
    "OB751": (
        lambda _: linear("q = QuantizeLinear (x, s, z)  y = Cast <to = 1> (q)"),
        lambda _: linear("q = QuantizeLinear (x, s, z)  r = Identity (q)  y = DequantizeLinear (r, s, z)"),
    ),
    "OB752": (
        lambda _: linear("q = Cast <to = 3> (x)  y = DequantizeLinear (q, s, z)"),
        lambda _: linear("q = QuantizeLinear (x, s, z)  r = Identity (q)  y = DequantizeLinear (r, s, z)"),
    ),
    "OB753": (
        lambda _: linear("q = QuantizeLinear (x, s, z)  h = DequantizeLinear (q, s, z)  y = MatMul (h, x)"),
        lambda _: linear("q = QuantizeLinear (x, s, z)  h = DequantizeLinear (q, s, z)  y = MatMul (h, h)"),
    ),
    "OB754": (
        lambda _: convolution(),
        lambda _: convolution(end="r = Relu (c)  p = QuantizeLinear (r, s, z)  y = DequantizeLinear (p, s, z)"),
    ),
    "OB755": (
        lambda _: linear(
            "q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, t, z)",
            "float s = {0.5}, float t = {0.25}, int8 z = {0}",
        ),
        lambda _: linear(
            "q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, t, z)",
            "float s = {0.5}, float t = {0.5}, int8 z = {0}",
        ),
    ),
    "OB756": (
        lambda _: linear("b = DequantizeLinear (w, s)  y = Add (x, b)", "float s = {0.5}, int32 w = {3}"),
        lambda _: linear("b = DequantizeLinear (w, s)  y = Add (x, b)", "float s = {0.5}, int8 w = {3}"),
    ),
    "OB757": (
        lambda _: linear(constants="float s = {0.5}, int8 z = {-3}"),
        lambda _: linear(),
    ),
    "OB758": (
        lambda _: linear(constants="float s = {0.0}, int8 z = {0}"),
        lambda _: linear(constants="float s = {1e-37}, int8 z = {0}"),
    ),
    "OB759": (lambda _: convolution(axis=1, scales=3), lambda _: convolution()),
    "OB801": (
        lambda _: enhance(),
        lambda _: plain(),
    ),
    "OB802": (
        lambda _: text("g (float[2] x) => (int64[1,?] y) { y = NonZero (x) }"),
        lambda _: text("g (float[2] x) => (float[2] y) { y = Relu (x) }"),
    ),
    "OB901": (lambda _: weighted(float_data=[float("nan"), 1]), lambda _: weighted(float_data=[float("inf"), 1])),
    "OB902": (lambda _: weighted(float_data=[float("-inf"), 1]), lambda _: weighted(float_data=[3e38, 1])),
    "OB903": (lambda _: weighted(float_data=[65505, 1]), lambda _: weighted(float_data=[65504, 1])),
    "OB904": (lambda _: weighted(float_data=[1e-12, 1]), lambda _: weighted(float_data=[1e-7, 0])),
}


def limit(which: int) -> int:
    """Returns a limit of the installed ONNX Runtime: 1 opset, 2 ai.onnx.ml, 3 IR version."""
    limits = operators.runtime_limits()
    if limits is None:  # a release that is newer than this table must not make all tests fail
        pytest.skip("this version of ONNX Runtime is not in lint.operators.RUNTIME_LIMITS: measure it")
    return limits[which]


def overlapping(folder: Path, offset: int) -> Model:
    model = external(folder, offset="0", length="8")
    second = model.proto.graph.initializer.add()
    second.CopyFrom(model.proto.graph.initializer[0])
    second.name = "v"
    next(entry for entry in second.external_data if entry.key == "offset").value = str(offset)
    return model


def sparse(indices: list[int]) -> onnx.ModelProto:
    proto = plain()
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("", TensorProto.INT64, [2], indices)
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [8]))
    return proto


def of_size(folder: Path, size: int) -> Model:
    """Returns a model that says its file had this many bytes."""
    model = from_proto(plain(), folder=folder)
    model.file_size = size
    return model


def dropout(on: bool) -> onnx.ModelProto:
    return text(
        "g (float[2] x) => (float[2] y) <float ratio = {0.5}, bool on = {FLAG}> { y = Dropout (x, ratio, on) }".replace(
            "FLAG", str(int(on))
        )
    )


def checked(model: onnx.ModelProto | Model, **options: object) -> lint.Findings:
    """Checks a model in every way: with values, in ONNX Runtime, for TensorRT's types."""
    made = model if isinstance(model, Model) else from_proto(model)
    openers = {"ort": backends.open_session, "picky": refuse_nonzero}
    return lint.check(made, values=True, openers=openers, **options)


def refuse_nonzero(model: Model) -> None:
    """A runtime that refuses NonZero and says which nodes these are (tests/test_build_trt.py asks a real one)."""
    refs = [ref for ref in GraphIndex(model.proto).nodes() if ref.node.op_type == "NonZero"]
    if refs:
        raise NodesRefusedError("refused", [Refusal(ref.path, "there is no NonZero") for ref in refs])


def codes(found: lint.Findings) -> set[str]:
    return {finding.code for finding in found.findings}


# ---------------------------------------------------------------- each rule


def test_every_rule_has_a_case():
    assert sorted(CASES) == [rule.code for rule in lint.all_rules()]


@pytest.mark.parametrize("code", sorted(CASES))
def test_a_rule_finds_what_it_is_for(code, tmp_path):
    rule = lint.find_rule(code)
    target = rule.only_for[0] if rule.only_for else None
    found = checked(CASES[code][0](tmp_path), target=target)
    assert code in codes(found), [f"{f.code} {f.message}" for f in found.findings]


@pytest.mark.parametrize("code", sorted(CASES))
def test_a_rule_leaves_its_near_miss_alone(code, tmp_path):
    rule = lint.find_rule(code)
    target = rule.only_for[0] if rule.only_for else None
    found = checked(CASES[code][1](tmp_path), target=target)
    assert code not in codes(found), [f.message for f in found.findings if f.code == code]


def test_what_is_wrong_with_a_quantization_is_said_with_its_numbers():
    def of(proto: onnx.ModelProto, code: str, target: str | None = None) -> list[tuple[Severity, str]]:
        return [(f.severity, f.message) for f in checked(proto, target=target).findings if f.code == code]

    uint8 = linear(constants="float s = {0.5}, uint8 z = {128}")
    assert of(uint8, "OB757", "tensorrt") == [(ERROR, "the zero point 'z' is uint8")] * 2
    assert of(linear("q = QuantizeLinear (x, s)  y = DequantizeLinear (q, s)"), "OB757", "tensorrt") == [
        (ERROR, "without a zero point, it quantizes to uint8")
    ]
    for said, severity in (("-0.5", ERROR), ("inf", ERROR), ("nan", ERROR), ("1e-40", Severity.WARNING)):
        found = of(linear(constants=f"float s = {{{said}}}, int8 z = {{0}}"), "OB758")
        assert [each[0] for each in found] == [severity], said
    assert of(convolution(axis=7), "OB759") == [(ERROR, "axis 7 is none of 'w', which has rank 4")]
    assert of(convolution(axis=1, scales=2), "OB759") == [
        (Severity.WARNING, "the axis 1 of 'w' has a scale each, and Conv sums over it")
    ]
    weight = linear("k = DequantizeLinear (w, s, z)  y = MatMul (x, k)",
                    "float s = {0.5}, int8 z = {0}, int8[4,1] w = {1,2,3,4}")  # fmt: skip
    assert [each[0] for each in of(weight, "OB753")] == [Severity.INFO]


def test_rules_are_documented_and_their_codes_well_formed():
    rules = lint.all_rules()
    assert len({rule.name for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.code[:2] == "OB"
        assert rule.code[2:].isdigit()
        assert len(rule.code) == 5
        assert all(words.endswith(".") for words in (rule.summary, rule.why))
        assert all((rule.mend, rule.example_text()))


# ---------------------------------------------------------------- what is found, and where


def test_a_finding_has_its_place_and_where_it_comes_from_in_pytorch():
    proto = branch("q = Neg (x)  r = Relu (nowhere)")
    node = proto.graph.node[1].attribute[0].g.node[1]
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'head', 'head.act', 'relu']")
    node.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value="['Net', 'Head', 'ReLU', 'aten.relu']")
    node.metadata_props.add(
        key="pkg.torch.onnx.stack_trace", value='File "net.py", line 7, in forward\n    x = relu(x)'
    )
    found = checked(proto)
    finding = next(f for f in found.findings if f.code == "OB101")
    assert finding.where.graph == "If#1/then"
    assert finding.where.path == "If#1/then/Relu#1"
    assert (finding.where.op, finding.where.tensor) == ("Relu", "nowhere")
    assert (finding.where.module, finding.where.source) == ("head.act", "net.py:7")


def test_one_broken_thing_hides_no_other():
    proto = text(
        """g (float[2] x, int64[2] n) => (float[2] y) <float[2] w = {1,2}> {
             a = Add (x, n)
             b = Frobnicate (x)
             c = Add (x, missing)
             d = MatMul (x, five)
             y = Relu <slope = 1.0> (x)
             five = Constant <value = float[5] {1,2,3,4,5}> ()
           }"""
    )
    proto.graph.initializer[0].raw_data = bytes(3)
    proto.graph.initializer[0].ClearField("float_data")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", 1, [7]))
    found = checked(proto)
    assert {"OB101", "OB105", "OB205", "OB206", "OB309", "OB401", "OB404", "OB501", "OB502"} <= codes(found)


def test_several_type_errors_are_all_found_at_their_nodes():
    body = "  ".join(f"[bad{i}] a{i} = Add (x, n)" for i in range(5))
    found = checked(text(f"g (float[2] x, int64[2] n) => (float[2] y) {{ {body}  y = Relu (x) }}"))
    places = [finding.where.node for finding in found.findings if finding.code == "OB205"]
    assert places == [f"bad{i}" for i in range(5)]


def test_the_blame_is_on_the_value_info_and_not_on_the_nodes_after_it():
    found = lint.check(from_proto(plain(value_info("h", 1, [4]), body=TWO)))
    assert [finding.code for finding in found.findings if finding.severity is ERROR] == ["OB201"]


def test_an_unknown_operator_says_when_it_came_or_what_was_meant():
    late = checked(text("g (float[2] x) => (float[2] y) { y = Gelu (x) }", opsets='"" : 17'))
    assert "came with opset 20" in next(f.message for f in late.findings if f.code == "OB401")
    typo = checked(text("g (float[2] x) => (float[2] y) { y = Softmx (x) }"))
    assert "'Softmax'" in next(f.message for f in typo.findings if f.code == "OB401")


def test_names_that_are_no_text_hide_nothing():
    proto = text("g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { h = Relu (x)  y = Neg (h)  z = Abs (h) }")
    found = checked(not_text(proto))
    assert {"OB114", "OB501", "OB502"} <= codes(found)


def test_severities_are_those_of_the_target():
    big = text("g (int64[1] x) => (int64[1] y) <int64[1] big = {5000000000}> { y = Add (x, big) }")
    assert {f.severity for f in checked(big).findings if f.code == "OB701"} == {Severity.WARNING}
    assert {f.severity for f in checked(big, target="tensorrt").findings if f.code == "OB701"} == {ERROR}
    assert "OB704" not in checked(text("g (string[1] x) => (string[1] y) { y = Identity (x) }")).checked


def test_nothing_is_read_of_weights_unless_asked_for(tmp_path):
    size = 1 << 28
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(size)
    proto = text("g (float[67108864] x) => (float[67108864] y) { y = Add (x, w) }")
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=[1 << 26], data_location=1)
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    counter = Path("/proc/self/io")
    if not counter.exists():
        pytest.skip("the system does not count bytes that are read")

    def read_by(**options: bool) -> int:
        before = int(counter.read_text().split()[1])
        lint.check(load(tmp_path / "m.onnx", require_weights=False), **options)
        return int(counter.read_text().split()[1]) - before

    assert read_by() < 1 << 20
    assert read_by(values=True) >= size


def test_values_are_looked_at_block_by_block_wherever_they_lie(tmp_path):
    import numpy as np

    values = np.ones(3 << 20, np.float32)  # 12 MB: two blocks
    values[-1] = np.nan
    proto = text("g (float[3145728] x) => (float[3145728] y) { y = Add (x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    (tmp_path / "inline.onnx").write_bytes(proto.SerializeToString())
    model = load(tmp_path / "inline.onnx")
    assert model.proto.graph.initializer[0].data_location == TensorProto.EXTERNAL  # it stayed in the file
    finding = next(f for f in lint.check(model, values=True).findings if f.code == "OB901")
    assert "1 NaN of 3,145,728" in finding.message


def test_shapes_in_external_files_are_known():
    """A Reshape whose shape lies outside is no lost rank: small weights are read for inference."""
    found = lint.check(load(FIXTURES / "models" / "external_one_file" / "model.onnx", require_weights=False))
    assert not found.not_run


def test_a_large_model_is_checked_in_linear_time():
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], f"n{i}") for i in range(20_000)]
    kind = [helper.make_tensor_value_info(name, 1, [2]) for name in ("t0", "t20000")]
    proto = helper.make_model(helper.make_graph(nodes, "g", kind[:1], kind[1:]), ir_version=9)
    proto.opset_import[0].version = 18
    assert not lint.check(from_proto(proto)).findings


# ---------------------------------------------------------------- fixtures and real models


def _loaded(entry: dict[str, object]) -> Model | None:
    try:
        return load(FIXTURES / str(entry["file"]), require_weights=False)
    except BenchError:
        return None


@pytest.mark.parametrize("entry", [e for e in MANIFEST if e["valid"] == "no"], ids=lambda e: e["file"])
def test_a_broken_file_is_refused_or_has_an_error(entry):
    model = _loaded(entry)
    if entry["error"] == "not-a-model":
        assert model is None
        return
    if model is not None:
        found = lint.check(model, values=True)
        assert found.fails(ERROR)
        wanted = {"external-data": "OB3", "invalid-graph": "OB"}[entry["error"]]
        assert any(f.code.startswith(wanted) for f in found.findings if f.severity is ERROR)


@pytest.mark.parametrize("entry", [e for e in MANIFEST if e["valid"] == "yes"], ids=lambda e: e["file"])
def test_a_valid_file_has_no_error(entry):
    found = lint.check(load(FIXTURES / entry["file"], require_weights=False), values=True)
    assert not found.fails(ERROR), [f"{f.code} {f.message}" for f in found.findings if f.severity is ERROR]
    assert not found.not_run


@pytest.mark.parametrize("entry", [e for e in MANIFEST if e["valid"] == "mendable"], ids=lambda e: e["file"])
def test_what_is_said_to_be_mendable_is_mended_by_a_save(entry, tmp_path):
    model = load(FIXTURES / entry["file"], require_weights=False)
    found = lint.check(model)
    assert all(f.mendable for f in found.findings if f.severity is ERROR)
    mendable = {f.code for f in found.findings if f.mendable}
    save(model, tmp_path / "mended.onnx")
    again = lint.check(load(tmp_path / "mended.onnx"))
    assert not mendable & codes(again)
    assert not again.fails(ERROR)


@pytest.mark.corpus
@pytest.mark.parametrize("name", [entry.name for entry in fetch.entries()])
def test_a_real_model_has_no_false_error(name, corpus):
    """ONNX Runtime runs them all; one is not in topological order, which the standard forbids and a save mends."""
    path, _ = corpus(name)
    found = lint.check(load(path, require_weights=False), target="onnxruntime")
    errors = {(finding.code, finding.mendable) for finding in found.findings if finding.severity is ERROR}
    assert errors == ({("OB105", True)} if name == "isnet_fp16" else set())
    assert not found.not_run


def test_the_limits_of_the_installed_onnxruntime_are_as_the_table_says():
    def loads(opset: int, ir: int) -> bool:
        try:
            backends.open_session(from_proto(text(PLAIN, ir=ir, opsets=f'"" : {opset}')))
        except BenchError:
            return False
        return True

    opset, ir = limit(1), limit(3)
    assert (loads(opset, 9), loads(opset + 1, 9)) == (True, False)
    assert (loads(18, ir), loads(18, ir + 1)) == (True, False)


# ---------------------------------------------------------------- mutations: no crash, no silence, no change

_SMALL = [
    e["file"] for e in MANIFEST if e["valid"] == "yes" and e["file"].endswith(".onnx") and "external" not in e["file"]
]
_WORDS = ["", "x", "y", "zz", "ai.onnx", "local"]
_NUMBERS = [-1, 0, 1, 2, 7, 10, 16, 1000, 1 << 20]


def _mutate(proto: onnx.ModelProto, seed: int) -> None:
    """Changes a few fields somewhere in a model: removes, doubles, renames, renumbers."""
    choose = random.Random(seed)
    messages = [proto]
    for message in messages:
        for field, value in message.ListFields():
            if field.message_type is not None:
                messages += value if field.is_repeated else [value]
    for _ in range(choose.choice([1, 1, 2])):
        message = choose.choice(messages)
        fields = [field for field, _ in message.ListFields()]
        if not fields:
            continue
        field = choose.choice(fields)
        value = getattr(message, field.name)
        wanted = _WORDS if field.type == 9 else _NUMBERS
        try:
            if not field.is_repeated:
                if choose.random() < 0.4 or field.message_type is not None:
                    message.ClearField(field.name)
                elif field.type == 12:
                    setattr(message, field.name, value[:-1])
                else:
                    setattr(message, field.name, choose.choice(wanted))
            elif choose.random() < 0.4:
                del value[choose.randrange(len(value))]
            elif field.message_type is not None:
                value.add().CopyFrom(value[choose.randrange(len(value))])
            else:
                value[choose.randrange(len(value))] = choose.choice(wanted)
        except (TypeError, ValueError):  # a number that the field does not take
            continue


@settings(max_examples=120)
@given(file=st.sampled_from(_SMALL), seed=st.integers(0, 1 << 20))
def test_a_mutated_model_is_judged_without_a_crash(file, seed):
    proto = onnx.load(FIXTURES / file, load_external_data=False)
    _mutate(proto, seed)
    before = proto.SerializeToString(deterministic=True)
    found = lint.check(from_proto(proto), values=True)
    assert proto.SerializeToString(deterministic=True) == before
    if find_complaints(proto):
        assert any(f.severity is ERROR or f.mendable for f in found.findings)


def test_the_same_model_gives_the_same_report():
    for name in ("nested_bodies", "function_with_if", "whole_model"):
        first, second = (lint.check(load(FIXTURES / "models" / f"{name}.onnx")) for _ in range(2))
        assert first == second


# ---------------------------------------------------------------- selecting, extending, reporting


def test_rules_are_selected_by_code_beginning_and_name():
    assert {r.code for r in lint.chosen_rules(["OB105,cycle", "ob6"], ["odd-name"])} == {
        "OB104",
        "OB105",
        "OB601",
        "OB602",
    }
    with pytest.raises(UsageError, match="OB999"):
        lint.chosen_rules(["OB999"], [])
    with pytest.raises(UsageError) as error:
        lint.chosen_rules([], ["unsorted-node"])
    assert "unsorted-nodes" in str(error.value)


def test_only_selected_rules_are_looked_at():
    found = checked(CASES["OB101"][0](ROOT), select=["OB5"])
    assert set(found.checked) == {f"OB50{i}" for i in range(1, 8)}
    assert codes(found) <= set(found.checked)


def test_what_the_onnx_checker_says_is_reported_once():
    """OB420 speaks only where no other rule does."""
    for code in ("OB101", "OB103", "OB105", "OB205", "OB401", "OB404"):
        assert "OB420" not in codes(checked(CASES[code][0](ROOT)))


def test_a_set_of_rules_can_be_handed_in():
    from onnxbench.lint.rules import Checks, Rule

    mine = Checks("Mine")
    words = {"summary": "A Relu.", "why": "We have none.", "mend": "Use Clip.", "example": "-"}
    rule = Rule(code="XX1", name="no-relu", severity=ERROR, only_for=("tensorrt",), **words)

    @mine(rule)
    def _no_relu(facts):
        for ref in facts.index.nodes():
            if ref.node.op_type == "Relu":
                yield facts.find(rule, "a Relu", scope=ref.scope, position=ref.position)

    model = from_proto(plain())
    assert "XX1" in codes(lint.check(model, extra=[mine], target="tensorrt"))
    assert "XX1" not in codes(lint.check(model, extra=[mine]))


def test_a_rule_whose_condition_does_not_hold_is_named():
    found = lint.check(from_proto(plain()), select=["OB9", "OB704"])
    assert [(entry.codes, entry.reason) for entry in found.not_run] == [
        (("OB704",), "only with --target tensorrt"),
        (("OB901", "OB902", "OB903", "OB904"), "only with --values"),
    ]


def test_a_rule_that_could_not_be_looked_at_is_named():
    found = checked(CASES["OB103"][0](ROOT))
    assert any("OB205" in entry.codes for entry in found.not_run)


def test_sarif_has_what_the_standard_requires():
    found = lint.check(load(FIXTURES / "broken" / "ext_parent_in_body" / "model.onnx", require_weights=False))
    log = json.loads(json.dumps(reports.to_sarif(found, lint.all_rules())))
    assert log["version"] == "2.1.0"
    run = log["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert run["tool"]["driver"]["name"] == "onnxbench"
    assert len(run["results"]) == len(found.findings) > 0
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        place = result["locations"][0]
        assert place["physicalLocation"]["artifactLocation"]["uri"].endswith("model.onnx")
        assert place["logicalLocations"][0]["fullyQualifiedName"]
    outside = next(r for r in run["results"] if r["ruleId"] == "OB302")
    assert outside["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "if/then/w"


def test_uris_and_workflow_commands_are_escaped():
    assert reports.model_uri("a b/mödel#1.onnx") == "a%20b/m%C3%B6del%231.onnx"
    assert reports.model_uri("/a b.onnx") == "file:///a%20b.onnx"
    found = lint.check(from_proto(plain(lambda p: setattr(p.graph.node[0], "name", "a\nb: 100%"))))
    line = next(line for line in reports.to_github(found) if "OB603" in line)
    assert "\n" not in line
    assert "100%25" in line


# ---------------------------------------------------------------- commands


@pytest.fixture
def bench(capsys):
    """Runs a command line; returns its exit status, what it printed, and what it said on stderr."""
    from onnxbench.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


UNSORTED = FIXTURES / "models" / "unsorted.onnx"
SOUND = FIXTURES / "models" / "whole_model.onnx"


def test_check_exits_by_the_worst_finding(bench):
    assert bench("check", UNSORTED)[0] == 1
    assert bench("check", UNSORTED, "--fail-on", "never")[0] == 0
    assert bench("check", UNSORTED, "--ignore", "OB105")[0] == 0
    assert bench("check", SOUND)[0] == 0
    wrong = FIXTURES / "models" / "unused_input.onnx"
    assert bench("check", wrong)[0] == 0
    assert bench("check", wrong, "--fail-on", "warning", "--severity", "error")[0] == 1


def test_check_prints_findings_by_rule_with_what_to_do(bench):
    status, out, err = bench("check", UNSORTED)
    assert status == 1
    assert "error OB105 unsorted-nodes" in out
    assert "[mendable]" in out
    assert "onnxbench extract" in out
    assert out.strip().splitlines()[-1].startswith(f"{lint.check(load(UNSORTED)).model}: 1 error (1 mendable)")
    assert err == ""


def test_check_says_how_many_findings_it_leaves_out(bench, tmp_path):
    names = "  ".join(f"z{i} = Neg (x)" for i in range(15))
    (tmp_path / "m.onnx").write_bytes(
        text(f"g (float[2] x) => (float[2] y) {{ y = Relu (x)  {names} }}").SerializeToString()
    )
    assert "and 5 more (--limit 0 shows all)" in bench("check", tmp_path / "m.onnx")[1]
    assert bench("check", tmp_path / "m.onnx", "--limit", "0")[1].count("which is read by nobody") == 15


def test_check_says_what_a_target_was_not_asked(bench):
    path = FIXTURES / "models" / "residual.onnx"
    out = bench("check", path, "--target", "tensorrt", "--no-trt")[1]
    assert f"nothing was built: 'onnxbench build-trt {path} residual.engine' builds an engine" in out
    result = json.loads(bench("check", path, "--target", "onnxruntime", "--json")[1])["result"]
    assert result["notes"] == ["only rules were looked at: ONNX Runtime made no session of the model (--ort makes one)"]
    for words in (["--target", "onnxruntime", "--ort"], []):
        assert json.loads(bench("check", path, "--json", *words)[1])["result"]["notes"] == []


def test_check_as_json_has_every_finding(bench):
    status, out, _ = bench("check", UNSORTED, "--json")
    body = json.loads(out)
    assert status == 1
    assert body["command"] == "check"
    assert body["result"]["counts"]["error"] == 1
    finding = body["result"]["findings"][0]
    assert finding["code"] == "OB105"
    assert finding["mendable"] is True
    assert set(finding["where"]) == {"path", "graph", "node", "op", "tensor", "module", "source"}


@pytest.mark.parametrize(
    "name", ["dead_nodes", "unused_initializers", "function_uncalled", "value_info_extra", "unsorted"]
)
def test_the_command_line_of_a_fix_mends_it(bench, tmp_path, monkeypatch, name):
    path = FIXTURES / "models" / f"{name}.onnx"
    wanted = {"OB105", "OB501", "OB502", "OB504", "OB506"}
    findings = [f for f in lint.check(load(path)).findings if f.code in wanted and not f.where.graph.startswith("if/")]
    fix = next(finding.fix for finding in findings)
    monkeypatch.chdir(tmp_path)
    command = shlex.split(fix[fix.index("onnxbench extract") :])
    command[2] = str(path)
    assert bench(*command[1:])[0] == 0
    again = lint.check(load(tmp_path / "mended.onnx"))
    assert not {finding.code for finding in findings} & {f.code for f in again.findings if not f.where.graph}


def test_check_in_onnxruntime(bench):
    refused = FIXTURES / "models" / "custom_op.onnx"
    assert bench("check", refused)[0] == 0
    status, out, _ = bench("check", refused, "--ort")
    assert status == 1
    assert "OB801" in out
    assert bench("check", SOUND, "--ort")[0] == 0


@pytest.mark.parametrize("form", ["text", "json", "sarif", "github"])
def test_check_writes_a_report_to_a_file(bench, tmp_path, form):
    report = tmp_path / "report"
    status, out, err = bench("check", UNSORTED, "--format", form, "-o", report)
    assert status == 1
    assert out == ""
    assert "OB105" in report.read_text(encoding="utf-8")
    assert "wrote" in err
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_check_refuses_what_it_cannot_understand(bench, tmp_path):
    for arguments, hint in (
        (["--format", "sarf"], "sarif"),
        (["--fail-on", "eror"], "error"),
        (["--target", "tensort"], "tensorrt"),
        (["--select", "unsorted-node"], "unsorted-nodes"),
    ):
        status, _, err = bench("check", SOUND, *arguments)
        assert status == 2
        assert hint in err
    assert bench("check", SOUND, "-o", tmp_path / "no" / "report")[0] == 7
    assert bench("check", FIXTURES / "broken" / "random_bytes.onnx")[0] == 5


def test_explain(bench):
    status, out, _ = bench("explain", "ob105")
    assert status == 0
    assert "unsorted-nodes" in out
    assert "mend" in out
    everything = bench("explain")[1]
    assert all(rule.code in everything for rule in lint.all_rules())
    assert [rule["code"] for rule in json.loads(bench("explain", "--json")[1])["result"]] == sorted(CASES)
    status, _, err = bench("explain", "unsorted")
    assert status == NotFoundError.exit_code
    assert "unsorted-nodes" in err


def test_the_fixture_of_the_places_is_what_it_says():
    """The names that the tests above rely on."""
    assert [scope.path for scope in GraphIndex(branch("r = Relu (h)")).scopes] == ["", "If#1/then", "If#1/else"]
