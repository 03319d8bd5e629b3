"""TensorRT as a side of a bisection: all of it that needs no GPU, on real engines, and recordings for elsewhere."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from onnxbench import backends
from onnxbench.bisection import bisect, parse_place, write_recording
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import BuildSpec, build_engine, has_gpu, read_engine
from onnxbench.errors import (
    DeviceError,
    FeedsError,
    ModelError,
    NotFoundError,
    OutputError,
    RefusedModelError,
    UnsupportedError,
    UsageError,
)
from onnxbench.feeding import FeedOptions
from onnxbench.model import from_proto, load
from onnxbench.parts import Parts

HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None
needs_trt = [
    pytest.mark.trt,
    pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')"),
    pytest.mark.skipif(has_gpu(), reason="this is about machines without a GPU"),
]
_HEAD = '<ir_version: 8, opset_import: ["" : 17]> g'
PROGRAM = [sys.executable, "-m", "onnxbench"]
X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
REFUSED = f"""{_HEAD} (float[2,N] x) => (float[2,N] y, int64[2,K] z)
{{ a = Relu(x) b = Add(a, a) c = Sub(b, a) z = NonZero(c) d = Mul(c, c) y = Sqrt(d) }}"""


def chain(factor: float = 2.0) -> onnx.ModelProto:
    """Returns a model of an open size: MatMul, Mul by a factor, Sigmoid, Reshape by an input that holds sizes."""
    weights = {"w": np.eye(3, dtype=np.float32) + 0.5, "f": np.array([factor], np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Mul", ["a", "f"], ["b"], name="scale"),
        helper.make_node("Sigmoid", ["b"], ["c"], name="squash"),
        helper.make_node("Reshape", ["c", "to"], ["y"], name="shape"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
              helper.make_tensor_value_info("to", TensorProto.INT64, [2])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["p", "q"])]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FEEDS = {"x": X, "to": np.array([3, 2])}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a model and its engine, built without TF32."""
    folder = tmp_path_factory.mktemp("engine")
    onnx.save(
        parse_model(f"{_HEAD} (float[2,3] x) => (float[2,3] y) {{ a = Relu(x) y = Sigmoid(a) }}"), folder / "m.onnx"
    )
    build_engine(folder / "m.onnx", folder / "m.engine", BuildSpec(engine="tensorrt-rtx", tf32=False))
    return folder


def copied(built: Path, target: Path) -> Path:
    for file in built.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# ---------------------------------------------------------------- how it is said


@pytest.mark.parametrize(
    ("text", "backend", "build", "unit", "words"),
    [
        ("trt", "trt", {}, 2.0**-10, "TensorRT"),
        ("trt-rtx,tf32=off", "tensorrt-rtx", {"tf32": False}, 0.0, "TensorRT-RTX, without TF32"),
        ("tensorrt,device=1", "tensorrt", {"device": 1}, 2.0**-10, "TensorRT, GPU 1"),
    ],
)
def test_places(text: str, backend: str, build: dict[str, object], unit: float, words: str) -> None:
    place = parse_place(text, level="all")
    assert (place.backend, dict(place.options.build), place.unit, place.text) == (backend, build, unit, words)
    assert place.is_engine
    assert not place.optimizes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trt:all", "no optimization levels"),
        ("trt,threads=1", "'threads=1' is no setting"),
        ("trt,device=x", "no number of a GPU"),
        ("trt,tf32=no", "tf32 is on or off"),
        ("trtx", "there is no backend 'trtx'"),
    ],
)
def test_places_that_are_none(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_place(text, level="all")


# ---------------------------------------------------------------- up to the launch


class TestUpToTheLaunch:
    """Engines are built here, and each error says so before it says that there is no GPU."""

    pytestmark = needs_trt

    def test_a_part_with_all_tensors_as_outputs(self) -> None:
        session = backends.open_session(from_proto(chain()), "trt", outputs=["a", "b", "c", "y"])
        with pytest.raises(DeviceError, match="there is no GPU here") as caught:
            session.run(FEEDS)
        assert "builds the engine" in caught.value.details[0]
        assert caught.value.details[0].endswith("4 outputs")
        with pytest.raises(FeedsError, match=r"'to' .* is missing"):
            session.run({"x": X})
        session.close()

    def test_regions_on_given_values_are_one_small_engine(self) -> None:
        parts = Parts(from_proto(chain()), "tensorrt-rtx", backends.Options(build={"tf32": False}))
        with pytest.raises(DeviceError) as caught:
            parts.run([1, 2], {"a": X, "b": X}, ["b", "c"])
        assert "2 outputs" in caught.value.details[0]

    def test_the_command_says_what_can_be_done_instead(self, tmp_path: Path) -> None:
        onnx.save(chain(), tmp_path / "m.onnx")
        np.savez(tmp_path / "x.npz", **FEEDS)
        words = ["bisect", f"{tmp_path}/m.onnx", "--on", "trt", "--feeds", f"{tmp_path}/x.npz"]
        done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False)
        said = done.stderr
        assert done.returncode == 16, said
        assert "the engine cannot be run: there is no GPU here" in said
        assert "builds the engine" in said
        assert f"'onnxbench bisect {tmp_path}/m.onnx --on trt --record DIR'" in said

    def test_the_node_that_cannot_be_built_is_found(self, tmp_path: Path) -> None:
        found = bisect(from_proto(parse_model(REFUSED)), on="trt", repro=tmp_path / "repro")
        assert found.failure is not None
        assert (found.failure.how, found.failure.op_type, len(found.failure.nodes)) == ("refused", "NonZero", 1)
        done = subprocess.run(
            [sys.executable, tmp_path / "repro" / "reproduce.py"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        assert "NonZero" in done.stdout
        assert "the failure shows" in done.stdout

    def test_a_model_that_cannot_be_built_is_refused(self) -> None:
        session = backends.open_session(from_proto(parse_model(REFUSED)), "trt")
        with pytest.raises(RefusedModelError, match=r"\(NonZero\)") as caught:
            session.run({"x": X})
        assert "refuses a node of the model" in caught.value.details[0]

    def test_an_engine_is_no_side_without_what_it_was_built_of(self, built: Path, tmp_path: Path) -> None:
        folder = copied(built, tmp_path)
        with pytest.raises(UsageError, match=r"--on means nothing for m\.engine"):
            bisect(folder / "m.engine", on="ort")
        record = json.loads((folder / "m.engine.json").read_text())
        (folder / "m.engine.json").write_text(json.dumps({**record, "model": {**record["model"], "edited": True}}))
        with pytest.raises(UnsupportedError, match="edited on the way"):
            bisect(folder / "m.engine")
        (folder / "m.engine.json").write_text(json.dumps(record))
        onnx.save(chain(), folder / "m.onnx")
        with pytest.raises(ModelError, match=r"do not fit: m\.onnx changed after"):
            bisect(folder / "m.engine")
        (folder / "m.onnx").unlink()
        with pytest.raises(NotFoundError, match="is not at"):
            bisect(folder / "m.engine")
        (folder / "m.engine.json").unlink()
        with pytest.raises(NotFoundError, match=r"no m\.engine\.json beside the engine"):
            bisect(folder / "m.engine")

    @pytest.mark.parametrize("role", ["suspect", "reference"])
    def test_an_engine_is_a_side(self, built: Path, role: str) -> None:
        sides = (built / "m.engine", None) if role == "suspect" else (built / "m.onnx", built / "m.engine")
        with pytest.raises(DeviceError, match="there is no GPU here") as caught:
            bisect(sides[0], against=sides[1])
        assert f"bisect {built / 'm.engine'} --record" in str(caught.value.hint)

    def test_a_recording_of_an_engine_holds_it_and_its_model_as_it_was_built(self, built: Path, tmp_path: Path) -> None:
        made = write_recording(built / "m.engine", tmp_path / "there")
        assert (made.sets, made.tensors, made.parts, made.built) == (1, 2, 1, 1)
        assert (tmp_path / "there" / "m.engine").read_bytes() == (built / "m.engine").read_bytes()
        part = read_engine(tmp_path / "there" / "part000.engine")
        assert part.record is not None
        assert part.record.data["options"]["tf32"] is False
        assert [port["name"] for port in part.record.data["outputs"]] == ["a", "y"]
        done = subprocess.run(
            [sys.executable, tmp_path / "there" / "record.py"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 16
        assert "there is no GPU here" in done.stderr

    def test_an_engine_can_be_built_where_it_runs(self, tmp_path: Path) -> None:
        """The script does so with TensorRT alone, up to the launch."""
        write_recording(from_proto(chain()), tmp_path / "there", on="trt-rtx,tf32=off", feeds=FEEDS)
        first = tmp_path / "there" / "part000.engine"
        size = first.stat().st_size
        first.unlink()
        done = subprocess.run(
            [sys.executable, tmp_path / "there" / "record.py"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 16
        assert "building part000.engine" in done.stderr
        assert abs(first.stat().st_size - size) < size / 10


# ---------------------------------------------------------------- recorded elsewhere, compared here


@pytest.mark.parametrize("memory", [None, 64])
def test_what_was_recorded_elsewhere_is_compared_here(tmp_path: Path, memory: int | None) -> None:
    """The script runs what was written as it would there, here with ONNX Runtime; its values are those of a fault."""
    onnx.save(chain(2.25), tmp_path / "there.onnx")
    onnx.save(chain(), tmp_path / "here.onnx")
    sets = [FEEDS, {"x": X[:1], "to": np.array([1, 3])}]
    for number, feeds in enumerate(sets):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{number}.npz", **feeds)
    words = ["bisect", f"{tmp_path}/there.onnx", "--on", "ort:none", "--feeds", f"{tmp_path}/data"]
    words += ["--record", f"{tmp_path}/out", *(["--memory", f"{memory}B"] if memory else [])]
    assert bounded(app, words) == 0
    done = subprocess.run([sys.executable, tmp_path / "out" / "record.py"], capture_output=True, text=True, check=True)
    assert f"--load-outputs {tmp_path}/out/recorded" in done.stdout
    plan = json.loads((tmp_path / "out" / "record.json").read_text())
    assert len(plan["sets"][0]["parts"]) == (1 if memory is None else 2)
    recorded = [np.load(tmp_path / "out" / "recorded" / f"00{number}.npz") for number in (0, 1)]
    right = backends.run_with_outputs(load(tmp_path / "there.onnx"), sets[1], ["a", "b", "c", "y"], optimization="none")
    for name, value in right.items():
        np.testing.assert_array_equal(recorded[1][name], value)
    assert recorded[0]["y"].shape == (3, 2)
    found = bisect(
        tmp_path / "here.onnx", recorded=[f"{tmp_path}/out/recorded"],
        feeds=FeedOptions((f"{tmp_path}/out/feeds",)), reference_on="trt-rtx",
    )  # fmt: skip
    assert (found.sets, [each.node for each in found.culprits]) == (2, ["scale"])


def test_a_recording_needs_a_new_folder_and_compares_nothing(tmp_path: Path, capsys) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="is there already"):
        write_recording(tmp_path / "m.onnx", tmp_path, on="ort:none", feeds=FEEDS)
    words = ["bisect", f"{tmp_path}/m.onnx", "--record", f"{tmp_path}/out", "--against", f"{tmp_path}/m.onnx"]
    assert bounded(app, words) == 2
    assert "--against means nothing with --record" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_products_in_tf32_are_no_drift_and_all_else_is_judged_as_before(tmp_path: Path) -> None:
    """Recorded values of a matrix product that are off by what TF32 does to it, and of a Mul likewise."""
    model = from_proto(chain())
    right = backends.run_with_outputs(model, FEEDS, ["a", "b", "c", "y"], optimization="none")
    rounded = {"a": right["a"] * np.float32(1 + 2.0**-11)}
    rounded["b"] = rounded["a"] * np.float32(2)
    off = {**rounded, "b": rounded["b"] * np.float32(1 + 2.0**-11)}
    found = bisect(model, recorded=rounded, feeds=FEEDS, reference_on="trt")
    assert (found.passed, found.culprits) == (True, ())
    assert [each.node for each in bisect(model, recorded=rounded, feeds=FEEDS).culprits] == ["product"]
    assert [each.node for each in bisect(model, recorded=off, feeds=FEEDS, reference_on="trt").culprits] == ["scale"]
