"""``bisect --torch``: faults put into exported files are found by comparing with PyTorch itself."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from injections import FAULTS as ALL_FAULTS
from injections import inject, nan_branch
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

from onnxbench.bisection import Bisection, bisect  # noqa: E402
from onnxbench.errors import FeedsError, NotFoundError, UnsupportedError, UsageError  # noqa: E402
from onnxbench.graph import GraphIndex  # noqa: E402
from onnxbench.model import from_proto  # noqa: E402
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402
from onnxbench.pytorch.reference import TorchReference, torch_reference  # noqa: E402
from onnxbench.reduction import reduce_failure  # noqa: E402

pytestmark = pytest.mark.torch
MODELS = Path(__file__).resolve().parent / "drift_models.py"
EXPORTERS = ("torch.export", "torchscript")


def spelled(name: str) -> str:
    return f"{MODELS}:{name}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models, exported: by name, and the one from the TorchScript exporter."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}
    for name, source, exporter in (
        ("torch.export", "net", "torch.export"), ("torchscript", "net", "torchscript"), ("ids", "ids", "torch.export"),
        ("branching", "branching", "torchscript"), ("small_biases", "small_biases", "torchscript"),
        ("small_biases_told", "small_biases", "torch.export"), ("gated", "gated", "torch.export"),
        ("gated_plain", "gated", "torchscript"),
    ):  # fmt: skip
        made[name] = folder / f"{name}.onnx"
        assert export(spelled(source), made[name], options=ExportOptions(exporter=exporter)).passed
    return made


def node(model: onnx.ModelProto, operator: str, number: int) -> onnx.NodeProto:
    return [each for each in model.graph.node if each.op_type == operator][number]


def weight(model: onnx.ModelProto, test: Callable[[onnx.TensorProto], bool], change: Callable[..., None]) -> str:
    tensor = next(each for each in model.graph.initializer if test(each))
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return next(each.output[0] for each in model.graph.node if tensor.name in each.input)


def scale(values: np.ndarray) -> None:
    values[3] *= 1.01


def shift(values: np.ndarray) -> None:
    values[3] += 0.05


def wrong_epsilon(model: onnx.ModelProto) -> str:
    norm = node(model, "LayerNormalization", 2)
    next(each for each in norm.attribute if each.name == "epsilon").f = 1e-3
    return norm.output[0]


def gelu_by_tanh(model: onnx.ModelProto) -> str:
    gelu = node(model, "Gelu", 1)
    del gelu.attribute[:]
    gelu.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
    return gelu.output[0]


def one_bias(model: onnx.ModelProto) -> str:
    return weight(model, lambda tensor: tensor.name == "blocks.1.up.bias", shift)


def the_folded_convolution(model: onnx.ModelProto) -> str:
    return weight(model, lambda tensor: len(tensor.dims) == 4, scale)


def a_nan(model: onnx.ModelProto) -> str:
    gelu = node(model, "Gelu", 0)
    gelu.op_type, name = "Log", gelu.output[0]
    del gelu.attribute[:]
    return name


@cache
def reference(source: str, dtype: str | None = None) -> TorchReference:
    """A model in PyTorch; exported once for all tests that compare with it."""
    return torch_reference(spelled(source), dtype=dtype)


def found_in(model: onnx.ModelProto, source: str = "net", dtype: str | None = None) -> Bisection:
    return bisect(from_proto(model), against=reference(source, dtype))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_right_file_is_not_accused(files, exporter):
    found = bisect(files[exporter], against=reference("net"))
    assert found.passed
    assert found.culprits == ()
    assert found.matched >= 20
    assert found.how == {"torch.export": "metadata", "torchscript": "names, values"}[exporter]


@pytest.mark.parametrize("file", ["small_biases", "small_biases_told"])
def test_steps_near_to_a_value_are_not_taken_for_it(files, file):
    """A MatMul is a step within a linear layer, whether metadata tells that or not, and its bias changes little."""
    assert bisect(files[file], against=reference("small_biases")).culprits == ()


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_calibrated_tolerances_are_what_float64_shows(files, dtype):
    (output,) = bisect(files["torch.export"], against=reference("net", dtype), auto_tolerance=True).outputs
    assert output.passed
    module, (image,) = runpy.run_path(str(MODELS))["net"]()
    with torch.no_grad():
        apart = (module(image) - module.double()(image.double())).abs().max()
    assert output.tolerance.atol == pytest.approx(10 * float(apart), rel=0.5)


FAULTS = [one_bias, wrong_epsilon, gelu_by_tanh, the_folded_convolution, a_nan]
MODULES = {
    one_bias: "blocks.1.up", wrong_epsilon: "blocks.2.norm", gelu_by_tanh: "blocks.1.act", a_nan: "blocks.0.act"
}  # fmt: skip


@pytest.mark.parametrize("dtype", [None, "float64"], ids=["float32", "float64"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_faulty_node_is_named_with_its_module_and_line(files, fault, dtype):
    model = onnx.load(files["torch.export"])
    truth = fault(model)
    found = found_in(model, dtype=dtype)
    assert not found.passed
    assert [culprit.tensor for culprit in found.culprits] == [truth]
    (culprit,) = found.culprits
    assert culprit.module == MODULES.get(fault, "bn")
    assert culprit.source is not None
    assert culprit.source.startswith(str(MODELS))
    assert culprit.effect is not None
    assert culprit.effect > 0.99


def test_a_later_step_that_undoes_a_fault_is_not_taken_for_it(files):
    """A square of a square root before a Relu: with the Relu's value in place of the root's argument all is right."""
    model = onnx.load(files["torch.export"])
    at = next(at for at, each in enumerate(model.graph.node) if each.op_type == "Conv")
    assert nan_branch(model, at, np.random.default_rng(0))
    (culprit,) = found_in(model).culprits
    assert culprit.region == ("Sqrt#1", "Mul#2")


ELSEWHERE = {"gelu by tanh", "wrong epsilon", "shifted pad", "wrong resize"}  # there is no place for these in it


@pytest.mark.parametrize("kind", sorted(set(ALL_FAULTS) - ELSEWHERE))
def test_a_fault_among_the_nodes_of_one_operator_is_found_to_the_node(files, kind):
    """PyTorch has no value between these, but computes some: the steps of a call, and what nodes were put behind."""
    model = onnx.load(files["gated"])
    assert found_in(model, "gated").passed
    feeds = reference("gated", None).inputs(0)
    assert feeds
    for seed in range(2):
        injected = inject(model, (kind,), feeds, seed)
        assert injected is not None
        found = found_in(injected.model, "gated")
        makers = dict(zip(GraphIndex(injected.model).main.labels(), injected.model.graph.node, strict=True))
        (culprit,) = found.culprits
        assert injected.truths[0].intersection(makers[culprit.node].output), (injected.words, found.verdict)


def named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.name == name)


def idle_transpose(model: onnx.ModelProto) -> None:
    named(model, "/Transpose_3").attribute[0].ints[:] = [0, 1, 2, 3]


def wrong_wire(model: onnx.ModelProto) -> None:
    named(model, "/gate/MatMul").input[0] = "x"


def read_by_several(model: onnx.ModelProto) -> None:
    named(model, "/Add").op_type = "Sub"


def wrong_axis_in_a_call(model: onnx.ModelProto) -> None:
    named(model, "/Softmax").attribute[0].i = 2


def casts_in_a_row(model: onnx.ModelProto) -> None:
    for name, source, made, kind in (("narrow", "/Add_output_0", "half", 10), ("back", "half", "single", 1)):
        cast = onnx.helper.make_node("Cast", [source], [made], name=name, to=kind)
        model.graph.node.insert([*model.graph.node].index(named(model, "/gate/MatMul")), cast)
    named(model, "/gate/MatMul").input[0] = "single"


@pytest.mark.parametrize(
    ("fault", "node"),
    [
        (idle_transpose, "/Transpose_3"),
        (wrong_wire, "/gate/MatMul"),
        (read_by_several, "/Add"),
        (wrong_axis_in_a_call, "/Softmax"),
        (casts_in_a_row, "narrow"),
    ],
)
def test_a_file_without_metadata_is_searched_to_the_node(files, fault, node):
    model = onnx.load(files["gated_plain"])
    fault(model)
    del model.graph.value_info[:]
    found = found_in(model, "gated")
    assert [culprit.node for culprit in found.culprits] == [node]
    assert found.culprits[0].effect > 0.99


def test_an_anonymous_repro_is_computed_anew_in_pytorch(files, tmp_path):
    model = onnx.load(files["torch.export"])
    wrong_epsilon(model)
    bisect(from_proto(model), against=reference("net"), repro=tmp_path / "repro", anonymize=True)
    assert b"blocks" not in (tmp_path / "repro" / "culprit.onnx").read_bytes()
    done = subprocess.run([sys.executable, tmp_path / "repro" / "reproduce.py"], check=False, capture_output=True)
    assert done.returncode == 1
    one_bias(model := onnx.load(files["torch.export"]))  # of a linear layer, whose weight the exporter transposed
    with pytest.raises(UnsupportedError, match="is not in the reference as it is here"):
        bisect(from_proto(model), against=reference("net"), repro=tmp_path / "other", anonymize=True)


def test_a_failure_is_reduced_with_pytorch_as_what_is_right(files, tmp_path):
    model = onnx.load(files["torch.export"])
    truth = wrong_epsilon(model)
    found = reduce_failure(from_proto(model), tmp_path / "small.onnx", against=reference("net"))
    left = onnx.load(tmp_path / "small.onnx").graph.node
    assert [name for each in left for name in each.output] == [truth]
    done = subprocess.run([sys.executable, found.files[-1]], check=False, capture_output=True)
    assert done.returncode == 1
    assert not reduce_failure(files["torch.export"], against=reference("net")).shows


def test_what_pytorch_calls_shows_the_cause(files):
    model = onnx.load(files["torch.export"])
    wrong_epsilon(model)
    (culprit,) = found_in(model).culprits
    assert "epsilon=0.001" in culprit.attributes
    assert "aten.layer_norm.default" in culprit.reference_region[0]
    assert "1e-05" in culprit.reference_region[0]
    model = onnx.load(files["torch.export"])
    one_bias(model)
    (culprit,) = found_in(model).culprits
    assert culprit.why == (
        "weight blocks.1.up.bias: 1 of 64 elements are not the reference's, by up to 5.0e-02",
    )  # fmt: skip


def test_kept_fusions_accuse_no_weight_that_was_folded(files):
    """The exporter folds a normalization into a convolution, and ONNX Runtime this and what follows into its own."""
    model = onnx.load(files["torch.export"])
    node(model, "Relu", 0).op_type = "Gelu"
    found = bisect(from_proto(model), against=reference("net"), keep_fusions=True)
    (culprit,) = found.culprits
    assert (culprit.op_type, culprit.why) == ("Gelu", ())
    assert f"at {culprit.node} (Gelu" in found.verdict
    one_bias(wrong := onnx.load(files["torch.export"]))
    (culprit,) = bisect(from_proto(wrong), against=reference("net"), keep_fusions=True).culprits
    assert culprit.why == ("weight blocks.1.up.bias: 1 of 64 elements are not the reference's, by up to 5.0e-02",)


def test_a_refused_suspect_has_no_inputs_of_pytorch(files):
    model = onnx.load(files["torch.export"])
    node(model, "Relu", 0).attribute.append(onnx.helper.make_attribute("no_such", 1))
    failure = bisect(from_proto(model), against=torch_reference(spelled("net"))).failure
    assert (failure.how, failure.op_type) == ("refused", "Relu")


def test_a_file_that_tells_nothing_of_pytorch(files):
    """Names and metadata are gone: values alone tell which tensor is which, and PyTorch tells module and line."""
    model = onnx.load(files["torch.export"])
    truth = wrong_epsilon(model)
    names = {name: f"t{at}" for at, name in enumerate(name for each in model.graph.node for name in each.output)}
    for at, each in enumerate(model.graph.node):
        each.name = f"n{at}"
        del each.metadata_props[:]
        for names_of in (each.input, each.output):
            names_of[:] = [names.get(name, name) for name in names_of]
    for info in model.graph.output:
        info.name = names[info.name]
    del model.graph.value_info[:]
    found = found_in(model)
    assert found.how == "values"
    assert [culprit.tensor for culprit in found.culprits] == [names[truth]]
    assert found.culprits[0].module == "blocks.2.norm"
    assert found.culprits[0].source.startswith(str(MODELS))
    assert "blocks.2" in [module.path for module in found.modules]


def test_a_model_that_cannot_be_exported_gives_the_outputs_of_its_modules(files):
    model = onnx.load(files["branching"])
    truth = weight(model, lambda tensor: tensor.name == "blocks.1.up.bias", shift)
    found = found_in(model, "branching")
    assert any("outputs of modules" in note for note in found.notes)
    assert [culprit.tensor for culprit in found.culprits] == [truth]
    assert bisect(files["branching"], against=reference("branching")).passed


def test_the_graph_that_a_runtime_makes_of_it_is_searched(files):
    model = onnx.load(files["torch.export"])
    wrong_epsilon(model)
    found = bisect(from_proto(model), against=reference("net"), on="ort:all,threads=1")
    assert found.culprits[0].module == "blocks.2.norm"
    assert bisect(files["torch.export"], against=reference("net"), on="ort:all").passed


def test_several_sets_are_like_the_example(files):
    """Indices stay within their table, however many sets are asked for."""
    from onnxbench.feeding import FeedOptions

    found = bisect(files["ids"], against=reference("ids"), feeds=FeedOptions(iterations=4))
    assert found.passed
    assert found.sets == 4


def test_the_user_s_inputs_are_taken(files):
    value = np.full((2, 3, 16, 16), 0.5, np.float32)
    found = bisect(files["torch.export"], against=reference("net"), feeds={"image": value})
    assert found.passed


def test_the_model_of_another_file_is_refused(files):
    with pytest.raises(FeedsError, match="image"):
        bisect(files["ids"], against=reference("net"))
    found = bisect(files["torch.export"], against=reference("wider"))
    assert not found.passed


def test_what_cannot_be_is_refused(files):
    with pytest.raises(UsageError, match="no example inputs"):
        torch_reference(spelled("alone"))
    with pytest.raises(NotFoundError, match="nett"):
        torch_reference(spelled("nett"))
    with pytest.raises(UsageError, match="no way 'value' to match"):
        bisect(files["ids"], against=torch_reference(spelled("ids"), by="value"))
    with pytest.raises(NotFoundError, match="no argument 'idz'"):
        bisect(files["ids"], against=torch_reference(spelled("ids"), inputs={"ids": "idz"}))
    with pytest.raises(UsageError, match="int64 is no floating-point type"):
        bisect(files["ids"], against=torch_reference(spelled("ids"), dtype="int64"))


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_command(files, tmp_path):
    model = onnx.load(files["torch.export"])
    truth = gelu_by_tanh(model)
    onnx.save(model, tmp_path / "broken.onnx")
    done = run("bisect", "broken.onnx", "--torch", spelled("net"), "--repro", "culprit", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["result"]["culprits"][0]["tensor"] == truth
    script = subprocess.run([sys.executable, "culprit/reproduce.py"], cwd=tmp_path, capture_output=True, text=True)
    assert script.returncode == 1, script.stderr
    assert "the failure shows" in script.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--torch", "x.py:net", "--against", "b.onnx"], "both name a reference"),
        (["--reference-dtype", "float64"], "--torch"),
        (["--torch", "nowhere.py:net"], "nowhere.py"),
        (["--torch", f"{MODELS}:net", "--input", "image"], "NAME=ARG"),
    ],
)
def test_wrong_words(files, tmp_path, words, said):
    done = run("bisect", files["torch.export"], *words, cwd=tmp_path)
    assert done.returncode not in (0, 1)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
