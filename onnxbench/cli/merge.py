"""``onnxbench merge``: two models as one, proven to compute what they compute one after the other."""

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


@means_nothing_without(external_threshold=("external_data", "per_tensor"))
def merge(
    a: Annotated[Path, typer.Argument(metavar="A", help="The model whose outputs are connected.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The model whose inputs they feed.", show_default=False)],
    out: OutArgument = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            "--io-map",
            metavar="OUT=IN...",
            help="Connect an output of A (or an input of A, which then feeds both) to an input of B: out=in, out:in, "
            "a.out=b.in. Default: equal names, else the only output to the only input.",
            show_default=False,
        ),
    ] = None,
    keep_outputs: Annotated[
        bool, typer.Option("--keep-outputs", help="Connected outputs of A stay outputs of the result.")
    ] = False,
    keep_output: Annotated[
        list[str] | None,
        typer.Option("--keep-output", metavar="NAME...", help="These of them stay outputs.", show_default=False),
    ] = None,
    prefix_a: Annotated[str, typer.Option("--prefix-a", help="Goes before all names of A.", show_default=False)] = "",
    prefix_b: Annotated[str, typer.Option("--prefix-b", help="Goes before all names of B.", show_default=False)] = "",
    cast: Annotated[bool, typer.Option("--cast", help="Put a Cast where element types differ.")] = False,
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="Store equal weights and constants of A and B once.")
    ] = True,
    target_opset: Annotated[
        str | None,
        typer.Option(
            "--target-opset",
            "--opset",
            metavar="N|latest",
            show_default=False,
            help="The standard opset of the result. Default: the higher one of the two.",
        ),
    ] = None,
    prove: Annotated[
        bool | None,
        typer.Option(
            "--prove/--no-prove",
            show_default=False,
            help="Run A, B on what A gives, and the result, and compare. Default: where that is cheap.",
        ),
    ] = None,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
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
    """Make one model of two: outputs of A feed inputs of B.

    Types are compared before anything is done. Other inputs of B become inputs, connected outputs of A go. Of B's
    names those that A has too get "_b" behind them; A's stay. The lower opset is raised.

    The result is proven: A, then B on what A gives, and the merged model run in ONNX Runtime on the same inputs, and
    all outputs must be equal bit for bit with graph optimizations off. (float16 rounds at the cut, and operators of
    a raised opset may round otherwise; that is told.) If they are not, nothing is written and the exit code is 1. If A
    or B does not run on the inputs, which are drawn unless --feeds, --shape, --dim or --val-range say otherwise,
    nothing is written either: --no-prove does without the proof. Where the weights have more than 256 MB or the graph
    more than 20,000 nodes it is made only if asked for, for three models are loaded twice each; a note says so.

    \b
    Examples:
      onnxbench merge backbone.onnx head.onnx model.onnx
      onnxbench merge det.onnx rec.onnx both.onnx --map boxes=x scores=b.s --keep-outputs
      onnxbench merge pre.onnx net.onnx all.onnx --map img=image --cast --feeds photo.npz
      onnxbench merge a.onnx b.onnx ab.onnx --target-opset 17 --prefix-b second/ --prove
    """
    from onnxbench import merging

    done = merging.merge_file(
        a, b, _pieces.target(out, short_o, dry_run=dry_run), mapping or (),
        options=merging.MergeOptions(
            keep_outputs=keep_outputs or tuple(keep_output or ()), prefix_a=prefix_a, prefix_b=prefix_b, cast=cast,
            share=share, target_opset=target_opset,
        ),
        proven=prove, feeds=feed_options(feeds, shape, dim, val_range, seed), allow_outside=allow_outside,
        save_options=save_options(external_data, per_tensor, external_threshold, share_weights),
    )  # fmt: skip
    _pieces.print_merged(done, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if done.proof is None or done.proof.holds else 1)
