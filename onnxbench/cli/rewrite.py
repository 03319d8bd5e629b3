"""``onnxbench rewrite``: replacing what a pattern matches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxbench.cli import _edits, _rewrites
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
from onnxbench.errors import UsageError


@means_nothing_without(
    feeds="verify", shape="verify", dim="verify", val_range="verify", seed="verify",
    external_threshold=("external_data", "per_tensor"),
)  # fmt: skip
def rewrite(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="The model file; not with --list.", show_default=False)
    ] = None,
    out: OutArgument = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="RULE...",
            show_default=False,
            help="A rule that comes with onnxbench, or FILE[:name]: YAML, ONNX text, or a Python file with a rule of "
            "onnxscript's rewriter, which is run.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="SEL", show_default=False, help="Only matches whose last node is one of these nodes."
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(
            "--max", min=1, metavar="N", show_default=False, help="So many replacements at most, for each --rule."
        ),
    ] = None,
    why: Annotated[
        str | None,
        typer.Option(
            "--why", metavar="NODE", show_default=False, help="Say why the rules match or do not match at these nodes."
        ),
    ] = None,
    count: Annotated[bool, typer.Option("--count", "-c", help="Only say where the rules match.")] = False,
    list_rules: Annotated[bool, typer.Option("--list", help="List the rules, with what each is for.")] = False,
    expect: Expect = None,
    verify: Verify = False,
    interactive: Interactive = False,
    save_recipe: SaveRecipe = None,
    save_undo: SaveUndo = None,
    no_stamp: NoStamp = False,
    short_o: ShortOutput = None,
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
    """Replace what a pattern matches, or say why it does not match.

    A rule is a pattern and a replacement, both ONNX text functions, with conditions (docs/rewriting.md). It is applied
    until nothing matches any more. A rule that matches nowhere is an error that names the nearest misses, unless
    '--expect optional' says that it may. The same as a step of a recipe: 'rewrite: {rule: gelu_erf_ms}', which
    --save-recipe writes; 'onnxbench edit --undo' goes back by what --save-undo wrote.

    \b
    Examples:
      onnxbench rewrite --list
      onnxbench rewrite model.onnx out.onnx --rule gelu_erf_ms --expect 12 --verify --save-undo back.undo
      onnxbench rewrite model.onnx --rule layer_norm --count
      onnxbench rewrite model.onnx --rule layer_norm --why /encoder/norm/Add_1
      onnxbench rewrite model.onnx out.onnx --rule rules.yaml:silu --at scope:backbone --max 3
      onnxbench rewrite model.onnx --rule my_rules.py:fuse --dry-run
    """
    looks = [name for name, said in (("--list", list_rules), ("--why", why is not None), ("--count", count)) if said]
    given = {
        "--verify": verify, "--dry-run": dry_run, "-o": short_o, "--expect": expect, "--interactive": interactive,
        "--save-recipe": save_recipe, "--save-undo": save_undo, "--no-stamp": no_stamp,
    }  # fmt: skip
    acts = [name for name, said in given.items() if said]
    if len(looks) > 1:
        raise UsageError(f"{looks[0]} and {looks[1]} are two questions; ask one at a time")
    if looks and acts:
        raise UsageError(f"{looks[0]} only looks, and {acts[0]} would be ignored")
    if list_rules:
        _rewrites.print_rules(rule or (), as_json=as_json)
        return
    steps = _rewrites.operations(rule or (), at, most)
    if why is not None or count:
        _rewrites.look(model, steps, why, allow_outside=allow_outside, as_json=as_json)
        return
    from onnxbench import surgery

    target = _edits.one_target(out, short_o, dry_run=dry_run)
    _edits.refuse_idle(dry_run, save_recipe, save_undo)
    wanted = feed_options(feeds, shape, dim, val_range, seed)
    done = surgery.edit_file(
        _rewrites.required(model), target, _rewrites.guarded(steps, expect), verify=wanted if verify else False,
        stamp=not no_stamp, approve=_edits.ask() if interactive else None, save_recipe=save_recipe,
        save_undo=save_undo, allow_outside=allow_outside, libraries=custom_ops or (),
        options=save_options(external_data, per_tensor, external_threshold, share_weights),
    )  # fmt: skip
    _edits.print_edited(done, dry_run=dry_run, as_json=as_json, quiet=quiet, command="rewrite")
    raise typer.Exit(0 if done.edited.passed else 1)
