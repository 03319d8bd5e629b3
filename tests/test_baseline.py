"""Baselines: a run is held against an earlier one, and only what became worse fails it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import helper, numpy_helper
from reports import Pair, write_pair

from onnxbench.bisection import Baseline, Bisection, bisect, open_baseline
from onnxbench.errors import NotFoundError, OutputError, SpecError, UsageError
from onnxbench.feeding import FeedOptions

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = json.loads((ROOT / "docs" / "bisect-baseline.schema.json").read_text(encoding="utf-8"))
LAYERS = 4
CULPRIT = f"t{LAYERS // 2 * 5}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"), layers=LAYERS)


@pytest.fixture(scope="module")
def found(pair: Pair) -> Bisection:
    return _bisect(pair)


def _bisect(pair: Pair, suspect: Path | None = None, **options: Any) -> Bisection:
    feeds = FeedOptions([str(pair.feeds)])
    return bisect(suspect or pair.suspect, against=pair.reference, feeds=feeds, evidence=True, **options)


def _changed(pair: Pair, target: Path, weight: str, by: float | np.ndarray) -> Path:
    """Writes the suspect with something added to a weight."""
    model = onnx.load(pair.suspect)
    tensor = next(each for each in model.graph.initializer if each.name == weight)
    tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) + by).astype(np.float32), weight))
    onnx.save(model, target)
    return target


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", "bisect", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_same_run_is_no_worse_though_it_drifts(found: Bisection, pair: Pair, tmp_path: Path) -> None:
    Baseline.of(found).save(tmp_path / "b.json")
    Baseline.of(_bisect(pair)).save(tmp_path / "c.json")
    text = (tmp_path / "b.json").read_bytes()
    assert text == (tmp_path / "c.json").read_bytes()
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(json.loads(text))
    assert not found.passed
    judged = Baseline.load(tmp_path / "b.json").judge(found)
    assert (judged.passed, judged.worse, judged.new, judged.vanished, judged.notes) == (True, (), (), (), ())
    assert judged.verdict.startswith("no worse than the baseline")


def test_a_larger_error_is_worse(found: Bisection, pair: Pair, tmp_path: Path) -> None:
    before = Baseline.of(found)
    now = _bisect(pair, _changed(pair, tmp_path / "s.onnx", f"layer.{LAYERS // 2}.w0", 0.3))
    judged = before.judge(now)
    assert not judged.passed
    assert [(each.what, each.tensor) for each in judged.worse] == [("own error", CULPRIT), ("output", "y")]
    assert judged.worse[0].now.rel == pytest.approx(4 * before.own[CULPRIT].rel, rel=0.01)
    assert judged.verdict.startswith(f"worse than the baseline: own error of layer{LAYERS // 2}/Mul_0 ({CULPRIT}): ")
    assert judged.notes == ("the suspect is another file than in the baseline",)
    assert before.judge(now, factor=20).passed
    assert Baseline.of(now).judge(found).passed  # it became better


def test_another_fault_is_worse_though_the_outputs_are_not(found: Bisection, pair: Pair, tmp_path: Path) -> None:
    one = np.zeros(16, np.float32)
    one[3] = 1e-3
    now = _bisect(pair, _changed(pair, tmp_path / "s.onnx", "layer.0.w0", one))
    judged = Baseline.of(found).judge(now)
    assert ("own error", "t0") in [(each.what, each.tensor) for each in judged.worse]
    assert judged.worse[0].before is not None
    assert judged.worse[0].before.rel == 0


def test_rounding_is_never_worse(pair: Pair) -> None:
    same = Pair(pair.reference, pair.reference, pair.feeds, "")
    plain = _bisect(same, on="ort:none,threads=2")
    assert all(row.own is not None and row.own.equal for row in plain.tensors)
    other = _bisect(same, on="reference")
    assert any(row.own is not None and not row.own.equal for row in other.tensors)
    assert Baseline.of(plain).judge(other, factor=1).passed


def test_nan_is_worse_than_any_number(found: Bisection, pair: Pair, tmp_path: Path) -> None:
    now = _bisect(pair, _changed(pair, tmp_path / "s.onnx", f"layer.{LAYERS // 2}.w0", np.nan))
    judged = Baseline.of(found).judge(now, factor=1e30)
    assert judged.worse[0].tensor == CULPRIT
    assert "64 NaN or Inf" in judged.verdict
    before = Baseline.of(now)
    before.save(tmp_path / "nan.json")
    Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / "nan.json").read_text(encoding="utf-8")))
    assert Baseline.load(tmp_path / "nan.json").judge(now).passed
    assert before.judge(found).passed


def test_new_and_vanished_tensors_and_other_inputs_are_told(found: Bisection, pair: Pair, tmp_path: Path) -> None:
    sides = []
    for file in (pair.suspect, pair.reference):
        model = onnx.load(file)
        model.graph.node[-1].input[0] = "one_more"
        model.graph.node.insert(
            len(model.graph.node) - 1, helper.make_node("Abs", [f"t{LAYERS * 5 - 1}"], ["one_more"])
        )
        onnx.save(model, tmp_path / file.name)
        sides.append(tmp_path / file.name)
    feeds = {"x": np.ones((4, 16), np.float32)}
    longer = bisect(sides[0], against=sides[1], feeds=feeds, evidence=True)
    judged = Baseline.of(found).judge(longer)
    assert (judged.new, judged.vanished) == (("one_more",), ())
    assert judged.notes == (
        "the suspect is another file than in the baseline",
        "the reference is another than in the baseline",
        "the inputs are others than in the baseline, so errors may differ for that alone",
    )
    judged = Baseline.of(longer).judge(found)
    assert (judged.new, judged.vanished) == ((), ("one_more",))


def test_the_command_keeps_a_baseline(pair: Pair, tmp_path: Path) -> None:
    sides = ("--against", pair.reference, "--feeds", pair.feeds)
    kept = tmp_path / "b.json"
    assert _run(pair.suspect, *sides, "--save-baseline", kept).returncode == 1
    done = _run(pair.suspect, *sides, "--baseline", kept)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("no worse than the baseline")
    worse = _changed(pair, tmp_path / "s.onnx", "layer.1.w0", 0.2)
    done = _run(worse, *sides, "--baseline", kept)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("worse than the baseline: own error of layer1/Mul_0 (t5)")
    assert "the suspect is another file than in the baseline" in done.stderr
    done = _run(worse, *sides, "--baseline", kept, "--save-baseline", kept, "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)["result"]["baseline"]
    assert (said["passed"], said["worse"][0]["tensor"]) == (False, "t5")
    assert _run(worse, *sides, "--baseline", kept).returncode == 0


def test_what_is_no_baseline_is_refused_before_the_search(found: Bisection, pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        open_baseline(tmp_path / "absent.json")
    with pytest.raises(SpecError, match="is no baseline"):
        open_baseline(pair.suspect)
    with pytest.raises(OutputError, match="is there already and is no baseline"):
        open_baseline(None, save_to=pair.suspect)
    with pytest.raises(OutputError, match="there is no folder"):
        open_baseline(None, save_to=tmp_path / "absent" / "b.json")
    with pytest.raises(UsageError, match="1 or more times"):
        open_baseline(None, factor=0.5)
    plain = bisect(pair.suspect, against=pair.reference, feeds=FeedOptions([str(pair.feeds)]))
    with pytest.raises(UsageError, match="needs the digests"):
        Baseline.of(plain)
    Baseline.of(found).save(tmp_path / "b.json")
    data = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    for change, words in (({"own": 3}, "something missing"), ({"schema_version": 99}, "later onnxbench")):
        (tmp_path / "c.json").write_text(json.dumps(data | change), encoding="utf-8")
        with pytest.raises(SpecError, match=words):
            open_baseline(tmp_path / "c.json")
    done = _run("absent.onnx", "--save-baseline", pair.suspect)
    assert (done.returncode, "is no baseline" in done.stderr) == (7, True)
    assert _run(pair.suspect, "--baseline-factor", "3").returncode == 2
