"""Measures ``onnxbench export``: the share of values that map to PyTorch, whether they are right, and what it costs.

    pip install -e '.[torch]' torch==2.13.0 transformers==5.23.0
    python benchmarks/exporting.py resnet18 bert gpt2 llama

For each model: how many values the file has, how many of them are said to be the value of an fx node, whether each of
these agrees with that node's value (recomputed by ``torch.fx.Interpreter``), and how many have a module and a source
line. Then the processor time of ``onnxbench.export`` without verification over that of ``torch.onnx.export`` to a file,
in one process, alternating; the median of the rounds. Weights are random and scaled so that no output vanishes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import torch
from torch import nn

ROUNDS = 3


class Basic(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        for number, (before, after, stride) in enumerate(widths, 1):
            self.add_module(f"layer{number}", nn.Sequential(Basic(before, after, stride), Basic(after, after, 1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def image(size: int = 64) -> dict[str, Any]:
    return {"pixel_values": torch.randn(1, 3, size, size)}


def words() -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 500, (1, 16)), "attention_mask": torch.ones(1, 16, dtype=torch.long)}


def resnet18():
    return ResNet18(), {"x": torch.randn(1, 3, 224, 224)}


def bert():
    import transformers as hf

    small = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    return hf.BertForSequenceClassification(hf.BertConfig(**small, intermediate_size=128)), words()


def gpt2():
    import transformers as hf

    config = hf.GPT2Config(vocab_size=500, n_embd=64, n_layer=3, n_head=4, n_positions=64, use_cache=False)
    return hf.GPT2LMHeadModel(config), words()


def llama():
    import transformers as hf

    config = hf.LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config), words()


def vit():
    import transformers as hf

    config = hf.ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=64, patch_size=8
    )
    return hf.ViTForImageClassification(config), image()


def whisper():
    import transformers as hf

    config = hf.WhisperConfig(
        vocab_size=500, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=100,
        num_mel_bins=80, use_cache=False, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    inputs = {"input_features": torch.randn(1, 80, 200), "decoder_input_ids": torch.randint(0, 500, (1, 8))}
    return hf.WhisperForConditionalGeneration(config), inputs


def segformer():
    import transformers as hf

    config = hf.SegformerConfig(
        hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], decoder_hidden_size=32, num_attention_heads=[1, 2, 4, 8]
    )
    return hf.SegformerForSemanticSegmentation(config), image()


def yolos():
    import transformers as hf

    config = hf.YolosConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=[64, 64],
        patch_size=8, num_detection_tokens=10,
    )  # fmt: skip
    return hf.YolosForObjectDetection(config), image()


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    each.__name__: each for each in (resnet18, bert, gpt2, llama, vit, whisper, segformer, yolos)
}


def randomized(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.4 * (1.0 / max(1, parameter[0].numel())) ** 0.5)
            else:
                parameter.copy_(1 + 0.2 * noise if "weight" in name else 0.1 * noise)
        for each in module.modules():
            if isinstance(each, nn.modules.batchnorm._BatchNorm):
                each.running_mean.copy_(0.1 * torch.randn(each.running_mean.shape, generator=generator))
                each.running_var.copy_(0.5 + torch.rand(each.running_var.shape, generator=generator))
    return module.eval()


def exported(name: str, folder: Path) -> Path:
    """Writes one of these models as ``onnxbench export`` does, with seeded weights, and returns the file."""
    from onnxbench.pytorch.exporting import ExportOptions, export
    from onnxbench.pytorch.sources import source_of

    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    path = folder / f"{name}.onnx"
    export(source_of((randomized(module), (), inputs)).in_order(), path, options=ExportOptions(verify=False))
    return path


def fx_values(program: Any, source: Any) -> dict[str, Any]:
    """Returns the value of every fx node of the program for the example inputs."""
    values = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if isinstance(value, torch.Tensor):
                values[node.name] = value.detach().numpy().copy()
            return value

    signature = program.graph_signature
    state = {**program.state_dict, **program.constants}
    kept = {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants
    }  # fmt: skip
    given = iter([leaf.value for leaf in source.leaves()])
    names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    with torch.no_grad():
        Recorder(program.graph_module).run(*(state[kept[n]] if n in kept else next(given) for n in names))
    return values


def measure(name: str) -> dict[str, Any]:
    import numpy as np

    from onnxbench import backends
    from onnxbench.errors import BenchError
    from onnxbench.model import load
    from onnxbench.origins import origins_of
    from onnxbench.pytorch import _exporters
    from onnxbench.pytorch.exporting import ExportOptions, export
    from onnxbench.pytorch.sources import source_of

    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    source = source_of((randomized(module), (), inputs)).in_order()
    kept = []
    real = _exporters.map_program
    _exporters.map_program = lambda model, program: (kept.append(program), real(model, program))[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        done = export(source, out)
        _exporters.map_program = real
        model = load(out)
        exact = {each.value: each.fx for each in origins_of(model) if each.kind == "value"}
        values = fx_values(kept[0], source)
        feeds = {
            info.name: leaf.value.numpy() for info, leaf in zip(model.proto.graph.input, source.leaves(), strict=True)
        }
        inner = [each for each in exact if "/" not in each]
        got = backends.run_with_outputs(model, feeds, inner, optimization="none")
        wrong, worst = [], 0.0
        for each in inner:
            wanted = values[exact[each]]
            scale = float(np.abs(wanted.astype(np.float64)).max()) or 1.0 if wanted.size else 1.0
            if wanted.shape != got[each].shape:
                wrong.append(each)
                continue
            apart = np.abs(wanted.astype(np.float64) - got[each].astype(np.float64))
            drift = float(np.nan_to_num(apart).max(initial=0)) / scale
            worst = max(worst, drift)
            if drift > 1e-4:
                wrong.append(each)
        plain, ours = [], []
        for _ in range(ROUNDS):
            plain.append(timed(lambda: plain_export(source, Path(folder) / "plain.onnx")))
            ours.append(timed(lambda: export(source, out, options=ExportOptions(verify=False))))
        try:
            scripted = export(source, None, options=ExportOptions(exporter="torchscript")).provenance
            by_names = {"torchscript": scripted.share, "torchscript_values": scripted.values}
        except BenchError as error:
            by_names = {"torchscript": error.message}
    covered = done.provenance
    return {
        "model": name, "values": covered.values, "exact": covered.exact, "wrong": len(wrong), "worst": worst,
        "inside": covered.inside, "fused": covered.fused, "placed": covered.share, "missing": covered.missing,
        **by_names,
        "plain_s": statistics.median(plain), "ours_s": statistics.median(ours),
        "overhead": statistics.median(ours) / statistics.median(plain) - 1,
    }  # fmt: skip


def plain_export(source: Any, path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            source.module,
            source.args,
            path,
            kwargs=dict(source.kwargs),
            dynamo=True,
            verbose=False,
            external_data=False,
        )


def timed(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


if __name__ == "__main__":
    torch.set_num_threads(1)
    for word in sys.argv[1:] or MODELS:
        print(json.dumps(measure(word)), flush=True)
