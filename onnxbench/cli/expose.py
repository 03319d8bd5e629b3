"""``onnxbench expose``: the same model with further outputs."""

from __future__ import annotations

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


@means_nothing_without(
    val_range=("shape", "dim"), seed=("shape", "dim"), external_threshold=("external_data", "per_tensor")
)
def expose(
    model: ModelArgument,
    out: OutArgument = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs", "--onnx-outputs", "--mark", metavar="SEL...", help="The tensors to expose.", show_default=False
        ),
    ] = None,
    by_type: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs-by-type",
            "--onnx-outputs-by-type",
            metavar="TYPE...",
            help="What operators of these types make.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-outputs", "--onnx-exclude-outputs", metavar="SEL...", help="But not these.", show_default=False
        ),
    ] = None,
    short_o: OutOrOutputs = None,
    inline_functions: InlineFunctions = False,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    share_weights: ShareWeights = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make inner tensors outputs of the model, so that any runtime shows their values.

    Tensors inside functions need --inline-functions. Tensors inside If, Loop or Scan bodies cannot be outputs of
    the whole model; the error says how to get at them.

    \b
    Examples:
      onnxbench expose model.onnx seen.onnx --outputs conv1_out 'block*_out'
      onnxbench expose model.onnx seen.onnx --outputs op:Conv
      onnxbench expose model.onnx seen.onnx --outputs '*' --exclude-outputs dtype:int64
      onnxbench expose model.onnx seen.onnx --inline-functions --outputs local::Block/h
    """
    from onnxbench import pieces

    target, ends = _pieces.target_and_outputs(out, outputs, short_o, dry_run=dry_run)
    wanted = [*(ends or ()), *(f"op:{name}" for name in by_type or ())]
    done = pieces.expose_file(
        model, target, wanted, exclude=exclude or (), inline=inline_functions, allow_outside=allow_outside,
        feeds=feed_options(feeds, shape, dim, val_range, seed),
        options=save_options(external_data, per_tensor, external_threshold, share_weights),
    )  # fmt: skip
    _pieces.print_extracted("expose", done, as_json=as_json, quiet=quiet)
