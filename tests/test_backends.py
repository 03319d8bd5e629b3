"""Runtimes behind the seam: weights, inner tensors, types, memory, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from corpus import fetch
from engines import bits, ort_session
from onnx import helper, numpy_helper, parser

from onnxbench import backends, feeding
from onnxbench.backends import Options
from onnxbench.errors import (
    ExecutionError,
    FeedsError,
    MissingDependencyError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from onnxbench.model import Model, from_proto, load
from onnxbench.tensortype import elem_type, format_type, tensor_shape

PLAIN = Options("none")
RNG = np.random.default_rng(0)
FOO = ', "foo": 1'
FIXTURES = Path(__file__).parents[1] / "fixtures"


def parsed(text: str) -> Model:
    return from_proto(parser.parse_model(text))


def head(opset: int = 17, extra: str = "", ir: int = 8) -> str:
    return f'<ir_version: {ir}, opset_import: ["": {opset}{extra}]>'


def weighty(path: Path, *, external: bool = False) -> Path:
    """Writes a model with weights of more than 4 kB everywhere: initializer, body, Constant, function, sparse."""

    def weight(name: str) -> onnx.TensorProto:
        return numpy_helper.from_array(RNG.standard_normal(2048).astype(np.float32), name)

    def constant(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=weight(""))

    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("Add", ["h", "wb"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")], [weight("wb")]
        ),
        "else_branch": helper.make_graph(
            [constant("c1"), helper.make_node("Sub", ["h", "c1"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")]
        ),
    }
    for branch in branches.values():
        branch.output[0].type.tensor_type.elem_type = 1
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["h"], name="mul"),
        helper.make_node("If", ["c"], ["i"], name="if", **branches),
        constant("c2"),
        helper.make_node("Add", ["i", "c2"], ["j"]),
        helper.make_node("F", ["j"], ["k"], domain="local"),
        helper.make_node("Add", ["k", "sparse"], ["y"]),
    ]
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [constant("c3"), helper.make_node("Add", ["a", "c3"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    sparse = onnx.SparseTensorProto(dims=[2048])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1024, np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(1024, dtype=np.int64)))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 2048]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, None)], [weight("w")], sparse_initializer=[sparse],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8)
    padding = numpy_helper.from_array(np.zeros(300_000, np.float32), "unused")  # so that weights are left in the file
    if external:
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=True)
    else:
        model.graph.initializer.append(padding)
        onnx.save(model, path)
    return path


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize("condition", [True, False])
def test_weights_everywhere_reach_the_runtime(tmp_path, external, condition):
    path = weighty(tmp_path / "odd name ü.onnx", external=external)
    feeds = {"x": RNG.standard_normal((2, 2048)).astype(np.float32), "c": np.array(condition)}
    model = load(path)
    before = model.proto.SerializeToString()
    made = backends.open_session(model, options=PLAIN).run(feeds)
    if not external:  # the runtime itself refuses sparse external data
        assert bits(made["y"]) == bits(ort_session(path).run(None, feeds)[0])
    whole = onnx.load(path)
    assert bits(made["y"]) == bits(ort_session(whole).run(None, feeds)[0])
    assert model.proto.SerializeToString() == before


def test_weights_outside_of_the_folder_are_found_when_they_were_allowed(tmp_path):
    (tmp_path / "sub").mkdir()
    weight = RNG.standard_normal(2048).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(b"\0" * 64 + weight.tobytes())
    model = parser.parse_model(f"{head()} g (float[2048] x) => (float[2048] y) {{ y = Mul(x, w) }}")
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[2048], data_location=1)
    for key, value in (("location", "../w.bin"), ("offset", "64"), ("length", "8192")):
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "sub" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    x = np.ones(2048, np.float32)
    made = backends.open_session(load(path, allow_outside=True)).run({"x": x})
    assert bits(made["y"]) == bits(weight)


def test_the_runtime_reads_big_weights_once_and_not_through_python(tmp_path):
    count, size = 12, 4 << 20
    nodes = [helper.make_node("Mul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]) for i in range(count)]
    weights = [numpy_helper.from_array(np.full(size, 1 + i / 8, np.float32), f"w{i}") for i in range(count)]
    ends = [helper.make_tensor_value_info(name, 1, [size]) for name in ("x", f"h{count}")]
    imports = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "big.onnx")
    del weights, graph
    code = f"""
import numpy as np, resource
from onnxbench import backends
from onnxbench.model import load
import onnx, onnxruntime
model = load({str(tmp_path / "big.onnx")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
types = backends.session_types(model)
typed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session = backends.open_session(model, options=backends.Options("none"))
print(typed - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(types))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    typing, loading, names = map(int, done.stdout.split())
    weight_kb = count * size * 4 >> 10
    assert names == count
    assert typing < weight_kb // 4
    assert loading < weight_kb * 1.5


# ---------------------------------------------------------------- every fixture, every real model


def manifest_cases() -> list[dict]:
    manifest = json.loads((FIXTURES / "MANIFEST.json").read_text())
    return [entry for entry in manifest["files"] if entry["role"] == "model" and entry["valid"] != "no"]


CASES = {entry["file"]: entry for entry in manifest_cases()}


def fixture_feeds(model: Model, entry: dict) -> dict:
    shapes = [f"{name}:{said['dims']}" for name, said in entry.get("feeds", {}).items() if "dims" in said]
    feeds = next(feeding.feed_sets(model, feeding.FeedOptions(shapes=shapes))).feeds
    for name, said in entry.get("feeds", {}).items():
        if "value" in said:
            feeds[name] = np.array(said["value"], dtype=feeds[name].dtype)
    return feeds


@pytest.mark.parametrize("file", CASES)
def test_fixtures_run_where_the_manifest_says(file):
    entry = CASES[file]
    model = load(FIXTURES / file)
    if "ort" not in entry["runs_in"]:
        return
    feeds = fixture_feeds(model, entry)
    made = backends.open_session(model, options=PLAIN).run(feeds)
    assert list(made) == list(dict.fromkeys(info.name for info in model.proto.graph.output))
    if model.proto.graph.node:
        check_types(model, feeds)


def check_types(model: Model, feeds: dict) -> None:
    """Looks whether the runtime's types are those of the values, and the shapes."""
    types = backends.session_types(model)
    made = [name for node in model.proto.graph.node for name in node.output if name]
    assert set(types) == set(made)
    sparse = {node.output[0] for node in model.proto.graph.node for a in node.attribute if a.name == "sparse_value"}
    tensors = [name for name in types if types[name].WhichOneof("value") == "tensor_type" and name not in sparse]
    values = backends.run_with_outputs(model, feeds, tensors, options=PLAIN)
    observed = backends.observed_shapes(model, feeds, tensors)
    for name in tensors:
        assert backends.dtype_of(values[name]) == elem_type(types[name]), name
        assert observed[name] == values[name].shape, name
        shape = tensor_shape(types[name])
        if shape is not None:
            assert len(shape) == values[name].ndim, (name, format_type(types[name]), values[name].shape)
            fixed = [(dim, size) for dim, size in zip(shape, values[name].shape, strict=True) if isinstance(dim, int)]
            assert all(dim == size for dim, size in fixed), name


QUICK = [entry.name for entry in fetch.entries() if entry.seconds == 0]


@pytest.mark.corpus
@pytest.mark.parametrize("name", QUICK)
def test_real_models(corpus, name):
    path, entry = corpus(name)
    model = load(path)
    feeds = fetch.seeded_feeds(path, entry)
    made = backends.open_session(model, options=Options("none", threads=1)).run(feeds)
    direct = ort_session(path)
    expected = dict(zip([o.name for o in direct.get_outputs()], direct.run(None, feeds), strict=True))
    assert bits(made) == bits(expected)
    check_types(model, feeds)


# ---------------------------------------------------------------- inner tensors

CHAIN = f"""{head()} g (float[N,4] x) => (float[N,4] z) <float[4] w = {{1, 2, 3, 4}}>
    {{ a = Add(x, w) b = Mul(a, a) z = Relu(b) }}"""
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize("backend", ["ort", "reference"])
def test_inner_tensors_inputs_and_weights_can_be_looked_at(backend):
    model = parsed(CHAIN)
    names = ["b", "x", "w", "a", "z", "b"]
    made = backends.run_with_outputs(model, {"x": X}, names, backend=backend, optimization="none")
    w = np.array([1, 2, 3, 4], np.float32)
    expected = {"b": (X + w) ** 2, "x": X, "w": w, "a": X + w, "z": (X + w) ** 2}
    assert {name: bits(value) for name, value in made.items()} == {
        name: bits(value) for name, value in expected.items()
    }
    assert [info.name for info in model.proto.graph.output] == ["z"]


def test_what_the_tensors_do_not_need_is_not_run():
    text = f"{head()} g (float[N] x, int64[1] i) => (float[1] z) {{ a = Neg(x) z = Gather(a, i) }}"
    feeds = {"x": np.ones(2, np.float32), "i": np.array([9])}
    assert bits(backends.run_with_outputs(parsed(text), feeds, ["a"])["a"]) == bits(-np.ones(2, np.float32))
    with pytest.raises(ExecutionError):
        backends.run_with_outputs(parsed(text), feeds, ["z"])


def test_names_that_are_not_there():
    model = parsed(CHAIN)
    with pytest.raises(NotFoundError, match="no tensor 'bb'") as caught:
        backends.run_with_outputs(model, {"x": X}, ["bb"])
    assert "'b'" in caught.value.hint
    body = load(FIXTURES / "models" / "if_basic.onnx")
    inner = next(node.output[0] for node in body.proto.graph.node for a in node.attribute for node in a.g.node)
    with pytest.raises((UnsupportedError, NotFoundError)):
        backends.open_session(body, outputs=[f"{body.proto.graph.node[0].name}/then/{inner}"])


@pytest.mark.parametrize("most", [0, 40, 10**9])
def test_batches_give_the_same_values_in_order(most):
    model = parsed(CHAIN)
    found = list(backends.stream_outputs(model, {"x": X}, ["z", "a", "b"], options=PLAIN, max_bytes=most))
    whole = backends.run_with_outputs(model, {"x": X}, ["z", "a", "b"], optimization="none")
    assert [name for name, _ in found] == ["z", "a", "b"]
    assert bits(dict(found)) == bits(whole)


def test_memory_of_many_inner_tensors_is_bounded():
    code = """
import numpy as np, resource, sys
from onnx import helper
from onnxbench import backends
from onnxbench.model import from_proto
import onnxruntime
nodes = [helper.make_node("Sin", [f"t{i}"], [f"t{i + 1}"]) for i in range(24)]
ends = [helper.make_tensor_value_info(name, 1, [4 << 20]) for name in ("t0", "t24")]
graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
feeds = {"t0": np.ones(4 << 20, np.float32)}
names = [f"t{i}" for i in range(25)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "shapes":
    assert backends.observed_shapes(model, feeds, names)["t7"] == (4 << 20,)
else:
    assert sum(value.size for _, value in backends.stream_outputs(model, feeds, names, max_bytes=64 << 20))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for mode, most in (("shapes", 130 << 10), ("stream", 240 << 10)):  # all tensors together have 400 MB
        done = subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, check=True)
        assert int(done.stdout) < most


# ---------------------------------------------------------------- types


def test_types_of_what_onnx_knows_nothing_of():
    text = f"""{head(extra=', "com.microsoft": 1')} g (float[N,4] x, bool c, int64 k, int64[R] s) => (float[A,B] z) {{
      g = com.microsoft.Gelu(x)
      q = SequenceConstruct(x, g)
      e = SequenceAt(q, k)
      r = Reshape(g, s)
      m = ReduceSum <keepdims = 0> (g)
      i = If (c) <then_branch = t () => (a) {{ a = Neg(g) }}, else_branch = f () => (b) {{ b = Identity(x) }}>
      h = Cast <to = 16> (i)
      z = Abs(x)
    }}"""
    types = {name: format_type(kind) for name, kind in backends.session_types(parsed(text)).items()}
    assert types == {
        "g": "float32[N, 4]", "q": "sequence(float32[...])", "e": "float32[...]", "r": "float32[...]",
        "m": "float32[]", "i": "float32[N, 4]", "h": "bfloat16[N, 4]", "z": "float32[N, 4]",
    }  # fmt: skip


def test_types_of_inputs_and_weights_cost_no_session():
    types = backends.session_types(parsed(CHAIN), ["x", "w"])
    assert {name: format_type(kind) for name, kind in types.items()} == {"x": "float32[N, 4]", "w": "float32[4]"}
    with pytest.raises(NotFoundError):
        backends.session_types(parsed(CHAIN), ["nope"])


def test_a_wrong_statement_of_the_file_is_not_repeated():
    model = parsed(CHAIN)
    model.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "N"
    model.proto.graph.value_info.add(name="a").type.CopyFrom(helper.make_tensor_type_proto(1, [7, 7, 7]))
    types = backends.session_types(model)
    assert format_type(types["a"]) == format_type(types["z"]) == "float32[N, 4]"


def test_symbolic_types_never_fail_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = backends.symbolic_types(parsed(CHAIN), ["a", "z"])
    assert {name: format_type(kind) for name, kind in found.items()} == {"a": "float32[N, 4]", "z": "float32[N, 4]"}
    for file in ("custom_op.onnx", "function_nested.onnx", "makes_nan.onnx"):
        model = load(FIXTURES / "models" / file)
        assert isinstance(backends.symbolic_types(model, [model.proto.graph.output[0].name]), dict)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- element types


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz]
)
def test_types_that_numpy_lacks_go_in_and_out(dtype):
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    name = onnx.TensorProto.DataType.Name(number).lower()
    model = parsed(
        f"{head(21, ir=10)} g ({name}[N] x) => ({name}[N] y, float[N] f) {{ y = Identity(x) f = Cast<to=1>(x) }}"
    )
    x = np.array([0.5, -1, 2], dtype=np.float32).astype(dtype)
    made = backends.open_session(model).run({"x": x})
    assert bits(made["y"]) == bits(x)
    assert made["f"].tolist() == [0.5, -1, 2]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_four_bits(count):
    model = parsed(
        f"{head(21, ir=10)} g (int4[N] x) => (float[N] f, int4[N] y) {{ f = Cast<to=1>(x) y = Cast<to=22>(f) }}"
    )
    x = np.array([-8, 7, -1, 3, 0][:count], dtype=np.int8).astype(ml_dtypes.int4)
    made = backends.open_session(model).run({"x": x})
    assert made["f"].tolist() == x.astype(np.float32).tolist()
    assert bits(made["y"]) == bits(x)


def test_sequences_beside_types_that_numpy_lacks():
    text = f"""{head(21, ir=10)} g (float[N] x) => (bfloat16[N] h, seq(float[N]) s, string[N] t)
        {{ h = Cast<to=16>(x) s = SequenceConstruct(x) t = Cast<to=8>(x) }}"""
    made = backends.open_session(parsed(text)).run({"x": np.ones(2, np.float32)})
    assert made["h"].tolist() == [1, 1]
    assert [item.tolist() for item in made["s"]] == [[1, 1]]
    assert made["t"].tolist() == ["1", "1"]


def test_strings_sequences_and_optionals_go_in():
    text = f"""{head(17)} g (string[N] t, seq(float[M]) s, optional(float[K]) o) => (string[N] u, int64 n, bool h)
        {{ u = Identity(t) n = SequenceLength(s) h = OptionalHasElement(o) }}"""
    feeds = {"t": np.array(["a", "ß"], dtype=object), "s": [np.ones(1, np.float32)] * 3, "o": None}
    made = backends.open_session(parsed(text)).run(feeds)
    assert made["u"].tolist() == ["a", "ß"]
    assert (int(made["n"]), bool(made["h"])) == (3, False)


def test_nodes_may_have_equal_names():
    text = f"""{head(extra=FOO)} g (float[2] x, bool c) => (float[2] z) {{
        [same] y = foo.F(x) [same] i = If (c) <
          then_branch = t () => (float[2] a) {{ [same] b = Neg(y) [same] a = Abs(b) }},
          else_branch = e () => (float[2] d) {{ d = Abs(y) }}>
        z = Neg(i) }}
      <domain: "foo", opset_import: ["": 17]> F (a) => (b) {{ [same] t = Neg(a) [same] b = Exp(t) }}"""
    model = parsed(text)
    made = backends.open_session(model).run({"x": np.zeros(2, np.float32), "c": np.array(True)})
    assert made["z"].tolist() == [-1, -1]
    assert set(backends.session_types(model)) == {"y", "i", "z"}
    assert model.proto.graph.node[0].name == model.proto.graph.node[1].name == "same"
    index = f"{head()} g (float[2] x, int64[1] i) => (float[1] z) {{ [n] y = Abs(x) [n] z = Gather(y, i) }}"
    assert "node 'n#1' (Gather)" in failure(index, {"x": np.ones(2, np.float32), "i": np.array([7])}).message


def test_an_input_that_a_weight_backs_need_not_be_fed():
    text = f"{head()} g (float[2] x, float[2] w = {{1, 2}}) => (float[2] y) {{ y = Add(x, w) }}"
    session = backends.open_session(parsed(text))
    x = np.zeros(2, np.float32)
    assert session.run({"x": x})["y"].tolist() == [1, 2]
    assert session.run({"x": x, "w": x + 5})["y"].tolist() == [5, 5]
    assert [port.required for port in session.inputs] == [True, False]


# ---------------------------------------------------------------- errors and options


def failure(text: str, feeds: dict | None = None, backend: str = "ort") -> ExecutionError:
    with pytest.raises(ExecutionError) as caught:
        backends.open_session(parsed(text), backend).run(feeds or {})
    assert "onnxruntime_src" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)
    return caught.value


def test_errors_name_the_node_and_say_what_is_wrong(capfd):
    gather = f"{head()} g (float[2] x, int64[1] i) => (float[1] z) {{ [pick] z = Gather(x, i) }}"
    error = failure(gather, {"x": np.ones(2, np.float32), "i": np.array([7])})
    assert error.message.startswith(
        "ONNX Runtime failed while it ran the model in node 'pick' (Gather): indices element"
    )
    nested = f"""{head()} g (float[2] x, int64[1] s, bool c) => (float[A] z) {{ [outer] z = If (c) <
        then_branch = t () => (float[A] q) {{ [inner] q = Reshape(x, s) }},
        else_branch = f () => (float[A] r) {{ r = Abs(x) }}> }}"""
    error = failure(nested, {"x": np.ones(2, np.float32), "s": np.array([5]), "c": np.array(True)})
    assert "in node 'inner' (Reshape): The input tensor cannot be reshaped" in error.message
    assert error.details == ("inside node 'outer' (If)",)
    assert capfd.readouterr() == ("", "")


ABS = "g (float[2] x) => (float[2] z) { z = Abs(x) }"


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        (f"{head(extra=FOO)} g (float[2] x) => (float[2] z) {{ z = foo.Bar(x) }}", "not a registered", "--custom-ops"),
        (f"{head()} g (bfloat16[2] x) => (bfloat16[2] z) {{ [erf] z = Erf(x) }}", "node 'erf' (Erf", "--backend ref"),
        (f"{head(99)} {ABS}", "Opset 99 is under development", "too old"),
        (f"{head(ir=99)} {ABS}", "Unsupported model IR version: 99", "too old"),
        (f"{head()} g (float[2,3] x) => (float[2,3] z) {{ [mm] z = MatMul(x, x) }}", "node 'mm' (MatMul)", None),
    ],
)
def test_models_that_the_runtime_refuses(text, words, hint):
    error = failure(text)
    assert words in error.message
    assert hint is None or hint in error.hint


def test_errors_of_the_reference_evaluator():
    error = failure(f"{head()} g (float[2] x, int64[1] i) => (float[1] z) {{ z = Gather(x, i) }}",
                    {"x": np.ones(2, np.float32), "i": np.array([7])}, "reference")  # fmt: skip
    assert (
        "the reference evaluator failed while it ran the model in the node that makes 'z' (Gather): IndexError"
        in error.message
    )


def test_feeds_are_checked_before_they_reach_a_runtime():
    for backend in backends.BACKENDS:
        session = backends.open_session(parsed(CHAIN), backend)
        with pytest.raises(FeedsError, match=r"'x' .* is missing"):
            session.run({})
        with pytest.raises(FeedsError, match="the model wants"):
            session.run({"x": X[:, :2]})


def test_options():
    model = parsed(CHAIN)
    session = backends.open_session(model, options=Options("basic", providers=("CPUExecutionProvider",), threads=1))
    assert (session.device, session.providers) == ("CPU", ("CPUExecutionProvider",))
    with pytest.raises(UsageError, match="no optimization level"):
        backends.open_session(model, options=Options("fast"))
    with pytest.raises(MissingDependencyError, match="no execution provider 'tpu'") as caught:
        backends.open_session(model, options=Options(providers=("tpu",)))
    assert "CPUExecutionProvider" in caught.value.hint
    with pytest.raises(UsageError, match="no backend 'otr'"):
        backends.open_session(model, "otr")
    with pytest.raises(UsageError, match="no custom operator library"):
        backends.open_session(model, options=Options(libraries=(Path("nope.so"),)))
    with pytest.raises(ExecutionError, match="cannot use the custom operator library"):
        backends.open_session(model, options=Options(libraries=(Path(__file__),)))


def test_a_profile_is_written_where_it_is_wanted(tmp_path):
    session = backends.open_session(parsed(CHAIN), options=Options(profile=tmp_path / "trace.json"))
    session.run({"x": X})
    session.close()
    session.close()
    events = json.loads((tmp_path / "trace.json").read_text())
    assert any("kernel_time" in event["name"] for event in events)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_nothing_is_written_to_the_terminal(capfd):
    text = f"{head()} g (float[2] x) => (float[9] z) <float[9] unused = {{1,2,3,4,5,6,7,8,9}}> {{ z = Abs(x) }}"
    backends.open_session(parsed(text)).run({"x": X[0, :2]})  # the runtime warns of the weight and of the shape
    assert capfd.readouterr() == ("", "")
