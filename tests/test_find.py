"""``find``: what is told of tensors and nodes, against the graph itself; names that select what they name."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from cases import Case, cases, named
from hypothesis import given
from onnx import helper, numpy_helper, parser
from strategies import models

from onnxbench import select
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import NotFoundError
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto, load
from onnxbench.records import Reader, Use, attribute_value, find, node_selector, tensor_selector


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = bounded(app, [str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def tensor(model, name: str, **options):
    (record,) = find(model, [name], **options).tensors
    return record


@pytest.fixture
def small():
    """Every kind of tensor, and one that is read in every way."""
    return from_proto(
        parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        g (float[2] x, bool flag, float[2] w = {1, 2}) => (float[2] y, float[2] t)
        <float[2] loose = {3, 4}>
        {
          [make] t = Add (x, x)
          k = Constant <value = float[1] {5}> ()
          [choose] u = If (flag) <
            then_branch = a () => (float[2] r) { [inner] r = Mul (t, k) },
            else_branch = b () => (float[2] t) { }
          >
          [last] y, unused = Dropout (u, , )
        }
        """)
    )


# Tensors.


def test_kinds(small):
    kinds = {name: tensor(small, name).kind for name in ("x", "w", "loose", "k", "t", "u", "y")}
    assert kinds == {"x": "input", "w": "initializer", "loose": "initializer", "k": "constant", "t": "inner",
                     "u": "inner", "y": "inner"}  # fmt: skip
    assert [name for name in ("x", "w", "loose", "k", "t", "u", "y") if tensor(small, name).is_output] == ["t", "y"]
    assert [name for name in ("x", "w", "loose") if tensor(small, name).has_default] == ["w"]
    assert {name: tensor(small, name).bytes for name in ("x", "w", "loose", "k")} == {
        "x": None,
        "w": 8,
        "loose": 8,
        "k": 4,
    }


def test_makers_and_readers(small):
    found = tensor(small, "t")
    assert (found.producer, found.producer_op, found.producer_output) == ("make", "Add", 0)
    assert found.consumers == (Use("choose", "If", None), Use("choose/then/inner", "Mul", 0))
    assert tensor(small, "x").consumers == (Use("make", "Add", 0), Use("make", "Add", 1))
    assert tensor(small, "k").consumers == (Use("choose/then/inner", "Mul", 1),)
    assert tensor(small, "unused").producer_output == 1
    assert tensor(small, "unused").consumers == ()


def test_types_and_who_states_them():
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(named("residual").path)))
    stated = {info.name: info.type for info in proto.graph.value_info}
    model = load(named("residual").path)
    index = GraphIndex(model.proto)
    for name in index.main.producers:
        record = tensor(model, name)
        assert record.type.by in ("model", "inference")
        if name in stated:
            shape = tuple(dim.dim_value or dim.dim_param for dim in stated[name].tensor_type.shape.dim)
            assert record.type.shape == shape
        assert record.type.dtype == "float32"


def test_inference_can_be_forbidden():
    proto = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[2] x) => (float[2] y) {t = Abs(x) y = Abs(t)}'
    )
    assert tensor(from_proto(proto), "t").type.by == "inference"
    assert tensor(from_proto(proto), "t", infer=False).type.by == "nobody"
    assert tensor(from_proto(proto), "y", infer=False).type.by == "model"


def test_a_model_that_cannot_be_inferred_is_shown_all_the_same():
    assert tensor(load(named("cycle_two").path), "y").type.text == "float32[3]"


@given(models())
def test_makers_and_readers_are_those_of_the_graph(model):
    """The uses told of a tensor are the nodes that read it, in its own graph and in bodies, by brute force."""
    wrapped = from_proto(model.proto)
    index = GraphIndex(model.proto)
    reader = Reader(wrapped, index, infer=False)
    for ref in index.tensors():
        record = reader.tensor(ref)
        told = {(use.node, use.input) for use in record.consumers if use.input is not None}
        real = set()
        for candidate in index.nodes():
            for number, name in enumerate(candidate.node.input):
                home = candidate.scope
                while home.parent is not None and not home.defines(name):
                    home = home.parent
                if name == ref.name and home is ref.scope:
                    real.add((candidate.path, number))
        assert told == real
        makers = [node.path for node in index.nodes() if node.scope is ref.scope and ref.name in node.node.output]
        assert makers == ([record.producer] if record.producer else [])


# Nodes.


def test_node_records(small):
    (choose,) = find(small, ["node:choose"]).nodes
    assert (choose.op, choose.position, choose.captures, choose.bodies) == (
        "If", 2, ("t", "k"), ("choose/then", "choose/else")
    )  # fmt: skip
    (last,) = find(small, ["last"]).nodes
    assert last.inputs[0].name == "u"
    assert [(link.name, link.type) for link in last.outputs] == [("y", "float32[2]"), ("unused", "bool[2]")]
    (inner,) = find(small, ["node:choose/then/inner"]).nodes
    assert [(link.name, link.kind) for link in inner.inputs] == [("t", "captured"), ("k", "captured")]
    assert [link.type for link in inner.inputs] == ["float32[2]", "float32[1]"]


def test_empty_optional_inputs_are_shown_as_left_out():
    (clip,) = find(load(named("clip_empty_min").path), ["op:Clip"]).nodes
    assert [link.kind for link in clip.inputs if not link.name] == ["left out"]


def test_calls_of_local_functions():
    nodes = find(load(named("function_nested").path), ["op:*"]).nodes
    assert {node.path for node in nodes if node.is_function_call} == {
        "norm", "square", "local::Norm/sp", "local::SquarePlus/sq",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 0.1), (1e-5, 1e-5), (3.4028234663852886e38, 3.4028235e38), (float("inf"), float("inf")), (7, 7),
        ("text", "text"), ([1, 2], [1, 2]), ([0.1, 0.25], [0.1, 0.25]), (["a", "b"], ["a", "b"]),
        (numpy_helper.from_array(np.array([4, 5])), "int64[2] = {4, 5}"),
        (helper.make_tensor("t", 1, [], [0.1]), "float32[] = 0.1"),
        (helper.make_tensor("t", 1, [100], [0.0] * 100), "float32[100]"),
        (helper.make_tensor("t", 8, [2], [b"a", b"\xff"]), r"string[2] = {'a', '\\xff'}"),
        (helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [], []), "graph of 1 nodes"),
        (helper.make_tensor_type_proto(1, [2, "n"]), "float32[2, n]"),
    ],
)  # fmt: skip
def test_attributes_as_plain_values(value, expected):
    assert attribute_value(helper.make_attribute("a", value)) == expected


def test_attribute_references_name_the_functions_attribute():
    reference = onnx.AttributeProto(name="axis", ref_attr_name="outer", type=onnx.AttributeProto.INT)
    assert attribute_value(reference) == "@outer"


def test_origin_of_nodes_and_of_the_weights_they_read():
    model = load(named("pytorch_dynamo_metadata").path)
    (conv,) = find(model, ["node:node_conv2d"]).nodes
    origin = conv.origin
    assert (origin.module, origin.module_class) == ("layers.0.c", "torch.nn.modules.conv.Conv2d")
    assert (origin.source, origin.code) == ("/home/u/toy.py:12", "return x + self.a(self.c(x))")
    weight = next(link.name for link in conv.inputs if link.kind == "initializer")
    assert tensor(model, weight).origin.module == "layers.0.c"


# What is matched.


def test_bare_names_are_tensors_first_and_nodes_else(small):
    assert [record.name for record in find(small, ["t"]).tensors] == ["t"]
    assert [record.path for record in find(small, ["choose"]).nodes] == ["choose"]
    both = find(small, ["t", "choose", "op:Add"])
    assert ([record.name for record in both.tensors], [record.path for record in both.nodes]) == (
        ["t"],
        ["make", "choose"],
    )


def test_nodes_or_tensors_can_be_forced(small):
    assert [record.path for record in find(small, ["t", "u"], only="nodes").nodes] == ["make", "choose"]
    assert [record.name for record in find(small, ["op:If", "make"], only="tensors").tensors] == ["t", "u"]
    with pytest.raises(NotFoundError, match="no node makes"):
        find(small, ["x"], only="nodes")
    with pytest.raises(NotFoundError, match="'nope'"):
        find(small, ["nope"])


@cases(lambda case: case.valid != "no")
def test_names_are_selectors_that_select_what_they_name(case: Case):
    index = GraphIndex(load(case.path, require_weights=False).proto)
    for ref in index.tensors():
        assert select.tensors(index, [tensor_selector(ref)]) == [ref]
    names = Counter(ref.node.name for ref in index.nodes())
    for ref in index.nodes():
        selected = select.nodes(index, [node_selector(ref)])
        assert ref in selected
        if names[ref.path] <= 1:
            assert selected == [ref]


def test_names_go_through_a_file(capsys, tmp_path):
    path = named("names_special").path
    code, out, _ = run(capsys, "find", path, "*", "--names")
    assert code == 0
    whole = {ref.path for ref in GraphIndex(load(path).proto).tensors()}
    file = tmp_path / "names.txt"
    one_line_each = [line for line in out.split("\n") if line and line in whole | {'"#hash"', '" padded "'}]
    file.write_text("\n".join(one_line_each), encoding="utf-8")
    code, again, _ = run(capsys, "find", path, f"@{file}", "--names")
    assert code == 0
    assert again.splitlines() == one_line_each
    assert len(one_line_each) >= len(whole) - 1, "all but the name with a line break"


# The command.


def test_details_of_a_few_and_a_table_of_many(capsys):
    path = named("residual").path
    code, few, _ = run(capsys, "find", path, "op:Add")
    assert code == 0
    assert "input " in few
    many = run(capsys, "find", path, "op:Add", "--short")[1]
    assert many.splitlines()[0].split()[:2] == ["node", "operator"]
    assert run(capsys, "find", path, "op:Add", "--long")[1] == few
    huge = run(capsys, "find", named("names_special").path, "*")[1]
    assert huge.splitlines()[0].split()[:2] == ["tensor", "type"]


def test_counts_and_names(capsys):
    path = named("names_all_equal").path
    assert run(capsys, "find", path, "op:*", "--count") == (0, "3\n", "")
    assert run(capsys, "find", path, "op:*", "--names") == (0, "node:same#0\nnode:same#1\nnode:same#2\n", "")
    body = json.loads(run(capsys, "find", path, "op:*", "--count", "--json")[1])
    assert body["result"]["count"] == 3


def test_json(capsys):
    code, out, _ = run(capsys, "find", named("pytorch_dynamo_metadata").path, "node:node_conv2d", "conv2d", "--json")
    result = json.loads(out)["result"]
    assert code == 0
    assert result["count"] == 2
    (found,) = result["tensors"]
    assert found["type"]["dtype"] == "float32"
    assert found["producer"] == "node_conv2d"
    (node,) = result["nodes"]
    assert node["origin"]["source"] == "/home/u/toy.py:12"


def test_no_match_ends_with_code_4_and_near_names(capsys):
    code, out, err = run(capsys, "find", named("residual").path, "ad1_out")
    assert (code, out) == (4, "")
    assert "add1_out" in err
    assert run(capsys, "find", named("residual").path, "op:Conv", "--nodes", "--tensors")[0] == 2


@pytest.mark.corpus
def test_find_in_a_real_model(corpus, capsys):
    code, out, _ = run(capsys, "find", corpus("silero_vad")[0], "input")
    assert code == 0
    assert "stft/padding/Pad" in out, "the readers are deep inside the bodies"
    code, out, _ = run(capsys, "find", corpus("attacut_sc")[0], "scope:model.linear1", "--names")
    assert out.split() == ["node:node_MatMul_56", "node:node_linear"]
