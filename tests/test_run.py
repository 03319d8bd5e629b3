"""Running a model: the library function and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpus import fetch
from engines import bits
from onnx import helper, numpy_helper, parser

from onnxbench import backends
from onnxbench.captures import Capture, save
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import FeedsError, NotFoundError, OutputError, UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.model import from_proto, load
from onnxbench.running import run

MODELS = Path(__file__).parents[1] / "fixtures" / "models"
X = np.arange(8, dtype=np.float32).reshape(2, 4)
W = np.array([1, 2, 3, 4], np.float32)
TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,4] z) <float[4] w = {1, 2, 3, 4}>
    { a = Add(x, w) [square] b = Mul(a, a) z = Neg(b) }"""


def chain():
    return from_proto(parser.parse_model(TEXT))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(parser.parse_model(TEXT).SerializeToString())
    return path


# ---------------------------------------------------------------- the library function


def test_values_statistics_and_settings():
    result = run(chain(), {"x": X})
    assert bits(result.values[0]) == bits({"z": -((X + W) ** 2)})
    (stats,) = result.outputs
    assert (stats.name, stats.dtype, stats.shape, stats.min, stats.max) == ("z", "float32", (2, 4), -121, -1)
    assert [entry.name for entry in result.inputs] == ["x"]
    assert (result.provider, result.optimization, result.sets, result.passed) == ("CPU", "all", 1, True)
    assert result.backend.startswith("ort 1.")
    assert result.latency is result.drift is result.nonfinite is None


def test_inner_tensors_by_selector():
    result = run(chain(), {"x": X}, outputs=["op:Mul", "a"], options=backends.Options("none"))
    assert bits(result.values[0]) == bits({"b": (X + W) ** 2, "a": X + W})
    for words in (["*"], ["mark", "all"]):
        assert [entry.name for entry in run(chain(), {"x": X}, outputs=words).outputs] == ["a", "b", "z"]
    assert [entry.name for entry in run(chain(), {"x": X}, outputs=["w", "input:*"]).outputs] == ["w", "x"]
    with pytest.raises(NotFoundError):
        run(chain(), {"x": X}, outputs=["nothing*"])


def test_tensors_inside_bodies_have_no_value_of_their_own():
    model = load(MODELS / "if_basic.onnx")
    inner = next(name for node in model.proto.graph.node for a in node.attribute for n in a.g.node for name in n.output)
    with pytest.raises(UnsupportedError, match="inside a body"):
        run(model, outputs=[f"*/then/{inner}"])


def test_batches_and_whole_agree():
    whole = run(chain(), {"x": X}, outputs=["*"])
    parts = run(chain(), {"x": X}, outputs=["*"], max_bytes=1)
    assert bits(whole.values) == bits(parts.values)


def test_both_backends_agree():
    one, other = (run(chain(), {"x": X}, outputs=["*"], backend=name) for name in ("ort", "reference"))
    assert bits(one.values) == bits(other.values)
    assert other.provider == "Python"


def test_several_sets_add_up(tmp_path):
    folder = tmp_path / "out"
    result = run(chain(), FeedOptions(dims=["N=3"], iterations=3), save=folder, save_inputs=tmp_path / "in")
    assert result.sets == 3
    assert result.outputs[0].elements == 3 * 12
    assert result.saved == (folder, tmp_path / "in")
    assert [path.name for path in sorted(folder.iterdir())] == ["0000.npz", "0001.npz", "0002.npz"]
    again = run(chain(), FeedOptions([str(tmp_path / "in")]), expect=[str(folder)])
    assert again.drift.bitwise_equal
    assert [entry.name for entry in again.drift.tensors] == ["z (set 0)", "z (set 1)", "z (set 2)"]
    assert bits(again.values) == bits(result.values)
    with pytest.raises(UsageError, match=r"holds one set of values, and there are several"):
        run(chain(), FeedOptions(iterations=2), save=tmp_path / "f.npz")
    with pytest.raises(OutputError, match="is not empty"):
        run(chain(), FeedOptions(iterations=2), save=folder)
    with pytest.raises(FeedsError, match="more sets of inputs than sets of expected values, which are 3"):
        run(chain(), FeedOptions(iterations=4), expect=[str(folder)])


def test_saved_values_are_compared(tmp_path):
    saved = tmp_path / "y.npz"
    run(chain(), {"x": X}, outputs=["b", "z"], save=saved)
    same = run(chain(), {"x": X}, expect=[str(saved)])
    assert same.passed
    assert [entry.name for entry in same.outputs] == ["z", "b"]  # b is looked at because it is expected
    moved = X.copy()
    moved[1, 2] += 1e-3
    drifted = run(chain(), {"x": moved}, expect=[str(saved)])
    assert not drifted.passed
    assert drifted.drift.worst.max_abs_index == (1, 2)
    assert run(chain(), {"x": moved}, expect=[str(saved)], atol=["b:0.05", "z:0.05"]).passed
    assert run(chain(), {"x": moved}, expect=[str(saved)], atol=0.05).passed
    assert run(chain(), {"x": moved}, expect=[str(saved)], rtol=["1e-2"]).passed
    assert not run(chain(), {"x": moved}, expect=[str(saved)], atol=["b:0.05", "z:1e-5"]).passed
    assert not run(chain(), {"x": X}, expect={"z": -((X + W) ** 2), "a": X}).passed
    assert run(chain(), {"x": X}, expect={"z": -((X + W) ** 2)}, bitwise=True).passed


def test_expected_values_of_nothing(tmp_path):
    with pytest.raises(NotFoundError, match="values are expected of 'zz'") as caught:
        run(chain(), {"x": X}, expect={"zz": X})
    assert "'z'" in caught.value.hint
    save(tmp_path / "empty.npz", {})
    with pytest.raises(FeedsError, match="nothing could be compared"):
        run(chain(), {"x": X}, expect=[str(tmp_path / "empty.npz")])


def test_a_test_set_of_the_onnx_package(tmp_path):
    for name, value in (("input_0", X), ("output_0", -((X + W) ** 2))):
        (tmp_path / f"{name}.pb").write_bytes(numpy_helper.from_array(value).SerializeToString())
    result = run(chain(), FeedOptions([str(tmp_path)]), expect=[str(tmp_path)])
    assert result.drift.verdict == "PASSED: 1 tensor is equal bit for bit"


def test_no_input_is_overwritten(tmp_path, file):
    feeds = tmp_path / "x.npz"
    save(feeds, {"x": X})
    for target in (file, feeds):
        before = target.read_bytes()
        with pytest.raises(UsageError):
            run(file, FeedOptions([str(feeds)]), save=target)
        with pytest.raises(UsageError):
            run(file, FeedOptions([f"x:{feeds}"]), save_inputs=target)
        assert target.read_bytes() == before
    with pytest.raises(UsageError, match="written twice"):
        run(file, save=tmp_path / "o.npz", save_inputs=tmp_path / "o.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "x.npz"]


def test_a_failed_run_leaves_no_file(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N] x, int64[1] i) => (float[1] z)
        { [pick] z = Gather(x, i) }"""
    model = from_proto(parser.parse_model(text))
    with pytest.raises(Exception, match="node 'pick'") as caught:
        run(model, FeedOptions(ranges=["i:[5,5]"]), save=tmp_path / "o.npz", save_inputs=tmp_path / "i.npz")
    assert caught.value.details[1:] == ("x: dimension 0 (N) = 1",)
    assert list(tmp_path.iterdir()) == []


def test_nan_is_traced_when_an_output_has_one_or_when_asked():
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] z)
        { [bad] a = Log(x) b = IsNaN(a) z = Where(b, x, a) }"""
    model = from_proto(parser.parse_model(text))
    hidden = run(model, {"x": -1 - X[0]})
    assert (hidden.nonfinite, hidden.passed) == (None, True)
    asked = run(model, {"x": -1 - X[0]}, find_nan=True)
    assert (asked.nonfinite.origin.node, asked.passed) == ("bad", False)
    assert run(model, {"x": X[0] + 1}, find_nan=True).passed
    seen = run(model, {"x": -1 - X[0]}, outputs=["a"])
    assert (seen.nonfinite.origin.node, seen.searched, seen.passed) == ("bad", False, True)
    assert run(model, {"x": -1 - X[0]}, outputs=["a"], find_nan=False).nonfinite is None


def test_latency():
    latency = run(chain(), {"x": X}, bench=40, warmup=2).latency
    assert (latency.runs, latency.warmup) == (40, 2)
    assert 0 < latency.min_ms <= latency.median_ms <= latency.p95_ms <= latency.max_ms
    assert latency.min_ms <= latency.mean_ms <= latency.max_ms
    assert latency.fps == pytest.approx(1000 / latency.mean_ms)


def test_optimizations_are_off_for_very_large_graphs_unless_told():
    nodes = [helper.make_node("Abs", [f"t{i}"], [f"t{i + 1}"]) for i in range(20_001)]
    ends = [helper.make_tensor_value_info(name, 1, [1]) for name in ("t0", "t20001")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    result = run(model)
    assert result.optimization == "none"
    assert "20,001 nodes" in result.notes[0]
    assert run(model, options=backends.Options("basic")).optimization == "basic"


def test_memory_of_statistics_over_all_tensors_is_bounded(tmp_path):
    code = """
import resource
from onnx import helper
import onnxruntime
from onnxbench.model import from_proto
from onnxbench.running import run
nodes = [helper.make_node("Sin", [f"t{i}"], [f"t{i + 1}"]) for i in range(20)]
ends = [helper.make_tensor_value_info(name, 1, [4 << 20]) for name in ("t0", "t20")]
graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = run(model, outputs=["*"], save="all.npz", find_nan=True, max_bytes=48 << 20, keep_values=False)
assert len(result.outputs) == 20 and not result.values
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout) < 280 << 10  # all tensors together have 336 MB
    assert (tmp_path / "all.npz").stat().st_size > 320 << 20


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["magika", "silero_vad", "minilm_int8w", "ppocr_v2_cls", "logreg_iris_ml", "swift_f0"])
def test_real_models_save_and_compare(corpus, name, tmp_path):
    path, entry = corpus(name)
    save(tmp_path / "x.npz", fetch.seeded_feeds(path, entry))
    words = FeedOptions([str(tmp_path / "x.npz")])
    first = run(path, words, save=tmp_path / "y.npz", outputs=["*"], options=backends.Options("none", threads=1))
    again = run(
        path, words, expect=[str(tmp_path / "y.npz")], bitwise=True, options=backends.Options("none", threads=1)
    )
    assert again.drift.passed
    assert len(again.drift.tensors) >= len(first.outputs)


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Runs ``onnxbench run`` in an empty folder; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        capsys.readouterr()
        code = bounded(app, ["run", *map(str, words)])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return call


def test_a_plain_run_says_what_was_chosen_and_what_came_out(command, file):
    code, out, err = command(file)
    assert code == 0
    assert "chosen: x: dimension 0 (N) = 1" in err
    assert "on CPU, optimizations all, default threads" in out
    assert "float32[1, 4]" in out
    assert command(file, "-q")[2] == ""


@pytest.mark.parametrize("option", ["--feeds", "--load-inputs", "--load-input-data"])
def test_the_round_of_files(command, file, tmp_path, option):
    save("x.npz", {"x": X})
    assert command(file, option, "x.npz", "--save", "y.npz", "--save-inputs", "again.npz")[0] == 0
    with Capture(tmp_path / "y.npz") as capture:
        assert bits(dict(capture)) == bits({"z": -((X + W) ** 2)})
    code, out, _ = command(file, option, "again.npz", "--expect", "y.npz")
    assert code == 0
    assert out.splitlines()[-1] == "PASSED: 1 tensor is equal bit for bit"
    code, out, _ = command(file, "--dim", "N=2", "--expect", "y.npz", "--atol", "1e-4")
    assert code == 1
    assert "z: 8 of 8 elements are beyond atol 0.0001 + rtol 0" in out
    assert out.splitlines()[-1] == "FAILED: 1 of 1 tensors differ"


@pytest.mark.parametrize("option", ["--outputs", "--onnx-outputs"])
def test_inner_tensors(command, file, option):
    code, out, _ = command(file, "--shape", "x:2x4", option, "op:Mul", "a", "--optimization-level", "none")
    assert code == 0
    assert "optimizations none" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("a ", "b ", "z "))] == ["b", "a"]


def test_json(command, file):
    code, out, err = command(
        file, "--json", "--shapes", "x:2x4", "--bench", "3", "--warmup", "1", "--threads", "1", "-q"
    )
    assert (code, err) == (0, "")
    envelope = json.loads(out)
    result = envelope["result"]
    assert envelope["command"] == "run"
    assert "values" not in result
    assert result["outputs"][0]["shape"] == [2, 4]
    assert result["latency"]["runs"] == 3
    assert result["threads"] == 1


def test_find_nan(command):
    code, out, _ = command(MODELS / "makes_nan.onnx", "--find-nan")
    assert code == 1
    assert "first: node log (Log) makes NaN" in out
    assert "  in  below_zero: float32[2, 3]" in out
    code, out, _ = command(MODELS / "makes_nan.onnx")
    assert code == 0
    assert "first: node log" in out
    code, out, err = command(MODELS / "makes_nan.onnx", "--no-find-nan")
    assert (code, "node log" in out) == (0, False)
    assert "warning: NaN or Inf in y (6" in err
    assert " NaN, 0 Inf of 6); --find-nan shows the first node that makes any" in err
    code, out, _ = command(MODELS / "whole_model_small.onnx", "--find-nan")
    assert code == 0
    assert "no NaN and no Inf in any tensor" in out


def test_latency_table(command, file):
    code, out, _ = command(file, "--bench", "5", "--warmup", "2")
    assert code == 0
    assert "5 runs after 2 to warm up" in out
    assert {"mean", "median", "p95", "min", "max", "FPS"} <= set(out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on", "ort:basic,threads=1"], ("CPU", "basic", 1)),
        (["--on", "ort,threads=2"], ("CPU", "all", 2)),
        (["--on", "ort", "--optimization-level", "none", "--threads", "1"], ("CPU", "none", 1)),
        (["--on", "reference"], ("Python", "all", 0)),
    ],
)
def test_a_place_says_what_runs_it(command, file, words, said):
    code, out, _ = command(file, *words, "--json")
    assert code == 0
    result = json.loads(out)["result"]
    assert (result["provider"], result["optimization"], result["threads"]) == said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--feeds", "nope.npz"], 4, "there is no file nope.npz"),
        (["--shape", "y:[1]"], 4, "no tensor 'y'"),
        (["--shape", "x:[1,5]"], 10, "fixes dimension 1 at 4"),
        (["--outputs", "bb"], 4, "bb"),
        (["--backend", "tensorflow"], 2, "no backend 'tensorflow'"),
        (["--on", "tensorflow:all"], 2, "no backend 'tensorflow'"),
        (["--on", "ort:fast"], 2, "--on 'ort:fast': 'fast' is no optimization level"),
        (["--on", "ort", "--backend", "ort"], 2, "--on and --backend both say what runs the model"),
        (["--provider", "npu"], 12, "no execution provider 'npu'"),
        (["--optimization-level", "fast"], 2, "no optimization level"),
        (["--max-memory", "lots"], 2, "is not a size"),
        (["--expect", "y.npz", "--atol", "x"], 2, "is not a tolerance"),
        (["--save", "nowhere/y.npz"], 7, "nowhere/y.npz cannot be written"),
        (["--save", "y.json"], 2, "saved as .npz"),
        (["--custom-ops", "lib.so"], 2, "no custom operator library lib.so"),
    ],
)
def test_errors(command, file, tmp_path, words, code, message):
    found, out, err = command(file, *words)
    assert found == code
    assert message in err
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_validate_fails_on_outputs_that_are_not_finite_whatever_the_tolerances(command, tmp_path):
    bad = MODELS / "makes_nan.onnx"
    code, out, _ = command(bad, "--validate")
    assert (code, out.splitlines()[-1]) == (1, "FAILED: NaN or Inf in 1 of 2 tensors")
    result = json.loads(command(bad, "--validate", "--no-find-nan", "--json")[1])["result"]
    assert (result["passed"], result["validated"], result["nonfinite_outputs"]) == (False, True, ["y"])
    assert command(bad, "--save", tmp_path / "y.npz")[0] == 0
    same = ("--expect", tmp_path / "y.npz", "--atol", "1e9")
    assert command(bad, *same, "--validate")[0] == 1
    code, out, err = command(MODELS / "whole_model_small.onnx", "--validate", "--outputs", "*")
    assert (code, "warning" in err) == (0, False)
    assert out.splitlines()[-1].startswith("PASSED: no NaN and no Inf in ")
