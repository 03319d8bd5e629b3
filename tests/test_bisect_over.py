"""``bisect --over``: the optimizer, edit step, opset or provider that introduces drift is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import failing_models as failing
import numpy as np
import onnx
import onnxruntime
import pytest
from corpus import fetch
from onnx import TensorProto, helper, numpy_helper

from onnxbench import backends, captures
from onnxbench.changes import bisect_over
from onnxbench.changes._optimizers import optimizer_names
from onnxbench.errors import BenchError, ExecutionError, UnsupportedError, UsageError
from onnxbench.model import from_proto, load

Corpus = Callable[[str], tuple[Path, Any]]
ONE = "ort:all,threads=1"
PLAIN = "ort:none,threads=1"


def _session(path: Path, disabled: list[str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


# ---------------------------------------------------------------- optimizers


def test_the_optimizers_that_change_a_model_are_known(corpus: Corpus) -> None:
    model = load(corpus("minilm_int8w")[0])
    changed, others = optimizer_names(model, backends.Options("all", isolate=60.0))
    assert "SkipLayerNormFusion" in changed
    assert "GeluFusionL2" in others
    assert not set(changed) & set(others)
    basic, _ = optimizer_names(model, backends.Options("basic", isolate=60.0))
    assert "SkipLayerNormFusion" not in basic


def test_the_optimizers_that_drift_are_named(corpus: Corpus) -> None:
    path, entry = corpus("minilm_int8w")
    feeds = fetch.seeded_feeds(path, entry)
    found = bisect_over(path, "optimizers", on=ONE, reference_on=PLAIN, feeds=feeds, atol=1e-7)
    assert not found.passed
    assert "SkipLayerNormFusion" in found.culprits
    assert "TransposeOptimizer" not in found.culprits
    assert found.verdict.startswith("drift comes from ")
    # What it says is so: without these, ONNX Runtime itself gives what it gives without any optimization.
    right = backends.open_session(load(path), options=backends.Options("none", threads=1)).run(feeds)
    (name,) = right
    without = _session(path, list(found.culprits)).run([name], feeds)[0]
    with_all = _session(path, []).run([name], feeds)[0]
    assert np.abs(without - right[name]).max() <= 1e-7
    assert np.abs(with_all - right[name]).max() > 1e-7


def test_one_rule_among_many_is_named() -> None:
    """Relu before a QuantizeLinear is a rule; a fused scale of Conv rounds otherwise than Conv and Mul do."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "s": rng.standard_normal((1, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Identity", ["x"], ["i"], "same"), helper.make_node("Conv", ["i", "w"], ["c"], "conv"),
        helper.make_node("Mul", ["c", "s"], ["y"], "scale"),
    ]  # fmt: skip
    model = from_proto(failing.make(nodes, weights, inputs={"x": (TensorProto.FLOAT, [1, 3, 12, 12])}))
    feeds = {"x": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)}
    found = bisect_over(model, "optimizers", on="ort:basic,threads=1", reference_on=PLAIN, feeds=feeds, rtol=1e-9)
    assert found.culprits == ("ConvMulFusion",)
    assert "disabled_optimizers=['ConvMulFusion']" in found.notes[0]


def test_optimizers_without_drift_pass(corpus: Corpus) -> None:
    path, entry = corpus("minilm_int8w")
    found = bisect_over(path, "optimizers", on=ONE, feeds=fetch.seeded_feeds(path, entry))
    assert (found.passed, found.culprits) == (True, ())
    assert found.verdict.startswith("no drift: outputs agree within ")


# ---------------------------------------------------------------- recipe

_RECIPE = """
version: 1
steps:
  - rename_tensors: {pattern: '^val_(.*)$', to: 'v\\1'}
    expect: all
  - set_op: {at: "node:*linear*&op:Add", to: Sub}
    name: the wrong one
    expect: all
  - delete: {at: "op:Dropout"}
    expect: optional
"""


def test_the_step_of_a_recipe_is_named(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("attacut_sc")
    (tmp_path / "r.yaml").write_text(_RECIPE)
    found = bisect_over(path, str(tmp_path / "r.yaml"), feeds=fetch.seeded_feeds(path, entry))
    assert (found.passed, found.culprits) == (False, ("step 2 (the wrong one)",))
    assert [change.error == 0 for change in found.changes] == [True, False, True]
    assert found.verdict.startswith("drift starts at step 2 (the wrong one): output output is off by ")


# ---------------------------------------------------------------- opset


def test_a_conversion_that_keeps_values_passes(corpus: Corpus) -> None:
    path, entry = corpus("attacut_sc")
    found = bisect_over(path, "opset:21", feeds=fetch.seeded_feeds(path, entry))
    assert found.passed
    assert [change.name for change in found.changes] == ["opset 18 -> 19", "opset 19 -> 20", "opset 20 -> 21"]


def test_versions_that_cannot_be_had_are_left_out_or_refused() -> None:
    """GroupNormalization has one scale per group up to opset 20, and one per channel since."""
    nodes = [helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], "norm", num_groups=2)]
    weights = {"s": np.array([1.3, 0.7], np.float32), "b": np.array([0.1, 0.2], np.float32)}
    model = from_proto(failing.make(nodes, weights, inputs={"x": (TensorProto.FLOAT, [2, 8, 5, 5])}))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 5, 5)).astype(np.float32)}
    found = bisect_over(model, "opset", feeds=feeds)
    assert [change.name for change in found.changes] == ["opset 18 -> 19", "opset 19 -> 20"]
    assert found.passed
    assert "opset 21 and later were left out" in found.notes[0]
    assert found.suspect == "the model at opset 20"
    with pytest.raises(UnsupportedError, match="GroupNormalization"):
        bisect_over(model, "opset:21", feeds=feeds)


# ---------------------------------------------------------------- providers


def test_every_provider_is_compared(corpus: Corpus) -> None:
    path, entry = corpus("attacut_sc")
    found = bisect_over(path, "providers", feeds=fetch.seeded_feeds(path, entry))
    assert {change.name for change in found.changes} == set(onnxruntime.get_available_providers())
    assert "CPUExecutionProvider" in {change.name for change in found.changes if change.error is not None}


def test_a_provider_that_drifts_is_named(corpus: Corpus) -> None:
    path, entry = corpus("minilm_int8w")
    found = bisect_over(path, "providers", feeds=fetch.seeded_feeds(path, entry), atol=1e-8)
    assert not found.passed
    assert "CPUExecutionProvider" in found.culprits
    assert found.verdict.startswith("drift on ")


# ---------------------------------------------------------------- refusals, command


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    proto, feeds = failing.out_of_range()
    model = from_proto(proto)
    for over, words in (
        ("optimisers", "Did you mean 'optimizers'"),
        ("providers:cpu", "Kinds"),
        ("recipe.yam", "Kinds"),
    ):
        with pytest.raises(UsageError) as caught:
            bisect_over(model, over, feeds=feeds)
        assert words in (caught.value.hint or "")
    with pytest.raises(UsageError, match="leaves it as it is"):
        bisect_over(_fine(), "optimizers", on="ort:none", feeds={"x": np.ones(4, np.float32)})
    with pytest.raises(UsageError, match="opset"):
        bisect_over(_fine(), "opset:999", feeds={"x": np.ones(4, np.float32)})
    with pytest.raises(ExecutionError, match="Gather"):
        bisect_over(model, "providers", feeds=feeds)
    with pytest.raises(BenchError):
        bisect_over(model, str(tmp_path / "absent.yaml"), feeds=feeds)


def _fine() -> Any:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return from_proto(failing.make(nodes, inputs={"x": (TensorProto.FLOAT, [4])}))


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", "bisect", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command(corpus: Corpus, tmp_path: Path) -> None:
    path, entry = corpus("attacut_sc")
    captures.save(tmp_path / "feeds.npz", fetch.seeded_feeds(path, entry))
    (tmp_path / "r.yaml").write_text(_RECIPE)
    done = _run(path, "--over", tmp_path / "r.yaml", "--feeds", tmp_path / "feeds.npz")
    assert done.returncode == 1, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("drift starts at step 2 (the wrong one)")
    done = _run(path, "--over", "opset:19", "--feeds", tmp_path / "feeds.npz", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["result"]
    assert (said["over"], said["passed"], len(said["changes"])) == ("opset", True, 1)
    assert _run(path, "--over", "opset", "--against", path).returncode == 2
    assert _run(path, "--over", "optimizer").returncode == 2


def test_weights_are_what_they_were(corpus: Corpus) -> None:
    path, entry = corpus("attacut_sc")
    before = onnx.load(path)
    bisect_over(path, "opset:19", feeds=fetch.seeded_feeds(path, entry))
    after = onnx.load(path)
    for one, other in zip(before.graph.initializer, after.graph.initializer, strict=True):
        assert numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(other).tobytes()
