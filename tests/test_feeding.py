"""From the words a user types to inputs of a model."""

from __future__ import annotations

import numpy as np
import pytest
from engines import bits
from onnx import helper, numpy_helper, parser

from onnxbench.errors import FeedsError, NotFoundError, UsageError
from onnxbench.feeding import FeedOptions, feed_sets, index_limits
from onnxbench.model import from_proto

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(inputs: str = "float[N,3] x, int64[N] n"):
    return from_proto(
        parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[A] z) {{ z = Abs(x) }}')
    )


def sets(*sources, inputs="float[N,3] x, int64[N] n", **said):
    return list(feed_sets(model(inputs), FeedOptions(sources, **said)))


def test_without_data_one_set_is_drawn():
    (one,) = feed_sets(model())
    assert {name: value.shape for name, value in one.feeds.items()} == {"x": (1, 3), "n": (1,)}
    assert one.choices == ("x: dimension 0 (N) = 1", "n: values 0 to 9")


def test_iterations_differ_and_a_seed_repeats():
    first, second = sets(iterations=2, dims=["N=5"], ranges=["n:[0,100000]"])
    assert first.feeds["x"].shape == (5, 3)
    assert bits(first.feeds) != bits(second.feeds)
    assert bits(sets(dims=["N=5"], ranges=["n:[0,100000]"])[0].feeds) == bits(first.feeds)
    assert bits(sets(seed=1, dims=["N=5"], ranges=["n:[0,100000]"])[0].feeds) != bits(first.feeds)


def test_whole_sets_single_inputs_and_both(tmp_path):
    n = np.array([7, 8])
    np.savez(tmp_path / "all.npz", x=X, n=n)
    np.savez(tmp_path / "x.npz", x=X + 1)
    np.save(tmp_path / "n.npy", n + 1)
    (X + 2).tofile(tmp_path / "x.bin")
    (one,) = sets(str(tmp_path / "all.npz"))
    assert bits(one.feeds) == bits({"x": X, "n": n})
    one, two = sets(str(tmp_path / "all.npz"), str(tmp_path / "x.npz"), f"n:{tmp_path}/n.npy")
    assert bits(one.feeds) == bits({"x": X, "n": n + 1})
    assert bits(two.feeds) == bits({"x": X + 1, "n": n + 1})
    (one,) = sets(f"x={tmp_path}/x.bin,n={tmp_path}/n.npy", shapes=["x:2x3"])
    assert bits(one.feeds) == bits({"x": X + 2, "n": n + 1})
    assert len(sets(str(tmp_path / "all.npz"), str(tmp_path / "all.npz"), iterations=1)) == 1


def test_what_is_missing_is_an_error_unless_it_is_to_be_drawn(tmp_path):
    np.savez(tmp_path / "x.npz", x=X)
    source = str(tmp_path / "x.npz")
    with pytest.raises(FeedsError, match=r"input 'n'.* is missing"):
        sets(source)
    (one,) = sets(source, fill=True)
    assert bits(one.feeds["x"]) == bits(X)
    assert one.feeds["n"].shape == (2,)


def test_words_that_name_nothing():
    for said, error, words in (
        ({"shapes": ["y:[1,3]"]}, NotFoundError, "no tensor 'y'"),
        ({"shapes": ["x:[1,3]:float16"]}, FeedsError, "'x' is float32 in the model, not float16"),
        ({"ranges": ["y:[0,1]"]}, NotFoundError, "no tensor 'y'"),
        ({"dims": ["M=3"]}, NotFoundError, "no input has a dimension called 'M'"),
        ({"shapes": ["1,3"]}, UsageError, "does not say which"),
    ):
        with pytest.raises(error, match=words):
            sets(**said)
    with pytest.raises(NotFoundError, match=r"no file nn:f\.npy, and no input is called 'nn'") as caught:
        sets("nn:f.npy")
    assert "'n'" in caught.value.hint
    with pytest.raises(UsageError, match="given twice"):
        sets("x:a.npy", "x:b.npy")


def test_a_bare_shape_is_for_the_only_required_input():
    text = "float[N,3] x, float[2] w = {1, 2}"
    (one,) = sets(shapes=["4,3"], inputs=text)
    assert {name: value.shape for name, value in one.feeds.items()} == {"x": (4, 3)}


def gathers(table, nodes, initializers=()):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", 7, ["N"])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(table, "table"), *initializers],
    )  # fmt: skip
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    ("nodes", "limit"),
    [
        ([helper.make_node("Gather", ["table", "ids"], ["y"])], 11),
        ([helper.make_node("Gather", ["table", "ids"], ["y"], axis=-1)], 4),
        ([helper.make_node("Gather", ["ids", "ids"], ["y"])], None),
        (
            [
                helper.make_node("Cast", ["ids"], ["i32"], to=6),
                helper.make_node("Identity", ["i32"], ["same"]),
                helper.make_node("Cast", ["table"], ["wide"], to=1),
                helper.make_node("Gather", ["wide", "same"], ["y"]),
            ],
            11,
        ),
    ],
)
def test_indices_stay_within_the_table_they_index(nodes, limit):
    made = gathers(np.zeros((11, 4), np.float32), nodes)
    assert index_limits(made) == ({} if limit is None else {"ids": limit})
    (one,) = feed_sets(made, FeedOptions(dims=["N=400"]))
    assert one.feeds["ids"].max() == (9 if limit is None else limit - 1)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"shapes": ["x:[2,4]"]}, r"given the shape \[2, 4\], but the model fixes dimension 1 at 3: \[N, 3\]"),
        ({"shapes": ["x:[2,K]"]}, r"given the shape \[2, K\], but the model fixes dimension 1 at 3: \[N, 3\]"),
        ({"shapes": ["x:[2]"]}, r"given the shape \[2\], but the model wants 2 dimensions: \[N, 3\]"),
        ({"shapes": ["x:[2,3]"], "dims": ["N=4"]}, r"dimension 0 \(N\) of input 'x' is 2 by --shape, and 4 by --dim"),
        ({"sources": "x", "shapes": ["x:[5,3]"]}, r"has the shape \[2, 3\] in the data, and \[5, 3\] by --shape"),
        ({"sources": "x", "shapes": ["n:[1]"], "dims": ["N=4"]}, r"'n' is 1 by --shape, and 4 by --dim"),
        ({"sources": "x", "dims": ["N=4"]}, r"dimension 0 \(N\) of input 'x' is 2 by the data, and 4 by --dim"),
    ],
)
def test_shapes_that_contradict_the_model_the_data_or_each_other(tmp_path, said, message):
    np.savez(tmp_path / "x.npz", x=X)
    given = [str(tmp_path / "x.npz")] if said.pop("sources", None) else []
    with pytest.raises(FeedsError, match=message):
        sets(*given, **said, fill=True)


def test_the_shape_of_the_elements_of_a_sequence():
    made = from_proto(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (seq(float[N,3]) s) => (float[A,B] z) '
            "{ z = ConcatFromSequence <axis = 0> (s) }"
        )
    )
    (one,) = feed_sets(made, FeedOptions(shapes=["s:[2,3]"]))
    assert [item.shape for item in one.feeds["s"]] == [(2, 3), (2, 3)]
    for shape in ("[]", "[2,4]", "[1,2,3]"):
        with pytest.raises(FeedsError, match="input 's' is given the shape"):
            list(feed_sets(made, FeedOptions(shapes=[f"s:{shape}"])))


def test_what_would_be_ignored_beside_data_is_refused(tmp_path):
    np.savez(tmp_path / "all.npz", x=X, n=np.array([7, 8]))
    with pytest.raises(UsageError, match="--val-range is for inputs that are drawn"):
        sets(str(tmp_path / "all.npz"), ranges=["[0,1]"])
    with pytest.raises(FeedsError, match="3 sets of inputs are asked for, and the data holds 1"):
        sets(str(tmp_path / "all.npz"), iterations=3)
