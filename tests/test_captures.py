"""The npz form, and what fits the inputs of a model."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from engines import bits
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxbench.captures import MANIFEST, Capture, CaptureWriter, Port, check_feeds, onnx_dtype, save
from onnxbench.datafiles import load, load_value
from onnxbench.drawing import random_feeds
from onnxbench.errors import FeedsError, OutputError
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
    with pytest.raises(FeedsError, match="is float32, the model wants int8, and --cast turns no floats into integers"):
        check_feeds({"x": X}, ints, cast=True)
    with pytest.raises(FeedsError, match="is complex64, the model wants float32, and --cast does not convert that"):
        check_feeds({"x": X.astype(np.complex64)}, ports, cast=True)


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
