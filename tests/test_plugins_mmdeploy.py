"""MMDeploy's operators as bundles: each passes its own tests, and its rule to standard operators computes the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import ROOT

from onnxbench import backends
from onnxbench.bisection import bisect
from onnxbench.bundles import export_cpp, find_plugins, kind_of, load_bundle, read_bundles, run_file
from onnxbench.bundles._proof import _in, allowed_in, difference, expected_of
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import BuildSpec, build_engine
from onnxbench.errors import BenchError, SpecError, UsageError
from onnxbench.model import from_proto
from onnxbench.operations import Rewrite
from onnxbench.proving import prove_plugin
from onnxbench.recipe import Step
from onnxbench.surgery import edit

PLUGINS = ROOT / "plugins"
BUNDLES = (
    "roi_align",
    "multi_level_roi_align",
    "roi_align_rotated",
    "modulated_deform_conv2d",
    "dcn_v3",
    "instance_norm",
    "batched_nms",
    "nms_rotated",
    "scatter_nd",
    "gather_topk",
    "grid_priors",
    "scaled_dot_product_attention",
)
RULES = {
    "roi_align": "roialign.yaml",
    "modulated_deform_conv2d": "deformconv.yaml",
    "instance_norm": "instancenormalization.yaml",
    "dcn_v3": "gridsample.yaml",
    "roi_align_rotated": "gather.yaml",
}
EXACT_RULES = ("dcn_v3", "roi_align_rotated")
"""Rules that agree everywhere, also where something is empty or not finite, and in float16."""
RULES_OF_ALL_OUTPUTS = {
    "batched_nms": "nms.yaml",
    "scatter_nd": "scatternd.yaml",
    "gather_topk": "gathernd.yaml",
    "grid_priors": "priors.yaml",
    "scaled_dot_product_attention": "attention.yaml",
}
MAY_BE_MISSING = {"onnxruntime_extensions": "ONNX Runtime", "tensorrt_rtx": "TensorRT engine", "torch": "PyTorch"}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@needs_compiler
@pytest.mark.parametrize("name", BUNDLES)
def test_each_bundle_passes_its_own_tests(name):
    folder = PLUGINS / name
    outcomes = prove_plugin(folder, engine="tensorrt-rtx" if find_spec("tensorrt_rtx") else None)
    missing = {MAY_BE_MISSING[module] for module in MAY_BE_MISSING if find_spec(module) is None}
    assert not [each for each in outcomes if each.passed is False]
    assert {each.name.rpartition(": ")[2] for each in outcomes if each.passed is None} <= missing
    bundles = read_bundles(folder)
    assert all(sum(1 for _ in bundle.cases()) >= 200 for bundle in bundles)
    cases = [case for bundle in bundles for case in bundle.cases()]
    assert any(not all(value.size for value in inputs) for inputs, _ in cases), "something empty"
    assert any(not np.isfinite(value).all() for inputs, _ in cases for value in inputs), "something not finite"
    assert len((folder / "kernel.ptx").read_bytes()) < 220_000


def run(*arguments: object) -> int:
    return bounded(app, [str(argument) for argument in arguments])


def is_meant(name, inputs, attributes):
    """Tells whether the standard says what the operator of a case is; else the rule's doc names the case."""
    if name in EXACT_RULES:
        return True
    if not all(value.size and np.isfinite(value).all() for value in inputs):
        return False
    if name != "roi_align":
        return True
    image, rois = inputs
    numbers, start, end = rois[:, 0], rois[:, 1:3], rois[:, 3:]
    return bool((numbers >= 0).all() and (numbers < len(image)).all() and (start <= end).all())


def is_refused(name, attributes):
    """Tells whether a rule leaves a node as it is: it takes the largest sample, or each region has its own number."""
    if name == "roi_align_rotated":
        return not attributes.get("sampling_ratio")
    return attributes.get("mode") == "max"


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("domain", ["mmdeploy", "mmcv"])
def test_the_rule_computes_the_same(name, domain):
    bundle = load_bundle(PLUGINS / name)
    step = Step(Rewrite(rule=str(PLUGINS / name / RULES[name])))
    meant = [case for case in bundle.cases() if is_meant(name, *case)]
    done = 0
    for at, case in enumerate(meant[:: max(1, len(meant) // 24)]):
        dtype, attributes = ("float16" if name in EXACT_RULES and at % 2 else "float32"), case[1]
        inputs = _in(dtype, bundle, case)
        proto = bundle.model(inputs, attributes)
        proto.graph.node[0].domain = proto.opset_import[1].domain = domain
        proto.opset_import[0].version, proto.ir_version = 19, 9
        if is_refused(name, attributes):
            with pytest.raises(BenchError):
                edit(from_proto(proto), [step])
            continue
        made = edit(from_proto(proto), [step]).model.proto
        assert {node.domain for node in made.graph.node} == {""}
        onnx.checker.check_model(made, full_check=True)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        (actual,) = session.run(None, dict(zip(bundle.inputs, inputs, strict=False)))
        (expected,) = expected_of(bundle, inputs, attributes)
        assert actual.dtype == expected.dtype
        assert difference(actual, expected, allowed_in(bundle, expected)) is None, (attributes, inputs)
        done += 1
    assert done >= 12


@pytest.mark.parametrize(
    ("name", "rule", "domain", "op"),
    [
        ("instance_norm", "instancenormalization.yaml", "mmdeploy", "TRTInstanceNormalization"),
        ("roi_align_rotated", "gather.yaml", "mmdeploy", "RoIAlignRotated"),
        ("grid_sampler", "gridsample.yaml", "mmcv", "grid_sampler"),
    ],
)
def test_the_rule_knows_the_other_names(name, rule, domain, op):
    bundle = load_bundle(PLUGINS / name)
    assert f"{domain}::{op}" in bundle.aliases
    inputs, attributes = next(case for case in bundle.cases() if not is_refused(name, case[1]))
    proto = bundle.model(inputs, attributes)
    proto.graph.node[0].op_type, proto.graph.node[0].domain, proto.opset_import[1].domain = op, domain, domain
    made = edit(from_proto(proto), [Step(Rewrite(rule=str(PLUGINS / name / rule)))]).model.proto
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, dict(zip(bundle.inputs, inputs, strict=False)))
    (expected,) = expected_of(bundle, inputs, attributes)
    assert difference(actual, expected, allowed_in(bundle, expected)) is None


def is_in_range(name, inputs, attributes):
    """Tells whether the standard says what the operator of a case is: places out of range are errors there."""
    if not all(value.size for value in inputs) or (attributes.get("clip_boxes") and attributes.get("is_normalized")):
        return False
    sizes = {"gather_topk": lambda data, at: data.shape[at.ndim - 1],
             "scatter_nd": lambda data, at, _: data.shape[: at.shape[-1]]}  # fmt: skip
    if name not in sizes:
        return True
    most = np.array(sizes[name](*inputs))
    return bool(((inputs[1] < most) & (inputs[1] >= -most)).all())


@pytest.mark.parametrize("name", RULES_OF_ALL_OUTPUTS)
def test_the_rule_computes_all_outputs(name):
    bundle = load_bundle(PLUGINS / name)
    step = Step(Rewrite(rule=str(PLUGINS / name / RULES_OF_ALL_OUTPUTS[name])))
    meant = [case for case in bundle.cases() if is_in_range(name, *case)]
    few = meant[:: max(1, len(meant) // 20)]
    assert len(few) >= 20
    for inputs, attributes in few:
        made = edit(from_proto(bundle.model(inputs, attributes)), [step]).model.proto
        assert {node.domain for node in made.graph.node} == {""}
        onnx.checker.check_model(made, full_check=True)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, dict(zip(bundle.inputs, inputs, strict=False)))
        for actual, expected in zip(found, expected_of(bundle, inputs, attributes), strict=True):
            assert actual.dtype == expected.dtype
            assert difference(actual, expected, allowed_in(bundle, expected)) is None, (attributes, inputs)


def without_index() -> tuple[onnx.ModelProto, dict, list]:
    """Returns a model of a TRTBatchedNMS as MMDeploy writes it, with two outputs, its inputs, and what it gives."""
    bundle = load_bundle(PLUGINS / "batched_nms")
    inputs, attributes = [case for case in bundle.cases() if case[1].get("num_classes") == 3][1]
    proto = bundle.model(inputs, attributes)
    del proto.graph.node[0].output[2], proto.graph.output[2]
    return proto, dict(zip(bundle.inputs, inputs, strict=True)), list(expected_of(bundle, inputs, attributes))[:2]


def test_a_node_may_leave_out_an_output():
    proto, feeds, expected = without_index()
    step = Step(Rewrite(rule=str(PLUGINS / "batched_nms" / "nms.yaml")))
    standard = edit(from_proto(proto), [step]).model
    assert {node.domain for node in standard.proto.graph.node} == {""}
    options = backends.Options(operators=(load_bundle(PLUGINS / "batched_nms").operator(),))
    assert (expected[1] >= 0).any()
    for model, backend in ((from_proto(proto), "ort"), (from_proto(proto), "reference"), (standard, "ort")):
        session = backends.open_session(model, backend, options=options)
        for made, wanted in zip(session.run(feeds).values(), expected, strict=True):
            assert made.dtype == wanted.dtype
            assert np.array_equal(made, wanted)
        session.close()


@pytest.mark.trt
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_tensorrt_builds_with_an_output_left_out(tmp_path):
    proto, _, _ = without_index()
    onnx.save(proto, tmp_path / "m.onnx")
    built = build_engine(
        tmp_path / "m.onnx", tmp_path / "m.engine", BuildSpec(compute_capabilities=("SM89",)),
        plugins=find_plugins([str(PLUGINS / "batched_nms")]),
    )  # fmt: skip
    assert built.record.data["kinds"].get("PLUGIN_V3") == 1


def test_the_list_shows_operators_and_versions(monkeypatch, capsys):
    monkeypatch.setenv("ONNXBENCH_PLUGIN_PATH", str(PLUGINS))
    assert run("plugins", "list") == 0
    shown = capsys.readouterr().out
    for name in BUNDLES:
        for bundle in read_bundles(PLUGINS / name):
            assert f"  {bundle.domain}::{bundle.op} version {bundle.version}: {', '.join(bundle.dtypes)}" in shown
    assert run("plugins", "list", "--json") == 0
    listed = {each["name"]: each["operators"] for each in json.loads(capsys.readouterr().out)["result"]["plugins"]}
    for name in BUNDLES:
        expected = [
            {"domain": bundle.domain, "op": bundle.op, "since_version": bundle.schema().since_version,
             "version": bundle.version, "dtypes": list(bundle.dtypes), "aliases": list(bundle.aliases)}
            for bundle in read_bundles(PLUGINS / name)
        ]  # fmt: skip
        assert listed[name] == expected
    with pytest.raises(SpecError, match="has several operators: NMSRotated, TRTBatchedRotatedNMS"):
        load_bundle(PLUGINS / "nms_rotated")


def test_overlaps_of_rotated_boxes_are_those_of_a_geometry_library():
    shapely = pytest.importorskip("shapely", reason="shapely is not installed (pip install shapely)")
    module = run_file(PLUGINS / "nms_rotated" / "plugin.py")
    random = np.random.default_rng(3)
    special = next(iter(module.special_boxes(random)))[0]
    boxes = np.concatenate([module.some_boxes(random, 60), special[np.isfinite(special).all(axis=1)]])
    shapes = [shapely.Polygon(corners) for corners in module.corners(boxes.astype(np.float64))]
    for box, shape in zip(boxes, shapes, strict=True):
        found = module.overlaps(box, boxes)
        for each, overlap in zip(shapes, found, strict=True):
            union = shape.union(each).area
            expected = shape.intersection(each).area / union if union > 0 else 0
            assert abs(overlap - expected) < 1e-6


def test_many_levels_are_one_level_after_the_other():
    single, several = load_bundle(PLUGINS / "roi_align"), load_bundle(PLUGINS / "multi_level_roi_align")
    random = np.random.default_rng(5)
    strides, finest = (4.0, 8.0, 16.0), 20
    maps = [random.standard_normal((2, 3, int(96 / stride), int(80 / stride))).astype(np.float32) for stride in strides]
    corner, size = (
        random.uniform(0, 60, (40, 2)),
        np.exp2(random.uniform(2, 7, (40, 1))) * random.uniform(0.8, 1.2, (40, 2)),
    )
    rois = np.concatenate([random.integers(0, 2, (40, 1)), corner, corner + size], axis=1).astype(np.float32)
    levels = np.clip(np.floor(np.log2(np.sqrt(size.prod(axis=1)) / finest + 1e-6)), 0, 2).astype(int)
    assert set(levels) == {0, 1, 2}
    for mode, aligned, ratio in ((0, 0, 2), (1, 1, 0), (1, 0, 3)):
        said = {"output_height": 3, "output_width": 4, "sampling_ratio": ratio, "aligned": aligned}
        how = {**said, "featmap_strides": strides, "finest_scale": finest, "pool_mode": mode}
        (made,) = expected_of(several, [rois, *maps], how)
        for level, stride in enumerate(strides):
            here = levels == level
            how = {**said, "mode": "avg" if mode else "max", "spatial_scale": 1 / stride}
            (expected,) = expected_of(single, [maps[level], rois[here]], how)
            assert difference(made[here], expected, (1e-5, 1e-5)) is None


def test_without_rotation_a_rotated_region_is_one_that_is_not():
    plain, rotated = load_bundle(PLUGINS / "roi_align"), load_bundle(PLUGINS / "roi_align_rotated")
    random = np.random.default_rng(6)
    image = random.standard_normal((2, 3, 12, 14)).astype(np.float32)
    x, y, wide, tall = random.uniform(2, 9, (4, 30))
    numbers = random.integers(0, 2, 30)
    boxes = np.stack([numbers, x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2], axis=1).astype(np.float32)
    for angle, clockwise in ((0.0, 0), (np.pi, 1)):
        turned = np.stack([numbers, x, y, wide, tall, np.full(30, angle)], axis=1).astype(np.float32)
        said = {"output_height": 4, "output_width": 3, "sampling_ratio": 2}
        (expected,) = expected_of(plain, [image, boxes], said)
        (made,) = expected_of(rotated, [image, turned], {**said, "clockwise": clockwise})
        assert difference(made[..., ::-1, ::-1] if angle else made, expected, (1e-4, 1e-4)) is None
    quarter = np.array([[0, 6.2, 5.4, 6, 4, np.pi / 2]], np.float32)
    (one,) = expected_of(rotated, [image, quarter], {**said, "output_height": 3, "clockwise": 0})
    (other,) = expected_of(
        rotated, [image, quarter * [1, 1, 1, 1, 1, -1]], {**said, "output_height": 3, "clockwise": 1}
    )
    assert difference(one, other, (1e-4, 1e-4)) is None, "clockwise is the angle the other way"


# ---------------------------------------------------------------- what bundles can say


def test_attributes_that_are_lists_or_needed():
    bundle = load_bundle(PLUGINS / "multi_level_roi_align")
    assert kind_of(bundle.attributes["featmap_strides"]) == (float, True)
    assert kind_of(load_bundle(PLUGINS / "modulated_deform_conv2d").attributes["stride"]) == (int, True)
    with pytest.raises(UsageError, match="needs the attribute 'featmap_strides'"):
        bundle.filled({})
    rois, maps = np.zeros((2, 5), np.float32), [np.zeros((1, 1, 4, 4), np.float32)] * 2
    model = bundle.model([rois, *maps], {"featmap_strides": (4.0, 8.0)})
    onnx.defs.register_schema(bundle.schema())
    try:
        onnx.checker.check_model(model, full_check=True)
        del model.graph.node[0].attribute[:]
        with pytest.raises(onnx.checker.ValidationError, match="featmap_strides"):
            onnx.checker.check_model(model)
    finally:
        onnx.defs.deregister_schema(bundle.op, 1, bundle.domain)


def test_a_node_by_another_name_is_the_same_operator():
    bundle = load_bundle(PLUGINS / "roi_align_rotated")
    inputs, attributes = next(iter(bundle.cases()))
    (expected,) = expected_of(bundle, inputs, attributes)
    proto = bundle.model(inputs, attributes)
    proto.graph.node[0].domain = proto.opset_import[1].domain = "mmcv"
    proto.graph.node[0].op_type = "RoIAlignRotated"
    operators = tuple(each.operator() for each in bundle.named())
    assert {(each.domain, each.name) for each in operators} == {
        (domain, op) for domain in ("mmdeploy", "mmcv") for op in ("MMCVRoIAlignRotated", "RoIAlignRotated")
    }
    session = backends.open_session(from_proto(proto), "reference", options=backends.Options(operators=operators))
    (made,) = session.run(dict(zip(bundle.inputs, inputs, strict=True))).values()
    assert difference(made, expected, (0, 0)) is None


def test_check_knows_the_operators_of_bundles(tmp_path, capsys):
    bundle, path = load_bundle(PLUGINS / "roi_align"), tmp_path / "m.onnx"
    proto = bundle.model(*next(iter(bundle.cases())))
    onnx.save(proto, path)
    check = ["check", path, "--plugin", PLUGINS / "roi_align", "--ort"]
    assert run(*check) == 0
    assert run("check", path, "--ort") == 1
    assert "mmdeploy" in capsys.readouterr().out, "ONNX Runtime does not know it"
    kept = proto.graph.node[0].attribute[:]
    del proto.graph.node[0].attribute[:]
    onnx.save(proto, path)
    assert run(*check) == 1
    shown = capsys.readouterr().out
    assert "OB404" in shown
    assert "(MMCVRoiAlign) has no attribute 'output_height', which it needs" in shown
    proto.graph.node[0].attribute.extend(kept)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 99
    onnx.save(proto, path)
    assert run("check", path) == 0
    assert run("check", path, "--plugin", PLUGINS / "roi_align") == 1, "the shape that is stated is not the one made"
    assert not onnx.defs.has(bundle.op, bundle.domain), "onnx forgets it again"


@pytest.mark.parametrize("name", BUNDLES)
def test_each_can_be_written_as_cpp(tmp_path, name):
    for bundle in read_bundles(PLUGINS / name):
        export_cpp(bundle, tmp_path / bundle.name)
        assert not (set(re.findall(r'#include "(.*)"', (bundle.folder / "kernel.cu").read_text(encoding="utf-8")))
                    - {file.name for file in (tmp_path / bundle.name).iterdir()})  # fmt: skip
    text = (tmp_path / name / "plugin.cpp").read_text(encoding="utf-8")
    says = {
        "roi_align": 'n.i[9] = (a.mode == "max" ? 1LL : 0LL);',
        "multi_level_roi_align": "if (a.featmap_strides.size() == 5 && nbInputs == 6 &&",
        "modulated_deform_conv2d": "std::vector<int32_t> stride{1, 1};",
        "instance_norm": "std::min<int64_t>(",
        "batched_nms": "return (((in[1].max.d[0] * in[1].max.d[2]) * ((in[1].max.d[1] + std::min<int64_t>(",
        "nms_rotated": "out[0].d[0] = b.declareSizeTensor(1, ",
        "scaled_dot_product_attention": "nbInputs == 4 && in[0].nbDims == 3",
    }
    assert says.get(name, "getOutputShapes") in text


def test_bisect_tells_a_custom_operator_from_its_neighbours():
    node = "mmdeploy.MMCVRoiAlign <output_height=4, output_width=4, spatial_scale=1.0, sampling_ratio=%d, aligned=1>"
    text = """<ir_version: 8, opset_import: ["" : 17, "mmdeploy" : 1]>
    g (float[1,3,16,16] x, float[2,5] rois) => (float[2,3,4,4] y) {
        [first] a = Relu (x) [roi] b = %s (a, rois) [last] y = Tanh (b) }"""
    right, wrong = (from_proto(onnx.parser.parse_model(text % (node % ratio))) for ratio in (2, 1))
    feeds = {
        "x": np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32),
        "rois": np.array([[0, 1, 1, 10, 10], [0, 0, 2, 7, 15]], np.float32),
    }
    operators = [load_bundle(PLUGINS / "roi_align").operator()]
    found = bisect(wrong, against=right, feeds=feeds, operators=operators)
    assert [culprit.node for culprit in found.culprits] == ["roi"]
    assert not bisect(right, against=right, feeds=feeds, operators=operators).culprits


_MANY_SESSIONS = """
import dataclasses, gc, sys
from pathlib import Path
from onnxbench import backends
from onnxbench.bundles import load_bundle
from onnxbench.model import from_proto

gc.disable()
for name in ("roi_align_rotated", "scaled_dot_product_attention", "gather_topk", "grid_sampler"):
    bundle = dataclasses.replace(load_bundle(Path(sys.argv[1]) / name), body=None)
    inputs, attributes = next(case for case in bundle.cases() if all(value.size for value in case[0]))
    proto = bundle.model(inputs, bundle.filled(attributes))
    proto.ir_version = 10
    session = backends.open_session(from_proto(proto), options=backends.Options("none", operators=(bundle.operator(),)))
    session.run(dict(zip([port.name for port in session.inputs], inputs, strict=False)))
kept = [bytes([255]) * size for size in range(16, 4096, 8) for _ in range(20)]
gc.collect()
print("alive")
"""


def test_sessions_of_other_operators_do_not_end_the_process():
    """The library of Python operators moves them when one is added; sessions that were there before pointed to them."""
    pytest.importorskip("onnxruntime_extensions", reason="pip install onnxbench[trt]")
    done = subprocess.run([sys.executable, "-c", _MANY_SESSIONS, PLUGINS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
