"""``onnxbench quantize``: an int8 model, measured."""

from __future__ import annotations

from collections.abc import Sequence
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
    Seed,
    ShapeOption,
    ShareWeights,
    ShortOutput,
    feed_options,
    save_options,
)

if TYPE_CHECKING:
    from onnxbench.int8 import Quantization, TensorError

_SHOWN = 8
_ALL = "--json and --report have all"


@means_nothing_without(
    external_threshold=("external_data", "per_tensor"),
    **dict.fromkeys(("metric", "cost", "on", "max_runs", "budget", "resume"), ("search", "tolerance")),
)
def quantize(
    model: ModelArgument,
    out: OutArgument = None,
    target: Annotated[
        str, typer.Option("--target", metavar="tensorrt|onnxruntime", help="What will run it, and so its form.")
    ] = "tensorrt",
    method: Annotated[
        str,
        typer.Option(
            "--calibration",
            "--method",
            "--calibrate-method",
            metavar="auto|mse|minmax|entropy|percentile",
            help="How the range of a tensor is taken from its values (auto: tries them, and measures which is best).",
        ),
    ] = "auto",
    percentile: Annotated[
        float | None,
        typer.Option(
            "--percentile", metavar="P", show_default=False, help="With --method percentile: the share within, 99.99."
        ),
    ] = None,
    per_channel: Annotated[
        bool,
        typer.Option("--per-channel/--per-tensor", help="A scale for each channel of a weight, or one for all of it."),
    ] = True,
    quantizer: Annotated[
        str,
        typer.Option(
            "--quantizer",
            metavar="onnxruntime|modelopt",
            help="ONNX Runtime's, or NVIDIA's modelopt, if it is installed (for TensorRT only).",
        ),
    ] = "onnxruntime",
    operators: Annotated[
        list[str] | None,
        typer.Option(
            "--op-types",
            "--op-types-to-quantize",
            metavar="OP...",
            show_default=False,
            help="Types of nodes to quantize (Conv, ConvTranspose, Gemm, MatMul; for ONNX Runtime all that it takes).",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            "--keep-float",
            "--nodes-to-exclude",
            metavar="SEL...",
            show_default=False,
            help="Nodes that stay in float: op:MatMul, scope:head, @nodes.txt.",
        ),
    ] = None,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    samples: _searching.Samples = None,
    search: Annotated[
        bool,
        typer.Option("--search", help="Find the smallest set of nodes to leave in float, so that --tolerance holds."),
    ] = False,
    tolerance: _searching.Tolerance = None,
    metric: _searching.Metric = "max",
    holdout: Annotated[
        int,
        typer.Option("--holdout", min=0, metavar="N", help="Calibrate without the last N sets, and judge on them."),
    ] = 0,
    cost: _searching.Cost = "count",
    on: _searching.On = None,
    max_runs: _searching.MaxRuns = 200,
    budget: _searching.BudgetOption = None,
    resume: _searching.Resume = None,
    save_set: Annotated[
        Path | None,
        typer.Option(
            "--save-set", metavar="FILE", show_default=False, help="Write the nodes left in float, for --keep @FILE."
        ),
    ] = None,
    report: _searching.Report = None,
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
    """Quantize a model to int8 with calibration data, and measure what that loses (docs/quantize.md).

    QuantizeLinear and DequantizeLinear are put into the graph by ONNX Runtime's quantizer, in the form that TensorRT
    takes (all zero points 0, bias in float) or in ONNX Runtime's own. Then weights, activations and nodes are measured
    one by one, and outputs are compared with float on all sets of inputs.

    With --search, nodes are left in float by measurement: the fewest so that outputs stay within --tolerance. Exit code
    1 says that no set was found, or that it is beyond the tolerance on held-out inputs.

    \b
    Examples:
      onnxbench quantize model.onnx int8.onnx --feeds samples/
      onnxbench quantize model.onnx int8.onnx --feeds samples/ --target onnxruntime --calibration entropy
      onnxbench quantize model.onnx int8.onnx --feeds samples.npz --keep op:Gemm --report report/
      onnxbench quantize model.onnx int8.onnx --feeds samples/ --metric sqnr --tolerance 20 --holdout 4
      onnxbench quantize model.onnx int8.onnx --feeds samples/ --tolerance '>=0.99' --metric top1.py:agreement
    """
    from dataclasses import replace

    from onnxbench import int8, specs
    from onnxbench.cli._render import chosen, note, print_json
    from onnxbench.errors import UsageError

    if search and not tolerance:
        raise UsageError("--search needs to know what outputs may be off", hint="Say it: --metric sqnr --tolerance 20.")
    goal = one_target(out, short_o, dry_run=dry_run)
    if dry_run and save_set:
        raise UsageError("--dry-run writes nothing: --save-set means nothing with it")
    wanted = replace(feed_options(feeds, shape, dim, val_range, seed), iterations=samples)
    how: dict[str, Any] = {"target": target, "method": method, "quantizer": quantizer}
    found = int8.quantize_file(
        model, goal, options=save_options(external_data, per_tensor, external_threshold, share_weights), feeds=wanted,
        **how, percentile=percentile, per_channel=per_channel, operators=operators, keep=keep or (),
        tolerance=tolerance or None, metric=metric, holdout=holdout, cost=cost, on=on, max_runs=max_runs,
        budget=None if budget is None else specs.parse_duration(budget), resume=resume, save_set=save_set,
        report=report, allow_outside=allow_outside,
    )  # fmt: skip
    note(*found.warnings(), *chosen(found.choices), quiet=quiet)
    if as_json:
        print_json("quantize", found)
    else:
        _print(found)
    interrupted = found.search is not None and found.search.interrupted
    raise typer.Exit(_searching.INTERRUPTED if interrupted else 0 if found.passed else 1)


def _print(found: Quantization) -> None:
    from onnxbench.cli._render import print_written
    from onnxbench.cli._tables import Column, print_more, print_table, print_top

    _print_tensors("weight", found.weights)
    _print_tensors("activation", found.activations)
    nodes = sorted(found.nodes, key=lambda each: -(each.effect or 0.0))
    columns = [Column("node"), Column("operator", "whole"), Column("own error", "number"), Column("effect", "number"),
               Column("stays", "whole")]  # fmt: skip
    rows = [
        (each.node, each.op_type, _small(each.own), _small(each.effect), "float" if each.kept else "")
        for each in nodes
    ]  # fmt: skip
    print_top(columns, rows, _SHOWN, "nodes", _ALL)
    outputs = [
        (each.output, _decibels(each.sqnr_db), _small(each.max_abs),
         "-" if each.cosine is None else f"{each.cosine:.6f}", each.reason)
        for each in found.outputs
    ]  # fmt: skip
    print_table(
        [Column("output"), Column("SQNR dB", "number"), Column("max abs", "number"), Column("cosine", "number"),
         Column("note")],
        outputs,
    )  # fmt: skip
    if found.search is not None:
        _searching.print_frontier(found.search)
        _searching.print_end(found.search)
    if found.kept:
        print("left in float: " + ", ".join(each.node for each in found.kept[:_SHOWN]))
        print_more(len(found.kept), _SHOWN, "nodes left in float", "--save-set writes all")
    if found.saved is not None:
        print_written(found.saved)
    print(found.verdict)


def _print_tensors(what: str, errors: Sequence[TensorError]) -> None:
    from onnxbench.cli._tables import Column, print_top

    if not errors:
        return
    columns = [Column(what), Column("type", "whole"), Column("SQNR dB", "number"), Column("max abs", "number"),
               Column("clipped", "number")]  # fmt: skip
    rows = [
        (each.tensor, each.dtype if each.channels == 1 else f"{each.dtype} x {each.channels}", _decibels(each.sqnr_db),
         _small(each.max_abs), f"{each.clipped:.2%}")
        for each in errors
    ]  # fmt: skip
    print_top(columns, rows, _SHOWN, f"{what}s", _ALL)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if value else "0"


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
