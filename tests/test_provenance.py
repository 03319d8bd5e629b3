"""Where nodes come from in PyTorch: both exporters' traces, on fixtures and on models that none of us exported."""

from __future__ import annotations

import onnx
import pytest
from cases import named
from onnx import helper

from onnxbench.graph import GraphIndex
from onnxbench.model import load
from onnxbench.provenance import NONE, Origins, provenance, scope_of, torchscript_scope
from onnxbench.select import origins


def node(name: str = "", *, reads: tuple[str, ...] = ("x",), made: str = "y", **metadata: str) -> onnx.NodeProto:
    made_node = helper.make_node("Op", reads, [made], name=name)
    for key, value in metadata.items():
        made_node.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=value)
    return made_node


def index_of(path) -> GraphIndex:
    return GraphIndex(load(path, require_weights=False).proto)


# TorchScript: the rule by which torch.onnx made the names (a module is called by the last atom of its path that is no
# number, and the numbers after it).


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/Relu", ""),
        ("/conv1/Conv", "conv1"),
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/layer1/layer1.0/downsample/downsample.0/Conv", "layer1.0.downsample.0"),
        ("/features/features.0/features.0.0/Conv", "features.0.0"),
        ("/features/features.1/conv/conv.0/conv.0.0/Conv", "features.1.conv.0.0"),
        ("/encoder/layer.0/attention/self/query/MatMul", "encoder.layer.0.attention.self.query"),
        ("/model.22/cv2.0/cv2.0.1/conv/Conv", "model.22.cv2.0.1.conv"),
        ("/model/model/conv/conv_net/conv_net.10/conv/Conv", "model.model.conv.conv_net.10.conv"),
        ("/layer1/layer1.10/Add_3", "layer1.10"),
        ("/layer/layer1.0/Add", "layer.layer1.0"),
        ("/a/b/a/Mul", "a.b.a"),
        ("/model/encoder/0/reparam_conv/Conv", "model.encoder.0.reparam_conv"),
    ],
)
def test_torchscript_names(name, module):
    assert torchscript_scope(name) == module
    assert scope_of(node(name)) == module
    found = provenance(node(name))
    assert (found.scope, found.kind, found.call) == (module, "torchscript", 0)


def test_a_node_that_lost_its_name_is_known_by_its_output():
    assert scope_of(node("", made="/stage1/conv_s1/Conv_output_0_bias_reshape_output")) == "stage1.conv_s1"
    assert scope_of(node("Conv_0", made="/stage1/Conv_output_0")) is None, "a name of its own is what it goes by"


@pytest.mark.parametrize("name", ["", "Conv_0", "model/conv/Conv", "jax2tf_/Relu"])
def test_other_names_tell_nothing(name):
    assert provenance(node(name)) is NONE
    assert scope_of(node(name)) is None


def test_a_list_of_modules_that_is_called_like_its_parent():
    """``model.model.0`` and ``model.0`` both give ``/model/model.0``: the names of weights decide."""
    held = node("/model/model.0/conv/Conv")
    assert Origins([held]).scope(held) == "model.0.conv"
    assert Origins([held], ["model.model.0.conv.weight"]).scope(held) == "model.model.0.conv"
    assert Origins([held], ["model.0.conv.weight"]).scope(held) == "model.0.conv"


def test_a_second_call_is_told_from_a_module_with_a_number():
    first, again = node("/block/relu/Relu"), node("/block/relu_1/Relu")
    known = Origins([first, again])
    assert [(known.of(held).scope, known.of(held).call) for held in (first, again)] == [
        ("block.relu", 0),
        ("block.relu", 1),
    ]

    conv, other = node("/conv/Conv", reads=("x", "w")), node("/conv_1/Conv", reads=("y", "v"))
    known = Origins([conv, other], ["w", "v"])
    assert known.scope(other) == "conv_1", "it reads weights that conv does not: another module"
    shared = node("/conv_1/Conv", reads=("y", "w"))
    assert Origins([conv, shared], ["w"]).of(shared).call == 1, "the same weights: the same module again"
    assert Origins([other], ["v"]).scope(other) == "conv_1", "there is no conv that it could be a call of"
    assert Origins([conv, shared], ["w", "conv_1.weight"]).scope(shared) == "conv_1", "a weight is named after it"


# The default exporter.


def test_metadata_of_the_default_exporter():
    index = index_of(named("pytorch_dynamo_metadata").path)
    known = origins(index)
    found = known.of(index.main.nodes[0])
    assert found.kind == "torch.export"
    assert found.scope == "layers.0.c"
    assert found.scopes == ("", "layers", "layers.0", "layers.0.c")
    assert found.classes[0] == "toy.Net"
    assert found.module_class == "torch.nn.modules.conv.Conv2d"
    assert found.source == "/home/u/toy.py:12"
    assert found.code == "return x + self.a(self.c(x))"
    assert [frame.line for frame in found.frames] == [25, 12]
    assert all(known.kind(node) == "torch.export" for node in index.main.nodes)


def test_the_source_line_is_the_users_own():
    trace = (
        'File "<stdin>", line 19, in forward\n'
        '  File "/home/me/net.py", line 58, in forward\n    embedded = self.embed(x)\n'
        '  File "/venv/lib/python3.12/site-packages/torch/nn/modules/sparse.py", line 189, in forward\n'
        "    return F.embedding("
    )
    found = provenance(node(stack_trace=trace, name_scopes="['', 'embed', 'embedding']"))
    assert [(frame.place, frame.code) for frame in found.frames] == [
        ("<stdin>:19", None),
        ("/home/me/net.py:58", "embedded = self.embed(x)"),
        ("/venv/lib/python3.12/site-packages/torch/nn/modules/sparse.py:189", "return F.embedding("),
    ]
    assert (found.source, found.code) == ("/home/me/net.py:58", "embedded = self.embed(x)")
    alone = provenance(node(stack_trace=trace[trace.index('  File "/venv') :]))
    assert alone.source == "/venv/lib/python3.12/site-packages/torch/nn/modules/sparse.py:189", "better than nothing"


@pytest.mark.parametrize(
    ("scopes", "scope", "call"),
    [
        ("['', 'layer', 'layer.0', 'relu']", "layer.0", 0),
        ("['', 'add']", "", 0),
        ("['conv1d_3']", None, 0),  # inside torch.cond, the exporter knows no modules
        ("[]", None, 0),
        ("['', 'block', 'block.relu@2', 'relu_5']", "block.relu", 2),
        ("""['', "it's", 'op']""", "it's", 0),
        ("('', 'layer', 'op')", "layer", 0),
    ],
)
def test_name_scopes(scopes, scope, call):
    found = provenance(node(name_scopes=scopes))
    assert (found.scope, found.call) == (scope, call)
    assert scope_of(node(name_scopes=scopes)) == scope


@pytest.mark.parametrize("text", ["", "no list", "[", "{'a': 1}", "[" * 5000, "__import__('os')"])
def test_metadata_that_is_no_list_says_nothing(text):
    found = provenance(node("/a/Relu", name_scopes=text, class_hierarchy=text, stack_trace=text))
    assert (found.scope, found.classes, found.frames) == (None, (), ())


def test_metadata_that_is_not_text_says_nothing():
    raw = node(name_scopes="['', 'layer', 'op']").SerializeToString().replace(b"layer", b"la\xffer")
    broken = onnx.NodeProto.FromString(raw)
    assert scope_of(broken) is None
    assert provenance(broken).scope is None


# Real models. A node that reads the parameter ``a.b.weight`` belongs to module ``a.b``: its name says so independently.


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "least"),
    [("eeg_seizure_lstm", 5), ("eeg_spindle_unet", 55), ("isnet_fp16", 14), ("silero_vad_16k_op15", 10),
     ("tashkeel_seq2seq", 60), ("attacut_c", 9), ("isnet_dynq", 7)],
)  # fmt: skip
def test_scopes_of_real_models_agree_with_the_names_of_their_parameters(corpus, name, least):
    index = index_of(corpus(name)[0])
    known = origins(index)
    read = [
        (known.scope(ref.node), weight.rpartition(".")[0])
        for ref in index.nodes()
        for weight in ref.node.input
        if weight in index.main.constants and weight.endswith((".weight", ".bias"))
    ]
    assert len(read) >= least
    assert [pair for pair in read if pair[0] != pair[1]] == []


@pytest.mark.corpus
def test_a_fused_node_keeps_the_scope_and_names_the_rule(corpus):
    index = index_of(corpus("attacut_sc")[0])
    known = origins(index)
    fused = [known.of(node) for node in index.main.nodes if node.op_type == "Conv"]
    assert [found.scope for found in fused] == ["model.conv1.bn", "model.conv2.bn", "model.conv3.bn"]
    assert {found.rule for found in fused} == {"FuseBatchNormIntoConv"}
    assert all(found.source is not None and "/torch/" not in found.source for found in fused)


@pytest.mark.corpus
def test_second_calls_in_a_real_model(corpus):
    index = index_of(corpus("silero_vad_16k_op15")[0])
    known = origins(index)
    calls = {known.of(ref.node).call for ref in index.nodes() if known.scope(ref.node) == "model.decoder.rnn"}
    assert calls == {0, 1}


@pytest.mark.corpus
def test_nodes_inside_torch_cond_have_a_source_and_no_module(corpus):
    index = index_of(corpus("silero_vad_ifless")[0])
    known = origins(index)
    inner = [
        known.of(ref.node) for ref in index.nodes() if ref.scope.parent is not None and known.kind(ref.node) != "none"
    ]
    assert inner
    assert all(found.scope is None for found in inner)
    assert all(found.code is not None and "torch.cond" in found.code for found in inner), "and not <eval_with_key>"


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["minilm_int8w", "magika", "ddddocr_rec", "swift_f0", "ppocr_v2_cls"])
def test_models_without_a_trace(corpus, name):
    index = index_of(corpus(name)[0])
    known = origins(index)
    assert {known.kind(ref.node) for ref in index.nodes()} == {"none"}
    assert {known.scope(ref.node) for ref in index.nodes()} == {None}
