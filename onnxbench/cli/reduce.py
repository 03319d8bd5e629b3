"""``onnxbench reduce``: the smallest part of a model that still shows a failure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._edits import required_target
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    Cast,
    DimOption,
    FeedsOption,
    Fill,
    ModelArgument,
    OnPlace,
    OperatorLibraries,
    Quiet,
    RangeOption,
    ReferenceDtype,
    Seed,
    ShapeOption,
    ShortOutput,
)

if TYPE_CHECKING:
    from onnxbench.reduction import Reduction

_INTERRUPTED = 130


@means_nothing_without(fill="feeds", cast="feeds", check_exit="check", reference_dtype="torch")
def reduce(
    model: ModelArgument,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT.onnx", help="The file to write.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            "--reference",
            metavar="REF.onnx",
            show_default=False,
            help="The failure is drift from this model.",
        ),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            "--torch",
            metavar="FILE.py:FACTORY",
            show_default=False,
            help="The failure is drift from this PyTorch model, as for bisect.",
        ),
    ] = None,
    reference_dtype: ReferenceDtype = None,
    load_outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--load-outputs",
            "--expect",
            metavar="DATA...",
            show_default=False,
            help="The failure is drift from these recorded values of any tensors; parts are cut at these.",
        ),
    ] = None,
    on: OnPlace = None,
    reference_on: Annotated[
        str | None,
        typer.Option(
            "--reference-on",
            metavar="PLACE",
            show_default=False,
            help="The failure is drift from this place: ort:none, reference. With --against: what runs REF.",
        ),
    ] = None,
    nonfinite: Annotated[
        bool, typer.Option("--nonfinite", help="The failure is NaN (or Inf, where there is no NaN).")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="CMD",
            show_default=False,
            help="The failure shows if this command ends with 0 on a model file, {}; its inputs are in {feeds}.",
        ),
    ] = None,
    check_exit: Annotated[
        int, typer.Option("--check-exit", metavar="N", help="... if it ends with N (139: dies of a crash).")
    ] = 0,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "--iterations",
            min=1,
            show_default=False,
            help="Sets of inputs to try a part on (all in the data, or 1).",
        ),
    ] = None,
    fill: Fill = False,
    cast: Cast = False,
    atol: Annotated[
        float | None,
        typer.Option(
            "--atol",
            "--abs",
            metavar="TOL",
            show_default=False,
            help="Drift is more than this (a quarter of the culprit's own error).",
        ),
    ] = None,
    rtol: Annotated[
        float | None,
        typer.Option("--rtol", "--rel", metavar="TOL", show_default=False, help="Relative tolerance, likewise."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default=False,
            help="What the search for drift may hold (a quarter of what is free).",
        ),
    ] = None,
    max_runs: Annotated[
        int, typer.Option("--max-runs", min=1, metavar="N", help="Parts that are tried at most.")
    ] = 500,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.1,
            metavar="S",
            help="Seconds that a run of a model that crashes or hangs, or the command, may take.",
        ),
    ] = 60.0,
    custom_ops: OperatorLibraries = None,
    anonymize: Annotated[
        bool,
        typer.Option(
            "--anonymize", help="Replace names and metadata of what is left, and values where the failure still shows."
        ),
    ] = False,
    short_o: ShortOutput = None,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Reduce a model to the smallest part that still shows a failure: drift, NaN, a crash, or what a command says.

    Without a reference (--against, --torch, --load-outputs, --reference-on), --nonfinite and --check, the failure is
    that the model does not run or, if it runs, that it makes NaN. MODEL runs on ort:all, with --against on ort:none,
    unless --on names a place. Real values flow into the part: they are recorded from the whole. Beside OUT.onnx lie its
    inputs (OUT.feeds.npz), what should come out where that is known (OUT.expected.npz), and OUT.reproduce.py. Ctrl-C
    ends the search and writes the smallest part so far. Exit code 1: the whole model shows no failure.

    \b
    Examples:
      onnxbench reduce crashing.onnx small.onnx --feeds x.npz --timeout 20
      onnxbench reduce exported.onnx small.onnx --against original.onnx --samples 4
      onnxbench reduce exported.onnx small.onnx --torch model.py:make
      onnxbench reduce model.onnx small.onnx --feeds x.npz --load-outputs golden.npz
      onnxbench reduce model.onnx small.onnx --on ort:all --reference-on ort:none --atol 1e-3
      onnxbench reduce model.onnx small.onnx --nonfinite --feeds x.npz
      onnxbench reduce model.onnx small.onnx --check 'trtexec --onnx={}' --check-exit 1
    """
    from onnxbench import feeding, reduction, specs

    target = required_target(out, short_o)
    reference: Any = against
    if torch is not None:
        from onnxbench.errors import UsageError
        from onnxbench.pytorch.reference import torch_reference

        if against is not None:
            raise UsageError("--torch and --against both name a reference")
        reference = torch_reference(torch, dtype=reference_dtype)
    found = reduction.reduce_failure(
        model, target, against=reference, recorded=load_outputs or (), on=on, reference_on=reference_on,
        nonfinite=nonfinite, check=check, check_exit=check_exit,
        feeds=feeding.FeedOptions(feeds or (), shape or (), dim or (), val_range or (), seed, samples, fill, cast),
        atol=atol, rtol=rtol, memory=None if memory is None else specs.parse_memory(memory), max_runs=max_runs,
        timeout=timeout, libraries=custom_ops or (), anonymize=anonymize, allow_outside=allow_outside,
    )  # fmt: skip
    _show(found, as_json=as_json, quiet=quiet)
    raise typer.Exit(1 if not found.shows else _INTERRUPTED if found.interrupted else 0)


def _show(found: Reduction, *, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._records import listed
    from onnxbench.cli._render import chosen, format_bytes, note, print_json

    note(*found.notes, *chosen(found.choices), quiet=quiet)
    if as_json:
        print_json("reduce", found)
        return
    if not found.shows:
        print(f"nothing to reduce: {found.failure}")
        return
    print(f"failure: {found.failure}")
    print(f"left: {listed(list(found.nodes), most=8)}")
    for text in found.inputs[:8]:
        print(f"  input {text}")
    if found.elements[0] != found.elements[1]:
        print(f"  {found.elements[1]:,} numbers flow in, of {found.elements[0]:,}")
    if found.sets > 1:
        print(f"  on set {found.number} of {found.sets}")
    for file in found.files:
        print(f"wrote {file} ({format_bytes(file.stat().st_size)})")
    if found.interrupted:
        print("interrupted: this is the smallest part so far")
    print(f"{found.before:,} nodes -> {found.after:,}, {found.runs:,} runs; {found.ended}")
