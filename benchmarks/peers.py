"""The other tools: whether they are installed, and how each cuts a piece out of a model.

As a script, a peer that has no command line of its own becomes a whole process that can be measured:

    python benchmarks/peers.py onnx.utils IN.onnx OUT.onnx --inputs a b --outputs c

Each function takes ``infer``: whether the tool may run shape inference first where the file states no types (its
own means are used: a flag, a pass, ``onnx.shape_inference``). Nothing else is done for or against a tool.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Extract = Callable[[str, str, Sequence[str], Sequence[str]], None]


def onnx_extractor(source: str, target: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """``onnx.utils.Extractor``: it reads types from the file and looks for them nowhere else."""
    import onnx
    from onnx.utils import Extractor

    piece = Extractor(onnx.load(source)).extract_model(list(inputs), list(outputs))
    onnx.save(piece, target)


def onnx_utils(source: str, target: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """``onnx.utils.extract_model`` with its defaults: it checks, infers shapes, extracts, and checks again."""
    import onnx.utils

    onnx.utils.extract_model(source, target, list(inputs), list(outputs))


def graphsurgeon(
    source: str, target: str, inputs: Sequence[str], outputs: Sequence[str], *, infer: bool = False
) -> None:
    """onnx-graphsurgeon as its examples do it: set inputs and outputs, clean up, sort, export."""
    import onnx
    import onnx_graphsurgeon as gs

    if infer:
        model = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False))
        onnx.load_external_data_for_model(model, str(Path(source).parent))
    else:
        model = onnx.load(source)
    graph = gs.import_onnx(model)
    tensors = graph.tensors()
    graph.inputs = [tensors[name] for name in inputs]
    graph.outputs = [tensors[name] for name in outputs]
    graph.cleanup().toposort()
    onnx.save(gs.export_onnx(graph), target)


def onnx_ir(source: str, target: str, inputs: Sequence[str], outputs: Sequence[str], *, infer: bool = False) -> None:
    """onnx-ir's ``convenience.extract``, made a model again with the opsets and functions of the whole."""
    import onnx_ir as ir

    model = ir.load(source)
    if infer:
        from onnx_ir.passes.common import ShapeInferencePass

        ShapeInferencePass()(model)
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    piece = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    outside = any(isinstance(value.const_value, ir.ExternalTensor) for value in graph.initializers.values())
    ir.save(piece, target, external_data=f"{Path(target).name}.data" if outside else None)


def polygraphy_arguments(source: str, target: str, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Returns the arguments of ``polygraphy surgeon extract``, types and shapes left to it (``auto``)."""
    arguments = ["surgeon", "extract", source, "-o", target]
    arguments += ["--inputs", *(f"{name}:auto:auto" for name in inputs)]
    return [*arguments, "--outputs", *(f"{name}:auto" for name in outputs)]


def polygraphy(source: str, target: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """``polygraphy surgeon extract``, in this process."""
    from polygraphy.tools import main

    log = io.StringIO()
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        status = main(polygraphy_arguments(source, target, inputs, outputs))
    if status:
        said = [line for line in log.getvalue().splitlines() if line.startswith(("[!]", "[E]"))]
        raise RuntimeError(said[0] if said else f"polygraphy surgeon extract: exit {status}")


TOOLS: dict[str, Callable[..., None]] = {
    "onnx.utils.Extractor": onnx_extractor,
    "onnx.utils.extract_model": onnx_utils,
    "onnx-graphsurgeon": graphsurgeon,
    "onnx-ir": onnx_ir,
    "polygraphy": polygraphy,
}
PACKAGES = {
    "onnx.utils.Extractor": "onnx",
    "onnx.utils.extract_model": "onnx",
    "onnx-graphsurgeon": "onnx-graphsurgeon",
    "onnx-ir": "onnx-ir",
    "polygraphy": "polygraphy",
}
INFERS = ("onnx-graphsurgeon", "onnx-ir")
"""Tools that take ``infer``; the others look after themselves, or cannot."""


def version(tool: str) -> str | None:
    """Returns the version of the package that a tool comes in, or None if it is not installed."""
    try:
        return importlib.metadata.version(PACKAGES[tool])
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(tool: str) -> str:
    """Returns why a tool cannot be run here, or nothing."""
    return "" if version(tool) else "not installed"


def command(
    tool: str, source: Path, target: Path, inputs: Sequence[str], outputs: Sequence[str], *, infer: bool = False
) -> list[str]:
    """Returns a command line by which a tool cuts a piece as a process of its own."""
    if tool == "polygraphy":
        return script_command("polygraphy", *polygraphy_arguments(str(source), str(target), inputs, outputs))
    line = [sys.executable, __file__, tool, str(source), str(target)]
    line += ["--infer"] if infer else []
    return [*line, "--inputs", *inputs, "--outputs", *outputs]


def onnxbench_command(*arguments: Any) -> list[str]:
    """Returns a command line of onnxbench."""
    return script_command("onnxbench", *arguments)


def script_command(name: str, *arguments: Any) -> list[str]:
    """Returns a command line of a package: its installed script, or ``python -m`` where there is none."""
    script = Path(sys.executable).with_name(name)
    start = [str(script)] if script.exists() else [sys.executable, "-m", name]
    return [*start, *(str(argument) for argument in arguments)]


def main() -> None:
    """Cuts one piece with one tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--inputs", nargs="+", required=True)
    parser.add_argument("--outputs", nargs="+", required=True)
    parser.add_argument("--infer", action="store_true")
    told = parser.parse_args()
    extra = {"infer": True} if told.infer and told.tool in INFERS else {}
    TOOLS[told.tool](told.source, told.target, told.inputs, told.outputs, **extra)


if __name__ == "__main__":
    main()
