"""``onnxbench partition``: the pieces that a configuration names, cut at marks."""

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
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    InlineFunctions,
    ModelArgument,
    PerTensor,
    Prove,
    Quiet,
    RangeOption,
    Seed,
    ShapeOption,
    ShareWeights,
    feed_options,
    save_options,
)


@means_nothing_without(val_range=("prove", "shape", "dim"), external_threshold=("external_data", "per_tensor"))
def partition(
    model: ModelArgument,
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The pieces.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for all files.", show_default=False)],
    prove: Prove = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="DATA...",
            help="Record the inputs of each piece for these inputs of the whole, as .npz (DATA as for --feeds).",
            show_default=False,
        ),
    ] = None,
    inline_functions: InlineFunctions = False,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    share_weights: ShareWeights = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the pieces of a model that a configuration names, the whole without marks, and a manifest.

    A piece has a file, a start and an end (points such as yolo_head:input, or any selectors), names for its ends and
    dynamic axes (docs/marks.md); MMDeploy's partition_config is read too. --prove runs the pieces in ONNX Runtime, what
    they do not cover taken from the whole; exit code 1 if they differ from it.

    \b
    Examples:
      onnxbench partition marked.onnx pieces.yaml pieces --prove
      onnxbench partition marked.onnx pieces.yaml pieces --calibration images.npz
    """
    from onnxbench import division
    from onnxbench.feeding import FeedOptions

    done = division.divide(
        model, config, folder, prove=prove, inline=inline_functions, allow_outside=allow_outside,
        calibration=FeedOptions(calibration) if calibration else None,
        feeds=feed_options(feeds, shape, dim, val_range, seed),
        options=save_options(external_data, per_tensor, external_threshold, share_weights),
    )  # fmt: skip
    _pieces.print_divided(done, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if done.proof is None or done.proof.holds else 1)
