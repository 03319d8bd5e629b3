"""``onnxbench bisect``: where and why a model drifts from a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    Cast,
    DimOption,
    FeedsOption,
    Fill,
    ModelArgument,
    OnPlace,
    PluginBundles,
    Quiet,
    RangeOption,
    ReferenceDtype,
    RelativeTolerances,
    Seed,
    ShapeOption,
)

if TYPE_CHECKING:
    from onnxbench.bisection import Reference


@means_nothing_without(
    fill="feeds",
    cast="feeds",
    reference_dtype="torch",
    by="torch",
    argument="torch",
    state_dict="torch",
    key="state_dict",
    baseline_factor="baseline",
    anonymize="repro",
)
def bisect(
    model: ModelArgument,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            "--reference",
            metavar="REF.onnx",
            show_default=False,
            help="The model that is right; without it and --load-outputs, the same model on --reference-on.",
        ),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            "--torch",
            metavar="FILE.py:FACTORY",
            show_default=False,
            help="The PyTorch model that is right, as 'onnxbench export' takes it; its example inputs are the inputs.",
        ),
    ] = None,
    reference_dtype: ReferenceDtype = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="WAY",
            help="How tensors are matched with PyTorch's: metadata, names, values; auto: all in turn.",
        ),
    ] = "auto",
    argument: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=ARG...",
            show_default=False,
            help="Which argument of the PyTorch model an input is, where names do not tell.",
        ),
    ] = None,
    state_dict: Annotated[
        Path | None,
        typer.Option(
            "--state-dict", metavar="FILE", show_default=False, help="Weights for the PyTorch model, as for export."
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="FROM=>TO...", show_default=False, help="How its keys become the module's."),
    ] = None,
    load_outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--load-outputs",
            "--expect",
            metavar="DATA...",
            show_default=False,
            help="Recorded values that are right, of any tensors: .npz, Polygraphy .json, a folder.",
        ),
    ] = None,
    on: OnPlace = None,
    reference_on: Annotated[
        str | None,
        typer.Option(
            "--reference-on", metavar="PLACE", show_default=False, help="What runs the reference, likewise (ort:none)."
        ),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--optimization-level",
            metavar="LEVEL",
            show_default=False,
            help="The level of --on: none, basic, extended, all (none; all if the reference is the same model).",
        ),
    ] = None,
    reference_level: Annotated[
        str | None,
        typer.Option("--reference-level", metavar="LEVEL", show_default=False, help="That of --reference-on (none)."),
    ] = None,
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
            help="Sets of inputs to compare on (all in the data, or 1); the worst is told.",
        ),
    ] = None,
    fill: Fill = False,
    cast: Cast = False,
    atol: Annotated[
        list[str] | None,
        typer.Option(
            "--atol",
            "--abs",
            metavar="TOL...",
            show_default=False,
            help="What outputs may be off: 1e-5, out:1e-3 (by element type; rounding alone is no drift then).",
        ),
    ] = None,
    rtol: RelativeTolerances = None,
    auto_tolerance: Annotated[
        bool,
        typer.Option(
            "--auto-tolerance",
            help="Allow each tensor ten times what rounding does to it in the reference (PyTorch: in float64).",
        ),
    ] = False,
    keep_fusions: Annotated[
        bool,
        typer.Option(
            "--keep-fusions",
            help="Compare only at tensors that ONNX Runtime's optimized graph of MODEL still has (--on ort:all).",
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default=False,
            help="What the search may hold; refused if one node takes more (about a quarter of what is free).",
        ),
    ] = None,
    repro: Annotated[
        Path | None,
        typer.Option(
            "--repro",
            metavar="DIR",
            show_default=False,
            help="Write the first culprit there: a small model, inputs, expected outputs, and a script that shows it.",
        ),
    ] = None,
    anonymize: Annotated[
        bool,
        typer.Option(
            "--anonymize",
            help="In --repro, replace names, texts, metadata, weights and inputs, where the failure still shows.",
        ),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            metavar="DIR",
            show_default=False,
            help="Compare nothing; write what records MODEL's values on --on (trt) elsewhere, for --load-outputs.",
        ),
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            "--over",
            metavar="WHAT",
            show_default=False,
            help="Find what was done to MODEL that makes it drift: optimizers, recipe.yaml, opset, opset:N, providers.",
        ),
    ] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Try MODEL in a process of its own before anything else.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="S", help="Seconds that one call of the runtime may take.")
    ] = 300.0,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            show_default=False,
            help="Write report.json and report.html there: all that was measured, and a page to look at.",
        ),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            "--save-baseline",
            metavar="FILE",
            show_default=False,
            help="Write the errors to a file that later runs are held against.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            show_default=False,
            help="Exit 0 if nothing is worse than there, 1 if anything is, whether or not there is drift.",
        ),
    ] = None,
    baseline_factor: Annotated[
        float,
        typer.Option("--baseline-factor", metavar="X", help="Worse is more than X times the baseline's error."),
    ] = 2.0,
    plugin: PluginBundles = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="In text: culprits and amplifiers listed (0: all).")
    ] = 10,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find where a model drifts from a reference: the nodes whose own computation goes wrong; exit code 1 if any does.

    Every tensor that both sides know is compared, and each node is fed the reference's values, so that its own error is
    told from what it inherits. Culprits are ranked by how much of the outputs' error goes away when they are mended.
    Rounding is no drift, unless --atol or --rtol say so. Without --against and --load-outputs, the model as ONNX
    Runtime optimizes it is compared with the model as it stands. Where MODEL crashes, hangs or is refused, the part of
    it that does so is found.

    \b
    Examples:
      onnxbench bisect exported.onnx --against original.onnx
      onnxbench bisect fp16.onnx --against fp32.onnx --feeds x.npz --repro culprit/
      onnxbench bisect model.onnx --torch model.py:make --reference-dtype float64
      onnxbench bisect model.onnx --optimization-level all
      onnxbench bisect model.onnx --on ort:none --reference-on reference
      onnxbench bisect model.onnx --feeds x.npz --load-outputs golden.npz
      onnxbench bisect model.onnx --on trt
      onnxbench bisect model.engine --feeds x.npz
      onnxbench bisect model.onnx --on trt --feeds x.npz --record there/
      onnxbench bisect a.onnx --against b.onnx --samples 8 --memory 2GiB --json
      onnxbench bisect model.onnx --over optimizers --atol 1e-4
      onnxbench bisect model.onnx --over recipe.yaml
      onnxbench bisect detector.onnx --torch detector.py:make --plugin multi_level_roi_align batched_nms
      onnxbench bisect crashing.onnx --feeds x.npz --timeout 20 --repro culprit/
      onnxbench bisect fp16.onnx --against fp32.onnx --report report/
      onnxbench bisect fp16.onnx --against fp32.onnx --save-baseline drift.json
      onnxbench bisect fp16.onnx --against fp32.onnx --baseline drift.json
    """
    from onnxbench.cli._supervision import after_a_crash

    if record is None:
        isolate = after_a_crash(timeout) or isolate  # the process is forked here, before anything heavy is loaded
    from onnxbench import bisection, specs
    from onnxbench.bundles import load_bundles, operators_of
    from onnxbench.cli import _bisection
    from onnxbench.feeding import FeedOptions

    place = _place(on, level, "--optimization-level")
    said = FeedOptions(feeds or (), shape or (), dim or (), val_range or (), seed, samples, fill, cast)
    most = None if memory is None else specs.parse_memory(memory)
    answers = {"--against": against, "--torch": torch, "--load-outputs": load_outputs, "--repro": repro}
    records = {"--report": report, "--baseline": baseline, "--save-baseline": save_baseline}
    if record is not None:
        from onnxbench.cli._recording import write_recording

        write_recording(
            model, record, on=place, feeds=said, memory=most, plugins=plugin or (), allow_outside=allow_outside,
            unused={**answers, "--over": over, **records}, as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    other = _place(reference_on, reference_level, "--reference-level")
    if over is not None:
        from onnxbench.cli._over import search_over

        search_over(
            model, over, on=place, reference_on=other, feeds=said, atol=atol or (), rtol=rtol or (),
            isolate=timeout if isolate else 0.0, allow_outside=allow_outside,
            unused={**answers, "--memory": memory, **records, "--auto-tolerance": auto_tolerance or None,
                    "--keep-fusions": keep_fusions or None, "--plugin": plugin},
            as_json=as_json, quiet=quiet,
        )  # fmt: skip
    before = bisection.open_baseline(baseline, save_to=save_baseline, factor=baseline_factor)
    reference = (
        against if torch is None else _torch(torch, reference_dtype, by, argument, shape, state_dict, key, against)
    )
    found = bisection.bisect(
        model, against=reference, recorded=load_outputs or (), on=place, reference_on=other, feeds=said,
        atol=atol or (), rtol=rtol or (), auto_tolerance=auto_tolerance, keep_fusions=keep_fusions, memory=most,
        repro=repro, anonymize=anonymize, report=report, evidence=bool(baseline or save_baseline), isolate=isolate,
        timeout=timeout, operators=operators_of(load_bundles(plugin or ())), allow_outside=allow_outside,
    )  # fmt: skip
    if found.failure is not None:  # nothing was compared: there is nothing to report, or to hold against a baseline
        before = report = save_baseline = None
    judgement = None if before is None else before.judge(found, factor=baseline_factor)
    if save_baseline is not None:
        bisection.Baseline.of(found).save(save_baseline)
    wrote = _bisection.Written(repro if found.culprits or found.failure else None, report, save_baseline)
    _bisection.show(found, judgement, str(model), wrote, limit=limit, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if (judgement or found).passed else 1)


def _torch(
    source: str, dtype: str | None, by: str, inputs: list[str] | None, shapes: list[str] | None,
    state_dict: Path | None, keys: list[str] | None, against: Path | None,
) -> Reference:  # fmt: skip
    from onnxbench.errors import UsageError
    from onnxbench.pytorch.reference import torch_reference
    from onnxbench.specs import parse_pairs

    if against is not None:
        raise UsageError("--torch and --against both name a reference")
    pairs = parse_pairs(inputs or (), what="--input", example="NAME=ARG: --input input.1=x")
    return torch_reference(
        source, dtype=dtype, by=by, inputs=pairs, shapes=shapes or (),
        state_dict=state_dict, keys=keys or (),
    )  # fmt: skip


def _place(place: str | None, level: str | None, option: str) -> str | None:
    """Returns the place with a level that is typed in an option of its own."""
    from onnxbench.errors import UsageError

    if level is None:
        return place
    head, comma, rest = (place or "ort").partition(",")
    if ":" in head or "level=" in rest:
        raise UsageError(f"{option} and {place!r} both name a level")
    return f"{head}:{level}{comma}{rest}"
