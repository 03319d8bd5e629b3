"""The selector language: every form of it, names with any character, reachability against brute force, clear errors."""

from __future__ import annotations

import onnx
import pytest
from cases import Case, cases, named
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser
from strategies import dags, models

from onnxbench import select
from onnxbench.errors import NotFoundError, UsageError
from onnxbench.graph import GraphIndex, TensorRef
from onnxbench.model import load


def fixture(name: str) -> GraphIndex:
    return GraphIndex(load(named(name).path, require_weights=False).proto)


def tensors(index: GraphIndex, *selectors: str) -> list[str]:
    return [ref.path for ref in select.tensors(index, selectors)]


def nodes(index: GraphIndex, *selectors: str) -> list[str]:
    return [ref.path for ref in select.nodes(index, selectors)]


@pytest.fixture
def small() -> GraphIndex:
    """Two convolutions and what is around them, unnamed nodes among them."""
    return GraphIndex(
        parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19, "com.x" : 1]>
        small (float[1, 2, 4, 4] image, float16[1] half) => (float out, float16 halved)
        <float[2, 2, 1, 1] w1 = {1, 0, 0, 1}, float[2, 2, 1, 1] w2 = {1, 0, 0, 1}, float16[1] two = {16384},
         float conv1_out>
        {
          [first] conv1_out = Conv (image, w1)
          act = Relu (conv1_out)
          [second] conv2_out = Conv (act, w2)
          [odd] left, right = com.x.Foo (conv2_out)
          out = Add (left, right)
          [halve] halved = Div (half, two)
        }
        """)
    )


# Each form.


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("act", ["act"]),
        ("conv*_out", ["conv1_out", "conv2_out"]),
        ("conv[12]_out", ["conv1_out", "conv2_out"]),
        ("conv[!1]_out", ["conv2_out"]),
        ("ac?", ["act"]),
        ("re:conv\\d_out|act", ["conv1_out", "act", "conv2_out"]),
        ("re:'conv1.*' | act", ["conv1_out", "act"]),
        ('"act"', ["act"]),
        ("'act'", ["act"]),
        ("node:first", ["conv1_out"]),
        ("node:*d", ["conv2_out", "left", "right"]),
        ("node:#1", ["act"]),
        ("node:Relu#1", ["act"]),
        ("node:odd", ["left", "right"]),
        ("op:Conv", ["conv1_out", "conv2_out"]),
        ("op:C*", ["conv1_out", "conv2_out"]),
        ("op:Foo", ["left", "right"]),
        ("op:com.x::Foo", ["left", "right"]),
        ("op:com.x::*", ["left", "right"]),
        ("op:ai.onnx::Relu", ["act"]),
        ("op:::Relu", ["act"]),
        ("input:*", ["image", "half"]),
        ("input:im*", ["image"]),
        ("output:*", ["out", "halved"]),
        ("output:halved", ["halved"]),
        ("weight:*", ["w1", "w2", "two"]),
        ("weight:w?", ["w1", "w2"]),
        ("dtype:float16", ["half", "two", "halved"]),
        ("dtype:fp16", ["half", "two", "halved"]),
        ("dtype:FLOAT", ["image", "w1", "w2", "conv1_out", "out"]),
        ("op:Conv & downstream(act)", ["conv2_out"]),
        ("op:Conv | op:Relu", ["conv1_out", "act", "conv2_out"]),
        ("op:Conv & !conv1_out", ["conv2_out"]),
        ("!op:Conv & !op:Div & !op:Add & !op:Foo", ["act"]),
        ("(act | out) & !act", ["out"]),
        ("!!act", ["act"]),
        ("act|out & conv1_out|halved", ["act", "halved"]),
        ("  act  ", ["act"]),
        ("upstream(act)", ["image", "w1", "conv1_out", "act"]),
        ("downstream(conv2_out)", ["conv2_out", "left", "right", "out"]),
        ("between(act, left)", ["act", "conv2_out", "left"]),
        ("between( op:Relu , node:second )", ["act", "conv2_out"]),
        ("upstream(op:Relu) & downstream(conv1_out)", ["conv1_out", "act"]),
        ("downstream(w1|two)", ["w1", "two", "conv1_out", "act", "conv2_out", "left", "right", "out", "halved"]),
        ("act,out", ["act", "out"]),
        ("out, act", ["act", "out"]),
    ],
)
def test_form(small, selector, expected):
    assert sorted(tensors(small, selector)) == sorted(expected)


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        (["act"], ["Relu#1"]),
        (["first"], ["first"]),
        (["op:Conv"], ["first", "second"]),
        (["second", "first"], ["first", "second"]),
        (["left", "right"], ["odd"]),
        (["!op:Conv"], ["Relu#1", "odd", "Add#4", "halve"]),
        (["upstream(left) & (op:Relu | op:Foo)"], ["Relu#1", "odd"]),
    ],
)
def test_as_nodes(small, selectors, expected):
    assert nodes(small, *selectors) == expected


def test_several_selectors_come_in_their_own_order_without_repeats(small):
    assert tensors(small, "out", "act", "*") == ["out", "act", "image", "half", "w1", "w2", "two", "conv1_out",
                                                 "conv2_out", "left", "right", "halved"]  # fmt: skip


def test_both_spellings_of_the_standard_domain():
    index = fixture("opset_spelled_ai_onnx")
    assert index.main.nodes
    for spelled in ("op:ai.onnx::*", "op:::*", "op:*"):
        assert len(nodes(index, spelled)) == len(index.main.nodes)


# Names.


@cases(lambda case: case.valid != "no")
def test_every_tensor_is_selected_by_its_own_name(case: Case):
    index = GraphIndex(load(case.path, require_weights=False).proto)
    for ref in index.tensors():
        assert select.tensors(index, [ref.path]) == [ref], ref.path


@pytest.mark.parametrize("form", ["upstream({})", "({})", "{} | {}", "downstream( {} )", "!(!{})"])
def test_names_with_colons_and_slashes_keep_their_meaning_inside_an_expression(form):
    index = fixture("names_special")
    for name in (
        "input:0",
        "output:0",
        "A:B:C",
        "semi;colon",
        "/layer1/layer1.0/conv1/Conv_output_0",
        "with space",
        ":",
    ):
        assert name in tensors(index, form.replace("{}", name)), name


def test_names_that_look_like_operators_can_be_quoted():
    index = fixture("names_special")
    for name in ("a&b", "x|y", "!not", "(paren)", "a,b", "*star", "[0]", "#hash", " padded ", "@at"):
        assert tensors(index, f'upstream("{name}") & downstream("{name}")') == [name]
    assert tensors(index, """upstream("single'quote") & downstream("single'quote")""") == ["single'quote"]
    assert tensors(index, """upstream('double"quote') & downstream('double"quote')""") == ['double"quote']


def test_a_comma_list_gives_way_to_a_name_with_a_comma():
    assert tensors(fixture("names_special"), "a,b") == ["a,b"]


def test_a_tensor_comes_before_a_node_of_the_same_name():
    index = fixture("names_node_is_tensor")
    assert [ref.path for ref in select.tensors(index, ["a"])] == ["a"]
    (node,) = select.nodes(index, ["a"])
    assert node.position == index.main.producers["a"], "the maker of tensor a, and not the node called a"
    assert [ref.label for ref in select.nodes(index, ["node:a"])] == ["a"]


def test_equal_and_missing_names_go_by_position():
    assert nodes(fixture("names_all_equal"), "node:same") == ["same#0", "same#1", "same#2"]
    assert nodes(fixture("names_all_equal"), "node:same#1") == ["same#1"]
    assert nodes(fixture("names_unnamed"), "node:Neg#1", "node:#0") == ["Relu#0", "Neg#1"]


def test_letter_case_matters():
    index = fixture("names_special")
    assert tensors(index, "RELU") == ["RELU"]
    assert tensors(index, "rel?") == ["relu"]


# Bodies and functions.


def test_bodies_and_functions_have_paths():
    bodies, functions = fixture("nested_bodies"), fixture("function_nested")
    assert tensors(bodies, "outer_if/then/loop/body/inner_if/then/u") == ["outer_if/then/loop/body/inner_if/then/u"]
    assert tensors(bodies, "outer_if/else/*") == ["outer_if/else/level1", "outer_if/else/outer_out"]
    assert nodes(bodies, "op:If") == ["outer_if", "outer_if/then/loop/body/inner_if"]
    assert nodes(bodies, "node:outer_if/then/loop") == ["outer_if/then/loop"]
    assert tensors(functions, "local::Norm/*") == [f"local::Norm/{name}" for name in "vwtr"]
    assert nodes(functions, "op:Mul") == ["local::Square/mul"]
    assert nodes(functions, "op:local::Square") == ["square", "local::SquarePlus/sq"]


def test_upstream_leaves_a_body_through_what_it_captures():
    index = fixture("nested_bodies")
    found = set(tensors(index, "upstream(outer_if/then/loop/body/inner_if/then/u)"))
    assert {"outer_if/then/loop/body/stepped", "outer_if/then/level1", "pre", "x"} <= found
    existing = {ref.path for ref in index.tensors()}
    assert found <= existing, "no tensor is made up"


def test_downstream_sees_captures_as_reads_of_the_node_around():
    index = fixture("nested_bodies")
    assert set(tensors(index, "downstream(pre)")) == {"pre", "branch", "y"}


# Reachability, against brute force.


def _reachable(proto: onnx.ModelProto) -> dict[str, set[str]]:
    """Returns what each tensor of a graph depends on, by relaxation until nothing changes."""
    above: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in (*node.input, *node.output):
            above.setdefault(name, {name})
    changed = True
    while changed:
        before = sum(map(len, above.values()))
        for node in proto.graph.node:
            for made in node.output:
                for read in node.input:
                    above[made] |= above[read]
        changed = sum(map(len, above.values())) != before
    return above


@given(dags(), st.randoms(use_true_random=False))
def test_upstream_downstream_and_between_are_reachability(proto, chance):
    index = GraphIndex(proto)
    above = _reachable(proto)
    first, second = chance.choice(sorted(above)), chance.choice(sorted(above))
    down = {name for name, sources in above.items() if first in sources}
    assert set(tensors(index, f"upstream({second})")) == above[second]
    assert set(tensors(index, f"downstream({first})")) == down
    expected = down & above[second]
    if expected:
        assert set(tensors(index, f"between({first}, {second})")) == expected
    else:
        with pytest.raises(NotFoundError):
            tensors(index, f"between({first}, {second})")


@given(models(), st.randoms(use_true_random=False))
def test_boolean_operators_are_set_operators(model, chance):
    index = GraphIndex(model.proto)
    everything = list(index.tensors())
    picked = [ref for ref in everything if chance.random() < 0.5]
    other = [ref for ref in everything if chance.random() < 0.5]

    def quoted(refs: list[TensorRef]) -> str:
        return "(" + " | ".join(f'"{ref.path}"' for ref in refs) + ")"

    wanted = {
        f"{quoted(picked)} & {quoted(other)}": set(picked) & set(other),
        f"{quoted(picked)} | {quoted(other)}": set(picked) | set(other),
        f"!{quoted(picked)}": set(everything) - set(picked),
        f"{quoted(picked)} & !{quoted(other)}": set(picked) - set(other),
    }
    for selector, expected in wanted.items():
        if not picked or not other or not expected or any('"' in ref.path for ref in everything):
            continue
        found = select.tensors(index, [selector])
        assert set(found) == expected
        assert found == [ref for ref in everything if ref in expected], "in the order of the graph"


@given(models())
def test_what_a_node_makes_leads_back_to_it(model):
    index = GraphIndex(model.proto)
    for ref in index.nodes():
        made = [name for name in ref.scope.writes[ref.position] if "'" not in name]
        for name in made:
            assert select.select(index, TensorRef(ref.scope, name).path).as_nodes() == {ref}


# PyTorch modules, marks, element types.


def test_scope_takes_a_module_with_the_modules_in_it():
    index = fixture("torchscript_names")
    assert nodes(index, "scope:layers.1") == [
        "/layers/layers.1/c/Conv",
        "/layers/layers.1/a/Relu",
        "/layers/layers.1/Add",
    ]
    assert nodes(index, "scope:layers.1.c") == ["/layers/layers.1/c/Conv"]
    assert nodes(index, "scope:layers.*.a") == [f"/layers/layers.{number}/a/Relu" for number in range(3)]
    assert len(nodes(index, "scope:layers")) == len(nodes(index, "scope:*")) == 9
    assert nodes(index, "scope:layers.1 & op:Conv") == ["/layers/layers.1/c/Conv"]
    with pytest.raises(NotFoundError):
        nodes(index, "scope:layers.1.")


def test_scope_reads_exporter_metadata():
    index = fixture("pytorch_dynamo_metadata")
    assert nodes(index, "scope:layers.0.c") == ["node_conv2d"]
    assert set(nodes(index, "scope:layers.0")) > {"node_conv2d"}


@pytest.mark.parametrize("name", ["mmdeploy_marks", "mmdeploy_marks_slash"])
def test_marks(name):
    index = fixture(name)
    assert tensors(index, "mark:detector_forward:input") == ["mark_0_out"]
    assert tensors(index, "mark:yolo_head:input") == tensors(index, "mark:yolo_head[0]:input") != []
    first, second = tensors(index, "mark:yolo_head[0]:output"), tensors(index, "mark:yolo_head[1]:output")
    assert len(first) == len(second) == 1
    assert first != second
    marked = [ref for ref in index.nodes() if ref.node.op_type == "Mark"]
    points = [select.mark_point(ref) for ref in marked]
    assert len(tensors(index, "op:Mark")) == len(points) == 8
    for ref, point in zip(marked, points, strict=True):
        assert point is not None
        spelled = f"mark:{point.function}[{point.call}]:{point.side}"
        assert set(ref.scope.writes[ref.position]) <= set(tensors(index, spelled))
        assert tensors(index, f"{spelled}:{point.name}") == ref.scope.writes[ref.position]


def test_dtype_names_tensors_that_exist():
    index = fixture("value_info_extra")
    existing = {ref.path for ref in index.tensors()}
    assert set(tensors(index, "dtype:float32")) <= existing


# Files.


def test_a_file_of_selectors(small, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\ufeff# the convolutions\n\n  op:Conv  \nnode:odd\n", encoding="utf-8")
    assert nodes(small, f"@{file}") == ["first", "second", "odd"]
    file.write_text("out\nact\r\nop:Conv\n", encoding="utf-8")
    assert tensors(small, f"@{file}") == ["conv1_out", "act", "conv2_out", "out"]
    outer = tmp_path / "outer.txt"
    outer.write_text(f"@{file}\nimage\n", encoding="utf-8")
    assert len(tensors(small, f"@{outer}")) == 5


def test_files_that_are_no_use(small, tmp_path):
    empty, binary, again, other = (tmp_path / name for name in ("empty", "binary", "again", "other"))
    empty.write_text("# nothing\n\n")
    binary.write_bytes(b"\xff\xfe\x00act")
    again.write_text(f"@{other}\n")
    other.write_text(f"@{again}\n")
    for path, words in (
        (empty, "names nothing"),
        (binary, "not UTF-8"),
        (tmp_path / "none", "cannot be read"),
        (tmp_path, "cannot be read"),
        (again, "names itself"),
    ):
        with pytest.raises(UsageError, match=words):
            tensors(small, f"@{path}")


# Errors.


@pytest.mark.parametrize(
    ("selector", "words", "hint"),
    [
        ("conv1_ot", "'conv1_ot'", "conv1_out"),
        ("node:frist", "'node:frist'", "first"),
        ("op:Cnov", "'op:Cnov'", "Conv"),
        ("op:Softmax", "'op:Softmax'", "Add"),
        ("dtype:float64", "'dtype:float64'", "float"),
        ("input:imge", "'input:imge'", "image"),
        ("upstream(conv1_ot)", "conv1_ot", "conv1_out"),
        ("firs", "'firs'", None),
        ("first", "'first'", "node:first"),
        ("zzz*", "'zzz*'", None),
        ("act & out", "'act & out'", None),
        ("re:xyz", "'re:xyz'", None),
        ("node:#99", "'node:#99'", "#0 to #"),
        ("scope:encoder", "'scope:encoder'", None),
    ],
)
def test_no_match_is_an_error_with_near_names(small, selector, words, hint):
    with pytest.raises(NotFoundError) as caught:
        tensors(small, selector)
    assert words in caught.value.message
    if hint is not None:
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "selector",
    ["", "   ", "(act", "act)", "act &", "| act", "upstream()", "upstream(act, out)", "between(act)", "'act", '"act',
     "re:(", "re:[", "dtype:floaty", "mark:f", "mark:f:sideways", "act(", "node:", "!", "()", "upstream(act",
     "act,nothing_of_the_kind(", "(" * 500 + "act" + ")" * 500],
)  # fmt: skip
def test_what_cannot_be_parsed_is_a_usage_error(small, selector):
    with pytest.raises(UsageError):
        tensors(small, selector)


def test_what_is_no_function_is_told_as_such(small):
    with pytest.raises(UsageError, match=r"there is no function upstreem\(\)") as caught:
        tensors(small, "upstreem(act)")
    assert caught.value.hint == "Did you mean 'upstream' or 'downstream'?"


def test_any_number_of_negations(small):
    assert tensors(small, "!" * 5000 + "act") == ["act"]


def test_nodes_wanted_and_only_inputs_found(small):
    with pytest.raises(NotFoundError, match="no node makes"):
        nodes(small, "image")
    with pytest.raises(NotFoundError, match="no node makes"):
        nodes(small, "weight:*")


@given(st.text(alphabet="ab()&|!,:*[]'\"@#re node:op upstream", max_size=24))
def test_no_text_is_a_crash(text):
    index = GraphIndex(
        parser.parse_model('<ir_version: 9, opset_import: ["" : 19]> g (float a) => (float b) {b = Abs(a)}')
    )
    try:
        found = select.tensors(index, [text])
    except (NotFoundError, UsageError):
        return
    assert {ref.path for ref in found} <= {"a", "b"}
