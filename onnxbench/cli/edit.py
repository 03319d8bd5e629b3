"""``onnxbench edit``: rewriting a model by a replayable recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxbench.cli import _edits
from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    CustomOps,
    DimOption,
    DryRun,
    Expect,
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    Interactive,
    ModelArgument,
    NoStamp,
    OutArgument,
    PerTensor,
    Quiet,
    RangeOption,
    SaveRecipe,
    SaveUndo,
    Seed,
    ShapeOption,
    ShareWeights,
    ShortOutput,
    Verify,
    feed_options,
    save_options,
)

COMMAND_CLASS = _edits.EditCommand


@means_nothing_without(
    feeds="verify", shape="verify", dim="verify", val_range="verify", seed="verify",
    external_threshold=("external_data", "per_tensor"),
)  # fmt: skip
def edit(
    model: ModelArgument,
    out: OutArgument = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option("--recipe", "-r", metavar="FILE...", help="Recipes (YAML), applied in turn.", show_default=False),
    ] = None,
    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=VALUE...", help="Values of the recipes' variables.", show_default=False),
    ] = None,
    expect: Expect = None,
    short_o: ShortOutput = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="STEP...",
            help="A step as in a recipe: 'set_op: {at: op:Add, to: Sub}'.",
            show_default=False,
        ),
    ] = None,
    verify: Verify = False,
    interactive: Interactive = False,
    save_recipe: SaveRecipe = None,
    save_undo: SaveUndo = None,
    undo: Annotated[
        Path | None,
        typer.Option(
            "--undo",
            metavar="F.undo",
            show_default=False,
            help="Instead of steps: make the model before an edit of the edited MODEL and what --save-undo wrote.",
        ),
    ] = None,
    no_stamp: NoStamp = False,
    custom_ops: CustomOps = None,
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
    """Edit a model by the steps of a recipe, or by steps given as flags: all of them, or no file.

    Each operation below is a flag, a line of a recipe, and a Python dataclass. A flag takes its short spelling or a
    mapping: --set-op op:Add=Sub, --set-op '{at: op:Add, to: Sub, expect: all}'. A step that matches other than it
    expects stops everything with exit code 14. With --verify, exit code 1 says that a step changed more than it may.

    \b
    Examples:
      onnxbench edit model.onnx out.onnx --set-op op:Add=Sub
      onnxbench edit model.onnx out.onnx --recipe surgery.yaml --var classes=80 --verify
      onnxbench edit model.onnx --recipe surgery.yaml --dry-run
      onnxbench edit model.onnx out.onnx --set-attribute 'node:Conv_3:pads=[1,1,1,1]' --save-recipe surgery.yaml
      onnxbench edit model.onnx out.onnx --set-op '{at: op:Relu, to: Sigmoid, expect: all}' --save-undo back.undo
      onnxbench edit out.onnx model_again.onnx --undo back.undo
    """
    from onnxbench import surgery

    storing = save_options(external_data, per_tensor, external_threshold, share_weights)
    if undo is not None:
        idle = {
            "--recipe": recipe, "--var": var, "--expect": expect, "--verify": verify, "--interactive": interactive,
            "--save-recipe": save_recipe, "--save-undo": save_undo, "--no-stamp": no_stamp,
        }  # fmt: skip
        _edits.refuse_with_undo(flag for flag, said in idle.items() if said)
        target = _edits.one_target(out, short_o, dry_run=dry_run)
        _edits.undo(model, target, undo, storing, allow_outside=allow_outside, as_json=as_json)
        return
    whole = _edits.whole_recipe(recipe or (), var or (), expect, allow_outside=allow_outside)
    target = _edits.one_target(out, short_o, dry_run=dry_run)
    _edits.refuse_idle(dry_run, save_recipe, save_undo)
    wanted = feed_options(feeds, shape, dim, val_range, seed)
    done = surgery.edit_file(
        model, target, whole, verify=wanted if verify else False, stamp=not no_stamp, save_recipe=save_recipe,
        approve=_edits.ask() if interactive else None, allow_outside=allow_outside,
        save_undo=save_undo, options=storing, libraries=custom_ops or (),
    )  # fmt: skip
    _edits.print_edited(done, dry_run=dry_run, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if done.edited.passed else 1)
