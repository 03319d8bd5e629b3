"""What a bisection tells beside the culprit: the worst set, the node furthest off, labels of the whole model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx.parser import parse_model

from onnxbench.bisection import bisect, open_baseline
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import ModelError, SpecError, UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.model import Model, from_proto
from onnxbench.precision import convert
from onnxbench.writer import save

_HEAD = '<ir_version: 8, opset_import: ["" : 18]> g'


def scaled(operator: str) -> Model:
    text = f"{_HEAD} (float[4] x) => (float[4] y) {{ a = Neg(x) b = Abs(a) y = {operator}(b) }}"
    return from_proto(parse_model(text))


def test_the_set_on_which_an_output_is_worst(tmp_path: Path) -> None:
    """Softsign and Tanh are apart the further, the larger their input is (up to here)."""
    sets = {"0": 0.01, "1": 1.0, "2": 0.1}
    (tmp_path / "data").mkdir()
    for name, value in sets.items():
        np.savez(tmp_path / "data" / f"{name}.npz", x=np.full(4, value, np.float32))
    found = bisect(scaled("Softsign"), against=scaled("Tanh"), feeds=FeedOptions((str(tmp_path / "data"),)))
    assert (found.sets, found.worst_sets, [each.number for each in found.culprits]) == (3, (1,), [1])
    assert json.loads(json.dumps(found.to_json()["worst_sets"])) == [1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a = Neg(x) b = Abs(nobody) y = Relu(b)", "Abs#1: reads 'nobody', which nothing makes"),
        ("a = Neg(x) b = Abs(a) z = Relu(b)", "y: graph output 'y' is made by nothing"),
    ],
)
@pytest.mark.parametrize("on", ["ort", "reference"])
def test_a_model_whose_nodes_do_not_meet_is_no_part_that_fails(names: str, message: str, on: str) -> None:
    broken = from_proto(parse_model(f"{_HEAD} (float[4] x) => (float[4] y) {{ {names} }}"))
    for sides in ((broken, scaled("Relu")), (scaled("Relu"), broken)):
        with pytest.raises(ModelError, match=f"the model is no valid model: {message}"):
            bisect(sides[0], against=sides[1], on=on, reference_on=on)


def test_what_differs_is_told_by_the_labels_of_the_whole_model() -> None:
    """Nodes without names are called by their place, which is another one in the piece that is looked at."""
    found = bisect(scaled("Softsign"), against=scaled("Tanh"), feeds={"x": np.ones(4, np.float32)})
    assert found.culprits[0].node == "Softsign#2"
    assert found.culprits[0].why == ("op Tanh#2 op_type: Tanh -> Softsign",)


def test_what_onnx_runtime_puts_around_a_fused_node_is_not_named() -> None:
    """It makes a MatMul and an Add a Gemm between two Reshapes, of which the last has the name of the Add's result."""
    text = "(float[2,3,2] x) => (float[2,3,2] y) <float[2,2] w = {{1,2,3,4}}, float[2] b = {{{bias},2}}> "
    sides = [f"{_HEAD} {text.format(bias=bias)} {{ a = MatMul(x, w) y = Add(a, b) }}" for bias in (1, 2)]
    wrong, right = (from_proto(parse_model(side)) for side in sides)
    (culprit,) = bisect(wrong, against=right, keep_fusions=True).culprits
    assert (culprit.op_type, len(culprit.region)) == ("Gemm", 3)


_RESHAPED = f"{_HEAD} (float[4] x) => (float[2,2] y) <int64[2] s = {{2,2}}> {{ y = Reshape(x, s) }}"
_TURNED = _RESHAPED.replace("y = Reshape(x, s)", "a = Reshape(x, s) y = Transpose(a)")


@pytest.mark.parametrize(
    ("suspect", "reference", "culprit"), [(_RESHAPED, _TURNED, "Reshape#0"), (_TURNED, _RESHAPED, "Transpose#1")]
)
def test_an_output_is_compared_with_the_output_of_its_name(suspect: str, reference: str, culprit: str) -> None:
    """What a node computes is the other side's inner tensor, where the last node is missing on one side."""
    found = bisect(from_proto(parse_model(suspect)), against=from_proto(parse_model(reference)))
    assert [each.node for each in found.culprits] == [culprit]
    assert any("Transpose" in why for why in found.culprits[0].why)


def test_an_output_of_the_reference_that_is_not_compared_is_told() -> None:
    whole, piece = (from_proto(parse_model(text)) for text in (_TURNED.replace("y", "z"), _RESHAPED))
    found = bisect(piece, against=whole)
    said = "no output of the suspect is compared with 'z' of the reference"
    assert (found.passed, found.matched, said in found.notes) == (True, 1, True)
    assert found.verdict == f"no drift: outputs are equal bit for bit; but {said}"
    exposed = from_proto(parse_model(_TURNED.replace("[2,2] y)", "[2,2] y, float[2,2] a)")))
    more = bisect(exposed, against=from_proto(parse_model(_TURNED)))
    assert more.verdict == "no drift: outputs are equal bit for bit"


def test_the_node_that_is_furthest_off_where_none_is_to_blame() -> None:
    """Recorded values that are off by the last bit at one node."""
    x = np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    right = {"a": -x, "b": np.nextafter(x, np.float32(9)), "y": np.nextafter(x, np.float32(9))}
    found = bisect(scaled("Relu"), recorded=right, feeds={"x": x}, atol=0.0)
    assert (found.kind, found.passed) == ("rounding", False)
    assert found.verdict.endswith("no node does more than round (Abs#1 the most: 1.2e-07)")


def test_a_recording_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(scaled("Tanh"), tmp_path / "m.onnx")
    assert (
        bounded(app, ["bisect", f"{tmp_path}/m.onnx", "--on", "ort:none", "--record", f"{tmp_path}/r", "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["command"] == "bisect"
    assert said["result"]["recording"]["tensors"] == 3


def test_nan_that_only_the_reference_has_is_not_made_by_the_suspect() -> None:
    x = np.ones(4, np.float32)
    right = {"a": -x, "b": x, "y": np.full(4, np.nan, np.float32)}
    found = bisect(scaled("Relu"), recorded=right, feeds={"x": x})
    assert found.verdict == "drift starts at Relu#2 (Relu): makes finite values where the reference has NaN or Inf"
    assert found.culprits[0].own.missing == 4


def test_outputs_without_elements_tell_nothing() -> None:
    text = f"{_HEAD} (float[n] x) => (float[n] y) {{ y = OPERATOR(x) }}"
    one, other = (from_proto(parse_model(text.replace("OPERATOR", each))) for each in ("Tanh", "Softsign"))
    found = bisect(one, against=other, feeds={"x": np.ones(0, np.float32)})
    assert found.verdict == "nothing can be told of the outputs: they have no elements"


def test_inputs_on_which_the_reference_fails_too() -> None:
    text = f"{_HEAD} (int64[2] x) => (float[2] y) <float[3] w = {{1, 2, 3}}> {{ a = Gather(w, x) y = OPERATOR(a) }}"
    one, other = (from_proto(parse_model(text.replace("OPERATOR", each))) for each in ("Tanh", "Softsign"))
    found = bisect(one, against=other, feeds={"x": np.array([0, 9])})
    assert found.failure is not None
    assert any("the reference fails on these inputs too" in note for note in found.notes)


def test_a_half_precision_twin_with_float_outputs_is_within_calibrated_tolerances() -> None:
    """A Cast at the end takes no rounding back."""
    text = f"{_HEAD} (float[64] x) => (float[64] y) {{ a = Tanh(x) b = Sigmoid(a) y = OPERATOR(b) }}"
    right, wrong = (from_proto(parse_model(text.replace("OPERATOR", each))) for each in ("Softsign", "Tanh"))
    x = np.linspace(-2, 2, 64, dtype=np.float32)
    half = convert(right, to="fp16").model
    assert bisect(half, against=right, feeds={"x": x}, auto_tolerance=True).passed
    assert not bisect(half, against=wrong, feeds={"x": x}, auto_tolerance=True).passed


def test_what_is_not_recorded_is_told() -> None:
    with pytest.raises(UnsupportedError) as told:
        bisect(scaled("Relu"), recorded={"q": np.ones(4, np.float32)}, feeds={"x": np.ones(4, np.float32)})
    assert told.value.hint == "Recorded are: q."


def test_command_lines_that_are_proposed_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    save(scaled("Tanh"), folder / "right.onnx")
    save(scaled("Softsign"), folder / "m.onnx")
    words = ["bisect", f"{folder}/m.onnx", "--against", f"{folder}/right.onnx", "--repro", f"{folder}/r"]
    done = subprocess.run([sys.executable, "-m", "onnxbench", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert f"run `python '{folder}/r/reproduce.py'`" in done.stdout
    assert f"onnxbench run '{folder}/m.onnx' --outputs" in done.stdout


def test_options_that_cannot_be_heeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bounded(app, ["bisect", "m.onnx", "--against", "r.onnx", "--by", "names"]) == 2
    assert "--by means nothing without --torch" in capsys.readouterr().err
    with pytest.raises(UsageError, match="may hold none"):
        bisect(scaled("Relu"), against=scaled("Tanh"), memory=0)
    with pytest.raises(SpecError, match="is a folder, not a baseline"):
        open_baseline(tmp_path)


def test_another_program_that_calls_the_app_is_not_forked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fork takes over locks of threads that it lacks (ONNX Runtime's), and returns to the caller, a second time."""
    for name, operator in (("a", "Relu"), ("b", "Tanh")):
        save(scaled(operator), tmp_path / f"{name}.onnx")
    bisect(tmp_path / "a.onnx", against=tmp_path / "b.onnx")
    before = os.getpid()
    status = bounded(app, ["bisect", f"{tmp_path}/a.onnx", "--against", f"{tmp_path}/b.onnx"])
    assert (os.getpid(), status) == (before, 1)
    assert capsys.readouterr().out.count("drift starts at Relu#2") == 1


_SUPERVISED = """
import sys, time, typer
from onnxbench.cli._supervision import after_a_crash, own_process
try:
    own_process()
    after_a_crash(60)
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
except typer.Exit as end:
    sys.exit(end.exit_code)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the work is done in a forked process")
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["kill", "terminal"])
def test_an_interrupt_reaches_the_work_once(send: Callable[[int, int], None]) -> None:
    """``kill -INT`` reaches the waiting process alone, Ctrl-C in a terminal both."""
    command = [sys.executable, "-c", _SUPERVISED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        send(process.pid, signal.SIGINT)
        assert process.communicate(timeout=120)[0] == "interrupted\n"
    assert process.returncode == 130
