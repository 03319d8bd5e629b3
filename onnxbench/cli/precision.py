"""``onnxbench precision``: a model in another floating-point precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxbench.cli import _searching
from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._edits import one_target
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    DimOption,
    DryRun,
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    ModelArgument,
    OutArgument,
    PerTensor,
    Quiet,
    RangeOption,
    SaveRecipe,
    Seed,
    ShapeOption,
    ShareWeights,
    ShortOutput,
    feed_options,
    save_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxbench.precision import ConvertedFile, Headroom

_SHOWN = 12


@means_nothing_without(
    external_threshold=("external_data", "per_tensor"),
    **dict.fromkeys(
        ("metric", "samples", "holdout", "cost", "on", "max_runs", "budget", "resume", "save_set", "report"),
        ("search", "tolerance"),
    ),
)
def precision(
    model: ModelArgument,
    out: OutArgument = None,
    to: Annotated[
        str, typer.Option("--to", "--low-precision-type", metavar="TYPE", help="fp16, bf16, fp32 or fp64.")
    ] = "fp16",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-fp32",
            "--keep",
            metavar="SEL...",
            show_default=False,
            help="Nodes that stay in the type that they have: op:Softmax, scope:head, @nodes.txt.",
        ),
    ] = None,
    named: Annotated[
        list[str] | None,
        typer.Option(
            "--nodes-to-exclude",
            "--nodes_to_exclude",
            "--node-block-list",
            "--node_block_list",
            metavar="REGEX...",
            show_default=False,
            help="Nodes that stay, by a regular expression over their names.",
        ),
    ] = None,
    operators: Annotated[
        list[str] | None,
        typer.Option(
            "--op-types-to-exclude",
            "--op_types_to_exclude",
            "--op-block-list",
            "--op_block_list",
            metavar="OP...",
            show_default=False,
            help="Nodes that stay, by operator; the same as --keep-fp32 op:OP.",
        ),
    ] = None,
    io: Annotated[
        str, typer.Option("--io", metavar="keep|convert", help="Whether inputs and outputs keep their types.")
    ] = "keep",
    keep_io: Annotated[
        bool, typer.Option("--keep-io-types", "--keep_io_types", help="The same as --io keep, which is the default.")
    ] = False,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="refuse|clamp|keep",
            help="Weights that the type does not hold, as masks of -1e9: refuse the model, clamp them, or keep what "
            "reads them in its type.",
        ),
    ] = "refuse",
    opset: Annotated[
        str,
        typer.Option("--opset", metavar="raise|keep", help="Raise the opset where operators take the type only then."),
    ] = "raise",
    keep_overflowing: Annotated[
        bool,
        typer.Option("--keep-overflowing", help="Nodes whose values went beyond the type on the feeds stay."),
    ] = False,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    search: _searching.SearchOption = False,
    tolerance: _searching.Tolerance = None,
    metric: _searching.Metric = "max",
    samples: _searching.Samples = None,
    holdout: _searching.Holdout = 0,
    cost: _searching.Cost = "count",
    on: _searching.On = None,
    max_runs: _searching.MaxRuns = 200,
    budget: _searching.BudgetOption = None,
    resume: _searching.Resume = None,
    save_set: _searching.SaveSet = None,
    report: _searching.Report = None,
    save_recipe: SaveRecipe = None,
    short_o: ShortOutput = None,
    dry_run: DryRun = False,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    share_weights: ShareWeights = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert a model to another floating-point precision (docs/precision.md).

    What may change comes from the operators' schemas; an operator that does not take the type stays, with a Cast where
    it needs one. Bodies and functions are gone through, weights are converted and never cast. With --feeds (or --shape,
    --val-range) the model is run, and tensors with little headroom are listed. The same as a step of a recipe:
    'set_precision: fp16', which --save-recipe writes.

    With --search, nodes are kept in float32 by measurement: the fewest so that outputs stay within --tolerance on all
    sets of inputs. Half precision is emulated on the CPU, since ONNX Runtime keeps 32 bits there. Exit code 1 says that
    no set was found, or that it is beyond the tolerance on held-out inputs; on Ctrl-C the best set so far is written.

    \b
    Examples:
      onnxbench precision model.onnx half.onnx --to fp16
      onnxbench precision model.onnx half.onnx --keep-fp32 op:Softmax scope:head --io convert
      onnxbench precision model.onnx half.onnx --weights clamp --feeds samples.npz --keep-overflowing
      onnxbench precision model.onnx brain.onnx --to bf16 --op-types-to-exclude LayerNormalization
      onnxbench precision half.onnx full.onnx --to fp32 --io convert
      onnxbench precision model.onnx half.onnx --search --tolerance 1e-2 --feeds samples/ --holdout 4
      onnxbench precision model.onnx half.onnx --search --metric cosine --tolerance 0.999 --report report/
      onnxbench precision model.onnx half.onnx --tolerance '>=0.99' --metric top1.py:agreement --budget 10m
    """
    from dataclasses import replace

    from onnxbench.cli._render import print_json
    from onnxbench.errors import UsageError

    if keep_io and io != "keep":
        raise UsageError(f"--keep-io-types and --io {io} say two things")
    if dry_run and (save_set or save_recipe):
        raise UsageError("--dry-run writes nothing: --save-set and --save-recipe mean nothing with it")
    target = one_target(out, short_o, dry_run=dry_run)
    wanted = feed_options(feeds, shape, dim, val_range, seed)
    choices: dict[str, Any] = {"to": to, "io": io, "weights": weights, "opset": opset}
    stays = [*(keep or ()), *(f"op:{name}" for name in operators or ())]
    storing = save_options(external_data, per_tensor, external_threshold, share_weights)
    if search or tolerance:
        if named or keep_overflowing:
            raise UsageError("a search takes --keep-fp32 and --op-types-to-exclude alone for what stays in any case")
        _searching.search(
            model, target, replace(wanted, iterations=samples), storing, keep=stays, **choices,
            tolerance=tolerance or (), metric=metric, holdout=holdout, cost=cost, on=on, max_runs=max_runs,
            budget=budget, resume=resume, save_set=save_set, save_recipe=save_recipe, report=report,
            allow_outside=allow_outside, as_json=as_json, quiet=quiet,
        )  # fmt: skip
    is_run = any((feeds, shape, dim, val_range)) or keep_overflowing
    done = _converted(
        model, target, choices, save_recipe, keep=stays, keep_named=named or (), feeds=wanted if is_run else None,
        keep_overflowing=keep_overflowing, options=storing, allow_outside=allow_outside,
    )  # fmt: skip
    if as_json:
        print_json("precision", done)
    else:
        _print(done, quiet=quiet)


def _converted(
    model: Path, target: Path | None, choices: dict[str, Any], recipe: Path | None, **how: Any
) -> ConvertedFile:
    """Converts a model, and writes the file and the recipe of it, both or none."""
    from onnxbench.operations import SetPrecision
    from onnxbench.precision import convert_file
    from onnxbench.recipe import Recipe, Step
    from onnxbench.writer import held_back, write_whole

    with held_back(recipe) as recipe_file:
        done = convert_file(model, target, **choices, **how, beside=[recipe])
        if recipe_file is not None:
            step = Step(SetPrecision(**choices, keep=list(done.keep) or None))
            write_whole(recipe_file, [Recipe((step,)).to_yaml().encode()])
    return done


def _print(done: ConvertedFile, *, quiet: bool) -> None:
    from collections import Counter

    from onnxbench.cli._render import note, print_written
    from onnxbench.wording import plural

    made = done.converted
    note(*made.notes, quiet=quiet)
    if done.headroom:
        _print_headroom(done.headroom)
    if done.unseen:
        note(
            f"the list says nothing of {', '.join(done.unseen)}: ONNX Runtime does not show what is in there",
            quiet=quiet,
        )
    if done.nonfinite:
        note(
            f"NaN or Inf on these inputs in {plural(len(done.nonfinite), 'tensor')}, {done.nonfinite[0]!r} first: only "
            "finite values count for headroom ('onnxbench run MODEL --find-nan' tells more)",
            quiet=quiet,
        )
    counts = Counter((each.reason, each.op_type) for each in made.kept)
    for (reason, op_type), count in sorted(counts.items()):
        print(f"stays: {count} {op_type} ({_REASONS[reason]})")
    for each in made.lost:
        if each.action != "rounded":
            what = (
                f"{each.overflows:,} of {each.elements:,} values beyond the type" if each.overflows else "it vanishes"
            )
            print(f"weight {each.weight}: {what}, {each.action}")
    changed = f"{plural(made.nodes, 'node')} and {plural(made.weights, 'weight')} in {made.to}"
    casts = f"{plural(made.casts, 'Cast')} put in, {made.removed} taken out"
    print(f"{changed}, {plural(len(made.kept), 'node')} stay; {casts}")
    if done.saved is not None:
        print_written(done.saved)


def _print_headroom(found: Sequence[Headroom]) -> None:
    from onnxbench.cli._tables import Column, print_top

    columns = [Column("node"), Column("operator", "whole"), Column("tensor"), Column("largest", "number"),
               Column("share", "number")]  # fmt: skip
    rows = [(each.node, each.op_type, each.tensor, f"{each.largest:.4g}", f"{each.share:.0%}") for each in found]
    print_top(columns, rows, _SHOWN, "tensors with little headroom", "--json lists all")


_REASONS = {
    "asked": "as asked", "schema": "the operator does not take the type", "unknown": "an operator that is not known",
    "quantized": "quantized", "overflow": "it reads a weight beyond the type", "range": "its values go beyond the type",
    "indices": "it computes sizes or indices", "value": "there is no Cast for what it takes or makes",
    "between": "it only moves values, between others that stay",
}  # fmt: skip
