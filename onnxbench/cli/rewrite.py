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
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    PerTensor,
    Quiet,
    RangeOption,
    Seed,
    ShapeOption,
    ShareWeights,
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
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)] = None,
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
    verify: Annotated[
        bool,
        typer.Option("--verify", "--validate", help="Run the model before and after each rule, and judge the drift."),
    ] = False,
    no_stamp: Annotated[
        bool, typer.Option("--no-stamp", help="Do not name the recipe's digest in the model's metadata.")
    ] = False,
    short_o: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="The same as OUT.", show_default=False)
    ] = None,
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
    until nothing matches any more. A rule that matches nowhere is an error that names the nearest misses. The same as
    a step of a recipe: 'rewrite: {rule: gelu_erf_ms}'.

    \b
    Examples:
      onnxbench rewrite --list
      onnxbench rewrite model.onnx out.onnx --rule gelu_erf_ms --verify
      onnxbench rewrite model.onnx --rule layer_norm --count
      onnxbench rewrite model.onnx --rule layer_norm --why /encoder/norm/Add_1
      onnxbench rewrite model.onnx out.onnx --rule rules.yaml:silu --at scope:backbone --max 3
      onnxbench rewrite model.onnx --rule my_rules.py:fuse --dry-run
    """
    looks = [name for name, said in (("--list", list_rules), ("--why", why is not None), ("--count", count)) if said]
    acts = [name for name, said in (("--verify", verify), ("--dry-run", dry_run), ("-o", short_o is not None)) if said]
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
    wanted = feed_options(feeds, shape, dim, val_range, seed)
    done = surgery.edit_file(
        _rewrites.required(model), target, steps, verify=wanted if verify else False, stamp=not no_stamp,
        options=save_options(external_data, per_tensor, external_threshold, share_weights), libraries=custom_ops or (),
        allow_outside=allow_outside,
    )  # fmt: skip
    _edits.print_edited(done, dry_run=dry_run, as_json=as_json, quiet=quiet, command="rewrite")
    raise typer.Exit(0 if done.edited.passed else 1)
