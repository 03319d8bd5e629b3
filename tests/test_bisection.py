"""Bisection: the injected fault is named, a clean model is not accused, and memory stays bounded."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import Case, cases, named
from corpus import fetch
from injections import FAULTS, Injected, inject
from onnx import TensorProto, helper, numpy_helper

from onnxbench import backends, captures
from onnxbench.bisection import Bisection, bisect, parse_place
from onnxbench.bisection._finding import Finding
from onnxbench.bisection._measures import Distance, measure
from onnxbench.drift import Tolerance
from onnxbench.errors import BenchError, FeedsError, OutputError, UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.graph import GraphIndex, node_bodies
from onnxbench.inlining import inline_functions
from onnxbench.model import from_proto, load
from onnxbench.parts import Parts
from onnxbench.precision import convert

Corpus = Callable[[str], tuple[Path, Any]]
ONE = "ort:none,threads=1"


# ---------------------------------------------------------------- measures


def test_measure_sees_what_a_single_number_hides() -> None:
    base = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    assert measure(base, base.copy()).equal
    one = base.copy()
    one[3, 5] += 0.5
    assert measure(base, one).at == (3, 5)
    masked, other = base.copy(), base.copy()
    masked[0] = other[0] = -3.0e38
    other[5] += 1
    found = measure(masked, other)
    assert found.rel < 1e-30  # the mask drowns everything
    assert found.peak > 0.1
    assert measure(masked, masked * np.float32(1)).equal


def test_measure_judges_kind_before_numbers() -> None:
    base = np.ones((2, 3), np.float32)
    bad = base.copy()
    bad[1, 1] = np.nan
    assert (measure(base, bad).problem, measure(base, bad).at) == ("nonfinite", (1, 1))
    assert measure(bad, bad.copy()).equal
    assert measure(bad, np.where(np.isnan(bad), bad, bad + 1)).problem == ""
    assert measure(base, base.T).problem == "shape"
    assert measure(base, [base]).problem == "kind"
    infinite = np.array([np.inf, 1], np.float32)
    assert measure(infinite, -infinite).problem == "nonfinite"
    assert measure(infinite, infinite.copy()).equal


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint8", "bool", "complex64"])
def test_measure_takes_every_kind_of_number(dtype: str) -> None:
    base = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    other = base.copy()
    other[2, 3] = 1 - other[2, 3] if dtype != "bool" else not other[2, 3]
    found = measure(base, other)
    assert found.max_abs == 1
    assert 0 < found.rel < 1
    assert measure(np.array(["a", "b"], object), np.array(["a", "c"], object)).rel == 0.5


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "complex64"])
@pytest.mark.parametrize("size", [1, 7, 1000, 300_001])
@pytest.mark.parametrize("atol", [0.0, 1e-5, 1e-2])
def test_distances_are_what_their_definitions_say(dtype: str, size: int, atol: float) -> None:
    random = np.random.default_rng(size)
    wide = np.where(random.random(size) < 0.3, 0, random.normal(scale=10, size=size))
    off = np.where(
        random.random(size) < 0.2, random.normal(scale=0.05, size=size), random.normal(scale=1e-4, size=size)
    )
    scale = 20 if dtype.startswith("int") else 1
    one, other = (wide.astype(dtype), (wide + scale * off).astype(dtype))
    found = measure(one, other, Tolerance(atol, 1e-3))
    e, a = (each.astype(complex).view(float).reshape(-1) for each in (one, other))
    if dtype != "complex64":
        e, a = e[::2], a[::2]
    difference = np.abs(a - e)
    at = int(difference.argmax())
    assert found.equal == (not difference.any())
    assert found.max_abs == pytest.approx(difference[at], rel=1e-6)
    assert found.at == ((at // 2 if dtype == "complex64" else at,) if difference.any() else ())
    assert found.failing == pytest.approx(np.count_nonzero(difference > atol + 1e-3 * np.abs(e)), abs=2)
    if e.any():
        assert found.rel == pytest.approx(np.linalg.norm(a - e) / np.linalg.norm(e), rel=1e-5)
    if size >= 1000:  # the typical size is that of a sample
        typical = np.median(np.abs(one.astype(complex))[one != 0])
        assert found.peak == pytest.approx((difference / (np.abs(e) + typical)).max(), rel=0.15)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("name", ["attacut_sc", "eeg_seizure_lstm", "ppocr_v2_cls", "nakdimon_loop"])
def test_a_run_in_parts_gives_the_same_bits(name: str, corpus: Corpus) -> None:
    path, entry = corpus(name)
    model = load(path)
    feeds = fetch.seeded_feeds(path, entry)
    parts = Parts(model, "ort", backends.Options(threads=1))
    names = parts.in_order(name for names in parts.scope.writes for name in names if name in parts.varying)
    whole = backends.run_with_outputs(model, feeds, names, options=backends.Options("none", threads=1))
    size = max(1, len(names) // 7)
    found: dict[str, Any] = {}
    for values in parts.stream(feeds, [names[at : at + size] for at in range(0, len(names), size)]):
        found.update(values)
    assert list(found) == names
    for tensor in names:
        if isinstance(whole[tensor], np.ndarray):
            np.testing.assert_array_equal(whole[tensor], found[tensor])


def test_a_stream_gives_what_a_run_gives_and_unpacked_weights_change_the_rounding(corpus: Corpus) -> None:
    path, entry = corpus("attacut_sc")
    feeds = fetch.seeded_feeds(path, entry)
    parts = Parts(load(path), "ort", backends.Options(threads=1))
    names = parts.in_order(name for names in parts.scope.writes for name in names if name in parts.varying)
    nodes = range(len(parts.scope.nodes))
    packed, unpacked = (parts.run(nodes, feeds, names, unpacked=each) for each in (False, True))
    (streamed,) = parts.stream(feeds, [names])
    for name in names:
        np.testing.assert_array_equal(streamed[name], packed[name])
        apart = measure(packed[name], unpacked[name])
        assert not apart.problem
        assert apart.rel < 1e-5


def test_an_error_that_neither_the_node_nor_its_inputs_explain_is_looked_at_again() -> None:
    small, large = (Distance(rel=rel, dtypes=("float32", "float32")) for rel in (1e-6, 1e-2))
    finding = Finding("y", "y", 0, (0,), ("x",), total=large, own=small, before=small, precision=2.0**-23)
    assert finding.is_unexplained
    assert not replace(finding, before=large).is_unexplained
    assert not replace(finding, total=small, before=None).is_unexplained
    assert replace(finding, total=Distance("nonfinite")).is_unexplained


def test_parts_read_given_values_in_place_of_what_is_made() -> None:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Sub", ["b", "a"], ["y"]),
    ]
    parts = Parts(_model(nodes), "ort", backends.Options())
    ten = np.full((2,), 10, np.float32)
    made = parts.run([0, 1, 2], {"x": ten / 10, "a": ten, "b": ten}, ["a", "b", "y"])
    assert [made[name].tolist() for name in ("a", "b", "y")] == [[2, 2], [100, 100], [0, 0]]


# ---------------------------------------------------------------- clean models


@cases(lambda case: case.engine == "ort" and case.name not in ("no_nodes_initializer.onnx", "no_nodes_input.onnx"))
def test_no_fixture_is_accused(case: Case) -> None:
    if case.name == "sequence_io.onnx":
        with pytest.raises(UnsupportedError, match="no tensor of the suspect"):
            bisect(case.path, on="ort:all", feeds=case.feeds())
        return
    found = bisect(case.path, on="ort:all", feeds=case.feeds())
    assert found.culprits == ()
    assert found.passed == (case.name != "makes_inf_then_nan.onnx")  # its outputs are NaN: nothing can be told


@pytest.mark.parametrize(
    "name", ["attacut_sc", "eeg_seizure_lstm", "magika", "ppocr_v2_cls", "minilm_int8w", "swift_f0"]
)
@pytest.mark.parametrize("on", ["ort:all,threads=1", "ort:extended", "ort:none,threads=2"])
def test_no_real_model_is_accused(name: str, on: str, corpus: Corpus) -> None:
    path, entry = corpus(name)
    found = bisect(path, on=on, reference_on=ONE, feeds=fetch.seeded_feeds(path, entry))
    assert found.culprits == ()
    assert found.passed
    assert not found.unjudged


# ---------------------------------------------------------------- faults


def _inject(corpus: Corpus, name: str, kinds: tuple[str, ...], seed: int) -> tuple[Path, Injected, dict[str, Any]]:
    path, entry = corpus(name)
    feeds = fetch.seeded_feeds(path, entry)
    injected = inject(onnx.load(path), kinds, feeds, seed)
    assert injected is not None
    return path, injected, feeds


def _names(found: Bisection, injected: Injected) -> None:
    makers = {node.name: set(node.output) for node in injected.model.graph.node if node.name}
    wanted = list(injected.truths)
    for culprit in found.culprits[: len(wanted)]:
        assert any(culprit.tensor in truth for truth in wanted), (injected.words, culprit)
        hit = next(truth for truth in wanted if culprit.tensor in truth)
        assert makers.get(culprit.node, {culprit.tensor}) & hit
        wanted.remove(hit)
    assert not wanted, (injected.words, found.verdict)
    assert len(found.culprits) == len(injected.truths)
    assert not found.passed


_SINGLE = [
    ("attacut_sc", "perturbed weight"), ("attacut_sc", "bad cast"), ("attacut_sc", "swapped axes"),
    ("eeg_seizure_lstm", "one weight"), ("ppocr_v2_cls", "shifted pad"), ("eeg_seizure_lstm", "half overflow"),
    ("ppocr_v2_cls", "truncated constant"), ("ppocr_v2_cls", "wrong epsilon"), ("ppocr_v2_cls", "nan branch"),
    ("minilm_int8w", "gelu by tanh"), ("minilm_int8w", "swapped operator"), ("magika", "bad cast"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), _SINGLE)
def test_the_node_with_a_fault_is_named(name: str, kind: str, corpus: Corpus) -> None:
    path, injected, feeds = _inject(corpus, name, (kind,), 0)
    found = bisect(from_proto(injected.model), against=path, on=ONE, reference_on=ONE, feeds=feeds)
    _names(found, injected)
    assert found.kind == "drift"
    assert found.culprits[0].effect is None or found.culprits[0].effect > 0.9


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("attacut_sc", ("perturbed weight", "swapped operator")),
        ("eeg_seizure_lstm", ("one weight", "bad cast")),
        ("ppocr_v2_cls", ("truncated constant", "shifted pad")),
    ],
)
def test_two_faults_are_both_named(name: str, kinds: tuple[str, ...], corpus: Corpus) -> None:
    path, injected, feeds = _inject(corpus, name, kinds, 0)
    found = bisect(from_proto(injected.model), against=path, on=ONE, reference_on=ONE, feeds=feeds)
    _names(found, injected)
    assert found.explained is None or found.explained > 0.99


def test_constants_that_are_right_are_not_named_with_their_node() -> None:
    """They are values that the reference has as well, though a node makes them."""

    def build(size: float, value: float) -> Any:
        held = numpy_helper.from_array(np.full((8, 8), value, np.float32))
        constant = helper.make_node("Constant", [], ["c"], value=held)
        return _model([constant, helper.make_node("Gemm", ["x", "c"], ["y"], alpha=size)], shape=(2, 8))

    feeds = {"x": np.linspace(-4, 4, 16, dtype=np.float32).reshape(2, 8)}
    (culprit,) = bisect(build(1.0, 2.0), against=build(0.5, 2.0), feeds=feeds).culprits
    assert (culprit.op_type, culprit.region) == ("Gemm", (culprit.node,))
    (culprit,) = bisect(build(1.0, 3.0), against=build(1.0, 2.0), feeds=feeds).culprits
    assert culprit.op_type == "Constant"


def test_every_kind_of_fault_is_tried() -> None:
    assert set(FAULTS) >= {kind for _, kind in _SINGLE}


def test_little_memory_finds_the_same(corpus: Corpus) -> None:
    path, injected, feeds = _inject(corpus, "ppocr_v2_cls", ("truncated constant",), 1)
    suspect = from_proto(injected.model)
    runs = [
        bisect(suspect, against=path, on=ONE, reference_on=ONE, feeds=feeds, memory=size, evidence=True)
        for size in (1 << 30, 32 << 20)
    ]
    rows = [[(row.tensor, row.total, row.own, row.excess) for row in run.tensors] for run in runs]
    assert rows[0] == rows[1]
    _names(runs[1], injected)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("ppocr_v2_cls", ("truncated constant",)),
        ("minilm_int8w", ("gelu by tanh",)),
        ("attacut_sc", ("perturbed weight", "swapped operator")),
    ],
)
@pytest.mark.parametrize("on", [ONE, "ort:basic,threads=1"])
def test_what_is_settled_is_right_when_it_is_measured(
    name: str, kinds: tuple[str, ...], on: str, corpus: Corpus
) -> None:
    path, injected, feeds = _inject(corpus, name, kinds, 0)
    suspect = from_proto(injected.model)
    quick, whole = (
        bisect(suspect, against=path, on=on, reference_on=ONE, feeds=feeds, evidence=evidence)
        for evidence in (False, True)
    )
    assert [culprit.tensor for culprit in quick.culprits] == [culprit.tensor for culprit in whole.culprits]
    effects = [[culprit.effect for culprit in found.culprits] for found in (quick, whole)]
    assert effects[0] == pytest.approx(effects[1], abs=1e-3)
    settled = [row.tensor for row in quick.tensors if row.settled]
    measured = {row.tensor: row for row in whole.tensors}
    assert settled or len(kinds) > 1
    assert not any(row.settled for row in whole.tensors)
    assert all(measured[name].excess <= 1 for name in settled)


_PEAK = """
import sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnxbench.bisection import bisect
from onnxbench.model import from_proto

def build(factor):
    nodes, weights = [], []
    for at in range(16):
        last, far = f"t{at - 1}" if at else "x", f"t{at - 4}" if at > 3 else "x"
        weights.append(numpy_helper.from_array(np.array([factor if at == 9 else 1.1], np.float32), f"w{at}"))
        nodes += [
            helper.make_node("Mul", [last, f"w{at}"], [f"m{at}"]),
            helper.make_node("Sigmoid", [f"m{at}"], [f"s{at}"]),
            helper.make_node("Add", [f"s{at}", far], [f"t{at}"]),
        ]
    nodes.append(helper.make_node("ReduceMean", ["t15"], ["y"], axes=[1]))
    x, y = (helper.make_tensor_value_info(*each) for each in (("x", TensorProto.FLOAT, [1, "n"]), ("y", 1, None)))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

def search(size):
    feeds = {"x": np.ones((1, size), np.float32)}
    return bisect(build(1.4), against=build(1.1), feeds=feeds, memory=int(sys.argv[1]), on="ort:none,threads=1",
                  reference_on="ort:none,threads=1")

def said(word):
    return int(Path("/proc/self/status").read_text().split(word)[1].split()[0]) * 1024

search(10)
Path("/proc/self/clear_refs").write_text("5")
before = said("VmRSS:")
found = search(2_000_000)
print(found.culprits[0].tensor, said("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_search_stays_within_the_memory_that_it_was_given() -> None:
    """All tensors of both sides take 750 MiB; what is in use at once is 125 MiB, if glibc returns what is freed."""
    limit = 200 << 20
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(limit)], capture_output=True, text=True, check=True, timeout=120
    )
    tensor, grown = done.stdout.split()
    assert tensor == "m9"
    assert int(grown) <= limit


def test_too_little_memory_for_one_node_is_refused(corpus: Corpus) -> None:
    path, injected, feeds = _inject(corpus, "ppocr_v2_cls", ("truncated constant",), 1)
    with pytest.raises(
        UsageError, match=r"a memory of 64 KiB is too little for .* alone .*, it takes .* MiB"
    ) as caught:
        bisect(from_proto(injected.model), against=path, feeds=feeds, memory=1 << 16)
    least = caught.value.message.split()[-2]
    assert caught.value.hint == f"Give {least} MiB or more, or smaller inputs (--shape)."
    size = int(float(least) * (1 << 20))
    _names(
        bisect(from_proto(injected.model), against=path, on=ONE, reference_on=ONE, feeds=feeds, memory=size), injected
    )


def test_shifted_names_are_matched_by_structure(corpus: Corpus) -> None:
    path, injected, feeds = _inject(corpus, "attacut_sc", ("perturbed weight",), 0)
    suspect = injected.model
    made = [name for node in suspect.graph.node for name in node.output]
    outputs = {info.name for info in suspect.graph.output}
    inner = [name for name in made if name not in outputs]
    shifted = dict(zip(inner, [*inner[1:], "one_more"], strict=True))  # as exporters do that number tensors
    for node in suspect.graph.node:
        node.input[:] = [shifted.get(name, name) for name in node.input]
        node.output[:] = [shifted.get(name, name) for name in node.output]
    del suspect.graph.value_info[:]
    found = bisect(from_proto(suspect), against=path, on=ONE, reference_on=ONE, feeds=feeds)
    assert found.how == "structure"
    (truth,) = injected.truths
    assert [culprit.tensor for culprit in found.culprits] == [shifted.get(name, name) for name in truth]


def test_a_fault_shows_on_the_optimized_graph_too(corpus: Corpus) -> None:
    path, injected, feeds = _inject(corpus, "minilm_int8w", ("wrong epsilon",), 0)
    found = bisect(from_proto(injected.model), against=path, on="ort:all,threads=1", reference_on=ONE, feeds=feeds)
    assert [culprit.tensor for culprit in found.culprits] == list(injected.truths[0])
    assert found.culprits[0].op_type == "com.microsoft::SkipLayerNormalization"
    assert len(found.culprits[0].reference_region) > 1


def test_fusions_are_kept_while_tensors_are_looked_at(corpus: Corpus, tmp_path: Path) -> None:
    path, injected, feeds = _inject(corpus, "eeg_seizure_lstm", ("one weight",), 0)
    suspect = from_proto(injected.model)
    found = bisect(suspect, against=path, keep_fusions=True, on="ort,threads=1", reference_on=ONE, feeds=feeds)
    optimized = backends.optimized_graph(suspect, backends.Options(threads=1), tmp_path)
    made = {name: node.op_type for node in optimized.proto.graph.node for name in node.output}
    assert {row.tensor for row in found.tensors} <= made.keys()
    assert len(found.tensors) < len(injected.model.graph.node)
    assert any(node.domain.startswith("com.microsoft") for node in optimized.proto.graph.node)
    assert {row.tensor: row.op_type.rpartition("::")[2] for row in found.tensors}.items() <= made.items()
    assert [culprit.tensor in made for culprit in found.culprits] == [True]
    assert (
        "fusions are as in use: the graph that was searched gives the outputs of the model, bit for bit" in found.notes
    )
    used = backends.open_session(suspect, options=backends.Options(threads=1)).run(feeds)
    right = backends.open_session(load(path), options=backends.Options("none", threads=1)).run(feeds)
    for drift in found.outputs:  # the verdict is on the model itself
        assert drift.max_abs == float(np.abs(used[drift.name] - right[drift.name]).max())
    for place in ("reference", "ort:none"):
        with pytest.raises(UsageError, match="no fusions to keep"):
            bisect(suspect, against=path, keep_fusions=True, on=place)


def test_the_worst_of_several_sets_is_told() -> None:
    weights = {"w": np.eye(4, dtype=np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    wrong = [nodes[0], helper.make_node("Clip", ["m", "", "top"], ["y"])]
    right = _model(nodes, weights, shape=(1, 4))
    suspect = _model(wrong, {**weights, "top": np.array(2, np.float32)}, shape=(1, 4))
    found = bisect(suspect, against=right, feeds=FeedOptions(ranges=["[0,2.5]"], iterations=6))
    assert [culprit.tensor for culprit in found.culprits] == ["y"]
    assert found.sets == 6


def test_an_amplifier_is_not_accused() -> None:
    """(m - m by another way) * 1e6 blows up what a slightly wrong weight does before it."""
    weights = {"w": np.eye(8, dtype=np.float32), "big": np.array(1e4, np.float32), "c": np.array(1.0, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Sub", ["m", "c"], ["small"]),
        helper.make_node("Mul", ["small", "big"], ["y"]),
    ]
    feeds = {"x": (1 + 1e-4 * np.random.default_rng(0).standard_normal((2, 8))).astype(np.float32)}
    right = _model(nodes, weights, shape=(2, 8))
    off = {**weights, "w": weights["w"] * np.float32(1 + 3e-5)}
    found = bisect(_model(nodes, off, shape=(2, 8)), against=right, feeds=feeds)
    assert [culprit.tensor for culprit in found.culprits] == ["m"]
    assert [entry.tensor for entry in found.amplifiers] == ["small"]
    assert found.culprits[0].why[0].startswith("weight w")


def test_a_constant_that_differs_is_named_itself() -> None:
    def build(value: float) -> Any:
        constant = helper.make_node(
            "Constant", [], ["c"], value=numpy_helper.from_array(np.full((4,), value, np.float32))
        )
        nodes = [constant, helper.make_node("Mul", ["x", "c"], ["m"]), helper.make_node("Add", ["m", "c"], ["y"])]
        return _model(nodes, shape=(4,))

    found = bisect(build(0.3), against=build(0.3125), feeds={"x": np.ones(4, np.float32)})
    assert [culprit.tensor for culprit in found.culprits] == ["c"]


def test_half_precision_is_spread_and_an_overflow_in_it_is_not(corpus: Corpus) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["m0"])]
    weights = {"w0": np.random.default_rng(9).standard_normal((8, 8)).astype(np.float32)}
    for at in range(1, 16):
        weights[f"w{at}"] = np.random.default_rng(at).standard_normal((8, 8)).astype(np.float32) / 3
        nodes.append(helper.make_node("MatMul", [f"m{at - 1}", f"w{at}"], [f"m{at}"]))
    nodes += [helper.make_node("Mul", ["m15", "scale"], ["big"]), helper.make_node("Mul", ["big", "down"], ["y"])]
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)}
    for scale, culprits in ((1.0, []), (3e5, ["big"])):
        given = {**weights, "scale": np.array(scale, np.float32), "down": np.array(1 / scale, np.float32)}
        halves = {name: value.astype(np.float16) for name, value in given.items() if name != "scale"}
        suspect = _model(
            nodes, {**halves, "scale": np.float16(min(scale, 6e4))}, shape=(4, 8), dtype=TensorProto.FLOAT16
        )
        if culprits:
            given["scale"] = np.array(6e4, np.float32)
            given["down"] = np.array(1 / 6e4, np.float32)
        found = bisect(suspect, against=_model(nodes, given, shape=(4, 8)), feeds=_as_half(feeds))
        assert [culprit.tensor for culprit in found.culprits] == culprits, found.verdict


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_a_cast_back_to_single_precision_is_not_blamed_for_the_rounding_before_it(scale: float) -> None:
    """The reference has no Casts: what stands behind one is fed the reference's values, rounded to half precision."""
    nodes = [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    nodes += [helper.make_node("Mul", ["b", "b"], ["c"]), helper.make_node("Mul", ["c", "factor"], ["y"])]
    reference = _model(nodes, {"factor": np.array(-1.0, np.float32)}, shape=(2, 8))
    mixed = convert(reference, to="fp16", keep=[next(GraphIndex(reference.proto).nodes())]).model
    for tensor in mixed.proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.array(-scale, np.float16), tensor.name))
    found = bisect(mixed, against=reference, feeds={"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)})
    assert [culprit.tensor for culprit in found.culprits] == (["y"] if scale != 1.0 else []), found.verdict


@pytest.mark.parametrize(
    ("name", "culprits"),
    [("eeg_seizure_lstm", []), ("magika", ["jax2tf_get_logits_/pjit_get_logits_/MagikaV2/LayerNorm_1/Sum_1"])],
)
def test_a_half_precision_twin_is_accused_of_overflow_alone(name: str, culprits: list[str], corpus: Corpus) -> None:
    """The sum of squares in magika's last LayerNorm is beyond 65504: a real fault of its float16 form."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path, entry = corpus(name)
    twin = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    found = bisect(from_proto(twin), against=path, feeds=fetch.seeded_feeds(path, entry))
    assert [culprit.node for culprit in found.culprits] == culprits
    assert found.passed == (not culprits)


def test_nan_on_both_sides_is_told() -> None:
    head = [helper.make_node("Sub", ["x", "x"], ["z"]), helper.make_node("Div", ["z", "z"], ["q"])]
    sides = [_model([*head, helper.make_node(op, ["q"], ["y"])], shape=(2, 8)) for op in ("Softmax", "LogSoftmax")]
    found = bisect(sides[0], against=sides[1], feeds={"x": np.ones((2, 8), np.float32)})
    assert any("'y' is NaN on both sides in 16 of 16 elements" in note for note in found.notes)
    assert found.verdict == "nothing can be told of the outputs: they are NaN throughout on both sides"
    assert not found.passed


def test_a_number_that_a_type_cannot_hold_may_be_its_largest() -> None:
    mask = np.array([-3e38, 1.0], np.float32)
    assert not measure(mask, np.array([-65504, 1], np.float16)).rel
    assert measure(mask, np.array([-np.inf, 1], np.float16)).problem == "nonfinite"
    assert measure(np.array([-np.inf], np.float32), np.array([-np.inf], np.float16)).problem == ""


def _as_half(feeds: dict[str, Any]) -> dict[str, Any]:
    return {name: value.astype(np.float16) for name, value in feeds.items()}


def _break_bodies(model: onnx.ModelProto, operators: dict[str, str]) -> list[str]:
    """Swaps operators within bodies only, and returns the names of the nodes."""
    pending, names = [body for node in model.graph.node for _, body in node_bodies(node)], []
    while pending:
        graph = pending.pop()
        for node in graph.node:
            pending += [body for _, body in node_bodies(node)]
            if node.op_type in operators:
                node.op_type = operators[node.op_type]
                names.append(node.name)
    return names


@pytest.mark.parametrize(
    ("name", "operators", "path"),
    [
        ("silero_vad", {"Sigmoid": "HardSigmoid"}, "If_0/then/"),
        ("silero_vad_ifless", {"Relu": "LeakyRelu"}, "node_cond__1/then/"),
        ("nakdimon_loop", {"Tanh": "Softsign"}, "model/bidirectional"),
    ],
)
def test_culprits_in_bodies_are_named_by_their_paths(
    name: str, operators: dict[str, str], path: str, corpus: Corpus
) -> None:
    file, entry = corpus(name)
    feeds = fetch.seeded_feeds(file, entry)
    suspect = onnx.load(file)
    broken = _break_bodies(suspect, operators)
    found = bisect(from_proto(suspect), against=file, on=ONE, reference_on=ONE, feeds=feeds)
    assert not found.passed
    inner = [each for culprit in found.culprits for each in culprit.inner]
    assert inner
    for culprit in inner:
        assert culprit.node.startswith(path)
        assert culprit.op_type in operators.values()
        assert any(culprit.node.endswith(f"/{label}") for label in broken if label)
    assert inner[0].node in found.verdict
    if name == "nakdimon_loop":
        assert found.culprits[0].iteration == 0


def test_the_first_bad_iteration_is_named() -> None:
    """A loop that adds 1 each time, and from its fourth iteration on 2 in the suspect."""

    def build(limit: float) -> Any:
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["going"], ["goes"]),
                helper.make_node("Cast", ["trip"], ["count"], to=TensorProto.FLOAT),
                helper.make_node("Sub", ["count", "limit"], ["beyond"]),
                helper.make_node("Sign", ["beyond"], ["sign"]),
                helper.make_node("Relu", ["sign"], ["extra"]),
                helper.make_node("Add", ["extra", "one"], ["step"]),
                helper.make_node("Add", ["state", "step"], ["next"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("trip", TensorProto.INT64, []),
                helper.make_tensor_value_info("going", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, [2]),
            ],
            [
                helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, [2]),
            ],
        )
        weights = {"n": np.array(6), "limit": np.array(limit, np.float32), "one": np.array(1, np.float32)}
        return _model([helper.make_node("Loop", ["n", "", "x"], ["y"], "loop", body=body)], weights)

    found = bisect(build(2.5), against=build(99), feeds={"x": np.zeros(2, np.float32)})
    (culprit,) = found.culprits
    assert culprit.iteration == 3
    assert [each.tensor for each in culprit.inner] == ["beyond"]
    assert found.verdict.startswith("drift starts at loop/body/Sub#2")


def _scan(*, backward: bool, limit: float) -> Any:
    """A running sum along axis 1, whose steps count double where the input is beyond a limit."""
    body = helper.make_graph(
        [
            helper.make_node("Sub", ["slice", "limit"], ["beyond"]),
            helper.make_node("Relu", ["beyond"], ["extra"]),
            helper.make_node("Add", ["slice", "extra"], ["step"]),
            helper.make_node("Add", ["state", "step"], ["next"]),
            helper.make_node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("state", "slice")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("next", "seen")],
    )
    scan = helper.make_node(
        "Scan", ["start", "x"], ["last", "y"], "scan", body=body, num_scan_inputs=1, scan_input_axes=[1],
        scan_input_directions=[int(backward)],
    )  # fmt: skip
    weights = {"start": np.zeros(2, np.float32), "limit": np.array(limit, np.float32)}
    return _model([helper.make_node("Relu", ["x"], ["unused"]), scan], weights, shape=(2, 6))


@pytest.mark.parametrize(("backward", "iteration"), [(False, 4), (True, 1)])
def test_scan_bodies_are_looked_into(backward: bool, iteration: int) -> None:
    """The fifth column is the first beyond the suspect's limit, from the front; from the back it is the second."""
    sides = [_scan(backward=backward, limit=limit) for limit in (3.5, 99)]
    feeds = {"x": np.tile(np.array([0, 1, 2, 3, 4, 1], np.float32), (2, 1))}
    found = bisect(sides[0], against=sides[1], feeds=feeds)
    (culprit,) = found.culprits
    assert (culprit.op_type, culprit.iteration) == ("Scan", iteration)
    assert [each.node for each in culprit.inner] == ["scan/body/Sub#0"]
    assert found.verdict.startswith("drift starts at scan/body/Sub")


@pytest.mark.parametrize("name", ["scan_forward", "scan_directions"])
def test_scans_of_the_fixtures_are_looked_into(name: str) -> None:
    case = named(name)
    broken = onnx.load(case.path)
    body = next(body for node in broken.graph.node if node.op_type == "Scan" for _, body in node_bodies(node))
    node = next(node for node in body.node if node.op_type in ("Add", "Mul"))
    node.op_type = "Sub"
    found = bisect(from_proto(broken), against=case.path, feeds=case.feeds())
    (culprit,) = found.culprits
    assert culprit.iteration == 0
    assert [each.op_type for each in culprit.inner] == ["Sub"]


def test_functions_are_looked_into() -> None:
    case = named("function_nested")
    model = inline_functions(load(case.path))[0]
    broken = onnx.load(case.path)
    tensor = next((t for t in broken.graph.initializer if t.data_type == TensorProto.FLOAT), None)
    found = bisect(case.path, against=model, feeds=case.feeds())
    assert found.passed
    if tensor is not None:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values * 1.01).astype(np.float32), tensor.name))
        assert not bisect(from_proto(broken), against=case.path, feeds=case.feeds()).passed


# ---------------------------------------------------------------- recorded values, files, command


@pytest.fixture
def broken(tmp_path: Path, corpus: Corpus) -> tuple[Path, Path, Path, Injected]:
    """A suspect, its reference, inputs, and the truth."""
    path, injected, feeds = _inject(corpus, "attacut_sc", ("perturbed weight",), 0)
    onnx.save(injected.model, tmp_path / "suspect.onnx")
    captures.save(tmp_path / "feeds.npz", feeds)
    return tmp_path / "suspect.onnx", path, tmp_path / "feeds.npz", injected


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", "bisect", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_recorded_values_serve_as_the_reference(broken: Any, tmp_path: Path) -> None:
    suspect, reference, feeds, injected = broken
    golden = tmp_path / "golden.npz"
    inputs = dict(captures.Capture(feeds))
    parts = Parts(load(reference), "ort", backends.Options(threads=1))
    names = [name for names in parts.scope.writes for name in names]
    captures.save(golden, next(parts.stream(inputs, [names])))
    found = bisect(suspect, recorded=[str(golden)], on=ONE, feeds=FeedOptions([str(feeds)]))
    assert {culprit.tensor for culprit in found.culprits} <= set.union(*map(set, injected.truths))
    assert found.culprits
    captures.save(golden, {**inputs, **next(parts.stream(inputs, [names]))})  # inputs may be recorded too
    assert bisect(suspect, recorded=[str(golden)], on=ONE).verdict == found.verdict
    assert bisect(reference, recorded=[str(golden)], on=ONE).passed
    with pytest.raises(FeedsError, match="2 sets of inputs are asked for, and the values of 1 set are recorded"):
        bisect(reference, recorded=[str(golden)], on=ONE, feeds=FeedOptions(iterations=2))


def test_recorded_outputs_alone_tell_of_drift(broken: Any, tmp_path: Path) -> None:
    suspect, reference, feeds, _ = broken
    golden = tmp_path / "golden.npz"
    values = backends.open_session(load(reference), options=backends.Options("none")).run(dict(captures.Capture(feeds)))
    captures.save(golden, values)
    found = bisect(suspect, recorded=[str(golden)], feeds=FeedOptions([str(feeds)]))
    assert not found.passed
    assert len(found.culprits[0].region) > 5


def test_the_command_tells_and_writes_a_repro(broken: Any, tmp_path: Path) -> None:
    suspect, reference, feeds, injected = broken
    repro = tmp_path / "repro"
    done = _run(suspect, "--against", reference, "--feeds", feeds, "--repro", repro)
    assert done.returncode == 1, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("drift starts at ")
    assert "differs here: weight" in done.stdout
    script = subprocess.run([sys.executable, repro / "reproduce.py"], capture_output=True, text=True, check=False)
    assert script.returncode == 1, script.stderr
    assert "the failure shows" in script.stdout
    onnx.checker.check_model(str(repro / "culprit.onnx"), full_check=True)
    again = _run(suspect, "--against", reference, "--feeds", feeds, "--repro", repro)
    assert again.returncode == 7
    assert injected.truths


def _holds_nothing_of(folder: Path, model: onnx.ModelProto) -> None:
    """Checks that no name and no weight of a model is in any file of a folder."""
    names = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    words = {name.encode() for name in names - {"input", "output"} if len(name) > 4}
    weights = [t for t in model.graph.initializer if np.prod(t.dims) > 8]
    words |= {numpy_helper.to_array(t).tobytes()[:64] for t in weights}
    for file in folder.iterdir():
        contents = [file.read_bytes()] if file.suffix != ".npz" else [v.tobytes() for v in np.load(file).values()]
        assert not [word for word in words for content in contents if word in content], file


def test_an_anonymous_repro_holds_nothing_of_the_model(broken: Any, tmp_path: Path) -> None:
    suspect, reference, feeds, injected = broken
    repro = tmp_path / "repro"
    done = _run(suspect, "--against", reference, "--feeds", feeds, "--repro", repro, "--anonymize")
    assert done.returncode == 1, done.stderr
    _holds_nothing_of(repro, injected.model)
    script = subprocess.run([sys.executable, repro / "reproduce.py"], capture_output=True, text=True, check=False)
    assert (script.returncode, "the failure shows" in script.stdout) == (1, True), script.stderr
    assert "suspect.onnx" not in (repro / "reproduce.py").read_text(encoding="utf-8")
    onnx.checker.check_model(str(repro / "culprit.onnx"), full_check=True)
    alone = _run(suspect, "--against", reference, "--anonymize")
    assert (alone.returncode, "--repro" in alone.stderr) == (2, True)


def test_an_overflow_shows_with_other_numbers_too() -> None:
    """A product that float16 cannot hold: random numbers of the same spread are too small, stretched ones are not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16)).astype(np.float32)
    x[2, 3] = 300.0
    weight = (250 + rng.standard_normal(16)).astype(np.float32)
    right = [helper.make_node("Mul", ["x", "secret"], ["y"])]
    wrong = [
        helper.make_node("Mul", ["x", "secret"], ["product"]),
        helper.make_node("Cast", ["product"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT),
    ]
    suspect = _model(wrong, {"secret": weight}, shape=(4, 16))
    with tempfile.TemporaryDirectory() as folder:
        found = bisect(
            suspect,
            against=_model(right, {"secret": weight}, shape=(4, 16)),
            feeds={"x": x},
            repro=folder,
            anonymize=True,
        )
        assert found.culprits[0].own.problem == "nonfinite"
        _holds_nothing_of(Path(folder), suspect.proto)
        assert (
            subprocess.run([sys.executable, Path(folder) / "reproduce.py"], check=False, capture_output=True).returncode
            == 1
        )


def test_an_anonymous_repro_is_refused_where_it_would_show_nothing(tmp_path: Path) -> None:
    """A row of a table that only one index reaches; and recorded values, which nobody can compute anew."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1000, 16)).astype(np.float32)
    off = table.copy()
    off[7] += 1
    ids = np.full((2, 16), 7)
    ids[0, 0], ids[0, 1] = 100, 900
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    sides = [_model(nodes, {"table": each}, shape=(2, 16), dtype=TensorProto.INT64) for each in (off, table)]
    for side in sides:
        side.proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    repro = tmp_path / "repro"
    found = bisect(sides[0], against=sides[1], feeds={"x": ids}, repro=repro, anonymize=True)
    assert any("in random order" in note for note in found.notes)  # drawn indices do not reach the row
    right = {"x": ids, "y": table[ids]}
    with pytest.raises(UnsupportedError, match="cannot be computed anew"):
        bisect(sides[0], recorded=right, repro=tmp_path / "other", anonymize=True)
    assert not (tmp_path / "other").exists()
    apart = _model(
        [helper.make_node("Add", ["table", "table"], ["wide"]), helper.make_node("Gather", ["wide", "x"], ["y"])],
        {"table": off},
        shape=(2, 16),
        dtype=TensorProto.INT64,
    )
    halves = _model(
        [helper.make_node("Gather", ["whole", "x"], ["y"])],
        {"whole": 2 * table},
        shape=(2, 16),
        dtype=TensorProto.INT64,
    )
    for side in (apart, halves):
        side.proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(UnsupportedError, match="is not in the reference"):
        bisect(apart, against=halves, feeds={"x": ids}, repro=tmp_path / "other", anonymize=True)
    assert not (tmp_path / "other").exists()


def test_the_command_passes_a_clean_model(broken: Any) -> None:
    _, reference, feeds, _ = broken
    done = _run(reference, "--feeds", feeds, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema_version"] >= 1
    assert (said["result"]["kind"], said["result"]["culprits"]) == ("clean", [])
    assert all(row["own"] is not None for row in said["result"]["tensors"])


def test_rounding_is_drift_only_where_a_tolerance_says_so(corpus: Corpus) -> None:
    path, entry = corpus("minilm_int8w")
    feeds = fetch.seeded_feeds(path, entry)
    assert bisect(path, on="ort:all", feeds=feeds).passed
    strict = bisect(path, on="ort:all", feeds=feeds, atol=1e-12)
    assert (strict.kind, strict.passed, strict.culprits) == ("rounding", False, ())


def test_an_output_that_only_rounds_is_not_called_failed(tmp_path: Path) -> None:
    """Elements next to 0 are beyond the tolerance of their type, and far within what rounding does to the others."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[64,64] x) => (float[64,64] y) <float c = {4096.0}> { y = Mul (x, c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    x, noise = (np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32) for seed in (0, 1))
    seen = {"x": x, "y": 4096 * x + np.float32(1e-3) * noise}
    for more, passed, word in (({}, True, "rounding"), ({"atol": 1e-9}, False, "FAILED")):
        found = bisect(tmp_path / "m.onnx", recorded=seen, **more)
        assert (found.kind, found.passed, found.outputs[0].passed) == ("rounding", passed, False)
        assert found.to_json()["judged"] == [word]
    np.savez(tmp_path / "seen.npz", **seen)
    done = _run(tmp_path / "m.onnx", "--load-outputs", tmp_path / "seen.npz")
    row = next(line for line in done.stdout.splitlines() if line.startswith("y "))
    assert (done.returncode, row.split()[1]) == (0, "rounding")


def test_tolerances_are_calibrated_by_rounding(corpus: Corpus) -> None:
    path, entry = corpus("eeg_seizure_lstm")
    feeds = fetch.seeded_feeds(path, entry)
    optimized = {"on": "ort:all,threads=1", "reference_on": ONE, "feeds": feeds, "auto_tolerance": True}
    found = bisect(path, **optimized)
    assert found.passed
    allowed = [row.allowed.atol for row in found.tensors if row.allowed is not None]
    assert len(allowed) == len(found.tensors)
    assert max(allowed) > 20 * min(size for size in allowed if size)
    again = bisect(path, **optimized)
    assert {row.tensor: row.allowed for row in again.tensors} == {row.tensor: row.allowed for row in found.tensors}
    told = bisect(path, atol=0.5, **optimized)
    assert {row.allowed.atol for row in told.tensors if row.allowed is not None} == {0.5}


def test_calibrated_tolerances_hold_what_float64_shows() -> None:
    random = np.random.default_rng(3)
    weights = {f"w{at}": random.standard_normal((256, 256)).astype(np.float32) / 16 for at in range(6)}
    feeds = {"x": random.standard_normal((4, 256)).astype(np.float32)}
    nodes, right = [], feeds["x"].astype(np.float64)
    for at in range(6):
        nodes.append(helper.make_node("MatMul", [f"h{at}" if at else "x", f"w{at}"], [f"h{at + 1}" if at < 5 else "y"]))
        right = right @ weights[f"w{at}"].astype(np.float64)
    model = _model(nodes, weights, shape=(4, 256))
    (output,) = bisect(model, on="ort:none,threads=2", reference_on=ONE, feeds=feeds, auto_tolerance=True).outputs
    made = backends.open_session(model, options=backends.Options("none")).run(feeds)["y"]
    rounding = float(np.abs(made - right).max())
    assert rounding < output.tolerance.atol < 30 * rounding

    fault = {**weights, "w5": weights["w5"] * np.float32(1 + 2e-5)}  # within what any float32 is allowed
    suspect = _model(nodes, fault, shape=(4, 256))
    assert bisect(suspect, against=model, feeds=feeds).outputs[0].passed
    assert not bisect(suspect, against=model, feeds=feeds, auto_tolerance=True).outputs[0].passed


def test_tolerances_of_recorded_values_cannot_be_calibrated() -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])])
    values = {"x": np.ones(2, np.float32), "y": np.ones(2, np.float32)}
    with pytest.raises(UsageError, match="cannot be calibrated: recorded values"):
        bisect(model, recorded=values, auto_tolerance=True)


def test_what_cannot_be_understood_is_refused(broken: Any, tmp_path: Path) -> None:
    suspect, reference, _, _ = broken
    with pytest.raises(UsageError, match="no optimization level"):
        parse_place("ort:al", level="none")
    with pytest.raises(UsageError, match="no setting"):
        parse_place("ort,thread=2", level="none")
    with pytest.raises(UsageError, match="has no levels"):
        parse_place("reference:all", level="none")
    with pytest.raises(UsageError, match="not both"):
        bisect(suspect, against=reference, recorded=["x.npz"])
    with pytest.raises(UsageError, match="the same model on the same runtime"):
        bisect(suspect, on="ort:none")
    with pytest.raises(UnsupportedError, match="no tensor of the suspect"):
        bisect(suspect, recorded={"nothing": np.ones(1)}, feeds={})
    with pytest.raises(OutputError, match="there already"):
        bisect(suspect, against=reference, repro=tmp_path)
    with pytest.raises(FeedsError):
        bisect(suspect, against=reference, feeds={"nothing": np.ones(1)})
    with pytest.raises(BenchError):
        bisect(tmp_path / "absent.onnx")


def _model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any] | None = None,
    *,
    shape: tuple[int, ...] = (2,),
    dtype: int = TensorProto.FLOAT,
) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_numbers_in_results_are_finite_or_said_to_be_infinite(broken: Any) -> None:
    suspect, reference, feeds, _ = broken
    found = bisect(suspect, against=reference, feeds=FeedOptions([str(feeds)]))
    assert all(not math.isnan(row.excess) and not math.isnan(row.total.rel) for row in found.tensors)


def test_a_verdict_without_outputs_says_so() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) { a = Relu (x)  y = Exp (a) }"""
    x = np.float32([-1, 0, 1, 2])
    found = bisect(from_proto(onnx.parser.parse_model(text)), recorded={"x": x, "a": np.maximum(x, 0)})
    assert found.passed
    assert found.outputs == ()
    assert found.verdict == "no drift in 1 tensors; the reference has none of the outputs, so these were not compared"


def test_a_tie_is_told_and_no_node_accused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[64] x, float[64] w) => (float[16] y) <int64[1] k = {16}>
    { v, i = TopK (x, k)  g = Gather (w, i)  y = Neg (g) }"""
    x, w = np.ones(64, np.float32), np.arange(64, dtype=np.float32)
    model = from_proto(onnx.parser.parse_model(text))
    found = bisect(model, recorded={"x": x, "w": w, "y": -w[48:]})
    assert not found.culprits
    assert not found.passed
    assert "rounding decides" in found.verdict
    assert "(TopK)" in found.verdict
