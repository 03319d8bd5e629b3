"""``onnxbench split``: disjoint pieces that cover a model, and the proof that they are the model."""

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


@means_nothing_without(
    val_range=("prove", "shape", "dim"),
    seed=("prove", "shape", "dim"),
    external_threshold=("external_data", "per_tensor"),
)
def split(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for the pieces.", show_default=False)],
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="SEL...", help="Cut at these tensors.", show_default=False)
    ] = None,
    parts: Annotated[
        int | None, typer.Option("--parts", "-n", min=2, help="Cut into this many parts.", show_default=False)
    ] = None,
    max_weights: Annotated[
        str | None,
        typer.Option(
            "--max-weights",
            metavar="SIZE",
            help="Cut so that no piece has more weights than this (500MB).",
            show_default=False,
        ),
    ] = None,
    by_scopes: Annotated[
        int | None,
        typer.Option(
            "--by-scopes", metavar="DEPTH", min=1, help="Cut along PyTorch modules, to this depth.", show_default=False
        ),
    ] = None,
    prove: Prove = False,
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
    """Split a model into disjoint pieces that cover it, with a manifest of how they are wired.

    A tensor that bypasses a cut becomes a further boundary, so the pieces always chain. --prove runs them in ONNX
    Runtime: bit for bit with graph optimizations off, and the drift with them on; exit code 1 if they differ.

    \b
    Examples:
      onnxbench split model.onnx pieces --at 23 25 27 --prove
      onnxbench split model.onnx pieces --parts 4
      onnxbench split model.onnx pieces --max-weights 500MB
      onnxbench split model.onnx pieces --by-scopes 2
    """
    from onnxbench import splitting

    done, proof = splitting.split_file(
        model, folder, at=at or (), parts=parts, max_weights=max_weights, by_scopes=by_scopes, prove=prove,
        inline=inline_functions, feeds=feed_options(feeds, shape, dim, val_range, seed), allow_outside=allow_outside,
        options=save_options(external_data, per_tensor, external_threshold, share_weights),
    )  # fmt: skip
    _pieces.print_split(done, proof, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if proof is None or proof.holds else 1)
