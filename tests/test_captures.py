"""Feeds from every kind of file, drawn feeds, checks, and the npz form."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from contextlib import suppress

import ml_dtypes
import numpy as np
import onnx
import pytest
from engines import bits
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxbench.captures import (
    MANIFEST,
    Capture,
    CaptureWriter,
    Port,
    check_feeds,
    load,
    load_value,
    numpy_dtype,
    onnx_dtype,
    random_feeds,
    save,
)
from onnxbench.errors import FeedsError, NotFoundError, OutputError, UnsupportedError, UsageError
from onnxbench.tensortype import dtype_name, make_type

FLOAT, INT64, STRING, BOOL = 1, 7, 8, 9
ALL_DTYPES = [number for number in range(1, 27) if number != 0]


def port(name="x", dtype=FLOAT, shape=(2, 3), required=True):
    return Port(name, make_type(dtype, shape), required)


def sequence(name="s", dtype=FLOAT):
    return Port(name, helper.make_sequence_type_proto(make_type(dtype, None)))


def optional(name="o", dtype=FLOAT):
    return Port(name, helper.make_optional_type_proto(make_type(dtype, [None])))


X = np.arange(6, dtype=np.float32).reshape(2, 3)


# ---------------------------------------------------------------- npz


@pytest.mark.parametrize("number", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2)])
def test_every_dtype_round_trips(tmp_path, number, shape):
    value = random_feeds([port("w", number, shape)], seed=1).feeds["w"]
    save(tmp_path / "f.npz", {"w": value})
    (read,) = load(tmp_path / "f.npz")
    assert bits(read["w"]) == bits(value)
    assert onnx_dtype(read["w"].dtype) == number


def test_a_plain_capture_is_plain_npz(tmp_path):
    save(tmp_path / "f.npz", {"a/b:0": X, "n": np.array(3)})
    with np.load(tmp_path / "f.npz", allow_pickle=False) as data:
        assert sorted(data) == ["a/b:0", "n"]
        assert np.array_equal(data["a/b:0"], X)


def test_what_numpy_lacks_is_in_the_manifest(tmp_path):
    save(tmp_path / "f.npz", {"h": np.array([1, -2], dtype=ml_dtypes.bfloat16)})
    with np.load(tmp_path / "f.npz", allow_pickle=False) as data:
        assert data["h"].tolist() == [0x3F80, 0xC000]
        assert json.loads(str(data[MANIFEST]))["dtypes"] == {"h": "bfloat16"}


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
small = st.sampled_from([X, np.array(True), np.array([], np.int8), np.array(["a", "ß"], dtype=object)])


@given(values=st.dictionaries(names, st.one_of(small, st.none(), st.lists(small, max_size=3)), max_size=4))
def test_any_names_and_values_round_trip(tmp_path, values):
    save(tmp_path / "f.npz", values)
    with Capture(tmp_path / "f.npz") as capture:
        assert set(capture) == set(values)
        for name, value in values.items():
            assert bits(capture[name]) == bits(value)


def test_names_that_collide_with_our_own_round_trip(tmp_path):
    values = {"s": [X, X + 1], "s[0]": X + 2, MANIFEST: X + 3, "none": None, "map": [{0: 0.5, "a": 1}], "a.npy": X}
    save(tmp_path / "f.npz", values)
    with Capture(tmp_path / "f.npz") as capture:
        assert {name: bits(capture[name]) for name in capture} == {name: bits(value) for name, value in values.items()}


def test_the_same_values_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.npz", {"x": X, "h": X.astype(ml_dtypes.bfloat16)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_failure_leaves_nothing_behind(tmp_path):
    target = tmp_path / "f.npz"
    with pytest.raises(FeedsError, match="end in NUL"):
        save(target, {"x": X, "bad": np.array(["a\0"], dtype=object)})
    with suppress(RuntimeError), CaptureWriter(target) as writer:
        writer.write("x", X)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError):
        save(tmp_path / "no" / "f.npz", {"x": X})


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "f.npz", x=np.array([{}], dtype=object))
    np.save(tmp_path / "f.npy", np.array([{}], dtype=object))
    with pytest.raises(FeedsError, match="Python objects, which are not loaded"):
        next(load(tmp_path / "f.npz"))
    with pytest.raises(FeedsError, match="Python objects, which are not loaded"):
        load_value(tmp_path / "f.npy", port())


@pytest.mark.parametrize("damage", ["not a zip", "truncated", "no npy", "flipped"])
def test_damaged_files_are_one_clear_error(tmp_path, damage):
    file = tmp_path / "f.npz"
    save(file, {"x": np.arange(100.0)})
    data = bytearray(file.read_bytes())
    if damage == "not a zip":
        file.write_bytes(b"hello")
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[400] ^= 0xFF
        file.write_bytes(data)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", b"no array")
    with pytest.raises(FeedsError, match=r"f\.npz"):
        next(load(file))


def test_a_wrong_manifest_is_an_error(tmp_path):
    for manifest in ("{}", '{"version": 9}', '{"version": 1, "values": {"a": {"list": ["b"]}}}', "5"):
        np.savez(tmp_path / "f.npz", **{MANIFEST: np.array(manifest), "a": X})
        with pytest.raises(FeedsError):
            next(load(tmp_path / "f.npz"))


# ---------------------------------------------------------------- other files


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


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("number", ALL_DTYPES, ids=dtype_name)
def test_drawn_values_have_the_type_and_are_finite(number):
    value = random_feeds([port("x", number, (40, 5))], seed=3).feeds["x"]
    assert value.shape == (40, 5)
    assert value.dtype == numpy_dtype(number)
    if number == STRING:
        assert all(isinstance(item, str) for item in value.reshape(-1))
        return
    wide = value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)
    assert np.isfinite(wide).all()
    assert len(np.unique(wide)) > 1
    again = random_feeds([port("x", number, (40, 5))], seed=3).feeds["x"]
    assert bits(value) == bits(again)


def test_an_input_does_not_depend_on_the_others():
    alone = random_feeds([port("b")], seed=5).feeds["b"]
    both = random_feeds([port("a"), port("b")], seed=5).feeds
    assert bits(both["b"]) == bits(alone)
    assert bits(both["a"]) != bits(both["b"])
    assert bits(random_feeds([port("b")], seed=6).feeds["b"]) != bits(alone)
    assert bits(random_feeds([port("b")], seed=5, iteration=1).feeds["b"]) != bits(alone)


def test_the_values_of_a_seed_are_the_same_forever():
    feeds = random_feeds([port("x", FLOAT, (3,)), port("i", INT64, (6,))], seed=0).feeds
    assert feeds["x"].tolist() == [0.4601043462753296, 0.875529408454895, 0.9702128171920776]
    assert feeds["i"].tolist() == [4, 7, 9, 9, 4, 5]


def test_one_symbol_has_one_size():
    ports = [port("a", FLOAT, ("N", "seq")), port("b", FLOAT, ("seq", "M", 7))]
    drawn = random_feeds(ports, shapes={"a": (2, 5)}, dims={"M": 3})
    assert {name: value.shape for name, value in drawn.feeds.items()} == {"a": (2, 5), "b": (5, 3, 7)}
    assert drawn.choices == ()
    drawn = random_feeds(ports)
    assert drawn.feeds["b"].shape == (16, 1, 7)
    assert drawn.choices == ("a: dimension 0 (N) = 1", "a: dimension 1 (seq) = 16", "b: dimension 1 (M) = 1")


def test_given_values_bind_symbols_and_are_not_drawn():
    ports = [port("a", FLOAT, ("N", 3)), port("b", FLOAT, ("N",))]
    drawn = random_feeds(ports, given={"a": X})
    assert list(drawn.feeds) == ["b"]
    assert drawn.feeds["b"].shape == (2,)


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ((None, 3, None, None), (1, 3, 224, 224)),
        ((None, None, None, 3), (1, 224, 224, 3)),
        (("batch", "height", "w"), (1, 224, 224)),
        (("batch", "sequence_length"), (1, 16)),
        ((None, "samples"), (1, 16000)),
        ((-1, "?", 4), (1, 1, 4)),
        ((), ()),
    ],
)
def test_dynamic_dimensions_get_likely_sizes(shape, made):
    assert random_feeds([port("x", FLOAT, shape)]).feeds["x"].shape == made


def test_values_of_integers():
    ports = [
        port("ids", INT64, (1000,)),
        port("u8", 2, (5000,)),
        port("attention_mask", INT64, (9,)),
        port("t", INT64, (500,)),
    ]
    drawn = random_feeds(ports, limits={"t": 3})
    assert set(drawn.feeds["ids"].tolist()) == set(range(10))
    assert set(drawn.feeds["u8"].tolist()) == set(range(256))
    assert set(drawn.feeds["attention_mask"].tolist()) == {1}
    assert set(drawn.feeds["t"].tolist()) == {0, 1, 2}
    assert "t: values 0 to 2 (it indexes a table of 3 rows)" in drawn.choices


def test_ranges():
    ports = [port("f", FLOAT, (999,)), port("i", INT64, (99,)), port("u", 13, (9,))]
    drawn = random_feeds(ports, ranges={None: (2, 3), "u": (2**64 - 2, 2**64 - 1)})
    assert drawn.feeds["f"].min() >= 2
    assert drawn.feeds["f"].max() <= 3
    assert set(drawn.feeds["i"].tolist()) == {2, 3}
    assert set(drawn.feeds["u"].tolist()) <= {2**64 - 2, 2**64 - 1}
    for dtype, bounds in ((2, (0, 256)), (10, (0, 1e6)), (7, (0.2, 0.8))):
        with pytest.raises(FeedsError, match="do not fit"):
            random_feeds([port("x", dtype)], ranges={"x": bounds})


def test_sequences_and_optionals_are_drawn_and_maps_are_not():
    drawn = random_feeds([sequence(), optional()], shapes={"s": (2,)})
    assert [item.shape for item in drawn.feeds["s"]] == [(2,), (2,)]
    assert drawn.feeds["o"].shape == (1,)
    map_type = onnx.TypeProto()
    map_type.map_type.key_type = 7
    map_type.map_type.value_type.CopyFrom(make_type(FLOAT, []))
    with pytest.raises(UnsupportedError):
        random_feeds([Port("m", map_type)])


def test_what_cannot_be_drawn_says_why():
    with pytest.raises(FeedsError, match="does not say how many dimensions") as caught:
        random_feeds([port("x", FLOAT, None)])
    assert "--shape" in caught.value.hint
    assert random_feeds([port("x", FLOAT, None)], shapes={"x": (2, 2)}).feeds["x"].shape == (2, 2)
    with pytest.raises(FeedsError, match="no type"):
        random_feeds([Port("x", None)])
    with pytest.raises(FeedsError, match="the model wants 2 dimensions"):
        random_feeds([port()], shapes={"x": (2, 3, 4)})
    with pytest.raises(FeedsError, match="fixes dimension 1 at 3"):
        random_feeds([port()], shapes={"x": (2, 4)})


# ---------------------------------------------------------------- checking


def test_feeds_that_fit_come_back_in_order_and_contiguous():
    ports = [port("a", FLOAT, ("N", 3)), port("b", FLOAT, ("N",)), port("backed", required=False)]
    fitted = check_feeds({"b": np.ones(5, np.float32), "a": np.asfortranarray(X)}, ports)
    assert list(fitted) == ["a", "b"]  # a symbol that differs is for the runtime to judge
    assert fitted["a"].flags.c_contiguous
    assert bits(fitted["a"]) == bits(X)
    big_endian = check_feeds({"a": X.astype(">f4"), "b": np.ones(2, np.float32)}, ports)
    assert bits(big_endian["a"]) == bits(X)


def test_every_problem_is_named():
    ports = [port("input_ids", INT64, (1, 3)), port("mask", INT64, (1, "N")), port("x", FLOAT, (2, 3))]
    with pytest.raises(FeedsError) as caught:
        check_feeds({"input_id": X, "x": X.reshape(3, 2)}, ports)
    text = str(caught.value)
    assert "(4 problems)" in text
    assert "'input_id' is not an input of the model" in text
    assert "input 'mask' (int64[1, N]) is missing" in text
    assert "input 'x' has the shape [3, 2]; the model wants [2, 3] (dimension 0 is 3, not 2)" in text
    assert "Did you mean 'input_ids'?" in text


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (X.astype(np.float64), FLOAT, "is float64, the model wants float32"),
        (X.astype(np.int32), INT64, "is int32, the model wants int64"),
        (X, INT64, "is float32, the model wants int64"),
        (X.reshape(6), FLOAT, r"has 1 dimensions, \[6\]; the model wants 2"),
        (X, STRING, "is float32, the model wants string"),
        ({}, FLOAT, "wants a tensor, not a dict"),
        (None, FLOAT, "cannot be absent"),
    ],
)
def test_wrong_values(value, dtype, message):
    with pytest.raises(FeedsError, match=message):
        check_feeds({"x": value}, [port("x", dtype, (2, 3))])


def test_conversion_only_when_asked_and_only_without_loss_of_kind():
    ports = [port("x", FLOAT)]
    assert bits(check_feeds({"x": X.astype(np.float64)}, ports, cast=True)["x"]) == bits(X)
    assert bits(check_feeds({"x": X.astype(np.int8)}, ports, cast=True)["x"]) == bits(X)
    assert bits(check_feeds({"x": X.tolist()}, ports)["x"]) == bits(X)
    ints = [port("x", 3)]
    assert check_feeds({"x": X.astype(np.int64)}, ints, cast=True)["x"].dtype == np.int8
    with pytest.raises(FeedsError, match="cannot hold"):
        check_feeds({"x": X.astype(np.int64) + 300}, ints, cast=True)
    with pytest.raises(FeedsError, match="cannot hold"):
        check_feeds({"x": X.astype(np.float64) * 1e300}, ports, cast=True)
    with pytest.raises(FeedsError, match="the model wants int8"):
        check_feeds({"x": X}, ints, cast=True)


def test_sequences_and_optionals_are_checked():
    ports = [sequence(), optional()]
    fitted = check_feeds({"s": [X, X[0]], "o": None}, ports)
    assert fitted["o"] is None
    assert len(fitted["s"]) == 2
    assert check_feeds({"s": []}, ports) == {"s": [], "o": None}
    with pytest.raises(FeedsError, match=r"s\[1\].* is int64"):
        check_feeds({"s": [X, np.array([1])], "o": None}, ports)
    with pytest.raises(FeedsError, match="wants a list, not float32"):
        check_feeds({"s": X, "o": None}, ports)


def test_strings_come_as_text():
    fitted = check_feeds({"x": np.array([b"a", b"\xc3\x9f"])}, [port("x", STRING, (2,))])
    assert fitted["x"].tolist() == ["a", "ß"]
