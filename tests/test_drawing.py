"""Inputs drawn from a seed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from engines import bits
from onnx import helper

from onnxbench.captures import Port, numpy_dtype
from onnxbench.drawing import random_feeds
from onnxbench.errors import FeedsError, UnsupportedError
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
