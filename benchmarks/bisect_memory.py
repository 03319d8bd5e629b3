"""How much memory ``bisect`` takes on a decoder of 24 layers and a billion float32 parameters, on PyTorch and a file.

    python benchmarks/bisect_memory.py FOLDER [--memory 4GiB] [--layers 24] [--width 2048]

The folder gets 4.3 GB, which are deleted again. The fault is one Sigmoid (half of a SiLU) in the middle that is a Tanh.
What is told is the peak of the process and its children, read from /proc twenty times a second: of what is theirs alone
(anonymous memory), and of all that is resident (with pages of the weights' file, which the system may drop).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn import functional

import onnxbench

HEADS = 16
VOCABULARY = 32_000
TOKENS = 64


class Layer(nn.Module):
    """One layer of a decoder: attention and a gated network, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.queries, self.keys, self.values, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the state after the layer, of the shape of ``x``: [batch, tokens, width]."""
        batch, tokens, width = x.shape
        seen = self.before(x)
        heads = (
            each(seen).view(batch, tokens, HEADS, width // HEADS).transpose(1, 2)
            for each in (self.queries, self.keys, self.values)
        )
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        seen = self.between(x)
        return x + self.down(functional.silu(self.gate(seen)) * self.up(seen))


class Decoder(nn.Module):
    """A decoder: token numbers in, logits out; the embedding is the last weight too."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits: [batch, tokens, vocabulary]."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), self.embedding.weight)


def build(layers: int, width: int) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Returns the decoder with weights from seed 0, and tokens."""
    with torch.device("meta"):
        module = Decoder(layers, width)
    module = module.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
    return module, (torch.randint(VOCABULARY, (1, TOKENS), generator=generator),)


def export(folder: Path, layers: int, width: int) -> tuple[int, str]:
    """Writes the decoder, and one with a fault; returns how many parameters it has, and the node with the fault."""
    source = build(layers, width)
    onnxbench.export(source, folder / "right.onnx", options=onnxbench.ExportOptions(verify=False))
    model = onnx.load(folder / "right.onnx", load_external_data=False)
    gates = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    chosen = gates[len(gates) // 2]
    chosen.op_type = "Tanh"
    (folder / "wrong.onnx").write_bytes(model.SerializeToString())
    return sum(weight.numel() for weight in source[0].parameters()), chosen.name


def watched(command: list[str]) -> tuple[str, float, dict[str, int]]:
    """Runs a command; returns what it prints, the seconds, and the peaks of its processes' memory in bytes."""
    start = time.perf_counter()
    peaks = {"RssAnon": 0, "VmRSS": 0}
    with tempfile.TemporaryFile("w+") as said:  # a pipe would be full before the process ends
        with subprocess.Popen(command, stdout=said) as process:
            while process.poll() is None:
                for key, size in tree_memory(process.pid).items():
                    peaks[key] = max(peaks[key], size)
                time.sleep(0.05)
        seconds = time.perf_counter() - start
        said.seek(0)
        return said.read(), seconds, peaks


def tree_memory(root: int) -> dict[str, int]:
    """Returns what a process and its children hold, in bytes."""
    found = {"RssAnon": 0, "VmRSS": 0}
    pending = [root]
    while pending:
        pid = pending.pop()
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            for task in Path(f"/proc/{pid}/task").iterdir():
                pending += map(int, (task / "children").read_text().split())
        except OSError:  # it has just ended
            continue
        for key in found:
            if f"{key}:" in status:
                found[key] += int(status.split(f"{key}:")[1].split()[0]) * 1024
    return found


def main() -> None:
    """Builds the models, searches them, and prints a row for each search."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    given = parser.parse_args()
    here: Path = given.folder
    here.mkdir(parents=True, exist_ok=True)
    try:
        factory = here / "decoder.py"
        lines = [
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})", "from bisect_memory import build",
            "def make():", f"    return build({given.layers}, {given.width})",
        ]  # fmt: skip
        factory.write_text("\n".join(lines) + "\n")
        # In a process of its own, so that nothing of the export is held while the search is measured.
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
            f"import bisect_memory as b; print(*b.export(Path({str(here)!r}), {given.layers}, {given.width}))"
        )
        said, seconds, peaks = watched([sys.executable, "-c", code])
        parameters, node = said.split()[-2:]
        print(f"{int(parameters):,} parameters, fault at {node}; exported in {seconds:.0f} s, {_text(peaks)}\n")
        print("| reference | --memory | anonymous, peak | resident, peak | seconds | named |")
        print("|---|---|---|---|---|---|", flush=True)
        for words in (["--torch", f"{factory}:make"], ["--against", str(here / "right.onnx")]):
            for memory in (["--memory", given.memory], []):
                command = [sys.executable, "-m", "onnxbench", "bisect", str(here / "wrong.onnx"), *words, *memory]
                said, seconds, peaks = watched([*command, "--json", "--quiet"])
                told = json.loads(said)
                if "result" not in told:
                    sys.exit(f"{' '.join(command)}: {said}")
                found = told["result"]["culprits"]
                # PyTorch knows no value between the Sigmoid and the product that make up a SiLU.
                right = "yes" if len(found) == 1 and node in found[0]["region"] else f"no: {found}"
                print(
                    f"| {words[0][2:]} | {memory[-1] if memory else ''} | {_text(peaks)} | {seconds:.0f} | {right} |",
                    flush=True,
                )
    finally:
        for name in ("right.onnx", "right.onnx.data", "wrong.onnx", "decoder.py"):
            (here / name).unlink(missing_ok=True)


def _text(peaks: dict[str, int]) -> str:
    return " | ".join(f"{size / 2**30:.1f} GiB" for size in peaks.values())


if __name__ == "__main__":
    main()
