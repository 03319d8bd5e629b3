"""Whole networks with MMDeploy's operators: exported, run in ONNX Runtime equal to PyTorch, and built into engines."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from cases import ROOT

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

from mmdeploy_networks import NETWORKS  # noqa: E402

from onnxbench import backends, load  # noqa: E402
from onnxbench.bundles import find_plugins, read_bundles  # noqa: E402
from onnxbench.engine import BuildSpec, build_engine  # noqa: E402
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402

pytestmark = pytest.mark.torch
needs_trt = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network.__name__)
def exported(request, tmp_path_factory):
    """A network, and the file that it was exported to."""
    torch.manual_seed(3)
    network = request.param().eval()
    folders = [str(ROOT / "plugins" / name) for name in network.bundles]
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    done = export((network, (torch.randn(network.image),)), path, options=ExportOptions(plugins=folders, verify=False))
    assert done.saved
    return network, folders, path


def test_onnxruntime_computes_what_pytorch_does(exported):
    network, folders, path = exported
    bundles = [bundle for folder in folders for bundle in read_bundles(folder)]
    proto = onnx.load(path)
    written = {node.op_type for node in proto.graph.node if node.domain == "mmdeploy"}
    assert written == {bundle.op for bundle in bundles} - {"NMSRotated"}
    session = backends.open_session(
        load(path), options=backends.Options(operators=tuple(bundle.operator() for bundle in bundles))
    )
    for seed in range(3):
        torch.manual_seed(seed)
        image = torch.randn(network.image)
        with torch.no_grad():
            expected = network(image)
        made = session.run({proto.graph.input[0].name: image.numpy()})
        expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
        for actual, wanted in zip(made.values(), expected, strict=True):
            assert np.abs(wanted.numpy()).max() > 0
            np.testing.assert_allclose(actual, wanted.numpy(), rtol=1e-3, atol=1e-4)
    session.close()


@pytest.mark.trt
@needs_trt
def test_it_becomes_an_engine_with_the_kernels_in_it(exported, tmp_path):
    _, folders, path = exported
    spec = BuildSpec(compute_capabilities=("SM89",))
    built = build_engine(path, tmp_path / "model.engine", spec, plugins=find_plugins(folders))
    data = built.path.read_bytes()
    for folder in folders:
        assert read_bundles(folder)[0].ptx().encode() in data
    nodes = [node for node in onnx.load(path).graph.node if node.domain == "mmdeploy"]
    assert built.record.data["kinds"]["PLUGIN_V3"] == len(nodes)
