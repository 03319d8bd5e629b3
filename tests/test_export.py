"""PyTorch models exported: what is written agrees with PyTorch, names its origins, or is refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

from onnxbench.errors import (  # noqa: E402
    ExecutionError,
    FeedsError,
    NotFoundError,
    OutputError,
    RefusedResultError,
    UnsupportedError,
    UsageError,
)
from onnxbench.model import load  # noqa: E402
from onnxbench.origins import origins_of  # noqa: E402
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402
from onnxbench.pytorch.sources import load_source, source_of  # noqa: E402

pytestmark = pytest.mark.torch
MODELS = Path(__file__).resolve().parent / "torch_models.py"
BOTH = pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])


def spelled(name: str) -> str:
    return f"{MODELS}:{name}"


def line_of(text: str) -> int:
    lines = MODELS.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def run(path: Path, *feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([port.name for port in session.get_inputs()], feeds, strict=True)))


# ---------------------------------------------------------------- the whole way


@BOTH
def test_a_file_computes_what_the_model_computes_at_every_batch(tmp_path, exporter):
    out = tmp_path / "net.onnx"
    options = ExportOptions(exporter=exporter, dynamic=["x:0=batch"], output_names=["logits", "features"])
    done = export(spelled("net"), out, options=options)
    assert done.passed
    assert [case.name for case in done.cases] == ["example inputs", "batch=3"]
    assert done.saved is not None
    assert done.saved.path == out
    assert [name for name, _ in done.outputs] == ["logits", "features"]
    onnx.checker.check_model(out, full_check=True)
    module = load_source(spelled("net")).module.eval()
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = module(x)
    for one, other in zip(run(out, x.numpy()), expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


@BOTH
def test_every_value_has_a_module_and_a_source_line(tmp_path, exporter):
    done = export(spelled("net"), tmp_path / "net.onnx", options=ExportOptions(exporter=exporter))
    assert done.provenance.share == 1.0
    assert done.provenance.missing == ()
    origins = {each.value: each for each in origins_of(load(tmp_path / "net.onnx"))}
    relus = [each for name, each in origins.items() if "elu" in name]
    assert [each.scope for each in relus] == ["layers.0", "layers.1"]
    assert {each.module_class.rpartition(".")[2] for each in relus} == {"Block"}
    assert {each.source for each in relus} == {f"{MODELS}:{line_of('return torch.relu(self.bn')}"}
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(said["onnxbench.provenance"])["share"] == 1.0
    assert json.loads(said["onnxbench.export"])["exporter"] == exporter
    assert json.loads(said["onnxbench.export"])["versions"]["torch"] == torch.__version__


def test_a_value_named_after_an_fx_node_is_that_nodes_value(tmp_path):
    """Recomputes every fx value with the program that the file was made of, and compares it with the file's."""
    from onnxbench import backends

    module, args = torch_model("net")
    done = export((module, args), tmp_path / "net.onnx", options=ExportOptions(output_names=["relu_1", "mean"]))
    model = load(tmp_path / "net.onnx")
    exact = {each.value: each.fx for each in origins_of(model) if each.kind == "value"}
    assert done.provenance.exact == len(exact) == 6
    assert exact["relu_1"] == "linear"
    assert exact["mean"] == "clone"  # of the dropout, which does nothing
    program = torch.onnx.export(module, args, dynamo=True, verbose=False).exported_program
    values = fx_values_of(program, args)
    got = backends.run_with_outputs(model, {"x": args[0].numpy()}, list(exact), optimization="none")
    for name, fx in exact.items():
        np.testing.assert_allclose(got[name], values[fx], rtol=1e-4, atol=1e-5, err_msg=f"{name} is not {fx}")


def torch_model(name):
    source = load_source(spelled(name))
    return source.module.eval(), source.args


def fx_values_of(program, args):
    values = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if isinstance(value, torch.Tensor):
                values[node.name] = value.detach().numpy()
            return value

    signature = program.graph_signature
    state = {**program.state_dict, **program.constants}
    kept = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    given = iter(args)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    with torch.no_grad():
        Recorder(program.graph_module).run(*(state[kept[n.name]] if n.name in kept else next(given) for n in nodes))
    return values


def test_a_fused_node_lists_the_fx_nodes_that_went_into_it(tmp_path):
    done = export(spelled("net"), tmp_path / "net.onnx")
    assert done.provenance.fused == 2
    fused = [each for each in origins_of(load(tmp_path / "net.onnx")) if each.rule]
    assert [each.rule for each in fused] == ["FuseBatchNormIntoConv"] * 2
    assert [each.fx for each in fused] == ["getitem", "getitem_3"]
    assert fused[0].origins == ("conv2d", "_native_batch_norm_legit_no_training", "getitem")


# ---------------------------------------------------------------- inputs and outputs


@pytest.mark.parametrize("name", ["net_with_scale", "net_by_keyword"])
@BOTH
def test_keyword_inputs_become_inputs_in_the_order_of_the_parameters(tmp_path, name, exporter):
    done = export(spelled(name), tmp_path / "net.onnx", options=ExportOptions(exporter=exporter))
    assert [name for name, _ in done.inputs] == ["x", "scale"]
    assert done.passed


@BOTH
def test_nested_inputs_and_outputs_keep_their_names(tmp_path, exporter):
    options = ExportOptions(exporter=exporter, dynamic=["features_0:0=n", "features_1:0=n"])
    done = export(spelled("nested"), tmp_path / "nested.onnx", options=options)
    assert [name for name, _ in done.inputs] == ["features_0", "features_1", "extra_weight"]
    assert done.passed
    assert [case.name for case in done.cases] == ["example inputs", "n=3"]
    assert [name for name, _ in done.outputs] == ["logits", "sum"]


def test_an_output_may_be_called_like_another_value(tmp_path):
    """pytorch#158094: torch.onnx.export itself writes an invalid file here."""
    out = tmp_path / "clash.onnx"
    done = export(spelled("clash"), out, options=ExportOptions(output_names=["relu"]))
    assert done.passed
    assert [name for name, _ in done.outputs] == ["relu"]
    onnx.checker.check_model(out, full_check=True)
    exact = {each.value: each.fx for each in origins_of(load(out)) if each.kind == "value"}
    assert exact["relu"] == "add"
    assert exact["relu_inner"] == "relu"


@BOTH
def test_outputs_have_the_keys_of_a_dict_whatever_else_is_in_it(exporter):
    """One tensor twice, an input passed on, a None, and a list, which PyTorch's own exporters name as it comes."""
    done = export(spelled("keyed"), None, options=ExportOptions(exporter=exporter))
    assert [name for name, _ in done.outputs] == ["twice", "again", "parts_0", "parts_1", "same"]
    assert done.passed


def test_input_names_may_swap_with_what_is_there(tmp_path):
    options = ExportOptions(input_names=["add"], output_names=["x"])
    done = export(spelled("clash"), tmp_path / "clash.onnx", options=options)
    assert done.passed
    assert ([name for name, _ in done.inputs], [name for name, _ in done.outputs]) == (["add"], ["x"])


@BOTH
def test_an_output_that_is_an_input_or_comes_twice_is_an_output_of_its_own(tmp_path, exporter):
    options = ExportOptions(exporter=exporter, output_names=["a", "b", "c"])
    done = export(spelled("pass_through"), tmp_path / "p.onnx", options=options)
    assert done.passed
    assert [name for name, _ in done.outputs] == ["a", "b", "c"]


@BOTH
def test_what_became_of_inputs_is_told(tmp_path, exporter):
    done = export(spelled("unused"), tmp_path / "u.onnx", options=ExportOptions(exporter=exporter))
    assert done.passed
    kinds = {finding.kind: finding.message for finding in done.findings}
    if exporter == "torch.export":
        assert "'times' is baked into the file as 3" in kinds["baked-argument"]
        assert "'mask' is read by nothing" in kinds["unused-input"]
    else:
        assert [name for name, _ in done.inputs] == ["x", "times"]
        assert "'mask' is not in the file" in kinds["vanished-input"]


@pytest.mark.parametrize(("name", "inputs"), [("default", ["x", "mask"]), ("default_last", ["x"])])
@BOTH
def test_a_number_that_is_a_default_is_no_input(tmp_path, exporter, name, inputs):
    done = export(spelled(name), tmp_path / "d.onnx", options=ExportOptions(exporter=exporter))
    assert done.passed
    assert [name for name, _ in done.inputs] == inputs


def test_wrong_numbers_of_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="1 output names are given, and the model has 2 outputs"):
        export(spelled("net"), tmp_path / "net.onnx", options=ExportOptions(output_names=["logits"]))
    with pytest.raises(UsageError, match="would be called 'x'"):
        export(spelled("net"), tmp_path / "net.onnx", options=ExportOptions(output_names=["x", "y"]))
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_marks_are_kept_and_the_marked_file_runs(tmp_path, exporter):
    options = ExportOptions(exporter=exporter, dynamic=["x:0=batch"])
    done = export(spelled("marked_net"), tmp_path / "m.onnx", options=options)
    assert done.passed
    assert done.provenance.share == 1.0
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    said = [{each.name: each.s for each in node.attribute} for node in nodes if node.op_type == "Mark"]
    assert [(each["func"], each["type"], each["name"]) for each in said] == [
        (b"body", b"input", b"image"),
        (b"body", b"output", b"features"),
    ]


# ---------------------------------------------------------------- what was decided silently


def test_a_frozen_value_is_named_with_its_line_and_constant(tmp_path):
    done = export(spelled("frozen"), tmp_path / "f.onnx", options=ExportOptions(exporter="torchscript"))
    (finding,) = done.findings
    assert finding.kind == "frozen-value"
    assert "frozen to 6 by int()" in finding.message
    assert finding.source == f"{MODELS}:{line_of('count = int(x.sum())')}"
    assert finding.code == "count = int(x.sum())"
    assert finding.constant == "/Constant_output_0 = 6.0"


def test_the_default_exporter_computes_that_value(tmp_path):
    done = export(spelled("frozen"), tmp_path / "f.onnx")
    assert done.findings == ()
    np.testing.assert_array_equal(run(tmp_path / "f.onnx", np.full((2, 3), 2, np.float32))[0], np.full((2, 3), 24))


def test_a_frozen_branch_is_named_and_the_default_exporter_refuses_it(tmp_path):
    done = export(spelled("branch"), tmp_path / "b.onnx", options=ExportOptions(exporter="torchscript"))
    (finding,) = done.findings
    assert (finding.kind, finding.source) == ("frozen-branch", f"{MODELS}:{line_of('if x.sum() > 0:')}")
    with pytest.raises(ExecutionError, match="cannot export") as caught:
        export(spelled("branch"), tmp_path / "c.onnx")
    assert f"{MODELS}:{line_of('if x.sum() > 0:')}" in str(caught.value)
    assert "torch.cond" in str(caught.value.hint)


def test_strictness_makes_findings_errors_and_writes_nothing(tmp_path):
    with pytest.raises(RefusedResultError, match="1 finding, and --strict allows none") as caught:
        export(spelled("frozen"), tmp_path / "f.onnx", options=ExportOptions(exporter="torchscript", strict=True))
    assert "frozen to 6" in caught.value.details[0]
    assert list(tmp_path.iterdir()) == []


def test_a_dimension_that_the_model_fixes_is_refused_with_the_line(tmp_path):
    with pytest.raises(
        UnsupportedError, match=r"dimension 0 of x \(batch\) cannot be open: .* fixes it to 2"
    ) as caught:
        export(spelled("loop"), tmp_path / "l.onnx", options=ExportOptions(dynamic=["x:0=batch"]))
    assert caught.value.details[0].startswith(f"{MODELS}:{line_of('for row in range')}, in forward: for row")


def test_a_baked_batch_fails_at_the_other_size_and_is_named(tmp_path):
    options = ExportOptions(exporter="torchscript", dynamic=["x:0=batch"])
    done = export(spelled("baked_batch"), tmp_path / "b.onnx", options=options)
    assert not done.passed
    assert [case.passed for case in done.cases] == [True, False]
    assert done.saved is None
    assert not (tmp_path / "b.onnx").exists()
    kinds = {finding.kind: finding for finding in done.findings}
    assert kinds["frozen-size"].constant == "/Constant_output_0 = [2, -1]"
    assert kinds["baked-size"].source == f"{MODELS}:{line_of('return x.reshape(int')}"


def test_without_open_sizes_a_size_taken_as_a_number_is_no_finding(tmp_path):
    done = export(spelled("baked_batch"), tmp_path / "b.onnx", options=ExportOptions(exporter="torchscript"))
    assert done.findings == ()
    assert any("--dynamic x:0=batch" in note for note in done.notes)


def test_random_numbers_in_the_graph_are_named(tmp_path):
    done = export(spelled("noise"), tmp_path / "n.onnx")
    assert not done.passed
    assert [finding.kind for finding in done.findings] == ["random"]
    assert done.findings[0].source == f"{MODELS}:{line_of('torch.rand_like')}"


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("x:0=batch", "[batch, 3, 8, 8]"),
        ("x:[batch,3,height,8]", "[batch, 3, height, 8]"),
        ("x:0=n,-1=w", "[n, 3, 8, w]"),
        ("0=n", "[n, 3, 8, 8]"),
        ("x:0,2", "[x_dim0, 3, x_dim2, 8]"),
    ],
)
def test_spellings_of_open_dimensions(tmp_path, word, shape):
    options = ExportOptions(dynamic=[word], exporter="torchscript")
    done = export(spelled("net"), None, options=options)
    assert done.inputs == (("x", f"float32{shape}"),)
    assert done.passed


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("y:0=n", NotFoundError, "no input 'y'"),
        ("x:7=n", UsageError, "has 4 dimensions"),
        ("x:[n,3]", UsageError, "has 4 dimensions"),
        ("x:[n,4,8,8]", UsageError, "is 3, not 4"),
        ("x:zero", UsageError, "not understood"),
    ],
)
def test_open_dimensions_that_cannot_be_are_refused(word, error, message):
    with pytest.raises(error, match=message):
        export(spelled("net"), None, options=ExportOptions(dynamic=[word]))


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_the_opset_is_the_one_asked_for(tmp_path, opset):
    done = export(spelled("net"), tmp_path / "net.onnx", options=ExportOptions(opset=opset))
    assert done.opset == opset
    assert done.passed
    assert done.provenance.share == 1.0


def test_weights_come_from_a_file_with_renamed_keys(tmp_path):
    state = {f"module.{key}": value + 1 for key, value in load_source(spelled("net")).module.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    options = ExportOptions(state_dict=tmp_path / "w.pth", keys=["module.=>"])
    done = export(spelled("net"), tmp_path / "net.onnx", options=options)
    assert done.passed
    weight = next(each for each in onnx.load(tmp_path / "net.onnx").graph.initializer if each.name == "head.weight")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), state["module.head.weight"].numpy())
    with pytest.raises(UsageError, match="does not fit the module") as caught:
        export(spelled("net"), None, options=ExportOptions(state_dict=tmp_path / "w.pth"))
    assert caught.value.hint == "--key 'module.=>' would fit."
    with pytest.raises(UsageError, match="fits no key"):
        export(spelled("net"), None, options=ExportOptions(state_dict=tmp_path / "w.pth", keys=["modul_=>"]))


@BOTH
def test_another_element_type(tmp_path, exporter):
    done = export(spelled("net"), tmp_path / "net.onnx", options=ExportOptions(dtype="fp16", exporter=exporter))
    assert done.passed
    assert done.inputs == (("x", "float16[2, 3, 8, 8]"),)


def test_example_inputs_are_drawn_when_asked_for(tmp_path):
    options = ExportOptions(shapes=["x:[1,3,8,8]"])
    done = export(spelled("net_alone"), tmp_path / "net.onnx", options=options)
    assert done.passed
    assert done.inputs == (("x", "float32[1, 3, 8, 8]"),)
    with pytest.raises(UsageError, match="no example inputs") as caught:
        export(spelled("net_alone"), None)
    assert "--shape 'x:[1,3,224,224]'" in str(caught.value.hint)


def test_weights_go_to_a_file_beside_the_model(tmp_path):
    from onnxbench.writer import SaveOptions

    options = ExportOptions(storing=SaveOptions(external=True, threshold=64))
    done = export(spelled("net"), tmp_path / "net.onnx", options=options)
    assert done.saved is not None
    assert [path.name for path in done.saved.external_files] == ["net.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_a_model_too_large_for_one_message_goes_through_files(tmp_path, monkeypatch):
    from onnxbench.pytorch import _exporters

    monkeypatch.setattr(_exporters, "_LARGE", 0)
    done = export(spelled("net"), tmp_path / "net.onnx")
    assert done.passed
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_target_that_cannot_be_written_is_told_at_once(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        export(spelled("net"), tmp_path / "nowhere" / "net.onnx")
    with pytest.raises(OutputError, match="not a regular file"):
        export(spelled("net"), tmp_path)
    state = tmp_path / "w.pth"
    torch.save(load_source(spelled("net")).module.state_dict(), state)
    before = state.read_bytes()
    with pytest.raises(UsageError, match="weights come from"):
        export(spelled("net"), state, options=ExportOptions(state_dict=state))
    assert state.read_bytes() == before
    (tmp_path / "mine.py").write_text("def clean(model):\n    return model\n")
    with pytest.raises(UsageError, match="is an input"):
        export(spelled("net"), tmp_path / "mine.py", options=ExportOptions(passes=[f"{tmp_path}/mine.py:clean"]))


def test_passes_of_all_kinds_run_in_order(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def rename(model):\n    model.graph.name = 'mine'\n    return model\n\ndef nothing(model):\n    pass\n"
    )
    (tmp_path / "r.yaml").write_text("- set_doc: {text: exported}\n")
    out = tmp_path / "net.onnx"
    passes = ["remove-dead", f"{tmp_path}/mine.py:rename", f"{tmp_path}/r.yaml", "set_producer: {producer: me}"]
    done = export(spelled("net"), out, options=ExportOptions(passes=passes))
    assert done.passed
    assert len(done.passes) == 4
    model = onnx.load(out)
    assert (model.graph.name, model.producer_name) == ("mine", "me")
    assert done.provenance.share == 1.0
    with pytest.raises(UsageError, match="returned NoneType, not a ModelProto"):
        export(spelled("net"), None, options=ExportOptions(passes=[f"{tmp_path}/mine.py:nothing"]))
    with pytest.raises(UsageError, match="not understood") as caught:
        export(spelled("net"), None, options=ExportOptions(passes=["fold-constant"]))
    assert "fold-constants" in str(caught.value.hint)


def test_a_pass_that_changes_numbers_is_caught(tmp_path):
    (tmp_path / "bad.py").write_text(
        "def scale(model):\n"
        "    next(n for n in model.graph.node if n.op_type == 'Relu').op_type = 'Sigmoid'\n"
        "    return model\n"
    )
    options = ExportOptions(passes=[f"{tmp_path}/bad.py:scale"])
    done = export(spelled("net"), tmp_path / "net.onnx", options=options)
    assert not done.passed
    assert not (tmp_path / "net.onnx").exists()


def test_an_exported_program_and_a_scripted_module_are_sources(tmp_path):
    module, args = torch_model("net")
    torch.export.save(torch.export.export(module, args), tmp_path / "net.pt2")
    torch.jit.save(torch.jit.trace(module, args), tmp_path / "net.pt")
    done = export(str(tmp_path / "net.pt2"), tmp_path / "a.onnx")
    assert done.passed
    assert done.provenance.share == 1.0
    options = ExportOptions(exporter="torchscript", shapes=["x:[2,3,8,8]"])
    assert export(str(tmp_path / "net.pt"), tmp_path / "b.onnx", options=options).passed
    with pytest.raises(UsageError, match="fixed by"):
        export(str(tmp_path / "net.pt2"), None, options=ExportOptions(dynamic=["x:0=n"]))


def test_nothing_is_left_of_an_export_but_its_file(tmp_path):
    export(spelled("net"), tmp_path / "net.onnx", options=ExportOptions(exporter="torchscript"))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        export(spelled("net"), tmp_path / f"{name}.onnx", options=ExportOptions(verify=False))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nett", NotFoundError, ["has no 'nett'", "'net'"]),
        ("raises", ExecutionError, ["KeyError: 'weights'", 'return values["weights"]']),
        ("returns_a_number", UsageError, ["returned an int", "torch.nn.Module"]),
        ("returns_weights", UsageError, ["looks like a state dict", "--state-dict"]),
        ("needs", UsageError, ["it needs size"]),
    ],
)
def test_a_factory_that_gives_no_model_is_told_about(name, error, words):
    with pytest.raises(error) as caught:
        load_source(spelled(name))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("spelling", "error", "word"),
    [
        ("nowhere.py:make", NotFoundError, "there is no file nowhere.py"),
        ("no_such_package.models:Net", NotFoundError, "there is no module 'no_such_package'"),
        ("torch.nn:Linea", NotFoundError, "'Linear'"),
        ("torch.nn:Linear", UsageError, "it needs in_features, out_features"),
        ("torch.nn.Linear", UsageError, "Write torch.nn:Linear."),
        ("", UsageError, "no PyTorch model is named"),
        ("model.pt2", NotFoundError, "there is no file model.pt2"),
    ],
)
def test_spellings_that_name_nothing(spelling, error, word):
    with pytest.raises(error) as caught:
        load_source(spelling)
    assert word in str(caught.value)


def test_a_file_without_a_name_lists_what_it_has():
    with pytest.raises(UsageError, match="does not say which function") as caught:
        load_source(str(MODELS))
    assert f"{MODELS}:net" in caught.value.details or f"{MODELS}:Net" in caught.value.details


def test_a_state_dict_is_no_source(tmp_path):
    torch.save(load_source(spelled("net")).module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="neither TorchScript nor an exported program") as caught:
        load_source(str(tmp_path / "w.pth"))
    assert "--state-dict" in str(caught.value.hint)


def test_inputs_that_do_not_fit_forward_are_refused():
    with pytest.raises(FeedsError, match="do not fit forward"):
        export((torch.nn.Linear(3, 3), (torch.ones(2, 3), torch.ones(2))), None)


def test_a_model_that_fails_is_told_with_its_line(tmp_path):
    with pytest.raises(ExecutionError) as caught:
        export(spelled("fails_inside"), tmp_path / "f.onnx")
    assert f"{MODELS}:{line_of('return x @ x')}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_source_is_called_like_its_model():
    source = source_of((torch.nn.Linear(3, 2), torch.ones(4, 3)))
    assert source.call().shape == (4, 2)
    assert [leaf.name for leaf in source.leaves()] == ["input"]


# ---------------------------------------------------------------- the command line


def onnxbench(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "onnxbench", *words], capture_output=True, text=True, cwd=cwd)


def test_the_command_prints_what_was_done(tmp_path):
    done = onnxbench("export", spelled("net"), "net.onnx", "--dynamic", "x:0=batch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "provenance: 100.0% of 6 values" in done.stdout
    assert "compared with PyTorch, batch=3:" in done.stdout
    assert done.stdout.rstrip().endswith("wrote net.onnx")
    assert done.stderr == ""


def test_what_the_factory_prints_is_no_part_of_the_result(tmp_path):
    done = onnxbench("export", spelled("talks"), "--dry-run", "--json", "--exporter", "torchscript", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["saved"] is None
    assert "building the model" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_1_where_the_file_differs(tmp_path):
    words = ("export", spelled("baked_batch"), "b.onnx", "--dynamic", "x:0=n", "--exporter", "torchscript", "--json")
    done = onnxbench(*words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["passed"] is False
    assert result["saved"] is None
    assert {finding["kind"] for finding in result["findings"]} == {"frozen-size", "baked-size"}
    assert list(tmp_path.iterdir()) == []


def test_without_torch_one_error_says_what_to_install(tmp_path):
    code = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "import onnxbench.pytorch as p\n"
        "p.find_spec = lambda name: None if name == 'torch' else real(name)\n"
        "from onnxbench.cli import main\n"
        f"main(['export', {spelled('net')!r}, 'out.onnx'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 12
    assert "needs torch, which is not installed\npip install onnxbench[torch]" in done.stderr


def test_an_opset_that_is_not_there_is_refused_before_anything_is_loaded():
    with pytest.raises(UsageError, match="there is no opset 99"):
        export("nowhere.py:make", None, options=ExportOptions(opset=99))
