"""``onnxbench unmark``: a model without its Mark nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxbench.cli import _edits
from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    DimOption,
    DryRun,
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    ModelArgument,
    NoStamp,
    OutArgument,
    PerTensor,
    Quiet,
    RangeOption,
    Seed,
    ShapeOption,
    ShareWeights,
    ShortOutput,
    feed_options,
    save_options,
)


@means_nothing_without(
    feeds="verify", shape="verify", dim="verify", val_range="verify", external_threshold=("external_data", "per_tensor")
)
def unmark(
    model: ModelArgument,
    out: OutArgument = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="SEL", show_default=False, help="Only these Marks: yolo_head:input, op:mmcv::Mark."
        ),
    ] = None,
    fuse: Annotated[
        bool,
        typer.Option("--fuse", help="Then do what a mark kept the exporter from: fuse and fold, by its own optimizer."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", "--validate", help="Run the model before and after; it must stay the same.")
    ] = False,
    no_stamp: NoStamp = False,
    short_o: ShortOutput = None,
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
    """Take Mark nodes out of a model as if they had never been there (docs/marks.md).

    Inputs and outputs keep their names. Marks of onnxbench and of MMDeploy (mmdeploy::Mark, mmcv::Mark) are read, in
    bodies and functions too. The same as a step of a recipe: 'unmark: all'; --fuse adds 'simplify: onnxscript'.

    \b
    Examples:
      onnxbench unmark marked.onnx plain.onnx
      onnxbench unmark marked.onnx plain.onnx --verify
      onnxbench unmark marked.onnx plain.onnx --fuse
      onnxbench unmark marked.onnx out.onnx --at yolo_head:input
    """
    from onnxbench import surgery
    from onnxbench.operations import Operation, Simplify, Unmark

    target = _edits.one_target(out, short_o, dry_run=dry_run)
    wanted = feed_options(feeds, shape, dim, val_range, seed)
    steps: list[Operation] = [Unmark(at or "all"), *([Simplify("onnxscript")] if fuse else [])]
    done = surgery.edit_file(
        model, target, steps, verify=wanted if verify else False, stamp=not no_stamp,
        options=save_options(external_data, per_tensor, external_threshold, share_weights), allow_outside=allow_outside,
    )  # fmt: skip
    _edits.print_edited(done, dry_run=dry_run, as_json=as_json, quiet=quiet, command="unmark")
    raise typer.Exit(0 if done.edited.passed else 1)
