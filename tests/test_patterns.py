"""Patterns: what matches, what does not and why, and that a replacement is put in rightly."""

# ruff: noqa: E501  (graphs and patterns read best on one line)

from __future__ import annotations

import random
from itertools import permutations, product
from typing import Any

import numpy as np
import onnx
import pytest
from engines import run_ort
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from strategies import models

from onnxbench import patterns
from onnxbench.draft import Draft
from onnxbench.errors import RefusedResultError, SpecError, UnsupportedError
from onnxbench.graph import NodeRef, sort_nodes
from onnxbench.model import Model, from_proto
from onnxbench.modeltext import parse, read_functions, show
from onnxbench.patterns import Facts, Rule, Search, find_matches
from onnxbench.patterns._rules import rules_of_text
from onnxbench.validity import validate

HEAD = '<ir_version: 9, opset_import: ["" : 17, "my.ops" : 1]>\n'


def model_of(text: str) -> Model:
    return parse(text if text.startswith("<") else HEAD + text)


def rule_of(pattern: str, replacement: str = "", **said: Any) -> Rule:
    """Returns a rule; without a replacement, one that only looks."""
    found, _ = read_functions(pattern, source="pattern")
    if not replacement:
        outputs = ", ".join(found[0].output)
        inputs = ", ".join(f'"{name}"' for name in found[0].input)
        replacement = (
            f'<opset_import: ["my.ops": 1]> r ({inputs}) => ({outputs}) {{ {outputs} = my.ops.Found ({inputs}) }}'
        )
    others, _ = read_functions(replacement, source="replacement")
    return patterns.make_rule("r", patterns=found, replacement=others[0], functions=others[1:], **said)


def count(text: str, pattern: str, **said: Any) -> int:
    return len(find_matches(rule_of(pattern, **said), Facts(Draft.of(model_of(text)))))


def rewritten(text: str, rule: Rule, **how: Any) -> str:
    draft = Draft.of(model_of(text))
    patterns.rewrite(draft, rule, **how)
    draft.refresh_types()
    validate(draft.model.proto)
    return show(draft.model, weights="inline")


def why(text: str, rule: Rule, node: str) -> str:
    draft = Draft.of(model_of(text))
    (ref,) = draft.nodes(node)
    return "\n".join(patterns.explain(rule, Facts(draft), ref).sentences())


RELU_ADD = "p (a, b) => (y) { s = Add (a, b) y = Relu (s) }"


# -- what matches ------------------------------------------------------------------------------------------------


def test_operators_that_commute_match_in_either_order():
    pattern = "p (x, b) => (y) { r = Relu (x) y = Add (r, b) }"
    assert count("g (float[4] x, float[4] b) => (float[4] y) { r = Relu (x) y = Add (b, r) }", pattern) == 1
    assert count("g (float[4] x, float[4] b) => (float[4] y) { r = Relu (x) y = Sub (b, r) }", pattern) == 0
    minus = "p (x, b) => (y) { r = Relu (x) y = Sub (r, b) }"
    assert count("g (float[4] x, float[4] b) => (float[4] y) { r = Relu (x) y = Sub (b, r) }", minus) == 0


def test_commuting_is_tried_further_when_a_later_node_does_not_fit():
    """Both inputs are a Relu; only one order leads to the Sigmoid behind it."""
    text = "g (float[4] x) => (float[4] y) { s = Sigmoid (x) t = Tanh (x) a = Relu (t) b = Relu (s) y = Add (a, b) }"
    assert count(text, "p (x) => (y) { s = Sigmoid (x) r = Relu (s) t = Tanh (x) q = Relu (t) y = Add (r, q) }") == 1


def test_three_inputs_of_a_sum_match_in_any_order():
    text = "g (float[4] x) => (float[4] y) { a = Relu (x) b = Tanh (x) y = Sum (x, a, b) }"
    assert count(text, "p (x) => (y) { b = Tanh (x) a = Relu (x) y = Sum (b, a, x) }") == 1


@pytest.mark.parametrize(
    ("operator", "found"),
    [
        ('"Relu|Tanh"', 2),
        ('"*"', 3),
        ("any_op", 3),
        ('my.ops."*"', 1),
        ('"*".Tanh', 1),
        ("my.ops.Odd", 1),
        ("Sigmoid", 0),
    ],
)
def test_operators_may_be_left_open(operator, found):
    text = "g (float[4] x) => (float[4] a, float[4] b, float[4] c) { a = Relu (x) b = Tanh (x) c = my.ops.Odd (x) }"
    assert count(text, f"p (x) => (y) {{ y = {operator} (x) }}") == found


def test_attributes_are_compared_with_what_the_operator_does_without_them():
    text = "g (float[4,4] x) => (float[4,4] y, float[4,4] z) { y = Softmax (x) z = Softmax <axis = 0> (x) }"
    assert count(text, "p (x) => (y) { y = Softmax <axis = -1> (x) }") == 1
    assert count(text, "p (x) => (y) { y = Softmax (x) }") == 1  # no attribute may differ from its default
    assert count(text, "p (x) => (y) { y = Softmax <axis = @axis> (x) }") == 2
    assert count(text, "p (x) => (y) { y = Softmax <_rest = @rest> (x) }") == 2


def test_an_attribute_captured_twice_must_be_the_same():
    pattern = "p (x) => (y) { s = Softmax <axis = @axis> (x) y = LogSoftmax <axis = @axis> (s) }"
    text = "g (float[4,4] x) => (float[4,4] y) {{ s = Softmax <axis = 0> (x) y = LogSoftmax <axis = {}> (s) }}"
    assert count(text.format(0), pattern) == 1
    assert count(text.format(1), pattern) == 0


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("float c = {0.7978845}", 1),
        ("float[1] c = {0.7978845}", 1),
        ("float[1,1] c = {0.7978845}", 0),  # the result might get a dimension
        ("float c = {0.7978}", 0),
        ("double c = {0.7978845608}", 0),  # a type that x does not have; nothing runs this
        ("float[2] c = {0.7978845, 0.7978845}", 0),
    ],
)
def test_constants_are_compared_by_value(declared, found):
    pattern = "p (x) => (y) { c = Constant <value_float = 0.7978845608> () y = Mul (x, c) }"
    text = f"g (float[4] x) => (float[4] y) <{declared}> {{ y = Mul (x, c) }}"
    if declared.startswith("double"):
        pattern = pattern.replace("(x) => (y)", "(float[4] x) => (float[4] y)")
        text = text.replace("float[4]", "double[4]")
    assert count(text, pattern) == found


def test_constants_are_what_they_are_in_the_models_own_type():
    text = "g (float16[4] x) => (float16[4] y) <float16 c = {0.79785}> { y = Mul (x, c) }"
    assert count(text, "p (x) => (y) { c = Constant <value_float = 0.7978845608> () y = Mul (c, x) }") == 1
    assert count(text, "p (x) => (y) { c = Constant <value_float = 0.79> () y = Mul (c, x) }") == 0
    loose = "p (x) => (y) { c = Constant <value_float = 0.79, _tolerance = 0.02> () y = Mul (c, x) }"
    assert count(text, loose) == 1


def test_constants_may_be_nodes_initializers_of_graphs_around_and_behind_identity():
    pattern = "p (x) => (y) { c = Constant <value_float = 2.0> () y = Mul (x, c) }"
    assert count("g (float[4] x) => (float[4] y) { c = Constant <value_float = 2.0> () y = Mul (x, c) }", pattern) == 1
    identity = "g (float[4] x) => (float[4] y) <float c = {2}> { d = Identity (c) y = Mul (x, d) }"
    assert count(identity, pattern) == 1
    body = """g (bool k, float[4] x) => (float[4] y) <float c = {2}> {
      y = If (k) <then_branch = t () => (float[4] a) { a = Mul (x, c) }, else_branch = e () => (float[4] b) { b = Neg (x) }>
    }"""
    assert count(body, pattern) == 1


def test_an_initializer_that_callers_may_override_is_no_constant():
    text = "g (float[4] x, float c = {2}) => (float[4] y) { y = Mul (x, c) }"
    rule = rule_of("p (x) => (y) { c = Constant <value_float = 2.0> () y = Mul (x, c) }")
    assert find_matches(rule, Facts(Draft.of(model_of(text)))) == []
    assert "callers may override" in why(text, rule, "y")


def test_nan_and_infinity_are_constants_too():
    text = "g (float[4] x) => (float[4] y, float[4] z) <float a = {-inf}, float b = {nan}> { y = Max (x, a) z = Max (x, b) }"
    infinite = "p (x) => (y) { c = Constant <value = float {-inf}> () y = Max (x, c) }"
    assert count(text, infinite) == 1
    assert count(text, infinite.replace("-inf", "nan")) == 1
    assert count(text, infinite.replace("-inf", "-3.4e38")) == 0


def test_nodes_and_inputs_may_be_missing():
    pattern = 'p (x, w, "b?", bias) => (y) { c = Conv <_rest = @r> (x, w, "b?") a = Add <_optional = 1> (c, bias) y = Relu (a) }'
    head = "g (float[1,1,4] x, float[1,1,1] w, float[1] b) => (float[1,1,4] y) "
    for nodes in (
        "c = Conv (x, w)",
        "c = Conv (x, w, b)",
        "d = Conv (x, w) c = Add (d, b)",
        "d = Conv (x, w, b) c = Add (b, d)",
    ):
        assert count(f"{head}{{ {nodes} y = Relu (c) }}", pattern) == 1, nodes
    tail = "p (x) => (z) { y = Relu (x) z = Cast <_optional = 1, to = @to> (y) }"
    assert count("g (float[4] x) => (float[4] y) { y = Relu (x) }", tail) == 1
    assert count("g (float[4] x) => (float16[4] z) { y = Relu (x) z = Cast <to = 10> (y) }", tail) == 1


def test_the_larger_variant_wins():
    text = "g (float[4] x) => (float16[4] z) { y = Relu (x) z = Cast <to = 10> (y) }"
    rule = rule_of("p (x) => (z) { y = Relu (x) z = Cast <_optional = 1, to = @to> (y) }")
    (match,) = find_matches(rule, Facts(Draft.of(model_of(text))))
    assert match.removed == [0, 1]


def test_any_number_of_inputs():
    text = "g (float[4] x) => (float[12] y, float[4] z) { y = Concat <axis = 0> (x, x, x) z = Concat <axis = 0> (x) }"
    pattern = 'p ("parts...") => (y) { y = Concat <axis = @axis> ("parts...") }'
    assert count(text, pattern) == 2
    rule = rule_of(
        pattern,
        '<opset_import: ["my.ops": 1]> r ("parts...") => (y) { y = my.ops.Joined <axis: int = @axis> ("parts...") }',
    )
    assert "y = my.ops.Joined <axis: int = 0> (x, x, x)" in rewritten(text, rule)


def test_types_of_captured_tensors():
    text = "g (float[4, n] x, float16[4, n] h, float[n, n] q) => (float[4, n] y, float16[4, n] z, float[n, n] w) { y = Relu (x) z = Relu (h) w = Relu (q) }"
    for signature, found in (
        ("float[] x", 2),
        ("undefined[4, ?] x", 2),
        ("float16[4, ?] x", 1),
        ("undefined[k, k] x", 1),
        ("undefined[4, 5] x", 0),
    ):
        assert count(text, f"p ({signature}) => (y) {{ y = Relu (x) }}") == found, signature


def test_a_pattern_of_several_outputs():
    pattern = "p (x) => (y, z) { t = Tanh (x) y = Relu (t) z = Sigmoid (t) }"
    text = "g (float[4] x) => (float[4] a, float[4] b) { t = Tanh (x) b = Sigmoid (t) a = Relu (t) }"
    rule = rule_of(pattern, '<opset_import: ["my.ops": 1]> r (x) => (y, z) { y, z = my.ops.Both (x) }')
    assert "a, b = my.ops.Both (x)" in rewritten(text, rule)
    chained = "g (float[4] x) => (float[4] b) { t = Tanh (x) a = Relu (t) b = Sigmoid (a) }"
    assert count(chained, pattern) == 0


def test_parallel_nodes_that_share_an_input_are_one_match_unless_one_depends_on_the_other():
    pattern = "p (x, v, w) => (y, z) { y = MatMul (x, v) z = MatMul (x, w) }"
    both = "g (float[4,4] x, float[4,4] v, float[4,4] w) => (float[4,4] a, float[4,4] b) { a = MatMul (x, v) b = MatMul (x, w) }"
    assert count(both, pattern) == 1
    one = both.replace("b = MatMul (x, w)", "c = Relu (a) b = MatMul (x, c)")
    rule = rule_of(pattern, '<opset_import: ["my.ops": 1]> r (x, v, w) => (y, z) { y, z = my.ops.Both (x, v, w) }')
    assert find_matches(rule, Facts(Draft.of(model_of(one)))) == []
    assert "depends on" in why(one, rule, "b")


def test_what_others_read_stands_in_the_way_unless_it_is_kept():
    text = "g (float[4] x, float[4] b) => (float[4] y, float[4] z) { s = Add (x, b) y = Relu (s) z = Neg (s) }"
    assert count(text, RELU_ADD) == 0
    assert "'s', which is inside of the match, is also read by" in why(text, rule_of(RELU_ADD), "y")
    output = "g (float[4] x, float[4] b) => (float[4] y, float[4] s) { s = Add (x, b) y = Relu (s) }"
    assert "an output of the graph" in why(output, rule_of(RELU_ADD), "y")
    kept = rewritten(text, rule_of(RELU_ADD, keep=True))
    assert "s = Add (x, b)" in kept
    assert "y = my.ops.Found (x, b)" in kept


def test_a_replacement_may_read_what_is_inside_of_the_match_which_then_stays():
    rule = rule_of(RELU_ADD, '<opset_import: ["my.ops": 1]> r (s) => (y) { y = my.ops.Act (s) }')
    after = rewritten("g (float[4] x, float[4] b) => (float[4] y) { s = Add (x, b) y = Relu (s) }", rule)
    assert "s = Add (x, b)" in after
    assert "y = my.ops.Act (s)" in after


def test_one_captured_tensor_is_the_same_everywhere_or_an_equal_constant():
    pattern = "p (x, c) => (y) { a = Mul (x, c) b = Tanh (a) y = Mul (b, c) }"
    text = "g (float[4] x, float[4] p, float[4] q) => (float[4] y) {{ a = Mul (x, p) b = Tanh (a) y = Mul (b, {}) }}"
    assert count(text.format("p"), pattern) == 1
    assert count(text.format("q"), pattern) == 0
    same = (
        "g (float[4] x) => (float[4] y) <float p = {2}, float q = {2}> { a = Mul (x, p) b = Tanh (a) y = Mul (b, q) }"
    )
    assert count(same, pattern) == 1
    assert count(same.replace("q = {2}", "q = {3}"), pattern) == 0


def test_matches_lie_in_one_graph_and_may_capture_from_around_it():
    text = """g (bool k, float[4] x, float[4] b) => (float[4] y) {
      s = Add (x, b)
      y = If (k) <then_branch = t () => (float[4] p) { p = Relu (s) },
                  else_branch = e () => (float[4] q) { u = Add (x, b) q = Relu (u) }>
    }"""
    rule = rule_of(RELU_ADD)
    (match,) = find_matches(rule, Facts(Draft.of(model_of(text))))
    assert match.scope.path.endswith("/else")
    after = rewritten(text, rule)
    assert "q = my.ops.Found (x, b)" in after
    assert "a graph around this one" in why(text, rule, "If#1/then/p")


def test_functions_are_rewritten_under_their_own_opsets():
    text = (
        HEAD.replace('"my.ops" : 1', '"local" : 1')
        + """g (float[4] x) => (float[4] y) { y = local.f (x) }
    <domain: "local", opset_import: ["" : 17]> f (x) => (y) { s = Add (x, x) y = Relu (s) }"""
    )
    after = rewritten(text, rule_of(RELU_ADD))
    assert '"my.ops" : 1' in after.split("f (x)")[0].rsplit("<", 1)[1]
    assert "y = my.ops.Found (x, x)" in after


def test_an_attribute_that_the_caller_of_a_function_gives_is_captured_and_not_compared():
    text = (
        HEAD.replace('"my.ops" : 1', '"local" : 1')
        + """g (float[4, 4] x) => (float[4, 4] y) { y = local.f <axis = 1> (x) }
    <domain: "local", opset_import: ["" : 17]> f <axis> (x) => (y) { y = Softmax <axis: int = @axis> (x) }"""
    )
    assert count(text, "p (x) => (y) { y = Softmax <axis = 1> (x) }") == 0
    rule = rule_of("p (x) => (y) { y = Softmax <axis = @a> (x) }", "r (x) => (y) { y = LogSoftmax <axis = @a> (x) }")
    assert "y = LogSoftmax <axis: int = @axis> (x)" in rewritten(text, rule)


def test_a_function_of_the_models_own_is_not_the_operator_of_its_name():
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { y = Relu (x) }
    <domain: "", opset_import: ["" : 17]> Relu (x) => (y) { y = Neg (x) }"""
    assert count(text, "p (x) => (y) { y = Relu (x) }") == 0


def test_matches_do_not_overlap_and_the_first_come_first():
    text = "g (float[4] x) => (float[4] y) { a = Relu (x) b = Relu (a) c = Relu (b) d = Relu (c) y = Relu (d) }"
    rule = rule_of("p (x) => (y) { r = Relu (x) y = Relu (r) }")
    matches = find_matches(rule, Facts(Draft.of(model_of(text))))
    assert [match.removed for match in matches] == [[0, 1], [2, 3]]
    assert [m.removed for m in find_matches(rule, Facts(Draft.of(model_of(text))), limit=1)] == [[0, 1]]


def test_outputs_of_split_are_counted():
    pattern = "p (x) => (y, z) { y, z = Split <axis = 0, num_outputs = @n> (x) }"
    text = '<ir_version: 9, opset_import: ["" : 18]> g (float[6] x) => (float[?] a, float[?] b) { %s = Split <axis = 0, num_outputs = %d> (x) }'
    assert count(text % ("a, b", 2), pattern) == 1
    assert count(text % ("a, b, c", 3), pattern) == 0
    mask = "g (float[4] x) => (float[4] y) { y, m = Dropout (x) }"
    assert count(mask, "p (x) => (y) { y = Dropout (x) }") == 1
    assert count(mask.replace("(float[4] y)", "(float[4] y, bool[4] m)"), "p (x) => (y) { y = Dropout (x) }") == 0


# -- conditions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("rank(x) == 2 and dim(x, 0) == 4", True),
        ("dim(x, 1) == dim(y, 1)", True),
        ("dim(x, 1) == 7", False),  # a size with a name cannot be known
        ("dim(x, 1) != 7", False),
        ("shape(x)[:1] == [4]", True),
        ("dtype(x) in ['float32', 'float16']", True),
        ("is_const(c) and scalar(c) > 0.1 and scalar(c) < 0.3", True),
        ("value(c) == [0.25]", True),
        ("is_const(x)", False),
        ("alpha * 4 == 2.0", True),
        ("uses(x) == 1 and op(x) == ''", True),
        ("opset() >= 17 and not opset('nowhere')", True),
        ("sqrt(scalar(c)) == 0.5 if alpha < 1 else 1 == 2", True),
        ("rank(x) == 3 or dim(x, 0) == 4", True),
        ("10 ** 2 == 100 and 7 // 2 == 3 and 7 % 2 == 1 and -alpha == -0.5", True),
    ],
)
def test_conditions(condition, holds):
    text = (
        "g (float[4, n] x) => (float[4, n] y) <float[1] c = {0.25}> { a = LeakyRelu <alpha = 0.5> (x) y = Mul (a, c) }"
    )
    pattern = "p (x, c) => (y) { a = LeakyRelu <alpha = @alpha> (x) y = Mul (a, c) }"
    assert count(text, pattern, where=[condition]) == int(holds)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("__import__('os').system('true')", "no function"),
        ("x.__class__ == 1", "Attribute"),
        ("[i for i in [1]] == [1]", "ListComp"),
        ("(lambda: 1)() == 1", "no function of rules"),
        ("rank(q) == 1", "there is not"),
        ("rank(x", "no expression"),
        ("open('f')", "no function 'open'"),
        ("f'{x}' == ''", "JoinedStr"),
    ],
)
def test_expressions_can_do_nothing_else(condition, said):
    with pytest.raises(SpecError, match=said.replace("(", r"\(")):
        rule_of(RELU_ADD.replace("(a, b)", "(x, b)", 1).replace("Add (a, b)", "Add (x, b)"), where=[condition])


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("a == b", "same(a, b)"),
        (f"{'-' * 1500}1 == 1", "nested too deep"),
        ("value(a)[7] == 1", "is no constant"),
        ("[1][3] == 1", "out of range"),
    ],
)
def test_conditions_that_cannot_be_evaluated_are_a_reason_not_to_match(condition, said):
    text = "g (float[4] x, float[4] b) => (float[4] y) { s = Add (x, b) y = Relu (s) }"
    assert said in why(text, rule_of(RELU_ADD, where=[condition]), "y")


def test_integer_constants_of_every_width():
    pattern = "p (x) => (y) { two = Constant <value_int = 2> () y = Mul (x, two) }"
    for word in ("int8", "uint8", "int32", "uint64", "int64"):
        text = f"g ({word}[4] x) => ({word}[4] y) <{word} c = {{2}}> {{ y = Mul (x, c) }}"
        assert count(text, pattern) == 1, word
        assert count(text.replace("{2}", "{3}"), pattern) == 0, word


@pytest.mark.parametrize(
    "condition", ["10 ** 10 ** 10 > 1", "(1 << 2) == 4", "[0] * 1000000000 == []", "2 ** 63 * 2 ** 63 > 1"]
)
def test_expressions_cannot_take_all_memory_or_time(condition):
    text = "g (float[4] x, float[4] b) => (float[4] y) { s = Add (x, b) y = Relu (s) }"
    try:
        rule = rule_of(RELU_ADD, where=[condition])
    except SpecError:
        return
    assert find_matches(rule, Facts(Draft.of(model_of(text)))) == []


# -- replacing ---------------------------------------------------------------------------------------------------


def test_a_replacement_may_hand_on_a_tensor():
    rule = rule_of("p (x) => (y) { a = Neg (x) y = Neg (a) }", "r (x) => (x) { }")
    text = "g (float[4] x) => (float[4] y) { a = Neg (x) b = Neg (a) c = Neg (b) d = Neg (c) y = Relu (d) }"
    assert "{\n   y = Relu (x)\n}" in rewritten(text, rule)
    at_output = rewritten("g (float[4] x) => (float[4] y) { a = Neg (x) y = Neg (a) }", rule)
    assert "y = Identity (x)" in at_output
    captured = """g (bool k, float[4] x) => (float[4] y) { a = Neg (x) b = Neg (a)
      y = If (k) <then_branch = t () => (float[4] p) { p = Relu (b) }, else_branch = e () => (float[4] q) { q = Tanh (b) }> }"""
    after = rewritten(captured, rule)
    assert "p = Relu (x)" in after
    assert "q = Tanh (x)" in after


def test_constants_of_a_replacement_are_stored_once_and_in_the_type_of_another_tensor():
    rule = rule_of(
        "p (x) => (y) { y = Neg (x) }",
        "r (x) => (y) { minus = Constant <value_float = -1.0, _like = @x> () y = Mul (x, minus) }",
    )
    after = rewritten("g (float16[4] x) => (float16[4] y, float16[4] z) { y = Neg (x) z = Neg (x) }", rule)
    assert after.count("float16 ") == 1
    assert "= {-1.0}" in after


def test_values_are_calculated_for_attributes():
    rule = rule_of(
        "p (x, c) => (y) { t = Mul (x, c) y = Softmax <axis = @axis> (t) }",
        '<opset_import: ["my.ops": 1]> r (x) => (y) { y = my.ops.Scaled <axis = @axis, scale: float = @scale, sizes: ints = @sizes, by: float = @c> (x) }',
        let={"scale": "scalar(c) * 2", "sizes": "[rank(x), dim(x, 0)]"},
        where=["is_const(c)"],
    )
    after = rewritten("g (float[4, 5] x) => (float[4, 5] y) <float c = {0.5}> { t = Mul (x, c) y = Softmax (t) }", rule)
    assert "axis: int = -1" in after
    assert "scale: float = 1.0" in after
    assert "sizes: ints = [2, 4]" in after
    assert "by: float = 0.5" in after


def test_captured_operators_and_remaining_attributes_are_put_in_again():
    rule = rule_of(
        'p (x, b) => (y) { a = "*" <_op = @op, _rest = @rest> (x) y = Add (a, b) }',
        '<opset_import: ["my.ops": 1]> r (x, b) => (y) { s = Sub (x, b) y = Placeholder <_op = @op, _rest = @rest> (s) }',
    )
    after = rewritten(
        "g (float[4,4] x, float[4,4] b) => (float[4,4] y) { a = Softmax <axis = 0> (x) y = Add (a, b) }", rule
    )
    assert "y_s = Sub (x, b)" in after
    assert "y = Softmax <axis: int = 0> (y_s)" in after


def test_new_names_are_free_ones():
    rule = rule_of("p (x) => (y) { y = Neg (x) }", "r (x) => (y) { t = Abs (x) y = Relu (t) }")
    text = "g (float[4] x) => (float[4] y, float[4] y_t) { y = Neg (x) y_t = Tanh (x) }"
    after = rewritten(text, rule)
    assert "y_t_1 = Abs (x)" in after


def test_names_in_bodies_and_around_them_stay_apart():
    rule = rule_of("p (x) => (y) { y = Neg (x) }", "r (x) => (y) { t = Abs (x) y = Relu (t) }")
    text = """g (bool k, float[4] x) => (float[4] y) { s = Neg (x)
      y = If (k) <then_branch = t () => (float[4] a) { a = Neg (s) }, else_branch = e () => (float[4] a) { a = Neg (x) }> }"""
    proto = parse(rewritten(text, rule)).proto
    main = [name for node in proto.graph.node for name in node.output]
    inner = [name for node in proto.graph.node for a in node.attribute for each in a.g.node for name in each.output]
    assert not set(main) & set(inner)


def test_nodes_that_only_replaced_ones_read_go_and_others_stay():
    rule = rule_of(
        "p (x, s) => (y) { y = Reshape (x, s) }", '<opset_import: ["my.ops": 1]> r (x) => (y) { y = my.ops.Flat (x) }'
    )
    text = """g (float[2, 3] x) => (float[6] y, int64[2] kept, float dead) <int64[1] m = {-1}, float[4] big = {1, 2, 3, 4}> {
      shape = Shape (x) size = Size (x) i = Constant <value = int64[1] {0}> () part = Gather (shape, i) s = Mul (part, m)
      kept = Identity (shape) unread = Neg (big) dead = ReduceMax <keepdims = 0> (big) y = Reshape (x, s) }"""
    after = rewritten(text, rule)
    assert "shape = Shape (x)" in after  # others read it
    assert "unread = Neg (big)" in after  # nobody read it before either
    assert "size = Size (x)" in after
    for gone in ("Gather", "Mul", "i = Constant", "int64[1] m"):
        assert gone not in after


def test_metadata_and_names_of_new_nodes():
    names = "pkg.torch.onnx.name_scopes"
    text = (
        HEAD
        + f"""g (float[4] x, float[4] b) => (float[4] y) {{
      ["/enc/layer.0/a/Add"] s = Add (x, b) @{{metadata_props: ["{names}": "['', 'enc', 'enc.layer.0', 'enc.layer.0.a', 'add']", "same": "1", "own": "2"]}}
      ["/enc/layer.0/b/Relu"] y = Relu (s) @{{doc_string: "said", metadata_props: ["{names}": "['', 'enc', 'enc.layer.0', 'enc.layer.0.b', 'relu']", "same": "1", "pkg.torch.onnx.stack_trace": "T"]}} }}"""
    )
    draft = Draft.of(model_of(text))
    patterns.rewrite(draft, rule_of(RELU_ADD))
    (node,) = draft.model.proto.graph.node
    said = {entry.key: entry.value for entry in node.metadata_props}
    assert said == {
        names: "['', 'enc', 'enc.layer.0', 'relu']", "same": "1", "pkg.torch.onnx.stack_trace": "T", patterns.RULE_KEY: "r",
    }  # fmt: skip
    assert node.doc_string == "said"
    assert node.name == "/enc/layer.0/Found"


def test_functions_come_along_once_and_are_not_rewritten_themselves():
    rule = rule_of(
        "p (x) => (y) { s = Sigmoid (x) y = Mul (x, s) }",
        '<opset_import: ["lib": 1]> r (x) => (y) { y = lib.Silu (x) } '
        '<domain: "lib", opset_import: ["": 1]> Silu (x) => (y) { s = Sigmoid (x) y = Mul (x, s) }',
    )
    text = "g (float[4] x) => (float[4] y) { s = Sigmoid (x) a = Mul (x, s) t = Sigmoid (a) y = Mul (t, a) }"
    draft = Draft.of(model_of(text))
    assert patterns.rewrite(draft, rule) == 2
    assert len(draft.model.proto.functions) == 1
    feeds = {"x": np.linspace(-3, 3, 4, dtype=np.float32)}
    validate(draft.model.proto)
    assert run_ort(draft.model.proto, feeds) == run_ort(model_of(text).proto, feeds)
    clash = draft.model.proto
    clash.functions[0].node[0].op_type = "Tanh"
    del clash.graph.node[:]
    clash.graph.node.extend(model_of(text).proto.graph.node)
    with pytest.raises(RefusedResultError, match="has another one"):
        patterns.rewrite(Draft.of(from_proto(clash)), rule)


def test_a_rule_that_does_not_end_is_refused_and_may_be_bounded():
    rule = rule_of("p (x) => (y) { y = Relu (x) }", "r (x) => (y) { a = Identity (x) y = Relu (a) }")
    text = "g (float[4] x) => (float[4] y) { y = Relu (x) }"
    with pytest.raises(RefusedResultError, match="does not come to an end"):
        rewritten(text, rule)
    assert rewritten(text, rule, most=2).count("= Identity (") == 2


def test_replacing_goes_on_until_nothing_matches():
    rule = rule_of("p (x) => (y) { a = Relu (x) y = Relu (a) }", "r (x) => (y) { y = Relu (x) }")
    chain = " ".join(f"t{n + 1} = Relu (t{n})" for n in range(37))
    assert rewritten(f"g (float[4] t0) => (float[4] t37) {{ {chain} }}", rule).count("= Relu (") == 1


def test_only_where_a_selector_says():
    rule = rule_of("p (x) => (y) { y = Neg (x) }", "r (x) => (y) { y = Abs (x) }")
    after = rewritten("g (float[4] x) => (float[4] y, float[4] z) { y = Neg (x) z = Neg (x) }", rule, at="z")
    assert "y = Neg (x)" in after
    assert "z = Abs (x)" in after


def test_an_opset_that_is_too_old_is_refused():
    rule = rule_of("p (x) => (y) { y = Relu (x) }", '<opset_import: ["": 20]> r (x) => (y) { y = Gelu (x) }')
    with pytest.raises(RefusedResultError, match="imports 17"):
        rewritten("g (float[4] x) => (float[4] y) { y = Relu (x) }", rule)


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        ("p (x) => (y) { y = Relu (z) }", "r (x) => (y) { y = Neg (x) }", "nothing above it makes"),
        ("p (x) => (z) { y = Relu (x) }", "r (x) => (y) { y = Neg (x) }", "nothing makes its output"),
        ("p (x) => (x) { y = Relu (x) }", "r (x) => (y) { y = Neg (x) }", "made by no node"),
        ("p (x, w) => (y) { y = Relu (x) }", "r (x) => (y) { y = Neg (x) }", "no node reads its input 'w'"),
        ("p (x) => (y) { y = Relu (x) }", "r (z) => (y) { y = Neg (z) }", "which the pattern does not have"),
        ("p (x) => (y) { y = Relu (x) }", "r (x) => (y) { y = Neg (z) }", "reads 'z'"),
        (
            "p (x) => (y) { y = Relu (x) }",
            "r (x) => (y, z) { y = Neg (x) z = Neg (x) }",
            "1 output, and the replacement 2",
        ),
        ("p (x) => (y) { y = Relu (x) }", "r (x) => (y) { y = Elu <alpha = @a> (x) }", "has @a, which"),
        (
            "p (x, z) => (y, w) { y = Relu (x) w = Neg (z) }",
            "r (x) => (y, w) { y = Neg (x) w = Neg (x) }",
            "falls into pieces",
        ),
        ("p (x) => (y) { y = Relu (x) z = Neg (x) }", "r (x) => (y) { y = Neg (x) }", "leads to none"),
        ("p () => () { }", "r () => () { }", "no outputs"),
    ],
)
def test_rules_that_make_no_sense_are_refused(pattern, replacement, said):
    with pytest.raises(SpecError, match=said.replace("(", r"\(")):
        rule_of(pattern, replacement)


def test_constants_go_into_the_body_that_reads_them_whatever_it_is_called_then():
    """Bodies are known by the position of their owner, which moves from pass to pass."""
    rule = rule_of(
        "p (x) => (y) { a = Neg (x) y = Neg (a) }",
        "r (x) => (y) { three = Constant <value_float = 3.0> () y = Mul (x, three) }",
    )
    branch = "If (k) <then_branch = t () => (float[4] {0}) {{ a{0} = Neg ({1}) b{0} = Neg (a{0}) c{0} = Neg (b{0}) d{0} = Neg (c{0}) {0} = Abs (d{0}) }}, else_branch = e () => (float[4] {0}e) {{ {0}e = Neg ({1}) }}>"
    text = f"""g (bool k, float[4] x) => (float[4] y) {{ m = Neg (x) n = Neg (m)
      p = {branch.format("q", "n")} y = {branch.format("r", "p")} }}"""
    draft = Draft.of(model_of(text))
    patterns.rewrite(draft, rule)
    validate(draft.model.proto)
    again = rule_of(
        "p (x, c) => (y) { y = Mul (x, c) }",
        "r (x) => (y) { three = Constant <value_float = 3.0> () a = Neg (x) b = Neg (a) y = Div (b, three) }",
    )
    patterns.rewrite(draft, again)
    patterns.rewrite(draft, rule)
    validate(draft.model.proto)
    run_ort(draft.model.proto, {"k": np.array(True), "x": np.ones(4, np.float32)})


# -- explanations ------------------------------------------------------------------------------------------------

GELU = next(rule for name, rule in patterns.shipped_rules().items() if name == "gelu_erf")
GELU_TEXT = """<ir_version: 9, opset_import: ["" : 20]> g (float[4] x) => (float[4] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}> {
  d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half) }"""


@pytest.mark.parametrize(
    ("old", "new", "node", "said"),
    [
        ("root = {1.4142135}", "root = {1.5}", "y", "'root' must be 1.414214, and 'root' is 1.5"),
        ("e = Erf", "e = Tanh", "y", "it is a Tanh"),
        ("one = {1}", "one = {2}", "e", "'one' must be 1, and 'one' is 2"),
        (
            "m = Mul (x, a)",
            "z = Neg (x) m = Mul (z, a)",
            "y",
            "the pattern's 'x' is 'x' elsewhere in the match, and 'z' here",
        ),
        ("m = Mul (x, a)", "m = Div (x, a)", "y", "it is a Div"),
        (
            "(float[4] y)",
            "(float[4] y, float[4] e)",
            "y",
            "'e', which is inside of the match, is an output of the graph",
        ),
        ("d = Div (x, root)", "d = Relu (x)", "y", "it is a Relu"),
    ],
)
def test_the_first_difference_is_named(old, new, node, said):
    assert old in GELU_TEXT
    found = why(GELU_TEXT.replace(old, new), GELU, node)
    assert "does not match" in found
    assert said in found


def test_a_match_is_said_to_be_one_from_any_of_its_nodes():
    for node in ("d", "e", "a", "m", "y"):
        assert "matches at" in why(GELU_TEXT, GELU, node)
    assert "no such operator" in why(GELU_TEXT.replace("e = Erf (d)", "f = Sin (d) e = Erf (f)"), GELU, "f")


def test_near_misses_are_ranked():
    text = GELU_TEXT.replace("y = Mul (m, half)", "y0 = Mul (m, half) n = Mul (x, x) o = Mul (n, one) y = Add (y0, o)")
    text = text.replace("root = {1.4142135}", "root = {1.4}")
    facts = Facts(Draft.of(model_of(text)))
    first, *_ = patterns.near_misses(GELU, facts)
    assert first.anchor is not None
    assert "Mul#4" in first.anchor
    assert "1.4" in patterns.shared_words([first])[0]


# -- against brute force -----------------------------------------------------------------------------------------

_UNARY, _BINARY = ("Relu", "Neg"), ("Add", "Sub", "Mul")


def _random_graph(chance: random.Random, size: int) -> onnx.ModelProto:
    known, nodes = ["x0", "x1"], []
    for number in range(size):
        op = chance.choice(_UNARY + _BINARY)
        reads = [chance.choice(known[-5:]) for _ in range(1 if op in _UNARY else 2)]
        nodes.append(helper.make_node(op, reads, [f"t{number}"]))
        known.append(f"t{number}")
    outputs = dict.fromkeys([f"t{size - 1}", *(chance.choice(known[2:]) for _ in range(chance.randint(0, 2)))])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in known[:2]],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in outputs],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def _random_pattern(chance: random.Random, size: int) -> str:
    """Returns a pattern all of whose nodes lead to its one output."""
    lines, loose, inputs, number = [], [], [], 0

    def fresh_input() -> str:
        if inputs and chance.random() < 0.4:
            return chance.choice(inputs)
        inputs.append(f"v{len(inputs)}")
        return inputs[-1]

    while number < size:
        op = chance.choice(_UNARY + _BINARY)
        count = 1 if op in _UNARY else 2
        reads = [loose.pop() if loose and chance.random() < 0.8 else fresh_input() for _ in range(count)]
        lines.append(f"n{number} = {op} ({', '.join(reads)})")
        loose.append(f"n{number}")
        number += 1
    while len(loose) > 1:
        first, second = loose.pop(), loose.pop()
        lines.append(f"n{number} = {chance.choice(_BINARY)} ({first}, {second})")
        loose.append(f"n{number}")
        number += 1
    return f"p ({', '.join(inputs)}) => ({loose[0]}) {{ {' '.join(lines)} }}"


def _brute_force(function: onnx.FunctionProto, proto: onnx.ModelProto) -> set[int]:
    """Returns the positions at which a pattern ends, by trying every choice of nodes and every order of inputs."""
    nodes, steps = proto.graph.node, function.node
    outputs = {info.name for info in proto.graph.output}
    found = set()
    candidates = [[at for at, node in enumerate(nodes) if node.op_type == step.op_type] for step in steps]
    for chosen in product(*candidates):
        if len(set(chosen)) < len(chosen) or chosen[-1] in found:
            continue
        orders = [
            list(dict.fromkeys(permutations(nodes[at].input)))
            if nodes[at].op_type in ("Add", "Mul")
            else [tuple(nodes[at].input)]
            for at in chosen
        ]
        inner = {nodes[at].output[0] for at in chosen[:-1]}
        if inner & outputs or any(set(n.input) & inner for at, n in enumerate(nodes) if at not in chosen):
            continue
        for order in product(*orders):
            bound = {step.output[0]: nodes[at].output[0] for step, at in zip(steps, chosen, strict=True)}
            if all(
                bound.setdefault(wanted, has) == has
                for step, names in zip(steps, order, strict=True)
                for wanted, has in zip(step.input, names, strict=True)
            ):
                found.add(chosen[-1])
                break
    return found


@given(st.integers(0, 1 << 30), st.integers(2, 8), st.integers(1, 3))
def test_the_matcher_finds_what_brute_force_finds(seed, size, steps):
    chance = random.Random(seed)
    proto, text = _random_graph(chance, size), _random_pattern(chance, steps)
    (function,), _ = read_functions(text, source="pattern")
    rule = rule_of(text)
    draft = Draft.of(from_proto(proto))
    facts = Facts(draft)
    found = {at for at in range(size) if Search(rule, rule.patterns[0], facts, facts.index.main).run(at) is not None}
    assert found == _brute_force(function, proto), text
    chosen = find_matches(rule, facts)
    assert {match.anchor for match in chosen} <= found
    assert bool(chosen) == bool(found)
    for at in range(size):
        explanation = patterns.explain(rule, facts, NodeRef(facts.index.main, at))
        assert explanation.matches or explanation.difference is not None
        if at in found:
            assert explanation.matches


@given(st.integers(0, 1 << 30), st.integers(2, 10), st.integers(1, 3))
def test_a_replacement_by_the_same_nodes_changes_no_bit(seed, size, steps):
    """The pattern itself is the replacement: every output stays what it was, wherever it matches."""
    chance = random.Random(seed)
    proto, text = _random_graph(chance, size), _random_pattern(chance, steps)
    rule = rule_of(text, text)
    draft = Draft.of(from_proto(proto))
    count = len(find_matches(rule, Facts(draft)))
    assert patterns.rewrite(draft, rule, most=max(count, 1)) == count
    validate(draft.model.proto)
    feeds = {f"x{n}": np.random.RandomState(seed % 1000 + n).randint(-3, 4, 2).astype(np.float32) for n in range(2)}
    assert run_ort(draft.model.proto, feeds) == run_ort(proto, feeds)


@given(models())
def test_every_node_may_be_replaced_by_itself(model):
    """Bodies, functions, captures, empty inputs, several outputs: whatever a node is, it comes out as it was."""
    rule = rule_of(
        'p ("all...") => (y) { y = "*" <_op = @op, _rest = @rest> ("all...") }',
        'r ("all...") => (y) { y = Same <_op = @op, _rest = @rest> ("all...") }',
        where=["op(y) != 'TopK'"],  # which has two outputs, always
    )
    draft = Draft.of(from_proto(model.proto))
    count = len(find_matches(rule, Facts(draft)))
    if count:
        assert patterns.rewrite(draft, rule, most=count) == count
    draft.refresh_types()
    sort_nodes(draft.model.proto)
    assert run_ort(draft.model.proto, model.feeds) == run_ort(model.proto, model.feeds)


def test_a_pattern_with_too_many_ways_is_refused_and_not_endless():
    names, nodes = ["x"], []
    for level in range(7):
        made = []
        for number in range(6):
            nodes.append(
                helper.make_node("Sum", [names[(number + k) % len(names)] for k in range(6)], [f"t{level}_{number}"])
            )
            made.append(f"t{level}_{number}")
        names = made
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.zeros(2, np.float32), "w")],
    )  # fmt: skip
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    lines, last = [], [f"v{k}" for k in range(6)]
    for level in range(5):
        now = [f"n{level}_{k}" for k in range(6)]
        lines += [f"{name} = Sum ({', '.join(last)})" for name in now]
        last = now
    text = f"p ({', '.join(f'v{k}' for k in range(6))}) => (y) {{ {' '.join(lines)} y = Sum ({', '.join(last)}) }}"
    with pytest.raises(UnsupportedError, match="too many ways"):
        find_matches(rule_of(text), Facts(Draft.of(model)))


@pytest.mark.parametrize(
    ("pattern", "replacement", "line", "said"),
    [
        ("s = Sigmoyd (x)", "y = Relu (x)", 3, "has 'Sigmoyd'"),
        ("s = Sigmoid <axis = 1> (x)", "y = Relu (x)", 3, "has an attribute 'axis'"),
        ("s = Sigmoid (x)", "y = Rellu (x)", 8, "has 'Rellu'"),
        ("s = Sigmoid (x)", "y = Add (x, z)", 8, "reads 'z'"),
    ],
)
def test_a_mistake_in_a_rule_is_told_with_its_own_line(pattern, replacement, line, said):
    text = (
        f"pattern: |\n  f (x) => (y) {{\n    {pattern}\n    y = Mul (x, s)\n  }}\n"
        f"replacement: |\n  f (x) => (y) {{\n    {replacement}\n  }}\n"
    )
    with pytest.raises(SpecError) as error:
        rules_of_text(text, "r.yaml", "r")
    assert error.value.message.startswith(f"r.yaml:{line}:")
    assert said in error.value.message
