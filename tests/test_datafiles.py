"""Values from every kind of file."""

from __future__ import annotations

import base64
import io
import json

import ml_dtypes
import numpy as np
import onnx
import pytest
from engines import bits
from onnx import helper, numpy_helper

from onnxbench.captures import Port, check_feeds, save
from onnxbench.datafiles import load, load_value
from onnxbench.drawing import random_feeds
from onnxbench.errors import FeedsError, NotFoundError, UsageError
from onnxbench.tensortype import dtype_name, make_type

FLOAT, INT64, STRING, BOOL = 1, 7, 8, 9


def port(name="x", dtype=FLOAT, shape=(2, 3), required=True):
    return Port(name, make_type(dtype, shape), required)


def sequence(name="s", dtype=FLOAT):
    return Port(name, helper.make_sequence_type_proto(make_type(dtype, None)))


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_npy_is_for_the_single_input(tmp_path):
    np.save(tmp_path / "f.npy", X)
    (feeds,) = load(tmp_path / "f.npy", [port("in"), port("backed", required=False)])
    assert bits(feeds) == bits({"in": X})
    with pytest.raises(FeedsError, match="holds one value, and the model has 2 inputs: 'a', 'b'"):
        next(load(tmp_path / "f.npy", [port("a"), port("b")]))


def test_npz_without_names_goes_by_position(tmp_path):
    np.savez(tmp_path / "f.npz", X, X + 1)
    (feeds,) = load(tmp_path / "f.npz", [port("a"), port("b")])
    assert bits(feeds) == bits({"a": X, "b": X + 1})


def test_numpy_writes_ml_dtypes_as_raw_bytes_and_we_take_them(tmp_path):
    value = X.astype(ml_dtypes.float8_e4m3fn)
    np.save(tmp_path / "f.npy", value)
    where = port("x", 17)
    assert bits(check_feeds({"x": load_value(tmp_path / "f.npy", where)}, [where])["x"]) == bits(value)


@pytest.mark.parametrize("dtype", [1, 2, 16, 22, 9], ids=dtype_name)
def test_raw_bytes(tmp_path, dtype):
    value = random_feeds([port("x", dtype, (2, 3))]).feeds["x"]
    raw = numpy_helper.from_array(value).raw_data
    (tmp_path / "f.bin").write_bytes(raw)
    for where, shape in ((port("x", dtype, (2, 3)), None), (port("x", dtype, (None, None)), (2, 3))):
        assert bits(load_value(tmp_path / "f.bin", where, shape)) == bits(value)
    if dtype != 22:
        assert bits(load_value(tmp_path / "f.bin", port("x", dtype, ("N", 3)))) == bits(value)
    with pytest.raises(FeedsError, match="leaves too much open"):
        load_value(tmp_path / "f.bin", port("x", dtype, ("N", "M")))
    with pytest.raises(FeedsError, match=r"f\.bin has .* bytes; .* takes"):
        load_value(tmp_path / "f.bin", port("x", dtype, (7, 7)))


def test_onnx_test_sets(tmp_path):
    for number in range(2):
        folder = tmp_path / f"test_data_set_{number}"
        folder.mkdir()
        for position, value in enumerate((X + number, np.array(["t"], dtype=object))):
            (folder / f"input_{position}.pb").write_bytes(numpy_helper.from_array(value).SerializeToString())
        (folder / "input_2.pb").write_bytes(numpy_helper.from_list([X, X]).SerializeToString())
        (folder / "output_0.pb").write_bytes(numpy_helper.from_array(X * 2).SerializeToString())
    ports = [port("a"), port("t", STRING, [1]), sequence("s")]
    sets = list(load(tmp_path, ports))
    assert [bits(feeds["a"]) for feeds in sets] == [bits(X), bits(X + 1)]
    assert bits(sets[0]["t"]) == bits(np.array(["t"], dtype=object))
    assert bits(sets[0]["s"]) == bits([X, X])
    (first, _) = load(tmp_path, [port("out")], prefix="output")
    assert bits(first) == bits({"out": X * 2})


def test_a_tensor_in_a_pb_file_may_not_point_elsewhere(tmp_path):
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "x.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(FeedsError, match="in another file"):
        load_value(tmp_path / "x.pb", port())


def test_folders_of_npy_by_name_and_of_npz_by_set(tmp_path):
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one" / "a_0.npy", X)
    np.save(tmp_path / "one" / "input_1.npy", X + 1)
    (feeds,) = load(tmp_path / "one", [port("a:0"), port("b")])
    assert bits(feeds) == bits({"a:0": X, "b": X + 1})
    (tmp_path / "many").mkdir()
    for number in (0, 2, 10):
        save(tmp_path / "many" / f"{number}.npz", {"x": X + number})
    assert [int(feeds["x"][0, 0]) for feeds in load(tmp_path / "many")] == [0, 2, 10]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeedsError, match=r"holds no \.npz"):
        next(load(tmp_path / "empty"))
    np.save(tmp_path / "one" / "c.npy", X)
    with pytest.raises(FeedsError, match=r"c\.npy is for no input"):
        next(load(tmp_path / "one", [port("a:0"), port("b")]))


def encoded(array):
    out = io.BytesIO()
    np.save(out, array)
    return {"array": base64.b64encode(out.getvalue()).decode(), "polygraphy_class": "ndarray"}


def test_polygraphy_json(tmp_path):
    inputs = [{"input:0": encoded(X + i)} for i in range(2)]
    (tmp_path / "in.json").write_text(json.dumps(inputs))
    assert [bits(feeds) for feeds in load(tmp_path / "in.json")] == [bits({"input:0": X + i}) for i in range(2)]
    lazy = {"y": {"values": encoded(X), "polygraphy_class": "LazyArray"}}
    iteration = {"outputs": lazy, "runtime": 0.1, "runner_name": "ort", "polygraphy_class": "IterationResult"}
    results = {"lst": [["ort", [iteration]], ["trt", [iteration]]], "polygraphy_class": "RunResults"}
    (tmp_path / "out.json").write_text(json.dumps(results))
    (feeds,) = load(tmp_path / "out.json")
    assert bits(feeds) == bits({"y": X})
    for text in (
        "{",
        "[1]",
        '{"x": {"tensor": "", "polygraphy_class": "Tensor"}}',
        '{"lst": [], "polygraphy_class": "RunResults"}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FeedsError):
            next(load(tmp_path / "bad.json"))


def test_polygraphy_itself_wrote_this(tmp_path):
    polygraphy = pytest.importorskip("polygraphy.json")
    polygraphy.save_json([{"x": X}], str(tmp_path / "p.json"))
    assert bits(next(load(tmp_path / "p.json"))) == bits({"x": X})


SCRIPT = """
import numpy as np
from helper_of_script import SCALE
def load_data():
    for i in range(2):
        yield {"x": np.full((2, 3), i * SCALE, np.float32)}
def single():
    return {"x": [[1, 2, 3], [4, 5, 6]]}
def fails():
    return 1 / 0
def wrong():
    return 5
"""


def test_scripts(tmp_path):
    (tmp_path / "s.py").write_text(SCRIPT)
    (tmp_path / "helper_of_script.py").write_text("SCALE = 3")
    script = tmp_path / "s.py"
    assert [float(feeds["x"][0, 0]) for feeds in load(str(script))] == [0, 3]
    assert [float(feeds["x"][0, 0]) for feeds in load(f"@{script}:load_data")] == [0, 3]
    (feeds,) = load(f"{script}:single")
    assert bits(check_feeds(feeds, [port()])["x"]) == bits(X + 1)
    with pytest.raises(FeedsError, match=r"s\.py:10 failed: ZeroDivisionError: division by zero"):
        next(load(f"{script}:fails"))
    with pytest.raises(FeedsError, match="returned int, not a dict"):
        next(load(f"{script}:wrong"))
    with pytest.raises(FeedsError, match=r"no function sngle\(\)") as caught:
        next(load(f"{script}:sngle"))
    assert "'single'" in caught.value.hint
    script.write_text("def (:")
    with pytest.raises(FeedsError, match=r"s\.py:1 failed: SyntaxError"):
        next(load(str(script)))
    assert not (tmp_path / "__pycache__" / "s.cpython-311.pyc").exists()


def test_missing_and_unknown_files(tmp_path):
    (tmp_path / "feeds.npz").touch()
    with pytest.raises(NotFoundError) as caught:
        next(load(tmp_path / "feed.npz"))
    assert "feeds.npz" in caught.value.hint
    (tmp_path / "x.txt").touch()
    with pytest.raises(UsageError, match="no ending"):
        next(load(tmp_path / "x.txt"))
