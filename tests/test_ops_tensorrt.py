"""Operations that make models fit for TensorRT, run before and after in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from corpus import fetch
from engines import run_ort

from onnxbench import from_proto, load
from onnxbench.errors import GuardError
from onnxbench.operations import CountLoops
from onnxbench.recipe import Step
from onnxbench.surgery import edit
from onnxbench.writer import save


def counting(end: str, *, step: int = 1, first: str = "i = Less(start, n)", carried: str = "") -> onnx.ModelProto:
    """A loop that doubles ``x`` and stacks it, ended by ``end`` of the grown counter ``grown`` and the bound ``n``."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (int64 start, int64 n, bool ask, float[2] x) => (int64 last, float[2] y, float[m, 2] all)
    <int64 step = {{{step}}}>
    {{
      {first}
      last, y, all = Loop ("", i, start, x) <body = b (int64 k, bool c, int64 at, float[2] v)
        => (bool go, int64 grown, float[2] twice, float[2] out) {{
          grown = Add(at, step) {carried}
          twice = Add(v, v)
          out = Identity(twice)
          {end}
      }}>
    }}"""
    return onnx.parser.parse_model(text)


FIRST = "i = Less(start, n)"
GIVEN = "i = Identity(ask)"


@pytest.mark.parametrize(
    ("end", "step", "first"),
    [
        ("go = Less(grown, n)", 1, FIRST),
        ("go = Less(grown, n)", 3, FIRST),
        ("go = Greater(n, grown)", 2, GIVEN),
        ("a = Cast<to = 1>(grown) b = Cast<to = 1>(n) go = Less(a, b)", 1, GIVEN),
        ("limit = Constant<value = int64 {5}>() a = Less(grown, limit) b = Less(grown, n) go = And(a, b)", 2, GIVEN),
    ],
)
def test_loops_that_a_counter_ends_make_the_same_steps(end, step, first):
    proto = counting(end, step=step, first=first)
    done = edit(from_proto(proto), [Step(CountLoops())])
    (loop,) = [node for node in done.model.proto.graph.node if node.op_type == "Loop"]
    assert loop.input[0]
    assert len(done.changes) == 1
    onnx.checker.check_model(done.model.proto, full_check=True)
    without = onnx.ModelProto.FromString(done.model.proto.SerializeToString())
    for node in without.graph.node:
        if node.op_type == "Loop":  # the count alone has to be right: no condition ends the loop
            node.input[1] = ""
            body = node.attribute[0].g
            body.node.add(op_type="Identity", input=["c"], output=["on"])
            body.output[0].name = "on"
    for start, n in ((0, 0), (0, 1), (0, 7), (3, 2), (2, 9), (-4, 3)):
        for ask in (False, True):
            feeds = {"start": np.array(start), "n": np.array(n), "ask": np.array(ask), "x": np.float32([1, 2])}
            expected = run_ort(proto, feeds)
            assert run_ort(done.model.proto, feeds) == expected
            assert run_ort(without, feeds) == expected, (start, n, ask)


@pytest.mark.parametrize(
    "end",
    [
        "go = Less(at, n)",  # asked before the step
        "d = Add(grown, grown) go = Less(d, n)",
        "s = ReduceSum<keepdims = 0>(v) t = Cast<to = 7>(s) go = Less(t, n)",
        "a = Cast<to = 10>(grown) b = Cast<to = 10>(n) go = Less(a, b)",  # float16 holds no counter above 2048
        "o = Not(c) a = Less(grown, n) go = And(a, o)",
    ],
)
def test_other_loops_are_left_alone(end):
    with pytest.raises(GuardError, match="matches 0 targets"):
        edit(from_proto(counting(end)), [Step(CountLoops())])


def test_a_bound_that_changes_is_none():
    proto = counting("go = Less(grown, v2)", carried="v2 = Add(at, at)")
    with pytest.raises(GuardError):
        edit(from_proto(proto), [Step(CountLoops())])


@pytest.mark.corpus
def test_real_loops(corpus, tmp_path):
    path, entry = corpus("nakdimon_loop")
    done = edit(load(path), [Step(CountLoops())])
    assert len(done.changes) == 4
    feeds = fetch.seeded_feeds(path, entry)
    save(done.model, tmp_path / "counted.onnx")
    assert run_ort(tmp_path / "counted.onnx", feeds) == run_ort(path, feeds)
