"""``onnxbench export``: a PyTorch model as a checked ONNX file that tells where its values come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AbsoluteTolerance,
    AsJson,
    DryRun,
    ExternalData,
    ExternalThreshold,
    OutArgument,
    PerTensor,
    Quiet,
    RelativeTolerance,
    Seed,
    ShortOutput,
    save_options,
)

if TYPE_CHECKING:
    from onnxbench.pytorch.exporting import Exported


@means_nothing_without(
    key="state_dict", seed="shape", backend="rewrites", rewrite_config="rewrites",
    external_threshold=("external_data", "per_tensor"),
)  # fmt: skip
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="FILE.py:FACTORY, package.module:Class, program.pt2, or a TorchScript file.",
            show_default=False,
        ),
    ],
    out: OutArgument = None,
    short_o: ShortOutput = None,
    exporter: Annotated[
        str, typer.Option("--exporter", metavar="NAME", help="PyTorch's exporter: torch.export or torchscript.")
    ] = "torch.export",
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset", "--target-opset", min=7, help="Opset of the file (the exporter's own).", show_default=False
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            "--dynamic",
            "--dynamic-axes",
            metavar="SPEC...",
            help="Sizes that stay open: x:0=batch, x:0=batch,2=height, x:[batch,3,h,w].",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            "--shapes",
            "--input-shapes",
            metavar="SPEC...",
            help="Example inputs to draw: x:[1,3,224,224], ids:[1,16]:int64.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    input_names: Annotated[
        list[str] | None,
        typer.Option("--input-names", "--input_names", metavar="NAME...", help="Input names.", show_default=False),
    ] = None,
    output_names: Annotated[
        list[str] | None,
        typer.Option("--output-names", "--output_names", metavar="NAME...", help="Output names.", show_default=False),
    ] = None,
    state_dict: Annotated[
        Path | None,
        typer.Option("--state-dict", metavar="FILE", help="Weights: .pt, .pth, .safetensors.", show_default=False),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", metavar="'OLD=>NEW'...", help="How keys of the weights begin in the module.", show_default=False
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="float32, float16, bfloat16, float64.", show_default=False),
    ] = None,
    no_optimize: Annotated[bool, typer.Option("--no-optimize", help="Without the exporter's own optimizer.")] = False,
    passes: Annotated[
        list[str] | None,
        typer.Option(
            "--pass",
            metavar="PASS...",
            help="Run on the result: an operation of edit (fold-constants), recipe.yaml, or file.py:func.",
            show_default=False,
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="BUNDLE...",
            help="Custom operators for PyTorch and ONNX: folders of bundles (their code is run).",
            show_default=False,
        ),
    ] = None,
    rewrites: Annotated[
        list[str] | None,
        typer.Option(
            "--rewrites",
            metavar="FILE...",
            help="Rewrite PyTorch code for the export: file.py, a name that comes along, or shipped for all of those.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Backend that rewrites are chosen for: onnxruntime, tensorrt, or your own.",
            show_default=False,
        ),
    ] = None,
    rewrite_config: Annotated[
        list[str] | None,
        typer.Option(
            "--rewrite-config", metavar="KEY=VALUE...", help="What rewrites get as ctx.config.", show_default=False
        ),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with PyTorch.")] = False,
    atol: AbsoluteTolerance = None,
    rtol: RelativeTolerance = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse the result if anything was frozen or baked.")
    ] = False,
    dry_run: DryRun = False,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a PyTorch model: checked, compared with PyTorch, its values mapped to modules and source lines.

    FACTORY takes nothing and returns a module, (module, inputs) or (module, args, kwargs); it and what it imports are
    run. The file is compared with PyTorch on the example inputs, and at other sizes where some are open. Where they
    differ, the exit code is 1 and nothing is written. Needs `pip install onnxbench[torch]`.

    \b
    Examples:
      onnxbench export model.py:make model.onnx
      onnxbench export model.py:make model.onnx --dynamic x:0=batch --output-names logits
      onnxbench export model.py:Net net.onnx --shape 'x:[1,3,224,224]' --state-dict net.pth --key 'module.=>'
      onnxbench export package.module:Net net.onnx --exporter torchscript --opset 17 --strict
      onnxbench export program.pt2 model.onnx --pass fold-constants my_passes.py:clean
      onnxbench export model.py:make model.onnx --plugin plugins/dynamic_resize
      onnxbench export model.py:make net.onnx --rewrites my_rewrites.py --backend tensorrt
      onnxbench export model.py:make half.onnx --dtype float16 --save-external-data
    """
    from onnxbench.cli._edits import one_target
    from onnxbench.drift import Tolerance
    from onnxbench.pytorch import exporting
    from onnxbench.pytorch.rewriters import parse_config

    tolerance = None if atol is None and rtol is None else Tolerance(atol or 0.0, rtol or 0.0)
    done = exporting.export(
        source, one_target(out, short_o, dry_run=dry_run),
        options=exporting.ExportOptions(
            exporter=exporter, opset=opset, dynamic=dynamic or (), shapes=shape or (), seed=seed,
            input_names=input_names or (), output_names=output_names or (), state_dict=state_dict, keys=key or (),
            dtype=dtype, optimize=not no_optimize, passes=passes or (), plugins=plugin or (), rewrites=rewrites or (),
            backend=backend or "default", rewrite_config=parse_config(rewrite_config or ()), verify=not no_verify,
            tolerance=tolerance, strict=strict,
            storing=save_options(external_data, per_tensor, external_threshold, False),
        ),
    )  # fmt: skip
    _show(done, dry_run=dry_run, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if done.passed else 1)


def _show(done: Exported, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._drift import print_drift
    from onnxbench.cli._render import note, print_json

    for finding in done.findings:
        note(f"{finding.kind}: {finding.sentence()}", *([f"  {finding.hint}"] if finding.hint else []), quiet=quiet)
    note(*done.notes, quiet=quiet)
    if as_json:
        print_json("export", done)
        return
    inputs, outputs = (", ".join(f"{name} {kind}" for name, kind in ports) for ports in (done.inputs, done.outputs))
    print(f"{done.source}: {done.exporter}, opset {done.opset}, {done.nodes:,} nodes")
    print(f"  inputs:  {inputs}\n  outputs: {outputs}")
    for name, count in done.rewrites.items():
        print(f"  rewrite {name}: {count:,} time{'' if count == 1 else 's'}")
    for line in done.passes:
        print(f"  pass {line}")
    covered = done.provenance
    fused = f", {covered.fused:,} of fused nodes" if covered.fused else ""
    exact = f"; {covered.exact:,} are values of fx nodes, {covered.inside:,} lie inside one" if covered.exact else ""
    print(f"provenance: {covered.share:.1%} of {covered.values:,} values have a module and a source line{exact}{fused}")
    for case in done.cases:
        if case.drift is None:
            print(f"{case.name}: {'FAILED: ' if not case.passed else 'not compared: '}{case.reason}")
            continue
        print(f"compared with PyTorch, {case.name}:")
        print_drift(case.drift)
    if done.saved is not None:
        print(f"wrote {done.saved.path}")
    else:
        print("nothing was written (--dry-run)" if dry_run and done.passed else "nothing was written")
        if not done.passed:
            note("--atol and --rtol allow a difference, --no-verify does not compare", quiet=quiet)
