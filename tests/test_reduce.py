"""Reduction: what is left still shows the failure, is valid, is small, and says how it came about."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import failing_models as failing
import numpy as np
import onnx
import pytest
from cases import Case, cases, named
from corpus import fetch
from injections import inject
from onnx import TensorProto, helper, numpy_helper

from onnxbench import backends, captures
from onnxbench.errors import BenchError, OutputError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.inlining import inline_functions
from onnxbench.messages import copy_of
from onnxbench.model import Model, from_proto, load
from onnxbench.parts import Parts
from onnxbench.reduction import Reduction, reduce_failure
from onnxbench.shrinking import Records, Shrinker, Specimen, Specimens, fewest
from onnxbench.validity import find_complaints, validate

Corpus = Callable[[str], tuple[Path, Any]]
Failing = Callable[[], tuple[onnx.ModelProto, dict[str, Any]]]
x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 traps this division")


def _shows(found: Reduction) -> str:
    """Checks the files of a reduction: the model is valid and small, and the script shows the failure."""
    model = found.files[0]
    proto = onnx.load(model)
    validate(proto)
    assert len(proto.graph.node) == found.after
    stem = model.with_suffix("")
    fed = dict(captures.Capture(f"{stem}.feeds.npz"))
    assert {info.name for info in proto.graph.input} == set(fed)
    done = subprocess.run(
        [sys.executable, f"{stem}.reproduce.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the failure shows" in done.stdout
    return done.stdout


# ---------------------------------------------------------------- the search by itself


@pytest.mark.parametrize("wanted", [{3}, {0, 9}, {2, 3, 4}, {0, 5, 11, 17}, set(range(18))])
def test_delta_debugging_leaves_what_is_needed(wanted: set[int]) -> None:
    tried: list[int] = []

    def shows(items: Any) -> bool:
        tried.append(len(items))
        return wanted <= set(items)

    assert set(fewest(range(18), shows)) == wanted
    assert len(tried) < 200


@cases(lambda case: case.engine == "ort" and not case.name.startswith("no_nodes"))
def test_any_model_is_reduced_to_any_of_its_nodes(case: Case) -> None:
    """What is looked for is one node in the midst of the model; every part that is tried has to run and be valid."""
    model = inline_functions(load(case.path))[0]
    feeds = case.feeds()
    parts = Parts(model, "ort", backends.Options())
    records = Records(lambda number, batches: parts.stream(feeds, batches), [feeds])
    specimens = Specimens(model, records)
    middle = specimens.units[len(specimens.units) // 2] if specimens.units else None
    if middle is None:
        pytest.skip("Constant nodes alone")
    target = next(name for name in specimens.scope.writes[middle] if name)
    is_valid = not _complaints(model)

    def check(specimen: Specimen) -> bool:
        session = backends.open_session(specimen.model, options=backends.Options("none"))
        session.run(specimen.sets[0])
        assert not is_valid or not _complaints(specimen.model)
        return target in {name for node in specimen.model.proto.graph.node for name in node.output}

    shrinker = Shrinker(specimens, check, max_runs=300)
    assert shrinker.try_specimen(shrinker.best)
    shrinker.cut_back()
    records.record(shrinker.specimens.made(shrinker.units))
    shrinker.cut_front()
    shrinker.delta_debug()
    left = [node for node in shrinker.best.model.proto.graph.node if node.op_type != "Constant"]
    records.close()
    assert len(left) == 1
    assert target in left[0].output


def _complaints(model: Model) -> list[str]:
    return find_complaints(copy_of(model.proto), complete=model.with_small_weights)


# ---------------------------------------------------------------- models that do not run

_RUNS = [
    (failing.out_of_range, "failed"), (failing.wrong_reshape, "failed"), (failing.too_large, "failed"),
    (failing.no_kernel, "refused"), (failing.hang, "hang"), pytest.param(failing.crash, "SIGFPE", marks=x86),
    pytest.param(failing.crash_in_a_branch, "SIGFPE", marks=x86),
]  # fmt: skip


@pytest.mark.parametrize(("build", "how"), _RUNS)
def test_a_model_that_does_not_run_is_reduced_to_the_node(build: Failing, how: str, tmp_path: Path) -> None:
    model, feeds = build()
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", feeds=feeds, timeout=1.0)
    assert (found.kind, found.nodes, found.after) == ("run", ("bad",), 1)
    assert found.before == len(model.graph.node)
    assert found.ended == "nothing more can go"
    assert found.expected is None
    if build is not failing.wrong_reshape:
        assert found.elements[1] <= found.elements[0]
    said = _shows(found)
    assert {"hang": "hangs", "SIGFPE": "crashes"}.get(how, "fails") in said


@x86
def test_functions_are_inlined(tmp_path: Path) -> None:
    model, feeds = failing.crash_in_a_function()
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", feeds=feeds, timeout=20.0)
    assert found.after == 1
    assert onnx.load(found.files[0]).graph.node[0].op_type == "Div"
    _shows(found)


def test_a_failure_of_several_nodes_keeps_them(tmp_path: Path) -> None:
    """A Concat fails on two branches whose sizes do not go together only if both are there."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "a"), helper.make_node("Neg", ["x"], ["b"], "b"),
        helper.make_node("Identity", ["a"], ["c"], "c"), helper.make_node("Slice", ["b", "one", "two"], ["d"], "d"),
        helper.make_node("Add", ["c", "d"], ["e"], "bad"), helper.make_node("Relu", ["e"], ["y"], "end"),
    ]  # fmt: skip
    model = failing.make(nodes, {"one": np.array([1]), "two": np.array([3])}, inputs={"x": (TensorProto.FLOAT, ["n"])})
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", feeds={"x": np.ones(5, np.float32)})
    assert found.nodes == ("bad",)
    _shows(found)


# ---------------------------------------------------------------- drift


def _inject(corpus: Corpus, name: str, kind: str, seed: int = 0) -> tuple[Path, Any, dict[str, Any]]:
    path, entry = corpus(name)
    feeds = fetch.seeded_feeds(path, entry)
    injected = inject(onnx.load(path), (kind,), feeds, seed)
    assert injected is not None
    return path, injected, feeds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("attacut_sc", "perturbed weight"), ("attacut_sc", "bad cast"), ("eeg_seizure_lstm", "one weight"),
        ("ppocr_v2_cls", "shifted pad"), ("magika", "bad cast"),
    ],
)  # fmt: skip
def test_drift_from_another_model_is_reduced_to_the_fault(name: str, kind: str, corpus: Corpus, tmp_path: Path) -> None:
    path, injected, feeds = _inject(corpus, name, kind)
    found = reduce_failure(from_proto(injected.model), tmp_path / "small.onnx", against=path, feeds=feeds)
    made = {name for node in onnx.load(found.files[0]).graph.node for name in node.output}
    (truth,) = injected.truths
    assert found.kind == "drift"
    assert made & truth
    assert found.after <= len(truth) + 3
    assert found.elements[1] <= found.elements[0]
    assert found.expected
    _shows(found)


def test_drift_of_the_optimizer_is_reduced_to_what_is_fused(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("minilm_int8w")
    found = reduce_failure(
        path, tmp_path / "small.onnx", on="ort:all,threads=1", reference_on="ort:none,threads=1",
        feeds=fetch.seeded_feeds(path, entry), atol=1e-7,
    )  # fmt: skip
    assert found.kind == "drift"
    assert 2 <= found.after < 20  # more than one node, since it is a fusion that rounds otherwise
    assert _shows(found)


def test_a_body_is_kept_whole(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("silero_vad_ifless")
    feeds = fetch.seeded_feeds(path, entry)
    suspect = onnx.load(path)
    pending = [a.g for node in suspect.graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    changed = 0
    while pending:
        graph = pending.pop()
        for node in graph.node:
            pending += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            if node.op_type == "Relu":
                node.op_type, changed = "LeakyRelu", changed + 1
    assert changed
    found = reduce_failure(from_proto(suspect), tmp_path / "small.onnx", against=path, feeds=feeds)
    assert "If" in {node.op_type for node in onnx.load(found.files[0]).graph.node}
    assert found.after < found.before / 2
    _shows(found)


def test_a_loop_is_kept_whole(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("nakdimon_loop")
    feeds = fetch.seeded_feeds(path, entry)
    suspect = onnx.load(path)
    for node in suspect.graph.node:
        for attribute in node.attribute:
            for inner in attribute.g.node:
                if inner.op_type == "Tanh":
                    inner.op_type = "Softsign"
    found = reduce_failure(from_proto(suspect), tmp_path / "small.onnx", against=path, feeds=feeds)
    assert "Loop" in {node.op_type for node in onnx.load(found.files[0]).graph.node}
    assert found.after < found.before / 10
    _shows(found)


def test_the_set_that_shows_it_is_told(tmp_path: Path) -> None:
    def build(top: float) -> Any:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], "m"), helper.make_node("Clip", ["m", "", "top"], ["c"], "c"),
            helper.make_node("Neg", ["c"], ["y"], "end"),
        ]  # fmt: skip
        weights = {"w": np.eye(4, dtype=np.float32), "top": np.array(top, np.float32)}
        return from_proto(failing.make(nodes, weights, inputs={"x": (TensorProto.FLOAT, [1, 4])}))

    options = FeedOptions(ranges=["[0,2.2]"], iterations=8, seed=3)
    found = reduce_failure(build(2.0), tmp_path / "small.onnx", against=build(9.0), feeds=options)
    assert found.nodes == ("c",)
    assert found.sets == 8
    assert (next(iter(found.feeds.values())) > 2.0).any()
    _shows(found)


# ---------------------------------------------------------------- NaN


def test_nan_is_reduced_to_the_node_that_makes_it(corpus: Corpus, tmp_path: Path) -> None:
    _, injected, feeds = _inject(corpus, "ppocr_v2_cls", "nan branch")
    found = reduce_failure(from_proto(injected.model), tmp_path / "small.onnx", feeds=feeds)
    assert (found.kind, found.after) == ("nonfinite", 1)
    assert onnx.load(found.files[0]).graph.node[0].op_type == "Sqrt"
    assert found.elements[1] == 1
    assert "1 NaN" in _shows(found)


@pytest.mark.parametrize("name", ["makes_nan", "makes_inf_then_nan"])
def test_nan_in_fixtures(name: str, tmp_path: Path) -> None:
    case = named(name)
    found = reduce_failure(case.path, tmp_path / "small.onnx", nonfinite=True, feeds=case.feeds())
    assert (found.kind, found.after) == ("nonfinite", 1)
    _shows(found)


# ---------------------------------------------------------------- a command


def _script(folder: Path, text: str) -> str:
    (folder / "check.py").write_text(text)
    return f"{sys.executable} {folder / 'check.py'}"


def test_a_command_decides(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("attacut_sc")
    text = """import sys, onnx, numpy
model = onnx.load(sys.argv[1])
onnx.checker.check_model(model)
assert {info.name for info in model.graph.input} == set(numpy.load(sys.argv[2]))
sys.exit(7 if {node.op_type for node in model.graph.node} >= {"Conv", "Concat"} else 0)
"""
    found = reduce_failure(
        path, tmp_path / "small.onnx", check=_script(tmp_path, text) + " {} {feeds}", check_exit=7,
        feeds=fetch.seeded_feeds(path, entry),
    )  # fmt: skip
    kinds = sorted(node.op_type for node in onnx.load(found.files[0]).graph.node)
    assert kinds == ["Concat", "Conv"]
    _shows(found)


@x86
def test_a_command_that_crashes_has_the_code_of_a_shell(tmp_path: Path) -> None:
    model, feeds = failing.crash(5, 3)
    text = """import sys, onnxruntime, numpy, os
onnxruntime.InferenceSession(sys.argv[1]).run(None, dict(numpy.load(os.environ["ONNXBENCH_FEEDS"])))
"""
    found = reduce_failure(
        from_proto(model), tmp_path / "small.onnx", check=_script(tmp_path, text), check_exit=128 + 8, feeds=feeds
    )
    assert found.nodes == ("bad",)


def test_a_command_that_never_says_so(tmp_path: Path) -> None:
    model, feeds = failing.out_of_range()
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", check="false", feeds=feeds)
    assert (found.shows, found.kind, found.files) == (False, "none", ())
    assert "the command ends with 1 on the whole model" in found.failure
    with pytest.raises(UsageError, match=r"\{model\} stands for nothing"):
        reduce_failure(from_proto(model), tmp_path / "small.onnx", check="false {model}", feeds=feeds)
    slow = reduce_failure(from_proto(model), tmp_path / "small.onnx", check="sleep 30 #", feeds=feeds, timeout=0.5)
    assert not slow.shows


@pytest.mark.parametrize("every", [1, 3])
def test_recorded_values_tell_what_is_right(every: int, corpus: Corpus, tmp_path: Path) -> None:
    """Parts are cut at recorded tensors alone: of every third, the faulty node comes with those before it."""
    path, entry = corpus("attacut_sc")
    feeds = fetch.seeded_feeds(path, entry)
    injected = inject(onnx.load(path), ("perturbed weight",), feeds, 0)
    assert injected is not None
    parts = Parts(load(path), "ort", backends.Options())
    made = parts.in_order(name for names in parts.scope.writes for name in names)
    golden = next(parts.stream(feeds, [[*made[::every], *parts.scope.outputs]]))
    captures.save(tmp_path / "golden.npz", {**feeds, **golden})
    suspect, small = from_proto(injected.model), tmp_path / "small.onnx"
    found = reduce_failure(suspect, small, recorded=[str(tmp_path / "golden.npz")])
    assert found.kind == "drift"
    assert found.after <= 2 * every
    left = {name for node in onnx.load(small).graph.node for name in node.output}
    assert any(left & truth for truth in injected.truths)
    assert set(found.feeds) <= golden.keys() | feeds.keys()
    _shows(found)
    with pytest.raises(UsageError, match="either a model"):
        reduce_failure(suspect, small, against=path, recorded=golden)
    with pytest.raises(UsageError, match="cannot be anonymized"):
        reduce_failure(suspect, small, recorded=golden, anonymize=True)


# ---------------------------------------------------------------- anonymized


@pytest.mark.parametrize("build", [failing.out_of_range, failing.no_kernel])
def test_nothing_of_the_model_is_told(build: Failing, tmp_path: Path) -> None:
    model, feeds = build()
    model.doc_string = model.graph.doc_string = model.producer_name = "a secret"
    for node in model.graph.node:
        node.metadata_props.add(key="secret", value="a secret")
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", feeds=feeds, timeout=1.0, anonymize=True)
    assert found.nodes == ("bad",)
    for file in found.files:
        text = file.read_bytes()
        assert not any(word in text for word in (b"secret", b"bad", b"turns", b"relu"))
    _shows(found)


def test_anonymous_drift_still_shows(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("minilm_int8w")
    feeds = fetch.seeded_feeds(path, entry)
    places = {"on": "ort:all,threads=1", "reference_on": "ort:none,threads=1"}
    found = reduce_failure(path, tmp_path / "small.onnx", feeds=feeds, atol=1e-7, anonymize=True, **places)  # type: ignore[arg-type]
    assert all(name.startswith("t") for name in found.feeds)
    assert b"layer_norm" not in found.files[0].read_bytes()
    _shows(found)
    with pytest.raises(UsageError, match="cannot be anonymized with --against"):
        reduce_failure(path, against=path, anonymize=True, feeds=feeds)


# ---------------------------------------------------------------- limits, files, refusals


def test_tries_are_counted(tmp_path: Path) -> None:
    model, feeds = failing.wrong_reshape()
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", feeds=feeds, max_runs=5)
    assert (found.runs, found.ended) == (5, "the tries were used up")
    assert found.after < found.before
    _shows(found)
    first = reduce_failure(from_proto(model), tmp_path / "whole.onnx", feeds=feeds, max_runs=1)
    assert first.after == first.before
    _shows(first)


def test_the_same_twice_gives_the_same_files(corpus: Corpus, tmp_path: Path) -> None:
    path, injected, feeds = _inject(corpus, "attacut_sc", "perturbed weight")
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        found = reduce_failure(from_proto(injected.model), tmp_path / name / "s.onnx", against=path, feeds=feeds)
        files.append([file.read_bytes() for file in found.files])
    assert files[0] == files[1]


def test_external_weights_come_along(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("minilm_int8w_ext")
    found = reduce_failure(
        path, tmp_path / "small.onnx", check="grep -q LayerNormalization {}", feeds=fetch.seeded_feeds(path, entry)
    )
    assert found.after == 1
    onnx.checker.check_model(str(found.files[0]), full_check=True)
    assert onnx.load(found.files[0]).graph.node[0].op_type == "LayerNormalization"


def test_a_model_without_a_failure_is_left(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("attacut_sc")
    feeds = fetch.seeded_feeds(path, entry)
    for options in ({}, {"against": path}, {"reference_on": "ort:none"}, {"nonfinite": True}):
        found = reduce_failure(path, tmp_path / "small.onnx", feeds=feeds, **options)  # type: ignore[arg-type]
        assert (found.shows, found.files) == (False, ())
    assert list(tmp_path.iterdir()) == []


def test_types_that_numpy_lacks_are_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], "down", to=TensorProto.BFLOAT16),
        helper.make_node("Gather", ["b", "i"], ["g"], "bad"),
        helper.make_node("Cast", ["g"], ["y"], "up", to=TensorProto.FLOAT),
    ]
    model = failing.make(nodes, {"i": np.array([9])}, inputs={"x": (TensorProto.FLOAT, [4])})
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", feeds={"x": np.ones(4, np.float32)})
    assert found.nodes == ("bad",)
    assert any("NumPy alone cannot hold" in note for note in found.notes)
    assert [file.name for file in found.files] == ["small.onnx", "small.feeds.npz"]


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    model, feeds = failing.out_of_range()
    onnx.save(model, tmp_path / "model.onnx")
    given = from_proto(model)
    with pytest.raises(UsageError, match="one failure is reduced at a time"):
        reduce_failure(given, check="true", nonfinite=True, feeds=feeds)
    with pytest.raises(UsageError, match="atol and rtol are for drift"):
        reduce_failure(given, atol=1e-3, feeds=feeds)
    with pytest.raises(UsageError, match="cannot be read"):
        reduce_failure(given, check="grep 'x", feeds=feeds)
    with pytest.raises(UsageError, match="names no command"):
        reduce_failure(given, check=" ", feeds=feeds)
    with pytest.raises(UsageError, match="cannot be run"):
        reduce_failure(given, check="no-such-command {}", feeds=feeds)
    with pytest.raises(UsageError, match="an input"):
        reduce_failure(tmp_path / "model.onnx", tmp_path / "model.onnx", feeds=feeds)
    with pytest.raises(UsageError, match="an input"):
        reduce_failure(given, tmp_path / "model.onnx", against=tmp_path / "model.onnx", feeds=feeds)
    with pytest.raises(UsageError, match="does not end in"):
        reduce_failure(given, tmp_path / "small.onnxtxt", feeds=feeds)
    with pytest.raises(OutputError, match="no folder"):
        reduce_failure(given, tmp_path / "absent" / "small.onnx", feeds=feeds)
    with pytest.raises(UsageError, match="nothing can be compared"):
        reduce_failure(given, reference_on="ort:none", feeds=feeds)
    with pytest.raises(UsageError):
        reduce_failure(given, on="ort:al", feeds=feeds)
    with pytest.raises(BenchError):
        reduce_failure(tmp_path / "absent.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


# ---------------------------------------------------------------- the command line


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", "reduce", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _save(folder: Path, made: tuple[onnx.ModelProto, dict[str, Any]]) -> tuple[Path, Path]:
    onnx.save(made[0], folder / "model.onnx")
    captures.save(folder / "feeds.npz", made[1])
    return folder / "model.onnx", folder / "feeds.npz"


def test_the_command_says_what_is_left(tmp_path: Path) -> None:
    model, feeds = _save(tmp_path, failing.out_of_range())
    done = _run(model, tmp_path / "small.onnx", "--feeds", feeds)
    assert done.returncode == 0, done.stderr
    assert "left: bad" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("13 nodes -> 1, ")
    said = json.loads(_run(model, tmp_path / "again.onnx", "--feeds", feeds, "--json").stdout)["result"]
    assert (said["kind"], said["after"], said["nodes"]) == ("run", 1, ["bad"])
    assert len(said["files"]) == 3
    fine = _run(model, tmp_path / "small.onnx", "--nonfinite", "--check", "true")
    assert fine.returncode == 2
    none = _run(model, tmp_path / "none.onnx", "--check", "false", "--feeds", feeds)
    assert (none.returncode, none.stdout[:18]) == (1, "nothing to reduce:")


def test_an_interrupt_writes_the_best_so_far(corpus: Corpus, tmp_path: Path) -> None:
    path, _ = corpus("ppocr_v4_rec")
    log = tmp_path / "tries"
    text = (
        f"open({str(log)!r}, 'a').write('.')"
        + """
import sys, time, onnx
time.sleep(0.5)
sys.exit(0 if "HardSigmoid" in {node.op_type for node in onnx.load(sys.argv[1]).graph.node} else 1)
"""
    )
    command = [
        sys.executable, "-m", "onnxbench", "reduce", path, tmp_path / "small.onnx", "--check",
        _script(tmp_path, text), "--shape", "x:[1,3,48,320]",
    ]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and (not log.exists() or len(log.read_text()) < 5):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "interrupted: this is the smallest part so far" in out
    left = onnx.load(tmp_path / "small.onnx")
    assert "HardSigmoid" in {node.op_type for node in left.graph.node}
    onnx.checker.check_model(left, full_check=True)


def test_inputs_become_constants_where_they_are_few(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "s"), helper.make_node("Add", ["s", "s"], ["d"], "d"),
        helper.make_node("Relu", ["x"], ["r"], "r"), helper.make_node("Reshape", ["r", "d"], ["y"], "bad"),
    ]  # fmt: skip
    model = failing.make(nodes, inputs={"x": (TensorProto.FLOAT, ["n"])})
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", feeds={"x": np.ones(64, np.float32)})
    proto = onnx.load(found.files[0])
    assert found.nodes == ("bad",)
    assert [info.name for info in proto.graph.input] == ["r"]
    assert numpy_helper.to_array(proto.graph.initializer[0]).tolist() == [128]
    assert found.elements == (65, 1)
    _shows(found)
