"""The small languages of the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxbench.errors import NotFoundError, UsageError
from onnxbench.specs import (
    TensorSpec,
    parse_data_files,
    parse_dims,
    parse_duration,
    parse_memory,
    parse_ranges,
    parse_size,
    parse_tensor_specs,
    parse_tolerances,
)

NAMES = {"x", "input", "input:0", "a/b:1", "y=z", "a", "b", "name", "/layer1/Relu_output_0"}
FLOAT, HALF = 1, 10


@pytest.mark.parametrize(
    ("word", "specs"),
    [
        ("name:[1,3,224,224]", [("name", (1, 3, 224, 224), None)]),
        ("name:[1,3,224,224]:float32", [("name", (1, 3, 224, 224), FLOAT)]),
        ("name:(1, 3)", [("name", (1, 3), None)]),
        ("name:auto:auto", [("name", None, None)]),
        ("name:auto:fp16", [("name", None, HALF)]),
        ("name:1x3x224x224", [("name", (1, 3, 224, 224), None)]),
        ("a:1x3,b:4", [("a", (1, 3), None), ("b", (4,), None)]),
        ("a:1,3,b:4,5", [("a", (1, 3), None), ("b", (4, 5), None)]),
        ("a:[1,3],b:[4]:FLOAT", [("a", (1, 3), None), ("b", (4,), FLOAT)]),
        ("name:1,3,224,224", [("name", (1, 3, 224, 224), None)]),
        ("name:f32:1x3", [("name", (1, 3), FLOAT)]),
        ("name=1x3", [("name", (1, 3), None)]),
        ("name:[?,-1,N,*]", [("name", (None, None, "N", None), None)]),
        ("name:['N',3]", [("name", ("N", 3), None)]),
        ("name:[2*N, s0 + 1]", [("name", ("2*N", "s0 + 1"), None)]),
        ("name:Nx3", [("name", ("N", 3), None)]),
        ("name:[]", [("name", (), None)]),
        ("name:scalar", [("name", (), None)]),
        ("name:", [("name", (), None)]),
        ("name:[0,4]", [("name", (0, 4), None)]),
        ('"input:0":[1]', [("input:0", (1,), None)]),
        ("input:0:[1]", [("input:0", (1,), None)]),
        ("input:0", [("input:0", None, None)]),
        ("input:5", [("input", (5,), None)]),
        ("a/b:1:fp16", [("a/b:1", None, HALF)]),
        ("y=z=3", [("y=z", (3,), None)]),
        ("/layer1/Relu_output_0:[1]:f16", [("/layer1/Relu_output_0", (1,), HALF)]),
        ("a,b", [("a", None, None), ("b", None, None)]),
    ],
)
def test_every_spelling_of_the_field(word, specs):
    assert parse_tensor_specs([word], NAMES) == [TensorSpec(*spec) for spec in specs]


@pytest.mark.parametrize("word", ["1,3,224,224", "[1,3,224,224]", "1x3x224x224", "in:1,3,224,224"])
def test_a_bare_shape_is_that_of_the_single_input(word):
    assert parse_tensor_specs([word], ["in"]) == [TensorSpec("in", (1, 3, 224, 224))]


def test_a_bare_shape_needs_a_single_input():
    with pytest.raises(UsageError, match="does not say which tensor it is for; there are 2 inputs: a, b"):
        parse_tensor_specs(["1,3"], ["a", "b"])


@pytest.mark.parametrize(
    ("word", "error", "words"),
    [
        ("inptu:1x3", NotFoundError, "no tensor 'inptu'"),
        ("nope", NotFoundError, "no tensor 'nope'"),
        ("x:1x3:flot32", UsageError, "'flot32' is neither a shape nor an element type"),
        ("x:flot32", UsageError, "'flot32' is neither"),
        ("x:[1,3]foo", UsageError, "neither a shape"),
        ("x:[1,3", UsageError, "neither a shape"),
        ("x:[1.5]", UsageError, "neither a shape"),
        ("x:[-2]", UsageError, "neither a shape"),
        ("x:[1]:f32:f32", UsageError, "more than one shape and one element type"),
        ("x:[1]:[2]", UsageError, "more than one"),
        ("a:1,a:2", UsageError, "something else was already said of 'a'"),
    ],
)
def test_what_cannot_be_read_in_full_is_an_error(word, error, words):
    with pytest.raises(error, match=words):
        parse_tensor_specs([word], NAMES)


def test_a_wrong_name_gets_near_ones():
    with pytest.raises(NotFoundError) as caught:
        parse_tensor_specs(["inptu:1x3"], NAMES)
    assert "'input'" in caught.value.hint


def test_without_names_the_longest_readable_tail_is_shape_and_type():
    words = ["a:b:[1]:f32", "a/b", "t:0"]
    assert parse_tensor_specs(words) == [TensorSpec("a:b", (1,), FLOAT), TensorSpec("a/b"), TensorSpec("t", (0,))]


dims = st.lists(st.one_of(st.integers(0, 10**6), st.none(), st.sampled_from(["N", "batch", "h2"])), max_size=5)


@given(
    name=st.text(st.characters(codec="ascii", exclude_characters="\"'[](),\0\n\r"), min_size=1).filter(
        lambda text: text == text.strip()
    ),
    shape=dims,
    dtype=st.sampled_from([None, "float32", "int4"]),
)
def test_any_name_with_a_bracketed_shape_round_trips(name, shape, dtype):
    text = ",".join("?" if dim is None else str(dim) for dim in shape)
    word = f"{name}:[{text}]" + (f":{dtype}" if dtype else "")
    number = {None: None, "float32": 1, "int4": 22}[dtype]
    assert parse_tensor_specs([word], {name, "other"}) == [TensorSpec(name, tuple(shape), number)]


@given(st.text(max_size=20))
def test_no_text_breaks_the_parser(text):
    for names in (NAMES, {"x"}, None):
        try:
            specs = parse_tensor_specs([text], names)
        except (UsageError, NotFoundError):
            continue
        assert names is None or {spec.name for spec in specs} <= names


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("16K", 16384), ("1M", 1 << 20), ("2GiB", 2 << 30), ("500MB", 500 * 10**6), ("1.5g", 3 << 29),
     ("8 kB", 8000), ("3b", 3), ("1t", 1 << 40)],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "1Q", "-1", "1e3", "one", "1 2"])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_memory_without_a_unit_is_no_small_number():
    sizes = {"1024M": 1 << 30, "1024B": 1024, "1073741824": 1 << 30, "0": 0, "0.5G": 1 << 29}
    assert {text: parse_memory(text) for text in sizes} == sizes
    with pytest.raises(UsageError, match="1024 would be 1,024 bytes") as caught:
        parse_memory(" 1024 ")
    assert caught.value.hint == "Write 1024M for MiB, or 1024B for bytes."


def test_durations():
    assert [parse_duration(text) for text in ("2", "500ms", "1.5min", "20us")] == pytest.approx([2, 0.5, 90, 2e-5])
    with pytest.raises(UsageError, match="is not a time"):
        parse_duration("soon")


def test_tolerances_for_all_and_for_one():
    assert parse_tolerances(["1e-3", "input:0:1e-2", "a:0,b:1"], NAMES) == {None: 1e-3, "input:0": 1e-2, "a": 0, "b": 1}
    for word, error in (("-1", UsageError), ("nan", UsageError), ("x:y", UsageError), ("nope:1", NotFoundError)):
        with pytest.raises(error):
            parse_tolerances([word], NAMES)


def test_ranges_keep_whole_numbers():
    found = parse_ranges(["[0,1]", "x:[2,9223372036854775807]", "a:0,0.5,b:(3,4)"], NAMES)
    assert found == {None: (0, 1), "x": (2, 2**63 - 1), "a": (0, 0.5), "b": (3, 4)}
    assert isinstance(found["x"][1], int)
    for word in ("[1]", "[2,1]", "[0,nan]", "[0,inf]", "x:0", "[0,1,2]"):
        with pytest.raises(UsageError):
            parse_ranges([word], NAMES)


def test_data_files():
    found = parse_data_files(["f.npz", "x:f.npy", "a=f.bin,input:0=g.bin", "dir:with=odd,name.npz"], NAMES)
    assert found == {None: ["f.npz", "dir:with=odd,name.npz"], "x": ["f.npy"], "a": ["f.bin"], "input:0": ["g.bin"]}


def test_dims():
    assert parse_dims(["N=4,M=2", "batch:8"]) == {"N": 4, "M": 2, "batch": 8}
    for word in ("N", "N=x", "=4", "N=1,N=2"):
        with pytest.raises(UsageError):
            parse_dims([word])
