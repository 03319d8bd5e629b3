"""``onnxbench extract``: a piece of a model as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxbench.cli import _pieces
from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    DimOption,
    DryRun,
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    InlineFunctions,
    ModelArgument,
    OutArgument,
    OutOrOutputs,
    PerTensor,
    Quiet,
    RangeOption,
    Seed,
    ShapeOption,
    ShareWeights,
    feed_options,
    save_options,
)

_INPUT_NAMES = ("--inputs", "-i", "--from", "--start", "--input_names", "--input-names")
_OUTPUT_NAMES = ("--outputs", "--to", "--end", "--output_names", "--output-names")
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        *_INPUT_NAMES, metavar="SEL...",
        help="Where the piece starts: selectors, or name:shape:dtype (what the model leaves open). "
        "Default: the model's own inputs.",
        show_default=False,
    ),
]  # fmt: skip
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        *_OUTPUT_NAMES, metavar="SEL...",
        help="Where it ends. Default: the model's outputs that depend on the inputs.", show_default=False,
    ),
]  # fmt: skip


@means_nothing_without(
    auto_inputs="inputs",
    keep_unused="inputs",
    val_range=("save_feeds", "shape", "dim"),
    seed=("save_feeds", "shape", "dim"),
    external_threshold=("external_data", "per_tensor"),
)
def extract(
    model: ModelArgument,
    out: OutArgument = None,
    inputs: Inputs = None,
    outputs: Outputs = None,
    short_o: OutOrOutputs = None,
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            "--nodes",
            metavar="SEL...",
            help="Exactly these nodes and what enters and leaves them.",
            show_default=False,
        ),
    ] = None,
    op: Annotated[
        list[str] | None,
        typer.Option(
            "--op", metavar="TYPE...", help="All nodes of an operator type: --node op:TYPE.", show_default=False
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="MODULE...", help="A PyTorch module: --node scope:MODULE.", show_default=False),
    ] = None,
    lift: Annotated[
        str | None,
        typer.Option(
            "--lift", metavar="BODY", help="A body (If_3/then) or function, its captures as inputs.", show_default=False
        ),
    ] = None,
    auto_inputs: Annotated[
        bool, typer.Option("--auto-inputs", help="Add the smallest set of tensors that bounds the piece.")
    ] = False,
    keep_unused: Annotated[bool, typer.Option("--keep-unused", help="Keep inputs that change nothing.")] = False,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            metavar="OLD=NEW...",
            help="Names for the piece's inputs and outputs, by tensor or by the name at a mark.",
            show_default=False,
        ),
    ] = None,
    inline_functions: InlineFunctions = False,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    save_feeds: Annotated[
        Path | None,
        typer.Option(
            "--save-feeds",
            metavar="F.npz",
            help="Record the real values at the new inputs (and outputs, in F_outputs.npz) by a run of the whole.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    share_weights: ShareWeights = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut a piece out of a model: between tensors, around nodes or a module, or one body.

    The piece is right or refused. If the inputs do not bound it, the command ends with exit code 3, names the
    tensors that are missing and shows cuts that would work. See `onnxbench find --help` for selectors. At the points
    that marked PyTorch code left (docs/marks.md) inputs and outputs are called as the marks say, and no Mark is left.

    \b
    Examples:
      onnxbench extract model.onnx piece.onnx --inputs 22 --outputs 28
      onnxbench extract model.onnx piece.onnx --from node:Conv_3 --to node:Relu_9
      onnxbench extract model.onnx tail.onnx --inputs 'x:[1,64,56,56]:float32'
      onnxbench extract model.onnx block.onnx --scope encoder.layer.3
      onnxbench extract model.onnx piece.onnx --outputs 28 --inputs 24 --auto-inputs
      onnxbench extract model.onnx body.onnx --lift If_3/then
      onnxbench extract model.onnx piece.onnx --inputs a --outputs b --save-feeds a.npz
      onnxbench extract marked.onnx head.onnx --from 'yolo_head[0]:input' --to yolo_head:output --rename dets=boxes
    """
    from onnxbench import pieces

    target, ends = _pieces.target_and_outputs(out, outputs, short_o, dry_run=dry_run)
    selectors = [*(node or ()), *(f"op:{name}" for name in op or ()), *(f"scope:{name}" for name in scope or ())]
    with _pieces.proposals_as_commands(_INPUT_NAMES, _OUTPUT_NAMES):
        done = pieces.extract_file(
            model, target, inputs, ends, nodes=selectors, body=lift, auto_inputs=auto_inputs, keep_unused=keep_unused,
            inline=inline_functions, rename=_pieces.renames(rename), save_feeds=save_feeds,
            allow_outside=allow_outside,
            feeds=feed_options(feeds, shape, dim, val_range, seed),
            options=save_options(external_data, per_tensor, external_threshold, share_weights),
        )  # fmt: skip
    _pieces.print_extracted("extract", done, as_json=as_json, quiet=quiet)
