"""Maps between ONNX values and PyTorch's: right, or said to be unknown; a wrong file, model or factory is told."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

from onnxbench.errors import ExecutionError, FeedsError, NotFoundError, UsageError  # noqa: E402
from onnxbench.graph import GraphIndex  # noqa: E402
from onnxbench.model import from_proto, load  # noqa: E402
from onnxbench.origins import origins_of  # noqa: E402
from onnxbench.provenance import FX_NODE, FX_VALUES, NAME_SCOPES  # noqa: E402
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402
from onnxbench.pytorch.mapping import Mapped, map_values  # noqa: E402
from onnxbench.pytorch.matching import input_sets, match, match_metadata, match_values  # noqa: E402
from onnxbench.pytorch.sources import load_source  # noqa: E402
from onnxbench.pytorch.values import TorchValues, torch_values  # noqa: E402
from onnxbench.select import select  # noqa: E402

pytestmark = pytest.mark.torch
MODELS = Path(__file__).resolve().parent / "torch_models.py"
BOTH = pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])


def spelled(name: str) -> str:
    return f"{MODELS}:{name}"


_DONE: dict[str, tuple[bytes, Any]] = {}
"""Exports made already: the file and the program."""


def _export(name: str, exporter: str, **options) -> tuple[bytes, Any]:
    key = repr((name, exporter, options))
    if key not in _DONE:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.onnx"
            chosen = ExportOptions(exporter=exporter, verify=False, **options)
            done = export(spelled(name), out, options=chosen)
            _DONE[key] = out.read_bytes(), done.program
    return _DONE[key]


def exported(name: str, out: Path, exporter: str = "torch.export", **options) -> Path:
    out.write_bytes(_export(name, exporter, **options)[0])
    return out


def side_of(name: str, model) -> TorchValues:
    return torch_values(load_source(spelled(name)), model=model, program=_export(name, "torch.export")[1])


def mapped(model, name: str, **said) -> Mapped:
    """Maps with the program of an export in this process, as Python code would."""
    return map_values(model, spelled(name), program=_export(name, "torch.export")[1], **said)


def stripped(path: Path, out: Path) -> tuple[Path, dict[str, str]]:
    """Writes a copy without names and metadata, and returns what its values were called before."""
    proto = onnx.load(path)
    ports = {info.name for info in (*proto.graph.input, *proto.graph.output)}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if not name or name in ports else names.setdefault(name, f"t{len(names)}")

    for tensor in proto.graph.initializer:
        tensor.name = new(tensor.name)
    for node in proto.graph.node:
        node.name = ""
        node.ClearField("doc_string")
        del node.metadata_props[:]
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    del proto.metadata_props[:], proto.graph.value_info[:]
    onnx.save(proto, out)
    return out, {**{mine: was for was, mine in names.items()}, **{name: name for name in ports}}


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


# ---------------------------------------------------------------- a PyTorch model as a source of values


def eager(module, x):
    """The values of ``Net``, taken by hand."""
    found = {}
    with torch.no_grad():
        for at, block in enumerate(module.layers):
            found[f"layers.{at}.conv"] = block.conv(x)
            found[f"layers.{at}.bn"] = block.bn(found[f"layers.{at}.conv"])
            x = found[f"layers.{at}"] = torch.relu(found[f"layers.{at}.bn"])
        found["dropout"] = x.mean((2, 3))
        found["head"] = module.head(found["dropout"])
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("how", ["program", "modules"])
def test_values_are_those_of_the_modules_in_any_order_and_batches(how, tmp_path):
    model = load(exported("net", tmp_path / "net.onnx", dynamic=["x:0=batch"]))
    side = torch_values(load_source(spelled("net")), model=model, how=how)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)  # another batch than the example's
    wanted = eager(side.source.module, torch.from_numpy(x))
    names = {each.calls[-1] if each.calls else name: name for name, each in side.values.items()}
    calls = [call for call in wanted if call in names]
    assert len(calls) >= 7
    for batches in ([calls], [[call] for call in calls], [[call] for call in reversed(calls)], [[], calls[3:], calls]):
        got = list(side.stream({"x": x}, [[names[call] for call in batch] for batch in batches]))
        for batch, values in zip(batches, got, strict=True):
            assert list(values) == [names[call] for call in batch]
            for call in batch:
                np.testing.assert_allclose(values[names[call]], wanted[call], rtol=1e-5, atol=1e-6, err_msg=call)


def test_hooks_count_calls_copy_what_is_changed_in_place_and_flatten_results():
    side = torch_values(load_source(spelled("twice")), how="modules")
    assert [*side.values] == [
        "linear", "relu", "linear@1", "relu@1", "pair:parts.0", "pair:parts.1", "(model):left", "(model):sum",
    ]  # fmt: skip
    assert side.values["(model):left"].same_as == "pair:parts.0"
    assert side.values["relu"].same_as is None  # the tensor of linear, but changed since
    assert side.values["linear@1"].origin.call == 1
    side.inputs = {"x": "x"}
    values = next(side.stream(side.examples(), [[*side.values]]))
    assert (values["linear"] < 0).any()  # before relu changed it in place
    np.testing.assert_array_equal(values["relu"], np.maximum(values["linear"], 0))
    np.testing.assert_array_equal(values["pair:parts.1"], values["relu@1"][:, 2:] - 0.25)


def test_values_of_a_program_are_dropped_after_their_last_use():
    side = torch_values(load_source(spelled("deep")), how="program")
    assert len(side.values) == 48
    side.inputs = {"x": "x"}
    names, found = [*side.values], []
    for at, _ in enumerate(side.stream(side.examples(), [[name] for name in names])):
        if at in (20, 40):
            tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
            found.append(sum(tuple(each.shape) == (512, 513) and each.device.type == "cpu" for each in tensors))
    assert max(found) <= 8  # the example, its copy, and what the next node reads


def test_bfloat16_values_keep_their_type():
    side = torch_values(load_source(spelled("half_net")))
    side.inputs = {"x": "x"}
    values = next(side.stream(side.examples(), [["relu"]]))
    assert values["relu"].dtype == np.dtype(ml_dtypes.bfloat16)


def test_what_torch_export_refuses_gives_outputs_of_modules_and_says_so(tmp_path):
    path = exported("stubborn", tmp_path / "m.onnx", "torchscript")
    side = torch_values(load_source(spelled("stubborn")), model=load(path))
    assert side.kind == "modules"
    assert "outputs of modules" in side.notes[0]
    with pytest.raises(ExecutionError):
        torch_values(load_source(spelled("stubborn")), how="program")
    found = map_values(path, spelled("stubborn"))
    assert found.passed
    assert {each.torch for each in found.values if each.kind == "value"} == {"first", "second"}
    assert found.share == 1.0
    assert [each.kind for each in found.values] == ["value", "inside", "value"]  # Tanh is no module


def test_inputs_by_other_names_are_told_by_order_or_by_the_user(tmp_path):
    path = exported("net_with_scale", tmp_path / "m.onnx", input_names=["pixels", "factor"])
    assert mapped(path, "net_with_scale").passed
    source = load_source(spelled("net_with_scale"))
    assert torch_values(source, model=load(path)).inputs == {"pixels": "x", "factor": "scale"}
    assert mapped(path, "net_with_scale", inputs={"factor": "scale"}).passed
    with pytest.raises(NotFoundError, match="no argument 'scal'") as refused:
        mapped(path, "net_with_scale", inputs={"factor": "scal"})
    assert "scale" in (refused.value.hint or "")
    with pytest.raises(FeedsError, match="'factor' does not fit the argument 'x'"):
        mapped(path, "net_with_scale", inputs={"factor": "x"})


# ---------------------------------------------------------------- the map


def test_every_value_of_the_default_exporter_agrees_with_its_fx_node(tmp_path):
    path = exported("net", tmp_path / "net.onnx", dynamic=["x:0=batch"])
    found = map_values(path, spelled("net"))
    assert found.passed
    assert found.torch_kind == "program"
    assert found.share == 1.0
    assert [each.torch for each in found.values] == ["getitem", "relu", "getitem_3", "relu_1", "clone", "linear"]
    assert {each.how for each in found.values} == {"metadata"}
    assert all(each.agrees and each.max_abs < 1e-4 for each in found.values)
    assert found.values[0].origins == ("conv2d", "_native_batch_norm_legit_no_training", "getitem")


def test_a_folded_batch_normalization_is_told_though_the_name_says_convolution(tmp_path):
    path = exported("net", tmp_path / "net.onnx", "torchscript")
    plain = {each.value: each for each in map_values(path).values}
    assert plain["/layers/layers.0/conv/Conv_output_0"].scope == "layers.0.conv"
    found = {each.value: each for each in mapped(path, "net").values}
    conv = found["/layers/layers.0/conv/Conv_output_0"]
    assert (conv.scope, conv.said, conv.agrees) == ("layers.0.bn", "layers.0.conv", True)
    assert conv.module_class == "torch.nn.modules.batchnorm.BatchNorm2d"
    assert found["/layers/layers.0/Relu_output_0"].scope == "layers.0"
    assert found["/layers/layers.0/Relu_output_0"].said is None


@BOTH
@pytest.mark.parametrize("name", ["net", "net_with_scale", "split", "twice"])
def test_by_values_alone_nothing_is_wrong(name, exporter, tmp_path):
    path = exported(name, tmp_path / "m.onnx", exporter)
    truth = {each.value: each for each in mapped(path, name).values}
    bare, before = stripped(path, tmp_path / "bare.onnx")
    found = mapped(bare, name, by="values")
    assert found.passed
    for each in found.values:
        known = truth[before[each.value]]
        if each.kind == "value":
            assert known.torch in (each.torch, *each.others), f"{before[each.value]} is {known.torch}"
            assert each.how == "values"
        elif known.kind == "value":  # six numbers, most of them 0
            assert name == "twice"
            assert each.reason == "it holds too little to tell it from others"


def test_what_cannot_be_told_apart_is_listed_and_never_matched(tmp_path):
    path, before = stripped(exported("siblings", tmp_path / "m.onnx"), tmp_path / "bare.onnx")
    found = {before[each.value]: each for each in mapped(path, "siblings", by="values").values}
    assert found["linear"].kind != "value"
    assert found["linear"].reason == "it may be any of linear, linear_1"  # the exporter merges equal weights
    assert found["sigmoid"].torch == "sigmoid"
    assert found["tanh"].torch == "tanh"


def test_elements_of_a_tuple_that_one_node_makes_are_mapped(tmp_path):
    model = load(exported("split", tmp_path / "m.onnx"))
    node = next(node for node in model.proto.graph.node if node.op_type == "Split")
    told = {each.value: each for each in origins_of(model)}
    assert [told[name].fx for name in node.output] == ["getitem", "getitem_1", "getitem_2"]
    found = {each.value: each for each in mapped(model, "split").values}
    assert all(found[name].agrees and found[name].how == "metadata" for name in node.output)


def test_metadata_counts_only_if_it_is_of_this_program(tmp_path):
    model = load(exported("net", tmp_path / "net.onnx"))
    side = side_of("net", model)
    assert len(match_metadata(model, side)) == 6
    node = next(node for node in model.proto.graph.node if node.output[0] == "relu")
    entry = next(entry for entry in node.metadata_props if entry.key == FX_NODE)
    entry.value = entry.value.replace("%getitem", "%getitem_9")
    assert "relu" not in match_metadata(model, side)


def test_wrong_metadata_is_told_and_put_right(tmp_path):
    proto = onnx.load(exported("net", tmp_path / "net.onnx"))
    nodes = {node.output[0]: node for node in proto.graph.node}
    for name, other in (("relu", "relu_1"), ("relu_1", "relu")):
        nodes[name].metadata_props.add(key=FX_VALUES, value=other)
    found = {each.value: each for each in mapped(from_proto(proto), "net").values}
    assert (found["relu"].torch, found["relu"].said, found["relu"].how) == ("relu", "relu_1", "values")
    assert (found["relu_1"].torch, found["relu_1"].said, found["relu_1"].agrees) == ("relu_1", "relu", True)


def test_a_file_that_drifts_is_mapped_and_the_first_difference_named(tmp_path):
    proto = onnx.load(exported("net", tmp_path / "net.onnx"))
    node = next(node for node in proto.graph.node if node.output[0] == "getitem_3")
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
    changed = onnx.numpy_helper.to_array(weight) * 1.02
    weight.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weight.name))
    found = mapped(from_proto(proto), "net")
    assert not found.passed
    assert found.differing[0].value == "getitem_3"
    assert {each.value: each.torch for each in found.values}["linear"] == "linear"
    assert [each.agrees for each in found.values][:2] == [True, True]
    told = match(from_proto(proto), side_of("net", from_proto(proto)), by="metadata")
    assert told.how == "metadata"
    assert len(told.pairs) == 6


def test_drifting_values_are_matched_by_value_only_when_asked(tmp_path):
    path, before = stripped(exported("net", tmp_path / "net.onnx"), tmp_path / "bare.onnx")
    proto = onnx.load(path)
    first = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    changed = onnx.numpy_helper.to_array(first) * 1.01
    first.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), first.name))
    model = from_proto(proto)
    side = side_of("net", model)
    strict = match_values(model, side)
    assert "getitem" not in {before[name] for name in strict.pairs}
    loose = match_values(model, side, drift=0.1)
    for name, pair in loose.pairs.items():
        assert before[name] in (pair.torch, *pair.others)
    assert "getitem" in {before[name] for name in loose.pairs}


def test_only_what_is_selected_is_compared(tmp_path):
    path = exported("net", tmp_path / "net.onnx")
    found = mapped(path, "net", selectors=["op:Conv"])
    assert [each.value for each in found.values] == ["getitem", "getitem_3"]
    assert len(found.compared) == 2


def test_marks_and_their_shared_body(tmp_path):
    found = mapped(exported("marked_net", tmp_path / "m.onnx"), "marked_net")
    assert found.passed
    assert found.share == 1.0
    assert [each for each in found.values if each.op == "Mark"] == []  # they hand on values that are there already


def test_without_torch_the_file_itself_tells(tmp_path):
    found = map_values(exported("net", tmp_path / "net.onnx"))
    assert found.share == 1.0
    assert (found.torch, found.compared) == (None, ())
    scripted = map_values(exported("net", tmp_path / "ts.onnx", "torchscript"))
    assert {each.how for each in scripted.values} == {"names"}
    bare, _ = stripped(tmp_path / "net.onnx", tmp_path / "bare.onnx")
    assert map_values(bare).share == 0.0
    assert len(map_values(bare).rest) == 6


def test_input_sets_are_like_the_examples(tmp_path):
    side = side_of("net", load(exported("net", tmp_path / "net.onnx")))
    first, second = input_sets(side)
    assert first["x"].shape == second["x"].shape
    assert first["x"].dtype == second["x"].dtype
    assert not np.array_equal(first["x"], second["x"])
    np.testing.assert_array_equal(input_sets(side)[1]["x"], second["x"])  # the same each time


# ---------------------------------------------------------------- written


@BOTH
def test_a_written_map_is_what_other_commands_read(exporter, tmp_path):
    path = exported("net", tmp_path / "net.onnx", exporter)
    bare, _ = stripped(path, tmp_path / "bare.onnx")
    content = bare.read_bytes()
    done = mapped(bare, "net", write=tmp_path / "mapped.onnx")
    assert done.saved is not None
    assert bare.read_bytes() == content
    onnx.checker.check_model(tmp_path / "mapped.onnx", full_check=True)
    model = load(tmp_path / "mapped.onnx")
    index = GraphIndex(model.proto)
    convs = [ref.node.op_type for ref in select(index, "scope:layers.0 & op:Conv").as_nodes()]
    assert convs == ["Conv"]
    told = map_values(model)
    assert told.share == 1.0
    assert [each.torch for each in told.values if each.kind == "value"] == [
        each.torch for each in done.values if each.kind == "value"
    ]
    assert [each.source for each in told.values] == [each.source for each in done.values]
    again = mapped(model, "net", by="metadata")
    assert again.passed
    assert len(again.compared) == len(done.compared)
    said = {entry.key: json.loads(entry.value) for entry in model.proto.metadata_props}
    assert said["onnxbench.map"]["torch"] == spelled("net")
    assert said["onnxbench.provenance"]["share"] == 1.0


def test_what_a_file_says_of_itself_stays_where_it_is_right(tmp_path):
    path = exported("net", tmp_path / "net.onnx")
    before = {node.output[0]: {e.key: e.value for e in node.metadata_props} for node in onnx.load(path).graph.node}
    mapped(path, "net", write=tmp_path / "mapped.onnx")
    after = onnx.load(tmp_path / "mapped.onnx")
    for node in after.graph.node:
        assert {entry.key: entry.value for entry in node.metadata_props} == before[node.output[0]]


def test_outputs_of_modules_are_written_too(tmp_path):
    path = exported("stubborn", tmp_path / "m.onnx", "torchscript")
    map_values(path, spelled("stubborn"), write=tmp_path / "mapped.onnx")
    nodes = onnx.load(tmp_path / "mapped.onnx").graph.node
    scopes = [next(e.value for e in node.metadata_props if e.key == NAME_SCOPES) for node in nodes[:1]]
    assert scopes == ["['', 'first', 'first']"]
    assert map_values(tmp_path / "mapped.onnx").values[0].source == map_values(path).values[0].source


# ---------------------------------------------------------------- refusals and the command line


def test_another_model_is_refused_or_said_to_differ(tmp_path):
    path = exported("net", tmp_path / "net.onnx")
    with pytest.raises(FeedsError, match="input 'x' does not fit") as refused:
        map_values(path, spelled("loop"))
    assert "Is it the PyTorch model of this file" in (refused.value.hint or "")
    with pytest.raises(FeedsError, match="which argument"):
        map_values(path, spelled("pair_of_images"))
    found = mapped(path, "other_weights")
    assert not found.passed
    assert any("with the same weights?" in note for note in found.notes)
    assert all(each.agrees is False for each in found.compared)


def test_wrong_factories_ways_and_words_are_refused(tmp_path):
    path = exported("net", tmp_path / "net.onnx")
    with pytest.raises(NotFoundError, match="no 'nett'") as refused:
        map_values(path, spelled("nett"))
    assert "net" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="no example inputs"):
        map_values(path, spelled("net_alone"))
    assert map_values(path, spelled("net_alone"), shapes=["x:[2,3,8,8]"]).passed
    with pytest.raises(UsageError, match="no way 'name'"):
        mapped(path, "net", by="name")
    with pytest.raises(UsageError, match="only with the PyTorch model"):
        map_values(path, by="values")
    with pytest.raises(UsageError, match="nothing to write"):
        map_values(path, write=tmp_path / "x.onnx")
    copy = shutil.copy(MODELS, tmp_path / "models.py")
    with pytest.raises(UsageError, match=r"models\.py is an input"):
        map_values(path, f"{copy}:net", write=copy)
    copy.unlink()
    with pytest.raises(NotFoundError, match="nothing_like_it"):
        mapped(path, "net", selectors=["nothing_like_it"])
    side = side_of("net", load(path))
    with pytest.raises(FeedsError, match="dimension 0 of x is 3, and 2"):
        next(side.stream({"x": np.zeros((3, 3, 8, 8), np.float32)}, [["relu"]]))
    with pytest.raises(NotFoundError, match="no value 'rel'"):
        next(side.stream(side.examples(), [["rel"]]))


def test_the_command_line(tmp_path):
    path = exported("net", tmp_path / "net.onnx", "torchscript")
    done = run("map", str(path), "--torch", spelled("net"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the file says layers.0.conv" in done.stdout
    assert "6 of 6 agree" in done.stdout
    done = run("map", str(path), "--rest", "--least", "0.5", "--json", folder=tmp_path)
    result = json.loads(done.stdout)["result"]
    assert done.returncode == 0
    assert (result["share"], result["counts"]["values"]) == (1.0, 7)
    bare, _ = stripped(path, tmp_path / "bare.onnx")
    assert run("map", str(bare), "--least", "0.5", folder=tmp_path).returncode == 1
    done = run("map", str(path), "--torch", spelled("other_weights"), "-q", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "values differ; the first is" in done.stdout
    done = run("map", str(path), "--write", "out.onnx", folder=tmp_path)
    assert done.returncode == 2
    assert "--write means nothing without --torch" in done.stderr
    done = run("map", str(path), "--torch", spelled("net"), "--input", "x", folder=tmp_path)
    assert done.returncode == 2
    assert "NAME=ARG" in done.stderr


def test_without_torch_installed(tmp_path):
    path = exported("net", tmp_path / "net.onnx")
    start = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "import onnxbench.pytorch as p\n"
        "p.find_spec = lambda name: None if name in ('torch', 'onnxscript') else real(name)\n"
        "sys.modules['torch'] = None\n"
        "from onnxbench.cli import main\n"
    )
    told = f"main(['map', {str(path)!r}])\n"
    done = subprocess.run([sys.executable, "-c", start + told], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "100.0% of 6 values" in done.stdout
    asked = f"main(['map', {str(path)!r}, '--torch', {spelled('net')!r}])\n"
    done = subprocess.run([sys.executable, "-c", start + asked], capture_output=True, text=True, check=False)
    assert done.returncode == 12
    assert "pip install onnxbench[torch]" in done.stderr
