"""Marks: read as points, taken out without a trace, given a body."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cases import cases, named
from engines import ENGINES
from onnx import ModelProto, helper

import onnxbench
from onnxbench import select
from onnxbench.draft import Draft
from onnxbench.errors import ModelError, NotFoundError
from onnxbench.graph import GraphIndex, Scope, topological_order
from onnxbench.marks import add_functions, marks, unmark
from onnxbench.model import Model, from_proto, load
from onnxbench.modeltext import parse
from onnxbench.surgery import edit


def _mark(source: str, made: str) -> onnx.NodeProto:
    return helper.make_node("Mark", [source], [made], domain="onnxbench", func="f", type="output", id=0)


def _mark_everything(model: Model) -> tuple[Model, int]:
    """Returns a model with a Mark at every tensor that a node makes or a graph is given, in all its graphs."""
    draft = Draft.of(model)
    count = 0
    for path in [scope.path for scope in draft.index.scopes]:
        scope = draft.index.scope_paths[path]
        assert topological_order(scope) is None
        count += _mark_graph(draft, scope)
    return draft.model, count


def _mark_graph(draft: Draft, scope: Scope) -> int:
    count = 0
    graph = scope.graph
    fresh = {name: draft.fresh(scope, f"{name}_marked") for name in (*scope.true_inputs(), *scope.producers)}
    outputs = set(scope.outputs)
    behind: dict[int, list[onnx.NodeProto]] = {}
    reads: dict[str, str] = {}
    for name, other in fresh.items():
        if name in outputs and name in scope.inputs:
            continue
        position = scope.producers.get(name, -1)
        if name in outputs:
            node = scope.nodes[position]
            for number, made in enumerate(node.output):
                if made == name:
                    node.output[number] = other
            behind.setdefault(position + 1, []).append(_mark(other, name))
        else:
            behind.setdefault(position + 1, []).append(_mark(name, other))
            reads[name] = other
        count += 1
    draft.replace_uses(scope, reads)
    nodes = []
    for position in range(len(graph.node) + 1):
        nodes += behind.get(position, [])
        nodes += (
            [onnx.NodeProto.FromString(graph.node[position].SerializeToString())] if position < len(graph.node) else []
        )
    del graph.node[:]
    graph.node.extend(nodes)
    holder = graph if scope.is_function else draft.model.proto
    if count and all(opset.domain != "onnxbench" for opset in holder.opset_import):
        holder.opset_import.add(domain="onnxbench", version=1)
    draft.touch()
    return count


ORDERLY = cases(
    lambda case: (
        case.valid == "yes"
        and all(topological_order(scope) is None for scope in GraphIndex(load(case.path).proto).scopes)
        and "mark" not in case.name
    )
)


@ORDERLY
def test_what_was_marked_everywhere_is_as_it_was(case):
    model = load(case.path)
    marked, count = _mark_everything(model)
    assert len(marks(GraphIndex(marked.proto))) == count
    done = unmark(marked)
    assert done.removed == count
    assert done.model.proto.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True)


RUNNABLE = cases(
    lambda case: (
        case.valid == "yes" and case.engine == "ort" and not case.is_external and "mark" not in case.name
        and not case.name.startswith(("dtypes", "fp16", "map_", "no_nodes"))  # Identity takes no maps, and rounds fp16
    )
)  # fmt: skip


@RUNNABLE
def test_a_body_makes_a_marked_model_run(case):
    """With a mark at every tensor of the main graph, ONNX Runtime computes the same as without."""
    model = load(case.path)
    draft = Draft.of(model)
    scope = draft.main
    if topological_order(scope) is not None or (draft.opset() or 99) < 14:
        return  # an older Identity does not take sequences
    _mark_graph(draft, scope)
    whole = case.whole()
    proto = ModelProto.FromString(draft.model.proto.SerializeToString())
    for tensor in proto.graph.initializer:
        stored = next(each for each in whole.graph.initializer if each.name == tensor.name)
        tensor.CopyFrom(stored)
    assert add_functions(proto) is proto
    before = [f.name for f in proto.functions]
    assert before.count("Mark") == 1
    add_functions(proto)
    assert [f.name for f in proto.functions] == before
    if any(weight.data_location == 1 for node in proto.graph.node for a in node.attribute for weight in [a.t]):
        return
    engine = ENGINES["ort"]
    assert engine(proto, case.feeds()) == engine(whole, case.feeds())


def test_points_are_selected_without_a_prefix_too():
    index = GraphIndex(load(named("mmdeploy_marks").path).proto)

    def names(selector: str) -> list[str]:
        return [ref.name for ref in select.tensors(index, [selector])]

    for point in ("detector_forward:input", "yolo_head:input", "yolo_head[1]:output", "yolo_head[1]:input:pred_maps.1"):
        assert names(point) == names(f"mark:{point}") != []
    assert len(names("yolo_head:input & mark:yolo_head:input:pred_maps.0")) == 1
    with pytest.raises(NotFoundError, match="yolo_heat") as caught:
        select.select(index, "yolo_heat:input")
    assert "yolo_head[0]:input" in str(caught.value.hint)
    with pytest.raises(NotFoundError):
        select.select(index, "yolo_head[7]:input")


def test_a_tensor_of_that_very_name_goes_first():
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17, "mmdeploy" : 1]> net (float[2] x) => (float[2] y) {'
        ' "f:input" = Neg (x)  a = mmdeploy.Mark <func = "f", type = "input", name = "x"> ("f:input")  y = Relu (a) }'
    )
    index = GraphIndex(model.proto)
    assert [ref.name for ref in select.select(index, "f:input").tensors] == ["f:input"]
    assert [ref.name for ref in select.select(index, "mark:f:input").tensors] == ["a"]


def _body_model() -> Model:
    """A branch that reads a marked tensor of the graph around, marks it again, and hands it on."""
    return parse(
        """
        <ir_version: 8, opset_import: ["" : 17, "mmdeploy" : 1]>
        net (float[2] x, bool c) => (float[2] y)
        <float[2] a, float[2] m>
        {
           a = Neg (x)
           m = mmdeploy.Mark <func = "f", type = "input", name = "x", dtype = 1, shape = [2]> (a)
           y = If (c) <
              then_branch = then () => (float[2] t) { t = mmdeploy.Mark <func = "g", type = "output", name = "t"> (m) },
              else_branch = else () => (float[2] e) { i = Abs (m)
                 e = mmdeploy.Mark <func = "g", func_id = 1, type = "output", name = "e"> (i) }
           >
        }
        """
    )


def test_marks_in_bodies():
    done = unmark(_body_model())
    scopes = GraphIndex(done.model.proto).scope_paths
    then = next(scope for path, scope in scopes.items() if path.endswith("then"))
    other = next(scope for path, scope in scopes.items() if path.endswith("else"))
    assert [(n.op_type, list(n.input), list(n.output)) for n in then.nodes] == [("Identity", ["a"], ["t"])]
    assert [(n.op_type, list(n.input), list(n.output)) for n in other.nodes] == [("Abs", ["a"], ["e"])]
    assert [info.name for info in done.model.proto.graph.value_info] == ["a"]
    assert done.names == {"m": "a"}
    assert done.name("m") == "a"
    assert done.types["a"].tensor_type.elem_type == 1
    onnx.checker.check_model(done.model.proto, full_check=True)


def test_a_body_with_a_tensor_of_the_same_name_keeps_the_value():
    """To read ``a`` in the body would be to read another ``a``, so the Mark becomes an Identity."""
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17, "mmdeploy" : 1]>
        net (float[2] x, bool c) => (float[2] y)
        {
           a = Neg (x)
           m = mmdeploy.Mark <func = "f", type = "input", name = "x"> (a)
           y = If (c) <
              then_branch = then () => (float[2] t) { a = Abs (m)  t = Add (a, m) },
              else_branch = else () => (float[2] e) { e = Abs (m) }
           >
        }
        """
    )
    done = unmark(model)
    assert [node.op_type for node in done.model.proto.graph.node] == ["Neg", "Identity", "If"]
    assert not marks(GraphIndex(done.model.proto))


def test_what_was_said_of_a_mark_is_said_of_its_source():
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17, "mmdeploy" : 1]>
        net (float[2] x) => (float[2] y)
        <float[2] m>
        {
           a = com.example.Other (x)
           m = mmdeploy.Mark <func = "f", type = "input", name = "x"> (a)
           y = Relu (m)
        }
        """
    )
    done = unmark(model)
    assert [(info.name, info.type.tensor_type.elem_type) for info in done.model.proto.graph.value_info] == [("a", 1)]


def test_a_mark_of_two_tensors_is_refused():
    proto = load(named("mmdeploy_marks").path).proto
    broken = ModelProto()
    broken.CopyFrom(proto)
    next(node for node in broken.graph.node if node.op_type == "Mark").input.append("input")
    with pytest.raises(ModelError, match="Mark_0"):
        unmark(from_proto(broken))


def test_the_function_and_the_domain_go_with_the_last_mark():
    path = named("mmdeploy_marks_runnable").path
    whole = onnxbench.unmark(path)
    assert not whole.model.proto.functions
    assert [opset.domain for opset in whole.model.proto.opset_import] == [""]
    some = onnxbench.unmark(path, "mark:yolo_head:input")
    assert [f.name for f in some.model.proto.functions] == ["Mark"]
    assert some.removed == 2
    assert {opset.domain for opset in some.model.proto.opset_import} == {"", "mmdeploy"}


def test_unmark_is_an_edit_that_changes_nothing():
    done = edit(load(named("mmdeploy_marks_slash").path), [onnxbench_operation()], verify=True)
    (step,) = done.steps
    assert step.matched == 8
    assert step.drift is not None
    assert step.drift.bitwise_equal
    assert np.isfinite(step.drift.tensors[0].max_abs or 0.0)


def onnxbench_operation():
    from onnxbench.operations import Unmark

    return Unmark()


def test_a_large_marked_model_takes_linear_time():
    """A hundred thousand nodes with ten thousand Marks, a chain of them at the end."""
    import time

    def model(count: int) -> Model:
        graph = onnx.GraphProto(name="g")
        graph.input.add(name="x").type.tensor_type.elem_type = 1
        last = "x"
        for number in range(count):
            if number % 10 == 0 or number > count - count // 20:
                graph.node.append(_mark(last, f"t{number}"))
            else:
                graph.node.add(op_type="Neg", input=[last], output=[f"t{number}"])
            last = f"t{number}"
        graph.output.add(name=last).type.tensor_type.elem_type = 1
        proto = ModelProto(ir_version=8, graph=graph)
        proto.opset_import.add(domain="", version=17)
        proto.opset_import.add(domain="onnxbench", version=1)
        return from_proto(proto)

    times = []
    for count in (20_000, 100_000):
        given = model(count)
        start = time.perf_counter()
        done = unmark(given)
        times.append(time.perf_counter() - start)
        left = list(done.model.proto.graph.node)
        assert {node.op_type for node in left} == {"Neg"}
        assert left[-1].output[0] == f"t{count - 1}"
    assert times[1] < 15 * times[0] + 1, times


def test_without_torch_one_error_says_what_to_install():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnxscript'] = None\n"
        "from onnxbench import BenchError, mark\n"
        "assert mark('f')(abs)(-2) == 2 and mark.tensor(3, 'x') == 3\n"
        "from onnxbench.pytorch.marks import register, translation_table\n"
        "for ask in (register, translation_table):\n"
        "    try: ask()\n"
        "    except BenchError as error: print(error.exit_code, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["12 pip install onnxbench[torch]"] * 2


@pytest.mark.parametrize("words", [[], ["--at", "yolo_head:input"], ["--fuse"]])
def test_the_command(words, tmp_path):
    from onnxbench.cli import main

    path, out = named("mmdeploy_marks").path, tmp_path / "out.onnx"
    with pytest.raises(SystemExit) as ended:
        main(["unmark", str(path), str(out), "--verify", "--no-stamp", *words])
    assert not ended.value.code
    left = marks(GraphIndex(load(out).proto))
    assert len(left) == (6 if "--at" in words else 0)
    if words == []:
        assert load(out).proto == unmark(path).model.proto
